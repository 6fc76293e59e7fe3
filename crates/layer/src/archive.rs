//! Existing archives as a source of files, and as layers to learn symlinks from.
//!
//! An archive gives its contents in its own order and a layer wants them in another, so contents
//! are spooled to a file in a scratch directory, unless the archive is an uncompressed file, which
//! can be read at any place. Memory holds the members' metadata and never their content.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::compression::Compression;
use crate::content::{Content, Range, Spool, Stamp};
use crate::entry::{Entry, EntryKind, FileEntry, Keep, LinkGroup, Treatment};
use crate::links::{LinkChange, LinkLoop, LinkRecord};
use crate::member::{Limits, Member, MemberKind, Strictness, TarError, Walker};
use crate::notice::Notice;
use crate::path::{BadPath, Destination, EntryPath, LONGEST_PATH, shortened};
use crate::pattern::Matcher;
use crate::seen::{Seen, Standing, Stands};
use crate::spool::SpoolWriter;
use crate::tree::{ReservedName, Tree};
use crate::whiteout::Marker;
use crate::zip::ZipError;

/// What of an archive is added, and where.
#[derive(Debug, Clone, Copy)]
pub struct ArchiveAdd<'a> {
    /// The directory that the archive's root becomes.
    pub destination: &'a Destination,
    /// Members that are left out, anchored at the archive's root.
    pub exclude: Option<&'a Matcher>,
    /// When given, only these members and the directories above them are taken.
    pub include: Option<&'a Matcher>,
    /// What of the members' metadata is kept.
    pub treatment: &'a Treatment,
    /// Where contents are kept until the layer is sealed. The files there have no name, so they
    /// vanish with the process.
    pub scratch: &'a Path,
    /// What the archive may hold at most.
    pub limits: Limits,
}

/// Why an archive could not be added. The tree is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file could not be opened.
    #[error("could not open `{path}`", path = path.display())]
    Open {
        /// The archive.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not an acceptable archive.
    #[error("could not add the archive `{path}`", path = path.display())]
    Tar {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        source: TarError,
    },
    /// It is not an acceptable zip.
    #[error("could not add the archive `{path}`", path = path.display())]
    Zip {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        source: ZipError,
    },
    /// Somebody wrote to it meanwhile.
    #[error("`{path}` changed while it was read", path = path.display())]
    Changed {
        /// The archive.
        path: PathBuf,
    },
    /// The destination is named like a deletion.
    #[error("could not add the archive `{path}`", path = path.display())]
    Reserved {
        /// The archive.
        path: PathBuf,
        /// The name.
        source: ReservedName,
    },
}

