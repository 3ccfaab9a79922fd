//! What is fuzzed: each target takes bytes from nobody knows where, and may neither panic nor allocate more than they bring.
//!
//! `cargo fuzz` runs them for as long as one likes, and the main crate's `tests/decoders.rs` runs them for a moment on
//! mutations that a seed repeats. Where a format carries a checksum, a target also sets it right, or nothing behind it would
//! ever be reached.

mod cluster;
mod groups;
mod login;
mod tcp_link;
mod transactions;

use std::io::IoSlice;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use quorate::cli::{Delimiter, Format, NamedListener, parse_duration};
use quorate::client::{Acks, Start};
use quorate::record::{
    Batch, BatchBuilder, BatchHeader, Compression, Limits, ProducerStamp, Rewrite, check_produced,
    raw_records, records_within,
};
use quorate::storage::faulty::FaultyFileSystem;
use quorate::storage::inspect::inspect;
use quorate::storage::{
    DataDir, FileSystem, Flush, Log, LogConfig, LogOptions, OpenMode, Opener, RecoveryBudget,
};
use quorate::transport::{
    CertificateHost, CertificateInfo, ClientName, Congestion, EndpointKeys, ImpairmentSpec,
    LinkCongestion, PeerAddress,
};
use quorate::types::{
    ClusterId, DirectoryId, EpochEntry, EpochHistory, Incarnation, LeaderEpoch, ListenerName,
    LogPosition, NodeId, Offset, PartitionIndex, ProducerId, SessionId, TopicId, TopicName,
    TopicPartition,
};
use quorate::wal::{Decoded, Frame, FrameHeader, HEADER_LEN};
use quorate::wire::{
    Ack, BatchEntry, ControlMessage, Datagram, EndedEntry, Heartbeat, Hello, LaneCopy, LaneHeader,
    LaneMessage, OpenSession, PROTOCOL_VERSION, ProducerEntry, ProducerSnapshot, SessionAnswer,
    SessionOutcome, SessionRefusal, TransactionEntry, Welcome,
};

/// One decoder, or a few that take the same bytes.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&[u8]),
    /// Inputs of real encoders to begin with.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
}

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "frame",
        run: frame,
        seeds: frame_seeds,
    },
    Target {
        name: "replication",
        run: replication,
        seeds: replication_seeds,
    },
    Target {
        name: "producers",
        run: producers,
        seeds: producers_seeds,
    },
    Target {
        name: "kafka_request",
        run: kafka_request,
        seeds: kafka_request_seeds,
    },
    Target {
        name: "record_batch",
        run: record_batch,
        seeds: record_batch_seeds,
    },
    Target {
        name: "segment",
        run: segment,
        seeds: segment_seeds,
    },
    Target {
        name: "data_dir",
        run: data_dir,
        seeds: data_dir_seeds,
    },
    Target {
        name: "certificate",
        run: certificate,
        seeds: certificate_seeds,
    },
    Target {
        name: "text",
        run: text,
        seeds: text_seeds,
    },
    Target {
        name: "tcp_link",
        run: tcp_link::tcp_link,
        seeds: tcp_link_seeds,
    },
    Target {
        name: "controller_message",
        run: cluster::controller_message,
        seeds: cluster::controller_message_seeds,
    },
    Target {
        name: "controller_value",
        run: cluster::controller_value,
        seeds: cluster::controller_value_seeds,
    },
    Target {
        name: "controller_store",
        run: cluster::controller_store,
        seeds: cluster::controller_store_seeds,
    },
    Target {
        name: "admin",
        run: cluster::admin,
        seeds: cluster::admin_seeds,
    },
    Target {
        name: "groups_log",
        run: groups::groups_log,
        seeds: groups::groups_log_seeds,
    },
    Target {
        name: "transactions_log",
        run: transactions::transactions_log,
        seeds: transactions::transactions_log_seeds,
    },
    Target {
        name: "consumer_protocol",
        run: groups::consumer_protocol,
        seeds: groups::consumer_protocol_seeds,
    },
    Target {
        name: "login",
        run: login::login,
        seeds: login::login_seeds,
    },
];

