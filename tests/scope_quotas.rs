//! Quotas of scopes: each is refused by itself, and what is counted of each is what there is.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::time::Duration;

use refrain::testing::{HeapFs, SimClock};
use refrain::{
    Claim, ClaimError, ClaimOptions, Durability, Lease, Namespace, NamespaceError, Options, Policy,
    Quota, QuotaExceeded, QuotaLevel, QuotaOf, Store, Usage, WaiterScope,
};
use support::Random;
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

/// A namespace whose scopes have this quota, and two of them.
fn open(quota: Quota) -> (SimClock, Store, Namespace, [Namespace; 2]) {
    let clock = SimClock::new();
    let store = options(&HeapFs::new(), &clock).open().unwrap();
    let space = store.define("space", &policy()).unwrap();
    store.limit_scopes("space", &quota).unwrap();
    let scopes = ["acme", "zenith"].map(|name| space.scoped(name).unwrap());
    (clock, store, space, scopes)
}

fn claim(space: &Namespace, key: &str) -> Lease {
    space.claim(key, None).unwrap().acquired().unwrap()
}

fn refused(answer: Result<Claim, ClaimError>) -> (QuotaLevel, QuotaOf, u64, u64) {
    match answer {
        Err(ClaimError::QuotaExceeded(QuotaExceeded { level, of, limit, used, .. })) => {
            (level, of, limit, used)
        }
        other => panic!("{other:?}"),
    }
}

fn keys(space: &Namespace) -> u64 {
    space.stats().usage.unwrap().keys
}

#[test]
fn each_scope_is_refused_by_itself() {
    let (_clock, store, space, [acme, zenith]) = open(Quota::default().keys(2));
    let first = claim(&acme, "1");
    drop(acme.once("2", None).unwrap());
    assert_eq!(refused(acme.claim("3", None)), (QuotaLevel::Scope, QuotaOf::Keys, 2, 2));
    // Neither another one nor keys without one.
    drop(claim(&zenith, "1"));
    (0..10).for_each(|n| drop(claim(&space, &n.to_string())));
    assert_eq!((keys(&acme), keys(&zenith), space.stats().usage), (2, 1, None));
    assert_eq!((acme.quota(), space.quota()), (Quota::default().keys(2), Quota::default()));
    // What is there is served, and ended.
    assert!(matches!(acme.claim("2", None), Ok(Claim::Completed(_))));
    first.complete([7; 1000]).unwrap();
    acme.forget("2", "", "").unwrap();
    claim(&acme, "3").release().unwrap();
    drop(claim(&acme, "4"));
    refused(acme.claim("5", None));
    store.check_invariants().unwrap();
    let unknown = store.limit_scopes("nobody", &Quota::default());
    assert!(matches!(unknown, Err(NamespaceError::UnknownName)));
    let reserved = store.limit_scopes("refrain.fences/guard", &Quota::default().keys(1));
    assert!(matches!(reserved, Err(NamespaceError::Reserved { .. })));
}

/// What one of the two limits refuses is not counted by the other.
#[test]
fn a_scope_and_its_namespace_are_limited_together() {
    let (_clock, store, space, [acme, zenith]) = open(Quota::default().keys(10).in_flight(2));
    store.limit("space", &Quota::default().keys(3)).unwrap();
    let leases = [claim(&acme, "1"), claim(&acme, "2")];
    for _ in 0..5 {
        let refusal = (QuotaLevel::Scope, QuotaOf::InFlight, 2, 2);
        assert_eq!(refused(acme.claim("3", None)), refusal);
    }
    drop(claim(&zenith, "1"));
    for _ in 0..5 {
        let refusal = (QuotaLevel::Namespace, QuotaOf::Keys, 3, 3);
        assert_eq!(refused(zenith.claim("2", None)), refusal);
    }
    assert_eq!((keys(&acme), keys(&zenith), keys(&space)), (2, 1, 3));
    for lease in leases {
        lease.release().unwrap();
    }
    assert_eq!((keys(&acme), keys(&zenith), keys(&space)), (0, 1, 1));
    drop(claim(&zenith, "2"));
    assert_eq!(space.stats().calls.refused_quota, 10);
    store.limit("space", &Quota::default()).unwrap();
    store.check_invariants().unwrap();
}

#[test]
fn bytes_of_a_scope_warn_and_are_refused() {
    let (_clock, store, _space, [acme, zenith]) = open(Quota::default().bytes(10_000));
    let lease = claim(&acme, "1");
    drop(claim(&zenith, "1"));
    assert_eq!(acme.stats().calls.granted_near_quota, 0);
    lease.complete([7; 8500]).unwrap();
    // With four fifths used.
    drop(claim(&acme, "2"));
    assert_eq!(acme.stats().calls.granted_near_quota, 1);
    claim(&acme, "3").complete([7; 2000]).unwrap();
    let (level, of, ..) = refused(acme.claim("4", None));
    assert_eq!((level, of), (QuotaLevel::Scope, QuotaOf::Bytes));
    drop(claim(&zenith, "2"));
    store.check_invariants().unwrap();
}

