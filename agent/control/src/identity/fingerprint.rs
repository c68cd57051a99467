//! Fingerprints of certificates.

use std::fmt;
use std::str::FromStr;

use hex::FromHex;
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};

/// SHA-256 of a certificate's DER form. As text: 64 lowercase hexadecimal characters.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

/// The text is not a fingerprint.
#[derive(Debug, thiserror::Error)]
#[error("a certificate fingerprint must have 64 hexadecimal characters, not {len}")]
pub struct InvalidFingerprint {
    /// Its number of characters.
    pub len: usize,
}

impl Fingerprint {
    /// Returns the fingerprint of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl FromStr for Fingerprint {
    type Err = InvalidFingerprint;

    fn from_str(text: &str) -> Result<Self, InvalidFingerprint> {
        let invalid = || InvalidFingerprint { len: text.chars().count() };
        <[u8; 32]>::from_hex(text).map(Self).map_err(|_| invalid())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
