//! Zips as a source of files.
//!
//! A zip says everything twice, in a header before each member and in a directory at its end, and
//! where readers believe different ones, something can be hidden from one of them. `rawzip` reads
//! both; here they must agree, no byte may belong to two members, and no two members to one path;
//! so what comes out depends neither on the order of the members nor on the program that wrote
//! them.
//!
//! The members' order in the file is that in which they are read, once; contents are kept in a
//! nameless file until the layer is sealed, and memory holds names and numbers alone.

mod directory;
mod member;
mod problem;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use crate::archive::{ArchiveAdd, ArchiveError};
use crate::content::{Content, Stamp};
use crate::entry::{DIRECTORY_MODE, EXECUTABLE_MODE, Entry, EntryKind, FILE_MODE, FileEntry};
use crate::member::{MOST_METADATA, bad_symlink_target};
use crate::notice::Notice;
use crate::path::{BadPath, EntryPath, LONGEST_PATH, shortened};
use crate::seen::{Seen, Standing};
use crate::spool::SpoolWriter;
use crate::tree::{ReservedName, Tree};

use directory::{Archive, Zip, read_members};
use member::{Member, MemberKind};

pub use problem::{BadZipName, ZipError};

/// Adds the members of the zip at `path`, which must be a regular file.
///
/// It is read as hostile input: names that leave the root, that lie behind a symlink or that are
/// there twice, headers that contradict the directory, data that overlap, sizes and checksums that
/// are wrong, encryption, and compression other than deflate are refused, and nothing of a refused
/// zip is added. Modes count where a Unix system wrote them. In a zip that has none at all, files
/// that begin as programs do are executable, and a notice says so.
///
/// Gives the stamp of the file that was read.
pub fn add_zip(
    path: &Path,
    add: &ArchiveAdd<'_>,
    tree: &mut Tree,
    notices: &mut Vec<Notice>,
) -> Result<Stamp, ArchiveError> {
    let open_error = |source| ArchiveError::Open {
        path: path.to_owned(),
        source,
    };
    // Nobody may ever write to a FIFO.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(open_error)?;
    let metadata = file.metadata().map_err(open_error)?;
    let refused = |source| ArchiveError::Zip {
        path: path.to_owned(),
        source,
    };
    if !metadata.is_file() {
        return Err(refused(ZipError::NotAFile));
    }
    let stamp = Stamp::of(&metadata);
    let taken = take_in(path, &file, stamp.size, add);
    // What is wrong with something that changed meanwhile is nothing to tell anybody.
    let now = file.metadata().map_err(open_error)?;
    if !Stamp::of(&now).has_content_of(&stamp) {
        return Err(ArchiveError::Changed {
            path: path.to_owned(),
        });
    }
    let mut taken = taken.map_err(|problem| match problem {
        Problem::Zip(source) => refused(source),
        Problem::Reserved(source) => ArchiveError::Reserved {
            path: path.to_owned(),
            source,
        },
    })?;
    notices.append(&mut taken.notices);
    tree.merge(taken.tree, notices);
    Ok(stamp)
}

enum Problem {
    Zip(ZipError),
    Reserved(ReservedName),
}

impl From<ZipError> for Problem {
    fn from(error: ZipError) -> Self {
        Self::Zip(error)
    }
}

impl From<ReservedName> for Problem {
    fn from(error: ReservedName) -> Self {
        Self::Reserved(error)
    }
}

/// What was taken of a zip, apart from the caller's tree, which must not hold half of a refused
/// one.
struct Taken {
    tree: Tree,
    notices: Vec<Notice>,
}

