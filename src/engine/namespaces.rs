//! The namespaces of a store: names, numbers, policies.
//!
//! Numbers are given out once and never again. A namespace's policy can be altered while claims
//! run; each claim sees one whole policy, the old or the new.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_utils::CachePadded;
use smallvec::SmallVec;

use super::Engine;
use super::quotas::Meter;
use super::scope_quotas::ScopeMeters;
use crate::error::{NamespaceError, StoreError};
use crate::format::meta::{Meta, SLOTS};
use crate::format::names::{Entry, NamespaceEntry, Raise};
use crate::format::scope;
use crate::hash::{KeyHasher, Secret};
use crate::policy::{FingerprintRule, OnLeaseEnd, OnOrphan, Policy, Quota, RefreshOnHit};
use crate::sys::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use crate::sys::sync::{Mutex, MutexGuard, RwLock, spin_loop};
use crate::sys::tally::Tally;
use crate::types::{KeyHash, NAME_BYTES_MAX, NamespaceId, Timestamp};
use crate::wal::Wal;

/// Completions that have read the old policy are taken to be written within this time after a change.
const UNDER_WAY_MAX: Duration = Duration::from_secs(60);

/// One namespace.
#[derive(Debug)]
pub(crate) struct NamespaceState {
    pub(crate) id: NamespaceId,
    pub(crate) name: String,
    /// On lines of its own: handles are counted beside this state, by everybody who claims.
    pub(crate) hasher: CachePadded<KeyHasher>,
    pub(crate) policy: SharedPolicy,
    /// Times at which its dedupe window became longer.
    raises: RwLock<Vec<Raise>>,
    /// Whether the policy is the default that came with the first use of the name.
    is_implicit: AtomicBool,
    /// What happened to keys of it, see `engine::events`.
    pub(crate) tally: Tally,
    /// See `engine::quotas`.
    pub(crate) meter: Meter,
    /// Of each of its scopes, see `engine::scope_quotas`.
    pub(crate) scope_meters: ScopeMeters,
    /// See `engine::rates`.
    #[cfg(feature = "rate-limit")]
    pub(super) rates: super::rates::Meters,
    /// Those who wait for keys of it.
    pub(crate) waiters: AtomicUsize,
}

/// A key as a call names it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key<'a> {
    pub(crate) namespace: &'a NamespaceState,
    /// The namespace's number as records of the key have it, which says whether it has a scope.
    pub(crate) number: NamespaceId,
    /// As records have them: with the scope in front, if there is one.
    pub(crate) bytes: &'a [u8],
    /// Of namespace and bytes.
    pub(crate) hash: KeyHash,
}

impl<'a> Key<'a> {
    /// What stands in front of it: of its scope.
    pub(super) fn prefix(&self) -> &'a [u8] {
        scope::prefix_of(self.number, self.bytes)
    }

    /// The length of the key without its scope.
    #[inline(never)]
    pub(super) fn given_len(&self) -> usize {
        self.bytes.len() - scope::prefix_len(self.number, self.bytes)
    }

    /// Its scope, by a hash that nobody can aim at; that of no scope is one, too.
    #[cfg(feature = "rate-limit")]
    pub(super) fn scope(&self) -> KeyHash {
        self.namespace.hasher.hash(self.prefix())
    }
}

/// A key that outlives its call.
#[derive(Clone, Debug)]
pub(crate) struct OwnKey {
    bytes: SmallVec<[u8; 48]>,
    hash: KeyHash,
    number: NamespaceId,
}

impl OwnKey {
    #[inline]
    pub(crate) fn of(key: &Key<'_>) -> Self {
        let bytes = SmallVec::from_slice(key.bytes);
        Self { bytes, hash: key.hash, number: key.number }
    }

    /// The key, of the namespace that it was made of.
    #[inline]
    pub(crate) fn named<'a>(&'a self, namespace: &'a NamespaceState) -> Key<'a> {
        Key { namespace, number: self.number, bytes: &self.bytes, hash: self.hash }
    }

    pub(crate) fn hash(&self) -> KeyHash {
        self.hash
    }

