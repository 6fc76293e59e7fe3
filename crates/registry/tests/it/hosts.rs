//! What is settled about single hosts.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tierce_image::{BoxError, ImageSink as _, ImageSource as _, Jobs};
use tierce_oci::{Digest, Repository};
use tierce_registry::{
    Client, ClientCertificate, ClientSettings, CredentialSource, Credentials, HostSettings, Hosts,
    RegistryError, RepositoryClient,
};
use tierce_testkit::{FakeRegistry, Fault, Gate, Method, Redirect, TlsEnd, TokenSettings};

use crate::support::{
    Fixed, RawServer, artifact, by_tag, bytes, descriptor, fetch, image, push, registry_error,
    send, settings, told,
};

const ECR: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

/// Credentials by host; remembers for whom it was asked.
#[derive(Debug, Default)]
struct Keys {
    known: Vec<(String, Fixed)>,
    asked: Mutex<Vec<String>>,
}

impl Keys {
    fn of(host: &str, username: &str, password: &str) -> Arc<Self> {
        Arc::new(Self {
            known: vec![(host.to_owned(), Fixed::password(username, password))],
            asked: Mutex::default(),
        })
    }

    fn asked(&self) -> Vec<String> {
        lock(&self.asked).clone()
    }
}

impl CredentialSource for Keys {
    fn credentials<'a>(
        &'a self,
        repository: &'a Repository,
    ) -> BoxFuture<'a, Result<Option<Credentials>, BoxError>> {
        let host = &repository.registry;
        lock(&self.asked).push(host.clone());
        match self.known.iter().find(|(known, _)| known == host) {
            Some((_, key)) => key.credentials(repository),
            None => Box::pin(async { Ok(None) }),
        }
    }
}

fn at(address: &str) -> HostSettings {
    HostSettings {
        endpoint: Some(address.parse().expect("the test names an address")),
        ..HostSettings::default()
    }
}

fn with(hosts: impl IntoIterator<Item = (String, HostSettings)>) -> ClientSettings {
    let mut settings = settings();
    for (name, host) in hosts {
        let settled = settings.hosts.insert(&name, host);
        settled.expect("the test names a registry");
    }
    settings
}

fn client(name: &str, host: HostSettings) -> Client {
    Client::new(with([(name.to_owned(), host)])).expect("these settings are fine")
}

fn repository(text: &str) -> Repository {
    text.parse().expect("the test names a repository")
}

fn place(client: &Client, name: &str) -> RepositoryClient {
    client.repository(&repository(name))
}

async fn read(client: &Client, name: &str) -> Result<Digest, RegistryError> {
    let read = place(client, name).manifest(&by_tag("1")).await;
    read.map(|document| document.digest())
}

async fn failure(client: &Client, name: &str) -> RegistryError {
    let read = read(client, name).await;
    read.expect_err("the test provides for a failure")
}

/// A server that answers each request by `answer`, and remembers the heads of all.
fn scripted(
    answer: impl Fn(&str) -> String + Send + Sync + 'static,
) -> (RawServer, Arc<Mutex<Vec<String>>>) {
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&heads);
    let server = RawServer::start(move |mut stream| {
        let Some(head) = head(&mut stream) else {
            return;
        };
        let length = header(&head, "content-length").and_then(|length| length.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        let answer = answer(&head);
        lock(&seen).push(head);
        let answer = format!("HTTP/1.1 {answer}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        let _ = stream.write_all(answer.as_bytes());
    });
    (server, heads)
}

fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.extend(byte);
    }
    String::from_utf8(head).ok()
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().expect("nothing panics while it is held")
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}

#[tokio::test]
async fn a_registry_is_spoken_to_where_it_was_said_to_be() {
    for builder in [
        FakeRegistry::builder().basic("AWS", "hunter2"),
        FakeRegistry::builder().bearer(TokenSettings::user("AWS", "hunter2")),
    ] {
        let registry = builder.start();
        let keys = Keys::of(ECR, "AWS", "hunter2");
        let mut settings = with([(ECR.to_owned(), at(&registry.url()))]);
        settings.credentials = Arc::clone(&keys) as _;
        let client = Client::new(settings).unwrap();
        assert_eq!(client.endpoint(ECR).unwrap().to_string(), registry.url());
        let orders = place(&client, &format!("{ECR}/team/orders"));
        let image = image();
        push(&artifact(&image), &orders, "1", &client)
            .await
            .unwrap();
        assert_eq!(registry.resolve("team/orders", "1"), Some(image.digest()));
        let layer = &image.layers[0].blob;
        let fetched = fetch(&client, orders.repository(), &descriptor(layer)).await;
        assert_eq!(&fetched.unwrap(), layer);
        // Who we are is asked by the name alone, once for the repository.
        assert_eq!(keys.asked(), [ECR]);
    }
}

