//! Every short workload, ended at every step, with every subset of what was not synced on the disk.
//!
//! Workloads of up to `REFRAIN_OPS` calls (2 here, 3 for a long run) over two keys; a kill and power
//! cuts at every step of the simulated disk, each power cut with every subset of the unsynced pages
//! and directory entries, up to 2^10; and the recovery itself ended at every step, once. What was
//! acknowledged as durable is there, a call that was under way has had its effect or not, and a
//! second opening finds what the first one found.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use refrain::testing::{Crash, SimClock, SimDisk};
use refrain::{Durability, Namespace, Options, Policy, Store};
use support::calls::{Asked, Call, Face};
use support::model::{Ask, Bring, Entry, Key, Model, Rules};
use support::world::{SEGMENT_BYTES, ms_of};

const KEYS: [&[u8]; 2] = [b"a", b"b"];
/// Of all subsets of this many unsynced units each is tried, of more a sample.
const UNITS_MAX: usize = 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verb {
    Claim,
    Once,
    Renew,
    Complete,
    Release,
    Park,
    Resolve,
    Forget,
}

const VERBS: [Verb; 8] = [
    Verb::Claim,
    Verb::Once,
    Verb::Renew,
    Verb::Complete,
    Verb::Release,
    Verb::Park,
    Verb::Resolve,
    Verb::Forget,
];

type Workload = Vec<(Verb, usize)>;

/// All workloads of exactly `len` calls that begin with the first key; the other half is the same
/// with names exchanged.
fn workloads(len: usize) -> Vec<Workload> {
    let mut all: Vec<Workload> = vec![vec![]];
    for place in 0..len {
        all = all
            .into_iter()
            .flat_map(|workload| {
                let keys = if place == 0 { 0..1 } else { 0..KEYS.len() };
                keys.flat_map(|key| VERBS.map(|verb| (verb, key))).map(move |call| {
                    let mut longer = workload.clone();
                    longer.push(call);
                    longer
                })
            })
            .collect();
    }
    all
}

fn key(index: usize) -> Key {
    (0, KEYS[index].into())
}

/// The call, with the token that the key has.
fn call(verb: Verb, index: usize, model: &Model) -> Call {
    let key = key(index);
    let token = model.state(&key).token().unwrap_or(1);
    let bring = Bring { body: Some([7; 100].into()), code: 200, ..Bring::default() };
    match verb {
        Verb::Claim => Call::Claim(key, Ask::default(), Asked::AsStore),
        Verb::Once => Call::Once(key, Ask::default(), Asked::AsStore),
        Verb::Renew => Call::Renew(key, token, None),
        Verb::Complete => Call::Complete(key, token, bring, Asked::AsStore),
        Verb::Release => Call::Release(key, token),
        Verb::Park => Call::Park(key, token),
        Verb::Resolve => Call::Resolve(key, token, Some(bring)),
        Verb::Forget => Call::Forget(key),
    }
}

struct Scope {
    base: SimDisk,
    clock: SimClock,
    durability: Durability,
    model: Model,
}

/// How a workload ended: what each key may be.
struct Ended {
    model: Model,
    /// The states of each key, the oldest that may survive first.
    histories: BTreeMap<Key, Vec<Option<Entry>>>,
    in_flight: Option<(Call, Model)>,
    is_over: bool,
}

impl Scope {
    fn new(durability: Durability) -> Self {
        let (base, clock) = (SimDisk::new(1), SimClock::new());
        let mut model = Model::new(ms_of(clock.wall()), SEGMENT_BYTES as usize / 2);
        model.namespaces.insert(0, (Rules::default(), false));
        let scope = Self { base, clock, durability, model };
        let store = scope.open(&scope.base);
        store.define("namespace-0", &Policy::default()).unwrap();
        store.close().unwrap();
        scope
    }

    fn try_open(&self, disk: &SimDisk) -> Result<Store, refrain::OpenError> {
        Options::new("unused")
            .file_system(disk.mount())
            .clock(self.clock.clone())
            .durability(self.durability)
            .shards(1)
            .shared_by_chance(1)
            .segment_bytes(SEGMENT_BYTES)
            .manual_maintenance(true)
            .open()
    }