    /// What stands in front of it: of its scope.
    pub(crate) fn prefix(&self) -> &[u8] {
        scope::prefix_of(self.number, &self.bytes)
    }

    /// The key as its caller gave it.
    pub(crate) fn given(&self) -> &[u8] {
        &self.bytes[scope::prefix_len(self.number, &self.bytes)..]
    }
}

impl NamespaceState {
    /// The key of these bytes.
    #[inline]
    pub(crate) fn key<'a>(&'a self, bytes: &'a [u8]) -> Key<'a> {
        Key { namespace: self, number: self.id, bytes, hash: self.hasher.hash(bytes) }
    }

    /// The key of these bytes, in front of which a scope stands.
    pub(crate) fn scoped_key<'a>(&'a self, bytes: &'a [u8]) -> Key<'a> {
        Key { namespace: self, number: self.id.scoped(), bytes, hash: self.hasher.hash(bytes) }
    }

    /// Its window becomes longer. What an earlier raise says of a window that was no shorter, this one says, too.
    fn raised(&self, raise: Raise) {
        let mut raises = self.raises.write();
        // Times rise.
        raises.retain(|old| old.dedupe_ttl < raise.dedupe_ttl);
        raises.push(raise);
    }

    /// Since when whatever was first asked for is remembered, if it was completed at once and for `dedupe_ttl`. What was
    /// asked for before a window became longer may have been completed under the shorter one.
    pub(crate) fn remembered_since(&self, dedupe_ttl: Duration, now: Timestamp) -> Timestamp {
        // A window that ends at this moment is over.
        let since = |ttl: Duration| Timestamp::from_ms(now.before(ttl).ms() + 1);
        let raises = self.raises.read();
        let raised = raises.iter().map(|raise| raise.at.min(since(raise.dedupe_ttl)));
        raised.fold(since(dedupe_ttl), Timestamp::max)
    }
}

/// All namespaces of a store.
#[derive(Debug)]
pub(crate) struct Namespaces {
    secret: Secret,
    by_name: RwLock<HashMap<String, Arc<NamespaceState>>>,
    by_id: RwLock<HashMap<NamespaceId, Arc<NamespaceState>>>,
    /// Orders those who change the set. Held across the sync of the names file.
    changing: Mutex<()>,
}

