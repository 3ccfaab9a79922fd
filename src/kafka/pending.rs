//! Stand-ins for names of the `record` and `metadata` rooms, until those rooms are merged.

use bytes::Bytes;

/// `record::Batch`.
#[derive(Clone, Debug)]
pub struct Batch {
    pub bytes: Bytes,
}

/// `metadata::ClusterImage`.
#[derive(Debug, Default)]
pub struct ClusterImage {}
