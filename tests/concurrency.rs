//! Many threads on the same keys.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use refrain::testing::{HeapFs, SimClock};
use refrain::{
    Body, Claim, CompleteError, CompleteOptions, Durability, Lookup, Once, OpenError, Options,
    Policy, Store,
};
use support::Random;

fn stores() -> [Store; 2] {
    let buffered = Options::new("unused").file_system(HeapFs::new());
    [
        Options::in_memory().shards(1).open().unwrap(),
        buffered.durability(Durability::Buffered).shards(16).open().unwrap(),
    ]
}

#[test]
fn sixty_four_threads_claim_the_same_keys_and_each_has_one_owner() {
    // The tables start with 8 buckets and split all the way up while everybody claims.
    let keys: u32 = if cfg!(debug_assertions) { 100_000 } else { 200_000 };
    for store in stores() {
        // However slow the machine is.
        let long = Policy::default().lease(Duration::from_secs(12 * 3600));
        let space = store.define("space", &long).unwrap();
        let owners: Vec<AtomicU32> = (0..keys).map(|_| AtomicU32::new(0)).collect();
        thread::scope(|scope| {
            for thread in 0..64_u32 {
                let (space, owners) = (&space, &owners);
                scope.spawn(move || {
                    for n in 0..keys {
                        // Each thread in an order of its own, most of them close together.
                        let n = (n + thread % 8 * (keys / 8)) % keys;
                        match space.claim(n.to_le_bytes(), None).unwrap() {
                            Claim::Acquired(lease) => {
                                assert_eq!(lease.attempt(), 1);
                                owners[n as usize].fetch_add(1, Ordering::Relaxed);
                            }
                            Claim::InProgress(_) => {}
                            other => panic!("{other:?}"),
                        }
                    }
                });
            }
        });
        assert!(owners.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        assert_eq!(store.stats().entries, keys as usize);
        store.check_invariants().unwrap();
    }
}

#[test]
fn lookups_and_duplicates_need_no_lock() {
    for store in stores() {
        let space = store.namespace("space").unwrap();
        let held = space.claim("held", None).unwrap().acquired().unwrap();
        let lease = space.claim("done", None).unwrap().acquired().unwrap();
        lease.complete("outcome").unwrap();
        let marked = space.once("marked", None).unwrap();
        assert!(matches!(marked, Once::First(_)));
        let others = {
            let space = space.clone();
            move || {
                assert!(matches!(space.lookup("held").unwrap(), Lookup::InProgress(_)));
                assert!(matches!(space.lookup("absent").unwrap(), Lookup::Absent));
                assert!(matches!(space.claim("held", None).unwrap(), Claim::InProgress(_)));
                assert!(matches!(space.once("held", None).unwrap(), Once::InProgress(_)));
                assert!(matches!(space.once("marked", None).unwrap(), Once::Seen(_)));
                let Claim::Completed(outcome) = space.claim("done", None).unwrap() else {
                    panic!("it was completed")
                };
                assert_eq!(outcome.body(), Body::Bytes(b"outcome"));
                assert!(matches!(space.lookup("done").unwrap(), Lookup::Completed(_)));
            }
        };
        let (told, done) = mpsc::channel();
        let reader = store.with_shards_locked(|| {
            let reader = thread::spawn(move || {
                others();
                told.send(()).unwrap();
            });
            // Whoever takes a lock of a shard waits for this thread: it ends when it is let go.
            let is_done = done.recv_timeout(Duration::from_secs(60)).is_ok();
            (reader, is_done)
        });
        reader.0.join().unwrap();
        assert!(reader.1, "somebody waited for a shard");
        held.release().unwrap();
        assert!(matches!(space.lookup("held").unwrap(), Lookup::Absent));
        assert!(matches!(space.claim("held", None).unwrap(), Claim::Acquired(_)));
    }
}

/// What readers see of a key goes the way of its life, and never back, while tables split and keys
/// beside it come and go.
#[test]
fn a_reader_never_sees_a_key_go_back() {
    let (keys, rounds): (u64, u64) = if cfg!(debug_assertions) { (64, 400) } else { (64, 4000) };
    for store in stores() {
        let space = store.namespace("space").unwrap();
        let is_over = AtomicBool::new(false);
        // Round r of a key: claimed under its number, completed with it, forgotten.
        let current: Vec<AtomicU64> = (0..keys).map(|_| AtomicU64::new(0)).collect();
        thread::scope(|scope| {
            for reader in 0..2 {
                let (space, is_over, current) = (&space, &is_over, &current);
                scope.spawn(move || {
                    let mut last = vec![(0, 0); keys as usize];
                    for n in (0..keys).cycle().skip(reader) {
                        if is_over.load(Ordering::SeqCst) {
                            break;
                        }
                        let at_least = current[n as usize].load(Ordering::SeqCst);
                        let seen = match space.lookup(n.to_le_bytes()).unwrap() {
                            Lookup::Absent => continue,
                            Lookup::InProgress(it) => (it.token().get(), 0),
                            Lookup::Completed(it) => {
                                let Body::Bytes(body) = it.body() else { panic!("a body") };
                                let round = u64::from_le_bytes(body.try_into().unwrap());
                                assert!(round >= at_least, "{round} after {at_least} was over");
                                (it.token().get(), 1)
                            }
                            other => panic!("{other:?}"),
                        };
                        assert!(seen >= last[n as usize], "{seen:?} after {:?}", last[n as usize]);
                        last[n as usize] = seen;
                    }
                });
            }
            for round in 0..rounds {
                for n in 0..keys {
                    let claim = space.claim(n.to_le_bytes(), None).unwrap();
                    claim.acquired().unwrap().complete(round.to_le_bytes()).unwrap();
                    assert!(matches!(space.lookup(n.to_le_bytes()).unwrap(), Lookup::Completed(_)));
                    space.forget(n.to_le_bytes(), "next", "test").unwrap();
                    assert!(matches!(space.lookup(n.to_le_bytes()).unwrap(), Lookup::Absent));
                    current[n as usize].store(round + 1, Ordering::SeqCst);
                    // One that stays, so that the table grows.
                    let marked = space.once([n.to_le_bytes(), round.to_le_bytes()].concat(), None);
                    assert!(matches!(marked.unwrap(), Once::First(_)));
                }
            }
            is_over.store(true, Ordering::SeqCst);
        });
        store.check_invariants().unwrap();
    }
}

#[test]
fn a_key_never_has_two_owners_however_it_changes_hands() {
    const KEYS: usize = 8;
    let rounds = 3000;
    for store in stores() {
        let policy = Policy::default().lease(Duration::from_secs(3600));
        let policy = policy.dedupe_ttl(Duration::from_secs(7200));
        let policy = policy.replay_ttl(Duration::from_secs(7200));
        let space = store.define("space", &policy).unwrap();
        let holders: [AtomicU32; KEYS] = Default::default();
        let highest: [AtomicU64; KEYS] = Default::default();
        thread::scope(|scope| {
            for thread in 0..8 {
                let (space, holders, highest) = (&space, &holders, &highest);
                scope.spawn(move || {
                    let mut random = Random::new(thread);
                    for _ in 0..rounds {
                        let n = random.below(KEYS as u64) as usize;
                        let key = [n as u8];
                        match space.claim(key, None).unwrap() {
                            Claim::Acquired(lease) => {
                                let token = lease.token();
                                assert_eq!(holders[n].fetch_add(1, Ordering::SeqCst), 0);
                                let before = highest[n].fetch_max(token.get(), Ordering::SeqCst);
                                assert!(before < token.get(), "tokens rise");
                                thread::yield_now();
                                assert_eq!(holders[n].fetch_sub(1, Ordering::SeqCst), 1);
                                if random.chance(50) {
                                    lease.release().unwrap();
                                } else {
                                    // Remembered for a moment only, so that the key is free again.
                                    let bytes = token.get().to_le_bytes();
                                    let outcome = CompleteOptions::body(&bytes);
                                    let moment = Duration::from_millis(1);
                                    let outcome = outcome.replay_ttl(moment).dedupe_ttl(moment);
                                    lease.complete_with(&outcome).unwrap();
                                }
                            }
                            Claim::Completed(outcome) => {
                                let token = outcome.token();
                                let bytes = token.get().to_le_bytes();
                                assert_eq!(outcome.body(), Body::Bytes(&bytes));
                                // Its owner is done; another outcome is refused for ever.
                                let again = space.complete(key, token, "another");
                                assert!(!matches!(again, Ok(_) | Err(CompleteError::Parked)));
                            }
                            Claim::InProgress(_) => thread::yield_now(),
                            other => panic!("{other:?}"),
                        }
                    }
                });
            }
        });
        store.check_invariants().unwrap();
    }
}

#[test]
fn namespaces_can_be_made_and_changed_while_others_claim() {
    for store in stores() {
        thread::scope(|scope| {
            for thread in 0..4_u64 {
                let store = &store;
                scope.spawn(move || {
                    for n in 0..50_u64 {
                        let space = store.namespace(&format!("space-{n}")).unwrap();
                        let policy =
                            Policy::default().lease(Duration::from_secs(1 + (n + thread) % 5));
                        store.alter(space.name(), &policy).unwrap();
                        let key = thread.to_le_bytes();
                        let lease = space.claim(key, None).unwrap().acquired().unwrap();
                        lease.complete("").unwrap();
                        assert!(matches!(space.lookup(key).unwrap(), Lookup::Completed(_)));
                    }
                });
            }
        });
        assert_eq!(store.namespaces().len(), 50);
        assert_eq!(store.stats().entries, 200);
    }
}

#[test]
fn closing_waits_for_nobody_and_loses_nothing() {
    for round in 0..20 {
        let fs = HeapFs::new();
        let open = || {
            let options = Options::new("unused").file_system(fs.clone());
            let options = options.durability(Durability::Buffered).segment_bytes(256 << 10);
            // A thread that the system left standing under a pin keeps it locked for a moment.
            for _ in 0..1000 {
                match options.clone().open() {
                    Err(OpenError::Locked { .. }) => thread::sleep(Duration::from_millis(5)),
                    opened => return opened.unwrap(),
                }
            }
            panic!("it stays locked")
        };
        let store = open();
        let space = store.namespace("space").unwrap();
        let done: Vec<AtomicU32> = (0..4).map(|_| AtomicU32::new(0)).collect();
        thread::scope(|scope| {
            for (thread, done) in done.iter().enumerate() {
                let space = &space;
                scope.spawn(move || {
                    // Until the store is closed under its feet.
                    for n in 0.. {
                        if space.once(format!("{thread}-{n}"), None).is_err() {
                            break;
                        }
                        done.store(n + 1, Ordering::SeqCst);
                    }
                });
            }
            thread::sleep(Duration::from_micros(200 * round));
            store.close().unwrap();
        });
        drop((store, space));
        let store = open();
        assert!(store.report().clean);
        let space = store.namespace("space").unwrap();
        for (thread, done) in done.iter().enumerate() {
            for n in 0..done.load(Ordering::SeqCst) {
                let key = format!("{thread}-{n}");
                assert!(matches!(space.lookup(key).unwrap(), Lookup::Completed(_)));
            }
        }
    }
}

/// Who reads a record while its segment is emptied reads it to its end.
#[test]
fn readers_meet_no_segment_that_is_gone() {
    let clock = SimClock::new();
    let options = Options::in_memory().segment_bytes(256 << 10).clock(clock.clone());
    let store = options.shards(1).manual_maintenance(true).open().unwrap();
    let second = Duration::from_secs(1);
    let policy = Policy::default().lease(second).late_grace(Duration::ZERO);
    let space = store.define("space", &policy.replay_ttl(second).dedupe_ttl(second)).unwrap();
    let rounds: u64 = if cfg!(debug_assertions) { 100 } else { 300 };
    let (first, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let body = |key: u64| vec![key as u8; 40_000];
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut read = 0_u64;
                while !is_over.load(Ordering::Relaxed) {
                    let key = first.load(Ordering::Relaxed) + read % 16;
                    match space.lookup(key.to_le_bytes()).unwrap() {
                        Lookup::Completed(outcome) => {
                            assert_eq!(outcome.body(), Body::Bytes(&body(key)));
                        }
                        Lookup::Absent | Lookup::InProgress(_) => {}
                        other => panic!("{other:?}"),
                    }
                    read += 1;
                }
                assert!(read > rounds, "{read}");
            });
        }
        for round in 0..rounds {
            let from = round * 16;
            first.store(from, Ordering::Relaxed);
            for key in from..from + 16 {
                let lease = space.claim(key.to_le_bytes(), None).unwrap().acquired().unwrap();
                lease.complete(body(key)).unwrap();
            }
            clock.advance(8 * second);
            store.maintain(Duration::MAX);
            clock.advance(second);
            store.maintain(Duration::MAX);
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let stats = store.stats();
    assert!(stats.recycled > rounds, "{stats:?}");
}
