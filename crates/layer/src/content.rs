//! Where the bytes of a file come from.
//!
//! A tree is built from metadata alone and its files are read once, while the layer is sealed. What
//! the tree promised (size above all, which stands in the header before the content) is therefore
//! checked while reading: a file that changed in between is an error and never a corrupt archive.

use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{OFlags, Stat};
use tierce_oci::Hasher;

/// A time as a file system keeps it. The later is the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct FileTime {
    /// Seconds since 1970, before which they are negative.
    pub seconds: i64,
    /// Nanoseconds after that second.
    pub nanoseconds: u32,
}

/// How long before a look at a file it must have been left alone for the look to be relied on: as
/// coarse as the coarsest file system's clock, FAT's.
const RACY_SECONDS: i64 = 2;

impl FileTime {
    /// Takes the two numbers as the system has them.
    pub(crate) fn new(seconds: i64, nanoseconds: impl TryInto<u32>) -> Self {
        // A file system that is broken enough for another number has the same one next time.
        let nanoseconds = nanoseconds.try_into().unwrap_or(u32::MAX);
        Self {
            seconds,
            nanoseconds,
        }
    }

    /// Whether a file that was last changed at this time can be relied on to be what it was when it
    /// was looked at from `began` on. One that was changed only just before may be changed once more
    /// within the same tick of its file system's clock: git calls it racy.
    pub fn is_settled_before(self, began: Self) -> bool {
        let settled = Self {
            seconds: began.seconds.saturating_sub(RACY_SECONDS),
            ..began
        };
        self < settled
    }
}

/// What tells one state of a file on disk from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Device that holds the file.
    pub device: u64,
    /// Inode on that device.
    pub inode: u64,
    /// Length in bytes.
    pub size: u64,
    /// When the content was last changed. Anybody can set it to what they like.
    pub modified: FileTime,
    /// When the content or anything of the metadata was last changed. Only the system sets it, so
    /// it tells a changed file whose modification time was put back.
    pub changed: FileTime,
}

impl Stamp {
    /// The stamp in `metadata`.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: FileTime::new(metadata.mtime(), metadata.mtime_nsec()),
            changed: FileTime::new(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// The same of what the system itself returns.
    pub(crate) fn of_stat(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size.cast_unsigned(),
            modified: FileTime::new(stat.st_mtime, stat.st_mtime_nsec),
            changed: FileTime::new(stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

impl Stamp {
    /// Whether both are of one file with one content, which may have got another name or mode in
    /// between.
    pub fn has_content_of(&self, other: &Self) -> bool {
        *self
            == Self {
                changed: self.changed,
                ..*other
            }
    }
}

/// A file on disk, as it was when it was scanned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFile {
    /// The directory that it is in: one value for many files, of which there may be very many.
    directory: Arc<Path>,
    name: Box<OsStr>,
    /// What it was; reading something else is an error.
    pub(crate) stamp: Stamp,
}

impl DiskFile {
    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.directory.join(&*self.name)
    }

    fn require(&self, file: &File) -> Result<(), ContentError> {
        require(file, || self.path(), |found| found == self.stamp)
    }
}

/// An open file that holds the contents of many archive members.
#[derive(Debug)]
pub struct Spool {
    file: File,
    path: PathBuf,
    stamp: Option<Stamp>,
}

impl Spool {
    /// Takes a file that only this process can see, with the path to name in errors.
    pub(crate) fn private(file: File, path: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            file,
            path,
            stamp: None,
        })
    }

    /// What the file was when it was opened; `None` for one that only this process can see.
    pub(crate) fn stamp(&self) -> Option<&Stamp> {
        self.stamp.as_ref()
    }

    /// Takes a file that others may write to; it is checked after each read.
    pub(crate) fn shared(file: File, path: PathBuf, stamp: Stamp) -> Arc<Self> {
        Arc::new(Self {
            file,
            path,
            stamp: Some(stamp),
        })
    }

    fn require(&self, stamp: &Stamp) -> Result<(), ContentError> {
        // It has been open all the time, so it may lose its name; nothing in it changes by that,
        // but the time of the last change does.
        require(
            &self.file,
            || self.path.clone(),
            |found| found.has_content_of(stamp),
        )
    }
}

