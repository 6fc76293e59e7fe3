//! What is in the layers of an image, learnt once: the facts are kept by the layer's digest.
//!
//! Of layers that are made here they are gathered while the bytes pass by; others are read.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use tierce_image::{Image, Layer};
use tierce_lambda::{
    BaseFacts, Collector, DirectoryFacts, EntryKind, Gathering, LayerFacts, Packing, RawEntry,
    RawPath, ReadRange,
};
use tierce_layer::{
    Codec, Compression, Content, DirectoryDefaults, EntryPath, LastTime, LayerMember,
    LayerMemberKind, Limits, Observed, Observer, Plan, Record, RecordKind, SealedLayer,
    read_members,
};
use tierce_oci::{Digest, MediaType};

use crate::layer_stream::read_layer_with_bar;
use crate::output::Output;
use crate::places::Places;
use crate::records;

/// The facts of layers that were read or made before.
#[derive(Debug, Clone)]
pub(crate) struct FactsCache {
    directory: PathBuf,
    bases: PathBuf,
    /// Those of this run, which need not be decoded again.
    recent: Arc<Mutex<BTreeMap<Digest, Arc<LayerFacts>>>>,
}

/// Where the facts are, below the cache directory. The name counts up with their format.
pub(crate) fn facts_in(cache: &Path) -> PathBuf {
    cache.join("facts-1")
}

/// Where the facts of whole bases are, below the cache directory.
pub(crate) fn bases_in(cache: &Path) -> PathBuf {
    cache.join("bases-1")
}

impl FactsCache {
    /// Keeps facts under `cache`.
    pub(crate) fn new(cache: &Path) -> Self {
        Self {
            directory: facts_in(cache).join("sha256"),
            bases: bases_in(cache).join("sha256"),
            recent: Arc::default(),
        }
    }

    /// The facts of the layer with this blob, if they are here and whole.
    pub(crate) fn read(&self, layer: &Digest) -> Option<Arc<LayerFacts>> {
        let recent = |facts: Option<Arc<LayerFacts>>| {
            let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            match facts {
                Some(facts) => Some(Arc::clone(recent.entry(*layer).or_insert(facts))),
                None => recent.get(layer).map(Arc::clone),
            }
        };
        if let Some(known) = recent(None) {
            return Some(known);
        }
        let facts = LayerFacts::from_json(&records::read_whole(&self.path(layer))?)?;
        recent(Some(Arc::new(facts)))
    }

    /// Whether the facts of the layer with this blob seem to be here: they are not looked into, and
    /// count as used.
    pub(crate) fn has(&self, layer: &Digest) -> bool {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.contains_key(layer) || records::touch(&self.path(layer))
    }

    /// Keeps the facts of a layer. A cache that cannot be written is only slower, never an error.
    /// They come by way of `scratch`, a directory of this run's own: the run may end meanwhile.
    pub(crate) fn keep(
        &self,
        layer: &Digest,
        facts: LayerFacts,
        scratch: &Path,
    ) -> Arc<LayerFacts> {
        records::write_whole(&self.path(layer), &facts.to_json(), scratch);
        let facts = Arc::new(facts);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.insert(*layer, Arc::clone(&facts));
        facts
    }

    /// What is known of a base by the layers that were read of it: kept by the digest of the image, or
    /// worked out when all of them are here, by way of `scratch`.
    pub(crate) fn of_base(&self, image: &Image, scratch: &Path) -> Option<BaseFacts> {
        let kept = records::read_whole(&self.path_of_base(&image.digest()));
        if let Some(facts) = kept.and_then(|json| serde_json::from_slice(&json).ok()) {
            return Some(facts);
        }
        let layers = image.layers().iter();
        let layers: Option<Vec<_>> = layers
            .map(|layer| self.read(&layer.descriptor.digest))
            .collect();
        Some(self.keep_base(image, &layers?, scratch))
    }

    /// Works out and keeps what all layers of a base tell together.
    pub(crate) fn keep_base(
        &self,
        image: &Image,
        layers: &[Arc<LayerFacts>],
        scratch: &Path,
    ) -> BaseFacts {
        let facts = base_facts_of(image, layers);
        if let Ok(json) = serde_json::to_vec(&facts) {
            records::write_whole(&self.path_of_base(&image.digest()), &json, scratch);
        }
        facts
    }

    fn path(&self, layer: &Digest) -> PathBuf {
        self.directory.join(format!("{}.json", layer.hex()))
    }

    fn path_of_base(&self, image: &Digest) -> PathBuf {
        self.bases.join(format!("{}.json", image.hex()))
    }
}

/// What the layers of a base tell together.
fn base_facts_of(image: &Image, layers: &[Arc<LayerFacts>]) -> BaseFacts {
    let defaults = DirectoryDefaults::default();
    let usual = |path: &str| {
        let attributes = EntryPath::new(path).map(|path| defaults.of(&path));
        let (mode, uid, gid) = attributes.map_or((0o755, 0, 0), |it| (it.mode, it.uid, it.gid));
        DirectoryFacts { mode, uid, gid }
    };
    let layers: Vec<&LayerFacts> = layers.iter().map(Arc::as_ref).collect();
    BaseFacts::of_layers(image.config(), &layers, &usual)
}

/// Gathers the facts of a layer while it is sealed.
#[derive(Debug, Default)]
pub(crate) struct LayerGathering(Gathering);

