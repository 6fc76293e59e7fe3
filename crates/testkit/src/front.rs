//! The way every request takes through a fake server: log it, let faults act, count its bytes.

use std::pin::Pin;
use std::sync::Arc;

use axum::body::{Body, HttpBody as _};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};

use crate::fault::{Action, Faults, LocationStyle};
use crate::incoming::Incoming;
use crate::log::{Endpoint, Journal, Place, Record};
use crate::server::{Answer, Dropped, Handler};

/// One request on its way through a server.
pub(crate) struct Exchange {
    pub(crate) parts: Parts,
    pub(crate) body: Incoming,
    /// The shape that a fault wants an upload's `Location` in.
    pub(crate) location: Option<LocationStyle>,
    /// Whether a fault forbids the mount that this request asks for.
    pub(crate) refuse_mount: bool,
    journal: Journal,
    place: Place,
}

impl Exchange {
    pub(crate) fn method(&self) -> &Method {
        &self.parts.method
    }

    pub(crate) fn path(&self) -> &str {
        self.parts.uri.path()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name)?.to_str().ok()
    }

    /// The decoded pairs of the query.
    pub(crate) fn query(&self) -> Vec<(String, String)> {
        let query = self.parts.uri.query().unwrap_or_default();
        pairs(query.as_bytes())
    }

    /// The first value of a query's key.
    pub(crate) fn query_value(&self, key: &str) -> Option<String> {
        self.query()
            .into_iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value)
    }

    /// Writes down which repository the request is about.
    pub(crate) fn note_repository(&self, repository: &str) {
        self.journal.update(self.place, |record| {
            record.repository = Some(repository.to_owned());
        });
    }

    /// Writes down that the request may do what it asks for.
    pub(crate) fn note_authorised(&self) {
        self.journal
            .update(self.place, |record| record.authorised = true);
    }

    /// Reads the whole body, or as much of it as `limit` and one byte more.
    pub(crate) async fn read_body(&mut self, limit: usize) -> Result<Vec<u8>, Dropped> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.body.next().await {
            bytes.extend_from_slice(&chunk?);
            if bytes.len() > limit {
                break;
            }
        }
        Ok(bytes)
    }
}

/// The decoded pairs of a query or a form.
pub(crate) fn pairs(text: &[u8]) -> Vec<(String, String)> {
    url::form_urlencoded::parse(text)
        .map(|(key, value)| (key.into_owned(), value.into_owned()))
        .collect()
}

/// What a server does once the log and the faults have had their say.
pub(crate) type Inner = Arc<
    dyn Fn(Exchange) -> Pin<Box<dyn Future<Output = Result<Response<Body>, Dropped>> + Send>>
        + Send
        + Sync,
>;

/// The log and the faults that several servers share.
#[derive(Clone, Default)]
pub(crate) struct Front {
    pub(crate) journal: Journal,
    pub(crate) faults: Faults,
}

impl Front {
    /// Puts log and faults before a server.
    pub(crate) fn handler(&self, endpoint: Endpoint, inner: Inner) -> Handler {
        let front = self.clone();
        Arc::new(move |request| -> Answer {
            let (front, inner) = (front.clone(), Arc::clone(&inner));
            Box::pin(async move { front.run(endpoint, request, inner).await })
        })
    }

    async fn run(
        self,
        endpoint: Endpoint,
        request: Request<Body>,
        inner: Inner,
    ) -> Result<Response<Body>, Dropped> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        // The second host may be the same server under another name.
        let endpoint = if path.starts_with("/storage/") {
            Endpoint::Storage
        } else {
            endpoint
        };
        let record = Record::new(
            endpoint,
            parts.method.clone(),
            (path.clone(), query),
            &parts.headers,
        );
        let place = self.journal.begin(record);
        let actions = self.faults.fire(endpoint, &parts.method, &path);
        let answer = self.answer(parts, body, actions, inner, place).await;
        let status = answer.as_ref().ok().map(Response::status);
        self.journal.end(place, status);
        answer
    }

    async fn answer(
        &self,
        parts: Parts,
        body: Body,
        actions: Vec<Action>,
        inner: Inner,
        place: Place,
    ) -> Result<Response<Body>, Dropped> {
        let mut exchange = Exchange {
            parts,
            body: Incoming::new(body, &actions, &self.journal, place),
            location: None,
            refuse_mount: false,
            journal: self.journal.clone(),
            place,
        };
        let head = *exchange.method() == Method::HEAD;
        let mut instead = None;
        for action in &actions {
            match action {
                Action::Disconnect => return Err(Dropped),
                Action::Hold(gate) => gate.pass().await,
                Action::Location(style) => exchange.location = Some(*style),
                Action::RefuseMount => exchange.refuse_mount = true,
                Action::Answer {
                    status,
                    headers,
                    body,
                } => instead = Some(scripted(*status, headers, body.clone())),
                Action::Endless(status) => instead = Some(endless(*status)),
                _ => {}
            }
        }
        let mut response = match instead {
            Some(response) => response,
            None => inner(exchange).await?,
        };
        for action in actions {
            response = distort(response, action, head).await?;
        }
        Ok(self.count_sent(response, place))
    }

    fn count_sent(&self, response: Response<Body>, place: Place) -> Response<Body> {
        let (mut parts, body) = response.into_parts();
        match body.size_hint().exact() {
            Some(0) => return Response::from_parts(parts, body),
            Some(length) => {
                parts.headers.entry(CONTENT_LENGTH).or_insert(length.into());
            }
            None => {}
        }
        let journal = self.journal.clone();
        let counted = body.into_data_stream().inspect(move |chunk| {
            if let Ok(chunk) = chunk {
                journal.update(place, |record| record.bytes_sent += chunk.len() as u64);
            }
        });
        Response::from_parts(parts, Body::from_stream(counted))
    }
}

