//! More segments that are not stable than one slot of a mark lists: damage below what was made durable is noticed all the
//! same, and not taken for a torn tail (R9, F12).
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::time::Duration;

use refrain::testing::{FileSystem, HeapFs, SimClock};
use refrain::{Durability, Namespace, OpenError, Options, Policy, Store};
use support::disk::{poke, read};

const SEGMENT_BYTES: u64 = 256 << 10;

fn options(fs: &HeapFs, clock: &SimClock) -> Options {
    let options = Options::new("unused").file_system(fs.clone()).clock(clock.clone());
    options.segment_bytes(SEGMENT_BYTES).manual_maintenance(true)
}

/// A large body, which says whose it is.
fn body(name: &str) -> Vec<u8> {
    let mut body = vec![7; 70_000];
    body[..name.len()].copy_from_slice(name.as_bytes());
    body
}

fn name(n: usize) -> String {
    format!("<<the outcome of {n:05}>>")
}

fn complete(space: &Namespace, key: &str, body: &[u8]) {
    space.claim(key, None).unwrap().acquired().unwrap().complete(body).unwrap();
}

/// Damages the body that begins with this name in a copy of the store, and opens it.
fn open_damaged(fs: &HeapFs, clock: &SimClock, name: &str) -> Result<Store, OpenError> {
    let copy = fs.copy().unwrap();
    let mut is_hit = false;
    for file in copy.list().unwrap().into_iter().filter(|file| file.starts_with("data")) {
        let bytes = read(&copy, &file);
        if let Some(at) = bytes.windows(name.len()).position(|it| it == name.as_bytes()) {
            poke(&copy, &file, at as u64 + 1000, b"rotten");
            is_hit = true;
        }
    }
    assert!(is_hit, "{name}");
    options(&copy, clock).verify_at_open(true).open()
}

/// Nobody has looked after the store for a while, so nothing is sealed: up to three slots' worth, and more, for which
/// whoever appends has to seal.
#[test]
fn damage_below_the_mark_is_noticed_when_maintenance_is_late() {
    for count in [60, 700, 2000] {
        let (fs, clock) = (HeapFs::new(), SimClock::new());
        let store = options(&fs, &clock).lanes(1).open().unwrap();
        let space = store.namespace("space").unwrap();
        for n in 0..count {
            complete(&space, &format!("key {n}"), &body(&name(n)));
        }
        store.flush().unwrap();
        store.abandon();
        for n in [count - 1, count / 2, 0] {
            match open_damaged(&fs, &clock, &name(n)) {
                Err(OpenError::Corrupt { .. }) => {}
                other => panic!("{n} of {count}: {other:?}"),
            }
        }
        // And without damage everything is there.
        let store = options(&fs, &clock).open().unwrap();
        let space = store.namespace("space").unwrap();
        for n in 0..count {
            let outcome = space.claim(format!("key {n}"), None).unwrap().completed().unwrap();
            assert_eq!(outcome.body(), refrain::Body::Bytes(&body(&name(n))));
        }
    }
}

/// Many lanes of many classes, most of which came before the lanes did.
#[test]
fn damage_below_the_mark_is_noticed_with_many_lanes_and_classes() {
    const CLASSES: usize = 42;
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let options = |fs: &HeapFs| {
        let options = options(fs, &clock).durability(Durability::Buffered);
        options.lanes(16).shared_by_chance(1)
    };
    fs.set_room(5 * SEGMENT_BYTES);
    let store = options(&fs).open().unwrap();
    fs.set_room(u64::MAX);
    let define = |n: usize| {
        // Those that share no class: a few as they are, and powers of two.
        let seconds = if n < 16 { 3600 + 60 * n as u64 } else { 16 << (n - 16) };
        let ttl = Duration::from_secs(seconds);
        let policy = Policy::default().lease(Duration::from_secs(1)).late_grace(Duration::ZERO);
        store.define(&format!("space {n}"), &policy.replay_ttl(ttl).dedupe_ttl(ttl)).unwrap()
    };
    let spaces: Vec<_> = (0..CLASSES).map(define).collect();
    let fill = |round: usize| {
        for space in &spaces {
            (0..150).for_each(|k| complete(space, &format!("{round} {k}"), &[7; 1000]));
        }
    };
    let large = |round: usize| {
        for (n, space) in spaces.iter().enumerate() {
            let body = if round == 2 { body(&name(n)) } else { vec![9; 70_000] };
            complete(space, &format!("large {round}"), &body);
        }
    };
    large(0);
    let mut round = 0;
    while store.stats().lanes < 16 {
        fill(round);
        store.maintain(Duration::ZERO);
        round += 1;
        assert!(round < 1000);
    }
    large(1);
    fill(round);
    large(2);
    store.flush().unwrap();
    store.abandon();
    for n in (0..CLASSES).step_by(5) {
        match open_damaged(&fs, &clock, &name(n)) {
            Err(OpenError::Corrupt { .. }) => {}
            other => panic!("{n}: {other:?}"),
        }
    }
}
