//! One partition's place in the log: what to fetch next, and what a node's answer means for it.
//!
//! Plain and synchronous: `now` is an argument, what came of an answer is returned.

use std::collections::BTreeSet;

use bytes::Bytes;
use tokio::time::Instant;

use super::OutOfRange;
use super::start::Start;
use crate::client::backoff::Backoff;
use crate::client::error::ClientError;
use crate::client::metadata::PartitionName;
use crate::record::{Batch, BatchError, Batches, Marker, TransactionOutcome};
use crate::types::{ErrorCode, Offset, ProducerId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The offset is to be looked up.
    Unresolved(Start),
    /// It is being looked up.
    Resolving(Start),
    Ready,
    Fetching,
    Waiting {
        until: Instant,
    },
    /// It was reported and is not fetched any more.
    Failed,
}

#[derive(Debug)]
pub(super) struct Cursor {
    pub(super) name: PartitionName,
    pub(super) state: State,
    /// What is fetched next. Meaningless until it is resolved.
    pub(super) offset: i64,
    /// The highest high watermark that a node told of; `None` before the first answer.
    pub(super) high_watermark: Option<i64>,
    /// The end was reported and nothing has come since.
    at_end: bool,
    /// Failures in a row.
    failures: u32,
    /// Since when its topic has been unknown.
    pub(super) unknown_since: Option<Instant>,
}

/// One partition's part of a fetch response.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) error: Result<(), ErrorCode>,
    /// Up to where a reader of this kind may read; −1 where the node does not know it yet.
    pub(super) high_watermark: i64,
    /// First offset and producer id of each aborted transaction with records here, where only committed ones are read.
    pub(super) aborted: Vec<(i64, i64)>,
    pub(super) records: Bytes,
}

/// What came of an answer.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Whole batches to be read from `from` on, maybe none; then, with `end`, the end of the partition.
    Records {
        batches: Vec<Batch>,
        from: i64,
        bytes: usize,
        end: Option<i64>,
    },
    /// To be tried again after a while, perhaps elsewhere.
    Retry {
        code: ErrorCode,
    },
    /// The caller asks for the log's bounds and reports them.
    OutOfRange {
        offset: i64,
    },
    Failed(ClientError),
}

impl Cursor {
    pub(super) fn new(name: PartitionName, start: Start) -> Cursor {
        Cursor {
            name,
            state: State::Unresolved(start),
            offset: -1,
            high_watermark: None,
            at_end: false,
            failures: 0,
            unknown_since: None,
        }
    }

    pub(super) fn resolved(&mut self, offset: i64) {
        self.offset = offset;
        self.at_end = false;
        self.state = State::Ready;
    }

