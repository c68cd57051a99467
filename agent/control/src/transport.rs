//! Connections: TLS over TCP for managers and members, and an in-process pipe for the manager's own
//! agent.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use mesh_proto::{Problem, ProblemKind};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;
use tracing::{debug, warn};

use crate::connections::{Connections, Place};
use crate::identity::{PeerIdentity, tls};
use crate::limits;

/// Information about the other end of a connection, in the extensions of each request.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// Its verified identity; `None` if it presented no certificate.
    pub identity: Option<PeerIdentity>,
    /// Its address.
    pub address: SocketAddr,
}

/// A connection after its handshake.
#[derive(Debug)]
pub(crate) struct TlsConnection {
    stream: TlsStream<TcpStream>,
    peer: PeerInfo,
    place: Place,
    /// When a connection without a certificate is closed.
    expires: Option<Pin<Box<Sleep>>>,
}

impl TlsConnection {
    /// Returns whether the connection must end: another one needs its slot, or it had no
    /// certificate for too long.
    fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if Pin::new(self.place.closed()).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        match &mut self.expires {
            Some(expires) => expires.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

impl Connected for TlsConnection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl AsyncRead for TlsConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.poll_closed(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Accepts connections and passes on those with a successful handshake, until the receiver is gone.
/// Each handshake has a separate task, so that a slow or silent client delays no other. Calls
/// `config` for each connection.
pub(crate) async fn accept(
    listener: TcpListener,
    config: impl Fn() -> Arc<ServerConfig>,
    connections: mpsc::Sender<io::Result<TlsConnection>>,
    places: Arc<Connections>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = connections.closed() => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Usually EMFILE or ENFILE, which is temporary.
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(limits::HEARTBEAT).await;
                continue;
            }
        };
        let mut place = places.admit(address.ip());
        let acceptor = TlsAcceptor::from(config());
        let connections = connections.clone();
        tokio::spawn(async move {
            let handshake = timeout(limits::HANDSHAKE, handshake(&acceptor, stream, address));
            let done = tokio::select! {
                done = handshake => done,
                _ = place.closed() => return debug!(%address, "a handshake was aborted for newer connections"),
            };
            match done {
                Ok(Ok((stream, peer))) => {
                    if let Some(identity) = &peer.identity {
                        place.belongs_to(&identity.node);
                    }
                    let expires = (!place.is_members()).then(|| Box::pin(sleep(limits::ANONYMOUS)));
                    // The receiver is gone only when the server ends.
                    let _ = connections.send(Ok(TlsConnection { stream, peer, place, expires })).await;
                }
                Ok(Err(error)) => debug!(%address, %error, "a handshake failed"),
                Err(_) => debug!(%address, "a handshake took too long"),
            }
        });
    }
}

async fn handshake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    address: SocketAddr,
) -> io::Result<(TlsStream<TcpStream>, PeerInfo)> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let identity = certificate.map(PeerIdentity::from_certificate).transpose().map_err(io::Error::other)?;
    Ok((stream, PeerInfo { identity, address }))
}

/// Connects to a manager at `HOST:PORT`. The channel reconnects when the connection is lost.
///
/// Fails with [`ProblemKind::Unreachable`] if no server responds, and with [`ProblemKind::Denied`]
/// if the server is not a manager that the configuration trusts.
pub async fn connect(address: &str, config: Arc<ClientConfig>) -> Result<Channel, Problem> {
    resolve(address).await?;
    let target: Arc<str> = address.into();
    let connector = service_fn(move |_: Uri| {
        let (target, config) = (target.clone(), config.clone());
        async move {
            let stream = TcpStream::connect(&*target).await?;
            stream.set_nodelay(true)?;
            let stream = TlsConnector::from(config).connect(tls::manager_name(), stream).await?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    endpoint()
        .connect_timeout(limits::CONNECT)
        .connect_with_connector(connector)
        .await
        .map_err(|error| connect_problem(address, &error))
}

/// Checks whether a name can be resolved, to report a wrong name immediately.
async fn resolve(address: &str) -> Result<(), Problem> {
    let unknown = |why: &str| {
        let host = host_and_port(address).0;
        Problem::new(ProblemKind::Unreachable, format!("the manager's name {host} cannot be resolved: {why}"))
            .hint(format!("check the name {host}, or give the manager's IP address"))
    };
    match timeout(limits::CONNECT, tokio::net::lookup_host(address)).await {
        Err(_) => Err(unknown(&format!("no name server responded within {} s", limits::CONNECT.as_secs()))),
        Ok(Err(error)) => Err(unknown(&error.to_string())),
        Ok(Ok(mut found)) => found.next().map(drop).ok_or_else(|| unknown("the name has no address")),
    }
}

fn host_and_port(address: &str) -> (&str, &str) {
    address.rsplit_once(':').unwrap_or((address, ""))
}

/// Returns the common settings of a client's channel.
fn endpoint() -> Endpoint {
    // The name is only for HTTP/2: connectors have the address.
    Endpoint::from_static("http://mesh-manager")
        .timeout(limits::CALL)
        .http2_keep_alive_interval(limits::KEEPALIVE_INTERVAL)
        .keep_alive_timeout(limits::KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
}

fn connect_problem(address: &str, error: &tonic::transport::Error) -> Problem {
    match tls::tls_error(error) {
        Some(tls) if tls::is_foreign_ca(tls) => Problem::new(
            ProblemKind::Denied,
            format!("the manager at {address} has a different CA than this token"),
        )
        .hint("use that cluster's token: run meshctl cluster join-token worker on its manager"),
        Some(rustls::Error::InvalidCertificate(reason)) => Problem::new(
            ProblemKind::Denied,
            format!("the server at {address} is not a manager of this cluster: {reason}"),
        ),
        Some(tls) => {
            Problem::new(ProblemKind::Denied, format!("TLS with the manager at {address} failed: {tls}"))
        }
        None => Problem::new(
            ProblemKind::Unreachable,
            format!("cannot connect to the manager at {address}: {}", root_cause(error)),
        )
        .hint(format!(
            "check the address, that meshd runs there as a manager, and that TCP port {} is open",
            host_and_port(address).1
        )),
    }
}

/// Returns the innermost error: outer ones only say that there is one.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut reason = error;
    while let Some(source) = reason.source() {
        reason = source;
    }
    let timed_out = reason.is::<tokio::time::error::Elapsed>()
        || reason.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut);
    if timed_out { format!("no answer within {} s", limits::CONNECT.as_secs()) } else { reason.to_string() }
}

/// Size of the pipe's buffer in bytes.
const PIPE: usize = 64 << 10;

/// Returns a channel to a server in the process, and the connections to serve for it.
pub(crate) fn pipe() -> (Channel, mpsc::Receiver<io::Result<DuplexStream>>) {
    let (connections, incoming) = mpsc::channel(4);
    let connector = service_fn(move |_: Uri| {
        let connections = connections.clone();
        async move {
            let (client, server) = tokio::io::duplex(PIPE);
            let ended = |_| io::Error::new(io::ErrorKind::ConnectionRefused, "the manager has ended");
            connections.send(Ok(server)).await.map_err(ended)?;
            Ok::<_, io::Error>(TokioIo::new(client))
        }
    });
    (
        Endpoint::from_static("http://mesh-manager")
            .timeout(limits::CALL)
            .connect_with_connector_lazy(connector),
        incoming,
    )
}
