//! Erasing: what was forgotten leaves the disk.
//!
//! ```text
//! forgotten, durably -> written down who and why -> finding: segments that hold any of it leave early -> none does
//!   -> finding, once more: its forgets are not copied any more, and those that hold them leave -> none does
//!   -> scrubbing: zeros over what earlier lives of segments have left -> a round
//! ```
//!
//! Segments leave as ever (`expiry`), which is why nothing comes back, whenever the process ends. A forget goes when no other record
//! of its key that is older can be read after any crash: each segment that held one has got its next header, durably (R5). Copies that
//! are made meanwhile lie in segments that are looked at, because all that were active are sealed before each look, and
//! none is emptied or gets its next header while it lasts ([`Erasing::is_looking`]).
//!
//! It is driven by the call that asks for it, look by look, so that whoever maintains the store goes on in between.
//!
//! Invariants
//! - X1  A forget is left out of a copy only when all other records of its key that are not newer are gone from the disk.
//! - X2  When it is over, no file has a byte of a record that was forgotten before it began, or of a copy of one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use super::expiry::Expiry;
use super::forget_all::Belonging;
use super::namespaces::{Key, NamespaceState};
use super::operator::Audit;
use super::shard::Tokens;
use super::state::Standing;
use crate::erasure::{Erasable, Erased, Erasure};
use crate::error::{EraseError, StoreError};
use crate::format::index::Entry;
use crate::format::names::{Entry as NamesEntry, ErasureEntry};
use crate::format::record::Kind;
use crate::format::record_ref::RecordRef;
use crate::sys::pin::Pin;
use crate::types::{KeyHash, NamespaceId, SegmentId};
use crate::wal::scrub::Sealing;
use crate::wal::segments::Segment;
use crate::wal::stream::SealedSegment;

/// How long it is looked, or written over, while nobody else maintains the store.
const SLICE: Duration = Duration::from_millis(5);
/// How long the caller maintains the store at a time, and waits when there is nothing to do.
const LOOK: Duration = Duration::from_millis(20);
const PAUSE: Duration = Duration::from_millis(1);
/// Where there are too few segments to go on with, the store is made to grow so often.
const GROW_EVERY: Duration = Duration::from_secs(1);

/// What is erased, and how far that is.
#[derive(Debug)]
pub(super) struct Erasing {
    namespace: NamespaceId,
    /// Of all keys that begin with this, a scope's or none; or of the one key that is this.
    bytes: Box<[u8]>,
    /// Of the one key.
    hash: Option<KeyHash>,
    /// Of each shard, what was given out when all of it was forgotten. What is newer is not meant.
    tokens: Box<[Tokens]>,
    stage: Stage,
    /// Whether the forgets go, too (X1).
    drops_forgets: bool,
    /// Sealed segments that are still to be looked at, or to have their gaps written over.
    unseen: Vec<Unseen>,
    /// Prepared segments that are still to be written over.
    prepared: Vec<Arc<Segment>>,
    /// Whether this look has found any.
    has_found: bool,
    /// Segments of completions that hold any of it and have not left, by their numbers.
    kept: BTreeSet<u64>,
    /// Segments that are not written over yet, and held some of it, or may have.
    awaited: BTreeSet<SegmentId>,
    /// Segments of claims below this are to leave.
    claims_before: u64,
    /// How many held any of it, so far.
    segments: u64,
    /// When the store was last made to grow for it.
    grown_at: Option<Duration>,
}

#[derive(Debug)]
struct Unseen {
    segment: SealedSegment,
    /// Its number, if it is one of completions that have time.
    kept: Option<u64>,
    /// Whether its records can still be found.
    is_found: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// What is active is sealed before a look.
    Settling,
    /// Which segments hold any of it.
    Finding,
    /// None does but for those that were leaving.
    Leaving,
    /// Prepared segments are written over.
    Scrubbing,
    /// The gaps of sealed ones are.
    ScrubbingGaps,
}

