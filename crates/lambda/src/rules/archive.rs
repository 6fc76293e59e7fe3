//! What the archives of the layers are like.

use std::collections::BTreeSet;

use crate::bases::RUNTIME_ROOT;
use crate::facts::{EntryFacts, EntryKind, parent_of};
use crate::finding::{Evidence, Report, Rule, Scope, Severity};
use crate::limits;
use crate::subject::Subject;

pub(super) static MISSING_PARENT: Rule = Rule {
    name: "missing-parent",
    severity: Severity::Error,
    evidence: Evidence::Specified,
    scope: Scope::Lambda,
    why: "Lambda refuses an entry whose directory has no entry before it \
          (`InvalidImage: MissingParentDirectory`)",
    fix: "write the archive with all directories, each before what is in it; `tierce build` does",
    check: |subject, report| orphans(subject, report, false),
};

pub(super) static PARENT_IN_LOWER_LAYER: Rule = Rule {
    name: "parent-in-lower-layer",
    severity: Severity::Note,
    evidence: Evidence::Uncertain,
    scope: Scope::Lambda,
    why: "it is not known whether Lambda is content with the directory's entry in a lower layer",
    fix: "repeat the directories in every layer; `tierce build` does",
    check: |subject, report| orphans(subject, report, true),
};

/// Finds entries whose directory did not come before them in their layer, and tells those apart of
/// which a lower layer has it. Of each directory the first such entry is named.
fn orphans(subject: &Subject<'_>, report: &mut Report<'_>, in_lower_layer: bool) {
    let mut lower: BTreeSet<&[u8]> = BTreeSet::new();
    for (number, layer) in subject.layers() {
        let mut here: BTreeSet<&[u8]> = BTreeSet::new();
        let mut named: BTreeSet<&[u8]> = BTreeSet::new();
        let directories: BTreeSet<&[u8]> = layer
            .entries
            .iter()
            .filter(|entry| entry.kind == EntryKind::Directory)
            .map(|entry| entry.path.as_bytes())
            .collect();
        // Most entries lie where the one before does.
        let mut last: Option<&[u8]> = None;
        for entry in &layer.entries {
            let path = entry.path.as_bytes();
            let parent = parent_of(path);
            let is_new = parent != last;
            if !is_deletion(entry) {
                last = parent;
            }
            if let Some(parent) = parent
                && is_new
                && !here.contains(parent)
                && !is_deletion(entry)
                && lower.contains(parent) == in_lower_layer
                && (in_lower_layer || !subject.is_partly_unknown())
                && named.insert(parent)
            {
                let comes_later = directories.contains(parent);
                let parent = String::from_utf8_lossy(parent);
                let where_it_is = match (in_lower_layer, comes_later) {
                    (true, _) => "is in a lower layer alone",
                    (false, true) => "comes only later",
                    (false, false) => "has no entry",
                };
                report.path(
                    number,
                    path,
                    format!("its directory /{parent} {where_it_is}"),
                );
            }
            // A link to a directory may be what stands there.
            if matches!(entry.kind, EntryKind::Directory | EntryKind::Symlink(_)) {
                here.insert(path);
            }
        }
        lower.extend(here);
    }
}

fn is_deletion(entry: &EntryFacts) -> bool {
    matches!(entry.kind, EntryKind::Whiteout | EntryKind::Opaque)
}

pub(super) static DUPLICATE_ENTRY: Rule = Rule {
    name: "duplicate-entry",
    severity: Severity::Warning,
    evidence: Evidence::Specified,
    scope: Scope::Every,
    why: "the image specification forbids two entries for one path in a layer",
    fix: "write the archive with one entry for each path",
    check: |subject, report| {
        for (number, layer) in subject.layers() {
            let entries = || layer.entries.iter().filter(|entry| !is_deletion(entry));
            // Nearly always there are none, and most archives are sorted in parts.
            let mut paths: Vec<&[u8]> = entries().map(|entry| entry.path.as_bytes()).collect();
            paths.sort();
            if paths.windows(2).all(|pair| pair[0] != pair[1]) {
                continue;
            }
            let mut seen = BTreeSet::new();
            for entry in entries() {
                if !seen.insert(entry.path.as_bytes()) {
                    report.path(
                        number,
                        entry.path.as_bytes(),
                        "an earlier entry has this path",
                    );
                }
            }
        }
    },
};

