//! Every way in which an invocation is refused, in the words and form of the service.

/// Why a request is not carried out. Its display is the `message` that clients show.
///
/// Names, statuses and texts are the service's where it has such an answer; they are what SDKs make
/// exceptions of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvokeFault {
    /// The name that the client knows this server by may be a web page's trick: a name of its own
    /// that now leads here (DNS rebinding).
    #[error(
        "requests for the host `{0}` are refused, because a web page could have made them. \
         Use http://127.0.0.1 or http://localhost, or allow this name"
    )]
    ForeignHost(String),
    /// A browser says that a page sent this.
    #[error("requests of web pages are refused (this one came from `{0}`)")]
    WebPage(String),
    /// No operation has this path.
    #[error(
        "there is nothing at `{0}`. To invoke the function, POST the event to \
         /2015-03-31/functions/{1}/invocations"
    )]
    NoSuchPath(String, String),
    /// The operation has another method.
    #[error(
        "`{0}` is not allowed here. To invoke the function, POST the event, as with `curl -d '{{}}'`"
    )]
    WrongMethod(String),
    /// A parameter does not have the form that the service demands.
    #[error(
        "1 validation error detected: Value '{value}' at '{member}' failed to satisfy constraint: \
         {constraint}"
    )]
    Invalid {
        /// What it is.
        value: String,
        /// Of which parameter.
        member: &'static str,
        /// What it must be.
        constraint: &'static str,
    },
    /// Another function than the one that runs here.
    #[error("Function not found: {asked} (here runs `{runs}`, which also answers to `function`)")]
    NoSuchFunction {
        /// Which one was asked for, as the client wrote it.
        asked: String,
        /// Which one is here.
        runs: String,
    },
    /// A qualifier in the name and another one in the query.
    #[error("The derived qualifier from the function name does not match the specified qualifier.")]
    TwoQualifiers,
    /// The client context is not what it must be.
    #[error("Client context must be a valid Base64-encoded JSON object.")]
    BadClientContext,
    /// The client context is longer than the 3,583 bytes that the API's description allows.
    #[error("Client context must be no longer than 3583 bytes, but is {0} bytes long.")]
    LongClientContext(usize),
    /// The event is not JSON.
    #[error("Could not parse request body into json: Could not parse payload into json: {0}")]
    NotJson(String),
    /// The event is longer than Lambda takes. The service has this name for it, not the
    /// `RequestTooLargeException` of the API's description.
    #[error("Request must be smaller than {0} bytes for the InvokeFunction operation")]
    TooLarge(usize),
    /// The client ended the connection, or broke the protocol, before the event was whole.
    #[error("the request's body ended before it was complete")]
    BrokenBody,
    /// The client stopped sending.
    #[error("the request's body did not arrive in time")]
    SlowBody,
    /// All environments are busy.
    #[error("Rate Exceeded.")]
    Throttled,
    /// More events wait than are kept.
    #[error("Rate Exceeded. ({0} events are waiting)")]
    TooManyEvents(usize),
    /// The function could not be tried, for this reason.
    #[error("{0}")]
    CannotRun(String),
}

impl InvokeFault {
    /// The HTTP status.
    pub(crate) fn status(&self) -> u16 {
        match self {
            Self::Invalid { .. }
            | Self::TwoQualifiers
            | Self::BadClientContext
            | Self::LongClientContext(_)
            | Self::NotJson(_)
            | Self::BrokenBody => 400,
            Self::ForeignHost(_) | Self::WebPage(_) => 403,
            Self::NoSuchPath(..) | Self::NoSuchFunction { .. } => 404,
            Self::WrongMethod(_) => 405,
            Self::SlowBody => 408,
            Self::TooLarge(_) => 413,
            Self::Throttled | Self::TooManyEvents(_) => 429,
            Self::CannotRun(_) => 500,
        }
    }

