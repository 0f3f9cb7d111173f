//! Pictures of the results, as SVG: bars for speed, memory, syncs and reopening, lines for latency.
//! One for each section, number of keys and of threads. What a contestant survives stands beside
//! it.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::contestants::{CONTESTANTS, Contestant};
use crate::report::place::{self, Place};
use crate::report::{LATENCY, PERCENTILES, REOPEN, counted, is_behind, short};
use crate::results::Table;
use crate::workloads::WORKLOADS;

const WIDTH: f64 = 1000.0;
/// Room for names at the left of bars.
const LEFT: f64 = 225.0;
/// More than a letter takes.
const LETTER: f64 = 7.0;
const OWN: [&str; 2] = ["#1f5fa8", "#7fb2e5"];
const PEERS: [&str; 4] = ["#c0562b", "#6b8e23", "#8a5fb0", "#b8860b"];
const PEER_BAR: &str = "#b8bec6";

/// A picture and the end of its file's name.
pub struct Picture {
    pub name: String,
    pub svg: String,
}

/// What the results have enough points for.
pub fn pictures(table: &Table) -> Vec<Picture> {
    let mut all = vec![];
    all.extend(memory_and_latency(table));
    all.extend(speed(table, "memory", "speed", "In memory, and refrain buffered"));
    all.extend(speed(table, "durable", "durable", "Durable without a sync a call"));
    all.extend(sync(table));
    all.extend(Place::all(table, "footprint").into_iter().map(memory));
    all.extend(reopen(table));
    for (section, _) in LATENCY {
        all.extend(Place::all(table, section).into_iter().map(latency));
    }
    all
}

struct Bar {
    who: &'static Contestant,
    value: f64,
    text: String,
}

/// Bars below a title.
struct Panel {
    title: String,
    bars: Vec<Bar>,
}

impl Panel {
    /// Everybody who has this metric, with its median.
    fn of(title: &str, place: Place<'_>, metric: &str, unit: &str) -> Self {
        let bar = |who: &'static Contestant| {
            let value = place.median(who, metric)?;
            Some(Bar { who, value, text: format!("{} {unit}", short(value)) })
        };
        Self { title: title.to_owned(), bars: CONTESTANTS.iter().filter_map(bar).collect() }
    }
}

struct Svg {
    text: String,
    height: f64,
    /// What is told in full below the picture.
    notes: BTreeSet<String>,
}

impl Svg {
    fn new(title: &str) -> Self {
        let mut svg = Self { text: String::new(), height: 34.0, notes: BTreeSet::new() };
        svg.put(10.0, 22.0, "start", title);
        svg
    }

    fn add(&mut self, line: &str) {
        // Writing to a string does not fail.
        writeln!(self.text, "{line}").unwrap_or_default();
    }

    fn put(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        self.add(&format!(
            "<text x=\"{x:.0}\" y=\"{y:.0}\" text-anchor=\"{anchor}\">{text}</text>"
        ));
    }

    /// A contestant and, in short, what it survives; more words go below the picture.
    fn name(&mut self, who: &Contestant) -> String {
        let end = [", ", " since "].iter().filter_map(|it| who.survives.find(it)).min();
        let name = place::name(who).replace("buffered, room", "room");
        match end {
            None => format!("{name} ({})", who.survives),
            Some(end) => {
                self.notes.insert(format!("* {name} survives {}", who.survives));
                format!("{name} ({}*)", &who.survives[..end])
            }
        }
    }

    /// Panels side by side, two in a line.
    fn panels(&mut self, panels: &[Panel]) {
        let columns = panels.len().clamp(1, 2);
        let width = WIDTH / columns as f64;
        for line in panels.chunks(columns) {
            let top = self.height;
            let ends: Vec<_> = line
                .iter()
                .enumerate()
                .map(|(nth, panel)| self.bars(panel, nth as f64 * width, top, width))
                .collect();
            self.height = ends.into_iter().fold(top, f64::max) + 12.0;
        }
    }

    /// Bars below one another, the longest as wide as there is room. Gives where they end.
    fn bars(&mut self, panel: &Panel, x: f64, top: f64, width: f64) -> f64 {
        let bars = &panel.bars;
        let most = bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
        let letters = bars.iter().map(|bar| bar.text.len()).max().unwrap_or(0);
        let room = width - LEFT - 16.0 - LETTER * letters as f64;
        let (left, mut y) = (x + LEFT, top + 14.0);
        self.put(left, y, "start", &panel.title);
        for bar in bars {
            y += 18.0;
            let length = room * bar.value / most;
            let fill = if bar.who.is_refrain() { OWN[0] } else { PEER_BAR };
            let name = self.name(bar.who);
            self.put(left - 8.0, y, "end", &name);
            self.add(&format!(
                "<rect x=\"{left}\" y=\"{:.0}\" width=\"{length:.1}\" height=\"13\" \
                 fill=\"{fill}\"/>",
                y - 11.0
            ));
            self.put(left + length + 6.0, y, "start", &bar.text);
        }
        y + 8.0
    }

