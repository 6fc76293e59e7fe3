//! Writing blobs and manifests.

use bytes::Bytes;
use tierce_image::{BlobAt, Content, ImageSink as _, ImageSource as _, Placed};
use tierce_oci::{Digest, Selector};
use tierce_registry::{Distrust, Problem, RegistryError, Step};
use tierce_testkit::{FakeRegistry, Fault, LocationStyle, Method, Redirect};

use crate::support::{
    artifact, by_tag, bytes, client, copy, descriptor, image, in_memory, place, push,
    registry_error, repository, send, tag, told,
};

#[tokio::test]
async fn an_image_is_pushed_whole_and_then_not_again() {
    let registry = FakeRegistry::builder().require_content_length().start();
    let image = image();
    let artifact = artifact(&image);
    let client = client();
    let place = place(&client, &registry, "team/app");
    let report = push(&artifact, &place, "1", &client).await.unwrap();
    assert_eq!((report.sent.blobs, report.manifests), (3, 1));
    assert_eq!(registry.resolve("team/app", "1"), Some(image.digest()));
    let (media_type, bytes) = registry.manifest("team/app", "1").unwrap();
    assert_eq!(
        (media_type.as_str(), bytes),
        (image.format.manifest(), image.manifest.clone())
    );
    let log = registry.log();
    // Two questions for the manifest, three requests for each blob, the manifest.
    assert_eq!(log.len(), 2 + 3 * 3 + 1, "{log}");
    assert_eq!(registry.open_uploads(), 0);

    registry.clear_log();
    let report = push(&artifact, &place, "1", &client).await.unwrap();
    assert!(report.up_to_date);
    let log = registry.log();
    assert_eq!(
        (log.len(), log.count(Method::HEAD, "/manifests/1")),
        (1, 1),
        "{log}"
    );

    registry.clear_log();
    let report = push(&artifact, &place, "2", &client).await.unwrap();
    assert_eq!(report.manifests, 1);
    assert_eq!(
        registry.log().len(),
        3,
        "a new tag costs two questions and one PUT"
    );
}

#[tokio::test]
async fn current_says_what_is_there_in_every_way_registries_answer() {
    let registry = FakeRegistry::start();
    let digest = image().put(&registry, "app", Some("1"));
    let client = client();
    let app = place(&client, &registry, "app");
    assert_eq!(app.current(&by_tag("1")).await.unwrap(), Some(digest));
    assert_eq!(
        app.current(&Selector::Digest(digest)).await.unwrap(),
        Some(digest)
    );
    assert_eq!(app.current(&by_tag("2")).await.unwrap(), None);
    let none = place(&client, &registry, "none");
    assert_eq!(none.current(&by_tag("1")).await.unwrap(), None);
    registry.clear_log();
    registry.inject(Fault::without_header("docker-content-digest").on(Method::HEAD, ""));
    assert_eq!(app.current(&by_tag("1")).await.unwrap(), Some(digest));
    assert_eq!(registry.log().count(Method::GET, "/manifests/1"), 1);
    registry.inject(Fault::status(403).on(Method::HEAD, ""));
    assert!(app.current(&by_tag("1")).await.unwrap_err().is_denied());
}

#[tokio::test]
async fn blobs_are_mounted_from_a_neighbour() {
    let registry = FakeRegistry::start();
    let image = image();
    image.put(&registry, "base", Some("1"));
    let client = client();
    let (from, to) = (
        place(&client, &registry, "base"),
        place(&client, &registry, "team/app"),
    );
    let report = copy(&from, &to, "1", &client).await.unwrap();
    assert_eq!((report.mounted.blobs, report.sent.blobs), (3, 0));
    let log = registry.log();
    assert_eq!((log.blob_bytes_received(), log.blob_bytes_sent()), (0, 0));
    assert_eq!(registry.resolve("team/app", "1"), Some(image.digest()));
}

#[tokio::test]
async fn a_refused_mount_has_begun_the_upload() {
    let registry = FakeRegistry::builder().without_mounts().start();
    let image = image();
    image.put(&registry, "base", Some("1"));
    let client = client();
    let (from, to) = (
        place(&client, &registry, "base"),
        place(&client, &registry, "team/app"),
    );
    let report = copy(&from, &to, "1", &client).await.unwrap();
    assert_eq!((report.mounted.blobs, report.sent.blobs), (0, 3));
    assert_eq!(
        registry.log().count(Method::POST, "/uploads/"),
        3,
        "one for each blob"
    );
    assert_eq!(registry.open_uploads(), 0);
}

