//! OCI layout directories: `oci:DIR[:NAME]` (image-spec, `image-layout.md`).
//!
//! Any tool may read the layout while tierce writes to it: blobs come before the manifest that names
//! them, and `index.json` is replaced at once, last. Several processes may write: changes to
//! `index.json` are made under a lock (`flock` on the directory itself, so that no file of ours
//! stays in it).
//!
//! A blob that is already there is believed only after it was hashed, and replaced when it is wrong.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde_json::Value;
use tierce_image::{
    Blob, BlobAt, BlobSource, Content, ImageSink, ImageSource, OpenBlobError, Placed,
};
use tierce_oci::{Descriptor, Digest, Document, Selector, Tag};

use crate::atomic::{
    PathError, create_directory, is_temporary_name, parent, sweep, sync_directory,
    write_file_through,
};
use crate::blobs::{BlobDirectory, Trust};
use crate::document::{ManifestError, read_document};
use crate::file::read_limited;
use crate::listing::{Listing, ListingError, MAX_LISTING, REF_NAME};
use crate::patience::Patience;

pub(crate) const LAYOUT_FILE: &str = "oci-layout";
pub(crate) const LAYOUT_CONTENT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
pub(crate) const INDEX_FILE: &str = "index.json";
pub(crate) const BLOBS: &str = "blobs/sha256";

/// Why a layout cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// There is nothing at the path.
    #[error("there is no OCI layout at `{}`", .0.display())]
    Missing(PathBuf),
    /// It has no (usable) `oci-layout` file.
    #[error("`{}` is not an OCI layout", .0.display())]
    NotALayout(PathBuf),
    /// It is of a version that tierce does not know.
    #[error("the OCI layout `{}` has the version `{version}`; only 1.0.0 is known", path.display())]
    OtherVersion {
        /// The layout.
        path: PathBuf,
        /// What stands in `oci-layout`.
        version: String,
    },
    /// The directory to write to has other things in it.
    #[error("`{}` has files in it and is not an OCI layout", .0.display())]
    NotEmpty(PathBuf),
    /// Somebody has it locked and does not let go.
    #[error("another process has locked the OCI layout `{}`", .0.display())]
    InUse(PathBuf),
    /// `index.json` does not lead to a manifest.
    #[error("could not look up an image in the OCI layout `{}`", path.display())]
    Listing {
        /// The layout.
        path: PathBuf,
        /// Why.
        #[source]
        source: ListingError,
    },
    /// A manifest could not be read.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The operating system refused.
    #[error(transparent)]
    File(#[from] PathError),
    /// The blob's own place failed.
    #[error(transparent)]
    Blob(#[from] OpenBlobError),
}

/// An OCI layout to read from.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Opens the layout in `root`, which must be one.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, LayoutError> {
        let root = root.into();
        if !root.exists() {
            return Err(LayoutError::Missing(root));
        }
        if check_version(&root)? {
            Ok(Self { root })
        } else {
            Err(LayoutError::NotALayout(root))
        }
    }

    /// Where the layout is.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Looks a manifest up by name: a tag, or a whole reference. Without a name, the only one.
    pub fn find(&self, name: Option<&str>) -> Result<Descriptor, LayoutError> {
        let listing = read_listing(&self.root)?;
        let found = listing.find(name);
        found.cloned().map_err(|source| LayoutError::Listing {
            path: self.root.clone(),
            source,
        })
    }

    /// What the layout lists, in its order.
    pub fn entries(&self) -> Result<Vec<Descriptor>, LayoutError> {
        Ok(read_listing(&self.root)?.entries().to_vec())
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join(BLOBS).join(digest.hex())
    }
}

impl ImageSource for Layout {
    type Error = LayoutError;

    async fn manifest(&self, selector: &Selector) -> Result<Document, LayoutError> {
        let (digest, media_type) = match selector {
            Selector::Tag(tag) => {
                let found = self.find(Some(tag.as_str()))?;
                (found.digest, Some(found.media_type))
            }
            Selector::Digest(digest) => {
                let listing = read_listing(&self.root)?;
                (*digest, listing.media_type(digest).cloned())
            }
        };
        let path = self.blob(&digest);
        Ok(read_document(
            &path,
            digest,
            media_type.as_ref(),
            &self.root,
        )?)
    }

