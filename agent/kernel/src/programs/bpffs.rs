//! The bpf file system and the pins of one instance in it.
//!
//! ```text
//! <dir>/v<SCHEMA>/maps/<MAP>              programs and maps of one schema
//! <dir>/v<SCHEMA>/programs/<program>
//! <dir>/links/<program>-<ifindex>         attachments, whatever schema their programs are of
//! <dir>/xdp/<ifindex>                     the same of the XDP program
//! ```
//!
//! Names have no dots: bpffs refuses those, and interface names may have them.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use mesh_ebpf_types::{EARLY, ProgramKind, SCHEMA, SocketProgram};
use mesh_model::observed::Attachment;
use mesh_sys::bpf;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::statfs;

use super::ProgramsError;

const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
const MOUNT_POINT: &str = "/sys/fs/bpf";

/// Makes sure that `dir` is on a bpf file system, mounting one at `/sys/fs/bpf` if nothing is
/// there.
pub fn ensure_bpffs(dir: &Path) -> Result<(), ProgramsError> {
    let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let refused = |source| ProgramsError::Mount { path: dir.to_owned(), source };
    if is_bpffs(existing).map_err(refused)? {
        return Ok(());
    }
    if !dir.starts_with(MOUNT_POINT) {
        return Err(refused(io::Error::other(format!(
            "it is not below {MOUNT_POINT}, and no bpffs is mounted there"
        ))));
    }
    mount(Some("bpf"), MOUNT_POINT, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(|errno| refused(errno.into()))
}

fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.filesystem_type().0 == BPF_FS_MAGIC)
}

/// Where an instance pins.
#[derive(Debug, Clone)]
pub(super) struct Pins {
    root: PathBuf,
}

impl Pins {
    pub(super) const fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn version(&self) -> PathBuf {
        self.root.join(format!("v{SCHEMA}"))
    }

    pub(super) fn maps(&self) -> PathBuf {
        self.version().join("maps")
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    pub(super) fn program(&self, kind: ProgramKind) -> PathBuf {
        self.version().join("programs").join(kind.name())
    }

    pub(super) fn link(&self, attachment: Attachment) -> PathBuf {
        self.root.join("links").join(format!("{}-{}", attachment.kind.name(), attachment.ifindex))
    }

    pub(super) fn socket_program(&self, kind: SocketProgram) -> PathBuf {
        self.version().join("programs").join(kind.name())
    }

    pub(super) fn socket_link(&self, kind: SocketProgram) -> PathBuf {
        self.root.join("links").join(format!("{}-cgroup", kind.name()))
    }

    pub(super) fn xdp_program(&self) -> PathBuf {
        self.version().join("programs").join(EARLY)
    }

    fn xdp(&self) -> PathBuf {
        self.root.join("xdp")
    }

    pub(super) fn xdp_link(&self, ifindex: u32) -> PathBuf {
        self.xdp().join(ifindex.to_string())
    }

    /// The devices for which links of the XDP program are pinned.
    pub(super) fn xdp_links(&self) -> Result<Vec<u32>, ProgramsError> {
        let names = names(&self.xdp())?;
        Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    }

    /// Makes the folders.
    pub(super) fn create(&self) -> Result<(), ProgramsError> {
        ensure_bpffs(&self.root)?;
        for path in self.folders() {
            fs::create_dir_all(&path).map_err(|source| ProgramsError::Pin {
                action: "create",
                path,
                source,
            })?;
        }
        Ok(())
    }

    /// Renames pins of maps from their former to their current names, given as pairs, so that the
    /// maps are adopted. If an older agent ran in between, both pins exist. The former name's pin
    /// is the one that it used, and replaces the other.
    pub(super) fn rename_maps(&self, names: &[(&str, &str)]) -> Result<(), ProgramsError> {
        names.iter().try_for_each(|(former, current)| {
            let path = self.map(former);
            match fs::rename(&path, self.map(current)) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    Err(ProgramsError::Pin { action: "rename", path, source })
                }
                _ => Ok(()),
            }
        })
    }

    /// The attachments that are pinned.
    pub(super) fn links(&self) -> Result<Vec<Attachment>, ProgramsError> {
        let names = names(&self.root.join("links"))?;
        Ok(names.iter().filter_map(|name| parse_link(name.to_str()?)).collect())
    }

    /// The folders with pins of this process's schema.
    pub(super) fn folders(&self) -> [PathBuf; 4] {
        [self.maps(), self.version().join("programs"), self.root.join("links"), self.xdp()]
    }

    /// Whether the pins in one of [`Self::folders`] are links.
    pub(super) fn has_links(&self, folder: &Path) -> bool {
        folder.parent() == Some(&self.root)
    }

    /// Folders of schemas, this one's among them.
    fn versions(&self) -> Result<Vec<PathBuf>, ProgramsError> {
        let names = names(&self.root)?;
        let is_version = |name: &OsString| {
            name.to_str()
                .and_then(|name| name.strip_prefix('v'))
                .is_some_and(|rest| rest.parse::<u32>().is_ok())
        };
        Ok(names.into_iter().filter(is_version).map(|name| self.root.join(name)).collect())
    }

    /// Whether anything is pinned.
    pub(super) fn any(&self) -> Result<bool, ProgramsError> {
        Ok(!self.versions()?.is_empty() || !names(&self.root.join("links"))?.is_empty())
    }

    /// Removes programs and maps of other schemas. What is attached of them works on: links hold
    /// their programs, and programs their maps.
    pub(super) fn remove_other_versions(&self) -> Result<(), ProgramsError> {
        let current = self.version();
        self.versions()?.into_iter().filter(|path| *path != current).try_for_each(|path| remove(&path))
    }

    /// Removes programs and maps of this schema.
    pub(super) fn remove_version(&self) -> Result<(), ProgramsError> {
        remove(&self.version())
    }

    /// Removes everything, the instance's folder included.
    pub(super) fn remove_all(&self) -> Result<(), ProgramsError> {
        remove(&self.root)
    }
}

/// Removes a pin or a folder of pins; one that is not there is no error.
pub(super) fn remove(path: &Path) -> Result<(), ProgramsError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ProgramsError::Pin { action: "remove", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// Detaches a pinned link and removes its pin; one that is not there is no error.
///
/// If the pin was the last reference, the kernel frees the link only after an RCU grace period.
/// Until then the program would still run, and a driver would refuse the next one.
pub(super) fn detach(path: &Path) -> Result<(), ProgramsError> {
    match bpf::open_pin(path).and_then(|link| bpf::link_detach(link.as_fd())) {
        // `InvalidInput`: a filter's program, or a kernel whose links go with their pins only.
        Err(source) if !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => {
            Err(ProgramsError::Pin { action: "detach", path: path.to_owned(), source })
        }
        _ => remove(path),
    }
}

/// The names in a folder; none if there is no such folder.
fn names(path: &Path) -> Result<Vec<OsString>, ProgramsError> {
    let unreadable = |source| ProgramsError::Pin { action: "read", path: path.to_owned(), source };
    match fs::read_dir(path) {
        Ok(entries) => {
            entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>().map_err(unreadable)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(unreadable(error)),
    }
}

fn parse_link(name: &str) -> Option<Attachment> {
    let (program, ifindex) = name.split_once('-')?;
    let kind = ProgramKind::ALL.into_iter().find(|kind| kind.name() == program)?;
    Some(Attachment { ifindex: ifindex.parse().ok()?, kind })
}
