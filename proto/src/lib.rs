//! The control-plane protocol: the generated code of `proto/mesh/v1/*.proto`, the conversions
//! between its messages and the model's records, and how errors travel.

pub mod convert;
pub mod error;

/// The generated messages, clients and servers.
#[expect(missing_docs, clippy::pedantic, reason = "generated; the .proto files are the documentation")]
pub mod v1 {
    tonic::include_proto!("mesh.v1");
}

/// Most bytes of a message, a snapshot in the worst case: tonic's default of 4 MiB holds about
/// 20 000 leases.
pub const MAX_MESSAGE: usize = 64 << 20;

pub use convert::InvalidMessage;
pub use error::{Problem, ProblemKind};
