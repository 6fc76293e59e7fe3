//! Tokens of ECR as credentials for registries.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use aws_smithy_types::DateTime;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use tierce_image::BoxError;
use tierce_oci::{Repository, Timestamp};
use tierce_registry::{CredentialKind, CredentialSource, Credentials, Secret};
use tokio::sync::Mutex;

use crate::error::AwsError;
use crate::host::{EcrHost, is_public_ecr};
use crate::session::{Aws, Place};

/// How long before its end a token is no longer given out: long uploads begin with it.
const MARGIN: Duration = Duration::from_mins(5);

/// Tokens of `GetAuthorizationToken` for ECR's registries; nothing for all others.
///
/// Nothing of AWS is touched before a registry of ECR asks for credentials. Tokens are kept for the
/// run, in memory alone, and everyone who waits for one gets the same.
#[derive(Debug)]
pub struct EcrCredentials {
    aws: Aws,
    kept: Mutex<BTreeMap<String, Slot>>,
}

/// Held by whoever asks for one registry.
type Slot = Arc<Mutex<Option<Kept>>>;

/// What is known for one registry.
#[derive(Debug, Clone)]
enum Kept {
    Token(Credentials),
    /// ECR Public is asked without credentials then.
    Nothing,
}

impl EcrCredentials {
    /// Gives tokens that AWS gives.
    pub fn new(aws: Aws) -> Self {
        Self {
            aws,
            kept: Mutex::default(),
        }
    }

    /// The credentials for a registry, other ones than `refused`.
    async fn find(
        &self,
        host: &str,
        refused: Option<&Credentials>,
    ) -> Result<Option<Credentials>, AwsError> {
        let registry = match (EcrHost::parse(host), is_public_ecr(host)) {
            (Some(host), _) => Some(host),
            (None, true) => None,
            (None, false) => return Ok(None),
        };
        let kept = Arc::clone(self.kept.lock().await.entry(host.to_owned()).or_default());
        // Held while AWS is asked: one question is enough for all that wait.
        let mut kept = kept.lock().await;
        match &*kept {
            Some(Kept::Nothing) => return Ok(None),
            Some(Kept::Token(token)) if is_usable(token, refused) => {
                return Ok(Some(token.clone()));
            }
            _ => {}
        }
        let found = match registry {
            Some(registry) => Some(self.private_token(&registry).await?),
            None => self.public_token(host).await,
        };
        *kept = Some(found.clone().map_or(Kept::Nothing, Kept::Token));
        Ok(found.filter(|found| refused.is_none_or(|refused| refused.kind != found.kind)))
    }

    async fn private_token(&self, host: &EcrHost) -> Result<Credentials, AwsError> {
        let place = self.aws.place_of(host);
        let token = Token::of_private(&self.aws, &place).await?;
        tracing::debug!(registry = %host, identity = %place.identity, "token of ECR");
        Ok(token.credentials(&place))
    }

    /// Images of ECR Public can be had by everybody: whoever cannot have a token goes without.
    async fn public_token(&self, host: &str) -> Option<Credentials> {
        let place = self.aws.public_place(host);
        match Token::of_public(&self.aws, &place).await {
            Ok(token) => Some(token.credentials(&place)),
            Err(error) => {
                let why = error.to_string();
                tracing::info!("{host} is asked without credentials: {why}");
                None
            }
        }
    }
}

/// Whether a kept token can still be shown.
fn is_usable(token: &Credentials, refused: Option<&Credentials>) -> bool {
    refused.is_none_or(|refused| refused.kind != token.kind)
        && token.good_until.is_none_or(|end| Instant::now() < end)
}

impl CredentialSource for EcrCredentials {
    fn credentials<'a>(
        &'a self,
        repository: &'a Repository,
    ) -> BoxFuture<'a, Result<Option<Credentials>, BoxError>> {
        Box::pin(async move {
            let found = self.find(&repository.registry, None).await;
            found.map_err(BoxError::from)
        })
    }

    fn renew<'a>(
        &'a self,
        repository: &'a Repository,
        refused: &'a Credentials,
    ) -> BoxFuture<'a, Result<Option<Credentials>, BoxError>> {
        Box::pin(async move {
            match self.find(&repository.registry, Some(refused)).await {
                // The registry's no to the other credentials says more.
                Err(AwsError::NoCredentials { .. }) => Ok(None),
                found => found.map_err(BoxError::from),
            }
        })
    }
}

