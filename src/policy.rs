//! Policies: what a namespace promises its keys.
//!
//! A policy is stored with the namespace and applies to entries made after it; entries that exist
//! keep the deadlines and the rules they were made under.

use std::time::Duration;

/// Shortest lease.
pub const LEASE_MIN: Duration = Duration::from_millis(100);

/// Longest dedupe window: thirty years.
pub const DEDUPE_TTL_MAX: Duration = Duration::from_secs(30 * 31_557_600);

/// Shortest default of [`Policy::late_grace`].
const LATE_GRACE_DEFAULT_MIN: Duration = Duration::from_secs(60);

/// What happens to a claim whose lease ends before its owner has completed, released or parked it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum OnLeaseEnd {
    /// The next claim takes over, with a new token and `attempt + 1`.
    #[default]
    Reclaim,
    /// The outcome is unknown: the next claim is answered `Parked`, until somebody resolves or
    /// forgets the key. The owner may still complete late.
    Park,
}

/// What happens to a claim whose owner is known to be dead: the process that held the store ended
/// before the claim did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum OnOrphan {
    /// As [`Policy::on_lease_end`] says.
    #[default]
    AsLeaseEnd,
    /// The next claim takes over at once, without waiting for the lease.
    Reclaim,
    /// The key is parked at once, for good: nobody completes it late.
    Park,
    /// The lease runs on; [`Policy::on_lease_end`] decides when it ends. After a power cut it may be that of the claim, or of an earlier
    /// renewal: renewals wait for no disk.
    KeepLease,
}

/// What a differing fingerprint means.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum FingerprintRule {
    /// Nothing: fingerprints are kept, never compared.
    Ignore,
    /// The mismatch is counted ([`crate::Namespace::fingerprint_mismatches`]), and the call goes on.
    Count,
    /// The call is answered `Mismatch`: never executed, never replayed. Compared when both sides
    /// gave a fingerprint.
    #[default]
    Enforce,
}

/// Whether a duplicate extends the dedupe window of a completed key.
///
/// It does when less than this share of the policy's window is left, to the whole of it from then on: so a key that is asked
/// for again and again is remembered on, and written again once in half a window at most. The body is
/// not kept for longer: the replay window counts from completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum RefreshOnHit {
    /// The window counts from completion.
    #[default]
    Never,
    /// When less than half of it is left.
    BelowHalf,
    /// When less than a quarter of it is left.
    BelowQuarter,
    /// When less than an eighth of it is left.
    BelowEighth,
}

impl RefreshOnHit {
    /// Whether a window of which so much is left is to be extended.
    pub(crate) fn is_due(self, left: Duration, dedupe_ttl: Duration) -> bool {
        match self {
            Self::Never => false,
            Self::BelowHalf => left < dedupe_ttl / 2,
            Self::BelowQuarter => left < dedupe_ttl / 4,
            Self::BelowEighth => left < dedupe_ttl / 8,
        }
    }
}

/// The limits and rules of a namespace. Times are kept in whole milliseconds, rounded up.
///
/// Must hold: 100 ms <= lease <= dedupe_ttl, replay_ttl <= dedupe_ttl <= 30 years.
///
/// ```
/// use refrain::{OnLeaseEnd, Policy};
/// use std::time::Duration;
///
/// let money = Policy::default()
///     .lease(Duration::from_secs(60))
///     .replay_ttl(Duration::from_secs(24 * 3600))
///     .dedupe_ttl(Duration::from_secs(31 * 24 * 3600))
///     .on_lease_end(OnLeaseEnd::Park);
/// # let store = refrain::Store::in_memory()?;
/// let payments = store.define("payments", &money)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// The fields are there to be read; each has a method of the same name to change it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a policy does nothing until it is given to `Store::define` or `Store::alter`"]
#[non_exhaustive]
pub struct Policy {
    /// How long a claim is its owner's alone.
    pub lease: Duration,
    /// How long the body of an outcome is kept, from completion.
    pub replay_ttl: Duration,
    /// How long a completed key is remembered, from completion.
    pub dedupe_ttl: Duration,
    /// How long after its lease an unfinished claim is remembered; `None` is the longer of the
    /// lease and 60 s.
    pub late_grace: Option<Duration>,
    /// What happens when a lease runs out.
    pub on_lease_end: OnLeaseEnd,
    /// What happens to a claim whose process died.
    pub on_orphan: OnOrphan,
    /// What a differing fingerprint means.
    pub fingerprint: FingerprintRule,
    /// Whether a claim without a fingerprint is refused.
    pub fingerprint_required: bool,
    /// Whether a duplicate extends the dedupe window of a completed key.
    pub refresh_on_hit: RefreshOnHit,
}

