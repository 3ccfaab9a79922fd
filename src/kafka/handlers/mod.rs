//! The requests, one file each.

mod add_offsets_to_txn;
mod add_partitions_to_txn;
mod alter;
mod alter_configs;
pub(super) mod api_versions;
mod busy;
mod consumer_group_describe;
mod consumer_group_heartbeat;
mod create_partitions;
mod create_topics;
mod delete_groups;
mod delete_records;
mod delete_topics;
mod describe_client_quotas;
mod describe_cluster;
mod describe_configs;
mod describe_groups;
mod describe_producers;
mod describe_transactions;
mod end_txn;
mod fetch;
mod fetch_response;
pub(super) mod fetch_session;
mod find_coordinator;
mod groups;
mod heartbeat;
mod incremental_alter_configs;
mod init_producer_id;
mod join_group;
mod leave_group;
mod list_groups;
mod list_offsets;
mod list_transactions;
mod metadata;
mod offset_commit;
mod offset_delete;
mod offset_fetch;
mod offset_for_leader_epoch;
mod produce;
mod produce_refusal;
mod produce_transactions;
mod sasl;
mod sync_group;
mod transactions;
mod txn_offset_commit;
mod user_scram_credentials;
mod write_txn_markers;

use std::future::Future;
use std::sync::Arc;

use kafka_protocol::messages::ApiKey;
use kafka_protocol::protocol::{Encodable, HeaderVersion, Request, StrBytes};

use super::budget::Held;
use super::codec::{Answer, BadRequest, RawRequest, text};
use super::connection::{Pending, Reply, Response};
use super::context::Context;
use super::{Refusal, Service};

/// Takes a request in hand. What must happen in the order of requests has happened when this returns; the rest is in the
/// future that it returns.
pub(super) async fn begin<S: Service>(
    context: &Arc<Context<S>>,
    request: RawRequest,
) -> Result<Pending, BadRequest> {
    match request.api.key {
        ApiKey::Produce => produce::begin(context, &request).await,
        ApiKey::Fetch => fetch::begin(context, &request),
        ApiKey::ListOffsets => later(context, &request, list_offsets::handle),
        ApiKey::Metadata => metadata::begin(context, &request),
        ApiKey::FindCoordinator => later(context, &request, find_coordinator::handle),
        ApiKey::ApiVersions => later(context, &request, api_versions::handle),
        ApiKey::CreateTopics => later(context, &request, create_topics::handle),
        ApiKey::DeleteTopics => later(context, &request, delete_topics::handle),
        ApiKey::InitProducerId => later(context, &request, init_producer_id::handle),
        ApiKey::DescribeConfigs => describe_configs::begin(context, &request),
        ApiKey::CreatePartitions => later(context, &request, create_partitions::handle),
        ApiKey::AlterConfigs => later(context, &request, alter_configs::handle),
        ApiKey::IncrementalAlterConfigs => {
            later(context, &request, incremental_alter_configs::handle)
        }
        ApiKey::DescribeCluster => later(context, &request, describe_cluster::handle),
        ApiKey::JoinGroup => join_group::begin(context, &request),
        ApiKey::SyncGroup => later(context, &request, sync_group::handle),
        ApiKey::Heartbeat => later(context, &request, heartbeat::handle),
        ApiKey::LeaveGroup => later(context, &request, leave_group::handle),
        ApiKey::OffsetCommit => later(context, &request, offset_commit::handle),
        ApiKey::OffsetDelete => later(context, &request, offset_delete::handle),
        ApiKey::AddPartitionsToTxn => later(context, &request, add_partitions_to_txn::handle),
        ApiKey::AddOffsetsToTxn => later(context, &request, add_offsets_to_txn::handle),
        ApiKey::EndTxn => later(context, &request, end_txn::handle),
        ApiKey::DescribeTransactions => {
            later_in_turn(context, &request, describe_transactions::handle)
        }
        ApiKey::ListTransactions => later_in_turn(context, &request, list_transactions::handle),
        ApiKey::TxnOffsetCommit => later(context, &request, txn_offset_commit::handle),
        ApiKey::WriteTxnMarkers => later(context, &request, write_txn_markers::handle),
        ApiKey::DescribeProducers => later_in_turn(context, &request, describe_producers::handle),
        ApiKey::DeleteGroups => later(context, &request, delete_groups::handle),
        ApiKey::DescribeClientQuotas => later(context, &request, describe_client_quotas::handle),
        ApiKey::SaslHandshake => sasl::handshake(context, &request),
        ApiKey::SaslAuthenticate => sasl::authenticate(context, &request).await,
        ApiKey::DescribeUserScramCredentials => {
            later_in_turn(context, &request, user_scram_credentials::describe)
        }
        ApiKey::AlterUserScramCredentials => {
            later(context, &request, user_scram_credentials::alter)
        }
        ApiKey::OffsetForLeaderEpoch => later(context, &request, offset_for_leader_epoch::handle),
        ApiKey::DeleteRecords => later(context, &request, delete_records::handle),
        ApiKey::OffsetFetch => later_in_turn(context, &request, offset_fetch::handle),
        ApiKey::ListGroups => later_in_turn(context, &request, list_groups::handle),
        ApiKey::DescribeGroups => later_in_turn(context, &request, describe_groups::handle),
        ApiKey::ConsumerGroupHeartbeat => consumer_group_heartbeat::begin(context, &request),
        ApiKey::ConsumerGroupDescribe => {
            later_in_turn(context, &request, consumer_group_describe::handle)
        }
        // The table of served requests and this match are kept in step by a test.
        key => Err(BadRequest::UnknownApi {
            key: key as i16,
            version: request.version,
        }),
    }
}

