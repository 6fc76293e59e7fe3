//! The way of an answer to whoever invoked: pieces with backpressure, then the end, which waits for
//! nobody.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use super::{Done, Progress};

/// Pieces that may lie between a function and a client: enough to keep both busy.
const PIECES: usize = 16;

/// Who invoked, as the environment sees it.
#[derive(Debug)]
pub(super) struct Client {
    relay: Relay,
    /// A place in the channel kept free from the beginning, so that the end never waits.
    end: mpsc::OwnedPermit<Progress>,
}

impl Client {
    pub(super) fn new() -> (Self, mpsc::Receiver<Progress>) {
        let (sender, receiver) = mpsc::channel(PIECES + 1);
        let end = sender
            .clone()
            .try_reserve_owned()
            .expect("a new channel has room");
        let relay = Relay {
            pieces: sender,
            open: Arc::new(Mutex::new(true)),
        };
        (Self { relay, end }, receiver)
    }

    /// For what streams an answer.
    pub(super) fn relay(&self) -> Relay {
        self.relay.clone()
    }

    /// Tells the end; no piece follows it.
    pub(super) fn finish(self, done: Done) {
        *self
            .relay
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = false;
        self.end.send(Progress::Done(done));
    }
}

/// Hands on the pieces of a streamed answer.
#[derive(Debug, Clone)]
pub(super) struct Relay {
    pieces: mpsc::Sender<Progress>,
    open: Arc<Mutex<bool>>,
}

impl Relay {
    /// Waits until there is room. What nobody waits for any more is dropped: a function goes on
    /// without its client, as on Lambda.
    pub(super) async fn send(&self, progress: Progress) {
        if let Ok(permit) = self.pieces.reserve().await {
            // Held while sending, so that an end that is told meanwhile stays the last.
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            if *open {
                permit.send(progress);
            }
        }
    }
}
