//! Replication over one stream of TCP: its chunks, and the messages within them.

use bytes::{Bytes, BytesMut};
use quorate::transport::TcpChannel;
use quorate::wire::{Ack, ControlMessage, LaneMessage};

const CHANNELS: [TcpChannel; 6] = [
    TcpChannel::Control,
    TcpChannel::LiveLane,
    TcpChannel::CatchUpLane,
    TcpChannel::Acks,
    TcpChannel::Heartbeat,
    TcpChannel::Echo,
];

/// As both ends read a stream: chunks off what has come, and messages off what a channel has brought.
pub(crate) fn tcp_link(input: &[u8]) {
    let mut buffer = BytesMut::from(input);
    let mut put = BytesMut::new();
    let mut channels: [BytesMut; 6] = Default::default();
    while let Ok(Some((channel, bytes))) = TcpChannel::take(&mut buffer) {
        channel.put(&bytes, &mut put);
        let [control, live, catch_up, acks, ..] = &mut channels;
        let held = match channel {
            TcpChannel::Control => {
                control.extend_from_slice(&bytes);
                while let Ok(Some(_)) = ControlMessage::decode(control) {}
                control
            }
            TcpChannel::Acks => {
                acks.extend_from_slice(&bytes);
                let _ = Ack::decode_all(acks);
                acks
            }
            TcpChannel::LiveLane | TcpChannel::CatchUpLane => {
                let lane = match channel {
                    TcpChannel::LiveLane => live,
                    _ => catch_up,
                };
                lane.extend_from_slice(&bytes);
                while let Ok(Some(_)) = LaneMessage::decode(lane) {}
                lane
            }
            TcpChannel::Heartbeat | TcpChannel::Echo => continue,
        };
        assert!(held.len() <= input.len());
    }
    // One spelling of each chunk, and nothing between them.
    assert_eq!(put.len() + buffer.len(), input.len());
    assert_eq!(&put[..], &input[..put.len()]);
}

/// The messages of `replication` in chunks, cut within messages as they may be.
pub(crate) fn tcp_link_seeds(messages: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for channel in CHANNELS {
        let mut whole = BytesMut::new();
        let mut cut = BytesMut::new();
        for message in messages {
            channel.put(message, &mut whole);
            let (begin, end) = message.split_at(message.len() / 2);
            channel.put(begin, &mut cut);
            channel.put(end, &mut cut);
        }
        seeds.extend([whole.to_vec(), cut.to_vec()]);
    }
    let mut signs = BytesMut::new();
    for channel in [TcpChannel::Heartbeat, TcpChannel::Echo] {
        channel.put(
            &Bytes::from_static(&[0, 0, 0, 0, 0, 0, 0x30, 0x39]),
            &mut signs,
        );
    }
    seeds.push(signs.to_vec());
    seeds
}
