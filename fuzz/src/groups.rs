//! What a coordinator reads of its log, and what consumers tell each other through their group.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quorate::groups::{
    Answer, Assignment, CommitOffset, ConsumerHeartbeat, Coordinator, EndTransaction, Join,
    LeavingMember, ListFilter, Now, OffsetCommit, OffsetsVerification, Partitions, Request,
    Settings, Subscription, Sync, Ticket, TopicShape, Topics, TransactionCommit, Who,
    decode_assignment, decode_subscription, encode_assignment, encode_subscription, reread_record,
};
use quorate::record::LogRecord;
use quorate::types::{MonotonicTime, ProducerId, TopicId};

// --- the log ---

/// The length of a value that is absent.
pub(crate) const ABSENT: u16 = u16::MAX;

/// Records: length of the key (1), key, length of the value (2, big-endian; [`ABSENT`]), value.
pub(crate) fn records(mut input: &[u8]) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let mut records = Vec::new();
    let mut next = || {
        let (length, rest) = input.split_first()?;
        let (key, rest) = rest.split_at_checked(usize::from(*length))?;
        let (length, rest) = rest.split_first_chunk::<2>()?;
        let length = u16::from_be_bytes(*length);
        let (value, rest) = match length {
            ABSENT => (None, rest),
            // The last one is as long as there are bytes, so that a cut does not take it away.
            length => {
                let (value, rest) = rest.split_at(usize::from(length).min(rest.len()));
                (Some(value.to_vec()), rest)
            }
        };
        input = rest;
        Some((key.to_vec(), value))
    };
    while let Some(record) = next() {
        records.push(record);
    }
    records
}

fn written(records: &[LogRecord]) -> Vec<u8> {
    let mut out = Vec::new();
    for record in records {
        out.push(u8::try_from(record.key.len()).expect("short keys"));
        out.extend_from_slice(&record.key);
        match &record.value {
            Some(value) => {
                let length = u16::try_from(value.len()).expect("short values");
                out.extend_from_slice(&length.to_be_bytes());
                out.extend_from_slice(value);
            }
            None => out.extend_from_slice(&ABSENT.to_be_bytes()),
        }
    }
    out
}

fn at(seconds: u64) -> Now {
    Now {
        monotonic: MonotonicTime::from_micros(seconds * 1_000_000),
        wall_ms: 1_700_000_000_000 + 1000 * seconds as i64,
    }
}

/// Each record by itself, and then a coordinator that begins with all of them, is asked about what it found, and lets
/// the time pass in which members are missed and offsets grow old. What it writes then is read again.
pub(crate) fn groups_log(input: &[u8]) {
    let records = records(input);
    let mut names = Vec::new();
    let mut coordinator = Coordinator::new(Settings::default());
    for (key, value) in &records {
        let found = reread_record(key, value.as_deref());
        if let Some((key, value)) = &found {
            let again = reread_record(key, value.as_deref());
            assert_eq!(again, found, "what was written is read");
            if let Ok(
                quorate::groups::LogKey::Offset { group, .. }
                | quorate::groups::LogKey::Group { group }
                | quorate::groups::LogKey::Pending { group, .. },
            ) = quorate::groups::decode_key(key)
            {
                names.push(group.to_string());
            }
            if let Ok(quorate::groups::LogKey::Consumer(key)) = quorate::groups::decode_key(key) {
                names.push(key.group().to_string());
            }
        }
        let taken = coordinator.replay(Some(key), value.as_deref());
        assert!(taken.is_ok() || found.is_none());
    }
    let mut now = at(0);
    coordinator.loaded(now);
    coordinator.handle_topics(Arc::new(AnyTopic));
    assert!(coordinator.groups() <= names.len());
    let mut ticket = 0;
    let mut ask = |coordinator: &mut Coordinator, now, group: &str, request| {
        ticket += 1;
        coordinator.handle(now, Ticket(ticket), group, request);
    };
    for seconds in [1, 40, 4000, 20 * 24 * 3600] {
        now = at(seconds);
        coordinator.handle_tick(now);
        write_all(&mut coordinator, now);
        ask(
            &mut coordinator,
            now,
            "",
            Request::List(ListFilter::default()),
        );
        for name in &names {
            ask(&mut coordinator, now, name, Request::Describe);
            let offsets = Request::FetchOffsets {
                wanted: None,
                asker: None,
            };
            ask(&mut coordinator, now, name, offsets);
            ask(&mut coordinator, now, name, Request::DescribeConsumers);
            ask(&mut coordinator, now, name, beat("m", 0));
            ask(&mut coordinator, now, name, join("", now));
        }
        write_all(&mut coordinator, now);
    }
    for name in &names {
        ask(&mut coordinator, now, name, Request::Delete);
    }
    write_all(&mut coordinator, now);
}

