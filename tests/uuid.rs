//! UUIDs as keys, and what those of version 7 say of when a request was first sent.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use refrain::testing::{HeapFs, SimClock, SimDisk};
use refrain::{
    Claim, ClaimOptions, Lookup, Namespace, Once, Options, OutsideWindow, PartsKey, Policy, Store,
};
use uuid::Uuid;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn open(fs: &HeapFs, clock: &SimClock) -> Store {
    Options::new("unused").file_system(fs.clone()).clock(clock.clone()).open().unwrap()
}

fn space(store: &Store) -> Namespace {
    let policy = Policy::default().lease(SECOND).late_grace(SECOND);
    store.define("space", &policy.replay_ttl(HOUR).dedupe_ttl(HOUR)).unwrap()
}

/// By the words of RFC 9562: 48 bits of milliseconds, the version, the variant, and the rest by chance.
fn version_7(at: SystemTime, rest: u64) -> Uuid {
    let ms = at.duration_since(UNIX_EPOCH).unwrap().as_millis();
    let (high, low) = (u128::from(rest >> 52), u128::from(rest) & ((1 << 62) - 1));
    Uuid::from_u128(ms << 80 | 7 << 76 | high << 64 | 2 << 62 | low)
}

fn outside(claim: Claim) -> OutsideWindow {
    match claim {
        Claim::OutsideWindow(outside) => outside,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_time_is_the_one_that_the_standard_shows() {
    // The example of RFC 9562, appendix A.6: 2022-02-22, 19:22:22 UTC.
    let example = Uuid::parse_str("017F22E2-79B0-7CC3-98C4-DC0C0C07398F").unwrap();
    assert_eq!(example.get_version_num(), 7);
    let at = UNIX_EPOCH + Duration::from_millis(1_645_557_742_000);
    for ago in [SECOND, 2 * HOUR] {
        let (fs, clock) = (HeapFs::new(), SimClock::at(at + ago));
        let store = open(&fs, &clock);
        let space = space(&store);
        match space.claim_uuid(example, None).unwrap() {
            Claim::Acquired(_) => assert_eq!(ago, SECOND),
            Claim::OutsideWindow(it) => {
                assert_eq!((ago, it.first_sent()), (2 * HOUR, Some(at)));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A retry under its first key is replayed or refused, and never carried out again, though nobody says when it was sent.
#[test]
fn a_late_retry_of_a_uuid_is_never_carried_out_again() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let space = space(&store);
    let key = version_7(clock.wall(), 0x1234_5678_9abc_def0);
    let lease = space.claim_uuid(key, None).unwrap().acquired().unwrap();
    assert_eq!(lease.key(), key.as_bytes());
    lease.complete("done").unwrap();
    let (mut replayed, mut refused) = (0_u32, 0_u32);
    for _ in 0..2 * 360 {
        clock.advance(10 * SECOND);
        match space.claim_uuid(key, None).unwrap() {
            Claim::Completed(_) => replayed += 1,
            Claim::OutsideWindow(_) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!((359..=361).contains(&replayed), "{replayed}, and {refused} refused");
    let options = ClaimOptions::new().first_sent_of(key);
    outside(space.claim_with(key, &options).unwrap());
    outside(space.claim_batch(&[(key, options)]).remove(0).unwrap());
    outside(space.claim_or_wait(key, &options, SECOND).wait().unwrap());
    assert!(matches!(space.once_with(key, &options).unwrap(), Once::OutsideWindow(_)));
    // Who says it himself is believed.
    let now = options.first_sent(clock.wall());
    assert!(space.claim_with(key, &now).unwrap().acquired().is_some());
}

#[test]
fn other_versions_and_variants_say_nothing() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let space = space(&store);
    let old = version_7(UNIX_EPOCH + HOUR, 99).as_u128();
    outside(space.claim_uuid(Uuid::from_u128(old), None).unwrap());
    for version in (0..16_u128).filter(|version| *version != 7) {
        let other = Uuid::from_u128(old & !(15 << 76) | version << 76);
        assert!(space.claim_uuid(other, None).unwrap().acquired().is_some(), "{other}");
    }
    for variant in [0, 1, 3_u128] {
        let other = Uuid::from_u128(old & !(3 << 62) | variant << 62);
        assert!(space.claim_uuid(other, None).unwrap().acquired().is_some(), "{other}");
    }
    // A key of the future is as new as one can be.
    let early = version_7(clock.wall() + 1000 * HOUR, 7);
    assert!(space.claim_uuid(early, None).unwrap().acquired().is_some());
}

#[test]
fn a_uuid_is_one_key_however_it_is_spelled() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let space = space(&store);
    let spellings = [
        "67e55044-10b1-426f-9247-bb680e5fe0c8",
        "67E55044-10B1-426F-9247-BB680E5FE0C8",
        "67e5504410b1426f9247bb680e5fe0c8",
        "{67e55044-10b1-426f-9247-bb680e5fe0c8}",
        "urn:uuid:67e55044-10b1-426f-9247-bb680e5fe0c8",
    ];
    let keys = spellings.map(|text| Uuid::parse_str(text).unwrap());
    space.claim_uuid(keys[0], None).unwrap().acquired().unwrap().complete("done").unwrap();
    for key in keys {
        assert!(matches!(space.claim_uuid(key, None).unwrap(), Claim::Completed(_)));
        assert!(matches!(space.lookup(key).unwrap(), Lookup::Completed(_)));
        // A part of another key.
        let parts = PartsKey::new().text("eu").uuid(key.into_bytes());
        assert_eq!(parts, PartsKey::new().text("eu").uuid(keys[0].into_bytes()));
    }
    assert!(matches!(space.lookup(spellings[0]).unwrap(), Lookup::Absent));
}

/// Whoever made the key may have a fast clock: what may have been lost stays in doubt.
#[test]
fn a_key_takes_nothing_out_of_doubt() {
    let (disk, clock) = (SimDisk::new(1), SimClock::new());
    let options = |disk: &SimDisk| {
        let options = Options::new("unused").file_system(disk.mount()).clock(clock.clone());
        options.segment_bytes(256 << 10)
    };
    let store = options(&disk).open().unwrap();
    let before = space(&store);
    for number in 0..2000 {
        assert!(matches!(before.once(format!("{number}"), None).unwrap(), Once::First(_)));
    }
    store.close().unwrap();
    drop((before, store));
    // A segment in the middle of the file.
    disk.tamper("data-00000", 40_000, &[0xff; 4096], None);
    let target = SimDisk::new(2);
    let report = options(&disk).salvage(options(&target)).unwrap();
    assert!(report.gaps > 0);
    let store = options(&target).open().unwrap();
    let space = space(&store);
    clock.advance(SECOND);
    let later = clock.wall() + HOUR;
    let key = version_7(later, 1);
    assert!(matches!(space.claim_uuid(key, None).unwrap(), Claim::InDoubt(_)));
    let vouched = ClaimOptions::new().first_sent(later);
    assert!(space.claim_with(key, &vouched).unwrap().acquired().is_some());
}
