//! Salvage: what is left of a damaged store, and which keys are in doubt afterwards.
//!
//! `tests/corruption.rs` salvages every image that opening refuses; here is what its keys answer,
//! how doubt ends, and what a salvage that is cut short leaves.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::time::{Duration, SystemTime};

use refrain::testing::{Crash, Fault, FileSystem, HeapFs, Pages, SimClock, SimDisk};
use refrain::{
    Body, Claim, ClaimError, ClaimOptions, Durability, EndCause, Fingerprint, Gap, GapError,
    KeyState, LeaseError, Lookup, Namespace, OnOrphan, Once, OpenError, Options, Outcome, OwnerId,
    Policy, Resolution, SalvageError, SalvageReport, Store, StoreError,
};
use support::disk::{find_last, poke, read, replace, snapshot};

const HOUR: Duration = Duration::from_secs(3600);
const SEGMENT_BYTES: u64 = 256 << 10;
const BODY: &[u8] = &[7; 20_000];

fn options(fs: &HeapFs, clock: &SimClock) -> Options {
    let options = Options::new("unused").file_system(fs.clone()).clock(clock.clone());
    options.durability(Durability::Sync).shards(2).manual_maintenance(true)
}

fn policy() -> Policy {
    Policy::default().replay_ttl(HOUR).dedupe_ttl(HOUR)
}

/// A store, closed in order, of some segments: keys 0 to 39 completed, `held` claimed.
fn store(clock: &SimClock) -> HeapFs {
    let fs = HeapFs::new();
    let store = options(&fs, clock).segment_bytes(SEGMENT_BYTES).open().unwrap();
    let orders = store.define("orders", &policy()).unwrap();
    for number in 0..40 {
        let key = format!("key-{number}");
        orders.claim(key, None).unwrap().acquired().unwrap().complete(BODY).unwrap();
    }
    drop(orders.claim("held", None).unwrap().acquired().unwrap());
    drop(orders);
    store.close().unwrap();
    fs
}

fn salvage(fs: &HeapFs, clock: &SimClock) -> (HeapFs, SalvageReport) {
    let (target, before) = (HeapFs::new(), snapshot(fs));
    let report = options(fs, clock).salvage(options(&target, clock)).unwrap();
    assert!(snapshot(fs) == before, "salvage wrote to its source");
    (target, report)
}

fn completed(orders: &Namespace, key: &str) -> Outcome {
    orders.claim(key, None).unwrap().completed().unwrap()
}

fn in_doubt(orders: &Namespace, key: &str) -> Gap {
    let gap = match orders.claim(key, None).unwrap() {
        Claim::InDoubt(gap) => gap,
        other => panic!("{key}: {other:?}"),
    };
    assert_eq!(orders.once(key, None).unwrap(), Once::InDoubt(gap.clone()));
    assert_eq!(orders.lookup(key).unwrap(), Lookup::InDoubt(gap.clone()));
    gap
}

/// Damages the record that holds `key` last.
fn damage(fs: &HeapFs, key: &str) {
    let at = find_last(&read(fs, "data-00000"), key.as_bytes());
    poke(fs, "data-00000", at, b"?");
}

/// A store whose completion of key 5 cannot be read, salvaged and opened.
fn salvaged(clock: &SimClock) -> (HeapFs, Store, Namespace) {
    let fs = store(clock);
    damage(&fs, "key-5");
    clock.advance(Duration::from_secs(50));
    let refused = options(&fs, clock).verify_at_open(true).open();
    assert!(matches!(refused, Err(OpenError::Corrupt { .. })), "{refused:?}");
    let (fs, report) = salvage(&fs, clock);
    assert_eq!((report.gaps, report.namespaces, report.records_unnamed), (1, 1, 0));
    assert_eq!((report.records, report.bodies_lost), (80, 0));
    // The record, up to the next multiple of 16.
    assert!((20_064..20_160).contains(&report.bytes_lost), "{report:?}");
    let store = options(&fs, clock).open().unwrap();
    assert!(store.report().clean && store.report().epoch > report.epoch);
    let orders = store.namespace("orders").unwrap();
    (fs, store, orders)
}

/// The index of a segment stands for its records when a store is opened. One that is damaged is told
/// when it is asked for, and is never nothing.
#[test]
fn a_damaged_record_is_told_by_whoever_asks_for_it() {
    let clock = SimClock::new();
    let fs = store(&clock);
    damage(&fs, "key-5");
    clock.advance(Duration::from_secs(50));
    let store = options(&fs, &clock).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let claimed = orders.claim("key-5", None);
    assert!(matches!(claimed, Err(ClaimError::Store(StoreError::Corrupt { .. }))), "{claimed:?}");
    let found = orders.lookup("key-5");
    assert!(matches!(found, Err(StoreError::Corrupt { .. })), "{found:?}");
    assert_eq!(completed(&orders, "key-6").body(), Body::Bytes(BODY));
}

