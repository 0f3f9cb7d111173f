//! A directory whose files were changed anywhere and then got all their checksums right again: what no
//! checksum tells must be told by what the bytes say, or do no harm.
#![no_main]

mod common;

use refrain::testing::{seal_data, seal_meta, seal_names};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((how, mut edits)) = bytes.split_first() else { return };
    let disk = common::base(how & 1 == 0);
    let mut files = ["META", "NAMES", "data-00000"].map(|name| (name, disk.read(name)));
    // Which file, where, how long; places in a data file are multiples of four, so that few bytes reach far.
    while let [which, low, high, len, rest @ ..] = edits {
        let (edit, left) = rest.split_at(usize::from(*len % 17).min(rest.len()));
        let (_, file) = &mut files[usize::from(which % 3)];
        let units = usize::from(u16::from_le_bytes([*low, *high])) << (which / 3 % 8);
        let at = units * 4 % file.len().max(1);
        if let Some(place) = file.get_mut(at..at + edit.len()) {
            place.copy_from_slice(edit);
        }
        edits = left;
    }
    let [(_, meta), (_, names), (_, data)] = &mut files;
    let half = meta.len() / 2;
    let (one, other) = meta.split_at_mut(half);
    seal_meta(one);
    seal_meta(other);
    let mut store_id = [0; 16];
    store_id.copy_from_slice(&data[16..32]);
    seal_names(names, &store_id);
    seal_data(data, 0);
    for (name, file) in &files {
        disk.tamper(name, 0, file, None);
    }
    common::open_and_use(&disk);
});
