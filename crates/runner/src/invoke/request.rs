//! Decides what a client asks for, from the head of its request. Nothing is done here.

use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, ORIGIN};
use hyper::http::request::Parts;
use hyper::{Method, Uri};

use super::fault::InvokeFault;
use super::payload::{EVENT_LIMIT, SYNCHRONOUS_LIMIT};

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// How to use this server.
    Usage,
    /// The function.
    Invoke(InvokeRequest),
}

/// An invocation that is asked for, but for its event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InvokeRequest {
    pub(crate) operation: Operation,
    pub(crate) invocation_type: InvocationType,
    /// Whether the end of the log is wanted too.
    pub(crate) log_tail: bool,
    pub(crate) qualifier: Option<String>,
    /// Decoded.
    pub(crate) client_context: Option<String>,
    pub(crate) trace_id: Option<String>,
    pub(crate) tenant_id: Option<String>,
    pub(crate) content_type: String,
}

impl InvokeRequest {
    /// How many bytes the event may have.
    pub(crate) fn payload_limit(&self) -> usize {
        match self.invocation_type {
            InvocationType::Event => EVENT_LIMIT,
            InvocationType::RequestResponse | InvocationType::DryRun => SYNCHRONOUS_LIMIT,
        }
    }
}

/// How the answer shall come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// As a whole.
    Invoke,
    /// In an event stream.
    InvokeWithResponseStream,
}

/// `X-Amz-Invocation-Type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InvocationType {
    /// Wait for the answer.
    RequestResponse,
    /// Do not.
    Event,
    /// Only look whether it would be taken.
    DryRun,
}

/// What runs here, as far as requests are judged by it.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    /// The function's name. `function` means that nobody gave it one, so it answers to every name.
    pub(crate) name: String,
    /// Host names beside loopback's and addresses.
    pub(crate) hosts: Vec<String>,
}

/// The name that the emulators have for every function.
const ANY_FUNCTION: &str = "function";

/// Judges the head of a request.
pub(crate) fn read(head: &Parts, known: &Known) -> Result<Asked, InvokeFault> {
    judge_sender(&head.uri, &head.headers, &known.hosts)?;
    let path = head.uri.path();
    if path == "/" && matches!(head.method, Method::GET | Method::HEAD) {
        return Ok(Asked::Usage);
    }
    let (operation, name) =
        route(path).ok_or_else(|| InvokeFault::NoSuchPath(path.to_owned(), known.name.clone()))?;
    if head.method != Method::POST {
        return Err(InvokeFault::WrongMethod(head.method.to_string()));
    }
    let name = percent_decoded(name).ok_or_else(|| bad_name(name))?;
    let in_name = judge_name(&name, &known.name)?;
    let in_query = qualifier(head.uri.query())?;
    let qualifier = match (in_name, in_query) {
        (Some(one), Some(other)) if one != other => return Err(InvokeFault::TwoQualifiers),
        (one, other) => one.or(other),
    };
    let headers = &head.headers;
    Ok(Asked::Invoke(InvokeRequest {
        operation,
        invocation_type: invocation_type(headers, operation)?,
        log_tail: log_tail(headers)?,
        qualifier,
        client_context: client_context(headers)?,
        trace_id: text(headers, "x-amzn-trace-id"),
        tenant_id: tenant_id(headers)?,
        content_type: headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("application/json")
            .to_owned(),
    }))
}

/// Refuses what a web page could have sent: it can make a browser post anywhere, and lead a name of
/// its own to this address, but it cannot make the browser leave out who asks.
fn judge_sender(uri: &Uri, headers: &HeaderMap, hosts: &[String]) -> Result<(), InvokeFault> {
    if let Some(origin) = headers.get(ORIGIN) {
        return Err(InvokeFault::WebPage(
            String::from_utf8_lossy(origin.as_bytes()).into_owned(),
        ));
    }
    let in_headers = headers
        .get_all(HOST)
        .iter()
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let in_uri = uri.authority().map(|authority| authority.to_string());
    for host in in_headers.chain(in_uri) {
        if !is_own_host(&host, hosts) {
            return Err(InvokeFault::ForeignHost(host));
        }
    }
    Ok(())
}

/// Whether `host`, perhaps with a port, is an address, `localhost`, or one of `hosts`.
fn is_own_host(host: &str, hosts: &[String]) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        return rest
            .split_once(']')
            .is_some_and(|(address, _)| address.parse::<Ipv6Addr>().is_ok());
    }
    let name = host.split_once(':').map_or(host, |(name, _)| name);
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name.parse::<Ipv4Addr>().is_ok()
        || name == "localhost"
        || name.ends_with(".localhost")
        || hosts.iter().any(|own| own.eq_ignore_ascii_case(&name))
}

/// The operation of a path and the function's name in it, as it is written there.
fn route(path: &str) -> Option<(Operation, &str)> {
    let (version, rest) = path.strip_prefix('/')?.split_once("/functions/")?;
    let (name, operation) = rest.split_once('/')?;
    // Some clients end paths with a slash, as the service allows.
    let operation = operation.strip_suffix('/').unwrap_or(operation);
    let operation = match (version, operation) {
        ("2015-03-31", "invocations") => Operation::Invoke,
        ("2021-11-15", "response-streaming-invocations") => Operation::InvokeWithResponseStream,
        _ => return None,
    };
    Some((operation, name))
}

fn bad_name(name: &str) -> InvokeFault {
    InvokeFault::Invalid {
        value: name.to_owned(),
        member: "functionName",
        constraint: "Member must satisfy regular expression pattern: \
             (arn:(aws[a-zA-Z-]*)?:lambda:)?([a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\\d{1}:)?\
             (\\d{12}:)?(function:)?([a-zA-Z0-9-_\\.]+)(:(\\$LATEST(\\.PUBLISHED)?|[a-zA-Z0-9-_]+))?",
    }
}

