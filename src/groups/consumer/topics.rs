//! What a group must know of the cluster's topics.

use std::fmt;

use crate::types::TopicId;

/// A topic, as far as it concerns who reads which part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicShape {
    pub id: TopicId,
    /// Above 0.
    pub partitions: i32,
}

/// The topics of the cluster at one moment.
pub trait Topics: fmt::Debug + Send + Sync {
    /// The topic of this name, if there is one.
    fn topic(&self, name: &str) -> Option<TopicShape>;

    /// Every topic that a pattern may mean: all but the cluster's own.
    fn each(&self, see: &mut dyn FnMut(&str, TopicShape));
}

/// A cluster without topics: what a coordinator knows before it is told.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTopics;

impl Topics for NoTopics {
    fn topic(&self, _name: &str) -> Option<TopicShape> {
        None
    }

    fn each(&self, _see: &mut dyn FnMut(&str, TopicShape)) {}
}
