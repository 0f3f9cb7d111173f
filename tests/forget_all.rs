//! Everything of a namespace, or of a scope, is forgotten: by hand, for good, and nothing else is.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use refrain::testing::{HeapFs, SimClock};
use refrain::{
    Claim, ClaimOptions, CompleteError, Durability, ForgetError, Lookup, Namespace, Options,
    Policy, Quota, Store, StoreError,
};
use support::disk::{HookFs, find_last, poke, read};
use support::task::Task;

const HOUR: Duration = Duration::from_secs(3600);
const SEGMENT_BYTES: u64 = 256 << 10;

fn options(fs: &HeapFs, clock: &SimClock) -> Options {
    let options = Options::new("unused").file_system(fs.clone()).clock(clock.clone());
    options.segment_bytes(SEGMENT_BYTES).manual_maintenance(true)
}

fn policy() -> Policy {
    Policy::default().lease(HOUR).replay_ttl(HOUR).dedupe_ttl(HOUR)
}

fn complete(space: &Namespace, key: &str) {
    space.claim(key, None).unwrap().acquired().unwrap().complete("done").unwrap();
}

fn is_known(space: &Namespace, key: &str) -> bool {
    space.lookup(key).unwrap() != Lookup::Absent
}

/// A namespace and another one, with two scopes each.
fn spaces(store: &Store) -> [Namespace; 6] {
    let [first, second] = ["first", "second"].map(|name| store.define(name, &policy()).unwrap());
    let scope = |space: &Namespace, name: &str| space.scoped(name).unwrap();
    let [first_acme, first_zenith] = ["acme", "zenith"].map(|name| scope(&first, name));
    let [second_acme, second_zenith] = ["acme", "zenith"].map(|name| scope(&second, name));
    [first, first_acme, first_zenith, second, second_acme, second_zenith]
}

#[test]
fn a_scope_or_a_namespace_goes_for_good_and_nothing_else_does() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = options(&fs, &clock).durability(Durability::Sync).open().unwrap();
    store.define("first", &policy()).unwrap();
    store.limit("first", &Quota::default().keys(1000)).unwrap();
    let all = spaces(&store);
    for space in &all {
        // In every shard, and in every state.
        (0..100).for_each(|n| complete(space, &n.to_string()));
        drop(space.claim("held", None).unwrap());
        space.claim("parked", None).unwrap().acquired().unwrap().park().unwrap();
        space.claim("released", None).unwrap().acquired().unwrap().release().unwrap();
        drop(space.once("marked", None).unwrap());
    }
    let [first, first_acme, ..] = &all;
    assert_eq!(first_acme.forget_all("the customer left", "operator 3").unwrap(), 103);
    assert_eq!(first.stats().usage.unwrap().keys, 206);
    assert_eq!(first_acme.forget_all("again", "operator 3").unwrap(), 0);
    let known = |all: &[Namespace; 6]| {
        let known = |space| ["7", "held", "parked", "marked"].map(|key| is_known(space, key));
        all.each_ref().map(|space| {
            let known = known(space);
            assert!(known == [true; 4] || known == [false; 4], "{known:?}");
            known[0]
        })
    };
    assert_eq!(known(&all), [true, false, true, true, true, true]);
    drop((all, store));
    let store = options(&fs, &clock).open().unwrap();
    let all = spaces(&store);
    assert_eq!(known(&all), [true, false, true, true, true, true]);
    complete(&all[1], "7");
    // Orphans are forgotten, too.
    assert_eq!(all[0].forget_all("the end", "operator 3").unwrap(), 207);
    assert_eq!(known(&all), [false, false, false, true, true, true]);
    assert_eq!((all[0].orphans().unwrap().len(), store.orphans().unwrap().len()), (0, 3));
    assert_eq!(all[0].stats().usage.unwrap().keys, 0);
    assert_eq!(all[0].stats().calls.forgotten, 207);
    drop((all, store));
    let store = options(&fs, &clock).open().unwrap();
    assert_eq!(known(&spaces(&store)), [false, false, false, true, true, true]);
}

#[test]
fn owners_are_told_and_whoever_waits_has_the_key() {
    let options = options(&HeapFs::new(), &SimClock::new()).durability(Durability::Buffered);
    let store = options.open().unwrap();
    let space = store.define("space", &policy()).unwrap();
    let owner = space.claim("key", None).unwrap().acquired().unwrap();
    let mut waiting = Task::new(space.claim_or_wait("key", &ClaimOptions::new(), HOUR));
    assert!(waiting.poll().is_pending());
    assert_eq!(space.forget_all("by mistake", "a test").unwrap(), 1);
    let Claim::Acquired(heir) = waiting.ready().unwrap() else { panic!("it is free") };
    let late = owner.complete("late");
    assert!(matches!(late, Err(CompleteError::Fenced { .. })), "{late:?}");
    heir.complete("done").unwrap();
}

