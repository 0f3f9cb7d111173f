//! What a store says of itself: its health, and what it has counted.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use refrain::testing::{Fault, HeapFs, SimClock, SimDisk};
use refrain::{
    CallCounts, Claim, ClaimError, ClaimOptions, CompleteOptions, Durability, Fingerprint,
    FingerprintRule, LeaseError, Namespace, OnLeaseEnd, Once, Options, Policy, Resolution, Serving,
    Store,
};
use support::disk::{find_last, poke, read};
use support::task::Task;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const SEGMENT_BYTES: u64 = 256 << 10;

fn options(fs: &HeapFs, clock: &SimClock) -> Options {
    let options = Options::new("unused").file_system(fs.clone()).clock(clock.clone());
    options.segment_bytes(SEGMENT_BYTES).manual_maintenance(true)
}

fn open(clock: &SimClock) -> Store {
    options(&HeapFs::new(), clock).open().unwrap()
}

fn policy() -> Policy {
    Policy::default().lease(SECOND).late_grace(HOUR).replay_ttl(HOUR).dedupe_ttl(HOUR)
}

/// What was counted since.
fn since(before: CallCounts, now: CallCounts) -> Vec<(&'static str, u64)> {
    let of = |it: CallCounts| {
        [
            ("granted", it.granted),
            ("marked", it.marked),
            ("taken_over", it.taken_over),
            ("taken_over_orphaned", it.taken_over_orphaned),
            ("replayed", it.replayed),
            ("in_progress", it.in_progress),
            ("mismatches", it.mismatches),
            ("differing_fingerprints", it.differing_fingerprints),
            ("parked", it.parked),
            ("in_doubt", it.in_doubt),
            ("outside_window", it.outside_window),
            ("refused_full", it.refused_full),
            ("completed", it.completed),
            ("released", it.released),
            ("left_parked", it.left_parked),
            ("renewed", it.renewed),
            ("late", it.late),
            ("fenced", it.fenced),
            ("resolved", it.resolved),
            ("forgotten", it.forgotten),
            ("expired", it.expired),
            ("expired_unfinished", it.expired_unfinished),
        ]
    };
    let changed = of(now).into_iter().zip(of(before)).filter(|(now, before)| now != before);
    changed.map(|((name, now), (_, before))| (name, now - before)).collect()
}

