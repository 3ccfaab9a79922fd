//! Where everything of one cluster lies.
//!
//! ```text
//! client.env           to be sourced: every client command then finds the cluster
//! nodes.json           one object a node
//! certs/               the CA and the client's certificate
//! node-1/certs/        node 1's certificate
//! node-1/data/         its data directory
//! node-1/node.log      what it logs
//! node-1/node.toml     its configuration file, where it is to have one
//! node-1/start.sh      starts it again
//! ```

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::processes::lock_holder;
use super::{During, LocalError};
use crate::node::IMPAIR_FILE;
use crate::transport::{
    CertificateHost, CertsDir, ClientName, ImpairmentSpec, IssueOptions, shell_word,
};
use crate::types::NodeId;

const DEFAULT_NODES: u16 = 3;
/// How many nodes a folder can have: more only make the machine slow.
pub const MAX_NODES: u16 = 5;
/// The list of nodes, by which a kept demo is also known again.
const NODES_FILE: &str = "nodes.json";
const CLIENT_FILE: &str = "client.env";
/// Ports are chosen from here: below those that operating systems hand out by themselves, so that a node that is started
/// again finds its port still free.
const PORTS: std::ops::Range<u16> = 10_000..30_000;
const SEATED_QUIC: u16 = 9_000;
const SEATED_KAFKA: u16 = 9_092;
/// How many places in that range are tried.
const PORT_TRIES: usize = 200;

/// One node, before and between its processes.
#[derive(Clone, Debug)]
pub struct NodePlan {
    pub id: NodeId,
    pub data_dir: PathBuf,
    pub certs_dir: PathBuf,
    pub log: PathBuf,
    pub start_script: PathBuf,
    /// Its configuration file; see [`Wishes::with_config`].
    pub config: PathBuf,
    pub quic: SocketAddr,
    pub kafka: SocketAddr,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// What keeps one node's ports from being given to somebody else: one socket for QUIC, one for Kafka.
#[derive(Debug)]
struct HeldPort {
    _udp: UdpSocket,
    _tcp: TcpListener,
}

/// One node in `nodes.json`. The field names are part of the command line's interface.
#[derive(Debug, Serialize, Deserialize)]
struct NodeEntry {
    id: NodeId,
    pid: u32,
    data_dir: String,
    quic: SocketAddr,
    kafka: SocketAddr,
    log: String,
    command: Vec<String>,
}

/// What a cluster is to be like.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// What a temporary folder's name has, and how the client is called.
    pub name: &'static str,
    /// How many nodes; 3 where it is not said.
    pub nodes: Option<u16>,
    /// Whether the folder stays when the cluster ends well.
    pub keep: bool,
    /// Flags that every node is started with besides those that say which one it is.
    pub flags: Vec<String>,
    /// Whether each node reads a configuration file, [`NodePlan::config`], which whoever wishes so writes before the start.
    pub with_config: bool,
    /// Hosts that the nodes' certificates name, beside localhost and 127.0.0.1.
    pub hosts: Vec<CertificateHost>,
    /// What the nodes do to the links between them.
    pub impairment: Option<ImpairmentSpec>,
    /// Where each node runs, in their order; all of them on this machine's loopback where none is named.
    pub seats: Vec<Seat>,
}

/// Where a node runs: a host of its own, with ports that nobody else wants there.
#[derive(Clone, Debug)]
pub struct Seat {
    pub address: IpAddr,
    /// What stands before the node's command, to have it run there.
    pub command: Vec<String>,
}

pub struct Folder {
    wishes: Wishes,
    path: PathBuf,
    nodes: Vec<NodePlan>,
    /// The nodes' ports until their processes take them, in the order of the nodes.
    held: Vec<Option<HeldPort>>,
    keep: bool,
    /// A kept demo that goes on: its nodes know each other by their ports, which therefore stay.
    taken_up: bool,
    /// It was there before, empty; then only what is in it goes.
    existed: bool,
}

