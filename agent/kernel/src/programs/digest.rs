//! A digest of the pins of an instance and of what each link runs.
//!
//! The kernel reports no event when a program removes a pin or detaches a link.

use mesh_sys::bpf;
use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::AsFd;
use std::path::Path;

use super::bpffs::Pins;

/// The digest. What cannot be read has one of its own.
pub(super) fn of(pins: &Pins) -> u64 {
    let mut hasher = DefaultHasher::new();
    for folder in pins.folders() {
        let names = names(&folder);
        names.hash(&mut hasher);
        if pins.has_links(&folder) {
            for name in names.iter().flatten() {
                link(&folder.join(name)).hash(&mut hasher);
            }
        }
    }
    hasher.finish()
}

/// The sorted names in a folder; `None` without it. Endpoints' programs are left out: they stand in
/// filters, which have events.
fn names(folder: &Path) -> Option<Vec<OsString>> {
    let names = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.file_name());
    let mut names: Vec<_> = names.filter(|name| !name.as_encoded_bytes().starts_with(b"endpoint-")).collect();
    names.sort();
    Some(names)
}

/// Whether a link is attached, and the program that it runs; `None` without it.
fn link(path: &Path) -> Option<(bool, u32)> {
    let link = bpf::open_pin(path).ok()?;
    bpf::link_state(link.as_fd()).ok()
}