/// A member of a group of the newer protocol joins, or leaves by −1.
fn beat(member: &str, epoch: i32) -> Request {
    Request::ConsumerHeartbeat(ConsumerHeartbeat {
        who: Who {
            member: member.to_owned(),
            instance: None,
        },
        epoch,
        client_id: "client".to_owned(),
        client_host: "/127.0.0.1".to_owned(),
        rack: Some("rack".to_owned()),
        rebalance: Some(Duration::from_secs(30)),
        names: Some(vec!["orders".to_owned()]),
        pattern: Some("pay.*".to_owned()),
        assignor: Some("range".to_owned()),
        owned: Some(Partitions::default()),
        random: 1,
    })
}

/// Every topic there may be, with four partitions.
#[derive(Debug)]
struct AnyTopic;

impl Topics for AnyTopic {
    fn topic(&self, name: &str) -> Option<TopicShape> {
        let id = name.bytes().fold(1, |id, byte| id << 4 ^ u128::from(byte));
        Some(TopicShape {
            id: TopicId::from_random_bits(id),
            partitions: 4,
        })
    }

    fn each(&self, _see: &mut dyn FnMut(&str, TopicShape)) {}
}

/// Writes whatever is to be written; each of it is a record that is read.
fn write_all(coordinator: &mut Coordinator, now: Now) {
    while let Some(records) = coordinator.take_write(now) {
        for record in &records {
            let value = record.value.as_deref();
            let read = reread_record(&record.key, value);
            let same = Some((record.key.clone(), record.value.clone()));
            assert_eq!(read, same, "what a coordinator writes is read");
        }
        coordinator.handle_written(now, Ok(()));
    }
    while coordinator.poll_answer().is_some() {}
}

fn join(member: &str, now: Now) -> Request {
    Request::Join(Join {
        who: Who {
            member: member.to_owned(),
            instance: None,
        },
        client_id: "me".to_owned(),
        client_host: "/127.0.0.1".to_owned(),
        session: Duration::from_secs(10),
        rebalance: Duration::from_secs(60),
        protocol_type: "consumer".to_owned(),
        protocols: vec![("range".to_owned(), encode_subscription(&subscription()))],
        takes_id_first: false,
        can_skip_assignment: true,
        random: u128::from(now.monotonic.as_micros()),
    })
}

