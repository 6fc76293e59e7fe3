//! Rates without a clock: so many requests pass, so many are refused, and so on.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Lets requests through and refuses them by count alone, so that no test depends on time.
///
/// Clones share the count: a test keeps one and gives another to the registry.
///
/// ```
/// use tierce_testkit::RateLimit;
/// let limit = RateLimit::after(2).refusing(1);
/// let registry = tierce_testkit::FakeRegistry::builder().manifest_limit(&limit).start();
/// // Of the manifests that are put now, each third is answered with 429.
/// assert_eq!(limit.refused(), 0);
/// ```
#[derive(Clone)]
pub struct RateLimit {
    allowed: usize,
    refusals: Option<usize>,
    count: Arc<Mutex<Count>>,
}

#[derive(Debug, Default)]
struct Count {
    /// Requests since the limit was made, reset, or came round.
    seen: usize,
    refused: usize,
}

impl RateLimit {
    /// Refuses every request after the first `allowed`, until [`Self::reset`].
    #[must_use]
    pub fn after(allowed: usize) -> Self {
        Self {
            allowed,
            refusals: None,
            count: Arc::default(),
        }
    }

    /// Refuses so many requests, then begins again by itself.
    #[must_use]
    pub fn refusing(mut self, refusals: usize) -> Self {
        self.refusals = Some(refusals);
        self
    }

    /// Begins again, as if time had passed.
    pub fn reset(&self) {
        self.lock().seen = 0;
    }

    /// How many requests were refused so far.
    pub fn refused(&self) -> usize {
        self.lock().refused
    }

    /// Counts a request, and says whether it may pass.
    pub(crate) fn pass(&self) -> bool {
        let mut count = self.lock();
        let period = self.refusals.map(|refusals| self.allowed + refusals);
        if period.is_some_and(|period| count.seen >= period) {
            count.seen = 0;
        }
        count.seen += 1;
        let passes = count.seen <= self.allowed;
        count.refused += usize::from(!passes);
        passes
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Count> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for RateLimit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "RateLimit(after: {}, refused: {})",
            self.allowed,
            self.refused()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_refuses_until_it_is_reset_or_comes_round() {
        let passes = |limit: &RateLimit| [(); 5].map(|()| limit.pass());
        let limit = RateLimit::after(2);
        assert_eq!(passes(&limit), [true, true, false, false, false]);
        limit.reset();
        assert!(limit.pass());
        assert_eq!(limit.refused(), 3);
        let limit = RateLimit::after(1).refusing(2);
        assert_eq!(passes(&limit), [true, false, false, true, false]);
    }
}
