//! What builds must know of the base that they build on.
//!
//! Facts come from a base's name ([`BaseFacts::named`]), from its config ([`BaseFacts::of_config`])
//! and from its layers ([`BaseFacts::of_layers`]); a field that is `None` is not known. Who asks for
//! them decides which of them count: wheels and libraries are chosen by them, so digests hang on it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tierce_oci::ImageConfig;

use crate::bases::{LAYERS_ROOT, RUNTIME_ROOT, TASK_ROOT};
use crate::elf::ElfFacts;
use crate::facts::{EntryKind, LayerFacts, name_of, parent_of};
use crate::libraries::{default_directories, library_path, newest};
use crate::python::find_python;
use crate::rules::UnknownBase;
use crate::subject::{Libc, elf_of, libc_of, variable};
use crate::tree::{Tree, join};
use crate::version::{GlibcVersion, PythonVersion, number_after};

/// The C library of a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CLibrary {
    /// glibc, of this version where it is known.
    Glibc(Option<GlibcVersion>),
    /// musl.
    Musl,
}

impl fmt::Display for CLibrary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Glibc(Some(version)) => write!(formatter, "glibc {version}"),
            Self::Glibc(None) => formatter.write_str("glibc"),
            Self::Musl => formatter.write_str("musl"),
        }
    }
}

impl FromStr for CLibrary {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("glibc ")) {
            ("musl", _) => Ok(Self::Musl),
            ("glibc", _) => Ok(Self::Glibc(None)),
            (_, Some(version)) => version.parse().map(|version| Self::Glibc(Some(version))),
            _ => Err(format!(
                "`{text}` is no C library, such as `glibc 2.34` or `musl`"
            )),
        }
    }
}

/// Permissions and owner of a directory; as text `0700`, or `0700 1000:1000` if it is not root's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectoryFacts {
    /// Permissions, with setuid, setgid and sticky.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

impl fmt::Display for DirectoryFacts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:04o}", self.mode)?;
        match (self.uid, self.gid) {
            (0, 0) => Ok(()),
            (uid, gid) => write!(formatter, " {uid}:{gid}"),
        }
    }
}

impl FromStr for DirectoryFacts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (mode, owner) = text.split_once(' ').unwrap_or((text, "0:0"));
            let (uid, gid) = owner.split_once(':')?;
            let mode = u32::from_str_radix(mode, 8).ok()?;
            (mode <= 0o7777).then_some(Self {
                mode,
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
            })
        };
        read().ok_or_else(|| {
            format!("`{text}` is no mode of a directory, such as `0700` or `0700 1000:1000`")
        })
    }
}

/// Facts stand as text in files.
macro_rules! as_text {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

as_text!(CLibrary, DirectoryFacts, PythonVersion);

/// What is known of a base.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BaseFacts {
    /// Whether all layers were read: what is not told then is not there, or cannot be told.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub complete: bool,
    /// The C library.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub libc: Option<CLibrary>,
    /// The Python that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub python: Option<PythonVersion>,
    /// Where that Python is: its path from the root on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interpreter: Option<String>,
    /// The major version of the Node that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<u32>,
    /// Whether there is a bootstrap in `/var/runtime`, which AWS's entrypoint starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<bool>,
    /// The directories that the loader looks for libraries in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub library_directories: Option<Vec<String>>,
    /// The libraries that the loader finds there, by the names that it looks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub libraries: Option<BTreeSet<String>>,
    /// The newest version of each family of symbol versions of the C++ library and of GCC's: `GLIBCXX`
    /// to `3.4.30`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub versions: BTreeMap<String, String>,
    /// Directories that are not as directories usually are, without a slash in front.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub directories: BTreeMap<String, DirectoryFacts>,
}

/// Something that a base has otherwise than was thought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contradiction {
    /// What it really has.
    pub found: String,
    /// What was thought.
    pub thought: String,
}

/// Bits of a mode that make a difference to somebody: everything is root's, whose own right to write
/// is none.
const DECISIVE_BITS: u32 = 0o7577;