/// Adds the members of the archive at `path`: plain, gzip or Zstandard, told by its first bytes.
///
/// The archive is read as hostile input: names that leave the root, hidden or contradictory
/// headers, members behind symlinks, devices and archives without an end are refused, and nothing
/// of a refused archive is added. Hardlinks become files of their own unless they are kept, and of
/// two members with one name the later counts. Until the layer is sealed, an uncompressed archive
/// must not change; if it does, sealing says so.
///
/// Gives the stamp of the file that was read, which may have got another name since somebody looked
/// at `path`.
pub fn add_archive(
    path: &Path,
    add: &ArchiveAdd<'_>,
    tree: &mut Tree,
    notices: &mut Vec<Notice>,
) -> Result<Stamp, ArchiveError> {
    let open_error = |source| ArchiveError::Open {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(open_error)?;
    let metadata = file.metadata().map_err(open_error)?;
    let again = file.try_clone().map_err(open_error)?;
    let stamp = Stamp::of(&metadata);
    let (compression, archive) =
        Compression::detect_and_decode(file).map_err(|source| ArchiveError::Tar {
            path: path.to_owned(),
            source: TarError::from_read(source),
        })?;
    if compression == Compression::None && metadata.is_file() {
        let spool = Spool::shared(again, path.to_owned(), stamp);
        let identity = (metadata.dev(), metadata.ino());
        take_in(
            path,
            archive,
            Store::InPlace { spool, identity },
            add,
            tree,
            notices,
        )?;
    } else {
        add_spooled(path, archive, add, tree, notices)?;
        let now = again.metadata().map_err(open_error)?;
        if metadata.is_file() && !Stamp::of(&now).has_content_of(&stamp) {
            return Err(ArchiveError::Changed {
                path: path.to_owned(),
            });
        }
    }
    Ok(stamp)
}

/// Adds the members of an archive that comes as a stream, such as one inside another file or from
/// standard input; `name` is what errors call it. See [`add_archive`].
pub fn add_archive_stream<R: Read + Send>(
    name: &Path,
    archive: R,
    add: &ArchiveAdd<'_>,
    tree: &mut Tree,
    notices: &mut Vec<Notice>,
) -> Result<(), ArchiveError> {
    let (_, archive) =
        Compression::detect_and_decode(archive).map_err(|source| ArchiveError::Tar {
            path: name.to_owned(),
            source: TarError::from_read(source),
        })?;
    add_spooled(name, archive, add, tree, notices)
}

fn add_spooled(
    name: &Path,
    archive: impl Read,
    add: &ArchiveAdd<'_>,
    tree: &mut Tree,
    notices: &mut Vec<Notice>,
) -> Result<(), ArchiveError> {
    let store = Store::spooled(add.scratch).map_err(|source| ArchiveError::Tar {
        path: name.to_owned(),
        source,
    })?;
    take_in(name, archive, store, add, tree, notices)
}

fn take_in(
    name: &Path,
    archive: impl Read,
    store: Store,
    add: &ArchiveAdd<'_>,
    tree: &mut Tree,
    notices: &mut Vec<Notice>,
) -> Result<(), ArchiveError> {
    let mut members = Members {
        add,
        store,
        tree: Tree::new(),
        seen: Seen::new(),
        notices: Vec::new(),
        taken: 0,
    };
    members.read(archive).map_err(|problem| match problem {
        Problem::Tar(source) => ArchiveError::Tar {
            path: name.to_owned(),
            source,
        },
        Problem::Reserved(source) => ArchiveError::Reserved {
            path: name.to_owned(),
            source,
        },
    })?;
    notices.append(&mut members.notices);
    if members.taken == 0 {
        notices.push(Notice::NothingAdded {
            source: name.to_owned(),
        });
    }
    tree.merge(members.tree, notices);
    Ok(())
}

impl Stands for Entry {
    fn standing(&self) -> Standing {
        match self.kind {
            EntryKind::Directory => Standing::Directory,
            EntryKind::Symlink(_) => Standing::Symlink,
            _ => Standing::Other,
        }
    }
}

enum Problem {
    Tar(TarError),
    Reserved(ReservedName),
}

impl From<TarError> for Problem {
    fn from(error: TarError) -> Self {
        Self::Tar(error)
    }
}

impl From<ReservedName> for Problem {
    fn from(error: ReservedName) -> Self {
        Self::Reserved(error)
    }
}

/// The state of an archive that is being read.
struct Members<'a> {
    add: &'a ArchiveAdd<'a>,
    store: Store,
    /// What was taken so far, already at its destination. Kept apart from the caller's tree, which
    /// must not hold half of a refused archive.
    tree: Tree,
    /// All members by their path in the archive, excluded ones included: a hardlink may name them,
    /// and a symlink among them still stands in the way of what is behind it.
    seen: Seen<Entry>,
    notices: Vec<Notice>,
    taken: u64,
}

