//! The lease: the time-bounded right that a winning claim returns.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use crate::answer::{Completion, Previous, Renewed};
use crate::commit::Commit;
use crate::engine::Answered;
use crate::engine::claims::Grant;
use crate::engine::lease_ends::LeaseEndWait;
use crate::engine::namespaces::{Key, NamespaceState, OwnKey};
use crate::error::{CompleteError, LeaseError, StoreError};
use crate::handle::{Handle, SharedSpace, Space};
use crate::lost::LeaseLost;
use crate::renewer::Renewer;
use crate::request::CompleteOptions;
use crate::types::{FencingToken, Timestamp};

/// The right to work on a key until a deadline.
///
/// End it with [`Lease::complete`], [`Lease::release`] or [`Lease::park`]. Dropping it does none of
/// these: the key stays claimed until the lease runs out, because the work may have had its effect.
/// The same ends exist on [`crate::Namespace`], by key and token.
#[must_use = "the key stays claimed until the lease is completed, released or parked, or runs out"]
pub struct Lease {
    space: SharedSpace,
    key: OwnKey,
    token: FencingToken,
    attempt: u16,
    previous: Option<Previous>,
    deadline: Timestamp,
    expires: Timestamp,
}

impl Lease {
    pub(crate) fn new(space: SharedSpace, key: &Key<'_>, grant: &Grant) -> Self {
        Self {
            space,
            key: OwnKey::of(key),
            token: grant.token,
            attempt: grant.attempt,
            previous: grant.previous,
            deadline: grant.deadline,
            expires: grant.expires,
        }
    }

