//! What AWS says when it does not work.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ecr::config::http::HttpResponse;
use aws_sdk_ecr::error::SdkError;
use aws_smithy_types::error::ErrorMetadata;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use crate::session::Identity;

/// Why something at AWS could not be done.
#[derive(Debug, thiserror::Error)]
pub enum AwsError {
    /// Nothing says who we are.
    #[error("no AWS credentials were found{}", Places(identity))]
    NoCredentials {
        /// As whom we were to come.
        identity: Identity,
    },
    /// Something says who we are, and it cannot be used.
    #[error("the AWS credentials of {identity} cannot be used")]
    Credentials {
        /// As whom we were to come.
        identity: Identity,
        /// Why.
        #[source]
        source: Told,
    },
    /// The service answered, and it was no.
    #[error(transparent)]
    Refused(Box<Refused>),
    /// No answer came that could be read.
    #[error("AWS gave no answer to {action} in {region}")]
    NoAnswer {
        /// What was asked.
        action: &'static str,
        /// Where.
        region: String,
        /// Why.
        #[source]
        source: Told,
    },
    /// An answer lacks what it must have.
    #[error("AWS answered {action} without {lacks}")]
    Incomplete {
        /// What was asked.
        action: &'static str,
        /// What is not there.
        lacks: &'static str,
    },
    /// No region is named, and none is configured.
    #[error("no AWS region is configured{}", in_profile(profile.as_deref()))]
    NoRegion {
        /// The profile that was to name one.
        profile: Option<String>,
    },
    /// A file of certificate authorities cannot be read.
    #[error("could not read the certificate authorities in {}", path.display())]
    ReadAuthorities {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Nothing can be sent at all.
    #[error("could not set up the connection to AWS")]
    Setup(#[source] Told),
}

/// An answer of a service that was no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What was asked, as IAM names it: `ecr:CreateRepository`.
    pub action: &'static str,
    /// Where.
    pub region: String,
    /// The HTTP status.
    pub status: u16,
    /// The service's name for what is wrong: `AccessDeniedException`.
    pub code: String,
    /// What the service says of it.
    pub message: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            action,
            region,
            status,
            code,
            message,
        } = self;
        write!(formatter, "AWS refused {action} in {region} with {status}")?;
        if !code.is_empty() {
            write!(formatter, " {code}")?;
        }
        if !message.is_empty() {
            write!(formatter, ": {message}")?;
        }
        Ok(())
    }
}

impl Error for Refused {}

/// What an error of the SDK says with all its causes, on one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told(String);

impl Told {
    /// The words of `error` and of its causes, each once.
    fn by(error: &(dyn Error + 'static)) -> Self {
        /// Layers of the SDK that say nothing by themselves.
        const EMPTY: [&str; 6] = [
            "dispatch failure",
            "service error",
            "other",
            "io error",
            "user error",
            "failed to construct request",
        ];
        let mut told: Vec<String> = Vec::new();
        let mut next = Some(error);
        while let Some(error) = next {
            // Its own words are those of a debugger.
            let text = match error.downcast_ref::<ErrorMetadata>() {
                Some(meta) => {
                    let (code, message) = (meta.code(), meta.message());
                    [code, message]
                        .into_iter()
                        .flatten()
                        .collect::<Vec<_>>()
                        .join(": ")
                }
                None => error.to_string(),
            };
            let repeats = told.last().is_some_and(|last| last.ends_with(&text));
            let is_empty = EMPTY.contains(&text.as_str()) || text.starts_with("unhandled error");
            if !is_empty && !repeats {
                told.push(text);
            }
            next = error.source();
        }
        Self(without_signature(&told.join(": ")))
    }

    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Told {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Error for Told {}

/// A service that finds a signature wrong repeats the whole request, session token included.
fn without_signature(message: &str) -> String {
    const BEGINNINGS: [&str; 4] = [
        "The Canonical String",
        "The String-to-Sign",
        "Authorization=",
        "X-Amz-Security-Token",
    ];
    let end = BEGINNINGS
        .iter()
        .filter_map(|beginning| {
            message
                .to_ascii_lowercase()
                .find(&beginning.to_ascii_lowercase())
        })
        .min()
        .unwrap_or(message.len());
    let kept = message.get(..end).unwrap_or_default();
    kept.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What is asked, where and as whom: what an error tells.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) action: &'static str,
    pub(crate) region: &'a str,
    pub(crate) identity: &'a Identity,
}

impl Call<'_> {
    /// The error that the SDK's is.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "what `map_err` gives, which nobody needs afterwards"
    )]
    pub(crate) fn explain<E>(self, error: SdkError<E, HttpResponse>) -> AwsError
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        if let SdkError::ServiceError(refusal) = &error {
            let meta = refusal.err().meta();
            return AwsError::Refused(Box::new(Refused {
                action: self.action,
                region: self.region.to_owned(),
                status: refusal.raw().status().as_u16(),
                code: meta.code().unwrap_or_default().to_owned(),
                message: without_signature(meta.message().unwrap_or_default()),
            }));
        }
        if let Some(credentials) = find_credentials_error(&error) {
            return self.without_credentials(credentials);
        }
        AwsError::NoAnswer {
            action: self.action,
            region: self.region.to_owned(),
            source: Told::by(&error),
        }
    }

    /// The error that says whether there are no credentials, or none of use.
    pub(crate) fn without_credentials(self, error: &CredentialsError) -> AwsError {
        let identity = self.identity.clone();
        match error {
            CredentialsError::CredentialsNotLoaded(_) => AwsError::NoCredentials { identity },
            // The base of an assumed role may be what is not there.
            _ => match error.source().and_then(find_credentials_error) {
                Some(CredentialsError::CredentialsNotLoaded(_)) => {
                    AwsError::NoCredentials { identity }
                }
                _ => AwsError::Credentials {
                    identity,
                    source: Told::by(error.source().unwrap_or(error)),
                },
            },
        }
    }
}

