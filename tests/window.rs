//! What a store keeps, how long, and how much room it takes for it: streams, recycling, compaction,
//! bounds. Simulated weeks are in `tests/soak.rs`.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::io::ErrorKind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use refrain::testing::{Crash, Fault, HeapFs, SimClock, SimDisk};
use refrain::{
    Body, BodyKept, Claim, ClaimError, ClaimOptions, CompleteOptions, Durability, Fingerprint,
    Lookup, Namespace, OnOrphan, Once, OpenError, Options, Policy, Store,
};
use support::disk::{HookFs, poke};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const SEGMENT_BYTES: u64 = 256 << 10;

fn options(fs: &HeapFs, clock: &SimClock) -> Options {
    Options::new("unused")
        .file_system(fs.clone())
        .clock(clock.clone())
        .durability(Durability::Buffered)
        .segment_bytes(SEGMENT_BYTES)
        .shards(4)
        .manual_maintenance(true)
}

fn open(fs: &HeapFs, clock: &SimClock) -> Store {
    options(fs, clock).open().unwrap()
}

fn keep(store: &Store, ttl: Duration) -> Namespace {
    let policy = Policy::default().lease(SECOND).replay_ttl(ttl).dedupe_ttl(ttl);
    store.define("orders", &policy.late_grace(SECOND)).unwrap()
}

fn complete(orders: &Namespace, key: &str, body: &[u8]) {
    orders.claim(key, None).unwrap().acquired().unwrap().complete(body).unwrap();
}

/// Lets time pass, with somebody looking after the store.
fn pass(store: &Store, clock: &SimClock, time: Duration) {
    for _ in 0..20 {
        clock.advance(time / 20);
        store.maintain(Duration::MAX);
    }
}

/// docs/CAPACITY.md.
#[test]
fn a_key_takes_what_the_document_says() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let space = keep(&store, HOUR);
    let pad = |bytes: u64| bytes.next_multiple_of(16) + 32;
    let mut expected = 0;
    for n in 0..1000_u64 {
        let (has_fingerprint, body) = (n % 2 == 0, vec![7; (n % 300) as usize]);
        let key = format!("{:01$}", n, 8 + (n % 30) as usize);
        let fixed = 64 + if has_fingerprint { 19 } else { 0 } + key.len() as u64;
        let fingerprint = has_fingerprint.then(|| Fingerprint::of(&body));
        let lease = space.claim(&key, fingerprint).unwrap().acquired().unwrap();
        expected += pad(fixed);
        assert_eq!(store.stats().record_bytes, expected, "a claim of {key}");
        lease.complete(&body).unwrap();
        expected += pad(fixed + body.len() as u64);
        assert_eq!(store.stats().record_bytes, expected, "a completion of {key}");
    }
}

/// What is asked for as headroom is there when the store is open, and stays.
#[test]
fn headroom_is_made_at_open_kept_and_refused_where_it_cannot_be() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let with = |segments: u64| options(&fs, &clock).headroom_bytes(segments * SEGMENT_BYTES);
    let store = with(100).open().unwrap();
    let room = |store: &Store| store.stats().disk_bytes - store.stats().wal_bytes;
    let waits = store.stats().room_waits;
    assert!(room(&store) >= 100 * SEGMENT_BYTES, "{:?}", store.stats());
    let space = store.namespace("space").unwrap();
    let body = vec![7; SEGMENT_BYTES as usize / 4];
    for n in 0..60_u32 {
        let lease = space.claim(n.to_le_bytes(), None).unwrap().acquired().unwrap();
        lease.complete(&body).unwrap();
    }
    assert_eq!(store.stats().room_waits, waits, "{:?}", store.stats());
    // An hour of idleness gives nothing of it away.
    for _ in 0..60 {
        clock.advance(Duration::from_secs(60));
        store.maintain(Duration::MAX);
    }
    assert!(room(&store) >= 100 * SEGMENT_BYTES, "{:?}", store.stats());
    store.close().unwrap();
    let refused = with(400).max_disk_bytes(60 * SEGMENT_BYTES).open();
    assert!(matches!(refused, Err(OpenError::Full { .. })), "{refused:?}");
    let store = with(0).open().unwrap();
    assert_eq!(store.stats().entries, 60, "nothing was lost by it");
}

