//! Telling a forked child from its parent, at the price of one load.
//!
//! A child made by `fork` inherits the store's memory but none of its threads, and shares its
//! mapped files and its lock with the parent: it may do nothing at all. One page is marked to be
//! wiped in every child (`MADV_WIPEONFORK`, Linux 4.14); whoever finds it wiped is a child.
#![allow(unsafe_code, reason = "advice on, and one atomic in, a private page")]

use std::io;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicPtr, AtomicU8, Ordering};

use memmap2::MmapRaw;

/// See the file's header.
#[derive(Debug)]
pub(crate) struct ForkGuard {
    /// One private page; its first byte is [`ForkGuard::PARENT`] in the process that made it. None
    /// where the kernel cannot wipe pages: then the process id is compared instead, at the price of
    /// a system call.
    page: Option<MmapRaw>,
    process: u32,
}

impl ForkGuard {
    const PARENT: u8 = 0x5a;
    const PAGE_BYTES: usize = 4096;

    pub(crate) fn new() -> io::Result<Self> {
        let guard = Self { page: Self::wiped_page()?, process: std::process::id() };
        if let Some(flag) = guard.flag() {
            flag.store(Self::PARENT, Ordering::Relaxed);
        }
        Ok(guard)
    }

    /// A private page of zeros, which is one again in every child.
    #[cfg(all(target_os = "linux", not(miri)))]
    fn wiped_page() -> io::Result<Option<MmapRaw>> {
        use rustix::mm::{Advice, madvise};
        let page = MmapRaw::from(memmap2::MmapMut::map_anon(Self::PAGE_BYTES)?);
        // SAFETY: the range is exactly the private anonymous page mapped above; wiping it in a
        // child changes nothing in this process.
        let wiped =
            unsafe { madvise(page.as_mut_ptr().cast(), Self::PAGE_BYTES, Advice::LinuxWipeOnFork) };
        Ok(wiped.is_ok().then_some(page))
    }

    #[cfg(not(all(target_os = "linux", not(miri))))]
    fn wiped_page() -> io::Result<Option<MmapRaw>> {
        Ok(None)
    }

    fn flag(&self) -> Option<&AtomicU8> {
        // SAFETY: the page is mapped as long as `self` lives, and touched only through this atomic.
        self.page.as_ref().map(|page| unsafe { AtomicU8::from_ptr(page.as_mut_ptr()) })
    }

    /// Whether this process is a child of the one that made the guard.
    #[inline]
    pub(crate) fn is_child(&self) -> bool {
        match self.flag() {
            Some(flag) => flag.load(Ordering::Relaxed) != Self::PARENT,
            None => std::process::id() != self.process,
        }
    }
}

/// An address, null at first, that is null again in every child of this process. Never given up. Where the
/// kernel cannot wipe pages children keep what their parent had.
pub(super) fn forgotten_by_children<T>() -> &'static AtomicPtr<T> {
    match ForkGuard::wiped_page() {
        Ok(Some(page)) => {
            let place = ManuallyDrop::new(page).as_mut_ptr();
            // SAFETY: the page is zeroed, aligned to more than an address, and mapped until the process ends: nobody
            // drops it. It is touched through this atomic alone.
            unsafe { AtomicPtr::from_ptr(place.cast()) }
        }
        Ok(None) | Err(_) => Box::leak(Box::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_maker_is_no_child() {
        assert!(!ForkGuard::new().unwrap().is_child());
    }

    #[test]
    fn without_a_wiped_page_the_process_id_decides() {
        let guard = ForkGuard { page: None, process: std::process::id() };
        assert!(!guard.is_child());
        let elsewhere = ForkGuard { page: None, process: std::process::id().wrapping_add(1) };
        assert!(elsewhere.is_child());
    }
}
