//! Namespaces as their users hold them: every call on a key.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::answer::{Completion, InProgress, KeyState, Lookup, Once, Orphan, OutcomeRef, Renewed};
use crate::claim::Claim;
use crate::commit::Commit;
use crate::engine::events::Event;
use crate::engine::namespaces::{Key, NamespaceState};
use crate::engine::{Answered, Settling};
use crate::error::{ClaimError, CompleteError, ForgetError, LeaseError, ResolveError, StoreError};
use crate::handle::{Handle, SharedSpace, Space};
use crate::lease::Lease;
use crate::policy::Policy;
use crate::request::{ClaimOptions, CompleteOptions, Resolution};
use crate::stats::{CallCounts, NamespaceStats};
use crate::sys::sync::atomic::Ordering;
use crate::types::{FencingToken, Fingerprint};
use crate::wait::{ClaimWait, HeldWait};

/// A set of keys with its own policy. The namespace is part of every key's identity: the same key
/// in two of them is two keys.
///
/// Cheap to clone; threads that claim with a clone each share least. Keys are bytes, 1 to 4096 of them;
/// anything that is `AsRef<[u8]>` will do.
///
/// A call that changes something returns when the change is as durable as the store's
/// [`crate::Durability`] says; its `_async` form returns at once, with a [`Commit`] to await. What
/// each call answers in each state of a key stands in `docs/STATES.md`.
pub struct Namespace {
    space: SharedSpace,
}

impl Clone for Namespace {
    /// Leases are counted by the handle that they come from: each clone has a count of its own.
    fn clone(&self) -> Self {
        let Space { handle, state } = &**self.space;
        Self::new(Arc::clone(handle), Arc::clone(state))
    }
}

impl Namespace {
    pub(crate) fn new(handle: Arc<Handle>, state: Arc<NamespaceState>) -> Self {
        Self { space: Space::share(handle, state) }
    }

