//! What is erased is off the disk: in no file, whatever has become of it before; and nothing else is gone.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use refrain::testing::{Crash, FileSystem, HeapFs, SimClock, SimDisk};
use refrain::{
    Body, ClaimOptions, CompleteOptions, Durability, Erasable, EraseError, ForgetError, Lease,
    Lookup, Namespace, OnLeaseEnd, Options, Outcome, Policy, Reference, Store, StoreError,
};
use support::disk::{HookFs, find_last, poke, read};

const HOUR: Duration = Duration::from_secs(3600);
const SEGMENT_BYTES: u64 = 256 << 10;
/// By a clock that moves only while nothing else is to be done.
const SOON: Duration = Duration::from_secs(5);

fn options(fs: &HeapFs, clock: &SimClock) -> Options {
    let options = Options::new("unused").file_system(fs.clone()).clock(clock.clone());
    options.segment_bytes(SEGMENT_BYTES).manual_maintenance(true)
}

fn policy() -> Policy {
    let policy = Policy::default().lease(HOUR).replay_ttl(HOUR).dedupe_ttl(HOUR);
    policy.on_lease_end(OnLeaseEnd::Park)
}

fn body(key: &str) -> String {
    format!("the answer to {key}")
}

fn complete(space: &Namespace, key: &str) {
    let lease = space.claim(key, None).unwrap().acquired().unwrap();
    lease.complete(body(key).as_bytes()).unwrap();
}

fn is_known(space: &Namespace, key: &str) -> bool {
    space.lookup(key).unwrap() != Lookup::Absent
}

/// How often these bytes are in any file.
fn count(fs: &HeapFs, wanted: &[u8]) -> usize {
    let in_file = |name: &String| {
        let bytes = read(fs, name);
        bytes.windows(wanted.len()).filter(|window| window == &wanted).count()
    };
    fs.list().unwrap().iter().filter(|name| *name != "LOCK").map(in_file).sum()
}

/// Keys in each state that a key can be in, and such as were.
fn fill(space: &Namespace, mark: &str) {
    let key = |name: &str| format!("{mark}-{name}");
    (0..60).for_each(|n| complete(space, &key(&n.to_string())));
    drop(space.claim(key("held"), None).unwrap());
    let reference = ClaimOptions::new().reference(Reference(*b"reference of it!"));
    let mut lease = space.claim_with(key("renewed"), &reference).unwrap().acquired().unwrap();
    lease.renew().unwrap();
    lease.park().unwrap();
    space.claim(key("released"), None).unwrap().acquired().unwrap().release().unwrap();
    drop(space.once(key("marked"), None).unwrap());
    complete(space, &key("forgotten"));
    space.forget(key("forgotten"), &format!("{mark} wants it"), "somebody").unwrap();
    let lease = space.claim(key("brief"), None).unwrap().acquired().unwrap();
    let brief = CompleteOptions::body(b"soon over").dedupe_ttl(Duration::from_secs(2));
    lease.complete_with(&brief).unwrap();
}

/// A namespace with two scopes, and another one with the same.
fn spaces(store: &Store) -> [Namespace; 4] {
    let [first, second] = ["first", "second"].map(|name| store.define(name, &policy()).unwrap());
    [first.scoped("acme").unwrap(), first.scoped("zenith").unwrap(), first, second]
}

const MARKS: [&str; 4] = ["from-acme", "from-zenith", "of-no-scope", "elsewhere"];

/// Of each mark, whether all keys are known that should be, or none, and whether the disk has any of it.
fn found(fs: &HeapFs, store: &Store) -> [bool; 4] {
    let all = spaces(store);
    std::array::from_fn(|at| {
        let (space, mark) = (&all[at], MARKS[at]);
        let known = ["7", "59", "held", "renewed", "marked"]
            .map(|name| is_known(space, &format!("{mark}-{name}")));
        assert!(known == [true; 5] || known == [false; 5], "{mark}: {known:?}");
        if known[0]
            && let Lookup::Completed(outcome) = space.lookup(format!("{mark}-7")).unwrap()
        {
            let wanted = body(&format!("{mark}-7"));
            assert!(matches!(outcome.body(), Body::Bytes(bytes) if *bytes == *wanted.as_bytes()));
        }
        assert_eq!(count(fs, mark.as_bytes()) > 0, known[0], "{mark}");
        known[0]
    })
}

