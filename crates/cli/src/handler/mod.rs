//! Compiled handlers: a program, the libraries that it needs and the base lacks, and how it starts.
//!
//! For each platform the program is looked at before anything is made: it must be for that machine,
//! and what the base offers must be enough for it. What comes of it is one planned layer for the
//! libraries, one for the program above it, and the settings that start it.

pub(crate) mod libraries;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use tierce_image::{BaseImage, ConfigEdits, EnvEdit};
use tierce_lambda::{BaseFacts, CLibrary, ElfFacts, GlibcVersion, RUNTIME_ROOT, TASK_ROOT};
use tierce_layer::cache::NoteId;
use tierce_layer::{LayerCache, Stamp};
use tierce_oci::Platform;

use self::libraries::{Search, Wanted};
use crate::base_facts::{Needs, starts_as_aws};
use crate::dependencies::target::Machine;
use crate::diagnostic::Hinted as _;
use crate::layers::now;
use crate::output::{Output, one_line};
use crate::plan::{LayerPart, LayerPlan, inside};
use crate::sources::is_directory_of_bases;

/// Where a program is, for every platform that is built.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a path, or `{ amd64 = \"…\", arm64 = \"…\" }`"
)]
pub(crate) enum BinaryFile {
    /// `{arch}` is `amd64` or `arm64` in it, `{machine}` is `x86_64` or `aarch64`.
    Every(String),
    /// By platform.
    Each(BTreeMap<PlatformKey, String>),
}

/// A platform as the key of a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct PlatformKey(Platform);

impl TryFrom<String> for PlatformKey {
    type Error = tierce_oci::ParsePlatformError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

impl BinaryFile {
    fn on(&self, platform: &Platform) -> Result<PathBuf> {
        match self {
            Self::Every(pattern) => on(pattern, platform),
            Self::Each(files) => {
                let file = files.get(&PlatformKey(platform.clone()));
                let file = file
                    .with_context(|| format!("no `binary` is named for {platform}"))
                    .hint(format!(
                        "name one in tierce.toml: `binary = {{ {} = \"…\" }}`",
                        platform.architecture
                    ))?;
                on(file, platform)
            }
        }
    }
}

/// A path with the names of the machine put in.
fn on(pattern: &str, platform: &Platform) -> Result<PathBuf> {
    if !pattern.contains('{') {
        return Ok(PathBuf::from(pattern));
    }
    let machine = Machine::of(platform).with_context(|| {
        format!("`{pattern}` has a name for linux/amd64 and linux/arm64, not for {platform}")
    })?;
    let path = pattern
        .replace("{arch}", &platform.architecture)
        .replace("{machine}", machine.of_linux());
    Ok(PathBuf::from(path))
}

/// A compiled handler, as planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CompiledHandler {
    pub(crate) file: BinaryFile,
    /// As COPY takes it; decided by the base when absent.
    pub(crate) to: Option<String>,
    /// Folders of the context that are searched for libraries.
    pub(crate) libraries: Vec<String>,
    /// Which glibc the base has, when it is said.
    pub(crate) glibc: Option<GlibcVersion>,
}

impl CompiledHandler {
    /// The program and the folders with libraries, for these platforms.
    pub(crate) fn inputs(&self, context: &Path, platforms: &[Platform]) -> Vec<PathBuf> {
        let programs = platforms.iter().filter_map(|it| self.file.on(it).ok());
        programs
            .chain(self.libraries.iter().map(PathBuf::from))
            .map(|path| context.join(path))
            .collect()
    }
}

/// What is needed to look at handlers.
pub(crate) struct Handlers<'a> {
    pub(crate) context: &'a Path,
    /// What the build sets.
    pub(crate) edits: &'a ConfigEdits,
    pub(crate) cache: Arc<LayerCache>,
    pub(crate) output: Output,
}

/// A handler's program for one platform.
pub(crate) struct Program<'a> {
    planned: &'a LayerPlan,
    handler: &'a CompiledHandler,
    platform: &'a Platform,
    file: PathBuf,
    name: String,
    elf: ElfFacts,
}

/// What a handler adds to an image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PreparedHandler {
    /// Where the planned layer was.
    pub(crate) layers: Vec<LayerPlan>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Vec<(String, EnvEdit)>,
}

impl PreparedHandler {
    /// Adds the settings that start it to what the build sets.
    pub(crate) fn apply(&self, edits: &mut ConfigEdits) {
        if let Some(entrypoint) = &self.entrypoint {
            edits.entrypoint = Some(entrypoint.clone());
        }
        if let Some(cmd) = &self.cmd {
            edits.cmd = Some(cmd.clone());
        }
        edits.env.extend(self.env.iter().cloned());
    }

