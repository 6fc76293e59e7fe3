//! The way to a box from tierce: starts its keeper, and makes channels of socket and pipes.

use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::memory::Memory;
use super::processes;
use super::protocol::{self, Beginning, Messages, Report, Setup};
use super::{Doorkeeper, Event, Exit, Log, Network, Order, STAGE, Sandbox, SandboxError, Written};

/// As much as a pipe holds by default.
const PIECE: usize = 64 << 10;

/// Pieces of output on the way. More of them would hide from a process that nobody reads.
const PIECES: usize = 16;

/// A listener that the box reaches by the loopback of this machine.
pub(super) fn listen() -> Result<TcpListener, SandboxError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(SandboxError::Listen)
}

/// How long a stage may take for a step; it takes some milliseconds, but an OCI runtime may hang.
const PATIENCE: Duration = Duration::from_mins(1);

/// A stage that was started and not told yet what it is to become. When it is dropped it ends.
pub(super) struct Keeper {
    program: PathBuf,
    child: Child,
    control: UnixStream,
    function: OwnedFd,
    extension: OwnedFd,
}

impl Keeper {
    pub(super) fn start(program: &Path) -> Result<Self, SandboxError> {
        let pipe = || {
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
                .map_err(|errno| SandboxError::Channels(errno.into()))
        };
        let (control, its_control) = UnixStream::pair().map_err(SandboxError::Channels)?;
        control
            .set_read_timeout(Some(PATIENCE))
            .map_err(SandboxError::Channels)?;
        let (function, its_function) = pipe()?;
        let (extension, its_extension) = pipe()?;
        let child = Command::new(program)
            .arg(STAGE)
            .env_clear()
            .stdin(OwnedFd::from(its_control))
            .stdout(its_function)
            .stderr(its_extension)
            // A terminal's Ctrl-C is for tierce, which ends its boxes in order.
            .process_group(0)
            .spawn()
            .map_err(|source| SandboxError::Program {
                program: program.to_owned(),
                source,
            })?;
        Ok(Self {
            program: program.to_owned(),
            child,
            control,
            function,
            extension,
        })
    }

    /// Its process, in whose descendants the processes of the box are.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Tells a stage what to become. One that does not listen says why, or nothing any more.
    pub(super) fn tell(&self, setup: &Setup) {
        if protocol::send(&self.control, setup).is_err() {
            // It must not wait for the rest of it.
            let _ = self.control.shutdown(Shutdown::Write);
        }
    }

