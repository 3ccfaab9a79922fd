//! What a coordinator wants done.

use std::collections::VecDeque;
use std::sync::Arc;

use super::request::Answer;
use super::transaction::Details;
use crate::record::LogRecord;
use crate::types::ErrorCode;

/// Stands for one request until it is answered. The caller numbers requests, each number once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// One record, and what follows from it. An id has at most one that waits or is out.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) id: Arc<str>,
    pub(super) record: LogRecord,
    pub(super) then: Then,
}

/// What follows when a write has ended.
#[derive(Debug)]
pub(super) struct Then {
    /// What holds of the id from then on; `None` where it is removed.
    pub(super) details: Option<Details>,
    /// Who is answered, and how where all is well.
    pub(super) reply: Option<(Ticket, Result<Answer, ErrorCode>)>,
}

/// Answers and writes, in the order in which they came about. There are no more answers than requests under way, and no more
/// writes than ids.
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
}
