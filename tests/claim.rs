//! Claiming, completing, replaying: what every caller sees first.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::time::Duration;

use refrain::testing::{HeapFs, SimClock};
use refrain::{
    BODY_BYTES_MAX, Body, BodyKept, Claim, ClaimError, ClaimOptions, CompleteError,
    CompleteOptions, EndCause, FencingToken, Fingerprint, FingerprintRule, KEY_BYTES_MAX, KeyState,
    LeaseError, Lookup, Namespace, OnLeaseEnd, Once, OpenError, Options, Policy, PolicyProblem,
    Reference, Resolution, ResolveError, Store, StoreError,
};
use support::disk::{find_last, read};

const SECOND: Duration = Duration::from_secs(1);

fn orders() -> (Store, Namespace) {
    let store = Store::in_memory().unwrap();
    let orders = store.namespace("orders").unwrap();
    (store, orders)
}

fn orders_on(clock: &SimClock, policy: &Policy) -> Namespace {
    let store = Options::in_memory().clock(clock.clone()).open().unwrap();
    store.define("orders", policy).unwrap()
}

#[test]
fn the_first_claim_wins_and_every_retry_gets_its_bytes() {
    let (store, orders) = orders();
    let lease = orders.claim("order-1", None).unwrap().acquired().unwrap();
    let token = lease.token();
    assert_eq!((lease.attempt(), lease.previous(), lease.key()), (1, None, &b"order-1"[..]));
    let Claim::InProgress(other) = orders.claim("order-1", None).unwrap() else { panic!() };
    assert_eq!(other.token(), token);
    assert!(other.lease_left() > 29 * SECOND && other.lease_left() <= 31 * SECOND);
    lease.complete_with(&CompleteOptions::body(b"receipt").code(201)).unwrap();
    for _ in 0..3 {
        let outcome = orders.claim("order-1", None).unwrap().completed().unwrap();
        assert_eq!(outcome.body(), Body::Bytes(b"receipt"));
        assert_eq!((outcome.code(), outcome.token(), outcome.attempt()), (201, token, 1));
    }
    store.check_invariants().unwrap();
}

#[test]
fn the_same_key_in_two_namespaces_is_two_keys() {
    let (store, orders) = orders();
    let refunds = store.namespace("refunds").unwrap();
    let lease = orders.claim("1", Fingerprint::of(b"a")).unwrap().acquired().unwrap();
    let other = refunds.claim("1", Fingerprint::of(b"b")).unwrap().acquired().unwrap();
    assert_ne!(lease.token(), other.token());
    lease.complete("order").unwrap();
    assert!(matches!(refunds.lookup("1").unwrap(), Lookup::InProgress(_)));
    assert!(refunds.complete("1", FencingToken::from_raw(0), "").is_err());
    assert_eq!(refunds.forget("1", "", "").unwrap(), Some(KeyState::InProgress));
    assert!(orders.claim("1", None).unwrap().completed().is_some());
    drop(other);
}

#[test]
fn keys_have_one_to_4096_bytes_of_any_kind() {
    let (_store, orders) = orders();
    for len in [0, KEY_BYTES_MAX + 1] {
        let refused = orders.claim(vec![1; len], None).unwrap_err();
        let ClaimError::Store(StoreError::KeyLength { len: told }) = refused else {
            panic!("{refused}")
        };
        assert_eq!(told, len);
        assert!(matches!(orders.lookup(vec![1; len]), Err(StoreError::KeyLength { .. })));
    }
    for key in [vec![0], vec![0; 2], vec![255; KEY_BYTES_MAX], vec![255; KEY_BYTES_MAX - 1]] {
        let lease = orders.claim(&key, None).unwrap().acquired().unwrap();
        lease.complete(&key).unwrap();
        let outcome = orders.claim(&key, None).unwrap().completed().unwrap();
        assert_eq!(outcome.body(), Body::Bytes(&key));
    }
}