#[tokio::test]
async fn an_upload_goes_on_where_the_registry_is_though_it_names_itself() {
    for prefix in ["", "/below"] {
        let (server, heads) = scripted(|head| {
            if header(head, "authorization").is_none() {
                let challenge = format!("Basic realm=\"https://{ECR}/\"");
                return format!("401 Unauthorized\r\nwww-authenticate: {challenge}");
            }
            match head.split(' ').next() {
                Some("POST") => {
                    let upload = format!("https://{ECR}/v2/app/blobs/uploads/7?_state=a%2Fb");
                    format!("202 Accepted\r\nlocation: {upload}")
                }
                Some("PUT") => "201 Created".to_owned(),
                _ => "404 Not Found".to_owned(),
            }
        });
        let address = format!("http://{}{prefix}", server.address);
        let mut settings = with([(ECR.to_owned(), at(&address))]);
        settings.credentials = Keys::of(ECR, "AWS", "hunter2");
        let client = Client::new(settings).unwrap();
        let bytes = bytes(1000);
        let app = place(&client, &format!("{ECR}/app"));
        send(&app, &bytes, &bytes).await.unwrap();
        let digest = descriptor(&bytes).digest.to_string().replace(':', "%3A");
        let heads = lock(&heads);
        let last = heads.last().unwrap();
        let expected =
            format!("PUT {prefix}/v2/app/blobs/uploads/7?_state=a%2Fb&digest={digest} HTTP/1.1");
        assert_eq!(last.lines().next(), Some(expected.as_str()));
        assert_eq!(
            header(last, "authorization"),
            Some("Basic QVdTOmh1bnRlcjI=")
        );
        assert_eq!(header(last, "host"), Some(&*server.address.to_string()));
    }
}

#[tokio::test]
async fn a_redirect_to_the_registrys_own_name_stays_with_it() {
    let registry = FakeRegistry::builder().basic("AWS", "hunter2").start();
    let digest = image().put(&registry, "app", Some("1"));
    let there = format!("https://{ECR}/v2/app/manifests/{digest}");
    registry.inject(
        Fault::status(307)
            .with_header("location", &there)
            .on(Method::GET, "/manifests/1")
            .nth(2),
    );
    let mut settings = with([(ECR.to_owned(), at(&registry.url()))]);
    settings.credentials = Keys::of(ECR, "AWS", "hunter2");
    let client = Client::new(settings).unwrap();
    let found = read(&client, &format!("{ECR}/app")).await.unwrap();
    assert_eq!(found, digest);
    assert!(registry.pending_faults().is_empty());
    let log = registry.log();
    let last = log.records().last().unwrap();
    assert!(
        last.path.ends_with(&digest.to_string()) && last.authorised,
        "{log}"
    );
}

#[tokio::test]
async fn storage_behind_a_registry_that_is_elsewhere_sees_no_credentials() {
    let registry = FakeRegistry::builder()
        .basic("AWS", "hunter2")
        .redirect_blobs(Redirect::OtherPort)
        .start();
    image().put(&registry, "app", Some("1"));
    let mut settings = with([(ECR.to_owned(), at(&registry.url()))]);
    settings.credentials = Keys::of(ECR, "AWS", "hunter2");
    let client = Client::new(settings).unwrap();
    let image = image();
    let layer = &image.layers[0].blob;
    let app = repository(&format!("{ECR}/app"));
    let fetched = fetch(&client, &app, &descriptor(layer)).await.unwrap();
    assert_eq!(&fetched, layer);
    let log = registry.log();
    assert_eq!(log.leaks("QVdTOmh1bnRlcjI="), Vec::<String>::new());
}

