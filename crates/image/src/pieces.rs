//! Blobs as lists of pieces.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

/// Part of a blob. All pieces of a blob, one after the other, are its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// These bytes.
    Bytes(Bytes),
    /// Bytes of a file.
    Range(FileRange),
}

impl Piece {
    /// How many bytes of the blob it is.
    pub fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Range(range) => range.length,
        }
    }
}

/// Some bytes of a pack: a file that nobody changes, with a name that is made from its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRange {
    /// The file. Many ranges are of the same one.
    pub path: Arc<Path>,
    /// Where in the file the bytes begin.
    pub offset: u64,
    /// How many they are.
    pub length: u64,
    /// The XXH3-128 of the bytes, with the seed 0. It tells a bad disk, not a forger.
    pub check: u128,
}