impl BaseFacts {
    /// What a config tells: the variables of Docker's images for Python and Node.
    pub fn of_config(config: &ImageConfig) -> Self {
        Self {
            python: variable(config, "PYTHON_VERSION").and_then(|version| version.parse().ok()),
            node: variable(config, "NODE_VERSION").and_then(|version| number_after("", version)),
            ..Self::default()
        }
    }

    /// What all layers of a base tell together, with its config. `usual` says how the directory of a
    /// path is when nobody says otherwise.
    pub fn of_layers(
        config: &ImageConfig,
        layers: &[&LayerFacts],
        usual: &dyn Fn(&str) -> DirectoryFacts,
    ) -> Self {
        let tree = Tree::of(0, layers);
        let libc = libc_of(&tree, UnknownBase::default());
        let architecture = config.platform.architecture.as_str();
        let mut searched = library_path(variable(config, "LD_LIBRARY_PATH"));
        searched.extend(default_directories(&tree, architecture, libc));
        let shelves = Shelves::of(&tree, architecture, &searched);
        let mut versions = BTreeMap::new();
        for library in ["libstdc++.so.6", "libgcc_s.so.1"] {
            let defines = shelves.library(library).map(|elf| elf.defines.as_slice());
            newest_of_families(defines.unwrap_or_default(), &mut versions);
        }
        let glibc = || {
            let library = shelves.library("libc.so.6")?;
            newest(&library.defines)
        };
        let of_config = Self::of_config(config);
        let python = find_python(&tree, variable(config, "PATH").unwrap_or_default());
        Self {
            complete: true,
            libc: match libc {
                Some(Libc::Glibc) => Some(CLibrary::Glibc(glibc())),
                Some(Libc::Musl) => Some(CLibrary::Musl),
                None if shelves.library("libc.so.6").is_some() => Some(CLibrary::Glibc(glibc())),
                None => None,
            },
            python: python
                .as_ref()
                .and_then(|python| {
                    Some(PythonVersion {
                        minor: python.minor?,
                    })
                })
                .or(of_config.python),
            interpreter: python.map(|python| python.path),
            node: of_config.node,
            bootstrap: Some(
                tree.find(format!("{RUNTIME_ROOT}/bootstrap").as_bytes())
                    .is_some(),
            ),
            library_directories: Some(shelves.directories()),
            libraries: Some(shelves.names()),
            versions,
            directories: unusual_directories(&tree, usual),
        }
    }

