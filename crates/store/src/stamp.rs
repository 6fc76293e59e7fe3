//! What the modification time of a blob in the local store says about its bytes.
//!
//! The store does not hash its blobs again each time it is asked for an image: one that bears
//! [`Mark::Right`] has not been written to since it was verified. A bad disk changes bytes and
//! leaves the time alone, though, so what is read is watched: bytes that turn out to be others turn
//! the mark into [`Mark::Wrong`], and the next writer of the image replaces the blob.

use std::fs::{File, FileTimes, Metadata};
use std::path::Path;
use std::time::{Duration, SystemTime};

use tierce_oci::{Digest, Hasher};

/// A modification time that tierce gives to blobs of its own store, and that no file gets by being
/// written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Its bytes are those of its name.
    Right,
    /// They were others when it was last read.
    Wrong,
}

impl Mark {
    /// 1980-01-01T00:00:00Z, or the day after: some file systems count in steps of two seconds.
    fn time(self) -> SystemTime {
        let days = match self {
            Self::Right => 3652,
            Self::Wrong => 3653,
        };
        SystemTime::UNIX_EPOCH + Duration::from_hours(24 * days)
    }

    pub(crate) fn is_on(self, metadata: &Metadata) -> bool {
        metadata.modified().is_ok_and(|time| time == self.time())
    }

    /// Failing is no error: a blob without a mark is hashed when it is next written.
    pub(crate) fn put_on(self, file: &File) {
        let _ = file.set_times(FileTimes::new().set_modified(self.time()));
    }
}

/// Hashes a blob of the store while it is read from beginning to end.
///
/// Whoever reads it hashes it too, and does not tell us what came out. That second hash is what the
/// watch costs (0.6 ms a MiB with the processor's SHA instructions), and only for blobs that are
/// [`Mark::Right`]: of a layout's nothing is believed anyway.
pub(crate) struct Watch {
    hasher: Hasher,
    expected: Digest,
    left: u64,
}

impl Watch {
    /// Watches `size` bytes of `file` from `offset` on, if they are a whole marked blob of a store.
    pub(crate) fn over(file: &File, path: &Path, offset: u64, size: u64) -> Option<Self> {
        let metadata = file.metadata().ok()?;
        if offset != 0 || size != metadata.len() || !Mark::Right.is_on(&metadata) {
            return None;
        }
        let hex = path.file_name()?.to_str()?;
        let directory = path.parent()?;
        // The mark alone will not do: archivers give the same time to files that had none.
        let in_a_store = directory.ends_with("blobs/sha256")
            && directory.ancestors().nth(2)?.join("version").is_file();
        Some(Self {
            hasher: Hasher::new(),
            expected: format!("sha256:{hex}").parse().ok()?,
            left: size,
        })
        .filter(|_| in_a_store)
    }

    /// Takes the next piece; with the last one it marks the `file` it came from if that is wrong.
    ///
    /// That is before the piece is handed out, because nobody asks for more once he has it. The
    /// file is the open one, not what has its name by now.
    pub(crate) fn take(&mut self, piece: &[u8], file: &File) {
        self.hasher.update(piece);
        self.left = self.left.saturating_sub(piece.len() as u64);
        if self.left == 0 && std::mem::take(&mut self.hasher).finish() != self.expected {
            Mark::Wrong.put_on(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use bytes::Bytes;
    use futures_util::TryStreamExt as _;

    use super::*;
    use crate::file::open_file;
    use crate::tests::run;

    /// Puts marked `bytes` where the blob of `named` would be.
    fn blob(root: &Path, named: &[u8], bytes: &[u8]) -> PathBuf {
        let directory = root.join("blobs/sha256");
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join(Digest::of(named).hex());
        fs::write(&path, bytes).unwrap();
        Mark::Right.put_on(&File::open(&path).unwrap());
        path
    }

    /// Reads all, and says which mark is there afterwards.
    fn read(path: &Path, offset: u64, size: u64) -> Option<Mark> {
        let stream = open_file(path, offset, size).unwrap();
        let _: Vec<Bytes> = run(stream.try_collect()).unwrap();
        let metadata = fs::metadata(path).unwrap();
        [Mark::Right, Mark::Wrong]
            .into_iter()
            .find(|mark| mark.is_on(&metadata))
    }

    #[test]
    fn only_a_whole_damaged_blob_of_a_store_is_marked_wrong() {
        let store = tempfile::tempdir().unwrap();
        fs::write(store.path().join("version"), "1").unwrap();
        let good = vec![7; 600_000];
        let mut bad = good.clone();
        bad[300_000] ^= 1;
        let size = good.len() as u64;

        let path = blob(store.path(), &good, &good);
        assert_eq!(read(&path, 0, size), Some(Mark::Right));

        let path = blob(store.path(), &good, &bad);
        for (offset, size) in [(1, size - 1), (0, size - 1), (0, size + 1)] {
            assert_eq!(read(&path, offset, size), Some(Mark::Right));
        }
        assert_eq!(read(&path, 0, size), Some(Mark::Wrong));
        assert_eq!(read(&path, 0, size), Some(Mark::Wrong));
        fs::write(&path, &bad).unwrap();
        assert_eq!(read(&path, 0, size), None);

        let layout = tempfile::tempdir().unwrap();
        let path = blob(layout.path(), &good, &bad);
        assert_eq!(read(&path, 0, size), Some(Mark::Right));
    }

    /// As HTTP clients do, which know the length.
    #[test]
    fn the_mark_is_set_before_the_last_piece_is_handed_out() {
        let store = tempfile::tempdir().unwrap();
        fs::write(store.path().join("version"), "1").unwrap();
        let path = blob(store.path(), b"good", b"evil");
        let mut stream = open_file(&path, 0, 4).unwrap();
        assert_eq!(run(stream.try_next()).unwrap().unwrap(), "evil");
        assert!(Mark::Wrong.is_on(&fs::metadata(&path).unwrap()));
    }
}