#[test]
fn what_is_erased_is_in_no_file_and_nothing_else_is_gone() {
    for mode in [Durability::Sync, Durability::Buffered, Durability::Interval(SOON)] {
        let (fs, clock) = (HeapFs::new(), SimClock::new());
        let options = || options(&fs, &clock).durability(mode);
        let store = options().open().unwrap();
        for (space, mark) in spaces(&store).iter().zip(MARKS) {
            fill(space, mark);
        }
        clock.advance(Duration::from_secs(3));
        assert_eq!(found(&fs, &store), [true; 4]);
        let [acme, zenith, first, second] = spaces(&store);
        let features = || read(&fs, "META").chunks(4096).map(|slot| slot[20] & 16).max();
        assert_eq!(features(), Some(0));
        let erased = acme.erase_all("he wants it", "operator 3", SOON).unwrap();
        assert_eq!((erased.keys, erased.segments > 0), (63, true));
        assert_eq!(features(), Some(16), "versions that do not know erasures keep out");
        assert_eq!(found(&fs, &store), [false, true, true, true]);
        // Who is erased once more is found to be nowhere.
        let erased = acme.erase_all("he wants it", "operator 3", SOON).unwrap();
        assert_eq!((erased.keys, erased.segments), (0, 0));
        drop((acme, zenith, first, second));
        store.abandon();
        // As a later process finds it, with what it has copied itself.
        let store = options().open().unwrap();
        assert_eq!(found(&fs, &store), [false, true, true, true]);
        let [acme, zenith, first, second] = spaces(&store);
        fill(&acme, MARKS[0]);
        assert_eq!(zenith.erase_all("again", "operator 4", SOON).unwrap().keys, 63);
        assert_eq!(found(&fs, &store), [true, false, true, true]);
        assert_eq!(first.erase_all("the end", "operator 3", SOON).unwrap().keys, 127);
        assert_eq!(found(&fs, &store), [false, false, false, true]);
        drop((acme, zenith, first, second));
        store.close().unwrap();
        let store = options().open().unwrap();
        assert_eq!(found(&fs, &store), [false, false, false, true]);
        let told = |it: &refrain::Erasure| (it.what(), it.keys(), it.actor().to_owned());
        let erasures: Vec<_> = store.erasures().iter().map(told).collect();
        let wanted = [
            (Erasable::Scope, 63, "operator 3".to_owned()),
            (Erasable::Scope, 0, "operator 3".to_owned()),
            (Erasable::Scope, 63, "operator 4".to_owned()),
            (Erasable::Namespace, 127, "operator 3".to_owned()),
        ];
        assert_eq!(erasures, wanted);
        let last = store.erasures().pop().unwrap();
        assert_eq!((last.namespace(), last.reason()), ("first", "the end"));
        assert!(last.at().is_some());
    }
}

/// Its name, its outcome, and that it was forgotten; not what begins or ends like it, or has its name elsewhere.
#[test]
fn one_key_is_erased_in_any_state() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = options(&fs, &clock).durability(Durability::Sync).open().unwrap();
    let [acme, zenith, ..] = spaces(&store);
    fill(&acme, "key");
    fill(&zenith, "key");
    for name in ["7", "held", "renewed", "released", "marked", "forgotten", "brief", "never"] {
        let key = format!("key-{name}");
        // The length of the scope, the scope, the key, and what stands behind keys of that length.
        let stored = [b"\x04acme", key.as_bytes()].concat();
        let others = count(&fs, &[b"\x06zenith", key.as_bytes()].concat());
        let was_known = is_known(&acme, &key);
        assert!(count(&fs, &stored) > 0 || !was_known, "{key}");
        let erased = acme.erase(&key, "a test", "nobody", SOON).unwrap();
        assert_eq!(erased.keys, u64::from(was_known), "{key}");
        let left = count(&fs, &stored);
        assert!(left == 0, "{key} is there {left} times");
        assert!(!is_known(&acme, &key));
        assert_eq!(count(&fs, &[b"\x06zenith", key.as_bytes()].concat()) > 0, others > 0);
    }
    assert!(is_known(&acme, "key-8") && is_known(&zenith, "key-7"));
    assert!(store.erasures().iter().all(|it| it.what() == Erasable::Key));
    // It is as if it had never been there.
    complete(&acme, "key-7");
    store.abandon();
    let store = options(&fs, &clock).open().unwrap();
    let [acme, zenith, ..] = spaces(&store);
    assert!(
        is_known(&acme, "key-7") && !is_known(&acme, "key-held") && is_known(&zenith, "key-held")
    );
}