#[test]
fn a_damaged_record_leaves_everything_else_and_a_gap() {
    let clock = SimClock::new();
    let (_fs, store, orders) = salvaged(&clock);
    assert_eq!(orders.policy(), policy());
    for number in (0..40).filter(|number| *number != 5) {
        let outcome = completed(&orders, &format!("key-{number}"));
        assert_eq!(outcome.body(), Body::Bytes(BODY));
        assert!(outcome.token().to_string().starts_with("1."), "{}", outcome.token());
    }
    // Its claim is there, and its completion may be what was lost; nothing is known of the others.
    let gap = in_doubt(&orders, "key-5");
    assert_eq!(in_doubt(&orders, "held"), gap);
    assert_eq!(in_doubt(&orders, "never-seen"), gap);
    assert_eq!(in_doubt(&store.namespace("others").unwrap(), "never-seen"), gap);
    assert!(gap.what().contains("data-00000") && gap.bytes() > 20_000, "{gap:?}");
    assert!(gap.from().unwrap() <= gap.to().unwrap());
    let orphans: Vec<_> = orders.orphans().unwrap().iter().map(|it| it.key().to_vec()).collect();
    assert_eq!(orphans, [b"key-5".to_vec(), b"held".to_vec()]);
}

#[test]
fn a_gap_is_over_when_what_was_lost_would_have_expired() {
    let clock = SimClock::new();
    let (_fs, _store, orders) = salvaged(&clock);
    let gap = in_doubt(&orders, "new");
    let left = gap.guaranteed_until().unwrap().duration_since(gap.to().unwrap()).unwrap();
    // The segment says it in whole seconds; the salvage came fifty later.
    let lasts = HOUR - Duration::from_secs(50);
    assert!(left > lasts - Duration::from_secs(2) && left < lasts + Duration::from_secs(2));
    clock.advance(left - Duration::from_millis(10));
    in_doubt(&orders, "new");
    clock.advance(Duration::from_millis(20));
    assert!(orders.claim("new", None).unwrap().acquired().is_some());
}

/// A claim that is still held may have been completed: what was lost may say so. A new token for its owner would
/// take the key out of doubt.
#[test]
fn an_owner_whose_completion_may_be_lost_does_not_resume() {
    let clock = SimClock::new();
    let (fs, mine) = (HeapFs::new(), ClaimOptions::new().owner(OwnerId([1; 16])));
    let store = options(&fs, &clock).segment_bytes(SEGMENT_BYTES).open().unwrap();
    let policy = policy().lease(HOUR).on_orphan(OnOrphan::KeepLease);
    let orders = store.define("orders", &policy).unwrap();
    let key = "carried-out";
    orders.claim_with(key, &mine).unwrap().acquired().unwrap().complete(BODY).unwrap();
    drop(orders);
    store.close().unwrap();
    damage(&fs, key);
    let (fs, _) = salvage(&fs, &clock);
    let store = options(&fs, &clock).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    assert!(matches!(orders.claim(key, None).unwrap(), Claim::InProgress(_)));
    let gaps = [(); 2].map(|()| match orders.claim_with(key, &mine).unwrap() {
        Claim::InDoubt(gap) => gap.id(),
        other => panic!("{other:?}"),
    });
    store.accept_gap(gaps[1], "looked at the ledger", "a person").unwrap();
    assert!(matches!(orders.claim_with(key, &mine).unwrap(), Claim::Resumed(_)));
}

#[test]
fn a_gap_that_somebody_accepts_is_over_for_good() {
    let clock = SimClock::new();
    let (fs, store, orders) = salvaged(&clock);
    let gap = in_doubt(&orders, "new");
    let unknown = store.accept_gap(gap.id() + 1, "", "");
    assert!(matches!(unknown, Err(GapError::UnknownGap)), "{unknown:?}");
    let long = store.accept_gap(gap.id(), &"r".repeat(256), "");
    assert!(matches!(long, Err(GapError::TextLength { len: 256 })), "{long:?}");
    store.accept_gap(gap.id(), "looked at the ledger", "ä person").unwrap();
    store.accept_gap(gap.id(), "again", "somebody else").unwrap();
    let token = orders.claim("new", None).unwrap().acquired().unwrap().token();
    assert_eq!(orders.claim("key-5", None).unwrap().acquired().unwrap().attempt(), 2);
    drop(orders);
    store.abandon();
    let store = options(&fs, &clock).open().unwrap();
    let gaps = store.gaps();
    let accepted = gaps[0].acceptance().unwrap();
    assert_eq!((accepted.actor(), accepted.reason()), ("ä person", "looked at the ledger"));
    assert!(accepted.at().is_some() && gaps.len() == 1);
    let orders = store.namespace("orders").unwrap();
    let lease = orders.claim("newer", None).unwrap().acquired().unwrap();
    assert!(lease.token() > token && lease.attempt() == 1);
}

