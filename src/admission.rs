//! What a sink's guard answers: that a token is admitted, or why it is not.

use std::sync::Arc;
use std::time::SystemTime;

use crate::answer::Gap;
use crate::error::{Failure, StoreError};
use crate::types::{FencingToken, Timestamp};

/// A token that a [`crate::FenceGuard`] has admitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Admitted {
    pub(crate) token: FencingToken,
    pub(crate) expires: Timestamp,
}

impl Admitted {
    /// The token: the newest of its resource.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// Until when older ones are refused.
    #[must_use]
    pub fn guaranteed_until(&self) -> Option<SystemTime> {
        self.expires.to_system()
    }
}

/// What a [`crate::FenceGuard`] can refuse with: nobody is admitted. What was admitted before is as it was, unless the error is
/// [`StoreError::Unknown`]: then the token may be the newest one, or not.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FenceError {
    /// A newer claim has been here: the one with this token is no longer anybody's. Do nothing.
    #[error("token {shown} is older than {newest}, which was admitted before")]
    Stale {
        /// The token that was shown.
        shown: FencingToken,
        /// The newest one that was admitted for the resource.
        newest: FencingToken,
    },
    /// The store was salvaged, and what was lost may have been about this resource: a newer token may have been admitted. Somebody must
    /// find out, and accept the gap.
    #[error("the store was salvaged, and a newer token may have been lost")]
    InDoubt(Box<Gap>),
    /// There is no room to write down that the token is the newest.
    #[error("the store is full: {cause}")]
    Full {
        /// What happened when the store tried to grow.
        cause: Arc<Failure>,
    },
    /// Any call can fail like this.
    #[error(transparent)]
    Store(#[from] StoreError),
}
