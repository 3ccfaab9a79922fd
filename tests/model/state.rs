//! One state of the whole system: every replica, the controller, and what is in flight between them.

use crate::log::{Log, Position};

/// Room for this many replicas.
pub(crate) const REPLICAS: usize = 3;
/// Room for this many leader epochs.
pub(crate) const EPOCHS: usize = 4;
/// Room for this many records.
pub(crate) const RECORDS: usize = 3;
/// Room for this many proposals.
pub(crate) const PROPOSALS: usize = 3;

/// An in-sync set with the `m` that goes with it. Each member is named with an incarnation, 0 to 3.
///
/// Bits 0-2 members, 3-8 incarnations, 9-10 m. 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct InSync(pub u16);

impl InSync {
    pub(crate) const NONE: InSync = InSync(0);

    pub(crate) fn new(members: impl IntoIterator<Item = (usize, u8)>, m: u8) -> InSync {
        let mut set = InSync(u16::from(m) << 9);
        for (node, incarnation) in members {
            set.0 |= 1 << node | u16::from(incarnation) << (3 + 2 * node);
        }
        set
    }

    pub(crate) const fn is_none(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn has(self, node: usize) -> bool {
        self.0 >> node & 1 == 1
    }

    /// Under which incarnation a member is named.
    pub(crate) const fn incarnation(self, node: usize) -> u8 {
        (self.0 >> (3 + 2 * node) & 3) as u8
    }

    pub(crate) const fn len(self) -> usize {
        (self.0 & 7).count_ones() as usize
    }

    pub(crate) const fn m(self) -> u8 {
        (self.0 >> 9 & 3) as u8
    }

    pub(crate) fn with_m(self, m: u8) -> InSync {
        InSync(self.0 & 0x1ff | u16::from(m) << 9)
    }

    pub(crate) fn members(self) -> impl Iterator<Item = usize> {
        (0..REPLICAS).filter(move |&node| self.has(node))
    }

    /// The same set where node `order[i]` is called `i`.
    fn renamed(self, order: &[usize; REPLICAS]) -> InSync {
        let mut set = self.0 & 0x600;
        for (name, &node) in order.iter().enumerate() {
            set |= (self.0 >> node & 1) << name;
            set |= (self.0 >> (3 + 2 * node) & 3) << (3 + 2 * name);
        }
        InSync(set)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Role {
    #[default]
    Idle,
    Follower,
    Leader,
}

/// Where a follower stands with its session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    #[default]
    Closed,
    /// The hello is in flight.
    Asked,
    /// The leader has taken the hello; its answer is in flight.
    Answered,
    /// The answer was taken. Frames are accepted.
    Streaming,
}

/// What a leader knows of the outcome of its proposal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing is out, or nothing has been decided.
    #[default]
    Open,
    /// The controller has accepted it; the leader has not heard of it yet.
    Accepted,
    /// The controller has refused a copy of it for another reason than stale epochs.
    Refused,
    /// The controller has accepted the present set anew, so that no copy can be accepted any more; the leader has not heard of
    /// it yet.
    Withdrawn,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Replica {
    pub log: Log,
    /// How many entries this replica takes for durable.
    pub durable: u8,
    /// How many entries really are. Less than `durable` only where recovery leaves its sync out.
    pub firm: u8,
    pub promised: u8,
    pub incarnation: u8,
    /// The incarnation that the controller has on record.
    pub registered: u8,
    /// The first incarnation without what was there before; 0: never lost anything.
    pub lost_at: u8,
    /// It knows that it has lost something, and no ISR change has named the present incarnation since.
    pub lossy: bool,
    pub role: Role,
    /// The epoch of the role; 0 while idle.
    pub epoch: u8,

    pub phase: Phase,
    /// While a session is opened: how many durable entries the hello showed.
    pub hello: u8,
    /// The lowest answer of this epoch, which may still be in flight; kept only where sessions are not keyed. 0: none, else
    /// the position + 1.
    pub old_answer: u8,

    /// Leader: the in-sync set that it counts by.
    pub isr: InSync,
    /// Leader: its proposal, until it has the outcome.
    pub pending: InSync,
    pub outcome: Outcome,
    /// Leader: the highest position it knows to be committed; 0 before its epoch start is.
    pub watermark: Position,
    /// Leader: what each follower's current session has acknowledged.
    pub matched: [Position; REPLICAS],
    /// Leader: by which incarnation, + 1; 0: no session.
    pub session: [u8; REPLICAS],
    /// Leader: the highest ack of the current session that was sent; at or above `matched`.
    pub acked: [Position; REPLICAS],
    /// The highest ack that was ever sent to this node, which may still be in flight; kept only where acks are not keyed.
    pub old_ack: [Position; REPLICAS],
}

impl Replica {
    /// All that names no other node, the log left out.
    fn own_fields(&self) -> u64 {
        u64::from(self.durable)
            | u64::from(self.firm) << 4
            | u64::from(self.promised) << 8
            | u64::from(self.incarnation) << 12
            | u64::from(self.registered) << 14
            | u64::from(self.lost_at) << 16
            | u64::from(self.lossy) << 18
            | (self.role as u64) << 19
            | u64::from(self.epoch) << 21
            | (self.phase as u64) << 25
            | u64::from(self.hello) << 27
            | u64::from(self.old_answer) << 31
            | (self.outcome as u64) << 39
            | u64::from(self.watermark.0) << 41
    }
}

/// A reply to a fence, as the controller has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reply {
    pub given: bool,
    pub end: Position,
    pub incarnation: u8,
    pub eligible: bool,
}

/// An appointment that its node may still act on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Appointment {
    /// The node's index + 1; 0: none.
    pub node: u8,
    pub incarnation: u8,
    pub isr: InSync,
}

