//! The host's own resolvers.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    path::PathBuf,
    time::Duration,
};

use nix::net::if_::if_nametoindex;
use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::watch, time::Instant};

use crate::zone::Zones;

/// The file is read again when it was read longer ago than this and a question is to be forwarded.
const REREAD: Duration = Duration::from_secs(1);

/// How long a resolver that did not answer is tried after all others.
const DISTRUST: Duration = Duration::from_secs(10);

/// Where resolvers listen.
const PORT: u16 = 53;

/// The resolvers of a resolv.conf, followed as it changes, without our own addresses.
#[derive(Debug)]
pub(crate) struct Upstreams {
    resolv_conf: PathBuf,
    zones: watch::Receiver<Zones>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    read_at: Option<Instant>,
    resolvers: Vec<SocketAddr>,
    silent_since: HashMap<SocketAddr, Instant>,
    answered_at: HashMap<SocketAddr, Instant>,
}

impl Upstreams {
    /// Reads the file once: by the time of the first question the process may have no right to.
    pub(crate) fn new(resolv_conf: PathBuf, zones: watch::Receiver<Zones>) -> Self {
        let first = std::fs::read(&resolv_conf).unwrap_or_default();
        let resolvers = nameservers(&String::from_utf8_lossy(&first));
        Self { resolv_conf, zones, state: Mutex::new(State { resolvers, ..State::default() }) }
    }

    /// The resolvers in the file's order, those last that did not answer lately.
    pub(crate) async fn in_order(&self) -> Vec<SocketAddr> {
        if self.state().read_at.is_none_or(|read_at| read_at.elapsed() >= REREAD) {
            let read = tokio::fs::read(&self.resolv_conf).await;
            let mut state = self.state();
            state.read_at = Some(Instant::now());
            match read {
                Ok(bytes) => {
                    state.resolvers = nameservers(&String::from_utf8_lossy(&bytes));
                    let State { resolvers, answered_at, .. } = &mut *state;
                    answered_at.retain(|resolver, _| resolvers.contains(resolver));
                }
                // The former resolvers stay in use while the file is replaced.
                Err(error) => tracing::debug!(
                    path = %self.resolv_conf.display(),
                    %error,
                    "the resolvers cannot be read"
                ),
            }
        }
        let mut state = self.state();
        state.silent_since.retain(|_, since| since.elapsed() < DISTRUST);
        let zones = self.zones.borrow();
        let ours = |resolver: &SocketAddr| zones.gateways().any(|gateway| gateway == resolver.ip());
        let mut resolvers: Vec<SocketAddr> =
            state.resolvers.iter().filter(|resolver| !ours(resolver)).copied().collect();
        resolvers.sort_by_key(|resolver| state.silent_since.contains_key(resolver));
        resolvers
    }

    /// Notes that a resolver did not answer a question of then. One that has answered others since
    /// is not silent: some names take their time.
    pub(crate) fn record_silence(&self, resolver: SocketAddr, asked_at: Instant) {
        let mut state = self.state();
        if state.answered_at.get(&resolver).is_none_or(|answered_at| *answered_at < asked_at) {
            state.silent_since.insert(resolver, Instant::now());
        }
    }

