//! A real year of invoices on the simulated clock: every key is forgotten exactly when its window
//! ends, not a millisecond early, and a later sight does not refresh it.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use refrain::testing::{HeapFs, SimClock};
use refrain::{Claim, CompleteOptions, Durability, Namespace, Options, Policy, Store};
use support::traces::{ledger_cut, lines, trace};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// An invoice line: its key, and when it was written.
struct Event {
    key: String,
    at: Duration,
}

fn events(ledger: &[u8]) -> Vec<Event> {
    lines(ledger).skip(1).map(event).collect()
}

/// InvoiceNo,StockCode,Description,Quantity,InvoiceDate,...: the first two have no quotes, and the
/// date is the only field that looks like one.
fn event(line: &[u8]) -> Event {
    let line = String::from_utf8_lossy(line);
    let mut fields = line.split(',');
    let (invoice, stock) = (fields.next().unwrap(), fields.next().unwrap());
    let at = fields.find_map(time).unwrap();
    Event { key: format!("{invoice}|{stock}"), at }
}

/// "2010-12-01 08:26:00", since 1970.
fn time(text: &str) -> Option<Duration> {
    let (date, time) = text.split_once(' ')?;
    let numbers = |text: &str, mark| {
        text.split(mark).map(|part| part.parse::<i64>().ok()).collect::<Option<Vec<_>>>()
    };
    let [year, month, day] = numbers(date, '-')?[..] else { return None };
    let [hour, minute, second] = numbers(time, ':')?[..] else { return None };
    // Days of the civil calendar, years beginning in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    Some(Duration::from_secs(u64::try_from(seconds).ok()?))
}

/// First sights and duplicates, as a plain map counts them.
fn oracle(events: &[Event], ttl: Duration) -> [u64; 2] {
    let mut expires = HashMap::new();
    let mut counts = [0, 0];
    for event in events {
        let known = expires.get(&event.key).is_some_and(|expires| event.at < *expires);
        if !known {
            expires.insert(&event.key, event.at + ttl);
        }
        counts[usize::from(known)] += 1;
    }
    counts
}

fn open(fs: &HeapFs, clock: &SimClock, ttl: Duration) -> (Store, Namespace) {
    let options = Options::new("unused").file_system(fs.clone()).clock(clock.clone());
    let options = options.durability(Durability::Buffered).manual_maintenance(true);
    let store = options.open().unwrap();
    let policy = Policy::default().lease(ttl.min(MINUTE)).replay_ttl(ttl).dedupe_ttl(ttl);
    let namespace = store.define("invoices", &policy).unwrap();
    (store, namespace)
}

/// The same, by a store that is opened again `reopens` times on the way.
fn replay(events: &[Event], ttl: Duration, reopens: usize) -> [u64; 2] {
    let fs = HeapFs::new();
    let clock = SimClock::at(UNIX_EPOCH + events[0].at);
    let (mut store, mut invoices) = open(&fs, &clock, ttl);
    let mut counts = [0, 0];
    let every = events.len() / (reopens + 1) + 1;
    for (n, event) in events.iter().enumerate() {
        let now = clock.wall().duration_since(UNIX_EPOCH).unwrap();
        // The ledger is in the order of time.
        clock.advance(event.at.checked_sub(now).unwrap());
        if n % every == every - 1 {
            if n % 2 == 0 {
                store.close().unwrap();
            } else {
                store.abandon();
            }
            (store, invoices) = open(&fs, &clock, ttl);
        }
        match invoices.claim(&event.key, None).unwrap() {
            Claim::Acquired(lease) => {
                counts[0] += 1;
                let expires = SystemTime::UNIX_EPOCH + event.at + ttl;
                let done = lease.complete_with(&CompleteOptions::body(b"seen")).unwrap();
                assert_eq!(done.guaranteed_until(), Some(expires));
            }
            Claim::Completed(outcome) => {
                counts[1] += 1;
                assert!(outcome.age() < ttl);
            }
            other => panic!("{other:?}"),
        }
    }
    counts
}

#[test]
fn the_shipped_cut_is_forgotten_when_its_windows_end() {
    let events = events(&ledger_cut());
    let mut counts = vec![];
    for ttl in [MINUTE, 10 * MINUTE, HOUR, DAY, 30 * DAY] {
        let expected = oracle(&events, ttl);
        assert_eq!(replay(&events, ttl, 5), expected, "{ttl:?}");
        counts.push(expected);
    }
    assert!(counts[0][0] > counts[4][0], "some windows end between two sights");
}

#[test]
fn the_whole_ledger_has_its_counted_first_sights() {
    let Some(ledger) = trace("online-retail.csv.xz") else { return };
    let events = events(&ledger);
    for (ttl, expected) in
        [(MINUTE, [531_232, 10_677]), (HOUR, [531_225, 10_684]), (DAY, [531_225, 10_684])]
    {
        assert_eq!(oracle(&events, ttl), expected);
        assert_eq!(replay(&events, ttl, 3), expected, "{ttl:?}");
    }
}