#[test]
fn a_body_is_kept_up_to_half_a_segment_and_never_makes_the_work_run_again() {
    let store = Options::in_memory().segment_bytes(256 << 10).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    for (len, kept) in [
        (0, BodyKept::Kept),
        (1, BodyKept::Kept),
        (128 << 10, BodyKept::Kept),
        ((128 << 10) + 1, BodyKept::TooLarge),
        (BODY_BYTES_MAX + 1, BodyKept::TooLarge),
    ] {
        let body = vec![7; len];
        let key = len.to_string();
        let lease = orders.claim(&key, None).unwrap().acquired().unwrap();
        let token = lease.token();
        assert_eq!(lease.complete(&body).unwrap().body(), kept);
        let outcome = orders.claim(&key, None).unwrap().completed().unwrap();
        match kept {
            BodyKept::Kept => assert_eq!(outcome.body(), Body::Bytes(&body)),
            _ => assert_eq!(outcome.body(), Body::TooLarge { len: len as u32 }),
        }
        // The same outcome is the same outcome, kept or not.
        orders.complete(&key, token, &body).unwrap();
        let mut other = body.clone();
        other.push(1);
        let refused = orders.complete(&key, token, &other).unwrap_err();
        assert!(matches!(refused, CompleteError::AlreadyCompleted(_)), "{refused}");
    }
    let lease = orders.claim("none", None).unwrap().acquired().unwrap();
    lease.complete_with(&CompleteOptions::new().code(204)).unwrap();
    let outcome = orders.claim("none", None).unwrap().completed().unwrap();
    assert_eq!((outcome.body(), outcome.code()), (Body::None, 204));
}

#[test]
fn another_payload_under_the_same_key_is_never_executed_and_never_replayed() {
    let (_store, orders) = orders();
    let (one, two) = (Fingerprint::of(b"10 EUR"), Fingerprint::of(b"1000 EUR"));
    let reference = Reference([9; 16]);
    let options = ClaimOptions::new().fingerprint(one).reference(reference);
    let lease = orders.claim_with("pay", &options).unwrap().acquired().unwrap();
    let Claim::Mismatch(it) = orders.claim("pay", two).unwrap() else { panic!() };
    assert_eq!((it.state(), it.reference()), (KeyState::InProgress, Some(reference)));
    lease.complete("paid").unwrap();
    let Claim::Mismatch(it) = orders.claim("pay", two).unwrap() else { panic!() };
    assert_eq!((it.state(), it.reference()), (KeyState::Completed, Some(reference)));
    assert!(!format!("{it:?}").contains("paid"));
    let Once::Mismatch(_) = orders.once("pay", two).unwrap() else { panic!() };
    assert_eq!(orders.fingerprint_mismatches(), 3);
    // Whoever gives none, or the same one, gets the outcome.
    assert!(orders.claim("pay", None).unwrap().completed().is_some());
    assert!(orders.claim("pay", one).unwrap().completed().is_some());
    // A digest of the caller's own is another kind of fingerprint.
    let own = Fingerprint::from_digest(one.digest());
    assert!(matches!(orders.claim("pay", own).unwrap(), Claim::Mismatch(_)));
}

#[test]
fn a_required_fingerprint_is_missed_before_anything_happens() {
    let store = Store::in_memory().unwrap();
    let policy = Policy::default().fingerprint_required(true);
    let orders = store.define("orders", &policy).unwrap();
    assert!(matches!(orders.claim("a", None), Err(ClaimError::FingerprintRequired)));
    assert!(matches!(orders.once("a", None), Err(ClaimError::FingerprintRequired)));
    assert!(matches!(orders.lookup("a").unwrap(), Lookup::Absent));
    assert!(orders.claim("a", Fingerprint::of(b"")).unwrap().acquired().is_some());
}

