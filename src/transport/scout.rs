//! What is at a UDP address, found out before anything is trusted: by datagrams that every QUIC endpoint answers, by what the
//! kernel knows of the path, and by how TCP is answered there. Needs no privileges.
//!
//! Nothing found here proves who answers. It only tells a closed port, another service, packets that are too large and
//! silence apart, which to a connection that is not made are all the same.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

use super::server::HANDSHAKE_TIMEOUT;
use super::socket::{UDP_BUFFER_BYTES, bind_udp_for, granted_buffers};

/// What QUIC needs of a path: datagrams of so many bytes, UDP's and IP's headers not counted.
pub const QUIC_DATAGRAM_BYTES: usize = 1200;
/// IP's and UDP's headers, for both versions of IP.
const HEADERS_V4: u32 = 28;
const HEADERS_V6: u32 = 48;
/// When the question is asked again: a lost datagram is not silence.
const ASK_AT: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(150),
    Duration::from_millis(450),
    Duration::from_millis(1000),
];
/// The first of the ports that nobody listens on and traceroute has always used.
const UNUSED_PORT: u16 = 33_434;
/// How long a host has to refuse a datagram to a closed port.
const REFUSAL_PATIENCE: Duration = Duration::from_millis(400);
/// A version of the form that RFC 9000 keeps for asking which versions there are.
const NO_VERSION: u32 = 0x1a2a_3a4a;
const CONNECTION_ID_BYTES: usize = 8;
/// Versions of one answer that are kept.
const MAX_VERSIONS: usize = 32;

/// The version of QUIC that this program speaks.
pub const QUIC_VERSION: u32 = 1;

/// How a UDP port answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UdpAnswer {
    /// A QUIC endpoint is there, and speaks these versions.
    Quic {
        versions: Vec<u32>,
        waited: Duration,
    },
    /// Something answered that is no QUIC.
    Other { bytes: usize },
    /// The host, or a router on the way, says that the port is closed (ICMP).
    Closed,
    /// A datagram that QUIC needs does not fit the path, as far as the kernel knows it. The MTU in bytes.
    TooLarge { mtu: Option<u32> },
    /// This machine cannot or may not send there.
    Unsendable { cause: String },
    /// Nothing came back.
    Silent { waited: Duration },
}

/// How a TCP port answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpAnswer {
    /// Something listens.
    Open,
    /// The host is up, and refuses.
    Refused,
    Silent,
}

/// Which datagrams to a closed port a host refused, and so has received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passage {
    pub small: bool,
    /// As large as QUIC needs them.
    pub large: bool,
}

/// The UDP buffers that the kernel grants a socket of this program, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpBuffers {
    pub asked: usize,
    pub receive: usize,
    pub send: usize,
}

/// Binds a socket that could reach `peer`, and looks at what it was granted.
pub fn probe_udp_socket(peer: SocketAddr) -> Result<UdpBuffers, super::BindError> {
    let socket = bind_udp_for(peer)?;
    let granted = granted_buffers(&socket);
    Ok(UdpBuffers {
        asked: UDP_BUFFER_BYTES,
        receive: granted.receive,
        send: granted.send,
    })
}

/// Asks a UDP port which versions of QUIC it speaks: every QUIC server answers that, whatever else it makes of the asker.
/// The question is as large as QUIC's first packets are, so a path that it passes is large enough.
pub async fn ask_udp(remote: SocketAddr, within: Duration) -> UdpAnswer {
    let within = within.min(HANDSHAKE_TIMEOUT);
    let start = Instant::now();
    let socket = match connected(remote).await {
        Ok(socket) => socket,
        Err(error) => return unsendable(&error, None),
    };
    let question = Question::new();
    let mut buffer = vec![0; 65_536];
    for (turn, at) in ASK_AT.iter().enumerate() {
        if *at >= within {
            break;
        }
        let until = match ASK_AT.get(turn + 1) {
            Some(next) => start + (*next).min(within),
            None => start + within,
        };
        match socket.send(&question.datagram).await {
            Ok(_) => {}
            // What an earlier one of these datagrams met with.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return UdpAnswer::Closed;
            }
            Err(error) => return unsendable(&error, path_mtu(&socket, remote)),
        }
        match timeout_at(until, socket.recv(&mut buffer)).await {
            Ok(Ok(length)) => {
                return match question.versions_in(&buffer[..length]) {
                    Some(versions) => UdpAnswer::Quic {
                        versions,
                        waited: start.elapsed(),
                    },
                    None => UdpAnswer::Other { bytes: length },
                };
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return UdpAnswer::Closed;
            }
            Ok(Err(error)) => return unsendable(&error, path_mtu(&socket, remote)),
            Err(_) => {}
        }
    }
    // A router may have said meanwhile that the datagrams are too large.
    match path_mtu(&socket, remote) {
        Some(mtu) if !fits(mtu, remote) => UdpAnswer::TooLarge { mtu: Some(mtu) },
        _ => UdpAnswer::Silent {
            waited: start.elapsed(),
        },
    }
}

