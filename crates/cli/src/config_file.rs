//! `tierce.toml`: what it may say, and how its mistakes are pointed at.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer};
use tierce_image::EnvEdit;
use tierce_lambda::Rule;
use tierce_layer::{Destination, Matcher, SplitSettings};
use tierce_oci::{ImageFormat, Platform, Reference};
use toml::Spanned;

use crate::byte_size::ByteSize;
use crate::dependencies::target::{Glibc, PythonVersion};
use crate::handler::BinaryFile;
use crate::profile::Profile;
use crate::transport::BaseName;
use crate::verdict::nearest_rule;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ConfigFile {
    #[serde(default)]
    pub(crate) image: ImageTable,
    #[serde(default)]
    pub(crate) layer: Vec<Spanned<LayerTable>>,
    #[serde(default = "no_run_table")]
    pub(crate) config: Spanned<RunTable>,
    #[serde(default)]
    pub(crate) lint: LintTable,
}

impl Default for ConfigFile {
    fn default() -> Self {
        Self {
            image: ImageTable::default(),
            layer: Vec::new(),
            config: no_run_table(),
            lint: LintTable::default(),
        }
    }
}

fn no_run_table() -> Spanned<RunTable> {
    Spanned::new(0..0, RunTable::default())
}

/// `[image]`: what the image is.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ImageTable {
    #[serde(default, deserialize_with = "optional_text")]
    pub(crate) base: Option<BaseName>,
    #[serde(default, deserialize_with = "texts")]
    pub(crate) platforms: Vec<Platform>,
    pub(crate) handler: Option<String>,
    #[serde(default, deserialize_with = "optional_text")]
    pub(crate) tag: Option<Reference>,
    #[serde(default, deserialize_with = "optional_text")]
    pub(crate) format: Option<ImageFormat>,
    pub(crate) target: Option<Target>,
    pub(crate) compression: Option<Profile>,
    /// Whether the Runtime Interface Client is added, to a base that has none.
    pub(crate) runtime_client: Option<Spanned<RuntimeClient>>,
}

/// `true`, `false`, or the packages that are the Runtime Interface Client of Python.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RuntimeClient {
    /// As requirements; none for `false`.
    pub(crate) packages: Vec<String>,
}

impl RuntimeClient {
    /// The package of AWS's client for Python.
    pub(crate) const PACKAGE: &str = "awslambdaric";

    fn of(packages: Vec<String>) -> Result<Self, String> {
        let is_name = |text: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            text.starts_with(|first: char| first.is_ascii_alphanumeric()) && text.bytes().all(plain)
        };
        let is_version = |text: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".!+".contains(&byte);
            !text.is_empty() && text.bytes().all(plain)
        };
        let is_package = |text: &String| match text.split_once("==") {
            Some((name, version)) => is_name(name) && is_version(version),
            None => is_name(text),
        };
        let name = |text: &String| text.split("==").next().map(str::to_owned);
        if let Some(other) = packages.iter().find(|it| !is_package(it)) {
            return Err(format!("`{other}` is not `NAME==VERSION`"));
        }
        if !packages
            .iter()
            .filter_map(name)
            .any(|it| it == Self::PACKAGE)
        {
            return Err(format!(
                "the client of Python is called `{}`",
                Self::PACKAGE
            ));
        }
        Ok(Self { packages })
    }
}

impl<'de> Deserialize<'de> for RuntimeClient {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "expected `true`, `\"awslambdaric==VERSION\"`, or a list of such packages"
        )]
        enum Value {
            Switch(bool),
            One(String),
            Several(Vec<String>),
        }
        let packages = match Value::deserialize(deserializer)? {
            Value::Switch(false) => {
                return Ok(Self {
                    packages: Vec::new(),
                });
            }
            Value::Switch(true) => vec![Self::PACKAGE.to_owned()],
            Value::One(package) => vec![package],
            Value::Several(packages) => packages,
        };
        Self::of(packages).map_err(serde::de::Error::custom)
    }
}

/// `[lint]`: how an image for Lambda is judged.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct LintTable {
    /// Names of rules that it may break.
    #[serde(default)]
    allow: Vec<Spanned<String>>,
}

/// What an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Target {
    Lambda,
    Generic,
}

impl Target {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Lambda => "lambda",
            Self::Generic => "generic",
        }
    }
}