/// Whether a client that has still to log in may ask this.
pub(super) fn may_come_before_login(key: ApiKey) -> bool {
    matches!(
        key,
        ApiKey::ApiVersions | ApiKey::SaslHandshake | ApiKey::SaslAuthenticate
    )
}

/// A request all of whose work is done when its turn has come.
fn later<S, R, F>(
    context: &Arc<Context<S>>,
    request: &RawRequest,
    handle: fn(Arc<Context<S>>, R, i16) -> F,
) -> Result<Pending, BadRequest>
where
    S: Service,
    R: Request + Send + 'static,
    R::Response: Send,
    F: Future<Output = R::Response> + Send + 'static,
{
    let decoded: R = request.decode()?;
    let answer = request.answer();
    let context = Arc::clone(context);
    Ok(Box::pin(async move {
        let response = handle(context, decoded, answer.version).await;
        Ok(Reply::Send(answer.encode(&response)?.into()))
    }))
}

/// As [`later`], for answers that can be much larger than their requests: see [`answer_in_turn`]. `handle` waits for coordinators of this node and for nothing slower.
fn later_in_turn<S, R, F>(
    context: &Arc<Context<S>>,
    request: &RawRequest,
    handle: fn(Arc<Context<S>>, R, i16) -> F,
) -> Result<Pending, BadRequest>
where
    S: Service,
    R: Request + Send + 'static,
    R::Response: Send,
    F: Future<Output = R::Response> + Send + 'static,
{
    let decoded: R = request.decode()?;
    let answer = request.answer();
    let context = Arc::clone(context);
    Ok(Box::pin(async move {
        let response = handle(Arc::clone(&context), decoded, answer.version);
        answer_in_turn(&context, answer, response).await
    }))
}

/// Makes an answer that can be much larger than its request, in its turn, and counts it until it is written. The turn
/// ends only when the answer is counted, so that no more than [`MAX_DESCRIPTIONS`](super::limits::MAX_DESCRIPTIONS)
/// uncounted ones exist. `response` begins when its turn has come.
async fn answer_in_turn<S, R>(
    context: &Context<S>,
    answer: Answer,
    response: impl Future<Output = R>,
) -> Result<Reply, BadRequest>
where
    R: Encodable + HeaderVersion,
{
    // The semaphore is never closed.
    let _turn = context.descriptions.acquire().await.ok();
    let bytes = answer.encode(&response.await)?;
    let mut held = Held::default();
    context.response_memory.take(&mut held, bytes.len()).await;
    Ok(Reply::Send(Response {
        bytes: bytes.into(),
        held,
    }))
}

/// Code and message of a result, as most responses carry them.
fn code_and_message<T>(result: &Result<T, Refusal>) -> (i16, Option<StrBytes>) {
    match result {
        Ok(_) => (0, None),
        Err(refusal) => (
            refusal.error.code(),
            Some(text(
                refusal
                    .message
                    .clone()
                    .unwrap_or_else(|| refusal.error.to_string()),
            )),
        ),
    }
}
