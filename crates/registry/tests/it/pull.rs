//! Reading manifests and blobs.

use futures_util::TryStreamExt as _;
use tierce_image::ImageSource as _;
use tierce_oci::{Digest, Document, Platform, Selector};
use tierce_registry::{Distrust, Problem, Step};
use tierce_testkit::images::Format;
use tierce_testkit::{FakeRegistry, Fault, Method, Redirect};

use crate::support::{
    ATTEMPTS, Blobs, Fixed, by_tag, bytes, client, client_as, descriptor, fetch, image, place,
    registry_error, repository, settings, told,
};

#[tokio::test]
async fn an_image_is_read_by_tag_and_by_digest() {
    let registry = FakeRegistry::start();
    let digest = image().put(&registry, "base", Some("1"));
    let client = client();
    let place = place(&client, &registry, "base");
    let platform: Platform = "linux/amd64".parse().unwrap();
    for selector in [by_tag("1"), Selector::Digest(digest)] {
        let blobs = Blobs(client.clone());
        let read = tierce_image::read_image(&place, &blobs, &selector, Some(&platform))
            .await
            .unwrap();
        assert_eq!(read.digest(), digest);
        assert_eq!(read.layers().len(), 2);
    }
    let log = registry.log();
    assert_eq!(log.count(Method::GET, "/manifests/"), 2);
    assert_eq!(
        log.count(Method::GET, "/blobs/"),
        2,
        "only the config is read"
    );
    assert_eq!(log.len(), 4);
    let accepted = log.records()[0].header("accept").unwrap();
    for kind in tierce_oci::MediaType::MANIFESTS {
        assert!(accepted.contains(kind), "{accepted}");
    }
    let agent = log.records()[0].header("user-agent").unwrap();
    assert!(agent.starts_with("tierce/"), "{agent}");
}

#[tokio::test]
async fn what_is_not_there_is_said_plainly() {
    let registry = FakeRegistry::start();
    registry.create_repository("base");
    let client = client();
    let error = place(&client, &registry, "base")
        .manifest(&by_tag("1"))
        .await
        .unwrap_err();
    assert!(error.is_not_found() && !error.is_connect());
    assert!(error.has_code("MANIFEST_UNKNOWN"));
    let begin = format!(
        "registry {} answered 404 MANIFEST_UNKNOWN to `GET /v2/base/manifests/1`: ",
        registry.host()
    );
    assert!(error.to_string().starts_with(&begin), "{error}");
    let wanted = descriptor(b"x");
    let base = repository(&registry, "base");
    let error = client.open_blob(&base, &wanted, 0).await.err().unwrap();
    assert!(error.is_not_found());
    assert_eq!(registry.log().len(), 2, "a no is not asked for twice");
}

#[tokio::test]
async fn a_manifest_of_another_digest_is_refused() {
    let registry = FakeRegistry::start();
    let digest = image().put(&registry, "base", Some("1"));
    let place = place(&client(), &registry, "base");
    let other = Digest::of(b"other");
    registry.inject(Fault::digest_header(&other.to_string()).on(Method::GET, "/manifests/1"));
    let error = place.manifest(&by_tag("1")).await.unwrap_err();
    let problem = Problem::OtherDigest {
        expected: other,
        found: digest,
    };
    assert_eq!(error.problem(), Some(&problem));
    let told = told(&error);
    assert!(
        told.contains("cannot be used") && told.contains("it has the digest"),
        "{told}"
    );

    registry.inject(Fault::replace_body("{}").on(Method::GET, "/manifests/sha256:"));
    let error = place.manifest(&Selector::Digest(digest)).await.unwrap_err();
    assert!(matches!(error.problem(), Some(Problem::OtherDigest { .. })));
    // A header that contradicts the digest asked for is not believed.
    registry.inject(Fault::digest_header(&other.to_string()).on(Method::GET, "/manifests/"));
    place.manifest(&Selector::Digest(digest)).await.unwrap();
    assert_eq!(registry.pending_faults(), Vec::<String>::new());
}

