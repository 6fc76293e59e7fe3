//! Work that blocks, away from the runtime's threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};

/// Runs blocking work on a thread of its own; raising the flag asks it to end early, which happens
/// when this future is dropped.
pub(crate) async fn in_background<T: Send + 'static>(
    work: impl FnOnce(&AtomicBool) -> Result<T> + Send + 'static,
) -> Result<T> {
    struct CancelOnDrop(Arc<AtomicBool>);
    impl Drop for CancelOnDrop {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let flag = Arc::new(AtomicBool::new(false));
    let _guard = CancelOnDrop(Arc::clone(&flag));
    tokio::task::spawn_blocking(move || work(&flag))
        .await
        .context("a worker thread ended early")?
}
