//! What links are to suffer, in words.
//!
//! ```text
//! spec   rule { ";" rule }              an empty spec impairs nothing
//! rule   item { "," item }
//! item   host=N                                               whose end; without it, whoever reads the spec
//!        peer=N | peer=nodes | peer=clients | peer=all        whose link; nodes without it
//!        dir=out | dir=in | dir=both                          which way; out without it: what this end sends
//!        loss=3%  dup=0.1%  reorder=1%                        a share of the packets
//!        delay=40ms  jitter=5ms                               us, ms or s
//!        rate=100mbit  queue=250                              kbit, mbit or gbit a second, or none; packets
//!        cut=in | cut=out | cut=both | cut=none               whatever dir says
//!        rebind=N                                             another N: another port, as a NAT gives it
//!        seed=N                                               of all that is drawn, for the whole spec
//! ```
//!
//! Rules are laid over one another in their order: an item of a later one takes the place of the same item of an earlier one,
//! for the links and ways that the later one is for.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

use super::model::Impairment;
use crate::types::NodeId;

/// The longest delay and jitter.
pub const MAX_DELAY: Duration = Duration::from_secs(60);
/// The most packets that a slow link's queue may have.
const MAX_QUEUE: usize = 1_000_000;
/// Rules of one spec, and bytes of its text. A longer one is refused.
const MAX_RULES: usize = 256;
pub(super) const MAX_TEXT: usize = 16 * 1024;

/// Whose links a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peers {
    Node(NodeId),
    /// Every other node.
    Nodes,
    /// Everyone who is not known to be a node.
    Clients,
    All,
}

/// Who is at the other end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkEnd {
    Node(NodeId),
    /// A node, but not yet known which.
    SomeNode,
    /// Everyone who is not known to be a node.
    Client,
}

/// Ways in which nothing passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cut {
    pub inward: bool,
    pub outward: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Setting {
    Loss(f64),
    Duplicate(f64),
    Reorder(f64),
    Delay(Duration),
    Jitter(Duration),
    Rate(Option<u64>),
    Queue(usize),
    Cut(Cut),
    Rebind(u64),
}

#[derive(Clone, Debug, PartialEq)]
struct Rule {
    /// The node that it is for; any where it is not said.
    host: Option<NodeId>,
    peers: Peers,
    inward: bool,
    outward: bool,
    settings: Vec<Setting>,
}

/// What one peer's link suffers.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct LinkImpairment {
    /// What this end sends.
    pub outward: Impairment,
    /// What this end receives.
    pub inward: Impairment,
    /// Whenever it changes, the way to the peer is to get another port, as a NAT that has forgotten it gives one.
    pub rebind: u64,
}

/// A whole spec; see the file's head for its language.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImpairmentSpec {
    text: String,
    rules: Vec<Rule>,
    seed: u64,
}

/// Text that is no spec: which item, and what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{item:?} cannot be done to a link: {advice}")]
pub struct InvalidSpec {
    pub item: String,
    pub advice: String,
}

impl ImpairmentSpec {
    /// The seed of all that is drawn; 0 unless it is said.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// What the link to `end` suffers, of an end that has no number.
    pub fn of(&self, end: LinkEnd) -> LinkImpairment {
        self.of_host(None, end)
    }

    /// What the link of node `own` to `end` suffers.
    pub fn of_host(&self, own: Option<NodeId>, end: LinkEnd) -> LinkImpairment {
        let mut link = LinkImpairment::default();
        for rule in self.rules.iter().filter(|rule| rule.fits(own, end)) {
            for setting in &rule.settings {
                match *setting {
                    Setting::Rebind(count) => link.rebind = count,
                    Setting::Cut(cut) => {
                        link.inward.cut = cut.inward;
                        link.outward.cut = cut.outward;
                    }
                    setting => {
                        if rule.outward {
                            apply(setting, &mut link.outward);
                        }
                        if rule.inward {
                            apply(setting, &mut link.inward);
                        }
                    }
                }
            }
        }
        link
    }

    /// What packets from one node to another suffer where something between them reads the spec once for both: what the one end
    /// does to what it sends and the other to what it receives, laid over one another in the order of the rules.
    pub fn of_way(&self, from: NodeId, to: NodeId) -> Impairment {
        let mut way = Impairment::default();
        let (mut cut_at_sender, mut cut_at_receiver) = (false, false);
        for rule in &self.rules {
            let at_sender = rule.fits(Some(from), LinkEnd::Node(to));
            let at_receiver = rule.fits(Some(to), LinkEnd::Node(from));
            for setting in &rule.settings {
                match *setting {
                    Setting::Cut(cut) => {
                        if at_sender {
                            cut_at_sender = cut.outward;
                        }
                        if at_receiver {
                            cut_at_receiver = cut.inward;
                        }
                    }
                    setting => {
                        if (at_sender && rule.outward) || (at_receiver && rule.inward) {
                            apply(setting, &mut way);
                        }
                    }
                }
            }
        }
        way.cut = cut_at_sender || cut_at_receiver;
        way
    }

