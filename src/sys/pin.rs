//! Pins: what keeps a thing that was taken out of use readable until its last reader is done.
//!
//! Epoch-based reclamation, by crossbeam-epoch: a reader pins, borrows what a [`Shelf`] holds, and
//! unpins; whoever takes the thing off the shelf has it dropped when every pin that was there is
//! gone. A pin costs a few nanoseconds and writes to no shared line.
//!
//! The collector is the process's own and nobody else's: pins of this crate are short (never across
//! a sync or a wait for another thread), so a [`Grace`] is over soon after it has begun.
//!
//! Invariants
//! - P1  A borrow from a shelf lives no longer than the shelf and the pin it was borrowed under.
//! - P2  What was taken off a shelf is dropped when all pins are gone that were there at that moment.
#![allow(unsafe_code, reason = "borrows what a shelf holds; see the SAFETY comments")]

use std::fmt;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crossbeam_epoch::{Collector, Guard, LocalHandle};

use super::sync::{sleep, yield_now};

static COLLECTOR: LazyLock<Collector> = LazyLock::new(Collector::new);

thread_local! {
    static HANDLE: LocalHandle = COLLECTOR.register();
}

/// See the file's header. Bound to its thread.
pub(crate) struct Pin {
    guard: Guard,
}

impl Pin {
    #[inline]
    pub(crate) fn new() -> Self {
        // While a thread ends it may have lost its handle already.
        let guard = HANDLE.try_with(LocalHandle::pin);
        Self { guard: guard.unwrap_or_else(|_| COLLECTOR.register().pin()) }
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pin").finish_non_exhaustive()
    }
}

/// A stretch of time that is over when every pin is gone that was there at its beginning.
#[derive(Debug)]
pub(crate) struct Grace {
    is_over: Arc<AtomicBool>,
}

impl Grace {
    pub(crate) fn begin() -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&is_over);
        // Release: what the readers did comes before.
        Pin::new().guard.defer(move || told.store(true, Ordering::Release));
        Self { is_over }
    }

    /// Whether it is over. Helps it on; call it with no pin held.
    pub(crate) fn is_over(&self) -> bool {
        if self.is_over.load(Ordering::Acquire) {
            return true;
        }
        Pin::new().guard.flush();
        self.is_over.load(Ordering::Acquire)
    }

    /// Waits for it, but not for ever: somebody may hold a pin and wait for us. Whether it is over.
    pub(crate) fn wait(&self) -> bool {
        const TRIES: u32 = 2000;
        for tried in 0..TRIES {
            if self.is_over() {
                return true;
            }
            match tried {
                0..8 => {}
                8..64 => yield_now(),
                _ => sleep(Duration::from_micros(100)),
            }
        }
        false
    }
}

/// Drops a thing when every pin is gone that is there now.
pub(crate) fn drop_later<T: Send + 'static>(thing: T) {
    let pin = Pin::new();
    pin.guard.defer(move || drop(thing));
    pin.guard.flush();
}

/// A place for one thing that readers borrow under a pin.
pub(crate) struct Shelf<T> {
    /// From `Arc::into_raw`, or null.
    held: AtomicPtr<T>,
    owns: PhantomData<Arc<T>>,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self { held: AtomicPtr::new(ptr::null_mut()), owns: PhantomData }
    }
}

impl<T: Send + Sync + 'static> Shelf<T> {
    /// Puts a thing on the shelf. One that is there already is taken off.
    pub(crate) fn put(&self, thing: Arc<T>) {
        self.exchange(Arc::into_raw(thing).cast_mut());
    }

    /// Takes off what is there. It is dropped when nobody reads it any more (P2).
    pub(crate) fn take(&self) {
        self.exchange(ptr::null_mut());
    }

    fn exchange(&self, new: *mut T) {
        // AcqRel: readers that meet the new thing see it whole, and we see the old one whole.
        let old = self.held.swap(new, Ordering::AcqRel);
        if !old.is_null() {
            // SAFETY: `old` came from `Arc::into_raw`, and the swap made its count ours alone.
            let old = unsafe { Arc::from_raw(old.cast_const()) };
            drop_later(old);
        }
    }

    /// What is there.
    #[inline]
    pub(crate) fn get<'p>(&'p self, _pin: &'p Pin) -> Option<&'p T> {
        // SAFETY: what is not null came from `Arc::into_raw` and is alive while both borrows last:
        // it is dropped when all pins are gone that were there when it was taken off, ours among
        // them (P2), or with the shelf. `put` published it with Release.
        unsafe { self.held.load(Ordering::Acquire).as_ref() }
    }
}

impl<T> Drop for Shelf<T> {
    fn drop(&mut self) {
        let held = *self.held.get_mut();
        if !held.is_null() {
            // SAFETY: `held` came from `Arc::into_raw`, and nobody borrows from a shelf that is
            // dropped, nor takes anything off it.
            drop(unsafe { Arc::from_raw(held.cast_const()) });
        }
    }
}

impl<T> fmt::Debug for Shelf<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_empty = self.held.load(Ordering::Relaxed).is_null();
        f.debug_struct("Shelf").field("is_empty", &is_empty).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Counts its drops.
    struct Counted(Arc<AtomicUsize>, u64);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Other tests of this process hold pins, too.
    fn wait_for_all() {
        let grace = Grace::begin();
        while !grace.wait() {}
    }

    #[test]
    fn what_is_read_is_not_dropped() {
        let drops = Arc::new(AtomicUsize::new(0));
        let shelf = Shelf::<Counted>::default();
        shelf.put(Arc::new(Counted(Arc::clone(&drops), 7)));
        let pin = Pin::new();
        let held = shelf.get(&pin).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                shelf.take();
                let grace = Grace::begin();
                for _ in 0..20 {
                    assert!(!grace.is_over(), "a pin is still there");
                }
            });
        });
        assert_eq!((held.1, drops.load(Ordering::SeqCst)), (7, 0));
        assert!(shelf.get(&pin).is_none());
        drop(pin);
        wait_for_all();
        assert_eq!(drops.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_shelf_drops_what_it_holds() {
        let drops = Arc::new(AtomicUsize::new(0));
        let shelf = Shelf::<Counted>::default();
        shelf.put(Arc::new(Counted(Arc::clone(&drops), 1)));
        shelf.put(Arc::new(Counted(Arc::clone(&drops), 2)));
        drop(shelf);
        wait_for_all();
        assert_eq!(drops.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn readers_meet_whole_things_while_they_change() {
        let drops = Arc::new(AtomicUsize::new(0));
        let shelf = Shelf::<Counted>::default();
        let rounds = if cfg!(miri) { 20 } else { 20_000 };
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !is_over.load(Ordering::SeqCst) {
                        let pin = Pin::new();
                        if let Some(thing) = shelf.get(&pin) {
                            assert!(thing.1 < rounds);
                        }
                    }
                });
            }
            for round in 0..rounds {
                shelf.put(Arc::new(Counted(Arc::clone(&drops), round)));
            }
            is_over.store(true, Ordering::SeqCst);
        });
        shelf.take();
        for _ in 0..3 {
            wait_for_all();
        }
        assert_eq!(drops.load(Ordering::SeqCst) as u64, rounds);
    }
}