#[test]
fn a_lapsed_claim_is_taken_over_with_a_new_token_and_fences_the_old_one() {
    let clock = SimClock::new();
    let orders = orders_on(&clock, &Policy::default().lease(SECOND));
    let first = orders.claim("a", None).unwrap().acquired().unwrap();
    let (old, claimed_at) = (first.token(), clock.wall());
    clock.advance(SECOND - Duration::from_millis(1));
    assert!(matches!(orders.claim("a", None).unwrap(), Claim::InProgress(_)), "never early");
    clock.advance(Duration::from_millis(1));
    let second = orders.claim("a", None).unwrap().acquired().unwrap();
    assert!(second.token() > old);
    assert_eq!(second.attempt(), 2);
    let previous = second.previous().unwrap();
    assert_eq!((previous.token(), previous.cause()), (old, EndCause::LeaseEnded));
    assert_eq!(previous.at(), Some(claimed_at));
    let refused = first.complete("late").unwrap_err();
    let CompleteError::Fenced { held, current } = refused else { panic!("{refused}") };
    assert_eq!((held, current), (old, second.token()));
    let token = second.token();
    second.complete("won").unwrap();
    let outcome = orders.claim("a", None).unwrap().completed().unwrap();
    assert_eq!((outcome.token(), outcome.first_token(), outcome.attempt()), (token, old, 2));
    assert!(matches!(orders.renew("a", old), Err(LeaseError::Fenced { .. })), "for ever");
}

#[test]
fn a_late_completion_counts_until_somebody_takes_over_or_the_clock_forgets() {
    let clock = SimClock::new();
    let orders = orders_on(&clock, &Policy::default().lease(SECOND));
    let lease = orders.claim("a", None).unwrap().acquired().unwrap();
    clock.advance(50 * SECOND);
    assert!(lease.lease_left().is_zero());
    lease.complete("late").unwrap();

    let lease = orders.claim("b", None).unwrap().acquired().unwrap();
    // The lease and its grace of a minute.
    clock.advance(61 * SECOND);
    let refused = lease.complete("too late").unwrap_err();
    let CompleteError::Forgotten { late_by } = refused else { panic!("{refused}") };
    assert_eq!(late_by, Some(60 * SECOND));
    let lease = orders.claim("b", None).unwrap().acquired().unwrap();
    assert_eq!((lease.attempt(), lease.previous()), (1, None));
}

#[test]
fn a_renewal_extends_the_lease_and_says_how_late_it_was() {
    let clock = SimClock::new();
    let orders = orders_on(&clock, &Policy::default().lease(SECOND));
    let mut lease = orders.claim("a", None).unwrap().acquired().unwrap();
    clock.advance(SECOND / 2);
    let renewed = lease.renew().unwrap();
    assert_eq!((renewed.lease_left(), renewed.late_by()), (SECOND, None));
    assert_eq!(lease.lease_left(), SECOND);
    lease.renew_for(10 * SECOND).unwrap();
    assert_eq!(lease.renew().unwrap().lease_left(), 10 * SECOND, "never shortened");
    clock.advance(15 * SECOND);
    assert_eq!(lease.renew().unwrap().late_by(), Some(5 * SECOND));
    assert!(matches!(orders.claim("a", None).unwrap(), Claim::InProgress(_)));
}

#[test]
fn a_dropped_lease_keeps_the_key_until_it_runs_out() {
    let clock = SimClock::new();
    let orders = orders_on(&clock, &Policy::default().lease(SECOND));
    drop(orders.claim("a", None).unwrap().acquired().unwrap());
    assert!(matches!(orders.claim("a", None).unwrap(), Claim::InProgress(_)));
    clock.advance(SECOND);
    assert_eq!(orders.claim("a", None).unwrap().acquired().unwrap().attempt(), 2);
}

