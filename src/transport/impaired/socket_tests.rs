//! Impaired sockets over loopback: packets, and whole QUIC connections.

use std::future::poll_fn;
use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::AsyncUdpSocket;
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use tokio::time::{Instant, sleep, timeout};

use super::link_table::Way;
use super::{ImpairedLinks, ImpairedSocket};
use crate::transport::movable_socket::MovableSocket;
use crate::transport::testing::{Connected, LONG, Listening, node};

/// A socket of node `id`, which dials `remote` or listens.
fn socket(
    id: u32,
    remote: Option<SocketAddr>,
    spec: &str,
) -> (Arc<ImpairedSocket>, Arc<ImpairedLinks>) {
    let links = ImpairedLinks::new(Some(node(id)), spec.parse().unwrap());
    let kernel = UdpSocket::bind("127.0.0.1:0").unwrap();
    let movable = MovableSocket::new(kernel).unwrap();
    (ImpairedSocket::new(movable, remote, &links), links)
}

/// A new socket has room only once it was asked for.
async fn send(socket: &Arc<ImpairedSocket>, transmit: &Transmit<'_>) {
    let mut poller = socket.clone().create_io_poller();
    poll_fn(|cx| poller.as_mut().poll_writable(cx))
        .await
        .unwrap();
    socket.try_send(transmit).unwrap();
}

/// The datagrams of the next batches until there are `count`, with the mark of each.
async fn receive(socket: &ImpairedSocket, count: usize) -> Vec<(Vec<u8>, Option<EcnCodepoint>)> {
    let mut received = Vec::new();
    let mut buffer = vec![0; 65_536];
    while received.len() < count {
        let mut meta = [RecvMeta::default()];
        let read = poll_fn(|cx| {
            let mut buffers = [IoSliceMut::new(&mut buffer)];
            socket.poll_recv(cx, &mut buffers, &mut meta)
        });
        let read = timeout(LONG, read).await.expect("a packet that never came");
        assert_eq!(read.unwrap(), 1);
        let [meta] = meta;
        for datagram in buffer[..meta.len].chunks(meta.stride) {
            received.push((datagram.to_vec(), meta.ecn));
        }
    }
    received
}

#[tokio::test]
async fn a_batch_arrives_packet_by_packet_with_its_marks_whether_or_not_it_is_held() {
    for spec in [
        "",
        "peer=all,dir=both,delay=5ms",
        "peer=all,dir=in,delay=5ms",
    ] {
        let (receiver, _) = socket(1, None, spec);
        let remote = receiver.local_addr().unwrap();
        let (sender, _) = socket(2, Some(remote), spec);
        let sends = sender.max_transmit_segments().min(10);
        let mut contents = Vec::new();
        for packet in 0..sends {
            contents.extend_from_slice(&[packet as u8 + 1; 1000]);
        }
        // The last one is shorter.
        contents.truncate(sends * 1000 - 1);
        let transmit = Transmit {
            destination: remote,
            ecn: Some(EcnCodepoint::Ect0),
            contents: &contents,
            segment_size: (sends > 1).then_some(1000),
            src_ip: None,
        };
        send(&sender, &transmit).await;
        let received = receive(&receiver, sends).await;
        let sent: Vec<_> = contents
            .chunks(1000)
            .map(|packet| (packet.to_vec(), Some(EcnCodepoint::Ect0)))
            .collect();
        assert_eq!(received, sent, "{spec:?}");
    }
}

#[tokio::test]
async fn what_is_held_when_its_socket_is_given_up_still_leaves() {
    let (receiver, _) = socket(1, None, "");
    let remote = receiver.local_addr().unwrap();
    let (sender, _) = socket(2, Some(remote), "peer=all,delay=50ms");
    send(&sender, &one(remote, b"last words")).await;
    drop(sender);
    assert_eq!(receive(&receiver, 1).await[0].0, b"last words");
}

fn one(destination: SocketAddr, contents: &[u8]) -> Transmit<'_> {
    Transmit {
        destination,
        ecn: None,
        contents,
        segment_size: None,
        src_ip: None,
    }
}

impl Connected {
    fn outward<T>(&self, look: impl Fn(&Way) -> T) -> T {
        let remote = self.dialled.connection.remote_address();
        look(&self.links.link_to(self.links.now(), remote).outward)
    }

    fn cut(&self) -> u64 {
        self.outward(|way| way.model().counts().cut)
    }
}

