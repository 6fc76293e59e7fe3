//! Real programs for the tests with real parts: started on free ports or private sockets, stopped
//! by their own process id.
//!
//! Nothing here is skipped when a program is missing: [`require`] fails the test and says what to
//! install.

mod moto;

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::TokenServer;
pub use moto::Moto;

/// How often a program's port or socket is tried while it starts.
const POLL: Duration = Duration::from_millis(20);

/// Packages of Debian that hold the programs that real tests use.
const PACKAGES: [(&str, &str); 10] = [
    ("docker-registry", "docker-registry"),
    ("skopeo", "skopeo"),
    ("umoci", "umoci"),
    ("crun", "crun"),
    ("dockerd", "docker.io"),
    ("docker", "docker.io"),
    ("containerd", "containerd"),
    ("htpasswd", "apache2-utils"),
    ("openssl", "openssl"),
    ("unshare", "util-linux"),
];

/// Finds a program on `PATH` or in the system's own directories.
///
/// # Panics
/// When it is not installed; the message names the package.
#[track_caller]
pub fn require(program: &str) -> PathBuf {
    let found = find(program);
    let package = PACKAGES.iter().find(|(name, _)| *name == program);
    let package = package.map_or(program, |(_, package)| package);
    match found {
        Some(found) => found,
        None => panic!("`{program}` is needed for this test: apt-get install {package}"),
    }
}

/// Looks for a program on `PATH` and in the system's own directories.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    std::env::split_paths(&path)
        .chain(system.iter().map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Has SIGHUP end the programs that are started from now on, also where the tests are told to ignore
/// it, as `nohup` does: a signal that is listened to is none that is ignored, and a new program
/// starts with its default again (`execve(2)`). This process itself no longer ends by it.
///
/// # Panics
/// When the system refuses.
#[track_caller]
pub fn have_programs_end_by_hang_up() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .expect("a runtime can be made");
    let listening = runtime
        .block_on(async { tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()) });
    // What listens stays when this is dropped.
    drop(listening.expect("a signal can be listened to"));
}

/// A child that ends when this is dropped: asked first, then killed.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    patience: Duration,
}

