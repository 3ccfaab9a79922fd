//! The transactional ids of one partition of the internal topic.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::effects::{Effects, Then, Ticket, Write};
use super::limits::{
    BATCH_BYTES, MAX_IDS, MAX_PARTITIONS, MAX_STATE_BYTES, MAX_TRANSACTIONAL_ID_BYTES, Settings,
};
use super::log_format::{FormatError, LogKey, decode_key, decode_value, key, value};
use super::markers::{Marked, Marker, Markers, Waiting, pause};
use super::partitions::Partitions;
use super::request::{Answer, Description, Filter, Listing, Now, Request};
use super::state::State;
use super::transaction::{Details, Judged, NO_EPOCH, NO_PRODUCER, Transaction};
use super::version::ClientVersion;
use crate::record::LogRecord;
use crate::types::{ErrorCode, LeaderEpoch, MonotonicTime, ProducerId};

/// Looks after the transactional ids of one partition of the internal topic, for as long as this node leads that partition in
/// one leader epoch.
///
/// First everything that the partition holds goes through [`Coordinator::replay`], then [`Coordinator::loaded`] begins the
/// work. The caller writes what [`Coordinator::take_write`] gives, one batch at a time and in order, and says through
/// [`Coordinator::handle_written`] what came of it. When it cannot be told whether a batch was written, the caller throws
/// this away and begins anew from the log. Markers go out by [`Coordinator::take_markers`]; for each the caller says once,
/// through [`Coordinator::handle_marked`], what came of it.
#[derive(Debug)]
pub struct Coordinator {
    settings: Settings,
    epoch: LeaderEpoch,
    transactions: BTreeMap<Arc<str>, Transaction>,
    effects: Effects,
    /// What follows from the batch that is out.
    out: Vec<(Arc<str>, Then)>,
    markers: Markers,
    /// The alarm of each transaction that has one.
    alarms: BTreeSet<(MonotonicTime, Arc<str>)>,
    /// What the ids count for; see [`MAX_STATE_BYTES`].
    bytes: usize,
    expired_at: MonotonicTime,
    is_fenced: bool,
}

impl Coordinator {
    /// One that leads in `epoch`.
    pub fn new(settings: Settings, epoch: LeaderEpoch) -> Coordinator {
        Coordinator {
            settings,
            epoch,
            transactions: BTreeMap::new(),
            effects: Effects::default(),
            out: Vec::new(),
            markers: Markers::default(),
            alarms: BTreeSet::new(),
            bytes: 0,
            expired_at: MonotonicTime::ZERO,
            is_fenced: false,
        }
    }

    /// One record of the partition, in order. An error means that this coordinator cannot do its work: what is known of the
    /// record's id is out of date, and to act on it could abort what is committed.
    pub fn replay(
        &mut self,
        record_key: Option<&[u8]>,
        record: Option<&[u8]>,
    ) -> Result<(), FormatError> {
        let Some(record_key) = record_key else {
            return Ok(());
        };
        if let LogKey::Id(id) = decode_key(record_key)? {
            match record.map(decode_value).transpose()? {
                Some(details) => {
                    let transaction = Transaction::new(id.clone(), details);
                    self.transactions.insert(id, transaction);
                }
                None => {
                    self.transactions.remove(&id);
                }
            }
        }
        Ok(())
    }

    /// The whole partition was replayed: what was decided is carried out from here on.
    pub fn loaded(&mut self, now: Now) {
        self.bytes = self.transactions.values().map(Transaction::bytes).sum();
        self.expired_at = now.monotonic;
        let ids: Vec<Arc<str>> = self.transactions.keys().cloned().collect();
        for id in ids {
            self.enter(now, &id);
        }
    }

    /// How many ids there are.
    pub fn ids(&self) -> usize {
        self.transactions.len()
    }

    /// How many transactions end and have still to tell partitions of it.
    pub fn ending(&self) -> usize {
        self.transactions
            .values()
            .filter(|transaction| transaction.details.state.ending().is_some())
            .count()
    }

    /// Whether a later coordinator is at work: then this one knows less than the log, and must go.
    pub fn is_fenced(&self) -> bool {
        self.is_fenced
    }

