//! Errors for people: what failed, why, and what to do.
//!
//! Libraries report facts; this is the one place where a fact becomes a hint or an exit code.

use std::fmt;
use std::process::ExitCode;

use anyhow::Error;

use crate::config_file::ConfigFileError;

/// The command line asks for something that makes no sense; exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

/// Advice that goes with an error.
#[derive(Debug)]
struct Hint(String);

impl fmt::Display for Hint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// An error with advice. Displays as the error itself.
#[derive(Debug)]
struct WithHint {
    hint: Hint,
    error: Error,
}

impl fmt::Display for WithHint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(formatter)
    }
}

impl std::error::Error for WithHint {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

/// Adds advice to errors.
pub(crate) trait Hinted {
    /// What it is added to.
    type Hinted;

    /// Says what to do about the error.
    fn hint(self, text: impl Into<String>) -> Self::Hinted;
}

impl Hinted for Error {
    type Hinted = Self;

    fn hint(self, text: impl Into<String>) -> Error {
        Error::new(WithHint {
            hint: Hint(text.into()),
            error: self,
        })
    }
}

impl<T, E: Into<Error>> Hinted for Result<T, E> {
    type Hinted = anyhow::Result<T>;

    fn hint(self, text: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|error| error.into().hint(text))
    }
}

/// An error as it is shown, and the exit code that goes with it.
#[derive(Debug)]
pub(crate) struct Diagnostic {
    pub(crate) text: String,
    pub(crate) exit_code: u8,
}

impl Diagnostic {
    /// Renders `error` with its causes and hints.
    pub(crate) fn of(error: &Error) -> Self {
        let mut text = format!("error: {error}");
        let mut last = error.to_string();
        for cause in error.chain().skip(1) {
            let cause = cause.to_string();
            // Transparent wrappers say the same twice.
            if cause != last {
                text.push_str("\n  caused by: ");
                text.push_str(&cause.replace('\n', "\n    "));
            }
            last = cause;
        }
        for hint in hints(error) {
            text.push_str("\nhint: ");
            text.push_str(&hint);
        }
        Self {
            text,
            exit_code: exit_code(error),
        }
    }

    /// The code that the process ends with.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit_code)
    }
}

fn exit_code(error: &Error) -> u8 {
    if find::<UsageError>(error).is_some() {
        2
    } else {
        1
    }
}

/// Finds an error of one kind anywhere in the chain, behind hints too.
fn find<E: std::error::Error + 'static>(error: &Error) -> Option<&E> {
    all(error)
        .into_iter()
        .find_map(|cause| cause.downcast_ref())
}

/// Every error of the chain; those behind hints in place of the hint.
fn all(error: &Error) -> Vec<&(dyn std::error::Error + 'static)> {
    let mut causes: Vec<&(dyn std::error::Error + 'static)> = Vec::new();
    for cause in error.chain() {
        if let Some(hinted) = cause.downcast_ref::<WithHint>() {
            // What follows in this chain are the causes of the hinted error: they come with it.
            causes.extend(all(&hinted.error));
            break;
        }
        causes.push(cause);
    }
    causes
}

fn hints(error: &Error) -> Vec<String> {
    let mut hints = Vec::new();
    collect_given(error, &mut hints);
    for hint in all(error).into_iter().filter_map(known) {
        if !hints.contains(&hint) {
            hints.push(hint);
        }
    }
    hints
}

fn collect_given(error: &Error, hints: &mut Vec<String>) {
    for cause in error.chain() {
        if let Some(hinted) = cause.downcast_ref::<WithHint>() {
            hints.push(hinted.hint.to_string());
            return collect_given(&hinted.error, hints);
        }
    }
}

/// What is known to help against an error of a library.
fn known(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(error) = cause.downcast_ref::<ConfigFileError>() {
        return error
            .nearest
            .as_ref()
            .map(|nearest| format!("did you mean `{nearest}`?"));
    }
    None
}

/// Whether the error is only that nobody reads stdout any more, which is no failure.
pub(crate) fn is_broken_pipe(error: &Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context as _, anyhow};

    #[test]
    fn causes_come_once_each_and_hints_last() {
        let error = Err::<(), _>(anyhow!("the disk is full"))
            .hint("free some space")
            .context("could not write out.tar")
            .unwrap_err();
        let diagnostic = Diagnostic::of(&error);
        assert_eq!(
            diagnostic.text,
            "error: could not write out.tar\n  caused by: the disk is full\nhint: free some space"
        );
        assert_eq!(diagnostic.exit_code, 1);
    }

    #[test]
    fn bad_usage_is_told_apart_behind_context_and_hints() {
        let error = Error::new(UsageError("no base".to_owned())).hint("name one");
        assert_eq!(Diagnostic::of(&error).exit_code, 2);
        assert_eq!(Diagnostic::of(&error.context("building")).exit_code, 2);
    }
}
