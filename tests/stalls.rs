//! Stores that stop recycling, and one that forgets early.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use refrain::testing::{Clock, FileSystem, HeapFs, SimClock};
use refrain::{
    ClaimOptions, Durability, Lookup, Namespace, OnLeaseEnd, Options, Policy, StoreError,
};
use support::disk::{HookFs, poke, read};

const SECOND: Duration = Duration::from_secs(1);

fn options(fs: impl FileSystem + 'static) -> Options {
    let options = Options::new("unused").file_system(fs).durability(Durability::Sync).shards(1);
    options.segment_bytes(256 << 10)
}

fn big_key(number: u64) -> Vec<u8> {
    [&number.to_le_bytes()[..], &[b'k'; 4000]].concat()
}

fn noise(namespace: &Namespace, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let lease = namespace.claim(big_key(number), None).unwrap().acquired().unwrap();
        lease.release().unwrap();
    }
}

/// A clock that goes on by a microsecond at each look: a budget comes to its end by itself.
#[derive(Clone, Debug)]
struct LookedAt(SimClock);

impl Clock for LookedAt {
    fn wall_ns(&self) -> u64 {
        self.0.wall_ns()
    }

    fn monotonic_ns(&self) -> u64 {
        self.0.advance(Duration::from_micros(1));
        self.0.monotonic_ns()
    }

    fn coarse_ns(&self) -> u64 {
        self.0.coarse_ns()
    }

    fn coarse_resolution_ns(&self) -> u64 {
        self.0.coarse_resolution_ns()
    }
}

/// Sealing makes a round necessary, and maintenance goes to sleep without one: until something else
/// is appended, what was sealed is not handed over, and nothing of it expires.
#[test]
fn an_idle_store_recycles_what_has_expired() {
    let store = options(HeapFs::new()).open().unwrap();
    let policy = Policy::default().lease(SECOND).replay_ttl(SECOND).dedupe_ttl(SECOND);
    let orders = store.define("orders", &policy).unwrap();
    orders.claim("a", None).unwrap().acquired().unwrap().complete(b"outcome").unwrap();
    // Segments are sealed after five seconds; a busy machine may take longer.
    for _ in 0..600 {
        if store.stats().entries == 0 && store.stats().recycled > 0 {
            return;
        }
        std::thread::sleep(SECOND / 10);
    }
    panic!("{:?}", store.stats());
}

/// The oldest segment of claims keeps more than an eighth of what is in it, and no completion waits
/// for it: no segment of claims is recycled any more, however many there are.
#[test]
fn a_few_long_claims_do_not_keep_all_others_on_the_disk() {
    for parks in [true, false] {
        let clock = SimClock::new();
        let store =
            options(HeapFs::new()).clock(clock.clone()).manual_maintenance(true).open().unwrap();
        let policy = Policy::default().late_grace(Duration::ZERO);
        let policy = if parks { policy.on_lease_end(OnLeaseEnd::Park) } else { policy };
        let orders = store.define("orders", &policy).unwrap();
        let day = ClaimOptions::new().lease(24 * 3600 * SECOND);
        for number in 0..12 {
            drop(orders.claim_with(big_key(number), &day).unwrap());
        }
        let mut disk = vec![];
        for round in 1..60 {
            noise(&orders, 1000 * round..1000 * round + 30);
            for _ in 0..3 {
                clock.advance(20 * SECOND);
                store.maintain(Duration::MAX);
            }
            disk.push(store.stats().disk_bytes >> 20);
        }
        let recycled = store.stats().recycled;
        assert!(recycled > 30, "parks: {parks}, {recycled} recycled, MiB: {disk:?}");
    }
}

/// One record of a claim that cannot be read any more keeps everything else on the disk, too, and
/// nobody is told.
#[test]
fn a_damaged_claim_does_not_keep_everything_else_on_the_disk() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = options(fs.clone()).clock(clock.clone()).manual_maintenance(true).open().unwrap();
    let policy = Policy::default().lease(SECOND).replay_ttl(SECOND).dedupe_ttl(SECOND);
    let orders = store.define("orders", &policy).unwrap();
    drop(orders.claim("a key to be found", None).unwrap());
    let bytes = read(&fs, "data-00000");
    let at = bytes.windows(17).position(|it| it == b"a key to be found").unwrap();
    poke(&fs, "data-00000", at as u64, b"?");
    for round in 1..40 {
        for number in 0..30 {
            let lease = orders.claim(big_key(1000 * round + number), None).unwrap();
            lease.acquired().unwrap().complete(b"outcome").unwrap();
        }
        for _ in 0..3 {
            clock.advance(20 * SECOND);
            store.maintain(Duration::MAX);
        }
    }
    let stats = store.stats();
    assert!(stats.recycled > 10, "{stats:?}");
}

