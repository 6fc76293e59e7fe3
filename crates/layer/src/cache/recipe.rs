//! Recipes: how the blob of a layer is put together from segments, and all that is known of it.

use tierce_oci::{DiffId, Digest, HasherState};

use super::encoding::{Fields, hex, push_text};
use super::pack::{Kept, Key, PackId, Place};
use crate::seal::EntryCounts;

/// The name of a recipe: BLAKE3 over codec and keys. One archive under one codec has one recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecipeId([u8; 32]);

impl RecipeId {
    /// The name of the recipe with these segments.
    pub fn of(codec: &str, keys: impl IntoIterator<Item = Key>) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(codec.len() as u64).to_le_bytes());
        hasher.update(codec.as_bytes());
        for key in keys {
            hasher.update(key.as_bytes());
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// Reads what [`RecipeId::to_hex`] writes.
    pub fn from_hex(text: &str) -> Option<Self> {
        super::encoding::unhex(text).map(Self)
    }

    /// The name in hexadecimal.
    pub fn to_hex(self) -> String {
        hex(&self.0)
    }
}

/// One segment of a layer.
#[derive(Debug, Clone, Copy)]
pub struct RecipeSegment {
    /// What it is and where its blocks are.
    pub kept: Kept,
    /// The hash of the archive up to the segment's end.
    pub archive: HasherState,
    /// The hash of the blob up to the segment's end.
    pub blob: HasherState,
}

/// A layer: its identity, and how its blob is put together.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Which codec made the blocks.
    pub codec: String,
    /// The digest of the blob.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
    /// The digest of the archive.
    pub diff_id: DiffId,
    /// Its length.
    pub uncompressed_size: u64,
    /// CRC-32 of the archive.
    pub crc: u32,
    /// What the archive holds.
    pub entries: EntryCounts,
    /// The segments in order.
    pub segments: Vec<RecipeSegment>,
}

impl Recipe {
    /// Its name.
    pub fn id(&self) -> RecipeId {
        RecipeId::of(
            &self.codec,
            self.segments.iter().map(|segment| segment.kept.key),
        )
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256 + self.segments.len() * 300);
        push_text(&mut bytes, &self.codec);
        bytes.extend_from_slice(self.digest.as_bytes());
        bytes.extend_from_slice(&self.size.to_le_bytes());
        bytes.extend_from_slice(self.diff_id.0.as_bytes());
        bytes.extend_from_slice(&self.uncompressed_size.to_le_bytes());
        bytes.extend_from_slice(&self.crc.to_le_bytes());
        let EntryCounts {
            directories,
            files,
            symlinks,
            hardlinks,
            whiteouts,
        } = self.entries;
        for count in [directories, files, symlinks, hardlinks, whiteouts] {
            bytes.extend_from_slice(&count.to_le_bytes());
        }
        for segment in &self.segments {
            let RecipeSegment {
                kept,
                archive,
                blob,
            } = segment;
            bytes.extend_from_slice(kept.key.as_bytes());
            bytes.extend_from_slice(&kept.length.to_le_bytes());
            bytes.extend_from_slice(&kept.crc.to_le_bytes());
            bytes.extend_from_slice(kept.place.pack.as_bytes());
            bytes.extend_from_slice(&kept.place.offset.to_le_bytes());
            bytes.extend_from_slice(&kept.place.length.to_le_bytes());
            bytes.extend_from_slice(&kept.place.check.to_le_bytes());
            bytes.extend_from_slice(archive.as_bytes());
            bytes.extend_from_slice(blob.as_bytes());
        }
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let mut recipe = Self {
            codec: fields.text()?,
            digest: Digest::from_bytes(fields.array()?),
            size: fields.u64()?,
            diff_id: DiffId(Digest::from_bytes(fields.array()?)),
            uncompressed_size: fields.u64()?,
            crc: fields.u32()?,
            entries: EntryCounts {
                directories: fields.u64()?,
                files: fields.u64()?,
                symlinks: fields.u64()?,
                hardlinks: fields.u64()?,
                whiteouts: fields.u64()?,
            },
            segments: Vec::new(),
        };
        while !fields.0.is_empty() {
            recipe.segments.push(RecipeSegment {
                kept: Kept {
                    key: Key::new(fields.array()?),
                    length: fields.u32()?,
                    crc: fields.u32()?,
                    place: Place {
                        pack: PackId::new(fields.array()?),
                        offset: fields.u64()?,
                        length: fields.u32()?,
                        check: fields.u128()?,
                    },
                },
                archive: HasherState::new(fields.array()?),
                blob: HasherState::new(fields.array()?),
            });
        }
        Some(recipe)
    }
}
