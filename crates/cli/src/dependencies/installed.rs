//! What tools leave in an installed tree that is of this machine and not of the packages.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A tree could not be put in order.
#[derive(Debug, thiserror::Error)]
#[error("could not put {} in order", path.display())]
pub(crate) struct Untidy {
    path: PathBuf,
    source: io::Error,
}

impl Untidy {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { path, source }
    }
}

/// What installers note of themselves and of where a package came from, in its metadata.
const NOTES_OF_INSTALLERS: [&str; 6] = [
    "INSTALLER",
    "REQUESTED",
    "direct_url.json",
    // PEP 710
    "provenance_url.json",
    "uv_cache.json",
    "uv_build.json",
];

/// Makes a tree of Python packages the same whoever installed it, and wherever.
///
/// Scripts that begin with this machine's Python go, with what installers note of themselves; what is
/// left of each `RECORD` is in the order of its paths.
pub(crate) fn tidy_python(root: &Path) -> Result<(), Untidy> {
    remove(&root.join(".lock"))?;
    remove_scripts(&root.join("bin"))?;
    for name in names_in(root)? {
        let metadata = root.join(&name);
        if !name.ends_with(".dist-info") || !metadata.is_dir() {
            continue;
        }
        for note in NOTES_OF_INSTALLERS {
            remove(&metadata.join(note))?;
        }
        tidy_record(root, &name)?;
    }
    Ok(())
}

/// What managers of packages note in `node_modules`, for their own next run.
const NOTES_OF_MANAGERS: [&str; 8] = [
    ".package-lock.json",
    ".modules.yaml",
    ".pnpm-workspace-state.json",
    ".pnpm-workspace-state-v1.json",
    ".pnpm/lock.yaml",
    ".yarn-integrity",
    ".yarn-state.yml",
    ".cache",
];

/// Removes from a `node_modules` what the manager noted for itself.
pub(crate) fn tidy_node(node_modules: &Path) -> Result<(), Untidy> {
    for note in NOTES_OF_MANAGERS {
        remove(&node_modules.join(note))?;
    }
    remove_empty(node_modules)
}

/// Removes folders with nothing in them, which no package has: npm leaves some for what is not for the
/// target, and pnpm one for packages that do not lie side by side.
fn remove_empty(folder: &Path) -> Result<(), Untidy> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(Untidy::at(folder))?,
    };
    for entry in entries {
        let entry = entry.map_err(Untidy::at(folder))?;
        let path = entry.path();
        if entry.file_type().map_err(Untidy::at(&path))?.is_dir() {
            remove_empty(&path)?;
            // Nothing happens to one that has something in it.
            let _ = fs::remove_dir(path);
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), Untidy> {
    let removed = match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Untidy::at(path)(error)),
        _ => Ok(()),
    }
}

/// The names in a folder that are text, sorted.
fn names_in(folder: &Path) -> Result<Vec<String>, Untidy> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(Untidy::at(folder))? {
        let entry = entry.map_err(Untidy::at(folder))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

fn remove_scripts(bin: &Path) -> Result<(), Untidy> {
    if !bin.is_dir() {
        return Ok(());
    }
    let mut are_left = false;
    for name in names_in(bin)? {
        let script = bin.join(name);
        let is_file = script.symlink_metadata().is_ok_and(|found| found.is_file());
        if is_file && is_of_this_machine(&fs::read(&script).map_err(Untidy::at(&script))?) {
            remove(&script)?;
        } else {
            are_left = true;
        }
    }
    if !are_left {
        remove(bin)?;
    }
    Ok(())
}

/// Whether a script begins with an interpreter that only this machine is known to have. Programs, and
/// scripts for a shell, are the package's own.
fn is_of_this_machine(script: &[u8]) -> bool {
    let Some(rest) = script.strip_prefix(b"#!") else {
        return false;
    };
    let mut lines = rest.split(|&byte| byte == b'\n');
    let interpreter = lines.next().unwrap_or_default().trim_ascii();
    let interpreter = interpreter.split(|&byte| byte == b' ').next();
    let everywhere: [&[u8]; 3] = [b"/usr/bin/env", b"/bin/sh", b"/bin/bash"];
    // A path that is too long for the first line stands in the second.
    let mut is_hidden = || {
        lines
            .next()
            .is_some_and(|line| line.starts_with(b"'''exec'"))
    };
    !interpreter.is_some_and(|interpreter| everywhere.contains(&interpreter)) || is_hidden()
}

/// Distributions that bring different files of one path, as some do with their `tests`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Contest {
    /// Each is to be installed once more, in this order: then the first by name has the last word.
    pub(crate) distributions: Vec<String>,
    /// One of the paths.
    pub(crate) path: String,
}

