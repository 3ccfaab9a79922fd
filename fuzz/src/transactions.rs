//! What a coordinator reads of its log of transactions.

use quorate::record::LogRecord;
use quorate::transactions::{
    Answer, ClientVersion, Coordinator, Ending, Filter, LogKey, Marked, Now, Request, Settings,
    Ticket, decode_key, reread_record,
};
use quorate::types::{LeaderEpoch, MonotonicTime, ProducerId};

use super::groups::{ABSENT, records};

const MOST_MARKERS: usize = 10_000;

fn at(seconds: u64) -> Now {
    Now {
        monotonic: MonotonicTime::from_micros(seconds * 1_000_000),
        wall_ms: 1_700_000_000_000 + 1000 * seconds as i64,
    }
}

fn coordinator() -> Coordinator {
    let epoch = LeaderEpoch::new(3).expect("not 0");
    Coordinator::new(Settings::default(), epoch)
}

fn begin(fresh: i64) -> Request {
    Request::Init {
        timeout_ms: 60_000,
        expected: None,
        fresh: ProducerId::new(fresh),
    }
}

/// Each record by itself, and then a coordinator that begins with all of them, ends what is to end, is asked about what it
/// found, and lets the time pass in which transactions grow old and ids expire. What it writes then is read again.
pub(crate) fn transactions_log(input: &[u8]) {
    let mut names = Vec::new();
    let mut coordinator = coordinator();
    for (key, value) in &records(input) {
        let found = reread_record(key, value.as_deref());
        if let Some((key, value)) = &found {
            let again = reread_record(key, value.as_deref());
            assert_eq!(again, found, "what was written is read");
            if let Ok(LogKey::Id(id)) = decode_key(key) {
                names.push(id.to_string());
            }
        }
        let taken = coordinator.replay(Some(key), value.as_deref());
        assert!(taken.is_ok() || found.is_none());
    }
    let mut now = at(0);
    coordinator.loaded(now);
    assert!(coordinator.ids() <= names.len());
    work(&mut coordinator, now);
    assert_eq!(coordinator.ending(), 0, "everybody has been told");
    let mut ticket = 0;
    let mut ask = |coordinator: &mut Coordinator, now, id: &str, request| {
        ticket += 1;
        coordinator.handle(now, Ticket(ticket), id, request);
    };
    for seconds in [1, 40, 4000, 20 * 24 * 3600] {
        now = at(seconds);
        coordinator.handle_tick(now);
        work(&mut coordinator, now);
        ask(&mut coordinator, now, "", Request::List(Filter::default()));
        for name in &names {
            ask(&mut coordinator, now, name, Request::Describe);
            ask(&mut coordinator, now, name, begin(7));
        }
        work(&mut coordinator, now);
    }
}

/// Writes whatever is to be written, each of which is a record that is read, and has each partition take its marker.
fn work(coordinator: &mut Coordinator, now: Now) {
    let mut idle = false;
    while !idle {
        idle = true;
        while let Some(records) = coordinator.take_write() {
            idle = false;
            for record in &records {
                let read = reread_record(&record.key, record.value.as_deref());
                let same = Some((record.key.clone(), record.value.clone()));
                assert_eq!(read, same, "what a coordinator writes is read");
            }
            coordinator.handle_written(now, 0, Ok(()));
        }
        for marker in coordinator.take_markers(now, MOST_MARKERS) {
            idle = false;
            coordinator.handle_marked(now, 0, marker, Marked::Written);
        }
    }
    while coordinator.poll_answer().is_some() {}
}

fn encoded(records: &[LogRecord]) -> Vec<u8> {
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

/// The log of an id that one producer commits with, another takes over, and that is forgotten.
pub(crate) fn transactions_log_seeds() -> Vec<Vec<u8>> {
    let mut coordinator = coordinator();
    coordinator.loaded(at(0));
    let mut log: Vec<LogRecord> = Vec::new();
    let mut ticket = 0;
    let mut ask = |coordinator: &mut Coordinator, now, request| {
        ticket += 1;
        coordinator.handle(now, Ticket(ticket), "id", request);
        coordinator.handle_tick(now);
        loop {
            if let Some(records) = coordinator.take_write() {
                log.extend(records);
                coordinator.handle_written(now, 0, Ok(()));
                continue;
            }
            let markers = coordinator.take_markers(now, MOST_MARKERS);
            if markers.is_empty() {
                break;
            }
            for marker in markers {
                coordinator.handle_marked(now, 0, marker, Marked::Written);
            }
        }
        coordinator.poll_answer().map(|(_, answer)| answer)
    };
    let given = ask(&mut coordinator, at(1), begin(7));
    let Some(Ok(Answer::Producer { producer, epoch })) = given else {
        panic!("no producer: {given:?}");
    };
    let add = |version| Request::AddPartitions {
        producer,
        epoch,
        version,
        partitions: vec![("orders".to_owned(), 0), ("bills".to_owned(), 3)],
    };
    let end = |version| Request::End {
        producer,
        epoch,
        ending: Ending::Commit,
        version,
        fresh: None,
    };
    ask(&mut coordinator, at(2), add(ClientVersion::V1));
    ask(&mut coordinator, at(3), end(ClientVersion::V1));
    ask(&mut coordinator, at(4), add(ClientVersion::V2));
    ask(&mut coordinator, at(4), end(ClientVersion::V2));
    // The epoch before is the last one's retry, and the next transaction has its own.
    let next = Request::AddPartitions {
        producer,
        epoch: epoch + 1,
        partitions: vec![("orders".to_owned(), 0)],
        version: ClientVersion::V2,
    };
    ask(&mut coordinator, at(4), next);
    ask(&mut coordinator, at(5), begin(8));
    ask(&mut coordinator, at(20 * 24 * 3600), Request::Describe);
    assert!(log.len() >= 8, "{log:?}");
    assert!(log.iter().any(|record| record.value.is_none()), "{log:?}");
    // What an older broker wrote.
    let mut old = vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 3, 0, 0, 0xea, 0x60, 1];
    old.extend([0, 0, 0, 1, 0, 1, b't', 0, 0, 0, 1, 0, 0, 0, 5]);
    old.extend([0; 16]);
    let old = LogRecord {
        key: log[0].key.clone(),
        value: Some(old.into()),
    };
    assert!(reread_record(&old.key, old.value.as_deref()).is_some());
    let mut seeds: Vec<Vec<u8>> = log
        .iter()
        .map(|it| encoded(std::slice::from_ref(it)))
        .collect();
    for end in 1..=log.len() {
        seeds.push(encoded(&log[..end]));
    }
    seeds.push(encoded(&[old]));
    seeds
}
