//! Whoever appends takes no page faults: maintenance does.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

use std::fs;
use std::time::Duration;

use refrain::{Durability, Once, Options};

/// Page faults of this thread that needed no disk.
fn faults() -> u64 {
    let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
    let behind_name = stat.rsplit_once(") ").unwrap().1;
    behind_name.split(' ').nth(7).unwrap().parse().unwrap()
}

/// Whoever appends takes no page fault for it: maintenance has taken them.
#[test]
fn segments_are_made_ready_before_they_are_filled() {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|it| it.parse::<u32>().unwrap_or(0));
    if (numbers.next(), numbers.next()) < (Some(5), Some(14)) {
        eprintln!("!!!! SKIPPED: Linux {release} cannot take page faults beforehand");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // Its files lie in small pages: of large ones there are few faults, whoever takes them.
    let durability = Durability::Interval(Duration::from_secs(3600));
    let options = Options::new(directory.path()).durability(durability).shards(1);
    let store = options.manual_maintenance(true).segment_bytes(2 << 20).open().unwrap();
    let orders = store.namespace("orders").unwrap();
    let append = |keys: std::ops::Range<u64>| {
        for key in keys {
            let key = [&key.to_le_bytes()[..], &[7; 1000]].concat();
            assert!(matches!(orders.once(key, None).unwrap(), Once::First(_)));
        }
    };
    append(0..100);
    let before = faults();
    append(100..1600);
    let unready = faults() - before;
    store.maintain(Duration::MAX);
    let before = faults();
    // To the end of the active segment, and through two more.
    append(1600..4800);
    let ready = faults() - before;
    assert!(unready > 200 && ready < unready / 4, "{unready} faults, then {ready}");
    // A sync cleans the pages, and storing to them faults again.
    store.flush().unwrap();
    append(4800..4801);
    store.maintain(Duration::MAX);
    let before = faults();
    append(4801..6300);
    assert!(faults() - before < unready / 4, "{} faults behind a sync", faults() - before);
    // What is made ready is written to the disk with the next sync: of a quiet store that is little.
    store.maintain(Duration::MAX);
    store.flush().unwrap();
    append(6300..6301);
    let before = faults();
    store.maintain(Duration::MAX);
    assert!(faults() - before < 60, "{} faults for one record", faults() - before);
}
