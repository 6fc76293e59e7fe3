//! What rules say.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::rules::{RULES, rule};
use crate::subject::Subject;

/// How bad it is.
///
/// It follows the evidence: only what AWS documents, or what a specification or a loader does for
/// certain, is an error; what people report is a warning, and what nobody knows for sure a note.
/// What images that work every day do is a warning at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Good to know.
    Note,
    /// It may go wrong.
    Warning,
    /// It will go wrong.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// How sure it is that a rule is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// AWS documents it.
    Documented,
    /// A specification says so, or the code of what loads and runs programs.
    Specified,
    /// People report it.
    Reported,
    /// It is not known for sure.
    Uncertain,
}

impl Evidence {
    /// The letter for it in tables.
    pub fn letter(self) -> char {
        match self {
            Self::Documented => 'D',
            Self::Specified => 'S',
            Self::Reported => 'I',
            Self::Uncertain => '?',
        }
    }
}

/// Which images a rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All.
    Every,
    /// Those for Lambda.
    Lambda,
}

/// One thing that is looked at.
#[derive(Debug)]
pub struct Rule {
    /// Its name, by which it can be allowed.
    pub name: &'static str,
    /// How bad it is when an image breaks it.
    pub severity: Severity,
    /// How sure that is.
    pub evidence: Evidence,
    /// Which images it is for.
    pub scope: Scope,
    /// Why it matters.
    pub why: &'static str,
    /// What to do.
    pub fix: &'static str,
    pub(crate) check: fn(&Subject<'_>, &mut Report<'_>),
}

/// Where a rule puts what it finds.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    pub(crate) rule: &'static Rule,
    pub(crate) findings: &'a mut Findings,
}

impl Report<'_> {
    /// Something about the image as a whole.
    pub(crate) fn image(&mut self, what: impl Into<String>) {
        self.findings.add(self.rule, None, None, what.into());
    }

    /// Something about a layer.
    pub(crate) fn layer(&mut self, layer: usize, what: impl Into<String>) {
        self.findings.add(self.rule, Some(layer), None, what.into());
    }

    /// Something about a path in a layer.
    pub(crate) fn path(&mut self, layer: usize, path: &[u8], what: impl Into<String>) {
        self.findings
            .add(self.rule, Some(layer), Some(path), what.into());
    }
}

/// One place where an image breaks a rule.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The rule.
    pub rule: &'static Rule,
    /// The layer, counted from zero at the lowest; `None` for what is not in a layer.
    pub layer: Option<usize>,
    /// The path in the image, with a slash in front.
    pub path: Option<String>,
    /// What was found.
    pub what: String,
}

/// As many places as are listed of one rule. An image in which everything is wrong is no longer
/// than that.
const MOST_OF_ONE_RULE: usize = 1000;

/// All that was found.
#[derive(Debug, Default)]
pub struct Findings {
    list: Vec<Finding>,
    counts: BTreeMap<&'static str, usize>,
}

/// [`Findings`] as they are written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenFindings<'a> {
    list: Vec<WrittenFinding<'a>>,
    counts: BTreeMap<Cow<'a, str>, usize>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenFinding<'a> {
    rule: Cow<'a, str>,
    layer: Option<usize>,
    path: Option<Cow<'a, str>>,
    what: Cow<'a, str>,
}

impl Findings {
    /// The findings: errors first, then by rule as the table has them, layer and path.
    pub fn list(&self) -> &[Finding] {
        &self.list
    }

    /// How often each rule was broken: more often than it is listed, where that is very often.
    pub fn counts(&self) -> &BTreeMap<&'static str, usize> {
        &self.counts
    }

    pub(crate) fn add(
        &mut self,
        rule: &'static Rule,
        layer: Option<usize>,
        path: Option<&[u8]>,
        what: String,
    ) {
        let count = self.counts.entry(rule.name).or_default();
        *count += 1;
        if *count > MOST_OF_ONE_RULE {
            return;
        }
        let path = path.map(|path| format!("/{}", String::from_utf8_lossy(path)));
        self.list.push(Finding {
            rule,
            layer,
            path,
            what,
        });
    }

    /// The findings as JSON, with rules by their names.
    pub fn to_json(&self) -> serde_json::Value {
        let list = self.list.iter().map(|finding| WrittenFinding {
            rule: finding.rule.name.into(),
            layer: finding.layer,
            path: finding.path.as_deref().map(Into::into),
            what: finding.what.as_str().into(),
        });
        let counts = self.counts.iter();
        serde_json::json!(WrittenFindings {
            list: list.collect(),
            counts: counts
                .map(|(name, count)| ((*name).into(), *count))
                .collect(),
        })
    }

    /// Reads what [`Self::to_json`] wrote; `None` when there is no such rule, or not everything that
    /// is counted is there.
    pub fn from_json(json: &serde_json::Value) -> Option<Self> {
        let written = WrittenFindings::deserialize(json).ok()?;
        let mut findings = Self::default();
        for finding in written.list {
            let rule = rule(&finding.rule)?;
            *findings.counts.entry(rule.name).or_default() += 1;
            findings.list.push(Finding {
                rule,
                layer: finding.layer,
                path: finding.path.map(Cow::into_owned),
                what: finding.what.into_owned(),
            });
        }
        if written.counts.len() != findings.counts.len() {
            return None;
        }
        for (name, count) in written.counts {
            let listed = findings.counts.get_mut(&*name)?;
            if *listed != count.min(MOST_OF_ONE_RULE) {
                return None;
            }
            *listed = count;
        }
        findings.sort();
        Some(findings)
    }

    pub(crate) fn sort(&mut self) {
        // Stable, for what a rule says of one path more than once.
        let place = |rule: &Rule| RULES.iter().position(|known| known.name == rule.name);
        self.list.sort_by(|one, other| {
            let severity = other.rule.severity.cmp(&one.rule.severity);
            severity
                .then_with(|| place(one.rule).cmp(&place(other.rule)))
                .then_with(|| one.layer.cmp(&other.layer))
                .then_with(|| one.path.cmp(&other.path))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_whole_or_not_at_all() {
        let [first, second] = ["hardlink", "wrong-architecture"].map(|name| rule(name).unwrap());
        let mut findings = Findings::default();
        for number in 0..MOST_OF_ONE_RULE + 2 {
            let path = format!("a/{number:05}");
            findings.add(first, Some(1), Some(path.as_bytes()), "one".to_owned());
        }
        findings.add(second, Some(0), Some(b"caf\xe9"), "other".to_owned());
        findings.add(second, None, None, "whole".to_owned());
        findings.sort();
        let json = findings.to_json();
        let read = Findings::from_json(&json).unwrap();
        assert_eq!(format!("{read:?}"), format!("{findings:?}"));
        let changed = |pointer: &str, value: serde_json::Value| {
            let mut json = json.clone();
            *json.pointer_mut(pointer).unwrap() = value;
            Findings::from_json(&json)
        };
        assert!(changed("/list/0/rule", "no-such-rule".into()).is_none());
        assert!(changed("/list/0/rule", "hardlink".into()).is_none());
        assert!(changed("/list", serde_json::json!([])).is_none());
        assert!(changed("/counts", serde_json::json!({})).is_none());
        assert!(changed("/counts/hardlink", 1.into()).is_none());
        assert!(Findings::from_json(&serde_json::json!({})).is_none());
    }
}
