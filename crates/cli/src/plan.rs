//! What a build is to do: flags over file, worked out into plain values before anything is made.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tierce_image::{ConfigEdits, EnvEdit, Jobs, TARGET_LABEL};
use tierce_lambda::{AwsBase, GlibcVersion, PythonVersion, Rule};
use tierce_oci::{ImageFormat, Platform, Reference, Selector, Tag, Timestamp};
use toml::Spanned;

use crate::arguments::{BuildArguments, ImageArguments};
use crate::config_file::{
    AddTable, ConfigFile, Keep, LayerTable, LoadedFile, Mtime, Split, Target,
};
use crate::dependencies::bytecode::Bytecode;
use crate::dependencies::target::Glibc;
use crate::dependencies::{Dependencies, Language, client};
use crate::diagnostic::{Hinted as _, UsageError};
use crate::environment::Environment;
use crate::handler::{BinaryFile, CompiledHandler};
use crate::places::processors;
use crate::prebuilds::PruneFor;
use crate::profile::Profile;
use crate::transport::{BaseName, ImagePlace, store_reference_of};
use crate::verdict::allowed_rules;

/// A whole build, as values.
#[derive(Debug)]
pub(crate) struct BuildPlan {
    pub(crate) context: PathBuf,
    /// `tierce.lock` beside `tierce.toml`; `None` without the latter.
    pub(crate) lock: Option<PathBuf>,
    pub(crate) base: BaseName,
    /// Empty: whatever the base is for.
    pub(crate) platforms: Vec<Platform>,
    pub(crate) layers: Vec<LayerPlan>,
    /// Nobody said what goes into the image: the whole context does, and goes here.
    pub(crate) whole_context_to: Option<String>,
    /// Patterns for what this run writes into the context, which is not to be read.
    pub(crate) written_in_context: Vec<String>,
    pub(crate) edits: ConfigEdits,
    pub(crate) target: Option<Target>,
    pub(crate) handler_named: bool,
    /// Whether a layer is the Runtime Interface Client.
    pub(crate) has_runtime_client: bool,
    pub(crate) format: Option<ImageFormat>,
    pub(crate) compression: Profile,
    pub(crate) created: Timestamp,
    pub(crate) destinations: Vec<ImagePlace>,
    pub(crate) index: bool,
    /// The rules that an image for Lambda may break.
    pub(crate) allow: Vec<&'static Rule>,
    pub(crate) compress_jobs: Jobs,
    pub(crate) transfer_jobs: Jobs,
}

/// One layer to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerPlan {
    pub(crate) name: String,
    pub(crate) parts: Vec<LayerPart>,
    /// What becomes the first part when it is resolved for a platform.
    pub(crate) dependencies: Option<Dependencies>,
    /// What becomes a layer of its libraries, and the last part of this one, for a platform.
    pub(crate) handler: Option<CompiledHandler>,
    pub(crate) bytecode: Bytecode,
    pub(crate) keep_modes: bool,
    pub(crate) keep_owners: bool,
    pub(crate) keep_hardlinks: bool,
    pub(crate) xattrs: Vec<String>,
    /// Leaves native files for other platforms out; which platform stays is settled for each image.
    pub(crate) prune_prebuilds: Option<PruneFor>,
    /// Seconds; `None` for the fixed time of the layer format.
    pub(crate) mtime: Option<u64>,
    pub(crate) split: Split,
}

/// Where part of a layer comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LayerPart {
    /// A file, or a folder's content.
    Files {
        /// Inside the context.
        from: PathBuf,
        /// As COPY takes it.
        to: String,
        include: Vec<String>,
        exclude: Vec<String>,
    },
    /// The members of a tar.
    Tar {
        file: PathBuf,
        to: String,
        include: Vec<String>,
        exclude: Vec<String>,
    },
    /// The members of a zip.
    Zip {
        file: PathBuf,
        to: String,
        include: Vec<String>,
        exclude: Vec<String>,
    },
    /// The very bytes of a tar.
    VerbatimTar { file: PathBuf },
    /// A program or library, under exactly this name. It may lie outside the context, and nothing
    /// that is said of the context's files counts.
    Exact { from: PathBuf, to: String },
    /// Resolved dependencies.
    Resolved {
        /// In the cache.
        tree: PathBuf,
        to: String,
        include: Vec<String>,
        exclude: Vec<String>,
    },
}

/// Reads the config file that the arguments name, or `tierce.toml` of the context if there is one.
pub(crate) fn load_file(context: &Path, named: Option<&Path>) -> Result<Option<LoadedFile>> {
    let path = named.map_or_else(|| context.join("tierce.toml"), Path::to_owned);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(LoadedFile::parse(&path, text)?)),
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("could not read {}", path.display())),
    }
}

/// The lock file of a config file.
pub(crate) fn lock_path(file: &LoadedFile) -> PathBuf {
    file.path.with_extension("lock")
}