impl Folder {
    /// Makes the folder, or takes up a kept one, and everything in it but the nodes' data.
    ///
    /// # Errors
    /// A folder that holds something else, or a demo that still runs, is left alone.
    pub fn open(dir: Option<&Path>, wishes: Wishes) -> Result<Folder, LocalError> {
        let nodes = wishes.nodes;
        let (path, existed) = match dir {
            Some(dir) => {
                let path = std::path::absolute(dir)
                    .during(|| format!("cannot tell where {} is", dir.display()))?;
                let existed = path.exists();
                if !existed {
                    create_private(&path)?;
                }
                // Without links and dots, so that it means the same everywhere.
                let path =
                    fs::canonicalize(&path).during(|| format!("cannot use {}", path.display()))?;
                (path, existed)
            }
            None => (create_temporary(wishes.name)?, false),
        };
        if path.to_str().is_none() {
            return Err(LocalError::Usage(format!(
                "{} is not UTF-8, and {NODES_FILE} could not name it: choose another --dir",
                path.display()
            )));
        }
        let kept = if existed { kept_nodes(&path)? } else { None };
        let taken_up = kept.is_some();
        let (addresses, held) = match kept {
            Some(kept) => {
                if let Some(asked) = nodes.filter(|asked| usize::from(*asked) != kept.len()) {
                    return Err(LocalError::Usage(format!(
                        "the demo in {} has {} nodes, not {asked}: leave --nodes away, or choose another --dir",
                        path.display(),
                        kept.len()
                    )));
                }
                let held = hold_kept(&kept)?;
                let addresses = kept.iter().map(|node| (node.quic, node.kafka)).collect();
                (addresses, held)
            }
            None if !wishes.seats.is_empty() => (seated(&wishes.seats), Vec::new()),
            None => free_addresses(nodes.unwrap_or(DEFAULT_NODES))?,
        };
        let folder = Folder {
            nodes: plan(&path, &addresses, &wishes)?,
            held: held.into_iter().map(Some).collect(),
            path,
            keep: wishes.keep || taken_up,
            taken_up,
            existed,
            wishes,
        };
        // What changed it in an earlier run of a kept demo does not hold for this one.
        for node in &folder.nodes {
            let _ = fs::remove_file(node.data_dir.join(IMPAIR_FILE));
        }
        folder.write_certificates()?;
        folder.write_addresses()?;
        Ok(folder)
    }

    /// Gives the ports of one node, by its place in [`Folder::nodes`], to the process that is about to be started. Until it
    /// binds them anybody can: see [`Folder::move_to_other_ports`].
    pub fn let_go_of_port(&mut self, index: usize) {
        if let Some(held) = self.held.get_mut(index) {
            *held = None;
        }
    }

    /// Whether the nodes may listen elsewhere than they were told to before.
    pub fn may_move(&self) -> bool {
        !self.taken_up && self.wishes.seats.is_empty()
    }

