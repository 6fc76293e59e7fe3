//! Listing artifacts by their subject, with and without a registry that keeps the list.

use std::collections::BTreeMap;
use std::error::Error as _;

use bytes::Bytes;
use serde_json::{Value, json};
use tierce_image::{Artifact, BlobAt, Content, ImageSink as _, Jobs, write};
use tierce_oci::{
    Descriptor, Digest, Document, ImageFormat, Index, Manifest, MediaType, ParseDocumentError, Raw,
};
use tierce_registry::{
    Client, Problem, ReferrersError, RegistryError, RepositoryClient, fallback_tag,
};
use tierce_testkit::{FakeRegistry, Fault, Gate, Method};
use tokio::task::JoinHandle;

use crate::support::{ATTEMPTS, Blobs, client, image, place, registry_error, told};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An image, and a client of its repository.
struct World {
    registry: FakeRegistry,
    client: Client,
    place: RepositoryClient,
    subject: Descriptor,
}

impl World {
    fn at(registry: FakeRegistry) -> Self {
        let digest = image().put(&registry, "app", Some("1"));
        let (media_type, bytes) = registry.manifest("app", "1").expect("it was put");
        let subject = Descriptor::of(MediaType::from(media_type.as_str()), &bytes);
        assert_eq!(subject.digest, digest);
        let client = client();
        let place = place(&client, &registry, "app");
        Self {
            registry,
            client,
            place,
            subject,
        }
    }

    /// At a registry that keeps lists of referrers.
    fn with_lists() -> Self {
        Self::at(FakeRegistry::builder().referrers().start())
    }

    /// At one that does not.
    fn without_lists() -> Self {
        Self::at(FakeRegistry::start())
    }

    fn tag(&self) -> String {
        fallback_tag(&self.subject.digest).to_string()
    }

    fn artifact(&self, artifact_type: &str, content: &str) -> Artifact {
        artifact(&self.subject, artifact_type, content)
    }

    /// Attaches an artifact and gives its digest.
    async fn attach(&self, artifact_type: &str, content: &str) -> Digest {
        let artifact = self.artifact(artifact_type, content);
        let put = put(&self.place, &artifact, &self.client).await;
        put.expect("nothing hinders it");
        artifact.document.digest()
    }

    async fn listed(&self, artifact_type: Option<&str>) -> Result<Vec<Digest>, RegistryError> {
        let listed = self.place.referrers(&self.subject.digest, artifact_type);
        let listed = listed.await?;
        Ok(listed.iter().map(|referrer| referrer.digest).collect())
    }

    /// Puts the blobs of `artifact` there, without a request.
    fn put_blobs(&self, artifact: &Artifact) {
        for blob in &artifact.blobs {
            let Content::Memory(bytes) = &blob.content else {
                panic!("they are in memory");
            };
            self.registry.put_blob("app", bytes.clone());
        }
    }

    /// Begins to put an artifact by a client of its own; its blobs are there.
    fn begin_to_put(&self, artifact: &Artifact) -> JoinHandle<Result<(), RegistryError>> {
        self.put_blobs(artifact);
        let place = place(&client(), &self.registry, "app");
        let document = artifact.document.clone();
        tokio::spawn(async move { place.put_manifest(&document, None).await })
    }

    /// The index under the fallback tag.
    fn index(&self) -> Option<Value> {
        let (media_type, bytes) = self.registry.manifest("app", &self.tag())?;
        assert_eq!(media_type, OCI_INDEX);
        Some(serde_json::from_slice(&bytes).expect("an index is JSON"))
    }

    fn put_index(&self, index: &Value) {
        let tag = self.tag();
        let bytes = index.to_string();
        self.registry
            .put_manifest("app", Some(&tag), OCI_INDEX, bytes);
    }
}

fn artifact(subject: &Descriptor, artifact_type: &str, content: &str) -> Artifact {
    let blob = Bytes::from(content.to_owned());
    let descriptor = Descriptor::of(MediaType::from("text/plain"), &blob);
    let annotations = BTreeMap::from([("example.content".to_owned(), content.to_owned())]);
    let manifest = Manifest::artifact(
        artifact_type.to_owned(),
        subject.clone(),
        vec![descriptor.clone()],
        annotations,
    );
    let in_memory = |descriptor, bytes| BlobAt {
        descriptor,
        content: Content::Memory(bytes),
    };
    let empty = Bytes::from_static(Descriptor::EMPTY_CONTENT);
    Artifact {
        document: Document::Manifest(Raw::from_manifest(manifest)),
        blobs: vec![
            in_memory(descriptor, blob),
            in_memory(Descriptor::empty(), empty),
        ],
        children: Vec::new(),
    }
}