    fn content(&self, blob: &Descriptor) -> Content {
        Content::File {
            path: self.blob(&blob.digest),
            offset: 0,
        }
    }
}

/// An OCI layout to write one image (or index) to.
///
/// One value for one [`write()`](tierce_image::write()): a root that is put without a tag is listed by
/// [`ImageSink::finish`], because only then it is known not to be the child of an index.
#[derive(Debug)]
pub struct LayoutSink {
    root: PathBuf,
    blobs: BlobDirectory,
    name: Option<String>,
    patience: Patience,
    /// Set once the directories and files that every layout has are there.
    begun: OnceLock<()>,
    unlisted: Mutex<Option<Descriptor>>,
}

impl LayoutSink {
    /// Prepares to write to `root`: a layout, an empty directory, or nothing yet.
    ///
    /// Nothing is made before the first blob comes.
    pub fn create(root: impl Into<PathBuf>) -> Result<Self, LayoutError> {
        let root = root.into();
        // Another process may begin the layout between the first look and the second. `oci-layout`
        // is the first file that a layout gets, so a third look tells it from a stranger's files.
        if !check_version(&root)? && !is_empty(&root)? && !check_version(&root)? {
            return Err(LayoutError::NotEmpty(root));
        }
        sweep(&root);
        Ok(Self {
            blobs: BlobDirectory::new(root.join(BLOBS), root.clone(), Trust::Nobody),
            root,
            name: None,
            patience: Patience::DEFAULT,
            begun: OnceLock::new(),
            unlisted: Mutex::default(),
        })
    }

    /// Lists the image under `name` instead of its tag: layouts may have whole references there.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Makes what every layout has. Each step is harmless when another process takes it too.
    fn begin(&self) -> Result<(), LayoutError> {
        if self.begun.get().is_some() {
            return Ok(());
        }
        create_directory(&self.root)?;
        let layout_file = self.root.join(LAYOUT_FILE);
        if !layout_file.exists() {
            write_file_through(&self.root, &layout_file, LAYOUT_CONTENT)?;
            sync_directory(parent(&self.root))?;
        }
        create_directory(self.blobs.directory())?;
        sync_directory(&self.root.join("blobs"))?;
        if !self.root.join(INDEX_FILE).exists() {
            self.edit_listing(|_| false)?;
        }
        let _ = self.begun.set(());
        Ok(())
    }

    /// Changes `index.json` under the lock; made if missing.
    fn edit_listing(&self, edit: impl FnOnce(&mut Listing) -> bool) -> Result<(), LayoutError> {
        let lock = File::open(&self.root).map_err(PathError::of("open", &self.root))?;
        // File systems without locks have one writer at a time, we hope: the replacement is still
        // whole, one of two names might be lost.
        let free = self.patience.acquire(|| lock.try_lock()).unwrap_or(true);
        if !free {
            return Err(LayoutError::InUse(self.root.clone()));
        }
        let path = self.root.join(INDEX_FILE);
        let (mut listing, missing) = if path.exists() {
            (read_listing(&self.root)?, false)
        } else {
            (Listing::empty(), true)
        };
        if edit(&mut listing) || missing {
            let bytes = listing.to_bytes();
            // Nobody could read it again.
            if bytes.len() as u64 > MAX_LISTING {
                return Err(too_large(&self.root));
            }
            write_file_through(&self.root, &path, &bytes)?;
        }
        Ok(())
    }

    fn list(&self, descriptor: &Descriptor, name: Option<&str>) -> Result<(), LayoutError> {
        let names: BTreeMap<String, String> = name
            .map(|name| (REF_NAME.to_owned(), name.to_owned()))
            .into_iter()
            .collect();
        self.edit_listing(|listing| listing.put(descriptor, &names))
    }

