//! What the tests share: small trees, archives built byte by byte, layers taken apart.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tierce_layer::{
    Attributes, BaseLinks, Codec, Compression, Content, Destination, Entry, EntryPath, LayerCache,
    Limits, Notice, Piece, Plan, ScanAdd, SealSettings, SealedLayer, Stored, Treatment, Tree,
    cache::Recipe, scan, seal,
};

/// Enough threads to get in each other's way.
pub(crate) const TWO: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);

pub(crate) fn path(text: impl AsRef<[u8]>) -> EntryPath {
    EntryPath::new(text).unwrap()
}

pub(crate) fn file(bytes: impl AsRef<[u8]>) -> Entry {
    Entry::file(Content::bytes(bytes.as_ref()), 0o644)
}

pub(crate) fn tree_of(entries: impl IntoIterator<Item = (impl AsRef<[u8]>, Entry)>) -> Tree {
    let mut tree = Tree::new();
    let mut notices = Vec::new();
    for (name, entry) in entries {
        tree.insert(path(name), entry, &mut notices).unwrap();
    }
    assert_eq!(notices, []);
    tree
}

pub(crate) fn plan_of(tree: Tree) -> Plan {
    tree.settle(Some(&BaseLinks::none()), &mut Vec::new())
        .unwrap()
}

/// A layer and its blob.
pub(crate) struct Sealed {
    recipe: Recipe,
    pub(crate) blob: Vec<u8>,
}

impl std::ops::Deref for Sealed {
    type Target = Recipe;

    fn deref(&self) -> &Recipe {
        &self.recipe
    }
}

/// A cache of its own in `directory`, which must be there.
pub(crate) fn cache_in(directory: &Path) -> LayerCache {
    let scratch = directory.join("scratch");
    std::fs::create_dir_all(&scratch).unwrap();
    LayerCache::open(directory.join("cache"), scratch).unwrap()
}

/// The files that sealing left, by path below the cache's directory; the lock not among them.
pub(crate) fn left_in(directory: &Path) -> Vec<PathBuf> {
    walkdir::WalkDir::new(directory)
        .into_iter()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().is_file() && entry.file_name() != "lock")
        .map(|entry| entry.path().strip_prefix(directory).unwrap().to_owned())
        .collect()
}

pub(crate) fn sealed(plan: &Plan, codec: &dyn Codec, jobs: usize) -> (Sealed, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let cache = cache_in(directory.path());
    let layer = seal(plan, &settings(codec, &cache, jobs)).unwrap();
    (with_blob(layer, codec, &cache), directory)
}

/// Puts the blob of a layer together.
pub(crate) fn with_blob(layer: SealedLayer, codec: &dyn Codec, cache: &LayerCache) -> Sealed {
    let mut blob = Vec::new();
    for piece in layer.recipe.pieces(codec, cache) {
        match piece {
            Piece::Bytes(bytes) => blob.extend(bytes),
            Piece::Range {
                path,
                offset,
                length,
                check,
            } => {
                let mut bytes = vec![0; usize::try_from(length).unwrap()];
                let pack = std::fs::File::open(path).unwrap();
                pack.read_exact_at(&mut bytes, offset).unwrap();
                assert_eq!(xxhash_rust::xxh3::xxh3_128(&bytes), check);
                blob.extend(bytes);
            }
        }
    }
    Sealed {
        recipe: layer.recipe,
        blob,
    }
}

pub(crate) fn settings<'a>(
    codec: &'a dyn Codec,
    cache: &'a LayerCache,
    jobs: usize,
) -> SealSettings<'a> {
    SealSettings {
        codec,
        cache,
        last_time: None,
        identity_suffices: false,
        jobs: NonZeroUsize::new(jobs).unwrap(),
        progress: None,
        cancel: None,
        observer: None,
    }
}

/// The uncompressed archive of a tree.
pub(crate) fn archive_of(tree: Tree) -> Vec<u8> {
    let (layer, _directory) = sealed(&plan_of(tree), &Stored, 1);
    unpacked(&layer)
}

