//! Processes in a box: started, listened to, ended. Nothing here knows what Lambda is.
//!
//! A [`Sandbox`] is a pair of channels to whatever keeps the box: [`Order`]s go in, [`Event`]s come
//! out. So the same environment drives namespaces, an OCI runtime, or plain processes.
//!
//! ```text
//! tierce                                         │ a program of its own, tierce's stages
//! plain ──────┐                                  │
//! oci_runtime ┤                                  │
//! namespaces ─┴→ outside ── protocol, a socket ──┼→ inside: starts, reaps, kills
//!                        ←─ two pipes of output ─┼─ the processes
//! ```
//!
//! The death of either end is the end of the box: inside reads the end of the socket, outside waits
//! for the program.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::rootfs::Root;

pub use doorkeeper::Doorkeeper;
pub use features::Feature;
pub use memory::MemoryKeeper;

mod doorkeeper;
pub mod features;
mod inside;
mod memory;
pub mod namespaces;
pub mod oci_runtime;
mod outside;
pub mod plain;
mod processes;
mod protocol;

/// The first argument of [`Settings::program`] when it is to be a stage of a sandbox.
const STAGE: &str = "__sandbox";

/// Becomes a stage of a sandbox, if that is what the program was started for: `arguments` are those
/// of the program without its name. To be called first of all in `main`, because what follows may
/// be done only by a process of one thread.
pub fn stage_main(arguments: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut arguments = arguments.into_iter();
    if arguments.next()? != STAGE || arguments.next().is_some() {
        return None;
    }
    Some(inside::stage())
}

/// Why there is no box.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// No listener for the Runtime API.
    #[error("could not listen on 127.0.0.1")]
    Listen(#[source] io::Error),
    /// No pipes or sockets between here and the box.
    #[error("could not make the channels of a sandbox")]
    Channels(#[source] io::Error),
    /// The program with the stages was not started.
    #[error("could not start `{}` as a sandbox", program.display())]
    Program {
        /// [`Settings::program`].
        program: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// No bundle for an OCI runtime.
    #[error("could not make a bundle in `{}`", directory.display())]
    Bundle {
        /// [`Settings::scratch`].
        directory: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A step on the way into the box was refused.
    #[error("could not {step}")]
    Step {
        /// What was being done, as `mount the root`.
        step: String,
        /// What the machine lacks, if that is why.
        feature: Option<Feature>,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The program ended before the box was ready, or spoke something else.
    #[error("`{}` did not become a sandbox ({how})", program.display())]
    NoStage {
        /// [`Settings::program`].
        program: PathBuf,
        /// How it went instead.
        how: String,
    },
}

/// What a box is like. The defaults of the command line are Lambda's.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The root filesystem.
    pub root: Arc<Root>,
    /// Whether what is written to the root is kept in memory for the box's life, as much as in
    /// `/tmp`, instead of refused.
    pub writable_root: bool,
    /// Bytes of `/tmp`, which lives as long as the box.
    pub tmp_size: u64,
    /// Bytes of `/dev/shm`; Lambda has none.
    pub shared_memory: Option<u64>,
    /// What of the network can be seen.
    pub network: Network,
    /// Directories and files of this machine.
    pub volumes: Vec<Volume>,
    /// Open files per process: 1024 on Lambda.
    pub open_files: u64,
    /// Processes and threads: 1024 on Lambda.
    pub processes: u64,
    /// Bytes of memory that all processes of the box together may use.
    pub memory: Option<u64>,
    /// As whom the processes run, as they see it: 993 and 990 on Lambda.
    pub user: u32,
    /// See [`Settings::user`].
    pub group: u32,
    /// Where directories of this box alone may be made; the box's keeper removes them.
    pub scratch: PathBuf,
    /// The program that has [`crate::sandbox`]'s stages in it: tierce itself.
    pub program: PathBuf,
}

/// What of the network a box sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// What this machine sees.
    Host,
    /// Itself.
    None,
}

/// A file or directory of this machine in the box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Where it is here: absolute, and there.
    pub source: PathBuf,
    /// Where it is in the box: absolute, without `..`.
    pub target: PathBuf,
    /// Whether the box may change it.
    pub writable: bool,
}

/// A process to start. Its standard input is empty.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Process {
    /// Absolute in the box, or a name to be looked for in the `PATH` of its own environment.
    pub program: String,
    /// Without the program's name.
    pub arguments: Vec<String>,
    /// All of its environment.
    pub environment: BTreeMap<String, String>,
    /// Where it starts, absolute in the box.
    pub directory: String,
    /// Which of the two streams of log lines its output goes to.
    pub log: Log,
}

/// Whose words these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Log {
    /// The runtime's and what it started.
    Function,
    /// An extension's.
    Extension,
}

/// Names a process of a box, chosen by who starts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessNumber(pub u32);

/// What a box is told.
#[derive(Debug)]
pub enum Order {
    /// Start a process; answered by `Started` or `NotStarted`.
    Start(ProcessNumber, Process),
    /// Send SIGTERM to a process.
    Terminate(ProcessNumber),
    /// Send SIGKILL to every process of the box, those that were left behind by others included;
    /// `/tmp` stays. Each started process ends with an `Exited`; then comes one `Empty`.
    KillAll,
    /// End the box. The last event is `Ended`, after which nothing of it is left.
    End,
}

/// What a box tells.
#[derive(Debug)]
pub enum Event {
    /// The program runs.
    Started(ProcessNumber),
    /// It does not, and there is no process.
    NotStarted(ProcessNumber, NotStarted),
    /// A process is gone.
    Exited(ProcessNumber, Exit),
    /// The processes of the box came to this many bytes, above its limit, and all were killed. Their
    /// `Exited` come before or after it. It comes once until `Empty`.
    OutOfMemory(u64),
    /// `KillAll` is done.
    Empty,
    /// The box is gone, with the reason if nobody asked for it.
    Ended(Option<String>),
}

/// Why a program was not started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum NotStarted {
    /// The directory to start in cannot be entered.
    #[error("chdir {0}: {1}")]
    Directory(String, String),
    /// The program cannot be run: its path and the words of the system, as `exec format error`.
    #[error("fork/exec {0}: {1}")]
    Program(String, String),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// By itself.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

/// A piece of what processes wrote to stdout or stderr, not cut into lines.
#[derive(Debug, Clone)]
pub struct Written {
    /// By whom.
    pub log: Log,
    /// What.
    pub bytes: Bytes,
}

/// A box and the ways to it. Dropping it ends the box too, without waiting.
#[derive(Debug)]
pub struct Sandbox {
    /// What it is told.
    pub orders: mpsc::UnboundedSender<Order>,
    /// What it tells.
    pub events: mpsc::UnboundedReceiver<Event>,
    /// What its processes write. It holds little, and a full one delays the events, because what a
    /// process wrote before its end is here before its `Exited` is there: read both.
    pub written: mpsc::Receiver<Written>,
    /// Asks that all that lies in the pipes of its processes now be read; answered when it is in
    /// [`Sandbox::written`]. So a line that was written before an answer is told before it too.
    pub drain: mpsc::UnboundedSender<oneshot::Sender<()>>,
    /// The most bytes of memory that its processes were seen to use together, so far.
    pub memory_peak: Arc<AtomicU64>,
    /// Whose network its processes are on, so whether a server of theirs can be reached from here.
    pub network: Network,
    /// A listener on loopback that the processes of the box reach at its own address, and nobody
    /// else where [`Doorkeeper`] says so.
    pub listener: TcpListener,
    /// Tells whether a peer of [`Sandbox::listener`] is of this box.
    pub doorkeeper: Doorkeeper,
}
