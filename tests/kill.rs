//! Processes that are killed: one store carried through many rounds, every acknowledgement recorded
//! outside the process that is killed.
//!
//! A round: a child opens the store and works on it from several threads; each thread writes what
//! it is about to do and what it was answered to a pipe. The parent reads along, kills the child
//! at a random instant, opens the store, and compares every key with what was acknowledged. Of
//! each thread one operation may have been under way: the key is as before it or as after it. Or
//! the child ends itself at a named point, the n-th time it comes there, while it works, closes the
//! store, opens it again and defines namespaces.
//!
//! Rounds come by the hundred, and two workers take a hundred each. Of every tenth hundred all rounds
//! are long, on two stores or on one; of the others one round in ten is, and there is a new store after
//! every 25: to open a store, three times a round, takes as long as it is big. A kill does not ask
//! where the files are, so nine stores of ten are in memory (`/dev/shm`), where that is there, and the
//! others on a disk.
//!
//! `REFRAIN_ROUNDS` sets the number of rounds (200, and 4 for each point), `REFRAIN_SEED` the seed,
//! which gives every life its work: what is left to chance is when the kill comes.

#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use refrain::testing::{Clock, Point, end_process_at};
use refrain::{
    Body, Claim, ClaimOptions, CompleteOptions, Durability, FenceError, FenceGuard, FencingToken,
    Lease, Lookup, Namespace, OnOrphan, Once, Options, Outcome, OwnerId, Policy, Quota, Reference,
    Resolution, Store,
};
use support::Random;

const THREADS: usize = 3;
const NAMESPACES: [(&str, OnOrphan); 3] =
    [("reclaimed", OnOrphan::Reclaim), ("parked", OnOrphan::Park), ("kept", OnOrphan::KeepLease)];
/// Keys of each thread and namespace that come back in every round.
const COMMON_KEYS: u64 = 150;
/// Resources of each thread whose tokens a guard looks at.
const RESOURCES: u64 = 4;
/// Acknowledged calls of a long round, and of a short one.
const ACKNOWLEDGED_MIN: u64 = 1000;
const ACKNOWLEDGED_SPREAD: u64 = 2500;
const SHORT_SPREAD: u64 = 400;
/// Rounds of a life, of one store in most of them, and of one of which the processes end at named points.
const LIFE_ROUNDS: u64 = 100;
const STORE_ROUNDS: u64 = 25;
const POINT_ROUNDS: u64 = 5;
/// Lives at the same time.
const WORKERS: usize = 2;
/// Calls of a thread between two openings of the store, in rounds that end at a named point.
const CYCLE_CALLS: u64 = 400;

fn open(directory: &Path, round: u64) -> Store {
    options(directory, round).open().unwrap()
}

fn options(directory: &Path, round: u64) -> Options {
    let mut random = Random::new(round);
    let durability = match round % 4 {
        0 => Durability::Sync,
        1 | 2 => Durability::Buffered,
        _ => Durability::Interval(Duration::from_millis(3)),
    };
    Options::new(directory)
        .segment_bytes(256 << 10)
        .shards(1 << random.below(8))
        .lanes(1 << random.below(4))
        .durability(durability)
}

const DAY: Duration = Duration::from_secs(24 * 3600);

fn namespaces(store: &Store) -> Vec<Namespace> {
    // Far beyond what there will be: it is counted, and checked with the other invariants.
    let quota = Quota::default().keys(1 << 40);
    store.namespaces().iter().filter(|name| *name == NAMESPACES[0].0).for_each(|name| {
        store.limit(name, &quota).unwrap();
        store.limit_scopes(name, &quota).unwrap();
    });
    NAMESPACES
        .iter()
        .map(|(name, on_orphan)| {
            let policy = Policy::default().lease(DAY).dedupe_ttl(7 * DAY).replay_ttl(7 * DAY);
            store.define(name, &policy.on_orphan(*on_orphan)).unwrap()
        })
        .collect()
}

fn guard(store: &Store) -> FenceGuard {
    store.fence_guard("sink", 7 * DAY).unwrap()
}

/// One key in three is of a scope, which is its thread's.
fn scope_of(key: &str) -> Option<String> {
    let sum: u64 = key.bytes().map(u64::from).sum();
    sum.is_multiple_of(3).then(|| scope_of_thread(key.split('-').nth(1).unwrap()))
}

fn scope_of_thread(thread: impl std::fmt::Display) -> String {
    format!("of-{thread}")
}

/// The handle that takes a key.
fn space(namespaces: &[Namespace], at: usize, key: &str) -> Namespace {
    match scope_of(key) {
        None => namespaces[at].clone(),
        Some(scope) => namespaces[at].scoped(scope).unwrap(),
    }
}

/// The bytes that a claim with this token is completed with: nobody has to remember them.
fn body(key: &str, token: u64) -> Vec<u8> {
    let seed = key.bytes().fold(token, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    let mut random = Random::new(seed);
    let len = if random.chance(2) { random.below(60_000) } else { random.below(500) };
    (0..len).map(|_| random.next() as u8).collect()
}

/// The outcome that goes with a token, which it names in its reference.
fn outcome(body: &[u8], token: u64) -> CompleteOptions<'_> {
    let mut reference = [0; 16];
    reference[..8].copy_from_slice(&token.to_le_bytes());
    CompleteOptions::body(body).code((token % 1000) as u16).reference(Reference(reference))
}

