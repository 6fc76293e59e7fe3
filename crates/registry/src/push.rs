//! Writing: blobs, then the manifest that names them. How a blob's bytes travel: [`crate::upload`].

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};

use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Method, StatusCode};
use tierce_image::{Blob, BlobAt, BlobSource, Content, ImageSink, Jobs, Placed};
use tierce_oci::{Digest, Document, Selector, Tag};
use url::Url;

use crate::challenge::Access;
use crate::client::{Call, Made, Registry, RepositoryClient, Target, success};
use crate::error::{Problem, RegistryError, Step, is_transient};
use crate::pull::{blob_path, claimed_digest, manifest_call, manifest_path};
use crate::retry::Attempts;
use crate::transport::Reply;
use crate::upload::upload_location;

impl ImageSink for RepositoryClient {
    type Error = RegistryError;

    fn jobs(&self, wanted: Jobs) -> Jobs {
        // A bad name is told by the first request.
        let settled = self
            .registry()
            .ok()
            .and_then(|it| it.settings().concurrency);
        settled.map_or(wanted, |most| Jobs(wanted.0.min(most)))
    }

    /// Asks by HEAD. Registries hold a manifest only with all that it names, so the answer stands
    /// for the whole.
    async fn current(&self, selector: &Selector) -> Result<Option<Digest>, RegistryError> {
        let registry = self.registry()?;
        let path = manifest_path(&self.repository, selector);
        let call = manifest_call(Method::HEAD, &path, self.access(true));
        let mut attempts = self.client.attempts();
        let reply = self.client.call(&registry, &call, &mut attempts).await?;
        if reply.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let reply = success(reply).await?;
        match (claimed_digest(&reply), selector) {
            (Some(digest), _) => Ok(Some(digest)),
            (None, Selector::Digest(digest)) => Ok(Some(*digest)),
            // The header is optional in the specification; the bytes are not.
            (None, Selector::Tag(_)) => {
                let document = crate::pull::fetch_manifest(self, selector).await?;
                Ok(Some(document.digest()))
            }
        }
    }

    /// Asks the registry's management, where there is one.
    async fn can_move(&self, tag: &Tag) -> bool {
        let control = self.client.control();
        control.is_immutable(&self.repository, tag).await != Some(true)
    }

    async fn place(&self, blob: &BlobAt) -> Result<Option<Placed>, RegistryError> {
        let registry = self.registry()?;
        let digest = blob.descriptor.digest;
        let mut attempts = self.client.attempts();
        if self.has_blob(&registry, &digest, &mut attempts).await? {
            return Ok(Some(Placed::AlreadyThere));
        }
        match &blob.content {
            Content::Origin(origin)
                if origin.registry == self.repository.registry
                    && origin.path != self.repository.path =>
            {
                let mounted = self.mount(&registry, &digest, &origin.path, &mut attempts);
                Ok(mounted.await?.then_some(Placed::Mounted))
            }
            _ => Ok(None),
        }
    }

    async fn send<S: BlobSource>(&self, blob: &Blob<'_, S>) -> Result<(), RegistryError> {
        // It is large, and so is all that holds it.
        Box::pin(self.upload(blob)).await
    }

    async fn put_manifest(
        &self,
        document: &Document,
        tag: Option<&Tag>,
    ) -> Result<(), RegistryError> {
        let reply = self.put_document(document, tag).await?;
        crate::referrers::see_listed(self, document, reply.as_ref()).await
    }
}

/// A registry that says it has stored something else has not stored what was sent.
pub(crate) fn check_claim(reply: &Reply, expected: Digest) -> Result<(), RegistryError> {
    match claimed_digest(reply) {
        Some(found) if found != expected => {
            Err(reply.bad(Problem::OtherDigest { expected, found }))
        }
        _ => Ok(()),
    }
}

impl RepositoryClient {
    /// Puts a manifest or index and gives the registry's answer, which agrees on the digest; `None`
    /// when the answer was lost and a question found it there.
    pub(crate) async fn put_document(
        &self,
        document: &Document,
        tag: Option<&Tag>,
    ) -> Result<Option<Reply>, RegistryError> {
        let registry = self.registry()?;
        let digest = document.digest();
        let selector = tag.map_or(Selector::Digest(digest), |tag| Selector::Tag(tag.clone()));
        let path = manifest_path(&self.repository, &selector);
        let mut call = Call::new(Method::PUT, Target::Path(&path), self.access(true));
        let media_type = document.descriptor().media_type.as_str();
        let media_type = HeaderValue::from_str(media_type)
            .expect("manifests and indexes have media types of a fixed list");
        call.headers.insert(CONTENT_TYPE, media_type);
        call.body = Some(document.bytes().clone());
        let mut attempts = self.client.attempts();
        let outcome = match self.client.call(&registry, &call, &mut attempts).await {
            Ok(reply) => success(reply).await,
            Err(error) => Err(error),
        };
        let error = match outcome {
            Ok(reply) => {
                check_claim(&reply, digest)?;
                return Ok(Some(reply));
            }
            Err(error) => error,
        };
        let is_immutable = error.is_about_immutable_tag();
        if !is_immutable && !error.is_transient() {
            return Err(error);
        }
        // An answer that was lost may have been a success, and the same digest under a tag that
        // cannot be moved is one.
        let found = self.current(&selector).await.ok().flatten();
        match tag {
            _ if found == Some(digest) => Ok(None),
            Some(tag) if is_immutable => Err(RegistryError::ImmutableTag {
                repository: self.repository.clone(),
                tag: tag.clone(),
                found,
                source: Box::new(error),
            }),
            _ => Err(error),
        }
    }

