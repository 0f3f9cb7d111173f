//! The workloads: what the threads do to a contestant, and how long they take for it.
//!
//! A workload that is to be added is a function here, a call in `jobs::speed`, and a line in
//! [`WORKLOADS`] or [`BATCHED`]; driver and report know workloads by these lists only.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::keys::{BODY, Bodies, Body, Key, fingerprint, key};
use crate::store::{Answer, Hand, Result, State, Store};

/// The workloads by the names of their metrics, in the order of the tables.
pub const WORKLOADS: &[(&str, &str)] = &[
    ("w1", "claim of a fresh key"),
    ("w2", "complete"),
    ("pair", "claim and complete"),
    ("w3", "duplicate claim, uniform, bytes copied"),
    ("w4", "lookup of a missing key"),
    ("w5", "zipf 0.99 stream"),
];

/// Keys in a batch.
pub const BATCH: usize = 32;

/// The same in batches, for who takes them: the metric, and that of the single calls beside it.
pub const BATCHED: &[(&str, &str)] = &[("b1", "w1"), ("b2", "w2"), ("b3", "w3"), ("b4", "w4")];

/// How many operations took how long, on the clock of the wall.
#[derive(Clone, Copy, Debug)]
pub struct Timed {
    pub ops: usize,
    pub seconds: f64,
}

impl Timed {
    pub fn ns_per_op(self) -> f64 {
        self.seconds * 1e9 / self.ops as f64
    }
}

/// When a phase is to end, if it has not yet.
#[derive(Clone, Copy)]
pub struct Cap(Option<Duration>);

impl Cap {
    /// So many seconds; none if zero.
    pub fn seconds(seconds: f64) -> Self {
        Self((seconds > 0.0).then(|| Duration::from_secs_f64(seconds)))
    }

    /// Whether the nth operation is one too many. Looks at the clock now and then only.
    fn is_over(self, nth: usize, start: Instant) -> bool {
        nth % 64 == 63 && self.0.is_some_and(|cap| start.elapsed() > cap)
    }
}

/// Runs `work` on so many threads at once, each with what `prepare` made for it. Each says how many
/// operations it did.
fn together<H>(
    threads: usize,
    prepare: impl Fn(usize) -> Result<H> + Sync,
    work: impl Fn(usize, &mut H) -> Result<usize> + Sync,
) -> Result<Timed> {
    let barrier = Barrier::new(threads);
    let run = |index| -> Result<(usize, Instant, Instant)> {
        let hand = prepare(index);
        barrier.wait();
        let start = Instant::now();
        let ops = work(index, &mut hand?)?;
        Ok((ops, start, Instant::now()))
    };
    let results = std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..threads).map(|index| scope.spawn(move || run(index))).collect();
        threads.into_iter().map(|it| it.join()).collect::<Vec<_>>()
    });
    let mut all = vec![];
    for result in results {
        all.push(result.map_err(|_| "a thread of the workload panicked")??);
    }
    let ops = all.iter().map(|(ops, ..)| ops).sum();
    let start = all.iter().map(|(_, start, _)| *start).min();
    let end = all.iter().map(|(.., end)| *end).max();
    let seconds = start.zip(end).map_or(0.0, |(start, end)| (end - start).as_secs_f64());
    Ok(Timed { ops, seconds })
}

/// The part of a slice that is one thread's.
fn part<T>(all: &[T], index: usize, threads: usize) -> &[T] {
    let each = all.len() / threads;
    &all[index * each..][..each]
}

/// W1: each thread claims its part of the keys. Also gives the tokens, a part for each thread.
pub fn claim_fresh<S: Store>(
    store: &S,
    keys: &[Key],
    threads: usize,
    cap: Cap,
) -> Result<(Timed, Vec<Vec<u64>>)> {
    let tokens = std::sync::Mutex::new(vec![vec![]; threads]);
    let prepare = |_| {
        // Written once, so that storing a token faults no page.
        let mut room = Vec::new();
        room.resize(keys.len() / threads, 1u64);
        room.clear();
        Ok((store.hand()?, room))
    };
    let timed = together(threads, prepare, |index, (hand, room)| {
        let (mut out, start) = ([0; BODY], Instant::now());
        for (nth, key) in part(keys, index, threads).iter().enumerate() {
            match hand.claim(key, fingerprint(key), &mut out)? {
                Answer::Acquired(token) => room.push(token),
                other => return Err(format!("a fresh key was answered {other:?}").into()),
            }
            if cap.is_over(nth, start) {
                break;
            }
        }
        let ops = room.len();
        tokens.lock().map_err(|_| "poisoned")?[index] = std::mem::take(room);
        Ok(ops)
    })?;
    Ok((timed, tokens.into_inner().map_err(|_| "poisoned")?))
}

