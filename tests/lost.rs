//! A lease that is lost: who is told, when, and what renews it in time.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

use refrain::testing::{HeapFs, SimClock};
use refrain::{
    Claim, ClaimError, ClaimOptions, Durability, Lease, LeaseError, Lookup, Lost, Namespace,
    OnLeaseEnd, Options, Policy, Resolution, Store, StoreError,
};
use support::disk::HookFs;
use support::task::Task;

const SECOND: Duration = Duration::from_secs(1);

fn open(clock: &SimClock) -> (Store, Namespace) {
    let options = Options::in_memory().clock(clock.clone()).max_waiters(1, 1, 1);
    let store = options.manual_maintenance(true).open().unwrap();
    let space = store.define("space", &Policy::default().lease(30 * SECOND)).unwrap();
    (store, space)
}

fn claim(space: &Namespace, key: &str) -> Lease {
    space.claim(key, None).unwrap().acquired().unwrap()
}

/// Moves the clock, and maintains the store at each tenth of a second.
fn pass(store: &Store, clock: &SimClock, time: Duration) {
    for _ in 0..time.as_millis() / 100 {
        clock.advance(SECOND / 10);
        store.maintain(Duration::MAX);
    }
}

#[test]
fn a_lease_is_current_until_somebody_takes_the_key() {
    let clock = SimClock::new();
    let (_store, space) = open(&clock);
    let lease = claim(&space, "key");
    assert!(lease.is_current().unwrap());
    clock.advance(31 * SECOND);
    assert!(lease.is_current().unwrap(), "it can still be completed");
    let other = claim(&space, "key");
    assert!(!lease.is_current().unwrap());
    assert!(other.is_current().unwrap());
    space.forget("key", "no reason", "nobody").unwrap();
    assert!(!other.is_current().unwrap());
}

#[test]
fn whatever_ends_a_claim_is_told_at_once() {
    let clock = SimClock::new();
    let (store, space) = open(&clock);
    let end = |lease: &Lease, how: &str| {
        let (key, token) = (lease.key(), lease.token());
        match how {
            "complete" => assert!(space.complete(key, token, "done").is_ok()),
            "release" => space.release(key, token).unwrap(),
            "park" => space.park(key, token).unwrap(),
            _ => assert!(space.forget(key, "", "").unwrap().is_some()),
        }
    };
    for name in ["complete", "release", "park", "forget"] {
        let lease = claim(&space, name);
        let mut lost = Task::new(lease.lost()).begun();
        assert_eq!(lost.woken(), 0, "{name}");
        end(&lease, name);
        assert_eq!(lost.woken(), 1, "{name}");
        let told = lost.ready();
        assert!(matches!(told, Lost::Ended), "{name}: {told:?}");
        let late = Task::new(lease.lost()).ready();
        assert!(matches!(late, Lost::Ended), "{name}: {late:?}");
    }
    assert_eq!(store.stats().waiters, 0);
}

#[test]
fn the_end_of_its_time_and_who_takes_over_are_told() {
    let clock = SimClock::new();
    let (store, space) = open(&clock);
    let mut lease = claim(&space, "key");
    let mut lost = Task::new(lease.lost()).begun();
    pass(&store, &clock, 20 * SECOND);
    lease.renew().unwrap();
    pass(&store, &clock, 29 * SECOND);
    assert_eq!(lost.woken(), 0, "the renewal put it off");
    pass(&store, &clock, 2 * SECOND);
    assert_eq!(lost.woken(), 1);
    assert!(matches!(lost.ready(), Lost::LeaseEnded));
    // It is his as long as nobody takes the key.
    lease.renew().unwrap();
    let mut lost = Task::new(lease.lost()).begun();
    clock.advance(31 * SECOND);
    let other = claim(&space, "key");
    assert_eq!(lost.woken(), 1);
    let told = lost.ready();
    assert!(matches!(told, Lost::Fenced { current } if current == other.token()), "{told:?}");
}

