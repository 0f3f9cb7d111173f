//! A panic that is not the store's: of whoever holds something of it, or of a waker.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use refrain::testing::HeapFs;
use refrain::{Claim, ClaimOptions, Durability, Lease, Namespace, Options, Store};

const HOUR: Duration = Duration::from_secs(3600);

fn open() -> (Store, Namespace) {
    let store = Options::new("unused").file_system(HeapFs::new()).open().unwrap();
    let space = store.namespace("space").unwrap();
    (store, space)
}

/// Calls what panics, and drops what it holds on the way.
fn panics(call: impl FnOnce()) {
    catch_unwind(AssertUnwindSafe(call)).unwrap_err();
}

fn works(store: &Store, space: &Namespace) {
    assert!(store.poisoned().is_none());
    let claim = space.claim("another", None);
    assert!(matches!(claim, Ok(Claim::Acquired(_))), "{claim:?}");
}

/// What many write: the lease is given back when the work fails, however it fails.
struct GivenBack(Option<Lease>);

impl Drop for GivenBack {
    fn drop(&mut self) {
        self.0.take().unwrap().release().unwrap();
    }
}

struct Looks(Store);

impl Drop for Looks {
    fn drop(&mut self) {
        assert_eq!(self.0.stats().entries, 0);
    }
}

#[test]
fn what_a_panic_drops_harms_nobody() {
    let (store, space) = open();
    let held = space.claim("held", None).unwrap();
    panics(|| {
        let mut wait = pin!(space.claim_or_wait("held", &ClaimOptions::new(), HOUR));
        let mut context = Context::from_waker(Waker::noop());
        assert!(wait.as_mut().poll(&mut context).is_pending());
        panic!("not the store's fault");
    });
    works(&store, &space);
    drop(held);
    panics(|| {
        let _lease = GivenBack(space.claim("key", None).unwrap().acquired());
        panic!("not the store's fault");
    });
    assert!(matches!(space.claim("key", None), Ok(Claim::Acquired(_))), "it was given back");
    let (store, space) = open();
    panics(|| {
        let _looks = Looks(store.clone());
        panic!("not the store's fault");
    });
    works(&store, &space);
}

#[test]
fn a_store_that_a_panic_drops_is_ended_in_order() {
    let fs = HeapFs::new();
    let open = || Options::new("unused").file_system(fs.clone()).open().unwrap();
    panics(|| {
        let store = open();
        let space = store.namespace("space").unwrap();
        space.claim("key", None).unwrap().acquired().unwrap().complete("outcome").unwrap();
        panic!("not the store's fault");
    });
    let store = open();
    assert!(store.report().clean && !store.report().was_poisoned);
}

/// Panics when it is called.
struct Bad(Arc<AtomicBool>);

impl Wake for Bad {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
        panic!("a bad waker");
    }
}

struct Good(AtomicBool);

impl Wake for Good {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn begin<F: Future>(future: F, waker: &Waker) -> Pin<Box<F>> {
    let mut future = Box::pin(future);
    assert!(future.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
    future
}

/// A bad waker, and whether it was called; and a good one.
fn wakers() -> (Waker, Arc<AtomicBool>, Waker, Arc<Good>) {
    let is_called = Arc::new(AtomicBool::new(false));
    let good = Arc::new(Good(AtomicBool::new(false)));
    let bad = Waker::from(Arc::new(Bad(Arc::clone(&is_called))));
    (bad, is_called, Waker::from(Arc::clone(&good)), good)
}

#[test]
fn a_bad_waker_keeps_nobody_asleep_whose_key_is_completed() {
    let (store, space) = open();
    let lease = space.claim("key", None).unwrap().acquired().unwrap();
    let (bad, is_called, waker, good) = wakers();
    let ask = || space.claim_or_wait("key", &ClaimOptions::new(), HOUR);
    let (_first, mut second) = (begin(ask(), &bad), begin(ask(), &waker));
    lease.complete("done").unwrap();
    assert!(is_called.load(Ordering::SeqCst) && good.0.load(Ordering::SeqCst));
    let answer = second.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(matches!(answer, Poll::Ready(Ok(Claim::Completed(_)))), "{answer:?}");
    works(&store, &space);
}

#[test]
fn a_bad_waker_keeps_nobody_asleep_who_waits_for_its_round() {
    let fs = HeapFs::new();
    let options = Options::new("unused").file_system(fs).manual_maintenance(true);
    let store = options.open().unwrap();
    let space = store.namespace("space").unwrap();
    let (bad, is_called, waker, good) = wakers();
    let ask = |key: &str| space.claim_async(key, &ClaimOptions::new());
    let (_first, _second) = (begin(ask("a"), &bad), begin(ask("b"), &waker));
    store.flush().unwrap();
    assert!(is_called.load(Ordering::SeqCst) && good.0.load(Ordering::SeqCst));
    works(&store, &space);
}

/// The store's thread calls wakers, too, and goes on: an interval is a promise.
#[test]
fn a_bad_waker_does_not_end_the_stores_thread() {
    let interval = Durability::Interval(Duration::from_millis(20));
    let options = Options::new("unused").file_system(HeapFs::new()).durability(interval);
    let store = options.open().unwrap();
    let space = store.namespace("space").unwrap();
    let short = ClaimOptions::new().lease(Duration::from_millis(100));
    let _held = space.claim_with("key", &short).unwrap().acquired().unwrap();
    let (bad, is_called, ..) = wakers();
    let _wait = begin(space.claim_or_wait("key", &ClaimOptions::new(), HOUR), &bad);
    let wait = || {
        assert!(store.poisoned().is_none());
        thread::sleep(Duration::from_millis(1));
    };
    while !is_called.load(Ordering::SeqCst) {
        wait();
    }
    for n in 0..5 {
        let before = store.stats().rounds;
        let claim = space.claim(format!("{n}"), None).unwrap().acquired().unwrap();
        claim.complete("done").unwrap();
        while store.stats().rounds == before {
            wait();
        }
    }
    assert!(store.poisoned().is_none());
}
