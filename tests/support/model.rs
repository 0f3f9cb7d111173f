//! The model: what a store must answer, in a plain map.
//!
//! Written from the decisions (docs/STATES.md), not from the engine: no WAL, no table, no locks, no
//! rounding. Times are milliseconds of store time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use refrain::{
    BodyKept, EndCause, Fingerprint, FingerprintRule, KeyState, OnLeaseEnd, OnOrphan, OwnerId,
    Policy, Reference, RefreshOnHit,
};

pub type Token = u64;
pub type Key = (usize, Arc<[u8]>);
/// A body; to keep it again costs nothing.
pub type Bytes = Arc<[u8]>;

/// A policy, with fields the model can read.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rules {
    pub lease: u64,
    pub replay_ttl: u64,
    pub dedupe_ttl: u64,
    pub late_grace: Option<u64>,
    pub parks: bool,
    pub on_orphan: OnOrphan,
    pub fingerprint: FingerprintRule,
    pub fingerprint_required: bool,
    /// A duplicate extends the window when less than one part in so many is left.
    pub refresh_below: Option<u64>,
}

impl Rules {
    pub fn default() -> Self {
        Self {
            lease: 30_000,
            replay_ttl: 86_400_000,
            dedupe_ttl: 86_400_000,
            late_grace: None,
            parks: false,
            on_orphan: OnOrphan::AsLeaseEnd,
            fingerprint: FingerprintRule::Enforce,
            fingerprint_required: false,
            refresh_below: None,
        }
    }

    pub fn to_policy(self) -> Policy {
        let ms = Duration::from_millis;
        let policy = Policy::default()
            .lease(ms(self.lease))
            .replay_ttl(ms(self.replay_ttl))
            .dedupe_ttl(ms(self.dedupe_ttl))
            .on_lease_end(if self.parks { OnLeaseEnd::Park } else { OnLeaseEnd::Reclaim })
            .on_orphan(self.on_orphan)
            .fingerprint(self.fingerprint)
            .fingerprint_required(self.fingerprint_required)
            .refresh_on_hit(match self.refresh_below {
                None => RefreshOnHit::Never,
                Some(2) => RefreshOnHit::BelowHalf,
                Some(4) => RefreshOnHit::BelowQuarter,
                Some(8) => RefreshOnHit::BelowEighth,
                Some(other) => panic!("a share nobody can ask for: {other}"),
            });
        match self.late_grace {
            Some(grace) => policy.late_grace(ms(grace)),
            None => policy,
        }
    }

    fn grace(&self, lease: u64) -> u64 {
        self.late_grace.unwrap_or(lease.max(60_000))
    }

