//! Lanes and the copies of what they carry, over real connections.

use bytes::Bytes;
use quinn::Connection;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::transport::testing::{LONG, Listening, Pair, pair};
use crate::transport::{Alpn, CopyQueue};
use crate::types::MonotonicTime;
use crate::wire::Datagram;

/// A byte for each place of a stream.
fn content(from: u64, to: u64) -> Bytes {
    (from..to).map(|at| (at * 31 / 7) as u8).collect()
}

fn copy(from: u64, to: u64) -> LaneCopy {
    LaneCopy {
        lane: 0,
        offset: from,
        bytes: content(from, to),
    }
}

/// Reads on until the reader has taken `to` bytes of the stream.
async fn expect(reader: &mut LaneReader, to: u64) {
    while reader.splice.next() < to {
        let from = reader.splice.next();
        let filled = timeout(LONG, reader.fill::<()>())
            .await
            .expect("nothing comes");
        assert!(filled.unwrap());
        let got = reader.buffer().split();
        assert_eq!(got, content(from, from + got.len() as u64));
    }
    assert_eq!(reader.splice.next(), to);
}

/// A stream of which `to` bytes were sent, and who reads it.
async fn lane(pair: &Pair, to: u64) -> (quinn::SendStream, LaneReader) {
    let mut stream = pair.accepted.connection.open_uni().await.unwrap();
    stream.write_all(&content(0, to)).await.unwrap();
    let incoming = pair.dialled.connection.accept_uni().await.unwrap();
    (stream, LaneReader::new(incoming, 1000))
}

#[tokio::test]
async fn copies_bring_what_the_stream_lacks_and_nothing_twice() {
    let pair = pair(Alpn::Replication).await;
    let (mut stream, mut reader) = lane(&pair, 100).await;
    let (copies, arriving) = mpsc::channel(16);
    reader.take_copies(arriving, &AheadBudget::new(usize::MAX));
    expect(&mut reader, 100).await;
    // Of what the stream has brought already nothing is taken, and it is still read in order.
    copies.send(copy(40, 100)).await.unwrap();
    stream.write_all(&content(100, 120)).await.unwrap();
    expect(&mut reader, 120).await;
    assert!(!reader.unordered);
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
    let (_stream, mut reader) = lane(&pair, 1).await;
    expect(&mut reader, 1).await;
    for offset in [MAX_AHEAD_BYTES as u64 + 2, u64::MAX] {
        let bytes = Bytes::from_static(b"far");
        reader.splice_in(&LaneCopy {
            lane: 0,
            offset,
            bytes,
        });
        assert!(!reader.unordered);
    }
    reader.splice_in(&copy(
        MAX_AHEAD_BYTES as u64 + 1,
        MAX_AHEAD_BYTES as u64 + 2,
    ));
    assert_eq!(reader.splice.ahead_bytes(), 1);
}