pub(super) static BROKEN_HARDLINK: Rule = Rule {
    name: "broken-hardlink",
    severity: Severity::Error,
    evidence: Evidence::Specified,
    scope: Scope::Every,
    why: "nothing can be linked to a file that is not there yet",
    fix: "write the file before its links, or as a file in each place",
    check: |subject, report| {
        let is_link = |entry: &EntryFacts| matches!(entry.kind, EntryKind::Hardlink(_));
        let mut entries = subject.layers().flat_map(|(_, layer)| &layer.entries);
        if !entries.any(is_link) {
            return;
        }
        let mut files: BTreeSet<&[u8]> = BTreeSet::new();
        for (number, layer) in subject.layers() {
            for entry in &layer.entries {
                if let EntryKind::Hardlink(target) = &entry.kind
                    && !subject.is_partly_unknown()
                    && !files.contains(target.as_bytes())
                    && subject.tree.find(target.as_bytes()).is_none()
                {
                    let what = format!("a hardlink to /{target}, which does not come before it");
                    report.path(number, entry.path.as_bytes(), what);
                }
                if !is_deletion(entry) {
                    files.insert(entry.path.as_bytes());
                }
            }
        }
    },
};

pub(super) static HARDLINK: Rule = Rule {
    name: "hardlink",
    severity: Severity::Note,
    evidence: Evidence::Uncertain,
    scope: Scope::Lambda,
    why: "Lambda is said to refuse some layers with hardlinks, and takes most",
    fix: "nothing, as long as Lambda takes it; `tierce build` writes copies",
    check: |subject, report| {
        for (number, layer) in subject.layers() {
            let is_link = |entry: &&EntryFacts| matches!(entry.kind, EntryKind::Hardlink(_));
            let count = layer.entries.iter().filter(is_link).count();
            if let Some(first) = layer.entries.iter().find(is_link) {
                let what = match count {
                    1 => "a hardlink".to_owned(),
                    count => format!("the first of {count} hardlinks"),
                };
                report.path(number, first.path.as_bytes(), what);
            }
        }
    },
};

pub(super) static SPECIAL_FILE: Rule = Rule {
    name: "special-file",
    severity: Severity::Note,
    evidence: Evidence::Uncertain,
    scope: Scope::Lambda,
    why: "it is not known what Lambda makes of entries that are no files, directories or links",
    fix: "leave it out",
    check: |subject, report| {
        for (number, layer) in subject.layers() {
            for entry in &layer.entries {
                if let EntryKind::Other(kind) = &entry.kind {
                    report.path(number, entry.path.as_bytes(), format!("a {kind}"));
                }
            }
        }
    },
};

pub(super) static UNREADABLE_FILE: Rule = Rule {
    name: "unreadable-file",
    severity: Severity::Error,
    evidence: Evidence::Documented,
    scope: Scope::Lambda,
    why: "functions run as a user of Lambda's own, whatever USER says: what others may not read is \
          not there for them",
    fix: "give others the right to read (`chmod -R o+rX`); `tierce build` does",
    check: |subject, report| {
        // Bases keep files from others too, such as /etc/shadow: what counts is the function's.
        let mut directories = subject.function_directories();
        directories.insert(RUNTIME_ROOT.trim_start_matches('/').as_bytes().to_owned());
        let mut above = BTreeSet::new();
        for directory in &directories {
            let parents = std::iter::successors(Some(directory.as_slice()), |path| parent_of(path));
            above.extend(parents.map(<[u8]>::to_vec));
        }
        let mut closed: BTreeSet<&[u8]> = BTreeSet::new();
        for (path, node) in subject.tree.all() {
            let is_within = directories.iter().any(|directory| {
                path.strip_prefix(directory.as_slice())
                    .is_some_and(|rest| rest.first().is_none_or(|&byte| byte == b'/'))
            });
            let behind = std::iter::successors(parent_of(path), |path| parent_of(path))
                .any(|directory| closed.contains(directory));
            if (!is_within && !above.contains(path)) || behind {
                continue;
            }
            let needed = match node.entry.kind {
                EntryKind::Directory => 0o1,
                EntryKind::File => 0o4,
                _ => continue,
            };
            if permissions(node.entry) & needed == 0 {
                let what = format!("mode {:04o}", node.entry.mode & 0o7777);
                report.path(node.layer, path, what);
                if needed == 0o1 {
                    closed.insert(path);
                }
            }
        }
    },
};

/// What Lambda's user may do with a file.
pub(super) fn permissions(entry: &EntryFacts) -> u32 {
    if entry.uid == limits::USER_ID {
        (entry.mode >> 6) & 0o7
    } else {
        entry.mode & 0o7
    }
}