#[test]
fn a_request_that_was_first_sent_after_the_gap_is_not_in_doubt() {
    let clock = SimClock::new();
    let (fs, store, orders) = salvaged(&clock);
    let to = in_doubt(&orders, "new").to().unwrap();
    let sent = |at: SystemTime| ClaimOptions::new().first_sent(at);
    for before in [to, to - HOUR, SystemTime::UNIX_EPOCH - HOUR] {
        let claim = orders.claim_with("new", &sent(before)).unwrap();
        assert!(matches!(claim, Claim::InDoubt(_)), "{claim:?}");
    }
    // What was lost may have been written at any time until the salvage.
    let after = sent(to + Duration::from_millis(1));
    let claim = orders.claim_with("key-5", &after).unwrap();
    assert!(matches!(claim, Claim::InDoubt(_)), "its claim is there: {claim:?}");
    // Also when the clock has forgotten it.
    drop(orders);
    store.close().unwrap();
    clock.advance(Duration::from_secs(100));
    let store = options(&fs, &clock).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let claim = orders.claim_with("key-5", &after).unwrap();
    assert!(matches!(claim, Claim::InDoubt(_)), "its claim was there: {claim:?}");
    assert!(matches!(orders.once_with("other", &after).unwrap(), Once::First(_)));
    assert!(orders.claim_with("new", &after).unwrap().acquired().is_some());
}

#[test]
fn doubt_ends_for_one_key_and_stays_ended() {
    let clock = SimClock::new();
    let (fs, store, orders) = salvaged(&clock);
    // Nothing is known of it: it did not happen, somebody says.
    assert_eq!(orders.forget("one", "not in the ledger", "a person").unwrap(), None);
    assert_eq!(orders.lookup("one").unwrap(), Lookup::Absent);
    // Its claim is: it did, or it did not.
    let token = |key: &str| {
        let orphans = orders.orphans().unwrap();
        orphans.iter().find(|orphan| orphan.key() == key.as_bytes()).unwrap().token()
    };
    orders.resolve("held", token("held"), &Resolution::NotDone, "a test", "nobody").unwrap();
    assert_eq!(orders.lookup("held").unwrap(), Lookup::Absent);
    assert_eq!(orders.forget("key-5", "", "").unwrap(), Some(KeyState::Lapsed));
    // A forgotten key is not in doubt, also when it was claimed and given back since.
    orders.claim("key-5", None).unwrap().acquired().unwrap().release().unwrap();
    in_doubt(&orders, "two");
    drop(orders);
    store.close().unwrap();
    for _ in 0..2 {
        let store = options(&fs, &clock).open().unwrap();
        store.check_invariants().unwrap();
        let orders = store.namespace("orders").unwrap();
        in_doubt(&orders, "two");
        for key in ["one", "held", "key-5"] {
            let lease = orders.claim(key, None).unwrap().acquired().unwrap();
            let (token, attempt) = (lease.token(), lease.attempt());
            lease.release().unwrap();
            assert_eq!(attempt, 1);
            let late = orders.renew(key, token);
            assert!(matches!(late, Err(LeaseError::Forgotten { late_by: None })), "{late:?}");
        }
        drop(orders);
        store.abandon();
    }
}

#[test]
fn a_completion_whose_body_is_damaged_is_kept_without_it() {
    let clock = SimClock::new();
    let fs = store(&clock);
    let at = find_last(&read(&fs, "data-00000"), b"key-5") + 5000;
    poke(&fs, "data-00000", at, b"?");
    let (fs, report) = salvage(&fs, &clock);
    assert_eq!((report.gaps, report.bodies_lost, report.bytes_lost), (0, 1, 0));
    assert_eq!((report.records, report.damage.len()), (81, 1));
    let store = options(&fs, &clock).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    assert_eq!(completed(&orders, "key-5").body(), Body::Expired);
    assert_eq!(completed(&orders, "key-6").body(), Body::Bytes(BODY));
    assert!(orders.claim("new", None).unwrap().acquired().is_some());
}

