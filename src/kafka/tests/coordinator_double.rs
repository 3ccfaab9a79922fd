//! A transaction coordinator whose log is nothing, and whose partitions take every marker at once.

use crate::transactions::{Answer, Coordinator, Marked, Now, Request, Settings, Ticket};
use crate::types::{ErrorCode, LeaderEpoch, MonotonicTime, ProducerId};

pub(super) struct CoordinatorDouble {
    coordinator: Coordinator,
    tickets: u64,
}

impl CoordinatorDouble {
    pub(super) fn new() -> CoordinatorDouble {
        let epoch = LeaderEpoch::new(1).unwrap();
        CoordinatorDouble {
            coordinator: Coordinator::new(Settings::default(), epoch),
            tickets: 0,
        }
    }

    pub(super) fn ask(&mut self, id: &str, request: Request) -> Result<Answer, ErrorCode> {
        let now = Now {
            monotonic: MonotonicTime::ZERO,
            wall_ms: 1_000,
        };
        let request = request.with_fresh(ProducerId::new(5_000).unwrap());
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.coordinator.handle(now, ticket, id, request);
        loop {
            if self.coordinator.take_write().is_some() {
                self.coordinator.handle_written(now, 0, Ok(()));
                continue;
            }
            let markers = self.coordinator.take_markers(now, 100);
            if markers.is_empty() {
                break;
            }
            for marker in markers {
                self.coordinator
                    .handle_marked(now, 0, marker, Marked::Written);
            }
        }
        let (answered, answer) = self.coordinator.poll_answer().unwrap();
        assert_eq!(answered, ticket);
        answer
    }
}
