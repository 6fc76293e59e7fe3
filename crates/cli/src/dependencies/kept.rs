//! Dependencies that were resolved before, kept in the cache.
//!
//! `resolved-1/KEY/tree` is what a tool made of everything that KEY is a digest of. A tree gets its
//! name when it is whole and is never changed after that. `resolved-1/KEY/note` says what it was
//! then, for a power cut can leave a name before what it stands for, and people look into caches: by
//! sizes, modes and times, and, for those are not the same in a copy, by contents. Who uses the cache
//! holds its lock shared, who prunes it alone; who makes a tree holds the lock of its key, so that it
//! is made once.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tierce_oci::Digest;

/// Where they are, below the cache directory. The name counts up with the format.
pub(crate) fn resolved_in(cache: &Path) -> PathBuf {
    cache.join("resolved-1")
}

/// The cache of resolved dependencies failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeptError {
    /// The operating system refuses something.
    #[error("could not {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// Somebody else uses it.
    #[error("{} is in use", .0.display())]
    InUse(PathBuf),
    /// The build ended meanwhile.
    #[error("interrupted")]
    Cancelled,
}

impl KeptError {
    fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// What a tree is kept under: a digest of all that it depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key(Digest);

impl Key {
    /// Of parts of any content; `["ab"]` and `["a", "b"]` are different.
    pub(crate) fn of<P: AsRef<[u8]>>(parts: impl IntoIterator<Item = P>) -> Self {
        let mut whole = Vec::new();
        for part in parts {
            let part = part.as_ref();
            whole.extend_from_slice(&(part.len() as u64).to_le_bytes());
            whole.extend_from_slice(part);
        }
        Self(Digest::of(&whole))
    }
}

/// How much there is of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct KeptUse {
    pub(crate) trees: u64,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

impl KeptUse {
    fn add(&mut self, other: Self) {
        self.trees += other.trees;
        self.files += other.files;
        self.bytes += other.bytes;
    }
}

/// The cache in use.
#[derive(Debug)]
pub(crate) struct Kept {
    root: PathBuf,
    /// Held shared: nothing is pruned meanwhile.
    _lock: File,
    /// Whether somebody was allowed to make a tree.
    grown: AtomicBool,
}

/// What pruning did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct PrunedTrees {
    pub(crate) removed: KeptUse,
    pub(crate) left: KeptUse,
}

/// What was found by reading everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct VerifiedTrees {
    pub(crate) sound: KeptUse,
    /// What was damaged.
    pub(crate) removed: Vec<PathBuf>,
}

/// The right to make the tree of one key.
#[derive(Debug)]
pub(crate) struct Claim {
    place: PathBuf,
    _lock: File,
}

/// How often it is looked whether a lock is free.
const PAUSE: Duration = Duration::from_millis(20);

