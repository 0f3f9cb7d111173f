//! Sinks that refuse older tokens.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::Duration;

use refrain::testing::{Crash, HeapFs, SimClock, SimDisk};
use refrain::{
    Claim, ClaimOptions, Durability, FenceError, FenceGuard, FencingToken, NamespaceError, Options,
    Policy, Store, StoreError,
};
use support::Random;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn options(disk: &SimDisk, clock: &SimClock, durability: Durability) -> Options {
    let options = Options::new("unused").file_system(disk.mount()).clock(clock.clone());
    options.segment_bytes(256 << 10).durability(durability).manual_maintenance(true)
}

fn on_disk(disk: &SimDisk, clock: &SimClock, durability: Durability) -> Store {
    options(disk, clock, durability).open().unwrap()
}

fn on_heap(fs: &HeapFs, clock: &SimClock) -> Store {
    let options = Options::new("unused").file_system(fs.clone()).clock(clock.clone());
    options.segment_bytes(256 << 10).manual_maintenance(true).open().unwrap()
}

fn guard(store: &Store) -> FenceGuard {
    store.fence_guard("sink", HOUR).unwrap()
}

fn token(raw: u64) -> FencingToken {
    FencingToken::from_raw(raw)
}

fn admit(guard: &FenceGuard, resource: &str, raw: u64) {
    assert_eq!(guard.admit(resource, token(raw)).unwrap().token(), token(raw));
}

/// The newest token that the refusal names.
fn refused(guard: &FenceGuard, resource: &str, raw: u64) -> u64 {
    match guard.admit(resource, token(raw)).unwrap_err() {
        FenceError::Stale { shown, newest } => {
            assert_eq!(shown, token(raw));
            newest.get()
        }
        other => panic!("{other}"),
    }
}

fn newest(guard: &FenceGuard, resource: &str) -> Option<u64> {
    guard.newest(resource).unwrap().map(FencingToken::get)
}

#[test]
fn an_older_token_is_refused_for_its_resource_and_no_other() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = on_heap(&fs, &clock);
    let sink = guard(&store);
    assert_eq!(newest(&sink, "a"), None);
    admit(&sink, "a", 7);
    admit(&sink, "a", 7);
    assert_eq!(refused(&sink, "a", 6), 7);
    admit(&sink, "b", 6);
    admit(&sink, "a", u64::MAX);
    assert_eq!(refused(&sink, "a", 7), u64::MAX);
    assert_eq!(refused(&sink, "a", 0), u64::MAX);
    assert_eq!((newest(&sink, "a"), newest(&sink, "b")), (Some(u64::MAX), Some(6)));
    // Another guard is another sink.
    let other = store.fence_guard("other", HOUR).unwrap();
    admit(&other, "a", 0);
    admit(&other, "a", 1);
    let resource = [7; 4096];
    assert!(sink.admit(resource, token(3)).is_ok());
    for wrong in [&[][..], &[7; 4097]] {
        let error = sink.admit(wrong, token(3)).unwrap_err();
        assert!(matches!(error, FenceError::Store(StoreError::KeyLength { .. })), "{error}");
        assert!(sink.newest(wrong).is_err());
    }
    store.close().unwrap();
    assert!(matches!(sink.admit("a", token(9)), Err(FenceError::Store(StoreError::Closed))));
    let store = on_heap(&fs, &clock);
    let sink = guard(&store);
    assert_eq!(refused(&sink, "a", 7), u64::MAX);
    assert_eq!(refused(&sink, "b", 5), 6);
    admit(&sink, "b", 6);
    admit(&store.fence_guard("other", HOUR).unwrap(), "a", 1);
}

/// However fast they come, the last one counts, by whichever way the store is recovered.
#[test]
fn of_many_in_one_millisecond_the_newest_is_found_again() {
    for (is_closed, verifies) in [(true, false), (true, true), (false, false)] {
        let (disk, clock) = (SimDisk::new(1), SimClock::new());
        let store = on_disk(&disk, &clock, Durability::Buffered);
        let sink = guard(&store);
        for raw in 1..=500 {
            for resource in ["a", "b", "c"] {
                admit(&sink, resource, 2 * raw);
                assert_eq!(refused(&sink, resource, 2 * raw - 1), 2 * raw);
            }
        }
        if is_closed {
            store.close().unwrap();
        } else {
            disk.crash(Crash::Kill);
            store.abandon();
        }
        drop(sink);
        let store =
            options(&disk, &clock, Durability::Sync).verify_at_open(verifies).open().unwrap();
        let sink = guard(&store);
        for resource in ["a", "b", "c"] {
            assert_eq!(newest(&sink, resource), Some(1000));
            assert_eq!(refused(&sink, resource, 999), 1000);
        }
        assert_eq!(store.stats().entries, 3);
        store.check_invariants().unwrap();
        store.abandon();
    }
}

