//! The local store: `store:NAME[:TAG]`, images in the user's data directory.
//!
//! It is sparse. Manifests and configs are kept in full; of a layer that a registry has, only where
//! it is; of a layer that tierce sealed, which parts of which packs it is made of. So a build on a
//! large base stores some kilobytes for it, one that changed a file stores what changed, and the
//! bytes are fetched or put together when something needs them.
//!
//! ```text
//! version                     `2`
//! lock                        nothing; writers lock it shared, garbage collection locks it alone
//! blobs/sha256/<hex>          manifests, configs, and layers whose bytes are here
//! packs/<pack>                compressed segments of layers, linked from the cache
//! recipes/sha256/<hex>        the ranges of packs, and the bytes between, that a layer is made of
//! damage/<pack>               ranges of the pack that were found wrong
//! origins/sha256/<hex>.json   {"repositories": [...]}: who has the layer, the latest found first
//! facts/sha256/<hex>.json     what sealing learnt about the layer
//! names/<name>/<tag>.json     {"name", "tag", "root"}: the descriptor that the name stands for
//! tmp/                        files being written
//! ```
//!
//! `<name>` is the name with everything but lower-case letters, digits, `.`, `_` and `-` written as
//! `%` and two hex digits, or, when that is too long for a file name, `~` and its SHA-256.
//!
//! Every file appears by rename after it is synced, blobs before the name that leads to them; so a
//! process may be killed, or several may write, at any moment. A blob carries a fixed modification
//! time: as long as it does nobody has written to it, and it need not be hashed again. One that has
//! lost it is hashed when it is next written, and replaced if it is wrong. Readers verify blobs
//! anyway; one that is found wrong then gets another time, and so is replaced too, or asked for at
//! its origin. A blob shares its file with nothing outside of the store.
//!
//! A pack is one file with two names, here and in the cache that it was sealed into, and nobody
//! writes to it. It takes no room of its own as long as both have it; when the cache lets go of it,
//! or is deleted, it is the store's, with what no layer needs any more in it. It stays until no
//! recipe of an image names it. A recipe is written after its packs are durable, and believed as
//! long as they are there, long enough, and not noted in `damage`.

mod garbage;
mod name;
mod packs;
mod recipe;

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tierce_image::{
    Blob, BlobAt, BlobSource, Content, Facts, ImageSink, ImageSource, OpenBlobError, Piece, Placed,
};
use tierce_oci::json::to_canonical;
use tierce_oci::{Descriptor, Digest, Document, MediaType, Repository, Selector, Tag};

use crate::atomic::{
    PathError, create_directory, is_temporary_name, parent, sweep, sync_directory,
    write_file_through,
};
use crate::blobs::{BlobDirectory, Trust};
use crate::damage::{DAMAGE, PACKS};
use crate::document::{ManifestError, read_document};
use crate::file::read_limited;
use crate::listing::shown;
use crate::patience::Patience;
use crate::stamp::Mark;

use packs::Packs;

pub use garbage::Garbage;
pub use name::{ParseStoreReferenceError, StoreName, StoreReference};

const VERSION: &str = "2";

/// A store without packs and recipes. It becomes one of today's by getting the directories, and an
/// older tierce then refuses it, where it would find layers missing.
const VERSION_WITHOUT_PACKS: &str = "1";

/// Records have some hundred bytes.
const MAX_RECORD: u64 = 1 << 20;

/// How many origins are remembered for a layer.
const MAX_ORIGINS: usize = 8;

/// How deep and how wide an index may be for [`ImageSink::current`] to look through it.
const MAX_DEPTH: usize = 4;

