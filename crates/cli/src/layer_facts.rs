//! What is in the layers of an image, read once: the facts are kept by the layer's digest.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use tierce_image::{Blob, Image, Layer};
use tierce_lambda::{Collector, EntryKind, LayerFacts, Packing, RawEntry, RawPath};
use tierce_layer::{Compression, LayerMember, LayerMemberKind, Limits, read_members};
use tierce_oci::{Digest, MediaType};
use tierce_store::atomic::write_file;

use crate::background::in_background;
use crate::output::{Output, describe_size};
use crate::pieces_reader::PiecesReader;
use crate::places::Places;

/// The facts of layers that were read before.
#[derive(Debug, Clone)]
pub(crate) struct FactsCache {
    directory: PathBuf,
}

/// Separates the digest of the facts from the facts, in one file of the cache.
const SEPARATOR: u8 = b'\n';

impl FactsCache {
    /// Keeps facts under `cache`.
    pub(crate) fn new(cache: &Path) -> Self {
        Self {
            directory: cache.join("facts-1/sha256"),
        }
    }

    /// The facts of the layer with this blob, if they are here and whole.
    pub(crate) fn read(&self, layer: &Digest) -> Option<LayerFacts> {
        let bytes = std::fs::read(self.path(layer)).ok()?;
        let end = bytes.iter().position(|&byte| byte == SEPARATOR)?;
        let (stated, json) = (&bytes[..end], &bytes[end + 1..]);
        // A flipped bit here would hide a defect, or make one up.
        let is_whole = Digest::of(json).to_string().as_bytes() == stated;
        is_whole.then(|| LayerFacts::from_json(json))?
    }

    /// Keeps the facts of a layer. A cache that cannot be written is only slower, never an error.
    pub(crate) fn keep(&self, layer: &Digest, facts: &LayerFacts) {
        let json = facts.to_json();
        let mut bytes = Digest::of(&json).to_string().into_bytes();
        bytes.push(SEPARATOR);
        bytes.extend(json);
        let path = self.path(layer);
        let kept = std::fs::create_dir_all(&self.directory)
            .map_err(anyhow::Error::from)
            .and_then(|()| Ok(write_file(&path, &bytes)?));
        if let Err(error) = kept {
            tracing::debug!("could not keep {}: {error:#}", path.display());
        }
    }

    fn path(&self, layer: &Digest) -> PathBuf {
        self.directory.join(format!("{}.json", layer.hex()))
    }
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
        let media_type = &layer.descriptor.media_type;
        if !matches!(media_type, MediaType::Layer(..)) && !media_type.to_string().contains("tar") {
            // An attestation, or something else that no runtime unpacks: a rule names it.
            all.push(LayerFacts::new(0, Packing::None, Vec::new()));
            continue;
        }
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
