//! What this room reads from other nodes and from its store, read and written again.
//!
//! For tests and fuzzers, which hold that no bytes do harm and that what was written is read as it was. Nothing else needs it.

use std::path::Path;

use openraft::Entry;
use redb::StorageBackend;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::message::{Request, Response};
use super::peers;
use super::raft::{LogId, SnapshotMeta, TypeConfig, Vote};
use super::store::{self, Owner, StoreError};
use crate::metadata::ClusterImage;
use crate::types::{DirectoryId, NodeId};

/// The values of a store, by name; `entry` is one entry of its log.
pub const STORED_VALUES: [&str; 8] = [
    "format",
    "owner",
    "vote",
    "committed",
    "purged",
    "snapshot_meta",
    "snapshot",
    "entry",
];

/// Whose the stores are that [`write_store`] makes.
const OWNER: Owner = Owner {
    node: NodeId::new(1).unwrap(),
    directory: DirectoryId::from_random_bits(1),
};
/// What errors say of where a store is that is in memory.
const PATH: &str = "controller.redb";

/// A message as it is written once it was read: as a request, as a response, or as both. Empty where nobody takes it.
pub fn reread_message(message: &[u8]) -> Vec<Vec<u8>> {
    let request = peers::decode::<Request>(message).ok();
    let response = peers::decode::<Response>(message).ok();
    let request = request.and_then(|envelope| serde_json::to_vec(&envelope).ok());
    let response = response.and_then(|envelope| serde_json::to_vec(&envelope).ok());
    request.into_iter().chain(response).collect()
}

/// One of [`STORED_VALUES`] as it is written once it was read. `None` where it cannot be read.
pub fn reread_value(name: &str, value: &[u8]) -> Option<Vec<u8>> {
    fn again<T: DeserializeOwned + Serialize>(value: &[u8]) -> Option<Vec<u8>> {
        serde_json::to_vec(&serde_json::from_slice::<T>(value).ok()?).ok()
    }
    match name {
        "format" => again::<u32>(value),
        "owner" => again::<Owner>(value),
        "vote" => again::<Vote>(value),
        "committed" => again::<Option<LogId>>(value),
        "purged" => again::<LogId>(value),
        "snapshot_meta" => again::<SnapshotMeta>(value),
        "snapshot" => again::<ClusterImage>(value),
        "entry" => again::<Entry<TypeConfig>>(value),
        _ => None,
    }
}

/// Makes a store of values by their names, where each `entry` is the next of the log, and closes it.
pub fn write_store(
    backend: impl StorageBackend,
    values: &[(&str, Vec<u8>)],
) -> Result<(), StoreError> {
    store::open_in(backend, Path::new(PATH), OWNER)?.fill(values, Path::new(PATH))
}

/// Opens a store as a start does, and reads all of it. Returns how many entries its log has.
pub fn read_store(backend: impl StorageBackend) -> Result<usize, StoreError> {
    store::open_in(backend, Path::new(PATH), OWNER)?.read_all(Path::new(PATH))
}
