//! The command as its users run it: whole processes, real input, every exit code.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use refrain::{OnLeaseEnd, OnOrphan, Policy, Store};
use serde_json::Value;
use support::traces::{first_sights, ledger_cut, lines, trace};
use support::{Random, seed};

/// Lines that the next run may repeat, at most, after a run was killed.
const BATCH_LINES: usize = 8192;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_refrain"));
    command.arg("dedupe").args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

struct Ran {
    code: Option<i32>,
    out: Vec<u8>,
    err: String,
}

impl Ran {
    /// The summary, which is the last line of standard error.
    fn summary(&self) -> Value {
        assert_eq!(self.code, Some(0), "{}", self.err);
        serde_json::from_str(self.err.lines().last().unwrap()).unwrap()
    }

    /// Events, first sights, duplicates, lines without a key.
    fn counts(&self) -> [u64; 4] {
        let summary = self.summary();
        ["events", "first", "duplicates", "unkeyed"].map(|name| summary[name].as_u64().unwrap())
    }

    fn failed(&self, code: i32, saying: &str) {
        assert_eq!(self.code, Some(code), "{}", self.err);
        assert_eq!(self.err.lines().count(), 1, "one clear line: {}", self.err);
        assert!(self.err.starts_with("refrain: ") && self.err.contains(saying), "{}", self.err);
    }
}

/// Runs to the end with this standard input.
fn run(arguments: &[&str], input: &[u8]) -> Ran {
    run_command(command(arguments), input)
}

fn run_command(mut command: Command, input: &[u8]) -> Ran {
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // The command may end before it has read all.
            let written = stdin.write_all(input);
            written.or_else(|error| match error.kind() {
                std::io::ErrorKind::BrokenPipe => Ok(()),
                _ => Err(error),
            })
        });
        let ran = child.wait_with_output().unwrap();
        Ran {
            code: ran.status.code(),
            out: ran.stdout,
            err: String::from_utf8(ran.stderr).unwrap(),
        }
    })
}

fn dedupe(arguments: &[&str], input: &[u8]) -> Ran {
    run(&[arguments, &["--summary", "json"]].concat(), input)
}

/// What comes out, as text.
fn dedupe_text(arguments: &[&str], input: &str) -> String {
    let ran = dedupe(arguments, input.as_bytes());
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    String::from_utf8(ran.out).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn every_first_sight_comes_out_once_in_order_in_memory_and_with_a_store() {
    let ledger = ledger_cut();
    let expected = first_sights(&ledger);
    let events = lines(&ledger).count() as u64;
    let first = lines(&expected).count() as u64;
    assert!((events, first) == (72_001, 71_310), "a header and what the data's README counts");
    let ran = dedupe(&[], &ledger);
    assert!(ran.out == expected, "in memory");
    assert_eq!(ran.counts(), [events, first, events - first, 0]);
    let directory = tempfile::tempdir().unwrap();
    for durability in ["sync", "buffered", "interval:50ms"] {
        let store = directory.path().join(durability);
        let arguments = ["--store", text(&store), "--durability", durability];
        let ran = dedupe(&arguments, &ledger);
        assert!(ran.out == expected, "{durability}");
        assert_eq!(ran.counts(), [events, first, events - first, 0]);
        let again = dedupe(&arguments, &ledger);
        assert!(again.out.is_empty(), "{durability}");
        assert_eq!(again.counts(), [events, 0, events, 0]);
        // Another durability and another namespace, over the same store.
        let again = dedupe(&["--store", text(&store)], &ledger);
        assert_eq!(again.counts(), [events, 0, events, 0]);
        let other = dedupe(&["--store", text(&store), "--namespace", "other"], b"a\na\n");
        assert_eq!(other.counts(), [2, 1, 1, 0]);
    }
}

#[test]
fn files_are_read_one_after_the_other_and_a_dash_is_standard_input() {
    let directory = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| directory.path().join(name));
    fs::write(&one, "a\nb").unwrap();
    fs::write(&two, "c\nb\n").unwrap();
    let ran = dedupe(&[text(&one), "-", text(&two), text(&one)], b"x\na\n");
    assert_eq!(String::from_utf8_lossy(&ran.out), "a\nb\nx\nc\n");
    assert_eq!(ran.counts(), [8, 4, 4, 0]);
}

