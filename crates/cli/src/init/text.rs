//! The file's text.

use tierce_layer::Matcher;
use toml::Value;

use super::{Draft, DraftLayer, Folder, LayerSource};

/// What lies beside a function and is not part of it.
const NOT_OF_THE_FUNCTION: [&str; 13] = [
    "tierce.toml",
    "tierce.lock",
    ".dockerignore",
    "Dockerfile",
    "target",
    "**/.git",
    "**/.github",
    "**/.aws-sam",
    "**/.serverless",
    "**/.venv",
    "**/venv",
    "**/node_modules",
    "**/__pycache__",
];

/// What may be secret, by its name. It is for the build's machine, and not for an image.
const MAY_BE_SECRET: [&str; 19] = [
    "**/.env*",
    "**/.npmrc",
    "**/.yarnrc*",
    "**/.pypirc",
    "**/.netrc",
    "**/.git-credentials",
    "**/.aws",
    "**/.docker",
    "**/.ssh",
    "**/*.jks",
    "**/*.pem",
    "**/*.key",
    "**/*.p12",
    "**/*.pfx",
    "**/.terraform",
    "**/*.tfstate*",
    "**/*.tfvars*",
    "**/id_rsa*",
    "**/id_ed25519*",
];

/// As wide as a line of patterns is.
const WIDTH: usize = 80;

/// The text of `tierce.toml`.
pub(crate) fn written(draft: &Draft) -> String {
    let mut text = String::from("# What `tierce build` makes an image of.\n\n[image]\n");
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    line(&format!("base = {}", quoted(&draft.base)));
    let (architecture, other) = match draft.architecture {
        "arm64" => ("arm64", "x86_64"),
        architecture => (architecture, "arm64"),
    };
    line(&format!(
        "platforms = [{}] # or {}, or both",
        quoted(architecture),
        quoted(other)
    ));
    match &draft.handler {
        Some(handler) => line(&format!("handler = {}", quoted(handler))),
        None => line("# handler = \"FILE.FUNCTION\""),
    }
    line("# tag = \"ACCOUNT.dkr.ecr.REGION.amazonaws.com/REPOSITORY:TAG\"");
    for layer in &draft.layers {
        line("");
        write_layer(layer, &mut line);
    }
    line("");
    let has_settings = draft.working_dir.is_some() || draft.entrypoint.is_some();
    match (has_settings, draft.env.is_empty()) {
        (true, _) => line("[config]"),
        (false, true) => line("# [config]"),
        (false, false) => {}
    }
    if let Some(words) = &draft.entrypoint {
        let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        line(&format!("entrypoint = [{}]", words.join(", ")));
    }
    if let Some(directory) = &draft.working_dir {
        line(&format!("workdir = {}", quoted(directory)));
    }
    if draft.env.is_empty() {
        line("# env = { LOG_LEVEL = \"info\" }");
    } else {
        line("[config.env]");
        let mut env = draft.env.clone();
        // Of a variable that is set twice the last counts.
        env.reverse();
        let mut seen = Vec::new();
        env.retain(|(name, _)| {
            let is_new = !seen.contains(name);
            seen.push(name.clone());
            is_new
        });
        env.reverse();
        for (name, value) in &env {
            line(&format!("{} = {}", key(name), quoted(value)));
        }
    }
    text
}

fn write_layer(layer: &DraftLayer, line: &mut impl FnMut(&str)) {
    let mut lines = vec![
        "[[layer]]".to_owned(),
        format!("name = {}", quoted(&layer.name)),
    ];
    let to = |usual: &str| quoted(layer.to.unwrap_or(usual));
    match &layer.source {
        LayerSource::Python(path) => lines.push(format!("python = {}", quoted(path))),
        LayerSource::Node(path) => lines.push(format!("node = {}", quoted(path))),
        LayerSource::Zip(path) => lines.push(format!("zip = {}", quoted(path))),
        LayerSource::LambdaLayer(path) => {
            lines.push(format!("lambda-layer = {}", quoted(path)));
        }
        LayerSource::Binary { path, libraries } => {
            lines.extend(program(path, libraries.as_deref()));
        }
        LayerSource::Script(path) => lines.push(format!(
            "add = [{{ from = {}, to = \"/var/runtime/bootstrap\" }}]",
            quoted(path)
        )),
        LayerSource::Folder { from, left_out } => {
            lines.push(format!(
                "add = [{{ from = {}, to = {}, exclude = [",
                quoted(from),
                to("/var/task/")
            ));
            lines.push("    # Not of the function.".to_owned());
            let used = patterns_of(from, left_out);
            let others = NOT_OF_THE_FUNCTION.iter().map(|it| (*it).to_owned());
            patterns(used.into_iter().chain(others), &mut lines);
            lines.push("    # For this machine alone: these may be secret.".to_owned());
            patterns(MAY_BE_SECRET.iter().map(|it| (*it).to_owned()), &mut lines);
            lines.push("] }]".to_owned());
        }
    }
    let is_dependencies = matches!(layer.source, LayerSource::Python(_) | LayerSource::Node(_));
    if let Some(to) = layer.to.filter(|_| is_dependencies) {
        lines.push(format!("to = {}", quoted(to)));
    }
    match &layer.missing {
        None => {
            for it in &lines {
                line(it);
            }
        }
        Some(missing) => {
            line(&format!("# {missing}:"));
            for it in &lines {
                line(&format!("# {it}"));
            }
        }
    }
}

