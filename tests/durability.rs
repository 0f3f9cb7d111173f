//! When a change is acknowledged, who waits, and what a failed sync means.

#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use refrain::testing::{HeapFs, SimClock, SimDisk};
use refrain::{
    Body, Claim, ClaimError, ClaimOptions, CloseError, CompleteError, CompleteOptions, Durability,
    Lookup, Options, Policy, Store, StoreError,
};
use support::disk::HookFs;

fn options(fs: HookFs, durability: Durability) -> Options {
    Options::new("unused").file_system(fs).durability(durability).segment_bytes(256 << 10)
}

/// A file system that counts the syncs of data files.
fn counting() -> (HookFs, Arc<AtomicU64>) {
    let syncs = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&syncs);
    let fs = HookFs::new(HeapFs::new(), move |operation, name| {
        if operation == "sync" && name.starts_with("data") {
            counter.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    });
    (fs, syncs)
}

/// A gate that syncs of data files wait at while it is shut.
#[derive(Default)]
struct Gate {
    is_shut: Mutex<bool>,
    opened: Condvar,
    waiting: AtomicU64,
}

impl Gate {
    fn file_system(self: &Arc<Self>) -> HookFs {
        let gate = Arc::clone(self);
        HookFs::new(HeapFs::new(), move |operation, name| {
            if operation == "sync" && name.starts_with("data") {
                gate.pass();
            }
            Ok(())
        })
    }