/// A proposal in flight to the controller. Once sent it may arrive at any time, any number of times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Proposal {
    /// 0: none.
    pub epoch: u8,
    pub proposer: u8,
    /// Whether the partition epoch is still the one that the proposal names.
    pub fresh: bool,
    pub isr: InSync,
}

/// What happened on the way here; kept only by the searches that ask for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks(pub u8);

impl Marks {
    /// A set shrank after a record had been acknowledged.
    pub(crate) const SHRUNK: u8 = 1;
    /// A set grew after one shrank.
    pub(crate) const GREW_AGAIN: u8 = 2;
    pub(crate) const M_CHANGED: u8 = 4;
    /// A replica crashed that held an acknowledged record.
    pub(crate) const CRASHED_AFTER_ACK: u8 = 8;
    /// A leader of an older epoch than the controller's heard that its proposal had been accepted.
    pub(crate) const HEARD_LATE: u8 = 16;
    /// A record was acknowledged after that growth.
    pub(crate) const ACK_AFTER_GROWTH: u8 = 32;
    /// An ack of a restarted follower counted for a member named under its older incarnation.
    pub(crate) const COUNTED_RESTARTED: u8 = 64;

    pub(crate) fn add(&mut self, mark: u8) {
        self.0 |= mark;
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub replicas: [Replica; REPLICAS],

    /// The controller's leader epoch.
    pub epoch: u8,
    /// The controller's leader: the node's index + 1; 0 while an election is under way.
    pub leader: u8,
    pub isr: InSync,
    pub replies: [Reply; REPLICAS],
    /// By epoch - 1.
    pub appointed: [Appointment; EPOCHS],
    pub proposals: [Proposal; PROPOSALS],

    /// By epoch - 1: the log of a leader whose reign is over, while frames of it may be in flight to someone.
    pub reigns: [Log; EPOCHS],

    /// The number of the record that was appended last.
    pub records: u8,
    pub changes: u8,
    pub crashes: u8,

    /// By offset: each record that was acknowledged, its number in the low half, the epoch that committed it in the high one.
    pub acknowledged: [u8; RECORDS],
    pub marks: Marks,
}

const WORDS: usize = 5 * REPLICAS + 5 + EPOCHS;

impl State {
    /// The replica that leads in this epoch, if one does.
    pub(crate) fn leader_of(&self, epoch: u8) -> Option<usize> {
        (0..REPLICAS).find(|&node| {
            self.replicas[node].role == Role::Leader && self.replicas[node].epoch == epoch
        })
    }

    /// The log of the leader of this epoch, as far as its frames can be in flight.
    pub(crate) fn reign(&self, epoch: u8) -> Log {
        match self.leader_of(epoch) {
            Some(leader) => self.replicas[leader].log,
            None => self.reigns[epoch as usize - 1],
        }
    }