    /// Asks by HEAD whether a blob is there.
    ///
    /// A no of any kind counts as "not there": some registries refuse HEAD for blobs even to those
    /// who may push (distribution/distribution#4383), and the upload that follows says more clearly
    /// what is wrong.
    pub(crate) async fn has_blob(
        &self,
        registry: &Registry,
        digest: &Digest,
        attempts: &mut Attempts,
    ) -> Result<bool, RegistryError> {
        let path = blob_path(&self.repository, digest);
        let call = Call::new(Method::HEAD, Target::Path(&path), self.access(true));
        match self.client.call(registry, &call, attempts).await {
            Ok(reply) => Ok(reply.status().is_success()),
            Err(RegistryError::Unauthorized(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks the registry to take the blob over from its repository `from`.
    ///
    /// A registry that does not, or that does not let us, is no error: the blob is sent then.
    async fn mount(
        &self,
        registry: &Registry,
        digest: &Digest,
        from: &str,
        attempts: &mut Attempts,
    ) -> Result<bool, RegistryError> {
        let path = format!(
            "/v2/{}/blobs/uploads/?mount={digest}&from={from}",
            self.repository.path
        );
        let access = Access {
            mount_from: Some(from),
            ..self.access(true)
        };
        let call = Call::new(Method::POST, Target::Path(&path), access);
        let reply = loop {
            let error = match self
                .client
                .call_once(registry, &call, attempts.is_retry())
                .await
            {
                Ok(reply) if !is_transient(reply.status().as_u16()) => break reply,
                Ok(reply) => reply.into_error().await,
                Err(RegistryError::Unauthorized(refusal)) => {
                    tracing::debug!("no mount from {from}: {refusal}");
                    return Ok(false);
                }
                Err(error) => error,
            };
            // It may be the first that the registry hears of a repository that is not there.
            if let Some(error) = self.settle_missing(registry, error).await? {
                attempts.after(error).await?;
            }
        };
        match reply.status() {
            StatusCode::CREATED => Ok(true),
            StatusCode::ACCEPTED => {
                // It began an upload instead, which is as good as one of our own.
                if let Ok(upload) = upload_location(registry, &reply) {
                    self.uploads().insert(*digest, upload);
                }
                Ok(false)
            }
            status => {
                tracing::debug!(status = status.as_u16(), "no mount from {from}");
                Ok(false)
            }
        }
    }

    pub(crate) fn uploads(&self) -> MutexGuard<'_, BTreeMap<Digest, Url>> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an upload. That comes before any byte of a blob, and tells whether the repository is
    /// there; one that is missing is made here, if its user wants that.
    pub(crate) async fn begin_upload(
        &self,
        registry: &Registry,
        attempts: &mut Attempts,
    ) -> Result<Reply, RegistryError> {
        let path = format!("/v2/{}/blobs/uploads/", self.repository.path);
        let call = Call::new(Method::POST, Target::Path(&path), self.access(true));
        loop {
            let error = match self
                .client
                .call_once(registry, &call, attempts.is_retry())
                .await
            {
                Ok(reply) if reply.status().is_success() => return Ok(reply),
                Ok(reply) => reply.into_error().await,
                Err(error) => error,
            };
            let was_made = registry.was_made(&self.repository.path).await;
            match self.settle_missing(registry, error).await? {
                None => {}
                // It was made a moment ago, and not every server of the registry knows it yet.
                Some(error) if was_made && error.is_missing_repository() => {
                    attempts.again(error).await?;
                }
                Some(error) => attempts.after(error).await?,
            }
        }
    }

    /// Deals with an error that may say that the repository is not there: `None` when it was made
    /// just now, else the error, which may have become clearer.
    pub(crate) async fn settle_missing(
        &self,
        registry: &Registry,
        error: RegistryError,
    ) -> Result<Option<RegistryError>, RegistryError> {
        let repository = &self.repository;
        let control = self.client.control();
        let is_sure = error.is_missing_repository();
        if !is_sure {
            // ECR breaks the connection rather than say so (aws/containers-roadmap#1970).
            let is_suspicious = registry.manners().drops_uploads_to_missing_repositories
                && matches!(error.step(), Some(Step::Transfer));
            if !is_suspicious || control.exists(repository).await != Some(false) {
                return Ok(Some(error));
            }
        }
        let made = registry.make(repository, control).await;
        match made.map_err(|source| RegistryError::CreateRepository {
            repository: repository.clone(),
            source,
        })? {
            Made::Now => Ok(None),
            Made::Before => Ok(Some(error)),
            Made::Not if is_sure => Ok(Some(error)),
            Made::Not => Err(RegistryError::NoRepository {
                repository: repository.clone(),
                source: Box::new(error),
            }),
        }
    }
}