#[test]
fn a_store_that_may_not_grow_refuses_the_newest_claim_and_keeps_everything_else() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let limit = 12 * SEGMENT_BYTES;
    let store = options(&fs, &clock).max_disk_bytes(limit).open().unwrap();
    let orders = keep(&store, HOUR);
    let long = ClaimOptions::new().lease(HOUR);
    let held = orders.claim_with("held", &long).unwrap().acquired().unwrap();
    // First there is no room for bodies, then none for claims.
    let fill = |name: &str| {
        let (mut with_body, mut all) = (0, 0);
        loop {
            let claim = match orders.claim(format!("{name}-{all}"), None) {
                Ok(claim) => claim,
                Err(error) => return (with_body, all, error),
            };
            let kept = claim.acquired().unwrap().complete(vec![7; 5000]).unwrap().body();
            with_body += u32::from(kept == BodyKept::Kept);
            all += 1;
            clock.advance(SECOND / 10);
            store.maintain(Duration::MAX);
        }
    };
    let (with_body, all, refused) = fill("key");
    let ClaimError::Full { cause } = &refused else { panic!("{refused}") };
    assert_eq!(cause.io().kind(), std::io::ErrorKind::QuotaExceeded, "{refused}");
    assert!(store.stats().disk_bytes <= limit && with_body > 300, "{with_body} of {all}");
    // Who was granted may finish; who was stored is stored.
    let completed = held.complete("the end").unwrap();
    assert!(matches!(completed.body(), BodyKept::Kept | BodyKept::NoRoom));
    for number in 0..all {
        let found = orders.lookup(format!("key-{number}")).unwrap();
        assert!(matches!(found, Lookup::Completed(_)), "{number} of {all}: {found:?}");
    }
    // When it has expired, there is room again, in the same files.
    pass(&store, &clock, 2 * HOUR);
    let (with_body_again, ..) = fill("later");
    assert!(with_body_again > with_body * 8 / 10, "{with_body_again} against {with_body}");
    assert!(store.stats().disk_bytes <= limit);
    // It is an option of an opening, not of the store.
    drop(orders);
    store.close().unwrap();
    let orders = open(&fs, &clock).namespace("orders").unwrap();
    (0..2 * with_body).for_each(|number| complete(&orders, &format!("more-{number}"), &[7; 5000]));
}

#[test]
fn a_burst_leaves_no_files_behind() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let orders = keep(&store, HOUR);
    complete(&orders, "before", b"outcome");
    store.maintain(Duration::MAX);
    let before = store.stats().disk_bytes;
    for number in 0..3000 {
        complete(&orders, &format!("burst-{number}"), &[7; 5000]);
    }
    store.maintain(Duration::MAX);
    let burst = store.stats();
    assert!(burst.disk_bytes > 6 * before, "{burst:?}");
    let mut least = burst.disk_bytes;
    for hour in 0..8 {
        complete(&orders, &format!("after-{hour}"), b"outcome");
        pass(&store, &clock, HOUR / 2);
        least = least.min(store.stats().disk_bytes);
    }
    let after = store.stats();
    assert!(after.disk_bytes <= 3 * before && after.entries < 10, "{after:?}");
    // What is left opens, with and without a word of goodbye; and grows again.
    complete(&orders, "last", b"outcome");
    store.flush().unwrap();
    store.abandon();
    let store = open(&fs, &clock);
    assert!(store.report().torn_tails.is_empty());
    let orders = store.namespace("orders").unwrap();
    assert!(matches!(orders.lookup("last").unwrap(), Lookup::Completed(_)));
    for number in 0..3000 {
        complete(&orders, &format!("again-{number}"), &[7; 5000]);
    }
    store.check_invariants().unwrap();
    drop(orders);
    store.close().unwrap();
    let report = open(&fs, &clock).report().clone();
    assert!(report.clean && report.completed >= 3000, "{report:?}");
}

