//! An image whose documents and layers have been checked against each other.

use tierce_oci::{Descriptor, Digest, Document, ImageConfig, ImageFormat, Manifest, Platform, Raw};

use crate::artifact::{Artifact, BlobAt};
use crate::content::Content;
use crate::layer::Layer;

/// A manifest, its config, and its layers, base layer first.
///
/// The three agree: as many layers as diff ids, and the config is the one that the manifest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    manifest: Raw<Manifest>,
    config: Raw<ImageConfig>,
    layers: Vec<Layer>,
}

/// Why a manifest and a config do not make an image.
#[derive(Debug, thiserror::Error)]
pub enum InvalidImage {
    /// The config is not the one that the manifest names.
    #[error("the manifest names the config {named}, but the config at hand is {found}")]
    OtherConfig {
        /// What stands in the manifest.
        named: Digest,
        /// What was given.
        found: Digest,
    },
    /// Layers and diff ids are not one to one.
    #[error("the manifest has {layers} layers, but the config has {diff_ids} diff ids")]
    LayerCount {
        /// Layers in the manifest.
        layers: usize,
        /// Diff ids in the config.
        diff_ids: usize,
    },
}

impl Image {
    /// Joins a manifest and its config; `content` says where each layer is.
    pub fn new(
        manifest: Raw<Manifest>,
        config: Raw<ImageConfig>,
        content: impl Fn(&Descriptor) -> Content,
    ) -> Result<Self, InvalidImage> {
        check(&manifest, &config)?;
        let history = config.layer_history();
        let layers = manifest
            .layers
            .iter()
            .zip(&config.diff_ids)
            .enumerate()
            .map(|(position, (descriptor, diff_id))| Layer {
                content: content(descriptor),
                descriptor: descriptor.clone(),
                diff_id: *diff_id,
                created_by: history
                    .as_ref()
                    .and_then(|entries| entries[position].created_by.clone()),
                facts: None,
            })
            .collect();
        Ok(Self {
            manifest,
            config,
            layers,
        })
    }

    /// Joins documents that were just made from `layers`.
    pub(crate) fn assembled(
        manifest: Raw<Manifest>,
        config: Raw<ImageConfig>,
        layers: Vec<Layer>,
    ) -> Result<Self, InvalidImage> {
        check(&manifest, &config)?;
        Ok(Self {
            manifest,
            config,
            layers,
        })
    }

    /// The manifest, with the bytes that its digest is of.
    pub fn manifest(&self) -> &Raw<Manifest> {
        &self.manifest
    }

    /// The config, with the bytes that its digest is of.
    pub fn config(&self) -> &Raw<ImageConfig> {
        &self.config
    }

    /// The layers, base layer first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Gives each layer the facts that `facts` knows of it.
    #[must_use]
    pub fn with_facts(mut self, facts: impl Fn(&Layer) -> Option<crate::Facts>) -> Self {
        for layer in &mut self.layers {
            layer.facts = facts(layer);
        }
        self
    }

    /// The digest of the manifest: the image's name that cannot move.
    pub fn digest(&self) -> Digest {
        self.manifest.digest()
    }

    /// What the image runs on.
    pub fn platform(&self) -> &Platform {
        &self.config.platform
    }

    /// Which family of media types the image is written in.
    pub fn format(&self) -> ImageFormat {
        self.manifest.format()
    }

    /// The image as something to be written to a place.
    pub fn to_artifact(&self) -> Artifact {
        let config = BlobAt {
            descriptor: self.manifest.config.clone(),
            content: Content::Memory(self.config.bytes().clone()),
        };
        let layers = self.layers.iter().map(Layer::to_blob);
        Artifact {
            document: Document::Manifest(self.manifest.clone()),
            blobs: layers.chain([config]).collect(),
            children: Vec::new(),
        }
    }
}

fn check(manifest: &Raw<Manifest>, config: &Raw<ImageConfig>) -> Result<(), InvalidImage> {
    if manifest.config.digest != config.digest() {
        return Err(InvalidImage::OtherConfig {
            named: manifest.config.digest,
            found: config.digest(),
        });
    }
    if manifest.layers.len() != config.diff_ids.len() {
        return Err(InvalidImage::LayerCount {
            layers: manifest.layers.len(),
            diff_ids: config.diff_ids.len(),
        });
    }
    Ok(())
}