/// The token that an outcome was made from; `None` when it has no body. Anything else is wrong.
fn made_from(key: &str, outcome: &Outcome) -> Result<Option<u64>, String> {
    let Some(Reference(reference)) = outcome.reference() else {
        return match outcome.body() {
            Body::None if outcome.code() == 0 => Ok(None),
            other => Err(format!("{key} has {other:?} without a reference")),
        };
    };
    let mut token = [0; 8];
    token.copy_from_slice(&reference[..8]);
    let token = u64::from_le_bytes(token);
    if outcome.body() == Body::Bytes(&body(key, token)) && u64::from(outcome.code()) == token % 1000
    {
        Ok(Some(token))
    } else {
        Err(format!("{key} has another outcome than token {token} gave it: {outcome:?}"))
    }
}

// ---- the child -------------------------------------------------------------------------------

/// Not a test of its own: what the child process runs.
#[test]
#[ignore = "run by its parent"]
fn child() {
    let directory = std::env::var("REFRAIN_KILL_DIRECTORY").unwrap();
    let round: u64 = std::env::var("REFRAIN_KILL_ROUND").unwrap().parse().unwrap();
    if let Ok(point) = std::env::var("REFRAIN_KILL_POINT") {
        let (point, nth) = point.split_once(' ').unwrap();
        let point = Point::ALL[point.parse::<usize>().unwrap()];
        end_process_at(point, nth.parse().unwrap());
        if point == Point::BehindUnlisting {
            grow_and_shrink(Path::new(&directory), round);
        }
        work_in_cycles(Path::new(&directory), round);
    }
    let store = open(Path::new(&directory), round);
    let (namespaces, guard) = (namespaces(&store), guard(&store));
    println!("\nopen");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (namespaces, guard) = (&namespaces, &guard);
            scope.spawn(move || Worker::new(thread, round, namespaces, guard).work(u64::MAX));
        }
    });
}

/// The real clock, which can be hurried along.
#[derive(Clone, Debug)]
struct HastyClock {
    start: Instant,
    ahead_ns: Arc<AtomicU64>,
}

impl Clock for HastyClock {
    fn wall_ns(&self) -> u64 {
        let elapsed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        elapsed.as_nanos() as u64
    }

    fn monotonic_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64 + self.ahead_ns.load(Ordering::Relaxed)
    }

    fn coarse_ns(&self) -> u64 {
        self.monotonic_ns()
    }

    fn coarse_resolution_ns(&self) -> u64 {
        0
    }
}

/// Fills files that were not there before, has all of that be over at once, and waits for one
/// to be given up, which ends the process; or for a while.
fn grow_and_shrink(directory: &Path, round: u64) {
    let clock = HastyClock { start: Instant::now(), ahead_ns: Arc::default() };
    // Few lanes have few segments open, each of which keeps a file.
    let store = options(directory, round).lanes(1).clock(clock.clone()).open().unwrap();
    let orders = namespaces(&store).remove(0);
    let claim = |name: &str, number: u32| {
        let claim = ClaimOptions::new().buffered();
        orders.claim_with(format!("{name}-{number}"), &claim).unwrap().acquired().unwrap()
    };
    let release = |lease: Lease| drop(lease.release_async());
    let first = store.stats().disk_bytes;
    // What is held cannot make room: the store must grow.
    let is_grown = || store.stats().disk_bytes > first;
    let mut burst: Vec<Lease> = (0..16_000).map(|number| claim("burst", number)).collect();
    burst
        .extend((16_000..160_000).take_while(|_| !is_grown()).map(|number| claim("burst", number)));
    assert!(is_grown(), "{:?}", store.stats());
    burst.into_iter().for_each(release);
    for number in 0..1500 {
        std::thread::sleep(Duration::from_millis(10));
        clock.ahead_ns.fetch_add(1_000_000_000, Ordering::Relaxed);
        // Who sleeps does not notice that the clock was moved.
        release(claim("later", number));
    }
    drop(orders);
    store.close().unwrap();
}

/// Opens, works a little, defines a namespace, closes, until the process ends.
fn work_in_cycles(directory: &Path, round: u64) {
    for cycle in 0.. {
        let store = open(directory, round + cycle);
        println!("\nR");
        let (namespaces, guard) = (namespaces(&store), guard(&store));
        let name = format!("extra-{round}-{cycle}");
        store.define(&name, &Policy::default()).unwrap();
        println!("N {name}");
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (namespaces, guard) = (&namespaces, &guard);
                let number = round * 1000 + cycle;
                let mut worker = Worker::new(thread, number, namespaces, guard);
                scope.spawn(move || worker.work(CYCLE_CALLS));
            }
        });
        drop((namespaces, guard));
        store.close().unwrap();
    }
}

struct Worker<'a> {
    thread: usize,
    round: u64,
    random: Random,
    namespaces: &'a [Namespace],
    guard: &'a FenceGuard,
    /// Claims this thread was granted, or may resolve.
    held: Vec<(usize, String, u64)>,
    parked: Vec<(usize, String, u64)>,
    fresh: u64,
}

