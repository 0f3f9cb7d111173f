//! Opening: the lock, the options, the epoch, and what is refused, without a write.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::time::{Duration, UNIX_EPOCH};

use refrain::testing::{FileSystem, HeapFs, Pages, SimClock, SimDisk};
use refrain::{
    Body, Claim, ClaimError, CloseError, Durability, EndCause, FencingToken, Lookup, OpenError,
    OptionProblem, Options, Store, StoreError,
};
use support::checksum::crc32;
use support::disk::{find_last, poke, read, replace, snapshot};

const SEGMENT_BYTES: u64 = 256 << 10;
/// Where the first segment of a data file starts.
const FIRST_SEGMENT: u64 = 32 << 10;

fn options(fs: &HeapFs) -> Options {
    Options::new("unused")
        .file_system(fs.clone())
        .segment_bytes(SEGMENT_BYTES)
        .manual_maintenance(true)
}

fn open(fs: &HeapFs) -> Store {
    options(fs).open().unwrap()
}

/// A store with some durable keys, closed or abandoned.
fn store_with(keys: &[&str], is_closed: bool) -> HeapFs {
    let fs = HeapFs::new();
    let store = open(&fs);
    let orders = store.namespace("orders").unwrap();
    for key in keys {
        let lease = orders.claim(key, None).unwrap().acquired().unwrap();
        lease.complete(format!("outcome of {key}")).unwrap();
    }
    if is_closed {
        store.close().unwrap();
    } else {
        store.flush().unwrap();
        store.abandon();
    }
    fs
}

fn assert_has(store: &Store, keys: &[&str]) {
    let orders = store.namespace("orders").unwrap();
    for key in keys {
        let Lookup::Completed(outcome) = orders.lookup(key).unwrap() else { panic!("{key}") };
        assert_eq!(outcome.body(), Body::Bytes(format!("outcome of {key}").as_bytes()));
    }
}

/// Opening is refused, and not a byte of the store is changed.
fn refuse(fs: &HeapFs) -> OpenError {
    let before = snapshot(fs);
    let error = options(fs).verify_at_open(true).open().unwrap_err();
    assert_eq!(snapshot(fs), before, "a refused store was written to: {error}");
    error
}

#[test]
#[cfg_attr(miri, ignore = "needs real files")]
fn a_second_opener_is_locked_out_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let refused = Store::open(directory.path()).unwrap_err();
    assert!(matches!(refused, OpenError::Locked { .. }), "{refused}");
    let clone = store.clone();
    drop(store);
    assert!(matches!(Store::open(directory.path()), Err(OpenError::Locked { .. })));
    drop(clone);
    let store = Store::open(directory.path()).unwrap();
    assert!(store.report().clean, "dropping the last handle closes in order");
}

#[test]
fn the_lock_outlives_the_store_as_long_as_a_lease_does() {
    let fs = HeapFs::new();
    let store = open(&fs);
    let lease = store.namespace("orders").unwrap().claim("a", None).unwrap().acquired().unwrap();
    let closed = store.close();
    assert!(matches!(closed, Err(CloseError::LeasesHeld(1))), "{closed:?}");
    drop(store);
    assert!(matches!(options(&fs).open(), Err(OpenError::Locked { .. })));
    lease.complete("outcome").unwrap();
    let store = open(&fs);
    assert!(store.report().clean);
    assert_eq!(store.report().completed, 1);
}

#[test]
fn a_closed_store_answers_closed_on_every_handle() {
    let fs = HeapFs::new();
    let store = open(&fs);
    let orders = store.namespace("orders").unwrap();
    let clone = store.clone();
    store.close().unwrap();
    assert!(matches!(clone.flush(), Err(StoreError::Closed)));
    assert!(matches!(clone.close(), Err(CloseError::Store(StoreError::Closed))));
    assert!(matches!(clone.orphans(), Err(StoreError::Closed)));
    assert!(clone.namespace("other").is_err());
    assert!(matches!(orders.lookup("a"), Err(StoreError::Closed)));
    let refused = orders.claim("a", None).unwrap_err();
    assert!(matches!(refused, ClaimError::Store(StoreError::Closed)), "{refused}");
    // The directory is free although handles are left.
    open(&fs);
}

