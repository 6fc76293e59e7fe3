//! What can go wrong between here and a registry.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use tierce_image::{BoxError, OpenBlobError};
use tierce_oci::{Digest, ParseDocumentError, Repository, Selector};

use crate::endpoint::{BadRegistryName, Distrust};
use crate::retry::Tally;
use crate::secret::KnownSecrets;
use crate::settings::SettingsError;

/// Why an operation on a registry failed.
///
/// What is worth a hint can be asked for by the `is_…` methods; they look through the wrapping of
/// token requests. No text here holds a secret: URLs are shown without their query, and the
/// registry's own words without control characters and without what it was shown of us.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The registry's name cannot stand in a URL.
    #[error(transparent)]
    Name(#[from] BadRegistryName),
    /// What is settled about a host makes no sense.
    #[error("the settings for {host} cannot be used")]
    Settings {
        /// Which host.
        host: String,
        /// What is wrong with them.
        #[source]
        source: Box<SettingsError>,
    },
    /// A mirror has other bytes than those that were asked for.
    #[error("what mirror {mirror} has as {digest} is something else")]
    SpoiltMirror {
        /// The mirror's host.
        mirror: String,
        /// What was asked for.
        digest: Digest,
    },
    /// TLS could not be set up on this side.
    #[error("could not set up TLS")]
    Setup(#[source] Cause),
    /// No answer came, or it broke off.
    #[error(transparent)]
    Connection(Box<ConnectionFailure>),
    /// An answer came, and it was no.
    #[error(transparent)]
    Answer(Box<Answer>),
    /// Who we are is not known there, or not enough.
    #[error(transparent)]
    Unauthorized(Box<Refusal>),
    /// The token that the registry asks for could not be had.
    #[error("could not get a token for registry {registry}")]
    Token {
        /// Which registry.
        registry: String,
        /// What the token server did.
        #[source]
        source: Box<RegistryError>,
    },
    /// The credentials kept on this side could not be read.
    #[error("could not get the credentials for registry {registry}")]
    Credentials {
        /// Which registry.
        registry: String,
        /// What the [`CredentialSource`](crate::CredentialSource) said.
        #[source]
        source: BoxError,
    },
    /// A success that makes no sense.
    #[error(transparent)]
    BadAnswer(Box<BadAnswer>),
    /// What came is not a manifest or index.
    #[error("the manifest `{selector}` of {repository} cannot be used")]
    Document {
        /// The repository.
        repository: Repository,
        /// Which manifest was asked for.
        selector: Selector,
        /// Why it is none.
        #[source]
        source: Box<ParseDocumentError>,
    },
    /// The other end of a transfer: the blob that was to be sent could not be read.
    #[error(transparent)]
    Source(OpenBlobError),
}

/// A request, as it is told to people: without its query, which may be a signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestLine {
    /// `GET`, `PUT` and the like.
    pub method: String,
    /// The path.
    pub path: String,
}

impl fmt::Display for RequestLine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.method, self.path)
    }
}

/// The innermost cause of a failure of the HTTP client, as text.
///
/// Only the text is kept: the client's own errors repeat the URL, signatures included, and wrap the
/// one telling line in four that say nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Cause(String);

