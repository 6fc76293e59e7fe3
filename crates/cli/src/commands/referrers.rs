//! `tierce attach` and `tierce referrers`: artifacts that are about an image.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use serde_json::json;
use tierce_image::{Artifact, BlobAt, Content, ImageSink as _, Jobs};
use tierce_oci::{
    Descriptor, Digest, Document, Hasher, Manifest, Platform, Raw, Reference, Selector,
};

use crate::arguments::{AttachArguments, AttachedFile, Pair, ReferrersArguments};
use crate::commands::inspect::{in_store, table};
use crate::diagnostic::{Hinted as _, UsageError};
use crate::environment::Environment;
use crate::output::{Output, describe_report, describe_size, one_line};
use crate::places::{Places, PlacesSettings, processors};
use crate::transport::ImagePlace;

/// A file's name, for those who unpack the artifact (image-spec, `annotations.md`).
const TITLE: &str = "org.opencontainers.image.title";

/// When an artifact was made (image-spec, `annotations.md`).
const CREATED: &str = "org.opencontainers.image.created";

/// How much of a file is in memory while it is hashed.
const PIECE: usize = 256 * 1024;

/// Runs `tierce attach`.
pub(crate) async fn attach(
    arguments: AttachArguments,
    environment: &Environment,
    output: Output,
) -> Result<()> {
    let (place, transfer) = (&arguments.image, &arguments.transfer);
    let reference = in_registry(place)?;
    let files = describe_files(&arguments.files)?;
    let settings = PlacesSettings {
        registry: &transfer.registry,
        create_repository: false,
        offline: false,
        remembers: true,
        compress_jobs: processors(),
    };
    let places = Places::open(&settings, environment, output)?;
    let subject = read_subject(place, transfer.platform.as_ref(), &places).await?;
    let repository = places.repository(&reference.repository);
    // What is asked for by digest may be remembered, and gone from the registry.
    if reference.digest.is_some() {
        let selector = Selector::Digest(subject.digest);
        let found = repository.current(&selector).await;
        let found = found.with_context(|| format!("could not look for `{place}`"))?;
        if found.is_none() {
            output.warn(&format!(
                "{} has no {}: it is attached to all the same",
                reference.repository, subject.digest
            ));
        }
    }

    let annotations = annotations(&arguments.annotation, environment);
    let manifest = Manifest::artifact(
        arguments.artifact_type.to_string(),
        subject,
        files.iter().map(|file| file.descriptor.clone()).collect(),
        annotations,
    );
    let artifact = to_artifact(manifest, files);
    let document = &artifact.document;
    let attached = Reference {
        repository: reference.repository.clone(),
        tag: None,
        digest: Some(document.digest()),
    };
    let destination = ImagePlace::Registry(attached);
    let report = places
        .write(&artifact, &destination, Jobs(transfer.jobs))
        .await?;
    // What is there may not be listed: whoever put it was interrupted, or another list overwrote it.
    let was_relisted = report.up_to_date
        && repository
            .relist(document)
            .await
            .with_context(|| format!("could not list `{destination}`"))?;
    output.note(&match (report.up_to_date, was_relisted) {
        (true, false) => format!("{place}: already attached"),
        (true, true) => format!("{place}: was there, and is attached now"),
        (false, _) => format!("{place}: attached, {}", describe_report(&report)),
    });
    if !output.json {
        return output.result_line(&destination.to_string());
    }
    let Document::Manifest(manifest) = document else {
        bail!("an artifact is a manifest: this is a bug in tierce");
    };
    output.result_json(&json!({
        "reference": destination.to_string(),
        "digest": manifest.digest(),
        "size": manifest.bytes().len(),
        "mediaType": manifest.media_type,
        "artifactType": manifest.artifact_type,
        "subject": manifest.subject,
        "annotations": manifest.annotations,
        "files": manifest.layers,
        "upToDate": report.up_to_date && !was_relisted,
    }))
}

/// Runs `tierce referrers`.
pub(crate) async fn referrers(
    arguments: ReferrersArguments,
    environment: &Environment,
    output: Output,
) -> Result<()> {
    let place = &arguments.image;
    let reference = in_registry(place)?;
    let settings = PlacesSettings {
        registry: &arguments.registry,
        create_repository: false,
        offline: false,
        remembers: true,
        compress_jobs: processors(),
    };
    let places = Places::open(&settings, environment, output)?;
    let subject = match (reference.digest, &arguments.platform) {
        // It need not be there for something to be attached to it.
        (Some(digest), None) => digest,
        (_, platform) => {
            let subject = read_subject(place, platform.as_ref(), &places).await?;
            subject.digest
        }
    };
    let listed = places
        .repository(&reference.repository)
        .referrers(&subject, arguments.artifact_type.as_deref())
        .await
        .with_context(|| format!("could not list what is attached to `{place}`"))?;
    if output.json {
        return output.result_json(&json!({
            "name": place.to_string(),
            "subject": subject,
            "referrers": listed,
        }));
    }
    show(
        &subject,
        &listed,
        arguments.artifact_type.as_deref(),
        output,
    )
}