#[test]
fn what_cannot_be_written_down_or_read_is_said_and_the_rest_is_forgotten() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = options(&fs, &clock).open().unwrap();
    let space = store.define("space", &policy()).unwrap();
    let long = "x".repeat(256);
    for (reason, actor) in [(&long[..], "actor"), ("reason", &long[..])] {
        let refused = space.forget_all(reason, actor);
        assert!(matches!(refused, Err(ForgetError::TextLength { len: 256 })), "{refused:?}");
    }
    (0..50).for_each(|n| complete(&space, &format!("key-{n}")));
    store.close().unwrap();
    poke(&fs, "data-00000", find_last(&read(&fs, "data-00000"), b"key-33"), b"?");
    let store = options(&fs, &clock).open().unwrap();
    let space = store.namespace("space").unwrap();
    let refused = space.forget_all("reason", "actor");
    let is_damage =
        |error: &ForgetError| matches!(error, ForgetError::Store(StoreError::Corrupt { .. }));
    assert!(refused.as_ref().is_err_and(is_damage), "{refused:?}");
    assert_eq!(space.stats().calls.forgotten, 49);
    store.close().unwrap();
    let closed = space.forget_all("reason", "actor");
    assert!(matches!(closed, Err(ForgetError::Store(StoreError::Closed))), "{closed:?}");
}

#[test]
fn one_round_makes_all_of_it_durable() {
    let syncs = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&syncs);
    let fs = HookFs::new(HeapFs::new(), move |what, _| {
        counted.fetch_add(u64::from(what == "sync"), Ordering::Relaxed);
        Ok(())
    });
    let options = Options::new("unused").file_system(fs).clock(SimClock::new());
    let options = options.segment_bytes(SEGMENT_BYTES).manual_maintenance(true);
    let store = options.durability(Durability::Sync).open().unwrap();
    let space = store.define("space", &policy()).unwrap();
    (0..200).for_each(|n| complete(&space, &n.to_string()));
    let before = syncs.load(Ordering::Relaxed);
    assert_eq!(space.forget_all("reason", "actor").unwrap(), 200);
    let rounds = syncs.load(Ordering::Relaxed) - before;
    assert!((1..=2).contains(&rounds), "{rounds}");
    assert_eq!(space.forget_all("reason", "actor").unwrap(), 0);
}

#[test]
fn nothing_is_said_to_be_forgotten_when_its_round_has_failed() {
    let fails = Arc::new(AtomicBool::new(false));
    let failing = Arc::clone(&fails);
    let fs = HookFs::new(HeapFs::new(), move |what, _| match what {
        "sync" if failing.load(Ordering::Relaxed) => Err(std::io::Error::other("a test")),
        _ => Ok(()),
    });
    let options = Options::new("unused").file_system(fs).clock(SimClock::new());
    let options = options.segment_bytes(SEGMENT_BYTES).manual_maintenance(true);
    let store = options.durability(Durability::Sync).open().unwrap();
    let space = store.define("space", &policy()).unwrap();
    (0..20).for_each(|n| complete(&space, &n.to_string()));
    fails.store(true, Ordering::Relaxed);
    let unknown = space.forget_all("reason", "actor");
    assert!(matches!(unknown, Err(ForgetError::Store(StoreError::Unknown { .. }))), "{unknown:?}");
    // They are gone from memory, and may be there again when the store is opened.
    let poisoned = space.forget_all("reason", "actor");
    let is_told = matches!(poisoned, Err(ForgetError::Store(StoreError::Poisoned { .. })));
    assert!(is_told, "{poisoned:?}");
}

/// What is not there any more may have been ended by somebody whose round is under way.
#[test]
fn what_others_have_ended_is_durable_too() {
    let syncs = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&syncs);
    let fs = HookFs::new(HeapFs::new(), move |what, _| {
        counted.fetch_add(u64::from(what == "sync"), Ordering::Relaxed);
        Ok(())
    });
    let options = Options::new("unused").file_system(fs).clock(SimClock::new());
    let options = options.segment_bytes(SEGMENT_BYTES).manual_maintenance(true);
    let store = options.durability(Durability::Sync).open().unwrap();
    let space = store.define("space", &policy()).unwrap();
    complete(&space, "key");
    let before = syncs.load(Ordering::Relaxed);
    drop(space.forget_async("key", "reason", "actor"));
    assert_eq!(syncs.load(Ordering::Relaxed), before);
    assert_eq!(space.forget_all("reason", "actor").unwrap(), 0);
    assert!(syncs.load(Ordering::Relaxed) > before);
}
