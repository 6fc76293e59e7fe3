//! What the first process of a box gives up before it starts others, which inherit that.

use std::fs;

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::mounts;
use crate::sandbox::inside::{Refused, Step as _};
use crate::sandbox::protocol::Room;

/// What counts against the limit of processes beside the box's own: the first stage, and two threads
/// of the keeper. They are of the same user in the same user namespace.
const OWN_THREADS: u64 = 3;

/// A name that every machine can resolve: programs look their own name up.
const HOST_NAME: &[u8] = b"localhost";

/// Gives up all that is not needed any more. The order matters: each step needs what a later one
/// takes away.
pub(super) fn apply(room: &Room) -> Result<(), Refused> {
    rustix::system::sethostname(HOST_NAME).step("set the name of the host")?;
    // A namespace inside this one would give capabilities again, over kernel code that few have
    // looked at. Not every kernel has the file, and the box is closed without it.
    let _ = fs::write("/proc/sys/user/max_user_namespaces", "0");
    mounts::close_proc()?;
    limit(Resource::Nofile, room.open_files, "limit open files")?;
    limit(
        Resource::Nproc,
        room.processes.saturating_add(OWN_THREADS),
        "limit processes",
    )?;
    limit(Resource::Core, 0, "forbid core dumps")?;
    give_up_capabilities()?;
    rustix::thread::set_no_new_privs(true).step("give up new privileges")?;
    // The processes of the box are of the same user. They could trace this one and read its memory.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .step("forbid to be traced")
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

fn give_up_capabilities() -> Result<(), Refused> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The kernel knows no more of them.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno).step("give up a capability for ever"),
        }
    }
    rustix::thread::clear_ambient_capability_set().step("give up ambient capabilities")?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).step("give up capabilities")
}
