//! podman attaches its containers by the CNI plugin.

use mesh_e2e::podman::Podman;
use mesh_e2e::{PATIENCE, create_network, json};
use mesh_harness::{Lab, Result, eventually};

/// Serves `hello` on port 80.
const SERVER: &str = "mkdir -p /www; echo hello > /www/index.html; exec httpd -f -h /www";

#[test]
fn containers_of_two_podmans_talk_by_name_and_leave_nothing_behind() -> Result<()> {
    let lab = Lab::builder().hosts(2).start()?;
    create_network(&lab, "app", &[])?;
    let [one, two] = [Podman::install(&lab.host(1), "app")?, Podman::install(&lab.host(2), "app")?];
    let web = [
        "run",
        "-d",
        "--network",
        "app",
        "--name",
        "web",
        "--network-alias",
        "www",
        "box",
        "sh",
        "-c",
        SERVER,
    ];
    one.run(&web)?.ok()?;
    let endpoint = json(&lab.host(2), &["endpoint", "inspect", "web"])?;
    assert!(endpoint["owner"].as_str().is_some_and(|owner| owner.starts_with("cni:app/")), "{endpoint}");
    let address = endpoint["ipv4"].as_str().unwrap_or_default().to_owned();

    // From the other host: by name, by alias, and the page itself.
    let asked = two.run(&["run", "--rm", "--network", "app", "box", "nslookup", "www"])?.text()?;
    assert!(asked.contains(&address), "{asked}");
    let ask = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 10 {address} 80");
    let page = two.run(&["run", "--rm", "--network", "app", "box", "sh", "-c", &ask])?.text()?;
    assert!(page.ends_with("hello"), "{page}");

    // An address and a MAC are given as they are asked for.
    let wanted = ["--ip", "10.64.9.9", "--mac-address", "02:11:22:33:44:55"];
    let shown = [&["run", "--rm", "--network", "app"], &wanted[..], &["box", "ip", "addr", "show", "eth0"]];
    let shown = two.run(&shown.concat())?.text()?;
    assert!(shown.contains("10.64.9.9/20") && shown.contains("02:11:22:33:44:55"), "{shown}");

    // A restart gives the name to the new namespace; a reload keeps the address in the old one.
    one.run(&["restart", "--time", "0", "web"])?.ok()?;
    let restarted = json(&lab.host(2), &["endpoint", "inspect", "web"])?;
    one.run(&["network", "reload", "web"])?.ok()?;
    let reloaded = json(&lab.host(2), &["endpoint", "inspect", "web"])?;
    assert_eq!(reloaded["ipv4"], restarted["ipv4"]);

    // What cannot be is refused with the reason, and podman has nothing left to clean up.
    let refused = two.run(&["run", "--rm", "--network", "app", "-p", "8080:80", "box", "true"])?;
    assert!(refused.code != 0 && refused.stderr.contains("meshctl service create -p"), "{refused:?}");
    assert!(!refused.stderr.contains("failed (delete)"), "{refused:?}");
    one.run(&["rm", "--force", "--time", "0", "web"])?.ok()?;
    eventually("no endpoint is left", PATIENCE, || {
        json(&lab.host(1), &["endpoint", "ls"])
            .is_ok_and(|listed| listed.as_array().is_some_and(Vec::is_empty))
    })
}