/// One lane over a link that loses one packet in ten, with copies of all that is small, until `total` bytes have come, as they
/// should. Copies that filled a hole, and bytes that waited at most.
async fn over_a_lossy_link(
    total: u64,
    piece: u64,
    (max_ahead, of_all): (usize, usize),
) -> (usize, usize) {
    let spec = "loss=10%,delay=5ms,seed=3";
    let mut listening = Listening::start(spec);
    let connected = listening.connect(2, spec).await;
    let leader = connected.accepted.connection;
    let follower = connected.dialled.connection.clone();

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
                let _ = leader.send_datagram(piece.encode());
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
    let delivering = deliver(&follower, copies);
    let reading = async {
        let incoming = follower.accept_uni().await.unwrap();
        let mut reader = LaneReader::new(incoming, usize::MAX);
        reader.max_ahead = max_ahead;
        reader.take_copies(arriving, &AheadBudget::new(of_all));
        let (mut spliced, mut most) = (0, 0);
        while reader.splice.next() < total {
            let from = reader.splice.next();
            let before = reader.splice.ahead_bytes();
            assert!(reader.fill::<()>().await.unwrap());
            let got = reader.buffer().split();
            assert!(got == content(from, from + got.len() as u64), "at {from}");
            most = most.max(before).max(reader.splice.ahead_bytes());
            spliced += usize::from(reader.unordered && reader.splice.ahead_bytes() < before);
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

async fn deliver(connection: &Connection, copies: mpsc::Sender<LaneCopy>) {
    while let Ok(datagram) = connection.read_datagram().await {
        if let Ok(Some(Datagram::LaneCopy(copy))) = Datagram::decode(datagram) {
            let _ = copies.try_send(copy);
        }
    }
}

/// Links over which a lane is sent until one did what a test is about: how much a copy is ahead of what was sent again depends
/// on how busy the machine is.
const LINKS: usize = 20;

#[tokio::test]
async fn every_byte_comes_once_over_a_lossy_link_with_copies() {
    for _ in 0..LINKS {
        let (spliced, _) = over_a_lossy_link(300_000, 700, (MAX_AHEAD_BYTES, usize::MAX)).await;
        if spliced > 0 {
            return;
        }
    }
    panic!("no copy was of use");
}

/// A reader may hold no more than 4000 bytes ahead.
async fn gets_everything_and_holds_little(caps: (usize, usize)) {
    for _ in 0..LINKS {
        let (_, most) = over_a_lossy_link(300_000, 700, caps).await;
        // The cap, one read, and what slow reads add while a packet is sent again.
        assert!(most < 60_000, "{most} bytes");
        if most >= 4000 {
            return;
        }
    }
    panic!("the cap was never reached");
}

#[tokio::test]
async fn a_reader_that_may_hold_little_ahead_gets_everything_too() {
    gets_everything_and_holds_little((4000, usize::MAX)).await;
}

#[tokio::test]
async fn lanes_that_may_hold_little_ahead_together_get_everything_too() {
    gets_everything_and_holds_little((MAX_AHEAD_BYTES, 4000)).await;
}

#[tokio::test]
async fn at_its_cap_a_reader_asks_only_for_what_lacks() {
    let pair = pair(Alpn::Replication).await;
    let (stream, mut reader) = lane(&pair, 100).await;
    reader.max_ahead = 4000;
    expect(&mut reader, 100).await;
    reader.splice_in(&copy(200, 4200));
    assert_eq!(reader.splice.ahead_bytes(), 4000);
    asks_only_for_what_lacks(stream, reader).await;
}

#[tokio::test]
async fn where_other_lanes_have_spent_the_budget_a_reader_asks_only_for_what_lacks() {
    let pair = pair(Alpn::Replication).await;
    let budget = AheadBudget::new(4200);
    let (stream, mut reader) = lane(&pair, 100).await;
    let (_copies, arriving) = mpsc::channel(16);
    reader.take_copies(arriving, &budget);
    expect(&mut reader, 100).await;
    reader.splice_in(&copy(200, 4200));
    let (_other_stream, mut other) = lane(&pair, 100).await;
    let (_other_copies, arriving) = mpsc::channel(16);
    other.take_copies(arriving, &budget);
    expect(&mut other, 100).await;
    other.splice_in(&copy(200, 310));
    // Now it is spent, and only what lies right at the end of what there is may come.
    other.splice_in(&copy(400, 500));
    assert_eq!(other.splice.ahead_bytes(), 110);
    other.splice_in(&copy(100, 150));
    assert_eq!(other.splice.next(), 150);
    asks_only_for_what_lacks(stream, reader).await;
    // Its share is free again.
    other.splice_in(&copy(400, 500));
    assert_eq!(other.splice.ahead_bytes(), 210);
}

/// Of a reader that has 100 bytes and those from 200 to 4200, and may hold no more.
async fn asks_only_for_what_lacks(mut stream: quinn::SendStream, mut reader: LaneReader) {
    // All of it has come before anything is read.
    stream.write_all(&content(100, 9000)).await.unwrap();
    stream.finish().unwrap();
    timeout(LONG, stream.stopped()).await.unwrap().unwrap();
    assert!(reader.fill::<()>().await.unwrap());
    assert_eq!(reader.buffer().split(), content(100, 4200));
    assert_eq!(reader.splice.ahead_bytes(), 0);
    expect(&mut reader, 9000).await;
    assert!(!reader.fill::<()>().await.unwrap());
}
