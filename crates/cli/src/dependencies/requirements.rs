//! Requirement files: what they say, and what they must not say.
//!
//! pip and uv read them; this looks for what the result depends on besides, and for lines that would
//! make a tool run code of a package on this machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::secrets::percent_decoded;
use crate::environment::Variables;

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
    #[error("the file is not in UTF-8, and tools guess differently what else it is in")]
    Encoding,
    #[error("a comment ends in `\\`, behind which some tools go on and some do not")]
    OpenComment,
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

impl BadRequirement {
    /// Whether a tool would have to build something.
    pub(crate) fn needs_a_build(&self) -> bool {
        matches!(self.problem, Problem::NotAWheel(_) | Problem::Sources(_))
    }
}

impl Requirements {
    /// Reads the file at `path` and all that it names, in `context`, where the tools start.
    /// `${NAME}` is what `variables` say, as it is for the tools.
    pub(crate) fn read(
        path: &Path,
        context: &Path,
        variables: &Variables,
    ) -> Result<Self, BadRequirement> {
        let mut requirements = Self::default();
        let mut seen = BTreeSet::new();
        requirements.add(path, context, variables, &mut seen)?;
        Ok(requirements)
    }

    fn add(
        &mut self,
        path: &Path,
        context: &Path,
        variables: &Variables,
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
        let text = String::from_utf8(bytes).map_err(|_| at(1)(Problem::Encoding))?;
        // The mark that Windows puts at the beginning is no part of the first line.
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        self.texts.push(text.to_owned());
        for (number, written) in logical_lines(text) {
            let complain = at(number);
            let written = written.ok_or_else(|| complain(Problem::OpenComment))?;
            let line = expanded(&written, variables);
            // What a variable stands for may be secret.
            let shown = |part: &str| shown(if line == written { part } else { &written });
            self.has_hashes |= line.contains("--hash");
            for part in Part::read(&line) {
                match part {
                    Part::Other => {}
                    Part::File(name) if is_remote(&name) => {
                        return Err(complain(Problem::RemoteFile(shown(&name))));
                    }
                    Part::File(name) => {
                        let folder = path.parent().unwrap_or(context);
                        let named = inside(&folder.join(local_path(&name)), context)
                            .ok_or_else(|| complain(Problem::Outside(shown(&name))))?;
                        self.add(&named, context, variables, seen)?;
                    }
                    Part::Links(name) if is_remote(&name) => {}
                    Part::Links(name) => {
                        // pip looks beside the file first, uv where it runs.
                        let folder = path.parent().unwrap_or(context);
                        let name = local_path(&name);
                        self.local.push(folder.join(&name));
                        if folder != context {
                            self.local.push(context.join(&name));
                        }
                    }
                    Part::Source(name) => return Err(complain(Problem::NotAWheel(shown(&name)))),
                    Part::Format(name) => return Err(complain(Problem::Sources(shown(&name)))),
                    Part::Wheel(name) if is_remote(&name) => {}
                    Part::Wheel(name) => self.local.push(context.join(local_path(&name))),
                }
            }
        }
        Ok(())
    }
}

fn shown(text: &str) -> String {
    super::secrets::without_credentials(text)
}

fn is_remote(name: &str) -> bool {
    name.contains("://") && !name.starts_with("file:")
}

/// The path in a `file:` URL, or the path that it is already.
fn local_path(name: &str) -> String {
    let Some(url) = name.strip_prefix("file:") else {
        return name.to_owned();
    };
    let path = match url.strip_prefix("//") {
        Some(rest) => rest.strip_prefix("localhost").unwrap_or(rest),
        None => url,
    };
    percent_decoded(path)
}

/// The file at `path` when it lies in `context`, or is not there at all: the tool then says so.
fn inside(path: &Path, context: &Path) -> Option<PathBuf> {
    match path.canonicalize() {
        Ok(real) => real.starts_with(context).then_some(real),
        Err(_) => Some(path.to_owned()),
    }
}

/// `text` with what `${NAME}` in it stands for, where there is such a variable: pip and uv leave it
/// as it is where there is none.
pub(crate) fn expanded(text: &str, variables: &Variables) -> String {
    let mut parts = text.split("${");
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let value = part.split_once('}').and_then(|(name, rest)| {
            let value = variables.get(name)?.to_str()?;
            Some((value, rest))
        });
        match value {
            Some((value, rest)) => {
                whole.push_str(value);
                whole.push_str(rest);
            }
            None => {
                whole.push_str("${");
                whole.push_str(part);
            }
        }
    }
    whole
}

