//! Lanes and the copies of what they carry, over real connections.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use quinn::Connection;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::transport::testing::{Cluster, LONG, node, pair};
use crate::transport::{
    Alpn, CopyQueue, EndpointKeys, ImpairedLinks, Server, ServerLimits, ServerOptions, Sockets,
};
use crate::types::MonotonicTime;

/// A byte for each place of a stream.
fn content(from: u64, to: u64) -> Bytes {
    (from..to).map(|at| (at * 31 / 7) as u8).collect()
}

fn copy(from: u64, to: u64) -> LanePiece {
    LanePiece {
        lane: 0,
        offset: from,
        bytes: content(from, to),
    }
}

/// Reads on until the reader has taken `to` bytes of the stream.
async fn expect(reader: &mut LaneReader, to: u64) {
    while reader.taken < to {
        let from = reader.taken;
        let filled = timeout(LONG, reader.fill::<()>())
            .await
            .expect("nothing comes");
        assert!(filled.unwrap());
        let got = reader.buffer().split();
        assert_eq!(got, content(from, from + got.len() as u64));
    }
    assert_eq!(reader.taken, to);
}

#[tokio::test]
async fn copies_bring_what_the_stream_lacks_and_nothing_twice() {
    let pair = pair(Alpn::Replication).await;
    let mut stream = pair.accepted.connection.open_uni().await.unwrap();
    stream.write_all(&content(0, 100)).await.unwrap();
    let incoming = pair.dialled.connection.accept_uni().await.unwrap();
    let mut reader = LaneReader::new(incoming, 1000);
    let (copies, arriving) = mpsc::channel(16);
    reader.take_copies(arriving);
    expect(&mut reader, 100).await;
    // Of what the stream has brought already nothing is taken, and it is still read in order.
    copies.send(copy(40, 100)).await.unwrap();
    stream.write_all(&content(100, 120)).await.unwrap();
    expect(&mut reader, 120).await;
    assert!(reader.splice.is_none());
    // The stream has sent nothing of this, as if it had been lost.
    copies.send(copy(300, 350)).await.unwrap();
    copies.send(copy(110, 300)).await.unwrap();
    expect(&mut reader, 350).await;
    copies.send(copy(400, 410)).await.unwrap();
    // It comes in the end, and only what is new of it counts.
    stream.write_all(&content(120, 390)).await.unwrap();
    expect(&mut reader, 390).await;
    stream.write_all(&content(390, 500)).await.unwrap();
    expect(&mut reader, 500).await;
    // The end of the copies is not the stream's.
    drop(copies);
    stream.write_all(&content(500, 510)).await.unwrap();
    expect(&mut reader, 510).await;
    stream.finish().unwrap();
    assert!(!reader.fill::<()>().await.unwrap());
}

#[tokio::test]
async fn a_copy_from_too_far_ahead_is_dropped() {
    let pair = pair(Alpn::Replication).await;
    let mut stream = pair.accepted.connection.open_uni().await.unwrap();
    stream.write_all(&content(0, 1)).await.unwrap();
    let incoming = pair.dialled.connection.accept_uni().await.unwrap();
    let mut reader = LaneReader::new(incoming, 1000);
    expect(&mut reader, 1).await;
    for offset in [MAX_AHEAD_BYTES as u64 + 2, u64::MAX] {
        let bytes = Bytes::from_static(b"far");
        reader.splice_in(&LanePiece {
            lane: 0,
            offset,
            bytes,
        });
        assert!(reader.splice.is_none());
    }
    reader.splice_in(&copy(
        MAX_AHEAD_BYTES as u64 + 1,
        MAX_AHEAD_BYTES as u64 + 2,
    ));
    assert_eq!(reader.splice.unwrap().ahead_bytes(), 1);
}

