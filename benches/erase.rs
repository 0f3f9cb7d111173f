//! How long it takes to erase, and what it copies: one key, or a scope, in a store of many.
//!
//! Keys of a hundred scopes are completed, in turn, so that every segment has some of each. Prints, of each call, seconds, segments that
//! held any of it, and records that were copied because they share a segment with it. `REFRAIN_ENTRIES` is how
//! many keys there are.
#![allow(missing_docs, reason = "a program")]

mod common;

use std::time::{Duration, Instant};

use refrain::{Durability, Namespace, Options, Store};

use common::{BODY, key, number};

const SCOPES: u64 = 100;
const HOUR: Duration = Duration::from_secs(3600);

fn told(store: &Store, what: &str, erase: impl FnOnce() -> refrain::Erased) {
    let copied = || store.counts().copied;
    let (start, before) = (Instant::now(), copied());
    let erased = erase();
    let (seconds, copies) = (start.elapsed().as_secs_f64(), copied() - before);
    let (keys, segments) = (erased.keys, erased.segments);
    println!(
        "{what:<24} {keys:>8} keys {segments:>6} segments {copies:>9} copies {seconds:>8.3} s"
    );
}

fn main() {
    let is_test = std::env::args().any(|it| it == "--test");
    let entries = if is_test { 10_000 } else { number("REFRAIN_ENTRIES", 1_000_000) };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = Options::new(directory.path()).durability(Durability::Buffered);
    let store = options.open().expect("a new store");
    let space = store.namespace("orders").expect("a namespace");
    let scope = |n: u64| space.scoped(n.to_le_bytes()).expect("a scope");
    let scopes: Vec<Namespace> = (0..SCOPES).map(scope).collect();
    for n in 0..entries {
        let lease = scopes[(n % SCOPES) as usize].claim(key(n), None).expect("there is room");
        lease.acquired().expect("a new key").complete(BODY).expect("a live lease");
    }
    println!("{entries} completed keys of {SCOPES} scopes");
    let erase_all = |n: usize| scopes[n].erase_all("a bench", "nobody", HOUR).expect("time");
    told(&store, "one key", || {
        scopes[0].erase(key(0), "a bench", "nobody", HOUR).expect("time enough")
    });
    told(&store, "another key", || {
        scopes[0].erase(key(SCOPES), "a bench", "nobody", HOUR).expect("time enough")
    });
    told(&store, "a scope", || erase_all(1));
    told(&store, "another scope", || erase_all(2));
    told(&store, "a scope that is gone", || erase_all(2));
}
