//! Layers that are unpacked, and what was made of them.
//!
//! ```text
//! trees/                  what follows; others may enter it, but nothing above
//!   layers/DIFFID-FORM/   a layer: `files`, and `note` with what the files cannot say
//!   fitted/ID/            a layer moved to where symlinks of the layers below it lead
//!   links/ID/             what hardlinks of a layer make of files of the layers below it
//!   deletions/ID/         what a layer deletes of the layers below it, in overlayfs's form
//!   scaffolds/ID/         a directory to lie on top of layers: mount points, modes
//!   flat/ID/              layers and scaffold in one directory, where there is no overlayfs
//! begun/                  what is being made or removed
//! ```
//!
//! All of it may be deleted at any time when nobody uses it. Whatever has a name is whole, since it
//! gets it by a rename, and is never changed again. Who uses something holds a shared lock (`flock`)
//! on its directory, who makes or removes it an exclusive one; the kernel drops it with the process.
//! So what a killed process began is told from what a living one is about without asking a clock.
//! Where the file system has no locks nothing is removed.
//!
//! Nothing is synced before it is used: for the cold start of a function that would be most of the
//! time. As long as the system runs, names and contents agree; after a crash they may not. So a note
//! names the boot in which it was written, and is believed in that boot only, until
//! [`RootfsCache::settle`] has had the disk sync and has it say so. It also knows the inode of its
//! directory: a copy may have lost what most tools do not copy (whiteouts, extended attributes).
//!
//! The directory is closed to others, because roots have directories that anybody may write to.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{self, Read, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustix::fs::{
    AtFlags, CWD, FlockOperation, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, flock,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tierce_layer::Limits;
use tierce_oci::DiffId;

use super::id::{Id, Kind, TREES};
use super::note::Note;
use super::places::open_root;
use super::remove::remove_tree;
use super::{FileError, Form, UnpackError, Unpacked};

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The operating system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// The note of what was just made cannot be written down.
    #[error("could not write down what is in `{path}`", path = path.display())]
    Note {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// How many trees there are, and what their files take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RootfsUse {
    /// Layers and what was made of them.
    pub trees: u64,
    /// Bytes of the layers' files; what was made of layers shares their files.
    pub bytes: u64,
}

impl RootfsUse {
    fn add(&mut self, bytes: u64) {
        self.trees += 1;
        self.bytes += bytes;
    }
}

/// What pruning did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// What was removed.
    pub removed: RootfsUse,
    /// What is left, because it was used since or is in use.
    pub left: RootfsUse,
}

/// A cache of unpacked layers. What it was asked for stays as long as it, or a
/// [`Root`](super::Root) made with it, lives.
#[derive(Debug)]
pub struct RootfsCache {
    root: PathBuf,
    boot: String,
    held: Mutex<BTreeMap<Id, Arc<Kept>>>,
}

/// Something that is kept, held.
#[derive(Debug)]
pub(super) struct Kept {
    /// Where its files are.
    pub(super) files: PathBuf,
    pub(super) note: Note,
    /// Whether it is there to delete what is below it.
    pub(super) deletions: bool,
    /// Its directory, locked.
    _lock: Option<OwnedFd>,
}

impl Kept {
    /// A tree that is still being made in `files`, to be looked at beside others.
    pub(super) fn in_the_making(files: PathBuf) -> Self {
        Self {
            files,
            note: Note::default(),
            deletions: false,
            _lock: None,
        }
    }
}

/// The content of the file `note`.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// In which boot of the system it was written; `None` once it is known to be on disk.
    boot: Option<String>,
    /// Of `files`.
    inode: u64,
    note: Note,
}

const BEGUN: &str = "begun";
const FILES: &str = "files";
const NOTE: &str = "note";
const TRASH: &str = "trash";

