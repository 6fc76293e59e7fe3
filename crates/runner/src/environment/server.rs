//! The HTTP side of the Runtime, Extensions and Telemetry APIs: requests become calls of the
//! environment's life, whose answers become responses.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::sandbox::Doorkeeper;

use super::StreamingHead;
use super::call::{
    Call, ExtensionFault, Refusal, Registration, Reply, Reported, Response as Answer,
};
use super::failure::sanitise;
use super::relay::Relay;
use super::telemetry::Subscription;
use super::{Progress, extensions::Registered};
use crate::function::Payloads;

/// Whom requests are told to, and what they may bring.
#[derive(Debug, Clone)]
pub(super) struct Calls {
    pub(super) sender: mpsc::UnboundedSender<Call>,
    pub(super) payloads: Payloads,
}

const RESPONSE_MODE: &str = "Lambda-Runtime-Function-Response-Mode";
const ERROR_TYPE: &str = "Lambda-Runtime-Function-Error-Type";
const ERROR_BODY: &str = "Lambda-Runtime-Function-Error-Body";
const EXTENSION_NAME: &str = "Lambda-Extension-Name";
const EXTENSION_IDENTIFIER: &str = "Lambda-Extension-Identifier";
const EXTENSION_ERROR_TYPE: &str = "Lambda-Extension-Function-Error-Type";
const EXTENSION_FEATURES: &str = "Lambda-Extension-Accept-Feature";

/// So many connections of one box at once; the rest waits to be accepted. A runtime has one or two, an
/// extension as many, and all that a box may open would be more than this process may.
const CONNECTIONS: usize = 256;

/// Between attempts to accept connections when files are short.
const PAUSE: Duration = Duration::from_millis(50);

/// The most bytes of a body that is not a response: nothing that a registration or subscription says
/// is nearly as long.
const SMALL_BODY: usize = 1024 * 1024;

/// Makes a listener one of tokio's. Needs to be called within a runtime.
pub(super) fn listen(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Serves until it is dropped, connections and all.
pub(super) async fn serve(listener: TcpListener, doorkeeper: Doorkeeper, calls: Calls) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, doorkeeper, calls.clone()));
                }
                // A connection that ended before it was accepted, or too many open files: the
                // next may do.
                Err(error) => {
                    tracing::warn!(%error, "a connection to the Runtime API was not accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, doorkeeper: Doorkeeper, calls: Calls) {
    match is_admitted(doorkeeper, &stream).await {
        Ok(true) => {}
        Ok(false) => {
            tracing::warn!("a stranger was turned away from the Runtime API");
            return;
        }
        Err(error) => {
            tracing::warn!(%error, "who connects to the Runtime API cannot be told");
            return;
        }
    }
    // Small answers must not wait for acknowledgements of earlier ones.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY cannot be set");
    }
    let service = service_fn(|request| {
        let calls = calls.clone();
        async move { Ok::<_, Infallible>(answer(request, &calls).await) }
    });
    let served = http1::Builder::new()
        // As the service writes them: some bootstraps in shell look for them letter by letter.
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the Runtime API ended");
    }
}