#[test]
fn an_operator_who_decides_is_told_of() {
    let clock = SimClock::new();
    let (store, space) = open(&clock);
    let policy = Policy::default().lease(30 * SECOND).on_lease_end(OnLeaseEnd::Park);
    let parks = store.define("parks", &policy).unwrap();
    let lease = claim(&parks, "key");
    clock.advance(31 * SECOND);
    parks.resolve("key", lease.token(), &Resolution::NotDone, "a test", "nobody").unwrap();
    assert!(matches!(Task::new(lease.lost()).ready(), Lost::Ended | Lost::Fenced { .. }));
    drop((lease, space));
}

#[test]
fn who_holds_a_key_takes_no_place_from_those_who_wait() {
    let clock = SimClock::new();
    let (store, space) = open(&clock);
    let lease = claim(&space, "key");
    let watches: Vec<_> = (0..5).map(|_| Task::new(lease.lost()).begun()).collect();
    assert_eq!(store.stats().waiters, 0);
    let wait = space.claim_or_wait("key", &ClaimOptions::new(), 60 * SECOND);
    let mut wait = Task::new(wait).begun();
    assert_eq!(store.stats().waiters, 1);
    lease.release().unwrap();
    assert!(matches!(wait.ready(), Ok(Claim::Acquired(_))));
    assert!(watches.iter().all(|watch| watch.woken() == 1));
    drop(watches);
    assert_eq!(store.stats().waiters, 0);
}

#[test]
fn a_store_that_is_closed_or_poisoned_says_so() {
    let clock = SimClock::new();
    let (store, space) = open(&clock);
    let mut lost = {
        let lease = claim(&space, "key");
        Task::new(lease.lost()).begun()
    };
    store.close().unwrap();
    assert_eq!(lost.woken(), 1);
    assert!(matches!(lost.ready(), Lost::Store(StoreError::Closed)));

    let is_broken = Arc::new(AtomicBool::new(false));
    let breaks = Arc::clone(&is_broken);
    let fs = HookFs::new(HeapFs::new(), move |operation, _| match operation {
        "sync" if breaks.load(Ordering::SeqCst) => Err(std::io::Error::other("broken")),
        _ => Ok(()),
    });
    let options = Options::new("unused").file_system(fs).manual_maintenance(true);
    let store = options.open().unwrap();
    let space = store.namespace("space").unwrap();
    let lease = claim(&space, "key");
    let mut lost = Task::new(lease.lost()).begun();
    is_broken.store(true, Ordering::SeqCst);
    space.claim("another", None).unwrap_err();
    store.maintain(Duration::MAX);
    assert_eq!(lost.woken(), 1);
    assert!(matches!(lost.ready(), Lost::Store(StoreError::Poisoned { .. })));
    assert!(lease.is_current().is_err());
}

#[test]
fn a_thread_can_wait_for_it() {
    let store = Options::in_memory().open().unwrap();
    let space = store.namespace("space").unwrap();
    let lease = claim(&space, "key");
    let lost = lease.lost();
    thread::scope(|scope| {
        let waiting = scope.spawn(move || lost.wait());
        space.release("key", lease.token()).unwrap();
        let told = waiting.join().unwrap();
        assert!(matches!(told, Lost::Ended), "{told:?}");
    });
    // A deadline that comes by itself.
    let short = ClaimOptions::new().lease(SECOND / 10);
    let lease = space.claim_with("key", &short).unwrap().acquired().unwrap();
    assert!(matches!(lease.lost().wait(), Lost::LeaseEnded));
}

#[test]
fn a_renewer_renews_at_each_third_of_the_lease_and_no_oftener() {
    let clock = SimClock::new();
    let (store, space) = open(&clock);
    let lease = claim(&space, "key");
    let mut renewing = Task::new(lease.renewer().run()).begun();
    let deadline = || match space.claim("key", None).unwrap() {
        Claim::InProgress(holder) => holder.lease_left(),
        other => panic!("{other:?}"),
    };
    let mut renewals = 0;
    for _ in 0..600 {
        pass(&store, &clock, SECOND / 2);
        if renewing.woken() > 0 {
            let before = deadline();
            assert!(renewing.poll().is_pending());
            renewals += u32::from(deadline() > before);
        }
        assert!(deadline() >= 19 * SECOND, "{:?}", deadline());
    }
    // One in ten seconds of three hundred, a little late each time.
    assert!((28..=30).contains(&renewals), "{renewals}");
    assert!(lease.is_current().unwrap());
    lease.complete("done").unwrap();
    assert_eq!(renewing.woken(), 1);
    let error = renewing.ready();
    assert!(matches!(error, LeaseError::Completed), "{error:?}");
}

