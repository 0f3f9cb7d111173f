//! Claims are destroyed in the order in which they were filled (R3), also by a later open, and also
//! in a store that salvage has made.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

use std::time::Duration;

use refrain::testing::{Crash, SimClock, SimDisk};
use refrain::{
    ClaimOptions, Durability, FencingToken, Lookup, Namespace, OnLeaseEnd, Options, Policy, Store,
};

const SECOND: Duration = Duration::from_secs(1);

struct Bench {
    disk: SimDisk,
    clock: SimClock,
    noise: u64,
}

impl Bench {
    fn new() -> Self {
        Self { disk: SimDisk::new(7), clock: SimClock::new(), noise: 0 }
    }

    fn options(&self, disk: &SimDisk) -> Options {
        Options::new("unused")
            .file_system(disk.mount())
            .clock(self.clock.clone())
            .durability(Durability::Sync)
            .shards(1)
            .shared_by_chance(1)
            .segment_bytes(256 << 10)
            .manual_maintenance(true)
    }

    fn open(&self, disk: &SimDisk) -> Store {
        self.options(disk).open().unwrap()
    }

    /// Claims and gives back other keys: about a segment of claims for 30.
    fn noise(&mut self, noise: &Namespace, count: u64) {
        for _ in 0..count {
            self.noise += 1;
            let mut key = vec![b'n'; 4096];
            key[..8].copy_from_slice(&self.noise.to_le_bytes());
            let lease = noise.claim(&key, None).unwrap().acquired().unwrap();
            lease.release().unwrap();
        }
    }
}

fn settle(store: &Store, clock: &SimClock) {
    for _ in 0..6 {
        clock.advance(2 * SECOND);
        store.maintain(Duration::MAX);
    }
}

/// Claims `x`, and ends the claim by a record that lies in a segment with a lower generation than the
/// claim's.
fn prepare(
    bench: &mut Bench,
    policy: Policy,
    claim: impl FnOnce(&Namespace) -> FencingToken,
    end: impl FnOnce(&Namespace, &SimClock, FencingToken),
) {
    let store = bench.open(&bench.disk);
    let orders = store.define("orders", &policy).unwrap();
    let noise = store.namespace("noise").unwrap();
    // Most of the first file is used; a second one is made ahead; the first is recycled.
    let held: Vec<_> = (0..110_u8)
        .map(|number| {
            let key = [vec![number], vec![b'h'; 4000]].concat();
            let token = noise.claim(&key, None).unwrap().acquired().unwrap().token();
            (key, token)
        })
        .collect();
    settle(&store, &bench.clock);
    for (key, token) in held {
        noise.release(&key, token).unwrap();
    }
    bench.noise(&noise, 60);
    settle(&store, &bench.clock);
    // A completion, so that a stream is active in the first file.
    noise.claim("y", None).unwrap().acquired().unwrap().complete(b"outcome").unwrap();
    // The rest of the first file, and into what was recycled.
    bench.noise(&noise, 80);
    let token = claim(&orders);
    // To the end of the first file, and on into the second.
    bench.noise(&noise, 170);
    end(&orders, &bench.clock, token);
    assert!(matches!(orders.lookup("x").unwrap(), Lookup::Absent));
    store.flush().unwrap();
    store.abandon();
}

/// Opens the store, ends it at every step of what maintenance does, and opens it again: `x` was
/// released, and stays so.
fn stays_released(bench: &Bench, from: &SimDisk) {
    for steps in 0.. {
        let disk = from.copy(Some(steps));
        disk.crash(Crash::Kill);
        let store = bench.open(&disk);
        assert!(matches!(store.namespace("orders").unwrap().lookup("x").unwrap(), Lookup::Absent));
        disk.crash_after(steps, Crash::Kill);
        settle(&store, &bench.clock);
        let was_ended = disk.crashed().is_some();
        let recycled = store.stats().recycled;
        store.abandon();
        disk.crash(Crash::PowerCut);
        let store = bench.open(&disk);
        let found = store.namespace("orders").unwrap().lookup("x").unwrap();
        assert!(matches!(found, Lookup::Absent), "step {steps}, {recycled} recycled: {found:?}");
        store.abandon();
        if !was_ended {
            assert!(recycled > 3, "{recycled} recycled");
            break;
        }
    }
}

