//! How commands reach the cluster.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use time::OffsetDateTime;

use super::{Exit, ExitWith, GlobalOptions};
use crate::admin::{AdminError, AdminRequest, NodeStatus, ask, operate as ask_to_operate};
use crate::client::{
    Client, ClientConfig, ClientError, ConnectCause, ConnectError, IdentityDialer,
};
use crate::controller::{Operation, OperationOutcome};
use crate::transport::{
    Alpn, CloseReason, ConnectFailure, CurrentIdentity, Identity, PeerAddress, dial,
};
use crate::types::ErrorCode;

/// Where a node listens unless it is told otherwise.
pub(super) const DEFAULT_BOOTSTRAP_SERVER: &str = "127.0.0.1:9292";
/// How long the first connection is tried, where `--timeout` is not shorter: a server that was just started has its time, and
/// a wrong address is soon heard of.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection that is no longer needed is kept for the node to hear of it.
const CLOSE_WAIT: Duration = Duration::from_millis(200);
/// Added to the time that an operation has, for its answer to arrive.
const ANSWER_MARGIN: Duration = Duration::from_secs(2);

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

/// How a client of the cluster behaves.
pub(super) fn config(options: &GlobalOptions) -> ClientConfig {
    let servers = bootstrap_servers(options);
    let mut config = ClientConfig::new(servers.iter().map(|server| server.host_port.clone()));
    config.request_timeout = options.timeout;
    config.bootstrap_timeout = CONNECT_PATIENCE.min(options.timeout);
    config.connect_timeout = CONNECT_PATIENCE.min(options.timeout);
    config
}

/// A client of the cluster. `--timeout` limits each of its requests.
pub(super) async fn client(options: &GlobalOptions) -> anyhow::Result<Client> {
    let config = config(options);
    let dialer = IdentityDialer::on(options.sockets(), CurrentIdentity::new(identity(options)?));
    Client::connect(config, Arc::new(dialer))
        .await
        .map_err(failed)
}

/// A client's error as the program ends with it: no connection is 3, with the one sentence that says why; what the cluster
/// refused bears Kafka's name for the refusal.
pub(super) fn failed(error: ClientError) -> anyhow::Error {
    if let Some(connect) = error.connect_error() {
        return ExitWith::new(Exit::CannotConnect, connect_sentence(connect)).into();
    }
    match error.error_code() {
        Some(code) => anyhow::anyhow!("{} ({})", in_one_line(&error), kafka_name(code)),
        None => error.into(),
    }
}

fn connect_sentence(error: &ConnectError) -> String {
    match &error.cause {
        // It is a whole sentence, with the address in it.
        ConnectCause::Explained(failure) => in_one_line(failure),
        ConnectCause::TimedOut { after } => format!(
            "{} did not answer within {} ms (unreachable): check that the server runs, and that UDP gets through to it",
            error.address,
            after.as_millis()
        ),
        _ => in_one_line(error),
    }
}

/// An error and its causes in one line. A cause that was told already is left out.
pub(super) fn in_one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}

/// An error code by the name that Kafka's documentation and other clients use, such as `NOT_ENOUGH_REPLICAS`.
pub(super) fn kafka_name(code: ErrorCode) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
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

/// Has the cluster carry something out, by way of the first node that can be reached.
pub(super) async fn operate(
    options: &GlobalOptions,
    operation: Operation,
) -> anyhow::Result<OperationOutcome> {
    let identity = Arc::new(identity(options)?);
    let sockets = options.sockets();
    let within = CONNECT_PATIENCE.min(options.timeout);
    let mut failure = None;
    for address in bootstrap_servers(options) {
        let dialled = match sockets.dial(&identity, &address, Alpn::Admin, within).await {
            Ok(dialled) => dialled,
            Err(error) => {
                failure.get_or_insert(error);
                continue;
            }
        };
        let asked = ask_to_operate(&dialled.connection, operation, options.timeout);
        // The node answers within the timeout, whatever comes of it.
        let outcome = match tokio::time::timeout(options.timeout + ANSWER_MARGIN, asked).await {
            Ok(outcome) => outcome.map_err(anyhow::Error::from),
            Err(_) => Err(AdminError::Unknown(format!("{address} did not answer in time")).into()),
        };
        dialled.close(CloseReason::Done, "", CLOSE_WAIT).await;
        return outcome;
    }
    match failure {
        Some(error) => Err(error.into()),
        None => Err(anyhow::anyhow!(
            "no node to ask: add --bootstrap-server HOST:PORT"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_kafkas_names() {
        for (code, name) in [
            (ErrorCode::NotEnoughReplicas, "NOT_ENOUGH_REPLICAS"),
            (ErrorCode::NotLeaderOrFollower, "NOT_LEADER_OR_FOLLOWER"),
            (ErrorCode::UnknownTopicId, "UNKNOWN_TOPIC_ID"),
        ] {
            assert_eq!(kafka_name(code), name);
        }
    }

    #[test]
    fn a_connection_that_fails_is_told_in_one_sentence_and_is_3() {
        let after = Duration::from_secs(2);
        let connect = ConnectError {
            address: "db1:9292".into(),
            cause: ConnectCause::TimedOut { after },
        };
        let error = failed(ClientError::GaveUp {
            what: "Metadata request".into(),
            after,
            cause: Box::new(ClientError::Connect(connect)),
        });
        assert_eq!(Exit::of(&error), Exit::CannotConnect);
        assert_eq!(error.chain().count(), 1);
        assert!(
            error
                .to_string()
                .starts_with("db1:9292 did not answer within 2000 ms"),
            "{error}"
        );
    }

    #[test]
    fn a_refusal_bears_kafkas_name() {
        let error = failed(ClientError::Refused {
            what: "creating topic t".into(),
            code: ErrorCode::TopicAlreadyExists,
            message: None,
        });
        assert!(
            error.to_string().ends_with(" (TOPIC_ALREADY_EXISTS)"),
            "{error}"
        );
        assert_eq!(Exit::of(&error), Exit::Failure);
    }
}
