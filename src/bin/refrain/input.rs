//! Files into batches of lines with their keys, on a thread of its own.
//!
//! A batch is what one read brought, so nothing waits for more to come; whoever takes batches may
//! join them. The bytes of a line are passed on as they are; a last line without a newline gets one.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;

use csv_core::{ReadRecordResult, Reader, ReaderBuilder, Terminator};
use memchr::memchr;

use crate::exit::Failure;
use crate::key::{Key, KeyRule, columns_key, pattern_key, pointer_key};

/// Bytes asked for by one read.
const READ_BYTES: usize = 256 << 10;

/// Most lines of a batch.
pub const BATCH_LINES_MAX: usize = 8192;

/// Longest line. An unclosed quote makes one line of the rest of a file.
const LINE_BYTES_MAX: usize = 64 << 20;

/// How input is read.
#[derive(Clone, Debug)]
pub struct InputRules {
    pub key: KeyRule,
    pub delimiter: u8,
    /// The first line of each file names its columns.
    pub has_header: bool,
    /// A line without a key ends the run.
    pub is_strict: bool,
}

/// Lines, and the key of each.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Keys that are no part of their line.
    made: Vec<u8>,
    lines: Vec<Line>,
    /// The header of the first file, with its newline, in the first batch of all.
    pub header: Option<Vec<u8>>,
    /// Bytes that were read for this batch.
    pub read: u64,
}

#[derive(Clone, Copy, Debug)]
struct Line {
    /// With its newline.
    start: usize,
    end: usize,
    key: KeyPlace,
}

#[derive(Clone, Copy, Debug)]
enum KeyPlace {
    None,
    Line { start: usize, end: usize },
    Made { start: usize, end: usize },
}

impl Batch {
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Bytes of all lines.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Each line with its newline, and its key if it has one.
    pub fn lines(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.lines.iter().map(|line| {
            let key = match line.key {
                KeyPlace::None => None,
                KeyPlace::Line { start, end } => Some(&self.bytes[start..end]),
                KeyPlace::Made { start, end } => Some(&self.made[start..end]),
            };
            (&self.bytes[line.start..line.end], key)
        })
    }
}

/// Where lines come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    Stdin,
    File(PathBuf),
}

impl Source {
    pub fn of(path: &Path) -> Self {
        if path == Path::new("-") { Self::Stdin } else { Self::File(path.to_owned()) }
    }

    fn name(&self) -> String {
        match self {
            Self::Stdin => "standard input".to_owned(),
            Self::File(path) => path.display().to_string(),
        }
    }

    /// Bytes it has, if that is known. Fails if it could not be read, before anything is.
    pub fn probe(&self) -> Result<Option<u64>, Failure> {
        let Self::File(path) = self else { return Ok(None) };
        let metadata = match path.metadata() {
            // Opening a pipe would wait for its writer.
            Ok(metadata) if !metadata.is_file() && !metadata.is_dir() => return Ok(None),
            Ok(metadata) if metadata.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            Ok(metadata) => File::open(path).map(|_| metadata.len()),
            Err(error) => Err(error),
        };
        metadata.map(Some).map_err(|error| Failure::Input { place: self.name(), error })
    }

    fn open(&self) -> io::Result<Box<dyn Read>> {
        Ok(match self {
            Self::Stdin => Box::new(io::stdin().lock()),
            Self::File(path) => Box::new(File::open(path)?),
        })
    }
}

/// Reads all sources and sends their lines, until the end or until nobody takes them.
pub fn read_all(
    sources: &[Source],
    rules: &InputRules,
    batches: &SyncSender<Batch>,
) -> Result<(), Failure> {
    let mut cutter = Cutter::new(rules, batches);
    for source in sources {
        let name = source.name();
        let fail = |error| Failure::Input { place: name.clone(), error };
        let mut reader = source.open().map_err(fail)?;
        cutter.start(&name);
        loop {
            let got = match cutter.read(&mut *reader) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                got => got.map_err(fail)?,
            };
            let went_on = if got == 0 { cutter.end() } else { cutter.cut() };
            match went_on {
                Ok(()) if got == 0 => break,
                Ok(()) => {}
                Err(Stop::NobodyListens) => return Ok(()),
                Err(Stop::Failure(failure)) => return Err(failure),
            }
        }
    }
    Ok(())
}

/// Why cutting stops.
enum Stop {
    NobodyListens,
    Failure(Failure),
}

