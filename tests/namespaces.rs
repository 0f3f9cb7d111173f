//! Namespaces: names, policies, and what outlives a restart.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use refrain::testing::{HeapFs, SimClock};
use refrain::{
    Claim, FingerprintRule, NamespaceError, OnLeaseEnd, OnOrphan, Options, Policy, PolicyProblem,
    Store, StoreError,
};
use support::disk::HookFs;

const SECOND: Duration = Duration::from_secs(1);

fn open(fs: &HeapFs) -> Store {
    let options = Options::new("unused").file_system(fs.clone()).manual_maintenance(true);
    options.segment_bytes(256 << 10).open().unwrap()
}

fn odd_policy() -> Policy {
    Policy::default()
        .lease(3 * SECOND)
        .replay_ttl(4 * SECOND)
        .dedupe_ttl(5 * SECOND)
        .late_grace(6 * SECOND)
        .on_lease_end(OnLeaseEnd::Park)
        .on_orphan(OnOrphan::KeepLease)
        .fingerprint(FingerprintRule::Count)
        .fingerprint_required(true)
}

#[test]
fn a_namespace_and_its_policy_survive_a_killed_process() {
    let fs = HeapFs::new();
    let store = open(&fs);
    store.namespace("implicit").unwrap();
    store.define("defined", &odd_policy()).unwrap();
    store.define("altered", &Policy::default()).unwrap();
    store.alter("altered", &odd_policy()).unwrap();
    store.abandon();
    let store = open(&fs);
    assert_eq!(store.namespaces(), ["altered", "defined", "implicit"]);
    assert_eq!(store.namespace("implicit").unwrap().policy(), Policy::default());
    assert_eq!(store.namespace("defined").unwrap().policy(), odd_policy());
    assert_eq!(store.namespace("altered").unwrap().policy(), odd_policy());
    // The implicit default still gives way to the first definition.
    store.define("implicit", &odd_policy()).unwrap();
    assert!(store.define("implicit", &Policy::default()).is_err());
}

#[test]
fn a_later_different_definition_is_a_conflict_that_shows_both() {
    let store = Store::in_memory().unwrap();
    store.define("orders", &odd_policy()).unwrap();
    store.define("orders", &odd_policy()).unwrap();
    store.namespace("orders").unwrap();
    let refused = store.define("orders", &Policy::default()).unwrap_err();
    let NamespaceError::PolicyConflict { stored, asked } = refused else { panic!("{refused}") };
    assert_eq!((*stored, *asked), (odd_policy(), Policy::default()));
    // A definition equal to the default is a definition all the same.
    store.namespace("refunds").unwrap();
    store.define("refunds", &Policy::default()).unwrap();
    assert!(store.define("refunds", &odd_policy()).is_err());
}

#[test]
fn names_and_policies_that_cannot_be_are_refused() {
    let store = Store::in_memory().unwrap();
    for len in [0, 256] {
        let refused = store.namespace(&"n".repeat(len)).unwrap_err();
        assert!(matches!(refused, NamespaceError::NameLength { len: told } if told == len));
    }
    store.namespace(&"n".repeat(255)).unwrap();
    assert!(matches!(store.alter("never", &odd_policy()), Err(NamespaceError::UnknownName)));
    let policy = Policy::default().lease(Duration::ZERO).replay_ttl(48 * 3600 * SECOND);
    for refused in [store.define("x", &policy), store.alter("x", &policy)] {
        let NamespaceError::Policy(problems) = refused.unwrap_err() else { panic!() };
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(matches!(problems[0], PolicyProblem::LeaseTooShort { .. }));
    }
    assert_eq!(store.namespaces(), ["n".repeat(255)]);
}

#[test]
fn altering_a_policy_leaves_what_exists_as_it_was_made() {
    let clock = SimClock::new();
    let store = Options::in_memory().clock(clock.clone()).open().unwrap();
    let orders = store.define("orders", &Policy::default().lease(SECOND)).unwrap();
    let claimed = orders.claim("claimed", None).unwrap().acquired().unwrap();
    let done = orders.claim("done", None).unwrap().acquired().unwrap();
    done.complete("outcome").unwrap();
    let policy = Policy::default()
        .lease(60 * SECOND)
        .replay_ttl(60 * SECOND)
        .dedupe_ttl(60 * SECOND)
        .on_lease_end(OnLeaseEnd::Park);
    store.alter("orders", &policy).unwrap();
    // The handle that was there sees the new policy.
    assert_eq!(orders.policy(), policy);
    clock.advance(SECOND);
    // Still reclaimed after a second, as when it was claimed; the new claim parks after a minute.
    let again = orders.claim("claimed", None).unwrap().acquired().unwrap();
    assert_eq!((again.attempt(), again.lease_left()), (2, 60 * SECOND));
    clock.advance(61 * SECOND);
    assert!(matches!(orders.claim("claimed", None).unwrap(), Claim::Parked(_)));
    let outcome = orders.claim("done", None).unwrap().completed().unwrap();
    assert!(outcome.guaranteed_until().unwrap() > clock.wall() + 3600 * SECOND);
    drop(claimed);
}

#[test]
fn numbers_are_never_given_twice() {
    let fs = HeapFs::new();
    for round in 0..4 {
        let store = open(&fs);
        for n in 0..3 {
            let space = store.namespace(&format!("{round}-{n}")).unwrap();
            let lease = space.claim("key", None).unwrap().acquired().unwrap();
            lease.complete(format!("{round}-{n}")).unwrap();
        }
        if round % 2 == 0 { store.close().unwrap() } else { store.abandon() }
    }
    let store = open(&fs);
    for name in store.namespaces() {
        let space = store.namespace(&name).unwrap();
        let outcome = space.claim("key", None).unwrap().completed().unwrap();
        assert_eq!(outcome.body(), refrain::Body::Bytes(name.as_bytes()));
    }
    assert_eq!(store.namespaces().len(), 12);
}

#[test]
fn a_full_disk_refuses_a_namespace_and_a_failed_sync_poisons() {
    for (operation, is_poison) in [("write", false), ("sync", true)] {
        let fails = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&fails);
        let fs = HookFs::new(HeapFs::new(), move |what, name| {
            if what == operation && name == "NAMES" && flag.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(())
        });
        let options = Options::new("unused").file_system(fs).segment_bytes(256 << 10);
        let store = options.manual_maintenance(true).open().unwrap();
        fails.store(true, Ordering::SeqCst);
        let refused = store.namespace("orders").unwrap_err();
        let NamespaceError::Store(error) = refused else { panic!("{refused}") };
        assert_eq!(error.is_poisoned(), is_poison, "{error}");
        fails.store(false, Ordering::SeqCst);
        match store.namespace("orders") {
            Ok(_) => assert!(!is_poison),
            Err(NamespaceError::Store(StoreError::Poisoned { .. })) => assert!(is_poison),
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn times_are_kept_in_whole_milliseconds_however_they_were_set() {
    let store = Store::in_memory().unwrap();
    let mut policy = Policy::default().lease(SECOND + Duration::from_nanos(1));
    policy.late_grace = Some(Duration::from_micros(1500));
    let orders = store.define("orders", &policy).unwrap();
    assert_eq!(orders.policy().lease, Duration::from_millis(1001));
    assert_eq!(orders.policy().late_grace, Some(Duration::from_millis(2)));
    // The same policy again is no other policy.
    store.define("orders", &policy).unwrap();
    store.define("orders", &orders.policy()).unwrap();
}
