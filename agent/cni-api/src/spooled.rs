//! Calls that the plugin left in the spool while no agent answered.

use std::path::Path;
use std::{fs, io};

use mesh_cni::spool::Spool;
use mesh_cni::{Call, Command};
use mesh_handle::AgentHandle;

use crate::attachments;
use crate::config::Config;
use crate::turns::Turns;

/// Carries out every spooled call and removes its file. What fails stays for the next time.
pub(crate) async fn carry_out(agent: &dyn AgentHandle, turns: &Turns, spool: &Spool) {
    let files = match spool.files() {
        Ok(files) => files,
        Err(error) => {
            tracing::warn!(%error, "the spool of the CNI plugin cannot be read");
            return;
        }
    };
    for file in files {
        if let Err(reason) = carry_out_one(agent, turns, &file).await {
            tracing::warn!(file = %file.display(), reason, "a spooled DEL is not carried out yet");
        }
    }
}

async fn carry_out_one(agent: &dyn AgentHandle, turns: &Turns, file: &Path) -> Result<(), String> {
    let call = Spool::read(file).map_err(|error| error.to_string())?;
    match call.as_ref().map(owner) {
        Some(Some(owner)) => {
            let _turn = turns.take(&owner).await;
            // An ADD may have carried it out meanwhile; what it attached then must stay.
            if !file.exists() {
                return Ok(());
            }
            attachments::del(agent, &owner).await.map_err(|error| error.message)?;
        }
        None | Some(None) => {
            tracing::warn!(file = %file.display(), "removed from the spool: it holds no DEL");
        }
    }
    remove(file).map_err(|error| error.to_string())
}

/// The attachment that a spooled call is about; `None` if it is no valid DEL.
fn owner(call: &Call) -> Option<mesh_model::Owner> {
    let config = Config::parse(&call.config).ok()?;
    attachments::owner(call, &config).ok().filter(|_| call.command == Command::Del)
}

fn remove(file: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(file) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(file),
        _ => fs::remove_file(file),
    };
    // The plugin removes the file of a DEL that it could pass on after all.
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}
