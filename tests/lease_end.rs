//! Waiting for the end of a lease.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use refrain::testing::SimClock;
use refrain::{ClaimOptions, Lease, Namespace, Options, Store};

const SECOND: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Count(AtomicU32);

impl Count {
    fn woken(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

fn store(clock: &SimClock) -> (Store, Namespace) {
    let store = Options::in_memory().clock(clock.clone()).manual_maintenance(true).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    (store, orders)
}

fn claim(orders: &Namespace, key: &str, lease: Duration) -> Lease {
    let options = ClaimOptions::new().lease(lease);
    orders.claim_with(key, &options).unwrap().acquired().unwrap()
}

#[test]
fn it_is_told_at_the_deadline_and_not_before_however_often_it_was_renewed() {
    let clock = SimClock::new();
    let (store, orders) = store(&clock);
    let mut lease = claim(&orders, "a", 10 * SECOND);
    let count = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&count));
    let mut context = Context::from_waker(&waker);
    let mut ended = pin!(lease.ended());
    assert!(ended.as_mut().poll(&mut context).is_pending());
    assert!(store.maintain(Duration::MAX).unwrap() <= 10 * SECOND);
    clock.advance(5 * SECOND);
    lease.renew_for(20 * SECOND).unwrap();
    orders.renew_for("a", lease.token(), 60 * SECOND).unwrap();
    let mut woken = 0;
    // A millisecond before the end, in steps of 11.
    for _ in 0..(59_999 / 11) {
        clock.advance(Duration::from_millis(11));
        store.maintain(Duration::MAX);
        if count.woken() > woken {
            woken = count.woken();
            assert!(ended.as_mut().poll(&mut context).is_pending());
        }
    }
    assert!(woken <= 2, "woken {woken} times for three deadlines");
    clock.advance(Duration::from_millis(25));
    store.maintain(Duration::MAX);
    assert_eq!(count.woken(), woken + 1);
    assert!(ended.as_mut().poll(&mut context).is_ready());
    // Over is not lost.
    lease.complete("late, and still the only one").unwrap();
}

#[test]
fn a_claim_that_ended_some_other_way_has_no_lease() {
    let clock = SimClock::new();
    let (_store, orders) = store(&clock);
    let mut context = Context::from_waker(Waker::noop());
    let lease = claim(&orders, "completed", SECOND);
    let ended = lease.ended();
    lease.complete("outcome").unwrap();
    assert!(pin!(ended).poll(&mut context).is_ready());
    let lease = claim(&orders, "taken over", SECOND);
    clock.advance(2 * SECOND);
    let second = claim(&orders, "taken over", SECOND);
    assert!(pin!(lease.ended()).poll(&mut context).is_ready());
    assert!(pin!(second.ended()).poll(&mut context).is_pending());
}

/// Its thread sleeps when nothing is written; who waits must not sleep with it.
#[test]
fn an_idle_store_wakes_who_waits() {
    let store = Store::in_memory().unwrap();
    let orders = store.namespace("orders").unwrap();
    let start = Instant::now();
    let leases: Vec<_> = [900, 300, 600]
        .map(|ms| claim(&orders, &ms.to_string(), Duration::from_millis(ms)))
        .into_iter()
        .collect();
    thread::sleep(SECOND / 10);
    for lease in &leases {
        block_on(lease.ended());
    }
    assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
}

#[test]
fn a_store_that_is_closed_keeps_nobody_waiting() {
    for is_abandoned in [false, true] {
        let clock = SimClock::new();
        let (store, orders) = store(&clock);
        let lease = claim(&orders, "a", SECOND);
        let ended = lease.ended();
        drop(lease);
        let waits = thread::spawn(move || block_on(ended));
        thread::sleep(SECOND / 20);
        if is_abandoned {
            store.abandon();
        } else {
            store.close().unwrap();
        }
        waits.join().unwrap();
    }
}
