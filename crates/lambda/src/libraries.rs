//! Which libraries programs get, found as the loader finds them, inside the image alone.
//!
//! See `ld.so(8)`. What is judged: the programs that run when the function starts, and all programs
//! and libraries among the function's own files. What a base has beside that is taken on trust.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::base_facts::CLibrary;
use crate::bases::AwsBase;
use crate::elf::ElfFacts;
use crate::facts::{ContentFacts, EntryKind, LayerFacts, name_of, parent_of};
use crate::subject::{Libc, Subject, elf_of};
use crate::tree::{Node, Tree, join};
use crate::version::GlibcVersion;

/// What was found out about programs and libraries.
#[derive(Debug, Default)]
pub(crate) struct Analysis<'a> {
    /// What the loader would trip over.
    pub(crate) problems: Vec<LoadProblem>,
    /// Programs and libraries among the function's files that do not fit the image.
    pub(crate) strangers: Vec<Stranger<'a>>,
}

/// Why a file is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    /// It runs when the function starts.
    Start,
    /// The language imports it by its name.
    Module,
    /// It lies there, and something may load or run it.
    Other,
}

/// Something that ends the loading of a file.
#[derive(Debug)]
pub(crate) struct LoadProblem {
    pub(crate) reason: Reason,
    /// The file that is loaded, for itself or by those that need it, when it happens.
    root: Vec<u8>,
    /// The file that needs what is not there.
    pub(crate) path: Vec<u8>,
    pub(crate) layer: usize,
    pub(crate) kind: LoadProblemKind,
}

#[derive(Debug)]
pub(crate) enum LoadProblemKind {
    /// No such library anywhere.
    Missing { library: String },
    /// There is one, but not where it is looked for.
    OffPath { library: String, found: Vec<u8> },
    /// There is one, for another processor.
    OtherMachine {
        library: String,
        found: Vec<u8>,
        architecture: &'static str,
    },
    /// The C library is too old.
    Glibc {
        needed: GlibcVersion,
        version: String,
        symbol: Option<String>,
        library: String,
        offered: GlibcVersion,
        /// Where the offered version stands: a path, or a base of AWS's.
        offered_by: String,
    },
    /// Another library is too old.
    Version {
        found: Vec<u8>,
        version: String,
        symbol: Option<String>,
    },
}

/// A program or library that the image cannot run.
#[derive(Debug)]
pub(crate) struct Stranger<'a> {
    pub(crate) path: Vec<u8>,
    pub(crate) node: Node<'a>,
    /// What it is for, in words.
    pub(crate) made_for: String,
    /// Whether it is imported by its name, or belongs to a package for Node.
    pub(crate) is_module: bool,
    /// The file that is there for this image in its place.
    pub(crate) sibling: Option<Vec<u8>>,
    /// Whether it is of a kind that Linux never loads.
    pub(crate) is_inert: bool,
}

/// Looks at all of it once.
pub(crate) fn analyse<'a>(subject: &Subject<'a>) -> Analysis<'a> {
    let mut analysis = Analysis::default();
    let mut loader = Loader::new(subject);
    for program in &subject.programs.programs {
        if let Some(node) = subject.tree.at(&program.path) {
            let names = loader.load(&program.path, node, Reason::Start, &mut analysis.problems);
            loader.started.extend(names);
        }
    }
    loader.take_rpaths_of_programs();
    let functions = subject.function_directories();
    let ours: Vec<(&[u8], Node<'a>)> = subject
        .tree
        .all()
        .filter(|(path, _)| is_function_file(path, &functions))
        .collect();
    let target = Target {
        architecture: subject.architecture(),
        libc: subject.libc,
    };
    let index = SiblingIndex::of(&ours, target);
    for &(path, node) in &ours {
        if let Some(stranger) = stranger(path, node, target, &index) {
            analysis.strangers.push(stranger);
        }
    }
    let strange: BTreeSet<&[u8]> = analysis
        .strangers
        .iter()
        .map(|it| it.path.as_slice())
        .collect();
    for reason in [Reason::Module, Reason::Other] {
        for &(path, node) in &ours {
            let is_right = elf_of(node).is_some_and(|elf| elf.is_loadable);
            let is_module = is_sure_to_be_imported(path) && !index.has_variants(path);
            if is_right && is_module == (reason == Reason::Module) && !strange.contains(path) {
                loader.load(path, node, reason, &mut analysis.problems);
            }
        }
    }
    excuse_parts(&ours, &functions, &loader.broken, &mut analysis.problems);
    analysis
}

