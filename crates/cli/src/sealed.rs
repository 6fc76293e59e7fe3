//! Sealed blobs on their way into images, and images of old archives on their way to being sealed.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use tierce_image::{Content, Facts, FileRange, Image, Jobs, Layer, Piece, ReadError};
use tierce_layer::cache::Recipe;
use tierce_layer::{Codec, Fast1, LayerCache, Limits, SealSettings, TarCheck, seal_tar};
use tierce_oci::{Descriptor, DiffId, ImageFormat, Manifest, MediaType, Platform, Raw};
use tierce_store::PlainImage;

/// The layer that a recipe makes. The assembler gives its type the format of the image.
pub(crate) fn layer_of(
    recipe: &Recipe,
    codec: &dyn Codec,
    cache: &LayerCache,
    created_by: Option<String>,
) -> Layer {
    let pieces = recipe
        .pieces(codec, cache)
        .into_iter()
        .map(|piece| match piece {
            tierce_layer::Piece::Bytes(bytes) => Piece::Bytes(bytes.into()),
            tierce_layer::Piece::Range {
                path,
                offset,
                length,
                check,
            } => Piece::Range(FileRange {
                path,
                offset,
                length,
                check,
            }),
        });
    Layer {
        descriptor: Descriptor::new(
            MediaType::Layer(ImageFormat::Oci, codec.compression().into()),
            recipe.digest,
            recipe.size,
        ),
        diff_id: recipe.diff_id,
        content: Content::Pieces(pieces.collect()),
        created_by,
        facts: Some(Facts {
            uncompressed_size: recipe.uncompressed_size,
            entries: recipe.entries.total(),
        }),
    }
}

/// Gives an image of an old docker-archive the manifest that it lacks, by compressing its
/// layers. They are checked against the diff ids of the config.
pub(crate) async fn seal_plain(
    plain: PlainImage,
    platform: Option<&Platform>,
    cache: Arc<LayerCache>,
    jobs: Jobs,
) -> Result<Image> {
    let format = ImageFormat::DockerV2S2;
    let config = Raw::parse_config(plain.config.clone(), MediaType::Config(format))?;
    if let Some(wanted) = platform
        && !wanted.accepts(&config.platform)
    {
        return Err(ReadError::OtherPlatform {
            wanted: wanted.clone(),
            found: config.platform.clone(),
        }
        .into());
    }
    anyhow::ensure!(
        plain.layers.len() == config.diff_ids.len(),
        "the archive has {} layers, but the config has {} diff ids",
        plain.layers.len(),
        config.diff_ids.len()
    );
    let diff_ids = config.diff_ids.clone();
    let layers = tokio::task::spawn_blocking(move || {
        let expected = plain.layers.iter().zip(diff_ids);
        expected
            .map(|(member, diff_id)| seal_member(member, diff_id, &cache, jobs))
            .collect::<Result<Vec<Layer>>>()
    })
    .await
    .context("a worker thread ended early")??;
    let manifest = Raw::from_manifest(Manifest {
        media_type: MediaType::Manifest(format),
        config: config.descriptor().clone(),
        layers: layers
            .iter()
            .map(|layer| layer.descriptor.clone())
            .collect(),
        annotations: std::collections::BTreeMap::new(),
        subject: None,
        artifact_type: None,
    });
    let content = |descriptor: &Descriptor| {
        layers
            .iter()
            .find(|layer| layer.descriptor.digest == descriptor.digest)
            .map_or_else(
                || Content::Memory(bytes::Bytes::new()),
                |layer| layer.content.clone(),
            )
    };
    Ok(Image::new(manifest, config, content)?)
}

/// Compresses one layer of an old docker-archive.
fn seal_member(
    member: &tierce_store::ArchiveMember,
    diff_id: DiffId,
    cache: &LayerCache,
    jobs: Jobs,
) -> Result<Layer> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let context = || {
        format!(
            "could not read `{}` of {}",
            member.name,
            member.path.display()
        )
    };
    let mut file = std::fs::File::open(&member.path).with_context(context)?;
    file.seek(SeekFrom::Start(member.offset))
        .with_context(context)?;
    let member_bytes = file.take(member.size);
    let (_, archive) =
        tierce_layer::Compression::detect_and_decode(member_bytes).with_context(context)?;
    let settings = SealSettings {
        codec: &Fast1,
        cache,
        last_time: None,
        identity_suffices: false,
        jobs: jobs.0,
        progress: None,
        cancel: None,
        observer: None,
    };
    // One byte more than may be, so that a bomb ends here and not with the disk; its diff id is
    // then not the one that the config states.
    let archive = archive.take(Limits::default().bytes.saturating_add(1));
    let recipe = seal_tar(archive, TarCheck::AsIs, &settings)
        .with_context(context)?
        .recipe;
    anyhow::ensure!(
        recipe.diff_id == diff_id,
        "the layer `{}` of {} has the diff id {}, but the config says {diff_id}",
        member.name,
        member.path.display(),
        recipe.diff_id
    );
    let mut layer = layer_of(&recipe, &Fast1, cache, None);
    layer.descriptor.media_type =
        MediaType::Layer(ImageFormat::DockerV2S2, Fast1.compression().into());
    Ok(layer)
}
