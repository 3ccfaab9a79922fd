//! What a coordinator wants done.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::committed::Committed;
use super::consumer::ConsumerChanged;
use super::request::Answer;
use super::transactions::{PendingWritten, TransactionEnded};
use crate::record::LogRecord;
use crate::types::ErrorCode;

/// Stands for one request until it is answered. The caller numbers requests, each number once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Records that are written together, and what follows from it.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) group: Arc<str>,
    pub(super) records: Vec<LogRecord>,
    pub(super) then: Then,
}

/// What follows when a write has ended.
#[derive(Debug)]
pub(super) enum Then {
    Nothing,
    /// Answer so; an error of the write is the answer otherwise.
    Answer(Ticket, Answer),
    /// The members of this generation have their assignments, by member.
    Assigned {
        generation: i32,
        assignments: BTreeMap<Arc<str>, Bytes>,
    },
    /// These offsets hold.
    Committed {
        ticket: Ticket,
        offsets: Vec<(Arc<str>, i32, Committed)>,
        /// One for each partition of the request.
        results: Vec<Result<(), ErrorCode>>,
    },
    /// These offsets are gone.
    OffsetsGone {
        offsets: Vec<(Arc<str>, i32)>,
    },
    /// Offsets of a transaction are pending.
    Pending(PendingWritten),
    /// A transaction has ended, in all groups. Such a write concerns no group alone.
    TransactionEnded(TransactionEnded),
    /// A group of the newer protocol has changed.
    ConsumerChanged(ConsumerChanged),
    /// The group is gone. Who asked for it, if anybody did.
    GroupGone {
        ticket: Option<Ticket>,
    },
}

/// Answers and writes, in the order in which they came about.
#[derive(Debug, Default)]
pub(super) struct Effects {
    pub(super) answers: VecDeque<(Ticket, Result<Answer, ErrorCode>)>,
    pub(super) writes: VecDeque<Write>,
}

impl Effects {
    pub(super) fn answer(&mut self, ticket: Ticket, answer: Answer) {
        self.answers.push_back((ticket, Ok(answer)));
    }

    pub(super) fn refuse(&mut self, ticket: Ticket, error: ErrorCode) {
        self.answers.push_back((ticket, Err(error)));
    }

    pub(super) fn reply(&mut self, ticket: Ticket, reply: Result<Answer, ErrorCode>) {
        self.answers.push_back((ticket, reply));
    }
}
