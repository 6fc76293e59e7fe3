//! The dialect of `.dockerignore`.
//!
//! It looks like that of `.gitignore` and is another: patterns are anchored at the root, cleaned
//! like paths, matched against a path and all its parents, and the last that matches decides. The
//! semantics are those of `moby/patternmatcher`, with which Docker and `BuildKit` match, except where
//! that leaks the syntax of the regular expressions it is made of (a `^` outside brackets is a plain
//! character here) and that a `.` there does not match a newline.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use regex::Regex;

/// A list of patterns.
///
/// Paths are bytes, `/`-separated and relative to wherever the patterns are anchored. In a name that
/// is not UTF-8, each stray byte counts as one character.
#[derive(Debug, Clone, Default)]
pub struct Matcher {
    patterns: Vec<Pattern>,
}

/// A pattern that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: bad pattern `{pattern}`: {problem}", origin(.file.as_deref(), *.line))]
pub struct BadPattern {
    /// The file it stands in, if any.
    pub file: Option<PathBuf>,
    /// The line in that file, or the place in the list, from one.
    pub line: usize,
    /// The pattern as it is written.
    pub pattern: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

fn origin(file: Option<&Path>, line: usize) -> String {
    match file {
        Some(file) => format!("{}, line {line}", file.display()),
        None => format!("pattern {line}"),
    }
}

/// Which patterns match a directory, for matching what is in it.
#[derive(Debug, Clone, Default)]
pub struct Matched {
    patterns: Vec<bool>,
    is_match: bool,
}

impl Matched {
    /// Whether the path itself is matched.
    pub fn is_match(&self) -> bool {
        self.is_match
    }
}

#[derive(Debug, Clone)]
struct Pattern {
    reincludes: bool,
    form: Form,
}

/// Most patterns need no regular expression.
#[derive(Debug, Clone)]
enum Form {
    Exact(String),
    Prefix(String),
    /// Also matches without its leading slash.
    Suffix(String),
    Regex(Regex),
}

impl Matcher {
    /// Takes patterns one by one, as from a configuration.
    pub fn new<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Result<Self, BadPattern> {
        let mut matcher = Self::default();
        for (index, pattern) in patterns.into_iter().enumerate() {
            matcher.push(pattern.as_ref(), None, index + 1)?;
        }
        Ok(matcher)
    }

    /// Reads the text of an ignore file; `file` is named in errors. Lines that begin with `#` are
    /// comments, a byte order mark is ignored.
    pub fn parse(text: &[u8], file: &Path) -> Result<Self, BadPattern> {
        let mut matcher = Self::default();
        let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
        for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
            if !line.starts_with(b"#") {
                matcher.push(&decode(line), Some(file), index + 1)?;
            }
        }
        Ok(matcher)
    }

    /// Whether there is no pattern.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether a pattern may re-include what is in a directory that is matched, so that the
    /// directory must be looked into.
    pub fn reincludes(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.reincludes)
    }

    /// Whether the last pattern that matches the path or one of its parents is not a `!` one.
    pub fn is_match(&self, path: &[u8]) -> bool {
        self.matched(path).is_match
    }

    /// Matches a path by walking down to it.
    pub fn matched(&self, path: &[u8]) -> Matched {
        let ends = path
            .iter()
            .enumerate()
            .filter_map(|(at, &byte)| (byte == b'/').then_some(at))
            .chain([path.len()]);
        ends.fold(Matched::default(), |parent, end| {
            self.matched_in(&parent, &path[..end])
        })
    }

    /// Matches a path whose parent directory was matched before. At the root the parent is
    /// `Matched::default()`.
    pub fn matched_in(&self, parent: &Matched, path: &[u8]) -> Matched {
        let path = decode(path);
        let mut is_match = false;
        let mut patterns = Vec::with_capacity(self.patterns.len());
        for (index, pattern) in self.patterns.iter().enumerate() {
            let of_parent = parent.patterns.get(index).copied().unwrap_or(false);
            let matches = of_parent || pattern.form.matches(&path);
            if matches {
                is_match = !pattern.reincludes;
            }
            patterns.push(matches);
        }
        Matched { patterns, is_match }
    }

    /// Whether [`Matcher::matched_in`] would match the path, for one that holds no others.
    pub(crate) fn is_match_in(&self, parent: &Matched, path: &[u8]) -> bool {
        if self.patterns.is_empty() {
            return false;
        }
        let path = decode(path);
        // The last that matches decides, so those before it need not be asked.
        self.patterns
            .iter()
            .enumerate()
            .rev()
            .find(|(index, pattern)| {
                parent.patterns.get(*index).copied().unwrap_or(false) || pattern.form.matches(&path)
            })
            .is_some_and(|(_, pattern)| !pattern.reincludes)
    }

    fn push(&mut self, text: &str, file: Option<&Path>, line: usize) -> Result<(), BadPattern> {
        let bad = |problem| BadPattern {
            file: file.map(Path::to_owned),
            line,
            pattern: crate::path::readable(text.trim().as_bytes()),
            problem,
        };
        let trimmed = text.trim();
        let (reincludes, pattern) = match trimmed.strip_prefix('!') {
            Some("") => return Err(bad("nothing follows the `!`")),
            Some(pattern) => (true, pattern.trim()),
            None => (false, trimmed),
        };
        if pattern.is_empty() {
            return Ok(());
        }
        let form = Form::parse(&clean(pattern)).map_err(bad)?;
        self.patterns.push(Pattern { reincludes, form });
        Ok(())
    }
}