/// What a part of a line means here.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// `-r FILE` and `-c FILE`.
    File(String),
    /// `--find-links`.
    Links(String),
    /// A wheel, by path or URL.
    Wheel(String),
    /// What is no wheel: a folder, an archive of sources, a repository.
    Source(String),
    /// `--no-binary` and what undoes `--only-binary`.
    Format(String),
    /// What only the tool has to understand.
    Other,
}

/// What the value of an option means.
type Meaning = fn(String) -> Part;

/// Options with a value, long and short. pip takes them abbreviated too.
const OPTIONS: [(&str, &str, Meaning); 10] = [
    ("--requirement", "-r", Part::File),
    ("--constraint", "-c", Part::File),
    ("--find-links", "-f", Part::Links),
    ("--editable", "-e", Part::Source),
    ("--no-binary", "", Part::Format),
    ("--only-binary", "", |value| match value.as_str() {
        ":all:" => Part::Other,
        _ => Part::Format(format!("--only-binary={value}")),
    }),
    ("--index-url", "-i", |_| Part::Other),
    ("--extra-index-url", "", |_| Part::Other),
    ("--trusted-host", "", |_| Part::Other),
    ("--use-feature", "", |_| Part::Other),
];

impl Part {
    /// The parts of a line: options, of which it may have several, or a requirement.
    fn read(line: &str) -> Vec<Self> {
        if !line.starts_with('-') {
            return vec![Self::of_requirement(line)];
        }
        let mut parts = Vec::new();
        let mut words = words(line).into_iter();
        while let Some(word) = words.next() {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) if word.starts_with("--") => (name, Some(value)),
                _ => (word.as_str(), None),
            };
            let long = OPTIONS
                .iter()
                .find(|(long, ..)| name.len() > 2 && long.starts_with(name));
            let short = || {
                let mut all = OPTIONS.iter().filter(|(_, short, _)| !short.is_empty());
                let found = all.find(|(_, short, _)| word.starts_with(short))?;
                let value = word.get(found.1.len()..).filter(|value| !value.is_empty());
                Some((found, value))
            };
            let found = long.map(|option| (option, value)).or_else(short);
            if let Some((&(long, _, meaning), value)) = found {
                let value = value.map(str::to_owned).or_else(|| words.next());
                let part = meaning(value.unwrap_or_default());
                parts.push(match part {
                    Self::Format(value) if long == "--no-binary" => {
                        Self::Format(format!("--no-binary={value}"))
                    }
                    part => part,
                });
            }
        }
        parts
    }

    fn of_requirement(line: &str) -> Self {
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
        let path = match path
            .strip_suffix(']')
            .and_then(|path| path.rsplit_once('['))
        {
            Some((path, _)) => path,
            None => path,
        };
        let is_wheel = has_ending(path, ".whl");
        // As pip knows them.
        let is_archive = [
            ".tar.gz",
            ".zip",
            ".tar.bz2",
            ".tar.xz",
            ".tgz",
            ".tbz",
            ".txz",
            ".tlz",
            ".tar",
            ".tar.lz",
            ".tar.lzma",
        ]
        .iter()
        .any(|ending| has_ending(path, ending));
        // Neither names nor versions have a slash; markers and hashes come after a space.
        let is_place = path.contains('/')
            || path.starts_with('.')
            || path.starts_with("file:")
            || is_archive
            || is_wheel;
        match (is_place, is_wheel) {
            (false, _) => Self::Other,
            (true, true) => Self::Wheel(path.to_owned()),
            (true, false) => Self::Source(target.to_owned()),
        }
    }
}

/// The words of a line, as a shell has them.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), _) if open == letter => quote = None,
            (None, '"' | '\'') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => word.get_or_insert_default().extend(letters.next()),
            (None, _) if letter.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

fn has_ending(path: &str, ending: &str) -> bool {
    let start = path.len().checked_sub(ending.len());
    let end = start.and_then(|start| path.get(start..));
    end.is_some_and(|end| end.eq_ignore_ascii_case(ending))
}