    /// The planned layers with those of the handler in its place.
    pub(crate) fn put_into(&self, planned: &[LayerPlan]) -> Vec<LayerPlan> {
        let mut layers = Vec::new();
        for layer in planned {
            match layer.handler {
                Some(_) => layers.extend(self.layers.iter().cloned()),
                None => layers.push(layer.clone()),
            }
        }
        layers
    }
}

const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";

impl Handlers<'_> {
    /// The program of the planned handler, if there is one.
    pub(crate) fn program<'a>(
        &self,
        planned: &'a [LayerPlan],
        platform: &'a Platform,
    ) -> Result<Option<Program<'a>>> {
        for layer in planned {
            if let Some(handler) = &layer.handler {
                let context = || format!("could not make the layer `{}`", layer.name);
                let program = self.look_at(layer, handler, platform);
                return program.map(Some).with_context(context);
            }
        }
        Ok(None)
    }

    fn look_at<'a>(
        &self,
        planned: &'a LayerPlan,
        handler: &'a CompiledHandler,
        platform: &'a Platform,
    ) -> Result<Program<'a>> {
        let named = handler.file.on(platform)?;
        let shown = named.display();
        let file = inside(self.context, &named)
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("there is no program for {platform}"))?;
        let name = named.file_name().and_then(|name| name.to_str());
        let name = name
            .filter(|name| !name.chars().any(char::is_control))
            .with_context(|| format!("`{shown}` has no name that could stand in an image"))?
            .to_owned();
        let elf = self
            .elf(&file)?
            .with_context(|| format!("`{shown}` is no program of Linux: it is not an ELF file"))
            .hint(
                "`binary` is for what a compiler made; scripts and folders are added with `add`",
            )?;
        if elf.architecture() != platform.architecture {
            return Err(anyhow::anyhow!(
                "`{shown}` is for {}, and the image for {}",
                elf.architecture(),
                platform.architecture
            )
            .hint(format!(
                "compile it for {}, or build the other image: `--platform {}`; \
                 `binary = {{ amd64 = \"…\", arm64 = \"…\" }}` names one for each",
                platform.architecture,
                elf.architecture()
            )));
        }
        let is_library = elf.interpreter.is_none() && elf.soname.is_some();
        if !elf.is_loadable || is_library {
            anyhow::bail!("`{shown}` is a library or an object file, and no program");
        }
        require_all_of(&elf, &shown.to_string())?;
        Ok(Program {
            planned,
            handler,
            platform,
            file,
            name,
            elf,
        })
    }

    /// What a file asks of its system; remembered by what `stat` says of it.
    fn elf(&self, file: &Path) -> Result<Option<ElfFacts>> {
        use std::os::unix::ffi::OsStrExt as _;
        let could_not = || format!("could not read {}", file.display());
        let began = now();
        let question_of = |stamp: &Stamp| {
            NoteId::of([
                b"what a program asks of its system, 1",
                env!("CARGO_PKG_VERSION").as_bytes(),
                file.as_os_str().as_bytes(),
                format!("{stamp:?}").as_bytes(),
            ])
        };
        let metadata = std::fs::metadata(file).with_context(could_not)?;
        // A pipe would be waited for.
        if !metadata.is_file() {
            return Ok(None);
        }
        let stamp = Stamp::of(&metadata);
        let known = self.cache.note(&question_of(&stamp));
        if let Some(elf) = known.and_then(|note| serde_json::from_slice(&note).ok()) {
            return Ok(elf);
        }
        let opened = File::open(file).with_context(could_not)?;
        let stamp = Stamp::of(&opened.metadata().with_context(could_not)?);
        let elf = ElfFacts::read(&mut &opened).with_context(could_not)?;
        if stamp.modified.max(stamp.changed).is_settled_before(began)
            && let Ok(note) = serde_json::to_vec(&elf)
        {
            self.cache.keep_note(&question_of(&stamp), &note);
        }
        Ok(elf)
    }

    /// What the program asks of the base.
    pub(crate) fn needs(&self, program: &Program<'_>, base: &BaseImage) -> Needs {
        let is_dynamic = !program.elf.is_static();
        let has_version = program.handler.glibc.is_some();
        Needs {
            libc: is_dynamic && !has_version,
            glibc: is_dynamic && !has_version && program.elf.is_for_musl() != Some(true),
            libraries: is_dynamic,
            bootstrap: self.may_be_bootstrap(program, base),
            python: false,
            interpreter: false,
        }
    }

    /// Whether it depends on the base alone where the program goes.
    fn may_be_bootstrap(&self, program: &Program<'_>, base: &BaseImage) -> bool {
        let is_said = program.handler.to.is_some() || self.edits.entrypoint.is_some();
        !is_said && starts_as_aws(base)
    }

    /// Finds the libraries, and settles where everything goes and how it starts.
    pub(crate) fn prepare(
        &self,
        program: &Program<'_>,
        base: Option<&BaseImage>,
        base_name: &str,
        facts: &BaseFacts,
    ) -> Result<PreparedHandler> {
        let context = || format!("could not make the layer `{}`", program.planned.name);
        self.prepare_program(program, base, base_name, facts)
            .with_context(context)
    }

    fn prepare_program(
        &self,
        program: &Program<'_>,
        base: Option<&BaseImage>,
        base_name: &str,
        facts: &BaseFacts,
    ) -> Result<PreparedHandler> {
        let bootstrap = format!("{RUNTIME_ROOT}/bootstrap");
        let is_bootstrap = base.is_some_and(|base| self.may_be_bootstrap(program, base))
            && facts.bootstrap == Some(false);
        let place = match &program.handler.to {
            Some(to) if to.ends_with('/') => format!("{to}{}", program.name),
            Some(to) => to.clone(),
            None if is_bootstrap => bootstrap.clone(),
            None => format!("{TASK_ROOT}/{}", program.name),
        };
        let working_dir = self.working_dir(base);
        let mut place = absolute(&place, working_dir);
        // As with COPY: a program in the place of `/opt` would hide all that is in it.
        if base.is_some()
            && is_directory_of_bases(place.trim_start_matches('/').as_bytes(), working_dir)
        {
            place = absolute(&program.name, &place);
        }
        let mut prepared = PreparedHandler::default();
        if self.edits.entrypoint.is_none() {
            if place == bootstrap && base.is_some_and(starts_as_aws) {
                // AWS's entrypoint ends at once unless it gets exactly one word.
                if self.edits.cmd.is_none() {
                    prepared.cmd = Some(vec![program.name.clone()]);
                }
            } else {
                prepared.entrypoint = Some(vec![place.clone()]);
            }
        }
        let (shared, edit) = shared_directory(self.variable(base, LIBRARY_PATH).as_deref());
        let mut facts = facts.clone();
        if let Some(version) = program.handler.glibc {
            facts.libc = Some(CLibrary::Glibc(Some(version)));
        }
        let named = program
            .handler
            .libraries
            .iter()
            .map(|folder| {
                let folder = on(folder, program.platform)?;
                let found = inside(self.context, &folder).map_err(anyhow::Error::msg);
                found.context("`libraries` names a folder that cannot be used")
            })
            .collect::<Result<Vec<_>>>()?;
        let search = Search {
            facts: &facts,
            base_name,
            architecture: &program.platform.architecture,
            named: &named,
            context: self.context,
            shared: &shared,
            read: &|file| self.elf(file),
        };
        let found = search.closure(&Wanted {
            file: &program.file,
            elf: &program.elf,
            place: &place,
        })?;
        if !found.is_empty() {
            let all: Vec<String> = found
                .iter()
                .map(|library| {
                    let file = search.show(&library.file);
                    format!("{} ({file})", one_line(&library.name))
                })
                .collect();
            self.output.note(&format!(
                "`{}` for {} brings along: {}",
                program.name,
                program.platform,
                all.join(", ")
            ));
        }
        if found.iter().any(|library| library.directory == shared) {
            prepared
                .env
                .extend(edit.map(|edit| (LIBRARY_PATH.to_owned(), edit)));
        }
        if !found.is_empty() {
            let parts = found.iter().map(|library| LayerPart::Exact {
                from: library.file.clone(),
                to: format!(
                    "{}/{}",
                    library.directory.trim_end_matches('/'),
                    library.name
                ),
            });
            let name = format!("{} libraries", program.planned.name);
            let mut layer = LayerPlan::of_files(&name, parts.collect());
            layer.mtime = program.planned.mtime;
            prepared.layers.push(layer);
        }
        let mut layer = program.planned.clone();
        layer.handler = None;
        let from = program.file.clone();
        layer.parts.push(LayerPart::Exact { from, to: place });
        prepared.layers.push(layer);
        Ok(prepared)
    }

    fn working_dir<'b>(&'b self, base: Option<&'b BaseImage>) -> &'b str {
        let of_base = || base?.image.config().working_dir.as_deref();
        self.edits
            .working_dir
            .as_deref()
            .or_else(of_base)
            .unwrap_or("/")
    }

    /// A variable as it will stand in the image.
    fn variable(&self, base: Option<&BaseImage>, name: &str) -> Option<String> {
        let mut value = base.and_then(|base| {
            let mut pairs = base.image.config().env.iter();
            pairs.find_map(|pair| {
                pair.strip_prefix(name)?
                    .strip_prefix('=')
                    .map(str::to_owned)
            })
        });
        for (_, edit) in self.edits.env.iter().filter(|(edited, _)| edited == name) {
            let before = value.unwrap_or_default();
            value = Some(match edit {
                EnvEdit::Set(text) => text.clone(),
                EnvEdit::Append(text) => before + text,
                EnvEdit::Prepend(text) => text.clone() + &before,
            });
        }
        value
    }
}

