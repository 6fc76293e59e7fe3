//! `tierce build`: resolve base → plan layers → seal → edits → assemble → judge → write.
//!
//! A push begins to write before the last layer is sealed: see [`crate::head_start`].

use anyhow::{Context as _, Result};
use futures_util::future::try_join;
use serde_json::{Map, Value, json};
use tierce_image::{Artifact, BaseImage, Image, Layer, assemble, assemble_index};
use tierce_lambda::{BaseFacts, CLibrary};
use tierce_oci::{Compression, Document, ImageFormat, Index, MediaType, Platform, Raw};
use tierce_store::atomic::write_file;

use crate::arguments::BuildArguments;
use crate::base::{self, Lock, LockPolicy};
use crate::base_facts::{self, Needs};
use crate::dependencies::client::ClientStart;
use crate::diagnostic::{Hinted as _, UsageError};
use crate::environment::Environment;
use crate::gate::{Base, Gate};
use crate::handler::{Handlers, PreparedHandler};
use crate::head_start::{Arrived, HeadStart, Offers};
use crate::layers::Sealer;
use crate::output::{Output, describe_report};
use crate::places::{Places, PlacesSettings};
use crate::plan::{BuildPlan, place_of};
use crate::transport::ImagePlace;
use crate::verdict::Verdict;
use crate::written::Written;

/// Runs `tierce build`.
pub(crate) async fn build(
    arguments: BuildArguments,
    environment: &Environment,
    output: Output,
) -> Result<()> {
    let plan = BuildPlan::resolve(&arguments, environment)?;
    let mut places = Places::open(
        &PlacesSettings {
            registry: &arguments.registry,
            create_repository: arguments.create_repository,
            offline: arguments.offline,
            remembers: !arguments.no_cache,
            compress_jobs: plan.compress_jobs,
        },
        environment,
        output,
    )?;
    let policy = if arguments.locked {
        LockPolicy::Demand
    } else {
        LockPolicy::Honour
    };
    let mut lock = Lock::open(plan.lock.clone(), policy)?;

    check_destinations(&plan, plan.platforms.len().max(1), arguments.offline)?;
    let bases = resolve_bases(&plan, &mut lock, &places, output).await?;
    let format = image_format(&plan, &bases);
    plan.check_compression(Some(format))?;
    let sealer = Sealer::new(&plan, &places, &environment.variables, output)?;
    let ahead_to = if arguments.dry_run {
        &[]
    } else {
        &plan.destinations[..]
    };
    let mut making = Making {
        plan: &plan,
        bases: &bases,
        format,
        sealer,
    };
    let (mut images, mut arrived) = making.make_and_send_ahead(ahead_to, &places).await?;
    let verdict = making
        .judge(&mut images, &places, arguments.dry_run, output)
        .await?;

    if arguments.dry_run {
        output.note("dry run: nothing is written");
        let written = results_without_writing(&plan, &images, &verdict, output)?;
        return Written::conclude(written, output);
    }
    lock.save(&plan.base, output)?;
    let written = Writing {
        making: &mut making,
        images: &mut images,
        verdict: &verdict,
        places: &places,
        output,
    };
    let written = written.write_all(&mut arrived).await?;
    if let Some(path) = &arguments.metadata_file {
        write_file(path, metadata(&plan, &images)?.to_string().as_bytes())?;
    }
    Written::conclude(written, output)?;
    drop(making);
    places.make_room(environment.cache_limit);
    Ok(())
}