#[tokio::test]
async fn a_manifest_is_what_its_header_says() {
    let registry = FakeRegistry::start();
    let image = image();
    let manifest = image.manifest.clone();
    let kind = image.format.manifest();
    registry.put_manifest("base", Some("text"), kind, manifest.clone());
    registry.put_manifest("base", Some("page"), kind, "<html>");
    registry.inject(Fault::header("content-type", "text/plain").on_path("/manifests/text"));
    let place = place(&client(), &registry, "base");
    let document = place.manifest(&by_tag("text")).await.unwrap();
    assert!(matches!(document, Document::Manifest(_)));
    assert_eq!(document.bytes(), &manifest);
    registry.inject(Fault::header("content-type", Format::Oci.manifest()).on_path("/manifests/"));
    let error = told(&place.manifest(&by_tag("text")).await.unwrap_err());
    assert!(error.contains("but calls itself"), "{error}");
    let error = told(&place.manifest(&by_tag("page")).await.unwrap_err());
    assert!(
        error.contains("the manifest `page` of") && error.contains("not JSON"),
        "{error}"
    );
}

#[tokio::test]
async fn endless_answers_end() {
    let registry = FakeRegistry::start();
    image().put(&registry, "base", Some("1"));
    let place = place(&client(), &registry, "base");
    registry.inject(Fault::endless_body(200).on(Method::GET, "/manifests/"));
    let error = place.manifest(&by_tag("1")).await.unwrap_err();
    let too_large = Problem::TooLarge { limit: 4 << 20 };
    assert_eq!(error.problem(), Some(&too_large));
    registry.inject(Fault::endless_body(403).on(Method::GET, "/manifests/"));
    let error = place.manifest(&by_tag("1")).await.unwrap_err();
    assert!(error.is_denied());
    assert!(error.to_string().len() < 500);
}

#[tokio::test]
async fn what_may_pass_is_tried_again() {
    let registry = FakeRegistry::start();
    let digest = image().put(&registry, "base", Some("1"));
    let place = place(&client(), &registry, "base");
    for status in [408, 425, 429, 500, 502, 503, 504] {
        registry.clear_log();
        registry.inject(Fault::status(status).on_path("/manifests/").times(3));
        let document = place.manifest(&by_tag("1")).await.unwrap();
        assert_eq!(document.digest(), digest);
        assert_eq!(registry.log().len(), 4, "{status}");
    }
    registry.inject(Fault::disconnect().on_path("/manifests/").times(2));
    registry.inject(Fault::disconnect_after_sending(20).on_path("/manifests/"));
    place.manifest(&by_tag("1")).await.unwrap();
    assert_eq!(registry.pending_faults(), Vec::<String>::new());
}

#[tokio::test]
async fn what_will_not_pass_is_not() {
    let registry = FakeRegistry::start();
    image().put(&registry, "base", Some("1"));
    let place = place(&client(), &registry, "base");
    // The first request settles the scheme, which a 400 would put in doubt.
    place.manifest(&by_tag("1")).await.unwrap();
    for status in [400, 403, 404, 405, 416, 418, 501] {
        registry.clear_log();
        registry.inject(Fault::status(status).on_path("/manifests/"));
        let error = place.manifest(&by_tag("1")).await.unwrap_err();
        assert_eq!(error.status(), Some(status));
        assert_eq!(registry.log().len(), 1, "{status}");
        assert!(!error.to_string().contains("attempts"), "{error}");
    }
}