/// W2: each thread completes what it claimed.
pub fn complete<S: Store>(
    store: &S,
    keys: &[Key],
    tokens: &[Vec<u64>],
    bodies: &Bodies,
    cap: Cap,
) -> Result<Timed> {
    let threads = tokens.len();
    together(
        threads,
        |_| store.hand(),
        |index, hand| {
            let (mut ops, start) = (0, Instant::now());
            for (key, token) in part(keys, index, threads).iter().zip(&tokens[index]) {
                hand.complete(key, *token, bodies.nth(ops))?;
                ops += 1;
                if cap.is_over(ops, start) {
                    break;
                }
            }
            Ok(ops)
        },
    )
}

/// W3: claims of completed keys. The bytes are copied out and touched.
pub fn claim_duplicate<S: Store>(
    store: &S,
    stream: &[Key],
    threads: usize,
    cap: Cap,
) -> Result<Timed> {
    together(
        threads,
        |_| store.hand(),
        |index, hand| {
            let (mut ops, mut out, mut sum, start) = (0, [0; BODY], 0u64, Instant::now());
            for key in part(stream, index, threads) {
                match hand.claim(key, fingerprint(key), &mut out)? {
                    Answer::Completed => sum += u64::from(out[0]) + u64::from(out[BODY - 1]),
                    other => return Err(format!("a completed key was answered {other:?}").into()),
                }
                ops += 1;
                if cap.is_over(ops, start) {
                    break;
                }
            }
            std::hint::black_box(sum);
            Ok(ops)
        },
    )
}

/// W4: lookups of keys that were never claimed.
pub fn lookup_missing<S: Store>(
    store: &S,
    stream: &[Key],
    threads: usize,
    cap: Cap,
) -> Result<Timed> {
    together(
        threads,
        |_| store.hand(),
        |index, hand| {
            let (mut ops, mut out, start) = (0, [0; BODY], Instant::now());
            for key in part(stream, index, threads) {
                if hand.lookup(key, &mut out)? != State::Absent {
                    return Err("a key that was never claimed is known".into());
                }
                ops += 1;
                if cap.is_over(ops, start) {
                    break;
                }
            }
            Ok(ops)
        },
    )
}

/// W1 in batches; what is left of a thread's part is not claimed. The tokens are as of [`claim_fresh`].
pub fn claim_fresh_batched<S: Store>(
    store: &S,
    keys: &[Key],
    threads: usize,
) -> Result<(Timed, Vec<Vec<u64>>)> {
    let tokens = std::sync::Mutex::new(vec![vec![]; threads]);
    let prepare = |_| {
        let mut room = Vec::new();
        room.resize(keys.len() / threads, 1u64);
        room.clear();
        Ok((store.hand()?, room))
    };
    let timed = together(threads, prepare, |index, (hand, room)| {
        let mut out = [0; BODY];
        for batch in part(keys, index, threads).chunks_exact(BATCH) {
            hand.claim_batch(batch, &mut out, |answer, _| {
                if let Answer::Acquired(token) = answer {
                    room.push(token);
                }
            })?;
            if room.len() % BATCH != 0 {
                return Err("a fresh key was not acquired".into());
            }
        }
        let ops = room.len();
        tokens.lock().map_err(|_| "poisoned")?[index] = std::mem::take(room);
        Ok(ops)
    })?;
    Ok((timed, tokens.into_inner().map_err(|_| "poisoned")?))
}

/// W2 in batches.
pub fn complete_batched<S: Store>(
    store: &S,
    keys: &[Key],
    tokens: &[Vec<u64>],
    bodies: &Bodies,
) -> Result<Timed> {
    let threads = tokens.len();
    together(
        threads,
        |_| store.hand(),
        |index, hand| {
            let keys = part(keys, index, threads).chunks_exact(BATCH);
            let mut ops = 0;
            for (keys, tokens) in keys.zip(tokens[index].chunks_exact(BATCH)) {
                hand.complete_batch(keys, tokens, bodies, ops)?;
                ops += BATCH;
            }
            Ok(ops)
        },
    )
}

