//! How the listening end learns which node dials it: sockets that dial have any port, so this end says its number.
//!
//! ```text
//! 00  "quorate:"  node id (4, big-endian)      13 bytes, before the first packet and every quarter of a second
//! ```
//!
//! Only impaired sockets send it, and only they understand it; they never hand it on. To QUIC it is nothing: too short to be
//! answered by a reset, of no connection. It is not impaired itself, because it is not of the link but about it.

use std::time::Duration;

use crate::types::NodeId;

pub(super) const ANNOUNCEMENT_BYTES: usize = 13;
/// How often it is sent by a socket that sends at all.
pub(super) const ANNOUNCE_EVERY: Duration = Duration::from_millis(250);
/// The first byte has neither the bit of a long header nor QUIC's fixed bit.
const MAGIC: &[u8; 9] = b"\0quorate:";

pub(super) fn announcement(node: NodeId) -> [u8; ANNOUNCEMENT_BYTES] {
    let mut bytes = [0; ANNOUNCEMENT_BYTES];
    let (magic, id) = bytes.split_at_mut(MAGIC.len());
    magic.copy_from_slice(MAGIC);
    id.copy_from_slice(&node.get().to_be_bytes());
    bytes
}

/// Who announces itself, if a datagram is that.
pub(super) fn announced(datagram: &[u8]) -> Option<NodeId> {
    let id = datagram.strip_prefix(MAGIC)?;
    NodeId::new(u32::from_be_bytes(id.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_known_by_its_announcement_and_by_nothing_else() {
        let node = NodeId::new(70_000).unwrap();
        let bytes = announcement(node);
        assert_eq!(announced(&bytes), Some(node));
        assert_eq!(announced(&bytes[..12]), None);
        assert_eq!(announced(&[&bytes[..], &[0]].concat()), None);
        assert_eq!(announced(b"\0quorate:\0\0\0\0"), None);
        assert_eq!(announced(b"@quorate:\0\0\0\x01"), None);
        // QUIC's long header and fixed bits.
        assert_eq!(bytes[0] & 0xc0, 0);
    }
}
