//! A box of namespaces, made without root and without any other program.
//!
//! ```text
//! tierce ─ spawns → entrance ─ spawns → room, process 1 of the box ─ spawns → runtime, extensions
//!                   enters namespaces   mounts, restrains itself,
//!                                       keeps the box (`inside`)
//! ```
//!
//! A namespace of processes begins with the next child, so there are two stages. A user maps one user
//! and one group, those of Lambda, to his own: everything that he owns is seen as the box's. Root maps
//! all users to themselves, and the second stage becomes Lambda's user when it has mounted. Where even
//! root may make no namespace of users there is none; then the limit of processes is one for all boxes,
//! and what is in a box may make namespaces of users if this machine lets anybody.
//!
//! What is not kept away from a process in the box: the clock and load of the machine; the network when
//! it is the host's, before Linux 6.12 with abstract sockets; and the supplementary groups of a user
//! who is not root, which nobody but root can give up.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;

use rustix::thread::CapabilitySet;

use super::memory::Memory;
use super::outside::{self, Keeper};
use super::protocol::{Beginning, Entrance, Place, Room, Setup};
use super::{Doorkeeper, Feature, Network, Sandbox, SandboxError, Settings};

pub(super) mod entrance;
mod loopback;
mod mounts;
mod restraint;
pub(super) mod room;

/// Files of this machine without which its network is of little use.
const NETWORK_FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// Starts a box of namespaces. It blocks for some milliseconds, and needs to be called in the context
/// of a tokio runtime.
pub fn start(settings: &Settings) -> Result<Sandbox, SandboxError> {
    let attempt = |who| furnish(Keeper::start(&settings.program)?, settings, who);
    if !privileged(settings) {
        return attempt(Who::User);
    }
    match attempt(Who::Root) {
        // A container that hides parts of /proc lets nobody mount another in a namespace of users.
        Err(SandboxError::Step {
            feature: Some(Feature::Proc),
            ..
        }) => attempt(Who::RootAmongOthers),
        done => done,
    }
}

/// Who makes a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// Somebody who can do this only in a namespace of users.
    User,
    /// Root, who had better make one too.
    Root,
    /// Root without one.
    RootAmongOthers,
}

/// Makes the box of a stage that was told nothing yet.
pub(super) fn furnish(
    keeper: Keeper,
    settings: &Settings,
    who: Who,
) -> Result<Sandbox, SandboxError> {
    let privileged = who != Who::User;
    let root = if settings.writable_root {
        settings.tmp_size
    } else {
        0
    };
    let files = [settings.tmp_size, root, settings.shared_memory.unwrap_or(0)]
        .into_iter()
        .fold(0, u64::saturating_add);
    let memory = Memory::enclose(settings.memory, files, keeper.pid());
    keeper.tell(&Setup::Entrance(Entrance {
        user: settings.user,
        group: settings.group,
        own_network: settings.network == Network::None,
        privileged,
        own_users: who != Who::RootAmongOthers,
        wall: memory.wall(),
    }));
    let own_users = if privileged {
        map_users(&keeper)?
    } else {
        true
    };
    keeper.tell(&Setup::Room(room(settings, privileged, own_users)));
    match settings.network {
        Network::Host => {
            let listener = outside::listen()?;
            // The stages are descendants of the first one, and connect to nothing.
            let doorkeeper = keeper
                .pid()
                .map_or(Doorkeeper::Anybody, Doorkeeper::Descendants);
            keeper.begun()?;
            keeper.open(listener, doorkeeper, memory, settings.network)
        }
        Network::None => {
            let listener = keeper
                .begun()?
                .ok_or_else(|| keeper.no_stage("it sent no listener"))?;
            let listener = TcpListener::from(listener);
            keeper.open(listener, Doorkeeper::Anybody, memory, settings.network)
        }
    }
}

/// Whether this process can mount what it likes and become the user of the box: it is root, and in no
/// container that took this from it.
fn privileged(settings: &Settings) -> bool {
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::SETUID | CapabilitySet::SETGID;
    let able = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed));
    let has = |map, id| {
        let map = fs::read_to_string(map).unwrap_or_default();
        ranges(&map).any(|(first, count)| id >= first && id - first < count)
    };
    // Also without capabilities root owns files of this machine, so it is never the user of a box.
    able && settings.user != 0
        && has("/proc/self/uid_map", settings.user)
        && has("/proc/self/gid_map", settings.group)
}

/// The ids that are mapped at all, as the first of some and their number: `user_namespaces(7)`.
fn ranges(map: &str) -> impl Iterator<Item = (u32, u32)> {
    map.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        Some((fields.next()?.parse().ok()?, fields.nth(1)?.parse().ok()?))
    })
}

/// Maps all ids that there are to themselves.
fn identity(map: &str) -> String {
    let lines = ranges(map).map(|(first, count)| format!("{first} {first} {count}\n"));
    lines.collect()
}

/// Maps the users of the first stage, and says whether they are in a namespace of their own.
fn map_users(keeper: &Keeper) -> Result<bool, SandboxError> {
    let Beginning::Entered { own_users } = keeper.said()?.0 else {
        return Err(keeper.no_stage("it did not enter"));
    };
    let process = keeper.pid().map(|pid| format!("/proc/{pid}"));
    if let (true, Some(process)) = (own_users, process) {
        for map in ["uid_map", "gid_map"] {
            fs::read_to_string(format!("/proc/self/{map}"))
                .and_then(|own| fs::write(format!("{process}/{map}"), identity(&own)))
                .map_err(|source| SandboxError::Step {
                    step: "map users to themselves".to_owned(),
                    feature: Some(Feature::Namespaces),
                    source,
                })?;
        }
    }
    keeper.tell(&Setup::Mapped);
    Ok(own_users)
}

fn room(settings: &Settings, privileged: bool, own_users: bool) -> Room {
    let mut sources = settings.root.directories.clone();
    let layers = sources.len();
    let mut places = Vec::new();
    for volume in &settings.volumes {
        places.push(Place {
            source: sources.len(),
            target: volume.target.clone(),
            writable: volume.writable,
            directory: volume.source.is_dir(),
            optional: false,
        });
        sources.push(volume.source.clone());
    }
    if settings.network == Network::Host {
        for file in NETWORK_FILES.map(PathBuf::from) {
            let taken = settings.volumes.iter().any(|volume| volume.target == file);
            if !taken && file.is_file() {
                places.push(Place {
                    source: sources.len(),
                    target: file.clone(),
                    writable: false,
                    directory: false,
                    optional: true,
                });
                sources.push(file);
            }
        }
    }
    Room {
        sources,
        layers,
        writable_root: settings.writable_root,
        tmp_size: settings.tmp_size,
        shared_memory: settings.shared_memory,
        places,
        own_network: settings.network == Network::None,
        own_users,
        user: privileged.then_some((settings.user, settings.group)),
        open_files: settings.open_files,
        processes: settings.processes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ids_are_mapped_to_themselves() {
        for (map, expected) in [
            ("         0          0 4294967295\n", "0 0 4294967295\n"),
            ("0 1000 1\n1 100000 65536\n", "0 0 1\n1 1 65536\n"),
            ("", ""),
            ("0 x\n", ""),
        ] {
            assert_eq!(identity(map), expected);
        }
    }
}
