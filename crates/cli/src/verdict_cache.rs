//! What rules found in images, kept so that an image that has not changed is not judged again.
//!
//! What may be broken is no part of it, and neither is what is said of it: both are settled each time.
//! A record is believed when it is whole and says itself what it is about. That finds damage and
//! mistakes, not forgery: whoever can write to the cache is its owner, or could as well forge the
//! facts of layers.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tierce_image::Image;
use tierce_lambda::{FACTS_VERSION, Findings, Purpose, RULES_VERSION, UnknownBase};
use tierce_oci::Digest;

use crate::records;

/// Where the records are, below the cache directory. The name counts up with their format.
pub(crate) fn verdicts_in(cache: &Path) -> PathBuf {
    cache.join("verdicts-1")
}

/// All that decides what is found.
#[derive(Debug)]
pub(crate) struct VerdictKey(Value);

impl VerdictKey {
    /// Of an image whose layers are known but those of `unknown`. What is in the others is told by the
    /// image's digest.
    pub(crate) fn of(image: &Image, unknown: UnknownBase, purpose: Purpose) -> Self {
        let UnknownBase {
            layers,
            name,
            libc,
            python,
        } = unknown;
        let below = (layers > 0).then(|| {
            json!({
                "layers": layers,
                "name": name.map(|base| format!("{} {}", base.language, base.version)),
                "libc": libc.map(|libc| libc.to_string()),
                "python": python.map(|python| python.to_string()),
            })
        });
        Self(json!({
            "image": image.digest().to_string(),
            "unknown": below,
            "for": match purpose {
                Purpose::Lambda => "lambda",
                Purpose::Generic => "generic",
            },
            "program": env!("CARGO_PKG_VERSION"),
            "rules": RULES_VERSION,
            "facts": FACTS_VERSION,
        }))
    }
}

/// What was found in images that were judged before.
#[derive(Debug)]
pub(crate) struct VerdictCache {
    directory: PathBuf,
}

impl VerdictCache {
    /// Keeps findings under `cache`.
    pub(crate) fn new(cache: &Path) -> Self {
        Self {
            directory: verdicts_in(cache).join("sha256"),
        }
    }

    /// What was found, if it is here and whole.
    pub(crate) fn read(&self, key: &VerdictKey) -> Option<Findings> {
        let bytes = records::read_whole(&self.path(key))?;
        let record: Value = serde_json::from_slice(&bytes).ok()?;
        if record.get("key") != Some(&key.0) {
            return None;
        }
        Findings::from_json(record.get("findings")?)
    }

    /// Keeps what was found, by way of `scratch`.
    pub(crate) fn keep(&self, key: &VerdictKey, findings: &Findings, scratch: &Path) {
        let record = json!({"key": key.0, "findings": findings.to_json()});
        records::write_whole(&self.path(key), record.to_string().as_bytes(), scratch);
    }

    fn path(&self, key: &VerdictKey) -> PathBuf {
        let name = Digest::of(key.0.to_string().as_bytes());
        self.directory.join(format!("{}.json", name.hex()))
    }
}
