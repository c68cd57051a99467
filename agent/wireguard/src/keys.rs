//! Keys, and the file that holds a node's private keys.

use std::{
    fmt,
    fs::File,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use boringtun::x25519;
use mesh_sys::durable::{self, Survives};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Error, Result, key_text};

/// Number of a node's key pair; each rotation increments it by one.
pub type Generation = u32;

/// An X25519 public key, shown in base64 as WireGuard's tools show it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&key_text::encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        key_text::decode(text).map(Self).ok_or(Error::BadKey)
    }
}

/// An X25519 private key. It is never displayed, and overwritten in memory when dropped.
#[derive(Clone)]
pub struct PrivateKey(x25519::StaticSecret);

impl PrivateKey {
    /// Generates a key from the kernel's randomness.
    pub fn generate() -> Result<Self> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|error| Error::System {
            action: "generate a private key".to_owned(),
            source: error.into(),
        })?;
        Ok(Self(bytes.into()))
    }

    /// Returns the matching public key.
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519::PublicKey::from(&self.0).to_bytes())
    }

    pub(crate) fn secret(&self) -> &x25519::StaticSecret {
        &self.0
    }
}

impl PartialEq for PrivateKey {
    fn eq(&self, other: &Self) -> bool {
        // Equal public keys mean equal private keys, and comparing them leaks nothing.
        self.public() == other.public()
    }
}

impl Eq for PrivateKey {}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

impl FromStr for PrivateKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        key_text::decode(text).map(|bytes| Self(bytes.into())).ok_or(Error::BadKey)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for PrivateKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&key_text::encode(&self.0.to_bytes()))
    }
}

impl<'de> Deserialize<'de> for PrivateKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// One of the node's own key pairs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnKey {
    /// Its number.
    pub generation: Generation,
    /// The private half.
    pub private: PrivateKey,
    /// Whether this node may start handshakes with it: true once all peers know the public key.
    /// Handshakes of peers are answered in any case.
    pub active: bool,
}

/// A node's own key pairs on disk: one, or two during a rotation.
///
/// To lose no packets, rotate in this order. [`KeyFile::announce`] a new key pair and give it to
/// the engine. Publish its public key beside the old one. When every peer has both,
/// [`KeyFile::activate`] the new one. When every peer's status shows that it uses the new one,
/// publish only that. When all peers have dropped the old one, [`KeyFile::retire`] it.
#[derive(Debug)]
pub struct KeyFile {
    path: PathBuf,
    keys: Vec<OwnKey>,
}

impl KeyFile {
    /// Reads the file, or creates it (mode 0600) with a first key pair. Fails, and leaves the file,
    /// if it is damaged or other users can read it.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let keys = match File::open(&path) {
            Ok(file) => read(&path, file)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let keys = vec![OwnKey { generation: 1, private: PrivateKey::generate()?, active: true }];
                write(&path, &keys)?;
                keys
            }
            Err(error) => return Err(Error::file("open", path)(error)),
        };
        Ok(Self { path, keys })
    }

    /// Returns the key pairs, oldest first.
    pub fn keys(&self) -> &[OwnKey] {
        &self.keys
    }

    /// Begins a rotation: adds an inactive key pair. Its generation is at least `at_least`, later
    /// than the newest, and of the opposite parity. Changes nothing during a rotation. Returns the
    /// newest generation.
    pub fn announce(&mut self, at_least: Generation) -> Result<Generation> {
        let newest = self.newest();
        if self.keys.len() > 1 {
            return Ok(newest);
        }
        let used_up = || Error::Config("key generations are used up");
        let next = newest.checked_add(1).ok_or_else(used_up)?.max(at_least);
        let is_other = (next - newest) % 2 == 1;
        let generation = if is_other { next } else { next.checked_add(1).ok_or_else(used_up)? };
        let mut keys = self.keys.clone();
        keys.push(OwnKey { generation, private: PrivateKey::generate()?, active: false });
        self.store(keys)?;
        Ok(generation)
    }

    /// Activates the newest key pair for the node's own handshakes.
    pub fn activate(&mut self) -> Result<()> {
        let mut keys = self.keys.clone();
        if let Some(newest) = keys.last_mut() {
            newest.active = true;
        }
        self.store(keys)
    }

    /// Ends a rotation: deletes all but the newest key pair, which must be active.
    pub fn retire(&mut self) -> Result<()> {
        match self.keys.last() {
            Some(newest) if newest.active => self.store(vec![newest.clone()]),
            _ => Err(Error::Config("the newest key pair is not active yet")),
        }
    }

    fn newest(&self) -> Generation {
        self.keys.last().map_or(0, |key| key.generation)
    }

    fn store(&mut self, keys: Vec<OwnKey>) -> Result<()> {
        if keys != self.keys {
            write(&self.path, &keys)?;
            self.keys = keys;
        }
        Ok(())
    }
}

