//! From lock files to trees of packages: by the tools of each language, for the base's platform.
//!
//! A layer that names a lock file gets a tree before anything is looked at. Trees are kept in the
//! cache under all that they depend on (see [`kept`]), so a tool runs only when something of that
//! changed. A tool works in the run's own scratch directory; what it leaves of this machine is taken
//! out (see [`installed`]), and then the tree gets its name.

pub(crate) mod bytecode;
pub(crate) mod installed;
pub(crate) mod kept;
pub(crate) mod node;
pub(crate) mod python;
pub(crate) mod requirements;
pub(crate) mod secrets;
pub(crate) mod target;
pub(crate) mod tool;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use tierce_image::BaseImage;
use tierce_oci::Platform;

use self::bytecode::{Bytecode, Interpreter};
use self::installed::{tidy_node, tidy_python};
use self::kept::{Kept, Key};
use self::node::{NodeTarget, Project};
use self::python::{Installer, Manifest, PythonTarget};
use self::requirements::Requirements;
use self::secrets::{Secrets, without_credentials};
use self::target::{BaseFacts, Glibc, Libc, Machine, PythonVersion};
use self::tool::{Run, Tool, ToolFailed};
use crate::background::in_background;
use crate::diagnostic::Hinted as _;
use crate::environment::Variables;
use crate::output::Output;
use crate::places::Places;
use crate::plan::{LayerPart, LayerPlan};

/// What a layer is to have besides its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dependencies {
    pub(crate) language: Language,
    /// The lock file, or what stands in for one.
    pub(crate) file: PathBuf,
    /// As it stands in `tierce.toml`.
    pub(crate) shown: String,
    /// As COPY takes it; settled before anything is made.
    pub(crate) to: Option<String>,
    pub(crate) include: Vec<String>,
    pub(crate) exclude: Vec<String>,
}

/// Whose packages they are, and what is said of the base that it does not say itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    Python {
        version: Option<PythonVersion>,
        glibc: Option<Glibc>,
    },
    Node {
        /// Whether packages may run what they bring for the time of their installation.
        scripts: bool,
    },
}

/// Part of what trees depend on: counts up when a tree is put in order in another way.
const FORMAT: &str = "resolved dependencies, 1";

/// Resolves the dependencies of a build's layers.
#[derive(Debug)]
pub(crate) struct Resolver<'a> {
    places: &'a Places,
    variables: Variables,
    context: PathBuf,
    output: Output,
    /// Those that were found: every layer and platform asks again.
    interpreters: Mutex<BTreeMap<PythonVersion, Interpreter>>,
}

/// A tree that can be made, or is known.
struct Job {
    key: Key,
    /// What for, for people.
    target: String,
    work: Work,
    secrets: Secrets,
}

/// How a tree is made.
enum Work {
    Python {
        manifest: Manifest,
        lock: PathBuf,
        installer: Installer,
        target: PythonTarget,
    },
    Node {
        project: Box<Project>,
        manager: Tool,
        target: NodeTarget,
    },
}

impl<'a> Resolver<'a> {
    /// Prepares; nothing is asked yet.
    pub(crate) fn new(
        places: &'a Places,
        variables: &Variables,
        context: &Path,
        output: Output,
    ) -> Self {
        Self {
            places,
            variables: variables.clone(),
            context: context.to_owned(),
            output,
            interpreters: Mutex::default(),
        }
    }

