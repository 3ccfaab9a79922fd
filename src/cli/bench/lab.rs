//! `quorate bench lab`: any command in a network of its own whose links are as bad as is wished.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::super::demo::{LinkArgs, impairment_of};
use super::super::output::Table;
use super::super::signals::Signals;
use super::super::{Exit, ExitWith, GlobalOptions, block_on_to_the_end, note, print_json};
use crate::bench::lab::{
    HOSTS_VARIABLE, Lab, LabCounts, LabSettings, NAMESPACES_VARIABLE, RULES_VARIABLE,
    command_in_namespace,
};
use crate::transport::{ImpairmentSpec, shell_word};

/// How long a command may take to end when it is told to.
const END_WITHIN: Duration = Duration::from_secs(5);
/// How often it is looked at whether the lab still carries packets.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Run any command in a network of its own, whose links lose, delay and queue IP packets
///
/// Each host is a network namespace, and this process carries packets between them. The command runs on host 1 and finds LAB_HOSTS,
/// the addresses of all hosts, in its environment; `quorate bench lab exec HOST -- COMMAND` runs another one on host HOST. Without
/// a command the network stands until Ctrl-C. What was carried, lost and dropped is shown at the end. Needs root, and Linux.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct LabArgs {
    #[command(subcommand)]
    exec: Option<LabCommand>,

    /// How many hosts there are
    #[arg(long, value_name = "N", default_value_t = 2)]
    hosts: u16,

    #[command(flatten)]
    link: LinkArgs,

    /// What chance begins with: the same number, the same losses for the same packets [default: a random one]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// File of rules that take the place of the flags' while it is there; it may change at any time [default: a temporary one]
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,

    /// What TCP on the hosts uses where a program does not choose, such as cubic or bbr [default: this machine's]
    #[arg(long, value_name = "NAME")]
    tcp_congestion: Option<String>,

    /// What to run on host 1
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Subcommand, Debug)]
enum LabCommand {
    /// Run a command on a host of the lab that this command runs in
    Exec {
        /// From 1
        #[arg(value_name = "HOST", value_parser = clap::value_parser!(u16).range(1..))]
        host: u16,

        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
}

pub(super) fn run(options: &GlobalOptions, args: LabArgs) -> anyhow::Result<Exit> {
    if let Some(LabCommand::Exec { host, command }) = &args.exec {
        return Err(exec(*host, command));
    }
    let spec: ImpairmentSpec = impairment_of(&args.link.items())?.unwrap_or_default();
    let folder = match args.rules {
        Some(_) => None,
        None => Some(Folder::make()?),
    };
    let rules = match (&args.rules, &folder) {
        (Some(rules), _) => Some(std::path::absolute(rules).context("cannot use --rules")?),
        (None, Some(folder)) => Some(folder.0.join("rules")),
        (None, None) => None,
    };
    let settings = LabSettings {
        hosts: args.hosts,
        spec,
        seed: args
            .seed
            .unwrap_or_else(|| rand::random_range(1..1_000_000)),
        rules,
        tcp_congestion: args.tcp_congestion,
    };
    settings.check()?;
    block_on_to_the_end(stand(options.json(), settings, args.command))
}

/// The folder of a rules file that nobody has named. Removed with what is in it.
struct Folder(PathBuf);

impl Folder {
    fn make() -> anyhow::Result<Folder> {
        use std::os::unix::fs::DirBuilderExt;
        let name = format!("quorate-lab-{:08x}", rand::random::<u32>());
        let path = std::env::temp_dir().join(name);
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot make the folder {}", path.display()))?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            note(&format!("{} was not removed: {error}", shell_word(&self.0)));
        }
    }
}

async fn stand(json: bool, settings: LabSettings, command: Vec<OsString>) -> anyhow::Result<Exit> {
    // Before anything is made, so that no signal ends this process with it.
    let signals = Signals::listen().context("cannot listen for Ctrl-C")?;
    let lab = Lab::open(&settings)?;
    let tcp = lab.tcp_congestion().unwrap_or_default();
    note(&format!(
        "{} hosts, links: {}; seed {}, TCP: {tcp}",
        lab.hosts().len(),
        match settings.spec.to_string() {
            text if text.is_empty() => "as they are".to_owned(),
            text => text,
        },
        settings.seed
    ));
    let ended = match command.split_first() {
        Some((program, arguments)) => {
            let mut command = lab
                .command(1, program)
                .context("a lab without a first host")?;
            command.args(arguments);
            let child = Command::from(command)
                .kill_on_drop(true)
                .spawn()
                .context("cannot start `ip netns exec`")?;
            watch(&lab, &signals, child).await
        }
        None => {
            show_hosts(&lab);
            stand_alone(&lab, &signals).await
        }
    };
    let counts = lab.counts();
    // Ends and removes everything, however the command has ended.
    drop(lab);
    let ended = ended?;
    show(json, &counts)?;
    match ended {
        Some(status) if status.success() => Ok(Exit::Ok),
        Some(status) => {
            let message = format!("the command in the lab ended with {status}");
            Err(ExitWith::new(Exit::Failure, message).into())
        }
        None => Ok(Exit::Interrupted),
    }
}

