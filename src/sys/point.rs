//! Named places at which a test can end the process, as `kill -9` would. Without `test-util` they
//! are nothing.
//!
//! They stand where an order of steps carries a promise: between two stores of a record, between a
//! write and its sync, between a sync and what relies on it.

/// See the file's header. What is named has not happened yet, or just has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Point {
    /// The record is in the page cache but for its length.
    BeforeLength,
    /// The record is whole; no reader can find it.
    BehindLength,
    /// The table knows the record; the caller has not been told.
    BehindInsert,
    BeforeTrailer,
    BehindTrailer,
    BeforeMark,
    BeforeRoundSync,
    BehindRoundSync,
    BeforeMetaWrite,
    BeforeMetaSync,
    BehindMetaSync,
    BeforeNameSync,
    BehindNameSync,
    BehindFileFill,
    BeforeHeaders,
    BeforeHeaderSync,
    BeforeListing,
    BehindListing,
    CopyBehindInsert,
    PurgeBehindWalk,
    RecycleBeforeHeader,
    RecycleBehindHeader,
    RecycleBehindSync,
    BehindUnlisting,
    OpenBehindRead,
    OpenBehindEpoch,
    OpenBehindRewrite,
    OpenBehindHeaders,
    OpenBehindSync,
    OpenBehindPark,
    CloseBehindSeal,
    CloseBehindFlush,
    CloseBehindClean,
}

impl Point {
    /// All of them.
    #[cfg(any(test, feature = "test-util"))]
    pub const ALL: [Self; 33] = [
        Self::BeforeLength,
        Self::BehindLength,
        Self::BehindInsert,
        Self::BeforeTrailer,
        Self::BehindTrailer,
        Self::BeforeMark,
        Self::BeforeRoundSync,
        Self::BehindRoundSync,
        Self::BeforeMetaWrite,
        Self::BeforeMetaSync,
        Self::BehindMetaSync,
        Self::BeforeNameSync,
        Self::BehindNameSync,
        Self::BehindFileFill,
        Self::BeforeHeaders,
        Self::BeforeHeaderSync,
        Self::BeforeListing,
        Self::BehindListing,
        Self::CopyBehindInsert,
        Self::PurgeBehindWalk,
        Self::RecycleBeforeHeader,
        Self::RecycleBehindHeader,
        Self::RecycleBehindSync,
        Self::BehindUnlisting,
        Self::OpenBehindRead,
        Self::OpenBehindEpoch,
        Self::OpenBehindRewrite,
        Self::OpenBehindHeaders,
        Self::OpenBehindSync,
        Self::OpenBehindPark,
        Self::CloseBehindSeal,
        Self::CloseBehindFlush,
        Self::CloseBehindClean,
    ];
}

#[cfg(any(test, feature = "test-util"))]
pub use chosen::end_process_at;
#[cfg(any(test, feature = "test-util"))]
pub(crate) use chosen::reach;

/// Passes a point.
#[cfg(not(any(test, feature = "test-util")))]
#[inline(always)]
pub(crate) fn reach(_point: Point) {}

#[cfg(any(test, feature = "test-util"))]
mod chosen {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    use super::Point;

    static CHOSEN: OnceLock<(Point, AtomicU64)> = OnceLock::new();

    /// Ends this process when it reaches the point for the `nth` time, counted from 0. The first
    /// choice stands.
    pub fn end_process_at(point: Point, nth: u64) {
        CHOSEN.get_or_init(|| (point, AtomicU64::new(nth)));
    }

    /// Passes a point, or ends the process there.
    #[inline]
    pub(crate) fn reach(point: Point) {
        let Some((_, left)) = CHOSEN.get().filter(|(chosen, _)| *chosen == point) else { return };
        if left.fetch_sub(1, Ordering::Relaxed) == 0 {
            // Nothing comes behind it.
            kill_process(getpid(), Signal::KILL).unwrap_or_default();
            loop {
                std::thread::park();
            }
        }
    }
}
