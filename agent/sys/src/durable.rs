//! Files that readers find whole or not at all, whenever the writer is interrupted.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes per write of [`write_json`].
const BUFFER: usize = 64 << 10;

/// Suffix of a file that is still being written.
const UNFINISHED: &str = ".tmp";

/// Why a state file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The operation: `read`, `write`, `create` or `remove`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The content is not the expected JSON.
    #[error("{} is damaged or of another version: {source}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Position and reason.
        source: serde_json::Error,
    },
}

impl FileError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// The worst event that a completed write survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survives {
    /// The end of this process at any instant.
    Kill,
    /// A loss of power after the call has returned.
    PowerLoss,
}

/// Replaces the file at `path` (mode 0600) by `bytes`, atomically for every reader.
pub fn write(path: &Path, bytes: &[u8], survives: Survives) -> Result<(), FileError> {
    replace(path, survives, |file| file.write_all(bytes)).map_err(FileError::io("write", path))
}

fn replace(
    path: &Path,
    survives: Survives,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let dir = parent(path);
    let mut unfinished: OsString = name.to_owned();
    unfinished.push(UNFINISHED);
    // The name is fixed, so that interrupted writes leave one file at most. That file may have
    // another mode, so it is not reused.
    remove_if_exists(&dir.join(&unfinished))?;
    // Dropping the file removes it: half of it must not stay on a full disk.
    let mut file = tempfile::Builder::new().prefix(&unfinished).rand_bytes(0).tempfile_in(dir)?;
    write(file.as_file_mut())?;
    if survives == Survives::PowerLoss {
        file.as_file().sync_all()?;
    }
    file.persist(path)?;
    if survives == Survives::PowerLoss {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// The directory of a file; the working directory for a bare name.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Replaces the file at `path` (mode 0600) by a value as JSON, atomically for every reader.
///
/// The text is streamed: of a large cluster it is a hundred megabytes.
pub fn write_json<T: Serialize>(path: &Path, value: &T, survives: Survives) -> Result<(), FileError> {
    let written = replace(path, survives, |file| {
        let mut buffer = BufWriter::with_capacity(BUFFER, file);
        serde_json::to_writer(&mut buffer, value)?;
        buffer.write_all(b"\n")?;
        buffer.flush()
    });
    written.map_err(FileError::io("write", path))
}

/// Reads a text file.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    fs::read_to_string(path).map_err(FileError::io("read", path))
}

/// Reads a value that [`write_json`] wrote; returns `None` if the file does not exist.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::io("read", path)(error)),
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| FileError::Content { path: path.to_owned(), source }),
    }
}

/// Removes a file; succeeds if it does not exist. A loss of power may bring it back.
pub fn remove(path: &Path) -> Result<(), FileError> {
    remove_if_exists(path).map_err(FileError::io("remove", path))
}

fn remove_if_exists(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Creates a directory (mode 0700) with its parents; succeeds if it exists.
pub fn create_dir(path: &Path) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(FileError::io("create", path))
}

/// Removes the files that interrupted writes have left in a directory.
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
    fn a_failed_write_keeps_the_old_content_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write(&path, b"old", Survives::PowerLoss).unwrap();
        let failed = replace(&path, Survives::PowerLoss, |file| {
            file.write_all(b"half")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(read_text(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_an_interrupted_write_left_readable_does_not_pass_its_mode_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let left = dir.path().join("key.tmp");
        fs::write(&left, "half").unwrap();
        fs::set_permissions(&left, fs::Permissions::from_mode(0o644)).unwrap();
        write(&path, b"secret", Survives::PowerLoss).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn removing_twice_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        remove(&dir.path().join("nothing")).unwrap();
    }
}
