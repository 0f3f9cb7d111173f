//! A full disk: claims are refused, and what was granted can still be ended.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use refrain::testing::HeapFs;
use refrain::{
    Body, BodyKept, ClaimError, ClaimOptions, CompleteOptions, Durability, FencingToken,
    Fingerprint, LeaseError, Lookup, NamespaceError, OnLeaseEnd, OnOrphan, OpenError, Options,
    Policy, Resolution, Store,
};
use support::Random;
use support::disk::HookFs;

const SEGMENT_BYTES: u64 = 256 << 10;

/// A disk that is full after `left` more steps of making files.
#[derive(Clone)]
struct Disk {
    heap: HeapFs,
    left: Arc<AtomicU64>,
}

impl Disk {
    fn full_after(steps: u64) -> Self {
        Self { heap: HeapFs::new(), left: Arc::new(AtomicU64::new(steps)) }
    }

    fn open(&self, durability: Durability) -> Result<Store, OpenError> {
        self.open_with(durability, 1)
    }

    fn open_with(&self, durability: Durability, lanes: usize) -> Result<Store, OpenError> {
        let left = Arc::clone(&self.left);
        let fs = HookFs::new(self.heap.clone(), move |operation, _| {
            if !matches!(operation, "create" | "fill") {
                return Ok(());
            }
            let spent =
                left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            spent.map(drop).map_err(|_| io::ErrorKind::StorageFull.into())
        });
        Options::new("unused")
            .file_system(fs)
            .durability(durability)
            .lanes(lanes)
            .shared_by_chance(lanes as u64)
            .segment_bytes(SEGMENT_BYTES)
            .manual_maintenance(true)
            .open()
    }
}

fn policy() -> Policy {
    Policy::default().on_orphan(OnOrphan::KeepLease)
}

fn is_full(error: &ClaimError) -> bool {
    matches!(error, ClaimError::Full { .. })
}

/// How a granted claim is ended, and what must be found then.
fn end(store: &Store, key: &str, token: FencingToken, how: u64, body: &[u8]) -> String {
    let orders = store.namespace("orders").unwrap();
    match how % 6 {
        0 => {
            orders.release(key, token).unwrap();
            "absent".to_owned()
        }
        1 => {
            orders.park(key, token).unwrap();
            "parked".to_owned()
        }
        2 => {
            // One renewal has room; another one may be refused, and harms nothing.
            orders.renew(key, token).unwrap();
            match orders.renew(key, token) {
                Ok(_) | Err(LeaseError::Full { .. }) => {}
                Err(other) => panic!("{other}"),
            }
            complete(store, key, token, body)
        }
        _ => complete(store, key, token, body),
    }
}

fn complete(store: &Store, key: &str, token: FencingToken, body: &[u8]) -> String {
    let orders = store.namespace("orders").unwrap();
    match orders.complete(key, token, body).unwrap().body() {
        BodyKept::Kept => format!("completed with {body:?}"),
        BodyKept::NoRoom => {
            // The outcome stands, without its bytes: the same one is fine, another is not.
            assert!(orders.complete(key, token, body).is_ok());
            assert!(orders.complete(key, token, "another").is_err());
            format!("completed without its {} bytes", body.len())
        }
        other => panic!("{other:?}"),
    }
}

fn found(store: &Store, key: &str) -> String {
    match store.namespace("orders").unwrap().lookup(key).unwrap() {
        Lookup::Absent => "absent".to_owned(),
        Lookup::Parked(_) => "parked".to_owned(),
        Lookup::Completed(outcome) => match outcome.body() {
            Body::Bytes(bytes) => format!("completed with {bytes:?}"),
            Body::TooLarge { len } => format!("completed without its {len} bytes"),
            other => panic!("{other:?}"),
        },
        other => panic!("{key} is {other:?}"),
    }
}

