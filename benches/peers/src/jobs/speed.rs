//! W1 to W5, one after the other, as nanoseconds of wall clock an operation; and W1 to W4 in
//! batches.
//!
//! Each fill has a store and a directory of its own, and memory is warmed before each store is
//! opened. What batches gain is not to come from where they stand in the process: in odd repeats
//! their fill comes before the single one, and their reads before the single reads of the same
//! store. Those have keys of their own to read, and before either every key was read once, untimed
//! (for as long as reads may take, where that is limited), whoever it is: none finds pages mapped
//! or caches filled that the other did not.
//!
//! What cannot do all claims in the time that it has is loaded by the fastest way there is before
//! its reads; its W1 and W2 are then those of a smaller store, which is in its favour. W5 is 2
//! million operations a thread, half of the 4 million a thread that were made before there was this
//! harness, so that the section ends in time.

use super::{Order, tell};
use crate::contestants::Job;
use crate::keys::{self, Bodies, Key, MISSING};
use crate::machine;
use crate::store::{Hand, Result, Store};
use crate::workloads::{self as work, Cap};

pub struct Speed<'a>(pub &'a Order);

impl Job for Speed<'_> {
    fn run<S: Store>(&self) -> Result<()> {
        let run = Run::new(self.0)?;
        let has_batches = S::BATCHES && self.0.number("batches")? > 0.0;
        if has_batches && run.batches_first {
            run.fill_in_batches::<S>()?;
        }
        run.fill_and_read::<S>()?;
        if has_batches && !run.batches_first {
            run.fill_in_batches::<S>()?;
        }
        run.stream::<S>()
    }
}

/// What all parts of the job need.
struct Run<'a> {
    order: &'a Order,
    n: usize,
    threads: usize,
    reads: usize,
    repeat: u64,
    batches_first: bool,
    cap: Cap,
    read_cap: Cap,
    bodies: Bodies,
}

/// Seeds of the keys that are read, by single calls and in batches; and of the streams.
const SEED_SINGLE: u64 = 4242;
const SEED_BATCHED: u64 = 535_000;
const SEED_STREAM: u64 = 1000;

impl<'a> Run<'a> {
    fn new(order: &'a Order) -> Result<Self> {
        let (cap, repeat) = (order.number("cap")?, order.count("repeat")? as u64);
        Ok(Self {
            order,
            n: order.count("n")?,
            threads: order.count("threads")?,
            reads: order.count("reads")?,
            repeat,
            batches_first: !repeat.is_multiple_of(2),
            cap: Cap::seconds(cap),
            read_cap: Cap::seconds(cap / 2.0),
            bodies: Bodies::new(),
        })
    }

    /// Opens a store in a directory of its own, when memory is warm.
    fn open<S: Store>(&self, part: &str) -> Result<S> {
        machine::warm_heap(self.order.count("heap")?);
        machine::warm(self.order.count("warm")?)?;
        S::open(&self.order.setup(part)?)
    }

    /// Not timed. The heap keeps what the next store will use.
    fn close<S: Store>(&self, store: S, part: &str) -> Result<()> {
        store.close()?;
        Ok(std::fs::remove_dir_all(self.order.directory.join(part))?)
    }

    /// W1 to W4, and the reads in batches.
    fn fill_and_read<S: Store>(&self) -> Result<()> {
        let Self { n, threads, cap, bodies, .. } = self;
        let fresh = keys::sequence(0, *n);
        let store: S = self.open("fill")?;
        let (claims, tokens) = work::claim_fresh(&store, &fresh, *threads, *cap)?;
        tell("w1", claims.ns_per_op());
        let completions = work::complete(&store, &fresh, &tokens, bodies, *cap)?;
        tell("w2", completions.ns_per_op());
        tell("pair", claims.ns_per_op() + completions.ns_per_op());
        if completions.ops < n / threads * threads {
            let mut hand = store.hand()?;
            for part in fresh.chunks(10_000) {
                hand.load(part, bodies.nth(0))?;
            }
        }
        drop(tokens);
        store.settle()?;
        work::claim_duplicate(&store, &fresh, *threads, self.read_cap)?;
        drop(fresh);
        self.read(&store)?;
        self.close(store, "fill")
    }

    /// W3 and W4, single and in batches.
    fn read<S: Store>(&self, store: &S) -> Result<()> {
        let Self { threads, read_cap, reads, .. } = *self;
        let [single, batched] = [SEED_SINGLE, SEED_BATCHED]
            .map(|seed| keys::uniform(self.n, reads, seed + self.repeat));
        let (w3, b3) = self.in_turn::<S>(
            || Ok(work::claim_duplicate(store, &single, threads, read_cap)?.ns_per_op()),
            || Ok(work::claim_duplicate_batched(store, &batched, threads)?.ns_per_op()),
        )?;
        drop((single, batched));
        let missing = |nth: u64| keys::sequence(MISSING + nth * reads as u64, reads);
        let (single, batched): (Vec<Key>, Vec<Key>) = (missing(0), missing(1));
        let (w4, b4) = self.in_turn::<S>(
            || Ok(work::lookup_missing(store, &single, threads, read_cap)?.ns_per_op()),
            || Ok(work::lookup_missing_batched(store, &batched, threads)?.ns_per_op()),
        )?;
        tell("w3", w3);
        tell("w4", w4);
        for (metric, value) in [("b3", b3), ("b4", b4)] {
            if let Some(value) = value {
                tell(metric, value);
            }
        }
        Ok(())
    }

    /// Does both, the batches before or after as the repeat says; for who has none, the single one.
    fn in_turn<S: Store>(
        &self,
        single: impl FnOnce() -> Result<f64>,
        batched: impl FnOnce() -> Result<f64>,
    ) -> Result<(f64, Option<f64>)> {
        // Nothing in batches has a cap, and what needs one is not compared with batches.
        if !S::BATCHES || self.order.number("cap")? > 0.0 {
            return Ok((single()?, None));
        }
        if self.batches_first {
            let batched = batched()?;
            return Ok((single()?, Some(batched)));
        }
        let single = single()?;
        Ok((single, Some(batched()?)))
    }

    /// W1 and W2 in batches.
    fn fill_in_batches<S: Store>(&self) -> Result<()> {
        let fresh = keys::sequence(0, self.n);
        let store: S = self.open("batches")?;
        let (claims, tokens) = work::claim_fresh_batched(&store, &fresh, self.threads)?;
        tell("b1", claims.ns_per_op());
        let completions = work::complete_batched(&store, &fresh, &tokens, &self.bodies)?;
        tell("b2", completions.ns_per_op());
        self.close(store, "batches")
    }

    /// W5.
    fn stream<S: Store>(&self) -> Result<()> {
        let count = self.order.count("zipf")?;
        let seed = |thread: u64| SEED_STREAM + self.repeat * 64 + thread;
        let streams: Vec<_> =
            (0..self.threads as u64).map(|it| keys::zipf(self.n, count, seed(it))).collect();
        let store: S = self.open("stream")?;
        tell("w5", work::stream(&store, &streams, &self.bodies, self.cap)?.ns_per_op());
        Ok(())
    }
}
