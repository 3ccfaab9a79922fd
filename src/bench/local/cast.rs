//! Which node plays what in a measurement.

use crate::types::NodeId;

/// Who plays what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cast {
    pub leader: NodeId,
    /// The other replicas, those first that are to suffer: never the active controller where it can be avoided, so that
    /// what is measured is what replication costs.
    pub followers: Vec<NodeId>,
}

impl Cast {
    /// Chooses `replicas` of the nodes. The active controller neither leads nor, where others are left, suffers.
    pub fn choose(nodes: &[NodeId], controller: Option<NodeId>, replicas: usize) -> Option<Cast> {
        let others = nodes.iter().filter(|node| Some(**node) != controller);
        let mut all = others.chain(nodes.iter().filter(|node| Some(**node) == controller));
        let leader = *all.next()?;
        Some(Cast {
            leader,
            followers: all.take(replicas.saturating_sub(1)).copied().collect(),
        })
    }

    /// All of them, the leader first.
    pub fn replicas(&self) -> Vec<NodeId> {
        let mut replicas = vec![self.leader];
        replicas.extend(&self.followers);
        replicas
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[u32]) -> Vec<NodeId> {
        ids.iter().map(|id| NodeId::new(*id).unwrap()).collect()
    }

    #[test]
    fn the_controller_does_not_lead_and_suffers_last() {
        let choose = |controller: u32, replicas| {
            let cast = Cast::choose(&ids(&[1, 2, 3]), NodeId::new(controller), replicas).unwrap();
            let numbers: Vec<u32> = cast.replicas().iter().map(|id| id.get()).collect();
            numbers
        };
        assert_eq!(choose(1, 3), [2, 3, 1]);
        assert_eq!(choose(3, 3), [1, 2, 3]);
        assert_eq!(choose(1, 2), [2, 3]);
        let unknown = Cast::choose(&ids(&[1, 2]), None, 2).unwrap();
        assert_eq!(unknown.replicas(), ids(&[1, 2]));
        assert_eq!(Cast::choose(&[], None, 3), None);
    }
}
