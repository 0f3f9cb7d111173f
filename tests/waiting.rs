//! Waiting for a key that somebody else holds: who is woken by what, and who is not.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use refrain::testing::{HeapFs, SimClock};
use refrain::{
    Body, Claim, ClaimError, ClaimOptions, ClaimWait, Fingerprint, FingerprintRule, Lease, Lookup,
    Namespace, OnLeaseEnd, OpenError, OptionProblem, Options, Policy, Resolution, Store,
    StoreError, WaitError, WaiterScope,
};
use support::disk::HookFs;
use support::task::Task;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn open(clock: &SimClock) -> (Store, Namespace) {
    open_with(clock, |options| options)
}

fn open_with(clock: &SimClock, with: impl FnOnce(Options) -> Options) -> (Store, Namespace) {
    let options = Options::in_memory().clock(clock.clone()).manual_maintenance(true);
    let store = with(options).open().unwrap();
    let space = store.namespace("space").unwrap();
    (store, space)
}

fn lease(space: &Namespace, key: &str, lease: Duration) -> Lease {
    let options = ClaimOptions::new().lease(lease);
    space.claim_with(key, &options).unwrap().acquired().unwrap()
}

fn wait(space: &Namespace, key: &str) -> Task<ClaimWait> {
    Task::new(space.claim_or_wait(key, &ClaimOptions::new(), HOUR)).begun()
}

fn tick(store: &Store, clock: &SimClock, time: Duration) {
    clock.advance(time);
    store.maintain(Duration::MAX);
}

#[test]
fn a_completion_wakes_all_with_the_same_bytes() {
    let (store, space) = open(&SimClock::new());
    let held = lease(&space, "key", 10 * SECOND);
    let mut tasks: Vec<_> = (0..5).map(|_| wait(&space, "key")).collect();
    let other = lease(&space, "other", 10 * SECOND);
    let mut elsewhere = wait(&space, "other");
    assert_eq!(store.stats().waiters, 6);
    held.complete("outcome").unwrap();
    assert!(tasks.iter().all(|task| task.woken() == 1), "before any of them looks");
    for task in &mut tasks {
        let outcome = task.ready().unwrap().completed().unwrap();
        assert_eq!(outcome.body(), Body::Bytes(b"outcome"));
    }
    assert_eq!(elsewhere.woken(), 0, "another key");
    other.complete("another").unwrap();
    assert!(elsewhere.ready().unwrap().completed().is_some());
    assert_eq!(store.stats().waiters, 0);
}

#[test]
fn a_key_that_is_free_or_done_is_not_waited_for() {
    let (store, space) = open(&SimClock::new());
    let mut first = Task::new(space.claim_or_wait("key", &ClaimOptions::new(), HOUR));
    first.ready().unwrap().acquired().unwrap().complete("outcome").unwrap();
    let mut second = Task::new(space.claim_or_wait("key", &ClaimOptions::new(), HOUR));
    assert!(second.ready().unwrap().completed().is_some());
    assert_eq!(store.stats().waiters, 0);
}

#[test]
fn each_way_to_free_a_key_wakes_one_heir_in_turn() {
    let clock = SimClock::new();
    let (store, space) = open(&clock);
    let mut held = lease(&space, "key", 10 * SECOND);
    let mut heirs: Vec<_> = (0..4).map(|_| wait(&space, "key")).collect();
    let ways: [fn(&Namespace, &Store, &SimClock, Lease); 4] = [
        |_, _, _, lease| lease.release().unwrap(),
        |space, _, _, _| assert!(space.forget("key", "", "").unwrap().is_some()),
        |_, store, clock, lease| {
            let left = lease.lease_left();
            drop(lease);
            tick(store, clock, left + SECOND / 10);
        },
        |space, _, _, lease| {
            space.park("key", lease.token()).unwrap();
            space.resolve("key", lease.token(), &Resolution::NotDone, "a test", "nobody").unwrap();
        },
    ];
    for (turn, way) in ways.into_iter().enumerate() {
        let attempts = held.attempt();
        way(&space, &store, &clock, held);
        let woken: Vec<_> = heirs.iter().map(Task::woken).collect();
        if turn < 3 {
            assert_eq!(woken.iter().sum::<u32>(), 1, "turn {turn}: {woken:?}");
        }
        assert_eq!(woken[0], 1, "turn {turn}: {woken:?}");
        held = heirs.remove(0).ready().unwrap().acquired().unwrap();
        assert_eq!(held.attempt(), if turn == 2 { attempts + 1 } else { 1 }, "turn {turn}");
        // What parking said to the others: they look, and wait for the next claim.
        heirs.iter_mut().for_each(|heir| assert!(heir.poll().is_pending()));
        assert!(heirs.iter().all(|heir| heir.woken() == 0));
    }
    assert_eq!(store.stats().waiters, 0);
}

