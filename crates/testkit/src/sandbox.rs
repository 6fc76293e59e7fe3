//! A place to run programs in that knows nothing of the machine: an empty home, a bare environment.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A temporary home, with the program under test.
///
/// The environment of every command is empty but for `PATH`, `LANG=C`, `HOME`, `TMPDIR` and the
/// XDG directories, which all lie inside. Dropping it removes everything.
#[derive(Debug)]
pub struct Sandbox {
    root: TempDir,
    program: PathBuf,
}

impl Sandbox {
    /// Makes a sandbox for a program: tests pass `env!("CARGO_BIN_EXE_tierce")`.
    ///
    /// # Panics
    /// When no temporary directory can be made.
    pub fn new(program: impl AsRef<Path>) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory can be made");
        let sandbox = Self {
            root,
            program: program.as_ref().to_owned(),
        };
        for directory in [
            "home", "data", "cache", "config", "runtime", "bin", "tmp", "work",
        ] {
            let path = sandbox.root.path().join(directory);
            fs::create_dir(&path).expect("the sandbox is writable");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))
                .expect("the sandbox is ours");
        }
        sandbox
    }

    /// The directory that holds all others.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// `HOME`.
    pub fn home(&self) -> PathBuf {
        self.root.path().join("home")
    }

    /// `XDG_DATA_HOME`.
    pub fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }

    /// `XDG_CACHE_HOME`.
    pub fn cache(&self) -> PathBuf {
        self.root.path().join("cache")
    }

    /// `XDG_CONFIG_HOME`.
    pub fn config(&self) -> PathBuf {
        self.root.path().join("config")
    }

    /// `XDG_RUNTIME_DIR`.
    pub fn runtime(&self) -> PathBuf {
        self.root.path().join("runtime")
    }

    /// The directory that commands start in.
    pub fn work(&self) -> PathBuf {
        self.root.path().join("work")
    }

    /// A path below [`Self::work`].
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.work().join(relative)
    }

    /// Writes a file below [`Self::work`], with the directories it needs, and returns its path.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, relative: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(relative);
        write(&path, content.as_ref());
        path
    }

    /// A run of the program under test.
    pub fn tierce<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        self.command(&self.program).args(arguments)
    }

    /// A run of any program in the same surroundings.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = std::process::Command::new(program);
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
        let mut paths = vec![self.root.path().join("bin")];
        paths.extend(std::env::split_paths(&path));
        let paths = std::env::join_paths(paths).expect("PATH was joined before");
        command
            .env_clear()
            .env("PATH", paths)
            .env("LANG", "C")
            .env("HOME", self.home())
            .env("TMPDIR", self.root.path().join("tmp"))
            .env("XDG_DATA_HOME", self.data())
            .env("XDG_CACHE_HOME", self.cache())
            .env("XDG_CONFIG_HOME", self.config())
            .env("XDG_RUNTIME_DIR", self.runtime())
            .current_dir(self.work());
        Command {
            command,
            input: None,
        }
    }

    /// Replaces the sandbox's own path by `[SANDBOX]`, for snapshots.
    pub fn redact(&self, text: &str) -> String {
        text.replace(&*self.root.path().to_string_lossy(), "[SANDBOX]")
    }

    /// Writes `~/.docker/config.json`.
    pub fn docker_config(&self, config: &DockerConfig) -> PathBuf {
        let path = self.home().join(".docker/config.json");
        write(&path, config.json().to_string().as_bytes());
        path
    }

    /// Puts `docker-credential-NAME` on the sandbox's `PATH`.
    ///
    /// # Panics
    /// When the script cannot be written.
    pub fn credential_helper(&self, name: &str, behaviour: &HelperBehaviour) {
        let calls = self.helper_calls_path(name);
        let answer = match behaviour {
            HelperBehaviour::Answer { user, secret } => {
                let answer = json!({"ServerURL": "HOST", "Username": user, "Secret": secret});
                let answer = answer.to_string();
                let (before, after) = answer.split_once("HOST").unwrap_or((&answer, ""));
                format!("printf '%s' {}\"$host\"{}\n", quote(before), quote(after))
            }
            HelperBehaviour::NotFound => {
                "printf 'credentials not found in native keychain\\n'\nexit 1\n".to_owned()
            }
            HelperBehaviour::Fail { code, message } => {
                format!("printf '%s\\n' {} >&2\nexit {code}\n", quote(message))
            }
            HelperBehaviour::Print(text) => format!("printf '%s' {}\n", quote(text)),
            HelperBehaviour::Hang => "exec tail -f /dev/null\n".to_owned(),
        };
        let script = format!(
            "#!/bin/sh\nread -r host\nprintf '%s %s\\n' \"$1\" \"$host\" >> {}\n{answer}",
            quote(&calls.to_string_lossy())
        );
        let path = self
            .root
            .path()
            .join("bin")
            .join(format!("docker-credential-{name}"));
        write(&path, script.as_bytes());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the script is ours");
    }

    /// What a credential helper was asked so far, one `get HOST` a call.
    pub fn helper_calls(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.helper_calls_path(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn helper_calls_path(&self, name: &str) -> PathBuf {
        self.root.path().join(format!("helper-{name}.calls"))
    }
}

fn write(path: &Path, content: &[u8]) {
    let parent = path.parent().expect("the file lies in a directory");
    fs::create_dir_all(parent)
        .and_then(|()| fs::write(path, content))
        .unwrap_or_else(|why| panic!("could not write {}: {why}", path.display()));
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// What a fake credential helper does with every request.
#[derive(Clone)]
pub enum HelperBehaviour {
    /// Answers these credentials for every host; the user `<token>` makes the secret an identity
    /// token.
    Answer {
        /// The user's name.
        user: String,
        /// The password or token.
        secret: String,
    },
    /// Says that it has no credentials, in the words of the real helpers.
    NotFound,
    /// Writes to its standard error and fails.
    Fail {
        /// Its exit code.
        code: u8,
        /// What it complains of.
        message: String,
    },
    /// Prints this text, whatever it is.
    Print(String),
    /// Never answers.
    Hang,
}

impl HelperBehaviour {
    /// Answers a user and a secret.
    pub fn answer(user: &str, secret: &str) -> Self {
        Self::Answer {
            user: user.to_owned(),
            secret: secret.to_owned(),
        }
    }
}

impl fmt::Debug for HelperBehaviour {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Answer { .. } => "Answer(…)",
            Self::NotFound => "NotFound",
            Self::Fail { .. } => "Fail",
            Self::Print(_) => "Print(…)",
            Self::Hang => "Hang",
        })
    }
}

