//! The plugin: one call of a runtime, passed on to the agent.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::call::Answer;
use crate::environment::{Environment, Variables};
use crate::error::{CniError, Code};
use crate::spool::Spool;
use crate::{Call, Command, version, wire};

/// The agent's plugin socket, unless the configuration names another one.
const SOCKET: &str = "/run/mesh/cni.sock";
/// How long the plugin waits for the agent's answer. Runtimes give up after two to four minutes.
const ANSWER: Duration = Duration::from_mins(1);
/// The same for STATUS, which runtimes ask often.
const STATUS_ANSWER: Duration = Duration::from_secs(5);

/// How the plugin ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With exit code 0.
    Done,
    /// With exit code 1; the error is printed.
    Failed,
}

/// The configuration's keys that the plugin itself needs.
#[derive(Deserialize)]
struct OwnKeys {
    #[serde(default)]
    socket: Option<PathBuf>,
}

/// Runs the plugin: reads its environment and the configuration on `input`, and prints a result or
/// an error on `output`.
pub fn run(variables: Variables<'_>, input: &mut impl Read, output: &mut impl Write) -> Outcome {
    let Some(command) = variables("CNI_COMMAND") else {
        // Nomad starts each plugin like this, and looks for a version in the answer.
        return print(output, concat!("CNI mesh plugin v", env!("CARGO_PKG_VERSION")), Outcome::Done);
    };
    let config = match read_config(input) {
        Ok(config) => config,
        Err(error) => return print(output, &error.json(version::LATEST), Outcome::Failed),
    };
    if command == "VERSION" {
        return print(output, &version::answer(&config), Outcome::Done);
    }
    let version = match version::of(&config) {
        Ok(version) => version,
        Err(error) => return print(output, &error.json(version::LATEST), Outcome::Failed),
    };
    let environment = match Environment::read(&command.to_string_lossy(), variables) {
        Ok(environment) => environment,
        Err(error) => return print(output, &error.json(version), Outcome::Failed),
    };
    let Environment { command, container, ifname, netns, args } = environment;
    let socket = serde_json::from_str::<OwnKeys>(&config).ok().and_then(|keys| keys.socket);
    let call = Call { command, container, ifname, netns, args, config };
    let socket = socket.unwrap_or_else(|| SOCKET.into());
    match pass_on(&call, &socket, output) {
        Ok(outcome) => outcome,
        Err(error) => match without_answer(&call, &socket, &error) {
            Ok(()) => Outcome::Done,
            Err(error) => print(output, &error.json(version), Outcome::Failed),
        },
    }
}

fn read_config(input: &mut impl Read) -> Result<String, CniError> {
    let mut bytes = Vec::new();
    let limit = wire::MAX_CONFIG as u64 + 1;
    input.take(limit).read_to_end(&mut bytes).map_err(|error| {
        CniError::new(Code::Io, format!("cannot read the network configuration: {error}"))
    })?;
    if bytes.len() > wire::MAX_CONFIG {
        return Err(CniError::new(Code::Decoding, "the network configuration is larger than 1 MiB"));
    }
    String::from_utf8(bytes)
        .map_err(|_| CniError::new(Code::Decoding, "the network configuration is not UTF-8"))
}

/// Sends the call to the agent, prints its answer, and confirms a result.
fn pass_on(call: &Call, socket: &Path, output: &mut impl Write) -> io::Result<Outcome> {
    let mut agent = UnixStream::connect(socket)?;
    let limit = if call.command == Command::Status { STATUS_ANSWER } else { ANSWER };
    agent.set_read_timeout(Some(limit))?;
    agent.set_write_timeout(Some(limit))?;
    wire::send(&mut agent, call)?;
    let answer: Answer = wire::receive(&mut agent)?;
    let outcome = if answer.failed { Outcome::Failed } else { Outcome::Done };
    let outcome = print(output, &answer.output, outcome);
    if outcome == Outcome::Done && call.command == Command::Add {
        agent.write_all(&[wire::DONE])?;
    }
    Ok(outcome)
}

/// What a call comes to that the agent has not answered.
fn without_answer(call: &Call, socket: &Path, error: &io::Error) -> Result<(), CniError> {
    let spool = Spool::beside(socket);
    let never_reached = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
    let away = |code: Code| {
        let why = if never_reached {
            format!("meshd is not running: nothing listens on {}", socket.display())
        } else {
            format!("meshd did not answer on {}: {error}", socket.display())
        };
        CniError::new(code, why).details("systemctl status meshd shows why")
    };
    match call.command {
        Command::Del => leave_del(&spool, call, socket),
        Command::Add => {
            // The agent may have attached the container before its answer was lost. Without room
            // for the file, the runtime's own DEL undoes that.
            if !never_reached {
                drop(spool.add(&Call { command: Command::Del, ..call.clone() }));
            }
            Err(away(Code::TryAgain))
        }
        Command::Status => Err(away(Code::NotAvailable)),
        Command::Check | Command::Gc => Err(away(Code::TryAgain)),
    }
}

/// Leaves a DEL to the agent's next start.
fn leave_del(spool: &Spool, call: &Call, socket: &Path) -> Result<(), CniError> {
    let file = spool.add(call).map_err(|error| {
        CniError::new(Code::Io, format!("meshd is away, and the DEL cannot be kept for it: {error}"))
            .details("free space in the directory of its socket, and try again")
    })?;
    // The agent may have looked through the spool just before: then it listens by now.
    if pass_on(call, socket, &mut io::sink()).is_ok() {
        // It also removes the file by itself.
        drop(std::fs::remove_file(file));
    }
    Ok(())
}

/// Prints an answer; one that cannot be printed was not given.
fn print(output: &mut impl Write, text: &str, outcome: Outcome) -> Outcome {
    if text.is_empty() {
        return outcome;
    }
    match writeln!(output, "{text}").and_then(|()| output.flush()) {
        Ok(()) => outcome,
        Err(_) => Outcome::Failed,
    }
}