/// Whether a peer is of the box.
async fn is_admitted(doorkeeper: Doorkeeper, stream: &TcpStream) -> io::Result<bool> {
    if doorkeeper == Doorkeeper::Anybody {
        return Ok(true);
    }
    let (peer, local) = (stream.peer_addr()?, stream.local_addr()?);
    tokio::task::spawn_blocking(move || doorkeeper.admits(peer, local))
        .await
        .unwrap_or(Ok(false))
}

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route<'a> {
    Ping,
    Next,
    Response(&'a str),
    InvocationError(&'a str),
    InitError,
    Register,
    ExtensionNext,
    ExtensionError(ExtensionFault),
    Subscribe,
}

impl<'a> Route<'a> {
    /// The one of a path, and the method it takes.
    fn of(path: &'a str) -> Option<(Method, Self)> {
        let (version, rest) = path.strip_prefix('/')?.split_once('/')?;
        let segments: Vec<&str> = rest.split('/').collect();
        Some(match (version, segments.as_slice()) {
            ("2018-06-01", ["ping"]) => (Method::GET, Self::Ping),
            ("2018-06-01", ["runtime", "invocation", "next"]) => (Method::GET, Self::Next),
            ("2018-06-01", ["runtime", "invocation", id, "response"]) => {
                (Method::POST, Self::Response(id))
            }
            ("2018-06-01", ["runtime", "invocation", id, "error"]) => {
                (Method::POST, Self::InvocationError(id))
            }
            ("2018-06-01", ["runtime", "init", "error"]) => (Method::POST, Self::InitError),
            ("2020-01-01", ["extension", "register"]) => (Method::POST, Self::Register),
            ("2020-01-01", ["extension", "event", "next"]) => (Method::GET, Self::ExtensionNext),
            ("2020-01-01", ["extension", "init", "error"]) => {
                (Method::POST, Self::ExtensionError(ExtensionFault::Init))
            }
            ("2020-01-01", ["extension", "exit", "error"]) => {
                (Method::POST, Self::ExtensionError(ExtensionFault::Exit))
            }
            ("2022-07-01", ["telemetry"]) | ("2020-08-15", ["logs"]) => {
                (Method::PUT, Self::Subscribe)
            }
            _ => return None,
        })
    }
}

async fn answer(request: Request<Incoming>, calls: &Calls) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let Some((method, route)) = Route::of(&path) else {
        discard(request.into_body()).await;
        return plain(StatusCode::NOT_FOUND, "404 page not found\n");
    };
    if *request.method() != method {
        discard(request.into_body()).await;
        return plain(StatusCode::METHOD_NOT_ALLOWED, "");
    }
    match route {
        Route::Ping => plain(StatusCode::OK, "pong"),
        Route::Next => next(calls).await,
        Route::Response(id) => response(request, id, calls).await,
        Route::InvocationError(id) => invocation_error(request, id, calls).await,
        Route::InitError => init_error(request, calls).await,
        Route::Register => register(request, calls).await,
        Route::ExtensionNext => extension_next(&request, calls).await,
        Route::ExtensionError(fault) => extension_error(request, fault, calls).await,
        Route::Subscribe => subscribe(request, calls).await,
    }
}

async fn next(calls: &Calls) -> Response<Full<Bytes>> {
    let event = match ask(calls, Call::Next).await {
        Ok(event) => event,
        Err(refusal) => return refused(&refusal),
    };
    let mut response = Response::new(Full::new(event.payload));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, header_value(&event.content_type));
    for (name, value) in event.headers {
        if !value.is_empty() {
            headers.insert(HeaderName::from_static(name), header_value(&value));
        }
    }
    response
}

async fn response(request: Request<Incoming>, id: &str, calls: &Calls) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let relay = match ask(calls, |reply| Call::ResponseBegins(id.to_owned(), reply)).await {
        Ok(relay) => relay,
        Err(refusal) => {
            discard(body).await;
            return refused(&refusal);
        }
    };
    let responding = Responding {
        calls,
        id: Some(id),
    };
    let content_type = text(&parts.headers, CONTENT_TYPE.as_str()).map(str::to_owned);
    let answer = match text(&parts.headers, RESPONSE_MODE) {
        None | Some("") => read_buffered(body, content_type, calls.payloads.answer()).await,
        Some("streaming") => {
            read_streamed(body, content_type, calls.payloads.stream(), &relay).await
        }
        Some(_) => {
            discard(body).await;
            Answer::InvalidMode
        }
    };
    match responding.ends(answer).await {
        Ok(()) => accepted(),
        Err(refusal) => refused(&refusal),
    }
}

/// A response whose head was taken. However it is dropped, its end is told.
struct Responding<'a> {
    calls: &'a Calls,
    id: Option<&'a str>,
}

impl Responding<'_> {
    async fn ends(mut self, answer: Answer) -> Result<(), Refusal> {
        let id = self.id.take().unwrap_or_default().to_owned();
        ask(self.calls, |reply| Call::ResponseEnds(id, answer, reply)).await
    }
}

