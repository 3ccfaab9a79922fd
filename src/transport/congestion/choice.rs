//! Which controller a link has.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{BbrConfig, Controller, ControllerFactory, CubicConfig};
use thiserror::Error;

use super::config::KeelConfig;
use crate::types::NodeId;

/// A congestion controller, by name. `docs/congestion.md` says which is good for what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Congestion {
    /// Takes each loss for congestion: what most of the Internet runs, and slow where links lose packets.
    Cubic,
    /// quinn's BBR, version 1.
    Bbr,
    /// Ours: goes by the queue.
    #[default]
    Keel,
}

/// Text that names no controller.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is no congestion controller: write keel, cubic or bbr")]
pub struct UnknownCongestion {
    text: String,
}

impl Congestion {
    pub const ALL: [Congestion; 3] = [Congestion::Keel, Congestion::Cubic, Congestion::Bbr];

    pub fn name(self) -> &'static str {
        match self {
            Congestion::Cubic => "cubic",
            Congestion::Bbr => "bbr",
            Congestion::Keel => "keel",
        }
    }

    /// A new controller whose window begins with `initial_window` bytes.
    pub fn build(self, initial_window: u64, now: Instant, mtu: u16) -> Box<dyn Controller> {
        match self {
            Congestion::Cubic => {
                let mut config = CubicConfig::default();
                config.initial_window(initial_window);
                Arc::new(config).build(now, mtu)
            }
            Congestion::Bbr => {
                let mut config = BbrConfig::default();
                config.initial_window(initial_window);
                Arc::new(config).build(now, mtu)
            }
            Congestion::Keel => Arc::new(KeelConfig { initial_window }).build(now, mtu),
        }
    }
}

impl FromStr for Congestion {
    type Err = UnknownCongestion;

    fn from_str(text: &str) -> Result<Congestion, UnknownCongestion> {
        Congestion::ALL
            .into_iter()
            .find(|choice| choice.name() == text)
            .ok_or_else(|| UnknownCongestion { text: text.into() })
    }
}

impl fmt::Display for Congestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A node's choice for everything that it sends in bulk: to followers, and to clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CongestionPolicy {
    pub default: Congestion,
    /// For the links to these nodes, instead of the default.
    pub links: BTreeMap<NodeId, Congestion>,
}

impl CongestionPolicy {
    /// The choice for the link to `node`; `None` is a client.
    pub fn towards(&self, node: Option<NodeId>) -> Congestion {
        node.and_then(|node| self.links.get(&node))
            .copied()
            .unwrap_or(self.default)
    }

    /// The links' own choices as text: `ID=NAME` with commas between them.
    pub fn links_text(&self) -> String {
        let links = self.links.iter();
        links
            .map(|(node, choice)| format!("{node}={choice}"))
            .collect::<Vec<_>>()
            .join(",")
    }
}

/// One link's own choice, as flags and files write it: `ID=NAME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkCongestion {
    pub node: NodeId,
    pub choice: Congestion,
}

/// Text that is no choice for a link.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{text:?} is no choice for a link: write ID=NAME, the other node's number and keel, cubic or bbr"
)]
pub struct InvalidLinkCongestion {
    text: String,
}

impl FromStr for LinkCongestion {
    type Err = InvalidLinkCongestion;

    fn from_str(text: &str) -> Result<LinkCongestion, InvalidLinkCongestion> {
        let parse = || {
            let (node, choice) = text.split_once('=')?;
            Some(LinkCongestion {
                node: node.parse().ok()?,
                choice: choice.parse().ok()?,
            })
        };
        parse().ok_or_else(|| InvalidLinkCongestion { text: text.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_controllers_and_back() {
        for choice in Congestion::ALL {
            assert_eq!(choice.name().parse(), Ok(choice));
            let controller = choice.build(77_000, Instant::now(), 1200);
            assert_eq!(controller.window(), 77_000, "{choice}");
        }
        let error = "reno".parse::<Congestion>().unwrap_err();
        assert!(error.to_string().contains("keel, cubic or bbr"), "{error}");
    }

    #[test]
    fn a_links_own_choice_wins_over_the_nodes() {
        let node = |id| NodeId::new(id).unwrap();
        let policy = CongestionPolicy {
            default: Congestion::Bbr,
            links: BTreeMap::from([(node(2), Congestion::Cubic)]),
        };
        assert_eq!(policy.towards(Some(node(2))), Congestion::Cubic);
        assert_eq!(policy.towards(Some(node(3))), Congestion::Bbr);
        assert_eq!(policy.towards(None), Congestion::Bbr);
        let link: LinkCongestion = policy.links_text().parse().unwrap();
        assert_eq!((link.node, link.choice), (node(2), Congestion::Cubic));
        for text in ["", "2", "2=", "0=keel", "x=keel", "2=reno"] {
            assert!(text.parse::<LinkCongestion>().is_err(), "{text:?}");
        }
    }
}
