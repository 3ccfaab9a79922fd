//! One QUIC connection of quinn's own, sans I/O: its pacer, its loss detection and its probe timers are what the product
//! runs with.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use quinn_proto::congestion::ControllerFactory;
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    AckFrequencyConfig, ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir,
    EcnCodepoint, Endpoint, EndpointConfig, Event, IdleTimeout, ServerConfig, StreamId,
    TransportConfig, VarInt,
};

/// The most that one end of a connection buffers, in bytes: above the largest window that any test needs.
const WINDOW: u32 = 96 << 20;
/// Lanes that bulk is spread over, as the product does.
const LANES: usize = 4;
const CHUNK: usize = 32 * 1024;
/// Bytes of a record.
const RECORD: u64 = 1024;
/// quinn's runtime rounds timers up to this.
const TIMER_STEP_NS: u128 = 1_000_000;

/// What a flow sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// As much as goes.
    Bulk,
    /// A datagram of 100 bytes every 100 ms.
    Heartbeats,
    /// Records of 1 KiB, of which so many may be written that the other end has not read.
    Records { in_flight: u64 },
}

/// How a flow is set up.
#[derive(Clone, Copy, Debug)]
pub struct FlowOptions {
    pub load: Load,
    /// quinn's reordering threshold, in packets.
    pub packet_threshold: u32,
    /// Bytes that the sending application may have written and that are not acknowledged.
    pub send_window: u64,
}

/// A factory of controllers that may be shared.
pub type Factory = Arc<dyn ControllerFactory + Send + Sync>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Sender,
    Receiver,
}

/// A datagram that an end wants to send.
pub struct Outgoing {
    pub ecn: Option<EcnCodepoint>,
    pub bytes: BytesMut,
}

/// One end: an endpoint with one connection.
struct End {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    /// Datagrams of the endpoint itself.
    loose: Vec<Outgoing>,
}

pub struct Flow {
    sender: End,
    receiver: End,
    addresses: [SocketAddr; 2],
    lanes: Vec<StreamId>,
    arriving: Vec<StreamId>,
    connected: bool,
    pub load: Load,
    next_heartbeat: Instant,
    chunk: Bytes,
    /// Stream bytes that the receiving application has read.
    pub received: u64,
    /// Stream bytes that the sending application has written, where records are counted.
    written: u64,
}

/// A CA-less pair of TLS configurations: the sender trusts exactly the receiver's certificate. Ed25519, because its
/// signatures are all of one length, so a run does not depend on the key.
pub struct Tls {
    client: Arc<QuicClientConfig>,
    server: Arc<QuicServerConfig>,
}

impl Tls {
    pub fn new() -> Tls {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["link.test".to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let key = rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
        let server = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.into())
            .unwrap();
        Tls {
            client: Arc::new(QuicClientConfig::try_from(client).unwrap()),
            server: Arc::new(QuicServerConfig::try_from(server).unwrap()),
        }
    }
}

/// The product's settings for replication, but for windows that no test fills.
fn transport(controller: Factory, options: FlowOptions) -> TransportConfig {
    struct Shared(Factory);
    impl ControllerFactory for Shared {
        fn build(
            self: Arc<Self>,
            now: Instant,
            mtu: u16,
        ) -> Box<dyn quinn_proto::congestion::Controller> {
            Arc::clone(&self.0).build(now, mtu)
        }
    }
    let mut acks = AckFrequencyConfig::default();
    acks.max_ack_delay(Some(Duration::from_millis(2)));
    let mut config = TransportConfig::default();
    config
        .initial_rtt(Duration::from_millis(30))
        .ack_frequency_config(Some(acks))
        .persistent_congestion_threshold(10_000)
        .packet_threshold(options.packet_threshold)
        .max_idle_timeout(IdleTimeout::try_from(Duration::from_secs(300)).ok())
        .keep_alive_interval(Some(Duration::from_millis(100)))
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .receive_window(VarInt::from_u32(WINDOW))
        .send_window(options.send_window)
        .congestion_controller_factory(Arc::new(Shared(controller)));
    config
}

