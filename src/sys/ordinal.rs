//! A number for each thread, to keep threads out of each other's way: what one thread writes again and again stays
//! in the caches of its processor. Two may have the same one, and a thread that meets another takes the next.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

static NEXT: AtomicUsize = AtomicUsize::new(0);

const NONE: usize = usize::MAX;

thread_local! {
    /// Needs no destructor, so that to look at it is a load.
    static OWN: Cell<usize> = const { Cell::new(NONE) };
}

/// That of this thread.
#[inline]
pub(crate) fn own() -> usize {
    match OWN.get() {
        NONE => change(),
        own => own,
    }
}

/// Takes another one from now on.
#[cold]
pub(crate) fn change() -> usize {
    let own = NEXT.fetch_add(1, Ordering::Relaxed) & (NONE >> 1);
    OWN.set(own);
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_its_number_until_it_changes_it() {
        let first = own();
        assert_eq!(own(), first);
        let others = [(); 4].map(|()| std::thread::spawn(own).join().unwrap());
        assert!(others.iter().all(|other| *other != first), "{others:?}");
        assert_ne!(change(), first);
    }
}