/// Paths of a base in the config file are seen from the file's folder, not from where tierce runs.
pub(crate) fn base_beside(file: &LoadedFile, base: &BaseName) -> BaseName {
    let folder = file.path.parent().unwrap_or(Path::new(""));
    let mut base = base.clone();
    match &mut base.place {
        Some(
            ImagePlace::Layout {
                directory: path, ..
            }
            | ImagePlace::OciArchive { file: path, .. }
            | ImagePlace::DockerArchive { file: path, .. },
        ) => {
            *path = folder.join(&*path);
        }
        Some(ImagePlace::Registry(_) | ImagePlace::Store(_)) | None => {}
    }
    base
}

fn check_handlers(layers: &[LayerPlan]) -> Result<()> {
    let handlers = layers.iter().filter(|layer| layer.handler.is_some());
    if handlers.count() > 1 {
        return Err(UsageError(
            "an image has one compiled handler, and several are named".to_owned(),
        ))
        .hint("other programs are files like any: `add` them");
    }
    Ok(())
}

/// The platforms that are asked for, each once.
fn platforms(arguments: &BuildArguments, values: &ConfigFile) -> Result<Vec<Platform>> {
    let mut platforms = if arguments.platform.is_empty() {
        values.image.platforms.clone()
    } else {
        arguments.platform.clone()
    };
    dedup(&mut platforms);
    if let Some(other) = platforms.iter().find(|platform| platform.os != "linux") {
        return Err(UsageError(format!(
            "`{other}` cannot be built: only linux images can be assembled"
        ))
        .into());
    }
    Ok(platforms)
}

impl BuildPlan {
    /// Works out what `arguments` and the config file ask for together.
    pub(crate) fn resolve(arguments: &BuildArguments, environment: &Environment) -> Result<Self> {
        let context = open_context(arguments)?;
        let file = load_file(&arguments.context, arguments.file.as_deref())?;
        let empty = ConfigFile::default();
        let values = file.as_ref().map_or(&empty, |file| &file.values);

        let base = match (&arguments.image.base, &values.image.base, &file) {
            (Some(base), _, _) => base.clone(),
            (None, Some(base), Some(file)) => base_beside(file, base),
            _ => {
                return Err(UsageError("no base image is named".to_owned())).hint(
                    "name one with `--base public.ecr.aws/lambda/python:3.12`, or in tierce.toml as `[image] base`; \
                     `--base scratch` starts from nothing",
                );
            }
        };
        let names = names(arguments, values, &context)?;
        let mut allow = match &file {
            Some(file) => file.allowed_rules()?,
            None => Vec::new(),
        };
        allow.extend(allowed_rules(&arguments.allow)?);
        if let Some(file) = &file {
            // First the file alone, so that its mistakes are pointed at.
            let (edits, _) = edits(&ImageArguments::default(), values)?;
            let span = values.config.span();
            edits
                .check()
                .map_err(|error| file.complain(&span, error.to_string()))?;
        }
        let (edits, handler_named) = edits(&arguments.image, values)?;
        edits
            .check()
            .map_err(|error| UsageError(error.to_string()))?;
        let mut layers = file
            .iter()
            .flat_map(|file| file.values.layer.iter().map(move |layer| (file, layer)))
            .map(|(file, layer)| {
                plan_layer(file, layer.span(), layer.get_ref(), &context, environment)
            })
            .collect::<Result<Vec<_>>>()?;
        layers.extend(layers_of_flags(&arguments.image, &context)?);
        check_handlers(&layers)?;
        let four = NonZeroUsize::MIN.saturating_add(3);
        let mut plan = Self {
            // A base of the command line is not that of the file: its lock says nothing of it.
            lock: file
                .as_ref()
                .filter(|_| arguments.image.base.is_none())
                .map(lock_path),
            base,
            platforms: platforms(arguments, values)?,
            layers,
            whole_context_to: None,
            edits,
            handler_named,
            has_runtime_client: false,
            target: values.image.target,
            format: arguments.image.format.or(values.image.format),
            compression: arguments
                .image
                .compression
                .or(values.image.compression)
                .unwrap_or_default(),
            created: environment
                .source_date_epoch
                .unwrap_or(Timestamp::UNIX_EPOCH),
            written_in_context: written_in_context(arguments, &context),
            destinations: destinations(arguments, &names)?,
            index: arguments.index,
            allow,
            compress_jobs: arguments.jobs.map_or_else(processors, Jobs),
            transfer_jobs: Jobs(arguments.jobs.unwrap_or(four)),
            context,
        };
        if let Some(file) = &file {
            plan.place_dependencies(file)?;
        }
        if plan.layers.is_empty() {
            plan.whole_context_to = Some(plan.place_of_whole_context()?);
        }
        if let Some(file) = &file {
            plan.add_runtime_client(file)?;
        }
        plan.check_compression(plan.format)?;
        Ok(plan)
    }

