//! Reading blobs that are lists of pieces.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tierce_image::{BlobStream, BoxError, FileRange, Piece};
use xxhash_rust::xxh3::Xxh3;

use crate::atomic::PathError;
use crate::damage;
use crate::file::{Pace, open_regular};

/// How much is read at once. A segment of a layer has up to 1 MiB before it is compressed, with a
/// header that may come on top of it, and grows a little when it does not compress: it is one read.
const MOST: u64 = (1 << 20) + (64 << 10);

/// Why a pack does not give the bytes that a blob needs of it.
///
/// Whoever can make the pack again finds this in the `source` chain of a failed transfer, takes
/// [`PieceError::path`] away, and begins anew.
#[derive(Debug, thiserror::Error)]
pub enum PieceError {
    /// It is not there.
    #[error("the pack `{}` is not there", path.display())]
    Missing {
        /// The pack.
        path: PathBuf,
    },
    /// It ends before the bytes do.
    #[error("the pack `{}` has {found} bytes where at least {needed} were expected", path.display())]
    TooShort {
        /// The pack.
        path: PathBuf,
        /// Where the bytes should end.
        needed: u64,
        /// Where it ends.
        found: u64,
    },
    /// The bytes are others than those that were once put there.
    #[error("the pack `{}` is damaged: the {length} bytes from {offset} on are others than were written", path.display())]
    Damaged {
        /// The pack.
        path: PathBuf,
        /// Where the bytes begin.
        offset: u64,
        /// How many they are.
        length: u64,
    },
    /// The operating system refused.
    #[error(transparent)]
    File(#[from] PathError),
}

impl PieceError {
    /// The pack that is of no use.
    pub fn path(&self) -> &Path {
        match self {
            Self::Missing { path } | Self::TooShort { path, .. } | Self::Damaged { path, .. } => {
                path
            }
            Self::File(error) => &error.path,
        }
    }
}

/// Opens the blob that `pieces` are, from offset `from` on, for
/// [`Content::Pieces`](tierce_image::Content::Pieces).
///
/// All packs are looked at before a byte is handed out, so that one that is missing or cut off is
/// told in time. Each range is read whole, also when only its end is wanted, and compared with its
/// check before its last bytes are handed out; a range of up to a MiB, as the segments of layers
/// are, is handed out at once. The blob as a whole is verified by whoever knows its digest.
///
/// Damage to a pack of a local store is noted there: the next writer of an image that needs those
/// bytes puts a whole pack in its place.
pub fn open_pieces(pieces: &Arc<[Piece]>, from: u64) -> Result<BlobStream, PieceError> {
    let reader = Reader::open(pieces, from)?;
    let bytes = stream::try_unfold(reader, |mut reader| async move {
        let next = reader.next().await?;
        Ok(next.map(|bytes| (bytes, reader)))
    });
    Ok(bytes
        .map_err(|error: PieceError| BoxError::from(error))
        .boxed())
}

/// Reads the whole of the file at `path` once, to name it as a range.
#[cfg(test)]
pub(crate) fn range_of_file(path: &Path) -> Result<FileRange, PathError> {
    let file = open_regular(path)?;
    let failed = PathError::of("read", path);
    let length = file.metadata().map_err(&failed)?.len();
    let mut hasher = Xxh3::new();
    let mut offset = 0;
    while offset < length {
        let bytes = read_at(&file, offset, (length - offset).min(MOST)).map_err(&failed)?;
        hasher.update(&bytes);
        offset += bytes.len() as u64;
    }
    Ok(FileRange {
        path: path.into(),
        offset: 0,
        length,
        check: hasher.digest128(),
    })
}

/// Whether all `ranges` of the pack that is open as `file` have the right bytes.
pub(crate) async fn verify(file: &File, ranges: &[FileRange]) -> bool {
    let mut pace = Pace::default();
    for range in ranges {
        let mut pass = Pass::over(range);
        while !pass.is_over {
            match pass.read(file) {
                Ok(bytes) => pace.after(bytes.len()).await,
                Err(_) => return false,
            }
        }
    }
    true
}

/// How far a blob has been read.
struct Reader {
    pieces: Arc<[Piece]>,
    next: usize,
    /// How many bytes from there on are not wanted.
    skip: u64,
    file: Option<(Arc<Path>, File)>,
    /// Over the next piece, once that has been begun.
    pass: Option<Pass>,
}

impl Reader {
    fn open(pieces: &Arc<[Piece]>, from: u64) -> Result<Self, PieceError> {
        let (mut next, mut skip) = (0, from);
        // A piece without bytes is not skipped: it is not in the way, and its pack is looked at.
        while let Some(length) = pieces.get(next).map(Piece::length)
            && skip > 0
            && length <= skip
        {
            skip -= length;
            next += 1;
        }
        let mut lengths = BTreeMap::new();
        for piece in &pieces[next..] {
            let Piece::Range(range) = piece else {
                continue;
            };
            let found = match lengths.entry(&range.path) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(unknown) => *unknown.insert(length_of(&range.path)?),
            };
            let needed = range.offset.saturating_add(range.length);
            if needed > found {
                return Err(PieceError::TooShort {
                    path: range.path.to_path_buf(),
                    needed,
                    found,
                });
            }
        }
        Ok(Self {
            pieces: pieces.clone(),
            next,
            skip,
            file: None,
            pass: None,
        })
    }

    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, PieceError> {
        let mut pace = Pace::default();
        let pieces = self.pieces.clone();
        while let Some(piece) = pieces.get(self.next) {
            let bytes = match piece {
                Piece::Bytes(bytes) => {
                    self.next += 1;
                    bytes.clone()
                }
                Piece::Range(range) => self.read(range)?,
            };
            let length = bytes.len();
            let unwanted = usize::try_from(self.skip).map_or(length, |skip| skip.min(length));
            self.skip -= unwanted as u64;
            if unwanted < length {
                return Ok(Some(bytes.slice(unwanted..)));
            }
            pace.after(length).await;
        }
        Ok(None)
    }

