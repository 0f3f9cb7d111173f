//! Does one primitive so many times, for callgrind to count what it takes: see
//! `scripts/count-instructions.sh`.
//!
//! `instructions PRIMITIVE PLACE COUNT`: makes a store in a directory or in memory, fills it with
//! `COUNT` keys in the state that the primitive needs, makes everything ready as the maintenance
//! thread would, and does the primitive once for each key inside `measured`, where callgrind is
//! told to count. Without arguments it prints the names, one a line.
#![allow(missing_docs, reason = "a program")]

#[path = "../../../common/keys.rs"]
mod keys;

use std::hint::black_box;
#[cfg(feature = "rate-limit")]
use std::num::NonZeroU32;
use std::time::Duration;

use refrain::{
    Claim, ClaimOptions, Durability, FencingToken, Fingerprint, Lease, Lookup, Namespace, Once,
    Options, OutcomeRef, OwnerId, Policy, Quota, RefreshOnHit, Store,
};

use keys::{BODY, key};

type Key = [u8; 36];

/// The calls that are counted, by name.
const PRIMITIVES: &[&str] = &[
    "nothing",
    "claim_fresh",
    "claim_in_progress",
    "claim_completed",
    "claim_completed_fingerprint",
    "complete",
    "lookup_missing",
    "lookup_in_progress",
    "lookup_completed",
    "lookup_with_completed",
    "once_fresh",
    "once_seen",
    "renew",
    "release",
    "with_owner_claim_fresh",
    "with_owner_resume",
    "with_scope_claim_fresh",
    "with_scope_claim_completed",
    "with_quota_claim_fresh",
    "with_quota_complete",
    "with_scope_quota_claim_fresh",
    "with_rate_claim_fresh",
    "with_rate_each_scope_claim_fresh",
    "with_refresh_claim_completed",
    "with_guard_admit_newer",
    "with_guard_admit_same",
];

/// Callgrind counts from here to the end of the call.
#[inline(never)]
fn measured(keys: &[Key], each: &mut dyn FnMut(&Key)) {
    for key in keys {
        each(black_box(key));
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [primitive, place, count] = &arguments[..] else {
        PRIMITIVES.iter().for_each(|name| println!("{name}"));
        return;
    };
    let count = count.parse().expect("a count");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = match &place[..] {
        "directory" => Options::new(directory.path()).durability(Durability::Buffered),
        "memory" => Options::in_memory(),
        _ => panic!("the place is `directory` or `memory`"),
    };
    // Said here, so that the counts do not move with the default, which is 64.
    let store = options.shards(16).manual_maintenance(true).open().expect("a new store");
    let space = store.namespace("counts").expect("a namespace");
    let keys: Vec<Key> = (0..count).map(key).collect();
    run(&store, &space, primitive, &keys);
}

fn claim(space: &Namespace, key: &Key) -> Lease {
    space.claim(key, None).expect("room").acquired().expect("a fresh key")
}

fn complete_all(space: &Namespace, keys: &[Key]) {
    for key in keys {
        claim(space, key).complete(BODY).expect("a live lease");
    }
}

fn claim_all(space: &Namespace, keys: &[Key]) -> Vec<Lease> {
    keys.iter().map(|key| claim(space, key)).collect()
}

/// What the maintenance thread would have done: takes page faults, grows, seals.
fn make_ready(store: &Store) {
    while store.maintain(Duration::MAX) == Some(Duration::ZERO) {}
}

fn run(store: &Store, space: &Namespace, primitive: &str, keys: &[Key]) {
    match primitive {
        "nothing" => measured(keys, &mut |_| ()),
        "claim_fresh" => {
            make_ready(store);
            // Dropping a lease is not part of it.
            measured(keys, &mut |key| std::mem::forget(claim(space, key)));
        }
        "claim_in_progress" => {
            let _leases = claim_all(space, keys);
            make_ready(store);
            measured(keys, &mut |key| {
                let claim = space.claim(key, None).expect("an answer");
                assert!(matches!(black_box(claim), Claim::InProgress(_)));
            });
        }
        "claim_completed" => {
            complete_all(space, keys);
            make_ready(store);
            measured(keys, &mut |key| {
                let claim = space.claim(key, None).expect("an answer");
                assert!(matches!(black_box(claim), Claim::Completed(_)));
            });
        }
        "claim_completed_fingerprint" => {
            let fingerprint = Fingerprint::of(&BODY);
            for key in keys {
                let claim = space.claim(key, fingerprint).expect("room");
                claim.acquired().expect("a fresh key").complete(BODY).expect("a live lease");
            }
            make_ready(store);
            measured(keys, &mut |key| {
                let claim = space.claim(key, fingerprint).expect("an answer");
                assert!(matches!(black_box(claim), Claim::Completed(_)));
            });
        }
        "complete" => {
            let mut leases = claim_all(space, keys).into_iter();
            make_ready(store);
            measured(keys, &mut |_| {
                let lease = leases.next().expect("a lease for each key");
                black_box(lease.complete(BODY).expect("a live lease"));
            });
        }
        "lookup_missing" => {
            complete_all(space, keys);
            make_ready(store);
            // A table that is full of the keys of another namespace.
            let other = store.namespace("other").expect("a namespace");
            measured(keys, &mut |key| {
                let lookup = other.lookup(key).expect("an answer");
                assert!(matches!(black_box(lookup), Lookup::Absent));
            });
        }
        "lookup_in_progress" => {
            let _leases = claim_all(space, keys);
            make_ready(store);
            measured(keys, &mut |key| {
                let lookup = space.lookup(key).expect("an answer");
                assert!(matches!(black_box(lookup), Lookup::InProgress(_)));
            });
        }
        "lookup_completed" => {
            complete_all(space, keys);
            make_ready(store);
            measured(keys, &mut |key| {
                let lookup = space.lookup(key).expect("an answer");
                assert!(matches!(black_box(lookup), Lookup::Completed(_)));
            });
        }
        "lookup_with_completed" => {
            complete_all(space, keys);
            make_ready(store);
            measured(keys, &mut |key| {
                let is_completed = |lookup: Lookup<OutcomeRef<'_>>| {
                    matches!(black_box(lookup), Lookup::Completed(_))
                };
                assert!(space.lookup_with(key, is_completed).expect("an answer"));
            });
        }
        "once_fresh" => {
            make_ready(store);
            measured(keys, &mut |key| {
                let once = space.once(key, None).expect("room");
                assert!(matches!(black_box(once), Once::First(_)));
            });
        }
        "once_seen" => {
            for key in keys {
                assert!(matches!(space.once(key, None).expect("room"), Once::First(_)));
            }
            make_ready(store);
            measured(keys, &mut |key| {
                let once = space.once(key, None).expect("an answer");
                assert!(matches!(black_box(once), Once::Seen(_)));
            });
        }
        "renew" => {
            let leases = claim_all(space, keys);
            let mut tokens = leases.iter().map(Lease::token);
            make_ready(store);
            measured(keys, &mut |key| {
                black_box(space.renew(key, next(&mut tokens)).expect("a live lease"));
            });
        }
        "release" => {
            let leases = claim_all(space, keys);
            let mut tokens = leases.iter().map(Lease::token);
            make_ready(store);
            measured(keys, &mut |key| {
                space.release(key, next(&mut tokens)).expect("a live lease");
            });
        }
        _ => run_with(store, space, primitive, keys),
    }
}

