//! A UDP socket of the kernel's under quinn that is woken by what comes, and not by what has gone.
//!
//! quinn's own waits for room as long as it lives, and the kernel says that there is room each time when a packet has left: every
//! datagram that is sent wakes the thread that sent it once more, for nothing. Here there is somebody who waits for room only while
//! there is none.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Where this process may have no more files, so that nobody can wait for room, it is tried again after this.
const TRY_AGAIN: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(super) struct KernelSocket {
    /// Registered for what comes.
    socket: AsyncFd<UdpSocket>,
    state: UdpSocketState,
    /// There was no room for the last packet that was refused, and nobody has heard since then that there is.
    full: Mutex<Option<Arc<Full>>>,
}

/// One time that there was no room.
#[derive(Debug)]
struct Full {
    /// Another descriptor of the same socket, registered for room, since no descriptor can be registered twice. `None` where there
    /// was none to be had.
    waiting: Option<AsyncFd<UdpSocket>>,
}

impl KernelSocket {
    /// Must be called within a tokio runtime.
    pub(super) fn new(socket: UdpSocket) -> io::Result<Arc<KernelSocket>> {
        // Makes it non-blocking, as the runtime needs it too.
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Arc::new(KernelSocket {
            socket: register(socket, Interest::READABLE)?,
            state,
            full: Mutex::new(None),
        }))
    }

    fn full(&self) -> MutexGuard<'_, Option<Arc<Full>>> {
        self.full.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who sends next waits for room first.
    fn note_full(&self) {
        self.full().get_or_insert_with(|| {
            let again = self.socket.get_ref().try_clone();
            let waiting = again.and_then(|socket| register(socket, Interest::WRITABLE));
            let waiting = waiting.ok();
            Arc::new(Full { waiting })
        });
    }

    /// Returns when there may be room.
    async fn has_room(self: Arc<Self>) -> io::Result<()> {
        let Some(full) = self.full().clone() else {
            return Ok(());
        };
        match &full.waiting {
            Some(waiting) => drop(waiting.writable().await?),
            None => tokio::time::sleep(TRY_AGAIN).await,
        }
        let mut now = self.full();
        // Unless it has become full anew, which somebody else waits for.
        if now.as_ref().is_some_and(|now| Arc::ptr_eq(now, &full)) {
            *now = None;
        }
        Ok(())
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe for the sake of types that do not own their descriptor, and this one does"
)]
fn register(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    AsyncFd::with_interest(socket, interest)
}

