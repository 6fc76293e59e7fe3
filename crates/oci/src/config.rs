//! The image config, as a view of what tierce reads of it.

use std::collections::BTreeMap;

use crate::digest::DiffId;
use crate::platform::Platform;

/// What tierce reads of an image config (image-spec, `config.md`).
///
/// A view only: a config is changed by editing its JSON, never by writing this back, so that fields
/// which tierce does not know (`Healthcheck`, `OnBuild`, vendor keys) survive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// What the image runs on.
    pub platform: Platform,
    /// When the image was made, as written.
    pub created: Option<String>,
    /// The diff ids of the layers, base layer first.
    pub diff_ids: Vec<DiffId>,
    /// How the layers came about; empty when the config says nothing.
    pub history: Vec<HistoryEntry>,
    /// `NAME=value` pairs, in order.
    pub env: Vec<String>,
    /// What is run.
    pub entrypoint: Vec<String>,
    /// Arguments to the entrypoint: the handler, on AWS's bases.
    pub cmd: Vec<String>,
    /// Where it is run.
    pub working_dir: Option<String>,
    /// As whom it is run; Lambda ignores it.
    pub user: Option<String>,
    /// Free-form facts.
    pub labels: BTreeMap<String, String>,
    /// `PORT` or `PORT/protocol`, sorted.
    pub exposed_ports: Vec<String>,
    /// Mount points, sorted.
    pub volumes: Vec<String>,
    /// The signal that asks the process to end.
    pub stop_signal: Option<String>,
}

/// One step of an image's history.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HistoryEntry {
    /// When, as written.
    pub created: Option<String>,
    /// What made the step.
    pub created_by: Option<String>,
    /// A remark.
    pub comment: Option<String>,
    /// Whether the step made no layer.
    pub empty_layer: bool,
}

impl ImageConfig {
    /// The history entries that made a layer, in the order of the layers.
    ///
    /// `None` when their number is not that of the layers, as in some published bases: such a
    /// history says nothing about a particular layer.
    pub fn layer_history(&self) -> Option<Vec<&HistoryEntry>> {
        let entries: Vec<_> = self
            .history
            .iter()
            .filter(|entry| !entry.empty_layer)
            .collect();
        (entries.len() == self.diff_ids.len()).then_some(entries)
    }
}