#[test]
fn all_bad_options_are_reported_at_once() {
    let refused = Options::new("unused")
        .file_system(HeapFs::new())
        .shards(3)
        .lanes(5)
        .segment_bytes(1000)
        .durability(Durability::Interval(Duration::ZERO))
        .open()
        .unwrap_err();
    let OpenError::Options(problems) = refused else { panic!("{refused}") };
    assert_eq!(
        problems,
        [
            OptionProblem::Shards(3),
            OptionProblem::Lanes(5),
            OptionProblem::SegmentBytes(1000),
            OptionProblem::Interval(Duration::ZERO)
        ]
    );
    let refused = Options::in_memory().durability(Durability::Sync).open().unwrap_err();
    assert!(refused.to_string().contains("in memory"), "{refused}");
    assert!(Options::in_memory().shards(0).open().is_err());
    assert!(Options::in_memory().shards(2048).open().is_err());
    assert!(Options::in_memory().lanes(0).open().is_err());
    assert!(Options::in_memory().lanes(32).open().is_err());
    assert!(Options::in_memory().shards(1).segment_bytes(64 << 20).open().is_ok());
}

#[test]
fn the_segment_size_is_fixed_when_the_store_is_made() {
    let fs = store_with(&["a"], true);
    let refused = options(&fs).segment_bytes(512 << 10).open().unwrap_err();
    let OpenError::SegmentBytes { stored, asked } = refused else { panic!("{refused}") };
    assert_eq!((u64::from(stored), asked), (SEGMENT_BYTES, 512 << 10));
    let store = Options::new("unused").file_system(fs).manual_maintenance(true).open().unwrap();
    assert_has(&store, &["a"]);
}

#[test]
fn tokens_rise_across_opens_and_never_repeat() {
    let fs = HeapFs::new();
    let mut last = None;
    for round in 0..5 {
        let store = options(&fs).shards(1 << round).open().unwrap();
        assert_eq!(store.report().epoch, round + 1);
        let orders = store.namespace("orders").unwrap();
        for _ in 0..3 {
            let lease = orders.claim("a", None).unwrap().acquired().unwrap();
            assert!(Some(lease.token()) > last);
            last = Some(lease.token());
            lease.release().unwrap();
        }
        if round % 2 == 0 { store.close().unwrap() } else { store.abandon() }
    }
}

#[test]
fn a_shard_whose_counter_runs_out_goes_on_in_a_raised_epoch() {
    let fs = HeapFs::new();
    let first = (1 << 40) - 3;
    let store = options(&fs).shards(1).first_counter(first).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let mut tokens = vec![];
    for n in 0..8 {
        let lease = orders.claim(format!("{n}"), None).unwrap().acquired().unwrap();
        tokens.push(lease.token());
        // The store's own claims are no orphans.
        let Claim::InProgress(_) = orders.claim(format!("{n}"), None).unwrap() else { panic!() };
        lease.complete("").unwrap();
    }
    assert!(tokens.is_sorted() && tokens[7].get() >> 40 > tokens[0].get() >> 40, "{tokens:?}");
    store.close().unwrap();
    assert_eq!(open(&fs).report().epoch, 3, "the raised epoch was written down");
}

#[test]
fn a_copy_of_a_store_gives_other_tokens_than_the_original() {
    let fs = store_with(&["a"], true);
    let copy = fs.copy().unwrap();
    let (store, copied) = (open(&fs), open(&copy));
    assert!(!store.report().copied);
    assert!(copied.report().copied, "{:?}", copied.report());
    assert_eq!(copied.report().epoch, store.report().epoch + 65_536 - 1);
    assert_has(&copied, &["a"]);
    drop(copied);
    let again = open(&copy);
    assert!(!again.report().copied, "from then on it is a store of its own");
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let fs = store_with(&["a"], true);
    for slot in [0_usize, 4096] {
        let mut meta = read(&fs, "META");
        meta[slot + 8] = 9;
        let crc = crc32(&meta[slot..slot + 60]);
        meta[slot + 60..slot + 64].copy_from_slice(&crc.to_le_bytes());
        let copy = fs.copy().unwrap();
        poke(&copy, "META", 0, &meta);
        let refused = refuse(&copy);
        let OpenError::UnsupportedFormat { major, supported, .. } = refused else {
            panic!("{refused}")
        };
        assert_eq!((major, supported), (9, 2));
    }
}

