//! Counts that many threads raise and few read: each thread counts for itself, on lines that nobody else writes,
//! without a locked instruction.
//!
//! A thread keeps a block of counts for each tally that it uses, and has those at hand that it used last, [`SLOTS`] of them. One that
//! is new to it costs a lock. A thread that ends, or has too many blocks, leaves them without a lock (which nobody may be
//! there to give back, in a forked child): who looks at the tally next adds them to its own sums.
//!
//! Invariants
//! - T1  A block has one writer: the thread that made it, while it keeps it. So a load and a store count
//!   as well as an addition would, and nothing is lost.
//! - T2  A block is in the list of its tally until its counts are in the sums: both change under one lock. Only the
//!   list keeps a block whose thread has left it.
//! - T3  What is at hand is kept by the same thread: what it keeps no more is taken from the hand before.
#![allow(unsafe_code, reason = "counts in a block of the thread; see the SAFETY comment")]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;

use super::sync::PlainMutex as Mutex;

/// What a tally counts apart.
pub(crate) const COUNTS: usize = 32;

/// Tallies that a thread has at hand.
const SLOTS: usize = 64;

/// Blocks that a thread keeps; then it gives all of them back.
const KEPT_MAX: usize = 1024;

/// Blocks among which nobody looks for those that were left.
const LOOK_MIN: usize = 8;

/// Tallies are numbered, and no number is used twice in a process.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// Needs no destructor, so that to look at it is a load.
    static AT_HAND: [Cell<AtHand>; SLOTS] = const { [const { Cell::new(AtHand::NONE) }; SLOTS] };
    static BLOCKS: RefCell<HashMap<u64, Slot>> = RefCell::default();
}

/// See the file's header.
pub(crate) struct Tally {
    id: u64,
    sums: Mutex<Sums>,
}

struct Sums {
    /// Of threads that count.
    blocks: Vec<Arc<Block>>,
    /// With how many of them it is looked which have been left.
    look_at: usize,
    /// Of those that do not any more.
    gone: [u64; COUNTS],
}

type Block = CachePadded<[AtomicU64; COUNTS]>;

/// A thread's block of one tally, and where it is.
#[derive(Clone, Copy)]
struct AtHand {
    id: u64,
    block: *const Block,
}

impl AtHand {
    /// Of no tally.
    const NONE: Self = Self { id: 0, block: ptr::null() };
}

/// What keeps it there.
struct Slot {
    id: u64,
    block: Arc<Block>,
}

impl Tally {
    /// Counts one.
    #[inline]
    pub(crate) fn count(&self, what: usize) {
        self.add(what, 1);
    }

    /// Counts so many.
    #[inline]
    pub(crate) fn add(&self, what: usize, count: u64) {
        let at_hand = AT_HAND.with(|hand| hand[slot_of(self.id)].get());
        if at_hand.id == self.id {
            // SAFETY: this thread keeps the block (T3), and gives none back meanwhile.
            let block = unsafe { &*at_hand.block };
            raise(&block[what], count);
        } else {
            self.add_new(what, count);
        }
    }

    /// The thread has no block of this tally at hand.
    #[cold]
    #[inline(never)]
    fn add_new(&self, what: usize, count: u64) {
        let replaced = BLOCKS.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            let is_full = kept.len() >= KEPT_MAX && !kept.contains_key(&self.id);
            let replaced = if is_full { std::mem::take(&mut *kept) } else { HashMap::new() };
            let slot = kept.entry(self.id).or_insert_with(|| {
                let block = Arc::new(Block::new([const { AtomicU64::new(0) }; COUNTS]));
                let mut sums = self.sums.lock();
                if sums.blocks.len() >= sums.look_at {
                    sums.take_in();
                    sums.look_at = (2 * sums.blocks.len()).max(LOOK_MIN);
                }
                sums.blocks.push(Arc::clone(&block));
                Slot { id: self.id, block }
            });
            raise(&slot.block[what], count);
            let at_hand = AtHand { id: self.id, block: Arc::as_ptr(&slot.block) };
            AT_HAND.with(|hand| hand[slot_of(self.id)].set(at_hand));
            replaced
        });
        match replaced {
            Ok(replaced) => drop(replaced),
            // A thread that ends may have lost its blocks already.
            Err(_) => self.sums.lock().gone[what] += count,
        }
    }

    /// All counts. What a thread counts at this moment may be in it or not.
    pub(crate) fn read(&self) -> [u64; COUNTS] {
        let mut sums = self.sums.lock();
        sums.take_in();
        let mut all = sums.gone;
        for block in &sums.blocks {
            let counts = all.iter_mut().zip(block.iter());
            counts.for_each(|(sum, count)| *sum += count.load(Ordering::Relaxed));
        }
        all
    }
}

impl Sums {
    /// Adds what threads have left (T2).
    fn take_in(&mut self) {
        let Self { blocks, gone, .. } = self;
        blocks.retain_mut(|block| {
            let Some(counts) = Arc::get_mut(block) else { return true };
            gone.iter_mut()
                .zip(counts.iter_mut())
                .for_each(|(sum, count)| *sum += *count.get_mut());
            false
        });
    }
}

#[inline]
fn slot_of(id: u64) -> usize {
    id as usize % SLOTS
}

/// Relaxed, and no addition: T1.
#[inline]
fn raise(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed) + count, Ordering::Relaxed);
}

impl Drop for Slot {
    fn drop(&mut self) {
        // T3; unless another one has its place already.
        AT_HAND.with(|hand| {
            let place = &hand[slot_of(self.id)];
            if place.get().id == self.id {
                place.set(AtHand::NONE);
            }
        });
    }
}

impl Default for Tally {
    fn default() -> Self {
        let sums = Sums { blocks: Vec::new(), look_at: LOOK_MIN, gone: [0; COUNTS] };
        Self { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), sums: Mutex::new(sums) }
    }
}

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tally").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_however_many_threads_come_and_go() {
        let (tally, calls) = (Tally::default(), if cfg!(miri) { 20 } else { 1000 });
        for round in 1..=3 {
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| (0..calls).for_each(|_| tally.count(3)));
                }
            });
            tally.add(31, 5);
            assert_eq!((tally.read()[3], tally.read()[31]), (8 * calls * round, 5 * round));
        }
        // `scope` may return before the last of its threads has left its blocks.
        loop {
            assert_eq!(tally.read()[3], 3 * 8 * calls);
            if tally.sums.lock().blocks.len() == 1 {
                break;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn tallies_that_take_turns_in_a_slot_lose_nothing() {
        for count in [3 * SLOTS, if cfg!(miri) { 0 } else { KEPT_MAX + 100 }] {
            let tallies: Vec<_> = (0..count).map(|_| Tally::default()).collect();
            for round in 1..=4 {
                for (at, tally) in tallies.iter().enumerate() {
                    tally.add(0, at as u64);
                    assert_eq!(tally.read()[0], round * at as u64);
                    let sums = tally.sums.lock();
                    assert!(sums.blocks.len() <= 1);
                    assert!(count > KEPT_MAX || sums.gone[0] == 0, "a thread keeps what it uses");
                }
            }
        }
        assert!(BLOCKS.with(|kept| kept.borrow().len()) <= KEPT_MAX);
    }
}
