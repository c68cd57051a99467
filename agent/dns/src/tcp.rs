//! Questions and answers over connections: each after its length in two octets (RFC 1035, section
//! 4.2.2), answered in whichever order the answers come (RFC 7766, section 6.2.1.1).

use std::{io, sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    limits::Place,
    message::Transport,
    network::{Network, Step},
    udp::MAX_QUERY,
};

/// How long a client may take for a whole question, from the former or its answer on, and for
/// taking an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Pause after an error of the listener itself, which might last.
const PAUSE: Duration = Duration::from_millis(100);

/// Most questions of one connection that wait for an answer. More are read when there is one.
const PIPELINE: usize = 32;

/// Octets of a message's length.
const LENGTH: usize = 2;

/// Answers on connections to `listener` for good. They end with this future.
pub(crate) async fn serve(network: Arc<Network>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    let retired = network.retired();
    tokio::pin!(retired);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = &mut retired => break,
        };
        match accepted {
            Ok((stream, client)) => {
                // Those beyond the limit are closed at once, so that the client need not wait to
                // learn it.
                if let Some(place) = network.place(client.ip()) {
                    let network = Arc::clone(&network);
                    connections.spawn(async move {
                        let ended = tokio::select! {
                            ended = converse(&network, stream, client.ip(), &place) => ended,
                            () = place.taken() => Ok(()),
                        };
                        if let Err(error) = ended {
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
    while connections.join_next().await.is_some() {}
}

/// Answers questions until the client has no more.
async fn converse(
    network: &Arc<Network>,
    stream: TcpStream,
    client: std::net::IpAddr,
    place: &Place,
) -> io::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    let mut waiting = FuturesUnordered::new();
    let mut buffer = Vec::new();
    let mut has_ended = false;
    let mut deadline = Instant::now() + PATIENCE;
    loop {
        while waiting.len() < PIPELINE
            && let Some(query) = take(&mut buffer)?
        {
            deadline = Instant::now() + PATIENCE;
            match network.handle(&query, Transport::Tcp, client) {
                Step::Ignore => return Ok(()),
                Step::Reply(reply) => write(&mut writer, &reply).await?,
                Step::Forward(forward) => {
                    let network = Arc::clone(network);
                    waiting.push(async move { network.forward(&forward, Transport::Tcp).await });
                }
            }
        }
        place.set_idle(waiting.is_empty());
        if has_ended && waiting.is_empty() {
            return Ok(());
        }
        tokio::select! {
            length = read(&mut reader, &mut buffer), if !has_ended && waiting.len() < PIPELINE => {
                has_ended = length? == 0;
            }
            Some(reply) = waiting.next(), if !waiting.is_empty() => {
                let Some(reply) = reply else { return Ok(()) };
                write(&mut writer, &reply).await?;
                deadline = Instant::now() + PATIENCE;
            }
            () = sleep_until(deadline), if waiting.is_empty() => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// Reads some octets. What was read is in the buffer, should this not be waited for to its end.
async fn read(reader: &mut OwnedReadHalf, buffer: &mut Vec<u8>) -> io::Result<usize> {
    reader.read_buf(buffer).await
}

/// The first message of the buffer, if it is whole.
fn take(buffer: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    let Some(length) = buffer.first_chunk::<LENGTH>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes(*length));
    if length > MAX_QUERY {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the question is too long"));
    }
    if buffer.len() < LENGTH + length {
        return Ok(None);
    }
    let rest = buffer.split_off(LENGTH + length);
    let message = std::mem::replace(buffer, rest).split_off(LENGTH);
    Ok(Some(message))
}

/// One write, so that length and message travel together (RFC 7766, section 8).
async fn write(writer: &mut OwnedWriteHalf, reply: &[u8]) -> io::Result<()> {
    let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
    timeout(PATIENCE, writer.write_all(&[&length.to_be_bytes(), reply].concat())).await?
}