async fn put(
    place: &RepositoryClient,
    artifact: &Artifact,
    client: &Client,
) -> Result<(), tierce_image::WriteError> {
    let jobs = Jobs(std::num::NonZeroUsize::MIN);
    let blobs = Blobs(client.clone());
    let report = write(artifact, None, &blobs, place, jobs, &|_| ()).await?;
    assert!(!report.up_to_date);
    Ok(())
}

/// The text of an entry of a list.
fn entry(digest: &str, artifact_type: &str) -> Value {
    json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest,
        "size": 7,
        "artifactType": artifact_type,
    })
}

fn digest(number: u8) -> String {
    Digest::of(&[number]).to_string()
}

fn list(entries: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
}

fn page(entries: &[Value]) -> Fault {
    Fault::status(200)
        .with_body(list(entries).to_string())
        .with_header("content-type", OCI_INDEX)
}

fn referrers_error(error: &RegistryError) -> &ReferrersError {
    match error {
        RegistryError::Referrers(error) => error,
        other => panic!("it is about something else: {other:?}"),
    }
}

#[tokio::test]
async fn a_registry_that_keeps_the_list_is_asked_for_it() {
    let world = World::with_lists();
    assert_eq!(world.listed(None).await.unwrap(), []);
    let report = world.attach("example/report", "one").await;
    let signature = world.attach("example/a-signature", "two").await;
    let log = world.registry.log();
    assert_eq!(world.registry.tags("app"), ["1"], "no tag is needed: {log}");
    assert_eq!(log.count(Method::GET, "/manifests/"), 0, "{log}");
    // Ordered by type.
    assert_eq!(world.listed(None).await.unwrap(), [signature, report]);
    let listed = world.place.referrers(&world.subject.digest, None).await;
    let listed = listed.unwrap();
    assert_eq!(
        listed[0].artifact_type.as_deref(),
        Some("example/a-signature")
    );
    assert_eq!(listed[0].annotations["example.content"], "two");
    let (_, stored) = world
        .registry
        .manifest("app", &signature.to_string())
        .unwrap();
    assert_eq!(listed[0].size, stored.len() as u64);
    let stored: Value = serde_json::from_slice(&stored).unwrap();
    assert_eq!(
        stored["subject"]["digest"],
        world.subject.digest.to_string()
    );
    // Nobody need be there for something to be about it.
    let nobody = Digest::of(b"nobody");
    assert_eq!(world.place.referrers(&nobody, None).await.unwrap(), []);
    let nowhere = place(&world.client, &world.registry, "nowhere");
    assert_eq!(nowhere.referrers(&nobody, None).await.unwrap(), []);
}

