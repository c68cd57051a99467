//! The CNI plugin's program.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use mesh_cni::Outcome;

fn main() -> ExitCode {
    match mesh_cni::run(&|key| std::env::var_os(key), &mut std::io::stdin(), &mut std::io::stdout()) {
        Outcome::Done => ExitCode::SUCCESS,
        Outcome::Failed => ExitCode::FAILURE,
    }
}