impl Guard {
    /// Takes charge of a child.
    pub fn new(child: Child) -> Self {
        Self {
            child,
            patience: Duration::from_secs(5),
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it is still running.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to end and waits; kills it when it does not.
    pub fn stop(&mut self) {
        if self.is_running() {
            let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
            // The child is not reaped yet, so the id is still its own.
            if let Some(id) = id {
                let _ = kill_process(id, Signal::TERM);
            }
            let deadline = Instant::now() + self.patience;
            while self.is_running() && Instant::now() < deadline {
                std::thread::sleep(POLL);
            }
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Why a program could not be started.
enum Failed {
    /// Its port was taken in between; another may be free.
    PortTaken,
    /// Something that trying again does not mend.
    Hopeless(String),
}

/// Debian's docker-registry, on a free port of the loopback interface, over plain HTTP.
pub struct DockerRegistry {
    _guard: Guard,
    directory: TempDir,
    port: u16,
}

impl DockerRegistry {
    /// Starts a registry that is open to all.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    #[track_caller]
    pub fn start() -> Self {
        Self::launch(|_| String::new())
    }

    /// Starts a registry that demands a user and a password.
    ///
    /// # Panics
    /// When it or `htpasswd` is not installed, or it does not start.
    #[track_caller]
    pub fn start_basic(user: &str, password: &str) -> Self {
        let output = Command::new(require("htpasswd"))
            .args(["-Bbn", user, password])
            .output()
            .expect("htpasswd can be run");
        assert!(output.status.success(), "htpasswd refused the password");
        Self::launch(|directory| {
            let file = directory.join("htpasswd");
            fs::write(&file, &output.stdout).expect("the temporary directory is writable");
            let file = file.display();
            format!("auth:\n  htpasswd:\n    realm: testkit\n    path: {file}\n")
        })
    }

    /// Starts a registry that demands tokens of a token server.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    #[track_caller]
    pub fn start_bearer(tokens: &TokenServer) -> Self {
        Self::launch(|_| {
            format!(
                "auth:\n  token:\n    realm: {}\n    service: {}\n    issuer: {}\n    \
                 rootcertbundle: {}\n",
                tokens.realm(),
                tokens.service(),
                tokens.issuer(),
                tokens.certificate_path().display(),
            )
        })
    }

    #[track_caller]
    fn launch(auth: impl Fn(&Path) -> String) -> Self {
        let program = require("docker-registry");
        for _ in 0..10 {
            match Self::attempt(&program, &auth) {
                Ok(registry) => return registry,
                Err(Failed::PortTaken) => {}
                Err(Failed::Hopeless(why)) => panic!("docker-registry did not start: {why}"),
            }
        }
        panic!("docker-registry did not start: ten free ports were taken before it came");
    }

    fn attempt(program: &Path, auth: impl Fn(&Path) -> String) -> Result<Self, Failed> {
        let hopeless = |why: io::Error| Failed::Hopeless(why.to_string());
        let directory = tempfile::tempdir().map_err(hopeless)?;
        let root = directory.path();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(hopeless)?;
        let port = listener.local_addr().map_err(hopeless)?.port();
        drop(listener);
        let config = format!(
            "version: 0.1\n\
             log:\n  level: info\n  accesslog:\n    disabled: true\n\
             storage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\n\
             http:\n  addr: 127.0.0.1:{port}\n{}",
            root.join("data").display(),
            auth(root)
        );
        fs::write(root.join("config.yml"), config).map_err(hopeless)?;
        let log = File::create(root.join("log")).map_err(hopeless)?;
        let child = Command::new(program)
            .arg("serve")
            .arg(root.join("config.yml"))
            .env_clear()
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(hopeless)?)
            .stderr(log)
            .spawn()
            .map_err(hopeless)?;
        let mut guard = Guard::new(child);
        let ready = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
        // Another program may answer on the port, so the child must be alive after the answer.
        if wait_until(Duration::from_secs(20), || ready() || !guard.is_running())
            && guard.is_running()
            && serves(&root.join("log"))
        {
            return Ok(Self {
                _guard: guard,
                directory,
                port,
            });
        }
        guard.stop();
        let log = fs::read_to_string(root.join("log")).unwrap_or_default();
        if log.contains("address already in use") {
            Err(Failed::PortTaken)
        } else {
            Err(Failed::Hopeless(log))
        }
    }

    /// The registry part of references: `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Scheme and host, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.host())
    }

    /// The directory with all that it stores, what is on its way up included.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// A reference to a tag or, when `reference` is a digest, to a manifest.
    pub fn reference(&self, repository: &str, reference: &str) -> String {
        let separator = if reference.contains(':') { '@' } else { ':' };
        format!("{}/{repository}{separator}{reference}", self.host())
    }

    /// What the registry has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl fmt::Debug for DockerRegistry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "DockerRegistry({})", self.url())
    }
}

/// Whether the registry's own log says that it has its port.
fn serves(log: &Path) -> bool {
    wait_until(Duration::from_secs(5), || {
        fs::read_to_string(log).is_ok_and(|log| log.contains("listening on"))
    })
}

fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
}

/// A `crun` command that leaves cgroups alone; its state lies in `state`.
///
/// crun refuses machines that have cgroups of version 1 and 2 side by side even when told not to
/// use them, so it sees an empty directory in their place, in a mount namespace of its own. It
/// needs root.
///
/// # Panics
/// When `crun` or `unshare` is not installed.
#[track_caller]
pub fn crun(state: &Path) -> Command {
    let mut command = Command::new(require("unshare"));
    command
        .args(["--mount", "--", "sh", "-c"])
        .arg("mount -t tmpfs none /sys/fs/cgroup && exec \"$@\"")
        .arg("sh")
        .arg(require("crun"))
        .arg("--root")
        .arg(state)
        .arg("--cgroup-manager=disabled")
        .stdin(Stdio::null());
    command
}

/// Changes an OCI bundle's `config.json`, as `umoci unpack` writes it, into one that [`crun`] can
/// run without a terminal and without cgroups.
///
/// # Panics
/// When the bundle has no such file.
pub fn prepare_bundle(bundle: &Path) {
    let path = bundle.join("config.json");
    let bytes = fs::read(&path).expect("the bundle has a config.json");
    let mut config: Value = serde_json::from_slice(&bytes).expect("config.json is JSON");
    config["process"]["terminal"] = false.into();
    if let Some(linux) = config["linux"].as_object_mut() {
        linux.remove("resources");
        linux.remove("cgroupsPath");
    }
    if let Some(mounts) = config["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["type"] != "cgroup");
    }
    fs::write(&path, config.to_string()).expect("the bundle is writable");
}

/// A Docker daemon of one test: its images, sockets and state lie in a temporary directory.
///
/// It needs root. It has no network: run containers with `--network none`.
pub struct DockerDaemon {
    guard: Option<Guard>,
    directory: TempDir,
}

impl DockerDaemon {
    /// Starts a daemon, or says why this machine does not let it.
    ///
    /// # Panics
    /// When `dockerd` or `docker` is not installed.
    #[track_caller]
    pub fn start() -> Result<Self, String> {
        let program = require("dockerd");
        require("docker");
        if !rustix::process::geteuid().is_root() {
            return Err("dockerd needs root".to_owned());
        }
        Self::launch(&program).map_err(|why| why.to_string())?
    }

