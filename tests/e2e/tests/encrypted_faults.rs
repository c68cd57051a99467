//! Changes by others to the WireGuard engine, its device and the data path's MTU are repaired.

use std::time::Duration;

use mesh_e2e::encrypted::{answers, encrypted_lab, engines, runs_engine};
use mesh_e2e::json;
use mesh_harness::traffic::tcp_transfer;
use mesh_harness::{Result, eventually, wireguard_engine};

const SOON: Duration = Duration::from_secs(20);

/// The actual state counts, not the configured one.
#[test]
fn an_encrypted_network_recovers_from_changes_of_device_mtu_and_engine() -> Result<()> {
    let (lab, c) = encrypted_lab(2)?;
    let (target, host) = (c[1].ipv4()?, lab.host(1));
    c[0].ping(target)?.all_answered()?;
    let recovers = |what: &str| {
        eventually(&format!("{what} is repaired"), SOON, || {
            answers(&c[0], target)
                && runs_engine(&host)
                && lab.hosts().all(|host| {
                    json(&host, &["status"]).is_ok_and(|s| s["problems"] == serde_json::json!([]))
                })
        })
    };
    for damage in [
        &["ip", "link", "del", "meshwg0"][..],
        &["ip", "link", "set", "meshwg0", "down"],
        &["ip", "link", "set", "meshwg0", "mtu", "700"],
    ] {
        host.run(damage.iter().copied())?.ok()?;
        recovers(&format!("{damage:?}"))?;
        host.restart_meshd()?;
        recovers(&format!("{damage:?} and a restart"))?;
    }

    // A too small MTU, briefly and for longer: reported on its host, and harmless elsewhere.
    host.run(["ip", "link", "set", "eth0", "mtu", "600"])?.ok()?;
    eventually("the MTU is reported", SOON, || {
        json(&host, &["status"]).is_ok_and(|s| s["problems"].to_string().contains("MTU"))
    })?;
    assert!(answers(&c[0], target), "small packets pass");
    assert_eq!(json(&lab.host(2), &["status"])?["problems"], serde_json::json!([]));
    lab.container(2, "later", ["--network", "app"])?.ping(target)?.all_answered()?;
    host.run(["ip", "link", "set", "eth0", "mtu", "1500"])?.ok()?;
    recovers("the MTU")?;
    tcp_transfer(c[0].netns(), c[1].netns(), target.into(), 1 << 22)?;

    if wireguard_engine() != "kernel" {
        let suspended = engines(&host);
        suspended.iter().try_for_each(|engine| engine.suspend())?;
        eventually("the suspended engine is reported", SOON, || {
            json(&host, &["status"]).is_ok_and(|s| s["problems"].to_string().contains("is suspended"))
        })?;
        recovers("the suspended engine")?;
        assert_ne!(engines(&host), suspended);
        // An agent that starts later detects it too.
        host.kill_meshd()?;
        engines(&host).iter().try_for_each(|engine| engine.suspend())?;
        host.start_meshd()?;
        recovers("the engine that was suspended while no agent ran")?;
    }
    Ok(())
}
