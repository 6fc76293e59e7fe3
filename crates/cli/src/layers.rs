//! From planned layers to sealed ones: scan the sources, follow the base's symlinks, compress.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use tierce_image::{BaseImage, Blob, Jobs, Layer, Novelty};
use tierce_layer::{
    Anchored, ArchiveAdd, BaseLinks, Compression, Destination, EntryKind, EntryPath, Keep, Limits,
    Matcher, Notice, ScanAdd, SealSettings, TarCheck, Treatment, Tree, add_archive, read_links,
    scan, seal, seal_tar,
};
use tierce_oci::{ImageFormat, MediaType};

use crate::head_start::Offers;
use crate::output::Output;
use crate::places::Places;
use crate::plan::{BuildPlan, LayerPart, LayerPlan};
use crate::profile::Profile;
use crate::progress::Bars;
use crate::sealed::keep_sealed;

/// The layer format that history entries and cache keys name.
const LAYER_FORMAT: &str = "layer-format-1";

/// What nobody means to have in an image when the whole context is taken.
const NEVER_MEANT: [&str; 4] = ["tierce.toml", "tierce.lock", ".dockerignore", ".git"];

/// No layer is remembered from one build to the next, so of none is it known whether it is new.
const NOVELTY: Novelty = Novelty::Unknown;

/// Makes the layers of a build, once for all platforms whose bases lead to the same paths.
pub(crate) struct Sealer<'a> {
    places: &'a Places,
    output: Output,
    jobs: Jobs,
    compression: Profile,
    sources: Arc<Sources>,
    /// WORKDIR and ENTRYPOINT, when the build sets them.
    working_dir: Option<String>,
    entrypoint: Option<String>,
    /// What was found for the last platform; most often that of the next is the same.
    scanned: Option<(Ground, Arc<ScannedLayers>)>,
    /// What the sealed layers depended on of their base, and the layers.
    sealed: Vec<(Ground, BaseLinks, Vec<Layer>)>,
}

/// The planned layers, with what is needed to find their files.
struct Sources {
    context: PathBuf,
    ignored: Option<Matcher>,
    /// What this run writes is not what it reads.
    written: Matcher,
    layers: Vec<LayerPlan>,
    scratch: PathBuf,
    jobs: Jobs,
}

/// A layer whose sources have been looked at.
enum Scanned {
    Tree(Tree),
    Verbatim(PathBuf),
}

type ScannedLayers = Vec<(LayerPlan, Scanned)>;

impl<'a> Sealer<'a> {
    /// Reads `.dockerignore`; the other sources are looked at when the first layer is made.
    pub(crate) fn new(plan: &BuildPlan, places: &'a Places, output: Output) -> Result<Self> {
        let mut layers = plan.layers.clone();
        if let Some(to) = &plan.whole_context_to {
            let context = plan.context.display();
            output.note(&format!(
                "nothing is added by name: all of {context} goes to {to}"
            ));
            layers.push(LayerPlan::of_files(
                "code",
                vec![LayerPart::Files {
                    from: plan.context.clone(),
                    to: to.clone(),
                    include: Vec::new(),
                    exclude: NEVER_MEANT.map(str::to_owned).to_vec(),
                }],
            ));
        }
        Ok(Self {
            places,
            output,
            jobs: plan.compress_jobs,
            compression: plan.compression,
            sources: Arc::new(Sources {
                context: plan.context.clone(),
                ignored: read_ignore_file(&plan.context.join(".dockerignore"))?,
                written: Matcher::new(&plan.written_in_context)?,
                layers,
                scratch: places.scratch()?.to_owned(),
                jobs: plan.compress_jobs,
            }),
            working_dir: plan.edits.working_dir.clone(),
            entrypoint: plan.edits.entrypoint.iter().flatten().next().cloned(),
            scanned: None,
            sealed: Vec::new(),
        })
    }

