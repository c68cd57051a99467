//! What can go wrong with a lab, and the exit code that says so.

use std::{io, path::PathBuf, time::Duration};

/// Result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of the lab or of something run in it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, directory or namespace handle could not be used.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was attempted, as a verb ("open", "create").
        action: &'static str,
        /// What it was attempted on.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{action}: {source}")]
    System {
        /// What was attempted.
        action: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A command ended with another exit code than 0.
    #[error("`{command}` exited with {code}: {}", message(stderr, stdout))]
    Command {
        /// The command line.
        command: String,
        /// Its exit code; 128 + signal when a signal ended it.
        code: i32,
        /// All that it wrote to standard output.
        stdout: String,
        /// All that it wrote to standard error.
        stderr: String,
    },
    /// A command ran past its time and was killed.
    #[error("`{command}` did not end within {after:?}")]
    CommandTimeout {
        /// The command line.
        command: String,
        /// The time it was given.
        after: Duration,
    },
    /// A condition that was waited for did not come.
    #[error("{what}: not within {after:?}")]
    Timeout {
        /// The condition.
        what: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// Output that should be JSON of a known shape is not.
    #[error("output of `{command}`: {source}")]
    Json {
        /// The command whose output it is.
        command: String,
        /// The parser's reason.
        source: serde_json::Error,
    },
    /// Traffic did not arrive as it was sent.
    #[error("{0}")]
    Traffic(String),
    /// A name that cannot be a prefix or a container's name.
    #[error("name `{0}`: letters, digits, `-`, `_` and `.` only, at most 32, a letter or digit first")]
    InvalidName(String),
    /// There is no lab with this prefix.
    #[error("no lab with prefix `{0}` is up")]
    NoLab(String),
    /// A lab with this prefix is up already.
    #[error("a lab with prefix `{0}` is up already")]
    LabExists(String),
    /// The lab has no such host.
    #[error("no host `{0}` in this lab")]
    NoHost(String),
    /// The lab has no such container.
    #[error("no container `{0}` in this lab")]
    NoContainer(String),
    /// The name belongs to something else in the lab.
    #[error("`{name}` is taken in this lab: {by}")]
    NameTaken {
        /// The name.
        name: String,
        /// What has it.
        by: String,
    },
    /// A binary under test was not found.
    #[error("no `{name}` in {}: build it first (`cargo build`) or set MESH_BIN_DIR", dir.display())]
    MissingBinary {
        /// Name of the binary.
        name: &'static str,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// meshd ended when it should have run.
    #[error("meshd on {host} ended; the end of its log:\n{log}")]
    MeshdEnded {
        /// The host's name.
        host: String,
        /// Last lines of its log.
        log: String,
    },
    /// Only root can make namespaces.
    #[error("a lab needs root: it makes network namespaces")]
    NotRoot,
    /// Several things failed; clean-up goes on after an error.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<Error>),
}

impl Error {
    /// `map_err` adaptor for operations on a path.
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    /// `map_err` adaptor for system calls without a path.
    pub(crate) fn system<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        let action = action.into();
        move |source| Self::System { action, source: source.into() }
    }

    /// `Ok` of nothing when nothing failed, else the one error or all of them.
    pub(crate) fn collect(mut errors: Vec<Self>) -> Result<()> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }

    /// Whether the system says that something does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        match self {
            Self::File { source, .. } | Self::System { source, .. } => {
                source.kind() == io::ErrorKind::NotFound
            }
            _ => false,
        }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoLab(prefix) => Some(format!("./dev lab --prefix {prefix} up")),
            Self::LabExists(prefix) => Some(format!("use it, or end it: ./dev lab --prefix {prefix} down")),
            Self::NoHost(_) | Self::NoContainer(_) => Some("./dev lab status shows what there is".to_owned()),
            Self::NotRoot => Some("run it as root".to_owned()),
            _ => None,
        }
    }

    /// Exit code of `mesh-lab` for this error, in `meshctl`'s terms: 2 usage, 3 not found, 4
    /// conflict, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::InvalidName(_) => 2,
            Self::NoLab(_) | Self::NoHost(_) | Self::NoContainer(_) => 3,
            Self::LabExists(_) | Self::NameTaken { .. } => 4,
            _ => 1,
        }
    }
}

/// What a failed command has to say: its standard error, else its standard output.
fn message<'a>(stderr: &'a str, stdout: &'a str) -> &'a str {
    let stderr = stderr.trim();
    if stderr.is_empty() { stdout.trim() } else { stderr }
}
