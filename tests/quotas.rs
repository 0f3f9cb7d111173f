//! Quotas: the newest claim is refused, nothing that was granted is, and what is counted is what there is.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use refrain::testing::{HeapFs, SimClock};
use refrain::{
    Claim, ClaimError, ClaimOptions, CompleteOptions, Durability, Lease, Namespace, NamespaceError,
    Once, Options, Policy, Quota, QuotaExceeded, QuotaOf, Resolution, Store, Usage, WaiterScope,
};
use support::Random;
use support::disk::read;
use support::task::Task;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const SEGMENT_BYTES: u64 = 256 << 10;

fn options(fs: &HeapFs, clock: &SimClock) -> Options {
    let options = Options::new("unused").file_system(fs.clone()).clock(clock.clone());
    options.segment_bytes(SEGMENT_BYTES).manual_maintenance(true)
}

fn policy() -> Policy {
    Policy::default().lease(SECOND).late_grace(SECOND).replay_ttl(HOUR).dedupe_ttl(HOUR)
}

fn open(quota: Quota) -> (SimClock, Store, Namespace) {
    let clock = SimClock::new();
    let store = options(&HeapFs::new(), &clock).open().unwrap();
    let space = store.define("space", &policy()).unwrap();
    store.limit("space", &quota).unwrap();
    (clock, store, space)
}

fn claim(space: &Namespace, key: &str) -> Lease {
    space.claim(key, None).unwrap().acquired().unwrap()
}

fn refused(answer: Result<Claim, ClaimError>) -> (QuotaOf, u64, u64) {
    match answer {
        Err(ClaimError::QuotaExceeded(QuotaExceeded { of, limit, used, .. })) => (of, limit, used),
        other => panic!("{other:?}"),
    }
}

fn usage(space: &Namespace) -> Usage {
    space.stats().usage.unwrap()
}

#[test]
fn the_newest_key_is_refused_and_those_before_are_served() {
    let (_clock, store, space) = open(Quota::default().keys(3));
    let other = store.define("other", &policy()).unwrap();
    let scope = space.scoped("customer").unwrap();
    let first = claim(&space, "1");
    let second = claim(&scope, "1");
    assert!(matches!(space.once("3", None).unwrap(), Once::First(_)));
    for space in [&space, &scope] {
        assert_eq!(refused(space.claim("4", None)), (QuotaOf::Keys, 3, 3));
        let marked = space.once("4", None);
        assert!(matches!(marked, Err(ClaimError::QuotaExceeded(_))), "{marked:?}");
        assert!(space.lookup("4").is_ok_and(|it| it == refrain::Lookup::Absent));
    }
    let asked: Vec<_> = ["1", "4", "3"].map(|key| (key, ClaimOptions::new())).into();
    let answers = space.claim_batch(&asked);
    assert!(matches!(answers[0], Ok(Claim::InProgress(_))));
    assert!(matches!(answers[1], Err(ClaimError::QuotaExceeded(_))));
    assert!(matches!(answers[2], Ok(Claim::Completed(_))));
    drop(claim(&other, "4"));
    // What was granted is not refused, whatever it is.
    space.renew("1", first.token()).unwrap();
    first.complete(vec![7; 100_000]).unwrap();
    assert_eq!(refused(space.claim("4", None)), (QuotaOf::Keys, 3, 3));
    second.release().unwrap();
    claim(&space, "4").release().unwrap();
    drop(claim(&scope, "4"));
    assert_eq!(refused(space.claim("5", None)), (QuotaOf::Keys, 3, 3));
    space.forget("1", "", "").unwrap();
    drop(claim(&space, "5"));
    assert_eq!(space.stats().calls.refused_quota, 6 + 1);
    assert_eq!(other.stats().usage, None);
    store.check_invariants().unwrap();
}

