//! Results as they are measured: one line of CSV each, and what is computed from their repeats.
//!
//! Lines that begin with `# ` say what holds for the run. A line of the metric [`FAILED`] stands
//! for a child that measured nothing; its repeat may be measured again, and what comes later
//! counts. A repeat in which nothing failed is never measured again: see [`Results::refuse`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use crate::store::{Mode, Result};

/// What was measured, of whom, under which circumstances.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Point {
    pub section: String,
    pub store: String,
    pub mode: &'static str,
    pub n: usize,
    pub threads: usize,
    pub metric: String,
}

impl Point {
    /// Whether both were measured by the same child, but for the repeat.
    fn is_beside(&self, other: &Self) -> bool {
        let child = |it: &Self| (it.section.clone(), it.store.clone(), it.mode, it.n, it.threads);
        child(self) == child(other)
    }
}

/// One measured value.
#[derive(Clone, Debug)]
pub struct Measured {
    pub point: Point,
    pub repeat: usize,
    pub value: f64,
}

/// The metric of a child that failed.
pub const FAILED: &str = "failed";

const COLUMNS: &str = "section,store,mode,n,threads,repeat,metric,value";

/// A file of results that grows as they come.
pub struct Results {
    file: File,
    /// What is in the file.
    table: Table,
}

impl Results {
    /// Goes on with the file, or begins it.
    pub fn append(path: &Path) -> Result<Self> {
        let table = if path.exists() { Table::read(path)? } else { Table::default() };
        Ok(Self { file: OpenOptions::new().append(true).create(true).open(path)?, table })
    }

    /// Says of the run what the file does not say yet.
    pub fn begin(&mut self, about: &[String]) -> Result<()> {
        let is_new = self.table.about.is_empty() && self.table.values.is_empty();
        for line in about.iter().filter(|line| !self.table.about.contains(line)) {
            writeln!(self.file, "# {line}")?;
        }
        if is_new {
            writeln!(self.file, "{COLUMNS}")?;
        }
        Ok(())
    }

    pub fn push(&mut self, measured: &Measured) -> Result<()> {
        let Point { section, store, mode, n, threads, metric } = &measured.point;
        let Measured { repeat, value, .. } = measured;
        writeln!(
            self.file,
            "{section},{store},{mode},{n},{threads},{repeat},{metric},{value:.6e}"
        )?;
        self.table.put(measured.clone());
        Ok(())
    }

    /// Refuses repeats that are there, of the sections and sizes that are named: a second
    /// measurement would take the place of the first. One in which a child failed may be measured
    /// again, all of it, since a ratio is taken within a repeat.
    pub fn refuse(
        &self,
        section: &str,
        repeats: Range<usize>,
        is_in: impl Fn(&Point) -> bool,
    ) -> Result<()> {
        let (mut there, mut failed) = (BTreeSet::new(), BTreeSet::new());
        for (point, values) in self.table.values.iter().filter(|(point, _)| is_in(point)) {
            let known = if point.metric == FAILED { &mut failed } else { &mut there };
            known.extend(values.0.keys().copied());
        }
        if !repeats.into_iter().any(|it| there.contains(&it) && !failed.contains(&it)) {
            return Ok(());
        }
        let list = |all: &BTreeSet<usize>| {
            let words: Vec<_> = all.iter().map(ToString::to_string).collect();
            if words.is_empty() { "none".to_owned() } else { words.join(", ") }
        };
        let next = there.last().map_or(0, |last| last + 1);
        Err(format!(
            "{section}: repeats {} are there, and are not measured again; \
             --first-repeat {next} goes on behind them; where a child failed, which may be \
             measured again (--first-repeat, --repeats): {}",
            list(&there),
            list(&failed)
        )
        .into())
    }
}

/// The values of a point, or what was computed from such, by repeat.
#[derive(Clone, Default, Debug, PartialEq)]
pub struct Series(BTreeMap<usize, f64>);

