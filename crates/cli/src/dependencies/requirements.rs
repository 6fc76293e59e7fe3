//! Requirement files: what they say, and what they must not say.
//!
//! pip and uv read them; this looks for what the result depends on besides, and for lines that would
//! make a tool run code of a package on this machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What requirement files are made of.
#[derive(Debug, Default)]
pub(crate) struct Requirements {
    /// The text of every file, in the order in which they name each other.
    pub(crate) texts: Vec<String>,
    /// Wheels on this machine that they name, and folders of such.
    pub(crate) local: Vec<PathBuf>,
    /// Whether any has a hash: then every one must.
    pub(crate) has_hashes: bool,
}

/// A line that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}:{line}: {problem}", file.display())]
pub(crate) struct BadRequirement {
    file: PathBuf,
    line: usize,
    problem: Problem,
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error("the file cannot be read")]
    Unreadable(#[source] std::io::Error),
    #[error("`{0}` is outside the context")]
    Outside(String),
    #[error(
        "`{0}` is fetched anew by every tool that reads it, so nobody could tell whether it changed"
    )]
    RemoteFile(String),
    #[error("`{0}` is not a wheel: it would be built for this machine, by running its code")]
    NotAWheel(String),
    #[error("`{0}` asks for source packages, which would be built for this machine")]
    Sources(String),
}

impl Requirements {
    /// Reads the file at `path` and all that it names, in `context`, where the tools start.
    pub(crate) fn read(path: &Path, context: &Path) -> Result<Self, BadRequirement> {
        let mut requirements = Self::default();
        let mut seen = BTreeSet::new();
        requirements.add(path, context, &mut seen)?;
        Ok(requirements)
    }

    fn add(
        &mut self,
        path: &Path,
        context: &Path,
        seen: &mut BTreeSet<PathBuf>,
    ) -> Result<(), BadRequirement> {
        if !seen.insert(path.to_owned()) {
            return Ok(());
        }
        let at = |line: usize| {
            move |problem| BadRequirement {
                file: path.to_owned(),
                line,
                problem,
            }
        };
        let bytes = std::fs::read(path).map_err(|error| at(1)(Problem::Unreadable(error)))?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        self.texts.push(text.clone());
        for (number, line) in logical_lines(&text) {
            let complain = at(number);
            self.has_hashes |= line.contains("--hash");
            match Line::read(&line) {
                Line::Other => {}
                Line::File(name) if name.contains("://") => {
                    return Err(complain(Problem::RemoteFile(shown(name))));
                }
                Line::File(name) => {
                    let folder = path.parent().unwrap_or(context);
                    let named = inside(&folder.join(name), context)
                        .ok_or_else(|| complain(Problem::Outside(shown(name))))?;
                    self.add(&named, context, seen)?;
                }
                Line::Links(name) if name.contains("://") && !name.starts_with("file:") => {}
                Line::Links(name) => {
                    let name = name.trim_start_matches("file://");
                    // pip looks beside the file first.
                    let folder = path.parent().unwrap_or(context);
                    let beside = folder.join(name);
                    self.local.push(if beside.exists() {
                        beside
                    } else {
                        context.join(name)
                    });
                }
                Line::Source(name) => return Err(complain(Problem::NotAWheel(shown(name)))),
                Line::Format(name) => return Err(complain(Problem::Sources(shown(name)))),
                Line::Wheel(name) if name.contains("://") && !name.starts_with("file:") => {}
                Line::Wheel(name) => {
                    let name = name.trim_start_matches("file://");
                    self.local.push(context.join(name));
                }
            }
        }
        Ok(())
    }
}

fn shown(text: &str) -> String {
    super::secrets::without_credentials(text)
}

/// The file at `path` when it lies in `context`, or is not there at all: the tool then says so.
fn inside(path: &Path, context: &Path) -> Option<PathBuf> {
    match path.canonicalize() {
        Ok(real) => real.starts_with(context).then_some(real),
        Err(_) => Some(path.to_owned()),
    }
}

