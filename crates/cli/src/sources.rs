//! What a build's layers are made of: looked at, and made trees of.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tierce_image::{BaseImage, Jobs};
use tierce_lambda::BaseFacts;
use tierce_layer::cache::NoteId;
use tierce_layer::{
    Anchored, ArchiveAdd, Attributes, Destination, DirectoryDefaults, EntryKind, EntryPath,
    FileTime, Keep, Limits, Matcher, Notice, ScanAdd, Stamp, Treatment, Tree, Walked, add_archive,
    add_walked, add_zip, walk,
};

use crate::plan::{BuildPlan, LayerPart, LayerPlan};
use crate::prebuilds::prune;

/// The layer format that history entries and cache keys name.
pub(crate) const LAYER_FORMAT: &str = "layer-format-1";

/// What nobody means to have in an image when the whole context is taken.
const NEVER_MEANT: [&str; 4] = ["tierce.toml", "tierce.lock", ".dockerignore", ".git"];

/// The planned layers, with what is needed to find their files.
pub(crate) struct Sources {
    context: PathBuf,
    ignored: Option<Matcher>,
    /// What this run writes is not what it reads.
    written: Matcher,
    /// All that is said to be left out, for questions to the cache.
    left_out: Vec<u8>,
    pub(crate) layers: Vec<LayerPlan>,
    scratch: PathBuf,
    jobs: Jobs,
}

/// The sources of a layer as they were found. No file was opened.
pub(crate) struct Looked {
    parts: Vec<Found>,
    /// Equal for sources that are equal, as far as `stat` can tell.
    pub(crate) fingerprint: String,
    /// When the last of them was changed.
    pub(crate) latest: FileTime,
}

enum Found {
    Files(Walked),
    Archive(Stamp),
}

/// An archive was another one when it was read than when it was looked at.
#[derive(Debug, thiserror::Error)]
#[error("`{}` changed while the image was made", .0.display())]
pub(crate) struct ArchiveChanged(PathBuf);

impl Sources {
    /// Reads `.dockerignore`; gives the name of the place that the whole context goes to, if nothing
    /// is added by name.
    pub(crate) fn new(plan: &BuildPlan, scratch: &Path) -> Result<Self> {
        let mut layers = plan.layers.clone();
        if let Some(to) = &plan.whole_context_to {
            layers.push(LayerPlan::of_files(
                "code",
                vec![LayerPart::Files {
                    from: plan.context.clone(),
                    to: to.clone(),
                    include: Vec::new(),
                    exclude: NEVER_MEANT.map(str::to_owned).to_vec(),
                }],
            ));
        }
        let ignore_file = plan.context.join(".dockerignore");
        let ignored = read_if_there(&ignore_file)?;
        let mut left_out = plan.written_in_context.join("\n").into_bytes();
        left_out.push(0);
        left_out.extend_from_slice(ignored.as_deref().unwrap_or_default());
        Ok(Self {
            context: plan.context.clone(),
            ignored: ignored
                .map(|text| Matcher::parse(&text, &ignore_file))
                .transpose()?,
            written: Matcher::new(&plan.written_in_context)?,
            left_out,
            layers,
            scratch: scratch.to_owned(),
            jobs: plan.compress_jobs,
        })
    }

    /// The name under which it is kept how a layer came out: of all that it depends on, except for
    /// what the sources are.
    pub(crate) fn question(&self, plan: &LayerPlan, ground: &Ground, codec: &str) -> NoteId {
        use std::os::unix::ffi::OsStrExt as _;
        // Another tierce may see another layer in the same sources.
        let version = env!("CARGO_PKG_VERSION");
        NoteId::of([
            b"how a layer came out, 1",
            version.as_bytes(),
            LAYER_FORMAT.as_bytes(),
            codec.as_bytes(),
            self.context.as_os_str().as_bytes(),
            &self.left_out,
            format!("{plan:?}").as_bytes(),
            format!("{ground:?}").as_bytes(),
        ])
    }

