//! The follower's end of one link: carries out what the [`LinkKeeper`] decides, for as long as this node follows that leader.
//!
//! Connections come and go, one is in use at a time, and the owner threads learn of each change: they open their sessions on
//! the connection that is adopted, from where their logs end, before the one before it is closed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::event::{Event, PeerProcess};
use super::heartbeat::LastHeard;
use super::leader_channel::LeaderChannel;
use super::leader_connection::{self, Greeted, control_reader, read_control};
use super::links::LinkDirection;
use super::shared::Shared;
use crate::transport::{
    Alpn, CloseReason, CurrentIdentity, DialId, Dialled, Ear, EndCause, KeeperAction, KeeperReport,
    LOOK_EVERY, LinkKeeper, LogLimit, PeerAddress, Sockets, round_trip,
};
use crate::types::{ClusterId, MonotonicTime, NodeId};
use crate::wire::{ControlMessage, Hello, PROTOCOL_VERSION};

/// How long a close waits until the leader knows of it.
const CLOSE_WAIT: Duration = Duration::from_millis(100);

pub(super) static NEXT_CHANNEL: AtomicU64 = AtomicU64::new(1);

/// What a link needs to know of this node.
#[derive(Clone)]
pub(super) struct LinkOptions {
    pub(super) identity: Arc<CurrentIdentity>,
    pub(super) sockets: Sockets,
    pub(super) cluster: ClusterId,
}

/// Keeps a connection to `leader` until `stop`. `address` is where the leader is registered; a change of it redials at once.
pub(super) async fn keep(
    shared: Arc<Shared>,
    options: LinkOptions,
    leader: NodeId,
    mut address: watch::Receiver<String>,
    stop: CancellationToken,
) {
    let first = address.borrow_and_update().clone();
    let mut driver = Driver {
        keeper: LinkKeeper::new(shared.clock.now(), first, rand::random()),
        shared,
        options,
        leader,
        dialling: BTreeMap::new(),
        greeted: BTreeMap::new(),
        connections: BTreeMap::new(),
        dials: JoinSet::new(),
        serving: JoinSet::new(),
        limits: Limits::default(),
    };
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        driver.carry_out().await;
        tokio::select! {
            () = stop.cancelled() => break,
            changed = address.changed() => {
                if changed.is_err() {
                    break;
                }
                let address = address.borrow_and_update().clone();
                let now = driver.shared.clock.now();
                driver.keeper.handle_address(now, &address);
            }
            Some(dialled) = driver.dials.join_next() => {
                if let Ok((dial, result)) = dialled {
                    driver.handle_dialled(dial, result);
                }
            }
            Some(ended) = driver.serving.join_next() => {
                if let Ok((dial, cause)) = ended {
                    driver.handle_ended(dial, &cause).await;
                }
            }
            _ = look.tick() => driver.look(),
        }
    }
    driver.keeper.handle_stop();
    driver.carry_out().await;
    while let Some(ended) = driver.serving.join_next().await {
        if let Ok((dial, cause)) = ended {
            driver.handle_ended(dial, &cause).await;
        }
    }
    driver.shared.links.rest(leader);
}

type Greeting = (Greeted, PeerProcess);

struct Driver {
    keeper: LinkKeeper,
    shared: Arc<Shared>,
    options: LinkOptions,
    leader: NodeId,
    /// The dials that are under way.
    dialling: BTreeMap<DialId, Dialling>,
    /// Dials that were answered and not adopted yet, with why they were begun. The keeper decides in the same turn, so there is
    /// one at most.
    greeted: BTreeMap<DialId, (Greeting, String)>,
    /// The connection in use, and those that are being closed.
    connections: BTreeMap<DialId, InUse>,
    dials: JoinSet<(DialId, Result<Greeting, String>)>,
    serving: JoinSet<(DialId, String)>,
    limits: Limits,
}

/// A dial that is under way.
struct Dialling {
    give_up: CancellationToken,
    begun: Instant,
    /// Why it was begun.
    cause: String,
}

/// A connection that was adopted.
struct InUse {
    dialled: Dialled,
    channel: Arc<LeaderChannel>,
    heard: Arc<LastHeard>,
    ear: Ear,
    /// Why it was dialled.
    dialled_for: String,
    end: CancellationToken,
    /// The socket that it was moved from, and when, until something is heard over the new one: only then has it moved.
    moved: Option<(Option<SocketAddr>, MonotonicTime)>,
    /// Why this end closes it.
    closed_for: Option<EndCause>,
}

/// Lines that could repeat: one a second of each kind.
#[derive(Default)]
struct Limits {
    dial: LogLimit,
    failed: LogLimit,
    silent: LogLimit,
    heard: LogLimit,
    tried: LogLimit,
    moved: LogLimit,
    up: LogLimit,
    down: LogLimit,
}

