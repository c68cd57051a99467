//! Where WireGuard engines come from.

use std::fmt;
use std::path::PathBuf;

use mesh_kernel::programs::direct_encapsulation;
use mesh_model::naming;
use mesh_wireguard::{
    EngineChoice, EngineCommand, EngineConfig, EngineKind, EngineProcess, Error, KernelEngine, Result,
    WireguardEngine, try_kernel_wireguard,
};

/// The engine's program, beside this one.
const PROGRAM: &str = "mesh-wireguard-engine";

/// The host's engines, or their twins in memory. Calls may block.
pub trait Engines: Send + Sync + fmt::Debug {
    /// Returns the engine to use and the reason for the choice. An engine that an earlier agent
    /// started is adopted. The remains of any other engine are removed, even if this fails because
    /// the chosen engine is not available.
    fn open(&self) -> Result<(Box<dyn WireguardEngine>, String)>;

    /// Whether the device of that engine is there as it was configured.
    fn device_is_intact(&self, kind: EngineKind, config: &EngineConfig) -> bool;

    /// Ends what an earlier agent, or this one, left running.
    fn remove_left(&self) -> Result<()>;

    /// UDP port that WireGuard listens on.
    fn port(&self) -> u16;
}

/// The engines of the host that this process runs on.
#[derive(Debug)]
pub struct HostEngines {
    /// Which one is to be used.
    pub choice: EngineChoice,
    /// UDP port that WireGuard listens on.
    pub port: u16,
    /// Where the engine's process has its socket.
    pub run_dir: PathBuf,
}

/// How the engine in user space is started.
fn command() -> EngineCommand {
    let own = std::env::current_exe().unwrap_or_default();
    EngineCommand {
        program: own.with_file_name(PROGRAM),
        args: Vec::new(),
        // The number grows when an engine that runs would not do any more: one of before does not
        // mark what it sends.
        version: concat!(env!("CARGO_PKG_VERSION"), "-1").to_owned(),
    }
}

/// What the kernel's engine takes: WireGuard, and that programs may encapsulate packets for it.
fn try_kernel() -> Result<()> {
    try_kernel_wireguard()?;
    direct_encapsulation().map_err(|source| {
        let action = "encapsulate a packet for it".to_owned();
        Error::Trial(Box::new(Error::System { action, source }))
    })
}

/// Which engine is used, and why. `trial` returns whether the kernel's works.
fn choose(choice: EngineChoice, trial: impl FnOnce() -> Result<()>) -> Result<(EngineKind, String)> {
    let set = |kind| (kind, "set by option".to_owned());
    match choice {
        EngineChoice::Userspace => Ok(set(EngineKind::Userspace)),
        EngineChoice::Kernel => trial().map(|()| set(EngineKind::Kernel)),
        EngineChoice::Automatic => Ok(match trial() {
            Ok(()) => (EngineKind::Kernel, "a trial showed that the kernel's works".to_owned()),
            Err(error) => (EngineKind::Userspace, error.to_string()),
        }),
    }
}

impl Engines for HostEngines {
    fn open(&self) -> Result<(Box<dyn WireguardEngine>, String)> {
        // Both engines' devices have one name.
        match choose(self.choice, try_kernel) {
            Ok((EngineKind::Kernel, reason)) => {
                EngineProcess::stop_running(&self.run_dir)?;
                Ok((Box::new(KernelEngine::new()?), reason))
            }
            Ok((EngineKind::Userspace, reason)) => {
                KernelEngine::remove_left(naming::WIREGUARD)?;
                Ok((Box::new(EngineProcess::connect_or_spawn(&self.run_dir, command())?), reason))
            }
            Err(error) => {
                self.remove_left()?;
                Err(error)
            }
        }
    }

    fn device_is_intact(&self, kind: EngineKind, config: &EngineConfig) -> bool {
        config.device_is_intact(kind)
    }

    fn remove_left(&self) -> Result<()> {
        EngineProcess::stop_running(&self.run_dir)?;
        KernelEngine::remove_left(naming::WIREGUARD)
    }

    fn port(&self) -> u16 {
        self.port
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails() -> Result<()> {
        Err(Error::Trial(Box::new(Error::DeviceTaken { device: "meshwg0".to_owned() })))
    }

    #[test]
    fn the_kernels_engine_is_taken_where_a_trial_shows_that_it_works_and_the_reason_says_so() {
        let (kind, reason) = choose(EngineChoice::Automatic, || Ok(())).unwrap();
        assert_eq!((kind, reason.as_str()), (EngineKind::Kernel, "a trial showed that the kernel's works"));
        let (kind, reason) = choose(EngineChoice::Automatic, || Err(Error::NoKernelWireguard)).unwrap();
        assert_eq!((kind, reason.as_str()), (EngineKind::Userspace, "the kernel has no WireGuard"));
        let (kind, reason) = choose(EngineChoice::Automatic, fails).unwrap();
        assert_eq!(kind, EngineKind::Userspace);
        assert!(reason.contains("failed a trial") && reason.contains("meshwg0"), "{reason}");
    }

    #[test]
    fn an_engine_that_was_asked_for_is_taken_or_none() {
        let untried = || panic!("nobody asked");
        assert_eq!(choose(EngineChoice::Userspace, untried).unwrap().0, EngineKind::Userspace);
        let (kind, reason) = choose(EngineChoice::Kernel, || Ok(())).unwrap();
        assert_eq!((kind, reason.as_str()), (EngineKind::Kernel, "set by option"));
        assert!(matches!(choose(EngineChoice::Kernel, fails), Err(Error::Trial(_))));
        let none = choose(EngineChoice::Kernel, || Err(Error::NoKernelWireguard));
        assert!(matches!(none, Err(Error::NoKernelWireguard)));
    }
}