fn show(
    subject: &Digest,
    listed: &[Descriptor],
    artifact_type: Option<&str>,
    output: Output,
) -> Result<()> {
    if listed.is_empty() {
        let of_type = artifact_type.map_or_else(String::new, |it| format!(" of the type `{it}`"));
        output.note(&format!("nothing{of_type} is attached to {subject}"));
        return Ok(());
    }
    let mut table = table(&["artifact", "type", "size", "created"]);
    for referrer in listed {
        let created = referrer.annotations.get(CREATED);
        table.add_row([
            referrer.digest.to_string(),
            one_line(referrer.artifact_type.as_deref().unwrap_or("-")),
            describe_size(referrer.size),
            one_line(created.map_or("-", String::as_str)),
        ]);
    }
    output.result_line(&table.trim_fmt())
}

/// The name of `place` in its registry, for nothing else keeps what is attached.
fn in_registry(place: &ImagePlace) -> Result<&Reference> {
    match place {
        ImagePlace::Registry(reference) => Ok(reference),
        _ => Err(UsageError(format!(
            "`{place}` is not in a registry, and only there can something be attached"
        )))
        .hint(format!(
            "push it first: `tierce push {place} HOST/REPOSITORY:TAG`"
        )),
    }
}

/// Finds the manifest or index that `place` names, or the image for `platform` in it.
async fn read_subject(
    place: &ImagePlace,
    platform: Option<&Platform>,
    places: &Places,
) -> Result<Descriptor> {
    let found = match platform {
        Some(_) => places
            .read_image(place, None, platform)
            .await
            .map(|image| Some(image.manifest().descriptor().clone())),
        None => places
            .read_document(place)
            .await
            .map(|document| document.map(|document| document.descriptor().clone())),
    };
    match found {
        Ok(Some(subject)) => Ok(subject),
        Ok(None) => bail!("`{place}` has no manifest"),
        Err(error) => {
            let error = error.context(format!("could not read `{place}`"));
            Err(match in_store(place, places).await {
                Some(stored) => error.hint(format!(
                    "the local store has one, to be pushed first: `tierce push store:{stored}`"
                )),
                None => error,
            })
        }
    }
}

/// The artifact's annotations; what was typed goes before what the environment says.
fn annotations(typed: &[Pair], environment: &Environment) -> BTreeMap<String, String> {
    let created = environment
        .source_date_epoch
        .map(|moment| (CREATED.to_owned(), moment.to_string()));
    let typed = typed
        .iter()
        .map(|pair| (pair.name.clone(), pair.value.clone()));
    created.into_iter().chain(typed).collect()
}

fn to_artifact(manifest: Manifest, files: Vec<BlobAt>) -> Artifact {
    let empty = BlobAt {
        descriptor: manifest.config.clone(),
        content: Content::Memory(Bytes::from_static(Descriptor::EMPTY_CONTENT)),
    };
    Artifact {
        document: Document::Manifest(Raw::from_manifest(manifest)),
        blobs: files.into_iter().chain([empty]).collect(),
        children: Vec::new(),
    }
}

/// Hashes the files. Their names tell them apart for those who unpack the artifact.
fn describe_files(files: &[AttachedFile]) -> Result<Vec<BlobAt>> {
    let mut described = Vec::new();
    let mut names = BTreeSet::new();
    for file in files {
        let blob = describe_file(file)
            .with_context(|| format!("could not attach {}", file.path.display()))?;
        let name = blob.descriptor.annotations[TITLE].clone();
        if !names.insert(name.clone()) {
            return Err(UsageError(format!("two of the files are called `{name}`")).into());
        }
        described.push(blob);
    }
    Ok(described)
}

fn describe_file(file: &AttachedFile) -> Result<BlobAt> {
    // Looked at before it is opened: opening a pipe waits for its writer.
    if !fs::metadata(&file.path)?.is_file() {
        bail!("it is not a regular file");
    }
    let name = file.path.file_name().and_then(|name| name.to_str());
    let name = name.context("it has no name that can stand in an annotation")?;
    let (digest, size) = hash(&file.path)?;
    let mut descriptor = Descriptor::new(file.media_type.clone(), digest, size);
    descriptor
        .annotations
        .insert(TITLE.to_owned(), name.to_owned());
    Ok(BlobAt {
        descriptor,
        content: Content::File {
            path: file.path.clone(),
            offset: 0,
        },
    })
}

fn hash(path: &Path) -> Result<(Digest, u64)> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::new();
    let mut size = 0;
    let mut piece = vec![0; PIECE];
    loop {
        let count = file.read(&mut piece)?;
        if count == 0 {
            return Ok((hasher.finish(), size));
        }
        hasher.update(&piece[..count]);
        size += count as u64;
    }
}