#[tokio::test]
async fn a_token_server_of_the_registrys_own_name_is_there_too() {
    let (server, heads) = scripted(|head| {
        let path = head.split(' ').nth(1).unwrap_or_default();
        if path.starts_with("/token/") {
            // A body would need a length; what counts is that it was asked.
            return "403 Forbidden".to_owned();
        }
        let realm = "Bearer realm=\"https://public.ecr.aws/token/\",service=\"public.ecr.aws\"";
        format!("401 Unauthorized\r\nwww-authenticate: {realm},scope=\"aws\"")
    });
    let address = format!("http://{}", server.address);
    let client = client("public.ecr.aws", at(&address));
    let error = failure(&client, "public.ecr.aws/lambda/python").await;
    assert!(error.is_denied(), "{error:?}");
    let heads = lock(&heads);
    let asked = heads.last().unwrap().lines().next();
    assert_eq!(
        asked,
        Some("GET /token/?service=public.ecr.aws&scope=aws HTTP/1.1")
    );
}

#[tokio::test]
async fn errors_name_the_registry_and_connections_the_address() {
    let registry = FakeRegistry::start();
    let address = registry.host();
    let client = client(ECR, at(&registry.url()));
    let error = failure(&client, &format!("{ECR}/app")).await;
    assert!(error.is_not_found());
    let begin = format!("registry {ECR} answered 404 ");
    assert!(error.to_string().starts_with(&begin), "{error}");
    drop(registry);
    let error = failure(&client, &format!("{ECR}/app")).await;
    assert!(error.to_string().contains(&address), "{error}");
}

#[tokio::test]
async fn a_bad_address_is_told_when_it_is_needed() {
    let client = client(ECR, at("http://a.example"));
    let error = failure(&client, &format!("{ECR}/app")).await;
    assert_eq!(
        told(&error),
        format!(
            "the settings for {ECR} cannot be used\n\
             an address that was given for it cannot be used\n\
             `a.example` is another machine, and without TLS only `insecure` ones are spoken to"
        )
    );
    // Other registries are none of its business.
    let registry = FakeRegistry::start();
    image().put(&registry, "app", Some("1"));
    let name = format!("{}/app", registry.host());
    read(&client, &name).await.unwrap();
}

#[test]
fn only_names_of_registries_can_be_settled_about() {
    let error = Hosts::default().insert("my-host", HostSettings::default());
    assert!(error.unwrap_err().to_string().contains("`my-host`"));
}

/// What is settled about a host of TLS: whom it trusts.
fn trusting(registry: &FakeRegistry) -> HostSettings {
    HostSettings {
        ca_files: registry.ca_certificate().into_iter().collect(),
        ..HostSettings::default()
    }
}

fn insecure() -> HostSettings {
    HostSettings {
        insecure: true,
        ..HostSettings::default()
    }
}

#[tokio::test]
async fn trust_is_for_one_host() {
    let registry = FakeRegistry::builder().https().start();
    image().put(&registry, "app", Some("1"));
    let app = |host: String| format!("{host}/app");
    for settings in [trusting(&registry), insecure()] {
        let client = client(&registry.host(), settings);
        read(&client, &app(registry.host())).await.unwrap();
        // The same server by another name is another host.
        let error = failure(&client, &app(registry.localhost())).await;
        assert!(error.is_tls(), "{error:?}");
    }
    let client = client(&registry.host(), HostSettings::default());
    let error = failure(&client, &app(registry.host())).await;
    assert!(error.is_tls(), "{error:?}");
}

#[tokio::test]
async fn trust_does_not_follow_a_redirect() {
    let registry = FakeRegistry::builder()
        .https()
        .redirect_blobs(Redirect::OtherPort)
        .start();
    let image = image();
    image.put(&registry, "app", Some("1"));
    let layer = &image.layers[0].blob;
    let app = repository(&format!("{}/app", registry.host()));
    for settings in [trusting(&registry), insecure()] {
        let alone = client(&registry.host(), settings.clone());
        let error = fetch(&alone, &app, &descriptor(layer)).await.unwrap_err();
        let told = told(error.as_ref());
        let storage = format!("could not set up TLS with {}", registry.storage_host());
        assert!(told.contains(&storage), "{told}");
        // Storage can be settled about by its own name.
        let both = [registry.host(), registry.storage_host()];
        let both = with(both.map(|host| (host, settings.clone())));
        let both = Client::new(both).unwrap();
        let fetched = fetch(&both, &app, &descriptor(layer)).await;
        assert_eq!(&fetched.unwrap(), layer);
    }
}

