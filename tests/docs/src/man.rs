//! Manual pages, from clap.

use std::fs;
use std::path::Path;

use anyhow::Context;
use clap::Command;
use clap_mangen::Man;

use crate::generated;

/// Writes `meshctl.1`, a page for each of its commands, and `meshd.8`.
pub fn write(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let mut meshctl = mesh_meshctl::command();
    meshctl.build();
    pages(&meshctl, "meshctl", "1", directory)?;
    let mut meshd = generated::meshd();
    meshd.build();
    pages(&meshd, "meshd", "8", directory)
}

fn pages(command: &Command, name: &str, section: &str, directory: &Path) -> anyhow::Result<()> {
    let path = directory.join(format!("{name}.{section}"));
    // The page of `network create` is about `meshctl-network-create`.
    let titled = command.clone().display_name(name.to_owned());
    let mut text = Vec::new();
    Man::new(titled).section(section).render(&mut text)?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        pages(sub, &format!("{name}-{}", sub.get_name()), section, directory)?;
    }
    Ok(())
}