#[tokio::test]
async fn a_mount_that_is_not_allowed_is_no_error() {
    let registry = FakeRegistry::start();
    let bytes = bytes(10);
    let place = place(&client(), &registry, "app");
    let blob = BlobAt {
        descriptor: descriptor(&bytes),
        content: Content::Origin(repository(&registry, "base")),
    };
    for status in [400, 403, 404, 405] {
        registry.inject(Fault::status(status).on(Method::POST, "/uploads/"));
        assert_eq!(place.place(&blob).await.unwrap(), None, "{status}");
    }
    registry.put_blob("app", bytes);
    assert_eq!(
        place.place(&blob).await.unwrap(),
        Some(Placed::AlreadyThere)
    );
}

#[tokio::test]
async fn only_neighbours_are_mounted_from() {
    let registry = FakeRegistry::start();
    let place = place(&client(), &registry, "app");
    for origin in ["ghcr.io/a/b".parse().unwrap(), repository(&registry, "app")] {
        let blob = BlobAt {
            descriptor: descriptor(b"x"),
            content: Content::Origin(origin),
        };
        assert_eq!(place.place(&blob).await.unwrap(), None);
    }
    assert_eq!(place.place(&in_memory(&bytes(10))).await.unwrap(), None);
    assert_eq!(registry.log().count(Method::POST, ""), 0);
}

#[tokio::test]
async fn layers_stream_from_registry_to_registry() {
    let source = FakeRegistry::builder()
        .redirect_blobs(Redirect::OtherPort)
        .start();
    let target = FakeRegistry::start();
    let image = image();
    image.put(&source, "base", Some("1"));
    let client = client();
    let (from, to) = (
        place(&client, &source, "base"),
        place(&client, &target, "base"),
    );
    let report = copy(&from, &to, "1", &client).await.unwrap();
    assert_eq!(report.sent.blobs, 3);
    assert_eq!(target.resolve("base", "1"), Some(image.digest()));
}

#[tokio::test]
async fn every_shape_of_location_is_followed() {
    for style in [
        LocationStyle::AbsoluteWithQuery,
        LocationStyle::Absolute,
        LocationStyle::Relative,
        LocationStyle::RelativeWithQuery,
        LocationStyle::OtherHost,
    ] {
        let registry = FakeRegistry::builder().location(style).start();
        let place = place(&client(), &registry, "app");
        let bytes = bytes(100_000);
        send(&place, &bytes, &bytes).await.unwrap();
        let stored = registry.blob("app", &Digest::of(&bytes));
        assert_eq!(stored.as_ref(), Some(&bytes), "{style:?}");
        let log = registry.log();
        let put = log.matching(&Method::PUT, "");
        let length = put.records()[0].header("content-length");
        assert_eq!(length, Some("100000"), "{log}");
        assert_eq!(put.records()[0].header("transfer-encoding"), None);
    }
}

#[tokio::test]
async fn an_upload_is_not_led_to_inner_addresses() {
    let registry = FakeRegistry::start();
    let place = place(&client(), &registry, "app");
    let bytes = bytes(10);
    for (location, expected) in [
        ("http://169.254.169.254/latest/", Distrust::InnerAddress),
        ("http://10.0.0.1/upload", Distrust::InnerAddress),
        ("ftp://a.b/c", Distrust::NotHttp),
        ("file:///etc/passwd", Distrust::NotHttp),
        ("http://topsecret:topsecret@a.b/c", Distrust::UserInfo),
        ("http://topsecret@10.0.0.1/c", Distrust::UserInfo),
    ] {
        registry.inject(Fault::header("location", location).on(Method::POST, "/uploads/"));
        let error = send(&place, &bytes, &bytes).await.unwrap_err();
        let Some(Problem::Distrusted { source, .. }) = error.problem() else {
            panic!("{error:?}");
        };
        assert_eq!(*source, expected);
        let shown = format!("{}\n{error:?}", told(&error));
        assert!(!shown.contains("topsecret"), "{shown}");
    }
    registry.inject(Fault::without_header("location").on(Method::POST, "/uploads/"));
    let error = send(&place, &bytes, &bytes).await.unwrap_err();
    assert_eq!(error.problem(), Some(&Problem::NoLocation));
}

