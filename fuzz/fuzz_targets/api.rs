//! Any run of calls, with wrong tokens, clocks that are set, closes and kills between: every answer is the model's.
#![no_main]

mod suite;

use suite::bytes::steps;
use suite::world::World;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut world = World::new();
    for step in steps(bytes, 120) {
        world.step(&step);
    }
    world.compare_all();
});
