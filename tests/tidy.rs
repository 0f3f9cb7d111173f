//! The rules of the house that a program can check: layers, headers, words, lengths.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The modules of the crate, from the bottom up. A module uses only modules of lines above its own
/// in this list; modules of one line do not meet.
const LAYERS: &[&[&str]] = &[
    &["types", "chunked", "report", "policy", "limits", "rates", "sys"],
    &["hash", "answer", "canonical", "erasure"],
    &["checksum", "error"],
    &["admission"],
    &["format"],
    &["table", "wal", "wheel"],
    &["engine"],
    &["handle", "health", "stats", "request", "key"],
    &["commit", "held"],
    &["lost", "fence"],
    &["renewer"],
    &["lease"],
    &["claim"],
    &["wait"],
    &["namespace"],
    &["store", "uuids", "by_hand"],
    &["options"],
    &["testing"],
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// All files below these folders with this extension, with their text.
fn files(folders: &[&str], extension: &str) -> Vec<(String, String)> {
    let mut found = vec![];
    let mut open: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
        } else if path.extension().is_some_and(|it| it == extension) {
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            found.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
    found.sort();
    found
}

/// The text without its unit tests.
fn product(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod tests").next().unwrap()
}

/// The lines that are no comments.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim_start().starts_with("//"))
}

/// The crate module that a file of src/ belongs to.
fn module(name: &str) -> &str {
    name.trim_start_matches("src/").split('/').next().unwrap().trim_end_matches(".rs")
}

/// Every `crate::module` that a file mentions in code.
fn uses(text: &str) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    for line in code(product(text)) {
        for rest in line.split("crate::").skip(1) {
            let end = rest.find(|it: char| !it.is_alphanumeric() && it != '_');
            found.insert(&rest[..end.unwrap_or(rest.len())]);
        }
    }
    // `pub(crate)` and the like.
    found.remove("");
    found
}

#[test]
fn no_module_uses_one_above_or_beside_it() {
    let layer = |module: &str| LAYERS.iter().position(|layer| layer.contains(&module));
    let mut seen = BTreeSet::new();
    for (name, text) in files(&["src"], "rs") {
        let user = module(&name);
        // The command is a crate of its own.
        if user == "lib" || user == "bin" {
            continue;
        }
        seen.insert(user.to_owned());
        let own = layer(user).unwrap_or_else(|| panic!("{name}: {user} has no layer"));
        for used in uses(&text).into_iter().filter(|used| *used != user) {
            let below = layer(used);
            assert!(
                below.is_some_and(|below| below < own),
                "{name} uses crate::{used}, which is not below it"
            );
        }
    }
    let listed: BTreeSet<_> = LAYERS.concat().into_iter().map(str::to_owned).collect();
    assert_eq!(seen, listed, "the list has all modules and no others");
}

