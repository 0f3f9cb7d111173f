//! Answers: what a call says about a key, as plain data.
//!
//! Points in time are the store's (see `docs/TIME.md`): the wall clock at open, continued by the
//! monotonic clock. Every answer carries `guaranteed_until`: until then the store remembers what
//! the answer rests on, whatever crashes; `None` is for ever.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::sys::kept::KeptBytes;
use crate::types::{Epoch, FencingToken, Reference, Timestamp};

/// Public read access to the fields of an answer.
macro_rules! accessors {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $self:ident => $value:expr;)*) => {
        $($(#[$doc])* #[must_use] pub fn $name(&$self) -> $type { $value })*
    };
}

/// The body of an outcome.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Body<'a> {
    /// The bytes that were given, unchanged.
    Bytes(&'a [u8]),
    /// None was given.
    None,
    /// `len` bytes were given, more than could be kept: more than half a segment, or more than the
    /// disk had room for.
    TooLarge {
        /// Length of what was given, in bytes.
        len: u32,
    },
    /// The replay window is over, or the bytes were damaged and the store salvaged; that the key was
    /// completed is still known.
    Expired,
}

/// How a key was completed: what `complete` stored, and what every later claim gets back.
///
/// A body of [`Outcome::KEPT_BYTES_MIN`] and more is not copied: it is shown where it lies in the store. While
/// such an outcome, or a clone of it, exists, the segment that it lies in is not used again, and a store that
/// is closed keeps its directory locked. [`Outcome::detached`] ends that. In a forked child such a body is
/// [`Body::Expired`].
#[derive(Clone)]
pub struct Outcome {
    pub(crate) body: StoredBody,
    pub(crate) about: AboutOutcome,
}

/// An [`Outcome`] where it lies in the store, for [`crate::Namespace::lookup_with`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct OutcomeRef<'a> {
    pub(crate) body: Body<'a>,
    pub(crate) about: AboutOutcome,
}

/// What there is to say of an outcome besides its body.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct AboutOutcome {
    pub(crate) code: u16,
    pub(crate) reference: Option<Reference>,
    pub(crate) token: FencingToken,
    pub(crate) first_token: FencingToken,
    pub(crate) attempt: u16,
    pub(crate) at: Timestamp,
    pub(crate) age: Duration,
    pub(crate) expires: Timestamp,
}

/// A body on its way out of the store.
#[derive(Clone)]
pub(crate) enum StoredBody {
    Bytes(Box<[u8]>),
    /// Where it lies.
    Kept(KeptBytes),
    None,
    TooLarge {
        len: u32,
    },
    Expired,
}

impl StoredBody {
    #[inline]
    pub(crate) fn copy_of(body: Body<'_>) -> Self {
        match body {
            Body::Bytes(bytes) => Self::Bytes(bytes.into()),
            Body::None => Self::None,
            Body::TooLarge { len } => Self::TooLarge { len },
            Body::Expired => Self::Expired,
        }
    }
}

impl Outcome {
    accessors! {
        /// What is left of the body.
        body: Body<'_> = self => match &self.body {
            StoredBody::Bytes(bytes) => Body::Bytes(bytes),
            StoredBody::Kept(bytes) => bytes.bytes().map_or(Body::Expired, Body::Bytes),
            StoredBody::None => Body::None,
            StoredBody::TooLarge { len } => Body::TooLarge { len: *len },
            StoredBody::Expired => Body::Expired,
        };
    }
}

impl Outcome {
    /// Length in bytes from which on a body is not copied.
    pub const KEPT_BYTES_MIN: usize = 8 << 10;

    /// The same, with a copy of the body: it keeps nothing of the store.
    #[must_use]
    pub fn detached(self) -> Self {
        let Self { body, about } = self;
        let body = match body {
            StoredBody::Kept(bytes) => match bytes.bytes() {
                Some(bytes) => StoredBody::Bytes(bytes.into()),
                None => StoredBody::Expired,
            },
            other => other,
        };
        Self { body, about }
    }
}

impl PartialEq for Outcome {
    fn eq(&self, other: &Self) -> bool {
        (self.body(), &self.about) == (other.body(), &other.about)
    }
}

impl Eq for Outcome {}

impl<'a> OutcomeRef<'a> {
    accessors! {
        /// What is left of the body.
        body: Body<'a> = self => self.body;
        /// The same, to keep.
        to_outcome: Outcome = self => Outcome {
            body: StoredBody::copy_of(self.body),
            about: self.about,
        };
    }
}

