//! Outcomes whose body is shown where it lies: nothing is written over it, whatever becomes of the key, of the
//! store, and of its directory; and nobody waits for whoever keeps one.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

use std::time::Duration;

use refrain::testing::{HeapFs, SimClock};
use refrain::{
    Body, Claim, CompleteError, CompleteOptions, Durability, Lookup, Namespace, OpenError, Options,
    Outcome, Policy, Store,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const LARGE: usize = Outcome::KEPT_BYTES_MIN;

fn options(fs: &HeapFs, clock: &SimClock) -> Options {
    Options::new("unused")
        .file_system(fs.clone())
        .clock(clock.clone())
        .durability(Durability::Buffered)
        .segment_bytes(256 << 10)
        .manual_maintenance(true)
}

fn define(store: &Store) -> Namespace {
    let policy = Policy::default().lease(SECOND).replay_ttl(MINUTE).dedupe_ttl(MINUTE);
    store.define("orders", &policy.late_grace(SECOND)).unwrap()
}

fn body(n: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + n * 31) as u8).collect()
}

fn complete(orders: &Namespace, key: &str, body: &[u8]) {
    orders.claim(key, None).unwrap().acquired().unwrap().complete(body).unwrap();
}

fn looked_up(orders: &Namespace, key: &str) -> Outcome {
    match orders.lookup(key).unwrap() {
        Lookup::Completed(outcome) => outcome,
        other => panic!("{other:?}"),
    }
}

fn bytes(outcome: &Outcome) -> &[u8] {
    match outcome.body() {
        Body::Bytes(bytes) => bytes,
        other => panic!("{other:?}"),
    }
}

/// Lets the windows of everything there is end, and what is left of it be taken out of use.
fn pass(store: &Store, clock: &SimClock) {
    for _ in 0..30 {
        clock.advance(MINUTE / 10);
        store.maintain(Duration::MAX);
    }
}

#[test]
fn a_large_body_is_shown_where_it_lies_and_a_small_one_is_copied() {
    let store = options(&HeapFs::new(), &SimClock::new()).open().unwrap();
    let orders = define(&store);
    for (key, len, is_copied) in [("small", LARGE - 1, true), ("large", LARGE, false)] {
        let body = body(1, len);
        let lease = orders.claim(key, None).unwrap().acquired().unwrap();
        let token = lease.token();
        lease.complete(&body).unwrap();
        let found = looked_up(&orders, key);
        let Claim::Completed(seen) = orders.claim(key, None).unwrap() else { panic!() };
        let again = orders.complete(key, token, "another");
        let Err(CompleteError::AlreadyCompleted(stored)) = again else { panic!("{again:?}") };
        // An error has a copy.
        assert_eq!(*stored, found);
        for outcome in [&found, &seen, &found.clone()] {
            assert_eq!(bytes(outcome), body);
            let lies_there = orders.lookup_with(key, |lookup| match lookup {
                Lookup::Completed(there) => {
                    let Body::Bytes(there) = there.body() else { panic!() };
                    std::ptr::eq(there, bytes(outcome))
                }
                other => panic!("{other:?}"),
            });
            assert_eq!(lies_there.unwrap(), !is_copied, "{key}");
        }
        let detached = found.clone().detached();
        assert!(!std::ptr::eq(bytes(&detached), bytes(&seen)));
        assert_eq!((&detached, detached.code()), (&found, 0));
    }
    assert_ne!(looked_up(&orders, "small"), looked_up(&orders, "large"));
}

