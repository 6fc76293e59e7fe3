//! Whether programs, libraries and packages are for this machine, this C library and this language.

use crate::bytecode::{BytecodeCheck, source_of};
use crate::facts::{ContentFacts, EntryKind, name_of, parent_of};
use crate::finding::{Evidence, Report, Rule, Scope, Severity};
use crate::libraries::{LoadProblemKind, Reason};
use crate::subject::{Subject, elf_of};
use crate::wheel;

pub(super) static WRONG_ARCHITECTURE: Rule = Rule {
    name: "wrong-architecture",
    severity: Severity::Error,
    evidence: Evidence::Specified,
    scope: Scope::Every,
    why: "a program or module for another machine cannot be run or imported (`exec format error`)",
    fix: "install or build it for the architecture of the image",
    check: wrong_architecture,
};

/// The architectures, in the image specification's words, for which a program's own header is clear.
const ARCHITECTURES: [&str; 8] = [
    "386", "amd64", "arm", "arm64", "loong64", "ppc64le", "riscv64", "s390x",
];

fn wrong_architecture(subject: &Subject<'_>, report: &mut Report<'_>) {
    let image = subject.architecture();
    for program in &subject.programs.programs {
        let Some(node) = subject.tree.at(&program.path) else {
            continue;
        };
        if let Some(elf) = elf_of(node)
            && elf.is_loadable
            && elf.architecture() != image
            && ARCHITECTURES.contains(&image)
        {
            let machine = elf.architecture();
            let what = format!(
                "{} is for {machine}, and the image for {image}",
                program.role
            );
            report.path(node.layer, &program.path, what);
        }
    }
    for problem in &subject.analysis.problems {
        if let LoadProblemKind::OtherMachine {
            library,
            found,
            architecture,
        } = &problem.kind
            && problem.reason != Reason::Other
        {
            let found = String::from_utf8_lossy(found);
            let what = format!(
                "it needs `{library}`, and /{} is for {architecture}",
                found.trim_start_matches('/')
            );
            report.path(problem.layer, &problem.path, what);
        }
    }
    for stranger in &subject.analysis.strangers {
        let is_started = is_started(subject, &stranger.path);
        if stranger.is_module && stranger.sibling.is_none() && !stranger.is_inert && !is_started {
            let what = format!("it is for {}, and the image for {image}", stranger.made_for);
            report.path(stranger.node.layer, &stranger.path, what);
        }
    }
}

/// Whether a file is judged as a program that starts.
fn is_started(subject: &Subject<'_>, path: &[u8]) -> bool {
    let mut programs = subject.programs.programs.iter();
    programs.any(|program| program.path == path)
}

pub(super) static FOREIGN_BINARY: Rule = Rule {
    name: "foreign-binary",
    severity: Severity::Warning,
    evidence: Evidence::Specified,
    scope: Scope::Every,
    why: "a program or library for another machine cannot be used, and there is none for this one \
          beside it",
    fix: "install or build it for the architecture of the image, or leave it out",
    check: |subject, report| {
        for stranger in &subject.analysis.strangers {
            let judged_elsewhere = is_started(subject, &stranger.path) || stranger.is_module;
            if stranger.sibling.is_none() && !stranger.is_inert && !judged_elsewhere {
                let image = subject.architecture();
                let what = format!("it is for {}, and the image for {image}", stranger.made_for);
                report.path(stranger.node.layer, &stranger.path, what);
            }
        }
        for problem in &subject.analysis.problems {
            if let LoadProblemKind::OtherMachine {
                library,
                architecture,
                ..
            } = &problem.kind
                && problem.reason == Reason::Other
            {
                let what = format!("it needs `{library}`, which is there for {architecture} alone");
                report.path(problem.layer, &problem.path, what);
            }
        }
    },
};

pub(super) static FOREIGN_PREBUILD: Rule = Rule {
    name: "foreign-prebuild",
    severity: Severity::Note,
    evidence: Evidence::Specified,
    scope: Scope::Every,
    why: "it is for another machine and takes room; the one for this machine is there too",
    fix: "leave it out to make the image smaller: `prune-prebuilds = true` in its layer of tierce.toml \
          does",
    check: |subject, report| {
        for stranger in &subject.analysis.strangers {
            let what = match &stranger.sibling {
                Some(sibling) => format!(
                    "it is for {}, beside /{}",
                    stranger.made_for,
                    String::from_utf8_lossy(sibling)
                ),
                None => format!("it is for {}", stranger.made_for),
            };
            if stranger.is_dispensable() && !is_started(subject, &stranger.path) {
                report.path(stranger.node.layer, &stranger.path, what);
            }
        }
    },
};