    /// Adds the layer of the Runtime Interface Client below all others, where the file asks for it.
    fn add_runtime_client(&mut self, file: &LoadedFile) -> Result<()> {
        let Some(key) = &file.values.image.runtime_client else {
            return Ok(());
        };
        let client = key.get_ref();
        if client.packages.is_empty() {
            return Ok(());
        }
        let refuse = |reason: &str| file.complain(&key.span(), reason.to_owned());
        match &self.base.place {
            None => {
                return Err(refuse("`scratch` has no Python to run the client").into());
            }
            Some(ImagePlace::Registry(reference)) if AwsBase::language_of(reference).is_some() => {
                return Err(refuse("the base has a Runtime Interface Client of its own"))
                    .hint(client::NOT_NEEDED);
            }
            Some(_) => {}
        }
        self.layers.insert(0, client::layer(client));
        self.has_runtime_client = true;
        Ok(())
    }

    /// Where a function's code belongs; for other images only the working directory that was asked
    /// for says it.
    fn place_of_whole_context(&self) -> Result<String> {
        match (&self.edits.working_dir, self.target()) {
            (Some(directory), _) => Ok(format!("{}/", directory.trim_end_matches('/'))),
            (None, Target::Lambda) => Ok(TASK.to_owned()),
            (None, Target::Generic) => Err(UsageError(
                "nothing is said to go into the image".to_owned(),
            ))
            .hint("add files with `--add SRC:DEST`, or as a [[layer]] of tierce.toml"),
        }
    }

    /// Decides where dependencies go that nobody has named a place for.
    fn place_dependencies(&mut self, file: &LoadedFile) -> Result<()> {
        let target = self.target();
        // Those of the file come first.
        for (layer, table) in self.layers.iter_mut().zip(&file.values.layer) {
            let Some(dependencies) = &mut layer.dependencies else {
                continue;
            };
            match (&dependencies.to, target) {
                (Some(_), _) => {}
                (None, Target::Lambda) => dependencies.to = Some("/var/task/".to_owned()),
                (None, Target::Generic) => {
                    let reason = format!(
                        "the layer `{}` does not say where its dependencies go: `to` does",
                        layer.name
                    );
                    return Err(file.complain(&table.span(), reason).into());
                }
            }
        }
        Ok(())
    }

    /// The files and folders that the image is made of, as they are named.
    pub(crate) fn inputs(&self) -> Vec<PathBuf> {
        let mut inputs: Vec<PathBuf> = self.lock.iter().cloned().collect();
        for layer in &self.layers {
            inputs.extend(layer.parts.iter().map(|part| match part {
                LayerPart::Files { from, .. } | LayerPart::Exact { from, .. } => from.clone(),
                LayerPart::Tar { file, .. }
                | LayerPart::Zip { file, .. }
                | LayerPart::VerbatimTar { file } => file.clone(),
                LayerPart::Resolved { tree, .. } => tree.clone(),
            }));
            if let Some(dependencies) = &layer.dependencies {
                inputs.push(dependencies.file.clone());
            }
            if let Some(handler) = &layer.handler {
                inputs.extend(handler.inputs(&self.context, &self.platforms));
            }
        }
        if self.whole_context_to.is_some() {
            inputs.push(self.context.clone());
        }
        inputs
    }

    /// What the image is for: lambda when the base is AWS's or a handler is named, by its name or as
    /// a program.
    pub(crate) fn target(&self) -> Target {
        let aws_base = match &self.base.place {
            Some(ImagePlace::Registry(reference)) => AwsBase::language_of(reference).is_some(),
            _ => false,
        };
        let is_compiled = self.layers.iter().any(|layer| layer.handler.is_some());
        let is_for_lambda =
            aws_base || self.handler_named || is_compiled || self.has_runtime_client;
        self.target.unwrap_or(if is_for_lambda {
            Target::Lambda
        } else {
            Target::Generic
        })
    }

    /// What `tierce.toml` says that the base has, in place of what is known of it: of several
    /// layers the oldest.
    pub(crate) fn said_of_base(&self) -> (Option<GlibcVersion>, Option<PythonVersion>) {
        let (mut glibcs, mut pythons) = (Vec::new(), Vec::new());
        for layer in &self.layers {
            glibcs.extend(layer.handler.as_ref().and_then(|handler| handler.glibc));
            if let Some(Language::Python { version, glibc }) =
                layer.dependencies.as_ref().map(|it| it.language)
            {
                glibcs.extend(glibc.map(Glibc::version));
                pythons.extend(version);
            }
        }
        (glibcs.into_iter().min(), pythons.into_iter().min())
    }

