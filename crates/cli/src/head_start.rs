//! The head start of a push: layers go to their registry while others are still being made.
//!
//! A [`HeadStart`] has two ends. Whoever makes the images tells [`Offers`] what is there already;
//! [`HeadStart::run`] sends what may go ([`tierce_image::move_ahead`] says what may), and runs beside
//! the making until the offers end. Either end's error is the build's, and dropping both ends all.
//! Nothing gets a name here: that is left to the walk that follows, which finds its blobs done.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use anyhow::Result;
use futures_util::future::try_join_all;
use futures_util::stream;
use tierce_image::{Ahead, BaseImage, Image, Jobs, Layer, Novelty, Offer};
use tierce_oci::{Platform, Reference};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::places::Places;
use crate::plan::place_of;
use crate::transport::ImagePlace;

/// What goes ahead, to each repository that a build pushes to.
#[derive(Debug, Default)]
pub(crate) struct HeadStart {
    lanes: Vec<(Reference, UnboundedReceiver<Offer>)>,
}

/// Where the making of images tells what is there already; silent when there is no head start.
#[derive(Debug, Default, Clone)]
pub(crate) struct Offers {
    lanes: Vec<(Reference, UnboundedSender<Offer>)>,
    /// Whether tags tell platforms apart.
    several: bool,
}

/// What went ahead, by the place without its tag.
pub(crate) type Arrived = BTreeMap<String, Ahead>;

impl HeadStart {
    /// Prepares for those of `destinations` that are in registries. Nothing is asked yet.
    ///
    /// Of several names in one repository the first is enough: the others find the blobs there.
    pub(crate) fn to(destinations: &[ImagePlace], several: bool) -> (Offers, Self) {
        let mut offers = Offers {
            lanes: Vec::new(),
            several,
        };
        let mut head_start = Self::default();
        for destination in destinations {
            let ImagePlace::Registry(reference) = destination else {
                continue;
            };
            let known = |(known, _): &(Reference, _)| known.repository == reference.repository;
            if head_start.lanes.iter().any(known) {
                continue;
            }
            // A slow registry must not hold up the making, whose layers wait on disk. What waits
            // here is their names: a few for each layer of the image.
            let (sender, receiver) = unbounded_channel();
            offers.lanes.push((reference.clone(), sender));
            head_start.lanes.push((reference.clone(), receiver));
        }
        (offers, head_start)
    }

    /// Sends what is offered until the offers end and all that may go is there.
    pub(crate) async fn run(self, places: &Places, jobs: Jobs) -> Result<Arrived> {
        let share = jobs.get() / self.lanes.len().max(1);
        let jobs = Jobs(NonZeroUsize::new(share).unwrap_or(NonZeroUsize::MIN));
        let lanes = self
            .lanes
            .into_iter()
            .map(|(reference, offers)| async move {
                let offers =
                    stream::unfold(offers, async |mut offers: UnboundedReceiver<Offer>| {
                        Some((offers.recv().await?, offers))
                    });
                let ahead = places.move_ahead(&reference, offers, jobs).await?;
                Ok::<_, anyhow::Error>((ImagePlace::Registry(reference).stem(), ahead))
            });
        Ok(try_join_all(lanes).await?.into_iter().collect())
    }
}

impl Offers {
    /// What follows belongs to the image for `platform`.
    pub(crate) fn begin(&self, platform: &Platform) -> Result<()> {
        for (reference, sender) in &self.lanes {
            let place = ImagePlace::Registry(reference.clone());
            if let Some(tag) = place_of(&place, platform, self.several)?.tag() {
                send(sender, Offer::Name(tag));
            }
        }
        Ok(())
    }

    /// A layer is about to be made.
    pub(crate) fn making(&self, novelty: Novelty) {
        self.offer(&Offer::Making(novelty));
    }

    /// The image will have the layers of `base`.
    pub(crate) fn base(&self, base: &BaseImage) {
        let layers = base.image.layers().iter();
        self.offer(&Offer::Blobs(layers.map(Layer::to_blob).collect()));
    }

    /// A layer of the image is there.
    pub(crate) fn layer(&self, layer: &Layer) {
        self.offer(&Offer::Blobs(vec![layer.to_blob()]));
    }

    /// The image is there, and with it its config.
    pub(crate) fn image(&self, image: &Image) {
        self.offer(&Offer::Blobs(image.to_artifact().blobs));
    }

    fn offer(&self, offer: &Offer) {
        for (_, sender) in &self.lanes {
            send(sender, offer.clone());
        }
    }
}

fn send(sender: &UnboundedSender<Offer>, offer: Offer) {
    // Nobody takes it only when the other end has failed, which says so itself.
    let _ = sender.send(offer);
}