#[test]
fn an_expired_lease_under_park_is_run_again_by_nobody_until_resolved() {
    let clock = SimClock::new();
    let policy = Policy::default().lease(SECOND).on_lease_end(OnLeaseEnd::Park);
    let orders = orders_on(&clock, &policy);
    let lease = orders.claim("a", None).unwrap().acquired().unwrap();
    let token = lease.token();
    clock.advance(Duration::from_secs(400 * 24 * 3600));
    let Claim::Parked(it) = orders.claim("a", None).unwrap() else { panic!() };
    assert_eq!(
        (it.token(), it.cause(), it.guaranteed_until()),
        (token, EndCause::LeaseEnded, None)
    );
    let outcome = Resolution::Completed(CompleteOptions::body(b"it had happened").code(1));
    let completion = orders.resolve("a", token, &outcome, "a test", "nobody").unwrap().unwrap();
    assert!(completion.token() > token);
    let refused = lease.complete("late").unwrap_err();
    assert!(matches!(refused, CompleteError::Fenced { .. }), "{refused}");
    let outcome = orders.claim("a", None).unwrap().completed().unwrap();
    assert_eq!(outcome.body(), Body::Bytes(b"it had happened"));
    assert_eq!((outcome.token(), outcome.first_token()), (completion.token(), token));

    // Parked by time: its owner may still finish.
    let lease = orders.claim("b", None).unwrap().acquired().unwrap();
    clock.advance(2 * SECOND);
    lease.complete("late, but true").unwrap();
    // Parked by its owner: nobody may.
    let lease = orders.claim("c", None).unwrap().acquired().unwrap();
    let token = lease.token();
    lease.park().unwrap();
    assert!(matches!(orders.complete("c", token, ""), Err(CompleteError::Parked)));
    assert_eq!(orders.resolve("c", token, &Resolution::NotDone, "a test", "nobody").unwrap(), None);
    assert_eq!(orders.claim("c", None).unwrap().acquired().unwrap().attempt(), 1);
}

/// It stands in the WAL, for whoever reads that.
#[test]
fn who_resolved_a_claim_and_why_is_written_down() {
    let fs = HeapFs::new();
    let options = Options::new("unused").file_system(fs.clone());
    let store = options.segment_bytes(256 << 10).manual_maintenance(true).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let parked = |key: &str| {
        let lease = orders.claim(key, None).unwrap().acquired().unwrap();
        let token = lease.token();
        lease.park().unwrap();
        token
    };
    let long = "x".repeat(256);
    let done = Resolution::Completed(CompleteOptions::body(b"receipt"));
    for (key, resolution) in [("a", done), ("b", Resolution::NotDone)] {
        let token = parked(key);
        for (reason, actor) in [(&long[..], "actor"), ("reason", &long[..])] {
            let refused = orders.resolve(key, token, &resolution, reason, actor);
            assert!(matches!(refused, Err(ResolveError::TextLength { len: 256 })), "{refused:?}");
        }
        let (reason, actor) = (format!("the bank said {key}"), format!("operator {key}"));
        orders.resolve(key, token, &resolution, &reason, &actor).unwrap();
        let bytes = read(&fs, "data-00000");
        for text in [reason, actor] {
            assert!(find_last(&bytes, text.as_bytes()) > 0, "{text}");
        }
    }
    let token = parked("c");
    orders.resolve("c", token, &done, "", "").unwrap();
    assert!(orders.claim("c", None).unwrap().completed().is_some());
}

