//! A store that was checked in: docs/FORMAT.md, the code and the bytes agree.
//!
//! The first half reads the store with code of its own, by the offsets in the document's tables.
//! The second half opens it with the engine. `cargo test --test compatibility -- --ignored` makes
//! the store anew, after a change of the format on purpose.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use refrain::testing::{FileSystem, HeapFs, Pages, SimClock};
use refrain::{
    Body, Claim, ClaimOptions, CompleteOptions, EndCause, Fingerprint, FingerprintRule, Lookup,
    Namespace, OnLeaseEnd, OnOrphan, OpenError, Options, Policy, Reference, Store,
};
use support::checksum::{crc32, mask, place};
use support::disk::poke;

const FILES: [&str; 3] = ["META", "NAMES", "data-00000"];
const DAY: Duration = Duration::from_secs(24 * 3600);

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v2")
}

fn options(fs: &HeapFs) -> Options {
    // The clock stands at the start of 2026.
    let options = Options::new("unused").file_system(fs.clone()).clock(SimClock::new());
    options.manual_maintenance(true).shards(4)
}

fn policy() -> Policy {
    Policy::default()
        .lease(Duration::from_secs(60))
        .replay_ttl(30 * DAY)
        .dedupe_ttl(365 * DAY)
        .late_grace(Duration::from_secs(600))
        .on_lease_end(OnLeaseEnd::Park)
        .on_orphan(OnOrphan::KeepLease)
        .fingerprint(FingerprintRule::Count)
}

/// Every kind of record, every extension, every body state.
fn fill(store: &Store) {
    let orders = store.namespace("orders").unwrap();
    let payments = store.define("payments", &policy()).unwrap();
    let reference = Reference(*b"reference 16 b. ");
    let claim = |space: &Namespace, key: &str| {
        let options = ClaimOptions::new().fingerprint(Fingerprint::of(b"payload"));
        space.claim_with(key, &options.reference(reference)).unwrap().acquired().unwrap()
    };
    let body = CompleteOptions::body(b"the receipt").code(201);
    claim(&orders, "completed").complete_with(&body).unwrap();
    drop(claim(&orders, "claimed"));
    claim(&orders, "released").release().unwrap();
    claim(&orders, "parked").park().unwrap();
    drop(claim(&orders, "forgotten"));
    orders.forget("forgotten", "a reason", "an actor").unwrap();
    claim(&payments, "too large").complete(vec![7; 200_000]).unwrap();
    let without = CompleteOptions::body(b"gone").replay_ttl(Duration::ZERO);
    claim(&payments, "no replay").complete_with(&without).unwrap();
    drop(claim(&payments, "renewed").renew());
    assert!(payments.once("once", None).is_ok());
}

#[test]
#[ignore = "makes the fixture anew"]
fn make_the_fixture() {
    let fs = HeapFs::new();
    let store = options(&fs).segment_bytes(256 << 10).open().unwrap();
    fill(&store);
    store.close().unwrap();
    std::fs::create_dir_all(fixtures()).unwrap();
    for name in FILES {
        let file = std::fs::File::create(fixtures().join(format!("{name}.gz"))).unwrap();
        let mut packed = GzEncoder::new(file, Compression::best());
        packed.write_all(&support::disk::read(&fs, name)).unwrap();
        packed.finish().unwrap();
    }
}

/// The checked-in store.
fn fixture() -> HeapFs {
    let fs = HeapFs::new();
    for name in FILES {
        let packed = std::fs::File::open(fixtures().join(format!("{name}.gz"))).unwrap();
        let mut bytes = vec![];
        GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
        let file = fs.create_new(name).unwrap();
        if name.starts_with("data") {
            // Data files are mapped, and have their length from the start.
            file.zero_fill(0, bytes.len() as u64, Pages::Small).unwrap();
            file.map().unwrap();
        }
        file.write_at(&[std::io::IoSlice::new(&bytes)], 0).unwrap();
    }
    fs
}

// ---- the bytes, by the document ----------------------------------------------------------------