#[test]
fn whatever_is_lost_beside_the_records_leaves_them() {
    let clock = SimClock::new();
    type Damaging = dyn Fn(&HeapFs);
    let damages: [(&str, &Damaging); 5] = [
        ("the meta file", &|fs| fs.remove("META").unwrap()),
        ("both slots", &|fs| [200, 4300].iter().for_each(|at| poke(fs, "META", *at, b"????????"))),
        ("a file header", &|fs| poke(fs, "data-00000", 20, b"?")),
        ("a segment header", &|fs| poke(fs, "data-00000", 8 * 4096 + 40, b"??")),
        ("a trailer", &|fs| poke(fs, "data-00000", 8 * 4096 + SEGMENT_BYTES - 4, b"??")),
    ];
    for (what, damage) in damages {
        let fs = store(&clock);
        damage(&fs);
        let (fs, report) = salvage(&fs, &clock);
        assert_eq!((report.records, report.bytes_lost), (81, 0), "{what}: {report:?}");
        assert!(!report.damage.is_empty(), "{what}");
        let store = options(&fs, &clock).open().unwrap();
        let orders = store.namespace("orders").unwrap();
        for number in 0..40 {
            let outcome = completed(&orders, &format!("key-{number}"));
            assert_eq!(outcome.body(), Body::Bytes(BODY), "{what}");
        }
        // The list of files, or the end of a segment, is not known any more.
        let is_gap = !matches!(what, "a file header" | "a segment header");
        assert_eq!(report.gaps, usize::from(is_gap), "{what}: {report:?}");
        if is_gap {
            assert_eq!(in_doubt(&orders, "new").guaranteed_until(), None, "{what}");
        }
    }
}

#[test]
fn names_and_files_that_are_gone_leave_everything_in_doubt() {
    let clock = SimClock::new();
    for name in ["NAMES", "data-00000"] {
        let fs = store(&clock);
        fs.remove(name).unwrap();
        let (fs, report) = salvage(&fs, &clock);
        assert!(report.gaps > 0, "{report:?}");
        assert_eq!(report.records_unnamed, if name == "NAMES" { 81 } else { 0 });
        let store = options(&fs, &clock).open().unwrap();
        let orders = store.namespace("orders").unwrap();
        assert_eq!(orders.policy() == policy(), name != "NAMES");
        for key in ["key-1", "new"] {
            assert_eq!(in_doubt(&orders, key).guaranteed_until(), None);
        }
        store.gaps().iter().for_each(|gap| store.accept_gap(gap.id(), "", "").unwrap());
        let lease = orders.claim("key-1", None).unwrap().acquired().unwrap();
        // Above every token that the source ever gave, also when no record tells of it.
        assert!(lease.token().get() >> 40 > 65_536, "{}", lease.token());
    }
}

#[test]
fn a_file_that_is_gone_is_missed_though_neither_marks_nor_other_files_tell_of_it() {
    let clock = SimClock::new();
    let fs = store(&clock);
    // Behind the last segment of the others no number is left out.
    let files = fs.list().unwrap().into_iter().filter(|name| name.starts_with("data-"));
    fs.remove(&files.max().unwrap()).unwrap();
    let (fs, report) = salvage(&fs, &clock);
    assert_eq!(report.gaps, 1, "{report:?}");
    let store = options(&fs, &clock).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    assert_eq!(in_doubt(&orders, "new").guaranteed_until(), None);
    completed(&orders, "key-1");
}

#[test]
fn a_store_that_is_sound_comes_out_as_it_went_in() {
    let clock = SimClock::new();
    let fs = HeapFs::new();
    let store = options(&fs, &clock).segment_bytes(SEGMENT_BYTES).open().unwrap();
    let parks = policy().on_orphan(OnOrphan::Park).lease(Duration::from_secs(1));
    let seconds = Duration::from_secs;
    let brief = policy().lease(seconds(4)).replay_ttl(seconds(5)).dedupe_ttl(seconds(9));
    let space = [("orders", policy()), ("parks", parks), ("brief", brief)]
        .map(|(name, policy)| store.define(name, &policy).unwrap());
    let claim = |space: &Namespace, key| space.claim(key, None).unwrap().acquired().unwrap();
    for space in &space {
        drop(claim(space, "held"));
        claim(space, "done").complete("done").unwrap();
        claim(space, "parked").park().unwrap();
        claim(space, "released").release().unwrap();
        claim(space, "forgotten").complete("done").unwrap();
        space.forget("forgotten", "why", "who").unwrap();
        space.renew("held", claim(space, "renewed").token()).unwrap_err();
    }
    store.alter("brief", &brief.lease(seconds(7))).unwrap();
    store.abandon();
    // Longer than a claim under `OnOrphan::Park` is remembered by the clock; and some expire.
    clock.advance(Duration::from_secs(300));
    // A data file that was never finished.
    drop(fs.create_new("data-00007").unwrap());
    let (salvaged, report) = salvage(&fs, &clock);
    assert_eq!((report.gaps, report.damage.len(), report.bytes_lost), (0, 0, 0), "{report:?}");
    assert_eq!(report.namespaces, 3);
    let told = |fs: &HeapFs| {
        let store = options(fs, &clock).open().unwrap();
        let mut told = vec![];
        for name in store.namespaces() {
            let space = store.namespace(&name).unwrap();
            told.push(format!("{name}: {:?}", space.policy()));
            for key in ["held", "done", "parked", "released", "forgotten", "renewed", "new"] {
                let lookup = space.lookup(key).unwrap();
                if let (Lookup::Parked(it), "parks", "held") = (&lookup, &*name, key) {
                    assert_eq!(it.cause(), EndCause::Orphaned);
                }
                told.push(match lookup {
                    Lookup::Parked(it) => format!("{name} {key}: parked {:?}", it.cause()),
                    other => format!("{name} {key}: {other:?}"),
                });
            }
        }
        told
    };
    let (one, other) = (told(&fs), told(&salvaged));
    assert_eq!(one, other);
    assert!(one.contains(&"parks held: parked Orphaned".to_owned()), "{one:#?}");
    assert!(one.contains(&"brief done: Absent".to_owned()), "{one:#?}");
}

