//! refrain beside every alternative, on one machine, in one run.
//!
//! `peers run` measures and writes CSV, a report and pictures; `peers report FILE.csv` makes the
//! report anew. `scripts/bench-peers.sh` builds and runs it; docs/BENCHMARKS.md says how to read
//! it.
//!
//! ```text
//! plan -> driver -> a child each: jobs -> workloads -> contestants      results -> report, plot
//! ```

mod contestants;
mod driver;
mod jobs;
mod keys;
mod machine;
mod plan;
mod plot;
mod report;
mod results;
mod store;
mod versions;
mod workloads;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use driver::Driver;
use jobs::Order;
use plan::{SECTIONS, Scale};
use report::Report;
use results::{Point, Results, Table};
use store::Result;

/// Of every contestant, refrain too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str =
    "usage: peers run [--quick] [--repeats N] [--first-repeat N] [--sections a,b,..] [--about TEXT]
                 [--directory DIR] [--arrivals N] [--only PEER,..] RESULTS.csv
       peers report RESULTS.csv
The sections are memory, large, durable, sync, hot, footprint, reopen and latency. Results that are
there are kept: sections can be run one by one into the same file, and repeats, of which
--first-repeat says how many are there. A repeat that is there is refused, unless a child failed in
it. --arrivals is how many the latency run has; --only names the peers that take part in memory and
large.";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.first().map(|word| &**word) {
        Some("child") => Order::parse(&words[1..]).and_then(|order| jobs::run(&order)),
        Some("run") => run(&words[1..]),
        Some("report") if words.len() == 2 => report(Path::new(&words[1])),
        _ => Err(USAGE.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// What the words of `peers run` ask for.
struct Asked {
    scale: Scale,
    sections: String,
    about: String,
    directory: PathBuf,
    first_repeat: usize,
    file: PathBuf,
    /// The words that say how it is measured, for who reads the results.
    how: Vec<String>,
}

impl Asked {
    fn parse(words: &[String]) -> Result<Self> {
        let (mut scale, mut sections) = (Scale::FULL, SECTIONS.join(","));
        let (mut about, mut directory) = (String::new(), std::env::temp_dir());
        let (mut file, mut first_repeat, mut how) = (None, 0, vec![]);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || -> Result<&String> {
                let value = words.next().ok_or(USAGE)?;
                if !["--about", "--directory"].contains(&&**word) {
                    how.push(format!("{word} {value}"));
                }
                Ok(value)
            };
            match &**word {
                "--quick" => {
                    scale = Scale::QUICK;
                    how.push(word.clone());
                }
                "--repeats" => scale.repeat(value()?.parse()?),
                "--first-repeat" => first_repeat = value()?.parse()?,
                "--arrivals" => scale.arrivals = value()?.parse()?,
                "--only" => scale.only = value()?.split(',').map(str::to_owned).collect(),
                "--sections" => value()?.clone_into(&mut sections),
                "--about" => value()?.clone_into(&mut about),
                "--directory" => directory = PathBuf::from(value()?),
                name if !name.starts_with('-') && file.is_none() => file = Some(name.into()),
                _ => return Err(USAGE.into()),
            }
        }
        let file = file.ok_or(USAGE)?;
        Ok(Self { scale, sections, about, directory, first_repeat, file, how })
    }

    /// What the results say of the run, line by line.
    fn lines(&self) -> Vec<String> {
        let how = if self.how.is_empty() { "none".to_owned() } else { self.how.join(" ") };
        vec![
            format!("{}; {}", self.about, machine::description()),
            format!("arguments: {how}"),
            format!("versions: {}", versions::line()),
        ]
    }

    /// Whether a section of the run writes such a point.
    fn writes(&self, section: &str, point: &Point) -> bool {
        // A section has results under its own name, with more words behind or not.
        let is_own = |name| point.section.split(' ').next() == Some(name);
        match section {
            "memory" => is_own("memory") && point.n == self.scale.n,
            "large" => is_own("memory") && point.n == self.scale.large,
            "latency" => is_own("latency") && point.n == self.scale.arrivals,
            other => is_own(other),
        }
    }
}

fn run(words: &[String]) -> Result<()> {
    let asked = Asked::parse(words)?;
    let results = Results::append(&asked.file)?;
    let (directory, first_repeat) = (asked.directory.clone(), asked.first_repeat);
    // Some sections have fewer repeats than that.
    let Scale { repeats, repeats_slow, repeats_long, .. } = asked.scale;
    let repeats = repeats.max(repeats_slow).max(repeats_long);
    let repeats = first_repeat..first_repeat + repeats;
    let mut driver = Driver { results, directory, failures: vec![], first_repeat };
    for section in asked.sections.split(',') {
        driver.results.refuse(section, repeats.clone(), |point| asked.writes(section, point))?;
    }
    driver.results.begin(&asked.lines())?;
    for section in asked.sections.split(',') {
        let start = Instant::now();
        plan::run(&mut driver, section, &asked.scale)?;
        eprintln!("== {section}: {:.0} s", start.elapsed().as_secs_f64());
    }
    report(&asked.file)?;
    match driver.failures.is_empty() {
        true => Ok(()),
        false => Err(format!("failed:\n{}", driver.failures.join("\n")).into()),
    }
}

/// Writes the report and the pictures beside the results.
fn report(file: &Path) -> Result<()> {
    let table = Table::read(file)?;
    let stem = file.file_stem().and_then(|it| it.to_str()).ok_or("the results need a name")?;
    let mut names = vec![];
    for picture in plot::pictures(&table) {
        let name = format!("{stem}-{}.svg", picture.name);
        std::fs::write(file.with_file_name(&name), picture.svg)?;
        names.push(name);
    }
    let text = Report::of(&table, &names);
    print!("{text}");
    std::fs::write(file.with_extension("md"), text)?;
    Ok(())
}