/// A table of docs/FORMAT.md: offset and size of each field.
struct Table(HashMap<&'static str, (usize, usize)>);

impl Table {
    fn named(name: &str) -> Self {
        let document = include_str!("../docs/FORMAT.md");
        let start = document.find(&format!("<!-- table: {name} -->")).unwrap();
        let rows = document[start..].lines().skip(1).take_while(|line| line.starts_with('|'));
        let fields = rows.skip(2).map(|row| {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            (cells[3], (cells[1].parse().unwrap(), cells[2].parse().unwrap_or(0)))
        });
        Self(fields.collect())
    }

    fn bytes<'a>(&self, structure: &'a [u8], field: &str) -> &'a [u8] {
        let (off, size) = self.0[field];
        &structure[off..off + size]
    }

    fn number(&self, structure: &[u8], field: &str) -> u64 {
        let mut wide = [0; 8];
        let bytes = self.bytes(structure, field);
        wide[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(wide)
    }
}

const SEGMENTS_START: usize = 8 * 4096;
const DATA_START: usize = 512;
const SEGMENT_BYTES: usize = 256 << 10;
const SEGMENTS: usize = 8;

/// A record, as the document has it.
#[derive(Clone, Debug)]
struct Raw {
    /// In the file.
    offset: usize,
    kind: u64,
    flags: u64,
    token: u64,
    code: u64,
    body_len: u64,
    ext: Vec<u8>,
    key: String,
    body: Vec<u8>,
}

fn segment(data: &[u8], index: usize) -> &[u8] {
    &data[SEGMENTS_START + index * SEGMENT_BYTES..][..SEGMENT_BYTES]
}

/// The records of all segments.
fn records(store_id: &[u8], data: &[u8]) -> Vec<Raw> {
    (0..SEGMENTS)
        .flat_map(move |index| {
            let start = SEGMENTS_START + index * SEGMENT_BYTES;
            let moved = move |it: Raw| Raw { offset: start + it.offset, ..it };
            records_of(store_id, segment(data, index)).into_iter().map(moved)
        })
        .collect()
}

/// The records of a segment, each with a checksum that is right, as its index has them.
fn records_of(store_id: &[u8], segment: &[u8]) -> Vec<Raw> {
    let (head, table) = (Table::named("segment"), Table::named("record"));
    let (number, generation) =
        (head.number(segment, "segment"), head.number(segment, "generation"));
    let place = place(store_id, number ^ 0x5347_0000_0000_0000, generation);
    let (mut at, mut found) = (DATA_START, vec![]);
    while table.number(&segment[at..], "len") != 0 {
        let record = &segment[at..];
        let len = table.number(record, "len") as usize;
        let ext_len = table.number(record, "ext_len") as usize;
        let key_len = table.number(record, "key_len") as usize;
        let head = 64 + ext_len + key_len;
        let crc = crc32(&record[8..head]) ^ mask(place, at as u32, len as u32);
        assert_eq!(u64::from(crc), table.number(record, "crc"), "the record at {at}");
        if len > head {
            assert_eq!(u64::from(crc32(&record[head..len])), table.number(record, "body_crc"));
        }
        found.push(Raw {
            offset: at,
            kind: table.number(record, "kind"),
            flags: table.number(record, "flags"),
            token: table.number(record, "token"),
            code: table.number(record, "code"),
            body_len: table.number(record, "body_len"),
            ext: record[64..64 + ext_len].to_vec(),
            key: String::from_utf8(record[64 + ext_len..head].to_vec()).unwrap(),
            body: record[head..len].to_vec(),
        });
        at += len.next_multiple_of(16);
    }
    if found.is_empty() {
        return found;
    }
    let (table, trailer) = (Table::named("trailer"), &segment[segment.len() - 64..]);
    let number = |field| table.number(trailer, field);
    assert_eq!(table.bytes(trailer, "magic"), b"RFtr");
    assert_eq!((number("data_end"), number("generation")), (at as u64, generation));
    let crc = crc32(&trailer[..60]) ^ mask(place, 0, 64);
    assert_eq!(number("crc"), u64::from(crc));
    let is_kept = |it: &Raw| it.kind == 2;
    assert_eq!(number("content"), u64::from(found.iter().any(is_kept)), "claims have their own");
    assert_eq!(number("entries"), found.len() as u64);
    let index = &segment[segment.len() - 64 - 32 * found.len()..segment.len() - 64];
    let crc = crc32(index) ^ mask(place, 0, index.len() as u32);
    assert_eq!(number("entries_crc"), u64::from(crc));
    let table = Table::named("index entry");
    for (entry, record) in index.chunks(32).zip(&found) {
        let number = |field| table.number(entry, field);
        assert_eq!((number("kind"), number("token")), (record.kind, record.token));
        assert_eq!(number("offset") as usize * 16, record.offset);
        let head = &segment[record.offset..];
        let (record, of) = (Table::named("record"), |field| number(field));
        assert_eq!(of("key_hash"), record.number(head, "key_hash"));
        assert_eq!(of("namespace"), record.number(head, "namespace"));
        assert_eq!(of("len"), record.number(head, "len").div_ceil(16));
        let seconds = record.number(head, "expires").div_ceil(1000).min(u64::from(u32::MAX));
        assert_eq!(of("expires_s"), seconds);
    }
    found
}