/// Modules of packages that are good without them are no fault: where another module of the same
/// directory can be loaded, one that cannot is taken for a part that is tried and given up, as
/// those of numba for one of three libraries of threads. What stands by itself is no part.
fn excuse_parts(
    ours: &[(&[u8], Node<'_>)],
    functions: &BTreeSet<Vec<u8>>,
    broken: &BTreeSet<Vec<u8>>,
    problems: &mut [LoadProblem],
) {
    let mut not_packages: BTreeSet<&[u8]> = functions.iter().map(Vec::as_slice).collect();
    let mut good: BTreeSet<&[u8]> = BTreeSet::new();
    for &(path, node) in ours {
        let directory = parent_of(path).unwrap_or_default();
        if path.ends_with(b".dist-info") || path.ends_with(b".egg-info") {
            not_packages.insert(directory);
        }
        let is_module = elf_of(node).is_some() && is_sure_to_be_imported(path);
        if is_module && !path.ends_with(b".node") && !broken.contains(path) {
            good.insert(directory);
        }
    }
    for problem in problems {
        let directory = parent_of(&problem.root).unwrap_or_default();
        let is_package = !not_packages.contains(directory)
            && !matches!(name_of(directory), b"site-packages" | b"dist-packages");
        if problem.reason == Reason::Module
            && matches!(problem.kind, LoadProblemKind::Missing { .. })
            && !problem.root.ends_with(b".node")
            && is_package
            && good.contains(directory)
        {
            problem.reason = Reason::Other;
        }
    }
}

/// Whether a path belongs to the function, or to packages of its language.
fn is_function_file(path: &[u8], directories: &BTreeSet<Vec<u8>>) -> bool {
    let in_directory = |directory: &Vec<u8>| {
        path.strip_prefix(directory.as_slice())
            .is_some_and(|rest| rest.starts_with(b"/"))
    };
    directories.iter().any(in_directory)
        || path.split(|&byte| byte == b'/').any(|component| {
            matches!(
                component,
                b"site-packages" | b"dist-packages" | b"node_modules"
            )
        })
}

/// Whether Python imports the file by its name: a module with a tag, or one without that does not
/// look like a library.
fn is_python_module(path: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name_of(path));
    let Some(stem) = name.strip_suffix(".so") else {
        return false;
    };
    let tag = stem.rsplit_once('.').map_or("", |(_, tag)| tag);
    tag == "abi3" || tag.starts_with("cpython-") || !stem.starts_with("lib")
}

/// Whether a module whose library is missing is a fault, and not a part that is left out on purpose.
///
/// Modules without a tag are often variants of which one is tried after the other, as those of
/// torchaudio for the versions of `FFmpeg`. Python's own are parts of it that not every image can use:
/// official images have `_tkinter` and no Tk.
fn is_sure_to_be_imported(path: &[u8]) -> bool {
    let name = name_of(path);
    let has_tag = name.ends_with(b".abi3.so")
        || name
            .windows(b".cpython-".len())
            .any(|window| window == b".cpython-");
    let is_of_python = path
        .split(|&byte| byte == b'/')
        .any(|component| component == b"lib-dynload");
    name.ends_with(b".node") || (is_python_module(path) && has_tag && !is_of_python)
}

/// Whether the file's own name says for which machine it is.
fn names_machine(path: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name_of(path)).to_lowercase();
    let name = name.replace("x86_64", "amd64");
    !name.contains(".cpython-") && words_of(&name).any(|word| MACHINES.contains(&word))
}

const MACHINES: [&str; 28] = [
    "amd64",
    "x64",
    "x86",
    "i386",
    "i486",
    "i586",
    "i686",
    "ia32",
    "386",
    "x32",
    "aarch64",
    "arm64",
    "armv8",
    "armv7",
    "armv7l",
    "armv7a",
    "armv6",
    "armv6l",
    "armhf",
    "arm",
    "ppc64",
    "ppc64le",
    "s390x",
    "riscv64",
    "loong64",
    "mips64el",
    "universal2",
    "universal",
];
const SYSTEMS: [&str; 24] = [
    "linux",
    "darwin",
    "macos",
    "macosx",
    "osx",
    "win",
    "win32",
    "win64",
    "windows",
    "freebsd",
    "openbsd",
    "netbsd",
    "sunos",
    "android",
    "aix",
    "musl",
    "gnu",
    "glibc",
    "gnueabihf",
    "musleabihf",
    "linuxmusl",
    "msvc",
    "debian",
    "rhel",
];

fn words_of(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
}

