//! Several keys in one call.
//!
//! What has to come from memory for one key does not wait for another: the buckets of all keys of a
//! group are asked for first, then the records that they lead to, and then the keys are taken one after
//! the other, as by as many calls. Waiting is done once, for the last round that any of them needs.
//!
//! The idea of running independent walks side by side is that of AMAC (Kocberber and others, VLDB
//! 2016); here every walk has the same two steps, so plain stages do.
//!
//! A batch is no transaction: each key is claimed, completed or refused by itself.

use smallvec::SmallVec;

use super::namespaces::Key;
use super::{Answered, Engine, Way};
use crate::error::StoreError;
use crate::sys::pin::Pin;
use crate::sys::sync::atomic::Ordering;

/// Keys whose loads are under way together: more than a core can have outstanding gain nothing.
const GROUP_KEYS: usize = 32;

impl Engine {
    /// Takes the keys one after the other, with their buckets and records asked for beforehand; those of
    /// keys that are not there if `inserts`.
    pub(crate) fn each<'k, T, R>(
        &self,
        asked: &'k [T],
        inserts: bool,
        key_of: impl Fn(usize, &'k T) -> Key<'k>,
        mut take: impl FnMut(&'k T, &Key<'k>) -> R,
    ) -> Vec<R> {
        let mut taken = Vec::with_capacity(asked.len());
        let mut keys = Vec::with_capacity(asked.len().min(GROUP_KEYS));
        for from in (0..asked.len()).step_by(GROUP_KEYS) {
            let group = &asked[from..asked.len().min(from + GROUP_KEYS)];
            keys.clear();
            keys.extend((from..).zip(group).map(|(at, one)| key_of(at, one)));
            // What is not the store's any more is not touched.
            if !self.is_child() && !self.is_closed.load(Ordering::Acquire) {
                self.prefetch(&keys, inserts);
            }
            taken.extend(group.iter().zip(&keys).map(|(one, key)| take(one, key)));
        }
        taken
    }

    /// Asks for the memory that the keys lead to, step by step.
    fn prefetch(&self, keys: &[Key<'_>], inserts: bool) {
        let pin = Pin::new();
        let ways: SmallVec<[Way<'_>; GROUP_KEYS]> =
            keys.iter().map(|key| self.way(key.hash)).collect();
        for Way { shard, route } in &ways {
            shard.buckets().prefetch_filter(route);
            if inserts {
                shard.buckets().prefetch_bucket(route);
            }
        }
        // The others are told by their filters: nothing else of them is loaded.
        let further: SmallVec<[&Way<'_>; GROUP_KEYS]> =
            ways.iter().filter(|way| way.shard.buckets().may_hold(&way.route)).collect();
        if !inserts {
            for Way { shard, route } in &further {
                shard.buckets().prefetch_bucket(route);
            }
        }
        let slots = further.iter().filter_map(|way| way.shard.buckets().first_match(&way.route));
        slots.for_each(|slot| self.wal.segments.prefetch(slot.location(), &pin));
    }

    /// Waits for all that was changed or shown, and gives the results.
    pub(crate) fn answer_all<T, E: From<StoreError>>(
        &self,
        answered: Vec<Answered<T, E>>,
    ) -> Vec<Result<T, E>> {
        let settles = answered.iter().filter_map(|it| it.settle);
        let last = settles.max_by_key(|settle| settle.ticket);
        let Some(last) = last else { return answered.into_iter().map(|it| it.result).collect() };
        // Rounds end in their order, and after one that failed none is made.
        if self.settle(last).is_ok() {
            return answered.into_iter().map(|it| it.result).collect();
        }
        let settled = |it: Answered<T, E>| match it.settle {
            Some(settle) => self.settle(settle).map_err(E::from).and(it.result),
            None => it.result,
        };
        answered.into_iter().map(settled).collect()
    }
}
