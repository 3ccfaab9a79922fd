//! What came of each transaction, what readers of committed records saw of it, and what in that must never be.
//!
//! A record's value names its transaction, its partition and its place there, so what is read tells by itself whose it is.
//! A transaction that nobody asked to commit, or that was said to be aborted, is never seen; one that was said to be
//! committed is seen whole; one of which nobody knows how it ended is seen whole or not at all, in all of its partitions.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::history::{Kind, Violations};

/// The `number`th record, from 0, of a transaction in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub producer: u32,
    /// Of the producer's transactions, from 0.
    pub transaction: u64,
    pub partition: u32,
    pub number: u64,
    /// Of those who carry records over from another log in the place of a group: the offset there.
    pub source: Option<u64>,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Entry {
            producer,
            transaction,
            partition,
            number,
            source,
        } = self;
        write!(f, "{producer}:{transaction}:{partition}:{number}:")?;
        match source {
            Some(source) => write!(f, "{source}"),
            None => write!(f, "-"),
        }
    }
}

impl Entry {
    pub fn of(value: &str) -> Option<Entry> {
        let mut parts = value.split(':');
        let entry = Entry {
            producer: parts.next()?.parse().ok()?,
            transaction: parts.next()?.parse().ok()?,
            partition: parts.next()?.parse().ok()?,
            number: parts.next()?.parse().ok()?,
            source: match parts.next()? {
                "-" => None,
                source => Some(source.parse().ok()?),
            },
        };
        (entry.to_string() == value).then_some(entry)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nobody has asked to commit it.
    Open,
    /// Somebody has, and was not told what came of it.
    Asked,
    Committed,
    Aborted,
}

#[derive(Debug)]
struct Transaction {
    outcome: Outcome,
    /// By partition.
    records: BTreeMap<u32, u64>,
}

/// How many transactions ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    pub committed: u64,
    pub aborted: u64,
    /// Of those whose end nobody was told: how many are there, and how many are not.
    pub unknown_there: u64,
    pub unknown_not_there: u64,
    /// Records of transactions that are there.
    pub records: u64,
}

/// Offset and value of each committed record of a partition, in the order of the log.
pub type Log = Vec<(i64, String)>;

/// See the file's head.
#[derive(Debug)]
pub struct Ledger {
    /// By producer and number.
    transactions: BTreeMap<(u32, u64), Transaction>,
    /// By producer: the number of its next one.
    next: BTreeMap<u32, u64>,
    /// By producer: those that were said to be committed.
    committed: BTreeMap<u32, u64>,
    /// By reader and partition: what it was given, in that order.
    seen: BTreeMap<(u32, u32), Vec<(i64, Entry)>>,
    /// By reader and partition: the offset from which it reads next.
    positions: BTreeMap<(u32, u32), i64>,
    violations: Violations,
}

impl Ledger {
    pub fn new() -> Ledger {
        Ledger {
            transactions: BTreeMap::new(),
            next: BTreeMap::new(),
            committed: BTreeMap::new(),
            seen: BTreeMap::new(),
            positions: BTreeMap::new(),
            violations: Violations::none(),
        }
    }

    /// The producer's next transaction, and its number.
    pub fn begin(&mut self, producer: u32) -> u64 {
        let next = self.next.entry(producer).or_default();
        let number = *next;
        *next += 1;
        let transaction = Transaction {
            outcome: Outcome::Open,
            records: BTreeMap::new(),
        };
        self.transactions.insert((producer, number), transaction);
        number
    }

    /// The transaction's next record in this partition. From here on it may be in the log.
    pub fn add(
        &mut self,
        producer: u32,
        number: u64,
        partition: u32,
        source: Option<u64>,
    ) -> Entry {
        let transaction = self.transactions.get_mut(&(producer, number)).unwrap();
        let records = transaction.records.entry(partition).or_default();
        *records += 1;
        Entry {
            producer,
            transaction: number,
            partition,
            number: *records - 1,
            source,
        }
    }

    pub fn settle(&mut self, producer: u32, number: u64, outcome: Outcome) {
        if outcome == Outcome::Committed {
            *self.committed.entry(producer).or_default() += 1;
        }
        let transaction = self.transactions.get_mut(&(producer, number)).unwrap();
        transaction.outcome = outcome;
    }

    pub fn committed(&self, producer: u32) -> u64 {
        self.committed.get(&producer).copied().unwrap_or_default()
    }