/// `[[layer]]`: one layer, from files, from an archive, or from both.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct LayerTable {
    #[serde(deserialize_with = "layer_name")]
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) add: Vec<AddTable>,
    pub(crate) tar: Option<Spanned<PathBuf>>,
    /// A function as Lambda takes it.
    pub(crate) zip: Option<Spanned<PathBuf>>,
    /// A layer as Lambda takes it.
    pub(crate) lambda_layer: Option<Spanned<PathBuf>>,
    /// Requirements or a lock file of Python, whose packages the layer gets.
    pub(crate) python: Option<Spanned<PathBuf>>,
    /// Which Python the base has, when it does not say so.
    #[serde(default, deserialize_with = "optional_text")]
    pub(crate) python_version: Option<PythonVersion>,
    /// Whether sources of Python are compiled that bring no compiled code.
    #[serde(default)]
    pub(crate) bytecode: bool,
    /// Which glibc the base has, when it is not known.
    #[serde(default, deserialize_with = "optional_text")]
    pub(crate) glibc: Option<Glibc>,
    /// A lock file of Node, whose packages the layer gets.
    pub(crate) node: Option<Spanned<PathBuf>>,
    /// Whether packages of Node may run what they bring for the time of their installation.
    pub(crate) scripts: Option<bool>,
    /// A compiled handler.
    pub(crate) binary: Option<Spanned<BinaryFile>>,
    /// Folders that are searched for the libraries of the compiled handler.
    #[serde(default)]
    pub(crate) libraries: Vec<String>,
    /// Where the archive's root goes; `/` for a tar and `/var/task/` for a zip when absent; or where
    /// dependencies or the compiled handler go.
    #[serde(default, deserialize_with = "optional_destination")]
    pub(crate) to: Option<String>,
    /// Members of the archive, or files of dependencies, that are taken; all when empty.
    #[serde(default, deserialize_with = "patterns")]
    pub(crate) include: Vec<String>,
    /// Members of the archive, or files of dependencies, that are left out.
    #[serde(default, deserialize_with = "patterns")]
    pub(crate) exclude: Vec<String>,
    /// Take the tar's own bytes as the layer.
    #[serde(default)]
    pub(crate) verbatim: bool,
    #[serde(default)]
    pub(crate) modes: Keep,
    #[serde(default)]
    pub(crate) owners: Keep,
    #[serde(default)]
    pub(crate) hardlinks: Keep,
    #[serde(default)]
    pub(crate) xattrs: Vec<String>,
    #[serde(default)]
    pub(crate) mtime: Mtime,
    /// Whether native files for other platforms are left out.
    #[serde(default)]
    pub(crate) prune_prebuilds: bool,
    /// Whether the layer may become several; decided by what is in it when absent.
    pub(crate) split: Option<Spanned<Split>>,
}

/// One `{ from, to }` of a layer's `add`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct AddTable {
    pub(crate) from: Spanned<PathBuf>,
    #[serde(deserialize_with = "destination")]
    pub(crate) to: String,
    #[serde(default, deserialize_with = "patterns")]
    pub(crate) include: Vec<String>,
    #[serde(default, deserialize_with = "patterns")]
    pub(crate) exclude: Vec<String>,
}

/// Whether something of the source files is kept instead of being made uniform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Keep {
    #[default]
    Normalise,
    Keep,
}

/// Which time the entries of a layer carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mtime {
    #[default]
    Fixed,
    SourceDateEpoch,
}

/// Whether a layer becomes several when it is large: `true`, `false` or `{ budget, most }`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Split {
    /// When it looks like dependencies.
    #[default]
    Auto,
    Off,
    On(SplitSettings),
}

/// `split = { budget = "64 MiB", most = 8 }`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SplitTable {
    budget: Option<ByteSize>,
    #[serde(default, deserialize_with = "number_of_layers")]
    most: Option<NonZeroUsize>,
}

