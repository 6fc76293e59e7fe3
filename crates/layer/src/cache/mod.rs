//! What sealing remembers: segments that were compressed before, and how layers are made of them.
//!
//! ```text
//! lock               nothing; whoever uses the cache locks it shared, pruning locks it alone
//! packs/<id>.pack    compressed segments: see `pack`
//! recipes/<id>       how a layer's blob is put together, and its identity: see `recipe`
//! notes/<id>         what the caller wants to know of a source the next time
//! ```
//!
//! All of it may be deleted or damaged at any time, which makes builds slower and never wrong:
//! files appear by rename, and none is believed without its check. Nothing in it names a path, so a
//! copy of the directory serves another machine as well. Several processes may use it at once, for
//! no file is ever changed.
//!
//! What was used last is told by the files' modification times.

mod encoding;
mod pack;
mod prune;
mod recipe;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, utimensat};

use xxhash_rust::xxh3::Xxh3Default;

pub(crate) use encoding::check_of;
use encoding::{CHECK, hex};
pub(crate) use pack::{FinishedPack, PackWriter};
pub use pack::{Kept, Key, PackId, Place};
pub use prune::{CacheInfo, CacheUse, Pruned, Verified};
pub use recipe::{Recipe, RecipeId, RecipeSegment};

/// Why a cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The operating system refused.
    #[error("could not {action} `{path}`", path = path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody prunes it and takes long, or uses it while it is to be pruned.
    #[error("another process is using the cache `{}`", .0.display())]
    InUse(PathBuf),
}

