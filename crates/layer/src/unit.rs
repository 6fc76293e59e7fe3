//! Which entries of a tree change together.
//!
//! A new release of a library replaces the library's files and leaves those of others alone, so a
//! layer that is to be cut apart is cut between libraries. What belongs to one is read off the paths
//! that package managers use; no file is opened for it.

use std::borrow::Cow;
use std::collections::BTreeSet;

use tierce_oci::Digest;

use crate::path::{EntryPath, SHOWN, readable};
use crate::plan::{Record, RecordKind};

/// What is installed below a directory by one name: a distribution of Python, a package of Node, or
/// else whatever has that name.
///
/// Two directories with a unit of one name have two units, ordered by directory, then name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Unit<'a> {
    /// Empty for the root.
    directory: &'a [u8],
    name: Cow<'a, [u8]>,
}

impl Unit<'_> {
    /// A number that is the same for the unit in every tree, spread evenly.
    pub(crate) fn number(&self) -> u64 {
        let digest = Digest::of(&[self.directory, b"/", &self.name].concat());
        let first = digest.as_bytes().iter().take(8);
        first.fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    /// Its name for people, without the directory and not too long.
    pub(crate) fn label(&self) -> String {
        match self.name.get(..SHOWN) {
            Some(start) if self.name.len() > SHOWN => readable(start) + "…",
            _ => readable(&self.name),
        }
    }
}

/// The units of a tree.
#[derive(Debug)]
pub(crate) struct Units<'a> {
    sites: BTreeSet<&'a [u8]>,
    /// The deepest directory that is above all of the tree's leaves.
    common: &'a [u8],
}

impl<'a> Units<'a> {
    /// Looks at the directories of a plan and at its leaves: what is neither a marker nor a
    /// directory that holds something.
    pub(crate) fn of(records: &'a [Record], leaves: impl Iterator<Item = &'a Record>) -> Self {
        let mut leaves = leaves.map(|record| record.path.parent_bytes().unwrap_or_default());
        let first = leaves.next().unwrap_or_default();
        Self {
            sites: site_directories(records),
            common: leaves.fold(first, common_directory),
        }
    }

    /// The unit of a leaf. That of a hardlink is its file's, or it would be a link to nothing.
    pub(crate) fn unit(&self, leaf: &'a Record) -> Unit<'a> {
        let path = match &leaf.kind {
            RecordKind::Hardlink(file) => file.as_bytes(),
            _ => leaf.path.as_bytes(),
        };
        for (directory, rest) in directories_above(path) {
            if is_node_modules(directory) {
                let name = Cow::Borrowed(package(rest));
                return Unit { directory, name };
            }
            if self.sites.contains(directory) && !rest.starts_with(b"node_modules/") {
                let file = !matches!(leaf.kind, RecordKind::Directory);
                let name = distribution(rest, file);
                return Unit { directory, name };
            }
        }
        let rest = path.get(self.common.len()..).unwrap_or_default();
        let (name, _) = split_first(rest.strip_prefix(b"/").unwrap_or(rest));
        Unit {
            directory: self.common,
            name: name.into(),
        }
    }
}

/// Whether package managers have been at work: there is a distribution of Python, or a package of
/// Node.
pub(crate) fn has_packages(records: &[Record]) -> bool {
    !site_directories(records).is_empty()
        || directories(records).any(|directory| {
            let name = directory.name();
            directory.parent_bytes().is_some_and(is_node_modules) && !name.starts_with(b".")
        })
}

/// Where Python looks for modules: directories with the metadata of an installed distribution.
fn site_directories(records: &[Record]) -> BTreeSet<&[u8]> {
    directories(records)
        .filter(|directory| {
            let stem = directory.name().strip_suffix(b".dist-info");
            stem.is_some_and(|stem| !stem.is_empty())
        })
        .map(|directory| directory.parent_bytes().unwrap_or_default())
        .collect()
}

fn directories(records: &[Record]) -> impl Iterator<Item = &EntryPath> {
    records
        .iter()
        .take_while(|record| matches!(record.kind, RecordKind::Directory))
        .map(|record| &record.path)
}

fn is_node_modules(directory: &[u8]) -> bool {
    directory
        .strip_suffix(b"node_modules")
        .is_some_and(|above| above.is_empty() || above.ends_with(b"/"))
}

/// The package that a path below `node_modules` is of, those nested in it included.
fn package(path: &[u8]) -> &[u8] {
    let (first, rest) = split_first(path);
    let Some(rest) = rest else {
        return first;
    };
    let (second, _) = split_first(rest);
    let length = match first {
        // pnpm keeps every version of every package there, as `NAME@VERSION` and `@SCOPE+NAME@…`.
        b".pnpm" => {
            let at = second.iter().skip(1).position(|&byte| byte == b'@');
            at.map_or(second.len(), |at| at + 1)
        }
        [b'@', ..] => second.len(),
        _ => return first,
    };
    &path[..=first.len() + length]
}

/// The distribution that a path below a site directory is of, in one spelling for what wheels bring
/// under several: `numpy`, `numpy.libs`, `numpy-2.1.0.dist-info`, `numpy-2.1.0.data`.
fn distribution(path: &[u8], file: bool) -> Cow<'_, [u8]> {
    let (first, rest) = split_first(path);
    let metadata = || {
        let stem = first.strip_suffix(b".dist-info");
        let stem = stem.or_else(|| first.strip_suffix(b".egg-info"))?;
        Some(up_to(stem, b'-'))
    };
    let data = || before(first.strip_suffix(b".data")?, b'-');
    let libraries = || first.strip_suffix(b".libs");
    let module = || before(first, b'.').filter(|_| file && rest.is_none());
    let name = match (first, rest) {
        (b"__pycache__", Some(rest)) => before(split_first(rest).0, b'.'),
        _ => metadata().or_else(data).or_else(libraries).or_else(module),
    };
    let name = name.filter(|name| !name.is_empty()).unwrap_or(first);
    let uniform = |byte: u8| match byte {
        b'-' | b'.' => b'_',
        _ => byte.to_ascii_lowercase(),
    };
    if name.iter().all(|&byte| byte == uniform(byte)) {
        name.into()
    } else {
        name.iter().map(|&byte| uniform(byte)).collect()
    }
}

