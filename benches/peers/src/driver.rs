//! The parent: starts a fresh child for each contestant and repeat, and collects what it prints.
//!
//! Within a repeat the contestants follow one another, shuffled anew each time, so that a slow
//! spell of the machine meets them all, and none runs always right behind the same other. A child
//! that fails is told of, in the results too, and the run goes on.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::contestants::Contestant;
use crate::keys::random;
use crate::results::{Measured, Point, Results};
use crate::store::{Mode, Result};

pub struct Driver {
    pub results: Results,
    /// Where the stores lie while they are measured.
    pub directory: PathBuf,
    pub failures: Vec<String>,
    /// The number of the first repeat: how many are there from an earlier run into the same file.
    pub first_repeat: usize,
}

/// What a child is to do.
#[derive(Clone)]
pub struct Task {
    pub section: &'static str,
    pub job: &'static str,
    pub store: String,
    pub mode: Mode,
    pub n: usize,
    pub threads: usize,
    pub numbers: Vec<(&'static str, f64)>,
    /// How long the heap keeps memory that is free: -1 is for ever.
    pub purge_delay: i32,
    /// Done in the first repeats only, so many.
    pub repeats_max: usize,
}

/// The metric of a child that failed; its value is 1.
const FAILED: &str = "failed";

impl Task {
    pub fn new(section: &'static str, job: &'static str, who: &Contestant) -> Self {
        Self {
            section,
            job,
            store: who.name.to_owned(),
            mode: who.mode,
            n: 1,
            threads: 1,
            numbers: vec![],
            purge_delay: -1,
            repeats_max: usize::MAX,
        }
    }

    pub fn size(mut self, n: usize, threads: usize) -> Self {
        (self.n, self.threads) = (n, threads);
        self
    }

    pub fn with(mut self, name: &'static str, number: f64) -> Self {
        self.numbers.push((name, number));
        self
    }

    /// Tells the heap to give back at once what it does not use.
    pub fn purging(mut self) -> Self {
        self.purge_delay = 0;
        self
    }

    /// For what takes long: done in so many repeats, however many there are.
    pub fn at_most(mut self, repeats: usize) -> Self {
        self.repeats_max = repeats;
        self
    }

    fn number(&self, name: &str) -> f64 {
        self.numbers.iter().find(|(it, _)| *it == name).map_or(0.0, |it| it.1)
    }

    fn point(&self, metric: &str) -> Point {
        Point {
            section: self.section.to_owned(),
            store: self.store.clone(),
            mode: self.mode.name(),
            n: self.n,
            threads: self.threads,
            metric: metric.to_owned(),
        }
    }

    fn name(&self) -> String {
        let Self { section, store, mode, n, threads, .. } = self;
        format!("{section}: {store} ({}), n {n}, {threads} threads", mode.name())
    }

    fn command(&self, directory: &Path, repeat: usize) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("child").args([self.job, &self.store, self.mode.name()]).arg(directory);
        let own = [("n", self.n), ("threads", self.threads), ("repeat", repeat)];
        for (name, number) in own {
            command.arg(format!("{name}={number}"));
        }
        for (name, number) in &self.numbers {
            command.arg(format!("{name}={number}"));
        }
        command.env("MIMALLOC_PURGE_DELAY", self.purge_delay.to_string()).stdout(Stdio::piped());
        Ok(command)
    }
}

/// A child at work, and the lines that it prints.
struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Running {
    fn start(mut command: Command) -> Result<Self> {
        let mut child = command.spawn()?;
        let output = child.stdout.take().ok_or("a child has no output")?;
        Ok(Self { child, lines: BufReader::new(output).lines() })
    }

    /// The next metric, or `None` when the child has ended.
    fn next(&mut self) -> Result<Option<(String, f64)>> {
        let Some(line) = self.lines.next() else { return Ok(None) };
        let line = line?;
        let (metric, value) = line.rsplit_once(' ').ok_or("a child printed no metric")?;
        Ok(Some((metric.to_owned(), value.parse()?)))
    }

    fn end(mut self) -> Result<()> {
        match self.child.wait()? {
            status if status.success() => Ok(()),
            status => Err(format!("a child ended with {status}").into()),
        }
    }
}

impl Driver {
    /// Does the tasks so many times, in another order each time.
    pub fn interleave(&mut self, tasks: &[Task], repeats: usize) {
        for repeat in self.first_repeat..self.first_repeat + repeats {
            for nth in shuffled(tasks.len(), repeat as u64) {
                if repeat < tasks[nth].repeats_max {
                    let done = self.measure(&tasks[nth], repeat);
                    self.note(&tasks[nth], repeat, done);
                }
            }
        }
    }

