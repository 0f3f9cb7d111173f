//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use refrain::Durability;

use crate::dedupe::{Job, Place};
use crate::exit::{EXIT_CODES, Failure};
use crate::input::{InputRules, Source};
use crate::key::KeyRule;
use crate::summary::SummaryForm;

/// Drops work that was seen before.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Dedupe(DedupeArgs),
}

/// Writes each line the first time it is seen, in input order, and drops the rest.
///
/// Reads the files, one after the other, or standard input. Two lines are the same when their keys
/// are: the whole line, unless --key says otherwise. With --store, what was seen is remembered by
/// later runs; a line counts as seen only after it was written out, so a killed run loses none, and
/// the next one repeats at most its last batch (8,192 lines).
#[derive(Debug, Args)]
#[command(after_long_help = concat_examples(), after_help = "More, with examples and exit codes: --help")]
pub struct DedupeArgs {
    /// Files to read; - is standard input, as is no file at all
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Remembers keys in a store in this directory, which is made if it does not exist
    ///
    /// Without it, keys are remembered in memory, until the end of the run. One run at a time can
    /// use a store.
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,

    /// Set of keys within the store: the same line in two namespaces is two lines
    #[arg(long, value_name = "NAME", default_value = "dedupe")]
    namespace: String,

    /// Part of a line that is its key: whole, col:1,2, json:/pointer or regex:PATTERN
    ///
    /// whole: all of the line, without its newline. col:1,2: these columns of a CSV file, counted
    /// from 1; a quoted field may span lines. json:/pointer: the value at this JSON pointer
    /// (RFC 6901), however it is written; null is no value. regex:PATTERN: the first capture group
    /// of the first match, or all of the match if the pattern has no group.
    #[arg(long, value_name = "KEY", default_value = "whole")]
    key: KeyRule,

    /// What stands between columns, one byte; \t is a tab
    #[arg(long, value_name = "BYTE", default_value = ",", value_parser = parse_delimiter)]
    delimiter: u8,

    /// The first line of each file is a header: it has no key
    ///
    /// That of the first file is written before the first line that is; those of the others are
    /// dropped.
    #[arg(long)]
    header: bool,

    /// How long a line is remembered: 24h, 30days, 500ms; from 100ms to 30years
    ///
    /// Counted from when the line was written. Default: what the store has for the namespace, and
    /// 30 years for a new one. A change holds for lines that are seen from then on.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,

    /// What a line that counts as seen survives: sync, buffered or interval:TIME
    ///
    /// sync: power loss, together with the line that was written out, if that went to a file.
    /// buffered: a killed process. interval:TIME: as buffered, and power loss after this time.
    #[arg(long, value_name = "MODE", default_value = "sync", requires = "store",
        value_parser = parse_durability)]
    durability: Durability,

    /// Ends at a line without a key, instead of passing it on
    #[arg(long)]
    strict: bool,

    /// Appends the lines that are dropped to this file
    #[arg(long, value_name = "FILE")]
    duplicates: Option<PathBuf>,

    /// How the summary is written to standard error
    #[arg(long, value_name = "FORM", value_enum, default_value_t = SummaryForm::Table)]
    summary: SummaryForm,
}

fn concat_examples() -> String {
    format!("{EXAMPLES}\n\n{EXIT_CODES}")
}

const EXAMPLES: &str = "\
Examples:
  refrain dedupe access.log > unique.log
  zcat events.json.gz | refrain dedupe --key json:/event/id --store seen --ttl 7days
  refrain dedupe --key col:1,3 --header --duplicates again.csv orders.csv > orders-once.csv
  tail -f app.log | refrain dedupe --key 'regex:(req-[0-9a-f-]+)' --summary json";

impl DedupeArgs {
    /// What is asked for, if it can be.
    pub fn to_job(&self) -> Result<Job, Failure> {
        if self.delimiter != b',' && !matches!(self.key, KeyRule::Columns(_)) {
            let text = "--delimiter is for --key col:1,2".to_owned();
            return Err(Failure::Usage(text));
        }
        let place = match &self.store {
            None => Place::Memory,
            Some(path) => Place::Directory(path.clone(), self.durability),
        };
        let mut sources: Vec<_> = self.files.iter().map(|path| Source::of(path)).collect();
        if sources.is_empty() {
            sources.push(Source::Stdin);
        }
        let rules = InputRules {
            key: self.key.clone(),
            delimiter: self.delimiter,
            has_header: self.header,
            is_strict: self.strict,
        };
        Ok(Job {
            sources,
            rules,
            place,
            namespace: self.namespace.clone(),
            ttl: self.ttl,
            duplicates: self.duplicates.clone(),
            summary: self.summary,
        })
    }
}

fn parse_delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        b"\\t" => Ok(b'\t'),
        [b'"' | b'\n' | b'\r'] => Err("quotes and newlines have a meaning of their own".to_owned()),
        [byte] => Ok(*byte),
        _ => Err("a delimiter is one byte".to_owned()),
    }
}

fn parse_durability(text: &str) -> Result<Durability, String> {
    match text.split_once(':') {
        None if text == "sync" => Ok(Durability::Sync),
        None if text == "buffered" => Ok(Durability::Buffered),
        Some(("interval", time)) => {
            humantime::parse_duration(time).map(Durability::Interval).map_err(|it| it.to_string())
        }
        _ => Err("a durability is sync, buffered or interval:TIME".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the report")]

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn delimiters_and_durabilities_are_read() {
        assert_eq!(parse_delimiter("\\t"), Ok(b'\t'));
        assert_eq!(parse_delimiter("\t"), Ok(b'\t'));
        assert_eq!(parse_delimiter(";"), Ok(b';'));
        for wrong in ["", ",,", "\"", "\n", "é"] {
            assert!(parse_delimiter(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(parse_durability("buffered"), Ok(Durability::Buffered));
        let interval = Durability::Interval(Duration::from_millis(100));
        assert_eq!(parse_durability("interval:100ms"), Ok(interval));
        for wrong in ["", "sync:1s", "interval", "interval:", "interval:fast"] {
            assert!(parse_durability(wrong).is_err(), "{wrong:?}");
        }
    }
}
