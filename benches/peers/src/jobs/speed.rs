//! W1 to W5, one after the other, as nanoseconds of wall clock an operation; and W1 to W4 in batches,
//! the reads of the same store directly after the single ones, the rest of a store of its own.
//!
//! What cannot do all claims in the time that it has is loaded by the fastest way there is before
//! its reads; its W1 and W2 are then those of a smaller store, which is in its favour.

use super::{Order, tell};
use crate::contestants::Job;
use crate::keys::{self, Bodies, MISSING};
use crate::machine;
use crate::store::{Hand, Result, Store};
use crate::workloads::{self as work, Cap};

pub struct Speed<'a>(pub &'a Order);

impl Job for Speed<'_> {
    fn run<S: Store>(&self) -> Result<()> {
        let order = self.0;
        let (n, threads) = (order.count("n")?, order.count("threads")?);
        let (reads, zipf) = (order.count("reads")?, order.count("zipf")?);
        let (cap, read_cap) =
            (Cap::seconds(order.number("cap")?), Cap::seconds(order.number("cap")? / 2.0));
        let bodies = Bodies::new();
        let fresh = keys::sequence(0, n);
        let repeat = order.count("repeat")? as u64;
        let hits = keys::uniform(n, reads, 4242 + repeat);
        let missing = keys::sequence(MISSING, reads);
        let streams: Vec<_> = (0..threads as u64)
            .map(|thread| keys::zipf(n, zipf / threads, 1000 + repeat * 64 + thread))
            .collect();
        machine::warm_heap(order.count("heap")?);
        machine::warm(order.count("warm")?)?;

        let store = S::open(&order.setup("fill")?)?;
        let (claims, tokens) = work::claim_fresh(&store, &fresh, threads, cap)?;
        tell("w1", claims.ns_per_op());
        let completions = work::complete(&store, &fresh, &tokens, &bodies, cap)?;
        tell("w2", completions.ns_per_op());
        tell("pair", claims.ns_per_op() + completions.ns_per_op());
        if completions.ops < n / threads * threads {
            let mut hand = store.hand()?;
            for part in fresh.chunks(10_000) {
                hand.load(part, &bodies, 0)?;
            }
        }
        drop((tokens, fresh));
        store.settle()?;
        tell("w3", work::claim_duplicate(&store, &hits, threads, read_cap)?.ns_per_op());
        tell("w4", work::lookup_missing(&store, &missing, threads, read_cap)?.ns_per_op());
        if S::BATCHES && order.number("cap")? == 0.0 {
            tell("b3", work::claim_duplicate_batched(&store, &hits, threads)?.ns_per_op());
            tell("b4", work::lookup_missing_batched(&store, &missing, threads)?.ns_per_op());
        }
        drop((hits, missing));
        // Not timed. In memory the heap keeps what the second store will use.
        store.close()?;
        std::fs::remove_dir_all(order.directory.join("fill"))?;

        let store = S::open(&order.setup("stream")?)?;
        tell("w5", work::stream(&store, &streams, &bodies, cap)?.ns_per_op());
        if !S::BATCHES || order.number("batches")? == 0.0 {
            return Ok(());
        }
        drop(streams);
        store.close()?;
        std::fs::remove_dir_all(order.directory.join("stream"))?;

        let store = S::open(&order.setup("batches")?)?;
        let fresh = keys::sequence(0, n);
        let (claims, tokens) = work::claim_fresh_batched(&store, &fresh, threads)?;
        tell("b1", claims.ns_per_op());
        tell("b2", work::complete_batched(&store, &fresh, &tokens, &bodies)?.ns_per_op());
        Ok(())
    }
}
