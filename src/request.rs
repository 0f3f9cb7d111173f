//! What a claim, and its end, are asked with.

use std::time::{Duration, SystemTime};

use crate::engine::CallDurability;
use crate::engine::claims::ClaimRequest;
use crate::engine::exits::CompleteRequest;
use crate::engine::operator::ResolveRequest;
use crate::types::{Fingerprint, OwnerId, Reference, Timestamp};

/// What a claim, or `once`, asks for beyond the key. What is left out follows the namespace's
/// policy and the store's durability.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[must_use = "options do nothing until they are given to a call"]
pub struct ClaimOptions {
    request: ClaimRequest,
}

impl ClaimOptions {
    /// Everything as the policy has it.
    pub fn new() -> Self {
        Self::default()
    }

    /// As the policy has it, with this fingerprint if there is one.
    pub(crate) fn of(fingerprint: Option<Fingerprint>) -> Self {
        Self { request: ClaimRequest { fingerprint, ..ClaimRequest::default() } }
    }

    /// The digest of the request's payload. It binds from the first claim until the key is
    /// released or forgotten.
    pub fn fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        self.request.fingerprint = Some(fingerprint);
        self
    }

    /// Sixteen bytes that come with every later answer about the key.
    pub fn reference(mut self, reference: Reference) -> Self {
        self.request.reference = Some(reference);
        self
    }

    /// Who claims: the same owner, however often he is started again. While he holds the key, a claim of his is answered [`crate::Claim::Resumed`],
    /// with a lease of its own from now on, under a new token; what still has the old one is fenced off. Anybody else is told that it is in progress. `once`
    /// takes none.
    ///
    /// Give one only if there is at most one such owner at work, or if what he does is fenced by the token: a second process of the
    /// same name takes the key from the first.
    pub fn owner(mut self, owner: OwnerId) -> Self {
        self.request.owner = Some(owner);
        self
    }

    /// The lease, from 100 ms to the dedupe window. `once` takes none.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.request.lease = Some(lease);
        self
    }

    /// How long `once` remembers the key, up to thirty years. A claim's window counts from its
    /// completion, see [`CompleteOptions::dedupe_ttl`].
    pub fn dedupe_ttl(mut self, ttl: Duration) -> Self {
        self.request.dedupe_ttl = Some(ttl);
        self
    }

    /// Acknowledges when the change survives the end of the process.
    pub fn buffered(mut self) -> Self {
        self.request.durability = Some(CallDurability::Buffered);
        self
    }

    /// Acknowledges when the change survives power loss.
    pub fn sync(mut self) -> Self {
        self.request.durability = Some(CallDurability::Sync);
        self
    }

    /// When the request was sent for the first time, retries being one request, by a clock that
    /// agrees with the store's. A request that was first sent after a gap is not in doubt for it
    /// ([`crate::Gap`]), unless the store knows the key from before. One of which nothing is known, and that was first sent
    /// longer ago than the namespace's dedupe window, is [`crate::OutsideWindow`]: what was completed at once with the window of the
    /// policy may be forgotten by now. So it is for one that was sent before the window was made longer, by the shorter one (completions that had read the
    /// old policy are taken to be written within a minute). What a completion asked for ([`CompleteOptions::dedupe_ttl`]) is not known here.
    pub fn first_sent(mut self, at: SystemTime) -> Self {
        self.request.first_sent = Some(Timestamp::from_system(at));
        self.request.is_sent_by_key = false;
        self
    }

    /// When the request was first sent, as its key says: a UUID of version 7 holds the time at which it was made. One that was made longer ago than the
    /// dedupe window, and of which nothing is known, is [`crate::OutsideWindow`], as with [`ClaimOptions::first_sent`]. Other versions say nothing.
    ///
    /// It is the word of whoever made the key, whose clock may be fast: it refuses a request, and takes none out of doubt ([`crate::Gap`]).
    #[cfg(feature = "uuid")]
    pub fn first_sent_of(mut self, key: uuid::Uuid) -> Self {
        if key.get_version_num() == 7 && key.get_variant() == uuid::Variant::RFC4122 {
            // The upper 48 bits, in milliseconds.
            self.request.first_sent = Some(Timestamp::from_ms((key.as_u128() >> 80) as u64));
            self.request.is_sent_by_key = true;
        }
        self
    }

    pub(crate) fn claimed_by(&self) -> Option<OwnerId> {
        self.request.owner
    }

    /// The same, as anybody.
    pub(crate) fn of_nobody(mut self) -> Self {
        self.request.owner = None;
        self
    }

    /// The same, asked again by a call that waits.
    pub(crate) fn again(mut self) -> Self {
        self.request.is_again = true;
        self
    }

    #[inline]
    pub(crate) fn request(&self) -> &ClaimRequest {
        &self.request
    }
}

/// What a completion stores. Body, code and reference are opaque to the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[must_use = "options do nothing until they are given to a call"]
pub struct CompleteOptions<'a> {
    body: Option<&'a [u8]>,
    code: u16,
    reference: Option<Reference>,
    replay_ttl: Option<Duration>,
    dedupe_ttl: Option<Duration>,
    durability: Option<CallDurability>,
}

impl<'a> CompleteOptions<'a> {
    /// An outcome without a body.
    pub fn new() -> Self {
        Self::default()
    }

    /// An outcome with a body, kept up to half a segment and at most 16 MiB. A longer one, or one
    /// for which the disk has no room, is left out, and the receipt says so.
    pub fn body(body: &'a [u8]) -> Self {
        Self { body: Some(body), ..Self::default() }
    }

    /// A number of your own: a status code, say. Default 0.
    pub fn code(mut self, code: u16) -> Self {
        self.code = code;
        self
    }

    /// Sixteen bytes that come with every later answer, in place of the claim's.
    pub fn reference(mut self, reference: Reference) -> Self {
        self.reference = Some(reference);
        self
    }

    /// How long the body is kept, at most the dedupe window.
    pub fn replay_ttl(mut self, ttl: Duration) -> Self {
        self.replay_ttl = Some(ttl);
        self
    }

    /// How long the key is remembered, up to thirty years.
    pub fn dedupe_ttl(mut self, ttl: Duration) -> Self {
        self.dedupe_ttl = Some(ttl);
        self
    }

    /// Acknowledges when the change survives the end of the process.
    pub fn buffered(mut self) -> Self {
        self.durability = Some(CallDurability::Buffered);
        self
    }

    /// Acknowledges when the change survives power loss.
    pub fn sync(mut self) -> Self {
        self.durability = Some(CallDurability::Sync);
        self
    }

    pub(crate) fn to_request(self) -> CompleteRequest<'a> {
        let Self { body, code, reference, replay_ttl, dedupe_ttl, durability } = self;
        CompleteRequest { body, code, reference, replay_ttl, dedupe_ttl, durability }
    }
}

/// How a claim that nobody holds ended after all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Resolution<'a> {
    /// The work was done, with this outcome.
    Completed(CompleteOptions<'a>),
    /// The work was not done: the next claim is a first attempt.
    NotDone,
}

impl<'a> Resolution<'a> {
    pub(crate) fn to_request(self) -> ResolveRequest<'a> {
        match self {
            Self::Completed(options) => ResolveRequest::Completed(options.to_request()),
            Self::NotDone => ResolveRequest::NotDone(None),
        }
    }
}
