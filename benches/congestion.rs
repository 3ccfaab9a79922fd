//! Congestion controllers side by side: on virtual time (`model`), and in real time over a link in memory (`live`).
//!
//! ```text
//! cargo bench --bench congestion -- model            the table of docs/congestion.md; the same on every machine
//! cargo bench --bench congestion -- live [SECONDS]   real time: what this machine's processors can do is part of it
//! ```
//!
//! One line a run. The link is `tests/congestion/link.rs` in both.

// A bench that cannot go on panics, and its result goes to its output.
#![allow(clippy::unwrap_used, clippy::print_stdout, unreachable_pub, dead_code)]

#[path = "../tests/congestion/flow.rs"]
mod flow;
#[path = "../tests/congestion/link.rs"]
mod link;
#[path = "../tests/congestion/memory_link.rs"]
mod memory_link;
#[path = "../tests/simulation/random.rs"]
mod random;
#[path = "../tests/congestion/world.rs"]
mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::congestion::{BbrConfig, CubicConfig};
use quorate::transport::KeelConfig;

use flow::{Factory, FlowOptions, Load, Tls};
use link::LinkSettings;
use memory_link::{memory_pair, processor_time};
use world::World;

const SEED: u64 = 1;
/// What is not counted at the head of a run: start-up.
const START: Duration = Duration::from_secs(4);

fn controllers() -> [(&'static str, Factory); 3] {
    let mut cubic = CubicConfig::default();
    cubic.initial_window(128 * 1024);
    let mut bbr = BbrConfig::default();
    bbr.initial_window(128 * 1024);
    [
        ("cubic", Arc::new(cubic)),
        ("bbr", Arc::new(bbr)),
        ("keel", Arc::new(KeelConfig::default())),
    ]
}

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    match arguments.first().map(String::as_str) {
        Some("model") => model(),
        Some("live") => {
            let seconds = arguments.get(1).map_or(8, |text| text.parse().unwrap());
            live(Duration::from_secs(seconds));
        }
        // `cargo test` runs benches without arguments, to see that they start.
        _ => println!("say model or live; see the head of benches/congestion.rs"),
    }
}

fn model() {
    let cells = [(100, 20), (100, 100), (100, 200), (1000, 40)];
    println!(
        "controller,mbit,rtt_ms,queue_bdp,loss,of_possible,goodput_mbit,self_loss,mean_queue_ms"
    );
    for (mbit, round_trip) in cells {
        for queue in [1.0, 0.25] {
            for loss in [0.0, 0.01, 0.05] {
                for (name, controller) in controllers() {
                    let settings = LinkSettings::new(mbit, round_trip).queue(queue).loss(loss);
                    let mut world = World::new(settings, SEED);
                    let flow = world.add(controller, Load::Bulk);
                    world.run_for(START);
                    world.mark();
                    world.run_for(Duration::from_secs(if mbit > 100 { 3 } else { 10 }));
                    let usage = world.usage(flow);
                    println!(
                        "{name},{mbit},{round_trip},{queue},{loss},{:.3},{:.1},{:.5},{:.2}",
                        usage.of_possible(),
                        usage.goodput_mbit(),
                        usage.counters.self_loss(),
                        usage.counters.mean_queue().as_secs_f64() * 1e3
                    );
                }
            }
        }
    }
}

fn live(counted: Duration) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    println!(
        "controller,mbit,rtt_ms,loss,goodput_mbit,of_link,self_loss,rtt_ms_end,window_kb,cpu_ms_per_mib"
    );
    for (mbit, round_trip) in [(100, 20), (100, 100), (1000, 40)] {
        for loss in [0.0, 0.01, 0.05] {
            for (name, controller) in controllers() {
                let settings = LinkSettings::new(mbit, round_trip).loss(loss);
                let line = runtime.block_on(live_run(settings, controller, counted));
                println!("{name},{mbit},{round_trip},{loss},{line}");
            }
        }
    }
}

async fn live_run(settings: LinkSettings, controller: Factory, counted: Duration) -> String {
    let tls = Tls::new();
    let options = FlowOptions {
        load: Load::Bulk,
        packet_threshold: 3,
        send_window: 64 << 20,
    };
    let (client, server, link) = memory_pair(settings, SEED, &tls, controller, options);
    let address = server.local_addr().unwrap();
    let (dialled, accepted) = tokio::join!(client.connect(address, "link.test").unwrap(), async {
        server.accept().await.unwrap().await.unwrap()
    });
    let (dialled, accepted) = (dialled.unwrap(), accepted);
    let received = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let chunk = Bytes::from(vec![0; 32 * 1024]);
    for _ in 0..4 {
        let mut lane = dialled.open_uni().await.unwrap();
        let chunk = chunk.clone();
        tokio::spawn(async move { while lane.write_chunk(chunk.clone()).await.is_ok() {} });
        let mut lane = accepted.accept_uni().await.unwrap();
        let received = Arc::clone(&received);
        tokio::spawn(async move {
            while let Ok(Some(chunk)) = lane.read_chunk(usize::MAX, true).await {
                received.fetch_add(
                    chunk.bytes.len() as u64,
                    std::sync::atomic::Ordering::Relaxed,
                );
            }
        });
    }
    tokio::time::sleep(START).await;
    let read = || received.load(std::sync::atomic::Ordering::Relaxed);
    let (before, counters, processor) = (read(), link.counters(), processor_time());
    let start = Instant::now();
    tokio::time::sleep(counted).await;
    let bytes = read() - before;
    let seconds = start.elapsed().as_secs_f64();
    let processor = processor_time() - processor;
    let counters = link.counters().since(&counters);
    let path = dialled.stats().path;
    dialled.close(0u32.into(), b"");
    accepted.close(0u32.into(), b"");
    format!(
        "{:.1},{:.3},{:.5},{:.1},{:.0},{:.2}",
        bytes as f64 * 8e-6 / seconds,
        counters.carried_bytes as f64 * 8.0 / (settings.rate_bps as f64 * seconds),
        counters.self_loss(),
        path.rtt.as_secs_f64() * 1e3,
        path.cwnd as f64 / 1e3,
        processor.as_secs_f64() * 1e3 / (bytes as f64 / f64::from(1 << 20)),
    )
}