/// Cuts what is read into lines.
struct Cutter<'a> {
    rules: &'a InputRules,
    batches: &'a SyncSender<Batch>,
    /// Its `bytes` may go on behind its lines: with what was read, up to `filled`, and with room.
    batch: Batch,
    filled: usize,
    /// Where the line that is being read starts.
    line_start: usize,
    /// Up to where it was looked at.
    looked: usize,
    csv: Option<Csv>,
    name: String,
    line_number: u64,
    is_header_next: bool,
    has_header: bool,
}

impl<'a> Cutter<'a> {
    fn new(rules: &'a InputRules, batches: &'a SyncSender<Batch>) -> Self {
        Self {
            rules,
            batches,
            batch: Batch::default(),
            filled: 0,
            line_start: 0,
            looked: 0,
            csv: None,
            name: String::new(),
            line_number: 0,
            is_header_next: false,
            has_header: false,
        }
    }

    fn start(&mut self, name: &str) {
        name.clone_into(&mut self.name);
        self.line_number = 0;
        self.is_header_next = self.rules.has_header;
        self.csv =
            matches!(self.rules.key, KeyRule::Columns(_)).then(|| Csv::new(self.rules.delimiter));
    }

    fn read(&mut self, reader: &mut dyn Read) -> io::Result<usize> {
        // A long line doubles what is asked for, so that it is moved a few times only.
        let wanted = self.filled + READ_BYTES.max(self.filled - self.line_start);
        if self.batch.bytes.len() < wanted {
            self.batch.bytes.resize(wanted, 0);
        }
        let got = reader.read(&mut self.batch.bytes[self.filled..])?;
        self.filled += got;
        self.batch.read += got as u64;
        Ok(got)
    }

    /// Cuts what was read, and sends it.
    fn cut(&mut self) -> Result<(), Stop> {
        while let Some(end) = self.find_end() {
            self.take_line(end)?;
            if self.batch.lines.len() == BATCH_LINES_MAX {
                self.send()?;
            }
        }
        self.send()?;
        if self.filled > LINE_BYTES_MAX {
            let longer = if self.csv.is_some() {
                "a line of more than 64 MiB: is a quote left open?"
            } else {
                "a line of more than 64 MiB"
            };
            self.line_number += 1;
            let error = io::Error::new(io::ErrorKind::InvalidData, longer);
            return Err(Stop::Failure(Failure::Input { place: self.place(), error }));
        }
        Ok(())
    }

    /// The file has ended: what is left of it is a line.
    fn end(&mut self) -> Result<(), Stop> {
        if self.filled > self.line_start {
            self.batch.bytes.truncate(self.filled);
            self.batch.bytes.push(b'\n');
            self.filled += 1;
            if let Some(csv) = &mut self.csv {
                csv.end();
            }
            self.take_line(self.filled)?;
        }
        self.send()
    }

    /// Where the line ends, behind its newline, if that was read.
    fn find_end(&mut self) -> Option<usize> {
        let unseen = &self.batch.bytes[self.looked..self.filled];
        let found = match &mut self.csv {
            Some(csv) => csv.find_end(unseen),
            None => memchr(b'\n', unseen).map(|at| at + 1),
        };
        self.looked = found.map_or(self.filled, |len| self.looked + len);
        found.map(|_| self.looked)
    }

    fn take_line(&mut self, end: usize) -> Result<(), Stop> {
        let start = std::mem::replace(&mut self.line_start, end);
        self.looked = end;
        self.line_number += 1;
        if std::mem::take(&mut self.is_header_next) {
            if !std::mem::replace(&mut self.has_header, true) {
                self.batch.header = Some(self.batch.bytes[start..end].to_vec());
            }
            if let Some(csv) = &mut self.csv {
                csv.clear();
            }
            // Nothing points to it.
            return Ok(());
        }
        let key = self.key(start, end);
        if self.rules.is_strict && matches!(key, KeyPlace::None) {
            self.send()?;
            return Err(Stop::Failure(Failure::Keyless { place: self.place() }));
        }
        self.batch.lines.push(Line { start, end, key });
        Ok(())
    }

