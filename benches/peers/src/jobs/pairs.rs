//! Fresh keys, claimed and completed for a fixed time; and one hot key.

use std::time::Duration;

use super::{Order, tell};
use crate::contestants::Job;
use crate::keys::Bodies;
use crate::store::{Result, Store};
use crate::workloads as work;

/// Claim+complete a second, with as many durable operations twice.
pub struct Pairs<'a>(pub &'a Order);

impl Job for Pairs<'_> {
    fn run<S: Store>(&self) -> Result<()> {
        let order = self.0;
        let length = Duration::from_secs_f64(order.number("seconds")?);
        let store = S::open(&order.setup("pairs")?)?;
        let pairs = work::pairs(&store, order.count("threads")?, length, &Bodies::new())?;
        tell("pairs", pairs.ops as f64 / pairs.seconds);
        store.close()
    }
}

/// Claims of one completed key a second.
pub struct Hot<'a>(pub &'a Order);

impl Job for Hot<'_> {
    fn run<S: Store>(&self) -> Result<()> {
        let order = self.0;
        let length = Duration::from_secs_f64(order.number("seconds")?);
        let store = S::open(&order.setup("hot")?)?;
        let timed = work::hot_key(&store, order.count("threads")?, length)?;
        tell("ops", timed.ops as f64 / timed.seconds);
        Ok(())
    }
}