impl Kept {
    /// Opens the cache in `root`, or makes it.
    pub(crate) fn open(root: PathBuf) -> Result<Self, KeptError> {
        fs::create_dir_all(&root).map_err(KeptError::of("create", &root))?;
        let lock = open_lock(&root.join("lock"))?;
        // Pruning takes as long as deleting files.
        for tried in 0..1500 {
            match lock.try_lock_shared() {
                // A file system without locks has no pruning either.
                Ok(()) | Err(TryLockError::Error(_)) => break,
                Err(TryLockError::WouldBlock) if tried == 1499 => {
                    return Err(KeptError::InUse(root));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            }
        }
        Ok(Self {
            root,
            _lock: lock,
            grown: AtomicBool::new(false),
        })
    }

    /// Whether a tree may have been added.
    pub(crate) fn has_grown(&self) -> bool {
        self.grown.load(Ordering::Relaxed)
    }

    /// The tree under `key`, if it is here.
    pub(crate) fn find(&self, key: &Key) -> Option<PathBuf> {
        let place = self.root.join(key.0.hex());
        let tree = place.join("tree");
        let noted = Note::read(&place)?;
        let members = members_of(&tree).ok()?;
        let stamps = stamps_of(&members);
        if noted.stamps != stamps {
            // The cache may be a copy, as CI systems make them.
            let contents = contents_of(&tree, &members).ok()?;
            if noted.contents != contents {
                return None;
            }
            let _ = Note { stamps, contents }.write(&place);
        }
        // What was used last is pruned last.
        let now = fs::FileTimes::new().set_modified(SystemTime::now());
        let _ = File::open(&place).and_then(|place| place.set_times(now));
        Some(tree)
    }

    /// Waits until nobody else makes the tree under `key`. It may be there then.
    pub(crate) fn claim(&self, key: &Key, cancel: &AtomicBool) -> Result<Claim, KeptError> {
        let name = key.0.hex();
        let path = self.root.join(format!("{name}.lock"));
        let lock = open_lock(&path)?;
        loop {
            match lock.try_lock() {
                Ok(()) | Err(TryLockError::Error(_)) => break,
                Err(TryLockError::WouldBlock) if cancel.load(Ordering::Relaxed) => {
                    return Err(KeptError::Cancelled);
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            }
        }
        self.grown.store(true, Ordering::Relaxed);
        Ok(Claim {
            place: self.root.join(name),
            _lock: lock,
        })
    }

    /// Counts what is in the cache at `root`.
    pub(crate) fn info(root: &Path) -> Result<KeptUse, KeptError> {
        let mut all = KeptUse::default();
        for kept in list(root)? {
            all.add(kept.size);
        }
        Ok(all)
    }

    /// Reads every tree in the cache at `root`, and removes those that are not what they were.
    pub(crate) fn verify(root: &Path) -> Result<VerifiedTrees, KeptError> {
        let mut verified = VerifiedTrees::default();
        if !root.exists() {
            return Ok(verified);
        }
        let _open = Self::open(root.to_owned())?;
        let mut found = list(root)?;
        found.sort_by(|one, other| one.place.cmp(&other.place));
        for kept in found.into_iter().filter(|kept| !kept.is_unfinished) {
            let lock = open_lock(&kept.place.with_extension("lock"))?;
            if matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) {
                // It is being made.
                continue;
            }
            let noted = Note::read(&kept.place);
            let now = Note::of(&kept.place.join("tree"));
            let now = now.map_err(KeptError::of("read", &kept.place))?;
            if noted.is_some_and(|noted| noted.contents == now.contents) {
                verified.sound.add(kept.size);
            } else {
                remove(&kept.place)?;
                verified.removed.push(kept.place);
            }
        }
        Ok(verified)
    }

    /// Removes what was not used for longest until at most `limit` bytes are left.
    pub(crate) fn prune(root: &Path, limit: u64) -> Result<PrunedTrees, KeptError> {
        let mut pruned = PrunedTrees::default();
        if !root.exists() {
            return Ok(pruned);
        }
        let lock = open_lock(&root.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(KeptError::InUse(root.to_owned())),
            Err(TryLockError::Error(error)) => return Err(KeptError::of("lock", root)(error)),
        }
        let mut found = list(root)?;
        found.sort_by(|one, other| (one.used, &one.place).cmp(&(other.used, &other.place)));
        let mut total: u64 = found.iter().map(|kept| kept.size.bytes).sum();
        for kept in found {
            if total <= limit && !kept.is_unfinished {
                pruned.left.add(kept.size);
                continue;
            }
            remove(&kept.place)?;
            total -= kept.size.bytes;
            pruned.removed.add(kept.size);
        }
        // Nobody holds one: for that the cache must be in use.
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|ending| ending == "lock") {
                let _ = fs::remove_file(path);
            }
        }
        Ok(pruned)
    }
}