impl Erasing {
    fn is_key(&self) -> bool {
        self.hash.is_some()
    }

    /// Whether the record is of a key that is erased, and no newer than that.
    fn concerns(&self, record: RecordRef<'_>, shard: usize) -> bool {
        let is_of_it = if self.is_key() {
            record.namespace() == self.namespace && record.key() == &*self.bytes
        } else {
            Belonging { namespace: self.namespace, prefix: &self.bytes }.holds(record)
        };
        is_of_it && self.tokens[shard].have_given(record.token())
    }

    /// The same of an entry, as far as it can tell.
    fn may_concern(&self, entry: &Entry) -> bool {
        match self.hash {
            Some(hash) => entry.key_hash == hash && entry.namespace == self.namespace,
            None => entry.namespace.unscoped() == self.namespace,
        }
    }

    /// A segment is written over: its next header is durable.
    pub(super) fn note_gone(&mut self, id: SegmentId) {
        self.awaited.remove(&id);
    }

    /// Whether all segments stay what they are meanwhile: none is emptied, and none gets its next header.
    pub(super) fn is_looking(&self) -> bool {
        matches!(self.stage, Stage::Finding | Stage::Scrubbing | Stage::ScrubbingGaps)
    }

    /// Gives a look up, or the zeros: what has to go on goes on.
    fn look_again(&mut self) {
        (self.unseen, self.prepared) = (Vec::new(), Vec::new());
        self.stage = match self.stage {
            Stage::Settling | Stage::Finding => Stage::Settling,
            Stage::Leaving | Stage::Scrubbing | Stage::ScrubbingGaps => Stage::Leaving,
        };
    }

    pub(super) fn claims_before(&self) -> u64 {
        self.claims_before
    }
}

impl Engine {
    /// Forgets a key and takes what it left off the disk.
    pub(crate) fn erase(
        &self,
        key: &Key<'_>,
        reason: &str,
        actor: &str,
        timeout: Duration,
    ) -> Result<Erased, EraseError> {
        let until = self.timeline.monotonic().saturating_add(timeout);
        self.refuse_erasing(reason, actor)?;
        let forgot = self.answer(self.forget(key, reason, actor, None))?;
        let keys = u64::from(forgot.is_some());
        self.erase_forgotten(
            (key.number, key.bytes, Some(key.hash)),
            (key.namespace, Erasable::Key, keys),
            (reason, actor),
            until,
        )
    }

    /// The same for all keys of a namespace, or of those with this in front.
    pub(crate) fn erase_all(
        &self,
        namespace: &NamespaceState,
        prefix: &[u8],
        reason: &str,
        actor: &str,
        timeout: Duration,
    ) -> Result<Erased, EraseError> {
        let until = self.timeline.monotonic().saturating_add(timeout);
        self.refuse_erasing(reason, actor)?;
        let keys = self.answer(self.forget_all(namespace, prefix, reason, actor))?;
        let what = if prefix.is_empty() { Erasable::Namespace } else { Erasable::Scope };
        self.erase_forgotten(
            (namespace.id, prefix, None),
            (namespace, what, keys),
            (reason, actor),
            until,
        )
    }

    /// What was erased, the latest last.
    pub(crate) fn erasures(&self) -> Vec<Erasure> {
        let named = |entry: &ErasureEntry| {
            let namespace = self.namespaces.by_id(entry.namespace)?.name.clone();
            let ErasureEntry { what, at, keys, actor, reason, .. } = entry.clone();
            Some(Erasure { namespace, what, at, keys, actor, reason })
        };
        self.erasures.read().iter().filter_map(named).collect()
    }

    fn refuse_erasing(&self, reason: &str, actor: &str) -> Result<(), EraseError> {
        Audit::new(reason, actor)?;
        self.check_open()?;
        self.wal.poison.check_before()?;
        self.refuse_doubt()
    }

    fn refuse_doubt(&self) -> Result<(), EraseError> {
        let gap = self.lasting_gaps().into_iter().next();
        gap.map_or(Ok(()), |gap| Err(EraseError::InDoubt(Box::new(gap))))
    }

