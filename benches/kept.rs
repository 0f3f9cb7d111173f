//! From which length on is an outcome better shown where it lies than copied?
//!
//! 256 completed keys with bodies of each length, asked for in turn by one thread and by two. *Shown*: by
//! `lookup_with`, which keeps nothing. *Copied*: the same, and a copy made of it. *Lookup*: what `lookup`
//! gives, a copy below `Outcome::KEPT_BYTES_MIN` bytes, the body where it lies from there on. What two
//! threads lose against one is the count of the segment, which both change.
#![allow(missing_docs, reason = "a program")]

mod common;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use refrain::{Body, Claim, Lookup, Namespace};

use common::{Key, group, keys, namespace, stores};

const KEYS: u64 = 256;
const LENGTHS: &[usize] = &[128, 1 << 10, 2 << 10, 4 << 10, 8 << 10, 16 << 10, 64 << 10, 256 << 10];

/// How an outcome is read.
type Way = fn(&Namespace, &Key);

/// Both ends are looked at.
fn touch(body: Body<'_>) {
    let Body::Bytes(bytes) = body else { panic!("the body is there") };
    black_box((bytes.first(), bytes.last()));
}

fn shown(space: &Namespace, key: &Key) {
    let shown = space.lookup_with(key, |lookup| match lookup {
        Lookup::Completed(outcome) => touch(outcome.body()),
        other => panic!("{other:?}"),
    });
    shown.expect("it can be read");
}

fn copied(space: &Namespace, key: &Key) {
    let copy = space.lookup_with(key, |lookup| match lookup {
        Lookup::Completed(outcome) => outcome.to_outcome(),
        other => panic!("{other:?}"),
    });
    touch(copy.expect("it can be read").body());
}

fn looked_up(space: &Namespace, key: &Key) {
    let Ok(Lookup::Completed(outcome)) = space.lookup(key) else { panic!("it is completed") };
    touch(outcome.body());
}

/// How long it takes until each of so many threads has done it `count` times.
fn by_threads(threads: usize, count: u64, space: &Namespace, keys: &[Key], each: Way) -> Duration {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let space = space.clone();
            scope.spawn(move || {
                keys.iter().cycle().take(count as usize).for_each(|key| each(&space, key));
            });
        }
    });
    start.elapsed()
}

fn kept(criterion: &mut Criterion) {
    let lengths = if std::env::args().any(|it| it == "--test") { &LENGTHS[3..5] } else { LENGTHS };
    for threads in [1, 2] {
        let mut group = group(criterion, "kept", 1);
        group.throughput(Throughput::Elements(threads as u64));
        for length in lengths {
            // The one in a directory: in memory it is the same code.
            let Some((_, store, _directory)) = stores().next() else { panic!("there is one") };
            let space = namespace(&store);
            let keys = keys(0..KEYS);
            let body = vec![7; *length];
            for key in &keys {
                let Ok(Claim::Acquired(lease)) = space.claim(key, None) else { panic!("new") };
                lease.complete(&body).expect("there is room");
            }
            let ways: [(&str, Way); 3] =
                [("shown", shown), ("copied", copied), ("lookup", looked_up)];
            for (way, each) in ways {
                group.bench_function(format!("{length} bytes, {threads} threads, {way}"), |it| {
                    it.iter_custom(|count| by_threads(threads, count, &space, &keys, each));
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, kept);
criterion_main!(benches);
