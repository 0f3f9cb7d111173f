//! One shard: an independent part of the table, under one mutex, with tokens of its own.

use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::Arc;

use crossbeam_utils::CachePadded;

use super::waiters::Waiters;
use crate::error::Failure;
use crate::sys::sync::atomic::{AtomicUsize, Ordering};
use crate::sys::sync::{Mutex, MutexGuard};
use crate::table::{Buckets, Table};
use crate::types::{Epoch, FencingToken, NamespaceId};
use crate::wal::Wal;

/// A shard and its lock, which lies on cache lines of its own: whoever only reads shares none with
/// those who write.
#[derive(Debug)]
pub(crate) struct Shard {
    buckets: Arc<Buckets>,
    inner: CachePadded<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<ShardState>,
    /// Lease handles that exist. Raised under the lock, lowered without it.
    leases: AtomicUsize,
}

/// What the lock protects.
#[derive(Debug)]
pub(crate) struct ShardState {
    pub(crate) table: Table,
    pub(crate) tokens: Tokens,
    pub(crate) waiters: Waiters,
    /// Namespaces with a quota, of which the entries here are counted; in rising order.
    pub(crate) metered: Vec<NamespaceId>,
    pub(crate) is_closed: bool,
}

impl Shard {
    pub(crate) fn new(table: Table, tokens: Tokens) -> Self {
        let buckets = table.buckets();
        let waiters = Waiters::default();
        let state = Mutex::new(ShardState {
            table,
            tokens,
            waiters,
            metered: Vec::new(),
            is_closed: false,
        });
        let inner = CachePadded::new(Inner { state, leases: AtomicUsize::new(0) });
        Self { buckets, inner }
    }

    /// The table, for those who read it without the lock.
    #[inline]
    pub(crate) fn buckets(&self) -> &Buckets {
        &self.buckets
    }

    pub(crate) fn lock<'a>(&'a self, wal: &'a Wal) -> ShardGuard<'a> {
        ShardGuard {
            state: self.inner.state.lock(),
            leases: &self.inner.leases,
            wal,
            was_panicking: std::thread::panicking(),
        }
    }

    pub(crate) fn leases(&self) -> usize {
        self.inner.leases.load(Ordering::Acquire)
    }

    pub(crate) fn drop_lease(&self) {
        // Release: what was done with the lease comes before a close that finds it gone.
        self.inner.leases.fetch_sub(1, Ordering::Release);
    }
}

/// A locked shard. A panic while it is held leaves the shard in a state nobody knows, so it poisons
/// the store.
pub(crate) struct ShardGuard<'a> {
    state: MutexGuard<'a, ShardState>,
    leases: &'a AtomicUsize,
    wal: &'a Wal,
    was_panicking: bool,
}

impl ShardGuard<'_> {
    /// A lease handle is about to exist.
    pub(crate) fn add_lease(&mut self) {
        self.leases.fetch_add(1, Ordering::Relaxed);
    }
}

impl Deref for ShardGuard<'_> {
    type Target = ShardState;

    fn deref(&self) -> &ShardState {
        &self.state
    }
}

impl DerefMut for ShardGuard<'_> {
    fn deref_mut(&mut self) -> &mut ShardState {
        &mut self.state
    }
}

impl Drop for ShardGuard<'_> {
    fn drop(&mut self) {
        if !self.was_panicking && std::thread::panicking() {
            let panicked = std::io::Error::other("a thread panicked while it changed a shard");
            let cause = Failure::new("finish a change of", PathBuf::from("a shard"), panicked);
            drop(self.wal.fail(cause));
        }
    }
}

/// Counts tokens: shard i of n gives i, i + n, i + 2n, ... within an epoch, so that tokens are
/// unique in the store and rise for every key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tokens {
    epoch: Epoch,
    next: u64,
}

impl Tokens {
    pub(crate) fn new(epoch: Epoch, first: u64) -> Self {
        Self { epoch, next: first }
    }

    pub(crate) fn next(&mut self, shards: usize) -> Option<FencingToken> {
        let counter = self.next;
        if counter > FencingToken::COUNTER_MAX {
            return None;
        }
        self.next += shards as u64;
        Some(FencingToken::new(self.epoch, counter))
    }

    /// Whether the token is not newer than those that were given.
    pub(crate) fn have_given(&self, token: FencingToken) -> bool {
        let counter = token.get() & FencingToken::COUNTER_MAX;
        (token.epoch(), counter) < (self.epoch, self.next)
    }

    /// Starts over in a later epoch.
    pub(crate) fn restart(&mut self, epoch: Epoch, index: usize) {
        if epoch > self.epoch {
            *self = Self::new(epoch, index as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_never_give_the_same_token() {
        let mut seen = std::collections::HashSet::new();
        for index in 0..4 {
            let mut tokens = Tokens::new(Epoch(1), index);
            let mut last = None;
            for _ in 0..100 {
                let token = tokens.next(4);
                assert!(token > last && seen.insert(token));
                last = token;
            }
        }
    }

    #[test]
    fn a_counter_that_runs_out_goes_on_in_the_next_epoch() {
        let mut tokens = Tokens::new(Epoch(1), FencingToken::COUNTER_MAX - 1);
        let last = tokens.next(4).unwrap();
        assert_eq!(tokens.next(4), None);
        assert_eq!(tokens.next(4), None);
        tokens.restart(Epoch(2), 3);
        assert!(tokens.next(4).unwrap() > last);
        // A slower thread that raised the epoch to no more than this one changes nothing.
        let before = tokens;
        tokens.restart(Epoch(2), 3);
        assert_eq!(tokens, before);
    }
}