#[test]
fn a_line_is_a_line_whatever_is_in_it() {
    // Empty lines, a last line without a newline, bytes that are no text, a carriage return.
    assert_eq!(dedupe_text(&[], "\n\na\n\na"), "\na\n");
    assert_eq!(dedupe_text(&[], "a"), "a\n");
    assert_eq!(dedupe_text(&[], ""), "");
    assert_eq!(dedupe_text(&[], "a\r\na\na\r\n"), "a\r\na\n");
    let ran = dedupe(&[], b"\xff\xfe\n\xff\n\0\n\xff\xfe\n\0\n");
    assert_eq!(ran.out, b"\xff\xfe\n\xff\n\0\n");
    // Around the longest key, with the difference at the end.
    let mut input = vec![];
    for len in [4095, 4096, 4097, 4098, 300_000, 1_000_000] {
        for end in ["1", "2", "1"] {
            input.extend_from_slice(&vec![b'x'; len - 1]);
            input.extend_from_slice(end.as_bytes());
            input.push(b'\n');
        }
    }
    let ran = dedupe(&[], &input);
    assert_eq!(ran.counts(), [18, 12, 6, 0]);
    assert!(ran.out == first_sights(&input));
}

#[test]
fn more_lines_than_a_batch_holds_in_one_read() {
    let directory = tempfile::tempdir().unwrap();
    let input: String = (0..100_000).map(|n| format!("{}\n", n % 70_000)).collect();
    let ran =
        dedupe(&["--store", text(directory.path()), "--durability", "buffered"], input.as_bytes());
    assert_eq!(ran.counts(), [100_000, 70_000, 30_000, 0]);
    assert!(ran.out == first_sights(input.as_bytes()));
}

#[test]
fn columns_are_those_of_csv() {
    let input = "1,a,x\n1,b,x\n\"1\",\"a\",y\n2,\"a\nb\",z\n2,\"a\nb\",w\n";
    assert_eq!(dedupe_text(&["--key", "col:1"], input), "1,a,x\n2,\"a\nb\",z\n");
    let first = "1,a,x\n1,b,x\n2,\"a\nb\",z\n";
    assert_eq!(dedupe_text(&["--key", "col:1,2"], input), first);
    assert_eq!(dedupe_text(&["--key", "col:2,1"], input), first);
    // Quotes in quotes, another delimiter, carriage returns, an empty line, a quote left open.
    let input = "\"a\"\"b\";1\r\n\"a\"\"b\";2\r\n\n\r\n;3\r\n\"open\nlines";
    let out = dedupe_text(&["--key", "col:1", "--delimiter", ";"], input);
    assert_eq!(out, "\"a\"\"b\";1\r\n\n\"open\nlines\n");
    assert_eq!(
        dedupe_text(&["--key", "col:2", "--delimiter", "\\t"], "a\t1\r\nb\t1\n"),
        "a\t1\r\n"
    );
    // A column that is not there is no key: the line passes.
    let ran = dedupe(&["--key", "col:2"], b"a\na\nb,1\nc,1\n");
    assert_eq!((&ran.out[..], ran.counts()), (&b"a\na\nb,1\n"[..], [4, 1, 1, 2]));
}

#[test]
fn csv_is_cut_alike_wherever_a_read_ends() {
    let directory = tempfile::tempdir().unwrap();
    let mut random = Random::new(seed("csv"));
    for _ in 0..10 {
        // Every part that may stand between two reads, many times over.
        let parts = ["\"", "\"\"", ",", "\n", "\r\n", "a", "bc", "\"x,\ny\"", ",\"\","];
        let input: String =
            (0..400).map(|_| parts[random.below(parts.len() as u64) as usize]).collect();
        let whole = dedupe(&["--key", "col:1,2"], input.as_bytes());
        let path = directory.path().join("input");
        fs::write(&path, &input).unwrap();
        assert_eq!(dedupe(&["--key", "col:1,2", text(&path)], b"").out, whole.out);
        // One byte at a time.
        let mut child = command(&["--key", "col:1,2", "--summary", "none"]).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        for byte in input.as_bytes() {
            stdin.write_all(&[*byte]).unwrap();
            stdin.flush().unwrap();
        }
        drop(stdin);
        let out = child.wait_with_output().unwrap().stdout;
        assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(&whole.out), "{input:?}");
    }
}