#[tokio::test]
async fn an_empty_blob_is_a_blob() {
    let registry = FakeRegistry::start();
    let place = place(&client(), &registry, "app");
    let empty = Bytes::new();
    send(&place, &empty, &empty).await.unwrap();
    assert_eq!(registry.blob("app", &Digest::of(b"")), Some(empty.clone()));
    let error = send(&place, &empty, &bytes(3)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Source(_)), "{error:?}");
}

#[tokio::test]
async fn a_broken_upload_is_begun_anew() {
    let registry = FakeRegistry::start();
    let bytes = bytes(500_000);
    let place = place(&client(), &registry, "app");
    registry.inject(Fault::disconnect_after_receiving(200_000).on(Method::PUT, "/uploads/"));
    registry.inject(Fault::disconnect().on(Method::PUT, "/uploads/").nth(2));
    registry.inject(Fault::status(503).on(Method::PUT, "/uploads/").nth(3));
    send(&place, &bytes, &bytes).await.unwrap();
    assert_eq!(
        registry.blob("app", &Digest::of(&bytes)),
        Some(bytes.clone())
    );
    let log = registry.log();
    assert_eq!(log.count(Method::POST, "/uploads/"), 4, "{log}");
    assert_eq!(registry.pending_faults(), Vec::<String>::new());
}

#[tokio::test]
async fn an_upload_that_breaks_always_is_given_up() {
    let registry = FakeRegistry::start();
    let bytes = bytes(500_000);
    let place = place(&client(), &registry, "app");
    registry.inject(
        Fault::disconnect_after_receiving(9)
            .on(Method::PUT, "")
            .always(),
    );
    let error = send(&place, &bytes, &bytes).await.unwrap_err();
    assert_eq!(error.step(), Some(Step::Transfer));
    assert!(
        error.to_string().contains(", after 4 attempts in "),
        "{error}"
    );
    assert_eq!(registry.log().count(Method::PUT, ""), 4);
    assert_eq!(registry.blobs("app"), []);
}

#[tokio::test]
async fn a_lost_answer_does_not_cost_a_second_upload() {
    let registry = FakeRegistry::start();
    let bytes = bytes(200_000);
    let place = place(&client(), &registry, "app");
    registry.inject(Fault::lose_answer().on(Method::PUT, "/uploads/"));
    send(&place, &bytes, &bytes).await.unwrap();
    let log = registry.log();
    assert_eq!(log.count(Method::PUT, ""), 1, "{log}");
    assert_eq!(log.blob_bytes_received(), 200_000);
}

#[tokio::test]
async fn an_upload_that_ended_on_the_other_side_is_begun_anew() {
    let registry = FakeRegistry::start();
    let bytes = bytes(10);
    let place = place(&client(), &registry, "app");
    registry.inject(Fault::status(404).on(Method::PUT, "/uploads/"));
    registry.inject(Fault::status(416).on(Method::PUT, "/uploads/").nth(2));
    send(&place, &bytes, &bytes).await.unwrap();
    assert_eq!(registry.log().count(Method::POST, "/uploads/"), 3);
}

#[tokio::test]
async fn a_spoilt_source_leaves_nothing_behind() {
    let registry = FakeRegistry::start();
    let place = place(&client(), &registry, "app");
    let promised = bytes(100_000);
    let mut spoilt = promised.to_vec();
    spoilt[99_999] ^= 1;
    let longer = [&promised[..], b"x"].concat();
    for content in [spoilt, longer, promised[..99_000].to_vec(), Vec::new()] {
        let error = send(&place, &promised, &content.into()).await.unwrap_err();
        assert!(matches!(error, RegistryError::Source(_)), "{error:?}");
        let told = told(&error);
        let digest = Digest::of(&promised);
        assert!(
            told.starts_with(&format!("could not read blob {digest}\nit")),
            "{told}"
        );
        assert_eq!(registry.blobs("app"), []);
    }
    assert_eq!(registry.open_uploads(), 0, "they are cancelled");
}

