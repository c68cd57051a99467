//! `meshctl cni ...`

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use mesh_proto::{Problem, ProblemKind};
use serde::Serialize;
use serde_json::{Value, json};

use super::results::in_form;
use crate::cli::cni::{Command, Folders, Install};
use crate::client::DEFAULT_SOCKET;
use crate::format::Format;
use crate::report;

/// The plugin's program, and the type in configurations.
const PLUGIN: &str = "mesh-cni";

/// The files of an installation.
#[derive(Debug, Serialize)]
struct Files {
    plugin: PathBuf,
    configuration: PathBuf,
}

impl Files {
    fn of(folders: &Folders) -> Self {
        Self {
            plugin: folders.dir.join(PLUGIN),
            configuration: folders.conf_dir.join(format!("10-mesh-{}.conflist", folders.network)),
        }
    }
}

pub(super) fn run(socket: &Path, command: Command, format: Option<Format>) -> Result<String, Problem> {
    match command {
        Command::Install(install) => self::install(socket, &install, format),
        Command::Uninstall(folders) => uninstall(&folders, format),
    }
}

/// The program first, the configuration last: runtimes watch the folder of configurations.
fn install(socket: &Path, install: &Install, format: Option<Format>) -> Result<String, Problem> {
    let folders = &install.folders;
    let files = Files::of(folders);
    let source = install.binary.clone().map_or_else(beside_this_program, Ok)?;
    let program = fs::read(&source)
        .map_err(|error| failed("read", &source, &error).hint("name the plugin's program with --binary"))?;
    replace(&files.plugin, &program, 0o755)?;
    let configuration = report::json(&configuration(folders, socket))?;
    replace(&files.configuration, configuration.as_bytes(), 0o644)?;
    in_form(&files, format, |files| {
        format!("{}\n{}\n", files.plugin.display(), files.configuration.display())
    })
}

/// The configuration first, so that no runtime looks for a program that is gone. The program stays
/// while another configuration names it.
fn uninstall(folders: &Folders, format: Option<Format>) -> Result<String, Problem> {
    let files = Files::of(folders);
    remove(&files.configuration)?;
    if !is_in_use(&folders.conf_dir) {
        remove(&files.plugin)?;
    }
    in_form(&files, format, |files| format!("{}\n", files.configuration.display()))
}

/// Whether a configuration of a folder names the plugin.
fn is_in_use(conf_dir: &Path) -> bool {
    let names_plugin = |path: PathBuf| {
        let text = fs::read_to_string(path).ok()?;
        let configuration: Value = serde_json::from_str(&text).ok()?;
        let listed = configuration["plugins"].as_array().cloned().unwrap_or_default();
        Some(listed.iter().chain([&configuration]).any(|plugin| plugin["type"] == PLUGIN))
    };
    let files = fs::read_dir(conf_dir).into_iter().flatten().flatten();
    files.filter_map(|file| names_plugin(file.path())).any(|names| names)
}

/// Version 1.0.0, which podman 4 and containerd 1.6 know, too.
fn configuration(folders: &Folders, socket: &Path) -> Value {
    let mut plugin = json!({
        "type": PLUGIN,
        "network": folders.network,
        "capabilities": {
            "aliases": true,
            "io.kubernetes.cri.pod-annotations": true,
            "ips": true,
            "mac": true,
            "portMappings": true,
        },
    });
    if socket != Path::new(DEFAULT_SOCKET) {
        plugin["socket"] = socket.with_file_name("cni.sock").to_string_lossy().into();
    }
    json!({ "cniVersion": "1.0.0", "name": folders.network, "plugins": [plugin] })
}

fn beside_this_program() -> Result<PathBuf, Problem> {
    let program = std::env::current_exe()
        .map_err(|error| Problem::new(ProblemKind::Failed, format!("cannot find this program: {error}")))?;
    Ok(program.with_file_name(PLUGIN))
}

/// Writes a file that others see whole or not at all. A program that runs keeps its old content.
fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), Problem> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(|error| failed("create", folder, &error))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Neither a configuration's suffix nor a plugin's name.
    let unfinished = folder.join(format!(".{name}.new"));
    let written = (|| {
        let mut file = File::create(&unfinished)?;
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    })();
    written.map_err(|error| {
        // The first error is the one to report.
        drop(fs::remove_file(&unfinished));
        failed("write", path, &error)
    })
}

fn remove(path: &Path) -> Result<(), Problem> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, &error)),
        _ => Ok(()),
    }
}

fn failed(action: &str, path: &Path, error: &io::Error) -> Problem {
    Problem::new(ProblemKind::Failed, format!("cannot {action} {}: {error}", path.display()))
}