    /// What a stage says, unless there is no box. A listener may come with it.
    pub(super) fn said(&self) -> Result<(Beginning, Option<OwnedFd>), SandboxError> {
        match protocol::receive_with(&self.control) {
            Ok((Beginning::Failed(step, feature, errno), _)) => Err(SandboxError::Step {
                step,
                feature,
                source: io::Error::from_raw_os_error(errno),
            }),
            Ok(said) => Ok(said),
            Err(error) => Err(match error.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                    self.no_stage("it ended without a word")
                }
                io::ErrorKind::WouldBlock => {
                    // It, and an OCI runtime that it waits for.
                    if let Some(group) = process_of(&self.child) {
                        let _ = kill_process_group(group, Signal::KILL);
                    }
                    self.no_stage("it said nothing for a minute")
                }
                _ => self.no_stage(&error.to_string()),
            }),
        }
    }

    /// Waits for the box, and takes the listener that may come with it.
    pub(super) fn begun(&self) -> Result<Option<OwnedFd>, SandboxError> {
        match self.said()? {
            (Beginning::Ready, listener) => Ok(listener),
            _ => Err(self.no_stage("it is not ready")),
        }
    }

    /// The program does not do what a stage does.
    pub(super) fn no_stage(&self, how: &str) -> SandboxError {
        SandboxError::NoStage {
            program: self.program.clone(),
            how: how.to_owned(),
        }
    }

    /// Lets the channels of a box flow.
    pub(super) fn open(
        self,
        listener: TcpListener,
        doorkeeper: Doorkeeper,
        memory: Memory,
        network: Network,
    ) -> Result<Sandbox, SandboxError> {
        self.control
            .set_nonblocking(true)
            .map_err(SandboxError::Channels)?;
        let control =
            tokio::net::UnixStream::from_std(self.control).map_err(SandboxError::Channels)?;
        let (reports, commands) = control.into_split();
        let receiver = |end| pipe::Receiver::from_owned_fd(end).map_err(SandboxError::Channels);
        let (function, extension) = (receiver(self.function)?, receiver(self.extension)?);
        let (orders, taken_orders) = mpsc::unbounded_channel();
        let (told_events, events) = mpsc::unbounded_channel();
        let (kills, taken_kills) = mpsc::unbounded_channel();
        let (pieces, written) = mpsc::channel(PIECES);
        let (drain, drains) = mpsc::unbounded_channel();
        let ending = Arc::new(AtomicBool::new(false));
        let memory = Arc::new(memory);
        let memory_peak = memory.peak();
        let watching = process_of(&self.child).map(|first| {
            // The stages count for nothing: what the last of them starts is the box's.
            let keeper = processes::descendants(first).pop().unwrap_or(first);
            let watch = Arc::clone(&memory).watch(keeper, kills.clone(), told_events.clone());
            tokio::spawn(watch)
        });
        let ear = Ear {
            child: self.child,
            reports: Messages::new(reports),
            function: Stream::new(Log::Function, function, pieces.clone()),
            extension: Stream::new(Log::Extension, extension, pieces),
            drains,
            events: told_events,
            kills,
            memory,
            watching,
            ending: Arc::clone(&ending),
        };
        tokio::spawn(speak(taken_orders, taken_kills, commands, ending));
        tokio::spawn(ear.listen());
        Ok(Sandbox {
            orders,
            events,
            written,
            drain,
            memory_peak,
            network,
            listener,
            doorkeeper,
        })
    }
}

/// The process of a child that nobody has waited for.
fn process_of(child: &Child) -> Option<Pid> {
    let id = i32::try_from(child.id()?).ok()?;
    Pid::from_raw(id)
}

/// Passes orders on until there are no more, and ends the box then.
async fn speak(
    mut orders: mpsc::UnboundedReceiver<Order>,
    mut kills: mpsc::UnboundedReceiver<()>,
    mut commands: OwnedWriteHalf,
    ending: Arc<AtomicBool>,
) {
    loop {
        let command = tokio::select! {
            Some(()) = kills.recv() => protocol::Command::KillAll(false),
            order = orders.recv() => match order {
                Some(Order::Start(number, process)) => protocol::Command::Start(number, process),
                Some(Order::Terminate(number)) => protocol::Command::Terminate(number),
                Some(Order::KillAll) => protocol::Command::KillAll(true),
                Some(Order::End) | None => break,
            },
        };
        let Ok(frame) = protocol::frame(&command) else {
            break;
        };
        if commands.write_all(&frame).await.is_err() {
            // The box is gone, and the other side says so.
            return;
        }
    }
    ending.store(true, Ordering::Relaxed);
    // Dropping `commands` ends the stream, and with it the box.
}

/// Hears what the box says and writes.
struct Ear {
    child: Child,
    reports: Messages<OwnedReadHalf>,
    function: Stream,
    extension: Stream,
    drains: mpsc::UnboundedReceiver<oneshot::Sender<()>>,
    events: mpsc::UnboundedSender<Event>,
    kills: mpsc::UnboundedSender<()>,
    memory: Arc<Memory>,
    watching: Option<JoinHandle<()>>,
    ending: Arc<AtomicBool>,
}

