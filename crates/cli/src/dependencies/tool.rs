//! Running other people's tools: without a shell, with what they say shown and kept, and nothing
//! secret in it; and never longer than tierce itself runs.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, PipeWriter, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use super::secrets::Secrets;
use crate::environment::Variables;

/// A program that was found, and how it is told apart from others of its name.
#[derive(Debug, Clone)]
pub(crate) struct Tool {
    /// As people know it.
    pub(crate) name: &'static str,
    pub(crate) program: PathBuf,
    pub(crate) version: String,
}

/// One run of a tool.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) tool: &'a Tool,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) directory: &'a Path,
    pub(crate) environment: Vec<(OsString, OsString)>,
}

/// A tool did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("`{tool}` could not resolve `{file}` for {target} ({status}){}", last_words(.last_lines))]
pub(crate) struct ToolFailed {
    pub(crate) tool: &'static str,
    pub(crate) file: String,
    /// What it was to find dependencies for.
    pub(crate) target: String,
    pub(crate) status: ExitStatus,
    /// The end of what it said, without secrets.
    pub(crate) last_lines: Vec<String>,
}

fn last_words(lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    format!("; its last words:\n{}", lines.join("\n"))
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) last_lines: Vec<String>,
}

/// How much of what a failed tool said is repeated.
const KEPT: usize = 12;

/// Finds a program as a shell would. Entries of `PATH` that depend on where tierce runs are left
/// out: a context must not bring its own tools.
pub(crate) fn find(name: &str, variables: &Variables) -> Option<PathBuf> {
    let path = variables.get("PATH")?;
    std::env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find(|program| {
            program
                .metadata()
                .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        })
}

/// What a program prints when it is asked something short; `None` when it fails.
pub(crate) async fn ask(
    program: &Path,
    arguments: &[&str],
    directory: &Path,
    environment: Vec<(OsString, OsString)>,
) -> Option<String> {
    let output = command(program, directory, environment)
        .args(arguments)
        .stderr(Stdio::null())
        .output()
        .await
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// Has git and ssh fail where they would ask: the terminal belongs to tierce's process group, and a
/// tool that reads from it would be stopped, for ever.
const NOBODY_ANSWERS: [(&str, &str); 3] = [
    ("GIT_TERMINAL_PROMPT", "0"),
    ("SSH_ASKPASS", "false"),
    ("SSH_ASKPASS_REQUIRE", "force"),
];

fn command(program: &Path, directory: &Path, environment: Vec<(OsString, OsString)>) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(directory)
        .env_clear()
        .envs(environment)
        .envs(NOBODY_ANSWERS)
        .stdin(Stdio::null())
        // Nobody waits for what it does when the build has ended.
        .kill_on_drop(true);
    command
}

impl Run<'_> {
    /// Runs it to its end. Each line that it says goes to `show`, without secrets. Dropping the
    /// future ends the tool, and so does the end of tierce, whatever that is.
    pub(crate) async fn run(self, secrets: &Secrets, show: impl Fn(&str)) -> Result<Ended> {
        let name = self.tool.name;
        let context = || format!("could not start {name}");
        // One pipe for both, so that everything stays in its order.
        let (said, stdout) = io::pipe().with_context(context)?;
        let stderr = stdout.try_clone().with_context(context)?;
        let said = pipe::Receiver::from_owned_fd(said.into()).with_context(context)?;
        let mut child = command(&self.tool.program, self.directory, self.environment)
            .args(self.arguments)
            .stdout(stdout)
            .stderr(stderr)
            .process_group(0)
            .spawn()
            .with_context(context)?;
        let group = Group::of(&child);
        let end = async {
            let status = child.wait().await;
            // What it left running may hold the pipe open.
            drop(group);
            status
        };
        let (last_lines, status) = tokio::join!(follow(said, secrets, &show), end);
        let status = status.with_context(|| format!("could not wait for {name}"))?;
        Ok(Ended {
            status,
            last_lines: last_lines.into(),
        })
    }
}

/// A tool and all that it has started, which end when this is dropped or tierce is gone.
struct Group {
    leader: Option<Pid>,
    /// Somebody waits for its end; a line in it says that there is nothing left to do.
    watch: Option<PipeWriter>,
}

/// Ends the group that is its argument when its stdin ends before a line. Nobody can do that for
/// itself who is killed.
const WATCH: &str = "read -r done || kill -s KILL -- \"-$1\"";

impl Group {
    /// Of a child that leads a process group.
    fn of(child: &Child) -> Self {
        let leader = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        Self {
            leader,
            watch: leader.and_then(|leader| Self::watch(leader).ok()),
        }
    }

    /// Has the group watched. Without, it is ended by tierce alone, if it can.
    fn watch(leader: Pid) -> io::Result<PipeWriter> {
        let (end, watch) = io::pipe()?;
        Command::new("/bin/sh")
            .args(["-c", WATCH, "sh", &leader.to_string()])
            .env_clear()
            .stdin(end)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // What a terminal ends does not end this.
            .process_group(0)
            .spawn()?;
        Ok(watch)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.leader {
            let _ = kill_process_group(leader, Signal::KILL);
        }
        if let Some(watch) = &mut self.watch {
            let _ = watch.write_all(b"done\n");
        }
    }
}

/// Shows what comes out of a pipe, line by line, and keeps the end.
async fn follow(pipe: pipe::Receiver, secrets: &Secrets, show: &impl Fn(&str)) -> VecDeque<String> {
    let mut kept = VecDeque::new();
    let mut lines = BufReader::new(pipe).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line);
        // Of what was written over itself the last counts.
        let line = line.trim_end().rsplit('\r').next().unwrap_or_default();
        let line = secrets.hide(line);
        if line.trim().is_empty() {
            continue;
        }
        show(&line);
        kept.push_back(line);
        if kept.len() > KEPT {
            kept.pop_front();
        }
    }
    kept
}

/// Arguments out of words and paths.
pub(crate) fn words<const N: usize>(words: [&str; N]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// An option with a value that cannot be taken for another option.
pub(crate) fn option(name: &str, value: impl AsRef<OsStr>) -> OsString {
    let mut option = OsString::from(name);
    option.push("=");
    option.push(value);
    option
}
