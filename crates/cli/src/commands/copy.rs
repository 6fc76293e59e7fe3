//! `tierce copy`, `push` and `pull`: one walk between any two places, and what is attached to the
//! image along with it.

use anyhow::{Context as _, Result};
use tierce_image::{Artifact, Jobs};
use tierce_oci::{Digest, Document, Platform, Reference};
use tierce_registry::RegistryError;

use crate::arguments::{CopyArguments, PullArguments, PushArguments, TransferArguments};
use crate::diagnostic::{Hinted as _, UsageError, find};
use crate::environment::Environment;
use crate::gate::{Base, Gate};
use crate::output::{Output, describe_report};
use crate::places::{Places, PlacesSettings};
use crate::transport::{ImagePlace, PushSource};
use crate::verdict::{Verdict, allowed_rules};
use crate::written::Written;

/// Runs `tierce copy`.
pub(crate) async fn copy(
    arguments: CopyArguments,
    environment: &Environment,
    output: Output,
) -> Result<()> {
    let creates = arguments.create_repository;
    let places = open_places(&arguments.transfer, creates, environment, output)?;
    let (source, destination) = (arguments.source, arguments.destination);
    if !arguments.referrers {
        let destinations = [destination];
        return transfer(&source, &destinations, &arguments.transfer, &places, output).await;
    }
    let (ImagePlace::Registry(from), ImagePlace::Registry(to)) = (&source, &destination) else {
        return Err(UsageError(
            "--referrers goes from registry to registry: no other place lists what is attached"
                .to_owned(),
        )
        .into());
    };
    let artifact = read(&source, arguments.transfer.platform.as_ref(), &places).await?;
    let jobs = Jobs(arguments.transfer.jobs);
    let verdict = Verdict::default();
    let mut written = vec![put(&artifact, &destination, &verdict, jobs, &places, output).await?];
    let subject = artifact.document.digest();
    let attached = places
        .repository(&from.repository)
        .referrers(&subject, None)
        .await
        .with_context(|| format!("could not list what is attached to `{source}`"))?;
    for referrer in attached {
        let at = |reference: &Reference| Reference {
            repository: reference.repository.clone(),
            tag: None,
            digest: Some(referrer.digest),
        };
        written.extend(copy_referrer(at(from), at(to), jobs, &places, output).await?);
    }
    Written::conclude(written, output)
}

