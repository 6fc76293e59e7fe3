//! Errors that are Lambda's own words, not the function's.

use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

use crate::sandbox::{Exit, NotStarted};

use super::call::Reported;

/// Why an initialisation or an invocation did not come to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// As `Runtime.ExitError`.
    pub(super) error_type: String,
    /// Without the request's id.
    pub(super) message: String,
    /// What a client gets if the runtime itself said it.
    reported: Option<Bytes>,
    pub(super) kind: Kind,
}

/// What `Status` of a report says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Error,
    Timeout,
}

impl Failure {
    pub(super) fn new(error_type: &str, message: impl Into<String>) -> Self {
        Self {
            error_type: error_type.to_owned(),
            message: message.into(),
            reported: None,
            kind: Kind::Error,
        }
    }

    /// The runtime is gone.
    pub(super) fn exited(exit: Exit) -> Self {
        let message = match exit {
            Exit::Code(0) => "Runtime exited without providing a reason".to_owned(),
            exit => format!("Runtime exited with error: {}", words(exit)),
        };
        Self::new("Runtime.ExitError", message)
    }

    /// The runtime was never there.
    pub(super) fn not_started(reason: &NotStarted) -> Self {
        let error_type = match reason {
            NotStarted::Directory(..) => "Runtime.InvalidWorkingDir",
            NotStarted::Program(..) => "Runtime.InvalidEntrypoint",
        };
        Self::new(error_type, reason.to_string())
    }

    /// The memory was not enough: all processes were killed.
    pub(super) fn out_of_memory() -> Self {
        Self::new(
            "Runtime.OutOfMemory",
            format!("Runtime exited with error: {}", words(Exit::Signal(9))),
        )
    }

    /// The time was not enough.
    pub(super) fn timed_out(after: Duration) -> Self {
        Self {
            kind: Kind::Timeout,
            ..Self::new(
                "Sandbox.Timedout",
                format!("Task timed out after {:.2} seconds", after.as_secs_f64()),
            )
        }
    }

    /// The runtime gave up while it started.
    pub(super) fn reported(reported: Reported) -> Self {
        let message = serde_json::from_slice::<Value>(&reported.payload)
            .ok()
            .and_then(|error| Some(error.get("errorMessage")?.as_str()?.to_owned()))
            .unwrap_or_default();
        Self {
            error_type: reported.error_type,
            message,
            reported: Some(reported.payload),
            kind: Kind::Error,
        }
    }

    /// `TYPE: MESSAGE`, for people.
    pub(super) fn words(&self) -> String {
        if self.message.is_empty() {
            self.error_type.clone()
        } else {
            format!("{}: {}", self.error_type, self.message)
        }
    }

    /// What telemetry calls it.
    pub(super) fn status(&self) -> &'static str {
        match self.kind {
            Kind::Error => "error",
            Kind::Timeout => "timeout",
        }
    }

    /// Whether the function itself said it, so that its log tells enough.
    pub(super) fn is_reported(&self) -> bool {
        self.reported.is_some()
    }

    /// What a client gets.
    pub(super) fn payload(&self, request_id: &str) -> Bytes {
        match &self.reported {
            Some(payload) => payload.clone(),
            None => error(
                &self.error_type,
                &format!("RequestId: {request_id} Error: {}", self.message),
            ),
        }
    }
}

/// An error as clients get it, its members in the service's order.
pub(super) fn error(error_type: &str, message: &str) -> Bytes {
    let (error_type, message) = (Value::from(error_type), Value::from(message));
    format!(r#"{{"errorType":{error_type},"errorMessage":{message}}}"#).into()
}

/// How Go says how a process ended, which is how Lambda says it.
pub(super) fn words(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("exit status {code}"),
        Exit::Signal(signal) => format!("signal: {}", signal_words(signal)),
    }
}

