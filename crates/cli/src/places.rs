//! Every place an image can be in, behind one door.

use std::fs::{self, File};
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result};
use futures_util::Stream;
use tempfile::TempDir;
use tierce_image::{
    Ahead, Artifact, BlobSource, BlobStream, BoxError, Content, Image, ImageSink, ImageSource,
    Jobs, Offer, ReadError, WriteReport, move_ahead, read_artifact, read_image, write_after,
};
use tierce_layer::LayerCache;
use tierce_oci::{Descriptor, Digest, Document, Platform, Reference, Repository, Selector, Tag};
use tierce_registry::{Client, RepositoryClient};
use tierce_store::{
    ArchiveKind, ArchiveLayout, ArchiveSink, DockerArchive, Layout, LayoutSink, LocalStore,
    PieceError, PlainImage, Selected, StoreReference, open_file, open_pieces,
};

use crate::arguments::RegistryArguments;
use crate::dependencies::kept::{Kept, resolved_in};
use crate::diagnostic::{Hinted as _, UsageError, find};
use crate::documents::{CachedConfigs, Documents, LinkCache};
use crate::environment::Environment;
use crate::layer_facts::FactsCache;
use crate::output::Output;
use crate::progress::{Bars, TransferProgress};
use crate::records;
use crate::sealed::seal_plain;
use crate::source::Source;
use crate::transport::{ImagePlace, PushSource, store_selector};
use crate::verdict_cache::VerdictCache;

/// How places are opened.
#[derive(Debug)]
pub(crate) struct PlacesSettings<'a> {
    pub(crate) registry: &'a RegistryArguments,
    /// Whether a repository that is pushed to is made when it is missing, where that can be.
    pub(crate) create_repository: bool,
    /// Whether registries must not be asked.
    pub(crate) offline: bool,
    /// Whether layers are remembered from one run to the next.
    pub(crate) remembers: bool,
    /// Threads for layers that have to be compressed on the way.
    pub(crate) compress_jobs: Jobs,
}

/// Where the layer cache is, below the cache directory. The name counts up with its format.
pub(crate) fn layer_cache_in(cache: &Path) -> PathBuf {
    cache.join("layers-1")
}

/// As many threads as there are processors: what compressing is bound by.
pub(crate) fn processors() -> Jobs {
    Jobs(std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
}

/// The way to every place.
#[derive(Debug)]
pub(crate) struct Places {
    blobs: Blobs,
    documents: Documents,
    links: LinkCache,
    facts: FactsCache,
    verdicts: VerdictCache,
    store: PathBuf,
    /// Sealed blobs of this run, made when the first blob has to be sealed; goes away with the run.
    scratch: OnceLock<Scratch>,
    cache: PathBuf,
    /// Opened when the first layer is made.
    layers: OnceLock<Arc<LayerCache>>,
    /// Opened when the first dependencies are resolved.
    resolved: OnceLock<Arc<Kept>>,
    /// Whether layers are remembered from one run to the next.
    remembers: bool,
    offline: bool,
    compress_jobs: Jobs,
    bars: Bars,
    output: Output,
}

/// Opens blobs wherever their content is.
#[derive(Debug)]
pub(crate) struct Blobs {
    client: Client,
    offline: bool,
}

/// A blob is in a registry, and those must not be asked.
#[derive(Debug, thiserror::Error)]
#[error("the bytes are in `{0}`, and --offline forbids to ask the registry")]
struct Offline(Repository);

impl BlobSource for Blobs {
    async fn open(
        &self,
        blob: &Descriptor,
        content: &Content,
        from: u64,
    ) -> Result<BlobStream, BoxError> {
        let rest = blob.size.saturating_sub(from);
        match content {
            Content::Memory(bytes) => {
                let start = usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len());
                Ok(Box::pin(futures_util::stream::iter([Ok(
                    bytes.slice(start..)
                )])))
            }
            Content::File { path, offset } => {
                Ok(open_file(path, offset.saturating_add(from), rest)?)
            }
            Content::Pieces(pieces) => Ok(open_pieces(pieces, from)?),
            Content::Origin(repository) if self.offline => Err(Offline(repository.clone()).into()),
            Content::Origin(repository) => {
                Ok(self.client.open_blob(repository, blob, from).await?)
            }
        }
    }
}

