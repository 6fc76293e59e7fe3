//! moto: AWS's APIs, imitated by others than us.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::{Guard, find, wait_until};

/// Where `tests/setup/install` puts it, when it is not on the machine.
const INSTALLED: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../target/moto/bin/moto_server"
);

/// What the server says before its port.
const READY: &str = "Running on http://127.0.0.1:";

/// `moto_server`, on a free port of the loopback interface.
///
/// It answers ECR's control plane, STS and Lambda, but neither ECR Public nor any registry request,
/// and it takes every access key. What it gets wrong of images and tokens, and all failures, are for
/// [`FakeEcr`](crate::FakeEcr).
pub struct Moto {
    _guard: Guard,
    directory: TempDir,
    port: u16,
}

impl Moto {
    /// Starts a server without anything in it.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    #[track_caller]
    pub fn start() -> Self {
        let installed = Path::new(INSTALLED);
        let program = if installed.is_file() {
            Some(installed.to_owned())
        } else {
            find("moto_server")
        };
        let Some(program) = program else {
            panic!("`moto_server` is needed for this test: tests/setup/install");
        };
        match Self::launch(&program) {
            Ok(moto) => moto,
            Err(why) => panic!("moto_server did not start: {why}"),
        }
    }

    fn launch(program: &PathBuf) -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("log");
        let log = File::create(&path)?;
        // Port 0 lets the system choose, so that no other program can be faster.
        let child = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("PYTHONUNBUFFERED", "1")
            .env_remove("AWS_ENDPOINT_URL")
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut guard = Guard::new(child);
        let said = || fs::read_to_string(&path).unwrap_or_default();
        // Python takes its time to read all of it.
        let limit = Duration::from_mins(1);
        wait_until(limit, || port(&said()).is_some() || !guard.is_running());
        match port(&said()) {
            Some(port) if guard.is_running() => Ok(Self {
                _guard: guard,
                directory,
                port,
            }),
            _ => Err(io::Error::other(said())),
        }
    }

    /// The address of the APIs: what `AWS_ENDPOINT_URL` is set to.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The environment in which an SDK finds the APIs and some access key, and nothing of this
    /// machine's.
    pub fn environment(&self, region: &str) -> Vec<(String, String)> {
        [
            ("AWS_ENDPOINT_URL", self.endpoint().as_str()),
            ("AWS_ACCESS_KEY_ID", "testing"),
            ("AWS_SECRET_ACCESS_KEY", "testing"),
            ("AWS_REGION", region),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_CONFIG_FILE", "/dev/null"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    /// What the server has logged so far: one line a request.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl fmt::Debug for Moto {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Moto({})", self.endpoint())
    }
}

/// The port that the server says to have, once it has one and the line is whole.
fn port(log: &str) -> Option<u16> {
    let (_, rest) = log.split_once(READY)?;
    let end = rest.find(|character: char| !character.is_ascii_digit())?;
    rest[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_read_from_a_whole_line() {
        assert_eq!(port(" * Running on http://127.0.0.1:54"), None);
        let line = "\u{1b}[31m\u{1b}[1mWARNING\n * Running on http://127.0.0.1:5432\nPress";
        assert_eq!(port(line), Some(5432));
    }
}