    fn end(mut self) -> String {
        for note in std::mem::take(&mut self.notes) {
            self.height += 16.0;
            self.put(10.0, self.height - 6.0, "start", &note);
        }
        let Self { text, height, .. } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{WIDTH}\" height=\"{height:.0}\" fill=\"white\"/>\n{text}</svg>\n"
        )
    }
}

/// Keys, for a file's name.
fn size(n: usize) -> String {
    match n {
        n if n % 1_000_000 == 0 => format!("{}M", n / 1_000_000),
        n if n % 1000 == 0 => format!("{}k", n / 1000),
        n => n.to_string(),
    }
}

fn speed(table: &Table, section: &str, name: &str, title: &str) -> Vec<Picture> {
    let mut all = vec![];
    for place in Place::all(table, section) {
        let (keys, threads) = (short(place.n as f64), counted(place.threads, "thread"));
        let mut svg = Svg::new(&format!(
            "{title}: nanoseconds an operation, {keys} keys, {threads} (shorter is faster); in \
             parentheses what a call that has returned survives"
        ));
        let panels = WORKLOADS.iter().map(|(metric, title)| Panel::of(title, place, metric, "ns"));
        svg.panels(&panels.collect::<Vec<_>>());
        let name = format!("{name}-{}-{}t", size(place.n), place.threads);
        all.push(Picture { name, svg: svg.end() });
    }
    all
}

fn sync(table: &Table) -> Option<Picture> {
    let mut svg = Svg::new("A sync a call: claim+complete a second, by threads (longer is faster)");
    let panel =
        |place: Place<'_>| Panel::of(&counted(place.threads, "thread"), place, "pairs", "a second");
    let panels: Vec<_> = Place::all(table, "sync").into_iter().map(panel).collect();
    svg.panels(&panels);
    (!panels.is_empty()).then(|| Picture { name: "sync".to_owned(), svg: svg.end() })
}

fn memory(place: Place<'_>) -> Picture {
    let mut svg = Svg::new(&format!("Bytes a completed entry, {} keys", short(place.n as f64)));
    let panels = [
        ("anonymous", "anonymous memory"),
        ("resident", "resident memory"),
        ("disk closed", "disk, closed"),
    ];
    let panels = panels.map(|(metric, title)| {
        let mut panel = Panel::of(title, place, metric, "B");
        panel.bars.retain(|bar| metric != "disk closed" || bar.value > 0.0);
        panel
    });
    svg.panels(&panels);
    Picture { name: format!("memory-{}", size(place.n)), svg: svg.end() }
}

/// Seconds, with how many entries were acknowledged: who was slow to write has fewer to open.
fn reopen(table: &Table) -> Option<Picture> {
    let mut svg = Svg::new(
        "Seconds from opening to the first answer, and the entries that were acknowledged before",
    );
    let mut panels = vec![];
    for (section, title) in REOPEN {
        for place in Place::all(table, section) {
            let title = title.replace("Opened again ", "");
            let title = format!("{title}, at most {} keys", short(place.n as f64));
            let mut panel = Panel::of(&title, place, "seconds", "s");
            for bar in &mut panel.bars {
                let entries = place.median(bar.who, "acknowledged").map_or("?".to_owned(), short);
                bar.text = format!("{} s of {entries}", short(bar.value));
            }
            panels.push(panel);
        }
    }
    svg.panels(&panels);
    (!panels.is_empty()).then(|| Picture { name: "reopen".to_owned(), svg: svg.end() })
}

fn latency(place: Place<'_>) -> Picture {
    let mut svg = Svg::new(&latency_title(place));
    svg.height += 8.0;
    latency_lines(&mut svg, place);
    let section = place.section.replace([' ', '%'], "-");
    let name = format!("{}-{}", section.trim_end_matches('-'), size(place.n));
    Picture { name, svg: svg.end() }
}

/// What a reader sees first: the memory that an entry takes, and how long a claim does at a rate
/// that is the same for all.
fn memory_and_latency(table: &Table) -> Option<Picture> {
    let entries = Place::all(table, "footprint").into_iter().next()?;
    let place = Place::all(table, "latency common").into_iter().next()?;
    let keys = short(entries.n as f64);
    let mut svg = Svg::new("refrain beside its peers; in parentheses what survives");
    let title = format!("anonymous memory a completed entry, {keys} keys");
    svg.panels(&[Panel::of(&title, entries, "anonymous", "B")]);
    svg.height += 18.0;
    svg.put(LEFT, svg.height, "start", &latency_title(place));
    svg.height += 8.0;
    latency_lines(&mut svg, place);
    Some(Picture { name: "memory-and-latency".to_owned(), svg: svg.end() })
}