    /// Refuses a compression that the image cannot have. What the base says of the format is known
    /// later than what was asked for, so it is checked twice.
    pub(crate) fn check_compression(&self, format: Option<ImageFormat>) -> Result<()> {
        match (self.compression, self.target(), format) {
            (Profile::Zstd(_), Target::Lambda, _) => Err(UsageError(
                "the image is for Lambda, which is not known to take zstd layers".to_owned(),
            ))
            .hint(
                "`compression = \"small\"` or a level makes gzip layers smaller; an image that is not \
                 for Lambda says `target = \"generic\"` in tierce.toml",
            ),
            (Profile::Zstd(_), Target::Generic, Some(ImageFormat::DockerV2S2)) => Err(UsageError(
                "the image is of Docker's format, which has no zstd layers".to_owned(),
            ))
            .hint("an OCI image can have them: `--format oci`"),
            _ => Ok(()),
        }
    }

    /// The edits, with the mark of what the image is for.
    pub(crate) fn final_edits(&self) -> ConfigEdits {
        let mut edits = self.edits.clone();
        edits
            .labels
            .entry(TARGET_LABEL.to_owned())
            .or_insert_with(|| self.target().as_str().to_owned());
        edits
    }
}

/// Finds the context, and that what goes beside it has a place.
fn open_context(arguments: &BuildArguments) -> Result<PathBuf> {
    let context = &arguments.context;
    let metadata = std::fs::metadata(context)
        .with_context(|| format!("could not open the context {}", context.display()))?;
    if !metadata.is_dir() {
        return Err(
            UsageError(format!("the context {} is not a folder", context.display())).into(),
        );
    }
    if let Some(path) = &arguments.metadata_file {
        let folder = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        if folder.is_some_and(|folder| !folder.is_dir()) {
            return Err(UsageError(format!(
                "the folder of --metadata-file {} is not there",
                path.display()
            ))
            .into());
        }
    }
    context
        .canonicalize()
        .with_context(|| format!("could not open the context {}", context.display()))
}

fn dedup(platforms: &mut Vec<Platform>) {
    let mut seen = std::collections::BTreeSet::new();
    platforms.retain(|platform| seen.insert(platform.clone()));
}

/// The names that the image gets: from the flags, else from the file, else the context's own.
fn names(
    arguments: &BuildArguments,
    values: &ConfigFile,
    context: &Path,
) -> Result<Vec<Reference>> {
    let names = match (&arguments.tag[..], &values.image.tag) {
        ([], Some(tag)) => vec![tag.clone()],
        ([], None) => vec![name_of_folder(context)?],
        (tags, _) => tags.to_vec(),
    };
    match names.iter().find(|name| name.digest.is_some()) {
        Some(name) => Err(UsageError(format!(
            "`{name}` has a digest: an image cannot be given one, it has its own"
        ))
        .into()),
        None => Ok(names),
    }
}

/// A folder's name in the letters that image names may have.
fn name_of_folder(context: &Path) -> Result<Reference> {
    let name = context
        .file_name()
        .map(|name| name.to_string_lossy().to_lowercase());
    let cleaned: String = name
        .unwrap_or_default()
        .chars()
        .map(|letter| {
            if letter.is_ascii_alphanumeric() {
                letter
            } else {
                '-'
            }
        })
        .collect();
    let cleaned = cleaned.trim_matches('-');
    cleaned
        .parse()
        .map_err(|_| {
            UsageError(format!(
                "the folder {} gives no name for the image",
                context.display()
            ))
        })
        .hint("name the image with `--tag NAME`")
}

fn destinations(arguments: &BuildArguments, names: &[Reference]) -> Result<Vec<ImagePlace>> {
    let mut destinations = arguments.output.clone();
    let tag = names.first().and_then(Reference::effective_tag);
    for place in &mut destinations {
        // Where the place has room for a name and none was written, the image's own goes there.
        match place {
            ImagePlace::DockerArchive { references, .. } if references.is_empty() => {
                references.extend_from_slice(names);
            }
            ImagePlace::Layout { selector, .. } | ImagePlace::OciArchive { selector, .. }
                if selector.is_none() =>
            {
                *selector = tag.clone().map(Selector::Tag);
            }
            _ => {}
        }
        if place.states_digest() {
            return Err(UsageError(format!(
                "`{place}` has a digest: an image cannot be given one, it has its own"
            ))
            .into());
        }
    }
    if arguments.push {
        if arguments.tag.is_empty()
            && names
                .iter()
                .all(|name| name.repository.registry == "docker.io")
        {
            return Err(UsageError("--push needs a name with a registry".to_owned()))
                .hint("name the image with `--tag HOST/REPOSITORY:TAG`");
        }
        destinations.extend(names.iter().cloned().map(ImagePlace::Registry));
    }
    if destinations.is_empty() {
        let stored = names.iter().filter_map(store_reference_of);
        destinations.extend(stored.map(ImagePlace::Store));
    }
    Ok(destinations)
}