/// What both forms of an outcome tell.
macro_rules! about_outcome {
    ($($type:ty),*) => {
        $(impl $type {
            accessors! {
                /// The caller's own number; 0 unless given.
                code: u16 = self => self.about.code;
                /// The caller's own sixteen bytes, given with the claim or with the completion.
                reference: Option<Reference> = self => self.about.reference;
                /// The token under which the key was completed.
                token: FencingToken = self => self.about.token;
                /// The token of the first attempt.
                first_token: FencingToken = self => self.about.first_token;
                /// Which attempt it was, counted from 1.
                attempt: u16 = self => self.about.attempt;
                /// When the key was completed.
                completed_at: Option<SystemTime> = self => self.about.at.to_system();
                /// How long ago that was, when the answer was made.
                age: Duration = self => self.about.age;
                /// Until when the key is remembered.
                guaranteed_until: Option<SystemTime> = self => self.about.expires.to_system();
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct("Outcome")
                    .field("code", &self.about.code)
                    .field("token", &self.about.token)
                    .field("attempt", &self.about.attempt)
                    .finish_non_exhaustive()
            }
        })*
    };
}

about_outcome!(Outcome, OutcomeRef<'_>);

/// Somebody else holds the key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InProgress {
    pub(crate) token: FencingToken,
    pub(crate) attempt: u16,
    pub(crate) at: Timestamp,
    pub(crate) deadline: Timestamp,
    pub(crate) lease_left: Duration,
    pub(crate) expires: Timestamp,
    pub(crate) reference: Option<Reference>,
    pub(crate) alias_of: Option<usize>,
}

impl InProgress {
    accessors! {
        /// In a batch: which other claim of it, counted from 0, holds the key.
        alias_of: Option<usize> = self => self.alias_of;
        /// The holder's token.
        token: FencingToken = self => self.token;
        /// Which attempt the holder's is, counted from 1.
        attempt: u16 = self => self.attempt;
        /// When the lease was granted or last renewed.
        since: Option<SystemTime> = self => self.at.to_system();
        /// How much of the lease was left when the answer was made: the time after which a retry
        /// makes sense.
        lease_left: Duration = self => self.lease_left;
        /// When the lease ends.
        deadline: Option<SystemTime> = self => self.deadline.to_system();
        /// Until when the claim is remembered.
        guaranteed_until: Option<SystemTime> = self => self.expires.to_system();
        /// The holder's own sixteen bytes.
        reference: Option<Reference> = self => self.reference;
    }
}

/// Why a claim ended without an outcome.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum EndCause {
    /// Its lease ran out.
    LeaseEnded,
    /// The process that held the store ended before the claim did.
    Orphaned,
    /// Its owner parked it.
    Parked,
}

/// The claim that came before this one, and did not finish.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Previous {
    pub(crate) token: FencingToken,
    pub(crate) at: Timestamp,
    pub(crate) cause: EndCause,
}

impl Previous {
    accessors! {
        /// Its token, now refused.
        token: FencingToken = self => self.token;
        /// When it was granted or last renewed.
        at: Option<SystemTime> = self => self.at.to_system();
        /// Why it ended.
        cause: EndCause = self => self.cause;
    }
}

/// The key was claimed and not finished, and nobody holds it: the next claim takes over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lapsed {
    pub(crate) token: FencingToken,
    pub(crate) attempt: u16,
    pub(crate) at: Timestamp,
    pub(crate) cause: EndCause,
    pub(crate) expires: Timestamp,
    pub(crate) reference: Option<Reference>,
}

impl Lapsed {
    accessors! {
        /// The last holder's token; it is accepted until a newer claim takes over.
        token: FencingToken = self => self.token;
        /// Which attempt it was, counted from 1.
        attempt: u16 = self => self.attempt;
        /// When the lease was granted or last renewed.
        since: Option<SystemTime> = self => self.at.to_system();
        /// Why nobody holds the key.
        cause: EndCause = self => self.cause;
        /// Until when the attempt is remembered; then the key is new again.
        guaranteed_until: Option<SystemTime> = self => self.expires.to_system();
        /// The last holder's own sixteen bytes.
        reference: Option<Reference> = self => self.reference;
    }
}

/// The key was claimed once and its outcome is unknown: nobody runs it until it is resolved or
/// forgotten.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parked {
    pub(crate) token: FencingToken,
    pub(crate) attempt: u16,
    pub(crate) at: Timestamp,
    pub(crate) cause: EndCause,
    pub(crate) reference: Option<Reference>,
}

impl Parked {
    accessors! {
        /// The token to resolve it with.
        token: FencingToken = self => self.token;
        /// Which attempt it was, counted from 1.
        attempt: u16 = self => self.attempt;
        /// Since when: the end of the lease, the open that found it orphaned, or the call.
        since: Option<SystemTime> = self => self.at.to_system();
        /// Why it is parked.
        cause: EndCause = self => self.cause;
        /// Until when it is remembered: for ever.
        guaranteed_until: Option<SystemTime> = self => None;
        /// The holder's own sixteen bytes.
        reference: Option<Reference> = self => self.reference;
    }
}

