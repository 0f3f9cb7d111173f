//! What `claim` and `once` say of a key that is not to be had: each has its own answers.

use crate::answer::{Gap, InProgress, Mismatch, Once, Outcome, OutsideWindow, Parked};

/// What a call says of a key that is not to be had.
pub(crate) trait Told {
    fn completed(it: Outcome) -> Self;
    fn in_progress(it: InProgress) -> Self;
    fn mismatch(it: Mismatch) -> Self;
    fn parked(it: Parked) -> Self;
    fn in_doubt(it: Gap) -> Self;
    fn outside_window(it: OutsideWindow) -> Self;
}

impl Told for Once {
    fn completed(it: Outcome) -> Self {
        Self::Seen(it)
    }

    fn in_progress(it: InProgress) -> Self {
        Self::InProgress(it)
    }

    fn mismatch(it: Mismatch) -> Self {
        Self::Mismatch(it)
    }

    fn parked(it: Parked) -> Self {
        Self::Parked(it)
    }

    fn in_doubt(it: Gap) -> Self {
        Self::InDoubt(it)
    }

    fn outside_window(it: OutsideWindow) -> Self {
        Self::OutsideWindow(it)
    }
}