impl<'de> Deserialize<'de> for Split {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // By hand, because an untagged enum would forget where in the file the wrong key is.
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Split;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("`true`, `false` or `{ budget = \"64 MiB\", most = 8 }`")
            }

            fn visit_bool<E: serde::de::Error>(self, on: bool) -> Result<Split, E> {
                Ok(if on {
                    Split::On(SplitSettings::default())
                } else {
                    Split::Off
                })
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Split, A::Error> {
                let table = SplitTable::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Split::On(SplitSettings {
                    budget: table.budget.map_or(SplitSettings::BUDGET, |size| size.0),
                    most: table.most.unwrap_or(SplitSettings::MOST),
                }))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// `[config]`: how the image is run.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct RunTable {
    #[serde(default, deserialize_with = "words")]
    pub(crate) entrypoint: Option<Vec<String>>,
    #[serde(default, deserialize_with = "words")]
    pub(crate) cmd: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) env: BTreeMap<String, EnvValue>,
    pub(crate) workdir: Option<String>,
    #[serde(default, deserialize_with = "text_or_number")]
    pub(crate) user: Option<String>,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) expose: Vec<TextOrNumber>,
    pub(crate) stop_signal: Option<String>,
}

/// `"value"`, `{ append = ":/x" }` or `{ prepend = "/x:" }`.
#[derive(Debug, Clone, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a text, `{ append = \"…\" }` or `{ prepend = \"…\" }`"
)]
pub(crate) enum EnvValue {
    Set(TextOrNumber),
    Append { append: String },
    Prepend { prepend: String },
}

impl EnvValue {
    pub(crate) fn edit(self) -> EnvEdit {
        match self {
            Self::Set(value) => EnvEdit::Set(value.into_text()),
            Self::Append { append } => EnvEdit::Append(append),
            Self::Prepend { prepend } => EnvEdit::Prepend(prepend),
        }
    }
}

/// A text, or a whole number that people write without quotes (ports, user ids).
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "expected a text or a whole number")]
pub(crate) enum TextOrNumber {
    Text(String),
    Number(i64),
}

impl TextOrNumber {
    pub(crate) fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a list of words, or one word")]
enum Words {
    One(String),
    Many(Vec<String>),
}

/// A list of words. A single text is one word: there is no shell to split it.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    Ok(Some(match Words::deserialize(deserializer)? {
        Words::One(word) => vec![word],
        Words::Many(words) => words,
    }))
}

fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    TextOrNumber::deserialize(deserializer).map(|value| Some(value.into_text()))
}

/// A layer's name stands in the image's history, on one line.
fn layer_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    if name.trim().is_empty() || name.chars().any(char::is_control) {
        return Err(serde::de::Error::custom(
            "a layer's name is one line that is not empty",
        ));
    }
    Ok(name)
}

fn number_of_layers<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<NonZeroUsize>, D::Error> {
    let number = i64::deserialize(deserializer)?;
    let number = usize::try_from(number).ok().and_then(NonZeroUsize::new);
    match number {
        Some(number) => Ok(Some(number)),
        None => Err(serde::de::Error::custom("`most` must be at least 1")),
    }
}

/// Checked here, where the place in the file is known; made again where it is used.
fn destination<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    match Destination::parse(&text) {
        Ok(_) => Ok(text),
        Err(problem) => Err(serde::de::Error::custom(format!("`{text}`: {problem}"))),
    }
}

fn optional_destination<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    destination(deserializer).map(Some)
}

/// Checked like [`destination`].
fn patterns<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    match Matcher::new(&texts) {
        Ok(_) => Ok(texts),
        Err(error) => Err(serde::de::Error::custom(error)),
    }
}

/// Reads a text with the type's own parser, whose error then points at the place in the file.
fn optional_text<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    String::deserialize(deserializer)?
        .parse()
        .map(Some)
        .map_err(serde::de::Error::custom)
}

fn texts<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    Vec::<String>::deserialize(deserializer)?
        .into_iter()
        .map(|text| text.parse().map_err(serde::de::Error::custom))
        .collect()
}

/// A config file as read: what it says, and its text, so that later complaints can point into it.
#[derive(Debug)]
pub(crate) struct LoadedFile {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
    pub(crate) values: ConfigFile,
}

/// What is wrong with a config file, and where.
#[derive(Debug, thiserror::Error)]
#[error("{}:{line}:{column}: {message}\n{excerpt}", path.display())]
pub(crate) struct ConfigFileError {
    pub(crate) path: PathBuf,
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) message: String,
    pub(crate) excerpt: String,
    /// The nearest key to one that is not known.
    pub(crate) nearest: Option<String>,
}