impl Series {
    fn with(&self, other: &Self, by: impl Fn(f64, f64) -> f64) -> Self {
        let both =
            |(repeat, value): (&usize, &f64)| Some((*repeat, by(*value, *other.at(*repeat)?)));
        Self(self.0.iter().filter_map(both).collect())
    }

    /// One over another, repeat by repeat: what the machine did to both falls out.
    pub fn over(&self, base: &Self) -> Self {
        self.with(base, |value, base| value / base)
    }

    /// One less another, repeat by repeat; where there is no other, nothing is taken.
    pub fn less(&self, other: Option<&Self>) -> Self {
        let of = |repeat| other.and_then(|other| other.at(repeat)).copied().unwrap_or(0.0);
        Self(self.0.iter().map(|(repeat, value)| (*repeat, value - of(*repeat))).collect())
    }

    pub fn times(&self, by: f64) -> Self {
        Self(self.0.iter().map(|(repeat, value)| (*repeat, value * by)).collect())
    }

    pub fn at(&self, repeat: usize) -> Option<&f64> {
        self.0.get(&repeat)
    }

    /// The repeat with the largest value.
    pub fn worst(&self) -> Option<usize> {
        let found = self.0.iter().max_by(|a, b| a.1.total_cmp(b.1));
        found.map(|(repeat, _)| *repeat)
    }

    pub fn repeats(&self) -> impl Iterator<Item = usize> {
        self.0.keys().copied()
    }

    pub fn spread(&self) -> Option<Spread> {
        Spread::of(self.0.values().copied())
    }
}

/// Median, least and most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub count: usize,
}

impl Spread {
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max, count) = (*values.first()?, *values.last()?, values.len());
        let median = (values[(count - 1) / 2] + values[count / 2]) / 2.0;
        Some(Self { median, min, max, count })
    }
}

/// The values of each point.
#[derive(Default)]
pub struct Table {
    /// What is said of the run, line by line.
    pub about: Vec<String>,
    values: BTreeMap<Point, Series>,
}

