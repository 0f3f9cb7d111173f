//! The report: Markdown tables of medians, spreads and ratios, the aims, and where refrain loses.
//!
//! A ratio is taken within each repeat, where the contestants ran one after the other, and its median
//! over the repeats is told: the machine drifts, the ratio does not.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::contestants::{CONTESTANTS, Contestant};
use crate::results::{Point, Spread, Table};
use crate::store::Mode;
use crate::targets;
use crate::workloads::{BATCH, BATCHED, WORKLOADS};

/// The report, line by line.
pub struct Report<'a> {
    table: &'a Table,
    text: String,
    losses: Vec<String>,
}

/// A point of a contestant.
pub fn point(section: &str, who: &Contestant, n: usize, threads: usize, metric: &str) -> Point {
    Point {
        section: section.to_owned(),
        store: who.name.to_owned(),
        mode: who.mode.name(),
        n,
        threads,
        metric: metric.to_owned(),
    }
}

/// A contestant by what it is called in tables.
pub fn label(who: &Contestant) -> String {
    match (who.is_refrain(), who.mode) {
        (true, Mode::Memory) => "**refrain, in memory**".to_owned(),
        (true, Mode::Kill) if who.is_ready() => "**refrain, buffered, room ready**".to_owned(),
        (true, Mode::Kill) => "**refrain, buffered**".to_owned(),
        (true, Mode::Power) => "**refrain, sync**".to_owned(),
        _ => who.name.to_owned(),
    }
}

/// The sizes that a section was measured at.
pub fn sizes(table: &Table, section: &str) -> BTreeSet<usize> {
    table.points().filter(|it| it.section == section).map(|it| it.n).collect()
}

