//! Replication connections: dialled, greeted, watched, broken; and what comes over them, decoded from its bytes. Follows the
//! broker's two ends of a link.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use quorate::replication::{AckRefused, FramesRefused, suspicion_time};
use quorate::types::{Appointment, LogPosition, NodeId, Offset, SessionId};
use quorate::wal::Frame;
use quorate::wire::{
    Ack, ControlMessage, Datagram, Heartbeat, Hello, LaneBody, LaneMessage, OpenSession,
    PROTOCOL_VERSION, SessionAnswer, SessionOutcome, SessionRefusal, Welcome,
};

use super::checker::{Check, Cutting};
use super::event::Event;
use super::mistakes::tamper_with_answer;
use super::network::StreamId;
use super::node::{CLUSTER, FollowerSession, index_of, node_id, partition_index};
use super::planted::Planted;
use super::world::{World, unexpected};

const DIAL_TIMEOUT: Duration = Duration::from_secs(1);
/// A leader's end gives up a connection on which nothing was heard for so long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3);
const REDIAL_AFTER_SUSPICIONS: u32 = 4;
const FIRST_REDIAL_PAUSE_MS: u64 = 50;
const MAX_REDIAL_PAUSE_MS: u64 = 1000;

impl World {
    /// Keeps a connection to each leader that is followed, and to no other.
    pub fn keep_links(&mut self, node: usize, leaders: &BTreeSet<usize>) -> Check {
        let Some(process) = &mut self.nodes[node].process else {
            return Ok(());
        };
        let unwanted: Vec<usize> = process
            .links
            .keys()
            .copied()
            .filter(|leader| !leaders.contains(leader))
            .collect();
        for leader in unwanted {
            let connection = self.nodes[node]
                .process
                .as_mut()
                .and_then(|process| process.links.get(&leader)?.connection);
            if let Some(connection) = connection {
                self.close_follower_end(connection, true, false)?;
            }
            if let Some(process) = &mut self.nodes[node].process {
                process.links.remove(&leader);
            }
        }
        for &leader in leaders {
            self.plan_dial(node, leader, 0);
        }
        Ok(())
    }

    fn plan_dial(&mut self, node: usize, leader: usize, after_ms: u64) {
        let boot = self.nodes[node].boot;
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let link = process.links.entry(leader).or_default();
        let twice = self.planted == Some(Planted::DialsTwice);
        if (link.connection.is_some() && !twice) || link.dial_planned {
            return;
        }
        link.dial_planned = true;
        let jitter = self.random.between(500, 1000);
        self.plan_us(after_ms * jitter, Event::Dial { node, boot, leader });
    }

    pub fn dial(&mut self, node: usize, boot: u64, leader: usize) -> Check {
        if !self.is_current(node, boot) {
            return Ok(());
        }
        let now = self.now;
        let Some(process) = &mut self.nodes[node].process else {
            return Ok(());
        };
        let me = process.me;
        let Some(link) = process.links.get_mut(&leader) else {
            return Ok(());
        };
        link.dial_planned = false;
        if link.connection.is_some() && self.planted != Some(Planted::DialsTwice) {
            return Ok(());
        }
        let connection = self.network.open(now, node, boot, leader);
        link.connection = Some(connection);
        let hello = ControlMessage::Hello(Hello {
            version: PROTOCOL_VERSION,
            cluster: CLUSTER,
            node: me.node,
            incarnation: me.incarnation,
            directory: me.directory,
        });
        self.send(connection, StreamId::ControlUp, hello.encode());
        Ok(())
    }

    pub fn send(&mut self, connection: u64, stream: StreamId, message: Bytes) {
        let pieces = self
            .network
            .send_on_stream(self.now, connection, stream, message);
        for (at, bytes) in pieces {
            self.queue.push(
                at,
                Event::Chunk {
                    connection,
                    stream,
                    bytes,
                },
            );
        }
    }

