//! The client's side: posts an event to a function that runs behind a [`Door`](super::Door), or behind
//! any other server of the Invoke API that needs neither TLS nor signatures.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use aws_smithy_eventstream::frame::{DecodedFrame, MessageFrameDecoder};
use aws_smithy_types::event_stream::Message;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;

use crate::function::Payloads;

/// Where functions are invoked: `http://HOST[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    authority: Authority,
}

impl Endpoint {
    fn host(&self) -> &str {
        // `[::1]` is written without brackets where it is connected to.
        let host = self.authority.host();
        host.strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host)
    }

    fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or(80)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "http://{}", self.authority)
    }
}

/// What was given as an endpoint is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not of the form http://HOST:PORT")]
pub struct ParseEndpointError(pub String);

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseEndpointError(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        let is_bare = uri.path_and_query().is_none_or(|path| path == "/");
        if uri.scheme_str() != Some("http") || !is_bare || authority.as_str().contains('@') {
            return Err(wrong());
        }
        Ok(Self {
            authority: authority.clone(),
        })
    }
}

/// What is posted.
#[derive(Debug, Clone)]
pub struct Event {
    /// The name of the function, perhaps with a qualifier, or its ARN.
    pub function: String,
    /// The event.
    pub payload: Bytes,
    /// What it is: `application/json`, or something that only a local function may take.
    pub content_type: &'static str,
    /// Whether its answer is waited for.
    pub invocation_type: InvocationType,
    /// Whether the end of the log is wanted.
    pub log_tail: bool,
    /// A JSON object about the client.
    pub client_context: Option<String>,
    /// For functions that have tenants.
    pub tenant_id: Option<String>,
}

/// How an event is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvocationType {
    /// The answer is waited for.
    RequestResponse,
    /// The event is queued.
    Event,
    /// The request is judged, and that is all.
    DryRun,
}

/// How an invocation was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// 200, or 202 for an event, or 204 for a dry run.
    pub status: u16,
    /// Set if the function failed; [`Answer::payload`] is its error then.
    pub function_error: Option<String>,
    /// Which version of the function answered.
    pub executed_version: Option<String>,
    /// How the invocation is called in the log.
    pub request_id: Option<String>,
    /// The end of the log, if it was asked for.
    pub log_tail: Option<Bytes>,
    /// As the function wrote it.
    pub payload: Bytes,
}

/// A streamed answer that has begun. Dropping it ends the connection, not the invocation.
#[derive(Debug)]
pub struct StreamedAnswer {
    /// Which version of the function answers.
    pub executed_version: Option<String>,
    /// How the invocation is called in the log.
    pub request_id: Option<String>,
    endpoint: Endpoint,
    body: Incoming,
    decoder: MessageFrameDecoder,
    received: BytesMut,
    pieces: VecDeque<Piece>,
    ended: bool,
}

/// A part of a streamed answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Some of what the function wrote.
    Chunk(Bytes),
    /// The end; always the last.
    Complete {
        /// What went wrong, if something did: its kind, and its details as JSON.
        error: Option<(String, String)>,
        /// The end of the log, if it was asked for.
        log_tail: Option<Bytes>,
    },
}

/// Why an event was not answered by the function.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// No server is there.
    #[error("nothing listens at {endpoint}")]
    NobodyListens {
        /// Where.
        endpoint: Endpoint,
    },
    /// The server cannot be reached.
    #[error("could not connect to {endpoint}")]
    Connect {
        /// Where.
        endpoint: Endpoint,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The connection broke before the answer was whole.
    #[error("the connection to {endpoint} broke before all of the answer was there")]
    Broken {
        /// Where.
        endpoint: Endpoint,
        /// How.
        #[source]
        source: hyper::Error,
    },
    /// What is asked cannot be said in a request.
    #[error("`{value}` cannot be sent as the {what}")]
    Unsendable {
        /// What the value is.
        what: &'static str,
        /// The value.
        value: String,
    },
    /// The server did not run the function.
    #[error("{endpoint} answered {status} {name}: {message}")]
    Refused {
        /// Where.
        endpoint: Endpoint,
        /// The HTTP status.
        status: u16,
        /// What the API calls this error, or HTTP calls the status.
        name: String,
        /// The server's words.
        message: String,
    },
    /// The answer is longer than any of Lambda's.
    #[error("{endpoint} answered with more than {limit} bytes")]
    TooLong {
        /// Where.
        endpoint: Endpoint,
        /// How much would have been taken.
        limit: usize,
    },
    /// The answer is not what the API describes.
    #[error("what {endpoint} answered is not an event stream")]
    NotAStream {
        /// Where.
        endpoint: Endpoint,
    },
}

