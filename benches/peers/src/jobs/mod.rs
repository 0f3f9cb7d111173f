//! Jobs: what a child process does with one contestant, and prints as lines of `metric value`.

pub mod footprint;
pub mod latency;
pub mod limits;
pub mod pairs;
pub mod reopen;
pub mod speed;

use std::collections::HashMap;
use std::path::PathBuf;

use crate::contestants;
use crate::store::{Mode, Result, Setup};

/// What the parent asks a child for: a job, a contestant, and numbers by name.
pub struct Order {
    pub job: String,
    pub store: String,
    pub mode: Mode,
    pub directory: PathBuf,
    numbers: HashMap<String, f64>,
}

impl Order {
    /// `job store mode directory name=number...`
    pub fn parse(words: &[String]) -> Result<Self> {
        let [job, store, mode, directory, numbers @ ..] = words else {
            return Err("a child needs a job, a contestant, a mode and a directory".into());
        };
        let mut parsed = HashMap::new();
        for word in numbers {
            let (name, number) = word.split_once('=').ok_or("a number needs a name")?;
            parsed.insert(name.to_owned(), number.parse()?);
        }
        let mode = Mode::parse(mode).ok_or("no such mode")?;
        let directory = PathBuf::from(directory);
        Ok(Self { job: job.clone(), store: store.clone(), mode, directory, numbers: parsed })
    }

    pub fn number(&self, name: &str) -> Result<f64> {
        self.numbers.get(name).copied().ok_or_else(|| format!("{name} is missing").into())
    }

    pub fn count(&self, name: &str) -> Result<usize> {
        Ok(self.number(name)? as usize)
    }

    /// To open the contestant in a part of the directory.
    pub fn setup(&self, part: &str) -> Result<Setup> {
        let directory = self.directory.join(part);
        std::fs::create_dir_all(&directory)?;
        let is_ready = contestants::is_ready(&self.store);
        Ok(Setup { mode: self.mode, directory, keys: self.count("n")?, is_ready })
    }
}

/// Tells the parent.
pub fn tell(metric: &str, value: f64) {
    println!("{metric} {value}");
}

/// Does what is ordered.
pub fn run(order: &Order) -> Result<()> {
    match &*order.job {
        "speed" => contestants::run(&order.store, &speed::Speed(order)),
        "footprint" => contestants::run(&order.store, &footprint::Footprint(order)),
        "pairs" => contestants::run(&order.store, &pairs::Pairs(order)),
        "hot" => contestants::run(&order.store, &pairs::Hot(order)),
        "fill" => contestants::run(&order.store, &reopen::Fill(order)),
        "reopen" => contestants::run(&order.store, &reopen::Reopen(order)),
        "latency" => contestants::run(&order.store, &latency::Latency(order)),
        "in flight" => limits::in_flight(order),
        "fdatasync" => limits::fdatasync(order),
        "hash" => limits::hash(order),
        other => Err(format!("no job is called {other}").into()),
    }
}