/// A key file has some hundred bytes; a much larger file is not one.
const MAX_FILE: u64 = 64 << 10;

fn read(path: &Path, file: File) -> Result<Vec<OwnKey>> {
    let damaged = |reason| Error::KeyFile { path: path.to_owned(), reason };
    let metadata = file.metadata().map_err(Error::file("read", path))?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(Error::KeyFileMode { path: path.to_owned(), mode });
    }
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text).map_err(Error::file("read", path))?;
    // The parser's own message would quote the content.
    let keys: Vec<OwnKey> = serde_json::from_slice(&text).map_err(|_| damaged("it does not hold keys"))?;
    if keys.is_empty() || keys.len() > 2 {
        return Err(damaged("it must hold one or two keys"));
    }
    if keys.is_sorted_by(|a, b| a.generation < b.generation) && keys[0].active {
        Ok(keys)
    } else {
        Err(damaged("its generations are not in order"))
    }
}

/// Replaces the file durably: after a crash it has the old or the new content.
fn write(path: &Path, keys: &[OwnKey]) -> Result<()> {
    let text = serde_json::to_vec(keys)
        .map_err(|error| Error::System { action: "write keys".to_owned(), source: error.into() })?;
    Ok(durable::write(path, &text, Survives::PowerLoss)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_key_file_is_created_once_readable_only_by_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wireguard.keys");
        let made = KeyFile::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(KeyFile::open(&path).unwrap().keys(), made.keys());
    }

    #[test]
    fn a_damaged_key_file_is_an_error_that_names_it_and_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wireguard.keys");
        KeyFile::open(&path).unwrap();
        for content in ["", "[]", "[{\"generation\":1}]", "garbage"] {
            fs::write(&path, content).unwrap();
            let error = KeyFile::open(&path).unwrap_err().to_string();
            assert!(error.contains("wireguard.keys") && error.contains("damaged"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
    }

    #[test]
    fn a_key_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wireguard.keys");
        KeyFile::open(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(KeyFile::open(&path), Err(Error::KeyFileMode { mode: 0o640, .. })));
    }

    #[test]
    fn a_rotation_keeps_the_old_key_until_it_is_retired() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wireguard.keys");
        let mut file = KeyFile::open(&path).unwrap();
        let first = file.keys()[0].clone();
        assert_eq!(file.announce(0).unwrap(), 2);
        assert_eq!(file.announce(7).unwrap(), 2, "one rotation at a time");
        assert_eq!(file.keys()[0], first);
        assert!(!file.keys()[1].active);
        assert!(file.retire().is_err(), "not before it is active");
        file.activate().unwrap();
        let mut file = KeyFile::open(&path).unwrap();
        file.retire().unwrap();
        assert_eq!(file.keys().iter().map(|key| key.generation).collect::<Vec<_>>(), [2]);
        assert_eq!(file.announce(7).unwrap(), 7);
        file.activate().unwrap();
        file.retire().unwrap();
        assert_eq!(file.announce(9).unwrap(), 10, "one of two keys is odd");
    }

    #[test]
    fn a_private_key_is_never_displayed() {
        let key = PrivateKey::generate().unwrap();
        let own = OwnKey { generation: 1, private: key.clone(), active: true };
        assert!(!format!("{own:?}").contains(&key_text::encode(&key.0.to_bytes())));
    }
}