impl Observer for LayerGathering {
    fn observe(&self, piece: Observed<'_>) {
        let entry = entry_of_record(piece.record, piece.modified);
        if let RecordKind::File(content) = &piece.record.kind {
            let (position, offset) = (piece.position, piece.offset);
            self.0
                .take(position, entry, offset, piece.bytes, &Ranged(content));
        }
    }
}

/// The content of a file of which some ranges are wanted.
struct Ranged<'a>(&'a Content);

impl ReadRange for Ranged<'_> {
    fn read_range(&self, range: Range<u64>, bytes: &mut Vec<u8>) -> io::Result<()> {
        self.0.append_range(range, bytes).map_err(io::Error::other)
    }
}

impl LayerGathering {
    /// Keeps the facts of the layer that was sealed.
    ///
    /// Segments that are those of the last time by their signature were not read: what is in them
    /// is known from the facts of the layer of last time. When these are gone, nothing is kept, and
    /// whoever asks reads the finished layer, once.
    pub(crate) fn keep(
        self,
        plan: &Plan,
        sealed: &SealedLayer,
        codec: &dyn Codec,
        last_time: Option<&LastTime>,
        cache: &FactsCache,
        scratch: &Path,
    ) {
        let recipe = &sealed.recipe;
        if sealed.effort.read == 0 && cache.has(&recipe.digest) {
            return;
        }
        let modified = plan.modified();
        let entries = plan.records().iter();
        let facts = self.0.finish(
            entries.map(|record| entry_of_record(record, modified)),
            || cache.read(&last_time?.recipe.digest),
            recipe.uncompressed_size,
            packing(codec.compression()),
        );
        if let Some(facts) = facts {
            cache.keep(&recipe.digest, facts, scratch);
        }
    }
}

/// An entry as it stands in the archive that sealing makes.
fn entry_of_record(record: &Record, modified: u64) -> RawEntry {
    let (kind, size) = match &record.kind {
        RecordKind::Directory => (EntryKind::Directory, 0),
        RecordKind::OpaqueMarker | RecordKind::Whiteout => (EntryKind::File, 0),
        RecordKind::File(content) => (EntryKind::File, content.size()),
        RecordKind::Symlink(target) => (EntryKind::Symlink(RawPath::new(target.clone())), 0),
        RecordKind::Hardlink(target) => (EntryKind::Hardlink(RawPath::new(target.as_bytes())), 0),
    };
    RawEntry {
        path: RawPath::new(record.path.as_bytes()),
        kind,
        mode: record.attributes.mode & 0o7777,
        uid: record.attributes.uid,
        gid: record.attributes.gid,
        size,
        modified: i64::try_from(modified).unwrap_or(i64::MAX),
    }
}

fn packing(compression: Compression) -> Packing {
    match compression {
        Compression::None => Packing::None,
        Compression::Gzip => Packing::Gzip,
        Compression::Zstd => Packing::Zstd,
    }
}

/// The facts of layers, in their order; those that nobody has read are read now.
pub(crate) async fn read_layer_facts(
    layers: &[Layer],
    places: &Places,
    output: Output,
) -> Result<Vec<Arc<LayerFacts>>> {
    let cache = places.facts_cache();
    let mut all = Vec::new();
    for layer in layers {
        let digest = layer.descriptor.digest;
        let media_type = &layer.descriptor.media_type;
        if !matches!(media_type, MediaType::Layer(..)) && !media_type.to_string().contains("tar") {
            // An attestation, or something else that no runtime unpacks: a rule names it.
            all.push(Arc::new(LayerFacts::new(0, Packing::None, Vec::new())));
            continue;
        }
        let facts = match cache.read(&digest) {
            Some(facts) => facts,
            None => {
                let facts = read_facts(layer, places, output)
                    .await
                    .with_context(|| format!("could not read layer {digest}"))?;
                cache.keep(&digest, facts, places.scratch()?)
            }
        };
        all.push(facts);
    }
    Ok(all)
}

/// Reads one layer as a stream.
async fn read_facts(layer: &Layer, places: &Places, output: Output) -> Result<LayerFacts> {
    read_layer_with_bar("reading", layer, places, output, |pieces| {
        let mut collector = Collector::default();
        let read = read_members(pieces, Limits::default(), |member, content| {
            collector.add(entry_of(member), content)
        })?;
        Ok(collector.finish(read.uncompressed_size, packing(read.compression)))
    })
    .await
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
        let directory = tempfile::tempdir().unwrap();
        // As another run sees them.
        let cache = || FactsCache::new(directory.path());
        let layer = Digest::of(b"layer");
        assert_eq!(cache().read(&layer), None);
        let facts = LayerFacts::new(1024, Packing::Gzip, Vec::new());
        let kept = cache().keep(&layer, facts.clone(), directory.path());
        assert_eq!(*kept, facts);
        assert_eq!(cache().read(&layer), Some(kept));
        let path = cache().path(&layer);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("1024", "1025")).unwrap();
        assert_eq!(cache().read(&layer), None);
        // Nor under another name.
        let other = Digest::of(b"other");
        std::fs::write(cache().path(&other), &text).unwrap();
        assert_eq!(cache().read(&other), None);
        std::fs::write(&path, "").unwrap();
        assert_eq!(cache().read(&layer), None);
    }
}