#[test]
fn those_who_wait_in_a_scope_are_limited_and_leave() {
    let (_clock, store, space, [acme, zenith]) = open(Quota::default().waiters(1));
    let held = [&space, &acme, &zenith].map(|space| claim(space, "key"));
    let wait =
        |space: &Namespace| Task::new(space.claim_or_wait("key", &ClaimOptions::new(), HOUR));
    for round in 0..3 {
        let waits = [&space, &space, &acme, &zenith].map(|space| wait(space).begun());
        let refusal = wait(&acme).ready();
        let Err(ClaimError::TooManyWaiters(it)) = refusal else { panic!("{refusal:?}") };
        assert_eq!((it.scope, it.limit), (WaiterScope::Scope, 1), "round {round}");
        assert_eq!(space.stats().waiters, 4);
        drop(waits);
        assert_eq!((space.stats().waiters, store.stats().waiters), (0, 0));
    }
    // A quota that comes and goes does not lose those who wait.
    let waits = wait(&acme).begun();
    store.limit_scopes("space", &Quota::default()).unwrap();
    store.limit_scopes("space", &Quota::default().waiters(2)).unwrap();
    let second = wait(&acme).begun();
    assert!(matches!(wait(&acme).ready(), Err(ClaimError::TooManyWaiters(_))));
    drop((waits, second, held));
}

/// What expires makes room in its scope, when its segment is recycled.
#[test]
fn what_is_purged_is_not_counted_in_its_scope() {
    let (clock, store, _space, scopes) = open(Quota::default().keys(60));
    for round in 0..4 {
        for number in 0..60 {
            for scope in &scopes {
                let lease = claim(scope, &format!("{round}-{number}"));
                match number % 3 {
                    0 => drop(lease),
                    1 => drop(lease.complete("outcome").unwrap()),
                    _ => drop(lease.complete([7; 3000]).unwrap()),
                }
            }
        }
        scopes.iter().for_each(|scope| _ = refused(scope.claim("another", None)));
        for _ in 0..12 {
            clock.advance(HOUR / 4);
            store.maintain(Duration::MAX);
            store.check_invariants().unwrap();
        }
        assert!(scopes.iter().all(|it| it.stats().usage == Some(Usage::default())));
    }
}

/// A quota of scopes that comes and goes while others claim.
#[test]
fn a_quota_of_scopes_may_come_at_any_time() {
    let store = Options::in_memory().open().unwrap();
    let space = store.define("space", &policy().lease(HOUR)).unwrap();
    store.limit("space", &Quota::default().keys(1 << 30)).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..2_u32 {
            let scopes = ["acme", "zenith", "other"].map(|name| space.scoped(name).unwrap());
            scope.spawn(move || {
                for number in 0..4000_u32 {
                    let space = &scopes[number as usize % 3];
                    let key = [thread.to_le_bytes(), (number % 700).to_le_bytes()].concat();
                    match space.claim(&key, None).unwrap() {
                        Claim::Acquired(lease) if number % 5 == 0 => lease.release().unwrap(),
                        Claim::Acquired(lease) => drop(lease.complete("outcome").unwrap()),
                        _ => drop(space.forget(&key, "", "").unwrap()),
                    }
                }
            });
        }
        for round in 0..50_u64 {
            let quota =
                if round % 2 == 0 { Quota::default().keys(1 << 30) } else { Quota::default() };
            store.limit_scopes("space", &quota).unwrap();
        }
    });
    store.check_invariants().unwrap();
    store.limit_scopes("space", &Quota::default().bytes(1 << 30)).unwrap();
    store.check_invariants().unwrap();
}

/// The limits are on the disk; what there is is counted again.
#[test]
fn quotas_of_scopes_and_their_counts_survive() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let mut random = Random::new(support::seed("quotas_of_scopes_and_their_counts_survive"));
    let quota = Quota::default().keys(400).in_flight(150);
    let mut before: Option<[Usage; 3]> = None;
    for round in 0..9_usize {
        let how = [Durability::Sync, Durability::Buffered][round % 2];
        let store = options(&fs, &clock).durability(how).shards(1 << (round % 5)).open().unwrap();
        let space = store.define("space", &policy()).unwrap();
        if round == 0 {
            store.limit_scopes("space", &quota).unwrap();
        }
        let scopes = ["acme", "zenith", "other"].map(|name| space.scoped(name).unwrap());
        let usage = || scopes.each_ref().map(|scope| scope.stats().usage.unwrap());
        assert_eq!((scopes[0].quota(), space.quota()), (quota, Quota::default()));
        if let Some(before) = before {
            assert_eq!(usage(), before, "round {round}");
        }
        store.check_invariants().unwrap();
        for _ in 0..1500 {
            let key = random.below(600).to_le_bytes();
            let space = [&space, &scopes[0], &scopes[1], &scopes[2]][random.below(4) as usize];
            match (space.claim(key, None), random.below(6)) {
                (Ok(Claim::Acquired(lease)), 0..=2) => {
                    lease.complete(vec![7; random.below(300) as usize]).unwrap();
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
        before = Some(usage());
        assert!(before.unwrap().iter().all(|usage| usage.keys > 50));
        drop((space, scopes));
        if round % 2 == 0 {
            store.abandon();
        } else {
            store.close().unwrap();
        }
    }
    // A salvage takes the quota along.
    let target = HeapFs::new();
    options(&fs, &clock).salvage(options(&target, &clock)).unwrap();
    let store = options(&target, &clock).open().unwrap();
    let space = store.namespace("space").unwrap().scoped("acme").unwrap();
    assert_eq!((space.quota(), space.stats().usage), (quota, before.map(|it| it[0])));
    store.check_invariants().unwrap();
}