impl Driver {
    /// Does what the keeper wants done.
    async fn carry_out(&mut self) {
        while let Some(action) = self.keeper.poll_action() {
            match action {
                KeeperAction::Dial {
                    dial,
                    address,
                    cause,
                    patience,
                } => {
                    self.shared.links.count_dial(self.leader, &address);
                    if let Some(suppressed) = self.limits.dial.allow() {
                        tracing::info!(leader = %self.leader, %address, %dial, %cause, suppressed, "dialling");
                    }
                    self.dial(dial, (address, patience), cause.to_string());
                }
                KeeperAction::GiveUp { dial, cause } => {
                    let given_up = self.dialling.remove(&dial);
                    if let Some(given_up) = &given_up {
                        given_up.give_up.cancel();
                    }
                    if cause == EndCause::Unanswered {
                        let address = self.keeper.address().to_owned();
                        let took = given_up.map(|given_up| given_up.begun.elapsed());
                        self.note_failure(dial, &address, "no answer", took, None);
                    }
                }
                KeeperAction::Rebind { connection } => self.rebind(connection),
                KeeperAction::Adopt { connection } => self.adopt(connection).await,
                KeeperAction::Close { connection, cause } => {
                    if let Some(in_use) = self.connections.get_mut(&connection) {
                        in_use.closed_for = Some(cause);
                        in_use.end.cancel();
                    }
                    if let Some(((greeted, _), _)) = self.greeted.remove(&connection) {
                        let connection = &greeted.dialled.connection;
                        CloseReason::Superseded.close(connection, &cause.to_string());
                    }
                }
                KeeperAction::Report(report) => self.report(report),
            }
        }
    }

    fn dial(&mut self, dial: DialId, (address, patience): (String, Duration), cause: String) {
        let give_up = CancellationToken::new();
        let dialling = Dialling {
            give_up: give_up.clone(),
            begun: Instant::now(),
            cause,
        };
        self.dialling.insert(dial, dialling);
        let (shared, options) = (self.shared.clone(), self.options.clone());
        let peer = PeerAddress::node(self.leader, address);
        self.dials.spawn(async move {
            let connected = connect(&shared, &options, (&peer, patience), &give_up).await;
            (dial, connected)
        });
    }

    fn handle_dialled(&mut self, dial: DialId, result: Result<Greeting, String>) {
        let now = self.shared.clock.now();
        let dialling = self.dialling.remove(&dial);
        match result {
            Ok(greeting) => {
                let cause = dialling.map_or_else(String::new, |dialling| dialling.cause);
                self.greeted.insert(dial, (greeting, cause));
                self.keeper.handle_dialled(now, dial);
            }
            Err(cause) => self.keeper.handle_failed(now, dial, &cause),
        }
    }

    /// The owner threads are told of a connection before the one that it replaces is closed: each of them then opens its
    /// sessions on it, and what still comes over the other is of sessions that are replaced.
    async fn adopt(&mut self, dial: DialId) {
        let Some(((greeted, process), dialled_for)) = self.greeted.remove(&dial) else {
            return;
        };
        let id = NEXT_CHANNEL.fetch_add(1, Ordering::Relaxed);
        let (channel, control) = LeaderChannel::new(id, process);
        let channel = Arc::new(channel);
        let heard = Arc::new(LastHeard::now(self.shared.clock));
        let connection = greeted.dialled.connection.clone();
        self.shared.links.insert(
            LinkDirection::ToLeader,
            self.leader,
            id,
            connection.clone(),
            heard.clone(),
        );
        let in_use = InUse {
            dialled: greeted.dialled.clone(),
            channel: channel.clone(),
            heard: heard.clone(),
            ear: Ear::new(&connection),
            dialled_for,
            end: CancellationToken::new(),
            moved: None,
            closed_for: None,
        };
        let (shared, end) = (self.shared.clone(), in_use.end.clone());
        self.connections.insert(dial, in_use);
        for shard in self.shared.shards() {
            let channel = channel.clone();
            let _ = shard.mailbox.send(Event::LeaderConnected { channel }).await;
        }
        self.serving.spawn(async move {
            let mut control = control;
            let served =
                leader_connection::serve(&shared, greeted, &channel, &mut control, &heard, &end);
            let cause = served.await;
            // While the queue is still there, so that nobody takes its end for a leader that does not read.
            channel.broken.cancel();
            (dial, cause)
        });
    }