fn signal_words(signal: i32) -> String {
    match signal {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        4 => "illegal instruction",
        5 => "trace/breakpoint trap",
        6 => "aborted",
        7 => "bus error",
        8 => "floating point exception",
        9 => "killed",
        10 => "user defined signal 1",
        11 => "segmentation fault",
        12 => "user defined signal 2",
        13 => "broken pipe",
        14 => "alarm clock",
        15 => "terminated",
        other => return format!("signal {other}"),
    }
    .to_owned()
}

/// The type of an error as its header says it; what is not of the form
/// `(Runtime|Function).[A-Z][a-zA-Z]+` becomes the unknown one of its kind.
pub(super) fn sanitise(header: Option<&str>) -> String {
    let header = header.unwrap_or_default();
    let (kind, name) = header.split_once('.').unwrap_or((header, ""));
    let fits = name.len() >= 2
        && name.starts_with(|first: char| first.is_ascii_uppercase())
        && name.chars().all(|letter| letter.is_ascii_alphabetic());
    match kind {
        "Runtime" | "Function" if fits => header.to_owned(),
        "Runtime" => "Runtime.Unknown".to_owned(),
        _ => "Function.Unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_said_as_lambda_says_them() {
        for (exit, message) in [
            (Exit::Code(0), "Runtime exited without providing a reason"),
            (Exit::Code(1), "Runtime exited with error: exit status 1"),
            (Exit::Signal(9), "Runtime exited with error: signal: killed"),
            (
                Exit::Signal(11),
                "Runtime exited with error: signal: segmentation fault",
            ),
            (
                Exit::Signal(40),
                "Runtime exited with error: signal: signal 40",
            ),
        ] {
            let failure = Failure::exited(exit);
            assert_eq!(failure.message, message);
            assert_eq!(failure.error_type, "Runtime.ExitError");
        }
        assert_eq!(
            Failure::exited(Exit::Code(1)).payload("7"),
            r#"{"errorType":"Runtime.ExitError","errorMessage":"RequestId: 7 Error: Runtime exited with error: exit status 1"}"#
        );
    }

    #[test]
    fn only_types_of_the_known_form_pass() {
        for (header, error_type) in [
            (
                Some("Runtime.ImportModuleError"),
                "Runtime.ImportModuleError",
            ),
            (Some("Function.Handled"), "Function.Handled"),
            (Some("Runtime.lower"), "Runtime.Unknown"),
            (Some("Runtime.X"), "Runtime.Unknown"),
            (Some("Runtime"), "Runtime.Unknown"),
            (Some("Function.A1"), "Function.Unknown"),
            (Some("KeyError"), "Function.Unknown"),
            (Some("Sandbox.Timedout"), "Function.Unknown"),
            (Some(""), "Function.Unknown"),
            (None, "Function.Unknown"),
        ] {
            assert_eq!(sanitise(header), error_type, "{header:?}");
        }
    }

    #[test]
    fn a_start_that_fails_names_the_program() {
        let failure = Failure::not_started(&NotStarted::Program(
            "/x".to_owned(),
            "no such file or directory".to_owned(),
        ));
        assert_eq!(failure.error_type, "Runtime.InvalidEntrypoint");
        assert_eq!(failure.message, "fork/exec /x: no such file or directory");
        let failure = Failure::not_started(&NotStarted::Directory(
            "/w".to_owned(),
            "no such file or directory".to_owned(),
        ));
        assert_eq!(failure.error_type, "Runtime.InvalidWorkingDir");
    }

    #[test]
    fn what_the_runtime_said_reaches_the_client_as_it_is() {
        let payload = Bytes::from_static(br#"{"errorMessage": "no module", "stackTrace": []}"#);
        let failure = Failure::reported(Reported {
            error_type: "Runtime.ImportModuleError".to_owned(),
            payload: payload.clone(),
        });
        assert_eq!(failure.payload("7"), payload);
        assert_eq!(failure.words(), "Runtime.ImportModuleError: no module");
    }
}
