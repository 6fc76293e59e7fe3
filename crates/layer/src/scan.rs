//! Directories and files on disk as a source of entries.
//!
//! Scanning reads names and metadata and opens no file. What it makes of them is the same for
//! everybody who has the same files, whatever their umask, user or clock.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use walkdir::{DirEntry, WalkDir};

use crate::content::{Content, Stamp};
use crate::entry::{Entry, EntryKind, FileEntry, Keep, LinkGroup, Treatment};
use crate::notice::Notice;
use crate::path::{BadPath, Destination, EntryPath, readable};
use crate::pattern::{Matched, Matcher};
use crate::tree::{ReservedName, Tree};

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
    let metadata = fs::metadata(add.source).map_err(|source| ScanError::Read {
        path: add.source.to_owned(),
        source,
    });
    // A link that leads nowhere is taken as the link it is.
    let metadata = match metadata {
        Err(ScanError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            fs::symlink_metadata(add.source).map_err(|source| ScanError::Read {
                path: add.source.to_owned(),
                source,
            })
        }
        metadata => metadata,
    }?;
    let mut scan = Scan {
        add,
        tree,
        notices,
        levels: Vec::new(),
        taken: 0,
    };
    if metadata.is_dir() {
        scan.directory()?;
    } else {
        scan.single(&metadata)?;
    }
    if scan.taken == 0 {
        notices.push(Notice::NothingAdded {
            source: add.source.to_owned(),
        });
    }
    Ok(())
}

/// What is known of a directory on the way down to an entry.
struct Level {
    excluded: Vec<Option<Matched>>,
    included: Option<Matched>,
    /// The directory itself, when it is only taken if something in it is.
    pending: Option<(EntryPath, Entry)>,
}

struct Scan<'a> {
    add: &'a ScanAdd<'a>,
    tree: &'a mut Tree,
    notices: &'a mut Vec<Notice>,
    /// One level for each directory from the source down.
    levels: Vec<Level>,
    taken: u64,
}