    async fn handle_ended(&mut self, dial: DialId, cause: &str) {
        let Some(in_use) = self.connections.remove(&dial) else {
            return;
        };
        let channel = in_use.channel;
        let (cause, idle) = match in_use.closed_for {
            Some(end) => (end.to_string(), end == EndCause::Stopped),
            None => (cause.to_owned(), false),
        };
        let (direction, leader) = (LinkDirection::ToLeader, self.leader);
        self.shared
            .links
            .remove(direction, leader, channel.id, &cause, idle);
        let now = self.shared.clock.now();
        self.keeper.handle_closed(now, dial, &cause);
        let reason = match in_use.closed_for {
            Some(EndCause::Stopped) if self.shared.stopping.is_cancelled() => {
                CloseReason::ShuttingDown
            }
            Some(EndCause::Stopped) => CloseReason::Done,
            _ => CloseReason::Superseded,
        };
        if in_use.closed_for == Some(EndCause::Stopped) {
            in_use.dialled.close(reason, &cause, CLOSE_WAIT).await;
        } else {
            reason.close(&in_use.dialled.connection, &cause);
        }
        for shard in self.shared.shards() {
            let channel = channel.clone();
            let _ = shard.mailbox.send(Event::LeaderGone { channel }).await;
        }
    }

    /// Tells the keeper what was heard, and that time has passed.
    fn look(&mut self) {
        let now = self.shared.clock.now();
        if let Some(current) = self.keeper.current()
            && let Some(in_use) = self.connections.get_mut(&current)
        {
            let connection = &in_use.dialled.connection;
            if in_use.ear.has_heard(connection) {
                in_use.heard.touch();
                self.keeper.handle_heard(now, current);
                if let Some((from, since)) = in_use.moved.take() {
                    self.shared.links.count_migration(
                        LinkDirection::ToLeader,
                        self.leader,
                        in_use.channel.id,
                    );
                    let to = in_use.dialled.local_addr().ok();
                    if let Some(suppressed) = self.limits.moved.allow() {
                        tracing::info!(
                            leader = %self.leader, from = from.map(tracing::field::display),
                            to = to.map(tracing::field::display), cause = "silence",
                            took_ms = now.since(since).as_millis() as u64, suppressed,
                            "replication link moved to another socket"
                        );
                    }
                }
            }
            let (rtt, variance) = round_trip(connection);
            self.keeper.handle_round_trip(current, rtt, variance);
        }
        self.keeper.handle_look(now);
    }

    fn rebind(&mut self, dial: DialId) {
        let now = self.shared.clock.now();
        let Some(in_use) = self.connections.get_mut(&dial) else {
            return;
        };
        let from = in_use.dialled.local_addr().ok();
        let silence_ms = in_use.heard.silence().as_millis() as u64;
        match in_use.dialled.rebind() {
            Ok(to) => {
                // It may be moved on before anything was heard: then it has not come anywhere yet.
                in_use.moved.get_or_insert((from, now));
                if let Some(suppressed) = self.limits.tried.allow() {
                    tracing::info!(
                        leader = %self.leader, from = from.map(tracing::field::display), %to,
                        cause = "silence", silence_ms, suppressed,
                        "replication link tries another socket"
                    );
                }
            }
            Err(error) => {
                let cause = format!("cannot move to another socket: {error}");
                let (direction, leader) = (LinkDirection::ToLeader, self.leader);
                self.shared.links.note_error(direction, leader, &cause);
                if let Some(suppressed) = self.limits.tried.allow() {
                    tracing::warn!(%leader, cause, suppressed, "replication link stays on its socket");
                }
            }
        }
    }

    fn report(&mut self, report: KeeperReport) {
        let leader = self.leader;
        let direction = LinkDirection::ToLeader;
        let channel_of = |dial: &DialId| self.connections.get(dial).map(|c| c.channel.clone());
        match report {
            KeeperReport::Up {
                connection,
                address,
                took,
                replaced,
            } => {
                let Some(in_use) = self.connections.get(&connection) else {
                    return;
                };
                if let Some(suppressed) = self.limits.up.allow() {
                    tracing::info!(
                        %leader, %address, dial = %connection, incarnation = %in_use.channel.peer.incarnation,
                        cause = in_use.dialled_for, took_ms = took.as_millis() as u64,
                        rtt_us = in_use.dialled.connection.rtt().as_micros() as u64,
                        replaces = replaced.map(tracing::field::display), suppressed,
                        "replication link up"
                    );
                }
            }
            KeeperReport::Silent {
                connection,
                silence,
                allowed,
            } => {
                if let Some(channel) = channel_of(&connection) {
                    self.shared.links.suspect(direction, leader, channel.id);
                }
                let cause = format!("nothing heard for {} ms", silence.as_millis());
                self.shared.links.note_error(direction, leader, &cause);
                if let Some(suppressed) = self.limits.silent.allow() {
                    tracing::warn!(
                        %leader, cause = "nothing was heard", silence_ms = silence.as_millis() as u64,
                        allowed_ms = allowed.as_millis() as u64, suppressed,
                        "replication link silent"
                    );
                }
            }
            KeeperReport::HeardAgain {
                connection,
                silence,
            } => {
                if let Some(channel) = channel_of(&connection) {
                    self.shared.links.heard_again(direction, leader, channel.id);
                }
                if let Some(suppressed) = self.limits.heard.allow() {
                    tracing::info!(
                        %leader, cause = "a packet came", silence_ms = silence.as_millis() as u64, suppressed,
                        "replication link heard again"
                    );
                }
            }
            KeeperReport::Down {
                connection,
                cause,
                lasted,
            } => {
                if let Some(suppressed) = self.limits.down.allow() {
                    tracing::warn!(
                        %leader, dial = %connection, cause, lived_ms = lasted.as_millis() as u64,
                        suppressed, "replication link down"
                    );
                }
            }
            KeeperReport::DialFailed {
                dial,
                address,
                cause,
                took,
                next_in,
            } => self.note_failure(dial, &address, &cause, Some(took), Some(next_in)),
        }
    }

