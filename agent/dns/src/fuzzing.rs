//! Entry points for the fuzz targets in `tests/fuzz`.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, rdata};

use crate::message::{self, Request, Transport, Unreadable};

/// Reads a query and writes the refusal, the negative answer and an answer with a record.
pub fn query(bytes: &[u8]) {
    let request = match Request::read(bytes) {
        Ok(request) => request,
        Err(Unreadable::Silence) => return,
        Err(Unreadable::Code(metadata, code)) => {
            let _ = message::encode(message::bare(metadata, code), 512, Transport::Udp);
            return;
        }
    };
    for transport in [Transport::Udp, Transport::Tcp] {
        let limit = request.size_limit(transport);
        let code = request.refusal().unwrap_or(ResponseCode::NXDomain);
        let record = RData::A(rdata::A::new(10, 64, 0, 2));
        let answers = [
            request.response(code),
            request.negative(code, Name::root()),
            request.positive(std::iter::repeat_n(record, 100)),
        ];
        for answer in answers {
            if let Some(bytes) = message::encode(answer, limit, transport) {
                assert!(bytes.len() <= limit, "an answer is longer than its limit");
            }
        }
    }
}
