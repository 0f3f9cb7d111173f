//! A place in the results: a section, a number of keys and of threads; who stands there, what they
//! are called, and who of refrain's peers is the best.

use std::collections::BTreeSet;

use crate::contestants::{CONTESTANTS, Contestant};
use crate::results::{Point, Series, Spread, Table};
use crate::store::Mode;

/// Which end is the better one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Better {
    Least,
    Most,
}
pub use Better::{Least, Most};

impl Better {
    /// Whether the other is the better one, of a ratio over it.
    pub fn is_lost(self, ratio: f64) -> bool {
        match self {
            Least => ratio > 1.0,
            Most => ratio < 1.0,
        }
    }
}

#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub table: &'a Table,
    pub section: &'a str,
    pub n: usize,
    pub threads: usize,
}

/// A contestant by what it is called in tables.
pub fn label(who: &Contestant) -> String {
    match who.is_refrain() {
        true => format!("**{}**", name(who)),
        false => name(who),
    }
}

/// The same without emphasis. A peer's name tells no mode: what it survives stands beside it.
pub fn name(who: &Contestant) -> String {
    match (who.is_refrain(), who.mode) {
        (true, Mode::Memory) => "refrain, in memory".to_owned(),
        (true, Mode::Kill) if who.is_ready() => "refrain, buffered, room ready".to_owned(),
        (true, Mode::Kill) => "refrain, buffered".to_owned(),
        (true, Mode::Power) => "refrain, sync".to_owned(),
        _ => match who.name.strip_suffix(" ready") {
            Some(plain) => format!("{plain}, room made"),
            None => who.name.to_owned(),
        },
    }
}

/// A peer with what it survives, where there is no column for that.
pub fn guarded(who: &Contestant) -> String {
    format!("{} (survives {})", name(who), who.survives)
}

/// refrain, as it is opened without more words.
pub fn refrain(mode: Mode) -> Option<&'static Contestant> {
    CONTESTANTS.iter().find(|it| it.is_refrain() && !it.is_ready() && it.mode == mode)
}

/// refrain's buffered store with its room ready.
pub fn ready() -> Option<&'static Contestant> {
    CONTESTANTS.iter().find(|it| it.is_refrain() && it.is_ready())
}

impl<'a> Place<'a> {
    /// All of a section, by size and then by threads.
    pub fn all(table: &'a Table, section: &'a str) -> Vec<Self> {
        let points = table.points().filter(|it| it.section == section);
        let found: BTreeSet<_> = points.map(|it| (it.n, it.threads)).collect();
        found.into_iter().map(|(n, threads)| Self { table, section, n, threads }).collect()
    }

    /// The same section with other threads.
    pub fn by(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    pub fn point(self, who: &Contestant, metric: &str) -> Point {
        self.named(who.name, who.mode, metric)
    }

    /// Of something that may be no contestant: the device, or commits in flight.
    pub fn named(self, store: &str, mode: Mode, metric: &str) -> Point {
        Point {
            section: self.section.to_owned(),
            store: store.to_owned(),
            mode: mode.name(),
            n: self.n,
            threads: self.threads,
            metric: metric.to_owned(),
        }
    }

    pub fn series(self, who: &Contestant, metric: &str) -> Option<&'a Series> {
        self.table.series(&self.point(who, metric))
    }

    pub fn spread(self, who: &Contestant, metric: &str) -> Option<Spread> {
        self.series(who, metric)?.spread()
    }

    pub fn median(self, who: &Contestant, metric: &str) -> Option<f64> {
        Some(self.spread(who, metric)?.median)
    }

    /// A metric of one over that of another, within each repeat.
    pub fn ratio(
        self,
        (own, metric): (&Contestant, &str),
        (base, of_base): (&Contestant, &str),
    ) -> Option<Spread> {
        self.table.ratio(&self.point(own, metric), &self.point(base, of_base))
    }

    /// Everybody who has this metric.
    pub fn present(self, metric: &str) -> Vec<&'static Contestant> {
        CONTESTANTS.iter().filter(|who| self.series(who, metric).is_some()).collect()
    }

    /// The most repeats that anything here has.
    pub fn repeats(self) -> usize {
        let is_in =
            |it: &&Point| (&*it.section, it.n, it.threads) == (self.section, self.n, self.threads);
        let counts = self.table.points().filter(is_in).filter_map(|it| self.table.spread(it));
        counts.map(|it| it.count).max().unwrap_or(0)
    }

    /// The best of refrain's peers at something, by its median.
    pub fn best(
        self,
        metric: &str,
        better: Better,
        is_in: impl Fn(&Contestant) -> bool,
    ) -> Option<&'static Contestant> {
        best(|who| self.median(who, metric), better, is_in)
    }

    /// The best peer to set beside this one: those with room made beforehand stand beside one
    /// another, and so do the others. Where there is no peer of its kind, any will do.
    pub fn best_beside(
        self,
        who: &Contestant,
        metric: &str,
        better: Better,
        is_in: impl Fn(&Contestant) -> bool,
    ) -> Option<&'static Contestant> {
        let alike = |it: &Contestant| is_in(it) && it.is_ready() == who.is_ready();
        self.best(metric, better, alike).or_else(|| self.best(metric, better, &is_in))
    }
}

/// The best of refrain's peers by a value.
pub fn best(
    value: impl Fn(&Contestant) -> Option<f64>,
    better: Better,
    is_in: impl Fn(&Contestant) -> bool,
) -> Option<&'static Contestant> {
    let peers = CONTESTANTS.iter().filter(|it| !it.is_refrain() && is_in(it));
    let with = peers.filter_map(|it| Some((value(it)?, it)));
    let by = |a: &(f64, _), b: &(f64, _)| a.0.total_cmp(&b.0);
    let found = if better == Least { with.min_by(by) } else { with.max_by(by) };
    found.map(|(_, who)| who)
}
