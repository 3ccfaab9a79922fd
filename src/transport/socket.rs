//! UDP and TCP sockets, and the errors of binding them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

/// Asked of the kernel for each direction of a UDP socket, in bytes; it grants what its limits allow.
pub const UDP_BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// TCP connections that may wait to be accepted; the kernel caps it further.
const TCP_BACKLOG: i32 = 1024;

/// Why a socket could not be bound.
#[derive(Debug, Error)]
pub enum BindError {
    #[error(
        "{protocol} port {address} is in use: stop the process that holds it, or choose another port"
    )]
    InUse {
        protocol: &'static str,
        address: SocketAddr,
    },
    #[error("this machine has no address {}: choose one of its own, or 0.0.0.0 for all", address.ip())]
    NoSuchAddress { address: SocketAddr },
    #[error("this user may not bind {protocol} port {address}: choose a port above 1023")]
    Denied {
        protocol: &'static str,
        address: SocketAddr,
    },
    #[error("cannot bind {protocol} port {address}")]
    Other {
        protocol: &'static str,
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("this node's certificates cannot be used")]
    Config(#[from] super::tls::TlsConfigError),
}

impl BindError {
    fn new(protocol: &'static str, address: SocketAddr) -> impl Fn(io::Error) -> BindError {
        move |source| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { protocol, address },
            io::ErrorKind::AddrNotAvailable => BindError::NoSuchAddress { address },
            io::ErrorKind::PermissionDenied => BindError::Denied { protocol, address },
            _ => BindError::Other {
                protocol,
                address,
                source,
            },
        }
    }
}

/// A UDP socket for QUIC. A wildcard IPv6 address takes IPv4 as well.
pub(super) fn bind_udp(address: SocketAddr) -> Result<UdpSocket, BindError> {
    let fail = BindError::new("UDP", address);
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )
    .map_err(&fail)?;
    if address.is_ipv6() {
        socket.set_only_v6(false).map_err(&fail)?;
    }
    // A smaller buffer than asked for is no error: it is logged, and loses packets only under bursts.
    let _ = socket.set_recv_buffer_size(UDP_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(UDP_BUFFER_BYTES);
    socket.bind(&address.into()).map_err(&fail)?;
    tracing::debug!(
        %address,
        asked = UDP_BUFFER_BYTES,
        // Linux reports twice what may be used.
        granted_receive = socket.recv_buffer_size().unwrap_or(0) / 2,
        granted_send = socket.send_buffer_size().unwrap_or(0) / 2,
        "UDP socket buffers, in bytes"
    );
    Ok(socket.into())
}

/// A UDP socket on any port, of the family that reaches `peer`.
pub(super) fn bind_udp_for(peer: SocketAddr) -> Result<UdpSocket, BindError> {
    let any: IpAddr = if peer.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    bind_udp(SocketAddr::new(any, 0))
}

/// A TCP listener. Must be called within a tokio runtime.
pub fn bind_tcp(address: SocketAddr) -> Result<tokio::net::TcpListener, BindError> {
    let fail = BindError::new("TCP", address);
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )
    .map_err(&fail)?;
    if address.is_ipv6() {
        socket.set_only_v6(false).map_err(&fail)?;
    }
    // Else connections of a process that has just ended would keep its port for a minute.
    socket.set_reuse_address(true).map_err(&fail)?;
    socket.set_nonblocking(true).map_err(&fail)?;
    socket.bind(&address.into()).map_err(&fail)?;
    socket.listen(TCP_BACKLOG).map_err(&fail)?;
    tokio::net::TcpListener::from_std(socket.into()).map_err(&fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_its_own_error() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let udp = bind_udp(any).unwrap();
        let error = bind_udp(udp.local_addr().unwrap()).unwrap_err();
        assert!(
            matches!(
                error,
                BindError::InUse {
                    protocol: "UDP",
                    ..
                }
            ),
            "{error}"
        );
        let tcp = bind_tcp(any).unwrap();
        let error = bind_tcp(tcp.local_addr().unwrap()).unwrap_err();
        assert!(
            matches!(
                error,
                BindError::InUse {
                    protocol: "TCP",
                    ..
                }
            ),
            "{error}"
        );
        let error = bind_udp("192.0.2.1:0".parse().unwrap()).unwrap_err();
        assert!(matches!(error, BindError::NoSuchAddress { .. }), "{error}");
    }
}