    /// A fingerprint that is the same for states that differ only in which node is called what.
    ///
    /// Sound because no rule looks at a node's number: ties are not broken, both ways are explored.
    pub(crate) fn fingerprint(&self, replicas: usize) -> u64 {
        const ORDERS: [[usize; REPLICAS]; 6] = [
            [0, 1, 2],
            [1, 0, 2],
            [0, 2, 1],
            [2, 1, 0],
            [1, 2, 0],
            [2, 0, 1],
        ];
        let orders = match replicas {
            1 => 1,
            2 => 2,
            _ => 6,
        };
        // Most states tell their nodes apart without a look at the others; only nodes that look alike are tried in every order.
        let looks: [u128; REPLICAS] = std::array::from_fn(|node| self.look_of(node));
        let lowest = ORDERS[..orders]
            .iter()
            .filter(|order| order[..replicas].is_sorted_by_key(|&node| looks[node]))
            .map(|order| hash(&self.words(order)))
            .min();
        lowest.unwrap_or_default()
    }

    /// What can be said of a node without naming another.
    fn look_of(&self, node: usize) -> u128 {
        let replica = &self.replicas[node];
        let member = u64::from(self.isr.has(node));
        let leads = u64::from(self.leader as usize == node + 1);
        u128::from(replica.log.0) << 64
            | u128::from(replica.own_fields() | member << 62 | leads << 63)
    }

    /// The state in words, where node `order[i]` is called `i`.
    fn words(&self, order: &[usize; REPLICAS]) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        let mut name_of = [0; REPLICAS];
        for (name, &node) in order.iter().enumerate() {
            name_of[node] = name as u64;
        }
        let renamed = |number: u8| match number {
            0 => 0,
            number => name_of[number as usize - 1] + 1,
        };
        for (name, &node) in order.iter().enumerate() {
            let replica = &self.replicas[node];
            let base = 5 * name;
            words[base] = replica.log.0;
            words[base + 1] = replica.own_fields();
            words[base + 2] = u64::from(replica.isr.renamed(order).0)
                | u64::from(replica.pending.renamed(order).0) << 16;
            for (other_name, &other) in order.iter().enumerate() {
                words[base + 2] |= u64::from(replica.session[other]) << (32 + 4 * other_name);
                words[base + 3] |= u64::from(replica.matched[other].0) << (8 * other_name)
                    | u64::from(replica.acked[other].0) << (24 + 8 * other_name);
                words[base + 4] |= u64::from(replica.old_ack[other].0) << (8 * other_name);
            }
            let reply = self.replies[node];
            words[base + 4] |= u64::from(reply.given) << 32
                | u64::from(reply.eligible) << 33
                | u64::from(reply.incarnation) << 34
                | u64::from(reply.end.0) << 36;
        }
        let base = 5 * REPLICAS;
        words[base] = u64::from(self.epoch)
            | renamed(self.leader) << 4
            | u64::from(self.isr.renamed(order).0) << 8
            | u64::from(self.records) << 24
            | u64::from(self.changes) << 28
            | u64::from(self.crashes) << 32
            | u64::from(self.marks.0) << 40;
        for (offset, &entry) in self.acknowledged.iter().enumerate() {
            words[base + 3] |= u64::from(entry) << (8 * offset);
        }
        for (index, appointment) in self.appointed.iter().enumerate() {
            let packed = renamed(appointment.node)
                | u64::from(appointment.incarnation) << 2
                | u64::from(appointment.isr.renamed(order).0) << 4;
            words[base + 1 + index / 2] |= packed << (32 * (index % 2));
        }
        // Proposals are a set: their order in the array means nothing.
        let mut proposals = self.proposals.map(|proposal| {
            u64::from(proposal.epoch)
                | renamed(proposal.proposer) << 3
                | u64::from(proposal.fresh) << 5
                | u64::from(proposal.isr.renamed(order).0) << 6
        });
        proposals.sort_unstable();
        for (index, proposal) in proposals.iter().enumerate() {
            words[base + 4] |= proposal << (17 * index);
        }
        words[base + 5..].copy_from_slice(&self.reigns.map(|log| log.0));
        words
    }
}

/// A multiply-and-fold hash; good enough that 10⁸ states collide once in some thousand searches.
fn hash(words: &[u64; WORDS]) -> u64 {
    const SEED: u64 = 0x51_7c_c1_b7_27_22_0a_95;
    let mut state = SEED;
    for &word in words {
        let product = u128::from(state ^ word) * u128::from(0xd6e8_feb8_6659_fd93_u64);
        state = (product as u64 ^ (product >> 64) as u64).wrapping_add(SEED);
    }
    let product = u128::from(state) * u128::from(0xa076_1d64_78bd_642f_u64);
    (product as u64) ^ (product >> 64) as u64
}
