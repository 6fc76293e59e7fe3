//! What is in the layers of an image, read once: the facts are kept by the layer's digest.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use tierce_image::{Blob, Image, Layer};
use tierce_lambda::{
    BaseFacts, Collector, DirectoryFacts, EntryKind, LayerFacts, Packing, RawEntry, RawPath,
};
use tierce_layer::{
    Compression, DirectoryDefaults, EntryPath, LayerMember, LayerMemberKind, Limits, read_members,
};
use tierce_oci::Digest;
use tierce_store::atomic::write_file;

use crate::background::in_background;
use crate::output::{Output, describe_size};
use crate::pieces_reader::PiecesReader;
use crate::places::Places;

/// The facts of layers that were read before.
#[derive(Debug, Clone)]
pub(crate) struct FactsCache {
    directory: PathBuf,
    bases: PathBuf,
}

/// Separates the digest of the facts from the facts, in one file of the cache.
const SEPARATOR: u8 = b'\n';

impl FactsCache {
    /// Keeps facts under `cache`.
    pub(crate) fn new(cache: &Path) -> Self {
        Self {
            directory: cache.join("facts-1/sha256"),
            bases: cache.join("facts-1/bases-1"),
        }
    }

    /// The facts of the layer with this blob, if they are here and whole.
    pub(crate) fn read(&self, layer: &Digest) -> Option<LayerFacts> {
        LayerFacts::from_json(&read_whole(&self.path(layer))?)
    }

    /// Keeps the facts of a layer. A cache that cannot be written is only slower, never an error.
    pub(crate) fn keep(&self, layer: &Digest, facts: &LayerFacts) {
        write_whole(&self.path(layer), &facts.to_json());
    }

    /// What is known of a base by the layers that were read of it: kept by the digest of the image, or
    /// worked out when all of them are here.
    pub(crate) fn of_base(&self, image: &Image) -> Option<BaseFacts> {
        let kept = read_whole(&self.path_of_base(&image.digest()));
        if let Some(facts) = kept.and_then(|json| serde_json::from_slice(&json).ok()) {
            return Some(facts);
        }
        let layers = image.layers().iter();
        let layers: Option<Vec<LayerFacts>> = layers
            .map(|layer| self.read(&layer.descriptor.digest))
            .collect();
        let facts = base_facts_of(image, &layers?);
        self.keep_base(&image.digest(), &facts);
        Some(facts)
    }

    /// Keeps what all layers of a base told together.
    pub(crate) fn keep_base(&self, image: &Digest, facts: &BaseFacts) {
        if let Ok(json) = serde_json::to_vec(facts) {
            write_whole(&self.path_of_base(image), &json);
        }
    }

    fn path(&self, layer: &Digest) -> PathBuf {
        self.directory.join(format!("{}.json", layer.hex()))
    }

    fn path_of_base(&self, image: &Digest) -> PathBuf {
        self.bases.join(format!("{}.json", image.hex()))
    }
}

/// What was written by [`write_whole`], if it is whole.
fn read_whole(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(path).ok()?;
    let end = bytes.iter().position(|&byte| byte == SEPARATOR)?;
    let json = bytes.split_off(end + 1);
    bytes.truncate(end);
    // A flipped bit here would hide a defect, or make one up.
    (Digest::of(&json).to_string().as_bytes() == bytes).then_some(json)
}

fn write_whole(path: &Path, json: &[u8]) {
    let mut bytes = Digest::of(json).to_string().into_bytes();
    bytes.push(SEPARATOR);
    bytes.extend_from_slice(json);
    let kept = std::fs::create_dir_all(path.parent().unwrap_or(path))
        .map_err(anyhow::Error::from)
        .and_then(|()| Ok(write_file(path, &bytes)?));
    if let Err(error) = kept {
        tracing::debug!("could not keep {}: {error:#}", path.display());
    }
}

