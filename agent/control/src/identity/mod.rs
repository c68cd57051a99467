//! Identities: the cluster's certificate authority, nodes' certificates, and the checks at both
//! ends of a connection.

mod authority;
mod fingerprint;
mod node;
pub mod tls;

pub use authority::CertificateAuthority;
pub use fingerprint::{Fingerprint, InvalidFingerprint};
pub use node::{NODE_VALIDITY, NodeIdentity, NodeKey, PeerIdentity};

use mesh_sys::durable::FileError;

/// An error with keys or certificates.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A key, certificate or request could not be created.
    #[error("cannot make {what}: {source}")]
    Create {
        /// The object.
        what: &'static str,
        /// The reason.
        source: rcgen::Error,
    },
    /// A key, certificate or request is malformed.
    #[error("{what} cannot be used: {reason}")]
    Malformed {
        /// The object.
        what: &'static str,
        /// The defect.
        reason: String,
    },
    /// The TLS library does not accept these keys and certificates.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

impl IdentityError {
    fn malformed(what: &'static str, reason: &impl ToString) -> Self {
        Self::Malformed { what, reason: reason.to_string() }
    }

    fn creation(what: &'static str) -> impl FnOnce(rcgen::Error) -> Self {
        move |source| Self::Create { what, source }
    }
}
