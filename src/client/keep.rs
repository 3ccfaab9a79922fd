//! Keeps a client's connection alive through silence: moves it to another socket, dials another beside it.
//!
//! The decisions are the link keeper's, the same as between nodes. A node sends its clients no heartbeats, so the client asks
//! for a sign of life itself: a datagram, which QUIC acknowledges.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::error::ConnectError;
use super::link::{Link, Session};
use crate::transport::{
    CloseReason, DIAL_PATIENCE, DialId, Ear, KeeperAction, KeeperReport, LOOK_EVERY, LinkKeeper,
    LogLimit, PathSigns, round_trip,
};
use crate::types::MonotonicTime;

/// While an answer is awaited, a sign of life is asked for after this much silence, and then as often.
const ASK_AFTER: Duration = Duration::from_millis(100);
/// While none is awaited, QUIC's own keep-alive is the only one, and two of them may be lost before it counts.
const IDLE_PATIENCE: Duration = Duration::from_millis(2500);
/// How often an idle connection is looked at. Few clients have more than a handful of them.
const IDLE_LOOK_EVERY: Duration = Duration::from_millis(100);

/// Until the connection is gone, or its client is.
pub(super) async fn keep(link: Weak<Link>, session: Arc<Session>, seed: u64) {
    let Some(address) = link.upgrade().map(|link| link.address.clone()) else {
        return;
    };
    let begin = Instant::now();
    let mut keep = Keep {
        keeper: LinkKeeper::with_connection(MonotonicTime::ZERO, address, seed),
        link,
        current: DialId(0),
        ear: Ear::default(),
        heard_at: begin,
        asked_at: begin,
        is_allowed: false,
        begin,
        moved: None,
        reached: BTreeMap::new(),
        dialling: BTreeMap::new(),
        dials: JoinSet::new(),
        session,
        lines: Lines::default(),
    };
    loop {
        if !keep.carry_out() {
            return;
        }
        let busy = keep.session.awaited.any() || keep.keeper.is_silent();
        let look = if busy { LOOK_EVERY } else { IDLE_LOOK_EVERY };
        let session = keep.session.clone();
        tokio::select! {
            // The next request that needs a connection dials by itself.
            error = session.reached.connection.closed() => {
                tracing::debug!(address = %keep.keeper.address(), cause = %error, "connection ended");
                return;
            }
            Some(dialled) = keep.dials.join_next() => {
                if let Ok((dial, result)) = dialled {
                    keep.handle_dialled(dial, result);
                }
            }
            () = tokio::time::sleep(look) => keep.look(),
            () = session.awaited.begun(), if !busy => keep.begin_to_wait(),
        }
    }
}

struct Keep {
    keeper: LinkKeeper,
    link: Weak<Link>,
    session: Arc<Session>,
    /// What the keeper calls the session in use.
    current: DialId,
    ear: Ear,
    heard_at: Instant,
    asked_at: Instant,
    is_allowed: bool,
    begin: Instant,
    /// When the connection in use was moved to another socket, until something is heard over that: only then has it moved.
    moved: Option<Instant>,
    /// Answered, and not adopted yet: one at most.
    reached: BTreeMap<DialId, Arc<Session>>,
    dialling: BTreeMap<DialId, AbortHandle>,
    dials: JoinSet<(DialId, Result<Arc<Session>, ConnectError>)>,
    lines: Lines,
}

/// A line a second of each kind about the one node.
#[derive(Default)]
struct Lines {
    tried: LogLimit,
    moved: LogLimit,
    silent: LogLimit,
    heard: LogLimit,
    up: LogLimit,
    failed: LogLimit,
}

impl Keep {
    fn now(&self) -> MonotonicTime {
        MonotonicTime::ZERO + self.begin.elapsed()
    }

    /// What was silent before was not waited for: the silence counts from here.
    fn begin_to_wait(&mut self) {
        self.heard_at = Instant::now();
        let now = self.now();
        self.keeper.handle_heard(now, self.current);
    }

    fn look(&mut self) {
        let now = self.now();
        let connection = &self.session.reached.connection;
        let (rtt, variance) = round_trip(connection);
        self.keeper.handle_round_trip(self.current, rtt, variance);
        if self.ear.has_heard(connection) {
            self.heard_at = Instant::now();
            self.keeper.handle_heard(now, self.current);
            if let Some(since) = self.moved.take()
                && let Some(link) = self.link.upgrade()
            {
                link.count(|counts| counts.migrations += 1);
                let took_ms = since.elapsed().as_millis() as u64;
                if let Some(suppressed) = self.lines.moved.allow() {
                    tracing::info!(
                        address = %link.address, cause = "silence", took_ms, suppressed,
                        "connection moved to another socket"
                    );
                }
            }
        }
        let silence = self.heard_at.elapsed();
        let is_awaited = self.session.awaited.any();
        if !is_awaited && !self.keeper.is_silent() && silence < IDLE_PATIENCE {
            // Nothing need come: this is no silence.
            self.keeper.handle_heard(now, self.current);
        }
        let asks = silence >= ASK_AFTER && (is_awaited || self.keeper.is_silent());
        if std::mem::replace(&mut self.is_allowed, asks)
            && !asks
            && let Some(signs) = PathSigns::of(connection)
        {
            signs.allow_no_more();
        }
        if asks && self.asked_at.elapsed() >= ASK_AFTER {
            self.asked_at = Instant::now();
            ask_for_a_sign(connection);
        }
        self.keeper.handle_look(now);
    }

