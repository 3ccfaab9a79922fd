//! How things are said in a transcript.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate::partition::RoleView;
use quorate::record::{Batch, records};
use quorate::storage::LogReader;
use quorate::types::{
    Appointment, EpochHistory, ErrorCode, LogPosition, Offset, PartitionState, SessionId,
};
use quorate::wal::{Decoded, Frame};

use super::node::{disk_number, index_of, process_number};

/// Follows a record that is to be long; it is left out where records are shown.
pub const PADDING: &str = ".";

/// The frames of a log, oldest first: `start@1` is the epoch start of epoch 1, `0@1 "r1"` the record at offset 0, written
/// in epoch 1.
pub fn log(reader: &LogReader) -> Vec<String> {
    reader
        .frames(reader.start())
        .map(|frame| match frame {
            Ok(read) => frame_text(&read),
            Err(error) => format!("unreadable: {error}"),
        })
        .collect()
}

pub fn frame_text(frame: &Frame) -> String {
    let epoch = frame.leader_epoch();
    if frame.is_epoch_start() {
        return format!("start@{epoch}");
    }
    batch_text(&frame.payload())
}

/// The records of a batch. The batch itself says which epoch wrote it.
pub fn batch_text(batch: &Bytes) -> String {
    let epoch = Batch::decode(batch).unwrap().header.partition_leader_epoch;
    let texts: Vec<String> = values(batch)
        .into_iter()
        .map(|(offset, value)| format!("{offset}@{epoch} {value:?}"))
        .collect();
    texts.join(", ")
}

fn values(batch: &Bytes) -> Vec<(Offset, String)> {
    records(&Batch::decode(batch).unwrap())
        .unwrap()
        .map(|record| {
            let record = record.unwrap();
            let value = String::from_utf8(record.value.unwrap().to_vec()).unwrap();
            let value = value.trim_end_matches(PADDING).to_owned();
            (Offset::from_wire(record.offset).unwrap(), value)
        })
        .collect()
}

pub fn records_by_offset(reader: &LogReader) -> BTreeMap<Offset, String> {
    reader
        .frames(reader.start())
        .map(Result::unwrap)
        .filter(|frame| !frame.is_epoch_start())
        .flat_map(|frame| values(&frame.payload()))
        .collect()
}

pub fn decode(frames: &[Bytes]) -> Vec<Frame> {
    frames
        .iter()
        .map(|bytes| match Frame::decode(bytes) {
            Ok(Decoded::Frame(frame)) => frame,
            other => panic!("a frame that was sent is whole: {other:?}"),
        })
        .collect()
}

/// A log in one line; what is written and not yet durable is in parentheses.
pub fn log_line(reader: &LogReader, durable: LogPosition, high_watermark: Offset) -> String {
    let texts: Vec<String> = reader
        .frames(reader.start())
        .map(|frame| {
            let frame = frame.unwrap();
            let text = frame_text(&frame);
            if frame.end() > durable {
                format!("({text})")
            } else {
                text
            }
        })
        .collect();
    let log = if texts.is_empty() {
        "nothing".to_owned()
    } else {
        texts.join(", ")
    };
    format!("{log} | HW {high_watermark}")
}

/// Kafka's spelling of an error: `NOT_ENOUGH_REPLICAS`.
pub fn error(code: ErrorCode) -> String {
    let mut text = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(letter.to_ascii_uppercase());
    }
    text
}

pub fn epochs(history: &EpochHistory) -> String {
    let entries: Vec<String> = history
        .entries()
        .iter()
        .map(|entry| format!("{} from {}", entry.epoch, entry.start))
        .collect();
    if entries.is_empty() {
        "none".to_owned()
    } else {
        entries.join(", ")
    }
}

/// Names: of nodes, of their processes, of sessions in the order in which they were opened.
#[derive(Default)]
pub struct Names {
    pub nodes: Vec<String>,
    sessions: Vec<SessionId>,
}

impl Names {
    pub fn session(&mut self, id: SessionId) -> usize {
        let known = self.sessions.iter().position(|&known| known == id);
        known.unwrap_or_else(|| {
            self.sessions.push(id);
            self.sessions.len() - 1
        }) + 1
    }

    /// `b`, or `b#2` for its second process, and where its disk is not the first, that too.
    pub fn process(&self, appointment: &Appointment) -> String {
        let mut name = self.nodes[index_of(appointment.node)].clone();
        let process = process_number(appointment.incarnation);
        if process > 1 {
            name.push_str(&format!("#{process}"));
        }
        let disk = disk_number(appointment.directory);
        if disk > 1 {
            name.push_str(&format!(" on disk {disk}"));
        }
        name
    }

    pub fn set(&self, members: &[Appointment]) -> String {
        let names: Vec<String> = members.iter().map(|member| self.process(member)).collect();
        names.join(" ")
    }

    pub fn state(&self, state: &PartitionState) -> String {
        let leader = match &state.leader {
            Some(leader) => format!("leader {}", self.process(leader)),
            None => "no leader".to_owned(),
        };
        format!(
            "{leader}, leader epoch {}, partition epoch {}, ISR {}, min.insync {}",
            state.leader_epoch,
            state.partition_epoch,
            self.set(&state.isr),
            state.min_insync
        )
    }

    pub fn role(&self, view: &RoleView) -> String {
        match view {
            RoleView::Idle => "neither leads nor follows".to_owned(),
            RoleView::Leader(leader) => format!("leads in epoch {}", leader.epoch),
            RoleView::Follower { leader, epoch, .. } => {
                format!("follows {} in epoch {epoch}", self.nodes[index_of(*leader)])
            }
            RoleView::Failed => "has stopped serving".to_owned(),
        }
    }

    /// The product's messages name nodes by number, and processes by random bits; a transcript has names.
    pub fn in_words(&self, message: &str, processes: &[Appointment]) -> String {
        let mut text = message.to_owned();
        for process in processes {
            text = text.replace(&process.incarnation.to_string(), &self.process(process));
            let disk = format!("disk {}", disk_number(process.directory));
            text = text.replace(&process.directory.to_string(), &disk);
        }
        for (index, name) in self.nodes.iter().enumerate() {
            text = text.replace(&format!("node {}", index + 1), name);
        }
        text
    }
}