/// A number with three digits that count.
pub fn short(value: f64) -> String {
    match value.abs() {
        it if it >= 1e6 => format!("{:.1} M", value / 1e6),
        it if it >= 1e4 => format!("{:.0} k", value / 1e3),
        it if it >= 100.0 => format!("{value:.0}"),
        it if it >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn spread(it: Spread) -> String {
    match it.count {
        1 => short(it.median),
        _ => format!("{} ({}-{})", short(it.median), short(it.min), short(it.max)),
    }
}

impl<'a> Report<'a> {
    pub fn of(table: &'a Table, pictures: &[String]) -> String {
        let mut report = Self { table, text: String::new(), losses: vec![] };
        report.line(&format!("# refrain beside its peers\n\n{}\n", table.about));
        report.line(
            "Printed by `scripts/bench-peers.sh`; how to read it: docs/BENCHMARKS.md. Medians (least-most) \
             over the repeats. x is the time beside the best peer of the table, taken within each repeat: \
             below 1 is faster.\n",
        );
        for picture in pictures {
            report.line(&format!("![{picture}]({picture})\n"));
        }
        report.line("## Aims\n");
        report.line(&targets::table(table));
        for (section, title) in [
            ("memory", "In memory, and refrain buffered: nanoseconds of wall clock an operation"),
            ("durable", "Durable without a sync a call: nanoseconds of wall clock an operation"),
        ] {
            report.speed(section, title);
            report.batches(section);
        }
        report.sync();
        report.plain(
            "footprint",
            "Bytes a completed entry",
            &[
                ("anonymous", "anonymous memory"),
                ("resident", "resident memory"),
                ("disk", "disk, open"),
                ("disk closed", "disk, closed"),
            ],
        );
        for (section, title) in [
            ("reopen killed", "Opened again after SIGKILL at work"),
            ("reopen closed", "Opened again after a clean close"),
        ] {
            report.plain(
                section,
                title,
                &[
                    ("seconds", "seconds to the first answer"),
                    ("acknowledged", "entries acknowledged"),
                    ("kept", "of them found"),
                ],
            );
        }
        report.latency();
        report.where_we_lose();
        report.text
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn head(&mut self, columns: &[String]) {
        self.line(&format!("| {} |", columns.join(" | ")));
        self.line(&format!("|{}", "---|".repeat(columns.len())));
    }

    /// Everybody who has this metric.
    fn with(
        &self,
        section: &str,
        n: usize,
        threads: usize,
        metric: &str,
    ) -> Vec<&'static Contestant> {
        let has = |who: &&Contestant| {
            self.table.median(&point(section, who, n, threads, metric)).is_some()
        };
        CONTESTANTS.iter().filter(has).collect()
    }

    fn speed(&mut self, section: &str, title: &str) {
        for n in sizes(self.table, section) {
            for threads in [1, 2] {
                let all = self.with(section, n, threads, "w1");
                if all.is_empty() {
                    continue;
                }
                self.line(&format!("\n## {title}; {} keys, {threads} threads\n", short(n as f64)));
                let names = WORKLOADS.iter().map(|(_, title)| (*title).to_owned());
                let columns = ["contestant".to_owned(), "survives".to_owned()];
                self.head(&columns.into_iter().chain(names).collect::<Vec<_>>());
                for who in all {
                    let fields = WORKLOADS.iter().map(|(metric, name)| {
                        let own = point(section, who, n, threads, metric);
                        let Some(value) = self.table.spread(&own) else { return "-".to_owned() };
                        let best = best(self.table, section, n, threads, metric, Least, |_| true);
                        let Some(best) = best else { return spread(value) };
                        let base = point(section, best, n, threads, metric);
                        let Some(ratio) = self.table.ratio(&own, &base) else {
                            return spread(value);
                        };
                        let is_loss = who.is_refrain() && ratio.median > 1.0;
                        let loss = is_loss.then(|| {
                            format!(
                                "{name}, {} keys, {threads} threads: {} takes {:.2} x the time of {}",
                                short(n as f64),
                                label(who),
                                ratio.median,
                                best.name
                            )
                        });
                        let text = format!("{} {:.2}x", spread(value), ratio.median);
                        format!("{text}{}", loss.map_or(String::new(), |loss| format!("\0{loss}")))
                    });
                    let fields: Vec<String> = fields.collect();
                    let mut shown = vec![label(who), who.survives.to_owned()];
                    for field in fields {
                        let (text, loss) = field.split_once('\0').unwrap_or((&field, ""));
                        shown.push(text.to_owned());
                        if !loss.is_empty() {
                            self.losses.push(loss.to_owned());
                        }
                    }
                    self.line(&format!("| {} |", shown.join(" | ")));
                }
            }
        }
    }

    /// The batched workloads beside the single calls of the same process.
    fn batches(&mut self, section: &str) {
        for n in sizes(self.table, section) {
            for threads in [1, 2] {
                let all = self.with(section, n, threads, "b3");
                if all.is_empty() {
                    continue;
                }
                let keys = short(n as f64);
                self.line(&format!(
                    "\n## Batches of {BATCH}: nanoseconds an operation, and how many times the throughput of our \
                     own single calls; {keys} keys, {threads} threads\n"
                ));
                let title = |metric: &str| {
                    let found = WORKLOADS.iter().find(|(it, _)| *it == metric);
                    found.map_or(String::new(), |(_, title)| (*title).to_owned())
                };
                let names = BATCHED.iter().map(|(_, single)| title(single));
                self.head(&["contestant".to_owned()].into_iter().chain(names).collect::<Vec<_>>());
                for who in all {
                    let fields = BATCHED.iter().map(|(batched, single)| {
                        let of = |metric| point(section, who, n, threads, metric);
                        let value = self.table.spread(&of(batched));
                        let gain = self.table.ratio(&of(single), &of(batched));
                        value.zip(gain).map_or("-".to_owned(), |(value, gain)| {
                            format!("{} {:.2}x", spread(value), gain.median)
                        })
                    });
                    let fields: Vec<String> = fields.collect();
                    self.line(&format!("| {} | {} |", label(who), fields.join(" | ")));
                }
            }
        }
    }

    fn sync(&mut self) {
        let threads = [1, 2, 16, 64];
        if self.with("sync", 1, 1, "pairs").is_empty() {
            return;
        }
        self.line("\n## A sync a call: claim+complete a second (two durable calls each)\n");
        let names = threads.map(|it| format!("{it} threads"));
        let columns = ["contestant".to_owned(), "survives".to_owned()];
        self.head(&columns.into_iter().chain(names).collect::<Vec<_>>());
        for who in CONTESTANTS.iter().filter(|it| it.mode == Mode::Power) {
            let mut fields = vec![label(who), who.survives.to_owned()];
            for threads in threads {
                let own = point("sync", who, 1, threads, "pairs");
                fields.push(self.table.spread(&own).map_or("-".to_owned(), spread));
                let best = best(self.table, "sync", 1, threads, "pairs", Most, |_| true);
                let Some(best) = best.filter(|_| who.is_refrain()) else { continue };
                let base = point("sync", best, 1, threads, "pairs");
                match self.table.ratio(&own, &base) {
                    Some(ratio) if ratio.median < 1.0 => self.losses.push(format!(
                        "a sync a call, {threads} threads: {:.2} x the throughput of {}",
                        ratio.median, best.name
                    )),
                    _ => {}
                }
            }
            if fields[2..].iter().any(|it| it != "-") {
                self.line(&format!("| {} |", fields.join(" | ")));
            }
        }
        for (store, threads, text) in [
            (
                "in flight",
                2,
                "refrain, 64 commits in flight from 2 threads, claim+complete a second",
            ),
            ("fdatasync", 1, "one positioned write of 4 KiB and one fdatasync, a second"),
        ] {
            let own = targets::named("sync", store, Mode::Power, threads, "pairs");
            if let Some(value) = self.table.spread(&own) {
                self.line(&format!("\n{text}: {}", spread(value)));
            }
        }
    }

    fn plain(&mut self, section: &str, title: &str, metrics: &[(&str, &str)]) {
        let points: BTreeSet<_> = self
            .table
            .points()
            .filter(|it| it.section == section)
            .map(|it| (it.n, it.mode, it.store.clone(), it.threads))
            .collect();
        if points.is_empty() {
            return;
        }
        self.line(&format!("\n## {title}\n"));
        let names = metrics.iter().map(|(_, title)| (*title).to_owned());
        let columns = ["contestant".to_owned(), "survives".to_owned(), "keys".to_owned()];
        self.head(&columns.into_iter().chain(names).collect::<Vec<_>>());
        for (n, mode, store, threads) in points {
            let found = CONTESTANTS.iter().find(|it| it.name == store && it.mode.name() == mode);
            let Some(who) = found else { continue };
            let mut fields = vec![label(who), who.survives.to_owned(), short(n as f64)];
            for (metric, _) in metrics {
                let value = self.table.spread(&point(section, who, n, threads, metric));
                fields.push(value.map_or("-".to_owned(), spread));
            }
            self.line(&format!("| {} |", fields.join(" | ")));
        }
    }

    fn latency(&mut self) {
        const PERCENTILES: [&str; 6] = ["p50", "p90", "p99", "p99.9", "p99.99", "max"];
        for (section, title) in [
            ("latency 70 %", "at 70 % of what refrain does one after the other"),
            ("latency common", "at the rate that is common to all runs"),
        ] {
            for n in sizes(self.table, section) {
                self.line(&format!(
                    "\n## Latency of a claim from when it was due, {title}; microseconds, from empty to {} \
                     keys, each completed too\n",
                    short(n as f64)
                ));
                let names = PERCENTILES.map(str::to_owned);
                let columns = ["contestant".to_owned(), "pairs a second".to_owned()];
                let last = ["the longest, and what was seen of it".to_owned()];
                self.head(&columns.into_iter().chain(names).chain(last).collect::<Vec<_>>());
                for who in self.with(section, n, 1, "claim max") {
                    let of = |metric: &str| {
                        self.table.median(&point(section, who, n, 1, metric)).unwrap_or(0.0)
                    };
                    let mut fields = vec![label(who), short(of("rate reached"))];
                    fields.extend(PERCENTILES.map(|it| short(of(&format!("claim {it}")))));
                    fields.push(cause(&of));
                    let line = format!("| {} |", fields.join(" | "));
                    self.line(&line);
                    if who.is_refrain() {
                        self.note_latency_losses(section, n, who);
                    }
                }
            }
        }
    }

    fn note_latency_losses(&mut self, section: &str, n: usize, who: &Contestant) {
        for metric in ["claim p99.99", "claim max"] {
            let own = point(section, who, n, 1, metric);
            let best = best(self.table, section, n, 1, metric, Least, |_| true);
            let Some(best) = best else { continue };
            match self.table.ratio(&own, &point(section, best, n, 1, metric)) {
                Some(ratio) if ratio.median > 1.0 => self.losses.push(format!(
                    "{section}: {metric} of {} is {:.2} x that of {}",
                    label(who),
                    ratio.median,
                    best.name
                )),
                _ => {}
            }
        }
    }

    fn where_we_lose(&mut self) {
        self.line("\n## Where we lose\n");
        let losses = std::mem::take(&mut self.losses);
        for loss in &losses {
            self.line(&format!("* {loss}"));
        }
        if losses.is_empty() {
            self.line("Nowhere, of what was measured.");
        }
    }
}

/// What the counters say of the longest stall.
fn cause(of: &impl Fn(&str) -> f64) -> String {
    let mut text = String::new();
    let stall = of("worst stall");
    let mut put = |part: String| write!(text, "{part}").unwrap_or_default();
    put(format!("a stall of {} us at {:.1} s", short(stall), of("worst at")));
    if of("worst off the processor") > stall / 2.0 {
        put(", mostly off the processor while runnable".to_owned());
    }
    for (metric, what) in [
        ("worst faults", "page faults"),
        ("worst major faults", "major faults"),
        ("worst blocked", "waits for a lock or the disk"),
        ("worst room_waits", "waits for room"),
    ] {
        if of(metric) > 0.0 {
            put(format!(", {} {what}", of(metric)));
        }
    }
    put(format!("; {} stalls in all", of("stalls")));
    if of("recycled") > 0.0 {
        put(format!(
            "; {} purged, {} segments used again, a lock held for {} us at most",
            short(of("purged")),
            of("recycled"),
            of("purge_hold_us")
        ));
    }
    text
}

/// Which end is the better one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Better {
    Least,
    Most,
}
pub use Better::{Least, Most};

/// The best of refrain's peers at something, by its median.
pub fn best(
    table: &Table,
    section: &str,
    n: usize,
    threads: usize,
    metric: &str,
    better: Better,
    is_in: impl Fn(&Contestant) -> bool,
) -> Option<&'static Contestant> {
    let peers = CONTESTANTS.iter().filter(|it| !it.is_refrain() && is_in(it));
    let with =
        peers.filter_map(|it| Some((table.median(&point(section, it, n, threads, metric))?, it)));
    let by = |a: &(f64, _), b: &(f64, _)| a.0.total_cmp(&b.0);
    let found = if better == Least { with.min_by(by) } else { with.max_by(by) };
    found.map(|(_, who)| who)
}