    /// Has a new demo's nodes, none of which runs, begin anew on other ports. What they have stored names the old ones and
    /// goes.
    pub fn move_to_other_ports(&mut self) -> Result<(), LocalError> {
        let count = u16::try_from(self.nodes.len()).map_err(|_| too_many())?;
        let (addresses, held) = free_addresses(count)?;
        for node in &self.nodes {
            match fs::remove_dir_all(&node.data_dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error)
                        .during(|| format!("cannot remove {}", node.data_dir.display()));
                }
                _ => {}
            }
        }
        self.nodes = plan(&self.path, &addresses, &self.wishes)?;
        self.held = held.into_iter().map(Some).collect();
        self.write_addresses()
    }

    /// Writes everything that says where the nodes listen, but for `nodes.json`, which also has their pids.
    fn write_addresses(&self) -> Result<(), LocalError> {
        self.write_client_env()?;
        self.nodes.iter().try_for_each(NodePlan::write_start_script)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn nodes(&self) -> &[NodePlan] {
        &self.nodes
    }

    /// Whether it stays when the demo ends well.
    pub fn is_kept(&self) -> bool {
        self.keep
    }

    pub fn impairment(&self) -> Option<&ImpairmentSpec> {
        self.wishes.impairment.as_ref()
    }

    pub fn client_env(&self) -> PathBuf {
        self.path.join(CLIENT_FILE)
    }

    pub fn client_certs(&self) -> PathBuf {
        self.path.join("certs")
    }

    /// Writes `nodes.json`; `pids` in the order of the nodes.
    pub fn write_nodes(&self, pids: &[u32]) -> Result<(), LocalError> {
        let text = |path: &Path| path.display().to_string();
        let entries: Vec<_> = self
            .nodes
            .iter()
            .zip(pids)
            .map(|(node, &pid)| NodeEntry {
                id: node.id,
                pid,
                data_dir: text(&node.data_dir),
                quic: node.quic,
                kafka: node.kafka,
                log: text(&node.log),
                command: node.command.clone(),
            })
            .collect();
        let mut json = serde_json::to_string_pretty(&entries)
            .map_err(|error| LocalError::Failed(format!("cannot write {NODES_FILE}: {error}")))?;
        json.push('\n');
        // Whoever reads it while it is written gets the old one or the new one.
        let path = self.path.join(NODES_FILE);
        let new = self.path.join("nodes.json.new");
        write(&new, &json)?;
        fs::rename(&new, &path).during(|| format!("cannot write {}", path.display()))
    }

    /// Removes what was made here, unless it is to be kept or `well` is false. Returns what people are to be told.
    #[must_use]
    pub fn close(self, well: bool) -> Option<String> {
        if self.keep {
            return None;
        }
        if !well {
            return Some(format!(
                "Logs and data were kept in {}",
                shell_word(&self.path)
            ));
        }
        let removed = if self.existed {
            self.remove_contents()
        } else {
            fs::remove_dir_all(&self.path)
        };
        let error = removed.err()?;
        Some(format!(
            "{} could not be removed: {error}",
            shell_word(&self.path)
        ))
    }

    fn remove_contents(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Makes the certificates that are not there yet.
    fn write_certificates(&self) -> Result<(), LocalError> {
        let options = IssueOptions::new(OffsetDateTime::now_utc());
        let certs = CertsDir::new(self.client_certs());
        if !certs.ca_certificate().exists() {
            certs.create_ca(&options)?;
        }
        let client = ClientName::new(self.wishes.name)?;
        if !certs.client_pair(&client).0.exists() {
            certs.create_client(&client, &options)?;
        }
        let mut hosts: Vec<CertificateHost> = vec!["localhost".parse()?, "127.0.0.1".parse()?];
        hosts.extend(self.wishes.hosts.iter().cloned());
        for seat in &self.wishes.seats {
            hosts.push(seat.address.to_string().parse()?);
        }
        for node in &self.nodes {
            let own = CertsDir::with_ca_key(&node.certs_dir, certs.ca_key());
            if own.node_pair().0.exists() {
                continue;
            }
            create_private(&node.certs_dir)?;
            fs::copy(certs.ca_certificate(), own.ca_certificate())
                .during(|| format!("cannot write {}", own.ca_certificate().display()))?;
            own.create_node(node.id, &hosts, &options)?;
        }
        Ok(())
    }

    fn write_client_env(&self) -> Result<(), LocalError> {
        let servers: Vec<_> = self.nodes.iter().map(|n| n.quic.to_string()).collect();
        let text = format!(
            "# For a shell: . {}\nexport QUORATE_BOOTSTRAP_SERVER={}\nexport QUORATE_CERTS_DIR={}\n",
            shell_word(&self.client_env()),
            servers.join(","),
            shell_word(&self.client_certs())
        );
        write(&self.client_env(), &text)
    }
}

impl NodePlan {
    /// From now on, within 20 ms, the node's links suffer this, in the impairments' words; nothing where it is empty.
    pub fn impair(&self, rules: &str, seed: u64) -> Result<(), LocalError> {
        let path = self.data_dir.join(IMPAIR_FILE);
        let new = self.data_dir.join("impair.new");
        // Whoever reads it while it is written gets the old one or the new one.
        write(&new, &format!("{rules};seed={seed}\n"))?;
        fs::rename(&new, &path).during(|| format!("cannot write {}", path.display()))
    }

    fn write_start_script(&self) -> Result<(), LocalError> {
        let words: Vec<_> = self
            .command
            .iter()
            .map(|word| shell_word(Path::new(word)))
            .collect();
        let log = shell_word(&self.log);
        let text = format!(
            "#!/bin/sh\n\
             # Starts node {id} of this demo again, in the foreground; its log goes on in the file it had.\n\
             # The node is configured by its flags alone.\n\
             for name in $(env | sed -n 's/^\\(QUORATE_[A-Z_]*\\)=.*/\\1/p'); do unset \"$name\"; done\n\
             echo 'node {id} runs until it is stopped with Ctrl-C, or with the demo; it logs to' {log}\n\
             exec {command} >>{log} 2>&1\n",
            id = self.id,
            command = words.join(" "),
        );
        write(&self.start_script, &text)?;
        fs::set_permissions(&self.start_script, fs::Permissions::from_mode(0o700))
            .during(|| format!("cannot write {}", self.start_script.display()))
    }
}

/// The nodes of the demo that was kept in a folder; `None` for an empty folder.
fn kept_nodes(path: &Path) -> Result<Option<Vec<NodeEntry>>, LocalError> {
    let cannot_read = || format!("cannot read {}", path.display());
    if fs::read_dir(path).during(cannot_read)?.next().is_none() {
        return Ok(None);
    }
    let list = path.join(NODES_FILE);
    let strange = |why: &str| {
        LocalError::Usage(format!(
            "{} is not empty and holds no kept demo ({why}): choose a new or empty --dir",
            path.display()
        ))
    };
    let text = match fs::read_to_string(&list) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(strange("it has no nodes.json"));
        }
        Err(error) => {
            return Err(error).during(|| format!("cannot read {}", list.display()));
        }
    };
    let nodes: Vec<NodeEntry> =
        serde_json::from_str(&text).map_err(|_| strange("its nodes.json is another program's"))?;
    let numbered = (1..).zip(&nodes).all(|(id, node)| node.id.get() == id);
    if nodes.is_empty() || nodes.len() > usize::from(MAX_NODES) || !numbered {
        return Err(strange("its nodes.json is another program's"));
    }
    for node in &nodes {
        if let Some(pid) = lock_holder(&data_dir(path, node.id)) {
            return Err(LocalError::Failed(format!(
                "node {} of the demo in {} still runs: stop it with kill {pid}, or choose another --dir",
                node.id,
                path.display()
            )));
        }
    }
    Ok(Some(nodes))
}