/// Makes the one image of `plan`, judged like any, and gives it no name: `take` gets it.
///
/// What `take` reads of it may turn out to be gone from the cache: then it is made, and taken, again.
pub(crate) async fn build_and_take<T>(
    plan: &BuildPlan,
    places: &Places,
    environment: &Environment,
    output: Output,
    take: impl AsyncFn(&Image) -> Result<T>,
) -> Result<T> {
    let mut lock = Lock::open(plan.lock.clone(), LockPolicy::Honour)?;
    let bases = resolve_bases(plan, &mut lock, places, output).await?;
    let format = image_format(plan, &bases);
    plan.check_compression(Some(format))?;
    let mut making = Making {
        plan,
        bases: &bases,
        format,
        sealer: Sealer::new(plan, places, &environment.variables, output)?,
    };
    let (mut images, _) = making.make_and_send_ahead(&[], places).await?;
    // It has no name under which more could be said of it.
    let is_dry = true;
    making.judge(&mut images, places, is_dry, output).await?;
    lock.save(&plan.base, output)?;
    let mut tries = 1..TRIES;
    loop {
        let [image] = &images[..] else {
            anyhow::bail!("one image was asked for, and {} were made", images.len());
        };
        match take(image).await {
            Err(error) if tries.next().is_some() && places.forget_pack_of(&error) => {
                images = making.make_bytes().await?;
            }
            taken => return taken,
        }
    }
}

/// A platform to build for, and what it is built on.
pub(crate) struct Resolved {
    pub(crate) platform: Platform,
    pub(crate) base: Option<BaseImage>,
    /// What the build goes by of the base.
    pub(crate) facts: BaseFacts,
    /// What the compiled handler adds, if there is one.
    pub(crate) handler: PreparedHandler,
    /// How the Runtime Interface Client starts there, when one is added.
    pub(crate) client: Option<ClientStart>,
}

async fn resolve_bases(
    plan: &BuildPlan,
    lock: &mut Lock,
    places: &Places,
    output: Output,
) -> Result<Vec<Resolved>> {
    let mut wanted: Vec<Option<Platform>> = plan.platforms.iter().cloned().map(Some).collect();
    if wanted.is_empty() {
        // What the first build settled on is pinned; the others follow it. Out of several it is the
        // one that would be chosen out of an index.
        wanted.push(match &lock.platforms(&plan.base)[..] {
            [only] => Some(only.clone()),
            several => {
                let default = Platform::linux("amd64");
                several.contains(&default).then_some(default)
            }
        });
    }
    let handlers = Handlers {
        context: &plan.context,
        edits: &plan.edits,
        cache: places.layer_cache()?,
        output,
    };
    let mut bases = Vec::new();
    for wanted in wanted {
        let base = base::resolve(&plan.base, wanted.as_ref(), lock, places).await?;
        let platform = match (&base, wanted) {
            (Some(base), _) => base.image.platform().clone(),
            (None, Some(wanted)) => wanted,
            (None, None) => {
                output.note("building for linux/amd64, Lambda's default; --platform names another");
                Platform::linux("amd64")
            }
        };
        if plan.platforms.is_empty() && base.is_some() {
            output.note(&format!(
                "building for {platform}; --platform names another"
            ));
        }
        let program = handlers.program(&plan.layers, &platform)?;
        let facts = match &base {
            Some(base) => {
                let of_program = program.as_ref().map(|it| handlers.needs(it, base));
                let needs = Needs::of(plan).and(of_program.unwrap_or_default());
                base_facts::settle(base, &plan.base, needs, lock, places, output).await?
            }
            // There is nothing, and that is certain.
            None => BaseFacts {
                complete: true,
                ..BaseFacts::default()
            },
        };
        let handler = match &program {
            Some(program) => handlers.prepare(program, base.as_ref(), &plan.base.text, &facts)?,
            None => PreparedHandler::default(),
        };
        drop(program);
        let client = match &base {
            Some(base) if plan.has_runtime_client => {
                Some(ClientStart::find(base, &facts, &plan.edits)?)
            }
            _ => None,
        };
        bases.push(Resolved {
            platform,
            base,
            facts,
            handler,
            client,
        });
    }
    Ok(bases)
}

/// The making of a build's images, which may have to be done again.
struct Making<'a> {
    plan: &'a BuildPlan,
    bases: &'a [Resolved],
    format: ImageFormat,
    sealer: Sealer<'a>,
}

/// How often layers are made again because packs of the cache turn out to be gone or damaged. Each
/// time one pack less is believed, and after the first time none is that is not there.
const TRIES: usize = 4;

