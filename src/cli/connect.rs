//! How commands reach the cluster.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use time::OffsetDateTime;

use super::{Exit, ExitWith, GlobalOptions};
use crate::admin::{AdminRequest, NodeStatus, ask};
use crate::client::{Client, ClientConfig, ClientError, IdentityDialer};
use crate::transport::{
    Alpn, CloseReason, ConnectFailure, CurrentIdentity, Identity, PeerAddress, dial,
};

/// Where a node listens unless it is told otherwise.
pub(super) const DEFAULT_BOOTSTRAP_SERVER: &str = "127.0.0.1:9292";
/// How long a connection that is no longer needed is kept for the node to hear of it.
const CLOSE_WAIT: Duration = Duration::from_millis(200);

/// The nodes to try first.
pub(super) fn bootstrap_servers(options: &GlobalOptions) -> Vec<PeerAddress> {
    if options.bootstrap_servers.is_empty() {
        return vec![PeerAddress::any(DEFAULT_BOOTSTRAP_SERVER)];
    }
    options.bootstrap_servers.clone()
}

/// The client's certificate, with anything that is wrong with it said before anyone is dialled.
pub(super) fn identity(options: &GlobalOptions) -> anyhow::Result<Identity> {
    let identity = Identity::load_client(options.certs_dir(), None)?;
    identity.check(OffsetDateTime::now_utc())?;
    Ok(identity)
}

/// A client of the cluster.
pub(super) async fn client(options: &GlobalOptions) -> anyhow::Result<Client> {
    let servers = bootstrap_servers(options);
    let mut config = ClientConfig::new(servers.iter().map(|server| server.host_port.clone()));
    config.bootstrap_timeout = config.bootstrap_timeout.min(options.timeout);
    config.connect_timeout = config.connect_timeout.min(options.timeout);
    let dialer = IdentityDialer::new(CurrentIdentity::new(identity(options)?));
    Client::connect(config, Arc::new(dialer))
        .await
        .map_err(failed)
}

/// A client's error with the exit code that it stands for: no connection is 3.
pub(super) fn failed(error: ClientError) -> anyhow::Error {
    let cannot_connect = error.connect_error().is_some();
    let error = anyhow::Error::new(error);
    if cannot_connect {
        return error.context(ExitWith::new(
            Exit::CannotConnect,
            "cannot connect to the cluster",
        ));
    }
    error
}

/// Asks one node what it knows.
pub(super) async fn node_status(
    identity: &Arc<Identity>,
    address: &PeerAddress,
    within: Duration,
) -> anyhow::Result<NodeStatus> {
    let dialled = dial(identity, address, Alpn::Admin, within).await?;
    let asked = tokio::time::timeout(within, ask(&dialled.connection, &AdminRequest::Status)).await;
    let status = match asked {
        Ok(Ok(status)) => Ok(status),
        Ok(Err(error)) => Err(error).with_context(|| format!("cannot ask {address}")),
        Err(_) => Err(ConnectFailure::Unreachable {
            address: address.to_string(),
            waited: within,
        }
        .into()),
    };
    dialled.close(CloseReason::Done, "", CLOSE_WAIT).await;
    status
}
