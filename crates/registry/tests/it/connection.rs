//! Getting through to a registry at all.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use tierce_image::ImageSource as _;
use tierce_oci::Repository;
use tierce_registry::{Client, PlainHttp, RegistryError, RetryPolicy, SettingsError, Step};
use tierce_testkit::{FakeRegistry, Fault, Gate, Method, TokenSettings};

use crate::support::{
    Fixed, RawServer, artifact, by_tag, client, descriptor, drip, fetch, image, place, push,
    repository, request_line, settings, told,
};

/// A client that trusts the authority of `registry`.
fn trusting(registry: &FakeRegistry) -> Client {
    let mut settings = settings();
    settings.ca_files.extend(registry.ca_certificate());
    Client::new(settings).expect("the testkit's certificate is fine")
}

async fn failure(client: &Client, name: &str) -> RegistryError {
    let repository: Repository = name.parse().expect("the test names a repository");
    let read = client.repository(&repository).manifest(&by_tag("1")).await;
    read.expect_err("the test provides for a failure")
}

#[tokio::test]
async fn tls_with_a_given_authority() {
    let registry = FakeRegistry::builder()
        .https()
        .bearer(TokenSettings::user("me", "hunter2"))
        .start();
    let mut settings = settings();
    settings.ca_files.extend(registry.ca_certificate());
    settings.credentials = std::sync::Arc::new(Fixed::password("me", "hunter2"));
    let client = Client::new(settings).unwrap();
    let place = place(&client, &registry, "app");
    push(&artifact(&image()), &place, "1", &client)
        .await
        .unwrap();
    let repository: Repository = format!("{}/app", registry.localhost()).parse().unwrap();
    let image = image();
    let layer = &image.layers[0].blob;
    assert_eq!(
        &fetch(&client, &repository, &descriptor(layer))
            .await
            .unwrap(),
        layer
    );
}

#[tokio::test]
async fn tls_with_a_wrong_authority_is_refused() {
    let registry = FakeRegistry::builder().https().start();
    let other = FakeRegistry::builder().https().start();
    let host = registry.host();
    for client in [trusting(&other), client()] {
        let error = failure(&client, &format!("{host}/app")).await;
        assert!(error.is_tls() && error.is_connect(), "{error:?}");
        assert_eq!(
            error.to_string(),
            format!("could not set up TLS with {host}")
        );
        let told = told(&error);
        assert!(told.contains("\ninvalid peer certificate: "), "{told}");
    }
    assert!(registry.log().is_empty());
}

#[tokio::test]
async fn a_wrong_guess_about_tls_on_this_machine_is_corrected() {
    // An authority was given, for some other registry; this one speaks plain HTTP.
    let other = FakeRegistry::builder().https().start();
    let registry = FakeRegistry::start();
    image().put(&registry, "base", Some("1"));
    let client = trusting(&other);
    let base = place(&client, &registry, "base");
    base.manifest(&by_tag("1")).await.unwrap();
    base.manifest(&by_tag("1")).await.unwrap();
    let endpoint = client.endpoint(&registry.host()).unwrap();
    assert_eq!(endpoint.to_string(), registry.url());
    // A registry that breaks the first connection is not taken for one of TLS.
    let registry = FakeRegistry::start();
    image().put(&registry, "base", Some("1"));
    registry.inject(Fault::disconnect());
    let client = crate::support::client();
    place(&client, &registry, "base")
        .manifest(&by_tag("1"))
        .await
        .unwrap();
    assert_eq!(
        client.endpoint(&registry.host()).unwrap().to_string(),
        registry.url()
    );
}

