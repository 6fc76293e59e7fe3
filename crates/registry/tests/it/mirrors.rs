//! Reading from mirrors, which may fail in every way.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tierce_image::{BoxError, ImageSource as _};
use tierce_oci::{Digest, Repository};
use tierce_registry::{
    Client, CredentialSource, Credentials, HostSettings, RegistryError, RepositoryClient,
};
use tierce_testkit::images::TestImage;
use tierce_testkit::{FakeRegistry, Fault, Gate, Method};

use crate::support::{
    Fixed, RawServer, artifact, by_tag, bytes, copy, descriptor, fetch, image, place, push,
    registry_error, repository, settings, told,
};

/// `user:of the registry` in Base64.
const SHOWN_TO_REGISTRY: &str = "dXNlcjpvZiB0aGUgcmVnaXN0cnk=";

/// A registry that wants credentials, which reads from mirrors first.
struct Mirrored {
    registry: FakeRegistry,
    client: Client,
    image: TestImage,
}

/// Shows each of two hosts its own password, and nothing to others.
#[derive(Debug)]
struct Passwords {
    registry: String,
    mirror: String,
}

impl CredentialSource for Passwords {
    fn credentials<'a>(
        &'a self,
        repository: &'a Repository,
    ) -> BoxFuture<'a, Result<Option<Credentials>, BoxError>> {
        let password = match &repository.registry {
            host if *host == self.registry => "of the registry",
            host if *host == self.mirror => "of the mirror",
            _ => return Box::pin(async { Ok(None) }),
        };
        let key = Fixed::password("user", password);
        Box::pin(async move { key.credentials(repository).await })
    }
}

impl Mirrored {
    /// Its mirrors are at these addresses; for the host `known` there are credentials.
    fn by(mirrors: &[String], known: &str) -> Self {
        Self::with(mirrors, known, HostSettings::default())
    }

    fn with(mirrors: &[String], known: &str, more: HostSettings) -> Self {
        let registry = FakeRegistry::builder()
            .basic("user", "of the registry")
            .start();
        let image = image();
        image.put(&registry, "team/app", Some("1"));
        let mirrors = mirrors
            .iter()
            .map(|url| url.parse().expect("the test names an address"));
        let host = HostSettings {
            mirrors: mirrors.collect(),
            ..more
        };
        let mut settings = settings();
        let settled = settings.hosts.insert(&registry.host(), host);
        settled.expect("the fake's host is a registry's name");
        settings.credentials = Arc::new(Passwords {
            registry: registry.host(),
            mirror: known.to_owned(),
        });
        Self {
            client: Client::new(settings).expect("these settings are fine"),
            registry,
            image,
        }
    }

    fn place(&self) -> RepositoryClient {
        place(&self.client, &self.registry, "team/app")
    }

    async fn manifest(&self) -> Result<Digest, RegistryError> {
        let document = self.place().manifest(&by_tag("1")).await;
        document.map(|document| document.digest())
    }

    /// Reads manifest and one layer, which must be right.
    async fn assert_read(&self) {
        let digest = self.manifest().await.expect("it is somewhere");
        assert_eq!(digest, self.image.digest());
        let layer = &self.image.layers[0].blob;
        let repository = repository(&self.registry, "team/app");
        let fetched = fetch(&self.client, &repository, &descriptor(layer)).await;
        assert_eq!(&fetched.expect("it is somewhere"), layer);
    }
}

#[tokio::test]
async fn a_mirror_is_read_in_place_of_the_registry() {
    let mirror = FakeRegistry::builder()
        .basic("user", "of the mirror")
        .start();
    image().put(&mirror, "team/app", Some("1"));
    let mirrored = Mirrored::by(&[mirror.url()], &mirror.host());
    mirrored.assert_read().await;
    assert!(mirrored.registry.log().is_empty());
    let log = mirror.log();
    // Only the first of the three is a question who we are.
    assert_eq!(
        (log.len(), log.records()[0].status_code()),
        (3, 401),
        "{log}"
    );
    for record in log.records() {
        let shown = record.authorization_seen().unwrap_or_default();
        assert!(!shown.contains(SHOWN_TO_REGISTRY), "{record}");
    }
}

#[tokio::test]
async fn a_mirror_may_have_the_repositories_below_a_path() {
    for end in ["", "/"] {
        let mirror = FakeRegistry::start();
        image().put(&mirror, "hub/cache/team/app", Some("1"));
        let url = format!("{}/hub/cache{end}", mirror.url());
        let mirrored = Mirrored::by(&[url], "");
        mirrored.assert_read().await;
        assert!(mirrored.registry.log().is_empty());
        assert_eq!(mirror.log().repository("hub/cache/team/app").len(), 2);
    }
}

