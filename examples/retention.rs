//! A month of a store that forgets: what it takes on disk and in memory goes flat after one window.
//!
//! Keys arrive all day, more by day than by night, are completed with a body, and are kept for
//! three days. On one day three times as many come. The clock is moved by hand, an hour at a time,
//! so a month takes seconds; the files are real. Keys are asked for all along, among them
//! those that have a millisecond left and those that have none; an answer that is not exact ends
//! the run with an error.
//!
//! `cargo run --release --features test-util --example retention [-- --svg FILE]` draws the month
//! in the terminal, and in FILE.

use std::error::Error;
use std::fmt::Write;
use std::time::{Duration, Instant};

use refrain::testing::SimClock;
use refrain::{Body, Claim, Durability, Lookup, Namespace, Options, Policy, Store, StoreStats};

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
const DAYS: u64 = 30;
const WINDOW: u64 = 3 * DAY;
/// The first second of the day on which three times as many keys come.
const BURST: u64 = 19 * DAY;
const TICK: u64 = HOUR;
/// Keys of an average tick.
const KEYS: f64 = 1600.0;
const BODY_BYTES: usize = 200;
/// What a completion takes: header, extensions, key and body, padded.
const RECORD_BYTES: u64 = 64 + 24 + BODY_BYTES as u64;
/// What a key takes in the table, if nothing is empty.
const SLOT_BYTES: u64 = 8;
const SEGMENT_BYTES: u64 = 256 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let svg = match &*arguments {
        [] => None,
        [option, file] if option == "--svg" => Some(file),
        _ => return Err("usage: retention [--svg FILE]".into()),
    };
    let directory = tempfile::tempdir()?;
    let clock = SimClock::new();
    let store = Options::new(directory.path())
        .durability(Durability::Buffered)
        .segment_bytes(SEGMENT_BYTES)
        .manual_maintenance(true)
        .clock(clock.clone())
        .open()?;
    let window = Duration::from_secs(WINDOW);
    let orders =
        store.define("orders", &Policy::default().replay_ttl(window).dedupe_ttl(window))?;
    let mut month = Month { store, orders, first_keys: vec![0], now_ms: 0, asked: 0, wrong: 0 };
    let mut samples = Vec::new();
    let start = Instant::now();
    for tick in 0..DAYS * DAY / TICK {
        month.work(keys_at(tick * TICK))?;
        month.store.maintain(Duration::MAX);
        month.ask(tick)?;
        samples.push((month.live_keys(), month.store.stats()));
        // The last millisecond of the keys that end with this tick, and the next.
        for ms in [TICK * 1000 - 1, 1] {
            clock.advance(Duration::from_millis(ms));
            month.now_ms += ms;
            month.ask(tick)?;
        }
    }
    let stats = month.store.stats();
    let plots = plots(&samples);
    plots.iter().for_each(print);
    print_days();
    println!(
        "\n{} keys came and {} went in {:.1} s; {} answers checked, {} wrong.\n\
         {} records were copied to be kept, {} segments used again.",
        month.next_key(),
        stats.purged,
        start.elapsed().as_secs_f64(),
        month.asked,
        month.wrong,
        stats.copied,
        stats.recycled,
    );
    if let Some(file) = svg {
        std::fs::write(file, draw(&plots))?;
        println!("Drawn in {file}.");
    }
    if month.wrong > 0 {
        return Err("the store gave wrong answers".into());
    }
    Ok(())
}

/// How many keys come in the tick that begins at this second.
fn keys_at(second: u64) -> u64 {
    let hour = (second % DAY) as f64 / HOUR as f64;
    let rhythm = 1.0 - 0.6 * (hour / 24.0 * std::f64::consts::TAU).cos();
    let burst = if (BURST..BURST + DAY).contains(&second) { 3.0 } else { 1.0 };
    (KEYS * rhythm * burst) as u64
}

/// What every key is follows from its number, so nothing but the store has to remember it.
fn key(number: u64) -> String {
    format!("order-{number:010}")
}

fn body(number: u64) -> Vec<u8> {
    let mut body = format!("receipt {number} ").into_bytes();
    body.resize(BODY_BYTES, number as u8);
    body
}

