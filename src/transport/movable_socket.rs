//! A UDP socket under quinn in whose place another can come.
//!
//! quinn's own `Endpoint::rebind` also makes each connection take another connection ID. One that has just ended then reports
//! a reset token for a connection that the endpoint has forgotten, and the endpoint panics, and with it the process (seen with
//! quinn-proto 0.11.19: a stateless reset that comes in the moment of the move is enough). Here quinn is not told: the peer
//! sees another address, as behind a NAT that has given another port, and validates it.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::kernel_socket::KernelSocket;

#[derive(Debug)]
pub(super) struct MovableSocket {
    place: Mutex<Place>,
}

#[derive(Debug)]
struct Place {
    socket: Arc<KernelSocket>,
    /// How often it was moved.
    moves: u64,
    /// The one before: what is under way to it still comes in, until the first packet has come to the new one.
    previous: Option<Arc<KernelSocket>>,
    /// Waits for packets on sockets that it has seen; a new one has to be shown to it.
    reader: Option<Waker>,
}

impl MovableSocket {
    /// Must be called within a tokio runtime.
    pub(super) fn new(socket: UdpSocket) -> io::Result<Arc<MovableSocket>> {
        Ok(Arc::new(MovableSocket {
            place: Mutex::new(Place {
                socket: KernelSocket::new(socket)?,
                moves: 0,
                previous: None,
                reader: None,
            }),
        }))
    }

    /// From now on packets leave by `socket`. Must be called within a tokio runtime.
    pub(super) fn move_to(&self, socket: UdpSocket) -> io::Result<()> {
        let socket = KernelSocket::new(socket)?;
        let reader = {
            let mut place = self.place();
            place.moves += 1;
            place.previous = Some(std::mem::replace(&mut place.socket, socket));
            place.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
        Ok(())
    }

    /// The same, as if a NAT had forgotten the socket before: what is under way to it comes to nothing.
    pub(super) fn lose_to(&self, socket: UdpSocket) -> io::Result<()> {
        self.move_to(socket)?;
        self.place().previous = None;
        Ok(())
    }

    /// How often it was moved.
    pub(super) fn moves(&self) -> u64 {
        self.place().moves
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a reader has to look at: the socket, the one before, and how often it was moved.
    fn read_by(&self, waker: &Waker) -> (Arc<KernelSocket>, Option<Arc<KernelSocket>>, u64) {
        let mut place = self.place();
        match &mut place.reader {
            Some(reader) => reader.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        (place.socket.clone(), place.previous.clone(), place.moves)
    }

    /// Unless it was moved meanwhile, and another is the one before.
    fn forget_previous(&self, moves: u64) {
        let mut place = self.place();
        if place.moves == moves {
            place.previous = None;
        }
    }

    fn current(&self) -> (Arc<KernelSocket>, u64) {
        let place = self.place();
        (place.socket.clone(), place.moves)
    }
}

impl AsyncUdpSocket for MovableSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        let (socket, moves) = self.current();
        Box::pin(Poller {
            movable: self,
            moves,
            poller: socket.create_io_poller(),
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.current().0.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        // Noted first: a move that comes after it wakes this reader, which then sees the new socket.
        let (socket, previous, moves) = self.read_by(cx.waker());
        if let Some(previous) = previous {
            match previous.poll_recv(cx, buffers, meta) {
                Poll::Ready(Ok(count)) => return Poll::Ready(Ok(count)),
                Poll::Ready(Err(_)) => self.forget_previous(moves),
                Poll::Pending => {}
            }
        }
        let received = socket.poll_recv(cx, buffers, meta);
        if matches!(received, Poll::Ready(Ok(count)) if count > 0) {
            self.forget_previous(moves);
        }
        received
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.current().0.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.current().0.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.current().0.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.current().0.may_fragment()
    }
}

/// Waits for room on the socket of the time.
#[derive(Debug)]
struct Poller {
    movable: Arc<MovableSocket>,
    moves: u64,
    poller: Pin<Box<dyn UdpPoller>>,
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (socket, moves) = self.movable.current();
        if self.moves != moves {
            self.moves = moves;
            self.poller = socket.create_io_poller();
        }
        self.poller.as_mut().poll_writable(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::testing::{LONG, bound, receive};

    /// Begins to wait, and does wait when this returns.
    async fn reader(socket: &Arc<MovableSocket>) -> tokio::task::JoinHandle<Vec<u8>> {
        let socket = socket.clone();
        let waiting = tokio::spawn(async move { receive(&socket).await });
        tokio::task::yield_now().await;
        waiting
    }

    async fn heard(waiting: tokio::task::JoinHandle<Vec<u8>>) -> Vec<u8> {
        tokio::time::timeout(LONG, waiting).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_reader_that_waits_hears_what_comes_to_the_new_place() {
        let peer = bound();
        let movable = MovableSocket::new(bound()).unwrap();
        let old = movable.local_addr().unwrap();
        let waiting = reader(&movable).await;
        movable.move_to(bound()).unwrap();
        let new = movable.local_addr().unwrap();
        assert_ne!(old, new);
        peer.send_to(b"new", new).unwrap();
        assert_eq!(heard(waiting).await, b"new");
        assert!(movable.place().previous.is_none());
        assert_eq!(movable.moves(), 1);
    }

    #[tokio::test]
    async fn what_comes_to_a_place_that_was_lost_is_lost() {
        let peer = bound();
        let movable = MovableSocket::new(bound()).unwrap();
        let old = movable.local_addr().unwrap();
        peer.send_to(b"late", old).unwrap();
        movable.lose_to(bound()).unwrap();
        let new = movable.local_addr().unwrap();
        assert_ne!(old, new);
        peer.send_to(b"new", new).unwrap();
        assert_eq!(receive(&movable).await, b"new");
    }

    #[tokio::test]
    async fn what_was_under_way_to_the_old_place_comes_in() {
        let peer = bound();
        let movable = MovableSocket::new(bound()).unwrap();
        let old = movable.local_addr().unwrap();
        let waiting = reader(&movable).await;
        movable.move_to(bound()).unwrap();
        peer.send_to(b"late", old).unwrap();
        assert_eq!(heard(waiting).await, b"late");
        assert!(movable.place().previous.is_some());
    }
}