impl Drop for Responding<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let (reply, _) = oneshot::channel();
            let _ =
                self.calls
                    .sender
                    .send(Call::ResponseEnds(id.to_owned(), Answer::Truncated, reply));
        }
    }
}

async fn read_buffered(body: Incoming, content_type: Option<String>, limit: usize) -> Answer {
    match read(body, limit).await {
        Ok(payload) => Answer::Buffered {
            payload,
            content_type,
        },
        Err(Unread::TooLarge) => Answer::TooLarge(limit),
        Err(Unread::Truncated) => Answer::Truncated,
    }
}

async fn read_streamed(
    mut body: Incoming,
    content_type: Option<String>,
    limit: usize,
    relay: &Relay,
) -> Answer {
    relay
        .send(Progress::Streaming(StreamingHead { content_type }))
        .await;
    let mut length = 0_usize;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return Answer::Truncated;
        };
        match frame.into_data() {
            Ok(piece) => {
                length = length.saturating_add(piece.len());
                if length > limit {
                    discard(body).await;
                    return Answer::TooLarge(limit);
                }
                if !piece.is_empty() {
                    relay.send(Progress::Piece(piece)).await;
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers()
                    && let Some(error_type) = text(&trailers, ERROR_TYPE)
                {
                    return Answer::StreamedError {
                        error_type: sanitise(Some(error_type)),
                        payload: error_body(&trailers),
                    };
                }
            }
        }
    }
    Answer::Streamed
}

/// The body of an error in a trailer: JSON in base64, as the clients of AWS send it; what is not is
/// taken as it is.
fn error_body(trailers: &HeaderMap) -> Bytes {
    let Some(value) = trailers.get(ERROR_BODY) else {
        return Bytes::from_static(b"{}");
    };
    STANDARD
        .decode(value.as_bytes())
        .map_or_else(|_| Bytes::copy_from_slice(value.as_bytes()), Bytes::from)
}

async fn invocation_error(
    request: Request<Incoming>,
    id: &str,
    calls: &Calls,
) -> Response<Full<Bytes>> {
    match reported(request, calls).await {
        Ok(reported) => {
            let id = id.to_owned();
            done(ask(calls, |reply| Call::InvocationError(id, reported, reply)).await)
        }
        Err(refusal) => refused(&refusal),
    }
}

async fn init_error(request: Request<Incoming>, calls: &Calls) -> Response<Full<Bytes>> {
    match reported(request, calls).await {
        Ok(reported) => done(ask(calls, |reply| Call::InitError(reported, reply)).await),
        Err(refusal) => refused(&refusal),
    }
}

async fn reported(request: Request<Incoming>, calls: &Calls) -> Result<Reported, Refusal> {
    let (parts, body) = request.into_parts();
    let limit = calls.payloads.answer();
    let payload = read(body, limit)
        .await
        .map_err(|unread| unread.refusal(limit))?;
    Ok(Reported {
        error_type: sanitise(text(&parts.headers, ERROR_TYPE)),
        payload,
    })
}

#[derive(Deserialize)]
struct RegisterBody {
    #[serde(default)]
    events: Vec<String>,
}

async fn register(request: Request<Incoming>, calls: &Calls) -> Response<Full<Bytes>> {
    match registration(request).await {
        Ok(registration) => match ask(calls, |reply| Call::Register(registration, reply)).await {
            Ok(registered) => registered_answer(&registered),
            Err(refusal) => refused(&refusal),
        },
        Err(refusal) => refused(&refusal),
    }
}

async fn registration(request: Request<Incoming>) -> Result<Registration, Refusal> {
    let (parts, body) = request.into_parts();
    let body = read(body, SMALL_BODY)
        .await
        .map_err(|unread| unread.refusal(SMALL_BODY))?;
    let name = text(&parts.headers, EXTENSION_NAME).unwrap_or_default();
    if name.is_empty() {
        return Err(Refusal::Extension {
            error_type: "Extension.InvalidExtensionName",
            message: "Empty extension name".to_owned(),
        });
    }
    let body: RegisterBody = serde_json::from_slice(&body).map_err(|error| Refusal::Extension {
        error_type: "InvalidRequestFormat",
        message: error.to_string(),
    })?;
    let features = text(&parts.headers, EXTENSION_FEATURES).unwrap_or_default();
    Ok(Registration {
        name: name.to_owned(),
        events: body.events,
        account: features
            .split(',')
            .any(|feature| feature.trim() == "accountId"),
    })
}

