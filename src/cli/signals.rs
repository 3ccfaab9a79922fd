//! Ctrl-C, SIGTERM and SIGHUP: the first asks for a tidy end, the second for any end.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub(super) struct Signals {
    once: CancellationToken,
    twice: CancellationToken,
    records_flow: CancellationToken,
}

impl Signals {
    /// From now on these signals no longer end the process by themselves.
    pub(super) fn listen() -> std::io::Result<Signals> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let signals = Signals {
            once: CancellationToken::new(),
            twice: CancellationToken::new(),
            records_flow: CancellationToken::new(),
        };
        let heard = [signals.once.clone(), signals.twice.clone()];
        tokio::spawn(async move {
            for token in heard {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
                token.cancel();
            }
        });
        Ok(signals)
    }

    pub(super) async fn once(&self) {
        self.once.cancelled().await;
    }

    pub(super) async fn twice(&self) {
        self.twice.cancelled().await;
    }

    /// A signal from now on ends the producing, and with that the demo.
    pub(super) fn records_flow(&self) {
        self.records_flow.cancel();
    }

    /// Ends at a signal that comes before [`Signals::records_flow`], else never.
    pub(super) async fn stopped_early(&self) {
        self.once.cancelled().await;
        if self.records_flow.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }
}