/// Whoever is refused again and again keeps nobody from anything.
#[test]
fn who_is_refused_waits_for_no_lock() {
    let (_clock, store, space) = open(Quota::default().keys(2).in_flight(1));
    let _first = claim(&space, "1");
    store.with_shards_locked(|| {
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| refused(space.claim("2", None)));
            assert_eq!(asked.join().unwrap(), (QuotaOf::InFlight, 1, 1));
        });
    });
    assert!(matches!(space.once("2", None).unwrap(), Once::First(_)), "it is not in flight");
    store.with_shards_locked(|| {
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| (refused(space.claim("3", None)), space.once("3", None)));
            let (claimed, marked) = asked.join().unwrap();
            assert_eq!(claimed, (QuotaOf::Keys, 2, 2));
            assert!(matches!(marked, Err(ClaimError::QuotaExceeded(_))), "{marked:?}");
        });
    });
    assert_eq!(space.stats().calls.refused_quota, 3);
}

#[test]
fn claims_in_flight_are_ended_taken_over_and_never_too_many() {
    let (clock, store, space) = open(Quota::default().in_flight(2));
    let (first, second) = (claim(&space, "1"), claim(&space, "2"));
    assert_eq!(refused(space.claim("3", None)), (QuotaOf::InFlight, 2, 2));
    assert!(matches!(space.once("4", None).unwrap(), Once::First(_)), "it is not in flight");
    first.complete("").unwrap();
    let third = claim(&space, "3");
    assert_eq!(refused(space.claim("5", None)), (QuotaOf::InFlight, 2, 2));
    second.park().unwrap();
    let fifth = claim(&space, "5");
    clock.advance(SECOND + SECOND / 2);
    // Its lease is over: who takes it over is not one more.
    let taken = claim(&space, "3");
    assert_eq!(taken.attempt(), 2);
    drop(third);
    let token = fifth.token();
    space
        .resolve("5", token, &Resolution::Completed(CompleteOptions::new()), "a test", "nobody")
        .unwrap();
    assert_eq!(usage(&space).in_flight, 1);
    taken.release().unwrap();
    assert_eq!((usage(&space).in_flight, usage(&space).keys), (0, 4));
    store.check_invariants().unwrap();
}

#[test]
fn bodies_carry_bytes_beyond_their_limit_and_nothing_is_granted_then() {
    let (_clock, store, space) = open(Quota::default().bytes(10_000));
    let leases: Vec<_> = (0..20).map(|number| claim(&space, &number.to_string())).collect();
    let before = usage(&space);
    assert!(before.bytes > 20 * 64 && before.bytes < 20 * 200, "{before:?}");
    for lease in leases {
        lease.complete([7; 1000]).unwrap();
    }
    let after = usage(&space);
    assert!(after.bytes > 20 * 1064 && after.bytes < 20 * 1200, "{after:?}");
    assert_eq!(refused(space.claim("20", None)), (QuotaOf::Bytes, 10_000, after.bytes));
    assert!(matches!(space.claim("19", None).unwrap(), Claim::Completed(_)));
    for number in 0..12 {
        assert!(space.forget(number.to_string(), "", "").unwrap().is_some());
    }
    drop(claim(&space, "20"));
    store.check_invariants().unwrap();
}

#[test]
fn those_who_wait_are_limited_too() {
    let (_clock, _store, space) = open(Quota::default().waiters(1));
    let _lease = claim(&space, "key");
    let _waits = Task::new(space.claim_or_wait("key", &ClaimOptions::new(), HOUR)).begun();
    let refused = Task::new(space.claim_or_wait("key", &ClaimOptions::new(), HOUR)).ready();
    let Err(ClaimError::TooManyWaiters(it)) = refused else { panic!("{refused:?}") };
    assert_eq!((it.scope, it.limit), (WaiterScope::Namespace, 1));
}

/// What expires makes room, when its segment is recycled; claims that nobody ended do, too.
#[test]
fn what_is_purged_is_not_counted() {
    let (clock, store, space) = open(Quota::default().keys(100));
    for round in 0..4 {
        for number in 0..100 {
            let lease = claim(&space, &format!("{round}-{number}"));
            match number % 3 {
                0 => drop(lease),
                1 => drop(lease.complete("outcome").unwrap()),
                _ => drop(lease.complete([7; 3000]).unwrap()),
            }
        }
        assert_eq!(refused(space.claim("another", None)), (QuotaOf::Keys, 100, 100));
        for _ in 0..12 {
            clock.advance(HOUR / 4);
            store.maintain(Duration::MAX);
            store.check_invariants().unwrap();
        }
        assert_eq!(usage(&space), Usage::default());
    }
}