/// Makes text of bytes so that every byte that is not UTF-8 is one character of its own. They are
/// taken from the end of the last private plane, where no name of anybody's is.
fn decode(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(bytes.len() * 2);
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(
            chunk
                .invalid()
                .iter()
                .filter_map(|&byte| char::from_u32(0x0010_fe00 + u32::from(byte))),
        );
    }
    Cow::Owned(text)
}

/// The pattern as a path has it: no empty, `.` or inner `..` components, no slash at either end.
fn clean(pattern: &str) -> String {
    let mut components: Vec<&str> = Vec::new();
    let rooted = pattern.starts_with('/');
    for component in pattern.split('/') {
        match component {
            "" | "." => {}
            ".." => match components.last() {
                Some(&last) if last != ".." => {
                    components.pop();
                }
                _ if rooted => {}
                _ => components.push(".."),
            },
            _ => components.push(component),
        }
    }
    components.join("/")
}

impl Form {
    fn parse(pattern: &str) -> Result<Self, &'static str> {
        let mut regex = String::from(r"(?s)\A");
        let mut literal = String::new();
        // What can be said without a regular expression: `literal`, `literal**`, `**literal`.
        let (mut leading, mut trailing, mut plain) = (false, false, true);
        let mut characters = pattern.chars().peekable();
        let mut first = true;
        while let Some(character) = characters.next() {
            match character {
                '*' if characters.next_if_eq(&'*').is_some() => {
                    // `**/` crosses any number of directories, none included.
                    characters.next_if_eq(&'/');
                    let last = characters.peek().is_none();
                    if last {
                        regex.push_str(".*");
                    } else {
                        regex.push_str("(?:.*/)?");
                    }
                    match (first, last) {
                        (true, _) => leading = true,
                        (false, true) => trailing = true,
                        (false, false) => plain = false,
                    }
                }
                '*' => {
                    regex.push_str("[^/]*");
                    plain = false;
                }
                '?' => {
                    regex.push_str("[^/]");
                    plain = false;
                }
                '[' => {
                    push_class(&mut regex, &mut characters)?;
                    plain = false;
                }
                '\\' => {
                    let escaped = characters.next().ok_or("nothing follows the `\\`")?;
                    push_literal(&mut regex, escaped);
                    // `**` means more at the start of a pattern that needs no regular expression.
                    plain = false;
                }
                _ => {
                    push_literal(&mut regex, character);
                    literal.push(character);
                }
            }
            first = false;
        }
        Ok(match (plain, leading, trailing) {
            (true, false, false) => Self::Exact(literal),
            (true, false, true) => Self::Prefix(literal),
            (true, true, false) => {
                // The slash of `**/` was eaten; whether there was one decides what matches.
                let slash = pattern.starts_with("**/") && !literal.is_empty();
                Self::Suffix(if slash {
                    format!("/{literal}")
                } else {
                    literal
                })
            }
            _ => {
                regex.push_str(r"\z");
                Self::Regex(Regex::new(&regex).map_err(|_| "it is too large")?)
            }
        })
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => path.starts_with(prefix),
            Self::Suffix(suffix) => {
                path.ends_with(suffix) || suffix.strip_prefix('/') == Some(path)
            }
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}