/// Whether the function that runs here has this name, and the qualifier in it.
///
/// A name is `NAME`, `ACCOUNT:function:NAME`, or an ARN, with or without `:QUALIFIER`. Account and
/// region of it are not looked at: there is one function here.
fn judge_name(asked: &str, own: &str) -> Result<Option<String>, InvokeFault> {
    let (name, qualifier) = split_name(asked).ok_or_else(|| bad_name(asked))?;
    if own == ANY_FUNCTION || name == own || name == ANY_FUNCTION {
        return Ok(qualifier.map(str::to_owned));
    }
    Err(InvokeFault::NoSuchFunction {
        asked: asked.to_owned(),
        runs: own.to_owned(),
    })
}

/// The name and the qualifier of a function's name in any of its forms.
fn split_name(asked: &str) -> Option<(&str, Option<&str>)> {
    let parts: Vec<&str> = asked.split(':').collect();
    let own = match parts.as_slice() {
        [
            "arn",
            partition,
            "lambda",
            region,
            account,
            "function",
            own @ ..,
        ] if partition.starts_with("aws") && is_region(region) && is_account(account) => own,
        [region, account, "function", own @ ..] if is_region(region) && is_account(account) => own,
        [account, "function", own @ ..] if is_account(account) => own,
        // `function` is a name here before it is a part of an ARN.
        ["function", own @ ..] if own.len() == 2 => own,
        own => own,
    };
    match own {
        [name] if is_name(name) => Some((name, None)),
        [name, qualifier] if is_name(name) && is_qualifier(qualifier) => {
            Some((name, Some(qualifier)))
        }
        _ => None,
    }
}

fn is_region(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_name(text: &str) -> bool {
    (1..=256).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

fn is_qualifier(text: &str) -> bool {
    matches!(text, "$LATEST" | "$LATEST.PUBLISHED")
        || ((1..=128).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')))
}

fn qualifier(query: Option<&str>) -> Result<Option<String>, InvokeFault> {
    let value = query
        .unwrap_or_default()
        .split('&')
        .find_map(|pair| pair.strip_prefix("Qualifier="));
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    match percent_decoded(value) {
        Some(qualifier) if is_qualifier(&qualifier) => Ok(Some(qualifier)),
        _ => Err(InvokeFault::Invalid {
            value: value.to_owned(),
            member: "qualifier",
            constraint: "Member must satisfy regular expression pattern: \
                         \\$(LATEST(\\.PUBLISHED)?)|[a-zA-Z0-9-_$]+",
        }),
    }
}

fn invocation_type(
    headers: &HeaderMap,
    operation: Operation,
) -> Result<InvocationType, InvokeFault> {
    let value = text(headers, "x-amz-invocation-type");
    match (value.as_deref(), operation) {
        (None | Some("RequestResponse"), _) => Ok(InvocationType::RequestResponse),
        (Some("DryRun"), _) => Ok(InvocationType::DryRun),
        (Some("Event"), Operation::Invoke) => Ok(InvocationType::Event),
        (Some(value), operation) => Err(InvokeFault::Invalid {
            value: value.to_owned(),
            member: "invocationType",
            constraint: match operation {
                Operation::Invoke => {
                    "Member must satisfy enum value set: [DryRun, RequestResponse, Event]"
                }
                Operation::InvokeWithResponseStream => {
                    "Member must satisfy enum value set: [DryRun, RequestResponse]"
                }
            },
        }),
    }
}

fn log_tail(headers: &HeaderMap) -> Result<bool, InvokeFault> {
    match text(headers, "x-amz-log-type").as_deref() {
        None | Some("None") => Ok(false),
        Some("Tail") => Ok(true),
        Some(value) => Err(InvokeFault::Invalid {
            value: value.to_owned(),
            member: "logType",
            constraint: "Member must satisfy enum value set: [Tail, None]",
        }),
    }
}

/// `Up to 3,583 bytes of base64-encoded data`, says the API's description of `ClientContext`.
const CLIENT_CONTEXT_LIMIT: usize = 3_583;

fn client_context(headers: &HeaderMap) -> Result<Option<String>, InvokeFault> {
    let Some(value) = headers.get("x-amz-client-context") else {
        return Ok(None);
    };
    if value.len() > CLIENT_CONTEXT_LIMIT {
        return Err(InvokeFault::LongClientContext(value.len()));
    }
    let text = STANDARD
        .decode(value.as_bytes())
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or(InvokeFault::BadClientContext)?;
    serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&text)
        .map_err(|_| InvokeFault::BadClientContext)?;
    Ok(Some(text))
}

fn tenant_id(headers: &HeaderMap) -> Result<Option<String>, InvokeFault> {
    let Some(value) = text(headers, "x-amz-tenant-id") else {
        return Ok(None);
    };
    let fits = (1..=256).contains(&value.len())
        && value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._:/=+-@ ".contains(&byte));
    if fits {
        return Ok(Some(value));
    }
    Err(InvokeFault::Invalid {
        value,
        member: "tenantId",
        constraint: "Member must satisfy regular expression pattern: [a-zA-Z0-9\\._:\\/=+\\-@ ]+",
    })
}

/// A header as text; bytes that are none are shown as such.
fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers
        .get(name)
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// `text` without its percent-encoding (RFC 3986, section 2.1): SDKs encode the colons of an ARN.
fn percent_decoded(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let high = char::from(rest.next()?).to_digit(16)?;
            let low = char::from(rest.next()?).to_digit(16)?;
            decoded.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}
