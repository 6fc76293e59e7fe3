//! Whether the function can be started.

use std::collections::BTreeSet;

use super::archive::{Readable, permissions};
use crate::facts::{ContentFacts, EntryKind, name_of, parent_of};
use crate::finding::{Evidence, Report, Rule, Scope, Severity};
use crate::subject::{Purpose, Subject};

pub(super) static NO_ENTRYPOINT: Rule = Rule {
    name: "no-entrypoint",
    severity: Severity::Warning,
    evidence: Evidence::Documented,
    scope: Scope::Lambda,
    why: "nothing says what is to be started",
    fix: "set ENTRYPOINT, or have the function's image configuration set it",
    check: |subject, report| {
        if subject.programs.command.is_none() {
            report.image("neither ENTRYPOINT nor CMD is set");
        }
    },
};

pub(super) static ENTRYPOINT_NOT_FOUND: Rule = Rule {
    name: "entrypoint-not-found",
    severity: Severity::Error,
    evidence: Evidence::Documented,
    scope: Scope::Every,
    why: "what is to be started must be in the image (`Runtime.InvalidEntrypoint`)",
    fix: "put it there, or correct ENTRYPOINT",
    check: |subject, report| {
        for (role, words, on_behalf) in &subject.programs.missing {
            if on_behalf.is_none() {
                report.image(format!(
                    "{role} is `{words}`, and the image has no such file"
                ));
            }
        }
    },
};

pub(super) static ENTRYPOINT_NOT_EXECUTABLE: Rule = Rule {
    name: "entrypoint-not-executable",
    severity: Severity::Error,
    evidence: Evidence::Documented,
    scope: Scope::Every,
    why: "the system starts only what its user may execute (`permission denied`)",
    fix: "give others the right to execute it: `chmod o+rx`",
    check: not_executable,
};

fn not_executable(subject: &Subject<'_>, report: &mut Report<'_>) {
    let readable = Readable::of(subject);
    let mut closed = BTreeSet::new();
    for program in &subject.programs.programs {
        let Some(node) = subject.tree.at(&program.path) else {
            continue;
        };
        // A script is also read, by its interpreter.
        let needed = match node.entry.content {
            Some(ContentFacts::Script(_)) => 0o5,
            _ => 0o1,
        };
        let allowed = match subject.purpose {
            Purpose::Lambda => permissions(node.entry) & needed == needed,
            Purpose::Generic => node.entry.mode & 0o111 != 0,
        };
        if node.entry.kind == EntryKind::File && !allowed {
            let mode = node.entry.mode & 0o7777;
            let what = format!("{} has the mode {mode:04o}", program.role);
            report.path(node.layer, &program.path, what);
        }
        if subject.purpose != Purpose::Lambda {
            continue;
        }
        let above = std::iter::successors(parent_of(&program.path), |path| parent_of(path));
        for directory in above {
            // What the function must be able to read is judged by a rule of its own.
            if let Some(node) = subject.tree.at(directory)
                && node.entry.kind == EntryKind::Directory
                && permissions(node.entry) & 0o1 == 0
                && !readable.contains(directory)
                && closed.insert(directory)
            {
                let mode = node.entry.mode & 0o7777;
                let what = format!("{} is in it, and it has the mode {mode:04o}", program.role);
                report.path(node.layer, directory, what);
            }
        }
    }
}

pub(super) static ENTRYPOINT_FORMAT: Rule = Rule {
    name: "entrypoint-format",
    severity: Severity::Error,
    evidence: Evidence::Specified,
    scope: Scope::Every,
    why: "the kernel runs programs of Linux and scripts that begin with `#!` (`exec format error`)",
    fix: "begin the script with `#!/bin/sh` or another interpreter",
    check: |subject, report| {
        for program in &subject.programs.programs {
            let Some(node) = subject.tree.at(&program.path) else {
                continue;
            };
            let what = match &node.entry.content {
                Some(ContentFacts::Elf(elf)) if elf.is_loadable => continue,
                Some(ContentFacts::Script(words)) if !words.is_empty() => continue,
                _ if node.entry.kind != EntryKind::File => continue,
                Some(ContentFacts::Foreign(system)) => format!("is a program of {system}"),
                _ if node.entry.size == 0 => "is empty".to_owned(),
                _ => "is no program of Linux, and no script with a `#!` line".to_owned(),
            };
            report.path(
                node.layer,
                &program.path,
                format!("{} {what}", program.role),
            );
        }
    },
};

