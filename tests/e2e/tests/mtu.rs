//! The overlay's MTU is the underlay's minus the encapsulation overhead, and follows it.

use mesh_e2e::{
    ENCAPSULATIONS, PATIENCE, create_network, json, lab_with_app, largest_unfragmented, underlay_capture,
};
use mesh_harness::{Container, Lab, Result, eventually, traffic::tcp_transfer};

fn mtu(container: &Container) -> Result<String> {
    let link: serde_json::Value = container.exec(["ip", "-j", "link", "show", "eth0"])?.json()?;
    Ok(link[0]["mtu"].to_string())
}

#[test]
fn the_largest_packet_is_the_interfaces_mtu_and_nothing_is_fragmented_on_the_underlay() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let (lab, c) = lab_with_app(2, encapsulation, &[])?;
        assert_eq!(mtu(&c[0])?, "1450");
        let capture = underlay_capture(&lab)?;
        assert_eq!(largest_unfragmented(&c[0], c[1].ipv4()?, 1450)?, (true, false));
        lab.set_underlay_offloads(false)?;
        assert_eq!(largest_unfragmented(&c[0], c[1].ipv4()?, 1450)?, (true, false));
        tcp_transfer(c[0].netns(), c[1].netns(), c[1].ipv4()?.into(), 1 << 24)?;
        let captured = capture.stop()?;
        assert!(captured.vxlan().any(|packet| packet.inner.len() == 1464), "full packets did cross");
        assert_eq!(captured.frames.iter().filter(|frame| frame.is_fragment()).count(), 0);
    }
    Ok(())
}

#[test]
fn an_mtu_given_to_the_network_bounds_its_endpoints() -> Result<()> {
    let lab = Lab::builder().hosts(1).start()?;
    create_network(&lab, "small", &["--mtu", "1300"])?;
    create_network(&lab, "large", &["--mtu", "9000"])?;
    let small = lab.container(1, "small", ["--network", "small"])?;
    let large = lab.container(1, "large", ["--network", "large"])?;
    assert_eq!((mtu(&small)?.as_str(), mtu(&large)?.as_str()), ("1300", "1450"));
    Ok(())
}

#[test]
fn the_overlay_follows_the_underlays_mtu() -> Result<()> {
    for encapsulation in ENCAPSULATIONS {
        let lab = Lab::builder().hosts(2).underlay_mtu(9000).encapsulation(encapsulation).start()?;
        create_network(&lab, "app", &[])?;
        let a = lab.container(1, "a", ["--network", "app"])?;
        let b = lab.container(2, "b", ["--network", "app"])?;
        assert_eq!(mtu(&a)?, "8950");
        assert_eq!(largest_unfragmented(&a, b.ipv4()?, 8950)?, (true, false));
        for underlay in [1400u32, 9000] {
            lab.set_underlay_mtu(underlay)?;
            let expected = (underlay - 50).to_string();
            eventually("both endpoints follow", PATIENCE, || {
                [&a, &b].iter().all(|c| mtu(c).is_ok_and(|now| now == expected))
            })?;
            let expected = u16::try_from(underlay - 50).expect("an MTU");
            assert_eq!(largest_unfragmented(&a, b.ipv4()?, expected)?, (true, false));
            tcp_transfer(a.netns(), b.netns(), b.ipv4()?.into(), 1 << 24)?;
            assert_eq!(json(&lab.host(1), &["network", "inspect", "app"])?["mtu"], expected);
            let new = lab.container(1, &format!("new{underlay}"), ["--network", "app"])?;
            assert_eq!(mtu(&new)?, expected.to_string());
        }
    }
    Ok(())
}

#[test]
fn a_host_with_a_smaller_underlay_lowers_the_networks_mtu_everywhere() -> Result<()> {
    let (lab, c) = lab_with_app(2, mesh_harness::Encapsulation::Direct, &[])?;
    lab.host(2).run(["ip", "link", "set", "eth0", "mtu", "1300"])?.ok()?;
    eventually("both endpoints follow", PATIENCE, || {
        c.iter().all(|c| mtu(c).is_ok_and(|now| now == "1250"))
    })?;
    tcp_transfer(c[0].netns(), c[1].netns(), c[1].ipv4()?.into(), 1 << 24)?;
    Ok(())
}
