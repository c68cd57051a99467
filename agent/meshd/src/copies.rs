//! Second copies of the small files that a member needs and that exist nowhere else. A crash or a
//! failing disk rarely damages both.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_control::{CertificateAuthority, NodeIdentity};
use mesh_host::blocking;
use mesh_state::StatePaths;
use mesh_sys::durable::{self, FileError, Survives};
use mesh_wireguard::KeyFile;
use tokio::time::sleep;

use crate::member_record::Membership;

/// Pause between two looks whether a file has changed.
const PAUSE: Duration = Duration::from_secs(1);

/// A file, or several that are of use together only.
struct Kept {
    paths: Vec<PathBuf>,
    /// Whether the files in a directory are what they should be.
    is_whole: fn(&Path) -> bool,
}

fn kept(paths: &StatePaths) -> Vec<Kept> {
    let authority = |name: &str| paths.authority().join(name);
    vec![
        Kept {
            paths: vec![paths.membership()],
            is_whole: |dir| {
                let membership = durable::read_json::<Membership>(&StatePaths::new(dir).membership());
                matches!(membership, Ok(Some(_)))
            },
        },
        Kept {
            paths: vec![paths.identity()],
            is_whole: |dir| NodeIdentity::load(&StatePaths::new(dir).identity()).is_ok(),
        },
        Kept {
            paths: vec![paths.wireguard_keys()],
            is_whole: |dir| {
                let path = StatePaths::new(dir).wireguard_keys();
                path.exists() && KeyFile::open(path).is_ok()
            },
        },
        Kept {
            paths: vec![authority("ca.crt"), authority("ca.key")],
            is_whole: |dir| CertificateAuthority::load(&StatePaths::new(dir).authority(), "").is_ok(),
        },
    ]
}

impl Kept {
    fn copies(&self, state: &StatePaths) -> Vec<PathBuf> {
        let copy = |path: &PathBuf| {
            let name = path.strip_prefix(state.dir()).unwrap_or(path);
            state.copies().join(name)
        };
        self.paths.iter().map(copy).collect()
    }

    /// Replaces damaged files by their copies. A file that is missing was removed on purpose, or
    /// never was.
    fn restore(&self, state: &StatePaths) -> Result<(), FileError> {
        let are_there = self.paths.iter().all(|path| path.exists());
        if !are_there || (self.is_whole)(state.dir()) || !(self.is_whole)(&state.copies()) {
            return Ok(());
        }
        for (path, copy) in self.paths.iter().zip(self.copies(state)) {
            tracing::warn!(path = %path.display(), "a damaged file was replaced by its copy");
            copy_file(&copy, path)?;
        }
        Ok(())
    }

    fn copy(&self, state: &StatePaths) -> Result<(), FileError> {
        if !(self.is_whole)(state.dir()) {
            return Ok(());
        }
        for (path, copy) in self.paths.iter().zip(self.copies(state)) {
            if let Some(dir) = copy.parent() {
                durable::create_dir(dir)?;
            }
            copy_file(path, &copy)?;
        }
        Ok(())
    }
}

fn copy_file(from: &Path, to: &Path) -> Result<(), FileError> {
    let read = |path: &Path| {
        fs::read(path).map_err(|source| FileError::Io { action: "read", path: path.to_owned(), source })
    };
    let wanted = read(from)?;
    if read(to).is_ok_and(|there| there == wanted) {
        return Ok(());
    }
    durable::write(to, &wanted, Survives::PowerLoss)
}

/// Replaces what is damaged by its copy, before anything is read.
pub(crate) fn restore(paths: &StatePaths) -> Result<(), FileError> {
    kept(paths).iter().try_for_each(|kept| kept.restore(paths))
}

/// Keeps the copies up to date, for ever.
pub(crate) async fn keep(paths: StatePaths) {
    let mut copied = Vec::new();
    let mut reported = String::new();
    loop {
        let now = stamps(&paths);
        if now != copied {
            let state = paths.clone();
            let done = blocking(move || kept(&state).iter().try_for_each(|kept| kept.copy(&state))).await;
            match done {
                Ok(()) => copied = now,
                Err(error) => {
                    let text = error.to_string();
                    if text != reported {
                        tracing::warn!(%error, "the copies of state files are out of date");
                        reported = text;
                    }
                }
            }
        }
        sleep(PAUSE).await;
    }
}

/// Returns what changes when one of the files is replaced.
fn stamps(paths: &StatePaths) -> Vec<Option<(u64, std::time::SystemTime)>> {
    use std::os::unix::fs::MetadataExt;
    let stamp = |path: &PathBuf| {
        let found = fs::metadata(path).ok()?;
        Some((found.ino(), found.modified().ok()?))
    };
    kept(paths).iter().flat_map(|kept| &kept.paths).map(stamp).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_file(dir: &Path) -> (StatePaths, Vec<u8>) {
        let paths = StatePaths::new(dir);
        KeyFile::open(paths.wireguard_keys()).unwrap();
        let keys = fs::read(paths.wireguard_keys()).unwrap();
        (paths, keys)
    }

    #[test]
    fn a_damaged_file_is_replaced_by_its_copy_and_a_removed_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (paths, keys) = key_file(dir.path());
        for kept in kept(&paths) {
            kept.copy(&paths).unwrap();
        }
        for damage in [&b""[..], &keys[..keys.len() / 2], b"\0garbage\xff"] {
            fs::write(paths.wireguard_keys(), damage).unwrap();
            restore(&paths).unwrap();
            assert_eq!(fs::read(paths.wireguard_keys()).unwrap(), keys);
        }
        fs::remove_file(paths.wireguard_keys()).unwrap();
        restore(&paths).unwrap();
        assert!(!paths.wireguard_keys().exists());
    }

    #[test]
    fn a_damaged_file_never_replaces_its_copy() {
        let dir = tempfile::tempdir().unwrap();
        let (paths, keys) = key_file(dir.path());
        for damage in [false, true] {
            if damage {
                fs::write(paths.wireguard_keys(), "").unwrap();
            }
            for kept in kept(&paths) {
                kept.copy(&paths).unwrap();
            }
        }
        assert_eq!(fs::read(paths.copies().join("wireguard.keys")).unwrap(), keys);
    }
}