/// Fills the store with claims, ends some on the way, and all in the end; `stops` processes die in
/// between. Gives how many were granted, and how many bodies found no room.
fn fill_and_end(
    steps: u64,
    durability: Durability,
    lanes: usize,
    stops: u64,
    seed: u64,
) -> (u64, u64) {
    let disk = Disk::full_after(steps);
    let mut random = Random::new(seed);
    let mut store = match disk.open_with(durability, lanes) {
        Ok(store) => store,
        Err(OpenError::Full { .. } | OpenError::Io(_)) => return (0, 0),
        Err(other) => panic!("{other}"),
    };
    match store.define("orders", &policy()) {
        Ok(_) => {}
        Err(NamespaceError::Store(error)) => panic!("{error}"),
        Err(other) => panic!("{other}"),
    }
    let mut pending: Vec<(String, FencingToken)> = vec![];
    let mut ended: Vec<(String, String)> = vec![];
    let body = |random: &mut Random| {
        let len = match random.below(4) {
            0 => 0,
            1 => random.below(300),
            2 => random.below(5000),
            _ => random.below(SEGMENT_BYTES / 2),
        };
        vec![(len % 251) as u8; len as usize]
    };
    for n in 0.. {
        let orders = store.namespace("orders").unwrap();
        let key = format!("{n}-{}", "k".repeat(random.below(2000) as usize));
        match orders.claim(&key, None) {
            Ok(claim) => {
                let lease = claim.acquired().unwrap();
                pending.push((key, lease.token()));
                // Where more lanes come from.
                if n % 16 == 0 {
                    store.maintain(Duration::MAX);
                }
            }
            Err(error) if is_full(&error) => break,
            Err(other) => panic!("{other}"),
        }
        if random.chance(20) {
            let index = random.below(pending.len() as u64) as usize;
            let (key, token) = pending.swap_remove(index);
            let result = end(&store, &key, token, random.next(), &body(&mut random));
            ended.push((key, result));
        }
    }
    let granted = (pending.len() + ended.len()) as u64;
    for stop in 0..=stops {
        // Some now, some after the next stop.
        let share = if stop == stops { pending.len() } else { pending.len() / 2 };
        for (key, token) in pending.drain(..share) {
            let result = end(&store, &key, token, random.next(), &body(&mut random));
            ended.push((key, result));
        }
        for (key, result) in &ended {
            assert_eq!(&found(&store, key), result, "{key}");
        }
        store.abandon();
        // As many lanes as before, or others.
        store = disk.open_with(durability, if stop % 2 == 0 { lanes } else { 8 / lanes }).unwrap();
        for (key, result) in &ended {
            assert_eq!(&found(&store, key), result, "{key} after {stop} stops");
        }
    }
    store.check_invariants().unwrap();
    // Once there is room again, the store goes on.
    disk.left.store(u64::MAX, Ordering::SeqCst);
    let orders = store.namespace("orders").unwrap();
    let lease = orders.claim("afterwards", None).unwrap().acquired().unwrap();
    assert_eq!(lease.complete("body").unwrap().body(), BodyKept::Kept);
    let homeless = ended.iter().filter(|it| it.1.starts_with("completed without")).count();
    (granted, homeless as u64)
}

#[test]
fn every_granted_key_is_ended_on_a_disk_that_fills_at_any_step() {
    let seed = support::seed("full");
    let (mut granted, mut homeless) = (0, 0);
    for steps in 0..14 {
        for (at, durability) in [Durability::Sync, Durability::Buffered].into_iter().enumerate() {
            for (stops, lanes) in [(0, 1), (1, 1), (2, 1), (0, 2), (1, 4), (2, 8)] {
                let seed = seed ^ steps << 8 ^ at as u64 ^ stops;
                let (more, without) = fill_and_end(steps, durability, lanes, stops, seed);
                granted += more;
                homeless += without;
            }
        }
    }
    println!("{granted} claims granted and ended; {homeless} bodies had no room");
    assert!(granted > 1000 && homeless > 100, "{granted} {homeless}");
}