    fn pass(&self) {
        let mut is_shut = self.is_shut.lock().unwrap();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while *is_shut {
            is_shut = self.opened.wait(is_shut).unwrap();
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    fn set(&self, is_shut: bool) {
        *self.is_shut.lock().unwrap() = is_shut;
        self.opened.notify_all();
    }

    fn await_waiter(&self) {
        while self.waiting.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
    }
}

/// Opens the gate at the end, also when a test fails that somebody waits in.
struct OpensAtEnd<'a>(&'a Gate);

impl Drop for OpensAtEnd<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

#[test]
fn sixteen_threads_share_their_syncs() {
    let syncs = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&syncs);
    // A disk that takes a while: what comes meanwhile shares the next round.
    let fs = HookFs::new(HeapFs::new(), move |operation, name| {
        if operation == "sync" && name.starts_with("data") {
            counter.fetch_add(1, Ordering::SeqCst);
            thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    });
    let store = options(fs, Durability::Sync).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let before = syncs.load(Ordering::SeqCst);
    thread::scope(|scope| {
        for thread in 0..16 {
            let orders = &orders;
            scope.spawn(move || {
                for n in 0..1000 {
                    let lease = orders.claim(format!("{thread}-{n}"), None).unwrap().acquired();
                    drop(lease.unwrap());
                }
            });
        }
    });
    let made = syncs.load(Ordering::SeqCst) - before;
    println!("16,000 durable claims from 16 threads: {made} syncs");
    assert!(made <= 8000, "{made} syncs");
    assert!(made >= 1000, "{made} syncs cannot have covered 1000 claims in a row of each thread");
}

#[test]
fn an_outcome_is_shown_to_nobody_before_it_is_durable() {
    let gate = Arc::new(Gate::default());
    let store = options(gate.file_system(), Durability::Sync).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let lease = orders.claim("a", None).unwrap().acquired().unwrap();
    let token = lease.token();
    let other = orders.claim("b", None).unwrap().acquired().unwrap();
    gate.set(true);
    thread::scope(|scope| {
        let _opens = OpensAtEnd(&gate);
        let completer = scope.spawn(move || lease.complete("outcome").unwrap());
        gate.await_waiter();
        // The completion is under way. Whoever would be shown it waits for its round.
        let (sender, answers) = mpsc::channel();
        type Ask = fn(&refrain::Namespace, refrain::FencingToken);
        let asks: [Ask; 6] = [
            |orders, _| drop(orders.lookup("a").unwrap()),
            |orders, _| {
                let is_done =
                    orders.lookup_with("a", |it| matches!(it, Lookup::Completed(_))).unwrap();
                assert!(is_done);
            },
            |orders, _| drop(orders.claim("a", None).unwrap().completed().unwrap()),
            |orders, _| drop(orders.once("a", None).unwrap()),
            |orders, token| assert!(orders.complete("a", token, "outcome").is_ok()),
            |orders, token| {
                let again = orders.complete("a", token, "other");
                assert!(matches!(again, Err(CompleteError::AlreadyCompleted(_))));
            },
        ];
        for ask in asks {
            let (sender, orders) = (sender.clone(), &orders);
            scope.spawn(move || {
                ask(orders, token);
                sender.send(()).unwrap();
            });
        }
        assert!(answers.recv_timeout(Duration::from_millis(100)).is_err(), "shown too early");
        assert!(!completer.is_finished());
        // Nobody else waits.
        assert!(matches!(orders.lookup("b").unwrap(), Lookup::InProgress(_)));
        assert!(matches!(orders.lookup("never").unwrap(), Lookup::Absent));
        assert!(orders.claim("b", None).unwrap().acquired().is_none());
        orders.renew("b", other.token()).unwrap();
        gate.set(false);
        for _ in asks {
            answers.recv().unwrap();
        }
    });
}

/// While one sync hangs, whoever needs none goes on.
#[test]
fn a_slow_sync_holds_up_only_those_who_wait_for_it() {
    let gate = Arc::new(Gate::default());
    let store = options(gate.file_system(), Durability::Sync).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let mut held = orders.claim("held", None).unwrap().acquired().unwrap();
    orders.claim("done", None).unwrap().acquired().unwrap().complete("outcome").unwrap();
    gate.set(true);
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..4)
            .map(|number| {
                let orders = orders.clone();
                scope.spawn(move || {
                    let claim = orders.claim(format!("waits-{number}"), None).unwrap();
                    claim.acquired().unwrap().token()
                })
            })
            .collect();
        gate.await_waiter();
        // None of this returns before the sync, if it needs it.
        let done = orders.claim("done", None).unwrap().completed().unwrap();
        assert_eq!(done.body(), Body::Bytes(b"outcome"));
        assert!(matches!(orders.lookup("done").unwrap(), Lookup::Completed(_)));
        assert!(matches!(orders.claim("held", None).unwrap(), Claim::InProgress(_)));
        assert!(matches!(orders.lookup("never").unwrap(), Lookup::Absent));
        held.renew().unwrap();
        let buffered = ClaimOptions::new().buffered();
        let lease = orders.claim_with("quick", &buffered).unwrap().acquired().unwrap();
        lease.complete_with(&CompleteOptions::body(b"q").buffered()).unwrap();
        assert!(matches!(orders.claim("quick", None).unwrap(), Claim::Completed(_)));
        assert!(orders.orphans().unwrap().is_empty() && store.stats().entries > 2);
        let later = orders.claim_async("later", &ClaimOptions::new());
        assert!(waiting.iter().all(|thread| !thread.is_finished()));
        gate.set(false);
        let tokens: Vec<_> = waiting.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(later.wait().unwrap().acquired().is_some());
        assert_eq!(tokens.len(), 4);
    });
}

#[test]
fn in_interval_mode_the_owner_goes_on_and_readers_wait() {
    let gate = Arc::new(Gate::default());
    let interval = Durability::Interval(Duration::from_secs(3600));
    let store = options(gate.file_system(), interval).manual_maintenance(true).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    gate.set(true);
    let lease = orders.claim("a", None).unwrap().acquired().unwrap();
    lease.complete("outcome").unwrap();
    thread::scope(|scope| {
        let _opens = OpensAtEnd(&gate);
        let reader = scope.spawn(|| orders.lookup("a").unwrap());
        while gate.waiting.load(Ordering::SeqCst) == 0 && !reader.is_finished() {
            thread::yield_now();
        }
        assert!(!reader.is_finished());
        gate.set(false);
        assert!(matches!(reader.join().unwrap(), Lookup::Completed(_)));
    });
}