    /// Answers through [`Coordinator::poll_answer`], now or later.
    pub fn handle(&mut self, now: Now, ticket: Ticket, id: &str, request: Request) {
        if let Request::List(filter) = &request {
            let listed = self.list(now, filter);
            self.effects.answer(ticket, Answer::Listed(listed));
            return;
        }
        if id.is_empty() || id.len() > MAX_TRANSACTIONAL_ID_BYTES {
            self.effects.refuse(ticket, ErrorCode::InvalidRequest);
            return;
        }
        let judged = match request {
            Request::Init {
                timeout_ms,
                expected,
                fresh,
            } => {
                let judged = self.init(now, id, timeout_ms, expected, fresh);
                judged.map(|judged| (judged, None))
            }
            Request::AddPartitions {
                producer,
                epoch,
                partitions,
                version,
            } => self
                .add(now, id, (producer, epoch), &partitions, version)
                .map(|judged| (judged, Some(Answer::Done))),
            Request::Verify {
                producer,
                epoch,
                partitions,
            } => {
                let verified = self
                    .known(id)
                    .and_then(|known| known.verify(producer.get(), epoch, &partitions));
                verified.map(|verified| (Judged::Done, Some(Answer::Verified(verified))))
            }
            Request::End {
                producer,
                epoch,
                ending,
                version: ClientVersion::V1,
                ..
            } => self
                .known(id)
                .and_then(|known| known.end(producer.get(), epoch, ending, now.wall_ms))
                .map(|judged| (judged, Some(Answer::Done))),
            Request::End {
                producer,
                epoch,
                ending,
                version: ClientVersion::V2,
                fresh,
            } => {
                let (who, fresh) = ((producer.get(), epoch), fresh.map(ProducerId::get));
                self.known(id)
                    .and_then(|known| known.end_and_bump(who, ending, fresh, now.wall_ms))
                    .map(|judged| (judged, None))
            }
            Request::Describe => match self.transactions.get(id).and_then(describe) {
                Some(found) => Ok((Judged::Done, Some(Answer::Described(found)))),
                None => Err(ErrorCode::TransactionalIdNotFound),
            },
            // Answered above.
            Request::List(_) => return,
        };
        match judged {
            Err(error) => self.effects.refuse(ticket, error),
            Ok((Judged::NeedsProducerId, _)) => {
                self.effects.answer(ticket, Answer::NeedsProducerId);
            }
            Ok((Judged::AbortFirst, _)) => {
                // Answered once the abort is certain, so that a producer that asks again at once does not ask in vain.
                let reply = Err(ErrorCode::ConcurrentTransactions);
                self.fence(now, id, Some((ticket, reply)));
            }
            Ok((Judged::Done, answer)) => {
                self.effects.answer(ticket, answer.unwrap_or(Answer::Done));
            }
            Ok((Judged::Write(details), answer)) => {
                let answer = answer.or_else(|| {
                    let (producer, epoch) = details.holder();
                    let producer = ProducerId::new(producer)?;
                    Some(Answer::Producer { producer, epoch })
                });
                let reply = answer.ok_or(ErrorCode::UnknownServerError);
                self.write(id, Some(details), Some((ticket, reply)));
            }
        }
    }

    /// An id that a producer has begun with.
    fn known(&self, id: &str) -> Result<&Transaction, ErrorCode> {
        self.transactions
            .get(id)
            .ok_or(ErrorCode::InvalidProducerIdMapping)
    }

    fn has_room(&self) -> bool {
        self.bytes < MAX_STATE_BYTES
    }

    fn init(
        &mut self,
        now: Now,
        id: &str,
        timeout_ms: i32,
        expected: Option<(ProducerId, i16)>,
        fresh: Option<ProducerId>,
    ) -> Result<Judged, ErrorCode> {
        let timeout = u64::try_from(timeout_ms).unwrap_or_default();
        if timeout == 0 || Duration::from_millis(timeout) > self.settings.max_timeout {
            return Err(ErrorCode::InvalidTransactionTimeout);
        }
        if !self.transactions.contains_key(id) {
            let Some(fresh) = fresh else {
                return Ok(Judged::NeedsProducerId);
            };
            if self.transactions.len() >= MAX_IDS || !self.has_room() {
                return Err(ErrorCode::PolicyViolation);
            }
            let id: Arc<str> = id.into();
            let details = Details {
                producer: fresh.get(),
                previous_producer: NO_PRODUCER,
                next_producer: NO_PRODUCER,
                epoch: NO_EPOCH,
                last_epoch: NO_EPOCH,
                version: ClientVersion::V1,
                timeout_ms,
                state: State::Empty,
                partitions: Partitions::default(),
                started_ms: -1,
                changed_ms: now.wall_ms,
            };
            let transaction = Transaction::new(id.clone(), details);
            self.bytes += transaction.bytes();
            self.transactions.insert(id, transaction);
        }
        let expected = expected.map(|(producer, epoch)| (producer.get(), epoch));
        let fresh = fresh.map(ProducerId::get);
        self.known(id)?
            .init(timeout_ms, expected, fresh, now.wall_ms)
    }