/// Looks for a contest in a tree that uv has installed. It installs with several threads, in the order
/// in which downloads end, so that any of the distributions may have won.
pub(crate) fn contest(root: &Path) -> Result<Option<Contest>, Untidy> {
    let mut brought: BTreeMap<String, (String, String)> = BTreeMap::new();
    let mut contenders = BTreeSet::new();
    let mut contested = None;
    for metadata in names_in(root)? {
        let Some((distribution, _)) = metadata.split_once('-') else {
            continue;
        };
        if !metadata.ends_with(".dist-info") {
            continue;
        }
        for (path, rest) in read_record(root, &metadata)?.unwrap_or_default() {
            let Some((known, other)) = brought.get(&path) else {
                brought.insert(path, (rest, distribution.to_owned()));
                continue;
            };
            // A script that does not stay needs no winner; without a digest nobody knows.
            let script = || fs::read(root.join(&path));
            let is_nothing =
                path.starts_with("bin/") && script().is_ok_and(|it| is_of_this_machine(&it));
            let is_same = *known == rest && rest.contains('=');
            if !is_same && !is_nothing {
                contenders.extend([other.clone(), distribution.to_owned()]);
                contested.get_or_insert(path);
            }
        }
    }
    Ok(contested.map(|path| Contest {
        distributions: contenders.into_iter().rev().collect(),
        path,
    }))
}

/// What a distribution's `RECORD` says of files that are there, by the path from the root; `None` for
/// one that has none.
fn read_record(root: &Path, metadata: &str) -> Result<Option<BTreeMap<String, String>>, Untidy> {
    let path = root.join(metadata).join("RECORD");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Untidy::at(&path)(error)),
    };
    let mut lines = BTreeMap::new();
    for line in text.lines() {
        let (file, rest) = first_field(line);
        // pip counts from a folder that it takes away again.
        let file = file.trim_start_matches("../").to_owned();
        let stays = Path::new(&file)
            .components()
            .all(|component| matches!(component, std::path::Component::Normal(_)));
        if stays && root.join(&file).symlink_metadata().is_ok() {
            lines.insert(file, rest.to_owned());
        }
    }
    Ok(Some(lines))
}

/// Leaves in a distribution's `RECORD` what is there, by the path from the root, sorted.
fn tidy_record(root: &Path, metadata: &str) -> Result<(), Untidy> {
    let Some(lines) = read_record(root, metadata)? else {
        return Ok(());
    };
    let lines = lines.iter();
    let record: Vec<String> = lines
        .map(|(file, rest)| format!("{}{rest}\n", quoted(file)))
        .collect();
    let path = root.join(metadata).join("RECORD");
    fs::write(&path, record.concat()).map_err(Untidy::at(&path))
}

/// The first field of a line of CSV, and what follows it, with its comma.
fn first_field(line: &str) -> (String, &str) {
    let Some(inner) = line.strip_prefix('"') else {
        let end = line.find(',').unwrap_or(line.len());
        return (line[..end].to_owned(), &line[end..]);
    };
    let mut field = String::new();
    let mut rest = inner;
    loop {
        let Some((part, after)) = rest.split_once('"') else {
            field.push_str(rest);
            return (field, "");
        };
        field.push_str(part);
        match after.strip_prefix('"') {
            Some(after) => {
                field.push('"');
                rest = after;
            }
            None => return (field, after),
        }
    }
}

