//! Bytes of memory and disk a completed entry, in a process that holds little else.
//!
//! Keys are made as they are needed, and the heap is told to give back what it does not use. The
//! hand that stored them is kept until all is read: what it has for itself is part of the
//! contestant, as SQLite's connection with its cache is.

use super::{Order, tell};
use crate::contestants::Job;
use crate::keys::{self, BODY, Bodies, fingerprint, key};
use crate::machine::{self, Resident};
use crate::store::{Hand, Result, Store};

/// Keys that are loaded in one call.
const LOADED: usize = 10_000;

pub struct Footprint<'a>(pub &'a Order);

impl Job for Footprint<'_> {
    fn run<S: Store>(&self) -> Result<()> {
        let order = self.0;
        let n = order.count("n")?;
        let bodies = Bodies::new();
        machine::warm(order.count("warm")?)?;
        let before = Resident::now()?;
        let store = S::open(&order.setup("fill")?)?;
        let process = store.process().map_or("self".to_owned(), |id| id.to_string());
        let before = if process == "self" { before } else { Resident::of(&process)? };
        let mut hand = store.hand()?;
        fill(&mut hand, &bodies, n, order.number("load")? > 0.0)?;
        store.settle()?;
        let after = Resident::of(&process)?;
        let each = |after: u64, before: u64| after.saturating_sub(before) as f64 / n as f64;
        tell("anonymous", each(after.anonymous, before.anonymous));
        tell("resident", each(after.total, before.total));
        tell("disk", machine::disk_bytes(&order.directory)? as f64 / n as f64);
        drop(hand);
        store.close()?;
        tell("disk closed", machine::disk_bytes(&order.directory)? as f64 / n as f64);
        Ok(())
    }
}

/// Stores so many keys, one by one or by the fastest way there is.
fn fill(hand: &mut impl Hand, bodies: &Bodies, n: usize, is_loaded: bool) -> Result<()> {
    if is_loaded {
        for first in (0..n).step_by(LOADED) {
            let keys = keys::sequence(first as u64, LOADED.min(n - first));
            hand.load(&keys, bodies, first)?;
        }
        return Ok(());
    }
    let mut out = [0; BODY];
    for nth in 0..n {
        let key = key(nth as u64);
        hand.pass(&key, fingerprint(&key), bodies.nth(nth), &mut out)?;
    }
    Ok(())
}
