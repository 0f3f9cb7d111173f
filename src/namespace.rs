//! Namespaces as their users hold them: every call on a key.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::answer::{Completion, InProgress, Lookup, Once, OutcomeRef, Renewed};
use crate::claim::Claim;
use crate::commit::Commit;
use crate::engine::events::Event;
use crate::engine::namespaces::{Key, NamespaceState, OwnKey};
use crate::engine::{Answered, Settling};
use crate::error::{ClaimError, CompleteError, LeaseError, NamespaceError, StoreError};
use crate::format::scope::{self, Prefix};
use crate::handle::{Handle, SharedSpace, Space};
use crate::lease::Lease;
use crate::policy::{Policy, Quota};
use crate::request::{ClaimOptions, CompleteOptions};
use crate::stats::NamespaceStats;
use crate::types::{FencingToken, Fingerprint, SCOPE_BYTES_MAX};
use crate::wait::{ClaimWait, HeldWait};

/// What most keys with a scope fit into, without an allocation.
type KeyBuffer = SmallVec<[u8; 256]>;

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
    pub(crate) space: SharedSpace,
    /// What stands in front of its keys: of a scope.
    pub(crate) prefix: Prefix,
    /// Whether anything does.
    is_scoped: bool,
}

impl Clone for Namespace {
    /// Leases are counted by the handle that they come from: each clone has a count of its own.
    fn clone(&self) -> Self {
        let Space { handle, state } = &**self.space;
        let space = Space::share(Arc::clone(handle), Arc::clone(state));
        Self { space, prefix: self.prefix.clone(), is_scoped: self.is_scoped }
    }
}

impl Namespace {
    pub(crate) fn new(handle: Arc<Handle>, state: Arc<NamespaceState>) -> Self {
        Self::of(Space::share(handle, state), Prefix::new())
    }

    fn of(space: SharedSpace, prefix: Prefix) -> Self {
        let is_scoped = !prefix.is_empty();
        Self { space, prefix, is_scoped }
    }

    /// The keys of a scope within this namespace: of a customer, a user, an end-point. The scope, 1 to 255 bytes, is part of the
    /// identity of its keys: the same key in two scopes, or in one and in none, is two keys, and no call reaches
    /// from one to the other. It is a handle like this one, and serves for every call; nothing is registered, and there may
    /// be as many scopes as there are keys. Counted with this handle, so that it costs no allocation; clone it for a thread of its own.
    ///
    /// Policy and counts are the namespace's; quotas and rates are the namespace's and the scope's ([`crate::Store::limit_scopes`]). A scope of several parts is one of their
    /// encoding ([`crate::PartsKey`]): joined by hand, two of them may be the same.
    ///
    /// Bind the scope to who was authenticated, not to what a request says of itself. A store in which a key with a scope was ever claimed is not
    /// read by versions that know none.
    ///
    /// # Errors
    ///
    /// [`NamespaceError::ScopeLength`]; [`NamespaceError::ScopeWithinScope`] for one of a scoped handle.
    pub fn scoped(&self, scope: impl AsRef<[u8]>) -> Result<Self, NamespaceError> {
        let scope = scope.as_ref();
        if self.is_scoped {
            return Err(NamespaceError::ScopeWithinScope);
        }
        if !(1..=SCOPE_BYTES_MAX).contains(&scope.len()) {
            return Err(NamespaceError::ScopeLength { len: scope.len() });
        }
        Ok(Self::of(Arc::clone(&self.space), scope::prefix(scope)))
    }

    /// The scope of its keys, if they are of one.
    #[must_use]
    pub fn scope(&self) -> Option<&[u8]> {
        self.prefix.split_first().map(|(_, scope)| scope)
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
        NamespaceStats::of(state, &self.prefix)
    }

