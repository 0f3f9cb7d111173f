//! How long a key is held, and remembered: what a call asks for, within the limits, or what the policy says.

use std::time::Duration;

use crate::policy::{DEDUPE_TTL_MAX, LEASE_MIN, Policy, PolicyProblem, whole_ms};
use crate::wal::class::Class;

/// The lease a claim gets: the one asked for, within the limits, or the policy's.
pub(super) fn lease_of(
    policy: &Policy,
    asked: Option<Duration>,
) -> Result<Duration, PolicyProblem> {
    let Some(lease) = asked.map(whole_ms) else { return Ok(policy.lease) };
    let dedupe_ttl = policy.dedupe_ttl;
    if lease < LEASE_MIN {
        Err(PolicyProblem::LeaseTooShort { lease })
    } else if lease > dedupe_ttl {
        Err(PolicyProblem::LeaseOutlivesDedupe { lease, dedupe_ttl })
    } else {
        Ok(lease)
    }
}

/// The dedupe window a completion gets.
pub(super) fn dedupe_ttl_of(
    policy: &Policy,
    asked: Option<Duration>,
) -> Result<Duration, PolicyProblem> {
    let Some(dedupe_ttl) = asked.map(whole_ms) else { return Ok(policy.dedupe_ttl) };
    if dedupe_ttl > DEDUPE_TTL_MAX {
        return Err(PolicyProblem::DedupeTooLong { dedupe_ttl });
    }
    Ok(dedupe_ttl)
}

/// The class of a completion that is kept for `ttl`, because the policy says so or because the call
/// does.
pub(super) fn class_of(ttl: Duration, is_policy: bool) -> Class {
    if is_policy { Class::exact(ttl) } else { Class::geometric(ttl) }
}