#[test]
fn a_file_is_given_up_by_both_slots_of_the_meta_file_before_it_goes() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let orders = keep(&store, HOUR);
    for number in 0..2000 {
        complete(&orders, &format!("burst-{number}"), &[7; 5000]);
    }
    let mut given_up = 0;
    for _ in 0..200 {
        let before = store.stats().disk_bytes;
        clock.advance(MINUTE);
        store.maintain(Duration::MAX);
        if store.stats().disk_bytes >= before {
            continue;
        }
        given_up += 1;
        // Marks of earlier rounds still name its segments.
        drop(open(&fs.copy().unwrap(), &clock));
        for slot in 0..2 {
            let copy = fs.copy().unwrap();
            poke(&copy, "META", slot * 4096 + 200, b"damaged");
            let store = open(&copy, &clock);
            assert!(store.report().meta_fallback);
        }
    }
    assert!(given_up > 0);
}

/// As a power cut leaves it before the removal is durable, when the segments that follow have long
/// been proven.
#[test]
fn a_file_that_was_given_up_and_is_there_still_harms_nobody_though_a_slot_is_damaged() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let kept = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&kept);
    let hooked = HookFs::new(fs.clone(), move |operation, name: &str| {
        if operation == "remove" && name.starts_with("data-") {
            count.fetch_add(1, Ordering::Relaxed);
            return Err(ErrorKind::Other.into());
        }
        Ok(())
    });
    let store = options(&fs, &clock).file_system(hooked).open().unwrap();
    let orders = keep(&store, HOUR);
    (0..2000).for_each(|number| complete(&orders, &format!("burst-{number}"), &[7; 5000]));
    let mut seen = 0;
    for number in 0..200 {
        pass(&store, &clock, MINUTE);
        complete(&orders, &format!("after-{number}"), &[7; 5000]);
        store.flush().unwrap();
        if kept.load(Ordering::Relaxed) == 0 {
            continue;
        }
        seen += 1;
        drop(open(&fs.copy().unwrap(), &clock));
        for slot in 0..2 {
            let copy = fs.copy().unwrap();
            poke(&copy, "META", slot * 4096 + 200, b"damaged");
            let store = open(&copy, &clock);
            assert!(store.report().meta_fallback);
            let orders = store.namespace("orders").unwrap();
            let last = orders.lookup(format!("after-{number}")).unwrap();
            assert!(matches!(last, Lookup::Completed(_)), "{last:?}");
        }
    }
    assert!(seen > 10, "{seen}");
}

#[test]
fn what_is_forgotten_on_purpose_gives_its_room_back_long_before_its_time() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let orders = keep(&store, 1000 * HOUR);
    let mut live = 0;
    for number in 0..8000 {
        complete(&orders, &format!("key-{number}"), &[7; 1000]);
        if number % 10 != 0 {
            orders.forget(format!("key-{number}"), "a test", "nobody").unwrap();
        } else {
            live += 1;
        }
        if number % 100 == 0 {
            pass(&store, &clock, MINUTE);
        }
    }
    for _ in 0..40 {
        pass(&store, &clock, 10 * MINUTE);
    }
    let stats = store.stats();
    // A completion; and of each that was forgotten, the forget, which lasts as long.
    let (completion, forget) = (64 + 16 + 1000 + 32, 64 + 10 + 16 + 32 + 32);
    let bytes = live * completion + (8000 - live) * forget;
    assert!(stats.copied > 0 && stats.record_bytes < bytes * 33 / 10, "{stats:?} for {bytes}");
    // Copied once, or twice; not for ever.
    pass(&store, &clock, HOUR);
    let copied = store.stats().copied;
    pass(&store, &clock, 10 * HOUR);
    assert_eq!(store.stats().copied, copied);
    for number in 0..8000 {
        let found = orders.lookup(format!("key-{number}")).unwrap();
        assert_eq!(matches!(found, Lookup::Completed(_)), number % 10 == 0, "{number}: {found:?}");
    }
    // And none comes back.
    drop(orders);
    store.abandon();
    let store = open(&fs, &clock);
    assert_eq!(store.report().completed as u64, live);
}

