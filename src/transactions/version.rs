//! What a client leaves to the brokers: Kafka's feature `transaction.version`.

/// Which of the two protocols of transactions a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClientVersion {
    /// Levels 0 and 1 of the feature, which differ in the log's format alone: the client says which partitions a transaction
    /// writes to, and its epoch lasts until it begins anew with its id.
    V1,
    /// Level 2 (KIP-890, second part): the leader of a partition adds it to the transaction, and each transaction has an epoch
    /// of its own, so that what comes late belongs to none.
    V2,
}

impl ClientVersion {
    /// Kafka's number for it in the log.
    pub(super) const fn number(self) -> i16 {
        match self {
            ClientVersion::V1 => 0,
            ClientVersion::V2 => 2,
        }
    }

    /// A higher level than is known bumps epochs as level 2 does.
    pub(super) const fn from_number(number: i16) -> ClientVersion {
        match number {
            2.. => ClientVersion::V2,
            _ => ClientVersion::V1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_there_and_back() {
        for version in [ClientVersion::V1, ClientVersion::V2] {
            assert_eq!(ClientVersion::from_number(version.number()), version);
        }
        assert_eq!(ClientVersion::from_number(1), ClientVersion::V1);
        assert_eq!(ClientVersion::from_number(3), ClientVersion::V2);
        assert_eq!(ClientVersion::from_number(-1), ClientVersion::V1);
    }
}