impl Table {
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&std::fs::read_to_string(path)?)
    }

    pub fn parse(text: &str) -> Result<Self> {
        let mut table = Self::default();
        for line in text.lines() {
            if let Some(about) = line.strip_prefix("# ") {
                table.about.push(about.to_owned());
            } else if line != COLUMNS {
                table.insert(line)?;
            }
        }
        Ok(table)
    }

    fn insert(&mut self, line: &str) -> Result<()> {
        let fields: Vec<&str> = line.split(',').collect();
        let [section, store, mode, n, threads, repeat, metric, value] = fields[..] else {
            return Err(format!("a line of results has other columns: {line}").into());
        };
        let point = Point {
            section: section.to_owned(),
            store: store.to_owned(),
            mode: Mode::parse(mode).ok_or("no such mode")?.name(),
            n: n.parse()?,
            threads: threads.parse()?,
            metric: metric.to_owned(),
        };
        self.put(Measured { point, repeat: repeat.parse()?, value: value.parse()? });
        Ok(())
    }

    /// A child that failed has measured nothing; one that has measured did not fail.
    fn put(&mut self, measured: Measured) {
        let Measured { point, repeat, value } = measured;
        if point.metric == FAILED {
            for (other, values) in &mut self.values {
                if other.is_beside(&point) {
                    values.0.remove(&repeat);
                }
            }
            self.values.retain(|_, values| !values.0.is_empty());
        } else {
            let failed = Point { metric: FAILED.to_owned(), ..point.clone() };
            if let Some(values) = self.values.get_mut(&failed) {
                values.0.remove(&repeat);
                self.values.retain(|_, values| !values.0.is_empty());
            }
        }
        self.values.entry(point).or_default().0.insert(repeat, value);
    }

    pub fn series(&self, point: &Point) -> Option<&Series> {
        self.values.get(point)
    }

    pub fn spread(&self, point: &Point) -> Option<Spread> {
        self.series(point)?.spread()
    }

    /// One point over another, within each repeat.
    pub fn ratio(&self, point: &Point, base: &Point) -> Option<Spread> {
        self.series(point)?.over(self.series(base)?).spread()
    }

    /// What was measured. A child that failed measured nothing.
    pub fn points(&self) -> impl Iterator<Item = &Point> {
        self.values.keys().filter(|point| point.metric != FAILED)
    }

    /// Children that failed, and in which repeats.
    pub fn failed(&self) -> impl Iterator<Item = (&Point, &Series)> {
        self.values.iter().filter(|(point, _)| point.metric == FAILED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(lines: &[&str]) -> Table {
        Table::parse(&lines.join("\n")).unwrap()
    }

    fn point(store: &str) -> Point {
        Point {
            section: "s".to_owned(),
            store: store.to_owned(),
            mode: "kill",
            n: 1,
            threads: 1,
            metric: "w1".to_owned(),
        }
    }

    #[test]
    fn ratios_are_taken_within_a_repeat() {
        // The machine is three times as slow in the second repeat.
        let a = ["s,a,kill,1,1,0,w1,10", "s,a,kill,1,1,1,w1,30"];
        let b = ["s,b,kill,1,1,0,w1,20", "s,b,kill,1,1,1,w1,60"];
        let ratio = table(&[a, b].concat()).ratio(&point("b"), &point("a"));
        assert_eq!(ratio, Some(Spread { median: 2.0, min: 2.0, max: 2.0, count: 2 }));
    }

    #[test]
    fn the_median_of_an_even_count_lies_between() {
        let spread = Spread::of([4.0, 1.0, 2.0, 9.0]);
        assert_eq!(spread, Some(Spread { median: 3.0, min: 1.0, max: 9.0, count: 4 }));
    }

    #[test]
    fn what_comes_later_counts() {
        let lines = ["s,a,kill,1,1,0,failed,1", "s,a,kill,1,1,0,w1,10"];
        let mended = table(&lines);
        assert_eq!(mended.failed().count(), 0);
        assert_eq!(mended.spread(&point("a")), Spread::of([10.0]));
        let broken = table(&[lines[1], lines[0]]);
        assert_eq!(broken.failed().count(), 1);
        assert_eq!((broken.spread(&point("a")), broken.points().count()), (None, 0));
    }

    #[test]
    fn what_is_said_of_a_run_takes_several_lines() {
        let said = table(&["# one", "# two", COLUMNS, "s,a,kill,1,1,0,w1,10", "# three"]);
        assert_eq!(said.about, ["one", "two", "three"]);
    }

    #[test]
    fn a_repeat_is_not_measured_twice_unless_a_child_failed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("results.csv");
        let about = ["a run".to_owned()];
        let mut results = Results::append(&path).unwrap();
        results.begin(&about).unwrap();
        let put = |results: &mut Results, store: &str, repeat, metric: &str| {
            let point = Point { metric: metric.to_owned(), ..point(store) };
            results.push(&Measured { point, repeat, value: 1.0 }).unwrap();
        };
        put(&mut results, "a", 0, "w1");
        put(&mut results, "a", 1, "w1");
        put(&mut results, "b", 1, FAILED);
        let mut results = Results::append(&path).unwrap();
        results.begin(&about).unwrap();
        let text = results.refuse("s", 0..1, |_| true).unwrap_err().to_string();
        assert!(text.contains("repeats 0, 1 are there"), "{text}");
        assert!(text.contains("--first-repeat 2"), "{text}");
        results.refuse("s", 1..2, |_| true).unwrap();
        results.refuse("s", 2..9, |_| true).unwrap();
        results.refuse("s", 0..9, |point| point.section == "other").unwrap();
        assert_eq!(Table::read(&path).unwrap().about, about);
    }
}
