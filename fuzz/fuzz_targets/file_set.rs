//! A whole directory as one input: files changed, cut, grown, renamed, removed, made up.
#![no_main]

mod common;

const NAMES: [&str; 6] = ["META", "NAMES", "data-00000", "data-00001", "META.new", "data-16383"];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((how, edits)) = bytes.split_first() else { return };
    let disk = common::base(how & 1 == 0);
    let mut edits = edits;
    while let [what, low, middle, high, len, rest @ ..] = edits {
        let name = NAMES[usize::from(*what) % NAMES.len()];
        let at = u64::from(u32::from_le_bytes([*low, *middle, *high, 0])) % (2 << 20);
        let (edit, left) = rest.split_at(usize::from(*len).min(rest.len()));
        match what / 64 {
            0 | 1 => disk.tamper(name, at, edit, None),
            2 => disk.tamper(name, 0, &[], Some(at)),
            _ => disk.displace(name, edit.first().map(|to| NAMES[usize::from(*to) % NAMES.len()])),
        }
        edits = left;
    }
    common::open_and_use(&disk);
});