fn latency_title(place: Place<'_>) -> String {
    let rate = LATENCY.iter().find(|(section, _)| *section == place.section);
    let rate = rate.map_or("", |(_, rate)| *rate);
    let keys = short(place.n as f64);
    format!("Time from when a claim was due, growing to {keys} keys, {rate}")
}

/// Microseconds in the largest unit.
fn time(micros: f64) -> String {
    match micros {
        it if it >= 1e6 => format!("{} s", it / 1e6),
        it if it >= 1e3 => format!("{} ms", it / 1e3),
        it => format!("{it} us"),
    }
}

/// A line a contestant over the percentiles, below what is there and the names.
fn latency_lines(svg: &mut Svg, place: Place<'_>) {
    const STEP: f64 = 140.0;
    let (mut own, mut peers) = (OWN.iter().cycle(), PEERS.iter().cycle());
    let all = place.present("claim max").into_iter();
    let all: Vec<_> = all
        .map(|who| {
            let colour = if who.is_refrain() { own.next() } else { peers.next() };
            (who, colour.copied().unwrap_or(PEER_BAR))
        })
        .collect();
    legend(svg, place, &all);
    let (top, bottom) = (svg.height + 10.0, svg.height + 310.0);
    // From 0.1 microseconds up, eight powers of ten.
    let y = |micros: f64| bottom - (micros.max(0.1).log10() + 1.0).min(8.0) / 8.0 * (bottom - top);
    let x = |nth: usize| LEFT + nth as f64 * STEP;
    for power in -1..=7 {
        let (value, at) = (10f64.powi(power), y(10f64.powi(power)));
        svg.add(&format!("<path d=\"M{LEFT} {at:.1}h{}\" stroke=\"#ddd\"/>", 5.0 * STEP));
        svg.put(LEFT - 24.0, at + 4.0, "end", &time(value));
    }
    for (nth, name) in PERCENTILES.iter().enumerate() {
        svg.put(x(nth), bottom + 18.0, "middle", name);
    }
    for (who, colour) in all {
        let point = |(nth, name)| {
            let value = place.median(who, &format!("claim {name}"))?;
            Some(format!("{:.0},{:.1}", x(nth), y(value)))
        };
        let points: Vec<_> = PERCENTILES.iter().enumerate().filter_map(point).collect();
        svg.add(&format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.join(" ")
        ));
    }
    svg.height = bottom + 30.0;
}

/// Names and colours, two in a line. Of who fell behind the lines are the length of the run.
fn legend(svg: &mut Svg, place: Place<'_>, all: &[(&'static Contestant, &str)]) {
    for line in all.chunks(2) {
        for (nth, (who, colour)) in line.iter().enumerate() {
            let (x, y) = (LEFT + 350.0 * nth as f64, svg.height);
            svg.add(&format!(
                "<rect x=\"{x}\" y=\"{y:.0}\" width=\"10\" height=\"10\" fill=\"{colour}\"/>"
            ));
            let behind = if is_behind(place, who) { ", fell behind the rate" } else { "" };
            let name = svg.name(who);
            svg.put(x + 14.0, y + 9.0, "start", &format!("{name}{behind}"));
        }
        svg.height += 18.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_size_has_its_pictures() {
        let lines = [
            "memory,dashmap,memory,1000000,1,0,w1,10",
            "memory,dashmap,memory,1000000,2,0,w1,10",
            "memory,dashmap,memory,10000000,2,0,w1,10",
            "durable,sled,kill,1500,1,0,w1,10",
            "sync,fjall,power,1,16,0,pairs,10",
            "reopen killed,fjall,kill,100000,1,0,seconds,10",
            "footprint,dashmap,memory,1000000,1,0,anonymous,10",
            "latency common,dashmap,memory,1000000,1,0,claim max,10",
            "latency 70 %,dashmap,memory,1000000,1,0,claim max,10",
        ];
        let table = Table::parse(&lines.join("\n")).unwrap();
        let names: Vec<_> = pictures(&table).into_iter().map(|it| it.name).collect();
        let wanted = [
            "memory-and-latency",
            "speed-1M-1t",
            "speed-1M-2t",
            "speed-10M-2t",
            "durable-1500-1t",
            "sync",
            "memory-1M",
            "reopen",
            "latency-70-1M",
            "latency-common-1M",
        ];
        assert_eq!(names, wanted);
    }

    #[test]
    fn what_is_survived_in_part_is_told_below() {
        let sled = CONTESTANTS.iter().find(|it| it.name == "sled").unwrap();
        let mut svg = Svg::new("");
        assert_eq!(svg.name(sled), "sled (kill*)");
        assert!(svg.end().contains("* sled survives kill, but for the last 500 ms"));
    }
}