    /// The layers to put on `base`, each offered as soon as it is there.
    pub(crate) async fn seal(
        &mut self,
        base: Option<&BaseImage>,
        offers: &Offers,
    ) -> Result<Vec<Layer>> {
        let sources = Arc::clone(&self.sources);
        let ground = self.ground(base);
        let (scanned, notices) = match &self.scanned {
            // Its notices were shown when it was scanned.
            Some((known, scanned)) if *known == ground => (Arc::clone(scanned), Vec::new()),
            _ => {
                let below = ground.clone();
                let (scanned, notices) = in_background(move |_| sources.scan(&below)).await?;
                let scanned = Arc::new(scanned);
                self.scanned = Some((ground.clone(), Arc::clone(&scanned)));
                (scanned, notices)
            }
        };
        let needs_links = scanned.iter().any(|(_, scanned)| match scanned {
            Scanned::Tree(tree) => tree.needs_base_links().is_some(),
            Scanned::Verbatim(_) => false,
        });
        let links = match base {
            Some(base) if needs_links => self.read_base_links(base).await?,
            _ => BaseLinks::none(),
        };
        let known = self.sealed.iter().find(|(known_ground, known_links, _)| {
            *known_ground == ground && *known_links == links
        });
        if let Some((_, _, layers)) = known {
            return Ok(layers.clone());
        }
        self.show_all(&notices);
        let mut above = links.clone();
        let mut layers = Vec::new();
        // Only now: a source that is not there, or not as it should be, is found before anything
        // is sent.
        if let Some(base) = base {
            offers.base(base);
        }
        for position in 0..scanned.len() {
            let job = SealJob {
                scanned: Arc::clone(&scanned),
                position,
                links: above.clone(),
                directory: self.sources.scratch.clone(),
                jobs: self.jobs,
                compression: self.compression,
                output: self.output,
                bars: self.places.bars().clone(),
            };
            offers.making(NOVELTY);
            let (layer, notices, next) = in_background(move |cancel| job.run(cancel)).await?;
            self.show_all(&notices);
            offers.layer(&layer);
            above = next;
            layers.push(layer);
        }
        self.sealed.push((ground, links, layers.clone()));
        Ok(layers)
    }

    /// Says what was noticed, between the bars of what is on its way.
    fn show_all(&self, notices: &[Notice]) {
        let say = || show_all(self.output, notices);
        self.places.bars().suspend(say);
    }

    /// What relative and ambiguous destinations mean on `base`.
    fn ground(&self, base: Option<&BaseImage>) -> Ground {
        let config = base.map(|base| base.image.config());
        Ground {
            working_dir: self
                .working_dir
                .clone()
                .or_else(|| config?.working_dir.clone())
                .unwrap_or_else(|| "/".to_owned()),
            // What a build brings itself it may also arrange as it likes.
            entrypoint: match (&self.entrypoint, config) {
                (None, Some(config)) => config.entrypoint.first().cloned(),
                _ => None,
            },
            from_scratch: base.is_none(),
        }
    }

    /// Learns the symlinks of a base from its layers, which are read once: the links are kept.
    async fn read_base_links(&self, base: &BaseImage) -> Result<BaseLinks> {
        let digest = base.image.digest();
        if let Some(links) = self.places.link_cache().read(&digest) {
            return Ok(links);
        }
        let mut links = BaseLinks::none();
        for layer in base.image.layers() {
            links.begin_layer();
            links = self.read_layer_links(layer, links).await.with_context(|| {
                format!(
                    "could not read the symlinks of base layer {}",
                    layer.descriptor.digest
                )
            })?;
        }
        self.places.link_cache().keep(&digest, &links);
        Ok(links)
    }

    /// Reads one layer of a base as a stream, on top of the links of those below.
    async fn read_layer_links(&self, layer: &Layer, mut links: BaseLinks) -> Result<BaseLinks> {
        let descriptor = &layer.descriptor;
        let compression = match &descriptor.media_type {
            MediaType::Layer(_, tierce_oci::Compression::None) => Compression::None,
            MediaType::Layer(_, tierce_oci::Compression::Zstd) => Compression::Zstd,
            _ => Compression::Gzip,
        };
        self.output
            .step(&format!("reading the symlinks of {}", descriptor.digest));
        let ignore = |_| ();
        let blob = Blob::new(descriptor, &layer.content, self.places.blobs(), &ignore);
        let mut stream = blob.open().await?;
        // A bridge from the stream to a thread that reads: a few pieces are on it at a time.
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let reader = in_background(move |_| {
            let pieces = Pieces {
                receiver,
                current: bytes::Bytes::new(),
            };
            read_links(pieces, compression, Limits::default(), |record| {
                links.apply(&record)
            })?;
            Ok(links)
        });
        let feeder = async move {
            while let Some(piece) = stream.try_next().await? {
                // The reader ends first when it finds something wrong.
                if sender.send(piece).await.is_err() {
                    break;
                }
            }
            Ok::<_, anyhow::Error>(())
        };
        let (fed, links) = futures_util::future::join(feeder, reader).await;
        // A layer that is not what it claims is the first cause of whatever was read out of it.
        fed?;
        links
    }
}

/// Reads what a channel brings.
struct Pieces {
    receiver: tokio::sync::mpsc::Receiver<bytes::Bytes>,
    current: bytes::Bytes,
}

impl std::io::Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        buffer[..length].copy_from_slice(&self.current.split_to(length));
        Ok(length)
    }
}

/// How many notices of one kind are shown in full; a tree that was copied without its times has
/// thousands of stale `.pyc`.
const SHOWN: usize = 3;

