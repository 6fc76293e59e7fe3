//! Directories and files on disk as a source of entries.
//!
//! Scanning reads names and metadata and opens no file. What it makes of them is the same for
//! everybody who has the same files, whatever their umask, user or clock. It has two halves: a
//! [`walk`] looks at the disk, and what it found is added to a tree. A caller that only wants to
//! know whether anything changed does the first alone.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use crate::content::Content;
use crate::entry::{Entry, EntryKind, FileEntry, Keep, LinkGroup, Treatment};
use crate::notice::Notice;
use crate::path::{BadPath, Destination, EntryPath, readable};
use crate::pattern::Matcher;
use crate::tree::{ReservedName, Tree};
use crate::walk::{Found, FoundKind, Walked, below, walk};

/// Patterns and the directory they are anchored at.
#[derive(Debug, Clone, Copy)]
pub struct Anchored<'a> {
    /// The patterns.
    pub matcher: &'a Matcher,
    /// Where their paths begin, spelled as the sources are: `context` anchors `context/src`, while
    /// a source that is elsewhere is not matched at all.
    pub root: &'a Path,
}

/// What of the disk is added, and where.
#[derive(Debug, Clone, Copy)]
pub struct ScanAdd<'a> {
    /// A directory, whose content is taken, or anything else, which is taken itself. When this is
    /// a symlink, what it leads to was meant; symlinks inside are never followed.
    pub source: &'a Path,
    /// Where it goes.
    pub destination: &'a Destination,
    /// What is left out: whatever any of these match.
    pub exclude: &'a [Anchored<'a>],
    /// When given, only what matches and the directories above it are taken.
    pub include: Option<Anchored<'a>>,
    /// What of the metadata is kept.
    pub treatment: &'a Treatment,
    /// How many threads may look at the disk. What is found does not depend on it.
    pub jobs: NonZeroUsize,
}

/// Why files could not be added. The tree may hold some of the entries and is best thrown away.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// A file or directory could not be looked at.
    #[error("could not read `{path}`", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An extended attribute could not be read.
    #[error("could not read the extended attribute `{name}` of `{path}`", path = path.display())]
    Xattr {
        /// The file.
        path: PathBuf,
        /// The attribute.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// A FIFO or device, which no file of an application is.
    #[error("`{path}` is a {kind}; only files, directories and symlinks go into a layer", path = path.display())]
    Special {
        /// Where it is.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// A file's name would be a deletion in the layer.
    #[error("could not add `{path}`", path = path.display())]
    Reserved {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with its name.
        source: ReservedName,
    },
    /// A source has no name that it could have in the destination.
    #[error("could not add `{path}`: its name {problem}", path = path.display())]
    Name {
        /// The source.
        path: PathBuf,
        /// What is wrong.
        problem: BadPath,
    },
}

/// Adds a directory's content, or a single file, to the tree.
///
/// Directories bring their own attributes, except the destination itself, which is not described.
/// Sockets are left out with a notice; FIFOs, devices and names that start with `.wh.` are refused.
pub fn scan(
    add: &ScanAdd<'_>,
    tree: &mut Tree,
    notices: &mut Vec<Notice>,
) -> Result<(), ScanError> {
    add_walked(&walk(add)?, add, tree, notices)
}

/// Adds what [`walk`] found for the same `add`: the second half of [`scan`], which looks at the disk
/// for extended attributes alone.
pub fn add_walked(
    walked: &Walked,
    add: &ScanAdd<'_>,
    tree: &mut Tree,
    notices: &mut Vec<Notice>,
) -> Result<(), ScanError> {
    let mut adding = Adding {
        add,
        tree,
        notices,
        pending: Vec::new(),
        taken: 0,
        in_directory: None,
    };
    match &walked.single {
        Some(real) => adding.single(real, walked)?,
        None => adding.directory(walked)?,
    }
    if adding.taken == 0 {
        notices.push(Notice::NothingAdded {
            source: add.source.to_owned(),
        });
    }
    Ok(())
}

struct Adding<'a> {
    add: &'a ScanAdd<'a>,
    tree: &'a mut Tree,
    notices: &'a mut Vec<Notice>,
    /// The directories on the way to the current entry that are only taken if something in them is,
    /// each below the one before.
    pending: Vec<(EntryPath, Entry)>,
    taken: u64,
    /// The directory of the last file.
    in_directory: Option<Arc<Path>>,
}

