//! Frames for this room's tests.

use crate::types::{LeaderEpoch, LogPosition, Offset};
use crate::wal::Frame;

pub(super) fn epoch(epoch: u32) -> LeaderEpoch {
    LeaderEpoch::new(epoch).unwrap()
}

pub(super) fn offset(offset: u64) -> Offset {
    Offset::new(offset).unwrap()
}

pub(super) fn at(o: u64, e: u32) -> LogPosition {
    LogPosition::new(offset(o), epoch(e))
}

pub(super) fn start_frame(e: u32, previous: LogPosition) -> Frame {
    Frame::epoch_start(epoch(e), previous)
}

/// As much of a v2 batch as storage looks at: magic and the largest timestamp, then `padding` bytes.
pub(super) fn batch(records: u32, timestamp: i64, padding: usize) -> Vec<u8> {
    let mut bytes = vec![0; 61 + padding];
    bytes[16] = 2;
    bytes[23..27].copy_from_slice(&(records - 1).to_be_bytes());
    bytes[27..35].copy_from_slice(&timestamp.to_be_bytes());
    bytes[35..43].copy_from_slice(&timestamp.to_be_bytes());
    bytes[57..61].copy_from_slice(&records.to_be_bytes());
    bytes
}

/// One record.
pub(super) fn frame_with_timestamp(previous: LogPosition, e: u32, timestamp: i64) -> Frame {
    let end = previous.offset.checked_add(1).unwrap();
    Frame::records(epoch(e), previous, end, &[&batch(1, timestamp, 0)])
}

/// `records` records and `padding` bytes that depend on the place.
pub(super) fn frame(previous: LogPosition, records: u32, padding: usize) -> Frame {
    let end = previous.offset.checked_add(u64::from(records)).unwrap();
    let mut payload = batch(records, previous.offset.get() as i64, padding);
    for (i, byte) in payload[61..].iter_mut().enumerate() {
        *byte = (previous.offset.get() as usize * 31 + previous.epoch.get() as usize + i) as u8;
    }
    Frame::records(previous.epoch, previous, end, &[&payload])
}

/// `count` frames of one record each, after `previous`.
pub(super) fn frames(previous: LogPosition, count: usize, padding: usize) -> Vec<Frame> {
    let mut end = previous;
    (0..count)
        .map(|_| {
            let frame = frame(end, 1, padding);
            end = frame.end();
            frame
        })
        .collect()
}