impl Cause {
    pub(crate) fn of(error: &(dyn Error + 'static)) -> Self {
        Self(chain(error).last().unwrap_or(error).to_string())
    }

    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether the peer's certificate was looked at and refused.
    pub(crate) fn is_about_certificate(&self) -> bool {
        self.0.contains("certificate")
    }

    /// Whether what came could not be read as an answer of HTTP.
    ///
    /// The HTTP client gives its kinds of errors away by their texts only.
    fn is_about_protocol(&self) -> bool {
        self.0.starts_with("invalid HTTP ")
            || matches!(
                self.0.as_str(),
                "invalid content-length parsed"
                    | "invalid transfer-encoding parsed"
                    | "unexpected transfer-encoding parsed"
                    | "message head is too large"
                    // It spoke before it was asked, as servers of mail and SSH do.
                    | "received unexpected message from connection"
            )
    }
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

/// An I/O error and those inside it, which `source` leaps over.
fn io_errors<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a io::Error> {
    std::iter::successors(error.downcast_ref::<io::Error>(), |error| {
        error.get_ref()?.downcast_ref()
    })
}

/// At which step a connection failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The host's name has no address.
    Resolve,
    /// Nobody listens there, or no way leads there.
    Connect,
    /// No agreement on TLS, or no trust in the certificate.
    Tls,
    /// What came is not HTTP.
    Protocol,
    /// Nothing came for too long.
    Wait,
    /// The connection ended early.
    Transfer,
}

/// No answer came, or it broke off.
#[derive(Debug, Clone)]
pub struct ConnectionFailure {
    /// With whom.
    pub host: String,
    /// During which request.
    pub request: RequestLine,
    /// At which step.
    pub step: Step,
    /// What the network said.
    pub cause: Cause,
    /// How often it was tried.
    pub tally: Tally,
}

impl fmt::Display for ConnectionFailure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            host,
            request,
            tally,
            ..
        } = self;
        match self.step {
            Step::Resolve => write!(formatter, "could not find the address of {host}"),
            Step::Connect => write!(formatter, "could not connect to {host}"),
            Step::Tls => write!(formatter, "could not set up TLS with {host}"),
            Step::Protocol => write!(formatter, "what {host} answered to `{request}` is not HTTP"),
            Step::Wait => write!(formatter, "{host} did not go on with `{request}` in time"),
            Step::Transfer => write!(
                formatter,
                "the connection to {host} broke during `{request}`"
            ),
        }?;
        tally.fmt(formatter)
    }
}

impl Error for ConnectionFailure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.cause)
    }
}

impl ConnectionFailure {
    /// Whether a proxy did not lead to the host.
    pub fn is_about_proxy(&self) -> bool {
        // As hyper-util has it.
        self.cause.0.starts_with("tunnel error")
    }

    pub(crate) fn new(host: &str, request: &RequestLine, step: Step, cause: Cause) -> Self {
        Self {
            host: host.to_owned(),
            request: request.clone(),
            step,
            cause,
            tally: Tally::ONE,
        }
    }

    pub(crate) fn of(host: &str, request: &RequestLine, error: &reqwest::Error) -> Self {
        // A failed handshake comes as an I/O error of these kinds (tokio-rustls).
        let is_tls = || {
            chain(error).flat_map(io_errors).any(|error| {
                matches!(
                    error.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                )
            })
        };
        let cause = Cause::of(error);
        let step = if error.is_dns() {
            Step::Resolve
        } else if error.is_timeout() {
            Step::Wait
        } else if error.is_connect() {
            if is_tls() { Step::Tls } else { Step::Connect }
        } else if cause.is_about_protocol() {
            Step::Protocol
        } else {
            Step::Transfer
        };
        Self::new(host, request, step, cause)
    }
}

/// One error out of the body of an answer, verbatim but for control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported {
    /// `DENIED`, `NAME_UNKNOWN` and the like; also ones that no specification knows.
    pub code: String,
    /// What the registry adds for people; may be empty.
    pub message: String,
}

/// An answer with a status that is no success.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Who answered: the registry's name, or the host it had sent us to.
    pub host: String,
    /// Whether that was the registry itself.
    pub from_registry: bool,
    /// What was asked.
    pub request: RequestLine,
    /// The HTTP status.
    pub status: u16,
    /// The errors that the body lists; of servers that we were sent to, the first one's code only.
    pub errors: Vec<Reported>,
    /// The beginning of a body of the registry that lists none.
    pub excerpt: String,
    /// How long the server wishes us to wait.
    pub retry_after: Option<Duration>,
    /// How often it was tried.
    pub tally: Tally,
}

impl fmt::Display for Answer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.from_registry {
            formatter.write_str("registry ")?;
        }
        write!(formatter, "{} answered {}", self.host, self.status)?;
        if let Some(first) = self.errors.first().filter(|error| !error.code.is_empty()) {
            write!(formatter, " {}", first.code)?;
        }
        write!(formatter, " to `{}`{}", self.request, self.tally)?;
        let messages: Vec<_> = self
            .errors
            .iter()
            .enumerate()
            .map(
                |(position, error)| match (position, error.message.is_empty()) {
                    (_, true) => error.code.clone(),
                    (0, false) => error.message.clone(),
                    (_, false) => format!("{}: {}", error.code, error.message),
                },
            )
            .skip_while(|text| self.errors.len() == 1 && *text == self.errors[0].code)
            .collect();
        if !messages.is_empty() {
            write!(formatter, ": {}", messages.join("; "))
        } else if !self.excerpt.is_empty() {
            write!(formatter, ": {}", self.excerpt)
        } else {
            Ok(())
        }
    }
}