    /// The follower gives a connection up, and dials anew if it is still wanted.
    pub fn close_follower_end(&mut self, id: u64, tell_peer: bool, redial: bool) -> Check {
        let Some(connection) = self.network.connections.get_mut(&id) else {
            return Ok(());
        };
        if !connection.follower_holds {
            return Ok(());
        }
        connection.follower_holds = false;
        self.tell(|| format!("connection {id} ends at its follower"));
        let Some(connection) = self.network.connections.get(&id) else {
            return Ok(());
        };
        let (node, leader, boot) = (
            connection.follower,
            connection.leader,
            connection.follower_boot,
        );
        let worked = connection.welcomed;
        self.forget_if_over(id);
        if tell_peer && let Some(after) = self.network.send_call(node, leader) {
            self.plan(
                after,
                Event::EndClosed {
                    connection: id,
                    leader_end: true,
                },
            );
        }
        if !self.is_current(node, boot) {
            return Ok(());
        }
        let Some(process) = &mut self.nodes[node].process else {
            return Ok(());
        };
        let Some(link) = process.links.get_mut(&leader) else {
            return Ok(());
        };
        if link.connection != Some(id) {
            return Ok(());
        }
        link.connection = None;
        let was_up = std::mem::replace(&mut link.up, false);
        link.pause_ms = if worked {
            0
        } else {
            (link.pause_ms * 2).clamp(FIRST_REDIAL_PAUSE_MS, MAX_REDIAL_PAUSE_MS)
        };
        let pause_ms = link.pause_ms;
        if redial {
            self.plan_dial(node, leader, pause_ms);
        }
        if was_up {
            self.link_changed(node, leader, false)?;
        }
        Ok(())
    }

    fn link_changed(&mut self, node: usize, leader: usize, connected: bool) -> Check {
        let now = self.now;
        for partition in 0..self.setup.partitions {
            if let Some(replica) = self.nodes[node].replica(partition) {
                replica
                    .partition
                    .handle_link(now, node_id(leader), connected);
            }
            self.drain(node, partition)?;
        }
        Ok(())
    }

    /// The leader gives a connection up, and the sessions on it end.
    pub fn close_leader_end(&mut self, id: u64, tell_peer: bool) -> Check {
        let Some(connection) = self.network.connections.get_mut(&id) else {
            return Ok(());
        };
        if !connection.leader_holds {
            return Ok(());
        }
        connection.leader_holds = false;
        self.tell(|| format!("connection {id} ends at its leader"));
        let Some(connection) = self.network.connections.get(&id) else {
            return Ok(());
        };
        let (node, from, boot) = (
            connection.leader,
            connection.follower,
            connection.leader_boot,
        );
        self.forget_if_over(id);
        if tell_peer && let Some(after) = self.network.send_call(node, from) {
            self.plan(
                after,
                Event::EndClosed {
                    connection: id,
                    leader_end: false,
                },
            );
        }
        if !self.is_current(node, boot) {
            return Ok(());
        }
        for partition in 0..self.setup.partitions {
            let Some(replica) = self.nodes[node].replica(partition) else {
                continue;
            };
            let Some(session) = replica.sessions.get(&from) else {
                continue;
            };
            if session.connection == id {
                let session = session.session;
                replica
                    .partition
                    .handle_session_closed_by_follower(node_id(from), session);
                replica.sessions.remove(&from);
                self.drain(node, partition)?;
            }
        }
        Ok(())
    }

    pub fn end_closed(&mut self, id: u64, leader_end: bool) -> Check {
        let Some(connection) = self.network.connections.get(&id) else {
            return Ok(());
        };
        let (node, boot) = if leader_end {
            (connection.leader, connection.leader_boot)
        } else {
            (connection.follower, connection.follower_boot)
        };
        if self.nodes[node].boot != boot {
            return Ok(());
        }
        if let Some(waiting) = &mut self.nodes[node].stopped {
            waiting.push(Event::EndClosed {
                connection: id,
                leader_end,
            });
            return Ok(());
        }
        if leader_end {
            self.close_leader_end(id, false)
        } else {
            self.close_follower_end(id, false, true)
        }
    }

    fn forget_if_over(&mut self, id: u64) {
        let over = self
            .network
            .connections
            .get(&id)
            .is_some_and(|connection| !connection.follower_holds && !connection.leader_holds);
        if over {
            self.network.connections.remove(&id);
        }
    }

