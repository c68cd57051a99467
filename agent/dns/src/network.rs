//! One network's server: from the octets of a message to the octets of its answer.

use std::sync::{Arc, Mutex, PoisonError};

use hickory_proto::{
    op::{Metadata, ResponseCode},
    rr::{Name, RData, rdata},
};
use rand::seq::SliceRandom;
use tokio::sync::{Semaphore, watch};

use crate::{
    exchange::Question,
    forward::Forwarder,
    lookup::{Answer, Index},
    message::{Request, Transport, Unreadable, address_record, bare, encode},
    status::Counters,
    upstreams::Upstreams,
    zone::{Zone, Zones},
};

/// Most TCP connections of one network.
const MAX_CONNECTIONS: usize = 128;

/// What is to be done with a message.
pub(crate) enum Step {
    /// Nothing: it is not replied to.
    Ignore,
    /// Send this.
    Reply(Vec<u8>),
    /// The answer is to be had from outside: [`Network::forward`].
    Forward(Box<Request>),
}

/// One network's server, whatever sockets it has.
#[derive(Debug)]
pub(crate) struct Network {
    name: String,
    zones: watch::Receiver<Zones>,
    index: Mutex<Option<Indexed>>,
    forwarder: Forwarder,
    pub(crate) counters: Counters,
    pub(crate) connections: Arc<Semaphore>,
}

#[derive(Debug)]
struct Indexed {
    zone: Arc<Zone>,
    index: Arc<Index>,
}

impl Network {
    pub(crate) fn new(name: &str, zones: watch::Receiver<Zones>, upstreams: Arc<Upstreams>) -> Self {
        Self {
            name: name.to_owned(),
            zones,
            index: Mutex::default(),
            forwarder: Forwarder::new(upstreams),
            counters: Counters::default(),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        }
    }

    /// Handles one message as far as that needs no waiting.
    pub(crate) fn handle(&self, bytes: &[u8], transport: Transport) -> Step {
        let request = match Request::read(bytes) {
            Ok(request) => request,
            Err(unreadable) => {
                self.counters.malformed.add_one();
                return match unreadable {
                    Unreadable::Silence => Step::Ignore,
                    Unreadable::Code(metadata, code) => self.error(metadata, code, transport),
                };
            }
        };
        self.counters.queries.add_one();
        if let Some(code) = request.refusal() {
            return Self::reply(&request, request.response(code), transport);
        }
        let Some((zone, index)) = self.index() else {
            self.counters.failed.add_one();
            return Self::reply(&request, request.response(ResponseCode::ServFail), transport);
        };
        let message = match index.lookup(request.query.name(), request.query.query_type()) {
            Answer::Addresses(mut addresses) => {
                addresses.shuffle(&mut rand::rng());
                request.positive(addresses.into_iter().map(address_record))
            }
            Answer::Pointer(name) => request.positive([RData::PTR(rdata::PTR(name))]),
            Answer::NoData { apex } => request.negative(ResponseCode::NoError, apex),
            Answer::NoName { apex } => request.negative(ResponseCode::NXDomain, apex),
            Answer::Foreign if zone.internal => request.negative(ResponseCode::NXDomain, Name::root()),
            Answer::Foreign => return Step::Forward(Box::new(request)),
        };
        Self::reply(&request, message, transport)
    }

    /// The answer to a question that [`Step::Forward`] was said to; SERVFAIL when there is none to be had.
    pub(crate) async fn forward(&self, request: &Request, transport: Transport) -> Option<Vec<u8>> {
        self.counters.forwarded.add_one();
        let question = Question {
            query: request.query.clone(),
            recursion_desired: request.metadata.recursion_desired,
            authentic_data: request.metadata.authentic_data,
            checking_disabled: request.metadata.checking_disabled,
            edns: request.edns.as_ref().map(|edns| edns.flags().dnssec_ok),
            transport,
        };
        let Some(reply) = self.forwarder.resolve(&question).await else {
            return self.failure(request, transport);
        };
        let limit = request.size_limit(transport);
        let bytes = reply.readdressed(request.metadata.id, &request.query)?;
        if bytes.len() <= limit {
            return Some(bytes);
        }
        let mut truncated = request.response(ResponseCode::NoError);
        truncated.metadata.truncation = true;
        encode(truncated, limit, transport)
    }

    /// The answer to a question that cannot be answered now.
    pub(crate) fn failure(&self, request: &Request, transport: Transport) -> Option<Vec<u8>> {
        self.counters.failed.add_one();
        encode(request.response(ResponseCode::ServFail), request.size_limit(transport), transport)
    }

    fn error(&self, metadata: Metadata, code: ResponseCode, transport: Transport) -> Step {
        tracing::trace!(network = self.name, %code, "not a question");
        encode(bare(metadata, code), usize::from(u16::MAX), transport).map_or(Step::Ignore, Step::Reply)
    }

    fn reply(request: &Request, message: hickory_proto::op::Message, transport: Transport) -> Step {
        encode(message, request.size_limit(transport), transport).map_or(Step::Ignore, Step::Reply)
    }

    /// The network's zone as it is now, ready to be asked; `None` while there is none.
    fn index(&self) -> Option<(Arc<Zone>, Arc<Index>)> {
        let zone = self.zones.borrow().networks.get(&self.name).cloned()?;
        // An index that a panic left there is whole: it is replaced by assignment only.
        let mut indexed = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let index = match &*indexed {
            Some(known) if Arc::ptr_eq(&known.zone, &zone) => Arc::clone(&known.index),
            former => {
                let former = former.as_ref().map(|former| &*former.index);
                let index = Arc::new(Index::following(former, &self.name, &zone));
                *indexed = Some(Indexed { zone: Arc::clone(&zone), index: Arc::clone(&index) });
                index
            }
        };
        Some((zone, index))
    }
}
