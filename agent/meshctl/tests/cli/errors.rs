//! What goes wrong: the line, the hint, the exit code.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::agent::{Agent, Done, State, endpoint, meshctl, network};

fn agent() -> Agent {
    let app = network("aaa000000000000000000001", "app", 4096);
    Agent::start(State { networks: vec![app], ..State::default() })
}

fn json_of(done: &Done) -> Value {
    serde_json::from_str(&done.err).unwrap()
}

#[test]
fn each_kind_of_error_has_its_exit_code() {
    let agent = agent();
    for (name, kind, code) in [
        ("broken", "failed", 1),
        ("forbidden", "denied", 1),
        ("full", "exhausted", 1),
        ("malformed", "usage", 2),
        ("missing", "not_found", 3),
        ("busy", "conflict", 4),
        ("away", "unreachable", 5),
        ("worker", "not_manager", 6),
        ("unsure", "unconfirmed", 7),
    ] {
        let done = agent.run(&format!("network inspect {name}"));
        assert_eq!((done.code, done.out.as_str()), (code, ""), "{name}");
        assert_eq!(done.err, format!("error: network inspect, {name}, it is so\nhint: avoid {name}\n"));

        let done = agent.run(&format!("network inspect --format json {name}"));
        assert_eq!((done.code, done.out.as_str()), (code, ""), "{name}");
        let message = format!("network inspect, {name}, it is so");
        let expected = json!({"error": {"kind": kind, "message": message, "hint": format!("avoid {name}")}});
        assert_eq!(json_of(&done), expected);
    }
}

#[test]
fn removing_several_goes_on_after_an_error_and_ends_with_the_firsts_code() {
    let done = agent().run("network rm busy app missing");
    assert_eq!((done.code, done.out.as_str()), (4, "app\n"));
    assert_eq!(done.err.matches("error: ").count(), 2, "{}", done.err);
}

#[test]
fn inspecting_several_shows_those_that_there_are() {
    let done = agent().run("network inspect missing app");
    assert_eq!(done.code, 3);
    let found: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(found[0]["name"], "app");
}

#[test]
fn without_a_socket_the_agent_is_unreachable_and_the_hint_says_how_to_start_it() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("meshd.sock");
    let run = || Done::from(meshctl("status --socket").arg(&socket).output().unwrap());

    let done = run();
    assert_eq!(done.code, 5);
    assert!(
        done.err.contains("no such socket") && done.err.contains("hint: check that meshd runs"),
        "{}",
        done.err
    );

    drop(UnixListener::bind(&socket).unwrap());
    let done = run();
    assert_eq!(done.code, 5);
    assert!(
        done.err.contains("no process listens") && done.err.contains("systemctl start meshd"),
        "{}",
        done.err
    );
}

#[test]
fn an_agent_that_dies_before_it_answers_is_unreachable() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("meshd.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let dies = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let done = Done::from(meshctl("network ls --socket").arg(&socket).output().unwrap());
    dies.join().unwrap();
    assert_eq!(done.code, 5, "{}", done.err);
    assert!(done.err.contains("connection lost"), "{}", done.err);
}

#[test]
fn the_socket_option_wins_over_the_environment() {
    let agent = agent();
    let mut command = meshctl("network ls -q --socket");
    command.arg(agent.socket()).env("MESH_SOCKET", "/nowhere.sock");
    assert_eq!(Done::from(command.output().unwrap()).text(), "aaa000000000000000000001\n");
}

#[test]
fn wrong_command_lines_are_found_without_an_agent() {
    for line in [
        "network ls --filter colour=red",
        "network ls --filter name",
        "network create",
        "network create --subnet 10.80.0.1/16 app",
        "network create --subnet ten app",
        "network create --mtu 20 app",
        "network create --vni 16777215 app",
        "network create -d bridge app",
        "network create -o encrypted=maybe app",
        "network create --aux-address a=10.0.0.1 --aux-address a=10.0.0.2 app",
        "network create -app",
        "network create _app",
        "network inspect",
        "node update h1",
        "node update --availability asleep h1",
        "endpoint attach --network app",
        "endpoint attach --network app --netns a --pid 1",
        "endpoint attach --network app --netns a --ip 10.0.0",
        "endpoint attach --network app --netns a --mac 01:00:5e:00:00:01",
        "endpoint attach --network app --pid 0",
        "cluster join --token t 192.0.2.11",
        "cluster join-token boss",
        "cluster init --data-path-port 0",
        "status --format yaml",
    ] {
        let done = Done::from(meshctl(line).output().unwrap());
        assert_eq!((done.code, done.out.as_str()), (2, ""), "{line}: {}", done.err);
        let lines: Vec<_> = done.err.lines().collect();
        assert_eq!(lines.len(), 2, "{line}: {}", done.err);
        assert!(lines[0].starts_with("error: ") && lines[1].starts_with("hint: "), "{line}: {}", done.err);

        let done = Done::from(meshctl(line).args(["--format", "json"]).output().unwrap());
        assert_eq!((done.code, &json_of(&done)["error"]["kind"]), (2, &json!("usage")), "{line}");
    }
}

#[test]
fn help_and_version_are_no_errors() {
    let help = Done::from(meshctl("network create --help").output().unwrap()).text();
    assert!(help.contains("Example:\n  meshctl network create app\n"), "{help}");
    assert!(Done::from(meshctl("--version").output().unwrap()).text().starts_with("meshctl "));
    assert_eq!(Done::from(meshctl("network").output().unwrap()).code, 2);
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let agent = agent();
    let app = network("aaa000000000000000000001", "app", 4096);
    // More than a pipe holds, so that the command is still writing when the reader is gone.
    let many = (0..5000).map(|n| endpoint(&format!("{n:024x}"), &format!("container-{n}"), &app)).collect();
    agent.services.with(|state| state.endpoints = many);
    let mut child =
        agent.command("endpoint ls").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.starts_with("ENDPOINT ID"));
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}
