//! ECR's ways, as far as they must be known beforehand.

use std::num::NonZeroU32;
use std::time::Duration;

use tierce_registry::{Manners, Pace};

use crate::host::{EcrHost, is_public_ecr};

/// What is known of the registry with that host.
pub fn manners(host: &str) -> Manners {
    let each_second = |requests: u32| {
        NonZeroU32::new(requests).map(|requests| Pace {
            requests,
            per: Duration::from_secs(1),
        })
    };
    if is_public_ecr(host) {
        Manners {
            // "Rate of unauthenticated image pulls" in the quotas of ECR Public.
            anonymous_pace: each_second(1),
            // "Rate of PutImage requests" there.
            manifest_pace: each_second(10),
            // aws/containers-roadmap#2835
            answers_400_to_old_tokens: true,
            answers_403_to_old_tokens: false,
            drops_uploads_to_missing_repositories: false,
        }
    } else if EcrHost::parse(host).is_some() {
        Manners {
            anonymous_pace: None,
            // "Rate of PutImage requests" in the quotas of ECR.
            manifest_pace: each_second(10),
            answers_400_to_old_tokens: false,
            // "Your authorization token has expired. Reauthenticate and try again."
            answers_403_to_old_tokens: true,
            // dotnet/sdk-container-builds#279
            drops_uploads_to_missing_repositories: true,
        }
    } else {
        Manners::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_registry_has_its_own() {
        let public = manners("public.ecr.aws");
        assert!(public.answers_400_to_old_tokens);
        assert_eq!(
            public.anonymous_pace.map(|pace| pace.requests.get()),
            Some(1)
        );
        let private = manners("123456789012.dkr.ecr.eu-west-1.amazonaws.com");
        assert!(private.drops_uploads_to_missing_repositories);
        assert_eq!(private.anonymous_pace, None);
        assert_eq!(
            private.manifest_pace.map(|pace| pace.requests.get()),
            Some(10)
        );
        assert_eq!(manners("localhost:5000"), Manners::default());
    }
}