fn push_literal(regex: &mut String, character: char) {
    let mut buffer = [0; 4];
    regex.push_str(&regex::escape(character.encode_utf8(&mut buffer)));
}

/// Translates what follows a `[`, with the grammar of Go's `filepath.Match`: an optional `^`, then
/// one or more characters or ranges, with `\` before any of them.
fn push_class(
    regex: &mut String,
    characters: &mut std::iter::Peekable<std::str::Chars<'_>>,
) -> Result<(), &'static str> {
    const OPEN: &str = "the `[` is not closed";
    let member = |characters: &mut std::iter::Peekable<std::str::Chars<'_>>| match characters
        .next()
        .ok_or(OPEN)?
    {
        '-' => Err("a `-` in brackets stands between two characters or after a `\\`"),
        ']' => Err("the brackets are empty"),
        '\\' => characters.next().ok_or(OPEN),
        character => Ok(character),
    };
    regex.push('[');
    if characters.next_if_eq(&'^').is_some() {
        regex.push('^');
    }
    loop {
        let low = member(characters)?;
        let high = if characters.next_if_eq(&'-').is_some() {
            member(characters)?
        } else {
            low
        };
        if low > high {
            return Err("a range in brackets runs backwards");
        }
        for (character, end) in [(low, '-'), (high, ' ')] {
            write!(regex, "\\x{{{:x}}}", u32::from(character)).expect("a string takes every write");
            if end == '-' {
                regex.push('-');
            }
        }
        if characters.next_if_eq(&']').is_some() {
            regex.push(']');
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(patterns: &[&str], path: &[u8]) -> bool {
        Matcher::new(patterns).unwrap().is_match(path)
    }

    #[test]
    fn single_patterns() {
        for (pattern, path, expected) in [
            // Anchored at the root, and everything below is matched too.
            ("foo", "foo", true),
            ("foo", "foo/bar", true),
            ("foo", "sub/foo", false),
            ("foo", "foobar", false),
            ("*.py", "a.py", true),
            ("*.py", "sub/a.py", false),
            ("*/a.py", "sub/a.py", true),
            ("*/a.py", "a.py", false),
            ("sub/*", "sub/x/y", true),
            ("sub/*", "sub", false),
            ("fo?", "foo", true),
            ("fo?", "fo/", false),
            ("a?b", "aéb", true),
            ("a??b", "aéb", false),
            // Cleaned like paths.
            ("./foo/", "foo", true),
            ("/foo", "foo", true),
            ("a/../foo", "foo", true),
            ("/../foo", "foo", true),
            ("../foo", "foo", false),
            ("foo//bar/.", "foo/bar", true),
            ("  foo\t", "foo", true),
            (".", "foo", false),
            ("/", "foo", false),
            // Two stars.
            ("**", "anything/at/all", true),
            ("**/", "anything", true),
            ("**/foo", "foo", true),
            ("**/foo", "a/b/foo", true),
            ("**/foo", "a/xfoo", false),
            ("**foo", "a/xfoo", true),
            ("**foo", "foo/x", true),
            ("foo/**", "foo", false),
            ("foo/**", "foo/x/y", true),
            ("foo**", "foobar/x", true),
            ("a/**/b", "a/b", true),
            ("a/**/b", "a/x/y/b", true),
            ("a/**/b", "a/xb", false),
            ("**/*.pyc", "x.pyc", true),
            ("**/*.pyc", "a/b/x.pyc", true),
            ("**/__pycache__", "a/__pycache__/x.pyc", true),
            ("**/a/**", "x/a/y", true),
            ("**/a/**", "a", false),
            ("**/**", "a/b", true),
            ("dir/**/*.md", "dir/a.md", true),
            // Classes and escapes.
            ("[a-c]x", "bx", true),
            ("[a-c]x", "dx", false),
            ("[^a-c]x", "dx", true),
            ("[!a]x", "!x", true),
            ("[\\]]", "]", true),
            ("[\\-x]", "-", true),
            ("[\\^]", "^", true),
            ("[[&&~~]", "&", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("\\!x", "!x", true),
            ("a\\b", "ab", true),
            // Characters that mean something to regular expressions only.
            ("a.b", "axb", false),
            ("a+(b){2}|$^", "a+(b){2}|$^", true),
            ("*^", "a^", true),
            ("{a,b}", "a", false),
            ("a\nb", "a\nb", true),
            ("a*b", "a\nb", true),
        ] {
            assert_eq!(
                matches(&[pattern], path.as_bytes()),
                expected,
                "`{pattern}` on `{path}`"
            );
        }
    }

    #[test]
    fn the_last_match_decides() {
        for (patterns, path, expected) in [
            (&["*", "!a"][..], "a", false),
            (&["*", "!a"], "b", true),
            (&["!a", "*"], "a", true),
            (&["docs", "!docs/README.md"], "docs/README.md", false),
            (&["docs", "!docs/README.md"], "docs/x", true),
            (&["docs", "!docs/keep"], "docs/keep/deep/x", false),
            (&["docs", "!docs/keep", "docs/keep/x"], "docs/keep/x", true),
            (
                &["*.md", "!README*.md", "README-secret.md"],
                "README-secret.md",
                true,
            ),
            (&["a/b", "!a"], "a/b", false),
            (&["a/b", "!a", "a/b/c"], "a/b/c", true),
            (&["**", "!**/*.rs"], "src/x/main.rs", false),
            (&["x", "! x"], "x", false),
        ] {
            assert_eq!(
                matches(patterns, path.as_bytes()),
                expected,
                "{patterns:?} on `{path}`"
            );
        }
    }

    #[test]
    fn names_that_are_not_utf8() {
        assert!(matches(&["*.txt"], b"a\xff\xfe.txt"));
        assert!(matches(&["a??.txt"], b"a\xff\xfe.txt"));
        assert!(!matches(&["a?.txt"], b"a\xff\xfe.txt"));
        assert!(matches(&["**/x"], b"\xc3/x"));
        let matcher = Matcher::parse(b"caf\xe9\n", Path::new("f")).unwrap();
        assert!(matcher.is_match(b"caf\xe9"));
        assert!(!matcher.is_match("café".as_bytes()));
    }

    #[test]
    fn ignore_files_have_comments_blank_lines_and_a_mark() {
        let text = "\u{feff}# comment\n\n  \t\nfoo\r\n #bar\n!foo/keep\n";
        let matcher = Matcher::parse(text.as_bytes(), Path::new(".dockerignore")).unwrap();
        assert_eq!(matcher.patterns.len(), 3);
        assert!(matcher.is_match(b"foo/x"));
        assert!(!matcher.is_match(b"foo/keep"));
        // Only a line that begins with it is a comment.
        assert!(matcher.is_match(b"#bar"));
        assert!(matcher.reincludes());
        assert!(!matcher.is_match(b"comment"));
    }

    #[test]
    fn bad_patterns_name_file_and_line() {
        for (pattern, problem) in [
            ("[a", "the `[` is not closed"),
            ("[", "the `[` is not closed"),
            ("[]a]", "the brackets are empty"),
            (
                "[-a]",
                "a `-` in brackets stands between two characters or after a `\\`",
            ),
            ("[b-a]", "a range in brackets runs backwards"),
            ("a\\", "nothing follows the `\\`"),
            ("!", "nothing follows the `!`"),
        ] {
            let text = format!("ok\n{pattern}\n");
            let error =
                Matcher::parse(text.as_bytes(), Path::new("src/.dockerignore")).unwrap_err();
            let expected = format!("src/.dockerignore, line 2: bad pattern `{pattern}`: {problem}");
            assert_eq!(error.to_string(), expected);
        }
        let error = Matcher::new(["a", "[b"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "pattern 2: bad pattern `[b`: the `[` is not closed"
        );
    }

    #[test]
    fn walking_down_gives_the_same_as_asking_at_once() {
        let matcher = Matcher::new(["a", "!a/b", "a/b/*.c", "!**/keep.c"]).unwrap();
        let a = matcher.matched_in(&Matched::default(), b"a");
        let b = matcher.matched_in(&a, b"a/b");
        for name in ["a/b/x.c", "a/b/keep.c", "a/b/y"] {
            let walked = matcher.matched_in(&b, name.as_bytes()).is_match();
            assert_eq!(walked, matcher.is_match(name.as_bytes()), "{name}");
            assert_eq!(walked, matcher.is_match_in(&b, name.as_bytes()), "{name}");
        }
    }
}
