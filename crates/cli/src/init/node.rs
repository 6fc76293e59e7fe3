//! Functions for Node.

use nodejs_semver::{Range, Version};
use serde_json::Value;

use super::{
    DraftLayer, Folder, LayerSource, NO_HANDLER, Program, bases, code_layer, has_ending, join,
};

/// The files that people put a handler into, the likeliest first; others come in the order of their
/// names.
const FILES: [&str; 6] = ["index", "app", "handler", "main", "lambda", "function"];
/// Where they are.
const PLACES: [&str; 5] = ["", "src", "dist", "build", "lib"];
const ENDINGS: [&str; 3] = ["js", "mjs", "cjs"];
/// What the handler is called.
const NAMES: [&str; 2] = ["handler", "lambdaHandler"];
/// As many files as are opened.
const MOST_FILES: usize = 200;
/// The locks that are understood, in the order in which the build looks for them.
const LOCKS: [&str; 4] = [
    "npm-shrinkwrap.json",
    "package-lock.json",
    "pnpm-lock.yaml",
    "yarn.lock",
];

/// Looks for a function in `code`.
pub(super) fn look(folder: &mut Folder, code: &str) -> Option<Program> {
    let path = join(code, "package.json");
    let text = folder.text(&path);
    let is_there = text.is_some();
    let package: Value = match text.map(|text| serde_json::from_str(&text)) {
        Some(Ok(package)) => package,
        Some(Err(_)) => {
            folder.remark(format!("`{path}` is not JSON: it is left aside"));
            Value::Null
        }
        None => Value::Null,
    };
    let handlers = handlers(folder, code, &package);
    if handlers.is_empty() && !is_there {
        return None;
    }
    let mut reasons = Vec::new();
    let mut layers = Vec::new();
    let mut used = Vec::new();
    if let Some(layer) = dependencies(folder, code, &package, &mut reasons) {
        if let LayerSource::Node(lock) = &layer.source {
            used.push(lock.clone());
        }
        layers.push(layer);
    }
    layers.push(code_layer(code, used));
    let (version, version_reason) = version(folder, code, &package);
    let (handler, handler_reason) = match handlers.split_first() {
        Some((first, [])) => (Some(first.clone()), format!("handler: {first}")),
        Some((first, others)) => {
            let others: Vec<&str> = others.iter().map(String::as_str).take(5).collect();
            let others = others.join(", ");
            let reason = format!("handler: {first}; others are there: {others}");
            (Some(first.clone()), reason)
        }
        None => (None, NO_HANDLER.to_owned()),
    };
    if handler.is_none() && is_typescript(folder, code) {
        folder.remark(
            "Node runs no TypeScript: compile it, and name the handler of what comes out"
                .to_owned(),
        );
    }
    Some(Program {
        language: "nodejs",
        version,
        version_reason,
        handler,
        handler_reason,
        layers,
        architecture: None,
        reasons,
    })
}

fn is_typescript(folder: &Folder, code: &str) -> bool {
    [code.to_owned(), join(code, "src")].iter().any(|place| {
        folder
            .names(place)
            .iter()
            .any(|name| has_ending(name, "ts"))
    })
}

/// The layer of the packages that the function names.
pub(super) fn dependencies_in(folder: &mut Folder, code: &str) -> Option<DraftLayer> {
    let text = folder.text(&join(code, "package.json"))?;
    let package = serde_json::from_str(&text).ok()?;
    dependencies(folder, code, &package, &mut Vec::new())
}

fn dependencies(
    folder: &mut Folder,
    code: &str,
    package: &Value,
    reasons: &mut Vec<String>,
) -> Option<DraftLayer> {
    let names_any = |key: &str| {
        let named = package[key].as_object();
        named.is_some_and(|named| !named.is_empty())
    };
    if !names_any("dependencies") && !names_any("optionalDependencies") {
        return None;
    }
    let lock = LOCKS
        .iter()
        .map(|lock| join(code, lock))
        .find(|lock| folder.has_file(lock));
    let layer = |path: String| DraftLayer::new("dependencies", LayerSource::Node(path));
    let missing = match &lock {
        None => {
            "`npm install --package-lock-only` makes the lock file that packages are taken from"
        }
        Some(lock) if lock.ends_with("yarn.lock") && is_of_newer_yarn(folder, lock) => {
            "`npm install --package-lock-only` makes a lock file that is understood; that of Yarn 2 and later \
             is not"
        }
        Some(lock) => {
            reasons.push(format!("dependencies: `{lock}`"));
            return Some(layer(lock.clone()));
        }
    };
    reasons.push(format!("dependencies: {missing}"));
    let mut layer = layer(join(code, "package-lock.json"));
    layer.missing = Some(missing.to_owned());
    Some(layer)
}

fn is_of_newer_yarn(folder: &mut Folder, lock: &str) -> bool {
    folder
        .text(lock)
        .is_some_and(|text| text.contains("\n__metadata:"))
}

