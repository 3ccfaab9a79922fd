//! Responses that name nodes, with the nodes' local ports in the place of their addresses.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{
    ApiKey, BrokerId, DescribeClusterResponse, FindCoordinatorResponse, MetadataResponse,
    ProduceResponse, ResponseHeader,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes};
use thiserror::Error;

use super::peek::Peeked;
use crate::metadata::Endpoint;
use crate::types::ErrorCode;

/// Since this version a Produce response names leaders by their addresses.
const PRODUCE_ENDPOINTS_SINCE: i16 = 10;

/// Whether the answer to a request names nodes.
pub(super) fn names_nodes(request: &Peeked) -> bool {
    match ApiKey::try_from(request.api_key) {
        Ok(ApiKey::Metadata | ApiKey::FindCoordinator | ApiKey::DescribeCluster) => true,
        Ok(ApiKey::Produce) => request.version >= PRODUCE_ENDPOINTS_SINCE,
        // A node names none in a Fetch response, though Kafka's may.
        _ => false,
    }
}

/// A response that cannot be rewritten. The connection is closed: its client would dial what it cannot reach.
#[derive(Debug, Error)]
#[error("a response to request {api_key} of version {version} cannot be read: {reason}")]
pub(super) struct Unreadable {
    api_key: i16,
    version: i16,
    reason: String,
}

/// Where clients find a node: by its id and what the cluster says of it. `None`: it is left out.
pub(super) type Local<'a> = dyn FnMut(i32, &Endpoint) -> Option<(String, u16)> + Send + 'a;

/// Rewrites a response: what follows its length, correlation id included.
pub(super) fn rewrite(
    request: &Peeked,
    response: Bytes,
    local: &mut Local<'_>,
) -> Result<Bytes, Unreadable> {
    match ApiKey::try_from(request.api_key) {
        Ok(ApiKey::Metadata) => edit::<MetadataResponse>(request, response, |metadata| {
            metadata.brokers.retain_mut(|broker| {
                replace(broker.node_id.0, &mut broker.host, &mut broker.port, local)
            });
        }),
        Ok(ApiKey::DescribeCluster) => {
            edit::<DescribeClusterResponse>(request, response, |cluster| {
                cluster.brokers.retain_mut(|broker| {
                    replace(
                        broker.broker_id.0,
                        &mut broker.host,
                        &mut broker.port,
                        local,
                    )
                });
            })
        }
        Ok(ApiKey::FindCoordinator) => {
            edit::<FindCoordinatorResponse>(request, response, |found| {
                // The first three versions answer for one group, the others for each.
                if request.version < 4
                    && found.error_code == 0
                    && !replace(found.node_id.0, &mut found.host, &mut found.port, local)
                {
                    found.error_code = ErrorCode::CoordinatorNotAvailable.code();
                    (found.node_id, found.host, found.port) = nowhere();
                }
                for one in &mut found.coordinators {
                    if one.error_code == 0
                        && !replace(one.node_id.0, &mut one.host, &mut one.port, local)
                    {
                        one.error_code = ErrorCode::CoordinatorNotAvailable.code();
                        (one.node_id, one.host, one.port) = nowhere();
                    }
                }
            })
        }
        Ok(ApiKey::Produce) => edit::<ProduceResponse>(request, response, |produced| {
            produced
                .node_endpoints
                .retain_mut(|node| replace(node.node_id.0, &mut node.host, &mut node.port, local));
        }),
        _ => Ok(response),
    }
}

/// A node that its client cannot reach through the proxy, and must not try to reach beside it.
fn nowhere() -> (BrokerId, StrBytes, i32) {
    (BrokerId(-1), StrBytes::default(), -1)
}

fn replace(node: i32, host: &mut StrBytes, port: &mut i32, local: &mut Local<'_>) -> bool {
    let Ok(known) = u16::try_from(*port) else {
        return false;
    };
    let endpoint = Endpoint {
        host: host.to_string(),
        port: known,
    };
    let Some((local_host, local_port)) = local(node, &endpoint) else {
        return false;
    };
    *host = StrBytes::from_string(local_host);
    *port = local_port.into();
    true
}

