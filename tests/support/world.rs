//! A store and its model side by side: operations drive both, and every answer is compared whole.

use std::collections::VecDeque;
use std::task::Poll;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use refrain::testing::{HeapFs, SimClock};
use refrain::{
    Body, Claim, ClaimError, ClaimOptions, CompleteError, CompleteOptions, Durability,
    FencingToken, Fingerprint, FingerprintRule, Lease, LeaseError, LeaseLost, Lookup, Lost,
    NamespaceError, OnOrphan, Once, Options, Outcome, OwnerId, Quota, Reference, Resolution,
    ResolveError, Store,
};

use super::calls::Face;
use super::model::{
    Ask, Bring, Bytes, Done, Entry, Exit, Key, Model, Rules, State, Stored, Token, Verdict,
};

use super::task::Task;

pub const SEGMENT_BYTES: u64 = 256 << 10;

/// Which token a caller shows.
#[derive(Clone, Copy, Debug)]
pub enum Shown {
    /// The key's current one, if it has one.
    Current,
    /// One that the key had before.
    Older,
    /// One that nobody was ever given.
    Bogus,
}

/// One step. Numbers are taken modulo what there is.
#[derive(Clone, Debug)]
pub enum Step {
    Claim {
        key: usize,
        fingerprint: u8,
        reference: u8,
        lease: u8,
        quick: bool,
    },
    Once {
        key: usize,
        fingerprint: u8,
        reference: u8,
        ttl: u8,
    },
    Lookup {
        key: usize,
    },
    /// Claims the next key that is completed, shortly before it is forgotten.
    ClaimNearEnd {
        key: usize,
    },
    Renew {
        key: usize,
        shown: Shown,
        lease: u8,
    },
    Complete {
        key: usize,
        shown: Shown,
        body: u8,
        code: u8,
        reference: u8,
        ttl: u8,
        quick: bool,
    },
    Release {
        key: usize,
        shown: Shown,
        quick: bool,
    },
    Park {
        key: usize,
        shown: Shown,
        quick: bool,
    },
    Resolve {
        key: usize,
        shown: Shown,
        body: Option<u8>,
        code: u8,
    },
    Forget {
        key: usize,
    },
    /// Everything of the key's namespace, or of its scope.
    ForgetAll {
        key: usize,
        whole: bool,
    },
    Orphans,
    Advance {
        ms: u64,
    },
    Define {
        namespace: usize,
        policy: usize,
    },
    Alter {
        namespace: usize,
        policy: usize,
    },
    SetWall {
        seconds: u64,
    },
    Maintain,
    Flush,
    Close {
        shards: u8,
        mode: u8,
        back_ms: u64,
        forward_ms: u64,
    },
    Kill {
        shards: u8,
        mode: u8,
        forward_ms: u64,
    },
}

pub const NAMESPACES: usize = 3;
/// Leases that are looked at after each step.
const LEASES: usize = 6;

/// Every key of the tests: in which namespace, and its bytes.
pub fn keys() -> Vec<Key> {
    let mut keys = Vec::new();
    for namespace in 0..NAMESPACES {
        keys.push((namespace, (*b"a").into()));
        keys.push((namespace, (*b"order-17").into()));
        keys.push((namespace, [b'k'; 300].into()));
    }
    keys.push((0, [0; 4096].into()));
    // Of scopes, see `scope_of`.
    keys.push((0, (*b"@acme@a").into()));
    keys.push((0, (*b"@b@a").into()));
    keys.push((1, [&b"@acme@"[..], &[b'k'; 4096]].concat().into()));
    keys
}

/// The scope that a key of the model stands for, and the key in it: `@scope@key`.
fn scope_of(key: &[u8]) -> (Option<&[u8]>, &[u8]) {
    let Some(rest) = key.strip_prefix(b"@") else { return (None, key) };
    let end = rest.iter().position(|byte| *byte == b'@').unwrap();
    (Some(&rest[..end]), &rest[end + 1..])
}

/// The key as its handle takes it.
fn raw(key: &[u8]) -> &[u8] {
    scope_of(key).1
}

/// The handle that takes the key.
fn handle_of(store: &Store, (namespace, key): &Key) -> refrain::Namespace {
    let namespace = store.namespace(&name(*namespace)).unwrap();
    match scope_of(key).0 {
        None => namespace,
        Some(scope) => namespace.scoped(scope).unwrap(),
    }
}

/// Policies that differ in everything.
pub fn policies() -> Vec<Rules> {
    let plain = Rules::default();
    let short = Rules { lease: 1000, replay_ttl: 5000, dedupe_ttl: 20_000, ..plain };
    vec![
        plain,
        Rules { parks: true, ..short },
        Rules { on_orphan: OnOrphan::KeepLease, late_grace: Some(500), ..short },
        Rules { on_orphan: OnOrphan::Park, fingerprint: FingerprintRule::Count, ..short },
        Rules { parks: true, on_orphan: OnOrphan::Reclaim, replay_ttl: 0, ..short },
        Rules { parks: true, on_orphan: OnOrphan::KeepLease, ..short },
        Rules { fingerprint: FingerprintRule::Ignore, late_grace: Some(0), ..short },
        Rules { fingerprint_required: true, ..short },
        Rules { refresh_below: Some(2), replay_ttl: 7000, dedupe_ttl: 8000, ..short },
        Rules { refresh_below: Some(4), ..short },
    ]
}

