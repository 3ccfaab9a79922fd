//! Real connections over loopback: who gets in, who does not, and what each side is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use quinn::ConnectionError;
use rustls::client::{Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls_pki_types::ServerName;
use time::OffsetDateTime;
use tokio::time::timeout;

use super::testing::{Cluster, Gate, LONG, node, pair, start, start_with_limits};
use super::{
    Accepted, Alpn, BindError, CertsDir, CloseReason, ConnectFailure, Dialled, EndpointKeys,
    Identity, IdentityError, IssueOptions, PathSigns, PeerAddress, PeerIdentity, Server,
    ServerLimits, ServerOptions, dial, dial_unconfirmed, tls,
};

const YEAR: Duration = Duration::from_secs(365 * 86_400);

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn at(server: &Server) -> PeerAddress {
    PeerAddress::any(server.local_addr().unwrap().to_string())
}

async fn failure(identity: Identity, peer: &PeerAddress, alpn: Alpn) -> ConnectFailure {
    match dial(&Arc::new(identity), peer, alpn, LONG).await {
        Ok(_) => panic!("the connection was made"),
        Err(failure) => {
            let text = failure.to_string();
            assert!(text.contains(&peer.host_port), "no address in {text:?}");
            failure
        }
    }
}

/// Dials as an attacker or a broken client would: without any check of its own.
async fn dial_without_checks(
    identity: &Identity,
    peer: &PeerAddress,
    alpn: &str,
    shows_certificate: bool,
) -> ConnectionError {
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(tls::provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(Arc::clone(identity.roots()));
    let mut crypto = if shows_certificate {
        let key = Arc::clone(identity.certified_key());
        builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)))
    } else {
        builder.with_no_client_auth()
    };
    crypto.alpn_protocols = vec![alpn.into()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(crypto).unwrap();
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let (host, _) = peer.host_and_port().unwrap();
    let remote = peer.host_port.parse().unwrap();
    match endpoint.connect_with(config, remote, host).unwrap().await {
        Ok(connection) => timeout(LONG, connection.closed()).await.unwrap(),
        Err(error) => error,
    }
}

/// What a dialler with this identity would have said of that end.
fn explained(identity: Identity, alpn: Alpn, error: &ConnectionError) -> ConnectFailure {
    super::explain::DialContext {
        address: "db1:7001".into(),
        host: "db1".into(),
        expected: None,
        alpn,
        identity: Arc::new(identity),
        refusal: tls::Refusal::default(),
    }
    .explain(error)
}

#[tokio::test]
async fn both_ends_know_each_other() {
    let cluster = Cluster::new();
    let (server, mut accepted) = cluster.server(1);
    for (identity, alpn) in [
        (cluster.node_identity(2), Alpn::Replication),
        (cluster.node_identity(2), Alpn::Controller),
        (cluster.node_identity(2), Alpn::Client),
        (cluster.client_identity("ops"), Alpn::Client),
        (cluster.client_identity("ops"), Alpn::Admin),
    ] {
        let own = identity.peer().clone();
        let peer = cluster.address_of(&server, 1);
        let dialled = dial(&Arc::new(identity), &peer, alpn, LONG).await.unwrap();
        assert_eq!(dialled.peer, PeerIdentity::Node(node(1)));
        let accepted = accepted.recv().await.unwrap();
        assert_eq!((accepted.peer, accepted.alpn), (own, alpn));
        dialled.close(CloseReason::Done, "bye", LONG).await;
        let ConnectionError::ApplicationClosed(close) = accepted.connection.closed().await else {
            panic!("closed without a reason");
        };
        assert_eq!(close.error_code, CloseReason::Done.var_int());
        assert_eq!(&close.reason[..], b"bye");
    }
}

#[tokio::test]
async fn a_host_name_is_tried_at_each_of_its_addresses() {
    let cluster = Cluster::new();
    let (server, _accepted) = cluster.server(1);
    let port = server.local_addr().unwrap().port();
    let identity = Arc::new(cluster.client_identity("x"));
    // Where localhost is ::1 as well, nobody listens there.
    let peer = PeerAddress::any(format!("localhost:{port}"));
    dial(&identity, &peer, Alpn::Client, LONG).await.unwrap();
}