    /// Connections end with a process, and nobody is told.
    pub fn drop_ends_of(&mut self, node: usize) {
        for connection in self.network.connections.values_mut() {
            if connection.follower == node {
                connection.follower_holds = false;
            }
            if connection.leader == node && connection.greeted {
                connection.leader_holds = false;
            }
        }
        self.network
            .connections
            .retain(|_, connection| connection.follower_holds || connection.leader_holds);
    }

    pub fn heartbeat_connections(&mut self, node: usize) {
        let now = self.now;
        let sequence = now.as_micros();
        let boot = self.nodes[node].boot;
        let mut beats = Vec::new();
        let mut heard = Vec::new();
        for (&id, connection) in &self.network.connections {
            let as_follower = connection.follower == node
                && connection.follower_boot == boot
                && connection.follower_holds
                && connection.welcomed;
            let as_leader = connection.leader == node
                && connection.leader_boot == boot
                && connection.leader_holds;
            if as_follower {
                beats.push((id, true, connection.leader));
                heard.push((connection.leader, connection.heard_by_follower));
            } else if as_leader {
                beats.push((id, false, connection.follower));
                heard.push((connection.follower, connection.heard_by_leader));
            }
        }
        for (connection, to_leader, to) in beats {
            for after in self.network.send_once(node, to) {
                let bytes = Heartbeat { sequence }.encode();
                self.plan(
                    after,
                    Event::Datagram {
                        connection,
                        to_leader,
                        bytes,
                    },
                );
            }
        }
        for (peer, at) in heard {
            let round_trip = self.network.round_trip(node, peer);
            let suspicion = suspicion_time(round_trip, round_trip / 2);
            if let Some(process) = &mut self.nodes[node].process {
                process
                    .peers
                    .handle_heard(node_id(peer), at, suspicion, round_trip);
            }
        }
    }

    /// Gives up what has been silent for too long.
    pub fn keep_connections(&mut self, node: usize) -> Check {
        let now = self.now;
        let boot = self.nodes[node].boot;
        let mut dead = Vec::new();
        for (&id, connection) in &self.network.connections {
            if connection.follower == node
                && connection.follower_boot == boot
                && connection.follower_holds
            {
                let round_trip = self.network.round_trip(node, connection.leader);
                let patience = suspicion_time(round_trip, round_trip / 2) * REDIAL_AFTER_SUSPICIONS;
                let given_up = if connection.welcomed {
                    now.since(connection.heard_by_follower) >= patience
                } else {
                    now.since(connection.dialled_at) >= DIAL_TIMEOUT
                };
                if given_up {
                    dead.push((id, false));
                }
            } else if connection.leader == node
                && connection.leader_boot == boot
                && connection.leader_holds
                && now.since(connection.heard_by_leader) >= IDLE_TIMEOUT
            {
                dead.push((id, true));
            }
        }
        for (id, leader_end) in dead {
            if leader_end {
                self.close_leader_end(id, true)?;
            } else {
                self.close_follower_end(id, true, true)?;
            }
        }
        Ok(())
    }

    pub fn break_connections(&mut self, a: usize, b: usize) {
        let broken: Vec<u64> = self
            .network
            .connections
            .iter()
            .filter(|(_, c)| (c.follower, c.leader) == (a, b) || (c.follower, c.leader) == (b, a))
            .map(|(&id, _)| id)
            .collect();
        for connection in broken {
            for leader_end in [false, true] {
                let after = self.random.between(1, 30_000);
                self.plan_us(
                    after,
                    Event::EndClosed {
                        connection,
                        leader_end,
                    },
                );
            }
        }
    }

    pub fn datagram_arrived(&mut self, id: u64, to_leader: bool, bytes: Bytes) -> Check {
        let Some(connection) = self.network.connections.get(&id) else {
            return Ok(());
        };
        let (node, boot, holds) = if to_leader {
            (
                connection.leader,
                connection.leader_boot,
                connection.leader_holds,
            )
        } else {
            (
                connection.follower,
                connection.follower_boot,
                connection.follower_holds,
            )
        };
        if let Some(waiting) = &mut self.nodes[node].stopped {
            waiting.push(Event::Datagram {
                connection: id,
                to_leader,
                bytes,
            });
            return Ok(());
        }
        if !holds || !self.is_current(node, boot) {
            self.reset(id, to_leader);
            return Ok(());
        }
        if !matches!(Datagram::decode(bytes), Ok(Some(Datagram::Heartbeat(_)))) {
            return unexpected("a heartbeat that was sent cannot be decoded");
        }
        self.heard(id, to_leader);
        Ok(())
    }

