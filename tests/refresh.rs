//! Windows that duplicates extend.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, SystemTime};

use refrain::testing::{Crash, HeapFs, SimClock, SimDisk};
use refrain::{
    Body, Claim, ClaimOptions, CompleteOptions, Durability, Fingerprint, Lookup, Namespace, Once,
    Options, Policy, RefreshOnHit, Store, StoreError,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

fn policy() -> Policy {
    let policy = Policy::default().lease(SECOND).late_grace(SECOND).replay_ttl(HOUR);
    policy.dedupe_ttl(HOUR).refresh_on_hit(RefreshOnHit::BelowHalf)
}

fn open(fs: &HeapFs, clock: &SimClock) -> Store {
    Options::new("unused").file_system(fs.clone()).clock(clock.clone()).open().unwrap()
}

fn on_disk(disk: &SimDisk, clock: &SimClock, durability: Durability) -> Store {
    let options = Options::new("unused").file_system(disk.mount()).clock(clock.clone());
    let options = options.segment_bytes(256 << 10).durability(durability);
    options.manual_maintenance(true).open().unwrap()
}

fn complete(space: &Namespace, key: &str, body: &[u8]) {
    space.claim(key, None).unwrap().acquired().unwrap().complete(body).unwrap();
}

/// Until when a duplicate is told that the key is remembered.
fn hit(space: &Namespace, key: &str) -> SystemTime {
    match space.claim(key, None).unwrap() {
        Claim::Completed(outcome) => outcome.guaranteed_until().unwrap(),
        other => panic!("{other:?}"),
    }
}

fn looked_up(space: &Namespace, key: &str) -> Option<SystemTime> {
    match space.lookup(key).unwrap() {
        Lookup::Completed(outcome) => outcome.guaranteed_until(),
        Lookup::Absent => None,
        other => panic!("{other:?}"),
    }
}

/// Lets segments go whose time has come.
fn settle(store: &Store, clock: &SimClock) {
    for _ in 0..6 {
        clock.advance(2 * SECOND);
        store.maintain(Duration::MAX);
    }
}

#[test]
fn a_duplicate_extends_the_window_when_little_of_it_is_left() {
    let shares = [
        (RefreshOnHit::BelowHalf, 2),
        (RefreshOnHit::BelowQuarter, 4),
        (RefreshOnHit::BelowEighth, 8),
    ];
    for (rule, parts) in shares {
        let (fs, clock) = (HeapFs::new(), SimClock::new());
        let store = open(&fs, &clock);
        let space = store.define("space", &policy().refresh_on_hit(rule)).unwrap();
        complete(&space, "key", b"done");
        let first = clock.wall() + HOUR;
        clock.advance(HOUR - HOUR / parts);
        assert_eq!(hit(&space, "key"), first);
        clock.advance(Duration::from_millis(1));
        let second = clock.wall() + HOUR;
        assert_eq!(hit(&space, "key"), second);
        assert_eq!(looked_up(&space, "key"), Some(second));
        // Asked again at once, it is not written again.
        clock.advance(MINUTE);
        assert_eq!(hit(&space, "key"), second);
        clock.advance(HOUR - 2 * MINUTE);
        assert_eq!(looked_up(&space, "key"), Some(second));
        clock.advance(2 * MINUTE);
        assert_eq!(looked_up(&space, "key"), None);
        assert!(space.claim("key", None).unwrap().acquired().is_some());
    }
}

/// What it costs: a write in half a window at most, however often the key is asked for.
#[test]
fn a_key_that_is_asked_for_all_the_time_is_written_once_in_half_a_window() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let space = store.define("space", &policy()).unwrap();
    complete(&space, "key", b"done");
    let (mut last, mut changes) = (hit(&space, "key"), 0);
    for _ in 0..10 * 60 {
        clock.advance(MINUTE);
        let until = hit(&space, "key");
        assert!(until >= last && until >= clock.wall() + HOUR / 2);
        changes += u64::from(until > last);
        last = until;
    }
    assert!((15..=20).contains(&changes), "{changes}");
    assert_eq!(store.stats().entries, 1);
}

