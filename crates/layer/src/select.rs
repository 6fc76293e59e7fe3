//! Which entries of a source are wanted.
//!
//! Patterns match a path and all its parents, so what they say of a directory is carried along on
//! the way down, and each name is asked about once.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::pattern::{Matched, Matcher};
use crate::scan::Anchored;

/// All patterns that have a say in a source.
pub(crate) struct Selection<'a> {
    rules: Vec<Rule<'a>>,
    /// False when something must be included that cannot be in the source.
    possible: bool,
}

struct Rule<'a> {
    matcher: &'a Matcher,
    /// Where the source is, seen from where the patterns are anchored.
    source: &'a [u8],
    role: Role,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Whatever matches is left out, with all that is in it.
    Prune,
    /// Whatever matches is left out, but a pattern may take back what is in it.
    Exclude,
    /// Only what matches is taken.
    Include,
}

/// What the patterns say of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Wanted,
    /// Not wanted for itself, but a directory may hold something that is.
    Unwanted,
    /// Neither the entry nor anything in it can be wanted.
    Pruned,
}

/// What each of the patterns says of a directory, to decide about what is in it.
#[derive(Debug, Clone)]
pub(crate) struct Level(Vec<Matched>);

impl<'a> Rule<'a> {
    /// `None` when the patterns are anchored elsewhere and match nothing here.
    fn new(source: &'a Path, anchored: &Anchored<'a>, role: Role) -> Option<Self> {
        let source = source.strip_prefix(anchored.root).ok()?;
        Some(Self {
            matcher: anchored.matcher,
            source: source.as_os_str().as_bytes(),
            role,
        })
    }

    fn excluding(source: &'a Path, anchored: &Anchored<'a>) -> Option<Self> {
        let role = if anchored.matcher.reincludes() {
            Role::Exclude
        } else {
            Role::Prune
        };
        Self::new(source, anchored, role)
    }
}

impl<'a> Selection<'a> {
    pub(crate) fn new(
        source: &'a Path,
        exclude: &[Anchored<'a>],
        include: Option<Anchored<'a>>,
    ) -> Self {
        let mut rules: Vec<Rule<'a>> = exclude
            .iter()
            .filter(|anchored| !anchored.matcher.is_empty())
            .filter_map(|anchored| Rule::excluding(source, anchored))
            .collect();
        let mut possible = true;
        if let Some(anchored) = &include {
            let including = Rule::new(source, anchored, Role::Include);
            possible = including.is_some();
            rules.extend(including);
        }
        Self { rules, possible }
    }

    /// What is said of the source itself.
    pub(crate) fn source(&self) -> (Verdict, Level) {
        let matched = |rule: &Rule<'_>| match rule.source {
            b"" => Matched::default(),
            source => rule.matcher.matched(source),
        };
        let level = Level(self.rules.iter().map(matched).collect());
        let verdict = self.verdict(level.0.iter().map(Matched::is_match));
        (verdict, level)
    }

    /// Prepares for the names in a directory that was found at `path` in the source.
    pub(crate) fn inside<'d>(&'d self, path: &[u8], level: &'d Level) -> Inside<'d> {
        let path_from_root = |rule: &Rule<'_>| {
            let mut from_root = rule.source.to_vec();
            for part in [path, b""] {
                if !from_root.is_empty() && !from_root.ends_with(b"/") {
                    from_root.push(b'/');
                }
                from_root.extend_from_slice(part);
            }
            from_root
        };
        Inside {
            selection: self,
            level,
            paths: self.rules.iter().map(path_from_root).collect(),
        }
    }

    fn verdict(&self, is_match: impl Iterator<Item = bool>) -> Verdict {
        let mut verdict = if self.possible {
            Verdict::Wanted
        } else {
            Verdict::Unwanted
        };
        for (rule, is_match) in self.rules.iter().zip(is_match) {
            match (rule.role, is_match) {
                (Role::Prune, true) => return Verdict::Pruned,
                (Role::Exclude, true) | (Role::Include, false) => verdict = Verdict::Unwanted,
                (Role::Prune | Role::Exclude, false) | (Role::Include, true) => {}
            }
        }
        verdict
    }
}

/// A directory whose names are asked about.
pub(crate) struct Inside<'d> {
    selection: &'d Selection<'d>,
    level: &'d Level,
    /// For each rule the directory's path from where the rule is anchored, ready for a name.
    paths: Vec<Vec<u8>>,
}

impl Inside<'_> {
    /// What is said of the entry called `name`.
    pub(crate) fn verdict(&mut self, name: &[u8]) -> Verdict {
        let rules = self.selection.rules.iter().zip(&self.level.0);
        let is_match = rules.zip(&mut self.paths).map(|((rule, matched), path)| {
            with_name(path, name, |path| rule.matcher.is_match_in(matched, path))
        });
        self.selection.verdict(is_match)
    }

    /// What is needed to go on into the directory called `name`.
    pub(crate) fn level(&mut self, name: &[u8]) -> Level {
        let rules = self.selection.rules.iter().zip(&self.level.0);
        let matched = rules.zip(&mut self.paths).map(|((rule, matched), path)| {
            with_name(path, name, |path| rule.matcher.matched_in(matched, path))
        });
        Level(matched.collect())
    }
}

fn with_name<T>(path: &mut Vec<u8>, name: &[u8], ask: impl FnOnce(&[u8]) -> T) -> T {
    let directory = path.len();
    path.extend_from_slice(name);
    let answer = ask(path);
    path.truncate(directory);
    answer
}
