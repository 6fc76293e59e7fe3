//! Programs that keep credentials: `docker-credential-NAME get`.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use crate::credentials::CredentialKind;
use crate::credentials::config::password_or_token;
use crate::error::printable;
use crate::secret::KnownSecrets;

/// How much a helper may write, to either side. Tokens of some kilobytes occur.
const MAX_OUTPUT: usize = 64 * 1024;

/// How many lines of something else than an answer are looked for in an error.
const MAX_LINES: usize = 16;

/// Why a credential helper gave no answer.
///
/// What it wrote to its standard output, where secrets belong, is never quoted, whatever became of
/// it then.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// The program is not on the search path.
    #[error("the credential helper `{0}` is not installed")]
    NotInstalled(String),
    /// The program could not be started or spoken to.
    #[error("could not run the credential helper `{helper}`")]
    Run {
        /// The program's name.
        helper: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program did not end in time.
    #[error("the credential helper `{helper}` gave no answer within {} s", waited.as_secs())]
    TimedOut {
        /// The program's name.
        helper: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The program did not stop writing.
    #[error("the credential helper `{0}` wrote more than {limit} KiB", limit = MAX_OUTPUT / 1024)]
    TooMuch(String),
    /// The program said no.
    #[error("the credential helper `{helper}` failed: {message}")]
    Failed {
        /// The program's name.
        helper: String,
        /// What it says on its standard error, or else how it ended.
        message: String,
    },
    /// The program wrote something else than credentials.
    #[error("the credential helper `{0}` wrote something that is not credentials")]
    Malformed(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Credentials {
    username: String,
    secret: String,
}

/// Asks the helper of that short name for the credentials of `key`; `None` when it has none.
pub(crate) async fn ask(
    name: &str,
    key: &str,
    search_path: &OsStr,
    patience: Duration,
) -> Result<Option<CredentialKind>, HelperError> {
    let helper = format!("docker-credential-{name}");
    let program =
        find(&helper, search_path).ok_or_else(|| HelperError::NotInstalled(helper.clone()))?;
    let run = async {
        let mut child = Command::new(program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = converse(&mut child, key).await?;
        if output.is_none() {
            // It may have ended by itself.
            let _ = child.kill().await;
        }
        Ok(output)
    };
    let output = match tokio::time::timeout(patience, run).await {
        Ok(Ok(Some(output))) => output,
        Ok(Ok(None)) => return Err(HelperError::TooMuch(helper)),
        Ok(Err(source)) => return Err(HelperError::Run { helper, source }),
        Err(_) => {
            return Err(HelperError::TimedOut {
                helper,
                waited: patience,
            });
        }
    };
    if output.status.success() {
        let Ok(Credentials { username, secret }) = serde_json::from_slice(&output.stdout) else {
            return Err(HelperError::Malformed(helper));
        };
        let empty = username.is_empty() && secret.is_empty();
        return Ok((!empty).then(|| password_or_token(username, secret)));
    }
    // Helpers tell this on stdout (docker-credential-helpers, `credentials/error.go`).
    if is_absence(&output.stdout) || is_absence(&output.stderr) {
        return Ok(None);
    }
    let mut message = secrets_in(&output.stdout).map_or_else(String::new, |secrets| {
        printable(&secrets.hide(&String::from_utf8_lossy(&output.stderr)), 300)
    });
    if message.is_empty() {
        message = output.status.to_string();
    }
    Err(HelperError::Failed { helper, message })
}

/// Asks, and reads until the helper ends; `None` when it writes too much for that.
async fn converse(child: &mut Child, key: &str) -> io::Result<Option<Output>> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let ask = async {
        if let Some(mut stdin) = stdin {
            // A helper need not read what it is asked for; its answer tells.
            let _ = stdin.write_all(key.as_bytes()).await;
        }
        Ok(())
    };
    match tokio::try_join!(ask, read(stdout), read(stderr)) {
        Ok(((), stdout, stderr)) => Ok(Some(Output {
            status: child.wait().await?,
            stdout,
            stderr,
        })),
        Err(Unread::TooMuch) => Ok(None),
        Err(Unread::Io(error)) => Err(error),
    }
}

/// Why not all was read that a helper writes.
enum Unread {
    TooMuch,
    Io(io::Error),
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> Result<Vec<u8>, Unread> {
    let mut bytes = Vec::new();
    let Some(pipe) = pipe else {
        return Ok(bytes);
    };
    let mut pipe = pipe.take(MAX_OUTPUT as u64 + 1);
    pipe.read_to_end(&mut bytes).await.map_err(Unread::Io)?;
    if bytes.len() > MAX_OUTPUT {
        return Err(Unread::TooMuch);
    }
    Ok(bytes)
}

fn is_absence(told: &[u8]) -> bool {
    let told = String::from_utf8_lossy(told).to_ascii_lowercase();
    told.contains("credentials not found")
}

/// What must not be repeated of an answer that a helper has written before it failed; `None` when
/// that cannot be told.
fn secrets_in(stdout: &[u8]) -> Option<KnownSecrets> {
    let mut secrets = KnownSecrets::default();
    let Some(begin) = stdout.iter().position(|byte| *byte == b'{') else {
        // Not an answer, but perhaps a secret all the same.
        let text = String::from_utf8_lossy(stdout);
        if text.lines().count() > MAX_LINES {
            return None;
        }
        for line in text.lines().chain([&*text]) {
            secrets.add(line.trim());
        }
        return Some(secrets);
    };
    // The error may follow the answer.
    let rest = stdout.get(begin..)?;
    let Credentials { username, secret } = serde_json::Deserializer::from_slice(rest)
        .into_iter()
        .next()?
        .ok()?;
    secrets.add(format!("{username}:{secret}"));
    secrets.add(secret);
    Some(secrets)
}

/// Finds a program the way a shell would. The name is not trusted: it must not lead elsewhere.
fn find(program: &str, search_path: &OsStr) -> Option<PathBuf> {
    if program.contains(['/', '\\']) {
        return None;
    }
    std::env::split_paths(&OsString::from(search_path))
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    async fn run(script: &str, patience: Duration) -> Result<Option<CredentialKind>, HelperError> {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("docker-credential-test");
        // Written by another process: a program that this one has open for writing, even in a child
        // that another test is just starting, cannot be run.
        let write = "printf '#!/bin/sh\\n%s\\n' \"$2\" >\"$1\" && chmod 755 \"$1\"";
        let status = std::process::Command::new("/bin/sh")
            .args(["-c", write, "sh"])
            .args([program.as_os_str(), OsStr::new(script)])
            .status();
        assert!(status.unwrap().success());
        ask("test", "a.b:5000", directory.path().as_os_str(), patience).await
    }

    #[tokio::test]
    async fn gives_passwords_and_tokens() {
        let script =
            r#"read key; echo "{\"ServerURL\":\"x\",\"Username\":\"$1-$key\",\"Secret\":\"s\"}""#;
        let found = run(script, PATIENCE).await.unwrap();
        assert_eq!(
            found,
            Some(password_or_token("get-a.b:5000".to_owned(), "s".to_owned()))
        );
        let script = r#"echo '{"Username":"<token>","Secret":"s"}'"#;
        let found = run(script, PATIENCE).await.unwrap();
        assert!(matches!(found, Some(CredentialKind::IdentityToken(_))));
        let script = r#"echo '{"Username":"","Secret":""}'"#;
        assert_eq!(run(script, PATIENCE).await.unwrap(), None);
    }

    #[tokio::test]
    async fn having_none_is_no_failure() {
        let script = "echo credentials not found in native keychain; exit 1";
        assert_eq!(run(script, PATIENCE).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_failure_does_not_tell_the_answer_before_it() {
        const ANSWER: &str = r#"{"ServerURL":"x","Username":"me","Secret":"correct-horse"}"#;
        let shown = async |script: &str| {
            let error = run(script, PATIENCE).await.unwrap_err();
            assert!(matches!(error, HelperError::Failed { .. }), "{error:?}");
            let text = format!("{error} {error:?}");
            assert!(
                !text.contains("horse") && !text.contains("bWU6Y29y"),
                "{text}"
            );
            error.to_string()
        };
        let text = shown(&format!("echo '{ANSWER}'; exit 1")).await;
        assert!(text.ends_with("failed: exit status: 1"), "{text}");
        let script = format!(
            "echo '{ANSWER}'; echo failed; echo 'locked: correct-horse bWU6Y29ycmVjdC1ob3JzZQ==' >&2; exit 1"
        );
        let text = shown(&script).await;
        assert!(
            text.ends_with("failed: locked: (secret) (secret)=="),
            "{text}"
        );
        // An answer that is broken off, or that is none.
        let script = "printf '{\"Secret\":\"correct-horse'; echo correct-horse >&2; exit 1";
        let text = shown(script).await;
        assert!(text.ends_with("failed: exit status: 1"), "{text}");
        let script = "echo correct-horse; echo no correct-horse >&2; exit 1";
        let text = shown(script).await;
        assert!(text.ends_with("failed: no (secret)"), "{text}");
    }

    #[tokio::test]
    async fn a_helper_that_does_not_stop_writing_is_stopped() {
        for script in ["exec yes", "exec yes >&2", "yes", "head -c 65537 /dev/zero"] {
            let error = run(script, PATIENCE).await.unwrap_err();
            assert_eq!(
                error.to_string(),
                "the credential helper `docker-credential-test` wrote more than 64 KiB",
                "{script}"
            );
        }
        let script = "head -c 65536 /dev/zero; head -c 65536 /dev/zero >&2";
        let error = run(script, PATIENCE).await.unwrap_err();
        assert!(matches!(error, HelperError::Malformed(_)), "{error:?}");
    }

    #[tokio::test]
    async fn failures_name_the_helper() {
        let shown = |result: Result<_, HelperError>| result.map(|_| ()).unwrap_err().to_string();
        let error = shown(run("echo locked >&2; exit 3", PATIENCE).await);
        assert_eq!(
            error,
            "the credential helper `docker-credential-test` failed: locked"
        );
        let error = shown(run("exit 3", PATIENCE).await);
        assert!(error.ends_with("failed: exit status: 3"), "{error}");
        let error = shown(run("echo hunter2", PATIENCE).await);
        assert!(error.contains("not credentials") && !error.contains("hunter2"));
        let error = shown(run("exec sleep 600", Duration::from_millis(10)).await);
        assert!(error.contains("gave no answer within"), "{error}");
        let error = shown(ask("no/../such", "k", OsStr::new("/"), PATIENCE).await);
        assert!(error.contains("is not installed"), "{error}");
    }
}
