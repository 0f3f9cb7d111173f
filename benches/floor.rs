//! What do memory and checksums alone cost a duplicate, and what is left for us to save?
//!
//! N completed keys of 36 bytes, with bodies of 128, in a scattered order. *Two lines*: a line of an index as large
//! as the table, and the record that it names, in a file written as segments are; the key is compared and the
//! body copied, and nothing else is done: no hash, no clock, no time to live, no checksum. *Checked*: the same with the key
//! hashed and the checksums of the record and of its body computed, which is how it is known that both are what was written.
//! *Checked, owned*: and the body copied into memory of its own, which a duplicate's answer holds. Beside them the same of a
//! `DashMap` with a fast hash and room made, of a lookup and of a duplicate claim.
//!
//! Then what a first claim costs at least that outlives its process, beside the map's insert: the key hashed, a claim's record with its checksum
//! built and copied behind the last one, a line of the index; without locks, clock, waiting for others and all else. What is written to
//! was written to before, on both sides. The harness tells what a first claim takes with room ready, beside the same map.
//!
//! Duplicates twice: *back to back*, calls follow one another and the processor works ahead into those that come next, as far as its
//! window of some 500 instructions reaches; *one by one*, which key comes next is not known before the answer, as
//! where a call stands alone between other work. All alternate, and the ratios count.
#![allow(missing_docs, reason = "a program")]
#![allow(unsafe_code, reason = "maps a file")]

mod common;

use std::hint::black_box;
use std::io::Write;
use std::time::Instant;

use ahash::RandomState;
use dashmap::DashMap;
use memmap2::{Mmap, MmapMut};
use refrain::{Body, Claim, Lookup, Namespace};
use xxhash_rust::xxh3::xxh3_128;

use common::{BODY, Key, fill, key, median, namespace, scattered, stores};

const ROUNDS: usize = 9;
const CALLS: u64 = 500_000;

/// Of a line of the table, so many of seven slots are taken once it is 70 % full.
const KEYS_A_LINE: u64 = 5;
/// A claim and a completion, as they lie in a segment.
const RECORD_BYTES: usize = 352;
/// The completion, its key and its body.
const KEY_AT: usize = 112 + 64;
const BODY_AT: usize = KEY_AT + 40;
const COMPLETION_AT: usize = 112;

/// Copies the body of a key out of somewhere.
type Read<'a> = &'a dyn Fn(u64, &Key, &mut [u8; BODY.len()]);

fn main() {
    for count in common::sizes() {
        compare(count);
    }
}

fn compare(count: u64) {
    let keys: Vec<Key> = (0..count).map(key).collect();
    duplicates(&keys);
    first_claims(&keys);
}

