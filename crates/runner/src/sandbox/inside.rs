//! The keeper of a box, on its inside: takes orders, starts processes, reaps them, kills them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::{Errno, FdFlags};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus};

use super::memory::{Enclosure, WayOut};
use super::namespaces::{entrance, room};
use super::protocol::{self, Beginning, Command, PlainSetup, Report, RuntimeSetup, Setup};
use super::{Exit, Feature, Log, NotStarted, Process, ProcessNumber};
use super::{oci_runtime, processes};

/// How often the descendants of a plain keeper are looked for while they are being killed: they may
/// have had children meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The life of a stage: standard input is the socket, output and error are the two streams of log.
pub(super) fn stage() -> ExitCode {
    match try_stage() {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody listens any more, or never did.
        Err(_) => ExitCode::FAILURE,
    }
}

fn try_stage() -> io::Result<()> {
    close_on_exec()?;
    let control = UnixStream::from(rustix::stdio::stdin().try_clone_to_owned()?);
    match protocol::receive(&control)? {
        Setup::Plain(setup) => plain(&control, setup),
        Setup::Runtime(setup) => open_container(&control, &setup),
        Setup::Entrance(entrance) => entrance::enter(&control, &entrance),
        Setup::Room(room) => room::keep(&control, &room),
        Setup::Mapped => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Keeps descriptors that whoever started tierce left open from everything that is started here.
#[expect(
    unsafe_code,
    reason = "a descriptor that nobody in this program opened has only its number"
)]
fn close_on_exec() -> io::Result<()> {
    let numbers: Vec<RawFd> = fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect();
    for number in numbers {
        // SAFETY: the stage has one thread, which opened nothing that it could close meanwhile, and
        // the number is out of its own table. That of the listing itself is free again: then the
        // call says so.
        let stray = unsafe { BorrowedFd::borrow_raw(number) };
        let _ = rustix::io::fcntl_setfd(stray, FdFlags::CLOEXEC);
    }
    Ok(())
}

/// What failed on the way into the box.
pub(super) struct Refused {
    step: String,
    feature: Option<Feature>,
    errno: i32,
}

/// Says what was being done when something was refused.
pub(super) trait Step<T> {
    /// `step` as [`super::SandboxError::Step`] has it.
    fn step(self, step: impl Into<String>) -> Result<T, Refused>;

    /// The same for what a machine may lack.
    fn step_of(self, feature: Feature, step: impl Into<String>) -> Result<T, Refused>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl Into<String>) -> Result<T, Refused> {
        self.map_err(|error| {
            let error: io::Error = error.into();
            Refused {
                step: step.into(),
                feature: None,
                errno: error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()),
            }
        })
    }

    fn step_of(self, feature: Feature, step: impl Into<String>) -> Result<T, Refused> {
        self.step(step).map_err(|refused| Refused {
            feature: Some(feature),
            ..refused
        })
    }
}

fn plain(control: &UnixStream, setup: PlainSetup) -> io::Result<()> {
    let adopted = rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .step("become the parent of orphans");
    let entered = setup.wall.as_ref().map_or(Ok(()), Enclosure::enter);
    if let Err(refused) = adopted.and(entered.step("enter the cgroup of the box")) {
        return refuse(control, &refused);
    }
    let way_out = setup.wall.as_ref().and_then(WayOut::of);
    let served = serve(control, &Kind::Plain(setup.directories), None, Score::own());
    if let Some(way_out) = way_out.filter(|_| is_alone(control)) {
        way_out.take();
    }
    served
}

/// Whether tierce is gone: it was killed, since it waits for the end of a box otherwise.
pub(super) fn is_alone(control: &UnixStream) -> bool {
    // A hang-up is told without being asked for (poll(2)): nobody has the other end any more.
    let mut ends = [PollFd::new(control, PollFlags::empty())];
    let told = rustix::event::poll(&mut ends, Some(&Timespec::default()));
    told.is_ok() && ends[0].revents().contains(PollFlags::HUP)
}