/// What stands before the first `end`, if there is one.
fn before(name: &[u8], end: u8) -> Option<&[u8]> {
    let at = name.iter().position(|&byte| byte == end)?;
    Some(&name[..at])
}

fn up_to(name: &[u8], end: u8) -> &[u8] {
    before(name, end).unwrap_or(name)
}

/// The first component of a path, and what is below it.
fn split_first(path: &[u8]) -> (&[u8], Option<&[u8]>) {
    match path.iter().position(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], Some(&path[slash + 1..])),
        None => (path, None),
    }
}

/// Every directory above a path, the root first, each with the path from there on.
fn directories_above(path: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let slashes = (0..path.len()).filter(|&at| path[at] == b'/');
    let root: &[u8] = &[];
    std::iter::once((root, path)).chain(slashes.map(|at| (&path[..at], &path[at + 1..])))
}

/// The deepest directory that is `one` and `other` or above them.
fn common_directory<'a>(one: &'a [u8], other: &[u8]) -> &'a [u8] {
    let same = one.iter().zip(other).take_while(|(a, b)| a == b).count();
    let ends = |path: &[u8]| path.get(same).is_none_or(|&byte| byte == b'/');
    if ends(one) && ends(other) {
        return &one[..same];
    }
    let slash = one[..same].iter().rposition(|&byte| byte == b'/');
    &one[..slash.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_wheel_brings_is_of_one_distribution() {
        for (path, expected) in [
            ("numpy/core/multiarray.py", "numpy"),
            ("numpy.libs/libopenblas.so", "numpy"),
            ("numpy-2.1.0.dist-info/RECORD", "numpy"),
            ("numpy-2.1.0.data/scripts/f2py", "numpy"),
            ("Numpy.egg-info/PKG-INFO", "numpy"),
            ("Numpy-2.1-py3.12.egg-info", "numpy"),
            ("six.py", "six"),
            ("__pycache__/six.cpython-312.pyc", "six"),
            ("__pycache__/x", "__pycache__"),
            ("__pycache__/x/y.z", "__pycache__"),
            ("six-1.17.0.dist-info/METADATA", "six"),
            (
                "_cffi_backend.cpython-312-x86_64-linux-gnu.so",
                "_cffi_backend",
            ),
            ("scikit_learn.libs/libgomp.so", "scikit_learn"),
            ("ruamel.yaml-0.18.dist-info/RECORD", "ruamel_yaml"),
            ("ruamel.yaml/main.py", "ruamel_yaml"),
            ("distutils-precedence.pth", "distutils_precedence"),
            ("bin/f2py", "bin"),
            ("model.data/weights", "model_data"),
            (".env", "_env"),
            (".dist-info/x", "_dist_info"),
            (".libs/x", "_libs"),
            ("-1.dist-info/x", "_1_dist_info"),
        ] {
            let found = distribution(path.as_bytes(), true);
            assert_eq!(readable(&found), expected, "{path}");
        }
        assert_eq!(&*distribution(b"empty.folder", false), b"empty_folder");
    }

    #[test]
    fn packages_of_node_have_what_is_nested_in_them() {
        for (path, expected) in [
            ("lodash/index.js", "lodash"),
            ("lodash", "lodash"),
            ("@aws-sdk/core/dist/index.js", "@aws-sdk/core"),
            ("@aws-sdk", "@aws-sdk"),
            ("a/node_modules/b/index.js", "a"),
            (".bin/tsc", ".bin"),
            (".package-lock.json", ".package-lock.json"),
            (
                ".pnpm/lodash@4.17.21/node_modules/lodash/index.js",
                ".pnpm/lodash",
            ),
            (
                ".pnpm/@babel+core@7.0.0_react@18/node_modules/x",
                ".pnpm/@babel+core",
            ),
            (".pnpm/node_modules/x", ".pnpm/node_modules"),
            (".pnpm/lock.yaml", ".pnpm/lock.yaml"),
        ] {
            assert_eq!(readable(package(path.as_bytes())), expected, "{path}");
        }
    }

    #[test]
    fn directories_in_common_end_at_a_component() {
        for (one, other, expected) in [
            ("a/b", "a/b", "a/b"),
            ("a/b", "a/b/c", "a/b"),
            ("a/b/c", "a/b", "a/b"),
            ("a/bc", "a/b", "a"),
            ("a/b", "a/bc", "a"),
            ("ab", "a", ""),
            ("a", "b", ""),
            ("", "a", ""),
        ] {
            let found = common_directory(one.as_bytes(), other.as_bytes());
            assert_eq!(readable(found), expected, "{one} and {other}");
        }
    }
}
