//! Lists what is in a source, with several threads.
//!
//! A build in which nothing changed reads no file: looking at every name is all that is left of it,
//! so that is what its time is.
//!
//! Directories are listed by whichever thread is free, each through a descriptor of its own, relative
//! to which names are looked at; a directory with very many names is shared out. Beside the source no
//! more directories are open at a time than there are threads, however deep it is. What comes out is
//! in one order whatever the threads did.
//!
//! `walkdir` is the usual way to do this; it goes by whole paths, on one thread, and gives each entry
//! memory of its own. With everything in the page cache (two processors, AMD EPYC, Linux 6.18, ext4;
//! best of nine rounds of `examples/walking.rs`):
//!
//! | entries | `walkdir`, sorted, with metadata | this, one thread | two threads |
//! |---|---|---|---|
//! | 77,357, a `node_modules` | 253 ms | 141 ms | 73 ms |
//! | 13,609, installed wheels | 46 ms | 33 ms | 19 ms |
//!
//! Of the time with one thread the system itself takes 86 %.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat, lstat, openat, openat2,
    readlinkat, stat, statat,
};
use rustix::io::{Errno, retry_on_intr};

use crate::content::Stamp;
use crate::entry::Keep;
use crate::path::LONGEST_PATH;
use crate::scan::{ScanAdd, ScanError};
use crate::select::{Level, Selection, Verdict};

/// Names of one directory that a thread looks at before another may take over the next: one or two
/// milliseconds' work, so that no thread has nothing to do for longer.
const SHARE: usize = 1024;

/// Tasks that must be waiting for each thread before one more is started. A start takes as long as
/// looking at some forty names, and small sources should not pay it.
const BACKLOG: usize = 4;

/// How many bytes of names are asked of the system at a time: as many as the C library asks for.
const NAMES: usize = 32 << 10;

/// How a directory is opened.
const LISTED: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// What is wanted of a source, as it was found: metadata alone, no file was opened.
#[derive(Debug)]
pub struct Walked {
    /// Where the source really is when it is a single thing and not a directory.
    pub(crate) single: Option<PathBuf>,
    /// Whether hardlinks are kept.
    pub(crate) hardlinks: bool,
    /// Whether extended attributes are kept.
    pub(crate) xattrs: bool,
    /// In the order of directory and share.
    parts: Vec<Part>,
    /// What is known of each directory, by its number. The source is the first, and every directory
    /// has a greater number than the one that it is in.
    directories: Vec<Holding>,
}

#[derive(Debug, Clone, Copy)]
struct Holding {
    /// Its first part.
    part: usize,
    /// Whether there is anything in it that is wanted.
    wanted: bool,
}

/// Some of the names of a directory and what is known of them, in order.
#[derive(Debug)]
struct Part {
    directory: usize,
    share: usize,
    /// The names, and after that of a symlink what it points to.
    text: Vec<u8>,
    entries: Vec<Looked>,
}

#[derive(Debug)]
struct Looked {
    name_end: usize,
    target_end: usize,
    /// The number of the directory that this is.
    inside: Option<usize>,
    wanted: bool,
    status: Status,
}

/// What the system tells of a name without opening it.
#[derive(Debug, Clone, Copy)]
struct Status {
    file_type: FileType,
    stamp: Stamp,
    mode: u32,
    uid: u32,
    gid: u32,
    shared: bool,
}

/// One entry of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found<'w> {
    /// Its path in the source; nothing when it is the source.
    pub path: &'w [u8],
    /// Whether it is wanted for itself, and not only for what is in it.
    pub wanted: bool,
    /// What it is.
    pub kind: FoundKind<'w>,
    /// Which state of it this is.
    pub stamp: Stamp,
    /// The low twelve bits of the mode.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Whether it has other names, as most directories have.
    pub shared: bool,
}

/// The kinds of things that have names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundKind<'w> {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symlink to these bytes.
    Symlink(&'w [u8]),
    /// A socket.
    Socket,
    /// A FIFO.
    Fifo,
    /// A device, or something that Linux got later.
    Device,
}

