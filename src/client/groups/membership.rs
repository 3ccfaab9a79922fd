//! Being a member of a group: joining, saying that one lives, leaving.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    GroupId, HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
    SyncGroupRequest,
};
use kafka_protocol::protocol::StrBytes;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::assign::{RANGE, partition_names, range};
use super::consumer::GroupConfig;
use super::coordinator::is_passing;
use crate::client::api::Spoken;
use crate::client::connection::Lane;
use crate::client::error::ClientError;
use crate::client::link::{Link, Session};
use crate::client::metadata::PartitionName;
use crate::client::{Client, Start, wire_str};
use crate::groups::{
    Subscription, decode_assignment, decode_subscription, encode_assignment, encode_subscription,
};
use crate::types::{ErrorCode, NodeId, TopicName};

/// The protocol type of consumers.
const CONSUMER: &str = "consumer";
/// How often a leader looks whether a topic has got partitions.
const LOOK_FOR_PARTITIONS: Duration = Duration::from_secs(60);
/// The most members' topics that a leader asks the cluster about.
const MAX_TOPICS: usize = 10_000;

/// A place in one generation of a group. Heartbeats are sent until it is dropped.
pub(super) struct Membership {
    pub(super) member: String,
    pub(super) generation: i32,
    /// What this member is to read, and from where.
    pub(super) starts: Vec<(PartitionName, Start)>,
    pub(super) trouble: watch::Receiver<Option<Trouble>>,
    heartbeats: AbortHandle,
}

/// Why a member has to join again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The group rebalances: what has been read can still be committed.
    Rebalance,
    /// The group went on without this member. `known`: it may join again under its id.
    Lost { known: bool },
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.heartbeats.abort();
    }
}

/// Joins for as long as it takes: a coordinator that cannot be reached is tried again for ever, with a log line.
pub(super) async fn join(
    client: Client,
    config: Arc<GroupConfig>,
    mut member: String,
) -> Result<Membership, ClientError> {
    let mut failures = 0;
    loop {
        let error = match try_join(&client, &config, &mut member).await {
            Ok(membership) => return Ok(membership),
            Err(error) => error,
        };
        match error.error_code() {
            // The id came with the answer.
            Some(ErrorCode::MemberIdRequired) => continue,
            Some(ErrorCode::UnknownMemberId | ErrorCode::FencedInstanceId) => member.clear(),
            Some(ErrorCode::RebalanceInProgress | ErrorCode::IllegalGeneration) => {}
            _ if is_passing(&error) || error.is_retriable() => {}
            _ => return Err(error),
        }
        failures += 1;
        if failures == 1 {
            tracing::warn!(group = config.group, %error, "cannot join the group; trying again");
        }
        tokio::time::sleep(client.wait_after(failures)).await;
    }
}

async fn try_join(
    client: &Client,
    config: &Arc<GroupConfig>,
    member: &mut String,
) -> Result<Membership, ClientError> {
    let group = &config.group;
    let (node, link) = client.find_coordinator(group).await?;
    // Of its own: the answer may be minutes away, and a node answers one request of a lane after the other.
    let (lane, session) = link.open_lane().await?;
    let lane = GroupLane {
        lane,
        session,
        link: &link,
        client,
        group,
        node,
    };
    let subscription = Subscription {
        topics: config.topics.iter().map(|t| t.as_str().into()).collect(),
        generation: -1,
        ..Subscription::default()
    };
    let request = JoinGroupRequest::default()
        .with_group_id(GroupId(wire_str(group)))
        .with_session_timeout_ms(milliseconds(config.session_timeout))
        .with_rebalance_timeout_ms(milliseconds(config.rebalance_timeout))
        .with_member_id(wire_str(member))
        .with_protocol_type(StrBytes::from_static_str(CONSUMER))
        .with_protocols(vec![
            JoinGroupRequestProtocol::default()
                .with_name(StrBytes::from_static_str(RANGE))
                .with_metadata(encode_subscription(&subscription)),
        ]);
    let patience = config.rebalance_timeout + client.config().request_timeout;
    let joined = lane.call(&request, patience).await?;
    if !joined.member_id.is_empty() {
        *member = joined.member_id.to_string();
    }
    check(joined.error_code, || format!("joining group {group}"))?;
    let is_leader = joined.leader == joined.member_id;
    let mut counts = BTreeMap::new();
    let assignments = if is_leader {
        let subscribed = subscriptions(&joined);
        counts = partition_counts(client, subscribed.values().flatten()).await?;
        range(&subscribed, &counts)
            .into_iter()
            .map(|(member, assignment)| {
                SyncGroupRequestAssignment::default()
                    .with_member_id(StrBytes::from_string(member))
                    .with_assignment(encode_assignment(&assignment))
            })
            .collect()
    } else {
        Vec::new()
    };
    let request = SyncGroupRequest::default()
        .with_group_id(GroupId(wire_str(group)))
        .with_generation_id(joined.generation_id)
        .with_member_id(joined.member_id.clone())
        .with_assignments(assignments);
    let synced = lane.call(&request, patience).await?;
    let what = || format!("asking for an assignment in group {group}");
    check(synced.error_code, what)?;
    let (tell, trouble) = watch::channel(None);
    let heart = Heart {
        client: client.clone(),
        config: config.clone(),
        member: member.clone(),
        generation: joined.generation_id,
        counts,
        tell,
    };
    // From here on, so that asking for offsets may take its time.
    let mut membership = Membership {
        member: member.clone(),
        generation: joined.generation_id,
        starts: Vec::new(),
        trouble,
        heartbeats: tokio::spawn(heart.beat()).abort_handle(),
    };
    let assigned = assigned(&synced.assignment, group)?;
    let committed = match assigned.is_empty() {
        true => Default::default(),
        false => client.committed(group, Some(&assigned)).await?,
    };
    let start = |name: PartitionName| {
        let offset = committed.get(&name).copied();
        let offset = offset.and_then(crate::types::Offset::from_wire);
        let start = offset.map_or(config.start, Start::Offset);
        (name, start)
    };
    membership.starts = assigned.into_iter().map(start).collect();
    Ok(membership)
}