/// The lines for a program: it and the libraries that it needs, where the base starts it.
fn program(path: &str, libraries: Option<&str>) -> Vec<String> {
    let mut lines = vec![format!("binary = {}", quoted(path))];
    lines.extend(libraries.map(|directory| format!("libraries = [{}]", quoted(directory))));
    lines
}

/// A key as TOML has it.
fn key(name: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if !name.is_empty() && name.bytes().all(is_bare) {
        name.to_owned()
    } else {
        quoted(name)
    }
}

/// A text as TOML has it, in one line: what stands in a comment would go on behind it otherwise.
fn quoted(text: &str) -> String {
    use std::fmt::Write as _;
    if !text.contains(char::is_control) {
        return Value::from(text).to_string();
    }
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            letter if letter.is_control() => {
                // Writing to a string cannot fail.
                let _ = write!(quoted, "\\u{:04x}", u32::from(letter));
            }
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

/// What other layers were made of, as patterns of the folder that is added.
fn patterns_of(from: &str, left_out: &[String]) -> Vec<String> {
    let root = if from == "." { "" } else { from };
    let inside = left_out
        .iter()
        .filter_map(|path| path.strip_prefix(root))
        .map(crate::plan::as_pattern);
    inside.collect()
}

/// Adds patterns, several to a line.
fn patterns(patterns: impl Iterator<Item = String>, lines: &mut Vec<String>) {
    let mut line = String::new();
    for pattern in patterns {
        let item = format!("{},", quoted(&pattern));
        if line.is_empty() {
            line = format!("    {item}");
        } else if line.len() + item.len() < WIDTH {
            line.push(' ');
            line.push_str(&item);
        } else {
            lines.push(std::mem::replace(&mut line, format!("    {item}")));
        }
    }
    lines.push(line);
}

/// As many names as are looked at, and as deep, to say what is left out.
const MOST_NAMES: usize = 20_000;
const MOST_DEPTH: usize = 6;

/// What is left out of the layers of code, by name: what may be secret, and the rest.
pub(crate) fn left_out(folder: &Folder, draft: &Draft) -> (Vec<String>, Vec<String>) {
    let mut secret = Vec::new();
    let mut rest = Vec::new();
    let matchers = Matcher::new(MAY_BE_SECRET)
        .ok()
        .zip(Matcher::new(NOT_OF_THE_FUNCTION).ok());
    let Some((may_be_secret, others)) = matchers else {
        return (secret, rest);
    };
    for layer in &draft.layers {
        let LayerSource::Folder { from, left_out } = &layer.source else {
            continue;
        };
        let root = if from == "." {
            ""
        } else {
            from.trim_end_matches('/')
        };
        let used = left_out.iter().filter(|path| folder.has_file(path));
        let is_below = |path: &&String| {
            let below = path.strip_prefix(root);
            root.is_empty() || below.is_some_and(|below| below.starts_with('/'))
        };
        rest.extend(used.filter(is_below).cloned());
        let mut seen = 0;
        let mut pending = vec![(String::new(), 0)];
        while let Some((directory, depth)) = pending.pop() {
            for name in folder.names(&super::join(root, &directory)) {
                seen += 1;
                let path = super::join(&directory, &name);
                let shown = super::join(root, &path);
                if seen > MOST_NAMES {
                    return (secret, rest);
                }
                if may_be_secret.is_match(path.as_bytes()) {
                    secret.push(shown);
                } else if others.is_match(path.as_bytes()) {
                    rest.push(shown);
                } else if depth < MOST_DEPTH && folder.is_own_folder(&shown) {
                    pending.push((path, depth + 1));
                }
            }
        }
    }
    for list in [&mut secret, &mut rest] {
        list.sort();
        list.dedup();
    }
    (secret, rest)
}
