//! The layout of every request that is served: only as much of it as [`preflight`](super::preflight) needs.

use kafka_protocol::messages::ApiKey;

/// A request's body.
pub(super) struct Schema {
    /// From this version on, lengths are varints and every structure ends in tagged fields.
    pub(super) flexible_since: i16,
    pub(super) fields: &'static [Field],
}

/// A field, in the versions that have it.
pub(super) struct Field {
    since: i16,
    until: i16,
    pub(super) kind: Kind,
}

/// How a field is laid out. Every text, blob and list may be absent ("null"); whether that is legal is for the decoder.
pub(super) enum Kind {
    /// So many bytes.
    Fixed(usize),
    /// A string: a length of two bytes, or a varint.
    Text,
    /// Bytes: a length of four bytes, or a varint.
    Blob,
    /// A list of plain values.
    Items(&'static Kind),
    /// A list of structures.
    Structs(&'static [Field]),
}

impl Field {
    pub(super) const fn is_in(&self, version: i16) -> bool {
        self.since <= version && version <= self.until
    }
}

const fn always(kind: Kind) -> Field {
    between(0, i16::MAX, kind)
}

const fn since(since: i16, kind: Kind) -> Field {
    between(since, i16::MAX, kind)
}

const fn until(until: i16, kind: Kind) -> Field {
    between(0, until, kind)
}

const fn between(since: i16, until: i16, kind: Kind) -> Field {
    Field { since, until, kind }
}

const BOOL: Kind = Kind::Fixed(1);
const I8: Kind = Kind::Fixed(1);
const I16: Kind = Kind::Fixed(2);
const I32: Kind = Kind::Fixed(4);
const I64: Kind = Kind::Fixed(8);
const UUID: Kind = Kind::Fixed(16);
const TEXT: Kind = Kind::Text;

/// The layout of a request, for the versions that [`SERVED_APIS`](super::versions::SERVED_APIS) names; `None` for a
/// request that is not served.
pub(super) const fn of(key: ApiKey) -> Option<&'static Schema> {
    Some(match key {
        ApiKey::Produce => &PRODUCE,
        ApiKey::Fetch => &FETCH,
        ApiKey::ListOffsets => &LIST_OFFSETS,
        ApiKey::Metadata => &METADATA,
        ApiKey::FindCoordinator => &FIND_COORDINATOR,
        ApiKey::ApiVersions => &API_VERSIONS,
        ApiKey::CreateTopics => &CREATE_TOPICS,
        ApiKey::DeleteTopics => &DELETE_TOPICS,
        ApiKey::InitProducerId => &INIT_PRODUCER_ID,
        ApiKey::DescribeConfigs => &DESCRIBE_CONFIGS,
        ApiKey::CreatePartitions => &CREATE_PARTITIONS,
        ApiKey::AlterConfigs => &ALTER_CONFIGS,
        ApiKey::IncrementalAlterConfigs => &INCREMENTAL_ALTER_CONFIGS,
        ApiKey::DescribeCluster => &DESCRIBE_CLUSTER,
        ApiKey::OffsetCommit => &OFFSET_COMMIT,
        ApiKey::OffsetFetch => &OFFSET_FETCH,
        ApiKey::OffsetDelete => &OFFSET_DELETE,
        ApiKey::JoinGroup => &JOIN_GROUP,
        ApiKey::SyncGroup => &SYNC_GROUP,
        ApiKey::Heartbeat => &HEARTBEAT,
        ApiKey::LeaveGroup => &LEAVE_GROUP,
        ApiKey::ListGroups => &LIST_GROUPS,
        ApiKey::DescribeGroups => &DESCRIBE_GROUPS,
        ApiKey::DeleteGroups => &DELETE_GROUPS,
        ApiKey::AddPartitionsToTxn => &ADD_PARTITIONS_TO_TXN,
        ApiKey::AddOffsetsToTxn => &ADD_OFFSETS_TO_TXN,
        ApiKey::EndTxn => &END_TXN,
        ApiKey::DescribeTransactions => &DESCRIBE_TRANSACTIONS,
        ApiKey::ListTransactions => &LIST_TRANSACTIONS,
        ApiKey::SaslHandshake => &SASL_HANDSHAKE,
        ApiKey::SaslAuthenticate => &SASL_AUTHENTICATE,
        ApiKey::DescribeClientQuotas => &DESCRIBE_CLIENT_QUOTAS,
        ApiKey::DescribeUserScramCredentials => &DESCRIBE_USER_SCRAM_CREDENTIALS,
        ApiKey::AlterUserScramCredentials => &ALTER_USER_SCRAM_CREDENTIALS,
        ApiKey::DeleteRecords => &DELETE_RECORDS,
        ApiKey::OffsetForLeaderEpoch => &OFFSET_FOR_LEADER_EPOCH,
        ApiKey::TxnOffsetCommit => &TXN_OFFSET_COMMIT,
        ApiKey::WriteTxnMarkers => &WRITE_TXN_MARKERS,
        ApiKey::DescribeProducers => &DESCRIBE_PRODUCERS,
        ApiKey::ConsumerGroupHeartbeat => &CONSUMER_GROUP_HEARTBEAT,
        ApiKey::ConsumerGroupDescribe => &CONSUMER_GROUP_DESCRIBE,
        _ => return None,
    })
}

static CONSUMER_GROUP_HEARTBEAT: Schema = Schema {
    flexible_since: 0,
    fields: &[
        // Group, member, epoch, instance, rack, rebalance timeout, topics, pattern, assignor.
        always(TEXT),
        always(TEXT),
        always(I32),
        always(TEXT),
        always(TEXT),
        always(I32),
        always(Kind::Items(&TEXT)),
        since(1, TEXT),
        always(TEXT),
        // What it holds: topic, partitions.
        always(Kind::Structs(&[always(UUID), always(Kind::Items(&I32))])),
    ],
};

static CONSUMER_GROUP_DESCRIBE: Schema = Schema {
    flexible_since: 0,
    fields: &[always(Kind::Items(&TEXT)), always(BOOL)],
};

static PRODUCE: Schema = Schema {
    flexible_since: 9,
    fields: &[
        // Transactional id, acks, timeout.
        always(TEXT),
        always(I16),
        always(I32),
        always(Kind::Structs(&[
            until(12, TEXT),
            since(13, UUID),
            // Partition, records.
            always(Kind::Structs(&[always(I32), always(Kind::Blob)])),
        ])),
    ],
};

static FETCH: Schema = Schema {
    flexible_since: 12,
    fields: &[
        // Replica id, longest wait, least and most bytes, isolation level.
        until(14, I32),
        always(I32),
        always(I32),
        always(I32),
        always(I8),
        // Session id and epoch.
        since(7, I32),
        since(7, I32),
        always(Kind::Structs(&[
            until(12, TEXT),
            since(13, UUID),
            always(Kind::Structs(&[
                // Partition, leader epoch, offset, last fetched epoch, log start offset, most bytes.
                always(I32),
                since(9, I32),
                always(I64),
                since(12, I32),
                since(5, I64),
                always(I32),
            ])),
        ])),
        // Forgotten topics.
        since(
            7,
            Kind::Structs(&[until(12, TEXT), since(13, UUID), always(Kind::Items(&I32))]),
        ),
        // Rack.
        since(11, TEXT),
    ],
};

static LIST_OFFSETS: Schema = Schema {
    flexible_since: 6,
    fields: &[
        // Replica id, isolation level.
        always(I32),
        since(2, I8),
        always(Kind::Structs(&[
            always(TEXT),
            // Partition, leader epoch, timestamp.
            always(Kind::Structs(&[always(I32), since(4, I32), always(I64)])),
        ])),
        since(10, I32),
    ],
};

static METADATA: Schema = Schema {
    flexible_since: 9,
    fields: &[
        always(Kind::Structs(&[since(10, UUID), always(TEXT)])),
        // Whether to create topics, and to include authorized operations of cluster and topics.
        since(4, BOOL),
        between(8, 10, BOOL),
        since(8, BOOL),
    ],
};

static FIND_COORDINATOR: Schema = Schema {
    flexible_since: 3,
    fields: &[until(3, TEXT), since(1, I8), since(4, Kind::Items(&TEXT))],
};

static API_VERSIONS: Schema = Schema {
    flexible_since: 3,
    fields: &[since(3, TEXT), since(3, TEXT)],
};

static CREATE_TOPICS: Schema = Schema {
    flexible_since: 5,
    fields: &[
        always(Kind::Structs(&[
            // Name, partitions, replication factor.
            always(TEXT),
            always(I32),
            always(I16),
            // Assignments, configs.
            always(Kind::Structs(&[always(I32), always(Kind::Items(&I32))])),
            always(Kind::Structs(&[always(TEXT), always(TEXT)])),
        ])),
        always(I32),
        always(BOOL),
    ],
};

static DELETE_TOPICS: Schema = Schema {
    flexible_since: 4,
    fields: &[
        since(6, Kind::Structs(&[always(TEXT), always(UUID)])),
        until(5, Kind::Items(&TEXT)),
        always(I32),
    ],
};

static INIT_PRODUCER_ID: Schema = Schema {
    flexible_since: 2,
    fields: &[
        // Transactional id, transaction timeout, producer id and epoch.
        always(TEXT),
        always(I32),
        since(3, I64),
        since(3, I16),
    ],
};

static DESCRIBE_CONFIGS: Schema = Schema {
    flexible_since: 4,
    fields: &[
        always(Kind::Structs(&[
            always(I8),
            always(TEXT),
            always(Kind::Items(&TEXT)),
        ])),
        // Whether to include synonyms and documentation.
        always(BOOL),
        since(3, BOOL),
    ],
};

static SASL_HANDSHAKE: Schema = Schema {
    flexible_since: i16::MAX,
    fields: &[always(TEXT)],
};

static SASL_AUTHENTICATE: Schema = Schema {
    flexible_since: 2,
    fields: &[always(Kind::Blob)],
};

static DESCRIBE_CLIENT_QUOTAS: Schema = Schema {
    flexible_since: 1,
    fields: &[
        // Components: entity type, how it is matched, with what.
        always(Kind::Structs(&[always(TEXT), always(I8), always(TEXT)])),
        // Whether other entity types are left out.
        always(BOOL),
    ],
};

static DESCRIBE_USER_SCRAM_CREDENTIALS: Schema = Schema {
    flexible_since: 0,
    fields: &[always(Kind::Structs(&[always(TEXT)]))],
};

static ALTER_USER_SCRAM_CREDENTIALS: Schema = Schema {
    flexible_since: 0,
    fields: &[
        // Deletions: name, mechanism.
        always(Kind::Structs(&[always(TEXT), always(I8)])),
        // Upsertions: name, mechanism, iterations, salt, salted password.
        always(Kind::Structs(&[
            always(TEXT),
            always(I8),
            always(I32),
            always(Kind::Blob),
            always(Kind::Blob),
        ])),
    ],
};

static DELETE_RECORDS: Schema = Schema {
    flexible_since: 2,
    fields: &[
        always(Kind::Structs(&[
            always(TEXT),
            // Partition, offset.
            always(Kind::Structs(&[always(I32), always(I64)])),
        ])),
        always(I32),
    ],
};

static OFFSET_FOR_LEADER_EPOCH: Schema = Schema {
    flexible_since: 4,
    fields: &[
        // Replica id.
        since(3, I32),
        always(Kind::Structs(&[
            always(TEXT),
            // Partition, current leader epoch, epoch.
            always(Kind::Structs(&[always(I32), since(2, I32), always(I32)])),
        ])),
    ],
};

static CREATE_PARTITIONS: Schema = Schema {
    flexible_since: 2,
    fields: &[
        always(Kind::Structs(&[
            always(TEXT),
            always(I32),
            always(Kind::Structs(&[always(Kind::Items(&I32))])),
        ])),
        always(I32),
        always(BOOL),
    ],
};

static ALTER_CONFIGS: Schema = Schema {
    flexible_since: 2,
    fields: &[
        always(Kind::Structs(&[
            always(I8),
            always(TEXT),
            always(Kind::Structs(&[always(TEXT), always(TEXT)])),
        ])),
        always(BOOL),
    ],
};

static INCREMENTAL_ALTER_CONFIGS: Schema = Schema {
    flexible_since: 1,
    fields: &[
        always(Kind::Structs(&[
            always(I8),
            always(TEXT),
            always(Kind::Structs(&[always(TEXT), always(I8), always(TEXT)])),
        ])),
        always(BOOL),
    ],
};

static DESCRIBE_CLUSTER: Schema = Schema {
    flexible_since: 0,
    fields: &[always(BOOL), since(1, I8), since(2, BOOL)],
};

static OFFSET_COMMIT: Schema = Schema {
    flexible_since: 8,
    fields: &[
        // Group, generation, member, instance, how long to keep the offsets.
        always(TEXT),
        always(I32),
        always(TEXT),
        since(7, TEXT),
        until(4, I64),
        always(Kind::Structs(&[
            always(TEXT),
            // Partition, offset, leader epoch, metadata.
            always(Kind::Structs(&[
                always(I32),
                always(I64),
                since(6, I32),
                always(TEXT),
            ])),
        ])),
    ],
};

/// A topic's name and partitions.
const TOPIC_PARTITIONS: &[Field] = &[always(TEXT), always(Kind::Items(&I32))];

static OFFSET_FETCH: Schema = Schema {
    flexible_since: 6,
    fields: &[
        until(7, TEXT),
        until(7, Kind::Structs(TOPIC_PARTITIONS)),
        since(
            8,
            Kind::Structs(&[
                // Group, member, its epoch.
                always(TEXT),
                since(9, TEXT),
                since(9, I32),
                always(Kind::Structs(TOPIC_PARTITIONS)),
            ]),
        ),
        // Whether only offsets count that no open transaction is about to change.
        since(7, BOOL),
    ],
};

static OFFSET_DELETE: Schema = Schema {
    flexible_since: i16::MAX,
    fields: &[
        always(TEXT),
        always(Kind::Structs(&[
            always(TEXT),
            always(Kind::Structs(&[always(I32)])),
        ])),
    ],
};

static JOIN_GROUP: Schema = Schema {
    flexible_since: 6,
    fields: &[
        // Group, session and rebalance timeouts, member, instance, protocol type.
        always(TEXT),
        always(I32),
        since(1, I32),
        always(TEXT),
        since(5, TEXT),
        always(TEXT),
        always(Kind::Structs(&[always(TEXT), always(Kind::Blob)])),
        // Why.
        since(8, TEXT),
    ],
};

static SYNC_GROUP: Schema = Schema {
    flexible_since: 4,
    fields: &[
        // Group, generation, member, instance, protocol type and name.
        always(TEXT),
        always(I32),
        always(TEXT),
        since(3, TEXT),
        since(5, TEXT),
        since(5, TEXT),
        always(Kind::Structs(&[always(TEXT), always(Kind::Blob)])),
    ],
};

static HEARTBEAT: Schema = Schema {
    flexible_since: 4,
    fields: &[always(TEXT), always(I32), always(TEXT), since(3, TEXT)],
};

static LEAVE_GROUP: Schema = Schema {
    flexible_since: 4,
    fields: &[
        always(TEXT),
        until(2, TEXT),
        // Members: id, instance, why.
        since(
            3,
            Kind::Structs(&[always(TEXT), always(TEXT), since(5, TEXT)]),
        ),
    ],
};

static LIST_GROUPS: Schema = Schema {
    flexible_since: 3,
    fields: &[since(4, Kind::Items(&TEXT)), since(5, Kind::Items(&TEXT))],
};

static DESCRIBE_GROUPS: Schema = Schema {
    flexible_since: 5,
    fields: &[always(Kind::Items(&TEXT)), since(3, BOOL)],
};

static ADD_PARTITIONS_TO_TXN: Schema = Schema {
    flexible_since: 3,
    fields: &[
        since(
            4,
            Kind::Structs(&[
                // Transactional id, producer id and epoch, whether only to verify, topics.
                always(TEXT),
                always(I64),
                always(I16),
                always(BOOL),
                always(Kind::Structs(&[always(TEXT), always(Kind::Items(&I32))])),
            ]),
        ),
        // The same of the only transaction.
        until(3, TEXT),
        until(3, I64),
        until(3, I16),
        until(3, Kind::Structs(&[always(TEXT), always(Kind::Items(&I32))])),
    ],
};

static ADD_OFFSETS_TO_TXN: Schema = Schema {
    flexible_since: 3,
    // Transactional id, producer id and epoch, group.
    fields: &[always(TEXT), always(I64), always(I16), always(TEXT)],
};

static END_TXN: Schema = Schema {
    flexible_since: 3,
    // Transactional id, producer id and epoch, whether to commit.
    fields: &[always(TEXT), always(I64), always(I16), always(BOOL)],
};

static DESCRIBE_TRANSACTIONS: Schema = Schema {
    flexible_since: 0,
    fields: &[always(Kind::Items(&TEXT))],
};

static LIST_TRANSACTIONS: Schema = Schema {
    flexible_since: 0,
    fields: &[
        // States, producer ids, least duration.
        always(Kind::Items(&TEXT)),
        always(Kind::Items(&I64)),
        since(1, I64),
    ],
};

static TXN_OFFSET_COMMIT: Schema = Schema {
    flexible_since: 3,
    fields: &[
        // Transactional id, group, producer id and epoch, generation, member, instance.
        always(TEXT),
        always(TEXT),
        always(I64),
        always(I16),
        since(3, I32),
        since(3, TEXT),
        since(3, TEXT),
        always(Kind::Structs(&[
            always(TEXT),
            // Partition, offset, leader epoch, metadata.
            always(Kind::Structs(&[
                always(I32),
                always(I64),
                since(2, I32),
                always(TEXT),
            ])),
        ])),
    ],
};

static WRITE_TXN_MARKERS: Schema = Schema {
    flexible_since: 1,
    fields: &[always(Kind::Structs(&[
        // Producer id and epoch, whether to commit, topics, epoch of the coordinator.
        always(I64),
        always(I16),
        always(BOOL),
        always(Kind::Structs(&[always(TEXT), always(Kind::Items(&I32))])),
        always(I32),
    ]))],
};

static DESCRIBE_PRODUCERS: Schema = Schema {
    flexible_since: 0,
    fields: &[always(Kind::Structs(&[
        always(TEXT),
        always(Kind::Items(&I32)),
    ]))],
};

static DELETE_GROUPS: Schema = Schema {
    flexible_since: 2,
    fields: &[always(Kind::Items(&TEXT))],
};