    fn key(&mut self, start: usize, end: usize) -> KeyPlace {
        let line = &self.batch.bytes[start..end - 1];
        let key = match (&self.rules.key, &mut self.csv) {
            (KeyRule::Whole, _) => return KeyPlace::Line { start, end: end - 1 },
            (KeyRule::Columns(columns), Some(csv)) => {
                let before = self.batch.made.len();
                let made = &mut self.batch.made;
                let is_there = columns_key(columns, |column| csv.field(column, line), made);
                csv.clear();
                if is_there.is_none() {
                    made.truncate(before);
                    return KeyPlace::None;
                }
                return KeyPlace::Made { start: before, end: made.len() };
            }
            (KeyRule::Columns(_), None) => Key::None,
            (KeyRule::Pointer(pointer), _) => pointer_key(line, pointer),
            (KeyRule::Pattern(pattern), _) => pattern_key(line, pattern),
        };
        let made = &mut self.batch.made;
        let before = made.len();
        match key {
            Key::None => return KeyPlace::None,
            Key::Part(part) => made.extend_from_slice(part),
            Key::Made(key) => made.extend_from_slice(&key),
        }
        KeyPlace::Made { start: before, end: made.len() }
    }

    /// Sends the lines there are; what was read behind them goes on in the next batch.
    fn send(&mut self) -> Result<(), Stop> {
        let is_empty = self.batch.lines.is_empty() && self.batch.header.is_none();
        if is_empty && self.line_start == 0 {
            return Ok(());
        }
        let rest = self.batch.bytes[self.line_start..self.filled].to_vec();
        self.looked -= self.line_start;
        self.filled -= self.line_start;
        let lines_end = std::mem::take(&mut self.line_start);
        let mut batch =
            std::mem::replace(&mut self.batch, Batch { bytes: rest, ..Batch::default() });
        batch.bytes.truncate(lines_end);
        if is_empty {
            return Ok(());
        }
        self.batches.send(batch).map_err(|_| Stop::NobodyListens)
    }

    fn place(&self) -> String {
        format!("{}, line {}", self.name, self.line_number)
    }
}

/// Finds the lines of CSV, and their fields.
struct Csv {
    reader: Reader,
    /// Contents of the fields, and where each ends; more room than is used.
    text: Vec<u8>,
    text_len: usize,
    ends: Vec<usize>,
    fields: usize,
    is_at_start: bool,
}

impl Csv {
    fn new(delimiter: u8) -> Self {
        let reader =
            ReaderBuilder::new().delimiter(delimiter).terminator(Terminator::Any(b'\n')).build();
        let (text, ends) = (vec![0; 4096], vec![0; 64]);
        Self { reader, text, text_len: 0, ends, fields: 0, is_at_start: true }
    }

    /// Goes on with the line; how far it goes, with its newline, if it ends in `bytes`.
    fn find_end(&mut self, bytes: &[u8]) -> Option<usize> {
        if self.is_at_start && bytes.first() == Some(&b'\n') {
            // The parser would pass over a line without anything. It has one field.
            (self.ends[0], self.fields) = (0, 1);
            return Some(1);
        }
        let mut used = 0;
        while used < bytes.len() {
            self.is_at_start = false;
            let (result, read, written, ended) = self.reader.read_record(
                &bytes[used..],
                &mut self.text[self.text_len..],
                &mut self.ends[self.fields..],
            );
            used += read;
            self.text_len += written;
            self.fields += ended;
            match result {
                ReadRecordResult::Record => return Some(used),
                ReadRecordResult::InputEmpty | ReadRecordResult::End => return None,
                ReadRecordResult::OutputFull => self.text.resize(2 * self.text.len(), 0),
                ReadRecordResult::OutputEndsFull => self.ends.resize(2 * self.ends.len(), 0),
            }
        }
        None
    }

    /// Nothing follows: closes what is open.
    fn end(&mut self) {
        while !self.is_at_start {
            let (text, ends) = (&mut self.text[self.text_len..], &mut self.ends[self.fields..]);
            let (result, _, written, ended) = self.reader.read_record(&[], text, ends);
            self.text_len += written;
            self.fields += ended;
            match result {
                ReadRecordResult::OutputFull => self.text.resize(2 * self.text.len(), 0),
                ReadRecordResult::OutputEndsFull => self.ends.resize(2 * self.ends.len(), 0),
                _ => return,
            }
        }
    }

    /// A field of the line that was found; `line` is that line without its newline.
    fn field(&self, column: usize, line: &[u8]) -> Option<&[u8]> {
        let ends = &self.ends[..self.fields];
        let end = *ends.get(column)?;
        let start = column.checked_sub(1).map_or(0, |before| ends[before]);
        let field = &self.text[start..end];
        // The carriage return of a line that ends with both is none of its last field.
        let is_last = column + 1 == self.fields;
        match field.strip_suffix(b"\r") {
            Some(stripped) if is_last && line.ends_with(b"\r") => Some(stripped),
            _ => Some(field),
        }
    }

    fn clear(&mut self) {
        (self.text_len, self.fields, self.is_at_start) = (0, 0, true);
    }
}