/// What a caller of [`Namespaces::ensure`] wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wanted<'a> {
    /// The namespace, whatever its policy; with the default policy if it is new.
    Any,
    /// The namespace with this policy, which replaces an implicit default.
    Defined(&'a Policy),
    /// The namespace, which exists, with this policy from now on.
    Altered(&'a Policy),
}

impl Namespaces {
    /// The namespaces that the names file lists. Later entries of a namespace replace earlier ones.
    pub(crate) fn new(
        secret: Secret,
        entries: Vec<NamespaceEntry>,
        raises: Vec<Raise>,
        quotas: Vec<(NamespaceId, Quota)>,
    ) -> Self {
        let namespaces = Self {
            secret,
            by_name: RwLock::default(),
            by_id: RwLock::default(),
            changing: Mutex::new(()),
        };
        for entry in entries {
            namespaces.enter(&entry);
        }
        for raise in raises {
            if let Some(known) = namespaces.by_id(raise.namespace) {
                known.raised(raise);
            }
        }
        for (number, quota) in quotas {
            match namespaces.by_id(number.unscoped()) {
                Some(known) if number.is_scoped() => known.scope_meters.set(&quota),
                Some(known) => known.meter.set(&quota),
                None => {}
            }
        }
        namespaces
    }

    fn enter(&self, entry: &NamespaceEntry) -> Arc<NamespaceState> {
        if let Some(known) = self.by_id(entry.namespace) {
            known.policy.store(&entry.policy);
            known.is_implicit.store(entry.implicit, Ordering::Release);
            return known;
        }
        let state = Arc::new(NamespaceState {
            id: entry.namespace,
            name: entry.name.clone(),
            hasher: CachePadded::new(self.secret.hasher(entry.namespace)),
            policy: SharedPolicy::new(&entry.policy),
            raises: RwLock::default(),
            is_implicit: AtomicBool::new(entry.implicit),
            tally: Tally::default(),
            meter: Meter::default(),
            scope_meters: ScopeMeters::default(),
            #[cfg(feature = "rate-limit")]
            rates: super::rates::Meters::default(),
            waiters: AtomicUsize::new(0),
        });
        self.by_id.write().insert(entry.namespace, Arc::clone(&state));
        self.by_name.write().insert(entry.name.clone(), Arc::clone(&state));
        state
    }

    pub(crate) fn by_id(&self, id: NamespaceId) -> Option<Arc<NamespaceState>> {
        self.by_id.read().get(&id).cloned()
    }

    pub(super) fn by_name(&self, name: &str) -> Option<Arc<NamespaceState>> {
        self.by_name.read().get(name).cloned()
    }

    /// All namespaces.
    pub(crate) fn all(&self) -> Vec<Arc<NamespaceState>> {
        self.by_id.read().values().cloned().collect()
    }

    /// The names of all namespaces, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.by_name.read().keys().cloned().collect();
        names.sort();
        names
    }

    /// Orders those who append to the names file.
    pub(crate) fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock()
    }

    /// Finds, makes or changes a namespace. What is new survives power loss when this returns.
    pub(crate) fn ensure(
        &self,
        wal: &Wal,
        name: &str,
        wanted: Wanted<'_>,
        now: impl Fn() -> Timestamp,
    ) -> Result<Arc<NamespaceState>, NamespaceError> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(NamespaceError::NameLength { len: name.len() });
        }
        if let Wanted::Defined(policy) | Wanted::Altered(policy) = wanted {
            let problems = policy.problems();
            if !problems.is_empty() {
                return Err(NamespaceError::Policy(problems));
            }
        }
        if let Some(settled) = self.settled(name, wanted)? {
            return Ok(settled);
        }
        let _changing = self.changing();
        // Somebody may have been faster.
        if let Some(settled) = self.settled(name, wanted)? {
            return Ok(settled);
        }
        self.change(wal, name, wanted, now)
    }

    /// The namespace, when nothing needs to be written for it.
    fn settled(
        &self,
        name: &str,
        wanted: Wanted<'_>,
    ) -> Result<Option<Arc<NamespaceState>>, NamespaceError> {
        let Some(known) = self.by_name(name) else {
            return match wanted {
                Wanted::Altered(_) => Err(NamespaceError::UnknownName),
                Wanted::Any | Wanted::Defined(_) => Ok(None),
            };
        };
        let is_implicit = known.is_implicit.load(Ordering::Acquire);
        match wanted {
            Wanted::Any => Ok(Some(known)),
            Wanted::Defined(asked) if !is_implicit => {
                let stored = known.policy.load();
                if stored == *asked {
                    Ok(Some(known))
                } else {
                    let (stored, asked) = (Box::new(stored), Box::new(*asked));
                    Err(NamespaceError::PolicyConflict { stored, asked })
                }
            }
            Wanted::Altered(asked) if !is_implicit && known.policy.load() == *asked => {
                Ok(Some(known))
            }
            Wanted::Defined(_) | Wanted::Altered(_) => Ok(None),
        }
    }

    fn change(
        &self,
        wal: &Wal,
        name: &str,
        wanted: Wanted<'_>,
        now: impl Fn() -> Timestamp,
    ) -> Result<Arc<NamespaceState>, NamespaceError> {
        let _passage = wal.pass()?;
        wal.poison.check_before()?;
        let highest = wal.meta.read(|meta| meta.namespaces);
        let namespace = match self.by_name(name) {
            Some(known) => known.id,
            None if highest < NamespaceId::MAX.0 => NamespaceId(highest + 1),
            None => return Err(NamespaceError::TooMany),
        };
        let (policy, implicit) = match wanted {
            Wanted::Any => (Policy::default(), true),
            Wanted::Defined(policy) | Wanted::Altered(policy) => (*policy, false),
        };
        if let Some(known) = self.by_name(name) {
            let before = known.policy.load().dedupe_ttl;
            if before < policy.dedupe_ttl {
                // First: should only this one come to be, keys are just held for older than they are.
                let at = now().after(UNDER_WAY_MAX);
                let raise = Raise { namespace, at, dedupe_ttl: before };
                if !wal.append_entry(&Entry::Raise(raise), |_| ())? {
                    return Err(NamespaceError::TooMany);
                }
                known.raised(raise);
            }
        }
        let entry = NamespaceEntry { namespace, name: name.to_owned(), policy, implicit };
        let count = |meta: &mut Meta| meta.namespaces = highest.max(namespace.0);
        if wal.append_entry(&Entry::Namespace(entry.clone()), count)? {
            Ok(self.enter(&entry))
        } else {
            Err(NamespaceError::TooMany)
        }
    }
}