/// Primitives of what a namespace may have, or a call may ask for.
fn run_with(store: &Store, space: &Namespace, primitive: &str, keys: &[Key]) {
    let owner = ClaimOptions::new().owner(OwnerId([7; 16]));
    let quota = Quota::default().keys(1 << 40).bytes(1 << 50).in_flight(1 << 40);
    let scope = space.scoped("customer-17").expect("a scope");
    let fresh = |space: &Namespace| {
        make_ready(store);
        measured(keys, &mut |key| std::mem::forget(claim(space, key)));
    };
    let completed = |space: &Namespace| {
        complete_all(space, keys);
        make_ready(store);
        measured(keys, &mut |key| {
            let claim = space.claim(key, None).expect("an answer");
            assert!(matches!(black_box(claim), Claim::Completed(_)));
        });
    };
    match primitive {
        "with_owner_claim_fresh" => {
            make_ready(store);
            measured(keys, &mut |key| {
                let claim = space.claim_with(key, &owner).expect("room");
                std::mem::forget(claim.acquired().expect("a fresh key"));
            });
        }
        "with_owner_resume" => {
            for key in keys {
                drop(space.claim_with(key, &owner).expect("room").acquired());
            }
            make_ready(store);
            measured(keys, &mut |key| {
                let claim = space.claim_with(key, &owner).expect("room");
                assert!(matches!(claim, Claim::Resumed(_)));
                std::mem::forget(black_box(claim));
            });
        }
        "with_scope_claim_fresh" => fresh(&scope),
        "with_scope_claim_completed" => completed(&scope),
        "with_quota_claim_fresh" => {
            store.limit("counts", &quota).expect("it is there");
            fresh(space);
        }
        "with_quota_complete" => {
            store.limit("counts", &quota).expect("it is there");
            run(store, space, "complete", keys);
        }
        "with_scope_quota_claim_fresh" => {
            store.limit_scopes("counts", &quota).expect("it is there");
            fresh(&scope);
        }
        #[cfg(feature = "rate-limit")]
        "with_rate_claim_fresh" | "with_rate_each_scope_claim_fresh" => {
            let rate = refrain::Rate::per_second(NonZeroU32::MAX);
            let (rates, space) = match primitive {
                "with_rate_claim_fresh" => (refrain::Rates::default().new_keys(rate), space),
                _ => (refrain::Rates::default().new_keys_each_scope(rate), &scope),
            };
            store.limit_rates("counts", &rates).expect("it is there");
            fresh(space);
        }
        "with_refresh_claim_completed" => {
            let ttl = Duration::from_secs(3600);
            let policy = Policy::default().replay_ttl(ttl).dedupe_ttl(ttl);
            let policy = policy.refresh_on_hit(RefreshOnHit::BelowHalf);
            let space = store.define("refreshed", &policy).expect("a namespace");
            complete_all(&space, keys);
            // Less than half of the new window is left: every duplicate extends it.
            store.alter("refreshed", &policy.dedupe_ttl(24 * ttl)).expect("it is there");
            make_ready(store);
            measured(keys, &mut |key| {
                let claim = space.claim(key, None).expect("an answer");
                assert!(matches!(black_box(claim), Claim::Completed(_)));
            });
        }
        "with_guard_admit_newer" | "with_guard_admit_same" => {
            let guard = store.fence_guard("sink", Duration::from_secs(3600)).expect("a guard");
            let guard = guard.buffered();
            let admit = |key: &Key, token: u64| {
                let token = FencingToken::from_raw(token);
                black_box(guard.admit(key, token).expect("it is the newest"));
            };
            keys.iter().for_each(|key| admit(key, 1));
            make_ready(store);
            let token = if primitive == "with_guard_admit_same" { 1 } else { 2 };
            measured(keys, &mut |key| admit(key, token));
        }
        _ => panic!("no primitive is called {primitive}"),
    }
}

fn next(tokens: &mut impl Iterator<Item = FencingToken>) -> FencingToken {
    tokens.next().expect("a token for each key")
}
