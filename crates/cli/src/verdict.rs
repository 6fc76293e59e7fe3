//! What was found in images, and how it is shown: the same by `lint`, `build` and `push`.

use anyhow::Result;
use serde_json::{Value, json};
use tierce_lambda::{Finding, Findings, Purpose, RULES, Rule, Severity};
use tierce_oci::{Digest, Platform};

use crate::diagnostic::{Hinted as _, UsageError};
use crate::output::one_line;

/// One image, or index, with what was found.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) digest: Digest,
    /// `None` for an index.
    pub(crate) platform: Option<Platform>,
    pub(crate) purpose: Purpose,
    pub(crate) findings: Findings,
}

/// All images that were judged, and the rules that they may break.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) images: Vec<Judged>,
    pub(crate) allowed: Vec<&'static Rule>,
}

/// The rules of these names, as they stand on the command line.
pub(crate) fn allowed_rules(names: &[String]) -> Result<Vec<&'static Rule>> {
    let known = |name: &String| {
        tierce_lambda::rule(name).ok_or_else(|| {
            let error = anyhow::Error::new(UsageError(format!("there is no rule `{name}`")));
            match nearest_rule(name) {
                Some(nearest) => error.hint(format!("did you mean `{nearest}`?")),
                None => error.hint("docs/lint.md lists all rules; a SARIF file has them too"),
            }
        })
    };
    names.iter().map(known).collect()
}

/// The rule whose name is most like this one.
pub(crate) fn nearest_rule(name: &str) -> Option<&'static str> {
    RULES
        .iter()
        .map(|rule| (strsim::damerau_levenshtein(rule.name, name), rule.name))
        .min()
        .filter(|(distance, _)| *distance <= 3)
        .map(|(_, nearest)| nearest)
}

/// As many places as are shown of one rule. More of them are in the JSON document.
const SHOWN: usize = 10;

const RULES_BY_SEVERITY: [Severity; 3] = [Severity::Error, Severity::Warning, Severity::Note];

/// How often rules were broken, those alone that count: what is found very often is not listed.
fn count(images: &[Judged], counts: impl Fn(&Rule) -> bool) -> usize {
    let by_rule = images.iter().flat_map(|image| image.findings.counts());
    by_rule
        .filter(|(name, _)| tierce_lambda::rule(name).is_some_and(&counts))
        .map(|(_, count)| count)
        .sum()
}

impl Verdict {
    pub(crate) fn is_allowed(&self, rule: &Rule) -> bool {
        self.allowed.iter().any(|known| known.name == rule.name)
    }

    fn count_of(&self, images: &[Judged], severity: Severity) -> usize {
        count(images, |rule| {
            rule.severity == severity && !self.is_allowed(rule)
        })
    }

    /// How many errors are left.
    pub(crate) fn errors(&self) -> usize {
        self.count_of(&self.images, Severity::Error)
    }

    /// Whether anything is left of this severity.
    pub(crate) fn has(&self, severity: Severity) -> bool {
        self.count_of(&self.images, severity) > 0
    }

    /// Whether nothing was found, and nothing had to be allowed.
    pub(crate) fn is_empty(&self) -> bool {
        count(&self.images, |_| true) == 0
    }

    /// How often what was found, for a JSON document.
    pub(crate) fn counts(&self) -> Value {
        self.counts_of(&self.images)
    }

    /// The same for the image of this digest, when it was judged.
    pub(crate) fn counts_for(&self, digest: &Digest) -> Option<Value> {
        let at = self
            .images
            .iter()
            .position(|image| image.digest == *digest)?;
        Some(self.counts_of(&self.images[at..=at]))
    }

    fn counts_of(&self, images: &[Judged]) -> Value {
        json!({
            "errors": self.count_of(images, Severity::Error),
            "warnings": self.count_of(images, Severity::Warning),
            "notes": self.count_of(images, Severity::Note),
            "allowed": count(images, |rule| self.is_allowed(rule)),
        })
    }

