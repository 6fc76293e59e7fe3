//! Manifests, tags and referrers.

use axum::body::Body;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, LINK, LOCATION};
use axum::http::{Method, Response, StatusCode};
use bytes::Bytes;
use serde_json::{Value, json};
use tierce_oci::Digest;

use super::answers::{DOCKER_CONTENT_DIGEST, digest_invalid, empty, set};
use super::routes::{Core, Outcome, is_tag};
use super::state::State;
use crate::front::{self, Exchange, error};

/// The specification asks registries to take manifests of at least 4 MiB; this one takes no more.
const LARGEST_MANIFEST: usize = 4 * 1024 * 1024;

const IMAGE_MANIFESTS: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
];
const INDEXES: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.index.v1+json",
];

impl Core {
    pub(super) fn manifest(
        &self,
        exchange: &Exchange,
        name: &str,
        reference: &str,
    ) -> Response<Body> {
        let found = self.state.lock().find_manifest(name, reference);
        let Some((digest, manifest)) = found else {
            let message = format!("manifest unknown: {reference}");
            return error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", &message);
        };
        if !accepts(exchange, &manifest.media_type) {
            let message = format!("the Accept headers do not name {}", manifest.media_type);
            return error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", &message);
        }
        let length = manifest.bytes.len();
        let body = if *exchange.method() == Method::HEAD {
            Body::empty()
        } else {
            Body::from(manifest.bytes)
        };
        let mut response = Response::new(body);
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
        set(&mut response, CONTENT_TYPE, &manifest.media_type);
        set(&mut response, DOCKER_CONTENT_DIGEST, &digest.to_string());
        response
    }

    pub(super) async fn put_manifest(
        &self,
        mut exchange: Exchange,
        name: &str,
        reference: &str,
    ) -> Outcome {
        let by_digest = reference.contains(':');
        if !by_digest && !is_tag(reference) {
            return Ok(error(
                StatusCode::BAD_REQUEST,
                "TAG_INVALID",
                "the tag is not one",
            ));
        }
        let bytes = Bytes::from(exchange.read_body(LARGEST_MANIFEST).await?);
        if bytes.len() > LARGEST_MANIFEST {
            let message = "the manifest is above 4 MiB";
            return Ok(error(
                StatusCode::PAYLOAD_TOO_LARGE,
                "MANIFEST_INVALID",
                message,
            ));
        }
        let digest = Digest::of(&bytes);
        if by_digest && reference != digest.to_string() {
            return Ok(digest_invalid(&format!("the manifest is {digest}")));
        }
        let content_type = exchange
            .header("content-type")
            .unwrap_or_default()
            .to_owned();
        let mut state = self.state.lock();
        if !by_digest && let Some(refusal) = self.refuse_tag(&state, name, reference, digest) {
            return Ok(refusal);
        }
        let manifest = match verify_manifest(&state, name, &content_type, &bytes) {
            Ok(manifest) => manifest,
            Err((code, message)) => return Ok(error(StatusCode::BAD_REQUEST, code, &message)),
        };
        state.put_manifest(name, &content_type, bytes);
        if !by_digest {
            state
                .repository(name)
                .tags
                .insert(reference.to_owned(), digest);
        }
        let mut response = empty(StatusCode::CREATED);
        let location = self.registry_url(&format!("/v2/{name}/manifests/{digest}"));
        set(&mut response, LOCATION, &location);
        set(&mut response, DOCKER_CONTENT_DIGEST, &digest.to_string());
        if self.rules.referrers
            && let Some(subject) = manifest["subject"]["digest"].as_str()
        {
            set(
                &mut response,
                HeaderName::from_static("oci-subject"),
                subject,
            );
        }
        Ok(response)
    }

    /// Refuses to move a tag that must stay with its digest.
    fn refuse_tag(
        &self,
        state: &State,
        name: &str,
        tag: &str,
        digest: Digest,
    ) -> Option<Response<Body>> {
        let repository = state.repositories.get(name)?;
        let tagged = *repository.tags.get(tag)?;
        let moves = tagged != digest || self.rules.refuse_identical;
        if !moves || !repository.management.is_immutable(tag) {
            return None;
        }
        let message = format!(
            "The image tag '{tag}' already exists in the '{name}' repository and cannot be \
             overwritten because the repository is immutable."
        );
        Some(error(StatusCode::BAD_REQUEST, "TAG_INVALID", &message))
    }

    pub(super) fn delete_manifest(&self, name: &str, reference: &str) -> Response<Body> {
        let Ok(digest) = reference.parse::<Digest>() else {
            let message = "manifests are deleted by digest";
            return error(StatusCode::BAD_REQUEST, "UNSUPPORTED", message);
        };
        let mut state = self.state.lock();
        let repository = state.repository(name);
        if repository.manifests.remove(&digest).is_none() {
            let message = "manifest unknown";
            return error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", message);
        }
        repository.tags.retain(|_, tagged| *tagged != digest);
        empty(StatusCode::ACCEPTED)
    }

    pub(super) fn tags(&self, exchange: &Exchange, name: &str) -> Response<Body> {
        let asked = exchange
            .query_value("n")
            .and_then(|n| n.parse::<usize>().ok());
        if let (Some(asked), Some(largest)) = (asked, self.rules.largest_page)
            && asked > largest
        {
            let message = format!("Invalid parameter at 'n': must not be above {largest}");
            return error(StatusCode::BAD_REQUEST, "UNSUPPORTED", &message);
        }
        let last = exchange.query_value("last").unwrap_or_default();
        let state = self.state.lock();
        let Some(repository) = state.repositories.get(name) else {
            return self.name_unknown(name);
        };
        let rest: Vec<&String> = repository.tags.keys().filter(|tag| **tag > last).collect();
        let limit = asked.into_iter().chain(self.rules.page_size).min();
        let page = &rest[..limit.unwrap_or(usize::MAX).min(rest.len())];
        let mut response = front::json(StatusCode::OK, &json!({"name": name, "tags": page}));
        if let Some(last) = page.last().filter(|_| page.len() < rest.len()) {
            let n = limit.unwrap_or(page.len());
            let link = format!("</v2/{name}/tags/list?n={n}&last={last}>; rel=\"next\"");
            set(&mut response, LINK, &link);
        }
        response
    }

