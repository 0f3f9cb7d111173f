//! Renewing a lease for as long as its work takes, and telling its owner when that fails.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use crate::engine::lease_ends::LeaseEndWait;
use crate::engine::namespaces::OwnKey;
use crate::error::{LeaseError, StoreError};
use crate::handle::SharedSpace;
use crate::lost::LeaseLost;
use crate::sys::sync::Mutex;
use crate::sys::sync::atomic::{AtomicBool, Ordering};
use crate::types::{FencingToken, Timestamp};

/// How long to wait before it is tried again to renew a lease in a store that is full, at most.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// What renews a lease. From [`crate::Lease::renewer`].
///
/// It renews whenever a third of the lease has passed, so that two renewals may fail before it is over. A
/// renewal waits for the disk only where the store is full, or must grow. Work that hangs keeps its key for as long as this
/// renews: give it a bound of its own.
#[must_use = "nothing is renewed before it runs"]
pub struct Renewer {
    space: SharedSpace,
    key: OwnKey,
    token: FencingToken,
    deadline: Timestamp,
    lease: Option<Duration>,
}

impl Renewer {
    pub(crate) fn new(
        space: SharedSpace,
        key: OwnKey,
        token: FencingToken,
        deadline: Timestamp,
    ) -> Self {
        Self { space, key, token, deadline, lease: None }
    }

    /// Renews for this time, in place of the policy's lease: 100 ms up to the dedupe window.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }

    /// As a future, for any executor: beside the work, whichever of them is ready first.
    pub fn run(self) -> Renewing {
        let lost = LeaseLost::new(Arc::clone(&self.space), self.key.clone(), self.token);
        let renews_at = self.renews_at();
        Renewing { renewer: self, lost, timer: LeaseEndWait::default(), renews_at }
    }

    /// In a thread of its own, which ends when what is returned is dropped, or the lease is lost.
    ///
    /// # Errors
    ///
    /// When the system has no thread to give.
    pub fn in_thread(self) -> io::Result<RenewerThread> {
        let state =
            Arc::new(ThreadState { is_over: AtomicBool::new(false), lost: Mutex::new(None) });
        let shared = Arc::clone(&state);
        let space = Arc::clone(&self.space);
        let renew = move || {
            let waker = Waker::from(Arc::new(Parked(thread::current())));
            let mut context = Context::from_waker(&waker);
            let mut renewing = self.run();
            while !shared.is_over.load(Ordering::Acquire) {
                match Pin::new(&mut renewing).poll(&mut context) {
                    Poll::Pending => thread::park_timeout(renewing.left()),
                    Poll::Ready(error) => {
                        *shared.lost.lock() = Some(error);
                        return;
                    }
                }
            }
        };
        let thread = thread::Builder::new().name("refrain-renewer".to_owned()).spawn(renew)?;
        Ok(RenewerThread { state, thread: Some(thread), space })
    }

    fn renews_at(&self) -> Timestamp {
        let now = self.space.handle.timeline.now();
        now.after(self.deadline.since(now) / 3)
    }

    /// Renews; an error is for the owner.
    fn renew(&mut self) -> Result<Timestamp, LeaseError> {
        let Self { space, key, token, lease, .. } = self;
        let key = key.named(&space.state);
        match space.handle.renew(&key, *token, *lease) {
            Ok(renewed) => {
                self.deadline = renewed.deadline;
                Ok(self.renews_at())
            }
            // The lease is as it was.
            Err(error @ LeaseError::Full { .. }) => {
                let now = space.handle.timeline.now();
                let left = self.deadline.since(now);
                if left.is_zero() {
                    return Err(error);
                }
                Ok(now.after((left / 3).min(RETRY_MAX)))
            }
            Err(error) => Err(error),
        }
    }
}

/// Renews a lease while it is polled. From [`Renewer::run`].
///
/// Ready when the lease is lost, with what a renewal was refused with: the owner's work is to stop.
/// [`LeaseError::Completed`] says that it is done. A takeover, or an end, is told at once. In a store that is full it tries on
/// until the lease is over. Dropping it ends it; the lease stays as it is.
///
/// The store's thread wakes its task, as it wakes all who wait for a time, and is late when it waits for the disk itself. Where a sync may
/// take as long as two thirds of the lease, poll it besides by a timer of your own, or take [`Renewer::in_thread`], which keeps its own time. With
/// [`crate::Options::manual_maintenance`] whoever maintains the store wakes it.
#[must_use = "a future does nothing unless it is polled"]
pub struct Renewing {
    renewer: Renewer,
    lost: LeaseLost,
    timer: LeaseEndWait,
    renews_at: Timestamp,
}

impl Renewing {
    /// Until it has to renew: whoever would wake it may be waiting for the disk.
    fn left(&self) -> Duration {
        self.renews_at.since(self.renewer.space.handle.timeline.now()).max(Duration::from_millis(1))
    }
}

impl Future for Renewing {
    type Output = LeaseError;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<LeaseError> {
        let this = &mut *self;
        loop {
            // Whatever has become of it, a renewal says so best.
            let is_lost = this.lost.poll_lost(context).is_ready();
            let handle = &this.renewer.space.handle;
            if !is_lost && handle.timeline.now() < this.renews_at {
                handle.wake_at(this.renews_at, &mut this.timer, context);
                return Poll::Pending;
            }
            match this.renewer.renew() {
                Ok(renews_at) => this.renews_at = renews_at,
                Err(error) => return Poll::Ready(error),
            }
        }
    }
}

impl Drop for Renewing {
    fn drop(&mut self) {
        let handle = &self.renewer.space.handle;
        // In a forked child the lock may be held by a thread that is not there.
        if !handle.is_child() {
            handle.lease_ends.cancel(&mut self.timer);
        }
    }
}

/// A thread that renews a lease. From [`Renewer::in_thread`]. Dropping it ends the thread; the lease stays as it is.
#[must_use = "the thread ends when this is dropped"]
pub struct RenewerThread {
    state: Arc<ThreadState>,
    thread: Option<JoinHandle<()>>,
    /// So that the thread never drops the last handle: it would wait for the store's thread.
    space: SharedSpace,
}

struct ThreadState {
    is_over: AtomicBool,
    lost: Mutex<Option<LeaseError>>,
}

/// A thread that sleeps until there is something to look at.
struct Parked(Thread);

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl RenewerThread {
    /// Why the lease is lost, once it is: the work is to stop.
    #[must_use]
    pub fn lost(&self) -> Option<LeaseError> {
        // There the thread is not, and may have left its lock held.
        if self.space.handle.is_child() {
            return Some(StoreError::Forked.into());
        }
        self.state.lost.lock().clone()
    }
}

impl Drop for RenewerThread {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // In a forked child there is no thread. And a waker may drop this on the thread itself.
            let is_self = thread.thread().id() == thread::current().id();
            if is_self || self.space.handle.is_child() {
                return;
            }
            thread.thread().unpark();
            // It has nothing to say that `lost` does not.
            thread.join().unwrap_or_default();
        }
    }
}

impl fmt::Debug for Renewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewer").field("token", &self.token).finish_non_exhaustive()
    }
}

impl fmt::Debug for Renewing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewing").field("token", &self.renewer.token).finish_non_exhaustive()
    }
}

impl fmt::Debug for RenewerThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RenewerThread").field("lost", &self.lost()).finish_non_exhaustive()
    }
}