    /// What SDKs call the exception.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::ForeignHost(_) | Self::WebPage(_) => "AccessDeniedException",
            Self::NoSuchPath(..) | Self::NoSuchFunction { .. } => "ResourceNotFoundException",
            Self::WrongMethod(_) => "MethodNotAllowedException",
            Self::Invalid { .. } => "ValidationException",
            Self::TwoQualifiers => "InvalidParameterValueException",
            Self::BadClientContext
            | Self::LongClientContext(_)
            | Self::NotJson(_)
            | Self::BrokenBody => "InvalidRequestContentException",
            Self::SlowBody => "RequestTimeoutException",
            Self::TooLarge(_) => "RequestEntityTooLargeException",
            Self::Throttled | Self::TooManyEvents(_) => "TooManyRequestsException",
            Self::CannotRun(_) => "ServiceException",
        }
    }

    /// The body: JSON with the members of the API's description, whose letters differ in case
    /// between exceptions.
    pub(crate) fn body(&self) -> String {
        let message = serde_json::Value::from(self.to_string());
        match self {
            Self::Invalid { .. } => format!(r#"{{"message":{message}}}"#),
            Self::NoSuchPath(..) | Self::NoSuchFunction { .. } => {
                format!(r#"{{"Type":"User","Message":{message}}}"#)
            }
            Self::CannotRun(_) => format!(r#"{{"Type":"Service","Message":{message}}}"#),
            Self::Throttled | Self::TooManyEvents(_) => format!(
                r#"{{"Reason":"ReservedFunctionConcurrentInvocationLimitExceeded","Type":"User","message":{message}}}"#
            ),
            _ => format!(r#"{{"Type":"User","message":{message}}}"#),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Statuses, names and members are the contract with SDKs; the texts are what people read.
    #[test]
    fn faults_have_the_form_of_the_service() {
        for (fault, status, name, body) in [
            (
                InvokeFault::NotJson("expected value at line 1 column 1".to_owned()),
                400,
                "InvalidRequestContentException",
                r#"{"Type":"User","message":"Could not parse request body into json: Could not parse payload into json: expected value at line 1 column 1"}"#,
            ),
            (
                InvokeFault::ForeignHost("evil".to_owned()),
                403,
                "AccessDeniedException",
                r#"{"Type":"User","message":"requests for the host `evil` are refused, because a web page could have made them. Use http://127.0.0.1 or http://localhost, or allow this name"}"#,
            ),
            (
                InvokeFault::NoSuchFunction {
                    asked: "a".to_owned(),
                    runs: "b".to_owned(),
                },
                404,
                "ResourceNotFoundException",
                r#"{"Type":"User","Message":"Function not found: a (here runs `b`, which also answers to `function`)"}"#,
            ),
            (
                InvokeFault::NoSuchPath("/\"".to_owned(), "b".to_owned()),
                404,
                "ResourceNotFoundException",
                r#"{"Type":"User","Message":"there is nothing at `/\"`. To invoke the function, POST the event to /2015-03-31/functions/b/invocations"}"#,
            ),
            (
                InvokeFault::TooLarge(6_291_456),
                413,
                "RequestEntityTooLargeException",
                r#"{"Type":"User","message":"Request must be smaller than 6291456 bytes for the InvokeFunction operation"}"#,
            ),
            (
                InvokeFault::Throttled,
                429,
                "TooManyRequestsException",
                r#"{"Reason":"ReservedFunctionConcurrentInvocationLimitExceeded","Type":"User","message":"Rate Exceeded."}"#,
            ),
            (
                InvokeFault::CannotRun("no user namespaces".to_owned()),
                500,
                "ServiceException",
                r#"{"Type":"Service","Message":"no user namespaces"}"#,
            ),
            (
                InvokeFault::Invalid {
                    value: "x".to_owned(),
                    member: "logType",
                    constraint: "Member must be y",
                },
                400,
                "ValidationException",
                r#"{"message":"1 validation error detected: Value 'x' at 'logType' failed to satisfy constraint: Member must be y"}"#,
            ),
        ] {
            assert_eq!((fault.status(), fault.name()), (status, name));
            assert_eq!(fault.body(), body);
        }
    }
}