/// Both ends' configurations.
pub fn configs(
    tls: &Tls,
    controller: Factory,
    options: FlowOptions,
) -> (ClientConfig, ServerConfig) {
    let config = Arc::new(transport(controller, options));
    let mut server = ServerConfig::with_crypto(Arc::clone(&tls.server) as Arc<_>);
    server.transport_config(Arc::clone(&config));
    let mut client = ClientConfig::new(Arc::clone(&tls.client) as Arc<_>);
    client.transport_config(config);
    (client, server)
}

impl Flow {
    pub fn new(
        now: Instant,
        number: u8,
        seed: u64,
        tls: &Tls,
        controller: Factory,
        options: FlowOptions,
    ) -> Flow {
        let addresses = [
            SocketAddr::from((Ipv4Addr::new(10, 0, 0, number), 1000)),
            SocketAddr::from((Ipv4Addr::new(10, 0, 1, number), 2000)),
        ];
        let rng_seed = |side: u8| {
            let mut bytes = [side; 32];
            bytes[..8].copy_from_slice(&seed.to_le_bytes());
            bytes[8] = number;
            Some(bytes)
        };
        let (client, server) = configs(tls, controller, options);
        let receiver = Endpoint::new(
            Arc::new(EndpointConfig::default()),
            Some(Arc::new(server)),
            true,
            rng_seed(1),
        );
        let mut sender =
            Endpoint::new(Arc::new(EndpointConfig::default()), None, true, rng_seed(2));
        let connection = sender
            .connect(now, client, addresses[1], "link.test")
            .unwrap();
        Flow {
            sender: End {
                endpoint: sender,
                connection: Some(connection),
                loose: Vec::new(),
            },
            receiver: End {
                endpoint: receiver,
                connection: None,
                loose: Vec::new(),
            },
            addresses,
            lanes: Vec::new(),
            arriving: Vec::new(),
            connected: false,
            load: options.load,
            next_heartbeat: now,
            chunk: Bytes::from(vec![0; CHUNK]),
            received: 0,
            written: 0,
        }
    }

    /// The sender's connection.
    pub fn sender(&self) -> &Connection {
        &self.sender.connection.as_ref().unwrap().1
    }

    fn end(&mut self, side: Side) -> &mut End {
        match side {
            Side::Sender => &mut self.sender,
            Side::Receiver => &mut self.receiver,
        }
    }

    /// Hands a datagram to an end.
    pub fn deliver(
        &mut self,
        now: Instant,
        side: Side,
        ecn: Option<EcnCodepoint>,
        bytes: BytesMut,
    ) {
        let remote = match side {
            Side::Sender => self.addresses[1],
            Side::Receiver => self.addresses[0],
        };
        let end = self.end(side);
        let mut response = Vec::new();
        match end
            .endpoint
            .handle(now, remote, None, ecn, bytes, &mut response)
        {
            Some(DatagramEvent::NewConnection(incoming)) => {
                let accepted = end
                    .endpoint
                    .accept(incoming, now, &mut response, None)
                    .unwrap();
                end.connection = Some(accepted);
            }
            Some(DatagramEvent::ConnectionEvent(_, event)) => {
                if let Some((_, connection)) = &mut end.connection {
                    connection.handle_event(event);
                }
            }
            Some(DatagramEvent::Response(transmit)) => end.loose.push(Outgoing {
                ecn: transmit.ecn,
                bytes: BytesMut::from(&response[..transmit.size]),
            }),
            None => {}
        }
    }

    /// Runs an end at `now`: timers, application, and what it wants to send.
    pub fn run(&mut self, now: Instant, side: Side, out: &mut Vec<Outgoing>) {
        let end = self.end(side);
        out.append(&mut end.loose);
        if let Some((_, connection)) = &mut end.connection
            && connection.poll_timeout().is_some_and(|at| at <= now)
        {
            connection.handle_timeout(now);
        }
        self.endpoint_events(side);
        match side {
            Side::Sender => self.write(now),
            Side::Receiver => self.read(),
        }
        let end = self.end(side);
        if let Some((_, connection)) = &mut end.connection {
            let mut buffer = Vec::with_capacity(16 * 1500);
            while let Some(transmit) = connection.poll_transmit(now, 10, &mut buffer) {
                let segment = transmit.segment_size.unwrap_or(transmit.size);
                for datagram in buffer[..transmit.size].chunks(segment) {
                    out.push(Outgoing {
                        ecn: transmit.ecn,
                        bytes: BytesMut::from(datagram),
                    });
                }
                buffer.clear();
            }
        }
        self.endpoint_events(side);
    }

