//! What runs the processes of a function on this machine.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tierce_runner::sandbox::features::Machine;
use tierce_runner::sandbox::{self, MemoryKeeper, Sandbox, SandboxError, Settings};

use crate::background::in_background;
use crate::diagnostic::{Hinted as _, UsageError};
use crate::environment::{Environment, Variables};
use crate::output::Output;
use crate::run::arguments::{FunctionArguments, RuntimeArgument};

/// tierce itself, also when another file has got its name meanwhile.
const PROGRAM: &str = "/proc/self/exe";

/// OCI runtimes that are known to do, the one that needs less first.
const OCI_RUNTIMES: [&str; 2] = ["crun", "runc"];

/// What runs the processes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Namespaces,
    /// Namespaces, the first of which is made by this OCI runtime.
    OciRuntime(PathBuf),
    Plain,
}

impl Kind {
    /// The program that has the stages of a sandbox in it: tierce itself.
    fn stages(&self) -> PathBuf {
        let own = match self {
            // Another program starts it.
            Self::OciRuntime(_) => std::env::current_exe().ok(),
            Self::Namespaces | Self::Plain => None,
        };
        own.unwrap_or_else(|| PathBuf::from(PROGRAM))
    }

    /// Tries what it can do on this machine.
    async fn probe(&self, scratch: &Path) -> Result<Machine> {
        let (stages, at) = (self.stages(), scratch.to_owned());
        let runtime = match self {
            Self::OciRuntime(program) => Some(program.clone()),
            Self::Namespaces | Self::Plain => None,
        };
        in_background(move |_| {
            let machine = match runtime {
                Some(runtime) => Machine::probe_with(&stages, &at, &runtime),
                None => Machine::probe(&stages, &at),
            };
            machine.with_context(|| format!("could not try a sandbox in {}", at.display()))
        })
        .await
    }
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
            // Root may always make namespaces.
            RuntimeArgument::Auto if rustix::process::geteuid().is_root() => {
                Self::of_namespaces(scratch, Vec::new(), output).await
            }
            RuntimeArgument::Auto => {
                let installed = OCI_RUNTIMES
                    .iter()
                    .filter_map(|name| find_program(name, &environment.variables));
                Self::of_namespaces(scratch, installed.collect(), output).await
            }
            RuntimeArgument::Namespaces => Self::of_namespaces(scratch, Vec::new(), output).await,
            RuntimeArgument::Crun => Self::asked_for("crun", scratch, environment, output).await,
            RuntimeArgument::Runc => Self::asked_for("runc", scratch, environment, output).await,
        }
    }

    async fn asked_for(
        name: &str,
        scratch: PathBuf,
        environment: &Environment,
        output: Output,
    ) -> Result<Self> {
        let Some(program) = find_program(name, &environment.variables) else {
            return Err(UsageError(format!("`{name}` is in no directory of PATH"))).hint(
                "install it, or leave --runtime out: where namespaces can be made none is needed",
            );
        };
        let kind = Kind::OciRuntime(program);
        let machine = kind.probe(&scratch).await?;
        let able = Self::able(kind, scratch, machine, output);
        able.with_context(|| format!("`{name}` cannot box the function in here"))
            .hint("leave --runtime out, and the first way that works on this machine is taken")
    }

    /// Boxes of namespaces; one of `others` opens the door where this machine lets us make none.
    async fn of_namespaces(scratch: PathBuf, others: Vec<PathBuf>, output: Output) -> Result<Self> {
        let kind = Kind::Namespaces;
        let machine = kind.probe(&scratch).await?;
        let error = match Self::able(kind, scratch.clone(), machine, output) {
            Ok(able) => return Ok(able),
            Err(error) => error,
        };
        let missing = error.missing();
        if let Some(missing) = &missing {
            for program in others {
                let shown = program.display().to_string();
                let kind = Kind::OciRuntime(program);
                let machine = kind.probe(&scratch).await?;
                match Self::able(kind, scratch.clone(), machine, output) {
                    Ok(able) => {
                        output.note(&format!("tierce: {missing}: {shown} makes them"));
                        return Ok(able);
                    }
                    Err(error) => {
                        let error = anyhow::Error::new(error);
                        output.note(&format!("tierce: {shown} makes none either: {error:#}"));
                    }
                }
            }
        }
        let error = anyhow::Error::new(error)
            .hint("a static program that you trust runs without a box too: `--unsandboxed`");
        // What was said last is shown first.
        Err(match missing {
            Some(missing) => error
                .context(missing.to_string())
                .hint(missing.remedies.join("; ")),
            None => error.context("this machine cannot box the function in"),
        })
    }

    /// `kind`, which can do on this machine what was found out; what it cannot is said.
    fn able(
        kind: Kind,
        scratch: PathBuf,
        machine: Machine,
        output: Output,
    ) -> Result<Self, SandboxError> {
        machine.namespaces?;
        if let Err(error) = &machine.overlay {
            let reason = error
                .missing()
                .map_or_else(|| error.to_string(), |it| it.to_string());
            output.note(&format!(
                "tierce: {reason}: the layers of an image are put together in one directory"
            ));
        }
        Ok(Self {
            kind,
            scratch,
            wants_one_directory: machine.overlay.is_err(),
            memory: Some(machine.memory),
        })
    }

    /// The program that has the stages of a sandbox in it: tierce itself.
    pub(crate) fn program(&self) -> PathBuf {
        self.kind.stages()
    }

    /// Starts a box. It blocks for some milliseconds.
    pub(crate) fn start(&self, settings: &Settings) -> Result<Sandbox, SandboxError> {
        match &self.kind {
            Kind::OciRuntime(program) => sandbox::oci_runtime::start(settings, program),
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

/// A program of the user's PATH.
fn find_program(name: &str, variables: &Variables) -> Option<PathBuf> {
    let path = variables.get("PATH")?;
    std::env::split_paths(path)
        .map(|directory| directory.join(name))
        .find(|program| {
            let may_run = rustix::fs::access(program, rustix::fs::Access::EXEC_OK).is_ok();
            program.is_absolute() && may_run && program.is_file()
        })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_program_is_found_where_it_can_be_started() {
        let directory = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| directory.path().join(name));
        for (folder, mode) in [(&first, 0o644), (&second, 0o755)] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("crun"), "").unwrap();
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(folder.join("crun"), permissions).unwrap();
        }
        std::fs::create_dir(first.join("runc")).unwrap();
        let path = format!("relative:{}:{}", first.display(), second.display());
        let variables = Variables::of([("PATH", path.as_str())]);
        assert_eq!(find_program("crun", &variables), Some(second.join("crun")));
        assert_eq!(find_program("runc", &variables), None);
        assert_eq!(find_program("crun", &Variables::default()), None);
    }
}