    /// Reads on in `range`, the next piece.
    fn read(&mut self, range: &FileRange) -> Result<Bytes, PieceError> {
        let file = match self.file.take() {
            Some((path, file)) if path == range.path => file,
            _ => open_pack(&range.path)?,
        };
        let mut pass = self.pass.take().unwrap_or_else(|| Pass::over(range));
        let bytes = pass.read(&file)?;
        if pass.is_over {
            self.next += 1;
        } else {
            self.pass = Some(pass);
        }
        self.file = Some((range.path.clone(), file));
        Ok(bytes)
    }
}

/// One reading of a range from its beginning to its end.
struct Pass {
    range: FileRange,
    read: u64,
    hasher: Xxh3,
    is_over: bool,
}

impl Pass {
    fn over(range: &FileRange) -> Self {
        Self {
            range: range.clone(),
            read: 0,
            hasher: Xxh3::new(),
            is_over: false,
        }
    }

    /// The next bytes; the last ones only when all were right.
    fn read(&mut self, file: &File) -> Result<Bytes, PieceError> {
        let range = &self.range;
        let wanted = (range.length - self.read).min(MOST);
        let start = range.offset.saturating_add(self.read);
        let bytes = read_at(file, start, wanted).map_err(|source| {
            // Bytes that cannot be read are as bad as others.
            damage::note(range);
            PathError::of("read", &range.path)(source)
        })?;
        self.hasher.update(&bytes);
        self.read += wanted;
        self.is_over = self.read == range.length;
        if self.is_over && self.hasher.digest128() != range.check {
            damage::note(range);
            return Err(PieceError::Damaged {
                path: range.path.to_path_buf(),
                offset: range.offset,
                length: range.length,
            });
        }
        Ok(bytes)
    }
}

fn read_at(file: &File, offset: u64, length: u64) -> io::Result<Bytes> {
    let length = usize::try_from(length).expect("no more than `MOST` is read at once");
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes.into())
}

fn length_of(path: &Path) -> Result<u64, PieceError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.len()),
        Err(source) => Err(missing_or(PathError::of("read", path)(source))),
    }
}

fn open_pack(path: &Path) -> Result<File, PieceError> {
    open_regular(path).map_err(missing_or)
}

