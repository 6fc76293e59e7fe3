//! A finished image, ready to be judged.

use std::collections::BTreeSet;

use serde_json::Value;
use tierce_image::{Image, TARGET_LABEL};
use tierce_oci::{ImageConfig, Reference};

use crate::base_facts::CLibrary;
use crate::bases::{AWS_ENTRYPOINT, AwsBase, LANGUAGE_ROOT, LAYERS_ROOT, TASK_ROOT};
use crate::elf::ElfFacts;
use crate::facts::{ContentFacts, EntryKind, LayerFacts};
use crate::libraries::{Analysis, analyse};
use crate::rules::UnknownBase;
use crate::tree::{Node, Tree};

/// What an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To be a Lambda function.
    Lambda,
    /// Anything that runs containers.
    Generic,
}

/// Tells from an image's documents what it is for: by the label that tierce writes, by a base of
/// AWS's, or by what it starts.
pub fn purpose_of(image: &Image) -> Purpose {
    let config = image.config();
    match config.labels.get(TARGET_LABEL).map(String::as_str) {
        Some("lambda") => return Purpose::Lambda,
        Some("generic") => return Purpose::Generic,
        _ => {}
    }
    let starts = || config.entrypoint.iter().chain(&config.cmd);
    let names_client = starts().any(|word| {
        word == AWS_ENTRYPOINT || word.contains("awslambdaric") || word.contains("aws-lambda-ric")
    });
    let has_variable = config.env.iter().any(|pair| {
        pair.starts_with("LAMBDA_TASK_ROOT=") || pair.starts_with("LAMBDA_RUNTIME_DIR=")
    });
    if names_client || has_variable || named_base(image).is_some() {
        Purpose::Lambda
    } else {
        Purpose::Generic
    }
}

/// AWS's base that the image says it is built on.
pub fn named_base(image: &Image) -> Option<&'static AwsBase> {
    const BASE_NAME: &str = "org.opencontainers.image.base.name";
    let annotations = &image.manifest().annotations;
    let name = annotations
        .get(BASE_NAME)
        .or_else(|| image.config().labels.get(BASE_NAME))?;
    AwsBase::named(&name.parse::<Reference>().ok()?)
}

/// The C library of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Libc {
    Glibc,
    Musl,
}

/// An image with the facts of its layers.
#[derive(Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) image: &'a Image,
    /// The lowest layers, where they are not known.
    pub(crate) below: UnknownBase,
    /// The others, the lowest first.
    layers: &'a [&'a LayerFacts],
    pub(crate) tree: Tree<'a>,
    pub(crate) purpose: Purpose,
    /// The members of the config's own `config`, as written.
    pub(crate) settings: Value,
    /// AWS's base, where it is told by name or by what is in it.
    pub(crate) base: Option<&'static AwsBase>,
    /// The version of Python that runs the function, where that is known.
    pub(crate) python: Option<(u32, u32)>,
    pub(crate) libc: Option<Libc>,
    pub(crate) programs: Start,
    pub(crate) analysis: Analysis<'a>,
}

/// A program that runs when the function starts.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// What it is to the image, such as "the entrypoint".
    pub(crate) role: String,
    /// Where it really is.
    pub(crate) path: Vec<u8>,
}

/// How the function starts.
#[derive(Debug, Default)]
pub(crate) struct Start {
    /// The first word that is run.
    pub(crate) command: Option<String>,
    /// The file that it names, links unfollowed, when there is one.
    pub(crate) file: Option<Vec<u8>>,
    /// The programs that were found on the way: the entrypoint, its interpreter, the bootstrap.
    pub(crate) programs: Vec<Program>,
    /// What is to be run and is not there: by which role, as which words, and on behalf of which file.
    pub(crate) missing: Vec<(String, String, Option<Vec<u8>>)>,
    /// Whether AWS's entrypoint starts, and the bootstrap with it.
    pub(crate) is_aws: bool,
}