#[test]
fn buffered_calls_make_no_sync_and_sync_calls_do() {
    let (fs, syncs) = counting();
    let store = options(fs, Durability::Buffered).manual_maintenance(true).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let count = || syncs.load(Ordering::SeqCst);
    let start = count();
    let lease = orders.claim("a", None).unwrap().acquired().unwrap();
    lease.complete("outcome").unwrap();
    assert!(matches!(orders.lookup("a").unwrap(), Lookup::Completed(_)));
    assert_eq!(count(), start);
    let lease = orders.claim_with("b", &ClaimOptions::new().sync()).unwrap().acquired().unwrap();
    assert_eq!(count(), start + 1);
    lease.complete_with(&CompleteOptions::body(b"outcome").sync()).unwrap();
    assert_eq!(count(), start + 2);
    store.flush().unwrap();
    assert_eq!(count(), start + 3, "one more round, for the mark that says it is all durable");
    store.flush().unwrap();
    assert_eq!(count(), start + 3, "nothing is left to sync");
}

#[test]
fn a_call_can_ask_for_less_than_its_store() {
    let (fs, syncs) = counting();
    let store = options(fs, Durability::Sync).manual_maintenance(true).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let start = syncs.load(Ordering::SeqCst);
    let lease =
        orders.claim_with("a", &ClaimOptions::new().buffered()).unwrap().acquired().unwrap();
    let mut lease = lease;
    lease.renew().unwrap();
    lease.complete_with(&CompleteOptions::body(b"outcome").buffered()).unwrap();
    assert!(matches!(orders.lookup("a").unwrap(), Lookup::Completed(_)));
    assert_eq!(syncs.load(Ordering::SeqCst), start);
}

#[test]
fn intervals_and_idleness_sync_in_the_background() {
    let (fs, syncs) = counting();
    let clock = SimClock::new();
    let interval = Durability::Interval(Duration::from_millis(500));
    let store = options(fs, interval).clock(clock.clone()).manual_maintenance(true).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let claim = |key: &str| drop(orders.claim(key, None).unwrap().acquired().unwrap());
    // The store has grown ahead, and all is durable.
    claim("first");
    for _ in 0..10 {
        store.maintain(Duration::MAX);
    }
    store.flush().unwrap();
    store.maintain(Duration::MAX);
    let count = || syncs.swap(0, Ordering::SeqCst);
    count();
    claim("a");
    store.maintain(Duration::MAX);
    assert_eq!(count(), 0);
    clock.advance(Duration::from_millis(499));
    claim("b");
    store.maintain(Duration::MAX);
    assert_eq!(count(), 0, "not due yet");
    clock.advance(Duration::from_millis(1));
    store.maintain(Duration::MAX);
    assert_eq!(count(), 1, "due");
    clock.advance(Duration::from_millis(499));
    store.maintain(Duration::MAX);
    assert_eq!(count(), 0);
    clock.advance(Duration::from_millis(1));
    store.maintain(Duration::MAX);
    assert_eq!(count(), 1, "the mark that says so");
    clock.advance(Duration::from_secs(10));
    store.maintain(Duration::MAX);
    assert_eq!(count(), 0, "nothing is left");
}

/// Polls a future from a thread that sleeps in between.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn commits_are_futures_on_any_executor() {
    let (fs, syncs) = counting();
    let store = options(fs, Durability::Sync).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let before = syncs.load(Ordering::SeqCst);
    // Many commits in flight from one thread share their rounds.
    let claims: Vec<_> =
        (0..200).map(|n| orders.claim_async(format!("{n}"), &ClaimOptions::new())).collect();
    let leases = claims.into_iter().map(|claim| block_on(claim).unwrap().acquired().unwrap());
    let commits: Vec<_> =
        leases.map(|lease| lease.complete_async(&CompleteOptions::body(b"outcome"))).collect();
    for commit in commits {
        block_on(commit).unwrap();
    }
    let made = syncs.load(Ordering::SeqCst) - before;
    assert!(made <= 100, "{made} syncs for 400 commits");
    let outcome = orders.claim("7", None).unwrap().completed().unwrap();
    assert_eq!(outcome.body(), Body::Bytes(b"outcome"));
}