fn missing_or(error: PathError) -> PieceError {
    if error.is_not_found() {
        PieceError::Missing { path: error.path }
    } else {
        PieceError::File(error)
    }
}

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::xxh3_128;

    use super::*;
    use crate::tests::run;

    /// A pack with `bytes` in it, the whole of it as a range.
    fn pack(path: &Path, bytes: &[u8]) -> FileRange {
        fs::write(path, bytes).unwrap();
        let range = range_of_file(path).unwrap();
        assert_eq!(range.length, bytes.len() as u64);
        assert_eq!(range.check, xxh3_128(bytes));
        range
    }

    fn part(whole: &FileRange, bytes: &[u8], offset: usize, length: usize) -> Piece {
        Piece::Range(FileRange {
            path: whole.path.clone(),
            offset: offset as u64,
            length: length as u64,
            check: xxh3_128(&bytes[offset..offset + length]),
        })
    }

    fn literal(bytes: &'static [u8]) -> Piece {
        Piece::Bytes(Bytes::from_static(bytes))
    }

    /// The bytes that came, and the error after them.
    fn read(pieces: &[Piece], from: u64) -> (Vec<u8>, Option<PieceError>) {
        let mut stream = match open_pieces(&pieces.into(), from) {
            Ok(stream) => stream,
            Err(error) => return (Vec::new(), Some(error)),
        };
        let mut taken = Vec::new();
        loop {
            match run(stream.next()) {
                Some(Ok(bytes)) => taken.extend_from_slice(&bytes),
                Some(Err(error)) => {
                    let error = error.downcast::<PieceError>().unwrap();
                    return (taken, Some(*error));
                }
                None => return (taken, None),
            }
        }
    }

    #[test]
    fn pieces_are_read_one_after_the_other_from_anywhere() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (b"0123456789", b"abcdefghij");
        let first = pack(&directory.path().join("one"), one);
        let second = pack(&directory.path().join("two"), two);
        let pieces = [
            literal(b"<"),
            part(&first, one, 2, 3),
            part(&first, one, 0, 4),
            literal(b""),
            part(&second, two, 7, 3),
            part(&second, two, 1, 0),
            part(&first, one, 9, 1),
            literal(b">>"),
        ];
        let whole = b"<2340123hij9>>";
        for from in 0..=whole.len() {
            let (bytes, error) = read(&pieces, from as u64);
            assert!(error.is_none());
            assert_eq!(bytes, whole[from..], "{from}");
        }
        assert_eq!(read(&pieces, u64::MAX).0, b"");
        assert_eq!(read(&[], 0).0, b"");
    }

    #[test]
    fn a_long_range_is_read_in_parts_and_its_last_bytes_come_when_all_are_right() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pack");
        let most = usize::try_from(MOST).unwrap();
        let bytes: Vec<u8> = (0..=250).cycle().take(most * 2 + 100).collect();
        let whole = Piece::Range(pack(&path, &bytes));
        for from in [0, 1, most, most + 1, most * 2, bytes.len() - 1, bytes.len()] {
            let (read, error) = read(std::slice::from_ref(&whole), from as u64);
            assert!(error.is_none());
            assert!(read == bytes[from..], "{from}");
        }
        let mut bad = bytes.clone();
        bad[5] ^= 1;
        fs::write(&path, &bad).unwrap();
        for from in [0, 7, most, most * 2, bytes.len() - 1] {
            let (read, error) = read(std::slice::from_ref(&whole), from as u64);
            assert!(matches!(error, Some(PieceError::Damaged { .. })));
            assert_eq!(read.len(), (most * 2).saturating_sub(from));
        }
    }

    #[test]
    fn nothing_of_a_damaged_segment_is_handed_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pack");
        let bytes: Vec<u8> = (0..=250).cycle().take(1 << 20).collect();
        let range = pack(&path, &bytes);
        let pieces = [
            part(&range, &bytes, 0, 1000),
            part(&range, &bytes, 1000, bytes.len() - 1000),
        ];
        for position in [1000, 70_000, bytes.len() - 1] {
            let mut bad = bytes.clone();
            bad[position] ^= 0x80;
            fs::write(&path, &bad).unwrap();
            // Also when the bytes that are wanted are right.
            for from in [0, 1000, bytes.len() - 2] {
                let (read, error) = read(&pieces, from as u64);
                assert!(read == bytes[from..from.max(1000)]);
                let error = error.unwrap();
                assert_eq!(error.path(), path);
                let shown = error.to_string();
                assert!(
                    shown.ends_with("the 1047576 bytes from 1000 on are others than were written"),
                    "{shown}"
                );
            }
        }
        assert_eq!(read(&pieces[..1], 0).0, bytes[..1000]);
    }

    #[test]
    fn a_pack_that_is_not_there_or_cut_off_is_told_before_a_byte() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pack");
        let bytes = b"0123456789";
        let range = pack(&path, bytes);
        let pieces = [
            literal(b"<"),
            part(&range, bytes, 0, 2),
            part(&range, bytes, 5, 5),
        ];

        fs::write(&path, &bytes[..9]).unwrap();
        let (read_before, error) = read(&pieces, 0);
        assert!(read_before.is_empty());
        assert!(
            matches!(&error, Some(PieceError::TooShort { path: of, needed: 10, found: 9 }) if *of == path)
        );
        fs::remove_file(&path).unwrap();
        let (_, error) = read(&pieces, 3);
        assert!(matches!(&error, Some(PieceError::Missing { path: of }) if *of == path));
        // What is before `from` is not needed.
        assert!(read(&pieces[..2], 3).1.is_none());

        fs::create_dir(&path).unwrap();
        let (_, error) = read(&pieces[..2], 0);
        let Some(PieceError::File(error)) = &error else {
            panic!("{error:?}")
        };
        assert_eq!(error.source.to_string(), "not a regular file");

        let beyond = Piece::Range(FileRange {
            offset: u64::MAX,
            ..range
        });
        fs::remove_dir(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        assert!(matches!(
            read(&[beyond], 0).1,
            Some(PieceError::TooShort {
                needed: u64::MAX,
                ..
            })
        ));
    }
}
