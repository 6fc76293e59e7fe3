//! What the function's environment is told: `--env-file` and `-e`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tierce_runner::environment::is_reserved;

use crate::diagnostic::{Hinted as _, UsageError};
use crate::environment::Variables;
use crate::run::arguments::EnvArgument;

/// A line of an env file is not what it should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}:{line}: {problem}", path.display())]
pub(crate) struct EnvFileError {
    path: PathBuf,
    line: usize,
    problem: Problem,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error("there is no name before the `=`")]
    NoName,
    #[error("the name `{0}` has spaces in it")]
    Spaces(String),
    #[error("the line is not UTF-8")]
    NotUtf8,
}

/// Reads an env file as Docker does: a line is a variable, and nothing in it is quoted or expanded.
/// Empty lines and those that begin with `#` say nothing
/// (docs.docker.com, "docker container run", `--env-file`).
fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<EnvArgument>, EnvFileError> {
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let mut variables = Vec::new();
    for (number, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let wrong = |problem| EnvFileError {
            path: path.to_owned(),
            line: number + 1,
            problem,
        };
        let line = std::str::from_utf8(line).map_err(|_| wrong(Problem::NotUtf8))?;
        let line = line.strip_suffix('\r').unwrap_or(line).trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (line.trim_end(), None),
        };
        if name.is_empty() {
            return Err(wrong(Problem::NoName));
        }
        if name.contains(char::is_whitespace) {
            return Err(wrong(Problem::Spaces(name.to_owned())));
        }
        variables.push(EnvArgument {
            name: name.to_owned(),
            value,
        });
    }
    Ok(variables)
}

/// Reads an env file.
fn read(path: &Path) -> Result<Vec<EnvArgument>> {
    let bytes =
        std::fs::read(path).with_context(|| format!("could not read {}", path.display()))?;
    Ok(parse(path, &bytes)?)
}

/// What the function is configured with: files in their order, then flags; the last one of a name
/// counts. A name without a value has the one of `here`, and is left out where that has none.
pub(crate) fn settle(
    files: &[PathBuf],
    flags: &[EnvArgument],
    here: &Variables,
) -> Result<BTreeMap<String, String>> {
    let mut said = Vec::new();
    for path in files {
        said.extend(read(path)?);
    }
    said.extend_from_slice(flags);
    let mut settled = BTreeMap::new();
    for EnvArgument { name, value } in said {
        check_name(&name)?;
        let value = match value {
            Some(value) => Some(value),
            None => match here.get(&name).map(std::ffi::OsStr::to_str) {
                Some(None) => {
                    return Err(UsageError(format!("the value of {name} here is not UTF-8")).into());
                }
                found => found.flatten().map(str::to_owned),
            },
        };
        match value {
            Some(value) => settled.insert(name, value),
            None => settled.remove(&name),
        };
    }
    Ok(settled)
}

/// Refuses the names that Lambda refuses: reserved ones, and those that are not a letter with
/// letters, digits and `_` behind it (AWS Lambda API reference, `Environment`).
fn check_name(name: &str) -> Result<()> {
    if is_reserved(name) {
        return Err(UsageError(format!(
            "the variable {name} is Lambda's own, and no function can be configured with it"
        )))
        .hint(match name {
            "AWS_REGION" | "AWS_DEFAULT_REGION" => "--region sets it",
            "_HANDLER" => "--cmd names another handler",
            name if name.starts_with("AWS_LAMBDA_FUNCTION_") => "--memory and --name set it",
            name if name.starts_with("AWS_") => {
                "--aws-credentials and --profile give the function credentials"
            }
            _ => "leave it out: tierce sets it as Lambda does",
        });
    }
    let begins = name.starts_with(|letter: char| letter.is_ascii_alphabetic());
    let goes_on = name
        .bytes()
        .all(|it| it.is_ascii_alphanumeric() || it == b'_');
    if begins && goes_on && name.len() > 1 {
        return Ok(());
    }
    Err(UsageError(format!(
        "`{name}` cannot be the name of a function's variable"
    )))
    .hint("Lambda takes a letter, and letters, digits and `_` behind it")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<(String, Option<String>)>, String> {
        let parsed = parse(Path::new("a.env"), text.as_bytes());
        let pairs = |all: Vec<EnvArgument>| all.into_iter().map(|it| (it.name, it.value)).collect();
        parsed.map(pairs).map_err(|error| error.to_string())
    }

    #[test]
    fn files_are_read_as_docker_reads_them() {
        let pair = |name: &str, value: Option<&str>| (name.to_owned(), value.map(str::to_owned));
        let text = "\u{feff}A=1\n\n# a remark\n  # another\nB=\"quoted\" # no remark\r\nC=\n  D=x=y \nE  \n";
        assert_eq!(
            parsed(text),
            Ok(vec![
                pair("A", Some("1")),
                pair("B", Some("\"quoted\" # no remark")),
                pair("C", Some("")),
                pair("D", Some("x=y ")),
                pair("E", None),
            ])
        );
        assert_eq!(parsed(""), Ok(Vec::new()));
    }

    #[test]
    fn mistakes_are_pointed_at() {
        for (text, message) in [
            ("A=1\n=2", "a.env:2: there is no name before the `=`"),
            (
                "export A=1",
                "a.env:1: the name `export A` has spaces in it",
            ),
            ("A =1", "a.env:1: the name `A ` has spaces in it"),
        ] {
            assert_eq!(parsed(text), Err(message.to_owned()), "{text}");
        }
        let error = parse(Path::new("a.env"), b"A=1\nB=\xff").unwrap_err();
        assert_eq!(error.to_string(), "a.env:2: the line is not UTF-8");
    }

    #[test]
    fn the_last_word_counts() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.env");
        std::fs::write(&file, "AA=file\nBB=file\nCC\nDD\n").unwrap();
        let flag = |text: &str| text.parse::<EnvArgument>().unwrap();
        let here = Variables::of([("CC", "here"), ("EE", "here")]);
        let flags = [flag("BB=flag"), flag("EE"), flag("BB=last")];
        let settled = settle(&[file], &flags, &here).unwrap();
        let settled: Vec<_> = settled
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect();
        assert_eq!(
            settled,
            [
                ("AA", "file"),
                ("BB", "last"),
                ("CC", "here"),
                ("EE", "here")
            ]
        );
    }

    #[test]
    fn names_that_lambda_refuses_are_refused() {
        for name in [
            "AWS_REGION",
            "_HANDLER",
            "AWS_LAMBDA_RUNTIME_API",
            "A",
            "1A",
            "A-B",
            "_A",
        ] {
            let flags = [format!("{name}=x").parse().unwrap()];
            assert!(
                settle(&[], &flags, &Variables::default()).is_err(),
                "{name}"
            );
        }
        for name in ["AA", "A1", "PATH", "AWS_XRAY_CONTEXT_MISSING"] {
            let flags = [format!("{name}=x").parse().unwrap()];
            assert!(settle(&[], &flags, &Variables::default()).is_ok(), "{name}");
        }
    }
}