impl LoadedFile {
    /// Reads the text of the file at `path`.
    pub(crate) fn parse(path: &Path, text: String) -> Result<Self, ConfigFileError> {
        let values = read_toml(path, &text)?;
        Ok(Self {
            path: path.to_owned(),
            text,
            values,
        })
    }

    /// The rules that the image may break.
    pub(crate) fn allowed_rules(&self) -> Result<Vec<&'static Rule>, ConfigFileError> {
        let names = self.values.lint.allow.iter();
        let known = |name: &Spanned<String>| {
            let text = name.get_ref();
            tierce_lambda::rule(text).ok_or_else(|| {
                let message = format!("there is no rule `{text}`");
                let mut error = self.complain(&name.span(), message);
                error.nearest = nearest_rule(text).map(str::to_owned);
                error
            })
        };
        names.map(known).collect()
    }

    /// A complaint about what stands at `span`.
    pub(crate) fn complain(&self, span: &Range<usize>, message: String) -> ConfigFileError {
        complain(&self.path, &self.text, span, message)
    }
}

/// Reads the text of a file; what it does not know is pointed at.
pub(crate) fn read_toml<T: DeserializeOwned>(
    path: &Path,
    text: &str,
) -> Result<T, ConfigFileError> {
    toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or_default();
        // One line: the list of expected keys is given as the hint.
        let message = error.message().lines().next().unwrap_or_default();
        let nearest = nearest_key(message);
        point(path, text, &span, message.to_owned(), nearest)
    })
}

/// A complaint about what stands at `span` of a file's text.
pub(crate) fn complain(
    path: &Path,
    text: &str,
    span: &Range<usize>,
    message: String,
) -> ConfigFileError {
    point(path, text, span, message, None)
}

fn point(
    path: &Path,
    text: &str,
    span: &Range<usize>,
    message: String,
    nearest: Option<String>,
) -> ConfigFileError {
    let start = span.start.min(text.len());
    let before = &text[..floor_char_boundary(text, start)];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.matches('\n').count() + 1;
    let column = before[line_start..].chars().count() + 1;
    let source = text[line_start..].lines().next().unwrap_or_default();
    let marked = text.get(span.clone()).unwrap_or_default();
    let width = marked
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .count()
        .max(1);
    let gutter = line.to_string();
    let excerpt = format!(
        "{empty:>pad$} |\n{gutter} | {source}\n{empty:>pad$} | {empty:>indent$}{carets}",
        empty = "",
        pad = gutter.len(),
        indent = column - 1,
        carets = "^".repeat(width),
    );
    ConfigFileError {
        path: path.to_owned(),
        line,
        column,
        message,
        excerpt,
        nearest,
    }
}