/// What nobody knows any more is in segments that wait to be used again, and behind the records of those that were.
#[test]
fn what_has_expired_or_lies_in_earlier_lives_is_erased_too() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = options(&fs, &clock).durability(Durability::Sync).open().unwrap();
    let brief = policy().lease(SOON).replay_ttl(SOON).dedupe_ttl(SOON);
    let brief = store.define("brief", &brief.on_lease_end(OnLeaseEnd::Reclaim)).unwrap();
    let long = store.define("long", &policy()).unwrap();
    for round in 0..3 {
        (0..3000).for_each(|n| complete(&brief, &format!("earlier-life-{round}-{n}")));
        for _ in 0..20 {
            clock.advance(SOON);
            store.maintain(Duration::MAX);
        }
        // Thin segments, with much behind their records.
        complete(&long, &format!("kept-{round}"));
    }
    assert!(store.counts().recycled > 6, "{:?}", store.counts());
    assert!(count(&fs, b"earlier-life") > 1000, "{}", count(&fs, b"earlier-life"));
    let erased = brief.erase_all("a test", "nobody", SOON).unwrap();
    assert_eq!((erased.keys, count(&fs, b"earlier-life")), (0, 0));
    assert!((0..3).all(|round| is_known(&long, &format!("kept-{round}"))));
    store.abandon();
    let store = options(&fs, &clock).open().unwrap();
    assert!(!store.report().clean, "what it has read it has checked");
    let long = store.namespace("long").unwrap();
    assert!((0..3).all(|round| is_known(&long, &format!("kept-{round}"))));
}

#[test]
fn an_outcome_that_is_kept_is_waited_for_and_then_it_is_erased() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = options(&fs, &clock).durability(Durability::Sync).open().unwrap();
    let [acme, ..] = spaces(&store);
    let large = vec![b'x'; 40 << 10];
    let lease = acme.claim("with-a-body", None).unwrap().acquired().unwrap();
    lease.complete(&large[..]).unwrap();
    let kept: Outcome = match acme.lookup("with-a-body").unwrap() {
        Lookup::Completed(outcome) => outcome,
        other => panic!("{other:?}"),
    };
    let late = acme.erase_all("a test", "nobody", SOON);
    assert!(matches!(late, Err(EraseError::TimedOut { keys: 1, segments: 1.. })), "{late:?}");
    assert!(!is_known(&acme, "with-a-body"));
    assert!(matches!(kept.body(), Body::Bytes(bytes) if *bytes == *large));
    assert!(count(&fs, b"with-a-body") > 0);
    // Its segment is on its way out already: it is on the disk still.
    let late = acme.erase_all("a test", "nobody", SOON);
    assert!(matches!(late, Err(EraseError::TimedOut { keys: 0, segments: 1.. })), "{late:?}");
    drop(kept);
    assert_eq!(acme.erase_all("a test", "nobody", SOON).unwrap().keys, 0);
    assert_eq!(count(&fs, b"with-a-body") + count(&fs, &large[..64]), 0);
}

