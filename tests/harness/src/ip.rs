//! iproute2 in batches: one process for many changes.

use crate::{Cmd, Netns, Result};

/// Runs the lines as one `ip -batch` in the caller's namespace; it stops at the first that fails.
pub fn ip_batch<S: AsRef<str>>(lines: &[S]) -> Result<()> {
    run(Cmd::new(["ip", "-batch", "-"]), lines)
}

/// Runs the lines as one `ip -batch` inside `netns`; it stops at the first that fails.
pub fn ip_batch_in<S: AsRef<str>>(netns: &Netns, lines: &[S]) -> Result<()> {
    run(netns.cmd(["ip", "-batch", "-"]), lines)
}

fn run<S: AsRef<str>>(command: Cmd, lines: &[S]) -> Result<()> {
    let input: String = lines.iter().flat_map(|line| [line.as_ref(), "\n"]).collect();
    command.stdin(input).output()?.ok().map(drop)
}
