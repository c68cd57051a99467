//! Questions and answers as datagrams.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::UdpSocket, task::JoinSet};

use crate::{
    message::Transport,
    network::{Network, Step},
};

/// Longest question that is read: one is some hundred octets with all its options.
pub(crate) const MAX_QUERY: usize = 4096;

/// Pause after an error of the socket itself, which might last.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers on `socket` for good. What waits for an answer ends with this future.
pub(crate) async fn serve(network: Arc<Network>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut waiting = JoinSet::new();
    let mut buffer = vec![0; MAX_QUERY];
    let retired = network.retired();
    tokio::pin!(retired);
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            Some(_) = waiting.join_next() => continue,
            () = &mut retired => break,
        };
        let (length, client) = match received {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "a query could not be received");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let reply = match network.handle(&buffer[..length], Transport::Udp, client.ip()) {
            Step::Ignore => None,
            Step::Reply(reply) => Some(reply),
            Step::Forward(forward) => {
                let (network, socket) = (Arc::clone(&network), Arc::clone(&socket));
                waiting.spawn(async move {
                    if let Some(reply) = network.forward(&forward, Transport::Udp).await {
                        sent(socket.send_to(&reply, client).await, client);
                    }
                });
                None
            }
        };
        if let Some(reply) = reply {
            sent(socket.send_to(&reply, client).await, client);
        }
    }
    while waiting.join_next().await.is_some() {}
}

fn sent(result: io::Result<usize>, client: SocketAddr) {
    if let Err(error) = result {
        tracing::debug!(%client, %error, "an answer could not be sent");
    }
}