#[test]
fn a_renewer_renews_for_the_time_it_is_told() {
    let clock = SimClock::new();
    let (store, space) = open(&clock);
    let lease = claim(&space, "key");
    let mut renewing = Task::new(lease.renewer().lease(300 * SECOND).run()).begun();
    pass(&store, &clock, 11 * SECOND);
    assert!(renewing.poll().is_pending());
    let Claim::InProgress(holder) = space.claim("key", None).unwrap() else { panic!("free") };
    assert!(holder.lease_left() > 299 * SECOND, "{:?}", holder.lease_left());
    // What contradicts the policy is said at the first renewal.
    let never = lease.renewer().lease(SECOND / 1000).run();
    clock.advance(150 * SECOND);
    let error = Task::new(never).ready();
    assert!(matches!(error, LeaseError::Times(_)), "{error:?}");
}

#[test]
fn a_renewer_that_comes_late_is_told_what_a_renewal_would_be() {
    let clock = SimClock::new();
    let (store, space) = open(&clock);
    let lease = claim(&space, "key");
    let mut renewing = Task::new(lease.renewer().run()).begun();
    clock.advance(60 * SECOND);
    // Nobody has come.
    assert!(renewing.poll().is_pending());
    clock.advance(60 * SECOND);
    let other = claim(&space, "key");
    assert_eq!(renewing.woken(), 1);
    let error = renewing.ready();
    let is_fenced = matches!(error, LeaseError::Fenced { current, .. } if current == other.token());
    assert!(is_fenced, "{error:?}");
    drop((store, lease));
}

#[test]
fn a_renewer_tries_on_in_a_full_store_until_the_lease_is_over() {
    for has_room_in_time in [true, false] {
        let clock = SimClock::new();
        let options = Options::new("unused").file_system(HeapFs::new()).clock(clock.clone());
        let options = options.segment_bytes(256 << 10).max_disk_bytes(12 * (256 << 10));
        let options = options.durability(Durability::Buffered).manual_maintenance(true);
        let store = options.open().unwrap();
        let space = store.define("space", &Policy::default().lease(30 * SECOND)).unwrap();
        let lease = claim(&space, "key");
        let mut renewing = Task::new(lease.renewer().run()).begun();
        let mut held = vec![];
        loop {
            match space.claim(format!("{}", held.len()), None) {
                Ok(claim) => held.push(claim.acquired().unwrap()),
                Err(error) => break assert!(matches!(error, ClaimError::Full { .. }), "{error:?}"),
            }
        }
        let left = || match space.claim("key", None).unwrap() {
            Claim::InProgress(holder) => holder.lease_left(),
            other => panic!("{other:?}"),
        };
        clock.advance(11 * SECOND);
        assert!(renewing.poll().is_pending());
        assert!(left() > 29 * SECOND, "room was kept for one renewal");
        clock.advance(11 * SECOND);
        assert!(renewing.poll().is_pending());
        assert!(left() <= 19 * SECOND, "there is none for another");
        if has_room_in_time {
            held.into_iter().for_each(|lease| lease.release().unwrap());
            pass(&store, &clock, 2 * SECOND);
            assert!(renewing.woken() > 0);
            assert!(renewing.poll().is_pending());
            assert!(left() > 28 * SECOND, "{:?}", left());
        } else {
            clock.advance(20 * SECOND);
            let error = renewing.ready();
            assert!(matches!(error, LeaseError::Full { .. }), "{error:?}");
        }
    }
}

/// However long it takes: nobody else takes the key.
fn await_renewal(space: &Namespace, key: &str) {
    let deadline = || match space.lookup(key).unwrap() {
        Lookup::InProgress(holder) => holder.deadline(),
        _ => None,
    };
    let before = deadline();
    while deadline() <= before {
        thread::sleep(SECOND / 1000);
    }
}

