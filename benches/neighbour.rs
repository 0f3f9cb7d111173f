//! How much does a namespace that is claimed in at full speed disturb another one?
//!
//! A victim claims and completes a new key and asks for one of its last thousand, at a constant rate of its own; each such step is timed from when it
//! was due. Beside it one thread does what it can, in another namespace of the same store: it only *hashes*, and so takes a
//! processor and nothing else; or it *floods* with new keys, *hammers* one key with other fingerprints, or is *refused*: its namespace has
//! had its quota. *Two hash* is two threads that only hash: three threads want two processors, as when one floods and the store's own thread makes room. Or, with the feature `rate-limit`, it is *limited* to a thousand new keys a second, and asks on. They alternate; a percentile is the median of the rounds, and the ratio is to the neighbour that hashes,
//! of the same round. `REFRAIN_RATE` is the victim's steps a second.
#![allow(missing_docs, reason = "a program")]

mod common;

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ahash::RandomState;
use refrain::{
    Claim, ClaimError, Durability, Fingerprint, FingerprintRule, Namespace, Options, Policy, Quota,
    Store,
};

use common::{BODY, key, median, number};

const ROUNDS: usize = 7;
const LENGTH: Duration = Duration::from_secs(2);
/// Of a million steps, how many are faster.
const PERCENTILES: [(usize, &str); 3] = [(500_000, "p50"), (990_000, "p99"), (999_000, "p99.9")];

/// Two of them, who take a processor each.
const TWO: &str = "two hash";
/// The one that has a quota, and the one that has a rate.
const REFUSED: &str = "is refused";
#[cfg(feature = "rate-limit")]
const LIMITED: &str = "is limited";

/// What the neighbour does with its n-th turn.
type Turn = fn(&Namespace, u64);

fn hash(_: &Namespace, n: u64) {
    static STATE: std::sync::OnceLock<RandomState> = std::sync::OnceLock::new();
    black_box(STATE.get_or_init(RandomState::new).hash_one(key(n)));
}

fn flood(space: &Namespace, n: u64) {
    if let Claim::Acquired(lease) = space.claim(key(n), None).expect("there is room") {
        lease.complete(BODY).expect("a live lease");
    }
}

fn hammer(space: &Namespace, n: u64) {
    let fingerprint = Fingerprint::from_digest(u128::from(n + 2).to_le_bytes());
    let answer = space.claim("guessed", fingerprint).expect("it is known");
    assert!(matches!(answer, Claim::Mismatch(_)));
}

fn be_refused(space: &Namespace, n: u64) {
    let refused = space.claim(key(n), None);
    assert!(matches!(refused, Err(ClaimError::QuotaExceeded(_))));
}

#[cfg(feature = "rate-limit")]
fn be_limited(space: &Namespace, n: u64) {
    match space.claim(key(n), None) {
        Ok(Claim::Acquired(lease)) => drop(lease.complete(BODY).expect("a live lease")),
        other => assert!(matches!(other, Err(ClaimError::RateExceeded(_)))),
    }
}

fn main() {
    let rate = number("REFRAIN_RATE", 50_000);
    let length = match std::env::args().any(|it| it == "--test") {
        true => LENGTH / 50,
        false => LENGTH,
    };
    let neighbours: &[(&str, Turn)] = &[
        ("hashes", hash),
        (TWO, hash),
        ("floods", flood),
        ("hammers", hammer),
        (REFUSED, be_refused),
        #[cfg(feature = "rate-limit")]
        (LIMITED, be_limited),
    ];
    let mut rounds: Vec<Vec<[f64; 3]>> = Vec::new();
    let mut turns = vec![0; neighbours.len()];
    let all = if length < LENGTH { 1 } else { ROUNDS };
    for _ in 0..all {
        let mut round = Vec::new();
        for (at, (name, turn)) in neighbours.iter().enumerate() {
            let (percentiles, count) = beside(*turn, name, rate, length);
            round.push(percentiles);
            turns[at] += count / all as u64;
        }
        rounds.push(round);
    }
    println!(
        "a victim of {rate} steps a second; microseconds, medians of {all} rounds, alternating"
    );
    for (at, (name, _)) in neighbours.iter().enumerate() {
        print!("{name:<11} {:>9} turns", turns[at]);
        for (which, (_, percentile)) in PERCENTILES.iter().enumerate() {
            let mut times: Vec<f64> = rounds.iter().map(|round| round[at][which]).collect();
            let mut ratios: Vec<f64> =
                rounds.iter().map(|round| round[at][which] / round[0][which]).collect();
            print!(
                "  {percentile} {:>8.2}, {:>5.2} x",
                median(&mut times) / 1e3,
                median(&mut ratios)
            );
        }
        println!();
    }
}

/// The victim's percentiles in nanoseconds, and how many turns its neighbour had.
fn beside(turn: Turn, name: &str, rate: u64, length: Duration) -> ([f64; 3], u64) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = Options::new(directory.path()).durability(Durability::Buffered);
    // What growing costs is not the neighbour's doing alone.
    let store = options.headroom_bytes(2 << 30).open().expect("a new store");
    let (victim, other) = spaces(&store);
    if name == REFUSED {
        store.limit("other", &Quota::default().keys(1)).expect("it is there");
    }
    #[cfg(feature = "rate-limit")]
    if name == LIMITED {
        let thousand = std::num::NonZeroU32::new(1000).expect("more than none");
        let rates = refrain::Rates::default().new_keys(refrain::Rate::per_second(thousand));
        store.limit_rates("other", &rates).expect("it is there");
    }
    let (is_over, turns) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut latencies = std::thread::scope(|scope| {
        if name == TWO {
            scope.spawn(|| {
                (0..)
                    .take_while(|_| !is_over.load(Ordering::Relaxed))
                    .for_each(|n| turn(&other, n));
            });
        }
        scope.spawn(|| {
            let mut n = 1 << 40;
            while !is_over.load(Ordering::Relaxed) {
                turn(&other, n);
                n += 1;
            }
            turns.store(n - (1 << 40), Ordering::Relaxed);
        });
        let latencies = run(&victim, rate, length);
        is_over.store(true, Ordering::Relaxed);
        latencies
    });
    latencies.sort_unstable();
    let of =
        |(percentile, _): (usize, &str)| latencies[latencies.len() * percentile / 1_000_000] as f64;
    (PERCENTILES.map(of), turns.into_inner())
}

fn spaces(store: &Store) -> (Namespace, Namespace) {
    let victim = store.namespace("victim").expect("a namespace");
    let policy = Policy::default().fingerprint(FingerprintRule::Enforce);
    let other = store.define("other", &policy).expect("a namespace");
    let guessed = other.claim("guessed", Fingerprint::from_digest([1; 16])).expect("room");
    guessed.acquired().expect("a new key").complete(BODY).expect("a live lease");
    (victim, other)
}

fn run(victim: &Namespace, rate: u64, length: Duration) -> Vec<u64> {
    let steps = rate * length.as_millis() as u64 / 1000;
    let every = Duration::from_secs(1) / rate as u32;
    let mut latencies = Vec::with_capacity(steps as usize);
    let start = Instant::now();
    for step in 0..steps {
        let due = every * step as u32;
        while start.elapsed() < due {
            std::hint::spin_loop();
        }
        let lease = victim.claim(key(step), None).expect("there is room");
        lease.acquired().expect("a new key").complete(BODY).expect("a live lease");
        let known = victim.claim(key(step - step % 1000 / 2), None).expect("it is known");
        black_box(known.completed());
        latencies.push((start.elapsed() - due).as_nanos() as u64);
    }
    latencies
}