#[test]
fn the_end_of_a_lease_is_told_to_one_and_later_to_the_next() {
    let clock = SimClock::new();
    let (store, space) = open(&clock);
    let held = lease(&space, "key", 10 * SECOND);
    let mut heirs: Vec<_> = (0..3).map(|_| wait(&space, "key")).collect();
    tick(&store, &clock, 10 * SECOND - SECOND / 20);
    assert!(heirs.iter().all(|heir| heir.woken() == 0), "not before the end");
    tick(&store, &clock, SECOND / 10);
    assert_eq!(heirs.iter().map(Task::woken).collect::<Vec<_>>(), [1, 0, 0]);
    // The first does not come: the key is offered to the second, and so on.
    tick(&store, &clock, SECOND / 10);
    assert_eq!(heirs.iter().map(Task::woken).collect::<Vec<_>>(), [0, 0, 0]);
    tick(&store, &clock, SECOND / 4);
    assert_eq!(heirs.iter().map(Task::woken).collect::<Vec<_>>(), [0, 1, 0]);
    let second = heirs[1].ready().unwrap().acquired().unwrap();
    assert_eq!(second.attempt(), 2);
    assert!(heirs[0].poll().is_pending());
    // And all over again with the new lease.
    drop((held, second));
    tick(&store, &clock, 31 * SECOND);
    assert_eq!([heirs[0].woken(), heirs[2].woken()], [1, 0]);
    assert_eq!(heirs[0].ready().unwrap().acquired().unwrap().attempt(), 3);
}

#[test]
fn a_lease_that_is_renewed_is_waited_for_longer() {
    let clock = SimClock::new();
    let (store, space) = open(&clock);
    let mut held = lease(&space, "key", 10 * SECOND);
    let mut heir = wait(&space, "key");
    clock.advance(5 * SECOND);
    held.renew_for(60 * SECOND).unwrap();
    for _ in 0..59 {
        tick(&store, &clock, SECOND);
        assert_eq!(heir.woken(), 0);
    }
    tick(&store, &clock, 2 * SECOND);
    assert_eq!(heir.woken(), 1);
    assert!(heir.ready().unwrap().acquired().is_some());
}

/// A claim with a short lease in place of a long one that was given back: its end comes first.
#[test]
fn a_shorter_lease_in_between_is_not_slept_through() {
    let clock = SimClock::new();
    let (store, space) = open(&clock);
    let long = lease(&space, "key", HOUR);
    let [first, mut second] = [(); 2].map(|()| wait(&space, "key"));
    long.release().unwrap();
    drop(lease(&space, "key", SECOND));
    // The first was called, and has not come: nobody but the clock will call again.
    assert_eq!([first.woken(), second.woken()], [1, 0]);
    tick(&store, &clock, 2 * SECOND);
    assert_eq!([first.woken(), second.woken()], [0, 1]);
    assert!(second.ready().unwrap().acquired().is_some());
    let short = lease(&space, "another", HOUR);
    let mut heir = wait(&space, "another");
    short.release().unwrap();
    drop(lease(&space, "another", SECOND));
    assert!(heir.poll().is_pending());
    tick(&store, &clock, 2 * SECOND);
    assert!(heir.woken() > 0 && heir.ready().unwrap().acquired().is_some());
}

