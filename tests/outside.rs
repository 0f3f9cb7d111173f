//! Requests that are older than what the store remembers.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::time::{Duration, SystemTime};

use refrain::testing::{HeapFs, SimClock};
use refrain::{
    Claim, ClaimOptions, Durability, Namespace, NamespaceError, Once, Options, OutsideWindow,
    Policy, Store,
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn policy(dedupe_ttl: Duration) -> Policy {
    let lease = SECOND;
    Policy::default().lease(lease).late_grace(lease).replay_ttl(dedupe_ttl).dedupe_ttl(dedupe_ttl)
}

fn open(fs: &HeapFs, clock: &SimClock) -> Store {
    Options::new("unused").file_system(fs.clone()).clock(clock.clone()).open().unwrap()
}

fn sent(at: SystemTime) -> ClaimOptions {
    ClaimOptions::new().first_sent(at)
}

fn claim(space: &Namespace, key: &str, at: SystemTime) -> Claim {
    space.claim_with(key, &sent(at)).unwrap()
}

fn outside(claim: Claim) -> OutsideWindow {
    match claim {
        Claim::OutsideWindow(outside) => outside,
        other => panic!("{other:?}"),
    }
}

/// Purge forgets by the exact clock, and the coarse one is behind it.
#[test]
fn what_was_purged_a_moment_ago_is_refused() {
    let millisecond = Duration::from_millis(1);
    let window = HOUR + 3 * millisecond;
    for (phase, step) in [(2, 10), (2, 11), (3, 9), (3, 10), (4, 8), (4, 9), (5, 7), (5, 8)] {
        let start = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_001);
        let clock = SimClock::at(start);
        clock.set_coarse_resolution(4 * millisecond);
        // Where the ticks of the coarse clock and the whole seconds of purge lie apart.
        clock.advance(993 * millisecond + Duration::from_micros(500 * phase));
        let options = Options::new("unused").file_system(HeapFs::new()).clock(clock.clone());
        let options = options.segment_bytes(256 << 10).durability(Durability::Buffered);
        let store = options.manual_maintenance(true).open().unwrap();
        let space = store.define("space", &policy(window)).unwrap();
        let ask = sent(clock.wall());
        assert!(matches!(space.once_with("key", &ask).unwrap(), Once::First(_)));
        // Its segment is full, so that it is sealed and purged as a whole.
        for number in 0..8000 {
            assert!(matches!(space.once(format!("{number}"), None).unwrap(), Once::First(_)));
        }
        store.flush().unwrap();
        let maintain = || {
            for _ in 0..3 {
                store.maintain(Duration::MAX);
            }
        };
        let left = window - 3 * millisecond + Duration::from_micros(500 * step);
        clock.advance(left - 60 * SECOND);
        maintain();
        clock.advance(60 * SECOND);
        maintain();
        let answer = space.once_with("key", &ask).unwrap();
        assert!(!matches!(answer, Once::First(_)), "{phase} {step}");
    }
}

/// Versions that do not know raises refuse a store that has some: the feature is there after each kind of opening.
#[test]
fn a_store_with_raises_says_so() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let features = || support::disk::read(&fs, "META").chunks(4096).map(|slot| slot[20]).max();
    let store = open(&fs, &clock);
    store.define("space", &policy(HOUR)).unwrap();
    store.alter("space", &policy(HOUR / 2)).unwrap();
    assert_eq!(features(), Some(0));
    store.alter("space", &policy(HOUR)).unwrap();
    assert_eq!(features(), Some(1));
    store.close().unwrap();
    drop(store);
    let store = open(&fs, &clock);
    store.close().unwrap();
    let slots = support::disk::read(&fs, "META");
    assert!(slots.chunks(4096).all(|slot| slot[20] == 1));
}

