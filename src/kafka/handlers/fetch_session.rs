//! Fetch sessions (KIP-227): a client names its partitions once, then only what changes, and is told only what is new.
//!
//! A session belongs to its connection and ends with it: a client that connects anew is told so, and names its partitions
//! again. So there is nothing to evict and nobody else's session to guess; a connection has one at most, its latest. What all of them may
//! remember together is bounded: a client that asks for a session when there is no room gets none, and goes on without.

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka_protocol::messages::FetchRequest;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use super::fetch_response::{FetchAnswer, PartitionAnswer};
use crate::kafka::codec::text;
use crate::types::{ErrorCode, TopicName};

/// The epoch of a request that names all its partitions and asks for a session.
const INITIAL_EPOCH: i32 = 0;
/// The epoch of a request that wants no session.
const FINAL_EPOCH: i32 = -1;
/// Partitions of one session. A client with more gets none.
const MAX_PARTITIONS: usize = 10_000;

/// What a connection's client need not say again.
pub(in crate::kafka) struct Session {
    id: i32,
    next_epoch: i32,
    by_id: bool,
    topics: BTreeMap<(String, Uuid), BTreeMap<i32, Remembered>>,
    /// One for each partition.
    room: OwnedSemaphorePermit,
}

struct Remembered {
    asked: FetchPartition,
    /// High watermark, last stable offset and log start, as they were told last.
    told: Option<(i64, i64, i64)>,
}

/// What a fetch is to its session.
pub(super) enum Turn {
    /// It has none.
    Alone,
    /// It begins one.
    First,
    /// It goes on with this one.
    Next(Session),
}

impl Turn {
    /// Finds out what a request is, and completes one that goes on with a session by what it leaves unsaid. `current` is the
    /// connection's session, which is taken where the request ends it or goes on with it.
    pub(super) fn begin(
        current: &mut Option<Session>,
        request: &mut FetchRequest,
        by_id: bool,
    ) -> Result<Turn, ErrorCode> {
        let names_it = |session: &Session| session.id == request.session_id;
        match request.session_epoch {
            FINAL_EPOCH => {
                current.take_if(|session| names_it(session));
                return Ok(Turn::Alone);
            }
            INITIAL_EPOCH => {
                *current = None;
                return Ok(Turn::First);
            }
            _ => {}
        }
        let Some(session) = current.as_ref().filter(|session| names_it(session)) else {
            return Err(ErrorCode::FetchSessionIdNotFound);
        };
        if session.next_epoch != request.session_epoch {
            return Err(ErrorCode::InvalidFetchSessionEpoch);
        }
        if session.by_id != by_id {
            return Err(ErrorCode::FetchSessionTopicIdError);
        }
        let Some(mut session) = current.take() else {
            return Err(ErrorCode::FetchSessionIdNotFound);
        };
        session.next_epoch = session.next_epoch.checked_add(1).unwrap_or(1);
        session.forget(request);
        session.remember(std::mem::take(&mut request.topics))?;
        request.topics = session.topics();
        Ok(Turn::Next(session))
    }

    /// Ends a fetch: begins the session that it asked for, or leaves out of the answer what its client knows. Returns what is
    /// the connection's session from here on, where it has changed.
    pub(super) fn end(
        self,
        answer: &mut FetchAnswer,
        topics: Vec<FetchTopic>,
        by_id: bool,
        room: &Arc<Semaphore>,
    ) -> Option<Session> {
        let mut session = match self {
            Turn::Alone => return None,
            Turn::First => Session::new(topics, by_id, room)?,
            Turn::Next(mut session) => {
                session.leave_out_known(answer);
                answer.session_id = session.id;
                return Some(session);
            }
        };
        answer.session_id = session.id;
        session.note_told(answer);
        Some(session)
    }
}

impl Session {
    /// `None` where there is no room for it.
    fn new(topics: Vec<FetchTopic>, by_id: bool, room: &Arc<Semaphore>) -> Option<Session> {
        let nothing = Arc::clone(room).try_acquire_many_owned(0).ok()?;
        let mut session = Session {
            id: rand::random_range(1..=i32::MAX),
            next_epoch: 1,
            by_id,
            topics: BTreeMap::new(),
            room: nothing,
        };
        session.remember(topics).ok()?;
        Some(session)
    }

