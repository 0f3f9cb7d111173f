//! SQLite by `rusqlite`: WAL, `synchronous` OFF or, in `power` mode, FULL; one statement a call,
//! on a connection a thread; a look, then `INSERT OR IGNORE`. With OFF, its docs say, data is safe
//! when the process dies, as LMDB's is with `NO_SYNC`. It has one writer at a time, and one that
//! comes second sleeps for milliseconds: writers wait for a lock of the process instead. Cache of
//! 512 MB a connection, 4 GiB mapped, a table without row ids. Completes without a look at the
//! token.

use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, params};

use super::value::{self, Value};
use crate::keys::{Bodies, Body, Key, fingerprint};
use crate::store::{Answer, Hand, Mode, Result, Setup, State, Store};

pub struct Sqlite {
    path: PathBuf,
    mode: Mode,
    /// Held by whoever writes.
    writer: Mutex<()>,
}

fn connect(path: &Path, mode: Mode) -> Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(60))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    let synchronous = if mode == Mode::Power { "FULL" } else { "OFF" };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "cache_size", -512_000)?;
    connection.pragma_update(None, "mmap_size", 4i64 << 30)?;
    Ok(connection)
}

impl Store for Sqlite {
    type Hand<'a> = SqliteHand<'a>;

    fn open(setup: &Setup) -> Result<Self> {
        let path = setup.directory.join("keys.sqlite");
        connect(&path, setup.mode)?.execute_batch(
            "CREATE TABLE IF NOT EXISTS keys(k BLOB PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID",
        )?;
        Ok(Self { path, mode: setup.mode, writer: Mutex::new(()) })
    }

    fn hand(&self) -> Result<SqliteHand<'_>> {
        let connection = connect(&self.path, self.mode)?;
        Ok(SqliteHand { connection, writer: &self.writer, value: Value::new(), token: 0 })
    }
}

pub struct SqliteHand<'a> {
    connection: Connection,
    writer: &'a Mutex<()>,
    value: Value,
    token: u64,
}

impl SqliteHand<'_> {
    fn read<T>(&self, key: &Key, read: impl FnOnce(&[u8]) -> Result<T>) -> Result<Option<T>> {
        let mut statement = self.connection.prepare_cached("SELECT v FROM keys WHERE k=?1")?;
        let mut rows = statement.query(params![&key[..]])?;
        match rows.next()? {
            Some(row) => read(row.get_ref(0)?.as_blob()?).map(Some),
            None => Ok(None),
        }
    }
}

/// Runs a statement that writes, alone, and says how many keys it changed.
fn write(
    connection: &Connection,
    writer: &Mutex<()>,
    sql: &str,
    key: &Key,
    value: &[u8],
) -> Result<usize> {
    let mut statement = connection.prepare_cached(sql)?;
    let _alone = writer.lock();
    Ok(statement.execute(params![&key[..], value])?)
}

impl Hand for SqliteHand<'_> {
    fn claim(&mut self, key: &Key, fingerprint: [u8; 16], out: &mut Body) -> Result<Answer> {
        // A duplicate does not need the one writer.
        if let Some(answer) = self.read(key, |value| value::answer(value, fingerprint, out))? {
            return Ok(answer);
        }
        self.token += 1;
        let value = self.value.held(fingerprint, self.token);
        let sql = "INSERT OR IGNORE INTO keys(k,v) VALUES(?1,?2)";
        if write(&self.connection, self.writer, sql, key, value)? == 1 {
            return Ok(Answer::Acquired(self.token));
        }
        let answer = self.read(key, |value| value::answer(value, fingerprint, out))?;
        answer.ok_or_else(|| "a key was there and is not".into())
    }

    fn complete(&mut self, key: &Key, token: u64, body: &Body) -> Result<()> {
        let value = self.value.done(fingerprint(key), token, body);
        let sql = "UPDATE keys SET v=?2 WHERE k=?1";
        match write(&self.connection, self.writer, sql, key, value)? {
            1 => Ok(()),
            _ => Err("completed without a claim".into()),
        }
    }

    fn lookup(&mut self, key: &Key, out: &mut Body) -> Result<State> {
        let known = self.read(key, |value| value::found(value, out))?;
        Ok(known.unwrap_or(State::Absent))
    }

    fn load(&mut self, keys: &[Key], bodies: &Bodies, first: usize) -> Result<()> {
        let _alone = self.writer.lock();
        let transaction = self.connection.transaction()?;
        let sql = "INSERT OR REPLACE INTO keys(k,v) VALUES(?1,?2)";
        let mut statement = transaction.prepare_cached(sql)?;
        for (key, nth) in keys.iter().zip(first..) {
            statement.execute(params![
                &key[..],
                self.value.done(fingerprint(key), 0, bodies.nth(nth))
            ])?;
        }
        drop(statement);
        Ok(transaction.commit()?)
    }
}