#[test]
fn a_dropped_commit_cancels_nothing() {
    let store = options(counting().0, Durability::Sync).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let mut commit = orders.claim_async("a", &ClaimOptions::new());
    let mut context = Context::from_waker(Waker::noop());
    let is_ready = std::pin::Pin::new(&mut commit).poll(&mut context).is_ready();
    println!("ready at once: {is_ready}");
    drop(commit);
    assert!(matches!(orders.lookup("a").unwrap(), Lookup::InProgress(_)));
    let lease = orders.claim("b", None).unwrap().acquired().unwrap();
    let token = lease.token();
    drop(lease.complete_async(&CompleteOptions::body(b"outcome")));
    assert!(matches!(orders.lookup("b").unwrap(), Lookup::Completed(_)));
    assert!(orders.complete("b", token, "outcome").is_ok());
}

/// A disk whose n-th sync of a data file from now on fails, and all after it if `sticky`.
fn failing() -> (HookFs, Arc<AtomicU64>, Arc<AtomicBool>, HeapFs) {
    let (left, sticky) = (Arc::new(AtomicU64::new(u64::MAX)), Arc::new(AtomicBool::new(false)));
    let (countdown, is_sticky) = (Arc::clone(&left), Arc::clone(&sticky));
    let heap = HeapFs::new();
    let fs = HookFs::new(heap.clone(), move |operation, name| {
        if operation == "sync" && name.starts_with("data") {
            match countdown.load(Ordering::SeqCst) {
                u64::MAX => {}
                0 if is_sticky.load(Ordering::SeqCst) => return Err(io::Error::other("EIO")),
                0 => {
                    countdown.store(u64::MAX, Ordering::SeqCst);
                    return Err(io::Error::other("EIO"));
                }
                left => countdown.store(left - 1, Ordering::SeqCst),
            }
        }
        Ok(())
    });
    (fs, left, sticky, heap)
}

#[test]
fn the_first_failed_sync_ends_every_promise_until_reopening() {
    let mut rewritten = 0;
    for k in 0..6 {
        for sticky in [false, true] {
            let (fs, left, is_sticky, heap) = failing();
            is_sticky.store(sticky, Ordering::SeqCst);
            let store = options(fs, Durability::Sync).open().unwrap();
            let orders = store.namespace("orders").unwrap();
            let lease = orders.claim("durable", None).unwrap().acquired().unwrap();
            lease.complete("kept").unwrap();
            left.store(k, Ordering::SeqCst);
            let (barrier, refused) = (Barrier::new(16), AtomicU64::new(0));
            thread::scope(|scope| {
                for thread in 0..16 {
                    let (orders, barrier, refused) = (&orders, &barrier, &refused);
                    scope.spawn(move || {
                        barrier.wait();
                        for n in 0..50 {
                            match orders.claim(format!("{thread}-{n}"), None) {
                                Ok(claim) => drop(claim.acquired().unwrap()),
                                Err(ClaimError::Store(error)) => {
                                    assert!(error.is_poisoned(), "{error}");
                                    refused.fetch_add(1, Ordering::SeqCst);
                                }
                                Err(other) => panic!("{other}"),
                            }
                        }
                    });
                }
            });
            // Everybody was told; once poisoned, nobody succeeds again.
            assert!(refused.load(Ordering::SeqCst) >= 16);
            assert!(store.poisoned().is_some());
            let refusal = orders.claim("late", None).unwrap_err();
            assert!(matches!(refusal, ClaimError::Store(StoreError::Poisoned { .. })), "{refusal}");
            assert!(matches!(store.flush(), Err(StoreError::Poisoned { .. })));
            // What was durable can still be read.
            let Lookup::Completed(outcome) = orders.lookup("durable").unwrap() else { panic!() };
            assert_eq!(outcome.body(), Body::Bytes(b"kept"));
            let closed = store.close();
            assert!(matches!(closed, Err(CloseError::Store(StoreError::Poisoned { .. }))));
            let store = Options::new("unused").file_system(heap).open().unwrap();
            let report = store.report();
            assert!(report.was_poisoned && !report.clean, "{report:?}");
            // Where the sync that failed was of a mark alone, nothing was written after what is durable.
            let is_more = report.records > 2;
            assert!(
                !is_more || report.rewritten_bytes > 0,
                "the page cache is not to be trusted: {report:?}"
            );
            rewritten += report.rewritten_bytes;
            let orders = store.namespace("orders").unwrap();
            assert!(orders.claim("durable", None).unwrap().completed().is_some());
        }
    }
    assert!(rewritten > 0, "in most runs there is more");
}

