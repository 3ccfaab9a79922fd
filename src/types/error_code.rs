//! Kafka's error codes, as far as this broker gives them.

use std::fmt;

use thiserror::Error;

macro_rules! error_codes {
    ($($name:ident = $code:literal, $text:literal;)*) => {
        /// An error as Kafka's protocol numbers it. The names and numbers are Kafka's, so that any client understands
        /// them; the text is for people. Success is the absence of one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
        pub enum ErrorCode {
            $($name,)*
        }

        impl ErrorCode {
            /// Kafka's number for it. Never 0, which means success.
            pub const fn code(self) -> i16 {
                match self {
                    $(ErrorCode::$name => $code,)*
                }
            }

            /// `Ok` for 0; a number that this broker never gives is [`ErrorCode::UnknownServerError`].
            pub const fn from_code(code: i16) -> Result<(), ErrorCode> {
                match code {
                    0 => Ok(()),
                    $($code => Err(ErrorCode::$name),)*
                    _ => Err(ErrorCode::UnknownServerError),
                }
            }

            /// Every code that this broker knows.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name,)*];
        }

        impl fmt::Display for ErrorCode {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(ErrorCode::$name => $text,)*
                })
            }
        }
    };
}

error_codes! {
    UnknownServerError = -1, "the server met an unexpected error";
    OffsetOutOfRange = 1, "the offset is outside the partition's log";
    CorruptMessage = 2, "the record batch is corrupt: its CRC or its structure is wrong";
    UnknownTopicOrPartition = 3, "this node knows no such topic or partition";
    LeaderNotAvailable = 5, "the partition has no leader at the moment";
    NotLeaderOrFollower = 6, "this node does not lead the partition";
    RequestTimedOut = 7, "the request timed out";
    BrokerNotAvailable = 8, "the broker is not available";
    MessageTooLarge = 10, "the record batch is larger than max.message.bytes";
    OffsetMetadataTooLarge = 12, "the offset's metadata is too large";
    NetworkException = 13, "the connection broke before a response came";
    CoordinatorLoadInProgress = 14, "the coordinator is loading its state";
    CoordinatorNotAvailable = 15, "the coordinator is not available";
    NotCoordinator = 16, "this node is not the coordinator";
    InvalidTopicException = 17, "the topic's name is not legal";
    RecordListTooLarge = 18, "the request holds more records than a segment takes";
    IllegalGeneration = 22, "the generation is not the group's current one";
    InconsistentGroupProtocol = 23, "the group's members use another protocol type, or have no protocol in common with this one";
    InvalidGroupId = 24, "the group's name is empty or too long";
    UnknownMemberId = 25, "the group knows no such member";
    InvalidSessionTimeout = 26, "the session timeout is outside the range that the broker allows";
    RebalanceInProgress = 27, "the group is rebalancing: join again";
    InvalidCommitOffsetSize = 28, "the offsets of one request take too much room";
    NotEnoughReplicas = 19, "fewer in-sync replicas than min.insync.replicas can be heard; nothing was appended";
    NotEnoughReplicasAfterAppend = 20, "the records were appended, but fewer in-sync replicas than min.insync.replicas are left";
    InvalidRequiredAcks = 21, "acks must be -1 (all), 0 or 1";
    TopicAuthorizationFailed = 29, "not authorized for this topic";
    GroupAuthorizationFailed = 30, "not authorized for this group";
    ClusterAuthorizationFailed = 31, "not authorized for this cluster operation";
    InvalidTimestamp = 32, "the timestamp is out of range";
    UnsupportedSaslMechanism = 33, "the SASL mechanism is not offered here";
    IllegalSaslState = 34, "the request does not belong at this point of a login";
    UnsupportedVersion = 35, "this version of the request is not supported";
    TopicAlreadyExists = 36, "a topic of this name exists already";
    InvalidPartitions = 37, "the number of partitions is not valid";
    InvalidReplicationFactor = 38, "the replication factor is not between 1 and the number of nodes";
    InvalidReplicaAssignment = 39, "the replica assignment is not valid";
    InvalidConfig = 40, "the configuration is not valid";
    NotController = 41, "this node is not the active controller";
    InvalidRequest = 42, "the request is malformed";
    UnsupportedForMessageFormat = 43, "only record batches of format 2 are supported";
    PolicyViolation = 44, "the request violates a policy of the cluster";
    OutOfOrderSequenceNumber = 45, "the producer's sequence number is out of order";
    DuplicateSequenceNumber = 46, "the producer's sequence number was used already";
    InvalidProducerEpoch = 47, "the producer's epoch is older than the current one";
    InvalidTxnState = 48, "the producer's transaction does not allow this now";
    InvalidProducerIdMapping = 49, "the producer id does not belong to the transactional id";
    InvalidTransactionTimeout = 50, "the transaction timeout is larger than the broker allows";
    ConcurrentTransactions = 51, "the producer's last transaction has not ended yet; ask again";
    TransactionCoordinatorFenced = 52, "the transaction coordinator is not the current one any more";
    TransactionalIdAuthorizationFailed = 53, "not authorized for this transactional id";
    OperationNotAttempted = 55, "not attempted, because another part of the request was refused";
    KafkaStorageError = 56, "the log on disk cannot be read or written";
    SaslAuthenticationFailed = 58, "the login failed: the user name or the password is wrong";
    UnknownProducerId = 59, "the broker has no state for this producer id";
    ReassignmentInProgress = 60, "a reassignment of the partition is under way";
    UnsupportedCompressionType = 76, "the compression type is not supported";
    StaleBrokerEpoch = 77, "the node's registration is out of date";
    OffsetNotAvailable = 78, "the leader's high watermark is not known yet; ask again";
    PreferredLeaderNotAvailable = 80, "the preferred leader is not available";
    FencedLeaderEpoch = 74, "the leader epoch in the request is older than the broker's";
    UnknownLeaderEpoch = 75, "the leader epoch in the request is newer than the broker's";
    NonEmptyGroup = 68, "the group has members";
    GroupIdNotFound = 69, "there is no group of this name";
    MemberIdRequired = 79, "the group has given the member an id to join with";
    GroupMaxSizeReached = 81, "the group has as many members as it may have";
    FencedInstanceId = 82, "another process has joined the group under the same instance id";
    GroupSubscribedToTopic = 86, "a member of the group reads the topic";
    InvalidRecord = 87, "the record batch failed the broker's validation";
    UnstableOffsetCommit = 88, "offset commits are pending";
    ThrottlingQuotaExceeded = 89, "a quota is used up";
    ProducerFenced = 90, "a newer producer with the same transactional id is active";
    ResourceNotFound = 91, "there is no such resource";
    UnacceptableCredential = 93, "the credential is not acceptable";
    DuplicateResource = 92, "the request names the same resource twice";
    InconsistentClusterId = 104, "the cluster id does not match";
    DuplicateBrokerRegistration = 101, "this node id is registered with another data directory";
    BrokerIdNotRegistered = 102, "this node id is not registered";
    UnknownTopicId = 100, "this node knows no topic with this id";
    TransactionalIdNotFound = 105, "there is no such transactional id";
    TransactionAbortable = 120, "the transaction can only be aborted";
    FetchSessionTopicIdError = 106, "the fetch session names topics in another way";
    FencedMemberEpoch = 110, "the member epoch is not the member's current one: it must give up its partitions and join again";
    UnreleasedInstanceId = 111, "another member holds the instance id";
    UnsupportedAssignor = 112, "there is no such assignor here; uniform and range are offered";
    StaleMemberEpoch = 113, "the member epoch is not the member's current one";
    InvalidRegularExpression = 128, "the regular expression is not valid, or takes too much room";
    ListenerNotFound = 72, "the node has no listener of the name by which the client came";
    FetchSessionIdNotFound = 70, "the fetch session is not known";
    InvalidFetchSessionEpoch = 71, "the fetch session epoch is not valid";
    TopicDeletionDisabled = 73, "deleting topics is disabled";
}