    /// The layers with a tree in the place of every lock file.
    pub(crate) async fn resolve(
        &self,
        layers: &[LayerPlan],
        base: Option<&BaseImage>,
        platform: &Platform,
    ) -> Result<Vec<LayerPlan>> {
        let mut resolved = layers.to_vec();
        for layer in &mut resolved {
            if let Bytecode::Wanted(version) = layer.bytecode {
                let interpreter = self.interpreter(&layer.name, version, base).await;
                let context = || format!("could not make the layer `{}`", layer.name);
                layer.bytecode = Bytecode::By(interpreter.with_context(context)?);
            }
            let Some(dependencies) = layer.dependencies.take() else {
                continue;
            };
            let tree = self
                .tree(&layer.name, &dependencies, base, platform)
                .await
                .with_context(|| format!("could not make the layer `{}`", layer.name))?;
            // First, so that files of the same layer override them.
            layer.parts.insert(
                0,
                LayerPart::Resolved {
                    tree,
                    to: dependencies.to.unwrap_or_else(|| "/".to_owned()),
                    include: dependencies.include,
                    exclude: dependencies.exclude,
                },
            );
        }
        Ok(resolved)
    }

    /// What the Python of a layer is compiled by.
    async fn interpreter(
        &self,
        layer: &str,
        version: Option<PythonVersion>,
        base: Option<&BaseImage>,
    ) -> Result<Interpreter> {
        let facts = base.map(BaseFacts::of).unwrap_or_default();
        let version = version
            .or(facts.python)
            .context("the base does not say which Python it has")
            .hint(format!(
                "say it in tierce.toml, in the layer `{layer}`: `python-version = \"3.13\"`"
            ))?;
        let known = || {
            let known = self.interpreters.lock();
            known.unwrap_or_else(PoisonError::into_inner)
        };
        if let Some(interpreter) = known().get(&version) {
            return Ok(interpreter.clone());
        }
        let found = Interpreter::find(version, &self.variables, &self.context).await?;
        known().insert(version, found.clone());
        Ok(found)
    }

    async fn tree(
        &self,
        layer: &str,
        dependencies: &Dependencies,
        base: Option<&BaseImage>,
        platform: &Platform,
    ) -> Result<PathBuf> {
        let job = self.job(layer, dependencies, base, platform).await?;
        let kept = self.places.resolved()?;
        let key = job.key;
        if let Some(tree) = find(&kept, key).await? {
            return Ok(tree);
        }
        let (shown, target) = (&dependencies.shown, &job.target);
        if self.places.is_offline() {
            return Err(anyhow::anyhow!(
                "--offline: what `{shown}` leads to for {target} is not in the cache"
            )
            .hint("run the same build once without --offline"));
        }
        let holder = Arc::clone(&kept);
        let claim = in_background(move |cancel| Ok(holder.claim(&key, cancel)?)).await?;
        // Whoever held it may have made the tree meanwhile.
        if let Some(tree) = find(&kept, key).await? {
            return Ok(tree);
        }
        let work = tempfile::Builder::new()
            .prefix("resolve-")
            .tempdir_in(self.places.scratch()?)
            .context("could not make a directory to resolve dependencies in")?;
        self.make(&job, shown, &work).await?;
        let made = work.path().join("made");
        let Job { work: how, .. } = job;
        let tree = in_background(move |_| {
            let tree = made.join("tree");
            match how {
                Work::Python { .. } => tidy_python(&tree)?,
                Work::Node { .. } => tidy_node(&tree.join("node_modules"))?,
            }
            Ok(claim.keep(&made)?)
        })
        .await?;
        Ok(tree)
    }

