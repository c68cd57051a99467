//! `meshctl cni ...`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use mesh_model::Name;

use crate::complete;

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Install the CNI plugin and a configuration for a network
    Install(Install),
    /// Remove a network's configuration, and the plugin with the last one
    Uninstall(Folders),
}

/// `cni install`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl cni install --network app")]
pub(crate) struct Install {
    /// The network and the folders.
    #[command(flatten)]
    pub(crate) folders: Folders,

    /// The plugin's program [default: mesh-cni beside meshctl]
    #[arg(long, value_name = "FILE")]
    pub(crate) binary: Option<PathBuf>,
}

/// `cni uninstall`, and what `install` has in common with it.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  meshctl cni uninstall --network app")]
pub(crate) struct Folders {
    /// Name of the network
    #[arg(long, value_name = "NETWORK", add = complete::networks())]
    pub(crate) network: Name,

    /// Folder of the runtime's plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub(crate) dir: PathBuf,

    /// Folder of the runtime's network configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub(crate) conf_dir: PathBuf,
}