impl ErrorCode {
    /// Whether the same request may succeed later without the caller changing it. Kafka's `RetriableException`s.
    pub const fn is_retriable(self) -> bool {
        use ErrorCode::*;
        matches!(
            self,
            CorruptMessage
                | UnknownTopicOrPartition
                | LeaderNotAvailable
                | ListenerNotFound
                | NotLeaderOrFollower
                | RequestTimedOut
                | NetworkException
                | CoordinatorLoadInProgress
                | CoordinatorNotAvailable
                | NotCoordinator
                | NotEnoughReplicas
                | NotEnoughReplicasAfterAppend
                | NotController
                | ConcurrentTransactions
                | KafkaStorageError
                | FetchSessionIdNotFound
                | InvalidFetchSessionEpoch
                | FencedLeaderEpoch
                | UnknownLeaderEpoch
                | OffsetNotAvailable
                | PreferredLeaderNotAvailable
                | UnknownTopicId
                | UnstableOffsetCommit
                | ThrottlingQuotaExceeded
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_error_has_the_code_of_success_and_no_two_share_one() {
        let mut codes: Vec<i16> = ErrorCode::ALL.iter().map(|e| e.code()).collect();
        assert!(!codes.contains(&0));
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), ErrorCode::ALL.len());
    }

    #[test]
    fn codes_come_back() {
        for &error in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_code(error.code()), Err(error));
        }
        assert_eq!(ErrorCode::from_code(0), Ok(()));
        assert_eq!(
            ErrorCode::from_code(12345),
            Err(ErrorCode::UnknownServerError)
        );
    }
}
