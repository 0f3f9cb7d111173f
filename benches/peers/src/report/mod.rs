//! The report: Markdown tables of medians, spreads and ratios, the aims, and where refrain loses.
//!
//! A ratio is taken within each repeat, where the contestants ran one after the other, and its
//! median over the repeats is told: the machine drifts, the ratio does not. Each table says how
//! many repeats it rests on, and each figure that has others says so itself.

mod latency;
mod losses;
pub mod place;
mod space;
mod speed;
mod targets;

pub use latency::{PERCENTILES, SECTIONS as LATENCY, is_behind};
pub use space::REOPEN;

use crate::results::{Spread, Table};
use losses::Losses;

/// The report, line by line.
pub struct Report<'a> {
    table: &'a Table,
    text: String,
    losses: Losses,
}

/// A number with three digits that count, or two.
pub fn short(value: f64) -> String {
    match value.abs() {
        it if it >= 1e6 => format!("{:.1} M", value / 1e6),
        it if it >= 1e4 => format!("{:.0} k", value / 1e3),
        it if it >= 100.0 => format!("{value:.0}"),
        it if it >= 10.0 => format!("{value:.1}"),
        it if it >= 0.1 || it == 0.0 => format!("{value:.2}"),
        it if it >= 0.001 => format!("{value:.4}"),
        _ => format!("{value:.1e}"),
    }
}

/// A number of things.
fn whole(value: f64) -> String {
    if value < 1e4 { format!("{value:.0}") } else { short(value) }
}

/// So many of something that takes an s.
pub fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A figure of so many repeats, with its spread if it has one; it says their number where that is
/// another than the table's.
fn figure(it: Spread, repeats: usize) -> String {
    let text = match it.count {
        1 => short(it.median),
        _ => format!("{} ({}-{})", short(it.median), short(it.min), short(it.max)),
    };
    format!("{text}{}", of_others(it, repeats))
}

/// A ratio alike, without its spread.
fn times(it: Spread, repeats: usize) -> String {
    format!("{}x{}", short(it.median), of_others(it, repeats))
}

fn of_others(it: Spread, repeats: usize) -> String {
    if it.count == repeats { String::new() } else { format!(" [n={}]", it.count) }
}

impl<'a> Report<'a> {
    pub fn of(table: &'a Table, pictures: &[String]) -> String {
        let mut report = Self { table, text: String::new(), losses: Losses::default() };
        report.begin(pictures);
        for (section, title) in [
            ("memory", "In memory, and refrain buffered"),
            ("durable", "Durable without a sync a call"),
        ] {
            report.speed(section, title);
            report.batches(section);
        }
        report.sync();
        report.hot();
        report.footprint();
        report.reopen();
        report.latency();
        report.failed();
        report.where_we_lose();
        report.text
    }

