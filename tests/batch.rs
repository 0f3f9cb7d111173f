//! Several keys in one call: each is answered as it would be alone.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::time::Duration;

use refrain::testing::{Crash, HeapFs, SimClock, SimDisk};
use refrain::{
    Body, Claim, ClaimError, ClaimOptions, CompleteError, CompleteOptions, Completion, Durability,
    FencingToken, Fingerprint, Lookup, Namespace, Once, Options, Policy, Store, StoreError,
};
use support::Random;

fn buffered(clock: &SimClock) -> Store {
    let options = Options::new("unused").file_system(HeapFs::new()).clock(clock.clone());
    options.durability(Durability::Buffered).manual_maintenance(true).open().unwrap()
}

fn keys(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("key {n}")).collect()
}

#[test]
fn a_key_that_occurs_twice_is_granted_once_and_names_the_one_that_holds_it() {
    let clock = SimClock::new();
    let space = buffered(&clock).namespace("space").unwrap();
    let claims = ["a", "b", "a", "c", "a", "b"].map(|key| (key, ClaimOptions::new()));
    let answers = space.claim_batch(&claims);
    let tokens: Vec<Option<FencingToken>> = answers
        .iter()
        .map(|answer| match answer.as_ref().unwrap() {
            Claim::Acquired(lease) => Some(lease.token()),
            _ => None,
        })
        .collect();
    for (at, first) in [(2, 0), (4, 0), (5, 1)] {
        let Claim::InProgress(other) = answers[at].as_ref().unwrap() else { panic!("an alias") };
        assert_eq!((other.alias_of(), Some(other.token())), (Some(first), tokens[first]));
    }
    assert_eq!(tokens.iter().filter(|token| token.is_some()).count(), 3);
    // Held by a claim of an earlier batch: no alias.
    let again = space.claim_batch(&[("a", ClaimOptions::new()), ("d", ClaimOptions::new())]);
    let Claim::InProgress(other) = again[0].as_ref().unwrap() else { panic!("in progress") };
    assert_eq!(other.alias_of(), None);

    let marks = ["x", "y", "x"].map(|key| (key, ClaimOptions::new()));
    let marked = space.once_batch(&marks);
    assert!(matches!(marked[0], Ok(Once::First(_))) && matches!(marked[1], Ok(Once::First(_))));
    assert!(matches!(marked[2], Ok(Once::Seen(_))));
}

#[test]
fn one_that_is_refused_leaves_the_others_as_they_are() {
    let clock = SimClock::new();
    let store = buffered(&clock);
    let space = store.namespace("space").unwrap();
    let claims = ["good", "", "fine"].map(|key| (key, ClaimOptions::new()));
    let answers = space.claim_batch(&claims);
    assert!(matches!(answers[0], Ok(Claim::Acquired(_))));
    assert!(answers[1].is_err());
    assert!(matches!(answers[2], Ok(Claim::Acquired(_))));
    let Ok(Claim::Acquired(lease)) = &answers[0] else { panic!("granted") };
    let stale = FencingToken::from_raw(1);
    let ends = [
        ("good", lease.token(), CompleteOptions::body(b"outcome")),
        ("fine", stale, CompleteOptions::body(b"outcome")),
        ("nothing", stale, CompleteOptions::new()),
    ];
    let ended = space.complete_batch(&ends);
    assert!(ended[0].is_ok());
    assert!(matches!(ended[1], Err(CompleteError::Fenced { .. })));
    assert!(matches!(ended[2], Err(CompleteError::Forgotten { .. })));
    let looked = space.lookup_batch(&["good", "fine", "nothing"]);
    let Ok(Lookup::Completed(outcome)) = &looked[0] else { panic!("completed") };
    assert_eq!(outcome.body(), Body::Bytes(b"outcome"));
    assert!(matches!(looked[1], Ok(Lookup::InProgress(_))));
    assert!(matches!(looked[2], Ok(Lookup::Absent)));
    drop(answers);
    store.close().unwrap();
    let closed = space.lookup_batch(&["good", "missing", "fine"]);
    assert!(closed.iter().all(|answer| matches!(answer, Err(StoreError::Closed))));
    // A duplicate takes no lock either.
    assert!(matches!(space.claim("good", None), Err(ClaimError::Store(StoreError::Closed))));
    assert!(space.claim_batch::<&str>(&[]).is_empty());
}

/// An answer, as far as two stores that were asked the same give it.
fn shown(claim: &Claim) -> String {
    match claim {
        Claim::Acquired(lease) => format!("acquired, attempt {}", lease.attempt()),
        Claim::Completed(outcome) => format!("completed {:?}", outcome.body()),
        Claim::InProgress(other) => format!("in progress, left {:?}", other.lease_left()),
        Claim::Mismatch(it) => format!("mismatch {:?}", it.state()),
        other => format!("{other:?}"),
    }
}

fn looked(lookup: &Lookup) -> String {
    match lookup {
        Lookup::Completed(outcome) => format!("completed {:?}", outcome.body()),
        Lookup::InProgress(other) => format!("in progress, left {:?}", other.lease_left()),
        Lookup::Lapsed(it) => format!("lapsed, attempt {}", it.attempt()),
        other => format!("{other:?}"),
    }
}