impl RootfsCache {
    /// Opens the cache in `root`, or makes it, and removes what killed processes left in it.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, CacheError> {
        let root = root.into();
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder
            .create(&root)
            .map_err(FileError::of("create", &root))?;
        let kinds = Kind::ALL.map(|kind| kind.path(&root));
        for path in [root.join(BEGUN), root.join(TREES)]
            .into_iter()
            .chain(kinds)
        {
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(FileError::of("create", &path)(error).into());
                }
                _ => {}
            }
            // Whatever the umask is: who runs a root may be another user than who unpacked it.
            let _ = fs::set_permissions(&path, Permissions::from_mode(0o755));
        }
        sweep(&root);
        // Linux says it everywhere; without it nothing is found again, and that is all.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(
            |_| uuid::Uuid::new_v4().to_string(),
            |id| id.trim().to_owned(),
        );
        Ok(Self {
            root,
            boot,
            held: Mutex::default(),
        })
    }

    /// Whether the layer is there. If so, it stays.
    pub fn has(&self, diff_id: DiffId, form: Form) -> Result<bool, CacheError> {
        Ok(self.hold(&Id::of_layer(diff_id, form))?.is_some())
    }

    /// Unpacks a layer, `layer` being its bytes, compressed or not, and verifies that they are those
    /// of `diff_id`, to the last. Whoever unpacks it too, and when whoever is killed: it is there as
    /// a whole or not at all.
    ///
    /// Memory is bounded by `limits`, of which it also takes how many directories there may be that
    /// the archive does not describe.
    pub fn unpack(
        &self,
        diff_id: DiffId,
        form: Form,
        layer: impl Read + Send,
        limits: Limits,
    ) -> Result<Unpacked, UnpackError> {
        let begun = self.begin()?;
        let trash = begun.path.join(TRASH);
        fs::create_dir(&trash)
            .map_err(|error| CacheError::File(FileError::of("create", &trash)(error)))?;
        let note = super::unpack::unpack(&begun.files(), &trash, diff_id, form, layer, limits)?;
        let _ = fs::remove_dir(&trash);
        let unpacked = Unpacked {
            entries: note.entries,
            bytes: note.bytes,
            skipped: note.skipped,
        };
        self.keep(begun, &Id::of_layer(diff_id, form), note)?;
        Ok(unpacked)
    }

    /// Has the system write to disk what was unpacked, so that it is there after a crash too. Takes
    /// as long as the disk needs; nothing waits for it.
    pub fn settle(&self) -> Result<(), CacheError> {
        let held: Vec<_> = self.held().values().cloned().collect();
        let mut unsettled = Vec::new();
        for kept in held {
            let Some(directory) = kept.files.parent() else {
                continue;
            };
            if let Some(record) = read_record(directory)
                && record.boot.is_some()
            {
                unsettled.push((directory.to_owned(), record));
            }
        }
        if unsettled.is_empty() {
            return Ok(());
        }
        let root = open_root(&self.root).map_err(FileError::of("open", &self.root))?;
        rustix::fs::syncfs(&root).map_err(FileError::of("sync", &self.root))?;
        for (directory, record) in unsettled {
            let record = Record {
                boot: None,
                ..record
            };
            write_record(&directory, &record)?;
        }
        Ok(())
    }

    /// What the cache in `root` takes.
    pub fn info(root: &Path) -> Result<RootfsUse, CacheError> {
        let mut total = RootfsUse::default();
        for (_, path) in kept_in(root)? {
            total.add(bytes_of(&path));
        }
        Ok(total)
    }

    /// Removes what was not used since `since` and is not in use.
    pub fn prune(root: &Path, since: SystemTime) -> Result<Pruned, CacheError> {
        let mut pruned = Pruned::default();
        if !root.exists() {
            return Ok(pruned);
        }
        sweep(root);
        for (used, path) in kept_in(root)? {
            let bytes = bytes_of(&path);
            if used < since && discard(root, &path)? {
                pruned.removed.add(bytes);
            } else {
                pruned.left.add(bytes);
            }
        }
        Ok(pruned)
    }

    /// What is kept under this name, from now on held.
    pub(super) fn hold(&self, id: &Id) -> Result<Option<Arc<Kept>>, CacheError> {
        if let Some(kept) = self.held().get(id) {
            return Ok(Some(Arc::clone(kept)));
        }
        let path = id.path(&self.root);
        let Some(lock) = lock(&path, FlockOperation::NonBlockingLockShared)? else {
            return Ok(None);
        };
        let files = path.join(FILES);
        let inode = files.symlink_metadata().map(|metadata| metadata.ino());
        let record = read_record(&path).filter(|record| {
            let written = record.boot.as_ref().is_none_or(|boot| *boot == self.boot);
            written && inode.is_ok_and(|inode| inode == record.inode)
        });
        let Some(record) = record else {
            drop(lock);
            discard(&self.root, &path)?;
            return Ok(None);
        };
        // What was used last is told by this time alone.
        let now = |nanoseconds| Timespec {
            tv_sec: 0,
            tv_nsec: nanoseconds,
        };
        let times = Timestamps {
            last_access: now(UTIME_OMIT),
            last_modification: now(UTIME_NOW),
        };
        let _ = rustix::fs::futimens(&lock, &times);
        Ok(Some(self.held_as(id, files, record.note, Some(lock))))
    }

    fn held_as(&self, id: &Id, files: PathBuf, note: Note, lock: Option<OwnedFd>) -> Arc<Kept> {
        let kept = Arc::new(Kept {
            files,
            note,
            deletions: id.kind() == Kind::Deletions,
            _lock: lock,
        });
        let mut held = self.held();
        Arc::clone(held.entry(id.clone()).or_insert(kept))
    }

    fn held(&self) -> std::sync::MutexGuard<'_, BTreeMap<Id, Arc<Kept>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins something that is to be kept.
    pub(super) fn begin(&self) -> Result<Begun, CacheError> {
        let begun = self.root.join(BEGUN);
        loop {
            let path = begun.join(uuid::Uuid::new_v4().to_string());
            fs::create_dir(&path).map_err(FileError::of("create a directory in", &begun))?;
            // A sweeper may come between, and take it for abandoned.
            if let Some(lock) = lock(&path, FlockOperation::LockExclusive)? {
                let begun = Begun {
                    path,
                    lock: Some(lock),
                };
                let files = begun.files();
                fs::create_dir(&files).map_err(FileError::of("create", &files))?;
                return Ok(begun);
            }
        }
    }

    /// Gives what was begun its name, unless somebody else was faster.
    pub(super) fn keep(&self, begun: Begun, id: &Id, note: Note) -> Result<Arc<Kept>, CacheError> {
        let files = begun.files();
        let metadata = files
            .symlink_metadata()
            .map_err(FileError::of("look at", &files))?;
        let record = Record {
            boot: Some(self.boot.clone()),
            inode: metadata.ino(),
            note,
        };
        write_record(&begun.path, &record)?;
        fs::set_permissions(&begun.path, Permissions::from_mode(0o755))
            .map_err(FileError::of("change the mode of", &begun.path))?;
        // From now on as one who uses it; without locks as one who has none.
        if let Some(lock) = &begun.lock {
            let _ = flock(lock, FlockOperation::LockShared);
        }
        let path = id.path(&self.root);
        for _ in 0..3 {
            match fs::rename(&begun.path, &path) {
                Ok(()) => {
                    let lock = begun.leave();
                    return Ok(self.held_as(id, path.join(FILES), record.note, lock));
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                    ) =>
                {
                    // What is of no use is removed by that, and then this one gets the name.
                    if let Some(kept) = self.hold(id)? {
                        return Ok(kept);
                    }
                }
                Err(error) => return Err(FileError::of("write", &path)(error).into()),
            }
        }
        // Somebody uses what is of no use here. This one serves without a name, and is swept away
        // when nobody holds it.
        let files = begun.files();
        let lock = begun.leave();
        Ok(self.held_as(id, files, record.note, lock))
    }
}

