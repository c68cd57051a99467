//! `meshctl`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    mesh_meshctl::run(&args).into()
}
