//! The environment variables of a call, checked before anything else is done.

use std::ffi::OsString;

use crate::call::Command;
use crate::error::{CniError, Code};

/// Reads one environment variable.
pub(crate) type Variables<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Most bytes of a container's id.
const MAX_ID: usize = 255;
/// Most bytes of an interface's name (`IFNAMSIZ` less its final 0).
const MAX_IFNAME: usize = 15;

/// The variables of one call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Environment {
    pub(crate) command: Command,
    pub(crate) container: String,
    pub(crate) ifname: String,
    pub(crate) netns: String,
    pub(crate) args: String,
}

impl Environment {
    /// Reads and checks the variables that the command needs.
    pub(crate) fn read(command: &str, variables: Variables<'_>) -> Result<Self, CniError> {
        let command = Command::named(command)
            .ok_or_else(|| invalid(format!("CNI_COMMAND {:?} is no command of CNI", shown(command))))?;
        let text = |key: &str| match variables(key).map(OsString::into_string) {
            None => Ok(String::new()),
            Some(Ok(text)) => Ok(text),
            Some(Err(_)) => Err(invalid(format!("{key} is not UTF-8"))),
        };
        let required = |key: &str, needed: bool| match text(key)? {
            value if value.is_empty() && needed => Err(invalid(format!("{key} is missing"))),
            value => Ok(value),
        };
        let environment = Self {
            command,
            container: required("CNI_CONTAINERID", command.names_container())?,
            ifname: required("CNI_IFNAME", command.names_container())?,
            netns: required("CNI_NETNS", command.needs_netns())?,
            args: text("CNI_ARGS")?,
        };
        if command.names_container() {
            environment.check()?;
        }
        Ok(environment)
    }

    fn check(&self) -> Result<(), CniError> {
        let Self { container, ifname, netns, .. } = self;
        if !is_container_id(container) {
            return Err(invalid(format!("CNI_CONTAINERID {:?} is no container id", shown(container)))
                .details("it has 1 to 255 letters, digits, _ . - and a letter or digit first"));
        }
        if !is_interface_name(ifname) {
            return Err(invalid(format!("CNI_IFNAME {:?} is no name of an interface", shown(ifname)))
                .details("it has 1 to 15 characters, without spaces, / and :"));
        }
        // A DEL may name a namespace that no longer exists, but never another kind of thing.
        if !netns.is_empty() && (!netns.starts_with('/') || netns.contains('\0')) {
            return Err(invalid(format!("CNI_NETNS {:?} is no absolute path", shown(netns))));
        }
        Ok(())
    }
}

fn invalid(message: String) -> CniError {
    CniError::new(Code::InvalidEnvironment, message)
}

/// As much of a refused value as an error shows.
fn shown(value: &str) -> String {
    value.chars().take(40).collect()
}

/// The specification's pattern, with a limit of length: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`.
fn is_container_id(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.bytes().all(allowed) && text.len() <= MAX_ID
}

/// What the specification and the kernel (`dev_valid_name`) accept.
fn is_interface_name(text: &str) -> bool {
    let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    (1..=MAX_IFNAME).contains(&text.len()) && !matches!(text, "." | "..") && !text.contains(forbidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(command: &str, variables: &[(&str, &str)]) -> Result<Environment, CniError> {
        Environment::read(command, &|key| {
            variables.iter().find(|(name, _)| *name == key).map(|(_, value)| value.into())
        })
    }

    const ADD: [(&str, &str); 3] =
        [("CNI_CONTAINERID", "f09415a0"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/run/netns/a")];

    #[test]
    fn each_variable_that_a_command_needs_is_named_when_it_is_missing() {
        assert!(read("ADD", &ADD).is_ok());
        for (missing, _) in ADD {
            let given: Vec<_> = ADD.into_iter().filter(|(name, _)| *name != missing).collect();
            let error = read("ADD", &given).unwrap_err();
            assert_eq!((error.code.number(), error.message), (4, format!("{missing} is missing")));
        }
        assert!(read("DEL", &ADD[..2]).is_ok(), "a DEL needs no namespace");
        assert!(read("STATUS", &[]).is_ok() && read("GC", &[]).is_ok());
    }

    #[test]
    fn hostile_values_are_error_4() {
        let with = |key: &str, value: &str| {
            let mut variables = ADD;
            variables.iter_mut().filter(|(name, _)| *name == key).for_each(|pair| pair.1 = value);
            read("ADD", &variables.map(|(k, v)| (k, v))).unwrap_err().code.number()
        };
        for id in ["../../etc", "a/b", "-x", "a b", &"x".repeat(300)] {
            assert_eq!(with("CNI_CONTAINERID", id), 4, "{id}");
        }
        for ifname in ["sixteen-letters-", "a/b", "a b", "a:b", "..", "\u{1b}[1m"] {
            assert_eq!(with("CNI_IFNAME", ifname), 4, "{ifname}");
        }
        for netns in ["relative", "run/netns/a"] {
            assert_eq!(with("CNI_NETNS", netns), 4, "{netns}");
        }
        assert_eq!(read("DELETE", &ADD).unwrap_err().code.number(), 4);
    }
}