    pub(super) fn referrers(
        &self,
        exchange: &Exchange,
        name: &str,
        digest: &str,
    ) -> Response<Body> {
        let wanted = exchange.query_value("artifactType");
        let state = self.state.lock();
        let manifests = state
            .repositories
            .get(name)
            .map(|repository| &repository.manifests);
        let last = exchange
            .query_value("last")
            .and_then(|last| last.parse().ok());
        let mut found = Vec::new();
        let mut more = None;
        for (referrer, stored) in manifests.into_iter().flatten() {
            let manifest: Value = serde_json::from_slice(&stored.bytes).unwrap_or_default();
            if manifest["subject"]["digest"] != digest {
                continue;
            }
            let kind = match &manifest["artifactType"] {
                Value::Null => manifest["config"]["mediaType"].clone(),
                kind => kind.clone(),
            };
            if wanted.as_deref().is_some_and(|wanted| kind != wanted) {
                continue;
            }
            if last.is_some_and(|last| *referrer <= last) {
                continue;
            }
            if self.rules.referrers_page == Some(found.len()) {
                more = found.last().map(|last: &Value| last["digest"].clone());
                break;
            }
            let mut descriptor = json!({
                "mediaType": stored.media_type,
                "digest": referrer.to_string(),
                "size": stored.bytes.len(),
                "artifactType": kind,
            });
            if !manifest["annotations"].is_null() {
                descriptor["annotations"] = manifest["annotations"].clone();
            }
            found.push(descriptor);
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEXES[1], "manifests": found});
        let mut response = front::json(StatusCode::OK, &index);
        set(&mut response, CONTENT_TYPE, INDEXES[1]);
        if let Some(last) = more.as_ref().and_then(Value::as_str) {
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            query.append_pair("last", last);
            if let Some(wanted) = &wanted {
                query.append_pair("artifactType", wanted);
            }
            let query = query.finish();
            let link = format!("</v2/{name}/referrers/{digest}?{query}>; rel=\"next\"");
            set(&mut response, LINK, &link);
        }
        if wanted.is_some() {
            let name = HeaderName::from_static("oci-filters-applied");
            set(&mut response, name, "artifactType");
        }
        response
    }
}

/// Checks a manifest against its media type and against what the repository holds.
fn verify_manifest(
    state: &State,
    name: &str,
    content_type: &str,
    bytes: &[u8],
) -> Result<Value, (&'static str, String)> {
    let invalid = |message: &str| ("MANIFEST_INVALID", message.to_owned());
    let is_image = IMAGE_MANIFESTS.contains(&content_type);
    if !is_image && !INDEXES.contains(&content_type) {
        return Err(invalid(&format!(
            "Content-Type {content_type:?} is no manifest's"
        )));
    }
    let manifest: Value =
        serde_json::from_slice(bytes).map_err(|problem| invalid(&problem.to_string()))?;
    if manifest["schemaVersion"] != 2 {
        return Err(invalid("schemaVersion is not 2"));
    }
    // Only OCI leaves the media type optional.
    let optional = content_type.starts_with("application/vnd.oci.");
    match &manifest["mediaType"] {
        Value::Null if optional => {}
        media_type if media_type == content_type => {}
        media_type => {
            return Err(invalid(&format!(
                "mediaType {media_type} is not the Content-Type's"
            )));
        }
    }
    let repository = state.repositories.get(name);
    let children: Vec<&Value> = if is_image {
        let layers = manifest["layers"]
            .as_array()
            .ok_or_else(|| invalid("there are no layers"))?;
        std::iter::once(&manifest["config"]).chain(layers).collect()
    } else {
        let children = manifest["manifests"].as_array();
        children
            .ok_or_else(|| invalid("there are no manifests"))?
            .iter()
            .collect()
    };
    for child in children {
        // Layers that are fetched from elsewhere need not be in the registry.
        if child["urls"]
            .as_array()
            .is_some_and(|urls| !urls.is_empty())
        {
            continue;
        }
        let digest = child["digest"].as_str().unwrap_or_default();
        let digest: Digest = digest
            .parse()
            .map_err(|_| invalid(&format!("the descriptor {child} has no digest")))?;
        let size = if is_image {
            state.find_blob(name, &digest).map(|blob| blob.len())
        } else {
            let stored = repository.and_then(|repository| repository.manifests.get(&digest));
            stored.map(|stored| stored.bytes.len() as u64)
        };
        let Some(size) = size else {
            let message = format!("{digest} is unknown to the repository");
            return Err(("MANIFEST_BLOB_UNKNOWN", message));
        };
        if child["size"].as_u64() != Some(size) {
            let message = format!("{digest} has {size} bytes, not {}", child["size"]);
            return Err(("MANIFEST_INVALID", message));
        }
    }
    Ok(manifest)
}

/// Whether the request names the media type outright; wildcards count for nothing, as in Debian's
/// docker-registry.
fn accepts(exchange: &Exchange, media_type: &str) -> bool {
    let values = exchange.parts.headers.get_all("accept").iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    texts
        .flat_map(|text| text.split(','))
        .filter_map(|entry| entry.split(';').next())
        .any(|entry| entry.trim() == media_type)
}
