//! Floor 6: the public Rust client. Kafka's own requests, over QUIC streams.
//!
//! One [`Client`] holds one QUIC connection to each node that it needs and what it knows of the cluster. On a connection
//! each producer, consumer and the client itself have *lanes*: bidirectional streams, each of them a Kafka connection of
//! its own, so that a long poll or a lost packet on one holds up no other.
//!
//! ```text
//!   Producer      Consumer      Admin            public
//!       \            |           /
//!                 Client                         metadata, routing, retries
//!                    |
//!                  link                          one address: dialling, backoff, versions
//!                    |
//!               connection                       one lane: correlation ids, deadlines
//! ```
//!
//! How connections are made, and with which certificates, is a [`Dialer`]'s affair; [`IdentityDialer`] is the usual one.

mod admin;
mod api;
mod backoff;
mod connection;
mod consumer;
mod delete_records;
mod departed;
mod dial;
mod error;
mod groups;
mod keep;
mod link;
mod metadata;
mod node_calls;
mod offsets;
mod patience;
mod producer;
mod stream;
#[cfg(test)]
mod testing;
mod users;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{self, MetadataRequest};
use kafka_protocol::protocol::StrBytes;
use tokio::sync::Semaphore;
use tokio::time::Instant;

pub use admin::{
    Admin, AlterConfig, ClusterDescription, ConfigEntry, ConfigResource, ConfigSource, NewTopic,
    NodeDescription,
};
pub use backoff::Backoff;
pub use consumer::{
    Consumer, ConsumerConfig, ConsumerRecord, Event, OutOfRange, ParseStartError, Start,
};
pub use dial::{CLIENT_ALPN, Dialer, EndpointDialer, IdentityDialer, Reached};
pub use error::{ClientError, ConnectCause, ConnectError, ExplainedFailure, LostCause};
pub use groups::{
    GroupConfig, GroupConsumer, GroupDescription, GroupEpochs, GroupEvent, GroupMember,
    GroupOffset, GroupSummary,
};
pub use link::ClientLink;
use metadata::NamedLeader;
pub use metadata::{ClusterView, PartitionName, PartitionView, TopicView};
pub use node_calls::NodeCalls;
pub use offsets::OffsetQuery;
pub use producer::{
    Acks, Delivered, Delivery, DeliveryCause, DeliveryError, InvalidAcks, Partitioning, Producer,
    ProducerConfig, ProducerRecord,
};
pub use stream::{ClientStream, Expectation, StreamWatch};
pub use users::User;

use self::api::Spoken;
use self::backoff::Random;
use self::link::Link;
use self::patience::Patience;
use crate::types::{ErrorCode, NodeId, TopicName};

/// A node that has not answered for this long is no longer waited for alone: the next one is asked beside it. So one dead
/// node costs a client this much and no connection timeout.
const HEDGE: Duration = Duration::from_millis(250);
/// How long a topic that a node does not know may be one that was just created.
const UNKNOWN_TOPIC_PATIENCE: Duration = Duration::from_secs(2);

/// How a client behaves. [`ClientConfig::new`] gives the defaults.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `host:port` of some of the cluster's nodes; the others are learnt from them.
    pub bootstrap: Vec<String>,
    /// How long a request may take, from when it is handed over to its response. Default 30 s.
    pub request_timeout: Duration,
    /// How long one attempt to connect may take, and after it the node's first answer. Default 5 s.
    pub connect_timeout: Duration,
    /// How long [`Client::connect`] tries the bootstrap addresses before it fails. Default 10 s. Where each of them
    /// fails for good, as by a refusal of TLS, it does not try again.
    pub bootstrap_timeout: Duration,
    /// How old what is known of a topic may get before it is asked for again. Default 5 min. Errors that show it to be
    /// wrong have it asked for at once.
    pub metadata_max_age: Duration,
    /// Between attempts to connect and between retries. Default 50 ms doubling to 1 s, with jitter.
    pub backoff: Backoff,
}

impl ClientConfig {
    pub fn new(bootstrap: impl IntoIterator<Item = impl Into<String>>) -> ClientConfig {
        ClientConfig {
            bootstrap: bootstrap.into_iter().map(Into::into).collect(),
            request_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            bootstrap_timeout: Duration::from_secs(10),
            metadata_max_age: Duration::from_secs(300),
            backoff: Backoff::default(),
        }
    }
}