pub(super) static ENTRYPOINT_NOT_ABSOLUTE: Rule = Rule {
    name: "entrypoint-not-absolute",
    severity: Severity::Warning,
    evidence: Evidence::Documented,
    scope: Scope::Lambda,
    why: "AWS wants an absolute path; many images that leave it to PATH work nevertheless",
    fix: "write the whole path",
    check: |subject, report| {
        if let (Some(command), Some(file)) = (&subject.programs.command, &subject.programs.file)
            && !command.starts_with('/')
        {
            let file = String::from_utf8_lossy(file);
            report.image(format!("the entrypoint is `{command}`, found as /{file}"));
        }
    },
};

pub(super) static ENTRYPOINT_SYMLINK: Rule = Rule {
    name: "entrypoint-symlink",
    severity: Severity::Note,
    evidence: Evidence::Documented,
    scope: Scope::Lambda,
    why: "AWS wants no symlink; `python` and `npx` are ones in most images, and work nevertheless",
    fix: "nothing, as long as it works; else name the file that the link leads to",
    check: |subject, report| {
        if let Some(file) = &subject.programs.file
            && let Some(node) = subject.tree.at(file)
            && let EntryKind::Symlink(target) = &node.entry.kind
        {
            let what = format!("the entrypoint is a symlink to {target}");
            report.path(node.layer, file, what);
        }
    },
};

pub(super) static MISSING_INTERPRETER: Rule = Rule {
    name: "missing-interpreter",
    severity: Severity::Error,
    evidence: Evidence::Specified,
    scope: Scope::Every,
    why: "a program without its loader, or a script without its interpreter, does not start; the \
          error says only `no such file or directory`",
    fix: "a program for another C library must be built for that of the base; correct the `#!` line \
          of a script, whose lines must not end as on Windows",
    check: missing_interpreter,
};

fn missing_interpreter(subject: &Subject<'_>, report: &mut Report<'_>) {
    for (role, words, on_behalf) in &subject.programs.missing {
        let Some(path) = on_behalf else { continue };
        let layer = subject.tree.at(path).map_or(0, |node| node.layer);
        let shown = words.replace('\r', "\\r");
        let what = format!("{role} is run by `{shown}`, and the image has no such file");
        report.path(layer, path, what);
    }
}

pub(super) static MISSING_BOOTSTRAP: Rule = Rule {
    name: "missing-bootstrap",
    severity: Severity::Error,
    evidence: Evidence::Documented,
    scope: Scope::Lambda,
    why: "the entrypoint of AWS's bases starts /var/runtime/bootstrap, which `provided` bases leave \
          to the function",
    fix: "put the program there, or name it as ENTRYPOINT",
    check: |subject, report| {
        let has_one = subject
            .programs
            .programs
            .iter()
            .any(|program| program.role == "the bootstrap");
        // Those for a language have one.
        if subject.is_partly_unknown() && !subject.is_on_base_for("provided") {
            return;
        }
        // A base by itself is no function yet.
        if subject.programs.is_aws && !has_one && !subject.config().cmd.is_empty() {
            report
                .image("there is no /var/runtime/bootstrap, /var/task/bootstrap or /opt/bootstrap");
        }
    },
};

pub(super) static NO_RUNTIME_CLIENT: Rule = Rule {
    name: "no-runtime-client",
    severity: Severity::Warning,
    evidence: Evidence::Documented,
    scope: Scope::Lambda,
    why: "a function must speak Lambda's Runtime API, and nothing in the image seems to",
    fix: "add the Runtime Interface Client of the language: `awslambdaric` (Python), \
          `aws-lambda-ric` (Node, Ruby), `aws-lambda-java-runtime-interface-client`, or a program \
          that is built with one",
    check: no_runtime_client,
};