    /// `judged for Lambda: 1 error, 2 notes`.
    pub(crate) fn summary(&self) -> String {
        let mut parts = Vec::new();
        for (severity, one, many) in [
            (Severity::Error, "error", "errors"),
            (Severity::Warning, "warning", "warnings"),
            (Severity::Note, "note", "notes"),
        ] {
            match self.count_of(&self.images, severity) {
                0 => {}
                1 => parts.push(format!("1 {one}")),
                count => parts.push(format!("{count} {many}")),
            }
        }
        match count(&self.images, |rule| self.is_allowed(rule)) {
            0 => {}
            count => parts.push(format!("{count} allowed")),
        }
        let mut images = self.images.iter();
        let purpose = if images.any(|image| image.purpose == Purpose::Lambda) {
            "for Lambda"
        } else {
            "for any runtime"
        };
        let summary = if parts.is_empty() {
            "nothing found".to_owned()
        } else {
            parts.join(", ")
        };
        format!("judged {purpose}: {summary}")
    }

    /// Shows what is not allowed of these severities, image by image and rule by rule, with why it
    /// matters and what to do.
    pub(crate) fn show(
        &self,
        severities: &[Severity],
        say: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<()> {
        for image in &self.images {
            let findings: Vec<&Finding> = self.of_image(image, severities).collect();
            if !findings.is_empty() {
                self.name(image, say)?;
            }
            for rule in RULES_BY_SEVERITY
                .iter()
                .flat_map(|severity| RULES.iter().filter(move |rule| rule.severity == *severity))
            {
                let of_rule: Vec<&Finding> = findings
                    .iter()
                    .copied()
                    .filter(|finding| finding.rule.name == rule.name)
                    .collect();
                show_rule(rule, &of_rule, image, say)?;
            }
        }
        Ok(())
    }

    /// Shows what is not allowed of this severity, each in a line.
    pub(crate) fn show_briefly(
        &self,
        severity: Severity,
        say: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<()> {
        for image in &self.images {
            let severities = [severity];
            let findings: Vec<&Finding> = self.of_image(image, &severities).collect();
            if !findings.is_empty() {
                self.name(image, say)?;
            }
            for finding in findings.iter().take(SHOWN) {
                say(&line(finding))?;
            }
            if findings.len() > SHOWN {
                say(&format!("  … and {} more", findings.len() - SHOWN))?;
            }
        }
        Ok(())
    }

    /// Says which image is meant, where there are several.
    fn name(&self, image: &Judged, say: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
        if self.images.len() < 2 {
            return Ok(());
        }
        let what = match &image.platform {
            Some(platform) => one_line(&platform.to_string()),
            None => "index".to_owned(),
        };
        say(&format!("{what} {}", image.digest))
    }

    fn of_image<'a>(
        &'a self,
        image: &'a Judged,
        severities: &'a [Severity],
    ) -> impl Iterator<Item = &'a Finding> {
        let findings = image.findings.list().iter();
        findings.filter(|finding| {
            severities.contains(&finding.rule.severity) && !self.is_allowed(finding.rule)
        })
    }
}

/// `error[rule] layer 2: /path: what`.
fn line(finding: &Finding) -> String {
    let layer = finding
        .layer
        .map_or_else(String::new, |layer| format!(" layer {}", layer + 1));
    let path = finding
        .path
        .as_ref()
        .map_or_else(String::new, |path| format!("{path}: "));
    let (severity, name, what) = (finding.rule.severity, finding.rule.name, &finding.what);
    one_line(&format!("{severity}[{name}]{layer}: {path}{what}"))
}

/// Shows what one rule found: its places, and once why it matters and what to do.
fn show_rule(
    rule: &Rule,
    found: &[&Finding],
    image: &Judged,
    say: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<()> {
    if found.is_empty() {
        return Ok(());
    }
    for finding in found.iter().take(SHOWN) {
        say(&line(finding))?;
    }
    let total = image.findings.counts().get(rule.name).copied().unwrap_or(0);
    if total > found.len().min(SHOWN) {
        let rest = total - found.len().min(SHOWN);
        say(&format!("  … and {rest} more"))?;
    }
    say(&format!("  why: {}", rule.why))?;
    say(&format!("  fix: {}", rule.fix))
}