/// The log of a group that two consumers make, in which they commit and which one of them leaves.
pub(crate) fn groups_log_seeds() -> Vec<Vec<u8>> {
    let mut coordinator = Coordinator::new(Settings::default());
    coordinator.loaded(at(0));
    let mut log: Vec<LogRecord> = Vec::new();
    let mut ticket = 0;
    let mut ask = |coordinator: &mut Coordinator, now, request| -> Vec<Answer> {
        ticket += 1;
        coordinator.handle(now, Ticket(ticket), "g", request);
        let mut answers = Vec::new();
        // Long enough for a group to be complete, and too short for a member to be missed.
        for now in [
            now,
            Now {
                monotonic: now.monotonic + Duration::from_secs(2),
                ..now
            },
        ] {
            coordinator.handle_tick(now);
            while let Some(records) = coordinator.take_write(now) {
                log.extend(records);
                coordinator.handle_written(now, Ok(()));
            }
            while let Some((_, answer)) = coordinator.poll_answer() {
                answers.extend(answer);
            }
        }
        answers
    };
    let answers = ask(&mut coordinator, at(1), join("", at(1)));
    let Some(Answer::Joined(joined)) = answers.first() else {
        panic!("not joined: {answers:?}");
    };
    let who = || Who {
        member: joined.member.to_string(),
        instance: None,
    };
    let assignment = encode_assignment(&assignment());
    let sync = Sync {
        who: who(),
        generation: joined.generation,
        protocol_type: None,
        protocol: None,
        assignments: vec![(joined.member.to_string(), assignment)],
    };
    ask(&mut coordinator, at(4), Request::Sync(sync));
    let commit = |partition, offset| CommitOffset {
        topic: "orders".to_owned(),
        partition,
        offset,
        leader_epoch: 3,
        metadata: "so far".to_owned(),
        refused: None,
    };
    let plain = OffsetCommit {
        who: who(),
        generation: joined.generation,
        offsets: vec![commit(0, 17), commit(1, 4)],
    };
    ask(&mut coordinator, at(7), Request::Commit(plain));
    // The same in a transaction that commits, and in one that is still open.
    let producer = ProducerId::new(7).expect("not negative");
    for (seconds, epoch) in [(8, 0), (9, 1)] {
        let verify = Request::VerifyOffsets {
            producer,
            producer_epoch: epoch,
        };
        let answers = ask(&mut coordinator, at(seconds), verify);
        let Some(Answer::Verification(OffsetsVerification::Needed(guard))) = answers.first() else {
            panic!("no guard: {answers:?}");
        };
        let commit = TransactionCommit {
            producer,
            producer_epoch: epoch,
            who: who(),
            generation: joined.generation,
            guard: Some(*guard),
            offsets: vec![commit(0, 18), commit(1, 5)],
        };
        ask(
            &mut coordinator,
            at(seconds),
            Request::CommitInTransaction(commit),
        );
        if epoch == 0 {
            let end = EndTransaction {
                producer,
                producer_epoch: epoch,
                coordinator_epoch: 3,
                is_commit: true,
            };
            ask(&mut coordinator, at(seconds), Request::EndTransaction(end));
        }
    }
    let leaving = LeavingMember { who: who() };
    ask(&mut coordinator, at(10), Request::Leave(vec![leaving]));
    ask(
        &mut coordinator,
        at(13),
        Request::DeleteOffsets(vec![("orders".to_owned(), 1)]),
    );
    let end = EndTransaction {
        producer,
        producer_epoch: 1,
        coordinator_epoch: 3,
        is_commit: false,
    };
    ask(&mut coordinator, at(15), Request::EndTransaction(end));
    ask(&mut coordinator, at(16), Request::Delete);
    // The same name, for a group of the newer protocol, which one of two members leaves.
    coordinator.handle_topics(Arc::new(AnyTopic));
    for (seconds, member, epoch) in [(17, "m", 0), (20, "n", 0), (23, "m", -1)] {
        ask(&mut coordinator, at(seconds), beat(member, epoch));
    }
    let is_newer = |record: &&LogRecord| matches!(record.key.get(..2), Some([3, 0xea..=0xed]));
    assert!(log.iter().filter(is_newer).count() >= 12, "{log:?}");
    assert!(log.len() >= 12, "{log:?}");
    assert!(log.iter().any(|record| record.value.is_none()), "{log:?}");
    // What an older broker wrote: an offset without an epoch, with an expiry time; a group of version 0.
    let key = |tail: &[u8]| [&[0, 1, 0, 1, b'g', 0, 1, b't'], tail].concat();
    let mut old_offset = vec![0, 1];
    old_offset.extend([0, 0, 0, 0, 0, 0, 0, 5, 0, 1, b'm']);
    old_offset.extend([0; 16]);
    let mut old_group = vec![0, 0, 0, 8];
    old_group
        .extend_from_slice(b"consumer\0\0\0\x02\0\x01r\0\x01a\0\0\0\x01\0\x01a\0\x01c\0\x02/h");
    old_group.extend([0, 0, 0x1b, 0x58, 0, 0, 0, 1, 1, 0, 0, 0, 1, 2]);
    let old = [
        LogRecord {
            key: key(&[0, 0, 0, 7]).into(),
            value: Some(old_offset.into()),
        },
        LogRecord {
            key: vec![0, 2, 0, 1, b'g'].into(),
            value: Some(old_group.into()),
        },
    ];
    for record in log.iter().chain(&old) {
        let read = reread_record(&record.key, record.value.as_deref());
        assert!(read.is_some(), "{record:?}");
    }
    let mut seeds: Vec<Vec<u8>> = log
        .iter()
        .map(|it| written(std::slice::from_ref(it)))
        .collect();
    for end in 1..=log.len() {
        seeds.push(written(&log[..end]));
    }
    seeds.push(written(&old));
    seeds
}

// --- the protocol of consumers ---

fn subscription() -> Subscription {
    Subscription {
        topics: vec!["orders".into(), "payments".into()],
        owned: BTreeMap::from([("orders".into(), vec![0, 2]), ("payments".into(), vec![1])]),
        generation: 3,
    }
}

fn assignment() -> Assignment {
    Assignment {
        partitions: subscription().owned,
    }
}

pub(crate) fn consumer_protocol(input: &[u8]) {
    if let Ok(subscription) = decode_subscription(input) {
        // A topic takes two bytes at least, and a partition four.
        assert!(subscription.topics.len() * 2 <= input.len());
        let owned: usize = subscription.owned.values().map(Vec::len).sum();
        assert!(owned * 4 <= input.len());
        let again = decode_subscription(&encode_subscription(&subscription));
        assert_eq!(again, Ok(subscription));
    }
    if let Ok(assignment) = decode_assignment(input) {
        let again = decode_assignment(&encode_assignment(&assignment));
        assert_eq!(again, Ok(assignment));
    }
}

pub(crate) fn consumer_protocol_seeds() -> Vec<Vec<u8>> {
    vec![
        encode_subscription(&subscription()).to_vec(),
        encode_subscription(&Subscription::default()).to_vec(),
        encode_assignment(&assignment()).to_vec(),
        encode_assignment(&Assignment::default()).to_vec(),
        // Version 0, and a version that is yet to come.
        vec![0, 0, 0, 0, 0, 1, 0, 1, b'a', 0xff, 0xff, 0xff, 0xff],
        [
            &[0, 9],
            &encode_subscription(&subscription())[2..],
            &[0, 1, b'r'],
        ]
        .concat(),
    ]
}
