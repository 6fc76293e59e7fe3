//! Writing an image to an archive.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use futures_util::StreamExt as _;
use futures_util::lock::Mutex;
use serde_json::json;
use tierce_image::{Blob, BlobAt, BlobSource, ImageSink, Jobs, Placed};
use tierce_oci::json::to_canonical;
use tierce_oci::{Digest, Document, Reference, Repository, Selector, Tag};

use super::ArchiveError;
use super::layout::blob_name;
use super::writer::TarWriter;
use crate::atomic::{PathError, parent, sweep};
use crate::file::Pace;
use crate::layout::{INDEX_FILE, LAYOUT_CONTENT, LAYOUT_FILE};
use crate::listing::{IMAGE_NAME, Listing, REF_NAME};

/// For whom an archive is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArchiveKind {
    /// A tar of an OCI layout. The image is listed under this name; without one under its tag, if
    /// it is written with one.
    Oci(Option<String>),
    /// For `docker load`, which gives the image these references.
    Docker(Vec<Reference>),
}

/// An archive to write one image to; an OCI archive takes an index too.
///
/// Nothing is at the target before [`ImageSink::finish`]; what was there is replaced at once.
/// One blob is written at a time.
#[derive(Debug)]
pub struct ArchiveSink {
    target: PathBuf,
    kind: ArchiveKind,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// `None` once the archive is finished.
    writer: Option<TarWriter>,
    written: BTreeSet<Digest>,
    /// The last manifest that was put, which is the root, and its tag.
    root: Option<(Document, Option<Tag>)>,
}

impl ArchiveSink {
    /// Begins an archive that will be at `target`, in a directory that is there.
    pub fn create(target: impl Into<PathBuf>, kind: ArchiveKind) -> Result<Self, ArchiveError> {
        let target = real_target(target.into())?;
        sweep(parent(&target));
        let mut writer = TarWriter::create(&target)?;
        writer.directory("blobs/")?;
        writer.directory("blobs/sha256/")?;
        let state = State {
            writer: Some(writer),
            written: BTreeSet::new(),
            root: None,
        };
        Ok(Self {
            target,
            kind,
            state: Mutex::new(state),
        })
    }
}

/// Where the bytes go: through a symlink to the file behind it, and never over a device.
fn real_target(target: PathBuf) -> Result<PathBuf, ArchiveError> {
    match fs::metadata(&target) {
        Ok(metadata) if metadata.is_file() => {
            Ok(fs::canonicalize(&target).map_err(PathError::of("look at", &target))?)
        }
        Ok(_) => Err(ArchiveError::TargetNotAFile(target)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(target),
        Err(error) => Err(PathError::of("look at", &target)(error).into()),
    }
}

impl State {
    fn writer(&mut self, target: &Path) -> Result<&mut TarWriter, ArchiveError> {
        self.writer
            .as_mut()
            .ok_or_else(|| ArchiveError::Finished(target.to_owned()))
    }
}

impl ImageSink for ArchiveSink {
    type Error = ArchiveError;

    fn jobs(&self, _: Jobs) -> Jobs {
        Jobs::ONE
    }

    /// Always `None`: an archive is written anew.
    async fn current(&self, _: &Selector) -> Result<Option<Digest>, ArchiveError> {
        Ok(None)
    }

    async fn place(&self, blob: &BlobAt) -> Result<Option<Placed>, ArchiveError> {
        let state = self.state.lock().await;
        let is_there = state.written.contains(&blob.descriptor.digest);
        Ok(is_there.then_some(Placed::AlreadyThere))
    }

    async fn send<S: BlobSource>(&self, blob: &Blob<'_, S>) -> Result<(), ArchiveError> {
        let descriptor = blob.descriptor();
        let mut pieces = blob.open().await?;
        let mut state = self.state.lock().await;
        let writer = state.writer(&self.target)?;
        writer.begin_file(&blob_name(&descriptor.digest), descriptor.size)?;
        let mut pace = Pace::default();
        // The stream gives exactly the descriptor's size, or fails.
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            writer.append(&piece)?;
            pace.after(piece.len()).await;
        }
        writer.end(descriptor.size)?;
        state.written.insert(descriptor.digest);
        Ok(())
    }

    async fn put_manifest(
        &self,
        document: &Document,
        tag: Option<&Tag>,
    ) -> Result<(), ArchiveError> {
        if let ArchiveKind::Docker(_) = self.kind {
            check_for_docker(document)?;
        }
        let mut state = self.state.lock().await;
        let digest = document.digest();
        if !state.written.contains(&digest) {
            state
                .writer(&self.target)?
                .file(&blob_name(&digest), document.bytes())?;
            state.written.insert(digest);
        }
        state.root = Some((document.clone(), tag.cloned()));
        Ok(())
    }

    async fn finish(&self) -> Result<(), ArchiveError> {
        let mut state = self.state.lock().await;
        let (document, tag) = state
            .root
            .take()
            .ok_or_else(|| ArchiveError::NoManifest(self.target.clone()))?;
        let mut writer = state
            .writer
            .take()
            .ok_or_else(|| ArchiveError::Finished(self.target.clone()))?;
        let mut listing = Listing::empty();
        for names in self.kind.names(tag.as_ref()) {
            listing.put(document.descriptor(), &names);
        }
        writer.file(INDEX_FILE, &listing.to_bytes())?;
        if let (ArchiveKind::Docker(references), Document::Manifest(manifest)) =
            (&self.kind, &document)
        {
            let layers: Vec<String> = manifest
                .layers
                .iter()
                .map(|layer| blob_name(&layer.digest))
                .collect();
            let tags: Vec<String> = references.iter().map(familiar).collect();
            let images = json!([{
                "Config": blob_name(&manifest.config.digest),
                "RepoTags": tags,
                "Layers": layers,
            }]);
            writer.file("manifest.json", &to_canonical(&images))?;
        }
        writer.file(LAYOUT_FILE, LAYOUT_CONTENT)?;
        Ok(writer.persist()?)
    }
}