/// It takes several looks, and what is over leaves in between; but nothing that was not looked at yet.
#[test]
fn nothing_goes_out_of_sight_before_it_is_looked_at() {
    let (heap, clock, is_slow) = (HeapFs::new(), SimClock::new(), Arc::new(AtomicBool::new(false)));
    let (time, slow) = (clock.clone(), Arc::clone(&is_slow));
    let fs = HookFs::new(heap.clone(), move |what, name| {
        if what == "read" && name.starts_with("data-") && slow.load(Ordering::Relaxed) {
            time.advance(Duration::from_millis(10));
        }
        Ok(())
    });
    let options = Options::new("unused").file_system(fs).clock(clock.clone());
    let options = options.segment_bytes(SEGMENT_BYTES).manual_maintenance(true);
    let store = options.durability(Durability::Sync).open().unwrap();
    let brief = policy().lease(SOON).replay_ttl(SOON).dedupe_ttl(SOON);
    let brief = store.define("brief", &brief.on_lease_end(OnLeaseEnd::Reclaim)).unwrap();
    let [_, _, _, second] = spaces(&store);
    let lease = brief.claim("out-of-sight", None).unwrap().acquired().unwrap();
    lease.complete(&[b'x'; 40 << 10][..]).unwrap();
    let Lookup::Completed(kept) = brief.lookup("out-of-sight").unwrap() else { panic!() };
    fill(&second, "others");
    (0..6000).for_each(|n| complete(&second, &format!("more-{n}")));
    clock.advance(2 * SOON);
    is_slow.store(true, Ordering::Relaxed);
    let late = brief.erase_all("a test", "nobody", SOON);
    assert!(matches!(late, Err(EraseError::TimedOut { keys: 0, segments: 1.. })), "{late:?}");
    drop(kept);
    brief.erase_all("a test", "nobody", SOON).unwrap();
    assert_eq!(count(&heap, b"out-of-sight"), 0);
    assert!(is_known(&second, "others-7"));
}

/// Also where it could not even be begun to take it off the disk.
#[test]
fn what_is_not_erased_in_time_is_forgotten_durably() {
    let (disk, clock) = (SimDisk::new(1), SimClock::new());
    let options = || {
        let options = Options::new("unused").file_system(disk.mount()).clock(clock.clone());
        options.segment_bytes(SEGMENT_BYTES).manual_maintenance(true)
    };
    let store = options().durability(Durability::Buffered).open().unwrap();
    let [acme, _, _, second] = spaces(&store);
    ["key", "other"].iter().for_each(|key| complete(&acme, key));
    acme.forget("other", "a test", "nobody").unwrap();
    store.flush().unwrap();
    disk.set_room(0);
    let filled = (0..).take_while(|n| second.once(format!("fill-{n}"), None).is_ok()).count();
    assert!(filled > 100);
    store.flush().unwrap();
    let late = acme.erase("key", "a test", "nobody", Duration::ZERO);
    assert!(matches!(late, Err(EraseError::TimedOut { keys: 1, .. })), "{late:?}");
    disk.cut_keeping(|_| false);
    store.abandon();
    disk.set_room(u64::MAX);
    let store = options().open().unwrap();
    let [acme, _, _, second] = spaces(&store);
    assert!(!is_known(&acme, "key") && is_known(&second, "fill-7"));
}

