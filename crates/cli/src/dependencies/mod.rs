//! From lock files to trees of packages: by the tools of each language, for the base's platform.
//!
//! A layer that names a lock file gets a tree before anything is looked at. Trees are kept in the
//! cache under all that they depend on (see [`kept`]), so a tool runs only when something of that
//! changed. A tool works in the run's own scratch directory; what it leaves of this machine is taken
//! out (see [`installed`]), and then the tree gets its name.

pub(crate) mod bytecode;
pub(crate) mod client;
pub(crate) mod installed;
pub(crate) mod kept;
pub(crate) mod node;
pub(crate) mod python;
pub(crate) mod requirements;
pub(crate) mod secrets;
pub(crate) mod settings;
pub(crate) mod target;
pub(crate) mod tool;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use tierce_lambda::{BaseFacts, CLibrary};
use tierce_oci::Platform;

use self::bytecode::{Bytecode, Interpreter};
use self::installed::{Contest, contest, tidy_node, tidy_python};
use self::kept::{Kept, Key};
use self::node::{NodeTarget, Project};
use self::python::{Installer, Manifest, PythonTarget};
use self::requirements::{Requirements, expanded};
use self::secrets::{Secrets, without_userinfo};
use self::target::{Glibc, Machine, PythonVersion};
use self::tool::{Run, Tool, ToolFailed, option};
use crate::background::in_background;
use crate::diagnostic::{FREE_SPACE, Hinted as _, is_about_space};
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
    /// What the file says, when there is none: it is written where nobody else looks.
    pub(crate) requirements: Option<String>,
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