/// A part of a [`Spool`].
#[derive(Debug, Clone)]
pub struct Range {
    /// The file.
    pub spool: Arc<Spool>,
    /// Where the part begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// The bytes of a file in a tree, not read yet. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Content {
    /// A file on disk.
    Disk(Arc<DiskFile>),
    /// A part of a file on disk: the content of an archive's member.
    Range(Range),
    /// Bytes in memory, for the few small files that are made up.
    Bytes(Arc<[u8]>),
    /// A `.pyc` in its unchecked-hash form: see [`crate::bytecode`].
    UncheckedBytecode {
        /// The `.pyc` as it was compiled, with a modification time in its header.
        compiled: Box<Content>,
        /// The source it was compiled from.
        source: Box<Content>,
    },
}

/// Why the bytes of a file could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The file could not be opened.
    #[error("could not open `{path}`", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file could not be read.
    #[error("could not read `{path}`", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what it was when it was scanned.
    #[error("`{path}` changed while it was read", path = path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
}

/// Length of the header of a `.pyc` since Python 3.7.
pub(crate) const BYTECODE_HEADER: usize = 16;

impl Content {
    /// The file `name` in `directory`, as it was when it had `stamp`.
    pub fn on_disk(directory: Arc<Path>, name: &OsStr, stamp: Stamp) -> Self {
        Self::Disk(Arc::new(DiskFile {
            directory,
            name: name.into(),
            stamp,
        }))
    }

    /// The given bytes.
    pub fn bytes(bytes: impl Into<Arc<[u8]>>) -> Self {
        Self::Bytes(bytes.into())
    }

    /// The exact number of bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Disk(file) => file.stamp.size,
            Self::Range(range) => range.length,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::UncheckedBytecode { compiled, .. } => compiled.size(),
        }
    }

    /// Opens the content and calls `take` with its bytes, in order, in pieces of at most `piece`
    /// bytes that are full except for the last. Nothing is called for an empty content.
    ///
    /// When this returns `Ok`, exactly [`Content::size`] bytes were given. After an error the bytes
    /// already given are worth nothing.
    pub fn read_pieces<E: From<ContentError>>(
        &self,
        piece: usize,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut reader = self.open()?;
        let mut buffer = Vec::new();
        while reader.remaining > 0 {
            buffer.clear();
            reader.append(&mut buffer, piece)?;
            take(&buffer)?;
        }
        Ok(reader.finish()?)
    }

    /// The first `length` bytes, or fewer when there are no more.
    pub(crate) fn head(&self, length: usize) -> Result<Vec<u8>, ContentError> {
        let mut reader = self.open()?;
        let mut head = Vec::with_capacity(length);
        reader.append(&mut head, length)?;
        Ok(head)
    }

    /// Appends the bytes of `range`, which must lie inside the content.
    ///
    /// The file was what the tree says of it before and after they were read, or this fails.
    pub fn append_range(
        &self,
        range: std::ops::Range<u64>,
        bytes: &mut Vec<u8>,
    ) -> Result<(), ContentError> {
        let mut reader = self.open()?;
        reader.skip(range.start)?;
        let length =
            usize::try_from(range.end - range.start).expect("what is asked for fits into memory");
        reader.append(bytes, length)?;
        reader.finish()
    }

    pub(crate) fn open(&self) -> Result<ContentReader<'_>, ContentError> {
        let source = match self {
            Self::Disk(file) => Source::Disk {
                file: open_unchanged(file)?,
                disk: file,
            },
            Self::Range(range) => Source::Range {
                spool: &range.spool,
                offset: range.offset,
            },
            Self::Bytes(bytes) => Source::Bytes(bytes),
            Self::UncheckedBytecode { compiled, source } => {
                let mut head = compiled.head(BYTECODE_HEADER)?;
                let mut hasher = Hasher::new();
                source.read_pieces::<ContentError>(1 << 16, |bytes| {
                    hasher.update(bytes);
                    Ok(())
                })?;
                let digest = hasher.finish();
                if let Some(fields) = head.get_mut(4..BYTECODE_HEADER) {
                    fields[..4].copy_from_slice(&1_u32.to_le_bytes());
                    fields[4..].copy_from_slice(&digest.as_bytes()[..8]);
                }
                let mut rest = compiled.open()?;
                rest.append(&mut Vec::new(), BYTECODE_HEADER)?;
                Source::Replaced {
                    head,
                    taken: 0,
                    rest: Box::new(rest),
                }
            }
        };
        Ok(ContentReader {
            source,
            remaining: self.size(),
        })
    }
}