fn duplicates(keys: &[Key]) {
    let count = keys.len() as u64;
    let lines = Lines::new(keys);
    let map = DashMap::with_capacity_and_hasher(keys.len(), RandomState::new());
    for key in keys {
        map.insert(*key, BODY);
    }
    let (_, store, _directory) = stores().next().expect("the one in a directory");
    let space = namespace(&store);
    fill(&space, 0..count);

    let reads: [(&str, Read<'_>); 6] = [
        ("two lines", &|n, key, body| lines.read(n, key, body)),
        ("checked", &|n, key, body| body.copy_from_slice(lines.read_checked(n, key))),
        ("checked, owned", &|n, key, body| {
            let owned = black_box(lines.read_checked(n, key).to_vec());
            body.copy_from_slice(&owned);
        }),
        ("DashMap", &|_, key, body| *body = *map.get(key).expect("it is there")),
        ("lookup_with", &|_, key, body| show(&space, key, body)),
        ("claim", &|_, key, body| claim(&space, key, body)),
    ];
    // Scattered, and each key asked for with its number, so that nobody looks anything up for that.
    let calls = CALLS.min(count);
    let stream: Vec<(u64, Key)> =
        (0..calls).map(|n| scattered(n, count)).map(|n| (n, keys[n as usize])).collect();
    let mut times = [const { [const { Vec::new() }; 2] }; 6];
    for _ in 0..ROUNDS {
        for ((_, read), times) in reads.iter().zip(&mut times) {
            times[0].push(back_to_back(&stream, *read));
            times[1].push(one_by_one(&stream, *read));
        }
    }
    println!("\n{count} keys; medians of {ROUNDS} rounds, alternating");
    let [map_back_to_back, map_one_by_one] = times[3].each_ref().map(|it| median(&mut it.clone()));
    for ((name, _), times) in reads.iter().zip(&mut times) {
        let [back_to_back, one_by_one] = times.each_mut().map(|it| median(it));
        println!(
            "{name:<14} back to back {back_to_back:>6.1} ns, {:>5.2} x the map; one by one {one_by_one:>6.1} ns, {:>5.2} x",
            back_to_back / map_back_to_back,
            one_by_one / map_one_by_one
        );
    }
}

fn first_claims(keys: &[Key]) {
    let count = keys.len() as u64;
    let stream: Vec<u64> = (0..count).map(|n| scattered(n, count)).collect();
    let map = DashMap::with_capacity_and_hasher(keys.len(), RandomState::new());
    let mut lines = Appended::new(count);
    let mut times = [const { Vec::new() }; 2];
    // The first round touches the memory.
    for round in 0..=ROUNDS {
        map.clear();
        let start = Instant::now();
        for n in &stream {
            // Token, deadline, and the body once there is one.
            let claimed: (u64, u64, Option<Box<[u8]>>) = (*n, *n, None);
            assert!(map.insert(keys[*n as usize], claimed).is_none(), "it is new");
        }
        let by_map = start.elapsed();
        lines.clear();
        let start = Instant::now();
        for n in &stream {
            lines.append(*n, &keys[*n as usize]);
        }
        let by_lines = start.elapsed();
        if round > 0 {
            for (times, took) in times.iter_mut().zip([by_map, by_lines]) {
                times.push(took.as_nanos() as f64 / count as f64);
            }
        }
    }
    let [map, lines] = times.each_mut().map(|it| median(it));
    println!(
        "first claims   DashMap {map:>6.1} ns; appended {lines:>6.1} ns, {:>5.2} x the map",
        lines / map
    );
}

fn back_to_back(stream: &[(u64, Key)], read: Read<'_>) -> f64 {
    let mut body = [0; BODY.len()];
    let start = Instant::now();
    for (n, key) in stream {
        read(*n, key, &mut body);
        black_box(&body);
    }
    start.elapsed().as_nanos() as f64 / stream.len() as f64
}

fn one_by_one(stream: &[(u64, Key)], read: Read<'_>) -> f64 {
    let mut body = [0; BODY.len()];
    // Nothing, which the compiler does not know.
    let nothing = black_box(0_u8);
    let mut at = 0;
    let start = Instant::now();
    for _ in 0..stream.len() {
        let (n, key) = &stream[at];
        read(*n, key, &mut body);
        black_box(&body);
        at += 1 + usize::from((body[0] ^ body[body.len() - 1]) & nothing);
    }
    start.elapsed().as_nanos() as f64 / stream.len() as f64
}

/// An index, and records in a file.
struct Lines {
    index: Vec<[u64; 8]>,
    records: Mmap,
}

impl Lines {
    fn new(keys: &[Key]) -> Self {
        let mut file = tempfile::tempfile().expect("a temporary file");
        let mut piece = Vec::with_capacity(3 << 20);
        for key in keys {
            let start = piece.len();
            piece.resize(start + RECORD_BYTES, 0);
            piece[start + KEY_AT..][..key.len()].copy_from_slice(key);
            piece[start + BODY_AT..][..BODY.len()].copy_from_slice(&BODY);
            if piece.len() >= 2 << 20 {
                file.write_all(&piece[..2 << 20]).expect("room on the disk");
                piece.drain(..2 << 20);
            }
        }
        file.write_all(&piece).expect("room on the disk");
        // SAFETY: nobody else knows the file.
        let records = unsafe { Mmap::map(&file) }.expect("a mapping");
        let mut index = vec![[0; 8]; keys.len() / KEYS_A_LINE as usize + 1];
        for n in 0..keys.len() as u64 {
            let (line, slot) = Self::place(n, index.len() as u64);
            index[line][slot] = n;
        }
        Self { index, records }
    }

    /// Neighbours lie far apart: no count that is asked for is a multiple of the number.
    fn place(n: u64, lines: u64) -> (usize, usize) {
        let line = (n / KEYS_A_LINE) * 1_000_003 % lines;
        (line as usize, 1 + (n % KEYS_A_LINE) as usize)
    }

    fn record(&self, n: u64, key: &Key) -> &[u8] {
        let (line, slot) = Self::place(n, self.index.len() as u64);
        let record = &self.records[self.index[line][slot] as usize * RECORD_BYTES..];
        assert!(record[KEY_AT..][..key.len()] == key[..], "it is there");
        record
    }

    fn read(&self, n: u64, key: &Key, body: &mut [u8; BODY.len()]) {
        body.copy_from_slice(&self.record(n, key)[BODY_AT..][..BODY.len()]);
    }

    fn read_checked(&self, n: u64, key: &Key) -> &[u8] {
        black_box(xxh3_128(key));
        let record = self.record(n, key);
        let body = &record[BODY_AT..][..BODY.len()];
        // What they should be is not known here; the work is the same.
        black_box(crc32fast::hash(&record[COMPLETION_AT..BODY_AT]));
        black_box(crc32fast::hash(body));
        body
    }
}

/// An index, and a file that claims are appended to.
struct Appended {
    index: Vec<[u64; 8]>,
    records: MmapMut,
    end: usize,
}

impl Appended {
    fn new(count: u64) -> Self {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(count * COMPLETION_AT as u64).expect("room on the disk");
        // SAFETY: nobody else knows the file.
        let records = unsafe { MmapMut::map_mut(&file) }.expect("a mapping");
        let lines = count / KEYS_A_LINE + 1;
        Self { index: vec![[0; 8]; lines as usize], records, end: 0 }
    }

    fn clear(&mut self) {
        self.index.fill([0; 8]);
        self.end = 0;
    }

    fn append(&mut self, n: u64, key: &Key) {
        let hash = xxh3_128(key);
        let mut record = [0; COMPLETION_AT];
        record[24..40].copy_from_slice(&hash.to_le_bytes());
        record[64..][..key.len()].copy_from_slice(key);
        let checksum = crc32fast::hash(&record[8..64 + key.len()]);
        record[..4].copy_from_slice(&checksum.to_le_bytes());
        self.records[self.end..][..COMPLETION_AT].copy_from_slice(&record);
        let (line, slot) = Lines::place(n, self.index.len() as u64);
        let taken = std::mem::replace(&mut self.index[line][slot], self.end as u64 + 1);
        assert_eq!(taken, 0, "it is new");
        self.end += COMPLETION_AT;
    }
}

fn copy(shown: Body<'_>, body: &mut [u8; BODY.len()]) {
    let Body::Bytes(bytes) = shown else { panic!("the body is there") };
    body.copy_from_slice(bytes);
}

fn show(space: &Namespace, key: &Key, body: &mut [u8; BODY.len()]) {
    let shown = space.lookup_with(key, |lookup| match lookup {
        Lookup::Completed(outcome) => copy(outcome.body(), body),
        other => panic!("{other:?}"),
    });
    shown.expect("it can be read");
}

fn claim(space: &Namespace, key: &Key, body: &mut [u8; BODY.len()]) {
    let Ok(Claim::Completed(outcome)) = space.claim(key, None) else { panic!("it is completed") };
    copy(outcome.body(), body);
}