    /// Looks at the sources of a layer.
    pub(crate) fn look(&self, plan: &LayerPlan) -> Result<Looked> {
        // Writing to a string cannot fail.
        use std::fmt::Write as _;
        let mut looked = Looked {
            parts: Vec::new(),
            fingerprint: String::new(),
            latest: FileTime::default(),
        };
        for part in &plan.parts {
            match part {
                LayerPart::Files {
                    from,
                    include,
                    exclude,
                    ..
                } => {
                    let found = self.with_scan(
                        plan,
                        from,
                        &Destination::root(),
                        include,
                        exclude,
                        |add| Ok(walk(add)?),
                    )?;
                    let fingerprint = found.fingerprint();
                    looked.latest = looked.latest.max(fingerprint.latest.unwrap_or_default());
                    let _ = write!(looked.fingerprint, "{:032x};", fingerprint.hash);
                    looked.parts.push(Found::Files(found));
                }
                LayerPart::Resolved {
                    tree,
                    include,
                    exclude,
                    ..
                } => {
                    let root = Destination::root();
                    let found = self
                        .with_resolved(plan, tree, &root, include, exclude, |add| Ok(walk(add)?))?;
                    // When it was made says nothing: it got its name when it was whole, and nobody
                    // has changed it since.
                    let _ = write!(looked.fingerprint, "{:032x};", found.fingerprint().hash);
                    looked.parts.push(Found::Files(found));
                }
                LayerPart::Exact { from, .. } => {
                    let root = Destination::root();
                    let found =
                        self.with_resolved(plan, from, &root, &[], &[], |add| Ok(walk(add)?))?;
                    let fingerprint = found.fingerprint();
                    looked.latest = looked.latest.max(fingerprint.latest.unwrap_or_default());
                    let _ = write!(looked.fingerprint, "{:032x};", fingerprint.hash);
                    looked.parts.push(Found::Files(found));
                }
                LayerPart::Tar { file, .. }
                | LayerPart::Zip { file, .. }
                | LayerPart::VerbatimTar { file } => {
                    let metadata = std::fs::metadata(file)
                        .with_context(|| format!("could not read {}", file.display()))?;
                    let stamp = Stamp::of(&metadata);
                    looked.latest = looked.latest.max(stamp.modified).max(stamp.changed);
                    if !metadata.is_file() {
                        looked.latest = NEVER_SETTLED;
                    }
                    let _ = write!(looked.fingerprint, "{stamp:?};");
                    looked.parts.push(Found::Archive(stamp));
                }
            }
        }
        Ok(looked)
    }

    /// Makes a tree of what was found; `None` for a verbatim tar, which is not looked into.
    pub(crate) fn tree(
        &self,
        plan: &LayerPlan,
        looked: &Looked,
        ground: &Ground,
        notices: &mut Vec<Notice>,
    ) -> Result<Option<Tree>> {
        let mut tree = Tree::with_defaults(ground.directories.clone());
        for (part, found) in plan.parts.iter().zip(&looked.parts) {
            match (part, found) {
                (LayerPart::VerbatimTar { .. }, _) => return Ok(None),
                (
                    LayerPart::Tar {
                        file,
                        to,
                        include,
                        exclude,
                    }
                    | LayerPart::Zip {
                        file,
                        to,
                        include,
                        exclude,
                    },
                    found,
                ) => {
                    let destination = destination(to, &ground.working_dir)?;
                    let exclude = Matcher::new(exclude)?;
                    let include = Matcher::new(include)?;
                    let add = ArchiveAdd {
                        destination: &destination,
                        exclude: Some(&exclude),
                        include: (!include.is_empty()).then_some(&include),
                        treatment: &plan.treatment(),
                        scratch: &self.scratch,
                        limits: Limits::default(),
                    };
                    let read = match part {
                        LayerPart::Zip { .. } => add_zip(file, &add, &mut tree, notices)?,
                        _ => add_archive(file, &add, &mut tree, notices)?,
                    };
                    if let Found::Archive(stamp) = found {
                        require_same(file, &read, stamp)?;
                    }
                }
                (
                    LayerPart::Files {
                        from,
                        to,
                        include,
                        exclude,
                    },
                    Found::Files(found),
                ) => {
                    let mut destination = destination(to, &ground.working_dir)?;
                    if !from.is_dir() && ground.is_directory(&destination, &tree) {
                        destination = self::destination(&format!("{to}/"), &ground.working_dir)?;
                    }
                    self.with_scan(plan, from, &destination, include, exclude, |add| {
                        Ok(add_walked(found, add, &mut tree, notices)?)
                    })?;
                }
                (
                    LayerPart::Resolved {
                        tree: resolved,
                        to,
                        include,
                        exclude,
                    },
                    Found::Files(found),
                ) => {
                    let destination = destination(&format!("{to}/"), &ground.working_dir)?;
                    self.with_resolved(plan, resolved, &destination, include, exclude, |add| {
                        Ok(add_walked(found, add, &mut tree, notices)?)
                    })?;
                }
                (LayerPart::Exact { from, to }, Found::Files(found)) => {
                    let destination = destination(to, &ground.working_dir)?;
                    let mut alone = Tree::new();
                    self.with_resolved(plan, from, &destination, &[], &[], |add| {
                        Ok(add_walked(found, add, &mut alone, notices)?)
                    })?;
                    let path = destination.path();
                    let found = path.and_then(|path| Some((path, alone.get(path)?)));
                    let (path, entry) =
                        found.with_context(|| format!("`{to}` cannot be the name of a file"))?;
                    let mut entry = entry.clone();
                    // Whatever became of the bit on its way through caches and artifacts of builds.
                    entry.attributes.mode = 0o755;
                    tree.insert(path.clone(), entry, notices)?;
                }
                (
                    LayerPart::Files { .. } | LayerPart::Resolved { .. } | LayerPart::Exact { .. },
                    Found::Archive(_),
                ) => {
                    unreachable!("parts are found in their order")
                }
            }
        }
        if let Some(target) = &plan.prune_prebuilds {
            prune(&mut tree, target, notices)?;
        }
        ground.check(&tree)?;
        Ok(Some(tree))
    }