/// A Docker client's `config.json`, as `docker login` would leave it.
#[derive(Clone, Default)]
#[must_use]
pub struct DockerConfig {
    json: Value,
}

impl DockerConfig {
    /// An empty config.
    pub fn new() -> Self {
        Self { json: json!({}) }
    }

    /// Keeps user and password of a host in the file itself.
    pub fn auth(mut self, host: &str, user: &str, password: &str) -> Self {
        let encoded = STANDARD.encode(format!("{user}:{password}"));
        self.json["auths"][host] = json!({ "auth": encoded });
        self
    }

    /// Keeps an identity token of a host in the file itself.
    pub fn identity_token(mut self, host: &str, token: &str) -> Self {
        let encoded = STANDARD.encode("00000000-0000-0000-0000-000000000000:");
        self.json["auths"][host] = json!({"auth": encoded, "identitytoken": token});
        self
    }

    /// Leaves the host's entry empty, as Docker does when a store keeps the secret.
    pub fn empty_auth(mut self, host: &str) -> Self {
        self.json["auths"][host] = json!({});
        self
    }

    /// Names the helper of one host.
    pub fn cred_helper(mut self, host: &str, name: &str) -> Self {
        self.json["credHelpers"][host] = name.into();
        self
    }

    /// Names the helper of all other hosts.
    pub fn creds_store(mut self, name: &str) -> Self {
        self.json["credsStore"] = name.into();
        self
    }

    /// The file's content.
    pub fn json(&self) -> &Value {
        &self.json
    }
}

impl fmt::Debug for DockerConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("DockerConfig(…)")
    }
}

/// A run that has not begun.
#[derive(Debug)]
#[must_use = "a command does nothing until it is run"]
pub struct Command {
    command: std::process::Command,
    input: Option<Vec<u8>>,
}

impl Command {
    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Takes a variable out of the environment.
    pub fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Starts it in another directory.
    pub fn current_dir(mut self, directory: impl AsRef<Path>) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Gives it standard input; without, it has none.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run(mut self) -> Output {
        let line = format!("{:?}", self.command);
        let input = self.input.take();
        let mut child = self.spawn();
        let mut pipe = child.stdin.take();
        let writer = std::thread::spawn(move || {
            // A program that does not read all of its input is no failure of the test.
            if let (Some(pipe), Some(input)) = (&mut pipe, input) {
                let _ = pipe.write_all(&input);
            }
        });
        let output = child
            .wait_with_output()
            .expect("a child that was started can be awaited");
        writer.join().expect("the writer does not panic");
        Output {
            line,
            code: output.status.code(),
            stdout: output.stdout,
            stderr: output.stderr,
        }
    }