/// A token that AWS has given, for other programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The registry that it is for.
    pub registry: String,
    /// The user's name, `AWS` as far as is known.
    pub username: String,
    /// The token.
    pub password: Secret,
    /// When it ends.
    pub expires: Option<Timestamp>,
}

impl Login {
    /// User and password as other programs keep them together.
    pub fn basic(&self) -> Secret {
        let pair = format!("{}:{}", self.username, self.password.expose());
        Secret::new(STANDARD.encode(pair))
    }
}

/// A registry that AWS gives tokens for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EcrRegistry {
    /// A private one.
    Private(EcrHost),
    /// ECR Public, by one of its names.
    Public(String),
    /// The caller's own, in that region or in the configured one.
    Own {
        /// The region.
        region: Option<String>,
    },
}

impl EcrRegistry {
    /// The registry with that host; `None` when it is not ECR's.
    pub fn parse(host: &str) -> Option<Self> {
        if is_public_ecr(host) {
            return Some(Self::Public(host.to_owned()));
        }
        EcrHost::parse(host).map(Self::Private)
    }
}

impl Login {
    /// Gets a token for `registry`.
    pub async fn get(aws: &Aws, registry: &EcrRegistry) -> Result<Self, AwsError> {
        let token = match registry {
            EcrRegistry::Private(host) => Token::of_private(aws, &aws.place_of(host)).await?,
            EcrRegistry::Public(host) => Token::of_public(aws, &aws.public_place(host)).await?,
            EcrRegistry::Own { region } => {
                let place = aws.own_place(region.as_deref()).await?;
                Token::of_private(aws, &place).await?
            }
        };
        let registry = match registry {
            EcrRegistry::Private(host) => host.to_string(),
            EcrRegistry::Public(host) => host.clone(),
            EcrRegistry::Own { .. } => token.own_host()?,
        };
        Ok(Self {
            registry,
            username: token.username,
            password: token.password,
            expires: token.expires.and_then(crate::time::timestamp),
        })
    }
}

/// What `GetAuthorizationToken` answers.
struct Token {
    username: String,
    password: Secret,
    expires: Option<DateTime>,
    proxy: Option<String>,
}

const PRIVATE_ACTION: &str = "ecr:GetAuthorizationToken";
const PUBLIC_ACTION: &str = "ecr-public:GetAuthorizationToken";

impl Token {
    async fn of_private(aws: &Aws, place: &Place) -> Result<Self, AwsError> {
        let client = aws.ecr(place).await?;
        let answer = client.get_authorization_token().send().await;
        let answer = answer.map_err(|error| place.call(PRIVATE_ACTION).explain(error))?;
        // One for each registry that was asked for, and that is none: the caller's own. The token is
        // good for all that the caller may reach in the region.
        let data = answer.authorization_data().first();
        let (username, password) = data
            .and_then(|data| decode(data.authorization_token()?))
            .ok_or(AwsError::Incomplete {
                action: PRIVATE_ACTION,
                lacks: "a token",
            })?;
        Ok(Self {
            username,
            password,
            expires: data.and_then(|data| data.expires_at().copied()),
            proxy: data.and_then(|data| data.proxy_endpoint().map(str::to_owned)),
        })
    }

    async fn of_public(aws: &Aws, place: &Place) -> Result<Self, AwsError> {
        let client = aws.ecr_public(place).await?;
        let answer = client.get_authorization_token().send().await;
        let answer = answer.map_err(|error| place.call(PUBLIC_ACTION).explain(error))?;
        let data = answer.authorization_data();
        let (username, password) = data
            .and_then(|data| decode(data.authorization_token()?))
            .ok_or(AwsError::Incomplete {
                action: PUBLIC_ACTION,
                lacks: "a token",
            })?;
        Ok(Self {
            username,
            password,
            expires: data.and_then(|data| data.expires_at().copied()),
            proxy: None,
        })
    }