#[test]
fn windows_count_from_completion_and_end_to_the_millisecond() {
    let clock = SimClock::new();
    let policy = Policy::default().lease(SECOND).replay_ttl(5 * SECOND).dedupe_ttl(10 * SECOND);
    let orders = orders_on(&clock, &policy);
    let lease = orders.claim("a", None).unwrap().acquired().unwrap();
    clock.advance(SECOND);
    let completion = lease.complete("outcome").unwrap();
    assert_eq!(completion.guaranteed_until(), Some(clock.wall() + 10 * SECOND));
    let body = || {
        let claimed = orders.claim("a", None).unwrap();
        claimed.completed().map(|outcome| outcome.body() == Body::Bytes(b"outcome"))
    };
    let ms = Duration::from_millis(1);
    clock.advance(5 * SECOND - ms);
    assert_eq!(body(), Some(true));
    clock.advance(ms);
    assert_eq!(body(), Some(false), "the replay window is over");
    clock.advance(5 * SECOND - ms);
    assert_eq!(body(), Some(false), "the key is still known");
    let outcome = orders.claim("a", None).unwrap().completed().unwrap();
    assert_eq!((outcome.body(), outcome.age()), (Body::Expired, 10 * SECOND - ms));
    clock.advance(ms);
    assert!(orders.claim("a", None).unwrap().acquired().is_some(), "and then it is new again");
}

#[test]
fn times_of_a_call_that_cannot_be_are_refused() {
    let (_store, orders) = orders();
    let claim = |lease| orders.claim_with("a", &ClaimOptions::new().lease(lease)).unwrap_err();
    for lease in [Duration::ZERO, Duration::from_millis(99)] {
        let refused = claim(lease);
        let ClaimError::Times(PolicyProblem::LeaseTooShort { .. }) = refused else {
            panic!("{refused}")
        };
    }
    let refused = claim(25 * 3600 * SECOND);
    assert!(matches!(refused, ClaimError::Times(PolicyProblem::LeaseOutlivesDedupe { .. })));
    let lease = orders.claim("a", None).unwrap().acquired().unwrap();
    let token = lease.token();
    let outcome = CompleteOptions::body(b"x").dedupe_ttl(SECOND).replay_ttl(2 * SECOND);
    let refused = lease.complete_with(&outcome).unwrap_err();
    assert!(matches!(refused, CompleteError::Times(PolicyProblem::ReplayOutlivesDedupe { .. })));
    let outcome = CompleteOptions::body(b"x").dedupe_ttl(2 * refrain::DEDUPE_TTL_MAX);
    let refused = orders.complete_with("a", token, &outcome).unwrap_err();
    assert!(matches!(refused, CompleteError::Times(PolicyProblem::DedupeTooLong { .. })));
    orders.complete("a", token, "still possible").unwrap();
}

#[test]
fn references_come_with_every_answer() {
    let clock = SimClock::new();
    let orders = orders_on(&clock, &Policy::default().lease(SECOND));
    let (one, two) = (Reference([1; 16]), Reference([2; 16]));
    let options = ClaimOptions::new().reference(one);
    let lease = orders.claim_with("a", &options).unwrap().acquired().unwrap();
    let Claim::InProgress(it) = orders.claim("a", None).unwrap() else { panic!() };
    assert_eq!(it.reference(), Some(one));
    clock.advance(SECOND);
    let Lookup::Lapsed(it) = orders.lookup("a").unwrap() else { panic!() };
    assert_eq!(it.reference(), Some(one));
    lease.complete("kept from the claim").unwrap();
    assert_eq!(orders.claim("a", None).unwrap().completed().unwrap().reference(), Some(one));
    let lease = orders.claim_with("b", &options).unwrap().acquired().unwrap();
    lease.complete_with(&CompleteOptions::body(b"x").reference(two)).unwrap();
    assert_eq!(orders.claim("b", None).unwrap().completed().unwrap().reference(), Some(two));
}

#[test]
fn debug_prints_no_keys_and_no_outcomes() {
    let store = Options::new("unused").file_system(HeapFs::new()).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let lease = orders.claim("secret-key", None).unwrap().acquired().unwrap();
    let mut printed = format!("{store:?} {orders:?} {lease:?}");
    lease.complete("secret-body").unwrap();
    printed += &format!("{:?}", orders.claim("secret-key", None).unwrap());
    let commit = orders.claim_async("secret-key", &ClaimOptions::new());
    printed += &format!("{commit:?} {:?}", orders.lookup("secret-key").unwrap());
    assert!(commit.wait().is_ok());
    assert!(!printed.contains("secret"), "{printed}");
}

