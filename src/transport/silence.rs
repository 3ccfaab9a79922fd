//! What may be behind a dial that nobody answers: another service, or a path that swallows large packets.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::explain::ConnectFailure;
use super::scout::{UdpAnswer, ask_passage, ask_udp, known_path_mtu, needed_mtu};
use super::sockets::Sockets;

/// A dial that has waited for so long, or for a quarter of its time, asks what else may be there.
const ASK_AFTER: Duration = Duration::from_secs(1);
/// How long that question waits for its answer.
const ASK_FOR: Duration = Duration::from_millis(500);
/// An address is asked once in this time, however often it is dialled: a redial each second for hours must not look like a scan.
/// In between the last answer stands.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// Addresses whose answer is kept. Beyond it the one asked longest ago is forgotten, and may be asked again sooner.
const MAX_REMEMBERED: usize = 256;

/// What was learnt about a silent address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    /// Something answers in so many bytes, but not in QUIC.
    NotQuic { bytes: usize },
    /// Small packets arrive there and large ones do not.
    LargePacketsLost,
}

impl Finding {
    fn failure(self, address: &str, remote: SocketAddr) -> ConnectFailure {
        let address = address.to_owned();
        match self {
            Finding::NotQuic { bytes } => ConnectFailure::NotQuic { address, bytes },
            Finding::LargePacketsLost => ConnectFailure::LargePacketsLost {
                address,
                needed: needed_mtu(remote),
            },
        }
    }
}

#[derive(Debug)]
struct Asked {
    at: Instant,
    finding: Option<Finding>,
}

/// Whom the dials of a process have asked, and what they learnt: at most [`MAX_REMEMBERED`] addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct Silences {
    asked: Arc<Mutex<HashMap<SocketAddr, Asked>>>,
}

/// What a dial that waits does.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Ask,
    /// Somebody asked a short while ago.
    Known(Option<Finding>),
}

impl Silences {
    fn turn(&self, remote: SocketAddr, now: Instant) -> Turn {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = asked.get_mut(&remote) {
            if now - known.at < ASK_AGAIN_AFTER {
                return Turn::Known(known.finding);
            }
            // What was learnt stands until the new answer has come.
            known.at = now;
            return Turn::Ask;
        }
        if asked.len() >= MAX_REMEMBERED
            && let Some(oldest) = asked
                .iter()
                .min_by_key(|(_, asked)| asked.at)
                .map(|(remote, _)| *remote)
        {
            asked.remove(&oldest);
        }
        let nothing_yet = Asked {
            at: now,
            finding: None,
        };
        asked.insert(remote, nothing_yet);
        Turn::Ask
    }

    fn note(&self, remote: SocketAddr, finding: Option<Finding>) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(asked) = asked.get_mut(&remote) {
            asked.finding = finding;
        }
    }

    /// A node has answered there: what was learnt before explains no later silence.
    pub(super) fn note_answered(&self, remote: SocketAddr) {
        self.note(remote, None);
    }
}

/// Asks at the address, beside a dial that has waited for a while, so that it costs no time. Nothing where nothing was learnt, and
/// where links are impaired on purpose, which the question would go round.
pub(super) async fn look_into_silence(
    sockets: &Sockets,
    address: &str,
    remote: Option<SocketAddr>,
    within: Duration,
) -> Option<ConnectFailure> {
    let remote = remote.filter(|_| !sockets.are_impaired())?;
    sleep(ASK_AFTER.min(within / 4)).await;
    let silences = sockets.silences();
    let finding = match silences.turn(remote, Instant::now()) {
        Turn::Known(finding) => finding,
        Turn::Ask => {
            let finding = ask(remote).await;
            silences.note(remote, finding);
            finding
        }
    };
    finding.map(|finding| finding.failure(address, remote))
}

async fn ask(remote: SocketAddr) -> Option<Finding> {
    match ask_udp(remote, ASK_FOR).await {
        UdpAnswer::Other { bytes } => Some(Finding::NotQuic { bytes }),
        UdpAnswer::Silent { .. } => {
            let passage = ask_passage(remote.ip()).await;
            (passage.small && !passage.large).then_some(Finding::LargePacketsLost)
        }
        _ => None,
    }
}

/// Silence has a cause that this machine may know of: packets that do not fit the path are never sent, or never arrive.
pub(super) async fn too_narrow(address: &str, remotes: &[SocketAddr]) -> Option<ConnectFailure> {
    let remote = *remotes.first()?;
    let (mtu, needed) = (known_path_mtu(remote).await?, needed_mtu(remote));
    (mtu < needed).then(|| ConnectFailure::PathTooNarrow {
        address: address.to_owned(),
        mtu,
        needed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn an_address_is_asked_once_in_a_while_and_its_answer_stands_in_between() {
        let silences = Silences::default();
        let begin = Instant::now();
        assert_eq!(silences.turn(remote(1), begin), Turn::Ask);
        // Another dial meanwhile has nothing to say, and does not ask beside it.
        assert_eq!(silences.turn(remote(1), begin), Turn::Known(None));
        assert_eq!(silences.turn(remote(2), begin), Turn::Ask);
        let lost = Some(Finding::LargePacketsLost);
        silences.note(remote(1), lost);
        let before = begin + ASK_AGAIN_AFTER - Duration::from_millis(1);
        assert_eq!(silences.turn(remote(1), before), Turn::Known(lost));
        assert_eq!(silences.turn(remote(1), begin + ASK_AGAIN_AFTER), Turn::Ask);
        assert_eq!(
            silences.turn(remote(1), begin + ASK_AGAIN_AFTER),
            Turn::Known(lost)
        );
        silences.note_answered(remote(1));
        assert_eq!(
            silences.turn(remote(1), begin + ASK_AGAIN_AFTER),
            Turn::Known(None)
        );
    }

    #[test]
    fn so_many_addresses_are_remembered_and_no_more() {
        let silences = Silences::default();
        let begin = Instant::now();
        for port in 1..=MAX_REMEMBERED as u16 + 1 {
            let now = begin + Duration::from_millis(u64::from(port));
            assert_eq!(silences.turn(remote(port), now), Turn::Ask);
        }
        assert_eq!(silences.asked.lock().unwrap().len(), MAX_REMEMBERED);
        let now = begin + Duration::from_secs(1);
        assert_eq!(silences.turn(remote(2), now), Turn::Known(None));
        assert_eq!(silences.turn(remote(1), now), Turn::Ask);
    }
}
