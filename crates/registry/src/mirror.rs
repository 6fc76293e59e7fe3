//! Reading from mirrors first.
//!
//! A mirror that fails, in whatever way, costs one attempt: the next is asked, and at last the
//! registry itself. What is asked for by digest is verified wherever it comes from; which digest a tag
//! stands for is a mirror's word, as it is the registry's. Nothing is ever written to a mirror, and it
//! is shown the credentials for its own host alone.

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use tierce_image::{BlobStream, BoxError, OpenBlobError};
use tierce_oci::{Descriptor, Digest, Document, Hasher, Repository, Selector};

use crate::client::{Client, RepositoryClient};
use crate::error::{RegistryError, Step};

/// Up to this size a blob of a mirror is looked at whole before any of it is handed out, so that the
/// registry can be asked when it is wrong.
const SMALL: u64 = 8 << 20;

/// A mirror, and where on it a repository is.
#[derive(Debug, Clone)]
pub(crate) struct MirroredPlace {
    /// Speaks to the mirror whatever registry is named.
    pub(crate) client: Client,
    pub(crate) repository: Repository,
}

impl MirroredPlace {
    /// Opens the blob; a small one only when it is what it should be.
    async fn open(&self, blob: &Descriptor, from: u64) -> Result<BlobStream, RegistryError> {
        let opened = crate::pull::open_blob(&self.client, &self.repository, blob, from).await?;
        if from > 0 || blob.size > SMALL {
            return Ok(opened);
        }
        let whole = read_whole(opened)
            .await
            .map_err(|error| read_error(blob.digest, error))?;
        if Digest::of(&whole) != blob.digest {
            return Err(self.spoilt(blob.digest));
        }
        Ok(stream::iter([Ok(whole)]).boxed())
    }

    fn spoilt(&self, digest: Digest) -> RegistryError {
        RegistryError::SpoiltMirror {
            mirror: self.repository.registry.clone(),
            digest,
        }
    }

    /// Notes why the mirror is passed by, and asks it no more when it would fail for the next too.
    fn failed(&self, error: &RegistryError) {
        let mirror = &self.repository;
        let lasts = error.is_connect()
            || matches!(error.step(), Some(Step::Wait | Step::Protocol))
            || matches!(error, RegistryError::SpoiltMirror { .. });
        if lasts && self.client.set_aside() {
            tracing::warn!("mirror {} is not asked any more: {error}", mirror.registry);
        } else {
            tracing::info!("mirror {mirror} is passed by: {error}");
        }
    }
}

async fn read_whole(mut pieces: BlobStream) -> Result<Bytes, BoxError> {
    let mut whole = BytesMut::new();
    // A download ends after the descriptor's size.
    while let Some(piece) = pieces.next().await {
        whole.extend_from_slice(&piece?);
    }
    Ok(whole.freeze())
}

/// The error of a download of ours, which comes in a box.
fn read_error(digest: Digest, error: BoxError) -> RegistryError {
    match error.downcast() {
        Ok(error) => *error,
        Err(source) => RegistryError::Source(OpenBlobError { digest, source }),
    }
}

/// Reads a manifest where it is had first.
pub(crate) async fn fetch_manifest(
    place: &RepositoryClient,
    selector: &Selector,
) -> Result<Document, RegistryError> {
    for mirror in place.client.mirrors(&place.repository)? {
        let there = mirror.client.repository(&mirror.repository);
        match Box::pin(crate::pull::fetch_manifest(&there, selector)).await {
            Ok(document) => return Ok(document),
            Err(error) => mirror.failed(&error),
        }
    }
    Box::pin(crate::pull::fetch_manifest(place, selector)).await
}

/// Opens a blob where it is had first.
pub(crate) async fn open_blob(
    client: &Client,
    repository: &Repository,
    blob: &Descriptor,
    from: u64,
) -> Result<BlobStream, RegistryError> {
    let mirrors = client.mirrors(repository)?;
    if mirrors.is_empty() {
        return Box::pin(crate::pull::open_blob(client, repository, blob, from)).await;
    }
    let mut reading = Reading {
        client: client.clone(),
        repository: repository.clone(),
        blob: blob.clone(),
        at: from,
        mirrors: mirrors.into_iter(),
        now: None,
        pieces: stream::empty().boxed(),
        hasher: (from == 0).then(Hasher::new),
        trusted: None,
    };
    Box::pin(reading.open_next()).await?;
    let pieces = stream::try_unfold(reading, |mut reading| async move {
        let piece = reading.next().await?;
        Ok::<_, BoxError>(piece.map(|piece| (piece, reading)))
    });
    Ok(pieces.boxed())
}

/// A blob that is read from one place after the other, until one holds out.
struct Reading {
    client: Client,
    repository: Repository,
    blob: Descriptor,
    at: u64,
    mirrors: std::vec::IntoIter<MirroredPlace>,
    /// The mirror that is read; `None` when it is the registry.
    now: Option<MirroredPlace>,
    pieces: BlobStream,
    /// Over all that was handed out; `None` when that does not begin at the beginning.
    hasher: Option<Hasher>,
    /// The first mirror of which something was handed out.
    trusted: Option<MirroredPlace>,
}

impl Reading {
    async fn open_next(&mut self) -> Result<(), RegistryError> {
        // What failed must not take the turn of what comes.
        self.pieces = stream::empty().boxed();
        for mirror in self.mirrors.by_ref() {
            match mirror.open(&self.blob, self.at).await {
                Ok(pieces) => {
                    self.pieces = pieces;
                    self.now = Some(mirror);
                    return Ok(());
                }
                Err(error) => mirror.failed(&error),
            }
        }
        let Self {
            client,
            repository,
            blob,
            at,
            ..
        } = self;
        self.pieces = crate::pull::open_blob(client, repository, blob, *at).await?;
        self.now = None;
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Bytes>, BoxError> {
        loop {
            match (self.pieces.next().await, &self.now) {
                (Some(Ok(piece)), _) => {
                    self.take(&piece)?;
                    return Ok(Some(piece));
                }
                (Some(Err(error)), Some(mirror)) => {
                    mirror.failed(&read_error(self.blob.digest, error));
                    self.open_next().await?;
                }
                (Some(Err(error)), None) => return Err(error),
                (None, _) => return Ok(None),
            }
        }
    }

    /// Looks at the last piece before it is handed out: who reads it then is told that a mirror was
    /// wrong, and not that the registry is.
    fn take(&mut self, piece: &Bytes) -> Result<(), RegistryError> {
        self.at = self.at.saturating_add(piece.len() as u64);
        if self.trusted.is_none() {
            self.trusted.clone_from(&self.now);
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(piece);
        }
        if self.at < self.blob.size {
            return Ok(());
        }
        match (self.hasher.take().map(Hasher::finish), &self.trusted) {
            (Some(found), Some(mirror)) if found != self.blob.digest => {
                let error = mirror.spoilt(self.blob.digest);
                mirror.failed(&error);
                Err(error)
            }
            _ => Ok(()),
        }
    }
}