fn edit<R: Decodable + Encodable + HeaderVersion>(
    request: &Peeked,
    mut response: Bytes,
    change: impl FnOnce(&mut R),
) -> Result<Bytes, Unreadable> {
    let version = request.version;
    let unreadable = |reason: String| Unreadable {
        api_key: request.api_key,
        version,
        reason,
    };
    let header_version = R::header_version(version);
    let header = ResponseHeader::decode(&mut response, header_version)
        .map_err(|error| unreadable(error.to_string()))?;
    let mut body =
        R::decode(&mut response, version).map_err(|error| unreadable(error.to_string()))?;
    if response.has_remaining() {
        return Err(unreadable(format!(
            "{} bytes are left over",
            response.remaining()
        )));
    }
    change(&mut body);
    let mut out = BytesMut::new();
    out.put_i32(0);
    header
        .encode(&mut out, header_version)
        .and_then(|()| body.encode(&mut out, version))
        .map_err(|error| unreadable(error.to_string()))?;
    let length = i32::try_from(out.len() - 4).map_err(|error| unreadable(error.to_string()))?;
    out[..4].copy_from_slice(&length.to_be_bytes());
    Ok(out.freeze())
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::BrokerId;
    use kafka_protocol::messages::find_coordinator_response::Coordinator;
    use kafka_protocol::messages::metadata_response::MetadataResponseBroker;
    use kafka_protocol::messages::produce_response::NodeEndpoint;

    use super::*;

    fn request(key: ApiKey, version: i16) -> Peeked {
        Peeked {
            api_key: key as i16,
            version,
            correlation_id: 9,
            is_answered: true,
        }
    }

    fn far() -> StrBytes {
        StrBytes::from_static_str("far.example")
    }

    /// What a client reads of a response that went through.
    fn through<R: Decodable + Encodable + HeaderVersion>(
        key: ApiKey,
        version: i16,
        response: &R,
    ) -> R {
        let mut out = BytesMut::new();
        let header_version = R::header_version(version);
        let header = ResponseHeader::default().with_correlation_id(9);
        header.encode(&mut out, header_version).unwrap();
        response.encode(&mut out, version).unwrap();
        let mut local = |node: i32, endpoint: &Endpoint| {
            assert_eq!(endpoint.host, "far.example");
            // Node 3 gets no port.
            (node != 3).then(|| ("127.0.0.1".to_owned(), 20_000 + node as u16))
        };
        let mut out = rewrite(&request(key, version), out.freeze(), &mut local).unwrap();
        assert_eq!(out.get_i32() as usize, out.len());
        let header = ResponseHeader::decode(&mut out, header_version).unwrap();
        assert_eq!(header.correlation_id, 9);
        let read = R::decode(&mut out, version).unwrap();
        assert!(out.is_empty());
        read
    }

    #[test]
    fn nodes_are_named_by_their_local_ports_in_every_version() {
        for version in 0..=13 {
            let broker = |id: i32| {
                MetadataResponseBroker::default()
                    .with_node_id(BrokerId(id))
                    .with_host(far())
                    .with_port(9292)
            };
            let response = MetadataResponse::default().with_brokers(vec![broker(1), broker(3)]);
            let read = through(ApiKey::Metadata, version, &response);
            let [one] = &read.brokers[..] else {
                panic!("{read:?}");
            };
            assert_eq!((one.host.as_str(), one.port), ("127.0.0.1", 20_001));
        }
        for version in 0..=6 {
            let mut response = FindCoordinatorResponse::default();
            if version < 4 {
                response = response
                    .with_node_id(BrokerId(2))
                    .with_host(far())
                    .with_port(9292);
            } else {
                let one = Coordinator::default()
                    .with_node_id(BrokerId(2))
                    .with_host(far())
                    .with_port(9292);
                let failed = Coordinator::default().with_error_code(15).with_port(-1);
                response = response.with_coordinators(vec![one, failed]);
            }
            let read = through(ApiKey::FindCoordinator, version, &response);
            let (host, port) = match read.coordinators.first() {
                Some(one) => (one.host.clone(), one.port),
                None => (read.host, read.port),
            };
            assert_eq!((host.as_str(), port), ("127.0.0.1", 20_002));
        }
        // A coordinator that has no port here is not to be had, rather than beside the proxy.
        for version in 0..=6 {
            let one = Coordinator::default()
                .with_node_id(BrokerId(3))
                .with_host(far())
                .with_port(9292);
            let response = match version {
                0..4 => FindCoordinatorResponse::default()
                    .with_node_id(BrokerId(3))
                    .with_host(far())
                    .with_port(9292),
                _ => FindCoordinatorResponse::default().with_coordinators(vec![one]),
            };
            let read = through(ApiKey::FindCoordinator, version, &response);
            let (code, host, port) = match read.coordinators.first() {
                Some(one) => (one.error_code, one.host.clone(), one.port),
                None => (read.error_code, read.host, read.port),
            };
            assert_eq!((code, host.as_str(), port), (15, "", -1));
        }
        for version in 10..=13 {
            let node = NodeEndpoint::default()
                .with_node_id(BrokerId(2))
                .with_host(far())
                .with_port(9292);
            let response = ProduceResponse::default().with_node_endpoints(vec![node]);
            let read = through(ApiKey::Produce, version, &response);
            assert_eq!(read.node_endpoints[0].port, 20_002);
        }
        assert!(!names_nodes(&request(ApiKey::Produce, 9)));
        assert!(!names_nodes(&request(ApiKey::Fetch, 17)));
    }

    #[test]
    fn what_cannot_be_read_is_not_passed_on() {
        let mut local = |_: i32, _: &Endpoint| None;
        for response in [&[0; 4][..], &[0, 0, 0, 9, 0xff, 0xff, 0xff], &[0; 200]] {
            let response = Bytes::copy_from_slice(response);
            assert!(rewrite(&request(ApiKey::Metadata, 12), response, &mut local).is_err());
        }
    }
}
