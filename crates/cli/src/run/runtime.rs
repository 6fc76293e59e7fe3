//! What runs the processes of a function on this machine.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tierce_runner::sandbox::features::Machine;
use tierce_runner::sandbox::{self, MemoryKeeper, Sandbox, SandboxError, Settings};

use crate::background::in_background;
use crate::diagnostic::{Hinted as _, UsageError};
use crate::environment::Environment;
use crate::output::Output;
use crate::run::arguments::{FunctionArguments, RuntimeArgument};

/// tierce itself, also when another file has got its name meanwhile.
pub(crate) const PROGRAM: &str = "/proc/self/exe";

/// What runs the processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Namespaces,
    Plain,
}

/// What runs the processes, and what it needs.
#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    kind: Kind,
    /// Where directories of boxes may be made.
    pub(crate) scratch: PathBuf,
    /// Whether a root must be one directory.
    pub(crate) wants_one_directory: bool,
    /// What keeps a box within its memory, if anything does.
    pub(crate) memory: Option<MemoryKeeper>,
}

impl Runtime {
    /// Settles what `arguments` ask for and this machine can do, and says what is not as on Lambda.
    pub(crate) async fn choose(
        arguments: &FunctionArguments,
        environment: &Environment,
        output: Output,
    ) -> Result<Self> {
        let scratch = scratch_in(&environment.cache)?;
        let asked = if arguments.unsandboxed {
            RuntimeArgument::Plain
        } else {
            arguments.runtime
        };
        match asked {
            RuntimeArgument::Plain => {
                output.warn(
                    "the function is not kept from anything: it sees this machine's files, \
                     processes and network, has your rights, and no limits",
                );
                Ok(Self {
                    kind: Kind::Plain,
                    scratch,
                    wants_one_directory: false,
                    memory: None,
                })
            }
            RuntimeArgument::Auto | RuntimeArgument::Namespaces => {
                Self::of_namespaces(scratch, output).await
            }
            RuntimeArgument::Crun | RuntimeArgument::Runc => {
                Err(UsageError("OCI runtimes cannot be used yet".to_owned()))
                    .hint("leave --runtime out: namespaces need none")
            }
        }
    }

    async fn of_namespaces(scratch: PathBuf, output: Output) -> Result<Self> {
        let at = scratch.clone();
        let machine = in_background(move |_| {
            Machine::probe(Path::new(PROGRAM), &at)
                .with_context(|| format!("could not try a sandbox in {}", at.display()))
        })
        .await?;
        if let Err(error) = machine.namespaces {
            let missing = error.missing();
            let error = anyhow::Error::new(error);
            return Err(match missing {
                Some(missing) => error.context(missing.to_string()),
                None => error.context("this machine cannot box the function in"),
            })
            .hint("a static program that you trust runs without a box too: `--unsandboxed`");
        }
        if let Err(error) = &machine.overlay {
            let reason = error
                .missing()
                .map_or_else(|| error.to_string(), |it| it.to_string());
            output.note(&format!(
                "tierce: {reason}: the layers of an image are put together in one directory"
            ));
        }
        Ok(Self {
            kind: Kind::Namespaces,
            scratch,
            wants_one_directory: machine.overlay.is_err(),
            memory: Some(machine.memory),
        })
    }

    /// Starts a box. It blocks for some milliseconds.
    pub(crate) fn start(&self, settings: &Settings) -> Result<Sandbox, SandboxError> {
        match self.kind {
            Kind::Namespaces => sandbox::namespaces::start(settings),
            Kind::Plain => sandbox::plain::start(settings),
        }
    }
}

/// A directory for what boxes need while they live.
fn scratch_in(cache: &Path) -> Result<PathBuf> {
    let scratch = cache.join("boxes-1");
    std::fs::create_dir_all(&scratch)
        .with_context(|| format!("could not make {}", scratch.display()))?;
    Ok(scratch)
}