#[test]
fn files_that_are_gone_are_named() {
    for (name, is_closed) in [("META", true), ("NAMES", true), ("data-00000", false)] {
        let fs = store_with(&["a"], is_closed);
        fs.remove(name).unwrap();
        let refused = refuse(&fs);
        let OpenError::MissingFile { path } = &refused else { panic!("{refused}") };
        assert!(path.ends_with(name), "{refused}");
    }
}

#[test]
fn files_of_another_store_or_of_the_wrong_size_are_refused() {
    let (fs, other) = (store_with(&["a"], true), store_with(&["b"], true));
    let cases: [(&str, Option<usize>); 6] = [
        ("META", None),
        ("NAMES", None),
        ("data-00000", None),
        ("META", Some(4096)),
        ("NAMES", Some(8)),
        ("data-00000", Some(100_000)),
    ];
    for (name, cut) in cases {
        let copy = fs.copy().unwrap();
        let bytes = match cut {
            None => read(&other, name),
            Some(len) => read(&fs, name)[..len].to_vec(),
        };
        replace(&copy, name, Some(&bytes));
        let refused = refuse(&copy);
        assert!(matches!(refused, OpenError::Corrupt { .. }), "{name} {cut:?}: {refused}");
    }
    let copy = fs.copy().unwrap();
    let mut longer = read(&fs, "data-00000");
    longer.push(0);
    replace(&copy, "data-00000", Some(&longer));
    assert!(matches!(refuse(&copy), OpenError::Corrupt { .. }));
}

#[test]
fn damage_below_the_mark_is_refused_with_file_and_offset() {
    for is_closed in [true, false] {
        let fs = store_with(&["first", "second", "third"], is_closed);
        let data = read(&fs, "data-00000");
        // The completion's body, and its key, at the end of the head; the head is 64 bytes.
        let in_body = find_last(&data, b"second");
        let in_key = find_last(&data[..in_body as usize], b"second");
        let start = in_key - 64;
        for at in [in_body, in_key, start, start + 4, start + 8, start + 63] {
            let copy = fs.copy().unwrap();
            poke(&copy, "data-00000", at, &[!data[at as usize]]);
            let refused = refuse(&copy);
            let OpenError::Corrupt { path, offset, .. } = &refused else { panic!("{refused}") };
            assert!(path.ends_with("data-00000"));
            assert_eq!(*offset, start, "{refused}");
        }
        // Cut out cleanly, at the record's start, to the end of the segment's data.
        let copy = fs.copy().unwrap();
        let segments = (start - FIRST_SEGMENT) / SEGMENT_BYTES + 1;
        // In front of the trailer and the index.
        let len = (FIRST_SEGMENT + segments * SEGMENT_BYTES - 64 - 3 * 32 - start) as usize;
        poke(&copy, "data-00000", start, &vec![0; len]);
        let refused = refuse(&copy);
        let OpenError::Corrupt { offset, .. } = &refused else { panic!("{refused}") };
        assert_eq!(*offset, start, "{refused}");
    }
}

#[test]
fn a_torn_tail_above_the_mark_is_cut_and_reported() {
    let fs = HeapFs::new();
    let store = options(&fs).durability(Durability::Buffered).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    for key in ["kept", "torn", "behind"] {
        let lease = orders.claim(key, None).unwrap().acquired().unwrap();
        lease.complete(format!("outcome of {key}")).unwrap();
        if key == "kept" {
            store.flush().unwrap();
        }
    }
    store.abandon();
    let data = read(&fs, "data-00000");
    // The completion of `torn`: its key comes before its body.
    let torn = find_last(&data[..find_last(&data, b"torn") as usize], b"torn") - 64;
    poke(&fs, "data-00000", torn + 30, b"?");
    let store = open(&fs);
    let report = store.report().clone();
    let [tail] = &report.torn_tails[..] else { panic!("{report:?}") };
    assert_eq!(tail.offset, torn);
    assert!(tail.bytes > 150 && tail.records == 1 && !tail.last_round_incomplete, "{tail:?}");
    assert_eq!(report.torn_bytes(), tail.bytes);
    assert_eq!(report.completed, 1);
    assert_has(&store, &["kept"]);
    let orders = store.namespace("orders").unwrap();
    assert!(matches!(orders.lookup("torn").unwrap(), Lookup::Lapsed(_)), "its claim is whole");
    assert!(matches!(orders.lookup("behind").unwrap(), Lookup::Lapsed(_)), "and so is this one");
    // What was cut stays cut, even if the damage heals.
    store.abandon();
    poke(&fs, "data-00000", torn + 30, &data[torn as usize + 30..][..1]);
    let store = open(&fs);
    assert!(store.report().torn_tails.is_empty(), "{:?}", store.report());
    assert_eq!(store.report().completed, 1);
}