#[tokio::test]
async fn an_insecure_registry_may_speak_plain_http() {
    let registry = FakeRegistry::start();
    image().put(&registry, "app", Some("1"));
    let client = client(&registry.host(), insecure());
    let app = format!("{}/app", registry.host());
    read(&client, &app).await.unwrap();
    let endpoint = client.endpoint(&registry.host()).unwrap();
    assert_eq!(endpoint.to_string(), registry.url());
}

#[tokio::test]
async fn a_given_scheme_is_not_guessed_about() {
    let registry = FakeRegistry::start();
    image().put(&registry, "app", Some("1"));
    let mut settings = at(&format!("https://{}", registry.host()));
    settings.insecure = true;
    let error = failure(&client(ECR, settings), &format!("{ECR}/app")).await;
    assert!(error.is_tls(), "{error:?}");
}

#[tokio::test]
async fn a_registry_may_ask_for_a_certificate() {
    let registry = FakeRegistry::start();
    image().put(&registry, "app", Some("1"));
    let end = TlsEnd::before(&registry.host());
    let app = format!("{}/app", end.host());
    let mut settings = HostSettings {
        ca_files: vec![end.ca_certificate()],
        ..HostSettings::default()
    };
    let error = failure(&client(&end.host(), settings.clone()), &app).await;
    assert!(error.step().is_some(), "{error:?}");
    assert!(registry.log().is_empty());
    let (certificate, key) = end.client_certificate();
    settings.client_certificate = Some(ClientCertificate { certificate, key });
    read(&client(&end.host(), settings.clone()), &app)
        .await
        .unwrap();
    assert_eq!(registry.log().len(), 1);
    // The address that stands for a registry is the registry.
    settings.endpoint = Some(format!("https://{}", end.host()).parse().unwrap());
    read(&client(ECR, settings), &format!("{ECR}/app"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_client_certificate_that_is_none_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let registry = FakeRegistry::builder().https().start();
    let host = registry.host();
    let pair = |certificate: &PathBuf, key: &PathBuf| HostSettings {
        client_certificate: Some(ClientCertificate {
            certificate: certificate.clone(),
            key: key.clone(),
        }),
        ..trusting(&registry)
    };
    let end = TlsEnd::before(&host);
    let (certificate, _) = end.client_certificate();
    let missing = directory.path().join("missing.key");
    let without = client(&host, pair(&certificate, &missing));
    let error = failure(&without, &format!("{host}/a")).await;
    let expected = format!(
        "the settings for {host} cannot be used\ncould not read {}",
        missing.display()
    );
    assert!(told(&error).starts_with(&expected), "{}", told(&error));
    // No key at all, and that of another certificate.
    let strange = directory.path().join("strange.key");
    fs::write(&strange, "nothing of the kind").unwrap();
    let others = TlsEnd::before(&host);
    let (_, foreign) = others.client_certificate();
    for wrong in [strange, foreign] {
        let client = client(&host, pair(&certificate, &wrong));
        let error = failure(&client, &format!("{host}/a")).await;
        let expected = format!(
            "{} and {} cannot be used as a client certificate",
            certificate.display(),
            wrong.display()
        );
        assert!(told(&error).contains(&expected), "{}", told(&error));
    }
}

#[tokio::test]
async fn certificates_are_found_in_the_directory_of_the_host() {
    let registry = FakeRegistry::start();
    image().put(&registry, "app", Some("1"));
    let end = TlsEnd::before(&registry.host());
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join(end.host());
    fs::create_dir(&directory).unwrap();
    let (certificate, key) = end.client_certificate();
    let mut settings = settings();
    settings.hosts.certificate_directories =
        vec![root.path().join("missing"), root.path().to_owned()];
    let app = format!("{}/app", end.host());
    for (file, name) in [
        (end.ca_certificate(), "corporate.crt"),
        (certificate, "me.cert"),
    ] {
        fs::copy(file, directory.join(name)).unwrap();
    }
    // Half a pair is told by the file that has no partner.
    let error = failure(&Client::new(settings.clone()).unwrap(), &app).await;
    let lonely = format!(
        "{} is there without me.key",
        directory.join("me.cert").display()
    );
    assert!(told(&error).contains(&lonely), "{}", told(&error));
    fs::copy(key, directory.join("me.key")).unwrap();
    let found = Client::new(settings.clone()).unwrap();
    read(&found, &app).await.unwrap();
    // The directory is for the name alone.
    let other = format!("localhost:{}/app", end.host().rsplit(':').next().unwrap());
    assert!(failure(&found, &other).await.step().is_some());
    // What cannot be looked into is told, too.
    let strange = root.path().join("a.example");
    std::os::unix::fs::symlink(&strange, &strange).unwrap();
    let error = failure(&found, "a.example/app").await;
    let unread = format!("could not read {}", strange.display());
    assert!(told(&error).contains(&unread), "{}", told(&error));
}

#[tokio::test]
async fn patience_is_settled_by_host() {
    let registry = FakeRegistry::start();
    image().put(&registry, "app", Some("1"));
    let gate = Gate::new();
    let host = registry.host();
    registry.inject(Fault::hold(&gate).on(Method::GET, "/manifests/").always());
    let short = Some(Duration::from_millis(20));
    let impatient = client(
        &host,
        HostSettings {
            header_timeout: short,
            ..HostSettings::default()
        },
    );
    let error = failure(&impatient, &format!("{host}/app")).await;
    assert!(error.is_timeout(), "{error:?}");
    registry.inject(Fault::hold(&gate).on(Method::PUT, "/uploads/").always());
    let impatient = client(
        &host,
        HostSettings {
            upload_answer_timeout: short,
            ..HostSettings::default()
        },
    );
    let bytes = bytes(1000);
    let sent = send(&place(&impatient, &format!("{host}/app")), &bytes, &bytes).await;
    assert!(sent.unwrap_err().is_timeout());
    gate.open();

    let server = RawServer::start(|mut stream| {
        if head(&mut stream).is_some() {
            let begin = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345";
            let _ = stream.write_all(begin);
            // Until the client has had enough.
            let _ = stream.read(&mut [0]);
        }
    });
    let host = server.address.to_string();
    let impatient = client(
        &host,
        HostSettings {
            read_timeout: short,
            header_timeout: Some(Duration::from_mins(1)),
            ..HostSettings::default()
        },
    );
    let blob = descriptor(b"1234567890");
    let read = fetch(&impatient, &repository(&format!("{host}/app")), &blob).await;
    assert!(registry_error(read.unwrap_err().as_ref()).is_timeout());
}

#[tokio::test]
async fn so_many_blobs_are_on_their_way_at_once() {
    let registry = FakeRegistry::start();
    let blobs: Vec<_> = (1..=6).map(|number| bytes(number * 1000)).collect();
    for blob in &blobs {
        registry.put_blob("app", blob.clone());
    }
    let gate = Gate::new();
    registry.inject(Fault::hold(&gate).on(Method::GET, "/blobs/").always());
    let two = HostSettings {
        concurrency: NonZeroUsize::new(2),
        ..HostSettings::default()
    };
    let client = client(&registry.host(), two);
    let app = repository(&format!("{}/app", registry.host()));
    let mut fetches: Vec<_> = Vec::new();
    for blob in &blobs {
        let (client, app, blob) = (client.clone(), app.clone(), descriptor(blob));
        fetches.push(tokio::spawn(
            async move { fetch(&client, &app, &blob).await },
        ));
    }
    let opened = gate.clone();
    let wait = tokio::task::spawn_blocking(move || opened.wait_for(2));
    wait.await.unwrap();
    gate.open();
    for (fetched, blob) in fetches.into_iter().zip(&blobs) {
        assert_eq!(&fetched.await.unwrap().unwrap(), blob);
    }
    assert_eq!(registry.log().peak(), 2, "{}", registry.log());
    let place = client.repository(&app);
    let jobs = |wanted| place.jobs(Jobs(NonZeroUsize::new(wanted).unwrap())).0.get();
    assert_eq!((jobs(8), jobs(1)), (2, 1));
}