/// Why the store cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory has other things in it.
    #[error("`{}` has files in it and is not an image store", .0.display())]
    NotAStore(PathBuf),
    /// A newer tierce made it.
    #[error("the image store `{}` has the version `{version}`; this tierce knows {VERSION}", path.display())]
    OtherVersion {
        /// The store.
        path: PathBuf,
        /// What stands in its `version` file.
        version: String,
    },
    /// The name is not in the store.
    #[error("the store has no image `{name}`; it has {}", shown(offered))]
    NoSuchImage {
        /// What was asked for.
        name: StoreName,
        /// What there is.
        offered: Vec<String>,
    },
    /// The name is there, the tag is not.
    #[error(
        "the store has no image `{name}:{tag}`; `{name}` has {}",
        shown(offered)
    )]
    NoSuchTag {
        /// The name.
        name: StoreName,
        /// The tag that was asked for.
        tag: Tag,
        /// The tags that there are.
        offered: Vec<String>,
    },
    /// A record of ours cannot be read as one.
    #[error("the record `{}` of the store is damaged", path.display())]
    BadRecord {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A record is too large to be one.
    #[error("the record `{}` of the store is damaged: it has more than {MAX_RECORD} bytes", .0.display())]
    RecordTooLarge(PathBuf),
    /// Somebody is writing, and garbage cannot be told from what is being written; or somebody
    /// deletes garbage, and takes long.
    #[error("another process is using the image store `{}`", .0.display())]
    InUse(PathBuf),
    /// What an image needs cannot be told, so nothing is deleted.
    #[error("the image `{name}` in the store is damaged")]
    DamagedImage {
        /// Its name and tag.
        name: String,
        /// How.
        #[source]
        source: ManifestError,
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

/// The local store.
#[derive(Debug, Clone)]
pub struct LocalStore {
    root: Arc<PathBuf>,
    patience: Patience,
}

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredImage {
    /// Its name.
    pub name: StoreName,
    /// Its tag.
    pub tag: Tag,
    /// The manifest or index that the name stands for.
    pub root: Descriptor,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Origins {
    repositories: Vec<Repository>,
}

impl LocalStore {
    /// Opens the store in `root`; makes it when there is nothing yet.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let store = Self {
            root: Arc::new(root.into()),
            patience: Patience::DEFAULT,
        };
        match store.version()? {
            // Without it nobody could note that a pack is wrong, and it would be believed for ever.
            Some(version) if version == VERSION => create_directory(&store.root.join(DAMAGE))?,
            Some(version) if version == VERSION_WITHOUT_PACKS => store.lay_out()?,
            Some(version) => {
                return Err(StoreError::OtherVersion {
                    path: store.root.to_path_buf(),
                    version,
                });
            }
            None => store.create()?,
        }
        sweep(&store.temporary());
        Ok(store)
    }

    /// Where the store is.
    pub fn path(&self) -> &Path {
        &self.root
    }

    fn version(&self) -> Result<Option<String>, StoreError> {
        match read_limited(&self.root.join("version"), 64) {
            Ok(bytes) => Ok(Some(
                String::from_utf8_lossy(&bytes.unwrap_or_default())
                    .trim()
                    .to_owned(),
            )),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the store where nothing of somebody else's is.
    fn create(&self) -> Result<(), StoreError> {
        const OURS: [&str; 10] = [
            "version", "lock", "blobs", PACKS, "recipes", DAMAGE, "origins", "facts", "names",
            "tmp",
        ];
        create_directory(&self.root)?;
        let strangers = fs::read_dir(&*self.root)
            .map_err(PathError::of("list", &self.root))?
            .filter_map(Result::ok)
            .map(|entry| entry.file_name())
            .any(|name| !OURS.iter().any(|ours| name == *ours) && !is_temporary_name(&name));
        if strangers {
            return Err(StoreError::NotAStore(self.root.to_path_buf()));
        }
        self.lay_out()?;
        Ok(sync_directory(parent(&self.root))?)
    }

    /// Makes the directories. Two processes may do so at once; the version comes last.
    fn lay_out(&self) -> Result<(), StoreError> {
        for directory in [
            "blobs/sha256",
            PACKS,
            "recipes/sha256",
            DAMAGE,
            "origins/sha256",
            "facts/sha256",
            "names",
            "tmp",
        ] {
            create_directory(&self.root.join(directory))?;
        }
        let version = format!("{VERSION}\n");
        Ok(write_file_through(
            &self.temporary(),
            &self.root.join("version"),
            version.as_bytes(),
        )?)
    }

    /// The images under `name`, to read from.
    pub fn image(&self, name: &StoreName) -> StoreImage {
        StoreImage {
            store: self.clone(),
            name: name.clone(),
        }
    }

    /// The images under `name`, to write one to.
    ///
    /// As long as the sink lives no garbage is collected; when that is going on this waits for it,
    /// some seconds.
    pub fn sink(&self, name: &StoreName) -> Result<StoreSink, StoreError> {
        let lock = self.open_lock()?;
        let free = self
            .patience
            .acquire(|| lock.try_lock_shared())
            .map_err(PathError::of("lock", &self.root.join("lock")))?;
        if !free {
            return Err(StoreError::InUse(self.root.to_path_buf()));
        }
        Ok(StoreSink {
            store: self.clone(),
            name: name.clone(),
            blobs: BlobDirectory::new(
                self.root.join("blobs/sha256"),
                self.temporary(),
                Trust::Stamp,
            ),
            packs: Packs::new(self.packs(), self.temporary()),
            _lock: lock,
        })
    }

    /// What sealing learnt about the layer `digest`, if that was recorded.
    pub fn facts(&self, digest: &Digest) -> Result<Option<Facts>, StoreError> {
        read_record(&self.record("facts", digest))
    }

    /// Records what sealing learnt about the layer `digest`. Kept as long as an image has the layer.
    pub fn record_facts(&self, digest: &Digest, facts: &Facts) -> Result<(), StoreError> {
        self.write_record(&self.record("facts", digest), facts)
    }

    /// All images, sorted by name and tag. Records that are damaged are errors.
    pub fn list(&self) -> Result<Vec<StoredImage>, StoreError> {
        let mut images = Vec::new();
        for directory in children(&self.root.join("names"))? {
            for record in children(&directory)? {
                // Removed a moment ago: not there.
                images.extend(read_record::<StoredImage>(&record)?);
            }
        }
        images.sort_by(|one, other| (&one.name, &one.tag).cmp(&(&other.name, &other.tag)));
        Ok(images)
    }

    /// Takes the name, or all tags of it, away; says how many there were. The blobs stay until
    /// [`LocalStore::collect_garbage`].
    pub fn remove(&self, name: &StoreName, tag: Option<&Tag>) -> Result<usize, StoreError> {
        let records = match tag {
            Some(tag) => vec![self.name_record(name, tag)],
            None => children(&self.name_directory(name))?,
        };
        let mut removed = 0;
        for record in records {
            match fs::remove_file(&record) {
                Ok(()) => removed += 1,
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(PathError::of("remove", &record)(error).into()),
            }
        }
        if removed == 0 {
            return Err(self.not_found(name, tag));
        }
        sync_directory(&self.name_directory(name))?;
        Ok(removed)
    }

    fn open_lock(&self) -> Result<File, PathError> {
        let path = self.root.join("lock");
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(PathError::of("open", &path))
    }

    fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    fn packs(&self) -> PathBuf {
        self.root.join(PACKS)
    }

    fn recipe_file(&self, digest: &Digest) -> PathBuf {
        self.root.join("recipes/sha256").join(digest.hex())
    }

    fn record(&self, kind: &str, digest: &Digest) -> PathBuf {
        self.root
            .join(kind)
            .join("sha256")
            .join(format!("{}.json", digest.hex()))
    }

    fn name_directory(&self, name: &StoreName) -> PathBuf {
        self.root.join("names").join(name.to_file_name())
    }

    fn name_record(&self, name: &StoreName, tag: &Tag) -> PathBuf {
        self.name_directory(name).join(format!("{tag}.json"))
    }

    fn write_record<T: Serialize>(&self, path: &Path, record: &T) -> Result<(), StoreError> {
        let value =
            serde_json::to_value(record).expect("records have string keys and finite numbers only");
        let bytes = to_canonical(&value);
        Ok(write_file_through(&self.temporary(), path, &bytes)?)
    }

    fn read_manifest(
        &self,
        digest: Digest,
        media_type: Option<&MediaType>,
    ) -> Result<Document, ManifestError> {
        read_document(&self.blob(&digest), digest, media_type, &self.root)
    }

    /// What the layer is made of, if that is known: a damaged record is like none.
    fn recipe(&self, blob: &Descriptor) -> Option<Arc<[Piece]>> {
        let record = read_limited(&self.recipe_file(&blob.digest), recipe::MAX_RECIPE);
        let pieces = recipe::read(&record.ok()??, &self.packs())?;
        (length(&pieces) == Some(blob.size)).then_some(pieces)
    }

    /// Where the layer's bytes can be had, the latest found first.
    fn origins(&self, digest: &Digest) -> Vec<Repository> {
        // A damaged record is like none: the layer is then asked for again.
        read_record::<Origins>(&self.record("origins", digest))
            .ok()
            .flatten()
            .map(|origins| origins.repositories)
            .unwrap_or_default()
    }

    /// Two processes may do this at once; then one of their origins is remembered, which is enough.
    fn note_origin(&self, digest: &Digest, origin: &Repository) -> Result<(), StoreError> {
        let mut repositories = self.origins(digest);
        if repositories.first() == Some(origin) {
            return Ok(());
        }
        repositories.retain(|repository| repository != origin);
        repositories.insert(0, origin.clone());
        repositories.truncate(MAX_ORIGINS);
        self.write_record(&self.record("origins", digest), &Origins { repositories })
    }

    fn not_found(&self, name: &StoreName, tag: Option<&Tag>) -> StoreError {
        let images = self.list().unwrap_or_default();
        let offered: Vec<String> = images
            .iter()
            .filter(|image| image.name == *name)
            .map(|image| image.tag.to_string())
            .collect();
        match tag {
            Some(tag) if !offered.is_empty() => StoreError::NoSuchTag {
                name: name.clone(),
                tag: tag.clone(),
                offered,
            },
            _ => {
                let mut offered: Vec<String> =
                    images.iter().map(|image| image.name.to_string()).collect();
                offered.dedup();
                StoreError::NoSuchImage {
                    name: name.clone(),
                    offered,
                }
            }
        }
    }
}

/// Reads a record; `None` if there is none.
fn read_record<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let bytes = match read_limited(path, MAX_RECORD) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(StoreError::RecordTooLarge(path.to_owned())),
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| StoreError::BadRecord {
            path: path.to_owned(),
            source,
        })
}

/// The length of the blob that `pieces` are.
fn length(pieces: &[Piece]) -> Option<u64> {
    pieces
        .iter()
        .try_fold(0_u64, |sum, piece| sum.checked_add(piece.length()))
}

/// What is in `directory`, sorted; nothing if it is not there.
fn children(directory: &Path) -> Result<Vec<PathBuf>, PathError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(PathError::of("list", directory)(error)),
    };
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(PathError::of("list", directory))?;
    paths.sort();
    Ok(paths)
}

