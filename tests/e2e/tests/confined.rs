//! The helper processes that read what strangers send have no more rights than they need, and work
//! with those.

use std::fs;
use std::path::PathBuf;

use mesh_e2e::create_network;
use mesh_harness::traffic::tcp_transfer;
use mesh_harness::{Encapsulation, Host, Lab, Result};

/// `CAP_NET_BIND_SERVICE`, `CAP_NET_ADMIN` and `CAP_NET_RAW` of capabilities(7).
const ENGINE: u64 = 1 << 10 | 1 << 12 | 1 << 13;

/// The status of each thread of a host's process whose command line has this word.
fn threads(host: &Host, word: &str) -> Vec<String> {
    let is_it =
        |pid: i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(word));
    let found = host.netns().processes().into_iter().map(|process| process.pid).filter(|pid| is_it(*pid));
    let tasks =
        found.flat_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten());
    let paths: Vec<PathBuf> = tasks.map(|task| task.path().join("status")).collect();
    paths.iter().filter_map(|path| fs::read_to_string(path).ok()).collect()
}

fn field<'s>(status: &'s str, name: &str) -> &'s str {
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim()
}

fn assert_confined(host: &Host, word: &str, capabilities: u64) {
    let threads = threads(host, word);
    assert!(!threads.is_empty(), "{word} runs on {}", host.name());
    for status in threads {
        let held = |name| u64::from_str_radix(field(&status, name), 16).expect("a mask");
        assert_eq!(field(&status, "Seccomp:"), "2", "{word}: {status}");
        assert_eq!(field(&status, "NoNewPrivs:"), "1", "{word}: {status}");
        for name in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
            assert_eq!(held(name) & !capabilities, 0, "{word}, {name} {status}");
        }
    }
}

#[test]
fn the_name_server_and_the_wireguard_engine_work_under_a_filter_of_system_calls() -> Result<()> {
    let lab =
        Lab::builder().hosts(2).encapsulation(Encapsulation::Direct).wireguard_engine("userspace").start()?;
    create_network(&lab, "sec", &["--encrypted", "--ipv6"])?;
    let one = lab.container(1, "one", ["--network", "sec"])?;
    let other = lab.container(2, "other", ["--network", "sec"])?;
    let check = || {
        for host in lab.hosts() {
            assert_confined(&host, "dns-server", 0);
            assert_confined(&host, "mesh-wireguard-engine", ENGINE);
        }
    };
    check();
    // Whole batches of names over UDP and TCP, while gigabits are encrypted.
    let questions = lab.path().join("questions");
    fs::write(&questions, "other A\nother AAAA\none.sec A\n-x 10.64.0.1\n".repeat(100)).expect("a file");
    let questions = questions.display().to_string();
    let transfer = |target: std::net::IpAddr| tcp_transfer(one.netns(), other.netns(), target, 1 << 27);
    std::thread::scope(|scope| {
        let carried =
            scope.spawn(|| transfer(other.ipv4()?.into()).and_then(|_| transfer(other.ipv6()?.into())));
        for transport in ["+notcp", "+tcp"] {
            let asked =
                one.exec(["dig", "+short", "+tries=3", "+time=10", transport, "-f", &questions])?.text()?;
            let addresses =
                asked.lines().filter(|line| *line == other.ipv4().expect("an address").to_string());
            assert_eq!(addresses.count(), 100, "{transport}");
        }
        carried.join().expect("no panic").map(drop)
    })?;
    check();
    // A successor takes over under the filter, too.
    for host in lab.hosts() {
        host.restart_meshd()?;
    }
    one.ping(other.ipv4()?)?.all_answered()?;
    check();
    Ok(())
}