fn quoted(field: &str) -> String {
    if field.contains([',', '"']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_installed_it_the_tree_is_the_same() {
        let install = |script: &str, installer: &str, above: &str, url: Option<&str>| {
            let root = tempfile::tempdir().unwrap();
            let write = |path: &str, text: &str| {
                let path = root.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            };
            write("a/__init__.py", "");
            write("a/odd, name.txt", "");
            write("share/a.txt", "");
            write("bin/a", script);
            write(".lock", "");
            write("a-1.dist-info/METADATA", "Name: a\n");
            write("a-1.dist-info/INSTALLER", installer);
            if let Some(url) = url {
                write("a-1.dist-info/direct_url.json", url);
                write("a-1.dist-info/REQUESTED", "");
            }
            write(
                "a-1.dist-info/RECORD",
                &format!(
                    "{above}bin/a,sha256=x,1\n{above}share/a.txt,sha256=z,3\na-1.dist-info/RECORD,,\n\
                     a-1.dist-info/INSTALLER,sha256=y,2\na-1.dist-info/METADATA,sha256=m,8\n\
                     \"a/odd, name.txt\",sha256=o,0\na/__init__.py,sha256=i,0\n/etc/passwd,,\n"
                ),
            );
            tidy_python(root.path()).unwrap();
            root
        };
        let pip = install("#!/home/me/venv/bin/python3\n", "pip\n", "../../", None);
        let long = "#!/bin/sh\n'''exec' /home/me/a/long/path/python \"$0\" \"$@\"\n' '''\n";
        let url = r#"{"url": "https://me:secret@host/a.whl"}"#;
        let uv = install(long, "uv", "", Some(url));
        for root in [&pip, &uv] {
            let root = root.path();
            assert_eq!(names_in(root).unwrap(), ["a", "a-1.dist-info", "share"]);
            assert_eq!(
                names_in(&root.join("a-1.dist-info")).unwrap(),
                ["METADATA", "RECORD"]
            );
            assert_eq!(
                fs::read_to_string(root.join("a-1.dist-info/RECORD")).unwrap(),
                "a-1.dist-info/METADATA,sha256=m,8\na-1.dist-info/RECORD,,\na/__init__.py,sha256=i,0\n\
                 \"a/odd, name.txt\",sha256=o,0\nshare/a.txt,sha256=z,3\n"
            );
        }
    }

    #[test]
    fn distributions_that_bring_the_same_path_are_found() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("tests/__init__.py", "");
        write("tests/same.py", "");
        write("bin/tool", "#!/home/me/python\n");
        let record = |name: &str, digest: &str| {
            let text = format!(
                "tests/__init__.py,sha256={digest},0\ntests/same.py,sha256=s,0\n\
                 bin/tool,sha256={digest},0\n{name}-1.dist-info/RECORD,,\n"
            );
            write(&format!("{name}-1.dist-info/RECORD"), &text);
        };
        record("a", "x");
        record("c", "x");
        assert_eq!(contest(root.path()).unwrap(), None);
        record("b", "y");
        write("d-1.dist-info/METADATA", "");
        assert_eq!(
            contest(root.path()).unwrap(),
            Some(Contest {
                distributions: vec!["b".to_owned(), "a".to_owned()],
                path: "tests/__init__.py".to_owned(),
            })
        );
    }

    #[test]
    fn whoever_managed_it_the_modules_are_the_same() {
        let root = tempfile::tempdir().unwrap();
        let modules = root.path().join("node_modules");
        for folder in ["a/lib", "@b/c", ".pnpm/node_modules", "a/node_modules/@d"] {
            fs::create_dir_all(modules.join(folder)).unwrap();
        }
        for file in [
            "a/lib/x.js",
            ".modules.yaml",
            ".pnpm/lock.yaml",
            ".package-lock.json",
        ] {
            fs::write(modules.join(file), "registries: https://me:secret@host/").unwrap();
        }
        tidy_node(&modules).unwrap();
        assert_eq!(names_in(&modules).unwrap(), ["a"]);
        assert_eq!(names_in(&modules.join("a")).unwrap(), ["lib"]);
        tidy_node(&root.path().join("gone")).unwrap();
    }

    #[test]
    fn programs_and_portable_scripts_stay() {
        for (script, goes) in [
            ("#!/usr/local/bin/python3.12\nimport x\n", true),
            ("#!/usr/bin/python\n", true),
            ("#!/bin/sh\n'''exec' \"/x/python\" \"$0\"\n", true),
            ("#!/usr/bin/env python3\n", false),
            ("#!/bin/sh\nexec true\n", false),
            ("#! /bin/bash -e\n", false),
            ("\u{7f}ELF", false),
            ("", false),
        ] {
            assert_eq!(is_of_this_machine(script.as_bytes()), goes, "{script}");
        }
    }
}