impl Default for Policy {
    /// Lease 30 s, replay and dedupe windows 24 h, `Reclaim`, fingerprints enforced when given.
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            replay_ttl: Duration::from_secs(24 * 3600),
            dedupe_ttl: Duration::from_secs(24 * 3600),
            late_grace: None,
            on_lease_end: OnLeaseEnd::default(),
            on_orphan: OnOrphan::default(),
            fingerprint: FingerprintRule::default(),
            fingerprint_required: false,
            refresh_on_hit: RefreshOnHit::default(),
        }
    }
}

impl Policy {
    /// How long a claim is its owner's alone. Default 30 s.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// How long the body of an outcome is kept, from completion. Default 24 h. Zero keeps no
    /// bodies.
    pub fn replay_ttl(mut self, ttl: Duration) -> Self {
        self.replay_ttl = ttl;
        self
    }

    /// How long a completed key is remembered, from completion. Default 24 h.
    pub fn dedupe_ttl(mut self, ttl: Duration) -> Self {
        self.dedupe_ttl = ttl;
        self
    }

    /// How long after its lease an unfinished claim is remembered, for a late completion and for
    /// the attempt count. Default: the longer of the lease and 60 s. Under [`OnLeaseEnd::Park`] an
    /// unfinished claim is never forgotten.
    pub fn late_grace(mut self, grace: Duration) -> Self {
        self.late_grace = Some(grace);
        self
    }

    /// What happens when a lease runs out. Default [`OnLeaseEnd::Reclaim`].
    pub fn on_lease_end(mut self, rule: OnLeaseEnd) -> Self {
        self.on_lease_end = rule;
        self
    }

    /// What happens to a claim whose process died. Default: as when the lease runs out.
    pub fn on_orphan(mut self, rule: OnOrphan) -> Self {
        self.on_orphan = rule;
        self
    }

    /// What a differing fingerprint means. Default [`FingerprintRule::Enforce`].
    pub fn fingerprint(mut self, rule: FingerprintRule) -> Self {
        self.fingerprint = rule;
        self
    }

    /// Whether a claim without a fingerprint is refused. Default no.
    pub fn fingerprint_required(mut self, required: bool) -> Self {
        self.fingerprint_required = required;
        self
    }

    /// Whether a duplicate, a claim or a mark of a completed key that answers with its outcome, extends the key's dedupe window. Default
    /// [`RefreshOnHit::Never`]. Holds for keys that are completed from then on, without a window of their own
    /// ([`crate::CompleteOptions::dedupe_ttl`]).
    pub fn refresh_on_hit(mut self, rule: RefreshOnHit) -> Self {
        self.refresh_on_hit = rule;
        self
    }

    /// The policy in the unit times are stored in.
    pub(crate) fn in_whole_ms(self) -> Self {
        Self {
            lease: whole_ms(self.lease),
            replay_ttl: whole_ms(self.replay_ttl),
            dedupe_ttl: whole_ms(self.dedupe_ttl),
            late_grace: self.late_grace.map(whole_ms),
            ..self
        }
    }

    /// The grace of a claim with this lease.
    pub(crate) fn grace_for(&self, lease: Duration) -> Duration {
        self.late_grace.unwrap_or_else(|| lease.max(LATE_GRACE_DEFAULT_MIN))
    }

