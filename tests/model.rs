//! Random operations against a plain map: every primitive, reopening after a close and after a
//! kill, with other options, clock steps, policies that change.

mod support;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use support::world::{Shown, Step, World, keys};

fn shown() -> impl Strategy<Value = Shown> {
    prop_oneof![8 => Just(Shown::Current), 2 => Just(Shown::Older), 1 => Just(Shown::Bogus)]
}

fn advance() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0_u64),
        1..50_u64,
        Just(99_u64),
        Just(100_u64),
        Just(500_u64),
        900..1100_u64,
        4000..6000_u64,
        15_000..20_000_u64,
        Just(20_000_u64),
        25_000..95_000_u64,
        Just(86_400_000_u64),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..keys().len();
    let byte = any::<u8>;
    prop_oneof![
        10 => (key.clone(), byte(), byte(), byte(), any::<bool>()).prop_map(
            |(key, fingerprint, reference, lease, quick)| {
                Step::Claim { key, fingerprint, reference, lease, quick }
            }
        ),
        3 => (key.clone(), byte(), byte(), byte())
            .prop_map(|(key, fingerprint, reference, ttl)| {
                Step::Once { key, fingerprint, reference, ttl }
            }),
        2 => key.clone().prop_map(|key| Step::Lookup { key }),
        2 => key.clone().prop_map(|key| Step::ClaimNearEnd { key }),
        4 => (key.clone(), shown(), byte())
            .prop_map(|(key, shown, lease)| Step::Renew { key, shown, lease }),
        8 => (key.clone(), shown(), byte(), byte(), byte(), byte(), any::<bool>()).prop_map(
            |(key, shown, body, code, reference, ttl, quick)| {
                Step::Complete { key, shown, body, code, reference, ttl, quick }
            }
        ),
        3 => (key.clone(), shown(), any::<bool>())
            .prop_map(|(key, shown, quick)| Step::Release { key, shown, quick }),
        3 => (key.clone(), shown(), any::<bool>())
            .prop_map(|(key, shown, quick)| Step::Park { key, shown, quick }),
        4 => (key.clone(), shown(), proptest::option::of(byte()), byte())
            .prop_map(|(key, shown, body, code)| Step::Resolve { key, shown, body, code }),
        2 => key.clone().prop_map(|key| Step::Forget { key }),
        1 => (key, any::<bool>()).prop_map(|(key, whole)| Step::ForgetAll { key, whole }),
        1 => Just(Step::Orphans),
        6 => advance().prop_map(|ms| Step::Advance { ms }),
        1 => (0..3_usize, 0..10_usize)
            .prop_map(|(namespace, policy)| Step::Define { namespace, policy }),
        1 => (0..3_usize, 0..10_usize)
            .prop_map(|(namespace, policy)| Step::Alter { namespace, policy }),
        1 => (0..4_000_000_000_u64).prop_map(|seconds| Step::SetWall { seconds }),
        1 => Just(Step::Maintain),
        1 => Just(Step::Flush),
        1 => (byte(), byte(), advance(), advance()).prop_map(
            |(shards, mode, back_ms, forward_ms)| {
                Step::Close { shards, mode, back_ms, forward_ms }
            }
        ),
        2 => (byte(), byte(), advance())
            .prop_map(|(shards, mode, forward_ms)| Step::Kill { shards, mode, forward_ms }),
    ]
}

/// Everything that must have happened somewhere in the run: a test that never meets a case proves
/// nothing about it.
const MUST_BE_SEEN: &[&str] = &[
    "claim acquired",
    "claim taken over",
    "claim resumed",
    "claim completed",
    "claim in progress",
    "claim parked",
    "claim mismatch",
    "claim without fingerprint",
    "lease ended",
    "lease fenced",
    "claim ended",
    "window extended",
    "once first",
    "once seen",
    "once in progress",
    "once parked",
    "once mismatch",
    "lookup",
    "renew",
    "renew late",
    "renew refused",
    "complete kept",
    "complete without body",
    "complete too large",
    "complete without replay",
    "complete fenced",
    "complete forgotten",
    "complete parked",
    "complete already",
    "release",
    "release refused",
    "park",
    "park refused",
    "resolve done",
    "resolve not done",
    "resolve forgotten",
    "resolve in progress",
    "resolve fenced",
    "resolve already",
    "forget",
    "forget nothing",
    "forget a namespace",
    "forget a scope",
    "orphans",
    "no orphans",
    "alter",
    "define",
    "define conflict",
    "maintain",
    "flush",
    "close",
    "kill",
    "recovered twice",
];

#[test]
fn the_store_answers_as_a_plain_map_would() {
    let cases = std::env::var("REFRAIN_CASES").ok().and_then(|text| text.parse().ok());
    let seed = support::seed("model");
    let seen = std::cell::RefCell::new(std::collections::BTreeMap::<&'static str, u64>::new());
    let missing = || MUST_BE_SEEN.iter().find(|what| !seen.borrow().contains_key(*what));
    // What is rare may be missing from one run of good luck, and not from ten.
    for run in 0..10 {
        let config = Config {
            cases: cases.unwrap_or(400),
            rng_seed: RngSeed::Fixed(seed.wrapping_add(run)),
            max_shrink_iters: 20_000,
            failure_persistence: None,
            ..Config::default()
        };
        let steps = proptest::collection::vec(step(), 1..150);
        let result = TestRunner::new(config).run(&steps, |steps| {
            let mut world = World::new();
            for step in &steps {
                world.step(step);
            }
            world.compare_all();
            world.compare_recovered(steps.len() as u8);
            for (what, count) in &world.seen {
                *seen.borrow_mut().entry(what).or_default() += count;
            }
            Ok(())
        });
        if let Err(error) = result {
            panic!("{error}");
        }
        if missing().is_none() {
            break;
        }
    }
    println!("{:#?}", seen.borrow());
    assert_eq!(missing(), None, "never happened");
}