impl AsyncUdpSocket for KernelSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(RoomPoller {
            socket: self,
            waiting: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = self.state.send(self.socket.get_ref().into(), transmit);
        if matches!(&sent, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            self.note_full();
        }
        sent
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(cx))?;
            if let Ok(received) =
                ready.try_io(|socket| self.state.recv(socket.get_ref().into(), buffers, meta))
            {
                return Poll::Ready(received);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.get_ref().local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

/// Waits for room where there is none.
struct RoomPoller {
    socket: Arc<KernelSocket>,
    waiting: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl UdpPoller for RoomPoller {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.waiting.is_none() && this.socket.full().is_none() {
            return Poll::Ready(Ok(()));
        }
        let waiting = this
            .waiting
            .get_or_insert_with(|| Box::pin(this.socket.clone().has_room()));
        let has_room = ready!(waiting.as_mut().poll(cx));
        this.waiting = None;
        Poll::Ready(has_room)
    }
}

impl fmt::Debug for RoomPoller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RoomPoller")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Waker;

    use super::*;
    use crate::transport::testing::{LONG, bound, receive};

    fn transmit(to: SocketAddr, contents: &[u8]) -> Transmit<'_> {
        Transmit {
            destination: to,
            ecn: None,
            contents,
            segment_size: None,
            src_ip: None,
        }
    }

    #[tokio::test]
    async fn packets_come_and_go() {
        let (one, other) = (
            KernelSocket::new(bound()).unwrap(),
            KernelSocket::new(bound()).unwrap(),
        );
        let to = other.local_addr().unwrap();
        let reading = tokio::spawn({
            let other = other.clone();
            async move { receive(&other).await }
        });
        tokio::task::yield_now().await;
        one.try_send(&transmit(to, b"hello")).unwrap();
        let heard = tokio::time::timeout(LONG, reading).await;
        assert_eq!(heard.unwrap().unwrap(), b"hello");
        // What lies there already is read without a wait.
        one.try_send(&transmit(to, b"again")).unwrap();
        one.try_send(&transmit(to, b"and again")).unwrap();
        let mut heard = tokio::time::timeout(LONG, receive(&other)).await.unwrap();
        while heard.len() < b"againand again".len() && !heard.ends_with(b"and again") {
            heard.extend(tokio::time::timeout(LONG, receive(&other)).await.unwrap());
        }
        assert_eq!(heard, b"againand again");
    }

    #[tokio::test]
    async fn who_sends_waits_only_where_there_is_no_room_and_is_woken_when_there_is() {
        let socket = KernelSocket::new(bound()).unwrap();
        let mut poller = socket.clone().create_io_poller();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(poller.as_mut().poll_writable(&mut cx).is_ready());

        // A peer on this machine takes what it is sent at once, so the kernel never is full here: it is said to be.
        socket.note_full();
        assert!(poller.as_mut().poll_writable(&mut cx).is_pending());
        let mut second = socket.clone().create_io_poller();
        let has_room = async {
            poll_fn(|cx| poller.as_mut().poll_writable(cx)).await?;
            poll_fn(|cx| second.as_mut().poll_writable(cx)).await
        };
        tokio::time::timeout(LONG, has_room).await.unwrap().unwrap();
        assert!(socket.full().is_none());
        assert!(poller.as_mut().poll_writable(&mut cx).is_ready());
        assert!(second.as_mut().poll_writable(&mut cx).is_ready());
    }

    #[tokio::test]
    async fn without_a_descriptor_to_wait_on_it_is_tried_again() {
        let socket = KernelSocket::new(bound()).unwrap();
        *socket.full() = Some(Arc::new(Full { waiting: None }));
        let mut poller = socket.clone().create_io_poller();
        let has_room = poll_fn(|cx| poller.as_mut().poll_writable(cx));
        tokio::time::timeout(LONG, has_room).await.unwrap().unwrap();
        assert!(socket.full().is_none());
    }

    /// What the kernel tells the runtime of the socket, as each `epoll` of this process has it.
    #[cfg(target_os = "linux")]
    fn events_of(socket: &UdpSocket) -> Vec<u32> {
        use std::os::fd::AsRawFd;
        let fd = socket.as_raw_fd().to_string();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc/self/fdinfo").unwrap().flatten() {
            let info = std::fs::read_to_string(entry.path()).unwrap_or_default();
            for line in info.lines() {
                let words: Vec<_> = line.split_ascii_whitespace().collect();
                if let ["tfd:", number, "events:", mask, ..] = words[..]
                    && number == fd
                {
                    found.push(u32::from_str_radix(mask, 16).unwrap());
                }
            }
        }
        found
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn what_has_gone_wakes_nobody() {
        const IN: u32 = 1;
        const OUT: u32 = 4;
        let socket = KernelSocket::new(bound()).unwrap();
        let events = events_of(socket.socket.get_ref());
        assert!(!events.is_empty());
        assert!(
            events.iter().all(|mask| mask & (IN | OUT) == IN),
            "{events:x?}"
        );
        socket.note_full();
        let full = socket.full().clone().unwrap();
        let events = events_of(full.waiting.as_ref().unwrap().get_ref());
        assert!(
            events.iter().all(|mask| mask & (IN | OUT) == OUT),
            "{events:x?}"
        );
    }
}