    fn begin(&mut self, pictures: &[String]) {
        self.line("# refrain beside its peers\n");
        for about in &self.table.about {
            self.line(&format!("* {about}"));
        }
        self.line(
            "\nPrinted by `scripts/bench-peers.sh`; how to read it: docs/BENCHMARKS.md. Medians \
             (least-most) over n repeats; n stands at the head of a table, and as [n=..] beside \
             what has others. x is what is measured over the best peer's of the table, taken \
             within each repeat: of a time, below 1 is faster. Contestants with room made \
             beforehand are set beside one another, and so are the others.\n",
        );
        for picture in pictures {
            self.line(&format!("![{picture}]({picture})\n"));
        }
        let aims = targets::table(self.table);
        self.line("## Aims\n");
        self.line(&aims);
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// The title of a table whose figures rest on so many repeats.
    fn title(&mut self, title: &str, repeats: usize) {
        self.line(&format!("\n## {title}; n={repeats}\n"));
    }

    fn head(&mut self, columns: &[impl AsRef<str>]) {
        let names: Vec<_> = columns.iter().map(AsRef::as_ref).collect();
        self.line(&format!("| {} |", names.join(" | ")));
        self.line(&format!("|{}", "---|".repeat(columns.len())));
    }

    fn entry(&mut self, fields: &[String]) {
        self.line(&format!("| {} |", fields.join(" | ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Table;

    fn report(lines: &[&str]) -> String {
        Report::of(&Table::parse(&lines.join("\n")).unwrap(), &[])
    }

    #[test]
    fn without_results_nothing_is_won() {
        let text = report(&["# a run"]);
        assert!(text.contains("Nothing was measured beside a peer."), "{text}");
        assert!(!text.contains("Nowhere"), "{text}");
    }

    #[test]
    fn a_figure_says_what_it_rests_on() {
        let one = Spread::of([2.0]).unwrap();
        assert_eq!((&*figure(one, 1), &*figure(one, 3)), ("2.00", "2.00 [n=1]"));
        let three = Spread::of([1.0, 2.0, 3.0]).unwrap();
        assert_eq!(figure(three, 3), "2.00 (1.00-3.00)");
    }

    #[test]
    fn every_section_lists_its_losses() {
        let text = report(&[
            "memory,refrain,kill,1000,1,0,w1,50",
            "memory,refrain,kill,1000,1,0,w3,50",
            "memory,refrain,kill,1000,1,0,b3,60",
            "memory,dashmap,memory,1000,1,0,w1,10",
            "memory,dashmap,memory,1000,1,0,w3,10",
            "sync,refrain,power,1,16,0,pairs,5",
            "sync,fjall,power,1,16,0,pairs,10",
            "footprint,refrain,kill,1000,1,0,resident,20",
            "footprint,dashmap,memory,1000,1,0,resident,10",
            "reopen closed,refrain,kill,1000,1,0,seconds,2",
            "reopen closed,refrain,kill,1000,1,0,acknowledged,1000",
            "reopen closed,refrain,kill,1000,1,0,kept,998",
            "reopen closed,refrain,kill,1000,1,0,claimed only,1",
            "reopen closed,fjall,kill,1000,1,0,seconds,1",
            "reopen closed,fjall,kill,1000,1,0,acknowledged,1000",
            "reopen closed,fjall,kill,1000,1,0,kept,1000",
            "latency common,refrain,kill,1000,1,0,rate due,100",
            "latency common,refrain,kill,1000,1,0,rate reached,90",
            "latency common,refrain,kill,1000,1,0,claim max,9",
            "latency common,refrain,kill,1000,1,0,claim p50,2",
            "latency common,dashmap,memory,1000,1,0,claim max,1",
            "latency common,dashmap,memory,1000,1,0,claim p50,1",
            "hot,refrain,kill,1,1,0,ops,10",
            "hot,refrain,kill,1,2,0,ops,10",
            "hot,hash,memory,1,1,0,ops,10",
            "hot,hash,memory,1,2,0,ops,20",
            "durable,sled,kill,1,2,0,failed,1",
        ]);
        let lost = text.split("## Where we lose").nth(1).unwrap();
        for part in [
            "claim of a fresh key, 1000 keys, 1 thread: **refrain, buffered** takes 5.00 x the \
             time of dashmap (survives nothing) (n=1)",
            "in batches of 32, 1000 keys, 1 thread: **refrain, buffered** has 0.83 x the \
             throughput of its own single calls",
            "takes 6.00 x the time of single calls of dashmap",
            "a sync a call, 16 threads: **refrain, sync** has 0.50 x the throughput of fjall",
            "resident memory",
            "**refrain, buffered** takes 2.00 x the time an entry of fjall",
            "1 of those acknowledged were absent, 1 claimed only and 0 with other bytes",
            "p50 of **refrain, buffered** is 2.00 x that of dashmap",
            "max of **refrain, buffered** is 9.00 x",
            "fell behind the rate",
            "0.50 x what a loop that hashes gains",
        ] {
            assert!(lost.contains(part), "{part}: {lost}");
        }
        assert!(text.contains("## Failed") && text.contains("| durable | sled | kill |"), "{text}");
    }
}
