//! A forked child of the process that opened the store: it is refused at every call, and takes
//! nothing away from its parent.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]
#![allow(unsafe_code, reason = "running code between fork and exec is")]
#![cfg(not(miri))]

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use refrain::testing::{HeapFs, SimClock};
use refrain::{
    Body, Claim, ClaimError, ClaimOptions, CloseError, CompleteError, Lease, Lookup, Namespace,
    Once, OpenError, Outcome, Policy, Store, StoreError,
};

const HOUR: Duration = Duration::from_secs(3600);

/// What the child exits its closure with when all is as it should be.
const AS_PROMISED: i32 = 71;

/// Runs `child` in a forked child, which never gets to run a program: the closure ends with the
/// number it gives, as the error of the spawn.
fn fork(child: impl FnMut() -> i32 + Send + Sync + 'static) -> (Command, i32) {
    let mut child = child;
    let mut command = Command::new("/nonexistent");
    // SAFETY: what the closure needs of its parent's other threads is the allocator, which the C
    // library makes usable in a child, and no lock of theirs: the parent's store refuses before it
    // takes one, and a store of the child's own is the child's alone.
    unsafe {
        command.pre_exec(move || Err(io::Error::from_raw_os_error(child())));
    }
    let code = command.spawn().unwrap_err().raw_os_error().unwrap();
    (command, code)
}

fn open(directory: &Path) -> Result<Store, OpenError> {
    refrain::Options::new(directory).segment_bytes(256 << 10).manual_maintenance(true).open()
}

fn is_refused(store: &Store, orders: &Namespace, lease: &mut Lease) -> bool {
    let forked = |error: &StoreError| matches!(error, StoreError::Forked);
    let token = lease.token();
    let claim = orders.claim("b", None);
    let complete = orders.complete("a", token, "outcome");
    matches!(&claim, Err(ClaimError::Store(error)) if forked(error))
        && matches!(&complete, Err(CompleteError::Store(error)) if forked(error))
        && matches!(orders.lookup("a"), Err(StoreError::Forked))
        && lease.renew().is_err()
        && orders.release("a", token).is_err()
        && orders.once("c", None).is_err()
        && orders.forget("a", "", "").is_err()
        && matches!(store.flush(), Err(StoreError::Forked))
        && matches!(store.close(), Err(CloseError::Store(StoreError::Forked)))
        && store.namespace("new").is_err()
        && store.orphans().is_err()
}

#[test]
fn a_forked_child_is_refused_and_leaves_the_store_to_its_parent() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    let orders = store.namespace("orders").unwrap();
    let mut lease = orders.claim("a", None).unwrap().acquired();
    let mut store = Some((store, orders));
    // The closure holds all handles, so dropping them in the child drops the last ones there.
    let (command, code) = fork(move || {
        let (Some((store, orders)), Some(mut lease)) = (store.take(), lease.take()) else {
            return 1;
        };
        if is_refused(&store, &orders, &mut lease) { AS_PROMISED } else { 2 }
    });
    assert_eq!(code, AS_PROMISED);
    // The child dropped everything; the parent's copies still hold the lock.
    assert!(matches!(open(directory.path()), Err(OpenError::Locked { .. })));
    drop(command);
    let store = open(directory.path()).unwrap();
    assert!(store.report().clean, "{:?}", store.report());
    assert_eq!(store.report().orphaned, 1);
    let orders = store.namespace("orders").unwrap();
    assert!(matches!(orders.lookup("a").unwrap(), Lookup::Lapsed(_)));
    assert!(matches!(orders.lookup("b").unwrap(), Lookup::Absent));
}

#[test]
fn a_child_that_waits_for_a_commit_leads_no_round() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    let orders = store.namespace("orders").unwrap();
    let rounds = store.stats().rounds;
    let mut commit = Some(orders.claim_async("a", &ClaimOptions::new()));
    let mut dropped = Some(orders.claim_async("b", &ClaimOptions::new()));
    let copy = store.clone();
    let marks =
        || std::fs::read(directory.path().join("data-00000")).unwrap()[4096..32768].to_vec();
    let before = marks();
    let (command, code) = fork(move || {
        drop(dropped.take());
        let waited = commit.take().map(refrain::Commit::wait);
        let is_refused = matches!(waited, Some(Err(ClaimError::Store(StoreError::Forked))));
        let is_silent = copy.stats() == refrain::StoreStats::default()
            && matches!(copy.health().serving, refrain::Serving::Forked);
        if is_refused && is_silent { AS_PROMISED } else { 2 }
    });
    assert_eq!(code, AS_PROMISED);
    assert_eq!((marks(), store.stats().rounds), (before, rounds));
    drop(command);
}