/// A body whose replay window is over is left out of its record, and of the bytes.
#[test]
fn bodies_that_are_over_are_not_counted() {
    let (clock, store, space) = open(Quota::default().keys(100));
    store.alter("space", &policy().replay_ttl(HOUR / 10)).unwrap();
    for number in 0..50 {
        claim(&space, &number.to_string()).complete([7; 3000]).unwrap();
    }
    let before = usage(&space);
    for _ in 0..8 {
        clock.advance(HOUR / 12);
        store.maintain(Duration::MAX);
    }
    let after = usage(&space);
    assert_eq!((before.keys, after.keys), (50, 50));
    assert!(after.bytes < before.bytes / 10, "{before:?} {after:?}");
    store.check_invariants().unwrap();
}

#[test]
fn a_warning_comes_before_refusals() {
    let (_clock, _store, space) = open(Quota::default().keys(10));
    let near = || space.stats().calls.granted_near_quota;
    for number in 0..7 {
        drop(claim(&space, &number.to_string()));
    }
    assert_eq!(near(), 0);
    drop(claim(&space, "7"));
    assert_eq!((near(), space.stats().calls.refused_quota), (1, 0));
    drop(claim(&space, "8"));
    drop(claim(&space, "9"));
    assert_eq!(near(), 3);
    refused(space.claim("10", None));
    assert_eq!((near(), space.stats().calls.refused_quota), (3, 1));
}

/// Threads that race for the last place, again and again: one of them has it.
#[test]
fn no_race_grants_one_too_many() {
    const PLACES: u64 = 20;
    let store = Options::in_memory().open().unwrap();
    let space = store.define("space", &policy().lease(HOUR)).unwrap();
    store.limit("space", &Quota::default().keys(PLACES)).unwrap();
    let mut leases: Vec<_> = (1..PLACES).map(|key| claim(&space, &key.to_string())).collect();
    let (held, granted) = (AtomicU64::new(0), AtomicU64::new(0));
    let begin = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let (space, held, granted, begin) = (space.clone(), &held, &granted, &begin);
            scope.spawn(move || {
                begin.wait();
                for number in 0..5000_u32 {
                    let key = [thread.to_le_bytes(), number.to_le_bytes()].concat();
                    match space.claim(key, None) {
                        Ok(Claim::Acquired(lease)) => {
                            granted.fetch_add(1, Ordering::Relaxed);
                            assert_eq!(held.fetch_add(1, Ordering::SeqCst), 0, "it was taken");
                            std::thread::yield_now();
                            held.fetch_sub(1, Ordering::SeqCst);
                            lease.release().unwrap();
                        }
                        Err(ClaimError::QuotaExceeded(it)) => {
                            assert_eq!((it.of, it.limit), (QuotaOf::Keys, PLACES));
                        }
                        other => panic!("{other:?}"),
                    }
                }
            });
        }
    });
    assert!(granted.into_inner() > 0);
    leases.push(claim(&space, "the last"));
    refused(space.claim("one too many", None));
    store.check_invariants().unwrap();
}

/// A quota that comes and goes while others claim: what is counted in the end is what there is.
#[test]
fn a_quota_may_come_at_any_time() {
    let store = Options::in_memory().open().unwrap();
    let space = store.define("space", &policy().lease(HOUR)).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..2_u32 {
            let space = space.clone();
            scope.spawn(move || {
                for number in 0..4000_u32 {
                    let key = [thread.to_le_bytes(), (number % 700).to_le_bytes()].concat();
                    match space.claim(&key, None).unwrap() {
                        Claim::Acquired(lease) if number % 3 == 0 => lease.release().unwrap(),
                        Claim::Acquired(lease) => drop(lease.complete("outcome").unwrap()),
                        _ => drop(space.forget(&key, "", "").unwrap()),
                    }
                }
            });
        }
        for round in 0..50_u64 {
            let quota =
                if round % 2 == 0 { Quota::default().keys(1 << 30) } else { Quota::default() };
            store.limit("space", &quota).unwrap();
        }
    });
    assert_eq!(space.stats().usage, None);
    store.limit("space", &Quota::default().bytes(1 << 30)).unwrap();
    store.check_invariants().unwrap();
}