impl Error for Answer {}

/// The registry, or its token server, does not know us or does not let us.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The registry's name.
    pub registry: String,
    /// What was asked.
    pub request: RequestLine,
    /// Where the credentials that were shown came from; `None` when there were none to show.
    pub credentials: Option<String>,
    /// What the server said.
    pub answer: Answer,
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            registry, request, ..
        } = self;
        match &self.credentials {
            Some(origin) => write!(
                formatter,
                "registry {registry} refused `{request}` with the credentials from {origin}"
            ),
            None => write!(
                formatter,
                "registry {registry} wants credentials for `{request}`, and there are none for it"
            ),
        }
    }
}

impl Error for Refusal {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.answer)
    }
}

/// A success that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the answer of {host} to `{request}` cannot be used")]
pub struct BadAnswer {
    /// Who answered.
    pub host: String,
    /// What was asked.
    pub request: RequestLine,
    /// What is wrong with the answer.
    #[source]
    pub problem: Problem,
}

/// What makes an answer useless.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// An upload or redirect that leads nowhere.
    #[error("it has no usable `Location`")]
    NoLocation,
    /// It leads to where we must not go.
    #[error("it sends us to {host}")]
    Distrusted {
        /// To whom.
        host: String,
        /// Why not.
        #[source]
        source: Distrust,
    },
    /// Redirects without end.
    #[error("it is one redirect too many")]
    TooManyRedirects,
    /// A body that is larger than such a thing can be.
    #[error("it has more than the {limit} bytes that are allowed")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// A blob of another length.
    #[error("it has {found} bytes where {expected} were expected")]
    OtherSize {
        /// The descriptor's size.
        expected: u64,
        /// What the answer promises.
        found: u64,
    },
    /// Content of another digest.
    #[error("it has the digest {found} where {expected} was expected")]
    OtherDigest {
        /// What was asked for or sent.
        expected: Digest,
        /// What came, or what the registry says it got.
        found: Digest,
    },
    /// Another part of a blob than the one asked for.
    #[error("it is not the part from byte {0} on")]
    OtherRange(u64),
    /// A token server's answer without a token.
    #[error("it holds no token")]
    NoToken,
    /// A challenge that nobody here can meet.
    #[error("it asks for a kind of authentication that tierce does not know")]
    UnknownChallenge,
    /// The realm of a challenge is no URL.
    #[error("it names a token server that is not a URL")]
    BadRealm,
    /// Only a token can be shown, and the registry takes a user name and password only.
    #[error("it asks for a user name and password, and there is only a token")]
    WantsPassword,
}

impl RegistryError {
    pub(crate) fn bad_answer(host: &str, request: RequestLine, problem: Problem) -> Self {
        Self::BadAnswer(Box::new(BadAnswer {
            host: host.to_owned(),
            request,
            problem,
        }))
    }

    pub(crate) fn connection(failure: ConnectionFailure) -> Self {
        Self::Connection(Box::new(failure))
    }

    /// The answer that was no, whether of the registry or of its token server.
    pub fn answer(&self) -> Option<&Answer> {
        match self {
            Self::Answer(answer) => Some(answer),
            Self::Unauthorized(refusal) => Some(&refusal.answer),
            Self::Token { source, .. } => source.answer(),
            _ => None,
        }
    }

    /// The HTTP status of that answer.
    pub fn status(&self) -> Option<u16> {
        self.answer().map(|answer| answer.status)
    }

    /// Whether the registry reported `code` (`DENIED`, `NAME_UNKNOWN`, …).
    pub fn has_code(&self, code: &str) -> bool {
        self.answer()
            .is_some_and(|answer| answer.errors.iter().any(|error| error.code == code))
    }