/// Where a file would be if its path did not say for which machine it is.
fn sibling_key(path: &[u8]) -> String {
    let path = String::from_utf8_lossy(path).to_lowercase();
    let path = path.replace("x86_64", "amd64").replace("x86-64", "amd64");
    // Prisma names its engines after a system's libraries and OpenSSL's version.
    let path = path
        .replace(".so.node", ".node")
        .replace(".dylib.node", ".node");
    let mut is_version = false;
    let mut words = Vec::new();
    for word in path.split('/').flat_map(|part| words_of(part).chain(["/"])) {
        let is_number = word == "x" || word.bytes().all(|byte| byte.is_ascii_digit());
        is_version = word == "openssl" || (is_version && is_number);
        if !is_version && !MACHINES.contains(&word) && !SYSTEMS.contains(&word) {
            words.push(word);
        }
    }
    // A directory that only says for which machine it is goes away with its slash.
    let mut key = String::new();
    for word in words {
        if word == "/" && key.ends_with('/') {
            continue;
        }
        key.push_str(word);
        key.push(if word == "/" { '/' } else { ' ' });
    }
    key.replace(" //", "/").replace("//", "/")
}

/// The package that keeps prebuilt files for many machines.
fn prebuilds_of(path: &[u8]) -> Option<Vec<u8>> {
    let path = String::from_utf8_lossy(path);
    let at = ["/prebuilds/", "/prebuilt/", "/prebuild/"]
        .iter()
        .find_map(|directory| path.find(directory))?;
    Some(path.as_bytes()[..at].to_owned())
}

/// The files that fit the image, by what they would be called without a machine in the name.
struct SiblingIndex {
    by_key: BTreeMap<String, Vec<Vec<u8>>>,
    all: BTreeSet<Vec<u8>>,
}

impl SiblingIndex {
    fn of(ours: &[(&[u8], Node<'_>)], target: Target<'_>) -> Self {
        let mut index = Self {
            by_key: BTreeMap::new(),
            all: BTreeSet::new(),
        };
        for (path, node) in ours {
            if elf_of(*node).is_some_and(|elf| misfit(elf, target).is_none()) {
                let same = index.by_key.entry(sibling_key(path)).or_default();
                same.push(path.to_vec());
                index.all.insert(path.to_vec());
            }
        }
        index
    }

    fn sibling(&self, path: &[u8]) -> Option<Vec<u8>> {
        let same = self.by_key.get(&sibling_key(path));
        if let Some(found) = same.and_then(|same| same.first()) {
            return Some(found.clone());
        }
        let package = [prebuilds_of(path)?, b"/".to_vec()].concat();
        let mut within = self.all.range(package.clone()..);
        within
            .next()
            .filter(|found| found.starts_with(&package))
            .cloned()
    }
}

impl SiblingIndex {
    /// Whether there is more than one file for the same purpose, of which one will do.
    fn has_variants(&self, path: &[u8]) -> bool {
        let same = self.by_key.get(&sibling_key(path));
        path.ends_with(b".node") && same.is_some_and(|same| same.len() > 1)
    }
}

/// What programs and libraries must be made for.
#[derive(Clone, Copy)]
struct Target<'a> {
    architecture: &'a str,
    libc: Option<Libc>,
}

/// What a program or library is for, when that is not the image.
fn misfit(elf: &ElfFacts, target: Target<'_>) -> Option<String> {
    let architecture = elf.architecture();
    if architecture != target.architecture && is_known(target.architecture) {
        return Some(architecture.to_owned());
    }
    if let Some(system) = &elf.system {
        return Some(system.clone());
    }
    match (elf.is_for_musl(), target.libc) {
        (Some(true), Some(Libc::Glibc)) => Some("musl, and the image has glibc".to_owned()),
        (Some(false), Some(Libc::Musl)) => Some("glibc, and the image has musl".to_owned()),
        _ => None,
    }
}

/// Whether an architecture is one that Lambda has.
fn is_known(architecture: &str) -> bool {
    matches!(architecture, "amd64" | "arm64")
}

fn stranger<'a>(
    path: &[u8],
    node: Node<'a>,
    target: Target<'_>,
    index: &SiblingIndex,
) -> Option<Stranger<'a>> {
    // Whoever wants fsevents asks for macOS first: it is there when packages came from such a machine.
    let is_for_mac_alone = path
        .split(|&byte| byte == b'/')
        .any(|component| component == b"fsevents");
    let is_linked = (path.ends_with(b".node") || path.ends_with(b".so")) && !is_for_mac_alone;
    let (made_for, is_inert) = match &node.entry.content {
        Some(ContentFacts::Elf(elf)) if elf.is_for_coprocessor() => return None,
        Some(ContentFacts::Elf(elf)) if elf.is_loadable => (misfit(elf, target)?, false),
        Some(ContentFacts::Foreign(system)) => (system.clone(), !is_linked),
        _ => return None,
    };
    let in_node_package = path
        .split(|&byte| byte == b'/')
        .any(|component| component == b"node_modules");
    let is_module = path.ends_with(b".node")
        || (is_python_module(path) && !names_machine(path))
        || (in_node_package && !is_inert);
    Some(Stranger {
        path: path.to_owned(),
        node,
        made_for,
        is_module,
        sibling: index.sibling(path),
        is_inert,
    })
}