impl<'a> Worker<'a> {
    fn new(thread: usize, round: u64, namespaces: &'a [Namespace], guard: &'a FenceGuard) -> Self {
        let random = Random::new(round * 1000 + thread as u64);
        Self { thread, round, random, namespaces, guard, held: vec![], parked: vec![], fresh: 0 }
    }

    fn space(&self, at: usize, key: &str) -> Namespace {
        space(self.namespaces, at, key)
    }

    /// Makes so many calls, or until it is killed.
    fn work(&mut self, calls: u64) {
        for _ in 0..calls {
            match self.random.below(100) {
                0..38 => self.claim(),
                38..40 => self.admit(),
                40..50 => self.once(),
                50..75 => self.with_held("complete"),
                75..80 => self.with_held("renew"),
                80..85 => self.with_held("release"),
                85..90 => self.with_held("park"),
                90..95 => self.resolve(),
                95..98 if self.random.chance(20) => self.forget_all(),
                95..98 => self.forget(),
                _ => self.lookup(),
            }
        }
    }

    fn key(&mut self) -> (usize, String) {
        let namespace = self.random.below(NAMESPACES.len() as u64) as usize;
        let key = if self.random.chance(60) {
            format!("common-{}-{}", self.thread, self.random.below(COMMON_KEYS))
        } else {
            self.fresh += 1;
            let pad = "x".repeat(self.random.below(40) as usize);
            format!("fresh-{}-{}-{}-{pad}", self.thread, self.round, self.fresh)
        };
        (namespace, key)
    }

    fn say(&self, line: &str) {
        // One write per line: the pipe takes it whole or not at all.
        let line = format!("{line}\n");
        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
    }

    fn intend(&self, verb: &str, namespace: usize, key: &str, token: u64) {
        self.say(&format!("I {} {verb} {namespace} {key} {token}", self.thread));
    }

    fn acknowledge(&self, answer: &str, token: u64) {
        self.say(&format!("A {} {answer} {token}", self.thread));
    }

    fn check_outcome(&self, key: &str, outcome: &Outcome) {
        if let Err(wrong) = made_from(key, outcome) {
            self.say(&format!("X {wrong}"));
        }
    }

    fn claim(&mut self) {
        let (at, key) = self.key();
        self.intend("claim", at, &key, 0);
        let options = match self.random.chance(50) {
            true => ClaimOptions::new().owner(OwnerId([self.thread as u8 + 1; 16])),
            false => ClaimOptions::new(),
        };
        match self.space(at, &key).claim_with(&key, &options).unwrap() {
            Claim::Acquired(lease) => {
                let token = lease.token().get();
                self.acknowledge("acquired", token);
                self.held.push((at, key, token));
            }
            Claim::Resumed(lease) => {
                let token = lease.token().get();
                self.acknowledge("resumed", token);
                self.held.push((at, key, token));
            }
            Claim::Completed(outcome) => {
                self.check_outcome(&key, &outcome);
                self.acknowledge("completed", outcome.token().get());
            }
            Claim::InProgress(it) => {
                self.acknowledge("held", it.token().get());
                // In a namespace whose leases outlive their process, the token still serves.
                self.held.push((at, key, it.token().get()));
            }
            Claim::Parked(it) => {
                self.acknowledge("parked", it.token().get());
                self.parked.push((at, key, it.token().get()));
            }
            other => panic!("{other:?}"),
        }
    }

    fn once(&mut self) {
        let (at, key) = self.key();
        self.intend("once", at, &key, 0);
        match self.space(at, &key).once(&key, None).unwrap() {
            Once::First(first) => self.acknowledge("first", first.token().get()),
            Once::Seen(outcome) => {
                self.check_outcome(&key, &outcome);
                self.acknowledge("completed", outcome.token().get());
            }
            Once::InProgress(it) => self.acknowledge("held", it.token().get()),
            Once::Parked(it) => self.acknowledge("parked", it.token().get()),
            other => panic!("{other:?}"),
        }
    }

    fn with_held(&mut self, verb: &str) {
        if self.held.is_empty() {
            return;
        }
        let index = self.random.below(self.held.len() as u64) as usize;
        let (at, key, token) = self.held[index].clone();
        let (namespace, fencing) = (self.space(at, &key), FencingToken::from_raw(token));
        self.intend(verb, at, &key, token);
        let is_done = match verb {
            "complete" => {
                let bytes = body(&key, token);
                namespace.complete_with(&key, fencing, &outcome(&bytes, token)).is_ok()
            }
            "renew" => namespace.renew(&key, fencing).is_ok(),
            "release" => namespace.release(&key, fencing).is_ok(),
            _ => namespace.park(&key, fencing).is_ok(),
        };
        self.acknowledge(if is_done { "done" } else { "refused" }, token);
        if verb != "renew" {
            self.held.swap_remove(index);
            if verb == "park" && is_done {
                self.parked.push((at, key, token));
            }
        }
    }