#[tokio::test]
async fn a_type_is_asked_for_and_left_out_here_only_when_the_registry_did_not() {
    let world = World::with_lists();
    let kind = "application/vnd.example.report+json";
    let report = world.attach(kind, "one").await;
    let other = world.attach("example/b", "two").await;
    world.registry.clear_log();
    assert_eq!(world.listed(Some(kind)).await.unwrap(), [report]);
    let log = world.registry.log();
    assert_eq!(
        log.records()[0].query,
        "artifactType=application%2Fvnd.example.report%2Bjson"
    );
    assert_eq!(world.listed(Some("example/none")).await.unwrap(), []);

    let both = [
        entry(&report.to_string(), kind),
        entry(&other.to_string(), "example/b"),
    ];
    // It says nothing of filters, so it has applied none.
    world
        .registry
        .inject(page(&both).on(Method::GET, "/referrers/"));
    assert_eq!(world.listed(Some(kind)).await.unwrap(), [report]);
    let otherwise = page(&both).with_header("oci-filters-applied", "artifactTypes, size");
    world
        .registry
        .inject(otherwise.on(Method::GET, "/referrers/"));
    assert_eq!(world.listed(Some(kind)).await.unwrap(), [report]);
    // It says that these are of that type, in whatever way it came to know.
    let filtered = page(&both).with_header("oci-filters-applied", "other, artifactType");
    world
        .registry
        .inject(filtered.on(Method::GET, "/referrers/"));
    assert_eq!(world.listed(Some(kind)).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_list_of_several_pages_is_read_to_its_end() {
    let world = World::with_lists();
    let first = page(&[
        entry(&digest(1), "example/b"),
        entry(&digest(2), "example/a"),
    ]);
    let link = "<?n=2&last=x>; rel=\"next\"; title=\"a, b\", </v2/>; rel=\"first\"";
    let second = page(&[entry(&digest(1), "example/b")]);
    let absolute = format!(
        "<{}/v2/app/referrers/more?token=a%2Fb>; rel=next",
        world.registry.url()
    );
    let third = page(&[entry(&digest(3), "example/a")]);
    for (number, page) in [
        first.with_header("link", link),
        second.with_header("link", &absolute),
        third,
    ]
    .into_iter()
    .enumerate()
    {
        let page = page.on(Method::GET, "/referrers/").nth(number + 1);
        world.registry.inject(page);
    }
    world.registry.clear_log();
    let mut expected: Vec<Digest> = [2, 3].map(|it| digest(it).parse().unwrap()).to_vec();
    expected.sort();
    expected.push(digest(1).parse().unwrap());
    assert_eq!(world.listed(None).await.unwrap(), expected);
    assert_eq!(world.registry.pending_faults(), Vec::<String>::new());
    let asked: Vec<String> = world
        .registry
        .log()
        .records()
        .iter()
        .map(|record| format!("{}?{}", record.path, record.query))
        .collect();
    let path = format!("/v2/app/referrers/{}", world.subject.digest);
    assert_eq!(
        asked,
        [
            format!("{path}?"),
            format!("{path}?n=2&last=x"),
            "/v2/app/referrers/more?token=a%2Fb".to_owned(),
        ]
    );
}

#[tokio::test]
async fn a_page_that_breaks_off_is_asked_for_again() {
    let world = World::with_lists();
    let report = world.attach("example/report", "one").await;
    for fault in [
        Fault::disconnect_after_sending(20),
        Fault::status(503),
        Fault::disconnect(),
    ] {
        world.registry.inject(fault.on(Method::GET, "/referrers/"));
        assert_eq!(world.listed(None).await.unwrap(), [report]);
        assert_eq!(world.registry.pending_faults(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_list_does_not_lead_elsewhere_nor_in_circles() {
    let world = World::with_lists();
    let host = world.registry.storage_host();
    for (link, told) in [
        (
            format!("<http://{host}/v2/app/referrers/x>; rel=next"),
            host.as_str(),
        ),
        (
            "<ftp://127.0.0.1/x>; rel=next".to_owned(),
            "a `ftp:` address",
        ),
        ("<http://[/>; rel=next".to_owned(), "what is no address"),
    ] {
        world.registry.clear_log();
        let page = page(&[]).with_header("link", &link);
        world.registry.inject(page.on(Method::GET, "/referrers/"));
        let error = world.listed(None).await.unwrap_err();
        assert!(
            matches!(referrers_error(&error), ReferrersError::Elsewhere { host, .. } if host == told),
            "{error:?}"
        );
        assert_eq!(world.registry.log().len(), 1, "nobody else is asked");
    }
    let circle = page(&[]).with_header("link", "<?page=1>; rel=next");
    world
        .registry
        .inject(circle.on(Method::GET, "/referrers/").always());
    world.registry.clear_log();
    let error = world.listed(None).await.unwrap_err();
    assert!(
        matches!(referrers_error(&error), ReferrersError::Endless { .. }),
        "{error:?}"
    );
    assert_eq!(world.registry.log().len(), 2);
}

#[tokio::test]
async fn what_is_no_list_is_refused() {
    let world = World::with_lists();
    let on_list = |fault: Fault| fault.on(Method::GET, "/referrers/");
    for (body, problem) in [
        ("nonsense", "is not JSON"),
        ("{}", "media type"),
        (
            "{\"schemaVersion\":2,\"manifests\":[{}]}",
            "does not follow the image specification",
        ),
        ("{\"schemaVersion\":1,\"manifests\":[]}", "schemaVersion"),
    ] {
        let json = Fault::status(200)
            .with_body(body)
            .with_header("content-type", "application/json");
        world.registry.inject(on_list(json));
        let error = world.listed(None).await.unwrap_err();
        let ReferrersError::BadList {
            repository,
            subject,
            ..
        } = referrers_error(&error)
        else {
            panic!("{error:?}");
        };
        assert_eq!(repository.path, "app");
        assert_eq!(*subject, world.subject.digest);
        assert!(told(&error).contains(problem), "{}", told(&error));
    }
    let (media_type, bytes) = world.registry.manifest("app", "1").unwrap();
    let manifest = Fault::status(200)
        .with_body(bytes)
        .with_header("content-type", &media_type);
    world.registry.inject(on_list(manifest));
    let error = world.listed(None).await.unwrap_err();
    assert!(
        matches!(referrers_error(&error), ReferrersError::BadList { .. }),
        "{error:?}"
    );
    world.registry.inject(on_list(Fault::endless_body(200)));
    let error = world.listed(None).await.unwrap_err();
    assert_eq!(
        error.problem(),
        Some(&Problem::TooLarge { limit: 4 << 20 }),
        "{error:?}"
    );
    // Whoever may not look is not told that there is nothing.
    world.registry.inject(on_list(Fault::status(403)));
    assert!(world.listed(None).await.unwrap_err().is_denied());
}

#[tokio::test]
async fn without_a_list_of_the_registry_s_a_tag_stands_in() {
    let world = World::without_lists();
    assert_eq!(world.listed(None).await.unwrap(), []);
    world.registry.clear_log();
    let report = world.attach("example/report", "one").await;
    let log = world.registry.log();
    let requests: Vec<String> = log
        .filter(|record| record.path.ends_with(&world.tag()))
        .records()
        .iter()
        .map(|record| format!("{} {}", record.method, record.status_code()))
        .collect();
    assert_eq!(requests, ["GET 404", "PUT 201", "GET 200"], "{log}");
    let other = world.attach("example/a-signature", "two").await;
    assert_eq!(world.listed(None).await.unwrap(), [other, report]);
    assert_eq!(
        world.listed(Some("example/report")).await.unwrap(),
        [report]
    );
    assert_eq!(world.listed(Some("example/none")).await.unwrap(), []);

    // Entries stand in the order in which they came.
    let index = world.index().unwrap();
    let entries = index["manifests"].as_array().unwrap();
    let (_, stored) = world.registry.manifest("app", &report.to_string()).unwrap();
    assert_eq!(
        entries[0],
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": report,
            "size": stored.len(),
            "artifactType": "example/report",
            "annotations": {"example.content": "one"},
        })
    );
    assert_eq!(entries[1]["digest"], other.to_string());
    assert_eq!(entries.len(), 2);

    // What is listed is not listed again, and the tag does not move.
    let before = world.registry.resolve("app", &world.tag());
    world.registry.clear_log();
    let artifact = world.artifact("example/report", "one");
    let again = world.place.put_manifest(&artifact.document, None).await;
    again.unwrap();
    assert_eq!(world.registry.resolve("app", &world.tag()), before);
    assert_eq!(world.registry.log().count(Method::PUT, &world.tag()), 0);
}

#[tokio::test]
async fn every_way_to_say_that_there_is_no_list_is_understood() {
    let world = World::without_lists();
    let report = world.attach("example/report", "one").await;
    for answer in [400, 404, 405, 501] {
        world
            .registry
            .inject(Fault::status(answer).on(Method::GET, "/referrers/"));
        assert_eq!(world.listed(None).await.unwrap(), [report], "{answer}");
    }
    let for_people = Fault::status(200)
        .with_body("<html>")
        .with_header("content-type", "text/html; charset=utf-8");
    world
        .registry
        .inject(for_people.on(Method::GET, "/referrers/"));
    assert_eq!(world.listed(None).await.unwrap(), [report]);
}

#[tokio::test]
async fn only_the_registry_s_word_for_this_subject_counts() {
    let world = World::with_lists();
    for answer in [
        Fault::header("oci-subject", &digest(1)),
        Fault::header("oci-subject", "yes"),
        Fault::without_header("oci-subject"),
    ] {
        world.registry.untag("app", &world.tag());
        world.registry.inject(answer.on(Method::PUT, "/manifests/"));
        let artifact = world.artifact("example/report", "one");
        world.put_blobs(&artifact);
        let put = world.place.put_manifest(&artifact.document, None).await;
        put.unwrap();
        let index = world.index().expect("the tag stands in");
        assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn what_others_wrote_into_the_list_stays() {
    let world = World::without_lists();
    let theirs = world.attach("example/theirs", "one").await;
    let mut index = world.index().unwrap();
    index.as_object_mut().unwrap().remove("mediaType");
    index["annotations"] = json!({"example.kept-by": "another tool"});
    index["x-own"] = json!({"b": [1, null], "a": 2});
    index["manifests"][0]["x-own"] = json!("entry");
    index["manifests"][0]["annotations"] = Value::Null;
    world.put_index(&index);
    let ours = world.attach("example/ours", "two").await;
    let mut after = world.index().unwrap();
    let added = after["manifests"].as_array_mut().unwrap().pop().unwrap();
    assert_eq!(added["digest"], ours.to_string());
    let media_type = after.as_object_mut().unwrap().remove("mediaType");
    assert_eq!(media_type, Some(json!(OCI_INDEX)));
    assert_eq!(after, index);
    assert_eq!(world.listed(None).await.unwrap(), [ours, theirs]);
}

#[tokio::test]
async fn a_tag_of_something_else_is_left_alone() {
    let world = World::without_lists();
    let (image_type, image) = world.registry.manifest("app", "1").unwrap();
    let docker_list = MediaType::Index(ImageFormat::DockerV2S2);
    let of_docker = json!({"schemaVersion": 2, "mediaType": docker_list, "manifests": []});
    let of_docker = Bytes::from(of_docker.to_string());
    for (number, (media_type, body)) in [
        (image_type.as_str(), image),
        (docker_list.as_str(), of_docker),
    ]
    .into_iter()
    .enumerate()
    {
        let tag = world.tag();
        let found = world
            .registry
            .put_manifest("app", Some(&tag), media_type, body);
        let error = world.listed(None).await.unwrap_err();
        assert!(
            matches!(referrers_error(&error), ReferrersError::NotAList { found, .. }
                if found.as_str() == media_type),
            "{error:?}"
        );
        let artifact = world.artifact("example/report", &number.to_string());
        let error = put(&world.place, &artifact, &world.client).await;
        let error = error.unwrap_err();
        let error = registry_error(error.source().expect("the registry is to blame"));
        assert!(
            matches!(referrers_error(error), ReferrersError::NotAList { .. }),
            "{error:?}"
        );
        assert_eq!(world.registry.resolve("app", &tag), Some(found));
    }
    let tag = world.tag();
    let broken = world
        .registry
        .put_manifest("app", Some(&tag), OCI_INDEX, "{\"manifests\":");
    let error = world.listed(None).await.unwrap_err();
    assert!(
        matches!(&error, RegistryError::Document { selector, source, .. }
            if selector.to_string() == tag && matches!(**source, ParseDocumentError::NotJson(..))),
        "{error:?}"
    );
    let artifact = world.artifact("example/report", "more");
    put(&world.place, &artifact, &world.client)
        .await
        .unwrap_err();
    assert_eq!(world.registry.resolve("app", &tag), Some(broken));
}

/// Another writer had read the list before ours was in it, and puts it after ours.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_another_writer_overwrote_is_put_again() {
    let world = World::without_lists();
    let theirs = world.attach("example/theirs", "one").await;
    let without_ours = world.index().unwrap();
    let gate = Gate::new();
    let tag = world.tag();
    // The look whether the entry is there, after it was put.
    world
        .registry
        .inject(Fault::hold(&gate).on(Method::GET, &tag).nth(2));
    let artifact = world.artifact("example/ours", "two");
    let ours = artifact.document.digest();
    let writer = world.begin_to_put(&artifact);
    gate.wait_for(1);
    assert_eq!(
        world.index().unwrap()["manifests"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    world.put_index(&without_ours);
    gate.open();
    writer.await.unwrap().unwrap();
    assert_eq!(world.listed(None).await.unwrap(), [ours, theirs]);
    assert_eq!(world.registry.log().count(Method::PUT, &tag), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_at_the_same_time_are_both_listed() {
    let world = World::without_lists();
    let (both_have_read, both_have_put) = (Gate::new(), Gate::new());
    let tag = world.tag();
    let hold = |gate: &Gate, method| Fault::hold(gate).on(method, &tag).times(2);
    world.registry.inject(hold(&both_have_read, Method::PUT));
    world
        .registry
        .inject(hold(&both_have_put, Method::GET).nth(3));
    let mut digests = Vec::new();
    let mut writers = Vec::new();
    for name in ["one", "two"] {
        let artifact = world.artifact("example/report", name);
        digests.push(artifact.document.digest());
        writers.push(world.begin_to_put(&artifact));
    }
    both_have_read.wait_for(2);
    both_have_read.open();
    both_have_put.wait_for(2);
    let overwritten = world.index().unwrap();
    assert_eq!(overwritten["manifests"].as_array().unwrap().len(), 1);
    both_have_put.open();
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    digests.sort();
    assert_eq!(world.listed(None).await.unwrap(), digests);
}

#[tokio::test]
async fn who_is_always_overtaken_says_so() {
    let world = World::without_lists();
    let tag = world.tag();
    world
        .registry
        .inject(Fault::status(404).on(Method::GET, &tag).always());
    let artifact = world.artifact("example/report", "one");
    let error = put(&world.place, &artifact, &world.client).await;
    let error = error.unwrap_err();
    let error = registry_error(error.source().expect("the registry is to blame"));
    let ReferrersError::Overtaken {
        referrer,
        tag: told,
        ..
    } = referrers_error(error)
    else {
        panic!("{error:?}");
    };
    assert_eq!(*referrer, artifact.document.digest());
    assert_eq!(told.as_str(), tag);
    let text = error.to_string();
    let begin = format!(
        "{referrer} is in {}, but whenever",
        world.place.repository()
    );
    assert!(text.starts_with(&begin), "{text}");
    let puts = world.registry.log().count(Method::PUT, &tag);
    assert_eq!(puts, ATTEMPTS as usize);
    // The artifact itself is there.
    let stored = world.registry.manifest("app", &referrer.to_string());
    assert!(stored.is_some());
}

#[tokio::test]
async fn an_artifact_that_was_never_listed_is_listed_when_it_is_found() {
    let world = World::without_lists();
    let artifact = world.artifact("example/report", "one");
    world.put_blobs(&artifact);
    let media_type = artifact.document.descriptor().media_type.as_str();
    let bytes = artifact.document.bytes().clone();
    world.registry.put_manifest("app", None, media_type, bytes);
    assert_eq!(world.listed(None).await.unwrap(), []);
    assert!(world.place.relist(&artifact.document).await.unwrap());
    let digest = artifact.document.digest();
    assert_eq!(world.listed(None).await.unwrap(), [digest]);
    world.registry.clear_log();
    assert!(!world.place.relist(&artifact.document).await.unwrap());
    assert_eq!(world.registry.log().count(Method::PUT, ""), 0);
}

#[tokio::test]
async fn an_index_may_be_about_something_too_and_docker_s_manifests_may_not() {
    let world = World::without_lists();
    let index = Index {
        media_type: MediaType::Index(ImageFormat::Oci),
        manifests: Vec::new(),
        annotations: BTreeMap::new(),
        subject: Some(world.subject.clone()),
        artifact_type: Some("example/bundle".to_owned()),
    };
    let index = Document::Index(Raw::from_index(index));
    world.place.put_manifest(&index, None).await.unwrap();
    let listed = world.place.referrers(&world.subject.digest, None).await;
    assert_eq!(listed.unwrap(), [index.as_referrer()]);

    let (_, image) = world.registry.manifest("app", "1").unwrap();
    let mut image: Value = serde_json::from_slice(&image).unwrap();
    image["subject"] = json!({"mediaType": "a/b", "digest": digest(1), "size": 1});
    let image = Document::parse(Bytes::from(image.to_string()), None).unwrap();
    assert!(image.subject().is_some());
    world.registry.clear_log();
    world.place.put_manifest(&image, None).await.unwrap();
    assert_eq!(world.registry.log().len(), 1);
}

#[tokio::test]
async fn a_list_that_is_refused_is_told_with_the_registry_s_words() {
    let world = World::without_lists();
    world
        .registry
        .inject(Fault::status(413).on(Method::PUT, &world.tag()));
    let artifact = world.artifact("example/report", "one");
    let error = put(&world.place, &artifact, &world.client).await;
    let text = told(&error.unwrap_err());
    assert!(
        text.contains("413") && text.contains(&world.tag()),
        "{text}"
    );
}
