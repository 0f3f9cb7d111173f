//! One seed of the simulation: a store on a simulated disk, the model beside it, and the history of
//! what was acknowledged, which judges every reopening.
//!
//! Of each key the history holds the states it has had since the last one that must survive. A call
//! that is acknowledged as durable, a round that ended, an outcome that was shown: each raises that
//! floor. After a power cut the key must be in one of the states from the floor on; after a kill in
//! the last one. A call that was under way may have had its effect or not, and nothing in between.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, UNIX_EPOCH};

use refrain::testing::{Crash, Fault, SimClock, SimDisk};
use refrain::{
    BodyKept, Durability, EndCause, EraseError, Erased, FenceError, FencingToken, Fingerprint,
    KeyState, NamespaceError, OpenError, Options, OwnerId, Reference, Store, StoreError,
};

use super::Random;
use super::calls::{Asked, Call, Face, Failed, Reply};
use super::model::{Ask, Bring, Entry, Key, Model, Rules, State, Token};
use super::world::{NAMESPACES, SEGMENT_BYTES, keys, ms_of, name, policies};

/// What happened, and how often.
pub type Seen = BTreeMap<String, u64>;

/// A state that a key has had, and whether its outcome is shown only when it is durable.
#[derive(Clone, PartialEq, Debug)]
struct Version {
    entry: Option<Entry>,
    is_gated: bool,
}

/// A call whose effect nobody knows.
#[derive(Clone, Debug)]
enum InFlight {
    /// With the model as it was then.
    Call(Call, Box<Model>),
    /// A namespace of which every key may be forgotten, with the model as it was then.
    ForgetAll(usize, Box<Model>),
    /// A namespace and the rules it may have now.
    Rules(usize, Rules),
    /// A resource and a token that it may have been admitted for.
    Admit(usize, u64),
}

/// What a guard keeps fences of, and for how long.
const RESOURCES: usize = 3;
const RETENTION: Duration = Duration::from_secs(1000 * 24 * 3600);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Sync,
    Buffered,
    Interval,
}

pub struct Simulation {
    random: Random,
    disk: SimDisk,
    clock: SimClock,
    store: Option<Store>,
    mode: Mode,
    model: Model,
    keys: Vec<Key>,
    history: BTreeMap<Key, Vec<Version>>,
    /// Tokens each key was given.
    given: BTreeMap<Key, Vec<Token>>,
    /// Of each resource of the guard the newest tokens since the one that must survive.
    fences: [Vec<u64>; RESOURCES],
    /// Namespaces whose existence was acknowledged.
    known: [bool; NAMESPACES],
    in_flight: Option<InFlight>,
    rounds: u64,
    /// Failures were set up since the process started, so calls may fail.
    is_troubled: bool,
    /// A sync failed since the process started: the page cache is not what it seems.
    is_cache_doubtful: bool,
    /// Syncs that had failed when the store was opened.
    syncs_failed_before: u64,
    has_little_room: bool,
    /// Times a store was opened with little room.
    cramped_opens: u32,
    pub seen: Seen,
    /// What was done, for whoever has to understand a failure.
    pub trace: Option<Vec<String>>,
}