    fn erase_forgotten(
        &self,
        (number, bytes, hash): (NamespaceId, &[u8], Option<KeyHash>),
        (namespace, what, keys): (&NamespaceState, Erasable, u64),
        (reason, actor): (&str, &str),
        until: Duration,
    ) -> Result<Erased, EraseError> {
        // Whatever comes of the rest.
        self.sync_all()?;
        let (at, reason, actor) = (self.timeline.now(), reason.to_owned(), actor.to_owned());
        self.write_down(ErasureEntry { namespace: namespace.id, what, at, keys, actor, reason })?;
        let tokens = self.shards.iter().map(|shard| Ok(self.lock(shard)?.tokens));
        let tokens: Result<Box<[Tokens]>, StoreError> = tokens.collect();
        let erasing = Erasing {
            namespace: number,
            bytes: bytes.into(),
            hash,
            tokens: tokens?,
            stage: Stage::Settling,
            drops_forgets: false,
            unseen: Vec::new(),
            prepared: Vec::new(),
            has_found: false,
            kept: BTreeSet::new(),
            awaited: BTreeSet::new(),
            claims_before: 0,
            segments: 0,
            grown_at: None,
        };
        let segments = self.drive(erasing, keys, until)?;
        Ok(Erased { keys, segments })
    }

    /// Who erases, and why, durably: the forgets that say it go.
    fn write_down(&self, entry: ErasureEntry) -> Result<(), StoreError> {
        let _changing = self.namespaces.changing();
        let _passage = self.wal.pass()?;
        self.wal.poison.check_before()?;
        if !self.wal.append_entry(&NamesEntry::Erasure(entry.clone()), |_| ())? {
            return Err(StoreError::Io(super::no_room()));
        }
        self.erasures.write().push(entry);
        Ok(())
    }

    /// Looks until all of it is gone; says how many segments held any.
    fn drive(&self, erasing: Erasing, keys: u64, until: Duration) -> Result<u64, EraseError> {
        let mut begun = None;
        let mut waiting = Some(erasing);
        loop {
            self.check_open()?;
            self.wal.poison.check_before()?;
            self.refuse_doubt()?;
            let looked = self.with_expiry(|expiry| {
                // One at a time.
                if expiry.erasing.is_none()
                    && let Some(erasing) = waiting.take()
                {
                    expiry.erasing = Some(erasing);
                    begun = Some(Begun { engine: self });
                }
                if begun.is_some() { self.go_on(expiry).map(Some) } else { Ok(None) }
            });
            match looked.transpose()?.flatten() {
                Some(Progress::Over { segments }) => return Ok(segments),
                Some(Progress::Waiting { segments }) if self.timeline.monotonic() >= until => {
                    return Err(EraseError::TimedOut { keys, segments });
                }
                None if self.timeline.monotonic() >= until => {
                    return Err(EraseError::TimedOut { keys, segments: 0 });
                }
                _ => {}
            }
            self.maintain(LOOK);
            // Somebody else looks around, or reads.
            self.timeline.pause(PAUSE);
        }
    }

    /// Goes on as far as it can, for a while.
    fn go_on(&self, expiry: &mut Expiry) -> Result<Progress, StoreError> {
        let until = self.timeline.monotonic().saturating_add(SLICE);
        let Some(mut erasing) = expiry.erasing.take() else {
            return Ok(Progress::Waiting { segments: 0 });
        };
        // Who needs room, or a mark, must not wait until all is looked at.
        if erasing.is_looking() && (self.wal.supply().is_short || self.wal.is_crowded()) {
            erasing.look_again();
        }
        let progress = self.advance(expiry, &mut erasing, until);
        expiry.erasing = Some(erasing);
        progress
    }

