//! A host of an encrypted network whose address changes while it keeps sending.

use std::net::{Ipv4Addr, SocketAddr};

use mesh_e2e::encrypted::{WIREGUARD, encrypted_lab, is_only_wireguard};
use mesh_e2e::{PATIENCE, json, underlay_capture};
use mesh_harness::traffic::Connection;
use mesh_harness::{Host, Result, eventually};

const PORT: u16 = 80;
const MOVED: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 112);

/// Returns the endpoint that `host` uses for the cluster's other host.
fn endpoint_of_the_other(host: &Host) -> Result<String> {
    let own = json(host, &["node", "inspect", host.name()])?;
    let peers = own["wireguard"]["peers"].as_array().expect("a list of peers").clone();
    Ok(peers[0]["endpoint"].as_str().expect("an address").to_owned())
}

#[test]
fn a_peer_is_answered_at_its_current_address_and_keeps_its_connections() -> Result<()> {
    let (lab, c) = encrypted_lab(2)?;
    let capture = underlay_capture(&lab)?;
    let (host, home) = (lab.host(2), lab.host(2).address());
    let _servers = [c[0].serve(PORT)?, c[1].serve(PORT)?];
    let [stays, moves] =
        [SocketAddr::new(c[0].ipv4()?.into(), PORT), SocketAddr::new(c[1].ipv4()?.into(), PORT)];
    let mut from_it = Connection::open(c[1].netns(), stays)?;
    let mut to_it = Connection::open(c[0].netns(), moves)?;
    from_it.ask()?;
    to_it.ask()?;
    for (from, to) in [(home, MOVED), (MOVED, home)] {
        host.remove_address(from)?;
        host.add_address(to)?;
        // Its own packets reveal its address.
        from_it.ask()?;
        to_it.ask()?;
        eventually("the peer is known to be there", PATIENCE, || {
            endpoint_of_the_other(&lab.host(1)).is_ok_and(|endpoint| endpoint == format!("{to}:{WIREGUARD}"))
        })?;
        c[0].ping(moves.ip())?.all_answered()?;
        Connection::open(c[0].netns(), moves)?.download(1 << 24)?;
        Connection::open(c[1].netns(), stays)?.download(1 << 24)?;
    }
    is_only_wireguard(&capture.stop()?);
    Ok(())
}