impl CacheError {
    fn of(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::File {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// The name of a note: a hash of all that the caller's question depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NoteId([u8; 32]);

impl NoteId {
    /// The name for these parts of a question.
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self(*hasher.finalize().as_bytes())
    }
}

/// A cache in use.
#[derive(Debug)]
pub struct LayerCache {
    root: PathBuf,
    scratch: PathBuf,
    /// Held shared as long as the cache is used: nothing is pruned meanwhile.
    _lock: File,
    packs: Mutex<Packs>,
}

#[derive(Debug, Default)]
struct Packs {
    /// The packs that are open.
    open: BTreeMap<PackId, Arc<File>>,
    /// All segments of each codec that was asked for.
    kept: BTreeMap<String, BTreeMap<Key, Kept>>,
    /// The packs that there are, once somebody has looked.
    present: Option<BTreeSet<PackId>>,
    /// How many packs were removed because of damage.
    dropped: u64,
    /// Whether a pack was added.
    added: bool,
}

const PACKS: &str = "packs";
const RECIPES: &str = "recipes";
const NOTES: &str = "notes";

/// The format of recipes and notes.
const VERSION: u32 = 1;
/// Recipes of 16 GiB have some ten MiB.
const MOST_RECORD: u64 = 64 << 20;

impl LayerCache {
    /// Opens the cache in `root`, or makes it. Files are begun in `scratch`, a directory of this
    /// process's own on the same file system.
    pub fn open(root: impl Into<PathBuf>, scratch: impl Into<PathBuf>) -> Result<Self, CacheError> {
        let root = root.into();
        for directory in [PACKS, RECIPES, NOTES] {
            let directory = root.join(directory);
            fs::create_dir_all(&directory).map_err(CacheError::of("create", &directory))?;
        }
        let lock = open_lock(&root)?;
        // Pruning takes as long as deleting files.
        for tried in 0..250 {
            match lock.try_lock_shared() {
                // A file system without locks has no pruning either.
                Ok(()) | Err(TryLockError::Error(_)) => break,
                Err(TryLockError::WouldBlock) if tried == 249 => {
                    return Err(CacheError::InUse(root));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        Ok(Self {
            root,
            scratch: scratch.into(),
            _lock: lock,
            packs: Mutex::default(),
        })
    }

    /// Where the cache is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of this run in which files are begun.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Where the pack is, or would be.
    pub fn pack_path(&self, pack: PackId) -> PathBuf {
        self.root.join(PACKS).join(pack.file_name())
    }

    /// Whether the pack is there.
    pub(crate) fn has_pack(&self, pack: PackId) -> bool {
        let mut packs = self.packs();
        let present = packs.present.get_or_insert_with(|| {
            list_packs(&self.root)
                .into_iter()
                .map(|(id, _)| id)
                .collect()
        });
        present.contains(&pack)
    }

    /// The segment with this key as `codec` compressed it, if it is here.
    ///
    /// The first question reads the indexes of all packs.
    pub(crate) fn find(&self, codec: &str, key: &Key) -> Option<Kept> {
        let mut packs = self.packs();
        if !packs.kept.contains_key(codec) {
            let kept = read_indexes(&self.root, codec);
            packs.kept.insert(codec.to_owned(), kept);
        }
        packs.kept.get(codec)?.get(key).copied()
    }

    /// Reads compressed blocks; false when they are gone or damaged. A damaged pack is removed.
    pub(crate) fn read(&self, place: &Place, blocks: &mut Vec<u8>) -> bool {
        let open = self.packs().open.get(&place.pack).cloned();
        let file = match open {
            Some(file) => file,
            None => match open_regular(&self.pack_path(place.pack)) {
                Ok(file) => {
                    let file = Arc::new(file);
                    self.packs().open.insert(place.pack, Arc::clone(&file));
                    file
                }
                Err(_) => return false,
            },
        };
        match pack::read_blocks(&file, place, blocks) {
            Ok(true) => true,
            Ok(false) => {
                self.drop_pack(place.pack);
                false
            }
            Err(_) => false,
        }
    }

    /// Removes a pack of which something is damaged.
    pub fn drop_pack(&self, pack: PackId) {
        let _ = fs::remove_file(self.pack_path(pack));
        let mut packs = self.packs();
        packs.dropped += 1;
        packs.open.remove(&pack);
        if let Some(present) = &mut packs.present {
            present.remove(&pack);
        }
        for kept in packs.kept.values_mut() {
            kept.retain(|_, kept| kept.place.pack != pack);
        }
    }

    /// How many packs were found damaged so far: what was found in one before may be gone.
    pub(crate) fn dropped(&self) -> u64 {
        self.packs().dropped
    }

    /// Whether a pack was added.
    pub fn has_grown(&self) -> bool {
        self.packs().added
    }

    /// Removes the pack at `path` if that is one of this cache; says whether it was.
    pub fn drop_pack_at(&self, path: &Path) -> bool {
        let ours = path.parent() == Some(&self.root.join(PACKS));
        let id = path.file_name().and_then(|name| name.to_str());
        match id.and_then(PackId::of_file_name).filter(|_| ours) {
            Some(id) => {
                self.drop_pack(id);
                true
            }
            None => false,
        }
    }

    /// Gives a finished pack its name.
    pub(crate) fn keep_pack(&self, pack: FinishedPack) -> Result<PackId, CacheError> {
        let id = pack.id;
        let path = self.pack_path(id);
        if path.is_dir() {
            // Not of our making, and nobody else has business here.
            let _ = fs::remove_dir_all(&path);
        }
        pack.file
            .persist(&path)
            .map_err(|error| CacheError::of("write", &path)(error.error))?;
        let mut packs = self.packs();
        packs.added = true;
        packs.open.remove(&id);
        if let Some(present) = &mut packs.present {
            present.insert(id);
        }
        if let Some(known) = packs.kept.get_mut(&pack.index.codec) {
            known.extend(pack.index.kept.into_iter().map(|kept| (kept.key, kept)));
        }
        Ok(id)
    }

    /// The recipe of this name, if it is here and sound. Its packs may be gone.
    pub fn recipe(&self, id: &RecipeId) -> Option<Recipe> {
        let path = self.root.join(RECIPES).join(id.to_hex());
        let recipe = Recipe::decode(&read_record(&path)?)?;
        if recipe.id() != *id {
            return None;
        }
        touch(&path);
        let packs: BTreeSet<PackId> = recipe
            .segments
            .iter()
            .map(|segment| segment.kept.place.pack)
            .collect();
        for pack in packs {
            touch(&self.pack_path(pack));
        }
        Some(recipe)
    }

    /// Keeps a recipe. A cache that cannot be written is only slower, never an error.
    pub(crate) fn keep_recipe(&self, recipe: &Recipe) {
        let path = self.root.join(RECIPES).join(recipe.id().to_hex());
        let _ = self.write_record(&path, &recipe.encode());
    }

    /// Whether all packs that `recipe` names are there.
    pub fn has_packs_of(&self, recipe: &Recipe) -> bool {
        recipe
            .segments
            .iter()
            .all(|segment| self.has_pack(segment.kept.place.pack))
    }

    /// What was noted under this name, if it is here and sound.
    pub fn note(&self, id: &NoteId) -> Option<Vec<u8>> {
        let path = self.root.join(NOTES).join(hex(&id.0));
        let note = read_record(&path)?;
        touch(&path);
        Some(note)
    }

    /// Keeps a note in the place of an earlier one. A cache that cannot be written is only slower,
    /// never an error.
    pub fn keep_note(&self, id: &NoteId, note: &[u8]) {
        let _ = self.write_record(&self.root.join(NOTES).join(hex(&id.0)), note);
    }

    fn write_record(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(".record-")
            .permissions(fs::Permissions::from_mode(0o644))
            .tempfile_in(&self.scratch)?;
        let mut bytes = Vec::with_capacity(content.len() + 4 + CHECK);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(content);
        let check = check_of_record(path, &bytes);
        bytes.extend_from_slice(&check.to_le_bytes());
        file.write_all(&bytes)?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }

    fn packs(&self) -> std::sync::MutexGuard<'_, Packs> {
        // Whatever panicked, the maps are whole between two calls.
        self.packs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open_lock(root: &Path) -> Result<File, CacheError> {
    let path = root.join("lock");
    // Reading is enough for a lock, and what a cache may be for.
    if let Ok(lock) = open_regular(&path) {
        return Ok(lock);
    }
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(&path)
        .map_err(CacheError::of("open", &path))
}

/// Opens a regular file, without ever waiting for another process to open it too.
fn open_regular(path: &Path) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ))
    }
}

/// The packs of a cache, by name; none when they cannot be listed.
fn list_packs(root: &Path) -> Vec<(PackId, PathBuf)> {
    let mut packs: Vec<_> = fs::read_dir(root.join(PACKS))
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let id = PackId::of_file_name(entry.file_name().to_str()?)?;
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            is_file.then(|| (id, entry.path()))
        })
        .collect();
    packs.sort();
    packs
}

