//! Packs: immutable files of compressed segments.
//!
//! ```text
//! blocks of segment 0, blocks of segment 1, …
//! index:   codec id, then for each segment: key, length, CRC-32, offset, length and check of its blocks
//! footer:  offset and length of the index, its check, version, magic
//! ```
//!
//! A pack is written under a temporary name and appears by rename, so there is no half one unless
//! the machine lost power; its name is the BLAKE3 of its index. Nothing in it is believed without
//! its check.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use tempfile::NamedTempFile;

use super::encoding::{CHECK, Fields, check_of, hex, push_text, unhex};

/// The BLAKE3 of a segment's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// The key of `segment`.
    pub fn of(segment: &[u8]) -> Self {
        Self(*blake3::hash(segment).as_bytes())
    }

    pub(super) fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The name of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId([u8; 16]);

impl PackId {
    /// Stands for the pack that is being written, whose name is not known before it is whole.
    pub(crate) const UNNAMED: Self = Self([0; 16]);

    pub(super) fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The name of the pack's file.
    pub fn file_name(&self) -> String {
        format!("{}{SUFFIX}", hex(&self.0))
    }

    pub(super) fn of_file_name(name: &str) -> Option<Self> {
        unhex(name.strip_suffix(SUFFIX)?).map(Self)
    }
}

const SUFFIX: &str = ".pack";

/// Where the blocks of a segment are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// In which pack.
    pub pack: PackId,
    /// From where on.
    pub offset: u64,
    /// How many bytes.
    pub length: u32,
    /// XXH3-128 of these bytes.
    pub check: u128,
}

/// A segment that is in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// What the segment is.
    pub key: Key,
    /// Its length in bytes of the archive.
    pub length: u32,
    /// CRC-32 of these.
    pub crc: u32,
    /// Where its compressed form is.
    pub place: Place,
}

const MAGIC: &[u8; 8] = b"tiercepk";
const VERSION: u32 = 1;
const FOOTER: usize = 8 + 4 + CHECK + 4 + 8;
const RECORD: usize = 32 + 4 + 4 + 8 + 4 + CHECK;

/// The most an index may have: that of some 250,000 segments.
const MOST_INDEX: u32 = 16 << 20;

/// A pack that is being written.
pub(crate) struct PackWriter<'a> {
    directory: &'a Path,
    codec: &'a str,
    /// Made with the first segment: most builds add none.
    file: Option<NamedTempFile>,
    length: u64,
    kept: Vec<Kept>,
}

impl<'a> PackWriter<'a> {
    /// Begins a pack in `directory`; no file is made before the first segment comes.
    pub(crate) fn new(directory: &'a Path, codec: &'a str) -> Self {
        Self {
            directory,
            codec,
            file: None,
            length: 0,
            kept: Vec::new(),
        }
    }

    /// Adds a segment. The pack in the answer's place is [`PackId::UNNAMED`] until it is known.
    pub(crate) fn append(&mut self, mut kept: Kept, blocks: &[u8]) -> io::Result<Kept> {
        kept.place.pack = PackId::UNNAMED;
        kept.place.offset = self.length;
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(create(self.directory)?),
        };
        file.as_file_mut().write_all(blocks)?;
        self.length += blocks.len() as u64;
        self.kept.push(kept);
        Ok(kept)
    }

    /// Writes the index; `None` when no segment came. The file is not synced: what a power cut
    /// leaves of it is found out by its checks.
    pub(crate) fn finish(&mut self) -> io::Result<Option<FinishedPack>> {
        let Some(mut file) = self.file.take() else {
            return Ok(None);
        };
        let mut index = Vec::with_capacity(self.kept.len() * RECORD + 64);
        push_text(&mut index, self.codec);
        for kept in &self.kept {
            index.extend_from_slice(kept.key.as_bytes());
            index.extend_from_slice(&kept.length.to_le_bytes());
            index.extend_from_slice(&kept.crc.to_le_bytes());
            index.extend_from_slice(&kept.place.offset.to_le_bytes());
            index.extend_from_slice(&kept.place.length.to_le_bytes());
            index.extend_from_slice(&kept.place.check.to_le_bytes());
        }
        let hash = blake3::hash(&index);
        let id = PackId(*hash.as_bytes().first_chunk().expect("BLAKE3 has 32 bytes"));
        let check = check_of(&index);
        let length = u32::try_from(index.len())
            .ok()
            .filter(|length| *length <= MOST_INDEX)
            .ok_or_else(|| io::Error::other("the pack has too many segments"))?;
        index.extend_from_slice(&self.length.to_le_bytes());
        index.extend_from_slice(&length.to_le_bytes());
        index.extend_from_slice(&check.to_le_bytes());
        index.extend_from_slice(&VERSION.to_le_bytes());
        index.extend_from_slice(MAGIC);
        file.as_file_mut().write_all(&index)?;
        let mut kept = std::mem::take(&mut self.kept);
        for kept in &mut kept {
            kept.place.pack = id;
        }
        let codec = self.codec.to_owned();
        let index = PackIndex { codec, kept };
        Ok(Some(FinishedPack { file, id, index }))
    }
}