/// Generations do not rise in the order in which segments are filled: one in a file that is written
/// to anyway goes first. A later open takes them in the order of their generations.
#[test]
fn a_released_key_stays_released_when_a_later_open_destroys_the_claims() {
    let mut bench = Bench::new();
    let parks = Policy::default().on_lease_end(OnLeaseEnd::Park);
    let claim = |orders: &Namespace| orders.claim("x", None).unwrap().acquired().unwrap().token();
    prepare(&mut bench, parks, claim, |orders, _, token| orders.release("x", token).unwrap());
    stays_released(&bench, &bench.disk);
}

/// A claim that ran out is taken over by a shorter one, which is over before the first is forgotten, in a
/// segment that a later open destroys before the first one's: then the first would be what the key's
/// last record is.
#[test]
fn a_claim_stays_superseded_when_its_successor_is_over_first() {
    for is_released in [false, true] {
        let mut bench = Bench::new();
        let long = |orders: &Namespace| {
            let long = ClaimOptions::new().lease(600 * SECOND);
            orders.claim_with("x", &long).unwrap().acquired().unwrap().token()
        };
        prepare(&mut bench, Policy::default(), long, |orders, clock, _| {
            clock.advance(601 * SECOND);
            let short = ClaimOptions::new().lease(SECOND);
            let lease = orders.claim_with("x", &short).unwrap().acquired().unwrap();
            assert_eq!(lease.attempt(), 2);
            if is_released {
                lease.release().unwrap();
            }
            clock.advance(120 * SECOND);
        });
        stays_released(&bench, &bench.disk);
    }
}

/// Salvage copies segments in the order of their numbers, and the new store destroys the copies in
/// the order in which they were made.
#[test]
fn a_released_key_stays_released_in_a_salvaged_store() {
    let mut bench = Bench::new();
    let store = bench.open(&bench.disk);
    let parks = Policy::default().on_lease_end(OnLeaseEnd::Park);
    let orders = store.define("orders", &parks).unwrap();
    let noise = store.namespace("noise").unwrap();
    bench.noise(&noise, 150);
    settle(&store, &bench.clock);
    assert!(store.stats().recycled >= 4);
    // Into the last segments of the file, and on into its first ones.
    bench.noise(&noise, 50);
    let token = orders.claim("x", None).unwrap().acquired().unwrap().token();
    bench.noise(&noise, 70);
    orders.release("x", token).unwrap();
    store.close().unwrap();
    let target = SimDisk::new(8);
    let report = bench.options(&bench.disk).salvage(bench.options(&target)).unwrap();
    assert_eq!((report.gaps, report.damage.len()), (0, 0));
    stays_released(&bench, &target);
}

/// What ended a claim is not copied while the claim's own segment goes first.
#[test]
fn a_released_key_stays_released_when_the_claims_go_in_one_look() {
    for steps in 0.. {
        let mut bench = Bench::new();
        let store = bench.open(&bench.disk);
        let parks = Policy::default().on_lease_end(OnLeaseEnd::Park);
        let orders = store.define("orders", &parks).unwrap();
        let noise = store.namespace("noise").unwrap();
        let token = orders.claim("x", None).unwrap().acquired().unwrap().token();
        bench.noise(&noise, 70);
        orders.release("x", token).unwrap();
        bench.noise(&noise, 70);
        store.flush().unwrap();
        bench.disk.crash_after(steps, Crash::Kill);
        settle(&store, &bench.clock);
        let was_ended = bench.disk.crashed().is_some();
        let recycled = store.stats().recycled;
        store.abandon();
        for cut in 0..8 {
            let disk = bench.disk.copy(Some(8 * steps + cut));
            disk.crash(Crash::PowerCut);
            let store = bench.open(&disk);
            let found = store.namespace("orders").unwrap().lookup("x").unwrap();
            assert!(
                matches!(found, Lookup::Absent),
                "step {steps}, {recycled} recycled: {found:?}"
            );
            store.abandon();
        }
        if !was_ended {
            assert!(recycled > 3, "{recycled} recycled");
            break;
        }
    }
}