impl Stranger<'_> {
    /// Whether the image can do without it: the file for this machine is there too, or Linux never
    /// loads its kind.
    pub(crate) fn is_dispensable(&self) -> bool {
        self.sibling.is_some() || self.is_inert
    }
}

/// The paths of a layer's files that the rule `foreign-prebuild` finds, were the layer the function's
/// own in an image for `architecture`, with musl or not where that is known. Of a package for Node
/// that is for other platforms as a whole the path is the package's.
pub fn foreign_prebuilds(
    layer: &LayerFacts,
    architecture: &str,
    has_musl: Option<bool>,
) -> BTreeSet<Vec<u8>> {
    let libc = has_musl.map(|musl| if musl { Libc::Musl } else { Libc::Glibc });
    let target = Target { architecture, libc };
    let tree = Tree::of(0, &[layer]);
    let ours: Vec<(&[u8], Node<'_>)> = tree.all().collect();
    let index = SiblingIndex::of(&ours, target);
    let mut found = BTreeSet::new();
    for &(path, node) in &ours {
        let stranger = stranger(path, node, target, &index);
        if stranger.is_some_and(|stranger| stranger.is_dispensable()) {
            let package = platform_package(path).filter(|package| {
                let mut below = tree.below(package);
                !below.any(|(path, _)| index.all.contains(path))
            });
            found.insert(package.unwrap_or(path).to_owned());
        }
    }
    found
}

/// The package for Node that a file is in, when its name says that it is for one platform, such as
/// `@img/sharp-linux-arm64`.
fn platform_package(path: &[u8]) -> Option<&[u8]> {
    const MODULES: &[u8] = b"node_modules/";
    let starts = path
        .windows(MODULES.len())
        .rposition(|part| part == MODULES)?;
    let name = &path[starts + MODULES.len()..];
    let components = if name.starts_with(b"@") { 2 } else { 1 };
    let end = name
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'/')
        .nth(components - 1)
        .map(|(at, _)| at)?;
    let name = String::from_utf8_lossy(&name[..end]).to_lowercase();
    let says = |known: &[&str]| words_of(&name).any(|word| known.contains(&word));
    (says(&MACHINES) && says(&SYSTEMS)).then(|| &path[..starts + MODULES.len() + end])
}

/// The loader of the image.
struct Loader<'a, 'b> {
    subject: &'b Subject<'a>,
    library_path: Vec<Vec<u8>>,
    defaults: Vec<Vec<u8>>,
    /// Every file by its name, to say where one is that was looked for elsewhere.
    by_name: BTreeMap<&'b [u8], Vec<&'b [u8]>>,
    /// What each file got that was loaded before.
    known: BTreeMap<Vec<u8>, Vec<Loaded<'a>>>,
    /// The files that cannot be loaded, for want of a library of their own or of others.
    broken: BTreeSet<Vec<u8>>,
    /// The names of libraries that are in memory when the function is.
    started: BTreeSet<String>,
    /// The rpaths of the programs that start: they are for all that is loaded later too.
    rpaths: Vec<Vec<u8>>,
    /// Paths that may still be tried.
    tries_left: Cell<usize>,
}

/// A library that a file needs, and what it got.
#[derive(Debug, Clone)]
struct Loaded<'a> {
    library: String,
    path: Vec<u8>,
    node: Node<'a>,
}

/// As many paths as are tried for libraries. The largest images come to some hundred thousand; what
/// is left then was made to be slow, and goes unjudged.
const MOST_TRIES: usize = 5_000_000;

/// A file on its way into memory, with the rpaths of those that asked for it.
struct Loading<'a> {
    path: Vec<u8>,
    node: Node<'a>,
    inherited: Vec<Vec<u8>>,
}

