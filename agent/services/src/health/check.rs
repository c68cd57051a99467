//! One attempt of a health check.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mesh_model::{HealthCheck, HealthKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// The longest status line that is read.
const MAX_STATUS_LINE: usize = 1024;

/// Why a check of a backend failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CheckError {
    /// Nothing took the connection.
    #[error("cannot connect to {address}: {}", reason(error))]
    Connect {
        /// The address and port.
        address: SocketAddr,
        /// The cause.
        error: io::Error,
    },
    /// The connection broke.
    #[error("the connection broke: {}", reason(.0))]
    Io(#[from] io::Error),
    /// The socket could not be created in the namespace.
    #[error("no socket in the container's namespace: {}", reason(.0))]
    Socket(io::Error),
    #[error("it does not answer in HTTP")]
    NoHttp,
    #[error("it answers {0}")]
    Status(u16),
    /// No further data arrived in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
}

/// Returns an error's text without its number.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let plain = text.split_once(" (os error").map_or(text.as_str(), |(plain, _)| plain);
    plain.to_lowercase()
}

/// Tests a backend once with a socket in its namespace. The caller limits the time.
pub(super) async fn attempt(
    check: &HealthCheck,
    address: IpAddr,
    socket: TcpSocket,
) -> Result<(), CheckError> {
    let address = SocketAddr::new(address, check.kind.port());
    let stream = socket.connect(address).await;
    let stream = stream.map_err(|error| CheckError::Connect { address, error })?;
    match &check.kind {
        HealthKind::Tcp { .. } => Ok(()),
        HealthKind::Http { path, .. } => {
            let own = address.to_string();
            ask(stream, check.host.as_deref().unwrap_or(&own), path).await
        }
    }
}

/// Sends `GET` with HTTP/1.1 (RFC 9112); any status of 200 to 399 passes. Only the status line is
/// read.
async fn ask(mut stream: TcpStream, host: &str, path: &str) -> Result<(), CheckError> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: mesh-health/{}\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        env!("CARGO_PKG_VERSION")
    );
    stream.write_all(request.as_bytes()).await?;
    let mut line = Vec::new();
    loop {
        // A read may end between any two bytes of the line.
        let read = stream.read_buf(&mut line).await?;
        let end = line.iter().position(|byte| *byte == b'\n');
        if let Some(end) = end {
            line.truncate(end);
            break;
        }
        if read == 0 || line.len() > MAX_STATUS_LINE {
            return Err(CheckError::NoHttp);
        }
    }
    match status(&line).ok_or(CheckError::NoHttp)? {
        200..=399 => Ok(()),
        code => Err(CheckError::Status(code)),
    }
}

/// Returns the code of a status line (RFC 9112, section 4): `HTTP/1.1 200 OK`.
fn status(line: &[u8]) -> Option<u16> {
    let mut words = std::str::from_utf8(line.get(..line.len().min(64))?).ok()?.split_ascii_whitespace();
    let version = words.next()?;
    let code = words.next()?;
    (version.starts_with("HTTP/1.") && code.len() == 3).then(|| code.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn check(kind: HealthKind) -> HealthCheck {
        HealthCheck::new(kind, Duration::from_secs(2), 3).unwrap()
    }

    /// Runs a server that sends its response in two parts; returns the result and the request.
    async fn asked(answer: &'static [u8]) -> (Result<(), CheckError>, String) {
        asked_as("", answer).await
    }

    /// As [`asked`], with a configured `Host` header.
    async fn asked_as(host: &str, answer: &'static [u8]) -> (Result<(), CheckError>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            let (first, second) = answer.split_at(answer.len() / 2);
            stream.write_all(first).await.unwrap();
            stream.flush().await.unwrap();
            tokio::task::yield_now().await;
            let _ = stream.write_all(second).await;
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let check = check(HealthKind::Http { port, path: "/healthz?x=1".into() });
        let check = if host.is_empty() { check } else { check.with_host(host.into()).unwrap() };
        let socket = TcpSocket::new_v4().unwrap();
        let result = attempt(&check, "127.0.0.1".parse().unwrap(), socket).await;
        (result, server.await.unwrap())
    }

    #[tokio::test]
    async fn an_answer_of_200_to_399_is_good_and_any_other_is_not() {
        let (result, request) = asked(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        result.unwrap();
        assert!(request.starts_with("GET /healthz?x=1 HTTP/1.1\r\nHost: 127.0.0.1:"), "{request}");
        asked(b"HTTP/1.0 302 Found\r\nLocation: /x\r\n\r\n").await.0.unwrap();
        asked(b"HTTP/1.1 200\r\n\r\n").await.0.unwrap();
        assert!(matches!(asked(b"HTTP/1.1 503 Busy\r\n\r\n").await.0, Err(CheckError::Status(503))));
        assert!(matches!(asked(b"HTTP/1.1 100 Continue\r\n\r\n").await.0, Err(CheckError::Status(100))));
        assert!(matches!(asked(b"SSH-2.0-OpenSSH\r\n").await.0, Err(CheckError::NoHttp)));
        assert!(matches!(asked(b"HTTP/1.1 200 no end of line").await.0, Err(CheckError::NoHttp)));
    }

    #[tokio::test]
    async fn a_port_without_a_listener_does_not_pass() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = "127.0.0.1".parse().unwrap();
        let check = check(HealthKind::Tcp { port });
        attempt(&check, address, TcpSocket::new_v4().unwrap()).await.unwrap();
        drop(listener);
        let error = attempt(&check, address, TcpSocket::new_v4().unwrap()).await.unwrap_err().to_string();
        assert_eq!(error, format!("cannot connect to 127.0.0.1:{port}: connection refused"));
    }

    #[tokio::test]
    async fn the_host_header_is_the_checks_own_if_it_has_one() {
        let (result, request) = asked_as("localhost:8000", b"HTTP/1.1 200 OK\r\n\r\n").await;
        result.unwrap();
        assert!(request.contains("\r\nHost: localhost:8000\r\n"), "{request}");
    }
}