    /// Whether a rule asks for another port, which only the end that has the port can take.
    pub fn rebinds(&self) -> bool {
        let settings = self.rules.iter().flat_map(|rule| &rule.settings);
        settings
            .into_iter()
            .any(|setting| matches!(setting, Setting::Rebind(_)))
    }
}

impl Rule {
    fn fits(&self, own: Option<NodeId>, end: LinkEnd) -> bool {
        let is_peer = match self.peers {
            Peers::All => true,
            Peers::Nodes => end != LinkEnd::Client,
            Peers::Clients => end == LinkEnd::Client,
            Peers::Node(id) => end == LinkEnd::Node(id),
        };
        is_peer && (self.host.is_none() || self.host == own)
    }
}

fn apply(setting: Setting, way: &mut Impairment) {
    match setting {
        Setting::Loss(share) => way.loss = share,
        Setting::Duplicate(share) => way.duplicate = share,
        Setting::Reorder(share) => way.reorder = share,
        Setting::Delay(delay) => way.delay = delay,
        Setting::Jitter(jitter) => way.jitter = jitter,
        Setting::Rate(rate) => way.rate = rate,
        Setting::Queue(queue) => way.queue = queue,
        // These are of the link, not of one way.
        Setting::Cut(_) | Setting::Rebind(_) => {}
    }
}

impl FromStr for ImpairmentSpec {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<ImpairmentSpec, InvalidSpec> {
        let text = text.trim();
        let too_long = |advice: String| InvalidSpec {
            item: text.chars().take(40).collect(),
            advice,
        };
        if text.len() > MAX_TEXT {
            return Err(too_long(format!(
                "a spec has at most {MAX_TEXT} bytes; write fewer rules"
            )));
        }
        let mut spec = ImpairmentSpec {
            text: text.to_owned(),
            ..ImpairmentSpec::default()
        };
        for rule in text.split(';').filter(|rule| !rule.trim().is_empty()) {
            let rule = parse_rule(rule, &mut spec.seed)?;
            spec.rules.push(rule);
        }
        if spec.rules.len() > MAX_RULES {
            return Err(too_long(format!(
                "a spec has at most {MAX_RULES} rules; write fewer"
            )));
        }
        Ok(spec)
    }
}

impl fmt::Display for ImpairmentSpec {
    /// As it was written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn parse_rule(text: &str, seed: &mut u64) -> Result<Rule, InvalidSpec> {
    let mut rule = Rule {
        host: None,
        peers: Peers::Nodes,
        inward: false,
        outward: true,
        settings: Vec::new(),
    };
    for item in text.split(',') {
        let item = item.trim();
        let invalid = |advice: &str| InvalidSpec {
            item: item.to_owned(),
            advice: advice.to_owned(),
        };
        let (name, value) = item.split_once('=').ok_or_else(|| {
            invalid("write NAME=VALUE, such as loss=3% or delay=40ms, with commas between")
        })?;
        let share = || share(value).map_err(invalid);
        let time = || time(value).map_err(invalid);
        let setting = match name.trim() {
            "host" => {
                let host = value.parse();
                rule.host = Some(host.map_err(|_| invalid("write the number of a node"))?);
                continue;
            }
            "peer" => {
                rule.peers = peers(value).ok_or_else(|| {
                    invalid("write the number of a node, or nodes, clients or all")
                })?;
                continue;
            }
            "dir" => {
                (rule.inward, rule.outward) =
                    ways(value).ok_or_else(|| invalid("write out, in or both"))?;
                continue;
            }
            "seed" => {
                *seed = whole(value).ok_or_else(|| invalid("write a whole number"))?;
                continue;
            }
            "loss" => Setting::Loss(share()?),
            "dup" => Setting::Duplicate(share()?),
            "reorder" => Setting::Reorder(share()?),
            "delay" => Setting::Delay(time()?),
            "jitter" => Setting::Jitter(time()?),
            "rate" => Setting::Rate(rate(value).ok_or_else(|| {
                invalid("write a whole number above 0 with kbit, mbit or gbit (a second), such as rate=100mbit, or none")
            })?),
            "queue" => Setting::Queue(
                whole(value)
                    .and_then(|packets| usize::try_from(packets).ok())
                    .filter(|packets| (1..=MAX_QUEUE).contains(packets))
                    .ok_or_else(|| invalid("write how many packets wait at most, from 1 to 1000000"))?,
            ),
            "cut" => {
                let (inward, outward) = match value {
                    "none" => (false, false),
                    _ => ways(value).ok_or_else(|| invalid("write in, out, both or none"))?,
                };
                Setting::Cut(Cut { inward, outward })
            }
            "rebind" => {
                Setting::Rebind(whole(value).ok_or_else(|| {
                    invalid("write a whole number; another one than before gives another port")
                })?)
            }
            _ => {
                return Err(invalid(
                    "there are host, peer, dir, loss, dup, reorder, delay, jitter, rate, queue, cut, rebind and seed",
                ));
            }
        };
        rule.settings.push(setting);
    }
    Ok(rule)
}

