//! A function that runs here, and ways to ask it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tierce_testkit::process::require;

use crate::support::{demand_root, lambda_base, node_base, provided_base, repository, sandbox};

/// Who runs tierce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Person {
    Root,
    /// Uid and gid 65534: without groups, capabilities, or a line in a file of subordinate ids.
    Nobody,
}

pub(super) const EVERYBODY: [Person; 2] = [Person::Root, Person::Nobody];

const NOBODY: u32 = 65534;

/// How long anything may take on a loaded machine.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);

/// A person's folder: a home, tierce itself, and the images that were put there.
pub(super) struct Place {
    folder: TempDir,
    person: Person,
}

impl Place {
    pub(super) fn of(person: Person) -> Self {
        demand_root("be root and somebody else");
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let place = Self { folder, person };
        fs::create_dir(place.path("home")).unwrap();
        // Cargo's folder may be closed to others, and a copy takes a second.
        let program = env!("CARGO_BIN_EXE_tierce");
        if fs::hard_link(program, place.path("tierce")).is_err() {
            fs::copy(program, place.path("tierce")).unwrap();
        }
        place.hand_over(&place.path("home"));
        place
    }

    pub(super) fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join(relative)
    }

    /// Gives a tree to the person.
    pub(super) fn hand_over(&self, path: &Path) {
        if self.person == Person::Root {
            return;
        }
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        if path.is_dir() && !path.is_symlink() {
            for entry in fs::read_dir(path).unwrap() {
                self.hand_over(&entry.unwrap().path());
            }
        }
    }

    /// Builds a function of `fixtures/trials`, and names the image.
    pub(super) fn build(&self, trial: &[&str]) -> String {
        let context = prepared(trial);
        self.build_folder(&context, trial[0], &trial.concat())
    }

    /// Builds a folder that `tests/trials/prepare` has made, or a copy of such.
    pub(super) fn build_folder(&self, context: &Path, language: &str, name: &str) -> String {
        let sandbox = sandbox();
        let base = match language {
            "python" => lambda_base(&sandbox),
            "node" => node_base(&sandbox),
            _ => provided_base(&sandbox),
        };
        let output = format!("oci:{}:1", self.path(name).display());
        let context = context.to_str().unwrap();
        let platform = format!("linux/{}", crate::support::architecture());
        let arguments = [
            "build",
            context,
            "--base",
            &base,
            "--platform",
            &platform,
            "-o",
            &output,
        ];
        drop(sandbox.tierce(arguments).run().assert_success());
        self.hand_over(&self.path(name));
        output
    }

    /// A copy of a folder that belongs to the person.
    pub(super) fn copy(&self, from: &Path, name: &str) -> PathBuf {
        let to = self.path(name);
        let copied = Command::new("cp")
            .arg("-r")
            .arg(from)
            .arg(&to)
            .status()
            .unwrap();
        assert!(copied.success());
        self.hand_over(&to);
        to
    }

    /// A command of the person's, with nothing of the test's own environment but the `PATH`.
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = match self.person {
            Person::Root => Command::new(program),
            Person::Nobody => {
                let mut command = Command::new(require("setpriv"));
                let (user, group) = (format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"));
                command
                    .args([&user, &group, "--clear-groups", "--"])
                    .arg(program);
                command
            }
        };
        command
            .env_clear()
            .env("PATH", search_path())
            .env("HOME", self.path("home"))
            .env("TRIAL_SECRET", "of the host")
            .current_dir(self.path("home"));
        command
    }

    pub(super) fn tierce<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = self.command(self.path("tierce"));
        command.args(arguments);
        command
    }

    /// Runs an image with these flags, on a free port, and waits until it takes events.
    #[track_caller]
    pub(super) fn run(&self, image: &str, flags: &[&str]) -> Running {
        let log = self.path(&format!("log-{}", unique()));
        let mut child = self
            .tierce(["run", image, "-p", "0"])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut url = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut url).unwrap();
        let mut running = Running {
            child,
            url: url.trim().to_owned(),
            log,
        };
        if !running.url.starts_with("http://127.0.0.1:") {
            let _ = running.child.wait();
            panic!(
                "tierce run did not start: {:?}\n{}",
                running.url,
                running.log()
            );
        }
        running
    }
}

/// The `PATH` of the tests, with what Debian keeps for root: runc is there.
fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

/// A number that no other caller of this process gets.
fn unique() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The folder that `tests/trials/prepare` makes.
pub(super) fn prepared(trial: &[&str]) -> PathBuf {
    let mut command = Command::new(repository("tests/trials/prepare"));
    let output = command
        .args(trial)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "{trial:?} could not be prepared");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// What came back.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    /// By lower-case name.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Reply {
    #[track_caller]
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("no JSON: {}", String::from_utf8_lossy(&self.body)))
    }

    /// What the function answered.
    #[track_caller]
    pub(super) fn success(&self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        assert_eq!(
            self.headers.get("x-amz-function-error"),
            None,
            "{:?}",
            self.json()
        );
        assert_eq!(self.headers["x-amz-executed-version"], "$LATEST");
        self.json()
    }

    /// The error's type and message, when the function failed.
    #[track_caller]
    pub(super) fn function_error(&self) -> (String, String) {
        assert_eq!(self.status, 200, "{self:?}");
        assert_eq!(
            self.headers.get("x-amz-function-error").unwrap(),
            "Unhandled",
            "{self:?}"
        );
        let json = self.json();
        let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
        (text("errorType"), text("errorMessage"))
    }
}

/// A running `tierce run`. Dropping it kills it.
pub(super) struct Running {
    pub(super) child: Child,
    pub(super) url: String,
    pub(super) log: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    pub(super) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned()
    }

    /// Waits until the log has a text.
    #[track_caller]
    pub(super) fn wait_for_log(&self, text: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(
                Instant::now() < until,
                "`{text}` is not in the log:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// `http://127.0.0.1:PORT`.
    pub(super) fn endpoint(&self) -> &str {
        self.url.split("/2015-03-31").next().unwrap()
    }

    pub(super) fn post(&self, event: &str) -> Reply {
        self.post_with(event, &[])
    }

    /// Posts an event as people do it by hand.
    #[track_caller]
    pub(super) fn post_with(&self, event: &str, headers: &[&str]) -> Reply {
        curl(&self.url, event.as_bytes(), headers)
    }

    /// Asks it to end, as Ctrl-C does, and gives its exit code.
    #[track_caller]
    pub(super) fn interrupt(self) -> Option<i32> {
        self.end_by(Signal::INT)
    }

    /// Sends it a signal, and gives its exit code.
    #[track_caller]
    pub(super) fn end_by(mut self, signal: Signal) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "it does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// `curl -d`, and what it got.
#[track_caller]
pub(super) fn curl(url: &str, body: &[u8], headers: &[&str]) -> Reply {
    let mut command = Command::new(require("curl"));
    command.args(["-sS", "-i", "--max-time", "120", "--data-binary", "@-", url]);
    for header in headers {
        command.args(["-H", header]);
    }
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = child.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let body = body.to_vec();
    let writer = std::thread::spawn(move || drop(input.write_all(&body)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "curl failed: {stderr}");
    let mut rest = output.stdout.as_slice();
    loop {
        let end = rest
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .unwrap();
        let head = std::str::from_utf8(&rest[..end]).unwrap();
        rest = &rest[end + 4..];
        let mut lines = head.split("\r\n");
        let status = lines
            .next()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        if status == 100 {
            continue;
        }
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_ascii_lowercase(), value.trim().to_owned())
        });
        return Reply {
            status,
            headers: headers.collect(),
            body: rest.to_vec(),
        };
    }
}