/// A server that is there answers its TCP port sooner.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// More than a whole answer of Lambda's can have, which is 6 MiB.
const ANSWER_LIMIT: usize = Payloads::LONGEST;
/// An error's words are cut here.
const MESSAGE_LIMIT: usize = 4 * 1024;

/// Posts an event and waits for the whole answer, for as long as the function takes.
///
/// Dropping the future ends the connection, not the invocation.
pub async fn invoke(endpoint: &Endpoint, event: Event) -> Result<Answer, PostError> {
    let response = post(endpoint, "2015-03-31", "invocations", event).await?;
    let (head, body) = response.into_parts();
    let payload = read(endpoint, body).await?;
    if !head.status.is_success() {
        return Err(refused(endpoint, head.status, &head.headers, &payload));
    }
    Ok(Answer {
        status: head.status.as_u16(),
        function_error: header(&head.headers, "x-amz-function-error"),
        executed_version: header(&head.headers, "x-amz-executed-version"),
        request_id: header(&head.headers, "x-amzn-requestid"),
        log_tail: header(&head.headers, "x-amz-log-result").and_then(|text| log_tail(&text)),
        payload,
    })
}

/// Posts an event and waits until the function begins to answer.
pub async fn invoke_streaming(
    endpoint: &Endpoint,
    event: Event,
) -> Result<StreamedAnswer, PostError> {
    let response = post(
        endpoint,
        "2021-11-15",
        "response-streaming-invocations",
        event,
    )
    .await?;
    let (head, body) = response.into_parts();
    if !head.status.is_success() {
        let message = read(endpoint, body).await?;
        return Err(refused(endpoint, head.status, &head.headers, &message));
    }
    Ok(StreamedAnswer {
        executed_version: header(&head.headers, "x-amz-executed-version"),
        request_id: header(&head.headers, "x-amzn-requestid"),
        endpoint: endpoint.clone(),
        body,
        decoder: MessageFrameDecoder::new(),
        received: BytesMut::new(),
        pieces: VecDeque::new(),
        ended: false,
    })
}

impl StreamedAnswer {
    /// Waits for the next piece; nothing comes after [`Piece::Complete`].
    pub async fn next(&mut self) -> Result<Option<Piece>, PostError> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                self.ended = matches!(piece, Piece::Complete { .. });
                return Ok(Some(piece));
            }
            if self.ended {
                return Ok(None);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.received.extend_from_slice(data);
                        self.decode()?;
                    }
                }
                Some(Err(source)) => {
                    return Err(PostError::Broken {
                        endpoint: self.endpoint.clone(),
                        source,
                    });
                }
                None => return Err(self.not_a_stream()),
            }
        }
    }

    fn decode(&mut self) -> Result<(), PostError> {
        while self.received.has_remaining() {
            match self.decoder.decode_frame(&mut self.received) {
                Ok(DecodedFrame::Complete(message)) => {
                    let piece = read_piece(&message).ok_or_else(|| self.not_a_stream())?;
                    self.pieces.push_back(piece);
                }
                Ok(DecodedFrame::Incomplete) => break,
                Err(_) => return Err(self.not_a_stream()),
            }
        }
        Ok(())
    }

    fn not_a_stream(&self) -> PostError {
        PostError::NotAStream {
            endpoint: self.endpoint.clone(),
        }
    }
}