/// Runs the target of that name.
#[allow(dead_code)]
pub(crate) fn run(name: &str, input: &[u8]) {
    if let Some(target) = TARGETS.iter().find(|target| target.name == name) {
        (target.run)(input);
    }
}

fn offset(offset: u64) -> Offset {
    Offset::new(offset).expect("a small offset")
}

fn epoch(epoch: u32) -> LeaderEpoch {
    LeaderEpoch::new(epoch).expect("a small epoch")
}

fn position(o: u64, e: u32) -> LogPosition {
    LogPosition::new(offset(o), epoch(e))
}

fn history(entries: &[(u32, u64)]) -> EpochHistory {
    let mut history = EpochHistory::new();
    for &(e, start) in entries {
        history
            .push(EpochEntry {
                epoch: epoch(e),
                start: offset(start),
            })
            .expect("epochs rise");
    }
    history
}

fn partition() -> TopicPartition {
    TopicPartition {
        topic: TopicId::from_random_bits(7),
        partition: PartitionIndex(0),
    }
}

fn topic() -> TopicName {
    TopicName::new("orders").expect("a legal name")
}

fn sealed_batch(values: &[&str], compression: Compression) -> Bytes {
    let mut builder = BatchBuilder::new();
    for value in values {
        let value = Bytes::copy_from_slice(value.as_bytes());
        let header = ("h".to_owned(), Some(Bytes::from_static(b"v")));
        builder
            .append(Some(&value), Some(&value), &[header], 1_700_000_000_000)
            .expect("a small record");
    }
    let stamp = ProducerStamp {
        id: ProducerId::new(3).expect("not negative"),
        epoch: 0,
        base_sequence: 0,
    };
    builder
        .seal(compression)
        .expect("it compresses")
        .stamp(Some(stamp))
}

/// A log of two epochs.
fn frames() -> Vec<Frame> {
    let start = Frame::epoch_start(epoch(1), LogPosition::START);
    let batch = sealed_batch(&["a", "bc"], Compression::None);
    let first = Frame::records(epoch(1), start.end(), offset(2), &[&batch]);
    let next = Frame::epoch_start(epoch(4), first.end());
    let second = Frame::records(epoch(4), next.end(), offset(4), &[&batch]);
    vec![start, first, next, second]
}

fn joined(frames: &[Frame]) -> Vec<u8> {
    frames
        .iter()
        .flat_map(|frame| frame.bytes().to_vec())
        .collect()
}

// --- the WAL frame ---

fn frame(input: &[u8]) {
    let _ = FrameHeader::parse(input);
    let mut rest = Bytes::copy_from_slice(input);
    while let Ok(Decoded::Frame(frame)) = Frame::decode(&rest) {
        assert!(frame.len() <= rest.len());
        assert_eq!(&frame.bytes()[..], &rest[..frame.len()]);
        assert!(frame.end() > frame.start());
        let _ = rest.split_to(frame.len());
    }
    // Once more with the checksum that belongs to it.
    let mut input = input.to_vec();
    if mend_frame(&mut input).is_some()
        && let Ok(Decoded::Frame(frame)) = Frame::decode(&Bytes::from(input))
    {
        let _ = frame.payload();
    }
}

/// Sets the checksum of the frame at the start of `bytes`; its length, if it is all there.
fn mend_frame(bytes: &mut [u8]) -> Option<usize> {
    const PAYLOAD_LENGTH_AT: usize = 32;
    const CRC_AT: usize = 36;
    let length = u32::from_be_bytes(*bytes.get(PAYLOAD_LENGTH_AT..)?.first_chunk()?) as usize;
    let end = HEADER_LEN.checked_add(length)?;
    let frame = bytes.get_mut(..end)?;
    let mut crc = crc32fast::Hasher::new();
    crc.update(&frame[..CRC_AT]);
    crc.update(&frame[HEADER_LEN..]);
    frame[CRC_AT..HEADER_LEN].copy_from_slice(&crc.finalize().to_be_bytes());
    Some(end)
}

fn frame_seeds() -> Vec<Vec<u8>> {
    let frames = frames();
    let mut seeds: Vec<Vec<u8>> = frames.iter().map(|frame| frame.bytes().to_vec()).collect();
    seeds.push(joined(&frames));
    seeds
}