    /// [`Self::with_scan`] for what is not of the context, even where the cache lies in it: what is
    /// said of the context does not count.
    fn with_resolved<T>(
        &self,
        plan: &LayerPlan,
        tree: &Path,
        destination: &Destination,
        include: &[String],
        exclude: &[String],
        run: impl FnOnce(&ScanAdd<'_>) -> Result<T>,
    ) -> Result<T> {
        let exclude = Matcher::new(exclude)?;
        let include = Matcher::new(include)?;
        run(&ScanAdd {
            source: tree,
            destination,
            exclude: &[Anchored {
                matcher: &exclude,
                root: tree,
            }],
            include: (!include.is_empty()).then_some(Anchored {
                matcher: &include,
                root: tree,
            }),
            treatment: &plan.treatment(),
            jobs: self.jobs.0,
        })
    }

    fn with_scan<T>(
        &self,
        plan: &LayerPlan,
        from: &Path,
        destination: &Destination,
        include: &[String],
        exclude: &[String],
        run: impl FnOnce(&ScanAdd<'_>) -> Result<T>,
    ) -> Result<T> {
        let exclude = Matcher::new(exclude)?;
        let include = Matcher::new(include)?;
        // Patterns of a single file are anchored at the folder that it is in.
        let root = if from.is_dir() {
            from
        } else {
            from.parent().unwrap_or(from)
        };
        let mut excluded = vec![Anchored {
            matcher: &exclude,
            root,
        }];
        excluded.push(Anchored {
            matcher: &self.written,
            root: &self.context,
        });
        if let Some(ignored) = &self.ignored {
            excluded.push(Anchored {
                matcher: ignored,
                root: &self.context,
            });
        }
        run(&ScanAdd {
            source: from,
            destination,
            exclude: &excluded,
            include: (!include.is_empty()).then_some(Anchored {
                matcher: &include,
                root,
            }),
            treatment: &plan.treatment(),
            jobs: self.jobs.0,
        })
    }
}

/// Later than any file was changed: what has this time is never known again.
const NEVER_SETTLED: FileTime = FileTime {
    seconds: i64::MAX,
    nanoseconds: 0,
};

impl Looked {
    /// Whether part of it comes out of a pipe, of which `stat` tells nothing.
    pub(crate) fn is_of_a_pipe(&self) -> bool {
        self.latest == NEVER_SETTLED
    }

    /// Fails unless `file` is still the verbatim tar that was looked at. Of a pipe nobody can tell.
    pub(crate) fn require_verbatim(&self, path: &Path, file: &File) -> Result<()> {
        let metadata = file
            .metadata()
            .with_context(|| format!("could not read {}", path.display()))?;
        match &self.parts[..] {
            [Found::Archive(stamp)] if metadata.is_file() => {
                require_same(path, &Stamp::of(&metadata), stamp)
            }
            _ => Ok(()),
        }
    }
}

fn require_same(path: &Path, read: &Stamp, looked_at: &Stamp) -> Result<()> {
    if read.has_content_of(looked_at) {
        Ok(())
    } else {
        Err(ArchiveChanged(path.to_owned()).into())
    }
}

impl LayerPlan {
    fn treatment(&self) -> Treatment {
        let keep = |keep| if keep { Keep::Keep } else { Keep::Normalised };
        Treatment {
            modes: keep(self.keep_modes),
            owners: keep(self.keep_owners),
            hardlinks: keep(self.keep_hardlinks),
            xattrs: self.xattrs.clone(),
        }
    }
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("could not read {}", path.display())),
    }
}