/// How the directories and files of the clients begin.
const PACKAGES: [&[u8]; 5] = [
    b"awslambdaric",
    b"aws-lambda-ric",
    b"aws_lambda_ric",
    b"aws-lambda-java-runtime-interface-client",
    b"Amazon.Lambda.RuntimeSupport",
];

fn is_script(subject: &Subject<'_>, path: &[u8]) -> bool {
    let content = subject
        .tree
        .at(path)
        .and_then(|node| node.entry.content.as_ref());
    matches!(content, Some(ContentFacts::Script(_)))
}

fn no_runtime_client(subject: &Subject<'_>, report: &mut Report<'_>) {
    let start = &subject.programs;
    // What they run may be packed into one file, where nobody looks.
    let is_language = |path: &[u8]| matches!(name_of(path), b"java" | b"dotnet");
    let mut programs = start.programs.iter();
    let starts_language = if programs.any(|program| is_script(subject, &program.path)) {
        // It may go on with anything.
        subject.tree.all().any(|(path, _)| is_language(path))
    } else {
        start
            .programs
            .iter()
            .any(|program| is_language(&program.path))
    };
    if start.is_aws
        || subject.is_partly_unknown()
        || start.file.is_none()
        || !start.missing.is_empty()
        || starts_language
    {
        return;
    }
    let functions = subject.function_directories();
    let is_client = |path: &[u8], speaks: bool| {
        let is_package = path.split(|&byte| byte == b'/').any(|component| {
            PACKAGES
                .iter()
                .any(|package| component.starts_with(package))
        });
        let is_started = start.programs.iter().any(|program| program.path == path);
        let is_ours = functions
            .iter()
            .any(|directory| path.starts_with(directory));
        is_package || (speaks && (is_started || is_ours))
    };
    let mut files = subject.tree.all();
    if !files.any(|(path, node)| is_client(path, node.entry.speaks_runtime_api)) {
        let advice = client_of(subject).map_or_else(String::new, |advice| format!("; {advice}"));
        report.image(format!("no Runtime Interface Client was found{advice}"));
    }
}

/// How the client of the image's language gets into it, where the language is known.
fn client_of(subject: &Subject<'_>) -> Option<&'static str> {
    const PYTHON: &str = "for its Python `runtime-client = true` under `[image]` of tierce.toml adds one; \
        elsewhere `pip install --target /var/task awslambdaric`, with the ENTRYPOINT \
        [\"/usr/local/bin/python3\", \"-m\", \"awslambdaric\"] by the path of its Python";
    const NODE: &str = "that of its Node is compiled when it is installed: with `aws-lambda-ric` in \
        package.json a layer with `node = \"package-lock.json\"` and `scripts = true` brings it, on a \
        machine like the image that has cmake, g++, make, autoconf and libtool; \
        `entrypoint = [\"/usr/local/bin/npx\", \"aws-lambda-ric\"]` starts it";
    const RUBY: &str = "for its Ruby `gem install aws_lambda_ric` where the image's gems are made; \
        `entrypoint = [\"/usr/local/bin/aws_lambda_ric\"]` starts it";
    let of_program = |name: &str| {
        if name.starts_with("python3") || name == "python" {
            Some(PYTHON)
        } else if matches!(name, "node" | "npx") {
            Some(NODE)
        } else {
            (name == "ruby").then_some(RUBY)
        }
    };
    let mut programs = subject.programs.programs.iter();
    let started = programs.find_map(|program| {
        let name = String::from_utf8_lossy(crate::facts::name_of(&program.path));
        of_program(&name)
    });
    started.or_else(|| {
        let there = |name: &&str| {
            ["usr/local/bin", "usr/bin"].iter().any(|directory| {
                let path = format!("{directory}/{name}");
                subject.tree.find(path.as_bytes()).is_some()
            })
        };
        ["python3", "node", "ruby"]
            .iter()
            .find(|name| there(name))
            .and_then(|name| of_program(name))
    })
}