    /// Says how a child ended, and keeps that it failed.
    fn note(&mut self, task: &Task, repeat: usize, done: Result<()>) {
        let name = task.name();
        let Err(mut error) = done else { return eprintln!("{name}") };
        let failed = Measured { point: task.point(FAILED), repeat, value: 1.0 };
        if let Err(unwritten) = self.results.push(&failed) {
            error = format!("{error}, and that was not written: {unwritten}").into();
        }
        eprintln!("{name}: FAILED, {error}");
        self.failures.push(format!("{name}: {error}"));
    }

    fn measure(&mut self, task: &Task, repeat: usize) -> Result<()> {
        let directory = tempfile::tempdir_in(&self.directory)?;
        match task.job {
            "reopen" => self.fill_and_reopen(task, repeat, directory.path()),
            _ => self.run(task, repeat, directory.path()),
        }
    }

    /// Runs a child to its end and keeps what it measured.
    fn run(&mut self, task: &Task, repeat: usize, directory: &Path) -> Result<()> {
        let mut running = Running::start(task.command(directory, repeat)?)?;
        let mut metrics = vec![];
        while let Some((metric, value)) = running.next()? {
            metrics.push((metric, value));
        }
        running.end()?;
        for (metric, value) in metrics {
            self.results.push(&Measured { point: task.point(&metric), repeat, value })?;
        }
        Ok(())
    }

    /// The one number that a child measures, not kept; `None` if it failed, which is.
    pub fn ask(&mut self, task: &Task, repeat: usize) -> Option<f64> {
        match self.first_number(task, repeat) {
            Ok(number) => {
                eprintln!("{}: {number:.0}", task.name());
                Some(number)
            }
            Err(error) => {
                self.note(task, repeat, Err(error));
                None
            }
        }
    }

    fn first_number(&self, task: &Task, repeat: usize) -> Result<f64> {
        let directory = tempfile::tempdir_in(&self.directory)?;
        let mut running = Running::start(task.command(directory.path(), repeat)?)?;
        let metric = running.next()?;
        running.end()?;
        Ok(metric.ok_or("a child measured nothing")?.1)
    }

    /// Fills in one child, which is killed when `n` keys are acknowledged or its time is over, or
    /// else closes; and opens in the next.
    fn fill_and_reopen(&mut self, task: &Task, repeat: usize, directory: &Path) -> Result<()> {
        let (cap, is_killed) = (task.number("cap"), task.number("killed") > 0.0);
        let fill = Task { job: "fill", ..task.clone() };
        let mut running = Running::start(fill.command(directory, repeat)?)?;
        let (mut acknowledged, mut server, mut start) = (0.0, 0, None);
        while let Some((metric, value)) = running.next()? {
            match &*metric {
                "process" => server = value as i32,
                _ => acknowledged = value,
            }
            let start = start.get_or_insert_with(std::time::Instant::now);
            let is_over = acknowledged >= task.n as f64 || start.elapsed().as_secs_f64() > cap;
            if is_killed && is_over && acknowledged > 0.0 {
                // The server first, where there is one: it would outlive the child.
                if let Some(server) = Pid::from_raw(server) {
                    kill_process(server, Signal::KILL)?;
                }
                running.child.kill()?;
                break;
            }
        }
        if is_killed {
            // What it was acknowledged and could still tell counts too.
            while let Some((_, value)) = running.next().unwrap_or(None) {
                acknowledged = f64::max(acknowledged, value);
            }
            running.child.wait()?;
        } else {
            running.end()?;
        }
        let reopen = Task { job: "reopen", ..task.clone() }.with("acknowledged", acknowledged);
        self.run(&reopen, repeat, directory)
    }
}

/// The numbers below `count`, in an order that follows from the seed.
fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let (mut order, mut state): (Vec<usize>, u64) = ((0..count).collect(), seed);
    for last in (1..count).rev() {
        let chosen = (u128::from(random(&mut state)) * (last as u128 + 1)) >> 64;
        order.swap(last, chosen as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_repeat_has_all_in_another_order() {
        let orders: Vec<_> = (0..5).map(|repeat| shuffled(20, repeat)).collect();
        for (repeat, order) in orders.iter().enumerate() {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..20).collect::<Vec<_>>());
            assert_eq!(*order, shuffled(20, repeat as u64));
            assert!(orders[..repeat].iter().all(|earlier| earlier != order));
        }
    }
}
