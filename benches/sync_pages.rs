//! What does one fdatasync cost, by what was written before it?
//!
//! A file of 64 MiB written with zeros, one small append a sync, three ways in turn: by positioned
//! write; the same with a second page of the file written beside it, as a mark is; stored through a
//! shared mapping. They alternate, because the machine drifts; the ratios are what counts.
//! Decisions 0005 and 0006 rest on them. Runs in the directory that `TMPDIR` names.
#![allow(missing_docs, reason = "a program")]
#![allow(unsafe_code, reason = "storing through a mapping is")]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use memmap2::MmapMut;

const FILE_BYTES: usize = 64 << 20;
const PAGE: usize = 4096;
const RECORD: [u8; 144] = [7; 144];
const MARK: [u8; 96] = [3; 96];
const SYNCS: usize = 2000;
const REPEATS: usize = 5;

fn filled() -> io::Result<File> {
    let file = tempfile::tempfile()?;
    for page in 0..FILE_BYTES / PAGE {
        file.write_all_at(&[0; PAGE], (page * PAGE) as u64)?;
    }
    file.sync_all()?;
    Ok(file)
}

fn main() -> io::Result<()> {
    let file = filled()?;
    // SAFETY: the file is temporary and this process's alone; it is never shortened.
    let mut map = unsafe { MmapMut::map_mut(&file) }?;
    let names = ["one page, positioned", "two pages, positioned", "one page, mapped"];
    // Each way appends in a third of the file of its own.
    let mut at = [1, 2, 3].map(|third| third * FILE_BYTES / 4);
    println!("{SYNCS} syncs of each kind, alternating; microseconds, p50 (p99), ratio of p50");
    for _ in 0..REPEATS {
        let mut times = [const { Vec::new() }; 3];
        for round in 0..SYNCS {
            for way in 0..3 {
                let start = Instant::now();
                match way {
                    0 => file.write_all_at(&RECORD, at[way] as u64)?,
                    1 => {
                        file.write_all_at(&MARK, (PAGE * (1 + round % 7)) as u64)?;
                        file.write_all_at(&RECORD, at[way] as u64)?;
                    }
                    _ => map[at[way]..][..RECORD.len()].copy_from_slice(&RECORD),
                }
                file.sync_data()?;
                times[way].push(start.elapsed().as_secs_f64() * 1e6);
                at[way] += RECORD.len();
            }
        }
        for way in &mut times {
            way.sort_by(f64::total_cmp);
        }
        let base = times[0][SYNCS / 2];
        let line = names.iter().zip(&times).map(|(name, times)| {
            let (p50, p99) = (times[SYNCS / 2], times[SYNCS * 99 / 100]);
            format!("{name} {p50:.0} ({p99:.0}) {:.2}", p50 / base)
        });
        println!("{}", line.collect::<Vec<_>>().join(" | "));
    }
    Ok(())
}
