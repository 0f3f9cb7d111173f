//! The whole engine in memory, under many schedules of a few threads: shuttle, by `scripts/explore.sh`.
//! Without `--cfg shuttle` there is nothing here.
#![cfg(shuttle)]
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use refrain::testing::{Crash, FileSystem, HeapFs, SimClock, SimDisk};
use refrain::{
    Body, Claim, ClaimOptions, CompleteError, Durability, FenceError, FencingToken, Lookup,
    Namespace, Once, Options, Policy, Store,
};
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner, thread};

const HOUR: Duration = Duration::from_secs(3600);
const SEGMENT_BYTES: u64 = 256 << 10;

/// `REFRAIN_SCHEDULES` schedules, else 300: half of them random, half with few changes of the thread.
/// `REFRAIN_SEED` is the first half's seed; the schedule that fails is told.
fn explore(body: fn()) {
    let number = |name: &str| std::env::var(name).ok().and_then(|it| it.parse::<u64>().ok());
    let half = number("REFRAIN_SCHEDULES").unwrap_or(300).div_ceil(2) as usize;
    let seed = number("REFRAIN_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("REFRAIN_SEED={seed}, twice {half} schedules");
    run(RandomScheduler::new_from_seed(seed, half), body);
    run(PctScheduler::new_from_seed(seed, 4, half), body);
}

fn run(scheduler: impl Scheduler + 'static, body: fn()) {
    let mut config = Config::new();
    // Opening a store takes more than shuttle gives a thread.
    config.stack_size = 1 << 20;
    Runner::new(scheduler, config).run(body);
}

fn options(fs: impl FileSystem + 'static, clock: &SimClock, durability: Durability) -> Options {
    Options::new("unused")
        .file_system(fs)
        .clock(clock.clone())
        .durability(durability)
        .segment_bytes(SEGMENT_BYTES)
        .shards(1)
        .lanes(2)
        .shared_by_chance(1)
        .manual_maintenance(true)
}

fn open(durability: Durability) -> (Store, SimClock) {
    let clock = SimClock::new();
    (options(HeapFs::new(), &clock, durability).open().unwrap(), clock)
}

/// Runs each of them on a thread of its own, with a clone of the namespace.
fn at_once<const N: usize>(space: &Namespace, works: [Box<dyn FnOnce(&Namespace) + Send>; N]) {
    let threads = works.map(|work| {
        let space = space.clone();
        thread::spawn(move || work(&space))
    });
    threads.into_iter().for_each(|it| it.join().unwrap());
}

fn body_of(lookup: Lookup) -> Option<Vec<u8>> {
    match lookup {
        Lookup::Completed(outcome) => match outcome.body() {
            Body::Bytes(bytes) => Some(bytes.to_vec()),
            other => panic!("{other:?}"),
        },
        _ => None,
    }
}

#[test]
fn one_of_those_who_claim_owns_the_key_and_the_others_get_its_outcome() {
    explore(|| {
        let (store, _) = open(Durability::Buffered);
        let space = store.namespace("orders").unwrap();
        let (owners, owner) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let work = |id: u64| -> Box<dyn FnOnce(&Namespace) + Send> {
            let (owners, owner) = (Arc::clone(&owners), Arc::clone(&owner));
            Box::new(move |space| match space.claim("key", None).unwrap() {
                Claim::Acquired(lease) => {
                    owners.fetch_add(1, Ordering::Relaxed);
                    owner.store(id, Ordering::Relaxed);
                    lease.complete(id.to_le_bytes()).unwrap();
                }
                Claim::Completed(outcome) => {
                    let told = owner.load(Ordering::Relaxed).to_le_bytes();
                    assert_eq!(outcome.body(), Body::Bytes(&told));
                }
                Claim::InProgress(other) => assert_eq!(other.attempt(), 1),
                other => panic!("{other:?}"),
            })
        };
        at_once(&space, [work(1), work(2), work(3)]);
        assert_eq!(owners.load(Ordering::Relaxed), 1);
        let told = owner.load(Ordering::Relaxed).to_le_bytes();
        assert_eq!(body_of(space.lookup("key").unwrap()).as_deref(), Some(&told[..]));
        store.check_invariants().unwrap();
    });
}

#[test]
fn a_key_that_is_given_back_has_one_owner_at_a_time() {
    explore(|| {
        let (store, _) = open(Durability::Buffered);
        let space = store.namespace("orders").unwrap();
        let (held, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let work = |completes: bool| -> Box<dyn FnOnce(&Namespace) + Send> {
            let (held, done) = (Arc::clone(&held), Arc::clone(&done));
            Box::new(move |space| {
                for _ in 0..3 {
                    let Some(lease) = space.claim("key", None).unwrap().acquired() else {
                        continue;
                    };
                    assert!(!held.swap(true, Ordering::Relaxed), "two owners");
                    assert_eq!(done.load(Ordering::Relaxed), 0, "owned after it was completed");
                    thread::yield_now();
                    held.store(false, Ordering::Relaxed);
                    if completes {
                        done.fetch_add(1, Ordering::Relaxed);
                        lease.complete("done").unwrap();
                    } else {
                        lease.release().unwrap();
                    }
                }
            })
        };
        at_once(&space, [work(false), work(true), work(false)]);
        let is_done = matches!(space.lookup("key").unwrap(), Lookup::Completed(_));
        assert_eq!(u64::from(is_done), done.load(Ordering::Relaxed));
        store.check_invariants().unwrap();
    });
}

/// A lease that ran out: its owner completes it, or somebody takes over and he is told so.
#[test]
fn either_the_owner_completes_or_his_successor_does() {
    explore(|| {
        let (store, clock) = open(Durability::Buffered);
        let second = Duration::from_secs(1);
        let policy = Policy::default().lease(second).late_grace(60 * second);
        let space = store.define("orders", &policy).unwrap();
        let lease = space.claim("key", None).unwrap().acquired().unwrap();
        clock.advance(2 * second);
        let completed = Arc::new(Mutex::new(vec![]));
        let (first, next) = (Arc::clone(&completed), Arc::clone(&completed));
        at_once(
            &space,
            [
                Box::new(move |_| match lease.complete("first") {
                    Ok(_) => first.lock().unwrap().push("first"),
                    Err(CompleteError::Fenced { .. } | CompleteError::AlreadyCompleted(_)) => {}
                    Err(other) => panic!("{other:?}"),
                }),
                Box::new(move |space| {
                    if let Some(lease) = space.claim("key", None).unwrap().acquired() {
                        assert_eq!(lease.attempt(), 2);
                        lease.complete("next").unwrap();
                        next.lock().unwrap().push("next");
                    }
                }),
            ],
        );
        let completed = completed.lock().unwrap();
        assert_eq!(completed.len(), 1, "{completed:?}");
        let body = body_of(space.lookup("key").unwrap()).unwrap();
        assert_eq!(body, completed[0].as_bytes());
    });
}

/// The table splits at its 49th entry, and at each one from then on.
#[test]
fn nothing_is_missed_while_the_table_splits() {
    explore(|| {
        let (store, _) = open(Durability::Buffered);
        let space = store.namespace("orders").unwrap();
        let key = |n: u64| n.to_le_bytes();
        (0..46).for_each(|n| assert!(matches!(space.once(key(n), None), Ok(Once::First(_)))));
        let marks = move |from: u64| -> Box<dyn FnOnce(&Namespace) + Send> {
            Box::new(move |space| {
                for n in from..from + 3 {
                    assert!(matches!(space.once(key(n), None), Ok(Once::First(_))), "{n}");
                    assert!(matches!(space.once(key(n), None), Ok(Once::Seen(_))), "{n}");
                }
            })
        };
        let looks = move |step: u64| -> Box<dyn FnOnce(&Namespace) + Send> {
            Box::new(move |space| {
                for n in (0..46).step_by(step as usize) {
                    assert!(matches!(space.lookup(key(n)), Ok(Lookup::Completed(_))), "{n}");
                }
                assert!(matches!(space.lookup("never"), Ok(Lookup::Absent)));
            })
        };
        at_once(&space, [marks(100), marks(200), looks(9)]);
        assert_eq!(store.stats().entries, 52);
        store.check_invariants().unwrap();
    });
}

/// A window ends, its segments are emptied and written again, while its key is claimed anew and others
/// are read.
#[test]
fn what_expires_goes_and_nothing_else_does() {
    explore(|| {
        let (store, clock) = open(Durability::Sync);
        let short = store.define("short", &Policy::default().replay_ttl(HOUR).dedupe_ttl(HOUR));
        let short = short.unwrap();
        let long = store.namespace("long").unwrap();
        let complete = |space: &Namespace, key: &str, body: &[u8]| {
            space.claim(key, None).unwrap().acquired().unwrap().complete(body).unwrap();
        };
        complete(&short, "key", b"first");
        complete(&long, "kept", b"kept");
        (0..8).for_each(|n| complete(&short, &format!("other {n}"), &[7; 60_000]));
        clock.advance(HOUR / 2);
        store.maintain(Duration::MAX);
        clock.advance(2 * HOUR);
        let (kept, again) = (long.clone(), store.clone());
        at_once(
            &short,
            [
                Box::new(move |_| {
                    for _ in 0..2 {
                        again.maintain(Duration::MAX);
                    }
                }),
                Box::new(|space| {
                    let lease = space.claim("key", None).unwrap().acquired().unwrap();
                    lease.complete("second").unwrap();
                }),
                Box::new(move |space| {
                    let body = body_of(space.lookup("key").unwrap());
                    assert!(body.is_none_or(|body| body == b"second"));
                    assert_eq!(body_of(kept.lookup("kept").unwrap()).unwrap(), b"kept");
                    (0..8).for_each(|n| {
                        let other = space.lookup(format!("other {n}")).unwrap();
                        assert!(matches!(other, Lookup::Absent), "{other:?}");
                    });
                }),
            ],
        );
        for _ in 0..3 {
            clock.advance(Duration::from_secs(20));
            store.maintain(Duration::MAX);
        }
        assert!(store.stats().recycled > 0, "{:?}", store.stats());
        assert_eq!(body_of(short.lookup("key").unwrap()).unwrap(), b"second");
        assert_eq!(body_of(long.lookup("kept").unwrap()).unwrap(), b"kept");
        store.check_invariants().unwrap();
    });
}

/// The power goes at any step of the disk, while two threads claim and complete: what either was told
/// is there when the store is opened again.
#[test]
fn what_was_acknowledged_is_there_after_a_power_cut() {
    explore(|| {
        let (disk, clock) = (SimDisk::new(thread_rng().r#gen()), SimClock::new());
        let open = || options(disk.mount(), &clock, Durability::Sync).open();
        let store = open().unwrap();
        let space = store.namespace("orders").unwrap();
        let told = Arc::new(Mutex::new(vec![]));
        let work = |id: u64| -> Box<dyn FnOnce(&Namespace) + Send> {
            let told = Arc::clone(&told);
            Box::new(move |space| {
                for key in ["shared".to_owned(), format!("own {id}")] {
                    let Ok(claim) = space.claim(&key, None) else { return };
                    let body = match claim {
                        Claim::Acquired(lease) => {
                            told.lock().unwrap().push((key.clone(), Some(lease.token()), None));
                            let body = id.to_le_bytes().to_vec();
                            let Ok(_) = lease.complete(&body) else { return };
                            body
                        }
                        Claim::Completed(outcome) => match outcome.body() {
                            Body::Bytes(bytes) => bytes.to_vec(),
                            other => panic!("{other:?}"),
                        },
                        Claim::InProgress(_) => continue,
                        other => panic!("{other:?}"),
                    };
                    told.lock().unwrap().push((key, None, Some(body)));
                }
            })
        };
        disk.crash_after(thread_rng().gen_range(0..40), Crash::PowerCut);
        at_once(&space, [work(1), work(2)]);
        disk.call_off_crash();
        disk.crash(Crash::PowerCut);
        drop(space);
        store.abandon();
        let store = open().unwrap();
        let space = store.namespace("orders").unwrap();
        for (key, token, body) in told.lock().unwrap().iter() {
            let found = space.lookup(key).unwrap();
            assert!(!matches!(found, Lookup::Absent), "{key} is lost: {token:?}, {body:?}");
            if body.is_some() {
                assert_eq!(body_of(found), *body, "{key}");
            }
        }
    });
}

/// Those who sleep for a key are woken one after the other, also when one of them gives up after it was called, and the
/// last end is told to all.
#[test]
fn nobody_sleeps_for_a_key_for_ever() {
    explore(|| {
        let (store, _) = open(Durability::Buffered);
        let space = store.namespace("orders").unwrap();
        let held = Arc::new(AtomicBool::new(false));
        let ask = |space: &Namespace| space.claim_or_wait("key", &ClaimOptions::new(), HOUR);
        let work = |completes: bool| -> Box<dyn FnOnce(&Namespace) + Send> {
            let held = Arc::clone(&held);
            Box::new(move |space| {
                let Some(lease) = ask(space).wait().unwrap().acquired() else {
                    return;
                };
                assert!(!held.swap(true, Ordering::Relaxed), "two owners");
                thread::yield_now();
                held.store(false, Ordering::Relaxed);
                if completes {
                    lease.complete("done").unwrap();
                } else {
                    lease.release().unwrap();
                }
            })
        };
        let gives_up: Box<dyn FnOnce(&Namespace) + Send> = Box::new(move |space| {
            let mut wait = Box::pin(ask(space));
            for _ in 0..2 {
                let polled = wait.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                if let Poll::Ready(claim) = polled {
                    if let Some(lease) = claim.unwrap().acquired() {
                        lease.release().unwrap();
                    }
                    return;
                }
                thread::yield_now();
            }
        });
        let other = work(false);
        at_once(&space, [work(false), gives_up, other, work(true)]);
        assert_eq!(store.stats().waiters, 0);
        store.check_invariants().unwrap();
    });
}

/// Who shows a guard an older token than somebody was admitted for is refused, whoever comes first.
#[test]
fn no_older_token_is_admitted_after_a_newer_one() {
    explore(|| {
        let (store, _) = open(Durability::Buffered);
        let newest = Arc::new(AtomicU64::new(0));
        let threads = [[1_u64, 4], [3, 2], [2, 5]].map(|tokens| {
            let (store, newest) = (store.clone(), Arc::clone(&newest));
            thread::spawn(move || {
                let guard = store.fence_guard("sinks", HOUR).unwrap();
                for token in tokens {
                    // What somebody was admitted for before this was asked.
                    let before = newest.load(Ordering::SeqCst);
                    match guard.admit("resource", FencingToken::from_raw(token)) {
                        Ok(_) => {
                            assert!(token >= before, "{token} after {before}");
                            newest.fetch_max(token, Ordering::SeqCst);
                        }
                        Err(FenceError::Stale { newest, .. }) => assert!(newest.get() > token),
                        Err(other) => panic!("{other}"),
                    }
                }
            })
        });
        threads.into_iter().for_each(|it| it.join().unwrap());
        let guard = store.fence_guard("sinks", HOUR).unwrap();
        let told = guard.newest("resource").unwrap().unwrap();
        assert_eq!((told.get(), newest.load(Ordering::SeqCst)), (5, 5));
        store.check_invariants().unwrap();
    });
}

/// A key that is claimed while it is erased is claimed before or after, and others are what they were.
#[test]
fn what_is_erased_and_what_is_claimed_meanwhile_are_told_apart() {
    explore(|| {
        let (store, _) = open(Durability::Buffered);
        let space = store.namespace("orders").unwrap();
        for key in ["key", "other"] {
            space.claim(key, None).unwrap().acquired().unwrap().complete("before").unwrap();
        }
        let (claims, erases) = (space.clone(), space.clone());
        let claiming = thread::spawn(move || {
            let mut owned = 0;
            for _ in 0..2 {
                match claims.claim("key", None).unwrap() {
                    Claim::Acquired(lease) => {
                        owned += 1;
                        assert_eq!(lease.attempt(), 1);
                        lease.complete("after").unwrap();
                    }
                    Claim::Completed(outcome) => {
                        let wanted: &[u8] = if owned == 0 { b"before" } else { b"after" };
                        assert_eq!(outcome.body(), Body::Bytes(wanted));
                    }
                    other => panic!("{other:?}"),
                }
            }
            owned
        });
        let erasing = thread::spawn(move || {
            let erased = erases.erase("key", "a test", "nobody", HOUR).unwrap();
            assert_eq!(erased.keys, 1);
        });
        let owned = claiming.join().unwrap();
        erasing.join().unwrap();
        let body = body_of(space.lookup("key").unwrap());
        assert!(owned <= 1, "it was new once");
        let wanted: Option<&[u8]> = if owned == 1 { Some(b"after") } else { None };
        // Or it was erased when it had been claimed again.
        assert!(body.as_deref() == wanted || body.is_none(), "{body:?}");
        assert_eq!(body_of(space.lookup("other").unwrap()).as_deref(), Some(&b"before"[..]));
        store.check_invariants().unwrap();
    });
}