    fn open(&self, disk: &SimDisk) -> Store {
        self.try_open(disk).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs a workload up to `steps` steps of the disk, then the process is killed.
    fn run(&self, disk: &SimDisk, workload: &Workload, steps: u64) -> Ended {
        let store = self.open(disk);
        let orders = store.namespace("namespace-0").unwrap();
        let mut model = self.model.clone();
        // The first open, which defined the namespace, and this one.
        model.open += 1;
        let histories = (0..KEYS.len()).map(|index| (key(index), vec![None])).collect();
        let mut ended = Ended { model, histories, in_flight: None, is_over: true };
        disk.crash_after(steps, Crash::Kill);
        for (verb, index) in workload {
            let call = call(*verb, *index, &ended.model);
            let before = ended.model.clone();
            let got = call.run(&orders);
            if disk.crashed().is_some() {
                ended.in_flight = Some((call, before));
                ended.is_over = false;
                break;
            }
            let reply = got.unwrap_or_else(|failed| panic!("{call:?}: {failed:?}"));
            assert_eq!(call.apply(&mut ended.model, reply.issued(), false), reply);
            let history = ended.histories.get_mut(call.key()).unwrap();
            let entry = ended.model.entry(call.key());
            if history.last().unwrap() != &entry {
                history.push(entry);
            }
            if self.durability == Durability::Sync && *verb != Verb::Renew {
                for history in ended.histories.values_mut() {
                    history.drain(..history.len() - 1);
                }
            }
        }
        drop(orders);
        store.abandon();
        ended
    }

    /// Opens the disk and compares every key with what it may be; twice.
    fn check(&self, disk: &SimDisk, ended: &Ended, is_lossy: bool) {
        let store = self.open(disk);
        let orders = store.namespace("namespace-0").unwrap();
        let faces: Vec<Face> = (0..KEYS.len()).map(|index| face(&orders, index)).collect();
        for (index, seen) in faces.iter().enumerate() {
            assert!(self.may_be(&key(index), seen, ended, is_lossy), "{index} is {seen:?}");
        }
        store.check_invariants().unwrap();
        drop(orders);
        store.abandon();
        disk.crash(Crash::PowerCut);
        let again = self.open(disk).namespace("namespace-0").unwrap();
        for (index, seen) in faces.iter().enumerate() {
            assert_eq!(face(&again, index), *seen, "the second opening found something else");
        }
    }

    fn may_be(&self, key: &Key, seen: &Face, ended: &Ended, is_lossy: bool) -> bool {
        let mut candidates = ended.histories[key].clone();
        if !is_lossy {
            candidates.drain(..candidates.len() - 1);
        }
        if let Some((call, before)) = &ended.in_flight
            && call.key() == key
        {
            let mut after = before.clone();
            let token = seen.token().filter(|token| !after.knows(*token));
            call.apply(&mut after, token, false);
            candidates.push(after.entry(key));
        }
        candidates.into_iter().any(|entry| {
            let mut model = ended.model.clone();
            model.open += 1;
            model.set_entry(key, entry);
            let now = model.now;
            model.reopen_entry(key, now);
            Face::of_state(&model.state(key), now) == *seen
        })
    }
}

fn face(orders: &Namespace, index: usize) -> Face {
    Face::of_lookup(&orders.lookup(KEYS[index]).unwrap())
}

#[derive(Default)]
struct Counts {
    workloads: AtomicU64,
    kills: AtomicU64,
    cuts: AtomicU64,
    recoveries: AtomicU64,
    units: AtomicU64,
}

impl Counts {
    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Ends the workload at every step, in every way.
fn end_everywhere(scope: &Scope, workload: &Workload, counts: &Counts) {
    Counts::add(&counts.workloads);
    for steps in 0.. {
        let disk = scope.base.copy(Some(steps));
        let ended = scope.run(&disk, workload, steps);
        Counts::add(&counts.kills);
        scope.check(&disk.copy(None), &ended, false);
        let units = disk.unsynced();
        counts.units.fetch_max(units as u64, Ordering::Relaxed);
        for subset in 0..1_u64 << units.min(UNITS_MAX) {
            let cut = disk.copy(None);
            cut.cut_keeping(|unit| subset >> (unit % UNITS_MAX) & 1 == 1);
            Counts::add(&counts.cuts);
            scope.check(&cut, &ended, true);
        }
        if ended.is_over {
            // The recovery is ended at every step, too.
            for steps in 0.. {
                let disk = disk.copy(Some(steps));
                disk.crash(Crash::PowerCut);
                let fs = disk.mount();
                disk.crash_after(steps, Crash::PowerCut);
                let opened = Options::new("unused")
                    .file_system(fs)
                    .clock(scope.clock.clone())
                    .durability(scope.durability)
                    .segment_bytes(SEGMENT_BYTES)
                    .manual_maintenance(true)
                    .open();
                let was_ended = disk.crashed().is_some();
                drop(opened.map(Store::abandon));
                Counts::add(&counts.recoveries);
                scope.check(&disk, &ended, true);
                if !was_ended {
                    break;
                }
            }
            break;
        }
    }
}

#[test]
fn every_short_workload_survives_every_end() {
    let ops = std::env::var("REFRAIN_OPS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    for durability in [Durability::Sync, Durability::Buffered] {
        let counts = Counts::default();
        let all: Vec<Workload> = (1..=ops).flat_map(workloads).collect();
        let next = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let scope = Scope::new(durability);
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed) as usize;
                        let Some(workload) = all.get(number) else { break };
                        let run = std::panic::AssertUnwindSafe(|| {
                            end_everywhere(&scope, workload, &counts);
                        });
                        if let Err(panic) = std::panic::catch_unwind(run) {
                            println!("{durability:?}: {workload:?}");
                            std::panic::resume_unwind(panic);
                        }
                    }
                });
            }
        });
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        println!(
            "{durability:?}: {} workloads of up to {ops} calls, {} kills, {} power cuts (at most {} \
             units unsynced), {} recoveries cut short",
            count(&counts.workloads),
            count(&counts.kills),
            count(&counts.cuts),
            count(&counts.units),
            count(&counts.recoveries),
        );
    }
}