#[test]
fn nothing_is_extended_that_was_not_asked_for() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let space = store.define("space", &policy()).unwrap();
    let plain = store.define("plain", &policy().refresh_on_hit(RefreshOnHit::Never)).unwrap();
    complete(&plain, "key", b"done");
    complete(&space, "looked up", b"done");
    let asks = |of: &[u8]| ClaimOptions::new().fingerprint(Fingerprint::of(of));
    let lease = space.claim_with("other payload", &asks(b"one")).unwrap().acquired().unwrap();
    lease.complete("done").unwrap();
    // A window that the call asked for is what it asked for.
    let own = CompleteOptions::body(b"done").dedupe_ttl(50 * MINUTE).replay_ttl(50 * MINUTE);
    space.claim("own", None).unwrap().acquired().unwrap().complete_with(&own).unwrap();
    let marked = space.once_with("marked", &ClaimOptions::new().dedupe_ttl(50 * MINUTE)).unwrap();
    assert!(matches!(marked, Once::First(_)));
    let end = clock.wall() + HOUR;
    // The rule of the time at which it was completed.
    store.alter("plain", &policy()).unwrap();
    clock.advance(45 * MINUTE);
    assert_eq!(hit(&plain, "key"), end);
    assert_eq!(looked_up(&space, "looked up"), Some(end));
    assert_eq!(looked_up(&space, "looked up"), Some(end));
    let mismatch = space.claim_with("other payload", &asks(b"two")).unwrap();
    assert!(matches!(mismatch, Claim::Mismatch(_)));
    assert_eq!(looked_up(&space, "other payload"), Some(end));
    assert_eq!(hit(&space, "own"), end - 10 * MINUTE);
    assert_eq!(hit(&space, "marked"), end - 10 * MINUTE);
    // It may be called off.
    store.alter("space", &policy().refresh_on_hit(RefreshOnHit::Never)).unwrap();
    assert_eq!(hit(&space, "looked up"), end);
    store.alter("space", &policy()).unwrap();
    assert_eq!(hit(&space, "looked up"), clock.wall() + HOUR);
}

#[test]
fn marks_and_batches_and_who_waits_extend_it_too() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let space = store.define("space", &policy()).unwrap();
    let keys = ["a", "b", "c", "d", "e"];
    for key in keys {
        assert!(matches!(space.once(key, None).unwrap(), Once::First(_)));
    }
    clock.advance(45 * MINUTE);
    let options = ClaimOptions::new();
    assert!(matches!(space.once("a", None).unwrap(), Once::Seen(_)));
    let claims = space.claim_batch(&[("b", options)]);
    assert!(matches!(claims[..], [Ok(Claim::Completed(_))]));
    assert!(matches!(space.once_batch(&[("c", options)])[..], [Ok(Once::Seen(_))]));
    let waited = space.claim_or_wait("d", &options, SECOND).wait().unwrap();
    assert!(matches!(waited, Claim::Completed(_)));
    let claimed = space.claim_async("e", &options).wait().unwrap();
    assert!(matches!(claimed, Claim::Completed(_)));
    let end = clock.wall() + HOUR;
    assert!(keys.iter().all(|key| looked_up(&space, key) == Some(end)));
    store.close().unwrap();
    let space = open(&fs, &clock).namespace("space").unwrap();
    assert!(keys.iter().all(|key| looked_up(&space, key) == Some(end)));
}

/// The replay window counts from completion, whatever becomes of the key; until it ends the bytes are the same ones.
#[test]
fn a_body_is_kept_for_its_own_time() {
    for len in [0, 10, 9000, 100_000] {
        let (fs, clock) = (HeapFs::new(), SimClock::new());
        let options = Options::new("unused").file_system(fs.clone()).clock(clock.clone());
        let store = options.manual_maintenance(true).open().unwrap();
        let space = store.define("space", &policy().replay_ttl(40 * MINUTE)).unwrap();
        let body: Vec<u8> = (0..len).map(|at: u32| at as u8).collect();
        let completion = space.claim("key", None).unwrap().acquired().unwrap();
        let token = completion.token();
        let completed = CompleteOptions::body(&body).code(7);
        completion.complete_with(&completed).unwrap();
        clock.advance(35 * MINUTE);
        hit(&space, "key");
        let check = |space: &Namespace, is_there: bool| {
            let Lookup::Completed(outcome) = space.lookup("key").unwrap() else { panic!() };
            let expected = if is_there { Body::Bytes(&body) } else { Body::Expired };
            assert_eq!((outcome.body(), outcome.code()), (expected, 7));
            assert_eq!((outcome.token(), outcome.attempt()), (token, 1));
            assert!(outcome.age() > 30 * MINUTE);
            // And completing it again is no error.
            assert_eq!(space.complete_with("key", token, &completed).unwrap().token(), token);
        };
        check(&space, true);
        settle(&store, &clock);
        check(&space, true);
        clock.advance(10 * MINUTE);
        check(&space, false);
        settle(&store, &clock);
        // Now without its body.
        clock.advance(30 * MINUTE);
        let end = clock.wall() + HOUR;
        assert_eq!(hit(&space, "key"), end);
        check(&space, false);
        store.close().unwrap();
        let store = open(&fs, &clock);
        let space = store.namespace("space").unwrap();
        check(&space, false);
        assert_eq!(looked_up(&space, "key"), Some(end));
    }
}

