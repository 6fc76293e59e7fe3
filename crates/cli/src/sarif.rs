//! Findings in the format that code hosts show beside a change (SARIF 2.1.0, OASIS).

use serde_json::{Value, json};
use tierce_lambda::{Finding, RULES, Severity};

/// A finding, and whether the user allowed it.
pub(crate) struct Result<'a> {
    pub(crate) finding: &'a Finding,
    pub(crate) is_allowed: bool,
    /// The image, as the user named it, with its digest.
    pub(crate) image: &'a str,
}

/// One log with one run.
pub(crate) fn log(results: &[Result<'_>]) -> Value {
    let rules: Vec<Value> = RULES
        .iter()
        .map(|rule| {
            json!({
                "id": rule.name,
                "shortDescription": {"text": sentence(rule.why)},
                "help": {"text": sentence(rule.fix)},
                "defaultConfiguration": {"level": level(rule.severity)},
            })
        })
        .collect();
    let results: Vec<Value> = results.iter().map(result).collect();
    json!({
        "$schema": "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "tierce",
                "version": env!("CARGO_PKG_VERSION"),
                "rules": rules,
            }},
            "results": results,
        }],
    })
}

fn result(result: &Result<'_>) -> Value {
    let finding = result.finding;
    let rule = finding.rule;
    let index = RULES.iter().position(|known| known.name == rule.name);
    // Who shows results wants a file for each: what is not about a file is about the image.
    let uri = match &finding.path {
        Some(path) => encoded(path.trim_start_matches('/')),
        None => encoded(result.image),
    };
    let layer = finding.layer.map(|layer| format!(", layer {}", layer + 1));
    let path = finding.path.as_ref().map(|path| format!(": {path}"));
    let parts = [Some(result.image.to_owned()), layer, path];
    let name: String = parts.into_iter().flatten().collect();
    let mut json = json!({
        "ruleId": rule.name,
        "ruleIndex": index,
        "level": level(rule.severity),
        "message": {"text": sentence(&finding.what)},
        "locations": [{
            "physicalLocation": {"artifactLocation": {"uri": uri}},
            "logicalLocations": [{"fullyQualifiedName": name}],
        }],
    });
    if result.is_allowed {
        json["suppressions"] = json!([{"kind": "external", "justification": "--allow"}]);
    }
    json
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "note",
    }
}

/// A relative reference (RFC 3986).
fn encoded(path: &str) -> String {
    path.bytes()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() || b"-._~/@+".contains(&byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

/// Text of a rule as a sentence.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let Some(first) = letters.next() else {
        return String::new();
    };
    format!("{}{}.", first.to_uppercase(), letters.as_str())
}
