//! A real ledger through claim and complete, checked against a plain set; then a process that is
//! killed in the middle of it.
//!
//! Replays 72,000 invoice lines (`examples/data/`): the first sight of each line claims it and
//! completes it with a receipt, each repeat must get the first receipt back, byte for byte. Once
//! buffered, over the whole ledger; once synced, over the first lines, because each change then
//! waits for the disk.
//!
//! Then it runs itself as a child that says of each line when it is acknowledged, kills the child
//! with SIGKILL, opens the store, and asks for every line that was acknowledged.

use std::collections::HashMap;
use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use refrain::{Body, Claim, Durability, Fingerprint, Lookup, Namespace, Options, Store};

const LEDGER: &[u8] = include_bytes!("data/online-retail-72k.csv.gz");
/// Lines that are replayed when every change waits for the disk.
const SYNCED_LINES: usize = 4000;
/// Acknowledged lines after which the child is killed.
const KILLED_AFTER: usize = 30_000;
/// The first argument of the child; the second is its directory.
const CHILD: &str = "--child";

fn main() -> Result<(), Box<dyn Error>> {
    let mut ledger = String::new();
    GzDecoder::new(LEDGER).read_to_string(&mut ledger)?;
    let lines: Vec<&str> = ledger.lines().skip(1).collect();
    let mut arguments = std::env::args().skip(1);
    if arguments.next().is_some_and(|argument| argument == CHILD) {
        let directory = arguments.next().ok_or("the child needs a directory")?;
        return work_until_killed(Path::new(&directory), &lines);
    }

    println!("Online retail ledger: {} invoice lines, one key a line\n", lines.len());
    let buffered = replay(Durability::Buffered, &lines)?;
    let synced = replay(Durability::Sync, &lines[..SYNCED_LINES])?;
    print_table(&[("buffered", &buffered), ("sync", &synced)]);
    println!(
        "\nBuffered survives the end of the process, sync survives power loss too. Wrong answers\n\
         are counted against a plain map of what was seen; replays are compared byte for byte."
    );
    let lost = kill_and_reopen(&lines)?;
    if buffered.wrong + synced.wrong + lost > 0 {
        return Err("the store gave wrong answers".into());
    }
    Ok(())
}

/// What a replay counted.
struct Replay {
    events: usize,
    first: usize,
    duplicates: usize,
    wrong: usize,
    elapsed: Duration,
    claims: Vec<Duration>,
    completions: Vec<Duration>,
    table_bytes: usize,
    /// Bytes of all records, as the next open reads them.
    record_bytes: u64,
}

fn replay(durability: Durability, lines: &[&str]) -> Result<Replay, Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let store: Store = Options::new(directory.path()).durability(durability).open()?;
    let ledger = store.namespace("ledger")?;
    let mut seen: HashMap<&str, String> = HashMap::new();
    let (mut duplicates, mut wrong) = (0, 0);
    let (mut claims, mut completions) = (Vec::new(), Vec::new());
    let start = Instant::now();
    for (number, line) in lines.iter().enumerate() {
        let began = Instant::now();
        let claim = ledger.claim(line, Fingerprint::of(line.as_bytes()))?;
        claims.push(began.elapsed());
        match claim {
            Claim::Acquired(lease) => {
                wrong += usize::from(seen.contains_key(line));
                let receipt = format!("receipt {number} under token {}", lease.token());
                let began = Instant::now();
                lease.complete(&receipt)?;
                completions.push(began.elapsed());
                seen.insert(line, receipt);
            }
            Claim::Completed(outcome) => {
                duplicates += 1;
                let receipt = seen.get(line).map(|receipt| Body::Bytes(receipt.as_bytes()));
                wrong += usize::from(receipt != Some(outcome.body()));
            }
            _ => wrong += 1,
        }
    }
    let elapsed = start.elapsed();
    let table_bytes = store.stats().table_bytes;
    store.close()?;
    let record_bytes = Store::open(directory.path())?.report().bytes;
    let (events, first) = (lines.len(), seen.len());
    Ok(Replay {
        events,
        first,
        duplicates,
        wrong,
        elapsed,
        claims,
        completions,
        table_bytes,
        record_bytes,
    })
}

