//! The aims of the project, each beside what was measured: met or missed.
//!
//! What cannot be computed from the results at hand is left out.

use std::fmt::Write;

use super::place::{Least, Most, Place, guarded, ready, refrain};
use super::space::{REOPEN, fastest, seconds_per_entry, time_beside};
use super::speed::gain_beside_hashing;
use super::{counted, is_behind, short};
use crate::contestants::{CONTESTANTS, Contestant};
use crate::results::{Spread, Table};
use crate::store::Mode;

/// Which side of the bound is the good one.
#[derive(Clone, Copy, PartialEq)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// There is only an aim.
    Unbound,
}
use Bound::{AtLeast, AtMost, Unbound};

impl Bound {
    fn is_met(self, value: f64) -> bool {
        match self {
            AtMost(bound) => value <= bound,
            AtLeast(bound) => value >= bound,
            Unbound => true,
        }
    }

    fn text(self) -> String {
        match self {
            AtMost(bound) => format!("<= {bound}"),
            AtLeast(bound) => format!(">= {bound}"),
            Unbound => "-".to_owned(),
        }
    }
}

/// The maps that the aims are set against, with room made beforehand or without.
fn is_map(who: &Contestant) -> bool {
    let plain = who.name.strip_suffix(" ready").unwrap_or(who.name);
    ["dashmap", "papaya", "scc", "sharded map"].contains(&plain)
}

fn millions(n: usize) -> String {
    format!("{} M keys", n as f64 / 1e6)
}

struct Targets<'a> {
    table: &'a Table,
    text: String,
}

/// The table of them.
pub fn table(table: &Table) -> String {
    let mut targets = Targets { table, text: String::new() };
    let head = "| work | against | measured (least-most) | n | must | aim | |\n\
                |---|---|---|---|---|---|---|\n";
    targets.text.push_str(head);
    targets.maps();
    targets.durable();
    targets.sync();
    targets.footprint();
    targets.reopen();
    targets.latency();
    targets.hot();
    targets.text
}

/// A measured figure: finer than elsewhere, since a bound stands beside it.
fn fine(value: f64) -> String {
    if value < 1e3 { format!("{value:.3}") } else { short(value) }
}