impl Walked {
    /// What was found: depth first, each directory before what is in it, and the names in a
    /// directory in the order of their bytes.
    ///
    /// A directory that is not wanted for itself is there when something in it is.
    pub fn entries(&self) -> Entries<'_> {
        Entries {
            walked: self,
            above: vec![Place {
                directory: 0,
                part: 0,
                entry: 0,
                path_length: 0,
            }],
            path: Vec::new(),
        }
    }

    fn new(
        add: &ScanAdd<'_>,
        single: Option<PathBuf>,
        mut parts: Vec<Part>,
        directories: usize,
    ) -> Self {
        parts.sort_unstable_by_key(|part| (part.directory, part.share));
        let nothing = Holding {
            part: parts.len(),
            wanted: false,
        };
        let mut directories = vec![nothing; directories];
        // What is in a directory comes after it, so backwards its worth is known before.
        for (index, part) in parts.iter().enumerate().rev() {
            let holds = |inside: usize| directories[inside].wanted;
            let wanted = part
                .entries
                .iter()
                .any(|entry| entry.wanted || entry.inside.is_some_and(holds));
            let holding = &mut directories[part.directory];
            holding.part = index;
            holding.wanted |= wanted;
        }
        Self {
            single,
            hardlinks: add.treatment.hardlinks == Keep::Keep,
            xattrs: !add.treatment.xattrs.is_empty(),
            parts,
            directories,
        }
    }
}

/// The entries of a [`Walked`], one after the other.
#[derive(Debug)]
pub struct Entries<'w> {
    walked: &'w Walked,
    /// Where in each directory on the way the next entry is.
    above: Vec<Place>,
    path: Vec<u8>,
}

#[derive(Debug)]
struct Place {
    directory: usize,
    part: usize,
    entry: usize,
    /// How long the path of the directory is.
    path_length: usize,
}

impl Entries<'_> {
    /// The next entry, which can be held until the one after it is asked for.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator cannot lend what it holds, and a path of its own for each entry is slow"
    )]
    pub fn next(&mut self) -> Option<Found<'_>> {
        let Walked {
            parts, directories, ..
        } = self.walked;
        let (part, entry, name_start) = loop {
            let place = self.above.last_mut()?;
            let part = parts.get(place.part);
            let Some(part) = part.filter(|part| part.directory == place.directory) else {
                self.above.pop();
                continue;
            };
            let Some(entry) = part.entries.get(place.entry) else {
                place.part += 1;
                place.entry = 0;
                continue;
            };
            let before = place.entry.checked_sub(1).map(|at| &part.entries[at]);
            place.entry += 1;
            let holds = |inside: usize| directories[inside].wanted;
            if entry.wanted || entry.inside.is_some_and(holds) {
                self.path.truncate(place.path_length);
                break (part, entry, before.map_or(0, |before| before.target_end));
            }
        };
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path
            .extend_from_slice(&part.text[name_start..entry.name_end]);
        if let Some(directory) = entry.inside {
            self.above.push(Place {
                directory,
                part: directories[directory].part,
                entry: 0,
                path_length: self.path.len(),
            });
        }
        let status = &entry.status;
        Some(Found {
            path: &self.path,
            wanted: entry.wanted,
            kind: match status.file_type {
                FileType::Directory => FoundKind::Directory,
                FileType::RegularFile => FoundKind::File,
                FileType::Symlink => {
                    FoundKind::Symlink(&part.text[entry.name_end..entry.target_end])
                }
                FileType::Socket => FoundKind::Socket,
                FileType::Fifo => FoundKind::Fifo,
                _ => FoundKind::Device,
            },
            stamp: status.stamp,
            mode: status.mode,
            uid: status.uid,
            gid: status.gid,
            shared: status.shared,
        })
    }
}