#[test]
fn json_and_patterns_give_keys_too() {
    let input =
        "{\"id\":1,\"a\":1}\n{\"a\":2,\"id\":1}\n{\"id\":\"1\"}\nnone\n{\"id\":null}\nnone\n";
    let ran = dedupe(&["--key", "json:/id"], input.as_bytes());
    assert_eq!(ran.counts(), [6, 2, 1, 3]);
    let out = "{\"id\":1,\"a\":1}\n{\"id\":\"1\"}\nnone\n{\"id\":null}\nnone\n";
    assert_eq!(String::from_utf8(ran.out).unwrap(), out);
    let input = "x req-1 y\nz req-1\nreq-2\n\nreq-\n";
    let ran = dedupe(&["--key", "regex:req-([0-9]+)"], input.as_bytes());
    assert_eq!(ran.counts(), [5, 2, 1, 2]);
    assert_eq!(String::from_utf8(ran.out).unwrap(), "x req-1 y\nreq-2\n\nreq-\n");
}

#[test]
fn a_header_is_written_before_the_first_line_that_is() {
    let directory = tempfile::tempdir().unwrap();
    let [one, two, store] = ["one", "two", "store"].map(|name| directory.path().join(name));
    fs::write(&one, "id,\"na\nme\"\n1,a\n2,b\n").unwrap();
    fs::write(&two, "id,name\n2,c\n3,d").unwrap();
    let arguments = ["--header", "--key", "col:1", "--store", text(&store), text(&one), text(&two)];
    let ran = dedupe(&arguments, b"");
    assert_eq!(String::from_utf8_lossy(&ran.out), "id,\"na\nme\"\n1,a\n2,b\n3,d\n");
    assert_eq!(ran.counts(), [4, 3, 1, 0]);
    let again = dedupe(&arguments, b"");
    assert_eq!((&again.out[..], again.counts()), (&b""[..], [4, 0, 4, 0]));
    assert_eq!(dedupe_text(&["--header"], "h\nh\n"), "h\nh\n");
    assert_eq!(dedupe_text(&["--header"], "h"), "");
}

#[test]
fn duplicates_are_put_aside_behind_what_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let [aside, store] = ["aside", "store"].map(|name| directory.path().join(name));
    let arguments = ["--duplicates", text(&aside), "--store", text(&store)];
    assert_eq!(dedupe_text(&arguments, "a\nb\na\na\n"), "a\nb\n");
    assert_eq!(fs::read_to_string(&aside).unwrap(), "a\na\n");
    assert_eq!(dedupe_text(&arguments, "b\nc"), "c\n");
    assert_eq!(fs::read_to_string(&aside).unwrap(), "a\na\nb\n");
    // All lines are in one of the two.
    dedupe(&["--duplicates", "/dev/full"], b"a\n").counts();
    dedupe(&["--duplicates", "/dev/full"], b"a\na\n").failed(4, "/dev/full");
}

#[test]
fn a_line_that_was_torn_by_a_kill_is_not_glued_to_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    for (before, after) in [("a\nb", "a\nb\nx\n"), ("a\n", "a\nx\n"), ("", "x\n")] {
        fs::write(&out, before).unwrap();
        let mut command = command(&[]);
        command.stdout(OpenOptions::new().append(true).open(&out).unwrap());
        assert_eq!(run_command(command, b"x\nx\n").code, Some(0));
        assert_eq!(fs::read_to_string(&out).unwrap(), after);
    }
    // Nothing to say, nothing said.
    fs::write(&out, "a").unwrap();
    let mut command = command(&[]);
    command.stdout(OpenOptions::new().append(true).open(&out).unwrap());
    assert_eq!(run_command(command, b"").code, Some(0));
    assert_eq!(fs::read_to_string(&out).unwrap(), "a");
}

