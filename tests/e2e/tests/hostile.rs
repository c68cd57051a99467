//! Containers that send malicious or unusual packets.

use std::net::{SocketAddr, UdpSocket};

use mesh_e2e::{ENCAPSULATIONS, counted, create_network, json, lab_with_app};
use mesh_harness::traffic::tcp_transfer;
use mesh_harness::{Capture, Lab, OUTSIDE_V4, Result};

/// Masqueraded by the host, a container's packets reach other nodes from a member's address.
#[test]
fn a_container_cannot_write_vxlan_into_another_network_through_its_host() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = Lab::builder().hosts(2).encapsulation(encapsulation).start()?;
        create_network(&lab, "red", &[])?;
        create_network(&lab, "blue", &[])?;
        let red = lab.container(1, "red", ["--network", "red"])?;
        let blue = lab.container(2, "blue", ["--network", "blue"])?;
        let vni = json(&lab.host(1), &["network", "inspect", "blue"])?["vni"].as_u64().expect("a number");
        let target = blue.ipv4()?.octets();
        let mut packet = vec![8, 0, 0, 0];
        packet.extend(&vni.to_be_bytes()[5..]);
        packet.push(0);
        packet.extend([[2, 0x42].as_slice(), &target, &[2, 0x42, 10, 64, 0, 9, 8, 0]].concat());
        // An IPv4 packet of an unassigned protocol; the header's checksum is not checked on the
        // path.
        packet.extend([0x45, 0, 0, 30, 0, 0, 0x40, 0, 64, 253, 0, 0, 10, 64, 0, 9]);
        packet.extend([target.as_slice(), b"canary-xyz"].concat());
        let capture = Capture::start(blue.netns())?;
        let before = counted(&lab.host(1), "isolated")?;
        let whole = packet.clone();
        packet.resize(4000, 0);
        for host in lab.hosts() {
            let to = SocketAddr::new(host.address().into(), 4789);
            let sent = red.netns().enter(|| {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.send_to(&whole, to)?;
                // Also in fragments: only the first has the port.
                socket.send_to(&packet, to)
            })?;
            sent.expect("the container's own kernel lets it");
        }
        red.ping(lab.host(2).address())?.all_answered()?;
        let seen = capture.stop()?.frames.iter().filter(|frame| frame.contains(b"canary-xyz")).count();
        assert_eq!(seen, 0, "{encapsulation:?}");
        assert_eq!(counted(&lab.host(1), "isolated")?, before + 4);
    }
    Ok(())
}

#[test]
fn a_container_that_raised_its_own_mtu_is_notified_of_the_path_mtu() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let (lab, c) = lab_with_app(2, encapsulation, &["--ipv6"])?;
        c[0].exec(["ip", "link", "set", "eth0", "mtu", "9000"])?.ok()?;
        let targets = [c[1].ipv4()?.to_string(), c[1].ipv6()?.to_string()];
        for (target, expected) in
            [(&targets[0], "1450"), (&targets[1], "1450"), (&OUTSIDE_V4.to_string(), "1500")]
        {
            let ping = ["ping", "-c", "2", "-i", "0.2", "-W", "1", "-s", "3000"];
            let told = c[0].exec([&ping[..], &["-M", "do", target]].concat())?;
            let told = told.stdout + &told.stderr;
            assert!(
                told.contains(&format!("mtu = {expected}")) || told.contains(&format!("mtu={expected}")),
                "{encapsulation:?}, {target}: {told}"
            );
            // Packets that may be fragmented arrive.
            c[0].exec([&ping[..], &["-M", "dont", target]].concat())?.ok()?;
        }
        // The host itself accepts the container's packets of any size.
        c[0].exec(["ping", "-c", "1", "-W", "1", "-M", "do", "-s", "3000", "10.64.0.1"])?.ok()?;
        tcp_transfer(c[0].netns(), c[1].netns(), c[1].ipv4()?.into(), 1 << 24)?;
        let local = lab.container(1, "local", ["--network", "app"])?;
        tcp_transfer(c[0].netns(), local.netns(), local.ipv4()?.into(), 1 << 24)?;
    }
    Ok(())
}