#[test]
fn an_heir_that_was_called_and_gives_up_passes_it_on() {
    let clock = SimClock::new();
    let (store, space) = open(&clock);
    let held = lease(&space, "key", 10 * SECOND);
    let [first, mut second, third] = [(); 3].map(|()| wait(&space, "key"));
    drop(third);
    held.release().unwrap();
    assert_eq!((first.woken(), second.woken()), (1, 0));
    drop(first);
    assert_eq!(second.woken(), 1);
    let lease = second.ready().unwrap().acquired().unwrap();
    assert_eq!(store.stats().waiters, 0);
    // Who gives up without having been called calls nobody.
    let [first, second] = [(); 2].map(|()| wait(&space, "key"));
    drop(first);
    assert_eq!(second.woken(), 0);
    lease.complete("outcome").unwrap();
    assert_eq!(second.woken(), 1);
}

#[test]
fn what_is_decided_is_told_to_all() {
    let clock = SimClock::new();
    let (store, space) = open(&clock);
    let parking = Policy::default().on_lease_end(OnLeaseEnd::Park);
    let strict = store.define("strict", &parking).unwrap();
    let held = lease(&space, "key", 10 * SECOND);
    let mut tasks = [(); 3].map(|()| wait(&space, "key"));
    held.park().unwrap();
    for task in &mut tasks {
        assert_eq!(task.woken(), 1);
        assert!(matches!(task.ready(), Ok(Claim::Parked(_))));
    }
    // A lease that ends under a rule that parks leaves the key to nobody.
    let held = lease(&strict, "key", 10 * SECOND);
    let mut tasks = [(); 3].map(|()| wait(&strict, "key"));
    tick(&store, &clock, 11 * SECOND);
    for task in &mut tasks {
        assert_eq!(task.woken(), 1);
        assert!(matches!(task.ready(), Ok(Claim::Parked(_))));
    }
    // The owner may still finish, and an operator may say how it ended.
    let token = held.token();
    strict.park("key", token).unwrap();
    let done = Resolution::Completed(refrain::CompleteOptions::body(b"by hand"));
    strict.resolve("key", token, &done, "a test", "nobody").unwrap();
    assert!(strict.claim("key", None).unwrap().completed().is_some());
    // A mark of `once` in place of a claim that lapsed.
    drop(lease(&space, "mark", SECOND));
    let mut tasks = [(); 3].map(|()| wait(&space, "mark"));
    clock.advance(2 * SECOND);
    assert!(matches!(space.once("mark", None), Ok(refrain::Once::First(_))));
    for task in &mut tasks {
        assert_eq!(task.woken(), 1);
        assert!(task.ready().unwrap().completed().is_some());
    }
}

#[test]
fn so_many_may_wait_and_no_more() {
    let clock = SimClock::new();
    let (store, space) = open_with(&clock, |options| options.max_waiters(2, 3, 4));
    let other = store.namespace("other").unwrap();
    let _leases: Vec<_> = ["a", "b", "c"].map(|key| lease(&space, key, SECOND)).into();
    let _other = lease(&other, "a", SECOND);
    let refused = |space: &Namespace, key: &str, scope, limit| {
        let mut task = Task::new(space.claim_or_wait(key, &ClaimOptions::new(), HOUR));
        let Err(ClaimError::TooManyWaiters(refusal)) = task.ready() else { panic!("admitted") };
        assert_eq!((refusal.scope, refusal.limit), (scope, limit));
        assert_eq!(task.woken(), 0);
    };
    let first = wait(&space, "a");
    let second = wait(&space, "a");
    refused(&space, "a", WaiterScope::Key, 2);
    let third = wait(&space, "b");
    refused(&space, "b", WaiterScope::Namespace, 3);
    refused(&space, "c", WaiterScope::Namespace, 3);
    let fourth = wait(&other, "a");
    refused(&other, "a", WaiterScope::Store, 4);
    drop(third);
    let third = wait(&other, "a");
    assert_eq!(store.stats().waiters, 4);
    drop((first, second, third, fourth));
    assert_eq!(store.stats().waiters, 0);
    let tasks = [wait(&space, "a"), wait(&space, "a"), wait(&space, "b"), wait(&other, "a")];
    refused(&other, "a", WaiterScope::Store, 4);
    drop(tasks);
    // Whoever was refused counts nowhere.
    let _another = lease(&other, "b", SECOND);
    let _tasks = [wait(&other, "a"), wait(&other, "a"), wait(&other, "b")];
    refused(&other, "b", WaiterScope::Namespace, 3);
    for limits in [(0, 1, 1), (2, 1, 5), (1, 3, 2)] {
        let (key, namespace, all) = limits;
        let refused = Options::in_memory().max_waiters(key, namespace, all).open();
        let Err(OpenError::Options(problems)) = refused else { panic!("{limits:?}") };
        assert!(matches!(problems[..], [OptionProblem::Waiters { .. }]), "{problems:?}");
    }
}