/// A number that looks random, the same in every run.
fn scatter(number: u64) -> u64 {
    let mixed = (number ^ (number >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 16
}

struct Month {
    store: Store,
    orders: Namespace,
    /// The first key of each tick, and the one that comes next.
    first_keys: Vec<u64>,
    now_ms: u64,
    asked: u64,
    wrong: u64,
}

impl Month {
    fn next_key(&self) -> u64 {
        self.first_keys[self.first_keys.len() - 1]
    }

    fn work(&mut self, count: u64) -> Result<(), Box<dyn Error>> {
        let first = self.next_key();
        for number in first..first + count {
            match self.orders.claim(key(number), None)? {
                Claim::Acquired(lease) => {
                    lease.complete(body(number))?;
                }
                _ => self.wrong += 1,
            }
        }
        self.first_keys.push(first + count);
        Ok(())
    }

    /// Asks for keys from the whole past, for some of the last window, and for some of the tick
    /// that is a window ago.
    fn ask(&mut self, tick: u64) -> Result<(), Box<dyn Error>> {
        let all = 0..self.next_key();
        let ago = |ticks: u64| self.first_keys[tick.saturating_sub(ticks) as usize];
        let window = WINDOW / TICK;
        let (live, ending) = (ago(window - 1)..all.end, ago(window - 1)..ago(window - 2));
        let ended = ago(window)..ago(window - 1);
        for (range, count) in [(all, 8), (live, 8), (ending, 8), (ended, 8)] {
            for _ in 0..count.min(range.end - range.start) {
                self.asked += 1;
                let number = range.start + scatter(self.asked) % (range.end - range.start);
                self.wrong += u64::from(!self.is_exact(number)?);
            }
        }
        Ok(())
    }

    /// Whether a key gets the answer it must get, at this millisecond.
    fn is_exact(&self, number: u64) -> Result<bool, Box<dyn Error>> {
        // Every tick has keys, so no two begin with the same one.
        let tick = self.first_keys.binary_search(&number).unwrap_or_else(|next| next - 1);
        let is_live = self.now_ms < (tick as u64 * TICK + WINDOW) * 1000;
        if !is_live {
            return Ok(matches!(self.orders.lookup(key(number))?, Lookup::Absent));
        }
        // A claim of a live key changes nothing.
        Ok(match self.orders.claim(key(number), None)? {
            Claim::Completed(outcome) => outcome.body() == Body::Bytes(&body(number)),
            _ => false,
        })
    }

    fn live_keys(&self) -> u64 {
        let before = (self.first_keys.len() - 1).saturating_sub((WINDOW / TICK) as usize);
        self.next_key() - self.first_keys[before]
    }
}

/// A quantity over the month, and what is the least that it could be.
struct Plot {
    title: &'static str,
    in_bytes: bool,
    values: Vec<u64>,
    least: Vec<u64>,
}

fn plots(samples: &[(u64, StoreStats)]) -> [Plot; 4] {
    let plot = |title, of: fn(&StoreStats) -> u64, least: u64| Plot {
        title,
        in_bytes: least != 1,
        values: samples.iter().map(|(_, stats)| of(stats)).collect(),
        least: samples.iter().map(|(live_keys, _)| live_keys * least).collect(),
    };
    [
        plot("keys in the table", |it| it.entries as u64, 1),
        plot("bytes of records", |it| it.record_bytes, RECORD_BYTES),
        plot("bytes of data files", |it| it.disk_bytes, RECORD_BYTES),
        plot("bytes of the table in memory", |it| it.table_bytes as u64, SLOT_BYTES),
    ]
}

impl Plot {
    fn max(&self) -> u64 {
        self.values.iter().copied().max().unwrap_or(0).max(1)
    }

    fn show(&self, value: u64) -> String {
        match self.in_bytes {
            false => format!("{:.0} k", value as f64 / 1e3),
            true => format!("{:.1} MiB", value as f64 / f64::from(1 << 20)),
        }
    }

    /// The title, with what the quantity is when the first window ends and at the end.
    fn headline(&self) -> String {
        let [first, last] = [(WINDOW / TICK) as usize, self.values.len() - 1]
            .map(|tick| self.show(self.values[tick]));
        format!("{}: {first} after one window, {last} at the end", self.title)
    }
}

/// Characters that a plot is wide in a terminal of 80, and high.
const WIDTH: usize = 68;
const HEIGHT: u64 = 4;

fn print(plot: &Plot) {
    println!("\n{:>12}{}", "", plot.headline());
    let max = plot.max();
    // The most in each part of the month.
    let bound = |part: usize| part * plot.values.len() / WIDTH;
    let parts = (0..WIDTH).map(|part| plot.values[bound(part)..bound(part + 1)].iter().max());
    let parts: Vec<u64> = parts.map(|most| most.copied().unwrap_or(0)).collect();
    for line in (0..HEIGHT).rev() {
        let label = match line {
            0 => "0".to_owned(),
            line if line + 1 == HEIGHT => plot.show(max),
            _ => String::new(),
        };
        let shown = parts.iter().map(|value| {
            let eighths = (value * HEIGHT * 8).div_ceil(max).saturating_sub(line * 8).min(8);
            [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'][eighths as usize]
        });
        println!("{label:>10} │{}", shown.collect::<String>());
    }
}

fn print_days() {
    let mut line = String::new();
    for (day, text) in [
        (0, "day 0"),
        (WINDOW / DAY, "one window"),
        (BURST / DAY, "burst"),
        ((BURST + WINDOW) / DAY + 1, "over"),
        (DAYS - 2, "day 30"),
    ] {
        let at = 12 + (day as usize * WIDTH) / DAYS as usize;
        write!(line, "{:>1$}{text}", "", at.saturating_sub(line.len())).unwrap_or_default();
    }
    println!("{line}");
}

/// The plots as SVG, one below the other.
fn draw(plots: &[Plot]) -> String {
    let (left, width, height, step) = (90.0, 680.0, 100.0, 150.0);
    let total = 50.0 + plots.len() as f64 * step;
    let x = |second: u64| left + width * second as f64 / (DAYS * DAY) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 800 {total}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"800\" height=\"{total}\" fill=\"white\"/>\n\
         <text x=\"{left}\" y=\"24\" font-size=\"13\">A month of keys that are kept for three days; \
         three times as many on one day (grey: the least there could be)</text>\n"
    );
    // Writing to a string does not fail.
    let mut put = |line: String| writeln!(svg, "{line}").unwrap_or_default();
    for (index, plot) in plots.iter().enumerate() {
        let top = 60.0 + index as f64 * step;
        let (bottom, max) = (top + height, plot.max());
        let y = |value: u64| bottom - height * value as f64 / max as f64;
        for (from, to, fill) in [(0, WINDOW, "#e3edf7"), (BURST, BURST + DAY, "#fbe3cf")] {
            let (from, to) = (x(from), x(to));
            let size = format!("width=\"{}\" height=\"{height}\"", to - from);
            put(format!("<rect x=\"{from}\" y=\"{top}\" {size} fill=\"{fill}\"/>"));
        }
        let line = |values: &[u64], style: &str| {
            let points = values
                .iter()
                .enumerate()
                .map(|(tick, value)| format!("{:.1},{:.1}", x(tick as u64 * TICK), y(*value)));
            let points = points.collect::<Vec<_>>().join(" ");
            format!("<polyline points=\"{points}\" fill=\"none\" {style}/>")
        };
        put(line(&plot.least, "stroke=\"#999\""));
        put(line(&plot.values, "stroke=\"#1f5fa8\" stroke-width=\"1.5\""));
        put(format!("<path d=\"M{left} {top}V{bottom}h{width}\" fill=\"none\" stroke=\"#333\"/>"));
        put(format!("<text x=\"{left}\" y=\"{}\">{}</text>", top - 8.0, plot.headline()));
        for (y, text) in [(top + 10.0, plot.show(max)), (bottom, "0".to_owned())] {
            put(format!("<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{text}</text>", left - 8.0));
        }
        for day in (0..=DAYS).step_by(3) {
            let (x, y) = (x(day * DAY), bottom + 16.0);
            put(format!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">{day}</text>"));
        }
    }
    svg + "</svg>\n"
}
