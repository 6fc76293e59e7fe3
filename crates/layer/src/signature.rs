//! What a segment would read, told by `stat`.
//!
//! Two segments with one signature have the same bytes as long as the kernel tells the truth about
//! files: a file that is written to, replaced or given another time gets another signature. The
//! exception is a file that was written to within the same tick of the file system's clock in which
//! it was looked at (git calls it racy); [`Signature::latest`] is there to tell.

use xxhash_rust::xxh3::Xxh3Default;

use crate::content::{Content, FileTime, Stamp};

/// The sum of names, attributes and states of files that make a segment.
///
/// It is only ever compared with one of the same machine: inodes are part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    /// XXH3-128 of all that was taken.
    pub hash: u128,
    /// The latest time at which one of the files was changed; zero without files.
    pub latest: FileTime,
}

/// Sums up.
pub(crate) struct Signer {
    hasher: Xxh3Default,
    latest: FileTime,
    /// Something came that `stat` says nothing of.
    untold: bool,
}

impl Default for Signer {
    fn default() -> Self {
        Self::new()
    }
}

impl Signer {
    pub(crate) fn new() -> Self {
        Self {
            hasher: Xxh3Default::new(),
            latest: FileTime::default(),
            untold: false,
        }
    }

    /// Takes bytes that are known.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        self.hasher.update(&(bytes.len() as u64).to_le_bytes());
        self.hasher.update(bytes);
    }

    /// Takes the state of what would be read.
    pub(crate) fn observe(&mut self, content: &Content) {
        match content {
            Content::Disk(file) => self.stamp(&file.stamp),
            Content::Range(range) => {
                self.take(&range.offset.to_le_bytes());
                match range.spool.stamp() {
                    Some(stamp) => self.stamp(stamp),
                    None => self.untold = true,
                }
            }
            Content::Bytes(bytes) => self.take(bytes),
            Content::UncheckedBytecode { compiled, source } => {
                self.take(b"unchecked bytecode");
                self.observe(compiled);
                self.observe(source);
            }
        }
    }

    fn stamp(&mut self, stamp: &Stamp) {
        let Stamp {
            modified, changed, ..
        } = *stamp;
        let fields = [
            stamp.device,
            stamp.inode,
            stamp.size,
            modified.seconds.cast_unsigned(),
            modified.nanoseconds.into(),
            changed.seconds.cast_unsigned(),
            changed.nanoseconds.into(),
        ];
        let mut bytes = [0; 8 * 7];
        for (place, field) in bytes.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        self.hasher.update(&bytes);
        self.latest = self.latest.max(modified).max(changed);
    }

    pub(crate) fn finish(self) -> Option<Signature> {
        (!self.untold).then(|| Signature {
            hash: self.hasher.digest128(),
            latest: self.latest,
        })
    }
}