/// The store's thread, which wakes whoever waits for a time, is itself waiting for the disk.
#[test]
fn a_renewer_in_a_thread_renews_beside_a_sync_that_hangs() {
    let is_slow = Arc::new(AtomicBool::new(false));
    let (slow, hangs) = (Arc::clone(&is_slow), Arc::new(AtomicBool::new(false)));
    let is_hanging = Arc::clone(&hangs);
    let fs = HookFs::new(HeapFs::new(), move |operation, _| {
        if operation == "sync" && slow.load(Ordering::SeqCst) {
            is_hanging.store(true, Ordering::SeqCst);
            for _ in 0..20_000 {
                if !slow.load(Ordering::SeqCst) {
                    break;
                }
                thread::sleep(SECOND / 1000);
            }
            is_hanging.store(false, Ordering::SeqCst);
        }
        Ok(())
    });
    let interval = Durability::Interval(SECOND / 50);
    let store = Options::new("unused").file_system(fs).durability(interval).open().unwrap();
    let space = store.define("space", &Policy::default().lease(SECOND)).unwrap();
    let lease = claim(&space, "key");
    let renewer = lease.renewer().in_thread().unwrap();
    is_slow.store(true, Ordering::SeqCst);
    let buffered = ClaimOptions::new().buffered();
    let _another = space.claim_with("another", &buffered).unwrap();
    while !hangs.load(Ordering::SeqCst) {
        thread::yield_now();
    }
    for _ in 0..2 {
        await_renewal(&space, "key");
        assert!(hangs.load(Ordering::SeqCst), "it renewed when the sync was over");
    }
    is_slow.store(false, Ordering::SeqCst);
    assert!(renewer.lost().is_none());
}

/// A task that owns its handles, and is dropped when it is woken.
struct Dropped(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Wake for Dropped {
    fn wake(self: Arc<Self>) {
        let task = self.0.lock().unwrap().take();
        task.into_iter().for_each(|task| task());
    }
}

#[test]
fn a_renewers_thread_may_be_dropped_on_the_stores_thread_behind_everything_else() {
    let store = Options::in_memory().open().unwrap();
    let space = store.namespace("space").unwrap();
    let lease = claim(&space, "key");
    let renewer = lease.renewer().in_thread().unwrap();
    let short = ClaimOptions::new().lease(SECOND / 5);
    let short = space.claim_with("short", &short).unwrap().acquired().unwrap();
    let mut lost = Box::pin(short.lost());
    let (tell, told) = mpsc::channel();
    let task = Arc::new(Dropped(Mutex::new(None)));
    let waker = Waker::from(Arc::clone(&task));
    assert!(lost.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    *task.0.lock().unwrap() = Some(Box::new(move || {
        drop((lost, short, lease, space, store));
        drop(renewer);
        tell.send(()).unwrap();
    }));
    drop((task, waker));
    told.recv_timeout(60 * SECOND).expect("two threads wait for one another");
}

#[test]
fn a_renewer_that_is_dropped_leaves_nothing_behind() {
    let clock = SimClock::new();
    let (store, space) = open(&clock);
    let lease = claim(&space, "key");
    drop(Task::new(lease.renewer().run()).begun());
    clock.advance(31 * SECOND);
    store.maintain(Duration::MAX);
    assert_eq!(claim(&space, "key").attempt(), 2);
    drop(lease);
}

#[test]
fn a_thread_renews_until_the_lease_is_lost_or_it_is_dropped() {
    let store = Options::in_memory().open().unwrap();
    let space = store.namespace("space").unwrap();
    let short = ClaimOptions::new().lease(SECOND);
    let lease = space.claim_with("key", &short).unwrap().acquired().unwrap();
    let renewer = lease.renewer().lease(SECOND).in_thread().unwrap();
    for _ in 0..3 {
        await_renewal(&space, "key");
    }
    assert!(renewer.lost().is_none());
    space.forget("key", "", "").unwrap();
    let error = loop {
        match renewer.lost() {
            Some(error) => break error,
            None => thread::yield_now(),
        }
    };
    assert!(matches!(error, LeaseError::Forgotten { .. }), "{error:?}");
    drop(renewer);
    let other = claim(&space, "other");
    drop(other.renewer().in_thread().unwrap());
    drop((lease, other));
    store.close().unwrap();
}
