//! Deleting what no name leads to.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tierce_image::Piece;
use tierce_oci::{Descriptor, Digest, Document};

use super::recipe::{self, MAX_RECIPE};
use super::{LocalStore, StoreError, children};
use crate::atomic::{PathError, sweep};
use crate::damage::DAMAGE;
use crate::document::ManifestError;
use crate::file::read_limited;
use crate::stamp::Mark;

/// What was deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Garbage {
    /// Number of blobs, whether their bytes were here or what they are made of.
    pub blobs: usize,
    /// Number of packs.
    pub packs: usize,
    /// How much room that made on the disk, in bytes. A pack that the cache has too makes none: its
    /// room is the cache's now.
    pub bytes: u64,
}

impl LocalStore {
    /// Deletes the blobs, recipes, origins and facts that no name leads to, the packs that no recipe
    /// left needs, and what killed processes left.
    ///
    /// Nobody may be writing meanwhile: if somebody is, this is an error and deletes nothing, and
    /// whoever begins to write waits for the end, some seconds. Readers that were given a digest and
    /// no name may find it gone. A name whose manifest cannot be read is an error that deletes
    /// nothing, because what it needs is unknown.
    pub fn collect_garbage(&self) -> Result<Garbage, StoreError> {
        let lock = self.open_lock()?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(StoreError::InUse(self.path().to_owned()));
            }
            Err(fs::TryLockError::Error(error)) => {
                return Err(PathError::of("lock", &self.path().join("lock"))(error).into());
            }
        }
        let mut reached = BTreeSet::new();
        for image in self.list()? {
            self.reach(&mut reached, &image.root)
                .map_err(|source| StoreError::DamagedImage {
                    name: format!("{}:{}", image.name, image.tag),
                    source,
                })?;
        }
        let mut garbage = Garbage::default();
        self.delete_blobs(&reached, &mut garbage)?;
        for kind in ["origins/sha256", "facts/sha256"] {
            for path in self.unreached(kind, &reached)? {
                remove(&path)?;
            }
        }
        // Facts are recorded without the lock, so that a file in there may yet be in use.
        sweep(&self.temporary());
        for directory in children(&self.path().join("names"))? {
            // Fails for those that still have tags.
            let _ = fs::remove_dir(&directory);
        }
        Ok(garbage)
    }

    /// Adds `root` and everything below it.
    fn reach(
        &self,
        reached: &mut BTreeSet<Digest>,
        root: &Descriptor,
    ) -> Result<(), ManifestError> {
        // Apart from `reached`: a manifest may be a layer of another one, and is still to be read.
        let mut walked = BTreeSet::new();
        let mut ahead = vec![root.clone()];
        while let Some(next) = ahead.pop() {
            if !walked.insert(next.digest) {
                continue;
            }
            reached.insert(next.digest);
            match self.read_manifest(next.digest, Some(&next.media_type))? {
                Document::Manifest(manifest) => {
                    reached.extend(manifest.layers.iter().map(|layer| layer.digest));
                    reached.insert(manifest.config.digest);
                }
                Document::Index(index) => ahead.extend(index.manifests.clone()),
            }
        }
        Ok(())
    }

    /// Deletes the blobs that are not `reached`, and what they are made of.
    fn delete_blobs(
        &self,
        reached: &BTreeSet<Digest>,
        garbage: &mut Garbage,
    ) -> Result<(), StoreError> {
        // A layer whose bytes came after all needs its recipe no more.
        let mut made = reached.clone();
        made.retain(|digest| !self.has_bytes(digest));
        let needed = self.needed_packs(&made)?;
        let mut blobs = BTreeSet::new();
        for kind in ["blobs/sha256", "recipes/sha256"] {
            for path in self.unreached(kind, reached)? {
                garbage.bytes += delete(&path)?;
                blobs.insert(path.file_name().map(ToOwned::to_owned));
            }
        }
        garbage.blobs = blobs.len();
        for path in self.unreached("recipes/sha256", &made)? {
            garbage.bytes += delete(&path)?;
        }
        // Only now: as long as there is a recipe its packs are there.
        for path in children(&self.packs())? {
            if !needed.contains(&path) {
                garbage.bytes += delete(&path)?;
                garbage.packs += 1;
            }
        }
        for path in children(&self.path().join(DAMAGE))? {
            let pack = path.file_name().map(|name| self.packs().join(name));
            if !pack.is_some_and(|pack| needed.contains(&pack)) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    fn has_bytes(&self, digest: &Digest) -> bool {
        fs::symlink_metadata(self.blob(digest))
            .is_ok_and(|found| found.is_file() && Mark::Right.is_on(&found))
    }

    /// The packs that the layers among `made` are made of. A damaged recipe needs none, because
    /// nobody can read it: its layer is to be brought again.
    fn needed_packs(&self, made: &BTreeSet<Digest>) -> Result<BTreeSet<PathBuf>, PathError> {
        let mut needed = BTreeSet::new();
        for digest in made {
            let path = self.recipe_file(digest);
            let record = match read_limited(&path, MAX_RECIPE) {
                Ok(record) => record.unwrap_or_default(),
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error),
            };
            for piece in recipe::read(&record, &self.packs())
                .iter()
                .flat_map(|it| &**it)
            {
                if let Piece::Range(range) = piece {
                    needed.insert(range.path.to_path_buf());
                }
            }
        }
        Ok(needed)
    }

    fn unreached(&self, kind: &str, reached: &BTreeSet<Digest>) -> Result<Vec<PathBuf>, PathError> {
        let mut paths = children(&self.path().join(kind))?;
        paths.retain(|path| {
            let hex = path.file_stem().and_then(|stem| stem.to_str());
            let digest = hex.and_then(|hex| format!("sha256:{hex}").parse().ok());
            digest.is_none_or(|digest| !reached.contains(&digest))
        });
        Ok(paths)
    }
}

/// Removes a file; says how much room that makes.
fn delete(path: &Path) -> Result<u64, PathError> {
    let room = fs::symlink_metadata(path)
        .ok()
        .filter(|found| found.nlink() == 1)
        .map_or(0, |found| found.len());
    remove(path)?;
    Ok(room)
}

fn remove(path: &Path) -> Result<(), PathError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(PathError::of("remove", path)(error))
        }
        _ => Ok(()),
    }
}
