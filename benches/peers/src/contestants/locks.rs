//! Striped locks for engines that cannot insert only if absent: look, then put, under the lock.

use crossbeam_utils::CachePadded;
use parking_lot::{Mutex, MutexGuard};

use crate::keys::Key;

const LOCKS: usize = 64;

pub struct Locks(Vec<CachePadded<Mutex<()>>>);

impl Locks {
    pub fn new() -> Self {
        Self((0..LOCKS).map(|_| CachePadded::default()).collect())
    }

    pub fn lock(&self, key: &Key) -> MutexGuard<'_, ()> {
        let mixed = usize::from(key[0]) * 31 + usize::from(key[1]) * 7 + usize::from(key[3]);
        self.0[mixed % LOCKS].lock()
    }
}