impl Places {
    /// Prepares; nothing is asked yet.
    pub(crate) fn open(
        settings: &PlacesSettings<'_>,
        environment: &Environment,
        output: Output,
    ) -> Result<Self> {
        let client = crate::registries::client(
            settings.registry,
            settings.create_repository,
            environment,
            output,
        )?;
        Ok(Self {
            blobs: Blobs {
                client,
                offline: settings.offline,
            },
            documents: Documents::new(&environment.cache),
            links: LinkCache::new(&environment.cache),
            facts: FactsCache::new(&environment.cache),
            verdicts: VerdictCache::new(&environment.cache),
            store: environment.store.clone(),
            scratch: OnceLock::new(),
            layers: OnceLock::new(),
            resolved: OnceLock::new(),
            remembers: settings.remembers,
            cache: environment.cache.clone(),
            offline: settings.offline,
            compress_jobs: settings.compress_jobs,
            bars: Bars::new(output),
            output,
        })
    }

    /// What is known of the symlinks of bases.
    pub(crate) fn link_cache(&self) -> &LinkCache {
        &self.links
    }

    /// What is known of layers that were read before.
    pub(crate) fn facts_cache(&self) -> &FactsCache {
        &self.facts
    }

    /// What was found in images that were judged before, where earlier runs count.
    pub(crate) fn verdict_cache(&self) -> Option<&VerdictCache> {
        self.remembers.then_some(&self.verdicts)
    }

    /// Whether registries must not be asked.
    pub(crate) fn is_offline(&self) -> bool {
        self.offline
    }

    /// The bars of this run.
    pub(crate) fn bars(&self) -> &Bars {
        &self.bars
    }

    /// Opens blobs wherever they are.
    pub(crate) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// A repository of a registry, for questions that other places have no answer to.
    pub(crate) fn repository(&self, repository: &Repository) -> RepositoryClient {
        self.blobs.client.repository(repository)
    }

    /// A directory for sealed blobs, on the disk of the cache.
    pub(crate) fn scratch(&self) -> Result<&Path> {
        let scratch = match self.scratch.get() {
            Some(made) => made,
            None => {
                let made = Scratch::make_in(&self.cache)?;
                self.scratch.get_or_init(|| made)
            }
        };
        Ok(scratch.directory.path())
    }

    /// What sealing remembers. With `--no-cache` it is this run's own.
    pub(crate) fn layer_cache(&self) -> Result<Arc<LayerCache>> {
        if let Some(opened) = self.layers.get() {
            return Ok(Arc::clone(opened));
        }
        let scratch = self.scratch()?;
        let root = if self.remembers {
            layer_cache_in(&self.cache)
        } else {
            scratch.join("layers")
        };
        let opened = Arc::new(LayerCache::open(root, scratch)?);
        Ok(Arc::clone(self.layers.get_or_init(|| opened)))
    }

    /// The dependencies that were resolved before. With `--no-cache` they are this run's own.
    pub(crate) fn resolved(&self) -> Result<Arc<Kept>> {
        if let Some(opened) = self.resolved.get() {
            return Ok(Arc::clone(opened));
        }
        let root = resolved_in(if self.remembers {
            &self.cache
        } else {
            self.scratch()?
        });
        let opened = Arc::new(Kept::open(root)?);
        Ok(Arc::clone(self.resolved.get_or_init(|| opened)))
    }

    /// Whether `error` comes of a pack of the layer cache that is gone or damaged; the pack is then
    /// no longer believed in.
    pub(crate) fn forget_pack_of(&self, error: &anyhow::Error) -> bool {
        let Some(pack) = find::<PieceError>(error).map(PieceError::path) else {
            return false;
        };
        let is_ours = self
            .layers
            .get()
            .is_some_and(|cache| cache.drop_pack_at(pack));
        if is_ours {
            self.output.note(&format!(
                "the cache has lost or damaged {}: what it held is made again",
                pack.display()
            ));
        }
        is_ours
    }