#[test]
fn when_the_time_is_over_the_holder_is_told() {
    let clock = SimClock::new();
    let (store, space) = open(&clock);
    let held = lease(&space, "key", HOUR);
    let wait = space.claim_or_wait("key", &ClaimOptions::new(), 2 * SECOND);
    let mut task = Task::new(wait).begun();
    tick(&store, &clock, SECOND);
    assert_eq!(task.woken(), 0);
    tick(&store, &clock, SECOND + SECOND / 10);
    assert_eq!(task.woken(), 1);
    let Ok(Claim::InProgress(holder)) = task.ready() else { panic!("not in progress") };
    assert_eq!(holder.token(), held.token());
    let mut at_once = Task::new(space.claim_or_wait("key", &ClaimOptions::new(), Duration::ZERO));
    assert!(matches!(at_once.ready(), Ok(Claim::InProgress(_))));
    let for_ever = space.claim_or_wait("key", &ClaimOptions::new(), Duration::MAX);
    let mut for_ever = Task::new(for_ever).begun();
    held.complete("outcome").unwrap();
    assert!(for_ever.ready().unwrap().completed().is_some());
    assert_eq!(store.stats().waiters, 0);
}

/// A call is one call, however often it looks.
#[test]
fn a_mismatch_of_who_waits_is_counted_once() {
    let (store, _) = open(&SimClock::new());
    let counting = Policy::default().fingerprint(FingerprintRule::Count);
    let space = store.define("counting", &counting).unwrap();
    let of = |payload: u8| ClaimOptions::new().fingerprint(Fingerprint::of(&[payload]));
    let held = space.claim_with("key", &of(1)).unwrap().acquired().unwrap();
    let mut task = Task::new(space.claim_or_wait("key", &of(2), HOUR)).begun();
    for _ in 0..5 {
        assert!(task.poll().is_pending());
    }
    held.complete("outcome").unwrap();
    assert!(task.ready().unwrap().completed().is_some());
    assert_eq!(space.fingerprint_mismatches(), 1);
}

#[test]
fn who_does_not_want_the_key_is_told_of_the_end_and_takes_nobodys_turn() {
    let clock = SimClock::new();
    let (store, space) = open(&clock);
    let held = lease(&space, "key", 10 * SECOND);
    let Ok(Claim::InProgress(holder)) = space.claim("key", None) else { panic!("free") };
    let mut looks = [(); 2].map(|()| Task::new(space.wait("key", &holder, HOUR)).begun());
    let mut heir = wait(&space, "key");
    let mut impatient = Task::new(space.wait("key", &holder, SECOND)).begun();
    tick(&store, &clock, 2 * SECOND);
    assert_eq!(impatient.woken(), 1);
    assert!(!impatient.ready().unwrap());
    held.release().unwrap();
    assert_eq!(heir.woken(), 1);
    for look in &mut looks {
        assert_eq!(look.woken(), 1);
        assert!(look.ready().unwrap());
    }
    let lease = heir.ready().unwrap().acquired().unwrap();
    // Of a claim that is over already.
    assert!(Task::new(space.wait("key", &holder, HOUR)).ready().unwrap());
    let Ok(Lookup::InProgress(holder)) = space.lookup("key") else { panic!("free") };
    let mut look = Task::new(space.wait("key", &holder, HOUR)).begun();
    lease.complete("outcome").unwrap();
    assert_eq!(look.woken(), 1);
    assert!(look.ready().unwrap());
    assert_eq!(store.stats().waiters, 0);
}

