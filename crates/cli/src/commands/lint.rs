//! `tierce lint`: what Lambda, or whatever else runs an image, would trip over.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tierce_image::Image;
use tierce_lambda::{
    Finding, Findings, Purpose, RULES, Rule, Severity, judge, judge_index, purpose_of,
};
use tierce_oci::{Digest, Document, Platform};
use tierce_store::atomic::write_file;

use crate::arguments::{LintArguments, LintPurpose};
use crate::commands::inspect::{in_store, one_line};
use crate::diagnostic::{Hinted as _, LintRefusal, UsageError};
use crate::environment::Environment;
use crate::layer_facts::read_layer_facts;
use crate::output::Output;
use crate::places::{Places, PlacesSettings, processors};
use crate::sarif;
use crate::transport::ImagePlace;

/// Runs `tierce lint`.
pub(crate) async fn lint(
    arguments: LintArguments,
    environment: &Environment,
    output: Output,
) -> Result<()> {
    let allowed = allowed(&arguments.allow)?;
    let settings = PlacesSettings {
        registry: &arguments.registry,
        create_repository: false,
        offline: false,
        remembers: true,
        compress_jobs: processors(),
    };
    let places = Places::open(&settings, environment, output)?;
    let place = &arguments.image;
    let judged = match judge_place(&arguments, &places, output).await {
        Ok(judged) => judged,
        Err(error) => {
            let error = error.context(format!("could not judge `{place}`"));
            return Err(match in_store(place, &places).await {
                Some(stored) => error.hint(format!("the local store has one: `store:{stored}`")),
                None => error,
            });
        }
    };
    if let Some(file) = &arguments.sarif {
        let log = sarif_log(place, &judged, &allowed);
        let text = serde_json::to_vec_pretty(&log)?;
        write_file(file, &text).with_context(|| format!("could not write {}", file.display()))?;
    }
    if output.json {
        output.result_json(&document(place, &judged, &allowed))?;
    } else {
        show(&judged, &allowed, output)?;
    }
    let errors = count(&judged, |rule| {
        rule.severity == Severity::Error && !is_allowed(rule, &allowed)
    });
    if errors > 0 {
        return Err(LintRefusal {
            image: place.to_string(),
            errors,
        }
        .into());
    }
    Ok(())
}

/// The rules that the user allows to be broken.
fn allowed(names: &[String]) -> Result<Vec<&'static Rule>> {
    let known = |name: &String| {
        tierce_lambda::rule(name).ok_or_else(|| {
            let nearest = RULES
                .iter()
                .map(|rule| (strsim::damerau_levenshtein(rule.name, name), rule.name))
                .min()
                .filter(|(distance, _)| *distance <= 3);
            let error = anyhow::Error::new(UsageError(format!("there is no rule `{name}`")));
            match nearest {
                Some((_, nearest)) => error.hint(format!("did you mean `{nearest}`?")),
                None => error.hint("docs/lint.md lists all rules; a SARIF file has them too"),
            }
        })
    };
    names.iter().map(known).collect()
}

/// One image, or index, with what was found.
struct Judged {
    digest: Digest,
    /// `None` for an index.
    platform: Option<Platform>,
    purpose: Purpose,
    findings: Findings,
}

async fn judge_place(
    arguments: &LintArguments,
    places: &Places,
    output: Output,
) -> Result<Vec<Judged>> {
    let place = &arguments.image;
    let mut judged = Vec::new();
    let mut platforms = vec![arguments.platform.clone()];
    let mut index = None;
    if arguments.platform.is_none()
        && let Some(Document::Index(found)) = places.read_document(place).await?
    {
        platforms = found.platforms().into_iter().map(Some).collect();
        index = Some(found);
    }
    for platform in &platforms {
        let image = places.read_image(place, None, platform.as_ref()).await?;
        judged.push(judge_image(&image, arguments, places, output).await?);
    }
    if let Some(index) = index {
        let told = judged.iter().any(|image| image.purpose == Purpose::Lambda);
        let purpose = match (arguments.purpose(), told) {
            (Some(purpose), _) => purpose,
            (None, true) => Purpose::Lambda,
            (None, false) => Purpose::Generic,
        };
        let whole = Judged {
            digest: index.digest(),
            platform: None,
            purpose,
            findings: judge_index(&index, purpose),
        };
        judged.insert(0, whole);
    }
    Ok(judged)
}

async fn judge_image(
    image: &Image,
    arguments: &LintArguments,
    places: &Places,
    output: Output,
) -> Result<Judged> {
    let purpose = arguments.purpose().unwrap_or_else(|| purpose_of(image));
    let layers = read_layer_facts(image, places, output).await?;
    Ok(Judged {
        digest: image.digest(),
        platform: Some(image.platform().clone()),
        purpose,
        findings: judge(image, &layers, purpose),
    })
}

impl LintArguments {
    fn purpose(&self) -> Option<Purpose> {
        self.purpose.map(|purpose| match purpose {
            LintPurpose::Lambda => Purpose::Lambda,
            LintPurpose::Generic => Purpose::Generic,
        })
    }
}

fn is_allowed(rule: &Rule, allowed: &[&Rule]) -> bool {
    allowed.iter().any(|known| known.name == rule.name)
}

/// How often rules were broken, those alone that count: what is found very often is not listed.
fn count(judged: &[Judged], counts: impl Fn(&Rule) -> bool) -> usize {
    let by_rule = judged.iter().flat_map(|image| image.findings.counts());
    by_rule
        .filter(|(name, _)| tierce_lambda::rule(name).is_some_and(&counts))
        .map(|(_, count)| count)
        .sum()
}

