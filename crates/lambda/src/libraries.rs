//! Which libraries programs get, found as the loader finds them, inside the image alone.
//!
//! See `ld.so(8)`. What is judged: the programs that run when the function starts, and all programs
//! and libraries among the function's own files. What a base has beside that is taken on trust.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::bases::GLIBC_LIBRARIES;
use crate::elf::ElfFacts;
use crate::facts::{ContentFacts, EntryKind, name_of, parent_of};
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
    let loader = Loader::new(subject);
    let mut visited = BTreeSet::new();
    let mut started = BTreeSet::new();
    for program in &subject.programs.programs {
        if let Some(node) = subject.tree.at(&program.path) {
            let nothing = BTreeSet::new();
            let names = loader.load(
                &program.path,
                node,
                Reason::Start,
                &nothing,
                &mut visited,
                &mut analysis.problems,
            );
            started.extend(names);
        }
    }
    let functions = subject.function_directories();
    let ours: Vec<(&[u8], Node<'a>)> = subject
        .tree
        .all()
        .filter(|(path, _)| is_function_file(path, &functions))
        .collect();
    let index = SiblingIndex::of(&ours, subject);
    for &(path, node) in &ours {
        if let Some(stranger) = stranger(path, node, subject, &index) {
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
            let is_module = is_python_module(path) || path.ends_with(b".node");
            if is_right && is_module == (reason == Reason::Module) && !strange.contains(path) {
                loader.load(
                    path,
                    node,
                    reason,
                    &started,
                    &mut visited,
                    &mut analysis.problems,
                );
            }
        }
    }
    analysis
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
const SYSTEMS: [&str; 22] = [
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
];

fn words_of(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
}

/// Where a file would be if its path did not say for which machine it is.
fn sibling_key(path: &[u8]) -> String {
    let path = String::from_utf8_lossy(path).to_lowercase();
    let path = path.replace("x86_64", "amd64").replace("x86-64", "amd64");
    let words: Vec<&str> = path
        .split('/')
        .map(|component| (component, words_of(component)))
        .flat_map(|(_, words)| words.chain(["/"]))
        .filter(|word| !MACHINES.contains(word) && !SYSTEMS.contains(word))
        .collect();
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
    by_key: BTreeMap<String, Vec<u8>>,
    all: BTreeSet<Vec<u8>>,
}

impl SiblingIndex {
    fn of(ours: &[(&[u8], Node<'_>)], subject: &Subject<'_>) -> Self {
        let mut index = Self {
            by_key: BTreeMap::new(),
            all: BTreeSet::new(),
        };
        for (path, node) in ours {
            if elf_of(*node).is_some_and(|elf| misfit(elf, subject).is_none()) {
                index.by_key.insert(sibling_key(path), path.to_vec());
                index.all.insert(path.to_vec());
            }
        }
        index
    }

    fn sibling(&self, path: &[u8]) -> Option<Vec<u8>> {
        if let Some(found) = self.by_key.get(&sibling_key(path)) {
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

/// What a program or library is for, when that is not the image.
fn misfit(elf: &ElfFacts, subject: &Subject<'_>) -> Option<String> {
    let architecture = elf.architecture();
    if architecture != subject.architecture() && is_known(subject.architecture()) {
        return Some(architecture.to_owned());
    }
    match (elf.is_for_musl(), subject.libc) {
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
    subject: &Subject<'a>,
    index: &SiblingIndex,
) -> Option<Stranger<'a>> {
    let is_linked = path.ends_with(b".node") || path.ends_with(b".so");
    let (made_for, is_inert) = match &node.entry.content {
        Some(ContentFacts::Elf(elf)) if elf.is_loadable => (misfit(elf, subject)?, false),
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

/// The loader of the image.
struct Loader<'a, 'b> {
    subject: &'b Subject<'a>,
    library_path: Vec<Vec<u8>>,
    defaults: Vec<Vec<u8>>,
    /// Every file by its name, to say where one is that was looked for elsewhere.
    by_name: BTreeMap<&'b [u8], Vec<&'b [u8]>>,
}

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
        let path = subject.variable("LD_LIBRARY_PATH").unwrap_or_default();
        let library_path = path
            .split([':', ';'])
            .filter(|directory| !directory.is_empty())
            .map(|directory| directory.as_bytes().to_owned())
            .collect();
        let mut defaults = configured(tree);
        let multiarch = match subject.architecture() {
            "arm64" => "aarch64-linux-gnu",
            _ => "x86_64-linux-gnu",
        };
        for directory in [
            format!("lib/{multiarch}"),
            format!("usr/lib/{multiarch}"),
            "lib64".to_owned(),
            "usr/lib64".to_owned(),
            "lib".to_owned(),
            "usr/lib".to_owned(),
        ] {
            defaults.push(directory.into_bytes());
        }
        if subject.libc == Some(Libc::Musl) {
            defaults.push(b"usr/local/lib".to_vec());
        }
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
        }
    }

    /// Loads a file with all that it needs; what was loaded before is not looked at again. Gives
    /// the names under which libraries are in memory afterwards.
    fn load(
        &self,
        path: &[u8],
        node: Node<'a>,
        reason: Reason,
        started: &BTreeSet<String>,
        visited: &mut BTreeSet<Vec<u8>>,
        problems: &mut Vec<LoadProblem>,
    ) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let mut queue = VecDeque::from([Loading {
            path: path.to_owned(),
            node,
            inherited: Vec::new(),
        }]);
        while let Some(loading) = queue.pop_front() {
            let Some(elf) = elf_of(loading.node) else {
                continue;
            };
            let fresh = visited.insert(loading.path.clone());
            if !fresh && reason != Reason::Start {
                continue;
            }
            names.extend(elf.soname.clone());
            let rpath = self.directories(elf.rpath.as_deref(), &loading);
            let runpath = self.directories(elf.runpath.as_deref(), &loading);
            let inherited = [rpath, loading.inherited.clone()].concat();
            let mut found = BTreeMap::new();
            for library in &elf.needed {
                let first = if elf.runpath.is_some() {
                    &[][..]
                } else {
                    &inherited
                };
                match self.search(library, elf, first, &runpath) {
                    Search::Found(path, node) => {
                        found.insert(library.as_str(), (path.clone(), node));
                        if names.insert(library.clone()) {
                            queue.push_back(Loading {
                                path,
                                node,
                                inherited: inherited.clone(),
                            });
                        }
                    }
                    _ if !fresh || names.contains(library) || started.contains(library) => {}
                    // It may be in the layers that are not known.
                    _ if self.subject.is_partly_unknown() => {}
                    Search::OtherMachine(path, architecture) => problems.push(LoadProblem {
                        reason,
                        path: loading.path.clone(),
                        layer: loading.node.layer,
                        kind: LoadProblemKind::OtherMachine {
                            library: library.clone(),
                            found: path,
                            architecture,
                        },
                    }),
                    Search::Missing if self.is_presumed(library) => {}
                    Search::Missing => problems.push(LoadProblem {
                        reason,
                        path: loading.path.clone(),
                        layer: loading.node.layer,
                        kind: self.missing(library, elf),
                    }),
                }
            }
            if fresh {
                let versions = self.versions(elf, &found);
                problems.extend(versions.into_iter().map(|kind| LoadProblem {
                    reason,
                    path: loading.path.clone(),
                    layer: loading.node.layer,
                    kind,
                }));
            }
        }
        names
    }

    /// Whether a library is one that AWS's base is known to have, though its files are not known.
    fn is_presumed(&self, library: &str) -> bool {
        let is_known = self.subject.libc.is_some() && !self.subject.is_partly_unknown();
        !is_known && self.subject.base.is_some() && GLIBC_LIBRARIES.contains(&library)
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
        }
        match other {
            Some((path, architecture)) => Search::OtherMachine(path, architecture),
            None => Search::Missing,
        }
    }

    /// The directories of an rpath or runpath.
    fn directories(&self, path: Option<&str>, loading: &Loading<'_>) -> Vec<Vec<u8>> {
        let Some(path) = path else { return Vec::new() };
        let own =
            |path: &[u8]| String::from_utf8_lossy(parent_of(path).unwrap_or_default()).into_owned();
        // The loader takes the path that it opened; what a link of it leads to is tried as well.
        let real = self.subject.tree.follow(&loading.path).unwrap_or_default();
        let library = if self.subject.architecture() == "arm64" {
            "aarch64"
        } else {
            "x86_64"
        };
        let mut directories = Vec::new();
        for part in path.split(':').filter(|part| !part.is_empty()) {
            for origin in [own(&loading.path), own(&real)] {
                let part = part
                    .replace("${ORIGIN}", "$ORIGIN")
                    .replace("$ORIGIN", &format!("/{origin}"))
                    .replace("${LIB}", "$LIB")
                    .replace("$LIB", "lib64")
                    .replace("${PLATFORM}", "$PLATFORM")
                    .replace("$PLATFORM", library);
                if let Some(directory) = self.subject.tree.follow(part.as_bytes())
                    && !directories.contains(&directory)
                {
                    directories.push(directory);
                }
            }
        }
        directories
    }

    /// The symbol versions that are needed and not there.
    fn versions(
        &self,
        elf: &ElfFacts,
        found: &BTreeMap<&str, (Vec<u8>, Node<'a>)>,
    ) -> Vec<LoadProblemKind> {
        let mut problems = Vec::new();
        let mut worst: Option<(GlibcVersion, LoadProblemKind)> = None;
        for need in &elf.needs {
            let library = found.get(need.library.as_str());
            if library.is_some() && self.subject.is_partly_unknown() {
                // The layers that are not known may have another one, which comes first.
                continue;
            }
            let offered = match library {
                Some((_, node)) => elf_of(*node).map(|elf| elf.defines.as_slice()),
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
                    let Some(base) = self.subject.base else {
                        continue;
                    };
                    let newest = base.system.glibc();
                    if newest < needed {
                        let offered_by = format!(
                            "{} ({} {})",
                            base.system.name(),
                            base.language,
                            base.version
                        );
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

/// The newest release of glibc among symbol versions.
fn newest(versions: &[String]) -> Option<GlibcVersion> {
    versions
        .iter()
        .filter_map(|version| GlibcVersion::of_symbol_version(version))
        .max()
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
            if let Some(directory) = line.strip_prefix('/')
                && let Some(directory) = tree.follow(directory.as_bytes())
            {
                directories.push(directory);
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