fn show_all(output: Output, notices: &[Notice]) {
    let mut stale = 0;
    for notice in notices {
        match notice {
            Notice::NothingAdded { .. } => output.warn(&notice.to_string()),
            Notice::StaleBytecode { .. } => {
                stale += 1;
                if stale <= SHOWN {
                    output.note(&format!("note: {notice}"));
                }
            }
            _ => output.note(&format!("note: {notice}")),
        }
    }
    if stale > SHOWN {
        let rest = stale - SHOWN;
        output.note(&format!(
            "note: and {rest} more compiled files that did not fit their sources"
        ));
    }
}

fn read_ignore_file(path: &Path) -> Result<Option<Matcher>> {
    match std::fs::read(path) {
        Ok(text) => Ok(Some(Matcher::parse(&text, path)?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("could not read {}", path.display())),
    }
}

/// Runs blocking work on a thread of its own; raising the flag asks it to end early, which happens
/// when this future is dropped.
async fn in_background<T: Send + 'static>(
    work: impl FnOnce(&AtomicBool) -> Result<T> + Send + 'static,
) -> Result<T> {
    struct CancelOnDrop(Arc<AtomicBool>);
    impl Drop for CancelOnDrop {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let flag = Arc::new(AtomicBool::new(false));
    let _guard = CancelOnDrop(Arc::clone(&flag));
    tokio::task::spawn_blocking(move || work(&flag))
        .await
        .context("a worker thread ended early")?
}

impl Sources {
    fn scan(&self, ground: &Ground) -> Result<(ScannedLayers, Vec<Notice>)> {
        let mut notices = Vec::new();
        let mut scanned = Vec::new();
        for plan in &self.layers {
            let layer = self
                .scan_layer(plan, ground, &mut notices)
                .with_context(|| format!("could not make the layer `{}`", plan.name))?;
            scanned.push((plan.clone(), layer));
        }
        Ok((scanned, notices))
    }

    fn scan_layer(
        &self,
        plan: &LayerPlan,
        ground: &Ground,
        notices: &mut Vec<Notice>,
    ) -> Result<Scanned> {
        let keep = |keep| if keep { Keep::Keep } else { Keep::Normalised };
        let treatment = Treatment {
            modes: keep(plan.keep_modes),
            owners: keep(plan.keep_owners),
            hardlinks: keep(plan.keep_hardlinks),
            xattrs: plan.xattrs.clone(),
        };
        let mut tree = Tree::new();
        for part in &plan.parts {
            match part {
                LayerPart::VerbatimTar { file } => return Ok(Scanned::Verbatim(file.clone())),
                LayerPart::Tar {
                    file,
                    to,
                    include,
                    exclude,
                } => {
                    let destination = destination(to, &ground.working_dir)?;
                    let exclude = Matcher::new(exclude)?;
                    let include = Matcher::new(include)?;
                    let add = ArchiveAdd {
                        destination: &destination,
                        exclude: Some(&exclude),
                        include: (!include.is_empty()).then_some(&include),
                        treatment: &treatment,
                        scratch: &self.scratch,
                        limits: Limits::default(),
                    };
                    add_archive(file, &add, &mut tree, notices)?;
                }
                LayerPart::Files {
                    from,
                    to,
                    include,
                    exclude,
                } => {
                    let mut destination = destination(to, &ground.working_dir)?;
                    if !from.is_dir() && ground.is_directory(&destination, &tree) {
                        destination = self::destination(&format!("{to}/"), &ground.working_dir)?;
                    }
                    let exclude = Matcher::new(exclude)?;
                    let include = Matcher::new(include)?;
                    // Patterns of a single file are anchored at the folder that it is in.
                    let root = if from.is_dir() {
                        from
                    } else {
                        from.parent().unwrap_or(from)
                    };
                    let mut excluded = vec![Anchored {
                        matcher: &exclude,
                        root,
                    }];
                    excluded.push(Anchored {
                        matcher: &self.written,
                        root: &self.context,
                    });
                    if let Some(ignored) = &self.ignored {
                        excluded.push(Anchored {
                            matcher: ignored,
                            root: &self.context,
                        });
                    }
                    let add = ScanAdd {
                        source: from,
                        destination: &destination,
                        exclude: &excluded,
                        include: (!include.is_empty()).then_some(Anchored {
                            matcher: &include,
                            root,
                        }),
                        treatment: &treatment,
                        jobs: self.jobs.0,
                    };
                    scan(&add, &mut tree, notices)?;
                }
            }
        }
        ground.check(&tree)?;
        Ok(Scanned::Tree(tree))
    }
}

/// Reads a destination as COPY does: a relative one is below the working directory.
fn destination(text: &str, working_dir: &str) -> Result<Destination> {
    let absolute = if text.starts_with('/') {
        text.to_owned()
    } else {
        format!("{}/{text}", working_dir.trim_end_matches('/'))
    };
    Destination::parse(&absolute).with_context(|| format!("`{text}` cannot be a path in an image"))
}

/// Directories that every base has: a file that is added under exactly one of these names is meant
/// to go into it, as COPY does when it finds a directory there. Not on `scratch`, which has none.
const DIRECTORIES: [&str; 15] = [
    "bin",
    "etc",
    "home",
    "lib",
    "lib64",
    "opt",
    "root",
    "sbin",
    "tmp",
    "usr",
    "usr/bin",
    "usr/lib",
    "var",
    "var/runtime",
    "var/task",
];

/// Where a build's relative and ambiguous destinations lead.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ground {
    working_dir: String,
    /// The file that the image runs; nothing may become a directory in its place.
    entrypoint: Option<String>,
    from_scratch: bool,
}

