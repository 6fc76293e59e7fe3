//! Errors for people: what failed, why, and what to do.
//!
//! Libraries report facts; this is the one place where a fact becomes a hint or an exit code.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitCode;
use std::{fmt, io};

use anyhow::Error;
use tierce_aws::{AwsError, CreateError, EcrHost, is_public_ecr};
use tierce_image::{AssembleError, ReadError, VerifyError, WriteError};
use tierce_layer::{BadZipName, TarError, ZipError};
use tierce_registry::{Answer, ReferrersError, RegistryError};
use tierce_runner::invoke::client::PostError;
use tierce_runner::sandbox::SandboxError;
use tierce_store::{ArchiveError, PieceError};

use crate::config_file::ConfigFileError;
use crate::dependencies::requirements::BadRequirement;
use crate::dependencies::tool::ToolFailed;
use crate::run::watch::WatchError;
use crate::source::SourceError;

/// The command line asks for something that makes no sense; exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

/// An image has errors; exit code 3.
#[derive(Debug, thiserror::Error)]
#[error("`{image}` has {}", match errors { 1 => "an error".to_owned(), count => format!("{count} errors") })]
pub(crate) struct LintRefusal {
    pub(crate) image: String,
    pub(crate) errors: usize,
}

/// A function was invoked, and failed; exit code 1.
#[derive(Debug, thiserror::Error)]
#[error("the function failed: {words}")]
pub(crate) struct FunctionFailed {
    error_type: String,
    words: String,
}

