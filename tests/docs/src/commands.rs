//! Commands and their options, from clap.

use clap::{Arg, Command};

use crate::layout::{table, wrapped};

/// Every command below `root`, a section each.
pub(crate) fn tree(mut root: Command) -> String {
    root.build();
    let mut text = section(&root, 2, |arg| arg.get_help_heading() == GLOBAL);
    append(&root, &mut text);
    text
}

/// One command's options.
pub(crate) fn single(mut command: Command) -> String {
    command.build();
    section(&command, 2, |_| true)
}

/// The heading of options that every command takes; they are shown once.
const GLOBAL: Option<&str> = Some("Options of every command");

fn append(command: &Command, text: &mut String) {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        text.push_str(&section(sub, 2, |arg| arg.get_help_heading() != GLOBAL));
        append(sub, text);
    }
}

fn section(command: &Command, level: usize, shown: impl Fn(&Arg) -> bool) -> String {
    let path = command.get_bin_name().unwrap_or(command.get_name());
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").trim();
    let (heading, about) = ("#".repeat(level), wrapped("", &format!("{about}.")));
    let mut text = format!("{heading} {path}\n\n{about}\n\n```text\n{usage}\n```\n\n");
    let aliases: Vec<String> = command.get_visible_aliases().map(|alias| format!("`{alias}`")).collect();
    if !aliases.is_empty() {
        text.extend(["Also: ", &aliases.join(", "), ".\n\n"]);
    }
    let rows: Vec<[String; 2]> =
        command.get_arguments().filter(|arg| is_listed(arg) && shown(arg)).map(row).collect();
    if !rows.is_empty() {
        text.push_str(&table(["Option", "Meaning"], rows));
        text.push('\n');
    }
    text.push_str(&after(command));
    text
}

/// `--help` and `--version` are the same everywhere.
fn is_listed(arg: &Arg) -> bool {
    !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version")
}

fn row(arg: &Arg) -> [String; 2] {
    let value = arg.get_value_names().unwrap_or_default().join(" ");
    let takes_value = arg.get_action().takes_values();
    let mut names = Vec::new();
    names.extend(arg.get_short().map(|short| format!("-{short}")));
    names.extend(arg.get_long().map(|long| format!("--{long}")));
    let name = if names.is_empty() {
        format!("<{value}>")
    } else if takes_value {
        format!("{} <{value}>", names.join(", "))
    } else {
        names.join(", ")
    };
    [format!("`{name}`"), meaning(arg)]
}

fn meaning(arg: &Arg) -> String {
    let help = arg.get_long_help().or_else(|| arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut text = help.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((before, value)) = text.strip_suffix(']').and_then(|text| text.rsplit_once("[default: ")) {
        text = format!("{before}(default: {value})");
    }
    // Text such as NAME=<..> is no HTML.
    let mut parts = vec![text.replace('<', "&lt;")];
    let values: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|_| !arg.is_hide_possible_values_set() && arg.get_action().takes_values())
        .map(|value| {
            let name = value.get_name();
            value.get_help().map_or_else(|| format!("`{name}`"), |help| format!("`{name}`: {help}"))
        })
        .collect();
    if !values.is_empty() {
        parts.push(format!("Values: {}", values.join("; ")));
    }
    let defaults: Vec<String> =
        arg.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
    if !defaults.is_empty() && arg.get_action().takes_values() {
        parts.push(format!("Default: {}", defaults.join(", ")));
    }
    if let Some(variable) = arg.get_env() {
        parts.push(format!("Environment: `{}`", variable.to_string_lossy()));
    }
    parts.join(". ")
}

/// Notes and the example that follow the options in the help.
fn after(command: &Command) -> String {
    let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let (notes, example) = text.split_once("Example:").unwrap_or((&text, ""));
    let mut result = String::new();
    for note in notes.split("\n\n").map(str::trim).filter(|note| !note.is_empty()) {
        result.push_str(&wrapped("", note));
        result.push_str("\n\n");
    }
    let lines: Vec<&str> = example.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if !lines.is_empty() {
        result.extend(["```sh\n", &lines.join("\n"), "\n```\n\n"]);
    }
    result
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::*;

    #[test]
    fn options_of_every_command_are_shown_once() {
        let text = tree(mesh_meshctl::command());
        assert_eq!(text.matches("| `--socket").count(), 1);
        assert!(text.contains("## meshctl network create\n"), "{text}");
        assert!(text.contains("## meshctl service backend drain\n"), "{text}");
    }

    #[test]
    fn an_option_has_its_values_default_and_variable() {
        let arg = Arg::new("x").short('x').long("xx").value_name("A|B").help("Help").default_value("1");
        let text = single(Command::new("c").arg(arg.env("X_Y")));
        assert!(text.contains("| `-x, --xx <A\\|B>` | Help. Default: `1`. Environment: `X_Y` |"), "{text}");
    }
}
