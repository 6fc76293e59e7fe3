//! The Invoke API over HTTP, and the environments behind it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::environment::Environment;

/// How many environments there may be, and how long they stay.
#[derive(Debug, Clone)]
pub struct PoolSettings {
    /// At most so many at once.
    pub concurrency: u32,
    /// One that had no invocation for so long is shut down; the last one stays.
    pub idle: Duration,
    /// Whether an invocation that finds all of them busy is refused as Lambda refuses it (429),
    /// instead of waiting.
    pub throttle: bool,
}

/// Makes an environment with this number, or says in words why it cannot be.
pub type MakeEnvironment =
    Arc<dyn Fn(u32) -> BoxFuture<'static, Result<Environment, CannotStart>> + Send + Sync>;

/// No environment could be made: a fault of this machine, in words for the user.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct CannotStart(pub String);

/// The environments of one function.
pub struct Pool {
    settings: PoolSettings,
    make: MakeEnvironment,
}

impl fmt::Debug for Pool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Pool")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