impl FunctionFailed {
    /// What the error says that a function, or Lambda in its place, answered with.
    pub(crate) fn of(payload: &[u8]) -> Self {
        let error: serde_json::Value = serde_json::from_slice(payload).unwrap_or_default();
        let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        let (error_type, message) = (text("errorType"), text("errorMessage"));
        let words = match (error_type.as_str(), message.as_str()) {
            ("", "") => "it does not say how".to_owned(),
            ("", message) => message.to_owned(),
            (kind, "") => kind.to_owned(),
            (kind, message) => format!("{kind}: {message}"),
        };
        Self { error_type, words }
    }
}

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
    } else if find::<LintRefusal>(error).is_some() {
        3
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
    for cause in all(error) {
        hints.extend(known(cause).filter(|hint| !hints.contains(hint)));
        // What the kernel said to it means something else than of a file: no space is no more
        // namespaces.
        if cause.is::<SandboxError>() {
            break;
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
        return known_of_ecr(error).or_else(|| known_of_registry(error).map(str::to_owned));
    }
    if let Some(error) = cause.downcast_ref::<AwsError>() {
        return known_of_aws(error);
    }
    if let Some(CreateError::Aws(error)) = cause.downcast_ref() {
        return known_of_aws(error);
    }
    if let Some(error) = cause.downcast_ref::<ToolFailed>() {
        return known_of_tool(error).map(str::to_owned);
    }
    if let Some(error) = cause.downcast_ref::<BadRequirement>() {
        return error.needs_a_build().then(|| BUILT_BEFOREHAND.to_owned());
    }
    if let Some(error) = cause.downcast_ref::<SandboxError>() {
        return error.missing().map(|missing| missing.remedies.join("; "));
    }
    if let Some(error) = cause.downcast_ref::<FunctionFailed>() {
        return error.known().map(str::to_owned);
    }
    if let Some(error) = cause.downcast_ref::<PostError>() {
        return known_of_post(error).map(str::to_owned);
    }
    let fixed = if cause.is::<LintRefusal>() {
        "what is meant to be so can be allowed by name: `--allow RULE`"
    } else if matches!(cause.downcast_ref(), Some(WriteError::ImmutableTag { .. })) {
        IMMUTABLE
    } else if let Some(error) = cause.downcast_ref::<AssembleError>() {
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
    } else if let Some(CreateError::OtherEncryption { .. }) = cause.downcast_ref() {
        "a repository keeps its key: take another name, or leave out --encryption and --kms-key"
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
    } else if let Some(TarError::NotTar { found: Some("zip") }) = cause.downcast_ref() {
        "a zip is named by `zip`, or by `lambda-layer`"
    } else if let Some(error) = cause.downcast_ref::<ZipError>() {
        match error {
            ZipError::NotZip {
                found: Some("tar" | "gzip" | "zstd"),
            } => "a tar is named by `tar`",
            ZipError::Name {
                problem: BadZipName::Backslash,
                ..
            } => {
                "PowerShell 7, `tar -a -cf FILE.zip` and Python's zipfile write names as they should be"
            }
            _ => return None,
        }
    } else if let Some(WatchError::TooMany(_)) = cause.downcast_ref() {
        "`sudo sysctl -w fs.inotify.max_user_watches=524288` raises it"
    } else if let Some(error) = cause.downcast_ref::<io::Error>() {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FREE_SPACE,
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

impl FunctionFailed {
    /// What is known to help against an error that Lambda answers with in the function's place.
    fn known(&self) -> Option<&'static str> {
        Some(match self.error_type.as_str() {
            "Sandbox.Timedout" => {
                "`--timeout` of `tierce run` gives it more time, and `--timeout none` all that a \
                 debugger needs; Lambda's own default is 3 s, and the most 15 minutes"
            }
            "Runtime.OutOfMemory" => {
                "`--memory` of `tierce run` gives it more; Lambda's own default is 128 MiB"
            }
            _ => return None,
        })
    }
}

/// What to do when nobody answers for a function.
fn known_of_post(error: &PostError) -> Option<&'static str> {
    match error {
        PostError::NobodyListens { .. } => Some(
            "start the function with `tierce run`, or for this one event: `tierce invoke --image IMAGE`",
        ),
        PostError::Refused { name, .. } if name == "ResourceNotFoundException" => {
            Some("`--function-name` says which function is meant")
        }
        _ => None,
    }
}

/// What to do about a full disk.
pub(crate) const FREE_SPACE: &str =
    "free some space; TIERCE_CACHE and TIERCE_STORE move the files to another disk";

/// Whether a tool says that a disk is full.
pub(crate) fn is_about_space(line: &str) -> bool {
    line.contains("ENOSPC") || line.contains("No space left on device")
}

/// What uv says when there is a package and nothing of it for the target.
const OF_WHEELS: [&str; 4] = [
    "usable wheels",
    "no wheels",
    "has wheels",
    "Wheels are required",
];

/// What pip, uv, npm and their like mean.
fn known_of_tool(error: &ToolFailed) -> Option<&'static str> {
    let says = |words: &[&str]| {
        let mut lines = error.last_lines.iter();
        lines.any(|line| words.iter().any(|word| line.contains(word)))
    };
    // Not in a digest.
    let has_code = |codes: &[&str]| {
        let mut words = error
            .last_lines
            .iter()
            .flat_map(|line| line.split_whitespace());
        words.any(|word| {
            codes.contains(&word.trim_matches(|letter: char| !letter.is_alphanumeric()))
        })
    };
    Some(if error.status.signal() == Some(9) {
        "somebody killed it, as the system does when memory is short"
    } else if error.last_lines.iter().any(|line| is_about_space(line)) {
        FREE_SPACE
    } else if says(&["error: externally-managed", "No module named pip"]) {
        "uv does without the system's pip: `pip install uv`"
    } else if says(&[
        "DO NOT MATCH THE HASHES",
        "hash mismatch",
        "Hash mismatch",
        "EINTEGRITY",
        "ERR_PNPM_TARBALL_INTEGRITY",
        "Integrity check failed",
    ]) {
        "what the index has is not what was locked: lock again only if you know why; a damaged \
         copy in the tool's own cache is cured by `pip cache purge`, `uv cache clean` or \
         `npm cache clean --force`"
    } else if says(&["--require-hashes"]) {
        "with one hash in the file every package needs one: `uv pip compile --generate-hashes` or \
         `pip-compile --generate-hashes` writes them all"
    } else if says(&["E401", "E403", "Unauthorized", "Forbidden", "ENEEDAUTH"])
        || has_code(&["401", "403"])
    {
        "the index wants credentials: the tool takes them from PIP_INDEX_URL or UV_INDEX_URL, \
         ~/.netrc, a keyring, or .npmrc; none of them gets into the image"
    } else if says(&[
        "Temporary failure in name",
        "ENOTFOUND",
        "EAI_AGAIN",
        "ECONNREFUSED",
        "ENETUNREACH",
        "ETIMEDOUT",
        "Name or service not known",
        "Network is unreachable",
        "dns error",
        "Connection refused",
    ]) {
        "the index cannot be reached: check the network and HTTPS_PROXY; with what is in the cache \
         `--offline` builds without it"
    } else if says(&[
        "not found in the package registry",
        "E404",
        "ERR_PNPM_FETCH_404",
    ]) || has_code(&["404"])
    {
        "no index has a package of that name and version: look for a slip in the name, or say where \
         it is: PIP_EXTRA_INDEX_URL, UV_INDEX, or `registry` in .npmrc"
    } else if says(&["ResolutionImpossible", "conflicting dependencies"])
        || says(&["No solution found"]) && !says(&OF_WHEELS)
    {
        "the requirements contradict each other, or ask for another Python: loosen one of those that \
         are named"
    } else if says(&["from versions: none"]) {
        // pip does not tell them apart.
        "there is no wheel for that Python, processor and glibc (source packages are not built), no \
         package of that name, or an index that lets nobody in: look for a slip in the name, and at \
         `python-version`, `glibc` and credentials"
    } else if says(&["No matching distribution", "from versions:"]) || says(&OF_WHEELS) {
        "there is no wheel for that Python, processor and glibc, and source packages are not built: \
         another version may have one; what the base has can be said with `python-version` and `glibc`"
    } else if says(&["in sync", "EUSAGE"]) {
        "package.json and its lock say different things: `npm install` brings them together"
    } else {
        return None;
    })
}