enum Search<'a> {
    Found(Vec<u8>, Node<'a>),
    OtherMachine(Vec<u8>, &'static str),
    Missing,
}

impl<'a, 'b> Loader<'a, 'b> {
    fn new(subject: &'b Subject<'a>) -> Self {
        let tree = &subject.tree;
        let library_path = library_path(subject.variable("LD_LIBRARY_PATH"));
        let library_path = existing(subject, library_path.iter().map(Vec::as_slice));
        let defaults = default_directories(tree, subject.architecture(), subject.libc);
        let defaults = existing(subject, defaults.iter().map(Vec::as_slice));
        let mut by_name: BTreeMap<&[u8], Vec<&[u8]>> = BTreeMap::new();
        for (path, node) in tree.all() {
            if node.entry.kind != EntryKind::Directory {
                by_name.entry(name_of(path)).or_default().push(path);
            }
        }
        Self {
            subject,
            library_path,
            defaults,
            by_name,
            known: BTreeMap::new(),
            broken: BTreeSet::new(),
            started: BTreeSet::new(),
            rpaths: Vec::new(),
            tries_left: Cell::new(MOST_TRIES),
        }
    }

    /// The loader looks for what is loaded later by the rpath of the program too (`ld.so(8)`).
    fn take_rpaths_of_programs(&mut self) {
        for program in &self.subject.programs.programs {
            if let Some(node) = self.subject.tree.at(&program.path)
                && let Some(elf) = elf_of(node)
                && elf.runpath.is_none()
            {
                let rpath = self.directories(elf.rpath.as_deref(), &program.path);
                self.rpaths.extend(rpath);
            }
        }
    }

    /// Loads a file with all that it needs; of what was loaded before nothing is said again. Gives
    /// the names under which libraries are in memory afterwards.
    fn load(
        &mut self,
        path: &[u8],
        node: Node<'a>,
        reason: Reason,
        problems: &mut Vec<LoadProblem>,
    ) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let mut queue = VecDeque::from([Loading {
            path: path.to_owned(),
            node,
            inherited: self.rpaths.clone(),
        }]);
        while let Some(loading) = queue.pop_front() {
            let Some(elf) = elf_of(loading.node) else {
                continue;
            };
            if self.tries_left.get() == 0 {
                break;
            }
            names.extend(elf.soname.clone());
            if self.broken.contains(&loading.path) {
                self.broken.insert(path.to_owned());
            }
            if let Some(known) = self.known.get(&loading.path) {
                for loaded in known {
                    if names.insert(loaded.library.clone()) {
                        queue.push_back(Loading {
                            path: loaded.path.clone(),
                            node: loaded.node,
                            inherited: Vec::new(),
                        });
                    }
                }
                continue;
            }
            // musl knows but one kind; for glibc a runpath puts the rpath out of force, that of the
            // same file and of those that asked for it.
            let is_musl = self.subject.libc == Some(Libc::Musl);
            let rpath = match (&elf.runpath, is_musl) {
                (None, _) => elf.rpath.as_deref(),
                (Some(runpath), true) => Some(runpath.as_str()),
                (Some(_), false) => None,
            };
            let rpath = self.directories(rpath, &loading.path);
            let runpath = self.directories(elf.runpath.as_deref(), &loading.path);
            let mut inherited = rpath;
            for directory in &loading.inherited {
                if !inherited.contains(directory) {
                    inherited.push(directory.clone());
                }
            }
            let first = if elf.runpath.is_some() && !is_musl {
                &[][..]
            } else {
                &inherited
            };
            let mut found = Vec::new();
            for library in &elf.needed {
                let kind = match self.search(library, elf, first, &runpath) {
                    Search::Found(path, node) => {
                        if names.insert(library.clone()) {
                            queue.push_back(Loading {
                                path: path.clone(),
                                node,
                                inherited: inherited.clone(),
                            });
                        }
                        let library = library.clone();
                        found.push(Loaded {
                            library,
                            path,
                            node,
                        });
                        continue;
                    }
                    _ if names.contains(library) || self.started.contains(library) => continue,
                    // It may be in the layers that are not known.
                    _ if self.subject.is_partly_unknown() => continue,
                    Search::OtherMachine(path, architecture) => LoadProblemKind::OtherMachine {
                        library: library.clone(),
                        found: path,
                        architecture,
                    },
                    Search::Missing if self.is_presumed(library) => continue,
                    Search::Missing => self.missing(library, elf),
                };
                if matches!(kind, LoadProblemKind::Missing { .. }) {
                    self.broken.insert(loading.path.clone());
                    self.broken.insert(path.to_owned());
                }
                problems.push(LoadProblem {
                    reason,
                    root: path.to_owned(),
                    path: loading.path.clone(),
                    layer: loading.node.layer,
                    kind,
                });
            }
            let versions = self.versions(elf, &found);
            problems.extend(versions.into_iter().map(|kind| LoadProblem {
                reason,
                root: path.to_owned(),
                path: loading.path.clone(),
                layer: loading.node.layer,
                kind,
            }));
            self.known.insert(loading.path, found);
        }
        names
    }

    /// Whether a library is there though its file is not: one that AWS's base is known to have, or
    /// one that musl has within itself, by whichever name.
    fn is_presumed(&self, library: &str) -> bool {
        /// `reserved` in `load_library` of musl's `ldso/dynlink.c`.
        const IN_MUSL: [&str; 7] = ["c", "pthread", "rt", "m", "dl", "util", "xnet"];
        if self.subject.libc == Some(Libc::Musl) {
            let stem = library
                .strip_prefix("lib")
                .and_then(|rest| rest.split_once('.'));
            return stem.is_some_and(|(stem, _)| IN_MUSL.contains(&stem));
        }
        let is_known = self.subject.libc.is_some() && !self.subject.is_partly_unknown();
        let below = self.subject.below.libc;
        let has_base = self.subject.base.is_some() || matches!(below, Some(CLibrary::Glibc(_)));
        !is_known && has_base && AwsBase::offers(library)
    }

    fn missing(&self, library: &str, elf: &ElfFacts) -> LoadProblemKind {
        let elsewhere = self.by_name.get(library.as_bytes()).into_iter().flatten();
        for path in elsewhere {
            let Some((found, node)) = self.subject.tree.find(path) else {
                continue;
            };
            if elf_of(node).is_some_and(|other| other.machine == elf.machine) {
                return LoadProblemKind::OffPath {
                    library: library.to_owned(),
                    found,
                };
            }
        }
        LoadProblemKind::Missing {
            library: library.to_owned(),
        }
    }

    fn search(
        &self,
        library: &str,
        elf: &ElfFacts,
        first: &[Vec<u8>],
        last: &[Vec<u8>],
    ) -> Search<'a> {
        if !self.by_name.contains_key(name_of(library.as_bytes())) {
            // Nor does any link lead to one: it would have the name.
            return Search::Missing;
        }
        let tree = &self.subject.tree;
        let mut other = None;
        let mut judge = |path: Vec<u8>| {
            self.tries_left.set(self.tries_left.get().saturating_sub(1));
            let (_, node) = tree.find(&path)?;
            let found = elf_of(node)?;
            if (found.machine, found.is_64_bit) == (elf.machine, elf.is_64_bit) {
                return Some(Search::Found(path, node));
            }
            other.get_or_insert((path, found.architecture()));
            None
        };
        if library.contains('/') {
            if let Some(found) = judge(library.as_bytes().to_owned()) {
                return found;
            }
        } else {
            let directories = [first, &self.library_path, last, &self.defaults];
            for directory in directories.into_iter().flatten() {
                if let Some(found) = judge(join(directory, library.as_bytes())) {
                    return found;
                }
            }
            // Each may have folders for newer processors; Lambda's have what these ask for.
            for level in ["x86-64-v3", "x86-64-v2"] {
                for directory in directories.into_iter().flatten() {
                    let directory = join(directory, format!("glibc-hwcaps/{level}").as_bytes());
                    if tree.is_directory(&directory)
                        && let Some(found) = judge(join(&directory, library.as_bytes()))
                    {
                        return found;
                    }
                }
            }
        }
        match other {
            Some((path, architecture)) => Search::OtherMachine(path, architecture),
            None => Search::Missing,
        }
    }

    /// The directories of an rpath or runpath.
    fn directories(&self, path: Option<&str>, file: &[u8]) -> Vec<Vec<u8>> {
        let Some(path) = path else { return Vec::new() };
        let own =
            |path: &[u8]| String::from_utf8_lossy(parent_of(path).unwrap_or_default()).into_owned();
        // The loader takes the path that it opened; what a link of it leads to is tried as well.
        let real = self.subject.tree.follow(file).unwrap_or_default();
        let expanded = [own(file), own(&real)].map(|origin| {
            let origin = format!("/{origin}");
            expand_search_path(path, &origin, self.subject.architecture())
        });
        let [written, followed] = &expanded;
        let mut directories = Vec::new();
        for parts in written.iter().zip(followed) {
            for part in [parts.0, parts.1] {
                if let Some(directory) = self.subject.tree.follow(part.as_bytes())
                    && !directories.contains(&directory)
                    && self.subject.tree.is_directory(&directory)
                {
                    directories.push(directory);
                }
            }
        }
        directories
    }

    /// The symbol versions that are needed and not there.
    fn versions(&self, elf: &ElfFacts, found: &[Loaded<'a>]) -> Vec<LoadProblemKind> {
        let mut problems = Vec::new();
        if self.subject.libc == Some(Libc::Musl) {
            // Its loader does not look at versions.
            return problems;
        }
        let mut worst: Option<(GlibcVersion, LoadProblemKind)> = None;
        for need in &elf.needs {
            let library = found
                .iter()
                .find(|loaded| loaded.library == need.library)
                .map(|loaded| (&loaded.path, loaded.node));
            if library.is_some() && self.subject.is_partly_unknown() {
                // The layers that are not known may have another one, which comes first.
                continue;
            }
            let offered = match library {
                Some((_, node)) => elf_of(node).map(|elf| elf.defines.as_slice()),
                None => None,
            };
            let glibc = GlibcVersion::of_symbol_version(&need.version);
            match (offered, glibc, library) {
                (Some(offered), _, _) if offered.is_empty() || offered.contains(&need.version) => {}
                (Some(offered), Some(needed), Some((path, _))) => {
                    // A version that only another processor has is of no release.
                    let Some(newest) = newest(offered).filter(|newest| *newest < needed) else {
                        continue;
                    };
                    let offered_by =
                        format!("/{}", String::from_utf8_lossy(path).trim_start_matches('/'));
                    take_worst(
                        &mut worst,
                        needed,
                        glibc_problem(need, needed, newest, offered_by),
                    );
                }
                (Some(_), None, Some((path, _))) => problems.push(LoadProblemKind::Version {
                    found: path.clone(),
                    version: need.version.clone(),
                    symbol: need.symbol.clone(),
                }),
                (None, Some(needed), None) if self.is_presumed(&need.library) => {
                    let named = self.subject.base.map(|base| {
                        let AwsBase {
                            language, version, ..
                        } = base;
                        let name = format!("{} ({language} {version})", base.system.name());
                        (base.system.glibc(), name)
                    });
                    let (newest, offered_by) = match (self.subject.below.libc, named) {
                        (Some(CLibrary::Glibc(Some(said))), named) => match named {
                            Some((newest, name)) if newest == said => (said, name),
                            _ => (said, "the base".to_owned()),
                        },
                        (_, Some(named)) => named,
                        _ => continue,
                    };
                    if newest < needed {
                        take_worst(
                            &mut worst,
                            needed,
                            glibc_problem(need, needed, newest, offered_by),
                        );
                    }
                }
                _ => {}
            }
        }
        problems.extend(worst.map(|(_, problem)| problem));
        problems
    }
}

