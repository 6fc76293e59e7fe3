//! Tells whether a source is what it was, without a file being read.

use xxhash_rust::xxh3::Xxh3Default;

use crate::content::FileTime;
use crate::walk::{Found, FoundKind, Walked};

/// What a source was when it was looked at, in a few bytes.
///
/// Two fingerprints are equal when nothing that can show in a layer differs, as far as the system
/// tells: of files their identity, size, times, mode, owner and whether they have other names, of
/// symlinks where they point, of directories mode and owner, of everything the path. It depends on
/// neither threads nor access times, and changes in what is excluded do not matter. Where extended
/// attributes are kept it covers them by the time of the last change.
///
/// It knows nothing of what is done with the source: destination, patterns and treatment are compared
/// apart. It holds inode and device numbers, so it means something on one machine only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    /// A hash over all of it.
    pub hash: u128,
    /// The latest time at which anything in it was changed, if time matters for anything in it.
    ///
    /// A file system's clock has coarse ticks. A file that is changed again in the tick in which it
    /// was looked at looks the same afterwards, so a fingerprint proves nothing unless this lies a
    /// few ticks before the moment at which the walk began: git's rule of racy timestamps.
    pub latest: Option<FileTime>,
}

/// Stands before everything hashed; to be counted up when what is hashed changes.
const VERSION: &[u8] = b"tierce fingerprint 1\n";

impl Walked {
    /// The fingerprint of the source as it was found.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut fields = Fields(Vec::with_capacity(256));
        let mut hash = Xxh3Default::new();
        let mut latest = None;
        hash.update(VERSION);
        fields.byte(u8::from(self.single.is_some()));
        let mut entries = self.entries();
        while let Some(found) = entries.next() {
            latest = latest.max(self.take(found, &mut fields));
            hash.update(&fields.0);
            fields.0.clear();
        }
        // What is left is the first byte of a source in which there is nothing.
        hash.update(&fields.0);
        Fingerprint {
            hash: hash.digest128(),
            latest,
        }
    }

    /// Appends what of an entry matters; if its times do, returns the later.
    fn take(&self, found: Found<'_>, fields: &mut Fields) -> Option<FileTime> {
        let (kind, target) = match found.kind {
            FoundKind::Directory => (b'd', &[][..]),
            FoundKind::File => (b'f', &[][..]),
            FoundKind::Symlink(target) => (b'l', target),
            FoundKind::Socket => (b's', &[][..]),
            FoundKind::Fifo => (b'p', &[][..]),
            FoundKind::Device => (b'c', &[][..]),
        };
        fields.byte(kind);
        fields.bytes(found.path);
        fields.bytes(target);
        fields.byte(u8::from(found.wanted));
        for number in [found.mode, found.uid, found.gid] {
            fields.number(number.into());
        }
        // The time of a directory changes with whatever excluded file is made in it, and what is in
        // it speaks for itself.
        if kind != b'f' && !self.xattrs {
            return None;
        }
        let stamp = found.stamp;
        fields.number(stamp.device);
        fields.number(stamp.inode);
        fields.number(stamp.size);
        for time in [stamp.modified, stamp.changed] {
            fields.number(time.seconds.cast_unsigned());
            fields.number(time.nanoseconds.into());
        }
        fields.byte(u8::from(self.hardlinks && found.shared));
        Some(stamp.modified.max(stamp.changed))
    }
}

/// Bytes to hash, of which no two different sequences of fields are the same.
struct Fields(Vec<u8>);

impl Fields {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }
}