/// A key that is completed when it is first sent is told of, or its request is refused: it is never granted again.
#[test]
fn a_late_retry_is_replayed_or_refused_and_never_carried_out_again() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let space = store.define("space", &policy(HOUR)).unwrap();
    let first_sent = clock.wall();
    claim(&space, "key", first_sent).acquired().unwrap().complete("done").unwrap();
    let (mut replayed, mut refused) = (0_u32, 0_u32);
    for _ in 0..2 * 3600 {
        clock.advance(SECOND);
        match claim(&space, "key", first_sent) {
            Claim::Completed(_) => replayed += 1,
            Claim::OutsideWindow(it) => {
                assert_eq!(it.first_sent(), Some(first_sent));
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
        assert!(replayed == 0 || refused == 0 || replayed >= 3599);
    }
    assert!((3599..=3601).contains(&replayed), "{replayed}, and {refused} refused");
    assert_eq!(store.stats().leases, 0);
    // Without a time nothing can be told.
    assert!(space.claim("key", None).unwrap().acquired().is_some());
}

#[test]
fn the_window_ends_where_it_says() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let space = store.define("space", &policy(HOUR)).unwrap();
    clock.advance(10 * HOUR);
    let now = clock.wall();
    let told = outside(claim(&space, "a", now - HOUR));
    let since = told.remembered_since().unwrap();
    let millisecond = Duration::from_millis(1);
    assert!(since > now - HOUR && since <= now - HOUR + 20 * millisecond, "{told:?}");
    outside(claim(&space, "b", since - millisecond));
    assert!(claim(&space, "b", since).acquired().is_some());
    // A mark for a time of its own.
    let short = |at| space.once_with("c", &sent(at).dedupe_ttl(60 * SECOND)).unwrap();
    assert!(matches!(short(now - 61 * SECOND), Once::OutsideWindow(_)));
    assert!(matches!(short(now - 59 * SECOND), Once::First(_)));
    let long = |at| space.once_with("d", &sent(at).dedupe_ttl(100 * HOUR)).unwrap();
    assert!(matches!(long(now - 2 * HOUR), Once::OutsideWindow(_)));
}

#[test]
fn a_key_of_which_something_is_known_is_not_outside() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let long = policy(100 * HOUR).lease(HOUR).late_grace(10 * HOUR);
    let space = store.define("space", &long).unwrap();
    let early = clock.wall() - 1000 * HOUR;
    let lease = space.claim("key", None).unwrap().acquired().unwrap();
    assert!(matches!(claim(&space, "key", early), Claim::InProgress(_)));
    clock.advance(2 * HOUR);
    let takes_over = claim(&space, "key", early).acquired().unwrap();
    assert_eq!(takes_over.attempt(), 2);
    takes_over.complete("done").unwrap();
    assert!(matches!(claim(&space, "key", early), Claim::Completed(_)));
    drop(lease);
}

#[test]
fn a_window_that_was_made_longer_is_not_believed_for_what_came_before() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let space = store.define("space", &policy(HOUR)).unwrap();
    clock.advance(100 * HOUR);
    let first_sent = clock.wall();
    claim(&space, "key", first_sent).acquired().unwrap().complete("done").unwrap();
    clock.advance(HOUR / 2);
    store.alter("space", &policy(24 * HOUR)).unwrap();
    let raised = clock.wall();
    // And made shorter again, and longer.
    store.alter("space", &policy(12 * HOUR)).unwrap();
    store.alter("space", &policy(24 * HOUR)).unwrap();
    clock.advance(3 * HOUR);
    let check = |space: &Namespace| {
        let told = outside(claim(space, "key", first_sent));
        let since = told.remembered_since().unwrap();
        // A minute for completions that had read the old policy.
        assert!(since >= raised + 60 * SECOND && since <= raised + 61 * SECOND, "{told:?}");
    };
    check(&space);
    // What was sent since is remembered for the longer time.
    claim(&space, "later", raised + HOUR / 2).acquired().unwrap().release().unwrap();
    store.close().unwrap();
    let store = open(&fs, &clock);
    let space = store.namespace("space").unwrap();
    check(&space);
    // For ever: it would be refused by the longer window, too.
    clock.advance(30 * HOUR);
    outside(claim(&space, "key", first_sent));
    let now = clock.wall();
    assert!(claim(&space, "new", now - 23 * HOUR).acquired().is_some());
}

#[test]
fn the_first_window_of_a_name_that_is_defined_later_is_a_window() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let space = store.namespace("space").unwrap();
    let first_sent = clock.wall();
    claim(&space, "key", first_sent).acquired().unwrap().complete("done").unwrap();
    let default = Policy::default().dedupe_ttl;
    let longer = Policy::default().dedupe_ttl(3 * default);
    store.define("space", &longer).unwrap();
    clock.advance(2 * default);
    outside(claim(&space, "key", first_sent));
    let refused = store.define("space", &policy(HOUR));
    assert!(matches!(refused, Err(NamespaceError::PolicyConflict { .. })));
}
