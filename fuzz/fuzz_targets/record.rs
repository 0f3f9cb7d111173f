//! Bytes as a record: never a panic, and what decodes can be written and decoded again.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| refrain::testing::exercise_record(bytes));