#[tokio::test]
async fn a_source_that_vanishes_is_not_the_targets_fault() {
    let (source, target) = (FakeRegistry::start(), FakeRegistry::start());
    let image = image();
    image.put(&source, "base", Some("1"));
    let client = client();
    let from = place(&client, &source, "base");
    let artifact = tierce_image::read_artifact(&from, &by_tag("1"))
        .await
        .unwrap();
    source.delete_blob("base", &image.layers[0].digest());
    let to = place(&client, &target, "app");
    let error = push(&artifact, &to, "1", &client).await.unwrap_err();
    let told = told(&error);
    let digest = image.layers[0].digest();
    assert!(
        told.starts_with(&format!("could not write blob {digest} (")),
        "{told}"
    );
    assert!(
        told.contains(&format!("could not read blob {digest}\n")),
        "{told}"
    );
    let line = format!(
        "registry {} answered 404 BLOB_UNKNOWN to `GET /v2/base/",
        source.host()
    );
    assert!(told.contains(&line), "{told}");
    assert_eq!(target.tags("app"), Vec::<String>::new());
    assert_eq!(target.manifests("app"), []);
}

#[tokio::test]
async fn a_registry_that_stored_something_else_is_not_believed() {
    let registry = FakeRegistry::start();
    let image = image();
    image.put(&registry, "app", None);
    let place = place(&client(), &registry, "app");
    let selector = Selector::Digest(image.digest());
    let document = place.manifest(&selector).await.unwrap();
    let other = Digest::of(b"other");
    registry.inject(Fault::digest_header(&other.to_string()).on(Method::PUT, "/manifests/"));
    let error = place
        .put_manifest(&document, Some(&tag("1")))
        .await
        .unwrap_err();
    let problem = Problem::OtherDigest {
        expected: image.digest(),
        found: other,
    };
    assert_eq!(error.problem(), Some(&problem));
    registry.inject(Fault::without_header("docker-content-digest").on(Method::PUT, ""));
    place
        .put_manifest(&document, Some(&tag("1")))
        .await
        .unwrap();
    registry.inject(Fault::lose_answer().on(Method::PUT, "/manifests/"));
    place.put_manifest(&document, None).await.unwrap();
    let bytes = bytes(10);
    registry.inject(Fault::digest_header(&other.to_string()).on(Method::PUT, "/uploads/"));
    let error = send(&place, &bytes, &bytes).await.unwrap_err();
    assert!(matches!(error.problem(), Some(Problem::OtherDigest { .. })));
}

#[tokio::test]
async fn a_missing_repository_is_named() {
    let registry = FakeRegistry::builder().without_create_on_push().start();
    let client = client();
    let place = place(&client, &registry, "team/app");
    let error = push(&artifact(&image()), &place, "1", &client)
        .await
        .unwrap_err();
    let error = registry_error(&error);
    assert!(error.is_not_found() && error.has_code("NAME_UNKNOWN"));
    let host = registry.host();
    assert_eq!(
        error.to_string(),
        format!(
            "registry {host} answered 404 NAME_UNKNOWN to `POST /v2/team/app/blobs/uploads/`: \
             repository team/app does not exist"
        )
    );
}

#[tokio::test]
async fn an_early_no_ends_the_upload() {
    let registry = FakeRegistry::start();
    let bytes = bytes(4_000_000);
    let place = place(&client(), &registry, "app");
    registry.inject(Fault::status(403).on(Method::PUT, "/uploads/").always());
    let error = send(&place, &bytes, &bytes).await.unwrap_err();
    // The connection may break before the answer is read; then it is tried again and ends alike.
    assert!(
        error.is_denied() || error.step() == Some(Step::Transfer),
        "{error:?}"
    );
    assert_eq!(registry.blobs("app"), []);
}

#[tokio::test]
async fn heads_that_are_refused_do_not_stop_a_push() {
    let registry = FakeRegistry::start();
    let bytes = bytes(10);
    let place = place(&client(), &registry, "app");
    registry.put_blob("app", bytes.clone());
    for status in [401, 403, 405] {
        registry.inject(Fault::status(status).on(Method::HEAD, "/blobs/"));
        assert_eq!(
            place.place(&in_memory(&bytes)).await.unwrap(),
            None,
            "{status}"
        );
    }
}
