//! The claim of one running agent on its directories, and the paths in them.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mesh_state::StatePaths;

use crate::config::Config;

/// Why an instance cannot run here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstanceError {
    /// A directory cannot be made or used.
    #[error("cannot use the {what} {}: {source}", path.display())]
    Directory {
        /// Which of them.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another agent has the state directory.
    #[error("another meshd is running on the state directory {}", path.display())]
    Running {
        /// The state directory.
        path: PathBuf,
    },
}

/// The directories of a running agent; the claim on them ends with this value.
#[derive(Debug)]
pub(crate) struct Instance {
    state_dir: PathBuf,
    run_dir: PathBuf,
    // Held for its lock (flock(2)), which the kernel gives back when the process ends, however it
    // ends.
    _lock: File,
}

impl Instance {
    /// Makes the directories that are missing and claims the state directory.
    pub(crate) fn claim(config: &Config) -> Result<Self, InstanceError> {
        create_dir("state directory", &config.state_dir, 0o700)?;
        create_dir("run directory", &config.run_dir, 0o755)?;
        if let Some(dir) = config.socket.parent() {
            create_dir("socket's directory", dir, 0o755)?;
        }
        let directory = |source| InstanceError::Directory {
            what: "state directory",
            path: config.state_dir.clone(),
            source,
        };
        // The state contains private keys.
        fs::set_permissions(&config.state_dir, fs::Permissions::from_mode(0o700)).map_err(directory)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(config.state_dir.join("lock"))
            .map_err(directory)?;
        match lock.try_lock() {
            Ok(()) => {
                Ok(Self { state_dir: config.state_dir.clone(), run_dir: config.run_dir.clone(), _lock: lock })
            }
            Err(TryLockError::WouldBlock) => Err(InstanceError::Running { path: config.state_dir.clone() }),
            Err(TryLockError::Error(source)) => Err(directory(source)),
        }
    }

    /// The paths in its state directory.
    pub(crate) fn paths(&self) -> StatePaths {
        StatePaths::with_run_dir(&self.state_dir, &self.run_dir)
    }
}

fn create_dir(what: &'static str, path: &Path, mode: u32) -> Result<(), InstanceError> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(|source| InstanceError::Directory {
        what,
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::Flags;

    fn config(dir: &Path) -> Config {
        let state = dir.join("state");
        let run = dir.join("run");
        let args = ["meshd", "--state-dir", state.to_str().unwrap(), "--run-dir", run.to_str().unwrap()]
            .map(str::to_owned);
        Config::load(&Flags::parse_from(args)).unwrap()
    }

    #[test]
    fn a_second_agent_on_the_same_state_is_refused_until_the_first_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let first = Instance::claim(&config).unwrap();
        assert!(matches!(Instance::claim(&config), Err(InstanceError::Running { .. })));
        drop(first);
        Instance::claim(&config).unwrap();
    }

    #[test]
    fn the_state_directory_is_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let _instance = Instance::claim(&config).unwrap();
        assert_eq!(fs::metadata(&config.state_dir).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(&config.run_dir).unwrap().permissions().mode() & 0o777, 0o755);
    }

    #[test]
    fn a_state_directory_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("state"), "").unwrap();
        let error = Instance::claim(&config(dir.path())).unwrap_err().to_string();
        assert!(error.contains("state directory") && error.contains("/state"), "{error}");
    }

    #[test]
    fn removing_a_members_state_leaves_the_claim_and_what_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let instance = Instance::claim(&config).unwrap();
        let paths = instance.paths();
        fs::create_dir(paths.endpoints()).unwrap();
        fs::write(paths.endpoints().join("x.json"), "").unwrap();
        fs::write(paths.membership(), "{}").unwrap();
        fs::write(config.state_dir.join("notes"), "").unwrap();
        paths.remove_member_state().unwrap();
        assert_eq!(paths.orphaned(), Vec::<PathBuf>::new());
        paths.settle().unwrap();
        let mut left: Vec<_> =
            fs::read_dir(&config.state_dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["lock", "notes"]);
    }
}
