//! The asynchronous runtime that openraft runs on: tokio, with more time for a vote.

use std::future::Future;
use std::time::Duration;

use openraft::{AsyncRuntime, OptionalSend, TokioRuntime};

/// openraft's `election_timeout_min`, which is also how long it waits for the answer to a request for a vote, and which must
/// be below the lease (see [`LEADER_LEASE`]).
pub(super) const VOTE_TIMEOUT: Duration = Duration::from_millis(150);
/// openraft's `election_timeout_max`, which is also its lease: so long after the last message of an active controller, a
/// controller refuses its vote to any other. Whether the active one is gone is for our own detector to say, whose limits
/// all exceed this ([`super::liveness::silence_limit`]); so it is as short as the heartbeats of openraft allow.
pub(super) const LEADER_LEASE: Duration = Duration::from_millis(200);
/// How long the answer to a request for a vote is really waited for: several round trips of the longest link there is.
pub(super) const VOTE_PATIENCE: Duration = Duration::from_secs(3);

/// tokio, except that what openraft gives [`VOTE_TIMEOUT`] gets [`VOTE_PATIENCE`].
///
/// openraft's lease must be longer than its patience with a vote. One that suits a link around the world would keep a
/// cluster in one room without an active controller for as long, and one that suits the room would let no vote come back
/// from around the world.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Runtime;

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> =
        <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;
    type OneshotSender<T: OptionalSend> = <TokioRuntime as AsyncRuntime>::OneshotSender<T>;
    type OneshotReceiverError = <TokioRuntime as AsyncRuntime>::OneshotReceiverError;
    type OneshotReceiver<T: OptionalSend> = <TokioRuntime as AsyncRuntime>::OneshotReceiver<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        let duration = if duration == VOTE_TIMEOUT {
            VOTE_PATIENCE
        } else {
            duration
        };
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        TokioRuntime::thread_rng()
    }

    fn oneshot<T>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>)
    where
        T: OptionalSend,
    {
        TokioRuntime::oneshot()
    }
}
