//! Functions in Python.

use std::str::FromStr as _;

use pep440_rs::{Version, VersionSpecifiers};
use toml::Value;

use super::{DraftLayer, Folder, LayerSource, NO_HANDLER, Program, bases, code_layer, join};

/// The modules that people put a handler into, the likeliest first; others come in the order of
/// their names.
const MODULES: [&str; 6] = [
    "lambda_function",
    "app",
    "main",
    "handler",
    "index",
    "function",
];
/// What the handler is called, AWS's own example first.
const NAMES: [&str; 2] = ["lambda_handler", "handler"];
/// As many modules as are opened.
const MOST_MODULES: usize = 200;

/// Looks for a function in `code`.
pub(super) fn look(folder: &mut Folder, code: &str) -> Option<Program> {
    let project = folder
        .text(&join(code, "pyproject.toml"))
        .and_then(|text| parse(folder, code, &text));
    let handlers = handlers(folder, code);
    let mut reasons = Vec::new();
    let dependencies = dependencies(folder, code, project.as_ref(), &mut reasons);
    if handlers.is_empty() && dependencies.is_none() && project.is_none() {
        return None;
    }
    let (version, version_reason) = version(folder, code, project.as_ref());
    let (root, handler, handler_reason) = match handlers.first() {
        Some(found) => (
            found.root.clone(),
            Some(found.handler.clone()),
            chosen(&found.handler, &found.file, &handlers[1..]),
        ),
        None => (code.to_owned(), None, NO_HANDLER.to_owned()),
    };
    let mut layers: Vec<DraftLayer> = dependencies.into_iter().collect();
    let used = layers.iter().filter_map(|layer| match &layer.source {
        LayerSource::Python(path) => Some(path.clone()),
        _ => None,
    });
    let used = used.collect();
    layers.push(code_layer(&root, used));
    Some(Program {
        language: "python",
        version,
        version_reason,
        handler,
        handler_reason,
        layers,
        architecture: None,
        reasons,
    })
}

fn chosen(handler: &str, file: &str, others: &[FoundHandler]) -> String {
    let mut reason = format!("handler: {handler} (`{file}`)");
    if !others.is_empty() {
        let others: Vec<&str> = others.iter().map(|it| &*it.handler).take(5).collect();
        reason.push_str("; others are there: ");
        reason.push_str(&others.join(", "));
    }
    reason
}

fn parse(folder: &mut Folder, code: &str, text: &str) -> Option<Value> {
    match toml::from_str(text) {
        Ok(value) => Some(value),
        Err(_) => {
            let path = join(code, "pyproject.toml");
            folder.remark(format!("`{path}` is not TOML: it is left aside"));
            None
        }
    }
}

/// The layer of the packages that the function names.
pub(super) fn dependencies_in(folder: &mut Folder, code: &str) -> Option<DraftLayer> {
    dependencies(folder, code, None, &mut Vec::new())
}

fn dependencies(
    folder: &mut Folder,
    code: &str,
    project: Option<&Value>,
    reasons: &mut Vec<String>,
) -> Option<DraftLayer> {
    let layer = |path: String| DraftLayer::new("dependencies", LayerSource::Python(path));
    // A lock says more than the requirements that may have been written from it.
    for lock in ["uv.lock", "poetry.lock"] {
        let path = join(code, lock);
        if folder.has_file(&path) {
            reasons.push(format!("dependencies: `{path}`"));
            return Some(layer(path));
        }
    }
    let path = join(code, "requirements.txt");
    if let Some(text) = folder.text(&path) {
        let names_any = text
            .lines()
            .map(str::trim)
            .any(|line| !line.is_empty() && !line.starts_with('#'));
        if names_any {
            reasons.push(format!("dependencies: `{path}`"));
            return Some(layer(path));
        }
        reasons.push(format!("dependencies: none, `{path}` names no package"));
        return None;
    }
    let needs_some = |project: &Value| {
        let of_project = project.get("project").and_then(|it| it.get("dependencies"));
        let of_poetry = project
            .get("tool")
            .and_then(|it| it.get("poetry"))
            .and_then(|it| it.get("dependencies"));
        let listed = of_project.and_then(Value::as_array);
        let of_poetry = of_poetry.and_then(Value::as_table);
        if listed.is_some_and(|list| !list.is_empty()) {
            Some("uv")
        } else if of_poetry.is_some_and(|table| table.keys().any(|name| name != "python")) {
            Some("poetry")
        } else {
            None
        }
    };
    let tool = project.and_then(needs_some)?;
    let mut layer = layer(join(code, &format!("{tool}.lock")));
    let what = format!("`{tool} lock` makes the lock file that its packages are taken from");
    reasons.push(format!("dependencies: {what}"));
    layer.missing = Some(what);
    Some(layer)
}

