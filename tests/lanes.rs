//! Several lanes: how they come to be, what they may cost, and that a key has its records in order whatever its
//! lane is.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use refrain::testing::{HeapFs, SimClock};
use refrain::{
    Claim, ClaimError, ClaimOptions, CompleteOptions, Durability, Lookup, Namespace, OnOrphan,
    Options, Policy, Store,
};
use support::Random;
use support::disk::HookFs;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);
const SEGMENT_BYTES: u64 = 256 << 10;

fn claim(space: &Namespace, key: &str) {
    drop(space.claim(key, None).unwrap().acquired().unwrap());
}

/// Claims and completes, with as much room as it takes, until the store has so many lanes.
fn widen(store: &Store, fs: &HeapFs, lanes: usize) {
    let space = store.namespace("space").unwrap();
    fs.set_room(u64::MAX);
    for n in 0_u64.. {
        if store.stats().lanes >= lanes {
            return;
        }
        assert!(n < 1_000_000, "{:?}", store.stats());
        let claim = space.claim(format!("widening {lanes} {n}"), None).unwrap();
        claim.acquired().unwrap().complete([7; 200]).unwrap();
        if n % 64 == 0 {
            store.maintain(Duration::MAX);
        }
    }
}

#[test]
fn lanes_that_are_asked_for_are_used_when_there_is_room() {
    let fs = HeapFs::new();
    let open = |lanes, headroom| {
        let options = Options::new("unused").file_system(fs.clone()).segment_bytes(SEGMENT_BYTES);
        let options = options.durability(Durability::Buffered).manual_maintenance(true);
        options.lanes(lanes).headroom_bytes(headroom * SEGMENT_BYTES).open().unwrap()
    };
    fs.set_room(5 * SEGMENT_BYTES);
    let store = open(8, 0);
    assert_eq!(store.stats().lanes, 1, "there is no room for segments of another one");
    widen(&store, &fs, 2);
    assert_eq!(store.stats().lanes, 2, "they are doubled");
    widen(&store, &fs, 8);
    store.close().unwrap();
    fs.set_room(u64::MAX);
    let store = open(8, 100);
    assert_eq!(store.stats().lanes, 8);
    store.close().unwrap();
    let store = open(1, 100);
    store.maintain(Duration::MAX);
    assert_eq!(store.stats().lanes, 1);
}

#[test]
fn threads_that_meet_get_more_lanes_and_one_thread_does_not() {
    let most = std::thread::available_parallelism().unwrap().get().min(16);
    let store = Options::in_memory().headroom_bytes(64 << 20).open().unwrap();
    let space = store.namespace("space").unwrap();
    for n in 0..20_000_u64 {
        claim(&space, &format!("alone {n}"));
    }
    assert_eq!(store.stats().lanes, 1);
    if most < 2 {
        println!("SKIPPED: one processor");
        return;
    }
    // Also where one core is left for them they meet at some time: who lost it holds the lock.
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let (store, space) = (&store, space.clone());
            scope.spawn(move || {
                while store.counts().lanes == 1 {
                    for n in 0..1000 {
                        let claim = space.claim(format!("{thread} {n}"), None).unwrap();
                        claim.acquired().unwrap().release().unwrap();
                    }
                }
            });
        }
    });
    assert!((2..=most).contains(&store.stats().lanes), "{:?}", store.stats());
}

#[test]
fn reserved_room_is_told_exactly_whatever_lanes_have_of_it() {
    let options = Options::in_memory().segment_bytes(SEGMENT_BYTES).manual_maintenance(true);
    let options = options.lanes(4).shared_by_chance(1);
    let store = options.headroom_bytes(100 * SEGMENT_BYTES).open().unwrap();
    assert_eq!(store.stats().lanes, 4);
    let space = store.namespace("space").unwrap();
    let mut leases = vec![];
    for n in 0..1000 {
        leases.push(space.claim(format!("{n:08}"), None).unwrap().acquired().unwrap());
    }
    let reserved = store.stats().reserved_bytes;
    assert_eq!(reserved % 1000, 0, "as much for each");
    for lease in leases.drain(..500) {
        lease.complete("outcome").unwrap();
    }
    assert_eq!(store.stats().reserved_bytes, reserved / 2);
    leases.into_iter().for_each(|lease| lease.release().unwrap());
    assert_eq!(store.stats().reserved_bytes, 0);
}

