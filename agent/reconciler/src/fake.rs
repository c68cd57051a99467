//! WireGuard engines in memory, for tests.

#![expect(clippy::unwrap_used, reason = "a lock is poisoned only when a test has failed")]

use std::sync::{Arc, Mutex};

use mesh_wireguard::{EngineConfig, EngineKind, EngineStatus, FakeEngine, WireguardEngine};

use crate::engines::Engines;

/// Engines in memory that the test can reach while the loop has them.
#[derive(Debug, Clone, Default)]
pub struct TestEngines {
    /// The engine.
    pub inner: Arc<Mutex<FakeEngine>>,
    /// The port that is taken, so that no engine can be opened.
    pub refused: Arc<Mutex<Option<u16>>>,
    /// Whether they say that they are the kernel's.
    pub of_kernel: bool,
    /// Why an engine does not respond at the next check.
    pub silent: Arc<Mutex<Option<String>>>,
    /// How often they were asked which of its keys each node uses.
    pub looks: Arc<Mutex<u32>>,
}

/// The engine that they all are.
struct TestEngine(TestEngines);

impl WireguardEngine for TestEngine {
    fn kind(&self) -> EngineKind {
        if self.0.of_kernel { EngineKind::Kernel } else { EngineKind::Userspace }
    }

    fn apply(&mut self, config: &EngineConfig) -> mesh_wireguard::Result<()> {
        self.0.inner.lock().unwrap().apply(config)
    }

    fn check(&mut self) -> mesh_wireguard::Result<()> {
        match self.0.silent.lock().unwrap().take() {
            Some(reason) => Err(mesh_wireguard::Error::Process(reason)),
            None => Ok(()),
        }
    }

    fn follow(&mut self) -> mesh_wireguard::Result<()> {
        *self.0.looks.lock().unwrap() += 1;
        Ok(())
    }

    fn status(&mut self) -> mesh_wireguard::Result<EngineStatus> {
        let status = self.0.inner.lock().unwrap().status()?;
        Ok(EngineStatus { engine: self.kind(), ..status })
    }

    fn remove(&mut self) -> mesh_wireguard::Result<()> {
        self.0.inner.lock().unwrap().remove()
    }
}

impl Engines for TestEngines {
    fn open(&self) -> mesh_wireguard::Result<(Box<dyn WireguardEngine>, String)> {
        match *self.refused.lock().unwrap() {
            Some(port) => Err(mesh_wireguard::Error::PortTaken { port }),
            None => Ok((Box::new(TestEngine(self.clone())), "as the test wants it".to_owned())),
        }
    }

    fn device_is_intact(&self, _kind: EngineKind, _config: &EngineConfig) -> bool {
        self.inner.lock().unwrap().config().is_some()
    }

    fn remove_left(&self) -> mesh_wireguard::Result<()> {
        self.inner.lock().unwrap().remove()
    }

    fn port(&self) -> u16 {
        51820
    }
}