impl Targets<'_> {
    fn put(&mut self, work: &str, against: &str, value: Option<Spread>, must: Bound, aim: Bound) {
        let Some(value) = value else { return };
        let verdict = match value.median {
            it if aim.is_met(it) => "met, and the aim",
            _ if must == Unbound => "aim missed",
            it if must.is_met(it) => "met",
            _ => "**missed**",
        };
        self.line(work, against, value, must, aim, verdict);
    }

    fn line(
        &mut self,
        work: &str,
        against: &str,
        value: Spread,
        must: Bound,
        aim: Bound,
        verdict: &str,
    ) {
        let Spread { median, min, max, count } = value;
        let measured = match count {
            1 => fine(median),
            _ => format!("{} ({}-{})", fine(median), fine(min), fine(max)),
        };
        let (must, aim) = (must.text(), aim.text());
        let line =
            format!("| {work} | {against} | {measured} | {count} | {must} | {aim} | {verdict} |");
        // Writing to a string does not fail.
        writeln!(self.text, "{line}").unwrap_or_default();
    }

    /// refrain's buffered store over the fastest map, by time: its claims from an empty directory
    /// and with room that is ready, which is all the same to reads. Maps with room made beforehand
    /// stand beside the latter, the others beside the former.
    fn maps(&mut self) {
        let Some((own, ready)) = refrain(Mode::Kill).zip(ready()) else { return };
        for place in Place::all(self.table, "memory") {
            let is_small_2t = place.n <= 1_000_000 && place.threads == 2;
            let claim = if is_small_2t { 1.25 } else { 1.0 };
            let read = if place.threads == 1 { 0.9 } else { 0.8 };
            let (fresh, pair) = ("fresh claim, buffered", "claim + complete, buffered");
            for (own, metric, single, work, must, aim) in [
                (own, "w1", "w1", &*format!("{fresh}, from an empty directory"), claim, 0.8),
                (ready, "w1", "w1", &*format!("{fresh}, room ready"), claim, 0.8),
                (own, "pair", "pair", &*format!("{pair}, from an empty directory"), 1.1, 0.8),
                (ready, "pair", "pair", &*format!("{pair}, room ready"), 1.1, 0.8),
                (own, "w3", "w3", "duplicate claim", read, 0.6),
                (own, "w4", "w4", "lookup of a missing key, single", 1.5, 1.0),
                (own, "b4", "w4", "lookup of a missing key, batches of 32", 1.0, 1.0),
                (own, "w5", "w5", "zipf 0.99 stream", 1.0, 0.7),
            ] {
                let Some(map) = place.best_beside(own, single, Least, is_map) else { continue };
                let ratio = place.ratio((own, metric), (map, single));
                let against = format!("{}, time", guarded(map));
                self.put(&at(work, place), &against, ratio, AtMost(must), AtMost(aim));
            }
            for (own, how) in [(own, ""), (ready, ", room ready")] {
                // Both from the same child, one directly after the other.
                let gain = place.ratio((own, "w3"), (own, "b3"));
                let work = at(&format!("duplicate claim, batches of 32{how}"), place);
                let against = "our own single calls, throughput";
                self.put(&work, against, gain, AtLeast(1.7), AtLeast(2.5));
            }
        }
    }

    /// The fastest durable peer over refrain, by time: so many times the throughput.
    fn durable(&mut self) {
        let Some(own) = refrain(Mode::Kill) else { return };
        for place in Place::all(self.table, "durable") {
            for (metric, work, must, aim) in [
                ("pair", "claim + complete, buffered", 15.0, 30.0),
                ("w3", "duplicate claim", 8.0, 12.0),
            ] {
                // Those that lose acknowledged entries in a kill are no measure of the first.
                let keeps = |it: &Contestant| metric == "w3" || it.survives == "kill";
                let Some(peer) = place.best(metric, Least, keeps) else { continue };
                let ratio = place.ratio((peer, metric), (own, metric));
                let work = at(&format!("{work}, beside durable stores"), place);
                let against = format!("{}, throughput", guarded(peer));
                self.put(&work, &against, ratio, AtLeast(must), AtLeast(aim));
            }
        }
    }

    fn sync(&mut self) {
        let Some(own) = refrain(Mode::Power) else { return };
        let place = Place { table: self.table, section: "sync", n: 1, threads: 16 };
        let limit = self.table.series(&place.by(1).named("fdatasync", Mode::Power, "pairs"));
        let rivals = |it: &Contestant| ["rocksdb", "redis", "fjall", "sled"].contains(&it.name);
        if let Some(peer) = place.best("pairs", Most, rivals) {
            let ratio = place.ratio((own, "pairs"), (peer, "pairs"));
            let against = format!("{}, throughput", guarded(peer));
            let work = "claim + complete, durable, 16 threads";
            self.put(work, &against, ratio, AtLeast(2.0), AtLeast(4.0));
        }
        let Some(limit) = limit else { return };
        for (work, own, at_once) in [
            ("durable claims, 16 threads", place.point(own, "pairs"), 16.0),
            (
                "64 commits in flight from 2 threads",
                place.by(2).named("in flight", Mode::Power, "pairs"),
                64.0,
            ),
        ] {
            let Some(own) = self.table.series(&own) else { continue };
            // Two durable calls a pair.
            let ratio = own.over(limit).times(2.0 / at_once).spread();
            let against = format!("{at_once} / (one fdatasync)");
            self.put(work, &against, ratio, AtLeast(0.5), AtLeast(0.8));
        }
        let one = place.by(1).series(own, "pairs");
        let time = one.and_then(|one| limit.over(one).times(0.5).spread());
        let work = "durable claim, 1 thread";
        self.put(work, "one fdatasync, time", time, AtMost(1.25), AtMost(1.1));
    }

    fn footprint(&mut self) {
        let Some(own) = refrain(Mode::Kill) else { return };
        let dashmap = CONTESTANTS.iter().find(|it| it.name == "dashmap");
        for place in Place::all(self.table, "footprint") {
            let keys = millions(place.n);
            if let Some(dashmap) = dashmap {
                let ratio = place.ratio((own, "anonymous"), (dashmap, "anonymous"));
                let work = format!("anonymous memory an entry, buffered, {keys}");
                self.put(&work, &guarded(dashmap), ratio, AtMost(0.1), AtMost(0.05));
            }
            let metric = "disk closed";
            let durable = |it: &Contestant| it.mode == Mode::Kill;
            if let Some(peer) = place.best(metric, Least, durable) {
                let ratio = place.ratio((own, metric), (peer, metric));
                let work = format!("disk an entry, buffered, {keys}");
                self.put(&work, &guarded(peer), ratio, AtMost(1.5), AtMost(1.2));
            }
        }
    }

    /// refrain beside who reads what it wrote, at each size that both were measured at; and its
    /// largest store, which has no peer of its size, with the sizes told.
    fn reopen(&mut self) {
        // LMDB, redb and SQLite open in place.
        let replays = |it: &Contestant| ["rocksdb", "fjall", "sled", "redis"].contains(&it.name);
        let Some(own) = refrain(Mode::Kill) else { return };
        for (section, _) in REOPEN {
            let places = Place::all(self.table, section);
            let is_there = |place: &&Place<'_>| seconds_per_entry(**place, own).is_some();
            let Some(largest) = places.iter().rfind(is_there).copied() else { continue };
            let mut last = None;
            for place in places {
                let Some(peer) = fastest(place, replays) else { continue };
                last = Some((place, peer));
                let ratio = time_beside((place, peer), (place, own));
                let against = format!("{}, time an entry", guarded(peer));
                let work = format!("{section}, buffered, {}", millions(place.n));
                self.put(&work, &against, ratio, AtLeast(5.0), AtLeast(5.0));
            }
            let work = format!("{section}, buffered, {}", millions(largest.n));
            if let Some((place, peer)) = last.filter(|(place, _)| place.n != largest.n) {
                let ratio = time_beside((place, peer), (largest, own));
                let against = format!("{} at {}, time an entry", guarded(peer), millions(place.n));
                self.put(&work, &against, ratio, AtLeast(5.0), AtLeast(5.0));
            }
            self.put(&work, "seconds", largest.spread(own, "seconds"), AtMost(1.5), AtMost(0.7));
        }
    }

    fn latency(&mut self) {
        let both = refrain(Mode::Kill).into_iter().chain(ready());
        for (own, how) in both.zip(["from an empty directory", "room ready"]) {
            for place in Place::all(self.table, "latency 70 %") {
                let metric = "claim p99.99";
                let work = format!("p99.99 of claim, buffered, growing to {}", millions(place.n));
                let work = format!("{work}, 70 % load, {how}");
                let mut lines = vec![];
                for peer in CONTESTANTS.iter().filter(|it| ["dashmap", "moka"].contains(&it.name)) {
                    let ratio = place.ratio((own, metric), (peer, metric));
                    lines.push((work.clone(), guarded(peer), ratio, AtMost(1.0), AtMost(1.0)));
                }
                let micros = place.spread(own, metric);
                let work = format!("{work}, microseconds");
                lines.push((work, "(the aim)".to_owned(), micros, Unbound, AtMost(50.0)));
                for (work, against, value, must, aim) in lines {
                    match value {
                        Some(value) if is_behind(place, own) => {
                            let verdict = "**missed**: fell behind the rate";
                            self.line(&work, &against, value, must, aim, verdict);
                        }
                        value => self.put(&work, &against, value, must, aim),
                    }
                }
            }
        }
    }

    /// The gain by a second thread, over the gain of hashing alone.
    fn hot(&mut self) {
        let place = Place { table: self.table, section: "hot", n: 1, threads: 1 };
        for mode in [Mode::Kill, Mode::Memory] {
            let Some(own) = refrain(mode) else { continue };
            let ratio = gain_beside_hashing(place, own);
            let work = format!("hot key, 2 threads, {}", super::place::name(own));
            self.put(&work, "the gain of a hashing loop", ratio, AtLeast(0.9), AtLeast(0.9));
        }
    }
}