/// Copies one artifact that was listed; `None` when it is no longer there.
async fn copy_referrer(
    from: Reference,
    to: Reference,
    jobs: Jobs,
    places: &Places,
    output: Output,
) -> Result<Option<Written>> {
    let target = places.repository(&to.repository);
    let (source, destination) = (ImagePlace::Registry(from), ImagePlace::Registry(to));
    let artifact = match read(&source, None, places).await {
        Ok(artifact) => artifact,
        // A list under a tag outlives what is in it.
        Err(error) if is_not_found(&error) => {
            output.warn(&format!("`{source}` is listed, but no longer there"));
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let report = places.write(&artifact, &destination, jobs).await?;
    if report.up_to_date {
        let listed = target.relist(&artifact.document).await;
        listed.with_context(|| format!("could not list `{destination}`"))?;
    }
    output.note(&format!("{destination}: {}", describe_report(&report)));
    let written = Written::new(&destination, &artifact, Some(&report));
    written.announce(output).map(Some)
}

fn is_not_found(error: &anyhow::Error) -> bool {
    find::<RegistryError>(error).is_some_and(RegistryError::is_not_found)
}

/// Runs `tierce pull`.
pub(crate) async fn pull(
    arguments: PullArguments,
    environment: &Environment,
    output: Output,
) -> Result<()> {
    let places = open_places(&arguments.transfer, false, environment, output)?;
    let source = ImagePlace::Registry(arguments.reference);
    transfer(
        &source,
        &[arguments.destination],
        &arguments.transfer,
        &places,
        output,
    )
    .await
}

/// Runs `tierce push`.
pub(crate) async fn push(
    arguments: PushArguments,
    environment: &Environment,
    output: Output,
) -> Result<()> {
    let creates = arguments.create_repository;
    let allowed = allowed_rules(&arguments.allow)?;
    let places = open_places(&arguments.transfer, creates, environment, output)?;
    let source = places.find(&arguments.source).await?;
    let references = match &arguments.references[..] {
        [] => vec![own_destination(&arguments.source, &source)?],
        references => references.to_vec(),
    };
    let destinations: Vec<_> = references.into_iter().map(ImagePlace::Registry).collect();
    let platform = arguments.transfer.platform.as_ref();
    let mut gate = Gate::new(allowed, &places, output);
    let artifact = judge(&source, platform, &mut gate, &places)
        .await
        .with_context(|| format!("could not read `{source}`"))?;
    let verdict = gate.decide(&source, false)?;
    let jobs = Jobs(arguments.transfer.jobs);
    let mut written = Vec::new();
    for destination in &destinations {
        let destination = &destination.named_after(&source);
        let one = put(&artifact, destination, &verdict, jobs, &places, output).await?;
        written.push(one);
    }
    Written::conclude(written, output)
}

/// Reads what is to be pushed, and judges its images. An index by itself is not judged: whoever
/// pushes one wants it.
async fn judge(
    source: &ImagePlace,
    platform: Option<&Platform>,
    gate: &mut Gate<'_>,
    places: &Places,
) -> Result<Artifact> {
    if let ImagePlace::DockerArchive { .. } = source {
        // An old one has no manifest until its layers are sealed.
        let image = places.read_image(source, None, platform).await?;
        gate.judge(&image, Base::of_image(&image)).await?;
        return Ok(image.to_artifact());
    }
    let artifact = places.read_artifact(source, platform).await?;
    let mut images = Vec::new();
    list_images(&artifact, &mut images);
    for digest in images {
        // By its digest: what is judged is what is brought, whatever a tag means by now.
        let image = places.read_image(source, Some(digest), None).await?;
        gate.judge(&image, Base::of_image(&image)).await?;
    }
    Ok(artifact)
}

/// Lists the images in what was read, each once; attestations of an index are none.
fn list_images(artifact: &Artifact, images: &mut Vec<Digest>) {
    match &artifact.document {
        Document::Manifest(manifest) => {
            let digest = manifest.digest();
            if manifest.is_image() && !images.contains(&digest) {
                images.push(digest);
            }
        }
        Document::Index(index) => {
            for (descriptor, child) in index.manifests.iter().zip(&artifact.children) {
                let platform = descriptor.platform.as_ref();
                if platform.is_none_or(|platform| platform.os != "unknown") {
                    list_images(child, images);
                }
            }
        }
    }
}

/// Where an image goes whose name is that of a registry's repository.
fn own_destination(named: &PushSource, found: &ImagePlace) -> Result<Reference> {
    let reference = match (named, found) {
        (PushSource::Bare(reference, _), ImagePlace::Store(_)) => Some(reference.clone()),
        (_, ImagePlace::Store(stored)) => stored.to_string().parse::<Reference>().ok(),
        _ => None,
    };
    reference
        .filter(|reference| reference.repository.registry != "docker.io")
        .ok_or_else(|| UsageError("where to push is not said".to_owned()))
        .hint("name it: `tierce push SOURCE HOST/REPOSITORY:TAG`")
}

fn open_places(
    arguments: &TransferArguments,
    create_repository: bool,
    environment: &Environment,
    output: Output,
) -> Result<Places> {
    Places::open(
        &PlacesSettings {
            registry: &arguments.registry,
            create_repository,
            offline: false,
            remembers: true,
            compress_jobs: Jobs(arguments.jobs),
        },
        environment,
        output,
    )
}

async fn transfer(
    source: &ImagePlace,
    destinations: &[ImagePlace],
    arguments: &TransferArguments,
    places: &Places,
    output: Output,
) -> Result<()> {
    let artifact = read(source, arguments.platform.as_ref(), places).await?;
    let mut written = Vec::new();
    for destination in destinations {
        let destination = &destination.named_after(source);
        let jobs = Jobs(arguments.jobs);
        let verdict = Verdict::default();
        written.push(put(&artifact, destination, &verdict, jobs, places, output).await?);
    }
    Written::conclude(written, output)
}

async fn read(
    source: &ImagePlace,
    platform: Option<&Platform>,
    places: &Places,
) -> Result<Artifact> {
    places
        .read_artifact(source, platform)
        .await
        .with_context(|| format!("could not read `{source}`"))
}

async fn put(
    artifact: &Artifact,
    destination: &ImagePlace,
    verdict: &Verdict,
    jobs: Jobs,
    places: &Places,
    output: Output,
) -> Result<Written> {
    let report = places.write(artifact, destination, jobs).await?;
    output.note(&format!("{destination}: {}", describe_report(&report)));
    let written = Written::new(destination, artifact, Some(&report)).judged(verdict);
    written.announce(output)
}