#[test]
fn a_pausing_input_is_passed_on_before_it_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    for arguments in [vec![], vec!["--store", text(directory.path())]] {
        let mut child = command(&arguments).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        for n in 0..20 {
            // Were it kept back, this would wait for ever.
            writeln!(stdin, "again\nline {n}").unwrap();
            let mut got = String::new();
            while !got.ends_with(&format!("line {n}\n")) {
                assert!(out.read_line(&mut got).unwrap() > 0);
            }
        }
        drop(stdin);
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn the_window_is_kept_and_a_change_of_it_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let store = ["--store", text(directory.path())];
    let told = |arguments: &[&str], input: &[u8]| {
        let ran = dedupe(&[&store[..], arguments].concat(), input);
        let told = ran.err.lines().find(|line| line.contains("window")).map(str::to_owned);
        (String::from_utf8(ran.out.clone()).unwrap(), told)
    };
    assert_eq!(told(&["--ttl", "100ms"], b"a\n"), ("a\n".to_owned(), None));
    assert_eq!(told(&["--ttl", "100ms"], b"").1, None);
    assert_eq!(told(&[], b"").1, None);
    std::thread::sleep(Duration::from_millis(300));
    // Long over: a first sight again.
    let (out, change) = told(&["--ttl", "24h"], b"a\n");
    assert_eq!(out, "a\n");
    assert!(change.as_ref().is_some_and(|line| line.contains("from 100ms to 1day")), "{change:?}");
    assert_eq!(told(&["--ttl", "1day"], b"a\n"), (String::new(), None));
    assert_eq!(told(&[], b"a\n"), (String::new(), None));
    let policy = Store::open(directory.path()).unwrap().namespace("dedupe").unwrap().policy();
    assert_eq!(policy.dedupe_ttl, Duration::from_secs(86_400));
    // A new namespace has thirty years.
    dedupe(&["--store", text(directory.path()), "--namespace", "new"], b"a\n").counts();
    let policy = Store::open(directory.path()).unwrap().namespace("new").unwrap().policy();
    assert_eq!(policy.dedupe_ttl, refrain::DEDUPE_TTL_MAX);
}

#[test]
fn summaries_are_what_was_asked_for() {
    let table = run(&[], b"a\na\n");
    for line in ["events                       2", "first                        1"] {
        assert!(table.err.contains(line), "{}", table.err);
    }
    assert_eq!(run(&["--summary", "none"], b"a\na\n").err, "");
    let summary = dedupe(&[], b"a\na\n").summary();
    assert_eq!(summary["events"], 2);
    assert!(summary["seconds"].is_number() && summary["events_per_second"].is_number());
    assert_eq!(summary.as_object().unwrap().len(), 6);
}

#[test]
fn help_is_all_a_new_user_needs() {
    let help = String::from_utf8(run(&["--help"], b"").out).unwrap();
    let options = [
        "--store",
        "--namespace",
        "--key",
        "--delimiter",
        "--header",
        "--ttl",
        "--durability",
        "--strict",
        "--duplicates",
        "--summary",
    ];
    for option in options {
        assert!(help.contains(option), "{option}");
    }
    let document = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/dedupe.md"));
    let document = document.unwrap();
    for code in 0..=9 {
        let line = help.lines().find(|line| line.starts_with(&format!("  {code}  "))).unwrap();
        assert!(document.contains(line.trim()), "the document says: {line}");
    }
    for option in options {
        assert!(document.contains(option), "the document says {option}");
    }
}

#[test]
fn a_command_line_that_cannot_be_is_refused() {
    let wrong: [&[&str]; 9] = [
        &["--key", "column"],
        &["--key", "regex:("],
        &["--delimiter", ";"],
        &["--delimiter", ";;", "--key", "col:1"],
        &["--durability", "sync"],
        &["--durability", "fast", "--store", "x"],
        &["--ttl", "soon"],
        &["--ttl", "1ms"],
        &["--ttl", "31years"],
    ];
    for arguments in wrong {
        let ran = run(arguments, b"a\n");
        assert_eq!((ran.code, &ran.out[..]), (Some(2), &b""[..]), "{arguments:?}: {}", ran.err);
    }
    assert_eq!(run(&["--namespace", ""], b"a\n").code, Some(2));
}