// --- replication ---

fn replication(input: &[u8]) {
    let whole = Bytes::copy_from_slice(input);
    let mut control = BytesMut::from(input);
    while let Ok(Some(message)) = ControlMessage::decode(&mut control) {
        // One spelling of each message.
        let encoded = message.encode();
        let at = input.len() - control.len();
        assert_eq!(&encoded[..], &input[at - encoded.len()..at]);
    }
    let mut acks = BytesMut::from(input);
    if let Ok(decoded) = Ack::decode_all(&mut acks) {
        // One spelling of each, and nothing is lost of the one that is cut.
        let encoded = Ack::encode_all(&decoded);
        assert_eq!([&encoded[..], &acks[..]].concat(), input);
    }
    let mut lane = BytesMut::from(input);
    let _ = LaneHeader::decode(&mut lane);
    while let Ok(Some(_)) = LaneMessage::decode(&mut lane) {}
    let _ = Datagram::decode(whole);
}

fn replication_seeds() -> Vec<Vec<u8>> {
    let session = SessionId::from_random_bits(77);
    let answer = |outcome| SessionAnswer {
        session,
        leader_epoch: epoch(5),
        outcome,
    };
    let answers = [
        answer(SessionOutcome::Truncate(position(9, 2))),
        answer(SessionOutcome::Reset {
            start: position(40, 4),
            epochs: history(&[(2, 0), (4, 9)]),
            producers: snapshot(),
        }),
        answer(SessionOutcome::Refused(SessionRefusal::NotLeader)),
    ];
    let mut control = vec![
        ControlMessage::Hello(Hello {
            version: PROTOCOL_VERSION,
            cluster: ClusterId::from_random_bits(1),
            node: NodeId::new(2).expect("not 0"),
            incarnation: Incarnation::from_random_bits(3),
            directory: DirectoryId::from_random_bits(4),
        }),
        ControlMessage::Welcome(Welcome {
            node: NodeId::new(1).expect("not 0"),
            incarnation: Incarnation::from_random_bits(8),
            lanes: 8,
        }),
        ControlMessage::OpenSession(OpenSession {
            partition: partition(),
            leader_epoch: epoch(5),
            session,
            durable: position(12, 5),
            epochs: history(&[(2, 0), (5, 9)]),
            epochs_complete: true,
            log_lost: false,
        }),
        ControlMessage::CloseSession {
            session,
            reason: SessionRefusal::Overloaded,
        },
    ];
    control.extend(answers.iter().cloned().map(ControlMessage::SessionAnswer));
    let mut seeds: Vec<Vec<u8>> = control
        .iter()
        .map(|message| message.encode().to_vec())
        .collect();
    let ack = |i| Ack {
        session: SessionId::from_random_bits(i),
        leader_epoch: epoch(2),
        durable: position(i, 2),
        received: offset(i + 5),
    };
    let acks: Vec<_> = (0..3).map(ack).collect();
    seeds.push(Ack::encode_all(&acks).to_vec());
    seeds.push(Heartbeat { sequence: 9 }.encode().to_vec());
    let copy = LaneCopy {
        lane: 2,
        offset: 77,
        bytes: joined(&frames()).into(),
    };
    seeds.push(copy.encode().to_vec());
    let mut lane = LaneHeader { lane: 2 }.encode().to_vec();
    for answer in &answers {
        lane.extend_from_slice(&LaneMessage::encode_answer(answer, offset(3)));
    }
    let frames = joined(&frames());
    let header = LaneMessage::encode_header(session, epoch(5), offset(3), frames.len());
    lane.extend_from_slice(&header);
    lane.extend_from_slice(&frames);
    seeds.push(lane);
    seeds
}

fn tcp_link_seeds() -> Vec<Vec<u8>> {
    tcp_link::tcp_link_seeds(&replication_seeds())
}

// --- what is remembered of producers ---

fn producers(input: &[u8]) {
    if let Ok(snapshot) = ProducerSnapshot::decode(Bytes::copy_from_slice(input)) {
        assert_eq!(&snapshot.encode()[..], input);
        let states = quorate::replication::ProducerStates::from(snapshot.clone());
        assert_eq!(states.snapshot(), snapshot);
    }
}