/// A claim for which there is no room on the disk is not counted, however often it asks.
#[test]
fn claims_refused_for_room_are_not_counted() {
    let clock = SimClock::new();
    let options = options(&HeapFs::new(), &clock).max_disk_bytes(12 * SEGMENT_BYTES);
    let store = options.durability(Durability::Sync).open().unwrap();
    let space = store.define("space", &policy().lease(HOUR)).unwrap();
    store.limit("space", &Quota::default().keys(1 << 30)).unwrap();
    let (mut granted, mut full) = (0, 0);
    while full < 5 {
        let key = format!("{granted}-{}", "x".repeat(3000));
        match space.claim(key, None) {
            Ok(_) => granted += 1,
            Err(ClaimError::Full { .. }) => full += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((usage(&space).keys, usage(&space).in_flight), (granted, granted));
    store.check_invariants().unwrap();
}

/// Limits are on the disk, with a feature without which nobody opens the store; what there is is counted again.
#[test]
fn a_quota_and_its_count_survive() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let features = || read(&fs, "META").chunks(4096).map(|slot| slot[20]).max();
    let mut random = Random::new(support::seed("a_quota_and_its_count_survive"));
    let mut before = None;
    for round in 0..9_usize {
        let how = [Durability::Sync, Durability::Buffered][round % 2];
        let store = options(&fs, &clock).durability(how).shards(1 << (round % 5)).open().unwrap();
        let space = store.define("space", &policy()).unwrap();
        let other = store.define("other", &policy()).unwrap();
        if round == 0 {
            let unknown = store.limit("nobody", &Quota::default().keys(1));
            assert!(matches!(unknown, Err(NamespaceError::UnknownName)));
            assert_eq!(features(), Some(0));
            store.limit("space", &Quota::default().keys(u64::MAX)).unwrap();
            assert_eq!((features(), space.quota()), (Some(0), Quota::default()));
            store.limit("space", &Quota::default().keys(5000).in_flight(300)).unwrap();
        }
        // And scopes, since somebody has claimed in one.
        assert_eq!(features(), Some(8 + if round == 0 { 0 } else { 4 }));
        assert_eq!(space.quota(), Quota::default().keys(5000).in_flight(300));
        if let Some(before) = before {
            assert_eq!(usage(&space), before, "round {round}");
        }
        store.check_invariants().unwrap();
        for _ in 0..1500 {
            let key = random.below(900).to_le_bytes();
            let scoped = space.scoped("customer").unwrap();
            let space = [&space, &other, &scoped][random.below(3) as usize];
            match (space.claim(key, None), random.below(6)) {
                (Ok(Claim::Acquired(lease)), 0..=2) => {
                    let body = vec![7; random.below(300) as usize];
                    lease.complete(body).unwrap();
                }
                (Ok(Claim::Acquired(mut lease)), 3) => drop(lease.renew().unwrap()),
                (Ok(Claim::Acquired(lease)), 4) => lease.release().unwrap(),
                (Ok(Claim::Acquired(lease)), _) => lease.park().unwrap(),
                (Ok(_), 0) => drop(space.forget(key, "", "").unwrap()),
                (Ok(_), _) | (Err(ClaimError::QuotaExceeded(_)), _) => {}
                (Err(error), _) => panic!("{error}"),
            }
        }
        store.check_invariants().unwrap();
        before = Some(usage(&space));
        assert!(before.unwrap().keys > 100);
        drop((space, other));
        if round % 2 == 0 {
            store.abandon();
        } else {
            store.close().unwrap();
        }
    }
    // A salvage takes the quota along.
    let target = HeapFs::new();
    let salvaged = options(&fs, &clock).salvage(options(&target, &clock));
    salvaged.unwrap();
    let store = options(&target, &clock).open().unwrap();
    let space = store.namespace("space").unwrap();
    assert_eq!(space.quota(), Quota::default().keys(5000).in_flight(300));
    assert_eq!(usage(&space), before.unwrap());
    store.check_invariants().unwrap();
    store.limit("space", &Quota::default()).unwrap();
    assert_eq!(space.stats().usage, None);
    store.check_invariants().unwrap();
}
