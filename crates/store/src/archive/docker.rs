//! What `docker save` and others write for `docker load`.

use std::collections::BTreeSet;
use std::path::Path;

use bytes::Bytes;
use serde::Deserialize;
use tierce_oci::{Descriptor, Digest, Document, Reference};

use super::ArchiveError;
use super::layout::{ArchiveLayout, blob_name};
use super::members::{ArchiveMember, Members};

/// `manifest.json` has some kilobytes.
const MAX_MANIFEST_JSON: u64 = 4 << 20;

/// How many manifests are looked at for the one that an image has.
const MAX_MANIFESTS: usize = 1000;

/// As in `tierce-image`: configs are read into memory.
const MAX_CONFIG: u64 = 8 << 20;

/// A docker-archive to read from, with or without an OCI layout in it.
#[derive(Debug, Clone)]
pub struct DockerArchive {
    members: Members,
    layout: Option<ArchiveLayout>,
    images: Vec<ImageEntry>,
}

/// One element of `manifest.json` (moby, `image/tarexport`).
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ImageEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl ImageEntry {
    fn tags(&self) -> &[String] {
        self.repo_tags.as_deref().unwrap_or_default()
    }
}

/// The image that was chosen out of a docker-archive.
#[derive(Debug, Clone)]
pub enum Selected {
    /// The archive has its exact manifest: read it from [`DockerArchive::layout`] by digest.
    Exact(Descriptor),
    /// The archive has a config and layers, and no manifest that could be copied.
    Plain(PlainImage),
}

/// An image without a manifest, as older Docker saves it.
///
/// Nothing in the archive vouches for the layers: whoever seals them compares the digests of the
/// uncompressed tars with the config's diff ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainImage {
    /// The config's exact bytes.
    pub config: Bytes,
    /// The layers, base layer first; plain tars, or gzip (see [`ArchiveMember::is_gzip`]).
    pub layers: Vec<ArchiveMember>,
    /// The references under which the image was saved.
    pub repo_tags: Vec<String>,
}

impl DockerArchive {
    /// Opens the archive at `path`; its headers are read once, here.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ArchiveError> {
        let members = Members::scan(path.as_ref())?;
        let path = members.path().to_owned();
        let Some(manifest) = members.document("manifest.json", MAX_MANIFEST_JSON)? else {
            return Err(ArchiveError::MissingMember {
                path,
                member: "manifest.json".to_owned(),
                expected: "a docker-archive",
            });
        };
        let images = serde_json::from_slice(&manifest)
            .map_err(|source| ArchiveError::BadManifestJson { path, source })?;
        Ok(Self {
            layout: ArchiveLayout::within(members.clone())?,
            members,
            images,
        })
    }

    /// Where the archive is.
    pub fn path(&self) -> &Path {
        self.members.path()
    }

    /// The OCI layout in the archive, if there is one.
    pub fn layout(&self) -> Option<&ArchiveLayout> {
        self.layout.as_ref()
    }

    /// The references that the archive's images have.
    pub fn references(&self) -> Vec<String> {
        self.images
            .iter()
            .flat_map(|image| image.tags().iter().cloned())
            .collect()
    }

    /// Chooses the image saved as `reference`; without one, the only image.
    pub fn select(&self, reference: Option<&Reference>) -> Result<Selected, ArchiveError> {
        let image = self.choose(reference)?;
        Ok(match self.exact(image)? {
            Some(descriptor) => Selected::Exact(descriptor),
            None => Selected::Plain(self.plain(image)?),
        })
    }

    /// Chooses like [`DockerArchive::select`], but takes config and layers as `docker load` does, even
    /// when there is a manifest: newer Docker's has uncompressed layers.
    pub fn select_plain(&self, reference: Option<&Reference>) -> Result<PlainImage, ArchiveError> {
        self.plain(self.choose(reference)?)
    }

    fn choose(&self, reference: Option<&Reference>) -> Result<&ImageEntry, ArchiveError> {
        let Some(reference) = reference else {
            return match &self.images[..] {
                [only] => Ok(only),
                images => Err(ArchiveError::ImageNeeded {
                    path: self.path().to_owned(),
                    count: images.len(),
                    offered: self.references(),
                }),
            };
        };
        let wanted = (&reference.repository, reference.effective_tag());
        let is_wanted = |tag: &String| {
            tag.parse::<Reference>()
                .is_ok_and(|tag| (&tag.repository, tag.effective_tag()) == wanted)
        };
        self.images
            .iter()
            .find(|image| image.tags().iter().any(is_wanted))
            .ok_or_else(|| ArchiveError::NoSuchImage {
                path: self.path().to_owned(),
                wanted: reference.to_string(),
                offered: self.references(),
            })
    }

    /// The manifest in the layout that has the image's config.
    fn exact(&self, image: &ImageEntry) -> Result<Option<Descriptor>, ArchiveError> {
        let (Some(layout), Some(config)) = (&self.layout, config_digest(&image.config)) else {
            return Ok(None);
        };
        // Each manifest is read once, and not more of them than any archive holds.
        let mut read = BTreeSet::new();
        let mut is_new = |digest: &Digest| read.len() < MAX_MANIFESTS && read.insert(*digest);
        for entry in layout.entries() {
            // A layout need not have all that it lists.
            if !entry.media_type.is_manifest()
                || !is_new(&entry.digest)
                || !self.has(&entry.digest)?
            {
                continue;
            }
            let children = match layout.read(entry.digest, Some(&entry.media_type))? {
                Document::Manifest(manifest) if manifest.config.digest == config => {
                    return Ok(Some(entry.clone()));
                }
                Document::Manifest(_) => continue,
                Document::Index(index) => index.manifests.clone(),
            };
            // Docker with containerd's store saves an index of which it may have one child only.
            for child in children {
                if child.media_type.is_manifest()
                    && is_new(&child.digest)
                    && self.has(&child.digest)?
                    && let Document::Manifest(manifest) =
                        layout.read(child.digest, Some(&child.media_type))?
                    && manifest.config.digest == config
                {
                    return Ok(Some(child));
                }
            }
        }
        Ok(None)
    }

    fn has(&self, digest: &Digest) -> Result<bool, ArchiveError> {
        Ok(self.members.file(&blob_name(digest))?.is_some())
    }

    fn plain(&self, image: &ImageEntry) -> Result<PlainImage, ArchiveError> {
        let file = |name: &String| {
            self.members
                .file(name)?
                .ok_or_else(|| ArchiveError::MissingMember {
                    path: self.path().to_owned(),
                    member: name.clone(),
                    expected: "a complete docker-archive",
                })
        };
        let layers = image.layers.iter().flatten();
        Ok(PlainImage {
            config: file(&image.config)?.read(MAX_CONFIG)?,
            layers: layers.map(file).collect::<Result<_, _>>()?,
            repo_tags: image.tags().to_vec(),
        })
    }
}

/// The digest in a config's path: `blobs/sha256/<hex>`, or `<hex>.json` as it used to be.
fn config_digest(path: &str) -> Option<Digest> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let hex = name.strip_suffix(".json").unwrap_or(name);
    format!("sha256:{hex}").parse().ok()
}
