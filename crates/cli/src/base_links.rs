//! The symlinks of a base, read out of its layers.

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use tierce_image::{BaseImage, Blob, Layer};
use tierce_layer::{BaseLinks, Compression, Limits, read_links};
use tierce_oci::MediaType;

use crate::background::in_background;
use crate::output::Output;
use crate::pieces_reader::PiecesReader;
use crate::places::Places;

/// Learns the symlinks of a base from its layers, which are read once: the links are kept.
pub(crate) async fn read_base_links(
    base: &BaseImage,
    places: &Places,
    output: Output,
) -> Result<BaseLinks> {
    let digest = base.image.digest();
    if let Some(links) = places.link_cache().read(&digest) {
        return Ok(links);
    }
    let mut links = BaseLinks::none();
    for layer in base.image.layers() {
        links.begin_layer();
        links = read_layer_links(layer, links, places, output)
            .await
            .with_context(|| {
                format!(
                    "could not read the symlinks of base layer {}",
                    layer.descriptor.digest
                )
            })?;
    }
    places.link_cache().keep(&digest, &links);
    Ok(links)
}

/// Reads one layer of a base as a stream, on top of the links of those below.
async fn read_layer_links(
    layer: &Layer,
    mut links: BaseLinks,
    places: &Places,
    output: Output,
) -> Result<BaseLinks> {
    let descriptor = &layer.descriptor;
    let compression = match &descriptor.media_type {
        MediaType::Layer(_, tierce_oci::Compression::None) => Compression::None,
        MediaType::Layer(_, tierce_oci::Compression::Zstd) => Compression::Zstd,
        _ => Compression::Gzip,
    };
    output.step(&format!("reading the symlinks of {}", descriptor.digest));
    let ignore = |_| ();
    let blob = Blob::new(descriptor, &layer.content, places.blobs(), &ignore);
    let mut stream = blob.open().await?;
    let (sender, pieces) = PiecesReader::new();
    let reader = in_background(move |_| {
        read_links(pieces, compression, Limits::default(), |record| {
            links.apply(&record)
        })?;
        Ok(links)
    });
    let feeder = async move {
        while let Some(piece) = stream.try_next().await? {
            // The reader ends first when it finds something wrong.
            if sender.send(piece).await.is_err() {
                break;
            }
        }
        Ok::<_, anyhow::Error>(())
    };
    let (fed, links) = futures_util::future::join(feeder, reader).await;
    // A layer that is not what it claims is the first cause of whatever was read out of it.
    fed?;
    links
}