impl Adding<'_> {
    fn directory(&mut self, walked: &Walked) -> Result<(), ScanError> {
        let source = self.add.source;
        if let Some(path) = self.add.destination.path() {
            self.tree
                .require_directory(path, self.notices)
                .map_err(|error| reserved(source, error))?;
        }
        let mut entries = walked.entries();
        while let Some(found) = entries.next() {
            let place = EntryPath::under(self.add.destination.path(), found.path);
            let place = place.map_err(|problem| ScanError::Name {
                path: below(source, found.path),
                problem,
            })?;
            if let Some(entry) = self.entry(below(source, found.path), found)? {
                self.take(place, entry, found.wanted)
                    .map_err(|error| reserved(&below(source, found.path), error))?;
            }
        }
        Ok(())
    }

    fn single(&mut self, real: &Path, walked: &Walked) -> Result<(), ScanError> {
        let mut entries = walked.entries();
        let Some(found) = entries.next() else {
            return Ok(());
        };
        let source = self.add.source;
        let destination = self.add.destination;
        let bad_name = |problem| ScanError::Name {
            path: source.to_owned(),
            problem,
        };
        let place = match destination.path() {
            Some(path) if !destination.takes_files_in() => path.clone(),
            directory => {
                let name = source
                    .file_name()
                    .ok_or_else(|| bad_name(BadPath::Parent))?;
                EntryPath::under(directory, name.as_bytes()).map_err(bad_name)?
            }
        };
        match self.entry(real.to_owned(), found)? {
            Some(entry) => self
                .take(place, entry, found.wanted)
                .map_err(|error| reserved(source, error)),
            None => Ok(()),
        }
    }

    /// Adds an entry that is wanted; others wait for something in them that is.
    fn take(&mut self, place: EntryPath, entry: Entry, wanted: bool) -> Result<(), ReservedName> {
        let above = self
            .pending
            .iter()
            .take_while(|(directory, _)| place.is_below(directory))
            .count();
        self.pending.truncate(above);
        self.pending.push((place, entry));
        if wanted {
            self.taken += 1;
            for (place, entry) in self.pending.drain(..) {
                self.tree.insert(place, entry, self.notices)?;
            }
        }
        Ok(())
    }

    /// The directory of the file at `path`: the same value as for the file before, mostly.
    fn directory_of(&mut self, path: &Path) -> Arc<Path> {
        let directory = path.parent().unwrap_or(Path::new(""));
        match &self.in_directory {
            Some(known) if **known == *directory => Arc::clone(known),
            _ => Arc::clone(self.in_directory.insert(directory.into())),
        }
    }

    /// The entry for what is at `path`, `None` for a socket.
    fn entry(&mut self, path: PathBuf, found: Found<'_>) -> Result<Option<Entry>, ScanError> {
        let treatment = self.add.treatment;
        let mut xattrs = BTreeMap::new();
        for name in &treatment.xattrs {
            if let Some(value) = read_xattr(&path, name)? {
                xattrs.insert(name.clone().into_bytes(), value);
            }
        }
        let kind = match found.kind {
            FoundKind::Directory => EntryKind::Directory,
            FoundKind::File => {
                let shared = treatment.hardlinks == Keep::Keep && found.shared;
                EntryKind::File(FileEntry {
                    content: Content::on_disk(
                        self.directory_of(&path),
                        name_of(&path),
                        found.stamp,
                    ),
                    modified: Some(found.stamp.modified.seconds),
                    group: shared.then(|| {
                        Box::new(LinkGroup {
                            device: found.stamp.device,
                            inode: found.stamp.inode,
                            member: 0,
                        })
                    }),
                })
            }
            FoundKind::Symlink(target) => EntryKind::Symlink(target.into()),
            FoundKind::Socket => {
                self.notices.push(Notice::SocketSkipped { path });
                return Ok(None);
            }
            FoundKind::Fifo => return Err(ScanError::Special { path, kind: "FIFO" }),
            FoundKind::Device => {
                let kind = "device";
                return Err(ScanError::Special { path, kind });
            }
        };
        let mut attributes = treatment.attributes(&kind, found.mode, found.uid, found.gid);
        attributes.xattrs = xattrs;
        Ok(Some(Entry { kind, attributes }))
    }
}

fn name_of(path: &Path) -> &OsStr {
    path.file_name().unwrap_or_default()
}

fn reserved(path: &Path, source: ReservedName) -> ScanError {
    ScanError::Reserved {
        path: path.to_owned(),
        source,
    }
}

/// The attribute's value, `None` when the file or its file system has none of that name.
fn read_xattr(path: &Path, name: &str) -> Result<Option<Vec<u8>>, ScanError> {
    let failed = |error: Errno| ScanError::Xattr {
        path: path.to_owned(),
        name: readable(name.as_bytes()),
        source: error.into(),
    };
    // Linux keeps values to 64 KiB, so one buffer is always enough.
    let mut value = vec![0; 64 << 10];
    match rustix::fs::lgetxattr(path, OsStr::new(name), value.as_mut_slice()) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}
