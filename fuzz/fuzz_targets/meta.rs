//! A meta file with right checksums and any fields at all: opened or refused, never a panic.
#![no_main]

mod common;

use refrain::testing::seal_meta;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((how, edits)) = bytes.split_first() else { return };
    let disk = common::base(how & 1 == 0);
    let mut meta = disk.read("META");
    let slot = meta.len() / 2;
    for edit in edits.chunks_exact(10) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % (slot - 8);
        for start in [0, slot] {
            // Both slots, or one of them.
            if how & 2 == 0 || (start == 0) == (how & 4 == 0) {
                meta[start + at..start + at + 8].copy_from_slice(&edit[2..]);
            }
        }
    }
    let (one, other) = meta.split_at_mut(slot);
    seal_meta(one);
    seal_meta(other);
    disk.tamper("META", 0, &meta, None);
    common::open_and_use(&disk);
});
