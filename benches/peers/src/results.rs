//! Results as they are measured: one line of CSV each, and what is computed from their repeats.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
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

/// One measured value.
#[derive(Clone, Debug)]
pub struct Measured {
    pub point: Point,
    pub repeat: usize,
    pub value: f64,
}

const COLUMNS: &str = "section,store,mode,n,threads,repeat,metric,value";

/// A file of results that grows as they come.
pub struct Results(File);

impl Results {
    /// Goes on with the file, or begins it with what is said about the run.
    pub fn append(path: &Path, about: &str) -> Result<Self> {
        let is_new = !path.exists();
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        if is_new {
            writeln!(file, "# {about}\n{COLUMNS}")?;
        }
        Ok(Self(file))
    }

    pub fn push(&mut self, measured: &Measured) -> Result<()> {
        let Point { section, store, mode, n, threads, metric } = &measured.point;
        let Measured { repeat, value, .. } = measured;
        writeln!(self.0, "{section},{store},{mode},{n},{threads},{repeat},{metric},{value:.6e}")?;
        Ok(())
    }
}

/// The values of each point, by repeat.
pub struct Table {
    pub about: String,
    values: BTreeMap<Point, BTreeMap<usize, f64>>,
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

impl Table {
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)?;
        let mut table = Self { about: String::new(), values: BTreeMap::new() };
        for line in text.lines() {
            if let Some(about) = line.strip_prefix("# ") {
                about.clone_into(&mut table.about);
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
        self.values.entry(point).or_default().insert(repeat.parse()?, value.parse()?);
        Ok(())
    }

    pub fn spread(&self, point: &Point) -> Option<Spread> {
        Spread::of(self.values.get(point)?.values().copied())
    }

    pub fn median(&self, point: &Point) -> Option<f64> {
        Some(self.spread(point)?.median)
    }

    /// One point over another, repeat by repeat: what the machine did to both falls out.
    pub fn ratio(&self, point: &Point, base: &Point) -> Option<Spread> {
        let (values, bases) = (self.values.get(point)?, self.values.get(base)?);
        Spread::of(values.iter().filter_map(|(repeat, value)| Some(value / bases.get(repeat)?)))
    }

    pub fn points(&self) -> impl Iterator<Item = &Point> {
        self.values.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_repeat() {
        let mut table = Table { about: String::new(), values: BTreeMap::new() };
        // The machine is three times as slow in the second repeat.
        for line in ["s,a,kill,1,1,0,w1,10", "s,a,kill,1,1,1,w1,30"] {
            table.insert(line).unwrap();
        }
        table.insert("s,b,kill,1,1,0,w1,20").unwrap();
        table.insert("s,b,kill,1,1,1,w1,60").unwrap();
        let point = |store: &str| Point {
            section: "s".to_owned(),
            store: store.to_owned(),
            mode: "kill",
            n: 1,
            threads: 1,
            metric: "w1".to_owned(),
        };
        let ratio = table.ratio(&point("b"), &point("a"));
        assert_eq!(ratio, Some(Spread { median: 2.0, min: 2.0, max: 2.0, count: 2 }));
    }

    #[test]
    fn the_median_of_an_even_count_lies_between() {
        let spread = Spread::of([4.0, 1.0, 2.0, 9.0]);
        assert_eq!(spread, Some(Spread { median: 3.0, min: 1.0, max: 9.0, count: 4 }));
    }
}
