//! `meshctl apply` from the file to what is asked of the agent.

use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;

use mesh_proto::v1;
use serde_json::json;
use tempfile::TempDir;

use crate::agent::{Agent, Asked, Done, State, network, service};

const SHOP: &str = "\
name: shop
networks:
  front:
    internal: true
    ipam:
      config:
        - subnet: 10.80.0.0/16
          gateway: 10.80.0.1
    driver_opts:
      mtu: 1300
services:
  web:
    image: nginx
    networks:
      front:
        aliases: [www]
    ports: [\"8080:80\", \"443\"]
    healthcheck:
      test: curl -f http://localhost/up || exit 1
      interval: 10s
  db:
    image: postgres
    networks: [front]
    deploy:
      endpoint_mode: dnsrr
";

struct Folder(TempDir);

impl Folder {
    fn with(text: &str) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        std::fs::write(folder.file(), text).unwrap();
        folder
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("compose.yaml")
    }
}

fn apply(agent: &Agent, text: &str, flags: &[&str]) -> Done {
    let folder = Folder::with(text);
    let mut command = agent.command("apply -f");
    command.arg(folder.file()).args(flags);
    let mut done = Done::from(command.output().unwrap());
    done.err = done.err.replace(&folder.file().display().to_string(), "compose.yaml");
    done
}

fn agent() -> Agent {
    Agent::start(State::default())
}

const IGNORED: &str = "ignored: image\n";

#[test]
fn a_file_is_applied_once_and_then_nothing_changes() {
    let agent = agent();
    let done = apply(&agent, SHOP, &[]);
    assert_eq!(
        (done.code, done.out.as_str(), done.err.as_str()),
        (
            0,
            "created network front: subnet 10.80.0.0/16, internal, mtu 1300\n\
             created service front/web: port 8080:80/tcp, port 30000:443/tcp, health http 80/up at localhost every 10s with 3 \
             retries, aliases www\n\
             created service front/db: endpoint mode dnsrr\n",
            IGNORED,
        )
    );
    let created = agent.services.with(|state| state.created.take()).unwrap();
    assert_eq!(created.labels, [("mesh.apply".to_owned(), "shop".to_owned())].into());
    assert_eq!((created.gateways, created.attachable), (vec!["10.80.0.1".to_owned()], true));
    let asked = agent.services.with(|state| std::mem::take(&mut state.asked));
    let [Asked::Create(web), Asked::Create(_)] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!(web.labels, [("mesh.apply".to_owned(), "shop".to_owned())].into());
    assert_eq!(web.aliases, ["www"]);

    let again = apply(&agent, SHOP, &["--prune"]);
    assert_eq!((again.code, again.out.as_str(), again.err.as_str()), (0, "nothing changes\n", IGNORED));
    assert!(agent.services.with(|state| state.asked.is_empty() && state.created.is_none()));
}

#[test]
fn a_dry_run_prints_the_difference_and_changes_nothing() {
    let agent = agent();
    apply(&agent, SHOP, &[]);
    agent.services.with(|state| state.asked.clear());
    let before = agent.services.with(|state| (state.networks.clone(), state.services.clone()));
    let changed = SHOP
        .replace("8080:80", "8081:80")
        .replace("  db:", "  cache:")
        .replace("      interval: 10s\n", "      interval: 5s\n");
    let done = apply(&agent, &changed, &["--dry-run", "--prune"]);
    assert_eq!(
        (done.code, done.out.as_str()),
        (
            0,
            "would remove service front/db\n\
             would update service front/web: -port 8080:80/tcp, +port 8081:80/tcp, health http 80/up at localhost every 5s with 3 \
             retries\n\
             would create service front/cache: endpoint mode dnsrr\n"
        ),
        "{}",
        done.err
    );
    assert_eq!(agent.services.with(|state| (state.networks.clone(), state.services.clone())), before);

    let done = apply(&agent, &changed, &["--prune"]);
    assert!(done.out.starts_with("removed service front/db\nupdated service front/web: "), "{}", done.out);
    assert_eq!(apply(&agent, &changed, &["--dry-run"]).out, "nothing changes\n");
}

#[test]
fn prune_removes_only_what_the_project_made() {
    let agent = agent();
    apply(&agent, SHOP, &[]);
    let by_hand = network("aaa000000000000000000001", "byhand", 4097);
    let other = v1::CreateServiceRequest {
        name: "theirs".into(),
        labels: [("mesh.apply".to_owned(), "other".to_owned())].into(),
        ..Default::default()
    };
    agent.services.with(|state| {
        state.services.push(service("bbb000000000000000000001", &by_hand, other));
        state.networks.push(by_hand);
    });
    assert_eq!(apply(&agent, "name: shop\n", &[]).out, "nothing changes\n", "nothing goes without --prune");
    assert_eq!(
        apply(&agent, "name: shop\n", &["--prune", "--yes"]).out,
        "removed service front/web\nremoved service front/db\nremoved network front\n"
    );
    assert_eq!(agent.run("network ls -q").text(), "aaa000000000000000000001\n");
    assert_eq!(agent.run("service ls -q").text(), "bbb000000000000000000001\n");
}