fn snapshot() -> ProducerSnapshot {
    let batch = |i: u64| BatchEntry {
        base_sequence: 2 * i as i32,
        last_sequence: 2 * i as i32 + 1,
        base: offset(10 * i),
        end: offset(10 * i + 2),
    };
    let entry = |id| ProducerEntry {
        producer: ProducerId::new(id).expect("not negative"),
        epoch: 1,
        batches: (0..3).map(batch).collect(),
        transaction: TransactionEntry::none(batch(2).end),
    };
    ProducerSnapshot {
        incomplete: true,
        producers: (0..4).map(entry).collect(),
        ended: Vec::new(),
    }
}

/// The same with transactions: one that is open, one that has ended, and a producer of which nothing but a marker is known.
fn snapshot_with_transactions() -> ProducerSnapshot {
    let mut snapshot = snapshot();
    for (id, entry) in snapshot.producers.iter_mut().enumerate() {
        entry.transaction = TransactionEntry {
            coordinator_epoch: Some(4),
            open: Some(offset(10 + id as u64)),
            last_marker: Some(offset(5)),
            end: offset(30),
        };
    }
    if let Some(last) = snapshot.producers.last_mut() {
        last.batches.clear();
        last.transaction.open = None;
    }
    snapshot.ended = vec![EndedEntry {
        first: offset(2),
        end: offset(6),
    }];
    snapshot
}

fn producers_seeds() -> Vec<Vec<u8>> {
    vec![
        snapshot().encode().to_vec(),
        snapshot_with_transactions().encode().to_vec(),
        ProducerSnapshot::default().encode().to_vec(),
    ]
}

// --- Kafka requests ---

fn kafka_request(input: &[u8]) {
    quorate::kafka::is_request(Bytes::copy_from_slice(input));
}

fn kafka_request_seeds() -> Vec<Vec<u8>> {
    // Key, version, correlation id, client id "q"; then a body that is short enough to be found out byte by byte. Flexible
    // versions have an empty tag buffer behind the client id.
    let head = |key: i16, version: i16| {
        let mut head = key.to_be_bytes().to_vec();
        head.extend_from_slice(&version.to_be_bytes());
        head.extend_from_slice(&[0, 0, 0, 9, 0, 1, b'q']);
        head
    };
    let mut seeds = Vec::new();
    for api in quorate::kafka::SERVED_APIS {
        for version in api.min..=api.max {
            let mut request = head(api.key as i16, version);
            request.resize(request.len() + 64, 0);
            seeds.push(request);
        }
    }
    // Metadata of one topic, version 1: a list of one name.
    let mut metadata = head(3, 1);
    metadata.extend_from_slice(&[0, 0, 0, 1, 0, 6]);
    metadata.extend_from_slice(b"orders");
    seeds.push(metadata);
    // Produce, version 3, of one batch.
    let batch = sealed_batch(&["a"], Compression::None);
    let mut produce = head(0, 3);
    produce.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0x03, 0xe8]);
    produce.extend_from_slice(&[0, 0, 0, 1, 0, 6]);
    produce.extend_from_slice(b"orders");
    produce.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0]);
    produce.extend_from_slice(&(batch.len() as u32).to_be_bytes());
    produce.extend_from_slice(&batch);
    seeds.push(produce);
    seeds
}

// --- record batches ---

/// What one batch may expand to here; a node's own limit is larger, and a fuzzer would only be slower by it.
const MAX_EXPANDED_BYTES: usize = 4 << 20;

fn record_batch(input: &[u8]) {
    let limits = Limits {
        max_batch_bytes: 1 << 20,
    };
    let mut input = input.to_vec();
    for mended in [false, true] {
        if mended {
            mend_batch(&mut input);
        }
        let bytes = Bytes::copy_from_slice(&input);
        let _ = check_produced(&bytes, &limits);
        let _ = BatchHeader::decode(&bytes);
        if let Ok(batch) = Batch::decode(&bytes)
            && let Ok(records) = records_within(&batch, MAX_EXPANDED_BYTES)
        {
            // It ends at the first record that is none.
            let good = records.take_while(Result::is_ok).count();
            assert!(good <= MAX_EXPANDED_BYTES);
            rewrite(&batch);
        }
    }
}