    fn resolve(&mut self) {
        let Some((at, key, token)) = self.parked.pop() else { return };
        let (namespace, fencing) = (self.space(at, &key), FencingToken::from_raw(token));
        if self.random.chance(50) {
            self.intend("resolve-not-done", at, &key, token);
            let is_done =
                namespace.resolve(&key, fencing, &Resolution::NotDone, "a test", "nobody").is_ok();
            self.acknowledge(if is_done { "done" } else { "refused" }, token);
        } else {
            self.intend("resolve-done", at, &key, token);
            let bytes = body(&key, token);
            let resolution = Resolution::Completed(outcome(&bytes, token));
            match namespace.resolve(&key, fencing, &resolution, "a test", "nobody") {
                Ok(Some(it)) => self.acknowledge("done", it.token().get()),
                _ => self.acknowledge("refused", token),
            }
        }
    }

    fn forget(&mut self) {
        let (at, key) = self.key();
        self.intend("forget", at, &key, 0);
        let was = self.space(at, &key).forget(&key, "kill test", "child").unwrap();
        self.acknowledge(if was.is_some() { "done" } else { "nothing" }, 0);
    }

    /// Everything of this thread's scope, in one namespace.
    fn forget_all(&mut self) {
        let at = self.random.below(NAMESPACES.len() as u64) as usize;
        let scope = scope_of_thread(self.thread);
        self.intend("forget-all", at, &scope, 0);
        let space = self.namespaces[at].scoped(&scope).unwrap();
        if self.random.chance(30) {
            // Killed while segments leave, and their forgets.
            let timeout = Duration::from_secs(60);
            let erased = space.erase_all("kill test", "child", timeout).unwrap();
            return self.acknowledge("erased", erased.keys);
        }
        let count = space.forget_all("kill test", "child").unwrap();
        self.acknowledge("done", count);
    }

    /// Shows a token to the guard: a newer one than any round before has shown, most times.
    fn admit(&mut self) {
        let resource = format!("resource-{}-{}", self.thread, self.random.below(RESOURCES));
        let token = self.round * 1000 + self.random.below(1500) + 1;
        self.intend("admit", 0, &resource, token);
        match self.guard.admit(&resource, FencingToken::from_raw(token)) {
            Ok(_) => self.acknowledge("admitted", token),
            Err(FenceError::Stale { newest, .. }) => self.acknowledge("stale", newest.get()),
            Err(error) => panic!("{error}"),
        }
    }

    fn lookup(&mut self) {
        let (at, key) = self.key();
        self.intend("lookup", at, &key, 0);
        match self.space(at, &key).lookup(&key).unwrap() {
            Lookup::Absent => self.acknowledge("absent", 0),
            Lookup::InProgress(it) => self.acknowledge("held", it.token().get()),
            Lookup::Lapsed(it) => self.acknowledge("held", it.token().get()),
            Lookup::Parked(it) => self.acknowledge("parked", it.token().get()),
            Lookup::Completed(outcome) => {
                self.check_outcome(&key, &outcome);
                self.acknowledge("completed", outcome.token().get());
            }
            other => panic!("{other:?}"),
        }
    }
}

// ---- the parent ------------------------------------------------------------------------------

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Absent,
    Claimed(u64),
    Parked(u64),
    /// Completed under the first token, with the outcome that goes with the second, or with none.
    Done(u64, Option<u64>),
}

impl State {
    fn token(self) -> Option<u64> {
        match self {
            Self::Absent => None,
            Self::Claimed(token) | Self::Parked(token) | Self::Done(token, _) => Some(token),
        }
    }
}

/// What a thread is about to do.
#[derive(Clone, Debug)]
struct Intent {
    verb: String,
    key: (usize, String),
    token: u64,
}

#[derive(Default)]
struct Ledger {
    keys: HashMap<(usize, String), State>,
    /// Keys touched in this round.
    touched: HashSet<(usize, String)>,
    tokens: HashSet<u64>,
    highest: HashMap<(usize, String), u64>,
    verbs: HashMap<String, u64>,
    acknowledged: u64,
    /// The newest token of each resource that was admitted.
    fences: HashMap<String, u64>,
    /// Namespaces that were defined.
    names: HashSet<String>,
}

impl Intent {
    /// Whether it is about everything of the key's scope.
    fn covers(&self, key: &(usize, String)) -> bool {
        let is_of = |scope: String| scope == self.key.1;
        self.verb == "forget-all" && self.key.0 == key.0 && scope_of(&key.1).is_some_and(is_of)
    }
}

impl Ledger {
    fn state(&self, key: &(usize, String)) -> State {
        self.keys.get(key).copied().unwrap_or(State::Absent)
    }

    fn set(&mut self, key: &(usize, String), state: State) {
        self.keys.insert(key.clone(), state);
    }

    /// A token came to be.
    fn issued(&mut self, key: &(usize, String), token: u64) {
        assert!(self.tokens.insert(token), "token {token} was given twice, for {key:?}");
        let highest = self.highest.entry(key.clone()).or_default();
        assert!(token > *highest, "token {token} of {key:?} is not above {highest}");
        *highest = token;
    }

    /// Whether the state is orphaned into a parked one when the process ends.
    fn orphaned(key: &(usize, String), state: State) -> State {
        match state {
            State::Claimed(token) if NAMESPACES[key.0].1 == OnOrphan::Park => State::Parked(token),
            other => other,
        }
    }