/// On a disk that is full each lane needs segments of its own for its exits.
#[test]
fn claims_of_all_lanes_can_be_ended_when_the_disk_is_full() {
    for lanes in [1, 2, 4, 8, 16] {
        let options = Options::new("unused").file_system(HeapFs::new()).manual_maintenance(true);
        let options = options.segment_bytes(SEGMENT_BYTES).durability(Durability::Buffered);
        let most = 90.max(10 * lanes as u64) * SEGMENT_BYTES;
        let options = options.max_disk_bytes(most).headroom_bytes(80 * SEGMENT_BYTES);
        let store = options.lanes(lanes).shared_by_chance(1).open().unwrap();
        assert_eq!(store.stats().lanes, lanes);
        let policy = Policy::default().lease(DAY);
        let space = store.define("space", &policy).unwrap();
        let mut leases = vec![];
        let refused = loop {
            let key = format!("{}-{}", leases.len(), "k".repeat(leases.len() % 3000));
            match space.claim(key, None) {
                Ok(claim) => leases.push(claim.acquired().unwrap()),
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, ClaimError::Full { .. }), "{refused}");
        // Not so much is kept that claims could not have: two segments, beside one to spare for each lane.
        let stats = store.stats();
        let free = (stats.disk_bytes - stats.wal_bytes) / SEGMENT_BYTES;
        let kept = stats.reserved_bytes / (SEGMENT_BYTES - 8192) + 3 + lanes as u64;
        assert!(free <= kept + 2, "{free} segments are free, {kept} are kept: {stats:?}");
        // A renewal of each takes what was reserved for it.
        for mut lease in leases {
            lease.renew().unwrap_or_else(|error| panic!("{lanes} lanes: {error}"));
            lease.complete([7; 100]).unwrap_or_else(|error| panic!("{lanes} lanes: {error}"));
        }
        assert_eq!(store.stats().reserved_bytes, 0);
        store.check_invariants().unwrap();
    }
}

/// A key's claim lies in a lane that is there before its key's lane has segments: what ends it must not be destroyed
/// first, or it comes back.
#[test]
fn what_ends_a_claim_outlives_it_when_lanes_are_doubled_in_between() {
    let mut random = Random::new(support::seed("lanes are doubled"));
    for lanes in [1, 2, 4, 2, 4, 2, 4] {
        let (fs, clock) = (HeapFs::new(), SimClock::new());
        fs.set_room(5 * SEGMENT_BYTES);
        let open = |fs: &HeapFs| {
            let options = Options::new("unused").file_system(fs.clone()).clock(clock.clone());
            let options = options.durability(Durability::Buffered).segment_bytes(SEGMENT_BYTES);
            // Lanes at random: as if any thread did any of it.
            let options = options.shared_by_chance(lanes as u64);
            options.lanes(8).manual_maintenance(true).open().unwrap()
        };
        let policy = Policy::default().lease(DAY).dedupe_ttl(DAY).on_orphan(OnOrphan::KeepLease);
        let store = open(&fs);
        let space = store.define("space", &policy).unwrap();
        let mut passing = 0;
        let mut pass = |count: u64| {
            for _ in 0..count {
                let claim = space.claim(format!("passing {passing}"), None).unwrap();
                claim.acquired().unwrap().release().unwrap();
                passing += 1;
            }
            assert!(passing < 1_000_000, "{:?}", store.stats());
        };
        widen(&store, &fs, lanes);
        // Some that stay, so that their segments do.
        (0..400).for_each(|n| claim(&space, &format!("stays {n}")));
        // Any of the lanes may have taken a segment last. Whoever finds no room makes some, but no lanes.
        pass(random.below(2000) * lanes as u64);
        let keys: Vec<_> = (0..64).map(|n| format!("goes {n}")).collect();
        let leases = keys.iter().map(|key| space.claim(key, None).unwrap().acquired().unwrap());
        let leases: Vec<_> = leases.collect();
        assert_eq!(store.stats().lanes, lanes);
        widen(&store, &fs, 2 * lanes);
        leases.into_iter().for_each(|lease| lease.release().unwrap());
        let check = || {
            let copy = open(&fs.copy().unwrap());
            let space = copy.namespace("space").unwrap();
            for key in &keys {
                assert_eq!(space.lookup(key).unwrap(), Lookup::Absent, "{key}, {lanes} lanes");
            }
        };
        check();
        let recycled = store.stats().recycled;
        // Claims that are given back fill segments in all lanes, which are sealed and go.
        while store.stats().recycled < recycled + 12 {
            pass(300);
            clock.advance(SECOND);
            // A little at a time: each segment goes before the next one.
            for _ in 0..20 {
                let gone = store.stats().recycled;
                store.maintain(Duration::ZERO);
                if store.stats().recycled > gone {
                    check();
                }
            }
        }
        assert!(matches!(space.claim("stays 7", None), Ok(Claim::InProgress(_))));
    }
}

