//! What the archives of the layers are like.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Bound;

use crate::bases::RUNTIME_ROOT;
use crate::facts::{EntryFacts, EntryKind, LayerFacts, parent_of};
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
            if entry.kind == EntryKind::Whiteout {
                lower.remove(path);
                let within = [path, b"/"].concat();
                let gone: Vec<&[u8]> = lower
                    .range::<[u8], _>((Bound::Included(within.as_slice()), Bound::Unbounded))
                    .copied()
                    .take_while(|known| known.starts_with(&within))
                    .collect();
                for directory in gone {
                    lower.remove(directory);
                }
            }
            // The way may lead over links, as from `lib` to `usr/lib`.
            let is_in_lower = |parent: &[u8]| {
                let real = subject.tree.follow(parent);
                lower.contains(parent) || real.is_some_and(|real| lower.contains(real.as_slice()))
            };
            let parent = parent_of(path);
            let is_new = parent != last;
            if !is_deletion(entry) {
                last = parent;
            }
            if let Some(parent) = parent
                && is_new
                && !here.contains(parent)
                && !is_deletion(entry)
                && is_in_lower(parent) == in_lower_layer
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

fn is_below(path: &[u8], directory: &[u8]) -> bool {
    let rest = path.strip_prefix(directory);
    rest.is_some_and(|rest| rest.starts_with(b"/"))
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
        let has_link = |(_, layer): (usize, &LayerFacts)| layer.entries.iter().any(is_link);
        if subject.is_partly_unknown() || !subject.layers().any(has_link) {
            return;
        }
        // Each by the path as written and by that which links lead to.
        let mut files: BTreeSet<Cow<'_, [u8]>> = BTreeSet::new();
        for (number, layer) in subject.layers() {
            for entry in &layer.entries {
                let path = entry.path.as_bytes();
                if let EntryKind::Hardlink(target) = &entry.kind {
                    let real = subject.tree.place_of(target.as_bytes());
                    let is_there = files.contains(target.as_bytes())
                        || real.is_some_and(|real| files.contains(real.as_slice()));
                    if !is_there {
                        let what =
                            format!("a hardlink to /{target}, which does not come before it");
                        report.path(number, path, what);
                    }
                }
                if !is_deletion(entry) && entry.kind != EntryKind::Directory {
                    if let Some(real) = subject.tree.place_of(path)
                        && real != path
                    {
                        files.insert(real.into());
                    }
                    files.insert(path.into());
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
        let readable = Readable::of(subject);
        let mut closed: BTreeSet<&[u8]> = BTreeSet::new();
        for (path, node) in subject.tree.all() {
            let behind = std::iter::successors(parent_of(path), |path| parent_of(path))
                .any(|directory| closed.contains(directory));
            if !readable.contains(path) || behind {
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

/// The paths that a function must be able to read: its directories, and the way to them. Bases keep
/// files from others too, such as `/etc/shadow`.
pub(super) struct Readable {
    directories: BTreeSet<Vec<u8>>,
    above: BTreeSet<Vec<u8>>,
}

impl Readable {
    pub(super) fn of(subject: &Subject<'_>) -> Self {
        let mut directories = subject.function_directories();
        directories.insert(RUNTIME_ROOT.trim_start_matches('/').as_bytes().to_owned());
        let mut above = BTreeSet::new();
        for directory in &directories {
            let parents = std::iter::successors(Some(directory.as_slice()), |path| parent_of(path));
            above.extend(parents.map(<[u8]>::to_vec));
        }
        Self { directories, above }
    }

    pub(super) fn contains(&self, path: &[u8]) -> bool {
        let mut directories = self.directories.iter();
        self.above.contains(path) || directories.any(|directory| is_below(path, directory))
    }
}

/// What Lambda's user may do with a file.
pub(super) fn permissions(entry: &EntryFacts) -> u32 {
    if entry.uid == limits::USER_ID {
        (entry.mode >> 6) & 0o7
    } else {
        entry.mode & 0o7
    }
}
