//! Writing: blobs, then the manifest that names them.
//!
//! A blob is sent by a POST that begins an upload and one PUT with all its bytes: the one way that
//! every registry takes, ECR among them. An upload that broke is begun anew rather than gone on
//! with, because registries disagree on where it would go on.

use std::pin::pin;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use tierce_image::{Blob, BlobAt, BlobSource, Content, ImageSink, Jobs, OpenBlobError, Placed};
use tierce_oci::{Digest, Document, Selector, Tag};
use tokio::sync::mpsc;
use url::Url;

use crate::auth::Authorization;
use crate::challenge::Access;
use crate::client::{Call, Registry, RepositoryClient, Target, is_challenge, success};
use crate::endpoint::destination;
use crate::error::{Cause, ConnectionFailure, Problem, RegistryError, RequestLine, Step};
use crate::pull::{blob_path, claimed_digest, manifest_call, manifest_path};
use crate::retry::Attempts;
use crate::transport::Reply;

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
        let registry = self.registry()?;
        let digest = blob.descriptor().digest;
        let mut attempts = self.client.attempts();
        let mut reauthorized = false;
        loop {
            // An answer that was lost may have been a success.
            if attempts.is_retry() && self.has_blob(&registry, &digest, &mut attempts).await? {
                return Ok(());
            }
            let upload = match self.take_upload(&digest) {
                Some(upload) => upload,
                None => self.begin_upload(&registry, &mut attempts).await?,
            };
            let (reply, shown) = match self.put_blob(&registry, &upload, blob).await {
                Ok(answer) => answer,
                Err(error) => {
                    // A registry that cannot be spoken to cannot be told either.
                    if matches!(error, RegistryError::Source(_)) {
                        self.cancel_upload(&registry, &upload).await;
                    }
                    attempts.after(error).await?;
                    continue;
                }
            };
            if is_challenge(&reply) && !reauthorized {
                // The token ended between the two requests.
                reauthorized = true;
                let access = self.access(true);
                let client = &self.client;
                client
                    .reauthorize(&registry, &access, &shown, reply)
                    .await?;
                continue;
            }
            // The upload ended on the other side, as unused ones do after a while.
            let is_gone = matches!(reply.status().as_u16(), 404 | 416);
            match success(reply).await {
                Ok(reply) => return check_claim(&reply, digest),
                Err(error) if is_gone => attempts.again(error).await?,
                Err(error) => {
                    self.cancel_upload(&registry, &upload).await;
                    attempts.after(error).await?;
                }
            }
        }
    }

    async fn put_manifest(
        &self,
        document: &Document,
        tag: Option<&Tag>,
    ) -> Result<(), RegistryError> {
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
        let client = &self.client;
        let reply = client
            .call_for_success(&registry, &call, &mut attempts)
            .await?;
        check_claim(&reply, digest)
    }
}

/// A registry that says it has stored something else has not stored what was sent.
fn check_claim(reply: &Reply, expected: Digest) -> Result<(), RegistryError> {
    match claimed_digest(reply) {
        Some(found) if found != expected => {
            Err(reply.bad(Problem::OtherDigest { expected, found }))
        }
        _ => Ok(()),
    }
}

