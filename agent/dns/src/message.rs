//! Questions read from the wire and answers written to it.

use std::net::IpAddr;

use hickory_proto::{
    op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType, rdata},
    serialize::binary::{BinDecodable, BinDecoder},
};

/// Time to live of all answers, in seconds.
pub const TTL: u32 = 1;

/// Most octets of an answer over UDP. Larger ones get lost where fragments do (DNS flag day 2020).
const MAX_UDP_SIZE: u16 = 1232;

/// Octets of a message's header (RFC 1035, section 4.1.1), after which the first question's name
/// begins.
pub(crate) const HEADER_SIZE: usize = 12;

/// Least octets of an answer's record: a pointer for its name, type, class, time to live, length.
const MIN_RECORD_SIZE: usize = 12;

/// How a message travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// One well-formed question.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) metadata: Metadata,
    pub(crate) query: Query,
    pub(crate) edns: Option<Edns>,
}

/// Why a message is not a question to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// Not to be replied to: less than a header, or a response, which might begin a loop.
    Silence,
    /// To be replied to with nothing but this code.
    Code(Metadata, ResponseCode),
}

impl Request {
    /// Reads a message that came in.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Unreadable> {
        let header = Header::read(&mut BinDecoder::new(bytes)).map_err(|_| Unreadable::Silence)?;
        let metadata = header.metadata;
        if metadata.message_type == MessageType::Response {
            return Err(Unreadable::Silence);
        }
        if metadata.op_code != OpCode::Query {
            return Err(Unreadable::Code(metadata, ResponseCode::NotImp));
        }
        let malformed = Unreadable::Code(metadata, ResponseCode::FormErr);
        if header.counts.queries != 1 || header.counts.answers != 0 {
            return Err(malformed);
        }
        let mut message = Message::from_vec(bytes).map_err(|_| malformed)?;
        let query = message.queries.pop().ok_or(malformed)?;
        Ok(Self { metadata, query, edns: message.edns })
    }

    /// Most octets of an answer.
    pub(crate) fn size_limit(&self, transport: Transport) -> usize {
        match transport {
            Transport::Tcp => usize::from(u16::MAX),
            Transport::Udp => {
                let announced = self.edns.as_ref().map_or(0, Edns::max_payload);
                // RFC 6891, section 6.2.5: less than 512 is taken as 512.
                usize::from(announced.clamp(512, MAX_UDP_SIZE))
            }
        }
    }

    /// Why the question is refused for any name.
    pub(crate) fn refusal(&self) -> Option<ResponseCode> {
        if self.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            Some(ResponseCode::BADVERS)
        } else if self.query.query_class() != DNSClass::IN
            || matches!(self.query.query_type(), RecordType::AXFR | RecordType::IXFR)
        {
            Some(ResponseCode::Refused)
        } else {
            None
        }
    }

    /// An answer without records.
    pub(crate) fn response(&self, code: ResponseCode) -> Message {
        let mut message = bare(self.metadata, code);
        message.add_query(self.query.clone());
        if let Some(asked) = &self.edns {
            message.set_edns(edns(asked.flags().dnssec_ok));
        }
        message
    }

    /// A resolver's answer to the same question, written as ours to this one: with its id, in its
    /// spelling.
    pub(crate) fn passed_on(&self, mut reply: Message) -> Message {
        reply.metadata.id = self.metadata.id;
        reply.metadata.message_type = MessageType::Response;
        reply.metadata.op_code = OpCode::Query;
        reply.metadata.recursion_desired = self.metadata.recursion_desired;
        let name = self.query.name();
        for record in reply.answers.iter_mut().filter(|record| record.name == *name) {
            record.name.clone_from(name);
        }
        reply.queries = vec![self.query.clone()];
        // EDNS is between neighbours, and so are signatures of transactions.
        reply.edns = self.edns.as_ref().map(|asked| edns(asked.flags().dnssec_ok));
        reply.signature = None;
        reply
    }

    /// An answer of ours with records of the question's name.
    pub(crate) fn positive(&self, records: impl IntoIterator<Item = RData>) -> Message {
        let mut message = self.response(ResponseCode::NoError);
        message.metadata.authoritative = true;
        message.add_answers(
            records.into_iter().map(|data| Record::from_rdata(self.query.name().clone(), TTL, data)),
        );
        message
    }

    /// An answer of ours that there is none: with `NoError` of this type, with `NXDomain` of any.
    /// `apex` is the zone that says so (RFC 2308, section 2).
    pub(crate) fn negative(&self, code: ResponseCode, apex: Name) -> Message {
        let mut message = self.response(code);
        message.metadata.authoritative = true;
        // Refresh, retry and expire are for secondary servers, of which there are none.
        let soa = rdata::SOA::new(apex.clone(), Name::root(), 1, 3600, 600, 86400, TTL);
        message.add_authority(Record::from_rdata(apex, TTL, RData::SOA(soa)));
        message
    }
}

/// The address record for an address.
pub(crate) fn address_record(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(v4) => RData::A(v4.into()),
        IpAddr::V6(v6) => RData::AAAA(v6.into()),
    }
}

/// What we say of ourselves by EDNS.
pub(crate) fn edns(dnssec_ok: bool) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_UDP_SIZE).set_dnssec_ok(dnssec_ok);
    edns
}

/// A response that repeats nothing of the question but its id and flags.
pub(crate) fn bare(request: Metadata, code: ResponseCode) -> Message {
    let mut message = Message::response(request.id, request.op_code);
    message.metadata = Metadata::response_from_request(&request);
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message
}