    fn endpoint_events(&mut self, side: Side) {
        let end = self.end(side);
        if let Some((handle, connection)) = &mut end.connection {
            while let Some(event) = connection.poll_endpoint_events() {
                if let Some(answer) = end.endpoint.handle_event(*handle, event) {
                    connection.handle_event(answer);
                }
            }
        }
    }

    fn write(&mut self, now: Instant) {
        let Some((_, connection)) = &mut self.sender.connection else {
            return;
        };
        while let Some(event) = connection.poll() {
            match event {
                Event::Connected => self.connected = true,
                Event::ConnectionLost { reason } => panic!("the connection is lost: {reason}"),
                _ => {}
            }
        }
        if !self.connected {
            return;
        }
        if self.load == Load::Heartbeats {
            while self.next_heartbeat <= now {
                self.next_heartbeat += Duration::from_millis(100);
                let _ = connection.datagrams().send(self.chunk.slice(..100), true);
            }
            return;
        }
        while self.lanes.len() < LANES {
            let Some(lane) = connection.streams().open(Dir::Uni) else {
                break;
            };
            self.lanes.push(lane);
        }
        if let Load::Records { in_flight } = self.load {
            let Some(lane) = self.lanes.first() else {
                return;
            };
            while self.written + RECORD <= self.received + in_flight * RECORD {
                let record = self.chunk.slice(..RECORD as usize);
                // The windows are far above what may be in flight, so a record is never taken in part.
                match connection.send_stream(*lane).write_chunks(&mut [record]) {
                    Ok(written) => self.written += written.bytes as u64,
                    Err(_) => break,
                }
            }
            return;
        }
        loop {
            let mut wrote = 0;
            for lane in &self.lanes {
                let mut chunks = [self.chunk.clone()];
                if let Ok(written) = connection.send_stream(*lane).write_chunks(&mut chunks) {
                    wrote += written.bytes;
                }
            }
            // A window's worth waits in the connection; more would only cost memory.
            if wrote == 0 {
                break;
            }
        }
    }

    fn read(&mut self) {
        let Some((_, connection)) = &mut self.receiver.connection else {
            return;
        };
        while let Some(event) = connection.poll() {
            if let Event::ConnectionLost { reason } = event {
                panic!("the connection is lost: {reason}");
            }
        }
        while connection.datagrams().recv().is_some() {}
        while let Some(lane) = connection.streams().accept(Dir::Uni) {
            self.arriving.push(lane);
        }
        for lane in &self.arriving {
            let mut stream = connection.recv_stream(*lane);
            let Ok(mut chunks) = stream.read(true) else {
                continue;
            };
            while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
                self.received += chunk.bytes.len() as u64;
            }
            let _ = chunks.finalize();
        }
    }

    /// When an end next wants to run, rounded up as quinn's runtime does.
    pub fn wakes(&mut self, start: Instant, side: Side) -> Option<Instant> {
        let beats = side == Side::Sender && self.connected && self.load == Load::Heartbeats;
        let beat = beats.then_some(self.next_heartbeat);
        let (_, connection) = self.end(side).connection.as_mut()?;
        let timer = connection.poll_timeout().map(|at| {
            let steps = (at - start).as_nanos().div_ceil(TIMER_STEP_NS);
            start + Duration::from_nanos((steps * TIMER_STEP_NS) as u64)
        });
        match (timer, beat) {
            (Some(timer), Some(beat)) => Some(timer.min(beat)),
            (timer, beat) => timer.or(beat),
        }
    }
}