#[test]
fn quiet_streams_share_segments_in_the_end() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let orders = keep(&store, 100 * HOUR);
    let mut kept = vec![];
    for number in 0..400 {
        // Of many lengths, none of them with enough keys to fill a segment.
        let ttl = HOUR * (20 + number % 37);
        let key = format!("key-{number}");
        let options = CompleteOptions::body(b"outcome").replay_ttl(ttl).dedupe_ttl(ttl);
        orders.claim(&key, None).unwrap().acquired().unwrap().complete_with(&options).unwrap();
        kept.push((key, clock.wall() + ttl));
        pass(&store, &clock, 10 * MINUTE);
        for (key, until) in &kept {
            let found = orders.lookup(key).unwrap();
            let is_kept = matches!(found, Lookup::Completed(_));
            assert_eq!(is_kept, clock.wall() < *until, "{key}: {found:?}");
        }
    }
    let stats = store.stats();
    assert!(stats.copied > 0, "{stats:?}");
    assert!(stats.disk_bytes <= 40 * SEGMENT_BYTES, "{stats:?}");
    store.check_invariants().unwrap();
}

#[test]
fn a_body_goes_when_its_time_is_over_and_the_key_stays() {
    for kills in [false, true] {
        let (fs, clock) = (HeapFs::new(), SimClock::new());
        let mut store = open(&fs, &clock);
        let policy = Policy::default().replay_ttl(HOUR).dedupe_ttl(48 * HOUR);
        let orders = store.define("orders", &policy).unwrap();
        let mut tokens = vec![];
        for number in 0..500 {
            let lease = orders.claim(format!("key-{number}"), None).unwrap().acquired().unwrap();
            tokens.push(lease.token());
            lease.complete(vec![7; 4000]).unwrap();
        }
        drop(orders);
        let full = store.stats().record_bytes;
        for _ in 0..12 {
            pass(&store, &clock, 20 * MINUTE);
            if kills {
                store.flush().unwrap();
                store.abandon();
                store = open(&fs, &clock);
            }
        }
        let stats = store.stats();
        assert!(stats.record_bytes < full / 10 && stats.entries == 500, "{stats:?}");
        let orders = store.namespace("orders").unwrap();
        for (number, token) in tokens.iter().enumerate() {
            let key = format!("key-{number}");
            let outcome = orders.claim(&key, None).unwrap().completed().unwrap();
            assert_eq!((outcome.body(), outcome.token()), (Body::Expired, *token));
            // The same outcome once more is still the same.
            let again = orders.complete(&key, *token, [7; 4000]).unwrap();
            assert_eq!(again.body(), BodyKept::NoReplay);
            assert!(orders.complete(&key, *token, [8; 4000]).is_err());
        }
        pass(&store, &clock, 48 * HOUR);
        assert!(matches!(orders.claim("key-7", None).unwrap(), Claim::Acquired(_)));
        assert!(store.stats().entries < 10);
    }
}