    fn heard(&mut self, id: u64, by_leader: bool) {
        let now = self.now;
        if let Some(connection) = self.network.connections.get_mut(&id) {
            if by_leader {
                connection.heard_by_leader = now;
            } else {
                connection.heard_by_follower = now;
            }
        }
    }

    /// A packet of a connection that this end does not know: a living process says so.
    fn reset(&mut self, id: u64, at_leader: bool) {
        let Some(connection) = self.network.connections.get(&id) else {
            return;
        };
        let (here, there) = if at_leader {
            (connection.leader, connection.follower)
        } else {
            (connection.follower, connection.leader)
        };
        if !self.nodes[here].is_running() {
            return;
        }
        if let Some(after) = self.network.send_call(here, there) {
            self.plan(
                after,
                Event::EndClosed {
                    connection: id,
                    leader_end: !at_leader,
                },
            );
        }
    }

    pub fn chunk_arrived(&mut self, id: u64, stream: StreamId, bytes: &Bytes) -> Check {
        let Some(connection) = self.network.connections.get_mut(&id) else {
            return Ok(());
        };
        let to_leader = stream.goes_to_leader();
        let node = if to_leader {
            connection.leader
        } else {
            connection.follower
        };
        if let Some(waiting) = &mut self.nodes[node].stopped {
            waiting.push(Event::Chunk {
                connection: id,
                stream,
                bytes: bytes.clone(),
            });
            return Ok(());
        }
        if to_leader && !connection.greeted {
            // Where no process listens the whole connection is refused: the rest of a hello whose first piece nobody took must
            // not be read by a process that starts between the two.
            connection.greeted = true;
            connection.leader_holds = self.nodes[node].process.is_some();
            connection.leader_boot = self.nodes[node].boot;
        }
        let (holds, boot) = if to_leader {
            (connection.leader_holds, connection.leader_boot)
        } else {
            (connection.follower_holds, connection.follower_boot)
        };
        if !holds || !self.is_current(node, boot) {
            self.reset(id, to_leader);
            return Ok(());
        }
        if !self.network.arrive(id, stream, bytes) {
            return Ok(());
        }
        self.read_stream(id, stream)
    }

    pub fn stream_resumed(&mut self, id: u64, stream: StreamId) -> Check {
        let Some(connection) = self.network.connections.get(&id) else {
            return Ok(());
        };
        let to_leader = stream.goes_to_leader();
        let (node, holds, boot) = if to_leader {
            (
                connection.leader,
                connection.leader_holds,
                connection.leader_boot,
            )
        } else {
            (
                connection.follower,
                connection.follower_holds,
                connection.follower_boot,
            )
        };
        if let Some(waiting) = &mut self.nodes[node].stopped {
            waiting.push(Event::Resume {
                connection: id,
                stream,
            });
            return Ok(());
        }
        if !holds || !self.is_current(node, boot) {
            self.reset(id, to_leader);
            return Ok(());
        }
        if !self.network.come_through(id, stream) {
            return Ok(());
        }
        self.read_stream(id, stream)
    }