    fn handle_dialled(&mut self, dial: DialId, result: Result<Arc<Session>, ConnectError>) {
        let now = self.now();
        self.dialling.remove(&dial);
        match result {
            Ok(session) => {
                self.reached.insert(dial, session);
                self.keeper.handle_dialled(now, dial);
            }
            Err(error) => self.keeper.handle_failed(now, dial, &error.to_string()),
        }
    }

    /// Does what the keeper wants done. False when there is nothing left to keep.
    fn carry_out(&mut self) -> bool {
        let Some(link) = self.link.upgrade() else {
            return false;
        };
        let mut old = None;
        while let Some(action) = self.keeper.poll_action() {
            match action {
                KeeperAction::Dial { dial, patience, .. } => {
                    let link = link.clone();
                    let task = async move {
                        let reached = if patience > DIAL_PATIENCE {
                            link.connect_patiently(patience).await
                        } else {
                            link.connect().await
                        };
                        (dial, reached)
                    };
                    self.dialling.insert(dial, self.dials.spawn(task));
                }
                KeeperAction::GiveUp { dial, .. } => {
                    if let Some(task) = self.dialling.remove(&dial) {
                        task.abort();
                    }
                }
                KeeperAction::Rebind { .. } => self.rebind(&link),
                KeeperAction::Adopt { connection } => {
                    let Some(session) = self.reached.remove(&connection) else {
                        continue;
                    };
                    if !link.replace(&self.session, &session) {
                        let connection = &session.reached.connection;
                        CloseReason::Superseded.close(connection, "another connection was made");
                        return false;
                    }
                    self.ear = Ear::new(&session.reached.connection);
                    self.heard_at = Instant::now();
                    self.current = connection;
                    self.moved = None;
                    old = Some(std::mem::replace(&mut self.session, session));
                }
                KeeperAction::Close { connection, cause } => {
                    let given_up = self.reached.remove(&connection);
                    if let Some(session) = given_up.or_else(|| old.take()) {
                        let connection = &session.reached.connection;
                        CloseReason::Superseded.close(connection, &cause.to_string());
                    }
                }
                KeeperAction::Report(report) => self.report(&link, &report),
            }
        }
        true
    }

    fn rebind(&mut self, link: &Link) {
        let address = &link.address;
        match self.session.reached.rebind() {
            Some(Ok(to)) => {
                self.moved.get_or_insert_with(Instant::now);
                // The node learns of the new address by what comes from it.
                ask_for_a_sign(&self.session.reached.connection);
                let silence_ms = self.heard_at.elapsed().as_millis() as u64;
                if let Some(suppressed) = self.lines.tried.allow() {
                    tracing::info!(
                        %address, %to, cause = "silence", silence_ms, suppressed,
                        "connection tries another socket"
                    );
                }
            }
            Some(Err(cause)) => {
                if let Some(suppressed) = self.lines.tried.allow() {
                    tracing::warn!(%address, cause, suppressed, "connection stays on its socket");
                }
                link.count(|counts| counts.last_error = Some(cause));
            }
            None => {}
        }
    }

    fn report(&self, link: &Link, report: &KeeperReport) {
        let address = &link.address;
        match report {
            KeeperReport::Silent {
                silence, allowed, ..
            } => {
                let silence_ms = silence.as_millis() as u64;
                link.count(|counts| {
                    counts.suspicions += 1;
                    counts.last_error = Some(format!("nothing heard for {silence_ms} ms"));
                });
                let allowed_ms = allowed.as_millis() as u64;
                if let Some(suppressed) = self.lines.silent.allow() {
                    tracing::info!(
                        %address, cause = "nothing was heard", silence_ms, allowed_ms, suppressed,
                        "the node is silent"
                    );
                }
            }
            KeeperReport::HeardAgain { silence, .. } => {
                if let Some(suppressed) = self.lines.heard.allow() {
                    tracing::info!(
                        %address, cause = "a packet came", silence_ms = silence.as_millis() as u64,
                        suppressed, "the node is heard again"
                    );
                }
            }
            KeeperReport::Up { took, .. } => {
                if let Some(suppressed) = self.lines.up.allow() {
                    tracing::info!(
                        %address, cause = "silence", took_ms = took.as_millis() as u64, suppressed,
                        "another connection took the silent one's place"
                    );
                }
            }
            KeeperReport::DialFailed { cause, took, .. } => {
                link.count(|counts| counts.last_error = Some(cause.clone()));
                if let Some(suppressed) = self.lines.failed.allow() {
                    tracing::debug!(
                        %address, cause, took_ms = took.as_millis() as u64, suppressed,
                        "cannot connect beside the silent connection"
                    );
                }
            }
            KeeperReport::Down { .. } => {}
        }
    }
}

/// Sends what QUIC acknowledges, even where the window is full. A node that takes no datagrams is asked by QUIC's keep-alive alone.
fn ask_for_a_sign(connection: &quinn::Connection) {
    if let Some(signs) = PathSigns::of(connection) {
        signs.allow_one_more();
    }
    let _ = connection.send_datagram(Bytes::from_static(&[0]));
}