    fn launch(program: &Path) -> io::Result<Result<Self, String>> {
        let directory = tempfile::Builder::new()
            .prefix("testkit-docker-")
            .tempdir()?;
        let root = directory.path();
        let log = File::create(root.join("log"))?;
        fs::write(root.join("daemon.json"), "{}")?;
        let child = Command::new(program)
            .arg("--config-file")
            .arg(root.join("daemon.json"))
            .arg("--data-root")
            .arg(root.join("data"))
            .arg("--exec-root")
            .arg(root.join("exec"))
            .arg("--pidfile")
            .arg(root.join("pid"))
            .arg("--host")
            .arg(format!("unix://{}", root.join("docker.sock").display()))
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none"])
            .args(["--storage-driver=vfs", "--log-level=warn"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut guard = Guard::new(child);
        guard.patience = Duration::from_secs(20);
        let mut daemon = Self {
            guard: None,
            directory,
        };
        let ready = || {
            UnixStream::connect(daemon.socket()).is_ok()
                && daemon
                    .docker(["version"])
                    .output()
                    .is_ok_and(|output| output.status.success())
        };
        let started = wait_until(Duration::from_mins(1), || ready() || !guard.is_running());
        let alive = started && guard.is_running();
        daemon.guard = Some(guard);
        if alive {
            Ok(Ok(daemon))
        } else {
            Ok(Err(format!("dockerd did not start: {}", daemon.log())))
        }
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }

    /// A `docker` command that talks to this daemon, without any user's configuration.
    pub fn docker<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new("docker");
        command
            .env_remove("DOCKER_CONTEXT")
            .env("DOCKER_HOST", format!("unix://{}", self.socket().display()))
            .env("DOCKER_CONFIG", self.directory.path().join("client"))
            .stdin(Stdio::null())
            .args(arguments);
        command
    }

    /// What the daemon has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for DockerDaemon {
    fn drop(&mut self) {
        // Its containerd is a child of dockerd and ends with it, unless dockerd had to be killed.
        let containerd =
            fs::read_to_string(self.directory.path().join("exec/containerd/containerd.pid"));
        if let Some(guard) = &mut self.guard {
            guard.stop();
        }
        if let Some(id) = containerd.ok().and_then(|text| text.trim().parse().ok()) {
            self.end_containerd(id);
        }
        for point in mounts_below(self.directory.path()) {
            let _ = unmount(&point, UnmountFlags::DETACH);
        }
    }
}

impl DockerDaemon {
    /// Ends a containerd that outlived its daemon, if the id is still that of ours.
    fn end_containerd(&self, id: i32) {
        let command_line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let ours = self.directory.path().to_string_lossy().into_owned();
        if String::from_utf8_lossy(&command_line).contains(&ours)
            && let Some(id) = Pid::from_raw(id)
        {
            let _ = kill_process(id, Signal::KILL);
        }
    }
}

impl fmt::Debug for DockerDaemon {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "DockerDaemon({})", self.socket().display())
    }
}

/// The mount points below a directory, the deepest first.
fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let mut points: Vec<PathBuf> = points
        .map(PathBuf::from)
        .filter(|point| point.starts_with(directory))
        .collect();
    points.sort_unstable();
    points.reverse();
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_ends_its_child() {
        let child = Command::new(require("tail"))
            .args(["-f", "/dev/null"])
            .spawn()
            .unwrap();
        let mut guard = Guard::new(child);
        assert!(guard.is_running());
        guard.stop();
        assert!(!guard.is_running());
    }

    #[test]
    #[should_panic(expected = "apt-get install no-such-program")]
    fn a_missing_program_fails_the_test_with_a_hint() {
        require("no-such-program");
    }
}
