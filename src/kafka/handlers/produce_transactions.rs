//! The batches of transactions in a Produce request: before one begins a transaction in a partition, the coordinator of the
//! transactional id is asked whether the transaction reaches that partition. Without that, a batch that comes late, after its
//! transaction has ended, would begin one that nobody ends. For newer clients the coordinator is told that it does: their
//! transactions have an epoch each, and so a late batch has the wrong one.

use tokio::time::{Instant, timeout_at};

use super::busy::Busy;
use super::produce_refusal::ProduceRefusal;
use crate::kafka::context::Context;
use crate::kafka::features::reach;
use crate::kafka::{Refusal, Service, Verification, VerificationGuard};
use crate::record::Batch;
use crate::transactions::Reach;
use crate::types::{ErrorCode, ProducerId, TopicPartition};

/// From this version on a client knows that it can abort and go on.
const ABORTABLE_SINCE: i16 = 11;
/// From this version on a client leaves it to the leader to add the partition to its transaction.
const ADDED_SINCE: i16 = 12;

/// One partition's share of a request, ready to be handed to its owner.
pub(super) struct Prepared {
    pub(super) partition: TopicPartition,
    pub(super) batches: Vec<Batch>,
    pub(super) guard: Option<VerificationGuard>,
}

impl Prepared {
    /// The producer of its first batch, where that is one of a transaction. A share of several batches is refused later.
    fn producer(&self) -> Option<(ProducerId, i16)> {
        let header = &self.batches.first()?.header;
        let producer = header.producer_id.filter(|_| header.is_transactional())?;
        Some((producer, header.producer_epoch))
    }
}

/// A partition's share of a request, or why it is refused.
type Share = Result<Prepared, ProduceRefusal>;

/// Asks for every share that may begin a transaction; what is not to be appended is refused in its place.
pub(super) async fn verify<S: Service>(
    context: &Context<S>,
    transactional_id: Option<&str>,
    mut shares: Vec<&mut Share>,
    version: i16,
    deadline: Instant,
) {
    let reach = reach(&context.service.image(), version, ADDED_SINCE);
    let mut busy = Busy::new(deadline);
    loop {
        // From the start each time: a marker of the transaction before may have come meanwhile, and a guard is from after it.
        shares = attempt(context, transactional_id, shares, version, reach, deadline).await;
        if shares.is_empty() {
            return;
        }
        if !busy.wait(rand::random()).await {
            break;
        }
    }
    for share in shares {
        *share = Err(refusal(ErrorCode::ConcurrentTransactions, version, reach).into());
    }
}

/// Returns the shares whose transaction waits for the end of the one before.
async fn attempt<'a, S: Service>(
    context: &Context<S>,
    transactional_id: Option<&str>,
    shares: Vec<&'a mut Share>,
    version: i16,
    reach: Reach,
    deadline: Instant,
) -> Vec<&'a mut Share> {
    let mut busy = Vec::new();
    let mut begin = Vec::new();
    for share in shares {
        let Ok(prepared) = &*share else { continue };
        let Some(producer) = prepared.producer() else {
            continue;
        };
        if transactional_id.is_none() {
            *share = Err(Refusal {
                error: ErrorCode::TransactionalIdAuthorizationFailed,
                message: Some(
                    "a batch of a transaction in a request without a transactional id".to_owned(),
                ),
            }
            .into());
            continue;
        }
        let partition = prepared.partition;
        let asked = context.service.verification(partition, producer, deadline);
        match timeout_at(deadline, asked).await {
            Ok(Ok(Verification::NotNeeded)) => {}
            Ok(Ok(Verification::Needed(guard))) => begin.push((producer, guard, share)),
            Ok(Err(error)) => *share = Err(error.into()),
            Err(_) => *share = Err(ErrorCode::RequestTimedOut.into()),
        }
    }
    // One producer's transaction has one coordinator; a request has one producer, and whatever else comes is asked for alone.
    while let Some((producer, ..)) = begin.first() {
        let producer = *producer;
        let (mine, others): (Vec<_>, Vec<_>) = begin
            .into_iter()
            .partition(|(other, ..)| *other == producer);
        begin = others;
        let partitions: Vec<TopicPartition> = mine
            .iter()
            .filter_map(|(.., share)| Some(share.as_ref().ok()?.partition))
            .collect();
        let asked = context.service.verify_transaction(
            transactional_id.unwrap_or_default(),
            producer,
            partitions,
            reach,
            deadline,
        );
        let verdicts = timeout_at(deadline, asked).await.unwrap_or_default();
        let mut verdicts = verdicts.into_iter();
        for (_, guard, share) in mine {
            // A coordinator that says nothing may say something next time.
            let verdict = verdicts
                .next()
                .unwrap_or(Err(ErrorCode::CoordinatorNotAvailable));
            match (verdict, share.as_mut()) {
                (Err(ErrorCode::ConcurrentTransactions), _) if reach == Reach::Add => {
                    busy.push(share);
                }
                (Ok(()), Ok(prepared)) => prepared.guard = Some(guarded(guard, reach)),
                (Err(error), _) => *share = Err(refusal(error, version, reach).into()),
                (Ok(()), Err(_)) => {}
            }
        }
    }
    busy
}

/// The guard of a batch that the coordinator has vouched for.
fn guarded(guard: VerificationGuard, reach: Reach) -> VerificationGuard {
    match reach {
        Reach::Verify => guard,
        Reach::Add => guard.of_first_batch(),
    }
}

/// What a client is told that a coordinator does not vouch for. Kafka's clients try a produce again on few errors, so what is over
/// by itself is told as one of them; those that leave it to the leader to add partitions know that the transaction before may
/// not be over.
fn refusal(error: ErrorCode, version: i16, reach: Reach) -> Refusal {
    let told = match error {
        ErrorCode::ConcurrentTransactions if reach == Reach::Add => error,
        ErrorCode::InvalidTxnState if version >= ABORTABLE_SINCE => ErrorCode::TransactionAbortable,
        ErrorCode::CoordinatorNotAvailable
        | ErrorCode::CoordinatorLoadInProgress
        | ErrorCode::NotCoordinator
        | ErrorCode::ConcurrentTransactions
        | ErrorCode::NetworkException
        | ErrorCode::OperationNotAttempted
        | ErrorCode::RequestTimedOut => ErrorCode::NotEnoughReplicas,
        error => error,
    };
    Refusal {
        error: told,
        message: Some(format!(
            "the coordinator of the transactional id does not vouch for the batch: {error}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_is_told_what_it_tries_again_after() {
        let told = |error, version, reach| refusal(error, version, reach).error;
        use ErrorCode::*;
        use Reach::{Add, Verify};
        for (error, version, reach, expected) in [
            (InvalidTxnState, 10, Verify, InvalidTxnState),
            (InvalidTxnState, 11, Verify, TransactionAbortable),
            (ConcurrentTransactions, 12, Verify, NotEnoughReplicas),
            (ConcurrentTransactions, 12, Add, ConcurrentTransactions),
            (NotCoordinator, 12, Add, NotEnoughReplicas),
            (OperationNotAttempted, 12, Add, NotEnoughReplicas),
            (InvalidProducerEpoch, 12, Add, InvalidProducerEpoch),
        ] {
            assert_eq!(told(error, version, reach), expected, "{error} {version}");
        }
    }
}
