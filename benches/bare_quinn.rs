//! What quinn carries over the hops of a replicated record when nobody does anything with it: client to leader, leader to both
//! followers, each a process of its own on 127.0.0.1. It is what `quorate bench replicate --flush os` is held against.
//!
//! ```text
//! cargo bench --bench bare_quinn -- [SECONDS [IN_FLIGHT_KIB [DIR]]]      10 s, 256 KiB
//! ```
//!
//! One stream a hop, and chunks of up to 64 KiB. A follower tells how many bytes it has, by the latest count; the leader tells the client when
//! one of the two has them. With DIR, which must exist, each of the three also writes what it receives to a file there, and goes back to its beginning after a GiB, as a
//! log does that leaves syncing to the operating system. No more than IN_FLIGHT_KIB are on their way. Prints one line of JSON.

// A bench that cannot go on panics, and its result goes to its output.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::indexing_slicing)]

use std::env;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{
    ClientConfig, Connection, Endpoint, RecvStream, SendStream, ServerConfig, TransportConfig,
    VarInt,
};
use quorate::bench::Usage;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;

const CHUNK: usize = 64 * 1024;
const WINDOW: u32 = 64 << 20;
const COUNT_BYTES: usize = 8;
const FILE_BYTES: u64 = 1 << 30;

fn transport() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    // What is no limit to what is measured.
    config
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .receive_window(VarInt::from_u32(WINDOW))
        .send_window(u64::from(WINDOW));
    Arc::new(config)
}

fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A server with a certificate of its own, which it tells on its output with its port.
fn serve() -> Endpoint {
    let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
    let mut config =
        ServerConfig::with_single_cert(vec![own.cert.der().clone()], key.into()).unwrap();
    config.transport_config(transport());
    let endpoint = Endpoint::server(config, local()).unwrap();
    let certificate: String = own
        .cert
        .der()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    println!("{} {certificate}", endpoint.local_addr().unwrap().port());
    endpoint
}

/// `text` is what a server has told.
async fn dial(text: &str) -> Connection {
    let (port, certificate) = text.trim().split_once(' ').unwrap();
    let certificate: Vec<u8> = (0..certificate.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&certificate[at..at + 2], 16).unwrap())
        .collect();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(certificate)).unwrap();
    let mut config = ClientConfig::with_root_certificates(Arc::new(roots)).unwrap();
    config.transport_config(transport());
    let endpoint = Endpoint::client(local()).unwrap();
    let to = SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()));
    endpoint
        .connect_with(config, to, "localhost")
        .unwrap()
        .await
        .unwrap()
}

/// Writes the latest count whenever it is another one.
async fn tell(mut counts: watch::Receiver<u64>, mut stream: SendStream) {
    while counts.changed().await.is_ok() {
        let count = *counts.borrow_and_update();
        if stream.write_all(&count.to_be_bytes()).await.is_err() {
            return;
        }
    }
}

/// Reads counts for as long as they come.
async fn hear(mut stream: RecvStream, counts: watch::Sender<u64>) {
    let mut bytes = [0; COUNT_BYTES];
    while stream.read_exact(&mut bytes).await.is_ok() {
        // The greater of both followers'.
        let count = u64::from_be_bytes(bytes);
        counts.send_if_modified(|known| {
            count > *known && {
                *known = count;
                true
            }
        });
    }
}

/// A file that is written over and over, or none.
struct Sink {
    file: Option<File>,
    at: u64,
}

impl Sink {
    fn in_dir(dir: Option<&String>) -> Sink {
        let file = dir.map(|dir| {
            let path = PathBuf::from(dir).join(format!("bare-{}", std::process::id()));
            let file = File::create(&path).unwrap();
            // Without a name it is gone when this process is, however that ends.
            std::fs::remove_file(&path).unwrap();
            file
        });
        Sink { file, at: 0 }
    }

    fn write(&mut self, bytes: &[u8]) {
        let Some(file) = &self.file else { return };
        file.write_all_at(bytes, self.at).unwrap();
        self.at += bytes.len() as u64;
        if self.at >= FILE_BYTES {
            file.set_len(0).unwrap();
            self.at = 0;
        }
    }
}

async fn accept(endpoint: &Endpoint) -> (Connection, SendStream, RecvStream) {
    let connection = endpoint.accept().await.unwrap().await.unwrap();
    let (send, receive) = connection.accept_bi().await.unwrap();
    (connection, send, receive)
}

async fn follow(mut sink: Sink) {
    let endpoint = serve();
    let (_connection, send, mut receive) = accept(&endpoint).await;
    let (has, counts) = watch::channel(0);
    tokio::spawn(tell(counts, send));
    while let Ok(Some(chunk)) = receive.read_chunk(CHUNK, true).await {
        sink.write(&chunk.bytes);
        has.send_modify(|count| *count += chunk.bytes.len() as u64);
    }
}

