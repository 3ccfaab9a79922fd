//! From what the nodes said to one row a link: the leader's view, with what only the follower's end knows, and where the two
//! differ. No I/O.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use tokio::time::Instant;

use super::Sample;
use crate::broker::{LinkDirection, LinkState, LinkView};
use crate::doctor::span;
use crate::types::NodeId;

/// One link from a leader to a follower. Fields are `null` where they are not known.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) leader: NodeId,
    pub(super) follower: NodeId,
    pub(super) leader_answers: bool,
    pub(super) follower_answers: bool,
    pub(super) state: LinkState,
    pub(super) state_ms: u64,
    /// How long ago the leader heard the follower, by any packet of its.
    pub(super) heard_ms: Option<u64>,
    pub(super) rtt_us: Option<u64>,
    pub(super) rtt_variance_us: Option<u64>,
    /// Of the packets that the leader sent since the last sample, or of all where none was sent, how many were lost.
    pub(super) loss_percent: Option<f64>,
    pub(super) window_bytes: Option<u64>,
    pub(super) in_flight_bytes: Option<u64>,
    pub(super) mtu: Option<u16>,
    /// Of UDP, from the leader, between two samples.
    pub(super) sent_bytes_per_s: Option<u64>,
    pub(super) received_bytes_per_s: Option<u64>,
    /// Of small frames, sent a second time by the leader because the link loses packets; since the leader's process began.
    pub(super) copied_bytes: u64,
    pub(super) migrations: u64,
    /// Of the follower, who is the one that dials.
    pub(super) redials: Option<u64>,
    pub(super) handshakes: u64,
    pub(super) suspicions: u64,
    pub(super) lag: Lag,
    /// The latest of either end.
    pub(super) last_error: Option<EndError>,
    /// Where the follower's end is not as the leader's says, in words.
    pub(super) differs: Vec<String>,
}

/// How far the follower is behind.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub(super) enum Lag {
    Known {
        records: u64,
        bytes: Option<u64>,
        ms: Option<u64>,
    },
    /// It cannot be heard, and so nobody knows.
    Unknown {
        /// In words.
        why: String,
        /// Records that it has not confirmed, as far as the leader can tell.
        unconfirmed_records: Option<u64>,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct EndError {
    /// The node that met with it.
    pub(super) node: NodeId,
    pub(super) cause: String,
    pub(super) age_ms: u64,
}

/// Counters of one connection as they stood, for rates.
#[derive(Debug, Clone, Copy)]
struct Counters {
    at: Instant,
    sent_bytes: u64,
    received_bytes: u64,
    sent_packets: u64,
    lost_packets: u64,
}

/// What was seen before.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// Bounded by the links that nodes tell of: one each way a pair.
    counters: BTreeMap<(NodeId, NodeId), Counters>,
    /// The records by which each follower was behind when it was last heard.
    lags: BTreeMap<(NodeId, NodeId), u64>,
}

impl Rows {
    /// The links by this sample, with rates since the one before.
    pub(super) fn take(&mut self, sample: &Sample) -> Vec<Row> {
        let mut pairs = BTreeSet::new();
        for (node, answer) in &sample.answers {
            for link in &answer.links {
                pairs.insert(match link.direction {
                    LinkDirection::ToFollower => (*node, link.peer),
                    LinkDirection::ToLeader => (link.peer, *node),
                });
            }
        }
        self.counters.retain(|pair, _| pairs.contains(pair));
        self.lags.retain(|pair, _| pairs.contains(pair));
        pairs
            .into_iter()
            .filter_map(|(leader, follower)| self.row(sample, leader, follower))
            .collect()
    }

