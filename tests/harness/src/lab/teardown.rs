//! Taking a lab down, all of it, whatever state it is in.

use std::{fs, io, path::Path};

use super::{
    name::{self, Names},
    state::{LabDir, LabState},
};
use crate::{Error, Netns, ProcessId, Result, netns};

/// Removes the lab's processes, namespaces, bpffs directories and its own directory. It goes on
/// after an error and returns them all.
pub(super) fn take_down(dir: &LabDir) -> Result<()> {
    let mut errors = Vec::new();
    let (meshds, namespaces, bpffs) = match dir.load() {
        Ok(state) => recorded(&state),
        // Without a record what has a lab's names is a lab's.
        Err(_) => leftovers(dir.prefix()),
    };
    errors.extend(meshds.into_iter().filter_map(|meshd| meshd.kill().err()));
    errors.extend(namespaces.iter().filter_map(|netns| remove_namespace(netns).err()));
    errors.extend(bpffs.iter().filter_map(|path| remove_dir(Path::new(path)).err()));
    if errors.is_empty() {
        errors.extend(remove_dir(&dir.path()).err());
    }
    Error::collect(errors)
}

/// Takes down labs whose test was killed before it could.
pub(super) fn take_down_abandoned() {
    for dir in LabDir::all() {
        let owner = dir.load().ok().and_then(|state| state.owner);
        if owner.is_some_and(|owner| !owner.is_alive())
            && let Err(error) = take_down(&dir)
        {
            eprintln!("clean-up of abandoned lab {}: {error}", dir.prefix());
        }
    }
}

/// Removes one host with everything on it but its directory on disk; its containers go too.
pub(super) fn remove_host(dir: &LabDir, host: &str) -> Result<()> {
    let names = Names::new(dir.prefix());
    let containers = dir.update(|state| {
        let (gone, kept) = state.containers.drain(..).partition(|container| container.host == host);
        state.containers = kept;
        let gone: Vec<_> = gone;
        gone
    })?;
    let namespaces = containers.iter().map(|container| container.name.as_str()).chain([host]);
    let mut errors: Vec<Error> =
        namespaces.filter_map(|name| remove_namespace(&names.namespace(name)).err()).collect();
    let resolv_confs = containers.iter().map(|container| dir.resolv_conf(&container.name));
    errors.extend(resolv_confs.filter_map(|file| remove_file(&file).err()));
    errors.extend(remove_dir(&names.bpffs(host)).err());
    errors.extend(remove_dir(&dir.host(host).join("run")).err());
    Error::collect(errors)
}

/// Kills what runs inside the namespace and removes it.
pub(super) fn remove_namespace(netns: &Netns) -> Result<()> {
    let mut errors: Vec<Error> =
        netns.processes().into_iter().filter_map(|process| process.kill().err()).collect();
    errors.extend(netns::delete(netns).err());
    Error::collect(errors)
}

type Remains = (Vec<ProcessId>, Vec<Netns>, Vec<std::path::PathBuf>);

fn recorded(state: &LabState) -> Remains {
    let names = state.names();
    (
        state.hosts.iter().filter_map(|host| host.meshd).collect(),
        state.namespaces(),
        state.hosts.iter().map(|host| names.bpffs(&host.name)).collect(),
    )
}

/// Hosts and machines of a lab whose record is gone. Its containers' names cannot be known.
fn leftovers(prefix: &str) -> Remains {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let all: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let ours: Vec<&str> = all
        .iter()
        .filter_map(|netns| netns.strip_prefix(prefix)?.strip_prefix('-'))
        .filter(|machine| name::is_reserved(machine))
        .collect();
    let names = Names::new(prefix);
    let namespaces = ours.iter().map(|machine| names.namespace(machine)).collect();
    (Vec::new(), namespaces, ours.iter().map(|machine| names.bpffs(machine)).collect())
}

/// Removes a file; one that is absent is fine.
pub(super) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", path)(error)),
        _ => Ok(()),
    }
}

fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", path)(error)),
        _ => Ok(()),
    }
}
