//! The distribution API: which request does what.

use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName, LINK, LOCATION, RANGE,
    WWW_AUTHENTICATE,
};
use axum::http::{HeaderValue, Method, Response, StatusCode};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tierce_oci::Digest;
use tokio::sync::Mutex;

use super::state::{Blob, Shared, State, Upload};
use super::{Auth, Redirect, Rules};
use crate::fault::LocationStyle;
use crate::front::{self, Exchange, error};
use crate::log::Endpoint;
use crate::server::Dropped;
use crate::token::{Issuer, Verdict, decode_basic};

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// The specification asks registries to take manifests of at least 4 MiB; this one takes no more.
const LARGEST_MANIFEST: usize = 4 * 1024 * 1024;

/// What proves an address of the second host to be one that the registry gave out.
const SIGNATURE: &str = "c2lnbmVk";

const IMAGE_MANIFESTS: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
];
const INDEXES: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.index.v1+json",
];

/// What all handlers of one registry share.
pub(super) struct Core {
    pub(super) rules: Rules,
    pub(super) state: Shared,
    pub(super) issuer: Option<Arc<Issuer>>,
    pub(super) realm: String,
    pub(super) scheme: &'static str,
    pub(super) registry_port: u16,
    pub(super) storage_port: u16,
}

/// A path under `/v2/`, cut from the right because a repository's name has any number of segments.
#[derive(Debug, PartialEq, Eq)]
enum Route<'a> {
    Base,
    Catalog,
    Blob(&'a str, &'a str),
    StartUpload(&'a str),
    Upload(&'a str, &'a str),
    Manifest(&'a str, &'a str),
    Tags(&'a str),
    Referrers(&'a str, &'a str),
}

impl<'a> Route<'a> {
    fn of(path: &'a str) -> Option<Self> {
        let rest = path.strip_prefix("/v2")?;
        if rest.is_empty() || rest == "/" {
            return Some(Self::Base);
        }
        let rest = rest.strip_prefix('/')?;
        if rest == "_catalog" {
            return Some(Self::Catalog);
        }
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Some(Self::Tags(name));
        }
        if let Some(name) = rest.strip_suffix("/blobs/uploads/") {
            return Some(Self::StartUpload(name));
        }
        let (rest, last) = rest.rsplit_once('/')?;
        if let Some(name) = rest.strip_suffix("/blobs/uploads") {
            return Some(Self::Upload(name, last));
        }
        let (name, kind) = rest.rsplit_once('/')?;
        match kind {
            "blobs" => Some(Self::Blob(name, last)),
            "manifests" => Some(Self::Manifest(name, last)),
            "referrers" => Some(Self::Referrers(name, last)),
            _ => None,
        }
    }

    fn repository(&self) -> Option<&'a str> {
        match self {
            Self::Base | Self::Catalog => None,
            Self::Blob(name, _)
            | Self::StartUpload(name)
            | Self::Upload(name, _)
            | Self::Manifest(name, _)
            | Self::Tags(name)
            | Self::Referrers(name, _) => Some(name),
        }
    }
}

type Outcome = Result<Response<Body>, Dropped>;