/// Removes a tree. Half of one must not be found under the name of a whole one.
fn remove(place: &Path) -> Result<(), KeptError> {
    let leaving = place.with_extension("leaving");
    fs::rename(place, &leaving)
        .and_then(|()| fs::remove_dir_all(&leaving))
        .map_err(KeptError::of("remove", place))
}

impl Claim {
    /// Gives a finished tree its name. `made` holds `tree`, on the same disk.
    pub(crate) fn keep(self, made: &Path) -> Result<PathBuf, KeptError> {
        let note = Note::of(&made.join("tree")).map_err(KeptError::of("read", made))?;
        note.write(made).map_err(KeptError::of("write in", made))?;
        if self.place.exists() {
            // It is not whole, or it would have been found.
            fs::remove_dir_all(&self.place).map_err(KeptError::of("remove", &self.place))?;
        }
        fs::rename(made, &self.place).map_err(KeptError::of("rename", made))?;
        Ok(self.place.join("tree"))
    }
}

fn open_lock(path: &Path) -> Result<File, KeptError> {
    // Reading is enough for a lock, and what a cache may be for.
    if let Ok(lock) = File::open(path) {
        return Ok(lock);
    }
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(KeptError::of("open", path))
}

/// What a tree was when it got its name.
struct Note {
    /// Of names, sizes, modes and times.
    stamps: String,
    /// Of names, who may execute what, and contents.
    contents: String,
}

impl Note {
    fn of(tree: &Path) -> io::Result<Self> {
        let members = members_of(tree)?;
        Ok(Self {
            stamps: stamps_of(&members),
            contents: contents_of(tree, &members)?,
        })
    }

    fn read(place: &Path) -> Option<Self> {
        let text = fs::read_to_string(place.join("note")).ok()?;
        let (stamps, contents) = text.strip_suffix('\n')?.split_once('\n')?;
        Some(Self {
            stamps: stamps.to_owned(),
            contents: contents.to_owned(),
        })
    }

    /// Never half: somebody else may read it meanwhile.
    fn write(&self, place: &Path) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(place)?;
        writeln!(file, "{}\n{}", self.stamps, self.contents)?;
        file.persist(place.join("note"))?;
        Ok(())
    }
}

/// All that is in a folder, by the path from there. Symlinks are not followed.
fn members_of(folder: &Path) -> io::Result<BTreeMap<PathBuf, Metadata>> {
    let mut members = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(below) = folders.pop() {
        for entry in fs::read_dir(folder.join(&below))? {
            let entry = entry?;
            let path = below.join(entry.file_name());
            let found = entry.metadata()?;
            if found.is_dir() {
                folders.push(path.clone());
            }
            members.insert(path, found);
        }
    }
    Ok(members)
}

fn stamps_of(members: &BTreeMap<PathBuf, Metadata>) -> String {
    let parts = members.iter().flat_map(|(path, found)| {
        let stamp = if found.is_dir() {
            // Its time and size are those of what is in it.
            format!("{:o}", found.mode())
        } else {
            let (size, seconds, nanoseconds) = (found.len(), found.mtime(), found.mtime_nsec());
            format!("{:o} {size} {seconds}.{nanoseconds}", found.mode())
        };
        [path.as_os_str().as_bytes().to_vec(), stamp.into_bytes()]
    });
    Key::of(parts).0.hex()
}

fn contents_of(tree: &Path, members: &BTreeMap<PathBuf, Metadata>) -> io::Result<String> {
    let mut parts = Vec::with_capacity(2 * members.len());
    for (path, found) in members {
        parts.push(path.as_os_str().as_bytes().to_vec());
        let place = tree.join(path);
        parts.push(if found.is_dir() {
            b"directory".to_vec()
        } else if found.is_symlink() {
            let target = fs::read_link(place)?;
            [b"symlink ", target.as_os_str().as_bytes()].concat()
        } else {
            let digest = Digest::of(&fs::read(place)?);
            // Of the mode only that matters in a layer.
            format!("{} {digest}", found.mode() & 0o100).into_bytes()
        });
    }
    Ok(Key::of(parts).0.hex())
}

