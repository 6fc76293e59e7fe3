//! The one walk that moves images.
//!
//! Whatever the two ends are, the order is the same, and each step may end the work:
//!
//! 1. ask the target for the manifest under the tag: the same digest means that all is there, and
//!    another one, where tags cannot be moved, that nothing can come of it;
//! 2. for each manifest, children first: ask for it by digest; then for each of its blobs: is it
//!    there, can it be taken over without moving bytes, else send it;
//! 3. put the manifest; the root one last, under the tag.
//!
//! Blobs may have gone ahead while their image was still being made ([`crate::move_ahead()`]); they
//! are then neither asked for nor sent again.
//!
//! Blobs precede the manifest that names them because registries refuse a manifest with missing
//! blobs, and because a reader must never find a name whose content is not there yet.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use futures_util::{StreamExt, TryStreamExt, stream};
use tierce_oci::{Descriptor, Digest, Selector, Tag};

use crate::ahead::Ahead;
use crate::artifact::{Artifact, BlobAt};
use crate::blob::{Blob, BlobSource, BoxError};
use crate::sink::{ImageSink, Placed};

/// How many things may go on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jobs(pub NonZeroUsize);

impl Jobs {
    /// One after the other.
    pub const ONE: Self = Self(NonZeroUsize::MIN);

    /// The number.
    pub fn get(self) -> usize {
        self.0.get()
    }
}

/// What happens to a blob during a walk, for progress displays.
#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    /// The blob's bytes are about to be sent.
    Sending(&'a Descriptor),
    /// So many more bytes of it were handed to the target. After a retry they are counted again.
    Bytes(&'a Descriptor, u64),
    /// The blob is at the target.
    Done(&'a Descriptor),
}

/// How many blobs, and how many bytes they have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Number of blobs.
    pub blobs: usize,
    /// The sum of their sizes.
    pub bytes: u64,
}

impl Tally {
    fn add(&mut self, descriptor: &Descriptor) {
        self.blobs += 1;
        // Sizes are what manifests claim; a lie must not end the program.
        self.bytes = self.bytes.saturating_add(descriptor.size);
    }
}

/// What a walk did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteReport {
    /// The tag already stood for this very digest; nothing was sent.
    pub up_to_date: bool,
    /// Blobs that were there before.
    pub already_there: Tally,
    /// Blobs that the registry took over from another repository.
    pub mounted: Tally,
    /// Blobs whose packs were linked.
    pub linked: Tally,
    /// Blobs of which only the origin was noted.
    pub noted: Tally,
    /// Blobs whose bytes were sent.
    pub sent: Tally,
    /// Manifests and indexes that were put.
    pub manifests: usize,
}

/// How a blob came to be at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Without its bytes being sent.
    Placed(Placed),
    /// Its bytes were sent.
    Sent,
}

impl WriteReport {
    fn count(&mut self, blob: &Descriptor, arrival: Arrival) {
        let tally = match arrival {
            Arrival::Placed(Placed::AlreadyThere) => &mut self.already_there,
            Arrival::Placed(Placed::Mounted) => &mut self.mounted,
            Arrival::Placed(Placed::Linked) => &mut self.linked,
            Arrival::Placed(Placed::Noted) => &mut self.noted,
            Arrival::Sent => &mut self.sent,
        };
        tally.add(blob);
    }
}

/// Where a walk ended early. The target's tag is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Asking the target for a manifest.
    #[error("could not ask the target for the manifest `{selector}`")]
    Current {
        /// Which one.
        selector: Selector,
        /// What the target said.
        #[source]
        source: BoxError,
    },
    /// The tag stands for another image, and cannot be moved.
    #[error("the tag `{tag}` stands for {found} already, and is immutable there")]
    ImmutableTag {
        /// Which tag.
        tag: Tag,
        /// What it stands for.
        found: Digest,
    },
    /// Getting a blob to the target.
    #[error("could not write blob {digest} ({size} bytes)")]
    Blob {
        /// Which blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// What the target, or the blob's own place, said.
        #[source]
        source: BoxError,
    },
    /// Putting a manifest.
    #[error("could not write the manifest {digest}")]
    Manifest {
        /// Which one.
        digest: Digest,
        /// What the target said.
        #[source]
        source: BoxError,
    },
    /// Making it all visible.
    #[error("could not finish writing")]
    Finish(#[source] BoxError),
}

