//! What is under way: messages, and work of disks. The oldest comes first; what is held waits for the transcript to let it go.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use quorate::metadata::FenceReply;
use quorate::partition::Frames;
use quorate::replication::IsrOutcome;
use quorate::storage::SyncTicket;
use quorate::types::{Appointment, IsrChange, LeaderEpoch, PartitionState, SessionId};
use quorate::wire::{Ack, OpenSession, SessionAnswer};

/// Who sends or receives. A node's disk is a party of its own: it receives orders to sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    Node(usize),
    Controller,
    Disk,
}

pub enum Body {
    Hello {
        from: Appointment,
        open: OpenSession,
    },
    Close(SessionId),
    Answer(SessionAnswer),
    Frames(Frames),
    Ack {
        process: Appointment,
        ack: Ack,
    },
    State(Arc<PartitionState>),
    Fence(LeaderEpoch),
    /// `Err`: the replica has promised that epoch already.
    FenceReply(Result<FenceReply, LeaderEpoch>),
    Propose {
        from: Appointment,
        change: IsrChange,
        is_awaited: bool,
    },
    Outcome {
        change: IsrChange,
        outcome: IsrOutcome,
    },
    Sync(SyncTicket),
    /// A promise to make durable, and what to reply to the controller then.
    Promise {
        epoch: LeaderEpoch,
        reply: Option<FenceReply>,
    },
}

impl Body {
    /// Whether it travels on the connection that a follower has dialled to its leader.
    pub fn is_replication(&self) -> bool {
        matches!(
            self,
            Body::Hello { .. }
                | Body::Close(_)
                | Body::Answer(_)
                | Body::Frames(_)
                | Body::Ack { .. }
        )
    }
}

pub struct Pending {
    pub from: Party,
    pub to: Party,
    /// The sender's name, as it was then: it may be another process since.
    pub sender: String,
    pub body: Body,
    /// It was sent while its way was held, and the transcript has said so.
    pub was_held: bool,
}

#[derive(Default)]
pub struct Network {
    pub pending: VecDeque<Pending>,
    held: BTreeSet<(Party, Party)>,
    cut: BTreeSet<(Party, Party)>,
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Party::Node(index) => write!(f, "node {}", index + 1),
            Party::Controller => f.write_str("controller"),
            Party::Disk => f.write_str("disk"),
        }
    }
}

impl Network {
    pub fn hold(&mut self, from: Party, to: Party) {
        self.held.insert((from, to));
    }

    /// False if the way was not held.
    pub fn release(&mut self, from: Party, to: Party) -> bool {
        self.held.remove(&(from, to))
    }

    pub fn is_held(&self, from: Party, to: Party) -> bool {
        self.held.contains(&(from, to))
    }

    pub fn cut(&mut self, one: Party, other: Party) {
        self.cut.insert((one.min(other), one.max(other)));
    }

    pub fn heal(&mut self, one: Party, other: Party) -> bool {
        self.cut.remove(&(one.min(other), one.max(other)))
    }

    pub fn is_cut(&self, one: Party, other: Party) -> bool {
        self.cut.contains(&(one.min(other), one.max(other)))
    }

    /// The oldest that is not held.
    pub fn next(&mut self) -> Option<Pending> {
        let held = &self.held;
        let at = self
            .pending
            .iter()
            .position(|pending| !held.contains(&(pending.from, pending.to)))?;
        self.pending.remove(at)
    }

    /// The newest from `from` to `to`, held or not.
    pub fn take_newest(&mut self, from: Party, to: Party) -> Option<Pending> {
        let at = self
            .pending
            .iter()
            .rposition(|pending| pending.from == from && pending.to == to)?;
        self.pending.remove(at)
    }

    /// The oldest from `from` to `to`, held or not.
    pub fn take(&mut self, from: Party, to: Party) -> Option<Pending> {
        let at = self
            .pending
            .iter()
            .position(|pending| pending.from == from && pending.to == to)?;
        self.pending.remove(at)
    }
}
