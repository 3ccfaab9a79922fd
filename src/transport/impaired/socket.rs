//! The socket under quinn: it asks the models what becomes of each packet, and holds what is not due.
//!
//! ```text
//!  quinn ─ try_send ─▶ clear? ───────────────────────────────▶ kernel        whole batches, as without it
//!                      └ taken apart ─▶ model ─▶ delay line ─▶ carrier ─▶ kernel     one timer, batches again
//!  quinn ◀─ poll_recv ─ clear? ◀───────────────────────────── kernel
//!                       delay line ◀─ model ◀─ taken apart ◀─┘              announcements end here
//! ```
//!
//! What is decided is decided in [`super::line`], [`super::model`] and [`super::link_table`].

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::{Notify, watch};
use tokio::time::{Sleep, sleep_until};

use super::announcement::{ANNOUNCE_EVERY, ANNOUNCEMENT_BYTES, announced, announcement};
use super::line::{Batch, DelayLine};
use super::link_table::Link;
use super::links::{ImpairedLinks, LinkCache};
use crate::transport::log_limit::LogLimit;
use crate::transport::movable_socket::MovableSocket;
use crate::transport::socket::bind_udp_for;

/// The runtime's timer has a grain of 1 ms and is never early. Packets go up to half of that before they are due, so that
/// they are late by no more than the other half.
const EARLY: Duration = Duration::from_micros(500);
/// How long packets of a socket that nobody uses any more go on leaving.
const LINGER: Duration = Duration::from_secs(1);
/// Batches that are read and come to nothing before others have their turn.
const FRUITLESS_READS: usize = 16;

/// A UDP socket of quinn's runtime with links that are made worse on purpose.
#[derive(Debug)]
pub(in crate::transport) struct ImpairedSocket {
    shared: Arc<Shared>,
}

struct Shared {
    links: Arc<ImpairedLinks>,
    /// Whom it dials; `None` for one that listens.
    dials: Option<SocketAddr>,
    /// What the packets come from and go to.
    socket: Arc<MovableSocket>,
    outward: Mutex<Outward>,
    inward: Mutex<Inward>,
    wake_carrier: Notify,
    closed: AtomicBool,
    overflow_lines: LogLimit,
}

#[derive(Default)]
struct Outward {
    line: DelayLine,
    /// Left the line, and the kernel had no room for it.
    refused: Option<Batch>,
    links: LinkCache,
    announce_at: Duration,
    /// How often the socket had moved when it was last announced: the peer does not know the new port.
    announced_moves: u64,
    /// Until when the carrier sleeps unless it is woken; `None`: for ever.
    carrier_sleeps_until: Option<Duration>,
}

#[derive(Default)]
struct Inward {
    line: DelayLine,
    links: LinkCache,
    timer: Option<Pin<Box<Sleep>>>,
}

impl ImpairedSocket {
    /// Takes `socket`, which dials nobody but `dials`, or listens. Must be called within a tokio runtime.
    pub(in crate::transport) fn new(
        socket: Arc<MovableSocket>,
        dials: Option<SocketAddr>,
        links: &Arc<ImpairedLinks>,
    ) -> Arc<ImpairedSocket> {
        let shared = Arc::new(Shared {
            links: Arc::clone(links),
            dials,
            socket,
            outward: Mutex::default(),
            inward: Mutex::default(),
            wake_carrier: Notify::new(),
            closed: AtomicBool::new(false),
            overflow_lines: LogLimit::default(),
        });
        // Before it is spawned: no change goes unseen.
        let carrier = Carrier::new(Arc::clone(&shared));
        tokio::spawn(carrier.run());
        Arc::new(ImpairedSocket { shared })
    }
}

impl Drop for ImpairedSocket {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.wake_carrier.notify_one();
    }
}

impl AsyncUdpSocket for ImpairedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.shared.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.shared.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.shared.poll_recv(cx, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.shared.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.shared.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.shared.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.shared.socket.may_fragment()
    }
}

