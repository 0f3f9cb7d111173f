//! Claiming, completing, replaying: what every caller sees first.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

use refrain::{Body, Claim, EndCause, Fingerprint, Store};

fn store() -> Store {
    Store::in_memory().unwrap()
}

#[test]
fn the_first_claim_wins_and_every_retry_gets_its_bytes() {
    let store = store();
    let orders = store.namespace("orders").unwrap();
    let lease = orders.claim("order-1", None).unwrap().acquired().unwrap();
    assert_eq!(lease.attempt(), 1);
    let Claim::InProgress(other) = orders.claim("order-1", None).unwrap() else { panic!() };
    assert_eq!(other.token(), lease.token());
    let token = lease.token();
    lease.complete(b"receipt").unwrap();
    for _ in 0..3 {
        let outcome = orders.claim("order-1", None).unwrap().completed().unwrap();
        assert_eq!(outcome.body(), Body::Bytes(b"receipt"));
        assert_eq!(outcome.token(), token);
    }
    store.check_invariants().unwrap();
}

#[test]
fn on_disk_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let orders = store.namespace("orders").unwrap();
    let lease = orders.claim("order-1", Fingerprint::of(b"x")).unwrap().acquired().unwrap();
    lease.complete(b"receipt").unwrap();
    let lease = orders.claim("order-2", None).unwrap().acquired().unwrap();
    drop(lease);
    store.close().unwrap();
    let store = Store::open(dir.path()).unwrap();
    println!("{:?}", store.report());
    let orders = store.namespace("orders").unwrap();
    let outcome = orders.claim("order-1", None).unwrap().completed().unwrap();
    assert_eq!(outcome.body(), Body::Bytes(b"receipt"));
    let lease = orders.claim("order-2", None).unwrap().acquired().unwrap();
    assert_eq!(lease.attempt(), 2);
    assert_eq!(lease.previous().unwrap().cause(), EndCause::Orphaned);
}