impl Simulation {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let disk = SimDisk::new(random.next());
        let clock = SimClock::new();
        let now = ms_of(clock.wall());
        // Scopes are the model's: here each key is asked for as it is.
        let keys: Vec<Key> = keys().into_iter().filter(|(_, key)| key[0] != b'@').collect();
        let history = keys
            .iter()
            .map(|key| (key.clone(), vec![Version { entry: None, is_gated: false }]))
            .collect();
        let given = keys.iter().map(|key| (key.clone(), vec![])).collect();
        Self {
            random,
            disk,
            clock,
            store: None,
            mode: Mode::Sync,
            model: Model::new(now, SEGMENT_BYTES as usize / 2),
            keys,
            history,
            given,
            fences: [(); RESOURCES].map(|()| vec![0]),
            known: [false; NAMESPACES],
            in_flight: None,
            rounds: 0,
            is_troubled: false,
            is_cache_doubtful: false,
            syncs_failed_before: 0,
            has_little_room: false,
            cramped_opens: 0,
            seen: Seen::new(),
            trace: None,
        }
    }

    /// Runs `steps` steps with faults and crashes, then some without, in which everything must
    /// work.
    pub fn run(&mut self, steps: u64) {
        self.reopen(true);
        for _ in 0..steps {
            self.step();
        }
        self.finish();
        for (what, count) in self.disk.counts() {
            *self.seen.entry(format!("disk: {what}")).or_default() += count;
        }
    }

    fn see(&mut self, what: impl Into<String>) {
        *self.seen.entry(what.into()).or_default() += 1;
    }

    fn failed_syncs(&self) -> u64 {
        self.disk.count("sync failed")
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(what().chars().take(400).collect());
        }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn is_poisoned(&self) -> bool {
        self.store().poisoned().is_some()
    }

    fn step(&mut self) {
        if self.is_poisoned() && self.random.chance(30) {
            // Nothing more will come of this process.
            let crash = self.any_crash();
            self.crash_now(crash);
            return;
        }
        match self.random.below(1000) {
            0..=709 => {
                let call = self.any_call();
                self.call(call);
            }
            710..=721 => self.admit(),
            722..=725 => self.forget_all(),
            726..=729 => self.erase(),
            730..=799 => {
                let ms = [1, 50, 700, 5000, 40_000, 100_000][self.random.below(6) as usize];
                self.clock.advance(Duration::from_millis(ms));
                self.model.now += ms;
                self.see("time passes");
                self.note(|| format!("{ms} ms pass"));
            }
            800..=899 => self.maintain(),
            900..=919 => self.flush(),
            920..=939 => self.define(),
            940..=959 => self.trouble(),
            960..=969 => self.limit_room(),
            970..=979 => {
                let back = self.random.below(86_400_000);
                let wall = if self.random.chance(50) {
                    self.model.now.saturating_sub(back)
                } else {
                    self.model.now + back
                };
                // While the store is open, nobody follows it.
                self.clock.set_wall(UNIX_EPOCH + Duration::from_millis(wall));
                self.see("wall clock stepped");
            }
            980..=984 => self.close(),
            985..=988 => {
                let crash = self.any_crash();
                self.crash_now(crash);
            }
            _ => {
                let crash = self.any_crash();
                let most = [3, 10, 40][self.random.below(3) as usize];
                let after = self.random.below(most);
                self.disk.crash_after(after, crash);
                self.note(|| format!("{crash:?} is due after {after} steps"));
            }
        }
        if self.disk.crashed().is_some() {
            self.restart();
        }
    }

    fn any_crash(&mut self) -> Crash {
        if self.random.chance(50) { Crash::Kill } else { Crash::PowerCut }
    }

    fn any_key(&mut self) -> Key {
        // A few keys are busier than others.
        let at = self.random.below(self.keys.len() as u64).min(self.random.below(20));
        self.keys[at as usize].clone()
    }

    fn any_token(&mut self, key: &Key) -> Token {
        let current = self.model.state(key).token();
        let given = &self.given[key];
        match self.random.below(10) {
            0 => 12_345,
            1 => given.iter().rev().nth(1).copied().unwrap_or(99),
            _ => current.or(given.last().copied()).unwrap_or(7),
        }
    }

    fn any_ask(&mut self) -> Ask {
        let fingerprint = match self.random.below(4) {
            0 | 1 => None,
            2 => Some(Fingerprint::of(b"payload")),
            _ => Some(Fingerprint::from_digest([5; 16])),
        };
        let reference = match self.random.below(3) {
            0 => None,
            number => Some(Reference([number as u8; 16])),
        };
        let owners = [None, None, Some(OwnerId([1; 16])), Some(OwnerId([2; 16]))];
        let owner = owners[self.random.below(4) as usize];
        let lease = [None, None, Some(100), Some(2500)][self.random.below(4) as usize];
        let dedupe_ttl = [None, None, Some(0), Some(1000)][self.random.below(4) as usize];
        Ask { fingerprint, reference, owner, lease, dedupe_ttl }
    }

    fn any_bring(&mut self, rules: &Rules) -> Bring {
        let len = match self.random.below(20) {
            0 => Some(SEGMENT_BYTES / 2),
            1 => Some(SEGMENT_BYTES / 2 + 1),
            2..=4 => Some(self.random.below(SEGMENT_BYTES / 2)),
            5..=7 => Some(self.random.below(9000)),
            8..=10 => None,
            11 => Some(0),
            _ => Some(self.random.below(200)),
        };
        // Bytes that differ from body to body, so that none is taken for another.
        let first = self.random.next();
        let body = len.map(|len| {
            // They repeat, so each copy doubles what is there.
            let len = len as usize;
            let mut bytes = Vec::with_capacity(len.max(57));
            bytes.extend((0..57).map(|at| (first >> at) as u8));
            while bytes.len() < len {
                bytes.extend_from_within(..bytes.len().min(len - bytes.len()));
            }
            bytes.truncate(len);
            bytes.into()
        });
        let (replay_ttl, dedupe_ttl) = match self.random.below(6) {
            0..=2 => (None, None),
            3 => (Some(700.min(rules.dedupe_ttl)), None),
            4 => (Some(0), Some(3000)),
            _ => (None, Some(1500)),
        };
        let code = self.random.below(1000) as u16;
        let reference = self.random.chance(30).then_some(Reference([code as u8; 16]));
        Bring { body, code, reference, replay_ttl, dedupe_ttl, no_room: false }
    }

    fn any_call(&mut self) -> Call {
        let key = self.any_key();
        let asked = match self.random.below(10) {
            0 => Asked::Buffered,
            1 => Asked::Sync,
            _ => Asked::AsStore,
        };
        let rules = self.model.rules(key.0);
        match self.random.below(100) {
            0..=34 => Call::Claim(key, self.any_ask(), asked),
            35..=42 => Call::Once(key, self.any_ask(), asked),
            43..=52 => Call::Lookup(key),
            53..=57 => {
                let token = self.any_token(&key);
                let lease = [None, Some(100), Some(4000)][self.random.below(3) as usize];
                let lease = lease.map(|lease: u64| lease.min(rules.dedupe_ttl));
                Call::Renew(key, token, lease)
            }
            58..=79 => {
                let token = self.any_token(&key);
                let bring = self.any_bring(&rules);
                Call::Complete(key, token, bring, asked)
            }
            80..=84 => {
                let token = self.any_token(&key);
                Call::Release(key, token)
            }
            85..=88 => {
                let token = self.any_token(&key);
                Call::Park(key, token)
            }
            89..=95 => {
                let token = self.any_token(&key);
                let bring = self.random.chance(50).then(|| self.any_bring(&rules));
                Call::Resolve(key, token, bring)
            }
            _ => Call::Forget(key),
        }
    }

    /// Takes a key off the disk, where nothing stands in the way.
    fn erase(&mut self) {
        if self.is_troubled || self.has_little_room || self.is_poisoned() {
            return;
        }
        let key = self.any_key();
        self.call(Call::Erase(key));
    }

    fn is_gated(&self, asked: Asked) -> bool {
        match asked {
            Asked::Buffered => false,
            Asked::Sync => true,
            Asked::AsStore => self.mode != Mode::Buffered,
        }
    }

    /// Whether the caller waits until its change is durable.
    fn waits(&self, call: &Call) -> bool {
        match (call, call.asked()) {
            (Call::Renew(..) | Call::Lookup(_), _) | (_, Asked::Buffered) => false,
            (Call::Erase(_), _) | (_, Asked::Sync) => true,
            (_, Asked::AsStore) => self.mode == Mode::Sync,
        }
    }

    /// Rounds that ended since this was asked last.
    fn new_rounds(&mut self) -> u64 {
        let rounds = self.store().counts().rounds;
        rounds - std::mem::replace(&mut self.rounds, rounds)
    }

    /// Whatever key has had up to now will survive.
    fn raise_all(&mut self) {
        for versions in self.history.values_mut() {
            versions.drain(..versions.len() - 1);
        }
        for tokens in &mut self.fences {
            tokens.drain(..tokens.len() - 1);
        }
    }

    fn push(&mut self, key: &Key, is_gated: bool) {
        let entry = self.model.entry(key);
        let versions = self.history.get_mut(key).unwrap();
        if versions.last().unwrap().entry != entry {
            versions.push(Version { entry, is_gated });
        }
    }

    fn call(&mut self, call: Call) {
        let namespace = match self.store().namespace(&name(call.key().0)) {
            Ok(namespace) => namespace,
            // Known to the store, so nothing is written.
            Err(error) => panic!("{error}"),
        };
        let was_poisoned = self.is_poisoned();
        let in_batch = self.random.chance(30);
        if in_batch {
            self.see("batch");
        }
        let begun = self.clock.wall();
        let got = call.run_as(&namespace, in_batch);
        self.note(|| format!("{call:?} -> {got:?}"));
        // To erase something takes time.
        let took = self.clock.wall().duration_since(begun).unwrap().as_millis() as u64;
        if self.disk.crashed().is_some() {
            self.see(format!("crash in {}", call.name()));
            self.in_flight = Some(InFlight::Call(call, Box::new(self.model.clone())));
            return;
        }
        match got {
            Ok(reply) => self.judge(&call, &reply, was_poisoned),
            Err(failed) => self.failed(call, &failed, was_poisoned),
        }
        self.model.now += took;
    }

    fn judge(&mut self, call: &Call, reply: &Reply, was_poisoned: bool) {
        let key = call.key().clone();
        if was_poisoned {
            assert!(matches!(call, Call::Lookup(_)), "a poisoned store took {call:?}");
            if matches!(&self.in_flight, Some(InFlight::Call(it, _)) if *it.key() == key) {
                return;
            }
        }
        let new_rounds = self.new_rounds();
        if new_rounds > 0 {
            self.raise_all();
        }
        let no_room = matches!(reply, Reply::Completed { kept: BodyKept::NoRoom, .. })
            || self.is_not_extended(call, reply);
        assert!(!no_room || self.has_little_room || self.is_troubled, "there was room");
        let before = self.model.state(&key);
        let expected = call.apply(&mut self.model, reply.issued(), no_room);
        if let (State::Done(before), State::Done(after)) = (before, self.model.state(&key))
            && after.expires > before.expires
        {
            self.see("window extended");
        }
        // Nobody sees the deadline of an orphan, so which of its renewals has survived is not known.
        let is_renewal =
            matches!((reply, &expected), (Reply::Renewed { .. }, Reply::Renewed { .. }));
        let is_orphan = matches!(self.model.state(&key), State::Lapsed(_, EndCause::Orphaned));
        assert!(
            *reply == expected || (is_renewal && is_orphan),
            "{call:?}: {reply:?}, {expected:?}"
        );
        self.see(format!("{}: {}", call.name(), reply.word()));
        if let (
            Reply::Granted { token, .. }
            | Reply::Resumed { token, .. }
            | Reply::First { token, .. },
            _,
        )
        | (Reply::Completed { token, .. }, Call::Resolve(..)) = (reply, call)
        {
            self.given.get_mut(&key).unwrap().push(*token);
        }
        let is_gated = self.is_gated(call.asked());
        let before = self.history[&key].len();
        self.push(&key, is_gated);
        let has_changed = self.history[&key].len() > before;
        if has_changed && self.waits(call) {
            assert!(new_rounds > 0, "acknowledged before its round: {call:?}");
            self.raise_all();
        }
        // An outcome that was shown is as good as acknowledged.
        if let Reply::Face(Face::Done { .. }) | Reply::Mismatch(Some(KeyState::Completed)) = reply
            && self.history[&key].last().unwrap().is_gated
        {
            let versions = self.history.get_mut(&key).unwrap();
            if versions.len() > 1 {
                versions.drain(..versions.len() - 1);
                assert!(new_rounds > 0, "shown before its round: {call:?}");
            }
        }
    }

    /// Whether a duplicate was told of the end that a completed key had, and not of a later one.
    fn is_not_extended(&self, call: &Call, reply: &Reply) -> bool {
        let Reply::Face(Face::Done { expires, .. }) = reply else { return false };
        let is_hit = matches!(call, Call::Claim(..) | Call::Once(..));
        is_hit && self.model.refreshed(call.key()).is_some_and(|later| later.expires != *expires)
    }

    fn failed(&mut self, call: Call, failed: &Failed, was_poisoned: bool) {
        self.see(match failed {
            Failed::Full => "error: full",
            Failed::Store(StoreError::Unknown { .. }) => "error: unknown",
            Failed::Store(StoreError::Poisoned { .. }) => "error: poisoned",
            Failed::Store(StoreError::Io(_)) => "error: io",
            Failed::Store(other) => panic!("{call:?}: {other}"),
        });
        match failed {
            Failed::Full => {
                assert!(self.has_little_room || self.is_troubled, "there was room for {call:?}");
                let takes_room = matches!(
                    call,
                    Call::Claim(..) | Call::Once(..) | Call::Renew(..) | Call::Forget(_)
                );
                assert!(takes_room, "{call:?}");
            }
            Failed::Store(StoreError::Unknown { .. }) => {
                assert!(self.is_poisoned() && !was_poisoned && self.is_troubled, "{call:?}");
                self.is_cache_doubtful = true;
                self.in_flight = Some(InFlight::Call(call, Box::new(self.model.clone())));
            }
            Failed::Store(StoreError::Poisoned { .. }) => {
                assert!(self.is_poisoned(), "{call:?}");
                assert!(self.is_troubled, "poisoned by nothing");
                // A round that somebody else's outcome waited for can be the one that failed.
                self.is_cache_doubtful = true;
            }
            Failed::Store(_) => {
                // A granted claim can be ended, whatever the disk says, but after several openings
                // without room.
                // (To resolve a key takes the room of its renewal, if it has not been renewed.)
                let is_exit =
                    matches!(call, Call::Complete(..) | Call::Release(..) | Call::Park(..));
                let is_cramped = self.cramped_opens >= 2;
                assert!(self.is_troubled || !is_exit || is_cramped, "{call:?}: {failed:?}");
                assert!(self.is_troubled || self.has_little_room, "{call:?}: {failed:?}");
            }
        }
    }

    fn maintain(&mut self) {
        let before = self.store().counts();
        self.store().maintain(Duration::MAX);
        let after = self.store().counts();
        for (what, before, after) in [
            ("maintenance purged", before.purged, after.purged),
            ("maintenance copied", before.copied, after.copied),
            ("maintenance recycled", before.recycled, after.recycled),
        ] {
            if after > before {
                self.see(what);
            }
        }
        if self.disk.crashed().is_none() && !self.is_poisoned() && self.new_rounds() > 0 {
            self.raise_all();
            self.see("maintenance made a round");
        }
        if self.disk.crashed().is_some() {
            self.see("crash in maintenance");
        } else if self.is_poisoned() {
            assert!(self.is_troubled);
            self.is_cache_doubtful = true;
        }
        self.note(|| "maintain".to_owned());
    }

    fn flush(&mut self) {
        let flushed = self.store().flush();
        self.note(|| format!("flush: {flushed:?}"));
        if self.disk.crashed().is_some() {
            self.see("crash in flush");
            return;
        }
        match flushed {
            Ok(()) => {
                self.see("flush");
                self.rounds = self.store().counts().rounds;
                self.raise_all();
            }
            Err(error) => {
                assert!(error.is_poisoned() && self.is_troubled, "{error}");
                self.is_cache_doubtful = true;
                self.see("flush failed");
            }
        }
    }

    /// Forgets every key of a namespace, and sometimes takes them off the disk, where nothing stands in the way.
    fn forget_all(&mut self) {
        if self.is_troubled || self.has_little_room || self.is_poisoned() {
            return;
        }
        let at = self.random.below(NAMESPACES as u64) as usize;
        let erases = self.random.chance(30);
        let space = self.store().namespace(&name(at)).unwrap();
        let begun = self.clock.wall();
        let got = match erases {
            false => space.forget_all("a test", "the simulation").map_err(|it| it.to_string()),
            true => match space.erase_all("a test", "the simulation", Duration::from_millis(50)) {
                Ok(Erased { keys, .. }) | Err(EraseError::TimedOut { keys, .. }) => Ok(keys),
                Err(other) => Err(other.to_string()),
            },
        };
        let took = self.clock.wall().duration_since(begun).unwrap().as_millis() as u64;
        self.note(|| format!("all of {at} is forgotten, erased {erases}: {got:?}"));
        if self.disk.crashed().is_some() {
            self.see("crash in forget all");
            self.in_flight = Some(InFlight::ForgetAll(at, Box::new(self.model.clone())));
            return;
        }
        let new_rounds = self.new_rounds();
        if new_rounds > 0 {
            self.raise_all();
        }
        let is_gated = self.is_gated(Asked::AsStore);
        let mut expected = 0;
        for key in self.keys.clone().into_iter().filter(|key| key.0 == at) {
            expected += u64::from(self.model.forget(&key).is_some());
            self.push(&key, is_gated);
        }
        assert_eq!(got, Ok(expected));
        if erases || self.mode == Mode::Sync {
            assert!(new_rounds > 0 || expected == 0, "acknowledged before its round");
            self.raise_all();
        }
        self.model.now += took;
        self.see(match (erases, expected) {
            (_, 0) => "nothing to forget at all",
            (false, _) => "forgotten with others",
            (true, _) => "erased with others",
        });
    }

    /// Shows a guard a token of a resource.
    fn admit(&mut self) {
        let resource = self.random.below(RESOURCES as u64) as usize;
        let newest = *self.fences[resource].last().unwrap();
        let token = (newest + self.random.below(4)).saturating_sub(1).max(1);
        let was_poisoned = self.is_poisoned();
        let guard = self.store().fence_guard("sinks", RETENTION);
        let admitted =
            guard.map(|it| it.admit(format!("{resource}"), FencingToken::from_raw(token)));
        self.note(|| format!("{token} is shown to {resource}: {admitted:?}"));
        if self.disk.crashed().is_some() {
            self.see("crash in admit");
            self.in_flight = Some(InFlight::Admit(resource, token));
            return;
        }
        let new_rounds = self.new_rounds();
        if new_rounds > 0 {
            self.raise_all();
        }
        match admitted {
            Ok(Ok(_)) => {
                assert!(token >= newest && !was_poisoned, "{token} of {newest}");
                self.see(if token > newest { "admit: newer" } else { "admit: the same" });
                if token > newest {
                    self.fences[resource].push(token);
                    if self.mode == Mode::Sync {
                        assert!(new_rounds > 0, "admitted before its round");
                        self.raise_all();
                    }
                }
            }
            Ok(Err(FenceError::Stale { newest: told, .. })) => {
                assert!(told.get() == newest && token < newest, "{token}: {told}, {newest}");
                self.see("admit: stale");
            }
            Ok(Err(error)) => {
                assert!(self.is_troubled || self.has_little_room || was_poisoned, "{error}");
                self.see("admit failed");
                self.is_cache_doubtful |= self.is_poisoned();
                if let FenceError::Store(StoreError::Unknown { .. }) = error {
                    self.in_flight = Some(InFlight::Admit(resource, token));
                }
            }
            Err(error) => {
                // The guard's namespace could not be made.
                assert!(self.is_troubled || self.has_little_room || was_poisoned, "{error}");
                self.is_cache_doubtful |= self.is_poisoned();
            }
        }
    }

    /// Each fence is one that may have survived.
    fn adopt_fences(&mut self, is_lossy: bool, in_flight: Option<(usize, u64)>) {
        let guard = self.store().fence_guard("sinks", RETENTION).unwrap();
        for (resource, tokens) in self.fences.iter_mut().enumerate() {
            let newest = guard.newest(format!("{resource}")).unwrap();
            let newest = newest.map_or(0, FencingToken::get);
            let floor = if is_lossy { 0 } else { tokens.len() - 1 };
            let is_own = in_flight == Some((resource, newest));
            assert!(tokens[floor..].contains(&newest) || is_own, "{newest} of {tokens:?}");
            *tokens = vec![newest];
        }
    }

    fn define(&mut self) {
        let namespace = self.random.below(NAMESPACES as u64) as usize;
        let policies = policies();
        let rules = policies[self.random.below(policies.len() as u64) as usize];
        let was_poisoned = self.is_poisoned();
        let altered = self.store().alter(&name(namespace), &rules.to_policy());
        self.note(|| format!("alter {namespace} to {rules:?}: {:?}", altered.as_ref().err()));
        if self.disk.crashed().is_some() {
            self.see("crash in alter");
            self.in_flight = Some(InFlight::Rules(namespace, rules));
            return;
        }
        match altered {
            Ok(_) => {
                self.see("alter");
                self.model.namespaces.insert(namespace, (rules, false));
            }
            Err(NamespaceError::Store(error)) => {
                assert!(self.is_troubled || was_poisoned, "{error}");
                self.see("alter failed");
                if let StoreError::Unknown { .. } = error {
                    self.is_cache_doubtful = true;
                    self.in_flight = Some(InFlight::Rules(namespace, rules));
                }
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn trouble(&mut self) {
        if self.is_troubled && self.random.chance(50) {
            self.disk.heal();
            self.note(|| "healed".to_owned());
            return;
        }
        let operations = ["sync", "write", "fill", "create", "sync_dir", "map", ""];
        let fault = Fault {
            operation: operations[self.random.below(operations.len() as u64) as usize],
            after: self.random.below(6),
            times: [1, 1, 3, u64::MAX][self.random.below(4) as usize],
            error: self.any_error(),
        };
        self.note(|| format!("{fault:?}"));
        self.disk.fail(fault);
        self.is_troubled = true;
    }

    fn any_error(&mut self) -> io::ErrorKind {
        use io::ErrorKind::{Other, OutOfMemory, PermissionDenied, QuotaExceeded, StorageFull};
        [Other, StorageFull, QuotaExceeded, OutOfMemory, PermissionDenied]
            [self.random.below(5) as usize]
    }

    fn limit_room(&mut self) {
        if self.has_little_room {
            self.disk.set_room(u64::MAX);
            self.has_little_room = false;
            self.cramped_opens = 0;
        } else {
            self.disk.set_room(self.random.below(2 << 20));
            self.has_little_room = true;
            self.see("disk is small");
        }
        let is_small = self.has_little_room;
        self.note(|| format!("little room: {is_small}"));
    }

    fn close(&mut self) {
        let store = self.store.take().unwrap();
        let closed = store.close();
        self.note(|| format!("close: {closed:?}"));
        if self.disk.crashed().is_some() {
            self.see("crash in close");
        } else if closed.is_ok() {
            self.see("close");
            self.rounds = 0;
            self.raise_all();
        } else {
            self.see("close failed");
            assert!(self.is_troubled, "{closed:?}");
            self.is_cache_doubtful = true;
        }
        drop(store);
        if self.disk.crashed().is_some() {
            self.restart();
            return;
        }
        if closed.is_ok() && self.random.chance(50) {
            // The wall clock is set back while nobody looks.
            let back = self.random.below(5000);
            let wall = self.model.now.saturating_sub(back);
            self.clock.set_wall(UNIX_EPOCH + Duration::from_millis(wall));
        } else {
            self.catch_up();
        }
        let is_clean = closed.is_ok();
        // Whatever happens to the machine while the store is closed.
        if self.random.chance(30) {
            self.disk.crash(Crash::PowerCut);
            self.see("power cut while closed");
        }
        let is_lossy = !is_clean;
        self.recover(is_lossy, is_clean);
    }

    /// The wall clock shows the store's time, or a later one.
    fn catch_up(&mut self) {
        let wall = self.model.now + [0, 0, 10, 100_000][self.random.below(4) as usize];
        self.clock.set_wall(UNIX_EPOCH + Duration::from_millis(wall));
    }

    fn crash_now(&mut self, crash: Crash) {
        self.disk.crash(crash);
        self.note(|| format!("{crash:?} now"));
        self.restart();
    }

    /// The process is gone: another one opens the store.
    fn restart(&mut self) {
        let (crash, during) = self.disk.crashed().unwrap();
        self.see(format!("{crash:?} during {during}"));
        if let Some(store) = self.store.take() {
            store.abandon();
        }
        self.catch_up();
        // A sync may have failed in the very call that the crash ended.
        self.is_cache_doubtful |= self.failed_syncs() > self.syncs_failed_before;
        let is_lossy = crash == Crash::PowerCut || self.is_cache_doubtful;
        self.recover(is_lossy, false);
    }

    fn recover(&mut self, mut is_lossy: bool, is_clean: bool) {
        let mut is_first = true;
        loop {
            self.reopen(false);
            if self.store.is_some() && self.disk.crashed().is_none() {
                break;
            }
            is_first = false;
            // A sync that fails while a tail is written again leaves it in the page cache at best.
            is_lossy |= self.is_cache_doubtful || self.failed_syncs() > self.syncs_failed_before;
            if let Some((crash, during)) = self.disk.crashed() {
                self.see(format!("{crash:?} during {during} of open"));
                is_lossy |= crash == Crash::PowerCut;
            }
            if let Some(store) = self.store.take() {
                store.abandon();
            }
        }
        let report = self.store().report().clone();
        self.note(|| format!("{report:?}"));
        assert!(!is_clean || !is_first || report.clean, "{report:?}");
        if !report.torn_tails.is_empty() {
            self.see("torn tail");
        }
        if report.rewritten_bytes > 0 {
            self.see("tail rewritten");
        }
        self.check_namespaces();
        self.adopt(is_lossy);
    }

    /// Opens the store, perhaps under faults, perhaps to crash on the way. Leaves none when it could
    /// not be opened.
    fn reopen(&mut self, is_first: bool) {
        let fs = self.disk.mount();
        self.is_troubled = false;
        self.mode = [Mode::Sync, Mode::Buffered, Mode::Interval][self.random.below(3) as usize];
        let shards: usize = 1 << self.random.below(8);
        let lanes = 1 << (shards.trailing_zeros() % 4);
        if self.random.chance(20) {
            let crash = self.any_crash();
            self.disk.crash_after(self.random.below(60), crash);
        }
        if self.random.chance(10) {
            let operations = ["read", "read", "open", "list", "lock", "map", "sync", "write", ""];
            let operation = operations[self.random.below(operations.len() as u64) as usize];
            let after = self.random.below(20);
            let fault = Fault { operation, after, times: 1, error: self.any_error() };
            self.disk.fail(fault);
            self.is_troubled = true;
        }
        let opened = Options::new("unused")
            .file_system(fs)
            .clock(self.clock.clone())
            .durability(match self.mode {
                Mode::Sync => Durability::Sync,
                Mode::Buffered => Durability::Buffered,
                Mode::Interval => Durability::Interval(Duration::from_millis(20)),
            })
            .shards(shards)
            .lanes(lanes)
            .shared_by_chance(self.disk.steps())
            .segment_bytes(SEGMENT_BYTES)
            .manual_maintenance(true)
            .open();
        let error = opened.as_ref().err().map(ToString::to_string);
        let mode = self.mode;
        self.note(|| format!("open as {mode:?} with {shards} shards, {lanes} lanes: {error:?}"));
        match opened {
            Ok(store) => self.store = Some(store),
            Err(error) => {
                let is_crashed = self.disk.crashed().is_some();
                let is_about_room = matches!(&error, OpenError::Full { .. });
                match &error {
                    OpenError::Io(_) => assert!(is_crashed || self.is_troubled, "{error}"),
                    OpenError::Full { .. } => {
                        assert!(is_crashed || self.is_troubled || self.has_little_room, "{error}");
                    }
                    other => panic!("open was refused: {other}"),
                }
                if !is_crashed {
                    self.see("open failed");
                    self.is_cache_doubtful = true;
                }
                if is_about_room && self.has_little_room {
                    self.limit_room();
                }
            }
        }
        if self.store.is_some() && self.disk.crashed().is_none() {
            self.disk.call_off_crash();
            self.disk.heal();
            self.is_troubled = false;
            self.is_cache_doubtful = false;
            self.syncs_failed_before = self.failed_syncs();
            self.rounds = self.store().counts().rounds;
            self.cramped_opens += u32::from(self.has_little_room);
            if is_first {
                self.check_namespaces();
            }
        } else if is_first {
            // Nothing was promised yet.
            if let Some((crash, during)) = self.disk.crashed() {
                self.see(format!("{crash:?} during {during} of open"));
            }
            if let Some(store) = self.store.take() {
                store.abandon();
            }
            self.reopen(true);
        }
    }

    fn check_namespaces(&mut self) {
        let names = self.store().namespaces();
        for namespace in 0..NAMESPACES {
            let exists = names.contains(&name(namespace));
            assert!(exists || !self.known[namespace], "namespace {namespace} is gone");
            if !exists {
                self.model.namespaces.insert(namespace, (Rules::default(), true));
            }
            let rules =
                self.model.namespaces.entry(namespace).or_insert((Rules::default(), true)).0;
            let got = self.store().namespace(&name(namespace)).unwrap().policy();
            self.known[namespace] = true;
            if let Some(InFlight::Rules(of, asked)) = self.in_flight
                && of == namespace
                && got == asked.to_policy()
            {
                self.model.namespaces.insert(namespace, (asked, false));
                continue;
            }
            assert_eq!(got, rules.to_policy(), "the policy of namespace {namespace}");
        }
        // Making namespaces may have made rounds; nothing was appended before them.
        self.rounds = self.store().counts().rounds;
    }

    /// Compares every key with its history, and goes on from what is there.
    fn adopt(&mut self, is_lossy: bool) {
        let report = self.store().report().clone();
        let wall = ms_of(self.clock.wall());
        let now = wall + report.clock_behind.as_millis() as u64;
        // Time does not go back, or what has expired would come back.
        assert!(is_lossy || now >= self.model.now, "{now} is before {}", self.model.now);
        let (mut in_flight, mut forgotten, mut admitted) = (None, None, None);
        match self.in_flight.take() {
            Some(InFlight::Call(call, model)) => in_flight = Some((call, model)),
            Some(InFlight::ForgetAll(namespace, model)) => forgotten = Some((namespace, model)),
            Some(InFlight::Admit(resource, token)) => admitted = Some((resource, token)),
            Some(InFlight::Rules(..)) | None => {}
        }
        self.adopt_fences(is_lossy, admitted);
        let mut old = self.model.clone();
        self.model.now = now;
        self.model.open += 1;
        self.model.mismatches.clear();
        let mut is_dropped = false;
        for key in self.keys.clone() {
            let namespace = self.store().namespace(&name(key.0)).unwrap();
            let lookup = namespace.lookup(&key.1);
            let seen = Face::of_lookup(&lookup.unwrap_or_else(|error| panic!("{error}")));
            let versions = self.history[&key].clone();
            let mut candidates: Vec<(Option<Entry>, Option<Token>)> = vec![];
            let own = in_flight.as_ref().filter(|(call, _)| *call.key() == key);
            if let Some((call, before)) = own {
                let token = seen.token().filter(|token| !old.knows(*token));
                for no_room in [false, true] {
                    let mut after = before.clone();
                    // Nobody was told the token, so it is not given out yet.
                    call.apply(&mut after, token, no_room);
                    candidates.push((after.entry(&key), token));
                }
            }
            if let Some((_, before)) = forgotten.as_ref().filter(|(of, _)| *of == key.0) {
                let mut after = before.clone();
                after.forget(&key);
                candidates.push((after.entry(&key), None));
            }
            let floor = if is_lossy { 0 } else { versions.len() - 1 };
            let last = versions.len() - 1;
            candidates.extend(versions[floor..].iter().rev().map(|it| (it.entry.clone(), None)));
            let count = candidates.len();
            let mut chosen = None;
            // The store may have been seen to live until now, or not for a long time.
            let with_time = candidates.into_iter().enumerate();
            let with_time = with_time.flat_map(|(number, it)| {
                [old.now, 0].map(|stopped| (number, it.0.clone(), it.1, stopped))
            });
            for (number, entry, token, stopped) in with_time {
                self.model.set_entry(&key, entry);
                self.model.reopen_entry(&key, stopped);
                if Face::of_state(&self.model.state(&key), now) == seen {
                    chosen = Some((number, token));
                    break;
                }
            }
            let Some((number, token)) = chosen else {
                panic!(
                    "{key:?} is {seen:?}; it was {:?} and may be any of {count} states: {:#?}, in \
                     flight: {in_flight:?}",
                    Face::of_state(&old.state(&key), old.now),
                    &versions[floor..]
                );
            };
            let is_known = in_flight.is_none() && forgotten.is_none();
            is_dropped |= number + 1 == count && last > floor && is_known;
            let is_new = token.is_some_and(|token| {
                self.model.entry(&key).is_some_and(|entry| {
                    let shown = match entry {
                        Entry::Claimed(it) => it.token,
                        Entry::Parked(it) => it.token,
                        Entry::Done(it) => it.token,
                    };
                    shown == token
                })
            });
            if let Some(token) = token.filter(|_| is_new) {
                self.model.issued(&key, token);
                old.issued(&key, token);
                self.given.get_mut(&key).unwrap().push(token);
                self.see("what was under way is there");
            }
            let entry = self.model.entry(&key);
            self.history.insert(key, vec![Version { entry, is_gated: false }]);
        }
        if is_dropped {
            self.see("a power cut dropped what was acknowledged as buffered");
        }
        self.store().check_invariants().unwrap();
        self.rounds = self.store().counts().rounds;
    }

    /// Faults stop: every key can be brought to an end, and all of it survives.
    fn finish(&mut self) {
        self.disk.heal();
        self.disk.call_off_crash();
        if self.has_little_room {
            self.limit_room();
        }
        self.crash_now(Crash::PowerCut);
        self.disk.set_room(u64::MAX);
        for key in self.keys.clone() {
            self.call(Call::Forget(key.clone()));
            let rules = self.model.rules(key.0);
            let fingerprint = rules.fingerprint_required.then(|| Fingerprint::of(b"payload"));
            let ask = Ask { fingerprint, ..Ask::default() };
            self.call(Call::Claim(key.clone(), ask, Asked::Sync));
            let token = self.model.state(&key).token().expect("the claim was granted");
            let bring = self.any_bring(&rules);
            self.call(Call::Complete(key, token, bring, Asked::Sync));
        }
        assert!(!self.is_poisoned() && self.disk.crashed().is_none());
        for key in self.keys.clone() {
            self.call(Call::Lookup(key));
        }
        self.disk.crash(Crash::PowerCut);
        self.restart();
        let mut done = 0;
        for key in self.keys.clone() {
            done += u64::from(matches!(
                Face::of_state(&self.model.state(&key), self.model.now),
                Face::Done { .. } | Face::Absent
            ));
        }
        assert_eq!(done, self.keys.len() as u64);
        self.see("came to its end");
    }
}