/// An error answer in the registry's JSON.
pub(crate) fn error(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let body = serde_json::json!({"errors": [{"code": code, "message": message}]});
    json(status, &body)
}

/// An answer of JSON.
pub(crate) fn json(status: StatusCode, body: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

fn scripted(status: StatusCode, headers: &HeaderMap, body: Option<Bytes>) -> Response<Body> {
    let mut response = match body {
        None => {
            let code = match status.as_u16() {
                401 => "UNAUTHORIZED",
                403 => "DENIED",
                404 => "NAME_UNKNOWN",
                429 => "TOOMANYREQUESTS",
                _ => "UNKNOWN",
            };
            error(status, code, "scripted by the test")
        }
        Some(body) => {
            let mut response = Response::new(Body::from(body));
            *response.status_mut() = status;
            let text = HeaderValue::from_static("text/plain; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, text);
            response
        }
    };
    response.headers_mut().extend(headers.clone());
    response
}

fn endless(status: StatusCode) -> Response<Body> {
    const CHUNK: usize = 64 * 1024;
    const CHUNKS: usize = 256 * 1024 * 1024 / CHUNK;
    let chunk = Bytes::from(vec![b' '; CHUNK]);
    let chunks = stream::repeat(chunk).take(CHUNKS).map(Ok::<_, Dropped>);
    let mut response = Response::new(Body::from_stream(chunks));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

async fn distort(
    response: Response<Body>,
    action: Action,
    head: bool,
) -> Result<Response<Body>, Dropped> {
    let (mut parts, body) = response.into_parts();
    match action {
        Action::LoseAnswer => return Err(Dropped),
        Action::SetHeader(name, Some(value)) => {
            parts.headers.insert(name, value);
        }
        Action::SetHeader(name, None) => {
            parts.headers.remove(name);
        }
        Action::DisconnectAfterSending(bytes) => {
            let all = collect(body).await?;
            let length = all.len();
            parts.headers.insert(CONTENT_LENGTH, length.into());
            let body = break_after(&all.slice(..bytes.min(length)));
            return Ok(Response::from_parts(parts, body));
        }
        Action::StallAfterSending(_)
        | Action::Trickle(..)
        | Action::CorruptByte(_)
        | Action::Truncate(_)
        | Action::Append(_)
        | Action::ReplaceBody(_)
            if head => {}
        Action::StallAfterSending(bytes) => {
            let all = collect(body).await?;
            parts.headers.insert(CONTENT_LENGTH, all.len().into());
            let sent = stream::iter([Ok::<_, Dropped>(all.slice(..bytes.min(all.len())))]);
            let body = Body::from_stream(sent.chain(stream::pending()));
            return Ok(Response::from_parts(parts, body));
        }
        Action::Trickle(piece, pause) => {
            let all = collect(body).await?;
            parts.headers.insert(CONTENT_LENGTH, all.len().into());
            let pieces = stream::iter(pieces(&all, piece)).then(move |piece| async move {
                tokio::time::sleep(pause).await;
                Ok::<_, Dropped>(piece)
            });
            return Ok(Response::from_parts(parts, Body::from_stream(pieces)));
        }
        Action::CorruptByte(offset) => {
            let mut all = collect(body).await?.to_vec();
            if let Some(byte) = all.get_mut(offset) {
                *byte ^= 0xff;
            }
            return Ok(with_body(parts, all.into()));
        }
        Action::Truncate(length) => {
            let mut all = collect(body).await?;
            all.truncate(length);
            return Ok(with_body(parts, all));
        }
        Action::Append(more) => {
            let mut all = collect(body).await?.to_vec();
            all.extend_from_slice(&more);
            return Ok(with_body(parts, all.into()));
        }
        Action::ReplaceBody(other) => return Ok(with_body(parts, other)),
        Action::Disconnect
        | Action::DisconnectAfterReceiving(_)
        | Action::StallAfterReceiving(_)
        | Action::Answer { .. }
        | Action::Endless(_)
        | Action::Location(_)
        | Action::RefuseMount
        | Action::Hold(_) => {}
    }
    Ok(Response::from_parts(parts, body))
}

async fn collect(body: Body) -> Result<Bytes, Dropped> {
    let bytes = axum::body::to_bytes(body, usize::MAX).await;
    bytes.map_err(|_| Dropped)
}

fn with_body(mut parts: axum::http::response::Parts, bytes: Bytes) -> Response<Body> {
    parts.headers.insert(CONTENT_LENGTH, bytes.len().into());
    Response::from_parts(parts, Body::from(bytes))
}

/// A body that fails after its bytes, with a pause before, so that they are written out first.
fn break_after(bytes: &Bytes) -> Body {
    const PIECE: usize = 16 * 1024;
    let sent = stream::iter(pieces(bytes, PIECE)).then(|piece| async move {
        tokio::task::yield_now().await;
        Ok(piece)
    });
    let broken = stream::once(async {
        tokio::task::yield_now().await;
        Err(Dropped)
    });
    Body::from_stream(sent.chain(broken))
}

fn pieces(bytes: &Bytes, size: usize) -> Vec<Bytes> {
    (0..bytes.len())
        .step_by(size)
        .map(|start| bytes.slice(start..bytes.len().min(start + size)))
        .collect()
}
