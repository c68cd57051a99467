//! The programs that measure, and how their figures are read.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};
use mesh_harness::{
    Netns, Process, poll_until,
    traffic::{Load, LoadReport, drink},
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use serde_json::Value;

/// Servers take one port after the other: an earlier one's connections may still hold theirs.
static NEXT_PORT: AtomicU16 = AtomicU16::new(11_111);
/// How long a server may take to listen.
const START: Duration = Duration::from_secs(5);

/// Two ends of a path.
#[derive(Debug, Clone)]
pub(crate) struct Ends {
    pub(crate) client: Netns,
    pub(crate) server: Netns,
    pub(crate) server_address: Ipv4Addr,
}

/// A packet rate in thousands per second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PacketRate {
    pub(crate) sent: f64,
    /// What the server's socket took.
    pub(crate) received: f64,
}

/// A rate of payload that arrived, and its price.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Throughput {
    pub(crate) gbit_s: f64,
    /// Of all CPUs, whoever used them.
    pub(crate) cpu_s_per_gb: f64,
}

impl Ends {
    /// Average latency of TCP ping-pong, half a round trip, in microseconds (sockperf). Both ends
    /// run on one CPU: otherwise waking the other CPU, several times the cost of any path, is most
    /// of what is measured.
    pub(crate) fn tcp_latency(&self, seconds: u32, log: &Path) -> anyhow::Result<f64> {
        let address = self.server_address.to_string();
        let port = next_port();
        let argv = ["taskset", "-c", "0", "sockperf", "server", "--tcp", "-i", &address, "-p", &port];
        let _server = self.listen(&argv, &port, "tcp", log)?;
        ping_pong(&self.client, &address, &port, seconds)
    }

    /// Datagrams of 64 bytes as fast as they go, in thousands per second (sockperf).
    pub(crate) fn udp_rate(&self, seconds: u32, log: &Path) -> anyhow::Result<PacketRate> {
        let address = self.server_address.to_string();
        let port = next_port();
        let argv = ["sockperf", "server", "-i", &address, "-p", &port];
        let _server = self.listen(&argv, &port, "udp", log)?;
        udp_blast(&self.client, &address, &port, seconds, std::slice::from_ref(&self.server))
    }

    /// One TCP stream, in Gbit/s of payload that arrived (iperf3).
    pub(crate) fn tcp_throughput(&self, seconds: u32, log: &Path) -> anyhow::Result<f64> {
        let address = self.server_address.to_string();
        let port = next_port();
        let argv = ["iperf3", "-s", "-B", &address, "-p", &port];
        let _server = self.listen(&argv, &port, "tcp", log)?;
        let time = seconds.to_string();
        let argv = ["iperf3", "-c", &address, "-p", &port, "-t", &time, "-O", "1", "-J"];
        let report: Value = self.client.run(argv)?.json()?;
        let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
        Ok(rate.with_context(|| format!("iperf3 reports: {}", report["error"]))? / 1e9)
    }

    /// TCP streams at once, and what the whole machine's CPUs spend on them (iperf3).
    pub(crate) fn tcp_streams(&self, streams: u32, seconds: u32, log: &Path) -> anyhow::Result<Throughput> {
        let (address, port) = (self.server_address.to_string(), next_port());
        let argv = ["iperf3", "-s", "-B", &address, "-p", &port];
        let _server = self.listen(&argv, &port, "tcp", log)?;
        let (time, streams) = (seconds.to_string(), streams.to_string());
        let argv = ["iperf3", "-c", &address, "-p", &port, "-t", &time, "-P", &streams, "-J"];
        let before = busy_seconds()?;
        let report: Value = self.client.run(argv)?.json()?;
        let busy = busy_seconds()? - before;
        let total = &report["end"]["sum_received"];
        let (rate, bytes) = (total["bits_per_second"].as_f64(), total["bytes"].as_f64());
        let (rate, bytes) =
            rate.zip(bytes).with_context(|| format!("iperf3 reports: {}", report["error"]))?;
        Ok(Throughput { gbit_s: rate / 1e9, cpu_s_per_gb: busy / (bytes / 1e9) })
    }

    fn listen(&self, argv: &[&str], port: &str, protocol: &str, log: &Path) -> anyhow::Result<Process> {
        listen(&self.server, argv, port, protocol, log)
    }
}

/// Starts a server in `netns` and waits until its socket is there.
pub(crate) fn listen(
    netns: &Netns,
    argv: &[&str],
    port: &str,
    protocol: &str,
    log: &Path,
) -> anyhow::Result<Process> {
    let server = netns.cmd(argv.iter().copied()).spawn(log)?;
    let filter = format!("sport = :{port}");
    let listening = poll_until(START, || {
        let argv = ["ss", "-Hnl", &format!("--{protocol}"), &filter];
        netns.run(argv).is_ok_and(|output| !output.stdout.is_empty()).then_some(())
    });
    listening.with_context(|| format!("`{}` does not listen:\n{}", argv.join(" "), server.log()))?;
    Ok(server)
}