/// Lets a runtime start the next stage, which has the streams of this one, and stays until it ends.
fn open_container(control: &UnixStream, setup: &RuntimeSetup) -> io::Result<()> {
    let opened = try_open_container(setup);
    let said = match opened {
        Ok(()) => {
            // The runtime is gone, and what it started is a child of this process.
            while rustix::process::wait(WaitOptions::empty()).is_ok_and(|ended| ended.is_some()) {}
            Ok(())
        }
        Err(refused) => refuse(control, &refused),
    };
    oci_runtime::remove_bundle(&setup.bundle).and(said)
}

fn try_open_container(setup: &RuntimeSetup) -> Result<(), Refused> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .step("become the parent of orphans")?;
    let mut command = setup.command.iter();
    let runtime = command.next().ok_or(Errno::NOENT).step("find a runtime")?;
    let step = format!("open a container by `{}`", runtime.display());
    let status = process::Command::new(runtime)
        .args(command)
        .env_clear()
        // Both want a place for their state, and are told another one.
        .env("XDG_RUNTIME_DIR", &setup.bundle)
        .stdin(Stdio::inherit())
        .status()
        .step(&step)?;
    if status.success() {
        return Ok(());
    }
    let log = fs::read_to_string(setup.bundle.join("log")).unwrap_or_default();
    let reason = log
        .lines()
        .last()
        .map_or_else(|| status.to_string(), str::to_owned);
    Err(Errno::CANCELED).step(format!("{step} ({reason})"))
}

/// Says that there is no box.
pub(super) fn refuse(control: &UnixStream, refused: &Refused) -> io::Result<()> {
    protocol::send(
        control,
        &Beginning::Failed(refused.step.clone(), refused.feature, refused.errno),
    )
}

/// What the processes of a keeper are to it.
pub(super) enum Kind {
    /// It is the first process of their namespace, and the root is theirs.
    Namespaces,
    /// They descend from it, and their paths are below these directories.
    Plain(Vec<PathBuf>),
}

/// Takes orders until the socket ends. All that was started dies with it.
/// `listener` goes to tierce.
pub(super) fn serve(
    control: &UnixStream,
    kind: &Kind,
    listener: Option<OwnedFd>,
    score: Option<Score>,
) -> io::Result<()> {
    let streams = Streams {
        function: File::from(rustix::stdio::stdout().try_clone_to_owned()?),
        extension: File::from(rustix::stdio::stderr().try_clone_to_owned()?),
    };
    let keeper = Arc::new(Keeper {
        control: control.try_clone()?,
        score,
        household: Mutex::default(),
        changed: Condvar::new(),
    });
    let reaper = Arc::clone(&keeper);
    thread::Builder::new()
        .name("reaper".to_owned())
        .spawn(move || reaper.reap())?;

    match listener {
        Some(listener) => protocol::send_with(control, &Beginning::Ready, listener.as_fd())?,
        None => protocol::send(control, &Beginning::Ready)?,
    }
    while let Ok(command) = protocol::receive(control) {
        match command {
            Command::Start(number, process) => keeper.start(number, &process, kind, &streams)?,
            Command::Terminate(number) => keeper.terminate(number),
            Command::KillAll(answered) => {
                keeper.kill_all(kind);
                if answered {
                    keeper.report(&keeper.lock(), &Report::Empty)?;
                }
            }
        }
    }
    // The end of a namespace's first process is the end of all others.
    if matches!(kind, Kind::Plain(_)) {
        keeper.kill_all(kind);
    }
    Ok(())
}

/// The own adjustment of how eagerly the kernel kills when memory is short
/// (`proc_pid_oom_score_adj(5)`). Processes of a box have a higher one than their keeper, which is in
/// the same cgroup and may be the largest of what is left when the largest is gone.
pub(super) struct Score {
    file: File,
    own: Vec<u8>,
}

impl Score {
    /// To be called before the process gives up looking at itself; nothing where it cannot be told.
    pub(super) fn own() -> Option<Self> {
        let path = "/proc/self/oom_score_adj";
        let file = File::options().read(true).write(true).open(path).ok()?;
        let own = fs::read(path).ok()?;
        Some(Self { file, own })
    }

