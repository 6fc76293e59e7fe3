//! What runs the processes of a function on this machine.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tierce_runner::sandbox::{self, Sandbox, SandboxError, Settings};

use crate::output::Output;
use crate::run::arguments::{FunctionArguments, RuntimeArgument};

/// What runs the processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runtime {
    Namespaces,
    Plain,
}

impl Runtime {
    /// Settles what `arguments` ask for, and says what is not as on Lambda.
    pub(crate) fn choose(arguments: &FunctionArguments, output: Output) -> Result<Self> {
        let asked = if arguments.unsandboxed {
            RuntimeArgument::Plain
        } else {
            arguments.runtime
        };
        Ok(match asked {
            RuntimeArgument::Plain => {
                output.warn(
                    "the function is not kept from anything: it sees this machine's files, \
                     processes and network, and has your rights",
                );
                Self::Plain
            }
            _ => Self::Namespaces,
        })
    }

    /// Starts a box. It blocks for some milliseconds.
    pub(crate) fn start(self, settings: &Settings) -> Result<Sandbox, SandboxError> {
        match self {
            Self::Namespaces => sandbox::namespaces::start(settings),
            Self::Plain => sandbox::plain::start(settings),
        }
    }
}

/// A directory for what boxes need while they live.
pub(crate) fn scratch_in(cache: &Path) -> Result<PathBuf> {
    let scratch = cache.join("boxes-1");
    std::fs::create_dir_all(&scratch)
        .with_context(|| format!("could not make {}", scratch.display()))?;
    Ok(scratch)
}