impl Ear {
    async fn listen(mut self) {
        let broken = loop {
            tokio::select! {
                report = self.reports.next::<Report>() => match report {
                    Ok(Some(report)) => self.tell(report).await,
                    Ok(None) => break None,
                    Err(error) => break Some(error),
                },
                Some(drained) = self.drains.recv() => {
                    self.function.drain().await;
                    self.extension.drain().await;
                    let _ = drained.send(());
                }
                () = self.function.readable() => self.function.pass_piece().await,
                () = self.extension.readable() => self.extension.pass_piece().await,
            }
        };
        // Without its socket it ends, if it has not ended.
        drop(self.reports);
        if broken.is_some() {
            let _ = self.child.start_kill();
        }
        let status = self.child.wait().await;
        self.function.drain().await;
        self.extension.drain().await;
        if let Some(watching) = self.watching {
            watching.abort();
            // It has a share in the memory, which is given back before the box is said to be gone.
            let _ = watching.await;
        }
        self.memory.end().await;
        drop(self.memory);
        let reason = (!self.ending.load(Ordering::Relaxed)).then(|| ending_of(status));
        let _ = self.events.send(Event::Ended(reason));
    }

    /// Says why before it says what, if the kernel killed a process at the wall.
    fn tell_of_wall(&self) {
        if let Some(bytes) = self.memory.stopped_by_wall() {
            let _ = self.events.send(Event::OutOfMemory(bytes));
            let _ = self.kills.send(());
        }
    }

    async fn tell(&mut self, report: Report) {
        let event = match report {
            Report::Started(number) => Event::Started(number),
            Report::NotStarted(number, why) => Event::NotStarted(number, why),
            Report::Exited(number, exit) => {
                if exit == Exit::Signal(Signal::KILL.as_raw()) {
                    self.tell_of_wall();
                }
                self.function.drain().await;
                self.extension.drain().await;
                Event::Exited(number, exit)
            }
            Report::Empty => {
                self.memory.emptied();
                Event::Empty
            }
        };
        // When nobody listens to events the box lives on as long as there are orders.
        let _ = self.events.send(event);
    }
}

fn ending_of(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => format!("the keeper of the sandbox ended: {status}"),
        Err(error) => format!("the keeper of the sandbox was lost: {error}"),
    }
}

/// One of the two pipes of output.
struct Stream {
    log: Log,
    /// Nothing once it has ended.
    pipe: Option<pipe::Receiver>,
    pieces: mpsc::Sender<Written>,
    buffer: BytesMut,
}

impl Stream {
    fn new(log: Log, pipe: pipe::Receiver, pieces: mpsc::Sender<Written>) -> Self {
        Self {
            log,
            pipe: Some(pipe),
            pieces,
            buffer: BytesMut::new(),
        }
    }

    /// Waits until there may be something; for ever after the end.
    async fn readable(&self) {
        match &self.pipe {
            Some(pipe) if pipe.readable().await.is_ok() => {}
            _ => std::future::pending().await,
        }
    }

    /// Passes on what can be read without waiting, of one piece's size at most.
    async fn pass_piece(&mut self) {
        let Some(pipe) = &self.pipe else {
            return;
        };
        self.buffer.reserve(PIECE);
        match pipe.try_read_buf(&mut self.buffer) {
            Ok(0) => self.pipe = None,
            Ok(_) => self.pass().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.pipe = None,
        }
    }

    /// Passes on what is in the pipe now, which tokio may not have heard of yet.
    async fn drain(&mut self) {
        let Some(pipe) = &self.pipe else {
            return;
        };
        let mut piece = vec![0; usize::try_from(waiting(pipe)).unwrap_or(PIECE)];
        let read = rustix::io::read(pipe, &mut *piece).unwrap_or(0);
        if read > 0 {
            self.buffer.extend_from_slice(&piece[..read]);
            self.pass().await;
        }
    }

    async fn pass(&mut self) {
        let bytes = self.buffer.split().freeze();
        let log = self.log;
        // When nobody reads the log the box must not stop for it.
        let _ = self.pieces.send(Written { log, bytes }).await;
    }
}

/// How many bytes wait in a pipe.
fn waiting(pipe: &pipe::Receiver) -> u64 {
    rustix::io::ioctl_fionread(pipe).unwrap_or(0)
}
