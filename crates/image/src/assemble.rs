//! From base, layers and edits to an image: JSON in, JSON out.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use tierce_oci::{
    Compression, Descriptor, ImageFormat, Index, Manifest, MediaType, ParseDocumentError, Platform,
    Raw, Timestamp,
};

use crate::base::BaseImage;
use crate::edits::{BadEdit, ConfigEdits, EnvEdit, ports};
use crate::image::{Image, InvalidImage};
use crate::layer::Layer;

/// The label that says what an image is for: `lambda` or `generic`.
pub const TARGET_LABEL: &str = "dev.tierce.target";

const BASE_NAME: &str = "org.opencontainers.image.base.name";
const BASE_DIGEST: &str = "org.opencontainers.image.base.digest";

/// Why an image cannot be assembled.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// An edit makes no sense.
    #[error("the image's config cannot be made")]
    Edit(#[from] BadEdit),
    /// Docker V2 Schema 2 has only gzip layers.
    #[error(
        "layer {position} of the base has the type `{media_type}`, which a Docker V2 Schema 2 image cannot have"
    )]
    ForeignLayer {
        /// Counted from 1.
        position: usize,
        /// The layer's type in the base.
        media_type: String,
    },
    /// Docker V2 Schema 2 has no annotations.
    #[error("a Docker V2 Schema 2 manifest has no annotations, but `{0}` was asked for")]
    Annotation(String),
    /// The base's config is beyond what tierce can edit.
    #[error("the base's config has `{0}` in a shape that the image specification does not know")]
    BaseConfig(&'static str),
    /// What was made does not parse: the base's config is off in a way found only now.
    #[error("the assembled config is not valid")]
    Config(#[from] ParseDocumentError),
    /// What was made contradicts itself.
    #[error("the assembled image is not valid")]
    Image(#[from] InvalidImage),
}

/// Puts `layers` on top of `base` (or of nothing) and applies `edits`.
///
/// A function of its arguments: the same values give the same bytes. Members of the base's config
/// that tierce does not know are kept. `created` is the only time in the image.
pub fn assemble(
    base: Option<&BaseImage>,
    layers: Vec<Layer>,
    edits: &ConfigEdits,
    platform: &Platform,
    format: ImageFormat,
    created: Timestamp,
) -> Result<Image, AssembleError> {
    edits.check()?;
    if format == ImageFormat::DockerV2S2
        && let Some(name) = edits.annotations.keys().next()
    {
        return Err(AssembleError::Annotation(name.clone()));
    }
    let base_layers = match base {
        Some(base) => converted_layers(base, format)?,
        None => Vec::new(),
    };
    let base_marks = base.map(base_marks).unwrap_or_default();

    let mut config = match base {
        Some(base) => base.image.config().to_json()?,
        None => empty_config(platform),
    };
    let document = config
        .as_object_mut()
        .ok_or(AssembleError::BaseConfig("(root)"))?;
    document.insert("created".to_owned(), json!(created.to_string()));
    edit_run_config(member(document, "config")?, edits, &base_marks)?;
    let added: Vec<Value> = layers.iter().map(|layer| json!(layer.diff_id)).collect();
    list(member(document, "rootfs")?, "rootfs.diff_ids", "diff_ids")?.extend(added);
    extend_history(document, base_layers.len(), &layers, created)?;
    let config = Raw::from_json(&config, MediaType::Config(format))?;

    let mut all = base_layers;
    all.extend(layers.into_iter().map(|mut layer| {
        layer.descriptor.media_type = in_format(&layer.descriptor.media_type, format);
        layer
    }));
    let mut annotations = BTreeMap::new();
    if format == ImageFormat::Oci {
        // Those of the base speak of the base: its time, its source, its version.
        annotations.extend(base_marks);
        annotations.extend(edits.annotations.clone());
    }
    let manifest = Raw::from_manifest(Manifest {
        media_type: MediaType::Manifest(format),
        config: config.descriptor().clone(),
        layers: all.iter().map(|layer| layer.descriptor.clone()).collect(),
        annotations,
        subject: None,
        artifact_type: None,
    });
    Ok(Image::assembled(manifest, config, all)?)
}

/// Puts images for several platforms under one index, in the order given.
pub fn assemble_index(images: &[Image], format: ImageFormat) -> Raw<Index> {
    Raw::from_index(Index {
        media_type: MediaType::Index(format),
        manifests: images
            .iter()
            .map(|image| Descriptor {
                platform: Some(image.platform().clone()),
                ..image.manifest().descriptor().clone()
            })
            .collect(),
        annotations: BTreeMap::new(),
        subject: None,
        artifact_type: None,
    })
}

/// What says in the image which base it is on. Labels, because V2S2 has no annotations.
fn base_marks(base: &BaseImage) -> BTreeMap<String, String> {
    let mut marks = BTreeMap::from([(BASE_DIGEST.to_owned(), base.image.digest().to_string())]);
    if let Some(name) = &base.name {
        // With the tag, because that is what will name a newer base; the digest has its own mark.
        let name = tierce_oci::Reference {
            digest: None,
            ..name.clone()
        };
        marks.insert(BASE_NAME.to_owned(), name.to_string());
    }
    marks
}

/// The base's layers with the media types of `format`.
fn converted_layers(base: &BaseImage, format: ImageFormat) -> Result<Vec<Layer>, AssembleError> {
    let mut layers = base.image.layers().to_vec();
    for (position, layer) in layers.iter_mut().enumerate() {
        let descriptor = &mut layer.descriptor;
        let gzip = matches!(
            descriptor.media_type,
            MediaType::Layer(_, Compression::Gzip)
        );
        if format == ImageFormat::DockerV2S2 {
            if !gzip {
                return Err(AssembleError::ForeignLayer {
                    position: position + 1,
                    media_type: descriptor.media_type.to_string(),
                });
            }
            descriptor.annotations.clear();
        }
        descriptor.media_type = in_format(&descriptor.media_type, format);
    }
    Ok(layers)
}

fn in_format(media_type: &MediaType, format: ImageFormat) -> MediaType {
    match media_type {
        MediaType::Layer(_, compression) => MediaType::Layer(format, *compression),
        other => other.clone(),
    }
}

fn empty_config(platform: &Platform) -> Value {
    let mut config = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": []},
        "history": [],
    });
    if let Some(variant) = &platform.variant {
        config["variant"] = json!(variant);
    }
    config
}