/// Writes a message in at most `limit` octets. Answers that do not fit are left out: over UDP the
/// message says so, and the client asks again over TCP; there, what fits is the answer. `None` if
/// not even the question fits.
pub(crate) fn encode(mut message: Message, limit: usize, transport: Transport) -> Option<Vec<u8>> {
    let whole = message.answers.len();
    if whole <= limit / MIN_RECORD_SIZE
        && let Some(bytes) = encode_whole(&message, limit)
    {
        return Some(bytes);
    }
    message.metadata.truncation = transport == Transport::Udp;
    message.authorities.clear();
    message.additionals.clear();
    let answers = std::mem::take(&mut message.answers);
    let mut best = None;
    // Fewer than `fitting` fit, `too_many` do not.
    let (mut fitting, mut too_many) = (0, whole.min(limit / MIN_RECORD_SIZE + 1).max(1));
    while fitting < too_many {
        let count = usize::midpoint(fitting, too_many);
        message.answers = answers[..count].to_vec();
        if let Some(bytes) = encode_whole(&message, limit) {
            best = Some(bytes);
            fitting = count + 1;
        } else {
            too_many = count;
        }
    }
    best
}

/// Writes all of a message, if that takes at most `limit` octets.
fn encode_whole(message: &Message, limit: usize) -> Option<Vec<u8>> {
    let bytes = message.to_vec().ok()?;
    // More than 64 KiB make the library leave records out, and say so.
    let left_out =
        Header::read(&mut BinDecoder::new(&bytes)).ok()?.metadata.truncation && !message.metadata.truncation;
    (bytes.len() <= limit && !left_out).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn request(name: &str, max_payload: Option<u16>) -> Request {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        if let Some(size) = max_payload {
            let mut edns = Edns::new();
            edns.set_max_payload(size);
            message.set_edns(edns);
        }
        Request::read(&message.to_vec().unwrap()).unwrap()
    }

    fn many(count: u32) -> impl Iterator<Item = RData> {
        (0..count).map(|n| address_record(Ipv4Addr::from(0x0a00_0000 + n).into()))
    }

    #[test]
    fn a_udp_answer_keeps_to_what_the_client_takes_and_never_exceeds_1232_octets() {
        for (announced, limit) in [(None, 512), (Some(100), 512), (Some(800), 800), (Some(65535), 1232)] {
            let request = request("web.app.", announced);
            assert_eq!(request.size_limit(Transport::Udp), limit);
            let bytes = encode(request.positive(many(1000)), limit, Transport::Udp).unwrap();
            let read = Message::from_vec(&bytes).unwrap();
            assert!(bytes.len() <= limit && bytes.len() > limit - 40, "{} of {limit}", bytes.len());
            assert!(read.metadata.truncation);
            assert_eq!(read.edns.is_some(), announced.is_some(), "EDNS is answered with EDNS");
        }
    }

    #[test]
    fn an_answer_over_tcp_is_whole_and_a_part_without_a_flag_where_no_message_could_hold_it() {
        let request = request("web.app.", None);
        let limit = request.size_limit(Transport::Tcp);
        let read = |count| {
            Message::from_vec(&encode(request.positive(many(count)), limit, Transport::Tcp).unwrap()).unwrap()
        };
        let whole = read(1000);
        assert_eq!((whole.answers.len(), whole.metadata.truncation), (1000, false));
        let part = read(10_000);
        assert!((2000..5000).contains(&part.answers.len()), "{}", part.answers.len());
        assert!(!part.metadata.truncation);
    }

    #[test]
    fn a_message_with_no_question_or_several_is_malformed_and_a_response_is_not_answered() {
        let query = || Query::query(Name::from_ascii("a.").unwrap(), RecordType::A);
        let read = |message: &Message| Request::read(&message.to_vec().unwrap());
        let mut message = Message::query();
        assert!(matches!(read(&message), Err(Unreadable::Code(_, ResponseCode::FormErr))));
        message.add_queries([query(), query()]);
        assert!(matches!(read(&message), Err(Unreadable::Code(_, ResponseCode::FormErr))));
        message.queries.pop();
        assert!(read(&message).is_ok());
        message.metadata.op_code = OpCode::Notify;
        assert!(matches!(read(&message), Err(Unreadable::Code(_, ResponseCode::NotImp))));
        message.metadata.message_type = MessageType::Response;
        assert_eq!(read(&message).unwrap_err(), Unreadable::Silence);
    }

    #[test]
    fn names_that_point_to_themselves_are_malformed() {
        // id 1, one question; its name is a pointer to itself, to the next octet, and beyond the
        // end.
        for pointer in [12_u8, 13, 200] {
            let mut bytes = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            bytes.extend([0xc0, pointer, 0, 1, 0, 1]);
            assert!(matches!(Request::read(&bytes), Err(Unreadable::Code(_, ResponseCode::FormErr))));
        }
    }

    proptest! {
        #[test]
        fn whatever_can_be_read_can_be_answered_within_its_limit(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..700),
            plausible in any::<bool>(),
        ) {
            if plausible && bytes.len() > HEADER_SIZE {
                bytes[2] &= 0x07;
                bytes[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
            }
            if let Ok(request) = Request::read(&bytes) {
                let limit = request.size_limit(Transport::Udp);
                let reply = encode(request.positive(many(100)), limit, Transport::Udp);
                prop_assert!(reply.is_some_and(|reply| reply.len() <= limit));
                let reply = encode(request.negative(ResponseCode::NXDomain, Name::root()), limit, Transport::Udp);
                prop_assert!(reply.is_some_and(|reply| reply.len() <= limit));
            }
        }
    }
}
