//! Deleting what no name leads to.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tierce_oci::{Descriptor, Digest, Document};

use super::{LocalStore, StoreError, children};
use crate::atomic::{PathError, sweep};
use crate::document::ManifestError;

/// What was deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Garbage {
    /// Number of blobs.
    pub blobs: usize,
    /// The sum of their sizes in bytes.
    pub bytes: u64,
}

impl LocalStore {
    /// Deletes the blobs, origins and facts that no name leads to, and what killed processes left.
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
        for path in self.unreached("blobs/sha256", &reached)? {
            garbage.blobs += 1;
            garbage.bytes += fs::metadata(&path).map_or(0, |metadata| metadata.len());
            remove(&path)?;
        }
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

fn remove(path: &Path) -> Result<(), PathError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(PathError::of("remove", path)(error))
        }
        _ => Ok(()),
    }
}