#[test]
fn what_is_salvaged_twice_has_the_gaps_of_both_times() {
    let clock = SimClock::new();
    let (fs, store, orders) = salvaged(&clock);
    store.accept_gap(in_doubt(&orders, "new").id(), "seen to", "a person").unwrap();
    drop(orders);
    store.abandon();
    damage(&fs, "key-7");
    let (fs, report) = salvage(&fs, &clock);
    assert_eq!((report.gaps, report.records), (1, 79));
    let store = options(&fs, &clock).open().unwrap();
    let gaps = store.gaps();
    assert_eq!(gaps.iter().map(Gap::id).collect::<Vec<_>>(), [0, 1]);
    assert!(gaps[0].acceptance().is_some() && gaps[1].acceptance().is_none());
    let orders = store.namespace("orders").unwrap();
    assert_eq!(in_doubt(&orders, "key-7").id(), 1);
    store.accept_gap(1, "", "").unwrap();
    assert!(orders.claim("key-5", None).unwrap().acquired().is_some());
}

#[test]
fn what_cannot_be_salvaged_is_refused_without_a_trace() {
    let clock = SimClock::new();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::create_dir(path("empty")).unwrap();
    let nothing = Store::salvage(path("empty"), path("new"));
    assert!(matches!(nothing, Err(SalvageError::NoStore { .. })), "{nothing:?}");
    assert!(std::fs::read_dir(path("empty")).unwrap().next().is_none());
    let open = Store::open(path("store")).unwrap();
    let locked = Store::salvage(path("store"), path("new"));
    let is_locked = matches!(locked, Err(SalvageError::Open(OpenError::Locked { .. })));
    assert!(is_locked, "{locked:?}");
    open.close().unwrap();
    assert_eq!(Store::salvage(path("store"), path("new")).unwrap().gaps, 0);
    let again = Store::salvage(path("store"), path("new"));
    assert!(matches!(again, Err(SalvageError::NotEmpty { .. })), "{again:?}");
    Store::open(path("new")).unwrap().close().unwrap();

    let fs = store(&clock);
    let other = options(&HeapFs::new(), &clock).segment_bytes(2 * SEGMENT_BYTES);
    let refused = options(&fs, &clock).salvage(other);
    let is_size = matches!(refused, Err(SalvageError::Open(OpenError::SegmentBytes { .. })));
    assert!(is_size, "{refused:?}");
}

#[test]
fn pages_that_cannot_be_read_are_lost_and_nothing_else() {
    let clock = SimClock::new();
    let source = SimDisk::new(1);
    let on = |fs: &SimDisk| Options::new("unused").file_system(fs.mount()).clock(clock.clone());
    let store = on(&source).segment_bytes(SEGMENT_BYTES).manual_maintenance(true).open().unwrap();
    let orders = store.define("orders", &policy()).unwrap();
    let keys: Vec<String> = (0..60).map(|number| format!("key-{number}")).collect();
    for key in &keys {
        orders.claim(key, None).unwrap().acquired().unwrap().complete(BODY).unwrap();
    }
    drop(orders);
    store.close().unwrap();
    let (mut lost, mut failed) = (0, 0);
    for after in 0..400 {
        // One piece of 256 KiB, and the first pages of it; or something smaller.
        for times in [1, 9] {
            let mounted = on(&source);
            source.fail(Fault {
                operation: "read",
                after,
                times,
                error: std::io::ErrorKind::InvalidData,
            });
            let target = HeapFs::new();
            let report = mounted.salvage(options(&target, &clock));
            source.heal();
            let report = match report {
                Ok(report) => report,
                // Neither the meta file nor the head of any data file could be read.
                Err(SalvageError::NoStore { .. }) if after < 8 => continue,
                Err(error) => panic!("{after} {times}: {error}"),
            };
            let store = options(&target, &clock).open().unwrap();
            let orders = store.namespace("orders").unwrap();
            for key in &keys {
                match orders.claim(key, None).unwrap() {
                    Claim::Completed(outcome) => assert_eq!(outcome.body(), Body::Bytes(BODY)),
                    Claim::InDoubt(_) => lost += 1,
                    other => panic!("{after} {times}: {key}: {other:?}"),
                }
            }
            assert_eq!(report.gaps > 0, orders.claim("new", None).unwrap().acquired().is_none());
            failed += usize::from(report.gaps > 0);
        }
    }
    assert!(lost > 0 && failed > 0);
    println!("{failed} salvages with gaps, {lost} keys in doubt");
}