    /// How much of it there may be ([`crate::Store::limit`]), or of this scope ([`crate::Store::limit_scopes`]).
    pub fn quota(&self) -> Quota {
        match self.is_scoped {
            false => self.space.state.meter.quota(),
            true => self.space.state.scope_meters.quota(),
        }
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

    /// [`Namespace::claim_with`] without waiting.
    pub fn claim_async(
        &self,
        key: impl AsRef<[u8]>,
        options: &ClaimOptions,
    ) -> Commit<Claim, ClaimError> {
        self.commit(self.with_key(key.as_ref(), |key| self.start_claim(key, options)))
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
        ClaimWait::new(Arc::clone(&self.space), self.own_key(key.as_ref()), *options, timeout)
    }

    /// Waits for the claim of `holder` to have ended, for `timeout` at most, for who does not want the key himself:
    /// what has become of it a lookup tells. As a future, or with [`HeldWait::wait`].
    pub fn wait(&self, key: impl AsRef<[u8]>, holder: &InProgress, timeout: Duration) -> HeldWait {
        HeldWait::new(Arc::clone(&self.space), self.own_key(key.as_ref()), holder.token, timeout)
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
        let keys = self.keys(claims.iter().map(|(key, _)| key.as_ref()));
        let mut owned = HashSet::new();
        let answered = self.space.handle.each(
            claims,
            true,
            |at, (key, _)| self.key_of(&keys, at, key.as_ref()),
            |(key, options), named| match options.claimed_by() {
                // Who asks for a key twice in one call does not take it from himself.
                Some(owner) if owned.contains(&(key.as_ref(), owner)) => {
                    self.start_claim(named, &options.of_nobody())
                }
                Some(owner) => {
                    let answered = self.start_claim(named, options);
                    if matches!(answered.result, Ok(Claim::Acquired(_) | Claim::Resumed(_))) {
                        owned.insert((key.as_ref(), owner));
                    }
                    answered
                }
                None => self.start_claim(named, options),
            },
        );
        let mut answers = self.space.handle.answer_all(answered);
        Claim::name_aliases(&mut answers);
        answers
    }

    /// [`Namespace::once_with`] for several keys, as [`Namespace::claim_batch`] does for claims. A key
    /// that occurs twice is first and then seen.
    pub fn once_batch<K: AsRef<[u8]>>(
        &self,
        marks: &[(K, ClaimOptions)],
    ) -> Vec<Result<Once, ClaimError>> {
        let keys = self.keys(marks.iter().map(|(key, _)| key.as_ref()));
        let answered = self.space.handle.each(
            marks,
            true,
            |at, (key, _)| self.key_of(&keys, at, key.as_ref()),
            |(_, options), key| self.start_once(key, options),
        );
        self.space.handle.answer_all(answered)
    }

    /// [`Namespace::lookup`] for several keys, as [`Namespace::claim_batch`] does for claims.
    pub fn lookup_batch<K: AsRef<[u8]>>(&self, keys: &[K]) -> Vec<Result<Lookup, StoreError>> {
        let scoped = self.keys(keys.iter().map(AsRef::as_ref));
        let answered = self.space.handle.each(
            keys,
            false,
            |at, key| self.key_of(&scoped, at, key.as_ref()),
            |_, key| Settling::later(|settling| self.space.handle.lookup(key, settling)),
        );
        self.space.handle.answer_all(answered)
    }

    /// [`Namespace::complete_with`] for several keys, as [`Namespace::claim_batch`] does for claims.
    pub fn complete_batch<K: AsRef<[u8]>>(
        &self,
        completions: &[(K, FencingToken, CompleteOptions<'_>)],
    ) -> Vec<Result<Completion, CompleteError>> {
        let keys = self.keys(completions.iter().map(|(key, ..)| key.as_ref()));
        let answered = self.space.handle.each(
            completions,
            false,
            |at, (key, ..)| self.key_of(&keys, at, key.as_ref()),
            |(_, token, options), key| {
                self.space.handle.complete(key, *token, &options.to_request())
            },
        );
        self.space.handle.answer_all(answered)
    }

    /// Not for each type of key again.
    fn claim_bytes(&self, key: &[u8], options: &ClaimOptions) -> Result<Claim, ClaimError> {
        self.with_key(key, |key| Claim::ask(&self.space, key, options, &mut Settling::Now))
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
        let handle = &self.space.handle;
        self.with_key(key.as_ref(), |key| handle.once(key, options.request(), &mut Settling::Now))
    }

    /// [`Namespace::once_with`] without waiting.
    pub fn once_async(
        &self,
        key: impl AsRef<[u8]>,
        options: &ClaimOptions,
    ) -> Commit<Once, ClaimError> {
        self.commit(self.with_key(key.as_ref(), |key| self.start_once(key, options)))
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
        self.with_key(key, |key| self.space.handle.lookup(key, &mut Settling::Now))
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
        self.with_key(key.as_ref(), |key| self.space.handle.lookup_with(key, show))
    }

    /// Extends the lease of the claim with this token to the policy's lease, from now on; never
    /// shortens it. Accepted
    /// as long as no newer claim took over and the claim is not forgotten, however late. Never
    /// waits for the disk: a power cut may leave the deadline of the renewal before, or of the claim. In `Sync` mode it is on the
    /// disk some 100 ms later. After a crash the claim's owner is mostly gone anyway; who relies on
    /// [`KeepLease`](crate::OnOrphan::KeepLease) flushes.
    ///
    /// # Errors
    ///
    /// [`LeaseError::Fenced`] and its siblings when the claim is no longer yours.
    pub fn renew(&self, key: impl AsRef<[u8]>, token: FencingToken) -> Result<Renewed, LeaseError> {
        self.with_key(key.as_ref(), |key| self.space.handle.renew(key, token, None))
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
        self.with_key(key.as_ref(), |key| self.space.handle.renew(key, token, Some(lease)))
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
        let handle = &self.space.handle;
        handle.answer(self.with_key(key.as_ref(), |key| handle.complete(key, token, &request)))
    }

    /// [`Namespace::complete_with`] without waiting.
    pub fn complete_async(
        &self,
        key: impl AsRef<[u8]>,
        token: FencingToken,
        options: &CompleteOptions<'_>,
    ) -> Commit<Completion, CompleteError> {
        let request = options.to_request();
        self.commit(
            self.with_key(key.as_ref(), |key| self.space.handle.complete(key, token, &request)),
        )
    }

    /// Gives the claim with this token back without an outcome: the next claim is a first attempt.
    /// For work that surely did not happen.
    ///
    /// # Errors
    ///
    /// [`LeaseError::Fenced`] and its siblings when the claim is no longer yours.
    pub fn release(&self, key: impl AsRef<[u8]>, token: FencingToken) -> Result<(), LeaseError> {
        let handle = &self.space.handle;
        handle.answer(self.with_key(key.as_ref(), |key| handle.release(key, token, None)))
    }

    /// [`Namespace::release`] without waiting.
    pub fn release_async(
        &self,
        key: impl AsRef<[u8]>,
        token: FencingToken,
    ) -> Commit<(), LeaseError> {
        self.commit(self.with_key(key.as_ref(), |key| self.space.handle.release(key, token, None)))
    }

    /// Ends the claim with this token with its outcome unknown: nobody runs it again until it is
    /// resolved or forgotten.
    ///
    /// # Errors
    ///
    /// [`LeaseError::Fenced`] and its siblings when the claim is no longer yours.
    pub fn park(&self, key: impl AsRef<[u8]>, token: FencingToken) -> Result<(), LeaseError> {
        let handle = &self.space.handle;
        handle.answer(self.with_key(key.as_ref(), |key| handle.park(key, token, None)))
    }

    /// [`Namespace::park`] without waiting.
    pub fn park_async(&self, key: impl AsRef<[u8]>, token: FencingToken) -> Commit<(), LeaseError> {
        self.commit(self.with_key(key.as_ref(), |key| self.space.handle.park(key, token, None)))
    }

    /// Calls with the key, as the engine has it.
    #[inline(always)]
    pub(crate) fn with_key<R>(&self, bytes: &[u8], call: impl FnOnce(&Key<'_>) -> R) -> R {
        let mut stored = KeyBuffer::new();
        // One call, whatever the key is: two copies of what is called are slower than one.
        let key = if self.is_scoped {
            self.scoped_key(bytes, &mut stored)
        } else {
            self.space.state.key(bytes)
        };
        call(&key)
    }

    #[inline(never)]
    fn scoped_key<'a>(&'a self, bytes: &[u8], stored: &'a mut KeyBuffer) -> Key<'a> {
        stored.extend_from_slice(&self.prefix);
        stored.extend_from_slice(bytes);
        self.space.state.scoped_key(stored)
    }

    fn own_key(&self, bytes: &[u8]) -> OwnKey {
        self.with_key(bytes, OwnKey::of)
    }

    /// The keys of a batch with the scope in front; nothing without one.
    fn keys<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) -> Vec<Box<[u8]>> {
        if !self.is_scoped {
            return Vec::new();
        }
        keys.map(|key| [&self.prefix, key].concat().into()).collect()
    }

    /// The key at this place of a batch.
    #[inline]
    fn key_of<'a>(&'a self, scoped: &'a [Box<[u8]>], at: usize, bytes: &'a [u8]) -> Key<'a> {
        match scoped.get(at) {
            None => self.space.state.key(bytes),
            Some(stored) => self.space.state.scoped_key(stored),
        }
    }

    pub(crate) fn commit<T, E: From<StoreError>>(&self, answered: Answered<T, E>) -> Commit<T, E> {
        Commit::new(Arc::clone(&self.space.handle), answered)
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Namespace").field("name", &self.space.state.name).finish_non_exhaustive()
    }
}

impl Lease {
    /// The namespace the key belongs to, and the scope, if it has one.
    #[must_use]
    pub fn namespace(&self) -> Namespace {
        let (Space { handle, state }, prefix) = self.space();
        let prefix = Prefix::from_slice(prefix);
        Namespace::of(Space::share(Arc::clone(handle), Arc::clone(state)), prefix)
    }
}