    fn forget(&mut self, request: &FetchRequest) {
        for gone in &request.forgotten_topics_data {
            let key = key(&gone.topic, gone.topic_id, self.by_id);
            if let Some(partitions) = self.topics.get_mut(&key) {
                for index in &gone.partitions {
                    partitions.remove(index);
                }
                if partitions.is_empty() {
                    self.topics.remove(&key);
                }
            }
        }
        let surplus = self.room.num_permits().saturating_sub(self.count());
        drop(self.room.split(surplus));
    }

    /// Adds partitions, or changes what is asked of them. Where there is no room for them the session ends: its client then asks
    /// for a new one, with all it wants, and may get none.
    fn remember(&mut self, topics: Vec<FetchTopic>) -> Result<(), ErrorCode> {
        for topic in topics {
            // What is bounded is the number of partitions: nothing else may be kept, and no name that no topic has.
            if topic.partitions.is_empty() {
                continue;
            }
            if topic.topic.len() > TopicName::MAX_LENGTH {
                return Err(ErrorCode::FetchSessionIdNotFound);
            }
            let key = key(&topic.topic, topic.topic_id, self.by_id);
            let known = self.topics.entry(key).or_default();
            for mut asked in topic.partitions {
                asked.unknown_tagged_fields.clear();
                let told = known.get(&asked.partition).and_then(|known| known.told);
                known.insert(asked.partition, Remembered { asked, told });
            }
        }
        let count = self.count();
        let missing = count.saturating_sub(self.room.num_permits());
        let missing = u32::try_from(missing).unwrap_or(u32::MAX);
        let room = Arc::clone(self.room.semaphore()).try_acquire_many_owned(missing);
        match room {
            Ok(room) if count <= MAX_PARTITIONS => {
                self.room.merge(room);
                Ok(())
            }
            _ => Err(ErrorCode::FetchSessionIdNotFound),
        }
    }

    fn count(&self) -> usize {
        self.topics.values().map(BTreeMap::len).sum()
    }

    fn topics(&self) -> Vec<FetchTopic> {
        let topics = self.topics.iter().map(|((name, id), partitions)| {
            FetchTopic::default()
                .with_topic(text(name.as_str()).into())
                .with_topic_id(*id)
                .with_partitions(
                    partitions
                        .values()
                        .map(|known| known.asked.clone())
                        .collect(),
                )
        });
        topics.collect()
    }

    fn leave_out_known(&mut self, answer: &mut FetchAnswer) {
        for topic in &mut answer.topics {
            let known = self.topics.get_mut(&key(&topic.name, topic.id, self.by_id));
            let Some(known) = known else { continue };
            topic.partitions.retain(|partition| {
                let Some(known) = known.get_mut(&partition.index) else {
                    return true;
                };
                if partition.error.is_some() {
                    // It is said again until it is no longer so.
                    known.told = None;
                    return true;
                }
                // One that no pass has reached says nothing, and nothing is known of it.
                let is_news =
                    partition.high_watermark >= 0 && known.told != Some(bounds(partition));
                if is_news {
                    known.told = Some(bounds(partition));
                }
                is_news || !partition.records.is_empty()
            });
        }
        answer.topics.retain(|topic| !topic.partitions.is_empty());
    }

    fn note_told(&mut self, answer: &FetchAnswer) {
        for topic in &answer.topics {
            let known = self.topics.get_mut(&key(&topic.name, topic.id, self.by_id));
            let Some(known) = known else { continue };
            for partition in topic.partitions.iter().filter(|told| told.error.is_none()) {
                if let Some(known) = known.get_mut(&partition.index) {
                    known.told = Some(bounds(partition));
                }
            }
        }
    }
}

fn bounds(partition: &PartitionAnswer) -> (i64, i64, i64) {
    (
        partition.high_watermark,
        partition.last_stable_offset,
        partition.log_start_offset,
    )
}

/// A session is of topics by name or of topics by id; the other is not looked at.
fn key(name: &str, id: Uuid, by_id: bool) -> (String, Uuid) {
    if by_id {
        (String::new(), id)
    } else {
        (name.to_owned(), Uuid::nil())
    }
}