fn peers(text: &str) -> Option<Peers> {
    match text {
        "nodes" => Some(Peers::Nodes),
        "clients" => Some(Peers::Clients),
        "all" => Some(Peers::All),
        id => id.parse().ok().map(Peers::Node),
    }
}

/// Inward and outward.
fn ways(text: &str) -> Option<(bool, bool)> {
    match text {
        "in" => Some((true, false)),
        "out" => Some((false, true)),
        "both" => Some((true, true)),
        _ => None,
    }
}

fn whole(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// A number as people write it: digits with at most one point, no sign and no exponent.
fn decimal(text: &str) -> Option<f64> {
    let plain = text.bytes().any(|byte| byte.is_ascii_digit())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.');
    plain.then(|| text.parse().ok()).flatten()
}

fn share(text: &str) -> Result<f64, &'static str> {
    let number = text
        .strip_suffix('%')
        .ok_or("write a share of the packets with a percent sign, such as 3% or 0.1%")?;
    match decimal(number) {
        Some(percent) if percent <= 100.0 => Ok(percent / 100.0),
        Some(_) => Err("more than all packets cannot be meant: write 0% to 100%"),
        None => {
            Err("write a number from 0 to 100 before the percent sign, without a sign of its own")
        }
    }
}

fn time(text: &str) -> Result<Duration, &'static str> {
    const ADVICE: &str = "write a number and its unit, us, ms or s, such as 40ms, without a sign";
    let split = text.find(|c: char| c.is_ascii_alphabetic()).ok_or(ADVICE)?;
    let (number, unit) = text.split_at(split);
    let number = decimal(number).ok_or(ADVICE)?;
    let seconds = match unit {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "s" => number,
        _ => return Err(ADVICE),
    };
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if time <= MAX_DELAY => Ok(time),
        _ => Err("packets are held for 60 s at most: write a shorter time"),
    }
}