impl Making<'_> {
    /// Makes the images while what is ready goes ahead to the registries among `destinations`.
    async fn make_and_send_ahead(
        &mut self,
        destinations: &[ImagePlace],
        places: &Places,
    ) -> Result<(Vec<Image>, Arrived)> {
        let mut tries = 1..TRIES;
        loop {
            let jobs = self.plan.transfer_jobs;
            let several = is_several(self.plan, self.bases.len());
            let (offers, head_start) = HeadStart::to(destinations, several);
            let made = try_join(self.make(offers), head_start.run(places, jobs)).await;
            match made {
                Err(error) if tries.next().is_some() && places.forget_pack_of(&error) => {
                    self.sealer.require_bytes();
                }
                made => return made,
            }
        }
    }

    /// Makes the image of each platform, and offers what goes into it as soon as it is there. The
    /// offers end with it.
    async fn make(&mut self, offers: Offers) -> Result<Vec<Image>> {
        let mut images = Vec::new();
        for resolved in self.bases {
            offers.begin(&resolved.platform)?;
            let layers = self.sealer.seal(resolved, &offers).await?;
            let Resolved {
                platform,
                base,
                handler,
                client,
                ..
            } = resolved;
            let mut edits = self.plan.final_edits();
            handler.apply(&mut edits);
            if let Some(client) = client {
                client.edit(&mut edits);
            }
            let image = assemble(
                base.as_ref(),
                layers,
                &edits,
                platform,
                self.format,
                self.plan.created,
            )
            .with_context(|| format!("could not assemble the image for {platform}"))?;
            offers.image(&image);
            images.push(image);
        }
        Ok(images)
    }

    /// Judges all images that are for Lambda, and refuses errors before anything has a name.
    async fn judge(
        &mut self,
        images: &mut Vec<Image>,
        places: &Places,
        is_dry: bool,
        output: Output,
    ) -> Result<Verdict> {
        let mut tries = 1..TRIES;
        let gate = loop {
            let mut gate = Gate::new(self.plan.allow.clone(), places, output);
            match self.judge_at(&mut gate, images).await {
                // What is in a layer may have to be read out of what is kept of it.
                Err(error) if tries.next().is_some() && places.forget_pack_of(&error) => {
                    *images = self.make_bytes().await?;
                }
                judged => {
                    judged?;
                    break gate;
                }
            }
        };
        let several = is_several(self.plan, images.len());
        let place = match (&self.plan.destinations[..], &images[..]) {
            ([place, ..], [image, ..]) => place_of(place, image.platform(), several)?,
            _ => return Ok(Verdict::default()),
        };
        gate.decide(&place, is_dry)
    }

    async fn judge_at(&self, gate: &mut Gate<'_>, images: &[Image]) -> Result<()> {
        let (glibc, python) = self.plan.said_of_base();
        for (image, resolved) in images.iter().zip(self.bases) {
            let Resolved { base, facts, .. } = resolved;
            let said = BaseFacts {
                libc: glibc.map(|version| CLibrary::Glibc(Some(version))),
                python,
                ..BaseFacts::default()
            };
            let facts = said.or(facts.clone());
            gate.judge(image, Base::of_build(base.as_ref(), &facts))
                .await?;
        }
        Ok(())
    }

    /// Makes the same images again, with all their bytes.
    async fn make_bytes(&mut self) -> Result<Vec<Image>> {
        self.sealer.require_bytes();
        self.make(Offers::default()).await
    }
}

/// The format asked for, else the base's own; Docker's, which Lambda always took, for `scratch`.
/// One for all platforms, or an index would hold images of both kinds.
fn image_format(plan: &BuildPlan, bases: &[Resolved]) -> ImageFormat {
    let own = || {
        let base = bases.first().and_then(|resolved| resolved.base.as_ref());
        base.map_or(ImageFormat::DockerV2S2, |base| base.image.format())
    };
    plan.format.unwrap_or_else(own)
}

