//! Asking for memory ahead of its use. A load would do, but whoever waits for many of them fills the
//! processor with what comes behind; a prefetch is done when it is asked for.
#![allow(unsafe_code, reason = "an instruction that has no safe name")]

/// Asks for the cache line in which `of` begins, wherever that is. A hint: nothing follows from it.
#[inline]
pub(crate) fn prefetch<T>(of: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: SSE is part of x86-64, and a prefetch neither faults nor changes anything.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(of.cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = of;
}
