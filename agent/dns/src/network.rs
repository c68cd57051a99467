//! One network's server: from the octets of a message to the octets of its answer.

use std::{net::IpAddr, sync::Arc};

use hickory_proto::{
    op::{Message, Metadata, ResponseCode},
    rr::{Name, RData, rdata},
};
use rand::seq::SliceRandom;
use tokio::sync::watch;

use crate::{
    exchange::Question,
    forward::Forwarder,
    limits::{Connections, Permit, Place, Waiting},
    lookup::Answer,
    message::{Request, Transport, Unreadable, address_record, bare, encode},
    names::Names,
    status::Counters,
};

/// What is to be done with a message.
pub(crate) enum Step {
    /// Nothing: it is not replied to.
    Ignore,
    /// Send this.
    Reply(Vec<u8>),
    /// The question has to be forwarded: [`Network::forward`].
    Forward(Box<Forward>),
}

/// A question for the host's resolvers.
#[derive(Debug)]
pub(crate) struct Forward {
    request: Request,
    /// The name is a network's own, so that it exists.
    apex: Option<Name>,
    _permit: Permit,
}

/// What all networks' servers have together.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) names: Names,
    pub(crate) forwarder: Forwarder,
    pub(crate) waiting: Arc<Waiting>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) retired: watch::Sender<bool>,
}

/// One network's server, without its sockets.
#[derive(Debug)]
pub(crate) struct Network {
    name: String,
    shared: Arc<Shared>,
    pub(crate) counters: Counters,
}

impl Network {
    pub(crate) fn new(name: &str, shared: Arc<Shared>) -> Self {
        Self { name: name.to_owned(), shared, counters: Counters::default() }
    }

    /// Waits until nothing more is to be taken.
    pub(crate) async fn retired(&self) {
        // The sender lives as long as this.
        let _ = self.shared.retired.subscribe().wait_for(|retired| *retired).await;
    }

    /// A place for a client's connection, if there is one.
    pub(crate) fn place(&self, client: IpAddr) -> Option<Place> {
        self.shared.connections.open(&self.name, self.shared.names.client(client))
    }

    /// Handles one message as far as that needs no waiting.
    pub(crate) fn handle(&self, bytes: &[u8], transport: Transport, client: IpAddr) -> Step {
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
        let Some(view) = self.shared.names.view(&self.name, client) else {
            self.counters.failed.add_one();
            return Self::reply(&request, request.response(ResponseCode::ServFail), transport);
        };
        let message = match view.lookup(request.query.name(), request.query.query_type()) {
            Answer::Addresses(mut addresses) => {
                addresses.shuffle(&mut rand::rng());
                request.positive(addresses.into_iter().map(address_record))
            }
            Answer::Pointer(name) => request.positive([RData::PTR(rdata::PTR(name))]),
            Answer::NoData { apex } => request.negative(ResponseCode::NoError, apex),
            Answer::NoName { apex } => request.negative(ResponseCode::NXDomain, apex),
            Answer::Foreign if view.internal => request.negative(ResponseCode::NXDomain, Name::root()),
            Answer::Apex(apex) if view.internal => request.negative(ResponseCode::NoError, apex),
            Answer::Foreign => return self.admit(request, None, transport, client),
            Answer::Apex(apex) => return self.admit(request, Some(apex), transport, client),
        };
        Self::reply(&request, message, transport)
    }

    /// A question for outside, if its client may ask one more.
    fn admit(&self, request: Request, apex: Option<Name>, transport: Transport, client: IpAddr) -> Step {
        match self.shared.waiting.admit(&self.name, self.shared.names.client(client)) {
            Some(permit) => Step::Forward(Box::new(Forward { request, apex, _permit: permit })),
            None => self.failure(&request, transport).map_or(Step::Ignore, Step::Reply),
        }
    }

    /// The answer to a question that [`Step::Forward`] was said to; SERVFAIL when there is none to
    /// be had.
    pub(crate) async fn forward(&self, forward: &Forward, transport: Transport) -> Option<Vec<u8>> {
        self.counters.forwarded.add_one();
        let request = &forward.request;
        let question = Question {
            query: request.query.clone(),
            recursion_desired: request.metadata.recursion_desired,
            authentic_data: request.metadata.authentic_data,
            checking_disabled: request.metadata.checking_disabled,
            edns: request.edns.as_ref().map(|edns| edns.flags().dnssec_ok),
            transport,
        };
        let Some(reply) = self.shared.forwarder.resolve(question).await else {
            return self.failure(request, transport);
        };
        let limit = request.size_limit(transport);
        if let Some(apex) = &forward.apex
            && reply.metadata.response_code == ResponseCode::NXDomain
        {
            return encode(request.negative(ResponseCode::NoError, apex.clone()), limit, transport);
        }
        encode(request.passed_on(Message::clone(&reply)), limit, transport)
    }

    /// The answer to a question that cannot be answered now.
    fn failure(&self, request: &Request, transport: Transport) -> Option<Vec<u8>> {
        self.counters.failed.add_one();
        encode(request.response(ResponseCode::ServFail), request.size_limit(transport), transport)
    }

    fn error(&self, metadata: Metadata, code: ResponseCode, transport: Transport) -> Step {
        tracing::trace!(network = self.name, %code, "not a question");
        encode(bare(metadata, code), usize::from(u16::MAX), transport).map_or(Step::Ignore, Step::Reply)
    }

    fn reply(request: &Request, message: Message, transport: Transport) -> Step {
        encode(message, request.size_limit(transport), transport).map_or(Step::Ignore, Step::Reply)
    }
}
