//! An in-memory engine for tests.

use std::collections::BTreeMap;

use crate::{EngineConfig, EngineKind, EngineStatus, PeerStatus, Result, WireguardEngine};

/// Stores the configuration and carries no packets.
#[derive(Debug, Default)]
pub struct FakeEngine {
    config: Option<EngineConfig>,
    applied: usize,
}

impl FakeEngine {
    /// Creates an engine without a configuration.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the last configuration, unless it was removed.
    pub fn config(&self) -> Option<&EngineConfig> {
        self.config.as_ref()
    }

    /// Returns how often a configuration differed from the previous one.
    pub fn changes(&self) -> usize {
        self.applied
    }
}

impl WireguardEngine for FakeEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Userspace
    }

    fn apply(&mut self, config: &EngineConfig) -> Result<()> {
        config.validate()?;
        if self.config.as_ref() != Some(config) {
            self.applied += 1;
            self.config = Some(config.clone());
        }
        Ok(())
    }

    fn status(&mut self) -> Result<EngineStatus> {
        let own = |config: &EngineConfig| {
            config.keys.iter().filter(|key| key.active).map(|key| key.generation).max()
        };
        let peers = self.config.iter().flat_map(|config| {
            config.peers.iter().map(move |(index, peer)| {
                let theirs = peer.keys.last_key_value().map(|(generation, _)| *generation);
                let status = PeerStatus {
                    endpoint: peer.endpoint,
                    generations: own(config).zip(theirs),
                    ..PeerStatus::default()
                };
                (*index, status)
            })
        });
        Ok(EngineStatus { engine: self.kind(), peers: peers.collect(), drops: BTreeMap::new() })
    }

    fn remove(&mut self) -> Result<()> {
        self.config = None;
        Ok(())
    }
}
