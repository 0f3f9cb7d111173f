//! Memory, disk and reopening in the report.

use super::place::{Least, Place, best, guarded, label};
use super::{Report, figure, short};
use crate::contestants::{CONTESTANTS, Contestant};
use crate::results::{Series, Spread};
use crate::store::Mode;

const BYTES: [(&str, &str); 4] = [
    ("anonymous", "anonymous memory"),
    ("resident", "resident memory"),
    ("disk", "disk, open"),
    ("disk closed", "disk, closed"),
];

/// The sections, and what stands above their tables and pictures.
pub const REOPEN: [(&str, &str); 2] = [
    ("reopen killed", "Opened again after SIGKILL at work"),
    ("reopen closed", "Opened again after a clean close"),
];

/// Seconds to the first answer, for each entry that was acknowledged: who was slow to write has
/// fewer.
pub fn seconds_per_entry(place: Place<'_>, who: &Contestant) -> Option<Series> {
    Some(place.series(who, "seconds")?.over(place.series(who, "acknowledged")?))
}

/// What is not there of what was acknowledged.
fn absent(place: Place<'_>, who: &Contestant) -> Option<Series> {
    let found = place.series(who, "acknowledged")?.less(Some(place.series(who, "kept")?));
    let found = found.less(place.series(who, "claimed only"));
    Some(found.less(place.series(who, "wrong body")))
}

/// The time an entry of one beside that of another, within each repeat.
pub fn time_beside(
    (place, who): (Place<'_>, &Contestant),
    (there, peer): (Place<'_>, &Contestant),
) -> Option<Spread> {
    seconds_per_entry(place, who)?.over(&seconds_per_entry(there, peer)?).spread()
}

/// Who opens in the least time for each entry.
pub fn fastest(
    place: Place<'_>,
    is_in: impl Fn(&Contestant) -> bool,
) -> Option<&'static Contestant> {
    best(|who| Some(seconds_per_entry(place, who)?.spread()?.median), Least, is_in)
}

/// Numbers of entries, to the last one.
fn counts(it: Option<Spread>) -> String {
    let Some(Spread { median, min, max, .. }) = it else { return "-".to_owned() };
    if min == max { format!("{median}") } else { format!("{median} ({min}-{max})") }
}

impl Report<'_> {
    pub(super) fn footprint(&mut self) {
        for place in Place::all(self.table, "footprint") {
            let (keys, repeats) = (short(place.n as f64), place.repeats());
            self.title(&format!("Bytes a completed entry, {keys} keys"), repeats);
            let names = BYTES.map(|(_, title)| title);
            self.head(&["contestant", "survives"].into_iter().chain(names).collect::<Vec<_>>());
            let has_any = |who: &&Contestant| {
                BYTES.iter().any(|(metric, _)| place.series(who, metric).is_some())
            };
            for who in CONTESTANTS.iter().filter(has_any) {
                let mut fields = vec![label(who), who.survives.to_owned()];
                fields.extend(BYTES.map(|(metric, _)| {
                    place.spread(who, metric).map_or("-".to_owned(), |it| figure(it, repeats))
                }));
                self.entry(&fields);
                if who.is_refrain() {
                    self.footprint_losses(place, who);
                }
            }
        }
    }

    /// Beside the best in memory, and beside the best durable one: they give different things for
    /// what they take.
    fn footprint_losses(&mut self, place: Place<'_>, who: &Contestant) {
        for (metric, title) in BYTES {
            // Who keeps nothing on the disk takes none of it.
            let has_any = |it: &Contestant| place.median(it, metric).is_some_and(|it| it > 0.0);
            if !has_any(who) {
                continue;
            }
            for mode in [Mode::Memory, Mode::Kill] {
                let alike = |it: &Contestant| it.mode == mode && has_any(it);
                let Some(best) = place.best(metric, Least, alike) else { continue };
                self.losses.compare(place.ratio((who, metric), (best, metric)), Least, |times| {
                    let (own, best) = (label(who), guarded(best));
                    let keys = short(place.n as f64);
                    format!(
                        "bytes an entry, {title}, {keys} keys: {own} takes {times} those of {best}"
                    )
                });
            }
        }
    }

    pub(super) fn reopen(&mut self) {
        for (section, title) in REOPEN {
            for place in Place::all(self.table, section) {
                let keys = short(place.n as f64);
                self.title(&format!("{title}; at most {keys} keys"), place.repeats());
                self.head(&[
                    "contestant",
                    "survives",
                    "seconds to the first answer",
                    "microseconds an entry",
                    "entries acknowledged",
                    "of them kept",
                    "claimed only",
                    "wrong body",
                    "absent",
                ]);
                for who in place.present("seconds") {
                    self.reopened(place, who);
                }
            }
        }
    }

    fn reopened(&mut self, place: Place<'_>, who: &Contestant) {
        let repeats = place.repeats();
        let shown = |it: Option<Spread>| it.map_or("-".to_owned(), |it| figure(it, repeats));
        let of = |metric: &str| shown(place.spread(who, metric));
        let each = seconds_per_entry(place, who).and_then(|it| it.times(1e6).spread());
        self.entry(&[
            label(who),
            who.survives.to_owned(),
            of("seconds"),
            shown(each),
            of("acknowledged"),
            of("kept"),
            counts(place.spread(who, "claimed only")),
            counts(place.spread(who, "wrong body")),
            counts(absent(place, who).and_then(|it| it.spread())),
        ]);
        if !who.is_refrain() {
            return;
        }
        let what = format!("{}, {} keys: {}", place.section, short(place.n as f64), label(who));
        if let Some(best) = fastest(place, |_| true) {
            self.losses.compare(time_beside((place, who), (place, best)), Least, |times| {
                format!("{what} takes {times} the time an entry of {}", guarded(best))
            });
        }
        // One repeat is enough: the most is told, not the median.
        let most = |it: Option<Spread>| it.map_or(0.0, |it| it.max);
        let absent = most(absent(place, who).and_then(|it| it.spread()));
        let claimed = most(place.spread(who, "claimed only"));
        let wrong = most(place.spread(who, "wrong body"));
        self.losses.check(absent + claimed + wrong > 0.0, || {
            format!(
                "{what}: {absent} of those acknowledged were absent, {claimed} claimed only and \
                 {wrong} with other bytes"
            )
        });
    }
}