fn take_worst(
    worst: &mut Option<(GlibcVersion, LoadProblemKind)>,
    needed: GlibcVersion,
    problem: LoadProblemKind,
) {
    if worst.as_ref().is_none_or(|(before, _)| *before < needed) {
        *worst = Some((needed, problem));
    }
}

fn glibc_problem(
    need: &crate::elf::VersionNeed,
    needed: GlibcVersion,
    offered: GlibcVersion,
    offered_by: String,
) -> LoadProblemKind {
    LoadProblemKind::Glibc {
        needed,
        version: need.version.clone(),
        symbol: need.symbol.clone(),
        library: need.library.clone(),
        offered,
        offered_by,
    }
}

/// The directories of an rpath or runpath, for a file in the directory `origin`, with what the loader
/// puts in place of its words (`ld.so(8)`, "Dynamic string tokens").
pub fn expand_search_path(path: &str, origin: &str, architecture: &str) -> Vec<String> {
    let platform = match architecture {
        "arm64" => "aarch64",
        _ => "x86_64",
    };
    let expand = |part: &str| {
        part.replace("${ORIGIN}", "$ORIGIN")
            .replace("$ORIGIN", origin)
            .replace("${LIB}", "$LIB")
            .replace("$LIB", "lib64")
            .replace("${PLATFORM}", "$PLATFORM")
            .replace("$PLATFORM", platform)
    };
    let parts = path.split(':').filter(|part| !part.is_empty());
    parts.map(expand).collect()
}