fn read_piece(message: &Message) -> Option<Piece> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Complete {
        error_code: Option<String>,
        error_details: Option<String>,
        log_result: Option<String>,
    }
    let event = message
        .headers()
        .iter()
        .find(|header| header.name().as_str() == ":event-type")?;
    match event.value().as_string().ok()?.as_str() {
        "PayloadChunk" => Some(Piece::Chunk(message.payload().clone())),
        "InvokeComplete" => {
            let complete: Complete = serde_json::from_slice(message.payload()).ok()?;
            Some(Piece::Complete {
                error: complete
                    .error_code
                    .map(|code| (code, complete.error_details.unwrap_or_default())),
                log_tail: complete.log_result.and_then(|text| log_tail(&text)),
            })
        }
        _ => None,
    }
}

fn log_tail(text: &str) -> Option<Bytes> {
    STANDARD.decode(text).ok().map(Bytes::from)
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers
        .get(name)
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

async fn post(
    endpoint: &Endpoint,
    version: &str,
    operation: &str,
    event: Event,
) -> Result<Response<Incoming>, PostError> {
    let request = request(endpoint, version, operation, event)?;
    let connecting = TcpStream::connect((endpoint.host(), endpoint.port()));
    let stream = match tokio::time::timeout(CONNECT_PATIENCE, connecting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(source)) if source.kind() == io::ErrorKind::ConnectionRefused => {
            return Err(PostError::NobodyListens {
                endpoint: endpoint.clone(),
            });
        }
        Ok(Err(source)) => {
            return Err(PostError::Connect {
                endpoint: endpoint.clone(),
                source,
            });
        }
        Err(_) => {
            return Err(PostError::Connect {
                endpoint: endpoint.clone(),
                source: io::ErrorKind::TimedOut.into(),
            });
        }
    };
    let broken = |source| PostError::Broken {
        endpoint: endpoint.clone(),
        source,
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    // It ends when the answer has been read or dropped; how it broke is told by the answer too.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(broken)
}

fn request(
    endpoint: &Endpoint,
    version: &str,
    operation: &str,
    event: Event,
) -> Result<Request<Full<Bytes>>, PostError> {
    let unsendable = |what, value: &str| PostError::Unsendable {
        what,
        value: value.to_owned(),
    };
    let path = format!(
        "/{version}/functions/{}/{operation}",
        percent_encoded(&event.function)
    );
    let uri: Uri = path
        .parse()
        .map_err(|_| unsendable("function's name", &event.function))?;
    let mut request = Request::post(uri)
        .body(Full::new(event.payload))
        .map_err(|_| unsendable("function's name", &event.function))?;
    let headers = request.headers_mut();
    let mut set = |name: &'static str, what, value: &str| {
        let text = HeaderValue::from_str(value).map_err(|_| unsendable(what, value))?;
        headers.insert(name, text);
        Ok::<(), PostError>(())
    };
    set(HOST.as_str(), "host", endpoint.authority.as_str())?;
    set(CONTENT_TYPE.as_str(), "content type", event.content_type)?;
    match event.invocation_type {
        InvocationType::RequestResponse => {}
        InvocationType::Event => set("x-amz-invocation-type", "invocation type", "Event")?,
        InvocationType::DryRun => set("x-amz-invocation-type", "invocation type", "DryRun")?,
    }
    if event.log_tail {
        set("x-amz-log-type", "log type", "Tail")?;
    }
    if let Some(context) = event.client_context {
        set(
            "x-amz-client-context",
            "client context",
            &STANDARD.encode(context),
        )?;
    }
    if let Some(tenant) = event.tenant_id {
        set("x-amz-tenant-id", "tenant id", &tenant)?;
    }
    Ok(request)
}

