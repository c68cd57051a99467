//! Runs the agent: configuration, start, drain.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Arc;
use std::time::Duration;

use mesh_cni::spool::Spool;
use mesh_handle::AgentHandle;
use mesh_proto::{Problem, ProblemKind};
use mesh_sys::unix_socket::{self, SocketError};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::config::{Config, ConfigError};
use crate::handle::Handle;
use crate::instance::{Instance, InstanceError};
use crate::membership::Memberships;
use crate::status::StatusReporter;
use crate::{capabilities, host_platform};

/// Name of the abstract unix socket (unix(7)) that a running agent holds: these are per network
/// namespace, as kernel state is that an agent owns.
const NAMESPACE_CLAIM: &str = "mesh/meshd";
/// Time that a killed agent may take to end, and the interval between checks.
const PREDECESSOR: Duration = Duration::from_secs(2);
const PREDECESSOR_PAUSE: Duration = Duration::from_millis(20);
/// Time that running calls have when the agent ends.
const DRAIN: Duration = Duration::from_secs(3);

/// Runs the agent until a signal ends it.
pub async fn run(config: Config) -> Result<(), Problem> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Problem::new(
            ProblemKind::Failed,
            "meshd needs root: it creates network devices and loads eBPF programs",
        )
        .hint("run it with sudo, or as a systemd service"));
    }
    capabilities::check()?;
    raise_descriptors();
    let claim = || Instance::claim(&config).map_err(|error| instance_problem(&error));
    let instance = after_predecessor(claim).await?;
    let _claim = after_predecessor(claim_namespace).await?;
    let mut terminated = signal(SignalKind::terminate()).map_err(|error| no_signals(&error))?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(|error| no_signals(&error))?;
    let platform = host_platform::build(&config, instance.paths())?;
    let memberships = Arc::new(Memberships::new(platform));
    memberships.resume().await?;
    let listener = mesh_local_api::bind(&config.socket).map_err(|error| socket_problem(&error, "socket"))?;
    let plugin = plugin_socket(&config).map_err(|error| socket_problem(&error, "run-dir"))?;
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async move { drop(stopped.await) };
    let metrics_problem = watch::Sender::new(None);
    let reporter = StatusReporter::new(memberships.clone(), metrics_problem.subscribe());
    let handle: Arc<dyn AgentHandle> = Arc::new(Handle::new(memberships.clone(), reporter));
    let metrics = config.metrics_addr.map(|address| {
        tokio::spawn(mesh_metrics::serve(address.socket_addr(), handle.clone(), metrics_problem))
    });
    let spool = Spool::beside(&config.cni_socket());
    let plugin = tokio::spawn(mesh_cni_api::serve(plugin, spool, handle.clone()));
    let server = tokio::spawn(mesh_local_api::serve(listener, handle, shutdown));
    notify(NotifyState::Ready);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), socket = %config.socket.display(), "ready");
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    notify(NotifyState::Stopping);
    tracing::info!("stopping; traffic goes on");
    drop(stop);
    if let Some(metrics) = metrics {
        metrics.abort();
    }
    // A call that this ends was not answered: the plugin has it undone when there is an agent.
    plugin.abort();
    if timeout(DRAIN, server).await.is_err() {
        tracing::warn!("calls to the local socket were cut off");
    }
    memberships.stop().await;
    // Later connections fail at once instead of waiting.
    for socket in [&config.socket, &config.cni_socket()] {
        if let Err(error) = std::fs::remove_file(socket) {
            tracing::debug!(%error, "the socket could not be removed");
        }
    }
    Ok(())
}

/// Takes as many descriptors as this process may have: on a manager each member's connection needs
/// one.
fn raise_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files is not raised");
    }
}

