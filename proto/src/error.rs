//! How errors travel: a gRPC status whose details are one line of what went wrong and, where a
//! person can act, a hint.
//!
//! This module is the only table between kinds of errors, gRPC codes and the command's exit codes.

use serde::{Deserialize, Serialize};
use tonic::{Code, Status};

/// The kind of an error, as far as callers have to distinguish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// It was tried and did not work.
    Failed,
    /// The request itself is wrong.
    Usage,
    /// What it names does not exist.
    NotFound,
    /// It exists already, is in use, or overlaps.
    Conflict,
    /// The agent or the managers cannot be reached, or did not answer in time.
    Unreachable,
    /// The caller may not do this.
    Denied,
    /// Nothing of what was asked for is left.
    Exhausted,
    /// It is for managers, and this node is none.
    NotManager,
    /// It removes much, and needs a confirmation.
    Unconfirmed,
}

impl ProblemKind {
    /// All kinds, in the order of their exit codes.
    pub const ALL: [Self; 9] = [
        Self::Failed,
        Self::Denied,
        Self::Exhausted,
        Self::Usage,
        Self::NotFound,
        Self::Conflict,
        Self::Unreachable,
        Self::NotManager,
        Self::Unconfirmed,
    ];

    /// What the kind means to the caller.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Failed => "The operation was tried and failed.",
            Self::Denied => "The caller is not allowed to do this.",
            Self::Exhausted => "No address, port or other resource is left.",
            Self::Usage => "The command line or the request is wrong, or a name is ambiguous.",
            Self::NotFound => "The named object does not exist.",
            Self::Conflict => "The object exists already, is in use, or overlaps another one.",
            Self::Unreachable => "The agent or the managers cannot be reached, or did not answer in time.",
            Self::NotManager => "Only a manager can do this, and this node is a worker.",
            Self::Unconfirmed => "The removal needs a confirmation, and nobody gave it.",
        }
    }

    const fn code(self) -> Code {
        match self {
            Self::Failed => Code::Internal,
            Self::Usage => Code::InvalidArgument,
            Self::NotFound => Code::NotFound,
            Self::Conflict | Self::Unconfirmed => Code::FailedPrecondition,
            Self::Unreachable => Code::Unavailable,
            Self::Denied | Self::NotManager => Code::PermissionDenied,
            Self::Exhausted => Code::ResourceExhausted,
        }
    }

    const fn from_code(code: Code) -> Self {
        match code {
            Code::InvalidArgument | Code::OutOfRange => Self::Usage,
            Code::NotFound => Self::NotFound,
            Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted => Self::Conflict,
            // Without details of ours, `Unknown` is what tonic makes of a connection that broke.
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => Self::Unreachable,
            Code::PermissionDenied | Code::Unauthenticated => Self::Denied,
            Code::ResourceExhausted => Self::Exhausted,
            _ => Self::Failed,
        }
    }

    /// Its name in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Unreachable => "unreachable",
            Self::Denied => "denied",
            Self::Exhausted => "exhausted",
            Self::NotManager => "not_manager",
            Self::Unconfirmed => "unconfirmed",
        }
    }

    /// The kind of this name; [`ProblemKind::Failed`] for one that is not known.
    pub fn named(name: &str) -> Self {
        serde_json::from_value(serde_json::Value::String(name.to_owned())).unwrap_or(Self::Failed)
    }

    /// `meshctl`'s exit code for it.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed | Self::Denied | Self::Exhausted => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Unreachable => 5,
            Self::NotManager => 6,
            Self::Unconfirmed => 7,
        }
    }
}

/// An error as a person sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// What kind.
    pub kind: ProblemKind,
    /// What, on what, why: one line, no full stop.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Problem {
    /// An error without a hint.
    pub fn new(kind: ProblemKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    /// The same error with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<Problem> for Status {
    fn from(problem: Problem) -> Self {
        let details = serde_json::to_vec(&problem).unwrap_or_default();
        Self::with_details(problem.kind.code(), problem.message, details.into())
    }
}

impl From<Status> for Problem {
    fn from(status: Status) -> Self {
        serde_json::from_slice(status.details())
            .unwrap_or_else(|_| Self::new(ProblemKind::from_code(status.code()), status.message()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_survives_the_wire_with_its_hint() {
        let problem = Problem::new(ProblemKind::Conflict, "network app exists").hint("choose another name");
        assert_eq!(Problem::from(Status::from(problem.clone())), problem);
    }

    #[test]
    fn each_kind_has_the_name_that_json_gives_it() {
        for kind in ProblemKind::ALL {
            assert_eq!(ProblemKind::named(kind.as_str()), kind);
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        assert_eq!(ProblemKind::named("later"), ProblemKind::Failed);
    }

    #[test]
    fn the_list_of_all_kinds_is_complete_and_in_order_of_exit_codes() {
        let codes: Vec<u8> = ProblemKind::ALL.iter().map(|kind| kind.exit_code()).collect();
        assert!(codes.is_sorted(), "{codes:?}");
        // The last kind has the highest discriminant: a kind that is added behind it fails here.
        let last = ProblemKind::ALL.iter().map(|kind| *kind as usize).max();
        assert_eq!(last, Some(ProblemKind::ALL.len() - 1));
        assert_eq!(ProblemKind::Unconfirmed as usize + 1, ProblemKind::ALL.len());
    }

    #[test]
    fn a_status_without_details_keeps_its_kind() {
        assert_eq!(Problem::from(Status::unavailable("gone")).kind.exit_code(), 5);
    }
}