fn node_dir(folder: &Path, id: NodeId) -> PathBuf {
    folder.join(format!("node-{id}"))
}

fn data_dir(folder: &Path, id: NodeId) -> PathBuf {
    node_dir(folder, id).join("data")
}

/// What each node is started with. Everything is said by a flag, so that the command does the same in any environment.
fn plan(
    folder: &Path,
    addresses: &[(SocketAddr, SocketAddr)],
    wishes: &Wishes,
) -> Result<Vec<NodePlan>, LocalError> {
    let program =
        std::env::current_exe().during(|| "cannot tell where this program is".to_owned())?;
    let program = program.to_str().ok_or_else(|| {
        LocalError::Failed(format!(
            "this program's path {} is not UTF-8: move it to one that is",
            program.display()
        ))
    })?;
    let node_id = |index: usize| {
        u16::try_from(index + 1)
            .ok()
            .and_then(|id| NodeId::new(id.into()))
            .ok_or_else(too_many)
    };
    // An odd number of nodes vote on metadata; a fourth one would only make the majority larger.
    let voters = addresses.len() - (1 - addresses.len() % 2);
    let mut controllers = Vec::new();
    for (index, (quic, _)) in addresses.iter().take(voters).enumerate() {
        controllers.push(format!("{}@{quic}", node_id(index)?));
    }
    let controllers = controllers.join(",");
    let mut nodes = Vec::new();
    for (index, &(quic, kafka)) in addresses.iter().enumerate() {
        let id = node_id(index)?;
        let dir = node_dir(folder, id);
        let certs_dir = dir.join("certs");
        let data_dir = data_dir(folder, id);
        let flags = [
            ("--certs-dir", certs_dir.display().to_string()),
            ("--node-id", id.to_string()),
            ("--data-dir", data_dir.display().to_string()),
            ("--listen", quic.to_string()),
            ("--kafka-listen", kafka.to_string()),
            ("--controllers", controllers.clone()),
        ];
        let mut command = match wishes.seats.get(index) {
            Some(seat) => seat.command.clone(),
            None => Vec::new(),
        };
        command.extend([program, "server", "start"].map(str::to_owned));
        command.extend(
            flags
                .into_iter()
                .flat_map(|(flag, value)| [flag.to_owned(), value]),
        );
        command.push("--kafka-plaintext".to_owned());
        let config = dir.join("node.toml");
        if wishes.with_config {
            command.extend(["--config".to_owned(), config.display().to_string()]);
        }
        command.extend(wishes.flags.iter().cloned());
        if let Some(spec) = &wishes.impairment {
            command.extend(["--impair".to_owned(), spec.to_string()]);
        }
        nodes.push(NodePlan {
            id,
            log: dir.join("node.log"),
            start_script: dir.join("start.sh"),
            config,
            data_dir,
            certs_dir,
            quic,
            kafka,
            command,
        });
    }
    Ok(nodes)
}

