//! What a replica's log is seen to hold: kept beside it frame by frame, so that a check never has to read a log twice, and a
//! log that is closed or gone can still be compared.

use quorate::record::{Batch, Marker};
use quorate::storage::LogReader;
use quorate::types::{LogPosition, Offset};
use quorate::wal::Frame;

/// One frame of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub start: LogPosition,
    pub end: LogPosition,
    /// The frame's own CRC, over header and payload: it stands for the bytes.
    pub crc: u32,
    pub epoch_start: bool,
    /// The batch's producer, its epoch, and the first sequence number; and the number of records.
    pub sequence: Option<(i64, i16, i32)>,
    pub transactional: bool,
    /// Of a batch that ends a transaction.
    pub marker: Option<Marker>,
}

impl Held {
    pub fn of(frame: &Frame) -> Held {
        let batch = match frame.is_epoch_start() {
            true => None,
            false => Batch::decode(&frame.payload()).ok(),
        };
        let sequence = batch.as_ref().and_then(|batch| {
            let header = &batch.header;
            let producer = header.producer_id?;
            Some((producer.get(), header.producer_epoch, header.base_sequence))
        });
        Held {
            start: frame.start(),
            end: frame.end(),
            crc: frame.header().crc,
            epoch_start: frame.is_epoch_start(),
            sequence,
            transactional: batch
                .as_ref()
                .is_some_and(|batch| batch.header.is_transactional()),
            marker: batch.as_ref().and_then(Marker::read),
        }
    }

    pub fn records(&self) -> u64 {
        self.end.offset.records_since(self.start.offset)
    }
}

#[derive(Clone, Debug, Default)]
pub struct Mirror {
    pub start: LogPosition,
    /// In order; the positions of their ends rise.
    pub frames: Vec<Held>,
    pub durable: LogPosition,
}

/// How a log differs from what was seen of it last.
#[derive(Default)]
pub struct Change {
    pub dropped: Vec<Held>,
    /// How many frames at the end of the mirror are new.
    pub added: usize,
    /// The log begins elsewhere, and not where retention would have it.
    pub is_reset: bool,
    /// The durable end before.
    pub durable_before: LogPosition,
}

impl Mirror {
    pub fn end(&self) -> LogPosition {
        self.frames.last().map_or(self.start, |frame| frame.end)
    }

    /// Looks at the log again. `Err` when it is no chain, or cannot be read.
    pub fn update(&mut self, reader: &LogReader, durable: LogPosition) -> Result<Change, String> {
        let (start, end) = (reader.start(), reader.end());
        let mut change = Change {
            durable_before: self.durable,
            ..Change::default()
        };
        self.durable = durable;
        if start == self.start && end == self.end() {
            return Ok(change);
        }
        if start != self.start {
            if start > end {
                return Err(format!("a log starts at {start} and ends at {end}"));
            }
            let is_boundary = self.frames.iter().any(|frame| frame.start == start);
            if is_boundary || start == self.end() {
                // Retention.
                self.frames.retain(|frame| frame.start >= start);
            } else {
                change.dropped = std::mem::take(&mut self.frames);
                change.is_reset = true;
            }
            self.start = start;
        }
        while let Some(last) = self.frames.last().copied() {
            if last.end <= end {
                break;
            }
            self.frames.pop();
            change.dropped.push(last);
        }
        if self.end() != end {
            for frame in reader.frames(self.end()) {
                let frame = frame.map_err(|error| error.to_string())?;
                let held = Held::of(&frame);
                if held.start != self.end() {
                    return Err(format!(
                        "after {} a frame starts at {}",
                        self.end(),
                        held.start
                    ));
                }
                self.frames.push(held);
                change.added += 1;
            }
        }
        if self.end() != end {
            return Err(format!(
                "the log ends at {end}, its frames at {}",
                self.end()
            ));
        }
        Ok(change)
    }

    /// Whether a frame ends at `position`.
    pub fn find(&self, position: LogPosition) -> Option<&Held> {
        self.frames
            .binary_search_by_key(&position, |frame| frame.end)
            .ok()
            .map(|i| &self.frames[i])
    }

    /// The frame of records that begins at `base`.
    pub fn records_at(&self, base: Offset) -> Option<&Held> {
        let from = self
            .frames
            .partition_point(|frame| frame.start.offset < base);
        self.frames[from..]
            .iter()
            .take_while(|frame| frame.start.offset == base)
            .find(|frame| !frame.epoch_start)
    }

    /// Whether the log up to `position` is durable here, or was trimmed.
    pub fn holds_durably(&self, position: LogPosition) -> bool {
        position <= self.durable && (self.find(position).is_some() || position <= self.start)
    }

    /// The last position at or below `offset`.
    pub fn position_at(&self, offset: Offset) -> LogPosition {
        let after = self
            .frames
            .partition_point(|frame| frame.end.offset <= offset);
        after
            .checked_sub(1)
            .map_or(self.start, |i| self.frames[i].end)
    }
}
