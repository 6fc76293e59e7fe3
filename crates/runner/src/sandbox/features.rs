//! What this machine can do for a box, and what to do where it cannot.
//!
//! Nothing is concluded from a version or a setting: a box is made, of nothing, and the step that is
//! refused says which feature is missing. Settings are read only to say how to get it.

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{MemoryKeeper, Network, Sandbox, SandboxError, Settings, namespaces, oci_runtime};
use crate::rootfs::Root;

/// What a box needs of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Feature {
    /// Namespaces of users and the others, made by this user, with capabilities inside.
    Namespaces,
    /// Overlayfs in such a namespace.
    Overlay,
    /// A new `/proc` in such a namespace.
    Proc,
}

/// A feature that this machine lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Which.
    pub feature: Feature,
    /// How it may be got, the likeliest first; each is a sentence without its period.
    pub remedies: Vec<String>,
}

impl fmt::Display for Missing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self.feature {
            Feature::Namespaces => "this machine lets you make no user namespaces",
            Feature::Overlay => "this machine mounts no overlay in a user namespace",
            Feature::Proc => "this machine mounts no /proc in a user namespace",
        })
    }
}

/// What a machine can do.
#[derive(Debug)]
pub struct Machine {
    /// Whether a box can be made with a root of one directory.
    pub namespaces: Result<(), SandboxError>,
    /// Whether it works with more, which saves copying layers together.
    pub overlay: Result<(), SandboxError>,
    /// What keeps a box within its memory.
    pub memory: MemoryKeeper,
}

impl Machine {
    /// What is known of this machine, or found out by trying everything. `program` is that of
    /// [`Settings`], and `scratch` is on the file system where roots will be. Trying takes some
    /// milliseconds, in the context of a tokio runtime; that all of it worked is noted in `scratch`,
    /// and holds until the machine is started anew or set up otherwise.
    pub fn probe(program: &Path, scratch: &Path) -> io::Result<Self> {
        let conditions = conditions();
        let note = scratch.join(TRIED);
        if fs::read_to_string(&note).is_ok_and(|noted| noted == conditions) {
            return Ok(Self {
                namespaces: Ok(()),
                overlay: Ok(()),
                memory: MemoryKeeper::of_this_machine(),
            });
        }
        let machine = Self::try_everything(program, scratch, namespaces::start)?;
        if machine.overlay.is_ok() {
            let mut file = tempfile::NamedTempFile::new_in(scratch)?;
            file.write_all(conditions.as_bytes())?;
            file.persist(&note).map_err(|error| error.error)?;
        }
        Ok(machine)
    }

    /// As [`Machine::probe`] where `runtime` opens the door ([`oci_runtime::start`]). Nothing is noted:
    /// it may be another program the next time.
    pub fn probe_with(program: &Path, scratch: &Path, runtime: &Path) -> io::Result<Self> {
        let start = |settings: &Settings| oci_runtime::start(settings, runtime);
        Self::try_everything(program, scratch, start)
    }

    fn try_everything(
        program: &Path,
        scratch: &Path,
        start: impl Fn(&Settings) -> Result<Sandbox, SandboxError>,
    ) -> io::Result<Self> {
        let directory = tempfile::tempdir_in(scratch)?;
        let layers = ["upper", "lower"].map(|name| directory.path().join(name));
        for layer in &layers {
            for point in ["dev", "proc", "tmp"] {
                fs::create_dir_all(layer.join(point))?;
            }
        }
        let [upper, _] = &layers;
        let alone = vec![upper.clone()];
        let overlay = start(&of_nothing(program, scratch, layers.to_vec())).map(drop);
        let namespaces = match &overlay {
            Ok(()) => Ok(()),
            Err(_) => start(&of_nothing(program, scratch, alone)).map(drop),
        };
        Ok(Self {
            namespaces,
            overlay,
            memory: MemoryKeeper::of_this_machine(),
        })
    }
}

/// The note of what worked, in the directory for boxes.
const TRIED: &str = "tried";

