//! Foreign code: a panic that is not the store's, of whoever holds something of it or of a waker; and a waker that
//! drops the store.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use refrain::testing::{HeapFs, SimClock};
use refrain::{
    Claim, ClaimError, ClaimOptions, Commit, Durability, Lease, Namespace, Options, Store,
};
use support::disk::HookFs;

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

/// What holds a store open.
type Holds = (Commit<Claim, ClaimError>, Namespace, Store);

/// A task that is dropped when it is woken, with the last of what holds its store open.
struct Dropped {
    task: Mutex<Option<Holds>>,
    is_gone: AtomicBool,
}

impl Wake for Dropped {
    fn wake(self: Arc<Self>) {
        drop(self.task.lock().unwrap().take());
        self.is_gone.store(true, Ordering::SeqCst);
    }
}

/// The store's thread calls the waker in the midst of a look, in which it would go on to write the time down.
#[test]
fn nothing_is_written_to_a_store_that_its_own_thread_has_ended() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let dropped = Arc::new(Dropped { task: Mutex::new(None), is_gone: AtomicBool::new(false) });
    let late = Arc::new(Mutex::new(vec![]));
    let (task, seen) = (Arc::clone(&dropped), Arc::clone(&late));
    let hooked = HookFs::new(fs.clone(), move |operation, name| {
        let changes =
            matches!(operation, "write" | "sync" | "create" | "fill" | "remove" | "rename");
        if changes && task.is_gone.load(Ordering::SeqCst) {
            seen.lock().unwrap().push(format!("{operation} {name}"));
        }
        Ok(())
    });
    let options = || Options::new("unused").segment_bytes(256 << 10).clock(clock.clone());
    let store = options().file_system(hooked).open().unwrap();
    let space = store.namespace("space").unwrap();
    clock.advance(Duration::from_secs(60));
    let mut commit = space.claim_async("key", &ClaimOptions::new());
    let mut task = dropped.task.lock().unwrap();
    let waker = Waker::from(Arc::clone(&dropped));
    assert!(Pin::new(&mut commit).poll(&mut Context::from_waker(&waker)).is_pending());
    *task = Some((commit, space, store));
    drop(task);
    // Its directory is free when the thread has ended.
    let store = loop {
        match options().file_system(fs.clone()).open() {
            Ok(store) => break store,
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    };
    assert!(dropped.is_gone.load(Ordering::SeqCst));
    assert!(store.report().clean);
    let late = late.lock().unwrap();
    assert!(late.is_empty(), "{late:?}");
}