    fn row(&mut self, sample: &Sample, leader: NodeId, follower: NodeId) -> Option<Row> {
        let end = |node: NodeId, direction, peer| {
            let answer = sample.answers.get(&node)?;
            answer
                .links
                .iter()
                .find(|link| link.direction == direction && link.peer == peer)
        };
        let at_leader = end(leader, LinkDirection::ToFollower, follower);
        let at_follower = end(follower, LinkDirection::ToLeader, leader);
        let leader_answers = sample.answers.contains_key(&leader);
        let main = at_leader.or(at_follower)?;
        // A follower's end of a link that its leader does not know of is one that does not stand.
        let is_lone = at_leader.is_none() && leader_answers;
        let stands = main.mtu > 0 && !is_lone;
        let (state, state_ms) = match main.state {
            _ if is_lone => (LinkState::Down, main.state_ms),
            // Between the last sign of life and the suspicion: whoever reads this cannot count on it.
            LinkState::Up if !main.heard => (LinkState::Silent, main.silence_ms),
            state => (state, main.state_ms),
        };
        let path = |value: u64| stands.then_some(value);
        let rates = match at_leader {
            Some(link) if link.mtu > 0 => self.rates((leader, follower), link, sample.at),
            _ => Rates::default(),
        };
        Some(Row {
            leader,
            follower,
            leader_answers,
            follower_answers: sample.answers.contains_key(&follower),
            state,
            state_ms,
            heard_ms: at_leader.map(|link| link.silence_ms),
            rtt_us: path(main.rtt_us),
            rtt_variance_us: path(main.rtt_variance_us),
            loss_percent: rates.loss_percent,
            window_bytes: path(main.window_bytes),
            in_flight_bytes: path(main.in_flight_bytes),
            mtu: stands.then_some(main.mtu),
            sent_bytes_per_s: rates.sent,
            received_bytes_per_s: rates.received,
            copied_bytes: main.copied_bytes,
            migrations: at_follower
                .map_or(0, |link| link.migrations)
                .max(at_leader.map_or(0, |link| link.migrations)),
            redials: at_follower.map(|link| link.redials),
            handshakes: main.handshakes,
            suspicions: main.suspicions,
            lag: self.lag(leader, follower, at_leader, leader_answers),
            last_error: last_error(leader, at_leader, follower, at_follower),
            differs: differences(at_leader, at_follower, leader_answers),
        })
    }

    fn lag(
        &mut self,
        leader: NodeId,
        follower: NodeId,
        at_leader: Option<&LinkView>,
        leader_answers: bool,
    ) -> Lag {
        let pair = (leader, follower);
        let Some(link) = at_leader else {
            let why = if leader_answers {
                "the leader does not know of the follower".to_owned()
            } else {
                format!("node {leader}, the leader, does not answer")
            };
            return Lag::Unknown {
                why,
                unconfirmed_records: None,
            };
        };
        let lag = link.lag.unwrap_or_default();
        match lag.records {
            Some(records) if link.heard && lag.unknown == 0 => {
                self.lags.insert(pair, records);
                Lag::Known {
                    records,
                    bytes: lag.bytes,
                    ms: lag.behind_ms,
                }
            }
            _ => {
                let unconfirmed = lag.unconfirmed_records;
                let mut why = match link.heard {
                    true => format!(
                        "no session yet for {} of {} partitions",
                        lag.unknown, lag.partitions
                    ),
                    // Of one that never came, nothing was ever heard.
                    false if link.handshakes == 0 => "never heard yet".to_owned(),
                    false => format!("last heard {} ago", span(ms(link.silence_ms))),
                };
                match (self.lags.get(&pair), unconfirmed) {
                    (Some(records), _) => {
                        why.push_str(&format!(", was {} behind", count_records(*records)));
                    }
                    (None, Some(records)) => {
                        why.push_str(&format!(", {} not confirmed", count_records(records)));
                    }
                    (None, None) => {}
                }
                Lag::Unknown {
                    why,
                    unconfirmed_records: unconfirmed,
                }
            }
        }
    }

    fn rates(&mut self, pair: (NodeId, NodeId), link: &LinkView, at: Instant) -> Rates {
        let now = Counters {
            at,
            sent_bytes: link.sent_bytes,
            received_bytes: link.received_bytes,
            sent_packets: link.sent_packets,
            lost_packets: link.lost_packets,
        };
        let before = self.counters.insert(pair, now);
        // Counters that have fallen are those of another connection, which began since then.
        let before = before.filter(|before| before.sent_bytes <= now.sent_bytes);
        let per_second =
            |new: u64, old: u64, seconds: f64| (new.saturating_sub(old) as f64 / seconds) as u64;
        let elapsed = before.map(|before| now.at.duration_since(before.at).as_secs_f64());
        let (sent_packets, lost_packets) = match before {
            Some(before) if now.sent_packets > before.sent_packets => (
                now.sent_packets - before.sent_packets,
                now.lost_packets.saturating_sub(before.lost_packets),
            ),
            _ => (now.sent_packets, now.lost_packets),
        };
        let mut rates = Rates {
            loss_percent: (sent_packets > 0)
                .then(|| (lost_packets as f64 * 100.0 / sent_packets as f64).min(100.0)),
            ..Rates::default()
        };
        if let (Some(before), Some(seconds)) = (before, elapsed.filter(|seconds| *seconds > 0.0)) {
            rates.sent = Some(per_second(now.sent_bytes, before.sent_bytes, seconds));
            rates.received = Some(per_second(
                now.received_bytes,
                before.received_bytes,
                seconds,
            ));
        }
        rates
    }
}

