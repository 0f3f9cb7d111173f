//! Telling whoever holds a lease that it is his no more.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::engine::namespaces::OwnKey;
use crate::error::{LeaseError, StoreError, WaitError};
use crate::handle::SharedSpace;
use crate::held::{HeldKey, Role, wait_for};
use crate::types::FencingToken;

/// How a lease was lost.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Lost {
    /// Its deadline has come, and nobody has taken the key since. It can still be renewed, or completed, until
    /// somebody does: what is done before one of these has succeeded may be done twice.
    LeaseEnded,
    /// The key is another's.
    Fenced {
        /// The token that the key has now.
        current: FencingToken,
    },
    /// The claim has ended under its own token, or was forgotten: through another handle, or by hand. A lookup
    /// tells how.
    Ended,
    /// The store is closed, or poisoned, or the key cannot be read: nobody can tell any more.
    Store(StoreError),
}

/// Waits for a lease to be lost, on any executor or in a thread. From [`crate::Lease::lost`].
///
/// Another claim's takeover, or any end of this one, is told at once; that the deadline has come, within 8 ms and
/// one look of maintenance, which may have to wait for the disk before. A renewal, whoever makes it, puts the deadline off. It takes no place from those who
/// wait for keys ([`crate::Options::max_waiters`]).
///
/// It keeps no lease: the store can be closed while it waits. Dropping it leaves nothing behind. With
/// [`crate::Options::manual_maintenance`] whoever maintains the store tells of deadlines.
#[must_use = "a future does nothing unless it is polled"]
pub struct LeaseLost {
    held: HeldKey,
    token: FencingToken,
}

impl LeaseLost {
    pub(crate) fn new(space: SharedSpace, key: OwnKey, token: FencingToken) -> Self {
        Self { held: HeldKey::new(space, key, Role::Holder, Duration::MAX), token }
    }

    /// Blocks the thread until the lease is lost.
    #[must_use]
    pub fn wait(mut self) -> Lost {
        loop {
            let left = self.held.left();
            if let Some(lost) = wait_for(left, |context| self.poll_lost(context)) {
                return lost;
            }
        }
    }

    pub(crate) fn poll_lost(&mut self, context: &Context<'_>) -> Poll<Lost> {
        loop {
            let polled = self.held.poll(self.token, context);
            if polled.is_pending() {
                return Poll::Pending;
            }
            self.held.leave(false);
            return Poll::Ready(match polled {
                Poll::Ready(Err(WaitError::Store(error))) => Lost::Store(error),
                Poll::Ready(Err(WaitError::TooManyWaiters(_))) => {
                    unreachable!("no bound is for who holds the key")
                }
                _ => match self.check() {
                    // It was renewed in between.
                    None => continue,
                    Some(lost) => lost,
                },
            });
        }
    }

    /// What has become of the lease; `None`: it runs.
    fn check(&self) -> Option<Lost> {
        match self.held.space().handle.check_owner(&self.held.key(), self.token) {
            Ok(true) => None,
            Ok(false) => Some(Lost::LeaseEnded),
            Err(LeaseError::Fenced { current, .. }) => Some(Lost::Fenced { current }),
            Err(LeaseError::Store(error)) => Some(Lost::Store(error)),
            Err(_) => Some(Lost::Ended),
        }
    }
}

impl Future for LeaseLost {
    type Output = Lost;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Lost> {
        self.poll_lost(context)
    }
}

impl fmt::Debug for LeaseLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseLost").field("token", &self.token).finish_non_exhaustive()
    }
}