#[test]
fn a_subnet_that_changed_is_a_conflict_and_nothing_is_touched() {
    let agent = agent();
    apply(&agent, SHOP, &[]);
    agent.services.with(|state| state.asked.clear());
    let changed = SHOP.replace("10.80.", "10.81.").replace("8080:80", "9090:80");
    let done = apply(&agent, &changed, &[]);
    assert_eq!((done.code, done.out.as_str()), (4, ""), "{}", done.err);
    assert!(
        done.err.contains(
            "error: apply, network front, cannot be changed in place: IPv4 subnets are 10.80.0.0/16, should be \
             10.81.0.0/16\nhint: nothing was changed"
        ),
        "{}",
        done.err
    );
    assert!(agent.services.with(|state| state.asked.is_empty()));
}

#[test]
fn what_cannot_be_understood_is_a_usage_error_with_its_line() {
    for (text, message) in [
        ("services:\n  web: [1\n", "compose.yaml line 2, unclosed bracket"),
        ("a: 1\nservices: x\n", "compose.yaml line 2, services: it must be a map, not text"),
        (
            "services:\n  web:\n    ports: [\"80:x\"]\n",
            "line 3, services.web.ports[0]: \"80:x\": \"x\" is not a port",
        ),
        (
            "services:\n  web:\n    networks: [back]\n",
            "line 3, services.web.networks[0]: the file has no network back",
        ),
        (
            "networks:\n  app:\n    driver: bridge\n",
            "line 3, networks.app.driver: \"bridge\": the only driver is overlay",
        ),
        (
            "services:\n  a: {ports: [\"80:80\"]}\n  b: {ports: [\"80:81\"]}\n",
            "published port 80:81/tcp is declared twice",
        ),
    ] {
        let done = apply(&agent(), text, &[]);
        assert_eq!((done.code, done.out.as_str()), (2, ""), "{text}: {}", done.err);
        assert!(done.err.contains(message), "{text}: {}", done.err);
        assert_eq!(done.err.lines().count(), 2, "{}", done.err);
    }
    let missing = agent().run("apply -f /nowhere/compose.yaml");
    assert_eq!(missing.code, 3, "{}", missing.err);
}

#[test]
fn standard_input_and_json_serve_scripts() {
    let agent = agent();
    let mut child = agent
        .command("apply -f - --format json --dry-run")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let text = "name: shop\nversion: \"3\"\nnetworks:\n  app:\nservices:\n  web:\n    networks: [app]\n";
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let done = Done::from(child.wait_with_output().unwrap());
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(done.err, "{\"ignored_keys\":[\"version\"]}\n");
    let result: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(
        result,
        json!({
            "project": "shop", "dry_run": true, "ignored": [{"line": 2, "key": "version"}],
            "warnings": [], "changes": [
                {"action": "create", "kind": "network", "name": "app", "network": null, "details": []},
                {"action": "create", "kind": "service", "name": "web", "network": "app", "details": []},
            ],
        })
    );
}

#[test]
fn what_the_managers_would_refuse_fails_the_dry_run_and_the_run_alike() {
    let agent = agent();
    apply(&agent, "name: shop\nnetworks: {front: }\n", &[]);
    let fault = |change: u32, message: &str, hint: &str| v1::ChangeFault {
        change,
        kind: "conflict".into(),
        message: message.into(),
        hint: hint.into(),
    };
    let faults = vec![
        fault(0, "subnet 10.80.0.0/16 overlaps route 10.0.0.0/8 of node h2", "choose another subnet"),
        fault(1, "port 8080/tcp is in use on node h2", ""),
    ];
    agent.services.with(|state| (state.faults, state.created) = (faults, None));
    let text = "name: shop\nnetworks: {front: , back: }\nservices: {web: {networks: [front], ports: [\"8080:80\"]}}\n";
    for flags in [&["--dry-run"][..], &[]] {
        let done = apply(&agent, text, flags);
        assert_eq!((done.code, done.out.as_str()), (4, ""), "{}", done.err);
        assert_eq!(
            done.err,
            "error: apply, network back, subnet 10.80.0.0/16 overlaps route 10.0.0.0/8 of node h2\n\
             hint: nothing was changed; choose another subnet\n\
             error: apply, service front/web, port 8080/tcp is in use on node h2\n\
             hint: nothing was changed\n"
        );
    }
    agent.services.with(|state| {
        assert!(state.asked.is_empty() && state.created.is_none());
        assert_eq!(state.checked.len(), 2, "{:?}", state.checked);
    });
}

