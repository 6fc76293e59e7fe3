//! Reading: manifests, and blobs that survive broken connections.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use reqwest::header::{ACCEPT, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE};
use reqwest::{Method, StatusCode};
use tierce_image::{BlobStream, BoxError};
use tierce_oci::{Descriptor, Digest, Document, MediaType, Repository, Selector};
use tokio::sync::OwnedSemaphorePermit;

use crate::challenge::Access;
use crate::client::{Call, Client, Registry, RepositoryClient, Target, success};
use crate::error::{Cause, Problem, RegistryError, Step};
use crate::retry::Attempts;
use crate::transport::Reply;

/// What every registry must take, and so the most that is taken from one (distribution-spec,
/// "Pushing manifests").
const MAX_MANIFEST: usize = 4 << 20;

/// After this much of a blob has come, the attempts are counted anew.
const PROGRESS: u64 = 1 << 20;

/// The registry's word for the digest of what it answers or has got.
pub(crate) const CONTENT_DIGEST: &str = "docker-content-digest";

pub(crate) fn manifest_path(repository: &Repository, selector: &Selector) -> String {
    format!("/v2/{}/manifests/{selector}", repository.path)
}

pub(crate) fn blob_path(repository: &Repository, digest: &Digest) -> String {
    format!("/v2/{}/blobs/{digest}", repository.path)
}

/// A request for a manifest that accepts every type there is.
pub(crate) fn manifest_call<'a>(method: Method, path: &'a str, access: Access<'a>) -> Call<'a> {
    let mut call = Call::new(method, Target::Path(path), access);
    let types = MediaType::MANIFESTS.join(", ");
    let types = HeaderValue::from_str(&types).expect("media types are ASCII");
    call.headers.insert(ACCEPT, types);
    call
}

