//! ECR's passwords: issued one by one, and worth nothing after a while.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The user of every ECR password.
pub(crate) const USER: &str = "AWS";

/// What a user and a password are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Valid,
    Expired,
    Unknown,
}

/// The passwords of one registry; clones share the same list.
#[derive(Clone, Default)]
pub(crate) struct Passwords {
    issued: Arc<Mutex<Issued>>,
}

#[derive(Default)]
struct Issued {
    /// Each password, and whether it is still good.
    passwords: BTreeMap<String, bool>,
}

/// Counts the passwords of all registries, so that no two have the same.
static MADE: AtomicU64 = AtomicU64::new(1);

impl fmt::Debug for Passwords {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Passwords({})", self.lock().passwords.len())
    }
}

impl Passwords {
    fn lock(&self) -> MutexGuard<'_, Issued> {
        self.issued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a new password, as long and as opaque as real ones begin to be.
    pub(crate) fn issue(&self) -> String {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let password = format!("eyJwYXlsb2FkIjoi{number:08}dGVzdGtpdA");
        self.lock().passwords.insert(password.clone(), true);
        password
    }

    /// Ends every password issued so far.
    pub(crate) fn expire(&self) {
        for good in self.lock().passwords.values_mut() {
            *good = false;
        }
    }

    pub(crate) fn judge(&self, user: &str, password: &str) -> Standing {
        match self.lock().passwords.get(password) {
            Some(true) if user == USER => Standing::Valid,
            Some(false) if user == USER => Standing::Expired,
            _ => Standing::Unknown,
        }
    }

    /// All passwords ever issued, the ended ones included.
    pub(crate) fn all(&self) -> Vec<String> {
        self.lock().passwords.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_end_and_new_ones_do_not() {
        let passwords = Passwords::default();
        let old = passwords.issue();
        assert_eq!(passwords.judge(USER, &old), Standing::Valid);
        assert_eq!(passwords.judge("me", &old), Standing::Unknown);
        passwords.expire();
        let new = passwords.issue();
        assert_eq!(passwords.judge(USER, &old), Standing::Expired);
        assert_eq!(passwords.judge(USER, &new), Standing::Valid);
        assert_eq!(passwords.judge(USER, "guess"), Standing::Unknown);
        assert_eq!(passwords.all().len(), 2);
    }
}