#[tokio::test]
async fn nobody_listening_is_told_at_once() {
    // Not the address of the fake registries, one of which might be given the port next.
    let free = TcpListener::bind("127.0.0.77:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let error = failure(&client(), &format!("{address}/app")).await;
    assert!(error.is_connect() && !error.is_tls() && !error.is_resolve());
    assert_eq!(error.step(), Some(Step::Connect));
    assert_eq!(error.to_string(), format!("could not connect to {address}"));
    assert!(
        told(&error).contains("Connection refused"),
        "{}",
        told(&error)
    );
}

#[tokio::test]
async fn a_name_without_address_is_told_at_once() {
    let error = failure(&client(), "registry.invalid/app").await;
    assert!(error.is_resolve() && error.is_connect(), "{error:?}");
    assert_eq!(
        error.to_string(),
        "could not find the address of registry.invalid"
    );
}

#[tokio::test]
async fn silence_is_not_waited_out() {
    let registry = FakeRegistry::start();
    let gate = Gate::new();
    registry.inject(Fault::hold(&gate).always());
    let mut settings = settings();
    settings.timeouts.read = Duration::from_millis(20);
    settings.timeouts.upload_answer = Duration::from_millis(20);
    let client = Client::new(settings).unwrap();
    let host = registry.host();
    let error = failure(&client, &format!("{host}/app")).await;
    assert!(error.is_timeout() && !error.is_connect(), "{error:?}");
    let text = error.to_string();
    let begin = format!("{host} did not go on with `GET /v2/app/manifests/1` in time, after 4");
    assert!(text.starts_with(&begin), "{text}");

    registry.clear_faults();
    registry.inject(Fault::hold(&gate).on(Method::PUT, "/uploads/").always());
    let bytes = crate::support::bytes(8_000_000);
    let sent = crate::support::send(&place(&client, &registry, "app"), &bytes, &bytes).await;
    let error = sent.unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    gate.open();
}

#[tokio::test]
async fn what_is_not_http_is_told_at_once() {
    for speaks_first in [false, true] {
        let server = RawServer::start(move |mut stream| {
            let mut asked = [0; 1024];
            if !speaks_first {
                let _ = stream.read(&mut asked);
            }
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n");
            // Closed by the client: else what it had written would reset the connection.
            while stream.read(&mut asked).is_ok_and(|count| count > 0) {}
        });
        let host = server.address;
        let error = failure(&client(), &format!("{host}/app")).await;
        assert_eq!(error.step(), Some(Step::Protocol), "{error:?}");
        assert!(!error.is_transient() && !error.is_connect());
        assert_eq!(
            error.to_string(),
            format!("what {host} answered to `GET /v2/app/manifests/1` is not HTTP")
        );
        // Once as HTTP, and once as TLS, which a registry of this machine might speak.
        assert_eq!(server.connections(), 2);
    }
}

#[tokio::test]
async fn documents_are_not_drawn_out_without_end() {
    let server = RawServer::start(|mut stream| {
        let address = stream.local_addr().expect("it is connected");
        let Some(line) = request_line(&mut stream) else {
            return;
        };
        let (status, length) = match line.split(' ').nth(1) {
            Some(path) if path.contains("/denied/") => ("403 Forbidden", 50_000),
            Some(path) if path.contains("/secret/") => ("401 Unauthorized", 0),
            Some(path) if path.contains("/blobs/") => ("200 OK", 40),
            _ => ("200 OK", 50_000),
        };
        let realm = format!("Bearer realm=\"http://{address}/token\"");
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\
             www-authenticate: {realm}\r\n\r\n"
        );
        let _ = stream.write_all(head.as_bytes());
        drip(&mut stream, &vec![b'x'; length]);
    });
    let mut settings = settings();
    settings.timeouts.document = Duration::from_millis(50);
    settings.retry = RetryPolicy::NEVER;
    let read = async |path| {
        // A new one each time: a demand for tokens would be remembered.
        let client = Client::new(settings.clone()).unwrap();
        let place = server.place(&client, path);
        place.manifest(&by_tag("1")).await.unwrap_err()
    };
    for path in ["app", "secret/app"] {
        let error = read(path).await;
        assert!(error.is_timeout(), "{error:?}");
        let told = told(&error);
        assert!(
            told.ends_with("\nthe answer was not whole after 0 s"),
            "{told}"
        );
    }
    assert!(read("denied/app").await.is_denied());
    // A blob may take its time.
    let blob = descriptor(&[b'x'; 40]);
    let repository = format!("{}/app", server.address).parse().unwrap();
    let client = Client::new(settings).unwrap();
    let fetched = fetch(&client, &repository, &blob).await.unwrap();
    assert_eq!(fetched.len(), 40);
}