/// Threads have lanes of their own, and those of some are filled while others' are not: what ends a claim goes behind
/// it, whoever ends it.
#[test]
fn what_another_thread_ends_stays_ended() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let open = |fs: &HeapFs| {
        let options = Options::new("unused").file_system(fs.clone()).clock(clock.clone());
        let options = options.durability(Durability::Buffered).segment_bytes(SEGMENT_BYTES);
        let options = options.headroom_bytes(200 * SEGMENT_BYTES);
        options.lanes(16).manual_maintenance(true).open().unwrap()
    };
    let policy = Policy::default().lease(DAY).dedupe_ttl(DAY).on_orphan(OnOrphan::KeepLease);
    let store = open(&fs);
    let space = store.define("space", &policy).unwrap();
    assert_eq!(store.stats().lanes, 16);
    let pass = |name: &str, count: u64| {
        for n in 0..count {
            let claim = space.claim(format!("{name} {n}"), None).unwrap();
            claim.acquired().unwrap().release().unwrap();
        }
    };
    let (send, receive) = mpsc::channel::<Vec<refrain::Lease>>();
    let (began, has_begun) = mpsc::channel();
    std::thread::scope(|scope| {
        let other = scope.spawn(move || {
            // In a segment that is older than those to come.
            pass("early", 1);
            began.send(()).unwrap();
            receive.iter().flatten().for_each(|lease| lease.release().unwrap());
        });
        has_begun.recv().unwrap();
        pass("passing", 8000);
        let leases = (0..64).map(|n| space.claim(format!("goes {n}"), None).unwrap());
        send.send(leases.map(|claim| claim.acquired().unwrap()).collect()).unwrap();
        drop(send);
        other.join().unwrap();
    });
    let recycled = store.stats().recycled;
    for round in 0.. {
        let stats = store.stats();
        if stats.recycled >= recycled + 12 {
            break;
        }
        assert!(round < 10_000, "{stats:?}");
        pass(&format!("later {round}"), 300);
        clock.advance(SECOND);
        for _ in 0..20 {
            let gone = store.stats().recycled;
            store.maintain(Duration::ZERO);
            if store.stats().recycled == gone {
                continue;
            }
            let copy = open(&fs.copy().unwrap());
            let space = copy.namespace("space").unwrap();
            for n in 0..64 {
                let key = format!("goes {n}");
                assert_eq!(space.lookup(&key).unwrap(), Lookup::Absent, "{key}, {round}");
            }
        }
    }
}

