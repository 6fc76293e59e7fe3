//! What ECR's own API tells a registry client of repositories.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tierce_image::BoxError;
use tierce_oci::{Repository, Tag};
use tierce_registry::ControlPlane;
use tokio::sync::Mutex;

use crate::host::EcrHost;
use crate::repositories::{
    CreateError, Made, Repositories, RepositoryDescription, RepositoryWishes,
};
use crate::session::Aws;

/// How long a question may take that can do without an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether repositories that are not there are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreateMissing {
    /// They are, when something is pushed to them.
    Yes,
    /// They are not.
    No,
}

/// The management of private ECR's repositories; it knows nothing of other registries.
///
/// Who may not ask, or has no credentials for AWS, loses nothing: there is no answer then, within
/// some seconds, and the question is not put again.
#[derive(Debug)]
pub struct EcrControl {
    aws: Aws,
    create: CreateMissing,
    known: Mutex<BTreeMap<Repository, Slot>>,
}

/// Held by whoever asks about a repository.
type Slot = Arc<Mutex<Option<Known>>>;

/// What is remembered of a repository. That it is missing is not: somebody may make it.
#[derive(Debug, Clone)]
enum Known {
    There(Box<RepositoryDescription>),
    Untold,
}

impl EcrControl {
    /// Asks AWS, and makes repositories if it is told to.
    pub fn new(aws: Aws, create: CreateMissing) -> Self {
        Self {
            aws,
            create,
            known: Mutex::default(),
        }
    }

    /// Makes the repository if it is missing; `None` when that is not wanted, or not for us to do.
    pub async fn make(&self, repository: &Repository) -> Result<Option<Made>, CreateError> {
        let host = EcrHost::parse(&repository.registry);
        let (CreateMissing::Yes, Some(host)) = (self.create, host) else {
            return Ok(None);
        };
        let slot = self.slot(repository).await;
        let mut known = slot.lock().await;
        let repositories = Repositories::at(&self.aws, &host).await?;
        let made = repositories
            .create(&repository.path, &RepositoryWishes::default())
            .await?;
        *known = Some(Known::There(Box::new(made.description.clone())));
        Ok(Some(made))
    }

    async fn slot(&self, repository: &Repository) -> Slot {
        let mut known = self.known.lock().await;
        Arc::clone(known.entry(repository.clone()).or_default())
    }

    /// The repository; `Ok(None)` when it is not there, and `Err` when nobody tells.
    async fn describe(
        &self,
        repository: &Repository,
    ) -> Result<Option<Box<RepositoryDescription>>, Untold> {
        let host = EcrHost::parse(&repository.registry).ok_or(Untold)?;
        let slot = self.slot(repository).await;
        // Held while AWS is asked: one question is enough for all that wait.
        let mut known = slot.lock().await;
        match &*known {
            Some(Known::There(description)) => return Ok(Some(description.clone())),
            Some(Known::Untold) => return Err(Untold),
            None => {}
        }
        let ask = async {
            let repositories = Repositories::at(&self.aws, &host).await?;
            repositories.describe(&repository.path).await
        };
        let why = match tokio::time::timeout(PATIENCE, ask).await {
            Ok(Ok(description)) => {
                let description = Box::new(description);
                *known = Some(Known::There(description.clone()));
                return Ok(Some(description));
            }
            Ok(Err(error)) if error.has_code("RepositoryNotFound") => return Ok(None),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer came in time".to_owned(),
        };
        tracing::info!("ECR does not tell of {repository}: {why}");
        *known = Some(Known::Untold);
        Err(Untold)
    }
}

/// Nobody tells.
struct Untold;

impl ControlPlane for EcrControl {
    fn exists<'a>(&'a self, repository: &'a Repository) -> BoxFuture<'a, Option<bool>> {
        Box::pin(async move {
            let described = self.describe(repository).await.ok()?;
            Some(described.is_some())
        })
    }

    fn is_immutable<'a>(
        &'a self,
        repository: &'a Repository,
        tag: &'a Tag,
    ) -> BoxFuture<'a, Option<bool>> {
        Box::pin(async move {
            let description = self.describe(repository).await.ok()??;
            description.mutability.is_immutable(tag.as_str())
        })
    }

    fn create<'a>(&'a self, repository: &'a Repository) -> BoxFuture<'a, Result<bool, BoxError>> {
        Box::pin(async move { Ok(self.make(repository).await?.is_some()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::AwsSettings;

    #[tokio::test]
    async fn nothing_is_told_of_other_registries() {
        let control = EcrControl::new(Aws::new(AwsSettings::default()), CreateMissing::Yes);
        let repository: Repository = "localhost:5000/orders".parse().unwrap();
        assert_eq!(control.exists(&repository).await, None);
        assert_eq!(
            control.is_immutable(&repository, &Tag::latest()).await,
            None
        );
        assert!(!control.create(&repository).await.unwrap());
    }
}
