//! Errors for people: what failed, why, and what to do.
//!
//! Libraries report facts; this is the one place where a fact becomes a hint or an exit code.

use std::process::ExitCode;
use std::{fmt, io};

use anyhow::Error;
use tierce_image::{AssembleError, ReadError, VerifyError};
use tierce_registry::{ReferrersError, RegistryError};
use tierce_store::{ArchiveError, PieceError};

use crate::config_file::ConfigFileError;
use crate::source::SourceError;

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
pub(crate) fn find<E: std::error::Error + 'static>(error: &Error) -> Option<&E> {
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
    if let Some(error) = cause.downcast_ref::<RegistryError>() {
        return known_of_registry(error).map(str::to_owned);
    }
    let fixed = if let Some(error) = cause.downcast_ref::<AssembleError>() {
        match error {
            AssembleError::ForeignLayer { .. } | AssembleError::Annotation(_) => {
                "an OCI image can have it: `--format oci`"
            }
            _ => return None,
        }
    } else if let Some(error) = cause.downcast_ref::<ReadError>() {
        match error {
            ReadError::NoSuchPlatform { .. } | ReadError::OtherPlatform { .. } => {
                "name another platform with `--platform`"
            }
            _ => return None,
        }
    } else if cause.is::<VerifyError>() {
        "what is stored there is damaged, or was damaged on the way: get a new copy of the image"
    } else if let Some(error) = cause.downcast_ref::<PieceError>() {
        match error {
            // The operating system says what is wrong.
            PieceError::File(_) => return None,
            _ => "build the image again: that puts a whole pack in its place",
        }
    } else if matches!(cause.downcast_ref(), Some(SourceError::Offline(_))) {
        "run the same build once without --offline, in a folder with a tierce.toml"
    } else if let Some(error) = cause.downcast_ref::<ArchiveError>() {
        match error {
            ArchiveError::Compressed { .. } => "decompress it first: `gunzip FILE`, `unzstd FILE`",
            ArchiveError::ImageNeeded { .. } => "name one: `docker-archive:FILE:NAME:TAG`",
            _ => return None,
        }
    } else if let Some(error) = cause.downcast_ref::<io::Error>() {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "free some space; TIERCE_CACHE and TIERCE_STORE move the files to another disk"
            }
            io::ErrorKind::FileTooLarge => {
                "the limit on the size of files (`ulimit -f`) is too low"
            }
            _ => return None,
        }
    } else {
        return None;
    };
    Some(fixed.to_owned())
}

/// A proxy is only known by what it says no to.
const PROXY: &str =
    "the proxy that HTTPS_PROXY or HTTP_PROXY names refuses; NO_PROXY goes around it";

fn known_of_registry(error: &RegistryError) -> Option<&'static str> {
    Some(match error {
        _ if error.is_resolve() => "check the registry's name and the network",
        _ if error.is_tls() => {
            "`--ca-file FILE` trusts a private authority; `--plain-http HOST` speaks without TLS"
        }
        RegistryError::Connection(failure) if failure.is_about_proxy() => PROXY,
        _ if error.status() == Some(407) => PROXY,
        _ if error.is_connect() => "check that the registry runs there and listens on that port",
        RegistryError::Unauthorized(refusal) if refusal.credentials.is_none() => {
            "log in with `docker login`, `podman login` or `skopeo login`: tierce reads what they write"
        }
        RegistryError::Referrers(error) => match error.as_ref() {
            ReferrersError::NotAList { .. } => {
                "this registry needs the tag for the list of what is attached: remove it there"
            }
            ReferrersError::Overtaken { .. } => {
                "somebody else attaches to the same image: run it again"
            }
            _ => return None,
        },
        RegistryError::Unauthorized(_) => "log in again, or correct what is stored there",
        _ if error.is_denied() => "the credentials are known, but are not allowed to do this",
        _ if error.has_code("NAME_UNKNOWN") => {
            "check the repository's name; some registries want it created before the first push"
        }
        _ if error.has_code("BLOB_UNKNOWN") => {
            "the registry no longer has this layer: build again, on a base that is still there"
        }
        _ if error.is_not_found() => "check the repository and the tag",
        _ if error.is_rate_limited() => "the registry asks for fewer requests: wait, or log in",
        _ => return None,
    })
}

/// Whether the error is only that nobody reads stdout any more, which is no failure.
pub(crate) fn is_broken_pipe(error: &Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
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
