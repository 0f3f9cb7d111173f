//! Rates: whoever asks for new keys too often is refused, by all and in each scope; retries are free.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use refrain::testing::{HeapFs, SimClock};
use refrain::{
    Claim, ClaimError, ClaimOptions, CompleteOptions, Durability, Fingerprint, FingerprintRule,
    Lookup, Namespace, NamespaceError, Once, Options, Policy, Quota, Rate, RateExceeded, RateOf,
    Rates, Store,
};
use support::Random;
use support::disk::HookFs;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn count(count: u32) -> NonZeroU32 {
    NonZeroU32::new(count).unwrap()
}

/// So many each second, and so many at once.
fn rate(per_second: u32, burst: u32) -> Rate {
    Rate::per_second(count(per_second)).burst(count(burst))
}

fn options(fs: &HeapFs, clock: &SimClock) -> Options {
    let options = Options::new("unused").file_system(fs.clone()).clock(clock.clone());
    options.manual_maintenance(true)
}

fn policy() -> Policy {
    let policy = Policy::default().lease(HOUR).late_grace(SECOND).replay_ttl(HOUR);
    policy.dedupe_ttl(HOUR).fingerprint(FingerprintRule::Enforce)
}

fn open(rates: &Rates) -> (SimClock, Store, Namespace) {
    let clock = SimClock::new();
    let store = options(&HeapFs::new(), &clock).open().unwrap();
    let space = store.define("space", &policy()).unwrap();
    store.limit_rates("space", rates).unwrap();
    (clock, store, space)
}

fn complete(space: &Namespace, key: &str) {
    space.claim(key, None).unwrap().acquired().unwrap().complete("done").unwrap();
}