impl Core {
    /// Answers a request to the registry or to the second host.
    pub(super) async fn answer(&self, endpoint: Endpoint, exchange: Exchange) -> Outcome {
        let path = exchange.path().to_owned();
        if let Some(name) = path.strip_prefix("/storage/") {
            return Ok(self.storage(&exchange, name));
        }
        let Some(route) = Route::of(&path) else {
            return Ok(plain(StatusCode::NOT_FOUND, "404 page not found\n"));
        };
        if endpoint == Endpoint::Storage {
            if exchange.header("authorization").is_some() {
                return Ok(refuse_authorization());
            }
            return match route {
                Route::Upload(name, id) => self.upload(exchange, name, id).await,
                _ => Ok(plain(StatusCode::NOT_FOUND, "404 page not found\n")),
            };
        }
        let method = exchange.method().clone();
        let reads = method == Method::GET || method == Method::HEAD;
        if let Some(name) = route.repository() {
            exchange.note_repository(name);
            if !is_repository_name(name) {
                let message = "invalid repository name";
                return Ok(error(StatusCode::BAD_REQUEST, "NAME_INVALID", message));
            }
        }
        if let Err(refusal) = self.authorise(&exchange, &route, reads) {
            return Ok(*refusal);
        }
        exchange.note_authorised();
        if !reads && self.rules.read_only {
            let message = "the registry is read-only";
            return Ok(error(
                StatusCode::METHOD_NOT_ALLOWED,
                "UNSUPPORTED",
                message,
            ));
        }
        if let Some(name) = route.repository()
            && !self.state.lock().repositories.contains_key(name)
            && (reads || !self.rules.create_on_push)
        {
            return Ok(name_unknown(name));
        }
        match (method, route) {
            (Method::GET | Method::HEAD, Route::Base) => Ok(base()),
            (Method::GET, Route::Catalog) => Ok(self.catalog()),
            (Method::GET | Method::HEAD, Route::Blob(name, digest)) => {
                Ok(self.blob(&exchange, name, digest))
            }
            (Method::DELETE, Route::Blob(name, digest)) => Ok(self.delete_blob(name, digest)),
            (Method::POST, Route::StartUpload(name)) => self.start_upload(exchange, name).await,
            (_, Route::Upload(name, id)) => self.upload(exchange, name, id).await,
            (Method::GET | Method::HEAD, Route::Manifest(name, reference)) => {
                Ok(self.manifest(&exchange, name, reference))
            }
            (Method::PUT, Route::Manifest(name, reference)) => {
                self.put_manifest(exchange, name, reference).await
            }
            (Method::DELETE, Route::Manifest(name, reference)) => {
                Ok(self.delete_manifest(name, reference))
            }
            (Method::GET, Route::Tags(name)) => Ok(self.tags(&exchange, name)),
            (Method::GET, Route::Referrers(name, digest)) if self.rules.referrers => {
                Ok(self.referrers(&exchange, name, digest))
            }
            (Method::GET, Route::Referrers(..)) => {
                Ok(plain(StatusCode::NOT_FOUND, "404 page not found\n"))
            }
            _ => {
                let message = "the operation is unsupported";
                Ok(error(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "UNSUPPORTED",
                    message,
                ))
            }
        }
    }

