//! What does a batch of 32 cost beside 32 calls?
//!
//! Duplicate claims and lookups of missing keys, in a store of `REFRAIN_ENTRIES` (100,000) completed
//! keys of 36 bytes with bodies of 128, in a scattered order from one thread; and fresh claims, whose
//! store grows all the while. A time is that of 32 keys, one by one or at once.
#![allow(missing_docs, reason = "a program")]

mod common;

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use refrain::{Claim, ClaimOptions, Lookup, Namespace};

use common::{entries, fill, key, namespace, scattered, stores, timed};

const BATCH: u64 = 32;

/// The keys of the nth batch of a scattered order, from `first` on.
fn keys(nth: u64, first: u64, count: u64) -> [[u8; 36]; BATCH as usize] {
    std::array::from_fn(|at| key(first + scattered(nth * BATCH + at as u64, count)))
}

fn claim_one_by_one(space: &Namespace, keys: &[[u8; 36]], is_expected: fn(&Claim) -> bool) {
    for key in keys {
        let claim = space.claim(key, None).expect("room");
        assert!(is_expected(&claim));
    }
}

fn claim_at_once(space: &Namespace, keys: &[[u8; 36]], is_expected: fn(&Claim) -> bool) {
    let claims: [_; BATCH as usize] = std::array::from_fn(|at| (&keys[at], ClaimOptions::new()));
    for claim in space.claim_batch(&claims) {
        assert!(is_expected(&claim.expect("room")));
    }
}

fn is_completed(claim: &Claim) -> bool {
    matches!(claim, Claim::Completed(_))
}

fn is_acquired(claim: &Claim) -> bool {
    matches!(claim, Claim::Acquired(_))
}

fn look_up_one_by_one(space: &Namespace, keys: &[[u8; 36]]) {
    for key in keys {
        assert!(matches!(space.lookup(key), Ok(Lookup::Absent)));
    }
}

fn look_up_at_once(space: &Namespace, keys: &[[u8; 36]]) {
    for lookup in space.lookup_batch(keys) {
        assert!(matches!(lookup, Ok(Lookup::Absent)));
    }
}

fn batch(criterion: &mut Criterion) {
    let count = entries();
    let mut group = criterion.benchmark_group("batch");
    group.throughput(Throughput::Elements(BATCH));
    for (name, store, _directory) in stores() {
        let space = namespace(&store);
        fill(&space, 0..count);
        for (how, claim) in
            [("32 calls", claim_one_by_one as fn(&_, &_, _)), ("a batch", claim_at_once)]
        {
            group.bench_function(format!("{name}, duplicates, {how}"), |bencher| {
                bencher.iter_custom(|batches| {
                    timed(batches, |nth| claim(&space, &keys(nth, 0, count), is_completed))
                });
            });
        }
        for (how, look_up) in
            [("32 calls", look_up_one_by_one as fn(&_, &_)), ("a batch", look_up_at_once)]
        {
            group.bench_function(format!("{name}, missing, {how}"), |bencher| {
                bencher.iter_custom(|batches| {
                    timed(batches, |nth| look_up(&space, &keys(nth, count, count)))
                });
            });
        }
    }
    // Nobody has claimed these; no two calls of a measurement share a key.
    let mut next = 0;
    for (name, store, _directory) in stores() {
        let space = namespace(&store);
        for (how, claim) in
            [("32 calls", claim_one_by_one as fn(&_, &_, _)), ("a batch", claim_at_once)]
        {
            group.bench_function(format!("{name}, fresh, {how}"), |bencher| {
                bencher.iter_custom(|batches| -> Duration {
                    let first = next;
                    next += batches * BATCH;
                    timed(batches, |nth| {
                        let keys: [_; BATCH as usize] =
                            std::array::from_fn(|at| key(first + nth * BATCH + at as u64));
                        claim(&space, &keys, is_acquired);
                    })
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, batch);
criterion_main!(benches);
