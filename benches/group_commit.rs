//! How many durable completions does a store make, by how many wait for a round together?
//!
//! `Sync` mode. Threads, 1 to 64 of them, claim and complete keys, and each waits for both: two durable
//! calls a key. Then one thread with as many futures in flight, which are waited for in turn: one durable
//! call a key, because a completion that is durable makes its claim so. Throughput is of durable calls, in
//! a store that has few keys: what it waits for is the disk. Runs in the directory that `TMPDIR` names.
#![allow(missing_docs, reason = "a program")]

mod common;

use std::collections::VecDeque;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use refrain::{CompleteOptions, Durability, Namespace, Options};

use common::{BODY, claim, key, namespace};

const WAITING: [u64; 4] = [1, 2, 16, 64];

fn group_commit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("group_commit");
    group.throughput(Throughput::Elements(1)).sample_size(10);
    group.measurement_time(Duration::from_secs(2));
    for waiting in WAITING {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let options = Options::new(directory.path()).durability(Durability::Sync);
        let store = options.open().expect("a new store");
        let space = namespace(&store);
        let mut next = 0;
        group.bench_function(format!("{waiting} threads"), |bencher| {
            bencher.iter_custom(|count| {
                // Two durable calls each.
                let keys = count.div_ceil(2);
                next += keys;
                on_threads(&space, next - keys..next, waiting)
            });
        });
        group.bench_function(format!("{waiting} futures"), |bencher| {
            bencher.iter_custom(|count| {
                next += count;
                in_flight(&space, next - count..next, waiting)
            });
        });
    }
    group.finish();
}

fn on_threads(space: &Namespace, keys: std::ops::Range<u64>, threads: u64) -> Duration {
    // They are there when the time begins.
    let ready = Barrier::new(threads as usize + 1);
    let start = std::thread::scope(|scope| {
        for thread in 0..threads {
            let keys = keys.clone().skip(thread as usize).step_by(threads as usize);
            let ready = &ready;
            scope.spawn(move || {
                ready.wait();
                for n in keys {
                    claim(space, n).complete(BODY).expect("a live lease");
                }
            });
        }
        ready.wait();
        Instant::now()
    });
    start.elapsed()
}

fn in_flight(space: &Namespace, keys: std::ops::Range<u64>, futures: u64) -> Duration {
    let start = Instant::now();
    let mut commits = VecDeque::with_capacity(futures as usize);
    for n in keys {
        // Whoever works on a key may begin before its claim is durable, and the completion covers it.
        let options = refrain::ClaimOptions::new().buffered();
        let lease = space.claim_with(key(n), &options).expect("room").acquired();
        let lease = lease.expect("a fresh key");
        commits.push_back(lease.complete_async(&CompleteOptions::body(&BODY)));
        if commits.len() as u64 == futures {
            commits.pop_front().expect("one is in flight").wait().expect("a disk");
        }
    }
    commits.into_iter().for_each(|commit| {
        commit.wait().expect("a disk");
    });
    start.elapsed()
}

criterion_group!(benches, group_commit);
criterion_main!(benches);