    /// Takes whole messages off a stream, for as long as both the connection and the process live.
    fn read_stream(&mut self, id: u64, stream: StreamId) -> Check {
        self.heard(id, stream.goes_to_leader());
        loop {
            let Some(connection) = self.network.connections.get_mut(&id) else {
                return Ok(());
            };
            let holds = if stream.goes_to_leader() {
                connection.leader_holds
            } else {
                connection.follower_holds
            };
            let Some(found) = connection.streams.get_mut(&stream).filter(|_| holds) else {
                return Ok(());
            };
            let buffer = &mut found.buffer;
            let more = match stream {
                StreamId::ControlUp => match ControlMessage::decode(buffer) {
                    Ok(Some(message)) => self.control_at_leader(id, message)?,
                    Ok(None) => false,
                    Err(error) => return unexpected(format!("{stream:?}: {error}")),
                },
                StreamId::ControlDown => match ControlMessage::decode(buffer) {
                    Ok(Some(message)) => self.control_at_follower(id, message)?,
                    Ok(None) => false,
                    Err(error) => return unexpected(format!("{stream:?}: {error}")),
                },
                StreamId::Acks => match Ack::decode_all(buffer) {
                    Ok(acks) if acks.is_empty() => false,
                    Ok(acks) => self.acks_at_leader(id, acks)?,
                    Err(error) => return unexpected(format!("{stream:?}: {error}")),
                },
                StreamId::Live | StreamId::CatchUp => match LaneMessage::decode(buffer) {
                    Ok(Some(message)) => self.lane_at_follower(id, message)?,
                    Ok(None) => false,
                    Err(error) => return unexpected(format!("{stream:?}: {error}")),
                },
            };
            if !more {
                return Ok(());
            }
        }
    }

    fn control_at_leader(
        &mut self,
        id: u64,
        message: ControlMessage,
    ) -> Result<bool, super::checker::Violation> {
        let Some(connection) = self.network.connections.get_mut(&id) else {
            return Ok(false);
        };
        let (node, from) = (connection.leader, connection.follower);
        match message {
            ControlMessage::Hello(hello) => {
                connection.leader_side.peer = Some((hello.incarnation, hello.directory));
                connection.heard_by_leader = self.now;
                let Some(process) = &self.nodes[node].process else {
                    return Ok(false);
                };
                let welcome = ControlMessage::Welcome(Welcome {
                    node: process.me.node,
                    incarnation: process.me.incarnation,
                    lanes: 2,
                });
                self.send(id, StreamId::ControlDown, welcome.encode());
            }
            ControlMessage::OpenSession(open) => self.hello_arrived(id, node, from, &open)?,
            ControlMessage::CloseSession { session, .. } => {
                let side = &mut connection.leader_side;
                if let Some(partition) = side.partitions.remove(&session) {
                    side.sessions.remove(&partition);
                    if let Some(replica) = self.nodes[node].replica(partition) {
                        replica
                            .partition
                            .handle_session_closed_by_follower(node_id(from), session);
                    }
                    self.forget_session(node, partition, from, Some(session));
                    self.drain(node, partition)?;
                }
            }
            ControlMessage::Welcome(_) | ControlMessage::SessionAnswer(_) => {
                unexpected("a follower sent what only leaders send")?;
            }
        }
        Ok(true)
    }

    /// The follower's process at the other end of a connection, as its hello said.
    pub fn follower_process(&self, id: u64) -> Option<Appointment> {
        let connection = self.network.connections.get(&id)?;
        let (incarnation, directory) = connection.leader_side.peer?;
        Some(Appointment {
            node: node_id(connection.follower),
            directory,
            incarnation,
        })
    }

    fn hello_arrived(&mut self, id: u64, node: usize, from: usize, open: &OpenSession) -> Check {
        let partition = partition_index(open.partition);
        let Some(connection) = self.network.connections.get_mut(&id) else {
            return Ok(());
        };
        if connection.leader_side.peer.is_none() {
            return unexpected("a session before the hello");
        }
        let side = &mut connection.leader_side;
        if let Some(old) = side.sessions.insert(partition, open.session) {
            side.partitions.remove(&old);
        }
        side.partitions.insert(open.session, partition);
        if self.nodes[node].replica(partition).is_none() {
            let refused = ControlMessage::SessionAnswer(SessionAnswer {
                session: open.session,
                leader_epoch: open.leader_epoch,
                outcome: SessionOutcome::Refused(SessionRefusal::UnknownPartition),
            });
            self.send(id, StreamId::ControlDown, refused.encode());
            return Ok(());
        }
        let replaced = self.nodes[node]
            .replica(partition)
            .and_then(|replica| replica.sessions.get(&from))
            .map(|session| (session.connection, session.session))
            .filter(|&(connection, _)| connection != id);
        if let Some((connection, session)) = replaced {
            let close = ControlMessage::CloseSession {
                session,
                reason: SessionRefusal::Overloaded,
            };
            self.send(connection, StreamId::ControlDown, close.encode());
        }
        self.forget_session(node, partition, from, None);
        let Some(peer) = self.follower_process(id) else {
            return Ok(());
        };
        if let Some(replica) = self.nodes[node].replica(partition) {
            replica.sessions.insert(
                from,
                FollowerSession {
                    connection: id,
                    session: open.session,
                    outstanding: 0,
                    was_catching_up: false,
                    skipped: None,
                },
            );
            replica.partition.handle_open_session(peer, open);
        }
        self.drain(node, partition)
    }