    fn note_failure(
        &mut self,
        dial: DialId,
        address: &str,
        cause: &str,
        took: Option<Duration>,
        next_in: Option<Duration>,
    ) {
        let leader = self.leader;
        self.shared
            .links
            .note_error(LinkDirection::ToLeader, leader, cause);
        if let Some(suppressed) = self.limits.failed.allow() {
            tracing::info!(
                %leader, address, %dial, cause, took_ms = took.map(|took| took.as_millis() as u64),
                next_dial_ms = next_in.map(|next| next.as_millis() as u64), suppressed,
                "dial failed"
            );
        }
    }
}

/// One dial, the hello's answer included; each of the two has the patience. Whatever stands when it is given up is closed with a reason.
async fn connect(
    shared: &Shared,
    options: &LinkOptions,
    (peer, patience): (&PeerAddress, Duration),
    give_up: &CancellationToken,
) -> Result<Greeting, String> {
    let given_up = || "the dial was given up".to_owned();
    let identity = options.identity.get();
    let sockets = &options.sockets;
    let dialling = sockets.dial_unconfirmed(&identity, peer, Alpn::Replication, patience);
    let dialled = tokio::select! {
        () = give_up.cancelled() => return Err(given_up()),
        dialled = dialling => {
            dialled.map_err(|error| error.to_string())?
        }
    };
    let connection = dialled.connection.clone();
    let greeted = tokio::select! {
        () = give_up.cancelled() => {
            CloseReason::Superseded.close(&connection, "the dial was given up");
            return Err(given_up());
        }
        greeted = tokio::time::timeout(patience, greet(shared, options, dialled, peer)) => greeted,
    };
    match greeted {
        Ok(Ok(greeting)) => Ok(greeting),
        Ok(Err((reason, cause))) => {
            reason.close(&connection, &cause);
            Err(cause)
        }
        Err(_) => {
            CloseReason::TimedOut.close(&connection, "no answer to the hello");
            let seconds = patience.as_secs();
            Err(format!("no answer to the hello within {seconds} s"))
        }
    }
}

async fn greet(
    shared: &Shared,
    options: &LinkOptions,
    dialled: Dialled,
    peer: &PeerAddress,
) -> Result<Greeting, (CloseReason, String)> {
    let broken = |cause: String| (CloseReason::ProtocolError, cause);
    let lost = |error: &quinn::ConnectionError| broken(dialled.explain(error).to_string());
    let (mut send, recv) = dialled.connection.open_bi().await.map_err(|e| lost(&e))?;
    let mut recv = control_reader(recv);
    let hello = ControlMessage::Hello(Hello {
        version: PROTOCOL_VERSION,
        cluster: options.cluster,
        node: shared.me.node,
        incarnation: shared.me.incarnation,
        directory: shared.me.directory,
    });
    let explained = |error: String| match dialled.connection.close_reason() {
        Some(reason) => lost(&reason),
        None => broken(error),
    };
    send.write_chunk(hello.encode())
        .await
        .map_err(|e| explained(e.to_string()))?;
    match read_control(&mut recv).await {
        Ok(ControlMessage::Welcome(welcome)) => {
            if Some(welcome.node) != peer.node {
                let cause = format!("node {} answers where {peer} was dialled", welcome.node);
                return Err((CloseReason::WrongNode, cause));
            }
            let process = PeerProcess {
                node: welcome.node,
                incarnation: welcome.incarnation,
            };
            let greeted = Greeted {
                dialled,
                send,
                recv,
            };
            Ok((greeted, process))
        }
        Ok(_) => Err(broken(
            "the hello was answered with something else".to_owned(),
        )),
        Err(error) => Err(explained(error)),
    }
}
