//! Replication over one TLS stream on TCP, for measurements only: what QUIC is compared with. Everything goes through one queue
//! and one stream, as most brokers do it: frames, control messages and signs of life one way, control messages and acks the
//! other. Loss of one segment holds up all of it, and the kernel alone decides how fast and how long.
//!
//! ```text
//! stream   { chunk }
//! chunk    channel u8, length u32 (big-endian), so many bytes
//! ```
//!
//! Messages are told apart by themselves within the bytes of a channel.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, TlsStream};

use super::certificate_info::PeerIdentity;
use super::dial::PeerAddress;
use super::identity::Identity;
use super::tcp_tls::TcpTls;
use super::tls;
use crate::types::NodeId;

/// Chunks that wait for the stream. Beyond it whoever has another one waits.
const QUEUED_CHUNKS: usize = 64;
/// What is gathered for one write, in bytes, so that small chunks share TLS records and system calls.
const WRITE_BYTES: usize = 256 * 1024;
/// The longest chunk; a longer one is refused before anything is allocated for it.
const MAX_CHUNK_BYTES: usize = 32 << 20;
const READ_BYTES: usize = 256 * 1024;
const HEADER_BYTES: usize = 5;

/// What a chunk belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TcpChannel {
    Control = 0,
    LiveLane = 1,
    CatchUpLane = 2,
    Acks = 3,
    /// A sign of life, which the other end sends back as [`TcpChannel::Echo`].
    Heartbeat = 4,
    Echo = 5,
}

impl TcpChannel {
    fn of(byte: u8) -> Option<TcpChannel> {
        Some(match byte {
            0 => TcpChannel::Control,
            1 => TcpChannel::LiveLane,
            2 => TcpChannel::CatchUpLane,
            3 => TcpChannel::Acks,
            4 => TcpChannel::Heartbeat,
            5 => TcpChannel::Echo,
            _ => return None,
        })
    }

    /// Adds a chunk to what is to be written.
    pub fn put(self, bytes: &[u8], out: &mut BytesMut) {
        out.put_u8(self as u8);
        // Longer ones are not queued: a lane's batches and control messages are bounded far below.
        out.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        out.extend_from_slice(bytes);
    }

    /// Takes a chunk off the beginning of what has been read, if it is there whole.
    pub fn take(buffer: &mut BytesMut) -> Result<Option<(TcpChannel, Bytes)>, String> {
        let Some(header) = buffer.get(..HEADER_BYTES) else {
            return Ok(None);
        };
        let channel = TcpChannel::of(header[0])
            .ok_or_else(|| format!("the peer sent a chunk of the unknown channel {}", header[0]))?;
        let length = (&header[1..]).get_u32() as usize;
        if length > MAX_CHUNK_BYTES {
            return Err(format!(
                "the peer announced a chunk of {length} bytes and at most {MAX_CHUNK_BYTES} are taken"
            ));
        }
        if buffer.len() < HEADER_BYTES + length {
            return Ok(None);
        }
        buffer.advance(HEADER_BYTES);
        Ok(Some((channel, buffer.split_to(length).freeze())))
    }
}

/// One stream, not yet in use.
#[derive(Debug)]
pub struct TcpLink {
    pub remote: SocketAddr,
    stream: TlsStream<TcpStream>,
}

impl TcpLink {
    /// Takes a connection that a follower has opened. Its certificate says which node it is.
    pub async fn accept(
        tls: &TcpTls,
        stream: TcpStream,
        remote: SocketAddr,
        congestion: &str,
    ) -> Result<(TcpLink, NodeId), String> {
        set_up(&stream, congestion).map_err(|error| cannot_use(congestion, &error))?;
        let (stream, peer) = tls
            .accept(stream, remote)
            .await
            .map_err(|error| error.to_string())?;
        let Some(PeerIdentity::Node(node)) = peer else {
            return Err(format!("{remote} showed no node's certificate"));
        };
        let stream = TlsStream::Server(stream);
        Ok((TcpLink { remote, stream }, node))
    }