#[test]
fn long_claims_are_carried_along() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let orders = keep(&store, HOUR);
    let long = ClaimOptions::new().lease(HOUR);
    let lease = orders.claim_with("long", &long).unwrap().acquired().unwrap();
    orders.claim("parked", None).unwrap().acquired().unwrap().park().unwrap();
    let other = orders.claim_with("other", &long).unwrap().acquired().unwrap();
    for number in 0..50 {
        for key in 0..20 {
            complete(&orders, &format!("{number}-{key}"), &[7; 2000]);
        }
        pass(&store, &clock, MINUTE);
        assert!(matches!(orders.lookup("long").unwrap(), Lookup::InProgress(_)));
        assert!(matches!(orders.lookup("parked").unwrap(), Lookup::Parked(_)));
    }
    assert!(store.stats().recycled > 20, "{:?}", store.stats());
    lease.complete("done").unwrap();
    let token = other.token();
    drop(other);
    drop(orders);
    store.abandon();
    let store = open(&fs, &clock);
    let orders = store.namespace("orders").unwrap();
    assert!(matches!(orders.lookup("parked").unwrap(), Lookup::Parked(_)));
    let Lookup::Lapsed(lapsed) = orders.lookup("other").unwrap() else { panic!() };
    assert_eq!(lapsed.token(), token);
    let Lookup::Completed(outcome) = orders.lookup("long").unwrap() else { panic!() };
    assert_eq!(outcome.body(), Body::Bytes(b"done"));
}

#[test]
fn a_store_in_memory_forgets_as_well() {
    let clock = SimClock::new();
    let store = Options::in_memory().clock(clock.clone()).manual_maintenance(true).shards(4).open();
    let store = store.unwrap();
    let orders = keep(&store, MINUTE);
    let mut most = 0;
    for round in 0..40 {
        for number in 0..1000 {
            complete(&orders, &format!("{round}-{number}"), &[7; 1000]);
        }
        pass(&store, &clock, 30 * SECOND);
        if round == 10 {
            most = store.stats().disk_bytes;
        }
    }
    let stats = store.stats();
    assert!(stats.entries < 3500 && stats.disk_bytes <= most && stats.recycled > 0, "{stats:?}");
}

#[test]
fn maintenance_does_as_much_as_it_is_allowed_and_says_when_it_is_needed() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let orders = keep(&store, HOUR);
    let mut looks = 0;
    // The store learns the time once it has been made.
    while let Some(time) = store.maintain(Duration::MAX) {
        assert!(looks < 5000, "there is nothing to do");
        clock.advance(time);
        looks += 1;
    }
    for number in 0..300 {
        complete(&orders, &format!("key-{number}"), &[7; 5000]);
    }
    looks = 0;
    // Whoever sleeps as long as he is told misses nothing.
    while store.stats().entries > 0 {
        let Some(time) = store.maintain(Duration::MAX) else { break };
        assert!(time <= 2 * HOUR, "{time:?}");
        clock.advance(time.max(Duration::from_millis(1)));
        looks += 1;
        assert!(looks < 20_000, "{:?}", store.stats());
    }
    assert_eq!(store.stats().entries, 0);
    // A little at a time comes to the same.
    for number in 0..300 {
        complete(&orders, &format!("again-{number}"), &[7; 5000]);
    }
    let mut looks = 0;
    while store.stats().entries > 0 {
        clock.advance(MINUTE);
        store.maintain(Duration::ZERO);
        looks += 1;
        assert!(looks < 1000, "{:?}", store.stats());
    }
    assert!(looks >= 60);
}

#[test]
fn segments_are_emptied_a_little_at_a_time_and_one_after_the_other() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let orders = keep(&store, HOUR);
    // Short ones: thousands to a segment.
    for number in 0..9_000 {
        assert!(matches!(orders.once(format!("key-{number}"), None), Ok(Once::First(_))));
        if number % 1000 == 0 {
            store.maintain(Duration::MAX);
        }
    }
    store.maintain(Duration::MAX);
    clock.advance(2 * HOUR);
    let (mut most, mut looks) = (0, 0);
    while store.stats().entries > 0 {
        let before = store.stats().purged;
        store.maintain(Duration::ZERO);
        most = most.max(store.stats().purged - before);
        clock.advance(SECOND);
        looks += 1;
        assert!(looks < 1000, "{:?}", store.stats());
    }
    assert!((1024..1024 + 16).contains(&most), "{most} in one look");
}