/// The process ends at each step: whoever was admitted stays so, and nobody older is.
#[test]
fn wherever_the_process_ends_no_older_token_is_admitted() {
    for crash in [Crash::Kill, Crash::PowerCut] {
        let mut ended = 0;
        for steps in 0.. {
            let (disk, clock) = (SimDisk::new(steps), SimClock::new());
            let store = on_disk(&disk, &clock, Durability::Sync);
            let sink = guard(&store);
            admit(&sink, "a", 5);
            disk.crash_after(steps, crash);
            let mut told = 5;
            for raw in 6..=8 {
                if sink.admit("a", token(raw)).is_ok() && disk.crashed().is_none() {
                    told = raw;
                }
            }
            let was_ended = disk.crashed().is_some();
            if !was_ended {
                disk.call_off_crash();
                disk.crash(crash);
            }
            drop(sink);
            store.abandon();
            let store = on_disk(&disk, &clock, Durability::Sync);
            let sink = guard(&store);
            let found = newest(&sink, "a").unwrap();
            assert!((told..=8).contains(&found), "{crash:?} at {steps}: {found}, told {told}");
            assert_eq!(refused(&sink, "a", told - 1), found);
            admit(&sink, "a", 9);
            store.abandon();
            ended += u64::from(was_ended);
            if !was_ended {
                break;
            }
        }
        assert!(ended > 2, "{crash:?}: {ended}");
    }
}

/// A plain map beside it, over many ends of the process, maintenance, and time that passes.
#[test]
fn whatever_ends_the_process_what_was_admitted_holds() {
    let (mut refusals, mut recycled) = (0, 0);
    for seed in 0..30 {
        let mut random = Random::new(seed);
        let (disk, clock) = (SimDisk::new(seed), SimClock::new());
        // The newest that is known to be there, and that may be.
        let mut known: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for _ in 0..12 {
            let store = on_disk(&disk, &clock, Durability::Sync);
            let sink = guard(&store);
            let crash = if random.chance(50) { Crash::Kill } else { Crash::PowerCut };
            if random.chance(80) {
                disk.crash_after(20 + random.below(600), crash);
            }
            for _ in 0..150 {
                let resource = format!("{}", random.below(6));
                let (least, most) = known.get(&resource).copied().unwrap_or_default();
                let raw = (most + random.below(8)).saturating_sub(4).max(1);
                let answer = sink.admit(&resource, token(raw));
                let (least, most) = match answer {
                    _ if disk.crashed().is_some() => (least, most.max(raw)),
                    Ok(_) => {
                        assert!(raw >= least, "seed {seed}: {raw} after {least}");
                        (raw, raw)
                    }
                    Err(FenceError::Stale { newest, .. }) => {
                        refusals += 1;
                        let newest = newest.get();
                        assert!(raw < newest && (least..=most).contains(&newest), "seed {seed}");
                        (newest, newest)
                    }
                    Err(other) => panic!("{other}"),
                };
                known.insert(resource, (least, most));
                if random.chance(10) && disk.crashed().is_none() {
                    clock.advance(Duration::from_secs(random.below(30)));
                    store.maintain(Duration::MAX);
                }
            }
            recycled += store.stats().recycled;
            if disk.crashed().is_none() {
                disk.call_off_crash();
                disk.crash(crash);
            }
            drop(sink);
            store.abandon();
        }
    }
    assert!(refusals > 1000, "{refusals}");
    println!("{refusals} refusals, {recycled} recycled");
}