/// The directories of `LD_LIBRARY_PATH`.
pub(crate) fn library_path(variable: Option<&str>) -> Vec<Vec<u8>> {
    variable
        .unwrap_or_default()
        .split([':', ';'])
        .filter(|directory| !directory.is_empty())
        .map(|directory| directory.as_bytes().to_owned())
        .collect()
}

/// Where the loader of an image looks when nobody says otherwise.
pub(crate) fn default_directories(
    tree: &Tree<'_>,
    architecture: &str,
    libc: Option<Libc>,
) -> Vec<Vec<u8>> {
    let multiarch = match architecture {
        "arm64" => "aarch64-linux-gnu",
        _ => "x86_64-linux-gnu",
    };
    let usual = [
        format!("/lib/{multiarch}"),
        format!("/usr/lib/{multiarch}"),
        "/lib64".to_owned(),
        "/usr/lib64".to_owned(),
        "/lib".to_owned(),
        "/usr/lib".to_owned(),
    ];
    match (libc, configured_for_musl(tree)) {
        (Some(Libc::Musl), Some(configured)) => configured,
        (Some(Libc::Musl), None) => ["/lib", "/usr/local/lib", "/usr/lib"]
            .map(|directory| directory.as_bytes().to_owned())
            .into(),
        _ => {
            let usual = usual.into_iter().map(String::into_bytes);
            configured(tree).into_iter().chain(usual).collect()
        }
    }
}

/// The newest release of glibc among symbol versions.
pub(crate) fn newest(versions: &[String]) -> Option<GlibcVersion> {
    versions
        .iter()
        .filter_map(|version| GlibcVersion::of_symbol_version(version))
        .max()
}

