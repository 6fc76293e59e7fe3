//! Answers that several handlers give.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::http::{HeaderValue, Response, StatusCode};
use serde_json::json;

use crate::front::{self, error};

pub(super) const DOCKER_CONTENT_DIGEST: HeaderName =
    HeaderName::from_static("docker-content-digest");

pub(super) fn set(response: &mut Response<Body>, name: HeaderName, value: &str) {
    let value = HeaderValue::from_str(value).expect("the fake's headers are visible text");
    response.headers_mut().insert(name, value);
}

pub(super) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

pub(super) fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    set(&mut response, CONTENT_TYPE, "text/plain; charset=utf-8");
    response
}

pub(super) fn base() -> Response<Body> {
    let mut response = front::json(StatusCode::OK, &json!({}));
    let name = HeaderName::from_static("docker-distribution-api-version");
    set(&mut response, name, "registry/2.0");
    response
}

/// Says that there is no such repository, in ECR's words when the registry is an account's.
pub(super) fn name_unknown(name: &str, account: Option<&str>) -> Response<Body> {
    let message = match account {
        None => format!("repository {name} does not exist"),
        Some(account) => format!(
            "The repository with name '{name}' does not exist in the registry with id '{account}'"
        ),
    };
    error(StatusCode::NOT_FOUND, "NAME_UNKNOWN", &message)
}

pub(super) fn unsupported() -> Response<Body> {
    let message = "the operation is unsupported";
    error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message)
}

/// What a proxy says to a body that is too long for it.
pub(super) fn too_large() -> Response<Body> {
    let text = "<html><head><title>413 Request Entity Too Large</title></head></html>\n";
    let mut response = plain(StatusCode::PAYLOAD_TOO_LARGE, text);
    set(&mut response, CONTENT_TYPE, "text/html");
    response
}

pub(super) fn too_many_requests() -> Response<Body> {
    error(
        StatusCode::TOO_MANY_REQUESTS,
        "TOOMANYREQUESTS",
        "Rate exceeded",
    )
}

pub(super) fn upload_unknown() -> Response<Body> {
    let message = "blob upload unknown to registry";
    error(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", message)
}

pub(super) fn digest_invalid(message: &str) -> Response<Body> {
    error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message)
}

pub(super) fn refuse_authorization() -> Response<Body> {
    let text = "<Error><Code>InvalidArgument</Code>\
                <Message>Only one auth mechanism allowed</Message></Error>";
    plain(StatusCode::BAD_REQUEST, text)
}