fn check(code: i16, what: impl FnOnce() -> String) -> Result<(), ClientError> {
    ClientError::check(code, None, what)
}

fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

struct GroupLane<'a> {
    lane: Lane,
    session: Arc<Session>,
    link: &'a Link,
    client: &'a Client,
    group: &'a str,
    node: NodeId,
}

impl GroupLane<'_> {
    async fn call<R: Spoken>(
        &self,
        request: &R,
        timeout: Duration,
    ) -> Result<R::Response, ClientError> {
        let version = self.session.versions.pick::<R>(&self.link.address)?;
        tokio::select! {
            response = self.lane.call(request, version, R::NAME, timeout) => response,
            moved = self.client.coordinator_moved(self.group, self.node, self.link) => Err(moved),
        }
    }
}

/// The topics that each member subscribes to. What cannot be read is a subscription to nothing.
fn subscriptions(joined: &JoinGroupResponse) -> BTreeMap<String, Vec<Arc<str>>> {
    let member =
        |member: &kafka_protocol::messages::join_group_response::JoinGroupResponseMember| {
            let subscription = decode_subscription(&member.metadata).unwrap_or_default();
            (member.member_id.to_string(), subscription.topics)
        };
    joined.members.iter().map(member).collect()
}

/// How many partitions each topic has, of those that exist.
async fn partition_counts<'a>(
    client: &Client,
    topics: impl Iterator<Item = &'a Arc<str>>,
) -> Result<BTreeMap<Arc<str>, i32>, ClientError> {
    let names: BTreeSet<TopicName> = topics
        .filter_map(|name| TopicName::new(name).ok())
        .collect();
    let names: Vec<TopicName> = names.into_iter().take(MAX_TOPICS).collect();
    if names.is_empty() {
        return Ok(BTreeMap::new());
    }
    let (view, _) = client.refresh(&names, false).await?;
    let count = |name: &TopicName| {
        let count = view.topics.get(name)?.partitions.len();
        Some((name.as_str().into(), i32::try_from(count).ok()?))
    };
    Ok(names.iter().filter_map(count).collect())
}

fn assigned(bytes: &Bytes, group: &str) -> Result<Vec<PartitionName>, ClientError> {
    let assignment = decode_assignment(bytes).map_err(|error| ClientError::Malformed {
        address: "the group's leader".to_owned(),
        request: SyncGroupRequest::NAME,
        what: format!("its assignment in group {group}: {error}"),
    })?;
    Ok(partition_names(assignment))
}

/// Says that a member lives, until it is told that it has to join again for good.
struct Heart {
    client: Client,
    config: Arc<GroupConfig>,
    member: String,
    generation: i32,
    /// Of a leader: the partitions that it gave out.
    counts: BTreeMap<Arc<str>, i32>,
    tell: watch::Sender<Option<Trouble>>,
}

impl Heart {
    async fn beat(self) {
        let mut ticks = tokio::time::interval(self.config.session_timeout / 3);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut looked = tokio::time::Instant::now();
        loop {
            ticks.tick().await;
            let request = HeartbeatRequest::default()
                .with_group_id(GroupId(wire_str(&self.config.group)))
                .with_generation_id(self.generation)
                .with_member_id(wire_str(&self.member));
            let beaten = self
                .client
                .at_coordinator(&self.config.group, &request, |response, _| {
                    check(response.error_code, || "a heartbeat".to_owned())
                })
                .await;
            let code = beaten.as_ref().err().and_then(ClientError::error_code);
            let trouble = match code {
                Some(ErrorCode::RebalanceInProgress) => Trouble::Rebalance,
                Some(ErrorCode::IllegalGeneration) => Trouble::Lost { known: true },
                Some(ErrorCode::UnknownMemberId | ErrorCode::FencedInstanceId) => {
                    Trouble::Lost { known: false }
                }
                _ => {
                    if let Err(error) = beaten {
                        // Tried again with the next; the group goes on without this member if that takes too long.
                        tracing::warn!(group = self.config.group, %error, "no heartbeat could be sent");
                    }
                    if self.counts.is_empty() || looked.elapsed() < LOOK_FOR_PARTITIONS {
                        continue;
                    }
                    looked = tokio::time::Instant::now();
                    match partition_counts(&self.client, self.counts.keys()).await {
                        Ok(counts) if counts != self.counts => Trouble::Rebalance,
                        _ => continue,
                    }
                }
            };
            self.tell.send_replace(Some(trouble));
            if matches!(trouble, Trouble::Lost { .. }) {
                return;
            }
        }
    }
}

/// Leaves, so that the others need not wait for the session's end.
pub(super) async fn leave(
    client: &Client,
    config: &GroupConfig,
    member: &str,
) -> Result<(), ClientError> {
    let request = LeaveGroupRequest::default()
        .with_group_id(GroupId(wire_str(&config.group)))
        .with_members(vec![
            MemberIdentity::default().with_member_id(wire_str(member)),
        ]);
    client
        .at_coordinator(&config.group, &request, |response, _| {
            check(response.error_code, || {
                format!("leaving group {}", config.group)
            })
        })
        .await
}
