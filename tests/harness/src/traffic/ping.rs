//! ICMP echo, by the system's own ping.

use std::{net::IpAddr, time::Duration};

use crate::{Error, Netns, Result};

/// A ping to be run.
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `run`"]
pub struct Ping {
    address: IpAddr,
    count: u32,
    interval: Duration,
    wait: Duration,
    size: u16,
    dont_fragment: bool,
}

/// What came of a ping.
#[derive(Debug, Clone)]
pub struct PingReport {
    /// Requests sent.
    pub sent: u32,
    /// Replies received.
    pub received: u32,
    /// Everything that ping printed.
    pub output: String,
}

impl Ping {
    /// Three requests with 56 bytes of data, 50 ms apart, each given 2 s.
    pub fn new(address: IpAddr) -> Self {
        Self {
            address,
            count: 3,
            interval: Duration::from_millis(50),
            wait: Duration::from_secs(2),
            size: 56,
            dont_fragment: false,
        }
    }

    /// Number of requests.
    pub fn count(mut self, count: u32) -> Self {
        self.count = count;
        self
    }

    /// Time between two requests.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Time to wait for the last reply.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Bytes of data after the 8 of the ICMP header.
    pub fn size(mut self, bytes: u16) -> Self {
        self.size = bytes;
        self
    }

    /// Forbids fragments, here and on the way.
    pub fn dont_fragment(mut self) -> Self {
        self.dont_fragment = true;
        self
    }

    /// Runs it from `netns`. Missing replies are not an error here; see [`PingReport::all_answered`].
    pub fn run(&self, netns: &Netns) -> Result<PingReport> {
        let mut argv = vec!["ping".to_owned(), "-n".to_owned()];
        let mut option = |flag: &str, value: String| argv.extend([flag.to_owned(), value]);
        option("-c", self.count.to_string());
        option("-i", format!("{:.3}", self.interval.as_secs_f64()));
        option("-W", format!("{:.3}", self.wait.as_secs_f64()));
        option("-s", self.size.to_string());
        if self.dont_fragment {
            option("-M", "do".to_owned());
        }
        argv.push(self.address.to_string());
        let output = netns.run(argv)?;
        // 1: replies are missing. Anything else but 0 is a failure of ping itself.
        if output.code > 1 {
            return Err(Error::Command {
                command: output.command,
                code: output.code,
                stdout: output.stdout,
                stderr: output.stderr,
            });
        }
        let (sent, received) = counts(&output.stdout).ok_or_else(|| {
            Error::Traffic(format!("`{}` printed no summary: {}", output.command, output.stderr))
        })?;
        Ok(PingReport { sent, received, output: output.stdout + &output.stderr })
    }
}

impl PingReport {
    /// The report itself when every request was answered, else an error.
    pub fn all_answered(self) -> Result<Self> {
        self.check(|report| report.received == report.sent)
    }

    /// The report itself when no request was answered, else an error.
    pub fn none_answered(self) -> Result<Self> {
        self.check(|report| report.received == 0)
    }

    fn check(self, holds: impl FnOnce(&Self) -> bool) -> Result<Self> {
        if holds(&self) {
            return Ok(self);
        }
        Err(Error::Traffic(format!("{} of {} pings answered:\n{}", self.received, self.sent, self.output)))
    }
}

/// "3 packets transmitted, 2 received, ..."
fn counts(output: &str) -> Option<(u32, u32)> {
    let summary = output.lines().find(|line| line.contains(" packets transmitted, "))?;
    let mut numbers = summary.split(", ").map(|part| part.split(' ').next()?.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_read_with_and_without_errors_in_it() {
        assert_eq!(counts("x\n3 packets transmitted, 2 received, 33% packet loss, time 5ms\n"), Some((3, 2)));
        assert_eq!(counts("1 packets transmitted, 0 received, +1 errors, 100% packet loss"), Some((1, 0)));
        assert_eq!(counts("ping: connect: Network is unreachable"), None);
    }
}