    /// Drops a follower's session record, if it is the one meant, and gives its room back.
    pub fn forget_session(
        &mut self,
        node: usize,
        partition: usize,
        from: usize,
        meant: Option<SessionId>,
    ) {
        let Some(replica) = self.nodes[node].replica(partition) else {
            return;
        };
        let is_meant = replica
            .sessions
            .get(&from)
            .is_some_and(|known| meant.is_none_or(|meant| known.session == meant));
        if is_meant && let Some(session) = replica.sessions.remove(&from) {
            self.release(node, from, session.connection, session.outstanding);
        }
    }

    /// Gives room on a connection back, and tells those who were turned away.
    pub fn release(&mut self, node: usize, from: usize, connection: u64, bytes: usize) {
        let budget = self.setup.follower_budget_bytes;
        let Some(connection) = self.network.connections.get_mut(&connection) else {
            return;
        };
        let side = &mut connection.leader_side;
        side.outstanding = side.outstanding.saturating_sub(bytes);
        if side.outstanding < budget / 2 && std::mem::replace(&mut side.turned_away, false) {
            let boot = self.nodes[node].boot;
            self.plan_us(
                1,
                Event::Room {
                    node,
                    boot,
                    follower: from,
                },
            );
        }
    }

    pub fn room_came(&mut self, node: usize, boot: u64, follower: usize) -> Check {
        if !self.is_current(node, boot) || self.planted == Some(Planted::RoomNotTold) {
            return Ok(());
        }
        for partition in 0..self.setup.partitions {
            if let Some(replica) = self.nodes[node].replica(partition) {
                replica.partition.handle_unblocked(node_id(follower));
            }
            self.drain(node, partition)?;
        }
        Ok(())
    }

    fn control_at_follower(
        &mut self,
        id: u64,
        message: ControlMessage,
    ) -> Result<bool, super::checker::Violation> {
        let now = self.now;
        let Some(connection) = self.network.connections.get_mut(&id) else {
            return Ok(false);
        };
        let (node, leader) = (connection.follower, connection.leader);
        match message {
            ControlMessage::Welcome(_) => {
                connection.welcomed = true;
                connection.heard_by_follower = now;
                if let Some(process) = &mut self.nodes[node].process
                    && let Some(link) = process.links.get_mut(&leader)
                    && link.connection == Some(id)
                {
                    link.up = true;
                    link.pause_ms = 0;
                    self.link_changed(node, leader, true)?;
                }
            }
            ControlMessage::SessionAnswer(answer) => {
                if let Some(&partition) = connection.follower_side.partitions.get(&answer.session) {
                    self.answer_arrived(node, leader, partition, &answer)?;
                }
            }
            ControlMessage::CloseSession { session, reason } => {
                if let Some(&partition) = connection.follower_side.partitions.get(&session) {
                    if let Some(replica) = self.nodes[node].replica(partition) {
                        replica
                            .partition
                            .handle_session_closed_by_leader(now, session, reason);
                    }
                    self.drain(node, partition)?;
                }
            }
            ControlMessage::Hello(_) | ControlMessage::OpenSession(_) => {
                unexpected("a leader sent what only followers send")?;
            }
        }
        Ok(true)
    }

    /// A planted mistake: a copy of the answer to an earlier hello to the same leader is what this hello is answered with.
    pub fn take_old_answer(
        &mut self,
        node: usize,
        partition: usize,
        hello: &OpenSession,
        to: NodeId,
    ) {
        if let Some(process) = &self.nodes[node].process
            && let Some(old) = process.old_answers.get(&(index_of(to), partition))
        {
            let mut answer = old.clone();
            answer.session = hello.session;
            answer.leader_epoch = hello.leader_epoch;
            let now = self.now;
            if let Some(replica) = self.nodes[node].replica(partition) {
                replica.partition.handle_answer(now, to, &answer);
            }
        }
    }

