//! From planned layers to sealed ones: look at the sources, follow the base's symlinks, cut, compress;
//! and none of it for what is known from an earlier build.

use std::fs::File;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use tierce_image::{Jobs, Layer, Novelty};
use tierce_layer::cache::NoteId;
use tierce_layer::{
    BaseLinks, Codec, Compression, FileTime, LastTime, LayerCache, Limits, Part, SealSettings,
    SealedLayer, SplitSettings, TarCheck, Tree, seal, seal_tar,
};

use crate::background::in_background;
use crate::base_links::read_base_links;
use crate::commands::build::Resolved;
use crate::config_file::Split;
use crate::dependencies::Resolver;
use crate::dependencies::bytecode::{Bytecode, Workshop};
use crate::environment::Variables;
use crate::head_start::Offers;
use crate::layer_facts::{FactsCache, LayerGathering};
use crate::memory::{Memory, RememberedLayer, digest_of};
use crate::notices::Remark;
use crate::output::Output;
use crate::places::Places;
use crate::plan::{BuildPlan, LayerPart, LayerPlan};
use crate::prebuilds::PruneFor;
use crate::profile::Profile;
use crate::progress::Bars;
use crate::sealed::layer_of;
use crate::sources::{Ground, LAYER_FORMAT, Sources};

/// Makes the layers of a build, once for all platforms whose bases lead to the same paths.
pub(crate) struct Sealer<'a> {
    places: &'a Places,
    cache: Arc<LayerCache>,
    output: Output,
    jobs: Jobs,
    compression: Profile,
    sources: Arc<Sources>,
    resolver: Resolver<'a>,
    /// Where Python is compiled, if any layer asks for that.
    workshop: Option<Workshop>,
    /// WORKDIR and ENTRYPOINT, when the build sets them.
    working_dir: Option<String>,
    entrypoint: Option<String>,
    /// Whether a layer may be known without its bytes being in the cache.
    identity_suffices: bool,
    /// What was found for the last platform; most often that of the next is the same.
    looked: Option<(Ground, Vec<LayerPlan>, Arc<Vec<LookedAt>>)>,
    /// What the sealed layers depended on, and the layers.
    sealed: Vec<Sealed>,
}

/// What was sealed for one platform, which is often what the next one needs too.
struct Sealed {
    ground: Ground,
    plans: Vec<LayerPlan>,
    links: BaseLinks,
    layers: Vec<Layer>,
}

/// A planned layer whose sources have been looked at.
struct LookedAt {
    /// With dependencies as trees.
    plan: LayerPlan,
    /// What the sources are, and when the last of them was changed.
    fingerprint: String,
    latest: FileTime,
    question: NoteId,
    /// How it came out before, the last time first.
    memories: Vec<Memory>,
    /// Whether the symlinks of the base must be known to make it.
    needs_base_links: bool,
    /// What is there, when it is not what it was the last time; `None` for a verbatim tar too. Who
    /// makes the layer takes it, for a tree of many files is large.
    tree: Mutex<Option<(Tree, Vec<Remark>)>>,
    /// When the looking began.
    began: FileTime,
}

impl LookedAt {
    /// The memories of the sources as they are.
    fn known(&self) -> impl Iterator<Item = &Memory> {
        let fingerprint = Some(&self.fingerprint);
        self.memories
            .iter()
            .filter(move |memory| memory.fingerprint.as_ref() == fingerprint)
    }

    /// Whether the sources had been left alone for long enough to be known again by `stat`.
    fn is_settled(&self) -> bool {
        self.latest.is_settled_before(self.began)
    }