    /// Connects to the TCP port that has the number of a node's QUIC port, handshake included, within `within`.
    pub async fn dial(
        identity: &Identity,
        peer: &PeerAddress,
        congestion: &str,
        within: Duration,
    ) -> Result<TcpLink, String> {
        let (host, port) = peer
            .host_and_port()
            .ok_or_else(|| format!("{peer} is not an address"))?;
        let connecting = async {
            let stream = TcpStream::connect((host, port)).await?;
            let remote = stream.peer_addr()?;
            set_up(&stream, congestion)?;
            let config = tls::tcp_client(identity, peer.node).map_err(io::Error::other)?;
            let name = host.to_owned().try_into().map_err(io::Error::other)?;
            let connector = TlsConnector::from(Arc::new(config));
            let stream = connector.connect(name, stream).await?;
            let stream = TlsStream::Client(stream);
            Ok::<_, io::Error>(TcpLink { remote, stream })
        };
        match timeout(within, connecting).await {
            Ok(Ok(link)) => Ok(link),
            Ok(Err(error)) => Err(format!("cannot connect to {host}:{port} over TCP: {error}")),
            Err(_) => Err(format!(
                "no TCP connection to {host}:{port} within {} s",
                within.as_secs()
            )),
        }
    }

    /// The two directions. What is queued is written by a task that ends when every writer is gone, or the stream fails; then the
    /// stream is closed.
    pub fn split(self) -> (TcpLinkReader, TcpLinkWriter) {
        let (read, write) = tokio::io::split(self.stream);
        let (chunks, queue) = mpsc::channel(QUEUED_CHUNKS);
        tokio::spawn(write_chunks(write, queue));
        let reader = TcpLinkReader {
            stream: read,
            buffer: BytesMut::new(),
        };
        (reader, TcpLinkWriter { chunks })
    }
}

/// Frames and acks are small and awaited: Nagle's algorithm would hold them back.
fn set_up(stream: &TcpStream, congestion: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    use_congestion(SockRef::from(stream), congestion)
}

#[cfg(target_os = "linux")]
fn use_congestion(socket: SockRef<'_>, name: &str) -> io::Result<()> {
    socket.set_tcp_congestion(name.as_bytes())
}

#[cfg(not(target_os = "linux"))]
fn use_congestion(_: SockRef<'_>, _: &str) -> io::Result<()> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

fn cannot_use(congestion: &str, error: &io::Error) -> String {
    format!("cannot use the kernel's congestion control {congestion:?}: {error}")
}

/// Whether this kernel lets this process use a congestion control.
pub fn probe_tcp_congestion(name: &str) -> Result<(), String> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    socket
        .and_then(|socket| use_congestion(SockRef::from(&socket), name))
        .map_err(|error| cannot_use(name, &error))
}

/// Where chunks go out. Clones share the stream.
#[derive(Clone, Debug)]
pub struct TcpLinkWriter {
    chunks: mpsc::Sender<(TcpChannel, Bytes)>,
}

impl TcpLinkWriter {
    /// Queues a chunk, waiting for room. False when the stream is gone.
    pub async fn send(&self, channel: TcpChannel, bytes: Bytes) -> bool {
        self.chunks.send((channel, bytes)).await.is_ok()
    }

    /// Queues a chunk if there is room now.
    pub fn try_send(&self, channel: TcpChannel, bytes: Bytes) -> bool {
        self.chunks.try_send((channel, bytes)).is_ok()
    }

    /// Waits until the stream is gone.
    pub async fn closed(&self) {
        self.chunks.closed().await;
    }
}

async fn write_chunks(
    mut stream: WriteHalf<TlsStream<TcpStream>>,
    mut queue: mpsc::Receiver<(TcpChannel, Bytes)>,
) {
    let mut gathered = BytesMut::new();
    while let Some(first) = queue.recv().await {
        let mut next = Some(first);
        while let Some((channel, bytes)) = next {
            channel.put(&bytes, &mut gathered);
            next = match gathered.len() < WRITE_BYTES {
                true => queue.try_recv().ok(),
                false => None,
            };
        }
        let written = async {
            stream.write_all(&gathered).await?;
            stream.flush().await
        };
        if let Err(error) = written.await {
            tracing::debug!(%error, "a replication stream on TCP cannot be written");
            return;
        }
        gathered.clear();
    }
    let _ = stream.shutdown().await;
}