    fn orphan_rule(&self) -> OnOrphan {
        match (self.on_orphan, self.parks) {
            (OnOrphan::AsLeaseEnd, true) => OnOrphan::Park,
            (OnOrphan::AsLeaseEnd, false) => OnOrphan::Reclaim,
            (rule, _) => rule,
        }
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct Claimed {
    pub token: Token,
    pub first: Token,
    pub attempt: u16,
    pub at: u64,
    pub deadline: u64,
    /// `None` is never.
    pub forgotten_at: Option<u64>,
    pub parks: bool,
    pub on_orphan: OnOrphan,
    pub fingerprint: Option<Fingerprint>,
    pub reference: Option<Reference>,
    pub owner: Option<OwnerId>,
    /// What the attempt took over from.
    pub previous: Option<(Token, u64, EndCause)>,
    /// Which open it was made in.
    pub open: u64,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Parked {
    pub token: Token,
    pub first: Token,
    pub attempt: u16,
    pub at: u64,
    pub cause: EndCause,
    pub fingerprint: Option<Fingerprint>,
    pub reference: Option<Reference>,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Stored {
    Kept(Bytes),
    None,
    TooLarge(Bytes),
    NoReplay(Bytes),
}

#[derive(Clone, PartialEq, Debug)]
pub struct Done {
    pub token: Token,
    pub first: Token,
    pub attempt: u16,
    pub at: u64,
    pub code: u16,
    pub body: Stored,
    pub replay_until: u64,
    pub expires: u64,
    /// Whether its window was the policy's, and may be extended.
    pub refreshes: bool,
    pub fingerprint: Option<Fingerprint>,
    pub reference: Option<Reference>,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Entry {
    Claimed(Claimed),
    Parked(Parked),
    Done(Done),
}

/// What an entry is at an instant.
#[derive(Clone, PartialEq, Debug)]
pub enum State {
    Absent,
    Held(Claimed),
    Lapsed(Claimed, EndCause),
    Overdue(Claimed),
    Parked(Parked),
    Done(Done),
}

impl State {
    pub fn key_state(&self) -> Option<KeyState> {
        match self {
            Self::Absent => None,
            Self::Held(_) => Some(KeyState::InProgress),
            Self::Lapsed(..) => Some(KeyState::Lapsed),
            Self::Overdue(_) | Self::Parked(_) => Some(KeyState::Parked),
            Self::Done(_) => Some(KeyState::Completed),
        }
    }

    pub fn token(&self) -> Option<Token> {
        match self {
            Self::Absent => None,
            Self::Held(it) | Self::Lapsed(it, _) | Self::Overdue(it) => Some(it.token),
            Self::Parked(it) => Some(it.token),
            Self::Done(it) => Some(it.token),
        }
    }

    pub fn fingerprint(&self) -> Option<Fingerprint> {
        match self {
            Self::Absent => None,
            Self::Held(it) | Self::Lapsed(it, _) | Self::Overdue(it) => it.fingerprint,
            Self::Parked(it) => it.fingerprint,
            Self::Done(it) => it.fingerprint,
        }
    }

    /// The claim that a release, a completion or a renewal may act on.
    pub fn claim(&self) -> Option<&Claimed> {
        match self {
            Self::Held(it) | Self::Lapsed(it, _) | Self::Overdue(it) => Some(it),
            _ => None,
        }
    }
}

/// What a claim or a mark asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ask {
    pub fingerprint: Option<Fingerprint>,
    pub reference: Option<Reference>,
    /// Of a claim.
    pub owner: Option<OwnerId>,
    pub lease: Option<u64>,
    pub dedupe_ttl: Option<u64>,
}

/// What a completion brings.
#[derive(Clone, Debug, Default)]
pub struct Bring {
    pub body: Option<Bytes>,
    pub code: u16,
    pub reference: Option<Reference>,
    pub replay_ttl: Option<u64>,
    pub dedupe_ttl: Option<u64>,
    /// The disk has no room for the body.
    pub no_room: bool,
}

/// How a claim or a mark must be answered.
#[derive(Clone, PartialEq, Debug)]
pub enum Verdict {
    Granted {
        attempt: u16,
        previous: Option<(Token, u64, EndCause)>,
    },
    Done(Done),
    Held(Claimed),
    /// Held by who asks: granted to a claim, and told to a mark.
    Own(Claimed),
    /// Overdue or parked.
    Parked(State),
    Mismatch(State),
    FingerprintRequired,
}

/// How an exit must be answered.
#[derive(Clone, PartialEq, Debug)]
pub enum Exit {
    Accepted,
    Fenced(Token),
    Forgotten,
    Parked,
    Completed,
    AlreadyCompleted(Done),
    InProgress,
}

#[derive(Clone, Debug)]
pub struct Model {
    pub now: u64,
    pub open: u64,
    pub body_max: usize,
    pub namespaces: BTreeMap<usize, (Rules, bool)>,
    pub mismatches: BTreeMap<usize, u64>,
    entries: BTreeMap<Key, Entry>,
    /// The highest token ever given for a key, and all tokens ever given.
    highest: BTreeMap<Key, Token>,
    tokens: std::collections::BTreeSet<Token>,
}

impl Model {
    pub fn new(now: u64, body_max: usize) -> Self {
        Self {
            now,
            open: 1,
            body_max,
            namespaces: BTreeMap::new(),
            mismatches: BTreeMap::new(),
            entries: BTreeMap::new(),
            highest: BTreeMap::new(),
            tokens: std::collections::BTreeSet::new(),
        }
    }

    pub fn keys(&self) -> Vec<Key> {
        self.entries.keys().cloned().collect()
    }

    pub fn state(&self, key: &Key) -> State {
        match self.entries.get(key) {
            None => State::Absent,
            Some(Entry::Parked(it)) => State::Parked(it.clone()),
            Some(Entry::Done(it)) if self.now < it.expires => State::Done(it.clone()),
            Some(Entry::Done(_)) => State::Absent,
            Some(Entry::Claimed(it)) => {
                let it = it.clone();
                if it.forgotten_at.is_some_and(|at| self.now >= at) {
                    State::Absent
                } else if it.open < self.open && it.on_orphan == OnOrphan::Reclaim {
                    State::Lapsed(it, EndCause::Orphaned)
                } else if self.now < it.deadline {
                    State::Held(it)
                } else if it.parks {
                    State::Overdue(it)
                } else {
                    State::Lapsed(it, EndCause::LeaseEnded)
                }
            }
        }
    }

    /// What stands for the key, whatever the time.
    pub fn entry(&self, key: &Key) -> Option<Entry> {
        self.entries.get(key).cloned()
    }

    pub fn set_entry(&mut self, key: &Key, entry: Option<Entry>) {
        match entry {
            Some(entry) => drop(self.entries.insert(key.clone(), entry)),
            None => drop(self.entries.remove(key)),
        }
    }

    /// Whether the token was ever given out.
    pub fn knows(&self, token: Token) -> bool {
        self.tokens.contains(&token)
    }

    /// The store is opened again at `now`: claims of earlier opens are orphans.
    pub fn reopen(&mut self, now: u64) {
        let stopped = std::mem::replace(&mut self.now, now);
        self.open += 1;
        self.mismatches.clear();
        for key in self.keys() {
            self.reopen_entry(&key, stopped);
        }
    }

    /// What opening makes of one entry, in a store that has stopped, or was last seen to live, at
    /// `stopped`. A claim that is parked when it has lost its owner lost it then; the others are
    /// judged by the time of the opening.
    pub fn reopen_entry(&mut self, key: &Key, stopped: u64) {
        let parks = |it: &Claimed| it.open < self.open && it.on_orphan == OnOrphan::Park;
        let is_forgotten = match self.entries.get(key) {
            Some(Entry::Claimed(it)) if parks(it) => {
                it.forgotten_at.is_some_and(|at| stopped >= at)
            }
            _ => self.state(key) == State::Absent,
        };
        // What the clock has forgotten stays forgotten.
        if is_forgotten {
            self.entries.remove(key);
            return;
        }
        match self.entries.get(key) {
            Some(Entry::Claimed(it)) if parks(it) => {
                let parked = Parked {
                    token: it.token,
                    first: it.first,
                    attempt: it.attempt,
                    at: self.now,
                    cause: EndCause::Orphaned,
                    fingerprint: it.fingerprint,
                    reference: it.reference,
                };
                self.entries.insert(key.clone(), Entry::Parked(parked));
            }
            _ => {}
        }
    }

    /// A token was given out for the key.
    pub fn issued(&mut self, key: &Key, token: Token) {
        assert!(self.tokens.insert(token), "token {token} was given twice");
        let highest = self.highest.entry(key.clone()).or_default();
        assert!(token > *highest, "token {token} is not above {highest}");
        *highest = token;
    }

    pub fn rules(&self, namespace: usize) -> Rules {
        self.namespaces[&namespace].0
    }

    /// Judges a claim or a mark. Nothing is changed but the count of mismatches.
    pub fn judge(&mut self, key: &Key, ask: &Ask) -> Verdict {
        let rules = self.rules(key.0);
        if rules.fingerprint_required && ask.fingerprint.is_none() {
            return Verdict::FingerprintRequired;
        }
        let state = self.state(key);
        let differs = ask.fingerprint.zip(state.fingerprint()).is_some_and(|(a, b)| a != b);
        if differs && rules.fingerprint != FingerprintRule::Ignore {
            *self.mismatches.entry(key.0).or_default() += 1;
            if rules.fingerprint == FingerprintRule::Enforce {
                return Verdict::Mismatch(state);
            }
        }
        match state {
            State::Absent => Verdict::Granted { attempt: 1, previous: None },
            State::Lapsed(old, cause) => Verdict::Granted {
                attempt: old.attempt.saturating_add(1),
                previous: Some((old.token, old.at, cause)),
            },
            State::Held(it) if it.owner.is_some() && it.owner == ask.owner => Verdict::Own(it),
            State::Held(it) => Verdict::Held(it),
            state @ (State::Overdue(_) | State::Parked(_)) => Verdict::Parked(state),
            State::Done(it) => Verdict::Done(it),
        }
    }

    /// What becomes of a completed key's window when a duplicate is answered with its outcome.
    pub fn refreshed(&self, key: &Key) -> Option<Done> {
        let State::Done(done) = self.state(key) else { return None };
        let rules = self.rules(key.0);
        let is_due = rules.refresh_below.is_some_and(|parts| {
            (done.expires - self.now) * parts < rules.dedupe_ttl && done.refreshes
        });
        is_due.then(|| Done { expires: self.now + rules.dedupe_ttl, ..done })
    }

    /// A duplicate was answered with the outcome. Gives what is known then.
    pub fn hit(&mut self, key: &Key) -> State {
        if let Some(done) = self.refreshed(key) {
            self.entries.insert(key.clone(), Entry::Done(done));
        }
        self.state(key)
    }

    /// The claim that a new one goes on from, which attempt it is, and what that took over from.
    fn inherited(&self, key: &Key) -> (Option<Claimed>, u16, Option<(Token, u64, EndCause)>) {
        match self.state(key) {
            State::Lapsed(old, cause) => {
                let attempt = old.attempt.saturating_add(1);
                let previous = (old.token, old.at, cause);
                (Some(old), attempt, Some(previous))
            }
            State::Held(old) => {
                let (attempt, previous) = (old.attempt, old.previous);
                (Some(old), attempt, previous)
            }
            _ => (None, 1, None),
        }
    }

    /// A claim was granted.
    pub fn claim(&mut self, key: &Key, ask: &Ask, token: Token) {
        let rules = self.rules(key.0);
        let (old, attempt, previous) = self.inherited(key);
        self.issued(key, token);
        let lease = ask.lease.unwrap_or(rules.lease);
        let deadline = self.now + lease;
        let claimed = Claimed {
            token,
            first: old.as_ref().map_or(token, |old| old.first),
            attempt,
            at: self.now,
            deadline,
            forgotten_at: (!rules.parks).then(|| deadline + rules.grace(lease)),
            parks: rules.parks,
            on_orphan: rules.orphan_rule(),
            fingerprint: old.as_ref().and_then(|old| old.fingerprint).or(ask.fingerprint),
            reference: ask.reference.or(old.and_then(|old| old.reference)),
            owner: ask.owner,
            previous,
            open: self.open,
        };
        self.entries.insert(key.clone(), Entry::Claimed(claimed));
    }

    /// A mark was granted.
    pub fn once(&mut self, key: &Key, ask: &Ask, token: Token) {
        let rules = self.rules(key.0);
        let (old, attempt, _) = self.inherited(key);
        self.issued(key, token);
        let done = Done {
            token,
            first: old.as_ref().map_or(token, |old| old.first),
            attempt,
            at: self.now,
            code: 0,
            body: Stored::None,
            replay_until: self.now,
            expires: self.now + ask.dedupe_ttl.unwrap_or(rules.dedupe_ttl),
            refreshes: rules.refresh_below.is_some() && ask.dedupe_ttl.is_none(),
            fingerprint: old.as_ref().and_then(|old| old.fingerprint).or(ask.fingerprint),
            reference: ask.reference.or(old.and_then(|old| old.reference)),
        };
        self.entries.insert(key.clone(), Entry::Done(done));
    }

    fn own(&self, key: &Key, token: Token) -> Result<Claimed, Exit> {
        let state = self.state(key);
        match state.token() {
            None => Err(Exit::Forgotten),
            Some(current) if current != token => Err(Exit::Fenced(current)),
            Some(_) => match (state.claim(), &state) {
                (Some(claim), _) => Ok(claim.clone()),
                (None, State::Parked(_)) => Err(Exit::Parked),
                (None, _) => Err(Exit::Completed),
            },
        }
    }

    /// Gives how late the renewal was.
    pub fn renew(
        &mut self,
        key: &Key,
        token: Token,
        lease: Option<u64>,
    ) -> Result<Option<u64>, Exit> {
        let old = self.own(key, token)?;
        let rules = self.rules(key.0);
        let lease = lease.unwrap_or(rules.lease);
        // A renewal never takes away what an earlier one gave.
        let deadline = old.deadline.max(self.now + lease);
        let forgotten_at = deadline + rules.grace(lease);
        let renewed = Claimed {
            at: self.now,
            deadline,
            forgotten_at: old.forgotten_at.map(|old| old.max(forgotten_at)),
            ..old.clone()
        };
        self.entries.insert(key.clone(), Entry::Claimed(renewed));
        Ok((self.now >= old.deadline).then(|| self.now - old.deadline))
    }

    pub fn release(&mut self, key: &Key, token: Token) -> Exit {
        match self.own(key, token) {
            Ok(_) => {
                self.entries.remove(key);
                Exit::Accepted
            }
            Err(refused) => refused,
        }
    }

    pub fn park(&mut self, key: &Key, token: Token) -> Exit {
        match self.own(key, token) {
            Ok(old) => {
                let parked = Parked {
                    token: old.token,
                    first: old.first,
                    attempt: old.attempt,
                    at: self.now,
                    cause: EndCause::Parked,
                    fingerprint: old.fingerprint,
                    reference: old.reference,
                };
                self.entries.insert(key.clone(), Entry::Parked(parked));
                Exit::Accepted
            }
            Err(refused) => refused,
        }
    }

    fn stored(&self, rules: &Rules, bring: &Bring) -> (Stored, u64, u64, BodyKept) {
        let dedupe = bring.dedupe_ttl.unwrap_or(rules.dedupe_ttl);
        let replay = bring.replay_ttl.unwrap_or(rules.replay_ttl.min(dedupe));
        let (stored, kept) = match bring.body.clone() {
            None => (Stored::None, BodyKept::None),
            Some(body) if body.len() > self.body_max => {
                (Stored::TooLarge(body), BodyKept::TooLarge)
            }
            Some(body) if bring.no_room && replay > 0 => (Stored::TooLarge(body), BodyKept::NoRoom),
            Some(body) if replay == 0 => (Stored::NoReplay(body), BodyKept::NoReplay),
            Some(body) => (Stored::Kept(body), BodyKept::Kept),
        };
        (stored, replay, dedupe, kept)
    }

    pub fn complete(&mut self, key: &Key, token: Token, bring: &Bring) -> Result<BodyKept, Exit> {
        let rules = self.rules(key.0);
        let (body, replay, dedupe, kept) = self.stored(&rules, bring);
        match self.own(key, token) {
            Ok(old) => {
                let done = Done {
                    token,
                    first: old.first,
                    attempt: old.attempt,
                    at: self.now,
                    code: bring.code,
                    body,
                    replay_until: self.now + replay,
                    expires: self.now + dedupe,
                    refreshes: rules.refresh_below.is_some() && bring.dedupe_ttl.is_none(),
                    fingerprint: old.fingerprint,
                    reference: bring.reference.or(old.reference),
                };
                self.entries.insert(key.clone(), Entry::Done(done));
                Ok(kept)
            }
            Err(Exit::Completed) => {
                let State::Done(done) = self.state(key) else { unreachable!() };
                let (same, kept) = match (&done.body, &bring.body) {
                    (Stored::None, None) => (true, BodyKept::None),
                    (Stored::Kept(old), Some(new)) if self.now >= done.replay_until => {
                        (old == new, BodyKept::NoReplay)
                    }
                    (Stored::Kept(old), Some(new)) => (old == new, BodyKept::Kept),
                    (Stored::TooLarge(old), Some(new)) => (old == new, BodyKept::TooLarge),
                    (Stored::NoReplay(old), Some(new)) => (old == new, BodyKept::NoReplay),
                    _ => (false, BodyKept::None),
                };
                let same_reference = bring.reference.is_none_or(|it| done.reference == Some(it));
                if same && same_reference && bring.code == done.code {
                    Ok(kept)
                } else {
                    Err(Exit::AlreadyCompleted(done))
                }
            }
            Err(refused) => Err(refused),
        }
    }

    /// Whether the key can be resolved with this token.
    pub fn resolvable(&self, key: &Key, token: Token) -> Exit {
        match self.state(key) {
            State::Absent => Exit::Forgotten,
            State::Done(done) => Exit::AlreadyCompleted(done),
            state if state.token() != Some(token) => Exit::Fenced(state.token().unwrap()),
            State::Held(_) => Exit::InProgress,
            _ => Exit::Accepted,
        }
    }

    /// Resolves with an outcome, under a new token.
    pub fn resolve_done(&mut self, key: &Key, bring: &Bring, token: Token) -> BodyKept {
        let rules = self.rules(key.0);
        let (body, replay, dedupe, kept) = self.stored(&rules, bring);
        let (first, attempt, fingerprint, reference) = match self.state(key) {
            State::Parked(it) => (it.first, it.attempt, it.fingerprint, it.reference),
            state => {
                let it = state.claim().unwrap().clone();
                (it.first, it.attempt, it.fingerprint, it.reference)
            }
        };
        self.issued(key, token);
        let done = Done {
            token,
            first,
            attempt,
            at: self.now,
            code: bring.code,
            body,
            replay_until: self.now + replay,
            expires: self.now + dedupe,
            refreshes: rules.refresh_below.is_some() && bring.dedupe_ttl.is_none(),
            fingerprint,
            reference: bring.reference.or(reference),
        };
        self.entries.insert(key.clone(), Entry::Done(done));
        kept
    }

    pub fn resolve_not_done(&mut self, key: &Key) {
        self.entries.remove(key);
    }

    pub fn forget(&mut self, key: &Key) -> Option<KeyState> {
        let state = self.state(key).key_state();
        if state.is_some() {
            self.entries.remove(key);
        }
        state
    }

    /// Keys whose owner died, with the state they are in.
    pub fn orphans(&self) -> Vec<(Key, Token, KeyState)> {
        let mut orphans = Vec::new();
        for key in self.entries.keys() {
            let state = self.state(key);
            let is_orphan = match &state {
                State::Parked(it) => it.cause == EndCause::Orphaned,
                other => other.claim().is_some_and(|it| it.open < self.open),
            };
            if is_orphan {
                orphans.push((key.clone(), state.token().unwrap(), state.key_state().unwrap()));
            }
        }
        orphans.sort_by_key(|it| it.1);
        orphans
    }

    /// How many keys are in each state: completed, held by dead owners, parked.
    pub fn counts(&self) -> (usize, usize) {
        let states: Vec<_> = self.entries.keys().map(|key| self.state(key).key_state()).collect();
        let count = |state| states.iter().filter(|it| **it == Some(state)).count();
        (count(KeyState::Completed), count(KeyState::Parked))
    }
}