/// What a duplicate was told holds, whatever ends the process, and whoever it was told to.
#[test]
fn an_end_that_was_told_survives_a_power_cut() {
    for asks_early in [false, true] {
        for cut in 0..16 {
            let (disk, clock) = (SimDisk::new(cut), SimClock::new());
            let store = on_disk(&disk, &clock, Durability::Sync);
            let space = store.define("space", &policy()).unwrap();
            let done = CompleteOptions::body(b"done");
            // What is asked of the completion is not asked of this.
            let done = if cut % 2 == 0 { done } else { done.buffered() };
            space.claim("key", None).unwrap().acquired().unwrap().complete_with(&done).unwrap();
            store.flush().unwrap();
            clock.advance(45 * MINUTE);
            // One that does not wait for it, and tells nobody.
            let options = ClaimOptions::new();
            let early = asks_early.then(|| space.claim_async("key", &options.buffered()));
            let told = hit(&space, "key");
            assert_eq!(told, clock.wall() + HOUR);
            drop(early);
            disk.crash(Crash::PowerCut);
            store.abandon();
            let store = on_disk(&disk, &clock, Durability::Sync);
            let space = store.namespace("space").unwrap();
            assert_eq!(looked_up(&space, "key"), Some(told));
            clock.advance(30 * MINUTE);
            // By the indexes, too.
            store.close().unwrap();
            let store = on_disk(&disk, &clock, Durability::Sync);
            assert_eq!(looked_up(&store.namespace("space").unwrap(), "key"), Some(told));
            store.abandon();
        }
    }
}

/// A kill loses nothing; a power cut in `Buffered` mode may lose what was not synced, and then it is as it was.
#[test]
fn a_buffered_end_survives_a_kill_and_a_power_cut_leaves_one_of_both() {
    let mut lost = 0;
    for cut in 0..24 {
        for crash in [Crash::Kill, Crash::PowerCut] {
            let (disk, clock) = (SimDisk::new(cut), SimClock::new());
            let store = on_disk(&disk, &clock, Durability::Buffered);
            let space = store.define("space", &policy()).unwrap();
            complete(&space, "key", b"done");
            let before = hit(&space, "key");
            store.flush().unwrap();
            clock.advance(45 * MINUTE);
            let told = hit(&space, "key");
            let synced = cut % 2 == 0;
            if synced {
                let Claim::Completed(_) =
                    space.claim_with("key", &ClaimOptions::new().sync()).unwrap()
                else {
                    panic!()
                };
                store.flush().unwrap();
            }
            disk.crash(crash);
            store.abandon();
            let store = on_disk(&disk, &clock, Durability::Buffered);
            let found = looked_up(&store.namespace("space").unwrap(), "key").unwrap();
            if crash == Crash::Kill || synced {
                assert_eq!(found, told);
            } else {
                assert!(found == told || found == before);
                lost += u64::from(found == before);
            }
            store.abandon();
        }
    }
    assert!(lost > 0, "no cut lost anything");
}

/// The process ends at each step of it.
#[test]
fn wherever_the_process_ends_the_key_has_one_of_its_ends() {
    for crash in [Crash::Kill, Crash::PowerCut] {
        let mut ended = 0;
        for steps in 0.. {
            let (disk, clock) = (SimDisk::new(steps), SimClock::new());
            let store = on_disk(&disk, &clock, Durability::Sync);
            let space = store.define("space", &policy()).unwrap();
            complete(&space, "key", &[7; 9000]);
            let before = hit(&space, "key");
            clock.advance(45 * MINUTE);
            let later = clock.wall() + HOUR;
            disk.crash_after(steps, crash);
            let answer = space.claim("key", None);
            let was_ended = disk.crashed().is_some();
            if !was_ended {
                assert!(matches!(answer.unwrap(), Claim::Completed(_)));
                disk.call_off_crash();
                disk.crash(crash);
            }
            store.abandon();
            let store = on_disk(&disk, &clock, Durability::Sync);
            let space = store.namespace("space").unwrap();
            let found = looked_up(&space, "key").unwrap();
            assert!(found == later || was_ended && found == before, "{crash:?} at {steps}");
            assert_eq!(hit(&space, "key"), later);
            store.abandon();
            ended += u64::from(was_ended);
            if !was_ended {
                break;
            }
        }
        assert!(ended > 1, "{crash:?}: {ended}");
    }
}