/// Where a line ends for pip: all that Python takes for an end of line.
const LINE_ENDS: [char; 10] = [
    '\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}',
];

/// Lines with those that continue them, without comments, and with the number of the first; `None`
/// for one that the tools do not agree on.
fn logical_lines(text: &str) -> Vec<(usize, Option<String>)> {
    let text = text.replace("\r\n", "\n");
    let mut lines = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (index, line) in text.split(LINE_ENDS).enumerate() {
        let (number, mut whole) = open.take().unwrap_or((index + 1, String::new()));
        let content = without_comment(line);
        // A line that is all comment is never continued, and ends what it continues.
        let is_open = line.ends_with('\\') && !content.trim().is_empty();
        if is_open && content.len() < line.len() {
            lines.push((number, None));
        } else if is_open {
            whole.push_str(line.trim_matches('\\'));
            open = Some((number, whole));
        } else {
            whole.push_str(content);
            lines.push((number, Some(whole)));
        }
    }
    lines.extend(open.map(|(number, line)| (number, Some(line))));
    let trimmed = lines.into_iter().map(|(number, line)| {
        let line = line.map(|line| line.trim().to_owned());
        (number, line)
    });
    trimmed
        .filter(|(_, line)| line.as_ref().is_none_or(|line| !line.is_empty()))
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
            ("numpy==2.1.0", Part::Other),
            ("flask[async]>=3 ; python_version < '3.9'", Part::Other),
            ("--index-url https://host/simple", Part::Other),
            ("-r base.txt", Part::File("base.txt".to_owned())),
            ("-rbase.txt", Part::File("base.txt".to_owned())),
            ("--requirement=base.txt", Part::File("base.txt".to_owned())),
            ("-c limits.txt", Part::File("limits.txt".to_owned())),
            (
                "--constraint limits.txt",
                Part::File("limits.txt".to_owned()),
            ),
            ("-f wheels", Part::Links("wheels".to_owned())),
            (
                "--find-links=https://host/w/",
                Part::Links("https://host/w/".to_owned()),
            ),
            ("-e .", Part::Source(".".to_owned())),
            ("--editable ./lib", Part::Source("./lib".to_owned())),
            ("./lib", Part::Source("./lib".to_owned())),
            ("lib/", Part::Source("lib/".to_owned())),
            (".", Part::Source(".".to_owned())),
            ("thing.tar.gz", Part::Source("thing.tar.gz".to_owned())),
            (
                "./w/a-1-py3-none-any.whl",
                Part::Wheel("./w/a-1-py3-none-any.whl".to_owned()),
            ),
            (
                "a @ https://h/a-1-py3-none-any.whl#sha256=0",
                Part::Wheel("https://h/a-1-py3-none-any.whl".to_owned()),
            ),
            (
                "a@ https://h/a-1.tar.gz",
                Part::Source("https://h/a-1.tar.gz".to_owned()),
            ),
            (
                "a @ git+https://h/a@main",
                Part::Source("git+https://h/a@main".to_owned()),
            ),
            (
                "git+ssh://git@h/a.git",
                Part::Source("git+ssh://git@h/a.git".to_owned()),
            ),
            (
                "--no-binary :all:",
                Part::Format("--no-binary=:all:".to_owned()),
            ),
            (
                "--only-binary=numpy",
                Part::Format("--only-binary=numpy".to_owned()),
            ),
            ("--only-binary=:all:", Part::Other),
            (".[extra]", Part::Source(".[extra]".to_owned())),
            ("a.tlz", Part::Source("a.tlz".to_owned())),
            (
                "a-1-py3-none-any.whl[x]",
                Part::Wheel("a-1-py3-none-any.whl".to_owned()),
            ),
            ("file:lib", Part::Source("file:lib".to_owned())),
            (
                "a @ file:w/a.whl#x=1",
                Part::Wheel("file:w/a.whl".to_owned()),
            ),
        ] {
            assert_eq!(Part::read(line), [expected], "{line}");
        }
    }

    #[test]
    fn comments_and_continuations_are_undone() {
        let text = "# all\na==1 \\\n  --hash=sha256:0 # why\n\nb @ https://h/b.whl#x=1\nc\\";
        let lines: Vec<_> = logical_lines(text);
        assert_eq!(
            lines,
            [
                (2, Some("a==1   --hash=sha256:0".to_owned())),
                (5, Some("b @ https://h/b.whl#x=1".to_owned())),
                (6, Some("c".to_owned())),
            ]
        );
        let texts = |text: &str| {
            let lines = logical_lines(text).into_iter();
            lines.map(|(_, line)| line).collect::<Vec<_>>()
        };
        let some = |text: &str| Some(text.to_owned());
        // A comment hides neither what stands below it nor behind another kind of line end.
        assert_eq!(texts("# why \\\n-e ./lib"), [some("-e ./lib")]);
        assert_eq!(
            texts("# why\r-e ./lib\u{b}-e ."),
            [some("-e ./lib"), some("-e .")]
        );
        assert_eq!(texts("a==1 \\\r\n --pre\r\n"), [some("a==1  --pre")]);
        assert_eq!(texts("a==1 # why \\\n-e ./lib"), [None, some("-e ./lib")]);
    }

    #[test]
    fn a_line_may_have_several_options() {
        for (line, expected) in [
            ("--pre", vec![]),
            ("--pre -r more.txt", vec![Part::File("more.txt".to_owned())]),
            (
                "--no-index --find-links 'my wheels'",
                vec![Part::Links("my wheels".to_owned())],
            ),
            (
                "-i https://h/ --edit=./lib",
                vec![Part::Other, Part::Source("./lib".to_owned())],
            ),
            (
                "--only-binary=:all: --no-binary a",
                vec![Part::Other, Part::Format("--no-binary=a".to_owned())],
            ),
            ("-", vec![]),
            ("--", vec![]),
            ("-r", vec![Part::File(String::new())]),
        ] {
            assert_eq!(Part::read(line), expected, "{line}");
        }
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
        // As Windows writes it.
        let top = write(
            "requirements.txt",
            "\u{feff}-r req/base.txt\r\n./w/b.whl\r\n-f file:w%20s\r\n",
        );
        let variables = Variables::of([("LIB", "./lib"), ("TOKEN", "secret")]);
        let read = Requirements::read(&top, &context, &variables).unwrap();
        assert_eq!(read.texts.len(), 3);
        assert!(read.has_hashes);
        assert_eq!(read.local, [context.join("./w/b.whl"), context.join("w s")]);

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
                ":3: `--no-binary=a` asks for source packages",
            ),
            ("--pre -e ./lib", ":1: `./lib` is not a wheel"),
            // What the tools put in for it is not hidden, and not shown.
            ("${LIB}", ":1: `${LIB}` is not a wheel"),
            (
                "-e ${TOKEN}/${LIB}",
                ":1: `-e ${TOKEN}/${LIB}` is not a wheel",
            ),
            ("a==1 # b \\\nc", ":1: a comment ends in `\\`"),
            ("-r gone.txt", "gone.txt:1: the file cannot be read"),
        ] {
            let path = write("bad.txt", text);
            let error = Requirements::read(&path, &context, &variables)
                .unwrap_err()
                .to_string();
            assert!(error.contains(problem), "{error}");
        }
        std::fs::write(context.join("bad.txt"), b"\xff\xfea\0").unwrap();
        let error = Requirements::read(&context.join("bad.txt"), &context, &variables);
        assert!(error.unwrap_err().to_string().contains("not in UTF-8"));
    }

    #[test]
    fn any_text_is_read() {
        use crate::dependencies::secrets::without_credentials;
        const PIECES: [&str; 22] = [
            "--", "-", "r", "=", " ", "\\", "\n", "\"", "'", "#", "${", "}", "A", "@", "://", "é",
            "[", "]", "file:", ".whl", "\r", "?",
        ];
        let variables = Variables::of([("A", "${A}\n")]);
        for number in 0..PIECES.len().pow(3) {
            let digit = |place: u32| PIECES[number / PIECES.len().pow(place) % PIECES.len()];
            let text = [0, 1, 2].map(digit).concat();
            for (_, line) in logical_lines(&text) {
                let Some(line) = line else { continue };
                assert!(!line.contains('\n') && !line.is_empty(), "{text:?}");
                for part in Part::read(&expanded(&line, &variables)) {
                    if let Part::Wheel(name) | Part::Links(name) | Part::File(name) = part {
                        local_path(&name);
                    }
                }
            }
            let shown = without_credentials(&text);
            assert_eq!(without_credentials(&shown), shown, "{text:?}");
        }
    }
}