    /// Removes from the cache what was not used for longest, when this run has added to it and it
    /// takes more than `limit`. Whatever goes wrong is left for next time.
    pub(crate) fn make_room(&mut self, limit: u64) {
        let mut limit = limit;
        if let Some(kept) = self.resolved.take().and_then(Arc::into_inner) {
            let has_grown = kept.has_grown();
            drop(kept);
            limit = match make_room_among_resolved(&self.cache, limit, has_grown && self.remembers)
            {
                Ok(left) => left,
                Err(error) => {
                    tracing::debug!("could not make room in the cache: {error}");
                    return;
                }
            };
        }
        // Nobody prunes a cache that is in use.
        let Some(cache) = self.layers.take().and_then(Arc::into_inner) else {
            return;
        };
        let (has_grown, root) = (cache.has_grown(), cache.root().to_owned());
        drop(cache);
        if self.remembers && has_grown {
            match records::prune(&self.cache, limit) {
                Ok(pruned) => limit = limit.saturating_sub(pruned.left.bytes),
                Err(error) => tracing::debug!("could not make room in the cache: {error:#}"),
            }
            match LayerCache::prune(&root, limit) {
                Ok(pruned) if pruned.removed.files > 0 => {
                    tracing::info!("made room in the cache: {} bytes", pruned.removed.bytes);
                }
                Ok(_) => {}
                Err(error) => tracing::debug!("could not make room in the cache: {error}"),
            }
        }
    }

    fn local_store(&self) -> Result<LocalStore> {
        Ok(LocalStore::open(&self.store)?)
    }

    /// Whether the local store has an image of this name. A store that is not there has none.
    pub(crate) async fn store_has(&self, stored: &StoreReference) -> Result<bool> {
        if !self.store.exists() {
            return Ok(false);
        }
        let image = self.local_store()?.image(&stored.name);
        Ok(image.manifest(&store_selector(stored)).await.is_ok())
    }

    /// Settles whether a bare name means the local store, which is asked first, or a registry.
    pub(crate) async fn find(&self, source: &PushSource) -> Result<ImagePlace> {
        let (reference, stored) = match source {
            PushSource::Place(place) => return Ok(place.clone()),
            PushSource::Bare(reference, stored) => (reference, stored),
        };
        if self.store_has(stored).await? {
            return Ok(ImagePlace::Store(stored.clone()));
        }
        self.output.note(&format!(
            "the local store has no `{stored}`: looking for {reference} in its registry"
        ));
        Ok(ImagePlace::Registry(reference.clone()))
    }

    /// Finds what `place` names; `pinned` takes the place of what it selects.
    fn open_source(&self, place: &ImagePlace, pinned: Option<Digest>) -> Result<Found> {
        let pinned = pinned.map(Selector::Digest);
        Ok(match place {
            ImagePlace::Registry(reference) => Found::At(
                Source::Registry {
                    repository: self.blobs.client.repository(&reference.repository),
                    documents: self.documents.clone(),
                    offline: self.offline,
                },
                pinned.unwrap_or_else(|| reference.selector()),
            ),
            ImagePlace::Store(reference) => Found::At(
                Source::Store(self.local_store()?.image(&reference.name)),
                pinned.unwrap_or_else(|| store_selector(reference)),
            ),
            ImagePlace::Layout {
                directory,
                selector,
            } => {
                let layout = Layout::open(directory)?;
                let selector = match pinned.or_else(|| selector.clone()) {
                    Some(selector) => selector,
                    None => Selector::Digest(layout.find(None)?.digest),
                };
                Found::At(Source::Layout(layout), selector)
            }
            ImagePlace::OciArchive { file, selector } => {
                let layout = ArchiveLayout::open(file)?;
                let selector = match pinned.or_else(|| selector.clone()) {
                    Some(selector) => selector,
                    None => Selector::Digest(layout.find(None)?.digest),
                };
                Found::At(Source::Archive(layout), selector)
            }
            ImagePlace::DockerArchive {
                file, references, ..
            } => {
                let archive = DockerArchive::open(file)?;
                match (archive.select(references.first())?, archive.layout()) {
                    (Selected::Exact(descriptor), Some(layout)) => Found::At(
                        Source::Archive(layout.clone()),
                        Selector::Digest(descriptor.digest),
                    ),
                    (Selected::Exact(_), None) => {
                        anyhow::bail!("{} has a manifest but no layout", file.display())
                    }
                    (Selected::Plain(plain), _) => Found::Plain(plain),
                }
            }
        })
    }