impl<'a> Subject<'a> {
    pub(crate) fn new(
        image: &'a Image,
        below: UnknownBase,
        layers: &'a [&'a LayerFacts],
        purpose: Purpose,
    ) -> Self {
        let config = image.config();
        let tree = Tree::of(below.layers, layers);
        let settings = config
            .to_json()
            .ok()
            .and_then(|mut json| json.get_mut("config").map(Value::take))
            .unwrap_or(Value::Null);
        let languages = languages(&tree);
        let base = below.name.or_else(|| named_base(image)).or_else(|| {
            languages
                .iter()
                .find_map(|(language, version)| AwsBase::of(language, version))
        });
        let in_tree = || {
            let mut found = languages
                .iter()
                .filter(|(language, _)| *language == "python");
            found.next().map(|(_, version)| version.as_str())
        };
        let by_name = below.name.filter(|base| base.language == "python");
        let told = by_name.map(|base| base.version).or_else(in_tree);
        let told = told
            .and_then(|version| version.split_once('.'))
            .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let python = below.python.map(|python| (3, python.minor)).or(told);
        let libc = libc_of(&tree, below);
        let programs = Start::find(config, &tree, below);
        let mut subject = Self {
            image,
            below,
            layers,
            tree,
            purpose,
            settings,
            base,
            python,
            libc,
            programs,
            analysis: Analysis::default(),
        };
        subject.analysis = analyse(&subject);
        subject
    }

    /// The layers whose facts are known, with their numbers.
    pub(crate) fn layers(&self) -> impl Iterator<Item = (usize, &'a LayerFacts)> {
        (self.below.layers..).zip(self.layers.iter().copied())
    }

    /// Whether there are layers of which nothing is known: what is not found may be there.
    pub(crate) fn is_partly_unknown(&self) -> bool {
        self.below.layers > 0
    }

    /// Whether the layers that are not known are those of this language's base of AWS's.
    pub(crate) fn is_on_base_for(&self, language: &str) -> bool {
        self.is_partly_unknown()
            && self
                .below
                .name
                .is_some_and(|base| base.language == language)
    }

    pub(crate) fn config(&self) -> &'a ImageConfig {
        self.image.config()
    }

    /// The processor that the image says it is for.
    pub(crate) fn architecture(&self) -> &'a str {
        &self.config().platform.architecture
    }

    pub(crate) fn variable(&self, name: &str) -> Option<&'a str> {
        variable(self.config(), name)
    }

    /// The directories that hold the function, as paths without a slash in front.
    pub(crate) fn function_directories(&self) -> BTreeSet<Vec<u8>> {
        let config = self.config();
        let mut directories = BTreeSet::new();
        let named = [
            Some(self.variable("LAMBDA_TASK_ROOT").unwrap_or(TASK_ROOT)),
            Some(LAYERS_ROOT),
            config.working_dir.as_deref(),
        ];
        for directory in named.into_iter().flatten() {
            if let Some(path) = self.tree.follow(directory.as_bytes())
                && !path.is_empty()
            {
                directories.insert(path);
            }
        }
        directories
    }
}

pub(crate) fn variable<'a>(config: &'a ImageConfig, name: &str) -> Option<&'a str> {
    config
        .env
        .iter()
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// The languages that AWS's bases have in their place for it.
fn languages(tree: &Tree<'_>) -> Vec<(&'static str, String)> {
    let directory = format!("{}/bin", LANGUAGE_ROOT.trim_start_matches('/'));
    let mut found = Vec::new();
    for (path, _) in tree.below(directory.as_bytes()) {
        let name = String::from_utf8_lossy(crate::facts::name_of(path)).into_owned();
        if let Some(version) = name.strip_prefix("python3.")
            && version.bytes().all(|byte| byte.is_ascii_digit())
        {
            found.push(("python", format!("3.{version}")));
        }
    }
    found
}

pub(crate) fn libc_of(tree: &Tree<'_>, below: UnknownBase) -> Option<Libc> {
    let mut found = match (below.layers, below.libc, below.name) {
        (0, ..) => (false, false),
        (_, Some(CLibrary::Musl), _) => (false, true),
        // All of AWS's bases have glibc.
        (_, Some(CLibrary::Glibc(_)), _) | (_, None, Some(_)) => (true, false),
        (_, None, None) => return None,
    };
    for (path, node) in tree.all() {
        if node.entry.kind == EntryKind::Directory {
            continue;
        }
        let name = crate::facts::name_of(path);
        found.0 |= name == b"libc.so.6" || name.starts_with(b"ld-linux");
        found.1 |= name.starts_with(b"ld-musl-");
    }
    match found {
        (true, false) => Some(Libc::Glibc),
        (false, true) => Some(Libc::Musl),
        _ => None,
    }
}

/// The ELF facts of a node.
pub(crate) fn elf_of(node: Node<'_>) -> Option<&ElfFacts> {
    match &node.entry.content {
        Some(ContentFacts::Elf(elf)) => Some(elf),
        _ => None,
    }
}