/// Every kind of call, and what it is counted as, and as nothing else.
#[test]
fn every_answer_is_counted_as_what_it_was() {
    let clock = SimClock::new();
    let store = open(&clock);
    let space = store.define("space", &policy()).unwrap();
    let other = store.define("other", &policy()).unwrap();
    let mut before = CallCounts::default();
    let mut counted = |expected: &[(&'static str, u64)]| {
        let now = space.stats().calls;
        assert_eq!(since(before, now), expected);
        before = now;
    };
    let ask = |payload: &[u8]| ClaimOptions::new().fingerprint(Fingerprint::of(payload));

    let mut lease = space.claim_with("a", &ask(b"1")).unwrap().acquired().unwrap();
    counted(&[("granted", 1)]);
    assert!(matches!(space.claim("a", None).unwrap(), Claim::InProgress(_)));
    assert!(matches!(space.once("a", None).unwrap(), Once::InProgress(_)));
    counted(&[("in_progress", 2)]);
    assert!(matches!(space.claim_with("a", &ask(b"2")).unwrap(), Claim::Mismatch(_)));
    counted(&[("mismatches", 1), ("differing_fingerprints", 1)]);
    lease.renew().unwrap();
    counted(&[("renewed", 1)]);
    let token = lease.token();
    lease.complete("outcome").unwrap();
    counted(&[("completed", 1)]);
    space.complete("a", token, "outcome").unwrap();
    assert!(space.lookup("a").is_ok() && space.lookup("nothing").is_ok());
    counted(&[]);
    let batch = space.claim_batch(&[("a", ClaimOptions::new()), ("b", ClaimOptions::new())]);
    assert!(matches!(batch[1], Ok(Claim::Acquired(_))));
    assert!(matches!(space.once("a", None).unwrap(), Once::Seen(_)));
    counted(&[("granted", 1), ("replayed", 2)]);

    clock.advance(2 * SECOND);
    let late = space.claim("b", None).unwrap().acquired().unwrap();
    counted(&[("granted", 1), ("taken_over", 1)]);
    let Ok(Claim::Acquired(first)) = &batch[1] else { panic!() };
    let refused = space.complete("b", first.token(), "");
    assert!(refused.is_err() && space.renew("b", first.token()).is_err());
    assert!(!first.is_current().unwrap(), "it asks, and does nothing");
    counted(&[("fenced", 2)]);
    clock.advance(2 * SECOND);
    late.release().unwrap();
    counted(&[("released", 1), ("late", 1)]);

    assert!(matches!(space.once("c", None).unwrap(), Once::First(_)));
    counted(&[("marked", 1)]);
    let lease = space.claim("d", None).unwrap().acquired().unwrap();
    let token = lease.token();
    lease.park().unwrap();
    counted(&[("granted", 1), ("left_parked", 1)]);
    assert!(matches!(space.claim("d", None).unwrap(), Claim::Parked(_)));
    counted(&[("parked", 1)]);
    space
        .resolve("d", token, &Resolution::Completed(CompleteOptions::new()), "a test", "nobody")
        .unwrap();
    counted(&[("resolved", 1)]);
    assert!(space.forget("d", "", "").unwrap().is_some());
    assert!(space.forget("d", "", "").unwrap().is_none());
    counted(&[("forgotten", 1)]);
    let sent = ClaimOptions::new().first_sent(SystemTime::UNIX_EPOCH);
    assert!(matches!(space.claim_with("e", &sent).unwrap(), Claim::OutsideWindow(_)));
    counted(&[("outside_window", 1)]);

    store.alter("space", &policy().fingerprint(FingerprintRule::Count)).unwrap();
    assert!(matches!(space.claim_with("a", &ask(b"2")).unwrap(), Claim::Completed(_)));
    counted(&[("replayed", 1), ("differing_fingerprints", 1)]);
    assert_eq!(space.fingerprint_mismatches(), 2);
    assert_eq!(before.duplicates(), before.replayed + 2 + 1 + 1);
    let rate = before.replay_rate().unwrap();
    assert!((rate - 3.0 / 8.0).abs() < 1e-9, "{rate}");

    // Each namespace for itself; the store has the sum; an open starts over.
    drop(other.claim("a", None).unwrap());
    assert_eq!(since(CallCounts::default(), other.stats().calls), [("granted", 1)]);
    assert_eq!(since(before, store.stats().calls), [("granted", 1)]);
    assert_eq!(CallCounts::default().replay_rate(), None);
}

#[test]
fn a_call_that_waits_is_in_progress_once() {
    let clock = SimClock::new();
    let store = open(&clock);
    let space = store.define("space", &policy()).unwrap();
    let mut lease = space.claim("key", None).unwrap().acquired().unwrap();
    let mut waiting = Task::new(space.claim_or_wait("key", &ClaimOptions::new(), HOUR)).begun();
    assert_eq!(space.stats().waiters, 1);
    for _ in 0..3 {
        lease.renew().unwrap();
        clock.advance(SECOND / 2);
        store.maintain(Duration::MAX);
        assert!(waiting.poll().is_pending());
    }
    lease.complete("outcome").unwrap();
    assert!(matches!(waiting.ready(), Ok(Claim::Completed(_))));
    let calls = space.stats().calls;
    assert_eq!((calls.granted, calls.in_progress, calls.replayed), (1, 1, 1));
    assert_eq!(space.stats().waiters, 0);
}

/// Threads come and go, and more namespaces are in use than a thread has counts of at hand.
#[test]
fn no_count_is_lost_by_threads() {
    let store = Options::in_memory().open().unwrap();
    let spaces: Vec<_> =
        (0..100).map(|number| store.namespace(&format!("space-{number}")).unwrap()).collect();
    let answers: [AtomicU64; 3] = Default::default();
    for _ in 0..3 {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for key in 0..20_u32 {
                        for space in &spaces {
                            let answer = match space.claim(key.to_le_bytes(), None).unwrap() {
                                Claim::Acquired(lease) => {
                                    lease.complete("").unwrap();
                                    0
                                }
                                Claim::InProgress(_) => 1,
                                Claim::Completed(_) => 2,
                                other => panic!("{other:?}"),
                            };
                            answers[answer].fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
    }
    let calls = store.stats().calls;
    let [granted, in_progress, replayed] = answers.map(AtomicU64::into_inner);
    assert_eq!(granted + in_progress + replayed, 3 * 4 * 20 * 100);
    assert_eq!((calls.granted, calls.completed), (granted, granted));
    assert_eq!((calls.in_progress, calls.replayed), (in_progress, replayed));
    assert_eq!(granted, 20 * 100);
    for space in spaces {
        assert_eq!(space.stats().calls.granted, 20);
    }
}

/// What the clock has ended is counted where it was, when its segment is recycled.
#[test]
fn what_expires_is_counted_by_namespace() {
    let clock = SimClock::new();
    let store = open(&clock);
    let policy = policy().late_grace(SECOND);
    let [one, two] = ["one", "two"].map(|name| store.define(name, &policy).unwrap());
    for number in 0..300 {
        let space = if number % 3 == 0 { &one } else { &two };
        let lease = space.claim(format!("{number}"), None).unwrap().acquired().unwrap();
        if number % 10 > 0 {
            lease.complete("outcome").unwrap();
        }
    }
    let parks = policy.on_lease_end(OnLeaseEnd::Park);
    drop(store.define("three", &parks).unwrap().claim("parked", None).unwrap());
    for _ in 0..20 {
        clock.advance(HOUR / 4);
        store.maintain(Duration::MAX);
    }
    let counts = |space: &Namespace| {
        let calls = space.stats().calls;
        (calls.expired, calls.expired_unfinished)
    };
    assert_eq!((counts(&one), counts(&two)), ((90, 10), (180, 20)));
    let stats = store.stats();
    assert_eq!((stats.purged, stats.entries), (300, 1));
    assert_eq!(stats.calls.expired + stats.calls.expired_unfinished, stats.purged);
}

#[test]
fn health_tells_of_syncs_and_of_what_is_not_synced() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = options(&fs, &clock).durability(Durability::Buffered).open().unwrap();
    let health = store.health();
    assert!(matches!(health.serving, Serving::All) && health.recovery.created);
    assert!(health.sync_age.is_none() && !health.has_unsynced, "{health:?}");
    let space = store.namespace("space").unwrap();
    assert!(matches!(space.once("a", None).unwrap(), Once::First(_)));
    clock.advance(SECOND);
    let health = store.health();
    assert!(health.sync_age.is_none() && health.has_unsynced, "{health:?}");
    store.flush().unwrap();
    clock.advance(3 * SECOND);
    let health = store.health();
    assert_eq!((health.sync_age, health.has_unsynced), (Some(3 * SECOND), false));
    store.abandon();
    let store = options(&fs, &clock).durability(Durability::Sync).open().unwrap();
    let health = store.health();
    assert!(!health.recovery.clean && health.recovery.completed == 1, "{health:?}");
    let space = store.namespace("space").unwrap();
    assert!(matches!(space.once("b", None).unwrap(), Once::First(_)));
    clock.advance(SECOND);
    assert_eq!(store.health().sync_age, Some(SECOND));
    store.close().unwrap();
    assert!(matches!(store.health().serving, Serving::Closed));
}

#[test]
fn health_tells_why_a_store_is_poisoned() {
    let disk = SimDisk::new(1);
    let options = Options::new("unused").file_system(disk.mount()).clock(SimClock::new());
    let options = options.durability(Durability::Sync).manual_maintenance(true);
    let store = options.segment_bytes(SEGMENT_BYTES).open().unwrap();
    let space = store.namespace("space").unwrap();
    disk.fail(Fault { operation: "sync", after: 0, times: 1, error: ErrorKind::Other });
    space.once("a", None).unwrap_err();
    match store.health().serving {
        Serving::Poisoned(cause) => assert_eq!(cause.operation(), "sync"),
        other => panic!("{other:?}"),
    }
    assert!(store.health().sync_age.is_none(), "none has ended well");
}

#[test]
fn health_tells_what_room_is_left() {
    let clock = SimClock::new();
    let limit = 24 * SEGMENT_BYTES;
    let store = options(&HeapFs::new(), &clock).max_disk_bytes(limit).open().unwrap();
    let space = store.define("space", &policy()).unwrap();
    let before = store.health();
    assert!(before.ready_bytes > SEGMENT_BYTES, "{before:?}");
    let lease = space.claim("held", None).unwrap().acquired().unwrap();
    let after = store.health();
    assert!(after.ready_bytes < before.ready_bytes, "the end of the claim is reserved: {after:?}");
    lease.release().unwrap();
    let mut refused = 0;
    for number in 0.. {
        match space.claim([number.to_string().as_str(), &"x".repeat(4000)].concat(), None) {
            Ok(claim) => drop(claim),
            Err(ClaimError::Full { .. }) if refused < 3 => refused += 1,
            Err(ClaimError::Full { .. }) => break,
            Err(error) => panic!("{error}"),
        }
    }
    let health = store.health();
    assert!(health.ready_bytes < SEGMENT_BYTES, "{health:?}");
    assert!(health.growth_bytes < Some(8 * SEGMENT_BYTES + 65_536), "{health:?}");
    assert_eq!(space.stats().calls.refused_full, 4);
    assert!(open(&clock).health().growth_bytes.is_none());
}

#[test]
fn health_tells_of_gaps_until_they_are_over() {
    let clock = SimClock::new();
    let fs = HeapFs::new();
    let store = options(&fs, &clock).open().unwrap();
    let space = store.define("space", &policy()).unwrap();
    for key in ["key-1", "key-2"] {
        space.claim(key, None).unwrap().acquired().unwrap().complete("outcome").unwrap();
    }
    store.close().unwrap();
    let at = find_last(&read(&fs, "data-00000"), b"key-1");
    poke(&fs, "data-00000", at, b"?");
    let target = HeapFs::new();
    options(&fs, &clock).salvage(options(&target, &clock)).unwrap();
    let store = options(&target, &clock).open().unwrap();
    let space = store.namespace("space").unwrap();
    assert_eq!(store.health().gaps, store.gaps());
    assert!(matches!(space.claim("key-1", None).unwrap(), Claim::InDoubt(_)));
    assert_eq!(space.stats().calls.in_doubt, 1);
    store.accept_gap(store.gaps()[0].id(), "seen to", "operator").unwrap();
    assert!(store.health().gaps.is_empty() && store.gaps().len() == 1);
}

/// Claims of an earlier process are taken over, and told apart.
#[test]
fn takeovers_from_the_dead_are_counted_apart() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = options(&fs, &clock).open().unwrap();
    drop(store.define("space", &policy()).unwrap().claim("key", None).unwrap());
    store.abandon();
    let store = options(&fs, &clock).open().unwrap();
    let space = store.namespace("space").unwrap();
    let lease = space.claim("key", None).unwrap().acquired().unwrap();
    let calls = space.stats().calls;
    assert_eq!((calls.granted, calls.taken_over, calls.taken_over_orphaned), (1, 0, 1));
    assert!(matches!(
        space.renew("key", refrain::FencingToken::from_raw(1)),
        Err(LeaseError::Fenced { .. })
    ));
    drop(lease);
}