impl Shared {
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let now = self.links.now();
        let mut outward = lock(&self.outward);
        self.announce(&mut outward, now);
        // What the kernel has no room for holds up what comes behind it.
        self.flush(&mut outward, now)?;
        let link = outward.links.find(&self.links, now, transmit.destination);
        if link.outward.is_clear() {
            return self.socket.try_send(transmit);
        }
        let batch = Batch {
            remote: transmit.destination,
            local: transmit.src_ip,
            ecn: transmit.ecn,
            stride: transmit.segment_size.unwrap_or(transmit.contents.len()),
            contents: Bytes::copy_from_slice(transmit.contents),
        };
        outward.line.send(now, &mut link.outward.model(), batch);
        self.report_overflow(&mut outward.line);
        // Accepted in any case: what is refused from here on is the carrier's.
        let is_refused = self.flush(&mut outward, now).is_err();
        let sleeps_until = outward.carrier_sleeps_until.unwrap_or(Duration::MAX);
        let is_due_sooner = outward
            .line
            .next_due()
            .is_some_and(|due| due < sleeps_until);
        if is_refused || is_due_sooner {
            // One call is enough until it has looked.
            outward.carrier_sleeps_until = outward.line.next_due();
            self.wake_carrier.notify_one();
        }
        Ok(())
    }

    /// Gives the kernel what is due. An error only if it has no room for it now.
    fn flush(&self, outward: &mut Outward, now: Duration) -> io::Result<()> {
        let segments = self.socket.max_transmit_segments();
        loop {
            let next = outward
                .refused
                .take()
                .or_else(|| outward.line.next_batch(now + EARLY, segments, usize::MAX));
            let Some(batch) = next else {
                return Ok(());
            };
            let length = batch.contents.len();
            let sent = self.socket.try_send(&Transmit {
                destination: batch.remote,
                ecn: batch.ecn,
                contents: &batch.contents,
                segment_size: (batch.stride < length).then_some(batch.stride),
                src_ip: batch.local,
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    outward.refused = Some(batch);
                    return Err(error);
                }
                // Any other packet is lost like those of the link.
                Err(_) | Ok(()) => {}
            }
        }
    }

    /// Tells the other end which node dials it, if it is time to.
    fn announce(&self, outward: &mut Outward, now: Duration) {
        let (Some(own), Some(remote)) = (self.links.own(), self.dials) else {
            return;
        };
        let moves = self.socket.moves();
        if now < outward.announce_at && moves == outward.announced_moves {
            return;
        }
        let sent = self.socket.try_send(&Transmit {
            destination: remote,
            ecn: None,
            contents: &announcement(own),
            segment_size: None,
            src_ip: None,
        });
        // A socket that has just come has no room until it was asked for once: the packet behind this one waits for that as
        // well, and both are tried again.
        if sent.is_ok() {
            outward.announce_at = now + ANNOUNCE_EVERY;
            outward.announced_moves = moves;
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inward = lock(&self.inward);
        let segments = self.socket.max_receive_segments();
        for _ in 0..FRUITLESS_READS {
            let now = self.links.now();
            let filled = inward.deliver(now, segments, buffers, meta);
            if filled > 0 {
                return Poll::Ready(Ok(filled));
            }
            if let Poll::Ready(read) = self.socket.poll_recv(cx, buffers, meta) {
                let kept = inward.sort(&self.links, self.links.now(), read?, buffers, meta);
                self.report_overflow(&mut inward.line);
                if kept > 0 {
                    return Poll::Ready(Ok(kept));
                }
                continue;
            }
            let Some(due) = inward.line.next_due() else {
                return Poll::Pending;
            };
            let at = self.links.instant(due.saturating_sub(EARLY));
            let timer = inward
                .timer
                .get_or_insert_with(|| Box::pin(sleep_until(at)));
            if timer.deadline() != at {
                timer.as_mut().reset(at);
            }
            ready!(timer.as_mut().poll(cx));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Another local port from now on, as if a NAT had forgotten this one.
    fn rebind(&self, remote: SocketAddr) {
        let from = self.socket.local_addr();
        let moved = bind_udp_for(remote)
            .map_err(io::Error::other)
            .and_then(|socket| self.socket.lose_to(socket));
        if let Err(error) = moved {
            tracing::warn!(%remote, %error, "the way to a peer stays on its port: there is no other");
            return;
        }
        let shown = |address: io::Result<SocketAddr>| address.ok().map(tracing::field::display);
        tracing::info!(
            %remote, from = shown(from), to = shown(self.socket.local_addr()),
            "the way to a peer was given another port, as by a NAT"
        );
    }

    fn report_overflow(&self, line: &mut DelayLine) {
        let packets = line.take_overflowed();
        if packets > 0
            && let Some(suppressed) = self.overflow_lines.allow()
        {
            tracing::warn!(
                packets,
                suppressed,
                "more packets are under way than an impaired socket holds: some were dropped; choose a shorter delay or a lower rate"
            );
        }
    }
}

impl Inward {
    /// Fills buffers with what is due, and returns how many.
    fn deliver(
        &mut self,
        now: Duration,
        segments: usize,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> usize {
        let mut filled = 0;
        for (buffer, meta) in buffers.iter_mut().zip(meta) {
            let Some(batch) = self.line.next_batch(now + EARLY, segments, buffer.len()) else {
                break;
            };
            // A datagram that is too long is cut off, as the kernel does it.
            let length = batch.contents.len().min(buffer.len());
            buffer[..length].copy_from_slice(&batch.contents[..length]);
            *meta = RecvMeta {
                addr: batch.remote,
                len: length,
                stride: batch.stride,
                ecn: batch.ecn,
                dst_ip: batch.local,
            };
            filled += 1;
        }
        filled
    }

    /// Of `count` buffers that the kernel has filled, moves those that pass at once to the front, and returns how many they are.
    /// Others go into the line, and announcements to the table.
    fn sort(
        &mut self,
        links: &ImpairedLinks,
        now: Duration,
        count: usize,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> usize {
        let mut kept = 0;
        for index in 0..count {
            let mut one = meta[index];
            one.len = without_announcement(&buffers[index][..one.len], one.stride, |node| {
                links.announced(now, one.addr, node);
            });
            if one.len == 0 {
                continue;
            }
            let link = self.links.find(links, now, one.addr);
            if link.inward.is_clear() {
                meta[kept] = one;
                buffers.swap(kept, index);
                kept += 1;
                continue;
            }
            let batch = Batch {
                remote: one.addr,
                local: one.dst_ip,
                ecn: one.ecn,
                stride: one.stride,
                contents: Bytes::copy_from_slice(&buffers[index][..one.len]),
            };
            self.line.send(now, &mut link.inward.model(), batch);
        }
        kept
    }
}

/// The length of a batch without the announcements at its end. The kernel puts a shorter datagram behind longer ones of the
/// same sender, and nothing behind that.
fn without_announcement(
    batch: &[u8],
    stride: usize,
    mut announces: impl FnMut(crate::types::NodeId),
) -> usize {
    let mut length = batch.len();
    while length > 0 {
        let last = (length - 1) / stride.max(1) * stride.max(1);
        if length - last != ANNOUNCEMENT_BYTES {
            break;
        }
        let Some(node) = announced(&batch[last..length]) else {
            break;
        };
        announces(node);
        length = last;
    }
    length
}

/// Gives the kernel what becomes due, and another socket when the spec says so.
struct Carrier {
    shared: Arc<Shared>,
    changes: watch::Receiver<()>,
    /// The link that is dialled, and the port that it has by the spec.
    rebound: Option<(Arc<Link>, u64)>,
}

impl Carrier {
    fn new(shared: Arc<Shared>) -> Carrier {
        let changes = shared.links.changes();
        let mut carrier = Carrier {
            shared,
            changes,
            rebound: None,
        };
        carrier.rebind();
        carrier
    }

    async fn run(mut self) {
        let mut poller = Arc::clone(&self.shared.socket).create_io_poller();
        let mut closes_at = None;
        loop {
            let now = self.shared.links.now();
            let (is_refused, next) = {
                let mut outward = lock(&self.shared.outward);
                if outward.line.next_due().is_some() {
                    self.shared.announce(&mut outward, now);
                }
                let is_refused = self.shared.flush(&mut outward, now).is_err();
                let next = outward.line.next_due();
                outward.carrier_sleeps_until = next;
                (is_refused, next)
            };
            if self.shared.closed.load(Ordering::Acquire) {
                let closes_at = *closes_at.get_or_insert(now + LINGER);
                if now >= closes_at || (next.is_none() && !is_refused) {
                    return;
                }
            }
            let wakes = match (next.filter(|_| !is_refused), closes_at) {
                (Some(next), Some(closes_at)) => Some(next.min(closes_at)),
                (next, closes_at) => next.or(closes_at),
            };
            let wakes_at = self
                .shared
                .links
                .instant(wakes.unwrap_or_default().saturating_sub(EARLY));
            tokio::select! {
                () = self.shared.wake_carrier.notified() => {}
                Ok(()) = self.changes.changed() => self.rebind(),
                () = sleep_until(wakes_at), if wakes.is_some() => {}
                // An error shows again when it is sent.
                _ = poll_fn(|cx| poller.as_mut().poll_writable(cx)), if is_refused => {}
            }
        }
    }

    /// Looks whether the link that is dialled is to have another port.
    fn rebind(&mut self) {
        let Some(remote) = self.shared.dials else {
            return;
        };
        let link = self.shared.links.link_to(self.shared.links.now(), remote);
        let wanted = link.rebind();
        // A link that is known by another name than before has no port that it should have.
        let is_another = self
            .rebound
            .replace((Arc::clone(&link), wanted))
            .is_some_and(|(before, had)| Arc::ptr_eq(&before, &link) && had != wanted);
        if is_another {
            self.shared.rebind(remote);
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("dials", &self.dials)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;

    #[test]
    fn an_announcement_is_taken_out_of_the_batch_that_the_kernel_has_put_it_into() {
        let me = announcement(NodeId::new(7).unwrap());
        let after_two = [&[1; 2400][..], &me[..]].concat();
        for (batch, stride, length, heard) in [
            (&after_two[..], 1200, 2400, 1),
            (&me[..], 13, 0, 1),
            (&[me, me].concat()[..], 13, 0, 2),
            (&after_two[..2400], 1200, 2400, 0),
            // Thirteen bytes of something else, and an announcement within a packet.
            (&after_two[2387..2400], 13, 13, 0),
            (&after_two[2000..], 413, 413, 0),
            (&[], 0, 0, 0),
        ] {
            let mut nodes = Vec::new();
            let left = without_announcement(batch, stride, |node| nodes.push(node.get()));
            assert_eq!((left, nodes), (length, vec![7; heard]));
        }
    }
}