    /// Notes that a resolver answered.
    pub(crate) fn answered(&self, resolver: SocketAddr) {
        let mut state = self.state();
        state.silent_since.remove(&resolver);
        state.answered_at.insert(resolver, Instant::now());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// The `nameserver` lines of a resolv.conf (resolv.conf(5)), each resolver once. Lines that cannot
/// be read are skipped.
fn nameservers(text: &str) -> Vec<SocketAddr> {
    let mut resolvers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() == Some("nameserver")
            && let Some(resolver) = words.next().and_then(resolver)
            && !resolvers.contains(&resolver)
        {
            resolvers.push(resolver);
        }
    }
    resolvers
}

/// An address; a link-local one may have its interface after a `%`.
fn resolver(text: &str) -> Option<SocketAddr> {
    let (address, interface) = text.split_once('%').map_or((text, None), |(a, i)| (a, Some(i)));
    match (address.parse().ok()?, interface) {
        (IpAddr::V6(v6), Some(interface)) => {
            let scope = interface.parse().ok().or_else(|| if_nametoindex(interface).ok())?;
            Some(SocketAddrV6::new(v6, PORT, 0, scope).into())
        }
        (address, None) => Some(SocketAddr::new(address, PORT)),
        (IpAddr::V4(_), Some(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::zone::Zone;

    fn upstreams(text: &str, gateway: &str) -> (tempfile::NamedTempFile, Upstreams) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, text).unwrap();
        let zone = Zone { gateways: vec![gateway.parse().unwrap()], ..Zone::default() };
        let zones = Zones { networks: [("app".into(), Arc::new(zone))].into(), ..Zones::default() };
        let upstreams = Upstreams::new(file.path().into(), watch::channel(zones).1);
        (file, upstreams)
    }

    fn texts(resolvers: &[SocketAddr]) -> Vec<String> {
        resolvers.iter().map(|resolver| resolver.ip().to_string()).collect()
    }

    #[test]
    fn only_what_names_a_resolver_is_taken_from_resolv_conf() {
        let text = "# nameserver 9.9.9.9\nsearch lan\nnameserver\t192.0.2.1 # first\nnameserver 2001:db8::1\n\
                    nameserver nonsense\nnameservers 9.9.9.9\nnameserver 192.0.2.1\nnameserver fe80::1%7\nnameserver 10.0.0.1%lo";
        let found = nameservers(text);
        assert_eq!(
            found,
            [
                "192.0.2.1:53".parse().unwrap(),
                "[2001:db8::1]:53".parse().unwrap(),
                SocketAddrV6::new("fe80::1".parse().unwrap(), 53, 0, 7).into(),
            ]
        );
    }

    #[tokio::test]
    async fn our_own_gateways_are_never_asked() {
        let (_file, upstreams) = upstreams("nameserver 10.64.0.1\nnameserver 192.0.2.1", "10.64.0.1");
        assert_eq!(texts(&upstreams.in_order().await), ["192.0.2.1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_resolver_that_did_not_answer_is_tried_last_for_a_while() {
        let (_file, upstreams) = upstreams("nameserver 192.0.2.1\nnameserver 192.0.2.2", "10.64.0.1");
        upstreams.record_silence("192.0.2.1:53".parse().unwrap(), Instant::now());
        assert_eq!(texts(&upstreams.in_order().await), ["192.0.2.2", "192.0.2.1"]);
        tokio::time::advance(DISTRUST).await;
        assert_eq!(texts(&upstreams.in_order().await), ["192.0.2.1", "192.0.2.2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_resolver_that_answers_others_is_not_silent_for_one_slow_name() {
        let (_file, upstreams) = upstreams("nameserver 192.0.2.1\nnameserver 192.0.2.2", "10.64.0.1");
        let (first, asked_at) = ("192.0.2.1:53".parse().unwrap(), Instant::now());
        tokio::time::advance(Duration::from_millis(100)).await;
        upstreams.answered(first);
        upstreams.record_silence(first, asked_at);
        assert_eq!(texts(&upstreams.in_order().await), ["192.0.2.1", "192.0.2.2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_is_followed_and_a_missing_one_changes_nothing() {
        let (file, upstreams) = upstreams("nameserver 192.0.2.1", "10.64.0.1");
        assert_eq!(texts(&upstreams.in_order().await), ["192.0.2.1"]);
        std::fs::write(&file, "nameserver 192.0.2.2").unwrap();
        tokio::time::advance(REREAD).await;
        assert_eq!(texts(&upstreams.in_order().await), ["192.0.2.2"]);
        file.close().unwrap();
        tokio::time::advance(REREAD).await;
        assert_eq!(texts(&upstreams.in_order().await), ["192.0.2.2"]);
    }
}