/// Segments that are empty wait for rounds; whoever empties all that are due before the first of them is
/// ready again does not notice that there is room.
#[test]
fn few_segments_wait_for_rounds_at_a_time() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let orders = keep(&store, HOUR);
    let marked = 24_000_u64;
    for number in 0..marked {
        let key = [&number.to_le_bytes()[..], &[b'k'; 1000]].concat();
        assert!(matches!(orders.once(key, None), Ok(Once::First(_))));
        if number % 1000 == 0 {
            store.maintain(Duration::MAX);
        }
    }
    let segment = marked / (store.stats().wal_bytes / SEGMENT_BYTES);
    pass(&store, &clock, MINUTE);
    clock.advance(2 * HOUR);
    // No time passes, so nobody makes a round.
    for _ in 0..200 {
        store.maintain(Duration::ZERO);
    }
    let emptied = store.stats().purged / segment;
    assert!((28..=34).contains(&emptied), "{emptied} segments: {:?}", store.stats());
    pass(&store, &clock, MINUTE);
    assert_eq!(store.stats().entries, 0);
}

#[test]
fn the_room_of_claims_that_the_clock_forgot_is_given_back() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let orders = keep(&store, HOUR);
    for number in 0..100 {
        drop(orders.claim(format!("key-{number}"), None).unwrap().acquired().unwrap());
    }
    let reserved = store.stats().reserved_bytes;
    pass(&store, &clock, HOUR);
    let stats = store.stats();
    assert!(reserved > 10_000 && stats.reserved_bytes == 0 && stats.entries == 0, "{stats:?}");
    store.check_invariants().unwrap();
}

/// A forget that is alone in its segment, with what it forgot in another one that stays.
#[test]
fn a_forget_stays_for_as_long_as_what_it_forgot() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let orders = keep(&store, 1000 * HOUR);
    // Segments of completions that stay.
    (0..200).for_each(|number| complete(&orders, &format!("kept-{number}"), &[7; 5000]));
    // Of each a forget, among others that are dead, in streams that are sealed for their age.
    for number in 0..12 {
        orders.forget(format!("kept-{}", number * 9), "a test", "nobody").unwrap();
        let ttl = 1000 * HOUR - MINUTE * number;
        for other in 0..20 {
            let key = format!("other-{number}-{other}");
            let options = CompleteOptions::body(b"outcome").dedupe_ttl(ttl).replay_ttl(ttl);
            orders.claim(&key, None).unwrap().acquired().unwrap().complete_with(&options).unwrap();
            orders.claim(&key, None).unwrap().completed().unwrap();
        }
        pass(&store, &clock, 70 * HOUR);
    }
    assert!(store.stats().copied > 0, "{:?}", store.stats());
    store.flush().unwrap();
    drop(orders);
    store.abandon();
    let orders = open(&fs, &clock).namespace("orders").unwrap();
    for number in 0..200 {
        let is_kept =
            matches!(orders.lookup(format!("kept-{number}")).unwrap(), Lookup::Completed(_));
        assert_eq!(is_kept, number % 9 != 0 || number >= 12 * 9, "{number}");
    }
}

/// The newest mark may lie in the file that goes.
#[test]
fn a_mark_is_written_elsewhere_before_a_file_goes() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    let hooked = HookFs::new(fs.clone(), move |operation, name: &str| {
        if matches!(operation, "write" | "remove") && name.starts_with("data-") {
            told.lock().unwrap().push((operation, name.to_owned()));
        }
        Ok(())
    });
    let store = options(&fs, &clock).file_system(hooked).open().unwrap();
    let orders = keep(&store, HOUR);
    (0..4000).for_each(|number| complete(&orders, &format!("burst-{number}"), &[7; 5000]));
    clock.advance(2 * HOUR);
    for _ in 0..5 {
        store.maintain(Duration::MAX);
    }
    // Nothing is left to do but to give files up.
    let mut given_up = 0;
    for _ in 0..3 {
        seen.lock().unwrap().clear();
        clock.advance(MINUTE);
        store.maintain(Duration::MAX);
        let seen = seen.lock().unwrap();
        let mut others = Vec::new();
        for (operation, name) in seen.iter() {
            if *operation != "remove" {
                others.push(name);
                continue;
            }
            given_up += 1;
            assert!(others.drain(..).any(|other| other != name), "{seen:?}");
        }
    }
    assert!(given_up > 1, "{given_up}");
}