    fn advance(
        &self,
        expiry: &mut Expiry,
        erasing: &mut Erasing,
        until: Duration,
    ) -> Result<Progress, StoreError> {
        loop {
            expiry.release_erased(erasing);
            let waiting = Progress::Waiting { segments: erasing.awaited.len() };
            match erasing.stage {
                Stage::Settling | Stage::Leaving if !erasing.awaited.is_empty() => {
                    return Ok(waiting);
                }
                Stage::Settling => {
                    if !self.settle_active(expiry, erasing)? {
                        return Ok(waiting);
                    }
                    erasing.unseen = expiry.all_sealed();
                    erasing.has_found = false;
                    erasing.claims_before = 0;
                    erasing.stage = Stage::Finding;
                }
                Stage::Finding => {
                    while let Some(next) = erasing.unseen.pop() {
                        self.look_at(next, erasing)?;
                        if self.timeline.monotonic() >= until {
                            return Ok(waiting);
                        }
                    }
                    erasing.stage =
                        if erasing.has_found { Stage::Settling } else { Stage::Leaving };
                }
                Stage::Leaving if !erasing.drops_forgets => {
                    erasing.drops_forgets = true;
                    erasing.stage = Stage::Settling;
                }
                Stage::Leaving => {
                    erasing.prepared = self.wal.prepared();
                    erasing.stage = Stage::Scrubbing;
                }
                Stage::Scrubbing => {
                    while let Some(next) = erasing.prepared.pop() {
                        let has_written = self.wal.scrub_prepared(&self.wal.pass()?, &next)?;
                        if has_written {
                            // So that it does not pile up: the kernel has whoever writes wait then.
                            self.sync_all()?;
                        }
                        if self.timeline.monotonic() >= until {
                            return Ok(waiting);
                        }
                    }
                    // Those that became active before they were written over, too. And a file that is given up still has
                    // what it has.
                    if expiry.surplus.is_some() || !self.settle_active(expiry, erasing)? {
                        erasing.look_again();
                        return Ok(waiting);
                    }
                    erasing.unseen = expiry.all_sealed();
                    erasing.stage = Stage::ScrubbingGaps;
                }
                Stage::ScrubbingGaps => {
                    while let Some(next) = erasing.unseen.pop() {
                        self.wal.scrub_gap(&self.wal.pass()?, &next.segment)?;
                        if self.timeline.monotonic() >= until {
                            return Ok(waiting);
                        }
                    }
                    self.wal.remove_left_over()?;
                    self.sync_all()?;
                    return Ok(Progress::Over { segments: erasing.segments });
                }
            }
        }
    }

    /// Seals everything that is active, and takes it over. Whether it could, and what is owed is written.
    fn settle_active(
        &self,
        expiry: &mut Expiry,
        erasing: &mut Erasing,
    ) -> Result<bool, StoreError> {
        if !expiry.owed.is_empty() {
            return Ok(false);
        }
        let growths = self.wal.growths();
        let passage = self.wal.pass()?;
        let sealing = self.wal.seal_active(&passage)?;
        drop(passage);
        match sealing {
            Sealing::Done => {}
            Sealing::Awaited => return Ok(false),
            Sealing::NoRoom => {
                let now = self.timeline.monotonic();
                if erasing.grown_at.is_none_or(|at| now.saturating_sub(at) >= GROW_EVERY) {
                    erasing.grown_at = Some(now);
                    // Where it cannot grow, what is over makes room, or it takes too long and the caller is told.
                    self.make_room(growths)?;
                }
                return Ok(false);
            }
        }
        self.sync_all()?;
        expiry.add(self.wal.take_sealed());
        Ok(true)
    }

    /// Makes everything durable, and a mark say so.
    fn sync_all(&self) -> Result<(), StoreError> {
        if self.has_rounds() {
            self.flush()
        } else {
            self.wal.skip_rounds();
            Ok(())
        }
    }

