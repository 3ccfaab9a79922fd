//! Whose certificates a node uses.

use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use super::{NodeConfig, NodeError};
use crate::transport::{CertificateHost, CertsDir, ClientName, Identity, IssueOptions};

/// The client certificate that is made for a node that makes its own: for whoever runs it.
const CLIENT: &str = "admin";

/// The directory that was given, or the one under the data directory.
pub(super) fn certs_dir(config: &NodeConfig) -> PathBuf {
    config
        .certs_dir
        .clone()
        .unwrap_or_else(|| config.data_dir.join("certs"))
}

/// Loads and checks the node's identity; `None` where there is none yet and the node makes its own. Changes nothing.
pub(super) fn load(config: &NodeConfig, dir: &Path) -> Result<Option<Identity>, NodeError> {
    let (certificate, _) = CertsDir::new(dir).node_pair();
    if config.certs_dir.is_none() && !certificate.exists() {
        return Ok(None);
    }
    let identity = Identity::load_node(dir)?;
    identity.check(OffsetDateTime::now_utc())?;
    match identity.peer().node() {
        Some(found) if found != config.node_id => Err(NodeError::OtherNodesCertificate {
            path: identity.certificate_path().to_owned(),
            wanted: config.node_id,
            found,
        }),
        _ => Ok(Some(identity)),
    }
}

/// Makes a CA, a node's and a client's certificate: what a node that is a cluster by itself starts with.
pub(super) fn create(config: &NodeConfig, dir: &Path) -> Result<Identity, NodeError> {
    let certs = CertsDir::new(dir);
    let options = IssueOptions::new(OffsetDateTime::now_utc());
    certs.create_ca(&options)?;
    let mut names = vec![
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ];
    let kafka = config.kafka.values();
    let listeners = std::iter::once((&config.advertise, config.listen))
        .chain(kafka.map(|listener| (&listener.advertise, listener.listen)));
    let own = listeners.flat_map(|(advertise, listen)| {
        let advertised = advertise.as_ref().map(|endpoint| endpoint.host.clone());
        let own = (!listen.ip().is_unspecified()).then(|| listen.ip().to_string());
        advertised.into_iter().chain(own)
    });
    for name in own {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let hosts: Vec<CertificateHost> = names.iter().filter_map(|name| name.parse().ok()).collect();
    certs.create_node(config.node_id, &hosts, &options)?;
    if let Ok(client) = ClientName::new(CLIENT) {
        certs.create_client(&client, &options)?;
    }
    tracing::info!(
        dir = %dir.display(),
        "made a CA and certificates, because none were given; clients use --certs-dir with this directory"
    );
    Ok(Identity::load_node(dir)?)
}