fn refused<T: std::fmt::Debug>(answer: Result<T, ClaimError>) -> (RateOf, Duration) {
    match answer {
        Err(ClaimError::RateExceeded(RateExceeded { of, retry_after, .. })) => (of, retry_after),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_newest_keys_are_refused_until_their_time_and_retries_are_free() {
    let (clock, store, space) = open(&Rates::default().new_keys(rate(10, 3)));
    complete(&space, "1");
    let held = space.claim("2", None).unwrap().acquired().unwrap();
    assert!(matches!(space.once("3", None).unwrap(), Once::First(_)));
    let scope = space.scoped("customer").unwrap();
    for space in [&space, &scope] {
        for answer in [space.claim("4", None).map(drop), space.once("4", None).map(drop)] {
            let (of, retry_after) = refused(answer);
            assert_eq!((of, retry_after), (RateOf::NewKeys, 100 * MS));
        }
        assert_eq!(space.lookup("4").unwrap(), Lookup::Absent);
    }
    // As often as anybody likes.
    for _ in 0..100 {
        assert!(matches!(space.claim("1", None), Ok(Claim::Completed(_))));
        assert!(matches!(space.claim("2", None), Ok(Claim::InProgress(_))));
        assert!(matches!(space.once("3", None), Ok(Once::Seen(_))));
    }
    space.renew("2", held.token()).unwrap();
    held.complete("done").unwrap();
    clock.advance(60 * MS);
    assert_eq!(refused(space.claim("4", None)), (RateOf::NewKeys, 40 * MS));
    // What is told is true, to the nanosecond.
    clock.advance(40 * MS - Duration::from_nanos(1));
    assert_eq!(refused(space.claim("4", None)).1, Duration::from_nanos(1));
    clock.advance(Duration::from_nanos(1));
    complete(&space, "4");
    refused(space.claim("5", None));
    // However long nobody came, no more at once than the burst.
    clock.advance(HOUR / 2);
    let batch: Vec<_> = ["5", "1", "6", "7", "8"].map(|key| (key, ClaimOptions::new())).into();
    let answers = space.claim_batch(&batch);
    let granted: Vec<_> = answers.iter().map(|it| matches!(it, Ok(Claim::Acquired(_)))).collect();
    assert_eq!(granted, [true, false, true, true, false]);
    assert!(matches!(answers[1], Ok(Claim::Completed(_))));
    assert!(matches!(answers[4], Err(ClaimError::RateExceeded(_))));
    let calls = store.stats().calls;
    assert_eq!((calls.granted, calls.marked, calls.refused_rate), (6, 1, 8));
}

#[test]
fn a_key_that_is_forgotten_or_over_is_new_and_a_takeover_is_not() {
    let (clock, _store, space) = open(&Rates::default().new_keys(rate(1, 2)));
    complete(&space, "1");
    drop(space.claim("2", None).unwrap());
    space.forget("1", "by mistake", "a test").unwrap();
    refused(space.claim("1", None));
    // Its lease ends, and nobody pays for it again.
    clock.advance(HOUR);
    complete(&space, "1");
    complete(&space, "3");
    refused(space.claim("4", None));
    let taken_over = space.claim("2", None).unwrap().acquired().unwrap();
    assert!(taken_over.previous().is_some());
    taken_over.release().unwrap();
    refused(space.claim("2", None));
}

#[test]
fn each_scope_has_its_own_and_what_it_is_refused_costs_nobody_else() {
    let rates = Rates::default().new_keys(rate(1, 4)).new_keys_each_scope(rate(1, 2));
    let (clock, _store, space) = open(&rates);
    let [first, second] = ["first", "second"].map(|name| space.scoped(name).unwrap());
    complete(&first, "1");
    complete(&first, "2");
    for n in 0..50 {
        let (of, retry_after) = refused(first.claim(n.to_string() + "more", None));
        assert_eq!((of, retry_after), (RateOf::NewKeysOfScope, SECOND));
    }
    // Without a scope is one of its own.
    complete(&space, "1");
    complete(&second, "1");
    assert_eq!(refused(second.claim("2", None)).0, RateOf::NewKeys);
    clock.advance(SECOND);
    complete(&first, "3");
}

#[test]
fn who_guesses_payloads_is_told_so_often_and_no_more() {
    let rates = Rates::default().mismatches_each_scope(rate(1, 3));
    let (clock, store, space) = open(&rates);
    let scope = space.scoped("guesser").unwrap();
    let fingerprint = |n: u128| Some(Fingerprint::from_digest(n.to_le_bytes()));
    for space in [&space, &scope] {
        let lease = space.claim("key", fingerprint(0)).unwrap().acquired().unwrap();
        for n in 1..=3 {
            assert!(matches!(space.claim("key", fingerprint(n)), Ok(Claim::Mismatch(_))));
            assert!(matches!(space.claim("key", fingerprint(0)), Ok(Claim::InProgress(_))));
        }
        let again = refused(space.claim("key", fingerprint(4)));
        assert_eq!(again, (RateOf::MismatchesOfScope, SECOND));
        refused(space.once("key", fingerprint(4)));
        lease.complete("done").unwrap();
        assert!(matches!(space.claim("key", fingerprint(0)), Ok(Claim::Completed(_))));
        refused(space.claim("key", fingerprint(4)));
        // New keys are another matter.
        complete(space, "other");
    }
    clock.advance(SECOND);
    assert!(matches!(space.claim("key", fingerprint(5)), Ok(Claim::Mismatch(_))));
    let calls = store.stats().calls;
    assert_eq!((calls.mismatches, calls.refused_rate), (7, 6));
}

#[test]
fn an_answer_that_waits_for_the_disk_is_paid_for_once() {
    let clock = SimClock::new();
    let store = options(&HeapFs::new(), &clock).durability(Durability::Sync).open().unwrap();
    let space = store.define("space", &policy()).unwrap();
    let rates = Rates::default().new_keys(rate(1, 2)).mismatches_each_scope(rate(1, 2));
    store.limit_rates("space", &rates).unwrap();
    let asked = |n: u128| ClaimOptions::new().fingerprint(Fingerprint::from_digest([n as u8; 16]));
    let lease = space.claim_with("key", &asked(1)).unwrap().acquired().unwrap();
    // Nobody has waited for the completion: whoever is told of it does.
    drop(lease.complete_async(&CompleteOptions::body(b"done")));
    assert!(matches!(space.claim_with("key", &asked(2)), Ok(Claim::Mismatch(_))));
    assert!(matches!(space.claim_with("key", &asked(3)), Ok(Claim::Mismatch(_))));
    refused(space.claim_with("key", &asked(4)));
    complete(&space, "another");
    refused(space.claim_with("third", &asked(4)));
}

#[test]
fn rates_are_changed_and_lifted_while_the_store_runs_and_are_not_kept() {
    let (clock, store, space) = open(&Rates::default().new_keys(rate(1, 1)));
    complete(&space, "1");
    refused(space.claim("2", None));
    // The same again fills nothing.
    store.limit_rates("space", &Rates::default().new_keys(rate(1, 1))).unwrap();
    refused(space.claim("2", None));
    store.limit_rates("space", &Rates::default().new_keys(rate(1, 2))).unwrap();
    complete(&space, "2");
    complete(&space, "3");
    refused(space.claim("4", None));
    store.limit_rates("space", &Rates::default()).unwrap();
    (4..100).for_each(|n| complete(&space, &n.to_string()));
    let unknown = store.limit_rates("nobody", &Rates::default());
    assert!(matches!(unknown, Err(NamespaceError::UnknownName)));
    drop(store.fence_guard("guard", HOUR).unwrap());
    let reserved = store.limit_rates("refrain.fences/guard", &Rates::default());
    assert!(matches!(reserved, Err(NamespaceError::Reserved { .. })));
    store.close().unwrap();
    let closed = store.limit_rates("space", &Rates::default());
    assert!(matches!(closed, Err(NamespaceError::Store(_))), "{closed:?}");
    drop(clock);
}

#[test]
fn a_rate_is_kept_by_many_threads_and_many_scopes() {
    let seed = support::seed("a_rate_is_kept_by_many_threads_and_many_scopes");
    let rates = Rates::default().new_keys(rate(1, 500)).new_keys_each_scope(rate(1, 2));
    let (clock, _store, space) = open(&rates);
    let granted = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (space, granted) = (&space, &granted);
            scope.spawn(move || {
                let mut random = Random::new(seed ^ thread);
                for n in 0..2000 {
                    // More scopes than are kept without a look at who is idle.
                    let customer = space.scoped(random.below(3000).to_string()).unwrap();
                    match customer.claim(format!("{thread}-{n}"), None) {
                        Ok(Claim::Acquired(lease)) => {
                            lease.complete("done").unwrap();
                            granted.fetch_add(1, Ordering::Relaxed);
                        }
                        other => _ = refused(other),
                    }
                }
            });
        }
    });
    assert_eq!(granted.into_inner(), 500);
    // One that was refused by all has paid of its own alone, and has it back by then.
    clock.advance(2 * SECOND);
    let customer = space.scoped("another").unwrap();
    complete(&customer, "1");
    complete(&customer, "2");
    assert_eq!(refused(customer.claim("3", None)).0, RateOf::NewKeysOfScope);
}