/// On a full disk what is over is used again, however far erasing is.
#[test]
fn nothing_waits_for_zeros_that_wait_for_room() {
    let clock = SimClock::new();
    let (is_full, is_scrubbing) = (AtomicBool::new(false), AtomicBool::new(false));
    let flags = Arc::new((is_full, is_scrubbing));
    let filling: Arc<Mutex<Option<Namespace>>> = Arc::default();
    let (told, other, time) = (Arc::clone(&flags), Arc::clone(&filling), clock.clone());
    let fs = HookFs::new(HeapFs::new(), move |what, _| {
        let (is_full, is_scrubbing) = &*told;
        match what {
            "create" | "fill" if is_full.load(Ordering::Relaxed) => {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            "zero" if is_full.load(Ordering::Relaxed) => {
                is_scrubbing.store(true, Ordering::Relaxed)
            }
            // No lock is held: others fill the disk, and much is over.
            "sync" if is_scrubbing.load(Ordering::Relaxed) => {
                let space = other.lock().unwrap().take();
                if let Some(space) = space {
                    let filled =
                        (0..).take_while(|n| space.once(format!("fill-{n}"), None).is_ok());
                    assert!(filled.count() > 100);
                    time.advance(2 * SOON);
                }
            }
            _ => {}
        }
        Ok(())
    });
    let options = Options::new("unused").file_system(fs).clock(clock.clone());
    let options = options.segment_bytes(SEGMENT_BYTES).manual_maintenance(true);
    let store = options.durability(Durability::Buffered).open().unwrap();
    let [acme, _, _, second] = spaces(&store);
    let brief = policy().lease(SOON).replay_ttl(SOON).dedupe_ttl(SOON);
    let brief = store.define("brief", &brief.on_lease_end(OnLeaseEnd::Reclaim)).unwrap();
    (0..3000).for_each(|n| complete(&brief, &format!("earlier-{n}")));
    for _ in 0..20 {
        clock.advance(SOON);
        store.maintain(Duration::MAX);
    }
    fill(&acme, MARKS[0]);
    (0..10_000).for_each(|n| complete(&brief, &format!("brief-{n}")));
    flags.0.store(true, Ordering::Relaxed);
    *filling.lock().unwrap() = Some(second.clone());
    acme.erase_all("a test", "nobody", 8 * SOON).unwrap();
    assert!(filling.lock().unwrap().is_none(), "it was filled meanwhile");
    assert!(is_known(&second, "fill-7") && !is_known(&brief, "brief-7"));
}

#[test]
fn what_cannot_be_done_is_said() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = options(&fs, &clock).open().unwrap();
    let [acme, ..] = spaces(&store);
    let long = "x".repeat(256);
    for (reason, actor) in [(&long[..], "actor"), ("reason", &long[..])] {
        let is_refused = |refused: Result<_, EraseError>| {
            matches!(refused, Err(EraseError::Forget(ForgetError::TextLength { len: 256 })))
        };
        assert!(is_refused(acme.erase("key", reason, actor, SOON)));
        assert!(is_refused(acme.erase_all(reason, actor, SOON)));
    }
    fill(&acme, "key");
    let others = store.namespace("second").unwrap();
    complete(&others, "other");
    assert!(store.erasures().is_empty());
    store.close().unwrap();
    let closed = acme.erase_all("reason", "actor", SOON);
    assert!(matches!(closed, Err(EraseError::Store(StoreError::Closed))), "{closed:?}");
    drop((acme, others));
    // A record that may be of it and cannot be read is not passed over.
    let at = find_last(&read(&fs, "data-00000"), b"\x04acmekey-33");
    poke(&fs, "data-00000", at, b"?");
    let store = options(&fs, &clock).open().unwrap();
    let [acme, _, _, second] = spaces(&store);
    let damaged = acme.erase_all("reason", "actor", SOON);
    let is_damage = |error: &EraseError| {
        matches!(
            error,
            EraseError::Forget(ForgetError::Store(StoreError::Corrupt { .. }))
                | EraseError::Store(StoreError::Corrupt { .. })
        )
    };
    assert!(damaged.as_ref().is_err_and(is_damage), "{damaged:?}");
    // It is over: another one may begin. What shares a segment with the record is forgotten, and has to stay.
    let late = second.erase("other", "reason", "actor", SOON);
    assert!(matches!(late, Err(EraseError::TimedOut { keys: 1, .. })), "{late:?}");
}