/// The Python that a layer is for: what it says itself, else what the base has.
fn python_of(layer: &str, said: Option<PythonVersion>, facts: &BaseFacts) -> Result<PythonVersion> {
    said.or(facts.python)
        .context("the base does not say which Python it has")
        .hint(format!(
            "say it in tierce.toml, in the layer `{layer}`: `python-version = \"3.13\"`"
        ))
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
        facts: &BaseFacts,
        platform: &Platform,
    ) -> Result<Vec<LayerPlan>> {
        let mut resolved = layers.to_vec();
        for layer in &mut resolved {
            if let Bytecode::Wanted(version) = layer.bytecode {
                let interpreter = self.interpreter(&layer.name, version, facts).await;
                let context = || format!("could not make the layer `{}`", layer.name);
                layer.bytecode = Bytecode::By(interpreter.with_context(context)?);
            }
            let Some(dependencies) = layer.dependencies.take() else {
                continue;
            };
            let tree = self
                .tree(&layer.name, &dependencies, facts, platform)
                .await
                .with_context(|| format!("could not make the layer `{}`", layer.name))?;
            if let Some(requirements) = &dependencies.requirements {
                self.say_what_was_taken(requirements, &tree);
            }
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
        facts: &BaseFacts,
    ) -> Result<Interpreter> {
        let version = python_of(layer, version, facts)?;
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
        facts: &BaseFacts,
        platform: &Platform,
    ) -> Result<PathBuf> {
        let job = self.job(layer, dependencies, facts, platform).await?;
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
        facts: &BaseFacts,
        platform: &Platform,
    ) -> Result<Job> {
        let machine = Machine::of(platform).with_context(|| {
            format!("dependencies are known for linux/amd64 and linux/arm64, not for {platform}")
        })?;
        match dependencies.language {
            Language::Python { version, glibc } => {
                let version = python_of(layer, version, facts)?;
                let glibc = match (glibc, facts.libc) {
                    (Some(glibc), _) => Some(glibc),
                    (None, Some(CLibrary::Glibc(Some(version)))) => Some(Glibc::of(version)),
                    (None, Some(CLibrary::Musl)) => {
                        return Err(anyhow::anyhow!(
                            "the base has musl in the place of glibc, which wheels are not chosen for"
                        )
                        .hint("use a base with glibc, such as one of AWS's or Debian's"));
                    }
                    (None, Some(CLibrary::Glibc(None)) | None) => None,
                };
                let target = PythonTarget {
                    machine,
                    version,
                    glibc: glibc.unwrap_or(Glibc::OLDEST),
                };
                let file = match &dependencies.requirements {
                    Some(requirements) => {
                        let file = self.places.scratch()?.join(&dependencies.file);
                        std::fs::write(&file, requirements)
                            .with_context(|| format!("could not write {}", file.display()))?;
                        file
                    }
                    None => dependencies.file.clone(),
                };
                let mut job = self.python_job(&file, target).await?;
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
                    has_musl: facts.libc == Some(CLibrary::Musl),
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
        if target.scripts {
            let version = node::version_of_node(&self.variables, &self.context).await;
            parts.push(version.unwrap_or_default().into());
        }
        for text in settings::of_node(&self.variables) {
            secrets.add_of_npmrc(&text);
            secrets.add_of_variables(&text, &self.variables);
            parts.push(node::without_secrets(&text).into());
        }
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
            let requirements = Requirements::read(&lock, &self.context, &self.variables)?;
            for text in &requirements.texts {
                secrets.add_of_variables(text, &self.variables);
                let text = expanded(text, &self.variables);
                secrets.add_of_urls(&text);
                parts.push(without_userinfo(&text).into());
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
                parts.push(without_userinfo(&text).into());
            }
        }
        let settings = match installer {
            Installer::Uv(_) => {
                settings::of_uv(&self.variables, self.directory_for(manifest, &lock))
            }
            Installer::Pip(_) => settings::of_pip(&self.variables),
        };
        for text in settings {
            secrets.add_of_urls(&text);
            parts.push(without_userinfo(&text).into());
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

    /// Where the tools of Python run: what a file of requirements names is seen from the context, and
    /// the settings of a project are beside its lock.
    fn directory_for<'b>(&'b self, manifest: Manifest, lock: &'b Path) -> &'b Path {
        match manifest {
            Manifest::Requirements => &self.context,
            Manifest::UvLock | Manifest::PoetryLock => lock.parent().unwrap_or(&self.context),
        }
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
                let directory = self.directory_for(*manifest, lock);
                let exported = work.path().join("requirements.txt");
                let requirements = if *manifest == Manifest::Requirements {
                    lock
                } else {
                    let (tool, arguments, environment) =
                        python::exporter(*manifest, lock, &exported, &self.variables).await?;
                    self.say(&format!("exporting `{shown}` with {}", tool.name));
                    self.run(job, shown, &tool, directory, arguments, environment)
                        .await?;
                    &exported
                };
                let read = Requirements::read(requirements, directory, &self.variables)
                    .with_context(|| format!("`{shown}` leads to what cannot be installed"))?;
                let mut arguments =
                    installer.arguments(requirements, read.has_hashes, *target, &tree);
                let project = settings::of_project_of_uv(directory);
                if matches!(installer, Installer::Uv(_))
                    && !project.is_some_and(|text| text.contains("no-deps"))
                {
                    // The user's own settings may say otherwise.
                    arguments.push("--deps".into());
                }
                let environment = installer.environment(&self.variables);
                let tool = installer.tool();
                self.say(&resolving(tool));
                self.run(
                    job,
                    shown,
                    tool,
                    directory,
                    arguments.clone(),
                    environment.clone(),
                )
                .await?;
                let contest = match installer {
                    Installer::Uv(_) => contest(&tree)?,
                    Installer::Pip(_) => None,
                };
                let Some(Contest {
                    distributions,
                    path,
                }) = contest
                else {
                    return Ok(());
                };
                self.say(&format!(
                    "{} bring different files of one path, such as `{path}`: the first by name wins",
                    distributions.join(", ")
                ));
                for distribution in distributions {
                    let mut again = arguments.clone();
                    again.push(option("--reinstall-package", distribution));
                    self.run(job, shown, tool, directory, again, environment.clone())
                        .await?;
                }
                Ok(())
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
                if let Some((package, missing)) = project.lacks(target.machine) {
                    self.warn(&format!(
                        "`{package}` has `{missing}` for this target, and the lock does not: npm \
                         leaves such packages out where it finds those of another machine; without \
                         node_modules and the old lock, `npm install` makes one for all"
                    ));
                }
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

    fn warn(&self, line: &str) {
        self.places.bars().suspend(|| self.output.warn(line));
    }

    /// Says which versions stand for packages that name none, or bring others along.
    fn say_what_was_taken(&self, requirements: &str, tree: &Path) {
        let taken = client::packages_in(tree);
        let is_pinned = |package: &String| requirements.lines().any(|line| line == package);
        if !taken.is_empty() && !taken.iter().all(is_pinned) {
            let list: Vec<String> = taken.iter().map(|it| format!("\"{it}\"")).collect();
            self.say(&format!(
                "the runtime client is {}; to hold it to that: `runtime-client = [{}]`",
                taken.join(", "),
                list.join(", ")
            ));
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
        let lost = OnceLock::new();
        let show = |line: &str| {
            if line.contains(node::LOST_A_FILE) {
                let _ = lost.set(line.to_owned());
            }
            self.say(line);
        };
        let ended = run.run(&job.secrets, show).await?;
        if ended.status.success() {
            let Some(line) = lost.into_inner() else {
                return Ok(());
            };
            let error = anyhow::anyhow!("{line}").context(format!(
                "`{}` could not write every file of a package, and calls that a success",
                tool.name
            ));
            return Err(if is_about_space(&line) {
                error.hint(FREE_SPACE)
            } else {
                error
            });
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
