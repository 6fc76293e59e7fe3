//! How registries and repositories of ECR are named on the command line.

use std::str::FromStr;

use tierce_aws::{EcrHost, EcrRegistry, is_public_ecr};
use tierce_oci::Reference;

/// A repository: `HOST/PATH`, or the path alone in the caller's own registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EcrRepositoryName {
    pub(crate) host: Option<EcrHost>,
    pub(crate) path: String,
}

/// A registry, by its host or by one of its repositories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EcrHostName(pub(crate) EcrRegistry);

/// A text names nothing of ECR's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParseEcrNameError {
    #[error(
        "`{0}` is not a host of ECR: expected ACCOUNT.dkr.ecr.REGION.amazonaws.com or its like"
    )]
    Host(String),
    #[error("`{0}` is ECR Public, whose repositories are looked after elsewhere")]
    Public(String),
    #[error("`{0}` is not the path of a repository: expected lower-case words as in team/orders")]
    Path(String),
    #[error("a repository has neither tag nor digest")]
    Tagged,
}

impl FromStr for EcrRepositoryName {
    type Err = ParseEcrNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, path) = match text.split_once('/') {
            // As everywhere in names of images: what is like a host is one.
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => {
                if is_public_ecr(host) {
                    return Err(ParseEcrNameError::Public(host.to_owned()));
                }
                let parsed = EcrHost::parse(host);
                let host = parsed.ok_or_else(|| ParseEcrNameError::Host(host.to_owned()))?;
                (Some(host), path)
            }
            _ => (None, text),
        };
        // The host is any: it is the path that is looked at.
        let reference: Reference = format!("registry.invalid/{path}")
            .parse()
            .map_err(|_| ParseEcrNameError::Path(path.to_owned()))?;
        if reference.tag.is_some() || reference.digest.is_some() {
            return Err(ParseEcrNameError::Tagged);
        }
        let path = reference.repository.path;
        Ok(Self { host, path })
    }
}

impl FromStr for EcrHostName {
    type Err = ParseEcrNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let host = text.split('/').next().unwrap_or_default();
        EcrRegistry::parse(host)
            .map(Self)
            .ok_or_else(|| ParseEcrNameError::Host(host.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

    #[test]
    fn a_repository_is_named_with_and_without_its_host() {
        let name = |text: &str| text.parse::<EcrRepositoryName>();
        let full = name(&format!("{HOST}/team/orders")).unwrap();
        assert_eq!(
            full.host.map(|host| host.to_string()).as_deref(),
            Some(HOST)
        );
        assert_eq!(full.path, "team/orders");
        for path in ["orders", "team/orders", "a/b-c/d_e"] {
            let own = name(path).unwrap();
            assert_eq!((own.host, own.path.as_str()), (None, path));
        }
        for (text, expected) in [
            ("orders:1", ParseEcrNameError::Tagged),
            (&format!("{HOST}/orders:1"), ParseEcrNameError::Tagged),
            ("Orders", ParseEcrNameError::Path("Orders".to_owned())),
            ("", ParseEcrNameError::Path(String::new())),
            (&format!("{HOST}/"), ParseEcrNameError::Path(String::new())),
            (
                "registry.example/orders",
                ParseEcrNameError::Host("registry.example".to_owned()),
            ),
            (
                "public.ecr.aws/x/orders",
                ParseEcrNameError::Public("public.ecr.aws".to_owned()),
            ),
        ] {
            assert_eq!(name(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn a_registry_is_known_by_its_repositories() {
        let host = |text: &str| text.parse::<EcrHostName>().map(|name| name.0);
        let private = EcrRegistry::parse(HOST).unwrap();
        assert_eq!(host(HOST), Ok(private.clone()));
        assert_eq!(host(&format!("{HOST}/team/orders:1")), Ok(private));
        assert!(matches!(
            host("public.ecr.aws/lambda/python"),
            Ok(EcrRegistry::Public(_))
        ));
        for text in ["orders", "localhost:5000", &format!("{HOST}:443")] {
            assert!(host(text).is_err(), "{text}");
        }
    }
}