fn edits(arguments: &ImageArguments, values: &ConfigFile) -> Result<(ConfigEdits, bool)> {
    let run = values.config.get_ref();
    let words = |flags: &[String], file: &Option<Vec<String>>| {
        if flags.is_empty() {
            file.clone()
        } else {
            Some(flags.to_vec())
        }
    };
    let handler = arguments
        .handler
        .clone()
        .or_else(|| values.image.handler.clone());
    if values.image.handler.is_some() && run.cmd.is_some() {
        return Err(UsageError(
            "tierce.toml has both `handler` and `cmd`".to_owned(),
        ))
        .hint("the handler is the only word of CMD; keep one of the two");
    }
    let cmd = match (&arguments.handler, words(&arguments.cmd, &run.cmd)) {
        (Some(handler), _) => Some(vec![handler.clone()]),
        (None, Some(cmd)) => Some(cmd),
        (None, None) => handler.clone().map(|handler| vec![handler]),
    };
    let mut env: Vec<(String, EnvEdit)> = run
        .env
        .iter()
        .map(|(name, value)| (name.clone(), value.clone().edit()))
        .collect();
    for pair in &arguments.env {
        // A flag replaces what the file says of the same variable.
        env.retain(|(name, _)| *name != pair.name);
        env.push((pair.name.clone(), EnvEdit::Set(pair.value.clone())));
    }
    let pairs = |pairs: &[crate::arguments::Pair]| {
        pairs
            .iter()
            .map(|pair| (pair.name.clone(), pair.value.clone()))
            .collect::<Vec<_>>()
    };
    let mut labels = run.labels.clone();
    labels.extend(pairs(&arguments.label));
    let mut annotations = run.annotations.clone();
    annotations.extend(pairs(&arguments.annotation));
    let edits = ConfigEdits {
        entrypoint: words(&arguments.entrypoint, &run.entrypoint),
        cmd,
        env,
        working_dir: arguments.workdir.clone().or_else(|| run.workdir.clone()),
        user: arguments.user.clone().or_else(|| run.user.clone()),
        labels,
        exposed_ports: run
            .expose
            .iter()
            .map(|port| port.clone().into_text())
            .chain(arguments.expose.iter().cloned())
            .collect(),
        stop_signal: arguments
            .stop_signal
            .clone()
            .or_else(|| run.stop_signal.clone()),
        annotations,
    };
    Ok((edits, handler.is_some()))
}

fn plan_layer(
    file: &LoadedFile,
    span: Range<usize>,
    layer: &LayerTable,
    context: &Path,
    environment: &Environment,
) -> Result<LayerPlan> {
    let mut parts = Vec::new();
    for add in &layer.add {
        let AddTable {
            from,
            to,
            include,
            exclude,
        } = add;
        let path = inside(context, from.get_ref())
            .map_err(|reason| file.complain(&from.span(), reason))?;
        parts.push(LayerPart::Files {
            from: path,
            to: to.clone(),
            include: include.clone(),
            exclude: exclude.clone(),
        });
    }
    let handler = plan_handler(file, &span, layer)?;
    let dependencies = plan_dependencies(file, &span, layer, context)?;
    match archive_of(file, &span, layer)? {
        // First, so that files of the same layer override the archive's.
        Some(archive) => {
            let named = archive.file();
            let path = inside(context, named.get_ref())
                .map_err(|reason| file.complain(&named.span(), reason))?;
            parts.insert(0, archive_part(&archive, path, layer));
        }
        None if (moves_members(layer) && dependencies.is_none() && handler.is_none())
            || layer.verbatim =>
        {
            let reason =
                "`to`, `include`, `exclude` and `verbatim` of a layer belong to its archive";
            return Err(file.complain(&span, reason.to_owned()).into());
        }
        None => {}
    }
    if parts.is_empty() && dependencies.is_none() && handler.is_none() {
        let reason = format!(
            "the layer `{}` has nothing in it: no `add`, no archive, no dependencies, no `binary`",
            layer.name
        );
        return Err(file.complain(&span, reason).into());
    }
    let mixed =
        layer.verbatim && (parts.len() > 1 || moves_members(layer) || layer.prune_prebuilds);
    if mixed {
        let reason = "a `verbatim` tar is a layer of its own: nothing is added, left out or moved";
        return Err(file.complain(&span, reason.to_owned()).into());
    }
    if layer.verbatim && layer.bytecode {
        let reason = "nothing of a `verbatim` tar is compiled: it has the bytes that it has";
        return Err(file.complain(&span, reason.to_owned()).into());
    }
    let split = match &layer.split {
        Some(split) => {
            if layer.verbatim && *split.get_ref() != Split::Off {
                let reason = "a `verbatim` tar is one layer, with the bytes that it has";
                return Err(file.complain(&split.span(), reason.to_owned()).into());
            }
            *split.get_ref()
        }
        None => Split::Auto,
    };
    let mtime = match layer.mtime {
        Mtime::Fixed => None,
        Mtime::SourceDateEpoch => match environment.source_date_epoch {
            Some(time) => Some(u64::try_from(time.seconds()).unwrap_or(0)),
            None => {
                let reason =
                    "`mtime = \"source-date-epoch\"` needs SOURCE_DATE_EPOCH in the environment";
                return Err(file.complain(&span, reason.to_owned()).into());
            }
        },
    };
    Ok(LayerPlan {
        name: layer.name.clone(),
        parts,
        dependencies,
        handler,
        bytecode: if layer.bytecode {
            Bytecode::Wanted(layer.python_version)
        } else {
            Bytecode::AsFound
        },
        keep_modes: layer.modes == Keep::Keep,
        keep_owners: layer.owners == Keep::Keep,
        keep_hardlinks: layer.hardlinks == Keep::Keep,
        xattrs: layer.xattrs.clone(),
        prune_prebuilds: layer.prune_prebuilds.then(PruneFor::default),
        mtime,
        split,
    })
}

