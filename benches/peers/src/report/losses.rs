//! Where refrain loses: every figure of its own that is worse than the best peer's beside it.

use super::place::Better;
use super::{Report, counted, short};
use crate::results::Spread;

/// What was set beside a peer's, and which of it is lost.
#[derive(Default)]
pub struct Losses {
    compared: usize,
    lost: Vec<String>,
}

impl Losses {
    /// Sets a figure of refrain's over that of another; `text` says of which, of what and beside
    /// whom, with the ratio in the middle.
    pub fn compare(
        &mut self,
        ratio: Option<Spread>,
        better: Better,
        text: impl FnOnce(&str) -> String,
    ) {
        let Some(ratio) = ratio else { return };
        self.compared += 1;
        if better.is_lost(ratio.median) {
            // What is hardly lost must not read as if it were not.
            let times = match ratio.median {
                it if (0.95..1.05).contains(&it) => format!("{it:.4} x"),
                it => format!("{} x", short(it)),
            };
            self.lost.push(format!("{} (n={})", text(&times), ratio.count));
        }
    }

    /// What needs no peer to be a loss.
    pub fn check(&mut self, is_lost: bool, text: impl FnOnce() -> String) {
        self.compared += 1;
        if is_lost {
            self.lost.push(text());
        }
    }
}

impl Report<'_> {
    /// Children that failed are no figures, and must not be missed among them.
    pub(super) fn failed(&mut self) {
        let failed: Vec<_> = self.table.failed().collect();
        if failed.is_empty() {
            return;
        }
        self.line("\n## Failed\n");
        self.head(&["section", "contestant", "mode", "keys", "threads", "repeats"]);
        for (point, repeats) in failed {
            let repeats: Vec<_> = repeats.repeats().map(|it| it.to_string()).collect();
            self.entry(&[
                point.section.clone(),
                point.store.clone(),
                point.mode.to_owned(),
                short(point.n as f64),
                point.threads.to_string(),
                repeats.join(", "),
            ]);
        }
    }

    pub(super) fn where_we_lose(&mut self) {
        self.line("\n## Where we lose\n");
        let Losses { compared, lost } = std::mem::take(&mut self.losses);
        if compared == 0 {
            self.line("Nothing was measured beside a peer.");
            return;
        }
        let figures = counted(compared, "figure");
        match lost.len() {
            0 => self.line(&format!("Nowhere, of {figures} that were compared.")),
            lost => self.line(&format!("In {lost} of {figures} that were compared.\n")),
        }
        for loss in &lost {
            self.line(&format!("* {loss}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::place::{Least, Most};
    use super::*;

    #[test]
    fn what_is_worse_is_lost() {
        let mut losses = Losses::default();
        let text = |times: &str| times.to_owned();
        losses.compare(Spread::of([2.0, 2.5]), Least, text);
        losses.compare(Spread::of([0.5]), Least, text);
        losses.compare(Spread::of([0.5]), Most, text);
        losses.compare(None, Most, text);
        losses.check(false, String::new);
        assert_eq!(losses.lost, ["2.25 x (n=2)", "0.50 x (n=1)"]);
        assert_eq!(losses.compared, 4);
    }
}
