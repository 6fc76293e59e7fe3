//! What a command has written where, as a line of the result and as part of a JSON document.

use anyhow::Result;
use serde_json::{Value, json};
use tierce_image::{Artifact, Tally, WriteReport};
use tierce_oci::{Digest, Document};

use crate::output::Output;
use crate::transport::ImagePlace;
use crate::verdict::Verdict;

/// One image or index at one place.
#[derive(Debug)]
pub(crate) struct Written {
    digest: Digest,
    line: String,
    json: Value,
}

impl Written {
    /// Describes `artifact` at `place`; `report` is `None` when nothing was really written.
    pub(crate) fn new(
        place: &ImagePlace,
        artifact: &Artifact,
        report: Option<&WriteReport>,
    ) -> Self {
        let digest = artifact.document.digest();
        let line = match place {
            ImagePlace::Registry(reference) => reference.pinned(digest).to_string(),
            _ => format!("{}@{digest}", place.stem()),
        };
        let mut json = json!({
            "name": place.to_string(),
            "reference": line,
            "digest": digest,
            "mediaType": artifact.document.descriptor().media_type,
            "kind": match &artifact.document {
                Document::Manifest(manifest) if manifest.is_image() => "image",
                Document::Manifest(_) => "artifact",
                Document::Index(_) => "index",
            },
        });
        if let Some(report) = report {
            let tally = |tally: &Tally| json!({"blobs": tally.blobs, "bytes": tally.bytes});
            json["upToDate"] = json!(report.up_to_date);
            json["alreadyThere"] = tally(&report.already_there);
            json["mounted"] = tally(&report.mounted);
            json["linked"] = tally(&report.linked);
            json["noted"] = tally(&report.noted);
            json["sent"] = tally(&report.sent);
        }
        Self { digest, line, json }
    }

    /// Says in the document how it was judged, when it was.
    pub(crate) fn judged(mut self, verdict: &Verdict) -> Self {
        if let Some(counts) = verdict.counts_for(&self.digest) {
            self.json["lint"] = counts;
        }
        self
    }

    /// Prints the line now, unless one document is to come: what is there stays there, whatever
    /// happens to the next place.
    pub(crate) fn announce(self, output: Output) -> Result<Self> {
        if !output.json {
            output.result_line(&self.line)?;
        }
        Ok(self)
    }

    /// Prints the one document, if that was asked for.
    pub(crate) fn conclude(all: Vec<Self>, output: Output) -> Result<()> {
        if !output.json {
            return Ok(());
        }
        let all: Vec<Value> = all.into_iter().map(|written| written.json).collect();
        output.result_json(&json!({ "images": all }))
    }
}
