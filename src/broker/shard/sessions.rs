//! The sessions of a partition's followers, as the owner thread knows them.

use std::sync::Arc;

use super::Owned;
use super::session_lines::Asked;
use crate::broker::follower_channel::FollowerChannel;
use crate::broker::shared::Shared;
use crate::types::{NodeId, SessionId};

/// A follower's session, as the owner thread knows it: over which connection it is, and how much of it is under way.
pub(super) struct FollowerSession {
    pub(super) channel: Arc<FollowerChannel>,
    pub(super) session: SessionId,
    /// Bytes of this session that count against the connection's budget.
    pub(super) outstanding: usize,
    /// Those of them that are catch-up frames. They were sent before all others, and are acknowledged before them.
    pub(super) catching_up: usize,
    pub(super) asked: Asked,
}

impl FollowerSession {
    pub(super) fn release(&mut self, bytes: usize, shared: &Shared) {
        let bytes = bytes.min(self.outstanding);
        self.outstanding -= bytes;
        let catch_up = bytes.min(self.catching_up);
        self.catching_up -= catch_up;
        if self.channel.release(bytes, catch_up) {
            shared.tell_all_of_room(self.channel.peer.node);
        }
    }
}

impl Owned {
    /// Whether the peer's session is on this connection.
    pub(super) fn has_session_on(&self, channel: &FollowerChannel) -> bool {
        let session = self.sessions.get(&channel.peer.node);
        session.is_some_and(|session| session.channel.id == channel.id)
    }

    pub(super) fn forget_session(
        &mut self,
        node: NodeId,
        is_meant: impl FnOnce(&FollowerSession) -> bool,
        cause: &'static str,
        shared: &Shared,
    ) {
        if self.sessions.get(&node).is_some_and(is_meant)
            && let Some(mut session) = self.sessions.remove(&node)
        {
            let outstanding = session.outstanding;
            session.release(outstanding, shared);
            let id = self.partition.id();
            self.session_lines.closed(id, &session.asked, cause);
        }
    }
}