/// A completion that cannot be read when its body is to go is tried again each second, for as long as the
/// store is open; whatever is due behind it goes.
#[test]
fn a_damaged_completion_keeps_no_other_waiting() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = options(fs.clone()).clock(clock.clone()).manual_maintenance(true).open().unwrap();
    let policy = Policy::default().lease(SECOND).replay_ttl(60 * SECOND);
    let orders = store.define("orders", &policy.dedupe_ttl(3600 * SECOND)).unwrap();
    let complete = |key: &[u8]| {
        orders.claim(key, None).unwrap().acquired().unwrap().complete([7; 3000]).unwrap();
    };
    complete(b"a key to be found");
    let bytes = read(&fs, "data-00000");
    let places = bytes.windows(17).enumerate().filter(|(_, it)| it == b"a key to be found");
    let places: Vec<u64> = places.map(|(at, _)| at as u64).collect();
    assert_eq!(places.len(), 2, "its claim and its completion");
    places.iter().for_each(|at| poke(&fs, "data-00000", *at, b"?"));
    (0..500_u64).for_each(|number| complete(&number.to_le_bytes()));
    for _ in 0..20 {
        clock.advance(10 * SECOND);
        store.maintain(Duration::MAX);
    }
    // All but those that share a segment with it.
    let stats = store.stats();
    assert!(stats.copied > 350, "{stats:?}");
    assert_eq!(stats.entries, 501);
    let found = orders.lookup("a key to be found");
    assert!(matches!(found, Err(StoreError::Corrupt { .. })), "{found:?}");
}

/// A damaged completion stays where it is, for as long as its key is kept: others are compacted all the
/// same.
#[test]
fn a_damaged_completion_does_not_end_compaction() {
    let (fs, clock) = (HeapFs::new(), SimClock::new());
    let store = options(fs.clone()).clock(clock.clone()).manual_maintenance(true).open().unwrap();
    let [brief, kept] = [("brief", 1), ("kept", 2000)].map(|(name, hours)| {
        let policy = Policy::default().replay_ttl(hours * 3600 * SECOND);
        store.define(name, &policy.dedupe_ttl(4000 * 3600 * SECOND)).unwrap()
    });
    let complete = |space: &Namespace, key: &[u8]| {
        space.claim(key, None).unwrap().acquired().unwrap().complete([7; 3000]).unwrap();
    };
    complete(&brief, b"a key to be found");
    let bytes = read(&fs, "data-00000");
    let places = bytes.windows(17).enumerate().filter(|(_, it)| it == b"a key to be found");
    let places: Vec<u64> = places.map(|(at, _)| at as u64).collect();
    places.iter().for_each(|at| poke(&fs, "data-00000", *at, b"?"));
    // Its replay window is over, and it cannot be copied without its body.
    for _ in 0..100 {
        clock.advance(60 * SECOND);
        store.maintain(Duration::MAX);
    }
    for number in 0..800_u64 {
        complete(&kept, &number.to_le_bytes());
        if number % 10 != 0 {
            kept.forget(number.to_le_bytes(), "a test", "nobody").unwrap();
        }
    }
    let before = store.stats();
    for _ in 0..400 {
        clock.advance(60 * SECOND);
        store.maintain(Duration::MAX);
    }
    let stats = store.stats();
    let is_smaller = stats.record_bytes < before.record_bytes / 2;
    assert!(is_smaller && stats.copied >= before.copied + 40, "{stats:?}, before {before:?}");
}

/// Futures that come while a round syncs wait for the next one. Who led for them again and again would
/// have no time for anything else while they keep coming.
#[test]
fn futures_that_keep_coming_do_not_keep_maintenance_from_its_work() {
    let late = Arc::new(Mutex::new((None::<Namespace>, vec![])));
    let come = Arc::clone(&late);
    let fs = HookFs::new(HeapFs::new(), move |operation, _| {
        if operation == "sync"
            && let (Some(orders), commits) = &mut *come.lock().unwrap()
            && commits.len() < 1000
        {
            let number = commits.len() as u64;
            let claim = orders.claim_async(number.to_le_bytes(), &ClaimOptions::new());
            commits.push(Box::pin(claim));
            poll(commits.last_mut());
        }
        Ok(())
    });
    let store = options(fs).clock(SimClock::new()).manual_maintenance(true).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let mut first = Box::pin(orders.claim_async("first", &ClaimOptions::new()));
    assert!(!poll(Some(&mut first)));
    late.lock().unwrap().0 = Some(orders);
    let next = store.maintain(Duration::MAX);
    let came = late.lock().unwrap().1.len();
    assert!((1..20).contains(&came), "{came} in one look");
    // Somebody waits: there is more to do, and soon.
    assert!(next.is_some_and(|next| next <= SECOND), "{next:?}");
    assert!(poll(Some(&mut first)));
    late.lock().unwrap().0 = None;
    for _ in 0..came {
        store.maintain(Duration::MAX);
    }
    assert!(late.lock().unwrap().1.iter_mut().all(|claim| poll(Some(claim))));
    late.lock().unwrap().1.clear();
}