fn check_destinations(plan: &BuildPlan, platforms: usize, offline: bool) -> Result<()> {
    for place in &plan.destinations {
        match place {
            ImagePlace::Registry(_) if offline => {
                return Err(UsageError(format!("--offline forbids to push to `{place}`")).into());
            }
            ImagePlace::Layout { .. }
            | ImagePlace::OciArchive { .. }
            | ImagePlace::DockerArchive { .. }
                if offline && base_is_remote(plan) =>
            {
                return Err(UsageError(format!(
                    "--offline: `{place}` needs the layers of the base, which are in a registry"
                )))
                .hint("build without --offline, or into the store: `-o store:NAME`");
            }
            ImagePlace::DockerArchive { .. } if plan.index => {
                return Err(UsageError(format!("`{place}` cannot hold an index")))
                    .hint("leave --index out, or use oci-archive:");
            }
            ImagePlace::DockerArchive { .. } if platforms > 1 => {
                return Err(UsageError(format!(
                    "`{place}` can hold one platform, not {platforms}"
                )))
                .hint("name one with --platform, or use oci-archive: with --index");
            }
            ImagePlace::OciArchive { .. } if platforms > 1 && !plan.index => {
                return Err(UsageError(format!(
                    "`{place}` would hold the last of {platforms} platforms only"
                )))
                .hint("--index puts all of them in");
            }
            _ => {}
        }
    }
    Ok(())
}

fn base_is_remote(plan: &BuildPlan) -> bool {
    matches!(plan.base.place, Some(ImagePlace::Registry(_)))
}

/// Says that other tools may not find what is written, before somebody looks for the reason.
///
/// skopeo (seen with 1.9.3) looks up tags among manifests of OCI's types only, and umoci (0.4.7)
/// unpacks nothing else.
fn warn_of_docker_types(place: &ImagePlace, images: &[Image], output: Output) {
    let in_a_layout = matches!(
        place,
        ImagePlace::Layout { .. } | ImagePlace::OciArchive { .. }
    );
    let docker = images
        .iter()
        .any(|image| image.format() == ImageFormat::DockerV2S2);
    if in_a_layout && docker {
        output.note(&format!(
            "note: `{place}` gets an image of Docker's media types, which some tools do not find in an OCI layout; `--format oci` writes OCI's"
        ));
    }
}

/// Says that `docker load` may not read what is written.
///
/// Docker 20.10.24 takes a zstd layer for a damaged tar.
fn warn_of_zstd_for_docker(place: &ImagePlace, images: &[Image], output: Output) {
    let for_docker = matches!(place, ImagePlace::DockerArchive { .. });
    let is_zstd = |layer: &Layer| {
        let media_type = &layer.descriptor.media_type;
        matches!(media_type, MediaType::Layer(_, Compression::Zstd))
    };
    if for_docker && images.iter().flat_map(Image::layers).any(is_zstd) {
        output.note(&format!(
            "note: `{place}` gets zstd layers, which older versions of Docker do not load"
        ));
    }
}

/// Whether tags must tell platforms apart.
fn is_several(plan: &BuildPlan, platforms: usize) -> bool {
    platforms > 1 || plan.index
}

/// The index of all platforms, in the format that they share.
fn index_over(images: &[Image]) -> Raw<Index> {
    let format = images.first().map_or(ImageFormat::Oci, Image::format);
    assemble_index(images, format)
}

/// What goes to one destination: images under their tags, then the index over them.
fn shipments(
    plan: &BuildPlan,
    images: &[Image],
    place: &ImagePlace,
) -> Result<Vec<(ImagePlace, Artifact)>> {
    let mut shipments = Vec::new();
    let several = is_several(plan, images.len());
    let one_file = matches!(place, ImagePlace::OciArchive { .. });
    if !(plan.index && one_file) {
        for image in images {
            let place = place_of(place, image.platform(), several)?;
            shipments.push((place, image.to_artifact()));
        }
    }
    if plan.index {
        shipments.push((
            place.clone(),
            Artifact {
                document: Document::Index(index_over(images)),
                blobs: Vec::new(),
                children: images.iter().map(Image::to_artifact).collect(),
            },
        ));
    }
    Ok(shipments)
}