    /// Reads manifest and config of the image in `place`, held to `pinned` when that is given.
    pub(crate) async fn read_image(
        &self,
        place: &ImagePlace,
        pinned: Option<Digest>,
        platform: Option<&Platform>,
    ) -> Result<Image> {
        let image = match self.open_source(place, pinned)? {
            Found::Plain(plain) => {
                seal_plain(plain, platform, self.layer_cache()?, self.compress_jobs).await?
            }
            Found::At(source @ Source::Registry { .. }, selector) => {
                let blobs = CachedConfigs {
                    blobs: &self.blobs,
                    documents: &self.documents,
                };
                read_image(&source, &blobs, &selector, platform).await?
            }
            Found::At(source, selector) => {
                read_image(&source, &self.blobs, &selector, platform).await?
            }
        };
        match place {
            // Such an archive is not asked by digest: what is in it is compared.
            ImagePlace::DockerArchive {
                digest: Some(asked),
                ..
            } if *asked != image.digest() => {
                let (asked, found) = (*asked, image.digest());
                Err(ReadError::OtherManifest { asked, found }.into())
            }
            ImagePlace::Store(_) => {
                let store = self.local_store()?;
                Ok(image.with_facts(|layer| store.facts(&layer.descriptor.digest).ok().flatten()))
            }
            _ => Ok(image),
        }
    }

    /// Reads all that `place` names, an index with its children, or the one for `platform`.
    pub(crate) async fn read_artifact(
        &self,
        place: &ImagePlace,
        platform: Option<&Platform>,
    ) -> Result<Artifact> {
        let one_image = platform.is_some() || matches!(place, ImagePlace::DockerArchive { .. });
        if !one_image && let Found::At(source, selector) = self.open_source(place, None)? {
            return Ok(read_artifact(&source, &selector).await?);
        }
        Ok(self.read_image(place, None, platform).await?.to_artifact())
    }

    /// Reads the manifest or index that `place` names; `None` for an image without a manifest.
    pub(crate) async fn read_document(&self, place: &ImagePlace) -> Result<Option<Document>> {
        match self.open_source(place, None)? {
            Found::At(source, selector) => Ok(Some(source.manifest(&selector).await?)),
            Found::Plain(_) => Ok(None),
        }
    }

    /// Brings `artifact` to `place`, under the tag of its name.
    pub(crate) async fn write(
        &self,
        artifact: &Artifact,
        place: &ImagePlace,
        jobs: Jobs,
    ) -> Result<WriteReport> {
        self.write_after(&mut Ahead::default(), artifact, place, jobs)
            .await
    }

    /// Like [`Self::write`], where some of it went ahead to the same place.
    pub(crate) async fn write_after(
        &self,
        ahead: &mut Ahead,
        artifact: &Artifact,
        place: &ImagePlace,
        jobs: Jobs,
    ) -> Result<WriteReport> {
        self.write_to(ahead, artifact, place, jobs)
            .await
            .with_context(|| format!("could not write `{place}`"))
    }

    /// Brings blobs to the repository of `reference` while their image is still being made.
    pub(crate) async fn move_ahead(
        &self,
        reference: &Reference,
        offers: impl Stream<Item = Offer>,
        jobs: Jobs,
    ) -> Result<Ahead> {
        let sink = self.blobs.client.repository(&reference.repository);
        let progress = TransferProgress::new(self.output, self.bars.clone());
        let show = |step: tierce_image::Progress<'_>| progress.show(step);
        move_ahead(offers, &self.blobs, &sink, jobs, &show)
            .await
            .with_context(|| format!("could not write `{reference}`"))
    }

    async fn write_to(
        &self,
        ahead: &mut Ahead,
        artifact: &Artifact,
        place: &ImagePlace,
        jobs: Jobs,
    ) -> Result<WriteReport> {
        match place {
            ImagePlace::Registry(reference) => {
                if self.offline {
                    return Err(UsageError("--offline forbids to push".to_owned()).into());
                }
                Self::check_digest(artifact, reference.digest)?;
                let sink = self.blobs.client.repository(&reference.repository);
                self.walk(ahead, artifact, reference.effective_tag(), &sink, jobs)
                    .await
            }
            ImagePlace::Store(reference) => {
                Self::check_digest(artifact, reference.digest)?;
                let sink = self.local_store()?.sink(&reference.name)?;
                let tag = reference.tag.clone().unwrap_or_else(Tag::latest);
                self.walk(ahead, artifact, Some(tag), &sink, jobs).await
            }
            ImagePlace::Layout { directory, .. } => {
                let sink = LayoutSink::create(directory)?;
                self.walk(ahead, artifact, place.tag(), &sink, jobs).await
            }
            ImagePlace::OciArchive { file, .. } => {
                let sink = ArchiveSink::create(file, ArchiveKind::Oci(None))?;
                self.walk(ahead, artifact, place.tag(), &sink, jobs).await
            }
            ImagePlace::DockerArchive {
                file, references, ..
            } => {
                if let Document::Index(index) = &artifact.document {
                    let offered: Vec<String> =
                        index.platforms().iter().map(ToString::to_string).collect();
                    return Err(UsageError(format!(
                        "a docker-archive holds one platform, and the image is for {}",
                        offered.join(", ")
                    )))
                    .hint("choose one with --platform");
                }
                let sink = ArchiveSink::create(file, ArchiveKind::Docker(references.clone()))?;
                self.walk(ahead, artifact, place.tag(), &sink, jobs).await
            }
        }
    }