/// A client of one cluster. Clones share its connections. Must live within a tokio runtime.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    config: ClientConfig,
    dialer: Arc<dyn Dialer>,
    /// By address. Grows with the addresses that the cluster ever had.
    links: Mutex<HashMap<String, Arc<Link>>>,
    view: Mutex<Arc<ClusterView>>,
    random: Mutex<Random>,
    /// One at a time looks up a topic, so that a thousand senders that need the same one ask once.
    lookups: Semaphore,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("bootstrap", &self.inner.config.bootstrap)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// Connects to the first bootstrap address that answers, and learns the cluster's nodes from it.
    ///
    /// # Errors
    /// The last address's [`ClientError::Connect`] where none answers within [`ClientConfig::bootstrap_timeout`], or at
    /// once where every one of them fails for good, as when TLS refuses it.
    pub async fn connect(
        config: ClientConfig,
        dialer: Arc<dyn Dialer>,
    ) -> Result<Client, ClientError> {
        if config.bootstrap.is_empty() {
            return Err(ClientError::Configuration {
                what: "no bootstrap server is given; name at least one as HOST:PORT".to_owned(),
            });
        }
        let bootstrap_timeout = config.bootstrap_timeout;
        let client = Client {
            inner: Arc::new(Inner {
                config,
                dialer,
                links: Mutex::default(),
                view: Mutex::default(),
                random: Mutex::new(Random::new(rand::random())),
                lookups: Semaphore::new(1),
            }),
        };
        let request = MetadataRequest::default()
            .with_topics(Some(Vec::new()))
            .with_allow_auto_topic_creation(false);
        let response = client
            .call_any(&request, bootstrap_timeout, true)
            .await
            .map_err(|error| match error {
                // The caller wants the reason, not that there were several attempts.
                ClientError::GaveUp { cause, .. } if cause.connect_error().is_some() => *cause,
                error => error,
            })?;
        client.merge(&response);
        Ok(client)
    }

    pub fn config(&self) -> &ClientConfig {
        &self.inner.config
    }

    /// What is known of the cluster now, without asking.
    pub fn view(&self) -> Arc<ClusterView> {
        lock(&self.inner.view).clone()
    }

    /// Asks the cluster about `topics`, and about its nodes. With `create`, topics that do not exist are created where the
    /// cluster allows that. Returns the view with the answer in it, and the topics that could not be described.
    pub async fn refresh(
        &self,
        topics: &[TopicName],
        create: bool,
    ) -> Result<(Arc<ClusterView>, Vec<(TopicName, ErrorCode)>), ClientError> {
        let topics = topics.iter().map(|topic| {
            MetadataRequestTopic::default()
                .with_name(Some(messages::TopicName(wire_str(topic.as_str()))))
        });
        let request = MetadataRequest::default()
            .with_topics(Some(topics.collect()))
            .with_allow_auto_topic_creation(create);
        let timeout = self.inner.config.request_timeout;
        let response = self.call_any(&request, timeout, false).await?;
        Ok(self.merge(&response))
    }

    /// Asks the cluster about all its topics.
    pub async fn refresh_all(&self) -> Result<Arc<ClusterView>, ClientError> {
        let request = MetadataRequest::default()
            .with_topics(None)
            .with_allow_auto_topic_creation(false);
        let timeout = self.inner.config.request_timeout;
        let response = self.call_any(&request, timeout, false).await?;
        // What is no longer listed is gone.
        let mut view = lock(&self.inner.view);
        let mut new = ClusterView::clone(&view);
        let listed: std::collections::HashSet<&str> = response
            .topics
            .iter()
            .filter_map(|topic| topic.name.as_ref())
            .map(|name| name.0.as_str())
            .collect();
        new.topics.retain(|name, _| listed.contains(name.as_str()));
        new.merge(&response, Instant::now());
        *view = Arc::new(new);
        Ok(view.clone())
    }

    /// A topic's partitions, from what is known if that is recent, else asked for. Waits up to `timeout` for the cluster to
    /// answer and, with `create`, to create it.
    ///
    /// # Errors
    /// [`ClientError::UnknownTopic`] once the topic has been unknown for two seconds (it may have been created just now),
    /// or whatever kept the cluster from answering.
    pub async fn topic(
        &self,
        name: &TopicName,
        create: bool,
        timeout: Duration,
    ) -> Result<Arc<ClusterView>, ClientError> {
        if let Some(view) = self.known(name) {
            return Ok(view);
        }
        // Never closed, so this is only ever a wait.
        let _turn = self.inner.lookups.acquire().await;
        let start = Instant::now();
        let mut failures = 0;
        loop {
            if let Some(view) = self.known(name) {
                return Ok(view);
            }
            let (view, failed) = self.refresh(std::slice::from_ref(name), create).await?;
            if view
                .topics
                .get(name)
                .is_some_and(|t| !t.partitions.is_empty())
            {
                return Ok(view);
            }
            let code = failed
                .iter()
                .find(|(topic, _)| topic == name)
                .map_or(ErrorCode::UnknownTopicOrPartition, |(_, code)| *code);
            let waited = start.elapsed();
            let unknown = code == ErrorCode::UnknownTopicOrPartition;
            if unknown && waited >= UNKNOWN_TOPIC_PATIENCE.min(timeout) {
                return Err(ClientError::UnknownTopic {
                    topic: name.clone(),
                });
            }
            if !code.is_retriable() || waited >= timeout {
                return Err(ClientError::Refused {
                    what: format!("describing topic {name}"),
                    code,
                    message: None,
                });
            }
            failures += 1;
            tokio::time::sleep(self.wait_after(failures)).await;
        }
    }

    /// The view, where it has the topic and is recent.
    fn known(&self, name: &TopicName) -> Option<Arc<ClusterView>> {
        let view = self.view();
        let topic = view.topics.get(name)?;
        let recent = topic.fetched.elapsed() < self.inner.config.metadata_max_age;
        (recent && !topic.partitions.is_empty()).then_some(view)
    }

    /// A producer with lanes of its own.
    pub fn producer(&self, config: ProducerConfig) -> Result<Producer, ClientError> {
        Producer::new(self.clone(), config)
    }

    /// A consumer with lanes of its own and nothing assigned yet.
    pub fn consumer(&self, config: ConsumerConfig) -> Result<Consumer, ClientError> {
        Consumer::new(self.clone(), config)
    }

    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }

    /// The way to each address that this client has dialled.
    pub fn links(&self) -> Vec<ClientLink> {
        let links: Vec<Arc<Link>> = lock(&self.inner.links).values().cloned().collect();
        let mut views: Vec<ClientLink> = links.iter().map(|link| link.view()).collect();
        views.sort_by(|a, b| a.address.cmp(&b.address));
        views
    }

    /// Closes every connection at once. Close producers first: they finish what they have.
    pub fn close(&self) {
        for (_, link) in lock(&self.inner.links).drain() {
            link.close();
        }
    }

    fn merge(
        &self,
        response: &messages::MetadataResponse,
    ) -> (Arc<ClusterView>, Vec<(TopicName, ErrorCode)>) {
        let mut view = lock(&self.inner.view);
        let mut new = ClusterView::clone(&view);
        let failed = new.merge(response, Instant::now());
        *view = Arc::new(new);
        (view.clone(), failed)
    }

    /// Takes in who leads, as refusals say.
    fn note_leaders(&self, named: &[NamedLeader]) {
        if named.is_empty() {
            return;
        }
        let mut view = lock(&self.inner.view);
        let mut new = ClusterView::clone(&view);
        let mut is_news = false;
        for leader in named {
            is_news |= new.note_leader(leader);
        }
        if is_news {
            *view = Arc::new(new);
        }
    }

    fn random(&self) -> u64 {
        lock(&self.inner.random).next()
    }

    /// The wait after so many failures in a row, with jitter.
    fn wait_after(&self, failures: u32) -> Duration {
        self.inner.config.backoff.after(failures, self.random())
    }

    /// The same for the news of an election.
    fn soon_after(&self, failures: u32) -> Duration {
        self.inner.config.backoff.soon(failures, self.random())
    }

    fn link(&self, address: &str) -> Arc<Link> {
        let seed = self.random();
        let mut links = lock(&self.inner.links);
        if let Some(link) = links.get(address) {
            return link.clone();
        }
        let link = Arc::new(Link::new(
            address.to_owned(),
            self.inner.dialer.clone(),
            self.inner.config.connect_timeout,
            self.inner.config.backoff,
            seed,
        ));
        links.insert(address.to_owned(), link.clone());
        link
    }

    /// Sends a request to the controller, or to any node where none is known.
    async fn call_controller<R: Spoken>(&self, request: &R) -> Result<R::Response, ClientError> {
        let view = self.view();
        let address = view.controller.and_then(|node| view.nodes.get(&node));
        match address {
            Some(address) => {
                let timeout = self.inner.config.request_timeout;
                self.link(address).call(request, timeout).await
            }
            None => {
                let timeout = self.inner.config.request_timeout;
                self.call_any(request, timeout, false).await
            }
        }
    }

    /// Sends a request that may go to any node, and may be sent twice, until one answers. Connected nodes are asked first;
    /// one that stays silent is not waited for alone.
    async fn call_any<R: Spoken>(
        &self,
        request: &R,
        timeout: Duration,
        give_up_when_final: bool,
    ) -> Result<R::Response, ClientError> {
        let mut patience = Patience::new(self, timeout);
        loop {
            let left = patience.left();
            let mut candidates = self.candidates().into_iter();
            let mut running = FuturesUnordered::new();
            let mut last = None;
            let mut all_final = true;
            loop {
                let hedge = tokio::time::sleep(HEDGE);
                let more = candidates.len() > 0;
                if running.is_empty() {
                    let Some(link) = candidates.next() else {
                        break;
                    };
                    running.push(call_link(link, request, left));
                }
                tokio::select! {
                    Some(result) = running.next() => match result {
                        Ok(response) => return Ok(response),
                        Err(error) if error.is_retriable() => {
                            all_final &= error
                                .connect_error()
                                .is_some_and(ConnectError::is_final);
                            last = Some(error);
                        }
                        Err(error) => return Err(error),
                    },
                    () = hedge, if more => {
                        running.extend(candidates.next().map(|link| call_link(link, request, left)));
                    }
                }
            }
            let last = last.unwrap_or(ClientError::Closed);
            if all_final && give_up_when_final {
                return Err(last);
            }
            if !patience.pause().await {
                return Err(patience.gave_up(format!("{} request", R::NAME), last));
            }
        }
    }

    /// A node lets requests wait without an answer: others are asked before it until then.
    fn note_silence(&self, node: NodeId, until: Instant) {
        if let Some(link) = self.node_link(node) {
            link.note_silence(until);
        }
    }

    /// Every address that is known, silent ones last, connected ones first, otherwise in a random order that starts anew each time.
    fn candidates(&self) -> Vec<Arc<Link>> {
        let view = self.view();
        let known = view.nodes.values();
        let mut addresses: Vec<&str> = known
            .chain(&self.inner.config.bootstrap)
            .map(String::as_str)
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        let turn = (self.random() as usize).checked_rem(addresses.len());
        addresses.rotate_left(turn.unwrap_or(0));
        let mut links: Vec<Arc<Link>> = addresses.into_iter().map(|a| self.link(a)).collect();
        links.sort_by_key(|link| (link.is_silent(), !link.is_up()));
        links
    }

    /// The link to a node, where its address is known.
    fn node_link(&self, node: NodeId) -> Option<Arc<Link>> {
        let view = self.view();
        let address = view.nodes.get(&node)?;
        Some(self.link(address))
    }
}