#[test]
fn a_claim_that_has_to_wait_for_room_counts_its_fingerprint_once() {
    let clock = SimClock::new();
    // Nobody grows ahead, so that some claims find no room and are tried again.
    let options = Options::in_memory().segment_bytes(256 << 10).clock(clock.clone());
    let store = options.manual_maintenance(true).open().unwrap();
    let policy = Policy::default().lease(SECOND).fingerprint(FingerprintRule::Count);
    let orders = store.define("orders", &policy).unwrap();
    let before = store.stats().wal_bytes;
    drop(orders.claim("order-1", Fingerprint::of(b"first")).unwrap());
    for differing in 1..=20_000 {
        clock.advance(2 * SECOND);
        let lease = orders.claim("order-1", Fingerprint::of(b"other")).unwrap().acquired();
        assert!(lease.unwrap().attempt() > 1);
        assert_eq!(orders.fingerprint_mismatches(), differing);
    }
    assert!(store.stats().wal_bytes > before, "the store grew on the way");
}

#[test]
fn an_outcome_can_be_read_where_it_lies() {
    let store = Store::in_memory().unwrap();
    let orders = store.namespace("orders").unwrap();
    let body: Vec<u8> = (0..100_000_u32).map(|it| it as u8).collect();
    let lease = orders.claim("a", None).unwrap().acquired().unwrap();
    let token = lease.token();
    lease.complete_with(&CompleteOptions::body(&body).code(201)).unwrap();
    let outcome = orders.lookup_with("a", |lookup| {
        let Lookup::Completed(outcome) = lookup else { panic!("{lookup:?}") };
        assert_eq!(outcome.body(), Body::Bytes(&body));
        assert_eq!((outcome.code(), outcome.token(), outcome.attempt()), (201, token, 1));
        // The store may be called meanwhile.
        assert!(orders.claim("b", None).unwrap().acquired().is_some());
        outcome.to_outcome()
    });
    let outcome = outcome.unwrap();
    let Lookup::Completed(copied) = orders.lookup("a").unwrap() else { panic!() };
    assert_eq!(
        (outcome.body(), outcome.guaranteed_until()),
        (copied.body(), copied.guaranteed_until())
    );
    assert!(orders.lookup_with("never", |it| matches!(it, Lookup::Absent)).unwrap());
    store.abandon();
    let refused = orders.lookup_with("a", |_| panic!("shown after the end"));
    assert!(matches!(refused, Err(StoreError::Closed)));
}

/// What is shown lies in a file that whoever opens the store next may write again.
#[test]
fn a_store_that_is_closed_is_not_open_to_others_while_an_outcome_is_read_where_it_lies() {
    let fs = HeapFs::new();
    let open = || Options::new("unused").file_system(fs.clone()).manual_maintenance(true).open();
    let store = open().unwrap();
    let orders = store.namespace("orders").unwrap();
    orders.claim("a", None).unwrap().acquired().unwrap().complete("outcome").unwrap();
    let shown = orders.lookup_with("a", |lookup| {
        let Lookup::Completed(outcome) = lookup else { panic!("{lookup:?}") };
        store.close().unwrap();
        assert!(matches!(open(), Err(OpenError::Locked { .. })), "somebody still reads");
        assert_eq!(outcome.body(), Body::Bytes(b"outcome"));
    });
    shown.unwrap();
    // Given back when the last reader is done, of other stores in this process, too.
    let mut tries = 0;
    while let Err(refused) = open() {
        assert!(matches!(refused, OpenError::Locked { .. }) && tries < 10_000, "{refused}");
        std::thread::sleep(Duration::from_millis(1));
        tries += 1;
    }
}
