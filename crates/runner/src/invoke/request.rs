//! Decides what a client asks for, from the head of its request. Nothing is done here.

use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, ORIGIN};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use hyper::{Method, Uri};

use super::fault::InvokeFault;
use crate::function::Payloads;

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
    /// Decoded, as JSON that fits in a header.
    pub(crate) client_context: Option<String>,
    pub(crate) trace_id: Option<String>,
    pub(crate) tenant_id: Option<String>,
    pub(crate) content_type: String,
}

impl InvokeRequest {
    /// How many bytes the event may have.
    pub(crate) fn payload_limit(&self, payloads: Payloads) -> usize {
        match self.invocation_type {
            InvocationType::Event => Payloads::ASYNCHRONOUS,
            InvocationType::RequestResponse | InvocationType::DryRun => payloads.synchronous(),
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
        // What is no text is made up anew.
        trace_id: headers
            .get("x-amzn-trace-id")
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned),
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
    let in_uri = uri.authority().map(ToString::to_string);
    for host in in_headers.chain(in_uri) {
        if !is_own_host(&host, hosts) {
            return Err(InvokeFault::ForeignHost(host));
        }
    }
    Ok(())
}

/// Whether `host`, perhaps with a port, is an address, `localhost`, or one of `hosts`.
fn is_own_host(host: &str, hosts: &[String]) -> bool {
    let Ok(authority) = host.parse::<Authority>() else {
        return false;
    };
    let name = authority.host();
    if let Some(address) = name.strip_prefix('[') {
        return address
            .strip_suffix(']')
            .is_some_and(|address| address.parse::<Ipv6Addr>().is_ok());
    }
    // A full stop at the end makes a name absolute, and no other.
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
    Ok(Some(in_a_header(&text)))
}

/// JSON as it was, but with nothing in it that a header cannot carry: the Runtime API hands it over
/// in one.
fn in_a_header(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            ' '..='~' => safe.push(character),
            // Only between values: inside of texts, JSON has them escaped (RFC 8259, section 7).
            '\n' | '\r' | '\t' => safe.push(' '),
            // Only inside of texts.
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    safe.push_str("\\u");
                    safe.extend((0..4).rev().filter_map(|digit| {
                        char::from_digit(u32::from(*unit) >> (4 * digit) & 15, 16)
                    }));
                }
            }
        }
    }
    safe
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

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    const INVOKE: &str = "/2015-03-31/functions/function/invocations";
    const STREAM: &str = "/2021-11-15/functions/function/response-streaming-invocations";

    fn judge(
        method: &str,
        uri: &str,
        headers: &[(&str, &str)],
        name: &str,
    ) -> Result<Asked, InvokeFault> {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        let known = Known {
            name: name.to_owned(),
            hosts: vec!["build.example".to_owned()],
        };
        read(&head, &known)
    }

    fn asked(uri: &str, headers: &[(&str, &str)]) -> Result<InvokeRequest, InvokeFault> {
        judge("POST", uri, headers, "function").map(|asked| match asked {
            Asked::Invoke(asked) => asked,
            Asked::Usage => panic!("an invocation was asked for"),
        })
    }

    #[test]
    fn a_plain_request_asks_for_an_answer() {
        assert_eq!(
            asked(INVOKE, &[]).unwrap(),
            InvokeRequest {
                operation: Operation::Invoke,
                invocation_type: InvocationType::RequestResponse,
                log_tail: false,
                qualifier: None,
                client_context: None,
                trace_id: None,
                tenant_id: None,
                content_type: "application/json".to_owned(),
            }
        );
    }

    #[test]
    fn headers_say_how_it_is_invoked() {
        let found = asked(
            &format!("{INVOKE}?Qualifier=%24LATEST"),
            &[
                ("X-Amz-Invocation-Type", "Event"),
                ("X-Amz-Log-Type", "Tail"),
                ("X-Amz-Client-Context", "eyJhIjoxfQ=="),
                ("X-Amzn-Trace-Id", "Root=1-2-3"),
                ("X-Amz-Tenant-Id", "blue team/1"),
                ("Content-Type", "text/plain"),
                ("Authorization", "AWS4-HMAC-SHA256 Credential=anything"),
            ],
        );
        assert_eq!(
            found.unwrap(),
            InvokeRequest {
                operation: Operation::Invoke,
                invocation_type: InvocationType::Event,
                log_tail: true,
                qualifier: Some("$LATEST".to_owned()),
                client_context: Some("{\"a\":1}".to_owned()),
                trace_id: Some("Root=1-2-3".to_owned()),
                tenant_id: Some("blue team/1".to_owned()),
                content_type: "text/plain".to_owned(),
            }
        );
        let found = asked(STREAM, &[("X-Amz-Invocation-Type", "DryRun")]).unwrap();
        assert_eq!(found.operation, Operation::InvokeWithResponseStream);
        assert_eq!(found.invocation_type, InvocationType::DryRun);
    }

    #[test]
    fn headers_that_make_no_sense_are_refused_in_the_words_of_the_service() {
        let long = "A".repeat(CLIENT_CONTEXT_LIMIT + 1);
        for (path, name, value, expected, message) in [
            (
                INVOKE,
                "X-Amz-Invocation-Type",
                "event",
                "ValidationException",
                "1 validation error detected: Value 'event' at 'invocationType' failed to satisfy \
                 constraint: Member must satisfy enum value set: [DryRun, RequestResponse, Event]",
            ),
            (
                STREAM,
                "X-Amz-Invocation-Type",
                "Event",
                "ValidationException",
                "[DryRun, RequestResponse]",
            ),
            (
                INVOKE,
                "X-Amz-Log-Type",
                "tail",
                "ValidationException",
                "at 'logType'",
            ),
            (
                INVOKE,
                "X-Amz-Tenant-Id",
                "a*b",
                "ValidationException",
                "at 'tenantId'",
            ),
            (
                INVOKE,
                "X-Amz-Client-Context",
                "e",
                "InvalidRequestContentException",
                "Client context must be a valid Base64-encoded JSON object.",
            ),
            (
                INVOKE,
                "X-Amz-Client-Context",
                "MTI=",
                "InvalidRequestContentException",
                "Client context must be a valid Base64-encoded JSON object.",
            ),
            (
                INVOKE,
                "X-Amz-Client-Context",
                &long,
                "InvalidRequestContentException",
                "no longer than 3583 bytes",
            ),
        ] {
            let fault = asked(path, &[(name, value)]).unwrap_err();
            assert_eq!((fault.status(), fault.name()), (400, expected), "{name}");
            assert!(fault.to_string().contains(message), "{fault}");
        }
    }

    #[test]
    fn a_function_has_many_names() {
        for (name, qualifier) in [
            ("function", None),
            ("orders", None),
            ("orders:live", Some("live")),
            ("orders%3Alive", Some("live")),
            ("orders:$LATEST", Some("$LATEST")),
            ("function:orders:7", Some("7")),
            ("012345678912:function:orders", None),
            ("us-east-1:012345678912:function:orders:7", Some("7")),
            (
                "arn:aws:lambda:eu-west-1:012345678912:function:orders",
                None,
            ),
            (
                "arn%3Aaws-us-gov%3Alambda%3Aus-gov-west-1%3A012345678912%3Afunction%3Aorders%3Alive",
                Some("live"),
            ),
        ] {
            let uri = format!("/2015-03-31/functions/{name}/invocations");
            match judge("POST", &uri, &[], "orders") {
                Ok(Asked::Invoke(asked)) => assert_eq!(asked.qualifier.as_deref(), qualifier),
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for name in [
            "",
            "a%20b",
            "a%2",
            "a%zz",
            "%ff",
            "a:b:c",
            "orders:",
            ":live",
            "arn:aws:s3:eu-west-1:012345678912:function:orders",
            "arn:aws:lambda:eu-west-1:12:function:orders",
            "arn:aws:lambda:eu-west-1:012345678912:layer:orders",
        ] {
            let fault = asked(&format!("/2015-03-31/functions/{name}/invocations"), &[]);
            let fault = fault.unwrap_err();
            assert_eq!(
                (fault.status(), fault.name()),
                (400, "ValidationException"),
                "{name}"
            );
        }
        let long = "a".repeat(257);
        asked(&format!("/2015-03-31/functions/{long}/invocations"), &[]).unwrap_err();
    }

    #[test]
    fn a_function_with_a_name_is_no_other() {
        let other = "/2015-03-31/functions/other/invocations";
        assert!(judge("POST", other, &[], "function").is_ok());
        assert_eq!(
            judge("POST", other, &[], "orders").unwrap_err(),
            InvokeFault::NoSuchFunction {
                asked: "other".to_owned(),
                runs: "orders".to_owned()
            }
        );
        assert!(judge("POST", INVOKE, &[], "orders").is_ok());
    }

    #[test]
    fn qualifiers_agree() {
        for (uri, expected) in [
            ("function:a/invocations?Qualifier=a", Ok(Some("a"))),
            ("function/invocations?Qualifier=", Ok(None)),
            ("function/invocations?x=1&Qualifier=b-2", Ok(Some("b-2"))),
            (
                "function:a/invocations?Qualifier=b",
                Err("InvalidParameterValueException"),
            ),
            (
                "function/invocations?Qualifier=a%20b",
                Err("ValidationException"),
            ),
        ] {
            let found = asked(&format!("/2015-03-31/functions/{uri}"), &[]);
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.qualifier.as_deref(), expected),
                (Err(found), Err(expected)) => assert_eq!(found.name(), expected),
                (found, expected) => panic!("{uri}: {found:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn there_are_few_paths() {
        for (method, path, expected) in [
            ("GET", "/", Ok(())),
            ("HEAD", "/", Ok(())),
            (
                "POST",
                "/2015-03-31/functions/function/invocations/",
                Ok(()),
            ),
            ("POST", "/", Err(404)),
            ("GET", "/favicon.ico", Err(404)),
            ("POST", "/2015-03-31/functions/function", Err(404)),
            ("POST", "/2015-03-31/functions/a/b/invocations", Err(404)),
            (
                "POST",
                "/2021-11-15/functions/function/invocations",
                Err(404),
            ),
            ("GET", INVOKE, Err(405)),
            ("PUT", STREAM, Err(405)),
        ] {
            let found = judge(method, path, &[], "function");
            let found = found.map(|_| ()).map_err(|fault| fault.status());
            assert_eq!(found, expected, "{method} {path}");
        }
    }

    #[test]
    fn web_pages_are_refused() {
        for (uri, name, value, is_own) in [
            (INVOKE, "Host", "127.0.0.1:9000", true),
            (INVOKE, "Host", "192.168.0.7", true),
            (INVOKE, "Host", "[::1]:9000", true),
            (INVOKE, "Host", "LOCALHOST:9000", true),
            (INVOKE, "Host", "lambda.localhost", true),
            (INVOKE, "Host", "build.example:9000", true),
            (INVOKE, "Host", "evil.example:9000", false),
            (INVOKE, "Host", "127.0.0.1.evil.example", false),
            (INVOKE, "Host", "notlocalhost", false),
            (INVOKE, "Host", "localhost.:9000", true),
            (INVOKE, "Host", "localhost:9000@evil.example", false),
            (INVOKE, "Host", "localhost/evil", false),
            (INVOKE, "Host", "[evil]", false),
            (INVOKE, "Host", "", false),
            (INVOKE, "Origin", "http://127.0.0.1:9000", false),
            (INVOKE, "Origin", "null", false),
            ("http://evil.example/", "Host", "127.0.0.1", false),
        ] {
            let found = judge("POST", uri, &[(name, value)], "function");
            let status = found.err().map(|fault| fault.status());
            assert_eq!(status, (!is_own).then_some(403), "{name}: {value}");
        }
    }

    #[test]
    fn a_client_context_fits_in_a_header() {
        for (json, expected) in [
            ("{\"a\": \"b\"}", "{\"a\": \"b\"}"),
            ("{\r\n\t\"a\":1\n}", "{   \"a\":1 }"),
            (
                "{\"\u{e9}\":\"\u{1f680}\u{7f}\"}",
                "{\"\\u00e9\":\"\\ud83d\\ude80\\u007f\"}",
            ),
        ] {
            let found = in_a_header(json);
            assert_eq!(found, expected);
            let value = |text| serde_json::from_str::<serde_json::Value>(text).unwrap();
            assert_eq!(value(&found), value(json));
        }
    }
}
