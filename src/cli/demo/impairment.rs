//! Links between the demo's nodes that are made worse on purpose.

use clap::Args;

use super::super::{Exit, ExitWith};
use crate::transport::ImpairmentSpec;

/// What can be wrong with a link.
#[derive(Args, Debug, Clone, Default)]
pub(in crate::cli) struct LinkArgs {
    /// Share of packets that are lost, such as 3%
    #[arg(long, value_name = "PERCENT")]
    loss: Option<String>,

    /// Added to each packet's way, such as 40ms; a round trip takes twice that
    #[arg(long, value_name = "TIME")]
    delay: Option<String>,

    /// How far the delay goes up and down, such as 5ms
    #[arg(long, value_name = "TIME")]
    jitter: Option<String>,

    /// Share of packets that later ones overtake
    #[arg(long, value_name = "PERCENT")]
    reorder: Option<String>,

    /// Share of packets that arrive twice
    #[arg(long, value_name = "PERCENT")]
    duplicate: Option<String>,

    /// What each link carries each way, such as 100mbit
    #[arg(long, value_name = "RATE")]
    link_rate: Option<String>,

    /// Packets that may wait before a link of that rate [default: 250]
    #[arg(long, value_name = "PACKETS")]
    queue: Option<String>,
}

impl LinkArgs {
    /// By the names that rules have for them.
    pub(in crate::cli) fn items(&self) -> [(&'static str, &Option<String>); 7] {
        [
            ("loss", &self.loss),
            ("delay", &self.delay),
            ("jitter", &self.jitter),
            ("reorder", &self.reorder),
            ("dup", &self.duplicate),
            ("rate", &self.link_rate),
            ("queue", &self.queue),
        ]
    }
}

/// Each end impairs what it sends: a delay of 40 ms makes a round trip of 80 ms.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Links between the nodes, made worse on purpose")]
pub(super) struct ImpairmentArgs {
    #[command(flatten)]
    link: LinkArgs,

    /// What chance begins with: the same number, the same losses for the same packets
    #[arg(long, value_name = "N")]
    impair_seed: Option<String>,
}

impl ImpairmentArgs {
    /// What each node is to do to its links to the others; `None` where they are left alone.
    pub(super) fn spec(&self) -> anyhow::Result<Option<ImpairmentSpec>> {
        let mut items = self.link.items().to_vec();
        items.push(("seed", &self.impair_seed));
        impairment_of(&items)
    }
}

/// The rule that consists of what was given of these items; `None` where nothing was.
pub(in crate::cli) fn impairment_of(
    items: &[(&str, &Option<String>)],
) -> anyhow::Result<Option<ImpairmentSpec>> {
    let mut text = Vec::new();
    for (name, value) in items {
        let Some(value) = value else {
            continue;
        };
        if value.contains([',', ';']) {
            return Err(usage(format!("{name}: {value:?} is more than one value")));
        }
        text.push(format!("{name}={value}"));
    }
    if text.is_empty() {
        return Ok(None);
    }
    let spec = text.join(",").parse();
    spec.map(Some)
        .map_err(|error: crate::transport::InvalidSpec| usage(error.to_string()))
}

fn usage(message: String) -> anyhow::Error {
    ExitWith::new(Exit::Usage, message).into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::transport::LinkEnd;

    #[test]
    fn flags_are_a_spec_for_what_nodes_send_to_nodes() {
        assert_eq!(ImpairmentArgs::default().spec().unwrap(), None);
        let some = |text: &str| Some(text.to_owned());
        let args = ImpairmentArgs {
            link: LinkArgs {
                loss: some("3%"),
                delay: some("40ms"),
                link_rate: some("100mbit"),
                ..LinkArgs::default()
            },
            impair_seed: some("7"),
        };
        let spec = args.spec().unwrap().unwrap();
        assert_eq!(spec.to_string(), "loss=3%,delay=40ms,rate=100mbit,seed=7");
        let link = spec.of(LinkEnd::SomeNode);
        assert_eq!(link.outward.delay, Duration::from_millis(40));
        assert!(link.inward.is_none() && spec.of(LinkEnd::Client).outward.is_none());
        for bad in ["3", "300%", "3%,cut=both"] {
            let args = ImpairmentArgs {
                link: LinkArgs {
                    loss: some(bad),
                    ..LinkArgs::default()
                },
                impair_seed: None,
            };
            assert!(args.spec().is_err(), "{bad}");
        }
    }
}