#[test]
fn the_bytes_are_what_the_document_says() {
    let fs = fixture();
    let read = |name| support::disk::read(&fs, name);
    let (meta, names, data) = (read("META"), read("NAMES"), read("data-00000"));
    let table = Table::named("meta");
    let slot = [&meta[..4096], &meta[4096..]];
    let meta = slot.into_iter().max_by_key(|slot| table.number(slot, "sequence")).unwrap();
    assert_eq!(table.bytes(meta, "magic"), b"RFRNmeta");
    assert_eq!(table.number(meta, "preamble_crc"), u64::from(crc32(&meta[..60])));
    assert_eq!(table.number(meta, "crc"), u64::from(crc32(&meta[64..4092])));
    let number = |field| table.number(meta, field);
    assert_eq!((number("major"), number("slot_len"), number("hash_kind")), (2, 4096, 1));
    assert_eq!((number("segment_bytes"), number("mode"), number("flags")), (256 << 10, 2, 1));
    assert_eq!((number("epoch"), number("namespaces")), (1, 2));
    assert_eq!(number("names_bytes"), names.len() as u64);
    assert_eq!(table.bytes(meta, "files")[0], 1);
    assert_eq!(number("clock"), 1_767_225_600_000);
    let store_id = table.bytes(meta, "store_id");

    let table = Table::named("names");
    let payments = &names[(48 + "orders".len()).next_multiple_of(8)..];
    let number = |field| table.number(payments, field);
    assert_eq!(number("len") as usize, 48 + "payments".len());
    assert_eq!(&payments[48..][..8], b"payments");
    assert_eq!((number("namespace"), number("flags")), (2, 0));
    assert_eq!((number("on_lease_end"), number("on_orphan"), number("fingerprint")), (1, 3, 1));
    assert_eq!((number("lease_ms"), number("grace_ms")), (60_000, 600_000));
    let mut content = payments[..56].to_vec();
    content.drain(4..8);
    let offset = (names.len() - payments.len()) as u32;
    let crc = crc32(&content) ^ mask(place(store_id, 3, 0), offset, 56);
    assert_eq!(number("crc"), u64::from(crc));
    assert_eq!(table.number(&names, "grace_ms"), u64::MAX);

    let table = Table::named("file");
    assert_eq!(table.bytes(&data, "magic"), b"RFRNdata");
    assert_eq!(table.number(&data, "segments"), SEGMENTS as u64);
    assert_eq!(table.bytes(&data, "store_id"), store_id);
    let crc = crc32(&data[..60]) ^ mask(place(store_id, 1, 0), 0, 64);
    assert_eq!(table.number(&data, "crc"), u64::from(crc));
    assert_eq!(data.len(), SEGMENTS_START + SEGMENTS * SEGMENT_BYTES);

    let segment = segment(&data, 0);
    let table = Table::named("segment");
    assert_eq!(table.bytes(segment, "magic"), b"RFsg");
    assert_eq!(table.number(segment, "version"), 1);
    let crc = crc32(&segment[..60]) ^ mask(place(store_id, 4, 0), 0, 64);
    assert_eq!(table.number(segment, "crc"), u64::from(crc));

    let found = records(store_id, &data);
    let claims_of = |key: &str| found.iter().filter(|it| it.key == key).collect::<Vec<_>>();
    let kinds: Vec<_> = found.iter().map(|it| it.kind).collect();
    // Claims and what ends them; completions of a day, of a year, of none.
    assert_eq!(kinds, [1, 1, 1, 3, 1, 8, 1, 5, 1, 1, 1, 4, 2, 2, 2, 2]);
    let [claim, complete] = claims_of("completed")[..] else { panic!() };
    assert_eq!(claim.token, complete.token);
    assert_eq!((complete.code, &complete.body[..]), (201, &b"the receipt"[..]));
    assert_eq!(claim.ext[..3], [1, 17, 1], "a fingerprint of kind 1");
    assert_eq!(claim.ext[19..21], [2, 16]);
    assert_eq!(claim.ext[21..37], *b"reference 16 b. ");
    let forget = claims_of("forgotten")[1];
    assert_eq!(forget.body, b"\x08an actora reason");
    assert!(forget.token > claims_of("forgotten")[0].token);
    let too_large = claims_of("too large")[1];
    assert_eq!((too_large.flags & 3, too_large.body_len, too_large.body.len()), (2, 200_000, 0));
    assert_eq!(too_large.ext[too_large.ext.len() - 18..][..2], [5, 16], "a body digest");
    assert_eq!(claims_of("no replay")[1].flags & 3, 3);
    assert_eq!(claims_of("once")[0].flags & 3, 1);
    assert_eq!(claims_of("renewed")[1].flags >> 5, 2 << 1 | 1, "the rules of its claim");

    // The marks of the rounds: the newest says that all of it is durable.
    let (table, entry) = (Table::named("mark"), Table::named("mark entry"));
    let slots = (1..8).map(|page| (page, &data[page * 4096..][..4096]));
    let marks = slots.filter(|(_, slot)| table.bytes(slot, "magic") == b"RFmk");
    let (page, newest) = marks.max_by_key(|(_, slot)| table.number(slot, "round")).unwrap();
    assert_eq!((table.number(newest, "count"), table.number(newest, "epoch")), (3, 1));
    let entries = 3 * 24;
    let mut content = newest[..48 + entries].to_vec();
    content.drain(44..48);
    let role = 2 | (page as u64 - 1) << 8;
    let crc = crc32(&content) ^ mask(place(store_id, role, 0), 0, 48 + entries as u32);
    assert_eq!(table.number(newest, "crc"), u64::from(crc));
    let entry = |field| entry.number(&newest[48..], field);
    let head = Table::named("segment");
    assert_eq!(entry("segment"), head.number(segment, "segment"));
    assert_eq!(entry("generation"), head.number(segment, "generation"));
    let trailer = &segment[segment.len() - 64..];
    assert_eq!(entry("durable"), Table::named("trailer").number(trailer, "data_end"));
}

