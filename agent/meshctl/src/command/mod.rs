//! What each command does: its calls, and its result in the form asked for.

mod apply;
mod cluster;
mod confirm;
mod endpoint;
mod metrics;
mod network;
mod node;
mod service;
mod status;

use mesh_proto::Problem;
use serde::Serialize;

use crate::cli::{Cli, Command, Format};
use crate::client::Client;
use crate::report::{self, Report};

/// Runs a command against the agent.
pub(crate) async fn run(cli: Cli) -> Report {
    let client = Client::new(cli.socket);
    let format = cli.format;
    match cli.command {
        Command::Cluster { command } => cluster::run(&client, command, format).await,
        Command::Node { command } => node::run(&client, command, format).await,
        Command::Network { command } => network::run(&client, command, format).await,
        Command::Endpoint { command } => endpoint::run(&client, command, format).await,
        Command::Service { command } => service::run(&client, command, format).await,
        Command::Apply(apply) => apply::run(&client, apply, format).await,
        Command::Status => status::run(&client, format).await.into(),
        Command::Metrics => metrics::run(&client).await.into(),
        Command::Completion { shell } => crate::complete::script(shell).into(),
    }
}

/// Does the same for each name, and goes on after an error.
async fn each<T>(
    names: Vec<String>,
    mut call: impl AsyncFnMut(String) -> Result<T, Problem>,
) -> (Vec<T>, Vec<Problem>) {
    let (mut done, mut problems) = (Vec::new(), Vec::new());
    for name in names {
        match call(name).await {
            Ok(value) => done.push(value),
            Err(problem) => problems.push(problem),
        }
    }
    (done, problems)
}

/// The result of several removals and the like: what is gone, a line each.
fn list_of<T: Serialize>(
    (done, mut problems): (Vec<T>, Vec<Problem>),
    format: Option<Format>,
    line: impl Fn(&T) -> String,
) -> Report {
    let text = in_form(&done, format, |done| done.iter().map(|value| line(value) + "\n").collect());
    let text = text.unwrap_or_else(|problem| {
        problems.push(problem);
        String::new()
    });
    Report { text, problems, ..Report::default() }
}

/// The result of an `inspect`: JSON unless a table is asked for; an object for one name, an array
/// for several.
async fn inspect<T: Serialize>(
    names: Vec<String>,
    format: Option<Format>,
    call: impl AsyncFnMut(String) -> Result<T, Problem>,
    details: impl Fn(&T) -> String,
) -> Report {
    let several = names.len() > 1;
    let (found, mut problems) = each(names, call).await;
    let text = match (format, found.as_slice()) {
        (Some(Format::Table), found) => Ok(found.iter().map(details).collect::<Vec<_>>().join("\n")),
        (_, [one]) if !several => report::json(one),
        (_, []) if !several => Ok(String::new()),
        (_, found) => report::json(found),
    };
    let text = text.unwrap_or_else(|problem| {
        problems.push(problem);
        String::new()
    });
    Report { text, problems, ..Report::default() }
}

/// A result as text for people unless JSON is asked for.
fn in_form<T: Serialize + ?Sized>(
    value: &T,
    format: Option<Format>,
    text: impl FnOnce(&T) -> String,
) -> Result<String, Problem> {
    if format == Some(Format::Json) { report::json(value) } else { Ok(text(value)) }
}

/// Ids, a line each, or as a JSON array.
fn ids<'a>(ids: impl Iterator<Item = &'a str>, format: Option<Format>) -> Result<String, Problem> {
    let ids: Vec<_> = ids.collect();
    in_form(&ids, format, |ids| ids.iter().flat_map(|id| [id, "\n"]).collect())
}
