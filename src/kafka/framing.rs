//! Kafka's framing: each request is a four-byte big-endian length and as many bytes.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::budget::{Budget, Held, RequestMemory};
use super::limits::{self, Limits};
use super::versions;

/// Bytes of the length.
const LENGTH_LEN: usize = 4;
/// API key, version and correlation id: what every request has at least.
pub(super) const MIN_REQUEST_BYTES: usize = 8;
/// What an idle connection keeps ready to read into.
const IDLE_BUFFER_BYTES: usize = 256;
/// What a busy one does; also the first step of a large request, which doubles from there as bytes arrive.
const BUSY_BUFFER_BYTES: usize = 16 << 10;
/// A busy connection reads into what is left of its buffer, unless that is less than this.
const LEAST_ROOM_BYTES: usize = 4 << 10;
/// After so long without a request a connection counts as idle and gives its buffer back.
const IDLE_AFTER: Duration = Duration::from_secs(5);
/// A buffer that a request has grown beyond this is not kept for the next one.
const KEPT_BUFFER_BYTES: usize = 64 << 10;

/// Why no further request was read.
#[derive(Debug, Error)]
pub(super) enum FrameError {
    /// The client closed its side between two requests.
    #[error("closed by the client")]
    Closed,
    /// No request began within the idle time. What was read is kept: reading may go on.
    #[error("idle for too long")]
    Idle,
    #[error("the connection ended within a request: {have} of its {want} bytes had come")]
    CutShort { have: usize, want: usize },
    #[error(
        "a request claims {size} bytes and the limit is {max}: a batch that is too large, or not Kafka's protocol (TLS or HTTP begin so)"
    )]
    TooLarge { size: u32, max: usize },
    #[error("a request claims {size} bytes, fewer than its header takes: not Kafka's protocol")]
    TooSmall { size: i32 },
    #[error("a request came too slowly: {have} of its {want} bytes in {seconds} s")]
    TooSlow {
        have: usize,
        want: usize,
        seconds: u64,
    },
    #[error("reading failed: {0}")]
    Io(#[from] io::Error),
}

/// Cuts a byte stream into requests.
pub(super) struct FrameReader<R> {
    input: R,
    buffer: BytesMut,
    /// Whether requests come often enough to keep a larger buffer.
    busy: bool,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(input: R) -> FrameReader<R> {
        FrameReader {
            input,
            buffer: BytesMut::new(),
            busy: false,
        }
    }