async fn call_link<R: Spoken>(
    link: Arc<Link>,
    request: &R,
    timeout: Duration,
) -> Result<R::Response, ClientError> {
    link.call(request, timeout).await
}

/// A string as Kafka's codec holds it.
fn wire_str(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::testing::{FakeNode, dialer};
    use super::*;

    #[tokio::test]
    async fn connecting_learns_the_nodes() {
        let node = FakeNode::start(2);
        let client = node.client().await;
        assert_eq!(client.view().nodes.len(), 1);
        let topic = TopicName::new("t").unwrap();
        let view = client.topic(&topic, false, HEDGE).await.unwrap();
        assert_eq!(view.topics[&topic].partitions.len(), 2);
    }

    #[tokio::test]
    async fn a_certificate_that_is_not_trusted_fails_at_once_and_says_so() {
        let node = FakeNode::start(1);
        let stranger = FakeNode::start(1);
        let error = Client::connect(node.config(), stranger.dialer())
            .await
            .unwrap_err();
        let connect = error.connect_error().unwrap();
        assert_eq!(connect.address, node.address);
        assert!(connect.is_final(), "{connect:?}");
    }

    #[tokio::test]
    async fn a_dead_bootstrap_server_costs_little_beside_a_living_one() {
        let node = FakeNode::start(1);
        // It is bound and never answers.
        let dead = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let dead = dead.local_addr().map(|a| (dead, a.to_string())).unwrap();
        let mut config = ClientConfig::new([dead.1, node.address.clone()]);
        // Only the living one can make this succeed.
        config.connect_timeout = Duration::from_secs(3600);
        config.bootstrap_timeout = Duration::from_secs(3600);
        Client::connect(config, node.dialer()).await.unwrap();
    }

    #[tokio::test]
    async fn nobody_there_is_a_connect_error_with_its_address() {
        let dead = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = dead.local_addr().unwrap().to_string();
        let mut config = ClientConfig::new([address.clone()]);
        config.connect_timeout = Duration::from_millis(50);
        config.bootstrap_timeout = Duration::from_millis(200);
        let error = Client::connect(config, dialer(rustls::RootCertStore::empty()))
            .await
            .unwrap_err();
        let connect = error.connect_error().unwrap();
        assert_eq!(connect.address, address);
        assert!(matches!(connect.cause, ConnectCause::TimedOut { .. }));
        assert!(!connect.is_final());
    }

    #[tokio::test]
    async fn a_connection_that_broke_is_made_again() {
        let node = FakeNode::start(1);
        let client = node.client().await;
        let link = client.link(&node.address);
        link.session().await.unwrap();
        link.close();
        let topics = [TopicName::new("t").unwrap()];
        client.refresh(&topics, false).await.unwrap();
        assert_eq!(lock(&node.state).connections, 2);
        node.endpoint.close(0u32.into(), b"");
    }

    #[tokio::test]
    async fn a_node_that_knows_only_old_versions_is_served_in_them() {
        let node = FakeNode::start(1);
        lock(&node.state).old = true;
        let client = node.client().await;
        let topic = TopicName::new("t").unwrap();
        let new = NewTopic::new(TopicName::new("new").unwrap());
        client.admin().create_topic(&new, false).await.unwrap();
        let producer = client.producer(ProducerConfig::default()).unwrap();
        let record = ProducerRecord::new(topic.clone(), "x");
        producer.send(record).await.unwrap().await.unwrap();
        producer.close().await;
        let mut consumer = client.consumer(ConsumerConfig::default()).unwrap();
        let start = Start::FromEnd(1);
        consumer.assign_topic(&topic, start).await.unwrap();
        let Event::Record(record) = consumer.next().await.unwrap() else {
            panic!("there is a record");
        };
        assert_eq!(record.record.value.as_deref(), Some(&b"x"[..]));
    }

    #[tokio::test]
    async fn administration_reports_kafkas_errors() {
        let node = FakeNode::start(1);
        let admin = node.client().await.admin();
        let topic = NewTopic::new(TopicName::new("new").unwrap());
        admin.create_topic(&topic, false).await.unwrap();
        let error = admin.create_topic(&topic, false).await.unwrap_err();
        assert_eq!(error.error_code(), Some(ErrorCode::TopicAlreadyExists));
        let missing = [TopicName::new("nope").unwrap()];
        let error = admin.describe_topics(&missing).await.unwrap_err();
        assert!(matches!(error, ClientError::UnknownTopic { .. }));
        // The node does not offer it.
        let error = admin.describe_cluster().await.unwrap_err();
        assert!(matches!(error, ClientError::Unsupported { .. }), "{error}");
    }
}