#[test]
fn the_last_round_is_told_apart_from_a_plain_torn_tail() {
    let fs = HeapFs::new();
    let store = open(&fs);
    let orders = store.namespace("orders").unwrap();
    let lease = orders.claim("kept", None).unwrap().acquired().unwrap();
    lease.complete("outcome of kept").unwrap();
    store.flush().unwrap();
    // A round that ended; no later one has said so.
    drop(orders.claim("last", None).unwrap().acquired());
    store.abandon();
    let at = find_last(&read(&fs, "data-00000"), b"last");
    poke(&fs, "data-00000", at, b"lost");
    let store = open(&fs);
    let [tail] = &store.report().torn_tails[..] else { panic!("{:?}", store.report()) };
    assert!(tail.last_round_incomplete, "{tail:?}");
    assert_has(&store, &["kept"]);
}

#[test]
fn a_bad_meta_slot_loses_nothing_and_repeats_nothing() {
    for slot in [0, 4096] {
        for byte in [9, 70, 300, 2000, 4095] {
            let fs = store_with(&["a", "b"], false);
            let highest = open(&fs).report().epoch;
            let damaged = read(&fs, "META")[slot + byte];
            poke(&fs, "META", (slot + byte) as u64, &[!damaged]);
            let store = open(&fs);
            let report = store.report();
            assert!(report.meta_fallback && !report.clean, "{report:?}");
            assert!(report.epoch > highest, "{report:?}");
            assert_has(&store, &["a", "b"]);
            assert_eq!(store.namespaces(), ["orders"]);
            drop(store);
            let store = open(&fs);
            assert!(!store.report().meta_fallback, "the bad slot was written again");
        }
    }
}

#[test]
fn an_epoch_that_only_a_bad_slot_knows_is_not_given_again() {
    // The counter runs out, so the epoch is raised while the store is open, in one slot.
    let disk = SimDisk::new(5);
    let first = (1 << 40) - 3;
    let options = |disk: &SimDisk| {
        let options = Options::new("unused").file_system(disk.mount()).manual_maintenance(true);
        options.durability(Durability::Buffered).shards(1).segment_bytes(SEGMENT_BYTES)
    };
    let store = options(&disk).first_counter(first).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let tokens: Vec<_> = (0..9)
        .map(|key| orders.claim(format!("key-{key}"), None).unwrap().acquired().unwrap().token())
        .collect();
    let epoch = |token: &FencingToken| token.get() >> 40;
    assert!(epoch(&tokens[8]) == epoch(&tokens[0]) + 1, "{tokens:?}");
    // Nothing of it was synced but the meta file; then the newer slot goes bad.
    drop(orders);
    store.abandon();
    disk.cut_keeping(|_| false);
    drop(disk.mount());
    let slots = disk.read("META");
    let sequence =
        |slot: usize| u64::from_le_bytes(slots[slot + 64..slot + 72].try_into().unwrap());
    let newer = if sequence(0) > sequence(4096) { 0 } else { 4096 };
    disk.tamper("META", newer as u64 + 200, b"????????", None);
    let store = options(&disk).open().unwrap();
    assert!(store.report().meta_fallback);
    let orders = store.namespace("orders").unwrap();
    for key in 0..9 {
        let token = orders.claim(format!("key-{key}"), None).unwrap().acquired().unwrap().token();
        assert!(tokens.iter().all(|old| token > *old), "{token} after {tokens:?}");
    }
}

