//! Waiting for a lock, but not for ever.
//!
//! A call that blocks until the lock is free cannot be ended by anything but the lock: no signal
//! handler of the program gets a chance, and a stranger who never lets go hangs us.

use std::fs::TryLockError;
use std::io;
use std::time::Duration;

/// How often a lock is asked for, and how long after each refusal we wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    tries: u32,
    pause: Duration,
}

impl Patience {
    /// Five seconds. What we hold locks for takes some milliseconds, or as long as deleting files.
    pub(crate) const DEFAULT: Self = Self {
        tries: 250,
        pause: Duration::from_millis(20),
    };

    /// Asks once.
    #[cfg(test)]
    pub(crate) const NONE: Self = Self {
        tries: 1,
        pause: Duration::ZERO,
    };

    /// Whether `try_lock` got the lock; `false` when somebody else held it all the time.
    pub(crate) fn acquire(
        self,
        mut try_lock: impl FnMut() -> Result<(), TryLockError>,
    ) -> io::Result<bool> {
        for tried in 1..=self.tries {
            match try_lock() {
                Ok(()) => return Ok(true),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if tried < self.tries => {
                    std::thread::sleep(self.pause);
                }
                Err(TryLockError::WouldBlock) => {}
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_with_the_lock_an_error_or_the_tries() {
        let patience = Patience {
            tries: 3,
            pause: Duration::ZERO,
        };
        for (free_at, got, asked) in [(1, true, 1), (3, true, 3), (4, false, 3)] {
            let mut count = 0;
            let acquired = patience.acquire(|| {
                count += 1;
                if count < free_at {
                    Err(TryLockError::WouldBlock)
                } else {
                    Ok(())
                }
            });
            assert_eq!((acquired.unwrap(), count), (got, asked));
        }
        let unsupported = || io::Error::from(io::ErrorKind::Unsupported);
        let refused = patience.acquire(|| Err(TryLockError::Error(unsupported())));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::Unsupported);
    }
}
