//! The completion scripts in the shells that they are for.

use std::process::Command;

use crate::agent::{Agent, Done, State, network};

fn agent() -> Agent {
    let networks = vec![
        network("aaa000000000000000000001", "apples", 4096),
        network("aaa000000000000000000002", "bananas", 4097),
        network("aaa000000000000000000003", "berries", 4098),
    ];
    Agent::start(State { networks, ..State::default() })
}

/// Runs a script of a shell that finds `meshctl` on its path, and its agent.
fn run(agent: &Agent, shell: &[&str], script: &str) -> Done {
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_meshctl"));
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", program.parent().unwrap().display());
    // A shell writes below its home; one that hangs is ended.
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new("timeout");
    command.arg("60").args(shell).arg(script);
    command.env("MESH_SOCKET", agent.socket()).env("PATH", path).env("HOME", home.path());
    command.env("TERM", "dumb").env("XDG_CONFIG_HOME", home.path()).env("XDG_DATA_HOME", home.path());
    Done::from(command.output().unwrap())
}

/// Presses the tab key behind the words, and prints the line as zsh has completed it.
const ZSH: &str = r#"
zmodload zsh/zpty
zpty shell zsh -f -i
# What is typed is not to be taken for the answer.
zpty -w shell 'stty -echo; PROMPT="" RPROMPT=""; unsetopt zle_bracketed_paste prompt_cr prompt_sp; autoload -Uz compinit; compinit -u -D; source <(meshctl completion zsh); echo READY-$((6 * 7))'
zpty -r shell output '*READY-42*'
zpty -w shell 'show() { print -r -- "LINE<$BUFFER>"; }; zle -N show; bindkey "^X" show; echo READY-$((6 * 8))'
zpty -r shell output '*READY-48*'
zpty -w -n shell $'WORDS\t\x18'
zpty -r shell output '*LINE<*>*'
print -r -- "${${output##*LINE<}%%>*}"
zpty -d shell
"#;

#[test]
fn zsh_completes_the_name_of_a_network_at_the_tab_key() {
    let agent = agent();
    for (words, expected) in [
        ("meshctl network inspect ap", "meshctl network inspect apples"),
        ("meshctl endpoint attach --network bana", "meshctl endpoint attach --network bananas"),
        ("meshctl netw", "meshctl network"),
    ] {
        let done = run(&agent, &["zsh", "-f", "-c"], &ZSH.replace("WORDS", words));
        assert_eq!((done.code, done.out.trim()), (0, expected), "{}", done.err);
    }
}

#[test]
fn fish_completes_the_name_of_a_network() {
    let agent = agent();
    for (words, expected) in [
        ("meshctl network inspect ap", &["apples"][..]),
        ("meshctl network rm b", &["bananas", "berries"]),
        ("meshctl netw", &["network"]),
    ] {
        let script = format!("meshctl completion fish | source; complete -C '{words}'");
        let done = run(&agent, &["fish", "--no-config", "-c"], &script);
        // Behind a tab stands what the word means.
        let found: Vec<&str> = done.out.lines().map(|line| line.split('\t').next().unwrap()).collect();
        assert_eq!((done.code, found.as_slice()), (0, expected), "{}", done.err);
    }
}
