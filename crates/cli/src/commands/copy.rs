//! `tierce copy`, `push` and `pull`: one walk between any two places.

use anyhow::{Context as _, Result};
use tierce_image::Jobs;
use tierce_oci::Reference;

use crate::arguments::{CopyArguments, PullArguments, PushArguments, TransferArguments};
use crate::diagnostic::{Hinted as _, UsageError};
use crate::environment::Environment;
use crate::output::{Output, describe_report};
use crate::places::{Places, PlacesSettings};
use crate::transport::{ImagePlace, PushSource};
use crate::written::Written;

/// Runs `tierce copy`.
pub(crate) async fn copy(
    arguments: CopyArguments,
    environment: &Environment,
    output: Output,
) -> Result<()> {
    let creates = arguments.create_repository;
    let places = open_places(&arguments.transfer, creates, environment, output)?;
    let destinations = [arguments.destination];
    transfer(
        &arguments.source,
        &destinations,
        &arguments.transfer,
        &places,
        output,
    )
    .await
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
    let places = open_places(&arguments.transfer, creates, environment, output)?;
    let source = places.find(&arguments.source).await?;
    let references = match &arguments.references[..] {
        [] => vec![own_destination(&arguments.source, &source)?],
        references => references.to_vec(),
    };
    let destinations: Vec<_> = references.into_iter().map(ImagePlace::Registry).collect();
    transfer(&source, &destinations, &arguments.transfer, &places, output).await
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
    let artifact = places
        .read_artifact(source, arguments.platform.as_ref())
        .await
        .with_context(|| format!("could not read `{source}`"))?;
    let mut written = Vec::new();
    for destination in destinations {
        let destination = &destination.named_after(source);
        let report = places
            .write(&artifact, destination, Jobs(arguments.jobs))
            .await?;
        output.note(&format!("{destination}: {}", describe_report(&report)));
        written.push(Written::new(destination, &artifact, Some(&report)).announce(output)?);
    }
    Written::conclude(written, output)
}
