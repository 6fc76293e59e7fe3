//! A box of namespaces, made without root and without any other program.
//!
//! ```text
//! tierce ─ spawns → entrance ─ spawns → room, process 1 of the box ─ spawns → runtime, extensions
//!                   gives root up,      mounts, restrains itself,
//!                   enters namespaces   keeps the box (`inside`)
//! ```
//!
//! A namespace of processes begins with the next child, so there are two stages. The user namespace
//! maps one user and one group, those of Lambda, to the user who started tierce; root maps them to
//! the unprivileged ids of the same numbers, and gives up the rest before anything else is done.
//!
//! What is not kept away from a process in the box: the clock and load of the machine, the network
//! when it is the host's (abstract sockets included), and the supplementary groups of a user who is
//! not root, which nobody but root can give up.

use std::net::TcpListener;
use std::path::PathBuf;

use rustix::thread::CapabilitySet;

use super::memory::Memory;
use super::outside::{self, Keeper};
use super::protocol::{Entrance, Place, Room, Setup};
use super::{Doorkeeper, Network, Sandbox, SandboxError, Settings};

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
    let keeper = Keeper::start(&settings.program)?;
    let files = settings
        .tmp_size
        .saturating_add(settings.shared_memory.unwrap_or(0));
    let memory = Memory::enclose(settings.memory, files, keeper.pid());
    let (entrance, room) = setups(settings, privileged());
    let setups = [Setup::Entrance(entrance), Setup::Room(room)];
    match settings.network {
        Network::Host => {
            let listener = outside::listen()?;
            // The stages are descendants of the first one, and connect to nothing.
            let doorkeeper = keeper
                .pid()
                .map_or(Doorkeeper::Anybody, Doorkeeper::Descendants);
            let (began, _) = keeper.begin(&setups)?;
            began.open(listener, doorkeeper, memory)
        }
        Network::None => {
            let (began, listener) = keeper.begin(&setups)?;
            let listener = listener.ok_or_else(|| began.no_stage("it sent no listener"))?;
            began.open(TcpListener::from(listener), Doorkeeper::Anybody, memory)
        }
    }
}

/// Whether this process can mount what it likes and become whom it likes: it is root, and in no
/// container that took this from it.
fn privileged() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| {
        sets.effective
            .contains(CapabilitySet::SYS_ADMIN | CapabilitySet::SETUID | CapabilitySet::SETGID)
    })
}

fn setups(settings: &Settings, privileged: bool) -> (Entrance, Room) {
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
    // What root opened may be below a directory that only root can enter, so it is gathered where
    // the next stage stands.
    let gathered = (0..sources.len()).map(|number| PathBuf::from(number.to_string()));
    let room = Room {
        sources: if privileged {
            gathered.collect()
        } else {
            sources.clone()
        },
        layers,
        writable_root: settings.writable_root,
        tmp_size: settings.tmp_size,
        shared_memory: settings.shared_memory,
        places,
        own_network: settings.network == Network::None,
        open_files: settings.open_files,
        processes: settings.processes,
    };
    let entrance = Entrance {
        user: settings.user,
        group: settings.group,
        own_network: settings.network == Network::None,
        sources: privileged.then_some(sources),
    };
    (entrance, room)
}