    /// The child closed the store, or was going to, and has opened it again.
    fn reopened(&mut self) {
        for (key, state) in &mut self.keys {
            *state = Self::orphaned(key, *state);
        }
    }

    fn acknowledge(&mut self, intent: &Intent, answer: &str, token: u64) {
        self.acknowledged += 1;
        *self.verbs.entry(format!("{} {answer}", intent.verb)).or_default() += 1;
        match (intent.verb.as_str(), answer) {
            ("forget-all", "done" | "erased") => return self.forgot_all(intent, token),
            ("admit", "admitted") => {
                let newest = self.fences.entry(intent.key.1.clone()).or_default();
                assert!(*newest <= token, "{intent:?} was admitted behind {newest}");
                *newest = token;
                return;
            }
            ("admit", "stale") => {
                let newest = self.fences.get(&intent.key.1).copied();
                assert_eq!(newest, Some(token), "{intent:?}");
                return assert!(token > intent.token, "{intent:?} was refused by {token}");
            }
            _ => {}
        }
        let key = &intent.key;
        let state = self.state(key);
        self.touched.insert(key.clone());
        let is_own = state == State::Claimed(intent.token);
        match (intent.verb.as_str(), answer) {
            ("claim", "acquired") => {
                assert!(
                    !matches!(state, State::Done(..) | State::Parked(_)),
                    "{intent:?} {state:?}"
                );
                self.issued(key, token);
                self.set(key, State::Claimed(token));
            }
            ("claim", "resumed") => {
                assert!(matches!(state, State::Claimed(_)), "{intent:?} {state:?}");
                self.issued(key, token);
                self.set(key, State::Claimed(token));
            }
            ("once", "first") => {
                assert!(
                    !matches!(state, State::Done(..) | State::Parked(_)),
                    "{intent:?} {state:?}"
                );
                self.issued(key, token);
                self.set(key, State::Done(token, None));
            }
            (_, "completed") => {
                assert!(matches!(state, State::Done(it, _) if it == token), "{intent:?} {state:?}");
            }
            (_, "held") => assert_eq!(state, State::Claimed(token), "{intent:?}"),
            (_, "parked") => assert_eq!(state, State::Parked(token), "{intent:?}"),
            ("lookup", "absent") => assert_eq!(state, State::Absent, "{intent:?}"),
            ("complete", "done") if !is_own => {
                assert!(matches!(state, State::Done(it, _) if it == token), "{intent:?} {state:?}");
            }
            ("complete", "done") => self.set(key, State::Done(token, Some(token))),
            ("renew", "done") => assert!(is_own, "{intent:?} {state:?}"),
            ("release", "done") => {
                assert!(is_own, "{intent:?} {state:?}");
                self.set(key, State::Absent);
            }
            ("park", "done") => {
                assert!(is_own, "{intent:?} {state:?}");
                self.set(key, State::Parked(token));
            }
            ("complete" | "renew" | "release" | "park", "refused") => {
                assert!(!is_own, "{intent:?} was refused in {state:?}");
            }
            ("resolve-done", "done") => {
                assert_eq!(state.token(), Some(intent.token), "{intent:?}");
                self.issued(key, token);
                self.set(key, State::Done(token, Some(intent.token)));
            }
            ("resolve-not-done", "done") => {
                assert_eq!(state.token(), Some(intent.token), "{intent:?}");
                self.set(key, State::Absent);
            }
            ("resolve-done" | "resolve-not-done", "refused") => {
                assert_ne!(state, State::Parked(intent.token), "{intent:?}");
            }
            ("forget", "done") => {
                assert_ne!(state, State::Absent, "{intent:?}");
                self.set(key, State::Absent);
            }
            ("forget", "nothing") => assert_eq!(state, State::Absent, "{intent:?}"),
            _ => panic!("{intent:?} was answered {answer}"),
        }
    }

    fn forgot_all(&mut self, intent: &Intent, count: u64) {
        let mut forgotten = 0;
        for (key, state) in &mut self.keys {
            if intent.covers(key) && *state != State::Absent {
                *state = State::Absent;
                self.touched.insert(key.clone());
                forgotten += 1;
            }
        }
        assert_eq!(count, forgotten, "{intent:?}");
    }

    /// Compares the newest tokens of all resources.
    fn compare_fences(&mut self, store: &Store, under_way: &[Intent]) {
        let guard = guard(store);
        let admits = under_way.iter().filter(|intent| intent.verb == "admit");
        let admits: HashMap<_, _> =
            admits.map(|intent| (intent.key.1.as_str(), intent.token)).collect();
        let mut resources: HashSet<String> = self.fences.keys().cloned().collect();
        resources.extend(admits.keys().map(|&resource| resource.to_owned()));
        for resource in resources {
            let found = guard.newest(&resource).unwrap().map_or(0, FencingToken::get);
            let newest = self.fences.get(&resource).copied().unwrap_or_default();
            let is_after = admits.get(resource.as_str()) == Some(&found) && found > newest;
            assert!(found == newest || is_after, "{resource}: {found}, acknowledged {newest}");
            self.fences.insert(resource, found);
        }
    }

