//! What is asked of the agent for what people type, and what they get back.

use std::process::Stdio;

use mesh_proto::v1;
use serde_json::json;

use crate::agent::{Agent, NODE, State, endpoint, network};

fn agent() -> Agent {
    Agent::start(State::default())
}

#[test]
fn network_create_passes_on_every_flag_and_prints_the_id() {
    let agent = agent();
    let line = "network create -d overlay --subnet 10.80.0.0/16 --subnet fd00:80::/64 --gateway 10.80.0.1 \
                --ip-range 10.80.4.0/22 --aux-address printer=10.80.0.9 --ipv6 --internal --attachable=false \
                --mtu 1400 --vni 77 --label tier=web -o mtu=1400 --encrypted app";
    assert_eq!(agent.run(line).text(), "ccc000000000000000000001\n");
    let expected = v1::CreateNetworkRequest {
        name: "app".into(),
        driver: "overlay".into(),
        subnets: vec!["10.80.0.0/16".into(), "fd00:80::/64".into()],
        gateways: vec!["10.80.0.1".into()],
        ip_ranges: vec!["10.80.4.0/22".into()],
        aux: [("printer".into(), "10.80.0.9".into())].into(),
        ipv6: true,
        internal: true,
        attachable: false,
        encrypted: true,
        mtu: Some(1400),
        vni: Some(77),
        labels: [("tier".into(), "web".into())].into(),
        options: [("mtu".into(), "1400".into())].into(),
        host_access: v1::HostAccess::Dns.into(),
        metadata: v1::MetadataAccess::Block.into(),
    };
    assert_eq!(agent.services.with(|state| state.created.take()), Some(expected));
    assert_eq!(agent.run("network create app --format json").json()["mtu"], 1450);
}

#[test]
fn network_update_changes_what_it_names_and_nothing_else() {
    let app = network("aaa000000000000000000001", "app", 4096);
    let agent = Agent::start(State { networks: vec![app], ..State::default() });
    assert_eq!(agent.run("network update app --host-access all").text(), "app\n");
    let expected = v1::UpdateNetworkRequest {
        network: "app".into(),
        host_access: v1::HostAccess::All.into(),
        metadata: v1::MetadataAccess::Unspecified.into(),
    };
    assert_eq!(agent.services.with(|state| state.network_update.take()), Some(expected));
    let changed = agent.run("network update app --metadata allow --host-access none --format json").json();
    assert_eq!((&changed["host_access"], &changed["metadata"]), (&"none".into(), &"block".into()));
    for usage in
        ["network update app", "network update app --host-access some", "network update --metadata allow"]
    {
        assert_eq!(agent.run(usage).code, 2, "{usage}");
    }
}

#[test]
fn attach_prints_the_id_and_the_addresses_on_one_line() {
    let agent = agent();
    let line = "endpoint attach --network app --netns /run/netns/web --name web --ip 10.64.0.2 --ip6 fd00::2 \
                --mac 02:42:00:00:00:01 --ifname eth1 --alias a --alias b --service s --allow-forwarding";
    assert_eq!(agent.run(line).text(), "eee000000000000000000001 10.64.0.2 fd00::2\n");
    let expected = v1::AttachRequest {
        network: "app".into(),
        netns: "/run/netns/web".into(),
        pid: 0,
        name: "web".into(),
        ip: "10.64.0.2".into(),
        ip6: "fd00::2".into(),
        mac: "02:42:00:00:00:01".into(),
        ifname: "eth1".into(),
        aliases: vec!["a".into(), "b".into()],
        service: "s".into(),
        allow_forwarding: true,
        owner: None,
        name_may_change: false,
    };
    assert_eq!(agent.services.with(|state| state.attached.take()), Some(expected));

    let line = "endpoint attach --network app --pid 42";
    assert_eq!(agent.run(line).text(), "eee000000000000000000001 10.64.0.2\n");
    let expected = v1::AttachRequest { network: "app".into(), pid: 42, ..Default::default() };
    assert_eq!(agent.services.with(|state| state.attached.take()), Some(expected));
    assert_eq!(agent.run(&format!("{line} --format json")).json()["ipv4"], "10.64.0.2");
}