fn ended(completed: &Result<Completion, CompleteError>) -> String {
    match completed {
        Ok(completion) => format!("completed, {:?}", completion.body()),
        Err(CompleteError::Fenced { .. }) => "fenced".to_owned(),
        Err(other) => format!("{other}"),
    }
}

/// One store is asked in batches, the other key by key, at the same times.
#[test]
fn batches_answer_what_single_calls_answer() {
    let mut random = Random::new(support::seed("batches"));
    let second = Duration::from_secs(1);
    let policy = Policy::default().lease(second).replay_ttl(4 * second).dedupe_ttl(8 * second);
    for _ in 0..if cfg!(debug_assertions) { 20 } else { 200 } {
        let clock = SimClock::new();
        let [batched, single] = [buffered(&clock), buffered(&clock)];
        let spaces = [&batched, &single].map(|store| store.define("space", &policy).unwrap());
        let [batch, one]: &[Namespace; 2] = &spaces;
        let known = keys(60);
        // Tokens of both, by key.
        let mut tokens: Vec<Option<[FencingToken; 2]>> = vec![None; known.len()];
        for _ in 0..20 {
            clock.advance(Duration::from_millis(random.below(900)));
            let chosen: Vec<usize> =
                (0..random.below(100)).map(|_| random.below(known.len() as u64) as usize).collect();
            match random.below(4) {
                0 => {
                    let asked: Vec<_> = chosen.iter().map(|n| &known[*n]).collect();
                    let answers = batch.lookup_batch(&asked);
                    for (key, answer) in asked.iter().zip(answers) {
                        let alone = one.lookup(key).unwrap();
                        assert_eq!(looked(&answer.unwrap()), looked(&alone));
                    }
                }
                1 => {
                    let options = |n: &usize| {
                        let payload =
                            Fingerprint::of(&[(*n % 7) as u8, random.below(20) as u8 / 19]);
                        (&known[*n], ClaimOptions::new().fingerprint(payload))
                    };
                    let asked: Vec<_> = chosen.iter().map(options).collect();
                    let answers = batch.claim_batch(&asked);
                    for ((n, (key, options)), answer) in chosen.iter().zip(&asked).zip(answers) {
                        let alone = one.claim_with(key, options).unwrap();
                        let answer = answer.unwrap();
                        assert_eq!(shown(&answer), shown(&alone), "{key}");
                        if let (Claim::Acquired(a), Claim::Acquired(b)) = (&answer, &alone) {
                            tokens[*n] = Some([a.token(), b.token()]);
                        }
                    }
                }
                2 => {
                    let asked: Vec<_> =
                        chosen.iter().map(|n| (&known[*n], ClaimOptions::new())).collect();
                    let answers = batch.once_batch(&asked);
                    for ((key, options), answer) in asked.iter().zip(answers) {
                        let kind = |once: &Once| match once {
                            Once::First(first) => format!("first, attempt {}", first.attempt()),
                            Once::Seen(outcome) => format!("seen {:?}", outcome.body()),
                            other => format!("{:?}", std::mem::discriminant(other)),
                        };
                        let alone = one.once_with(key, options).unwrap();
                        assert_eq!(kind(&answer.unwrap()), kind(&alone), "{key}");
                    }
                }
                _ => {
                    let held: Vec<_> =
                        chosen.iter().filter_map(|n| Some((&known[*n], tokens[*n]?))).collect();
                    let body = random.next().to_le_bytes();
                    let asked: Vec<_> = held
                        .iter()
                        .map(|(key, tokens)| (key, tokens[0], CompleteOptions::body(&body)))
                        .collect();
                    let answers = batch.complete_batch(&asked);
                    for ((key, tokens), answer) in held.iter().zip(answers) {
                        let alone = one.complete(key, tokens[1], body);
                        assert_eq!(ended(&answer), ended(&alone), "{key}");
                    }
                }
            }
        }
        batched.check_invariants().unwrap();
    }
}

/// One wait for the disk, and everything is durable when the call returns.
#[test]
fn a_batch_shares_a_round_and_is_durable_when_it_returns() {
    let disk = SimDisk::new(7);
    let open = || {
        let options = Options::new("store").file_system(disk.mount()).manual_maintenance(true);
        options.durability(Durability::Sync).open()
    };
    let known = keys(100);
    let store = open().unwrap();
    let space = store.namespace("space").unwrap();
    let before = store.stats().rounds;
    let claims: Vec<_> = known.iter().map(|key| (key, ClaimOptions::new())).collect();
    let answers = space.claim_batch(&claims);
    let leases: Vec<_> = answers.into_iter().map(|it| it.unwrap().acquired().unwrap()).collect();
    let ends: Vec<_> =
        leases.iter().map(|it| (it.key(), it.token(), CompleteOptions::body(b"done"))).collect();
    assert!(space.complete_batch(&ends).iter().all(Result::is_ok));
    assert!(store.stats().rounds - before <= 2 + 2, "{} rounds", store.stats().rounds - before);
    disk.crash(Crash::PowerCut);
    drop((leases, space, store));
    let store = open().unwrap();
    let space = store.namespace("space").unwrap();
    for answer in space.lookup_batch(&known) {
        assert!(matches!(answer.unwrap(), Lookup::Completed(_)));
    }
}