    /// Whether it may be fetched now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        match self.state {
            State::Ready => true,
            State::Waiting { until } => now >= until,
            _ => false,
        }
    }

    /// Puts it off after a failure. Returns how many there were in a row.
    pub(super) fn wait(&mut self, backoff: &Backoff, random: u64, now: Instant) -> u32 {
        self.failures = self.failures.saturating_add(1);
        self.state = State::Waiting {
            until: now + backoff.after(self.failures, random),
        };
        self.failures
    }

    /// Takes a node's answer to a fetch of this partition.
    pub(super) fn answered(&mut self, answer: Answer, policy: OutOfRange) -> Outcome {
        match answer.error {
            Ok(()) => {}
            Err(ErrorCode::OffsetOutOfRange) => {
                let start = match policy {
                    OutOfRange::Earliest => Start::Beginning,
                    OutOfRange::Latest => Start::End,
                    OutOfRange::Error => {
                        self.state = State::Failed;
                        return Outcome::OutOfRange {
                            offset: self.offset,
                        };
                    }
                };
                self.state = State::Unresolved(start);
                return Outcome::Records {
                    batches: Vec::new(),
                    from: self.offset,
                    bytes: 0,
                    end: None,
                };
            }
            // The log is damaged where it is stored; another read gives the same.
            Err(code) if code.is_retriable() && code != ErrorCode::CorruptMessage => {
                return Outcome::Retry { code };
            }
            Err(code) => {
                self.state = State::Failed;
                return Outcome::Failed(ClientError::Refused {
                    what: format!("fetching {} from offset {}", self.name, self.offset),
                    code,
                    message: None,
                });
            }
        }
        let from = self.offset;
        let batches = match self.read(&answer.records, answer.aborted) {
            Ok(batches) => batches,
            Err(error) => {
                self.state = State::Failed;
                return Outcome::Failed(ClientError::Unreadable {
                    topic: self.name.topic.clone(),
                    partition: self.name.partition,
                    offset: from,
                    what: error.to_string(),
                });
            }
        };
        let known = Some(answer.high_watermark).filter(|known| *known >= 0);
        if known.or(self.high_watermark).is_none() && batches.is_empty() {
            // The first request of a partition is answered at once, so without a pause this would be asked without one.
            return Outcome::Retry {
                code: ErrorCode::OffsetNotAvailable,
            };
        }
        self.failures = 0;
        self.unknown_since = None;
        self.state = State::Ready;
        self.high_watermark = self.high_watermark.max(known);
        if !batches.is_empty() {
            self.at_end = false;
        }
        let end = known.is_some_and(|known| self.offset >= known) && !self.at_end;
        self.at_end |= end;
        Outcome::Records {
            batches,
            from,
            bytes: answer.records.len(),
            end: end.then_some(self.offset),
        }
    }

    /// The batches in an answer that are of use, with the position moved past them. A last batch that is cut off is
    /// fetched again. What was aborted moves the position and has no records to show, and so have control batches.
    fn read(
        &mut self,
        records: &Bytes,
        mut aborted: Vec<(i64, i64)>,
    ) -> Result<Vec<Batch>, BatchError> {
        // The next to begin is the last.
        aborted.sort_unstable_by(|a, b| b.cmp(a));
        let mut in_aborted = BTreeSet::new();
        let mut any = false;
        let mut found = Vec::new();
        let mut next = self.offset;
        for batch in Batches::new(records.clone()) {
            let batch = match batch {
                Err(BatchError::Truncated { .. }) if any => break,
                batch => batch?,
            };
            batch.verify_crc()?;
            any = true;
            let header = &batch.header;
            while let Some((_, producer)) =
                aborted.pop_if(|(first, _)| *first < header.next_offset())
            {
                in_aborted.insert(producer);
            }
            let producer = header.producer_id.map(ProducerId::get);
            let is_aborted = header.is_transactional()
                && producer.is_some_and(|producer| in_aborted.contains(&producer));
            if let Some(marker) = Marker::read(&batch)
                && marker.outcome == TransactionOutcome::Abort
            {
                in_aborted.remove(&marker.producer.get());
            }
            // A fetch from the middle of a batch gets all of it; one that ends before is of no use.
            if batch.header.next_offset() <= next {
                continue;
            }
            next = batch.header.next_offset();
            if !is_aborted && !batch.header.is_control() {
                found.push(batch);
            }
        }
        self.offset = next;
        Ok(found)
    }

    /// Where `offset` is to be once bounds are known: the error to report.
    pub(super) fn out_of_range(&self, offset: i64, start: Offset, end: Offset) -> ClientError {
        ClientError::OffsetOutOfRange {
            topic: self.name.topic.clone(),
            partition: self.name.partition,
            offset: Offset::from_wire(offset).unwrap_or_default(),
            start,
            end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{BatchBuilder, Compression, ProducerStamp, STAMP_LEN, stamped_prefix};
    use crate::types::{LeaderEpoch, PartitionIndex, TopicName};

    fn cursor(offset: i64) -> Cursor {
        let name = PartitionName::new(TopicName::new("t").unwrap(), PartitionIndex(0));
        let mut cursor = Cursor::new(name, Start::Beginning);
        cursor.resolved(offset);
        cursor
    }

    /// A batch of `count` records from offset `base`.
    fn batch(base: u64, count: usize) -> Vec<u8> {
        let mut builder = BatchBuilder::new();
        for _ in 0..count {
            builder.append(None, Some(b"v"), &[], 0).unwrap();
        }
        placed(base, &builder.seal(Compression::None).unwrap().stamp(None))
    }

    fn placed(base: u64, bytes: &Bytes) -> Vec<u8> {
        let batch = Batch::decode(bytes).unwrap();
        let prefix = stamped_prefix(
            &batch,
            Offset::new(base).unwrap(),
            LeaderEpoch::new(1).unwrap(),
        );
        [&prefix[..], &bytes[STAMP_LEN..]].concat()
    }

    fn answer(records: Vec<u8>, high_watermark: i64) -> Answer {
        Answer {
            error: Ok(()),
            high_watermark,
            aborted: Vec::new(),
            records: records.into(),
        }
    }

    fn records(outcome: Outcome) -> (Vec<i64>, Option<i64>) {
        match outcome {
            Outcome::Records { batches, end, .. } => {
                let bases = batches.iter().map(|batch| batch.header.base_offset);
                (bases.collect(), end)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_position_follows_whole_batches_and_the_end_is_told_once() {
        let mut cursor = cursor(2);
        let both = [batch(0, 4), batch(4, 2)].concat();
        let (bases, end) = records(cursor.answered(answer(both, 8), OutOfRange::Error));
        assert_eq!((bases, end, cursor.offset), (vec![0, 4], None, 6));

        let mut cut = [batch(6, 2), batch(8, 1)].concat();
        cut.pop();
        let (bases, end) = records(cursor.answered(answer(cut, 8), OutOfRange::Error));
        assert_eq!((bases, end, cursor.offset), (vec![6], Some(8), 8));

        let empty = cursor.answered(answer(vec![], 8), OutOfRange::Error);
        assert_eq!(records(empty), (vec![], None), "told already");
        let more = cursor.answered(answer(batch(8, 1), 9), OutOfRange::Error);
        assert_eq!(records(more), (vec![8], Some(9)));
    }

    /// A batch of one record of a producer's transaction.
    fn of_transaction(base: u64, producer: i64) -> Vec<u8> {
        let mut builder = BatchBuilder::new();
        builder.append(None, Some(b"v"), &[], 0).unwrap();
        let sealed = builder.seal(Compression::None).unwrap().transactional();
        let stamp = ProducerStamp {
            id: ProducerId::new(producer).unwrap(),
            epoch: 0,
            base_sequence: 0,
        };
        placed(base, &sealed.stamp(Some(stamp)))
    }

    fn marker(base: u64, producer: i64, outcome: TransactionOutcome) -> Vec<u8> {
        let marker = Marker {
            producer: ProducerId::new(producer).unwrap(),
            producer_epoch: 0,
            coordinator_epoch: 0,
            outcome,
            aborted: None,
        };
        placed(base, &marker.batch(0))
    }

    #[test]
    fn what_was_aborted_is_passed_over_and_what_follows_it_is_not() {
        use TransactionOutcome::{Abort, Commit};
        let log = [
            of_transaction(0, 7),
            of_transaction(1, 8),
            marker(2, 7, Abort),
            of_transaction(3, 7),
            batch(4, 1),
            marker(5, 8, Commit),
            marker(6, 7, Commit),
        ]
        .concat();
        let mut all = cursor(0);
        let (bases, end) = records(all.answered(answer(log.clone(), 7), OutOfRange::Error));
        assert_eq!((bases, end), (vec![0, 1, 3, 4], Some(7)));
        let mut committed = cursor(0);
        let only = Answer {
            aborted: vec![(0, 7)],
            ..answer(log, 7)
        };
        let (bases, end) = records(committed.answered(only, OutOfRange::Error));
        assert_eq!((bases, end), (vec![1, 3, 4], Some(7)));
    }

    #[test]
    fn an_answer_of_aborted_batches_alone_moves_the_position_even_if_it_is_cut_off() {
        let mut cursor = cursor(0);
        let mut cut = [of_transaction(0, 7), of_transaction(1, 7)].concat();
        cut.pop();
        let only = Answer {
            aborted: vec![(0, 7)],
            ..answer(cut, 9)
        };
        let (bases, end) = records(cursor.answered(only, OutOfRange::Error));
        assert_eq!((bases, end, cursor.offset), (vec![], None, 1));
    }

    #[test]
    fn an_empty_partition_ends_at_its_start() {
        let mut cursor = cursor(0);
        let outcome = cursor.answered(answer(vec![], 0), OutOfRange::Error);
        assert_eq!(records(outcome), (vec![], Some(0)));
    }

    #[test]
    fn a_partition_does_not_end_where_its_leader_does_not_know_the_end() {
        let mut cursor = cursor(2);
        let outcome = cursor.answered(answer(vec![], -1), OutOfRange::Error);
        let unknown = ErrorCode::OffsetNotAvailable;
        assert!(
            matches!(outcome, Outcome::Retry { code } if code == unknown),
            "{outcome:?}"
        );
        let part = cursor.answered(answer(batch(2, 2), -1), OutOfRange::Error);
        assert_eq!(records(part), (vec![2], None));
        let rest = cursor.answered(answer(batch(4, 2), 6), OutOfRange::Error);
        assert_eq!(records(rest), (vec![4], Some(6)));
        // Another leader, which does not know it yet.
        let more = cursor.answered(answer(batch(6, 1), -1), OutOfRange::Error);
        assert_eq!(records(more), (vec![6], None));
        let nothing = cursor.answered(answer(vec![], -1), OutOfRange::Error);
        assert_eq!(records(nothing), (vec![], None));
        assert_eq!(cursor.high_watermark, Some(6));
    }

    #[test]
    fn a_damaged_batch_is_reported_and_not_skipped() {
        let mut cursor = cursor(0);
        let mut damaged = batch(0, 2);
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        let outcome = cursor.answered(answer(damaged, 2), OutOfRange::Error);
        assert!(
            matches!(
                outcome,
                Outcome::Failed(ClientError::Unreadable { offset: 0, .. })
            ),
            "{outcome:?}"
        );
        assert_eq!((cursor.state, cursor.offset), (State::Failed, 0));
    }

    #[test]
    fn out_of_range_follows_the_policy() {
        let out_of_range = || Answer {
            error: Err(ErrorCode::OffsetOutOfRange),
            high_watermark: -1,
            aborted: Vec::new(),
            records: Bytes::new(),
        };
        let mut cursor = cursor(7);
        cursor.answered(out_of_range(), OutOfRange::Earliest);
        assert_eq!(cursor.state, State::Unresolved(Start::Beginning));
        let outcome = cursor.answered(out_of_range(), OutOfRange::Error);
        assert!(matches!(outcome, Outcome::OutOfRange { offset: 7 }));
    }

    #[test]
    fn a_moved_leader_is_asked_for_elsewhere_with_growing_waits() {
        let mut cursor = cursor(7);
        let now = Instant::now();
        for code in [
            ErrorCode::NotLeaderOrFollower,
            ErrorCode::FencedLeaderEpoch,
            ErrorCode::UnknownLeaderEpoch,
            ErrorCode::OffsetNotAvailable,
        ] {
            let outcome = cursor.answered(
                Answer {
                    error: Err(code),
                    high_watermark: -1,
                    aborted: Vec::new(),
                    records: Bytes::new(),
                },
                OutOfRange::Error,
            );
            assert!(matches!(outcome, Outcome::Retry { code: c } if c == code));
        }
        let backoff = Backoff::default();
        assert_eq!(cursor.wait(&backoff, 0, now), 1);
        assert!(!cursor.is_due(now));
        assert!(cursor.is_due(now + backoff.initial));
        assert_eq!(cursor.wait(&backoff, 0, now), 2);
        assert!(!cursor.is_due(now + backoff.initial));
        assert_eq!(cursor.offset, 7);
    }
}