/// Whoever was admitted has told all who come later: a token below one that has returned is refused.
#[test]
fn callers_at_once_agree() {
    for durability in [Durability::Sync, Durability::Buffered] {
        let (disk, clock) = (SimDisk::new(1), SimClock::new());
        let store = on_disk(&disk, &clock, durability);
        let sink = guard(&store);
        let next = AtomicU64::new(1);
        let admitted_up_to = AtomicU64::new(0);
        let refusals = AtomicU64::new(0);
        let together = Barrier::new(6);
        thread::scope(|scope| {
            for number in 0..6 {
                let (sink, next, admitted_up_to, refusals, together) =
                    (sink.clone(), &next, &admitted_up_to, &refusals, &together);
                scope.spawn(move || {
                    let mut random = Random::new(number);
                    together.wait();
                    for _ in 0..400 {
                        // The newest one, or one that is out of date.
                        let raw = next.fetch_add(1, Ordering::SeqCst);
                        let raw = raw.saturating_sub(random.below(12)).max(1);
                        let before = admitted_up_to.load(Ordering::SeqCst);
                        match sink.admit("one", token(raw)) {
                            Ok(_) => {
                                assert!(raw >= before, "{raw} after {before}");
                                admitted_up_to.fetch_max(raw, Ordering::SeqCst);
                            }
                            Err(FenceError::Stale { newest, .. }) => {
                                assert!(newest.get() > raw);
                                refusals.fetch_add(1, Ordering::SeqCst);
                            }
                            Err(other) => panic!("{other}"),
                        }
                    }
                });
            }
        });
        assert_eq!(newest(&sink, "one"), Some(admitted_up_to.into_inner()));
        assert!(refusals.into_inner() > 100);
        store.check_invariants().unwrap();
        store.abandon();
    }
}

/// Two that have both seen an older one wait for the lock: whoever comes second looks again.
#[test]
fn who_waits_for_the_lock_looks_again() {
    let store = Store::in_memory().unwrap();
    let sink = guard(&store);
    for round in 0..60 {
        let resource = format!("{round}");
        admit(&sink, &resource, 5);
        let together = Barrier::new(3);
        thread::scope(|scope| {
            for raw in [10, 12] {
                let (sink, resource, together) = (&sink, &resource, &together);
                scope.spawn(move || {
                    together.wait();
                    let answer = sink.admit(resource, token(raw));
                    assert!(answer.is_ok() || raw == 10);
                });
            }
            store.with_shards_locked(|| {
                together.wait();
                // Time to come as far as the lock; if it is not enough, less is tested.
                thread::sleep(Duration::from_millis(2));
            });
        });
        assert_eq!(newest(&sink, &resource), Some(12));
    }
}

/// Owners that are paused at any point, and a sink with a store of its own: nothing is done under a token that is older than one under
/// which something was done.
#[test]
fn no_effect_of_a_paused_owner_reaches_a_guarded_sink() {
    let (disk, clock) = (SimDisk::new(1), SimClock::new());
    let store = on_disk(&disk, &clock, Durability::Buffered);
    let claims = store.define("claims", &Policy::default().lease(SECOND)).unwrap();
    let sink_store = on_disk(&SimDisk::new(2), &SimClock::new(), Durability::Buffered);
    let sink = guard(&sink_store);
    let mut random = Random::new(5);
    let mut paused: Vec<(String, FencingToken)> = Vec::new();
    let effects = Mutex::new(BTreeMap::<String, FencingToken>::new());
    let (mut done, mut fenced) = (0, 0);
    for _ in 0..5000 {
        let key = format!("{}", random.below(5));
        if let Claim::Acquired(lease) = claims.claim(&key, None).unwrap() {
            paused.push((key.clone(), lease.token()));
        }
        if random.chance(20) {
            clock.advance(SECOND);
        }
        if random.chance(5) {
            claims.forget(&key, "a test", "nobody").unwrap();
        }
        if random.chance(60) && !paused.is_empty() {
            // One of them wakes, however late.
            let at = random.below(paused.len() as u64) as usize;
            let (key, token) = paused[at].clone();
            match sink.admit(&key, token) {
                Ok(_) => {
                    let before = effects.lock().unwrap().insert(key, token);
                    assert!(before.is_none_or(|before| before <= token));
                    done += 1;
                }
                Err(FenceError::Stale { .. }) => fenced += 1,
                Err(other) => panic!("{other}"),
            }
            if random.chance(50) {
                paused.swap_remove(at);
            }
        }
    }
    assert!(done > 100 && fenced > 100, "{done} done, {fenced} fenced");
}