    fn take_tree(&self) -> Option<(Tree, Vec<Remark>)> {
        self.tree
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

impl<'a> Sealer<'a> {
    /// Reads `.dockerignore`; the other sources are looked at when the first layer is made.
    pub(crate) fn new(
        plan: &BuildPlan,
        places: &'a Places,
        variables: &Variables,
        output: Output,
    ) -> Result<Self> {
        if let Some(to) = &plan.whole_context_to {
            let context = plan.context.display();
            output.note(&format!(
                "nothing is added by name: all of {context} goes to {to}"
            ));
        }
        let compiles = |layer: &LayerPlan| layer.bytecode != Bytecode::AsFound;
        let workshop = if plan.layers.iter().any(compiles) {
            let (kept, scratch) = (places.resolved()?, places.scratch()?);
            let jobs = plan.compress_jobs.0;
            Some(Workshop::new(kept, scratch, variables, jobs))
        } else {
            None
        };
        Ok(Self {
            places,
            workshop,
            cache: places.layer_cache()?,
            output,
            jobs: plan.compress_jobs,
            compression: plan.compression,
            sources: Arc::new(Sources::new(plan, places.scratch()?)?),
            resolver: Resolver::new(places, variables, &plan.context, output),
            working_dir: plan.edits.working_dir.clone(),
            entrypoint: plan.edits.entrypoint.iter().flatten().next().cloned(),
            identity_suffices: true,
            looked: None,
            sealed: Vec::new(),
        })
    }

    /// From here on layers are known only when their bytes are in the cache.
    pub(crate) fn require_bytes(&mut self) {
        self.identity_suffices = false;
        self.sealed.clear();
    }

    /// The layers to put on `base`, of which `facts` are known, for `platform`, each offered as soon as it is there.
    pub(crate) async fn seal(
        &mut self,
        resolved: &Resolved,
        offers: &Offers,
    ) -> Result<Vec<Layer>> {
        let Resolved {
            platform,
            base,
            facts,
            handler,
            client,
        } = resolved;
        let base = base.as_ref();
        let of_client = client.as_ref();
        let of_client = of_client.and_then(|client| client.working_dir.as_deref());
        let ground = Ground::of(
            base,
            facts,
            self.working_dir.as_deref().or(of_client),
            self.entrypoint.as_deref(),
        );
        let planned = handler.put_into(&self.sources.layers);
        let mut plans = self.resolver.resolve(&planned, facts, platform).await?;
        for plan in &mut plans {
            if let Some(target) = &mut plan.prune_prebuilds {
                *target = PruneFor::of(facts, platform);
            }
        }
        let looked = match &self.looked {
            Some((known, of, looked)) if *known == ground && *of == plans => Arc::clone(looked),
            _ => {
                let looked = Arc::new(self.look(&ground, plans.clone()).await?);
                self.looked = Some((ground.clone(), plans.clone(), Arc::clone(&looked)));
                looked
            }
        };
        let links = match base {
            Some(base) if looked.iter().any(|looked| looked.needs_base_links) => {
                read_base_links(base, self.places, self.output).await?
            }
            _ => BaseLinks::none(),
        };
        let known = self.sealed.iter().find(|sealed| {
            sealed.ground == ground && sealed.links == links && sealed.plans == plans
        });
        if let Some(Sealed { layers, .. }) = known {
            return Ok(layers.clone());
        }
        let mut above = links.clone();
        let mut layers = Vec::new();
        // Only now: a source that is not there, or not as it should be, is found before anything
        // is sent.
        if let Some(base) = base {
            offers.base(base);
        }
        for position in 0..looked.len() {
            let job = SealJob {
                looked: Arc::clone(&looked),
                position,
                sources: Arc::clone(&self.sources),
                ground: ground.clone(),
                cache: Arc::clone(&self.cache),
                workshop: self.workshop.clone(),
                facts: self.places.facts_cache().clone(),
                links: above,
                identity_suffices: self.identity_suffices,
                jobs: self.jobs,
                compression: self.compression,
                output: self.output,
                bars: self.places.bars().clone(),
                offers: offers.clone(),
            };
            let made = in_background(move |cancel| job.run(cancel)).await?;
            self.places.bars().suspend(|| {
                made.remarks
                    .iter()
                    .for_each(|remark| remark.say(self.output));
            });
            above = made.links;
            layers.extend(made.layers);
        }
        self.sealed.push(Sealed {
            ground,
            plans,
            links,
            layers: layers.clone(),
        });
        Ok(layers)
    }

    /// Looks at the sources, and makes trees of those that are not what they were the last time.
    async fn look(&self, ground: &Ground, plans: Vec<LayerPlan>) -> Result<Vec<LookedAt>> {
        let (sources, cache, ground) = (
            Arc::clone(&self.sources),
            Arc::clone(&self.cache),
            ground.clone(),
        );
        let codec = self.compression.codec().id().to_owned();
        in_background(move |_| {
            let look = |plan: LayerPlan| {
                let context = format!("could not make the layer `{}`", plan.name);
                look_at(&sources, plan, &ground, &cache, &codec).context(context)
            };
            plans.into_iter().map(look).collect()
        })
        .await
    }
}

fn look_at(
    sources: &Sources,
    plan: LayerPlan,
    ground: &Ground,
    cache: &LayerCache,
    codec: &str,
) -> Result<LookedAt> {
    let began = now();
    let question = sources.question(&plan, ground, codec);
    let found = sources.look(&plan)?;
    let mut looked = LookedAt {
        plan,
        fingerprint: found.fingerprint.clone(),
        latest: found.latest,
        memories: Memory::read(cache, &question),
        question,
        needs_base_links: false,
        tree: Mutex::new(None),
        began,
    };
    let known = looked.known().next().map(|memory| memory.needs_base_links);
    if let Some(needs_base_links) = known {
        looked.needs_base_links = needs_base_links;
        return Ok(looked);
    }
    let mut notices = Vec::new();
    if let Some(tree) = sources.tree(&looked.plan, &found, ground, &mut notices)? {
        looked.needs_base_links = tree.needs_base_links().is_some();
        looked.tree = Mutex::new(Some((tree, Remark::on(&notices))));
    }
    Ok(looked)
}

/// The clock that files get their times from; for nothing but the question which of them were
/// changed just now.
pub(crate) fn now() -> FileTime {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    FileTime {
        seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        nanoseconds: now.subsec_nanos(),
    }
}

/// One planned layer, ready to be made.
struct SealJob {
    looked: Arc<Vec<LookedAt>>,
    /// Which of them.
    position: usize,
    sources: Arc<Sources>,
    ground: Ground,
    cache: Arc<LayerCache>,
    workshop: Option<Workshop>,
    facts: FactsCache,
    /// The links that it meets.
    links: BaseLinks,
    identity_suffices: bool,
    jobs: Jobs,
    compression: Profile,
    output: Output,
    bars: Bars,
    offers: Offers,
}

/// What came of a planned layer.
struct Made {
    layers: Vec<Layer>,
    remarks: Vec<Remark>,
    /// The links that a further layer meets.
    links: BaseLinks,
}

impl SealJob {
    fn run(self, cancel: &AtomicBool) -> Result<Made> {
        let name = self.plan().name.clone();
        match self.remembered() {
            Some(made) => Ok(made),
            None => self
                .make(cancel)
                .with_context(|| format!("could not make the layer `{name}`")),
        }
    }

    fn plan(&self) -> &LayerPlan {
        &self.looked().plan
    }

    fn looked(&self) -> &LookedAt {
        &self.looked[self.position]
    }

    /// The layers, when nothing that they depend on has changed. No file is opened.
    fn remembered(&self) -> Option<Made> {
        let links_below = digest_of(&self.links);
        let mut known = self.looked().known();
        let memory = known.find(|memory| memory.links_below == links_below)?;
        let codec = self.compression.codec();
        let mut layers = Vec::new();
        for remembered in &memory.layers {
            let LastTime { recipe, .. } = remembered.last_time(&self.cache, codec.id())?;
            if !self.identity_suffices && !self.cache.has_packs_of(&recipe) {
                return None;
            }
            layers.push(layer_of(
                &recipe,
                &*codec,
                &self.cache,
                Some(self.created_by(codec.id(), remembered.label.as_deref())),
            ));
        }
        let links = memory.links_above(&self.links)?;
        for layer in &layers {
            self.offers.layer(layer);
        }
        Some(Made {
            layers,
            remarks: memory.remarks.clone(),
            links,
        })
    }

    fn make(&self, cancel: &AtomicBool) -> Result<Made> {
        let (plan, looked) = (self.plan(), self.looked());
        self.bars.suspend(|| {
            self.output
                .step(&format!("making the layer `{}`", plan.name));
        });
        // It may come out as it was, as in a fresh checkout.
        self.offers.making(Novelty::Unknown);
        let (made, remembered) = match &plan.parts[..] {
            [LayerPart::VerbatimTar { file }] => self.make_of_verbatim(file, cancel)?,
            _ => self.make_of_tree(cancel)?,
        };
        let fingerprint = looked.is_settled().then(|| looked.fingerprint.clone());
        let memory = Memory::new(
            fingerprint,
            looked.needs_base_links,
            (&self.links, &made.links),
            made.remarks.clone(),
            remembered,
        );
        memory.keep(&self.cache, &looked.question);
        Ok(made)
    }

    fn make_of_tree(&self, cancel: &AtomicBool) -> Result<(Made, Vec<RememberedLayer>)> {
        let (plan, looked) = (self.plan(), self.looked());
        let mut notices = Vec::new();
        let (mut tree, mut remarks) = match looked.take_tree() {
            Some(taken) => taken,
            // The sources are what they were, but the links below are not, or a recipe is gone; or
            // it is made once more.
            None => {
                let found = self.sources.look(plan)?;
                anyhow::ensure!(
                    found.fingerprint == looked.fingerprint,
                    "its files changed while the image was made"
                );
                let tree = self
                    .sources
                    .tree(plan, &found, &self.ground, &mut notices)?
                    .context("its only part is a verbatim tar")?;
                (tree, Vec::new())
            }
        };
        if let (Bytecode::By(interpreter), Some(workshop)) = (&plan.bytecode, &self.workshop) {
            let say = |count| {
                let version = interpreter.version;
                let files = if count == 1 { "file" } else { "files" };
                let line = format!("compiling {count} {files} with Python {version}");
                self.bars.suspend(|| self.output.note(&line));
            };
            workshop.compile(&mut tree, interpreter, &mut notices, say, cancel)?;
        }
        let mut links = self.links.clone();
        links.apply_tree(&tree)?;
        let mut settled = tree.settle(Some(&self.links), &mut notices)?;
        remarks.extend(Remark::on(&notices));
        if let Some(seconds) = plan.mtime {
            settled = settled.with_modified(seconds);
        }
        let parts = match plan.split {
            Split::On(settings) => settled.split(&settings),
            Split::Auto if settled.looks_like_dependencies() => {
                settled.split(&SplitSettings::default())
            }
            Split::Auto | Split::Off => vec![Part {
                label: None,
                plan: settled,
            }],
        };
        let (layers, remembered) = self.seal_parts(&parts, cancel)?;
        let made = Made {
            layers,
            remarks,
            links,
        };
        Ok((made, remembered))
    }

    fn make_of_verbatim(
        &self,
        file: &Path,
        cancel: &AtomicBool,
    ) -> Result<(Made, Vec<RememberedLayer>)> {
        let codec = self.compression.codec();
        let bar = self.bars.add(0, &self.plan().name);
        let progress = |bytes| bar.set_position(bytes);
        let settings = SealSettings {
            progress: Some(&progress),
            ..self.settings(&*codec, self.jobs.0, cancel)
        };
        let open = || format!("could not read {}", file.display());
        let opened = File::open(file).with_context(open)?;
        let again = opened.try_clone().with_context(open)?;
        let looked = self.sources.look(self.plan())?;
        anyhow::ensure!(
            looked.fingerprint == self.looked().fingerprint || looked.is_of_a_pipe(),
            "{} changed while the image was made",
            file.display()
        );
        looked.require_verbatim(file, &again)?;
        let (_, archive) = Compression::detect_and_decode(opened).with_context(open)?;
        // What is in it is not gathered: whoever asks reads the finished layer, once.
        let sealed =
            seal_tar(archive, TarCheck::Strict(Limits::default()), &settings).with_context(open)?;
        bar.finish_and_clear();
        let made = Made {
            layers: vec![self.finished(&sealed, &*codec, None, None)],
            remarks: Vec::new(),
            links: self.links.clone(),
        };
        let remembered = RememberedLayer::new(None, &sealed, self.looked().began);
        Ok((made, vec![remembered]))
    }

    /// Seals the layers that a planned layer becomes, several at once where there are processors
    /// enough that the hashes of one layer would hold them up.
    fn seal_parts(
        &self,
        parts: &[Part],
        cancel: &AtomicBool,
    ) -> Result<(Vec<Layer>, Vec<RememberedLayer>)> {
        let at_once = (self.jobs.get() / JOBS_OF_A_LAYER).clamp(1, parts.len().max(1));
        let share = NonZeroUsize::new(self.jobs.get() / at_once).unwrap_or(NonZeroUsize::MIN);
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::new());
        let seal_on = || -> Result<()> {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(part) = parts.get(index) else {
                    return Ok(());
                };
                let sealed = self.seal_part(part, share, cancel);
                if sealed.is_err() {
                    next.store(parts.len(), Ordering::Relaxed);
                }
                let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                done.push((index, sealed?));
            }
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..at_once).map(|_| scope.spawn(seal_on)).collect();
            let mut result = seal_on();
            for other in others {
                match other.join() {
                    Ok(ended) => result = result.and(ended),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            result
        })?;
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_by_key(|(index, _)| *index);
        Ok(done.into_iter().map(|(_, sealed)| sealed).unzip())
    }