    fn raise(&self) {
        // As if it used half of all memory more than it does. Everybody may raise his own, and lower
        // it again to what it was.
        let _ = rustix::io::pwrite(&self.file, b"500", 0);
    }

    fn restore(&self) {
        let _ = rustix::io::pwrite(&self.file, &self.own, 0);
    }
}

/// The ends of the pipes that processes write to.
struct Streams {
    function: File,
    extension: File,
}

struct Keeper {
    /// Written to under the lock of `household`, so that reports are in the order of what happened.
    control: UnixStream,
    score: Option<Score>,
    household: Mutex<Household>,
    /// Told when a process was started or when the last one is gone.
    changed: Condvar,
}

#[derive(Default)]
struct Household {
    /// What was ordered and not reaped yet, so that its process id is its own.
    running: BTreeMap<ProcessNumber, Pid>,
    /// Whether there may be processes at all, orphans included.
    inhabited: bool,
}

impl Household {
    /// Forgets a process that is gone. An orphan has no number.
    fn take(&mut self, gone: Pid) -> Option<ProcessNumber> {
        let (number, _) = self.running.iter().find(|(_, pid)| **pid == gone)?;
        let number = *number;
        self.running.remove(&number);
        Some(number)
    }
}

impl Keeper {
    fn lock(&self) -> MutexGuard<'_, Household> {
        // A household is consistent between any two statements.
        self.household
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The guard shows that the lock is held.
    fn report(&self, _: &MutexGuard<'_, Household>, report: &Report) -> io::Result<()> {
        protocol::send(&self.control, report)
    }

