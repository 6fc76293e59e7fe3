//! `tierce lint`: what Lambda, or whatever else runs an image, would trip over.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tierce_image::Image;
use tierce_lambda::{LayerFacts, Purpose, Severity, judge, judge_index, purpose_of};
use tierce_oci::Document;
use tierce_store::atomic::write_file;

use crate::arguments::{LintArguments, LintPurpose};
use crate::commands::inspect::in_store;
use crate::diagnostic::{Hinted as _, LintRefusal, UsageError, find};
use crate::environment::Environment;
use crate::layer_facts::read_layer_facts;
use crate::output::Output;
use crate::places::{Places, PlacesSettings, processors};
use crate::sarif;
use crate::source::SourceError;
use crate::transport::ImagePlace;
use crate::verdict::{Judged, Verdict, allowed_rules};

/// Runs `tierce lint`.
pub(crate) async fn lint(
    arguments: LintArguments,
    environment: &Environment,
    output: Output,
) -> Result<()> {
    let allowed = allowed_rules(&arguments.allow)?;
    let settings = PlacesSettings {
        registry: &arguments.registry,
        create_repository: false,
        offline: arguments.offline,
        remembers: true,
        compress_jobs: processors(),
    };
    let places = Places::open(&settings, environment, output)?;
    let place = &arguments.image;
    let verdict = match judge_place(&arguments, &places, output).await {
        Ok(images) => Verdict { images, allowed },
        Err(error) if matches!(find(&error), Some(SourceError::Offline(_))) => {
            return Err(UsageError(format!(
                "--offline forbids to ask for `{place}`"
            )))
            .hint("judge it without --offline, or bring it here before: `tierce pull`");
        }
        Err(error) => {
            let mut error = error.context(format!("could not judge `{place}`"));
            if arguments.offline {
                error = error.hint(
                    "without --offline its layers are read once; what is learnt of them is kept",
                );
            }
            return Err(match in_store(place, &places).await {
                Some(stored) => error.hint(format!("the local store has one: `store:{stored}`")),
                None => error,
            });
        }
    };
    if let Some(file) = &arguments.sarif {
        let log = sarif_log(place, &verdict);
        let text = serde_json::to_vec_pretty(&log)?;
        write_file(file, &text).with_context(|| format!("could not write {}", file.display()))?;
    }
    if output.json {
        output.result_json(&document(place, &verdict))?;
    } else {
        let all = [Severity::Error, Severity::Warning, Severity::Note];
        verdict.show(&all, &mut |line| output.result_line(line))?;
        output.note(&verdict.summary());
    }
    let errors = verdict.errors();
    if errors > 0 {
        return Err(LintRefusal {
            image: place.to_string(),
            errors,
        }
        .into());
    }
    Ok(())
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
    let layers = read_layer_facts(image.layers(), places, output).await?;
    let layers: Vec<&LayerFacts> = layers.iter().map(Arc::as_ref).collect();
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

fn document(place: &ImagePlace, verdict: &Verdict) -> Value {
    let images: Vec<Value> = verdict
        .images
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
                        "allowed": verdict.is_allowed(finding.rule),
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
    let mut document = verdict.counts();
    document["name"] = json!(place.to_string());
    document["images"] = json!(images);
    document
}

fn sarif_log(place: &ImagePlace, verdict: &Verdict) -> Value {
    let name = place.to_string();
    let results: Vec<sarif::Result<'_>> = verdict
        .images
        .iter()
        .flat_map(|image| image.findings.list())
        .map(|finding| sarif::Result {
            finding,
            is_allowed: verdict.is_allowed(finding.rule),
            image: &name,
        })
        .collect();
    sarif::log(&results)
}
