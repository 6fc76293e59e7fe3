//! What the config says.

use serde_json::Value;

use crate::bases::{LANGUAGE_ROOT, LAYERS_ROOT, TASK_ROOT};
use crate::facts::{name_of, parent_of};
use crate::finding::{Evidence, Report, Rule, Scope, Severity};
use crate::limits;
use crate::subject::Subject;

pub(super) static PLATFORM: Rule = Rule {
    name: "platform",
    severity: Severity::Error,
    evidence: Evidence::Documented,
    scope: Scope::Lambda,
    why: "Lambda runs Linux on x86_64 and arm64",
    fix: "build for `linux/amd64` or `linux/arm64`",
    check: |subject, report| {
        let platform = subject.image.platform();
        if platform.os != "linux" || !matches!(&*platform.architecture, "amd64" | "arm64") {
            report.image(format!("the image is for {platform}"));
        }
    },
};

pub(super) static SETTINGS_SIZE: Rule = Rule {
    name: "settings-size",
    severity: Severity::Error,
    evidence: Evidence::Documented,
    scope: Scope::Lambda,
    why: "ENTRYPOINT, CMD, WORKDIR and ENV may have 16 KiB together",
    fix: "put long values into a file, or into the function's own configuration",
    check: |subject, report| {
        let config = subject.config();
        let words = config
            .entrypoint
            .iter()
            .chain(&config.cmd)
            .chain(&config.env);
        let size: usize = words.chain(&config.working_dir).map(String::len).sum();
        if size > limits::SETTINGS_SIZE {
            report.image(format!("they have {size} bytes"));
        }
    },
};

pub(super) static WORKING_DIRECTORY: Rule = Rule {
    name: "working-directory",
    severity: Severity::Warning,
    evidence: Evidence::Documented,
    scope: Scope::Lambda,
    why: "a function whose WORKDIR is not there does not start (`Runtime.InvalidWorkingDir`)",
    fix: "name a directory of the image, from the root on",
    check: |subject, report| {
        let Some(directory) = subject.config().working_dir.as_deref() else {
            return;
        };
        if directory.is_empty() {
            return;
        }
        if !directory.starts_with('/') {
            report.image(format!("WORKDIR `{directory}` does not begin with a slash"));
        } else if !subject.is_partly_unknown()
            && !subject
                .tree
                .follow(directory.as_bytes())
                .is_some_and(|path| subject.tree.is_directory(&path))
        {
            report.image(format!("the image has no directory {directory}"));
        }
    },
};

pub(super) static HANDLER_ARGUMENTS: Rule = Rule {
    name: "handler-arguments",
    severity: Severity::Warning,
    evidence: Evidence::Reported,
    scope: Scope::Lambda,
    why: "the entrypoint of AWS's bases ends at once unless CMD is exactly one word, the handler",
    fix: "set CMD to the handler alone: `handler = \"app.handler\"`",
    check: |subject, report| {
        let count = arguments(subject).len();
        if subject.programs.is_aws && count > 1 {
            report.image(match subject.config().entrypoint.len() {
                1 => format!("CMD has {count} words"),
                _ => format!("it is given {count} words by ENTRYPOINT and CMD"),
            });
        }
    },
};

pub(super) static HANDLER_NOT_SET: Rule = Rule {
    name: "handler-not-set",
    severity: Severity::Note,
    evidence: Evidence::Reported,
    scope: Scope::Lambda,
    why: "the entrypoint of AWS's bases ends at once unless it is given a handler",
    fix: "set CMD to the handler, or the function's image configuration",
    check: |subject, report| {
        if subject.programs.is_aws && arguments(subject).is_empty() {
            report.image("CMD is empty: the function must set it");
        }
    },
};

/// What the program that starts is given: all words of ENTRYPOINT and CMD but the first.
fn arguments<'a>(subject: &Subject<'a>) -> Vec<&'a str> {
    let config = subject.config();
    let words = config.entrypoint.iter().chain(&config.cmd);
    words.skip(1).map(String::as_str).collect()
}

pub(super) static HANDLER_NOT_FOUND: Rule = Rule {
    name: "handler-not-found",
    severity: Severity::Warning,
    evidence: Evidence::Specified,
    scope: Scope::Lambda,
    why: "the handler is imported when the function starts",
    fix: "put its file below /var/task, or correct CMD",
    check: handler_not_found,
};

