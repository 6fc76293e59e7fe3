//! Dependencies that were resolved before, kept in the cache.
//!
//! `resolved-1/KEY/tree` is what a tool made of everything that KEY is a digest of. A tree gets its
//! name when it is whole and is never changed after that; `resolved-1/KEY/size` says how many files
//! and bytes it has, for a power cut can leave a name before what it stands for. Who uses the cache holds its lock shared,
//! who prunes it alone; who makes a tree holds the lock of its key, so that it is made once.

use std::fs::{self, File, TryLockError};
use std::io;
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
    /// As it stands beside a tree.
    fn note(&self) -> String {
        format!("{} {}\n", self.files, self.bytes)
    }

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

/// What was found in a look at all trees.
#[derive(Debug, Default)]
pub(crate) struct VerifiedTrees {
    pub(crate) sound: KeptUse,
    /// What was not whole, and is removed.
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
        let tree = whole_tree(&place)?;
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

    /// Removes what was not used for longest until at most `limit` bytes are left.
    pub(crate) fn prune(root: &Path, limit: u64) -> Result<PrunedTrees, KeptError> {
        let mut pruned = PrunedTrees::default();
        if !root.exists() {
            return Ok(pruned);
        }
        let _alone = lock_alone(root)?;
        let mut found = list(root)?;
        found.sort_by(|one, other| (one.used, &one.place).cmp(&(other.used, &other.place)));
        let mut total: u64 = found.iter().map(|kept| kept.size.bytes).sum();
        for kept in found {
            if total <= limit && !kept.is_unfinished {
                pruned.left.add(kept.size);
                continue;
            }
            kept.remove()?;
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

    /// Looks whether all trees have as many files and bytes as they were given, and removes those
    /// that have not. What is in their files is not known otherwise.
    pub(crate) fn verify(root: &Path) -> Result<VerifiedTrees, KeptError> {
        let mut verified = VerifiedTrees::default();
        if !root.exists() {
            return Ok(verified);
        }
        let _alone = lock_alone(root)?;
        for kept in list(root)? {
            if !kept.is_unfinished && whole_tree(&kept.place).is_some() {
                verified.sound.add(kept.size);
            } else {
                kept.remove()?;
                verified.removed.push(kept.place);
            }
        }
        Ok(verified)
    }
}

/// Locks the cache for somebody who removes trees.
fn lock_alone(root: &Path) -> Result<File, KeptError> {
    let lock = open_lock(&root.join("lock"))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(KeptError::InUse(root.to_owned())),
        Err(TryLockError::Error(error)) => Err(KeptError::of("lock", root)(error)),
    }
}

/// The tree in `place`, if it is as large as its note says.
fn whole_tree(place: &Path) -> Option<PathBuf> {
    let tree = place.join("tree");
    let noted = fs::read_to_string(place.join("size")).ok()?;
    (size_below(&tree).ok()?.note() == noted).then_some(tree)
}

impl Claim {
    /// Gives a finished tree its name. `made` holds `tree`, on the same disk.
    pub(crate) fn keep(self, made: &Path) -> Result<PathBuf, KeptError> {
        let size = size_below(&made.join("tree")).map_err(KeptError::of("read", made))?;
        let note = made.join("size");
        fs::write(&note, size.note()).map_err(KeptError::of("write", &note))?;
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

/// One tree in the cache.
struct Found {
    place: PathBuf,
    used: SystemTime,
    size: KeptUse,
    is_unfinished: bool,
}

impl Found {
    fn remove(&self) -> Result<(), KeptError> {
        // Half a tree must not be found under the name of a whole one.
        let leaving = self.place.with_extension("leaving");
        fs::rename(&self.place, &leaving)
            .and_then(|()| fs::remove_dir_all(&leaving))
            .map_err(KeptError::of("remove", &self.place))
    }
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
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let found = entry.metadata()?;
        if found.is_dir() {
            size.add(size_below(&entry.path())?);
        } else {
            size.files += 1;
            size.bytes += found.len();
        }
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
        // The note beside each tree, `1 4`, counts too.
        assert_eq!(Kept::info(&root).unwrap().bytes, 16);
        let PrunedTrees { removed, left } = Kept::prune(&root, 9).unwrap();
        assert_eq!((removed.trees, removed.bytes), (2, 8));
        assert_eq!((left.trees, left.files, left.bytes), (1, 2, 8));
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
        fs::write(tree.join("below/file"), "").unwrap();
        assert_eq!(kept.find(&key), None, "a file lost its content");
        assert!(matches!(Kept::verify(&kept.root), Err(KeptError::InUse(_))));
        claim.keep(&made(folder.path(), "x")).unwrap();
        assert_eq!(kept.find(&key).as_ref(), Some(&tree));
        let root = kept.root.clone();
        drop(kept);
        assert_eq!(Kept::verify(&root).unwrap().sound.trees, 1);
        fs::remove_file(tree.join("below/file")).unwrap();
        let verified = Kept::verify(&root).unwrap();
        assert_eq!((verified.sound.trees, verified.removed.len()), (0, 1));
        assert!(!tree.exists());
    }
}
