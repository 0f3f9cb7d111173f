//! Any run of calls; then three stores answer for each key: the one that was there, one that recovery made of
//! its files by their indexes, and one that it made by reading every record, with other shards and lanes.
#![no_main]

mod suite;

use suite::bytes::steps;
use suite::world::World;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((how, bytes)) = bytes.split_first() else { return };
    let mut world = World::new();
    for step in steps(bytes, 120) {
        world.step(&step);
    }
    world.compare_recovered(*how);
});