impl Start {
    /// Finds what is run when the image starts, as far as it can be told without running it.
    fn find(config: &ImageConfig, tree: &Tree<'_>, below: UnknownBase) -> Self {
        let mut start = Self::default();
        let Some(command) = config.entrypoint.first().or_else(|| config.cmd.first()) else {
            return start;
        };
        start.command = Some(command.clone());
        if config.platform.os != "linux" {
            // Paths mean something else there.
            return start;
        }
        let finder = Finder {
            config,
            tree,
            is_partly_unknown: below.layers > 0,
        };
        let file = finder.look_up(command);
        let entrypoint = file.as_deref();
        start.is_aws = match entrypoint {
            Some(file) => tree
                .follow(file)
                .is_some_and(|real| real == AWS_ENTRYPOINT.as_bytes()[1..]),
            // It is in the layers that are not known.
            None => below.layers > 0 && below.name.is_some() && command == AWS_ENTRYPOINT,
        };
        match &file {
            Some(file) => finder.run("the entrypoint", file, &mut start),
            None => finder.miss("the entrypoint", command, None, &mut start),
        }
        start.file = file;
        if !start.is_aws {
            return start;
        }
        // What AWS's entrypoint runs, and after it what AWS's emulator looks for.
        for place in [
            "var/runtime/bootstrap",
            "var/task/bootstrap",
            "opt/bootstrap",
        ] {
            if tree.find(place.as_bytes()).is_some() {
                finder.run("the bootstrap", place.as_bytes(), &mut start);
                break;
            }
        }
        start
    }
}

/// Finds programs as the system does.
struct Finder<'a> {
    config: &'a ImageConfig,
    tree: &'a Tree<'a>,
    /// Whether there may be more than the tree has.
    is_partly_unknown: bool,
}

impl Finder<'_> {
    /// Notes something that is not there, unless it may be where nobody has looked.
    fn miss(&self, role: &str, words: &str, on_behalf: Option<Vec<u8>>, start: &mut Start) {
        if !self.is_partly_unknown {
            start
                .missing
                .push((role.to_owned(), words.to_owned(), on_behalf));
        }
    }

    /// Notes the program at `path` and whatever interpreters it needs.
    fn run(&self, role: &str, path: &[u8], start: &mut Start) {
        /// As many interpreters of interpreters as Linux starts.
        const MOST: usize = 4;
        let tree = self.tree;
        let (mut role, mut next) = (role.to_owned(), path.to_owned());
        for _ in 0..MOST {
            let Some((path, node)) = tree.find(&next) else {
                return;
            };
            let known = start.programs.iter().any(|program| program.path == path);
            if known {
                return;
            }
            start.programs.push(Program {
                role: role.clone(),
                path: path.clone(),
            });
            let interpreter = match &node.entry.content {
                Some(ContentFacts::Script(words)) => words,
                Some(ContentFacts::Elf(elf)) => {
                    // The kernel starts it; it is looked at with the other libraries.
                    if let Some(loader) = &elf.interpreter
                        && tree.find(loader.as_bytes()).is_none()
                    {
                        self.miss(&role, loader, Some(path), start);
                    }
                    return;
                }
                _ => return,
            };
            let Some(interpreter_path) = interpreter.first() else {
                return;
            };
            let place = if interpreter_path.starts_with('/') {
                interpreter_path.clone()
            } else {
                let work = self.config.working_dir.as_deref().unwrap_or("/");
                format!("{work}/{interpreter_path}")
            };
            if tree.find(place.as_bytes()).is_none() {
                return self.miss(&role, interpreter_path, Some(path), start);
            }
            let through_env = interpreter_path
                .ends_with("/env")
                .then(|| interpreter.get(1))
                .flatten()
                .and_then(|argument| env_command(argument));
            match through_env {
                None => next = place.into_bytes(),
                Some(command) => match self.look_up(command) {
                    Some(found) => next = found,
                    None => return self.miss(&role, command, Some(path), start),
                },
            }
            role = format!("the interpreter of {role}");
        }
    }

    /// The file that a command names, by PATH where it has no slash; links unfollowed at its end.
    fn look_up(&self, command: &str) -> Option<Vec<u8>> {
        let (config, tree) = (self.config, self.tree);
        let is_program = |path: &[u8]| {
            let (found, node) = tree.find(path)?;
            let kind_fits = node.entry.kind != EntryKind::Directory && !tree.is_directory(&found);
            kind_fits.then(|| {
                let parent = crate::facts::parent_of(path).unwrap_or_default();
                let parent = tree.follow(parent).unwrap_or_default();
                crate::tree::join(&parent, crate::facts::name_of(path))
            })
        };
        if command.starts_with('/') {
            return is_program(command.as_bytes());
        }
        if command.contains('/') {
            let work = config.working_dir.as_deref().unwrap_or("/");
            return is_program(format!("{work}/{command}").as_bytes());
        }
        if self.is_partly_unknown {
            // An earlier directory of PATH may have another one.
            return None;
        }
        let path = variable(config, "PATH")
            .unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        path.split(':')
            .find_map(|directory| is_program(format!("{directory}/{command}").as_bytes()))
    }
}

/// The command in the argument of `env`, `None` when it has options that say more.
fn env_command(argument: &str) -> Option<&str> {
    let argument = argument.strip_prefix("-S ").unwrap_or(argument);
    let command = argument.split_whitespace().next()?;
    (!command.starts_with('-') && !command.contains('=')).then_some(command)
}