/// What a key is, in one word.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum KeyState {
    /// Somebody holds it.
    InProgress,
    /// Claimed, not finished, held by nobody.
    Lapsed,
    /// Finished.
    Completed,
    /// Claimed once, outcome unknown.
    Parked,
}

/// The key is known, with another fingerprint: the caller reuses a key for other work. Nothing of
/// the stored outcome is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mismatch {
    pub(crate) state: KeyState,
    pub(crate) token: FencingToken,
    pub(crate) at: Timestamp,
    pub(crate) expires: Timestamp,
    pub(crate) reference: Option<Reference>,
}

impl Mismatch {
    accessors! {
        /// What became of the work the key was first used for.
        state: KeyState = self => self.state;
        /// Its token.
        token: FencingToken = self => self.token;
        /// Since when it is in that state.
        since: Option<SystemTime> = self => self.at.to_system();
        /// Until when the key stays bound to its fingerprint.
        guaranteed_until: Option<SystemTime> = self => self.expires.to_system();
        /// The sixteen bytes that the first user gave.
        reference: Option<Reference> = self => self.reference;
    }
}

/// The request is older than what the store remembers: had it been completed at once, the key would be forgotten by now. Nothing
/// is known of the key, and nobody is granted it: it may have been done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutsideWindow {
    pub(crate) first_sent: Timestamp,
    pub(crate) remembered_since: Timestamp,
}

impl OutsideWindow {
    accessors! {
        /// When the request was first sent, as the caller said.
        first_sent: Option<SystemTime> = self => self.first_sent.to_system();
        /// A request that was first sent at this time, or later, is remembered.
        remembered_since: Option<SystemTime> = self => self.remembered_since.to_system();
    }
}

/// What `lookup` finds. `lookup_with` shows the outcome as an [`OutcomeRef`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "a lookup changes nothing; its answer is all there is"]
#[non_exhaustive]
pub enum Lookup<O = Outcome> {
    /// Never seen, released, or forgotten.
    Absent,
    /// Somebody holds it.
    InProgress(InProgress),
    /// Claimed and not finished, and nobody holds it.
    Lapsed(Lapsed),
    /// Finished.
    Completed(O),
    /// Claimed once, outcome unknown.
    Parked(Parked),
    /// Nothing is known that would settle it, and the store was salvaged: what was lost may have been
    /// about this key.
    InDoubt(Gap),
}

/// What `once` answers. It marks *before* the work: a caller that dies after `First` leaves the
/// work undone for ever (at most once).
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "only `First` may do the work"]
#[non_exhaustive]
pub enum Once {
    /// Never seen before, and now marked: do the work.
    First(First),
    /// Marked or completed before.
    Seen(Outcome),
    /// Somebody holds a claim on it.
    InProgress(InProgress),
    /// Claimed once, outcome unknown.
    Parked(Parked),
    /// Known, with another fingerprint.
    Mismatch(Mismatch),
    /// The store was salvaged, and what was lost may have been about this key.
    InDoubt(Gap),
    /// The request is older than what is remembered.
    OutsideWindow(OutsideWindow),
}

/// The first sight of a key by `once`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct First {
    pub(crate) token: FencingToken,
    pub(crate) attempt: u16,
    pub(crate) previous: Option<Previous>,
    pub(crate) expires: Timestamp,
}

impl First {
    accessors! {
        /// The token the key is now completed under.
        token: FencingToken = self => self.token;
        /// 1, or more when it took over from claims that did not finish.
        attempt: u16 = self => self.attempt;
        /// The claim it took over from.
        previous: Option<Previous> = self => self.previous;
        /// Until when the key is remembered.
        guaranteed_until: Option<SystemTime> = self => self.expires.to_system();
    }
}

/// A lease that was extended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Renewed {
    pub(crate) deadline: Timestamp,
    pub(crate) lease_left: Duration,
    pub(crate) late_by: Option<Duration>,
    pub(crate) expires: Timestamp,
}

impl Renewed {
    accessors! {
        /// The new end of the lease.
        deadline: Option<SystemTime> = self => self.deadline.to_system();
        /// How long that is from now.
        lease_left: Duration = self => self.lease_left;
        /// How long the old lease had been over. Nobody took the key meanwhile.
        late_by: Option<Duration> = self => self.late_by;
        /// Until when the claim is remembered.
        guaranteed_until: Option<SystemTime> = self => self.expires.to_system();
    }
}