#[derive(Debug, Default)]
struct Rates {
    sent: Option<u64>,
    received: Option<u64>,
    loss_percent: Option<f64>,
}

fn last_error(
    leader: NodeId,
    at_leader: Option<&LinkView>,
    follower: NodeId,
    at_follower: Option<&LinkView>,
) -> Option<EndError> {
    let told = |node, end: Option<&LinkView>| {
        let error = end?.last_error.as_ref()?;
        Some(EndError {
            node,
            cause: error.cause.clone(),
            age_ms: error.age_ms,
        })
    };
    let errors = [told(leader, at_leader), told(follower, at_follower)];
    errors
        .into_iter()
        .flatten()
        .min_by_key(|error| error.age_ms)
}

fn differences(
    at_leader: Option<&LinkView>,
    at_follower: Option<&LinkView>,
    leader_answers: bool,
) -> Vec<String> {
    match (at_leader, at_follower) {
        (Some(leader), Some(follower)) if leader.state != follower.state => vec![format!(
            "the follower's end is {} for {}",
            state_word(follower.state),
            span(ms(follower.state_ms))
        )],
        (None, Some(follower)) if leader_answers => vec![format!(
            "only the follower's end knows of it: {} for {}",
            state_word(follower.state),
            span(ms(follower.state_ms))
        )],
        (None, Some(_)) => vec!["as the follower sees it".to_owned()],
        _ => Vec::new(),
    }
}

pub(super) fn state_word(state: LinkState) -> &'static str {
    match state {
        LinkState::Up => "up",
        LinkState::Silent => "silent",
        LinkState::Down => "down",
        LinkState::Idle => "idle",
    }
}

fn count_records(records: u64) -> String {
    match records {
        1 => "1 record".to_owned(),
        records => format!("{records} records"),
    }
}

