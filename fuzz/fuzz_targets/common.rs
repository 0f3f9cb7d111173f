//! A small store on a simulated disk, to be damaged and opened.

use std::cell::OnceCell;
use std::time::Duration;

use refrain::testing::{SimClock, SimDisk};
use refrain::{Claim, Durability, Fingerprint, OpenError, Options, Policy, StoreError};

const KEYS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// What names the namespace may ask for one.
fn fingerprint() -> Fingerprint {
    Fingerprint::of(b"payload")
}

fn options(disk: &SimDisk, clock: &SimClock) -> Options {
    Options::new("unused")
        .file_system(disk.mount())
        .clock(clock.clone())
        .durability(Durability::Sync)
        .shards(2)
        .manual_maintenance(true)
}

fn build(is_closed: bool) -> SimDisk {
    let (disk, clock) = (SimDisk::new(1), SimClock::new());
    let store = options(&disk, &clock).segment_bytes(256 << 10).open().expect("a new store");
    let orders = store.define("orders", &Policy::default()).expect("a namespace");
    for (number, key) in KEYS.iter().enumerate() {
        let claim = orders.claim(key, None).expect("a claim");
        let Claim::Acquired(lease) = claim else { panic!("{key} is new") };
        match number % 3 {
            0 => drop(lease),
            1 => lease.park().expect("parked"),
            _ => drop(lease.complete(vec![7; 50 * number]).expect("completed")),
        }
    }
    drop(orders);
    if is_closed {
        store.close().expect("closed");
    } else {
        store.abandon();
    }
    drop(disk.mount());
    disk
}

/// A copy of the store, closed in order or killed.
pub fn base(is_closed: bool) -> SimDisk {
    thread_local! {
        static BASES: [OnceCell<SimDisk>; 2] = const { [OnceCell::new(), OnceCell::new()] };
    }
    let base = |bases: &[OnceCell<SimDisk>; 2]| {
        bases[usize::from(is_closed)].get_or_init(|| build(is_closed)).copy(Some(1))
    };
    BASES.with(base)
}

/// Salvages the store; what comes out works.
fn salvage(disk: &SimDisk, clock: &SimClock) {
    let target = SimDisk::new(2);
    let Ok(report) = options(disk, clock).salvage(options(&target, clock)) else { return };
    let store = options(&target, clock).open().expect("what was salvaged can be opened");
    store.check_invariants().expect("every slot leads to its record");
    assert_eq!(store.gaps().len(), report.gaps);
    let orders = store.namespace("orders").expect("a namespace");
    for key in KEYS {
        drop(orders.lookup(key).expect("a lookup"));
    }
    let claim = orders.claim("new", fingerprint()).expect("a claim");
    if let Claim::Acquired(lease) = claim {
        lease.complete("outcome").expect("a granted claim can be completed");
    }
    drop(orders);
    store.close().expect("closed");
}

/// Opens a store of which not all was checked: it is refused, or each call is answered.
fn open_by_indexes(disk: &SimDisk) {
    let clock = SimClock::new();
    clock.advance(Duration::from_secs(1));
    let Ok(store) = options(disk, &clock).open() else { return };
    let Ok(orders) = store.namespace("orders") else { return };
    for key in KEYS {
        match orders.lookup(key) {
            Ok(_) | Err(StoreError::Corrupt { .. }) => {}
            Err(other) => panic!("{key}: {other}"),
        }
    }
    if let Ok(Claim::Acquired(lease)) = orders.claim("new", fingerprint()) {
        lease.complete("outcome").expect("a granted claim can be completed");
    }
    clock.advance(Duration::from_secs(100_000));
    store.maintain(Duration::MAX);
}

/// Checks and opens the store; what is refused, is refused twice alike; what is opened, works.
pub fn open_and_use(disk: &SimDisk) {
    let clock = SimClock::new();
    clock.advance(Duration::from_secs(1));
    open_by_indexes(&disk.copy(Some(1)));
    let verified = options(disk, &clock).verify();
    let opened = options(disk, &clock).verify_at_open(true).open();
    let store = match (verified, opened) {
        (Ok(_), Ok(store)) => store,
        (Err(one), Err(other)) => {
            assert_eq!(one.to_string(), other.to_string());
            return salvage(disk, &clock);
        }
        // Room and counters are asked for when the store is opened only.
        (Ok(_), Err(OpenError::Full { .. } | OpenError::EpochsExhausted)) => {
            return;
        }
        (verified, opened) => panic!("checking: {verified:?}, opening: {opened:?}"),
    };
    store.check_invariants().expect("every slot leads to its record");
    let Ok(orders) = store.namespace("orders") else { return };
    for key in KEYS {
        drop(orders.lookup(key).expect("a lookup"));
    }
    if let Ok(Claim::Acquired(lease)) = orders.claim("new", fingerprint()) {
        lease.complete("outcome").expect("a granted claim can be completed");
    }
    drop(orders);
    store.close().expect("closed");
    match options(disk, &clock).verify() {
        // It was at its last number.
        Err(OpenError::Corrupt { what, .. }) if what.contains("used up") => {}
        closed => drop(closed.expect("what was closed can be opened")),
    }
}
