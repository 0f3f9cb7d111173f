//! Latency in the report: percentiles at both rates, who kept up with them, and of the longest
//! latency what was seen of the backlog that it lay in.

use std::fmt::Write;

use super::place::{Least, Place, guarded, label};
use super::{Report, figure, short, whole};
use crate::contestants::{CONTESTANTS, Contestant};
use crate::results::Point;

/// The sections, and the rates they are at.
pub const SECTIONS: [(&str, &str); 2] = [
    ("latency 70 %", "at 70 % of what refrain does one after the other"),
    ("latency common", "at the rate that is common to all runs"),
];

pub const PERCENTILES: [&str; 6] = ["p50", "p90", "p99", "p99.9", "p99.99", "max"];

/// Who did less than this part of the arrivals that were due has a backlog that grows: its latency
/// is the length of the run, and no figure to compare.
const KEPT_UP: f64 = 0.98;

/// Whether this contestant did not keep up with the rate that was asked for.
pub fn is_behind(place: Place<'_>, who: &Contestant) -> bool {
    let Some(reached) = place.median(who, "rate reached") else { return false };
    // Older results do not tell what was due: somebody did it then.
    let rate = |it: &Contestant| place.median(it, "rate reached");
    let most = || CONTESTANTS.iter().filter_map(rate).fold(0.0, f64::max);
    match place.ratio((who, "rate reached"), (who, "rate due")) {
        Some(ratio) => ratio.median < KEPT_UP,
        None => reached < KEPT_UP * most(),
    }
}

impl Report<'_> {
    pub(super) fn latency(&mut self) {
        for (section, rate) in SECTIONS {
            for place in Place::all(self.table, section) {
                self.latency_table(place, rate);
            }
        }
    }

    fn latency_table(&mut self, place: Place<'_>, rate: &str) {
        let repeats = place.repeats();
        self.title(
            &format!(
                "Latency of a claim from when it was due, {rate}; microseconds, from empty to {} \
                 keys, each completed too",
                short(place.n as f64)
            ),
            repeats,
        );
        let mut columns = vec!["contestant", "survives", "pairs due a second", "reached"];
        columns.extend(PERCENTILES);
        columns.push("the backlog that the longest lay in");
        self.head(&columns);
        for who in place.present("claim max") {
            let shown = |metric: &str| {
                place.spread(who, metric).map_or("-".to_owned(), |it| figure(it, repeats))
            };
            let behind = if is_behind(place, who) { ", **fell behind**" } else { "" };
            let reached = format!("{}{behind}", shown("rate reached"));
            let mut fields = vec![label(who), who.survives.to_owned(), shown("rate due"), reached];
            fields.extend(PERCENTILES.map(|it| shown(&format!("claim {it}"))));
            fields.push(backlog(place, who));
            self.entry(&fields);
            if who.is_refrain() {
                self.latency_losses(place, who);
            }
        }
    }

    fn latency_losses(&mut self, place: Place<'_>, who: &Contestant) {
        let section = place.section;
        self.losses.check(is_behind(place, who), || {
            format!("{section}: {} fell behind the rate that was due", label(who))
        });
        for percentile in PERCENTILES {
            let metric = &*format!("claim {percentile}");
            let Some(best) = place.best_beside(who, metric, Least, |_| true) else { continue };
            self.losses.compare(place.ratio((who, metric), (best, metric)), Least, |times| {
                let behind = if is_behind(place, best) { ", which fell behind" } else { "" };
                format!(
                    "{section}, growing to {} keys: {percentile} of {} is {times} that of \
                     {}{behind}",
                    short(place.n as f64),
                    label(who),
                    guarded(best)
                )
            });
        }
    }
}

/// What was seen of the backlog with the longest latency, of the repeat that had the longest.
fn backlog(place: Place<'_>, who: &Contestant) -> String {
    let max = place.series(who, "claim max");
    let Some(repeat) = max.and_then(|it| it.worst()) else { return "-".to_owned() };
    let told = |metric: &str| {
        let point: Point = place.point(who, metric);
        place.table.series(&point).and_then(|it| it.at(repeat)).copied()
    };
    // What is zero may be left out by who tells it.
    let of = |metric: &str| told(metric).unwrap_or(0.0);
    let mut text = match told("backlog length") {
        Some(length) => sentence(length, &of),
        None => "not told".to_owned(),
    };
    let mut put = |part: &str| write!(text, "; {part}").unwrap_or_default();
    if of("stalls") > 0.0 {
        put(&format!("{} single pairs over 100 us in the whole run", whole(of("stalls"))));
    }
    if of("stood still") > 0.0 {
        put(&format!("arrivals stood still for {} us, to read counts", short(of("stood still"))));
    }
    if of("recycled") > 0.0 {
        put(&format!(
            "{} purged, {} segments used again, a lock held for {} us at most",
            whole(of("purged")),
            whole(of("recycled")),
            short(of("purge_hold_us"))
        ));
    }
    text
}

/// The backlog in words. `length` is in microseconds, as all lengths are.
fn sentence(length: f64, of: &impl Fn(&str) -> f64) -> String {
    let mut text = format!(
        "from {:.1} s on, {} us long: {} arrivals of {} us each",
        of("backlog at"),
        short(length),
        whole(of("backlog arrivals")),
        short(of("backlog service"))
    );
    let mut put = |part: &str| write!(text, ", {part}").unwrap_or_default();
    if of("backlog stalled") > 0.0 {
        put(&format!(
            "{} us of it in single pairs over 100 us, the longest {} us",
            short(of("backlog stalled")),
            short(of("backlog longest stall"))
        ));
    }
    let off = of("backlog off the processor");
    if off > length / 2.0 {
        put(&format!("mostly off the processor while ready to run ({} us)", short(off)));
    } else if off > 0.0 {
        put(&format!("{} us off the processor while ready to run", short(off)));
    }
    for (metric, what) in [
        ("backlog faults", "page faults"),
        ("backlog major faults", "major faults"),
        ("backlog blocked", "waits for a lock or the disk"),
        ("backlog room_waits", "waits for room"),
    ] {
        if of(metric) > 0.0 {
            put(&format!("{} {what}", whole(of(metric))));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn off_the_processor_is_the_cause_only_if_it_is_most_of_the_backlog() {
        let with = |off: f64| {
            sentence(1000.0, &|metric| match metric {
                "backlog off the processor" => off,
                "backlog arrivals" => 200.0,
                _ => 0.0,
            })
        };
        assert!(with(501.0).contains("mostly off the processor"));
        assert!(!with(500.0).contains("mostly"));
        assert!(with(500.0).starts_with("from 0.0 s on, 1000 us long: 200 arrivals"));
    }
}
