//! Pins: what keeps a thing that was taken out of use readable until its last reader is done.
//!
//! Read-copy-update in user space (Desnoyers, McKenney, Stern, Dagenais, Walpole 2012): a reader pins,
//! borrows what a [`Shelf`] holds, and unpins; whoever takes the thing off the shelf waits for a [`Grace`],
//! and drops it then. A pin is a few stores to the thread's own line, and none of them is a barrier: the one
//! that is needed between the reader's store and its loads is made by who waits, in all threads at once,
//! with `membarrier(2)`. Where the kernel has none, each pin makes its own ([`barrier`](super::barrier)).
//!
//! Pins are of this crate alone and short, so a [`Grace`] is over soon after it has begun: but for a call that
//! must make room first, one that reads all of a shard, and an outcome that is shown where it lies, for as long as its reader takes.
//!
//! Invariants
//! - P1  A borrow from a shelf lives no longer than the shelf and the pin it was borrowed under.
//! - P2  What was taken off a shelf is dropped when all pins are gone that were there at that moment.
//! - P3  Who has read an era sees what was taken off before it began: eras are raised with Release, after
//!   that, and read with Acquire, before anything is borrowed. Who has not said so when they are
//!   looked at, behind the barrier, borrows behind the barrier. So no other pin holds what was taken off
//!   before an era than those that have said an earlier one.
//! - P4  Readers, and what waits for them, are of one process. A forked child begins anew at its first pin: threads that are not
//!   there may hold pins, and locks. So no thread pins in a domain that is not its process's.
#![allow(unsafe_code, reason = "borrows what a shelf holds; see the SAFETY comments")]

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_utils::CachePadded;

use super::barrier;
use super::fork::forgotten_by_children;
use super::sync::{PlainMutex as Mutex, sleep, yield_now};

/// Raised by each grace period.
static ERA: CachePadded<AtomicU64> = CachePadded::new(AtomicU64::new(1));

/// Where the domain of this process is told: in memory that a forked child finds zeroed.
static CURRENT: AtomicPtr<AtomicPtr<Domain>> = AtomicPtr::new(ptr::null_mut());

thread_local! {
    static READER: Own = Own(Cell::new(Reader::take()));
}

/// Readers, and what waits for them. Never given up.
#[derive(Default)]
struct Domain {
    /// Of every thread that pins, or has: they are used again, and never given up.
    readers: Mutex<Vec<&'static Reader>>,
    /// What is to be dropped, and when.
    later: Leftovers,
    /// The same, of those that are dropped as soon as may be.
    soon_later: Leftovers,
    /// How many of these there are.
    soon: CachePadded<AtomicUsize>,
}

type Leftovers = Mutex<Vec<(Grace, Box<dyn Send>)>>;

impl Domain {
    /// Where that of this process is told.
    fn place() -> &'static AtomicPtr<Self> {
        // No `OnceLock`: a child would wait for who is not there.
        let known = CURRENT.load(Ordering::Acquire);
        if !known.is_null() {
            // SAFETY: it came from a reference that lasts as long as the process.
            return unsafe { &*known };
        }
        let new = forgotten_by_children();
        let place = ptr::from_ref(new).cast_mut();
        let met =
            CURRENT.compare_exchange(ptr::null_mut(), place, Ordering::AcqRel, Ordering::Acquire);
        // SAFETY: as above. One that came too late is left where it is.
        met.map_or_else(|other| unsafe { &*other }, |_| new)
    }

    /// That of this process.
    fn current() -> &'static Self {
        let place = Self::place();
        let known = place.load(Ordering::Acquire);
        if !known.is_null() {
            // SAFETY: it came from `Box::into_raw`, and is never given up.
            return unsafe { &*known };
        }
        let new = Box::into_raw(Box::<Self>::default());
        let met = place.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire);
        // SAFETY: as above.
        unsafe { &*met.err().unwrap_or(new) }
    }
}

/// What a thread says of its pins.
#[repr(align(128))]
struct Reader {
    /// The era in which the first of its pins was made; 0: it has none.
    era: AtomicU64,
    /// How many it has. Its own thread's alone.
    pins: AtomicU32,
    makes_barriers: bool,
    is_taken: AtomicBool,
    domain: &'static Domain,
    /// Where it is told whether that is the domain of this process.
    current: &'static AtomicPtr<Domain>,
}

