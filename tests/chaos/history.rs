//! What producers were promised and what consumers saw, and what in it must never be.
//!
//! Every record is unique: its value names its producer, its partition and its number, and nothing else decides a byte of
//! it. So a value that is read tells by itself whether it was ever sent, where it belongs and what it must look like.

use std::collections::BTreeMap;
use std::fmt;

/// Examples that are kept of each kind of violation; the others are counted.
const EXAMPLES: usize = 5;

/// A record: the `number`th, from 0, of one producer in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    pub producer: u32,
    pub partition: u32,
    pub number: u64,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Id {
            producer,
            partition,
            number,
        } = self;
        write!(f, "{producer}:{partition}:{number}")
    }
}

impl Id {
    /// The record's value. Its length depends on the record too: 32 to 159 bytes, now and then some thousands.
    pub fn value(self) -> Vec<u8> {
        let mut value = format!("{self} ").into_bytes();
        let spread = (self.number ^ u64::from(self.producer)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let long = if self.number % 500 == 499 { 8 << 10 } else { 0 };
        let length = 32 + (spread >> 57) as usize + long;
        let filler = b'a' + (self.number % 26) as u8;
        value.resize(length.max(value.len()), filler);
        value
    }

    /// The record that has this value; `None` where no record has.
    pub fn of(value: &[u8]) -> Option<Id> {
        let end = value.iter().position(|byte| *byte == b' ')?;
        let text = std::str::from_utf8(&value[..end]).ok()?;
        let mut parts = text.split(':');
        let id = Id {
            producer: parts.next()?.parse().ok()?,
            partition: parts.next()?.parse().ok()?,
            number: parts.next()?.parse().ok()?,
        };
        (id.value() == value).then_some(id)
    }
}

/// What a producer asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// acks=all with idempotence: once acknowledged it stays, and it is there once and in order.
    All,
    /// acks=1: may be lost, and may be there twice where an answer was. What was read of it stays all the same.
    Leader,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Neither acknowledged nor failed.
    Open,
    /// At this offset, where it was told.
    Acknowledged(Option<u64>),
    Failed {
        may_be_stored: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Acknowledged with acks=all, and not in the log.
    Lost,
    /// In the log twice, though idempotent.
    Duplicated,
    /// In the log behind a later record of its producer.
    Reordered,
    /// Acknowledged at another offset than it has.
    Misplaced,
    /// Two reads of one offset found different records.
    Divergent,
    /// A consumer read it, and it is not at that offset in the end: it was read before it was committed.
    ReadTooEarly,
    /// A consumer was led past an offset, or back to one that it had read.
    Gap,
    /// What an observer was told of the high watermark or of the log's end fell behind what it had seen.
    WentBack,
    /// A value that was never sent, or not to this partition.
    Foreign,
    /// It was reported as certainly not stored, and it is.
    StoredAfterAll,
    /// A reader of committed records was given one of a transaction that is not committed.
    NotCommitted,
    /// A transaction is there in part, or without the offsets that belong to it.
    Torn,
}

#[derive(Clone, Debug)]
pub struct Violations {
    /// By kind: how many, and the first of them.
    found: BTreeMap<Kind, (u64, Vec<String>)>,
}

impl Violations {
    pub fn none() -> Violations {
        Violations {
            found: BTreeMap::new(),
        }
    }

    pub fn add(&mut self, kind: Kind, what: String) {
        let (count, examples) = self.found.entry(kind).or_default();
        *count += 1;
        if examples.len() < EXAMPLES {
            examples.push(what);
        }
    }

    /// These too.
    pub fn append(&mut self, others: &Violations) {
        for (kind, (count, examples)) in &others.found {
            let (own, own_examples) = self.found.entry(*kind).or_default();
            *own += count;
            own_examples.extend_from_slice(examples);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub fn kinds(&self) -> Vec<Kind> {
        self.found.keys().copied().collect()
    }

    pub fn count(&self, kind: Kind) -> u64 {
        self.found.get(&kind).map_or(0, |(count, _)| *count)
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, (count, examples)) in &self.found {
            writeln!(f, "{kind:?}: {count}")?;
            for example in examples {
                writeln!(f, "  {example}")?;
            }
        }
        Ok(())
    }
}

/// Counts of what was produced, over all producers with one kind of promise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub produced: u64,
    pub acknowledged: u64,
    pub failed: u64,
    /// Acknowledged and not there, which acks=1 allows.
    pub lost: u64,
    /// There more than once, which acks=1 allows.
    pub duplicated: u64,
}

/// See the file's head.
#[derive(Debug)]
pub struct History {
    promises: BTreeMap<u32, Promise>,
    /// By producer and partition: each record's fate, by its number.
    fates: BTreeMap<(u32, u32), Vec<Fate>>,
    /// By partition: what was read at each offset, by whoever came first.
    seen: BTreeMap<u32, Vec<Option<Id>>>,
    /// By reader and partition: the offset that it must read next. None where it has not begun.
    cursors: BTreeMap<(u32, u32), u64>,
    /// By observer and partition: the highest watermark that it was told.
    watermarks: BTreeMap<(u32, u32), u64>,
    reads: u64,
    violations: Violations,
}

impl History {
    pub fn new() -> History {
        History {
            promises: BTreeMap::new(),
            fates: BTreeMap::new(),
            seen: BTreeMap::new(),
            cursors: BTreeMap::new(),
            watermarks: BTreeMap::new(),
            reads: 0,
            violations: Violations::none(),
        }
    }

