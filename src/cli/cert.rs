//! `quorate cert`: make and list certificates.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::duration::parse_duration;
use super::exit::Exit;
use super::options::GlobalOptions;
use super::output::{Table, note, print_json, print_line};
use crate::transport::{
    CertificateHost, CertificateInfo, CertsDir, ClientName, Created, IssueOptions, Listed,
    shell_word, show_time,
};
use crate::types::NodeId;

/// Make and list certificates
///
/// All certificates of a cluster are signed by one CA. Make the CA once, then a directory for each node and each client,
/// holding ca.crt and its own pair. Keys have mode 0600; a key that others may read is refused.
#[derive(Args, Debug)]
pub(super) struct CertArgs {
    #[command(subcommand)]
    command: CertCommand,

    /// File of the CA's key, if not ca.key in the certificates directory. Keep it off the nodes
    #[arg(long, env = "QUORATE_CA_KEY", value_name = "FILE", global = true)]
    ca_key: Option<PathBuf>,
}

#[derive(Subcommand, Debug)]
enum CertCommand {
    /// Make the CA: ca.crt and ca.key
    CreateCa(IssueArgs),
    /// Make a node's pair: node.crt and node.key
    CreateNode {
        /// The node's number, from 1 up
        #[arg(value_name = "ID")]
        id: NodeId,
        /// Names and addresses that others reach the node by
        #[arg(value_name = "HOST", required = true)]
        hosts: Vec<CertificateHost>,
        #[command(flatten)]
        issue: IssueArgs,
    },
    /// Make a client's pair: client.NAME.crt and client.NAME.key
    CreateClient {
        /// The client's name, which the cluster knows it by
        #[arg(value_name = "NAME")]
        name: ClientName,
        #[command(flatten)]
        issue: IssueArgs,
    },
    /// Show the certificates in the directory, and what is wrong with any
    List,
}

#[derive(Args, Debug)]
struct IssueArgs {
    /// How long it is valid, such as 90d or 5y [default: 10y for a CA, else 5y but no longer than the CA]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    lifetime: Option<Duration>,

    /// Replace files that exist
    #[arg(long)]
    overwrite: bool,
}

impl IssueArgs {
    fn options(&self) -> IssueOptions {
        IssueOptions {
            lifetime: self.lifetime,
            overwrite: self.overwrite,
            now: OffsetDateTime::now_utc(),
        }
    }
}

pub(super) fn run(options: &GlobalOptions, args: CertArgs) -> anyhow::Result<Exit> {
    let dir = options.certs_dir();
    let certs = match args.ca_key {
        Some(key) => CertsDir::with_ca_key(dir, key),
        None => CertsDir::new(dir),
    };
    match args.command {
        CertCommand::CreateCa(issue) => {
            let created = certs.create_ca(&issue.options())?;
            report(options, &created)?;
            let elsewhere = if created.key == dir.join("ca.key") {
                String::new()
            } else {
                format!(" --ca-key {}", shell_word(&created.key))
            };
            note(&format!(
                "Keep {} safe: whoever has it can join the cluster. Next: quorate cert create-node 1 HOST... --certs-dir {}{elsewhere}",
                created.key.display(),
                shell_word(dir)
            ));
        }
        CertCommand::CreateNode { id, hosts, issue } => {
            let created = certs.create_node(id, &hosts, &issue.options())?;
            report(options, &created)?;
            carry(id, &certs, &created);
        }
        CertCommand::CreateClient { name, issue } => {
            let created = certs.create_client(&name, &issue.options())?;
            report(options, &created)?;
        }
        CertCommand::List => list(options, &certs)?,
    }
    Ok(Exit::Ok)
}

/// What a node's machine needs, when it is another one.
fn carry(id: NodeId, certs: &CertsDir, created: &Created) {
    note(&format!(
        "Node {id} needs these in its --certs-dir, and nothing else: {} {} {}",
        certs.ca_certificate().display(),
        created.certificate.display(),
        created.key.display(),
    ));
}

fn report(options: &GlobalOptions, created: &Created) -> anyhow::Result<()> {
    let now = OffsetDateTime::now_utc();
    if options.json() {
        print_json(&Row::of_info(
            &created.certificate,
            Some(&created.key),
            &created.info,
            "valid",
            now,
        ))?;
    } else {
        print_line(&created.certificate.display().to_string())?;
        print_line(&created.key.display().to_string())?;
    }
    let info = &created.info;
    let hosts = match &info.hosts[..] {
        [] => String::new(),
        hosts => format!(" for {}", hosts.join(", ")),
    };
    note(&format!(
        "Made the certificate of {}{hosts}, valid until {} ({} days)",
        info.subject,
        show_time(info.not_after),
        info.days_left(now)
    ));
    Ok(())
}