#[test]
fn nothing_is_said_to_be_erased_when_the_disk_fails() {
    let (fails, steps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    for failing in ["sync", "write"] {
        for after in 0..40 {
            let (is_bad, left) = (Arc::clone(&fails), Arc::clone(&steps));
            let heap = HeapFs::new();
            let fs = HookFs::new(heap.clone(), move |what, _| {
                let is_it = is_bad.load(Ordering::Relaxed) && what == failing;
                if is_it && left.fetch_add(1, Ordering::Relaxed) >= after {
                    return Err(std::io::Error::other("a test"));
                }
                Ok(())
            });
            fails.store(false, Ordering::Relaxed);
            steps.store(0, Ordering::Relaxed);
            let options = Options::new("unused").file_system(fs).clock(SimClock::new());
            let options = options.segment_bytes(SEGMENT_BYTES).manual_maintenance(true);
            let store = options.durability(Durability::Sync).open().unwrap();
            let [acme, ..] = spaces(&store);
            fill(&acme, "key");
            fails.store(true, Ordering::Relaxed);
            let erased = acme.erase_all("a test", "nobody", SOON);
            let has_failed = steps.load(Ordering::Relaxed) > after;
            assert_eq!(erased.is_err(), has_failed, "{failing} {after}: {erased:?}");
            if erased.is_ok() {
                assert!(after > 3, "{failing}: it wrote nothing");
                assert_eq!(count(&heap, b"key-"), 0);
                break;
            }
            fails.store(false, Ordering::Relaxed);
            store.abandon();
        }
    }
}

/// The zeros are on the disk, and not in its cache.
#[test]
fn what_is_erased_does_not_come_back_when_the_power_goes() {
    for seed in 0..4 {
        let (disk, clock) = (SimDisk::new(seed), SimClock::new());
        let options = || {
            let options = Options::new("unused").file_system(disk.mount()).clock(clock.clone());
            options.segment_bytes(SEGMENT_BYTES).manual_maintenance(true)
        };
        let mode = if seed % 2 == 0 { Durability::Sync } else { Durability::Buffered };
        let store = options().durability(mode).open().unwrap();
        let [acme, zenith, ..] = spaces(&store);
        let brief = policy().lease(SOON).replay_ttl(SOON).dedupe_ttl(SOON);
        let brief = store.define("brief", &brief.on_lease_end(OnLeaseEnd::Reclaim)).unwrap();
        fill(&acme, MARKS[0]);
        for round in 0..3 {
            (0..1500).for_each(|n| complete(&brief, &format!("earlier-life-{round}-{n}")));
            for _ in 0..20 {
                clock.advance(SOON);
                store.maintain(Duration::MAX);
            }
            complete(&zenith, &format!("stays-{round}"));
        }
        let found = |wanted: &[u8]| {
            let has_it = |name: &String| {
                let bytes = disk.read(name);
                bytes.windows(wanted.len()).any(|window| window == wanted)
            };
            disk.files().keys().any(has_it)
        };
        assert!(found(MARKS[0].as_bytes()) && found(b"earlier-life"));
        acme.erase_all("a test", "nobody", SOON).unwrap();
        disk.crash(Crash::PowerCut);
        store.abandon();
        drop((acme, zenith, brief));
        for wanted in [MARKS[0].as_bytes(), b"earlier-life"] {
            assert!(!found(wanted), "seed {seed}: {}", String::from_utf8_lossy(wanted));
        }
        let store = options().open().unwrap();
        let [acme, zenith, ..] = spaces(&store);
        assert!((0..3).all(|round| is_known(&zenith, &format!("stays-{round}"))));
        assert!(!is_known(&acme, "from-acme-7") && store.erasures().len() == 1);
    }
}

/// Who erases a key has its forgets go, and nobody else's.
#[test]
fn what_others_have_forgotten_stays_forgotten() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = options(&fs, &clock).durability(Durability::Sync).open().unwrap();
    let [acme, zenith, ..] = spaces(&store);
    complete(&zenith, "forgotten");
    complete(&acme, "forgotten");
    // Seals what is active: what comes now lies elsewhere.
    acme.erase("nothing", "a test", "nobody", SOON).unwrap();
    for space in [&zenith, &acme] {
        space.forget("forgotten", "a test", "nobody").unwrap();
    }
    complete(&acme, "key");
    acme.erase("key", "a test", "nobody", SOON).unwrap();
    store.abandon();
    let store = options(&fs, &clock).open().unwrap();
    let [acme, zenith, ..] = spaces(&store);
    assert!(!is_known(&zenith, "forgotten") && !is_known(&acme, "forgotten"));
}