    /// Whether credentials are missing or refused (401).
    pub fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Unauthorized(_)) || self.status() == Some(401)
    }

    /// Whether the registry forbids it (403), which need not be about credentials.
    pub fn is_denied(&self) -> bool {
        self.status() == Some(403)
    }

    /// Whether the thing asked for is not there (404).
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(404)
    }

    /// Whether the registry wants fewer requests (429).
    pub fn is_rate_limited(&self) -> bool {
        self.status() == Some(429)
    }

    /// The step at which the connection failed, when that is what happened.
    pub fn step(&self) -> Option<Step> {
        match self {
            Self::Connection(failure) => Some(failure.step),
            Self::Token { source, .. } => source.step(),
            _ => None,
        }
    }

    /// What is wrong with an answer that cannot be used, when that is what happened.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::BadAnswer(answer) => Some(&answer.problem),
            Self::Token { source, .. } => source.problem(),
            _ => None,
        }
    }

    /// Whether no connection came about: no address, nobody there, or no TLS.
    pub fn is_connect(&self) -> bool {
        matches!(self.step(), Some(Step::Resolve | Step::Connect | Step::Tls))
    }

    /// Whether the host's name has no address.
    pub fn is_resolve(&self) -> bool {
        self.step() == Some(Step::Resolve)
    }

    /// Whether TLS failed: another protocol, or a certificate that is not trusted.
    pub fn is_tls(&self) -> bool {
        self.step() == Some(Step::Tls)
    }

    /// Whether nothing came for too long.
    pub fn is_timeout(&self) -> bool {
        self.step() == Some(Step::Wait)
    }

    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Answer(answer) => {
                matches!(answer.status, 408 | 425 | 429 | 500 | 502 | 503 | 504)
            }
            Self::Connection(failure) => matches!(failure.step, Step::Wait | Step::Transfer),
            Self::Token { source, .. } => source.is_transient(),
            // The mirror is not asked again.
            Self::SpoiltMirror { .. } => true,
            Self::Source(error) => {
                matches!(error.source.downcast_ref(), Some(Self::SpoiltMirror { .. }))
            }
            _ => false,
        }
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.answer().and_then(|answer| answer.retry_after)
    }

    pub(crate) fn with_tally(mut self, tally: Tally) -> Self {
        match &mut self {
            Self::Answer(answer) => answer.tally = tally,
            Self::Connection(failure) => failure.tally = tally,
            Self::Token { source, .. } => match source.as_mut() {
                Self::Answer(answer) => answer.tally = tally,
                Self::Connection(failure) => failure.tally = tally,
                _ => {}
            },
            _ => {}
        }
        self
    }
}

/// How much of a registry's text is repeated.
const LONGEST_TEXT: usize = 1024;

/// How much of a body that is not the specified JSON is repeated.
const LONGEST_EXCERPT: usize = 200;

/// Who wrote an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Author {
    Registry,
    TokenServer,
    /// Storage behind one of them, or whatever else it had sent us to.
    Elsewhere,
}

/// Reads the body of an answer that is no: the JSON of registries, the JSON of token servers, or
/// whatever else a proxy in between writes.
///
/// Only the registry is quoted whatever it writes, and a server that nobody has named to us not at
/// all: storage repeats the signature of the request when it refuses it.
pub(crate) fn read_error_body(
    body: &[u8],
    author: Author,
    secrets: &KnownSecrets,
) -> (Vec<Reported>, String) {
    let parsed = serde_json::from_slice(body);
    let told = |text: &str, longest| printable(&secrets.hide(text), longest);
    let errors = match &parsed {
        Ok(value) => read_reported(value, |text| told(text, LONGEST_TEXT)),
        Err(_) => Vec::new(),
    };
    let text = String::from_utf8_lossy(body);
    match author {
        Author::Registry if errors.is_empty() => (errors, told(&text, LONGEST_EXCERPT)),
        Author::Registry | Author::TokenServer => (errors, String::new()),
        Author::Elsewhere => {
            let code = match errors.into_iter().next() {
                Some(error) => error.code,
                None => told(xml_code(&text), LONGEST_TEXT),
            };
            let reported = is_code(&code).then_some(Reported {
                code,
                message: String::new(),
            });
            (reported.into_iter().collect(), String::new())
        }
    }
}

fn read_reported(value: &serde_json::Value, told: impl Fn(&str) -> String) -> Vec<Reported> {
    use serde_json::Value;
    let text = |value: &Value, member: &str| {
        let text = value.get(member).and_then(Value::as_str);
        told(text.unwrap_or_default())
    };
    let reported = |value: &Value, code: &str, message: &str| Reported {
        code: text(value, code),
        message: text(value, message),
    };
    let errors: Vec<_> = match value.get("errors").and_then(Value::as_array) {
        // More than a handful say nothing more.
        Some(errors) => errors
            .iter()
            .take(8)
            .map(|error| reported(error, "code", "message"))
            .collect(),
        // OAuth (RFC 6749, section 5.2), and what token servers answer in practice.
        None if value.get("error").is_some() => {
            vec![reported(value, "error", "error_description")]
        }
        None if value.get("details").is_some() => vec![reported(value, "code", "details")],
        None => vec![reported(value, "code", "message")],
    };
    errors
        .into_iter()
        .filter(|error| !error.code.is_empty() || !error.message.is_empty())
        .collect()
}

