//! What does one durable append cost, by the way in which it is written?
//!
//! One small append a sync, four ways in turn: by positioned write; the same with a second page of the file
//! written beside it, as a mark is; stored through a shared mapping; and past the page cache (`O_DIRECT` and
//! `O_DSYNC`), a page or two at a time, which needs no sync after it. They alternate, because the machine
//! drifts; the ratios are what counts. Once in a file that was written with zeros and never since, and once in
//! the same file full of records, closed and opened again, as a segment is that is recycled. Bytes and writes
//! are the device's, counted around each append, also for others that were busy on it meanwhile. Decisions
//! 0005 and 0006 rest on them. Runs in the directory that `TMPDIR` names.
#![allow(missing_docs, reason = "a program")]
#![allow(unsafe_code, reason = "storing through a mapping is")]

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use memmap2::MmapMut;
use rustix::fs::OFlags;

const FILE_BYTES: usize = 64 << 20;
const PAGE: usize = 4096;
const RECORD: [u8; 144] = [7; 144];
const MARK: [u8; 96] = [3; 96];
const SYNCS: usize = 1000;
const REPEATS: usize = 5;
const WAYS: [&str; 4] = ["positioned", "two pages", "mapped", "direct"];

/// What one way of appending has taken.
#[derive(Default)]
struct Taken {
    microseconds: Vec<f64>,
    device_bytes: u64,
    device_writes: u64,
}

/// Bytes and writes of the device that a file lies on, so far.
fn written(file: &File) -> (u64, u64) {
    let device = file.metadata().map_or(0, |it| it.dev());
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xfff00);
    let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat"));
    let stat = stat.unwrap_or_default();
    let field = |at| stat.split_whitespace().nth(at).and_then(|it| it.parse().ok()).unwrap_or(0);
    (field(6) * 512, field(4))
}

/// Appends and makes durable, by all ways in turn, each in a part of the file of its own.
fn measure(path: &Path, kind: &str) -> io::Result<()> {
    let open = |flags: OFlags| {
        // A bit set of the kernel's.
        let flags = flags.bits() as i32;
        File::options().read(true).write(true).custom_flags(flags).open(path)
    };
    let file = open(OFlags::empty())?;
    let direct = match open(OFlags::DIRECT | OFlags::DSYNC) {
        Ok(direct) => Some(direct),
        Err(error) => {
            println!("no direct writes here: {error}");
            None
        }
    };
    // SAFETY: the file is temporary and this process's alone; it is never shortened.
    let mut map = unsafe { MmapMut::map_mut(&file) }?;
    // Aligned, as direct writes want it: what the last pages of that part hold.
    let mut image = MmapMut::map_anon(2 * PAGE)?;
    let starts: [usize; 4] = std::array::from_fn(|way| (way + 1) * (FILE_BYTES / 5 / PAGE * PAGE));
    let mut at = starts;
    for _ in 0..REPEATS {
        let mut taken: [Taken; 4] = Default::default();
        for round in 0..SYNCS {
            for (way, taken) in taken.iter_mut().enumerate() {
                let (before, start) = (written(&file), Instant::now());
                match way {
                    0 => file.write_all_at(&RECORD, at[way] as u64)?,
                    1 => {
                        file.write_all_at(&MARK, (PAGE * (1 + round % 7)) as u64)?;
                        file.write_all_at(&RECORD, at[way] as u64)?;
                    }
                    2 => map[at[way]..][..RECORD.len()].copy_from_slice(&RECORD),
                    _ => {
                        let Some(direct) = &direct else { continue };
                        let (page, within) = (at[way] / PAGE * PAGE, at[way] % PAGE);
                        image[within..][..RECORD.len()].copy_from_slice(&RECORD);
                        let end = (within + RECORD.len()).next_multiple_of(PAGE);
                        direct.write_all_at(&image[..end], page as u64)?;
                        if (within + RECORD.len()) / PAGE == 1 {
                            image.copy_within(PAGE.., 0);
                            image[PAGE..].fill(0);
                        }
                    }
                }
                if way < 3 {
                    file.sync_data()?;
                }
                taken.microseconds.push(start.elapsed().as_secs_f64() * 1e6);
                let after = written(&file);
                taken.device_bytes += after.0 - before.0;
                taken.device_writes += after.1 - before.1;
                at[way] += RECORD.len();
            }
        }
        let base = p(&mut taken[0].microseconds, 50);
        let each = |sum: u64| sum as f64 / SYNCS as f64;
        let line = WAYS.iter().zip(&mut taken).map(|(name, taken)| {
            let (p50, p99) = (p(&mut taken.microseconds, 50), p(&mut taken.microseconds, 99));
            let (bytes, writes) = (each(taken.device_bytes), each(taken.device_writes));
            format!("{name} {p50:.0} ({p99:.0}) {:.2} x {bytes:.0} B {writes:.1} w", p50 / base)
        });
        println!("{kind:<9} {}", line.collect::<Vec<_>>().join(" | "));
    }
    Ok(())
}

/// A percentile; 0 of nothing.
fn p(times: &mut [f64], percent: usize) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() * percent / 100).copied().unwrap_or(0.0)
}

fn main() -> io::Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    let fill = |content: [u8; PAGE]| {
        for page in 0..FILE_BYTES / PAGE {
            file.as_file().write_all_at(&content, (page * PAGE) as u64)?;
        }
        file.as_file().sync_all()
    };
    println!(
        "{SYNCS} of each way, alternating; microseconds p50 (p99), p50 beside the first, bytes and \
         writes of the device an append"
    );
    fill([0; PAGE])?;
    measure(file.path(), "new")?;
    fill([9; PAGE])?;
    measure(file.path(), "recycled")
}
