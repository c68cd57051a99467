//! Finding the binaries under test.

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// Where meshd, meshctl and the WireGuard engine are.
#[derive(Debug, Clone)]
pub struct Binaries {
    dir: PathBuf,
}

impl Binaries {
    /// `MESH_BIN_DIR`, else the directory of the running executable; for a test, which runs from
    /// `deps/`, its parent.
    pub fn locate() -> Result<Self> {
        let dir = match env::var_os("MESH_BIN_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => Self::beside(&env::current_exe().map_err(Error::system("find the running executable"))?),
        };
        let binaries = Self { dir };
        for name in ["meshd", "meshctl", "mesh-wireguard-engine"] {
            if !binaries.dir.join(name).is_file() {
                return Err(Error::MissingBinary { name, dir: binaries.dir });
            }
        }
        Ok(binaries)
    }

    fn beside(executable: &Path) -> PathBuf {
        let dir = executable.parent().unwrap_or(Path::new("."));
        let dir = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
        dir.to_owned()
    }

    /// Their directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Path of one of them as an argument.
    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_executable_finds_the_binaries_one_directory_up() {
        assert_eq!(Binaries::beside(Path::new("/t/debug/deps/overlay-0123")), Path::new("/t/debug"));
        assert_eq!(Binaries::beside(Path::new("/t/release/mesh-lab")), Path::new("/t/release"));
    }
}