/// W3 in batches: the bytes are copied out and touched too.
pub fn claim_duplicate_batched<S: Store>(
    store: &S,
    stream: &[Key],
    threads: usize,
) -> Result<Timed> {
    together(
        threads,
        |_| store.hand(),
        |index, hand| {
            let (mut ops, mut completed, mut out, mut sum) = (0, 0, [0; BODY], 0u64);
            for batch in part(stream, index, threads).chunks_exact(BATCH) {
                hand.claim_batch(batch, &mut out, |answer, body| {
                    completed += usize::from(answer == Answer::Completed);
                    sum += u64::from(body[0]) + u64::from(body[BODY - 1]);
                })?;
                ops += BATCH;
            }
            std::hint::black_box(sum);
            match completed == ops {
                true => Ok(ops),
                false => Err("a completed key was answered otherwise".into()),
            }
        },
    )
}

/// W4 in batches.
pub fn lookup_missing_batched<S: Store>(
    store: &S,
    stream: &[Key],
    threads: usize,
) -> Result<Timed> {
    together(
        threads,
        |_| store.hand(),
        |index, hand| {
            let mut ops = 0;
            for batch in part(stream, index, threads).chunks_exact(BATCH) {
                if hand.lookup_batch(batch)? > 0 {
                    return Err("a key that was never claimed is known".into());
                }
                ops += BATCH;
            }
            Ok(ops)
        },
    )
}

/// W5: a stream a thread; what is new is claimed and completed, the rest are duplicates.
pub fn stream<S: Store>(
    store: &S,
    streams: &[Vec<Key>],
    bodies: &Bodies,
    cap: Cap,
) -> Result<Timed> {
    together(
        streams.len(),
        |_| store.hand(),
        |index, hand| {
            let (mut ops, mut out, mut sum, start) = (0, [0; BODY], 0u64, Instant::now());
            for key in &streams[index] {
                match hand.pass(key, fingerprint(key), bodies.nth(ops), &mut out)? {
                    Answer::Completed => sum += u64::from(out[0]) + u64::from(out[BODY - 1]),
                    // The other thread is at it.
                    Answer::Acquired(_) | Answer::InProgress => {}
                    Answer::Mismatch => return Err("a key differs from itself".into()),
                }
                ops += 1;
                if cap.is_over(ops, start) {
                    break;
                }
            }
            std::hint::black_box(sum);
            Ok(ops)
        },
    )
}

/// Claims and completes fresh keys for so long, each thread keys of its own.
pub fn pairs<S: Store>(
    store: &S,
    threads: usize,
    length: Duration,
    bodies: &Bodies,
) -> Result<Timed> {
    together(
        threads,
        |_| store.hand(),
        |index, hand| {
            let (mut ops, mut out, start) = (0, [0; BODY], Instant::now());
            while start.elapsed() < length {
                let key = key(((index as u64) << 32) + ops as u64);
                match hand.pass(&key, fingerprint(&key), bodies.nth(ops), &mut out)? {
                    Answer::Acquired(_) => ops += 1,
                    other => return Err(format!("a fresh key was answered {other:?}").into()),
                }
            }
            Ok(ops)
        },
    )
}

/// All threads claim one key that is completed.
pub fn hot_key<S: Store>(store: &S, threads: usize, length: Duration) -> Result<Timed> {
    let (key, mut out): (Key, Body) = (key(1), [0; BODY]);
    store.hand()?.pass(&key, fingerprint(&key), &[7; BODY], &mut out)?;
    together(
        threads,
        |_| store.hand(),
        |_, hand| {
            let (mut ops, mut out, start) = (0, [0; BODY], Instant::now());
            while ops % 64 != 0 || start.elapsed() < length {
                if hand.claim(&key, fingerprint(&key), &mut out)? != Answer::Completed {
                    return Err("the hot key is not completed".into());
                }
                ops += 1;
            }
            std::hint::black_box(out);
            Ok(ops)
        },
    )
}

/// What so many threads do that share nothing: hash a key again and again.
pub fn hash_only(threads: usize, length: Duration) -> Result<Timed> {
    let hasher = ahash::RandomState::with_seeds(1, 2, 3, 4);
    together(
        threads,
        |index| Ok(key(index as u64)),
        |_, key| {
            let (mut ops, start) = (0, Instant::now());
            while ops % 64 != 0 || start.elapsed() < length {
                key[0] = hasher.hash_one(*key) as u8;
                ops += 1;
            }
            Ok(ops)
        },
    )
}
