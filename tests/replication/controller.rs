//! The controller: one linearizable process that applies commands to the product's `ClusterImage` and elects by its rules.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorate::metadata::{
    Appointing, Command, Election, ElectionStart, NewPartition, NewTopic, Outcome, Rejection,
    can_elect,
};
use quorate::replication::IsrOutcome;
use quorate::types::{Appointment, NodeId, PartitionState};

use super::network::{Body, Party};
use super::node::{CLUSTER, Node, PARTITION, node_id, topic_name};
use super::world::World;

impl World {
    pub fn state(&self) -> Option<&PartitionState> {
        self.image.partition(PARTITION)
    }

    /// Applies a command. What that makes of the partition is told, and sent to every node.
    pub fn commit(&mut self, command: &Command) -> Result<Outcome, Rejection> {
        let before = self.state().cloned();
        let outcome = self.image.apply(command);
        if self.state() != before.as_ref()
            && let Some(state) = self.state().cloned()
        {
            let line = format!("controller commits: {}", self.names.state(&state));
            self.tell(line);
            for node in 0..self.nodes.len() {
                self.push_state(node);
            }
        }
        outcome
    }

    pub fn push_state(&mut self, node: usize) {
        if let Some(state) = self.state().cloned()
            && self.is_up(node)
        {
            let body = Body::State(Arc::new(state));
            self.send(Party::Controller, Party::Node(node), body);
        }
    }

    pub fn found_cluster(&mut self, min_insync: u32) {
        let mut commands = vec![Command::InitCluster {
            cluster_id: CLUSTER,
        }];
        for node in &mut self.nodes {
            node.start().unwrap();
            let me = node.process.as_ref().unwrap().me;
            self.processes.push(me);
            commands.push(Command::RegisterNode {
                registration: Node::registration(me),
            });
        }
        let nodes = self.node_ids();
        commands.push(Command::CreateTopic {
            topic: NewTopic {
                id: PARTITION.topic,
                name: topic_name(),
                config: BTreeMap::new(),
                partitions: vec![NewPartition {
                    replicas: nodes.clone(),
                    in_sync: nodes,
                }],
                min_insync,
            },
        });
        for command in &commands {
            self.commit(command).unwrap();
        }
    }

    /// A process that has started registers, if it can reach the controller.
    pub fn register(&mut self, node: usize) {
        let Some(me) = self.nodes[node].process.as_ref().map(|process| process.me) else {
            return;
        };
        if self.network.is_cut(Party::Node(node), Party::Controller)
            || self.image.registered(me.node) == Some(me)
        {
            return;
        }
        let name = self.names.process(&me);
        let registration = Node::registration(me);
        let command = Command::RegisterNode { registration };
        if let Err(rejection) = self.commit(&command) {
            let why = self.in_words(&rejection);
            self.tell(format!("controller does not register {name}: {why}"));
            let Rejection::DirectoryInUse { registered, .. } = rejection else {
                panic!("{rejection}");
            };
            self.commit(&Command::UnregisterNode {
                node: me.node,
                directory: Some(registered),
            })
            .unwrap();
            self.tell(format!(
                "an operator removes {} from the cluster, so that it may come back with its new disk",
                self.nodes[node].name
            ));
            self.commit(&command).unwrap();
        }
        self.tell(format!("controller registers {name}"));
    }

    pub fn in_words(&self, rejection: &Rejection) -> String {
        self.names.in_words(&rejection.to_string(), &self.processes)
    }

    fn alive(&self) -> BTreeSet<NodeId> {
        (0..self.nodes.len())
            .filter(|&node| {
                self.is_up(node) && !self.network.is_cut(Party::Node(node), Party::Controller)
            })
            .map(node_id)
            .collect()
    }

    /// Takes the leader away and fences the in-sync set, if enough of it is alive for the election to end.
    pub fn elect(&mut self) -> Result<(), String> {
        let state = self.state().cloned().ok_or("there is no cluster yet")?;
        if !can_elect(&self.image, &state, &self.alive()) {
            self.tell(format!(
                "controller holds no election: of the ISR {}, {} must be alive with the disks that they were admitted with",
                self.names.set(&state.isr),
                state.election_quorum()
            ));
            return Ok(());
        }
        let elections = vec![ElectionStart {
            partition: PARTITION,
            leader_epoch: state.leader_epoch,
            partition_epoch: state.partition_epoch,
        }];
        self.commit(&Command::StartElections { elections })
            .map_err(|rejection| rejection.to_string())?;
        self.election = self
            .state()
            .and_then(|state| Election::new(PARTITION, state));
        self.fence_missing();
        Ok(())
    }

    /// Fences whoever of the in-sync set has not replied.
    pub fn fence_missing(&mut self) {
        let Some(election) = &self.election else {
            return;
        };
        let epoch = election.epoch();
        let missing: Vec<NodeId> = election.missing(&self.image).collect();
        for node in missing {
            let node = super::node::index_of(node);
            if self.is_up(node) {
                self.send(Party::Controller, Party::Node(node), Body::Fence(epoch));
            }
        }
    }

    /// Once an election quorum has replied, and nothing more can happen, the winner is appointed. True if one was.
    pub fn try_appoint(&mut self) -> bool {
        let winner = self
            .election
            .as_ref()
            .and_then(|election| election.winner_among(&self.image, &self.alive()));
        let Some(leader) = winner else {
            return false;
        };
        let Some(election) = self.election.take() else {
            return false;
        };
        let appointments = vec![Appointing {
            partition: PARTITION,
            leader_epoch: election.epoch(),
            leader,
        }];
        self.commit(&Command::AppointLeaders { appointments })
            .unwrap();
        true
    }

    pub fn controller_receives(&mut self, from: Party, body: Body) {
        match body {
            Body::FenceReply(Err(_)) => {}
            Body::FenceReply(Ok(reply)) => {
                let Some(election) = &mut self.election else {
                    self.tell("controller does not need it any more".to_owned());
                    return;
                };
                if let Err(unused) = election.record(reply) {
                    self.tell(format!("controller does not count it: {unused:?}"));
                }
            }
            Body::Propose {
                from: me,
                change,
                is_awaited,
            } => {
                let command = Command::ChangeIsrs {
                    changes: vec![change.clone()],
                };
                let outcome = match self.commit(&command) {
                    Ok(Outcome::Partitions(mut results)) => match results.pop() {
                        Some(Ok(_)) => IsrOutcome::Accepted,
                        Some(Err(rejection)) => {
                            let why = self.in_words(&rejection);
                            self.tell(format!("controller refuses: {why}"));
                            IsrOutcome::Refused
                        }
                        None => IsrOutcome::Unknown,
                    },
                    other => panic!("{other:?}"),
                };
                if is_awaited && self.is_running(&me) {
                    self.send(Party::Controller, from, Body::Outcome { change, outcome });
                }
            }
            _ => panic!("the controller takes this from nobody"),
        }
    }

    fn is_running(&self, me: &Appointment) -> bool {
        self.nodes
            .iter()
            .filter_map(|node| node.process.as_ref())
            .any(|process| process.me == *me)
    }
}