// ---- the engine ----------------------------------------------------------------------------------

#[test]
fn the_engine_reads_the_checked_in_store() {
    let fs = fixture();
    let store = options(&fs).open().unwrap();
    let report = store.report();
    assert!(report.copied, "the inode is another one: {report:?}");
    assert_eq!(report.epoch, 1 + 65_536);
    assert_eq!((report.records, report.completed, report.parked), (16, 4, 1), "{report:?}");
    assert_eq!(report.records_indexed, 16);
    assert!(report.torn_tails.is_empty());
    let (orders, payments) =
        (store.namespace("orders").unwrap(), store.namespace("payments").unwrap());
    assert_eq!(payments.policy(), policy());
    assert_eq!(orders.policy(), Policy::default());
    let outcome = |space: &Namespace, key| space.claim(key, None).unwrap().completed().unwrap();
    let completed = outcome(&orders, "completed");
    assert_eq!((completed.body(), completed.code()), (Body::Bytes(b"the receipt"), 201));
    assert_eq!(completed.reference(), Some(Reference(*b"reference 16 b. ")));
    let other = orders.claim("completed", Fingerprint::of(b"another payload")).unwrap();
    assert!(matches!(other, Claim::Mismatch(_)));
    assert!(matches!(orders.lookup("released").unwrap(), Lookup::Absent));
    assert!(matches!(orders.lookup("forgotten").unwrap(), Lookup::Absent));
    let Lookup::Lapsed(it) = orders.lookup("claimed").unwrap() else { panic!() };
    assert_eq!(it.cause(), EndCause::Orphaned);
    let Lookup::Parked(it) = orders.lookup("parked").unwrap() else { panic!() };
    assert_eq!(it.cause(), EndCause::Parked);
    assert_eq!(outcome(&payments, "too large").body(), Body::TooLarge { len: 200_000 });
    assert_eq!(outcome(&payments, "no replay").body(), Body::Expired);
    assert_eq!(outcome(&payments, "once").body(), Body::None);
    let Lookup::InProgress(it) = payments.lookup("renewed").unwrap() else { panic!() };
    assert_eq!(it.lease_left(), Duration::from_secs(60), "its lease was kept");
}