fn version(folder: &mut Folder, code: &str, project: Option<&Value>) -> (&'static str, String) {
    for path in [join(code, ".python-version"), ".python-version".to_owned()] {
        if let Some(text) = folder.text(&path) {
            let named = text.lines().next().unwrap_or_default().trim();
            let mut parts = named.trim_start_matches("cpython-").split('.');
            let minor = [parts.next(), parts.next()].map(Option::unwrap_or_default);
            if let Some((_, version)) = bases::find("python", &minor.join(".")) {
                return (version, format!("`{path}`"));
            }
            folder.remark(format!(
                "`{path}` names a Python that AWS has no base for: it is left aside"
            ));
        }
    }
    let wanted = project.and_then(|project| {
        let of_project = project
            .get("project")
            .and_then(|it| it.get("requires-python"));
        let of_poetry = project
            .get("tool")
            .and_then(|it| it.get("poetry"))
            .and_then(|it| it.get("dependencies"))
            .and_then(|it| it.get("python"));
        of_project.or(of_poetry).and_then(Value::as_str)
    });
    let fitting = wanted
        .and_then(specifiers)
        .and_then(|specifiers| bases::newest("python", |version| fits(&specifiers, version)));
    let whose = "the Python of pyproject.toml";
    bases::fitting_or_newest("python", wanted, fitting, whose, folder)
}

/// What a version must be. Poetry's `^3.9` means below 4, and `3.12` by itself any release of it.
fn specifiers(text: &str) -> Option<VersionSpecifiers> {
    let parts = text.split(',').map(|part| {
        let part = part.trim();
        if let Some(least) = part.strip_prefix('^') {
            format!(">={least},<4")
        } else if let Some(about) = part.strip_prefix('~').filter(|it| !it.starts_with('=')) {
            format!("=={about}.*")
        } else if part.starts_with(|letter: char| letter.is_ascii_digit()) {
            format!("=={}.*", part.trim_end_matches(".*"))
        } else {
            part.to_owned()
        }
    });
    VersionSpecifiers::from_str(&parts.collect::<Vec<_>>().join(",")).ok()
}

/// Whether some release of a minor version fits.
fn fits(specifiers: &VersionSpecifiers, minor: &str) -> bool {
    let Ok(first) = Version::from_str(&format!("{minor}.0")) else {
        return false;
    };
    let Ok(late) = Version::from_str(&format!("{minor}.99")) else {
        return false;
    };
    specifiers.contains(&first) || specifiers.contains(&late)
}

/// A handler that is there.
#[derive(Debug)]
struct FoundHandler {
    handler: String,
    file: String,
    /// The folder that its module's name begins in.
    root: String,
}

/// All handlers in the places where they are looked for, the best first.
fn handlers(folder: &mut Folder, code: &str) -> Vec<FoundHandler> {
    let mut found = Vec::new();
    let mut opened = 0;
    let roots = [code.to_owned(), join(code, "src")];
    for root in &roots {
        collect(folder, root, "", &mut opened, &mut found);
    }
    for root in &roots {
        for name in folder.names(root) {
            let package = join(root, &name);
            if folder.has_file(&join(&package, "__init__.py")) && !name.starts_with("test") {
                collect(folder, root, &name, &mut opened, &mut found);
            }
        }
    }
    found
}