fn find_credentials_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a CredentialsError> {
    let mut next: Option<&'a (dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

impl AwsError {
    /// What the service answered, when it did.
    pub fn refused(&self) -> Option<&Refused> {
        match self {
            Self::Refused(refused) => Some(refused),
            _ => None,
        }
    }

    /// Whether the service reported `code`, with or without the `Exception` that some append.
    pub fn has_code(&self, code: &str) -> bool {
        self.refused().is_some_and(|refused| {
            let found = refused.code.as_str();
            found == code || found.strip_suffix("Exception") == Some(code)
        })
    }

    /// Whether whoever asks is known, but may not.
    pub fn is_access_denied(&self) -> bool {
        ["AccessDenied", "UnauthorizedOperation", "NotAuthorized"]
            .iter()
            .any(|code| self.has_code(code))
    }

    /// Whether the credentials are known to be of no use: unknown, expired or wrongly signed.
    pub fn is_bad_credentials(&self) -> bool {
        matches!(self, Self::Credentials { .. })
            || [
                "UnrecognizedClient",
                "InvalidClientTokenId",
                "InvalidSignature",
                "SignatureDoesNotMatch",
                "ExpiredToken",
                "RequestExpired",
                "IncompleteSignature",
                "MissingAuthenticationToken",
            ]
            .iter()
            .any(|code| self.has_code(code))
    }

    /// Whether what was asked about is not there.
    pub fn is_not_found(&self) -> bool {
        [
            "RepositoryNotFound",
            "LifecyclePolicyNotFound",
            "ImageNotFound",
            "ResourceNotFound",
        ]
        .iter()
        .any(|code| self.has_code(code))
    }

    /// Whether the service wants fewer requests, after the SDK has tried again by itself.
    pub fn is_throttling(&self) -> bool {
        ["Throttling", "TooManyRequests", "RequestLimitExceeded"]
            .iter()
            .any(|code| self.has_code(code))
    }
}

fn in_profile(profile: Option<&str>) -> String {
    profile.map_or_else(String::new, |profile| {
        format!(": neither in the environment nor in the profile `{profile}`, if there is one")
    })
}

/// Where credentials were looked for.
struct Places<'a>(&'a Identity);

impl fmt::Display for Places<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.profile {
            Some(profile) => write!(formatter, " in the profile `{profile}`"),
            None => formatter.write_str(
                ": not in the environment, in the shared config files, \
                 or from a role of the container or the instance",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: &str) -> AwsError {
        AwsError::Refused(Box::new(Refused {
            action: "ecr:DescribeRepositories",
            region: "eu-west-1".to_owned(),
            status: 400,
            code: code.to_owned(),
            message: "no".to_owned(),
        }))
    }

    #[test]
    fn codes_are_known_with_and_without_exception() {
        assert!(refused("AccessDeniedException").is_access_denied());
        assert!(refused("AccessDenied").is_access_denied());
        assert!(refused("RepositoryNotFoundException").is_not_found());
        assert!(refused("ThrottlingException").is_throttling());
        assert!(refused("Throttling").is_throttling());
        assert!(refused("ExpiredTokenException").is_bad_credentials());
        assert!(!refused("ServerException").is_access_denied());
        assert_eq!(
            refused("AccessDeniedException").to_string(),
            "AWS refused ecr:DescribeRepositories in eu-west-1 with 400 AccessDeniedException: no"
        );
    }

    #[test]
    fn a_repeated_request_is_not_shown() {
        let message = "The signature does not match.\n\nThe Canonical String for this request \
                       should have been\n'POST\nx-amz-security-token:IQoJb3Jp'";
        assert_eq!(without_signature(message), "The signature does not match.");
        assert_eq!(
            without_signature("header wants 'Credential'. Authorization=AWS4-HMAC-SHA256 x"),
            "header wants 'Credential'."
        );
        assert_eq!(without_signature("plain words"), "plain words");
    }
}