impl Reader {
    fn take() -> &'static Self {
        let domain = Domain::current();
        let mut readers = domain.readers.lock();
        // Acquire: the thread before is done with it.
        let free = readers.iter().find(|reader| !reader.is_taken.swap(true, Ordering::Acquire));
        if let Some(free) = free {
            return free;
        }
        let reader = Box::leak(Box::new(Self {
            era: AtomicU64::new(0),
            pins: AtomicU32::new(0),
            makes_barriers: !barrier::is_for_all(),
            is_taken: AtomicBool::new(true),
            domain,
            current: Domain::place(),
        }));
        readers.push(reader);
        reader
    }

    /// Whether it is this process's (P4).
    #[inline(always)]
    fn is_current(&self) -> bool {
        ptr::eq(self.current.load(Ordering::Relaxed), self.domain)
    }

    fn give_back(&self) {
        self.is_taken.store(false, Ordering::Release);
    }
}

/// A thread's reader.
struct Own(Cell<&'static Reader>);

impl Own {
    #[inline(always)]
    fn reader(&self) -> &'static Reader {
        let reader = self.0.get();
        if reader.is_current() { reader } else { self.begin_anew() }
    }

    /// This thread has forked.
    #[cold]
    fn begin_anew(&self) -> &'static Reader {
        self.0.set(Reader::take());
        self.0.get()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.0.get().give_back();
    }
}

/// See the file's header. Bound to its thread.
pub(crate) struct Pin {
    reader: &'static Reader,
    /// Whether the thread had lost its reader, so that this one is given back.
    is_borrowed: bool,
    of_thread: PhantomData<*mut ()>,
}

impl Pin {
    #[inline]
    pub(crate) fn new() -> Self {
        // While a thread ends it may have lost its reader already.
        match READER.try_with(Own::reader) {
            Ok(reader) => Self::of(reader, false),
            Err(_) => Self::of(Reader::take(), true),
        }
    }

    #[inline(always)]
    fn of(reader: &'static Reader, is_borrowed: bool) -> Self {
        let pins = reader.pins.load(Ordering::Relaxed);
        if pins == 0 {
            // P3. Release: what was read under the pin before comes before, for who sees this one.
            reader.era.store(ERA.load(Ordering::Acquire), Ordering::Release);
            barrier::own(reader.makes_barriers);
        }
        reader.pins.store(pins + 1, Ordering::Relaxed);
        Self { reader, is_borrowed, of_thread: PhantomData }
    }
}

impl Drop for Pin {
    #[inline]
    fn drop(&mut self) {
        let pins = self.reader.pins.load(Ordering::Relaxed) - 1;
        self.reader.pins.store(pins, Ordering::Relaxed);
        if pins == 0 {
            // Release: what was read comes before.
            self.reader.era.store(0, Ordering::Release);
            // Whoever wants a thing dropped says so, makes the barrier of all, and looks who is there: he has seen
            // that we are gone, or we see that something waits for us.
            barrier::own(self.reader.makes_barriers);
            let domain = self.reader.domain;
            if domain.soon.load(Ordering::Relaxed) != 0 {
                drop_over(&domain.soon_later);
            }
        }
        if self.is_borrowed {
            self.reader.give_back();
        }
    }
}

impl fmt::Debug for Grace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grace").field("era", &self.era).finish_non_exhaustive()
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pin").finish_non_exhaustive()
    }
}

/// A stretch of time that is over when every pin is gone that was there at its beginning.
pub(crate) struct Grace {
    domain: &'static Domain,
    /// Pins of this era, or a later one, came after its beginning.
    era: u64,
    /// Whether the barrier was made. Until then nobody knows who is there.
    is_behind_barrier: AtomicBool,
}

impl Grace {
    pub(crate) fn begin() -> Self {
        // Release: who reads this era sees what was taken off before (P3).
        let era = ERA.fetch_add(1, Ordering::AcqRel) + 1;
        let domain = Domain::current();
        Self { domain, era, is_behind_barrier: AtomicBool::new(barrier::all()) }
    }

