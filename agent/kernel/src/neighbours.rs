//! The limits of the kernel's neighbour tables. A machine has one table of a family for all network
//! namespaces, and by default 1,024 entries in it: the neighbours of a few containers fill it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::KernelError;

/// The limits in the order in which they are raised, and the least that each should be: those that
/// container engines with overlay networks set.
const LIMITS: [(&str, u32); 3] = [("gc_thresh3", 65_536), ("gc_thresh2", 49_152), ("gc_thresh1", 8_192)];

/// Limits of a table.
pub(crate) struct Limits {
    dir: PathBuf,
}

impl Limits {
    /// Returns those in a folder below `/proc/sys`.
    pub(crate) fn in_dir(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Returns whether there is room. Network namespaces other than the machine's first one have no
    /// limits, and cannot change them.
    pub(crate) fn suffice(&self) -> Result<bool, KernelError> {
        for (name, least) in LIMITS {
            if read(&self.dir.join(name))?.is_some_and(|limit| limit < least) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Raises those that are too low.
    pub(crate) fn raise(&self) -> Result<(), KernelError> {
        for (name, least) in LIMITS {
            let path = self.dir.join(name);
            if read(&path)?.is_some_and(|limit| limit < least) {
                fs::write(&path, least.to_string()).map_err(|source| failed("write", &path, source))?;
            }
        }
        Ok(())
    }
}

/// Reads a limit, which the kernel may lack.
fn read(path: &Path) -> Result<Option<u32>, KernelError> {
    match fs::read_to_string(path) {
        // More than fits is enough.
        Ok(text) => Ok(text.trim().parse().ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("read", path, source)),
    }
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> KernelError {
    KernelError::Sysctl { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_are_too_low_are_raised_and_higher_ones_kept() {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits::in_dir(dir.path());
        assert!(limits.suffice().unwrap(), "a namespace has none");
        limits.raise().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        for (name, value) in [("gc_thresh1", "128\n"), ("gc_thresh2", "100000\n"), ("gc_thresh3", "1024\n")] {
            fs::write(dir.path().join(name), value).unwrap();
        }
        assert!(!limits.suffice().unwrap());
        limits.raise().unwrap();
        assert!(limits.suffice().unwrap());
        let value = |name| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(["gc_thresh1", "gc_thresh2", "gc_thresh3"].map(value), ["8192", "100000\n", "65536"]);
    }
}