/// One certificate, as `--output json` writes it.
#[derive(Debug, Serialize)]
struct Row {
    file: String,
    /// Its key's file, if there is one that can be used.
    key: Option<String>,
    /// `ca`, `node`, `client`, or null when the certificate names none.
    role: Option<&'static str>,
    /// The node's number or the client's name.
    id: Option<String>,
    subject: Option<String>,
    issuer: Option<String>,
    hosts: Vec<String>,
    /// RFC 3339, in UTC.
    not_before: Option<String>,
    not_after: Option<String>,
    days_left: Option<i64>,
    state: String,
}

impl Row {
    fn of(listed: &Listed, now: OffsetDateTime) -> Row {
        let state = listed.state(now);
        match &listed.info {
            Ok(info) => {
                let key = listed.key.as_ref().and_then(|key| key.as_ref().ok());
                Row::of_info(&listed.path, key.map(PathBuf::as_path), info, &state, now)
            }
            Err(_) => Row {
                file: listed.path.display().to_string(),
                key: None,
                role: None,
                id: None,
                subject: None,
                issuer: None,
                hosts: Vec::new(),
                not_before: None,
                not_after: None,
                days_left: None,
                state,
            },
        }
    }

    fn of_info(
        file: &Path,
        key: Option<&Path>,
        info: &CertificateInfo,
        state: &str,
        now: OffsetDateTime,
    ) -> Row {
        use crate::transport::PeerIdentity::{Client, Node};
        let (role, id) = match &info.identity {
            _ if info.is_ca => (Some("ca"), None),
            Ok(Node(id)) => (Some("node"), Some(id.to_string())),
            Ok(Client(name)) => (Some("client"), Some(name.to_string())),
            Err(_) => (None, None),
        };
        Row {
            file: file.display().to_string(),
            key: key.map(|key| key.display().to_string()),
            role,
            id,
            subject: Some(info.subject.clone()),
            issuer: Some(info.issuer.clone()),
            hosts: info.hosts.clone(),
            not_before: info.not_before.format(&Rfc3339).ok(),
            not_after: info.not_after.format(&Rfc3339).ok(),
            days_left: Some(info.days_left(now)),
            state: state.to_owned(),
        }
    }
}

fn list(options: &GlobalOptions, certs: &CertsDir) -> anyhow::Result<()> {
    let now = OffsetDateTime::now_utc();
    let listed = certs.list()?;
    if options.json() {
        return listed
            .iter()
            .try_for_each(|listed| print_json(&Row::of(listed, now)));
    }
    let mut table = Table::new([
        "FILE",
        "ROLE",
        "SUBJECT",
        "HOSTS",
        "VALID FROM",
        "VALID UNTIL",
        "DAYS LEFT",
        "STATE",
    ]);
    for listed in &listed {
        let row = Row::of(listed, now);
        let name = listed.path.file_name().unwrap_or_default();
        let role = row.role.unwrap_or("-");
        let info = listed.info.as_ref().ok();
        let time = |time: Option<OffsetDateTime>| time.map_or_else(|| "-".into(), show_time);
        table.row([
            name.to_string_lossy().into_owned(),
            row.id.map_or(role.to_owned(), |id| format!("{role} {id}")),
            row.subject.unwrap_or_else(|| "-".into()),
            match &row.hosts[..] {
                [] => "-".into(),
                hosts => hosts.join(","),
            },
            time(info.map(|info| info.not_before)),
            time(info.map(|info| info.not_after)),
            row.days_left.map_or("-".into(), |days| days.to_string()),
            row.state,
        ]);
    }
    table.print()?;
    if listed.is_empty() {
        note(&format!(
            "{} holds no certificates. Make a CA there: quorate cert create-ca --certs-dir {}",
            certs.path().display(),
            shell_word(certs.path())
        ));
    }
    for listed in &listed {
        if let Err(error) = &listed.info {
            note(&error.to_string());
        }
        if let Some(Err(error)) = &listed.key {
            note(&error.to_string());
        }
    }
    Ok(())
}
