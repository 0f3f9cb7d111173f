//! Anything at all in the data file: headers, marks, records, trailers; with right checksums where
//! a record is named.
#![no_main]

mod common;

use refrain::testing::seal_record;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((how, edits)) = bytes.split_first() else { return };
    let disk = common::base(how & 1 == 0);
    let mut edits = edits;
    // Where, in units of 16 bytes; how long; whether to give it a record's checksums.
    while let [low, high, len, flags, rest @ ..] = edits {
        let at = usize::from(u16::from_le_bytes([*low, *high])) * 16;
        let (edit, left) = rest.split_at(usize::from(*len).min(rest.len()));
        if flags & 1 == 0 {
            disk.tamper("data-00000", at as u64, edit, None);
        } else {
            let mut data = disk.read("data-00000");
            if let Some(place) = data.get_mut(at..at + edit.len()) {
                place.copy_from_slice(edit);
                seal_record(&mut data, at);
                disk.tamper("data-00000", 0, &data, None);
            }
        }
        edits = left;
    }
    common::open_and_use(&disk);
});
