//! A place in the list of those who are told when a key is held no more, and a time to give up.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::engine::lease_ends::LeaseEndWait;
use crate::engine::namespaces::{Key, OwnKey};
use crate::engine::waiters::KeyWait;
use crate::error::WaitError;
use crate::handle::SharedSpace;
use crate::sys::sync::{Unparker, parker};
use crate::types::FencingToken;

/// What somebody waits for the end of a claim for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// To take the key over.
    Heir,
    /// To know.
    Watcher,
    /// It is his own: to stop working. No bound is for him.
    Holder,
}

/// See the file's header.
pub(crate) struct HeldKey {
    space: SharedSpace,
    key: OwnKey,
    role: Role,
    /// By the monotonic clock; the end of time is never.
    gives_up_at: Duration,
    place: KeyWait,
    timer: LeaseEndWait,
}

impl HeldKey {
    pub(crate) fn new(space: SharedSpace, key: OwnKey, role: Role, timeout: Duration) -> Self {
        let gives_up_at = space.handle.timeline.monotonic().saturating_add(timeout);
        Self {
            space,
            key,
            role,
            gives_up_at,
            place: if role == Role::Holder { KeyWait::of_holder() } else { KeyWait::default() },
            timer: LeaseEndWait::default(),
        }
    }

    pub(crate) fn space(&self) -> &SharedSpace {
        &self.space
    }

    pub(crate) fn key(&self) -> Key<'_> {
        self.key.named(&self.space.state)
    }

    pub(crate) fn left(&self) -> Duration {
        self.gives_up_at.saturating_sub(self.space.handle.timeline.monotonic())
    }

    /// Ready when the claim of `held` has ended, as far as is known, or with `false` when the time is over.
    pub(crate) fn poll(
        &mut self,
        held: FencingToken,
        context: &Context<'_>,
    ) -> Poll<Result<bool, WaitError>> {
        let left = self.left();
        // An heir has just been told that the key is held; anybody else has looked at nothing yet.
        if self.role == Role::Heir && left.is_zero() {
            return Poll::Ready(Ok(false));
        }
        let Self { space, key, place, timer, .. } = self;
        let is_heir = self.role == Role::Heir;
        let key = key.named(&space.state);
        let polled = space.handle.poll_held(&key, &space.state, held, is_heir, place, context)?;
        if polled.is_ready() {
            return Poll::Ready(Ok(true));
        }
        if left.is_zero() {
            return Poll::Ready(Ok(false));
        }
        if self.gives_up_at != Duration::MAX {
            space.handle.wake_at(space.handle.timeline.now().after(left), timer, context);
        }
        Poll::Pending
    }

    /// Leaves, with the key or without it.
    pub(crate) fn leave(&mut self, has_key: bool) {
        // In a forked child the locks may be held by threads that are not there.
        if self.space.handle.is_child() {
            return;
        }
        self.space.handle.lease_ends.cancel(&mut self.timer);
        let Self { space, key, place, .. } = self;
        let key = key.named(&space.state);
        space.handle.stop_waiting(&key, place, has_key);
    }
}

impl Drop for HeldKey {
    fn drop(&mut self) {
        self.leave(false);
    }
}

/// Polls, and sleeps until the task is woken or so much time has passed.
pub(crate) fn wait_for<T>(time: Duration, poll: impl FnOnce(&Context<'_>) -> Poll<T>) -> Option<T> {
    let parker = parker();
    let waker = Waker::from(Arc::new(Sleeper(parker.unparker().clone())));
    match poll(&Context::from_waker(&waker)) {
        Poll::Ready(it) => Some(it),
        Poll::Pending => {
            parker.park_timeout(time);
            None
        }
    }
}

/// A thread that sleeps.
struct Sleeper(Unparker);

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