/// Average latency, half a round trip in microseconds, of TCP ping-pong with a sockperf server, on
/// CPU 0.
pub(crate) fn ping_pong(client: &Netns, address: &str, port: &str, seconds: u32) -> anyhow::Result<f64> {
    let time = seconds.to_string();
    let argv =
        ["taskset", "-c", "0", "sockperf", "ping-pong", "--tcp", "-i", address, "-p", port, "-t", &time];
    let output = client.run(argv)?.ok()?.stdout;
    after(&output, "Summary: Latency is ").with_context(|| format!("sockperf ping-pong printed:\n{output}"))
}

/// Datagrams of 64 bytes as fast as they go to a sockperf server, counted in the namespaces of all
/// who may receive them.
pub(crate) fn udp_blast(
    client: &Netns,
    address: &str,
    port: &str,
    seconds: u32,
    receivers: &[Netns],
) -> anyhow::Result<PacketRate> {
    let received = || receivers.iter().map(datagrams_received).sum::<anyhow::Result<f64>>();
    let time = seconds.to_string();
    let received_before = received()?;
    let argv = ["sockperf", "throughput", "-i", address, "-p", port, "-m", "64", "-t", &time];
    let output = client.run(argv)?.ok()?.stdout;
    let received = received()? - received_before;
    // "Total of N messages sent in T sec", the warm-up included, as in the receiver's count.
    let total: f64 =
        after(&output, "Total of ").with_context(|| format!("sockperf throughput printed:\n{output}"))?;
    let duration: f64 = after(&output, "messages sent in ")
        .with_context(|| format!("sockperf throughput printed:\n{output}"))?;
    ensure!(duration > 0.0 && received > 0.0, "no datagram arrived at {address}");
    Ok(PacketRate { sent: total / duration / 1e3, received: received / duration / 1e3 })
}

/// Connections per second that one client makes one after the other, each with a request and its
/// answer, on CPU 0.
pub(crate) fn connect_rate(client: &Netns, target: SocketAddr, seconds: u32) -> anyhow::Result<f64> {
    let report = thread::scope(|scope| {
        let pinned = scope.spawn(|| -> anyhow::Result<LoadReport> {
            let mut cpu = CpuSet::new();
            cpu.set(0)?;
            sched_setaffinity(Pid::from_raw(0), &cpu)?;
            // Its worker inherits the CPU.
            let load = Load::start(client, target, 1);
            thread::sleep(Duration::from_secs(seconds.into()));
            Ok(load.stop()?.all_answered()?)
        });
        pinned.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    Ok(report.rate())
}

/// One download, in Gbit/s of payload.
pub(crate) fn download_rate(client: &Netns, target: SocketAddr, seconds: u32) -> anyhow::Result<f64> {
    let bytes = drink(client, target, Duration::from_secs(seconds.into()))?;
    #[expect(clippy::cast_precision_loss, reason = "bytes of some seconds")]
    let bits = bytes as f64 * 8.0;
    Ok(bits / f64::from(seconds) / 1e9)
}

/// Datagrams that sockets of the namespace have taken since it exists.
fn datagrams_received(netns: &Netns) -> anyhow::Result<f64> {
    // The calling process is elsewhere: only its thread is in the namespace.
    let text = netns.enter(|| fs::read_to_string("/proc/thread-self/net/snmp"))??;
    udp_in_datagrams(&text).with_context(|| format!("no UDP counters in:\n{text}"))
}

/// Seconds that all CPUs have been busy since boot.
fn busy_seconds() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    busy_ticks(&text).map(|ticks| ticks / 100.0).with_context(|| format!("no CPU times in:\n{text}"))
}

/// User, nice, system, interrupt and soft-interrupt time of all CPUs, in hundredths of a second
/// (proc(5)).
fn busy_ticks(stat: &str) -> Option<f64> {
    let fields: Vec<f64> =
        stat.lines().next()?.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    [0, 1, 2, 5, 6].iter().map(|&index| fields.get(index)).sum()
}

fn next_port() -> String {
    NEXT_PORT.fetch_add(1, Ordering::Relaxed).to_string()
}

/// `InDatagrams` of /proc/net/snmp.
fn udp_in_datagrams(snmp: &str) -> Option<f64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let position = lines.next()?.split(' ').position(|name| name == "InDatagrams")?;
    lines.next()?.split(' ').nth(position)?.parse().ok()
}

/// The number that follows `label`.
fn after(text: &str, label: &str) -> Option<f64> {
    text.split_once(label)?.1.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_what_the_programs_print() {
        let output = "sockperf: Total of 120715 messages sent in 1.018 sec\nsockperf: Summary: Latency is 10.075 usec\n";
        assert_eq!(after(output, "Summary: Latency is "), Some(10.075));
        assert_eq!(after(output, "Total of "), Some(120_715.0));
        assert_eq!(after(output, "messages sent in "), Some(1.018));
        assert_eq!(after(output, "no such label "), None);
        let stat = "cpu  10 1 20 400 50 3 4 9 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(busy_ticks(stat), Some(38.0));
        let snmp = "Udp: InDatagrams NoPorts InErrors\nUdp: 83934 0 36781\nUdpLite: InDatagrams\n";
        assert_eq!(udp_in_datagrams(snmp), Some(83_934.0));
    }
}