    fn seal_part(
        &self,
        part: &Part,
        jobs: NonZeroUsize,
        cancel: &AtomicBool,
    ) -> Result<(Layer, RememberedLayer)> {
        let codec = self.compression.codec();
        let last_time = self.last_time(part.label.as_deref());
        let bar = self.bars.add(
            part.plan.archive_size(),
            &self.name_of(part.label.as_deref()),
        );
        let progress = |bytes| bar.set_position(bytes);
        let gathering = LayerGathering::default();
        let settings = SealSettings {
            last_time: last_time.as_ref(),
            progress: Some(&progress),
            observer: Some(&gathering),
            ..self.settings(&*codec, jobs, cancel)
        };
        let sealed = seal(&part.plan, &settings)?;
        bar.finish_and_clear();
        gathering.keep(
            &part.plan,
            &sealed,
            &*codec,
            last_time.as_ref(),
            &self.facts,
            self.cache.scratch(),
        );
        let label = part.label.as_deref();
        let layer = self.finished(&sealed, &*codec, label, last_time.as_ref());
        let began = self.looked().began;
        Ok((
            layer,
            RememberedLayer::new(part.label.clone(), &sealed, began),
        ))
    }

    fn settings<'s>(
        &'s self,
        codec: &'s dyn Codec,
        jobs: NonZeroUsize,
        cancel: &'s AtomicBool,
    ) -> SealSettings<'s> {
        SealSettings {
            codec,
            cache: &self.cache,
            last_time: None,
            identity_suffices: self.identity_suffices,
            jobs,
            progress: None,
            cancel: Some(cancel),
            observer: None,
        }
    }

    /// How the layer of this label came out the last time.
    fn last_time(&self, label: Option<&str>) -> Option<LastTime> {
        let codec = self.compression.codec();
        let links_below = digest_of(&self.links);
        let memories = &self.looked().memories;
        let memory = memories
            .iter()
            .find(|memory| memory.links_below == links_below)
            .or(memories.first())?;
        let layer = memory
            .layers
            .iter()
            .find(|layer| layer.label.as_deref() == label)?;
        layer.last_time(&self.cache, codec.id())
    }

    /// Makes a layer for an image of what was sealed, and offers it.
    fn finished(
        &self,
        sealed: &SealedLayer,
        codec: &dyn Codec,
        label: Option<&str>,
        last_time: Option<&LastTime>,
    ) -> Layer {
        let layer = layer_of(
            &sealed.recipe,
            codec,
            &self.cache,
            Some(self.created_by(codec.id(), label)),
        );
        // Whoever remembers nothing cannot say that it was never made.
        if sealed.effort.hashed > 0 && last_time.is_some() {
            self.offers.making(Novelty::New);
        }
        self.offers.layer(&layer);
        layer
    }

    fn name_of(&self, label: Option<&str>) -> String {
        let name = &self.plan().name;
        match label {
            Some(label) => format!("{name} ({label})"),
            None => name.clone(),
        }
    }

    fn created_by(&self, codec: &str, label: Option<&str>) -> String {
        format!("tierce {LAYER_FORMAT} {codec} {}", self.name_of(label))
    }
}

/// How many threads it takes to compress as fast as one hashes.
const JOBS_OF_A_LAYER: usize = 6;