    /// The rule for orphans, with `AsLeaseEnd` worked out.
    pub(crate) fn orphan_rule(&self) -> OnOrphan {
        match (self.on_orphan, self.on_lease_end) {
            (OnOrphan::AsLeaseEnd, OnLeaseEnd::Reclaim) => OnOrphan::Reclaim,
            (OnOrphan::AsLeaseEnd, OnLeaseEnd::Park) => OnOrphan::Park,
            (given, _) => given,
        }
    }

    /// Every way in which the policy contradicts itself or a limit.
    pub(crate) fn problems(&self) -> Vec<PolicyProblem> {
        let mut problems = Vec::new();
        if self.lease < LEASE_MIN {
            problems.push(PolicyProblem::LeaseTooShort { lease: self.lease });
        }
        if self.lease > self.dedupe_ttl {
            let (lease, dedupe_ttl) = (self.lease, self.dedupe_ttl);
            problems.push(PolicyProblem::LeaseOutlivesDedupe { lease, dedupe_ttl });
        }
        if self.replay_ttl > self.dedupe_ttl {
            let (replay_ttl, dedupe_ttl) = (self.replay_ttl, self.dedupe_ttl);
            problems.push(PolicyProblem::ReplayOutlivesDedupe { replay_ttl, dedupe_ttl });
        }
        if self.dedupe_ttl > DEDUPE_TTL_MAX {
            problems.push(PolicyProblem::DedupeTooLong { dedupe_ttl: self.dedupe_ttl });
        }
        if self.late_grace.is_some_and(|grace| grace > DEDUPE_TTL_MAX) {
            let late_grace = self.late_grace.unwrap_or_default();
            problems.push(PolicyProblem::GraceTooLong { late_grace });
        }
        problems
    }
}

/// How much of a namespace there may be, see [`crate::Store::limit`]. `None`: as much as there is room for.
///
/// The fields are there to be read; each has a method of the same name to change it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[must_use = "a quota does nothing until it is given to `Store::limit`"]
#[non_exhaustive]
pub struct Quota {
    /// Keys, whatever their state; one whose time is over counts until its segment is recycled.
    pub keys: Option<u64>,
    /// Bytes of the current records of its keys, bodies included. A completion is never refused: its body may carry the sum
    /// beyond the limit, and then nothing is granted until there are fewer.
    pub bytes: Option<u64>,
    /// Unfinished claims; one whose lease is over counts until it is ended, or forgotten and its segment recycled.
    pub in_flight: Option<u64>,
    /// Calls that wait for its keys, if that is fewer than [`crate::Options::max_waiters`] allows of.
    pub waiters: Option<u64>,
}

impl Quota {
    /// Limits keys.
    pub fn keys(mut self, keys: u64) -> Self {
        self.keys = Some(keys);
        self
    }

    /// Limits the bytes of records.
    pub fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = Some(bytes);
        self
    }

    /// Limits unfinished claims.
    pub fn in_flight(mut self, claims: u64) -> Self {
        self.in_flight = Some(claims);
        self
    }

    /// Limits calls that wait.
    pub fn waiters(mut self, waiters: u64) -> Self {
        self.waiters = Some(waiters);
        self
    }

    /// Whether nothing is limited.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The largest number stands for no limit on the disk.
    pub(crate) fn as_stored(self) -> Self {
        let stored = |limit: Option<u64>| limit.filter(|limit| *limit != u64::MAX);
        Self {
            keys: stored(self.keys),
            bytes: stored(self.bytes),
            in_flight: stored(self.in_flight),
            waiters: stored(self.waiters),
        }
    }
}

/// Rounds up to whole milliseconds, the unit times are stored in.
pub(crate) fn whole_ms(span: Duration) -> Duration {
    let ms = span.as_nanos().div_ceil(1_000_000);
    u64::try_from(ms).map_or(Duration::MAX, Duration::from_millis)
}

