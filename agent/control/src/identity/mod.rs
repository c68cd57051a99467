//! Who is who: the cluster's certificate authority, nodes' certificates, and what both ends of a
//! connection accept.

mod authority;
mod fingerprint;
mod node;
pub mod tls;

pub use authority::CertificateAuthority;
pub use fingerprint::{Fingerprint, InvalidFingerprint};
pub use node::{NODE_VALIDITY, NodeIdentity, NodeKey, PeerIdentity};

use mesh_sys::durable::FileError;

/// Why something about keys or certificates did not work.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A key, certificate or request could not be made.
    #[error("cannot make {what}: {source}")]
    Create {
        /// What was to be made.
        what: &'static str,
        /// The reason.
        source: rcgen::Error,
    },
    /// A key, certificate or request is not what it should be.
    #[error("{what} cannot be used: {reason}")]
    Malformed {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The TLS library does not take these keys and certificates.
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
