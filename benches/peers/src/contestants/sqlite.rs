//! SQLite by `rusqlite`: WAL, `synchronous` NORMAL or, in `power` mode, FULL; one statement a call, on
//! a connection a thread; a look, then `INSERT OR IGNORE`. Cache of 512 MB a connection, 4 GiB mapped,
//! a table without row ids. Completes without a look at the token.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, params};

use super::value::{self, Value};
use crate::keys::{Body, Key, fingerprint};
use crate::store::{Answer, Hand, Mode, Result, Setup, Store};

pub struct Sqlite {
    path: PathBuf,
    mode: Mode,
}

fn connect(path: &Path, mode: Mode) -> Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(60))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    let synchronous = if mode == Mode::Power { "FULL" } else { "NORMAL" };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "cache_size", -512_000)?;
    connection.pragma_update(None, "mmap_size", 4i64 << 30)?;
    Ok(connection)
}

impl Store for Sqlite {
    type Hand<'a> = SqliteHand;

    fn open(setup: &Setup) -> Result<Self> {
        let path = setup.directory.join("keys.sqlite");
        connect(&path, setup.mode)?.execute_batch(
            "CREATE TABLE IF NOT EXISTS keys(k BLOB PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID",
        )?;
        Ok(Self { path, mode: setup.mode })
    }

    fn hand(&self) -> Result<SqliteHand> {
        let connection = connect(&self.path, self.mode)?;
        Ok(SqliteHand { connection, value: Value::new(), token: 0 })
    }
}

pub struct SqliteHand {
    connection: Connection,
    value: Value,
    token: u64,
}

impl SqliteHand {
    fn read<T>(&self, key: &Key, read: impl FnOnce(&[u8]) -> Result<T>) -> Result<Option<T>> {
        let mut statement = self.connection.prepare_cached("SELECT v FROM keys WHERE k=?1")?;
        let mut rows = statement.query(params![&key[..]])?;
        match rows.next()? {
            Some(row) => read(row.get_ref(0)?.as_blob()?).map(Some),
            None => Ok(None),
        }
    }
}

impl Hand for SqliteHand {
    fn claim(&mut self, key: &Key, fingerprint: [u8; 16], out: &mut Body) -> Result<Answer> {
        // A duplicate does not need the one writer.
        if let Some(answer) = self.read(key, |value| value::answer(value, fingerprint, out))? {
            return Ok(answer);
        }
        self.token += 1;
        let value = self.value.held(fingerprint, self.token);
        let sql = "INSERT OR IGNORE INTO keys(k,v) VALUES(?1,?2)";
        let changed = self.connection.prepare_cached(sql)?.execute(params![&key[..], value])?;
        if changed == 1 {
            return Ok(Answer::Acquired(self.token));
        }
        let answer = self.read(key, |value| value::answer(value, fingerprint, out))?;
        answer.ok_or_else(|| "a key was there and is not".into())
    }

    fn complete(&mut self, key: &Key, token: u64, body: &Body) -> Result<()> {
        let value = self.value.done(fingerprint(key), token, body);
        let sql = "UPDATE keys SET v=?2 WHERE k=?1";
        match self.connection.prepare_cached(sql)?.execute(params![&key[..], value])? {
            1 => Ok(()),
            _ => Err("completed without a claim".into()),
        }
    }

    fn lookup(&mut self, key: &Key, out: &mut Body) -> Result<bool> {
        Ok(self.read(key, |value| value::found(value, out))?.is_some())
    }

    fn load(&mut self, keys: &[Key], body: &Body) -> Result<()> {
        let transaction = self.connection.transaction()?;
        let sql = "INSERT OR REPLACE INTO keys(k,v) VALUES(?1,?2)";
        let mut statement = transaction.prepare_cached(sql)?;
        for key in keys {
            statement.execute(params![&key[..], self.value.done(fingerprint(key), 0, body)])?;
        }
        drop(statement);
        Ok(transaction.commit()?)
    }
}