#[test]
fn what_was_admitted_is_remembered_for_the_retention_from_the_last_time() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = on_heap(&fs, &clock);
    let sink = guard(&store);
    let until = |raw: u64| sink.admit("a", token(raw)).unwrap().guaranteed_until().unwrap();
    assert_eq!(until(5), clock.wall() + HOUR);
    // The same one is not written again for as long as half of it is left.
    clock.advance(HOUR / 2);
    assert_eq!(until(5), clock.wall() + HOUR / 2);
    clock.advance(SECOND);
    assert_eq!(until(5), clock.wall() + HOUR);
    clock.advance(HOUR - SECOND);
    assert_eq!(refused(&sink, "a", 4), 5);
    // Forgotten, also by who purges.
    clock.advance(SECOND);
    assert_eq!(newest(&sink, "a"), None);
    admit(&sink, "a", 4);
    assert_eq!(refused(&sink, "a", 3), 4);
    for _ in 0..6 {
        clock.advance(HOUR);
        store.maintain(Duration::MAX);
    }
    assert_eq!(store.stats().entries, 0);
    // A longer one from now on; what was admitted keeps what it was promised.
    admit(&sink, "b", 5);
    let longer = store.fence_guard("sink", 2 * HOUR).unwrap();
    admit(&longer, "c", 5);
    clock.advance(HOUR);
    assert_eq!((newest(&longer, "b"), newest(&sink, "c")), (None, Some(5)));
    // And it survives being copied, and opened again.
    for _ in 0..10 {
        clock.advance(60 * SECOND);
        store.maintain(Duration::MAX);
    }
    store.close().unwrap();
    let store = on_heap(&fs, &clock);
    let sink = store.fence_guard("sink", 2 * HOUR).unwrap();
    assert_eq!(refused(&sink, "c", 4), 5);
}

#[test]
fn on_a_full_disk_older_ones_are_refused_and_the_newest_is_admitted_still() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = on_heap(&fs, &clock);
    let sink = guard(&store);
    admit(&sink, "a", 5);
    fs.set_room(0);
    let claims = store.namespace("claims").unwrap();
    let long = ClaimOptions::new().lease(HOUR);
    let mut held = Vec::new();
    for number in 0_u32.. {
        match claims.claim_with([&[1; 4000], &number.to_le_bytes()[..]].concat(), &long) {
            Ok(claim) => held.push(claim.acquired().unwrap()),
            Err(_) => break,
        }
    }
    let mut last = 5;
    let full = loop {
        match sink.admit("a", token(last + 1)) {
            Ok(_) => last += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, FenceError::Full { .. }), "{full}");
    assert_eq!(newest(&sink, "a"), Some(last));
    assert_eq!(refused(&sink, "a", last - 1), last);
    admit(&sink, "a", last);
    // Also when it should be written again, for a longer time: what it is told is true.
    // (Of so many in one millisecond each one's end is a millisecond later.)
    clock.advance(HOUR / 2 + 60 * SECOND);
    let admitted = sink.admit("a", token(last)).unwrap();
    assert!(admitted.guaranteed_until().unwrap() < clock.wall() + HOUR / 2);
    assert!(held.into_iter().all(|lease| lease.complete("done").is_ok()));
    fs.set_room(u64::MAX);
    admit(&sink, "a", last + 1);
}

/// As durable as was asked: who asks for less may be forgotten with the power, and whoever asks for more waits for what others wrote.
#[test]
fn who_asks_for_more_waits_for_more() {
    let mut lost = 0;
    for seed in 0..24 {
        let (disk, clock) = (SimDisk::new(seed), SimClock::new());
        let store = on_disk(&disk, &clock, Durability::Buffered);
        let sink = guard(&store);
        sink.clone().sync().admit("a", token(5)).unwrap();
        admit(&sink, "a", 6);
        admit(&sink, "b", 6);
        let again = sink.clone().sync().admit("b", token(6)).unwrap();
        assert_eq!(again.token(), token(6));
        admit(&sink, "c", 6);
        let late = sink.clone().sync().admit_async("d", token(6)).wait().unwrap();
        assert_eq!(late.token(), token(6));
        admit(&sink, "d", 7);
        disk.crash(Crash::PowerCut);
        drop(sink);
        store.abandon();
        let store = on_disk(&disk, &clock, Durability::Sync);
        let sink = guard(&store);
        // Before the last round, and behind it.
        for resource in ["a", "b", "c"] {
            assert_eq!(newest(&sink, resource), Some(6), "{resource}");
        }
        let last = newest(&sink, "d").unwrap();
        assert!((6..=7).contains(&last));
        lost += u64::from(last == 6);
        // In a store that syncs, who does without is told at once.
        let rounds = store.counts().rounds;
        let quick = sink.clone().buffered().admit("e", token(1)).unwrap();
        assert_eq!((quick.token(), store.counts().rounds), (token(1), rounds));
        admit(&sink, "e", 1);
        assert!(store.counts().rounds > rounds);
        store.abandon();
    }
    assert!(lost > 0, "no cut lost anything");
}