    fn credentials(self, place: &Place) -> Credentials {
        let now = (Instant::now(), SystemTime::now());
        Credentials {
            kind: CredentialKind::Password {
                username: self.username,
                password: self.password,
            },
            origin: format!("AWS, by {}", place.identity),
            good_until: self
                .expires
                .and_then(|end| SystemTime::try_from(end).ok())
                .and_then(|end| good_until(end, now)),
        }
    }

    /// The registry that AWS names as the one that the token is for.
    fn own_host(&self) -> Result<String, AwsError> {
        let host = self.proxy.as_deref().map(|proxy| {
            let host = proxy.split_once("://").map_or(proxy, |(_, host)| host);
            host.trim_end_matches('/').to_owned()
        });
        host.filter(|host| !host.is_empty())
            .ok_or(AwsError::Incomplete {
                action: PRIVATE_ACTION,
                lacks: "the registry's host",
            })
    }
}

/// The account that asks, by the registry that its token is for.
pub(crate) async fn own_account(aws: &Aws, place: &Place) -> Result<String, AwsError> {
    let host = Token::of_private(aws, place).await?.own_host()?;
    let account = EcrHost::parse(&host).map(|host| host.account().to_owned());
    account.ok_or(AwsError::Incomplete {
        action: PRIVATE_ACTION,
        lacks: "the registry's host",
    })
}

/// Until when a token that ends at `end` is given out.
///
/// An end that has passed is not believed: either clock may be wrong, some servers give nonsense, and
/// asking for another token before each request would help against neither. When the token has ended
/// the registry will say so.
fn good_until(end: SystemTime, now: (Instant, SystemTime)) -> Option<Instant> {
    let left = end
        .duration_since(now.1)
        .ok()
        .filter(|left| !left.is_zero())?;
    let margin = MARGIN.min(left / 4);
    now.0.checked_add(left.saturating_sub(margin))
}

/// `base64("AWS:password")`.
fn decode(token: &str) -> Option<(String, Secret)> {
    let text = String::from_utf8(STANDARD.decode(token.trim()).ok()?).ok()?;
    let (username, password) = text.split_once(':')?;
    let complete = !username.is_empty() && !password.is_empty();
    complete.then(|| (username.to_owned(), Secret::new(password)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_user_and_a_password() {
        let encoded = STANDARD.encode("AWS:pass:word");
        let (username, password) = decode(&encoded).unwrap();
        assert_eq!((username.as_str(), password.expose()), ("AWS", "pass:word"));
        for broken in ["", "%%%", "QVdT", "QVdTOg=="] {
            assert!(decode(broken).is_none(), "{broken}");
        }
    }

    #[test]
    fn tokens_are_given_up_shortly_before_their_end() {
        let now = (Instant::now(), SystemTime::now());
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        assert_eq!(
            good_until(now.1 + hours(12), now),
            Some(now.0 + hours(12).saturating_sub(MARGIN))
        );
        let brief = Duration::from_secs(8);
        assert_eq!(
            good_until(now.1 + brief, now),
            Some(now.0 + Duration::from_secs(6))
        );
        assert_eq!(good_until(now.1 - hours(1), now), None);
        assert_eq!(good_until(now.1, now), None);
    }

    #[test]
    fn a_refused_token_is_not_shown_again() {
        let token = |password: &str, good_until| Credentials {
            kind: CredentialKind::Password {
                username: "AWS".to_owned(),
                password: Secret::new(password),
            },
            origin: String::new(),
            good_until,
        };
        let kept = token("one", None);
        assert!(is_usable(&kept, None));
        assert!(is_usable(&kept, Some(&token("other", None))));
        assert!(!is_usable(&kept, Some(&token("one", None))));
        assert!(!is_usable(&token("one", Some(Instant::now())), None));
    }

    #[tokio::test]
    async fn other_registries_are_none_of_ours() {
        let source = EcrCredentials::new(Aws::new(crate::AwsSettings::default()));
        for name in [
            "localhost:5000/app",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example/app",
        ] {
            let repository: Repository = name.parse().unwrap();
            assert_eq!(source.credentials(&repository).await.unwrap(), None);
        }
    }
}
