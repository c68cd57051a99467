//! The claim of one running agent on its directories, and the paths in them.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::durable::{self, FileError, Survives};

/// Why an instance cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
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
pub struct Instance {
    state_dir: PathBuf,
    run_dir: PathBuf,
    // Held for its lock (flock(2)), which the kernel gives back when the process ends, however it
    // ends.
    _lock: File,
}

impl Instance {
    /// Makes the directories that are missing and claims the state directory.
    pub fn claim(config: &Config) -> Result<Self, InstanceError> {
        make_dir("state directory", &config.state_dir, 0o700)?;
        make_dir("run directory", &config.run_dir, 0o755)?;
        if let Some(dir) = config.socket.parent() {
            make_dir("socket's directory", dir, 0o755)?;
        }
        let directory = |source| InstanceError::Directory {
            what: "state directory",
            path: config.state_dir.clone(),
            source,
        };
        // State of a member holds its private key: nobody else has any business here.
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
    pub fn paths(&self) -> StatePaths {
        StatePaths { run: self.run_dir.clone(), ..StatePaths::new(&self.state_dir) }
    }
}

/// What is where in the state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatePaths {
    dir: PathBuf,
    /// For what ends with the boot.
    run: PathBuf,
}

impl StatePaths {
    /// The paths under `dir`.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), run: dir.join("run") }
    }

    /// The state directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The membership: written last by init and join, removed first by leave.
    pub fn membership(&self) -> PathBuf {
        self.dir.join("member.json")
    }

    /// There while an init, join or leave is under way: what else is here without a membership is
    /// then half a member's. Without it, it is a member's whose membership was lost.
    fn changing(&self) -> PathBuf {
        self.dir.join("changing")
    }

    /// The node's key and certificates, in one file.
    pub fn identity(&self) -> PathBuf {
        self.dir.join("identity.pem")
    }

    /// The directory of the certificate authority, on managers.
    pub fn authority(&self) -> PathBuf {
        self.dir.join("ca")
    }

    /// The embedded store, on managers.
    pub fn store(&self) -> PathBuf {
        self.dir.join("store.redb")
    }

    /// The cluster's records as last received.
    pub fn view(&self) -> PathBuf {
        self.dir.join("view.json")
    }

    /// One file for each endpoint.
    pub fn endpoints(&self) -> PathBuf {
        self.dir.join("endpoints")
    }

    /// Second copies of the endpoints' files.
    pub fn endpoint_copies(&self) -> PathBuf {
        self.run.join("endpoints")
    }

    /// The directory of second copies of small files: each has the name of its file.
    pub fn copies(&self) -> PathBuf {
        self.dir.join("copies")
    }

    /// The order in which released addresses may be handed out again.
    pub fn released(&self) -> PathBuf {
        self.dir.join("released.json")
    }

    /// Other nodes' endpoints as last heard, for their names.
    pub fn names(&self) -> PathBuf {
        self.dir.join("names.json")
    }

    /// Whether backends passed their checks, as last known.
    pub fn health(&self) -> PathBuf {
        self.dir.join("health.json")
    }

    /// The host's ports that were reserved because they are published.
    pub fn reserved_ports(&self) -> PathBuf {
        self.dir.join("reserved-ports.json")
    }

    /// The node's private keys for encrypted networks.
    pub fn wireguard_keys(&self) -> PathBuf {
        self.dir.join("wireguard.keys")
    }

    /// What of a member is here although there is no membership, and neither an init, join or leave
    /// was interrupted: that of a member whose `member.json` was lost.
    pub fn orphaned(&self) -> Vec<PathBuf> {
        if self.membership().exists() || self.changing().exists() {
            return Vec::new();
        }
        [self.store(), self.authority(), self.identity()].into_iter().filter(|path| path.exists()).collect()
    }

    /// Removes all state of a member, the membership itself first, and notes before that it is gone
    /// on purpose. That holds until [`Self::settle`], so that an interruption leaves no half a
    /// member.
    pub fn remove_member_state(&self) -> Result<(), FileError> {
        durable::write(&self.changing(), &[], Survives::PowerLoss)?;
        let paths = [
            self.membership(),
            self.identity(),
            self.authority(),
            self.store(),
            self.view(),
            self.endpoints(),
            self.endpoint_copies(),
            self.copies(),
            self.released(),
            self.names(),
            self.reserved_ports(),
            self.wireguard_keys(),
        ];
        paths.iter().try_for_each(|path| {
            remove_any(path).map_err(|source| FileError::Io { action: "remove", path: path.clone(), source })
        })
    }

    /// The end of an init, join or leave: there is a membership, or nothing of one.
    pub fn settle(&self) -> Result<(), FileError> {
        durable::remove(&self.changing())
    }
}

fn remove_any(path: &Path) -> io::Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn make_dir(what: &'static str, path: &Path, mode: u32) -> Result<(), InstanceError> {
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