/// Waits for what must come.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG * 3;
    while !is_so() {
        assert!(Instant::now() < deadline, "never came: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// Sends `bytes` on one stream and returns what came out at the other end.
async fn cross(from: &quinn::Connection, to: &quinn::Connection, bytes: &[u8]) -> Vec<u8> {
    let sending = async {
        let mut stream = from.open_uni().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.finish().unwrap();
    };
    let receiving = async {
        let mut stream = to.accept_uni().await.unwrap();
        stream.read_to_end(bytes.len() + 1).await.unwrap()
    };
    tokio::join!(sending, receiving).1
}

#[tokio::test]
async fn everything_comes_through_loss_reordering_copies_and_jitter() {
    let bad = "loss=5%,reorder=5%,dup=5%,delay=5ms,jitter=4ms,seed=11";
    let mut listening = Listening::start(bad);
    let connected = listening.connect(2, bad).await;
    let (here, there) = (
        &connected.dialled.connection,
        &connected.accepted.connection,
    );
    let bytes: Vec<u8> = (0..400_000u32).map(|i| (i * 31 / 7) as u8).collect();
    let (out, back) = tokio::join!(cross(here, there, &bytes), cross(there, here, &bytes));
    assert!(out == bytes && back == bytes);
    let counts = connected.outward(|way| way.model().counts());
    assert!(
        counts.lost > 0 && counts.doubled > 0 && counts.held_back > 0,
        "{counts:?}"
    );
    assert!(here.rtt() >= Duration::from_millis(5));
}

#[tokio::test]
async fn nothing_passes_a_cut_and_after_the_heal_the_connection_goes_on() {
    let mut listening = Listening::start("");
    let connected = listening.connect(2, "").await;
    let (here, there) = (
        &connected.dialled.connection,
        &connected.accepted.connection,
    );
    connected.links.set("peer=1,cut=both".parse().unwrap());
    let crossing = cross(here, there, b"through");
    tokio::pin!(crossing);
    tokio::select! {
        _ = &mut crossing => panic!("it has passed the cut"),
        () = until("packets that are cut", || connected.cut() >= 4) => {}
    }
    connected.links.set("".parse().unwrap());
    assert_eq!(crossing.await, b"through");
}

#[tokio::test]
async fn a_one_way_cut_stops_one_way() {
    let mut listening = Listening::start("");
    let connected = listening.connect(2, "").await;
    let (here, there) = (
        &connected.dialled.connection,
        &connected.accepted.connection,
    );
    connected.links.set("peer=1,cut=out".parse().unwrap());
    here.send_datagram(Bytes::from_static(b"lost")).unwrap();
    until("a packet that is cut", || connected.cut() > 0).await;
    there.send_datagram(Bytes::from_static(b"heard")).unwrap();
    assert_eq!(&here.read_datagram().await.unwrap()[..], b"heard");
    connected.links.set("".parse().unwrap());
    here.send_datagram(Bytes::from_static(b"after")).unwrap();
    assert_eq!(&there.read_datagram().await.unwrap()[..], b"after");
}

#[tokio::test]
async fn the_end_that_listens_knows_which_node_dials_it() {
    let mut listening = Listening::start("");
    let two = listening.connect(2, "").await;
    let three = listening.connect(3, "").await;
    listening.links.set("peer=2,cut=both".parse().unwrap());
    let (here, there) = (&two.dialled.connection, &two.accepted.connection);
    let crossing = cross(here, there, b"through");
    tokio::pin!(crossing);
    let (three_here, three_there) = (&three.dialled.connection, &three.accepted.connection);
    let address = there.remote_address();
    let is_cut = || {
        let link = listening.links.link_to(listening.links.now(), address);
        link.inward.model().counts().cut > 0
    };
    tokio::select! {
        _ = &mut crossing => panic!("it has passed the cut"),
        bytes = async {
            until("packets that are cut", is_cut).await;
            cross(three_here, three_there, b"of another node").await
        } => assert_eq!(bytes, b"of another node"),
    }
    listening.links.set("".parse().unwrap());
    assert_eq!(crossing.await, b"through");
}

#[tokio::test]
async fn another_port_is_a_migration_and_no_new_connection() {
    let mut listening = Listening::start("");
    let connected = listening.connect(2, "rebind=1").await;
    let (here, there) = (
        &connected.dialled.connection,
        &connected.accepted.connection,
    );
    let before = there.remote_address();
    assert_eq!(
        connected.dialled.local_addr().unwrap().port(),
        before.port()
    );
    // The same number again is no change.
    connected.links.set("loss=0%,rebind=1".parse().unwrap());
    assert_eq!(cross(here, there, b"one").await, b"one");
    assert_eq!(there.remote_address(), before);
    connected.links.set("rebind=2".parse().unwrap());
    until("another port", || {
        let _ = here.send_datagram(Bytes::from_static(b"."));
        there.remote_address() != before
    })
    .await;
    let after = connected.dialled.local_addr().unwrap();
    assert_eq!(there.remote_address().port(), after.port());
    assert_eq!(cross(here, there, b"two").await, b"two");
    assert_eq!(cross(there, here, b"three").await, b"three");
    assert_eq!(listening.server.open_connections(), 1);
    assert!(listening.accepted.try_recv().is_err());
    // The end that listens knows the new port's node too.
    listening.links.set("peer=2,cut=in".parse().unwrap());
    let is_cut = || {
        let _ = here.send_datagram(Bytes::from_static(b"."));
        let link = listening
            .links
            .link_to(listening.links.now(), there.remote_address());
        link.inward.model().counts().cut > 0
    };
    until("packets that are cut", is_cut).await;
}

#[tokio::test]
async fn a_slow_link_carries_no_more_than_its_rate() {
    let mut listening = Listening::start("");
    let connected = listening.connect(2, "rate=4mbit,queue=40").await;
    let (here, there) = (
        &connected.dialled.connection,
        &connected.accepted.connection,
    );
    let bytes = vec![7; 250_000];
    let begun = Instant::now();
    assert_eq!(cross(here, there, &bytes).await.len(), bytes.len());
    // 2 Mbit at 4 Mbit/s, less what the queue held when it ended.
    assert!(begun.elapsed() > Duration::from_millis(350));
}