pub(super) static WHEEL_PLATFORM: Rule = Rule {
    name: "wheel-platform",
    severity: Severity::Error,
    evidence: Evidence::Specified,
    scope: Scope::Every,
    why: "the package's compiled modules are for another machine",
    fix: "install it for the image: `pip install --platform manylinux2014_aarch64 --only-binary=:all:` \
          (or `_x86_64`), or `uv pip install --python-platform`",
    check: |subject, report| {
        for (path, layer, tags) in wheels(subject) {
            let architecture = subject.architecture();
            let fits = |tag: &String| wheel::fits(tag, architecture);
            if !tags.is_empty() && !tags.iter().any(fits) {
                let what = format!(
                    "{} was made for `{}`, and the image is for {architecture}",
                    package_of(path),
                    tags[0]
                );
                report.path(layer, path, what);
            }
        }
    },
};

pub(super) static WHEEL_PYTHON: Rule = Rule {
    name: "wheel-python",
    severity: Severity::Warning,
    evidence: Evidence::Specified,
    scope: Scope::Every,
    why: "compiled modules for one Python are not found by another",
    fix: "install it for the base's version: `pip install --python-version 3.12 --only-binary=:all:`",
    check: |subject, report| {
        let Some(python) = subject.python else { return };
        for (path, layer, tags) in wheels(subject) {
            let is_bound =
                !tags.is_empty() && !tags.iter().any(|tag| wheel::fits_python(tag, python));
            // What lies in the directory of another Python is for that one.
            let of_other = String::from_utf8_lossy(path)
                .split('/')
                .filter_map(|part| part.strip_prefix("python3."))
                .any(|minor| minor.parse() != Ok(python.1));
            if is_bound && !of_other {
                let what = format!(
                    "{} was made for `{}`, and the base has Python {}.{}",
                    package_of(path),
                    tags[0],
                    python.0,
                    python.1
                );
                report.path(layer, path, what);
            }
        }
    },
};

fn wheels<'a>(subject: &'a Subject<'_>) -> impl Iterator<Item = (&'a [u8], usize, &'a [String])> {
    subject
        .tree
        .all()
        .filter_map(|(path, node)| match &node.entry.content {
            Some(ContentFacts::Wheel(tags)) => Some((path, node.layer, tags.as_slice())),
            _ => None,
        })
}

/// The name and version in `NAME-VERSION.dist-info/WHEEL`.
fn package_of(path: &[u8]) -> String {
    let directory = name_of(parent_of(path).unwrap_or_default());
    let name = String::from_utf8_lossy(directory);
    name.trim_end_matches(".dist-info").replacen('-', " ", 1)
}

pub(super) static GLIBC_VERSION: Rule = Rule {
    name: "glibc-version",
    severity: Severity::Error,
    evidence: Evidence::Specified,
    scope: Scope::Every,
    why: "the loader refuses what was built against a newer glibc (``version `GLIBC_…' not found``)",
    fix: "build it on the base's own system or an older one, link it statically, or take a base with \
          a newer glibc (Amazon Linux 2023 has 2.34, Amazon Linux 2 has 2.26)",
    check: |subject, report| {
        for problem in &subject.analysis.problems {
            if let LoadProblemKind::Glibc {
                needed,
                version,
                symbol,
                library,
                offered,
                offered_by,
            } = &problem.kind
            {
                let symbol = for_symbol(symbol.as_deref());
                let what = format!(
                    "it needs glibc {needed} ({version}{symbol} of {library}), and {offered_by} \
                     offers {offered}"
                );
                report.path(problem.layer, &problem.path, what);
            }
        }
    },
};

pub(super) static SYMBOL_VERSION: Rule = Rule {
    name: "symbol-version",
    severity: Severity::Error,
    evidence: Evidence::Specified,
    scope: Scope::Every,
    why: "the loader refuses what was built against a newer version of a library",
    fix: "build it on the base's own system, or bring the newer library along",
    check: |subject, report| {
        for problem in &subject.analysis.problems {
            if let LoadProblemKind::Version {
                found,
                version,
                symbol,
                ..
            } = &problem.kind
            {
                let symbol = for_symbol(symbol.as_deref());
                let found = String::from_utf8_lossy(found);
                let found = found.trim_start_matches('/');
                let what = format!("it needs {version}{symbol}, which /{found} does not have");
                report.path(problem.layer, &problem.path, what);
            }
        }
    },
};