#[test]
fn inside_the_folders_the_arrows_point_down_too() {
    // Files of a folder, from the bottom up; each uses only those before it, and `mod.rs` comes
    // last because it joins them. Names that a parent lends its children are not followed.
    let folders: [(&str, &[&str]); 5] = [
        (
            "src/format",
            &[
                "flags",
                "ext",
                "index",
                "scope",
                "record",
                "record_ref",
                "draft",
                "segment",
                "mark",
                "file",
                "names",
                "meta",
            ],
        ),
        ("src/table", &["bucket", "filter", "buckets", "linear", "schedules"]),
        (
            "src/wal",
            &[
                "poison",
                "meta",
                "names",
                "data_file",
                "segments",
                "fixtures",
                "class",
                "stream",
                "pool",
                "lane",
                "lanes",
                "room",
                "plan",
                "seal",
                "rounds",
                "growth",
                "recycle",
                "scrub",
                "shrink",
                "schedules",
            ],
        ),
        (
            "src/sys",
            &[
                "explored",
                "sync",
                "tally",
                "wakers",
                "point",
                "barrier",
                "fork",
                "pin",
                "prefetch",
                "ordinal",
                "clock",
                "sim_clock",
                "region",
                "extent",
                "kept",
                "heap",
                "real",
            ],
        ),
        (
            "src/engine/recovery",
            &["exits", "scan", "winners", "indexes", "found", "mend", "walk", "survey", "salvage"],
        ),
    ];
    // `flags`, `ext` and `index` name the kinds and flaws of the records they are part of.
    let allowed = [
        ("src/format/flags.rs", "record"),
        ("src/format/ext.rs", "record"),
        ("src/format/index.rs", "record"),
    ];
    for (folder, order) in folders {
        for (name, text) in files(&[folder], "rs") {
            let stem = Path::new(&name).file_stem().unwrap().to_str().unwrap();
            let depth = Path::new(&name).strip_prefix(folder).unwrap().components().count();
            if stem == "mod" || depth > 1 {
                continue;
            }
            let own = order.iter().position(|it| *it == stem);
            let own = own.unwrap_or_else(|| panic!("{name} is not in the order"));
            for line in code(product(&text)).filter(|line| line.contains("super::")) {
                for later in &order[own + 1..] {
                    let meets = line.contains(&format!("super::{later}::"));
                    assert!(
                        !meets || allowed.contains(&(&name, later)),
                        "{name} uses {later}, which comes after it: {line}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_command_points_down_too() {
    let order = ["exit", "key", "input", "output", "summary", "dedupe", "args", "main"];
    let mut seen = 0;
    for (name, text) in files(&["src/bin/refrain"], "rs") {
        let stem = Path::new(&name).file_stem().unwrap().to_str().unwrap();
        let own = order.iter().position(|it| *it == stem).unwrap();
        for used in uses(&text) {
            let below = order[..own].contains(&used) || used == "refrain";
            assert!(below, "{name} uses crate::{used}, which is not below it");
        }
        seen += 1;
    }
    assert_eq!(seen, order.len());
}

#[test]
fn every_file_says_what_it_is() {
    for (name, text) in files(&["src", "tests", "benches", "examples", "fuzz"], "rs") {
        assert!(text.starts_with("//! "), "{name} has no header");
        let header = text.lines().take_while(|line| line.starts_with("//!")).count();
        // lib.rs is the tour.
        assert!(header <= 45 || name == "src/lib.rs", "the header of {name} has {header} lines");
    }
}

/// Words that are not used because another one is, with that one, and the files in which the word
/// means something else.
const WORDS: &[(&str, &str, &[&str])] = &[
    ("tenant", "namespace", &[]),
    ("keyspace", "namespace", &[]),
    ("session", "lease", &[]),
    ("heartbeat", "renew", &[]),
    ("abort", "release", &[]),
    ("response", "outcome", &[]),
    ("tombstone", "bodyless completion, or forget", &[]),
    ("stuck", "parked", &[]),
    ("limbo", "parked", &[]),
    ("delete", "forget", &[]),
    ("invalidate", "forget", &[]),
    ("peek", "lookup", &[]),
    ("item", "entry", &[]),
    // The document has tables of its own.
    ("row", "entry", &["docs/STATES.md", "src/format/mod.rs"]),
    // Once, to say what the letters stand for; the logarithm; and the files of other programs.
    (
        "log",
        "WAL",
        &["src/wal/mod.rs", "src/chunked.rs", "src/bin/refrain/args.rs", "docs/dedupe.md"],
    ),
    // The file system's.
    ("journal", "WAL", &["docs/decisions/0004-zero-fill.md"]),
    // Of an array.
    (
        "chunk",
        "segment or data file",
        &[
            "src/chunked.rs",
            "src/table/linear.rs",
            "src/hash.rs",
            "src/wal/recycle.rs",
            "src/engine/recovery/scan.rs",
        ],
    ),
    ("queue", "lane", &[]),
    ("tier", "class", &[]),
    ("frame", "record", &[]),
    ("lsn", "location", &[]),
    // To memory; and the split pointer of linear hashing.
    (
        "pointer",
        "location",
        &[
            "src/sys/extent.rs",
            "src/sys/region.rs",
            "src/table/linear.rs",
            // JSON's.
            "src/canonical.rs",
            "src/bin/refrain/args.rs",
            "src/bin/refrain/input.rs",
            "src/bin/refrain/key.rs",
            "docs/dedupe.md",
        ],
    ),
    ("partition", "shard", &["src/wal/lane.rs"]),
    ("stripe", "shard", &[]),
    // Of a table in a document; and what the standard library calls so.
    (
        "cell",
        "slot",
        &[
            "docs/STATES.md",
            "src/engine/state.rs",
            "src/format/mod.rs",
            "src/sys/ordinal.rs",
            "src/sys/pin.rs",
            "src/sys/sim/memory.rs",
            "src/sys/tally.rs",
        ],
    ),
    ("evict", "expire or purge", &[]),
    ("eviction", "expire or purge", &[]),
    ("salt", "open epoch or secret", &[]),
    ("checkpoint", "mark or snapshot", &[]),
    ("repair", "recovery or salvage", &[]),
    ("persist", "flush or sync", &[]),
    ("save", "flush or sync", &[]),
];

#[test]
fn one_word_a_concept() {
    let mut texts = files(&["src", "examples"], "rs");
    texts.extend(files(&["docs"], "md"));
    for (name, text) in texts {
        // The associated type of iterators has its name from the language.
        let text = text.replace("Iterator<Item =", "Iterator<").replace("type Item =", "type");
        for word in text.split(|it: char| !it.is_alphanumeric()) {
            let word = word.to_lowercase();
            let singular = word.strip_suffix('s').unwrap_or(&word);
            let banned = WORDS.iter().find(|(banned, ..)| *banned == word || *banned == singular);
            if let Some((_, instead, allowed)) = banned {
                assert!(allowed.contains(&&*name), "{name} says {word}: write {instead}");
            }
        }
    }
}

/// Verbs that no public call is named with, because another one says it.
const VERBS: &[(&str, &str)] = &[
    ("get", "lookup"),
    ("check", "lookup"),
    ("acquire", "claim"),
    ("lock", "claim"),
    ("begin", "claim"),
    ("touch", "renew"),
    ("extend", "renew"),
    ("unlock", "release"),
    ("cancel", "release"),
    ("finish", "complete"),
    ("ack", "complete"),
    ("commit", "complete"),
    ("remove", "forget"),
    ("insert", "claim"),
    ("truncate", "cut"),
];

#[test]
fn public_calls_use_the_words_of_the_field() {
    for name in ["store", "namespace", "lease", "options", "request", "claim", "answer", "policy"] {
        let text = fs::read_to_string(root().join(format!("src/{name}.rs"))).unwrap();
        for line in code(product(&text)).filter(|line| line.contains("pub fn ")) {
            let call = line.split("pub fn ").nth(1).unwrap();
            let verb = call.split(|it: char| !it.is_alphanumeric()).next().unwrap();
            // For this project's own tests.
            let is_hidden = call.starts_with("check_invariants");
            if let Some((_, instead)) = VERBS.iter().find(|(banned, _)| *banned == verb) {
                assert!(is_hidden, "src/{name}.rs has `{call}`: {instead} is the word");
            }
        }
    }
}

#[test]
fn nothing_is_left_behind() {
    for (name, text) in files(&["src", "examples", "benches"], "rs") {
        for (at, line) in code(&text).enumerate() {
            for left in ["todo!(", "unimplemented!(", "dbg!(", "FIXME", "XXX"] {
                assert!(!line.contains(left), "{name}:{at} has {left}");
            }
        }
    }
    for (name, text) in files(&["src"], "rs") {
        let is_unsafe_allowed = name.starts_with("src/sys/");
        let has_unsafe = text.contains("unsafe {") || text.contains("unsafe fn");
        assert!(is_unsafe_allowed || !has_unsafe, "{name} has unsafe code");
        let allows = text.contains("#![allow(unsafe_code, reason = ");
        assert!(!has_unsafe || allows, "{name} does not say why it has unsafe code");
    }
}

#[test]
fn times_come_from_the_clock_and_locks_from_the_shim() {
    for (name, text) in files(&["src"], "rs") {
        let is_sys = name.starts_with("src/sys/") || name.starts_with("src/bin/");
        for line in code(product(&text)) {
            let reads_time = line.contains("SystemTime::now") || line.contains("Instant::now");
            // How long recovery took is told, and decides nothing.
            let is_report = name.starts_with("src/engine/recovery/") && line.contains("let start");
            assert!(is_sys || is_report || !reads_time, "{name} reads a clock: {line}");
            let takes_lock =
                line.contains("use parking_lot") || line.contains("use std::sync::Mutex");
            assert!(name == "src/sys/sync.rs" || !takes_lock, "{name} passes the shim by: {line}");
        }
    }
}

#[test]
fn lengths_are_reported_and_bounded() {
    let mut lengths: BTreeMap<usize, String> = BTreeMap::new();
    let mut all = vec![];
    for (name, text) in files(&["src"], "rs") {
        let lines = text.lines().count();
        all.push(lines);
        lengths.insert(lines, name);
    }
    all.sort_unstable();
    let (longest, name) = lengths.last_key_value().unwrap();
    println!(
        "{} files in src: median {} lines, longest {longest} ({name})",
        all.len(),
        all[all.len() / 2]
    );
    assert!(*longest <= 600, "{name} has {longest} lines: which second concept moved in?");
}

#[test]
fn documents_name_files_that_exist() {
    let mut texts = files(&["docs"], "md");
    for name in ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"] {
        texts.push((name.to_owned(), fs::read_to_string(root().join(name)).unwrap()));
    }
    texts.extend(files(&["src", "tests"], "rs"));
    for (name, text) in texts {
        for word in text.split(|it: char| it.is_whitespace() || "()[]`,;\"'".contains(it)) {
            let word = word.trim_end_matches(['.', ':']);
            let is_path = ["docs/", "src/", "tests/", "benches/", "examples/", "scripts/", "fuzz/"]
                .iter()
                .any(|folder| word.starts_with(folder) && word.len() > folder.len());
            if is_path && !word.contains(['*', '<', '{', '#']) {
                assert!(root().join(word).exists(), "{name} names {word}, which does not exist");
            }
        }
    }
}