/// Something that is being made. Dropped, it is removed.
#[derive(Debug)]
pub(super) struct Begun {
    path: PathBuf,
    /// Gone when it is nothing that is being made any more.
    lock: Option<OwnedFd>,
}

impl Begun {
    /// The directory for its files, empty at first.
    pub(super) fn files(&self) -> PathBuf {
        self.path.join(FILES)
    }

    /// Leaves it where it is; gives its lock.
    fn leave(mut self) -> Option<OwnedFd> {
        self.lock.take()
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if self.lock.is_some() {
            // What cannot be removed is swept away by a later process.
            let _ = remove_tree(&self.path);
        }
    }
}

/// Opens and locks a directory; `None` when it is not there or somebody else has it. Where there
/// are no locks it is only opened.
fn lock(path: &Path, operation: FlockOperation) -> Result<Option<OwnedFd>, FileError> {
    let directory = match open_root(path) {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::of("open", path)(error)),
    };
    match flock(&directory, operation) {
        Err(Errno::WOULDBLOCK) => Ok(None),
        Ok(()) | Err(_) => Ok(is_at(&directory, path).then_some(directory)),
    }
}

/// Locks a directory that is to be removed; `None` when that must not be.
fn lock_alone(path: &Path) -> Option<OwnedFd> {
    let directory = open_root(path).ok()?;
    flock(&directory, FlockOperation::NonBlockingLockExclusive).ok()?;
    is_at(&directory, path).then_some(directory)
}

