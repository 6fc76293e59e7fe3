//! `tierce copy`, `push` and `pull`: one walk between any two places.

use anyhow::{Context as _, Result};
use serde_json::json;
use tierce_image::{Artifact, Jobs, WriteReport};
use tierce_oci::{Document, Reference};

use crate::arguments::{CopyArguments, PullArguments, PushArguments, TransferArguments};
use crate::diagnostic::{Hinted as _, UsageError};
use crate::environment::Environment;
use crate::output::{Output, describe_report};
use crate::places::{Places, PlacesSettings};
use crate::transport::{ImagePlace, PushSource};

/// Runs `tierce copy`.
pub(crate) async fn copy(
    arguments: CopyArguments,
    environment: &Environment,
    output: Output,
) -> Result<()> {
    let places = open_places(&arguments.transfer, environment, output)?;
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
    let places = open_places(&arguments.transfer, environment, output)?;
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
    let places = open_places(&arguments.transfer, environment, output)?;
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
    environment: &Environment,
    output: Output,
) -> Result<Places> {
    Places::open(
        &PlacesSettings {
            registry: &arguments.registry,
            offline: false,
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
        if !output.json {
            output.result_line(&result_line(destination, &artifact))?;
        }
        written.push(report_json(destination, &artifact, &report));
    }
    if output.json {
        output.result_json(&json!({ "images": written }))
    } else {
        Ok(())
    }
}

/// `NAME@sha256:…`.
pub(crate) fn result_line(place: &ImagePlace, artifact: &Artifact) -> String {
    format!("{}@{}", place.stem(), artifact.document.digest())
}

/// What was written where, for `--json`.
pub(crate) fn report_json(
    place: &ImagePlace,
    artifact: &Artifact,
    report: &WriteReport,
) -> serde_json::Value {
    let tally = |tally: &tierce_image::Tally| json!({"blobs": tally.blobs, "bytes": tally.bytes});
    json!({
        "name": place.to_string(),
        "reference": result_line(place, artifact),
        "digest": artifact.document.digest(),
        "mediaType": artifact.document.descriptor().media_type,
        "kind": match artifact.document {
            Document::Manifest(_) => "image",
            Document::Index(_) => "index",
        },
        "upToDate": report.up_to_date,
        "alreadyThere": tally(&report.already_there),
        "mounted": tally(&report.mounted),
        "linked": tally(&report.linked),
        "noted": tally(&report.noted),
        "sent": tally(&report.sent),
    })
}