/// Who claims one of its keys when all are forgotten, and before it is known since when, has claimed it anew; and may renew
/// that again and again.
#[test]
fn what_is_claimed_while_it_is_erased_stays() {
    let waiting: Arc<Mutex<Option<Namespace>>> = Arc::default();
    let claimed: Arc<Mutex<Option<Lease>>> = Arc::default();
    let (other, anew) = (Arc::clone(&waiting), Arc::clone(&claimed));
    let heap = HeapFs::new();
    let fs = HookFs::new(heap.clone(), move |what, name| {
        if (what, name) == ("sync", "NAMES")
            && let Some(space) = other.lock().unwrap().take()
        {
            *anew.lock().unwrap() = space.claim("from-acme-7", None).unwrap().acquired();
        } else if what == "sync"
            && let Ok(mut lease) = anew.try_lock()
            && let Some(lease) = &mut *lease
        {
            lease.renew().unwrap();
        }
        Ok(())
    });
    let options = Options::new("unused").file_system(fs).clock(SimClock::new());
    let options = options.segment_bytes(SEGMENT_BYTES).manual_maintenance(true);
    let store = options.durability(Durability::Buffered).open().unwrap();
    let [acme, ..] = spaces(&store);
    fill(&acme, MARKS[0]);
    *waiting.lock().unwrap() = Some(acme.clone());
    assert_eq!(acme.erase_all("a test", "nobody", SOON).unwrap().keys, 64);
    let lease = claimed.lock().unwrap().take().unwrap();
    assert_eq!(lease.attempt(), 1);
    lease.complete("anew").unwrap();
    assert!(is_known(&acme, "from-acme-7") && !is_known(&acme, "from-acme-8"));
    assert_eq!(count(&heap, b"from-acme-8"), 0);
}

/// Beside others who claim and complete, and the store's own thread.
#[test]
fn it_is_erased_beside_others_who_go_on() {
    let fs = HeapFs::new();
    let options = Options::new("unused").file_system(fs.clone()).segment_bytes(SEGMENT_BYTES);
    let store = options.durability(Durability::Buffered).open().unwrap();
    let [acme, zenith, ..] = spaces(&store);
    fill(&acme, MARKS[0]);
    let (stops, made) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            // Should it never end, this does.
            while !stops.load(Ordering::Relaxed) && made.load(Ordering::Relaxed) < 1_000_000 {
                let n = made.fetch_add(1, Ordering::Relaxed);
                complete(&zenith, &format!("beside-{n}"));
                if n.is_multiple_of(3) {
                    zenith.forget(format!("beside-{n}"), "a test", "nobody").unwrap();
                }
            }
        });
        // More than one asks: one after the other.
        let all: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| acme.erase_all("a test", "nobody", HOUR).unwrap().keys))
            .collect();
        let keys: u64 = all.into_iter().map(|it| it.join().unwrap()).sum();
        stops.store(true, Ordering::Relaxed);
        assert_eq!(keys, 64);
    });
    assert_eq!(count(&fs, MARKS[0].as_bytes()), 0);
    for n in 0..made.load(Ordering::Relaxed) {
        assert_eq!(is_known(&zenith, &format!("beside-{n}")), !n.is_multiple_of(3), "{n}");
    }
    assert_eq!(store.erasures().len(), 3);
}

/// In memory nothing has to become durable.
#[test]
fn a_store_in_memory_forgets_it_as_well() {
    let store = Options::in_memory().clock(SimClock::new()).open().unwrap();
    let [acme, zenith, ..] = spaces(&store);
    fill(&acme, MARKS[0]);
    fill(&zenith, MARKS[1]);
    let erased = acme.erase_all("a test", "nobody", SOON).unwrap();
    assert!(erased.keys == 64 && erased.segments > 0, "{erased:?}");
    assert!(!is_known(&acme, "from-acme-7") && is_known(&zenith, "from-zenith-7"));
}
