//! Waiting for a key that somebody else holds: in a thread, or on any executor.

use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::claim::Claim;
use crate::commit::Commit;
use crate::engine::Settling;
use crate::engine::namespaces::OwnKey;
use crate::error::{ClaimError, WaitError};
use crate::handle::SharedSpace;
use crate::held::{HeldKey, Role, wait_for};
use crate::request::ClaimOptions;
use crate::types::FencingToken;

/// A claim that waits while somebody else holds the key. From [`crate::Namespace::claim_or_wait`].
///
/// Nothing is asked for before it is polled, or waited for. Ready with what a claim would answer: with the
/// outcome when the holder has completed the key, with the lease when the holder has lost it and this is
/// the one who was next, and with [`Claim::InProgress`] when the time is over. An end is told at once; that a lease
/// ran out, and that the time is over, within 8 ms and one look of maintenance. With
/// [`crate::Options::manual_maintenance`] whoever maintains the store tells.
///
/// It keeps no lease: the store can be closed while it waits, and it answers that. Dropping it leaves
/// nothing behind: a claim that was granted in the same moment is released.
#[must_use = "nothing is claimed before it is polled, or waited for"]
pub struct ClaimWait {
    held: HeldKey,
    options: ClaimOptions,
    /// The answer, on its way to being as durable as it was asked to be.
    commit: Option<Commit<Claim, ClaimError>>,
}

impl ClaimWait {
    pub(crate) fn new(
        space: SharedSpace,
        key: OwnKey,
        options: ClaimOptions,
        timeout: Duration,
    ) -> Self {
        Self { held: HeldKey::new(space, key, Role::Heir, timeout), options, commit: None }
    }

    /// Blocks the thread until there is an answer.
    ///
    /// # Errors
    ///
    /// As [`crate::Namespace::claim_with`], and [`ClaimError::TooManyWaiters`].
    ///
    /// # Panics
    ///
    /// When it was awaited to its end before.
    pub fn wait(mut self) -> Result<Claim, ClaimError> {
        loop {
            let left = self.held.left();
            let asked = wait_for(left, |context| self.poll_answer(context));
            if let Some(asked) = asked {
                asked?;
                // It leads its round, if nobody does.
                return match self.commit.take() {
                    Some(commit) => commit.wait(),
                    None => panic!("there is an answer"),
                };
            }
        }
    }

    /// Asks until there is an answer other than that the key is held, or no time left.
    fn poll_answer(&mut self, context: &Context<'_>) -> Poll<Result<(), ClaimError>> {
        while self.commit.is_none() {
            let (space, key) = (self.held.space(), self.held.key());
            let answered =
                Settling::later(|settling| Claim::ask(space, &key, &self.options, settling));
            self.options = self.options.again();
            if let Ok(Claim::InProgress(holder)) = &answered.result {
                match self.held.poll(holder.token, context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(true)) => continue,
                    Poll::Ready(Ok(false)) => {}
                    Poll::Ready(Err(refusal)) => return Poll::Ready(Err(refusal.into())),
                }
            }
            self.held.leave(matches!(answered.result, Ok(Claim::Acquired(_) | Claim::Resumed(_))));
            self.commit = Some(Commit::new(Arc::clone(&self.held.space().handle), answered));
        }
        Poll::Ready(Ok(()))
    }
}

impl Future for ClaimWait {
    type Output = Result<Claim, ClaimError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Poll::Ready(asked) = this.poll_answer(context) {
            asked?;
        }
        match &mut this.commit {
            Some(commit) => pin!(commit).poll(context),
            None => Poll::Pending,
        }
    }
}

impl Drop for ClaimWait {
    fn drop(&mut self) {
        // Nobody has begun to work on it; but on what is resumed somebody has, and may resume it again.
        let granted = self.commit.as_mut().and_then(Commit::give_up);
        if let Some(Ok(Claim::Acquired(lease))) = granted {
            drop(lease.release_async());
        }
    }
}

/// Waits for the claim that somebody holds a key by to have ended, and does not want the key. From
/// [`crate::Namespace::wait`].
///
/// Ready with `true` when the claim was completed, released, parked or taken over, or its lease is over, and
/// with `false` when the time is over; see [`ClaimWait`] about when, closing and dropping. What has become
/// of the key a lookup tells.
#[must_use = "a future does nothing unless it is polled"]
pub struct HeldWait {
    held: HeldKey,
    token: FencingToken,
}

impl HeldWait {
    pub(crate) fn new(
        space: SharedSpace,
        key: OwnKey,
        token: FencingToken,
        timeout: Duration,
    ) -> Self {
        Self { held: HeldKey::new(space, key, Role::Watcher, timeout), token }
    }

    /// Blocks the thread until the claim has ended, or the time is over.
    ///
    /// # Errors
    ///
    /// [`WaitError::TooManyWaiters`], and what any call can fail with.
    pub fn wait(mut self) -> Result<bool, WaitError> {
        loop {
            let left = self.held.left();
            if let Some(ended) = wait_for(left, |context| self.poll_end(context)) {
                return ended;
            }
        }
    }

    fn poll_end(&mut self, context: &Context<'_>) -> Poll<Result<bool, WaitError>> {
        let polled = self.held.poll(self.token, context);
        if polled.is_ready() {
            self.held.leave(false);
        }
        polled
    }
}

impl Future for HeldWait {
    type Output = Result<bool, WaitError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_end(context)
    }
}

impl fmt::Debug for ClaimWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClaimWait")
            .field("is_answered", &self.commit.is_some())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for HeldWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldWait").field("token", &self.token).finish_non_exhaustive()
    }
}