    /// Finds out everything that the tree depends on. Nothing is resolved.
    async fn job(
        &self,
        layer: &str,
        dependencies: &Dependencies,
        base: Option<&BaseImage>,
        platform: &Platform,
    ) -> Result<Job> {
        let machine = Machine::of(platform).with_context(|| {
            format!("dependencies are known for linux/amd64 and linux/arm64, not for {platform}")
        })?;
        let facts = base.map(BaseFacts::of).unwrap_or_default();
        match dependencies.language {
            Language::Python { version, glibc } => {
                let version = version
                    .or(facts.python)
                    .context("the base does not say which Python it has")
                    .hint(format!(
                        "say it in tierce.toml, in the layer `{layer}`: `python-version = \"3.13\"`"
                    ))?;
                let glibc = match (glibc, facts.libc) {
                    (Some(glibc), _) | (None, Some(Libc::Glibc(glibc))) => Some(glibc),
                    (None, Some(Libc::Musl)) => {
                        return Err(anyhow::anyhow!(
                            "the base has musl in the place of glibc, which wheels are not chosen for"
                        )
                        .hint("use a base with glibc, such as one of AWS's or Debian's"));
                    }
                    (None, None) => None,
                };
                let target = PythonTarget {
                    machine,
                    version,
                    glibc: glibc.unwrap_or(Glibc::OLDEST),
                };
                let mut job = self.python_job(&dependencies.file, target).await?;
                job.target = match glibc {
                    Some(glibc) => format!("{platform}, Python {version}, glibc {glibc}"),
                    None => format!("{platform}, Python {version}, any glibc"),
                };
                Ok(job)
            }
            Language::Node { scripts } => {
                if scripts && Machine::here() != Some(machine) {
                    return Err(anyhow::anyhow!(
                        "`scripts = true` runs code of packages, which {platform} could and this machine cannot"
                    )
                    .hint("build it on such a machine, or leave `scripts` out"));
                }
                let target = NodeTarget {
                    machine,
                    has_musl: facts.libc == Some(Libc::Musl),
                    scripts,
                };
                let mut job = self.node_job(&dependencies.file, target).await?;
                job.target = platform.to_string();
                Ok(job)
            }
        }
    }

    async fn node_job(&self, file: &Path, target: NodeTarget) -> Result<Job> {
        let project = Project::read(file)?;
        let manager = project
            .manager
            .find(&self.variables, &self.context, target)
            .await?;
        let mut secrets = Secrets::of(&self.variables);
        for text in project.texts() {
            secrets.add_of_npmrc(text);
            secrets.add_of_variables(text, &self.variables);
        }
        let machine = target.machine.of_node();
        let mut parts: Vec<Vec<u8>> = vec![
            FORMAT.into(),
            format!("node, {} {}", manager.name, manager.version).into(),
            format!(
                "{machine} musl={} scripts={}",
                target.has_musl, target.scripts
            )
            .into(),
        ];
        parts.extend(project.parts(target.scripts));
        Ok(Job {
            key: Key::of(parts),
            target: String::new(),
            work: Work::Node {
                project: Box::new(project),
                manager,
                target,
            },
            secrets,
        })
    }

    async fn python_job(&self, file: &Path, target: PythonTarget) -> Result<Job> {
        let (manifest, lock) = Manifest::of(file).map_err(anyhow::Error::msg)?;
        let installer = Installer::find(&self.variables, &self.context).await?;
        let mut secrets = Secrets::of(&self.variables);
        let PythonTarget {
            machine,
            version,
            glibc,
        } = target;
        let tool = installer.tool();
        let mut parts: Vec<Vec<u8>> = vec![
            FORMAT.into(),
            format!("python, {} {}", tool.name, tool.version).into(),
            format!("{} {version} {}", machine.of_linux(), glibc.of_wheels()).into(),
            python::decisive(&self.variables).into(),
            format!("{manifest:?}").into(),
        ];
        if manifest == Manifest::Requirements {
            let requirements = Requirements::read(&lock, &self.context)?;
            for text in &requirements.texts {
                secrets.add_of_urls(text);
                secrets.add_of_variables(text, &self.variables);
                parts.push(without_credentials(text).into());
            }
            for local in &requirements.local {
                add_local(local, &mut parts)
                    .with_context(|| format!("could not read {}", local.display()))?;
            }
        } else {
            for path in [lock.clone(), lock.with_file_name("pyproject.toml")] {
                let text = std::fs::read_to_string(&path)
                    .with_context(|| format!("could not read {}", path.display()))?;
                secrets.add_of_urls(&text);
                parts.push(without_credentials(&text).into());
            }
        }
        Ok(Job {
            key: Key::of(parts),
            target: String::new(),
            work: Work::Python {
                manifest,
                lock,
                installer,
                target,
            },
            secrets,
        })
    }