pub struct World {
    pub fs: HeapFs,
    pub clock: SimClock,
    pub store: Option<Store>,
    pub model: Model,
    keys: Vec<Key>,
    /// All tokens that a key was given.
    given: Vec<Vec<Token>>,
    bodies: Vec<Bytes>,
    /// Some of the leases that were granted last, and whether they are lost, until that was told.
    leases: VecDeque<(usize, Lease, Option<Task<LeaseLost>>)>,
    steps: u64,
    /// How often each thing happened.
    pub seen: std::collections::BTreeMap<&'static str, u64>,
    /// What of it had happened when the store was opened.
    seen_before: std::collections::BTreeMap<&'static str, u64>,
}

pub fn ms_of(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

pub fn name(namespace: usize) -> String {
    format!("namespace-{namespace}")
}

fn durability(mode: u8) -> Durability {
    match mode % 3 {
        0 => Durability::Sync,
        1 => Durability::Buffered,
        _ => Durability::Interval(Duration::from_millis(20)),
    }
}

/// Some claims have an owner, and two of them the same one.
fn owner(number: u8) -> Option<OwnerId> {
    match number % 8 {
        0..=2 => Some(OwnerId([1; 16])),
        3 => Some(OwnerId([2; 16])),
        _ => None,
    }
}

impl World {
    pub fn new() -> Self {
        let (fs, clock) = (HeapFs::new(), SimClock::new());
        let model = Model::new(ms_of(clock.wall()), SEGMENT_BYTES as usize / 2);
        let keys = keys();
        let body = |len: usize, byte: u8| Bytes::from(vec![byte; len]);
        let bodies = vec![
            body(0, 0),
            (*b"receipt").into(),
            body(100, 7),
            body(5000, 9),
            body(SEGMENT_BYTES as usize / 2, 11),
            body(SEGMENT_BYTES as usize / 2 + 1, 12),
        ];
        let given = vec![Vec::new(); keys.len()];
        let seen = std::collections::BTreeMap::new();
        let mut world = Self {
            fs,
            clock,
            store: None,
            model,
            keys,
            given,
            bodies,
            leases: VecDeque::new(),
            steps: 0,
            seen,
            seen_before: std::collections::BTreeMap::new(),
        };
        world.open(64, 0);
        for namespace in 0..NAMESPACES {
            world.namespace(namespace);
        }
        // Far beyond what there will be: it is counted, and checked with the other invariants.
        let quota = Quota::default().keys(1 << 40);
        (0..2).for_each(|namespace| world.store().limit(&name(namespace), &quota).unwrap());
        // One of both, one of namespaces alone, one of scopes alone.
        for namespace in [0, 2] {
            world.store().limit_scopes(&name(namespace), &quota).unwrap();
        }
        world
    }

    fn see(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    fn open(&mut self, shards: u8, mode: u8) {
        let store = Options::new("unused")
            .file_system(self.fs.clone())
            .clock(self.clock.clone())
            .durability(durability(mode))
            .shards(1 << (shards % 8))
            .lanes(1 << (shards / 8 % 4))
            .shared_by_chance(u64::from(shards))
            .segment_bytes(SEGMENT_BYTES)
            .manual_maintenance(true)
            .open();
        self.store = Some(store.unwrap());
        self.seen_before = self.seen.clone();
    }

    /// What the store has counted since it was opened, and what was seen.
    fn compare_counts(&self) {
        let seen = |names: &[&str]| {
            let of = |seen: &std::collections::BTreeMap<&'static str, u64>, name: &str| {
                seen.get(name).copied().unwrap_or_default()
            };
            let since = |name: &&str| of(&self.seen, name) - of(&self.seen_before, name);
            names.iter().map(since).sum::<u64>()
        };
        let calls = self.store().counts().calls;
        let counted = [
            (calls.granted, seen(&["claim acquired", "claim taken over"])),
            (calls.resumed, seen(&["claim resumed"])),
            (calls.marked, seen(&["once first"])),
            (calls.replayed, seen(&["claim completed", "once seen"])),
            (calls.in_progress, seen(&["claim in progress", "once in progress"])),
            (calls.mismatches, seen(&["claim mismatch", "once mismatch"])),
            (calls.parked, seen(&["claim parked", "once parked"])),
            (calls.completed, seen(&["completed"])),
            (calls.released, seen(&["release"])),
            (calls.left_parked, seen(&["park"])),
            (calls.renewed, seen(&["renew", "renew late"])),
            (calls.resolved, seen(&["resolve done", "resolve not done"])),
            (calls.forgotten, seen(&["forget", "forgotten with others"])),
        ];
        for (at, (counted, seen)) in counted.into_iter().enumerate() {
            assert_eq!(counted, seen, "count {at} of {calls:?}");
        }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn namespace(&mut self, namespace: usize) -> refrain::Namespace {
        self.model.namespaces.entry(namespace).or_insert((Rules::default(), true));
        self.store().namespace(&name(namespace)).unwrap()
    }

    /// The handle of a key's namespace, or of its scope.
    fn space_of(&mut self, key: &Key) -> refrain::Namespace {
        self.namespace(key.0);
        handle_of(self.store(), key)
    }

    fn key(&self, key: usize) -> (usize, Key) {
        let index = key % self.keys.len();
        (index, self.keys[index].clone())
    }

    fn token(&self, index: usize, key: &Key, shown: Shown) -> Token {
        let given = &self.given[index];
        match shown {
            Shown::Bogus => 12_345,
            Shown::Older => given.iter().rev().nth(1).copied().unwrap_or(99),
            Shown::Current => {
                let current = self.model.state(key).token();
                current.or(given.last().copied()).unwrap_or(7)
            }
        }
    }

    fn fingerprint(&self, number: u8) -> Option<Fingerprint> {
        match number % 4 {
            0 | 1 => None,
            2 => Some(Fingerprint::of(b"payload")),
            _ => Some(Fingerprint::from_digest([5; 16])),
        }
    }

    fn reference(&self, number: u8) -> Option<Reference> {
        match number % 3 {
            0 => None,
            number => Some(Reference([number; 16])),
        }
    }

    fn bring(&self, body: u8, code: u8, reference: u8, ttl: u8) -> Bring {
        let body = match usize::from(body) % (self.bodies.len() + 1) {
            0 => None,
            body => Some(self.bodies[body - 1].clone()),
        };
        let (replay_ttl, dedupe_ttl) = match ttl % 6 {
            0..=2 => (None, None),
            3 => (Some(700), None),
            4 => (Some(0), Some(3000)),
            _ => (None, Some(1500)),
        };
        let reference = self.reference(reference);
        let code = u16::from(code % 3);
        Bring { body, code, reference, replay_ttl, dedupe_ttl, no_room: false }
    }

    /// Does one step on both, and compares.
    pub fn step(&mut self, step: &Step) {
        self.take(step);
        self.steps += 1;
        self.compare_leases();
        self.compare_counts();
    }

    fn take(&mut self, step: &Step) {
        match step.clone() {
            Step::Claim { key, fingerprint, reference, lease, quick } => {
                let lease = match lease % 4 {
                    0 | 1 => None,
                    2 => Some(100),
                    _ => Some(2500),
                };
                let ask = Ask {
                    fingerprint: self.fingerprint(fingerprint),
                    reference: self.reference(reference),
                    owner: owner(reference),
                    lease,
                    dedupe_ttl: None,
                };
                self.claim(key, &ask, quick);
            }
            Step::Once { key, fingerprint, reference, ttl } => {
                let ask = Ask {
                    fingerprint: self.fingerprint(fingerprint),
                    reference: self.reference(reference),
                    owner: None,
                    lease: None,
                    dedupe_ttl: [None, Some(0), Some(1000)][usize::from(ttl) % 3],
                };
                self.once(key, &ask);
            }
            Step::Lookup { key } => self.lookup(key),
            Step::ClaimNearEnd { key } => {
                for key in key..key + self.keys.len() {
                    if let State::Done(done) = self.model.state(&self.key(key).1) {
                        self.advance((done.expires - self.model.now) / 16 * 15);
                        self.claim(key, &Ask::default(), false);
                        break;
                    }
                }
            }
            Step::Renew { key, shown, lease } => self.renew(key, shown, lease),
            Step::Complete { key, shown, body, code, reference, ttl, quick } => {
                let bring = self.bring(body, code, reference, ttl);
                self.complete(key, shown, &bring, quick);
            }
            Step::Release { key, shown, quick } => self.release(key, shown, quick),
            Step::Park { key, shown, quick } => self.park(key, shown, quick),
            Step::Resolve { key, shown, body, code } => {
                let bring = body.map(|body| self.bring(body, code, body, code));
                self.resolve(key, shown, bring.as_ref());
            }
            Step::Forget { key } => self.forget(key),
            Step::ForgetAll { key, whole } => self.forget_all(key, whole),
            Step::Orphans => self.orphans(),
            Step::Advance { ms } => self.advance(ms),
            Step::Define { namespace, policy } => self.define(namespace, policy, false),
            Step::Alter { namespace, policy } => self.define(namespace, policy, true),
            Step::SetWall { seconds } => {
                // Steps of the wall clock are not followed while the store is open.
                self.clock.set_wall(UNIX_EPOCH + Duration::from_secs(seconds));
            }
            Step::Maintain => {
                self.store().maintain(Duration::MAX);
                self.see("maintain");
            }
            Step::Flush => {
                self.store().flush().unwrap();
                self.see("flush");
            }
            Step::Close { shards, mode, back_ms, forward_ms } => {
                self.close(shards, mode, back_ms, forward_ms);
            }
            Step::Kill { shards, mode, forward_ms } => self.kill(shards, mode, forward_ms),
        }
    }

    fn advance(&mut self, ms: u64) {
        self.clock.advance(Duration::from_millis(ms));
        self.model.now += ms;
    }

    /// Whether leases are their owners', and what is told of those that are lost.
    fn compare_leases(&mut self) {
        let mut told = vec![];
        for (index, lease, lost) in &mut self.leases {
            let state = self.model.state(&self.keys[*index]);
            let token = lease.token().get();
            let is_own = state.claim().is_some_and(|claimed| claimed.token == token);
            assert_eq!(lease.is_current().unwrap(), is_own, "{state:?}");
            // Not at each step: what an owner hears of may be the second thing that happened.
            if !self.steps.is_multiple_of(3) {
                continue;
            }
            let Some(Poll::Ready(how)) = lost.as_mut().map(Task::poll) else {
                let runs = is_own && matches!(state, State::Held(_));
                assert!(runs || lost.is_none(), "nothing is told of {state:?}");
                continue;
            };
            told.push(match how {
                Lost::LeaseEnded => {
                    assert!(is_own && !matches!(state, State::Held(_)), "{state:?}");
                    "lease ended"
                }
                Lost::Fenced { current } => {
                    assert!(!is_own && state.token() == Some(current.get()), "{state:?}");
                    "lease fenced"
                }
                Lost::Ended => {
                    let others = state.token().is_some_and(|current| current != token);
                    assert!(!is_own && !others, "{state:?}");
                    "claim ended"
                }
                other => panic!("a loss nobody knows: {other:?}"),
            });
            *lost = None;
        }
        told.into_iter().for_each(|what| self.see(what));
    }

    fn claim(&mut self, key: usize, ask: &Ask, quick: bool) {
        let (index, key) = self.key(key);
        let verdict = self.model.judge(&key, ask);
        let namespace = self.space_of(&key);
        let mut options = ClaimOptions::new();
        if let Some(it) = ask.fingerprint {
            options = options.fingerprint(it);
        }
        if let Some(it) = ask.reference {
            options = options.reference(it);
        }
        if let Some(it) = ask.owner {
            options = options.owner(it);
        }
        if let Some(it) = ask.lease {
            options = options.lease(Duration::from_millis(it));
        }
        let lease = ask.lease.unwrap_or(self.model.rules(key.0).lease);
        let answer = if quick {
            namespace.claim_async(raw(&key.1), &options).wait()
        } else {
            namespace.claim_with(raw(&key.1), &options)
        };
        match (verdict, answer) {
            (
                verdict @ (Verdict::Granted { .. } | Verdict::Own(_)),
                Ok(answer @ (Claim::Acquired(_) | Claim::Resumed(_))),
            ) => {
                let is_resumed = matches!(answer, Claim::Resumed(_));
                let got = answer.acquired().unwrap();
                let (attempt, previous) = match verdict {
                    Verdict::Own(held) if is_resumed => (held.attempt, held.previous),
                    Verdict::Granted { attempt, previous } if !is_resumed => (attempt, previous),
                    other => panic!("resumed: {is_resumed}, expected {other:?}"),
                };
                self.see(match (is_resumed, attempt) {
                    (true, _) => "claim resumed",
                    (false, 1) => "claim acquired",
                    (false, _) => "claim taken over",
                });
                let token = got.token().get();
                self.model.claim(&key, ask, token);
                self.given[index].push(token);
                assert_eq!(got.attempt(), attempt);
                let got_previous = got
                    .previous()
                    .map(|it| (it.token().get(), ms_of(it.at().unwrap()), it.cause()));
                assert_eq!(got_previous, previous);
                assert_eq!(got.lease_left(), Duration::from_millis(lease));
                assert_eq!(got.key(), raw(&key.1));
                let State::Held(claimed) = self.model.state(&key) else { panic!() };
                assert_eq!(got.deadline().map(ms_of), Some(claimed.deadline));
                assert_eq!(got.guaranteed_until().map(ms_of), claimed.forgotten_at);
                let lost = Task::new(got.lost()).begun();
                self.leases.push_back((index, got, Some(lost)));
                if self.leases.len() > LEASES {
                    self.leases.pop_front();
                }
            }
            (Verdict::Done(done), Ok(Claim::Completed(outcome))) => {
                self.see("claim completed");
                let done = self.hit(&key, done);
                self.compare_outcome(&done, &outcome);
            }
            (Verdict::Held(held), Ok(Claim::InProgress(it))) => {
                self.see("claim in progress");
                self.compare_held(&held, &it);
            }
            (Verdict::Parked(state), Ok(Claim::Parked(it))) => {
                self.see("claim parked");
                let expected = Face::of_state(&state, self.model.now);
                assert_eq!(Face::of_lookup(&Lookup::Parked(it)), expected);
            }
            (Verdict::Mismatch(state), Ok(Claim::Mismatch(it))) => {
                self.see("claim mismatch");
                assert_eq!(Some(it.state()), state.key_state());
                assert_eq!(Some(it.token().get()), state.token());
            }
            (Verdict::FingerprintRequired, Err(ClaimError::FingerprintRequired)) => {
                self.see("claim without fingerprint");
            }
            (expected, got) => panic!("claim of {key:?}: expected {expected:?}, got {got:?}"),
        }
        self.count_mismatches(key.0);
    }

    /// The completion that a duplicate was answered with, as it is known then.
    fn hit(&mut self, key: &Key, done: Done) -> Done {
        match self.model.hit(key) {
            State::Done(it) if it != done => {
                self.see("window extended");
                it
            }
            _ => done,
        }
    }

    fn count_mismatches(&mut self, namespace: usize) {
        let expected = self.model.mismatches.get(&namespace).copied().unwrap_or_default();
        assert_eq!(self.namespace(namespace).fingerprint_mismatches(), expected);
    }

    fn compare_held(&self, held: &super::model::Claimed, it: &refrain::InProgress) {
        assert_eq!(it.token().get(), held.token);
        assert_eq!(it.attempt(), held.attempt);
        assert_eq!(it.since().map(ms_of), Some(held.at));
        assert_eq!(it.deadline().map(ms_of), Some(held.deadline));
        assert_eq!(it.lease_left(), Duration::from_millis(held.deadline - self.model.now));
        assert_eq!(it.guaranteed_until().map(ms_of), held.forgotten_at);
        assert_eq!(it.reference(), held.reference);
    }

    fn compare_outcome(&self, done: &Done, outcome: &Outcome) {
        let now = self.model.now;
        let replay_over = now >= done.replay_until;
        match (&done.body, outcome.body()) {
            (Stored::Kept(_), Body::Expired) if replay_over => {}
            (Stored::Kept(body), Body::Bytes(bytes)) if !replay_over => assert_eq!(**body, *bytes),
            (Stored::None, Body::None) | (Stored::NoReplay(_), Body::Expired) => {}
            (Stored::TooLarge(body), Body::TooLarge { len }) => {
                assert_eq!(body.len(), len as usize);
            }
            (expected, got) => panic!("expected {expected:?}, got {got:?}"),
        }
        assert_eq!(outcome.code(), done.code);
        assert_eq!(outcome.reference(), done.reference);
        assert_eq!(outcome.token().get(), done.token);
        assert_eq!(outcome.first_token().get(), done.first);
        assert_eq!(outcome.attempt(), done.attempt);
        assert_eq!(outcome.completed_at().map(ms_of), Some(done.at));
        assert_eq!(outcome.age(), Duration::from_millis(now - done.at));
        assert_eq!(outcome.guaranteed_until().map(ms_of), Some(done.expires));
    }

    fn once(&mut self, key: usize, ask: &Ask) {
        let (index, key) = self.key(key);
        let verdict = self.model.judge(&key, ask);
        let namespace = self.space_of(&key);
        let mut options = ClaimOptions::new();
        if let Some(it) = ask.fingerprint {
            options = options.fingerprint(it);
        }
        if let Some(it) = ask.reference {
            options = options.reference(it);
        }
        if let Some(it) = ask.dedupe_ttl {
            options = options.dedupe_ttl(Duration::from_millis(it));
        }
        match (verdict, namespace.once_with(raw(&key.1), &options)) {
            (Verdict::Granted { attempt, previous }, Ok(Once::First(first))) => {
                self.see("once first");
                let token = first.token().get();
                self.model.once(&key, ask, token);
                self.given[index].push(token);
                assert_eq!(first.attempt(), attempt);
                assert_eq!(first.previous().map(|it| it.token().get()), previous.map(|it| it.0));
            }
            (Verdict::Done(done), Ok(Once::Seen(outcome))) => {
                self.see("once seen");
                let done = self.hit(&key, done);
                self.compare_outcome(&done, &outcome);
            }
            (Verdict::Held(held), Ok(Once::InProgress(it))) => {
                self.see("once in progress");
                self.compare_held(&held, &it);
            }
            (Verdict::Parked(state), Ok(Once::Parked(it))) => {
                self.see("once parked");
                assert_eq!(Some(it.token().get()), state.token());
            }
            (Verdict::Mismatch(state), Ok(Once::Mismatch(it))) => {
                self.see("once mismatch");
                assert_eq!(Some(it.state()), state.key_state());
            }
            (Verdict::FingerprintRequired, Err(ClaimError::FingerprintRequired)) => {}
            (expected, got) => panic!("once of {key:?}: expected {expected:?}, got {got:?}"),
        }
    }

    fn lookup(&mut self, key: usize) {
        let (_, key) = self.key(key);
        self.compare_lookup(&key);
        self.see("lookup");
    }

    fn compare_lookup(&mut self, key: &Key) {
        let state = self.model.state(key);
        let namespace = self.space_of(key);
        match (state, namespace.lookup(raw(&key.1)).unwrap()) {
            (State::Absent, Lookup::Absent) => {}
            (State::Held(held), Lookup::InProgress(it)) => self.compare_held(&held, &it),
            (State::Lapsed(claim, cause), Lookup::Lapsed(it)) => {
                assert_eq!(it.token().get(), claim.token);
                assert_eq!(it.attempt(), claim.attempt);
                assert_eq!(it.cause(), cause);
                assert_eq!(it.since().map(ms_of), Some(claim.at));
                assert_eq!(it.guaranteed_until().map(ms_of), claim.forgotten_at);
                assert_eq!(it.reference(), claim.reference);
            }
            (State::Overdue(claim), Lookup::Parked(it)) => {
                assert_eq!(it.token().get(), claim.token);
                assert_eq!(it.cause(), refrain::EndCause::LeaseEnded);
                assert_eq!(it.since().map(ms_of), Some(claim.deadline));
            }
            (State::Parked(parked), Lookup::Parked(it)) => {
                assert_eq!(it.token().get(), parked.token);
                assert_eq!(it.cause(), parked.cause);
                assert_eq!(it.since().map(ms_of), Some(parked.at));
                assert_eq!(it.reference(), parked.reference);
            }
            (State::Done(done), Lookup::Completed(outcome)) => {
                self.compare_outcome(&done, &outcome);
            }
            (expected, got) => panic!("lookup of {key:?}: expected {expected:?}, got {got:?}"),
        }
    }

    fn compare_refusal(&self, expected: Exit, token: Token, got: LeaseError) {
        match (expected, got) {
            (Exit::Forgotten, LeaseError::Forgotten { .. })
            | (Exit::Parked, LeaseError::Parked)
            | (Exit::Completed, LeaseError::Completed) => {}
            (Exit::Fenced(expected), LeaseError::Fenced { held, current }) => {
                assert_eq!((held.get(), current.get()), (token, expected));
            }
            (expected, got) => panic!("expected {expected:?}, got {got:?}"),
        }
    }

    fn renew(&mut self, key: usize, shown: Shown, lease: u8) {
        let (index, key) = self.key(key);
        let token = self.token(index, &key, shown);
        let lease = [None, None, Some(100), Some(4000)][usize::from(lease) % 4];
        let namespace = self.space_of(&key);
        let fencing = FencingToken::from_raw(token);
        let got = match lease {
            None => namespace.renew(raw(&key.1), fencing),
            Some(lease) => namespace.renew_for(raw(&key.1), fencing, Duration::from_millis(lease)),
        };
        match (self.model.renew(&key, token, lease), got) {
            (Ok(late_by), Ok(it)) => {
                self.see(if late_by.is_some() { "renew late" } else { "renew" });
                assert_eq!(it.late_by(), late_by.map(Duration::from_millis));
                let State::Held(claim) = self.model.state(&key) else {
                    // An orphan stays one.
                    return;
                };
                assert_eq!(it.deadline().map(ms_of), Some(claim.deadline));
                assert_eq!(it.guaranteed_until().map(ms_of), claim.forgotten_at);
            }
            (Err(expected), Err(got)) => {
                self.see("renew refused");
                self.compare_refusal(expected, token, got);
            }
            (expected, got) => panic!("renew of {key:?}: expected {expected:?}, got {got:?}"),
        }
    }

    fn release(&mut self, key: usize, shown: Shown, quick: bool) {
        let (index, key) = self.key(key);
        let token = self.token(index, &key, shown);
        let namespace = self.space_of(&key);
        let fencing = FencingToken::from_raw(token);
        let got = if quick {
            namespace.release_async(raw(&key.1), fencing).wait()
        } else {
            namespace.release(raw(&key.1), fencing)
        };
        match (self.model.release(&key, token), got) {
            (Exit::Accepted, Ok(())) => self.see("release"),
            (expected, Err(got)) => {
                self.see("release refused");
                self.compare_refusal(expected, token, got);
            }
            (expected, got) => panic!("release of {key:?}: expected {expected:?}, got {got:?}"),
        }
    }

    fn park(&mut self, key: usize, shown: Shown, quick: bool) {
        let (index, key) = self.key(key);
        let token = self.token(index, &key, shown);
        let namespace = self.space_of(&key);
        let fencing = FencingToken::from_raw(token);
        let got = if quick {
            namespace.park_async(raw(&key.1), fencing).wait()
        } else {
            namespace.park(raw(&key.1), fencing)
        };
        match (self.model.park(&key, token), got) {
            (Exit::Accepted, Ok(())) => self.see("park"),
            (expected, Err(got)) => {
                self.see("park refused");
                self.compare_refusal(expected, token, got);
            }
            (expected, got) => panic!("park of {key:?}: expected {expected:?}, got {got:?}"),
        }
    }

    fn complete(&mut self, key: usize, shown: Shown, bring: &Bring, quick: bool) {
        let (index, key) = self.key(key);
        let token = self.token(index, &key, shown);
        // A replay window that outlives a short policy's dedupe window is refused before all else.
        let rules = self.model.rules(key.0);
        let dedupe = bring.dedupe_ttl.unwrap_or(rules.dedupe_ttl);
        if bring.replay_ttl.is_some_and(|replay| replay > dedupe) {
            return;
        }
        let namespace = self.space_of(&key);
        let fencing = FencingToken::from_raw(token);
        let was_done = matches!(self.model.state(&key), State::Done(_));
        let options = complete_options(bring);
        let got = if quick {
            namespace.complete_async(raw(&key.1), fencing, &options).wait()
        } else {
            namespace.complete_with(raw(&key.1), fencing, &options)
        };
        match (self.model.complete(&key, token, bring), got) {
            (Ok(kept), Ok(it)) => {
                self.see(match kept {
                    refrain::BodyKept::Kept => "complete kept",
                    refrain::BodyKept::None => "complete without body",
                    refrain::BodyKept::TooLarge => "complete too large",
                    _ => "complete without replay",
                });
                if !was_done {
                    self.see("completed");
                }
                assert_eq!(it.body(), kept);
                assert_eq!(it.token().get(), token);
            }
            (Err(Exit::Fenced(expected)), Err(CompleteError::Fenced { held, current })) => {
                self.see("complete fenced");
                assert_eq!((held.get(), current.get()), (token, expected));
            }
            (Err(Exit::Forgotten), Err(CompleteError::Forgotten { .. })) => {
                self.see("complete forgotten");
            }
            (Err(Exit::Parked), Err(CompleteError::Parked)) => self.see("complete parked"),
            (Err(Exit::AlreadyCompleted(done)), Err(CompleteError::AlreadyCompleted(it))) => {
                self.see("complete already");
                self.compare_outcome(&done, &it);
            }
            (expected, got) => panic!("complete of {key:?}: expected {expected:?}, got {got:?}"),
        }
    }

    fn resolve(&mut self, key: usize, shown: Shown, bring: Option<&Bring>) {
        let (index, key) = self.key(key);
        let token = self.token(index, &key, shown);
        let rules = self.model.rules(key.0);
        if let Some(bring) = bring {
            let dedupe = bring.dedupe_ttl.unwrap_or(rules.dedupe_ttl);
            if bring.replay_ttl.is_some_and(|replay| replay > dedupe) {
                return;
            }
        }
        let namespace = self.space_of(&key);
        let resolution = match bring {
            Some(bring) => Resolution::Completed(complete_options(bring)),
            None => Resolution::NotDone,
        };
        let expected = self.model.resolvable(&key, token);
        let got = namespace.resolve(
            raw(&key.1),
            FencingToken::from_raw(token),
            &resolution,
            "a test",
            "nobody",
        );
        match (expected, got) {
            (Exit::Accepted, Ok(Some(it))) => {
                self.see("resolve done");
                let new = it.token().get();
                let kept = self.model.resolve_done(&key, bring.unwrap(), new);
                self.given[index].push(new);
                assert_eq!(it.body(), kept);
            }
            (Exit::Accepted, Ok(None)) => {
                assert!(bring.is_none());
                self.see("resolve not done");
                self.model.resolve_not_done(&key);
            }
            (Exit::Forgotten, Err(ResolveError::Forgotten)) => self.see("resolve forgotten"),
            (Exit::InProgress, Err(ResolveError::InProgress)) => self.see("resolve in progress"),
            (Exit::Fenced(expected), Err(ResolveError::Fenced { held, current })) => {
                self.see("resolve fenced");
                assert_eq!((held.get(), current.get()), (token, expected));
            }
            (Exit::AlreadyCompleted(done), Err(ResolveError::AlreadyCompleted(it))) => {
                self.see("resolve already");
                self.compare_outcome(&done, &it);
            }
            (expected, got) => panic!("resolve of {key:?}: expected {expected:?}, got {got:?}"),
        }
    }

    fn forget(&mut self, key: usize) {
        let (_, key) = self.key(key);
        let expected = self.model.forget(&key);
        let got = self.space_of(&key).forget(raw(&key.1), "a test", "the model").unwrap();
        assert_eq!(got, expected);
        self.see(if got.is_some() { "forget" } else { "forget nothing" });
    }

    fn forget_all(&mut self, key: usize, whole: bool) {
        let (_, key) = self.key(key);
        let scope = scope_of(&key.1).0.filter(|_| !whole);
        let of = |it: &Key| it.0 == key.0 && (scope.is_none() || scope_of(&it.1).0 == scope);
        let all = keys().into_iter().filter(of);
        let expected = all.filter(|it| self.model.forget(it).is_some()).count();
        let space = match scope {
            None => self.store().namespace(&name(key.0)).unwrap(),
            Some(_) => handle_of(self.store(), &key),
        };
        // Some are taken off the disk, too, which takes time.
        let erases = expected % 3 == 1;
        let begun = self.clock.wall();
        let got = match erases {
            false => space.forget_all("a test", "the model").unwrap(),
            true => space.erase_all("a test", "the model", Duration::from_secs(60)).unwrap().keys,
        };
        self.model.now += self.clock.wall().duration_since(begun).unwrap().as_millis() as u64;
        if erases {
            self.see("erased");
        }
        assert_eq!(got, expected as u64);
        (0..got).for_each(|_| self.see("forgotten with others"));
        self.see(match (got, scope) {
            (0, _) => "forget all of nothing",
            (_, None) => "forget a namespace",
            (_, Some(_)) => "forget a scope",
        });
    }

    fn orphans(&mut self) {
        let expected = self.model.orphans();
        let got: Vec<_> = self
            .store()
            .orphans()
            .unwrap()
            .into_iter()
            .map(|it| {
                let namespace = (0..NAMESPACES).find(|at| name(*at) == it.namespace()).unwrap();
                let key = match it.scope() {
                    None => it.key().into(),
                    Some(scope) => [b"@", scope, b"@", it.key()].concat().into(),
                };
                ((namespace, key), it.token().get(), it.state())
            })
            .collect();
        assert_eq!(got, expected);
        self.see(if got.is_empty() { "no orphans" } else { "orphans" });
    }

    fn define(&mut self, namespace: usize, policy: usize, alter: bool) {
        let namespace = namespace % NAMESPACES;
        let rules = policies()[policy % policies().len()];
        let store = self.store();
        let got = if alter {
            store.alter(&name(namespace), &rules.to_policy())
        } else {
            store.define(&name(namespace), &rules.to_policy())
        };
        let (stored, implicit) = self.model.namespaces[&namespace];
        match got {
            Ok(it) => {
                assert!(alter || implicit || stored == rules);
                assert_eq!(it.policy(), rules.to_policy());
                self.model.namespaces.insert(namespace, (rules, false));
                self.see(if alter { "alter" } else { "define" });
            }
            Err(NamespaceError::PolicyConflict { stored: it, .. }) => {
                assert!(!alter && !implicit && stored != rules);
                assert_eq!(*it, stored.to_policy());
                self.see("define conflict");
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn close(&mut self, shards: u8, mode: u8, back_ms: u64, forward_ms: u64) {
        self.leases.clear();
        self.store.take().unwrap().close().unwrap();
        self.see("close");
        // While the store is closed, time goes on and the wall clock may be set back.
        let now = self.model.now;
        let wall = (now + forward_ms).saturating_sub(back_ms);
        self.clock.set_wall(UNIX_EPOCH + Duration::from_millis(wall));
        self.open(shards, mode);
        let report = self.store().report().clone();
        assert!(report.clean && !report.created && report.torn_tails.is_empty(), "{report:?}");
        assert_eq!(report.rewritten_bytes, 0);
        self.reopened(now.max(wall));
    }

    fn kill(&mut self, shards: u8, mode: u8, forward_ms: u64) {
        // The process dies: nothing is written any more, no destructor runs, the lock falls.
        self.leases.clear();
        self.store.take().unwrap().abandon();
        self.see("kill");
        let wall = self.model.now + forward_ms;
        self.clock.set_wall(UNIX_EPOCH + Duration::from_millis(wall));
        self.open(shards, mode);
        let report = self.store().report().clone();
        assert!(!report.clean && report.torn_tails.is_empty(), "{report:?}");
        self.reopened(wall);
    }

    fn reopened(&mut self, now: u64) {
        let before = self.model.clone();
        self.model.reopen(now);
        for key in self.keys.clone() {
            // A claim that is parked when its owner is lost, and that the clock forgot shortly before
            // the store was killed: if nothing on disk bears witness to that time, it is parked.
            let Some(Entry::Claimed(it)) = before.entry(&key) else { continue };
            let is_doubtful = it.on_orphan == OnOrphan::Park && self.model.entry(&key).is_none();
            let lookup = self.space_of(&key).lookup(raw(&key.1)).unwrap();
            if is_doubtful && matches!(lookup, Lookup::Parked(_)) {
                self.model.set_entry(&key, before.entry(&key));
                self.model.reopen_entry(&key, 0);
                self.see("parked late");
            }
        }
        let report = self.store().report().clone();
        let (completed, parked) = self.model.counts();
        assert_eq!((report.completed, report.parked), (completed, parked), "{report:?}");
        for namespace in 0..NAMESPACES {
            let rules = self.model.rules(namespace);
            assert_eq!(self.namespace(namespace).policy(), rules.to_policy());
        }
        self.compare_all();
    }

    /// Opens two copies of the files as they lie there, one by the indexes of its segments, one by reading
    /// every record: both know what this store knows, but for who still lives.
    pub fn compare_recovered(&mut self, how: u8) {
        self.clock.set_wall(UNIX_EPOCH + Duration::from_millis(self.model.now));
        let copies = [false, true].map(|is_whole| {
            let options = Options::new("unused").file_system(self.fs.copy().unwrap());
            let options = options.clock(self.clock.clone()).segment_bytes(SEGMENT_BYTES);
            let options = if is_whole {
                options.verify_at_open(true).shards(1 << (how % 4)).lanes(1 << (how / 4 % 4))
            } else {
                options
            };
            options.durability(durability(how)).manual_maintenance(true).open().unwrap()
        });
        let [by_index, by_record] = copies.each_ref().map(|copy| self.faces(copy));
        let live = self.faces(self.store());
        assert_eq!(by_index, by_record, "two ways to recover one store");
        for ((live, recovered), key) in live.iter().zip(&by_index).zip(&self.keys) {
            let is_same = match live {
                Face::Done { .. } => recovered == live,
                // That the clock forgot a claim just now may be lost with who knew it.
                Face::Absent => matches!(recovered, Face::Absent | Face::Parked { .. }),
                Face::Parked { .. } => recovered.token() == live.token(),
                // Its owner is gone.
                Face::Held { .. } | Face::Lapsed { .. } => recovered.token() == live.token(),
            };
            assert!(is_same, "{key:?} was {live:?}, and is {recovered:?}");
        }
        for copy in copies {
            copy.check_invariants().unwrap();
            copy.abandon();
        }
        self.see("recovered twice");
    }

    fn faces(&self, store: &Store) -> Vec<Face> {
        let face = |key: &Key| {
            let lookup = handle_of(store, key).lookup(raw(&key.1));
            Face::of_lookup(&lookup.unwrap())
        };
        self.keys.iter().map(face).collect()
    }

    /// Compares every key.
    pub fn compare_all(&mut self) {
        for key in self.keys.clone() {
            self.compare_lookup(&key);
        }
        self.store().check_invariants().unwrap();
    }
}

pub fn complete_options(bring: &Bring) -> CompleteOptions<'_> {
    let mut options = match &bring.body {
        Some(body) => CompleteOptions::body(body),
        None => CompleteOptions::new(),
    };
    options = options.code(bring.code);
    if let Some(it) = bring.reference {
        options = options.reference(it);
    }
    if let Some(it) = bring.replay_ttl {
        options = options.replay_ttl(Duration::from_millis(it));
    }
    if let Some(it) = bring.dedupe_ttl {
        options = options.dedupe_ttl(Duration::from_millis(it));
    }
    options
}