    /// Has a segment leave that holds any of it.
    fn look_at(&self, unseen: Unseen, erasing: &mut Erasing) -> Result<(), StoreError> {
        let Unseen { segment, kept, is_found } = unseen;
        if !is_found {
            // What nobody finds any more is on the disk until the next header is.
            erasing.awaited.insert(segment.id);
        } else if self.holds_erased(&segment, erasing)? {
            erasing.has_found = true;
            erasing.segments += 1;
            erasing.awaited.insert(segment.id);
            erasing.kept.extend(kept);
            // Of completions, those that it outlives go first (R4).
            let before = segment.order + u64::from(segment.is_claims);
            erasing.claims_before = erasing.claims_before.max(before);
        }
        Ok(())
    }

    /// Whether a segment has a record that is erased, but for forgets as long as they are needed.
    fn holds_erased(&self, segment: &SealedSegment, erasing: &Erasing) -> Result<bool, StoreError> {
        for entry in self.wal.read_entries(segment)? {
            let is_needed = entry.kind == Kind::Forget && !erasing.drops_forgets;
            if erasing.may_concern(&entry)
                && !is_needed
                && self.is_erased(segment, &entry, erasing)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether what the entry stands for is erased: it is of what is, and says nothing of a key any more.
    fn is_erased(
        &self,
        segment: &SealedSegment,
        entry: &Entry,
        erasing: &Erasing,
    ) -> Result<bool, StoreError> {
        let pin = Pin::new();
        let record = self.wal.segments.record(self.location(segment, entry), &pin)?;
        let index = self.shard_of(record.key_hash());
        if !erasing.concerns(record, index) {
            return Ok(false);
        }
        let Some(namespace) = self.namespaces.by_id(record.namespace().unscoped()) else {
            return Ok(true);
        };
        let (number, hash) = (record.namespace(), record.key_hash());
        let key = Key { namespace: &namespace, number, bytes: record.key(), hash };
        let way = self.way(hash);
        let shard = self.lock(way.shard)?;
        let mut seen = None;
        let Some(found) = self.find(&shard, &key, way.route, &mut seen, &pin)? else {
            return Ok(true);
        };
        // What somebody has claimed since is none of it, whatever of its life the record is of.
        let current = found.record;
        let standing = Standing::of(current, self.timeline.now(), self.open_epoch);
        Ok(standing == Standing::Absent || current.token() != record.token())
    }

    /// Whether a forget is not to be copied (X1).
    pub(super) fn drops_forget(&self, record: RecordRef<'_>, erasing: Option<&Erasing>) -> bool {
        let Some(erasing) = erasing.filter(|it| it.drops_forgets) else { return false };
        let shard = self.shard_of(record.key_hash());
        record.kind() == Kind::Forget && erasing.concerns(record, shard)
    }
}

impl Expiry {
    /// Has completions leave that hold what is erased, as soon as the claims of their time are gone.
    fn release_erased(&mut self, erasing: &mut Erasing) {
        // Those that are not there leave already.
        erasing.kept.retain(|number| self.kept.contains_key(number));
        let numbers = erasing.kept.iter().copied();
        let may_go: Vec<u64> = numbers.filter(|number| self.may_go(&self.kept[number])).collect();
        self.release_early(&may_go);
    }

    /// All sealed segments, those that are leaving too.
    fn all_sealed(&self) -> Vec<Unseen> {
        let here = |segment: &SealedSegment, kept| {
            let segment = segment.clone();
            Unseen { segment, kept, is_found: true }
        };
        let kept = self.kept().map(|(number, segment)| here(segment, Some(number)));
        let others = self.due.iter().chain(&self.claims).map(|segment| here(segment, None));
        let leaving = self.leaving.iter().map(|it| Unseen {
            segment: it.segment.clone(),
            kept: None,
            is_found: it.is_found(),
        });
        kept.chain(others).chain(leaving).collect()
    }
}

/// How far erasing is.
enum Progress {
    /// So many segments are awaited.
    Waiting { segments: usize },
    /// So many held any of it.
    Over { segments: u64 },
}

/// As long as it is there, the store erases something.
struct Begun<'a> {
    engine: &'a Engine,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.engine.end_erasing();
    }
}