#[tokio::test]
async fn mirrors_are_asked_in_their_order() {
    let (first, second) = (FakeRegistry::start(), FakeRegistry::start());
    image().put(&second, "team/app", Some("1"));
    let mirrored = Mirrored::by(&[first.url(), second.url()], "");
    mirrored.assert_read().await;
    assert_eq!((first.log().len(), second.log().len()), (2, 2));
    assert!(mirrored.registry.log().is_empty());
    // What the first has is not asked of the second.
    second.clear_log();
    image().put(&first, "team/app", Some("1"));
    mirrored.assert_read().await;
    assert!(second.log().is_empty());
}

#[tokio::test]
async fn a_mirror_that_fails_costs_one_attempt() {
    for (name, fault) in [
        ("not there", Fault::status(404)),
        ("not for us", Fault::status(403)),
        ("broken", Fault::status(500)),
        ("busy", Fault::too_many_requests(60)),
        ("gone", Fault::disconnect()),
        ("spoilt", Fault::corrupt_byte(3)),
        ("cut off", Fault::truncate(3)),
        ("too long", Fault::append(b"more".as_slice())),
        ("breaks off", Fault::disconnect_after_sending(3)),
        ("something else", Fault::replace_body(b"<html>".as_slice())),
    ] {
        let mirror = FakeRegistry::start();
        image().put(&mirror, "team/app", Some("1"));
        mirror.inject(fault.always());
        let mirrored = Mirrored::by(&[mirror.url()], "");
        mirrored.assert_read().await;
        let log = mirror.log();
        // The mirror that was wrong about the first is not asked about the second where that lasts.
        assert!((1..=2).contains(&log.len()), "{name}: {log}");
        assert!(log.count(Method::GET, "/manifests/") <= 1, "{name}: {log}");
        assert!(log.count(Method::GET, "/blobs/") <= 1, "{name}: {log}");
        for record in log.records() {
            assert_eq!(record.authorization_seen(), None, "{name}: {record}");
        }
        let log = mirrored.registry.log();
        let read = |kind| log.matching(&Method::GET, kind).filter(|it| it.authorised);
        assert_eq!(read("/manifests/").len(), 1, "{name}: {log}");
        assert_eq!(read("/blobs/").len(), 1, "{name}: {log}");
    }
}

#[tokio::test]
async fn a_mirror_that_wants_credentials_is_not_shown_the_registrys() {
    let mirror = FakeRegistry::builder()
        .basic("user", "of the registry")
        .start();
    image().put(&mirror, "team/app", Some("1"));
    let mirrored = Mirrored::by(&[mirror.url()], "");
    mirrored.assert_read().await;
    let log = mirror.log();
    assert!(!log.is_empty());
    for record in log.records() {
        assert_eq!(record.authorization_seen(), None, "{record}");
    }
}

#[tokio::test]
async fn a_mirror_that_nobody_trusts_is_passed_by() {
    let mirror = FakeRegistry::builder().https().start();
    image().put(&mirror, "team/app", Some("1"));
    let mirrored = Mirrored::by(&[mirror.url()], "");
    mirrored.assert_read().await;
    assert!(mirror.log().is_empty());
    assert!(!mirrored.registry.log().is_empty());
    // It is trusted as the registry is, when nothing is settled about it.
    let more = HostSettings {
        ca_files: mirror.ca_certificate().into_iter().collect(),
        ..HostSettings::default()
    };
    let mirrored = Mirrored::with(&[mirror.url()], "", more);
    mirrored.assert_read().await;
    assert!(mirrored.registry.log().is_empty());
}

#[tokio::test]
async fn a_silent_mirror_is_waited_for_once() {
    let gate = Gate::new();
    let mirror = FakeRegistry::start();
    mirror.inject(Fault::hold(&gate).always());
    let more = HostSettings {
        header_timeout: Some(Duration::from_millis(20)),
        ..HostSettings::default()
    };
    let mut mirrored = Mirrored::with(&[mirror.url()], "", more.clone());
    // The registry itself is given its time.
    let registry = mirrored.registry.host();
    let mut settings = settings();
    let host = HostSettings {
        mirrors: vec![mirror.url().parse().unwrap()],
        ..HostSettings::default()
    };
    settings.hosts.insert(&registry, host).unwrap();
    settings.hosts.insert(&mirror.host(), more).unwrap();
    settings.credentials = Arc::new(Passwords {
        registry,
        mirror: String::new(),
    });
    mirrored.client = Client::new(settings).unwrap();
    mirrored.assert_read().await;
    assert_eq!(mirror.log().len(), 1, "{}", mirror.log());
    gate.open();
}