/// As compaction makes a batch again, which is then a batch with the same records.
fn rewrite(batch: &Batch) {
    let Ok(records) = raw_records(batch) else {
        return;
    };
    let base = batch.header.base_offset;
    let end = base.checked_add(i64::from(batch.header.last_offset_delta) + 1);
    let (Some(base), Some(end)) = (Offset::from_wire(base), end.and_then(Offset::from_wire)) else {
        return;
    };
    if records.is_empty() || end <= base {
        return;
    }
    let mut rewrite = Rewrite::new(base, None);
    for record in &records {
        rewrite.push(record);
    }
    let sealed = rewrite.seal(end, epoch(1), Compression::None, None);
    let again = Batch::decode(&sealed.expect("it needs no compression")).expect("a batch");
    assert_eq!(raw_records(&again).expect("its records"), records);
}

/// Sets a batch's length and its CRC-32C right.
fn mend_batch(bytes: &mut [u8]) {
    const LENGTH_END: usize = 12;
    const CRC_AT: usize = 17;
    const CRC_FROM: usize = 21;
    if bytes.len() > CRC_FROM {
        let length = (bytes.len() - LENGTH_END) as u32;
        bytes[8..LENGTH_END].copy_from_slice(&length.to_be_bytes());
        let crc = crc32c::crc32c(&bytes[CRC_FROM..]);
        bytes[CRC_AT..CRC_FROM].copy_from_slice(&crc.to_be_bytes());
    }
}

fn record_batch_seeds() -> Vec<Vec<u8>> {
    let text = "so it goes ".repeat(20);
    [
        Compression::None,
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ]
    .map(|codec| sealed_batch(&[&text, "", &text], codec).to_vec())
    .to_vec()
}

// --- segment recovery ---

const LOG_DIR: &str = "/log";

fn log_options() -> LogOptions {
    LogOptions::from(LogConfig {
        retention_ms: None,
        flush: Flush::Fsync,
        ..LogConfig::default()
    })
}

fn put(fs: &FaultyFileSystem, path: &Path, bytes: &[u8]) {
    let file = fs
        .open(path, OpenMode::Create)
        .expect("a disk without faults");
    file.set_len(0).expect("a disk without faults");
    file.write_at(0, &[IoSlice::new(bytes)])
        .expect("a disk without faults");
}

/// The first byte says how the rest is to be taken: bit 0, whether frames get the checksum that belongs to them; bit 1,
/// whether the log is in two segments, of which the first holds the frames of a real log.
fn segment(input: &[u8]) {
    let Some((&mode, bytes)) = input.split_first() else {
        return;
    };
    let mut bytes = bytes.to_vec();
    if mode & 1 != 0 {
        let mut at = 0;
        while let Some(length) = mend_frame(&mut bytes[at..]) {
            at += length;
        }
    }
    let fs = FaultyFileSystem::new(0);
    let dir = Path::new(LOG_DIR);
    fs.create_dir_all(dir).expect("a disk without faults");
    let mut base = 0;
    if mode & 2 != 0 {
        let real = frames();
        put(&fs, &dir.join(format!("{base:020}.wal")), &joined(&real));
        base = 4;
    }
    put(&fs, &dir.join(format!("{base:020}.wal")), &bytes);
    let open = || Log::open(fs.shared(), dir, partition(), &topic(), log_options());
    let Ok((log, first)) = open() else {
        return;
    };
    let read = |log: &Log| -> Vec<Frame> {
        let frames: Result<Vec<Frame>, _> = log.frames(log.start()).collect();
        frames.expect("what was recovered can be read")
    };
    let found = read(&log);
    let mut end = log.start();
    for frame in &found {
        assert_eq!(frame.start(), end, "frames follow one another");
        end = frame.end();
    }
    assert_eq!(end, log.end());
    // What was kept is whole: opening it again finds the same, with nothing to cut or to set aside.
    let kept = (log.start(), log.end());
    drop(log);
    fs.power_loss();
    let (log, second) = open().expect("a recovered log opens");
    assert!(
        second.cut.is_none() && second.quarantined.is_none(),
        "{second:?} after {first:?}"
    );
    assert_eq!((log.start(), log.end()), kept);
    assert_eq!(read(&log), found);
}

