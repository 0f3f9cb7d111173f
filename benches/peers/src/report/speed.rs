//! Throughput in the report: the workloads one by one and in batches, with a sync a call, and of
//! one key.

use super::place::{Least, Most, Place, guarded, label};
use super::{Report, counted, figure, short, times};
use crate::contestants::{CONTESTANTS, Contestant};
use crate::results::Spread;
use crate::store::Mode;
use crate::workloads::{BATCH, BATCHED, WORKLOADS};

/// Of nanoseconds an operation, on the clock of the wall, what all threads do together.
fn throughput(nanos: f64) -> String {
    format!("{} M/s", short(1e3 / nanos))
}

fn title_of(metric: &str) -> &'static str {
    WORKLOADS.iter().find(|(it, _)| *it == metric).map_or("", |(_, title)| *title)
}

/// Keys and threads, as titles and losses tell them.
fn circumstances(place: Place<'_>) -> String {
    format!("{} keys, {}", short(place.n as f64), counted(place.threads, "thread"))
}

impl Report<'_> {
    pub(super) fn speed(&mut self, section: &str, title: &str) {
        for place in Place::all(self.table, section) {
            let all = place.present("w1");
            if all.is_empty() {
                continue;
            }
            let what = "nanoseconds of wall clock an operation, operations a second of all threads";
            self.title(&format!("{title}: {what}; {}", circumstances(place)), place.repeats());
            let names = WORKLOADS.iter().map(|(_, title)| *title);
            self.head(&["contestant", "survives"].into_iter().chain(names).collect::<Vec<_>>());
            for who in all {
                let mut fields = vec![label(who), who.survives.to_owned()];
                fields
                    .extend(WORKLOADS.iter().map(|(metric, _)| self.workload(place, who, metric)));
                self.entry(&fields);
            }
        }
    }

    /// One figure, and whether it is a loss.
    fn workload(&mut self, place: Place<'_>, who: &Contestant, metric: &str) -> String {
        let repeats = place.repeats();
        let Some(value) = place.spread(who, metric) else { return "-".to_owned() };
        let text = format!("{}, {}", figure(value, repeats), throughput(value.median));
        let best = place.best_beside(who, metric, Least, |_| true);
        let ratio = best.and_then(|best| Some((best, place.ratio((who, metric), (best, metric))?)));
        let Some((best, ratio)) = ratio else { return text };
        if who.is_refrain() {
            self.losses.compare(Some(ratio), Least, |times| {
                let (title, own, best) = (title_of(metric), label(who), guarded(best));
                let keys = circumstances(place);
                format!("{title}, {keys}: {own} takes {times} the time of {best}")
            });
        }
        format!("{text}, {}", times(ratio, repeats))
    }

    /// The batched workloads beside the single calls of the same process, and the best peer's.
    pub(super) fn batches(&mut self, section: &str) {
        for place in Place::all(self.table, section) {
            let all = place.present("b3");
            if all.is_empty() {
                continue;
            }
            let what = "nanoseconds an operation, operations a second, how many times the \
                        throughput of our own single calls, and the time beside the best peer's \
                        single calls";
            let title = format!("Batches of {BATCH}: {what}; {}", circumstances(place));
            self.title(&title, place.repeats());
            let names = BATCHED.iter().map(|(_, single)| title_of(single));
            self.head(&["contestant", "survives"].into_iter().chain(names).collect::<Vec<_>>());
            for who in all {
                let mut fields = vec![label(who), who.survives.to_owned()];
                fields.extend(BATCHED.iter().map(|of| self.batch(place, who, *of)));
                self.entry(&fields);
            }
        }
    }

    fn batch(
        &mut self,
        place: Place<'_>,
        who: &Contestant,
        (batched, single): (&str, &str),
    ) -> String {
        let repeats = place.repeats();
        let Some(value) = place.spread(who, batched) else { return "-".to_owned() };
        let mut text = format!("{}, {}", figure(value, repeats), throughput(value.median));
        let what = format!("{} in batches of {BATCH}", title_of(single));
        let what = format!("{what}, {}: {}", circumstances(place), label(who));
        let gain = place.ratio((who, single), (who, batched));
        if let Some(gain) = gain {
            text = format!("{text}, gain {}", times(gain, repeats));
        }
        self.losses.compare(gain, Most, |times| {
            format!("{what} has {times} the throughput of its own single calls")
        });
        let Some(best) = place.best_beside(who, single, Least, |_| true) else { return text };
        let beside = place.ratio((who, batched), (best, single));
        self.losses.compare(beside, Least, |times| {
            format!("{what} takes {times} the time of single calls of {}", guarded(best))
        });
        beside.map_or(text.clone(), |beside| format!("{text}, {}", times(beside, repeats)))
    }

    pub(super) fn sync(&mut self) {
        let places = Place::all(self.table, "sync");
        let is_any = |place: &Place<'_>| !place.present("pairs").is_empty();
        let places: Vec<_> = places.into_iter().filter(is_any).collect();
        if places.is_empty() {
            return;
        }
        let repeats = places.iter().map(|it| it.repeats()).max().unwrap_or(0);
        self.title("A sync a call: claim+complete a second (two durable calls each)", repeats);
        let mut columns = vec!["contestant".to_owned(), "survives".to_owned()];
        columns.extend(places.iter().map(|it| counted(it.threads, "thread")));
        self.head(&columns);
        for who in CONTESTANTS.iter().filter(|it| it.mode == Mode::Power) {
            let shown = |it: &Place<'_>| Some(figure(it.spread(who, "pairs")?, repeats));
            let shown: Vec<_> = places.iter().map(shown).collect();
            if shown.iter().any(Option::is_some) {
                let mut fields = vec![label(who), who.survives.to_owned()];
                fields.extend(shown.into_iter().map(|it| it.unwrap_or("-".to_owned())));
                self.entry(&fields);
            }
            if who.is_refrain() {
                places.iter().for_each(|place| self.sync_loss(*place, who));
            }
        }
        self.limits();
    }

    fn sync_loss(&mut self, place: Place<'_>, who: &Contestant) {
        let Some(best) = place.best("pairs", Most, |_| true) else { return };
        self.losses.compare(place.ratio((who, "pairs"), (best, "pairs")), Most, |times| {
            format!(
                "a sync a call, {}: {} has {times} the throughput of {}",
                counted(place.threads, "thread"),
                label(who),
                guarded(best)
            )
        });
    }

    /// What no contestant is: the device, and refrain with commits in flight.
    fn limits(&mut self) {
        for (store, threads, text) in [
            (
                "in flight",
                2,
                "refrain (survives power loss), 64 commits in flight from 2 threads, \
                 claim+complete a second",
            ),
            ("fdatasync", 1, "one positioned write of 4 KiB and one fdatasync, a second"),
        ] {
            let place = Place { table: self.table, section: "sync", n: 1, threads };
            let own = place.named(store, Mode::Power, "pairs");
            if let Some(value) = self.table.spread(&own) {
                self.line(&format!("\n{text}: {} (n={})", figure(value, value.count), value.count));
            }
        }
    }

    /// One completed key that all threads claim.
    pub(super) fn hot(&mut self) {
        let place = Place { table: self.table, section: "hot", n: 1, threads: 1 };
        let all = place.present("ops");
        if all.is_empty() {
            return;
        }
        let repeats = place.repeats();
        self.title("One completed key that all threads claim: claims a second", repeats);
        self.head(&["contestant", "survives", "1 thread", "2 threads", "gain", "beside hashing's"]);
        let shown = |it: Option<Spread>| it.map_or("-".to_owned(), |it| figure(it, repeats));
        for who in all {
            let both = [1, 2].map(|threads| place.by(threads).spread(who, "ops"));
            let gain = |of: Option<Spread>| of.map_or("-".to_owned(), |it| times(it, repeats));
            let beside = gain_beside_hashing(place, who);
            let mut fields = vec![label(who), who.survives.to_owned()];
            fields.extend(both.map(shown));
            let own = self.table.ratio(&place.by(2).point(who, "ops"), &place.point(who, "ops"));
            fields.extend([gain(own), gain(beside)]);
            self.entry(&fields);
            if who.is_refrain() {
                self.hot_losses(place, who);
            }
        }
        let hash = [1, 2].map(|threads| {
            self.table.spread(&place.by(threads).named("hash", Mode::Memory, "ops"))
        });
        let [one, two] = hash.map(shown);
        self.line(&format!("\na loop that only hashes, hashes a second: {one}; {two}"));
    }

    fn hot_losses(&mut self, place: Place<'_>, who: &Contestant) {
        self.losses.compare(gain_beside_hashing(place, who), Most, |times| {
            format!(
                "one hot key: 2 threads gain {} {times} what a loop that hashes gains",
                label(who)
            )
        });
        for place in [place, place.by(2)] {
            let Some(best) = place.best("ops", Most, |_| true) else { continue };
            self.losses.compare(place.ratio((who, "ops"), (best, "ops")), Most, |times| {
                format!(
                    "one hot key, {}: {} has {times} the throughput of {}",
                    counted(place.threads, "thread"),
                    label(who),
                    guarded(best)
                )
            });
        }
    }
}

/// What a second thread gains, over what it gains where threads share nothing but hash.
pub fn gain_beside_hashing(place: Place<'_>, who: &Contestant) -> Option<Spread> {
    let of = |threads| place.by(threads).series(who, "ops");
    let hash =
        |threads: usize| place.table.series(&place.by(threads).named("hash", Mode::Memory, "ops"));
    of(2)?.over(of(1)?).over(&hash(2)?.over(hash(1)?)).spread()
}