#[test]
fn closing_wakes_whoever_waits_and_a_wait_keeps_nothing_open() {
    let (store, space) = open(&SimClock::new());
    let held = lease(&space, "key", HOUR);
    let Ok(Claim::InProgress(holder)) = space.claim("key", None) else { panic!("free") };
    let mut task = wait(&space, "key");
    let mut look = Task::new(space.wait("key", &holder, HOUR)).begun();
    drop(held);
    store.close().unwrap();
    assert!(task.woken() > 0 && look.woken() > 0);
    assert!(matches!(task.ready(), Err(ClaimError::Store(StoreError::Closed))));
    assert!(matches!(look.ready(), Err(WaitError::Store(StoreError::Closed))));
}

/// Nobody waits for a store that can tell nothing any more.
#[test]
fn a_failed_sync_wakes_whoever_waits() {
    let is_broken = Arc::new(AtomicBool::new(false));
    let breaks = Arc::clone(&is_broken);
    let fs = HookFs::new(HeapFs::new(), move |operation, _| {
        let fails = operation == "sync" && breaks.load(Ordering::SeqCst);
        if fails { Err(std::io::Error::other("broken")) } else { Ok(()) }
    });
    let options = Options::new("unused").file_system(fs).manual_maintenance(true);
    let store = options.open().unwrap();
    let space = store.namespace("space").unwrap();
    let buffered = ClaimOptions::new().buffered();
    let _held = space.claim_with("key", &buffered).unwrap().acquired().unwrap();
    let mut task = Task::new(space.claim_or_wait("key", &buffered, HOUR)).begun();
    is_broken.store(true, Ordering::SeqCst);
    assert!(space.claim("another", None).is_err());
    store.maintain(Duration::MAX);
    assert!(task.woken() > 0);
    assert!(matches!(task.ready(), Err(ClaimError::Store(StoreError::Poisoned { .. }))));
}

/// An outcome is shown to nobody before it survives power loss (R19): also not to who waits for it.
#[test]
fn who_waits_is_told_when_the_outcome_is_durable() {
    let fs = HeapFs::new();
    let options = Options::new("unused").file_system(fs).manual_maintenance(true);
    let store = options.open().unwrap();
    let space = store.namespace("space").unwrap();
    let held = space.claim("key", None).unwrap().acquired().unwrap();
    let mut task = wait(&space, "key");
    let completion = held.complete_async(&refrain::CompleteOptions::body(b"outcome"));
    assert_eq!(task.woken(), 1);
    assert!(task.poll().is_pending(), "the round has not ended");
    completion.wait().unwrap();
    assert!(task.ready().unwrap().completed().is_some());
}

/// A claim that was granted to a future that nobody polls any more is nobody's work.
#[test]
fn a_future_that_is_dropped_with_the_key_gives_it_back() {
    let options = Options::new("unused").file_system(HeapFs::new()).manual_maintenance(true);
    let store = options.open().unwrap();
    let space = store.namespace("space").unwrap();
    let held = space.claim("key", None).unwrap().acquired().unwrap();
    let mut task = wait(&space, "key");
    held.release_async().wait().unwrap();
    assert!(task.poll().is_pending(), "granted, and not durable");
    assert!(matches!(space.lookup("key"), Ok(Lookup::InProgress(_))));
    drop(task);
    assert_eq!(space.lookup("key").unwrap(), Lookup::Absent);
    store.close().unwrap();
}

/// Threads that ask for one key at once: the work is done once, and all get what it said.
#[test]
fn one_of_ten_thousand_works_and_all_answer_the_same() {
    const EACH: usize = 2500;
    let options = Options::in_memory().max_waiters(10_000, 10_000, 10_000);
    let store = options.open().unwrap();
    let space = store.namespace("space").unwrap();
    let (begun, has_begun) = mpsc::channel();
    let runs = AtomicU32::new(0);
    let bodies: HashSet<Vec<u8>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (space, runs, begun) = (space.clone(), &runs, begun.clone());
                scope.spawn(move || {
                    let ask = || space.claim_or_wait("key", &ClaimOptions::new(), HOUR);
                    let mut tasks: Vec<_> = (0..EACH).map(|_| Task::new(ask())).collect();
                    let mut bodies = HashSet::new();
                    let mut is_first = true;
                    while !tasks.is_empty() {
                        tasks.retain_mut(|task| {
                            let Poll::Ready(claim) = task.poll() else { return true };
                            match claim.unwrap() {
                                Claim::Acquired(lease) => {
                                    runs.fetch_add(1, Ordering::SeqCst);
                                    let _completer = begun.send(lease);
                                }
                                Claim::Completed(outcome) => {
                                    let Body::Bytes(body) = outcome.body() else { panic!() };
                                    bodies.insert(body.to_vec());
                                }
                                other => panic!("{other:?}"),
                            }
                            false
                        });
                        if std::mem::take(&mut is_first) {
                            continue;
                        }
                        thread::yield_now();
                    }
                    bodies
                })
            })
            .collect();
        let held = has_begun.recv().unwrap();
        // Most of them wait by now.
        while store.stats().waiters < 5000 {
            thread::yield_now();
        }
        held.complete("said once").unwrap();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(runs.into_inner(), 1);
    assert_eq!(bodies, HashSet::from([b"said once".to_vec()]));
    assert_eq!(store.stats().waiters, 0);
}

