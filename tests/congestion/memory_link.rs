//! Two quinn endpoints in real time, with the link between them in memory: no kernel, no ports, no privilege.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Endpoint, EndpointConfig, TokioRuntime, UdpPoller};
use tokio::time::Sleep;

use crate::flow::{Factory, FlowOptions, Tls, configs};
use crate::link::{Arrival, Counters, Link, LinkSettings};

/// Datagrams that one call may send at once, as with the kernel's segmentation offload.
const SEGMENTS: usize = 10;

#[derive(Debug, Default)]
struct Inbox {
    packets: VecDeque<(Duration, Option<EcnCodepoint>, Vec<u8>)>,
    waker: Option<Waker>,
    sleep: Option<Pin<Box<Sleep>>>,
}

/// The link, as both ends share it.
pub struct SharedLink {
    start: Instant,
    link: Mutex<(Link, Counters)>,
}

impl std::fmt::Debug for SharedLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedLink").finish_non_exhaustive()
    }
}

impl SharedLink {
    pub fn counters(&self) -> Counters {
        self.link.lock().unwrap().1
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

#[derive(Debug)]
struct MemorySocket {
    address: SocketAddr,
    peer: SocketAddr,
    sends_through_bottleneck: bool,
    link: Arc<SharedLink>,
    mine: Arc<Mutex<Inbox>>,
    theirs: Arc<Mutex<Inbox>>,
}

impl MemorySocket {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.mine.lock().unwrap()
    }
}

/// Memory is always writable.
#[derive(Debug)]
struct Writable;

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, _cx: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for MemorySocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable)
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
        let now = self.link.now();
        let mut arrived = Vec::new();
        {
            let mut guard = self.link.link.lock().unwrap();
            let (link, counters) = &mut *guard;
            for datagram in transmit.contents.chunks(segment) {
                let arrival: Option<Arrival> = if self.sends_through_bottleneck {
                    link.forward(now, datagram.len(), transmit.ecn.is_some(), counters)
                } else {
                    link.back(now)
                };
                if let Some(arrival) = arrival {
                    let ecn = if arrival.marked {
                        Some(EcnCodepoint::Ce)
                    } else {
                        transmit.ecn
                    };
                    arrived.push((arrival.at, ecn, datagram.to_vec()));
                }
            }
        }
        let mut inbox = self.theirs.lock().unwrap();
        let was_empty = inbox.packets.is_empty();
        inbox.packets.extend(arrived);
        if was_empty && let Some(waker) = inbox.waker.take() {
            waker.wake();
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbox = self.inbox();
        loop {
            let now = self.link.now();
            let mut taken = 0;
            while taken < bufs.len().min(meta.len())
                && inbox.packets.front().is_some_and(|(at, ..)| *at <= now)
            {
                let Some((_, ecn, bytes)) = inbox.packets.pop_front() else {
                    break;
                };
                bufs[taken][..bytes.len()].copy_from_slice(&bytes);
                meta[taken] = RecvMeta {
                    addr: self.peer,
                    len: bytes.len(),
                    stride: bytes.len(),
                    ecn,
                    ..RecvMeta::default()
                };
                taken += 1;
            }
            if taken > 0 {
                return Poll::Ready(Ok(taken));
            }
            inbox.waker = Some(cx.waker().clone());
            let Some((at, ..)) = inbox.packets.front() else {
                return Poll::Pending;
            };
            let mut sleep = Box::pin(tokio::time::sleep_until((self.link.start + *at).into()));
            let done = sleep.as_mut().poll(cx).is_ready();
            inbox.sleep = Some(sleep);
            if !done {
                return Poll::Pending;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn max_transmit_segments(&self) -> usize {
        SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// A client whose packets go through the bottleneck, its server, and the link. Within a tokio runtime.
pub fn memory_pair(
    settings: LinkSettings,
    seed: u64,
    tls: &Tls,
    controller: Factory,
    options: FlowOptions,
) -> (Endpoint, Endpoint, Arc<SharedLink>) {
    let link = Arc::new(SharedLink {
        start: Instant::now(),
        link: Mutex::new((Link::new(settings, seed), Counters::default())),
    });
    let addresses = [1000, 2000].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let inboxes = [(), ()].map(|()| Arc::new(Mutex::new(Inbox::default())));
    let socket = |mine: usize| {
        Arc::new(MemorySocket {
            address: addresses[mine],
            peer: addresses[1 - mine],
            sends_through_bottleneck: mine == 0,
            link: Arc::clone(&link),
            mine: Arc::clone(&inboxes[mine]),
            theirs: Arc::clone(&inboxes[1 - mine]),
        })
    };
    let (client_config, server_config) = configs(tls, controller, options);
    let endpoint = |config, socket| {
        Endpoint::new_with_abstract_socket(
            EndpointConfig::default(),
            config,
            socket,
            Arc::new(TokioRuntime),
        )
        .unwrap()
    };
    let mut client = endpoint(None, socket(0));
    client.set_default_client_config(client_config);
    let server = endpoint(Some(server_config), socket(1));
    (client, server, link)
}

/// Processor time of this process so far, user and system.
pub fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    // Linux counts in hundredths of a second for every program.
    Duration::from_millis(ticks * 10)
}
