//! refrain beside every alternative, on one machine, in one run.
//!
//! `peers run` measures and writes CSV, a report and pictures; `peers report FILE.csv` makes the report
//! anew. `scripts/bench-peers.sh` builds and runs it; docs/BENCHMARKS.md says how to read it.
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
mod targets;
mod workloads;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use driver::Driver;
use jobs::Order;
use plan::{SECTIONS, Scale};
use report::Report;
use results::{Results, Table};
use store::Result;

/// Of every contestant, refrain too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str =
    "usage: peers run [--quick] [--repeats N] [--first-repeat N] [--sections a,b,..] [--about TEXT]
                 [--directory DIR] [--arrivals N] [--only PEER,..] RESULTS.csv
       peers report RESULTS.csv
The sections are memory, large, durable, sync, hot, footprint, reopen and latency. Results that are
there are kept: sections can be run one by one into the same file, and repeats, of which --first-repeat
says how many are there. --arrivals is how many the latency run
has; --only names the peers that take part in memory and large.";

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

fn run(words: &[String]) -> Result<()> {
    let (mut scale, mut chosen) = (Scale::FULL, SECTIONS.join(","));
    let (mut about, mut directory) = (String::new(), std::env::temp_dir());
    let (mut file, mut first_repeat) = (None, 0);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match &**word {
            "--quick" => scale = Scale::QUICK,
            "--repeats" => scale.repeat(words.next().ok_or(USAGE)?.parse()?),
            "--first-repeat" => first_repeat = words.next().ok_or(USAGE)?.parse()?,
            "--arrivals" => scale.arrivals = words.next().ok_or(USAGE)?.parse()?,
            "--only" => {
                let names = words.next().ok_or(USAGE)?.split(',');
                scale.only = names.map(str::to_owned).collect();
            }
            "--sections" => words.next().ok_or(USAGE)?.clone_into(&mut chosen),
            "--about" => words.next().ok_or(USAGE)?.clone_into(&mut about),
            "--directory" => directory = PathBuf::from(words.next().ok_or(USAGE)?),
            name if !name.starts_with('-') && file.is_none() => file = Some(PathBuf::from(name)),
            _ => return Err(USAGE.into()),
        }
    }
    let file = file.ok_or(USAGE)?;
    let results = Results::append(&file, &format!("{about}; {}", machine::description()))?;
    let mut driver = Driver { results, directory, failures: vec![], first_repeat };
    for section in chosen.split(',') {
        let start = Instant::now();
        plan::run(&mut driver, section, &scale)?;
        eprintln!("== {section}: {:.0} s", start.elapsed().as_secs_f64());
    }
    report(&file)?;
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
