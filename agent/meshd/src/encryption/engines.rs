//! Where WireGuard engines come from.

use std::fmt;
use std::path::PathBuf;

use mesh_model::naming;
use mesh_wireguard::{
    EngineChoice, EngineCommand, EngineProcess, Error, KernelEngine, Result, WireguardEngine,
};

/// The engine's program, beside this one.
const PROGRAM: &str = "mesh-wireguard-engine";

/// The host's engines, or their twins in memory. Calls may block.
pub trait Engines: Send + Sync + fmt::Debug {
    /// The engine that is to be used, taken over from an earlier agent if it runs.
    fn open(&self) -> Result<Box<dyn WireguardEngine>>;

    /// Whether there is a device of that name.
    fn has_device(&self, name: &str) -> bool;

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
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

impl Engines for HostEngines {
    fn open(&self) -> Result<Box<dyn WireguardEngine>> {
        if self.choice == EngineChoice::Kernel {
            return Err(Error::KernelEngineUntested);
        }
        // A kernel's device of the same name would be in the way.
        KernelEngine::remove_left(naming::WIREGUARD)?;
        Ok(Box::new(EngineProcess::connect_or_spawn(&self.run_dir, command())?))
    }

    fn has_device(&self, name: &str) -> bool {
        nix::net::if_::if_nametoindex(name).is_ok()
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

    #[test]
    fn the_kernels_engine_is_refused_with_what_to_do_instead() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = folder.path().to_owned();
        let engines = HostEngines { choice: EngineChoice::Kernel, port: 51820, run_dir };
        let error = engines.open().err().unwrap().to_string();
        assert!(error.contains("kernel") && error.contains("userspace"), "{error}");
    }
}
