//! Files that are whole or absent, whatever happens while they are written.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// So many bytes are written at once.
const BUFFER: usize = 64 << 10;

/// Ends the name of a file that is still being written.
const UNFINISHED: &str = ".tmp";

/// Why a state file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file system said no.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: `read`, `write`, `remove`.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The content is not what it should be.
    #[error("{} is damaged or of another version: {source}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
}

impl FileError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// How much a write has to survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survives {
    /// The end of this process at any instant.
    Kill,
    /// That, and a loss of power once the call has returned.
    PowerLoss,
}

/// Replaces the file at `path` (mode 0600) by `bytes`, in one step for every reader.
pub fn write(path: &Path, bytes: &[u8], survives: Survives) -> Result<(), FileError> {
    replace(path, survives, |file| file.write_all(bytes)).map_err(FileError::io("write", path))
}

fn replace(
    path: &Path,
    survives: Survives,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(UNFINISHED);
    let unfinished = PathBuf::from(unfinished);
    let written = (|| {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        write(&mut file)?;
        if survives == Survives::PowerLoss {
            file.sync_all()?;
        }
        fs::rename(&unfinished, path)?;
        if survives == Survives::PowerLoss {
            sync_parent(path)?;
        }
        Ok(())
    })();
    if written.is_err() {
        // A full disk must not keep the half that fitted; what matters is the error that led here.
        let _ = fs::remove_file(&unfinished);
    }
    written
}

/// [`write`] of a value as JSON, which is never in memory as a whole: of a large cluster it is a
/// hundred megabytes.
pub fn write_json<T: Serialize>(path: &Path, value: &T, survives: Survives) -> Result<(), FileError> {
    let written = replace(path, survives, |file| {
        let mut buffer = BufWriter::with_capacity(BUFFER, file);
        serde_json::to_writer(&mut buffer, value)?;
        buffer.write_all(b"\n")?;
        buffer.flush()
    });
    written.map_err(FileError::io("write", path))
}

/// Reads a value that [`write_json`] wrote; `None` when there is no such file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::io("read", path)(error)),
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| FileError::Content { path: path.to_owned(), source }),
    }
}

/// Removes a file; no error when there is none. A loss of power may bring it back.
pub fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(FileError::io("remove", path)(error)),
    }
}

/// Creates a directory (mode 0700) with those above it; no error when it is there.
pub fn create_dir(path: &Path) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(FileError::io("create", path))
}

/// Removes what writes that never finished have left in a directory.
pub fn remove_unfinished(dir: &Path) -> Result<(), FileError> {
    let entries = fs::read_dir(dir).map_err(FileError::io("read", dir))?;
    for entry in entries {
        let path = entry.map_err(FileError::io("read", dir))?.path();
        if path.to_string_lossy().ends_with(UNFINISHED) {
            remove(&path)?;
        }
    }
    Ok(())
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_is_for_the_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_json(&path, &vec![1, 2, 3], Survives::PowerLoss).unwrap();
        write_json(&path, &vec![4], Survives::Kill).unwrap();
        assert_eq!(read_json::<Vec<u32>>(&path).unwrap(), Some(vec![4]));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_absent_file_is_none_and_a_damaged_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        assert_eq!(read_json::<u32>(&path).unwrap(), None);
        fs::write(&path, "{\"half\":").unwrap();
        let error = read_json::<u32>(&path).unwrap_err().to_string();
        assert!(error.contains("a.json is damaged"), "{error}");
    }

    #[test]
    fn what_an_interrupted_write_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.json.tmp"), "{").unwrap();
        fs::write(dir.path().join("b.json"), "1").unwrap();
        remove_unfinished(dir.path()).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["b.json"]);
    }

    #[test]
    fn removing_twice_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        remove(&dir.path().join("nothing")).unwrap();
    }
}
