//! Errors of WireGuard engines as [`Problem`]s.

use mesh_proto::{Problem, ProblemKind};
use mesh_wireguard::Error;

/// An engine's error as people see it.
pub fn tunnel_problem(error: &Error) -> Problem {
    let problem = |kind| Problem::new(kind, format!("encrypted networks do not work on this node: {error}"));
    match error {
        Error::PortTaken { port } => problem(ProblemKind::Conflict).hint(format!(
            "see who has it with `ss -lunp 'sport = :{port}'`, or choose another with wireguard_port in the configuration"
        )),
        Error::DeviceTaken { device } => {
            problem(ProblemKind::Conflict).hint(format!("see what it is with: ip -d link show {device}"))
        }
        Error::NoTun { .. } => problem(ProblemKind::Failed)
            .hint("load the module tun, and give meshd access to /dev/net/tun and CAP_NET_ADMIN"),
        Error::KeyFileMode { path, .. } => problem(ProblemKind::Failed)
            .hint(format!("chmod 600 {}, if nobody else can have read it; else remove it", path.display())),
        Error::NoKernelWireguard | Error::Trial(_) => problem(ProblemKind::Failed).hint(
            "load the module wireguard, or set wireguard_engine to automatic or userspace in the configuration",
        ),
        // Errors of the engine's process come as text.
        Error::Remote(text) if text.contains("is taken by another program") => {
            problem(ProblemKind::Conflict).hint(
                "see who has it with `ss -lunp`, or choose another port with wireguard_port in the configuration",
            )
        }
        _ => problem(ProblemKind::Failed),
    }
}
