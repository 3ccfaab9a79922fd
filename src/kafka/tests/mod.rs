//! The room as a client sees it: requests over a byte stream against a node that keeps everything in memory.

mod admin;
mod bad_input;
mod client;
mod connections;
mod coordinator_double;
mod double;
mod fetch;
mod groups;
mod listeners;
mod login;
mod mutations;
mod produce;
mod transaction_coordinator;
mod transactions;

use bytes::Bytes;

use crate::record::{BatchBuilder, Compression};

/// One batch with a record for each value.
fn batch(values: &[&str]) -> Bytes {
    batch_with(values, Compression::None)
}

fn batch_with(values: &[&str], compression: Compression) -> Bytes {
    let mut builder = BatchBuilder::new();
    for value in values {
        builder
            .append(None, Some(value.as_bytes()), &[], 1_000)
            .unwrap();
    }
    builder.seal(compression).unwrap().stamp(None)
}

/// The values of all records in concatenated batches, with their offsets.
fn values(records: &Bytes) -> Vec<(i64, String)> {
    let mut found = Vec::new();
    for batch in crate::record::Batches::new(records.clone()) {
        for record in crate::record::records(&batch.unwrap()).unwrap() {
            let record = record.unwrap();
            let value = String::from_utf8(record.value.unwrap().to_vec()).unwrap();
            found.push((record.offset, value));
        }
    }
    found
}
