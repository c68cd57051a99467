//! The engine process as a separate program.

use std::process::ExitCode;

fn main() -> ExitCode {
    match mesh_wireguard::engine_main(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
