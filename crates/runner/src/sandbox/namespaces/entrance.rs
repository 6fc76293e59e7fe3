//! The first stage: gives root up if it has it, enters the namespaces, starts the second stage there
//! and waits for it.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{self, Stdio};

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use super::mounts;
use crate::sandbox::STAGE;
use crate::sandbox::inside::{Refused, Step as _, refuse};
use crate::sandbox::protocol::Entrance;

/// Whom root becomes when the box is to see itself as root: `nobody`.
const NOBODY: u32 = 65534;

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
    match try_enter(entrance) {
        Ok(mut room) => {
            // Other processes of the same user are none of the box's.
            let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
            room.wait().map(|_| ())
        }
        Err(refused) => refuse(control, &refused),
    }
}

fn try_enter(entrance: &Entrance) -> Result<process::Child, Refused> {
    if let Some(sources) = &entrance.sources {
        unshare(UnshareFlags::NEWNS).step("make a mount namespace as root")?;
        mounts::make_private()?;
        gather(sources)?;
        become_unprivileged(entrance)?;
    }
    let user = rustix::process::geteuid();
    let group = rustix::process::getegid();
    let network = if entrance.own_network {
        UnshareFlags::NEWNET
    } else {
        UnshareFlags::empty()
    };
    unshare(
        UnshareFlags::NEWUSER
            | UnshareFlags::NEWPID
            | UnshareFlags::NEWIPC
            | UnshareFlags::NEWUTS
            | UnshareFlags::NEWCGROUP
            | network,
    )
    .step("make namespaces")?;
    // An unprivileged process may map its group only after it said so (user_namespaces(7)).
    fs::write("/proc/self/setgroups", "deny").step("give up changing groups")?;
    let line = |inner, outer| format!("{inner} {outer} 1");
    fs::write("/proc/self/uid_map", line(entrance.user, user.as_raw())).step("map the user")?;
    fs::write("/proc/self/gid_map", line(entrance.group, group.as_raw())).step("map the group")?;
    keep_capabilities()?;

    // By its descriptor and not by its path, which an unprivileged user may be unable to follow.
    process::Command::new("/proc/self/exe")
        .arg(STAGE)
        .env_clear()
        .stdin(Stdio::inherit())
        .spawn()
        .step("start the first process of the box")
}

#[expect(
    deprecated,
    reason = "unsafe for descriptor tables that threads share, and this takes no such flag"
)]
pub(super) fn unshare(namespaces: UnshareFlags) -> rustix::io::Result<()> {
    rustix::thread::unshare(namespaces)
}

/// Mounts all `sources` under their numbers in one directory, and enters it: the only directory that
/// the next mount namespace takes over is the working directory.
fn gather(sources: &[PathBuf]) -> Result<(), Refused> {
    let mut trees = Vec::new();
    for source in sources {
        let tree = rustix::mount::open_tree(
            CWD,
            source,
            OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE,
        )
        .step(format!("open `{}`", source.display()))?;
        let metadata = rustix::fs::fstat(&tree).step(format!("open `{}`", source.display()))?;
        trees.push((tree, rustix::fs::FileType::from_raw_mode(metadata.st_mode)));
    }
    let first = sources.first().ok_or(Errno::NOENT).step("find the root")?;
    let first = rustix::fs::open(first, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .step("open the root")?;
    let table = mounts::tmpfs(&[("mode", "0755")])?;
    mounts::attach(&table, &first).step("mount a directory for the parts of the root")?;
    for (number, (tree, kind)) in trees.into_iter().enumerate() {
        let name = number.to_string();
        mounts::make_point(&table, &name, kind.is_dir())?;
        rustix::mount::move_mount(
            &tree,
            "",
            &table,
            name.as_str(),
            rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .step("mount a part of the root")?;
    }
    rustix::process::fchdir(&table).step("enter the directory of the parts of the root")
}

/// Becomes the unprivileged user. Where only one user exists, as in a container that maps no other,
/// it stays who it is.
fn become_unprivileged(entrance: &Entrance) -> Result<(), Refused> {
    let outer = |inner| if inner == 0 { NOBODY } else { inner };
    let user = Uid::from_raw(outer(entrance.user));
    let group = Gid::from_raw(outer(entrance.group));
    // The box opens its output again by name (`/dev/stderr`), as its own.
    for pipe in [rustix::stdio::stdout(), rustix::stdio::stderr()] {
        match rustix::fs::fchown(pipe, Some(user), Some(group)) {
            Err(Errno::INVAL) => return Ok(()),
            given => given.step("give the output to the user of the box")?,
        }
    }
    rustix::thread::set_thread_groups(&[]).step("leave the groups of root")?;
    rustix::thread::set_thread_res_gid(group, group, group).step("leave the group of root")?;
    rustix::thread::set_thread_res_uid(user, user, user).step("stop being root")?;
    // Or `/proc/self` belongs to root still.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable).step("own the own process")
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
    rustix::thread::set_capabilities(None, sets).step("keep capabilities")?;
    for capability in FOR_THE_ROOM {
        rustix::thread::configure_capability_in_ambient_set(capability, true)
            .step("keep a capability")?;
    }
    Ok(())
}