    /// Makes `made/tree` in the folder `work`.
    async fn make(&self, job: &Job, shown: &str, work: &TempDir) -> Result<()> {
        let tree = work.path().join("made/tree");
        std::fs::create_dir_all(&tree)
            .with_context(|| format!("could not make {}", tree.display()))?;
        let target = &job.target;
        let resolving =
            |tool: &Tool| format!("resolving `{shown}` for {target} with {}", tool.name);
        match &job.work {
            Work::Python {
                manifest,
                lock,
                installer,
                target,
            } => {
                let exported = work.path().join("requirements.txt");
                let requirements = if *manifest == Manifest::Requirements {
                    lock
                } else {
                    let (tool, arguments, environment) =
                        python::exporter(*manifest, lock, &exported, &self.variables).await?;
                    self.say(&format!("exporting `{shown}` with {}", tool.name));
                    let directory = lock.parent().unwrap_or(&self.context);
                    self.run(job, shown, &tool, directory, arguments, environment)
                        .await?;
                    &exported
                };
                let read = Requirements::read(requirements, &self.context)?;
                let arguments = installer.arguments(requirements, read.has_hashes, *target, &tree);
                let environment = installer.environment(&self.variables);
                let tool = installer.tool();
                self.say(&resolving(tool));
                self.run(job, shown, tool, &self.context, arguments, environment)
                    .await
            }
            Work::Node {
                project,
                manager,
                target,
            } => {
                let folder = work.path().join("project");
                project.set_up(&folder)?;
                let arguments = project.arguments(*target);
                let environment = node::environment(&self.variables);
                self.say(&resolving(manager));
                self.run(job, shown, manager, &folder, arguments, environment)
                    .await?;
                let modules = folder.join("node_modules");
                if modules.is_dir() {
                    std::fs::rename(&modules, tree.join("node_modules"))
                        .with_context(|| format!("could not move {}", modules.display()))?;
                }
                Ok(())
            }
        }
    }

    fn say(&self, line: &str) {
        self.places.bars().suspend(|| self.output.note(line));
    }

    async fn run(
        &self,
        job: &Job,
        shown: &str,
        tool: &Tool,
        directory: &Path,
        arguments: Vec<OsString>,
        environment: Vec<(OsString, OsString)>,
    ) -> Result<()> {
        let run = Run {
            tool,
            arguments,
            directory,
            environment,
        };
        let ended = run.run(&job.secrets, |line| self.say(line)).await?;
        if ended.status.success() {
            return Ok(());
        }
        Err(ToolFailed {
            tool: tool.name,
            file: shown.to_owned(),
            target: job.target.clone(),
            status: ended.status,
            last_lines: ended.last_lines,
        }
        .into())
    }
}

async fn find(kept: &Arc<Kept>, key: Key) -> Result<Option<PathBuf>> {
    let kept = Arc::clone(kept);
    in_background(move |_| Ok(kept.find(&key))).await
}

/// Adds what a file is, or the files of a folder are, to what a key is made of. The tool says what is
/// not there.
fn add_local(path: &Path, parts: &mut Vec<Vec<u8>>) -> std::io::Result<()> {
    let mut files = Vec::new();
    if path.is_dir() {
        for entry in std::fs::read_dir(path)? {
            files.push(entry?.path());
        }
        files.sort();
    } else {
        files.push(path.to_owned());
    }
    for file in files.iter().filter(|file| file.is_file()) {
        let name = file.file_name().unwrap_or_default();
        parts.push(name.as_encoded_bytes().to_vec());
        parts.push(
            tierce_oci::Digest::of(&std::fs::read(file)?)
                .as_bytes()
                .to_vec(),
        );
    }
    Ok(())
}