#[test]
fn guards_have_names_of_their_own() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let features = || support::disk::read(&fs, "META").chunks(4096).map(|slot| slot[20]).max();
    let store = on_heap(&fs, &clock);
    let reserved = |error: NamespaceError| matches!(error, NamespaceError::Reserved { .. });
    let name = "refrain.fences/sink";
    assert!(reserved(store.namespace(name).unwrap_err()));
    assert!(reserved(store.define(name, &Policy::default()).unwrap_err()));
    assert!(reserved(store.alter(name, &Policy::default()).unwrap_err()));
    assert_eq!(features(), Some(0));
    let sink = guard(&store);
    // Earlier versions would take whichever token they read first.
    assert_eq!(features(), Some(2));
    admit(&sink, "a", 5);
    store.namespace("sink").unwrap();
    assert_eq!(store.namespaces(), ["sink"]);
    assert!(store.namespace("sink").unwrap().claim("a", None).unwrap().acquired().is_some());
    assert!(store.fence_guard(&"n".repeat(240), HOUR).is_ok());
    for wrong in ["", &"n".repeat(241)] {
        let error = store.fence_guard(wrong, HOUR).unwrap_err();
        assert!(matches!(error, NamespaceError::NameLength { .. }), "{error}");
    }
    for wrong in [Duration::ZERO, Duration::from_secs(31 * 31_557_600)] {
        let error = store.fence_guard("other", wrong).unwrap_err();
        assert!(matches!(error, NamespaceError::Policy(_)), "{error}");
    }
    assert_eq!(refused(&sink, "a", 4), 5);
}

/// What was lost may have been a newer token: nobody is admitted until somebody says so.
#[test]
fn in_a_salvaged_store_what_may_be_older_is_in_doubt() {
    for is_damaged in [false, true] {
        let (disk, clock) = (SimDisk::new(1), SimClock::new());
        let store = on_disk(&disk, &clock, Durability::Sync);
        let sink = guard(&store);
        for raw in 1..=9 {
            admit(&sink, "a", raw);
            for number in 0..100 {
                admit(&sink, &format!("{number}"), raw);
            }
        }
        store.close().unwrap();
        drop((sink, store));
        if is_damaged {
            disk.tamper("data-00000", 60_000, &[0xff; 4096], None);
        }
        let target = SimDisk::new(2);
        let source = options(&disk, &clock, Durability::Sync);
        let report = source.salvage(options(&target, &clock, Durability::Sync)).unwrap();
        assert_eq!(report.gaps > 0, is_damaged);
        let store = on_disk(&target, &clock, Durability::Sync);
        let sink = guard(&store);
        if is_damaged {
            for resource in ["a", "7", "never seen"] {
                for raw in [9, 10] {
                    let error = sink.admit(resource, token(raw)).unwrap_err();
                    assert!(matches!(error, FenceError::InDoubt(_)), "{resource}: {error}");
                }
                assert!(matches!(sink.newest(resource), Err(FenceError::InDoubt(_))));
            }
            // What is older in any case is refused as such.
            assert!(refused(&sink, "a", 1) > 1);
            for gap in store.gaps() {
                store.accept_gap(gap.id(), "looked at", "operator 3").unwrap();
            }
        }
        admit(&sink, "never seen", 1);
        let found = newest(&sink, "a").unwrap();
        assert!(found == 9 || is_damaged);
        admit(&sink, "a", 10);
        assert_eq!(refused(&sink, "a", 9), 10);
    }
}
