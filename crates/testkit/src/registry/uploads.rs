//! Blobs on their way up.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Body;
use axum::http::header::{HeaderName, LOCATION, RANGE};
use axum::http::{Method, Response, StatusCode};
use tierce_oci::Digest;

use super::answers::{
    DOCKER_CONTENT_DIGEST, digest_invalid, empty, plain, set, too_large, unsupported,
    upload_unknown,
};
use super::routes::{Core, Outcome};
use super::rules::{MissingRepository, Offsets};
use super::upload::Upload;
use crate::fault::LocationStyle;
use crate::front::{self, Exchange, error};
use crate::server::Dropped;

const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

impl Core {
    pub(super) async fn start_upload(&self, mut exchange: Exchange, name: &str) -> Outcome {
        let mount = exchange.query_value("mount");
        let from = exchange.query_value("from");
        let mounts = self.state.lock().mounts.unwrap_or(self.rules.mount);
        if let (Some(mount), Some(from)) = (&mount, &from)
            && mounts
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
            let upload = Mutex::new(Upload::new(name));
            return match self.receive(&mut exchange, &upload).await? {
                Ok(mut upload) => Ok(self.finish_upload(name, &mut upload, &digest)),
                Err(refusal) => Ok(refusal),
            };
        }
        let id = {
            let mut state = self.state.lock();
            if self.rules.missing == MissingRepository::Created {
                state.repository(name);
            }
            state.begin_upload(name)
        };
        let upload = self.find_upload(name, &id);
        let upload = upload.expect("the upload was begun just now");
        let mut upload = lock(&upload);
        let style = exchange.location.unwrap_or(self.rules.location);
        let mut response = empty(StatusCode::ACCEPTED);
        self.describe_upload(&mut response, &mut upload, &id, style);
        if let Some(minimum) = self.rules.minimum_chunk {
            let name = HeaderName::from_static("oci-chunk-min-length");
            response.headers_mut().insert(name, minimum.into());
        }
        Ok(response)
    }

    fn find_upload(&self, name: &str, id: &str) -> Option<Arc<Mutex<Upload>>> {
        let upload = self.state.lock().uploads.get(id).cloned()?;
        let here = lock(&upload).repository == name;
        here.then_some(upload)
    }

    pub(super) async fn upload(&self, mut exchange: Exchange, name: &str, id: &str) -> Outcome {
        exchange.note_repository(name);
        exchange.note_authorised();
        let Some(upload) = self.find_upload(name, id) else {
            return Ok(upload_unknown());
        };
        let method = exchange.method().clone();
        // A client that asks anew has given up what it still seems to be sending.
        lock(&upload).interrupt().map_err(|_| Dropped)?;
        if let Some(refusal) = self.refuse_request(&exchange, &mut lock(&upload), id) {
            return Ok(refusal);
        }
        let writes = method == Method::PATCH || method == Method::PUT;
        if writes && !self.state.lock().repositories.contains_key(name) {
            // The service finds out only here that the repository is missing.
            let _ = exchange.body.next().await;
            return Err(Dropped);
        }
        let style = exchange.location.unwrap_or(self.rules.location);
        match method {
            Method::GET => {
                let mut upload = lock(&upload);
                let mut response = empty(StatusCode::NO_CONTENT);
                self.describe_upload(&mut response, &mut upload, id, style);
                Ok(response)
            }
            Method::DELETE => {
                self.state.lock().uploads.remove(id);
                Ok(empty(StatusCode::NO_CONTENT))
            }
            Method::PATCH => {
                if let Some(refusal) = self.refuse_chunk(&exchange, &lock(&upload)) {
                    return Ok(refusal);
                }
                let mut upload = match self.receive(&mut exchange, &upload).await? {
                    Ok(upload) => upload,
                    Err(refusal) => return Ok(refusal),
                };
                let status = StatusCode::from_u16(self.rules.patch_status);
                let mut response = empty(status.unwrap_or(StatusCode::ACCEPTED));
                self.describe_upload(&mut response, &mut upload, id, style);
                Ok(response)
            }
            Method::PUT => {
                let Some(digest) = exchange.query_value("digest") else {
                    return Ok(digest_invalid("the query names no digest"));
                };
                let has_body = match exchange.header("content-length") {
                    Some(length) => length != "0",
                    None => exchange.header("transfer-encoding").is_some(),
                };
                if has_body && let Some(refusal) = self.refuse_chunk(&exchange, &lock(&upload)) {
                    return Ok(refusal);
                }
                let mut upload = match self.receive(&mut exchange, &upload).await? {
                    Ok(upload) => upload,
                    Err(refusal) => return Ok(refusal),
                };
                self.state.lock().uploads.remove(id);
                Ok(self.finish_upload(name, &mut upload, &digest))
            }
            _ => Ok(unsupported()),
        }
    }

    /// Refuses what does not bring back the address it was given, or asks what is not told.
    fn refuse_request(
        &self,
        exchange: &Exchange,
        upload: &mut Upload,
        id: &str,
    ) -> Option<Response<Body>> {
        let method = exchange.method();
        if *method == Method::GET {
            match self.rules.upload_status {
                404 => return Some(upload_unknown()),
                405 => return Some(unsupported()),
                _ => {}
            }
        }
        let strict = self.rules.strict_state;
        if strict && !upload.expected_query.is_empty() {
            upload.expected_query = strict_state(id, upload.size);
        }
        let query = exchange.query();
        let kept = front::pairs(upload.expected_query.as_bytes())
            .into_iter()
            .all(|pair| query.contains(&pair));
        // Asking for the state is how a client that lost an answer finds the new address.
        let lenient = *method == Method::GET && !strict || *method == Method::DELETE;
        if kept || lenient {
            return None;
        }
        if strict {
            self.state.lock().uploads.remove(id);
        }
        let message = "the query of the upload's address is stale or was not kept";
        Some(error(StatusCode::NOT_FOUND, "BLOB_UPLOAD_INVALID", message))
    }

    /// Refuses bytes that do not follow those that are there.
    fn refuse_chunk(&self, exchange: &Exchange, upload: &Upload) -> Option<Response<Body>> {
        if self.rules.require_length && exchange.header("content-length").is_none() {
            return Some(plain(StatusCode::LENGTH_REQUIRED, "length required\n"));
        }
        if upload.short_chunk {
            let message = match self.rules.minimum_part {
                Some(minimum) => format!("Layer parts must be at least {minimum} bytes in size"),
                None => "a chunk before the last is below the minimum length".to_owned(),
            };
            return Some(error(StatusCode::BAD_REQUEST, "SIZE_INVALID", &message));
        }
        let range = exchange.header("content-range");
        let start = match (self.rules.offsets, range) {
            (Offsets::Ignored, _) | (Offsets::Checked, None) => return None,
            (Offsets::Ecr, None) => Some(0),
            (_, Some(range)) => first_byte(exchange, range),
        };
        if start == Some(upload.size) {
            return None;
        }
        let message = match (self.rules.offsets, start) {
            (Offsets::Ecr, Some(start)) => {
                let size = upload.size;
                format!("First byte of the layer part is {start} instead of {size}")
            }
            _ => format!(
                "the next byte is {}, not that of {}",
                upload.size,
                range.unwrap_or_default()
            ),
        };
        let status = StatusCode::RANGE_NOT_SATISFIABLE;
        let mut response = error(status, "BLOB_UPLOAD_INVALID", &message);
        set(&mut response, RANGE, &self.told_range(upload));
        Some(response)
    }

    /// Reads a request's body into an upload. What came before a break stays, unless chunks are
    /// atomic; a later request to the same upload is a break too.
    async fn receive<'u>(
        &self,
        exchange: &mut Exchange,
        upload: &'u Mutex<Upload>,
    ) -> Result<Result<MutexGuard<'u, Upload>, Response<Body>>, Dropped> {
        let (sender, before) = {
            let mut upload = lock(upload);
            let sender = upload.begin(self.rules.atomic_chunks);
            (sender.map_err(|_| Dropped)?, upload.size)
        };
        while let Some(chunk) = exchange.body.next().await {
            let mut upload = lock(upload);
            if !upload.is_sender(sender) {
                return Err(Dropped);
            }
            let Ok(chunk) = chunk else {
                upload.interrupt().map_err(|_| Dropped)?;
                return Err(Dropped);
            };
            upload.write(&chunk).map_err(|_| Dropped)?;
            if let Some(limit) = self.rules.body_limit
                && upload.size - before > limit
            {
                upload.interrupt().map_err(|_| Dropped)?;
                return Ok(Err(too_large()));
            }
        }
        let mut upload = lock(upload);
        if !upload.is_sender(sender) {
            return Err(Dropped);
        }
        upload.commit();
        let minimum = self.rules.minimum_part.or(self.rules.minimum_chunk);
        upload.short_chunk = upload.size - before < minimum.unwrap_or(0);
        if upload.first_chunk.is_none() {
            upload.first_chunk = Some(upload.size);
        }
        Ok(Ok(upload))
    }

    /// The bytes an upload has, as its `Range` header tells them.
    fn told_range(&self, upload: &Upload) -> String {
        if self.rules.stale_range {
            received_range(upload.first_chunk.unwrap_or(0))
        } else {
            received_range(upload.size)
        }
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

    pub(super) fn registry_url(&self, path: &str) -> String {
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
        let state = if self.rules.strict_state {
            strict_state(id, upload.size)
        } else {
            format!("_state={id}.{}", upload.turn)
        };
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
        set(response, RANGE, &self.told_range(upload));
        set(response, UPLOAD_UUID, id);
    }
}

/// Where a chunk begins, when its `Content-Range` agrees with its length.
fn first_byte(exchange: &Exchange, range: &str) -> Option<u64> {
    let (start, end) = range.split_once('-')?;
    let (start, end) = (start.parse::<u64>().ok()?, end.parse::<u64>().ok()?);
    let length = exchange.header("content-length")?.parse::<u64>().ok()?;
    (end.checked_add(1)? == start.checked_add(length)?).then_some(start)
}

/// The state that tells how far an upload is, for those who check it to the byte.
fn strict_state(id: &str, size: u64) -> String {
    format!("_state={id}.{size}")
}

fn lock(upload: &Mutex<Upload>) -> MutexGuard<'_, Upload> {
    upload.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bytes an upload has, as the `Range` header tells them; an empty one says `0-0`.
fn received_range(size: u64) -> String {
    format!("0-{}", size.saturating_sub(1))
}