/// What became of the body that a completion was given.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum BodyKept {
    /// It is kept, byte for byte.
    Kept,
    /// None was given.
    None,
    /// It is longer than the store keeps: half a segment, at most 16 MiB. Length and digest are.
    TooLarge,
    /// The disk has no room for it. Length and digest are kept.
    NoRoom,
    /// The replay window is zero. Length and digest are kept.
    NoReplay,
}

/// The receipt of a completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    pub(crate) token: FencingToken,
    pub(crate) kept: BodyKept,
    pub(crate) expires: Timestamp,
}

impl Completion {
    accessors! {
        /// The token the key is completed under.
        token: FencingToken = self => self.token;
        /// What became of the body.
        body: BodyKept = self => self.kept;
        /// Until when the key is remembered.
        guaranteed_until: Option<SystemTime> = self => self.expires.to_system();
    }
}

/// A claim whose owner is known to be dead, see [`crate::Store::orphans`].
#[derive(Clone, PartialEq, Eq)]
pub struct Orphan {
    pub(crate) namespace: String,
    /// Empty: none.
    pub(crate) scope: Vec<u8>,
    pub(crate) key: Vec<u8>,
    pub(crate) state: KeyState,
    pub(crate) token: FencingToken,
    pub(crate) attempt: u16,
    pub(crate) at: Timestamp,
    pub(crate) expires: Timestamp,
    pub(crate) reference: Option<Reference>,
}

impl Orphan {
    accessors! {
        /// The namespace's name.
        namespace: &str = self => &self.namespace;
        /// The scope that the key is of ([`crate::Namespace::scoped`]), if it is of one.
        scope: Option<&[u8]> = self => (!self.scope.is_empty()).then_some(&self.scope[..]);
        /// The key.
        key: &[u8] = self => &self.key;
        /// `Lapsed`: the next claim takes over. `Parked`: it waits to be resolved. `InProgress`:
        /// its lease was kept and runs on.
        state: KeyState = self => self.state;
        /// The token to resolve it with.
        token: FencingToken = self => self.token;
        /// Which attempt it was, counted from 1.
        attempt: u16 = self => self.attempt;
        /// When the lease was granted or last renewed; when it was parked.
        since: Option<SystemTime> = self => self.at.to_system();
        /// Until when it is remembered.
        guaranteed_until: Option<SystemTime> = self => self.expires.to_system();
        /// The owner's own sixteen bytes.
        reference: Option<Reference> = self => self.reference;
    }
}

impl fmt::Debug for Orphan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Orphan")
            .field("namespace", &self.namespace)
            .field("state", &self.state)
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

/// Records that salvage could not read ([`crate::Store::salvage`]). Any key may have been in them.
///
/// A key of which nothing is known, or only a claim that nobody holds, is *in doubt* until the gap
/// is over: nobody is granted it. An operator ends the doubt for one key ([`crate::Namespace::forget`],
/// [`crate::Namespace::resolve`]) or for all ([`crate::Store::accept_gap`]); a caller ends it for
/// one call by saying that the request was first sent after the gap
/// ([`crate::ClaimOptions::first_sent`]).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gap {
    pub(crate) id: u32,
    /// No token of the lost records is of a later epoch.
    pub(crate) epoch: Epoch,
    pub(crate) from: Timestamp,
    pub(crate) to: Timestamp,
    pub(crate) until: Timestamp,
    pub(crate) bytes: u64,
    pub(crate) what: Arc<str>,
    pub(crate) acceptance: Option<Acceptance>,
}

impl Gap {
    accessors! {
        /// Its number in this store.
        id: u32 = self => self.id;
        /// Which file, where, and why.
        what: &str = self => &self.what;
        /// How many bytes were lost; 0 when that is not known.
        bytes: u64 = self => self.bytes;
        /// What was lost was written at or after this; `None` when that is not known.
        from: Option<SystemTime> = self => {
            (self.from != Timestamp::default()).then(|| self.from.to_system()).flatten()
        };
        /// What was lost was written before this: when the store was salvaged.
        to: Option<SystemTime> = self => self.to.to_system();
        /// When the last record that was lost would have said nothing any more. `None` when that is
        /// not known: the gap lasts until it is accepted.
        guaranteed_until: Option<SystemTime> = self => self.until.to_system();
        /// Who accepted it, if somebody did.
        acceptance: Option<&Acceptance> = self => self.acceptance.as_ref();
    }
}

/// Somebody's word that a gap does not matter any more, see [`crate::Store::accept_gap`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acceptance {
    pub(crate) at: Timestamp,
    pub(crate) actor: String,
    pub(crate) reason: String,
}

impl Acceptance {
    accessors! {
        /// When.
        at: Option<SystemTime> = self => self.at.to_system();
        /// Who.
        actor: &str = self => &self.actor;
        /// Why.
        reason: &str = self => &self.reason;
    }
}