/// What the layers of a base tell together.
pub(crate) fn base_facts_of(image: &Image, layers: &[LayerFacts]) -> BaseFacts {
    let defaults = DirectoryDefaults::default();
    let usual = |path: &str| {
        let attributes = EntryPath::new(path).map(|path| defaults.of(&path));
        let (mode, uid, gid) = attributes.map_or((0o755, 0, 0), |it| (it.mode, it.uid, it.gid));
        DirectoryFacts { mode, uid, gid }
    };
    BaseFacts::of_layers(image.config(), layers, &usual)
}

/// The facts of all layers of an image, the lowest first; those that nobody has read are read now.
pub(crate) async fn read_layer_facts(
    image: &Image,
    places: &Places,
    output: Output,
) -> Result<Vec<LayerFacts>> {
    let cache = places.facts_cache();
    let mut all = Vec::new();
    for layer in image.layers() {
        let digest = layer.descriptor.digest;
        let facts = match cache.read(&digest) {
            Some(facts) => facts,
            None => {
                let facts = read_layer(layer, places, output)
                    .await
                    .with_context(|| format!("could not read layer {digest}"))?;
                cache.keep(&digest, &facts);
                facts
            }
        };
        all.push(facts);
    }
    Ok(all)
}

/// Reads one layer as a stream.
async fn read_layer(layer: &Layer, places: &Places, output: Output) -> Result<LayerFacts> {
    let descriptor = &layer.descriptor;
    let size = describe_size(descriptor.size);
    let text = format!("reading {} ({size})", descriptor.digest);
    places.bars().suspend(|| output.step(&text));
    let bar = places
        .bars()
        .add(descriptor.size, &descriptor.digest.short());
    let show = |count: u64| bar.inc(count);
    let blob = Blob::new(descriptor, &layer.content, places.blobs(), &show);
    let mut stream = blob.open().await?;
    let (sender, pieces) = PiecesReader::new();
    let reader = in_background(move |_| {
        let mut collector = Collector::default();
        let read = read_members(pieces, Limits::default(), |member, content| {
            collector.add(entry_of(member), content)
        })?;
        let packing = match read.compression {
            Compression::None => Packing::None,
            Compression::Gzip => Packing::Gzip,
            Compression::Zstd => Packing::Zstd,
        };
        Ok(collector.finish(read.uncompressed_size, packing))
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
    let (fed, facts) = futures_util::future::join(feeder, reader).await;
    bar.finish_and_clear();
    // A layer that is not what it claims is the first cause of whatever was read out of it.
    fed?;
    facts
}

fn entry_of(member: LayerMember) -> RawEntry {
    RawEntry {
        path: RawPath::new(member.path.as_bytes()),
        kind: match member.kind {
            LayerMemberKind::Directory => EntryKind::Directory,
            LayerMemberKind::File => EntryKind::File,
            LayerMemberKind::Symlink(target) => EntryKind::Symlink(RawPath::new(target)),
            LayerMemberKind::Hardlink(target) => EntryKind::Hardlink(cleaned(&target)),
            LayerMemberKind::Other(noun) => EntryKind::Other(noun.to_owned()),
        },
        mode: member.mode,
        uid: member.uid,
        gid: member.gid,
        size: member.size,
        modified: member.modified,
    }
}

/// The target of a hardlink as the path of its file is written.
fn cleaned(target: &[u8]) -> RawPath {
    let start = target.iter().position(|&byte| byte != b'/');
    let relative = &target[start.unwrap_or(target.len())..];
    match tierce_layer::EntryPath::clean(relative) {
        Ok(Some(path)) => RawPath::new(path.as_bytes()),
        _ => RawPath::new(target),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_kept_whole_or_not_at_all() {
        let cache = tempfile::tempdir().unwrap();
        let cache = FactsCache::new(cache.path());
        let layer = Digest::of(b"layer");
        assert_eq!(cache.read(&layer), None);
        let facts = LayerFacts::new(1024, Packing::Gzip, Vec::new());
        cache.keep(&layer, &facts);
        assert_eq!(cache.read(&layer), Some(facts));
        let path = cache.path(&layer);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("1024", "1025")).unwrap();
        assert_eq!(cache.read(&layer), None);
        std::fs::write(&path, "").unwrap();
        assert_eq!(cache.read(&layer), None);
    }
}
