//! The Compose files under `tests/compose`: each says in its first comments how `apply --dry-run`
//! treats it.

use std::path::{Path, PathBuf};

use crate::agent::{Agent, Done, State};

/// What a file says is to happen.
#[derive(Debug, Default)]
struct Expected {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    code: Option<i32>,
    out: Vec<String>,
    err: Vec<String>,
    never: Vec<String>,
    out_lines: Option<usize>,
    err_lines: Option<usize>,
}

impl Expected {
    /// Reads `# KEY: VALUE` lines; other comments are for people.
    fn of(text: &str) -> Self {
        let mut expected = Self::default();
        for line in text.lines().map_while(|line| line.strip_prefix("# ")) {
            let Some((key, value)) = line.split_once(": ").or_else(|| line.split_once(':')) else { continue };
            let number = || value.trim().parse().unwrap();
            match key {
                "args" => expected.arguments.extend(value.split_whitespace().map(str::to_owned)),
                "env" => {
                    let (name, value) = value.split_once('=').unwrap();
                    expected.environment.push((name.into(), value.into()));
                }
                "exit" => expected.code = Some(value.trim().parse().unwrap()),
                "out" => expected.out.push(value.into()),
                "err" => expected.err.push(value.into()),
                "not" => expected.never.push(value.into()),
                "out-lines" => expected.out_lines = Some(number()),
                "err-lines" => expected.err_lines = Some(number()),
                _ => {}
            }
        }
        expected
    }

    fn check(&self, file: &Path, done: &Done) {
        let at = file.display();
        let Done { code, out, err } = done;
        assert_eq!(Some(*code), self.code, "{at}: {out}{err}");
        for part in &self.out {
            assert!(out.contains(part), "{at}: {part:?} is not in {out:?}; {err}");
        }
        for part in &self.err {
            assert!(err.contains(part), "{at}: {part:?} is not in {err:?}");
        }
        for part in &self.never {
            assert!(!out.contains(part) && !err.contains(part), "{at}: {part:?} is in {out:?} or {err:?}");
        }
        assert!(self.out_lines.is_none_or(|lines| lines == out.lines().count()), "{at}: {out}");
        assert!(self.err_lines.is_none_or(|lines| lines == err.lines().count()), "{at}: {err}");
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn every_compose_file_of_the_corpus_is_treated_as_it_says() {
    let agent = Agent::start(State::default());
    let files = files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compose"));
    assert!(files.len() > 20, "{files:?}");
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let expected = Expected::of(&text);
        let mut command = agent.command("apply --dry-run -f");
        command.arg(&file).args(&expected.arguments);
        // What runs the tests may have variables of these names.
        for name in
            ["PORT", "TAG", "IMAGE", "A", "B", "ADMIN", "OTHER", "COMPOSE_PROFILES", "COMPOSE_PROJECT_NAME"]
        {
            command.env_remove(name);
        }
        command.envs(expected.environment.iter().map(|(name, value)| (name, value)));
        expected.check(&file, &Done::from(command.output().unwrap()));
    }
}
