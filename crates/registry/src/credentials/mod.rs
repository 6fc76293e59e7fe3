//! Who we are to a registry.

mod config;
mod files;
mod helper;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use tierce_image::BoxError;
use tierce_oci::Repository;

use crate::secret::Secret;

pub use config::BadConfig;
pub use files::{ConfigFiles, CredentialFilesError};
pub use helper::HelperError;

/// Knows who we are to each registry.
///
/// It is asked when a registry first demands authentication for a repository, and its answer is
/// kept for as long as it is good for.
pub trait CredentialSource: fmt::Debug + Send + Sync {
    /// The credentials for `repository`; `None` when there are none.
    fn credentials<'a>(
        &'a self,
        repository: &'a Repository,
    ) -> BoxFuture<'a, Result<Option<Credentials>, BoxError>>;

    /// Other credentials than `refused`, which the registry takes no more; `None` when there are
    /// none. A source that remembers what it has found looks anew.
    fn renew<'a>(
        &'a self,
        repository: &'a Repository,
        refused: &'a Credentials,
    ) -> BoxFuture<'a, Result<Option<Credentials>, BoxError>> {
        Box::pin(async move {
            let found = self.credentials(repository).await?;
            Ok(found.filter(|found| found.kind != refused.kind))
        })
    }
}

/// Several sources as one: the first that has credentials is heard.
///
/// When those are refused, all are asked for others, in the same order. So a login of long ago does
/// not stand in the way of a service that gives out tokens.
#[derive(Debug, Clone)]
pub struct FirstOf(pub Vec<Arc<dyn CredentialSource>>);

impl CredentialSource for FirstOf {
    fn credentials<'a>(
        &'a self,
        repository: &'a Repository,
    ) -> BoxFuture<'a, Result<Option<Credentials>, BoxError>> {
        Box::pin(async move {
            for source in &self.0 {
                if let Some(found) = source.credentials(repository).await? {
                    return Ok(Some(found));
                }
            }
            Ok(None)
        })
    }

    fn renew<'a>(
        &'a self,
        repository: &'a Repository,
        refused: &'a Credentials,
    ) -> BoxFuture<'a, Result<Option<Credentials>, BoxError>> {
        Box::pin(async move {
            for source in &self.0 {
                if let Some(found) = source.renew(repository, refused).await? {
                    return Ok(Some(found));
                }
            }
            Ok(None)
        })
    }
}

/// What is shown to a registry or its token server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The secret, and how it is to be used.
    pub kind: CredentialKind,
    /// Where they came from, for people: a file, a helper, a service.
    pub origin: String,
    /// Until when they can be shown, shortly before they expire; `None` when nobody knows.
    pub good_until: Option<Instant>,
}

/// The forms in which credentials come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialKind {
    /// A user name and a password, or a password-like token.
    Password {
        /// Who.
        username: String,
        /// The proof.
        password: Secret,
    },
    /// An `OAuth2` refresh token, to be exchanged at the token server.
    IdentityToken(Secret),
    /// A bearer token for the registry itself.
    RegistryToken(Secret),
}

/// Never has credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anonymous;

impl CredentialSource for Anonymous {
    fn credentials<'a>(
        &'a self,
        _: &'a Repository,
    ) -> BoxFuture<'a, Result<Option<Credentials>, BoxError>> {
        Box::pin(async { Ok(None) })
    }
}