#[tokio::test]
async fn a_foreign_ca_is_named_on_both_ends() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let (server, _accepted) = ours.server(1);
    // The client trusts another CA than the one that signed the server's certificate.
    let error = failure(theirs.client_identity("x"), &at(&server), Alpn::Client).await;
    assert!(
        matches!(error, ConnectFailure::ServerUnknownCa { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("wrong CA"));
    // The client's own certificate is of another CA than its ca.crt: seen before dialling.
    let mixed = theirs.client_identity("y");
    let dir = theirs.path("client-y");
    std::fs::copy(ours.path("ca").join("ca.crt"), dir.join("ca.crt")).unwrap();
    let mixed_identity = Identity::load_client(&dir, None).unwrap();
    let error = failure(mixed_identity, &at(&server), Alpn::Client).await;
    let ConnectFailure::OwnIdentity {
        problem: source, ..
    } = &error
    else {
        panic!("{error}");
    };
    assert!(
        matches!(source, IdentityError::NotSignedByCa { .. }),
        "{source}"
    );
    // And what the server says to one who does not look.
    let mixed_identity = Identity::load_client(&dir, None).unwrap();
    let alpn = Alpn::Client;
    let error = dial_without_checks(&mixed_identity, &at(&server), alpn.name(), true).await;
    let error = explained(mixed, alpn, &error);
    assert!(
        matches!(error, ConnectFailure::RejectedUnknownCa { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_refusal_after_the_clients_handshake_still_fails_the_dial() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    // The server shows our CA's certificate and trusts only theirs: nothing that this end could see beforehand.
    ours.node_identity(1);
    let dir = ours.path("node1");
    std::fs::copy(theirs.path("ca").join("ca.crt"), dir.join("ca.crt")).unwrap();
    let (server, _accepted) = start(Identity::load_node(&dir).unwrap());
    let error = failure(ours.client_identity("x"), &at(&server), Alpn::Client).await;
    assert!(
        matches!(error, ConnectFailure::RejectedUnknownCa { .. }),
        "{error}"
    );
    let identity = Arc::new(ours.client_identity("x"));
    let error = match dial_unconfirmed(&identity, &at(&server), Alpn::Client, LONG).await {
        Ok(dialled) => {
            let end = timeout(LONG, dialled.connection.closed()).await.unwrap();
            dialled.explain(&end)
        }
        Err(error) => error,
    };
    assert!(
        matches!(error, ConnectFailure::RejectedUnknownCa { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn no_client_certificate_is_said_so() {
    let cluster = Cluster::new();
    let (server, mut accepted) = cluster.server(1);
    let identity = cluster.client_identity("x");
    let alpn = Alpn::Client;
    let error = dial_without_checks(&identity, &at(&server), alpn.name(), false).await;
    let error = explained(identity, alpn, &error);
    assert!(
        matches!(error, ConnectFailure::NoClientCertificate { .. }),
        "{error}"
    );
    assert!(accepted.try_recv().is_err(), "nobody got in");
    let dir = cluster.certs("empty");
    let error = Identity::load_client(dir.path(), None).unwrap_err();
    assert!(
        matches!(error, IdentityError::NoClientCertificate { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn expired_and_not_yet_valid_are_told_apart_for_both_ends() {
    let cluster = Cluster::new();
    let (server, mut accepted) = cluster.server(1);
    for (when, expired) in [(now() - YEAR * 6, true), (now() + YEAR, false)] {
        let error = failure(
            cluster.client_identity_at("old", when),
            &at(&server),
            Alpn::Client,
        )
        .await;
        let ConnectFailure::OwnIdentity {
            problem: source, ..
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!(
            matches!(source, IdentityError::Expired { .. }),
            expired,
            "{source}"
        );
        assert_eq!(
            matches!(source, IdentityError::NotYetValid { .. }),
            !expired,
            "{source}"
        );
        // The server refuses it too, whatever the client checks.
        let identity = cluster.client_identity_at("old", when);
        let alpn = Alpn::Client;
        let error = dial_without_checks(&identity, &at(&server), alpn.name(), true).await;
        let error = explained(identity, alpn, &error);
        assert!(
            matches!(error, ConnectFailure::RejectedValidity { .. }),
            "{error}"
        );
        let here = if expired {
            "expired since"
        } else {
            "not valid before"
        };
        assert!(error.to_string().contains(here), "{error}");

        let (server, _accepted) = start(cluster.node_identity_for(3, &["127.0.0.1"], when));
        let error = failure(cluster.client_identity("x"), &at(&server), Alpn::Client).await;
        assert_eq!(
            matches!(error, ConnectFailure::ServerExpired { .. }),
            expired,
            "{error}"
        );
        assert_eq!(
            matches!(error, ConnectFailure::ServerNotYetValid { .. }),
            !expired,
            "{error}"
        );
    }
    assert!(accepted.try_recv().is_err(), "nobody got in");
}

#[tokio::test]
async fn a_host_that_is_not_in_the_certificate_is_named_with_those_that_are() {
    let cluster = Cluster::new();
    let hosts = ["db1.example.com", "10.0.0.1"];
    let (server, _accepted) = start(cluster.node_identity_for(1, &hosts, now()));
    let error = failure(cluster.client_identity("x"), &at(&server), Alpn::Client).await;
    let ConnectFailure::HostNotNamed { host, names, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(host, "127.0.0.1");
    assert_eq!(names, &["10.0.0.1", "db1.example.com"]);
}

#[tokio::test]
async fn another_node_or_no_node_at_the_address_is_refused() {
    let cluster = Cluster::new();
    let (server, _accepted) = cluster.server(1);
    let peer = cluster.address_of(&server, 3);
    let error = failure(cluster.node_identity(2), &peer, Alpn::Controller).await;
    assert!(
        matches!(error, ConnectFailure::WrongNode { expected, found, .. } if expected == node(3) && found == node(1)),
        "{error}"
    );
    // A client's certificate cannot serve, whatever its holder starts with it.
    let (impostor, _accepted) = start(cluster.client_identity("mallory"));
    let error = failure(cluster.node_identity(2), &at(&impostor), Alpn::Controller).await;
    assert!(
        matches!(error, ConnectFailure::ServerNotANode { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("client mallory"), "{error}");
}

#[tokio::test]
async fn clients_do_not_get_at_the_nodes_protocols() {
    let cluster = Cluster::new();
    let (server, mut accepted) = cluster.server(1);
    for alpn in [Alpn::Replication, Alpn::Controller] {
        let error = failure(cluster.client_identity("x"), &at(&server), alpn).await;
        assert!(
            matches!(error, ConnectFailure::OwnWrongRole { .. }),
            "{error}"
        );
        let identity = cluster.client_identity("x");
        let error = dial_without_checks(&identity, &at(&server), alpn.name(), true).await;
        let error = explained(identity, alpn, &error);
        assert!(
            matches!(
                error,
                ConnectFailure::Closed {
                    reason: CloseReason::WrongRole,
                    ..
                }
            ),
            "{error}"
        );
        assert!(
            error.to_string().contains("client x may not use"),
            "{error}"
        );
    }
    assert!(accepted.try_recv().is_err(), "nobody got in");
}

#[tokio::test]
async fn an_unknown_protocol_is_a_clean_error() {
    let cluster = Cluster::new();
    let (server, _accepted) = cluster.server(1);
    let identity = cluster.client_identity("x");
    let error = dial_without_checks(&identity, &at(&server), "quorate-client/9", true).await;
    let error = explained(identity, Alpn::Client, &error);
    assert!(
        matches!(error, ConnectFailure::NoCommonProtocol { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn silence_and_a_closed_port_are_told_apart() {
    let cluster = Cluster::new();
    let identity = Arc::new(cluster.client_identity("x"));
    // Bound, and never read.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let peer = PeerAddress::any(silent.local_addr().unwrap().to_string());
    let wait = Duration::from_millis(200);
    let error = dial(&identity, &peer, Alpn::Client, wait)
        .await
        .unwrap_err();
    assert!(
        matches!(error, ConnectFailure::Unreachable { .. }),
        "{error}"
    );
    drop(silent);
    let error = dial(&identity, &peer, Alpn::Client, LONG)
        .await
        .unwrap_err();
    assert!(
        matches!(error, ConnectFailure::NothingListens { .. }),
        "{error}"
    );
    for bad in ["nonsense", "host:"] {
        let peer = PeerAddress::any(bad);
        let error = dial(&identity, &peer, Alpn::Client, LONG)
            .await
            .unwrap_err();
        assert!(
            matches!(error, ConnectFailure::BadAddress { .. }),
            "{error}"
        );
    }
}

#[tokio::test]
async fn nothing_is_resumed_and_nothing_is_sent_early() {
    let cluster = Cluster::new();
    let (server, mut accepted) = cluster.server(1);
    let identity = cluster.client_identity("x");
    // A client that wants both, as quinn's own defaults do.
    let key = Arc::clone(identity.certified_key());
    let mut crypto = rustls::ClientConfig::builder_with_provider(Arc::clone(tls::provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(Arc::clone(identity.roots()))
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)));
    crypto.alpn_protocols = vec![Alpn::Client.name().into()];
    crypto.enable_early_data = true;
    let tickets = Arc::new(Tickets::default());
    crypto.resumption = rustls::client::Resumption::store(Arc::clone(&tickets) as _);
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(crypto).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let remote = server.local_addr().unwrap();
    for _ in 0..2 {
        let connecting = endpoint
            .connect_with(config.clone(), remote, "localhost")
            .unwrap();
        // No ticket was given, so there is nothing to send early data with.
        let connecting = connecting.into_0rtt().err().expect("0-RTT was offered");
        let connection = connecting.await.unwrap();
        let accepted = accepted.recv().await.unwrap();
        // Data both ways, so that a ticket would have arrived.
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        send.write_all(b"?").await.unwrap();
        let (mut answer, mut question) = accepted.connection.accept_bi().await.unwrap();
        question.read_exact(&mut [0; 1]).await.unwrap();
        answer.write_all(b"!").await.unwrap();
        receive.read_exact(&mut [0; 1]).await.unwrap();
    }
    assert_eq!(tickets.0.load(Ordering::Relaxed), 0, "tickets were given");
}

/// Counts the tickets that a client is given.
#[derive(Debug, Default)]
struct Tickets(AtomicUsize);

impl rustls::client::ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: rustls::NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<rustls::NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, _: Tls13ClientSessionValue) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        None
    }
}

/// A server that can be started again on its port with its keys, on a runtime of its own that can be killed.
struct Process {
    runtime: tokio::runtime::Runtime,
    accepted: tokio::sync::mpsc::Receiver<Accepted>,
    address: std::net::SocketAddr,
}

impl Process {
    fn start(identity: Identity, keys: EndpointKeys, listen: std::net::SocketAddr) -> Process {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let _inside = runtime.enter();
        let (server, accepted) = Server::start(ServerOptions {
            listen,
            identity: Arc::new(identity),
            keys,
            alpns: Alpn::ALL.to_vec(),
        })
        .unwrap();
        let address = server.local_addr().unwrap();
        drop(_inside);
        Process {
            runtime,
            accepted,
            address,
        }
    }

    /// Everything is gone at once and nobody is told, as after kill -9.
    fn kill(self) {
        self.runtime.shutdown_timeout(LONG);
    }
}

#[test]
fn after_a_restart_the_peer_learns_of_it_at_its_first_packet() {
    let cluster = Cluster::new();
    let keys_path = cluster.path("endpoint-keys.json");
    let keys = || EndpointKeys::load_or_create(&keys_path).unwrap();
    let client = tokio::runtime::Runtime::new().unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let first = Process::start(cluster.node_identity(1), keys(), any);
    let address = first.address;
    let peer = PeerAddress::any(address.to_string());
    let identity = Arc::new(cluster.node_identity(2));
    let dialled: Dialled = client
        .block_on(dial(&identity, &peer, Alpn::Replication, LONG))
        .unwrap();
    first.kill();
    let second = Process::start(cluster.node_identity(1), keys(), address);
    let error = client.block_on(async {
        // Long enough that quinn answers with a reset: it must be shorter than what it answers. What was left of the
        // handshake may have brought one before, and then there is no stream to open any more.
        if let Ok(mut stream) = dialled.connection.open_uni().await {
            let _ = stream.write_all(&[0; 1000]).await;
        }
        timeout(LONG, dialled.connection.closed()).await.unwrap()
    });
    assert_eq!(error, ConnectionError::Reset);
    let error = dialled.explain(&error);
    assert!(matches!(error, ConnectFailure::Restarted { .. }), "{error}");
    assert_eq!(second.accepted.len(), 0);
    second.kill();
}

#[tokio::test]
async fn the_dialling_end_moves_and_the_connection_lives() {
    let pair = pair(Alpn::Replication).await;
    let before = pair.accepted.connection.remote_address();
    let moved_to = pair.dialled.rebind().unwrap();
    assert_ne!(before.port(), moved_to.port());
    let mut stream = pair.dialled.connection.open_uni().await.unwrap();
    stream.write_all(b"still here").await.unwrap();
    stream.finish().unwrap();
    let mut incoming = pair.accepted.connection.accept_uni().await.unwrap();
    assert_eq!(incoming.read_to_end(100).await.unwrap(), b"still here");
    let after = pair.accepted.connection.remote_address();
    assert_eq!(after.port(), moved_to.port());
}

/// What quinn does by itself in a blackout: a sender whose window is full of lost packets sends two probes at doubling
/// intervals, some twenty in a minute. With an allowance every heartbeat leaves.
#[tokio::test]
async fn a_full_window_does_not_silence_an_end_that_hears_nothing() {
    let cluster = Cluster::new();
    let (server, mut accepted) = cluster.server(1);
    let gate = Gate::before(server.local_addr().unwrap()).await;
    let identity = Arc::new(cluster.node_identity(2));
    let peer = PeerAddress::node(node(1), gate.address.to_string());
    let dialled = dial(&identity, &peer, Alpn::Replication, LONG)
        .await
        .unwrap();
    let jammed = accepted.recv().await.unwrap().connection;
    const BYTES: usize = 4 << 20;
    let mut lane = jammed.open_uni().await.unwrap();
    lane.write_all(b"first").await.unwrap();
    let mut read = dialled.connection.accept_uni().await.unwrap();

    gate.shut.store(true, Ordering::SeqCst);
    let writing = tokio::spawn(async move {
        lane.write_all(&vec![7; BYTES]).await.unwrap();
        lane.finish().unwrap();
        lane
    });
    let signs = || PathSigns::of(&jammed).unwrap();
    let is_full = || signs().in_flight() + 1452 >= jammed.stats().path.cwnd;
    timeout(LONG, async {
        while !is_full() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
    let before = gate.stopped.load(Ordering::SeqCst);
    let heartbeats = timeout(LONG, async {
        let mut sent = 0u64;
        while gate.stopped.load(Ordering::SeqCst) < before + 200 {
            signs().allow_one_more();
            jammed
                .send_datagram(bytes::Bytes::from_static(&[1]))
                .unwrap();
            sent += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        sent
    });
    assert!(heartbeats.await.is_ok(), "they wait in the full window");

    // It is over: the next heartbeat is acknowledged, which shows what was lost, and the window is free again.
    gate.shut.store(false, Ordering::SeqCst);
    jammed
        .send_datagram(bytes::Bytes::from_static(&[1]))
        .unwrap();
    signs().allow_no_more();
    let all = timeout(LONG, read.read_to_end(BYTES + 5)).await.unwrap();
    assert_eq!(all.unwrap().len(), BYTES + 5);
    writing.await.unwrap();
}

#[tokio::test]
async fn heartbeats_fit_in_datagrams_and_lanes_in_the_stream_limits() {
    let pair = pair(Alpn::Replication).await;
    let (follower, leader) = (&pair.dialled.connection, &pair.accepted.connection);
    follower.send_datagram("beat".into()).unwrap();
    assert_eq!(leader.read_datagram().await.unwrap(), "beat");
    leader.send_datagram("beat".into()).unwrap();
    assert_eq!(follower.read_datagram().await.unwrap(), "beat");
    // More lanes than quinn's default of 100, from both ends.
    for connection in [leader, follower] {
        let mut lanes = Vec::new();
        for _ in 0..200 {
            lanes.push(timeout(LONG, connection.open_uni()).await.unwrap().unwrap());
        }
    }
    let window = follower.congestion_state().window();
    assert!(window >= super::FOLLOWER_WINDOW_FLOOR, "{window}");
}

#[tokio::test]
async fn a_taken_port_and_a_stopping_server_are_clear() {
    let cluster = Cluster::new();
    let (server, mut accepted) = cluster.server(1);
    let error = Server::start(ServerOptions {
        listen: server.local_addr().unwrap(),
        identity: Arc::new(cluster.node_identity(2)),
        keys: EndpointKeys::random().unwrap(),
        alpns: vec![Alpn::Client],
    })
    .unwrap_err();
    assert!(matches!(error, BindError::InUse { .. }), "{error}");
    let identity = Arc::new(cluster.client_identity("x"));
    let dialled = dial_unconfirmed(&identity, &at(&server), Alpn::Client, LONG)
        .await
        .unwrap();
    dialled.confirmed().await.unwrap();
    let _held = accepted.recv().await.unwrap();
    server.close(CloseReason::ShuttingDown, LONG).await;
    let error = dialled.explain(&dialled.connection.closed().await);
    assert!(
        matches!(
            error,
            ConnectFailure::Closed {
                reason: CloseReason::ShuttingDown,
                ..
            }
        ),
        "{error}"
    );
    assert!(accepted.recv().await.is_none());
}

#[tokio::test]
async fn a_full_server_refuses_clients_before_nodes_and_then_everyone() {
    let cluster = Cluster::new();
    let limits = ServerLimits {
        connections: 3,
        reserved_for_nodes: 2,
        ..ServerLimits::default()
    };
    let (server, mut accepted) = start_with_limits(cluster.node_identity(1), limits);
    let client = Arc::new(cluster.client_identity("x"));
    let node = Arc::new(cluster.node_identity(2));
    let peer = at(&server);
    let outcome = async |identity, alpn| match dial(identity, &peer, alpn, LONG).await {
        // A node's own refusal comes after the handshake.
        Ok(dialled) => tokio::select! {
            end = dialled.connection.closed() => Err(dialled.explain(&end)),
            accepted = accepted.recv() => Ok((dialled, accepted)),
        },
        Err(error) => Err(error),
    };
    let mut outcome = outcome;
    let _first = outcome(&client, Alpn::Client).await.unwrap();
    let _second = outcome(&node, Alpn::Replication).await.unwrap();
    let error = outcome(&client, Alpn::Client).await.unwrap_err();
    assert!(
        matches!(error, ConnectFailure::Overloaded { .. }),
        "{error}"
    );
    // Room for one more, or for none while the refused client's connection drains.
    let mut held = Vec::new();
    let error = loop {
        match outcome(&node, Alpn::Controller).await {
            Ok(connected) => held.push(connected),
            Err(error) => break error,
        }
        assert_eq!(held.len(), 1, "more than three");
    };
    assert!(
        matches!(error, ConnectFailure::Overloaded { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_peer_that_must_prove_its_address_gets_in() {
    let cluster = Cluster::new();
    let limits = ServerLimits {
        retry_above_connections: 0,
        ..ServerLimits::default()
    };
    let (server, mut accepted) = start_with_limits(cluster.node_identity(1), limits);
    let identity = Arc::new(cluster.client_identity("x"));
    let _dialled = dial(&identity, &at(&server), Alpn::Client, LONG)
        .await
        .unwrap();
    assert!(accepted.recv().await.is_some());
}

#[tokio::test]
async fn a_new_identity_serves_new_connections() {
    let cluster = Cluster::new();
    let (server, _accepted) = cluster.server(1);
    let identity = Arc::new(cluster.client_identity("x"));
    let peer = cluster.address_of(&server, 4);
    let error = dial(&identity, &peer, Alpn::Client, LONG)
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectFailure::WrongNode { .. }), "{error}");
    server.use_identity(&cluster.node_identity(4)).unwrap();
    dial(&identity, &peer, Alpn::Client, LONG).await.unwrap();
}

#[test]
fn an_identity_is_checked_as_a_whole() {
    let cluster = Cluster::new();
    cluster.node_identity(1);
    let dir = cluster.path("node1");
    let certs = CertsDir::new(&dir);
    let (certificate, key) = certs.node_pair();
    let load = || Identity::load_node(&dir);
    assert_eq!(load().unwrap().peer(), &PeerIdentity::Node(node(1)));
    // A node's certificate is a client's too.
    assert!(Identity::load_client(&dir, None).is_ok());

    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o640)).unwrap();
    let error = load().unwrap_err().to_string();
    assert!(error.contains("chmod 0600"), "{error}");
    std::fs::remove_file(&key).unwrap();
    assert!(matches!(load(), Err(IdentityError::NoKey { .. })));
    cluster.node_identity(2);
    std::fs::copy(cluster.path("node2").join("node.key"), &key).unwrap();
    assert!(matches!(load(), Err(IdentityError::KeyMismatch { .. })));
    super::private_file::write_private(&key, b"rubbish", true).unwrap();
    assert!(matches!(load(), Err(IdentityError::UnreadableKey { .. })));
    std::fs::remove_file(&certificate).unwrap();
    assert!(matches!(
        load(),
        Err(IdentityError::NoNodeCertificate { .. })
    ));
    std::fs::remove_file(dir.join("ca.crt")).unwrap();
    assert!(matches!(load(), Err(IdentityError::NoCa { .. })));

    let certs = cluster.certs("two");
    for name in ["a", "b"] {
        certs
            .create_client(&name.parse().unwrap(), &IssueOptions::new(now()))
            .unwrap();
    }
    let error = Identity::load_client(certs.path(), None).unwrap_err();
    assert!(matches!(&error, IdentityError::SeveralClients { names, .. } if names == "a, b"));
    let name = "c".parse().unwrap();
    let error = Identity::load_client(certs.path(), Some(&name)).unwrap_err();
    assert!(matches!(error, IdentityError::NoSuchClient { .. }));
}