#[test]
fn a_line_without_a_key_ends_a_strict_run_behind_all_before_it() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--strict", "--key", "col:2", "--store", text(directory.path())];
    let ran = run(&arguments, b"a,1\nb,2\nb,2\nnone\nc,3\n");
    ran.failed(1, "standard input, line 4: the line has no key");
    assert_eq!(ran.out, b"a,1\nb,2\n");
    // What was written counts as seen.
    assert_eq!(dedupe_text(&arguments, "a,1\nb,2\nd,4\n"), "d,4\n");
}

#[test]
fn an_input_that_cannot_be_read_is_told_before_anything_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let good = directory.path().join("good");
    fs::write(&good, "a\n").unwrap();
    let missing = directory.path().join("missing");
    for bad in [text(&missing), text(directory.path())] {
        let ran = run(&[text(&good), bad], b"");
        ran.failed(3, bad);
        assert!(ran.out.is_empty());
    }
    let long = vec![b'x'; (64 << 20) + (2 << 20)];
    let ran = run(&[], &[b"a\n", &long[..]].concat());
    ran.failed(3, "standard input, line 2: a line of more than 64 MiB");
    assert_eq!(ran.out, b"a\n");
    run(&["--key", "col:1"], &[b"\"", &long[..]].concat()).failed(3, "is a quote left open?");
}

#[test]
fn an_output_that_is_closed_or_full_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = ledger_cut();
    let arguments = ["--store", text(directory.path())];
    let mut full = command(&arguments);
    full.stdout(OpenOptions::new().write(true).open("/dev/full").unwrap());
    run_command(full, b"a\nb\n").failed(4, "standard output: No space left on device");
    // Nothing of it counts as seen.
    assert_eq!(dedupe_text(&arguments, "a\nb\n"), "a\nb\n");

    let mut child = command(&arguments).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    drop(child.stdout.take());
    // Whether all of it is taken does not matter.
    drop(stdin.write_all(&ledger));
    drop(stdin);
    let ran = child.wait_with_output().unwrap();
    let err = String::from_utf8(ran.stderr).unwrap();
    Ran { code: ran.status.code(), out: vec![], err }.failed(5, "standard output: closed");
    // `head` takes the first lines: what it did not take comes again.
    assert!(dedupe(&arguments, &ledger).out == first_sights(&ledger));
}

#[test]
fn nobody_has_to_listen_to_the_summary() {
    let mut child = command(&[]).spawn().unwrap();
    drop(child.stderr.take());
    child.stdin.take().unwrap().write_all(b"a\na\n").unwrap();
    let mut out = vec![];
    child.stdout.take().unwrap().read_to_end(&mut out).unwrap();
    assert_eq!((child.wait().unwrap().code(), &out[..]), (Some(0), &b"a\n"[..]));
}

#[test]
fn a_store_that_cannot_be_used_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let arguments = ["--store", text(&path)];
    let store = Store::open(&path).unwrap();
    run(&arguments, b"a\n").failed(6, "is locked by another opener");
    // Rules under which a killed run would lose lines.
    let parks = Policy::default().on_lease_end(OnLeaseEnd::Park);
    store.define("parks", &parks).unwrap();
    let keeps = Policy::default().on_orphan(OnOrphan::KeepLease);
    store.define("keeps", &keeps).unwrap();
    store.define("wants", &Policy::default().fingerprint_required(true)).unwrap();
    let kept = store.define("kept", &keeps).unwrap().claim("a", None).unwrap().acquired().unwrap();
    store.alter("kept", &Policy::default()).unwrap();
    let parked = store.namespace("parked").unwrap();
    parked.claim("a", None).unwrap().acquired().unwrap().park().unwrap();
    drop(kept);
    store.close().unwrap();
    for name in ["parks", "keeps", "wants", "kept", "parked"] {
        let named = [&arguments[..], &["--namespace", name]].concat();
        run(&named, b"a\n").failed(8, &format!("namespace {name:?}"));
    }
    // A file where the directory should be, a damaged store, a foreign one.
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    run(&["--store", text(&file)], b"a\n").failed(8, text(&file));
    let meta = path.join("META");
    let mut bytes = fs::read(&meta).unwrap();
    for byte in &mut bytes {
        *byte ^= 1;
    }
    fs::write(&meta, &bytes).unwrap();
    run(&arguments, b"a\n").failed(8, text(&meta));
    fs::write(&meta, "somebody else's").unwrap();
    run(&arguments, b"a\n").failed(8, text(&meta));
    assert_eq!(fs::read(&meta).unwrap(), b"somebody else's");
}