impl Ground {
    /// Whether a destination without a trailing slash is known to be a directory: by what was added
    /// before, as the working directory, or by its name. A pure function of what is built, so that
    /// no digest depends on how much is known of the base.
    fn is_directory(&self, destination: &Destination, tree: &Tree) -> bool {
        let Some(path) = destination.path() else {
            return true;
        };
        let added = tree
            .get(path)
            .is_some_and(|entry| matches!(entry.kind, EntryKind::Directory));
        let name = path.as_bytes();
        let of_base = || {
            name == self.working_dir.trim_matches('/').as_bytes()
                || DIRECTORIES
                    .iter()
                    .any(|directory| name == directory.as_bytes())
        };
        added || (!self.from_scratch && of_base())
    }

    /// Refuses a tree that would put a directory where the base has what the image runs.
    fn check(&self, tree: &Tree) -> Result<()> {
        let Some(entrypoint) = &self.entrypoint else {
            return Ok(());
        };
        let Some(path) = EntryPath::clean(entrypoint.trim_start_matches('/').as_bytes())? else {
            return Ok(());
        };
        let replaced = tree
            .get(&path)
            .is_some_and(|entry| matches!(entry.kind, EntryKind::Directory));
        anyhow::ensure!(
            !replaced,
            "a folder would take the place of `{entrypoint}`, which the image runs"
        );
        Ok(())
    }
}

/// One layer, ready to be compressed.
struct SealJob {
    scanned: Arc<ScannedLayers>,
    /// Which of them.
    position: usize,
    links: BaseLinks,
    directory: PathBuf,
    jobs: Jobs,
    compression: Profile,
    output: Output,
    bars: Bars,
}

impl SealJob {
    /// Compresses the layer; gives it with the links that a further layer meets.
    fn run(self, cancel: &AtomicBool) -> Result<(Layer, Vec<Notice>, BaseLinks)> {
        let name = self.scanned[self.position].0.name.clone();
        self.seal(cancel)
            .with_context(|| format!("could not make the layer `{name}`"))
    }

    fn seal(self, cancel: &AtomicBool) -> Result<(Layer, Vec<Notice>, BaseLinks)> {
        let Self {
            scanned,
            position,
            mut links,
            directory,
            jobs,
            compression,
            output,
            bars,
        } = self;
        let (plan, scanned) = &scanned[position];
        bars.suspend(|| output.step(&format!("making the layer `{}`", plan.name)));
        let bar = bars.add(0, &plan.name);
        let progress = |bytes| bar.set_position(bytes);
        let codec = compression.codec();
        let settings = SealSettings {
            codec: &*codec,
            directory: &directory,
            jobs: jobs.0,
            progress: Some(&progress),
            cancel: Some(cancel),
        };
        let mut notices = Vec::new();
        let sealed = match scanned {
            Scanned::Tree(tree) => {
                let mut settled = tree.clone().settle(Some(&links), &mut notices)?;
                links.apply_tree(tree)?;
                if let Some(seconds) = plan.mtime {
                    settled = settled.with_modified(seconds);
                }
                seal(&settled, &settings)?
            }
            Scanned::Verbatim(path) => {
                let open = || format!("could not read {}", path.display());
                let file = std::fs::File::open(path).with_context(open)?;
                let (_, archive) = Compression::detect_and_decode(file).with_context(open)?;
                seal_tar(archive, TarCheck::Strict(Limits::default()), &settings)
                    .with_context(open)?
            }
        };
        bar.finish_and_clear();
        let created_by = format!("tierce {LAYER_FORMAT} {} {}", sealed.codec, plan.name);
        // The assembler gives the type the format of the image.
        let mut layer = keep_sealed(sealed, ImageFormat::Oci)?;
        layer.created_by = Some(created_by);
        Ok((layer, notices, links))
    }
}
