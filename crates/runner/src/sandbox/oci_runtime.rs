//! A box of namespaces whose first one is made by `crun` or `runc`, for machines where only such
//! programs may: Ubuntu since 23.10, where `AppArmor` names the programs that may make user namespaces.
//!
//! The runtime opens the door and no more. Its container has all files of this machine and the rights
//! of who started it; in it the stages of [`namespaces`] make the box as they do elsewhere, so a box
//! is the same whoever opened the door.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::namespaces::Who;
use super::outside::Keeper;
use super::protocol::{RuntimeSetup, Setup};
use super::{STAGE, Sandbox, SandboxError, Settings, namespaces};

/// Without it the root of a user namespace may not be mapped into another one:
/// `user_namespaces(7)`.
const KEPT: [&str; 1] = ["CAP_SETFCAP"];

/// Starts a box by the OCI runtime `runtime`, an absolute path. A directory of the box is in
/// [`Settings::scratch`] until it ends. Root, who may always make namespaces, needs no door: for root
/// this is [`namespaces::start`].
pub fn start(settings: &Settings, runtime: &Path) -> Result<Sandbox, SandboxError> {
    if rustix::process::geteuid().is_root() {
        return namespaces::start(settings);
    }
    let keeper = Keeper::start(&settings.program)?;
    let bundle = make_bundle(settings).map_err(|source| SandboxError::Bundle {
        directory: settings.scratch.clone(),
        source,
    })?;
    keeper.tell(&Setup::Runtime(RuntimeSetup {
        command: command(runtime, &bundle),
        bundle,
    }));
    namespaces::furnish(keeper, settings, Who::User)
}

fn command(runtime: &Path, bundle: &Path) -> Vec<PathBuf> {
    let mut command = vec![runtime.to_owned()];
    // A user may have no cgroup to manage. `runc` sees that by itself.
    if runtime.file_name().is_some_and(|name| name == "crun") {
        command.push("--cgroup-manager=disabled".into());
    }
    command.extend(["--root".into(), bundle.join("state")]);
    command.extend(["--log".into(), bundle.join("log")]);
    // Detached, because `runc` copies the streams of a container that it stays with.
    command.extend(["run", "--detach", "--bundle"].map(PathBuf::from));
    command.extend([bundle.to_owned(), "box".into()]);
    command
}

/// A bundle with the files of this machine as its root. Both runtimes refuse `/` itself.
fn make_bundle(settings: &Settings) -> io::Result<PathBuf> {
    let directory = tempfile::Builder::new()
        .prefix("box-")
        .tempdir_in(&settings.scratch)?;
    let root = directory.path().join("root");
    fs::create_dir(&root)?;
    let mut mounts = Vec::new();
    for entry in fs::read_dir("/")? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        let point = root.join(entry.file_name());
        if kind.is_symlink() {
            symlink(fs::read_link(&path)?, point)?;
        } else if kind.is_dir() && rustix::fs::access(&path, rustix::fs::Access::EXEC_OK).is_ok() {
            fs::create_dir(point)?;
            mounts.push(path);
        }
    }
    let config = config(settings, &root, &mounts);
    fs::write(directory.path().join("config.json"), config.to_string())?;
    // It is removed by the stage, which is there also when tierce is not any more.
    Ok(directory.keep())
}

fn config(settings: &Settings, root: &Path, mounts: &[PathBuf]) -> Value {
    let mounts: Vec<_> = mounts
        .iter()
        .map(|path| {
            json!({"destination": path, "source": path, "type": "bind", "options": ["rbind"]})
        })
        .collect();
    let to_root = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 1}]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": [settings.program, STAGE],
            "env": [],
            "cwd": "/",
            "capabilities": {"bounding": KEPT, "effective": KEPT, "permitted": KEPT},
        },
        "root": {"path": root, "readonly": false},
        "mounts": mounts,
        "linux": {
            "namespaces": [{"type": "user"}, {"type": "mount"}],
            "uidMappings": to_root(rustix::process::geteuid().as_raw()),
            "gidMappings": to_root(rustix::process::getegid().as_raw()),
        },
    })
}
