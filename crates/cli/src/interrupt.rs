//! How a command learns that it is to end.

use tokio::sync::watch;

/// Tells a command that the user, or whoever supervises us, wants it to end.
///
/// A command that is done when it is dropped needs none. One that has something to end in order, as
/// a function that runs, listens to it and then ends by itself; it is dropped when it takes too long
/// or when it is told again.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt(watch::Receiver<bool>);

impl Interrupt {
    /// One that comes when the sender says so.
    pub(crate) fn new() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    /// Whether it has come.
    pub(crate) fn has_come(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it comes; at once if it has come.
    pub(crate) async fn comes(&self) {
        // Without a sender nobody is left who could say so: the whole process ends.
        let _ = self.0.clone().wait_for(|told| *told).await;
    }
}
