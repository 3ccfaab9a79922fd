//! ListTransactions: the transactional ids that this node coordinates.

use std::collections::BTreeSet;
use std::sync::Arc;

use kafka_protocol::messages::list_transactions_response::TransactionState;
use kafka_protocol::messages::{
    ListTransactionsRequest, ListTransactionsResponse, ProducerId, TransactionalId,
};
use tokio::time::Instant;

use super::groups::TAKEN_WITHIN;
use crate::kafka::Service;
use crate::kafka::codec::text;
use crate::kafka::context::Context;
use crate::transactions::{Filter, Listing, State};

pub(super) async fn handle<S: Service>(
    context: Arc<Context<S>>,
    request: ListTransactionsRequest,
    _version: i16,
) -> ListTransactionsResponse {
    let mut states = BTreeSet::new();
    let mut unknown = BTreeSet::new();
    for name in &request.state_filters {
        match State::from_name(name) {
            Some(state) => {
                states.insert(state);
            }
            None => {
                unknown.insert(name.clone());
            }
        }
    }
    let producers = request.producer_id_filters.iter().map(|id| id.0).collect();
    let filter = Filter {
        states: (!request.state_filters.is_empty()).then_some(states),
        producers: (!request.producer_id_filters.is_empty()).then_some(producers),
        running_for_ms: (request.duration_filter >= 0).then_some(request.duration_filter),
    };
    let deadline = Instant::now() + TAKEN_WITHIN;
    let (listings, error) = context.service.list_transactions(filter, deadline).await;
    let listed = |listing: Listing| {
        TransactionState::default()
            .with_transactional_id(TransactionalId(text(&*listing.id)))
            .with_producer_id(ProducerId(listing.producer.get()))
            .with_transaction_state(text(listing.state.name()))
    };
    ListTransactionsResponse::default()
        .with_error_code(error.map_or(0, |error| error.code()))
        .with_unknown_state_filters(unknown.into_iter().collect())
        .with_transaction_states(listings.into_iter().map(listed).collect())
}