    pub fn add_producer(&mut self, producer: u32, promise: Promise) {
        self.promises.insert(producer, promise);
    }

    /// The producer's next record for the partition. From here on it may be found there.
    pub fn sent(&mut self, producer: u32, partition: u32) -> Id {
        let fates = self.fates.entry((producer, partition)).or_default();
        fates.push(Fate::Open);
        Id {
            producer,
            partition,
            number: fates.len() as u64 - 1,
        }
    }

    pub fn acknowledged(&mut self, id: Id, offset: Option<u64>) {
        self.settle(id, Fate::Acknowledged(offset));
    }

    /// `may_be_stored`: the producer does not know.
    pub fn failed(&mut self, id: Id, may_be_stored: bool) {
        self.settle(id, Fate::Failed { may_be_stored });
    }

    fn settle(&mut self, id: Id, fate: Fate) {
        let fates = self.fates.get_mut(&(id.producer, id.partition));
        if let Some(slot) = fates.and_then(|fates| fates.get_mut(id.number as usize)) {
            *slot = fate;
        }
    }

    /// A reader begins anew, at a place of its choice.
    pub fn begins(&mut self, reader: u32, partition: u32) {
        self.cursors.remove(&(reader, partition));
    }

    /// A reader was given a record.
    pub fn read(&mut self, reader: u32, partition: u32, offset: u64, value: &[u8]) {
        self.reads += 1;
        let expected = self.cursors.insert((reader, partition), offset + 1);
        if let Some(expected) = expected.filter(|expected| *expected != offset) {
            self.violations.add(
                Kind::Gap,
                format!("reader {reader} came to {partition}@{offset} when {expected} was next"),
            );
        }
        let Some(id) = self.known(partition, offset, value) else {
            return;
        };
        let seen = self.seen.entry(partition).or_default();
        let index = offset as usize;
        if seen.len() <= index {
            seen.resize(index + 1, None);
        }
        match seen[index] {
            None => seen[index] = Some(id),
            Some(first) if first == id => {}
            Some(first) => self.violations.add(
                Kind::Divergent,
                format!("{partition}@{offset} was {first}; reader {reader} found {id} there"),
            ),
        }
    }

    /// The record with this value, where it was sent to this partition.
    fn known(&mut self, partition: u32, offset: u64, value: &[u8]) -> Option<Id> {
        let id = Id::of(value).filter(|id| {
            let fates = self.fates.get(&(id.producer, partition));
            id.partition == partition && fates.is_some_and(|fates| id.number < fates.len() as u64)
        });
        if id.is_none() {
            let text = String::from_utf8_lossy(&value[..value.len().min(40)]).into_owned();
            self.violations
                .add(Kind::Foreign, format!("{partition}@{offset}: {text:?}"));
        }
        id
    }

    /// A reader was told that the partition ends at `offset`, or an observer that its high watermark is there.
    pub fn told(&mut self, observer: u32, partition: u32, offset: u64) {
        let read = self.cursors.get(&(observer, partition)).copied();
        let told = self.watermarks.entry((observer, partition)).or_default();
        let floor = (*told).max(read.unwrap_or(0));
        if offset < floor {
            self.violations.add(
                Kind::WentBack,
                format!("observer {observer}: {partition} ends at {offset}, after {floor}"),
            );
        }
        *told = offset.max(*told);
    }

    /// What is wrong although no log was looked at, such as an offset that is out of range for one who has just read there.
    pub fn report(&mut self, kind: Kind, what: String) {
        self.violations.add(kind, what);
    }

    pub fn violations(&self) -> &Violations {
        &self.violations
    }