fn take_in(name: &Path, file: &File, size: u64, add: &ArchiveAdd<'_>) -> Result<Taken, Problem> {
    let (zip, mut members) = read_members(Archive::new(file, size), add.limits)?;
    check_paths(&mut members)?;
    bound_data(&mut members);

    // Not in the order of the paths: on a disk it is dear to go back and forth.
    let mut spool = SpoolWriter::new(add.scratch).map_err(|source| spool_error(add, source))?;
    let mut entries = BTreeMap::new();
    let mut programs = Vec::new();
    for member in &members {
        let place = member.path.as_ref().filter(|path| is_wanted(path, add));
        let read = read(member, &zip, add, &mut spool, place.is_some())?;
        let Some(path) = &member.path else { continue };
        // Directories that are not wanted may stand above something that is.
        if place.is_some() || member.kind == MemberKind::Directory {
            if read.begins_like_a_program && member.mode.is_none() {
                programs.push(path.clone());
            }
            entries.insert(path.clone(), read.entry);
        }
    }
    spool.close().map_err(|source| spool_error(add, source))?;
    // Some programs write the modes of executables only.
    if members.iter().any(|member| member.mode.is_some()) {
        programs.clear();
    }
    for path in &programs {
        if let Some(entry) = entries.get_mut(path) {
            entry.attributes.mode = EXECUTABLE_MODE;
        }
    }
    let mut taken = plant(name, &entries, add)?;
    if let Some(first) = programs.into_iter().min() {
        taken.notices.push(Notice::ModesGuessed {
            archive: name.to_owned(),
            first,
        });
    }
    Ok(taken)
}

fn spool_error(add: &ArchiveAdd<'_>, source: std::io::Error) -> ZipError {
    ZipError::Spool {
        directory: add.scratch.display().to_string(),
        source,
    }
}

/// Puts the members in the order of their paths, and refuses those that are there twice or lie
/// where nothing can lie.
fn check_paths(members: &mut Vec<Member>) -> Result<(), ZipError> {
    members.sort_by(|one, other| one.path.cmp(&other.path));
    for pair in members.windows(2) {
        if let [one, other] = pair
            && one.path == other.path
        {
            // Tools that merge zips leave a directory as often as they found it.
            let same = one.kind == MemberKind::Directory
                && other.kind == MemberKind::Directory
                && one.mode == other.mode;
            if let (false, Some(path)) = (same, &one.path) {
                let member = path.clone();
                return Err(ZipError::Duplicate { member });
            }
        }
    }
    // A directory comes before what it holds, so one look at each member is enough.
    let mut seen = Seen::new();
    let mut kept = 0;
    for member in members {
        let Some(path) = &member.path else { continue };
        let above = seen.enter(path, |standing| standing != Standing::Directory);
        kept += above.map_err(|obstacle| {
            let member = path.clone();
            match obstacle.standing {
                Standing::Symlink => ZipError::BehindSymlink {
                    member,
                    link: obstacle.path,
                },
                _ => ZipError::BehindFile {
                    member,
                    file: obstacle.path,
                },
            }
        })?;
        within_memory(kept)?;
        let standing = match member.kind {
            MemberKind::Directory => Standing::Directory,
            MemberKind::Symlink => Standing::Symlink,
            MemberKind::File => Standing::Other,
        };
        seen.insert(path.clone(), standing);
    }
    Ok(())
}

fn within_memory(kept: u64) -> Result<(), ZipError> {
    if kept > MOST_METADATA {
        return Err(ZipError::TooLarge {
            limit: MOST_METADATA,
            unit: "bytes of names and attributes",
        });
    }
    Ok(())
}

/// Puts the members in the order of their data, and lets none reach into the next.
fn bound_data(members: &mut [Member]) {
    members.sort_by_key(|member| member.offset);
    let mut end = None;
    for member in members.iter_mut().rev() {
        member.end = end.unwrap_or(member.end);
        end = Some(member.offset);
    }
}

fn is_wanted(path: &EntryPath, add: &ArchiveAdd<'_>) -> bool {
    let path = path.as_bytes();
    let excluded = add.exclude.is_some_and(|matcher| matcher.is_match(path));
    !excluded && add.include.is_none_or(|matcher| matcher.is_match(path))
}

/// A member that was read.
struct Read {
    entry: Entry,
    begins_like_a_program: bool,
}