/// The dependencies of a layer, if it has any.
fn plan_dependencies(
    file: &LoadedFile,
    span: &Range<usize>,
    layer: &LayerTable,
    context: &Path,
) -> Result<Option<Dependencies>> {
    let complain =
        |span: &Range<usize>, reason: &str| Err(file.complain(span, reason.to_owned()).into());
    if layer.python.is_none() && !layer.bytecode && layer.python_version.is_some() {
        return complain(
            span,
            "`python-version` of a layer belongs to its `python` or `bytecode`",
        );
    }
    if layer.python.is_none() && layer.binary.is_none() && layer.glibc.is_some() {
        return complain(
            span,
            "`glibc` of a layer belongs to its `python` or `binary`",
        );
    }
    if layer.node.is_none() && layer.scripts.is_some() {
        return complain(span, "`scripts` of a layer belongs to its `node`");
    }
    let (named, language) = match (&layer.python, &layer.node) {
        (None, None) => return Ok(None),
        (Some(_), Some(node)) => {
            return complain(
                &node.span(),
                "a layer has dependencies of one language; make two layers of them",
            );
        }
        (Some(python), None) => {
            let language = Language::Python {
                version: layer.python_version,
                glibc: layer.glibc,
            };
            (python, language)
        }
        (None, Some(node)) => {
            let scripts = layer.scripts.unwrap_or(false);
            (node, Language::Node { scripts })
        }
    };
    if layer.tar.is_some() || layer.zip.is_some() || layer.lambda_layer.is_some() {
        return complain(
            &named.span(),
            "a layer has either an archive or dependencies; make two layers of them",
        );
    }
    let path =
        inside(context, named.get_ref()).map_err(|reason| file.complain(&named.span(), reason))?;
    Ok(Some(Dependencies {
        language,
        file: path,
        requirements: None,
        shown: named.get_ref().display().to_string(),
        to: layer.to.clone(),
        include: layer.include.clone(),
        exclude: layer.exclude.clone(),
    }))
}

/// The compiled handler of a layer, if it has one.
fn plan_handler(
    file: &LoadedFile,
    span: &Range<usize>,
    layer: &LayerTable,
) -> Result<Option<CompiledHandler>> {
    let complain =
        |span: &Range<usize>, reason: &str| Err(file.complain(span, reason.to_owned()).into());
    let Some(binary) = &layer.binary else {
        return match &layer.libraries[..] {
            [] => Ok(None),
            _ => complain(span, "`libraries` of a layer belong to its `binary`"),
        };
    };
    let has_archive = layer.tar.is_some() || layer.zip.is_some() || layer.lambda_layer.is_some();
    if has_archive || layer.python.is_some() || layer.node.is_some() {
        return complain(
            &binary.span(),
            "a layer has a `binary`, an archive or dependencies; make two layers of them",
        );
    }
    if !layer.include.is_empty() || !layer.exclude.is_empty() {
        return complain(
            span,
            "`include` and `exclude` of a layer belong to its archive or dependencies",
        );
    }
    Ok(Some(CompiledHandler {
        file: binary.get_ref().clone(),
        to: layer.to.clone(),
        libraries: layer.libraries.clone(),
        glibc: layer.glibc.map(Glibc::version),
    }))
}

/// Where a function's code is.
const TASK: &str = "/var/task/";
/// Where Lambda unpacks layers.
const OPT: &str = "/opt/";