/// The segments of a file that is being given up have no trailer, and are listed until the end.
#[test]
fn giving_up_a_file_may_fail_at_every_write() {
    let mut failed = 0;
    for after in 0..60 {
        let (disk, clock) = (SimDisk::new(after), SimClock::new());
        let on = || options(&HeapFs::new(), &clock).file_system(disk.mount());
        let store = on().open().unwrap();
        let orders = keep(&store, HOUR);
        (0..900).for_each(|number| complete(&orders, &format!("burst-{number}"), &[7; 5000]));
        pass(&store, &clock, MINUTE);
        clock.advance(2 * HOUR);
        disk.fail(Fault { operation: "write", after, times: 1, error: ErrorKind::Other });
        for _ in 0..20 {
            store.maintain(Duration::MAX);
            clock.advance(MINUTE);
        }
        failed += u32::from(store.poisoned().is_some());
        disk.heal();
        drop(orders);
        store.abandon();
        disk.crash(Crash::PowerCut);
        on().open().unwrap();
    }
    assert!(failed > 20, "{failed}");
}

/// A claim that is being filled keeps the stable generation low; what marks say of segments above it
/// lets recovery trust their indexes all the same.
#[test]
fn sealed_segments_are_read_by_their_indexes_beside_an_old_stream() {
    let (disk, clock) = (SimDisk::new(1), SimClock::new());
    let on = || {
        let options = options(&HeapFs::new(), &clock).file_system(disk.mount());
        options.durability(Durability::Sync).open().unwrap()
    };
    let store = on();
    let orders = keep(&store, HOUR);
    let long = ClaimOptions::new().lease(HOUR);
    let held = orders.claim_with("held", &long).unwrap().acquired().unwrap();
    for number in 0..600_u64 {
        let key = [&number.to_le_bytes()[..], &[b'k'; 4000]].concat();
        assert!(matches!(orders.once(key, None).unwrap(), Once::First(_)));
        store.maintain(Duration::MAX);
    }
    store.flush().unwrap();
    drop((held, orders));
    store.abandon();
    disk.crash(Crash::PowerCut);
    let report = on().report().clone();
    assert!(report.records_indexed > 400, "{report:?}");
}

/// Bodies that nobody can have any more do not keep their room until their keys are forgotten, too,
/// though there is no room for copies at first: claims go without any.
#[test]
fn a_full_disk_gives_the_room_of_bodies_back_while_their_keys_are_kept() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = options(&fs, &clock).max_disk_bytes(12 * SEGMENT_BYTES).open().unwrap();
    let policy = Policy::default().lease(SECOND).late_grace(SECOND);
    let orders = store.define("orders", &policy.replay_ttl(MINUTE).dedupe_ttl(100 * HOUR)).unwrap();
    let claim = |key: u64| orders.claim(key.to_le_bytes(), None);
    let mut keys = 0;
    while let Ok(Claim::Acquired(lease)) = claim(keys) {
        lease.complete(vec![7; 5000]).unwrap();
        keys += 1;
    }
    let key = |number: u64| [&number.to_le_bytes()[..], &[b'k'; 4000]].concat();
    let onces = (0..1000).take_while(|number| orders.once(key(*number), None).is_ok()).count();
    assert!(keys > 300 && onces < 1000, "{keys} keys, {onces} onces");
    pass(&store, &clock, HOUR);
    assert!(claim(keys).unwrap().acquired().is_some(), "{:?}", store.stats());
    for key in 0..keys {
        assert!(matches!(claim(key).unwrap(), Claim::Completed(_)), "{key}");
    }
}