#[test]
fn a_child_that_opens_its_own_store_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("own");
    let store = open(&directory.path().join("parents")).unwrap();
    let (_command, code) = fork(move || {
        let Ok(own) = open(&path) else { return 1 };
        let Ok(orders) = own.namespace("orders") else { return 2 };
        let is_first = orders.once("a", None).is_ok();
        if is_first && store.flush().is_err() { AS_PROMISED } else { 3 }
    });
    assert_eq!(code, AS_PROMISED);
}

#[test]
fn a_child_is_not_shown_what_its_parent_keeps_and_does_not_give_the_directory_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    let orders = store.namespace("orders").unwrap();
    let body = vec![7; Outcome::KEPT_BYTES_MIN];
    orders.claim("a", None).unwrap().acquired().unwrap().complete(&body).unwrap();
    let Lookup::Completed(outcome) = orders.lookup("a").unwrap() else { panic!() };
    let kept = outcome.clone();
    store.close().unwrap();
    drop((store, orders));
    let mut outcome = Some(outcome);
    let (command, code) = fork(move || {
        let Some(outcome) = outcome.take() else { return 1 };
        let is_expired = outcome.body() == Body::Expired;
        // The last one there, for all that the child knows.
        drop(outcome.detached());
        if is_expired { AS_PROMISED } else { 2 }
    });
    assert_eq!(code, AS_PROMISED);
    assert!(matches!(open(directory.path()), Err(OpenError::Locked { .. })));
    assert_eq!(kept.body(), Body::Bytes(&body));
    drop(command);
    drop(kept);
    assert!(open(directory.path()).unwrap().report().clean);
}

/// There is no thread to wait for in the child.
#[test]
fn a_renewers_thread_is_dropped_in_a_forked_child_and_goes_on_in_its_parent() {
    let directory = tempfile::tempdir().unwrap();
    let store = refrain::Options::new(directory.path()).segment_bytes(256 << 10).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let lease = orders.claim("a", None).unwrap().acquired().unwrap();
    let mut renewer = Some(lease.renewer().in_thread().unwrap());
    let (command, code) = fork(move || {
        let Some(renewer) = renewer.take() else { return 1 };
        let lost = renewer.lost();
        drop(renewer);
        match lost {
            Some(refrain::LeaseError::Store(StoreError::Forked)) => AS_PROMISED,
            _ => 2,
        }
    });
    assert_eq!(code, AS_PROMISED);
    assert!(lease.is_current().unwrap());
    drop((command, lease));
    store.close().unwrap();
}

/// Threads of its parent that are not there hold pins, and whatever locks there are, when it is made.
#[test]
fn a_child_of_a_busy_process_uses_segments_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    let orders = store.namespace("orders").unwrap();
    assert!(matches!(orders.once("a", None).unwrap(), Once::First(_)));
    let is_over = Arc::new(AtomicBool::new(false));
    let (pinned, is_pinned) = mpsc::channel();
    let threads: Vec<_> = (0..3)
        .map(|thread| {
            let (orders, is_over, pinned) = (orders.clone(), Arc::clone(&is_over), pinned.clone());
            std::thread::spawn(move || {
                if thread == 0 {
                    let shown = orders.lookup_with("a", |_| {
                        pinned.send(()).unwrap();
                        while !is_over.load(Ordering::Relaxed) {
                            std::thread::yield_now();
                        }
                    });
                    return shown.unwrap();
                }
                while !is_over.load(Ordering::Relaxed) {
                    // Each has a reader to find.
                    let orders = orders.clone();
                    let look = std::thread::spawn(move || drop(orders.lookup("a").unwrap()));
                    look.join().unwrap();
                }
            })
        })
        .collect();
    is_pinned.recv().unwrap();
    for round in 0..20 {
        let (_command, code) = fork(|| {
            // This thread has pinned before the fork, too.
            let clock = SimClock::new();
            let options = refrain::Options::new("unused").file_system(HeapFs::new());
            let options = options.clock(clock.clone()).manual_maintenance(true).lanes(1);
            let Ok(own) = options.segment_bytes(256 << 10).open() else { return 1 };
            let policy = Policy::default().replay_ttl(HOUR).dedupe_ttl(HOUR);
            let Ok(space) = own.define("space", &policy) else { return 2 };
            for number in 0..600_u32 {
                let Ok(Claim::Acquired(lease)) = space.claim(number.to_le_bytes(), None) else {
                    return 3;
                };
                if lease.complete([7; 1000]).is_err() {
                    return 4;
                }
            }
            for _ in 0..40 {
                clock.advance(HOUR / 10);
                own.maintain(Duration::MAX);
            }
            if own.stats().recycled > 0 { AS_PROMISED } else { 5 }
        });
        assert_eq!(code, AS_PROMISED, "round {round}");
    }
    is_over.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}