#[test]
fn the_engine_still_writes_these_bytes() {
    let fs = HeapFs::new();
    let store = options(&fs).segment_bytes(256 << 10).open().unwrap();
    fill(&store);
    store.close().unwrap();
    let fixture = fixture();
    let shape = |fs: &HeapFs| {
        let (meta, data) = (support::disk::read(fs, "META"), support::disk::read(fs, "data-00000"));
        let store_id = Table::named("meta").bytes(&meta, "store_id");
        let found = records(store_id, &data);
        let shape = found
            .into_iter()
            .map(|it| (it.offset, it.kind, it.flags, it.token, it.code, it.ext, it.key, it.body));
        shape.collect::<Vec<_>>()
    };
    // Tokens depend on the shard, hence on the store's secret; their epochs do not.
    for (new, old) in shape(&fs).iter().zip(shape(&fixture)) {
        assert_eq!((new.0, new.1, new.2, new.4), (old.0, old.1, old.2, old.4));
        assert_eq!((new.3 >> 40, &new.6, &new.7), (old.3 >> 40, &old.6, &old.7));
        assert_eq!(new.5.len(), old.5.len());
    }
    assert_eq!(shape(&fs).len(), shape(&fixture).len());
}

/// The fixture with one more record, of a kind that this version does not know, in place of the
/// one that was written last.
fn with_future_record(kind: u8) -> HeapFs {
    let fs = fixture();
    let (meta, data) = (support::disk::read(&fs, "META"), support::disk::read(&fs, "data-00000"));
    let store_id = Table::named("meta").bytes(&meta, "store_id");
    let last = records(store_id, &data).into_iter().find(|it| it.key == "once").unwrap();
    let index = (last.offset - SEGMENTS_START) / SEGMENT_BYTES;
    let start = SEGMENTS_START + index * SEGMENT_BYTES;
    let (segment, at) = (segment(&data, index), last.offset - start);
    let head = Table::named("segment");
    let (number, generation) =
        (head.number(segment, "segment"), head.number(segment, "generation"));
    let place = place(store_id, number ^ 0x5347_0000_0000_0000, generation);
    let len = Table::named("record").number(&segment[at..], "len") as usize;
    let mut record = segment[at..][..len].to_vec();
    record[8] = kind;
    let crc = crc32(&record[8..]) ^ mask(place, at as u32, len as u32);
    record[4..8].copy_from_slice(&crc.to_le_bytes());
    poke(&fs, "data-00000", last.offset as u64, &record);
    // Whoever reads the index does not meet the record.
    poke(&fs, "data-00000", (start + SEGMENT_BYTES - 65) as u64, &[0xff]);
    fs
}

#[test]
fn records_of_the_future_are_skipped_or_refused_as_they_ask() {
    let store = options(&with_future_record(0x80 | 13)).open().unwrap();
    assert_eq!((store.report().records, store.report().records_skipped), (15, 1));
    let payments = store.namespace("payments").unwrap();
    assert!(matches!(payments.lookup("once").unwrap(), Lookup::Absent));
    assert!(matches!(payments.lookup("too large").unwrap(), Lookup::Completed(_)));

    let fs = with_future_record(13);
    let before = support::disk::snapshot(&fs);
    let refused = options(&fs).open().unwrap_err();
    let OpenError::UnsupportedFormat { features, .. } = refused else { panic!("{refused}") };
    assert_eq!(features, 13);
    assert_eq!(support::disk::snapshot(&fs), before);
}