#[test]
fn a_salvage_that_is_cut_short_leaves_no_store_that_opens() {
    let clock = SimClock::new();
    let fs = store(&clock);
    damage(&fs, "key-5");
    let (mut finished, mut unfinished, mut step) = (0, 0, 0);
    while finished < 2 {
        for crash in [Crash::Kill, Crash::PowerCut] {
            let target = SimDisk::new(step);
            let on = || Options::new("new").file_system(target.mount()).clock(clock.clone());
            let new = on();
            target.crash_after(step, crash);
            let salvaged = options(&fs, &clock).salvage(new);
            let is_crashed = target.crashed().is_some();
            target.call_off_crash();
            assert_eq!(salvaged.is_err(), is_crashed, "{step}: {salvaged:?}");
            if !is_crashed {
                // Whatever was not synced is gone.
                target.cut_keeping(|_| false);
            }
            drop(target.mount());
            let has_meta = target.files().contains_key("META");
            match on().verify() {
                Ok(found) => {
                    // Whole, though the last step may not have been told of.
                    assert_eq!(found.completed, 39, "{step} {crash:?}");
                    let store = on().manual_maintenance(true).open().unwrap();
                    assert_eq!(store.gaps().len(), 1);
                    finished += u64::from(!is_crashed);
                }
                Err(OpenError::MissingFile { .. }) => assert!(!has_meta),
                Err(OpenError::Unfinished { .. }) => {
                    let opened = on().open();
                    assert!(matches!(opened, Err(OpenError::Unfinished { .. })), "{opened:?}");
                    unfinished += 1;
                }
                Err(other) => panic!("{step} {crash:?}: {other}"),
            }
        }
        step += 1;
    }
    println!("{step} steps, {unfinished} unfinished");
    assert!(unfinished > 20);
}

#[test]
fn where_a_rule_parks_a_gap_lasts_until_somebody_accepts_it() {
    let clock = SimClock::new();
    for (rule, ends) in [(OnOrphan::Park, false), (OnOrphan::Reclaim, true)] {
        let fs = store(&clock);
        let store = options(&fs, &clock).open().unwrap();
        // Once had the rule, in a namespace of its own: a claim of that time may be what was lost.
        store.define("others", &policy().on_orphan(rule)).unwrap();
        store.alter("others", &policy()).unwrap();
        store.close().unwrap();
        damage(&fs, "key-5");
        let (fs, _) = salvage(&fs, &clock);
        let store = options(&fs, &clock).open().unwrap();
        assert_eq!(store.gaps()[0].guaranteed_until().is_some(), ends, "{rule:?}");
    }
}

#[test]
fn a_gap_whose_entry_is_lost_is_a_gap() {
    let clock = SimClock::new();
    let (fs, store, _) = salvaged(&clock);
    drop(store);
    let at = find_last(&read(&fs, "NAMES"), b"data-00000");
    poke(&fs, "NAMES", at, b"?");
    let (fs, report) = salvage(&fs, &clock);
    assert_eq!((report.gaps, report.namespaces), (1, 1));
    let store = options(&fs, &clock).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    assert_eq!(in_doubt(&orders, "new").guaranteed_until(), None);
}

#[test]
fn a_bad_slot_of_the_meta_file_takes_no_salvaged_store_with_it() {
    let clock = SimClock::new();
    for slot in [0, 4096] {
        let (fs, store, orders) = salvaged(&clock);
        drop((orders, store));
        damage(&fs, "key-7");
        let (fs, _) = salvage(&fs, &clock);
        poke(&fs, "META", slot + 200, b"????????");
        let store = options(&fs, &clock).open().unwrap();
        assert!(store.report().meta_fallback && store.gaps().len() == 2);
    }
}