#[tokio::test]
async fn nobody_at_the_mirror_is_tried_once() {
    let server = RawServer::start(drop);
    let address = server.address;
    let mirrored = Mirrored::by(&[format!("https://{address}")], "");
    mirrored.assert_read().await;
    mirrored.assert_read().await;
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_download_that_breaks_at_the_mirror_goes_on_at_the_registry() {
    let blob = bytes(9 << 20);
    let mirror = FakeRegistry::start();
    mirror.put_blob("team/app", blob.clone());
    mirror.inject(Fault::disconnect_after_sending(1 << 20));
    // What broke off does not count among the downloads that may run.
    let more = HostSettings {
        concurrency: NonZeroUsize::new(1),
        ..HostSettings::default()
    };
    let mirrored = Mirrored::with(&[mirror.url()], "", more);
    mirrored.registry.put_blob("team/app", blob.clone());
    let repository = repository(&mirrored.registry, "team/app");
    let fetched = fetch(&mirrored.client, &repository, &descriptor(&blob)).await;
    assert_eq!(fetched.unwrap(), blob);
    let log = mirrored.registry.log();
    let sent = log.blob_bytes_sent();
    assert!(sent < 9 << 20, "{log}");
    assert_eq!(mirror.log().len(), 1);
}

#[tokio::test]
async fn a_large_blob_that_is_wrong_at_the_mirror_is_not_the_registrys_fault() {
    let blob = bytes(9 << 20);
    let mirror = FakeRegistry::start();
    mirror.put_blob("team/app", blob.clone());
    mirror.inject(Fault::corrupt_byte(5).always());
    let mirrored = Mirrored::by(&[mirror.url()], "");
    mirrored.registry.put_blob("team/app", blob.clone());
    let repository = repository(&mirrored.registry, "team/app");
    let descriptor = descriptor(&blob);
    let fetched = fetch(&mirrored.client, &repository, &descriptor).await;
    let error = fetched.unwrap_err();
    let expected = format!(
        "what mirror {} has as {} is something else",
        mirror.host(),
        descriptor.digest
    );
    assert!(told(error.as_ref()).ends_with(&expected), "{error:?}");
    let error = registry_error(error.as_ref());
    assert!(matches!(error, RegistryError::SpoiltMirror { .. }));
    // The mirror is asked no more, so the next attempt is right.
    let fetched = fetch(&mirrored.client, &repository, &descriptor).await;
    assert_eq!(fetched.unwrap(), blob);
    assert_eq!(mirror.log().len(), 1);
}

#[tokio::test]
async fn a_copy_survives_a_mirror_that_is_wrong() {
    let blob = bytes(9 << 20);
    let mirror = FakeRegistry::start();
    mirror.put_blob("team/app", blob.clone());
    mirror.inject(Fault::corrupt_byte(5).on_path("/blobs/").always());
    let mirrored = Mirrored::by(&[mirror.url()], "");
    mirrored.registry.put_blob("team/app", blob.clone());
    let target = FakeRegistry::start();
    let to = place(&mirrored.client, &target, "app");
    let descriptor = descriptor(&blob);
    let content = mirrored.place().content(&descriptor);
    let blobs = crate::support::Blobs(mirrored.client.clone());
    let ignore = |_| ();
    let sent = tierce_image::Blob::new(&descriptor, &content, &blobs, &ignore);
    tierce_image::ImageSink::send(&to, &sent).await.unwrap();
    assert_eq!(target.blob("app", &descriptor.digest), Some(blob));
}

#[tokio::test]
async fn nothing_is_written_to_a_mirror_or_asked_of_it_before_writing() {
    let mirror = FakeRegistry::start();
    // An answer of the mirror would end the push: it has the image under the tag.
    image().put(&mirror, "team/new", Some("1"));
    let mirrored = Mirrored::by(&[mirror.url()], "");
    let to = place(&mirrored.client, &mirrored.registry, "team/new");
    let image = image();
    let report = push(&artifact(&image), &to, "1", &mirrored.client).await;
    assert_eq!(report.unwrap().manifests, 1);
    assert!(mirror.log().is_empty(), "{}", mirror.log());
    assert_eq!(
        mirrored.registry.resolve("team/new", "1"),
        Some(image.digest())
    );
    // Not even where the registry does not tell a tag's digest by HEAD.
    let quiet = Fault::without_header("docker-content-digest");
    mirrored
        .registry
        .inject(quiet.on(Method::HEAD, "/manifests/").always());
    let report = push(&artifact(&image), &to, "1", &mirrored.client).await;
    assert!(report.unwrap().up_to_date);
    assert!(mirror.log().is_empty(), "{}", mirror.log());
}

#[tokio::test]
async fn what_a_mirror_has_is_named_as_the_registrys() {
    let mirror = FakeRegistry::start();
    image().put(&mirror, "team/app", Some("1"));
    let mirrored = Mirrored::by(&[mirror.url()], "");
    // Blobs that come from the mirror can be mounted where the registry has them.
    let to = place(&mirrored.client, &mirrored.registry, "team/other");
    let report = copy(&mirrored.place(), &to, "1", &mirrored.client).await;
    assert_eq!(report.unwrap().sent.blobs, 0);
    let log = mirrored.registry.log();
    assert!(log.count(Method::POST, "/blobs/uploads/") > 0, "{log}");
}