    /// The fencing token. Hand it to whatever carries out the side effect.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        self.key.given()
    }

    /// Which attempt this is, counted from 1. More than 1: earlier ones did not finish, and may
    /// have had their effect.
    #[must_use]
    pub fn attempt(&self) -> u16 {
        self.attempt
    }

    /// The claim this one took over from, when it is not the first attempt.
    #[must_use]
    pub fn previous(&self) -> Option<Previous> {
        self.previous
    }

    /// When the lease ends, in the store's time.
    #[must_use]
    pub fn deadline(&self) -> Option<SystemTime> {
        self.deadline.to_system()
    }

    /// How much of the lease is left. Zero does not mean that it is lost: it can be completed until
    /// a newer claim takes over.
    #[must_use]
    pub fn lease_left(&self) -> Duration {
        self.deadline.since(self.space.handle.timeline.now())
    }

    /// Until when the claim is remembered if nothing else happens; `None` is for ever.
    #[must_use]
    pub fn guaranteed_until(&self) -> Option<SystemTime> {
        self.expires.to_system()
    }

    /// Extends the lease to the policy's lease, from now on; never shortens it. See [`crate::Namespace::renew`].
    ///
    /// # Errors
    ///
    /// [`LeaseError::Fenced`] and its siblings when the lease is lost.
    pub fn renew(&mut self) -> Result<Renewed, LeaseError> {
        self.renew_with(None)
    }

    /// Extends the lease to a time of your own: 100 ms up to the dedupe window.
    ///
    /// # Errors
    ///
    /// As [`Lease::renew`].
    pub fn renew_for(&mut self, lease: Duration) -> Result<Renewed, LeaseError> {
        self.renew_with(Some(lease))
    }

    fn renew_with(&mut self, lease: Option<Duration>) -> Result<Renewed, LeaseError> {
        let renewed = self.space.handle.renew(&self.named(), self.token, lease)?;
        (self.deadline, self.expires) = (renewed.deadline, renewed.expires);
        Ok(renewed)
    }

    /// Ends the claim by storing its outcome: every later claim gets these bytes back. See
    /// [`crate::Namespace::complete`].
    ///
    /// # Errors
    ///
    /// [`CompleteError::Fenced`] and its siblings when the lease is lost. The handle is gone then;
    /// the token still serves for [`crate::Namespace::complete`].
    pub fn complete(self, body: impl AsRef<[u8]>) -> Result<Completion, CompleteError> {
        self.complete_with(&CompleteOptions::body(body.as_ref()))
    }

    /// [`Lease::complete`] with options.
    ///
    /// # Errors
    ///
    /// As [`Lease::complete`].
    pub fn complete_with(self, options: &CompleteOptions<'_>) -> Result<Completion, CompleteError> {
        self.space.handle.answer(self.start_complete(options))
    }

    /// [`Lease::complete_with`] without waiting.
    pub fn complete_async(
        self,
        options: &CompleteOptions<'_>,
    ) -> Commit<Completion, CompleteError> {
        self.commit(self.start_complete(options))
    }

    fn start_complete(&self, options: &CompleteOptions<'_>) -> Answered<Completion, CompleteError> {
        let request = options.to_request();
        self.space.handle.complete(&self.named(), self.token, &request)
    }

    /// Gives the claim back without an outcome. See [`crate::Namespace::release`].
    ///
    /// # Errors
    ///
    /// [`LeaseError::Fenced`] and its siblings when the lease is lost.
    pub fn release(self) -> Result<(), LeaseError> {
        self.space.handle.answer(self.space.handle.release(&self.named(), self.token, None))
    }

    /// [`Lease::release`] without waiting.
    pub fn release_async(self) -> Commit<(), LeaseError> {
        self.commit(self.space.handle.release(&self.named(), self.token, None))
    }

    /// Ends the claim with its outcome unknown. See [`crate::Namespace::park`].
    ///
    /// # Errors
    ///
    /// [`LeaseError::Fenced`] and its siblings when the lease is lost.
    pub fn park(self) -> Result<(), LeaseError> {
        self.space.handle.answer(self.space.handle.park(&self.named(), self.token, None))
    }

    /// [`Lease::park`] without waiting.
    pub fn park_async(self) -> Commit<(), LeaseError> {
        self.commit(self.space.handle.park(&self.named(), self.token, None))
    }

    /// Whether the lease is still its owner's, so that it can be renewed or completed: nobody has taken the key over,
    /// and the claim has not ended some other way. It says what was so a moment ago: what keeps a late owner from acting is
    /// the token, refused by whoever carries the work out.
    ///
    /// # Errors
    ///
    /// What any call can fail with: nobody can tell then.
    pub fn is_current(&self) -> Result<bool, StoreError> {
        match self.space.handle.check_owner(&self.named(), self.token) {
            Ok(_) => Ok(true),
            Err(LeaseError::Store(error)) => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// A wait for the lease to be lost: taken over, ended some other way, or over. See [`LeaseLost`].
    pub fn lost(&self) -> LeaseLost {
        LeaseLost::new(Arc::clone(&self.space), self.key.clone(), self.token)
    }

    /// What renews the lease for as long as the work takes, and tells when that fails. See [`Renewer`].
    pub fn renewer(&self) -> Renewer {
        Renewer::new(Arc::clone(&self.space), self.key.clone(), self.token, self.deadline)
    }

    /// A wait for the lease to be over, for work that is to stop then. See [`LeaseEnd`].
    pub fn ended(&self) -> LeaseEnd {
        LeaseEnd {
            handle: Arc::clone(&self.space.handle),
            namespace: Arc::clone(&self.space.state),
            key: self.key.clone(),
            token: self.token,
            wait: LeaseEndWait::default(),
        }
    }

    /// The key, as the engine has it.
    fn named(&self) -> Key<'_> {
        self.key.named(&self.space.state)
    }

    /// For the handle of the lease's namespace: it, and what stands in front of its keys.
    pub(crate) fn space(&self) -> (&Space, &[u8]) {
        (&self.space, self.key.prefix())
    }

    fn commit<T, E: From<StoreError>>(&self, answered: Answered<T, E>) -> Commit<T, E> {
        Commit::new(Arc::clone(&self.space.handle), answered)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.space.handle.is_child() {
            self.space.handle.lease_dropped(self.key.hash());
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("token", &self.token)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

/// Waits for the end of a lease, on any executor. From [`Lease::ended`].
///
/// Ready once the lease's deadline has come, whoever has renewed it meanwhile; or its claim has ended
/// some other way, or the store is closed. It wakes its task within 8 ms and one look of maintenance
/// after the deadline, never before: an end that comes before the deadline it tells no sooner, unless
/// it is polled. That the lease is over does not mean that it is lost: it can be completed until a
/// newer claim takes over.
///
/// It keeps no lease: the store can be closed while it waits. Dropping it leaves nothing behind.
/// With [`crate::Options::manual_maintenance`] whoever maintains the store wakes it, and what
/// [`crate::Store::maintain`] has returned does not know of waits that were begun since.
#[must_use = "a future does nothing unless it is polled"]
pub struct LeaseEnd {
    handle: Arc<Handle>,
    namespace: Arc<NamespaceState>,
    key: OwnKey,
    token: FencingToken,
    wait: LeaseEndWait,
}

impl Future for LeaseEnd {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let key = this.key.named(&this.namespace);
        this.handle.poll_lease_end(&key, this.token, &mut this.wait, context)
    }
}

impl Drop for LeaseEnd {
    fn drop(&mut self) {
        // In a forked child the lock may be held by a thread that is not there.
        if !self.handle.is_child() {
            self.handle.lease_ends.cancel(&mut self.wait);
        }
    }
}

impl fmt::Debug for LeaseEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseEnd").field("token", &self.token).finish_non_exhaustive()
    }
}