/// Threads that sleep for the key, whose holders come and go: nobody sleeps for ever, and each key has one
/// owner at a time.
#[test]
fn threads_that_sleep_for_a_key_get_it_one_after_the_other() {
    let store = Options::in_memory().open().unwrap();
    let space = store.define("space", &Policy::default().lease(HOUR)).unwrap();
    let (owners, turns) = (AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|scope| {
        for thread in 0..8 {
            let (space, owners, turns) = (space.clone(), &owners, &turns);
            scope.spawn(move || {
                for turn in 0..200 {
                    let wait = space.claim_or_wait("key", &ClaimOptions::new(), Duration::MAX);
                    let lease = wait.wait().unwrap().acquired().unwrap();
                    assert_eq!(owners.fetch_add(1, Ordering::SeqCst), 0);
                    turns.fetch_add(1, Ordering::SeqCst);
                    if (thread + turn) % 7 == 0 {
                        thread::yield_now();
                    }
                    owners.fetch_sub(1, Ordering::SeqCst);
                    lease.release().unwrap();
                }
            });
        }
    });
    assert_eq!(turns.into_inner(), 1600);
    assert_eq!(store.stats().waiters, 0);
}

/// The owner is gone, and the store's own thread tells one of those who sleep for its key.
#[test]
fn a_thread_that_sleeps_takes_over_when_the_lease_ends() {
    let store = Options::in_memory().open().unwrap();
    let space = store.namespace("space").unwrap();
    drop(lease(&space, "key", SECOND / 10));
    let Ok(Claim::InProgress(holder)) = space.claim("key", None) else { panic!("free") };
    let heirs: Vec<_> = thread::scope(|scope| {
        let ask = || {
            let wait = space.claim_or_wait("key", &ClaimOptions::new(), SECOND);
            match wait.wait().unwrap() {
                Claim::Acquired(lease) => {
                    let attempt = lease.attempt();
                    lease.complete("taken over").unwrap();
                    Some(attempt)
                }
                Claim::Completed(_) => None,
                other => panic!("{other:?}"),
            }
        };
        let looks = scope.spawn(|| space.wait("key", &holder, HOUR).wait().unwrap());
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        assert!(looks.join().unwrap());
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(heirs, [2]);
}

/// Somebody takes over before maintenance has seen that the lease is over: whoever waits for the old claim is told.
#[test]
fn a_takeover_is_told_to_who_waits_for_the_claim_before_it() {
    let clock = SimClock::new();
    let (store, space) = open(&clock);
    let held = lease(&space, "key", SECOND);
    let Ok(Claim::InProgress(holder)) = space.claim("key", None) else { panic!("free") };
    let wait = |time: Duration| Task::new(space.wait("key", &holder, time));
    let (mut look, mut late) = (wait(10 * HOUR).begun(), wait(SECOND).begun());
    clock.advance(2 * SECOND);
    let second = lease(&space, "key", HOUR);
    assert_eq!((look.woken(), late.woken()), (1, 1));
    assert!(look.ready().unwrap());
    assert!(late.ready().unwrap(), "whatever the time is: it has ended");
    assert!(wait(Duration::ZERO).ready().unwrap());
    drop((held, second));
    assert_eq!(store.stats().waiters, 0);
}

/// Also after a release there is somebody to take the key: the next one in the line, if the first does not come.
#[test]
fn a_released_key_whose_heir_does_not_come_is_offered_to_the_next() {
    let clock = SimClock::new();
    type Free = fn(&Namespace, Lease);
    let ways: [Free; 2] = [
        |_, lease| lease.release().unwrap(),
        |space, _| {
            space.forget("key", "by hand", "a test").unwrap();
        },
    ];
    for free in ways {
        let (store, space) = open(&clock);
        let held = lease(&space, "key", HOUR);
        let [first, second] = [(); 2].map(|()| wait(&space, "key"));
        free(&space, held);
        assert_eq!([first.woken(), second.woken()], [1, 0]);
        // The first is never polled.
        clock.advance(SECOND);
        store.maintain(Duration::MAX);
        assert_eq!(second.woken(), 1);
    }
}

/// Nobody can end a claim in a store that is poisoned: whoever waits for that is told, and whoever comes later.
#[test]
fn a_failure_is_told_to_who_waits_for_a_claim_to_end() {
    let is_broken = Arc::new(AtomicBool::new(false));
    let breaks = Arc::clone(&is_broken);
    let fs = HookFs::new(HeapFs::new(), move |operation, _| {
        let fails = operation == "sync" && breaks.load(Ordering::SeqCst);
        if fails { Err(std::io::Error::other("broken")) } else { Ok(()) }
    });
    let store = Options::new("unused").file_system(fs).manual_maintenance(true).open().unwrap();
    let space = store.namespace("space").unwrap();
    let _held = space.claim("key", None).unwrap().acquired().unwrap();
    let Ok(Claim::InProgress(holder)) = space.claim("key", None) else { panic!("free") };
    let mut before = Task::new(space.wait("key", &holder, HOUR)).begun();
    is_broken.store(true, Ordering::SeqCst);
    assert!(space.claim("another", None).is_err());
    store.maintain(Duration::MAX);
    assert_eq!(before.woken(), 1);
    assert!(matches!(before.ready(), Err(WaitError::Store(StoreError::Poisoned { .. }))));
    let after = Task::new(space.wait("key", &holder, HOUR)).ready();
    assert!(matches!(after, Err(WaitError::Store(StoreError::Poisoned { .. }))), "{after:?}");
}

/// A write that fails, and a sync that takes its time before it does: the store's thread has nothing else to look after, and
/// tells those who wait at once. (Without being called it would tell them too, at its next look: that it is called is shown by a test in `src/store.rs`.)
#[test]
fn a_failure_wakes_the_thread_that_tells_it() {
    for broken in ["write", "sync"] {
        let is_broken = Arc::new(AtomicBool::new(false));
        let breaks = Arc::clone(&is_broken);
        let fs = HookFs::new(HeapFs::new(), move |operation, name| {
            let is_it = operation == broken && name.starts_with("data");
            if !is_it || !breaks.load(Ordering::SeqCst) {
                return Ok(());
            }
            if operation == "sync" {
                thread::sleep(SECOND);
            }
            Err(std::io::Error::other("broken"))
        });
        let store = Options::new("unused").file_system(fs).open().unwrap();
        let space = store.define("space", &Policy::default().lease(HOUR)).unwrap();
        let _held = space.claim("key", None).unwrap().acquired().unwrap();
        let mut waiter = wait(&space, "key");
        // The thread has seen that everything is durable, and sleeps.
        thread::sleep(SECOND);
        is_broken.store(true, Ordering::SeqCst);
        assert!(space.claim("another", None).is_err());
        while waiter.woken() == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(matches!(waiter.ready(), Err(ClaimError::Store(StoreError::Poisoned { .. }))));
    }
}

#[test]
fn a_wait_for_a_key_that_cannot_be_is_refused() {
    let (_store, space) = open(&SimClock::new());
    let _held = lease(&space, "key", HOUR);
    let Ok(Claim::InProgress(holder)) = space.claim("key", None) else { panic!("free") };
    for key in [&[][..], &[0; 4097][..]] {
        let answer = space.wait(key, &holder, SECOND).wait();
        let is_refused = matches!(answer, Err(WaitError::Store(StoreError::KeyLength { .. })));
        assert!(is_refused, "{answer:?}");
    }
}