/// Brings `artifact` to `sink`, under `tag` if there is one.
///
/// At most `jobs` blobs are on their way at once, each digest once. Dropping the future ends the
/// transfers; the target then has some blobs more than before, and no new name.
pub async fn write<B: BlobSource, K: ImageSink>(
    artifact: &Artifact,
    tag: Option<&Tag>,
    blobs: &B,
    sink: &K,
    jobs: Jobs,
    progress: &(dyn Fn(Progress<'_>) + Sync),
) -> Result<WriteReport, WriteError> {
    let mut ahead = Ahead::default();
    write_after(&mut ahead, artifact, tag, blobs, sink, jobs, progress).await
}

/// Like [`write()`], after a head start to the same `sink`.
///
/// What was asked ahead is not asked again. A blob that went ahead counts as it arrived in the
/// report of the first walk that needs it, and as already there in those of later ones.
pub async fn write_after<B: BlobSource, K: ImageSink>(
    ahead: &mut Ahead,
    artifact: &Artifact,
    tag: Option<&Tag>,
    blobs: &B,
    sink: &K,
    jobs: Jobs,
    progress: &(dyn Fn(Progress<'_>) + Sync),
) -> Result<WriteReport, WriteError> {
    let carrier = Carrier {
        blobs,
        sink,
        jobs,
        progress,
    };
    let mut report = WriteReport::default();
    let root = artifact.document.digest();
    let found = match (tag.and_then(|tag| ahead.take_answer(tag)), tag) {
        (Some(answer), _) => answer.digest,
        (None, Some(tag)) => current(sink, &Selector::Tag(tag.clone())).await?,
        (None, None) => current(sink, &Selector::Digest(root)).await?,
    };
    if found == Some(root) {
        report.up_to_date = true;
        return Ok(report);
    }
    if let (Some(found), Some(tag)) = (found, tag)
        && !sink.can_move(tag).await
    {
        return Err(WriteError::ImmutableTag {
            tag: tag.clone(),
            found,
        });
    }
    let mut walked = BTreeSet::new();
    for node in artifact.bottom_up() {
        let digest = node.document.digest();
        let is_root = digest == root;
        if !is_root && !walked.insert(digest) {
            continue;
        }
        // The root under a tag that stands for something else may be there under its digest: then
        // only the tag moves. Without a tag the question has just been asked.
        let known = (tag.is_some() || !is_root)
            && current(sink, &Selector::Digest(digest)).await? == Some(digest);
        if !known {
            carrier
                .move_blobs(node, &mut walked, ahead, &mut report)
                .await?;
        }
        if !known || is_root {
            sink.put_manifest(&node.document, tag.filter(|_| is_root))
                .await
                .map_err(|source| WriteError::Manifest {
                    digest,
                    source: Box::new(source),
                })?;
            report.manifests += 1;
        }
    }
    sink.finish()
        .await
        .map_err(|source| WriteError::Finish(Box::new(source)))?;
    Ok(report)
}

pub(crate) async fn current<K: ImageSink>(
    sink: &K,
    selector: &Selector,
) -> Result<Option<Digest>, WriteError> {
    sink.current(selector)
        .await
        .map_err(|source| WriteError::Current {
            selector: selector.clone(),
            source: Box::new(source),
        })
}

/// What brings blobs from wherever they are to one target.
pub(crate) struct Carrier<'a, B, K> {
    pub(crate) blobs: &'a B,
    pub(crate) sink: &'a K,
    pub(crate) jobs: Jobs,
    pub(crate) progress: &'a (dyn Fn(Progress<'_>) + Sync),
}

impl<B: BlobSource, K: ImageSink> Carrier<'_, B, K> {
    /// How many blobs may be on their way at once.
    pub(crate) fn room(&self) -> usize {
        self.sink.jobs(self.jobs).get()
    }

    async fn move_blobs(
        &self,
        node: &Artifact,
        walked: &mut BTreeSet<Digest>,
        ahead: &mut Ahead,
        report: &mut WriteReport,
    ) -> Result<(), WriteError> {
        let mut wanted = Vec::new();
        for blob in &node.blobs {
            let descriptor = &blob.descriptor;
            if !walked.insert(descriptor.digest) {
                continue;
            }
            match ahead.tell(&descriptor.digest) {
                Some(arrival) => report.count(descriptor, arrival),
                None => wanted.push(blob),
            }
        }
        // Unordered is right here: what comes out is only counted.
        let mut moved = stream::iter(wanted)
            .map(|blob| async move { Ok((blob, self.move_blob(blob).await?)) })
            .buffer_unordered(self.room());
        while let Some((blob, arrival)) = moved.try_next().await? {
            report.count(&blob.descriptor, arrival);
        }
        Ok(())
    }

    /// Gets one blob to the target: by its bytes when there is no other way.
    pub(crate) async fn move_blob(&self, blob: &BlobAt) -> Result<Arrival, WriteError> {
        let failed = |source: BoxError| WriteError::Blob {
            digest: blob.descriptor.digest,
            size: blob.descriptor.size,
            source,
        };
        let descriptor = &blob.descriptor;
        let progress = self.progress;
        let placed = self.sink.place(blob).await;
        let arrival = match placed.map_err(|error| failed(error.into()))? {
            Some(placed) => Arrival::Placed(placed),
            None => {
                progress(Progress::Sending(descriptor));
                let on_bytes = |count| progress(Progress::Bytes(descriptor, count));
                let blob = Blob::new(descriptor, &blob.content, self.blobs, &on_bytes);
                let sent = self.sink.send(&blob).await;
                sent.map_err(|error| failed(error.into()))?;
                Arrival::Sent
            }
        };
        progress(Progress::Done(descriptor));
        Ok(arrival)
    }
}
