//! Reading files that may be anything.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use rustix::fs::OFlags;
use tierce_image::{BlobStream, BoxError};
use tierce_oci::{Digest, Hasher};

use crate::atomic::PathError;
use crate::stamp::Watch;

/// How much is read at once.
const PIECE: usize = 256 << 10;

/// After how many bytes a long copy lets other tasks run.
const STRIDE: usize = 1 << 20;

/// Opens `size` bytes of `path` from `offset` on, unverified, for
/// [`Content::File`](tierce_image::Content::File).
///
/// A file that is shorter gives what it has. Anything but a regular file is an error: a stranger's
/// layout may have a pipe in a blob's place, which would never end. Symlinks are followed, because
/// build systems make layouts of them.
///
/// A whole blob of a store that turns out to be damaged loses the store's trust, so that the next
/// writer of the image replaces it. Telling the reader is still left to whoever verifies the bytes.
pub fn open_file(path: &Path, offset: u64, size: u64) -> Result<BlobStream, PathError> {
    let mut file = open_regular(path)?;
    file.seek(SeekFrom::Start(offset))
        .map_err(PathError::of("read", path))?;
    let watch = Watch::over(&file, path, offset, size);
    let state = (file, path.to_owned(), size, watch);
    let pieces = stream::try_unfold(state, |(mut file, path, left, mut watch)| async move {
        let wanted = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        let mut piece = vec![0; wanted];
        let count = read_retrying(&mut file, &mut piece).map_err(PathError::of("read", &path))?;
        if count == 0 {
            return Ok(None);
        }
        piece.truncate(count);
        if let Some(watch) = &mut watch {
            watch.take(&piece, &file);
        }
        let next = (file, path, left - count as u64, watch);
        Ok(Some((Bytes::from(piece), next)))
    });
    Ok(pieces
        .map_err(|error: PathError| BoxError::from(error))
        .boxed())
}

fn read_retrying(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Opens a regular file for reading, without ever waiting for another process to open it too.
pub(crate) fn open_regular(path: &Path) -> Result<File, PathError> {
    let refuse = || {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
        PathError::of("read", path)(source)
    };
    // Looked at first, because opening a device may have effects of its own.
    let metadata = fs::metadata(path).map_err(PathError::of("read", path))?;
    if !metadata.is_file() {
        return Err(refuse());
    }
    let file = File::options()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(PathError::of("read", path))?;
    let metadata = file.metadata().map_err(PathError::of("read", path))?;
    if metadata.is_file() {
        Ok(file)
    } else {
        Err(refuse())
    }
}

/// Reads exactly `size` bytes from `offset` on. The caller has judged `size`.
pub(crate) fn read_range(path: &Path, offset: u64, size: usize) -> Result<Bytes, PathError> {
    let file = open_regular(path)?;
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, offset)
        .map_err(PathError::of("read", path))?;
    Ok(bytes.into())
}

/// Reads a whole file; `None` when it has more than `limit` bytes.
pub(crate) fn read_limited(path: &Path, limit: u64) -> Result<Option<Bytes>, PathError> {
    let mut bytes = Vec::new();
    open_regular(path)?
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(PathError::of("read", path))?;
    Ok((bytes.len() as u64 <= limit).then(|| bytes.into()))
}

/// Hashes a whole file.
pub(crate) async fn hash_file(path: &Path, size: u64) -> Result<Digest, BoxError> {
    let mut stream = pin!(open_file(path, 0, size)?);
    let (mut hasher, mut pace) = (Hasher::new(), Pace::default());
    while let Some(piece) = stream.try_next().await? {
        hasher.update(&piece);
        pace.after(piece.len()).await;
    }
    Ok(hasher.finish())
}

/// Lets other tasks run every so many bytes.
#[derive(Debug, Default)]
pub(crate) struct Pace(usize);

impl Pace {
    pub(crate) async fn after(&mut self, bytes: usize) {
        self.0 += bytes;
        if self.0 < STRIDE {
            return;
        }
        self.0 = 0;
        let mut yielded = false;
        std::future::poll_fn(|context| {
            if yielded {
                return Poll::Ready(());
            }
            yielded = true;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::run;

    fn read(path: &Path, offset: u64, size: u64) -> Vec<u8> {
        let stream = open_file(path, offset, size).unwrap();
        let pieces: Vec<Bytes> = run(stream.try_collect()).unwrap();
        pieces.concat()
    }

    #[test]
    fn a_range_is_read_in_pieces() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let bytes: Vec<u8> = (0..=250).cycle().take(PIECE * 2 + 5).collect();
        fs::write(&path, &bytes).unwrap();
        let size = bytes.len() as u64;
        assert_eq!(read(&path, 0, size), bytes);
        assert_eq!(read(&path, 7, size - 9), bytes[7..bytes.len() - 2]);
        assert_eq!(read(&path, 0, u64::MAX), bytes);
        assert_eq!(read(&path, size, 1), b"");
        assert_eq!(read(&path, 3, 0), b"");
        assert_eq!(run(hash_file(&path, size)).unwrap(), Digest::of(&bytes));
        assert_eq!(read_limited(&path, size).unwrap().unwrap(), bytes);
        assert_eq!(read_limited(&path, size - 1).unwrap(), None);
        assert!(read_range(&path, size - 1, 2).is_err());
    }

    #[test]
    fn only_regular_files_are_opened() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        for path in [pipe.as_path(), directory.path(), Path::new("/dev/null")] {
            let error = open_file(path, 0, 1).err().unwrap();
            assert_eq!(error.source.to_string(), "not a regular file");
        }
        let error = open_file(&directory.path().join("none"), 0, 1)
            .err()
            .unwrap();
        assert!(error.is_not_found());
        let link = directory.path().join("link");
        fs::write(directory.path().join("file"), b"x").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        assert_eq!(read(&link, 0, 1), b"x");
    }
}