#[test]
fn what_was_flushed_is_proven_in_any_mode() {
    for (durability, closes) in [
        (Durability::Sync, false),
        (Durability::Buffered, false),
        (Durability::Buffered, true),
        (Durability::Interval(Duration::from_secs(60)), false),
    ] {
        let fs = HeapFs::new();
        let store = options(&fs).durability(durability).open().unwrap();
        let orders = store.namespace("orders").unwrap();
        for key in ["one", "the last"] {
            orders.claim(key, None).unwrap().acquired().unwrap().complete("outcome").unwrap();
        }
        drop(orders);
        if closes {
            store.close().unwrap();
        } else {
            store.flush().unwrap();
            store.abandon();
        }
        // So damage to it is damage, and no torn tail.
        let at = find_last(&read(&fs, "data-00000"), b"the last");
        poke(&fs, "data-00000", at, b"?");
        let error = refuse(&fs);
        assert!(matches!(error, OpenError::Corrupt { .. }), "{durability:?}: {error}");
    }
}

#[test]
fn a_lost_meta_write_loses_no_namespace_and_no_file() {
    // Only one slot is left, and it is the one from before a namespace was made and before the
    // store grew.
    let fs = HeapFs::new();
    let store = options(&fs).durability(Durability::Buffered).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let big = vec![7; 100_000];
    for n in 0..40 {
        let lease = orders.claim(format!("{n}"), None).unwrap().acquired().unwrap();
        lease.complete(&big).unwrap();
    }
    let before = read(&fs, "META");
    store.namespace("late").unwrap();
    let at = read(&fs, "META").iter().zip(&before).position(|(a, b)| a != b).unwrap();
    poke(&fs, "META", (at / 4096 * 4096) as u64, &[0; 4096]);
    store.flush().unwrap();
    store.abandon();
    let store = open(&fs);
    assert!(store.report().meta_fallback);
    assert_eq!(store.namespaces(), ["late", "orders"]);
    assert_eq!(store.report().completed, 40);
    assert!(store.report().files > 1, "{:?}", store.report());
}

#[test]
fn a_meta_file_older_than_the_data_is_refused() {
    let fs = HeapFs::new();
    open(&fs).close().unwrap();
    let old = read(&fs, "META");
    let store = open(&fs);
    let orders = store.namespace("orders").unwrap();
    drop(orders.claim("a", None).unwrap().acquired());
    store.close().unwrap();
    poke(&fs, "META", 0, &old);
    let refused = refuse(&fs);
    assert!(matches!(refused, OpenError::Corrupt { .. }), "{refused}");
}

#[test]
fn files_of_unfinished_growth_are_removed_and_used_ones_never() {
    let fs = store_with(&["a"], true);
    fs.create_new("data-00001").unwrap().zero_fill(0, 300_000, Pages::Small).unwrap();
    fs.create_new("unrelated.txt").unwrap();
    let store = open(&fs);
    let names = fs.list().unwrap();
    assert!(!names.contains(&"data-00001".to_owned()), "{names:?}");
    assert!(names.contains(&"unrelated.txt".to_owned()), "{names:?}");
    assert_has(&store, &["a"]);
    drop(store);

    // A file that holds records, and that the meta file does not list: the meta file is an old one.
    let fs = HeapFs::new();
    let store = options(&fs).durability(Durability::Buffered).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let old = read(&fs, "META");
    let big = vec![7; 100_000];
    for n in 0..40 {
        let lease = orders.claim(format!("{n}"), None).unwrap().acquired().unwrap();
        lease.complete(&big).unwrap();
    }
    store.close().unwrap();
    assert!(fs.list().unwrap().contains(&"data-00001".to_owned()));
    poke(&fs, "META", 0, &old);
    let refused = refuse(&fs);
    assert!(matches!(refused, OpenError::Corrupt { .. }), "{refused}");
}

#[test]
fn an_interrupted_creation_is_begun_again() {
    let fs = HeapFs::new();
    fs.create_new("NAMES").unwrap();
    fs.create_new("META.new").unwrap();
    let store = open(&fs);
    assert!(store.report().created);
    drop(store);
    assert!(!open(&fs).report().created);
}

#[test]
fn claims_of_a_dead_process_are_orphans_whatever_the_clock_says() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = options(&fs).clock(clock.clone()).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let token = orders.claim("a", None).unwrap().acquired().unwrap().token();
    store.abandon();
    let store = options(&fs).clock(clock.clone()).open().unwrap();
    assert_eq!(store.report().orphaned, 1);
    let orphans = store.orphans().unwrap();
    assert_eq!((orphans[0].key(), orphans[0].token()), (&b"a"[..], token));
    let orders = store.namespace("orders").unwrap();
    let lease = orders.claim("a", None).unwrap().acquired().unwrap();
    assert_eq!(lease.attempt(), 2);
    let previous = lease.previous().unwrap();
    assert_eq!((previous.token(), previous.cause()), (token, EndCause::Orphaned));
    assert!(store.orphans().unwrap().is_empty());
}

