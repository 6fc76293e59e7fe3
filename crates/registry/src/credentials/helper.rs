//! Programs that keep credentials: `docker-credential-NAME get`.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::credentials::CredentialKind;
use crate::credentials::config::password_or_token;
use crate::error::printable;

/// Why a credential helper gave no answer. What it wrote as an answer is never quoted.
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
        source: std::io::Error,
    },
    /// The program did not end in time.
    #[error("the credential helper `{helper}` gave no answer within {} s", waited.as_secs())]
    TimedOut {
        /// The program's name.
        helper: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The program said no.
    #[error("the credential helper `{helper}` failed: {message}")]
    Failed {
        /// The program's name.
        helper: String,
        /// What it says.
        message: String,
    },
    /// The program wrote something else than credentials.
    #[error("the credential helper `{0}` wrote something that is not credentials")]
    Malformed(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Output {
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
        if let Some(mut stdin) = child.stdin.take() {
            // A helper need not read what it is asked for; its answer tells.
            let _ = stdin.write_all(key.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(patience, run).await {
        Ok(Ok(output)) => output,
        Ok(Err(source)) => return Err(HelperError::Run { helper, source }),
        Err(_) => {
            return Err(HelperError::TimedOut {
                helper,
                waited: patience,
            });
        }
    };
    if output.status.success() {
        let Ok(Output { username, secret }) = serde_json::from_slice(&output.stdout) else {
            return Err(HelperError::Malformed(helper));
        };
        let empty = username.is_empty() && secret.is_empty();
        return Ok((!empty).then(|| password_or_token(username, secret)));
    }
    // Helpers tell errors on stdout (docker-credential-helpers, `credentials/error.go`).
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    if told.to_ascii_lowercase().contains("credentials not found") {
        return Ok(None);
    }
    let mut message = printable(&told, 300);
    if message.is_empty() {
        message = output.status.to_string();
    }
    Err(HelperError::Failed { helper, message })
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