    pub fn reads(&self) -> u64 {
        self.reads
    }

    /// How far the reader has come.
    pub fn position(&self, reader: u32, partition: u32) -> u64 {
        let cursor = self.cursors.get(&(reader, partition));
        cursor.copied().unwrap_or(0)
    }

    /// The end of what any reader has seen of the partition.
    pub fn end_seen(&self, partition: u32) -> u64 {
        self.seen
            .get(&partition)
            .map_or(0, |seen| seen.len() as u64)
    }

    pub fn acknowledged_count(&self, producer: u32, partition: u32) -> u64 {
        let fates = self.fates.get(&(producer, partition));
        let fates = fates.map_or(&[][..], Vec::as_slice).iter();
        fates
            .filter(|fate| matches!(fate, Fate::Acknowledged(_)))
            .count() as u64
    }

    /// Holds everything against the whole log of each partition, as it is in the end: offset and value, in the order of the
    /// log. Returns the counts for acks=all and for acks=1.
    pub fn close(&mut self, logs: &BTreeMap<u32, Vec<(u64, Vec<u8>)>>) -> (Tally, Tally) {
        // By producer and partition: the offsets of each record.
        let mut places: BTreeMap<(u32, u32), BTreeMap<u64, Vec<u64>>> = BTreeMap::new();
        for (partition, log) in logs {
            self.check_log(*partition, log, &mut places);
        }
        self.check_reads(logs);
        let mut all = Tally::default();
        let mut leader = Tally::default();
        let fates = std::mem::take(&mut self.fates);
        for ((producer, partition), fates) in &fates {
            let promise = self.promises[producer];
            let tally = match promise {
                Promise::All => &mut all,
                Promise::Leader => &mut leader,
            };
            let places = places.remove(&(*producer, *partition)).unwrap_or_default();
            for (number, fate) in fates.iter().enumerate() {
                let id = Id {
                    producer: *producer,
                    partition: *partition,
                    number: number as u64,
                };
                let offsets = places.get(&id.number).map_or(&[][..], Vec::as_slice);
                tally.produced += 1;
                tally.duplicated += u64::from(offsets.len() > 1);
                match fate {
                    Fate::Acknowledged(_) => tally.acknowledged += 1,
                    Fate::Failed { .. } => tally.failed += 1,
                    Fate::Open => {}
                }
                let lost = matches!(fate, Fate::Acknowledged(_)) && offsets.is_empty();
                tally.lost += u64::from(lost);
                if promise == Promise::All {
                    check_fate(&mut self.violations, id, *fate, offsets);
                }
            }
        }
        self.fates = fates;
        (all, leader)
    }

    /// The log by itself: without holes, each producer's records in order.
    fn check_log(
        &mut self,
        partition: u32,
        log: &[(u64, Vec<u8>)],
        places: &mut BTreeMap<(u32, u32), BTreeMap<u64, Vec<u64>>>,
    ) {
        let mut latest: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        for (index, (offset, value)) in log.iter().enumerate() {
            if *offset != index as u64 {
                self.violations.add(
                    Kind::Gap,
                    format!("the log of {partition} has {offset} as its record {index}"),
                );
            }
            let Some(id) = self.known(partition, *offset, value) else {
                continue;
            };
            let own = places.entry((id.producer, partition)).or_default();
            own.entry(id.number).or_default().push(*offset);
            let before = latest.insert(id.producer, (id.number, *offset));
            if let Some((number, at)) = before
                && number > id.number
                && self.promises[&id.producer] == Promise::All
            {
                self.violations.add(
                    Kind::Reordered,
                    format!("{id} at {offset} stands behind record {number} at {at}"),
                );
            }
        }
    }

