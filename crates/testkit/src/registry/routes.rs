//! The distribution API: which request does what.

use std::sync::Arc;

use axum::body::Body;
use axum::http::header::WWW_AUTHENTICATE;
use axum::http::{Method, Response, StatusCode};
use serde_json::json;

use super::answers::{
    base, name_unknown, plain, refuse_authorization, set, too_large, too_many_requests, unsupported,
};
use super::rules::{Auth, MissingRepository, Rules};
use super::state::Shared;
use crate::front::{self, Exchange, error};
use crate::log::Endpoint;
use crate::password::{Passwords, Standing};
use crate::server::Dropped;
use crate::token::{Issuer, Verdict, decode_basic};

/// What ECR says to a password that has ended.
const EXPIRED: &str = "Your authorization token has expired. Reauthenticate and try again.";

/// What all handlers of one registry share.
pub(super) struct Core {
    pub(super) rules: Rules,
    pub(super) state: Shared,
    pub(super) passwords: Passwords,
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

pub(super) type Outcome = Result<Response<Body>, Dropped>;

impl Core {
    /// Answers a request to the registry or to the second host.
    pub(super) async fn answer(&self, endpoint: Endpoint, exchange: Exchange) -> Outcome {
        if let Some(refusal) = self.refuse_length(&exchange) {
            return Ok(refusal);
        }
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
        if self.is_above_limit(&exchange, &route) {
            return Ok(too_many_requests());
        }
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
        {
            let starts = method == Method::POST && matches!(route, Route::StartUpload(_));
            let uploads = starts || matches!(route, Route::Upload(..));
            match self.rules.missing {
                MissingRepository::Created if !reads => {}
                MissingRepository::DropsPost if starts => return Err(Dropped),
                MissingRepository::DropsUpload if uploads => {}
                _ => return Ok(self.name_unknown(name)),
            }
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
            _ => Ok(unsupported()),
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
            Auth::Ecr => return self.authorise_password(authorization),
            Auth::Bearer(_) => {
                let Some(issuer) = &self.issuer else {
                    return Ok(());
                };
                let needs = needs(exchange, route, reads);
                let token = authorization.and_then(|value| value.strip_prefix("Bearer "));
                let head = matches!(route, Route::Blob(..)) && *exchange.method() == Method::HEAD;
                match issuer.judge(token, &needs) {
                    Verdict::Allowed if !(head && self.rules.head_refused) => return Ok(()),
                    Verdict::Invalid if token.is_some() && self.rules.old_tokens_400 => {
                        let status = StatusCode::BAD_REQUEST;
                        return Err(Box::new(error(status, "DENIED", EXPIRED)));
                    }
                    verdict => issuer.challenge(&self.realm, &needs, &verdict),
                }
            }
        };
        let message = "authentication required";
        let mut response = error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message);
        set(&mut response, WWW_AUTHENTICATE, &challenge);
        Err(Box::new(response))
    }

    /// Judges an ECR password.
    fn authorise_password(&self, authorization: Option<&str>) -> Result<(), Box<Response<Body>>> {
        let given = authorization.and_then(decode_basic);
        let standing = given.map_or(Standing::Unknown, |(user, password)| {
            self.passwords.judge(&user, &password)
        });
        Err(Box::new(match standing {
            Standing::Valid => return Ok(()),
            Standing::Expired => error(StatusCode::FORBIDDEN, "DENIED", EXPIRED),
            Standing::Unknown => {
                let host = match &self.rules.name {
                    Some(name) => name.clone(),
                    None => format!("127.0.0.1:{}", self.registry_port),
                };
                let mut response = plain(StatusCode::UNAUTHORIZED, "Not Authorized\n");
                let challenge =
                    format!("Basic realm=\"https://{host}/\",service=\"ecr.amazonaws.com\"");
                set(&mut response, WWW_AUTHENTICATE, &challenge);
                response
            }
        }))
    }

    /// Refuses a body that a proxy before the registry would not pass on.
    fn refuse_length(&self, exchange: &Exchange) -> Option<Response<Body>> {
        let length: u64 = exchange.header("content-length")?.parse().ok()?;
        if length <= self.rules.body_limit? {
            return None;
        }
        Some(too_large())
    }

    /// Counts the requests that are limited, and says whether this one is too many.
    fn is_above_limit(&self, exchange: &Exchange, route: &Route<'_>) -> bool {
        if *exchange.method() == Method::PUT
            && matches!(route, Route::Manifest(..))
            && let Some(limit) = &self.rules.manifest_limit
            && !limit.pass()
        {
            return true;
        }
        let token = exchange.header("authorization");
        let anonymous = match (&self.issuer, token) {
            (_, None) => true,
            (Some(issuer), Some(token)) => token
                .strip_prefix("Bearer ")
                .is_some_and(|token| issuer.is_anonymous(token)),
            (None, Some(_)) => false,
        };
        let limit = self.rules.anonymous_limit.as_ref();
        anonymous && limit.is_some_and(|limit| !limit.pass())
    }

    pub(super) fn name_unknown(&self, name: &str) -> Response<Body> {
        name_unknown(name, self.rules.account.as_deref())
    }

    fn catalog(&self) -> Response<Body> {
        let names: Vec<String> = self.state.lock().repositories.keys().cloned().collect();
        front::json(StatusCode::OK, &json!({ "repositories": names }))
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

pub(super) fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= 128
        && text.bytes().next().is_some_and(word)
        && text
            .bytes()
            .all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

pub(crate) fn is_repository_name(name: &str) -> bool {
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
