//! Invocations that nobody waits for (`Event`): kept until it is their turn, tried again if told so.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};

use super::fault::InvokeFault;
use super::pool::{Invocable, Pool};
use crate::environment::{Invocation, Outcome, Progress};

/// So many events are kept, each up to 1 MiB; the service keeps many more, but this is one machine's
/// memory.
const KEPT: usize = 1_000;

/// The events that were taken and are not done.
pub(crate) struct Events<E: Invocable> {
    pool: Pool<E>,
    /// How long to pause before each new attempt at an event that the function failed on.
    retries: Arc<[Duration]>,
    room: Arc<Semaphore>,
}

impl<E: Invocable> Events<E> {
    pub(crate) fn new(pool: Pool<E>, retries: &[Duration]) -> Self {
        Self {
            pool,
            retries: retries.into(),
            room: Arc::new(Semaphore::new(KEPT)),
        }
    }

    /// Takes an event, and lets it happen. How it ends is told to the log alone.
    pub(crate) fn take(&self, invocation: Invocation) -> Result<(), InvokeFault> {
        let Ok(place) = Arc::clone(&self.room).try_acquire_owned() else {
            return Err(InvokeFault::TooManyEvents(KEPT));
        };
        let pool = self.pool.clone();
        let retries = Arc::clone(&self.retries);
        // Not in the task, so that events begin in the order in which they were taken.
        let progress = pool.invoke_in_turn(invocation.clone());
        tokio::spawn(async move {
            run(&pool, &invocation, progress, &retries).await;
            drop(place);
        });
        Ok(())
    }
}

/// The same event has the same request id in each attempt, as on Lambda.
async fn run<E: Invocable>(
    pool: &Pool<E>,
    invocation: &Invocation,
    mut progress: mpsc::Receiver<Progress>,
    retries: &[Duration],
) {
    let request_id = &invocation.request_id;
    let mut pauses = retries.iter();
    loop {
        let outcome = loop {
            match progress.recv().await {
                Some(Progress::Done(done)) => break done.outcome,
                Some(Progress::Streaming(_) | Progress::Piece(_)) => {}
                None => break Outcome::Failed("the environment is gone".to_owned()),
            }
        };
        let error_type = match outcome {
            Outcome::Success { .. } => {
                tracing::debug!(request_id, "event is done");
                return;
            }
            Outcome::Failed(reason) => {
                tracing::warn!(request_id, reason, "event could not be tried");
                return;
            }
            Outcome::FunctionError { error_type, .. } => error_type,
        };
        let Some(pause) = pauses.next() else {
            tracing::warn!(request_id, error_type, "function failed on an event");
            return;
        };
        tracing::info!(
            request_id,
            error_type,
            "function failed on an event, which is tried again in {} s",
            pause.as_secs()
        );
        tokio::time::sleep(*pause).await;
        progress = pool.invoke_in_turn(invocation.clone());
    }
}