pub(super) static MISSING_LIBRARY: Rule = Rule {
    name: "missing-library",
    severity: Severity::Error,
    evidence: Evidence::Specified,
    scope: Scope::Every,
    why: "a program or module whose library is not there cannot be loaded \
          (`cannot open shared object file`)",
    fix: "put the library into a directory of LD_LIBRARY_PATH, such as /var/task/lib or /opt/lib, or \
          beside the file with a runpath of $ORIGIN",
    check: |subject, report| missing(subject, report, |reason| reason != Reason::Other),
};

pub(super) static MISSING_OPTIONAL_LIBRARY: Rule = Rule {
    name: "missing-optional-library",
    severity: Severity::Warning,
    evidence: Evidence::Specified,
    scope: Scope::Every,
    why: "should anything load or run this file, it will fail; many packages have parts that are \
          never used",
    fix: "put the library into a directory of LD_LIBRARY_PATH if the file is used",
    check: |subject, report| missing(subject, report, |reason| reason == Reason::Other),
};

fn missing(subject: &Subject<'_>, report: &mut Report<'_>, fits: impl Fn(Reason) -> bool) {
    for problem in &subject.analysis.problems {
        if let LoadProblemKind::Missing { library } = &problem.kind
            && fits(problem.reason)
        {
            let what = format!("it needs `{library}`, which the image does not have");
            report.path(problem.layer, &problem.path, what);
        }
    }
}

pub(super) static LIBRARY_OFF_PATH: Rule = Rule {
    name: "library-off-path",
    severity: Severity::Warning,
    evidence: Evidence::Specified,
    scope: Scope::Every,
    why: "the loader does not look there; it works only if something else has loaded the library \
          before",
    fix: "put its directory into LD_LIBRARY_PATH, or the library where the loader looks",
    check: |subject, report| {
        for problem in &subject.analysis.problems {
            if let LoadProblemKind::OffPath { library, found } = &problem.kind {
                let found = String::from_utf8_lossy(found);
                let what = format!("it needs `{library}`, which is at /{found}");
                report.path(problem.layer, &problem.path, what);
            }
        }
    },
};

pub(super) static STALE_BYTECODE: Rule = Rule {
    name: "stale-bytecode",
    severity: Severity::Warning,
    evidence: Evidence::Specified,
    scope: Scope::Every,
    why: "Python throws away compiled code whose time or size is not that of its source, and \
          compiles anew at every cold start",
    fix: "compile with `--invalidation-mode unchecked-hash`; `tierce build` converts what is valid",
    check: stale_bytecode,
};

fn stale_bytecode(subject: &Subject<'_>, report: &mut Report<'_>) {
    // What is stale is most often a whole layer: the first of each directory stands for all.
    let mut last: Option<(usize, Vec<u8>)> = None;
    for (path, node) in subject.tree.all() {
        let Some(ContentFacts::Bytecode(bytecode)) = &node.entry.content else {
            continue;
        };
        let BytecodeCheck::Timestamp { modified, size } = bytecode.check else {
            continue;
        };
        let Some(source) = source_of(path) else {
            continue;
        };
        let Some((_, source)) = subject.tree.find(&source) else {
            continue;
        };
        if source.entry.kind != EntryKind::File {
            continue;
        }
        // The header has the low 32 bits of both.
        let low = |number: u64| u32::try_from(number & 0xffff_ffff).unwrap_or_default();
        let found = (
            low(source.entry.modified.cast_unsigned()),
            low(source.entry.size),
        );
        let directory = (node.layer, parent_of(path).unwrap_or_default().to_owned());
        if found != (modified, size) && last.as_ref() != Some(&directory) {
            let what = if found.1 == size {
                format!(
                    "it was compiled from a source of the time {modified}, and the source has {}",
                    found.0
                )
            } else {
                format!(
                    "it was compiled from a source of {size} bytes, and the source has {}",
                    found.1
                )
            };
            report.path(node.layer, path, what);
            last = Some(directory);
        }
    }
}

/// What a version is needed for, where that is known.
fn for_symbol(symbol: Option<&str>) -> String {
    symbol.map_or_else(String::new, |symbol| format!(" for `{symbol}`"))
}