/// Adds the handlers of the modules in one folder.
fn collect(
    folder: &mut Folder,
    root: &str,
    package: &str,
    opened: &mut usize,
    found: &mut Vec<FoundHandler>,
) {
    let directory = if package.is_empty() {
        root.to_owned()
    } else {
        join(root, package)
    };
    let mut modules: Vec<String> = folder
        .names(&directory)
        .iter()
        .filter_map(|name| name.strip_suffix(".py"))
        .filter(|name| is_name(name))
        .filter(|name| !name.starts_with("test") && !matches!(*name, "setup" | "conftest"))
        .map(str::to_owned)
        .collect();
    let rank = |module: &String| {
        MODULES
            .iter()
            .position(|known| known == module)
            .unwrap_or(MODULES.len())
    };
    modules.sort_by_key(rank);
    for module in modules {
        *opened += 1;
        if *opened > MOST_MODULES {
            return;
        }
        let file = join(&directory, &format!("{module}.py"));
        if !folder.has_file(&file) {
            continue;
        }
        let Some(text) = folder.text(&file) else {
            continue;
        };
        let Some(name) = NAMES.iter().find(|name| defines(&text, name)) else {
            continue;
        };
        let handler = match package {
            "" => format!("{module}.{name}"),
            package => format!("{package}.{module}.{name}"),
        };
        found.push(FoundHandler {
            handler,
            file,
            root: root.to_owned(),
        });
    }
}

/// Whether a text can be a name in Python, as far as functions of Lambda use them.
fn is_name(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !text.starts_with(|letter: char| letter.is_ascii_digit())
}

/// Whether a module has a function of that name, or a variable that may be one.
fn defines(text: &str, name: &str) -> bool {
    text.lines().any(|line| {
        if let Some(rest) = line.strip_prefix("def ") {
            return rest
                .trim_start()
                .strip_prefix(name)
                .is_some_and(|rest| rest.trim_start().starts_with('('));
        }
        line.strip_prefix(name).is_some_and(|rest| {
            let rest = rest.trim_start();
            (rest.starts_with('=') && !rest.starts_with("==")) || rest.starts_with(':')
        })
    })
}

/// The folder in which a handler's module is, of `code` and its `src`.
pub(super) fn root_of(folder: &Folder, code: &str, handler: &str) -> Option<String> {
    let (module, _) = handler.rsplit_once('.')?;
    let module = module.replace('.', "/");
    [code.to_owned(), join(code, "src")]
        .into_iter()
        .find(|root| {
            let path = join(root, &module);
            folder.has_file(&format!("{path}.py")) || folder.has_file(&join(&path, "__init__.py"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_are_told_from_their_calls() {
        for (line, is) in [
            ("def handler(event, context):", true),
            ("def handler (", true),
            ("handler = Mangum(app)", true),
            ("handler: Handler = make()", true),
            ("    def handler(self):", false),
            ("def handler_of(x):", false),
            ("handler == 1", false),
            ("# def handler(event)", false),
            ("handlers = []", false),
        ] {
            assert_eq!(
                defines(&format!("import x\n{line}\n"), "handler"),
                is,
                "{line}"
            );
        }
    }

    #[test]
    fn versions_fit_as_people_mean_them() {
        let newest = |text: &str| {
            let specifiers = specifiers(text)?;
            bases::newest("python", |version| fits(&specifiers, version)).map(|it| it.0)
        };
        for (wanted, expected) in [
            (">=3.11,<3.13", Some("3.12")),
            (">=3.12", Some("3.14")),
            ("==3.11.*", Some("3.11")),
            ("3.11", Some("3.11")),
            ("^3.9", Some("3.14")),
            ("~3.10", Some("3.10")),
            ("~=3.10.2", Some("3.10")),
            ("<3.12", Some("3.11")),
            (">=3.8,!=3.14.*", Some("3.13")),
            ("<3", None),
            ("nonsense", None),
        ] {
            assert_eq!(newest(wanted), expected, "{wanted}");
        }
    }
}