#[test]
fn an_outcome_that_never_became_durable_is_never_shown() {
    let (fs, left, ..) = failing();
    let store = options(fs, Durability::Sync).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let lease = orders.claim("a", None).unwrap().acquired().unwrap();
    left.store(0, Ordering::SeqCst);
    let refusal = lease.complete("outcome").unwrap_err();
    assert!(matches!(refusal, CompleteError::Store(StoreError::Unknown { .. })), "{refusal}");
    let refusal = orders.lookup("a").unwrap_err();
    assert!(matches!(refusal, StoreError::Poisoned { .. }), "{refusal}");
}

#[test]
fn futures_learn_of_a_failed_sync() {
    let (fs, left, ..) = failing();
    let store = options(fs, Durability::Sync).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    left.store(0, Ordering::SeqCst);
    let commits: Vec<_> =
        (0..10).map(|n| orders.claim_async(format!("{n}"), &ClaimOptions::new())).collect();
    for commit in commits {
        assert!(block_on(commit).is_err());
    }
}

#[test]
fn a_failed_write_poisons_because_nobody_knows_what_it_left() {
    let fails = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&fails);
    let fs = HookFs::new(HeapFs::new(), move |operation, name| {
        let is_it = operation == "write" && name.starts_with("data");
        if is_it && flag.load(Ordering::SeqCst) { Err(io::Error::other("EIO")) } else { Ok(()) }
    });
    let store = options(fs, Durability::Sync).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    fails.store(true, Ordering::SeqCst);
    let refusal = orders.claim("a", None).unwrap_err();
    assert!(matches!(refusal, ClaimError::Store(StoreError::Unknown { .. })), "{refusal}");
    fails.store(false, Ordering::SeqCst);
    let refusal = orders.claim("b", None).unwrap_err();
    assert!(matches!(refusal, ClaimError::Store(StoreError::Poisoned { .. })), "{refusal}");
}

#[test]
fn promises_of_threads_and_types_hold() {
    fn is_shared<T: Clone + Send + Sync>() {}
    fn is_sent<T: Send>() {}
    is_shared::<Store>();
    is_shared::<refrain::Namespace>();
    is_sent::<refrain::Lease>();
    is_sent::<refrain::Commit<refrain::Claim, ClaimError>>();
}

/// Renewals wait for no disk. While they came more often than every 10 ms nothing made them durable in a `Sync` store, for
/// as long as that went on: after a power cut a claim that was held all the time was forgotten.
#[test]
fn what_waits_for_no_disk_is_durable_soon_however_busy_a_store_is() {
    let (disk, clock) = (SimDisk::new(1), SimClock::new());
    let options = || {
        let options = Options::new("unused").file_system(disk.mount()).clock(clock.clone());
        options.segment_bytes(256 << 10).manual_maintenance(true)
    };
    let store = options().open().unwrap();
    let policy = Policy::default().lease(Duration::from_secs(1)).late_grace(Duration::ZERO);
    let orders = store.define("orders", &policy).unwrap();
    let mut lease = orders.claim("key", None).unwrap().acquired().unwrap();
    for _ in 0..1000 {
        clock.advance(Duration::from_millis(5));
        lease.renew().unwrap();
        store.maintain(Duration::MAX);
        let age = store.health().sync_age.unwrap();
        assert!(age <= Duration::from_millis(110), "{age:?}");
    }
    disk.cut_keeping(|_| false);
    drop(lease);
    store.abandon();
    let store = options().open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let lease = orders.claim("key", None).unwrap().acquired().unwrap();
    assert_eq!(lease.attempt(), 2);
}