/// The code in the XML of S3, which Azure and Google write as well.
fn xml_code(text: &str) -> &str {
    let rest = text.split_once("<Code>").map_or("", |(_, rest)| rest);
    rest.split_once("</Code>").map_or("", |(code, _)| code)
}

/// Whether that is a word as error codes are.
fn is_code(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}

/// A stranger's text on one line, without what could steer a terminal.
pub(crate) fn printable(text: &str, longest: usize) -> String {
    let mut shown = String::new();
    for word in text.split(|letter: char| letter.is_whitespace() || letter.is_control()) {
        if word.is_empty() {
            continue;
        }
        if !shown.is_empty() {
            shown.push(' ');
        }
        shown.extend(word.chars().filter(|letter| !steers_direction(*letter)));
        if shown.len() > longest {
            let end = shown.floor_char_boundary(longest);
            shown.truncate(end);
            shown.push('…');
            break;
        }
    }
    shown
}

/// The characters that make following text run the other way, or that cannot be seen.
fn steers_direction(letter: char) -> bool {
    matches!(letter, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(body: &[u8]) -> Answer {
        let (errors, excerpt) = read_error_body(body, Author::Registry, &KnownSecrets::default());
        Answer {
            host: "r.example".to_owned(),
            from_registry: true,
            request: RequestLine {
                method: "POST".to_owned(),
                path: "/v2/orders/blobs/uploads/".to_owned(),
            },
            status: 403,
            errors,
            excerpt,
            retry_after: None,
            tally: Tally::ONE,
        }
    }

    #[test]
    fn the_registry_is_quoted() {
        const BEGIN: &str = "registry r.example answered 403";
        const TO: &str = " to `POST /v2/orders/blobs/uploads/`";
        for (body, code, message) in [
            (
                r#"{"errors":[{"code":"DENIED","message":"no"}]}"#,
                " DENIED",
                ": no",
            ),
            (
                r#"{"errors":[{"code":"ODD_ONE","detail":{"a":1}}]}"#,
                " ODD_ONE",
                "",
            ),
            (
                r#"{"errors":[{"code":"A","message":"x"},{"code":"B","message":"y"}]}"#,
                " A",
                ": x; B: y",
            ),
            (
                r#"{"details":"incorrect password"}"#,
                "",
                ": incorrect password",
            ),
            (
                r#"{"error":"invalid_grant","error_description":"gone"}"#,
                " invalid_grant",
                ": gone",
            ),
            (r#"{"message":"hm"}"#, "", ": hm"),
            (r#"{"errors":[]}"#, "", r#": {"errors":[]}"#),
            ("Not Authorized\n", "", ": Not Authorized"),
            ("[1,2]", "", ": [1,2]"),
            ("", "", ""),
        ] {
            let shown = answer(body.as_bytes()).to_string();
            assert_eq!(shown, format!("{BEGIN}{code}{TO}{message}"), "{body}");
        }
    }

    #[test]
    fn texts_cannot_steer_the_terminal_or_fill_it() {
        assert_eq!(
            printable("a\x1b[31m\r\nb\u{7}\u{202e}c\t", 100),
            "a [31m b c"
        );
        let long = printable(&"ü".repeat(500), 101);
        assert_eq!(long.chars().count(), 51);
        let shown = answer(&vec![b'x'; 70_000]).to_string();
        assert!(shown.len() < 400);
        assert!(!answer(&[0xff, 0xfe, 0x1b]).to_string().contains('\x1b'));
    }

    #[test]
    fn what_may_pass_is_told_from_what_will_not() {
        for (status, transient) in [
            (408, true),
            (425, true),
            (429, true),
            (500, true),
            (501, false),
            (502, true),
            (503, true),
            (504, true),
            (400, false),
            (401, false),
            (403, false),
            (404, false),
            (416, false),
        ] {
            let mut answer = answer(b"");
            answer.status = status;
            let error = RegistryError::Answer(Box::new(answer));
            assert_eq!(error.is_transient(), transient, "{status}");
            let error = RegistryError::Token {
                registry: "r.example".to_owned(),
                source: Box::new(error),
            };
            assert_eq!(error.is_transient(), transient, "{status}");
            assert_eq!(error.status(), Some(status));
        }
    }
}
