//! Keeping to a registry's pace instead of being sent away by it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::manners::Pace;

/// Lets requests pass one by one, in even steps.
#[derive(Debug)]
pub(crate) struct Pacer {
    step: Duration,
    /// When the next request may go.
    next: Mutex<Option<Instant>>,
}

impl Pacer {
    pub(crate) fn new(pace: Pace) -> Self {
        Self {
            step: pace.per / pace.requests.get(),
            next: Mutex::new(None),
        }
    }

    /// Waits for its turn.
    pub(crate) async fn wait(&self) {
        let pause = self.turn(Instant::now());
        if !pause.is_zero() {
            tracing::debug!(?pause, "keeping to the registry's pace");
            tokio::time::sleep(pause).await;
        }
    }

    /// Takes the next turn; gives the time until then.
    fn turn(&self, now: Instant) -> Duration {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = next.map_or(now, |next| next.max(now));
        *next = Some(turn + self.step);
        turn.duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn turns_are_a_step_apart_and_none_is_saved_up() {
        let pacer = Pacer::new(Pace {
            requests: NonZeroU32::new(10).unwrap(),
            per: Duration::from_secs(1),
        });
        let start = Instant::now();
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        let turn = |now| pacer.turn(now).as_millis();
        assert_eq!(turn(start), 0);
        assert_eq!(turn(start), 100);
        assert_eq!(turn(after(50)), 150);
        assert_eq!(turn(after(1000)), 0);
        assert_eq!(turn(after(1000)), 100);
    }
}