fn ms(ms: u64) -> std::time::Duration {
    std::time::Duration::from_millis(ms)
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::admin::NodeLinks;
    use crate::broker::{FollowerLag, LinkError};

    fn node(id: u32) -> NodeId {
        NodeId::new(id).unwrap()
    }

    pub(in crate::cli::link) fn link(direction: LinkDirection, peer: u32) -> LinkView {
        LinkView {
            window_bytes: 131_072,
            sent_packets: 1000,
            lost_packets: 10,
            sent_bytes: 100_000,
            received_bytes: 50_000,
            lag: (direction == LinkDirection::ToFollower).then_some(FollowerLag {
                partitions: 1,
                unknown: 0,
                records: Some(3),
                bytes: Some(300),
                behind_ms: Some(7),
                unconfirmed_records: None,
            }),
            ..LinkView::sample(direction, node(peer))
        }
    }

    /// Node 1 leads, node 2 follows.
    pub(in crate::cli::link) fn sample(
        at: Instant,
        leader: Option<LinkView>,
        follower: Option<LinkView>,
    ) -> Sample {
        let answer = |id, link: LinkView| {
            let links = NodeLinks {
                node: node(id),
                nodes: Vec::new(),
                links: vec![link],
            };
            (node(id), links)
        };
        let leader = leader.map(|link| answer(1, link));
        let follower = follower.map(|link| answer(2, link));
        Sample {
            at,
            answers: leader.into_iter().chain(follower).collect(),
            silent: Vec::new(),
            error: None,
        }
    }

    fn both(at: Instant) -> Sample {
        sample(
            at,
            Some(link(LinkDirection::ToFollower, 2)),
            Some(link(LinkDirection::ToLeader, 1)),
        )
    }

    fn only(rows: Vec<Row>) -> Row {
        assert_eq!(rows.len(), 1, "{rows:?}");
        rows.into_iter().next().unwrap()
    }

    #[test]
    fn both_ends_are_one_row_and_rates_come_from_two_samples() {
        let mut rows = Rows::default();
        let start = Instant::now();
        let first = only(rows.take(&both(start)));
        assert_eq!((first.leader, first.follower), (node(1), node(2)));
        assert_eq!(first.sent_bytes_per_s, None);
        assert_eq!(first.loss_percent, Some(1.0));
        assert_eq!((first.redials, first.differs.len()), (Some(0), 0));

        let mut later = link(LinkDirection::ToFollower, 2);
        later.sent_bytes += 3_000;
        later.sent_packets += 50;
        later.lost_packets += 5;
        let at = start + Duration::from_secs(2);
        let second = only(rows.take(&sample(at, Some(later.clone()), None)));
        assert_eq!(second.sent_bytes_per_s, Some(1_500));
        assert_eq!(second.loss_percent, Some(10.0));
        assert_eq!(second.redials, None, "only the follower's end counts them");

        // Another connection begins to count anew.
        later.sent_bytes = 10;
        later.sent_packets = 0;
        later.lost_packets = 0;
        let at = start + Duration::from_secs(3);
        let third = only(rows.take(&sample(at, Some(later), None)));
        assert_eq!((third.sent_bytes_per_s, third.loss_percent), (None, None));
    }

    #[test]
    fn a_follower_that_is_not_heard_has_no_lag_of_nothing() {
        let mut silent = link(LinkDirection::ToFollower, 2);
        silent.state = LinkState::Silent;
        silent.heard = false;
        silent.silence_ms = 12_000;
        silent.lag = Some(FollowerLag {
            partitions: 1,
            records: None,
            bytes: None,
            behind_ms: Some(12_000),
            unknown: 1,
            unconfirmed_records: Some(0),
        });
        let start = Instant::now();
        let fresh = only(Rows::default().take(&sample(start, Some(silent.clone()), None)));
        let Lag::Unknown { why, .. } = fresh.lag else {
            panic!("{:?}", fresh.lag);
        };
        assert_eq!(why, "last heard 12.0 s ago, 0 records not confirmed");

        let mut rows = Rows::default();
        let known = only(rows.take(&both(start)));
        assert_eq!(
            known.lag,
            Lag::Known {
                records: 3,
                bytes: Some(300),
                ms: Some(7)
            }
        );
        let after = only(rows.take(&sample(start, Some(silent.clone()), None)));
        let Lag::Unknown { why, .. } = after.lag else {
            panic!("{:?}", after.lag);
        };
        assert_eq!(why, "last heard 12.0 s ago, was 3 records behind");

        let mut half = link(LinkDirection::ToFollower, 2);
        half.lag = Some(FollowerLag {
            partitions: 4,
            unknown: 1,
            records: None,
            bytes: None,
            behind_ms: None,
            unconfirmed_records: None,
        });
        let row = only(Rows::default().take(&sample(start, Some(half), None)));
        let Lag::Unknown { why, .. } = row.lag else {
            panic!("{:?}", row.lag);
        };
        assert_eq!(why, "no session yet for 1 of 4 partitions");
        let alone = sample(start, None, Some(link(LinkDirection::ToLeader, 1)));
        let row = only(Rows::default().take(&alone));
        assert!(matches!(row.lag, Lag::Unknown { why, .. } if why.contains("does not answer")));
    }

    #[test]
    fn where_the_ends_differ_it_is_said_and_the_latest_error_is_shown() {
        let mut at_leader = link(LinkDirection::ToFollower, 2);
        at_leader.last_error = Some(LinkError {
            cause: "old".to_owned(),
            age_ms: 9_000,
        });
        let mut at_follower = link(LinkDirection::ToLeader, 1);
        at_follower.state = LinkState::Down;
        at_follower.state_ms = 3_000;
        at_follower.redials = 4;
        at_follower.migrations = 2;
        at_follower.last_error = Some(LinkError {
            cause: "new".to_owned(),
            age_ms: 100,
        });
        let ends = sample(Instant::now(), Some(at_leader), Some(at_follower));
        let row = only(Rows::default().take(&ends));
        assert_eq!(row.state, LinkState::Up);
        assert_eq!(row.differs, ["the follower's end is down for 3.0 s"]);
        assert_eq!((row.redials, row.migrations), (Some(4), 2));
        let error = row.last_error.unwrap();
        assert_eq!((error.node, error.cause.as_str()), (node(2), "new"));
    }
}