/// Whether the open directory is still the one that has this name.
fn is_at(directory: &OwnedFd, path: &Path) -> bool {
    let open = rustix::fs::fstat(directory);
    let named = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW);
    open.is_ok_and(|open| {
        named.is_ok_and(|named| (open.st_dev, open.st_ino) == (named.st_dev, named.st_ino))
    })
}

/// Removes what has the name `path` if nobody uses it; says whether it is gone.
fn discard(root: &Path, path: &Path) -> Result<bool, FileError> {
    let Some(_lock) = lock_alone(path) else {
        return Ok(false);
    };
    // Without its name first, so that nobody finds half of it.
    let nameless = root.join(BEGUN).join(uuid::Uuid::new_v4().to_string());
    fs::rename(path, &nameless).map_err(FileError::of("remove", path))?;
    let _ = remove_tree(&nameless);
    Ok(true)
}

/// Removes what killed processes left. Whatever goes wrong is left for next time.
fn sweep(root: &Path) {
    let Ok(entries) = fs::read_dir(root.join(BEGUN)) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        // The lock is held while the name goes, so that who is just making it finds out.
        if let Some(_lock) = lock_alone(&path) {
            let _ = remove_tree(&path);
        }
    }
}

/// What has a name, with when it was used last.
fn kept_in(root: &Path) -> Result<Vec<(SystemTime, PathBuf)>, FileError> {
    let mut kept = Vec::new();
    for kind in Kind::ALL {
        let directory = kind.path(root);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(FileError::of("read", directory)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(FileError::of("read", &directory))?;
            let path = entry.path();
            // It may have gone meanwhile.
            if let Ok(used) = entry.metadata().and_then(|metadata| metadata.modified()) {
                kept.push((used, path));
            }
        }
    }
    kept.sort();
    Ok(kept)
}

fn bytes_of(path: &Path) -> u64 {
    read_record(path).map_or(0, |record| record.note.bytes)
}

fn read_record(directory: &Path) -> Option<Record> {
    let bytes = fs::read(directory.join(NOTE)).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Writes a note, in the place of an older one.
fn write_record(directory: &Path, record: &Record) -> Result<(), CacheError> {
    let bytes = serde_json::to_vec(record).map_err(|source| CacheError::Note {
        path: directory.to_owned(),
        source,
    })?;
    let path = directory.join(NOTE);
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(&bytes)?;
        if record.boot.is_none() {
            file.as_file().sync_all()?;
        }
        file.persist(&path).map_err(|error| error.error)
    };
    write().map_err(FileError::of("write", &path))?;
    Ok(())
}
