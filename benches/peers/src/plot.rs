//! Pictures of the results, as SVG: bars for memory and speed, lines for latency.

use std::fmt::Write;

use crate::contestants::CONTESTANTS;
use crate::report::{point, short, sizes};
use crate::results::Table;
use crate::store::Mode;
use crate::workloads::WORKLOADS;

const WIDTH: f64 = 800.0;
const LEFT: f64 = 150.0;
const OWN: &str = "#1f5fa8";
const PEER: &str = "#b8bec6";
const LATENCY: &str = "latency 70 %";

/// A picture and the end of its file's name.
pub struct Picture {
    pub name: &'static str,
    pub svg: String,
}

/// What the results have enough points for.
pub fn pictures(table: &Table) -> Vec<Picture> {
    let all = [speed(table), memory(table), latency(table), memory_and_latency(table)];
    all.into_iter().flatten().collect()
}

struct Svg {
    text: String,
    height: f64,
}

impl Svg {
    fn new(title: &str) -> Self {
        let mut svg = Self { text: String::new(), height: 40.0 };
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

    /// Bars below one another, the longest as wide as there is room.
    fn bars(&mut self, title: &str, unit: &str, bars: &[(String, f64, bool)]) {
        let most = bars.iter().map(|(_, value, _)| *value).fold(f64::MIN_POSITIVE, f64::max);
        self.height += 14.0;
        self.put(LEFT, self.height, "start", title);
        for (name, value, is_own) in bars {
            self.height += 18.0;
            let (y, length) = (self.height, (WIDTH - LEFT - 120.0) * value / most);
            let fill = if *is_own { OWN } else { PEER };
            self.put(LEFT - 8.0, y, "end", name);
            self.add(&format!(
                "<rect x=\"{LEFT}\" y=\"{:.0}\" width=\"{length:.1}\" height=\"13\" fill=\"{fill}\"/>",
                y - 11.0
            ));
            self.put(LEFT + length + 6.0, y, "start", &format!("{} {unit}", short(*value)));
        }
        self.height += 16.0;
    }

    fn end(self) -> String {
        let Self { text, height } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{WIDTH}\" height=\"{height:.0}\" fill=\"white\"/>\n{text}</svg>\n"
        )
    }
}

/// Who has this metric, with its median.
fn bars(
    table: &Table,
    section: &str,
    n: usize,
    threads: usize,
    metric: &str,
) -> Vec<(String, f64, bool)> {
    let bar = |who: &crate::contestants::Contestant| {
        let value = table.median(&point(section, who, n, threads, metric))?;
        let name = match (who.is_refrain(), who.mode) {
            (true, Mode::Memory) => "refrain, in memory",
            (true, Mode::Kill) if who.is_ready() => "refrain, room ready",
            (true, Mode::Kill) => "refrain, buffered",
            _ => who.name,
        };
        Some((name.to_owned(), value, who.is_refrain()))
    };
    CONTESTANTS.iter().filter_map(bar).collect()
}

fn speed(table: &Table) -> Option<Picture> {
    let n = sizes(table, "memory").into_iter().next_back()?;
    let keys = short(n as f64);
    let mut svg =
        Svg::new(&format!("Nanoseconds an operation, {keys} keys, 2 threads (shorter is faster)"));
    for (metric, title) in WORKLOADS {
        svg.bars(title, "ns", &bars(table, "memory", n, 2, metric));
    }
    Some(Picture { name: "speed", svg: svg.end() })
}

fn memory(table: &Table) -> Option<Picture> {
    let n = sizes(table, "footprint").into_iter().next()?;
    let mut svg = Svg::new(&format!("Bytes a completed entry, {} keys", short(n as f64)));
    for (metric, title) in [
        ("anonymous", "anonymous memory"),
        ("resident", "resident memory"),
        ("disk closed", "disk"),
    ] {
        let mut bars = bars(table, "footprint", n, 1, metric);
        bars.retain(|(_, value, _)| metric != "disk closed" || *value > 0.0);
        svg.bars(title, "B", &bars);
    }
    Some(Picture { name: "memory", svg: svg.end() })
}

fn latency(table: &Table) -> Option<Picture> {
    let n = sizes(table, LATENCY).into_iter().next()?;
    let mut svg = Svg::new(&latency_title(n));
    latency_lines(&mut svg, table, n);
    Some(Picture { name: "latency", svg: svg.end() })
}

/// What a reader sees first: the memory that an entry takes, and how long a claim does.
fn memory_and_latency(table: &Table) -> Option<Picture> {
    let entries = sizes(table, "footprint").into_iter().next()?;
    let n = sizes(table, LATENCY).into_iter().next()?;
    let keys = short(entries as f64);
    let mut svg = Svg::new("refrain beside its peers");
    let title = format!("anonymous memory a completed entry, {keys} keys");
    svg.bars(&title, "B", &bars(table, "footprint", entries, 1, "anonymous"));
    svg.height += 14.0;
    svg.put(LEFT, svg.height, "start", &latency_title(n));
    latency_lines(&mut svg, table, n);
    Some(Picture { name: "memory-and-latency", svg: svg.end() })
}

fn latency_title(n: usize) -> String {
    let keys = short(n as f64);
    format!("Microseconds from when a claim was due, growing to {keys} keys, 70 % load")
}

/// A line a contestant over the percentiles, below what is there.
fn latency_lines(svg: &mut Svg, table: &Table, n: usize) {
    const PERCENTILES: [&str; 6] = ["p50", "p90", "p99", "p99.9", "p99.99", "max"];
    const COLOURS: [&str; 2] = ["#c0562b", "#6b8e23"];
    const OWN_COLOURS: [&str; 2] = [OWN, "#7fb2e5"];
    let section = LATENCY;
    let (legend, top, bottom) = (svg.height + 6.0, svg.height + 32.0, svg.height + 332.0);
    // From 0.1 microseconds up, eight powers of ten.
    let y = |micros: f64| bottom - (micros.max(0.1).log10() + 1.0).min(8.0) / 8.0 * (bottom - top);
    let x = |nth: usize| LEFT + nth as f64 * 110.0;
    for power in -1..=7 {
        let (value, at) = (10f64.powi(power), y(10f64.powi(power)));
        svg.add(&format!("<path d=\"M{LEFT} {at:.1}h550\" stroke=\"#ddd\"/>"));
        svg.put(LEFT - 8.0, at + 4.0, "end", &format!("{value} us"));
    }
    for (nth, name) in PERCENTILES.iter().enumerate() {
        svg.put(x(nth), bottom + 18.0, "middle", name);
    }
    let of: Vec<_> =
        PERCENTILES.map(|it| bars(table, section, n, 1, &format!("claim {it}"))).into();
    let (mut own, mut peers) = (OWN_COLOURS.iter().cycle(), COLOURS.iter().cycle());
    for (who, (name, _, is_own)) in of[0].iter().enumerate() {
        let points =
            of.iter().enumerate().filter_map(|(nth, all)| Some((x(nth), y(all.get(who)?.1))));
        let points: Vec<_> = points.map(|(x, y)| format!("{x:.0},{y:.1}")).collect();
        let colour = if *is_own { own.next() } else { peers.next() }.unwrap_or(&PEER);
        svg.add(&format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.join(" ")
        ));
        svg.add(&format!(
            "<rect x=\"{}\" y=\"{legend}\" width=\"10\" height=\"10\" fill=\"{colour}\"/>",
            LEFT + 150.0 * who as f64
        ));
        svg.put(LEFT + 14.0 + 150.0 * who as f64, legend + 9.0, "start", name);
    }
    svg.height = bottom + 30.0;
}
