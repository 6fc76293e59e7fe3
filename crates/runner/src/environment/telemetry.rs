//! What extensions subscribe to: platform events and log lines, in batches over HTTP.

use std::collections::BTreeSet;

use serde_json::Value;

use super::call::Refusal;

/// Which stream an event is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Platform,
    Function,
    Extension,
}

/// What an extension asks for, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subscription {
    pub(super) kinds: BTreeSet<Kind>,
}

impl Subscription {
    /// Reads the body of a request (Lambda guide, "Telemetry API reference").
    pub(super) fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let invalid = |what: &str| Refusal::Validation(what.to_owned());
        let body: Value = serde_json::from_slice(body).map_err(|_| invalid("not JSON"))?;
        let types = body
            .get("types")
            .and_then(Value::as_array)
            .ok_or_else(|| invalid("types is missing"))?;
        let kinds = types
            .iter()
            .map(|kind| match kind.as_str() {
                Some("platform") => Ok(Kind::Platform),
                Some("function") => Ok(Kind::Function),
                Some("extension") => Ok(Kind::Extension),
                _ => Err(invalid("types must be platform, function or extension")),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { kinds })
    }
}

/// The subscriptions of an environment.
#[derive(Debug, Default)]
pub(super) struct Telemetry {
    subscriptions: Vec<Subscription>,
}

impl Telemetry {
    pub(super) fn subscribe(&mut self, subscription: Subscription) {
        self.subscriptions.push(subscription);
    }

    /// Whether anybody asked for events of this kind.
    pub(super) fn wants(&self, kind: Kind) -> bool {
        self.subscriptions
            .iter()
            .any(|subscription| subscription.kinds.contains(&kind))
    }

    pub(super) fn event(&mut self, kind: Kind, name: &'static str, record: Value) {
        if self.wants(kind) {
            tracing::trace!(name, %record, "telemetry");
        }
    }

    /// Nothing of what was subscribed is left.
    pub(super) fn clear(&mut self) {
        self.subscriptions.clear();
    }
}