fn registered_answer(registered: &Registered) -> Response<Full<Bytes>> {
    let mut body = json!({
        "functionName": registered.name,
        "functionVersion": registered.version,
        "handler": registered.handler.as_deref().unwrap_or_default(),
    });
    if let Some(account) = &registered.account {
        body["accountId"] = account.as_str().into();
    }
    let mut response = json_answer(StatusCode::OK, &body);
    response.headers_mut().insert(
        "lambda-extension-identifier",
        header_value(&registered.identifier),
    );
    response
}

async fn extension_next(request: &Request<Incoming>, calls: &Calls) -> Response<Full<Bytes>> {
    let identifier = identifier(request.headers());
    match ask(calls, |reply| Call::ExtensionNext(identifier, reply)).await {
        Ok(event) => {
            let mut response = Response::new(Full::new(event));
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(
                "lambda-extension-event-identifier",
                header_value(&uuid::Uuid::new_v4().to_string()),
            );
            response
        }
        Err(refusal) => refused(&refusal),
    }
}

async fn extension_error(
    request: Request<Incoming>,
    fault: ExtensionFault,
    calls: &Calls,
) -> Response<Full<Bytes>> {
    let identifier = identifier(request.headers());
    let error_type = text(request.headers(), EXTENSION_ERROR_TYPE)
        .unwrap_or_default()
        .to_owned();
    discard(request.into_body()).await;
    if error_type.is_empty() {
        return refused(&Refusal::Extension {
            error_type: "Extension.MissingHeader",
            message: format!("Missing {EXTENSION_ERROR_TYPE} header"),
        });
    }
    let make = |reply: Reply<()>| Call::ExtensionError(identifier, fault, error_type, reply);
    done(ask(calls, make).await)
}

async fn subscribe(request: Request<Incoming>, calls: &Calls) -> Response<Full<Bytes>> {
    let identifier = identifier(request.headers());
    let subscription = match read(request.into_body(), SMALL_BODY).await {
        Ok(body) => Subscription::parse(&body),
        Err(unread) => Err(unread.refusal(SMALL_BODY)),
    };
    let subscription = match subscription {
        Ok(subscription) => subscription,
        Err(refusal) => return refused(&refusal),
    };
    match ask(calls, |reply| {
        Call::Subscribe(identifier, subscription, reply)
    })
    .await
    {
        Ok(()) => json_answer(StatusCode::OK, &json!("OK")),
        Err(refusal) => refused(&refusal),
    }
}

/// Asks the environment's life.
async fn ask<T>(calls: &Calls, call: impl FnOnce(Reply<T>) -> Call) -> Result<T, Refusal> {
    let (reply, answer) = oneshot::channel();
    // A life that has ended drops the reply.
    let _ = calls.sender.send(call(reply));
    answer.await.unwrap_or(Err(Refusal::Ended))
}

/// Why a body is not here.
enum Unread {
    TooLarge,
    Truncated,
}

impl Unread {
    fn refusal(&self, limit: usize) -> Refusal {
        match self {
            Self::TooLarge => Refusal::TooLarge(limit),
            Self::Truncated => Refusal::Truncated,
        }
    }
}

/// Reads a body of at most `limit` bytes. Of a longer one the rest is read and forgotten, so that
/// its sender sees the answer in place of a reset.
async fn read(mut body: Incoming, limit: usize) -> Result<Bytes, Unread> {
    let mut whole = BytesMut::new();
    let mut first: Option<Bytes> = None;
    while let Some(frame) = body.frame().await {
        let piece = match frame.map(hyper::body::Frame::into_data) {
            Ok(Ok(piece)) => piece,
            Ok(Err(_trailers)) => continue,
            Err(_) => return Err(Unread::Truncated),
        };
        let length = whole.len() + first.as_ref().map_or(0, Bytes::len);
        if length + piece.len() > limit {
            discard(body).await;
            return Err(Unread::TooLarge);
        }
        // Most bodies come in one piece, which need not be copied.
        match first.take() {
            None if whole.is_empty() => first = Some(piece),
            None => whole.extend_from_slice(&piece),
            Some(before) => {
                whole.extend_from_slice(&before);
                whole.extend_from_slice(&piece);
            }
        }
    }
    Ok(first.unwrap_or_else(|| whole.freeze()))
}