/// The images of the store under one name, to read from.
#[derive(Debug, Clone)]
pub struct StoreImage {
    store: LocalStore,
    name: StoreName,
}

impl StoreImage {
    /// The manifest or index under `tag`.
    pub fn find(&self, tag: &Tag) -> Result<Descriptor, StoreError> {
        let record = self.store.name_record(&self.name, tag);
        match read_record::<StoredImage>(&record)? {
            Some(image) => Ok(image.root),
            None => Err(self.store.not_found(&self.name, Some(tag))),
        }
    }
}

impl ImageSource for StoreImage {
    type Error = StoreError;

    async fn manifest(&self, selector: &Selector) -> Result<Document, StoreError> {
        let document = match selector {
            Selector::Tag(tag) => {
                let found = self.find(tag)?;
                self.store
                    .read_manifest(found.digest, Some(&found.media_type))
            }
            Selector::Digest(digest) => self.store.read_manifest(*digest, None),
        };
        Ok(document?)
    }

    /// Looks whether the blob's file is there and not known to be wrong; else whether its packs are;
    /// else reads its small record.
    fn content(&self, blob: &Descriptor) -> Content {
        let path = self.store.blob(&blob.digest);
        let found = fs::metadata(&path)
            .ok()
            .filter(|found| found.is_file() && found.len() == blob.size);
        let bears = |mark: Mark| found.as_ref().is_some_and(|found| mark.is_on(found));
        let file = Content::File { path, offset: 0 };
        if bears(Mark::Right) {
            return file;
        }
        let recipe = self.store.recipe(blob);
        if let Some(pieces) = recipe.as_ref().filter(|pieces| packs::vouch_for(pieces)) {
            return Content::Pieces(pieces.clone());
        }
        if found.is_some() && !bears(Mark::Wrong) {
            return file;
        }
        let origin = self.store.origins(&blob.digest).into_iter().next();
        // What is left says what is wrong when it is opened.
        origin
            .map(Content::Origin)
            .or(recipe.map(Content::Pieces))
            .unwrap_or(file)
    }
}