/// As many places as are shown of one rule. More of them are in the JSON document.
const SHOWN: usize = 10;

fn show(judged: &[Judged], allowed: &[&Rule], output: Output) -> Result<()> {
    for image in judged {
        let findings: Vec<&Finding> = image
            .findings
            .list()
            .iter()
            .filter(|finding| !is_allowed(finding.rule, allowed))
            .collect();
        if judged.len() > 1 && !findings.is_empty() {
            let what = match &image.platform {
                Some(platform) => one_line(&platform.to_string()),
                None => "index".to_owned(),
            };
            output.result_line(&format!("{what} {}", image.digest))?;
        }
        for rule in RULES_BY_SEVERITY
            .iter()
            .flat_map(|severity| RULES.iter().filter(move |rule| rule.severity == *severity))
        {
            let of_rule: Vec<&&Finding> = findings
                .iter()
                .filter(|finding| finding.rule.name == rule.name)
                .collect();
            show_rule(rule, &of_rule, image, output)?;
        }
    }
    let of = |severity: Severity| {
        count(judged, |rule| {
            rule.severity == severity && !is_allowed(rule, allowed)
        })
    };
    let mut parts = Vec::new();
    for (severity, one, many) in [
        (Severity::Error, "error", "errors"),
        (Severity::Warning, "warning", "warnings"),
        (Severity::Note, "note", "notes"),
    ] {
        match of(severity) {
            0 => {}
            1 => parts.push(format!("1 {one}")),
            count => parts.push(format!("{count} {many}")),
        }
    }
    match count(judged, |rule| is_allowed(rule, allowed)) {
        0 => {}
        count => parts.push(format!("{count} allowed")),
    }
    let is_for_lambda = judged.iter().any(|image| image.purpose == Purpose::Lambda);
    let purpose = if is_for_lambda {
        "for Lambda"
    } else {
        "for any runtime"
    };
    let summary = if parts.is_empty() {
        "nothing found".to_owned()
    } else {
        parts.join(", ")
    };
    output.note(&format!("judged {purpose}: {summary}"));
    Ok(())
}

const RULES_BY_SEVERITY: [Severity; 3] = [Severity::Error, Severity::Warning, Severity::Note];

/// Shows what one rule found: its places, and once why it matters and what to do.
fn show_rule(rule: &Rule, found: &[&&Finding], image: &Judged, output: Output) -> Result<()> {
    if found.is_empty() {
        return Ok(());
    }
    for finding in found.iter().take(SHOWN) {
        let layer = finding
            .layer
            .map_or_else(String::new, |layer| format!(" layer {}", layer + 1));
        let path = finding
            .path
            .as_ref()
            .map_or_else(String::new, |path| format!("{path}: "));
        let (severity, name, what) = (rule.severity, rule.name, &finding.what);
        output.result_line(&one_line(&format!(
            "{severity}[{name}]{layer}: {path}{what}"
        )))?;
    }
    let total = image.findings.counts().get(rule.name).copied().unwrap_or(0);
    if total > found.len().min(SHOWN) {
        let rest = total - found.len().min(SHOWN);
        output.result_line(&format!("  … and {rest} more"))?;
    }
    output.result_line(&format!("  why: {}", rule.why))?;
    output.result_line(&format!("  fix: {}", rule.fix))
}

fn document(place: &ImagePlace, judged: &[Judged], allowed: &[&Rule]) -> Value {
    let images: Vec<Value> = judged
        .iter()
        .map(|image| {
            let findings: Vec<Value> = image
                .findings
                .list()
                .iter()
                .map(|finding| {
                    let rule = finding.rule;
                    json!({
                        "rule": rule.name,
                        "severity": rule.severity.to_string(),
                        "evidence": rule.evidence.letter().to_string(),
                        // Counted as people do, the lowest is the first.
                        "layer": finding.layer.map(|layer| layer + 1),
                        "path": finding.path,
                        "what": finding.what,
                        "why": rule.why,
                        "fix": rule.fix,
                        "allowed": is_allowed(finding.rule, allowed),
                    })
                })
                .collect();
            json!({
                "digest": image.digest,
                "platform": image.platform.as_ref().map(ToString::to_string),
                "kind": if image.platform.is_some() { "image" } else { "index" },
                "for": match image.purpose {
                    Purpose::Lambda => "lambda",
                    Purpose::Generic => "generic",
                },
                "findings": findings,
                "counts": image.findings.counts(),
            })
        })
        .collect();
    let of = |severity: Severity| {
        count(judged, |rule| {
            rule.severity == severity && !is_allowed(rule, allowed)
        })
    };
    json!({
        "name": place.to_string(),
        "images": images,
        "errors": of(Severity::Error),
        "warnings": of(Severity::Warning),
        "notes": of(Severity::Note),
        "allowed": count(judged, |rule| is_allowed(rule, allowed)),
    })
}

fn sarif_log(place: &ImagePlace, judged: &[Judged], allowed: &[&Rule]) -> Value {
    let name = place.to_string();
    let results: Vec<sarif::Result<'_>> = judged
        .iter()
        .flat_map(|image| image.findings.list())
        .map(|finding| sarif::Result {
            finding,
            is_allowed: is_allowed(finding.rule, allowed),
            image: &name,
        })
        .collect();
    sarif::log(&results)
}
