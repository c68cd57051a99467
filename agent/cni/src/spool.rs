//! The spool: calls that could not reach the agent, one file each, for it to carry out later.
//!
//! A runtime does not repeat a DEL. So a DEL that finds no agent is written here and succeeds, and
//! so is the DEL that undoes an ADD whose answer never came.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::Call;
use crate::wire::MAX_FRAME;

/// Ends the names of files that are complete.
const COMPLETE: &str = "json";

/// The directory of an agent's spooled calls.
#[derive(Debug, Clone)]
pub struct Spool {
    dir: PathBuf,
}

impl Spool {
    /// The spool of the agent that serves this socket: a directory beside it. It need not exist.
    pub fn beside(socket: &Path) -> Self {
        let mut dir = socket.as_os_str().to_owned();
        dir.push(".spool");
        Self { dir: dir.into() }
    }

    /// Adds a call, and returns its file.
    pub fn add(&self, call: &Call) -> io::Result<PathBuf> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        // No two calls of one process are spooled, and no process id is used twice in a nanosecond.
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let path = self.dir.join(format!("{time:020}-{}.{COMPLETE}", std::process::id()));
        let unfinished = path.with_extension("new");
        let written = write(&unfinished, call).and_then(|()| fs::rename(&unfinished, &path));
        if written.is_err() {
            // The first error is the one to report.
            drop(fs::remove_file(&unfinished));
        }
        written.map(|()| path)
    }

    /// Returns the complete files, oldest first.
    pub fn files(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == COMPLETE) {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// Reads a file; `None` if it holds no call or is gone.
    pub fn read(path: &Path) -> io::Result<Option<Call>> {
        let metadata = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            metadata => metadata?,
        };
        if !metadata.is_file() || metadata.len() > MAX_FRAME as u64 {
            return Ok(None);
        }
        Ok(serde_json::from_slice(&fs::read(path)?).ok())
    }
}

fn write(path: &Path, call: &Call) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&serde_json::to_vec(call)?)?;
    // An agent that is away for long may be away because the host lost power.
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Command;

    fn call() -> Call {
        Call {
            command: Command::Del,
            container: "abc".into(),
            ifname: "eth0".into(),
            netns: String::new(),
            args: String::new(),
            config: "{}".into(),
        }
    }

    #[test]
    fn a_spooled_call_is_read_again_and_anything_else_in_the_directory_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::beside(&dir.path().join("cni.sock"));
        assert_eq!(spool.files().unwrap(), Vec::<PathBuf>::new());
        let path = spool.add(&call()).unwrap();
        assert_eq!(spool.files().unwrap(), std::slice::from_ref(&path));
        assert_eq!(Spool::read(&path).unwrap(), Some(call()));
        fs::write(&path, "{\"command\":").unwrap();
        assert_eq!(Spool::read(&path).unwrap(), None);
        fs::remove_file(&path).unwrap();
        assert_eq!(Spool::read(&path).unwrap(), None);
        fs::create_dir(&path).unwrap();
        assert_eq!(Spool::read(&path).unwrap(), None);
    }
}
