//! What a cache takes, whether it is sound, and making room in it.

use std::fs::{self, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::pack::{self, PackId};
use super::recipe::Recipe;
use super::{CacheError, LayerCache, NOTES, PACKS, RECIPES, list_packs, open_lock, read_record};

/// How many files of a kind there are, and what they take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheUse {
    /// Number of files.
    pub files: u64,
    /// The sum of their sizes in bytes.
    pub bytes: u64,
}

impl CacheUse {
    fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

/// What a cache takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheInfo {
    /// Packs of compressed segments.
    pub packs: CacheUse,
    /// Recipes of layers.
    pub recipes: CacheUse,
    /// Notes on sources.
    pub notes: CacheUse,
}

impl CacheInfo {
    /// All of it, in bytes.
    pub fn bytes(&self) -> u64 {
        self.packs.bytes + self.recipes.bytes + self.notes.bytes
    }
}

/// What pruning did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// What was removed.
    pub removed: CacheUse,
    /// What is left.
    pub left: CacheUse,
}

/// What a look at every byte found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verified {
    /// What is sound.
    pub sound: CacheUse,
    /// Segments in sound packs.
    pub segments: u64,
    /// What was damaged, and is removed.
    pub removed: Vec<PathBuf>,
}

struct Found {
    used: SystemTime,
    path: PathBuf,
    bytes: u64,
}

impl LayerCache {
    /// What the cache in `root` takes; nothing when there is none.
    pub fn info(root: &Path) -> Result<CacheInfo, CacheError> {
        let total = |kind: &str| {
            let mut total = CacheUse::default();
            for found in files(&root.join(kind))? {
                total.add(found.bytes);
            }
            Ok::<_, CacheError>(total)
        };
        Ok(CacheInfo {
            packs: total(PACKS)?,
            recipes: total(RECIPES)?,
            notes: total(NOTES)?,
        })
    }

    /// Removes what was not used for longest until at most `limit` bytes are left.
    ///
    /// Nobody may use the cache meanwhile; if somebody does this is [`CacheError::InUse`] and
    /// removes nothing.
    pub fn prune(root: &Path, limit: u64) -> Result<Pruned, CacheError> {
        let mut pruned = Pruned::default();
        if !root.exists() {
            return Ok(pruned);
        }
        let lock = open_lock(root)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(CacheError::InUse(root.to_owned())),
            Err(TryLockError::Error(error)) => {
                return Err(CacheError::of("lock", &root.join("lock"))(error));
            }
        }
        let mut found = Vec::new();
        for kind in [PACKS, RECIPES, NOTES] {
            found.extend(files(&root.join(kind))?);
        }
        // The path decides between files of one moment, so that it can be told what goes first.
        found.sort_by(|one, other| (one.used, &one.path).cmp(&(other.used, &other.path)));
        let mut left: u64 = found.iter().map(|found| found.bytes).sum();
        for found in found {
            if left <= limit {
                pruned.left.add(found.bytes);
                continue;
            }
            match fs::remove_file(&found.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(CacheError::of("remove", &found.path)(error));
                }
                _ => {}
            }
            left -= found.bytes;
            pruned.removed.add(found.bytes);
        }
        Ok(pruned)
    }

    /// Reads all of the cache and removes what is damaged.
    pub fn verify(&self) -> Result<Verified, CacheError> {
        let mut verified = Verified::default();
        for (id, path) in list_packs(&self.root) {
            // What cannot be read is of no more use than what is wrong.
            match verify_pack(&path, id).unwrap_or(None) {
                Some(segments) => {
                    verified.segments += segments;
                    verified.sound.add(size_of(&path));
                }
                None => {
                    self.drop_pack(id);
                    verified.removed.push(path);
                }
            }
        }
        for kind in [RECIPES, NOTES] {
            for found in files(&self.root.join(kind))? {
                let content = read_record(&found.path);
                let sound = content
                    .is_some_and(|content| kind == NOTES || Recipe::decode(&content).is_some());
                if sound {
                    verified.sound.add(found.bytes);
                } else {
                    fs::remove_file(&found.path).map_err(CacheError::of("remove", &found.path))?;
                    verified.removed.push(found.path);
                }
            }
        }
        Ok(verified)
    }
}

/// How many segments a pack has; `None` when it is not sound.
fn verify_pack(path: &Path, id: PackId) -> io::Result<Option<u64>> {
    let file = super::open_regular(path)?;
    let Some(index) = pack::read_index(&file, id)? else {
        return Ok(None);
    };
    let mut blocks = Vec::new();
    for kept in &index.kept {
        if !pack::read_blocks(&file, &kept.place, &mut blocks)? {
            return Ok(None);
        }
    }
    Ok(Some(index.kept.len() as u64))
}

fn size_of(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// The files of a directory; none when there is no such directory.
fn files(directory: &Path) -> Result<Vec<Found>, CacheError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(CacheError::of("list", directory)(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(CacheError::of("list", directory))?;
        // One that is gone by now takes nothing, and what is no file is none of ours.
        if let Ok(metadata) = entry.metadata()
            && metadata.is_file()
        {
            files.push(Found {
                used: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                path: entry.path(),
                bytes: metadata.len(),
            });
        }
    }
    Ok(files)
}
