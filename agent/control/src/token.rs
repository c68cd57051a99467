//! Join tokens: `MESH-1-<fingerprint of the CA>-<secret>`.
//!
//! The store holds a nonce for each role. The secret is derived from it with the CA's private key,
//! which only managers have. So read access to the store, or to a backup of it, does not suffice to
//! join.

use std::fmt;
use std::str::FromStr;

use hex::FromHex;
use mesh_model::Role;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::identity::{Fingerprint, InvalidFingerprint};

const VERSION: &str = "MESH-1";
/// Bytes of a secret: 160 bits.
const SECRET_LEN: usize = 20;

/// The secret part of a join token.
#[derive(Clone)]
pub struct Secret([u8; SECRET_LEN]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl PartialEq for Secret {
    /// Compares in constant time.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Secret {}

/// A join token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Fingerprint of the manager's CA.
    pub ca: Fingerprint,
    /// Proves to the manager that the host may join.
    pub secret: Secret,
}

/// The text is not a join token.
#[derive(Debug, thiserror::Error)]
pub enum InvalidToken {
    /// It has the wrong prefix.
    #[error("not a join token: it must begin with {VERSION}-")]
    Version,
    /// It has too few or too many parts.
    #[error("the join token is incomplete: it has the form {VERSION}-<CA fingerprint>-<secret>")]
    Parts,
    /// The fingerprint is damaged.
    #[error("the join token's CA fingerprint is damaged: {0}")]
    Fingerprint(#[from] InvalidFingerprint),
    /// The secret is damaged.
    #[error("the join token's secret is damaged: it has {} hexadecimal characters, not {len} characters", SECRET_LEN * 2)]
    Secret {
        /// Its number of characters.
        len: usize,
    },
}

impl FromStr for JoinToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let rest = text.trim().strip_prefix(VERSION).and_then(|rest| rest.strip_prefix('-'));
        let rest = rest.ok_or(InvalidToken::Version)?;
        let (ca, secret) = rest.split_once('-').ok_or(InvalidToken::Parts)?;
        if secret.contains('-') {
            return Err(InvalidToken::Parts);
        }
        Ok(Self { ca: ca.parse()?, secret: parse_secret(secret)? })
    }
}

fn parse_secret(text: &str) -> Result<Secret, InvalidToken> {
    let invalid = || InvalidToken::Secret { len: text.chars().count() };
    <[u8; SECRET_LEN]>::from_hex(text).map(Secret).map_err(|_| invalid())
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION}-{}-{}", self.ca, hex::encode(self.secret.0))
    }
}

/// The store's record of a role's token; rotation replaces the nonce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenRecord {
    nonce: String,
}

impl TokenRecord {
    /// Generates a nonce.
    pub(crate) fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0u8; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Self { nonce: hex::encode(bytes) })
    }

    /// Returns the matching secret. `ca_key` is the CA's private key in a fixed encoding.
    pub(crate) fn secret(&self, ca_key: &[u8], role: Role) -> Secret {
        let role: &[u8] = match role {
            Role::Manager => b"manager",
            Role::Worker => b"worker",
        };
        let mut hash = Sha256::new();
        hash.update(b"mesh join token 1\0");
        // Fixed lengths, so that key, role and nonce cannot be confused.
        hash.update(Sha256::digest(ca_key));
        hash.update(Sha256::digest(role));
        hash.update(Sha256::digest(self.nonce.as_bytes()));
        let digest = hash.finalize();
        let mut secret = [0; SECRET_LEN];
        secret.copy_from_slice(&digest[..SECRET_LEN]);
        Secret(secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        let ca = "ab".repeat(32).parse().unwrap();
        JoinToken { ca, secret: TokenRecord::random().unwrap().secret(b"key", Role::Worker) }
    }

    #[test]
    fn a_token_is_unchanged_after_writing_and_reading() {
        let token = token();
        assert_eq!(token.to_string().parse::<JoinToken>().unwrap(), token);
        assert_eq!(format!("  {token}\n").parse::<JoinToken>().unwrap(), token);
    }

    #[test]
    fn a_damaged_token_is_refused_with_the_reason() {
        let text = token().to_string();
        let error = |text: &str| text.parse::<JoinToken>().unwrap_err().to_string();
        assert_eq!(error("SWMTKN-1-abc"), "not a join token: it must begin with MESH-1-");
        assert!(error("MESH-1-abcd").contains("incomplete"));
        assert!(error("MESH-1-abcd-ef").contains("fingerprint is damaged"));
        assert!(error(&text[..text.len() - 1]).contains("secret is damaged"));
        assert!(error(&format!("{text}-00")).contains("incomplete"));
    }

    #[test]
    fn secrets_differ_by_role_nonce_and_key() {
        let record = TokenRecord::random().unwrap();
        let secret = record.secret(b"key", Role::Worker);
        assert!(secret == record.secret(b"key", Role::Worker));
        assert!(secret != record.secret(b"key", Role::Manager));
        assert!(secret != record.secret(b"other", Role::Worker));
        assert!(secret != TokenRecord::random().unwrap().secret(b"key", Role::Worker));
    }
}