    fn answer_arrived(
        &mut self,
        node: usize,
        leader: usize,
        partition: usize,
        answer: &SessionAnswer,
    ) -> Check {
        let mut answer = answer.clone();
        if let Some(planted) = self.planted
            && let Some(replica) = self.nodes[node].view_replica(partition)
        {
            let mirror = &self.checkers[partition].replicas[node].mirror;
            let known = mirror.position_at(replica.partition.high_watermark());
            tamper_with_answer(planted, mirror, known, &mut answer.outcome);
        }
        let answer = &answer;
        let now = self.now;
        if self.planted == Some(Planted::OldSessionsAnswer)
            && let Some(process) = &mut self.nodes[node].process
            && !matches!(answer.outcome, SessionOutcome::Refused(_))
        {
            process
                .old_answers
                .insert((leader, partition), answer.clone());
        }
        match answer.outcome {
            SessionOutcome::Truncate(_) => self.figures.truncations += 1,
            SessionOutcome::Reset { ref producers, .. } => {
                self.figures.resets += 1;
                self.figures.resets_with_producers += u64::from(!producers.producers.is_empty());
            }
            SessionOutcome::Refused(_) => {}
        }
        let cut = match &answer.outcome {
            SessionOutcome::Truncate(to) => Some((*to, Offset::ZERO)),
            SessionOutcome::Reset { start, .. } => Some((LogPosition::START, start.offset)),
            SessionOutcome::Refused(_) => None,
        };
        let cutting = cut.map(|(to, reset_to)| Cutting {
            to,
            reset_to,
            leader_epoch: answer.leader_epoch,
        });
        self.checkers[partition].cut_begins(node, cutting);
        if let Some(replica) = self.nodes[node].replica(partition) {
            replica
                .partition
                .handle_answer(now, node_id(leader), answer);
        }
        self.drain(node, partition)?;
        // A process that has died in the middle of it may have left the log cut or not.
        if self.nodes[node].process.is_some() {
            self.checkers[partition].cut_ends(node);
        }
        Ok(())
    }

    fn acks_at_leader(
        &mut self,
        id: u64,
        acks: Vec<Ack>,
    ) -> Result<bool, super::checker::Violation> {
        let now = self.now;
        for ack in acks {
            let Some(connection) = self.network.connections.get(&id) else {
                return Ok(false);
            };
            let (node, from) = (connection.leader, connection.follower);
            let Some(mut process) = self.follower_process(id) else {
                return unexpected("an ack before the hello").map(|()| false);
            };
            let known = connection.leader_side.partitions.get(&ack.session).copied();
            let confused = self.planted == Some(Planted::OldSessionsAck);
            let Some(partition) = known.or(confused.then_some(0)) else {
                continue;
            };
            // What came is what is judged, whatever a mistake makes of it.
            let (came, sender) = (ack, process);
            let mut ack = ack;
            if confused && let Some(present) = self.checkers[partition].session_of(node, from) {
                ack.session = present.id;
                ack.leader_epoch = present.leader_epoch;
                process = present.process;
            }
            let Some(replica) = self.nodes[node].replica(partition) else {
                continue;
            };
            let counted = replica.partition.handle_ack(now, process, &ack);
            self.tell(|| {
                format!(
                    "node {}: ack of node {} for partition {partition}, session {}, {}: {counted:?}",
                    node + 1, from + 1, ack.session, ack.durable
                )
            });
            match counted {
                Ok(confirmed) => {
                    if confirmed.bytes > 0
                        && let Some(process) = &mut self.nodes[node].process
                    {
                        let peers = &mut process.peers;
                        peers.handle_delivered(node_id(from), now, confirmed.waited);
                    }
                    self.checkers[partition].ack_counted(node, from, sender, id, &came)?;
                    let Some(replica) = self.nodes[node].replica(partition) else {
                        return Ok(false);
                    };
                    replica.last_acks.insert(from, (sender.incarnation, came));
                    if let Some(session) = replica.sessions.get_mut(&from)
                        && session.session == ack.session
                    {
                        let bytes = confirmed.bytes.min(session.outstanding);
                        session.outstanding -= bytes;
                        let connection = session.connection;
                        self.release(node, from, connection, bytes);
                    }
                }
                Err(AckRefused::Stale) => {}
                Err(impossible @ AckRefused::Impossible { .. }) => {
                    if !confused {
                        unexpected(format!("node {}: {impossible}", node + 1))?;
                    }
                    self.close_leader_end(id, true)?;
                }
            }
            for partition in 0..self.setup.partitions {
                self.drain(node, partition)?;
            }
        }
        Ok(true)
    }