/// The archive in a layer's blob: one gzip member, or frames of Zstandard.
pub(crate) fn unpacked(layer: &Sealed) -> Vec<u8> {
    let blob = &layer.blob;
    assert_eq!(blob.len() as u64, layer.size);
    assert_eq!(tierce_oci::Digest::of(blob), layer.digest);
    let mut archive = Vec::new();
    if Compression::detect(blob) == Compression::Zstd {
        archive = zstd::decode_all(blob.as_slice()).unwrap();
    } else {
        let mut decoder = flate2::bufread::GzDecoder::new(blob.as_slice());
        decoder.read_to_end(&mut archive).unwrap();
        assert!(
            decoder.into_inner().is_empty(),
            "one member and nothing after it"
        );
    }
    assert_eq!(archive.len() as u64, layer.uncompressed_size);
    assert_eq!(tierce_oci::Digest::of(&archive), layer.diff_id.0);
    archive
}

/// Adds a directory on disk with everything at its default.
pub(crate) fn scanned(source: &Path, destination: &str) -> (Tree, Vec<Notice>) {
    let mut tree = Tree::new();
    let mut notices = Vec::new();
    let add = ScanAdd {
        source,
        destination: &Destination::parse(destination).unwrap(),
        exclude: &[],
        include: None,
        treatment: &Treatment::default(),
        jobs: TWO,
    };
    scan(&add, &mut tree, &mut notices).unwrap();
    (tree, notices)
}

/// The paths of a tree and what is there, one a line.
pub(crate) fn listing(tree: &Tree) -> String {
    let mut lines = String::new();
    for (path, entry) in tree.iter() {
        let Attributes { mode, uid, gid, .. } = entry.attributes;
        let noun = entry.kind.noun();
        writeln!(lines, "{mode:04o} {uid}:{gid} {noun} {path}").unwrap();
    }
    lines
}

pub(crate) fn write(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
    let path = path.as_ref();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Edits a file or directory again and again until the file system's clock has gone on, so that the
/// time of its last change is another.
pub(crate) fn until_it_shows(path: &Path, edit: impl Fn()) {
    let changed = || {
        let metadata = std::fs::symlink_metadata(path).unwrap();
        (metadata.ctime(), metadata.ctime_nsec())
    };
    let before = changed();
    while changed() == before {
        edit();
    }
}

/// An error with all its causes, as people see it.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += ": ";
        text += &error.to_string();
        cause = error.source();
    }
    text
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) const SMALL: Limits = Limits {
    bytes: 1 << 20,
    members: 100,
};

/// Builds archives, good and bad ones, block by block.
#[derive(Default, Clone)]
pub(crate) struct Raw(pub(crate) Vec<u8>);

impl Raw {
    /// A member with a correct header and padded content.
    pub(crate) fn member(
        self,
        flag: u8,
        name: impl AsRef<[u8]>,
        target: &str,
        body: &[u8],
    ) -> Self {
        self.header(flag, name, target, format!("{:011o}\0", body.len()))
            .body(body)
    }

    pub(crate) fn file(self, name: impl AsRef<[u8]>, body: &[u8]) -> Self {
        self.member(b'0', name, "", body)
    }

    pub(crate) fn directory(self, name: &str) -> Self {
        self.member(b'5', name, "", b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.member(b'2', name, target, b"")
    }

    /// A header alone, with the size field as given.
    pub(crate) fn header(
        mut self,
        flag: u8,
        name: impl AsRef<[u8]>,
        target: &str,
        size: impl AsRef<[u8]>,
    ) -> Self {
        let mut block = [0; 512];
        let name = name.as_ref();
        block[..name.len()].copy_from_slice(name);
        block[100..108].copy_from_slice(b"0000755\0");
        block[108..116].copy_from_slice(b"0001750\0");
        block[116..124].copy_from_slice(b"0001751\0");
        block[124..136].copy_from_slice(size.as_ref());
        block[136..148].copy_from_slice(b"14000000000\0");
        block[156] = flag;
        block[157..157 + target.len()].copy_from_slice(target.as_bytes());
        block[257..265].copy_from_slice(b"ustar\x0000");
        seal_header(&mut block);
        self.0.extend(block);
        self
    }

    pub(crate) fn body(mut self, body: &[u8]) -> Self {
        self.0.extend(body);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// A PAX header with these records, their lengths right.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (rest..rest + 9)
                .find(|length| length - rest == length.to_string().len())
                .unwrap();
            body.extend(format!("{length} {key}=").into_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.member(b'x', "PaxHeaders/x", "", &body)
    }

    /// Both end blocks.
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// Puts the right checksum into a header.
pub(crate) fn seal_header(block: &mut [u8]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
