//! A host's clock jumps by months and is put right again: certificates stay good, and sessions come
//! back.
//!
//! `libfaketime` sits between the agent and the C library, and reads the offset from a file. The
//! monotonic clock does not jump, as when a person sets the clock.

use std::fs;
use std::path::{Path, PathBuf};

use mesh_e2e::{PATIENCE, create_network, json};
use mesh_harness::{Encapsulation, Host, Lab, Result, eventually};

/// Where Debian's package `faketime` has it, on whichever architecture.
fn library() -> PathBuf {
    let dirs = fs::read_dir("/usr/lib").expect("a directory").flatten().map(|entry| entry.path());
    let found = dirs.map(|dir| dir.join("faketime/libfaketimeMT.so.1")).find(|path| path.exists());
    found.expect("libfaketime (Debian package faketime)")
}

/// A host's clock.
struct Clock {
    host: Host,
    offset: PathBuf,
}

impl Clock {
    /// Starts the host's agent again, with a clock that can be set.
    fn of(host: Host) -> Result<Self> {
        let clock = Self { offset: host.path().join("clock"), host };
        clock.set("+0");
        clock.restart()?;
        Ok(clock)
    }

    fn restart(&self) -> Result<()> {
        self.host.kill_meshd()?;
        let (library, offset) = (library(), text(&self.offset));
        self.host.start_meshd_with(&[
            ("LD_PRELOAD", &text(&library)),
            ("FAKETIME_TIMESTAMP_FILE", &offset),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ])
    }

    fn set(&self, offset: &str) {
        // Whole at any time: it is read with each look at the clock.
        let next = self.offset.with_extension("next");
        fs::write(&next, offset).and_then(|()| fs::rename(next, &self.offset)).expect("a file");
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn problems(host: &Host) -> String {
    json(host, &["status"]).map(|status| status["problems"].to_string()).unwrap_or_default()
}

fn in_session(host: &Host) -> bool {
    json(host, &["status"])
        .is_ok_and(|status| status["manager"].as_str().is_some_and(|manager| !manager.is_empty()))
}

/// All agents are in session, and operations that need a manager succeed.
fn works(lab: &Lab, what: &str) -> Result<()> {
    for host in lab.hosts() {
        eventually(&format!("{} is in session {what}", host.name()), PATIENCE, || in_session(&host))?;
    }
    lab.wait_ready(PATIENCE)?;
    create_network(lab, "probe", &[])?;
    let container = lab.container(2, "probe", ["--network", "probe"])?;
    container.detach()?.ok()?;
    container.remove()?;
    lab.host(1).meshctl(["network", "rm", "probe"])?.ok().map(drop)
}

#[test]
fn a_clock_that_jumps_by_months_and_back_costs_no_node_its_membership() -> Result<()> {
    let lab = Lab::builder().hosts(3).encapsulation(Encapsulation::Direct).start()?;
    create_network(&lab, "app", &[])?;
    let (c1, c2) =
        (lab.container(1, "c1", ["--network", "app"])?, lab.container(2, "c2", ["--network", "app"])?);
    let target = c2.ipv4()?;
    let (h1, h2) = (lab.host(1), lab.host(2));
    // A manager's, which issues certificates, and a worker's. Within a certificate's 90 days, and
    // beyond.
    for (host, days, restarts) in [(&h1, 70, false), (&h1, 100, true), (&h2, 100, false)] {
        let clock = Clock::of(host.clone())?;
        works(&lab, "with clocks that agree")?;
        // Half a day more: the difference is shown in whole days.
        clock.set(&format!("+{days}.5d"));
        if restarts {
            clock.restart()?;
        }
        if days < 90 {
            // Both sides of the session name the difference.
            let differs = format!("{days} days");
            for host in [&h1, &h2] {
                eventually(&format!("{} names the difference", host.name()), PATIENCE, || {
                    problems(host).contains(&differs)
                })?;
            }
        }
        // The fault lasts until the agent has checked its certificate several times.
        std::thread::sleep(std::time::Duration::from_secs(4));
        c1.ping(target)?.all_answered()?;
        clock.set("+0");
        works(&lab, &format!("after the clock of {} was {days} days ahead", host.name()))?;
        for host in lab.hosts() {
            eventually("no clock differs", PATIENCE, || !problems(&host).contains("clock"))?;
        }
    }
    for host in lab.hosts() {
        host.restart_meshd()?;
    }
    works(&lab, "after all agents were started again")?;
    c1.ping(target)?.all_answered().map(drop)
}