fn too_many() -> LocalError {
    LocalError::Failed("too many nodes".to_owned())
}

/// Where a node serves QUIC and where Kafka.
type Addresses = (SocketAddr, SocketAddr);

/// On hosts of their own, every node has the same ports. Kafka's, which is plaintext, is for that host alone; its number is another
/// than QUIC's, so that a node can be measured that replicates over TCP.
fn seated(seats: &[Seat]) -> Vec<Addresses> {
    let kafka = SocketAddr::from((Ipv4Addr::LOCALHOST, SEATED_KAFKA));
    let quic = |seat: &Seat| SocketAddr::new(seat.address, SEATED_QUIC);
    seats.iter().map(|seat| (quic(seat), kafka)).collect()
}

/// As many neighbouring ports, each free for both QUIC and Kafka: the one is on UDP, the other on TCP. They are held, so that
/// nobody else who looks for a port finds them free.
fn free_addresses(count: u16) -> Result<(Vec<Addresses>, Vec<HeldPort>), LocalError> {
    'tries: for _ in 0..PORT_TRIES {
        let first = rand::random_range(PORTS);
        let mut held = Vec::new();
        let mut addresses = Vec::new();
        for port in first..first + count {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            match HeldPort::bind(address, address) {
                Ok(port) => held.push(port),
                Err(_) => continue 'tries,
            }
            addresses.push((address, address));
        }
        return Ok((addresses, held));
    }
    Err(LocalError::Failed(format!(
        "no {count} neighbouring ports are free on 127.0.0.1 between {} and {}",
        PORTS.start, PORTS.end
    )))
}

/// A kept demo's nodes know each other by their ports.
fn hold_kept(nodes: &[NodeEntry]) -> Result<Vec<HeldPort>, LocalError> {
    let hold = |node: &NodeEntry| {
        HeldPort::bind(node.quic, node.kafka).during(|| {
            format!(
                "node {} of the kept demo needs UDP port {} and TCP port {}: end what uses them, or choose another --dir",
                node.id, node.quic, node.kafka
            )
        })
    };
    nodes.iter().map(hold).collect()
}

impl HeldPort {
    fn bind(quic: SocketAddr, kafka: SocketAddr) -> io::Result<HeldPort> {
        Ok(HeldPort {
            _udp: UdpSocket::bind(quic)?,
            _tcp: TcpListener::bind(kafka)?,
        })
    }
}

impl NodePlan {
    /// The port of this node, which is not running, that somebody else has; `None` if both can be had.
    pub fn taken_port(&self) -> Option<SocketAddr> {
        let taken = |bound: io::Result<()>| {
            bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
        };
        if taken(UdpSocket::bind(self.quic).map(drop)) {
            return Some(self.quic);
        }
        taken(TcpListener::bind(self.kafka).map(drop)).then_some(self.kafka)
    }
}

fn create_private(path: &Path) -> Result<(), LocalError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .during(|| format!("cannot make the directory {}", path.display()))
}

