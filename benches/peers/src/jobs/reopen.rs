//! Fills a contestant in a process that is killed, or closes; and opens it again in another.
//!
//! The filling process tells how many keys it has been acknowledged, through its output, and goes
//! on past the number that was asked for: when it is killed, it is at work. The nth key has the
//! nth body, so that what is kept can be compared with what was stored.

use std::time::{Duration, Instant};

use super::{Order, tell};
use crate::contestants::Job;
use crate::keys::{self, BODY, Bodies, fingerprint, key};
use crate::machine;
use crate::store::{Hand, Result, State, Store};

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
                let keys = keys::sequence(first as u64, (10 * STEP).min(n - first));
                hand.load(&keys, &bodies, first)?;
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
        let found = Found::of(&mut hand, n, &Bodies::new())?;
        tell("acknowledged", n as f64);
        tell("kept", found.kept as f64);
        tell("claimed only", found.claimed_only as f64);
        tell("wrong body", found.wrong_body as f64);
        drop(hand);
        store.close()
    }
}

/// What has become of keys whose completion was acknowledged; the rest of them are absent.
#[derive(Default, PartialEq, Eq, Debug)]
struct Found {
    /// Completed, with the very bytes.
    kept: usize,
    /// Known, but the completion is gone.
    claimed_only: usize,
    /// Completed, with other bytes.
    wrong_body: usize,
}

impl Found {
    /// Looks up the first `n` keys, and compares every body.
    fn of(hand: &mut impl Hand, n: usize, bodies: &Bodies) -> Result<Self> {
        let mut found = Self::default();
        for nth in 0..n {
            // Emptied, so that a body that is not copied out is none.
            let mut out = [0; BODY];
            match hand.lookup(&key(nth as u64), &mut out)? {
                State::Absent => {}
                State::InProgress => found.claimed_only += 1,
                State::Completed if out == *bodies.nth(nth) => found.kept += 1,
                State::Completed => found.wrong_body += 1,
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contestants::refrain::Refrain;
    use crate::store::{Mode, Setup};

    #[test]
    fn only_the_very_bytes_are_kept() {
        let (bodies, mut out) = (Bodies::new(), [0; BODY]);
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().to_owned();
        let setup = Setup { mode: Mode::Memory, directory, keys: 10, is_ready: false };
        let store = Refrain::open(&setup).unwrap();
        let mut hand = store.hand().unwrap();
        // Of ten keys, four are right, then one has another's body, two are claimed, three absent.
        hand.load(&keys::sequence(0, 4), &bodies, 0).unwrap();
        hand.load(&keys::sequence(4, 1), &bodies, 5).unwrap();
        for nth in 5..7 {
            hand.claim(&key(nth), fingerprint(&key(nth)), &mut out).unwrap();
        }
        let found = Found::of(&mut hand, 10, &bodies).unwrap();
        assert_eq!(found, Found { kept: 4, claimed_only: 2, wrong_body: 1 });
    }
}