#[tokio::test]
async fn plain_http_is_spoken_to_whom_it_was_allowed_for() {
    for (plain_http, expected) in [
        (PlainHttp::Loopback, "https://a.example:5000"),
        (PlainHttp::Everywhere, "http://a.example:5000"),
        (
            PlainHttp::Hosts(vec!["a.example:5000".to_owned()]),
            "http://a.example:5000",
        ),
        (
            PlainHttp::Hosts(vec!["a.example".to_owned()]),
            "https://a.example:5000",
        ),
    ] {
        let mut settings = settings();
        settings.plain_http = plain_http;
        let client = Client::new(settings).unwrap();
        let endpoint = client.endpoint("a.example:5000").unwrap();
        assert_eq!(endpoint.to_string(), expected);
    }
}

#[tokio::test]
async fn a_registry_that_is_no_host_is_refused() {
    let odd = Repository {
        registry: "a.b/c?d".to_owned(),
        path: "e".to_owned(),
    };
    let error = client()
        .repository(&odd)
        .manifest(&by_tag("1"))
        .await
        .unwrap_err();
    assert!(matches!(error, RegistryError::Name(_)));
    assert!(error.to_string().contains("`a.b/c?d`"), "{error}");
}

#[test]
fn bad_authorities_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.pem");
    let make = || {
        let mut settings = settings();
        settings.ca_files = vec![path.clone()];
        Client::new(settings).map(|_| ())
    };
    let error = make().unwrap_err();
    assert!(matches!(error, SettingsError::ReadAuthorities { .. }));
    assert!(error.to_string().contains("ca.pem"), "{error}");
    fs::write(&path, "nothing of the kind").unwrap();
    let error = make().unwrap_err();
    assert!(
        matches!(error, SettingsError::NoAuthorities { .. }),
        "{error:?}"
    );
    let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    fs::write(&path, pem).unwrap();
    let error = make().unwrap_err();
    assert!(
        matches!(error, SettingsError::BadAuthority { .. }),
        "{error:?}"
    );
    let mut settings = settings();
    settings.user_agent = "a\nb".to_owned();
    assert!(matches!(
        Client::new(settings),
        Err(SettingsError::UserAgent(_))
    ));
}

/// Runs a test of this binary in a process of its own, where the system trusts nobody.
#[test]
fn a_machine_without_authorities_can_still_speak() {
    let inner = "connection::reads_from_a_registry_of_this_machine";
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", inner, "--nocapture"])
        .env("SSL_CERT_FILE", "/dev/null")
        .env("SSL_CERT_DIR", "/nonexistent")
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && out.contains("1 passed"), "{out}");
}

#[tokio::test]
async fn reads_from_a_registry_of_this_machine() {
    let registry = FakeRegistry::start();
    let image = image();
    image.put(&registry, "base", Some("1"));
    let client = client();
    place(&client, &registry, "base")
        .manifest(&by_tag("1"))
        .await
        .unwrap();
    // The other client, for hosts elsewhere, can be made as well.
    let error = failure(&client, "registry.invalid/app").await;
    assert!(error.is_resolve(), "{error:?}");
    let repository = repository(&registry, "base");
    let layer = &image.layers[0].blob;
    fetch(&client, &repository, &descriptor(layer))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_body_that_is_sent_again_does_not_go_over_a_connection_that_was_kept() {
    // It answers once on each connection, keeps it, and is gone when the next request comes.
    let server = RawServer::start(|mut stream| {
        let Some(line) = request_line(&mut stream) else {
            return;
        };
        let answer = if line.starts_with("POST") {
            "HTTP/1.1 202 Accepted\r\nLocation: /v2/app/blobs/uploads/1\r\nContent-Length: 0\r\n\r\n"
        } else if line.starts_with("PUT") {
            let _ = stream.read_exact(&mut [0; 10]);
            "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
        } else {
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        };
        let _ = stream.write_all(answer.as_bytes());
        // The next request is heard, and the connection closed.
        let _ = request_line(&mut stream);
    });
    let mut settings = settings();
    settings.retry = RetryPolicy::immediate(std::num::NonZeroU32::new(2).unwrap());
    let client = Client::new(settings).unwrap();
    let bytes = crate::support::bytes(10);
    for _ in 0..20 {
        let place = server.place(&client, "app");
        crate::support::send(&place, &bytes, &bytes).await.unwrap();
    }
}
