//! The states of a transaction, by Kafka's names and numbers.

pub use crate::record::TransactionOutcome as Ending;

/// Where a transactional id stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// A producer has begun with the id and no transaction.
    Empty,
    Ongoing,
    /// It is decided that it commits; the partitions are being told.
    PrepareCommit,
    /// Likewise for an abort.
    PrepareAbort,
    CompleteCommit,
    CompleteAbort,
    /// The id is being removed.
    Dead,
    /// About to be aborted under the next producer epoch. Never written.
    PrepareEpochFence,
}

impl State {
    const ALL: [State; 8] = [
        State::Empty,
        State::Ongoing,
        State::PrepareCommit,
        State::PrepareAbort,
        State::CompleteCommit,
        State::CompleteAbort,
        State::Dead,
        State::PrepareEpochFence,
    ];

    /// Kafka's name for it, as its tools show it.
    pub const fn name(self) -> &'static str {
        match self {
            State::Empty => "Empty",
            State::Ongoing => "Ongoing",
            State::PrepareCommit => "PrepareCommit",
            State::PrepareAbort => "PrepareAbort",
            State::CompleteCommit => "CompleteCommit",
            State::CompleteAbort => "CompleteAbort",
            State::Dead => "Dead",
            State::PrepareEpochFence => "PrepareEpochFence",
        }
    }

    /// `None` where there is no state of this name.
    pub fn from_name(name: &str) -> Option<State> {
        State::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Kafka's number for it in the log.
    pub(super) const fn number(self) -> i8 {
        match self {
            State::Empty => 0,
            State::Ongoing => 1,
            State::PrepareCommit => 2,
            State::PrepareAbort => 3,
            State::CompleteCommit => 4,
            State::CompleteAbort => 5,
            State::Dead => 6,
            State::PrepareEpochFence => 7,
        }
    }

    pub(super) fn from_number(number: i8) -> Option<State> {
        State::ALL
            .into_iter()
            .find(|state| state.number() == number)
    }

    /// How it is going to end, once that is decided and until every partition knows.
    pub(super) const fn ending(self) -> Option<Ending> {
        match self {
            State::PrepareCommit => Some(Ending::Commit),
            State::PrepareAbort => Some(Ending::Abort),
            _ => None,
        }
    }

    /// How the last transaction has ended.
    pub(super) const fn ended(self) -> Option<Ending> {
        match self {
            State::CompleteCommit => Some(Ending::Commit),
            State::CompleteAbort => Some(Ending::Abort),
            _ => None,
        }
    }

    /// Whether no transaction is there, so that the id may go or be given to a producer.
    pub(super) const fn is_at_rest(self) -> bool {
        matches!(
            self,
            State::Empty | State::CompleteCommit | State::CompleteAbort
        )
    }
}

impl Ending {
    pub(super) const fn prepare(self) -> State {
        match self {
            Ending::Commit => State::PrepareCommit,
            Ending::Abort => State::PrepareAbort,
        }
    }

    pub(super) const fn complete(self) -> State {
        match self {
            Ending::Commit => State::CompleteCommit,
            Ending::Abort => State::CompleteAbort,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_go_there_and_back() {
        for state in State::ALL {
            assert_eq!(State::from_name(state.name()), Some(state));
            assert_eq!(State::from_number(state.number()), Some(state));
        }
        assert_eq!(State::from_name("Busy"), None);
        assert_eq!(State::from_number(8), None);
    }

    #[test]
    fn every_ending_is_prepared_then_complete() {
        for ending in [Ending::Commit, Ending::Abort] {
            assert_eq!(ending.prepare().ending(), Some(ending));
            assert_eq!(ending.complete().ended(), Some(ending));
            assert!(ending.complete().is_at_rest());
            assert!(!ending.prepare().is_at_rest());
        }
    }
}