    /// The namespace's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.space.state.name
    }

    /// The policy in force.
    pub fn policy(&self) -> Policy {
        self.space.state.policy.load()
    }

    /// How often a fingerprint differed from the one its key is bound to, since the store was
    /// opened.
    #[must_use]
    pub fn fingerprint_mismatches(&self) -> u64 {
        if self.space.handle.is_child() {
            return 0;
        }
        self.space.state.tally.read()[Event::Differs as usize]
    }

    /// What calls on it were answered, and what became of its keys, since the store was opened.
    #[must_use]
    pub fn stats(&self) -> NamespaceStats {
        let Space { handle, state } = &**self.space;
        // A forked child has no store, and no say in its locks.
        if handle.is_child() {
            return NamespaceStats::default();
        }
        let waiters = state.waiters.load(Ordering::Relaxed);
        NamespaceStats { calls: CallCounts::of(state), waiters }
    }

    /// Asks to be the one worker for `key`. Give the fingerprint of the request's payload, so that
    /// another payload under the same key is told apart, or `None`.
    ///
    /// One caller gets [`Claim::Acquired`], whoever asks at the same time. A claim that is granted
    /// can be completed, on a full disk too.
    ///
    /// # Errors
    ///
    /// [`ClaimError::Full`] when no room is left to promise that.
    pub fn claim(
        &self,
        key: impl AsRef<[u8]>,
        fingerprint: impl Into<Option<Fingerprint>>,
    ) -> Result<Claim, ClaimError> {
        self.claim_with(key, &ClaimOptions::of(fingerprint.into()))
    }

    /// [`Namespace::claim`] with options.
    ///
    /// # Errors
    ///
    /// As [`Namespace::claim`].
    pub fn claim_with(
        &self,
        key: impl AsRef<[u8]>,
        options: &ClaimOptions,
    ) -> Result<Claim, ClaimError> {
        self.claim_bytes(key.as_ref(), options)
    }

    /// [`Namespace::claim`] of a UUID, as its sixteen bytes: however it was spelled, it is one key. One of version 7 also says
    /// when the request was first sent, see [`ClaimOptions::first_sent_of`], which does so for every other call.
    ///
    /// ```
    /// use refrain::{Claim, Store};
    /// use uuid::Uuid;
    ///
    /// # let directory = tempfile::tempdir()?;
    /// # let store = Store::open(directory.path())?;
    /// # let orders = store.namespace("orders")?;
    /// // Made years ago: had it been carried out then, nobody would know any more.
    /// let stale = Uuid::parse_str("017f22e2-79b0-7cc3-98c4-dc0c0c07398f")?;
    /// assert!(matches!(orders.claim_uuid(stale, None)?, Claim::OutsideWindow(_)));
    /// let fresh = Uuid::parse_str("urn:uuid:67e55044-10b1-426f-9247-bb680e5fe0c8")?;
    /// let lease = orders.claim_uuid(fresh, None)?.acquired().expect("a new key");
    /// assert_eq!(lease.key(), fresh.as_bytes());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Namespace::claim`].
    #[cfg(feature = "uuid")]
    pub fn claim_uuid(
        &self,
        key: uuid::Uuid,
        fingerprint: impl Into<Option<Fingerprint>>,
    ) -> Result<Claim, ClaimError> {
        self.claim_with(key, &ClaimOptions::of(fingerprint.into()).first_sent_of(key))
    }

    /// [`Namespace::claim_with`] without waiting.
    pub fn claim_async(
        &self,
        key: impl AsRef<[u8]>,
        options: &ClaimOptions,
    ) -> Commit<Claim, ClaimError> {
        self.commit(self.start_claim(&self.key(key.as_ref()), options))
    }

    /// [`Namespace::claim_with`] that waits while somebody else holds the key, for `timeout` at most: until the
    /// holder has completed it, and then answers with the outcome, the same bytes for everybody; or until
    /// the holder has lost it, and then is granted the key if nobody was before in the line.
    /// [`ClaimWait::wait`] for it, or await it on any executor: no thread is blocked by that.
    ///
    /// How many may wait is bounded ([`crate::Options::max_waiters`]); more are refused with
    /// [`ClaimError::TooManyWaiters`].
    pub fn claim_or_wait(
        &self,
        key: impl AsRef<[u8]>,
        options: &ClaimOptions,
        timeout: Duration,
    ) -> ClaimWait {
        ClaimWait::new(Arc::clone(&self.space), key.as_ref(), *options, timeout)
    }

    /// Waits for the claim of `holder` to have ended, for `timeout` at most, for who does not want the key himself:
    /// what has become of it a lookup tells. As a future, or with [`HeldWait::wait`].
    pub fn wait(&self, key: impl AsRef<[u8]>, holder: &InProgress, timeout: Duration) -> HeldWait {
        HeldWait::new(Arc::clone(&self.space), key.as_ref(), holder.token, timeout)
    }

    /// [`Namespace::claim_with`] for several keys, in one call: faster than as many, above all on keys that are
    /// not in the processor's caches, and with at most one wait for the disk. Answers are in the order
    /// of `claims`, each by itself: a batch is no transaction.
    ///
    /// Of a key that occurs twice the first occurrence may be granted; the others are in progress then, whoever the owner is,
    /// under its token, and [`crate::InProgress::alias_of`] says which one it is.
    pub fn claim_batch<K: AsRef<[u8]>>(
        &self,
        claims: &[(K, ClaimOptions)],
    ) -> Vec<Result<Claim, ClaimError>> {
        let mut owned = HashSet::new();
        let answered = self.space.handle.each(
            claims,
            true,
            |(key, _)| self.key(key.as_ref()),
            |(key, options), named| match options.claimed_by() {
                // Who asks for a key twice in one call does not take it from himself.
                Some(owner) if !owned.insert((key.as_ref(), owner)) => {
                    self.start_claim(named, &options.of_nobody())
                }
                _ => self.start_claim(named, options),
            },
        );
        let mut answers = self.space.handle.answer_all(answered);
        name_aliases(&mut answers);
        answers
    }

    /// [`Namespace::once_with`] for several keys, as [`Namespace::claim_batch`] does for claims. A key
    /// that occurs twice is first and then seen.
    pub fn once_batch<K: AsRef<[u8]>>(
        &self,
        marks: &[(K, ClaimOptions)],
    ) -> Vec<Result<Once, ClaimError>> {
        let answered = self.space.handle.each(
            marks,
            true,
            |(key, _)| self.key(key.as_ref()),
            |(_, options), key| self.start_once(key, options),
        );
        self.space.handle.answer_all(answered)
    }

    /// [`Namespace::lookup`] for several keys, as [`Namespace::claim_batch`] does for claims.
    pub fn lookup_batch<K: AsRef<[u8]>>(&self, keys: &[K]) -> Vec<Result<Lookup, StoreError>> {
        let answered = self.space.handle.each(
            keys,
            false,
            |key| self.key(key.as_ref()),
            |_, key| Settling::later(|settling| self.space.handle.lookup(key, settling)),
        );
        self.space.handle.answer_all(answered)
    }

    /// [`Namespace::complete_with`] for several keys, as [`Namespace::claim_batch`] does for claims.
    pub fn complete_batch<K: AsRef<[u8]>>(
        &self,
        completions: &[(K, FencingToken, CompleteOptions<'_>)],
    ) -> Vec<Result<Completion, CompleteError>> {
        let answered = self.space.handle.each(
            completions,
            false,
            |(key, ..)| self.key(key.as_ref()),
            |(_, token, options), key| {
                self.space.handle.complete(key, *token, &options.to_request())
            },
        );
        self.space.handle.answer_all(answered)
    }

    /// Not for each type of key again.
    fn claim_bytes(&self, key: &[u8], options: &ClaimOptions) -> Result<Claim, ClaimError> {
        Claim::ask(&self.space, &self.key(key), options, &mut Settling::Now)
    }

    fn start_claim(&self, key: &Key<'_>, options: &ClaimOptions) -> Answered<Claim, ClaimError> {
        Settling::later(|settling| Claim::ask(&self.space, key, options, settling))
    }

    fn start_once(&self, key: &Key<'_>, options: &ClaimOptions) -> Answered<Once, ClaimError> {
        Settling::later(|settling| self.space.handle.once(key, options.request(), settling))
    }

    /// Marks `key` as done, if it is new, *before* the work is: at most once. A caller that dies
    /// after [`Once::First`] leaves the work undone. No body is kept.
    ///
    /// # Errors
    ///
    /// [`ClaimError::Full`] when there is no room for the mark.
    pub fn once(
        &self,
        key: impl AsRef<[u8]>,
        fingerprint: impl Into<Option<Fingerprint>>,
    ) -> Result<Once, ClaimError> {
        self.once_with(key, &ClaimOptions::of(fingerprint.into()))
    }

    /// [`Namespace::once`] with options.
    ///
    /// # Errors
    ///
    /// As [`Namespace::once`].
    pub fn once_with(
        &self,
        key: impl AsRef<[u8]>,
        options: &ClaimOptions,
    ) -> Result<Once, ClaimError> {
        self.space.handle.once(&self.key(key.as_ref()), options.request(), &mut Settling::Now)
    }

    /// [`Namespace::once_with`] without waiting.
    pub fn once_async(
        &self,
        key: impl AsRef<[u8]>,
        options: &ClaimOptions,
    ) -> Commit<Once, ClaimError> {
        self.commit(self.start_once(&self.key(key.as_ref()), options))
    }

    /// Reads the state of `key` without claiming it. Goes on when the store is poisoned, for what
    /// was durable.
    ///
    /// # Errors
    ///
    /// What any call can fail with.
    pub fn lookup(&self, key: impl AsRef<[u8]>) -> Result<Lookup, StoreError> {
        self.lookup_bytes(key.as_ref())
    }

    /// Not for each type of key again.
    fn lookup_bytes(&self, key: &[u8]) -> Result<Lookup, StoreError> {
        self.space.handle.lookup(&self.key(key), &mut Settling::Now)
    }

    /// [`Namespace::lookup`] without a copy: `show` gets the state of `key`, with the outcome where it lies, and
    /// its answer is returned. In `Sync` mode it waits, before, for an outcome that is not durable yet.
    ///
    /// Segments are not written again while `show` runs: it should take microseconds, and wait for nobody. A
    /// store that is closed meanwhile keeps its directory locked until `show` has returned.
    ///
    /// # Errors
    ///
    /// What any call can fail with; `show` was not called then.
    pub fn lookup_with<R>(
        &self,
        key: impl AsRef<[u8]>,
        show: impl FnOnce(Lookup<OutcomeRef<'_>>) -> R,
    ) -> Result<R, StoreError> {
        self.space.handle.lookup_with(&self.key(key.as_ref()), show)
    }

    /// Extends the lease of the claim with this token to the policy's lease, from now on; never
    /// shortens it. Accepted
    /// as long as no newer claim took over and the claim is not forgotten, however late. Never
    /// waits for the disk: after a crash the claim's owner is gone anyway.
    ///
    /// # Errors
    ///
    /// [`LeaseError::Fenced`] and its siblings when the claim is no longer yours.
    pub fn renew(&self, key: impl AsRef<[u8]>, token: FencingToken) -> Result<Renewed, LeaseError> {
        self.space.handle.renew(&self.key(key.as_ref()), token, None)
    }

    /// [`Namespace::renew`] to a lease of your own: 100 ms up to the dedupe window.
    ///
    /// # Errors
    ///
    /// As [`Namespace::renew`].
    pub fn renew_for(
        &self,
        key: impl AsRef<[u8]>,
        token: FencingToken,
        lease: Duration,
    ) -> Result<Renewed, LeaseError> {
        self.space.handle.renew(&self.key(key.as_ref()), token, Some(lease))
    }

    /// Ends the claim with this token by storing its outcome; every later claim gets the same
    /// bytes back. Accepted as long as no newer claim took over and the claim is not forgotten,
    /// however late; a second time, with the same outcome only.
    ///
    /// # Errors
    ///
    /// [`CompleteError::Fenced`] and its siblings when the claim is no longer yours. Never for want
    /// of room.
    pub fn complete(
        &self,
        key: impl AsRef<[u8]>,
        token: FencingToken,
        body: impl AsRef<[u8]>,
    ) -> Result<Completion, CompleteError> {
        self.complete_with(key, token, &CompleteOptions::body(body.as_ref()))
    }

    /// [`Namespace::complete`] with options.
    ///
    /// # Errors
    ///
    /// As [`Namespace::complete`].
    pub fn complete_with(
        &self,
        key: impl AsRef<[u8]>,
        token: FencingToken,
        options: &CompleteOptions<'_>,
    ) -> Result<Completion, CompleteError> {
        let request = options.to_request();
        self.space.handle.answer(self.space.handle.complete(
            &self.key(key.as_ref()),
            token,
            &request,
        ))
    }

    /// [`Namespace::complete_with`] without waiting.
    pub fn complete_async(
        &self,
        key: impl AsRef<[u8]>,
        token: FencingToken,
        options: &CompleteOptions<'_>,
    ) -> Commit<Completion, CompleteError> {
        let request = options.to_request();
        self.commit(self.space.handle.complete(&self.key(key.as_ref()), token, &request))
    }

    /// Gives the claim with this token back without an outcome: the next claim is a first attempt.
    /// For work that surely did not happen.
    ///
    /// # Errors
    ///
    /// [`LeaseError::Fenced`] and its siblings when the claim is no longer yours.
    pub fn release(&self, key: impl AsRef<[u8]>, token: FencingToken) -> Result<(), LeaseError> {
        self.space.handle.answer(self.space.handle.release(&self.key(key.as_ref()), token, None))
    }

    /// [`Namespace::release`] without waiting.
    pub fn release_async(
        &self,
        key: impl AsRef<[u8]>,
        token: FencingToken,
    ) -> Commit<(), LeaseError> {
        self.commit(self.space.handle.release(&self.key(key.as_ref()), token, None))
    }

    /// Ends the claim with this token with its outcome unknown: nobody runs it again until it is
    /// resolved or forgotten.
    ///
    /// # Errors
    ///
    /// [`LeaseError::Fenced`] and its siblings when the claim is no longer yours.
    pub fn park(&self, key: impl AsRef<[u8]>, token: FencingToken) -> Result<(), LeaseError> {
        self.space.handle.answer(self.space.handle.park(&self.key(key.as_ref()), token, None))
    }

    /// [`Namespace::park`] without waiting.
    pub fn park_async(&self, key: impl AsRef<[u8]>, token: FencingToken) -> Commit<(), LeaseError> {
        self.commit(self.space.handle.park(&self.key(key.as_ref()), token, None))
    }

    /// Decides a claim that nobody holds: parked, orphaned, or its lease over. Takes a new token,
    /// so that whoever still holds the old one is fenced off. Gives the receipt of a completion.
    ///
    /// # Errors
    ///
    /// [`ResolveError::InProgress`] while a lease runs; [`ResolveError::Fenced`] when the key has
    /// another token.
    pub fn resolve(
        &self,
        key: impl AsRef<[u8]>,
        token: FencingToken,
        resolution: &Resolution<'_>,
    ) -> Result<Option<Completion>, ResolveError> {
        let request = resolution.to_request();
        self.space.handle.answer(self.space.handle.resolve(
            &self.key(key.as_ref()),
            token,
            &request,
        ))
    }

    /// [`Namespace::resolve`] without waiting.
    pub fn resolve_async(
        &self,
        key: impl AsRef<[u8]>,
        token: FencingToken,
        resolution: &Resolution<'_>,
    ) -> Commit<Option<Completion>, ResolveError> {
        let request = resolution.to_request();
        self.commit(self.space.handle.resolve(&self.key(key.as_ref()), token, &request))
    }

    /// Removes a key on purpose, whatever its state, and says what it was; `None` when there was
    /// nothing. Its owner, if it has one, is told `Forgotten`. Reason and actor, up to 255 bytes
    /// each, are written to the WAL with it. A key that was in doubt ([`crate::Gap`]) is new.
    ///
    /// # Errors
    ///
    /// [`ForgetError::Full`] when there is no room to write it down.
    pub fn forget(
        &self,
        key: impl AsRef<[u8]>,
        reason: &str,
        actor: &str,
    ) -> Result<Option<KeyState>, ForgetError> {
        self.space.handle.answer(self.space.handle.forget(
            &self.key(key.as_ref()),
            reason,
            actor,
            None,
        ))
    }

    /// [`Namespace::forget`] without waiting.
    pub fn forget_async(
        &self,
        key: impl AsRef<[u8]>,
        reason: &str,
        actor: &str,
    ) -> Commit<Option<KeyState>, ForgetError> {
        self.commit(self.space.handle.forget(&self.key(key.as_ref()), reason, actor, None))
    }

    /// [`crate::Store::orphans`] of this namespace.
    ///
    /// # Errors
    ///
    /// What any call can fail with.
    pub fn orphans(&self) -> Result<Vec<Orphan>, StoreError> {
        self.space.handle.orphans(Some(self.space.state.id))
    }

    /// The key, as the engine has it.
    #[inline]
    fn key<'a>(&'a self, bytes: &'a [u8]) -> Key<'a> {
        self.space.state.key(bytes)
    }

    fn commit<T, E: From<StoreError>>(&self, answered: Answered<T, E>) -> Commit<T, E> {
        Commit::new(Arc::clone(&self.space.handle), answered)
    }
}

/// Tells claims that met another one of the same batch which one it was.
fn name_aliases(answers: &mut [Result<Claim, ClaimError>]) {
    if !answers.iter().any(|answer| matches!(answer, Ok(Claim::InProgress(_)))) {
        return;
    }
    let granted = answers.iter().enumerate().filter_map(|(at, answer)| match answer {
        Ok(Claim::Acquired(lease) | Claim::Resumed(lease)) => Some((lease.token(), at)),
        _ => None,
    });
    let granted: HashMap<FencingToken, usize> = granted.collect();
    for answer in answers {
        if let Ok(Claim::InProgress(other)) = answer {
            other.alias_of = granted.get(&other.token).copied();
        }
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Namespace").field("name", &self.space.state.name).finish_non_exhaustive()
    }
}

impl Lease {
    /// The namespace the key belongs to.
    #[must_use]
    pub fn namespace(&self) -> Namespace {
        let Space { handle, state } = self.space();
        Namespace::new(Arc::clone(handle), Arc::clone(state))
    }
}
