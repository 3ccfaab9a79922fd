//! Congestion controllers over a model of a link, in virtual time: real connections of quinn's, a bottleneck with a queue,
//! loss, jitter and cuts. Nothing here depends on how fast this machine is, so shares of the link are asserted.
//!
//! `QUORATE_CONGESTION_SEED=N` runs the tests with another seed. `docs/congestion.md` has what they show.

// A test that cannot go on panics, and what it measured goes to its output.
#![allow(clippy::unwrap_used, clippy::print_stdout, unreachable_pub)]

#[path = "congestion/flow.rs"]
mod flow;
#[path = "congestion/link.rs"]
mod link;
#[path = "simulation/random.rs"]
#[allow(dead_code)]
mod random;
#[path = "congestion/world.rs"]
mod world;

use std::sync::Arc;
use std::time::Duration;

use flow::{Factory, FlowOptions, Load};
use link::LinkSettings;
use quinn_proto::congestion::{BbrConfig, CubicConfig};
use quorate::transport::{Keel, KeelConfig};
use world::{Usage, World};

/// Round trip, queue as a part of the bandwidth-delay product, and whether ours is there first.
const CUBIC_CASES: [(u64, f64, bool); 4] = [
    (40, 1.0, true),
    (40, 1.0, false),
    (40, 0.25, true),
    (20, 1.0, true),
];

fn keel() -> Factory {
    Arc::new(KeelConfig::default())
}

fn cubic() -> Factory {
    let mut config = CubicConfig::default();
    config.initial_window(128 * 1024);
    Arc::new(config)
}

fn bbr() -> Factory {
    Arc::new(BbrConfig::default())
}

fn seed() -> u64 {
    std::env::var("QUORATE_CONGESTION_SEED").map_or(1, |text| text.parse().unwrap())
}