/// Whether QUIC's datagrams fit a path of this MTU.
fn fits(mtu: u32, remote: SocketAddr) -> bool {
    mtu >= needed_mtu(remote)
}

/// The smallest MTU of a path to `remote` by which QUIC works, in bytes.
pub(super) fn needed_mtu(remote: SocketAddr) -> u32 {
    let headers = if remote.is_ipv4() {
        HEADERS_V4
    } else {
        HEADERS_V6
    };
    QUIC_DATAGRAM_BYTES as u32 + headers
}

fn unsendable(error: &io::Error, mtu: Option<u32>) -> UdpAnswer {
    match error
        .raw_os_error()
        .map(rustix::io::Errno::from_raw_os_error)
    {
        Some(rustix::io::Errno::MSGSIZE) => UdpAnswer::TooLarge { mtu },
        _ => UdpAnswer::Unsendable {
            cause: error.to_string(),
        },
    }
}

/// What the kernel knows of the largest packet to `remote`, in bytes, IP's header included: the interface's MTU, or less
/// where a router has said so. `None` where it does not say.
pub async fn known_path_mtu(remote: SocketAddr) -> Option<u32> {
    path_mtu(&connected(remote).await.ok()?, remote)
}

fn path_mtu(socket: &UdpSocket, remote: SocketAddr) -> Option<u32> {
    let mtu = if remote.is_ipv4() {
        sockopt::ip_mtu(socket)
    } else {
        sockopt::ipv6_mtu(socket)
    };
    mtu.ok()
}

/// A socket that hears of ICMP errors, and whose datagrams are never cut into fragments, as QUIC's are not.
async fn connected(remote: SocketAddr) -> io::Result<UdpSocket> {
    let socket = bind_udp_for(remote).map_err(io::Error::other)?;
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from_std(socket)?;
    if remote.is_ipv4() {
        sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO)?;
    } else {
        sockopt::set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DO)?;
    }
    socket.connect(remote).await?;
    Ok(socket)
}

/// How TCP is answered at the same address: a host that refuses a connection is up, though its UDP port is silent.
pub async fn ask_tcp(remote: SocketAddr, within: Duration) -> TcpAnswer {
    match timeout(within, TcpStream::connect(remote)).await {
        Ok(Ok(_)) => TcpAnswer::Open,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => TcpAnswer::Refused,
        _ => TcpAnswer::Silent,
    }
}

/// Sends a small and a large datagram to a closed port of the host. Where it refuses the small one and not the large one,
/// large ones are lost on the way. Where it refuses neither, nothing was learnt: many hosts never refuse.
pub async fn ask_passage(host: IpAddr) -> Passage {
    let turn = rand::random_range(0..64);
    Passage {
        small: is_refused(SocketAddr::new(host, UNUSED_PORT + turn), 1).await,
        large: is_refused(
            SocketAddr::new(host, UNUSED_PORT + 64 + turn),
            QUIC_DATAGRAM_BYTES,
        )
        .await,
    }
}

/// Asked twice: one datagram, or its answer, may be lost.
async fn is_refused(remote: SocketAddr, bytes: usize) -> bool {
    let Ok(socket) = connected(remote).await else {
        return false;
    };
    for _ in 0..2 {
        if let Err(error) = socket.send(&vec![0; bytes]).await {
            return error.kind() == io::ErrorKind::ConnectionRefused;
        }
        match timeout(REFUSAL_PATIENCE, socket.recv(&mut [0; 16])).await {
            Ok(Err(error)) => return error.kind() == io::ErrorKind::ConnectionRefused,
            // Somebody listens on that port after all.
            Ok(Ok(_)) => return true,
            Err(_) => {}
        }
    }
    false
}

/// A first packet of a version that nobody speaks.
struct Question {
    datagram: Vec<u8>,
    destination: [u8; CONNECTION_ID_BYTES],
    source: [u8; CONNECTION_ID_BYTES],
}

