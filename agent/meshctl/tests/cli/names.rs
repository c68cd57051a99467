//! What names people may type, what they are warned of, and what the shell completes.

use std::process::Command;

use mesh_proto::v1;
use serde_json::json;

use crate::agent::{Agent, Done, State, endpoint, meshctl, network, service};

fn agent() -> Agent {
    let (app, back) =
        (network("aaa000000000000000000001", "app", 4096), network("aaa000000000000000000002", "back", 4097));
    let mut both = endpoint("eee000000000000000000001", "web", &app);
    both.service = "rr,shop".into();
    let endpoints = vec![
        both,
        endpoint("eee000000000000000000002", "web", &back),
        endpoint("eee000000000000000000003", "db", &back),
    ];
    let named = |name: &str| v1::CreateServiceRequest { name: name.into(), ..Default::default() };
    let services = vec![
        service("bbb000000000000000000001", &app, named("rr")),
        service("bbb000000000000000000002", &app, named("shop")),
        service("bbb000000000000000000003", &back, named("shop")),
    ];
    Agent::start(State { networks: vec![app, back], endpoints, services, ..State::default() })
}

#[test]
fn an_endpoint_of_two_services_is_found_by_each_of_them() {
    let agent = agent();
    for (filter, found) in [
        ("service=rr", "eee000000000000000000001\n"),
        ("service=SHOP", "eee000000000000000000001\n"),
        ("service=app/shop", "eee000000000000000000001\n"),
        ("service=back/shop", ""),
        ("service=r", ""),
        ("service=", ""),
        ("network=APP", "eee000000000000000000001\n"),
    ] {
        assert_eq!(agent.run(&format!("endpoint ls -q --filter {filter}")).text(), found, "{filter}");
    }
}

#[test]
fn an_endpoint_is_named_with_its_network_where_the_name_alone_is_not_enough() {
    let agent = agent();
    let ambiguous = agent.run("endpoint inspect web");
    assert_eq!(ambiguous.code, 2, "{}", ambiguous.err);
    assert!(ambiguous.err.contains("hint: use NETWORK/NAME"), "{}", ambiguous.err);
    for (name, id) in [("app/web", 1), ("BACK/web", 2), ("back/db", 3), ("db", 3)] {
        let found = agent.run(&format!("endpoint inspect {name}")).json();
        assert_eq!(found["id"], json!(format!("eee{id:021}")), "{name}");
    }
    assert_eq!(agent.run("endpoint inspect app/db").code, 3);
}

#[test]
fn what_the_managers_and_the_agent_warn_of_is_printed_beside_the_result() {
    let agent = agent();
    agent.services.with(|state| state.warnings = vec!["endpoint web has the same name".into()]);
    for line in
        ["service create --name web --network app", "endpoint attach --network app --netns web --name shop"]
    {
        let done = agent.run(line);
        assert_eq!(
            (done.code, done.err.as_str()),
            (0, "warning: endpoint web has the same name\n"),
            "{line}"
        );
        assert!(!done.out.is_empty(), "{line}");
        let done = agent.run(&format!("{line} --format json"));
        assert_eq!(done.err, "{\"warning\":\"endpoint web has the same name\"}\n", "{line}");
    }
}

/// What a shell would offer for the last of these words.
fn completed(mut command: Command, words: &[&str]) -> Vec<String> {
    command.args(["--", "meshctl"]).args(words);
    command.env("MESHCTL_COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", words.len().to_string());
    let done = Done::from(command.output().unwrap());
    assert_eq!((done.code, done.err.as_str()), (0, ""));
    done.out.lines().map(str::to_owned).collect()
}

#[test]
fn the_shell_completes_names_of_what_there_is() {
    let agent = agent();
    for (words, expected) in [
        (&["network", "inspect", ""][..], &["app", "back"][..]),
        (&["network", "rm", "a"], &["app"]),
        (&["service", "ps", ""], &["app/shop", "back/shop", "rr"]),
        (&["endpoint", "detach", ""], &["app/web", "back/web", "db"]),
        (&["service", "backend", "drain", "r"], &["rr"]),
        (&["service", "backend", "drain", "rr", "app/"], &["app/web"]),
        (&["endpoint", "attach", "--network", "b"], &["back"]),
        (&["node", "inspect", ""], &["h1", "h2"]),
    ] {
        let mut found = completed(agent.command(""), words);
        found.retain(|word| !word.starts_with('-'));
        assert_eq!(found, expected, "{words:?}");
    }
    assert!(completed(agent.command(""), &["net"]).contains(&"network".to_owned()));
}

#[test]
fn without_an_agent_nothing_is_completed_and_nothing_is_said() {
    let mut command = meshctl("");
    command.env("MESH_SOCKET", "/nowhere/meshd.sock");
    let mut found = completed(command, &["network", "inspect", ""]);
    found.retain(|word| !word.starts_with('-'));
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn bash_completes_names_with_the_printed_script() {
    let agent = agent();
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_meshctl"));
    let script = "source <(\"$1\" completion bash)\nCOMP_WORDS=(meshctl network inspect b); COMP_CWORD=3; COMP_TYPE=9\n\
                  $(complete -p meshctl | sed -E 's/.*-F ([^ ]+).*/\\1/') meshctl b inspect\necho \"${COMPREPLY[*]}\"\n";
    // The function is called in this shell, so that it can set its answer.
    let script = script.replace(
        "$(complete -p meshctl | sed -E 's/.*-F ([^ ]+).*/\\1/') meshctl",
        "\"$(complete -p meshctl | sed -E 's/.*-F ([^ ]+).*/\\1/')\" meshctl",
    );
    let mut command = Command::new("bash");
    command.args(["-c", &script, "bash"]).arg(program).env("MESH_SOCKET", agent.socket());
    let done = Done::from(command.output().unwrap());
    assert_eq!((done.code, done.out.as_str()), (0, "back\n"), "{}", done.err);
}
