//! The fuzz corpora, run once each without a fuzzer.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::path::Path;

use proptest::prelude::*;

use support::bytes::steps;
use support::world::World;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = std::fs::read_dir(folder).unwrap();
    files.map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
}

#[test]
fn every_record_of_the_corpus_is_read_without_a_panic() {
    let corpus = corpus("record");
    assert!(corpus.len() >= 8, "the corpus has {} inputs", corpus.len());
    for bytes in corpus {
        refrain::testing::exercise_record(&bytes);
        // And every shorter one, and some that differ in a byte.
        for at in 0..bytes.len() {
            refrain::testing::exercise_record(&bytes[..at]);
            let mut other = bytes.clone();
            other[at] ^= 1 << (at % 8);
            refrain::testing::exercise_record(&other);
        }
    }
}

#[test]
fn every_run_of_calls_of_the_corpus_is_answered_as_the_model_says() {
    let corpus = ["api", "differential"].map(corpus);
    assert!(corpus.iter().all(|inputs| inputs.len() >= 40), "the corpora have inputs");
    for bytes in corpus.iter().flatten() {
        let mut world = World::new();
        for step in steps(bytes, 120) {
            world.step(&step);
        }
        world.compare_all();
        world.compare_recovered(bytes.first().copied().unwrap_or_default());
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        refrain::testing::exercise_record(&bytes);
    }
}