impl Engine {
    /// Says in the meta file that there are keys with a scope, before there is one: earlier versions would take them for
    /// keys of a namespace that is not there.
    #[cold]
    pub(super) fn begin_scopes(&self) -> Result<(), StoreError> {
        if self.has_scopes.load(Ordering::Acquire) {
            return Ok(());
        }
        let _passage = self.wal.pass()?;
        self.wal.poison.check_before()?;
        // In both slots: should one go bad, the other one says so, too.
        for _ in 0..SLOTS {
            let said = self.wal.meta.update(|meta| meta.has_scopes = true);
            said.map_err(|cause| self.wal.fail(cause))?;
        }
        self.has_scopes.store(true, Ordering::Release);
        Ok(())
    }
}

/// A policy that many read and few change.
///
/// Readers take no lock: the fields are atomics, and a version that changes before and after each
/// store tells a reader that it saw parts of two policies.
#[derive(Debug)]
pub(crate) struct SharedPolicy {
    /// Odd while a store is under way.
    version: AtomicU32,
    lease_ms: AtomicU64,
    replay_ms: AtomicU64,
    dedupe_ms: AtomicU64,
    /// `u64::MAX`: follows from the lease.
    grace_ms: AtomicU64,
    rules: AtomicU32,
    storing: Mutex<()>,
}

const GRACE_UNSET: u64 = u64::MAX;

impl SharedPolicy {
    pub(crate) fn new(policy: &Policy) -> Self {
        let shared = Self {
            version: AtomicU32::new(0),
            lease_ms: AtomicU64::new(0),
            replay_ms: AtomicU64::new(0),
            dedupe_ms: AtomicU64::new(0),
            grace_ms: AtomicU64::new(0),
            rules: AtomicU32::new(0),
            storing: Mutex::new(()),
        };
        shared.store(policy);
        shared
    }