/// One way in which a policy, or the times of one call, cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyProblem {
    /// A lease shorter than [`LEASE_MIN`].
    #[error("a lease of {lease:?} is shorter than 100 ms")]
    LeaseTooShort {
        /// The lease asked for.
        lease: Duration,
    },
    /// A lease longer than the key would be remembered.
    #[error("a lease of {lease:?} outlives the dedupe window of {dedupe_ttl:?}")]
    LeaseOutlivesDedupe {
        /// The lease asked for.
        lease: Duration,
        /// The dedupe window it was asked with.
        dedupe_ttl: Duration,
    },
    /// A body kept longer than its key.
    #[error("a replay window of {replay_ttl:?} outlives the dedupe window of {dedupe_ttl:?}")]
    ReplayOutlivesDedupe {
        /// The replay window asked for.
        replay_ttl: Duration,
        /// The dedupe window it was asked with.
        dedupe_ttl: Duration,
    },
    /// A dedupe window longer than [`DEDUPE_TTL_MAX`].
    #[error("a dedupe window of {dedupe_ttl:?} is longer than thirty years")]
    DedupeTooLong {
        /// The dedupe window asked for.
        dedupe_ttl: Duration,
    },
    /// A grace longer than [`DEDUPE_TTL_MAX`].
    #[error("a late grace of {late_grace:?} is longer than thirty years")]
    GraceTooLong {
        /// The grace asked for.
        late_grace: Duration,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_policy_is_valid() {
        assert!(Policy::default().problems().is_empty());
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let policy = Policy::default()
            .lease(Duration::from_millis(99))
            .replay_ttl(DEDUPE_TTL_MAX + Duration::from_secs(2))
            .dedupe_ttl(DEDUPE_TTL_MAX + Duration::from_secs(1))
            .late_grace(DEDUPE_TTL_MAX + Duration::from_secs(1));
        assert_eq!(policy.problems().len(), 4);
        let policy = Policy::default().lease(Duration::from_secs(100_000));
        assert_eq!(policy.problems().len(), 1);
    }

    #[test]
    fn the_limits_themselves_are_allowed() {
        let policy = Policy::default()
            .lease(LEASE_MIN)
            .replay_ttl(DEDUPE_TTL_MAX)
            .dedupe_ttl(DEDUPE_TTL_MAX)
            .late_grace(DEDUPE_TTL_MAX);
        assert!(policy.problems().is_empty());
        assert!(
            Policy::default()
                .lease(LEASE_MIN)
                .dedupe_ttl(LEASE_MIN)
                .replay_ttl(Duration::ZERO)
                .problems()
                .is_empty()
        );
    }

    #[test]
    fn grace_defaults_to_the_longer_of_lease_and_a_minute() {
        let policy = Policy::default();
        assert_eq!(policy.grace_for(Duration::from_secs(30)), Duration::from_secs(60));
        assert_eq!(policy.grace_for(Duration::from_secs(90)), Duration::from_secs(90));
        let policy = policy.late_grace(Duration::from_secs(5));
        assert_eq!(policy.grace_for(Duration::from_secs(90)), Duration::from_secs(5));
    }

    #[test]
    fn a_window_is_refreshed_below_its_share() {
        let rules =
            [RefreshOnHit::BelowHalf, RefreshOnHit::BelowQuarter, RefreshOnHit::BelowEighth];
        let ms = Duration::from_millis;
        for (rule, share) in rules.into_iter().zip([400, 200, 100]) {
            assert!(rule.is_due(ms(share - 1), ms(800)) && !rule.is_due(ms(share), ms(800)));
        }
        assert!(!RefreshOnHit::Never.is_due(ms(0), ms(800)));
    }

    #[test]
    fn orphans_follow_the_lease_end_rule_unless_told_otherwise() {
        let policy = Policy::default();
        assert_eq!(policy.orphan_rule(), OnOrphan::Reclaim);
        assert_eq!(policy.on_lease_end(OnLeaseEnd::Park).orphan_rule(), OnOrphan::Park);
        assert_eq!(policy.on_orphan(OnOrphan::KeepLease).orphan_rule(), OnOrphan::KeepLease);
    }

    #[test]
    fn a_part_of_a_millisecond_counts_as_one() {
        assert_eq!(whole_ms(Duration::from_nanos(1)), Duration::from_millis(1));
        assert_eq!(whole_ms(Duration::MAX), Duration::MAX);
    }
}