    fn lane_at_follower(
        &mut self,
        id: u64,
        message: LaneMessage,
    ) -> Result<bool, super::checker::Violation> {
        let now = self.now;
        let Some(connection) = self.network.connections.get(&id) else {
            return Ok(false);
        };
        let (node, leader) = (connection.follower, connection.leader);
        let known = connection
            .follower_side
            .partitions
            .get(&message.session)
            .copied();
        let Some(partition) = known else {
            return Ok(true);
        };
        let bytes = match message.body {
            LaneBody::Frames(bytes) => bytes,
            LaneBody::Answer(outcome) => {
                let answer = SessionAnswer {
                    session: message.session,
                    leader_epoch: message.leader_epoch,
                    outcome,
                };
                self.answer_arrived(node, leader, partition, &answer)?;
                return Ok(true);
            }
        };
        let frames = match Frame::decode_all(bytes) {
            Ok(frames) => frames,
            Err(error) => {
                unexpected(format!("a lane brought {error}"))?;
                return Ok(false);
            }
        };
        if self.planted == Some(Planted::AckBeforeWritten)
            && let Some(last) = frames.last()
        {
            let ack = Ack {
                session: message.session,
                leader_epoch: message.leader_epoch,
                durable: last.end(),
                received: last.end_offset(),
            };
            self.send_ack(node, partition, node_id(leader), ack)?;
        }
        if let Some(replica) = self.nodes[node].replica(partition) {
            replica.overheard = Some(message.high_watermark);
            let refused = replica.partition.handle_frames(
                now,
                message.session,
                message.leader_epoch,
                message.high_watermark,
                frames,
            );
            let misfit = matches!(refused, Err(FramesRefused::DoesNotFit { .. }));
            if misfit && !self.network.is_rough() && self.healing_since.is_none() {
                self.tell(|| format!("node {}: {refused:?}", node + 1));
            }
        }
        self.drain(node, partition)?;
        Ok(true)
    }

    /// This node no longer follows the partition there.
    pub fn close_session_at(&mut self, node: usize, leader: usize, partition: usize) {
        let connection = self.nodes[node]
            .process
            .as_ref()
            .and_then(|process| process.links.get(&leader))
            .and_then(|link| link.connection.filter(|_| link.up));
        let Some(id) = connection else { return };
        let Some(connection) = self.network.connections.get_mut(&id) else {
            return;
        };
        let side = &mut connection.follower_side;
        let Some(session) = side.sessions.remove(&partition) else {
            return;
        };
        side.partitions.remove(&session);
        side.acks.remove(&session);
        let close = ControlMessage::CloseSession {
            session,
            reason: SessionRefusal::NotReplica,
        };
        self.send(id, StreamId::ControlUp, close.encode());
    }

    pub fn flush_acks(&mut self, id: u64) -> Check {
        let Some(connection) = self.network.connections.get_mut(&id) else {
            return Ok(());
        };
        let (node, boot) = (connection.follower, connection.follower_boot);
        if !connection.follower_holds || self.nodes[node].boot != boot {
            return Ok(());
        }
        if let Some(waiting) = &mut self.nodes[node].stopped {
            waiting.push(Event::FlushAcks { connection: id });
            return Ok(());
        }
        let side = &mut connection.follower_side;
        side.flush_planned = false;
        let acks: Vec<_> = std::mem::take(&mut side.acks).into_values().collect();
        if acks.is_empty() {
            return Ok(());
        }
        self.send(id, StreamId::Acks, Ack::encode_all(&acks));
        Ok(())
    }
}