impl RepositoryClient {
    /// Asks by HEAD whether a blob is there.
    ///
    /// A no of any kind counts as "not there": some registries refuse HEAD for blobs even to those
    /// who may push (distribution/distribution#4383), and the upload that follows says more clearly
    /// what is wrong.
    async fn has_blob(
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
        let reply = match self.client.call(registry, &call, attempts).await {
            Ok(reply) => reply,
            Err(RegistryError::Unauthorized(refusal)) => {
                tracing::debug!("no mount from {from}: {refusal}");
                return Ok(false);
            }
            Err(error) => return Err(error),
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

    fn uploads(&self) -> std::sync::MutexGuard<'_, std::collections::BTreeMap<Digest, Url>> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_upload(&self, digest: &Digest) -> Option<Url> {
        self.uploads().remove(digest)
    }

    async fn begin_upload(
        &self,
        registry: &Registry,
        attempts: &mut Attempts,
    ) -> Result<Url, RegistryError> {
        let path = format!("/v2/{}/blobs/uploads/", self.repository.path);
        let call = Call::new(Method::POST, Target::Path(&path), self.access(true));
        let reply = self
            .client
            .call_for_success(registry, &call, attempts)
            .await?;
        upload_location(registry, &reply)
    }

    /// Tells the registry that an upload will not go on, so that it need not keep the bytes.
    async fn cancel_upload(&self, registry: &Registry, upload: &Url) {
        let call = Call::new(Method::DELETE, Target::Url(upload), self.access(true));
        // It forgets the upload anyhow after a while.
        if let Err(error) = self.client.call_once(registry, &call).await {
            tracing::debug!("the upload was not cancelled: {error}");
        }
    }

    /// Sends the bytes, and waits for the answer.
    async fn put_blob<S: BlobSource>(
        &self,
        registry: &Registry,
        upload: &Url,
        blob: &Blob<'_, S>,
    ) -> Result<(Reply, Authorization), RegistryError> {
        let descriptor = blob.descriptor();
        let mut url = upload.clone();
        // Appended to what is there: the query of the upload's address is part of it.
        url.query_pairs_mut()
            .append_pair("digest", &descriptor.digest.to_string());
        let mut headers = HeaderMap::new();
        let octets = HeaderValue::from_static("application/octet-stream");
        headers.insert(CONTENT_TYPE, octets);
        let mut source = blob.open().await.map_err(RegistryError::Source)?.fuse();
        if descriptor.size == 0 {
            // Nobody would ask for the pieces of an empty body, and so nobody would verify it.
            while let Some(piece) = source.next().await {
                piece.map_err(RegistryError::Source)?;
            }
        }

        let (pieces, received) = mpsc::channel(1);
        let body = stream::unfold(received, |mut received| async {
            let piece: Bytes = received.recv().await?;
            Some((Ok::<_, std::convert::Infallible>(piece), received))
        });
        let access = self.access(true);
        let mut answer = pin!(self.client.put_stream(
            registry,
            &url,
            &access,
            headers,
            reqwest::Body::wrap_stream(body),
            descriptor.size,
        ));
        let timeouts = *registry.timeouts();
        let mut feed = pin!(feed(source, pieces, timeouts.read));
        tokio::select! {
            // An early answer is a no; the rest of the bytes is not wanted.
            answer = &mut answer => return answer,
            outcome = &mut feed => match outcome {
                Ok(()) => {}
                // Dropping the request breaks the connection before the body is whole, so that
                // nothing false can be there under the digest.
                Err(Starved::Source(error)) => return Err(RegistryError::Source(error)),
                Err(Starved::Stalled) => return Err(self.stalled(&url, timeouts.read)),
            },
        }
        match tokio::time::timeout(timeouts.upload_answer, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(self.stalled(&url, timeouts.upload_answer)),
        }
    }

    fn stalled(&self, url: &Url, waited: Duration) -> RegistryError {
        let request = RequestLine {
            method: "PUT".to_owned(),
            path: url.path().to_owned(),
        };
        let cause = Cause::text(format!("nothing moved for {} s", waited.as_secs()));
        let host = &self.repository.registry;
        RegistryError::connection(ConnectionFailure::new(host, &request, Step::Wait, cause))
    }
}

/// Why a body is not fed on.
enum Starved {
    /// The blob cannot be read, or is not what its descriptor says.
    Source(OpenBlobError),
    /// The registry takes no more.
    Stalled,
}

/// Hands the pieces of a blob to the request that is on its way.
///
/// The time that the blob's own place takes does not count against the registry.
async fn feed(
    mut source: impl Stream<Item = Result<Bytes, OpenBlobError>> + Unpin,
    pieces: mpsc::Sender<Bytes>,
    patience: Duration,
) -> Result<(), Starved> {
    while let Some(piece) = source.next().await {
        let piece = piece.map_err(Starved::Source)?;
        match tokio::time::timeout(patience, pieces.send(piece)).await {
            Ok(Ok(())) => {}
            // The request is over, or has all the bytes that it announced: its answer tells.
            Ok(Err(_)) => return Ok(()),
            Err(_) => return Err(Starved::Stalled),
        }
    }
    Ok(())
}

/// Where an upload goes on, if that is a place to go to.
fn upload_location(registry: &Registry, reply: &Reply) -> Result<Url, RegistryError> {
    let endpoint = registry.endpoint();
    let url = reply.location(&endpoint)?;
    match endpoint.check_named_url(&url) {
        Ok(()) => Ok(url),
        Err(source) => {
            let host = destination(&url);
            Err(reply.bad(Problem::Distrusted { host, source }))
        }
    }
}