fn create_temporary(name: &str) -> Result<PathBuf, LocalError> {
    let parent = std::env::temp_dir();
    loop {
        let path = parent.join(format!("quorate-{name}-{:08x}", rand::random::<u32>()));
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {
                return fs::canonicalize(&path).during(|| format!("cannot use {}", path.display()));
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(error).during(|| {
                    format!(
                        "cannot make a directory in {}: name another place with --dir",
                        parent.display()
                    )
                });
            }
        }
    }
}

fn write(path: &Path, text: &str) -> Result<(), LocalError> {
    fs::write(path, text).during(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(nodes: Option<u16>, keep: bool) -> Wishes {
        Wishes {
            name: "demo",
            nodes,
            keep,
            ..Wishes::default()
        }
    }

    #[test]
    fn a_folder_can_be_made_kept_taken_up_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("it's here");
        let folder = Folder::open(Some(&path), wishes(Some(3), true)).unwrap();
        folder.write_nodes(&[11, 12, 13]).unwrap();
        let ports: Vec<_> = folder.nodes().iter().map(|node| node.quic).collect();
        assert_eq!(folder.close(true), None);

        let env = fs::read_to_string(path.join(CLIENT_FILE)).unwrap();
        assert!(
            env.contains(r"its here/certs'") || env.contains(r"it'\''s here/certs'"),
            "{env}"
        );
        let error = Folder::open(Some(&path), wishes(Some(1), false))
            .err()
            .unwrap();
        assert!(error.to_string().contains("has 3 nodes, not 1"), "{error}");
        let again = Folder::open(Some(&path), wishes(None, false)).unwrap();
        let same: Vec<_> = again.nodes().iter().map(|node| node.quic).collect();
        assert_eq!(same, ports);
        // What was once asked to be kept is not removed by a later run.
        assert!(!again.may_move());
        assert_eq!(again.close(true), None);
        assert!(path.join(NODES_FILE).exists());
    }

    #[test]
    fn ports_are_held_until_they_are_let_go_of() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = Folder::open(Some(dir.path()), wishes(Some(2), false)).unwrap();
        let ports: Vec<_> = folder.nodes().iter().map(|node| node.quic).collect();
        assert_eq!(folder.nodes()[0].taken_port(), Some(ports[0]));
        folder.let_go_of_port(0);
        assert_eq!(folder.nodes()[0].taken_port(), None);
        assert_eq!(folder.nodes()[1].taken_port(), Some(ports[1]));

        fs::create_dir_all(&folder.nodes()[0].data_dir).unwrap();
        let thief = TcpListener::bind(ports[0]).unwrap();
        assert_eq!(folder.nodes()[0].taken_port(), Some(ports[0]));
        assert!(folder.may_move());
        folder.move_to_other_ports().unwrap();
        assert!(!folder.nodes()[0].data_dir.exists());
        drop(thief);
        let moved: Vec<_> = folder.nodes().iter().map(|node| node.quic).collect();
        assert_ne!(moved, ports);
        let env = fs::read_to_string(folder.client_env()).unwrap();
        assert!(
            env.contains(&format!("={},{}\n", moved[0], moved[1])),
            "{env}"
        );
    }

    #[test]
    fn what_the_demo_did_not_make_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(Some(dir.path()), wishes(Some(1), false)).unwrap();
        assert_eq!(folder.close(true), None);
        assert!(dir.path().exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

        fs::write(dir.path().join("thesis.txt"), "x").unwrap();
        let error = Folder::open(Some(dir.path()), wishes(None, false))
            .err()
            .unwrap();
        assert!(error.to_string().contains("not empty"), "{error}");
        assert!(!dir.path().join(CLIENT_FILE).exists());
    }

    #[test]
    fn an_even_number_of_nodes_has_an_odd_number_of_controllers() {
        let addresses: Vec<_> = (1..=4)
            .map(|port| {
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
                (address, address)
            })
            .collect();
        for (count, voters) in [(1, 1), (2, 1), (3, 3), (4, 3)] {
            let nodes = plan(Path::new("/d"), &addresses[..count], &Wishes::default()).unwrap();
            let list = nodes[0]
                .command
                .iter()
                .skip_while(|word| *word != "--controllers")
                .nth(1);
            assert_eq!(list.unwrap().split(',').count(), voters);
        }
    }
}
