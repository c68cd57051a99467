//! A SYN on a live connection: late, repeated, forged, or from a client that crashed and
//! reconnects. The backend decides (RFC 5961, section 4), and its answer returns through the
//! connection's translation.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_e2e::service::{change_backend, vip, vip6, web};
use mesh_e2e::{ENCAPSULATIONS, PATIENCE, create_network};
use mesh_harness::traffic::{Connection, RawTcp};
use mesh_harness::{Encapsulation, Lab, Netns, Result};

const SYN: u8 = 2;
const ACK: u8 = 0x10;
/// Shorter than the second after which a SYN is repeated (RFC 6298, section 2).
const AT_ONCE: Duration = Duration::from_millis(900);

/// A client, and the address through which it reaches the service.
type Way = (Netns, SocketAddr);

/// Starts a lab with a backend on each of two hosts; returns all clients with their addresses.
fn lab(encapsulation: Encapsulation, options: &[&str]) -> Result<(Lab, impl Sized + use<>, Vec<Way>)> {
    let ipv6 = options.contains(&"--ipv6");
    let lab = Lab::builder().hosts(2).underlay_ipv6(ipv6).encapsulation(encapsulation).start()?;
    create_network(&lab, "app", options)?;
    let backends = web(&lab, &[1, 2], &["-p", "8080:80"])?;
    let caller = lab.container(1, "caller", ["--network", "app"])?;
    let mut ways = vec![(caller.netns().clone(), vip(&lab, "web")?)];
    if ipv6 {
        ways.push((caller.netns().clone(), vip6(&lab, "web")?));
    }
    for host in lab.hosts() {
        ways.push((lab.client(), SocketAddr::new(host.address().into(), 8080)));
        ways.extend(host.address6().map(|own6| (lab.client(), SocketAddr::new(own6.into(), 8080))));
    }
    Ok((lab, (backends, caller), ways))
}

/// Opens connections so that each client reaches both backends.
fn open(ways: &[Way]) -> Result<Vec<(Way, String, Connection)>> {
    let mut open: Vec<(Way, String, Connection)> = Vec::new();
    for way in ways {
        let (netns, target) = way;
        for backend in ["b1", "b2"] {
            loop {
                let mut connection = Connection::open(netns, *target)?;
                if connection.ask()?.backend == backend {
                    open.push((way.clone(), backend.to_owned(), connection));
                    break;
                }
            }
        }
    }
    Ok(open)
}

#[test]
fn a_forged_syn_of_a_live_connection_does_not_end_it() -> Result<()> {
    let networks = [(Encapsulation::Direct, "--ipv6"), (Encapsulation::Device, "--ipv6")];
    for (encapsulation, option) in networks.into_iter().chain([(Encapsulation::Direct, "--encrypted")]) {
        let (lab, _running, ways) = lab(encapsulation, &[option])?;
        let mut connections = open(&ways)?;
        // The second time, the table would pick another backend.
        for drained in [false, true] {
            if drained {
                change_backend(&lab.host(1), "drain", "web", "b2")?.ok()?;
            }
            for ((netns, target), backend, connection) in &mut connections {
                let forger = RawTcp::open(netns, connection.local_address()?)?;
                // The backend answers at most one in half a second.
                let mut answer = None;
                let begin = Instant::now();
                while answer.is_none() && begin.elapsed() < PATIENCE {
                    forger.send(*target, SYN, 0x1234_5678)?;
                    answer = forger.receive(Duration::from_millis(200))?;
                }
                assert_eq!(answer, Some((*target, ACK)), "from {backend}, through {target}");
                assert_eq!(connection.ask()?.backend, *backend, "through {target}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_crashed_client_reconnects_from_the_same_port_at_once() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let (_lab, _running, ways) = lab(encapsulation, &[])?;
        for ((netns, target), backend, mut connection) in open(&ways)? {
            let source = connection.local_address()?;
            let mut fastest = Duration::MAX;
            for _ in 0..5 {
                connection.crash()?;
                let begin = Instant::now();
                connection = Connection::open_from(&netns, Some(source), target)?;
                fastest = fastest.min(begin.elapsed());
                assert_eq!(connection.ask()?.backend, backend);
                if fastest < AT_ONCE {
                    break;
                }
            }
            assert!(fastest < AT_ONCE, "{fastest:?} through {target} to {backend}");
        }
    }
    Ok(())
}