/// What a line means here.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    /// `-r FILE` and `-c FILE`.
    File(&'a str),
    /// `--find-links`.
    Links(&'a str),
    /// A wheel, by path or URL.
    Wheel(&'a str),
    /// What is no wheel: a folder, an archive of sources, a repository.
    Source(&'a str),
    /// `--no-binary` and what undoes `--only-binary`.
    Format(&'a str),
    /// What only the tool has to understand.
    Other,
}

impl<'a> Line<'a> {
    fn read(line: &'a str) -> Self {
        let option = |long: &str, short: &str| {
            let value = match line.strip_prefix(long) {
                Some(rest) => rest.strip_prefix(['=', ' ', '\t'])?,
                None if short.is_empty() => return None,
                None => line
                    .strip_prefix(short)
                    .filter(|_| !line.starts_with("--"))?,
            };
            let value = value.trim().trim_matches(['"', '\'']);
            Some(value)
        };
        let file = option("--requirement", "-r").or_else(|| option("--constraint", "-c"));
        if let Some(file) = file {
            return Self::File(file);
        }
        if let Some(links) = option("--find-links", "-f") {
            return Self::Links(links);
        }
        if let Some(folder) = option("--editable", "-e") {
            return Self::Source(folder);
        }
        if option("--no-binary", "").is_some() || option("--only-binary", "").is_some() {
            return if option("--only-binary", "") == Some(":all:") {
                Self::Other
            } else {
                Self::Format(line)
            };
        }
        if line.starts_with('-') {
            return Self::Other;
        }
        Self::of_requirement(line)
    }

    fn of_requirement(line: &'a str) -> Self {
        // `name[extra] @ URL ; marker --hash=…`, or a path or URL alone.
        let first = line.split_whitespace().next().unwrap_or_default();
        let is_named = !first.contains('/') || first.contains('@') && !first.contains("://");
        let target = match line.split_once('@') {
            Some((name, target)) if is_named && !name.contains('/') => {
                target.split_whitespace().next().unwrap_or_default()
            }
            _ => first,
        };
        let path = target.split(['#', '?']).next().unwrap_or_default();
        let is_wheel = has_ending(path, ".whl");
        let is_archive = [".tar.gz", ".zip", ".tar.bz2", ".tar.xz", ".tgz"]
            .iter()
            .any(|ending| has_ending(path, ending));
        // Neither names nor versions have a slash; markers and hashes come after a space.
        let is_place = path.contains('/') || path.starts_with('.') || is_archive || is_wheel;
        match (is_place, is_wheel) {
            (false, _) => Self::Other,
            (true, true) => Self::Wheel(target.split('#').next().unwrap_or(target)),
            (true, false) => Self::Source(target),
        }
    }
}

fn has_ending(path: &str, ending: &str) -> bool {
    let start = path.len().checked_sub(ending.len());
    let end = start.and_then(|start| path.get(start..));
    end.is_some_and(|end| end.eq_ignore_ascii_case(ending))
}

/// Lines with those that continue them, without comments, and with the number of the first.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (index, line) in text.lines().enumerate() {
        let (continues, part) = match line.strip_suffix('\\') {
            Some(part) => (true, part),
            None => (false, line),
        };
        let (number, mut whole) = open.take().unwrap_or((index + 1, String::new()));
        whole.push_str(part);
        if continues {
            open = Some((number, whole));
        } else {
            lines.push((number, whole));
        }
    }
    lines.extend(open);
    lines
        .into_iter()
        .map(|(number, line)| (number, without_comment(&line).trim().to_owned()))
        .filter(|(_, line)| !line.is_empty())
        .collect()
}

/// `#` begins a comment at the start of a line and after a space: URLs have it too.
fn without_comment(line: &str) -> &str {
    let comment = line.match_indices('#').find(|(at, _)| {
        line[..*at]
            .chars()
            .next_back()
            .is_none_or(char::is_whitespace)
    });
    comment.map_or(line, |(at, _)| &line[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_the_tools_read_them() {
        for (line, expected) in [
            ("numpy==2.1.0", Line::Other),
            ("flask[async]>=3 ; python_version < '3.9'", Line::Other),
            ("--index-url https://host/simple", Line::Other),
            ("--pre", Line::Other),
            ("-r base.txt", Line::File("base.txt")),
            ("-rbase.txt", Line::File("base.txt")),
            ("--requirement=base.txt", Line::File("base.txt")),
            ("-c limits.txt", Line::File("limits.txt")),
            ("--constraint limits.txt", Line::File("limits.txt")),
            ("-f wheels", Line::Links("wheels")),
            (
                "--find-links=https://host/w/",
                Line::Links("https://host/w/"),
            ),
            ("-e .", Line::Source(".")),
            ("--editable ./lib", Line::Source("./lib")),
            ("./lib", Line::Source("./lib")),
            ("lib/", Line::Source("lib/")),
            (".", Line::Source(".")),
            ("thing.tar.gz", Line::Source("thing.tar.gz")),
            (
                "./w/a-1-py3-none-any.whl",
                Line::Wheel("./w/a-1-py3-none-any.whl"),
            ),
            (
                "a @ https://h/a-1-py3-none-any.whl#sha256=0",
                Line::Wheel("https://h/a-1-py3-none-any.whl"),
            ),
            (
                "a@ https://h/a-1.tar.gz",
                Line::Source("https://h/a-1.tar.gz"),
            ),
            (
                "a @ git+https://h/a@main",
                Line::Source("git+https://h/a@main"),
            ),
            (
                "git+ssh://git@h/a.git",
                Line::Source("git+ssh://git@h/a.git"),
            ),
            ("--no-binary :all:", Line::Format("--no-binary :all:")),
            ("--only-binary=numpy", Line::Format("--only-binary=numpy")),
            ("--only-binary=:all:", Line::Other),
        ] {
            assert_eq!(Line::read(line), expected, "{line}");
        }
    }

    #[test]
    fn comments_and_continuations_are_undone() {
        let text = "# all\na==1 \\\n  --hash=sha256:0 # why\n\nb @ https://h/b.whl#x=1\nc\\";
        let lines: Vec<_> = logical_lines(text);
        assert_eq!(
            lines,
            [
                (2, "a==1   --hash=sha256:0".to_owned()),
                (5, "b @ https://h/b.whl#x=1".to_owned()),
                (6, "c".to_owned()),
            ]
        );
    }

    #[test]
    fn files_are_followed_and_kept_in_the_context() {
        let outer = tempfile::tempdir().unwrap();
        let context = outer.path().canonicalize().unwrap().join("context");
        std::fs::create_dir_all(context.join("req")).unwrap();
        std::fs::write(context.parent().unwrap().join("out.txt"), "x").unwrap();
        let write = |name: &str, text: &str| {
            let path = context.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        write("req/limits.txt", "-r base.txt\n");
        write("req/base.txt", "-c limits.txt\na==1 --hash=sha256:0\n");
        let top = write("requirements.txt", "-r req/base.txt\n./w/b.whl\n");
        let read = Requirements::read(&top, &context).unwrap();
        assert_eq!(read.texts.len(), 3);
        assert!(read.has_hashes);
        assert_eq!(read.local, [context.join("./w/b.whl")]);

        for (text, problem) in [
            (
                "a\n-r ../out.txt",
                ":2: `../out.txt` is outside the context",
            ),
            (
                "-r https://u:secret@h/x.txt",
                ":1: `https://****@h/x.txt` is fetched anew",
            ),
            ("-e ./lib", ":1: `./lib` is not a wheel"),
            (
                "a @ git+https://token@h/a",
                "`git+https://****@h/a` is not a wheel",
            ),
            (
                "a\n\n--no-binary a",
                ":3: `--no-binary a` asks for source packages",
            ),
            ("-r gone.txt", "gone.txt:1: the file cannot be read"),
        ] {
            let path = write("bad.txt", text);
            let error = Requirements::read(&path, &context).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }
}
