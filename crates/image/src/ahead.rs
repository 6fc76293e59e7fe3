//! The head start of a walk: blobs that go to a target while their image is still being made.
//!
//! The walk ([`write()`](crate::write())) begins with a question for the manifest, and so only when
//! every layer has its digest. Where the image is sure to be missing its blobs need not wait for
//! that: each can go as soon as it is there, by the same steps, and the walk finds them done.
//!
//! What must not be lost is the walk's best case, an image that is there already, for one request.
//! So nothing goes ahead on suspicion: see [`Novelty`].

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;

use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use tierce_oci::{Digest, Selector, Tag};

use crate::artifact::BlobAt;
use crate::blob::BlobSource;
use crate::sink::{ImageSink, Placed};
use crate::write::{Arrival, Carrier, Jobs, Progress, WriteError, current};

/// What is told of the images of a build while they are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offer {
    /// What follows is about the image that is to get this name. Blobs of the one before that were
    /// held back are left to its walk.
    Name(Tag),
    /// Something is being made. It holds for all images that follow: they share their layers.
    Making(Novelty),
    /// Blobs of the image. Their bytes can be had from now on.
    Blobs(Vec<BlobAt>),
}

/// What is known of a layer that is being made: whether a target can have its image already.
///
/// Of layers that are known from earlier builds nothing is said: when all are, so may the image be,
/// and the question for the manifest comes before all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Novelty {
    /// Nobody remembers whether the same was made before. The image counts as missing when the
    /// target has nothing under its name, which is asked at once; the walk needs that answer anyhow.
    Unknown,
    /// It was never made here before. Then the image is missing, whatever its name stands for,
    /// unless somebody else has made the very same; and if so, each blob's own question finds it,
    /// and no bytes are sent. The name is asked for all the same, because one that stands for
    /// another image for good must stop it all before anything is sent.
    New,
}

/// What a head start found and did at one target, for the walks that follow it there.
#[derive(Debug, Default)]
pub struct Ahead {
    answers: BTreeMap<Tag, Answer>,
    blobs: BTreeMap<Digest, Arrival>,
}

/// What the target said to the question for a name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer {
    pub(crate) digest: Option<Digest>,
}

impl Ahead {
    /// The answer that was had for `tag`. It is good for one walk: that may move the tag.
    ///
    /// Somebody else may have moved it since the question. Then the two writers were at work at the
    /// same time, and which of them comes last is as open as it always is.
    pub(crate) fn take_answer(&mut self, tag: &Tag) -> Option<Answer> {
        self.answers.remove(tag)
    }

    /// How a blob that went ahead arrived. Said once: whoever asks later finds it already there.
    pub(crate) fn tell(&mut self, digest: &Digest) -> Option<Arrival> {
        let arrival = self.blobs.get_mut(digest)?;
        Some(std::mem::replace(
            arrival,
            Arrival::Placed(Placed::AlreadyThere),
        ))
    }
}

/// Brings blobs to `sink` as they are offered, and ends when all that may go are there and no more
/// offers come.
///
/// Each digest is asked for and sent at most once, `jobs` at a time. The first error ends it, even
/// while it waits for offers. Dropping the future ends the transfers. In every case the target has
/// some blobs more than before, and no new name.
///
/// Offers are taken as there is room to act on them; what holds them meanwhile must not hold up
/// whoever makes them.
pub async fn move_ahead<B: BlobSource, K: ImageSink>(
    offers: impl Stream<Item = Offer>,
    blobs: &B,
    sink: &K,
    jobs: Jobs,
    progress: &(dyn Fn(Progress<'_>) + Sync),
) -> Result<Ahead, WriteError> {
    let carrier = &Carrier {
        blobs,
        sink,
        jobs,
        progress,
    };
    let mut admission = Admission::new(sink);
    let mut arrived = BTreeMap::new();
    {
        let offers = pin!(offers);
        let admitted =
            stream::try_unfold((offers, &mut admission), async |(mut offers, admission)| {
                match offers.next().await {
                    Some(offer) => {
                        let blobs = admission.take(offer).await?;
                        Ok(Some((blobs, (offers, admission))))
                    }
                    None => Ok(None),
                }
            });
        let moved = admitted
            .map_ok(|blobs| stream::iter(blobs).map(Ok))
            .try_flatten()
            .map_ok(|blob| async move {
                let arrival = carrier.move_blob(&blob).await?;
                Ok((blob.descriptor.digest, arrival))
            })
            .try_buffer_unordered(carrier.room());
        let mut moved = pin!(moved);
        while let Some((digest, arrival)) = moved.try_next().await? {
            arrived.insert(digest, arrival);
        }
    }
    Ok(Ahead {
        answers: admission.answers,
        blobs: arrived,
    })
}

/// Decides which blobs may go before anybody knows the manifest.
struct Admission<'a, K> {
    sink: &'a K,
    name: Option<Tag>,
    novelty: Option<Novelty>,
    /// Whether the image of `name` is taken to be missing.
    missing: bool,
    /// Blobs of the image that must wait for that.
    held: Vec<BlobAt>,
    admitted: BTreeSet<Digest>,
    answers: BTreeMap<Tag, Answer>,
}

impl<'a, K: ImageSink> Admission<'a, K> {
    fn new(sink: &'a K) -> Self {
        Self {
            sink,
            name: None,
            novelty: None,
            missing: false,
            held: Vec::new(),
            admitted: BTreeSet::new(),
            answers: BTreeMap::new(),
        }
    }

    /// Takes note of an offer; gives the blobs that may go now.
    async fn take(&mut self, offer: Offer) -> Result<Vec<BlobAt>, WriteError> {
        match offer {
            Offer::Name(tag) => {
                self.name = Some(tag);
                self.missing = false;
                self.held.clear();
            }
            Offer::Making(novelty) => self.novelty = self.novelty.max(Some(novelty)),
            Offer::Blobs(blobs) => self.held.extend(blobs),
        }
        self.missing = self.missing || self.is_missing().await?;
        if !self.missing {
            return Ok(Vec::new());
        }
        let mut admitted = std::mem::take(&mut self.held);
        admitted.retain(|blob| self.admitted.insert(blob.descriptor.digest));
        Ok(admitted)
    }

    async fn is_missing(&mut self) -> Result<bool, WriteError> {
        let (Some(novelty), Some(name)) = (self.novelty, &self.name) else {
            return Ok(false);
        };
        let digest = match self.answers.get(name) {
            Some(answer) => answer.digest,
            None => {
                let digest = current(self.sink, &Selector::Tag(name.clone())).await?;
                self.answers.insert(name.clone(), Answer { digest });
                digest
            }
        };
        match (digest, novelty) {
            (None, _) => Ok(true),
            (Some(_), Novelty::Unknown) => Ok(false),
            // What cannot take the name need not be sent.
            (Some(_), Novelty::New) => Ok(self.sink.can_move(name).await),
        }
    }
}