fn segment_seeds() -> Vec<Vec<u8>> {
    let whole = joined(&frames());
    let mut seeds = Vec::new();
    for mode in 0..4u8 {
        for end in [whole.len(), whole.len() - 5, 47] {
            let mut seed = vec![mode];
            seed.extend_from_slice(&whole[..end]);
            seeds.push(seed);
        }
    }
    // Frames that follow those of the first segment.
    let next = Frame::epoch_start(epoch(9), position(4, 4));
    let mut seed = vec![2];
    seed.extend_from_slice(next.bytes());
    seeds.push(seed);
    seeds
}

// --- every file of a data directory ---

const DATA_DIR: &str = "/data";

/// Files and the kinds that stand in their first lines; frames and tables have none.
const FILES: [(&str, Option<&str>); 12] = [
    ("meta", Some("meta")),
    ("boot", Some("boot")),
    ("promises", None),
    ("high-watermarks", Some("high-watermarks")),
    ("P/partition", Some("partition")),
    ("P/log-start", Some("log-start")),
    ("P/recovery", Some("recovery-checkpoint")),
    ("P/impaired", Some("impairment")),
    ("P/00000000000000000000.idx", None),
    ("P/00000000000000000004.producers", None),
    ("P/00000000000000000002.wal", None),
    ("P/tail-index", None),
];

fn file_path(name: &str) -> PathBuf {
    let name = match name.strip_prefix("P/") {
        Some(name) => format!("partitions/{}/{name}", partition()),
        None => name.to_owned(),
    };
    Path::new(DATA_DIR).join(name)
}

fn opener() -> Opener {
    Opener {
        node_id: NodeId::new(1).expect("not 0"),
        cluster_id: None,
        new_directory_id: DirectoryId::from_random_bits(9),
        boot_id: Some("boot".to_owned()),
    }
}

fn open_all(fs: &FaultyFileSystem) -> Option<(DataDir, Log)> {
    let mut data_dir = DataDir::open(fs.shared(), Path::new(DATA_DIR), &opener()).ok()?;
    // So that the index of the tail is written down at once.
    data_dir.set_recovery_budget(RecoveryBudget::of(1));
    let (log, _) = data_dir
        .open_log(partition(), &topic(), log_options())
        .ok()?;
    Some((data_dir, log))
}

/// A directory that a node has left behind after a clean stop.
fn real_data_dir() -> FaultyFileSystem {
    let fs = FaultyFileSystem::new(0);
    let (data_dir, mut log) = open_all(&fs).expect("an empty directory opens");
    data_dir
        .promises()
        .raise(&[(partition(), epoch(4))])
        .expect("a disk without faults");
    log.append(&frames()).expect("they follow one another");
    if let Some(ticket) = log.begin_sync() {
        ticket.run().expect("a disk without faults");
        log.finish_sync(ticket);
    }
    log.keep_snapshot(log.end(), snapshot().encode());
    log.close().expect("a disk without faults");
    data_dir
        .write_high_watermarks([(partition(), offset(4))])
        .expect("a disk without faults");
    data_dir.note_boot().expect("a disk without faults");
    drop((data_dir, log));
    fs.kill();
    fs
}

