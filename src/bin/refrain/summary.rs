//! What a run counted, and how it is told.

use std::time::Duration;

use clap::ValueEnum;

/// How the summary is written to standard error.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum SummaryForm {
    /// A number a line, for people.
    Table,
    /// One line: events, first, duplicates, unkeyed, seconds, events_per_second.
    Json,
    /// Nothing.
    None,
}

/// Counts of lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    pub first: u64,
    pub duplicates: u64,
    pub unkeyed: u64,
}

impl Counts {
    pub fn events(&self) -> u64 {
        self.first + self.duplicates + self.unkeyed
    }

    /// The summary, or nothing.
    pub fn tell(&self, form: SummaryForm, elapsed: Duration) -> String {
        let Self { first, duplicates, unkeyed } = self;
        let events = self.events();
        let seconds = elapsed.as_secs_f64();
        let speed = if seconds > 0.0 { events as f64 / seconds } else { 0.0 };
        match form {
            SummaryForm::None => String::new(),
            SummaryForm::Json => format!(
                "{{\"events\":{events},\"first\":{first},\"duplicates\":{duplicates},\
                 \"unkeyed\":{unkeyed},\"seconds\":{seconds:.6},\"events_per_second\":{speed:.0}}}\n"
            ),
            SummaryForm::Table => format!(
                "events            {events:>12}\n\
                 first             {first:>12}\n\
                 duplicates        {duplicates:>12}\n\
                 unkeyed           {unkeyed:>12}\n\
                 seconds           {seconds:>12.3}\n\
                 events per second {speed:>12.0}\n"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the report")]

    use super::*;

    #[test]
    fn the_json_summary_is_json() {
        let counts = Counts { first: 2, duplicates: 3, unkeyed: 5 };
        for elapsed in [Duration::ZERO, Duration::from_millis(500)] {
            let text = counts.tell(SummaryForm::Json, elapsed);
            let told: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(told["events"], 10);
            assert_eq!(told["unkeyed"], 5);
            assert!(text.ends_with("}\n"));
        }
        assert!(
            counts.tell(SummaryForm::Json, Duration::from_millis(500)).contains("second\":20}")
        );
        assert_eq!(counts.tell(SummaryForm::None, Duration::ZERO), "");
    }
}