impl Members<'_> {
    fn read(&mut self, archive: impl Read) -> Result<(), Problem> {
        if let Some(destination) = self.add.destination.path() {
            self.tree
                .require_directory(destination, &mut self.notices)?;
        }
        let mut walker = Walker::new(archive, Strictness::Strict, self.add.limits);
        let mut number = 0;
        while let Some(member) = walker.next_member()? {
            number += 1;
            self.take(&member, number, &mut walker)?;
        }
        // Also after the end of the archive: a compressed one has its checksum there.
        walker.finish()?;
        Ok(self.store.close()?)
    }

    fn take(
        &mut self,
        member: &Member,
        number: u64,
        walker: &mut Walker<impl Read>,
    ) -> Result<(), Problem> {
        // The root has its attributes from the base or from whoever made the destination.
        let Some(path) = member.clean_path()? else {
            return match member.kind {
                MemberKind::Directory => Ok(()),
                _ => Err(member.misnamed(BadPath::Empty).into()),
            };
        };
        // A member that is behind a file ends the file, as unpacking tools have it.
        let above = self
            .seen
            .enter(&path, |standing| standing == Standing::Symlink);
        walker.keep(above.map_err(|obstacle| TarError::BehindSymlink {
            member: member.readable_name(),
            link: obstacle.path,
        })?)?;
        match Marker::of(&path) {
            None => {}
            Some(Marker::Driver) => {
                self.notices.push(Notice::MemberSkipped { path });
                return Ok(());
            }
            Some(Marker::Nothing) => {
                let member = member.readable_name();
                return Err(TarError::EmptyWhiteout { member }.into());
            }
            Some(marker) => {
                if member.kind != MemberKind::File {
                    return Err(member.refused("deletion that is no regular file").into());
                }
                let kind = match marker {
                    Marker::Whiteout(_) => EntryKind::Whiteout,
                    _ => EntryKind::OpaqueMarker,
                };
                return self.insert(&path, Entry::marker(kind), walker);
            }
        }
        let entry = self.entry(&path, member, number, walker)?;
        self.insert(&path, entry.clone(), walker)?;
        self.seen.insert(path, entry);
        Ok(())
    }

    fn insert(
        &mut self,
        path: &EntryPath,
        entry: Entry,
        walker: &mut Walker<impl Read>,
    ) -> Result<(), Problem> {
        let excluded = self
            .add
            .exclude
            .is_some_and(|matcher| matcher.is_match(path.as_bytes()));
        let included = self
            .add
            .include
            .is_none_or(|matcher| matcher.is_match(path.as_bytes()));
        if excluded || !included {
            return Ok(());
        }
        let before = self.tree.len();
        // What an include list takes brings the directories above it as the archive has them. What
        // is in the tree has all that is above it there too.
        let missing: Vec<EntryPath> = path
            .ancestors()
            .take_while(|ancestor| self.tree.get(&self.place(ancestor)).is_none())
            .filter(|ancestor| self.seen.get(ancestor).is_some())
            .collect();
        for ancestor in missing.into_iter().rev() {
            if let Some(above) = self.seen.get(&ancestor)
                && above.standing() == Standing::Directory
            {
                let place = self.place(&ancestor);
                self.tree.insert(place, above.clone(), &mut self.notices)?;
            }
        }
        let place = self.place(path);
        if place.as_bytes().len() > LONGEST_PATH {
            let (member, problem) = (shortened(place.as_bytes()), BadPath::Long);
            return Err(TarError::Name { member, problem }.into());
        }
        let length = place.as_bytes().len();
        self.tree.insert(place, entry, &mut self.notices)?;
        self.taken += 1;
        // Each directory that was made on the way has a path of its own, of half that on average.
        let made = self.tree.len().saturating_sub(before + 1);
        Ok(walker.keep((made * length) as u64)?)
    }

    fn place(&self, path: &EntryPath) -> EntryPath {
        EntryPath::under(self.add.destination.path(), path.as_bytes())
            .expect("a path below a path is one")
    }

    fn entry(
        &mut self,
        path: &EntryPath,
        member: &Member,
        number: u64,
        walker: &mut Walker<impl Read>,
    ) -> Result<Entry, TarError> {
        let treatment = self.add.treatment;
        let kind = match &member.kind {
            MemberKind::Directory => EntryKind::Directory,
            MemberKind::Symlink(target) => EntryKind::Symlink(target.as_slice().into()),
            MemberKind::File => {
                let content = self.store.keep(member, walker)?;
                let (device, inode) = self.store.identity();
                let group = (treatment.hardlinks == Keep::Keep).then_some(LinkGroup {
                    device,
                    inode,
                    member: number,
                });
                EntryKind::File(FileEntry {
                    content,
                    modified: Some(member.modified),
                    group: group.map(Box::new),
                })
            }
            MemberKind::Hardlink(target) => {
                let target = member.clean_target(target)?;
                return match self.seen.get(&target) {
                    Some(entry)
                        if target != *path && !matches!(entry.kind, EntryKind::Directory) =>
                    {
                        let xattrs = &entry.attributes.xattrs;
                        let copied = xattrs.iter().map(|(key, value)| key.len() + value.len());
                        walker.keep(copied.sum::<usize>() as u64)?;
                        Ok(entry.clone())
                    }
                    _ => Err(TarError::NoTarget {
                        member: member.readable_name(),
                        target: target.to_string(),
                    }),
                };
            }
            refused => return Err(member.refused(refused.noun())),
        };
        let mut attributes = treatment.attributes(&kind, member.mode, member.uid, member.gid);
        for name in &treatment.xattrs {
            if let Some(value) = walker.xattr(member, name).map(<[u8]>::to_vec) {
                walker.keep((name.len() + value.len()) as u64)?;
                attributes.xattrs.insert(name.clone().into_bytes(), value);
            }
        }
        Ok(Entry { kind, attributes })
    }
}