fn version(folder: &mut Folder, code: &str, package: &Value) -> (&'static str, String) {
    for name in [".nvmrc", ".node-version"] {
        let path = join(code, name);
        if let Some(text) = folder.text(&path) {
            let named = text.lines().next().unwrap_or_default().trim();
            let major = named.trim_start_matches('v').split('.').next();
            if let Some((_, version)) = bases::find("nodejs", major.unwrap_or_default()) {
                return (version, format!("`{path}`"));
            }
            folder.remark(format!(
                "`{path}` names a Node that AWS has no base for: it is left aside"
            ));
        }
    }
    let wanted = package["engines"]["node"].as_str();
    let range = wanted.and_then(|wanted| Range::parse(wanted).ok());
    let fitting = range.and_then(|range| {
        bases::newest("nodejs", |major| {
            let release = |rest: &str| Version::parse(format!("{major}.{rest}")).ok();
            [release("0.0"), release("999.999")]
                .iter()
                .flatten()
                .any(|version| range.satisfies(version))
        })
    });
    let whose = "the Node of package.json";
    bases::fitting_or_newest("nodejs", wanted, fitting, whose, folder)
}

/// All handlers in the places where they are looked for, the best first.
fn handlers(folder: &mut Folder, code: &str, package: &Value) -> Vec<String> {
    let mut files: Vec<String> = Vec::new();
    let mut add = |file: String| {
        if !files.contains(&file) {
            files.push(file);
        }
    };
    if let Some(main) = package["main"].as_str()
        && let Some(main) = folder.inside(&join(code, main))
        && main.starts_with(code)
    {
        let main = main[code.len()..].trim_start_matches('/').to_owned();
        if ENDINGS.iter().any(|ending| has_ending(&main, ending)) {
            add(main);
        }
    }
    for place in PLACES {
        let mut names: Vec<String> = folder
            .names(&join(code, place))
            .into_iter()
            .filter(|name| ENDINGS.iter().any(|ending| has_ending(name, ending)))
            // The function's name in the handler has no dot in it, and the file's would be cut there.
            .filter(|name| name.matches('.').count() == 1)
            .collect();
        let rank = |name: &String| {
            let stem = name.split('.').next().unwrap_or_default();
            FILES
                .iter()
                .position(|known| *known == stem)
                .unwrap_or(FILES.len())
        };
        names.sort_by_key(rank);
        for name in names {
            add(join(place, &name));
        }
    }
    let mut found = Vec::new();
    for file in files.into_iter().take(MOST_FILES) {
        let path = join(code, &file);
        if !folder.has_file(&path) {
            continue;
        }
        let Some(text) = folder.text(&path) else {
            continue;
        };
        if let Some(name) = NAMES.iter().find(|name| exports(&text, name))
            && let Some((stem, _)) = file.rsplit_once('.')
        {
            found.push(format!("{stem}.{name}"));
        }
    }
    found
}

/// Whether a module exports that name.
fn exports(text: &str, name: &str) -> bool {
    const BEFORE: [&str; 8] = [
        "exports.",
        "module.exports.",
        "export const ",
        "export let ",
        "export var ",
        "export function ",
        "export async function ",
        "export async function* ",
    ];
    let by_line = text.lines().map(str::trim_start).any(|line| {
        BEFORE.iter().any(|before| {
            line.strip_prefix(before)
                .and_then(|rest| rest.strip_prefix(name))
                .is_some_and(|rest| !rest.starts_with(is_of_name))
        })
    });
    by_line || lists(text).any(|list| list.split(',').any(|item| exported(item) == name))
}

fn is_of_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '_' | '$')
}

/// What stands between the braces of `export { … }` and `module.exports = { … }`.
fn lists(text: &str) -> impl Iterator<Item = &str> {
    [
        "export {",
        "export{",
        "module.exports = {",
        "module.exports={",
    ]
    .into_iter()
    .flat_map(move |start| text.match_indices(start))
    .filter(move |(at, _)| {
        let line = text[..*at].rsplit('\n').next().unwrap_or_default();
        !line.contains("//")
    })
    .filter_map(move |(at, start)| text[at + start.len()..].split('}').next())
}

/// The name under which an item of such a list is exported.
fn exported(item: &str) -> &str {
    let item = item.trim();
    let name = item.rsplit_once(" as ").map_or(item, |(_, name)| name);
    name.split(':').next().unwrap_or_default().trim()
}

/// The folder from which a handler is named: always `code`, if its file is there.
pub(super) fn root_of(folder: &Folder, code: &str, handler: &str) -> Option<String> {
    let (module, _) = handler.rsplit_once('.')?;
    [code.to_owned(), join(code, "src")]
        .into_iter()
        .find(|root| {
            let is_there =
                |ending: &&str| folder.has_file(&join(root, &format!("{module}.{ending}")));
            ENDINGS.iter().any(is_there)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_found_in_both_kinds_of_modules() {
        for (text, is) in [
            ("exports.handler = async () => 1", true),
            ("module.exports.handler = x", true),
            ("export const handler = x", true),
            ("export async function handler() {}", true),
            ("export { other, run as handler };", true),
            ("0 && (module.exports = {\n  handler\n});", true),
            ("module.exports = { handler: run }", true),
            ("module.exports = { run: handler }", false),
            ("export { handler as run }", false),
            ("// exports.handler = 1", false),
            ("exports.handlers = 1", false),
            ("// module.exports = { handler }", false),
        ] {
            assert_eq!(exports(text, "handler"), is, "{text}");
        }
    }
}