/// One tree in the cache.
struct Found {
    place: PathBuf,
    used: SystemTime,
    size: KeptUse,
    is_unfinished: bool,
}

fn list(root: &Path) -> Result<Vec<Found>, KeptError> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(KeptError::of("list", root)(error)),
    };
    for entry in entries {
        let place = entry.map_err(KeptError::of("list", root))?.path();
        if !place.is_dir() {
            continue;
        }
        let mut size = size_below(&place).unwrap_or_default();
        size.trees = 1;
        let used = place.metadata().and_then(|found| found.modified());
        found.push(Found {
            used: used.unwrap_or(SystemTime::UNIX_EPOCH),
            size,
            is_unfinished: !place.join("tree").is_dir() || place.extension().is_some(),
            place,
        });
    }
    Ok(found)
}

fn size_below(folder: &Path) -> io::Result<KeptUse> {
    let mut size = KeptUse::default();
    for found in members_of(folder)?.values().filter(|found| !found.is_dir()) {
        size.files += 1;
        size.bytes += found.len();
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(folder: &Path, content: &str) -> PathBuf {
        let made = folder.join("made");
        fs::create_dir_all(made.join("tree/below")).unwrap();
        fs::write(made.join("tree/below/file"), content).unwrap();
        made
    }

    #[test]
    fn keys_tell_parts_apart() {
        assert_eq!(Key::of(["a", "b"]), Key::of(["a", "b"]));
        assert_ne!(Key::of(["ab"]), Key::of(["a", "b"]));
        assert_ne!(Key::of(["a", ""]), Key::of(["a"]));
    }

    #[test]
    fn what_was_used_last_is_pruned_last() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("resolved-1");
        let never = AtomicBool::new(false);
        let (old, new) = (Key::of(["old"]), Key::of(["new"]));
        {
            let kept = Kept::open(root.clone()).unwrap();
            for (key, seconds) in [(&old, 1), (&new, 2)] {
                let claim = kept.claim(key, &never).unwrap();
                let tree = claim.keep(&made(folder.path(), "four")).unwrap();
                assert_eq!(fs::read(tree.join("below/file")).unwrap(), b"four");
                let used = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
                let times = fs::FileTimes::new().set_modified(used);
                let place = File::open(tree.parent().unwrap()).unwrap();
                place.set_times(times).unwrap();
            }
            // Half of one, as a kill may leave it, does not count.
            fs::create_dir(root.join("half.leaving")).unwrap();
            assert!(matches!(Kept::prune(&root, 0), Err(KeptError::InUse(_))));
        }
        // The note beside each tree counts too: two digests.
        let each = 4 + 2 * 65;
        assert_eq!(Kept::info(&root).unwrap().bytes, 2 * each);
        let PrunedTrees { removed, left } = Kept::prune(&root, each + 1).unwrap();
        assert_eq!((removed.trees, removed.bytes), (2, each));
        assert_eq!((left.trees, left.files, left.bytes), (1, 2, each));
        let kept = Kept::open(root).unwrap();
        assert!(kept.find(&old).is_none());
        assert!(kept.find(&new).is_some());
    }

    #[test]
    fn a_tree_is_made_by_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("resolved-1");
        let kept = Kept::open(root).unwrap();
        let key = Key::of(["it"]);
        let claim = kept.claim(&key, &AtomicBool::new(false)).unwrap();
        let cancelled = AtomicBool::new(true);
        assert!(matches!(
            kept.claim(&key, &cancelled),
            Err(KeptError::Cancelled)
        ));
        let tree = claim.keep(&made(folder.path(), "x")).unwrap();
        assert_eq!(kept.find(&key).as_ref(), Some(&tree));
        let claim = kept.claim(&key, &cancelled).unwrap();
        fs::write(tree.join("below/file"), "y").unwrap();
        assert_eq!(kept.find(&key), None, "a file has another content");
        claim.keep(&made(folder.path(), "x")).unwrap();
        assert_eq!(kept.find(&key).as_ref(), Some(&tree));
    }

    #[test]
    fn verifying_reads_everything_and_removes_what_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("resolved-1");
        assert_eq!(Kept::verify(&root).unwrap(), VerifiedTrees::default());
        let kept = Kept::open(root.clone()).unwrap();
        let never = AtomicBool::new(false);
        for name in ["one", "other"] {
            let claim = kept.claim(&Key::of([name]), &never).unwrap();
            claim.keep(&made(folder.path(), "x")).unwrap();
        }
        assert_eq!(Kept::verify(&root).unwrap().sound.trees, 2);
        // As a disk does it: nothing but the content changes.
        let tree = kept.find(&Key::of(["one"])).unwrap();
        let file = tree.join("below/file");
        let time = file.metadata().unwrap().modified().unwrap();
        fs::write(&file, "y").unwrap();
        File::open(&file).unwrap().set_modified(time).unwrap();
        let held = kept.claim(&Key::of(["one"]), &never).unwrap();
        assert_eq!(Kept::verify(&root).unwrap().removed, [] as [PathBuf; 0]);
        drop(held);
        let verified = Kept::verify(&root).unwrap();
        assert_eq!(verified.sound.trees, 1);
        assert_eq!(verified.removed, [tree.parent().unwrap()]);
        assert!(!verified.removed[0].exists());
    }

    #[test]
    fn a_copy_is_as_good_and_damage_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::open(folder.path().join("resolved-1")).unwrap();
        let key = Key::of(["it"]);
        let claim = kept.claim(&key, &AtomicBool::new(false)).unwrap();
        let content = made(folder.path(), "x");
        std::os::unix::fs::symlink("below/file", content.join("tree/link")).unwrap();
        let tree = claim.keep(&content).unwrap();
        let file = tree.join("below/file");
        let set_time = |seconds| {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            File::open(&file).unwrap().set_modified(time).unwrap();
        };
        let note = || fs::read_to_string(tree.with_file_name("note")).unwrap();
        let first = note();
        set_time(1);
        assert_eq!(kept.find(&key).as_ref(), Some(&tree), "the times of a copy");
        assert_ne!(note(), first, "it is not read again");
        for (damage, repair) in [
            (
                (|tree| fs::write(tree.join("more"), "")) as fn(&Path) -> io::Result<()>,
                (|tree| fs::remove_file(tree.join("more"))) as fn(&Path) -> io::Result<()>,
            ),
            (
                |tree| fs::create_dir(tree.join("empty")),
                |tree| fs::remove_dir(tree.join("empty")),
            ),
            (
                |tree| fs::set_permissions(tree.join("below/file"), mode(0o755)),
                |tree| fs::set_permissions(tree.join("below/file"), mode(0o644)),
            ),
            (
                |tree| fs::write(tree.join("below/file"), "y"),
                |tree| fs::write(tree.join("below/file"), "x"),
            ),
            (
                |tree| {
                    fs::remove_file(tree.join("link"))?;
                    std::os::unix::fs::symlink("below/full", tree.join("link"))
                },
                |tree| {
                    fs::remove_file(tree.join("link"))?;
                    std::os::unix::fs::symlink("below/file", tree.join("link"))
                },
            ),
        ] {
            damage(&tree).unwrap();
            assert_eq!(kept.find(&key), None);
            repair(&tree).unwrap();
            assert_eq!(kept.find(&key).as_ref(), Some(&tree));
        }
        fs::write(tree.with_file_name("note"), "1 4\n").unwrap();
        assert_eq!(kept.find(&key), None);
    }

    fn mode(bits: u32) -> fs::Permissions {
        std::os::unix::fs::PermissionsExt::from_mode(bits)
    }
}