fn secs(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn show(what: &str, usage: &Usage) {
    println!(
        "{what}: {:.1} % of possible, {:.1} Mbit/s, self-inflicted loss {:.3} %, mean queue {:.2} ms",
        usage.of_possible() * 100.0,
        usage.goodput_mbit(),
        usage.counters.self_loss() * 100.0,
        usage.counters.mean_queue().as_secs_f64() * 1e3,
    );
}

/// Runs one bulk flow: its start is not counted.
fn alone(controller: Factory, settings: LinkSettings, start: f64, counted: f64) -> Usage {
    let mut world = World::new(settings, seed());
    let flow = world.add(controller, Load::Bulk);
    world.run_for(secs(start));
    world.mark();
    world.run_for(secs(counted));
    world.usage(flow)
}

/// What the sender's controller says of itself.
fn keel_of(world: &World, flow: usize) -> Keel {
    let controller = world.flows[flow].sender().congestion_state().clone_box();
    *controller.into_any().downcast::<Keel>().unwrap()
}

#[test]
fn a_narrow_link_is_full_whatever_it_loses_and_its_queue_is_short() {
    for round_trip in [20, 100, 200] {
        for queue in [1.0, 0.25] {
            for loss in [0.0, 0.01, 0.05] {
                let settings = LinkSettings::new(100, round_trip).loss(loss).queue(queue);
                let usage = alone(keel(), settings, 4.0, 4.0);
                let what = format!("100 Mbit/s, {round_trip} ms, queue {queue}, loss {loss}");
                show(&what, &usage);
                assert!(usage.of_possible() >= 0.93, "{what}");
                assert!(usage.counters.self_loss() <= 0.005, "{what}");
                let longest = settings.round_trip / 8 + Duration::from_millis(1);
                assert!(usage.counters.mean_queue() <= longest, "{what}");
            }
        }
    }
}

#[test]
fn a_start_loses_no_more_than_what_one_round_trip_carries() {
    for (round_trip, queue) in [(20, 1.0), (20, 0.25), (100, 1.0), (100, 0.25)] {
        let settings = LinkSettings::new(100, round_trip).queue(queue);
        let usage = alone(keel(), settings, 0.0, 2.0);
        let what = format!("the first 2 s, {round_trip} ms, queue {queue}");
        show(&what, &usage);
        let packets = settings.bandwidth_delay_product() / 1200;
        assert!(usage.counters.tail_dropped <= packets, "{what}");
        assert!(usage.utilisation() >= 0.7, "{what}");
    }
}

#[test]
fn a_fast_link_keeps_its_rate_under_loss() {
    let settings = LinkSettings::new(1000, 40);
    let clean = alone(keel(), settings, 1.5, 0.5);
    show("1 Gbit/s, 40 ms, no loss", &clean);
    assert!(clean.of_possible() >= 0.9);
    for loss in [0.01, 0.05] {
        let lossy = alone(keel(), settings.loss(loss), 1.5, 0.5);
        show(&format!("1 Gbit/s, 40 ms, loss {loss}"), &lossy);
        let kept = lossy.goodput_mbit() / (clean.goodput_mbit() * (1.0 - loss));
        assert!(kept >= 0.9, "{kept:.3} of the loss-free rate at {loss}");
    }
}

/// Two flows, the second starting five seconds after the first. Their shares of the link from `settling` seconds later on.
fn shares(
    first: Factory,
    second: Factory,
    settings: LinkSettings,
    settling: f64,
    counted: f64,
) -> [f64; 2] {
    let mut world = World::new(settings, seed());
    world.add(first, Load::Bulk);
    world.run_for(secs(5.0));
    world.add(second, Load::Bulk);
    world.run_for(secs(settling));
    world.mark();
    world.run_for(secs(counted));
    [0, 1].map(|flow| {
        show(&format!("flow {flow}"), &world.usage(flow));
        world.usage(flow).utilisation()
    })
}

#[test]
fn beside_cubic_both_get_their_part() {
    for (round_trip, queue, ours_first) in CUBIC_CASES {
        let settings = LinkSettings::new(100, round_trip).queue(queue);
        let (first, second) = if ours_first {
            (keel(), cubic())
        } else {
            (cubic(), keel())
        };
        let [first, second] = shares(first, second, settings, 40.0, 40.0);
        let what = format!(
            "{round_trip} ms, queue {queue}, {} first: {first:.2} and {second:.2}",
            if ours_first { "keel" } else { "cubic" }
        );
        println!("{what}");
        assert!(first >= 0.3 && second >= 0.3, "{what}");
    }
}

#[test]
fn two_of_ours_share_and_the_queue_stays_short() {
    for (round_trip, queue) in [(40, 1.0), (40, 0.25)] {
        let settings = LinkSettings::new(100, round_trip).queue(queue);
        let [first, second] = shares(keel(), keel(), settings, 5.0, 20.0);
        let what = format!("{round_trip} ms, queue {queue}: {first:.2} and {second:.2}");
        assert!(first >= 0.35 && second >= 0.35, "{what}");
        assert!(first + second >= 0.95, "{what}");
    }
}

#[test]
fn of_ten_flows_none_starves_and_little_is_lost() {
    let mut world = World::new(LinkSettings::new(100, 40), seed());
    for _ in 0..10 {
        world.add(keel(), Load::Bulk);
        world.run_for(secs(0.3));
    }
    world.run_for(secs(5.0));
    world.mark();
    world.run_for(secs(15.0));
    let shares: Vec<f64> = (0..10).map(|f| world.usage(f).utilisation()).collect();
    let sum: f64 = shares.iter().sum();
    let jain = sum * sum / (10.0 * shares.iter().map(|share| share * share).sum::<f64>());
    let dropped: u64 = (0..10).map(|f| world.usage(f).counters.tail_dropped).sum();
    let offered: u64 = (0..10).map(|f| world.usage(f).counters.offered).sum();
    let lost = dropped as f64 / offered as f64;
    println!(
        "ten flows: {sum:.3} of the link, Jain's index {jain:.3}, self-inflicted loss {lost:.5}"
    );
    assert!(sum >= 0.95 && jain >= 0.7 && lost <= 0.01, "{shares:.3?}");
}

#[test]
fn jitter_is_not_taken_for_a_queue() {
    for (jitter, loss) in [(2, 0.0), (2, 0.02), (10, 0.0), (10, 0.02)] {
        let mut settings = LinkSettings::new(100, 40).loss(loss);
        settings.jitter = Duration::from_millis(jitter);
        let usage = alone(keel(), settings, 5.0, 5.0);
        let what = format!("jitter {jitter} ms, loss {loss}");
        show(&what, &usage);
        assert!(usage.of_possible() >= 0.85, "{what}");
    }
}

#[test]
fn a_route_that_becomes_longer_or_shorter_is_followed() {
    for (before, after) in [(20, 100), (100, 20), (40, 60)] {
        for loss in [0.0, 0.02] {
            let mut world = World::new(LinkSettings::new(100, before).loss(loss), seed());
            let flow = world.add(keel(), Load::Bulk);
            world.run_for(secs(5.0));
            world.link.settings.round_trip = Duration::from_millis(after);
            world.run_for(secs(4.0));
            world.mark();
            world.run_for(secs(4.0));
            let what = format!("{before} to {after} ms, loss {loss}");
            show(&what, &world.usage(flow));
            assert!(world.usage(flow).of_possible() >= 0.9, "{what}");
        }
    }
}

#[test]
fn a_link_that_becomes_slower_or_faster_is_followed() {
    for (before, after) in [(100, 20), (20, 100)] {
        let mut world = World::new(LinkSettings::new(before, 40), seed());
        let flow = world.add(keel(), Load::Bulk);
        world.run_for(secs(5.0));
        world.link.settings.rate_bps = after * 1_000_000;
        world.run_for(secs(4.0));
        world.mark();
        world.run_for(secs(4.0));
        let usage = world.usage(flow);
        let what = format!("{before} to {after} Mbit/s");
        show(&what, &usage);
        assert!(usage.of_possible() >= 0.9, "{what}");
        assert!(usage.counters.self_loss() <= 0.005, "{what}");
        let queue = usage.counters.mean_queue();
        assert!(queue <= Duration::from_millis(10), "{what}: {queue:?}");
    }
}

/// The other end's heartbeats, every 100 ms, are what wakes the sender: then comes one way, and the way back.
#[test]
fn after_a_blackout_the_first_data_goes_at_once_and_the_rate_is_back() {
    for (out, loss) in [(5.0, 0.0), (20.0, 0.0), (20.0, 0.05)] {
        let mut world = World::new(LinkSettings::new(100, 40).loss(loss), seed());
        let flow = world.add(keel(), Load::Bulk);
        world.run_for(secs(4.0));
        let before = keel_of(&world, flow);
        world.link.settings.cut = true;
        world.run_for(secs(out));
        world.link.settings.cut = false;
        world.mark();
        world.run_for(secs(1.0));
        let what = format!("{out} s of blackout, loss {loss}");
        let first = world.first_arrival(flow).unwrap();
        println!("{what}: first data after {first:?}");
        show(&what, &world.usage(flow));
        assert!(first <= Duration::from_millis(250), "{what}: {first:?}");
        assert!(world.usage(flow).utilisation() >= 0.75, "{what}");
        let after = keel_of(&world, flow);
        assert_eq!(after.min_rtt(), before.min_rtt(), "{what}");
    }
}

#[test]
fn heartbeats_teach_nothing_of_the_rate_and_do_not_hold_bulk_back() {
    let mut world = World::new(LinkSettings::new(100, 40), seed());
    let flow = world.add(keel(), Load::Heartbeats);
    world.run_for(secs(30.0));
    let window = world.flows[flow].sender().congestion_state().window();
    assert!((100_000..300_000).contains(&window), "{window}");
    world.flows[flow].load = Load::Bulk;
    world.run_for(secs(1.0));
    world.mark();
    world.run_for(secs(3.0));
    show("bulk after heartbeats", &world.usage(flow));
    assert!(world.usage(flow).of_possible() >= 0.95);
}

#[test]
fn marks_keep_the_queue_below_their_threshold_without_a_loss() {
    let mut settings = LinkSettings::new(100, 40);
    settings.mark_above = Some(settings.bandwidth_delay_product() / 10);
    let usage = alone(keel(), settings, 4.0, 6.0);
    show("marks above a tenth of the product", &usage);
    assert!(usage.counters.marked > 0);
    assert!(usage.of_possible() >= 0.8);
    assert_eq!(usage.counters.tail_dropped, 0);
    assert!(usage.counters.mean_queue() <= settings.round_trip / 10);
}

/// What the other controllers do here, so that a change in them or in the model shows.
#[test]
fn the_model_shows_what_is_known_of_the_others() {
    let lossy = LinkSettings::new(100, 40).loss(0.01);
    let slow = alone(cubic(), lossy, 4.0, 6.0);
    show("cubic at 1 % loss", &slow);
    assert!(
        slow.goodput_mbit() < 15.0,
        "CUBIC takes loss for congestion"
    );
    let full = alone(cubic(), LinkSettings::new(100, 40), 4.0, 10.0);
    show("cubic without loss", &full);
    assert!(full.utilisation() > 0.9);
    assert!(full.counters.mean_queue() > Duration::from_millis(10));
    let flooded = alone(bbr(), LinkSettings::new(100, 20), 4.0, 6.0);
    show("quinn's bbr without loss", &flooded);
    assert!(flooded.counters.self_loss() > 0.005, "it floods the queue");
}

/// Round trips of 100 to 300 ms in order, and one packet in twenty later still: they are the longer the more packets there
/// are, which looks like a queue, and what comes late counts as lost.
#[test]
fn records_on_a_path_of_much_jitter_are_not_starved() {
    let mut settings = LinkSettings::new(1000, 100);
    settings.jitter = Duration::from_millis(100);
    settings.jitter_back = Duration::from_millis(100);
    settings.held_back = 0.05;
    let mut world = World::new(settings, seed());
    let options = FlowOptions {
        load: Load::Heartbeats,
        packet_threshold: 16,
        send_window: 64 << 20,
    };
    let flow = world.add_with(keel(), options);
    world.run_for(secs(5.0));
    world.flows[flow].load = Load::Records { in_flight: 64 };
    world.mark();
    world.run_for(secs(120.0));
    let usage = world.usage(flow);
    show("64 records in flight", &usage);
    // Without any control it is 2.9: the round trips leave no more.
    assert!(usage.goodput_mbit() >= 2.0);
}
