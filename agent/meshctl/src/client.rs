//! The connection to the local agent.

use std::error::Error;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use mesh_proto::v1::control_client::ControlClient;
use mesh_proto::v1::local_client::LocalClient;
use mesh_proto::{Problem, ProblemKind};
use tokio::net::UnixStream;
use tokio::sync::OnceCell;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::report;

/// The agent's socket unless another one is named.
pub(crate) const DEFAULT_SOCKET: &str = "/run/mesh/meshd.sock";

/// Limit of a call: an attach may wait for other nodes, and takes the longest.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(30);

/// Most bytes of an answer; lists of a large cluster pass gRPC's usual 4 MiB.
const ANSWER_LIMIT: usize = 256 << 20;

/// Calls to one agent, over one connection. The first call opens it, so that errors of the command
/// line itself come first.
#[derive(Debug)]
pub(crate) struct Client {
    socket: PathBuf,
    channel: OnceCell<Channel>,
}

impl Client {
    /// Calls to the agent at a socket.
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket, channel: OnceCell::new() }
    }

    async fn channel(&self) -> Result<Channel, Problem> {
        self.channel.get_or_try_init(|| connect(&self.socket)).await.cloned()
    }

    /// The client of cluster calls.
    pub(crate) async fn control(&self) -> Result<ControlClient<Channel>, Problem> {
        Ok(ControlClient::new(self.channel().await?).max_decoding_message_size(ANSWER_LIMIT))
    }

    /// The client of calls about this host.
    pub(crate) async fn local(&self) -> Result<LocalClient<Channel>, Problem> {
        Ok(LocalClient::new(self.channel().await?).max_decoding_message_size(ANSWER_LIMIT))
    }

    /// Waits for a call's response.
    pub(crate) async fn call<T>(
        &self,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Problem> {
        within(CALL_LIMIT, &self.socket, answer).await
    }
}

async fn connect(socket: &Path) -> Result<Channel, Problem> {
    let stream = UnixStream::connect(socket).await.map_err(|error| cannot_connect(socket, &error))?;
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_| {
        // One command is one connection: what breaks is reported, not tried again.
        std::future::ready(stream.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
    });
    Endpoint::from_static("http://meshd")
        .connect_with_connector(connector)
        .await
        .map_err(|error| connection_lost(socket, &error.to_string()))
}

async fn within<T>(
    limit: Duration,
    socket: &Path,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Problem> {
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(problem(socket, status)),
        Err(_) => Err(Problem::new(
            ProblemKind::Unreachable,
            format!("meshd at {}, no answer within {} s", socket.display(), limit.as_secs()),
        )
        .hint("check its log: journalctl -u meshd")),
    }
}

fn problem(socket: &Path, status: Status) -> Problem {
    // Only a status that was made on this side has a source: the agent itself said nothing.
    if status.source().is_some() {
        return connection_lost(socket, status.message());
    }
    let code = status.code();
    let mut problem = Problem::from(status);
    if problem.message.is_empty() {
        problem.message = format!("meshd at {}, no reason given: {code}", socket.display());
    }
    problem
}

fn connection_lost(socket: &Path, reason: &str) -> Problem {
    let message = format!("meshd at {}, connection lost before the response: {reason}", socket.display());
    Problem::new(ProblemKind::Unreachable, message).hint("check whether it stopped: systemctl status meshd")
}

fn cannot_connect(socket: &Path, error: &io::Error) -> Problem {
    let socket = socket.display();
    let running =
        "check that meshd runs: systemctl start meshd; if its socket is elsewhere, specify it with --socket";
    match error.kind() {
        io::ErrorKind::NotFound => Problem::new(
            ProblemKind::Unreachable,
            format!("meshd at {socket}, cannot connect: no such socket"),
        )
        .hint(running),
        io::ErrorKind::ConnectionRefused => Problem::new(
            ProblemKind::Unreachable,
            format!("meshd at {socket}, cannot connect: no process listens on the socket"),
        )
        .hint(running),
        io::ErrorKind::PermissionDenied => {
            Problem::new(ProblemKind::Denied, format!("meshd at {socket}, cannot connect: permission denied"))
                .hint("run it as root or as a member of the group mesh")
        }
        _ => Problem::new(ProblemKind::Unreachable, format!("meshd at {socket}, cannot connect: {error}")),
    }
}

/// The error for a response without a required field.
pub(crate) fn incomplete(what: &str) -> Problem {
    report::failed(format!("meshd's answer, cannot be used: {what} is missing"))
        .hint("check that meshctl and meshd have the same version: meshctl --version; meshctl status")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_does_not_answer_is_unreachable() {
        let silent = std::future::pending::<Result<Response<()>, Status>>();
        let problem = within(CALL_LIMIT, Path::new("/s"), silent).await.unwrap_err();
        assert_eq!(problem.kind, ProblemKind::Unreachable);
        assert_eq!(problem.message, "meshd at /s, no answer within 30 s");
    }

    #[test]
    fn a_call_that_the_agent_did_not_live_to_answer_is_unreachable() {
        let broken = Status::from_error(Box::new(io::Error::other("stream closed")));
        let problem = problem(Path::new("/s"), broken);
        assert_eq!(problem.kind, ProblemKind::Unreachable);
        assert_eq!(problem.message, "meshd at /s, connection lost before the response: stream closed");
    }

    #[test]
    fn a_refusal_without_a_reason_still_says_who_refused() {
        let problem = problem(Path::new("/s"), Status::not_found(""));
        assert_eq!(problem.kind, ProblemKind::NotFound);
        assert!(problem.message.starts_with("meshd at /s, no reason given: "), "{}", problem.message);
    }

    #[test]
    fn a_socket_that_the_caller_may_not_open_is_denied() {
        let problem = cannot_connect(Path::new("/s"), &io::ErrorKind::PermissionDenied.into());
        assert_eq!((problem.kind, problem.kind.exit_code()), (ProblemKind::Denied, 1));
        assert!(problem.hint.unwrap().contains("group mesh"));
    }
}