    pub(crate) fn store(&self, policy: &Policy) {
        // Policies are valid, so their times fit.
        let ms = |span: Duration| span.as_millis() as u64;
        let _storing = self.storing.lock();
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        // Pairs with the Acquire fence in `load`: a reader that saw any store below sees the odd
        // version.
        fence(Ordering::Release);
        self.lease_ms.store(ms(policy.lease), Ordering::Relaxed);
        self.replay_ms.store(ms(policy.replay_ttl), Ordering::Relaxed);
        self.dedupe_ms.store(ms(policy.dedupe_ttl), Ordering::Relaxed);
        self.grace_ms.store(policy.late_grace.map_or(GRACE_UNSET, ms), Ordering::Relaxed);
        self.rules.store(rules_to_bits(policy), Ordering::Relaxed);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    /// What becomes of another fingerprint, and whether one is required.
    #[inline]
    pub(crate) fn fingerprint_rule(&self) -> (FingerprintRule, bool) {
        let rules = self.rules.load(Ordering::Relaxed);
        (fingerprint_of(rules), rules >> 24 != 0)
    }

    #[inline]
    pub(crate) fn load(&self) -> Policy {
        loop {
            let before = self.version.load(Ordering::Acquire);
            let ms = |field: &AtomicU64| Duration::from_millis(field.load(Ordering::Relaxed));
            let rules = self.rules.load(Ordering::Relaxed);
            let policy = Policy {
                lease: ms(&self.lease_ms),
                replay_ttl: ms(&self.replay_ms),
                dedupe_ttl: ms(&self.dedupe_ms),
                late_grace: match self.grace_ms.load(Ordering::Relaxed) {
                    GRACE_UNSET => None,
                    grace => Some(Duration::from_millis(grace)),
                },
                on_lease_end: on_lease_end_of(rules),
                on_orphan: on_orphan_of(rules),
                fingerprint: fingerprint_of(rules),
                fingerprint_required: rules >> 24 != 0,
                refresh_on_hit: refresh_on_hit_of(rules),
            };
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before {
                return policy;
            }
            spin_loop();
        }
    }
}

fn rules_to_bits(policy: &Policy) -> u32 {
    let on_lease_end = match policy.on_lease_end {
        OnLeaseEnd::Reclaim => 0,
        OnLeaseEnd::Park => 1,
    };
    let on_orphan = match policy.on_orphan {
        OnOrphan::AsLeaseEnd => 0,
        OnOrphan::Reclaim => 1,
        OnOrphan::Park => 2,
        OnOrphan::KeepLease => 3,
    };
    let fingerprint = match policy.fingerprint {
        FingerprintRule::Ignore => 0,
        FingerprintRule::Count => 1,
        FingerprintRule::Enforce => 2,
    };
    let refresh_on_hit = match policy.refresh_on_hit {
        RefreshOnHit::Never => 0,
        RefreshOnHit::BelowHalf => 1,
        RefreshOnHit::BelowQuarter => 2,
        RefreshOnHit::BelowEighth => 3,
    };
    let required = u32::from(policy.fingerprint_required);
    on_lease_end | refresh_on_hit << 4 | on_orphan << 8 | fingerprint << 16 | required << 24
}

fn on_lease_end_of(bits: u32) -> OnLeaseEnd {
    if bits & 0xf == 0 { OnLeaseEnd::Reclaim } else { OnLeaseEnd::Park }
}

fn refresh_on_hit_of(bits: u32) -> RefreshOnHit {
    match bits >> 4 & 0xf {
        0 => RefreshOnHit::Never,
        1 => RefreshOnHit::BelowHalf,
        2 => RefreshOnHit::BelowQuarter,
        _ => RefreshOnHit::BelowEighth,
    }
}

fn on_orphan_of(bits: u32) -> OnOrphan {
    match bits >> 8 & 0xff {
        0 => OnOrphan::AsLeaseEnd,
        1 => OnOrphan::Reclaim,
        2 => OnOrphan::Park,
        _ => OnOrphan::KeepLease,
    }
}

fn fingerprint_of(bits: u32) -> FingerprintRule {
    match bits >> 16 & 0xff {
        0 => FingerprintRule::Ignore,
        1 => FingerprintRule::Count,
        _ => FingerprintRule::Enforce,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policies() -> [Policy; 3] {
        [
            Policy::default(),
            Policy::default()
                .lease(Duration::from_secs(1))
                .replay_ttl(Duration::from_secs(2))
                .dedupe_ttl(Duration::from_secs(3))
                .late_grace(Duration::ZERO)
                .on_lease_end(OnLeaseEnd::Park)
                .on_orphan(OnOrphan::KeepLease)
                .fingerprint(FingerprintRule::Ignore)
                .fingerprint_required(true)
                .refresh_on_hit(RefreshOnHit::BelowEighth),
            Policy::default()
                .on_orphan(OnOrphan::Park)
                .fingerprint(FingerprintRule::Count)
                .refresh_on_hit(RefreshOnHit::BelowHalf)
                .dedupe_ttl(crate::policy::DEDUPE_TTL_MAX),
        ]
    }

    #[test]
    fn a_policy_comes_back_as_it_was_stored() {
        for policy in policies() {
            assert_eq!(SharedPolicy::new(&policy).load(), policy);
        }
    }

    #[test]
    fn readers_never_see_parts_of_two_policies() {
        let all = policies();
        let shared = SharedPolicy::new(&all[0]);
        let rounds = if cfg!(miri) { 20 } else { 20_000 };
        std::thread::scope(|scope| {
            scope.spawn(|| (0..rounds).for_each(|round| shared.store(&all[round % all.len()])));
            for _ in 0..rounds {
                assert!(all.contains(&shared.load()));
            }
        });
    }
}