/// Refuses a file of which it cannot be told what it needs: it would seem to need nothing.
fn require_all_of(elf: &ElfFacts, shown: &str) -> Result<()> {
    if !elf.is_partial {
        return Ok(());
    }
    Err(anyhow::anyhow!(
        "what `{shown}` needs of its system cannot be read: it contradicts itself, or is cut off"
    ))
    .hint("build it again; tools that rewrite or pack programs may have damaged it")
}

impl fmt::Debug for Program<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} for {}", self.file.display(), self.platform)
    }
}

/// A destination as COPY takes it, from the root on.
fn absolute(place: &str, working_dir: &str) -> String {
    let joined = if place.starts_with('/') {
        place.to_owned()
    } else {
        format!("{}/{place}", working_dir.trim_end_matches('/'))
    };
    libraries::without_dots(&joined)
}

/// Where libraries go so that the loader finds them, and what must be said for it to look there.
///
/// A directory of `LD_LIBRARY_PATH`, which every loader reads anew: those of the system are known to it
/// by a cache (`/etc/ld.so.cache`) that is not made again here, and on most bases lie behind links.
/// Where there is no such variable the image gets one, with the function's own directory for them.
fn shared_directory(library_path: Option<&str>) -> (String, Option<EnvEdit>) {
    let usual = format!("{TASK_ROOT}/lib");
    let path = library_path.unwrap_or_default();
    let directories: Vec<&str> = path
        .split([':', ';'])
        .map(|directory| directory.trim_end_matches('/'))
        .filter(|directory| directory.len() > 1 && directory.starts_with('/'))
        .collect();
    let is_ours =
        |directory: &&str| directory.starts_with("/var/task/") || directory.starts_with("/opt/");
    let chosen = if directories.contains(&usual.as_str()) {
        Some(usual.as_str())
    } else {
        let ours = directories.iter().copied().find(is_ours);
        ours.or(directories.last().copied())
    };
    match (chosen, path) {
        (Some(chosen), _) => (chosen.to_owned(), None),
        (None, "") => (usual.clone(), Some(EnvEdit::Set(usual))),
        (None, _) => {
            let edit = EnvEdit::Prepend(format!("{usual}:"));
            (usual, Some(edit))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_go_where_the_loader_looks() {
        let set = |text: &str| Some(EnvEdit::Set(text.to_owned()));
        for (variable, directory, edit) in [
            (Some(tierce_lambda::LIBRARY_PATH), "/var/task/lib", None),
            (Some("/lib64:/opt/lib:/usr/lib64"), "/opt/lib", None),
            (Some("/lib64:/usr/lib64/"), "/usr/lib64", None),
            (None, "/var/task/lib", set("/var/task/lib")),
            (Some(""), "/var/task/lib", set("/var/task/lib")),
            (
                Some("lib"),
                "/var/task/lib",
                Some(EnvEdit::Prepend("/var/task/lib:".to_owned())),
            ),
        ] {
            let (found, found_edit) = shared_directory(variable);
            assert_eq!(
                (found.as_str(), found_edit),
                (directory, edit),
                "{variable:?}"
            );
        }
    }

    #[test]
    fn a_program_is_named_for_each_machine() {
        let on = |file: &str, platform: &str| {
            let file: BinaryFile = serde_json::from_str(file).unwrap();
            let path = file.on(&platform.parse().unwrap());
            path.map(|path| path.display().to_string())
                .map_err(|error| error.to_string())
        };
        let ok = |path: &str| Ok(path.to_owned());
        assert_eq!(on("\"a/b\"", "arm64"), ok("a/b"));
        let pattern = "\"target/{machine}-unknown-linux-gnu/{arch}\"";
        assert_eq!(
            on(pattern, "arm64"),
            ok("target/aarch64-unknown-linux-gnu/arm64")
        );
        let table = r#"{"x86_64": "a", "arm64": "b"}"#;
        assert_eq!(on(table, "amd64"), ok("a"));
        assert_eq!(on(table, "linux/arm64"), ok("b"));
        assert!(
            on(r#"{"amd64": "a"}"#, "arm64")
                .unwrap_err()
                .contains("linux/arm64")
        );
        assert!(serde_json::from_str::<BinaryFile>(r#"{"vax": "a"}"#).is_err());
    }
}
