//! One way from a client to servers behind an address.

use std::net::{Ipv4Addr, SocketAddr};

use mesh_harness::{Lab, Netns};
use serde::Serialize;

use super::ports;
use crate::{
    instruments::{connect_rate, download_rate, ping_pong, udp_blast},
    stats::Samples,
};

/// One variant and what was measured of it.
pub(super) struct Path {
    pub(super) name: &'static str,
    pub(super) client: Netns,
    /// What the client calls.
    pub(super) address: Ipv4Addr,
    /// What the variant adds to every port.
    pub(super) offset: u16,
    /// Whether it carries datagrams at all.
    pub(super) datagrams: bool,
    /// Where datagrams arrive.
    pub(super) receivers: Vec<Netns>,
    pub(super) results: Results,
}

/// Medians are what counts; all samples are kept.
#[derive(Debug, Default, Serialize)]
pub(super) struct Results {
    pub(super) tcp_latency_us: Samples,
    pub(super) connects_per_s: Samples,
    pub(super) udp_sent_kpps: Samples,
    pub(super) udp_received_kpps: Samples,
    pub(super) download_gbit_s: Samples,
    pub(super) download_gbit_s_no_offloads: Samples,
}

impl Path {
    pub(super) fn new(name: &'static str, client: &Netns, address: Ipv4Addr, receivers: &[Netns]) -> Self {
        Self {
            name,
            client: client.clone(),
            address,
            offset: 0,
            datagrams: true,
            receivers: receivers.to_vec(),
            results: Results::default(),
        }
    }

    /// By a proxy that carries TCP only, on ports of its own.
    pub(super) fn by_tcp_proxy(mut self, offset: u16) -> Self {
        self.offset = offset;
        self.datagrams = false;
        self
    }

    pub(super) fn measure(&mut self, lab: &Lab, seconds: u32) -> anyhow::Result<()> {
        let (address, results) = (self.address.to_string(), &mut self.results);
        let port = (ports::PING_PONG + self.offset).to_string();
        results.tcp_latency_us.push(ping_pong(&self.client, &address, &port, seconds)?);
        let web = SocketAddr::new(self.address.into(), ports::WEB + self.offset);
        results.connects_per_s.push(connect_rate(&self.client, web, seconds)?);
        if self.datagrams {
            let port = ports::DATAGRAMS.to_string();
            let rate = udp_blast(&self.client, &address, &port, seconds, &self.receivers)?;
            results.udp_sent_kpps.push(rate.sent);
            results.udp_received_kpps.push(rate.received);
        }
        results.download_gbit_s.push(download_rate(&self.client, web, seconds)?);
        lab.set_underlay_offloads(false)?;
        let rate = download_rate(&self.client, web, seconds);
        lab.set_underlay_offloads(true)?;
        results.download_gbit_s_no_offloads.push(rate?);
        Ok(())
    }
}