/// Reads a destination as COPY does: a relative one is below the working directory.
fn destination(text: &str, working_dir: &str) -> Result<Destination> {
    let absolute = if text.starts_with('/') {
        text.to_owned()
    } else {
        format!("{}/{text}", working_dir.trim_end_matches('/'))
    };
    Destination::parse(&absolute).with_context(|| format!("`{text}` cannot be a path in an image"))
}

/// Directories that every base has: a file that is added under exactly one of these names is meant
/// to go into it, as COPY does when it finds a directory there. Not on `scratch`, which has none.
const DIRECTORIES: [&str; 15] = [
    "bin",
    "etc",
    "home",
    "lib",
    "lib64",
    "opt",
    "root",
    "sbin",
    "tmp",
    "usr",
    "usr/bin",
    "usr/lib",
    "var",
    "var/runtime",
    "var/task",
];

/// Whether a path, without a slash in front, is a directory on bases: the working directory, or one
/// by its name.
pub(crate) fn is_directory_of_bases(path: &[u8], working_dir: &str) -> bool {
    path == working_dir.trim_matches('/').as_bytes()
        || DIRECTORIES
            .iter()
            .any(|directory| path == directory.as_bytes())
}

/// Where a build's relative and ambiguous destinations lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ground {
    working_dir: String,
    /// The file that the image runs; nothing may become a directory in its place.
    entrypoint: Option<String>,
    from_scratch: bool,
    /// How directories are that nobody describes.
    directories: DirectoryDefaults,
}

impl Ground {
    /// What relative and ambiguous destinations mean on `base`, of which `facts` are held to be true;
    /// `working_dir` and `entrypoint` are those that the build sets.
    pub(crate) fn of(
        base: Option<&BaseImage>,
        facts: &BaseFacts,
        working_dir: Option<&str>,
        entrypoint: Option<&str>,
    ) -> Self {
        let config = base.map(|base| base.image.config());
        let mut directories = DirectoryDefaults::default();
        for (path, facts) in &facts.directories {
            if let Ok(path) = EntryPath::new(path.as_str()) {
                let attributes = Attributes {
                    uid: facts.uid,
                    gid: facts.gid,
                    ..Attributes::root(facts.mode)
                };
                directories.set(path, attributes);
            }
        }
        Self {
            directories,
            working_dir: working_dir
                .or_else(|| config?.working_dir.as_deref())
                .unwrap_or("/")
                .to_owned(),
            // What a build brings itself it may also arrange as it likes.
            entrypoint: match (entrypoint, config) {
                (None, Some(config)) => config.entrypoint.first().cloned(),
                _ => None,
            },
            from_scratch: base.is_none(),
        }
    }

    /// Whether a destination without a trailing slash is known to be a directory: by what was added
    /// before, as the working directory, or by its name. A pure function of what is built, so that
    /// no digest depends on how much is known of the base.
    fn is_directory(&self, destination: &Destination, tree: &Tree) -> bool {
        let Some(path) = destination.path() else {
            return true;
        };
        let added = tree
            .get(path)
            .is_some_and(|entry| matches!(entry.kind, EntryKind::Directory));
        let of_base = || is_directory_of_bases(path.as_bytes(), &self.working_dir);
        added || (!self.from_scratch && of_base())
    }

    /// Refuses a tree that would put a directory where the base has what the image runs.
    fn check(&self, tree: &Tree) -> Result<()> {
        let Some(entrypoint) = &self.entrypoint else {
            return Ok(());
        };
        let Some(path) = EntryPath::clean(entrypoint.trim_start_matches('/').as_bytes())? else {
            return Ok(());
        };
        let replaced = tree
            .get(&path)
            .is_some_and(|entry| matches!(entry.kind, EntryKind::Directory));
        anyhow::ensure!(
            !replaced,
            "a folder would take the place of `{entrypoint}`, which the image runs"
        );
        Ok(())
    }
}