/// Whether the future is ready. Nobody is woken.
fn poll<T: Future>(future: Option<&mut Pin<Box<T>>>) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    future.is_some_and(|it| it.as_mut().poll(&mut context).is_ready())
}

/// What has expired is dropped by the wall clock as it was when the segments were read; the clock
/// of the store starts later, and here lower.
#[test]
fn a_wall_clock_that_is_set_back_during_the_opening_forgets_nothing() {
    let (heap, clock) = (HeapFs::new(), SimClock::new());
    let store = options(heap.clone()).clock(clock.clone()).manual_maintenance(true).open().unwrap();
    let policy = Policy::default().lease(60 * SECOND).replay_ttl(600 * SECOND);
    let orders = store.define("orders", &policy.dedupe_ttl(600 * SECOND)).unwrap();
    orders.claim("a", None).unwrap().acquired().unwrap().complete(b"outcome").unwrap();
    store.close().unwrap();
    // The machine starts with its clock an hour ahead; then somebody sets it.
    let right = clock.wall();
    clock.set_wall(right + 3600 * SECOND);
    let reads = Arc::new(AtomicU32::new(0));
    let (count, setter) = (Arc::clone(&reads), clock.clone());
    let fs = HookFs::new(heap, move |operation, name| {
        // Behind the header and seven marks of the file, the headers and trailers of eight segments.
        let is_data = operation == "read" && name == "data-00000";
        if is_data && count.fetch_add(1, Ordering::SeqCst) == 24 {
            setter.set_wall(right + SECOND);
        }
        Ok(())
    });
    let store = options(fs).clock(clock.clone()).manual_maintenance(true).open().unwrap();
    assert!(reads.load(Ordering::SeqCst) > 24);
    let found = store.namespace("orders").unwrap().lookup("a").unwrap();
    assert!(matches!(found, Lookup::Completed(_)), "{found:?} a second later");
}

/// A segment is worth keeping for how many of its records are current, however few it holds: one
/// claim a minute that lasts for hours takes a segment of its own.
#[test]
fn a_few_long_claims_do_not_take_a_segment_each() {
    let clock = SimClock::new();
    let store =
        options(HeapFs::new()).clock(clock.clone()).manual_maintenance(true).open().unwrap();
    let orders = store.define("orders", &Policy::default()).unwrap();
    let day = ClaimOptions::new().lease(24 * 3600 * SECOND);
    for number in 0..200_u64 {
        drop(orders.claim_with(number.to_le_bytes(), &day).unwrap());
        for _ in 0..3 {
            clock.advance(20 * SECOND);
            store.maintain(Duration::MAX);
        }
    }
    let stats = store.stats();
    let segments = stats.wal_bytes / (256 << 10);
    assert!(segments < 20, "{} bytes of records in {segments} segments", stats.record_bytes);
}

/// Sixteen segments of claims wait behind the first, and all of them are current: each one that was
/// copied makes room for nothing, and the copies are the next to be copied, for ever.
#[test]
fn many_long_claims_are_not_copied_over_and_over() {
    let clock = SimClock::new();
    let options = options(HeapFs::new()).clock(LookedAt(clock.clone()));
    let store = options.manual_maintenance(true).open().unwrap();
    let orders = store.define("orders", &Policy::default()).unwrap();
    let day = ClaimOptions::new().lease(24 * 3600 * SECOND);
    let claims = 40 * 60;
    for number in 0..claims {
        drop(orders.claim_with(big_key(number), &day).unwrap());
    }
    let before = store.stats().disk_bytes;
    for _ in 0..1000 {
        clock.advance(20 * SECOND);
        store.maintain(Duration::from_millis(5));
        let copied = store.stats().copied;
        assert!(copied <= claims, "{copied} copied of {claims}");
    }
    // With others that come and go, what is dead is no more than what lives.
    for round in 1..400 {
        noise(&orders, 10_000 * round..10_000 * round + 30);
        clock.advance(20 * SECOND);
        store.maintain(Duration::MAX);
    }
    let stats = store.stats();
    assert!(stats.disk_bytes < 3 * before, "{stats:?}, before {before}");
    assert!(stats.copied < 3 * claims + 2 * 400 * 60, "{stats:?}");
}