    /// What was read is there.
    fn check_reads(&mut self, logs: &BTreeMap<u32, Vec<(u64, Vec<u8>)>>) {
        for (partition, seen) in &self.seen {
            let log = logs.get(partition).map_or(&[][..], Vec::as_slice);
            let at: BTreeMap<u64, &Vec<u8>> = log.iter().map(|(o, value)| (*o, value)).collect();
            for (offset, read) in (0..).zip(seen) {
                let Some(read) = read else { continue };
                let there = at.get(&offset).and_then(|value| Id::of(value));
                if there != Some(*read) {
                    let there = there.map_or("nothing".to_owned(), |id| id.to_string());
                    self.violations.add(
                        Kind::ReadTooEarly,
                        format!(
                            "{read} was read at {partition}@{offset}; in the end {there} is there"
                        ),
                    );
                }
            }
        }
    }
}

/// Holds a record's fate against the offsets at which it is.
fn check_fate(violations: &mut Violations, id: Id, fate: Fate, offsets: &[u64]) {
    if offsets.len() > 1 {
        violations.add(Kind::Duplicated, format!("{id} is at {offsets:?}"));
    }
    match fate {
        Fate::Acknowledged(at) if offsets.is_empty() => {
            violations.add(Kind::Lost, format!("{id}, acknowledged at {at:?}"));
        }
        Fate::Acknowledged(Some(at)) if !offsets.contains(&at) => violations.add(
            Kind::Misplaced,
            format!("{id}, acknowledged at {at}, is at {offsets:?}"),
        ),
        Fate::Failed {
            may_be_stored: false,
        } if !offsets.is_empty() => {
            violations.add(Kind::StoredAfterAll, format!("{id} is at {offsets:?}"));
        }
        _ => {}
    }
}

mod tests {
    use super::*;

    /// Offsets and values, by partition.
    type Logs = BTreeMap<u32, Vec<(u64, Vec<u8>)>>;

    const READER: u32 = 7;

    /// Producer 1 with acks=all and producer 2 with acks=1, `count` records each, in turn, in partition 0. Everything is
    /// acknowledged and read.
    fn good(count: u64) -> (History, Logs) {
        let mut history = History::new();
        history.add_producer(1, Promise::All);
        history.add_producer(2, Promise::Leader);
        let mut log = Vec::new();
        for _ in 0..count {
            for producer in [1, 2] {
                let id = history.sent(producer, 0);
                let offset = log.len() as u64;
                history.acknowledged(id, Some(offset));
                history.read(READER, 0, offset, &id.value());
                history.told(READER, 0, offset + 1);
                log.push((offset, id.value()));
            }
        }
        (history, BTreeMap::from([(0, log)]))
    }

    fn only(history: &History, kind: Kind) {
        let found = history.violations().kinds();
        assert_eq!(found, [kind], "{}", history.violations());
    }

    fn renumber(log: &mut [(u64, Vec<u8>)]) {
        for (offset, (at, _)) in (0..).zip(log) {
            *at = offset;
        }
    }

    /// Forgets what was read, so that a test is about the log alone.
    fn unread(history: &mut History) {
        history.seen.clear();
        history.cursors.clear();
    }

    #[test]
    fn a_value_tells_its_record_and_nothing_else_does() {
        for number in 0..1_000 {
            let id = Id {
                producer: 3,
                partition: 12,
                number,
            };
            assert_eq!(Id::of(&id.value()), Some(id));
            let mut other = id.value();
            *other.last_mut().unwrap() ^= 1;
            assert_eq!(Id::of(&other), None);
            assert_eq!(Id::of(&other[1..]), None);
        }
    }

    #[test]
    fn a_good_history_has_no_violation() {
        let (mut history, logs) = good(50);
        let (all, leader) = history.close(&logs);
        assert!(history.violations().is_empty(), "{}", history.violations());
        let expected = Tally {
            produced: 50,
            acknowledged: 50,
            ..Tally::default()
        };
        assert_eq!((all, leader), (expected, expected));
    }

    #[test]
    fn an_acknowledged_record_that_is_not_there_is_lost() {
        let (mut history, mut logs) = good(50);
        unread(&mut history);
        let log = logs.get_mut(&0).unwrap();
        // The last one of each producer.
        log.truncate(98);
        let (all, leader) = history.close(&logs);
        only(&history, Kind::Lost);
        assert_eq!(history.violations().count(Kind::Lost), 1);
        // Of acks=1 it is counted and no violation.
        assert_eq!((all.lost, leader.lost), (1, 1));
    }

    #[test]
    fn a_record_that_is_there_twice_is_found() {
        let (mut history, mut logs) = good(50);
        let log = logs.get_mut(&0).unwrap();
        let (again, loose) = (log[98].1.clone(), log[99].1.clone());
        log.push((100, again));
        log.push((101, loose));
        let (all, leader) = history.close(&logs);
        only(&history, Kind::Duplicated);
        assert_eq!(history.violations().count(Kind::Duplicated), 1);
        assert_eq!((all.duplicated, leader.duplicated), (1, 1));
    }

    #[test]
    fn a_record_behind_a_later_one_is_found() {
        let mut history = History::new();
        history.add_producer(1, Promise::All);
        history.add_producer(2, Promise::Leader);
        let mut log = Vec::new();
        for producer in [1, 2] {
            let (first, second) = (history.sent(producer, 0), history.sent(producer, 0));
            log.push((0, second.value()));
            log.push((0, first.value()));
        }
        renumber(&mut log);
        history.close(&BTreeMap::from([(0, log)]));
        only(&history, Kind::Reordered);
        assert_eq!(history.violations().count(Kind::Reordered), 1);
    }