/// What to do about what is no wheel.
const BUILT_BEFOREHAND: &str = "a wheel of it that was built beforehand is taken: `pip wheel --no-deps \
    --wheel-dir wheels …`, and `./wheels/NAME.whl` in its place; code of the project goes into the \
    image with `add`";

/// Where AWS's own credentials come from.
const AWS_WAYS: &str = "name a profile with `--aws-profile` or AWS_PROFILE, log in with \
    `aws sso login`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; `docker login` does too";

/// What is known of ECR's registries, which are logged in to as nothing else is.
fn known_of_ecr(error: &RegistryError) -> Option<String> {
    if let RegistryError::Unauthorized(refusal) = error
        && EcrHost::parse(&refusal.registry).is_some()
    {
        return Some(match &refusal.credentials {
            None => AWS_WAYS.to_owned(),
            Some(_) => "tokens of ECR last twelve hours: log in again, or `docker logout` there \
                and let tierce ask AWS"
                .to_owned(),
        });
    }
    if let RegistryError::NoRepository { repository, .. } = error {
        return Some(make_repository(&repository.registry, &repository.path));
    }
    let answer = error.answer()?;
    let host = answer.host.as_str();
    if EcrHost::parse(host).is_none() {
        let wait = "ECR Public gives one answer a second without credentials: wait, or log in \
            with AWS credentials";
        return (is_public_ecr(host) && error.is_rate_limited()).then(|| wait.to_owned());
    }
    let reads = matches!(answer.request.method.as_str(), "GET" | "HEAD");
    if error.has_code("NAME_UNKNOWN") && !reads {
        let path = repository_in(answer).unwrap_or("PATH");
        return Some(make_repository(host, path));
    }
    if error.is_denied() {
        return Some(if told(answer, "expired") {
            "the token has expired: log in again, or `docker logout` there and let tierce ask AWS"
                .to_owned()
        } else if reads {
            "to pull takes ecr:BatchGetImage and ecr:GetDownloadUrlForLayer on the repository, \
             in its policy too when it is of another account"
                .to_owned()
        } else {
            "to push takes ecr:BatchCheckLayerAvailability, ecr:InitiateLayerUpload, \
             ecr:UploadLayerPart, ecr:CompleteLayerUpload and ecr:PutImage on the repository; \
             one at its quota of images says no in the same way"
                .to_owned()
        });
    }
    None
}

fn make_repository(host: &str, path: &str) -> String {
    format!("make it with `tierce ecr create {host}/{path}`, or push with `--create-repository`")
}

