//! Manifests and indexes.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::media_type::{ImageFormat, MediaType};
use crate::platform::Platform;

/// What an image manifest says: a config and layers, base layer first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Docker V2S2 or OCI image manifest.
    pub media_type: MediaType,
    /// The config blob.
    pub config: Descriptor,
    /// The layers, base layer first.
    pub layers: Vec<Descriptor>,
    /// Free-form facts; empty in Docker V2 Schema 2.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The manifest that this one is about, for referrers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// The kind of artifact, when the manifest is not of an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Manifest {
    /// An artifact about `subject`: no config, and blobs of whatever kind in place of layers
    /// (image-spec, `manifest.md`, "Guidelines for Artifact Usage").
    ///
    /// Without blobs it has the empty one, since a manifest that names none is not portable.
    pub fn artifact(
        artifact_type: String,
        subject: Descriptor,
        blobs: Vec<Descriptor>,
        annotations: BTreeMap<String, String>,
    ) -> Self {
        let layers = if blobs.is_empty() {
            vec![Descriptor::empty()]
        } else {
            blobs
        };
        Self {
            media_type: MediaType::Manifest(ImageFormat::Oci),
            config: Descriptor::empty(),
            layers,
            annotations,
            subject: Some(subject),
            artifact_type: Some(artifact_type),
        }
    }

    /// What a list of referrers calls the artifact: its own type or, without one, that of its config
    /// (distribution-spec, "Listing Referrers").
    pub fn listed_type(&self) -> &str {
        match &self.artifact_type {
            Some(artifact_type) if !artifact_type.is_empty() => artifact_type,
            _ => self.config.media_type.as_str(),
        }
    }

    /// Whether the config is one of a runnable image and not of some other artifact.
    pub fn is_image(&self) -> bool {
        matches!(self.config.media_type, MediaType::Config(_))
    }

    /// The format of the manifest itself.
    pub fn format(&self) -> ImageFormat {
        self.media_type.format().unwrap_or(ImageFormat::Oci)
    }
}

/// What an index (Docker: manifest list) says: several manifests, told apart by platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Docker manifest list or OCI index.
    pub media_type: MediaType,
    /// The children, in the order in which the index was written.
    pub manifests: Vec<Descriptor>,
    /// Free-form facts; empty in a Docker manifest list.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The manifest that this one is about, for referrers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// The kind of artifact that the children make up together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Index {
    /// The first child that runs on `platform`.
    ///
    /// Children for `unknown/unknown` (build attestations) are never chosen, because nobody asks
    /// for that platform.
    pub fn child(&self, platform: &Platform) -> Option<&Descriptor> {
        self.manifests.iter().find(|child| {
            child
                .platform
                .as_ref()
                .is_some_and(|offered| platform.accepts(offered))
        })
    }

    /// The platforms that the children are for, attestations left out.
    pub fn platforms(&self) -> Vec<Platform> {
        self.manifests
            .iter()
            .filter_map(|child| child.platform.clone())
            .filter(|platform| platform.os != "unknown")
            .collect()
    }

    /// Whether `digest` is one of the children.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.manifests.iter().any(|child| child.digest == *digest)
    }
}
