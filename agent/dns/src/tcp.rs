//! Questions and answers over connections: each after its length in two octets (RFC 1035, section 4.2.2).

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

use crate::{
    message::Transport,
    network::{Network, Step},
};

/// How long a client may take for a whole question, from the end of the former, and for taking an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Pause after an error of the listener itself, which might last.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers on connections to `listener` for good. They end with this future.
pub(crate) async fn serve(network: Arc<Network>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, client)) => {
                // Those beyond the limit are closed at once, so that the client need not wait to learn it.
                if let Ok(permit) = Arc::clone(&network.connections).try_acquire_owned() {
                    let network = Arc::clone(&network);
                    connections.spawn(async move {
                        let _permit = permit;
                        if let Err(error) = converse(&network, stream).await {
                            tracing::trace!(%client, %error, "a connection ended");
                        }
                    });
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Answers one question after the other until the client has no more.
async fn converse(network: &Network, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let query = timeout(PATIENCE, read(&mut stream)).await??;
        let reply = match network.handle(&query, Transport::Tcp) {
            Step::Ignore => return Ok(()),
            Step::Reply(reply) => Some(reply),
            Step::Forward(request) => network.forward(&request, Transport::Tcp).await,
        };
        let Some(reply) = reply else { return Ok(()) };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        // One write, so that length and message travel together (RFC 7766, section 8).
        timeout(PATIENCE, stream.write_all(&[&length.to_be_bytes(), &reply[..]].concat())).await??;
    }
}

async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}