    /// Whether it is over.
    pub(crate) fn is_over(&self) -> bool {
        if !self.is_behind_barrier.load(Ordering::Relaxed) {
            // Somebody has forbidden the call since the process began: nothing is given up until he allows it.
            if !barrier::all() {
                return false;
            }
            self.is_behind_barrier.store(true, Ordering::Relaxed);
        }
        self.domain.readers.lock().iter().all(|reader| {
            // Acquire: what was read under pins that are gone comes before.
            let era = reader.era.load(Ordering::Acquire);
            era == 0 || era >= self.era
        })
    }

    /// Waits for it, but not for ever: somebody may hold a pin and wait for us. Whether it is over. Then what others
    /// have left to be dropped is, as far as its time has come; call it with no pin held.
    pub(crate) fn wait(&self) -> bool {
        const TRIES: u32 = 2000;
        for tried in 0..TRIES {
            if self.is_over() {
                drop_what_is_over();
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

/// Drops a thing when every pin is gone that is there now: in this call, or in a later one of this kind, or
/// when somebody waits for a [`Grace`].
pub(crate) fn drop_later<T: Send + 'static>(thing: T) {
    let grace = Grace::begin();
    let domain = grace.domain;
    domain.later.lock().push((grace, Box::new(thing)));
    drop_over(&domain.later);
}

/// The same, but by its last reader at the latest: for what somebody waits for.
pub(crate) fn drop_soon<T: Send + 'static>(thing: T) {
    let domain = Domain::current();
    domain.soon.fetch_add(1, Ordering::SeqCst);
    let grace = Grace::begin();
    let soon = Soon { thing: Some(thing), domain };
    domain.soon_later.lock().push((grace, Box::new(soon)));
    drop_over(&domain.soon_later);
}

/// What is counted in [`Domain::soon`].
struct Soon<T> {
    thing: Option<T>,
    domain: &'static Domain,
}

impl<T> Drop for Soon<T> {
    fn drop(&mut self) {
        drop(self.thing.take());
        self.domain.soon.fetch_sub(1, Ordering::SeqCst);
    }
}

fn drop_what_is_over() {
    let domain = Domain::current();
    drop_over(&domain.later);
    drop_over(&domain.soon_later);
}

#[cold]
fn drop_over(list: &Leftovers) {
    let over: Vec<_> = list.lock().extract_if(.., |(grace, _)| grace.is_over()).collect();
    // Not under the lock: a thing may leave others behind.
    drop(over);
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
    use super::*;

    /// Counts its drops.
    struct Counted(Arc<AtomicUsize>, u64);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Other tests of this process hold pins, too, and drop what is left to be dropped: what they took from
    /// the list they may be about to drop.
    fn wait_for_drops(drops: &AtomicUsize, count: usize) {
        for _ in 0..100_000 {
            Grace::begin().wait();
            if drops.load(Ordering::SeqCst) == count {
                return;
            }
            sleep(Duration::from_micros(100));
        }
        panic!("{} of {count} were dropped", drops.load(Ordering::SeqCst));
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
                    drop_what_is_over();
                    assert!(!grace.is_over(), "a pin is still there");
                }
            });
        });
        assert_eq!((held.1, drops.load(Ordering::SeqCst)), (7, 0));
        assert!(shelf.get(&pin).is_none());
        drop(pin);
        wait_for_drops(&drops, 1);
    }

    #[test]
    fn a_shelf_drops_what_it_holds() {
        let drops = Arc::new(AtomicUsize::new(0));
        let shelf = Shelf::<Counted>::default();
        shelf.put(Arc::new(Counted(Arc::clone(&drops), 1)));
        shelf.put(Arc::new(Counted(Arc::clone(&drops), 2)));
        drop(shelf);
        wait_for_drops(&drops, 2);
    }

    /// The readers look at it several times: if it was dropped meanwhile, something else is there.
    #[test]
    fn readers_meet_whole_things_while_they_change() {
        let drops = Arc::new(AtomicUsize::new(0));
        let shelf = Shelf::<(AtomicU64, Counted)>::default();
        let rounds = if cfg!(miri) { 20 } else { 20_000 };
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !is_over.load(Ordering::SeqCst) {
                        let pin = Pin::new();
                        let Some((round, _)) = shelf.get(&pin) else { continue };
                        let first = round.load(Ordering::Relaxed);
                        for _ in 0..20 {
                            assert_eq!(round.load(Ordering::Relaxed), first);
                            std::hint::spin_loop();
                        }
                    }
                });
            }
            for round in 0..rounds {
                let counted = Counted(Arc::clone(&drops), round);
                shelf.put(Arc::new((AtomicU64::new(round), counted)));
            }
            is_over.store(true, Ordering::SeqCst);
        });
        shelf.take();
        wait_for_drops(&drops, rounds as usize);
    }

    #[test]
    fn a_pin_within_another_one_ends_nothing() {
        let outer = Pin::new();
        let grace = Grace::begin();
        let inner = Pin::new();
        drop(inner);
        assert!(!grace.is_over(), "the outer pin was there before");
        drop(outer);
        // Pins that other tests hold are short.
        while !grace.wait() {}
    }

    #[test]
    fn pins_that_come_later_hold_up_nothing() {
        let grace = Grace::begin();
        let _pin = Pin::new();
        assert!((0..20).any(|_| grace.wait()), "pins that other tests hold are short");
        assert!(!Grace::begin().is_over(), "this one came before");
    }

    #[test]
    fn a_thread_that_ends_leaves_its_reader_to_the_next_one() {
        let mut known = 0;
        for threads in 0..200 {
            std::thread::spawn(|| drop(Pin::new())).join().unwrap();
            if threads == 0 {
                known = Domain::current().readers.lock().len();
            }
        }
        // Some more for the threads of other tests.
        assert!(Domain::current().readers.lock().len() < known + 100);
    }

    /// Its destructor pins when the thread has lost its reader, or before.
    struct PinsAtEnd(std::sync::mpsc::Sender<bool>);

    impl Drop for PinsAtEnd {
        fn drop(&mut self) {
            let pin = Pin::new();
            let grace = Grace::begin();
            let is_held = !grace.is_over();
            drop(pin);
            while !grace.wait() {}
            self.0.send(is_held).unwrap();
        }
    }

    #[test]
    fn a_thread_that_ends_can_pin() {
        use std::cell::RefCell;

        thread_local! {
            static FIRST: RefCell<Option<PinsAtEnd>> = const { RefCell::new(None) };
            static LAST: RefCell<Option<PinsAtEnd>> = const { RefCell::new(None) };
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        let other = sender.clone();
        std::thread::spawn(move || {
            FIRST.with(|it| *it.borrow_mut() = Some(PinsAtEnd(sender)));
            drop(Pin::new());
            LAST.with(|it| *it.borrow_mut() = Some(PinsAtEnd(other)));
        })
        .join()
        .unwrap();
        assert_eq!(receiver.iter().collect::<Vec<_>>(), [true, true]);
    }

    /// A sandbox may forbid the call at any time.
    #[cfg(all(target_os = "linux", not(miri)))]
    #[test]
    fn nothing_is_given_up_while_the_barrier_is_refused() {
        use seccompiler::{SeccompAction, SeccompFilter, apply_filter};

        if !barrier::is_for_all() {
            println!("SKIPPED: this system has no membarrier(2)");
            return;
        }
        let number = i64::from(MEMBARRIER);
        let refused = SeccompAction::Errno(1);
        let arch = std::env::consts::ARCH.try_into().unwrap();
        let filter =
            SeccompFilter::new([(number, Vec::new())].into(), SeccompAction::Allow, refused, arch);
        let program: seccompiler::BpfProgram = filter.unwrap().try_into().unwrap();
        let drops = Arc::new(AtomicUsize::new(0));
        let grace = std::thread::scope(|scope| {
            let refused = scope.spawn(|| {
                apply_filter(&program).unwrap();
                drop_later(Counted(Arc::clone(&drops), 1));
                let grace = Grace::begin();
                assert!(!grace.is_over() && !grace.is_over());
                grace
            });
            refused.join().unwrap()
        });
        while !grace.wait() {}
        wait_for_drops(&drops, 1);
    }

    /// Its number.
    #[cfg(target_arch = "x86_64")]
    const MEMBARRIER: i32 = 324;
    #[cfg(not(target_arch = "x86_64"))]
    const MEMBARRIER: i32 = 283;
}