#[test]
fn a_store_without_room_is_told() {
    let directory = tempfile::tempdir().unwrap();
    // A limit on the size of files, in place of a full disk; what happens when a store fills on the
    // way is shown beside the code.
    let mut shell = Command::new("bash");
    let script = "trap '' XFSZ; ulimit -f 1000; exec \"$0\" dedupe --store \"$1\"";
    shell.args(["-c", script, env!("CARGO_BIN_EXE_refrain"), text(directory.path())]);
    shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    run_command(shell, b"a\n").failed(7, "the store is full");
}

/// Runs with its output appended to `out`, and kills it after `delay`; whether it was killed.
fn run_and_kill(arguments: &[&str], out: &Path, delay: Option<Duration>) -> bool {
    let mut command = command(arguments);
    command.stdout(OpenOptions::new().append(true).create(true).open(out).unwrap());
    command.stderr(Stdio::null()).stdin(Stdio::null());
    let mut child: Child = command.spawn().unwrap();
    if let Some(delay) = delay {
        std::thread::sleep(delay);
        // It may have ended by itself.
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    assert!(status.success() || status.code().is_none(), "{status}");
    !status.success()
}

#[test]
fn killed_runs_lose_no_line_and_repeat_at_most_a_batch() {
    let mut random = Random::new(seed("dedupe kill"));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("input");
    let mut input = String::new();
    for n in 0..150_000_u64 {
        // Some duplicates, near and far; lines of uneven length.
        let key = if random.chance(20) { random.below(n + 1) } else { n };
        input.push_str(&format!("{key:0>width$}\n", width = 20 + (key % 150) as usize));
    }
    fs::write(&path, &input).unwrap();
    let expected = first_sights(input.as_bytes());
    for durability in ["sync", "buffered"] {
        let store = directory.path().join(format!("timed {durability}"));
        let all = |store: &Path, out: &str, delay| {
            let arguments = ["--store", text(store), "--durability", durability, text(&path)];
            run_and_kill(&arguments, &directory.path().join(out), delay)
        };
        let start = Instant::now();
        assert!(!all(&store, "timed", None));
        let whole = start.elapsed();
        let mut kills = 0;
        let mut trial = 0;
        while kills < 12 {
            trial += 1;
            let store = directory.path().join(format!("store {durability} {trial}"));
            let out = format!("out {durability} {trial}");
            let mut killed = 0;
            loop {
                let delay = whole.mul_f64(random.below(1000) as f64 / 1000.0);
                if !all(&store, &out, Some(delay)) {
                    break;
                }
                killed += 1;
            }
            assert!(!all(&store, "silent", None));
            let silent = fs::read(directory.path().join("silent")).unwrap();
            assert!(silent.is_empty(), "a run over the same file prints nothing");
            let written = fs::read(directory.path().join(out)).unwrap();
            judge(&expected, &written, killed);
            kills += killed;
        }
        println!("{durability}: {kills} kills in {trial} trials, none lost a line");
    }
}

/// No line is missing, few are there again, and nothing else is there but the beginnings of lines
/// that a kill has cut.
fn judge(expected: &[u8], written: &[u8], killed: usize) {
    let mut counts: HashMap<&[u8], usize> = lines(expected).map(|line| (line, 0)).collect();
    let mut torn = 0;
    for line in lines(written) {
        match counts.get_mut(line) {
            Some(count) => *count += 1,
            None => {
                let is_beginning = lines(expected).any(|whole| whole.starts_with(line));
                assert!(is_beginning, "{line:?} was never given");
                torn += 1;
            }
        }
    }
    assert!(torn <= killed);
    let missing = counts.values().filter(|count| **count == 0).count();
    assert_eq!(missing, 0, "of {} lines after {killed} kills", counts.len());
    let repeated: usize = counts.values().map(|count| count - 1).sum();
    assert!(repeated <= killed * BATCH_LINES, "{repeated} repeated after {killed} kills");
}

/// Counts of a trace, with these arguments: in memory, with a store, and again on that store.
fn check_counts(name: &str, input: &[u8], arguments: &[&str], expected: [u64; 4]) {
    let [events, first, duplicates, unkeyed] = expected;
    let what = format!("{name} {arguments:?}");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("input");
    File::create(&path).unwrap().write_all(input).unwrap();
    let store = directory.path().join("store");
    assert_eq!(dedupe(arguments, input).counts(), expected, "{what}");
    let stored = [arguments, &["--store", text(&store), text(&path)]].concat();
    let ran = dedupe(&stored, b"");
    assert_eq!(ran.counts(), expected, "{what} with a store");
    let header = u64::from(arguments.contains(&"--header"));
    assert_eq!(lines(&ran.out).count() as u64, header + first + unkeyed, "{what}");
    let again = dedupe(&stored, b"");
    assert_eq!(again.counts(), [events, 0, first + duplicates, unkeyed], "{what} again");
    println!("{what}: {events} events, {first} first sights, {duplicates} duplicates");
}

#[test]
fn the_retail_ledger_has_its_counted_duplicates() {
    let Some(ledger) = trace("online-retail.csv.xz") else { return };
    let counts = |first: u64| [541_909, first, 541_909 - first, 0];
    check_counts("retail", &ledger, &["--header"], counts(536_641));
    check_counts("retail", &ledger, &["--header", "--key", "col:1,2"], counts(531_225));
    check_counts("retail", &ledger, &["--header", "--key", "col:1"], counts(25_900));
    let body = ledger.splitn(2, |byte| *byte == b'\n').nth(1).unwrap();
    check_counts("retail", body, &["--key", "regex:^([^,]*,[^,]*),"], counts(531_225));
}

#[test]
fn the_page_requests_have_their_counted_duplicates() {
    let number = |text: &[u8]| std::str::from_utf8(text).unwrap().parse::<u64>().unwrap();
    for (name, events, first) in
        [("arc-OLTP.lis.zst", 914_145, 186_880), ("arc-P3.lis.zst", 3_912_296, 762_543)]
    {
        let Some(requests) = trace(name) else { return };
        let mut pages = vec![];
        for line in lines(&requests) {
            let mut fields = line.split(|byte| *byte == b' ');
            let start = number(fields.next().unwrap());
            for page in start..start + number(fields.next().unwrap()) {
                writeln!(pages, "{page}").unwrap();
            }
        }
        check_counts(name, &pages, &[], [events, first, events - first, 0]);
    }
}

#[test]
fn the_product_ids_have_their_counted_duplicates() {
    let Some(ids) = trace("scarab-recs.trace.xz") else { return };
    let hex: String = ids
        .chunks_exact(8)
        .map(|id| id.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n")
        .collect();
    check_counts("scarab", hex.as_bytes(), &[], [1_245_184, 258_368, 986_816, 0]);
}

#[test]
fn the_request_ids_have_their_counted_duplicates() {
    let Some(requests) = trace("openstack-requests-2k.log.gz") else { return };
    // Lines without a request pass; of those with one, each request comes out once.
    let with = lines(&requests).filter(|line| line.windows(4).any(|part| part == b"req-")).count();
    assert_eq!(with, 1845);
    let all = lines(&requests).count() as u64;
    let key = "regex:(req-[0-9a-f-]*)";
    check_counts("openstack", &requests, &["--key", key], [all, 938, 907, all - 1845]);
}
