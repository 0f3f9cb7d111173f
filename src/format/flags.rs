//! The flags byte of a record.
//!
//! ```text
//! bits 0-1  completion: what became of the body; park: why
//! bit  2    completion: nobody may see it before it is durable
//! bit  3    renewal, park: no room is reserved for another one, or for what ends it
//! bit  4    completion: a duplicate may extend its window
//! bit  5    the rule of the claim: park when the lease ends
//! bits 6-7  the rule of the claim for orphans
//! ```

use super::record::Kind;
use crate::policy::{OnLeaseEnd, OnOrphan};

/// What became of a completion's body.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub(crate) enum BodyState {
    Kept = 0,
    /// None was given.
    None = 1,
    /// It did not fit: the limit, or the disk.
    TooLarge = 2,
    /// Its replay window is over, or never was.
    ReplayOver = 3,
}

/// Why a key is parked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub(crate) enum ParkedBy {
    /// Its owner called `park`.
    Owner = 0,
    /// Its owner died.
    Orphaned = 1,
}

/// See the file's header.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Flags(pub(super) u8);

impl Flags {
    const GATED: u8 = 1 << 2;
    const NO_RENEWAL_ROOM: u8 = 1 << 3;
    const REFRESHES: u8 = 1 << 4;
    const PARK_ON_LEASE_END: u8 = 1 << 5;
    const ORPHAN_SHIFT: u32 = 6;

    /// The rules a claim is made under; they stay with the key until it is free again.
    pub(crate) fn rules(on_lease_end: OnLeaseEnd, on_orphan: OnOrphan) -> Self {
        let park = match on_lease_end {
            OnLeaseEnd::Reclaim => 0,
            OnLeaseEnd::Park => Self::PARK_ON_LEASE_END,
        };
        let orphan = match on_orphan {
            // Worked out by the policy; written as the plain rule should one slip through.
            OnOrphan::AsLeaseEnd | OnOrphan::Reclaim => 0,
            OnOrphan::Park => 1,
            OnOrphan::KeepLease => 2,
        };
        Self(park | orphan << Self::ORPHAN_SHIFT)
    }

    /// Only the rules, as a new record about the same claim inherits them.
    pub(crate) fn rules_only(self) -> Self {
        Self(self.0 & (Self::PARK_ON_LEASE_END | 3 << Self::ORPHAN_SHIFT))
    }

    pub(crate) fn with_body(self, state: BodyState) -> Self {
        Self(self.0 & !3 | state as u8)
    }

    pub(crate) fn with_parked_by(self, parked_by: ParkedBy) -> Self {
        Self(self.0 & !3 | parked_by as u8)
    }

    /// Marks an outcome that nobody may see before it is durable (R19).
    pub(crate) fn with_gate(self, gated: bool) -> Self {
        if gated { Self(self.0 | Self::GATED) } else { self }
    }

    /// Marks a renewal that used up the room its claim had reserved for one.
    pub(crate) fn without_renewal_room(self) -> Self {
        Self(self.0 | Self::NO_RENEWAL_ROOM)
    }

    pub(crate) fn body(self) -> BodyState {
        match self.0 & 3 {
            0 => BodyState::Kept,
            1 => BodyState::None,
            2 => BodyState::TooLarge,
            _ => BodyState::ReplayOver,
        }
    }

    pub(crate) fn parked_by(self) -> ParkedBy {
        if self.0 & 3 == 0 { ParkedBy::Owner } else { ParkedBy::Orphaned }
    }

    pub(crate) fn gated(self) -> bool {
        self.0 & Self::GATED != 0
    }

    /// Marks a completion whose window a duplicate may extend.
    pub(crate) fn with_refresh(self, refreshes: bool) -> Self {
        if refreshes { Self(self.0 | Self::REFRESHES) } else { self }
    }

    #[inline]
    pub(crate) fn refreshes(self) -> bool {
        self.0 & Self::REFRESHES != 0
    }

    pub(crate) fn has_renewal_room(self) -> bool {
        self.0 & Self::NO_RENEWAL_ROOM == 0
    }

    pub(crate) fn on_lease_end(self) -> OnLeaseEnd {
        if self.0 & Self::PARK_ON_LEASE_END == 0 { OnLeaseEnd::Reclaim } else { OnLeaseEnd::Park }
    }

    pub(crate) fn on_orphan(self) -> OnOrphan {
        match self.0 >> Self::ORPHAN_SHIFT {
            0 => OnOrphan::Reclaim,
            1 => OnOrphan::Park,
            _ => OnOrphan::KeepLease,
        }
    }

    /// Whether `kind` can bear these flags.
    pub(super) fn valid_for(self, kind: Kind) -> bool {
        let low = self.0 & 3;
        let low_is_valid = match kind {
            Kind::Complete => true,
            Kind::Park => low <= ParkedBy::Orphaned as u8,
            // The body of a forget (who and why) is kept.
            Kind::Claim | Kind::Renew | Kind::Release | Kind::Forget => low == 0,
        };
        let is_refreshable = kind == Kind::Complete || !self.refreshes();
        low_is_valid && is_refreshable && self.0 >> Self::ORPHAN_SHIFT <= 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_keep_the_rules_apart_from_the_rest() {
        let rules = Flags::rules(OnLeaseEnd::Park, OnOrphan::Park);
        let flags = rules.with_body(BodyState::TooLarge).with_gate(true).without_renewal_room();
        assert_eq!(flags.rules_only(), rules);
        assert_eq!(flags.body(), BodyState::TooLarge);
        assert!(flags.gated() && !flags.has_renewal_room());
        assert_eq!(flags.on_lease_end(), OnLeaseEnd::Park);
        assert_eq!(flags.on_orphan(), OnOrphan::Park);
        let parked = rules.with_parked_by(ParkedBy::Orphaned);
        assert_eq!(parked.parked_by(), ParkedBy::Orphaned);
        assert!(!parked.gated() && parked.has_renewal_room());
        let refreshes = rules.with_refresh(true);
        assert!(refreshes.refreshes() && refreshes.rules_only() == rules);
        let kinds = [Kind::Claim, Kind::Renew, Kind::Park, Kind::Release, Kind::Forget];
        assert!(refreshes.valid_for(Kind::Complete));
        assert!(kinds.into_iter().all(|kind| rules.valid_for(kind) && !refreshes.valid_for(kind)));
    }
}