fn handler_not_found(subject: &Subject<'_>, report: &mut Report<'_>) {
    let [handler] = arguments(subject)[..] else {
        return;
    };
    if !subject.programs.is_aws {
        return;
    }
    let root = subject.variable("LAMBDA_TASK_ROOT").unwrap_or(TASK_ROOT);
    let language = |program: &str| {
        let path = format!("{LANGUAGE_ROOT}/bin/{program}");
        subject.tree.find(path.as_bytes()).is_some()
    };
    let (places, names) = if subject.python.is_some() {
        let Some((module, _)) = handler.rsplit_once('.') else {
            return;
        };
        let module = module.replace('.', "/");
        let mut places = vec![root.to_owned(), format!("{LAYERS_ROOT}/python")];
        let path = subject.variable("PYTHONPATH").unwrap_or_default();
        let more = path.split(':').filter(|place| !place.is_empty());
        places.extend(more.map(str::to_owned));
        let endings = [".py", ".pyc", "/__init__.py", "/__init__.pyc"];
        let names: Vec<String> = endings.map(|ending| format!("{module}{ending}")).into();
        (places, names)
    } else if language("node") || subject.is_on_base_for("nodejs") {
        let (directory, file) = handler.rsplit_once('/').unwrap_or(("", handler));
        let Some((file, _)) = file.split_once('.') else {
            return;
        };
        let module = format!("{directory}/{file}");
        let endings = ["", ".js", ".mjs", ".cjs", "/index.js"];
        let names: Vec<String> = endings.map(|ending| format!("{module}{ending}")).into();
        // A whole path is one, and a package's name is looked for as `require` does.
        let places = if handler.starts_with('/') {
            vec![String::new()]
        } else {
            vec![root.to_owned(), format!("{root}/node_modules")]
        };
        (places, names)
    } else if let Some(file) = file_of_handler(subject, handler, language) {
        (vec![root.to_owned()], vec![file])
    } else {
        return;
    };
    let there = places.iter().any(|place| {
        names.iter().any(|name| {
            let path = format!("{place}/{name}");
            subject.tree.find(path.as_bytes()).is_some()
        })
    });
    if !there && !has_module(subject, root, &names[0]) {
        report.image(format!(
            "the handler is `{handler}`, and there is no {root}/{}",
            {
                let shown = if language("node") {
                    &names[1]
                } else {
                    &names[0]
                };
                shown.trim_start_matches('/')
            }
        ));
    }
}

/// The file of a handler in Ruby, Java or .NET, when it is sure that there is none. What is packed
/// into a jar is not looked into, and libraries may lie anywhere.
fn file_of_handler(
    subject: &Subject<'_>,
    handler: &str,
    language: impl Fn(&str) -> bool,
) -> Option<String> {
    let file = if language("ruby") {
        let (directory, name) = handler.rsplit_once('/').unwrap_or(("", handler));
        let (file, _) = name.split_once('.')?;
        format!("{directory}/{file}.rb")
    } else if language("dotnet") {
        let (assembly, _) = handler.split_once("::")?;
        format!("{assembly}.dll")
    } else if language("java") {
        let class = handler.split("::").next().unwrap_or(handler);
        format!("{}.class", class.replace('.', "/"))
    } else {
        return None;
    };
    let file = file.trim_start_matches('/').to_owned();
    let ending = format!("/{file}");
    let functions = subject.function_directories();
    let is_there = subject.tree.all().any(|(path, _)| {
        let is_ours = functions.iter().any(|it| path.starts_with(it));
        path.ends_with(ending.as_bytes()) || (is_ours && path.ends_with(b".jar"))
    });
    (!is_there).then_some(file)
}

/// Whether there is a compiled module, or the package of it anywhere else.
fn has_module(subject: &Subject<'_>, root: &str, source: &str) -> bool {
    let Some(module) = source.strip_suffix(".py") else {
        return false;
    };
    let start = format!("{}.", name_of(module.as_bytes()).escape_ascii());
    let parent = parent_of(module.as_bytes()).map_or_else(String::new, |parent| {
        format!("/{}", String::from_utf8_lossy(parent))
    });
    let directory = format!("{root}{parent}");
    let Some(directory) = subject.tree.follow(directory.as_bytes()) else {
        return false;
    };
    let compiled = subject.tree.below(&directory).any(|(path, _)| {
        parent_of(path).unwrap_or_default() == directory
            && name_of(path).starts_with(start.as_bytes())
            && path.ends_with(b".so")
    });
    let first = module.split('/').next().unwrap_or(module);
    let installed = [
        format!("/site-packages/{first}"),
        format!("/site-packages/{first}.py"),
    ];
    compiled
        || subject.tree.all().any(|(path, _)| {
            installed
                .iter()
                .any(|installed| path.ends_with(installed.as_bytes()))
        })
}

pub(super) static IGNORED_SETTING: Rule = Rule {
    name: "ignored-setting",
    severity: Severity::Note,
    evidence: Evidence::Documented,
    scope: Scope::Lambda,
    why: "of an image's settings Lambda heeds ENTRYPOINT, CMD, WORKDIR and ENV alone",
    fix: "leave it out, unless the image runs elsewhere too",
    check: |subject, report| {
        let named = [
            ("User", "USER"),
            ("Volumes", "VOLUME"),
            ("ExposedPorts", "EXPOSE"),
            ("Healthcheck", "HEALTHCHECK"),
            ("StopSignal", "STOPSIGNAL"),
            ("Shell", "SHELL"),
            ("OnBuild", "ONBUILD"),
        ];
        for (member, instruction) in named {
            let is_set = match &subject.settings[member] {
                Value::Null => false,
                Value::String(text) => !text.is_empty(),
                Value::Array(list) => !list.is_empty(),
                Value::Object(map) => !map.is_empty(),
                _ => true,
            };
            if is_set {
                report.image(format!("{instruction} is set"));
            }
        }
    },
};