async fn lead(followers: &[String], mut sink: Sink) {
    let endpoint = serve();
    let (has, counts) = watch::channel(0);
    let mut to_followers = Vec::new();
    for follower in followers {
        let connection = dial(follower).await;
        let (send, receive) = connection.open_bi().await.unwrap();
        tokio::spawn(hear(receive, has.clone()));
        // A few chunks, so that a slow one holds the client up and not this process's memory.
        let (queue, mut queued) = tokio::sync::mpsc::channel::<Bytes>(16);
        tokio::spawn(async move {
            let (_connection, mut send) = (connection, send);
            while let Some(chunk) = queued.recv().await {
                send.write_chunk(chunk).await.unwrap();
            }
        });
        to_followers.push(queue);
    }
    let (_connection, send, mut receive) = accept(&endpoint).await;
    tokio::spawn(tell(counts, send));
    while let Ok(Some(chunk)) = receive.read_chunk(CHUNK, true).await {
        sink.write(&chunk.bytes);
        for follower in &to_followers {
            follower.send(chunk.bytes.clone()).await.unwrap();
        }
    }
}

/// A child that ends with this process.
struct Role(Child);

impl Role {
    /// The child, and what it tells of where it is.
    fn start(words: &[String]) -> (Role, String) {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(words)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        (Role(child), line.trim().to_owned())
    }

    /// Processor time so far, in seconds.
    fn processor_seconds(&self) -> f64 {
        let usage = Usage::of(&[self.0.id()]).unwrap();
        usage.cpu.as_secs_f64()
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn measure(leader: &str, nodes: &[Role], seconds: u64, in_flight: u64, writes: bool) {
    let connection = dial(leader).await;
    let (mut send, receive) = connection.open_bi().await.unwrap();
    let (has, mut counts) = watch::channel(0);
    tokio::spawn(hear(receive, has));
    let chunk = Bytes::from(vec![0x51; CHUNK]);
    let processors = || nodes.iter().map(Role::processor_seconds).sum::<f64>();
    let (mut sent, begun) = (0, Instant::now());
    let warm = begun + Duration::from_secs(2);
    let ends = warm + Duration::from_secs(seconds);
    let mut measured_from = None;
    while Instant::now() < ends {
        if measured_from.is_none() && Instant::now() >= warm {
            measured_from = Some((Instant::now(), *counts.borrow(), processors()));
        }
        let acknowledged = *counts.borrow_and_update();
        let room = in_flight.saturating_sub(sent - acknowledged);
        if room == 0 {
            counts.changed().await.unwrap();
            continue;
        }
        let piece = chunk.slice(..CHUNK.min(room as usize));
        sent += piece.len() as u64;
        send.write_chunk(piece).await.unwrap();
    }
    let (from, bytes, used) = measured_from.unwrap();
    let bytes = *counts.borrow() - bytes;
    let mib = bytes as f64 / f64::from(1 << 20);
    let took = from.elapsed().as_secs_f64();
    println!(
        "{{\"bench\":\"bare_quinn\",\"in_flight_kib\":{},\"writes\":{writes},\"measured_s\":{took:.2},\"mib_per_s\":{:.1},\"mbit_per_s\":{:.0},\"cpu_ms_per_mib\":{:.2}}}",
        in_flight >> 10,
        mib / took,
        bytes as f64 * 8.0 / took / 1e6,
        (processors() - used) * 1e3 / mib,
    );
}

#[tokio::main]
async fn main() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    // cargo adds a flag of its own.
    let words: Vec<String> = env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    match words.first().map(String::as_str) {
        Some("follow") => follow(Sink::in_dir(words.get(1))).await,
        Some("lead") => lead(&words[1..3], Sink::in_dir(words.get(3))).await,
        _ => {
            let number = |at: usize, default| {
                words
                    .get(at)
                    .map_or(default, |word: &String| word.parse().unwrap())
            };
            let start = |role: &str, more: &[String]| {
                let mut words = vec![role.to_owned()];
                words.extend_from_slice(more);
                Role::start(&words)
            };
            let dir: Vec<String> = words.iter().skip(2).take(1).cloned().collect();
            let (one, one_at) = start("follow", &dir);
            let (other, other_at) = start("follow", &dir);
            let (leader, leader_at) = start("lead", &[vec![one_at, other_at], dir].concat());
            let nodes = [leader, one, other];
            measure(
                &leader_at,
                &nodes,
                number(0, 10),
                number(1, 256) << 10,
                words.len() > 2,
            )
            .await;
        }
    }
}
