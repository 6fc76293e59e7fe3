//! `tierce inspect`: what an image is and what its layers are.

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tierce_image::{BlobSource, Image, Layer};
use tierce_oci::{Compression, Descriptor, Document, Index, MediaType, Platform, Raw};
use tierce_store::StoreReference;

use crate::arguments::InspectArguments;
use crate::diagnostic::Hinted as _;
use crate::environment::Environment;
use crate::output::{Output, describe_size, one_line};
use crate::places::{Places, PlacesSettings, processors};
use crate::transport::{ImagePlace, store_reference_of};

/// Runs `tierce inspect`.
pub(crate) async fn inspect(
    arguments: InspectArguments,
    environment: &Environment,
    output: Output,
) -> Result<()> {
    let settings = PlacesSettings {
        registry: &arguments.registry,
        create_repository: false,
        offline: false,
        remembers: true,
        compress_jobs: processors(),
    };
    let places = Places::open(&settings, environment, output)?;
    let place = arguments.image;
    let found = match read(&place, arguments.platform.as_ref(), &places).await {
        Ok(found) => found,
        Err(error) => {
            let error = error.context(format!("could not read `{place}`"));
            return Err(match in_store(&place, &places).await {
                Some(stored) => error.hint(format!("the local store has one: `store:{stored}`")),
                None => error,
            });
        }
    };
    match found {
        Found::Index(index) => show_index(&place, &index, output),
        Found::Image(image) => {
            let sizes = uncompressed_sizes(&image, places.blobs()).await;
            show_image(&place, &image, &sizes, output)
        }
    }
}

/// What a name stands for.
#[expect(clippy::large_enum_variant, reason = "one exists at a time")]
enum Found {
    Index(Raw<Index>),
    Image(Image),
}

async fn read(place: &ImagePlace, platform: Option<&Platform>, places: &Places) -> Result<Found> {
    if platform.is_none()
        && let Some(Document::Index(index)) = places.read_document(place).await?
    {
        return Ok(Found::Index(index));
    }
    Ok(Found::Image(
        places.read_image(place, None, platform).await?,
    ))
}

/// The name in the store that somebody may have meant by a bare one.
pub(super) async fn in_store(place: &ImagePlace, places: &Places) -> Option<StoreReference> {
    let ImagePlace::Registry(reference) = place else {
        return None;
    };
    let stored = store_reference_of(reference)?;
    places.store_has(&stored).await.ok()?.then_some(stored)
}

fn show_index(place: &ImagePlace, index: &Raw<Index>, output: Output) -> Result<()> {
    if output.json {
        return output.result_json(&json!({
            "name": place.to_string(),
            "digest": index.digest(),
            "mediaType": index.media_type,
            "annotations": index.annotations,
            "manifests": index.manifests,
        }));
    }
    output.result_line(&format!("index     {}", index.digest()))?;
    output.result_line(&format!("type      {}", index.media_type))?;
    let mut table = table(&["platform", "manifest", "size"]);
    for child in &index.manifests {
        let platform = child.platform.as_ref().map_or_else(
            || "-".to_owned(),
            |platform| one_line(&platform.to_string()),
        );
        table.add_row([
            platform,
            child.digest.to_string(),
            describe_size(child.size),
        ]);
    }
    output.result_line(&table.trim_fmt())?;
    output.note("one of these in full: --platform PLATFORM");
    Ok(())
}