/// Looks at everything that is wanted of a source: the first half of [`scan`](crate::scan()), for
/// which no tree is needed.
///
/// What is excluded is not looked at. When the source is a symlink, what it leads to was meant;
/// symlinks inside are never followed, and one that takes the place of a directory meanwhile is an
/// error. Of several errors the first in the order of the entries is returned.
pub fn walk(add: &ScanAdd<'_>) -> Result<Walked, ScanError> {
    let failed = |error: io::Error| ScanError::Read {
        path: add.source.to_owned(),
        source: error,
    };
    let status = match stat(add.source) {
        // A link that leads nowhere is taken as the link it is.
        Err(Errno::NOENT) => lstat(add.source),
        status => status,
    };
    let status = Status::of(&status.map_err(|error| failed(error.into()))?);
    let selection = Selection::new(add.source, add.exclude, add.include);
    let (verdict, level) = selection.source();
    if status.file_type == FileType::Directory {
        return match verdict {
            Verdict::Pruned => Ok(Walked::new(add, None, Vec::new(), 1)),
            Verdict::Wanted | Verdict::Unwanted => walk_directory(add, &selection, level),
        };
    }
    if verdict != Verdict::Wanted {
        return Ok(Walked::new(add, Some(add.source.to_owned()), Vec::new(), 1));
    }
    let (real, target) = if status.file_type == FileType::Symlink {
        let target = fs::read_link(add.source).map_err(failed)?;
        (
            add.source.to_owned(),
            target.into_os_string().into_encoded_bytes(),
        )
    } else {
        // The file that a link leads to is opened where it is, since links are not opened.
        (fs::canonicalize(add.source).map_err(failed)?, Vec::new())
    };
    let only = Part {
        directory: 0,
        share: 0,
        entries: vec![Looked {
            name_end: 0,
            target_end: target.len(),
            inside: None,
            wanted: true,
            status,
        }],
        text: target,
    };
    Ok(Walked::new(add, Some(real), vec![only], 1))
}

fn walk_directory(
    add: &ScanAdd<'_>,
    selection: &Selection<'_>,
    level: Level,
) -> Result<Walked, ScanError> {
    let failed = |path: &[u8], error: Errno| ScanError::Read {
        path: below(add.source, path),
        source: error.into(),
    };
    let root = retry_on_intr(|| openat(CWD, add.source, LISTED, Mode::empty()))
        .map_err(|error| failed(b"", error))?;
    let walk = Walk {
        source: add.source,
        root,
        selection,
        jobs: add.jobs,
        directories: AtomicUsize::new(1),
        queue: Mutex::new(Queue {
            shares: Vec::new(),
            directories: vec![Directory {
                number: 0,
                path: Vec::new(),
                level,
            }],
            working: 0,
            threads: 1,
        }),
        changed: Condvar::new(),
        done: Mutex::new(Done::default()),
    };
    thread::scope(|scope| walk.work(scope));
    let done = walk
        .done
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    match done.failure {
        Some(failure) => Err(failed(&failure.path, failure.error)),
        None => Ok(Walked::new(
            add,
            None,
            done.parts,
            walk.directories.into_inner(),
        )),
    }
}

/// A directory that was found and is to be listed.
struct Directory {
    number: usize,
    /// Its path in the source; nothing for the source itself.
    path: Vec<u8>,
    level: Level,
}

/// A directory that was listed and whose names are looked at.
struct Listing {
    directory: Directory,
    file: OwnedFd,
    text: Vec<u8>,
    /// In the order of their bytes.
    names: Vec<Name>,
}

struct Name {
    bytes: Range<usize>,
    wanted: bool,
}

/// Some of the names of a directory, for one thread.
struct Share {
    number: usize,
    listing: Arc<Listing>,
}

enum Task {
    Look(Share),
    List(Directory),
}

struct Queue {
    /// Done first, so that no more than one directory for each thread is open.
    shares: Vec<Share>,
    /// The last is listed first, so that this grows with the depth of the source and not its size.
    directories: Vec<Directory>,
    /// How many tasks are being done, each of which may bring more.
    working: usize,
    threads: usize,
}

#[derive(Default)]
struct Done {
    parts: Vec<Part>,
    /// The first, in the order of the entries, of those so far.
    failure: Option<Failure>,
}

struct Failure {
    path: Vec<u8>,
    error: Errno,
}

impl Failure {
    fn is_before(&self, other: &Self) -> bool {
        let own = self.path.split(|&byte| byte == b'/');
        own.lt(other.path.split(|&byte| byte == b'/'))
    }
}

struct Walk<'a> {
    source: &'a Path,
    root: OwnedFd,
    selection: &'a Selection<'a>,
    jobs: NonZeroUsize,
    /// How many directories have a number.
    directories: AtomicUsize,
    queue: Mutex<Queue>,
    /// Something was added to the queue, or nothing will be any more.
    changed: Condvar,
    done: Mutex<Done>,
}

/// While this lives, other threads wait for what its task may bring.
struct Turn<'w>(&'w Walk<'w>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        queue.working -= 1;
        if queue.working == 0 {
            self.0.changed.notify_all();
        }
    }
}