impl Scan<'_> {
    fn directory(&mut self) -> Result<(), ScanError> {
        let source = self.add.source;
        if let Some(path) = self.add.destination.path() {
            self.tree
                .require_directory(path, self.notices)
                .map_err(|error| reserved(source, error))?;
        }
        let level = self.source_level();
        if self.is_pruned(&level) {
            return Ok(());
        }
        self.levels.push(level);
        let mut walk = WalkDir::new(source)
            .min_depth(1)
            .follow_links(false)
            .follow_root_links(true)
            .sort_by_file_name()
            .into_iter();
        while let Some(found) = walk.next() {
            let found = found.map_err(|error| read_error(source, error))?;
            if !self.found(&found)? {
                walk.skip_current_dir();
            }
        }
        Ok(())
    }

    /// Takes an entry below the source directory; false for a directory of which nothing is wanted.
    fn found(&mut self, found: &DirEntry) -> Result<bool, ScanError> {
        let metadata = found
            .metadata()
            .map_err(|error| read_error(found.path(), error))?;
        self.levels.truncate(found.depth());
        let mut level = self.level_of(found);
        if self.is_pruned(&level) {
            // Skipping a file would skip what follows it in its directory.
            return Ok(!metadata.is_dir());
        }
        let bad_name = |problem| ScanError::Name {
            path: found.path().to_owned(),
            problem,
        };
        let relative = found
            .path()
            .strip_prefix(self.add.source)
            .unwrap_or(found.path());
        let place = EntryPath::under(self.add.destination.path(), relative.as_os_str().as_bytes())
            .map_err(bad_name)?;
        let directory = metadata.is_dir();
        let wanted = self.is_wanted(&level);
        if (directory || wanted)
            && let Some(entry) = self.entry(found.path(), &metadata)?
        {
            if wanted {
                self.take(found.path(), place, entry)?;
            } else {
                level.pending = Some((place, entry));
            }
        }
        if directory {
            self.levels.push(level);
        }
        Ok(true)
    }

    fn single(&mut self, metadata: &Metadata) -> Result<(), ScanError> {
        let source = self.add.source;
        let level = self.source_level();
        if !self.is_wanted(&level) {
            return Ok(());
        }
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
        // The file that a link leads to is opened where it is, since links are not opened.
        let real = if metadata.is_symlink() {
            source.to_owned()
        } else {
            let read = |error| ScanError::Read {
                path: source.to_owned(),
                source: error,
            };
            fs::canonicalize(source).map_err(read)?
        };
        match self.entry(&real, metadata)? {
            Some(entry) => self.take(source, place, entry),
            None => Ok(()),
        }
    }

    fn take(&mut self, path: &Path, place: EntryPath, entry: Entry) -> Result<(), ScanError> {
        for level in &mut self.levels {
            if let Some((place, entry)) = level.pending.take() {
                self.tree
                    .insert(place, entry, self.notices)
                    .map_err(|error| reserved(path, error))?;
            }
        }
        self.taken += 1;
        self.tree
            .insert(place, entry, self.notices)
            .map_err(|error| reserved(path, error))
    }

    /// The entry for what is at `path`, `None` for a socket.
    fn entry(&mut self, path: &Path, metadata: &Metadata) -> Result<Option<Entry>, ScanError> {
        let treatment = self.add.treatment;
        let file_type = metadata.file_type();
        let kind = if file_type.is_dir() {
            EntryKind::Directory
        } else if file_type.is_file() {
            let shared = treatment.hardlinks == Keep::Keep && metadata.nlink() > 1;
            EntryKind::File(FileEntry {
                content: Content::on_disk(path, Stamp::of(metadata)),
                modified: Some(metadata.mtime()),
                group: shared.then_some(LinkGroup {
                    device: metadata.dev(),
                    inode: metadata.ino(),
                    member: 0,
                }),
            })
        } else if file_type.is_symlink() {
            let target = fs::read_link(path).map_err(|source| ScanError::Read {
                path: path.to_owned(),
                source,
            })?;
            EntryKind::Symlink(target.as_os_str().as_bytes().into())
        } else if file_type.is_socket() {
            self.notices.push(Notice::SocketSkipped {
                path: path.to_owned(),
            });
            return Ok(None);
        } else {
            let kind = if file_type.is_fifo() {
                "FIFO"
            } else {
                "device"
            };
            return Err(ScanError::Special {
                path: path.to_owned(),
                kind,
            });
        };
        let mut attributes =
            treatment.attributes(&kind, metadata.mode(), metadata.uid(), metadata.gid());
        for name in &treatment.xattrs {
            if let Some(value) = read_xattr(path, name)? {
                attributes.xattrs.insert(name.clone().into_bytes(), value);
            }
        }
        Ok(Some(Entry { kind, attributes }))
    }

    fn source_level(&self) -> Level {
        let matched = |anchored: &Anchored<'_>| {
            let relative = self.add.source.strip_prefix(anchored.root).ok()?;
            Some(match relative.as_os_str().as_bytes() {
                b"" => Matched::default(),
                relative => anchored.matcher.matched(relative),
            })
        };
        Level {
            excluded: self.add.exclude.iter().map(matched).collect(),
            included: self.add.include.as_ref().and_then(matched),
            pending: None,
        }
    }

    fn level_of(&self, found: &DirEntry) -> Level {
        let parent = self.levels.last();
        let matched = |anchored: &Anchored<'_>, parent: Option<&Matched>| {
            let relative = found.path().strip_prefix(anchored.root).ok()?;
            Some(
                anchored
                    .matcher
                    .matched_in(parent?, relative.as_os_str().as_bytes()),
            )
        };
        let excluded = self
            .add
            .exclude
            .iter()
            .enumerate()
            .map(|(index, anchored)| {
                matched(
                    anchored,
                    parent.and_then(|parent| parent.excluded[index].as_ref()),
                )
            })
            .collect();
        let included = self
            .add
            .include
            .as_ref()
            .and_then(|anchored| matched(anchored, parent?.included.as_ref()));
        Level {
            excluded,
            included,
            pending: None,
        }
    }

    fn is_wanted(&self, level: &Level) -> bool {
        let is_match = |matched: &Matched| matched.is_match();
        let excluded = level.excluded.iter().flatten().any(is_match);
        !excluded && (self.add.include.is_none() || level.included.as_ref().is_some_and(is_match))
    }

    /// Whether neither the entry nor anything in it can be wanted.
    fn is_pruned(&self, level: &Level) -> bool {
        self.add
            .exclude
            .iter()
            .zip(&level.excluded)
            .any(|(anchored, matched)| {
                matched.as_ref().is_some_and(Matched::is_match) && !anchored.matcher.reincludes()
            })
    }
}

fn reserved(path: &Path, source: ReservedName) -> ScanError {
    ScanError::Reserved {
        path: path.to_owned(),
        source,
    }
}

fn read_error(path: &Path, error: walkdir::Error) -> ScanError {
    let path = error.path().unwrap_or(path).to_owned();
    let source = error
        .into_io_error()
        .unwrap_or_else(|| io::Error::other("the directory contains itself"));
    ScanError::Read { path, source }
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
