//! Error sweeps: the n-th call of the disk fails, once and for good, for n = 1, 2, ... until a run
//! meets no failure any more.
//!
//! Whatever fails, every call ends with an answer or a typed error, what was acknowledged is there
//! after the next power cut, and the store can be used again.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use refrain::testing::{Crash, Fault, SimClock, SimDisk, SimFs};
use refrain::{
    Body, Claim, ClaimError, Durability, Lookup, NamespaceError, OpenError, Options, Policy, Store,
    StoreError,
};

const SECOND: Duration = Duration::from_secs(1);

/// What a run acknowledged.
#[derive(Default)]
struct Acknowledged {
    tokens: BTreeSet<u64>,
    completed: BTreeMap<String, Vec<u8>>,
    claimed: BTreeSet<String>,
    defined: bool,
    altered: bool,
    errors: u64,
}

struct Run {
    disk: SimDisk,
    clock: SimClock,
    durability: Durability,
}

fn body(key: &str) -> Vec<u8> {
    // Some are long enough for the store to need another file.
    let len = if key.ends_with('5') { 120_000 } else { 300 };
    key.bytes().cycle().take(len).collect()
}

impl Run {
    fn open(&self, fs: SimFs) -> Result<Store, OpenError> {
        Options::new("unused")
            .file_system(fs)
            .clock(self.clock.clone())
            .durability(self.durability)
            .shards(4)
            .segment_bytes(256 << 10)
            .manual_maintenance(true)
            .open()
    }

    /// Opens, works, closes, opens, works, is killed; gives up where nothing more can be done.
    fn work(&self, fault: Fault) -> Acknowledged {
        let mut done = Acknowledged::default();
        for round in 0..2 {
            let fs = self.disk.mount();
            if round == 0 {
                self.disk.fail(fault);
            }
            let store = match self.open(fs) {
                Ok(store) => store,
                Err(OpenError::Io(_) | OpenError::Full { .. }) => {
                    done.errors += 1;
                    continue;
                }
                Err(other) => panic!("{other}"),
            };
            self.use_store(&store, round, &mut done);
            if store.close().is_err() {
                done.errors += 1;
            }
        }
        done
    }

    fn use_store(&self, store: &Store, round: u64, done: &mut Acknowledged) {
        let policy = Policy::default().lease(60 * SECOND);
        let orders = match store.define("orders", &policy) {
            Ok(orders) => orders,
            Err(NamespaceError::PolicyConflict { .. }) if done.altered => {
                store.namespace("orders").unwrap()
            }
            // Whether the change that failed was made is open.
            Err(NamespaceError::PolicyConflict { .. }) if done.errors > 0 => {
                store.namespace("orders").unwrap()
            }
            Err(NamespaceError::Store(_)) => {
                done.errors += 1;
                return;
            }
            Err(other) => panic!("{other}"),
        };
        done.defined = true;
        for number in 0..12 {
            let key = format!("{round}-{number}");
            match orders.claim(&key, None) {
                Ok(Claim::Acquired(lease)) => {
                    assert!(done.tokens.insert(lease.token().get()), "a token was given twice");
                    done.claimed.insert(key.clone());
                    if number % 3 == 2 {
                        continue;
                    }
                    match lease.complete(body(&key)) {
                        Ok(_) => drop(done.completed.insert(key.clone(), body(&key))),
                        Err(error) => {
                            done.errors += 1;
                            assert!(
                                store.poisoned().is_some(),
                                "an exit is never refused: {error}"
                            );
                        }
                    }
                }
                Ok(other) => panic!("{other:?}"),
                Err(ClaimError::Full { .. } | ClaimError::Store(StoreError::Io(_))) => {
                    done.errors += 1;
                }
                Err(ClaimError::Store(error)) => {
                    assert!(error.is_poisoned(), "{error}");
                    done.errors += 1;
                }
                Err(other) => panic!("{other}"),
            }
            store.maintain(Duration::MAX);
            self.clock.advance(SECOND / 10);
        }
        match store.alter("orders", &policy.lease(61 * SECOND)) {
            Ok(_) => done.altered = true,
            Err(NamespaceError::Store(_)) => done.errors += 1,
            Err(other) => panic!("{other}"),
        }
        if let Err(error) = store.flush() {
            assert!(error.is_poisoned(), "{error}");
            done.errors += 1;
        }
    }

    /// The power is gone, the disk is whole again: everything is there.
    fn check(&self, done: &Acknowledged, what: &str) {
        self.disk.heal();
        self.disk.crash(Crash::PowerCut);
        let store = self.open(self.disk.mount()).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(!done.defined || store.namespaces() == ["orders"], "{what}");
        let orders = store.namespace("orders").unwrap();
        if self.durability == Durability::Sync {
            for (key, body) in &done.completed {
                let found = orders.lookup(key).unwrap();
                let Lookup::Completed(outcome) = &found else {
                    panic!("{what}: {key} is {found:?}")
                };
                assert_eq!(outcome.body(), Body::Bytes(body), "{what}");
            }
            for key in &done.claimed {
                let found = orders.lookup(key).unwrap();
                assert!(!matches!(found, Lookup::Absent), "{what}: {key} is forgotten");
            }
        }
        let lease = orders.claim("after", None).unwrap().acquired().unwrap();
        assert!(done.tokens.last().is_none_or(|last| lease.token().get() > *last), "{what}");
        lease.complete("all is well").unwrap();
        store.check_invariants().unwrap();
        store.close().unwrap();
    }
}

fn sweep(durability: Durability, operation: &'static str, times: u64, error: io::ErrorKind) -> u64 {
    for after in 0.. {
        let run = Run { disk: SimDisk::new(after), clock: SimClock::new(), durability };
        let fault = Fault { operation, after, times, error };
        let what = format!("{durability:?}, {fault:?}");
        let done = run.work(fault);
        run.check(&done, &what);
        if done.errors == 0 {
            let met = run.disk.counts().keys().any(|what| what.ends_with(" failed"));
            // A failure that nobody has to hear of is one, too.
            if !met {
                return after;
            }
        }
    }
    unreachable!("there is an end to the calls")
}

#[test]
fn any_call_of_the_disk_may_fail() {
    use io::ErrorKind::{Other, StorageFull};
    let interval = Durability::Interval(Duration::from_millis(150));
    for durability in [Durability::Sync, Durability::Buffered, interval] {
        for (operation, error) in [
            ("", Other),
            ("sync", Other),
            ("write", Other),
            ("write", StorageFull),
            ("fill", StorageFull),
            ("map", io::ErrorKind::OutOfMemory),
            ("create", io::ErrorKind::PermissionDenied),
        ] {
            for times in [1, u64::MAX] {
                let calls = sweep(durability, operation, times, error);
                let name = if operation.is_empty() { "any" } else { operation };
                let often = if times == 1 { "once" } else { "for good" };
                println!("{durability:?}: {calls} calls of {name} failed {often}, one a run");
            }
        }
    }
}