fn open_buffered(directory: &Path) -> Result<(Store, Namespace), Box<dyn Error>> {
    let store = Options::new(directory).durability(Durability::Buffered).open()?;
    let ledger = store.namespace("ledger")?;
    Ok((store, ledger))
}

/// The receipt of a line; the same in both processes.
fn receipt(line: &str) -> String {
    format!("receipt for {line}")
}

/// The child: claims and completes line after line, and says each number once the store has
/// acknowledged it.
fn work_until_killed(directory: &Path, lines: &[&str]) -> Result<(), Box<dyn Error>> {
    let (_store, ledger) = open_buffered(directory)?;
    let mut told = std::io::stdout().lock();
    for (number, line) in lines.iter().enumerate() {
        if let Claim::Acquired(lease) = ledger.claim(line, Fingerprint::of(line.as_bytes()))? {
            lease.complete(receipt(line))?;
        }
        writeln!(told, "{number}")?;
    }
    Ok(())
}

/// Kills a child at work, opens its store, and counts the acknowledged lines that are not there
/// with their receipt.
fn kill_and_reopen(lines: &[&str]) -> Result<usize, Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg(CHILD)
        .arg(directory.path())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut told = BufReader::new(child.stdout.take().ok_or("the child has no output")?);
    let (mut acknowledged, mut text) = (0, String::new());
    // What the child has said before it died is read to the end.
    while told.read_line(&mut text)? > 0 {
        if text.trim_end().parse() == Ok(acknowledged) && text.ends_with('\n') {
            acknowledged += 1;
        }
        text.clear();
        if acknowledged == KILLED_AFTER {
            child.kill()?;
        }
    }
    let status = child.wait()?;
    if status.success() {
        return Err("the child came to its end before it was killed".into());
    }

    let (store, ledger) = open_buffered(directory.path())?;
    let mut lost = 0;
    for line in &lines[..acknowledged] {
        let is_known = matches!(ledger.lookup(line)?, Lookup::Completed(outcome)
            if outcome.body() == Body::Bytes(receipt(line).as_bytes()));
        lost += usize::from(!is_known);
    }
    let report = store.report();
    println!("\nA process at work on the same ledger, killed with SIGKILL ({status}):\n");
    let print = |name: &str, value: String| println!("{name:<28}{value:>28}");
    print("acknowledged lines", acknowledged.to_string());
    print("of these lost", lost.to_string());
    print("recovery", format!("{:.1} ms", report.duration.as_secs_f64() * 1e3));
    print("records read", report.records.to_string());
    print("bytes of records", report.bytes.to_string());
    print("completed keys", report.completed.to_string());
    print("claims without an owner", report.orphaned.to_string());
    print("torn tails", report.torn_tails.len().to_string());
    Ok(lost)
}

fn print_table(replays: &[(&str, &Replay)]) {
    let print = |name: &str, show: &dyn Fn(&Replay) -> String| {
        let columns: String =
            replays.iter().map(|(_, replay)| format!("{:>28}", show(replay))).collect();
        println!("{name:<28}{columns}");
    };
    let names: String = replays.iter().map(|(name, _)| format!("{name:>22}")).collect();
    println!("{:<28}{names}", "");
    print("events", &|it| it.events.to_string());
    print("first sights", &|it| it.first.to_string());
    print("duplicates", &|it| it.duplicates.to_string());
    print("wrong answers", &|it| it.wrong.to_string());
    print("events per second", &|it| format!("{:.0}", it.events as f64 / it.elapsed.as_secs_f64()));
    print("claim p50 / p99 / p99.9", &|it| percentiles(&it.claims));
    print("complete p50 / p99 / p99.9", &|it| percentiles(&it.completions));
    print("bytes per key in memory", &|it| {
        format!("{:.1}", it.table_bytes as f64 / it.first as f64)
    });
    print("bytes per key on disk", &|it| {
        format!("{:.1}", it.record_bytes as f64 / it.first as f64)
    });
}

/// In microseconds.
fn percentiles(times: &[Duration]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = |share: f64| {
        let index = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
        sorted.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    };
    format!("{:.1} / {:.1} / {:.1} us", at(0.5), at(0.99), at(0.999))
}
