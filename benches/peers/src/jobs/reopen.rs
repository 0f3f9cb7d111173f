//! Fills a contestant in a process that is killed, or closes; and opens it again in another.
//!
//! The filling process tells how many keys it has been acknowledged, through its output, and goes on
//! past the number that was asked for: when it is killed, it is at work.

use std::time::{Duration, Instant};

use super::{Order, tell};
use crate::contestants::Job;
use crate::keys::{self, BODY, Bodies, fingerprint, key};
use crate::machine;
use crate::store::{Hand, Result, Store};

/// Keys between two lines of output.
const STEP: usize = 1000;

pub struct Fill<'a>(pub &'a Order);

impl Job for Fill<'_> {
    fn run<S: Store>(&self) -> Result<()> {
        let order = self.0;
        let (n, is_killed) = (order.count("n")?, order.number("killed")? > 0.0);
        let cap = Duration::from_secs_f64(order.number("cap")?);
        let bodies = Bodies::new();
        machine::warm(order.count("warm")?)?;
        let store = S::open(&order.setup("fill")?)?;
        tell("process", f64::from(store.process().unwrap_or_default()));
        let start = Instant::now();
        {
            let (mut hand, mut out, mut nth) = (store.hand()?, [0; BODY], 0);
            while is_killed || (nth < n && start.elapsed() < cap) {
                for _ in 0..STEP {
                    let key = key(nth as u64);
                    hand.pass(&key, fingerprint(&key), bodies.nth(nth), &mut out)?;
                    nth += 1;
                }
                tell("acknowledged", nth as f64);
            }
            for first in (nth..n).step_by(10 * STEP) {
                hand.load(
                    &keys::sequence(first as u64, (10 * STEP).min(n - first)),
                    bodies.nth(0),
                )?;
            }
        }
        store.settle()?;
        tell("acknowledged", n as f64);
        store.close()
    }
}

pub struct Reopen<'a>(pub &'a Order);

impl Job for Reopen<'_> {
    fn run<S: Store>(&self) -> Result<()> {
        let order = self.0;
        let n = order.count("acknowledged")?;
        let last = key(n as u64 - 1);
        let (setup, mut out) = (order.setup("fill")?, [0; BODY]);
        let start = Instant::now();
        let store = S::open(&setup)?;
        let mut hand = store.hand()?;
        hand.lookup(&last, &mut out)?;
        tell("seconds", start.elapsed().as_secs_f64());
        let mut kept = 0;
        for nth in 0..n {
            out[0] = 0;
            kept += usize::from(hand.lookup(&key(nth as u64), &mut out)?);
        }
        tell("acknowledged", n as f64);
        tell("kept", kept as f64);
        drop(hand);
        store.close()
    }
}
