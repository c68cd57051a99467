//! The file that `apply` reads, and what it is read with: the environment and the `.env` file
//! beside it.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use mesh_proto::{Problem, ProblemKind};

use crate::apply::{self, Declared, Given, Invalid, Variables};
use crate::cli::apply::Apply;

/// The variable that names the active profiles, with commas.
const PROFILES: &str = "COMPOSE_PROFILES";

fn usage(file: &Path, why: impl std::fmt::Display) -> Problem {
    Problem::new(ProblemKind::Usage, format!("apply, {}, {why}", file.display()))
}

fn unreadable(file: &Path, error: &io::Error) -> Problem {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => ProblemKind::NotFound,
        io::ErrorKind::InvalidData => ProblemKind::Usage,
        _ => ProblemKind::Failed,
    };
    Problem::new(kind, format!("apply, {}, cannot read: {error}", file.display()))
}

/// Reads and understands the file.
pub(super) fn declared(asked: &Apply) -> Result<Declared, Problem> {
    let file = asked.file.as_path();
    let from_stdin = file == Path::new("-");
    let unreadable =
        |error: &io::Error| unreadable(file, error).hint("specify the file with -f; - is standard input");
    let text = if from_stdin {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(file)
    };
    let text = text.map_err(|error| unreadable(&error))?;
    let folder = if from_stdin {
        std::env::current_dir()
    } else {
        std::path::absolute(file).map(|path| path.parent().map(Path::to_path_buf).unwrap_or_default())
    };
    let folder = folder.and_then(|folder| folder.canonicalize()).map_err(|error| unreadable(&error))?;
    let variables = variables(&folder, &asked.env_file)?;
    let profiles = profiles(&asked.profile, &variables);
    let given = Given { project: project(&folder), variables, profiles };
    let declared = apply::read(&text, given).map_err(|error| invalid(file, &error))?;
    if declared.project.is_empty() {
        return Err(usage(file, "has no project name, and its folder has none either")
            .hint("add `name: NAME` to the file"));
    }
    Ok(declared)
}

/// The environment's variables, and those of the files: `.env` in the folder, if it is there,
/// unless others are named.
fn variables(folder: &Path, files: &[PathBuf]) -> Result<Variables, Problem> {
    let mut variables: Variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let beside = [folder.join(".env")];
    let named = !files.is_empty();
    // Of several files the last counts, and what is there already is kept: so the last is read
    // first.
    for file in if named { files } else { &beside }.iter().rev() {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if !named && is_no_file(&error) => continue,
            Err(error) => return Err(unreadable(file, &error).hint("specify the file with --env-file")),
        };
        apply::add_dotenv(&text, &mut variables).map_err(|error| {
            let message = format!("apply, {} {error}", file.display());
            Problem::new(ProblemKind::Usage, message).hint("write one NAME=VALUE per line")
        })?;
    }
    Ok(variables)
}

/// Nothing is there that could have variables: many keep a Python environment in a folder `.env`.
fn is_no_file(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory)
}

/// The active profiles: those that the command line names, or else the environment.
fn profiles(named: &[String], variables: &Variables) -> Vec<String> {
    if !named.is_empty() {
        return named.to_vec();
    }
    let profiles = variables.get(PROFILES).map_or("", String::as_str).split(',').map(str::trim);
    profiles.filter(|profile| !profile.is_empty()).map(str::to_owned).collect()
}

/// The project's name that a folder gives, made of it as Compose does.
fn project(folder: &Path) -> String {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let name: String = name.chars().filter(allowed).collect();
    name.trim_start_matches(['-', '_']).to_owned()
}

fn invalid(file: &Path, error: &Invalid) -> Problem {
    // Parsers of YAML speak in several lines; a problem is one.
    let why = error.to_string().lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let problem = match error.line {
        0 => usage(file, why),
        line => Problem::new(ProblemKind::Usage, format!("apply, {} line {line}, {why}", file.display())),
    };
    problem.hint(error.hint())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_is_called_as_compose_would_call_it() {
        for (folder, name) in [("/srv/My Shop", "myshop"), ("/srv/_a.b-c", "ab-c"), ("/", ""), ("/srv/ü", "")]
        {
            assert_eq!(project(Path::new(folder)), name, "{folder}");
        }
    }
}
