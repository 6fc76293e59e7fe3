//! The first stage: enters the namespaces, starts the second stage there and waits for it.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::process::{self, Stdio};

use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use crate::sandbox::inside::{Refused, Step as _, is_alone, refuse};
use crate::sandbox::memory::WayOut;
use crate::sandbox::protocol::{self, Beginning, Entrance, Setup};
use crate::sandbox::{Feature, STAGE};

/// What the second stage needs to mount, to bring the loopback up, to restrain its own namespace and
/// to give all of it up; and what an overlay with an upper directory does in the name of who mounted
/// it. A program that is executed by another user than root has no capabilities but the ambient ones.
const FOR_THE_ROOM: [CapabilitySet; 8] = [
    CapabilitySet::CHOWN,
    CapabilitySet::DAC_OVERRIDE,
    CapabilitySet::FOWNER,
    CapabilitySet::FSETID,
    CapabilitySet::SYS_ADMIN,
    CapabilitySet::NET_ADMIN,
    CapabilitySet::SYS_RESOURCE,
    CapabilitySet::SETPCAP,
];

/// The life of the first stage.
pub(in crate::sandbox) fn enter(control: &UnixStream, entrance: &Entrance) -> io::Result<()> {
    let way_out = entrance.wall.as_ref().and_then(WayOut::of);
    match try_enter(control, entrance) {
        Ok(mut room) => {
            let ended = room.wait();
            if let Some(way_out) = way_out.filter(|_| is_alone(control)) {
                way_out.take();
            }
            ended.map(|_| ())
        }
        Err(refused) => refuse(control, &refused),
    }
}

fn try_enter(control: &UnixStream, entrance: &Entrance) -> Result<process::Child, Refused> {
    if let Some(wall) = &entrance.wall {
        wall.enter().step("enter the cgroup of the box")?;
    }
    if entrance.privileged {
        enter_as_root(control, entrance)?;
    } else {
        enter_as_user(entrance)?;
    }
    // By its descriptor and not by its path, which is another one in the box.
    process::Command::new("/proc/self/exe")
        .arg(STAGE)
        .env_clear()
        .stdin(Stdio::inherit())
        .spawn()
        .step("start the first process of the box")
}

/// All namespaces but the one of users, and the one of mounts, which the second stage makes.
fn namespaces(entrance: &Entrance) -> UnshareFlags {
    let network = if entrance.own_network {
        UnshareFlags::NEWNET
    } else {
        UnshareFlags::empty()
    };
    UnshareFlags::NEWPID
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP
        | network
}

#[expect(
    deprecated,
    reason = "unsafe for descriptor tables that threads share, and this takes no such flag"
)]
pub(super) fn unshare(namespaces: UnshareFlags) -> rustix::io::Result<()> {
    rustix::thread::unshare(namespaces)
}

fn enter_as_user(entrance: &Entrance) -> Result<(), Refused> {
    let user = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    unshare(UnshareFlags::NEWUSER | namespaces(entrance))
        .step_of(Feature::Namespaces, "make namespaces")?;
    // An unprivileged process may map its group only after it said so (user_namespaces(7)).
    fs::write("/proc/self/setgroups", "deny")
        .step_of(Feature::Namespaces, "give up changing groups")?;
    let line = |inner, outer| format!("{inner} {outer} 1");
    fs::write("/proc/self/uid_map", line(entrance.user, user))
        .step_of(Feature::Namespaces, "map the user")?;
    fs::write("/proc/self/gid_map", line(entrance.group, group))
        .step_of(Feature::Namespaces, "map the group")?;
    keep_capabilities()
}

/// Root needs no user namespace, but the limit of processes is one for each box in it, and what is
/// forbidden in it is not forbidden elsewhere. All users are mapped to themselves by tierce, so that
/// owners of files are seen as they are.
fn enter_as_root(control: &UnixStream, entrance: &Entrance) -> Result<(), Refused> {
    let with_users = UnshareFlags::NEWUSER | namespaces(entrance);
    // User namespaces may be forbidden even to root.
    let own_users = entrance.own_users && unshare(with_users).is_ok();
    if !own_users {
        unshare(namespaces(entrance)).step_of(Feature::Namespaces, "make namespaces")?;
    }
    protocol::send(control, &Beginning::Entered { own_users }).step("tell of the namespaces")?;
    match protocol::receive(control).step("hear of the users")? {
        Setup::Mapped => Ok(()),
        _ => Err(io::Error::from(io::ErrorKind::InvalidData)).step("hear of the users"),
    }
}

fn keep_capabilities() -> Result<(), Refused> {
    let needed = FOR_THE_ROOM
        .into_iter()
        .fold(CapabilitySet::empty(), |all, one| all | one);
    let sets = CapabilitySets {
        effective: needed,
        permitted: needed,
        inheritable: needed,
    };
    rustix::thread::set_capabilities(None, sets)
        .step_of(Feature::Namespaces, "keep capabilities")?;
    for capability in FOR_THE_ROOM {
        rustix::thread::configure_capability_in_ambient_set(capability, true)
            .step_of(Feature::Namespaces, "keep a capability")?;
    }
    Ok(())
}