#[tokio::test]
async fn giving_up_says_how_often_it_was_tried() {
    let registry = FakeRegistry::start();
    let place = place(&client(), &registry, "base");
    registry.inject(Fault::too_many_requests(3600).always());
    let error = place.manifest(&by_tag("1")).await.unwrap_err();
    assert!(error.is_rate_limited());
    let text = error.to_string();
    assert!(
        text.contains("answered 429 TOOMANYREQUESTS to `GET"),
        "{text}"
    );
    assert!(text.contains(", after 4 attempts in 0."), "{text}");
    registry.clear_faults();
    registry.inject(Fault::disconnect().always());
    let error = place.manifest(&by_tag("1")).await.unwrap_err();
    assert_eq!(error.step(), Some(Step::Transfer));
    let text = error.to_string();
    let begin = format!("the connection to {} broke during `GET", registry.host());
    assert!(text.starts_with(&begin), "{text}");
    assert!(text.contains(", after 4 attempts in 0."), "{text}");
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_was() {
    for ignore_ranges in [false, true] {
        let mut builder = FakeRegistry::builder();
        if ignore_ranges {
            builder = builder.ignore_ranges();
        }
        let registry = builder.start();
        let bytes = bytes(300_000);
        registry.put_blob("base", bytes.clone());
        let client = client();
        let repository = repository(&registry, "base");
        registry.inject(Fault::disconnect_after_sending(100_000).on_path("/blobs/"));
        registry.inject(
            Fault::disconnect_after_sending(150_000)
                .on_path("/blobs/")
                .nth(2),
        );
        let fetched = fetch(&client, &repository, &descriptor(&bytes)).await;
        assert_eq!(fetched.unwrap(), bytes);
        assert_eq!(registry.pending_faults(), Vec::<String>::new());
        let log = registry.log();
        assert_eq!(log.len(), 3, "{log}");
        let asked: Vec<_> = log.records().iter().map(|it| it.header("range")).collect();
        assert_eq!(asked[0], None);
        assert!(
            asked[1].is_some_and(|range| range.starts_with("bytes=")),
            "{asked:?}"
        );
        if !ignore_ranges {
            assert!(log.blob_bytes_sent() < 400_000, "{log}");
        }
    }
}

#[tokio::test]
async fn a_download_that_breaks_always_is_given_up() {
    let registry = FakeRegistry::start();
    let bytes = bytes(100_000);
    registry.put_blob("base", bytes.clone());
    registry.inject(
        Fault::disconnect_after_sending(0)
            .on_path("/blobs/")
            .always(),
    );
    let repository = repository(&registry, "base");
    let error = fetch(&client(), &repository, &descriptor(&bytes))
        .await
        .unwrap_err();
    assert_eq!(registry.log().len(), ATTEMPTS as usize);
    let error = registry_error(error.as_ref());
    assert_eq!(error.step(), Some(Step::Transfer));
    assert!(
        error.to_string().contains(", after 4 attempts in "),
        "{error}"
    );
}

#[tokio::test]
async fn a_blob_is_opened_from_any_offset() {
    for ignore_ranges in [false, true] {
        let mut builder = FakeRegistry::builder();
        if ignore_ranges {
            builder = builder.ignore_ranges();
        }
        let registry = builder.start();
        let bytes = bytes(70_000);
        registry.put_blob("base", bytes.clone());
        let client = client();
        let repository = repository(&registry, "base");
        for from in [0, 1, 69_999, 70_000, 80_000] {
            let opened = client
                .open_blob(&repository, &descriptor(&bytes), from)
                .await;
            let pieces: Vec<_> = opened.unwrap().try_collect().await.unwrap();
            let from = usize::try_from(from).unwrap().min(bytes.len());
            assert_eq!(pieces.concat(), bytes[from..]);
        }
        assert_eq!(
            registry.log().len(),
            3,
            "nothing is asked for when nothing is left"
        );
    }
}

#[tokio::test]
async fn a_spoilt_blob_is_found_out() {
    let registry = FakeRegistry::start();
    let bytes = bytes(100_000);
    registry.put_blob("base", bytes.clone());
    let client = client();
    let repository = repository(&registry, "base");
    let fetch = async || {
        let error = fetch(&client, &repository, &descriptor(&bytes))
            .await
            .unwrap_err();
        told(error.as_ref())
    };
    registry.inject(Fault::corrupt_byte(77_777).on_path("/blobs/"));
    let error = fetch().await;
    assert!(error.contains("its bytes have the digest"), "{error}");
    registry.inject(Fault::truncate(5).on_path("/blobs/"));
    let error = fetch().await;
    assert!(
        error.contains("it has 5 bytes where 100000 were expected"),
        "{error}"
    );
    registry.inject(Fault::append("more").on_path("/blobs/"));
    let error = fetch().await;
    assert!(error.contains("it has 100004 bytes where"), "{error}");
    assert_eq!(registry.log().len(), 3, "none of this is tried again");
}

#[tokio::test]
async fn credentials_stay_behind_when_a_blob_is_elsewhere() {
    for redirect in [
        Redirect::OtherPort,
        Redirect::OtherName,
        Redirect::OtherNameSamePort,
    ] {
        let registry = FakeRegistry::builder()
            .basic("user", "hunter2")
            .redirect_blobs(redirect)
            .start();
        let bytes = bytes(1000);
        registry.put_blob("base", bytes.clone());
        let client = client_as(Fixed::password("user", "hunter2"));
        let repository = repository(&registry, "base");
        let fetched = fetch(&client, &repository, &descriptor(&bytes)).await;
        assert_eq!(fetched.unwrap(), bytes, "{redirect:?}");
        let log = registry.log();
        let last = log.records().last().unwrap();
        assert!(last.path.starts_with("/storage/"), "{log}");
        assert_eq!(last.authorization_seen(), None);
    }
}

#[tokio::test]
async fn errors_of_storage_name_it_and_not_its_signature() {
    let registry = FakeRegistry::builder()
        .redirect_blobs(Redirect::OtherPort)
        .start();
    let bytes = bytes(1000);
    registry.put_blob("base", bytes.clone());
    let repository = repository(&registry, "base");
    fetch(&client(), &repository, &descriptor(&bytes))
        .await
        .unwrap();
    let query = registry.log().records().last().unwrap().query.clone();
    let signature = query
        .split(['=', '&'])
        .nth(1)
        .expect("the query is a signature and more");
    let storage = registry.storage_host();
    for (body, code) in [
        (
            format!("<Error><Code>AccessDenied</Code><Message>{query}</Message></Error>"),
            " AccessDenied",
        ),
        (format!("<Error><Code>{signature}</Code></Error>"), ""),
        (format!("no good: {query}"), ""),
        (
            format!(r#"{{"code":"EXPIRED","message":"{query}"}}"#),
            " EXPIRED",
        ),
        (format!(r#"{{"code":"{query}"}}"#), ""),
        (format!(r#"{{"code":"{signature}"}}"#), ""),
    ] {
        let refused = Fault::status(403).with_body(body.clone());
        registry.inject(refused.on_path("/storage/"));
        let error = fetch(&client(), &repository, &descriptor(&bytes))
            .await
            .unwrap_err();
        let error = registry_error(error.as_ref());
        let begin = format!("{storage} answered 403{code} to `GET http://{storage}/storage/");
        let text = error.to_string();
        assert!(text.starts_with(&begin) && text.ends_with('`'), "{text}");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains(signature), "{body}: {shown}");
    }
}

#[tokio::test]
async fn redirects_do_not_lead_to_inner_addresses() {
    let registry = FakeRegistry::start();
    let place = place(&client(), &registry, "base");
    for (target, expected) in [
        ("http://169.254.169.254/latest/", Distrust::InnerAddress),
        ("http://[fe80::1]/", Distrust::InnerAddress),
        ("http://10.0.0.1/x", Distrust::InnerAddress),
        ("http://topsecret:topsecret@a.b/x", Distrust::UserInfo),
        ("https://topsecret@127.0.0.1/x", Distrust::UserInfo),
        ("file:///etc/passwd", Distrust::NotHttp),
    ] {
        registry.inject(Fault::status(307).with_header("location", target));
        let error = place.manifest(&by_tag("1")).await.unwrap_err();
        let shown = format!("{}\n{error:?}", told(&error));
        let Some(Problem::Distrusted { source, .. }) = error.problem() else {
            panic!("{shown}");
        };
        assert_eq!(*source, expected, "{target}");
        assert!(!shown.contains("topsecret"), "{shown}");
    }
}

#[tokio::test]
async fn redirects_end_and_do_not_leave_tls() {
    let registry = FakeRegistry::start();
    let place = place(&client(), &registry, "base");
    let to = |url: &str| Fault::status(307).with_header("location", url);
    registry.inject(to("/v2/base/manifests/1").always());
    let error = place.manifest(&by_tag("1")).await.unwrap_err();
    assert_eq!(error.problem(), Some(&Problem::TooManyRedirects));
    registry.clear_faults();
    registry.inject(Fault::status(302));
    let error = place.manifest(&by_tag("1")).await.unwrap_err();
    assert_eq!(error.problem(), Some(&Problem::NoLocation));
    for (target, source) in [
        ("ftp://a.b/c", Distrust::NotHttp),
        ("data:,x", Distrust::NotHttp),
    ] {
        registry.inject(to(target));
        let error = place.manifest(&by_tag("1")).await.unwrap_err();
        match error.problem() {
            Some(Problem::Distrusted { source: found, .. }) => assert_eq!(*found, source),
            other => panic!("{other:?}"),
        }
    }

    let registry = FakeRegistry::builder().https().start();
    let mut settings = settings();
    settings.ca_files = vec![registry.ca_certificate().unwrap()];
    let client = tierce_registry::Client::new(settings).unwrap();
    registry.inject(to("http://storage.example/x"));
    let place = crate::support::place(&client, &registry, "base");
    let error = place.manifest(&by_tag("1")).await.unwrap_err();
    let text = told(&error);
    assert!(
        text.contains("it sends us to storage.example\nit leads from https to http"),
        "{text}"
    );
}