/// Those of `directories` that are there, by their real paths; what is relative begins at WORKDIR.
fn existing<'d>(
    subject: &Subject<'_>,
    directories: impl Iterator<Item = &'d [u8]>,
) -> Vec<Vec<u8>> {
    let work = subject.config().working_dir.as_deref().unwrap_or("/");
    let mut there = Vec::new();
    for directory in directories.filter(|directory| !directory.is_empty()) {
        let whole = if directory.starts_with(b"/") {
            directory.to_owned()
        } else {
            join(work.as_bytes(), directory)
        };
        if let Some(real) = subject.tree.follow(&whole)
            && subject.tree.is_directory(&real)
            && !there.contains(&real)
        {
            there.push(real);
        }
    }
    there
}

/// The directories of `/etc/ld-musl-ARCH.path`, which stands for all usual ones when it is there.
fn configured_for_musl(tree: &Tree<'_>) -> Option<Vec<Vec<u8>>> {
    let is_list = |path: &[u8]| name_of(path).starts_with(b"ld-musl-") && path.ends_with(b".path");
    let (_, node) = tree.below(b"etc").find(|(path, _)| is_list(path))?;
    let Some(ContentFacts::Text(text)) = &node.entry.content else {
        return None;
    };
    let directories = text
        .split([':', '\n'])
        .map(|line| line.trim().as_bytes().to_owned());
    Some(directories.collect())
}

/// The directories of `/etc/ld.so.conf` and what it includes.
fn configured(tree: &Tree<'_>) -> Vec<Vec<u8>> {
    let mut directories = Vec::new();
    let text = |path: &[u8]| match tree.find(path)?.1.entry.content.as_ref()? {
        ContentFacts::Text(text) => Some(text.clone()),
        _ => None,
    };
    let mut take = |text: String| {
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.starts_with('/') {
                directories.push(line.as_bytes().to_owned());
            }
        }
    };
    take(text(b"etc/ld.so.conf").unwrap_or_default());
    // The include of every distribution.
    for (path, _) in tree.below(b"etc/ld.so.conf.d") {
        if path.ends_with(b".conf") {
            take(text(path).unwrap_or_default());
        }
    }
    directories
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_for_several_machines_are_siblings() {
        for (one, other) in [
            (
                "n/@esbuild/linux-arm64/bin/esbuild",
                "n/@esbuild/linux-x64/bin/esbuild",
            ),
            (
                "n/@img/sharp-darwin-arm64/lib/sharp-darwin-arm64.node",
                "n/@img/sharp-linux-x64/lib/sharp-linux-x64.node",
            ),
            (
                "b/prebuilds/linux-arm64/b.node.napi.armv8.node",
                "b/prebuilds/linux-x64/b.node.napi.musl.node",
            ),
            (
                "p/_x.cpython-312-aarch64-linux-gnu.so",
                "p/_x.cpython-312-x86_64-linux-gnu.so",
            ),
            ("d/attach_linux_x86.so", "d/attach_linux_amd64.so"),
            (
                "c/libquery_engine-darwin-arm64.dylib.node",
                "c/libquery_engine-rhel-openssl-3.0.x.so.node",
            ),
            (
                "c/libquery_engine-linux-arm64-openssl-1.1.x.so.node",
                "c/libquery_engine-debian-openssl-3.0.x.so.node",
            ),
        ] {
            assert_eq!(sibling_key(one.as_bytes()), sibling_key(other.as_bytes()));
        }
        for (one, other) in [
            ("a/x.so", "b/x.so"),
            ("p/_x.cpython-312-darwin.so", "p/_y.cpython-312-darwin.so"),
        ] {
            assert_ne!(sibling_key(one.as_bytes()), sibling_key(other.as_bytes()));
        }
    }

    #[test]
    fn packages_for_one_platform_are_told_by_their_names() {
        for (path, package) in [
            (
                "t/node_modules/@img/sharp-linux-arm64/lib/s.node",
                Some("t/node_modules/@img/sharp-linux-arm64"),
            ),
            (
                "node_modules/a/node_modules/esbuild-windows-64x64/x64/esbuild.exe",
                None,
            ),
            (
                "node_modules/@esbuild/win32-x64/esbuild.exe",
                Some("node_modules/@esbuild/win32-x64"),
            ),
            ("node_modules/bcrypt/prebuilds/linux-x64/b.node", None),
            ("node_modules/linux-x64", None),
            ("a/linux-x64/b.so", None),
        ] {
            let found = platform_package(path.as_bytes());
            assert_eq!(found, package.map(str::as_bytes), "{path}");
        }
    }

    #[test]
    fn modules_are_told_from_libraries() {
        for (path, expected) in [
            ("a/_x.cpython-312-x86_64-linux-gnu.so", true),
            ("a/libx.abi3.so", true),
            ("a/_ssl.so", true),
            ("a/libtorch.so", false),
            ("a/libz.so.1", false),
        ] {
            assert_eq!(is_python_module(path.as_bytes()), expected, "{path}");
        }
        assert!(names_machine(b"d/attach_linux_amd64.so"));
        assert!(!names_machine(b"linux-arm64/bin/esbuild"));
    }
}