fn floor_char_boundary(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// The expected key that is nearest to the unknown one of serde's message
/// "unknown field `x`, expected one of `a`, `b`".
fn nearest_key(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown field ")?;
    let mut quoted = rest.split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    quoted
        .map(|known| (strsim::damerau_levenshtein(unknown, known), known))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 3)
        .min()
        .map(|(_, known)| known.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> ConfigFileError {
        LoadedFile::parse(Path::new("tierce.toml"), text.to_owned()).unwrap_err()
    }

    #[test]
    fn the_example_of_the_documentation_is_understood() {
        let text = r#"
            [image]
            base = "public.ecr.aws/lambda/python:3.12"
            platforms = ["linux/arm64", "x86_64"]
            handler = "app.handler"
            tag = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/orders:1.4.2"

            [[layer]]
            name = "code"
            add = [{ from = "src/", to = "/var/task/", exclude = ["**/__pycache__"] }]

            [config]
            env = { LOG_LEVEL = "info", WORKERS = 4, PATH = { append = ":/opt/x" } }
            expose = [8080, "53/udp"]
            user = 1000
            entrypoint = "/bin/app"
        "#;
        let file = LoadedFile::parse(Path::new("tierce.toml"), text.to_owned())
            .unwrap()
            .values;
        assert_eq!(file.image.platforms.len(), 2);
        assert_eq!(file.config.get_ref().user.as_deref(), Some("1000"));
        assert_eq!(
            file.config.get_ref().entrypoint,
            Some(vec!["/bin/app".to_owned()])
        );
        assert_eq!(
            file.config.get_ref().env["WORKERS"].clone().edit(),
            EnvEdit::Set("4".to_owned())
        );
    }

    #[test]
    fn a_level_may_be_a_number() {
        for (value, id) in [("6", "zlib-rs-0.6.8-6"), ("\"9\"", "zlib-rs-0.6.8-9")] {
            let text = format!("[image]\ncompression = {value}\n");
            let file = LoadedFile::parse(Path::new("tierce.toml"), text).unwrap();
            let profile = file.values.image.compression.unwrap();
            assert_eq!(profile.codec().id(), id);
        }
    }

    #[test]
    fn an_unknown_key_is_pointed_at_with_the_nearest_known_one() {
        let error = error("[image]\nplatform = [\"arm64\"]\n");
        assert_eq!((error.line, error.column), (2, 1));
        assert_eq!(error.nearest.as_deref(), Some("platforms"));
        assert_eq!(
            error.excerpt,
            "  |\n2 | platform = [\"arm64\"]\n  | ^^^^^^^^"
        );
    }

    #[test]
    fn a_bad_value_is_pointed_at() {
        for (text, line, column, part) in [
            ("[image]\nbase = \"Foo/Bar\"", 2, 8, "upper-case"),
            ("[image]\nplatforms = [\"sparc\"]", 2, 13, "not a platform"),
            ("[image]\nformat = \"tar\"", 2, 10, "not an image format"),
            ("[image]\ncompression = \"gzip\"", 2, 15, "expected `fast`"),
            ("[image]\ncompression = 10", 2, 15, "`10` is not a comp"),
            ("[image]\ncompression = -1", 2, 15, "`-1` is not a comp"),
            ("[image]\ncompression = 1.5", 2, 15, "expected `fast`"),
            ("[[layer]]\nadd = []\n", 1, 1, "missing field `name`"),
            ("[config]\nenv = 3", 2, 7, "invalid type"),
            ("[image]\nruntime-client = 3", 2, 18, "expected `true`"),
            (
                "[image]\nruntime-client = \"-r x\"",
                2,
                18,
                "not `NAME==VERSION`",
            ),
            (
                "[image]\nruntime-client = \"x==1\"",
                2,
                18,
                "called `awslambdaric`",
            ),
            (
                "[[layer]]\nname = \"a\"\nsplit = 3",
                3,
                9,
                "`true`, `false` or `{",
            ),
            (
                "[[layer]]\nname = \"a\"\nsplit = { most = 0 }",
                3,
                18,
                "at least 1",
            ),
            (
                "[[layer]]\nname = \"a\"\nsplit = { budget = \"64 XB\" }",
                3,
                20,
                "not a size",
            ),
            (
                "[[layer]]\nname = \"a\"\nsplit = { budget = -1 }",
                3,
                20,
                "cannot be negative",
            ),
            ("é = [", 1, 0, ""),
        ] {
            let error = error(text);
            assert_eq!(error.line, line, "{error}");
            if column > 0 {
                assert_eq!(error.column, column, "{error}");
            }
            assert!(error.message.contains(part), "{error}");
        }
    }

    #[test]
    fn a_split_is_a_switch_or_its_settings() {
        let split = |text: &str| {
            let text = format!("[[layer]]\nname = \"a\"\n{text}\n");
            let file = LoadedFile::parse(Path::new("tierce.toml"), text).unwrap();
            let split = &file.values.layer[0].get_ref().split;
            split.as_ref().map(|split| *split.get_ref())
        };
        let on = |budget, most| {
            let most = NonZeroUsize::new(most).unwrap();
            Some(Split::On(SplitSettings { budget, most }))
        };
        let SplitSettings { budget, most } = SplitSettings::default();
        for (text, expected) in [
            ("", None),
            ("split = true", on(budget, most.get())),
            ("split = false", Some(Split::Off)),
            ("split = {}", on(budget, most.get())),
            ("split = { most = 3 }", on(budget, 3)),
            ("split = { budget = 1000 }", on(1000, most.get())),
            (
                "split = { budget = \"64 MiB\", most = 12 }",
                on(64 << 20, 12),
            ),
            (
                "[layer.split]\nbudget = \"1GB\"",
                on(1_000_000_000, most.get()),
            ),
        ] {
            assert_eq!(split(text), expected, "{text}");
        }
    }
}