#[test]
fn what_an_unfinished_salvage_has_copied_can_be_salvaged() {
    let clock = SimClock::new();
    let fs = store(&clock);
    let mut halves = 0;
    for steps in (60..400).step_by(7) {
        let target = SimDisk::new(1);
        let on = || Options::new("new").file_system(target.mount()).clock(clock.clone());
        let new = on();
        target.crash_after(steps, Crash::Kill);
        if options(&fs, &clock).salvage(new).is_ok() {
            break;
        }
        if !matches!(on().verify(), Err(OpenError::Unfinished { .. })) {
            continue;
        }
        let rest = HeapFs::new();
        let Ok(report) = on().salvage(options(&rest, &clock)) else { continue };
        let orders = options(&rest, &clock).open().unwrap().namespace("orders").unwrap();
        let Lookup::Completed(outcome) = orders.lookup("key-0").unwrap() else { continue };
        assert_eq!(outcome.body(), Body::Bytes(BODY));
        // Whatever was not copied yet, and whatever is not told of, is in doubt.
        assert!(report.records > 0 && report.gaps > 0, "{report:?}");
        in_doubt(&orders, "key-40");
        halves += 1;
    }
    assert!(halves > 0);
}

#[test]
fn marks_that_cannot_be_read_may_have_vouched_for_more() {
    let clock = SimClock::new();
    let source = SimDisk::new(1);
    let on = || Options::new("unused").file_system(source.mount()).clock(clock.clone());
    let store = on().segment_bytes(SEGMENT_BYTES).manual_maintenance(true).open().unwrap();
    drop(store.namespace("orders").unwrap().claim("held", None).unwrap());
    store.abandon();
    drop(source.mount());
    let mut gaps = 0;
    for after in 0..12 {
        let mounted = on();
        source.fail(Fault { operation: "read", after, times: 1, error: std::io::ErrorKind::Other });
        let (target, error) = (HeapFs::new(), "a disk error");
        let report = mounted.salvage(options(&target, &clock)).expect(error);
        source.heal();
        gaps += usize::from(report.gaps > 0);
    }
    // Seven slots, the meta file, and the names.
    assert!(gaps >= 8, "{gaps}");
}

/// A store of four data files, killed, and what it was like right after its last opening.
fn store_that_grew(clock: &SimClock) -> (HeapFs, HeapFs, u32) {
    let fs = HeapFs::new();
    let open = || options(&fs, clock).segment_bytes(SEGMENT_BYTES).open().unwrap();
    open().close().unwrap();
    let store = open();
    let orders = store.define("orders", &policy()).unwrap();
    let opened = copy(&fs);
    let mut keys = 0;
    while !fs.list().unwrap().contains(&"data-00003".to_owned()) {
        let lease = orders.claim(format!("key-{keys}"), None).unwrap().acquired().unwrap();
        lease.complete(BODY).unwrap();
        keys += 1;
    }
    store.flush().unwrap();
    drop(orders);
    store.abandon();
    (fs, opened, keys)
}

fn copy(fs: &HeapFs) -> HeapFs {
    let copy = HeapFs::new();
    for (name, bytes) in snapshot(fs) {
        let file = copy.create_new(&name).unwrap();
        if name.starts_with("data-") {
            file.zero_fill(0, bytes.len() as u64, Pages::Small).unwrap();
            drop(file.map().unwrap());
        }
        poke(&copy, &name, 0, &bytes);
    }
    copy
}

#[test]
fn a_meta_file_of_an_earlier_time_may_list_too_few_files() {
    let clock = SimClock::new();
    let (grown, opened, keys) = store_that_grew(&clock);
    // Of the same opening: it lists two files of four.
    poke(&grown, "META", 0, &read(&opened, "META"));
    // Of the opening before: it lists all, and nothing but a token tells.
    let fs = store(&clock);
    let before = read(&fs, "META");
    let later = options(&fs, &clock).open().unwrap();
    drop(later.namespace("orders").unwrap().claim("later", None).unwrap());
    later.close().unwrap();
    poke(&fs, "META", 0, &before);
    for (damaged, keys) in [(grown, keys), (fs, 40)] {
        let refused = options(&damaged, &clock).open();
        assert!(matches!(refused, Err(OpenError::Corrupt { .. })), "{refused:?}");
        let (salvaged, report) = salvage(&damaged, &clock);
        assert_eq!((report.gaps, report.bytes_lost), (1, 0), "{report:?}");
        let store = options(&salvaged, &clock).open().unwrap();
        let orders = store.namespace("orders").unwrap();
        (0..keys).for_each(|key| drop(completed(&orders, &format!("key-{key}"))));
        assert_eq!(in_doubt(&orders, "new").guaranteed_until(), None);
    }
}