/// Copies take from the segments that are spare, but leave what granted claims need to be ended after
/// the process was killed: it takes the segment with it that the exit before it began.
#[test]
fn copies_on_a_full_disk_leave_the_room_of_exits() {
    let policy = Policy::default().lease(10 * HOUR).on_orphan(OnOrphan::KeepLease);
    let ttls = [2 * HOUR, 10 * HOUR, 40 * HOUR, 160 * HOUR];
    let mut copied = 0;
    for seconds in (20..200).step_by(4) {
        let (fs, clock) = (HeapFs::new(), SimClock::new());
        let on = || options(&fs, &clock).max_disk_bytes(16 * SEGMENT_BYTES).open().unwrap();
        let store = on();
        let spaces = ttls.map(|ttl| {
            let policy = policy.replay_ttl(MINUTE).dedupe_ttl(ttl);
            store.define(&format!("kept {ttl:?}"), &policy.lease(ttl)).unwrap()
        });
        let tokens = ["first", "second", "third"].map(|key| {
            let lease = spaces[0].claim(key, None).unwrap().acquired().unwrap();
            lease.token()
        });
        'filling: for number in 0_u64.. {
            for space in &spaces {
                match space.claim(number.to_le_bytes(), None) {
                    Ok(claim) => {
                        claim.acquired().unwrap().complete(vec![7; 9000]).unwrap();
                    }
                    Err(_) => break 'filling,
                }
            }
            clock.advance(SECOND / 20);
        }
        for _ in 0..seconds {
            clock.advance(SECOND);
            store.maintain(Duration::MAX);
        }
        copied += store.stats().copied;
        spaces[0].complete("first", tokens[0], "").unwrap();
        drop(spaces);
        store.abandon();
        let store = on();
        let space = store.namespace(&format!("kept {:?}", ttls[0])).unwrap();
        // What is left of the segment that an exit began is not sealed for its age.
        for (key, token) in [("second", tokens[1]), ("third", tokens[2])] {
            let ended = space.release(key, token);
            assert!(ended.is_ok(), "{key} after {seconds} s: {ended:?}, {:?}", store.stats());
            for _ in 0..3 {
                clock.advance(20 * SECOND);
                store.maintain(Duration::MAX);
            }
        }
    }
    assert!(copied > 30, "{copied} copies");
}

/// A window that expires at once is often filled again soon.
#[test]
fn room_that_may_be_needed_again_is_kept_for_a_minute() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = open(&fs, &clock);
    let orders = keep(&store, HOUR);
    (0..3000).for_each(|number| complete(&orders, &format!("burst-{number}"), &[7; 5000]));
    let waits = store.stats().room_waits;
    assert!(waits > 0, "nobody has looked after the store");
    pass(&store, &clock, 2 * MINUTE);
    let full = store.stats().disk_bytes;
    clock.advance(2 * HOUR);
    store.maintain(Duration::MAX);
    let stats = store.stats();
    assert!(stats.recycled > 20 && stats.disk_bytes == full, "{stats:?}, before {full}");
    let next = store.maintain(Duration::MAX).unwrap();
    assert!(next <= MINUTE, "{next:?}");
    // Filled again, and nobody waits for room.
    for number in 0..2000 {
        complete(&orders, &format!("again-{number}"), &[7; 5000]);
    }
    assert_eq!(store.stats().room_waits, waits);
    clock.advance(2 * HOUR);
    for _ in 0..4 {
        store.maintain(Duration::MAX);
        clock.advance(MINUTE / 2);
    }
    assert!(store.stats().disk_bytes < full, "{:?}", store.stats());
}
