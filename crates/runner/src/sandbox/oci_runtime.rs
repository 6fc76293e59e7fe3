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

/// The directory of a bundle that is the root of its container.
const ROOT: &str = "root";

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
        bundle: bundle.clone(),
    }));
    let made = namespaces::furnish(keeper, settings, Who::User);
    if made.is_err() {
        // The stage does this, if it came so far.
        let _ = remove_bundle(&bundle);
    }
    made
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
    let root = directory.path().join(ROOT);
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
    let config = config(settings, &root, &mounts)?;
    fs::write(directory.path().join("config.json"), config.to_string())?;
    // It is removed by the stage, which is there also when tierce is not any more.
    Ok(directory.keep())
}

/// Removes a bundle, but never what is mounted in it: that is all of this machine.
pub(super) fn remove_bundle(bundle: &Path) -> io::Result<()> {
    let root = bundle.join(ROOT);
    for entry in fs::read_dir(&root)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir(root)?;
    fs::remove_dir_all(bundle)
}

fn config(settings: &Settings, root: &Path, mounts: &[PathBuf]) -> io::Result<Value> {
    // A config is JSON, which has no other names.
    let text = |path: &Path| path.to_str().map(str::to_owned);
    let (Some(program), Some(root)) = (text(&settings.program), text(root)) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidFilename,
            "its path is no text, and an OCI runtime takes no other",
        ));
    };
    let mounts: Vec<_> = mounts
        .iter()
        .filter_map(|path| text(path))
        .map(|path| {
            json!({"destination": path, "source": path, "type": "bind", "options": ["rbind"]})
        })
        .collect();
    let to_root = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 1}]);
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": [program, STAGE],
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
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_a_mount_point_is_not_removed_with_the_bundle() {
        let scratch = tempfile::tempdir().unwrap();
        let bundle = scratch.path().join("box");
        let mounted = bundle.join(ROOT).join("home/file");
        fs::create_dir_all(mounted.parent().unwrap()).unwrap();
        symlink("usr/bin", bundle.join(ROOT).join("bin")).unwrap();
        fs::write(&mounted, "").unwrap();
        assert!(remove_bundle(&bundle).is_err());
        assert!(mounted.exists());
        fs::remove_file(mounted).unwrap();
        remove_bundle(&bundle).unwrap();
        assert!(!bundle.exists());
    }

    #[test]
    fn each_runtime_is_called_as_it_understands() {
        let called = |runtime: &str| {
            let command = command(Path::new(runtime), Path::new("/b"));
            let words: Vec<_> = command
                .iter()
                .map(|word| word.display().to_string())
                .collect();
            words.join(" ")
        };
        let rest = "--root /b/state --log /b/log run --detach --bundle /b box";
        assert_eq!(called("/bin/runc"), format!("/bin/runc {rest}"));
        assert_eq!(
            called("/bin/crun"),
            format!("/bin/crun --cgroup-manager=disabled {rest}")
        );
    }
}