/// The archive that a layer is made of.
enum Archive<'a> {
    Tar(&'a Spanned<PathBuf>),
    Zip(&'a Spanned<PathBuf>),
    LambdaLayer(&'a Spanned<PathBuf>),
}

impl<'a> Archive<'a> {
    fn file(&self) -> &'a Spanned<PathBuf> {
        match self {
            Self::Tar(file) | Self::Zip(file) | Self::LambdaLayer(file) => file,
        }
    }
}

/// The archive of a layer, if it has one and all that is said of it is true of its kind.
fn archive_of<'a>(
    file: &LoadedFile,
    span: &Range<usize>,
    layer: &'a LayerTable,
) -> Result<Option<Archive<'a>>> {
    let archives = [
        layer.tar.as_ref().map(Archive::Tar),
        layer.zip.as_ref().map(Archive::Zip),
        layer.lambda_layer.as_ref().map(Archive::LambdaLayer),
    ];
    let mut archives = archives.into_iter().flatten();
    let archive = archives.next();
    let refuse = |reason: &str| Err(file.complain(span, reason.to_owned()).into());
    if archives.next().is_some() {
        return refuse(
            "a layer is made of one archive: `tar`, `zip` or `lambda-layer`; each of several is a \
             [[layer]] of its own",
        );
    }
    match archive {
        Some(Archive::Zip(_) | Archive::LambdaLayer(_)) if layer.verbatim => {
            refuse("`verbatim` belongs to a `tar`: the bytes of a zip are no layer")
        }
        Some(Archive::LambdaLayer(_)) if layer.to.is_some() => {
            refuse("a `lambda-layer` goes to `/opt/`; `zip` goes wherever `to` says")
        }
        Some(Archive::Zip(_) | Archive::LambdaLayer(_))
            if layer.add.is_empty() && keeps_more_than_modes(layer) =>
        {
            refuse("a zip has no owners, hardlinks or extended attributes to keep")
        }
        archive => Ok(archive),
    }
}

fn archive_part(archive: &Archive<'_>, path: PathBuf, layer: &LayerTable) -> LayerPart {
    let to = |usual: &str| layer.to.clone().unwrap_or_else(|| usual.to_owned());
    let (include, exclude) = (layer.include.clone(), layer.exclude.clone());
    let usual = match archive {
        Archive::Tar(_) if layer.verbatim => return LayerPart::VerbatimTar { file: path },
        Archive::Tar(_) => {
            return LayerPart::Tar {
                file: path,
                to: to("/"),
                include,
                exclude,
            };
        }
        Archive::Zip(_) => TASK,
        Archive::LambdaLayer(_) => OPT,
    };
    LayerPart::Zip {
        file: path,
        to: to(usual),
        include,
        exclude,
    }
}

/// Whether something of the files is to be kept that zips do not have.
fn keeps_more_than_modes(layer: &LayerTable) -> bool {
    layer.owners == Keep::Keep || layer.hardlinks == Keep::Keep || !layer.xattrs.is_empty()
}

/// Whether members of the layer's archive are to be moved or left out.
fn moves_members(layer: &LayerTable) -> bool {
    layer.to.is_some() || !layer.include.is_empty() || !layer.exclude.is_empty()
}

/// The layers of the flags, the lowest first: Lambda layers in the order in which Lambda would unpack
/// them, the function, what is added by name, and a compiled handler.
fn layers_of_flags(arguments: &ImageArguments, context: &Path) -> Result<Vec<LayerPlan>> {
    let mut layers = Vec::new();
    for file in &arguments.lambda_layer {
        layers.push(zip_layer("--lambda-layer", file, OPT, context)?);
    }
    for zip in &arguments.zip {
        let to = zip.to.as_deref().unwrap_or(TASK);
        layers.push(zip_layer("--zip", &zip.file, to, context)?);
    }
    layers.extend(added_layer(arguments, context)?);
    if let Some(binary) = &arguments.binary {
        let mut layer = LayerPlan::of_files("handler", Vec::new());
        layer.handler = Some(CompiledHandler {
            file: BinaryFile::Every(binary.clone()),
            to: None,
            libraries: Vec::new(),
            glibc: None,
        });
        layers.push(layer);
    }
    Ok(layers)
}

/// The layer of a zip that a flag names. The file's name stands in the image's history.
fn zip_layer(flag: &str, file: &Path, to: &str, context: &Path) -> Result<LayerPlan> {
    let path = inside(context, file)
        .map_err(|reason| UsageError(format!("{flag} {}: {reason}", file.display())))?;
    let name = file.file_name().and_then(|name| name.to_str());
    let name = name.filter(|name| !name.chars().any(char::is_control));
    let part = LayerPart::Zip {
        file: path,
        to: to.to_owned(),
        include: Vec::new(),
        exclude: Vec::new(),
    };
    Ok(LayerPlan::of_files(name.unwrap_or("zip"), vec![part]))
}