/// Work with its circumstances.
fn at(work: &str, place: Place<'_>) -> String {
    format!("{work}, {}, {}", millions(place.n), counted(place.threads, "thread"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aims(lines: &[&str]) -> String {
        table(&Table::parse(&lines.join("\n")).unwrap())
    }

    #[test]
    fn opening_is_compared_at_equal_sizes_and_within_a_repeat() {
        // The machine is ten times as slow in the second repeat, of which a median knows nothing.
        let lines = [
            ("refrain", 1000, 0, 1.0),
            ("refrain", 1000, 1, 10.0),
            ("refrain", 9000, 0, 90.0),
            ("fjall", 1000, 0, 6.0),
            ("fjall", 1000, 1, 60.0),
        ];
        let lines: Vec<_> = lines
            .iter()
            .flat_map(|(store, n, repeat, seconds)| {
                let at = format!("reopen killed,{store},kill,{n},1,{repeat}");
                [format!("{at},seconds,{seconds}"), format!("{at},acknowledged,{n}")]
            })
            .collect();
        let text = aims(&lines.iter().map(|line| &**line).collect::<Vec<_>>());
        let equal =
            "0.001 M keys | fjall (survives kill), time an entry | 6.000 (6.000-6.000) | 2 ";
        assert!(text.contains(equal), "{text}");
        let other =
            "0.009 M keys | fjall (survives kill) at 0.001 M keys, time an entry | 0.600 | 1";
        assert!(text.contains(other), "{text}");
    }

    #[test]
    fn one_repeat_has_no_spread() {
        let text = aims(&[
            "memory,refrain,kill,1000,1,0,w1,50",
            "memory,refrain,kill,1000,1,0,w3,50",
            "memory,refrain ready,kill,1000,1,0,w3,50",
            "memory,refrain ready,kill,1000,1,0,b3,25",
            "memory,dashmap,memory,1000,1,0,w1,10",
        ]);
        assert!(text.contains("| dashmap (survives nothing), time | 5.000 | 1 |"), "{text}");
        assert!(text.contains("batches of 32, room ready, 0.001 M keys, 1 thread |"), "{text}");
    }
}