/// Where chunks come in.
#[derive(Debug)]
pub struct TcpLinkReader {
    stream: ReadHalf<TlsStream<TcpStream>>,
    buffer: BytesMut,
}

impl TcpLinkReader {
    /// The next chunk, whole. `Err` says why there is none.
    ///
    /// Cancel-safe: what has been read stays for the next call.
    pub async fn next(&mut self) -> Result<(TcpChannel, Bytes), String> {
        loop {
            if let Some(chunk) = TcpChannel::take(&mut self.buffer)? {
                return Ok(chunk);
            }
            self.buffer.reserve(READ_BYTES);
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => return Err("the peer closed the stream".to_owned()),
                Ok(_) => {}
                Err(error) => return Err(format!("cannot read the stream: {error}")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::ClientAuth;
    use crate::transport::testing::Cluster;

    fn chunk(channel: u8, length: u32, bytes: &[u8]) -> BytesMut {
        let mut buffer = BytesMut::new();
        buffer.put_u8(channel);
        buffer.put_u32(length);
        buffer.extend_from_slice(bytes);
        buffer
    }

    #[test]
    fn a_chunk_comes_out_when_it_is_there_whole_and_never_when_it_cannot_be_one() {
        let whole = chunk(3, 4, b"acks+");
        for length in 0..9 {
            let mut part = BytesMut::from(&whole[..length]);
            assert_eq!(TcpChannel::take(&mut part), Ok(None), "{length}");
            assert_eq!(part.len(), length);
        }
        let mut buffer = whole;
        let acks = Bytes::from_static(b"acks");
        assert_eq!(
            TcpChannel::take(&mut buffer),
            Ok(Some((TcpChannel::Acks, acks)))
        );
        assert_eq!(&buffer[..], b"+");
        for (channel, length, told) in [(6, 0, "unknown channel 6"), (0, u32::MAX, "at most")] {
            let error = TcpChannel::take(&mut chunk(channel, length, b"")).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }

    #[tokio::test]
    async fn both_ends_know_each_other_and_everything_arrives_in_order() {
        let cluster = Cluster::new();
        let leader = cluster.node_identity(1);
        let tls = TcpTls::new(&leader, ClientAuth::Required).unwrap();
        let listener = crate::transport::bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        let host_port = format!("localhost:{port}");
        let peer = PeerAddress::node(NodeId::new(1).unwrap(), host_port.clone());
        let follower = cluster.node_identity(2);
        let within = Duration::from_secs(60);
        let accept = async {
            let (stream, remote) = listener.accept().await.unwrap();
            TcpLink::accept(&tls, stream, remote, "reno").await
        };
        let dial = TcpLink::dial(&follower, &peer, "reno", within);
        let (accepted, dialled) = tokio::join!(accept, dial);
        let (accepted, node) = accepted.unwrap();
        assert_eq!(node, NodeId::new(2).unwrap());
        let (mut reader, _out) = accepted.split();
        let (_in, writer) = dialled.unwrap().split();
        let send = async {
            for turn in 0..500_u32 {
                let bytes = Bytes::from(vec![turn as u8; turn as usize * 50]);
                assert!(writer.send(TcpChannel::LiveLane, bytes).await);
            }
            drop(writer);
        };
        let receive = async {
            for turn in 0..500_u32 {
                let (channel, bytes) = reader.next().await.unwrap();
                assert_eq!(channel, TcpChannel::LiveLane);
                assert_eq!(bytes, vec![turn as u8; turn as usize * 50]);
            }
            reader.next().await.unwrap_err()
        };
        let (error, ()) = tokio::join!(receive, send);
        assert!(error.contains("closed"), "{error}");

        // Another node's certificate than the one that was dialled is refused.
        let other = PeerAddress::node(NodeId::new(3).unwrap(), host_port);
        let accept = async {
            let (stream, remote) = listener.accept().await.unwrap();
            TcpLink::accept(&tls, stream, remote, "reno").await
        };
        let (_, dialled) = tokio::join!(accept, TcpLink::dial(&follower, &other, "reno", within));
        assert!(dialled.is_err());
    }

    #[test]
    fn a_congestion_control_that_is_not_there_is_named() {
        let error = probe_tcp_congestion("pigeon").unwrap_err();
        assert!(error.contains("\"pigeon\""), "{error}");
    }
}