    fn start(
        &self,
        number: ProcessNumber,
        process: &Process,
        kind: &Kind,
        streams: &Streams,
    ) -> io::Result<()> {
        // Held while std starts a program, because std waits itself for a child that could not
        // execute it, and the reaper must not have taken it.
        let mut household = self.lock();
        // Inherited at birth: what is raised later is too late for what is born meanwhile.
        if let Some(score) = &self.score {
            score.raise();
        }
        let started = start(process, kind, streams);
        if let Some(score) = &self.score {
            score.restore();
        }
        let report = match started {
            Ok(child) => {
                if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                    household.running.insert(number, pid);
                }
                household.inhabited = true;
                self.changed.notify_all();
                Report::Started(number)
            }
            Err(not_started) => Report::NotStarted(number, not_started),
        };
        self.report(&household, &report)
    }

    fn terminate(&self, number: ProcessNumber) {
        let household = self.lock();
        if let Some(pid) = household.running.get(&number) {
            // It may have ended just now; its `Exited` is on the way then.
            let _ = rustix::process::kill_process(*pid, Signal::TERM);
        }
    }

    /// Kills all processes and waits until they are reaped.
    fn kill_all(&self, kind: &Kind) {
        let mut household = self.lock();
        while household.inhabited {
            household = match kind {
                Kind::Namespaces => {
                    // `kill(-1)`: all that this process can see, which is the namespace. The kernel
                    // lets none of them fork meanwhile.
                    let _ = rustix::process::kill_process_group(Pid::INIT, Signal::KILL);
                    self.changed
                        .wait(household)
                        .unwrap_or_else(PoisonError::into_inner)
                }
                Kind::Plain(_) => {
                    for group in household.running.values() {
                        let _ = rustix::process::kill_process_group(*group, Signal::KILL);
                    }
                    for descendant in processes::descendants(rustix::process::getpid()) {
                        let _ = rustix::process::kill_process(descendant, Signal::KILL);
                    }
                    let waited = self.changed.wait_timeout(household, LOOK_AGAIN);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Reaps for ever, what was started here and what was orphaned.
    fn reap(&self) {
        loop {
            let mut household = self.lock();
            while !household.inhabited {
                household = self
                    .changed
                    .wait(household)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            drop(household);

            // Without the lock it is only waited; who is taken is decided under it.
            let _ =
                rustix::process::waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
            let mut household = self.lock();
            loop {
                match rustix::process::wait(WaitOptions::NOHANG) {
                    Ok(Some((pid, status))) => {
                        if let (Some(number), Some(exit)) = (household.take(pid), exit(status)) {
                            // If nobody listens, who takes the orders sees that too.
                            let _ = self.report(&household, &Report::Exited(number, exit));
                        }
                    }
                    Ok(None) => break,
                    Err(Errno::INTR) => {}
                    // There is no child, so there is no process at all: orphans are children too.
                    Err(_) => {
                        household.inhabited = false;
                        self.changed.notify_all();
                        break;
                    }
                }
            }
        }
    }
}

fn exit(status: WaitStatus) -> Option<Exit> {
    status
        .exit_status()
        .map(Exit::Code)
        .or_else(|| status.terminating_signal().map(Exit::Signal))
}

fn start(process: &Process, kind: &Kind, streams: &Streams) -> Result<process::Child, NotStarted> {
    let directory = kind.place(&process.directory);
    // Entered here and not by std, which would not tell a bad directory from a bad program.
    rustix::process::chdir(&directory)
        .map_err(|errno| NotStarted::Directory(process.directory.clone(), words(&errno.into())))?;
    let refused = |error: io::Error| NotStarted::Program(process.program.clone(), words(&error));
    let output = match process.log {
        Log::Function => &streams.function,
        Log::Extension => &streams.extension,
    };
    let program = find(&process.program, process.environment.get("PATH"), kind)
        .map_err(|errno| refused(errno.into()))?;
    let started = process::Command::new(program)
        .arg0(&process.program)
        .args(&process.arguments)
        .env_clear()
        .envs(&process.environment)
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(refused)?)
        .stderr(output.try_clone().map_err(refused)?)
        .process_group(0)
        .spawn();
    // Not to stand in a directory that a volume or `/tmp` has.
    let _ = rustix::process::chdir("/");
    started.map_err(refused)
}

impl Kind {
    /// Where an absolute path of the box is to this process. Of plain processes it is the uppermost
    /// directory of the root that has it.
    fn place(&self, path: &str) -> PathBuf {
        match self {
            Self::Plain(directories) if path.starts_with('/') => {
                let below = path.trim_start_matches('/');
                let mut places = directories.iter().map(|root| root.join(below));
                let first = places.clone().next();
                places
                    .find(|place| place.symlink_metadata().is_ok())
                    .or(first)
                    .unwrap_or_else(|| PathBuf::from(path))
            }
            Self::Namespaces | Self::Plain(_) => PathBuf::from(path),
        }
    }
}

/// The file of a program: a name without a slash is looked for in `search`, as execvp does.
fn find(program: &str, search: Option<&String>, kind: &Kind) -> Result<PathBuf, Errno> {
    if program.contains('/') {
        return Ok(kind.place(program));
    }
    let mut error = Errno::NOENT;
    for directory in search.into_iter().flat_map(|search| search.split(':')) {
        let directory = if directory.is_empty() { "." } else { directory };
        let place = kind.place(&format!("{directory}/{program}"));
        match executable(&place) {
            Ok(()) => return Ok(place),
            // execvp goes on too, and says so if nothing better comes.
            Err(Errno::ACCESS) => error = Errno::ACCESS,
            Err(_) => {}
        }
    }
    Err(error)
}

fn executable(place: &Path) -> Result<(), Errno> {
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::stat(place)?.st_mode);
    if kind != rustix::fs::FileType::RegularFile {
        return Err(Errno::ACCESS);
    }
    rustix::fs::access(place, rustix::fs::Access::EXEC_OK)
}

/// An error of the system in the words that Go has for it, which is what the service logs.
fn words(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT) => "no such file or directory".to_owned(),
        Some(Errno::ACCESS) => "permission denied".to_owned(),
        Some(Errno::NOEXEC) => "exec format error".to_owned(),
        Some(Errno::NOTDIR) => "not a directory".to_owned(),
        Some(Errno::TOOBIG) => "argument list too long".to_owned(),
        Some(Errno::AGAIN) => "resource temporarily unavailable".to_owned(),
        Some(Errno::NOMEM) => "cannot allocate memory".to_owned(),
        Some(Errno::LOOP) => "too many levels of symbolic links".to_owned(),
        _ => error.to_string(),
    }
}
