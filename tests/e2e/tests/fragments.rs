//! Datagrams in fragments that do not arrive in order.

use std::net::{IpAddr, SocketAddr};

use mesh_e2e::service::{vip, vip6, web};
use mesh_e2e::{PATIENCE, create_network};
use mesh_harness::traffic::{UdpClient, WebServer, send_fragments};
use mesh_harness::{Encapsulation, Lab, Netns, Result, eventually};

/// Larger than the tunnel's MTU.
const LENGTH: usize = 4000;

/// Sends a fragmented datagram in several orders, until each backend has answered each order.
fn ask_in_disorder(netns: &Netns, target: SocketAddr, backends: &[&str]) -> Result<()> {
    let any: IpAddr = if target.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
    let orders: [fn(&mut Vec<usize>); 3] =
        [|numbers| numbers.reverse(), |numbers| numbers.swap(0, 1), |numbers| numbers.rotate_left(1)];
    for order in orders {
        for backend in backends {
            let mut found = false;
            for _ in 0..200 {
                let socket = UdpClient::bind(netns, SocketAddr::new(any, 0))?;
                let send = |source| send_fragments(netns, source, target, &[0x5a; LENGTH], order);
                let answer = socket.ask_by(target, PATIENCE, send)?;
                let answer = answer.unwrap_or_else(|| panic!("{target} answers every datagram"));
                found = answer.backend == *backend;
                if found {
                    break;
                }
            }
            assert!(found, "{backend} never answered, through {target}");
        }
    }
    Ok(())
}

#[test]
fn fragments_in_any_order_reach_a_vip() -> Result<()> {
    for (encapsulation, option) in [
        (Encapsulation::Direct, "--ipv6"),
        (Encapsulation::Device, "--ipv6"),
        (Encapsulation::Direct, "--encrypted"),
    ] {
        let lab = Lab::builder().hosts(2).encapsulation(encapsulation).start()?;
        create_network(&lab, "app", &[option])?;
        let _backends = web(&lab, &[1, 2], &[])?;
        let caller = lab.container(1, "caller", ["--network", "app"])?;
        ask_in_disorder(caller.netns(), vip(&lab, "web")?, &["b1", "b2"])?;
        if option == "--ipv6" {
            ask_in_disorder(caller.netns(), vip6(&lab, "web")?, &["b1", "b2"])?;
        }
    }
    Ok(())
}

/// From outside and from a container, to a host with one of the backends, regardless of its
/// firewall's forwarding rules. A socket of the host receives such datagrams too.
#[test]
fn fragments_in_any_order_reach_a_published_port_and_the_hosts_own_sockets() -> Result<()> {
    for (encapsulation, options) in
        [(Encapsulation::Direct, &["--ipv6"][..]), (Encapsulation::Device, &["--ipv6", "--encrypted"])]
    {
        let lab = Lab::builder().hosts(2).underlay_ipv6(true).encapsulation(encapsulation).start()?;
        create_network(&lab, "app", options)?;
        let backends = web(&lab, &[1, 2], &["-p", "8080:80/udp"])?;
        let (h1, client) = (lab.host(1), lab.client());
        let _own = WebServer::start(h1.netns(), "own", 9000)?;
        let addresses = [IpAddr::from(h1.address()), h1.address6().expect("an IPv6 underlay").into()];
        for address in addresses {
            ask_in_disorder(&client, SocketAddr::new(address, 8080), &["b1", "b2"])?;
            ask_in_disorder(&client, SocketAddr::new(address, 9000), &["own"])?;
        }
        ask_in_disorder(backends[0].container.netns(), SocketAddr::new(addresses[0], 8080), &["b1", "b2"])?;
        for program in ["iptables", "ip6tables"] {
            h1.run([program, "-P", "FORWARD", "DROP"])?.ok()?;
            eventually("our rules are there", PATIENCE, || {
                let rules = h1.run([program, "-S", "FORWARD"]).and_then(mesh_harness::Output::text);
                rules.is_ok_and(|rules| rules.contains("mesh-fragments"))
            })?;
        }
        ask_in_disorder(&client, SocketAddr::new(addresses[0], 8080), &["b1", "b2"])?;
    }
    Ok(())
}
