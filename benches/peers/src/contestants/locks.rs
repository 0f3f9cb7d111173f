//! Striped locks for engines that cannot insert only if absent: look, then put, under the lock.
//!
//! A lock may be held through a sync, so there are many more of them than threads: of 64 threads
//! that commit together, hardly two may wait for one another.

use crossbeam_utils::CachePadded;
use parking_lot::{Mutex, MutexGuard};

use crate::keys::Key;

const LOCKS: usize = 4096;

pub struct Locks(Vec<CachePadded<Mutex<()>>>);

impl Locks {
    pub fn new() -> Self {
        Self((0..LOCKS).map(|_| CachePadded::default()).collect())
    }

    pub fn lock(&self, key: &Key) -> MutexGuard<'_, ()> {
        self.0[index(key)].lock()
    }
}

/// Which lock is a key's: its first eight digits, multiplied so that all of them count.
fn index(key: &Key) -> usize {
    let mut head = [0; 8];
    head.copy_from_slice(&key[..8]);
    let mixed = u64::from_le_bytes(head).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> (u64::BITS - LOCKS.ilog2())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::key;

    #[test]
    fn keys_of_64_threads_have_locks_of_their_own() {
        let mut shared = 0;
        for nth in 0..100 {
            let mut locks: Vec<_> =
                (0..64).map(|thread| index(&key((thread << 32) + nth))).collect();
            locks.sort_unstable();
            locks.dedup();
            shared += 64 - locks.len();
        }
        // By chance about half a pair each time.
        assert!(shared < 100, "{shared}");
    }
}