#[test]
fn a_data_file_without_a_header_stands_for_no_other() {
    let clock = SimClock::new();
    let (fs, _, keys) = store_that_grew(&clock);
    let mut other = read(&fs, "data-00002");
    other[..64].fill(0);
    replace(&fs, "data-00001", Some(&other));
    let (fs, report) = salvage(&fs, &clock);
    assert!(report.gaps > 0, "{report:?}");
    let store = options(&fs, &clock).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    for key in 0..keys {
        let claim = orders.claim(format!("key-{key}"), None).unwrap();
        assert!(matches!(claim, Claim::Completed(_) | Claim::InDoubt(_)), "{claim:?}");
    }
}

#[test]
fn a_call_of_the_target_that_fails_is_an_error_and_leaves_nothing_that_opens() {
    let clock = SimClock::new();
    let fs = store(&clock);
    damage(&fs, "key-5");
    let (mut failed, mut full) = (0, 0);
    for operation in
        ["write", "fill", "sync", "sync_dir", "create", "rename", "map", "read", "open"]
    {
        for times in [1, u64::MAX] {
            for after in 0.. {
                let target = SimDisk::new(after);
                let on = || Options::new("new").file_system(target.mount()).clock(clock.clone());
                let new = on();
                let error = match operation {
                    "fill" => std::io::ErrorKind::StorageFull,
                    _ => std::io::ErrorKind::Other,
                };
                target.fail(Fault { operation, after, times, error });
                let salvaged = options(&fs, &clock).salvage(new);
                let has_failed = target.counts().keys().any(|what| what.ends_with("failed"))
                    || target.counts().contains_key("disk full");
                target.heal();
                let verified = on().verify();
                match (&salvaged, verified) {
                    (Ok(report), Ok(found)) => {
                        assert_eq!((report.gaps, found.completed), (1, 39), "{operation} {after}");
                        full += u64::from(has_failed);
                    }
                    // All of it was there, and the last word on it failed.
                    (Err(_), Ok(found)) => assert_eq!(found.completed, 39, "{operation} {after}"),
                    (Err(SalvageError::Open(_) | SalvageError::Store(_)), Err(_)) => failed += 1,
                    (salvaged, verified) => {
                        panic!("{operation} {after}: {salvaged:?} {verified:?}")
                    }
                }
                if salvaged.is_ok() && !has_failed {
                    break;
                }
            }
        }
    }
    println!("{failed} failed, {full} went on");
    assert!(failed > 100);
}

/// An entry that a gap keeps gave back room that it did not hold: a claim in its place was granted
/// without room for its end.
#[test]
fn a_claim_that_the_clock_forgot_gives_back_the_room_it_held() {
    let clock = SimClock::new();
    let fs = store(&clock);
    let opened = options(&fs, &clock).open().unwrap();
    let orders = opened.namespace("orders").unwrap();
    drop(orders.claim("paid", Fingerprint::of(b"payload")).unwrap().acquired().unwrap());
    drop(orders);
    opened.close().unwrap();
    damage(&fs, "key-5");
    clock.advance(Duration::from_secs(200));
    let (fs, _) = salvage(&fs, &clock);
    let store = options(&fs, &clock).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    store.accept_gap(in_doubt(&orders, "paid").id(), "", "").unwrap();
    let lease = orders.claim("paid", None).unwrap().acquired().unwrap();
    assert_eq!(lease.attempt(), 1);
    lease.complete("receipt").unwrap();
}

#[test]
fn zeros_behind_the_names_are_read_once() {
    let clock = SimClock::new();
    let fs = store(&clock);
    // Quadratic, this would take minutes.
    let end = read(&fs, "NAMES").len() as u64;
    poke(&fs, "NAMES", end, &vec![0; 8 << 20]);
    fs.remove("META").unwrap();
    let (_, report) = salvage(&fs, &clock);
    assert_eq!((report.gaps, report.namespaces, report.damage.len()), (1, 1, 1), "{report:?}");
}

/// Whoever forgets everything knows nothing of what was lost.
#[test]
fn forgetting_everything_leaves_keys_in_doubt() {
    let clock = SimClock::new();
    let (_fs, _store, orders) = salvaged(&clock);
    in_doubt(&orders, "key-5");
    in_doubt(&orders, "never seen");
    // The lease of the claim that survived is over, and its grace.
    clock.advance(Duration::from_secs(3000));
    let forgotten = orders.forget_all("a test", "nobody").unwrap();
    assert!((39..=41).contains(&forgotten), "{forgotten}");
    in_doubt(&orders, "key-5");
    in_doubt(&orders, "never seen");
    assert_eq!(orders.forget_all("a test", "nobody").unwrap(), 0);
}
