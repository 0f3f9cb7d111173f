//! The engine on a simulated disk, with everything that can go wrong going wrong: seed by seed, the
//! same seed the same run.
//!
//! `REFRAIN_SEEDS` is the number of seeds (CI: 10,000 in release, some hundreds here), `REFRAIN_SEED`
//! the first of them, `REFRAIN_STEPS` how long each is.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use support::simulation::{Seen, Simulation};

/// What must have happened in a run of some length; the rest is printed with it.
const MUST_BE_SEEN: &[&str] = &[
    "a power cut dropped what was acknowledged as buffered",
    "alter",
    "alter failed",
    "came to its end",
    "claim: completed",
    "claim: resumed",
    "claim: fingerprint required",
    "claim: granted",
    "claim: held",
    "claim: mismatch",
    "claim: parked",
    "claim: taken over",
    "batch",
    "close",
    "close failed",
    "complete: already completed",
    "complete: done",
    "complete: done without room",
    "complete: fenced",
    "complete: forgotten",
    "complete: refused parked",
    "crash in alter",
    "crash in claim",
    "crash in close",
    "crash in complete",
    "crash in flush",
    "crash in forget",
    "crash in maintenance",
    "crash in once",
    "crash in park",
    "crash in release",
    "crash in renew",
    "crash in resolve",
    "disk is small",
    "disk: create failed",
    "disk: disk full",
    "disk: entry lost",
    "disk: fill failed",
    "disk: kill",
    "disk: list failed",
    "disk: lock failed",
    "disk: map failed",
    "disk: open failed",
    "disk: page written back",
    "disk: power cut",
    "disk: power cut lost writes",
    "disk: power cut tore a page",
    "disk: read failed",
    "disk: sync failed",
    "disk: sync_dir failed",
    "disk: unwritten page dropped",
    "disk: write failed",
    "error: full",
    "error: poisoned",
    "error: unknown",
    "flush",
    "flush failed",
    "admit failed",
    "admit: newer",
    "admit: stale",
    "admit: the same",
    "crash in admit",
    "crash in forget all",
    "erased with others",
    "forgotten with others",
    "erase: erased",
    "erase: nothing to erase",
    "crash in erase",
    "forget: forgotten by hand",
    "lookup: absent",
    "lookup: completed",
    "lookup: held",
    "lookup: lapsed",
    "lookup: parked",
    "maintenance copied",
    "maintenance made a round",
    "maintenance purged",
    "maintenance recycled",
    "once: completed",
    "once: held",
    "once: marked",
    "once: marked over",
    "once: mismatch",
    "once: parked",
    "open failed",
    "park: accepted",
    "park: fenced",
    "power cut while closed",
    "release: accepted",
    "release: fenced",
    "renew: renewed",
    "renew: renewed late",
    "resolve: accepted",
    "resolve: already completed",
    "resolve: done",
    "resolve: refused in progress",
    "tail rewritten",
    "time passes",
    "torn tail",
    "wall clock stepped",
    "what was under way is there",
    "window extended",
    // Where a process can end.
    "Kill during create",
    "Kill during fill",
    "Kill during store",
    "Kill during sync",
    "Kill during write",
    "PowerCut during create",
    "PowerCut during fill",
    "PowerCut during map",
    "PowerCut during store",
    "PowerCut during sync",
    "PowerCut during sync_dir",
    "PowerCut during write",
    "Kill during read of open",
    "Kill during sync of open",
    "Kill during write of open",
    "PowerCut during rename of open",
    "PowerCut during read of open",
    "PowerCut during sync of open",
    "PowerCut during sync_dir of open",
    "PowerCut during write of open",
];

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn whatever_goes_wrong_nothing_acknowledged_is_lost() {
    let first = support::seed("simulation");
    let seeds = number("REFRAIN_SEEDS", 300);
    let steps = number("REFRAIN_STEPS", 220);
    let next = AtomicU64::new(0);
    let has_failed = AtomicBool::new(false);
    let seen = Mutex::new(Seen::new());
    let start = Instant::now();
    std::thread::scope(|scope| {
        // One in each of two processes is faster: a barrier in all threads of a process interrupts the others.
        for _ in 0..number("REFRAIN_THREADS", 2) {
            scope.spawn(|| {
                let mut own = Seen::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= seeds || has_failed.load(Ordering::Relaxed) {
                        break;
                    }
                    let seed = first.wrapping_add(number);
                    let mut simulation = Simulation::new(seed);
                    let run = AssertUnwindSafe(|| simulation.run(steps));
                    if std::panic::catch_unwind(run).is_err() {
                        has_failed.store(true, Ordering::Relaxed);
                        // The same again, with a trace.
                        let mut again = Simulation::new(seed);
                        again.trace = Some(vec![]);
                        let run = AssertUnwindSafe(|| again.run(steps));
                        let failed = std::panic::catch_unwind(run).is_err();
                        for line in again.trace.into_iter().flatten() {
                            println!("| {line}");
                        }
                        assert!(failed, "seed {seed} failed once, and then did not");
                        println!("seed {seed} failed: REFRAIN_SEED={seed} REFRAIN_SEEDS=1 REFRAIN_STEPS={steps}");
                    }
                    for (what, count) in std::mem::take(&mut simulation.seen) {
                        *own.entry(what).or_default() += count;
                    }
                }
                let mut seen = seen.lock().unwrap();
                for (what, count) in own {
                    *seen.entry(what).or_default() += count;
                }
            });
        }
    });
    let seen = seen.into_inner().unwrap();
    for (what, count) in &seen {
        println!("{count:>12}  {what}");
    }
    let per_seed = |what: &str| seen.get(what).copied().unwrap_or(0) as f64 / seeds as f64;
    println!(
        "{seeds} seeds of {steps} steps in {:.0} s; {:.1} kills and {:.1} power cuts a seed",
        start.elapsed().as_secs_f64(),
        per_seed("disk: kill"),
        per_seed("disk: power cut"),
    );
    assert!(!has_failed.load(Ordering::Relaxed), "a seed failed");
    if seeds >= 2000 {
        for what in MUST_BE_SEEN {
            assert!(seen.contains_key(*what), "never happened: {what}");
        }
    }
}