    /// A reader of committed records was given one. `stable` is the last stable offset that came with it, if it was told.
    pub fn read(
        &mut self,
        reader: u32,
        partition: u32,
        stable: Option<i64>,
        offset: i64,
        value: &str,
    ) {
        let Some(entry) = self.known(partition, offset, value) else {
            return;
        };
        if let Some(stable) = stable.filter(|stable| offset >= *stable) {
            let what = format!("{entry} at {partition}@{offset}, which is stable to {stable}");
            self.violations.add(Kind::ReadTooEarly, what);
        }
        let place = (entry.producer, entry.transaction);
        let outcome = self.transactions[&place].outcome;
        if matches!(outcome, Outcome::Open | Outcome::Aborted) {
            let what = format!("reader {reader}: {entry} at {partition}@{offset} is {outcome:?}");
            self.violations.add(Kind::NotCommitted, what);
        }
        let seen = self.seen.entry((reader, partition)).or_default();
        if let Some((last, before)) = seen.last()
            && *last >= offset
        {
            let what = format!("reader {reader}: {entry} at {offset} after {before} at {last}");
            self.violations.add(Kind::Gap, what);
        }
        seen.push((offset, entry));
    }

    /// What an answer to a fetch says of the partition.
    pub fn told(&mut self, reader: u32, partition: u32, stable: i64, watermark: i64) {
        if stable > watermark {
            let what = format!(
                "reader {reader}: {partition} is stable to {stable} and ends at {watermark}"
            );
            self.violations.add(Kind::ReadTooEarly, what);
        }
    }

    /// The reader goes on from `offset`.
    pub fn at(&mut self, reader: u32, partition: u32, offset: i64) {
        self.positions.insert((reader, partition), offset);
    }

    /// How far the reader has come.
    pub fn position(&self, reader: u32, partition: u32) -> i64 {
        let position = self.positions.get(&(reader, partition));
        position.copied().unwrap_or(0)
    }

    fn known(&mut self, partition: u32, offset: i64, value: &str) -> Option<Entry> {
        let entry = Entry::of(value).filter(|entry| {
            let place = (entry.producer, entry.transaction);
            let own = self.transactions.get(&place);
            let sent = own.and_then(|own| own.records.get(&partition));
            entry.partition == partition && sent.is_some_and(|sent| entry.number < *sent)
        });
        if entry.is_none() {
            let what = format!("{partition}@{offset}: {value:?}");
            self.violations.add(Kind::Foreign, what);
        }
        entry
    }

    pub fn violations(&self) -> &Violations {
        &self.violations
    }

    /// What the whole run read of committed records.
    pub fn reads(&self) -> usize {
        self.seen.values().map(Vec::len).sum()
    }

    /// Holds everything against what a reader of committed records finds in each partition in the end, when no transaction is
    /// open. `carried` says, by producer that carries records over, where its group stands.
    pub fn close(&mut self, logs: &BTreeMap<u32, Log>, carried: &BTreeMap<u32, u64>) -> Ends {
        // By transaction and partition: the numbers that are there, in the order of the log.
        let mut there: BTreeMap<(u32, u64), BTreeMap<u32, Vec<u64>>> = BTreeMap::new();
        let mut sources: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
        for (partition, log) in logs {
            let mut latest: BTreeMap<u32, Entry> = BTreeMap::new();
            let mut sound = Vec::new();
            for (offset, value) in log {
                let Some(entry) = self.known(*partition, *offset, value) else {
                    continue;
                };
                sound.push((*offset, entry));
                let own = there.entry((entry.producer, entry.transaction));
                let own = own.or_default().entry(*partition).or_default();
                own.push(entry.number);
                if let Some(source) = entry.source
                    && !sources.entry(entry.producer).or_default().insert(source)
                {
                    let what = format!("{entry} at {partition}@{offset} carries {source} again");
                    self.violations.add(Kind::Duplicated, what);
                }
                if let Some(before) = latest.insert(entry.producer, entry)
                    && (before.transaction, before.number) >= (entry.transaction, entry.number)
                {
                    let what = format!("{entry} at {partition}@{offset} stands behind {before}");
                    self.violations.add(Kind::Reordered, what);
                }
            }
            self.check_readers(*partition, &sound);
        }
        self.check_carried(&sources, carried);
        self.check_whole(&there)
    }