/// A text as one segment of a path (RFC 3986, section 3.3).
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let hex = |nibble: u8| {
                char::from_digit(u32::from(nibble), 16)
                    .unwrap_or_default()
                    .to_ascii_uppercase()
            };
            encoded.extend(['%', hex(byte >> 4), hex(byte & 15)]);
        }
    }
    encoded
}

/// All of an answer.
async fn read(endpoint: &Endpoint, mut body: Incoming) -> Result<Bytes, PostError> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|source| PostError::Broken {
            endpoint: endpoint.clone(),
            source,
        })?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        if whole.len() + data.len() > ANSWER_LIMIT {
            return Err(PostError::TooLong {
                endpoint: endpoint.clone(),
                limit: ANSWER_LIMIT,
            });
        }
        whole.extend_from_slice(data);
    }
    Ok(whole.freeze())
}

fn refused(endpoint: &Endpoint, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> PostError {
    #[derive(Deserialize)]
    struct Words {
        #[serde(alias = "Message")]
        message: String,
    }
    // Some of AWS's servers put an address after the name: `NAME:http://…`.
    let name = header(headers, "x-amzn-errortype")
        .and_then(|name| name.split(':').next().map(str::to_owned))
        .unwrap_or_else(|| {
            status
                .canonical_reason()
                .unwrap_or("without a reason")
                .to_owned()
        });
    let message = serde_json::from_slice::<Words>(body).map_or_else(
        |_| String::from_utf8_lossy(&body[..body.len().min(MESSAGE_LIMIT)]).into_owned(),
        |words| words.message,
    );
    PostError::Refused {
        endpoint: endpoint.clone(),
        status: status.as_u16(),
        name,
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_plain() {
        for (text, expected) in [
            ("http://127.0.0.1:9000", Some(("127.0.0.1", 9000))),
            ("http://127.0.0.1:9000/", Some(("127.0.0.1", 9000))),
            ("http://[::1]:8080", Some(("::1", 8080))),
            ("http://localhost", Some(("localhost", 80))),
            ("https://127.0.0.1:9000", None),
            ("http://127.0.0.1:9000/2015-03-31", None),
            ("http://me@127.0.0.1:9000", None),
            ("127.0.0.1:9000", None),
            ("localhost", None),
            ("/", None),
            ("", None),
        ] {
            let found = text.parse::<Endpoint>();
            match (found, expected) {
                (Ok(found), Some(expected)) => {
                    assert_eq!((found.host(), found.port()), expected);
                }
                (Err(wrong), None) => assert_eq!(
                    wrong.to_string(),
                    format!("`{text}` is not of the form http://HOST:PORT")
                ),
                (found, expected) => panic!("{found:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn names_are_one_segment_of_a_path() {
        assert_eq!(
            percent_encoded("arn:aws:lambda:a/b?é~$LATEST"),
            "arn%3Aaws%3Alambda%3Aa%2Fb%3F%C3%A9~%24LATEST"
        );
    }

    #[test]
    fn refusals_are_told_in_the_words_of_the_server() {
        let endpoint: Endpoint = "http://127.0.0.1:9000".parse().unwrap();
        for (error_type, body, expected) in [
            (
                Some("InvalidRuntimeException:http://example"),
                r#"{"Type":"User","Message":"no"}"#,
                "http://127.0.0.1:9000 answered 502 InvalidRuntimeException: no",
            ),
            (
                Some("ValidationException"),
                r#"{"message":"bad"}"#,
                "http://127.0.0.1:9000 answered 502 ValidationException: bad",
            ),
            (
                None,
                "<html>",
                "http://127.0.0.1:9000 answered 502 Bad Gateway: <html>",
            ),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(error_type) = error_type {
                headers.insert("x-amzn-errortype", error_type.parse().unwrap());
            }
            let error = refused(
                &endpoint,
                StatusCode::BAD_GATEWAY,
                &headers,
                body.as_bytes(),
            );
            assert_eq!(error.to_string(), expected);
        }
    }
}