    fn authorise(
        &self,
        exchange: &Exchange,
        route: &Route<'_>,
        reads: bool,
    ) -> Result<(), Box<Response<Body>>> {
        let authorization = exchange.header("authorization");
        let challenge = match &self.rules.auth {
            Auth::None => return Ok(()),
            Auth::Basic { user, password } => {
                let given = authorization.and_then(decode_basic);
                if given.is_some_and(|(name, secret)| name == *user && secret == password.0) {
                    return Ok(());
                }
                "Basic realm=\"testkit registry\"".to_owned()
            }
            Auth::Bearer(_) => {
                let Some(issuer) = &self.issuer else {
                    return Ok(());
                };
                let needs = needs(exchange, route, reads);
                let token = authorization.and_then(|value| value.strip_prefix("Bearer "));
                match issuer.judge(token, &needs) {
                    Verdict::Allowed => return Ok(()),
                    verdict => issuer.challenge(&self.realm, &needs, &verdict),
                }
            }
        };
        let message = "authentication required";
        let mut response = error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message);
        set(&mut response, WWW_AUTHENTICATE, &challenge);
        Err(Box::new(response))
    }

    fn catalog(&self) -> Response<Body> {
        let names: Vec<String> = self.state.lock().repositories.keys().cloned().collect();
        front::json(StatusCode::OK, &json!({ "repositories": names }))
    }

    fn storage(&self, exchange: &Exchange, name: &str) -> Response<Body> {
        if exchange.header("authorization").is_some() {
            return refuse_authorization();
        }
        if exchange.query_value("X-Signature").as_deref() != Some(SIGNATURE) {
            return plain(
                StatusCode::FORBIDDEN,
                "<Error><Code>AccessDenied</Code></Error>",
            );
        }
        exchange.note_authorised();
        let digest = name.parse::<Digest>().ok();
        let blob = digest.and_then(|digest| self.state.lock().any_blob(&digest));
        match blob {
            Some(blob) => self.send_blob(exchange, &blob, None),
            None => plain(
                StatusCode::NOT_FOUND,
                "<Error><Code>NoSuchKey</Code></Error>",
            ),
        }
    }

    fn blob(&self, exchange: &Exchange, name: &str, digest: &str) -> Response<Body> {
        let Ok(digest) = digest.parse::<Digest>() else {
            return digest_invalid("the digest in the path is not one");
        };
        let Some(blob) = self.state.lock().find_blob(name, &digest) else {
            let message = "blob unknown to registry";
            return error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", message);
        };
        let redirect = self.rules.redirect;
        if let Some(redirect) = redirect.filter(|_| *exchange.method() == Method::GET) {
            let host = match redirect {
                Redirect::OtherPort => format!("127.0.0.1:{}", self.storage_port),
                Redirect::OtherName => format!("localhost:{}", self.storage_port),
                Redirect::OtherNameSamePort => format!("localhost:{}", self.registry_port),
            };
            let (scheme, expires) = (self.scheme, "X-Expires=3600");
            let location =
                format!("{scheme}://{host}/storage/{digest}?X-Signature={SIGNATURE}&{expires}");
            let mut response = empty(StatusCode::TEMPORARY_REDIRECT);
            set(&mut response, LOCATION, &location);
            return response;
        }
        self.send_blob(exchange, &blob, Some(digest))
    }

    fn send_blob(
        &self,
        exchange: &Exchange,
        blob: &Blob,
        digest: Option<Digest>,
    ) -> Response<Body> {
        let total = blob.len();
        let range = exchange
            .header("range")
            .filter(|_| !self.rules.ignore_ranges);
        let (start, end, status) = match range.map(|range| parse_range(range, total)) {
            None | Some(Requested::Everything) => (0, total, StatusCode::OK),
            Some(Requested::Part(start, end)) => (start, end, StatusCode::PARTIAL_CONTENT),
            Some(Requested::Unsatisfiable) => {
                let mut response = empty(StatusCode::RANGE_NOT_SATISFIABLE);
                set(&mut response, CONTENT_RANGE, &format!("bytes */{total}"));
                return response;
            }
        };
        let body = if *exchange.method() == Method::HEAD {
            Body::empty()
        } else {
            stream_blob(blob.clone(), start, end)
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_LENGTH, (end - start).into());
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        if status == StatusCode::PARTIAL_CONTENT {
            let range = format!("bytes {start}-{}/{total}", end - 1);
            set(&mut response, CONTENT_RANGE, &range);
        }
        if let Some(digest) = digest {
            set(&mut response, DOCKER_CONTENT_DIGEST, &digest.to_string());
        }
        response
    }

    fn delete_blob(&self, name: &str, digest: &str) -> Response<Body> {
        let Ok(digest) = digest.parse::<Digest>() else {
            return digest_invalid("the digest in the path is not one");
        };
        if self.state.lock().repository(name).blobs.remove(&digest) {
            empty(StatusCode::ACCEPTED)
        } else {
            error(
                StatusCode::NOT_FOUND,
                "BLOB_UNKNOWN",
                "blob unknown to registry",
            )
        }
    }

    async fn start_upload(&self, mut exchange: Exchange, name: &str) -> Outcome {
        let mount = exchange.query_value("mount");
        let from = exchange.query_value("from");
        if let (Some(mount), Some(from)) = (&mount, &from)
            && self.rules.mount
            && !exchange.refuse_mount
        {
            let Ok(digest) = mount.parse::<Digest>() else {
                return Ok(digest_invalid("the digest to mount is not one"));
            };
            let mut state = self.state.lock();
            if let Some(blob) = state.find_blob(from, &digest) {
                state.store_blob(name, digest, blob);
                return Ok(self.created_blob(name, digest));
            }
        }
        let single = exchange
            .query_value("digest")
            .filter(|_| self.rules.single_post);
        if let Some(digest) = single {
            let mut upload = Upload::new(name);
            receive(&mut exchange, &mut upload).await?;
            return Ok(self.finish_upload(name, &mut upload, &digest));
        }
        let id = {
            let mut state = self.state.lock();
            state.repository(name);
            state.begin_upload(name)
        };
        let upload = self.find_upload(name, &id).await;
        let upload = upload.expect("the upload was begun just now");
        let mut upload = upload.lock().await;
        let style = exchange.location.unwrap_or(self.rules.location);
        let mut response = empty(StatusCode::ACCEPTED);
        self.describe_upload(&mut response, &mut upload, &id, style);
        if let Some(minimum) = self.rules.minimum_chunk {
            let name = HeaderName::from_static("oci-chunk-min-length");
            response.headers_mut().insert(name, minimum.into());
        }
        Ok(response)
    }

    async fn find_upload(&self, name: &str, id: &str) -> Option<Arc<Mutex<Upload>>> {
        let upload = self.state.lock().uploads.get(id).cloned()?;
        let here = upload.lock().await.repository == name;
        here.then_some(upload)
    }

    async fn upload(&self, mut exchange: Exchange, name: &str, id: &str) -> Outcome {
        exchange.note_repository(name);
        exchange.note_authorised();
        let Some(upload) = self.find_upload(name, id).await else {
            return Ok(upload_unknown());
        };
        let mut upload = upload.lock().await;
        let query = exchange.query();
        let kept = front::pairs(upload.expected_query.as_bytes())
            .into_iter()
            .all(|pair| query.contains(&pair));
        let method = exchange.method().clone();
        // Asking for the state is how a client that lost an answer finds the new address.
        if !kept && method != Method::GET && method != Method::DELETE {
            let message = "the query of the upload's address is stale or was not kept";
            return Ok(error(StatusCode::NOT_FOUND, "BLOB_UPLOAD_INVALID", message));
        }
        let style = exchange.location.unwrap_or(self.rules.location);
        match method {
            Method::GET => {
                let mut response = empty(StatusCode::NO_CONTENT);
                self.describe_upload(&mut response, &mut upload, id, style);
                Ok(response)
            }
            Method::DELETE => {
                self.state.lock().uploads.remove(id);
                Ok(empty(StatusCode::NO_CONTENT))
            }
            Method::PATCH => {
                if let Some(refusal) = self.refuse_chunk(&exchange, &upload) {
                    return Ok(refusal);
                }
                let before = upload.size;
                receive(&mut exchange, &mut upload).await?;
                let minimum = self.rules.minimum_chunk.unwrap_or(0);
                upload.short_chunk = upload.size - before < minimum;
                let status = StatusCode::from_u16(self.rules.patch_status);
                let mut response = empty(status.unwrap_or(StatusCode::ACCEPTED));
                self.describe_upload(&mut response, &mut upload, id, style);
                Ok(response)
            }
            Method::PUT => {
                let Some(digest) = exchange.query_value("digest") else {
                    return Ok(digest_invalid("the query names no digest"));
                };
                let has_body = exchange.header("content-length") != Some("0");
                if has_body && let Some(refusal) = self.refuse_chunk(&exchange, &upload) {
                    return Ok(refusal);
                }
                receive(&mut exchange, &mut upload).await?;
                self.state.lock().uploads.remove(id);
                Ok(self.finish_upload(name, &mut upload, &digest))
            }
            _ => {
                let message = "the operation is unsupported";
                Ok(error(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "UNSUPPORTED",
                    message,
                ))
            }
        }
    }

    /// Refuses bytes that do not follow those that are there.
    fn refuse_chunk(&self, exchange: &Exchange, upload: &Upload) -> Option<Response<Body>> {
        if self.rules.require_length && exchange.header("content-length").is_none() {
            return Some(plain(StatusCode::LENGTH_REQUIRED, "length required\n"));
        }
        if upload.short_chunk {
            let message = "a chunk before the last is below the minimum length";
            return Some(error(StatusCode::BAD_REQUEST, "SIZE_INVALID", message));
        }
        let range = exchange.header("content-range")?;
        let start = range.split_once('-').and_then(|(start, end)| {
            let (start, end) = (start.parse::<u64>().ok()?, end.parse::<u64>().ok()?);
            let length = exchange.header("content-length")?.parse::<u64>().ok()?;
            (end.checked_add(1)? == start + length).then_some(start)
        });
        if start == Some(upload.size) {
            return None;
        }
        let message = format!("the next byte is {}, not that of {range}", upload.size);
        let status = StatusCode::RANGE_NOT_SATISFIABLE;
        let mut response = error(status, "BLOB_UPLOAD_INVALID", &message);
        set(&mut response, RANGE, &received_range(upload.size));
        Some(response)
    }

    fn finish_upload(&self, name: &str, upload: &mut Upload, digest: &str) -> Response<Body> {
        let actual = upload.digest();
        if digest.parse::<Digest>().ok() != Some(actual) {
            return digest_invalid(&format!("the uploaded bytes are {actual}, not {digest}"));
        }
        let blob = upload.take_blob();
        self.state.lock().store_blob(name, actual, blob);
        self.created_blob(name, actual)
    }

    fn created_blob(&self, name: &str, digest: Digest) -> Response<Body> {
        let mut response = empty(StatusCode::CREATED);
        let location = self.registry_url(&format!("/v2/{name}/blobs/{digest}"));
        set(&mut response, LOCATION, &location);
        set(&mut response, DOCKER_CONTENT_DIGEST, &digest.to_string());
        response
    }

    fn registry_url(&self, path: &str) -> String {
        format!("{}://127.0.0.1:{}{path}", self.scheme, self.registry_port)
    }

    /// Sets the headers that tell where an upload goes on, and at which byte.
    fn describe_upload(
        &self,
        response: &mut Response<Body>,
        upload: &mut Upload,
        id: &str,
        style: LocationStyle,
    ) {
        upload.turn += 1;
        let path = format!("/v2/{}/blobs/uploads/{id}", upload.repository);
        let state = format!("_state={id}.{}", upload.turn);
        upload.expected_query = match style {
            LocationStyle::AbsoluteWithQuery | LocationStyle::OtherHost => state,
            LocationStyle::RelativeWithQuery => format!("{state}&part=1%2F1"),
            LocationStyle::Absolute | LocationStyle::Relative => String::new(),
        };
        let query = match upload.expected_query.as_str() {
            "" => String::new(),
            query => format!("?{query}"),
        };
        let location = match style {
            LocationStyle::AbsoluteWithQuery | LocationStyle::Absolute => {
                self.registry_url(&format!("{path}{query}"))
            }
            LocationStyle::Relative | LocationStyle::RelativeWithQuery => format!("{path}{query}"),
            LocationStyle::OtherHost => {
                format!(
                    "{}://localhost:{}{path}{query}",
                    self.scheme, self.storage_port
                )
            }
        };
        set(response, LOCATION, &location);
        set(response, RANGE, &received_range(upload.size));
        set(response, UPLOAD_UUID, id);
    }

    fn manifest(&self, exchange: &Exchange, name: &str, reference: &str) -> Response<Body> {
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

    async fn put_manifest(&self, mut exchange: Exchange, name: &str, reference: &str) -> Outcome {
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

    fn delete_manifest(&self, name: &str, reference: &str) -> Response<Body> {
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

    fn tags(&self, exchange: &Exchange, name: &str) -> Response<Body> {
        let asked = exchange
            .query_value("n")
            .and_then(|n| n.parse::<usize>().ok());
        let last = exchange.query_value("last").unwrap_or_default();
        let state = self.state.lock();
        let Some(repository) = state.repositories.get(name) else {
            return name_unknown(name);
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

    fn referrers(&self, exchange: &Exchange, name: &str, digest: &str) -> Response<Body> {
        let wanted = exchange.query_value("artifactType");
        let state = self.state.lock();
        let manifests = state
            .repositories
            .get(name)
            .map(|repository| &repository.manifests);
        let mut found = Vec::new();
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
        if wanted.is_some() {
            let name = HeaderName::from_static("oci-filters-applied");
            set(&mut response, name, "artifactType");
        }
        response
    }
}

/// What a request needs to be allowed, as pairs of repository and action.
fn needs(exchange: &Exchange, route: &Route<'_>, reads: bool) -> Vec<(String, String)> {
    let Some(name) = route.repository() else {
        return Vec::new();
    };
    let mut needs = vec![(name.to_owned(), "pull".to_owned())];
    if !reads {
        needs.push((name.to_owned(), "push".to_owned()));
    }
    if let Route::StartUpload(_) = route
        && let Some(from) = exchange.query_value("from")
    {
        needs.push((from, "pull".to_owned()));
    }
    needs
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

/// Reads a request's body into an upload; what came before a break stays.
async fn receive(exchange: &mut Exchange, upload: &mut Upload) -> Result<(), Dropped> {
    while let Some(chunk) = exchange.body.next().await {
        let chunk = chunk.map_err(|_| Dropped)?;
        upload.write(&chunk).map_err(|_| Dropped)?;
    }
    Ok(())
}

fn stream_blob(blob: Blob, start: u64, end: u64) -> Body {
    const PIECE: u64 = 64 * 1024;
    if let Blob::Memory(_) = blob
        && let Ok(bytes) = blob.read(start, end - start)
    {
        return Body::from(bytes);
    }
    Body::from_stream(stream::unfold(start, move |offset| {
        let piece = (offset < end).then(|| {
            let length = PIECE.min(end - offset);
            (blob.read(offset, length), offset + length)
        });
        std::future::ready(piece)
    }))
}

enum Requested {
    Everything,
    Part(u64, u64),
    Unsatisfiable,
}

/// A single range of bytes, as a half-open interval.
fn parse_range(header: &str, total: u64) -> Requested {
    let Some((start, end)) = header
        .strip_prefix("bytes=")
        .and_then(|r| r.split_once('-'))
    else {
        return Requested::Everything;
    };
    let interval = match (start.parse::<u64>(), end.parse::<u64>()) {
        (Ok(start), Ok(end)) if start <= end => (start, total.min(end.saturating_add(1))),
        (Ok(start), Err(_)) if end.is_empty() => (start, total),
        (Err(_), Ok(last)) if start.is_empty() => (total.saturating_sub(last), total),
        _ => return Requested::Everything,
    };
    if interval.0 < interval.1 {
        Requested::Part(interval.0, interval.1)
    } else {
        Requested::Unsatisfiable
    }
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

/// The bytes an upload has, as the `Range` header tells them; an empty one says `0-0`.
fn received_range(size: u64) -> String {
    format!("0-{}", size.saturating_sub(1))
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= 128
        && text.bytes().next().is_some_and(word)
        && text
            .bytes()
            .all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

fn is_repository_name(name: &str) -> bool {
    let lower = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.split('/').all(|part| {
        let mut separators = part.split(|c: char| c.is_ascii() && lower(c as u8));
        let plain = |separator: &str| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        };
        part.bytes().next().is_some_and(lower)
            && part.bytes().last().is_some_and(lower)
            && separators.all(plain)
    })
}

fn set(response: &mut Response<Body>, name: HeaderName, value: &str) {
    let value = HeaderValue::from_str(value).expect("the fake's headers are visible text");
    response.headers_mut().insert(name, value);
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    set(&mut response, CONTENT_TYPE, "text/plain; charset=utf-8");
    response
}

fn base() -> Response<Body> {
    let mut response = front::json(StatusCode::OK, &json!({}));
    let name = HeaderName::from_static("docker-distribution-api-version");
    set(&mut response, name, "registry/2.0");
    response
}

fn name_unknown(name: &str) -> Response<Body> {
    let message = format!("repository {name} does not exist");
    error(StatusCode::NOT_FOUND, "NAME_UNKNOWN", &message)
}

fn upload_unknown() -> Response<Body> {
    let message = "blob upload unknown to registry";
    error(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", message)
}

fn digest_invalid(message: &str) -> Response<Body> {
    error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message)
}

fn refuse_authorization() -> Response<Body> {
    let text = "<Error><Code>InvalidArgument</Code>\
                <Message>Only one auth mechanism allowed</Message></Error>";
    plain(StatusCode::BAD_REQUEST, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cut_from_the_right() {
        let routes = [
            ("/v2/", Some(Route::Base)),
            ("/v2", Some(Route::Base)),
            ("/v2/a/blobs/uploads/", Some(Route::StartUpload("a"))),
            (
                "/v2/a/b/c/blobs/uploads/7",
                Some(Route::Upload("a/b/c", "7")),
            ),
            (
                "/v2/blobs/uploads/manifests/t",
                Some(Route::Manifest("blobs/uploads", "t")),
            ),
            ("/v2/a/b/tags/list", Some(Route::Tags("a/b"))),
            (
                "/v2/a/b/blobs/sha256:00",
                Some(Route::Blob("a/b", "sha256:00")),
            ),
            ("/v1/a", None),
            ("/v2/a", None),
        ];
        for (path, route) in routes {
            assert_eq!(Route::of(path), route, "{path}");
        }
    }

    #[test]
    fn names_and_tags_follow_the_specification() {
        for good in ["a", "a/b", "a.b/c__d/e--f", "0-1"] {
            assert!(is_repository_name(good), "{good}");
        }
        for bad in [
            "", "A", "a/", "/a", "a..b", "a___b", "-a", "a_", "a/../b", "é",
        ] {
            assert!(!is_repository_name(bad), "{bad}");
        }
        assert!(is_tag("v1.0-rc_2"));
        assert!(!is_tag(".a") && !is_tag("") && !is_tag(&"a".repeat(129)));
    }
}
