//! The agent's program.

use std::process::ExitCode;

use clap::Parser;
use mesh_meshd::config::{Config, ConfigError, Flags};
use mesh_meshd::{app, capabilities};
use mesh_proto::{Problem, ProblemKind};
use mesh_services::name_server_process as process;
use mesh_sys::memory;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if let (Some(command), Some(run_dir), Some(resolv_conf)) = (args.next(), args.next(), args.next())
        && command == process::COMMAND
    {
        abort_on_panic();
        memory::keep_little();
        return process::main(run_dir.as_ref(), resolv_conf.as_ref());
    }
    abort_on_panic();
    memory::keep_little();
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            if let Some(hint) = &problem.hint {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(problem.kind.exit_code())
        }
    }
}

/// An agent with a missing task would not do its work. An agent that has ended does no harm:
/// traffic continues, and the next agent adopts the kernel's state.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

fn start() -> Result<(), Problem> {
    let config = Config::load(&Flags::parse()).map_err(|error| app::config_problem(&error))?;
    let filter = EnvFilter::try_new(&config.log).map_err(|error| {
        let (filter, reason) = (config.log.clone(), error.to_string());
        app::config_problem(&ConfigError::Log { filter, reason })
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    if let Err(error) = capabilities::drop_unneeded() {
        tracing::warn!(%error, "cannot give up the capabilities that meshd does not need");
    }
    // Two threads are plenty for what is no more than bookkeeping, and each costs memory.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .enable_all()
        .build()
        .map_err(|error| Problem::new(ProblemKind::Failed, format!("cannot start: {error}")))?
        .block_on(app::run(config))
}