    /// The next request without its length, and the memory it counts for.
    ///
    /// After [`FrameError::Idle`] it may be called again; after any other error the stream is out of step and must be
    /// closed.
    pub(super) async fn next(
        &mut self,
        limits: &Limits,
        memory: &RequestMemory,
    ) -> Result<(Bytes, Held), FrameError> {
        self.begin(limits.max_idle).await?;
        let started = Instant::now();
        let mut pace = Pace {
            started,
            deadline: started + limits.request_deadline,
        };
        let (api_key, size) = self.size(limits, &mut pace).await?;
        let budget = memory.of(api_key);
        let whole = LENGTH_LEN + size;
        let mut held = Held::default();
        let mut counted = 0;
        while self.buffer.len() < whole {
            let step = (whole - self.buffer.len()).min(self.buffer.len().max(BUSY_BUFFER_BYTES));
            // What the buffer will hold, and not only what is new: the first step pays for what is there.
            let upto = (self.buffer.len() + step).min(whole);
            self.pay(budget, &mut held, &mut counted, upto, &mut pace)
                .await;
            self.fill(step, whole, &mut pace).await?;
        }
        self.pay(budget, &mut held, &mut counted, whole, &mut pace)
            .await;
        let mut frame = self.buffer.split_to(whole);
        if frame.len() > KEPT_BUFFER_BYTES {
            // The rest shares the large allocation; a copy of it lets that go with the request.
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        let _ = frame.split_to(LENGTH_LEN);
        Ok((frame.freeze(), held))
    }

    /// Waits for the first byte of a request.
    async fn begin(&mut self, max_idle: Duration) -> Result<(), FrameError> {
        if !self.buffer.is_empty() {
            return Ok(());
        }
        if self.busy {
            if self.buffer.capacity() < LEAST_ROOM_BYTES {
                self.buffer.reserve(BUSY_BUFFER_BYTES);
            }
            match timeout(
                IDLE_AFTER.min(max_idle),
                self.input.read_buf(&mut self.buffer),
            )
            .await
            {
                Ok(read) => return begun(read?),
                Err(_) if max_idle <= IDLE_AFTER => return Err(FrameError::Idle),
                Err(_) => {}
            }
        }
        self.busy = false;
        self.buffer = BytesMut::with_capacity(IDLE_BUFFER_BYTES);
        match timeout(max_idle, self.input.read_buf(&mut self.buffer)).await {
            Ok(read) => {
                self.busy = true;
                begun(read?)
            }
            Err(_) => Err(FrameError::Idle),
        }
    }

    /// API key and size of the request that has begun, checked against what its kind may take.
    async fn size(&mut self, limits: &Limits, pace: &mut Pace) -> Result<(i16, usize), FrameError> {
        let upto = LENGTH_LEN + MIN_REQUEST_BYTES;
        while self.buffer.len() < LENGTH_LEN {
            self.fill(upto - self.buffer.len(), upto, pace).await?;
        }
        let size = i32::from_be_bytes([
            self.buffer[0],
            self.buffer[1],
            self.buffer[2],
            self.buffer[3],
        ]);
        let claimed = match usize::try_from(size) {
            // A TLS or HTTP greeting has a first byte that makes a huge or negative length.
            Err(_) => {
                return Err(FrameError::TooLarge {
                    size: size as u32,
                    max: limits.max_request_bytes,
                });
            }
            Ok(claimed) if claimed < MIN_REQUEST_BYTES => {
                return Err(FrameError::TooSmall { size });
            }
            Ok(claimed) => claimed,
        };
        let whole = LENGTH_LEN + claimed;
        if claimed > limits.max_request_bytes {
            return Err(FrameError::TooLarge {
                size: size as u32,
                max: limits.max_request_bytes,
            });
        }
        while self.buffer.len() < LENGTH_LEN + 2 {
            self.fill(upto - self.buffer.len(), whole, pace).await?;
        }
        let api_key = i16::from_be_bytes([self.buffer[4], self.buffer[5]]);
        if !versions::may_be_large(api_key) && claimed > limits::MAX_CONTROL_REQUEST_BYTES {
            return Err(FrameError::TooLarge {
                size: size as u32,
                max: limits::MAX_CONTROL_REQUEST_BYTES,
            });
        }
        Ok((api_key, claimed))
    }

    /// Takes from the budget what the request will hold. That wait is the node's doing and not charged to the client.
    async fn pay(
        &self,
        budget: &Budget,
        held: &mut Held,
        counted: &mut usize,
        upto: usize,
        pace: &mut Pace,
    ) {
        let before = Instant::now();
        budget.take(held, upto.saturating_sub(*counted)).await;
        *counted = upto.max(*counted);
        pace.deadline += before.elapsed();
    }

    /// Reads once, into at least `room` bytes.
    async fn fill(&mut self, room: usize, whole: usize, pace: &mut Pace) -> Result<(), FrameError> {
        self.buffer.reserve(room);
        let have = self.buffer.len();
        let earned = Duration::from_secs((have / limits::MIN_BYTES_PER_SECOND) as u64);
        match timeout_at(
            pace.deadline + earned,
            self.input.read_buf(&mut self.buffer),
        )
        .await
        {
            Ok(Ok(0)) => Err(FrameError::CutShort {
                have: have.saturating_sub(LENGTH_LEN),
                want: whole - LENGTH_LEN,
            }),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(FrameError::TooSlow {
                have: have.saturating_sub(LENGTH_LEN),
                want: whole - LENGTH_LEN,
                seconds: pace.started.elapsed().as_secs(),
            }),
        }
    }
}

/// By when a request must have come.
struct Pace {
    started: Instant,
    deadline: Instant,
}

fn begun(read: usize) -> Result<(), FrameError> {
    if read == 0 {
        Err(FrameError::Closed)
    } else {
        Ok(())
    }
}