    fn add(
        &self,
        now: Now,
        id: &str,
        (producer, epoch): (ProducerId, i16),
        partitions: &[(String, i32)],
        version: ClientVersion,
    ) -> Result<Judged, ErrorCode> {
        let known = self.known(id)?;
        if partitions.len() > MAX_PARTITIONS {
            return Err(ErrorCode::PolicyViolation);
        }
        let who = (producer.get(), epoch);
        let judged = known.add(who, partitions, version, now.wall_ms)?;
        if let Judged::Write(details) = &judged {
            let is_more = details.partitions.len() > known.details.partitions.len();
            let is_too_much = details.partitions.len() > MAX_PARTITIONS || !self.has_room();
            if is_more && is_too_much {
                return Err(ErrorCode::PolicyViolation);
            }
        }
        Ok(judged)
    }

    fn list(&self, now: Now, filter: &Filter) -> Vec<Listing> {
        let fits = |transaction: &&Transaction| {
            let details = &transaction.details;
            let running_ms = match details.state.is_at_rest() {
                true => None,
                false => Some(now.wall_ms.saturating_sub(details.started_ms)),
            };
            details.epoch != NO_EPOCH
                && filter
                    .states
                    .as_ref()
                    .is_none_or(|states| states.contains(&details.state))
                && filter
                    .producers
                    .as_ref()
                    .is_none_or(|producers| producers.contains(&details.producer))
                && filter
                    .running_for_ms
                    .is_none_or(|least| running_ms.is_some_and(|running| running >= least))
        };
        let listed = |transaction: &Transaction| {
            Some(Listing {
                id: transaction.id.clone(),
                producer: ProducerId::new(transaction.details.producer)?,
                state: transaction.details.state,
            })
        };
        self.transactions
            .values()
            .filter(fits)
            .filter_map(listed)
            .collect()
    }

    /// Begins the end of an ongoing transaction by an abort under the next producer epoch.
    fn fence(&mut self, now: Now, id: &str, reply: Option<(Ticket, Result<Answer, ErrorCode>)>) {
        if let Some(transaction) = self.transactions.get(id) {
            let details = transaction.fenced(now.wall_ms);
            self.write(id, Some(details), reply);
        }
    }

    /// Writes what an id comes to; `None` removes it. Nothing else is under way for it.
    fn write(
        &mut self,
        id: &str,
        details: Option<Details>,
        reply: Option<(Ticket, Result<Answer, ErrorCode>)>,
    ) {
        let Some(transaction) = self.transactions.get_mut(id) else {
            return;
        };
        transaction.pending = Some(details.as_ref().map_or(State::Dead, |next| next.state));
        self.effects.writes.push_back(Write {
            id: transaction.id.clone(),
            record: LogRecord {
                key: key(id),
                value: details.as_ref().map(value),
            },
            then: Then { details, reply },
        });
    }

    /// Begins what the state of an id asks for, once that is certain.
    fn enter(&mut self, now: Now, id: &str) {
        let Some(transaction) = self.transactions.get_mut(id) else {
            return;
        };
        let details = &transaction.details;
        let mut alarm = None;
        match details.state {
            State::Ongoing => {
                // By the clock that is written down, because a transaction's time begins with the transaction and not with its
                // coordinator. A clock that was set back gives it no more than its time over again.
                let ran_ms = now.wall_ms.saturating_sub(details.started_ms).max(0);
                let left_ms = i64::from(details.timeout_ms).saturating_sub(ran_ms);
                let left = Duration::from_millis(u64::try_from(left_ms).unwrap_or_default());
                // One that goes on keeps the time that it was given when it began.
                alarm = Some(transaction.alarm.unwrap_or(now.monotonic + left));
            }
            State::PrepareCommit | State::PrepareAbort => {
                let all = details.partitions.iter();
                transaction.unmarked = all.map(|(topic, number)| (topic.clone(), number)).collect();
                for (topic, partition) in &transaction.unmarked {
                    self.markers.push(Waiting {
                        id: transaction.id.clone(),
                        topic: topic.clone(),
                        partition: *partition,
                        attempts: 0,
                    });
                }
            }
            _ => transaction.unmarked.clear(),
        }
        self.set_alarm(id, alarm);
        self.complete_if_marked(now, id);
    }

