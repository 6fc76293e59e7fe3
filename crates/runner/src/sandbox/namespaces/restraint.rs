//! What the first process of a box gives up before it starts others, which inherit that.

use std::fs;

use landlock::{CompatLevel, Compatible as _, Ruleset, RulesetAttr as _, RulesetCreated, Scope};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Gid, Resource, Rlimit, Signal, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use super::mounts;
use crate::sandbox::inside::{Refused, Step as _};
use crate::sandbox::protocol::Room;

/// Threads of the keeper, which count against the limit of processes: they are of the same user.
const KEEPER: u64 = 2;
/// The first stage is of that user too, if it is not root.
const ENTRANCE: u64 = 1;

/// A name that every machine can resolve: programs look their own name up.
const HOST_NAME: &[u8] = b"localhost";

/// Gives up all that is not needed any more. The order matters: each step needs what a later one
/// takes away.
pub(super) fn apply(room: &Room) -> Result<(), Refused> {
    rustix::system::sethostname(HOST_NAME).step("set the name of the host")?;
    if room.own_users {
        // A namespace inside this one would give capabilities again, over kernel code that few have
        // looked at. Not every kernel has the file, and the box is closed without it. Elsewhere the
        // limit is the machine's.
        let _ = fs::write("/proc/sys/user/max_user_namespaces", "0");
    }
    mounts::close_proc()?;
    let own = if room.user.is_some() {
        KEEPER
    } else {
        KEEPER + ENTRANCE
    };
    limit(Resource::Nofile, room.open_files, "limit open files")?;
    limit(
        Resource::Nproc,
        room.processes.saturating_add(own),
        "limit processes",
    )?;
    limit(Resource::Core, 0, "forbid core dumps")?;
    give_up_for_ever()?;
    if let Some((user, group)) = room.user {
        stop_being_root(Uid::from_raw(user), Gid::from_raw(group))?;
    }
    give_up_capabilities()?;
    rustix::thread::set_no_new_privs(true).step("give up new privileges")?;
    close_abstract_sockets()?;
    close_keyrings()?;
    // If the first stage is killed, so is this one, and with it the namespace. A change of the user
    // would have undone it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .step("follow the first stage")?;
    // The processes of the box are of the same user. They could trace this one and read its memory.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .step("forbid to be traced")
}

/// Becomes the user of the box, and has no capabilities from then on.
fn stop_being_root(user: Uid, group: Gid) -> Result<(), Refused> {
    // The box opens its output again by name (`/dev/stderr`), as its own.
    for pipe in [rustix::stdio::stdout(), rustix::stdio::stderr()] {
        rustix::fs::fchown(pipe, Some(user), Some(group))
            .step("give the output to the user of the box")?;
    }
    rustix::thread::set_thread_groups(&[]).step("leave the groups of root")?;
    rustix::thread::set_thread_res_gid(group, group, group).step("leave the group of root")?;
    rustix::thread::set_thread_res_uid(user, user, user).step("stop being root")
}

/// Abstract sockets belong to a network and not to a file system, so those of this machine could be
/// spoken to. Landlock keeps them away since Linux 6.12; an older kernel cannot.
fn close_abstract_sockets() -> Result<(), Refused> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .scope(Scope::AbstractUnixSocket)
        .and_then(Ruleset::create)
        .and_then(RulesetCreated::restrict_self)
        .map(|_| ())
        .map_err(|_| Errno::PERM)
        .step("keep away from abstract sockets")
}

/// Keyrings are inherited from whoever started tierce, with the keys of a login in them, and no
/// namespace is about them (`session-keyring(7)`). So the calls are refused, as container runtimes do.
fn close_keyrings() -> Result<(), Refused> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => TargetArch::x86_64,
        "aarch64" => TargetArch::aarch64,
        // Lambda has no other.
        _ => return Ok(()),
    };
    let calls = [libc::SYS_add_key, libc::SYS_request_key, libc::SYS_keyctl];
    let refused = calls.into_iter().map(|call| (call, Vec::new())).collect();
    let errno = Errno::PERM.raw_os_error().unsigned_abs();
    SeccompFilter::new(
        refused,
        SeccompAction::Allow,
        SeccompAction::Errno(errno),
        architecture,
    )
    .and_then(BpfProgram::try_from)
    .map_err(seccompiler::Error::from)
    .and_then(|filter| seccompiler::apply_filter(&filter))
    .map_err(|_| Errno::PERM)
    .step("keep away from keyrings")
}

/// Sets a limit, or the highest one that is allowed below it.
fn limit(resource: Resource, wanted: u64, what: &str) -> Result<(), Refused> {
    let allowed = rustix::process::getrlimit(resource).maximum;
    let limit = Some(allowed.map_or(wanted, |allowed| allowed.min(wanted)));
    let limit = Rlimit {
        current: limit,
        maximum: limit,
    };
    rustix::process::setrlimit(resource, limit).step(what)
}

/// Also of programs that are marked to give them.
fn give_up_for_ever() -> Result<(), Refused> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The kernel knows no more of them.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno).step("give up a capability for ever"),
        }
    }
    Ok(())
}

fn give_up_capabilities() -> Result<(), Refused> {
    rustix::thread::clear_ambient_capability_set().step("give up ambient capabilities")?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).step("give up capabilities")
}