/// Bits a second; `Some(None)` for no limit.
fn rate(text: &str) -> Option<Option<u64>> {
    if text == "none" {
        return Some(None);
    }
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(split);
    let unit: u64 = match unit {
        "kbit" => 1_000,
        "mbit" => 1_000_000,
        "gbit" => 1_000_000_000,
        _ => return None,
    };
    let bits = whole(number)?.checked_mul(unit)?;
    (1_000..=1_000_000_000_000)
        .contains(&bits)
        .then_some(Some(bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> ImpairmentSpec {
        text.parse().unwrap()
    }

    fn node(id: u32) -> LinkEnd {
        LinkEnd::Node(NodeId::new(id).unwrap())
    }

    #[test]
    fn a_spec_says_what_each_link_suffers() {
        let spec = spec(
            "loss=3%,delay=40ms,jitter=500us,rate=100mbit,queue=9,dup=0.1%,reorder=1%,seed=7; \
             peer=2,cut=in; peer=3,dir=both,loss=0.5%; peer=clients,rebind=4",
        );
        assert_eq!(spec.seed(), 7);
        let one = spec.of(node(1));
        assert_eq!(one.outward.loss, 0.03);
        assert_eq!(one.outward.delay, Duration::from_millis(40));
        assert_eq!(one.outward.jitter, Duration::from_micros(500));
        assert_eq!(one.outward.rate, Some(100_000_000));
        assert_eq!(one.outward.queue, 9);
        assert_eq!(one.outward.duplicate, 0.001);
        assert_eq!(one.outward.reorder, 0.01);
        assert_eq!(one.inward, Impairment::default());
        let two = spec.of(node(2));
        assert!(two.inward.cut && !two.outward.cut);
        assert_eq!(two.outward.delay, one.outward.delay);
        let three = spec.of(node(3));
        assert_eq!((three.inward.loss, three.outward.loss), (0.005, 0.005));
        assert_eq!(three.outward.jitter, one.outward.jitter);
        let client = spec.of(LinkEnd::Client);
        assert_eq!(client.outward, Impairment::default());
        assert_eq!(client.rebind, 4);
    }

    #[test]
    fn a_rule_for_one_host_is_no_other_hosts() {
        let spec = spec("loss=1%;host=1,peer=2,loss=2%,cut=out");
        let [one, two] = [1, 2].map(NodeId::new);
        assert_eq!(spec.of_host(one, node(2)).outward.loss, 0.02);
        assert!(spec.of_host(one, node(2)).outward.cut);
        for (own, peer) in [(one, 3), (two, 2), (None, 2)] {
            let link = spec.of_host(own, node(peer));
            assert_eq!((link.outward.loss, link.outward.cut), (0.01, false));
        }
    }

    #[test]
    fn one_way_between_two_hosts_suffers_what_either_end_does_to_it_and_that_once() {
        let way = |text: &str, from: u32, to: u32| {
            let [from, to] = [from, to].map(|id| NodeId::new(id).unwrap());
            spec(text).of_way(from, to)
        };
        for text in ["loss=5%", "dir=in,loss=5%", "dir=both,loss=5%"] {
            for (from, to) in [(1, 2), (2, 1), (3, 1)] {
                assert_eq!(way(text, from, to).loss, 0.05, "{text}");
            }
        }
        let one_sided = "host=1,peer=2,delay=9ms";
        assert_eq!(way(one_sided, 1, 2).delay, Duration::from_millis(9));
        assert!(way(one_sided, 2, 1).is_none() && way(one_sided, 1, 3).is_none());
        let inward = "host=1,dir=in,delay=9ms;peer=3,delay=1ms";
        assert_eq!(way(inward, 2, 1).delay, Duration::from_millis(9));
        assert_eq!(way(inward, 1, 3).delay, Duration::from_millis(1));
        assert!(way(inward, 1, 2).is_none());
        for (text, from, to, is_cut) in [
            ("cut=both", 1, 2, true),
            ("host=2,cut=both", 1, 2, true),
            ("host=2,cut=both", 2, 3, true),
            ("host=2,cut=both", 1, 3, false),
            ("host=2,cut=in", 1, 2, true),
            ("host=2,cut=in", 2, 1, false),
            ("cut=both;cut=none", 1, 2, false),
            ("host=2,cut=both;host=1,cut=none", 1, 2, true),
        ] {
            assert_eq!(way(text, from, to).cut, is_cut, "{text} {from}-{to}");
        }
        assert!(spec("loss=1%;rebind=1").rebinds() && !spec("loss=1%").rebinds());
    }

    #[test]
    fn a_node_of_unknown_number_suffers_what_all_nodes_do() {
        let spec = spec("loss=1%; peer=2,loss=2%; peer=clients,loss=3%");
        assert_eq!(spec.of(LinkEnd::SomeNode).outward.loss, 0.01);
        assert_eq!(spec.of(LinkEnd::Client).outward.loss, 0.03);
    }

    #[test]
    fn an_empty_spec_impairs_nothing() {
        for text in ["", "  ", ";", " ; ;"] {
            assert_eq!(spec(text).of(node(1)), LinkImpairment::default());
        }
    }

    #[test]
    fn a_later_rule_wins_where_it_fits() {
        let spec = spec("cut=both;peer=2,cut=none,loss=1%;loss=2%");
        assert!(spec.of(node(3)).inward.cut);
        let two = spec.of(node(2));
        assert!(!two.inward.cut && !two.outward.cut);
        assert_eq!(two.outward.loss, 0.02);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_to_write() {
        for (text, advice) in [
            ("loss=103%", "0% to 100%"),
            ("loss=-3%", "without a sign"),
            ("loss=3", "percent sign"),
            ("loss=%", "number from 0 to 100"),
            ("loss=NaN%", "number from 0 to 100"),
            ("loss=1e1%", "number from 0 to 100"),
            ("delay=40", "unit"),
            ("delay=-40ms", "without a sign"),
            ("delay=40min", "us, ms or s"),
            ("delay=61s", "60 s at most"),
            ("delay=1.2.3s", "unit"),
            ("rate=100", "mbit"),
            ("rate=0mbit", "above 0"),
            ("rate=99999999999999gbit", "above 0"),
            ("queue=0", "1 to 1000000"),
            ("cut=left", "in, out, both or none"),
            ("peer=0", "number of a node"),
            ("peer=-1", "number of a node"),
            ("dir=up", "out, in or both"),
            ("rebind=-1", "whole number"),
            ("seed=x", "whole number"),
            ("lose=3%", "there are host, peer, dir, loss"),
            ("host=nodes", "number of a node"),
            ("loss", "NAME=VALUE"),
            ("loss=3%,,delay=1ms", "NAME=VALUE"),
        ] {
            let error = text.parse::<ImpairmentSpec>().unwrap_err();
            assert!(error.to_string().contains(advice), "{text}: {error}");
        }
        let long = "loss=1%;".repeat(1_000);
        assert!(long.parse::<ImpairmentSpec>().is_err());
        let longer = "loss=1%;".repeat(10_000);
        assert!(longer.parse::<ImpairmentSpec>().is_err());
    }
}