    /// What is known here, and what `other` knows besides.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            complete: self.complete || other.complete,
            // A version says more than that there is one.
            libc: match (self.libc, other.libc) {
                (Some(CLibrary::Glibc(None)), Some(CLibrary::Glibc(version))) => {
                    Some(CLibrary::Glibc(version))
                }
                (mine, other) => mine.or(other),
            },
            python: self.python.or(other.python),
            interpreter: self.interpreter.or(other.interpreter),
            node: self.node.or(other.node),
            bootstrap: self.bootstrap.or(other.bootstrap),
            library_directories: self.library_directories.or(other.library_directories),
            libraries: self.libraries.or(other.libraries),
            versions: if self.versions.is_empty() {
                other.versions
            } else {
                self.versions
            },
            directories: if self.directories.is_empty() {
                other.directories
            } else {
                self.directories
            },
        }
    }

    /// Where a base that has been found to be so is not as was `thought`: the facts that count, and
    /// each of them in words. Directories are not compared; they are unusual or not.
    pub fn against(&self, thought: &Self) -> (Self, Vec<Contradiction>) {
        let mut facts = Self::default();
        let mut all = Vec::new();
        let mut note = |found: String, thought: String| all.push(Contradiction { found, thought });
        if let (Some(found), Some(before)) = (self.libc, thought.libc) {
            let is_other = match (found, before) {
                (CLibrary::Glibc(Some(found)), CLibrary::Glibc(Some(before))) => found != before,
                (CLibrary::Glibc(_), CLibrary::Glibc(_)) => false,
                (found, before) => found != before,
            };
            if is_other {
                facts.libc = Some(found);
                note(found.to_string(), before.to_string());
            }
        }
        if let (Some(found), Some(before)) = (self.python, thought.python)
            && found != before
        {
            facts.python = Some(found);
            note(format!("Python {found}"), format!("Python {before}"));
        }
        if let (Some(found), Some(before)) = (self.node, thought.node)
            && found != before
        {
            facts.node = Some(found);
            note(format!("Node {found}"), format!("Node {before}"));
        }
        if let (Some(found), Some(before)) = (self.bootstrap, thought.bootstrap)
            && found != before
        {
            facts.bootstrap = Some(found);
            let text = |has| format!("{} bootstrap of its own", if has { "a" } else { "no" });
            note(text(found), text(before));
        }
        // Of a base in which no C library was found it is not known what its loader finds.
        if let (Some(found), Some(before)) = (&self.libraries, &thought.libraries)
            && self.libc.is_some()
        {
            // Of glibc's own some come with one processor alone, and some have gone.
            let missing = |name: &&String| !found.contains(*name) && !crate::is_of_glibc(name);
            if let Some(missing) = before.iter().find(missing) {
                facts.libraries = Some(found.clone());
                facts
                    .library_directories
                    .clone_from(&self.library_directories);
                note(format!("no {missing}"), missing.clone());
            }
        }
        (facts, all)
    }

    /// Whether `version`, such as `GLIBCXX_3.4.30`, is newer than what the base offers of its family;
    /// gives what it offers.
    pub fn too_new(&self, version: &str) -> Option<String> {
        if let Some(needed) = GlibcVersion::of_symbol_version(version) {
            let Some(CLibrary::Glibc(Some(offered))) = self.libc else {
                return None;
            };
            return (needed > offered).then(|| format!("GLIBC_{offered}"));
        }
        let (family, number) = version.split_once('_')?;
        let offered = self.versions.get(family)?;
        (numbers(number)? > numbers(offered)?).then(|| format!("{family}_{offered}"))
    }
}

/// The numbers of `3.4.30`.
fn numbers(version: &str) -> Option<Vec<u32>> {
    let parts = version.split('.').map(|part| part.parse().ok());
    parts.collect()
}

fn newest_of_families(defines: &[String], versions: &mut BTreeMap<String, String>) {
    for version in defines {
        let Some((family, number)) = version.split_once('_') else {
            continue;
        };
        let Some(found) = numbers(number) else {
            continue;
        };
        let before = versions.get(family).and_then(|known| numbers(known));
        if before.is_none_or(|before| before < found) {
            versions.insert(family.to_owned(), number.to_owned());
        }
    }
}

/// The libraries that the loader of a base finds.
struct Shelves<'a> {
    directories: Vec<Vec<u8>>,
    libraries: BTreeMap<String, &'a ElfFacts>,
}

impl<'a> Shelves<'a> {
    fn of(tree: &Tree<'a>, architecture: &str, searched: &[Vec<u8>]) -> Self {
        let mut shelves = Self {
            directories: Vec::new(),
            libraries: BTreeMap::new(),
        };
        for directory in searched {
            let Some(real) = tree.follow(directory) else {
                continue;
            };
            if shelves.directories.contains(&real) || !tree.is_directory(&real) {
                continue;
            }
            for (path, _) in tree.below(&real) {
                let name = name_of(path);
                let is_inside = parent_of(path).unwrap_or_default() == real;
                if !is_inside || !name.windows(3).any(|part| part == b".so") {
                    continue;
                }
                let Some((_, node)) = tree.find(&join(&real, name)) else {
                    continue;
                };
                if let (Some(elf), Ok(name)) = (elf_of(node), std::str::from_utf8(name))
                    && elf.is_loadable
                    && elf.architecture() == architecture
                {
                    // The loader takes the first that it finds.
                    shelves.libraries.entry(name.to_owned()).or_insert(elf);
                }
            }
            shelves.directories.push(real);
        }
        shelves
    }