/// The digest that an answer claims to be about, if it is one that can be read.
pub(crate) fn claimed_digest(reply: &Reply) -> Option<Digest> {
    reply
        .headers()
        .get(CONTENT_DIGEST)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

pub(crate) async fn fetch_manifest(
    place: &RepositoryClient,
    selector: &Selector,
) -> Result<Document, RegistryError> {
    let registry = place.registry()?;
    let path = manifest_path(&place.repository, selector);
    let call = manifest_call(Method::GET, &path, place.access(false));
    let mut attempts = place.client.attempts();
    loop {
        let client = &place.client;
        let mut reply = client
            .call_for_success(&registry, &call, &mut attempts)
            .await?;
        match reply.bytes(MAX_MANIFEST).await {
            Ok(bytes) => return read_manifest(place, selector, &reply, bytes),
            Err(error) => attempts.after(error).await?,
        }
    }
}

fn read_manifest(
    place: &RepositoryClient,
    selector: &Selector,
    reply: &Reply,
    bytes: Bytes,
) -> Result<Document, RegistryError> {
    let found = Digest::of(&bytes);
    let expected = match selector {
        Selector::Digest(digest) => Some(*digest),
        // For a tag there is only the registry's word; bytes that break it were spoilt on the way.
        Selector::Tag(_) => claimed_digest(reply),
    };
    if let Some(expected) = expected
        && expected != found
    {
        return Err(reply.bad(Problem::OtherDigest { expected, found }));
    }
    let served = reply.header(CONTENT_TYPE).map(MediaType::from);
    Document::parse(bytes, served.as_ref()).map_err(|source| RegistryError::Document {
        repository: place.repository.clone(),
        selector: selector.clone(),
        source: Box::new(source),
    })
}

pub(crate) async fn open_blob(
    client: &Client,
    repository: &Repository,
    blob: &Descriptor,
    from: u64,
) -> Result<BlobStream, RegistryError> {
    if from >= blob.size {
        return Ok(stream::empty().boxed());
    }
    let registry = client.registry(&repository.registry)?;
    let mut download = Download {
        client: client.clone(),
        _turn: registry.turn_to_read().await,
        registry,
        repository: repository.clone(),
        digest: blob.digest,
        size: blob.size,
        at: from,
        skip: 0,
        reply: None,
        attempts: client.attempts(),
        progress: 0,
    };
    // The first answer is waited for here, so that a blob that is not there fails early.
    download.connect().await?;
    let pieces = stream::try_unfold(download, |mut download| async move {
        let piece = download.next().await.map_err(BoxError::from)?;
        Ok(piece.map(|piece| (piece, download)))
    });
    Ok(pieces.boxed())
}

/// A blob on its way here.
struct Download {
    client: Client,
    /// Counts against what the registry takes at once.
    _turn: Option<OwnedSemaphorePermit>,
    registry: Arc<Registry>,
    repository: Repository,
    digest: Digest,
    size: u64,
    /// The offset of the next byte to hand out.
    at: u64,
    /// How many bytes of the answer lie before it.
    skip: u64,
    reply: Option<Reply>,
    attempts: Attempts,
    /// How many bytes came since the attempts were last counted anew.
    progress: u64,
}

impl Download {
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        while self.at < self.size {
            let Some(reply) = &mut self.reply else {
                self.connect().await?;
                continue;
            };
            let error = match reply.chunk().await {
                Ok(Some(piece)) => {
                    let piece = self.without_skipped(piece);
                    if piece.is_empty() {
                        continue;
                    }
                    self.advance(piece.len() as u64);
                    return Ok(Some(piece));
                }
                Ok(None) => {
                    let (at, size) = (self.at, self.size);
                    let cause = Cause::text(format!("the answer ended after {at} of {size} bytes"));
                    reply.broken(Step::Transfer, cause)
                }
                Err(error) => error,
            };
            self.reply = None;
            self.attempts.after(error).await?;
        }
        Ok(None)
    }

    fn without_skipped(&mut self, mut piece: Bytes) -> Bytes {
        let skipped = usize::try_from(self.skip).map_or(piece.len(), |skip| skip.min(piece.len()));
        self.skip -= skipped as u64;
        piece.split_off(skipped)
    }

    fn advance(&mut self, count: u64) {
        self.at = self.at.saturating_add(count);
        self.progress = self.progress.saturating_add(count);
        if self.progress >= PROGRESS {
            self.progress = 0;
            self.attempts.restart();
        }
    }

    /// Asks for the rest of the blob.
    async fn connect(&mut self) -> Result<(), RegistryError> {
        let path = blob_path(&self.repository, &self.digest);
        let access = Access {
            path: &self.repository.path,
            push: false,
            mount_from: None,
        };
        let mut call = Call::new(Method::GET, Target::Path(&path), access);
        if self.at > 0 {
            let range =
                HeaderValue::from_str(&format!("bytes={}-", self.at)).expect("a number is ASCII");
            call.headers.insert(RANGE, range);
        }
        let client = &self.client;
        let reply = client
            .call(&self.registry, &call, &mut self.attempts)
            .await?;
        let reply = success(reply).await?;
        let promised = if reply.status() == StatusCode::PARTIAL_CONTENT {
            if range_start(&reply) != Some(self.at) {
                return Err(reply.bad(Problem::OtherRange(self.at)));
            }
            self.skip = 0;
            self.size - self.at
        } else {
            self.skip = self.at;
            self.size
        };
        if let Some(found) = reply.promised_length()
            && found != promised
        {
            let expected = promised;
            return Err(reply.bad(Problem::OtherSize { expected, found }));
        }
        self.reply = Some(reply);
        Ok(())
    }
}

/// The first byte's offset of a partial answer: `bytes 5-9/10` begins at 5.
fn range_start(reply: &Reply) -> Option<u64> {
    let range = reply.header(CONTENT_RANGE)?.trim().strip_prefix("bytes ")?;
    range.split_once('-')?.0.trim().parse().ok()
}