#[test]
fn a_new_store_that_cannot_hold_a_claim_is_refused() {
    // NAMES and META.new can be made, the first data file cannot.
    for steps in 0..4 {
        match Disk::full_after(steps).open(Durability::Sync) {
            Ok(_) => panic!("opened after {steps} steps"),
            Err(OpenError::Full { .. } | OpenError::Io(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn a_smaller_file_is_tried_when_a_larger_one_does_not_fit() {
    let fs = HeapFs::new();
    // Room for one segment and its file's head, not for four.
    fs.set_room(SEGMENT_BYTES + (40 << 10));
    let store = Options::new("unused")
        .file_system(fs.clone())
        .segment_bytes(SEGMENT_BYTES)
        .manual_maintenance(true)
        .open()
        .unwrap();
    assert_eq!(store.stats().disk_bytes, SEGMENT_BYTES + (32 << 10));
    // One segment is too few to promise that a claim can be completed, but enough for marks.
    let orders = store.namespace("orders").unwrap();
    assert!(is_full(&orders.claim("a", None).unwrap_err()));
    assert!(orders.once("a", None).is_ok());
    fs.set_room(u64::MAX);
    assert!(orders.claim("b", None).unwrap().acquired().is_some());
}

#[test]
fn reserved_room_is_given_back_by_every_exit() {
    let store = Options::in_memory().segment_bytes(SEGMENT_BYTES).open().unwrap();
    let policy = Policy::default().lease(Duration::from_millis(100));
    let orders = store.define("orders", &policy.on_lease_end(OnLeaseEnd::Park)).unwrap();
    let reserved = || store.stats().reserved_bytes;
    let claim = |key: &str| orders.claim(key, None).unwrap().acquired().unwrap();
    assert_eq!(reserved(), 0);
    claim("a").complete("outcome").unwrap();
    assert_eq!(reserved(), 0);
    claim("b").release().unwrap();
    assert_eq!(reserved(), 0);
    let lease = claim("c");
    let full = reserved();
    assert!(full >= 2 * 64);
    let token = lease.token();
    orders.renew("c", token).unwrap();
    assert_eq!(reserved(), full, "a renewal reserves room for the next one");
    lease.park().unwrap();
    assert!(reserved() > 0 && reserved() < full, "a parked key keeps room for what ends it");
    orders.resolve("c", token, &Resolution::NotDone, "a test", "nobody").unwrap();
    assert_eq!(reserved(), 0);
    let token = claim("d").token();
    orders.forget("d", "a test", "nobody").unwrap();
    assert_eq!(reserved(), 0);
    assert!(orders.complete("d", token, "late").is_err());
    drop(claim("e"));
    assert_eq!(reserved(), full);
}

/// Its end has room; why it was resolved like this may have none.
#[test]
fn what_is_parked_is_resolved_on_a_full_disk() {
    let disk = Disk::full_after(u64::MAX);
    let store = disk.open(Durability::Buffered).unwrap();
    let orders = store.define("orders", &policy()).unwrap();
    let parked = |n: u64| {
        let options = ClaimOptions::new().fingerprint(Fingerprint::of(b"payload"));
        let lease = orders.claim_with(format!("parked-{n}"), &options).unwrap();
        let lease = lease.acquired().unwrap();
        let token = lease.token();
        lease.park().unwrap();
        token
    };
    let tokens: Vec<_> = (0..200).map(parked).collect();
    disk.left.store(0, Ordering::SeqCst);
    let mut filled = 0..;
    let mut fill = || {
        // Completions, and claims with what ends them.
        let marked = filled.by_ref().take_while(|n| orders.once(format!("{n}"), None).is_ok());
        let count = marked.count();
        while let Ok(claim) = orders.claim("once more", None) {
            claim.acquired().unwrap().release().unwrap();
        }
        count
    };
    assert!(fill() > 0);
    let reason = "x".repeat(255);
    for (n, token) in tokens.into_iter().enumerate() {
        let done = Resolution::Completed(CompleteOptions::body(b"no room for it"));
        let resolution = if n % 2 == 0 { done } else { Resolution::NotDone };
        let key = format!("parked-{n}");
        fill();
        orders.resolve(key, token, &resolution, &reason, "an operator").unwrap();
    }
    assert_eq!(store.stats().reserved_bytes, 0);
}

#[test]
fn a_reopened_store_reserves_what_its_claims_need() {
    let disk = Disk::full_after(u64::MAX);
    let store = disk.open(Durability::Buffered).unwrap();
    let orders = store.define("orders", &policy()).unwrap();
    for n in 0..50 {
        let lease = orders.claim(format!("{n}"), None).unwrap().acquired().unwrap();
        match n % 5 {
            0 => drop(lease),
            1 => lease.park().unwrap(),
            2 => {
                let token = lease.token();
                orders.renew(format!("{n}"), token).unwrap();
            }
            3 => lease.release().unwrap(),
            _ => assert!(lease.complete("outcome").is_ok()),
        }
    }
    let reserved = store.stats().reserved_bytes;
    store.abandon();
    let store = disk.open(Durability::Buffered).unwrap();
    assert_eq!(store.stats().reserved_bytes, reserved);
}
