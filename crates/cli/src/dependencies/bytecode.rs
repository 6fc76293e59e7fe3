//! Compiled Python for layers whose sources bring none that would be used.
//!
//! It is made by an interpreter of exactly the target's version; which processor that one runs on says
//! nothing in the code. The code of a layer is kept beside resolved dependencies, under the interpreter,
//! and the paths and contents of all sources. What makes it the same wherever it is made: the path in it
//! is that in the image, the interpreter sees no settings of the user and no folder of theirs, and what
//! it writes is put into its one form ([`tierce_layer::canonical_bytecode`]).

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tierce_layer::{Content, ContentError, Notice, Stamp, Tree, Uncompiled, canonical_bytecode};
use tierce_oci::Hasher;

use super::kept::{Kept, Key};
use super::python::variables_but;
use super::target::PythonVersion;
use super::tool::{ask, find};
use crate::diagnostic::Hinted as _;
use crate::environment::Variables;

/// Whether the Python of a layer is compiled.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Bytecode {
    /// No: what the sources bring is all there is.
    #[default]
    AsFound,
    /// Yes, for this version or that of the base.
    Wanted(Option<PythonVersion>),
    /// Yes, by this interpreter.
    By(Interpreter),
}

/// An interpreter, and all that code depends on besides the sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interpreter {
    program: PathBuf,
    pub(crate) version: PythonVersion,
    /// `cpython-312 3.12.1.final.0`: two with the same compile alike.
    identity: String,
    /// What stands in the names of the files that it looks for.
    tag: String,
    /// What code that it runs begins with.
    magic: [u8; 4],
}

/// Part of the key of compiled code: counts up when it is made in another way.
const FORMAT: &str = "compiled Python, 1";

const COMPILE: &str = include_str!("compile_bytecode.py");

/// Its answer has a line with the path of the program behind all wrappers.
const WHO_ARE_YOU: &str = "\
import sys
from importlib.util import MAGIC_NUMBER
about = sys.implementation
print(about.name, about.cache_tag, '.'.join(map(str, sys.version_info)), MAGIC_NUMBER.hex())
print(sys.executable or '')";

impl Interpreter {
    /// Finds one of exactly this version: on PATH by its own name or as `python3`, else one of those
    /// that uv knows of.
    pub(crate) async fn find(
        version: PythonVersion,
        variables: &Variables,
        directory: &Path,
    ) -> Result<Self> {
        for name in [format!("python{version}"), "python3".to_owned()] {
            for program in all(&name, variables) {
                if let Some(found) = Self::at(&program, version, variables, directory).await {
                    return Ok(found);
                }
            }
        }
        if let Some(uv) = find("uv", variables) {
            let wanted = version.to_string();
            // `--system`: uv would run what the context has as `.venv/bin/python`.
            let question = [
                "python",
                "find",
                "--system",
                "--no-project",
                "--no-python-downloads",
                &wanted,
            ];
            let environment = variables_but(variables, |_| false);
            if let Some(program) = ask(&uv, &question, directory, environment).await {
                let program = PathBuf::from(program);
                if let Some(found) = Self::at(&program, version, variables, directory).await {
                    return Ok(found);
                }
            }
        }
        Err(anyhow::anyhow!(
            "`bytecode` needs Python {version} to compile with, and there is none on PATH"
        ))
        .hint(format!(
            "install it, as with `uv python install {version}`, or leave `bytecode` out"
        ))
    }

    /// The interpreter that `program` is or leads to, if it is `CPython` of this version.
    async fn at(
        program: &Path,
        version: PythonVersion,
        variables: &Variables,
        directory: &Path,
    ) -> Option<Self> {
        let arguments = ["-I", "-S", "-c", WHO_ARE_YOU];
        let environment = variables_but(variables, |_| false);
        let answer = ask(program, &arguments, directory, environment).await?;
        let (about, real) = answer.split_once('\n').unwrap_or((&answer, ""));
        let words: Vec<&str> = about.split(' ').collect();
        let &["cpython", tag, full, magic] = &words[..] else {
            return None;
        };
        if tag != format!("cpython-3{}", version.minor) {
            return None;
        }
        let real = PathBuf::from(real);
        Some(Self {
            program: if real.is_absolute() {
                real
            } else {
                program.to_owned()
            },
            version,
            identity: format!("{tag} {full}"),
            tag: tag.to_owned(),
            magic: u32::from_str_radix(magic, 16).ok()?.to_be_bytes(),
        })
    }
}