/// The images of the store under one name, to write one to.
///
/// What is put without a tag has no name and is garbage once the sink is dropped.
#[derive(Debug)]
pub struct StoreSink {
    store: LocalStore,
    name: StoreName,
    blobs: BlobDirectory,
    packs: Packs,
    /// Held shared: see [`LocalStore::sink`].
    _lock: File,
}

impl StoreSink {
    /// Whether the manifest and all below it is here, or where to get it known.
    fn is_complete(&self, root: Digest, depth: usize) -> bool {
        let Ok(document) = self.store.read_manifest(root, None) else {
            return false;
        };
        match document {
            Document::Manifest(manifest) => manifest
                .layers
                .iter()
                .chain([&manifest.config])
                .all(|blob| self.vouches_for(blob) || self.has_origin(blob)),
            Document::Index(index) => {
                depth < MAX_DEPTH
                    && index
                        .manifests
                        .iter()
                        .all(|child| self.is_complete(child.digest, depth + 1))
            }
        }
    }

    /// Whether the blob is here, as bytes or as a recipe with its packs, and nothing is to be read to
    /// believe it.
    fn vouches_for(&self, blob: &Descriptor) -> bool {
        let by_recipe = || {
            let recipe = self.store.recipe(blob);
            recipe.is_some_and(|pieces| packs::vouch_for(&pieces))
        };
        self.blobs.vouches_for(blob) || by_recipe()
    }