    /// Everybody who read to the end was given just what is there.
    fn check_readers(&mut self, partition: u32, log: &[(i64, Entry)]) {
        for ((reader, of), seen) in &self.seen {
            if *of != partition || seen.as_slice() == log {
                continue;
            }
            let differs = seen.iter().zip(log).find(|(seen, there)| seen != there);
            let what = match differs {
                Some(((at, seen), (offset, entry))) => {
                    format!("{seen} at {partition}@{at}, and {entry} at {offset} is there")
                }
                None => format!("{} records of {} in {partition}", seen.len(), log.len()),
            };
            self.violations
                .add(Kind::Divergent, format!("reader {reader} was given {what}"));
        }
    }

    /// Who carries records over has carried each of them up to where its group stands, and none beyond.
    fn check_carried(
        &mut self,
        sources: &BTreeMap<u32, BTreeSet<u64>>,
        carried: &BTreeMap<u32, u64>,
    ) {
        for (producer, end) in carried {
            let own = sources.get(producer).cloned().unwrap_or_default();
            let (count, last) = (own.len() as u64, own.last().copied());
            if count != *end || last.map_or(0, |last| last + 1) != *end {
                let what = format!(
                    "the group of producer {producer} stands at {end}, {count} records are carried, the last is {last:?}"
                );
                self.violations.add(Kind::Torn, what);
            }
        }
    }

    fn check_whole(&mut self, there: &BTreeMap<(u32, u64), BTreeMap<u32, Vec<u64>>>) -> Ends {
        let mut ends = Ends::default();
        for ((producer, number), transaction) in &self.transactions {
            let found = there
                .get(&(*producer, *number))
                .cloned()
                .unwrap_or_default();
            let count = |found: &BTreeMap<u32, Vec<u64>>| -> u64 {
                found.values().map(|own| own.len() as u64).sum()
            };
            let expected: u64 = transaction.records.values().sum();
            let name = format!("{producer}:{number} ({:?})", transaction.outcome);
            let (is_there, all) = (count(&found), format!("{:?}", transaction.records));
            match transaction.outcome {
                Outcome::Committed => ends.committed += 1,
                Outcome::Open | Outcome::Aborted => ends.aborted += 1,
                Outcome::Asked if is_there > 0 => ends.unknown_there += 1,
                Outcome::Asked => ends.unknown_not_there += 1,
            }
            ends.records += is_there;
            let wrong = match transaction.outcome {
                Outcome::Committed if is_there == 0 && expected > 0 => Some(Kind::Lost),
                Outcome::Open | Outcome::Aborted if is_there > 0 => Some(Kind::NotCommitted),
                _ if is_there > expected => Some(Kind::Duplicated),
                _ if is_there > 0 && is_there < expected => Some(Kind::Torn),
                _ => None,
            };
            if let Some(kind) = wrong {
                let what = format!("{name}: of {all} there is {found:?}");
                self.violations.add(kind, what);
            }
        }
        ends
    }
}

mod tests {
    use super::*;

    const READER: u32 = 7;

    /// Three transactions of producer 1 in two partitions: committed, aborted, and one of which nobody knows; and the logs with
    /// the first, and with the last where `unknown`.
    fn good(unknown: bool) -> (Ledger, BTreeMap<u32, Log>) {
        let mut ledger = Ledger::new();
        let mut logs: BTreeMap<u32, Log> = BTreeMap::from([(0, vec![]), (1, vec![])]);
        let outcomes = [Outcome::Committed, Outcome::Aborted, Outcome::Asked];
        for (outcome, is_there) in outcomes.into_iter().zip([true, false, unknown]) {
            let number = ledger.begin(1);
            for (partition, log) in &mut logs {
                for _ in 0..2 {
                    let source = number * 4 + u64::from(*partition) * 2;
                    let entry = ledger.add(1, number, *partition, Some(source));
                    let entry = Entry {
                        source: Some(source + entry.number),
                        ..entry
                    };
                    if is_there {
                        log.push((log.len() as i64, entry.to_string()));
                    }
                }
            }
            ledger.settle(1, number, outcome);
        }
        (ledger, logs)
    }

    /// What close finds.
    fn found(ledger: &mut Ledger, logs: &BTreeMap<u32, Log>) -> Vec<Kind> {
        ledger.close(logs, &BTreeMap::new());
        ledger.violations.kinds()
    }

