//! What runtimes and extensions ask for, out of HTTP, and how they are refused.

use bytes::Bytes;
use hyper::StatusCode;
use tokio::sync::oneshot;

use super::extensions::Registered;
use super::relay::Relay;
use super::telemetry::Subscription;

/// Answers one request.
pub(super) type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// A request of a process in the box.
#[derive(Debug)]
pub(super) enum Call {
    /// `/runtime/invocation/next`.
    Next(Reply<Event>),
    /// The head of a response is here; its body may be read when this is answered.
    ResponseBegins(String, Reply<Relay>),
    /// The body of a response is here, or will never be.
    ResponseEnds(String, Response, Reply<()>),
    /// `/runtime/invocation/{id}/error`.
    InvocationError(String, Reported, Reply<()>),
    /// `/runtime/init/error`.
    InitError(Reported, Reply<()>),
    /// `/extension/register`.
    Register(Registration, Reply<Registered>),
    /// `/extension/event/next` of the extension with this identifier.
    ExtensionNext(String, Reply<Bytes>),
    /// `/extension/init/error` and `/extension/exit/error`.
    ExtensionError(String, ExtensionFault, String, Reply<()>),
    /// A subscription to telemetry or logs.
    Subscribe(String, Subscription, Reply<()>),
}

/// What a runtime gets for `next`.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) content_type: String,
    pub(super) payload: Bytes,
}

/// How the body of a response ended.
#[derive(Debug)]
pub(super) enum Response {
    /// All of a buffered one.
    Buffered {
        payload: Bytes,
        content_type: Option<String>,
    },
    /// A streamed one; its pieces are with the client.
    Streamed,
    /// A streamed one whose trailers tell an error.
    StreamedError { error_type: String, payload: Bytes },
    /// More than may be; the most that may be.
    TooLarge(usize),
    /// The connection ended before the body.
    Truncated,
    /// `Lambda-Runtime-Function-Response-Mode` had another value than `streaming`.
    InvalidMode,
}

/// An error as a runtime reports it.
#[derive(Debug)]
pub(super) struct Reported {
    pub(super) error_type: String,
    pub(super) payload: Bytes,
}

/// A wish to be an extension.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) name: String,
    pub(super) events: Vec<String>,
    /// Whether the answer says the account: the feature `accountId`.
    pub(super) account: bool,
}

/// Which error an extension reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExtensionFault {
    Init,
    Exit,
}

/// Why a request is not done. The texts are those of the public emulator where it has one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error(
        "State transition from {from} to {to} failed for {whose}. Error: State transition is not allowed"
    )]
    Transition {
        whose: String,
        from: &'static str,
        to: &'static str,
        error_type: &'static str,
    },
    #[error("Invalid request ID")]
    RequestId,
    #[error("Exceeded maximum allowed payload size ({0} bytes).")]
    TooLarge(usize),
    #[error("HTTP request detected as truncated")]
    Truncated,
    #[error("Invalid function response mode")]
    ResponseMode,
    #[error("{message}")]
    Extension {
        error_type: &'static str,
        message: String,
    },
    #[error("{0}")]
    Validation(String),
    #[error("Internal Server Error")]
    Ended,
}

impl Refusal {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Transition { .. } | Self::Extension { .. } => StatusCode::FORBIDDEN,
            Self::RequestId | Self::Truncated | Self::ResponseMode | Self::Validation(_) => {
                StatusCode::BAD_REQUEST
            }
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Ended => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    pub(super) fn error_type(&self) -> &'static str {
        match self {
            Self::Transition { error_type, .. } | Self::Extension { error_type, .. } => error_type,
            Self::RequestId => "InvalidRequestID",
            Self::TooLarge(_) => "RequestEntityTooLarge",
            Self::Truncated => "TruncatedHTTPRequest",
            Self::ResponseMode => "InvalidFunctionResponseMode",
            Self::Validation(_) => "ValidationError",
            Self::Ended => "InternalServerError",
        }
    }
}
