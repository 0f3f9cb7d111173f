//! Real input: the ledger cut that is shipped, and larger traces that may lie beside the project.

use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

/// The shipped cut of the retail ledger: a header and 72,000 lines.
pub fn ledger_cut() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/online-retail-72k.csv.gz");
    gunzip(&fs::read(path).unwrap())
}

/// A trace of the folder `../shared/data`, unpacked. `None`, said loudly, where it is absent.
pub fn trace(name: &str) -> Option<Vec<u8>> {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    let Ok(packed) = fs::read(folder.join(name)) else {
        println!("!!!! SKIPPED: {name} (it is not here)");
        return None;
    };
    Some(match name.rsplit('.').next().unwrap() {
        "xz" => {
            let mut bytes = vec![];
            lzma_rs::xz_decompress(&mut &packed[..], &mut bytes).unwrap();
            bytes
        }
        "zst" => {
            let mut bytes = vec![];
            let mut decoder = ruzstd::decoding::StreamingDecoder::new(&packed[..]).unwrap();
            decoder.read_to_end(&mut bytes).unwrap();
            bytes
        }
        "gz" => gunzip(&packed),
        other => panic!("{other} is packed in a way nobody knows"),
    })
}

fn gunzip(packed: &[u8]) -> Vec<u8> {
    let mut bytes = vec![];
    GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
    bytes
}

/// The lines, without their newlines; what follows the last newline is one, if there is anything.
pub fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split_inclusive(|byte| *byte == b'\n').map(|it| it.strip_suffix(b"\n").unwrap_or(it))
}

/// Every line the first time it comes, in order, each with a newline.
pub fn first_sights(bytes: &[u8]) -> Vec<u8> {
    let mut seen = HashSet::new();
    let mut first = vec![];
    for line in lines(bytes).filter(|line| seen.insert(*line)) {
        first.extend_from_slice(line);
        first.push(b'\n');
    }
    first
}