fn show_image(
    place: &ImagePlace,
    image: &Image,
    sizes: &[Option<u64>],
    output: Output,
) -> Result<()> {
    let config = image.config();
    let rows: Vec<(&Layer, Option<u64>)> =
        image.layers().iter().zip(sizes.iter().copied()).collect();
    if output.json {
        let layers: Vec<Value> = rows
            .iter()
            .map(|(layer, size)| {
                json!({
                    "mediaType": layer.descriptor.media_type,
                    "digest": layer.descriptor.digest,
                    "diffId": layer.diff_id,
                    "size": layer.descriptor.size,
                    "uncompressedSize": size,
                    "createdBy": layer.created_by,
                })
            })
            .collect();
        return output.result_json(&json!({
            "name": place.to_string(),
            "digest": image.digest(),
            "mediaType": image.manifest().media_type,
            "platform": image.platform().to_string(),
            "annotations": image.manifest().annotations,
            "config": {
                "digest": config.digest(),
                "size": config.bytes().len(),
                "content": config.to_json()?,
            },
            "layers": layers,
        }));
    }
    let line = |name: &str, value: &str| {
        if value.is_empty() {
            Ok(())
        } else {
            output.result_line(&format!("{name:<12}{}", one_line(value)))
        }
    };
    line("image", &image.digest().to_string())?;
    line("type", image.manifest().media_type.as_str())?;
    line("platform", &image.platform().to_string())?;
    line("config", &config.digest().to_string())?;
    line("created", config.created.as_deref().unwrap_or_default())?;
    line("entrypoint", &words(&config.entrypoint))?;
    line("cmd", &words(&config.cmd))?;
    line("workdir", config.working_dir.as_deref().unwrap_or_default())?;
    line("user", config.user.as_deref().unwrap_or_default())?;
    line(
        "stop signal",
        config.stop_signal.as_deref().unwrap_or_default(),
    )?;
    line("ports", &config.exposed_ports.join(" "))?;
    line("volumes", &config.volumes.join(" "))?;
    for pair in &config.env {
        line("env", pair)?;
    }
    for (name, value) in &config.labels {
        line("label", &format!("{name}={value}"))?;
    }
    let mut table = table(&["layer", "compressed", "uncompressed", "made by"]);
    for column in [1, 2] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for (layer, size) in &rows {
        table.add_row([
            layer.descriptor.digest.to_string(),
            describe_size(layer.descriptor.size),
            size.map_or_else(|| "-".to_owned(), describe_size),
            shortened(layer.created_by.as_deref().unwrap_or("-")),
        ]);
    }
    let compressed: u64 = rows
        .iter()
        .map(|(layer, _)| layer.descriptor.size)
        .fold(0, u64::saturating_add);
    let uncompressed = sizes
        .iter()
        .try_fold(0_u64, |sum, size| sum.checked_add((*size)?));
    table.add_row([
        match rows.len() {
            1 => "1 layer".to_owned(),
            count => format!("{count} layers"),
        },
        describe_size(compressed),
        uncompressed.map_or_else(|| "-".to_owned(), describe_size),
        String::new(),
    ]);
    output.result_line(&table.trim_fmt())
}

pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    table
}

/// Words as JSON, so that one with a space is seen to be one.
fn words(words: &[String]) -> String {
    if words.is_empty() {
        String::new()
    } else {
        json!(words).to_string()
    }
}

fn shortened(text: &str) -> String {
    const ROOM: usize = 60;
    let text = one_line(text);
    if text.chars().count() <= ROOM {
        return text;
    }
    text.chars().take(ROOM - 1).chain(['…']).collect()
}

/// The uncompressed size of each layer: from its sealing, else from the end of its gzip stream.
async fn uncompressed_sizes<B: BlobSource>(image: &Image, blobs: &B) -> Vec<Option<u64>> {
    stream::iter(image.layers())
        .map(|layer| async move {
            match &layer.facts {
                Some(facts) => Some(facts.uncompressed_size),
                None => uncompressed_size(layer, blobs).await,
            }
        })
        .buffered(4)
        .collect()
        .await
}

async fn uncompressed_size<B: BlobSource>(layer: &Layer, blobs: &B) -> Option<u64> {
    let Descriptor {
        media_type, size, ..
    } = &layer.descriptor;
    match media_type {
        MediaType::Layer(_, Compression::None) => return Some(*size),
        MediaType::Layer(_, Compression::Gzip) => {}
        _ => return None,
    }
    // The last four bytes of a gzip member are the length of its content modulo 2^32 (RFC 1952).
    let mut tail = blobs
        .open(&layer.descriptor, &layer.content, size.checked_sub(4)?)
        .await
        .ok()?;
    let mut bytes = Vec::new();
    while let Some(piece) = tail.next().await {
        bytes.extend_from_slice(&piece.ok()?);
        if bytes.len() > 4 {
            return None;
        }
    }
    let length = u64::from(u32::from_le_bytes(bytes.try_into().ok()?));
    // A tar is never smaller than its gzip by more than what deflate adds to random data.
    let least = size.saturating_sub(size / 1000 + 1024);
    let wraps = least.saturating_sub(length).div_ceil(1 << 32);
    wraps.checked_mul(1 << 32)?.checked_add(length)
}