impl ArchiveKind {
    /// The annotations that name the image in `index.json`, for each entry there.
    fn names(&self, tag: Option<&Tag>) -> Vec<BTreeMap<String, String>> {
        let alone = |name: String| BTreeMap::from([(REF_NAME.to_owned(), name)]);
        match self {
            Self::Oci(Some(own)) => vec![alone(own.clone())],
            Self::Docker(references) if !references.is_empty() => references
                .iter()
                .map(|reference| {
                    // As Docker writes them: the whole reference here, the tag alone there.
                    let tag = reference.effective_tag().unwrap_or_else(Tag::latest);
                    let full = format!("{}:{tag}", reference.repository);
                    let mut names = alone(tag.to_string());
                    names.insert(IMAGE_NAME.to_owned(), full);
                    names
                })
                .collect(),
            Self::Oci(None) | Self::Docker(_) => {
                vec![tag.map(|tag| alone(tag.to_string())).unwrap_or_default()]
            }
        }
    }
}

/// The reference as Docker shows it: without Docker Hub, where that still means the same.
fn familiar(reference: &Reference) -> String {
    let full = &reference.repository;
    let text = full.to_string();
    let short = ["docker.io/library/", "docker.io/"]
        .into_iter()
        .filter_map(|prefix| text.strip_prefix(prefix))
        .find(|short| short.parse().is_ok_and(|read: Repository| read == *full));
    let tag = reference.effective_tag().unwrap_or_else(Tag::latest);
    format!("{}:{tag}", short.unwrap_or(&text))
}

fn check_for_docker(document: &Document) -> Result<(), ArchiveError> {
    match document {
        Document::Index(index) => Err(ArchiveError::IndexInDockerArchive(index.digest())),
        Document::Manifest(manifest) if !manifest.is_image() => {
            Err(ArchiveError::ArtifactInDockerArchive {
                digest: manifest.digest(),
                config_type: manifest.config.media_type.to_string(),
            })
        }
        Document::Manifest(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_hub_is_left_out_where_that_is_safe() {
        for (text, shown) in [
            ("hello", "hello:latest"),
            ("team/hello:1", "team/hello:1"),
            ("ghcr.io/team/hello:1", "ghcr.io/team/hello:1"),
            ("docker.io/a.b/hello", "docker.io/a.b/hello:latest"),
        ] {
            assert_eq!(familiar(&text.parse().unwrap()), shown);
        }
    }
}