    /// Starts it and does not wait, for tests that kill it; its pipes are captured.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(mut self) -> Child {
        self.command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|why| panic!("could not start {:?}: {why}", self.command))
    }

    /// The standard library's command, for what this one does not offer.
    pub fn into_inner(self) -> std::process::Command {
        self.command
    }
}

/// What a run left behind: say what it should have come to.
#[derive(Clone)]
#[must_use = "a run that is not checked proves nothing"]
pub struct Output {
    line: String,
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Output {
    /// The exit code; `None` when a signal ended the run.
    pub fn code(&self) -> Option<i32> {
        self.code
    }

    /// Standard output.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Standard output, byte for byte.
    pub fn stdout_bytes(&self) -> &[u8] {
        &self.stdout
    }

    /// Standard output as one JSON document.
    ///
    /// # Panics
    /// When it is not JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        match serde_json::from_slice(&self.stdout) {
            Ok(value) => value,
            Err(why) => panic!("standard output is not JSON ({why}): {self:?}"),
        }
    }

    /// Demands exit code 0.
    ///
    /// # Panics
    /// When the run ended otherwise.
    #[track_caller]
    pub fn assert_success(self) -> Self {
        self.assert_code(0)
    }

    /// Demands an exit code.
    ///
    /// # Panics
    /// When the run ended otherwise.
    #[track_caller]
    pub fn assert_code(self, code: i32) -> Self {
        assert!(
            self.code == Some(code),
            "expected exit code {code}: {self:?}"
        );
        self
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self
            .code
            .map_or("a signal".to_owned(), |code| code.to_string());
        writeln!(formatter, "{} ended with {code}", self.line)?;
        writeln!(formatter, "--- stdout\n{}", self.stdout())?;
        write!(formatter, "--- stderr\n{}", self.stderr())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_bare_and_all_of_it_lies_inside() {
        let sandbox = Sandbox::new("/usr/bin/env");
        let output = sandbox
            .tierce::<&str>([])
            .env("MINE", "1")
            .run()
            .assert_success();
        let stdout = sandbox.redact(&output.stdout());
        let mut lines: Vec<&str> = stdout
            .lines()
            .filter(|line| !line.starts_with("PATH="))
            .collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "HOME=[SANDBOX]/home",
                "LANG=C",
                "MINE=1",
                "TMPDIR=[SANDBOX]/tmp",
                "XDG_CACHE_HOME=[SANDBOX]/cache",
                "XDG_CONFIG_HOME=[SANDBOX]/config",
                "XDG_DATA_HOME=[SANDBOX]/data",
                "XDG_RUNTIME_DIR=[SANDBOX]/runtime",
            ]
        );
    }

    #[test]
    fn output_carries_code_and_streams() {
        let sandbox = Sandbox::new("/bin/sh");
        let script = "cat; echo oops >&2; exit 3";
        let output = sandbox
            .tierce(["-c", script])
            .stdin("{\"a\":1}")
            .run()
            .assert_code(3);
        assert_eq!(output.json(), json!({"a": 1}));
        assert_eq!(output.stderr(), "oops\n");
    }

    #[test]
    fn credential_helpers_answer_and_remember() {
        let sandbox = Sandbox::new("/bin/sh");
        let secret = "it's \"quoted\" $HOME";
        sandbox.credential_helper("fake", &HelperBehaviour::answer("me", secret));
        let get = |name: &str| {
            let helper = format!("docker-credential-{name}");
            sandbox
                .tierce(["-c", &format!("{helper} get")])
                .stdin("registry:5000")
                .run()
        };
        let answer = get("fake").assert_success().json();
        let expected = json!({"ServerURL": "registry:5000", "Username": "me", "Secret": secret});
        assert_eq!(answer, expected);
        assert_eq!(sandbox.helper_calls("fake"), ["get registry:5000"]);
        sandbox.credential_helper("none", &HelperBehaviour::NotFound);
        assert!(
            get("none")
                .assert_code(1)
                .stdout()
                .contains("credentials not found")
        );
    }

    #[test]
    fn docker_configs_have_dockers_keys() {
        let sandbox = Sandbox::new("/bin/sh");
        let config = DockerConfig::new()
            .auth("a:5000", "u", "p")
            .cred_helper("b", "fake");
        let path = sandbox.docker_config(&config);
        let written: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        assert_eq!(
            written,
            json!({"auths": {"a:5000": {"auth": "dTpw"}}, "credHelpers": {"b": "fake"}})
        );
    }
}