    fn unlisted(&self) -> std::sync::MutexGuard<'_, Option<Descriptor>> {
        self.unlisted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ImageSink for LayoutSink {
    type Error = LayoutError;

    /// Always `None`: that all is there would be known only after hashing all of it, and that is
    /// done blob by blob in [`ImageSink::place`].
    async fn current(&self, _: &Selector) -> Result<Option<Digest>, LayoutError> {
        Ok(None)
    }

    async fn place(&self, blob: &BlobAt) -> Result<Option<Placed>, LayoutError> {
        let is_there = self.blobs.holds(&blob.descriptor).await;
        Ok(is_there.then_some(Placed::AlreadyThere))
    }

    async fn send<S: BlobSource>(&self, blob: &Blob<'_, S>) -> Result<(), LayoutError> {
        self.begin()?;
        self.blobs.receive(blob).await
    }

    async fn put_manifest(
        &self,
        document: &Document,
        tag: Option<&Tag>,
    ) -> Result<(), LayoutError> {
        self.begin()?;
        self.blobs.put_document(document)?;
        let descriptor = document.descriptor();
        *self.unlisted() = tag.is_none().then(|| descriptor.clone());
        match tag {
            Some(tag) => self.list(
                descriptor,
                Some(self.name.as_deref().unwrap_or(tag.as_str())),
            ),
            None => Ok(()),
        }
    }

    async fn finish(&self) -> Result<(), LayoutError> {
        let root = self.unlisted().take();
        root.map_or(Ok(()), |root| self.list(&root, self.name.as_deref()))
    }
}

/// Whether `root` has an `oci-layout` file; one of another version is an error.
fn check_version(root: &Path) -> Result<bool, LayoutError> {
    let bytes = match read_limited(&root.join(LAYOUT_FILE), 4096) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(LayoutError::NotALayout(root.to_owned())),
        Err(error) if error.is_not_found() => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    match layout_version(&bytes) {
        Some(version) if version == "1.0.0" => Ok(true),
        Some(version) => Err(LayoutError::OtherVersion {
            path: root.to_owned(),
            version,
        }),
        None => Err(LayoutError::NotALayout(root.to_owned())),
    }
}

/// What an `oci-layout` file says.
pub(crate) fn layout_version(bytes: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    value["imageLayoutVersion"].as_str().map(str::to_owned)
}

/// Whether `root` is missing, or has nothing but what a killed process of ours left.
fn is_empty(root: &Path) -> Result<bool, LayoutError> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(PathError::of("list", root)(error).into()),
    };
    let names = entries
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<Vec<OsString>, _>>()
        .map_err(PathError::of("list", root))?;
    Ok(names.iter().all(|name| is_temporary_name(name)))
}

fn read_listing(root: &Path) -> Result<Listing, LayoutError> {
    let bytes =
        read_limited(&root.join(INDEX_FILE), MAX_LISTING)?.ok_or_else(|| too_large(root))?;
    Listing::parse(&bytes).map_err(|source| LayoutError::Listing {
        path: root.to_owned(),
        source,
    })
}

fn too_large(root: &Path) -> LayoutError {
    LayoutError::Listing {
        path: root.to_owned(),
        source: ListingError::TooLarge,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_who_keeps_the_lock_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let mut sink = LayoutSink::create(directory.path()).unwrap();
        sink.patience = Patience::NONE;
        let stranger = File::open(directory.path()).unwrap();
        stranger.lock().unwrap();
        let error = sink.begin().unwrap_err();
        assert!(matches!(&error, LayoutError::InUse(path) if path == directory.path()));
        stranger.unlock().unwrap();
        sink.begin().unwrap();
    }

    #[test]
    fn no_listing_is_written_that_could_not_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let sink = LayoutSink::create(directory.path()).unwrap();
        sink.begin().unwrap();
        let path = directory.path().join(INDEX_FILE);
        let before = fs::read(&path).unwrap();
        let descriptor = Descriptor::of("x/y".into(), b"");
        let long = "n".repeat(usize::try_from(MAX_LISTING).unwrap());
        let error = sink.list(&descriptor, Some(&long)).unwrap_err();
        let LayoutError::Listing { source, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(
            source.to_string(),
            "`index.json` has more than 4194304 bytes"
        );
        assert_eq!(fs::read(&path).unwrap(), before);
    }
}