    /// Compares a key with what was acknowledged, and takes down what it is.
    fn compare(&mut self, key: &(usize, String), found: State, under_way: Option<&Intent>) {
        let before = Self::orphaned(key, self.state(key));
        let is_after = under_way.is_some_and(|intent| Self::may_become(before, intent, found));
        assert!(
            found == before || is_after,
            "{key:?} is {found:?}, acknowledged was {before:?}, under way {under_way:?}"
        );
        if let Some(token) = found.token().filter(|token| !self.tokens.contains(token)) {
            assert!(is_after);
            self.issued(key, token);
        }
        self.set(key, found);
    }

    /// Compares everything of this round, all common keys, and some of the others, or all.
    fn compare_all(&mut self, store: &Store, under_way: &[Intent], all: bool, random: &mut Random) {
        let spaces = namespaces(store);
        self.compare_fences(store, under_way);
        let mut keys: Vec<_> = self.touched.drain().collect();
        keys.extend(under_way.iter().map(|intent| intent.key.clone()));
        let is_covered = |key: &(usize, String)| under_way.iter().any(|intent| intent.covers(key));
        let others = self.keys.keys().filter(|key| {
            all || key.1.starts_with("common") || random.chance(2) || is_covered(key)
        });
        keys.extend(others.cloned().collect::<Vec<_>>());
        keys.sort();
        keys.dedup();
        for key in &keys {
            let intent = under_way.iter().find(|intent| intent.key == *key || intent.covers(key));
            self.compare(key, find(&spaces, key), intent);
        }
        let names: HashSet<_> = store.namespaces().into_iter().collect();
        assert!(self.names.is_subset(&names), "{:?} are gone", self.names.difference(&names));
    }

    /// Whether an operation that was cut short may have left this.
    fn may_become(before: State, intent: &Intent, found: State) -> bool {
        let is_own = before.token() == Some(intent.token);
        match (intent.verb.as_str(), found) {
            ("claim", State::Claimed(token) | State::Parked(token)) => {
                !matches!(before, State::Done(..)) && before.token() != Some(token)
            }
            ("once", State::Done(_, None)) => !matches!(before, State::Done(..)),
            ("complete", State::Done(token, Some(from))) => {
                is_own && token == intent.token && from == token
            }
            ("park", State::Parked(token)) => is_own && token == intent.token,
            ("release" | "resolve-not-done", State::Absent) => is_own,
            ("resolve-done", State::Done(_, Some(from))) => is_own && from == intent.token,
            ("forget" | "forget-all", State::Absent) => true,
            _ => false,
        }
    }
}

/// What the store says about a key.
fn find(namespaces: &[Namespace], key: &(usize, String)) -> State {
    match space(namespaces, key.0, &key.1).lookup(&key.1).unwrap() {
        Lookup::Absent => State::Absent,
        Lookup::InProgress(it) => State::Claimed(it.token().get()),
        Lookup::Lapsed(it) => State::Claimed(it.token().get()),
        Lookup::Parked(it) => State::Parked(it.token().get()),
        Lookup::Completed(outcome) => {
            State::Done(outcome.token().get(), made_from(&key.1, &outcome).unwrap())
        }
        other => panic!("{key:?} is {other:?}"),
    }
}

/// Where a store is: in memory, and one in ten on a disk.
fn directory(random: &mut Random) -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let is_in_memory = !random.chance(10) && memory.is_dir();
    if is_in_memory { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// Says which life it was, when it ends by a panic.
struct Life<'a> {
    name: String,
    has_failed: &'a AtomicBool,
}

impl Drop for Life<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.has_failed.store(true, Ordering::Relaxed);
            println!("{} failed", self.name);
        }
    }
}

/// Lives one life after the other, some at the same time; each is given its number, its rounds and
/// its seed.
fn live<T: Send>(
    rounds: u64,
    rounds_of_life: u64,
    seed: u64,
    life: impl Fn(u64, Range<u64>, u64) -> T + Sync,
) -> Vec<T> {
    let (next, has_failed, ends) = (AtomicU64::new(0), AtomicBool::new(false), Mutex::default());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while !has_failed.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let of_life =
                        number * rounds_of_life..rounds.min((number + 1) * rounds_of_life);
                    if of_life.is_empty() {
                        break;
                    }
                    let name = format!("life {number} of REFRAIN_SEED={seed}");
                    let _said = Life { name, has_failed: &has_failed };
                    let mixed = Random::new(seed ^ Random::new(number).next()).next();
                    let end = life(number, of_life, mixed);
                    Vec::push(&mut ends.lock().unwrap(), end);
                }
            });
        }
    });
    ends.into_inner().unwrap()
}

/// What came of some rounds.
#[derive(Default)]
struct Sum {
    rounds: u64,
    long: u64,
    /// Long rounds that crossed a boundary between segments.
    crossed: u64,
    torn: u64,
    /// Children that were killed before their first answer.
    in_open: u64,
    /// The fewest acknowledged calls of a long round.
    least: Option<u64>,
    acknowledged: u64,
    tokens: usize,
    keys: usize,
    verbs: BTreeMap<String, u64>,
    reached: HashMap<Point, u64>,
}

