//! What the APIs were asked, and what tests make of certain calls.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use super::service::{Failure, Service};

pub(super) const THROTTLED: &str = "ThrottlingException";

/// One call of an API.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ControlCall {
    /// The service that was called: `ecr`, `ecr-public`, `sts` or `lambda`.
    pub service: &'static str,
    /// The action: `CreateRepository`.
    pub action: String,
    /// The id of the access key that signed, if the call was signed.
    pub access_key: Option<String>,
    /// The region that the call was signed for.
    pub region: Option<String>,
    /// What was asked: the JSON of the body, or the pairs of a form or of a query as strings.
    pub body: Value,
    /// The code of the exception that was answered; `None` when the call succeeded.
    pub error: Option<String>,
}

impl ControlCall {
    /// Whether it is of this action, which may be named with its service.
    pub(super) fn is(&self, action: &str) -> bool {
        names(action, self.service, &self.action)
    }
}

/// Whether `name` means the action, with its service or without.
fn names(name: &str, service: &str, action: &str) -> bool {
    match name.split_once(':') {
        Some((named, name)) => named == service && name == action,
        None => name == action,
    }
}

/// The calls so far.
#[derive(Default)]
pub(super) struct Calls(Mutex<Vec<ControlCall>>);

impl Calls {
    fn lock(&self) -> MutexGuard<'_, Vec<ControlCall>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, call: ControlCall) {
        self.lock().push(call);
    }

    pub(super) fn all(&self) -> Vec<ControlCall> {
        self.lock().clone()
    }

    pub(super) fn clear(&self) {
        self.lock().clear();
    }
}

/// Which calls fail by the test's will.
#[derive(Default, Clone)]
pub(super) struct Script(Arc<Mutex<Planned>>);

#[derive(Default)]
struct Planned {
    denied: BTreeSet<String>,
    failures: Vec<(String, usize, Failure)>,
}

impl Script {
    fn lock(&self) -> MutexGuard<'_, Planned> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn deny(&self, action: &str) {
        self.lock().denied.insert(action.to_owned());
    }

    pub(super) fn allow(&self, action: &str) {
        self.lock().denied.remove(action);
    }

    pub(super) fn fail(&self, action: &str, times: usize, code: &str, message: &str) {
        let failure = Failure::new(code, message);
        self.lock()
            .failures
            .push((action.to_owned(), times, failure));
    }

    /// Whether an action is denied.
    pub(super) fn denies(&self, service: Service, action: &str) -> bool {
        let planned = self.lock();
        let mut denied = planned.denied.iter();
        denied.any(|name| names(name, service.name(), action))
    }

    /// The failure that this call comes to, if one is planned.
    pub(super) fn take_failure(&self, service: Service, action: &str) -> Option<Failure> {
        let mut planned = self.lock();
        let (_, times, failure) = planned
            .failures
            .iter_mut()
            .find(|(name, times, _)| *times > 0 && names(name, service.name(), action))?;
        *times -= 1;
        Some(failure.clone())
    }
}