/// One lane over a link that loses one packet in ten, with copies of all that is small, until `total` bytes have come, as they
/// should. Copies that filled a hole, and bytes that waited at most.
async fn over_a_lossy_link(total: u64, piece: u64, max_ahead: usize) -> (usize, usize) {
    let spec = "loss=10%,delay=5ms,seed=3";
    let links = |id| ImpairedLinks::new(Some(node(id)), spec.parse().unwrap());
    let cluster = Cluster::new();
    let options = ServerOptions {
        listen: "127.0.0.1:0".parse().unwrap(),
        identity: Arc::new(cluster.node_identity(1)),
        keys: EndpointKeys::random().unwrap(),
        alpns: Alpn::ALL.to_vec(),
    };
    let sockets = Sockets::impaired(links(1));
    let (server, mut accepted) =
        Server::start_on(&sockets, options, ServerLimits::default()).unwrap();
    let identity = Arc::new(cluster.node_identity(2));
    let peer = cluster.address_of(&server, 1);
    let dialled = Sockets::impaired(links(2))
        .dial(&identity, &peer, Alpn::Replication, LONG)
        .await
        .unwrap();
    let leader = accepted.recv().await.unwrap().connection;

    let (sink, mut written) = CopySink::new();
    sink.set_copies(1);
    let lane = LaneWriter::spawn(
        leader.open_uni().await.unwrap(),
        LaneOptions {
            header: content(0, 1),
            priority: 0,
            queue_bytes: 1 << 20,
            copies: Some((0, sink)),
        },
    );
    let begin = tokio::time::Instant::now();
    let now = || MonotonicTime::from_micros(begin.elapsed().as_micros() as u64);
    let copying = async {
        let mut queue = CopyQueue::default();
        loop {
            match timeout(Duration::from_millis(1), written.recv()).await {
                Ok(Some(piece)) => queue.push(now(), piece, 1),
                Ok(None) => std::future::pending().await,
                Err(_) => {}
            }
            while let Some(piece) = queue.pop(now(), 1000) {
                let mut datagram = BytesMut::new();
                datagram.put_u64(piece.offset);
                datagram.extend_from_slice(&piece.bytes);
                let _ = leader.send_datagram(datagram.freeze());
            }
        }
    };
    let writing = async {
        let mut at = 1;
        while at < total {
            let to = (at + piece).min(total);
            lane.push(content(at, to)).await.unwrap();
            at = to;
            // So that they are not all of one packet.
            tokio::task::yield_now().await;
        }
        std::future::pending::<()>().await;
    };
    let (copies, arriving) = mpsc::channel(64);
    let delivering = deliver(&dialled.connection, copies);
    let reading = async {
        let incoming = dialled.connection.accept_uni().await.unwrap();
        let mut reader = LaneReader::new(incoming, usize::MAX);
        reader.max_ahead = max_ahead;
        reader.take_copies(arriving);
        let (mut spliced, mut most) = (0, 0);
        while reader.taken < total {
            let from = reader.taken;
            let ahead = |reader: &LaneReader| reader.splice.as_ref().map_or(0, Splice::ahead_bytes);
            let before = ahead(&reader);
            assert!(reader.fill::<()>().await.unwrap());
            let got = reader.buffer().split();
            assert!(got == content(from, from + got.len() as u64), "at {from}");
            most = most.max(before);
            spliced += usize::from(reader.splice.is_some() && ahead(&reader) < before);
        }
        (spliced, most)
    };
    tokio::select! {
        figures = timeout(3 * LONG, reading) => figures.expect("the lane has come to a halt"),
        () = delivering => panic!("the connection has ended"),
        () = writing => unreachable!(),
        () = copying => unreachable!(),
    }
}

async fn deliver(connection: &Connection, copies: mpsc::Sender<LanePiece>) {
    while let Ok(datagram) = connection.read_datagram().await {
        let offset = u64::from_be_bytes(datagram[..8].try_into().unwrap());
        let bytes = datagram.slice(8..);
        let _ = copies.try_send(LanePiece {
            lane: 0,
            offset,
            bytes,
        });
    }
}

#[tokio::test]
async fn every_byte_comes_once_over_a_lossy_link_with_copies() {
    let (spliced, _) = over_a_lossy_link(300_000, 700, MAX_AHEAD_BYTES).await;
    assert!(spliced > 0);
}

#[tokio::test]
async fn a_reader_that_may_hold_little_ahead_gets_everything_too() {
    let (_, most) = over_a_lossy_link(300_000, 700, 4000).await;
    // The cap, one read, and what slow reads add while a packet is sent again.
    assert!((4000..60_000).contains(&most), "{most} bytes");
}