/// The first byte says which file the rest is; its highest bit, whether its checksum is set right.
fn data_dir(input: &[u8]) {
    let Some((&which, bytes)) = input.split_first() else {
        return;
    };
    let (name, kind) = FILES[usize::from(which & 0x7f) % FILES.len()];
    let mut content = bytes.to_vec();
    if which & 0x80 != 0 {
        let body = bytes;
        match kind {
            Some(kind) => {
                content = format!("quorate {kind} 1 {:08x}\n", crc32fast::hash(body)).into();
                content.extend_from_slice(body);
            }
            None => content.extend_from_slice(&crc32fast::hash(body).to_be_bytes()),
        }
    }
    let fs = real_data_dir();
    put(&fs, &file_path(name), &content);
    // What looks from outside, then the node itself, then what it has left.
    for _ in 0..2 {
        if let Ok(inspection) = inspect(&fs, Path::new(DATA_DIR)) {
            for view in &inspection.partitions {
                let _ = view.scan(&fs, |_| ControlFlow::Continue(()));
                let _ = view.digest(&fs, None, None);
            }
        }
        if let Some((data_dir, log)) = open_all(&fs) {
            let decode = |bytes: Bytes| ProducerSnapshot::decode(bytes).ok();
            let _ = log.latest_snapshot(log.end(), decode);
            for frame in log.frames(log.start()) {
                if frame.is_err() {
                    break;
                }
            }
            let _ = log.reader().offset_for_timestamp(5, log.end().offset);
            let _ = data_dir.promises().get(partition());
        }
        fs.kill();
    }
}

fn data_dir_seeds() -> Vec<Vec<u8>> {
    let fs = real_data_dir();
    let mut seeds = Vec::new();
    for (i, (name, kind)) in FILES.iter().enumerate() {
        let content = fs.contents(&file_path(name)).unwrap_or_default();
        let mut whole = vec![i as u8];
        whole.extend_from_slice(&content);
        seeds.push(whole);
        let body = match kind {
            Some(_) => content
                .iter()
                .position(|&byte| byte == b'\n')
                .map(|at| &content[at + 1..]),
            None => content.len().checked_sub(4).map(|at| &content[..at]),
        };
        let mut mended = vec![i as u8 | 0x80];
        mended.extend_from_slice(body.unwrap_or_default());
        seeds.push(mended);
    }
    seeds
}

// --- certificates and words on a command line ---

fn certificate(input: &[u8]) {
    let _ = CertificateInfo::parse(&rustls_pki_types::CertificateDer::from(input));
}

fn certificate_seeds() -> Vec<Vec<u8>> {
    let key = rcgen::KeyPair::generate().expect("randomness");
    let mut params =
        rcgen::CertificateParams::new(vec!["db1.example.com".to_owned()]).expect("a legal name");
    params.subject_alt_names.push(rcgen::SanType::URI(
        "quorate://node/1".try_into().expect("ASCII"),
    ));
    let certificate = params.self_signed(&key).expect("it can be signed");
    vec![certificate.der().to_vec()]
}

fn text(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let _ = text.parse::<Delimiter>();
    let _ = text.parse::<Format>();
    let _ = text.parse::<PeerAddress>();
    let _ = text.parse::<NodeId>();
    let _ = TopicName::new(text);
    let _ = text.parse::<Acks>();
    let _ = text.parse::<Start>();
    let _ = text.parse::<Congestion>();
    let _ = text.parse::<LinkCongestion>();
    let _ = text.parse::<ImpairmentSpec>();
    let _ = text.parse::<CertificateHost>();
    let _ = text.parse::<ClientName>();
    let _ = text.parse::<NamedListener>();
    if let Ok(name) = ListenerName::new(text) {
        assert_eq!(ListenerName::new(name.as_str()).as_ref(), Ok(&name));
    }
    if let Some(keys) = EndpointKeys::reread(input) {
        assert_eq!(EndpointKeys::reread(&keys), Some(keys));
    }
    if let Ok(duration) = parse_duration(text) {
        assert!(!text.is_empty(), "{duration:?} out of nothing");
    }
}

fn text_seeds() -> Vec<Vec<u8>> {
    [
        r"\n",
        r"\x00\\|",
        r"%t/%p@%o %K[%k] %S[%s] %T %h 100%%\n",
        "30s",
        "1h30m",
        "orders.v1",
        "12",
        "db1:9292",
        "[::1]:9292",
        "@1700000000000",
        "-17",
        "2=keel",
        "internal=sasl_tls://10.0.0.1:9094,advertise=db1:9094,client_auth=none",
        "local=plaintext://127.0.0.1:9092,plaintext_beyond_loopback",
        "loss=3%,delay=40ms,jitter=5ms,reorder=1%,duplicate=0.5%",
        r#"{"version":1,"reset_key":"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f","connection_id_key":"0001020304050607"}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