#[test]
fn what_is_kept_is_not_written_over_and_keeps_nobody_waiting() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = options(&fs, &clock).open().unwrap();
    let orders = define(&store);
    // More segments than may wait for rounds at a time.
    let lens = [LARGE, 100_000];
    let fill = |round: usize| {
        for n in 0..120 {
            complete(&orders, &format!("{round}-{n}"), &body(n, lens[n % 2]));
        }
    };
    fill(0);
    let all = 0..120;
    let kept: Vec<_> = all.clone().map(|n| looked_up(&orders, &format!("0-{n}"))).collect();
    pass(&store, &clock);
    assert!(matches!(orders.lookup("0-7"), Ok(Lookup::Absent)));
    let recycled = store.stats().recycled;
    let disk_bytes = store.stats().disk_bytes;
    for round in 1..6 {
        fill(round);
        pass(&store, &clock);
    }
    // All but what is kept was used again and again.
    assert!(store.stats().recycled > recycled + 100, "{:?}", store.stats());
    assert!(store.stats().disk_bytes <= 4 * disk_bytes, "{:?}", store.stats());
    for n in all.clone() {
        assert_eq!(bytes(&kept[n]), body(n, lens[n % 2]), "{n}");
    }
    let copies: Vec<_> = kept.into_iter().map(Outcome::detached).collect();
    let wal_bytes = store.stats().wal_bytes;
    pass(&store, &clock);
    assert!(store.stats().wal_bytes < wal_bytes / 4, "nobody keeps any: {:?}", store.stats());
    fill(6);
    for n in all {
        assert_eq!(bytes(&copies[n]), body(n, lens[n % 2]), "{n}");
    }
}

/// Another process may write to the directory of a store that is closed.
#[test]
fn a_store_that_is_closed_stays_locked_while_an_outcome_is_kept() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let open = || options(&fs, &clock).open();
    let store = open().unwrap();
    let orders = define(&store);
    complete(&orders, "a", &body(1, LARGE));
    complete(&orders, "b", &body(2, LARGE));
    let (first, second) = (looked_up(&orders, "a"), looked_up(&orders, "b"));
    let copy = first.clone();
    store.close().unwrap();
    drop((store, orders, first));
    assert!(matches!(open(), Err(OpenError::Locked { .. })));
    let detached = second.detached();
    assert!(matches!(open(), Err(OpenError::Locked { .. })));
    assert_eq!(bytes(&copy), body(1, LARGE));
    drop(copy);
    let store = open().unwrap();
    assert!(store.report().clean);
    assert_eq!(looked_up(&define(&store), "b"), detached);
}

#[test]
fn what_is_kept_outlives_a_store_that_is_dropped() {
    let outcome = {
        let store = Store::in_memory().unwrap();
        let orders = store.namespace("orders").unwrap();
        let lease = orders.claim("a", None).unwrap().acquired().unwrap();
        lease.complete_with(&CompleteOptions::body(&body(3, LARGE)).code(201)).unwrap();
        looked_up(&orders, "a")
    };
    let told = std::thread::spawn(move || (outcome.code(), bytes(&outcome).to_vec()));
    assert_eq!(told.join().unwrap(), (201, body(3, LARGE)));
}

/// What somebody keeps is there for as long as he likes; what was forgotten meanwhile is compacted all the same.
#[test]
fn what_is_kept_does_not_end_compaction() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = options(&fs, &clock).open().unwrap();
    let brief = define(&store);
    let policy = Policy::default().lease(MINUTE).replay_ttl(60_000 * MINUTE);
    let lasting = store.define("lasting", &policy.dedupe_ttl(60_000 * MINUTE)).unwrap();
    complete(&brief, "kept", &body(1, LARGE));
    let kept = looked_up(&brief, "kept");
    pass(&store, &clock);
    assert!(matches!(brief.lookup("kept"), Ok(Lookup::Absent)));
    for n in 0..800 {
        let key = format!("{n}");
        complete(&lasting, &key, &body(n, 3000));
        if n % 10 != 0 {
            lasting.forget(&key, "a test", "nobody").unwrap();
        }
    }
    let before = store.stats();
    for _ in 0..400 {
        clock.advance(MINUTE);
        store.maintain(Duration::MAX);
    }
    let stats = store.stats();
    assert!(stats.record_bytes < before.record_bytes / 2, "{stats:?}, before {before:?}");
    assert_eq!(bytes(&kept), body(1, LARGE));
}