async fn discard(mut body: Incoming) {
    while let Some(Ok(_)) = body.frame().await {}
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn identifier(headers: &HeaderMap) -> String {
    text(headers, EXTENSION_IDENTIFIER)
        .unwrap_or_default()
        .to_owned()
}

/// A header's value. What no header can have becomes a blank, which in JSON means the same as a line
/// feed.
fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| {
        let bytes: Vec<u8> = text
            .bytes()
            .map(|byte| if byte.is_ascii_control() { b' ' } else { byte })
            .collect();
        HeaderValue::from_bytes(&bytes).unwrap_or(HeaderValue::from_static(""))
    })
}

fn done(result: Result<(), Refusal>) -> Response<Full<Bytes>> {
    match result {
        Ok(()) => accepted(),
        Err(refusal) => refused(&refusal),
    }
}

fn accepted() -> Response<Full<Bytes>> {
    json_answer(StatusCode::ACCEPTED, &json!({"status": "OK"}))
}

fn refused(refusal: &Refusal) -> Response<Full<Bytes>> {
    let body = json!({
        "errorMessage": refusal.to_string(),
        "errorType": refusal.error_type(),
    });
    json_answer(refusal.status(), &body)
}

fn json_answer(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn plain(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_where_the_apis_say() {
        for (path, expected) in [
            ("/2018-06-01/ping", Some((Method::GET, Route::Ping))),
            (
                "/2018-06-01/runtime/invocation/next",
                Some((Method::GET, Route::Next)),
            ),
            (
                "/2018-06-01/runtime/invocation/1/response",
                Some((Method::POST, Route::Response("1"))),
            ),
            (
                "/2018-06-01/runtime/invocation/1/error",
                Some((Method::POST, Route::InvocationError("1"))),
            ),
            (
                "/2018-06-01/runtime/init/error",
                Some((Method::POST, Route::InitError)),
            ),
            (
                "/2020-01-01/extension/exit/error",
                Some((Method::POST, Route::ExtensionError(ExtensionFault::Exit))),
            ),
            (
                "/2022-07-01/telemetry",
                Some((Method::PUT, Route::Subscribe)),
            ),
            ("/2020-08-15/logs", Some((Method::PUT, Route::Subscribe))),
            ("/2020-08-15/telemetry", None),
            ("/2018-06-01/runtime/invocation/1/2/response", None),
            ("/2018-06-01/runtime/restore/next", None),
            ("/2018-06-01", None),
            ("/", None),
            ("", None),
            ("*", None),
        ] {
            assert_eq!(Route::of(path), expected, "{path}");
        }
    }

    #[test]
    fn any_text_is_a_header() {
        for (text, value) in [
            ("a", "a"),
            ("{\n\t\"x\": \"ü\"}", "{  \"x\": \"ü\"}"),
            ("a\r\nb: c", "a  b: c"),
            ("\0", " "),
        ] {
            assert_eq!(header_value(text).as_bytes(), value.as_bytes(), "{text:?}");
        }
    }

    #[test]
    fn errors_in_trailers_are_read_with_and_without_base64() {
        let trailers = |body: &'static str| {
            HeaderMap::from_iter([(
                HeaderName::from_static("lambda-runtime-function-error-body"),
                HeaderValue::from_static(body),
            )])
        };
        assert_eq!(error_body(&trailers("eyJ4IjoxfQ==")), r#"{"x":1}"#);
        assert_eq!(error_body(&trailers(r#"{"x":1}"#)), r#"{"x":1}"#);
        assert_eq!(error_body(&HeaderMap::new()), "{}");
    }
}
