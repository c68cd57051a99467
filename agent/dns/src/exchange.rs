//! One question to one resolver.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use hickory_proto::{
    op::{Header, Message, MessageType, OpCode, Query},
    serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, UdpSocket},
    time::{Instant, interval_at},
};

use crate::marked;
use crate::message::{HEADER_SIZE, Transport, edns};

/// When a datagram is sent again that was not answered.
const AGAIN: Duration = Duration::from_secs(2);

/// A question as it is sent to resolvers. EDNS is between neighbours (RFC 6891, section 6.2.6), so
/// the client's options stay here; what changes the answer is kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    pub(crate) query: Query,
    pub(crate) recursion_desired: bool,
    pub(crate) authentic_data: bool,
    pub(crate) checking_disabled: bool,
    /// With EDNS, and then whether DNSSEC records are wanted.
    pub(crate) edns: Option<bool>,
    pub(crate) transport: Transport,
}

impl Question {
    fn message(&self, id: u16) -> io::Result<Vec<u8>> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.authentic_data = self.authentic_data;
        message.metadata.checking_disabled = self.checking_disabled;
        message.add_query(self.query.clone());
        if let Some(dnssec_ok) = self.edns {
            message.set_edns(edns(dnssec_ok));
        }
        message.to_vec().map_err(io::Error::other)
    }

    /// Asks one resolver, with an id and a source port that cannot be guessed. Without a time-out
    /// of its own.
    pub(crate) async fn query(&self, resolver: SocketAddr) -> io::Result<Message> {
        let id = rand::random();
        let message = self.message(id)?;
        let question = question_octets(&self.query)?;
        let is_answer = |reply: &[u8]| answers(reply, id, &question);
        let reply = match self.transport {
            Transport::Udp => query_udp(resolver, &message, is_answer).await,
            Transport::Tcp => query_tcp(resolver, &message, is_answer).await,
        };
        read(&reply?, &self.query)
    }
}

/// Reads a resolver's answer whole: nothing that cannot be read is passed on, and what is passed on
/// is written anew. Of an answer that is cut off, that is all that counts.
fn read(reply: &[u8], query: &Query) -> io::Result<Message> {
    match Message::from_vec(reply) {
        Ok(message) => Ok(message),
        Err(error) => {
            let header = Header::read(&mut BinDecoder::new(reply)).map_err(malformed)?;
            if !header.metadata.truncation {
                return Err(malformed(error));
            }
            let mut message = Message::response(header.metadata.id, OpCode::Query);
            message.metadata = header.metadata;
            message.add_query(query.clone());
            Ok(message)
        }
    }
}

fn malformed(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

async fn query_udp(
    resolver: SocketAddr,
    message: &[u8],
    is_answer: impl Fn(&[u8]) -> bool,
) -> io::Result<Vec<u8>> {
    let any = match resolver {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any).await?;
    // Connected: the kernel drops packets of others, and reports closed ports.
    let mark = marked::towards(&socket, resolver.ip());
    let connected = socket.connect(resolver).await;
    marked::end(&socket, mark);
    connected?;
    socket.send(message).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    let mut again = interval_at(Instant::now() + AGAIN, AGAIN);
    loop {
        // Datagrams get lost, and an answer to either is one.
        let length = tokio::select! {
            length = socket.recv(&mut buffer) => length?,
            _ = again.tick() => {
                socket.send(message).await?;
                continue;
            }
        };
        if is_answer(&buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn query_tcp(
    resolver: SocketAddr,
    message: &[u8],
    is_answer: impl Fn(&[u8]) -> bool,
) -> io::Result<Vec<u8>> {
    let socket = match resolver {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    let mark = marked::towards(&socket, resolver.ip());
    let mut stream = socket.connect(resolver).await?;
    marked::end(&stream, mark);
    // A question is some hundred octets at most.
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await?;
    if is_answer(&buffer) {
        Ok(buffer)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "the reply is not to the question"))
    }
}

/// A question's octets where it is the first in its message: its name, then its type and class.
fn question_octets(query: &Query) -> io::Result<Vec<u8>> {
    let mut octets = Vec::new();
    query.emit(&mut BinEncoder::new(&mut octets)).map_err(io::Error::other)?;
    Ok(octets)
}

/// Octets of a question's type and class.
const TYPE_AND_CLASS: usize = 4;

/// Returns whether `reply` is a response to `question`; case is ignored.
fn answers(reply: &[u8], id: u16, question: &[u8]) -> bool {
    let name = question.len() - TYPE_AND_CLASS;
    reply.len() >= HEADER_SIZE + question.len()
        && reply[..2] == id.to_be_bytes()
        && reply[2] & 0x80 != 0
        && reply[4..6] == [0, 1]
        && reply[HEADER_SIZE..][..name].eq_ignore_ascii_case(&question[..name])
        && reply[HEADER_SIZE..][name..question.len()] == question[name..]
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::ResponseCode,
        rr::{Name, RecordType},
    };

    use super::*;

    fn query(name: &str) -> Query {
        Query::query(Name::from_ascii(name).unwrap(), RecordType::A)
    }

    fn reply(id: u16, query: Query) -> Vec<u8> {
        let mut message = Message::response(id, OpCode::Query);
        message.metadata.response_code = ResponseCode::Refused;
        message.add_query(query);
        message.to_vec().unwrap()
    }

    #[test]
    fn only_a_response_with_the_id_and_the_question_is_an_answer() {
        let question = question_octets(&query("Www.example.com.")).unwrap();
        let good = reply(7, query("wWW.example.com."));
        assert!(answers(&good, 7, &question));
        assert!(!answers(&good, 8, &question));
        assert!(!answers(&reply(7, query("www.example.org.")), 7, &question));
        let mut other_type = query("www.example.com.");
        other_type.set_query_type(RecordType::AAAA);
        assert!(!answers(&reply(7, other_type), 7, &question));
        let mut no_response = good.clone();
        no_response[2] &= 0x7f;
        assert!(!answers(&no_response, 7, &question));
        for length in 0..good.len() {
            assert!(!answers(&good[..length], 7, &question));
        }
    }

    #[test]
    fn an_answer_that_cannot_be_read_is_none_and_one_that_is_cut_off_says_that() {
        let query = query("www.example.com.");
        let mut bytes = reply(7, query.clone());
        assert_eq!(read(&bytes, &query).unwrap().metadata.response_code, ResponseCode::Refused);
        // One answer, whose name points to itself.
        bytes[7] = 1;
        let at = u8::try_from(bytes.len()).unwrap();
        bytes.extend([0xc0, at, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 192, 0, 2, 1]);
        assert_eq!(read(&bytes, &query).unwrap_err().kind(), io::ErrorKind::InvalidData);
        bytes[2] |= 0x02;
        let cut = read(&bytes, &query).unwrap();
        assert!(cut.metadata.truncation && cut.answers.is_empty());
    }
}
