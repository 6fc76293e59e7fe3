//! What is settled about single hosts.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::future::BoxFuture;
use tierce_image::{BoxError, ImageSource as _};
use tierce_oci::{Digest, Repository};
use tierce_registry::{
    Client, ClientSettings, CredentialSource, Credentials, HostSettings, Hosts, RegistryError,
    RepositoryClient,
};
use tierce_testkit::{FakeRegistry, Fault, Method, Redirect, TokenSettings};

use crate::support::{
    Fixed, RawServer, artifact, by_tag, bytes, descriptor, fetch, image, push, send, settings, told,
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