/// Reads a member to its last byte, also one that is not wanted: whether a zip is good does not
/// depend on what is taken of it.
fn read(
    member: &Member,
    zip: &Zip<'_>,
    add: &ArchiveAdd<'_>,
    spool: &mut SpoolWriter,
    wanted: bool,
) -> Result<Read, ZipError> {
    let data = member.locate(zip)?;
    let start = spool.length();
    let mut head = Vec::new();
    let most = match member.kind {
        MemberKind::Symlink if member.size() > LONGEST_PATH as u64 => {
            return Err(ZipError::Target {
                member: member.readable_name(),
                target: "…".to_owned(),
                problem: BadPath::Long,
            });
        }
        MemberKind::Symlink => LONGEST_PATH,
        _ => PROGRAM.len(),
    };
    member.read_content(&data, |piece| {
        head.extend_from_slice(&piece[..piece.len().min(most - head.len())]);
        if wanted && member.kind == MemberKind::File {
            let written = spool.write(piece);
            written.map_err(|source| spool_error(add, source))?;
        }
        Ok(())
    })?;
    let (kind, mode) = match member.kind {
        MemberKind::Directory => (EntryKind::Directory, DIRECTORY_MODE),
        MemberKind::File => {
            let content = if wanted {
                spool.content_since(start)
            } else {
                Content::bytes([])
            };
            let file = FileEntry {
                content,
                modified: member.modified,
                group: None,
            };
            (EntryKind::File(file), FILE_MODE)
        }
        MemberKind::Symlink => {
            if let Some(problem) = bad_symlink_target(&head) {
                return Err(ZipError::Target {
                    member: member.readable_name(),
                    target: shortened(&head),
                    problem,
                });
            }
            (EntryKind::Symlink(head.as_slice().into()), FILE_MODE)
        }
    };
    let mode = member.mode.unwrap_or(mode);
    Ok(Read {
        begins_like_a_program: member.kind == MemberKind::File
            && (head.starts_with(b"#!") || head.starts_with(PROGRAM)),
        entry: Entry {
            attributes: add.treatment.attributes(&kind, mode, 0, 0),
            kind,
        },
    })
}

/// How an ELF file begins.
const PROGRAM: &[u8] = b"\x7fELF";

/// Makes a tree of what was read, at its destination.
fn plant(
    name: &Path,
    entries: &BTreeMap<EntryPath, Entry>,
    add: &ArchiveAdd<'_>,
) -> Result<Taken, Problem> {
    let mut tree = Tree::new();
    let mut notices = Vec::new();
    let destination = add.destination.path();
    if let Some(destination) = destination {
        tree.require_directory(destination, &mut notices)?;
    }
    let mut nothing = true;
    let mut kept = 0;
    for (path, entry) in entries {
        if !is_wanted(path, add) {
            continue;
        }
        nothing = false;
        let place = |path: &EntryPath| {
            EntryPath::under(destination, path.as_bytes()).expect("a path below a path is one")
        };
        // What an include list takes brings the directories above it as the zip has them. What is
        // in the tree has all that is above it there too.
        let missing: Vec<EntryPath> = path
            .ancestors()
            .take_while(|ancestor| tree.get(&place(ancestor)).is_none())
            .collect();
        let length = place(path).as_bytes().len();
        if length > LONGEST_PATH {
            return Err(Problem::Zip(ZipError::Name {
                member: shortened(path.as_bytes()),
                problem: BadPath::Long.into(),
            }));
        }
        // Each of them has a path of its own, of half that on average.
        kept += (missing.len() * length) as u64;
        within_memory(kept)?;
        for ancestor in missing.iter().rev() {
            if let Some(above) = entries.get(ancestor) {
                tree.insert(place(ancestor), above.clone(), &mut notices)?;
            }
        }
        tree.insert(place(path), entry.clone(), &mut notices)?;
    }
    if nothing {
        notices.push(Notice::NothingAdded {
            source: name.to_owned(),
        });
    }
    Ok(Taken { tree, notices })
}
