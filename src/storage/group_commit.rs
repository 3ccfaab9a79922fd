//! Syncs on threads of their own: while the disk works for some partitions, the others append, and what they append
//! meanwhile is covered by their next sync. No owner of a log ever waits for the disk.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::sync::{SyncError, SyncTicket};
use crate::types::DurationHistogram;

/// What to do with a ticket that has run. Called on a sync thread: it passes the ticket on to the log's owner and returns.
pub type Completion = Box<dyn FnOnce(SyncTicket, Result<(), SyncError>) + Send>;

/// How many tickets may wait. Each log has one out at most, so it takes as many partitions to get here; then
/// [`GroupCommit::submit`] blocks until one has been taken up.
pub const MAX_WAITING_TICKETS: usize = 100_000;

/// How many syncs run at a time unless the caller says otherwise: the kernel joins concurrent ones of one disk into one
/// journal commit, so a few threads are one group commit over all partitions that wait.
pub const SYNC_THREADS: usize = 4;

/// The sync threads of a node. Dropping it runs what was submitted, then ends them.
pub struct GroupCommit {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

struct Queue {
    waiting: Mutex<Waiting>,
    /// Signalled for each ticket that comes, and at the end.
    submitted: Condvar,
    /// Signalled for each ticket that is taken up.
    taken: Condvar,
    syncs: AtomicU64,
    sync_times: DurationHistogram,
}

#[derive(Default)]
struct Waiting {
    tickets: VecDeque<(SyncTicket, Completion)>,
    closed: bool,
}

impl GroupCommit {
    /// Starts `threads` threads, at least one.
    pub fn start(threads: usize) -> io::Result<GroupCommit> {
        let queue = Arc::new(Queue {
            waiting: Mutex::new(Waiting::default()),
            submitted: Condvar::new(),
            taken: Condvar::new(),
            syncs: AtomicU64::new(0),
            sync_times: DurationHistogram::default(),
        });
        let mut group = GroupCommit {
            queue,
            threads: Vec::new(),
        };
        for i in 0..threads.max(1) {
            let queue = group.queue.clone();
            let thread = std::thread::Builder::new()
                .name(format!("sync-{i}"))
                .spawn(move || queue.work())?;
            group.threads.push(thread);
        }
        Ok(group)
    }

    /// Has the ticket run as soon as a thread is free, in order of submission.
    pub fn submit(
        &self,
        ticket: SyncTicket,
        completion: impl FnOnce(SyncTicket, Result<(), SyncError>) + Send + 'static,
    ) {
        let mut waiting = self.queue.lock();
        while waiting.tickets.len() >= MAX_WAITING_TICKETS {
            waiting = self
                .queue
                .taken
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
        waiting.tickets.push_back((ticket, Box::new(completion)));
        drop(waiting);
        self.queue.submitted.notify_one();
    }

    /// How many tickets wait to be taken up.
    pub fn waiting(&self) -> usize {
        self.queue.lock().tickets.len()
    }

    /// How many tickets have run, failed ones included.
    pub fn syncs(&self) -> u64 {
        self.queue.syncs.load(Ordering::Relaxed)
    }

    /// How long tickets ran, failed ones included; what they waited before is not in it.
    pub fn sync_times(&self) -> &DurationHistogram {
        &self.queue.sync_times
    }
}

impl Drop for GroupCommit {
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.submitted.notify_all();
        for thread in self.threads.drain(..) {
            // A panic in a completion has been reported where it happened.
            let _ = thread.join();
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        loop {
            let mut waiting = self.lock();
            let (ticket, completion) = loop {
                if let Some(next) = waiting.tickets.pop_front() {
                    break next;
                }
                if waiting.closed {
                    return;
                }
                waiting = self
                    .submitted
                    .wait(waiting)
                    .unwrap_or_else(PoisonError::into_inner);
            };
            drop(waiting);
            self.taken.notify_one();
            let begun = Instant::now();
            let outcome = ticket.run();
            self.sync_times.record(begun.elapsed());
            self.syncs.fetch_add(1, Ordering::Relaxed);
            completion(ticket, outcome);
        }
    }
}