/// Waits for the command's end; `None` if it was this process that was told to end.
async fn watch(
    lab: &Lab,
    signals: &Signals,
    mut child: Child,
) -> anyhow::Result<Option<ExitStatus>> {
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            biased;
            status = child.wait() => {
                return Ok(Some(status.context("cannot wait for the command")?));
            }
            () = signals.once() => break,
            _ = look.tick() => lab.check()?,
        }
    }
    // Ctrl-C has reached it already; other signals have not.
    let process = child.id().and_then(|id| i32::try_from(id).ok());
    if let Some(process) = process.and_then(Pid::from_raw) {
        let _ = kill_process(process, Signal::TERM);
    }
    tokio::select! {
        _ = child.wait() => {}
        () = signals.twice() => {}
        () = tokio::time::sleep(END_WITHIN) => {}
    }
    Ok(None)
}

async fn stand_alone(lab: &Lab, signals: &Signals) -> anyhow::Result<Option<ExitStatus>> {
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            () = signals.once() => return Ok(None),
            _ = look.tick() => lab.check()?,
        }
    }
}

fn show_hosts(lab: &Lab) {
    for host in lab.hosts() {
        note(&format!(
            "host {}  {}  ip netns exec {} COMMAND",
            host.number, host.address, host.namespace
        ));
    }
    for (name, value) in lab.variables() {
        if name == RULES_VARIABLE {
            note(&format!("rules that change it: {value}"));
        }
    }
    note("stands until Ctrl-C");
}

/// Standard output is the command's; what people read goes to standard error.
fn show(json: bool, counts: &LabCounts) -> anyhow::Result<()> {
    if json {
        return print_json(counts);
    }
    let mut table = Table::new([
        "WAY",
        "PACKETS",
        "CARRIED",
        "MIB",
        "LOST",
        "QUEUE FULL",
        "CUT",
        "DOUBLED",
        "OVERTAKEN",
    ]);
    for way in counts.ways.iter().filter(|way| way.packets > 0) {
        table.row([
            format!("{} -> {}", way.from, way.to),
            way.packets.to_string(),
            way.carried.to_string(),
            format!("{:.1}", way.carried_bytes as f64 / f64::from(1 << 20)),
            way.lost.to_string(),
            way.queue_full.to_string(),
            way.cut.to_string(),
            way.doubled.to_string(),
            way.held_back.to_string(),
        ]);
    }
    for line in table.lines() {
        note(&line);
    }
    let no_room: u64 = counts.ways.iter().map(|way| way.no_room).sum();
    if no_room > 0 {
        note(&format!(
            "{no_room} packets were dropped because more were under way than the lab holds: choose a shorter delay or a lower rate"
        ));
    }
    for host in counts.hosts.iter().filter(|host| host.device_dropped > 0) {
        note(&format!(
            "host {} lost {} packets in its own device, because this machine was too slow: choose a lower rate",
            host.host.number, host.device_dropped
        ));
    }
    Ok(())
}

/// Becomes the command, on another host. Returns only the error that keeps it from that.
fn exec(host: u16, command: &[OsString]) -> anyhow::Error {
    let usage = |message: String| ExitWith::new(Exit::Usage, message).into();
    let Ok(namespaces) = std::env::var(NAMESPACES_VARIABLE) else {
        return usage(format!(
            "{NAMESPACES_VARIABLE} is not set: `exec` is for commands that run in a lab, as `quorate bench lab --hosts 3 -- sh -c '...'`"
        ));
    };
    let all: Vec<_> = namespaces.split_whitespace().collect();
    let index = usize::from(host).wrapping_sub(1);
    let (Some(namespace), Some((program, arguments))) = (all.get(index), command.split_first())
    else {
        return usage(format!(
            "there is no host {host} in this lab: {HOSTS_VARIABLE} has {}",
            all.len()
        ));
    };
    let error = command_in_namespace(namespace, program)
        .args(arguments)
        .exec();
    anyhow::Error::new(error).context("cannot start `ip netns exec`")
}