    /// Takes over what the layer is made of; `None` where that cannot be, and its bytes are needed.
    async fn keep_recipe(
        &self,
        blob: &Descriptor,
        pieces: &[Piece],
    ) -> Result<Option<Placed>, StoreError> {
        let Some(record) = recipe::write(pieces).filter(|_| length(pieces) == Some(blob.size))
        else {
            return Ok(None);
        };
        if !self.packs.take(pieces).await? {
            return Ok(None);
        }
        let path = self.store.recipe_file(&blob.digest);
        write_file_through(&self.store.temporary(), &path, &record)?;
        Ok(Some(Placed::Linked))
    }

    fn has_origin(&self, blob: &Descriptor) -> bool {
        is_layer(blob) && !self.store.origins(&blob.digest).is_empty()
    }
}

/// Only a layer may be somewhere else: configs are needed to answer questions offline.
fn is_layer(blob: &Descriptor) -> bool {
    matches!(blob.media_type, MediaType::Layer(..))
}

impl ImageSink for StoreSink {
    type Error = StoreError;

    async fn current(&self, selector: &Selector) -> Result<Option<Digest>, StoreError> {
        let root = match selector {
            Selector::Tag(tag) => {
                let record = self.store.name_record(&self.name, tag);
                // A damaged record is about to be replaced.
                match read_record::<StoredImage>(&record) {
                    Ok(Some(image)) => image.root.digest,
                    Ok(None) | Err(_) => return Ok(None),
                }
            }
            Selector::Digest(digest) => *digest,
        };
        Ok(Some(root).filter(|root| self.is_complete(*root, 0)))
    }

    async fn place(&self, blob: &BlobAt) -> Result<Option<Placed>, StoreError> {
        let descriptor = &blob.descriptor;
        if self.vouches_for(descriptor) || self.blobs.holds(descriptor).await {
            return Ok(Some(Placed::AlreadyThere));
        }
        match &blob.content {
            Content::Origin(origin) if is_layer(descriptor) => {
                self.store.note_origin(&descriptor.digest, origin)?;
                Ok(Some(Placed::Noted))
            }
            Content::Pieces(pieces) if is_layer(descriptor) => {
                self.keep_recipe(descriptor, pieces).await
            }
            _ => Ok(None),
        }
    }

    async fn send<S: BlobSource>(&self, blob: &Blob<'_, S>) -> Result<(), StoreError> {
        self.blobs.receive(blob).await
    }

    async fn put_manifest(&self, document: &Document, tag: Option<&Tag>) -> Result<(), StoreError> {
        self.blobs.put_document(document)?;
        let Some(tag) = tag else {
            return Ok(());
        };
        let image = StoredImage {
            name: self.name.clone(),
            tag: tag.clone(),
            root: document.descriptor().clone(),
        };
        create_directory(&self.store.name_directory(&self.name))?;
        sync_directory(&self.store.root.join("names"))?;
        self.store
            .write_record(&self.store.name_record(&self.name, tag), &image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_collection_that_does_not_end_is_an_error_for_a_writer() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = LocalStore::open(directory.path()).unwrap();
        store.patience = Patience::NONE;
        let name = "hello".parse().unwrap();
        let collecting = store.open_lock().unwrap();
        collecting.lock().unwrap();
        let error = store.sink(&name).unwrap_err();
        assert!(matches!(&error, StoreError::InUse(path) if path == directory.path()));
        assert!(error.to_string().starts_with("another process is using"));
        collecting.unlock().unwrap();
        let sink = store.sink(&name).unwrap();
        store.sink(&name).unwrap();
        assert!(matches!(store.collect_garbage(), Err(StoreError::InUse(_))));
        drop(sink);
        store.collect_garbage().unwrap();
    }
}
