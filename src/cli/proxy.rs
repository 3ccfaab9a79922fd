//! `quorate proxy`: a Kafka endpoint on this machine for a cluster that is reached over QUIC.

use std::net::SocketAddr;

use anyhow::Context;
use clap::Args;

use super::signals::Signals;
use super::{Exit, GlobalOptions, block_on_to_the_end, connect, note};
use crate::proxy::{Proxy, ProxyOptions};

/// Serve Kafka clients on this machine, and carry their connections to the cluster over QUIC
///
/// A client needs no change but its bootstrap address. Its connections are under mutual TLS with this machine's client
/// certificate, survive a change of this machine's address, and are dialled anew when a link breaks.
#[derive(Args, Debug)]
pub(super) struct ProxyArgs {
    /// The bootstrap address for clients on this machine, a loopback address
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9092")]
    listen: SocketAddr,
    /// Node N gets the local port BASE + N; without it, any free port
    #[arg(long, value_name = "BASE")]
    node_ports: Option<u16>,
}

pub(super) fn run(options: &GlobalOptions, args: ProxyArgs) -> anyhow::Result<Exit> {
    block_on_to_the_end(async {
        let signals = Signals::listen().context("cannot listen for SIGTERM and Ctrl-C")?;
        let client = connect::client(options).await?;
        let options = ProxyOptions {
            listen: args.listen,
            node_ports: args.node_ports,
        };
        let proxy = Proxy::start(client.clone(), &options).await?;
        note(&format!(
            "Kafka clients on this machine: bootstrap.servers={}",
            proxy.address()
        ));
        signals.once().await;
        proxy.stop().await;
        client.close();
        Ok(Exit::Ok)
    })
}