    fn library(&self, name: &str) -> Option<&'a ElfFacts> {
        self.libraries.get(name).copied()
    }

    fn directories(&self) -> Vec<String> {
        let text = |path: &Vec<u8>| format!("/{}", String::from_utf8_lossy(path));
        self.directories.iter().map(text).collect()
    }

    fn names(&self) -> BTreeSet<String> {
        self.libraries.keys().cloned().collect()
    }
}

fn unusual_directories(
    tree: &Tree<'_>,
    usual: &dyn Fn(&str) -> DirectoryFacts,
) -> BTreeMap<String, DirectoryFacts> {
    let mut unusual = BTreeMap::new();
    for (path, node) in tree.all() {
        let entry = node.entry;
        let (EntryKind::Directory, Ok(path)) = (&entry.kind, std::str::from_utf8(path)) else {
            continue;
        };
        // Where the function goes its user must be able to read, whatever the base says.
        let is_ours = [TASK_ROOT, LAYERS_ROOT].iter().any(|root| {
            let rest = path.strip_prefix(root.trim_start_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        if is_ours {
            continue;
        }
        let found = DirectoryFacts {
            mode: entry.mode & 0o7777,
            uid: entry.uid,
            gid: entry.gid,
        };
        let usual = usual(path);
        let differs = (found.mode ^ usual.mode) & DECISIVE_BITS != 0
            || (found.uid, found.gid) != (usual.uid, usual.gid);
        if differs {
            unusual.insert(path.to_owned(), found);
        }
    }
    unusual
}

#[cfg(test)]
mod tests {
    use tierce_oci::{ImageFormat, MediaType, Raw};

    use super::*;
    use crate::facts::{ContentFacts, EntryFacts, Packing, RawPath};

    fn entry(path: &str, kind: EntryKind, mode: u32) -> EntryFacts {
        EntryFacts {
            path: RawPath::from(path),
            kind,
            mode,
            uid: 0,
            gid: 0,
            size: 0,
            modified: 1,
            content: None,
            speaks_runtime_api: false,
        }
    }

    fn library(path: &str, defines: &[&str]) -> EntryFacts {
        let elf = ElfFacts {
            machine: 62,
            is_64_bit: true,
            is_loadable: true,
            defines: defines.iter().map(|&name| name.to_owned()).collect(),
            ..ElfFacts::default()
        };
        EntryFacts {
            content: Some(ContentFacts::Elf(Box::new(elf))),
            ..entry(path, EntryKind::File, 0o644)
        }
    }

    fn link(path: &str, target: &str) -> EntryFacts {
        entry(path, EntryKind::Symlink(RawPath::from(target)), 0o777)
    }

    fn config(env: &[&str]) -> Raw<ImageConfig> {
        let json = serde_json::json!({
            "architecture": "amd64", "os": "linux",
            "config": {"Env": env},
            "rootfs": {"type": "layers", "diff_ids": []},
        });
        Raw::from_json(&json, MediaType::Config(ImageFormat::Oci)).unwrap()
    }

    fn usual(path: &str) -> DirectoryFacts {
        let mode = if path == "tmp" { 0o1777 } else { 0o755 };
        DirectoryFacts {
            mode,
            uid: 0,
            gid: 0,
        }
    }

    #[test]
    fn layers_tell_what_a_base_has() {
        let directory = |path: &str, mode| entry(path, EntryKind::Directory, mode);
        let layers = [LayerFacts::new(
            0,
            Packing::Gzip,
            vec![
                directory("tmp", 0o1777),
                directory("usr", 0o555),
                directory("usr/lib", 0o755),
                directory("srv", 0o700),
                directory("opt", 0o700),
                directory("var/task/deep", 0o700),
                link("lib", "usr/lib"),
                library(
                    "usr/lib/libc.so.6",
                    &["GLIBC_2.2.5", "GLIBC_2.36", "GLIBC_2.4"],
                ),
                library(
                    "usr/lib/libstdc++.so.6.0.30",
                    &["GLIBCXX_3.4.9", "GLIBCXX_3.4.30"],
                ),
                link("usr/lib/libstdc++.so.6", "libstdc++.so.6.0.30"),
                library("usr/lib/deep/libhidden.so.1", &[]),
                entry("usr/bin/python3.11", EntryKind::File, 0o755),
                entry("usr/local/bin/python3.12", EntryKind::File, 0o755),
                entry("usr/local/bin/python3.9", EntryKind::File, 0o755),
                link("usr/local/bin/python3", "python3.9"),
            ],
        )];
        let config = config(&["NODE_VERSION=22.1.0", "PYTHON_VERSION=3.8"]);
        let facts = BaseFacts::of_layers(&config, &layers.each_ref(), &usual);
        let glibc = CLibrary::Glibc(Some(GlibcVersion::new(2, 36)));
        assert_eq!(facts.libc, Some(glibc));
        assert_eq!(facts.python, Some(PythonVersion { minor: 9 }));
        assert_eq!((facts.node, facts.bootstrap), (Some(22), Some(false)));
        assert_eq!(facts.library_directories.clone().unwrap(), ["/usr/lib"]);
        let libraries: Vec<String> = facts.libraries.clone().unwrap().into_iter().collect();
        let expected = ["libc.so.6", "libstdc++.so.6", "libstdc++.so.6.0.30"];
        assert_eq!(libraries, expected);
        assert_eq!(facts.versions["GLIBCXX"], "3.4.30");
        // That root may not write is nothing to anybody.
        assert_eq!(facts.directories.keys().collect::<Vec<_>>(), ["srv"]);
        assert_eq!(facts.too_new("GLIBC_2.37").as_deref(), Some("GLIBC_2.36"));
        assert_eq!(facts.too_new("GLIBC_2.4"), None);
        assert_eq!(facts.too_new("GLIBCXX_3.4.9"), None);
        let offered = facts.too_new("GLIBCXX_3.4.31");
        assert_eq!(offered.as_deref(), Some("GLIBCXX_3.4.30"));
        assert_eq!(facts.too_new("CXXABI_9.9"), None);
        let text = serde_json::to_string(&facts).unwrap();
        assert_eq!(serde_json::from_str::<BaseFacts>(&text).unwrap(), facts);
    }

    #[test]
    fn only_what_contradicts_counts() {
        let table = BaseFacts::named(&"public.ecr.aws/lambda/python:3.12".parse().unwrap());
        let mut found = table.clone();
        found
            .libraries
            .as_mut()
            .unwrap()
            .insert("libz.so.1".to_owned());
        found.node = Some(22);
        assert_eq!(found.against(&table), (BaseFacts::default(), Vec::new()));
        found.python = Some(PythonVersion { minor: 11 });
        found.libc = Some(CLibrary::Glibc(Some(GlibcVersion::new(2, 26))));
        found.libraries.as_mut().unwrap().remove("libstdc++.so.6");
        let (facts, all) = found.against(&table);
        let shown: Vec<String> = all
            .iter()
            .map(|it| format!("{}, not {}", it.found, it.thought))
            .collect();
        assert_eq!(
            shown,
            [
                "glibc 2.26, not glibc 2.34",
                "Python 3.11, not Python 3.12",
                "no libstdc++.so.6, not libstdc++.so.6"
            ]
        );
        assert_eq!((facts.python, facts.node), (found.python, None));
        assert_eq!(facts.libraries, found.libraries);
        assert_eq!(facts.clone().or(table.clone()).bootstrap, Some(true));
        let unknown = BaseFacts {
            libraries: Some(BTreeSet::new()),
            ..BaseFacts::default()
        };
        assert!(unknown.against(&table).1.is_empty());
    }

    #[test]
    fn facts_are_written_as_people_read_them() {
        for text in ["glibc 2.34", "glibc", "musl"] {
            assert_eq!(text.parse::<CLibrary>().unwrap().to_string(), text);
        }
        assert!("bionic".parse::<CLibrary>().is_err());
        for text in ["0700", "1777", "0755 1000:0"] {
            assert_eq!(text.parse::<DirectoryFacts>().unwrap().to_string(), text);
        }
        for text in ["", "9", "77777", "0700 1", "0700 a:b"] {
            assert!(text.parse::<DirectoryFacts>().is_err(), "{text}");
        }
    }
}
