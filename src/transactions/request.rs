//! What a coordinator is asked, and what it answers.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::state::{Ending, State};
use super::version::ClientVersion;
use crate::types::{MonotonicTime, ProducerId};

/// The time, on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For every timeout.
    pub monotonic: MonotonicTime,
    /// Milliseconds since the Unix epoch: for what is written down and outlives the process.
    pub wall_ms: i64,
}

/// One request. Everything but [`Request::List`] concerns one transactional id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A producer begins with the id. Answers [`Answer::Producer`] once that is written, or
    /// [`Answer::NeedsProducerId`] at once where `fresh` is wanted and not there.
    Init {
        timeout_ms: i32,
        /// What the producer believes itself to be (KIP-360): only that one may go on.
        expected: Option<(ProducerId, i16)>,
        /// An id that no producer ever had.
        fresh: Option<ProducerId>,
    },
    /// The transaction is going to write to these too. Answers [`Answer::Done`] once that is written.
    AddPartitions {
        producer: ProducerId,
        epoch: i16,
        partitions: Vec<(String, i32)>,
        version: ClientVersion,
    },
    /// Whether the transaction writes to these. Answers [`Answer::Verified`].
    Verify {
        producer: ProducerId,
        epoch: i16,
        partitions: Vec<(String, i32)>,
    },
    /// Answers once it is written that the transaction ends so: [`Answer::Done`] to a client of [`ClientVersion::V1`], and to one
    /// of [`ClientVersion::V2`] [`Answer::Producer`], what it is from its next transaction on; or
    /// [`Answer::NeedsProducerId`] as with [`Request::Init`].
    End {
        producer: ProducerId,
        epoch: i16,
        ending: Ending,
        version: ClientVersion,
        /// An id that no producer ever had.
        fresh: Option<ProducerId>,
    },
    /// Answers [`Answer::Described`].
    Describe,
    /// Answers [`Answer::Listed`].
    List(Filter),
}

impl Request {
    /// The same with a producer id that no producer ever had: what [`Answer::NeedsProducerId`] asks for.
    pub fn with_fresh(mut self, id: ProducerId) -> Request {
        if let Request::Init { fresh, .. } | Request::End { fresh, .. } = &mut self {
            *fresh = Some(id);
        }
        self
    }
}

/// What the leader of a partition asks of a coordinator before a transaction begins to write there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Whether its client has said that it does: of a client of [`ClientVersion::V1`].
    Verify,
    /// That it does, from now on: of a client of [`ClientVersion::V2`].
    Add,
}

/// Which transactional ids are listed: those that fit all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// `None`: in any state.
    pub states: Option<BTreeSet<State>>,
    /// `None`: of any producer.
    pub producers: Option<BTreeSet<i64>>,
    /// Those whose transaction has run for at least so many milliseconds; `None`: whether they have one or not.
    pub running_for_ms: Option<i64>,
}

/// What a request is answered with when all is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Producer {
        producer: ProducerId,
        epoch: i16,
    },
    /// The same request is to be made again, with a fresh producer id.
    NeedsProducerId,
    Done,
    /// For each partition that was asked for, in the same order.
    Verified(Vec<bool>),
    Described(Description),
    Listed(Vec<Listing>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub state: State,
    pub producer: ProducerId,
    pub epoch: i16,
    pub timeout_ms: i32,
    /// Milliseconds since the Unix epoch; −1 without a transaction.
    pub started_ms: i64,
    /// By topic.
    pub partitions: Vec<(Arc<str>, Vec<i32>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    pub id: Arc<str>,
    pub producer: ProducerId,
    pub state: State,
}
