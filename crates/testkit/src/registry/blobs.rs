//! Blobs on their way down, from the registry or from the second host.

use axum::body::Body;
use axum::http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION};
use axum::http::{HeaderValue, Method, Response, StatusCode};
use futures_util::stream;
use tierce_oci::Digest;

use super::answers::{
    DOCKER_CONTENT_DIGEST, digest_invalid, empty, plain, refuse_authorization, set,
};
use super::routes::Core;
use super::rules::Redirect;
use super::state::Blob;
use crate::front::{Exchange, error};

/// What proves an address of the second host to be one that the registry gave out.
const SIGNATURE: &str = "c2lnbmVk";

impl Core {
    pub(super) fn storage(&self, exchange: &Exchange, name: &str) -> Response<Body> {
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

    pub(super) fn blob(&self, exchange: &Exchange, name: &str, digest: &str) -> Response<Body> {
        let Ok(digest) = digest.parse::<Digest>() else {
            return digest_invalid("the digest in the path is not one");
        };
        let Some(blob) = self.state.lock().find_blob(name, &digest) else {
            let message = "blob unknown to registry";
            return error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", message);
        };
        let redirects = *exchange.method() == Method::GET || self.rules.redirect_heads;
        if let Some(redirect) = self.rules.redirect.filter(|_| redirects) {
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

    pub(super) fn send_blob(
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

    pub(super) fn delete_blob(&self, name: &str, digest: &str) -> Response<Body> {
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
