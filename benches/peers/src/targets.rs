//! The aims of the project, each beside what was measured: met or missed.
//!
//! What cannot be computed from the results at hand is left out.

use std::fmt::Write;

use crate::contestants::{CONTESTANTS, Contestant};
use crate::report::{Least, Most, best, point, sizes};
use crate::results::{Point, Spread, Table};
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

/// Who did less than this part of the arrivals a second that somebody did has a queue that grows: its
/// latency is the length of the run, and no figure to compare.
const KEPT_UP: f64 = 0.98;

/// Something that is no contestant: the device, or commits in flight.
pub fn named(section: &str, store: &str, mode: Mode, threads: usize, metric: &str) -> Point {
    Point {
        section: section.to_owned(),
        store: store.to_owned(),
        mode: mode.name(),
        n: 1,
        threads,
        metric: metric.to_owned(),
    }
}

fn refrain(mode: Mode) -> Option<&'static Contestant> {
    CONTESTANTS.iter().find(|it| it.is_refrain() && !it.is_ready() && it.mode == mode)
}

fn ready() -> Option<&'static Contestant> {
    CONTESTANTS.iter().find(|it| it.is_ready())
}

/// The maps that the aims are set against.
fn is_map(who: &Contestant) -> bool {
    ["dashmap", "papaya", "scc", "sharded map"].contains(&who.name)
}

struct Targets<'a> {
    table: &'a Table,
    text: String,
}