impl Walk<'_> {
    /// Does tasks until there are none, and starts another thread when there are many.
    fn work<'scope, 'env>(&'env self, scope: &'scope Scope<'scope, 'env>) {
        let mut parts = Vec::new();
        let mut buffer = Vec::with_capacity(NAMES);
        while let Some(task) = self.next_task() {
            let _turn = Turn(self);
            let share = match task {
                Task::Look(share) => share,
                Task::List(directory) => {
                    let path = directory.path.clone();
                    match self.list(directory, buffer.spare_capacity_mut()) {
                        Ok(share) => share,
                        Err(error) => {
                            self.fail(Failure { path, error });
                            continue;
                        }
                    }
                }
            };
            self.start_another(scope);
            parts.push(self.look(&share));
        }
        self.done().parts.append(&mut parts);
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn done(&self) -> MutexGuard<'_, Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_task(&self) -> Option<Task> {
        let mut queue = self.queue();
        loop {
            let share = queue.shares.pop().map(Task::Look);
            if let Some(task) = share.or_else(|| queue.directories.pop().map(Task::List)) {
                queue.working += 1;
                return Some(task);
            }
            if queue.working == 0 {
                return None;
            }
            let woken = self.changed.wait(queue);
            queue = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn start_another<'scope, 'env>(&'env self, scope: &'scope Scope<'scope, 'env>) {
        let mut queue = self.queue();
        let waiting = queue.shares.len() + queue.directories.len();
        if queue.threads < self.jobs.get() && waiting >= queue.threads * BACKLOG {
            queue.threads += 1;
            // Without it the others have more to do, and that is all.
            let _ = thread::Builder::new().spawn_scoped(scope, || self.work(scope));
        }
    }

    /// Goes on after a failure: only when all else is known is it clear which comes first.
    fn fail(&self, failure: Failure) {
        let mut done = self.done();
        let others = done.failure.as_ref();
        if others.is_none_or(|other| failure.is_before(other)) {
            done.failure = Some(failure);
        }
    }

    /// Reads the names in a directory, queues all but the first of its shares and returns that.
    fn list(&self, directory: Directory, buffer: &mut [MaybeUninit<u8>]) -> Result<Share, Errno> {
        let path = match &directory.path[..] {
            b"" => b".",
            path => path,
        };
        let file = open_below(&self.root, path)?;
        let mut inside = self.selection.inside(&directory.path, &directory.level);
        let mut text = Vec::new();
        let mut names: Vec<Name> = Vec::new();
        let mut entries = RawDir::new(&file, buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            // What is not wanted is not looked at, unless it may be a directory.
            let file_type = entry.file_type();
            let may_hold = matches!(file_type, FileType::Directory | FileType::Unknown);
            let wanted = match inside.verdict(name) {
                Verdict::Wanted => true,
                Verdict::Unwanted if may_hold => false,
                Verdict::Unwanted | Verdict::Pruned => continue,
            };
            let start = text.len();
            text.extend_from_slice(name);
            names.push(Name {
                bytes: start..text.len(),
                wanted,
            });
        }
        names.sort_unstable_by(|a, b| text[a.bytes.clone()].cmp(&text[b.bytes.clone()]));
        let shares = names.len().div_ceil(SHARE);
        let listing = Arc::new(Listing {
            directory,
            file,
            text,
            names,
        });
        let share = |number| Share {
            number,
            listing: Arc::clone(&listing),
        };
        if shares > 1 {
            self.queue().shares.extend((1..shares).rev().map(share));
            self.changed.notify_all();
        }
        Ok(share(0))
    }

    /// Looks at some of the names in a directory and queues the directories among them.
    fn look(&self, share: &Share) -> Part {
        let Listing {
            directory:
                Directory {
                    number,
                    path,
                    level,
                },
            file,
            text,
            names,
        } = &*share.listing;
        let names = names.chunks(SHARE).nth(share.number).unwrap_or_default();
        let mut part = Part {
            directory: *number,
            share: share.number,
            text: Vec::new(),
            entries: Vec::with_capacity(names.len()),
        };
        let mut directories = Vec::new();
        let mut inside = self.selection.inside(path, level);
        // With a slash.
        let directory_length = below(self.source, path).join("").as_os_str().len();
        for Name { bytes, wanted } in names {
            let name = &text[bytes.clone()];
            // To be read, a file is opened by its whole path.
            let looked = if directory_length + name.len() < LONGEST_PATH {
                look_at(file, name)
            } else {
                Err(Errno::NAMETOOLONG)
            };
            let (status, target) = match looked {
                Ok(looked) => looked,
                Err(error) => {
                    let path = child(path, name);
                    self.fail(Failure { path, error });
                    continue;
                }
            };
            let is_directory = status.file_type == FileType::Directory;
            if !is_directory && !wanted {
                continue;
            }
            part.text.extend_from_slice(name);
            let name_end = part.text.len();
            part.text.extend_from_slice(&target);
            part.entries.push(Looked {
                name_end,
                target_end: part.text.len(),
                inside: is_directory.then(|| {
                    let number = self.directories.fetch_add(1, Ordering::Relaxed);
                    directories.push(Directory {
                        number,
                        path: child(path, name),
                        level: inside.level(name),
                    });
                    number
                }),
                wanted: *wanted,
                status,
            });
        }
        if !directories.is_empty() {
            // The first is to be the next.
            self.queue()
                .directories
                .extend(directories.into_iter().rev());
            self.changed.notify_all();
        }
        part
    }
}

/// What is called `name` in a directory, and what it points to if it is a symlink.
fn look_at(directory: &OwnedFd, name: &[u8]) -> Result<(Status, Vec<u8>), Errno> {
    let status = Status::of(&statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?);
    let target = match status.file_type {
        FileType::Symlink => readlinkat(directory, name, Vec::new())?.into_bytes(),
        _ => Vec::new(),
    };
    Ok((status, target))
}

fn child(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() {
        name.to_vec()
    } else {
        [directory, name].join(&b'/')
    }
}

impl Status {
    fn of(stat: &Stat) -> Self {
        Self {
            file_type: FileType::from_raw_mode(stat.st_mode),
            stamp: Stamp::of_stat(stat),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            shared: stat.st_nlink > 1,
        }
    }
}

/// Opens a directory of the source; a symlink that took its place, or that of one above it, is an
/// error.
fn open_below(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = LISTED | OFlags::NOFOLLOW;
    let links = ResolveFlags::NO_SYMLINKS;
    match retry_on_intr(|| openat2(root, path, flags, Mode::empty(), links)) {
        // Linux before 5.6, and sandboxes that do not know the call, guard the last name alone.
        Err(Errno::NOSYS | Errno::PERM) => {
            retry_on_intr(|| openat(root, path, flags, Mode::empty()))
        }
        opened => opened,
    }
}

/// The path of what is at `path` in the source.
pub(crate) fn below(source: &Path, path: &[u8]) -> PathBuf {
    let mut whole = PathBuf::with_capacity(source.as_os_str().len() + "/".len() + path.len());
    whole.push(source);
    if !path.is_empty() {
        whole.push(OsStr::from_bytes(path));
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_opened_past_no_symlink() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("d/e")).unwrap();
        fs::write(directory.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("d", directory.path().join("link")).unwrap();
        let root = openat(CWD, directory.path(), LISTED, Mode::empty()).unwrap();
        for (path, expected) in [
            ("d", None),
            ("d/e", None),
            ("gone", Some(Errno::NOENT)),
            ("d/gone/e", Some(Errno::NOENT)),
            ("file", Some(Errno::NOTDIR)),
            ("file/e", Some(Errno::NOTDIR)),
            ("link/e", Some(Errno::LOOP)),
        ] {
            assert_eq!(open_below(&root, path.as_bytes()).err(), expected, "{path}");
        }
        assert!(open_below(&root, b"link").is_err());
    }

    #[test]
    fn failures_come_in_the_order_of_the_entries() {
        let in_order = ["", "a", "a/b", "a/b/c", "a/b-", "a-", "a-/b", "b"];
        for (index, path) in in_order.into_iter().enumerate() {
            for (other_index, other) in in_order.into_iter().enumerate() {
                let failure = |path: &str| Failure {
                    path: path.into(),
                    error: Errno::IO,
                };
                let is_before = failure(path).is_before(&failure(other));
                assert_eq!(is_before, index < other_index, "{path}, {other}");
            }
        }
    }
}