impl Sum {
    fn add_ledger(&mut self, ledger: Ledger) {
        self.acknowledged += ledger.acknowledged;
        self.tokens += ledger.tokens.len();
        self.keys += ledger.keys.len();
        for (verb, count) in ledger.verbs {
            *self.verbs.entry(verb).or_default() += count;
        }
    }

    fn of(sums: Vec<Self>) -> Self {
        sums.into_iter().fold(Self::default(), |mut all, one| {
            all.rounds += one.rounds;
            all.long += one.long;
            all.crossed += one.crossed;
            all.torn += one.torn;
            all.in_open += one.in_open;
            all.least = [all.least, one.least].into_iter().flatten().min();
            all.acknowledged += one.acknowledged;
            all.tokens += one.tokens;
            all.keys += one.keys;
            for (verb, count) in one.verbs {
                *all.verbs.entry(verb).or_default() += count;
            }
            for (point, count) in one.reached {
                *all.reached.entry(point).or_default() += count;
            }
            all
        })
    }
}

/// One life: a store that is killed again and again, or several.
fn killed_at_random(life: u64, rounds: Range<u64>, seed: u64) -> Sum {
    let mut random = Random::new(seed);
    let all_are_long = life.is_multiple_of(10);
    let of_store = match life % 40 {
        20 => LIFE_ROUNDS,
        0 | 10 | 30 => LIFE_ROUNDS / 2,
        _ => STORE_ROUNDS,
    };
    let first = rounds.start;
    let stores = (first..rounds.end).step_by(of_store as usize).map(|from| {
        // Numbers that hardly another seed has: of them, the children make what they do.
        let unique = random.below(1 << 30) * LIFE_ROUNDS;
        let rounds = unique + from - first..unique + rounds.end.min(from + of_store) - first;
        killed_store(rounds, all_are_long, &mut random)
    });
    Sum::of(stores.collect())
}

/// One store, killed again and again.
fn killed_store(rounds: Range<u64>, all_are_long: bool, random: &mut Random) -> Sum {
    let directory = directory(random);
    let (mut ledger, mut sum) = (Ledger::default(), Sum::default());
    let mut segments = 0;
    for round in rounds.clone() {
        // Every tenth child is killed early, most of them while they open the store.
        let (is_early, is_long) = (round % 10 == 9, all_are_long || round % 10 == 4);
        if is_long {
            // How many segments there are before.
            segments = open(directory.path(), round).report().segments;
        }
        let acknowledged = ledger.acknowledged;
        let goal = match (is_early, is_long) {
            (true, _) => 0,
            (_, true) => ACKNOWLEDGED_MIN + random.below(ACKNOWLEDGED_SPREAD),
            _ => 1 + random.below(SHORT_SPREAD),
        };
        let delay = Duration::from_micros(random.below(if is_early { 60_000 } else { 2000 }));
        let under_way = run_child(directory.path(), round, None, goal, delay, &mut ledger);
        let got = ledger.acknowledged - acknowledged;
        let store = open(directory.path(), round + 1);
        let report = store.report();
        sum.torn += report.torn_tails.len() as u64;
        sum.rounds += 1;
        if is_early {
            sum.in_open += u64::from(got == 0);
        } else if is_long {
            sum.long += 1;
            sum.least = Some(sum.least.map_or(got, |least| least.min(got)));
            sum.crossed += u64::from(report.segments >= segments + 2);
        }
        let is_last = round + 1 == rounds.end;
        ledger.compare_all(&store, &under_way, is_last, random);
        if is_last {
            store.check_invariants().unwrap();
        }
    }
    sum.add_ledger(ledger);
    sum
}

#[test]
#[cfg_attr(miri, ignore = "needs processes")]
fn nothing_acknowledged_is_lost_by_a_killed_process() {
    let rounds = std::env::var("REFRAIN_ROUNDS").ok().and_then(|text| text.parse().ok());
    let rounds: u64 = rounds.unwrap_or(2 * LIFE_ROUNDS);
    let start = Instant::now();
    let sum = Sum::of(live(rounds, LIFE_ROUNDS, support::seed("kill"), killed_at_random));
    println!("{:#?}", sum.verbs);
    let least = sum.least.unwrap_or(ACKNOWLEDGED_MIN);
    println!(
        "{rounds} rounds in {:.0?}: {} operations acknowledged, {} tokens, {} keys; {} rounds were long, \
         each with at least {least} operations, {} of them crossed a segment boundary; {} torn tails, \
         {} children killed before their first answer",
        start.elapsed(),
        sum.acknowledged,
        sum.tokens,
        sum.keys,
        sum.long,
        sum.crossed,
        sum.torn,
        sum.in_open
    );
    assert_eq!(sum.rounds, rounds);
    assert!(least >= ACKNOWLEDGED_MIN);
    let (crossed, long) = (sum.crossed, sum.long);
    assert!(crossed * 4 >= long, "too few rounds crossed a segment boundary: {crossed}");
    if rounds >= 20 {
        for verb in [
            "claim acquired",
            "once first",
            "renew done",
            "complete done",
            "release done",
            "park done",
            "resolve-done done",
            "resolve-not-done done",
            "forget done",
            "forget-all done",
            "forget-all erased",
            "claim resumed",
            "admit admitted",
            "admit stale",
        ] {
            assert!(sum.verbs.contains_key(verb), "never happened: {verb}");
        }
    }
}