/// The segment of the first completion goes at its time, and the key stays; then it goes too, and nothing comes back.
#[test]
fn segments_of_earlier_ends_go_and_take_nothing_with_them() {
    for steps in (0..400).step_by(7) {
        let (disk, clock) = (SimDisk::new(steps), SimClock::new());
        let store = on_disk(&disk, &clock, Durability::Sync);
        let space = store.define("space", &policy()).unwrap();
        for number in 0..40 {
            complete(&space, &format!("{number}"), &[7; 4000]);
        }
        clock.advance(45 * MINUTE);
        let later = clock.wall() + HOUR;
        for number in 0..20 {
            assert_eq!(hit(&space, &format!("{number}")), later);
        }
        assert!(space.forget("19", "a test", "nobody").unwrap().is_some());
        clock.advance(20 * MINUTE);
        disk.crash_after(steps, Crash::PowerCut);
        settle(&store, &clock);
        let was_ended = disk.crashed().is_some();
        store.abandon();
        if !was_ended {
            disk.call_off_crash();
            disk.crash(Crash::PowerCut);
        }
        let store = on_disk(&disk, &clock, Durability::Sync);
        let check = |store: &Store, is_over: bool| {
            let space = store.namespace("space").unwrap();
            for number in 0..40 {
                let is_there = number < 19 && !is_over;
                let found = looked_up(&space, &format!("{number}"));
                assert_eq!(found, is_there.then_some(later), "{number} at {steps}");
            }
        };
        check(&store, false);
        settle(&store, &clock);
        check(&store, false);
        store.close().unwrap();
        let store = on_disk(&disk, &clock, Durability::Sync);
        check(&store, false);
        clock.advance(HOUR);
        check(&store, true);
        settle(&store, &clock);
        store.abandon();
        let store = on_disk(&disk, &clock, Durability::Sync);
        check(&store, true);
        assert_eq!(store.stats().entries, 0);
        store.abandon();
    }
}

/// There is no room: the answer is what it was, and says until when.
#[test]
fn on_a_full_disk_the_window_stays_and_the_answer_is_true() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let options = Options::new("unused").file_system(fs.clone()).clock(clock.clone());
    let options = options.segment_bytes(256 << 10).manual_maintenance(true);
    let store = options.open().unwrap();
    let space = store.define("space", &policy()).unwrap();
    complete(&space, "key", &[7; 100_000]);
    let end = hit(&space, "key");
    fs.set_room(0);
    let mut held = Vec::new();
    let long = ClaimOptions::new().lease(HOUR);
    for number in 0.. {
        match space.claim_with([&[1; 4000], &u32::to_le_bytes(number)[..]].concat(), &long) {
            Ok(claim) => held.push(claim.acquired().unwrap()),
            Err(_) => break,
        }
    }
    clock.advance(45 * MINUTE);
    assert_eq!(hit(&space, "key"), end);
    assert_eq!(looked_up(&space, "key"), Some(end));
    // Those that were granted can be ended, all of them.
    assert!(held.into_iter().all(|lease| lease.complete("done").is_ok()));
    fs.set_room(u64::MAX);
    assert_eq!(hit(&space, "key"), clock.wall() + HOUR);
}

/// A round that fails after it was written leaves the caller without an answer, and with neither end lost.
#[test]
fn a_failed_sync_is_told() {
    let (disk, clock) = (SimDisk::new(3), SimClock::new());
    let store = on_disk(&disk, &clock, Durability::Sync);
    let space = store.define("space", &policy()).unwrap();
    complete(&space, "key", b"done");
    clock.advance(45 * MINUTE);
    disk.fail(refrain::testing::Fault {
        operation: "sync",
        after: 0,
        times: u64::MAX,
        error: std::io::ErrorKind::Other,
    });
    let failed = space.claim("key", None).unwrap_err();
    let is_unknown = |error: &refrain::ClaimError| {
        matches!(error, refrain::ClaimError::Store(StoreError::Unknown { .. }))
    };
    assert!(is_unknown(&failed), "{failed}");
    assert!(store.poisoned().is_some());
}