#[test]
fn cluster_init_sends_the_documented_defaults_and_prints_what_to_run_elsewhere() {
    let agent = agent();
    let text = agent.run("cluster init").text();
    assert!(text.contains("\n    meshctl cluster join --token token 192.0.2.11:7377\n"), "{text}");
    let expected = v1::InitClusterRequest {
        data_path_port: 4789,
        default_addr_pools: vec!["10.64.0.0/10".into()],
        default_addr_pool_mask_length: 20,
        ..Default::default()
    };
    assert_eq!(agent.services.with(|state| state.initialised.take()), Some(expected));
    let json =
        agent.run("cluster init --format json --default-addr-pool 10.0.0.0/8 --advertise-addr eth0").json();
    assert_eq!(
        (&json["node"]["id"], &json["worker_token"], &json["manager"]),
        (&json!(NODE), &json!("token"), &json!("192.0.2.11:7377"))
    );
    let sent = agent.services.with(|state| state.initialised.take()).unwrap();
    assert_eq!((sent.default_addr_pools, sent.advertise_addr), (vec!["10.0.0.0/8".into()], "eth0".into()));
}

#[test]
fn cluster_join_passes_on_its_flags() {
    let agent = agent();
    let text =
        agent.run("cluster join --token t --data-path-addr eth1 --node-name h2 192.0.2.11:7377").text();
    assert_eq!(text, format!("This host, h2 ({NODE}), is now a worker of the cluster.\n"));
    let expected = v1::JoinClusterRequest {
        token: "t".into(),
        manager: "192.0.2.11:7377".into(),
        data_path_addr: "eth1".into(),
        node_name: "h2".into(),
        ..Default::default()
    };
    assert_eq!(agent.services.with(|state| state.joined.take()), Some(expected));
}

#[test]
fn a_join_token_can_be_had_alone() {
    assert_eq!(agent().run("cluster join-token -q worker").text(), "token\n");
    assert_eq!(agent().run("cluster join-token -q --rotate manager").text(), "new-token\n");
    assert!(
        agent()
            .run("cluster join-token worker")
            .text()
            .contains("cluster join --token token 192.0.2.11:7377")
    );
    assert_eq!(
        agent().run("cluster join-token worker --format json").json(),
        json!({"role": "worker", "token": "token", "manager": "192.0.2.11:7377"})
    );
}

#[test]
fn a_refused_leave_says_why_and_a_forced_one_goes() {
    let refused = agent().run("cluster leave");
    assert_eq!((refused.code, refused.out.as_str()), (4, ""));
    assert_eq!(refused.err, "error: cluster leave, h1, it is the only manager\nhint: use --force\n");
    assert_eq!(agent().run("cluster leave --force").text(), "This host has left the cluster.\n");
}

#[test]
fn a_node_is_drained() {
    let agent = agent();
    assert_eq!(agent.run("node update --availability drain h1").text(), "h1\n");
    let sent = agent.services.with(|state| state.updated.take()).unwrap();
    assert_eq!((sent.node.as_str(), sent.availability()), ("h1", v1::Availability::Drain));
}

#[test]
fn endpoints_are_listed_by_network_and_node() {
    let agent = agent();
    agent.run("endpoint ls --network app --node h1").text();
    let sent = agent.services.with(|state| state.listed.take()).unwrap();
    assert_eq!((sent.network.as_str(), sent.node.as_str()), ("app", "h1"));
}

#[test]
fn what_was_detached_is_printed() {
    let agent = agent();
    let app = network("aaa000000000000000000001", "app", 4096);
    agent.services.with(|state| state.endpoints = vec![endpoint("eee000000000000000000001", "web", &app)]);
    assert_eq!(agent.run("endpoint detach web").text(), "eee000000000000000000001\n");
    assert_eq!(
        agent.run("endpoint detach web --format json").json(),
        json!([{"id": "eee000000000000000000001", "name": "web"}])
    );
}

#[test]
fn prune_asks_at_a_terminal_and_takes_only_a_yes() {
    for (typed, pruned) in [("y\n", true), ("n\n", false), ("\n", false)] {
        let agent = agent();
        agent.services.with(|state| state.networks = vec![network("aaa000000000000000000001", "app", 4096)]);
        let terminal = nix::pty::openpty(None, None).unwrap();
        nix::unistd::write(&terminal.master, typed.as_bytes()).unwrap();
        let done = agent.command("network prune").stdin(Stdio::from(terminal.slave)).output().unwrap();
        assert_eq!(done.status.code(), Some(i32::from(!pruned)), "{typed:?}");
        assert_eq!(String::from_utf8(done.stdout).unwrap(), if pruned { "app\n" } else { "" });
        assert_eq!(agent.services.with(|state| state.pruned), pruned, "{typed:?}");
    }
}

#[test]
fn prune_without_a_terminal_needs_force() {
    let agent = agent();
    let refused = agent.run("network prune");
    assert_eq!(refused.code, 7);
    assert!(refused.err.ends_with("hint: use -f to remove without confirmation\n"), "{}", refused.err);
    assert!(!agent.services.with(|state| state.pruned));
    assert_eq!(agent.run("network prune -f").text(), "");
    assert!(agent.services.with(|state| state.pruned));
}