impl Question {
    fn new() -> Question {
        let (destination, source): ([u8; CONNECTION_ID_BYTES], [u8; CONNECTION_ID_BYTES]) =
            rand::random();
        // Long header, fixed bit; version; both connection ids with their lengths. The rest is never looked at.
        let mut datagram = vec![0xc0];
        datagram.extend(NO_VERSION.to_be_bytes());
        for id in [&destination, &source] {
            datagram.push(CONNECTION_ID_BYTES as u8);
            datagram.extend(id);
        }
        datagram.resize(QUIC_DATAGRAM_BYTES, 0);
        Question {
            datagram,
            destination,
            source,
        }
    }

    /// The versions in a Version Negotiation packet (RFC 9000, 17.2.1) that answers this question, without those that only
    /// stand there to be ignored; `None` for any other bytes.
    fn versions_in(&self, answer: &[u8]) -> Option<Vec<u32>> {
        let (first, rest) = answer.split_first()?;
        let rest = rest.strip_prefix(&[0; 4])?;
        let rest = rest.strip_prefix(&[CONNECTION_ID_BYTES as u8])?;
        let rest = rest.strip_prefix(&self.source)?;
        let rest = rest.strip_prefix(&[CONNECTION_ID_BYTES as u8])?;
        let rest = rest.strip_prefix(&self.destination)?;
        if first & 0x80 == 0 || rest.is_empty() || !rest.len().is_multiple_of(4) {
            return None;
        }
        let versions = rest
            .chunks_exact(4)
            .map(|chunk| chunk.iter().fold(0, |v, byte| v << 8 | u32::from(*byte)));
        Some(
            versions
                .filter(|version| version & 0x0f0f_0f0f != 0x0a0a_0a0a)
                .take(MAX_VERSIONS)
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    fn socket() -> std::net::UdpSocket {
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap()
    }

    #[test]
    fn only_an_answer_to_this_very_question_counts() {
        let question = Question::new();
        let mut answer = vec![0x80, 0, 0, 0, 0, 8];
        answer.extend(question.source);
        answer.push(8);
        answer.extend(question.destination);
        assert_eq!(question.versions_in(&answer), None, "no version at all");
        answer.extend([0x0a, 0x1a, 0x2a, 0x3a]);
        assert_eq!(question.versions_in(&answer), Some(vec![]));
        answer.extend([0, 0, 0, 1]);
        answer.extend([0x6b, 0x33, 0x43, 0xcf]);
        assert_eq!(question.versions_in(&answer), Some(vec![1, 0x6b33_43cf]));
        for cut in 0..answer.len() {
            if cut < 27 || !(cut - 23).is_multiple_of(4) {
                assert_eq!(question.versions_in(&answer[..cut]), None, "{cut} bytes");
            }
        }
        assert_eq!(Question::new().versions_in(&answer), None);
        answer[0] = 0x40;
        assert_eq!(question.versions_in(&answer), None);
    }

    #[tokio::test]
    async fn a_closed_port_is_told_from_rubbish_and_from_silence() {
        let closed = socket().local_addr().unwrap();
        assert_eq!(ask_udp(closed, LONG).await, UdpAnswer::Closed);
        assert_eq!(ask_tcp(closed, LONG).await, TcpAnswer::Refused);

        let silent = socket();
        let answer = ask_udp(silent.local_addr().unwrap(), Duration::from_millis(200)).await;
        assert!(matches!(answer, UdpAnswer::Silent { .. }), "{answer:?}");

        let echo = socket();
        let address = echo.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 2000];
            while let Ok((length, from)) = echo.recv_from(&mut buffer) {
                let _ = echo.send_to(&buffer[..length / 2], from);
            }
        });
        let answer = ask_udp(address, LONG).await;
        assert_eq!(answer, UdpAnswer::Other { bytes: 600 });
    }

    #[tokio::test]
    async fn loopback_lets_everything_through_and_refuses_it() {
        let passage = ask_passage("127.0.0.1".parse().unwrap()).await;
        let both = Passage {
            small: true,
            large: true,
        };
        assert_eq!(passage, both);
        let mtu = known_path_mtu("127.0.0.1:9".parse().unwrap()).await;
        assert!(mtu.is_some_and(|mtu| mtu > 1500), "{mtu:?}");
        let remote = "127.0.0.1:9".parse().unwrap();
        assert!(fits(1228, remote) && !fits(1227, remote));
        let remote = "[::1]:9".parse().unwrap();
        assert!(fits(1248, remote) && !fits(1247, remote));
    }
}