#[test]
fn a_run_that_fails_half_way_takes_back_what_it_did() {
    let agent = agent();
    let before = "name: shop\nnetworks: {app: }\nservices: {web: {networks: [app], ports: [\"8080:80\"]}}\n";
    apply(&agent, before, &[]);
    let state = |agent: &Agent| agent.services.with(|state| (state.networks.clone(), state.services.clone()));
    let untouched = state(&agent);
    let text = "name: shop\nnetworks: {app: , more: }\nservices:\n  web: {networks: [app], ports: [\"8081:80\"]}\n  \
                new: {networks: [more]}\n  busy: {networks: [app]}\n  after: {networks: [app]}\n";
    let done = apply(&agent, text, &[]);
    assert_eq!((done.code, done.out.as_str()), (4, ""), "{}", done.err);
    assert!(done.err.contains("hint: nothing was changed; apply it again"), "{}", done.err);
    assert_eq!(done.err.matches("error: ").count(), 1, "{}", done.err);
    assert_eq!(state(&agent), untouched);

    // What was removed is listed, since it cannot be taken back.
    let text = "name: shop\nnetworks: {app: , full: }\n";
    let done = apply(&agent, text, &["--prune", "--yes"]);
    assert_eq!((done.code, done.out.as_str()), (1, "removed service app/web\n"), "{}", done.err);
    assert!(done.err.contains("hint: only what is listed was changed"), "{}", done.err);
    assert_eq!(apply(&agent, "networks: {gone: {external: true}}\n", &[]).code, 3);
}

#[test]
fn a_prune_that_removes_everything_needs_a_yes() {
    let agent = agent();
    apply(&agent, SHOP, &[]);
    let without_services = SHOP.split_once("services:").unwrap().0.to_owned() + "services: {}\n";
    for text in [without_services.as_str(), "name: shop\n"] {
        let refused = apply(&agent, text, &["--prune"]);
        assert_eq!((refused.code, refused.out.as_str()), (7, ""), "{}", refused.err);
        assert!(refused.err.contains("error: apply, requires confirmation"), "{}", refused.err);
        assert!(
            refused
                .err
                .contains("hint: nothing was changed; see what it removes with --dry-run, then use --yes")
        );
    }
    let dry = apply(&agent, &without_services, &["--prune", "--dry-run"]);
    assert_eq!((dry.code, dry.out.lines().count()), (0, 2), "{}", dry.err);
    assert!(
        dry.err.contains("warning: This removes all services or all networks of project shop."),
        "{}",
        dry.err
    );
    let json = apply(&agent, "name: shop\n", &["--prune", "--format", "json"]);
    assert!(json.err.contains("\"kind\":\"unconfirmed\""), "{}", json.err);
    assert_eq!(agent.run("service ls -q").text().lines().count(), 2);
    // Some go, some stay: nothing is asked.
    let only_web = SHOP.split_once("  db:").unwrap().0;
    assert_eq!(apply(&agent, only_web, &["--prune"]).out, "removed service front/db\n");
    let all = apply(&agent, "name: shop\n", &["--prune", "-y"]);
    assert_eq!(all.out, "removed service front/web\nremoved network front\n", "{}", all.err);
}

#[test]
fn names_that_differ_in_case_only_are_the_same_to_apply() {
    let agent = agent();
    apply(&agent, "name: shop\nnetworks: {app: }\nservices: {web: {networks: [app]}}\n", &[]);
    let again = "name: shop\nnetworks: {APP: }\nservices: {Web: {networks: [APP]}}\n";
    let done = apply(&agent, again, &["--prune"]);
    assert_eq!((done.code, done.out.as_str()), (0, "nothing changes\n"), "{}", done.err);
    for (text, line) in [
        ("networks: {app: , APP: }\n", "another network of the file has this name"),
        (
            "networks: {app: }\nservices:\n  web: {networks: [app]}\n  WEB: {networks: [app]}\n",
            "another service of the file",
        ),
    ] {
        let done = apply(&agent, text, &["--dry-run"]);
        assert_eq!(done.code, 2, "{text}: {}", done.err);
        assert!(done.err.contains(line), "{text}: {}", done.err);
    }
}

#[test]
fn prune_keeps_the_services_of_profiles_that_are_not_active() {
    let agent = agent();
    let text = "name: shop\nnetworks: {app: }\nservices:\n  web: {networks: [app]}\n  \
                debug: {networks: [app], profiles: [debug]}\n";
    apply(&agent, text, &["--profile", "debug"]);
    let done = apply(&agent, text, &["--prune"]);
    assert_eq!((done.code, done.out.as_str()), (0, "nothing changes\n"), "{}", done.err);
    assert!(done.err.contains("services.debug"), "{}", done.err);
    let without = text.split_once("  debug:").unwrap().0;
    assert_eq!(apply(&agent, without, &["--prune"]).out, "removed service app/debug\n");
}
