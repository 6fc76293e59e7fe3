//! When to try again.
//!
//! One [`Attempts`] spans a whole operation (a manifest, an upload with all its requests), so that
//! nested steps do not multiply each other's retries.

use std::fmt;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use crate::error::RegistryError;

/// How often, and after which pauses, an operation is tried again.
///
/// Tried again is what may pass: a broken connection, a time-out, and the statuses 408, 425, 429, 499
/// and those of failing servers (5xx but 501, 505, 506, 508, 510 and 511). Pauses double from `first_pause` with jitter; a server's `Retry-After` is
/// waited for when it is longer, up to `longest_pause`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How many attempts in all, the first one included.
    pub attempts: NonZeroU32,
    /// The pause after the first attempt.
    pub first_pause: Duration,
    /// No pause is longer, whatever the server wishes.
    pub longest_pause: Duration,
    /// No attempt begins later than this after the first.
    pub longest_total: Duration,
}

impl Default for RetryPolicy {
    /// Five attempts within ten minutes, after pauses from half a second up.
    fn default() -> Self {
        Self {
            attempts: NonZeroU32::new(5).expect("five is not zero"),
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_mins(1),
            longest_total: Duration::from_mins(10),
        }
    }
}

impl RetryPolicy {
    /// One attempt.
    pub const NEVER: Self = Self::immediate(NonZeroU32::MIN);

    /// So many attempts without any pause between them: for tests.
    pub const fn immediate(attempts: NonZeroU32) -> Self {
        Self {
            attempts,
            first_pause: Duration::ZERO,
            longest_pause: Duration::ZERO,
            longest_total: Duration::MAX,
        }
    }

    fn pauses(&self) -> ExponentialBackoff {
        ExponentialBuilder::new()
            .with_min_delay(self.first_pause)
            .with_max_delay(self.longest_pause)
            .with_max_times(self.attempts.get() as usize - 1)
            .with_jitter()
            .build()
    }

    /// The pause before the next attempt, or `None` when it would come too late.
    fn pause(
        &self,
        backoff: Duration,
        asked: Option<Duration>,
        spent: Duration,
    ) -> Option<Duration> {
        let pause = backoff
            .max(asked.unwrap_or_default())
            .min(self.longest_pause);
        (spent.saturating_add(pause) <= self.longest_total).then_some(pause)
    }
}

/// How many attempts were made, and in what time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// The number of attempts.
    pub attempts: u32,
    /// From the beginning of the first to the end of the last.
    pub elapsed: Duration,
}

impl Tally {
    /// One attempt, that took no time worth telling.
    pub(crate) const ONE: Self = Self {
        attempts: 1,
        elapsed: Duration::ZERO,
    };
}

impl fmt::Display for Tally {
    /// Nothing for a single attempt.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.attempts < 2 {
            return Ok(());
        }
        let seconds = self.elapsed.as_secs_f64();
        write!(
            formatter,
            ", after {} attempts in {seconds:.1} s",
            self.attempts
        )
    }
}

/// The attempts of one operation.
pub(crate) struct Attempts {
    policy: RetryPolicy,
    pauses: ExponentialBackoff,
    made: u32,
    begun: Instant,
    /// When something moved last.
    moved: Instant,
}

impl Attempts {
    pub(crate) fn new(policy: &RetryPolicy) -> Self {
        let now = Instant::now();
        Self {
            policy: *policy,
            pauses: policy.pauses(),
            made: 1,
            begun: now,
            moved: now,
        }
    }

    /// Whether the running attempt is not the first.
    pub(crate) fn is_retry(&self) -> bool {
        self.made > 1
    }

    /// Begins to count anew, after real progress.
    pub(crate) fn restart(&mut self) {
        *self = Self::new(&self.policy);
    }

    /// Begins to measure the time anew, but not to count: something moves that had moved before.
    pub(crate) fn keep_on(&mut self) {
        self.moved = Instant::now();
    }

    /// Waits until the operation may be tried again, or gives the error back with the tally.
    pub(crate) async fn after(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        if !error.is_transient() {
            return Err(self.give_up(error));
        }
        self.again(error).await
    }

    /// Like [`Attempts::after`], for an error of which the caller knows that it may pass.
    pub(crate) async fn again(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        let pause = self.pauses.next().and_then(|backoff| {
            self.policy
                .pause(backoff, error.retry_after(), self.moved.elapsed())
        });
        let Some(pause) = pause else {
            return Err(self.give_up(error));
        };
        tracing::info!(attempt = self.made, ?pause, "{error}; trying again");
        self.made += 1;
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    fn give_up(&self, error: RegistryError) -> RegistryError {
        error.with_tally(Tally {
            attempts: self.made,
            elapsed: self.begun.elapsed(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_grow_and_end() {
        let policy = RetryPolicy {
            first_pause: SECOND,
            longest_pause: 3 * SECOND,
            ..RetryPolicy::default()
        };
        let pauses: Vec<_> = policy.pauses().collect();
        assert_eq!(pauses.len(), 4);
        assert!(pauses[0] >= SECOND && pauses[0] < 3 * SECOND, "{pauses:?}");
        assert_eq!(RetryPolicy::NEVER.pauses().count(), 0);
        let four = RetryPolicy::immediate(NonZeroU32::new(4).unwrap());
        assert_eq!(four.pauses().collect::<Vec<_>>(), [Duration::ZERO; 3]);
    }

    #[test]
    fn the_server_is_heard_within_limits() {
        let policy = RetryPolicy {
            longest_pause: 60 * SECOND,
            longest_total: 100 * SECOND,
            ..RetryPolicy::default()
        };
        let pause = |asked, spent| policy.pause(SECOND, asked, spent);
        assert_eq!(pause(None, SECOND), Some(SECOND));
        assert_eq!(pause(Some(7 * SECOND), SECOND), Some(7 * SECOND));
        assert_eq!(pause(Some(Duration::ZERO), SECOND), Some(SECOND));
        assert_eq!(pause(Some(7000 * SECOND), SECOND), Some(60 * SECOND));
        assert_eq!(pause(Some(60 * SECOND), 41 * SECOND), None);
    }

    #[test]
    fn a_tally_is_told_only_of_several_attempts() {
        let elapsed = Duration::from_millis(4230);
        let tally = |attempts| Tally { attempts, elapsed }.to_string();
        assert_eq!(tally(1), "");
        assert_eq!(tally(3), ", after 3 attempts in 4.2 s");
    }
}