fn edit_run_config(
    run: &mut Map<String, Value>,
    edits: &ConfigEdits,
    base_marks: &BTreeMap<String, String>,
) -> Result<(), AssembleError> {
    if let Some(entrypoint) = &edits.entrypoint {
        run.insert("Entrypoint".to_owned(), json!(entrypoint));
        if edits.cmd.is_none() {
            run.remove("Cmd");
        }
    }
    let texts = [
        ("WorkingDir", &edits.working_dir),
        ("User", &edits.user),
        ("StopSignal", &edits.stop_signal),
    ];
    for (name, value) in texts {
        if let Some(value) = value {
            run.insert(name.to_owned(), json!(value));
        }
    }
    if let Some(cmd) = &edits.cmd {
        run.insert("Cmd".to_owned(), json!(cmd));
    }
    if !edits.env.is_empty() {
        edit_env(list(run, "config.Env", "Env")?, &edits.env)?;
    }
    if let Some(labels) = run.get_mut("Labels").and_then(Value::as_object_mut) {
        // What the base says of its own base is not true of this image.
        labels.remove(BASE_NAME);
        labels.remove(BASE_DIGEST);
    }
    let labels = base_marks.iter().chain(&edits.labels);
    for (name, value) in labels {
        object(run, "config.Labels", "Labels")?.insert(name.clone(), json!(value));
    }
    for port in edits
        .exposed_ports
        .iter()
        .filter_map(|port| ports(port))
        .flatten()
    {
        object(run, "config.ExposedPorts", "ExposedPorts")?.insert(port, json!({}));
    }
    Ok(())
}

fn edit_env(env: &mut Vec<Value>, edits: &[(String, EnvEdit)]) -> Result<(), AssembleError> {
    for (name, edit) in edits {
        let mut place = None;
        let mut known = "";
        for (position, pair) in env.iter().enumerate() {
            let pair = pair
                .as_str()
                .ok_or(AssembleError::BaseConfig("config.Env"))?;
            let (variable, value) = pair.split_once('=').unwrap_or((pair, ""));
            if variable == name {
                (place, known) = (Some(position), value);
            }
        }
        let value = match edit {
            EnvEdit::Set(text) => text.clone(),
            EnvEdit::Append(text) => format!("{known}{text}"),
            EnvEdit::Prepend(text) => format!("{text}{known}"),
        };
        let pair = json!(format!("{name}={value}"));
        match place {
            Some(position) => env[position] = pair,
            None => env.push(pair),
        }
    }
    Ok(())
}

/// Adds one entry for each new layer, after making the base's part complete.
///
/// The number of entries that made a layer must be that of the layers (image-spec, `config.md`).
/// Published bases break the rule, AWS's among them (aws-lambda-base-images#2): entries are then
/// added for the layers of which the history says nothing.
fn extend_history(
    document: &mut Map<String, Value>,
    base_layers: usize,
    layers: &[Layer],
    created: Timestamp,
) -> Result<(), AssembleError> {
    let history = list(document, "history", "history")?;
    let makes_layer = |entry: &Value| {
        !entry
            .get("empty_layer")
            .and_then(Value::as_bool)
            .unwrap_or(false)
    };
    let mut told = history.iter().filter(|entry| makes_layer(entry)).count();
    if told > base_layers {
        // More steps than layers: which step made which layer cannot be known.
        history.clear();
        told = 0;
    }
    for _ in told..base_layers {
        history.push(json!({"comment": "layer of the base image, without history there"}));
    }
    for layer in layers {
        let mut entry = json!({"created": created.to_string()});
        if let Some(created_by) = &layer.created_by {
            entry["created_by"] = json!(created_by);
        }
        history.push(entry);
    }
    Ok(())
}

/// The object under `name`, made if it is absent or null.
fn member<'a>(
    owner: &'a mut Map<String, Value>,
    name: &'static str,
) -> Result<&'a mut Map<String, Value>, AssembleError> {
    object(owner, name, name)
}

fn object<'a>(
    owner: &'a mut Map<String, Value>,
    path: &'static str,
    name: &str,
) -> Result<&'a mut Map<String, Value>, AssembleError> {
    let value = owner.entry(name).or_insert_with(|| json!({}));
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut().ok_or(AssembleError::BaseConfig(path))
}

fn list<'a>(
    owner: &'a mut Map<String, Value>,
    path: &'static str,
    name: &str,
) -> Result<&'a mut Vec<Value>, AssembleError> {
    let value = owner.entry(name).or_insert_with(|| json!([]));
    if value.is_null() {
        *value = json!([]);
    }
    value.as_array_mut().ok_or(AssembleError::BaseConfig(path))
}