/// Whether the registry says that word.
fn told(answer: &Answer, word: &str) -> bool {
    let messages = answer.errors.iter().map(|error| error.message.as_str());
    messages
        .chain([answer.excerpt.as_str()])
        .any(|message| message.contains(word))
}

/// The repository that a request was about.
fn repository_in(answer: &Answer) -> Option<&str> {
    let (_, path) = answer.request.path.split_once("/v2/")?;
    ["/blobs/", "/manifests/", "/tags/", "/referrers/"]
        .iter()
        .find_map(|part| Some(path.rsplit_once(part)?.0))
}

fn known_of_aws(error: &AwsError) -> Option<String> {
    Some(match error {
        AwsError::NoCredentials { .. } => AWS_WAYS.to_owned(),
        AwsError::NoRegion { .. } => {
            "name one with `--region` or AWS_REGION, or name the repository with its host"
                .to_owned()
        }
        AwsError::NoAnswer { .. } => {
            "check the region's name, the network, HTTPS_PROXY and AWS_ENDPOINT_URL".to_owned()
        }
        _ if error.is_bad_credentials() => {
            "`aws sts get-caller-identity` tells who you are; `aws sso login` renews a session"
                .to_owned()
        }
        _ if error.is_access_denied() => {
            let action = error.refused()?.action;
            format!("the caller needs {action}; `aws sts get-caller-identity` tells who that is")
        }
        _ if error.has_code("RepositoryNotFound") => {
            "make it with `tierce ecr create`, or check its name and region".to_owned()
        }
        _ if error.is_throttling() => "AWS wants fewer requests: wait".to_owned(),
        _ => return None,
    })
}

const IMMUTABLE: &str = "push under another tag; one that is immutable stays with its first image";

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
        RegistryError::ImmutableTag { .. } => IMMUTABLE,
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

    #[test]
    fn no_space_for_namespaces_is_none_of_a_disk() {
        let error = SandboxError::Step {
            step: "make namespaces".to_owned(),
            feature: Some(tierce_runner::sandbox::Feature::Namespaces),
            source: io::ErrorKind::StorageFull.into(),
        };
        let text = Diagnostic::of(&Error::new(error)).text;
        assert!(!text.contains(FREE_SPACE), "{text}");
        assert!(text.contains("\nhint: "), "{text}");
    }

    #[test]
    fn what_tools_say_is_understood() {
        let hint = |status: i32, said: &str| {
            known_of_tool(&ToolFailed {
                tool: "uv",
                file: "requirements.txt".to_owned(),
                target: "linux/arm64".to_owned(),
                status: std::process::ExitStatus::from_raw(status),
                last_lines: said.lines().map(str::to_owned).collect(),
            })
        };
        let failed = 1 << 8;
        for (said, part) in [
            (
                "cause: Because a was not found in the package registry and you require a",
                "no index has a package",
            ),
            ("npm error code E404", "no index has a package"),
            (
                "OSError: [Errno 28] No space left on device",
                "free some space",
            ),
            (
                "HTTP error 404 while getting http://h/wheels/a.whl",
                "no index has a package",
            ),
            (
                "No solution found\n  cause: Because a==1 has no usable wheels",
                "there is no wheel",
            ),
            (
                "ERROR: No matching distribution found for a==1",
                "there is no wheel",
            ),
            (
                "No solution found\n  cause: Because b==1 depends on a>=2 and you require a<2",
                "contradict each other",
            ),
            (
                "ERROR: ResolutionImpossible: for help",
                "contradict each other",
            ),
            ("cause: Hash mismatch for `a==1`", "is not what was locked"),
            ("npm error code EINTEGRITY", "is not what was locked"),
            (
                "In --require-hashes mode, all requirements must",
                "every package needs one",
            ),
            ("ERROR: HTTP error 401 while getting", "wants credentials"),
            ("npm error 403 Forbidden", "wants credentials"),
            ("cause: dns error", "cannot be reached"),
        ] {
            let hint = hint(failed, said).unwrap_or_default();
            assert!(hint.contains(part), "{said}: {hint}");
        }
        // Digests have any digits.
        assert_eq!(
            hint(failed, "could not read /packages/b7/4014033/a.whl"),
            None
        );
        assert!(hint(9, "").is_some_and(|hint| hint.contains("memory")));
    }
}