/// What decides whether namespaces can be made and mounts in them: this boot of the machine, as whom
/// and within what tierce runs, and the settings that [`remedies`] speaks of.
fn conditions() -> String {
    let mut conditions = vec![rustix::process::geteuid().as_raw().to_string()];
    for link in ["/proc/self/ns/user", "/proc/self/ns/mnt"] {
        let namespace = fs::read_link(link).unwrap_or_default();
        conditions.push(namespace.display().to_string());
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let within = [
        "CapEff:",
        "CapBnd:",
        "NoNewPrivs:",
        "Seccomp:",
        "Seccomp_filters:",
    ];
    let lines = status.lines();
    let lines = lines.filter(|line| within.iter().any(|name| line.starts_with(name)));
    conditions.extend(lines.map(str::to_owned));
    for path in [
        "/proc/sys/kernel/random/boot_id",
        "/proc/self/attr/current",
        "/proc/sys/user/max_user_namespaces",
        "/proc/sys/kernel/unprivileged_userns_clone",
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
    ] {
        let value = fs::read_to_string(path).unwrap_or_default();
        conditions.push(format!("{path} {}", value.trim()));
    }
    conditions.join("\n")
}

/// A box with these directories as its root.
fn of_nothing(program: &Path, scratch: &Path, directories: Vec<PathBuf>) -> Settings {
    Settings {
        root: Arc::new(Root::of(directories)),
        writable_root: false,
        tmp_size: 1 << 20,
        shared_memory: None,
        network: Network::Host,
        volumes: Vec::new(),
        open_files: 1024,
        processes: 1024,
        memory: None,
        user: 993,
        group: 990,
        scratch: scratch.to_owned(),
        program: program.to_owned(),
    }
}

impl SandboxError {
    /// The feature that is missing, if that is what the error is about, with what this machine's
    /// settings say of it.
    pub fn missing(&self) -> Option<Missing> {
        let Self::Step {
            feature: Some(feature),
            ..
        } = self
        else {
            return None;
        };
        let read = |path: &str| fs::read_to_string(path).ok();
        Some(Missing {
            feature: *feature,
            remedies: remedies(*feature, &read),
        })
    }
}

/// Out of the files that `read` reads.
fn remedies(feature: Feature, read: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    match feature {
        Feature::Namespaces => for_namespaces(read),
        Feature::Overlay => vec![
            "Linux 5.11 or later is needed, with `modprobe overlay` done".to_owned(),
            "layers can be copied together instead".to_owned(),
        ],
        Feature::Proc => vec![
            "a container hides parts of /proc: start it with `--security-opt systempaths=unconfined`"
                .to_owned(),
        ],
    }
}

fn for_namespaces(read: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let is = |path: &str, value: &str| read(path).is_some_and(|has| has.trim() == value);
    let mut remedies = Vec::new();
    if is("/proc/sys/user/max_user_namespaces", "0") {
        remedies.push(
            "their number is limited to none: `sudo sysctl -w user.max_user_namespaces=15000`"
                .to_owned(),
        );
    }
    if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        remedies.push(
            "they are for root alone: `sudo sysctl -w kernel.unprivileged_userns_clone=1`"
                .to_owned(),
        );
    }
    if is(
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
    ) {
        remedies.push(
            "AppArmor restricts them: \
             `sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`, \
             a profile with `userns,` for tierce in /etc/apparmor.d, or `crun` or `runc`, which may"
                .to_owned(),
        );
    }
    let status = read("/proc/self/status").unwrap_or_default();
    if status.lines().any(|line| line == "Seccomp:\t2") {
        remedies.push(
            "a container forbids them: start it with `--security-opt seccomp=unconfined` \
             and `--security-opt systempaths=unconfined`"
                .to_owned(),
        );
    }
    if remedies.is_empty() {
        remedies.push(
            "the kernel needs CONFIG_USER_NS, and tierce must not run in a chroot".to_owned(),
        );
    }
    remedies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedies_are_of_what_the_settings_say() {
        let apparmor = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";
        for (path, content, expected) in [
            (
                "/proc/sys/user/max_user_namespaces",
                "0\n",
                "user.max_user_namespaces=15000",
            ),
            (
                "/proc/sys/user/max_user_namespaces",
                "96365\n",
                "CONFIG_USER_NS",
            ),
            (
                "/proc/sys/kernel/unprivileged_userns_clone",
                "0\n",
                "userns_clone=1",
            ),
            (apparmor, "1\n", "unprivileged_userns=0"),
            (apparmor, "0\n", "CONFIG_USER_NS"),
            (
                "/proc/self/status",
                "Name:\tx\nSeccomp:\t2\n",
                "seccomp=unconfined",
            ),
            (
                "/proc/self/status",
                "Name:\tx\nSeccomp:\t0\n",
                "CONFIG_USER_NS",
            ),
        ] {
            let read = |asked: &str| (asked == path).then(|| content.to_owned());
            let remedies = remedies(Feature::Namespaces, &read);
            assert_eq!(remedies.len(), 1, "{path}");
            assert!(remedies[0].contains(expected), "{path}: {remedies:?}");
        }
    }
}
