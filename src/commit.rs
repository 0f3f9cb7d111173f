//! Waiting without a thread.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::engine::{Answered, Settle};
use crate::error::StoreError;
use crate::handle::Handle;
use crate::wal::rounds::RoundWait;

/// A change that is made, on its way to being as durable as it was asked to be.
///
/// The change is made when the call that returns the `Commit` returns; what is left is to wait for
/// the round that makes it durable. Await it on any executor, or [`Commit::wait`] for it. Dropping
/// it cancels nothing.
#[must_use = "the change is made, but not yet known to be durable"]
pub struct Commit<T, E> {
    handle: Arc<Handle>,
    /// Taken when the commit is ready.
    result: Option<Result<T, E>>,
    wait: Option<(Settle, RoundWait)>,
}

impl<T, E: From<StoreError>> Commit<T, E> {
    pub(crate) fn new(handle: Arc<Handle>, answered: Answered<T, E>) -> Self {
        let wait = answered.settle.map(|settle| (settle, RoundWait::new(settle.ticket)));
        Self { handle, result: Some(answered.result), wait }
    }

    /// Waits for the round, and leads it if nobody does.
    ///
    /// # Errors
    ///
    /// What the call can refuse with; [`StoreError::Unknown`] when the round failed.
    ///
    /// # Panics
    ///
    /// When the commit was awaited to its end before.
    pub fn wait(mut self) -> Result<T, E> {
        if let Some((settle, mut wait)) = self.wait.take() {
            self.cancel(&mut wait);
            self.handle.settle(settle)?;
        }
        self.take()
    }

    fn take(&mut self) -> Result<T, E> {
        match self.result.take() {
            Some(result) => result,
            None => panic!("the commit was awaited to its end before"),
        }
    }
}

impl<T, E> Commit<T, E> {
    /// What was not taken, without waiting.
    pub(crate) fn give_up(&mut self) -> Option<Result<T, E>> {
        self.result.take()
    }

    fn cancel(&self, wait: &mut RoundWait) {
        // In a forked child the lock may be held by a thread that is not there.
        if !self.handle.is_child() {
            wait.cancel(&self.handle.wal.rounds);
        }
    }
}

// Nothing in a commit is pinned.
impl<T, E> Unpin for Commit<T, E> {}

impl<T, E: From<StoreError>> Future for Commit<T, E> {
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some((settle, wait)) = &mut this.wait {
            match this.handle.poll_settle(*settle, wait, context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => this.wait = None,
                Poll::Ready(Err(error)) => {
                    this.wait = None;
                    this.result = None;
                    return Poll::Ready(Err(error.into()));
                }
            }
        }
        Poll::Ready(this.take())
    }
}

impl<T, E> Drop for Commit<T, E> {
    fn drop(&mut self) {
        if let Some((_, mut wait)) = self.wait.take() {
            self.cancel(&mut wait);
        }
    }
}

impl<T, E> fmt::Debug for Commit<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Commit").field("is_durable", &self.wait.is_none()).finish_non_exhaustive()
    }
}