    #[test]
    fn a_good_ledger_has_no_violation() {
        for unknown in [false, true] {
            let (mut ledger, logs) = good(unknown);
            for (offset, value) in &logs[&0] {
                ledger.read(READER, 0, Some(100), *offset, value);
            }
            let ends = ledger.close(&logs, &BTreeMap::new());
            assert!(ledger.violations.is_empty(), "{}", ledger.violations);
            let there = u64::from(unknown);
            assert_eq!((ends.committed, ends.aborted), (1, 1));
            assert_eq!(
                (ends.unknown_there, ends.unknown_not_there),
                (there, 1 - there)
            );
        }
    }

    #[test]
    fn a_transaction_that_is_there_in_part_is_torn_and_one_that_is_not_is_lost() {
        let (mut ledger, mut logs) = good(true);
        logs.get_mut(&1).unwrap().truncate(2);
        assert_eq!(found(&mut ledger, &logs), [Kind::Torn]);
        let (mut ledger, mut logs) = good(false);
        logs.values_mut().for_each(Vec::clear);
        assert_eq!(found(&mut ledger, &logs), [Kind::Lost]);
    }

    #[test]
    fn an_aborted_record_is_found_when_it_is_read_and_in_the_end() {
        let (mut ledger, mut logs) = good(false);
        let aborted = "1:1:0:0:4".to_owned();
        ledger.read(READER, 0, Some(100), 2, &aborted);
        assert_eq!(ledger.violations.kinds(), [Kind::NotCommitted]);
        let (mut other, _) = good(false);
        logs.get_mut(&0).unwrap().push((2, aborted));
        assert_eq!(found(&mut other, &logs), [Kind::NotCommitted]);
    }

    #[test]
    fn a_record_of_a_transaction_that_nobody_asked_to_commit_is_found() {
        let mut ledger = Ledger::new();
        let number = ledger.begin(1);
        let value = ledger.add(1, number, 0, None).to_string();
        ledger.read(READER, 0, Some(100), 0, &value);
        assert_eq!(ledger.violations.kinds(), [Kind::NotCommitted]);
    }

    #[test]
    fn a_record_above_what_is_stable_and_one_that_comes_again_are_found() {
        let (mut ledger, logs) = good(false);
        let (offset, value) = &logs[&0][0];
        ledger.read(READER, 0, Some(*offset), *offset, value);
        assert_eq!(ledger.violations.kinds(), [Kind::ReadTooEarly]);
        let (mut ledger, _) = good(false);
        ledger.read(READER, 0, Some(100), *offset, value);
        ledger.read(READER, 0, Some(100), *offset, value);
        assert_eq!(ledger.violations.kinds(), [Kind::Gap]);
        let (mut ledger, _) = good(false);
        ledger.told(READER, 0, 6, 5);
        assert_eq!(ledger.violations.kinds(), [Kind::ReadTooEarly]);
    }

    #[test]
    fn records_out_of_order_and_twice_are_found() {
        let (mut ledger, mut logs) = good(false);
        logs.get_mut(&0).unwrap().swap(0, 1);
        assert_eq!(found(&mut ledger, &logs), [Kind::Reordered]);
        let (mut ledger, mut logs) = good(false);
        let again = logs[&0][1].1.clone();
        logs.get_mut(&0).unwrap().push((2, again));
        let kinds = found(&mut ledger, &logs);
        assert_eq!(kinds, [Kind::Duplicated, Kind::Reordered]);
    }

    #[test]
    fn a_reader_who_was_led_past_a_record_is_found() {
        let (mut ledger, logs) = good(false);
        ledger.read(READER, 0, Some(100), 1, &logs[&0][1].1);
        assert_eq!(found(&mut ledger, &logs), [Kind::Divergent]);
    }

    #[test]
    fn a_group_that_stands_elsewhere_than_what_it_carried_is_found() {
        for (at, sound) in [(4, true), (3, false), (5, false)] {
            let (mut ledger, logs) = good(false);
            ledger.close(&logs, &BTreeMap::from([(1, at)]));
            assert_eq!(ledger.violations.is_empty(), sound);
        }
    }

    #[test]
    fn a_value_that_nobody_sent_is_found() {
        let (mut ledger, mut logs) = good(false);
        logs.get_mut(&1).unwrap().push((2, "1:0:1:2:9".to_owned()));
        assert_eq!(found(&mut ledger, &logs), [Kind::Foreign]);
    }
}