/// A pack that is whole and has no name yet.
#[derive(Debug)]
pub(crate) struct FinishedPack {
    pub(crate) file: NamedTempFile,
    pub(crate) id: PackId,
    pub(crate) index: PackIndex,
}

fn create(directory: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(".layer-")
        // `tempfile_in` would add the random name to the system's words.
        .make_in(directory, |path| {
            File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o644)
                .open(path)
        })
}

/// What a pack says of itself.
#[derive(Debug)]
pub(crate) struct PackIndex {
    pub(crate) codec: String,
    pub(crate) kept: Vec<Kept>,
}

/// Reads the index of the pack `id`; `None` when the file is not a sound pack of this name.
pub(crate) fn read_index(file: &File, id: PackId) -> io::Result<Option<PackIndex>> {
    let length = file.metadata()?.len();
    let Some(footer_at) = length.checked_sub(FOOTER as u64) else {
        return Ok(None);
    };
    let mut footer = [0; FOOTER];
    file.read_exact_at(&mut footer, footer_at)?;
    let mut fields = Fields(&footer);
    let (offset, size, check) = (fields.u64(), fields.u32(), fields.u128());
    let known = fields.u32() == Some(VERSION) && fields.0 == MAGIC;
    let (Some(offset), Some(size), Some(check)) = (offset, size, check) else {
        return Ok(None);
    };
    let fits = offset.checked_add(u64::from(size)) == Some(footer_at) && size <= MOST_INDEX;
    if !known || !fits {
        return Ok(None);
    }
    let mut index = vec![0; size as usize];
    file.read_exact_at(&mut index, offset)?;
    let hash = blake3::hash(&index);
    if check_of(&index) != check || !hash.as_bytes().starts_with(id.as_bytes()) {
        return Ok(None);
    }
    Ok(parse_index(&index, id))
}

fn parse_index(index: &[u8], pack: PackId) -> Option<PackIndex> {
    let mut fields = Fields(index);
    let codec = fields.text()?;
    let mut kept = Vec::with_capacity(fields.0.len() / RECORD);
    while !fields.0.is_empty() {
        kept.push(Kept {
            key: Key(fields.array()?),
            length: fields.u32()?,
            crc: fields.u32()?,
            place: Place {
                pack,
                offset: fields.u64()?,
                length: fields.u32()?,
                check: fields.u128()?,
            },
        });
    }
    Some(PackIndex { codec, kept })
}

/// Reads the blocks at `place`; false when they are not what they should be.
pub(crate) fn read_blocks(file: &File, place: &Place, blocks: &mut Vec<u8>) -> io::Result<bool> {
    blocks.clear();
    blocks.resize(place.length as usize, 0);
    match file.read_exact_at(blocks, place.offset) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        result => result?,
    }
    Ok(check_of(blocks) == place.check)
}

/// Reads a small file whole; `None` when it has more than `most` bytes.
pub(super) fn read_small(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    super::open_regular(path)?
        .take(most + 1)
        .read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= most).then_some(bytes))
}
