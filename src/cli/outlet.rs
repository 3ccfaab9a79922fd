//! Standard output on a thread of its own, for a command that writes much.
//!
//! A write to a pipe waits as long as its reader takes nothing, and cannot be called off. Here only this thread waits: the
//! command goes on listening for Ctrl-C, and the end of the process ends the thread.

use std::io::{self, Write};

use anyhow::Context;
use tokio::sync::{mpsc, oneshot};

use super::output::closed;

/// Pieces that wait to be written. At the cap [`Outlet::write`] waits.
const MAX_WAITING: usize = 2;

/// What is written next, and who is told when it is.
type Piece = (Vec<u8>, Option<oneshot::Sender<()>>);

pub(super) struct Outlet {
    pieces: mpsc::Sender<Piece>,
    /// How the writing ended.
    ended: oneshot::Receiver<io::Result<()>>,
}

impl Outlet {
    pub(super) fn start() -> anyhow::Result<Outlet> {
        let (pieces, mut waiting) = mpsc::channel::<Piece>(MAX_WAITING);
        let (end, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || {
                let mut written = Ok(());
                while let Some((piece, tell)) = waiting.blocking_recv() {
                    let mut stdout = io::stdout().lock();
                    written = stdout.write_all(&piece).and_then(|()| stdout.flush());
                    if written.is_err() {
                        break;
                    }
                    if let Some(tell) = tell {
                        let _ = tell.send(());
                    }
                }
                // Dropped first, so that whoever finds it closed also finds the reason.
                drop(waiting);
                let _ = end.send(written);
            })
            .context("cannot start a thread to write the output")?;
        Ok(Outlet { pieces, ended })
    }

    /// Has it written after what was given before.
    ///
    /// # Errors
    /// An earlier piece could not be written.
    pub(super) async fn write(&mut self, piece: Vec<u8>) -> anyhow::Result<()> {
        if self.pieces.send((piece, None)).await.is_ok() {
            return Ok(());
        }
        self.outcome().await
    }

    /// Waits until everything that was given is written.
    ///
    /// # Errors
    /// Something of it could not be written.
    pub(super) async fn settle(&mut self) -> anyhow::Result<()> {
        let (tell, written) = oneshot::channel();
        let sent = self.pieces.send((Vec::new(), Some(tell))).await;
        if sent.is_ok() && written.await.is_ok() {
            return Ok(());
        }
        self.outcome().await
    }

    /// Waits until everything is written.
    pub(super) async fn finish(mut self) -> anyhow::Result<()> {
        let (nobody, _) = mpsc::channel(1);
        drop(std::mem::replace(&mut self.pieces, nobody));
        self.outcome().await
    }

    async fn outcome(&mut self) -> anyhow::Result<()> {
        let outcome = (&mut self.ended).await;
        closed(outcome.unwrap_or_else(|_| Err(io::Error::other("the output thread has ended"))))
    }
}
