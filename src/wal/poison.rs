//! Poison: the first failed sync or write ends every promise until the store is opened again.
//!
//! After a failed sync the kernel marks the pages clean; a second sync then reports success though
//! nothing reached the disk. So nothing is ever retried (Rebello et al., USENIX ATC 2020).

use std::sync::{Arc, OnceLock};

use crate::error::{Failure, StoreError};
use crate::sys::sync::atomic::{AtomicBool, Ordering};

/// Sticky; never unset.
#[derive(Debug, Default)]
pub(crate) struct Poison {
    /// Release after `cause` is set; read with Acquire.
    set: AtomicBool,
    cause: OnceLock<Arc<Failure>>,
}

impl Poison {
    /// Sets it, unless it is set already, and gives the first cause.
    pub(crate) fn set(&self, cause: Arc<Failure>) -> Arc<Failure> {
        let first = Arc::clone(self.cause.get_or_init(|| cause));
        self.set.store(true, Ordering::Release);
        first
    }

    #[inline]
    pub(crate) fn cause(&self) -> Option<&Arc<Failure>> {
        if self.set.load(Ordering::Acquire) { self.cause.get() } else { None }
    }

    /// For calls that have not done anything yet.
    #[inline]
    pub(crate) fn check_before(&self) -> Result<(), StoreError> {
        match self.cause() {
            None => Ok(()),
            Some(cause) => Err(StoreError::Poisoned { cause: Arc::clone(cause) }),
        }
    }

    /// For calls that have written something.
    #[inline]
    pub(crate) fn check_after(&self) -> Result<(), StoreError> {
        match self.cause() {
            None => Ok(()),
            Some(cause) => Err(StoreError::Unknown { cause: Arc::clone(cause) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn the_first_cause_stays() {
        let poison = Poison::default();
        assert!(poison.check_before().is_ok() && poison.check_after().is_ok());
        let failure = |text: &str| Failure::new("sync", PathBuf::new(), io::Error::other(text));
        poison.set(failure("first"));
        let first = poison.set(failure("second"));
        assert_eq!(first.io().to_string(), "first");
        assert!(matches!(poison.check_before(), Err(StoreError::Poisoned { .. })));
        assert!(matches!(poison.check_after(), Err(StoreError::Unknown { .. })));
    }
}