#[test]
fn a_wall_clock_set_back_brings_nothing_back() {
    for is_closed in [true, false] {
        let (fs, clock) = (HeapFs::new(), SimClock::new());
        let store = options(&fs).clock(clock.clone()).open().unwrap();
        let orders = store.namespace("orders").unwrap();
        let lease = orders.claim("a", None).unwrap().acquired().unwrap();
        lease.complete("outcome").unwrap();
        clock.advance(Duration::from_secs(24 * 3600));
        assert!(matches!(orders.lookup("a").unwrap(), Lookup::Absent));
        let lease = orders.claim("b", None).unwrap().acquired().unwrap();
        lease.complete("outcome").unwrap();
        if is_closed {
            store.close().unwrap()
        } else {
            store.abandon()
        }
        clock.set_wall(UNIX_EPOCH);
        let store = options(&fs).clock(clock.clone()).open().unwrap();
        assert!(store.report().clock_behind > Duration::from_secs(40 * 365 * 24 * 3600));
        let orders = store.namespace("orders").unwrap();
        assert!(matches!(orders.lookup("a").unwrap(), Lookup::Absent));
        assert!(matches!(orders.lookup("b").unwrap(), Lookup::Completed(_)));
    }
}

#[test]
fn a_wall_clock_far_ahead_is_reported_and_refused_if_asked() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = options(&fs).clock(clock.clone()).open().unwrap();
    let lease = store.namespace("orders").unwrap().claim("a", None).unwrap().acquired().unwrap();
    lease.complete("outcome").unwrap();
    store.close().unwrap();
    clock.advance(Duration::from_secs(3 * 3600));
    let before = snapshot(&fs);
    let careful = options(&fs).clock(clock.clone()).max_clock_jump(Duration::from_secs(3600));
    let refused = careful.open().unwrap_err();
    assert!(matches!(refused, OpenError::ClockJumped { .. }), "{refused}");
    assert_eq!(snapshot(&fs), before);
    let store = options(&fs).clock(clock).open().unwrap();
    assert_eq!(store.report().clock_ahead, Duration::from_secs(3 * 3600));
}

#[test]
fn recovering_twice_is_recovering_once() {
    let fs = store_with(&["a", "b", "c"], false);
    let first = open(&fs);
    let report = first.report().clone();
    first.abandon();
    let second = open(&fs);
    assert_eq!(second.report().completed, report.completed);
    assert_eq!(second.report().records, report.records);
    assert_has(&second, &["a", "b", "c"]);
    second.check_invariants().unwrap();
}

#[test]
fn a_crash_in_the_middle_of_opening_changes_nothing() {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    // Stop the open at its n-th step, for every n, and open again.
    for n in 0.. {
        let fs = store_with(&["a", "b"], false);
        let left = Arc::new(AtomicU64::new(n));
        let countdown = Arc::clone(&left);
        let stopping = support::disk::HookFs::new(fs.clone(), move |_, _| {
            let stop = countdown
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            stop.map(drop).map_err(|_| io::Error::other("the disk is gone"))
        });
        let opened = Options::new("unused").file_system(stopping).manual_maintenance(true).open();
        let is_through = opened.is_ok();
        if let Ok(store) = opened {
            store.abandon();
        }
        let store = open(&fs);
        assert_has(&store, &["a", "b"]);
        assert_eq!(store.namespaces(), ["orders"]);
        if is_through {
            println!("opening takes {n} steps");
            assert!(n > 20);
            break;
        }
    }
}

#[test]
fn a_store_in_memory_forgets_with_its_last_handle() {
    let store = Store::in_memory().unwrap();
    let orders = store.namespace("orders").unwrap();
    drop(store);
    let lease = orders.claim("a", None).unwrap().acquired().unwrap();
    lease.complete("outcome").unwrap();
    assert!(orders.claim("a", None).unwrap().completed().is_some());
}
