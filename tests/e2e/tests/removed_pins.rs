//! Somebody removes every pin of the datapath's links: traffic stops with the programs, and
//! returns.

use std::fs;
use std::time::{Duration, Instant};

use mesh_e2e::{PATIENCE, lab_with_app};
use mesh_harness::traffic::LossMeter;
use mesh_harness::{Encapsulation, Result, eventually};

/// How long traffic may stay away on a busy machine: the aim is one second on one that is not.
const BACK: Duration = Duration::from_secs(10);

/// How long traffic is watched after the pins are back.
const SETTLED: Duration = Duration::from_secs(3);

/// The longest time in which nothing arrived, from now on until the pins have been back for a while
/// and traffic flows.
fn longest_gap(flow: &LossMeter, are_back: impl Fn() -> bool) -> Duration {
    let (mut count, mut at, mut longest) = (flow.received(), Instant::now(), Duration::ZERO);
    let mut back = None::<Instant>;
    loop {
        let (now, gap) = (flow.received(), at.elapsed());
        longest = longest.max(gap);
        if now != count {
            (count, at) = (now, Instant::now());
        }
        if back.is_none() && are_back() {
            back = Some(Instant::now());
        }
        let settled = back.is_some_and(|back| back.elapsed() > SETTLED) && gap < SETTLED;
        if settled || gap > BACK {
            return longest;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn traffic_returns_after_all_pins_of_links_are_removed() -> Result<()> {
    let (lab, c) = lab_with_app(2, Encapsulation::Direct, &[])?;
    let directions = [(&c[0], &c[1]), (&c[1], &c[0])];
    for (from, to) in directions {
        let flow = LossMeter::start(from.netns(), to.netns(), to.ipv4()?.into(), Duration::from_millis(2))?;
        flow.wait_for_more(100, PATIENCE)?;
        let links = lab.host(2).bpffs_dir().join("links");
        let pins = || fs::read_dir(&links).into_iter().flatten().flatten().map(|pin| pin.path());
        let removed = pins().map(|pin| fs::remove_file(pin).expect("a pin")).count();
        assert!(removed > 0, "there are pins");
        let gap = longest_gap(&flow, || pins().count() == removed);
        println!(
            "{} -> {}: {removed} pins removed, no traffic for {} ms",
            from.name(),
            to.name(),
            gap.as_millis()
        );
        assert!(gap < BACK, "traffic did not return: {gap:?}");
        flow.wait_for_more(100, PATIENCE)?;
        flow.stop()?;
        eventually("pings are answered", PATIENCE, || {
            to.ipv4().and_then(|address| from.ping(address)?.all_answered()).is_ok()
        })?;
    }
    Ok(())
}
