//! Plain processes, for a machine that has nothing to box them in: `--unsandboxed`.
//!
//! Programs and directories are looked for below the directories of the root, and that is all that
//! the root does: a process sees the files, processes and network of this machine, has the rights of
//! who started it, and its limits. So it is for static programs whose author is trusted.
//!
//! What the box started is killed by its process groups and as descendants of a keeper, also when
//! tierce is killed; but nothing holds a process that has other rights, as a setuid program has.

use super::memory::Memory;
use super::protocol::{PlainSetup, Setup};
use super::{Doorkeeper, Network, Sandbox, SandboxError, Settings, outside};

/// Starts a box that is none. It blocks for some milliseconds, and needs to be called in the context
/// of a tokio runtime.
pub fn start(settings: &Settings) -> Result<Sandbox, SandboxError> {
    let keeper = outside::Keeper::start(&settings.program)?;
    let listener = outside::listen()?;
    let memory = Memory::enclose(settings.memory, settings.tmp_size, keeper.pid());
    keeper.tell(&Setup::Plain(PlainSetup {
        directories: settings.root.directories.clone(),
        wall: memory.wall(),
    }));
    keeper.begun()?;
    keeper.open(listener, Doorkeeper::Anybody, memory, Network::Host)
}