/// Many ask at once: all are told the same later end, and it is written once.
#[test]
fn of_many_who_ask_at_once_one_extends_it() {
    for durability in [Durability::Sync, Durability::Buffered] {
        let (disk, clock) = (SimDisk::new(3), SimClock::new());
        let store = on_disk(&disk, &clock, durability);
        let space = store.define("space", &policy()).unwrap();
        // What is written is seen by the bytes of it.
        complete(&space, "key", &[7; 100_000]);
        clock.advance(45 * MINUTE);
        let later = clock.wall() + HOUR;
        let used = store.stats().record_bytes;
        let together = Barrier::new(8);
        thread::scope(|scope| {
            for _ in 0..8 {
                let space = space.clone();
                scope.spawn(|| {
                    let space = space;
                    together.wait();
                    for _ in 0..50 {
                        assert_eq!(hit(&space, "key"), later);
                    }
                });
            }
        });
        let grown = store.stats().record_bytes - used;
        assert!((100_000..200_000).contains(&grown), "{grown}");
        store.abandon();
    }
}

/// One forgets while others ask for it: it is forgotten, or asked for before.
#[test]
fn a_key_that_is_forgotten_meanwhile_stays_forgotten() {
    let (disk, clock) = (SimDisk::new(3), SimClock::new());
    let store = on_disk(&disk, &clock, Durability::Buffered);
    let space = store.define("space", &policy()).unwrap();
    for round in 0..200 {
        let key = format!("{round}");
        assert!(matches!(space.once(&key, None).unwrap(), Once::First(_)));
        clock.advance(45 * MINUTE);
        let together = Barrier::new(3);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    together.wait();
                    let options = ClaimOptions::new().lease(HOUR);
                    drop(space.claim_with(&key, &options).unwrap());
                });
            }
            together.wait();
            space.forget(&key, "a test", "nobody").unwrap();
        });
        space.forget(&key, "a test", "nobody").unwrap();
        assert!(matches!(space.lookup(&key).unwrap(), Lookup::Absent));
    }
    store.check_invariants().unwrap();
    disk.crash(Crash::Kill);
    store.abandon();
    let store = on_disk(&disk, &clock, Durability::Buffered);
    let space = store.namespace("space").unwrap();
    for round in 0..200 {
        assert!(matches!(space.lookup(format!("{round}")).unwrap(), Lookup::Absent));
    }
    store.abandon();
}

/// Versions that do not know of it refuse the store: they would take the earlier end.
#[test]
fn a_store_that_refreshes_says_so() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let features = || support::disk::read(&fs, "META").chunks(4096).map(|slot| slot[20]).max();
    let store = open(&fs, &clock);
    store.define("space", &policy().refresh_on_hit(RefreshOnHit::Never)).unwrap();
    assert_eq!(features(), Some(0));
    store.alter("space", &policy()).unwrap();
    assert_eq!(features(), Some(2));
    // What was written under the rule stays.
    store.alter("space", &policy().refresh_on_hit(RefreshOnHit::Never)).unwrap();
    store.close().unwrap();
    drop(store);
    open(&fs, &clock).close().unwrap();
    let slots = support::disk::read(&fs, "META");
    assert!(slots.chunks(4096).all(|slot| slot[20] == 2));
    let store = open(&fs, &clock);
    assert_eq!(store.namespace("space").unwrap().policy().refresh_on_hit, RefreshOnHit::Never);
}

/// A salvaged store has the later end, and its rule.
#[test]
fn salvage_keeps_the_later_end() {
    let (disk, clock) = (SimDisk::new(3), SimClock::new());
    let store = on_disk(&disk, &clock, Durability::Sync);
    let space = store.define("space", &policy()).unwrap();
    complete(&space, "key", b"done");
    clock.advance(45 * MINUTE);
    let told = hit(&space, "key");
    store.close().unwrap();
    let target = SimDisk::new(4);
    let options =
        |disk: &SimDisk| Options::new("unused").file_system(disk.mount()).clock(clock.clone());
    let report = options(&disk).salvage(options(&target)).unwrap();
    assert_eq!((report.gaps, report.damage.len()), (0, 0));
    let store = options(&target).open().unwrap();
    let space = store.namespace("space").unwrap();
    assert_eq!(looked_up(&space, "key"), Some(told));
    clock.advance(50 * MINUTE);
    assert_eq!(hit(&space, "key"), clock.wall() + HOUR);
}
