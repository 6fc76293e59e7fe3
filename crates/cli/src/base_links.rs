//! The symlinks of a base, read out of its layers.

use anyhow::{Context as _, Result};
use tierce_image::{BaseImage, Layer};
use tierce_layer::{BaseLinks, Compression, Limits, read_links};
use tierce_oci::MediaType;

use crate::layer_stream::read_layer;
use crate::output::Output;
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
    read_layer(layer, places, &|_| (), move |pieces| {
        read_links(pieces, compression, Limits::default(), |record| {
            links.apply(&record)
        })?;
        Ok(links)
    })
    .await
}