    fn set_alarm(&mut self, id: &str, at: Option<MonotonicTime>) {
        let Some(transaction) = self.transactions.get_mut(id) else {
            return;
        };
        if let Some(before) = transaction.alarm.take() {
            self.alarms.remove(&(before, transaction.id.clone()));
        }
        if let Some(at) = at {
            transaction.alarm = Some(at);
            self.alarms.insert((at, transaction.id.clone()));
        }
    }

    /// Writes that a transaction is complete, once all its partitions have their markers.
    fn complete_if_marked(&mut self, now: Now, id: &str) {
        let Some(transaction) = self.transactions.get(id) else {
            return;
        };
        if let Some(ending) = transaction.details.state.ending()
            && transaction.unmarked.is_empty()
            && transaction.pending.is_none()
        {
            let details = transaction.complete(ending, now.wall_ms);
            self.write(id, Some(details), None);
        }
    }

    /// Time has passed; to be called every 100 ms or so. `random` is any number.
    pub fn handle_tick(&mut self, now: Now) {
        while let Some((at, id)) = self.alarms.first().cloned()
            && at <= now.monotonic
        {
            self.set_alarm(&id, None);
            let Some(transaction) = self.transactions.get(&id) else {
                continue;
            };
            if transaction.pending.is_some() {
                // What is being written may go on with the transaction: it is looked at again when that is certain.
                self.set_alarm(&id, Some(now.monotonic + super::limits::MAX_PAUSE));
            } else if transaction.details.state == State::Ongoing {
                self.fence(now, &id, None);
            } else {
                self.complete_if_marked(now, &id);
            }
        }
        if now.monotonic.since(self.expired_at) >= self.settings.expire_every {
            self.expired_at = now.monotonic;
            self.expire(now);
        }
    }

    /// Removes ids that nobody has used for long.
    fn expire(&mut self, now: Now) {
        let kept_ms = i64::try_from(self.settings.expiration.as_millis()).unwrap_or(i64::MAX);
        let is_expired = |transaction: &&Transaction| {
            let details = &transaction.details;
            transaction.pending.is_none()
                && details.state.is_at_rest()
                && now.wall_ms.saturating_sub(details.changed_ms) >= kept_ms
        };
        let expired: Vec<Arc<str>> = self
            .transactions
            .values()
            .filter(is_expired)
            .map(|transaction| transaction.id.clone())
            .collect();
        for id in expired {
            self.write(&id, None, None);
        }
    }

    /// Markers to send now, `most` at most. Each is out until [`Coordinator::handle_marked`].
    pub fn take_markers(&mut self, now: Now, most: usize) -> Vec<Marker> {
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(waiting) = self.markers.pop(now.monotonic)
        {
            let Some(transaction) = self.transactions.get(&waiting.id) else {
                continue;
            };
            let details = &transaction.details;
            let (Some(ending), Some(producer)) =
                (details.state.ending(), ProducerId::new(details.producer))
            else {
                continue;
            };
            taken.push(Marker {
                id: waiting.id,
                topic: waiting.topic,
                partition: waiting.partition,
                producer,
                producer_epoch: details.epoch,
                ending,
                coordinator_epoch: self.epoch.to_wire(),
                attempts: waiting.attempts,
            });
        }
        taken
    }

    /// How many markers wait for their turn or for the time at which they are tried again.
    pub fn markers_waiting(&self) -> usize {
        self.markers.len()
    }

    /// What came of a marker that was taken. `random` is any number.
    pub fn handle_marked(&mut self, now: Now, random: u64, marker: Marker, marked: Marked) {
        let Some(transaction) = self.transactions.get_mut(&marker.id) else {
            return;
        };
        // A transaction ends once all of this is over, so it is the same one as when the marker was taken.
        debug_assert!(transaction.details.state.ending() == Some(marker.ending));
        match marked {
            Marked::Written | Marked::Gone => {
                transaction
                    .unmarked
                    .remove(&(marker.topic, marker.partition));
                let id = marker.id;
                self.complete_if_marked(now, &id);
            }
            Marked::Failed => {
                let waiting = Waiting {
                    id: marker.id,
                    topic: marker.topic,
                    partition: marker.partition,
                    attempts: marker.attempts,
                };
                self.markers.put_off(now.monotonic, random, waiting);
            }
            Marked::Fenced => self.is_fenced = true,
        }
    }