/// A large outcome is being written, and the disk takes its time: whoever claims does not wait for it.
#[test]
fn nobody_waits_while_a_large_record_is_written() {
    let (reached, is_reached) = mpsc::channel();
    let (leave, may_leave) = mpsc::channel();
    let gate = Mutex::new(Some((reached, may_leave)));
    let is_shut = Arc::new(AtomicBool::new(false));
    let shut = Arc::clone(&is_shut);
    let fs = HookFs::new(HeapFs::new(), move |operation, name| {
        let is_first =
            operation == "write" && name.starts_with("data") && shut.swap(false, Ordering::SeqCst);
        if is_first && let Some((reached, may_leave)) = gate.lock().unwrap().take() {
            reached.send(()).unwrap();
            may_leave.recv().unwrap();
        }
        Ok(())
    });
    let options = Options::new("unused").file_system(fs).segment_bytes(SEGMENT_BYTES).lanes(1);
    let store = options.manual_maintenance(true).open().unwrap();
    let space = store.namespace("space").unwrap();
    let lease = space.claim("large", None).unwrap().acquired().unwrap();
    std::thread::scope(|scope| {
        is_shut.store(true, Ordering::SeqCst);
        let large = scope.spawn(move || {
            let body = [7; 100_000];
            lease.complete_async(&CompleteOptions::body(&body)).wait()
        });
        is_reached.recv().unwrap();
        // Who looks at all lanes waits for the large one, and keeps no other waiting meanwhile.
        let looks = scope.spawn(|| store.stats());
        // Some of them share its shard with the large one, but not all.
        let (done, are_done) = mpsc::channel();
        for n in 0..64 {
            let (space, done) = (space.clone(), done.clone());
            scope.spawn(move || {
                let claim = space.claim_with(format!("{n}"), &ClaimOptions::new().buffered());
                done.send(claim.unwrap().acquired().is_some()).unwrap_or_default();
            });
        }
        assert!(are_done.iter().take(8).all(|is_granted| is_granted));
        leave.send(()).unwrap();
        assert!(large.join().unwrap().is_ok());
        // It may have counted entries before there were any.
        looks.join().unwrap();
    });
    assert!(store.stats().entries > 8);
}

/// Exits that rotate in several lanes leave few prepared segments, and the oldest segment of claims is one that is
/// still being filled: it is sealed all the same, or nothing behind it is used again.
#[test]
fn a_store_that_cannot_grow_goes_on_when_exits_have_taken_what_was_spared() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let options = Options::new("unused").file_system(fs).clock(clock.clone());
    let options = options.segment_bytes(SEGMENT_BYTES).durability(Durability::Buffered);
    let options = options.max_disk_bytes(60 * SEGMENT_BYTES).headroom_bytes(50 * SEGMENT_BYTES);
    let options = options.lanes(4).shared_by_chance(1);
    let store = options.manual_maintenance(true).open().unwrap();
    assert_eq!(store.stats().lanes, 4);
    let policy = Policy::default().lease(10 * SECOND).dedupe_ttl(MINUTE).replay_ttl(MINUTE);
    let space = store.define("space", &policy.late_grace(10 * SECOND)).unwrap();
    let (mut leases, mut n) = (vec![], 0_u64);
    // As full as it gets, of claims and completions.
    loop {
        n += 1;
        match space.claim(format!("{n}"), None) {
            Ok(claim) if n % 4 == 0 => leases.push(claim.acquired().unwrap()),
            Ok(claim) => drop(claim.acquired().unwrap().complete([7; 150]).unwrap()),
            Err(ClaimError::Full { .. }) => break,
            Err(other) => panic!("{other}"),
        }
    }
    // All exits but one, which is abandoned.
    drop(leases.pop());
    leases.into_iter().for_each(|lease| lease.release().unwrap());
    let mut is_granted = false;
    for _ in 0..60 {
        clock.advance(MINUTE);
        store.maintain(Duration::MAX);
        is_granted |= space.claim(format!("{n}"), None).is_ok();
    }
    assert!(is_granted, "{:?}", store.stats());
}