    /// A destination may carry a digest only as a statement of what is to come.
    fn check_digest(artifact: &Artifact, stated: Option<Digest>) -> Result<()> {
        let found = artifact.document.digest();
        match stated {
            Some(stated) if stated != found => Err(UsageError(format!(
                "the destination names {stated}, but the image is {found}"
            ))
            .into()),
            _ => Ok(()),
        }
    }

    async fn walk<K: ImageSink>(
        &self,
        ahead: &mut Ahead,
        artifact: &Artifact,
        tag: Option<Tag>,
        sink: &K,
        jobs: Jobs,
    ) -> Result<WriteReport> {
        let progress = TransferProgress::new(self.output, self.bars.clone());
        let show = |step: tierce_image::Progress<'_>| progress.show(step);
        let (tag, blobs) = (tag.as_ref(), &self.blobs);
        Ok(write_after(ahead, artifact, tag, blobs, sink, jobs, &show).await?)
    }

    /// Remembers in the store what sealing learnt about the layers of `image`.
    pub(crate) fn record_facts(&self, image: &Image) -> Result<()> {
        let store = self.local_store()?;
        for layer in image.layers() {
            if let Some(facts) = &layer.facts {
                store.record_facts(&layer.descriptor.digest, facts)?;
            }
        }
        Ok(())
    }
}

/// What a name leads to.
enum Found {
    /// A manifest or index at some place.
    At(Source, Selector),
    /// An image of an old docker-archive, which has no manifest yet.
    Plain(PlainImage),
}

/// Leaves what is left of `limit` for layers. Resolved dependencies take as many files as layers have
/// bytes, and are made into layers once, so that at most half of it is theirs.
fn make_room_among_resolved(
    cache: &Path,
    limit: u64,
    has_grown: bool,
) -> Result<u64, crate::dependencies::kept::KeptError> {
    let root = resolved_in(cache);
    let used = if has_grown {
        Kept::prune(&root, limit / 2)?.left
    } else {
        Kept::info(&root)?
    };
    Ok(limit.saturating_sub(used.bytes))
}

/// A directory of this run's own in the cache, removed when the run ends.
#[derive(Debug)]
struct Scratch {
    directory: TempDir,
    /// Held as long as the run lasts: a directory whose lock can be taken was left by a dead run.
    _lock: File,
}

impl Scratch {
    fn make_in(cache: &Path) -> Result<Self> {
        let parent = cache.join("scratch");
        let context = || format!("could not make a directory in {}", parent.display());
        fs::create_dir_all(&parent).with_context(context)?;
        // Nobody looks for dead runs between the making of a directory and of its lock.
        let gate = File::create(parent.join("lock")).with_context(context)?;
        gate.lock().with_context(context)?;
        remove_left_behind(&parent);
        let directory = tempfile::Builder::new()
            .prefix("run-")
            .tempdir_in(&parent)
            .with_context(context)?;
        let lock = File::create(directory.path().join("lock")).with_context(context)?;
        lock.lock().with_context(context)?;
        Ok(Self {
            directory,
            _lock: lock,
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A thread that was told to end may still have made a file since the directory was listed.
        // It makes one at most, so that trying again is enough; what remains is the next run's.
        for _ in 0..3 {
            match fs::remove_dir_all(self.directory.path()) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                _ => return,
            }
        }
    }
}

/// Removes what killed runs left. What cannot be removed is left for another time.
fn remove_left_behind(parent: &Path) {
    let runs = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    for run in runs.filter(|run| run.file_name().to_string_lossy().starts_with("run-")) {
        let dead = match File::open(run.path().join("lock")) {
            Ok(lock) => lock.try_lock().is_ok(),
            Err(_) => true,
        };
        if dead && let Err(error) = fs::remove_dir_all(run.path()) {
            tracing::debug!("could not remove {}: {error}", run.path().display());
        }
    }
}