/// Where the contents of members are until they are needed.
enum Store {
    /// Where they are already.
    InPlace {
        spool: Arc<Spool>,
        identity: (u64, u64),
    },
    /// In a nameless file.
    Spooled(SpoolWriter),
}

impl Store {
    fn spooled(directory: &Path) -> Result<Self, TarError> {
        SpoolWriter::new(directory)
            .map(Self::Spooled)
            .map_err(|source| spool_error(directory, source))
    }

    fn identity(&self) -> (u64, u64) {
        match self {
            Self::InPlace { identity, .. } => *identity,
            Self::Spooled(spool) => spool.identity(),
        }
    }

    fn keep(
        &mut self,
        member: &Member,
        walker: &mut Walker<impl Read>,
    ) -> Result<Content, TarError> {
        match self {
            Self::InPlace { spool, .. } => Ok(Content::Range(Range {
                spool: Arc::clone(spool),
                offset: member.offset,
                length: member.size,
            })),
            Self::Spooled(spool) => {
                let start = spool.length();
                let mut buffer = [0; 16 << 10];
                loop {
                    let read = walker.read_content(&mut buffer)?;
                    if read == 0 {
                        return Ok(spool.content_since(start));
                    }
                    spool
                        .write(&buffer[..read])
                        .map_err(|source| spool_error(spool.directory(), source))?;
                }
            }
        }
    }

    /// Makes everything that was kept readable.
    fn close(&mut self) -> Result<(), TarError> {
        match self {
            Self::InPlace { .. } => Ok(()),
            Self::Spooled(spool) => spool
                .close()
                .map_err(|source| spool_error(spool.directory(), source)),
        }
    }
}

fn spool_error(directory: &Path, source: io::Error) -> TarError {
    TarError::Spool {
        directory: directory.display().to_string(),
        source,
    }
}

/// Why the symlinks of a layer could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadLinksError {
    /// The layer is not an archive that can be read.
    #[error("could not read a layer of the base image")]
    Tar(#[source] TarError),
    /// The layer's paths go round in circles.
    #[error("could not follow a path of the base image")]
    Links(#[source] LinkLoop),
}

/// Walks over the headers of a layer of an existing image and gives `take` what each entry means
/// for symlinks, in order; contents are read past and nothing is kept.
///
/// The layer is read as runtimes read it: what they skip is skipped, so is what no file system can
/// have for its length, and only what nobody can read is an error. It is read to its last byte, so that a reader that verifies a digest has seen them
/// all. Give the records to [`crate::BaseLinks::apply`], or keep those that the
/// caller needs.
pub fn read_links<R: Read + Send>(
    layer: R,
    compression: Compression,
    limits: Limits,
    mut take: impl FnMut(LinkRecord) -> Result<(), LinkLoop>,
) -> Result<(), ReadLinksError> {
    let archive = compression
        .decode(layer)
        .map_err(|source| ReadLinksError::Tar(TarError::from_read(source)))?;
    let mut walker = Walker::new(archive, Strictness::AsRuntimes, limits);
    while let Some(member) = walker.next_member().map_err(ReadLinksError::Tar)? {
        if let Some(record) = record_of(&member) {
            take(record).map_err(ReadLinksError::Links)?;
        }
    }
    walker.finish().map(drop).map_err(ReadLinksError::Tar)
}

fn record_of(member: &Member) -> Option<LinkRecord> {
    // Runtimes take absolute names as relative to the root and never leave it.
    let name = &member.name;
    let relative = &name[name.iter().take_while(|&&byte| byte == b'/').count()..];
    let path = EntryPath::clean(relative).ok().flatten()?;
    if Marker::of(&path).is_some() {
        return LinkRecord::of_marker(&path);
    }
    let change = match &member.kind {
        MemberKind::Symlink(target) if target.len() > LONGEST_PATH => return None,
        MemberKind::Symlink(target) => LinkChange::Symlink(target.as_slice().into()),
        MemberKind::Directory => LinkChange::Directory,
        _ => LinkChange::Other,
    };
    Some(LinkRecord {
        path: Some(path),
        change,
    })
}
