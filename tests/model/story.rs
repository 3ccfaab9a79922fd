//! A trace, told in words.

use std::fmt;

use crate::search::Trace;
use crate::state::{InSync, Phase, State};
use crate::steps::{Next, Step};

impl fmt::Display for InSync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (index, member) in self.members().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}n{}", member + 1)?;
            if self.incarnation(member) != 0 {
                write!(f, "'s process {}", self.incarnation(member) + 1)?;
            }
        }
        write!(f, "}} with m = {}", self.m())
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "      n1 is appointed to epoch 1, in sync are {}",
            self.first.isr
        )?;
        let mut before = self.first;
        for (index, next) in self.steps.iter().enumerate() {
            write!(f, "  {:>2}. ", index + 1)?;
            tell(f, &before, next)?;
            for offset in 0..next.state.acknowledged.len() {
                let entry = next.state.acknowledged[offset];
                if before.acknowledged[offset] == 0 && entry != 0 {
                    write!(
                        f,
                        "; r{} IS ACKNOWLEDGED in epoch {}",
                        entry & 15,
                        entry >> 4
                    )?;
                }
            }
            writeln!(f)?;
            before = next.state;
        }
        if let Some(violation) = self.violation() {
            writeln!(f, "      {violation}")?;
        }
        f.write_str("      logs:")?;
        for (node, replica) in before.replicas.iter().enumerate() {
            write!(f, " n{} {}", node + 1, replica.log)?;
            if (replica.durable as usize) < replica.log.len() {
                write!(
                    f,
                    " (durable: {})",
                    replica.log.prefix(replica.durable as usize)
                )?;
            }
        }
        writeln!(f)
    }
}

fn tell(f: &mut fmt::Formatter<'_>, before: &State, next: &Next) -> fmt::Result {
    let after = &next.state;
    match next.step {
        Step::Lead { node, epoch } => write!(
            f,
            "n{} takes up its appointment to epoch {epoch} and writes S{epoch}",
            node + 1
        ),
        Step::Append { node } => write!(
            f,
            "n{} appends r{}, to {}",
            node + 1,
            after.records,
            after.replicas[node].log
        ),
        Step::Sync { node, entries } => write!(
            f,
            "n{} has synced: {} is durable",
            node + 1,
            after.replicas[node].log.prefix(entries)
        ),
        Step::Follow { node, leader } => write!(
            f,
            "n{} learns that n{} leads epoch {}, and follows it",
            node + 1,
            leader + 1,
            before.replicas[leader].epoch
        )
        .and_then(|()| opened(f, before, after, node)),
        Step::AskAgain { node } => write!(f, "n{} asks for another session", node + 1),
        Step::TakeHello { leader, from } => write!(
            f,
            "n{} takes the hello of n{} and answers where to cut",
            leader + 1,
            from + 1
        ),
        Step::TakeAnswer { node } => write!(
            f,
            "n{} takes the answer: its log is {}",
            node + 1,
            after.replicas[node].log
        ),
        Step::Reopen { node } => write!(f, "n{} opens its session again", node + 1)
            .and_then(|()| opened(f, before, after, node)),
        Step::TakeOldAnswer { node } => write!(
            f,
            "n{} takes the answer of an OLDER session: its log is {}",
            node + 1,
            after.replicas[node].log
        ),
        Step::TakeFrame { node, .. } => write!(
            f,
            "n{} takes a frame: its log is {}",
            node + 1,
            after.replicas[node].log
        ),
        Step::TakeAck {
            leader,
            from,
            position,
        } => write!(
            f,
            "n{} counts n{}'s ack of {position}",
            leader + 1,
            from + 1
        ),
        Step::TakeOldAck { leader, from } => write!(
            f,
            "n{} counts an OLD ack of n{}, of {}",
            leader + 1,
            from + 1,
            before.replicas[leader].old_ack[from]
        ),
        Step::Propose { node, isr } => write!(f, "n{} proposes {isr}", node + 1),
        Step::Accept { proposal } => write!(
            f,
            "the controller accepts n{}'s proposal of epoch {}: in sync are {}",
            proposal.proposer, proposal.epoch, after.isr
        ),
        Step::Refuse { proposal } => write!(
            f,
            "the controller refuses n{}'s proposal of {}: another process is registered",
            proposal.proposer, proposal.isr
        ),
        Step::HearOutcome { node } => write!(
            f,
            "n{} hears the outcome, and counts by {}",
            node + 1,
            after.replicas[node].isr
        ),
        Step::Withdraw { node } => write!(
            f,
            "n{} has its present set accepted anew, since its proposal was refused",
            node + 1
        ),
        Step::HearState { node } => write!(
            f,
            "n{} hears the controller's state, and counts by {}",
            node + 1,
            after.replicas[node].isr
        ),
        Step::GiveUp { node } => write!(
            f,
            "n{} waits no longer for the outcome and takes its proposal for refused",
            node + 1
        ),
        Step::SetMinInsync { m } => write!(f, "the controller sets m to {m}"),
        Step::StartElection => write!(
            f,
            "the controller commits epoch {} without a leader",
            after.epoch
        ),
        Step::Fence { node } => write!(
            f,
            "n{} promises epoch {}, and replies that its durable log ends at {}",
            node + 1,
            before.epoch,
            after.replies[node].end
        ),
        Step::Appoint { node } => write!(
            f,
            "the controller appoints n{} to epoch {}",
            node + 1,
            before.epoch
        ),
        Step::Crash { node, lost, .. } => {
            let what = if lost { ", and LOSES all it had" } else { "" };
            write!(
                f,
                "n{} crashes and starts as process {}{what}: its log is {}",
                node + 1,
                after.replicas[node].incarnation + 1,
                after.replicas[node].log
            )
        }
        Step::Register { node } => write!(
            f,
            "n{} registers process {}",
            node + 1,
            after.replicas[node].incarnation + 1
        ),
    }
}

/// Where a session was opened in one step, what it left of the log.
fn opened(f: &mut fmt::Formatter<'_>, before: &State, after: &State, node: usize) -> fmt::Result {
    let (was, is) = (&before.replicas[node], &after.replicas[node]);
    if is.phase == Phase::Streaming && was.log != is.log {
        write!(f, ", its log cut to {}", is.log)?;
    }
    Ok(())
}