/// Claims what an agent that was killed a moment ago may still hold: it is gone only when its last
/// thread has left the kernel.
async fn after_predecessor<T>(claim: impl Fn() -> Result<T, Problem>) -> Result<T, Problem> {
    let deadline = Instant::now() + PREDECESSOR;
    loop {
        match claim() {
            Err(problem) if problem.kind == ProblemKind::Conflict && Instant::now() < deadline => {
                sleep(PREDECESSOR_PAUSE).await;
            }
            claimed => return claimed,
        }
    }
}

/// Two agents in one network namespace would each remove the other's objects.
fn claim_namespace() -> Result<UnixListener, Problem> {
    let failed = |error: std::io::Error| {
        if error.kind() == std::io::ErrorKind::AddrInUse {
            Problem::new(ProblemKind::Conflict, "another meshd is running in this network namespace")
                .hint("stop it first, or start this one in a namespace of its own")
        } else {
            Problem::new(ProblemKind::Failed, format!("cannot claim this network namespace: {error}"))
        }
    };
    let address = SocketAddr::from_abstract_name(NAMESPACE_CLAIM).map_err(failed)?;
    UnixListener::bind_addr(&address).map_err(failed)
}

fn notify(state: NotifyState<'_>) {
    // Running without a service manager is no error.
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "cannot notify the service manager");
    }
}

fn no_signals(error: &std::io::Error) -> Problem {
    Problem::new(ProblemKind::Failed, format!("cannot take signals: {error}"))
}

/// Describes a configuration that is not valid.
pub fn config_problem(error: &ConfigError) -> Problem {
    let problem = Problem::new(ProblemKind::Usage, error.to_string());
    match error {
        ConfigError::Content { .. } => problem.hint(
            "the keys are state_dir, run_dir, socket, bpffs_dir, encapsulation, xdp, wireguard_engine, wireguard_port, rotate_keys, resolv_conf, publish_interfaces, service_table_entries, connection_entries, metrics_addr and log; all may be left out",
        ),
        ConfigError::Log { .. } => problem.hint("use error, warn, info, debug or trace"),
        ConfigError::Read { .. } | ConfigError::Relative { .. } | ConfigError::Entries { .. } => problem,
    }
}

fn instance_problem(error: &InstanceError) -> Problem {
    match error {
        InstanceError::Running { .. } => Problem::new(ProblemKind::Conflict, error.to_string())
            .hint("stop it first, or give this one a --state-dir of its own"),
        InstanceError::Directory { .. } => Problem::new(ProblemKind::Failed, error.to_string())
            .hint("check that it can be created on a writable disk, or choose another one"),
    }
}

/// The socket of the CNI plugin, which runtimes start as root.
fn plugin_socket(config: &Config) -> Result<tokio::net::UnixListener, SocketError> {
    let path = config.cni_socket();
    let listener = unix_socket::bind(&path, 0o600, None)?;
    let listener = tokio::net::UnixListener::from_std(listener);
    listener.map_err(|source| SocketError::Io { path, source })
}

fn socket_problem(error: &SocketError, flag: &str) -> Problem {
    let kind = match error {
        SocketError::InUse { .. } | SocketError::NoSocket { .. } => ProblemKind::Conflict,
        SocketError::Io { .. } => ProblemKind::Failed,
    };
    Problem::new(kind, error.to_string()).hint(format!("choose another one with --{flag}"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_a_killed_predecessor_lets_go_of_is_claimed_and_what_is_kept_is_refused() {
        let asked = AtomicUsize::new(0);
        let held_for_a_moment = || match asked.fetch_add(1, Ordering::Relaxed) {
            0..3 => Err(Problem::new(ProblemKind::Conflict, "another meshd is running")),
            _ => Ok(()),
        };
        after_predecessor(held_for_a_moment).await.unwrap();
        let kept = || Err::<(), _>(Problem::new(ProblemKind::Conflict, "another meshd is running"));
        assert_eq!(after_predecessor(kept).await.unwrap_err().kind, ProblemKind::Conflict);
    }
}