/// Images on their way to the destinations.
struct Writing<'a, 'b> {
    making: &'a mut Making<'b>,
    images: &'a mut Vec<Image>,
    verdict: &'a Verdict,
    places: &'a Places,
    output: Output,
}

impl Writing<'_, '_> {
    async fn write_all(self, arrived: &mut Arrived) -> Result<Vec<Written>> {
        let Self {
            making,
            images,
            verdict,
            places,
            output,
        } = self;
        let plan = making.plan;
        let mut written = Vec::new();
        for destination in &plan.destinations {
            warn_of_docker_types(destination, images, output);
            warn_of_zstd_for_docker(destination, images, output);
            for number in 0..shipments(plan, images, destination)?.len() {
                let mut tries = 1..TRIES;
                let (place, artifact, report) = loop {
                    let (place, artifact) =
                        shipments(plan, images, destination)?.swap_remove(number);
                    let ahead = arrived.entry(place.stem()).or_default();
                    let report = places
                        .write_after(ahead, &artifact, &place, plan.transfer_jobs)
                        .await;
                    match report {
                        Err(error) if tries.next().is_some() && places.forget_pack_of(&error) => {
                            let again = making.make_bytes().await?;
                            require_same(images, &again)?;
                            *images = again;
                        }
                        report => break (place, artifact, report?),
                    }
                };
                output.note(&format!("{place}: {}", describe_report(&report)));
                let one = Written::new(&place, &artifact, Some(&report)).judged(verdict);
                written.push(one.announce(output)?);
            }
            if let ImagePlace::Store(_) = destination {
                for image in &*images {
                    places.record_facts(image)?;
                }
            }
        }
        Ok(written)
    }
}

/// Refuses images that came out otherwise than those that were judged, and that may have a name by
/// now: their sources changed meanwhile.
fn require_same(judged: &[Image], again: &[Image]) -> Result<()> {
    let digests = |images: &[Image]| images.iter().map(Image::digest).collect::<Vec<_>>();
    if digests(judged) == digests(again) {
        return Ok(());
    }
    Err(anyhow::anyhow!(
        "files of the image changed while it was written"
    ))
    .hint("build again")
}

fn results_without_writing(
    plan: &BuildPlan,
    images: &[Image],
    verdict: &Verdict,
    output: Output,
) -> Result<Vec<Written>> {
    let mut written = Vec::new();
    for place in &plan.destinations {
        for (place, artifact) in shipments(plan, images, place)? {
            let one = Written::new(&place, &artifact, None).judged(verdict);
            written.push(one.announce(output)?);
        }
    }
    Ok(written)
}

/// buildx's keys for one image; the same by platform for several, and the index's above them.
fn metadata(plan: &BuildPlan, images: &[Image]) -> Result<Value> {
    let joined = |places: Vec<ImagePlace>| {
        let names: Vec<String> = places.iter().map(ToString::to_string).collect();
        names.join(",")
    };
    let several = is_several(plan, images.len());
    let of = |image: &Image| {
        let places = plan
            .destinations
            .iter()
            .map(|place| place_of(place, image.platform(), several))
            .collect::<Result<Vec<_>>>()?;
        Ok(json!({
            "containerimage.digest": image.digest(),
            "containerimage.config.digest": image.config().digest(),
            "containerimage.descriptor": image.manifest().descriptor(),
            "image.name": joined(places),
        }))
    };
    if let ([image], false) = (images, several) {
        return of(image);
    }
    let mut all = images
        .iter()
        .map(|image| Ok((image.platform().to_string(), of(image)?)))
        .collect::<Result<Map<String, Value>>>()?;
    if plan.index {
        let digest = index_over(images).digest();
        all.insert("containerimage.digest".to_owned(), json!(digest));
        let names = joined(plan.destinations.clone());
        all.insert("image.name".to_owned(), json!(names));
    }
    Ok(Value::Object(all))
}