    /// The next batch to write, unless one is out already.
    pub fn take_write(&mut self) -> Option<Vec<LogRecord>> {
        if !self.out.is_empty() {
            return None;
        }
        let mut records = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH_BYTES
            && let Some(write) = self.effects.writes.pop_front()
        {
            bytes += write.record.bytes();
            records.push(write.record);
            self.out.push((write.id, write.then));
        }
        (!records.is_empty()).then_some(records)
    }

    /// What came of the batch that was taken last: written for good, or not written at all. An error is Kafka's, of a
    /// produce. `random` is any number.
    pub fn handle_written(&mut self, now: Now, random: u64, result: Result<(), ErrorCode>) {
        let result = result.map_err(coordinators);
        for (id, then) in std::mem::take(&mut self.out) {
            match result {
                Ok(()) => self.written(now, &id, then.details),
                Err(_) => self.not_written(now, random, &id),
            }
            if let Some((ticket, reply)) = then.reply {
                let reply = result.and(reply);
                self.effects.answers.push_back((ticket, reply));
            }
        }
    }

    fn written(&mut self, now: Now, id: &str, details: Option<Details>) {
        let Some(transaction) = self.transactions.get_mut(id) else {
            return;
        };
        let before = transaction.bytes();
        transaction.pending = None;
        transaction.failures = 0;
        let Some(details) = details else {
            self.remove(id);
            return;
        };
        let goes_on =
            (transaction.details.state, details.state) == (State::Ongoing, State::Ongoing);
        transaction.details = details;
        self.bytes = (self.bytes + transaction.bytes()).saturating_sub(before);
        if !goes_on {
            self.set_alarm(id, None);
        }
        self.enter(now, id);
    }

    fn not_written(&mut self, now: Now, random: u64, id: &str) {
        let Some(transaction) = self.transactions.get_mut(id) else {
            return;
        };
        transaction.pending = None;
        if transaction.details.epoch == NO_EPOCH {
            // Nobody has it.
            self.remove(id);
            return;
        }
        // Whoever asked asks again. What nobody has asked for, an end that is due, is tried again from here.
        let is_due = match transaction.details.state {
            State::Ongoing => transaction.alarm.is_none(),
            state => state.ending().is_some(),
        };
        if is_due {
            transaction.failures = transaction.failures.saturating_add(1);
            let again = now.monotonic + pause(transaction.failures, random);
            self.set_alarm(id, Some(again));
        }
    }

    fn remove(&mut self, id: &str) {
        self.set_alarm(id, None);
        if let Some(removed) = self.transactions.remove(id) {
            self.bytes = self.bytes.saturating_sub(removed.bytes());
        }
    }

    /// Every answer once, in the order in which they came about.
    pub fn poll_answer(&mut self) -> Option<(Ticket, Result<Answer, ErrorCode>)> {
        self.effects.answers.pop_front()
    }
}

/// `None` for one whose first producer is being written.
fn describe(transaction: &Transaction) -> Option<Description> {
    let details = &transaction.details;
    if details.epoch == NO_EPOCH {
        return None;
    }
    let topics = details.partitions.topics();
    Some(Description {
        state: details.state,
        producer: ProducerId::new(details.producer)?,
        epoch: details.epoch,
        timeout_ms: details.timeout_ms,
        started_ms: match details.state.is_at_rest() {
            true => -1,
            false => details.started_ms,
        },
        partitions: topics
            .map(|(topic, numbers)| (topic.clone(), numbers.iter().copied().collect()))
            .collect(),
    })
}

/// What an error of a write means to a client of the coordinator.
fn coordinators(error: ErrorCode) -> ErrorCode {
    match error {
        ErrorCode::NotLeaderOrFollower
        | ErrorCode::KafkaStorageError
        | ErrorCode::UnknownTopicOrPartition => ErrorCode::NotCoordinator,
        _ => ErrorCode::CoordinatorNotAvailable,
    }
}