/// What all packs hold of a codec. A pack that is none is removed.
fn read_indexes(root: &Path, codec: &str) -> BTreeMap<Key, Kept> {
    let mut all = BTreeMap::new();
    for (id, path) in list_packs(root) {
        let index = open_regular(&path).and_then(|file| pack::read_index(&file, id));
        match index {
            Ok(Some(index)) if index.codec == codec => {
                all.extend(index.kept.into_iter().map(|kept| (kept.key, kept)));
            }
            // Half a pack, left by a power cut, or a damaged one.
            Ok(None) => {
                let _ = fs::remove_file(path);
            }
            Ok(Some(_)) | Err(_) => {}
        }
    }
    all
}

/// The sum of a recipe or note with its kind and name: one in another's place is as good as damaged.
fn check_of_record(path: &Path, bytes: &[u8]) -> u128 {
    let mut hasher = Xxh3Default::new();
    hasher.update(bytes);
    for part in path.components().rev().take(2) {
        hasher.update(part.as_os_str().as_bytes());
        hasher.update(b"/");
    }
    hasher.digest128()
}

/// Reads a recipe or note; `None` when it is not there or not as it was written.
fn read_record(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = pack::read_small(path, MOST_RECORD).ok()??;
    let content = bytes.len().checked_sub(CHECK)?;
    let (checked, check) = bytes.split_at(content);
    if check != check_of_record(path, checked).to_le_bytes()
        || !checked.starts_with(&VERSION.to_le_bytes())
    {
        return None;
    }
    bytes.truncate(content);
    bytes.drain(..4);
    Some(bytes)
}

/// Notes that a file was used. Failing is no error: it is then forgotten a little sooner.
fn touch(path: &Path) {
    let now = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        },
    };
    let _ = utimensat(CWD, path, &now, AtFlags::empty());
}