/// The layer of `--add`, if there is one.
fn added_layer(arguments: &ImageArguments, context: &Path) -> Result<Option<LayerPlan>> {
    let parts = arguments
        .add
        .iter()
        .map(|add| {
            let from = inside(context, &add.from).map_err(|reason| {
                UsageError(format!("--add {}:{}: {reason}", add.from.display(), add.to))
            })?;
            Ok(LayerPart::Files {
                from,
                to: add.to.clone(),
                include: Vec::new(),
                exclude: Vec::new(),
            })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok((!parts.is_empty()).then(|| LayerPlan::of_files("added", parts)))
}

impl LayerPlan {
    /// A layer of files with everything made uniform.
    pub(crate) fn of_files(name: &str, parts: Vec<LayerPart>) -> Self {
        Self {
            name: name.to_owned(),
            parts,
            dependencies: None,
            handler: None,
            bytecode: Bytecode::AsFound,
            keep_modes: false,
            keep_owners: false,
            keep_hardlinks: false,
            xattrs: Vec::new(),
            prune_prebuilds: None,
            mtime: None,
            split: Split::Auto,
        }
    }
}

/// Finds `path` in the context, or says why it cannot be used.
///
/// Neither `..` nor a symlink leads out: a build that reads beside its context is not reproducible
/// from it. (A symlink *inside* an added folder is different: it is stored as a symlink.)
pub(crate) fn inside(context: &Path, path: &Path) -> Result<PathBuf, String> {
    let shown = path.display();
    let escapes = || format!("`{shown}` is outside the context {}", context.display());
    let joined = context.join(path);
    let mut depth = 0_usize;
    for component in joined
        .strip_prefix(context)
        .map_err(|_| escapes())?
        .components()
    {
        match component {
            std::path::Component::ParentDir => {
                depth = depth.checked_sub(1).ok_or_else(escapes)?;
            }
            std::path::Component::Normal(_) => depth += 1,
            _ => {}
        }
    }
    let real = joined.canonicalize().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            format!("`{shown}` is not there (looked in {})", context.display())
        }
        _ => format!("`{shown}` cannot be opened: {error}"),
    })?;
    if !real.starts_with(context) {
        return Err(escapes());
    }
    // A symlink gives its content but keeps its name, as with COPY. Behind `..` only the real path
    // says where we are.
    let plain = path.components().all(|component| {
        matches!(
            component,
            std::path::Component::Normal(_) | std::path::Component::CurDir
        )
    });
    Ok(if plain {
        context.join(path.components().collect::<PathBuf>())
    } else {
        real
    })
}

/// Finds the places in the context that this run writes to: an archive that is built a second time
/// must not swallow the first.
fn written_in_context(arguments: &BuildArguments, context: &Path) -> Vec<String> {
    let places = arguments.output.iter().filter_map(|place| match place {
        ImagePlace::Layout {
            directory: path, ..
        }
        | ImagePlace::OciArchive { file: path, .. }
        | ImagePlace::DockerArchive { file: path, .. } => Some(path),
        ImagePlace::Registry(_) | ImagePlace::Store(_) => None,
    });
    places
        .chain(&arguments.metadata_file)
        .filter_map(|path| {
            // The path itself may not be there yet; its folder is, or nothing can be written.
            let folder = match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            let path = folder.canonicalize().ok()?.join(path.file_name()?);
            let inside = path.strip_prefix(context).ok()?.to_str()?;
            Some(as_pattern(inside))
        })
        .collect()
}

/// A pattern that matches this path alone.
pub(crate) fn as_pattern(path: &str) -> String {
    let mut pattern = String::new();
    for letter in path.chars() {
        if "*?[]\\!#^".contains(letter) {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    pattern
}

/// Where the image for `platform` goes: with several of them its tag tells it apart.
pub(crate) fn place_of(
    place: &ImagePlace,
    platform: &Platform,
    several: bool,
) -> Result<ImagePlace> {
    match place.tag() {
        Some(tag) if several => Ok(place.with_tag(&platform_tag(&tag, platform)?)),
        _ => Ok(place.clone()),
    }
}

/// The tag that an image for `platform` gets when several are built: `T-arm64`.
fn platform_tag(tag: &Tag, platform: &Platform) -> Result<Tag> {
    let suffix = match &platform.variant {
        Some(variant) => format!("{}-{variant}", platform.architecture),
        None => platform.architecture.clone(),
    };
    format!("{tag}-{suffix}")
        .parse()
        .context("the tag has no room for the platform")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_context_is_taken() {
        let outer = tempfile::tempdir().unwrap();
        let outer = outer.path().canonicalize().unwrap();
        let context = outer.join("context");
        std::fs::create_dir_all(context.join("src")).unwrap();
        std::fs::write(outer.join("secret"), "").unwrap();
        std::os::unix::fs::symlink("../secret", context.join("link")).unwrap();
        std::os::unix::fs::symlink("src", context.join("inner")).unwrap();
        let check = |path: &str| inside(&context, Path::new(path));
        assert_eq!(check("src/").unwrap(), context.join("src"));
        assert_eq!(check(".").unwrap().canonicalize().unwrap(), context);
        assert_eq!(check("src/../src").unwrap(), context.join("src"));
        assert_eq!(check("inner").unwrap(), context.join("inner"));
        for path in ["..", "../secret", "/etc", "link", "src/../../context/src"] {
            assert!(
                check(path).unwrap_err().contains("outside the context"),
                "{path}"
            );
        }
        assert!(check("nowhere").unwrap_err().contains("is not there"));
    }

    #[test]
    fn a_folder_names_its_image() {
        let name = |path: &str| name_of_folder(Path::new(path)).map(|name| name.to_string());
        assert_eq!(
            name("/x/My Orders_2").unwrap(),
            "docker.io/library/my-orders-2"
        );
        assert!(name("/").is_err());
        assert!(name("/x/---").is_err());
    }
}
