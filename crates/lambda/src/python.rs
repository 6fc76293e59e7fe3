//! The Python of a base, found in the facts of its layers.

use crate::facts::{name_of, parent_of};
use crate::tree::{Tree, join};

/// A Python that an image has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundPython {
    /// Where it is, from the root on: no symlink, where that makes no difference to Python.
    pub(crate) path: String,
    /// The minor version of Python 3, where a name tells it.
    pub(crate) minor: Option<u32>,
}

/// Where a Python is when nothing says so.
const WELL_KNOWN: [&str; 3] = ["/usr/local/bin", "/usr/bin", "/var/lang/bin"];

/// Finds the Python that `python3` would start, by the directories of `search`, a PATH, and by those
/// where Pythons usually are.
pub(crate) fn find_python(tree: &Tree<'_>, search: &str) -> Option<FoundPython> {
    let directories = search.split(':').filter(|it| it.starts_with('/'));
    directories
        .chain(WELL_KNOWN)
        .find_map(|directory| find_in(tree, directory.as_bytes()))
}

fn find_in(tree: &Tree<'_>, directory: &[u8]) -> Option<FoundPython> {
    let directory = tree.follow(directory)?;
    let file = |name: &[u8]| {
        let (path, _) = tree.find(&join(&directory, name))?;
        (!tree.is_directory(&path)).then_some(path)
    };
    let mut versions: Vec<u32> = tree
        .below(&directory)
        .filter(|(path, _)| parent_of(path).unwrap_or_default() == directory)
        .filter_map(|(path, _)| minor_of(name_of(path)))
        .collect();
    versions.sort_unstable();
    let newest = versions.last().map(|minor| format!("python3.{minor}"));
    let names = [
        Some("python3".to_owned()),
        newest,
        Some("python".to_owned()),
    ];
    let (name, real) = names
        .into_iter()
        .flatten()
        .find_map(|name| Some((name.clone(), file(name.as_bytes())?)))?;
    // A Python finds its libraries by the link that it is started by, as in virtual environments.
    let is_near = parent_of(&real).unwrap_or_default() == directory;
    let path = if is_near {
        real.clone()
    } else {
        join(&directory, name.as_bytes())
    };
    Some(FoundPython {
        path: format!("/{}", String::from_utf8(path).ok()?),
        minor: minor_of(name_of(&real)).or_else(|| minor_of(name.as_bytes())),
    })
}

fn minor_of(name: &[u8]) -> Option<u32> {
    let digits = name.strip_prefix(b"python3.")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{EntryFacts, EntryKind, LayerFacts, Packing, RawPath};

    fn layer(entries: &[(&str, Option<&str>)]) -> LayerFacts {
        let entries = entries.iter().map(|(path, target)| EntryFacts {
            path: RawPath::from(*path),
            kind: match target {
                None => EntryKind::File,
                Some(target) => EntryKind::Symlink(RawPath::from(*target)),
            },
            mode: 0o755,
            uid: 0,
            gid: 0,
            size: 1,
            modified: 0,
            content: None,
            speaks_runtime_api: false,
        });
        LayerFacts::new(0, Packing::Gzip, entries.collect())
    }

    #[test]
    fn the_python_that_starts_is_found_where_it_really_is() {
        let found = |entries: &[(&str, Option<&str>)], search: &str| {
            let layer = layer(entries);
            find_python(&Tree::of(0, &[&layer]), search).map(|it| (it.path, it.minor))
        };
        let debian = [
            ("bin", Some("usr/bin")),
            ("usr/bin/python3", Some("python3.11")),
            ("usr/bin/python3.11", None),
            ("usr/bin/python3.11-config", None),
        ];
        let expected = Some(("/usr/bin/python3.11".to_owned(), Some(11)));
        assert_eq!(found(&debian, "/sbin:/bin"), expected);
        assert_eq!(found(&debian, ""), expected);
        let environment = [
            ("venv/bin/python3", Some("/usr/bin/python3.12")),
            ("usr/bin/python3.12", None),
        ];
        assert_eq!(
            found(&environment, "/venv/bin:/usr/bin"),
            Some(("/venv/bin/python3".to_owned(), Some(12)))
        );
        let only = [
            ("usr/local/bin/python3.9", None),
            ("usr/local/bin/python3.10", None),
        ];
        assert_eq!(
            found(&only, "relative"),
            Some(("/usr/local/bin/python3.10".to_owned(), Some(10)))
        );
        assert_eq!(found(&[("usr/bin/python3", Some("gone"))], ""), None);
        assert_eq!(found(&[("usr/bin/ruby", None)], "/usr/bin"), None);
    }
}
