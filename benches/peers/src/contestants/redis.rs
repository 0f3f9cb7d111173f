//! Redis over a unix socket, a connection a thread, one command a call: `SET NX GET PX` claims, `SET PX`
//! completes, `GET` looks up. An append-only file, written before each answer, which a kill does not lose, and
//! synced when the system likes (`appendfsync no`) or, in `power` mode, always; no snapshots. The server is started in the contestant's directory, and killed with it.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redis::{Client, Cmd, Connection, Value as Reply, cmd, pipe};

use super::value::{self, Value};
use crate::keys::{Bodies, Body, Key, fingerprint};
use crate::store::{Answer, Hand, Mode, Result, Setup, State, Store};

const DAY_MS: u64 = 24 * 3600 * 1000;
const START_MAX: Duration = Duration::from_secs(120);

pub struct Redis {
    server: Child,
    socket: PathBuf,
}

impl Redis {
    /// Whether there is a server to start.
    pub fn is_installed() -> bool {
        let server = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
        server.is_ok_and(|status| status.success())
    }

    fn connect(&self) -> Result<Connection> {
        let address = format!("redis+unix://{}", self.socket.display());
        Ok(Client::open(address)?.get_connection()?)
    }

    /// Waits until the server has loaded its file and answers.
    fn wait(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let answer =
                self.connect().and_then(|mut it| Ok(cmd("PING").query::<String>(&mut it)?));
            match answer {
                Ok(_) => return Ok(()),
                Err(error) if start.elapsed() > START_MAX => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

impl Store for Redis {
    type Hand<'a> = RedisHand;

    fn open(setup: &Setup) -> Result<Self> {
        let socket = setup.directory.join("socket");
        let sync = if setup.mode == Mode::Power { "always" } else { "no" };
        let server = Command::new("redis-server")
            .args(["--port", "0", "--appendonly", "yes", "--appendfsync", sync, "--save", ""])
            .args(["--auto-aof-rewrite-percentage", "0", "--maxclients", "256"])
            .arg("--dir")
            .arg(&setup.directory)
            .arg("--unixsocket")
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let store = Self { server, socket };
        store.wait()?;
        Ok(store)
    }

    fn hand(&self) -> Result<RedisHand> {
        Ok(RedisHand { connection: self.connect()?, value: Value::new(), token: 0 })
    }

    fn close(mut self) -> Result<()> {
        // The server ends the connection instead of answering.
        cmd("SHUTDOWN").query::<()>(&mut self.connect()?).unwrap_or_default();
        self.server.wait()?;
        Ok(())
    }

    fn process(&self) -> Option<u32> {
        Some(self.server.id())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // After `close` there is nothing left to kill.
        self.server.kill().unwrap_or_default();
        self.server.wait().map(drop).unwrap_or_default();
    }
}

pub struct RedisHand {
    connection: Connection,
    value: Value,
    token: u64,
}

fn set(key: &Key, value: &[u8]) -> Cmd {
    let mut command = cmd("SET");
    command.arg(&key[..]).arg(value).arg("PX").arg(DAY_MS);
    command
}

impl Hand for RedisHand {
    fn claim(&mut self, key: &Key, fingerprint: [u8; 16], out: &mut Body) -> Result<Answer> {
        self.token += 1;
        let mut command = set(key, self.value.held(fingerprint, self.token));
        match command.arg("NX").arg("GET").query(&mut self.connection)? {
            Reply::Nil => Ok(Answer::Acquired(self.token)),
            Reply::BulkString(value) => value::answer(&value, fingerprint, out),
            other => Err(format!("SET was answered {other:?}").into()),
        }
    }

    fn complete(&mut self, key: &Key, token: u64, body: &Body) -> Result<()> {
        let value = self.value.done(fingerprint(key), token, body);
        Ok(set(key, value).query(&mut self.connection)?)
    }

    fn lookup(&mut self, key: &Key, out: &mut Body) -> Result<State> {
        match cmd("GET").arg(&key[..]).query(&mut self.connection)? {
            Reply::Nil => Ok(State::Absent),
            Reply::BulkString(value) => value::found(&value, out),
            other => Err(format!("GET was answered {other:?}").into()),
        }
    }

    fn load(&mut self, keys: &[Key], bodies: &Bodies, first: usize) -> Result<()> {
        for (part, first) in keys.chunks(1000).zip((first..).step_by(1000)) {
            let mut batch = pipe();
            for (key, nth) in part.iter().zip(first..) {
                batch
                    .add_command(set(key, self.value.done(fingerprint(key), 0, bodies.nth(nth))))
                    .ignore();
            }
            batch.query::<()>(&mut self.connection)?;
        }
        Ok(())
    }
}
