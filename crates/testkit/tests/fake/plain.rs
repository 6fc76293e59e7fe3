//! A plain HTTP client, which knows nothing of registries.

use reqwest::{Client, RequestBuilder, Response, redirect};
use serde_json::{Value, json};
use tierce_oci::Digest;
use tierce_testkit::FakeRegistry;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub(crate) fn client() -> Client {
    Client::builder()
        .redirect(redirect::Policy::none())
        .no_proxy()
        .build()
        .unwrap()
}

pub(crate) async fn send(request: RequestBuilder) -> Response {
    request.send().await.unwrap()
}

pub(crate) fn header(response: &Response, name: &str) -> String {
    let value = response.headers().get(name);
    let value = value.unwrap_or_else(|| panic!("no header {name}"));
    value.to_str().unwrap().to_owned()
}

pub(crate) async fn code(response: Response) -> String {
    let body: Value = response.json().await.unwrap();
    body["errors"][0]["code"].as_str().unwrap().to_owned()
}

pub(crate) fn absolute(registry: &FakeRegistry, location: &str) -> String {
    if location.starts_with('/') {
        format!("{}{location}", registry.url())
    } else {
        location.to_owned()
    }
}

pub(crate) async fn begin(client: &Client, registry: &FakeRegistry, repository: &str) -> String {
    let url = format!("{}/v2/{repository}/blobs/uploads/", registry.url());
    let response = send(client.post(url)).await;
    assert_eq!(response.status(), 202);
    absolute(registry, &header(&response, "location"))
}

pub(crate) fn with_digest(location: &str, digest: &Digest) -> String {
    let separator = if location.contains('?') { '&' } else { '?' };
    format!("{location}{separator}digest={digest}")
}

pub(crate) fn image(registry: &FakeRegistry, repository: &str) -> Value {
    let config = registry.put_blob(repository, b"{}".as_slice());
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config.to_string(),
            "size": 2
        },
        "layers": []
    })
}

/// Asks the token server as a challenge says.
pub(crate) async fn token(
    client: &Client,
    challenge: &str,
    user: Option<(&str, &str)>,
) -> Response {
    let field = |name: &str| {
        let (_, rest) = challenge.split_once(&format!("{name}=\"")).unwrap();
        rest.split_once('"').unwrap().0.to_owned()
    };
    let request = client
        .get(field("realm"))
        .query(&[("service", field("service")), ("scope", field("scope"))]);
    send(match user {
        Some((name, password)) => request.basic_auth(name, Some(password)),
        None => request,
    })
    .await
}