    #[test]
    fn a_record_that_was_acknowledged_elsewhere_is_found() {
        let (mut history, mut logs) = good(50);
        unread(&mut history);
        let log = logs.get_mut(&0).unwrap();
        // The first of producer 2, which nobody holds to its place, moves to the end.
        let (_, loose) = log.remove(1);
        log.push((0, loose));
        renumber(log);
        history.close(&logs);
        only(&history, Kind::Misplaced);
        assert_eq!(history.violations().count(Kind::Misplaced), 49);
    }

    #[test]
    fn two_reads_of_an_offset_that_differ_are_found() {
        let (mut history, logs) = good(50);
        let other = Id {
            producer: 1,
            partition: 0,
            number: 7,
        };
        history.read(8, 0, 4, &other.value());
        only(&history, Kind::Divergent);
        history.close(&logs);
        only(&history, Kind::Divergent);
    }

    #[test]
    fn a_record_that_was_read_and_is_gone_is_found() {
        let (mut history, mut logs) = good(50);
        // It was acknowledged with acks=1 only, so nothing else is wrong with it.
        logs.get_mut(&0).unwrap().truncate(99);
        history.close(&logs);
        only(&history, Kind::ReadTooEarly);
        assert_eq!(history.violations().count(Kind::ReadTooEarly), 1);
    }

    #[test]
    fn a_reader_that_is_led_past_a_record_or_back_is_found() {
        let (mut history, logs) = good(50);
        let log = &logs[&0];
        history.read(8, 0, 4, &log[4].1);
        history.read(8, 0, 6, &log[6].1);
        history.read(8, 0, 5, &log[5].1);
        only(&history, Kind::Gap);
        assert_eq!(history.violations().count(Kind::Gap), 2);
        // Unless that is what it asked for.
        history.begins(8, 0);
        history.read(8, 0, 1, &log[1].1);
        assert_eq!(history.violations().count(Kind::Gap), 2);
    }

    #[test]
    fn a_hole_in_the_log_is_found() {
        let (mut history, mut logs) = good(50);
        unread(&mut history);
        logs.get_mut(&0).unwrap().last_mut().unwrap().0 += 1;
        history.close(&logs);
        only(&history, Kind::Gap);
    }

    #[test]
    fn a_watermark_that_falls_is_found() {
        let (mut history, _) = good(50);
        history.told(READER, 0, 99);
        only(&history, Kind::WentBack);
        // For another observer it is the first that it hears.
        history.told(9, 0, 80);
        history.told(9, 0, 80);
        assert_eq!(history.violations().count(Kind::WentBack), 1);
        // What a reader has read itself is an end too.
        history.read(10, 0, 60, &history_value(60));
        history.told(10, 0, 60);
        assert_eq!(history.violations().count(Kind::WentBack), 2);
    }

    /// The value at an offset of [`good`].
    fn history_value(offset: u64) -> Vec<u8> {
        let id = Id {
            producer: 1 + (offset % 2) as u32,
            partition: 0,
            number: offset / 2,
        };
        id.value()
    }

    #[test]
    fn a_value_that_nobody_sent_here_is_found() {
        let never_sent = Id {
            producer: 1,
            partition: 0,
            number: 50,
        };
        let elsewhere = Id {
            partition: 1,
            number: 0,
            ..never_sent
        };
        for value in [never_sent.value(), elsewhere.value(), b"1:0:0 x".to_vec()] {
            let (mut history, mut logs) = good(50);
            logs.get_mut(&0).unwrap().push((100, value.clone()));
            history.close(&logs);
            only(&history, Kind::Foreign);
            let (mut history, _) = good(50);
            history.read(READER, 0, 100, &value);
            only(&history, Kind::Foreign);
        }
    }

    #[test]
    fn a_record_that_was_certainly_not_stored_must_not_be_there() {
        for may_be_stored in [true, false] {
            let (mut history, mut logs) = good(50);
            let id = history.sent(1, 0);
            history.failed(id, may_be_stored);
            logs.get_mut(&0).unwrap().push((100, id.value()));
            let (all, _) = history.close(&logs);
            assert_eq!((all.failed, all.lost), (1, 0));
            if may_be_stored {
                assert!(history.violations().is_empty());
            } else {
                only(&history, Kind::StoredAfterAll);
            }
        }
    }
}