#[test]
fn what_the_quota_or_the_disk_refuses_others_are_not_charged_for() {
    let rates = Rates::default().new_keys(rate(1, 4));
    let (_clock, store, space) = open(&rates);
    store.limit_scopes("space", &Quota::default().keys(2)).unwrap();
    let [full, other] = ["full", "other"].map(|name| space.scoped(name).unwrap());
    complete(&full, "1");
    complete(&full, "2");
    for n in 3..100 {
        let refused = full.claim(n.to_string(), None);
        assert!(matches!(refused, Err(ClaimError::QuotaExceeded(_))), "{refused:?}");
    }
    complete(&other, "1");
    complete(&other, "2");
    refused(space.claim("5", None));
}

/// A call that has to look again, because the store had to grow, has paid.
#[test]
fn a_store_that_grows_is_paid_for_once() {
    let (_clock, store, space) = open(&Rates::default().new_keys(rate(1, 3000)));
    let before = store.stats().disk_bytes;
    for n in 0..3000 {
        drop(space.claim(format!("{n}-{}", "x".repeat(3000)), None).unwrap());
    }
    assert!(store.stats().disk_bytes > before);
    refused(space.claim("one more", None));
}

/// To have paid for one is not to have paid for the other: the key is forgotten while the answer that it has another
/// fingerprint waits for the disk.
#[test]
fn a_mismatch_that_was_waited_for_does_not_pay_for_a_key() {
    let forgets: Arc<Mutex<Option<Namespace>>> = Arc::default();
    let hooked = Arc::clone(&forgets);
    let fs = HookFs::new(HeapFs::new(), move |what, _| {
        if what == "sync"
            && let Some(space) = hooked.lock().unwrap().take()
        {
            drop(space.forget_async("key", "", ""));
        }
        Ok(())
    });
    let options = Options::new("unused").file_system(fs).clock(SimClock::new());
    let options = options.segment_bytes(256 << 10).manual_maintenance(true);
    let store = options.durability(Durability::Sync).open().unwrap();
    let space = store.define("space", &policy()).unwrap();
    store.limit_rates("space", &Rates::default().new_keys(rate(1, 1))).unwrap();
    let asked = |n: u8| ClaimOptions::new().fingerprint(Fingerprint::from_digest([n; 16]));
    let lease = space.claim_with("key", &asked(1)).unwrap().acquired().unwrap();
    drop(lease.complete_async(&CompleteOptions::body(b"done")));
    *forgets.lock().unwrap() = Some(space.clone());
    assert_eq!(refused(space.claim_with("key", &asked(2))).0, RateOf::NewKeys);
    assert!(forgets.lock().unwrap().is_none());
}