/// How often a child may pass a point before it ends there.
fn passes(point: Point) -> u64 {
    match point {
        Point::BeforeLength | Point::BehindLength | Point::BehindInsert => 1500,
        Point::BeforeMark | Point::BeforeRoundSync | Point::BehindRoundSync => 40,
        Point::BeforeMetaWrite | Point::BeforeMetaSync | Point::BehindMetaSync => 10,
        Point::BeforeTrailer | Point::BehindTrailer => 5,
        // A burst adds few files that can be spared.
        Point::BehindUnlisting => 1,
        _ => 2,
    }
}

/// One store, new at first, so that it grows soon; its processes end at named points.
fn ended_at_points(_life: u64, rounds: Range<u64>, seed: u64) -> Sum {
    let mut random = Random::new(seed);
    let directory = directory(&mut random);
    let (mut ledger, mut sum) = (Ledger::default(), Sum::default());
    let first = random.below(1 << 30) * POINT_ROUNDS;
    for round in rounds.clone() {
        let number = round as usize % Point::ALL.len();
        let point = Point::ALL[number];
        let chosen = Some((number, random.below(passes(point))));
        // Should it not come to the point, it is killed where it is.
        let before = ledger.acknowledged;
        let goal = 6000;
        let work = first + round - rounds.start;
        let under_way =
            run_child(directory.path(), work, chosen, goal, Duration::ZERO, &mut ledger);
        let is_reached = ledger.acknowledged - before < goal;
        *sum.reached.entry(point).or_default() += u64::from(is_reached);
        let store = open(directory.path(), work + 1);
        let is_last = round + 1 == rounds.end;
        ledger.compare_all(&store, &under_way, is_last, &mut random);
        if is_last {
            store.check_invariants().unwrap();
        }
        sum.rounds += 1;
    }
    sum.add_ledger(ledger);
    sum
}

#[test]
#[cfg_attr(miri, ignore = "needs processes")]
fn a_process_that_ends_at_any_named_point_loses_nothing() {
    let rounds = std::env::var("REFRAIN_ROUNDS").ok().and_then(|text| text.parse().ok());
    let rounds: u64 = rounds.unwrap_or(4 * Point::ALL.len() as u64);
    let start = Instant::now();
    let sum = Sum::of(live(rounds, POINT_ROUNDS, support::seed("points"), ended_at_points));
    println!(
        "{rounds} rounds in {:.0?}, {} operations acknowledged: {:?}",
        start.elapsed(),
        sum.acknowledged,
        sum.reached
    );
    assert_eq!(sum.rounds, rounds);
    if rounds >= 4 * Point::ALL.len() as u64 {
        for point in Point::ALL {
            assert!(sum.reached[&point] > 0, "never ended at {point:?}");
        }
    }
}

/// Runs a child until `goal` operations are acknowledged, and `delay` longer. Gives what its
/// threads were about to do.
fn run_child(
    directory: &Path,
    round: u64,
    point: Option<(usize, u64)>,
    goal: u64,
    delay: Duration,
    ledger: &mut Ledger,
) -> Vec<Intent> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"])
        .env("REFRAIN_KILL_DIRECTORY", directory)
        .env("REFRAIN_KILL_ROUND", round.to_string());
    if let Some((point, nth)) = point {
        command.env("REFRAIN_KILL_POINT", format!("{point} {nth}"));
    }
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let pipe = child.stdout.take().unwrap();
    let mut under_way: Vec<Option<Intent>> = vec![None; THREADS];
    let (mut done, mut killer) = (0, None);
    let mut lines = BufReader::new(pipe);
    let mut line = String::new();
    loop {
        if done >= goal && killer.is_none() {
            let id = child.id();
            killer = Some(std::thread::spawn(move || {
                std::thread::sleep(delay);
                let pid = rustix::process::Pid::from_raw(id as i32).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            }));
        }
        line.clear();
        // The end of the pipe, or a line that the kill cut short.
        if lines.read_line(&mut line).unwrap() == 0 || !line.ends_with('\n') {
            break;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["I", thread, verb, namespace, key, token] => {
                under_way[thread.parse::<usize>().unwrap()] = Some(Intent {
                    verb: verb.to_owned(),
                    key: (namespace.parse().unwrap(), key.to_owned()),
                    token: token.parse().unwrap(),
                });
            }
            ["A", thread, answer, token] => {
                let intent = under_way[thread.parse::<usize>().unwrap()].take().unwrap();
                ledger.acknowledge(&intent, answer, token.parse().unwrap());
                done += 1;
            }
            ["R"] => ledger.reopened(),
            ["N", name] => drop(ledger.names.insert(name.to_owned())),
            ["X", ..] => panic!("{line}"),
            _ => {}
        }
    }
    if let Some(killer) = killer {
        killer.join().unwrap();
    }
    let status = child.wait().unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(status.signal(), Some(9), "the child ended by itself: {status}");
    under_way.into_iter().flatten().collect()
}