/// The table of them.
pub fn table(table: &Table) -> String {
    let mut targets = Targets { table, text: String::new() };
    let head =
        "| work | against | measured (least-most) | must | aim | |\n|---|---|---|---|---|---|\n";
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
        let Spread { median, min, max, .. } = value;
        let (must, aim) = (must.text(), aim.text());
        let line = format!(
            "| {work} | {against} | {median:.3} ({min:.3}-{max:.3}) | {must} | {aim} | {verdict} |"
        );
        // Writing to a string does not fail.
        writeln!(self.text, "{line}").unwrap_or_default();
    }

    /// refrain's buffered store over the fastest map, by time: its claims from an empty directory and
    /// with room that is ready, which is all the same to reads.
    fn maps(&mut self) {
        let Some(own) = refrain(Mode::Kill) else { return };
        let Some(ready) = ready() else { return };
        for n in sizes(self.table, "memory") {
            for threads in [1, 2] {
                let is_small_2t = n <= 1_000_000 && threads == 2;
                let claim = if is_small_2t { 1.25 } else { 1.0 };
                let read = if threads == 1 { 0.9 } else { 0.8 };
                let empty = "from an empty directory";
                for (own, metric, single, work, must, aim) in [
                    (own, "w1", "w1", &*format!("fresh claim, buffered, {empty}"), claim, 0.8),
                    (ready, "w1", "w1", "fresh claim, buffered, room ready", claim, 0.8),
                    (
                        own,
                        "pair",
                        "pair",
                        &format!("claim + complete, buffered, {empty}"),
                        1.1,
                        0.8,
                    ),
                    (ready, "pair", "pair", "claim + complete, buffered, room ready", 1.1, 0.8),
                    (own, "w3", "w3", "duplicate claim", read, 0.6),
                    (own, "w4", "w4", "lookup of a missing key, single", 1.5, 1.0),
                    (own, "b4", "w4", "lookup of a missing key, batches of 32", 1.0, 1.0),
                    (own, "w5", "w5", "zipf 0.99 stream", 1.0, 0.7),
                ] {
                    let found = best(self.table, "memory", n, threads, single, Least, is_map);
                    let Some(map) = found else { continue };
                    let of = |who, metric| point("memory", who, n, threads, metric);
                    let ratio = self.table.ratio(&of(own, metric), &of(map, single));
                    let work = format!("{work}, {} M keys, {threads} threads", n as f64 / 1e6);
                    self.put(
                        &work,
                        &format!("{}, time", map.name),
                        ratio,
                        AtMost(must),
                        AtMost(aim),
                    );
                }
                let of = |metric| point("memory", own, n, threads, metric);
                let gain = self.table.ratio(&of("w3"), &of("b3"));
                let work = "duplicate claim, batches of 32";
                let work = format!("{work}, {} M keys, {threads} threads", n as f64 / 1e6);
                let against = "our own single calls, throughput";
                self.put(&work, against, gain, AtLeast(1.7), AtLeast(2.5));
            }
        }
    }

    /// The fastest durable peer over refrain, by time: so many times the throughput.
    fn durable(&mut self) {
        let Some(own) = refrain(Mode::Kill) else { return };
        for n in sizes(self.table, "durable") {
            for threads in [1, 2] {
                for (metric, work, must, aim) in [
                    ("pair", "claim + complete, buffered", 15.0, 30.0),
                    ("w3", "duplicate claim", 8.0, 12.0),
                ] {
                    // Those that lose acknowledged entries in a kill are no measure of the first.
                    let keeps = |it: &Contestant| metric == "w3" || it.survives == "kill";
                    let found = best(self.table, "durable", n, threads, metric, Least, keeps);
                    let Some(peer) = found else { continue };
                    let of = |who| point("durable", who, n, threads, metric);
                    let ratio = self.table.ratio(&of(peer), &of(own));
                    let work = format!("{work}, {threads} threads");
                    let against = format!("{} (durable), throughput", peer.name);
                    self.put(&work, &against, ratio, AtLeast(must), AtLeast(aim));
                }
            }
        }
    }

    fn sync(&mut self) {
        let Some(own) = refrain(Mode::Power) else { return };
        let limit = named("sync", "fdatasync", Mode::Power, 1, "pairs");
        let of = |who, threads| point("sync", who, 1, threads, "pairs");
        let rivals = |it: &Contestant| ["rocksdb", "redis", "fjall", "sled"].contains(&it.name);
        if let Some(peer) = best(self.table, "sync", 1, 16, "pairs", Most, rivals) {
            let ratio = self.table.ratio(&of(own, 16), &of(peer, 16));
            let against = format!("{}, throughput", peer.name);
            let work = "claim + complete, durable, 16 threads";
            self.put(work, &against, ratio, AtLeast(2.0), AtLeast(4.0));
        }
        // Two durable calls a pair.
        let scaled = |it: Option<Spread>, by: f64| {
            let it = it?;
            Spread::of([it.min * by, it.median * by, it.max * by])
        };
        for (work, own, at_once) in [
            ("durable claims, 16 threads", of(own, 16), 16.0),
            (
                "64 commits in flight from 2 threads",
                named("sync", "in flight", Mode::Power, 2, "pairs"),
                64.0,
            ),
        ] {
            let ratio = scaled(self.table.ratio(&own, &limit), 2.0 / at_once);
            let against = format!("{at_once} / (one fdatasync)");
            self.put(work, &against, ratio, AtLeast(0.5), AtLeast(0.8));
        }
        let time = scaled(self.table.ratio(&limit, &of(own, 1)), 0.5);
        let work = "durable claim, 1 thread";
        self.put(work, "one fdatasync, time", time, AtMost(1.25), AtMost(1.1));
    }

    fn footprint(&mut self) {
        let Some(own) = refrain(Mode::Kill) else { return };
        let dashmap = CONTESTANTS.iter().find(|it| it.name == "dashmap");
        for n in sizes(self.table, "footprint") {
            let of = |who, metric| point("footprint", who, n, 1, metric);
            if let Some(dashmap) = dashmap {
                let ratio = self.table.ratio(&of(own, "anonymous"), &of(dashmap, "anonymous"));
                let work = format!("anonymous memory an entry, {} M keys", n as f64 / 1e6);
                self.put(&work, "dashmap", ratio, AtMost(0.1), AtMost(0.05));
            }
            let durable = |it: &Contestant| it.mode == Mode::Kill;
            let found = best(self.table, "footprint", n, 1, "disk closed", Least, durable);
            if let Some(peer) = found {
                let metric = "disk closed";
                let ratio = self.table.ratio(&of(own, metric), &of(peer, metric));
                let work = format!("disk an entry, {} M keys", n as f64 / 1e6);
                self.put(&work, peer.name, ratio, AtMost(1.5), AtMost(1.2));
            }
        }
    }

    fn reopen(&mut self) {
        // LMDB, redb and SQLite open in place; these read what they wrote.
        const REPLAY: [&str; 4] = ["rocksdb", "fjall", "sled", "redis"];
        for section in ["reopen killed", "reopen closed"] {
            let per_entry = |point: &Point| {
                let entries = Point { metric: "acknowledged".to_owned(), ..point.clone() };
                Some((
                    self.table.median(point)? / self.table.median(&entries)?,
                    point.store.clone(),
                ))
            };
            let of = |wanted: &dyn Fn(&Point) -> bool| {
                let points = self.table.points();
                let points = points.filter(|it| it.section == section && it.metric == "seconds");
                points
                    .filter(|it| wanted(it))
                    .filter_map(per_entry)
                    .min_by(|a, b| a.0.total_cmp(&b.0))
            };
            let peer = of(&|it| REPLAY.contains(&&*it.store));
            let most = self.table.points();
            let largest = most
                .filter(|it| {
                    it.section == section && it.store == "refrain" && it.metric == "seconds"
                })
                .max_by_key(|it| it.n)
                .cloned();
            let Some(largest) = largest else { continue };
            let work = format!("{section}, {:.1} M keys", largest.n as f64 / 1e6);
            if let Some((time, name)) = peer {
                let own = per_entry(&largest).map(|(time, _)| time);
                let ratio = own.and_then(|own| Spread::of([time / own]));
                let against = format!("{name}, time an entry");
                self.put(&work, &against, ratio, AtLeast(5.0), AtLeast(5.0));
            }
            let seconds = self.table.spread(&largest);
            self.put(&work, "seconds", seconds, AtMost(1.5), AtMost(0.7));
        }
    }

    fn latency(&mut self) {
        const SECTION: &str = "latency 70 %";
        let both = refrain(Mode::Kill).into_iter().chain(ready());
        let both = both.zip(["from an empty directory", "room ready"]);
        for (own, how) in both {
            for n in sizes(self.table, SECTION) {
                let keys = n as f64 / 1e6;
                let of = |who| point(SECTION, who, n, 1, "claim p99.99");
                let rate = |who| self.table.median(&point(SECTION, who, n, 1, "rate reached"));
                let most = CONTESTANTS.iter().filter_map(rate).fold(0.0, f64::max);
                let is_behind = rate(own).is_some_and(|own| own < KEPT_UP * most);
                let mut rows = vec![];
                for peer in CONTESTANTS.iter().filter(|it| ["dashmap", "moka"].contains(&it.name)) {
                    let ratio = self.table.ratio(&of(own), &of(peer));
                    let work =
                        format!("p99.99 of claim while growing to {keys} M, 70 % load, {how}");
                    rows.push((work, peer.name, ratio, AtMost(1.0), AtMost(1.0)));
                }
                let micros = self.table.spread(&of(own));
                let work =
                    format!("p99.99 of claim while growing to {keys} M, microseconds, {how}");
                rows.push((work, "(the aim)", micros, Unbound, AtMost(50.0)));
                for (work, against, value, must, aim) in rows {
                    match value {
                        Some(value) if is_behind => {
                            let verdict = "**missed**: fell behind the rate";
                            self.line(&work, against, value, must, aim, verdict);
                        }
                        value => self.put(&work, against, value, must, aim),
                    }
                }
            }
        }
    }

    /// The gain by a second thread, over the gain of hashing alone.
    fn hot(&mut self) {
        let hash = |threads| named("hot", "hash", Mode::Memory, threads, "ops");
        let pure = self.table.ratio(&hash(2), &hash(1));
        for mode in [Mode::Kill, Mode::Memory] {
            let Some(own) = refrain(mode) else { continue };
            let of = |threads| point("hot", own, 1, threads, "ops");
            let gain = self.table.ratio(&of(2), &of(1));
            let Some((gain, pure)) = gain.zip(pure) else { continue };
            let by = 1.0 / pure.median;
            let ratio = Spread::of([gain.min * by, gain.median * by, gain.max * by]);
            let work = format!("hot key, 2 threads, refrain ({})", mode.name());
            self.put(&work, "the gain of a hashing loop", ratio, AtLeast(0.9), AtLeast(0.9));
        }
    }
}