fn open_unchanged(disk: &DiskFile) -> Result<File, ContentError> {
    // A link or FIFO that took the file's place must neither be followed nor waited for.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let path = disk.path();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(&path)
        .map_err(|source| ContentError::Open { path, source })?;
    disk.require(&file)?;
    Ok(file)
}

fn require(
    file: &File,
    path: impl Fn() -> PathBuf,
    is_right: impl FnOnce(Stamp) -> bool,
) -> Result<(), ContentError> {
    let metadata = file.metadata().map_err(|source| ContentError::Read {
        path: path(),
        source,
    })?;
    if metadata.is_file() && is_right(Stamp::of(&metadata)) {
        Ok(())
    } else {
        Err(ContentError::Changed { path: path() })
    }
}

/// A content that is being read.
#[derive(Debug)]
pub(crate) struct ContentReader<'content> {
    source: Source<'content>,
    remaining: u64,
}

#[derive(Debug)]
enum Source<'content> {
    Disk {
        file: File,
        disk: &'content DiskFile,
    },
    Range {
        spool: &'content Spool,
        offset: u64,
    },
    Bytes(&'content [u8]),
    Replaced {
        head: Vec<u8>,
        taken: usize,
        rest: Box<ContentReader<'content>>,
    },
}

impl ContentReader<'_> {
    /// Leaves out the next `length` bytes, as far as there are so many.
    fn skip(&mut self, length: u64) -> Result<(), ContentError> {
        let length = length.min(self.remaining);
        self.remaining -= length;
        match &mut self.source {
            Source::Disk { file, disk } => {
                let read = |source| ContentError::Read {
                    path: disk.path(),
                    source,
                };
                let length =
                    i64::try_from(length).map_err(|_| read(io::ErrorKind::FileTooLarge.into()))?;
                file.seek(SeekFrom::Current(length)).map_err(read)?;
            }
            Source::Range { offset, .. } => *offset += length,
            Source::Bytes(bytes) => {
                let length = usize::try_from(length)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                *bytes = &bytes[length..];
            }
            Source::Replaced { head, taken, rest } => {
                let of_head = (head.len() - *taken) as u64;
                let now = of_head.min(length);
                *taken += usize::try_from(now).expect("at most the head's length");
                rest.skip(length - now)?;
            }
        }
        Ok(())
    }

    /// Appends the next `length` bytes, or as many as are left.
    pub(crate) fn append(
        &mut self,
        buffer: &mut Vec<u8>,
        length: usize,
    ) -> Result<(), ContentError> {
        let length = usize::try_from(self.remaining).map_or(length, |left| left.min(length));
        self.remaining -= length as u64;
        match &mut self.source {
            Source::Disk { file, disk } => {
                buffer.reserve(length);
                let read = file
                    .take(length as u64)
                    .read_to_end(buffer)
                    .map_err(|source| ContentError::Read {
                        path: disk.path(),
                        source,
                    })?;
                if read < length {
                    return Err(ContentError::Changed { path: disk.path() });
                }
            }
            Source::Range { spool, offset } => {
                let start = buffer.len();
                buffer.resize(start + length, 0);
                spool
                    .file
                    .read_exact_at(&mut buffer[start..], *offset)
                    .map_err(|source| {
                        let path = spool.path.clone();
                        match source.kind() {
                            io::ErrorKind::UnexpectedEof => ContentError::Changed { path },
                            _ => ContentError::Read { path, source },
                        }
                    })?;
                *offset += length as u64;
            }
            Source::Bytes(bytes) => {
                let (now, later) = bytes.split_at(length);
                buffer.extend_from_slice(now);
                *bytes = later;
            }
            Source::Replaced { head, taken, rest } => {
                let now = (head.len() - *taken).min(length);
                buffer.extend_from_slice(&head[*taken..*taken + now]);
                *taken += now;
                rest.append(buffer, length - now)?;
            }
        }
        Ok(())
    }

    /// Checks that it was still the promised file while it was read.
    pub(crate) fn finish(self) -> Result<(), ContentError> {
        match self.source {
            // The size is part of the stamp, so bytes appended meanwhile show here as well.
            Source::Disk { file, disk } => disk.require(&file),
            Source::Range { spool, .. } => match &spool.stamp {
                Some(stamp) => spool.require(stamp),
                None => Ok(()),
            },
            Source::Bytes(_) => Ok(()),
            Source::Replaced { rest, .. } => rest.finish(),
        }
    }
}