/// Every program of this name on PATH: the first may be a wrapper that leads nowhere.
fn all(name: &str, variables: &Variables) -> Vec<PathBuf> {
    let path = variables.get("PATH").unwrap_or_default();
    std::env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .filter(|program| program.is_file())
        .collect()
}

/// What compiling needs of the run.
#[derive(Debug, Clone)]
pub(crate) struct Workshop {
    kept: Arc<Kept>,
    scratch: PathBuf,
    environment: Vec<(OsString, OsString)>,
    jobs: NonZeroUsize,
}

impl Workshop {
    /// `scratch` is on the disk of what is kept.
    pub(crate) fn new(
        kept: Arc<Kept>,
        scratch: &Path,
        variables: &Variables,
        jobs: NonZeroUsize,
    ) -> Self {
        Self {
            kept,
            scratch: scratch.to_owned(),
            environment: variables_but(variables, |name| name.starts_with("PYTHON")),
            jobs,
        }
    }

    /// Puts compiled code beside every source of the tree that has none; `say` is called before any
    /// is made, with how much. A source that does not compile stays as it is.
    pub(crate) fn compile(
        &self,
        tree: &mut Tree,
        interpreter: &Interpreter,
        notices: &mut Vec<Notice>,
        say: impl FnOnce(usize),
        cancel: &AtomicBool,
    ) -> Result<()> {
        let uncompiled = tree.uncompiled(&interpreter.tag, interpreter.magic)?;
        if uncompiled.is_empty() {
            return Ok(());
        }
        let key = key_of(interpreter, &uncompiled)?;
        let folder = match self.kept.find(&key) {
            Some(folder) => folder,
            None => {
                let claim = self.kept.claim(&key, cancel)?;
                match self.kept.find(&key) {
                    // Whoever held it has made it.
                    Some(folder) => folder,
                    None => {
                        say(uncompiled.len());
                        let work = tempfile::Builder::new()
                            .prefix("compile-")
                            .tempdir_in(&self.scratch)
                            .context("could not make a directory to compile in")?;
                        let made = self.make(interpreter, &uncompiled, work.path(), cancel)?;
                        claim.keep(&made)?
                    }
                }
            }
        };
        let folder: Arc<Path> = folder.into();
        for (position, of) in uncompiled.into_iter().enumerate() {
            let name = name_of(position);
            let path = folder.join(&name);
            match path.symlink_metadata() {
                Ok(found) => {
                    let name = name.as_ref();
                    let compiled = Content::on_disk(Arc::clone(&folder), name, Stamp::of(&found));
                    tree.insert_bytecode(of, compiled, notices)?;
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("could not read {}", path.display()));
                }
            }
        }
        Ok(())
    }

    /// Compiles into `made/tree` in the folder `work`, and gives `made`.
    fn make(
        &self,
        interpreter: &Interpreter,
        uncompiled: &[Uncompiled],
        work: &Path,
        cancel: &AtomicBool,
    ) -> Result<PathBuf> {
        let (made, sources) = (work.join("made"), work.join("sources"));
        let tree = made.join("tree");
        for folder in [&tree, &sources] {
            fs::create_dir_all(folder)
                .with_context(|| format!("could not make {}", folder.display()))?;
        }
        // A process for a few files costs more than it brings.
        let processes = uncompiled.len().div_ceil(64).min(self.jobs.get());
        let mut lists = vec![Vec::new(); processes];
        for (position, of) in uncompiled.iter().enumerate() {
            // What was looked at is what is compiled, wherever it is.
            let source = sources.join(position.to_string());
            copy(&of.source, &source)?;
            let shown = [b"/", of.path.as_bytes()].concat();
            let target = tree.join(name_of(position));
            for path in [
                source.as_os_str().as_bytes(),
                &shown,
                target.as_os_str().as_bytes(),
            ] {
                let list = &mut lists[position % processes];
                list.extend_from_slice(path);
                list.push(0);
            }
        }
        let running = lists
            .into_iter()
            .enumerate()
            .map(|(number, list)| self.start(interpreter, work, number, &list))
            .collect::<Result<Vec<_>>>()?;
        for process in running {
            process.finish(interpreter, cancel)?;
        }
        self.canonicalise(interpreter, &tree, uncompiled)?;
        Ok(made)
    }

    fn start(
        &self,
        interpreter: &Interpreter,
        work: &Path,
        number: usize,
        list: &[u8],
    ) -> Result<Running> {
        let program = &interpreter.program;
        let context = || format!("could not start {}", program.display());
        let said = work.join(format!("said-{number}"));
        let input = work.join(format!("list-{number}"));
        fs::write(&input, list).with_context(context)?;
        let child = Command::new(program)
            // Isolated: no variables, no folders of the user's; and without `site`, which runs what
            // is installed beside the interpreter.
            .args(["-I", "-S", "-B", "-W", "ignore", "-c", COMPILE])
            .current_dir(work)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(File::open(&input).with_context(context)?)
            .stdout(Stdio::null())
            .stderr(File::create(&said).with_context(context)?)
            .spawn()
            .with_context(context)?;
        Ok(Running { child, said })
    }

    /// Puts all that was compiled into its one form.
    fn canonicalise(
        &self,
        interpreter: &Interpreter,
        tree: &Path,
        uncompiled: &[Uncompiled],
    ) -> Result<()> {
        let jobs = self.jobs.get();
        let share = |first: usize| -> Result<()> {
            for position in (first..uncompiled.len()).step_by(jobs) {
                let path = tree.join(name_of(position));
                let compiled = match fs::read(&path) {
                    Ok(compiled) => compiled,
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    Err(error) => {
                        return Err(error)
                            .with_context(|| format!("could not read {}", path.display()));
                    }
                };
                let canonical = canonical_bytecode(&compiled)
                    .with_context(|| {
                        let version = interpreter.version;
                        let source = &uncompiled[position].path;
                        format!("could not read what Python {version} made of `/{source}`")
                    })
                    .hint("leave `bytecode` out for this Python")?;
                fs::write(&path, canonical)
                    .with_context(|| format!("could not write {}", path.display()))?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let share = &share;
            let others: Vec<_> = (1..jobs)
                .map(|first| scope.spawn(move || share(first)))
                .collect();
            let mut result = share(0);
            for other in others {
                match other.join() {
                    Ok(ended) => result = result.and(ended),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            result
        })
    }
}

/// A process that compiles; dropping it ends it.
struct Running {
    child: Child,
    said: PathBuf,
}

impl Running {
    fn finish(mut self, interpreter: &Interpreter, cancel: &AtomicBool) -> Result<()> {
        let status = loop {
            anyhow::ensure!(!cancel.load(Ordering::Relaxed), "interrupted");
            let ended = self.child.try_wait();
            if let Some(status) = ended.context("could not wait for Python")? {
                break status;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        if status.success() {
            return Ok(());
        }
        let said = fs::read(&self.said).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let version = interpreter.version;
        anyhow::bail!(
            "Python {version} could not compile ({status}): {}",
            said.lines().last().unwrap_or("it said nothing")
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn name_of(position: usize) -> String {
    format!("{position}.pyc")
}

fn copy(source: &Content, to: &Path) -> Result<()> {
    let context = || format!("could not write {}", to.display());
    let mut file = File::create(to).with_context(context)?;
    let mut failed = Ok(());
    source.read_pieces::<ContentError>(1 << 20, |piece| {
        if failed.is_ok() {
            failed = file.write_all(piece);
        }
        Ok(())
    })?;
    failed.with_context(context)
}

/// What the code of these sources is kept under.
fn key_of(interpreter: &Interpreter, uncompiled: &[Uncompiled]) -> Result<Key> {
    let mut parts = vec![
        FORMAT.as_bytes().to_vec(),
        COMPILE.as_bytes().to_vec(),
        interpreter.identity.as_bytes().to_vec(),
        interpreter.magic.to_vec(),
    ];
    for of in uncompiled {
        let mut hasher = Hasher::new();
        of.source.read_pieces::<ContentError>(1 << 20, |piece| {
            hasher.update(piece);
            Ok(())
        })?;
        parts.push(of.path.as_bytes().to_vec());
        parts.push(hasher.finish().as_bytes().to_vec());
    }
    Ok(Key::of(parts))
}
