//! A node's own key and certificate, and the identity in another node's certificate.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use mesh_model::{NodeId, Role};
use mesh_sys::durable::{self, Survives};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

use super::IdentityError;
use super::fingerprint::Fingerprint;

const CERTIFICATE: &str = "the node's certificate";
/// Validity of a node's certificate. Its agent renews it after a third of that time.
pub const NODE_VALIDITY: Duration = Duration::from_hours(90 * 24);
/// Clocks of a cluster may differ by this much without an effect on certificates.
const SLACK: Duration = Duration::from_hours(24);

/// The identity of a peer that has proved to own its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The node (the subject's common name).
    pub node: NodeId,
    /// The role in the certificate (the subject's organizational unit).
    pub role: Role,
    /// The cluster (the subject's organization).
    pub cluster: String,
}

impl PeerIdentity {
    /// Returns the identity in a certificate that was already verified against the cluster's CA.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let (_, certificate) =
            X509Certificate::from_der(certificate).map_err(|e| IdentityError::malformed(CERTIFICATE, &e))?;
        let subject = certificate.subject();
        let node = single(subject, X509Name::iter_common_name, "common name")?
            .parse()
            .map_err(|e| IdentityError::malformed(CERTIFICATE, &e))?;
        let role = match single(subject, X509Name::iter_organizational_unit, "organizational unit")? {
            "manager" => Role::Manager,
            "worker" => Role::Worker,
            other => {
                return Err(IdentityError::malformed(CERTIFICATE, &format!("role {other:?} does not exist")));
            }
        };
        let cluster = single(subject, X509Name::iter_organization, "organization")?.to_owned();
        Ok(Self { node, role, cluster })
    }
}

/// Returns the name of a role in certificates.
pub(super) const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Manager => "manager",
        Role::Worker => "worker",
    }
}

/// Returns the only attribute of its kind: a subject with two would have two identities.
fn single<'a, I: Iterator<Item = &'a x509_parser::x509::AttributeTypeAndValue<'a>>>(
    name: &'a X509Name<'a>,
    attributes: impl FnOnce(&'a X509Name<'a>) -> I,
    what: &'static str,
) -> Result<&'a str, IdentityError> {
    let malformed = || IdentityError::malformed(CERTIFICATE, &format!("its subject must have one {what}"));
    let mut attributes = attributes(name);
    let attribute = attributes.next().ok_or_else(malformed)?;
    if attributes.next().is_some() {
        return Err(malformed());
    }
    attribute.as_str().map_err(|_| malformed())
}

/// A new private key, and a certificate request for it. The key never leaves the host.
#[derive(Clone)]
pub struct NodeKey {
    /// The private key, PKCS #8.
    pub key_pem: String,
    /// The certificate signing request (PKCS #10) to send to a manager.
    pub csr_pem: String,
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeKey").finish_non_exhaustive()
    }
}

impl NodeKey {
    /// Generates a new ECDSA P-256 key.
    pub fn generate() -> Result<Self, IdentityError> {
        let key = KeyPair::generate().map_err(IdentityError::creation("the node's key"))?;
        let mut params = CertificateParams::default();
        // A manager knows the requesting node, and ignores its name in the request.
        params.distinguished_name = DistinguishedName::new();
        let request = params
            .serialize_request(&key)
            .and_then(|request| request.pem())
            .map_err(IdentityError::creation("the certificate signing request"))?;
        Ok(Self { key_pem: key.serialize_pem(), csr_pem: request })
    }

    /// Returns the identity from this key and the certificate issued for it.
    pub fn into_identity(self, cert_pem: String, ca_pem: String) -> NodeIdentity {
        NodeIdentity { cert_pem, key_pem: self.key_pem, ca_pem }
    }
}

/// A node's key, its certificate, and its trusted CA.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeIdentity {
    /// The node's certificate.
    pub cert_pem: String,
    /// The node's private key, PKCS #8.
    pub key_pem: String,
    /// The CA's certificate.
    pub ca_pem: String,
}

impl std::fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeIdentity").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

impl NodeIdentity {
    /// Reads what [`save`](Self::save) wrote.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        Self::from_pem(&durable::read_text(path)?)
    }

    /// Writes it atomically to one file of mode 0600.
    pub fn save(&self, path: &Path) -> Result<(), IdentityError> {
        let parts = [&self.key_pem, &self.cert_pem, &self.ca_pem];
        let text: String = parts.iter().flat_map(|part| [part.trim_end(), "\n"]).collect();
        Ok(durable::write(path, text.as_bytes(), Survives::PowerLoss)?)
    }

    fn from_pem(text: &str) -> Result<Self, IdentityError> {
        let what = "the node's identity file";
        let mut sections = pem_sections(text).into_iter();
        let (Some(key_pem), Some(cert_pem), Some(ca_pem), None) =
            (sections.next(), sections.next(), sections.next(), sections.next())
        else {
            return Err(IdentityError::malformed(what, &"it must hold a key and two certificates"));
        };
        let identity = Self { cert_pem, key_pem, ca_pem };
        identity.peer_identity()?;
        identity.private_key()?;
        identity.ca()?;
        Ok(identity)
    }

    /// Returns the identity in the certificate.
    pub fn peer_identity(&self) -> Result<PeerIdentity, IdentityError> {
        PeerIdentity::from_certificate(&self.certificate()?)
    }

    /// Returns the CA's fingerprint.
    pub fn ca_fingerprint(&self) -> Result<Fingerprint, IdentityError> {
        Ok(Fingerprint::of(&self.ca()?))
    }

    /// Returns when the certificate expires.
    pub fn expires_at(&self) -> Result<Timestamp, IdentityError> {
        Ok(self.validity()?.1)
    }

    /// Returns when to renew the certificate: when two thirds of the validity are left.
    pub fn renew_at(&self) -> Result<Timestamp, IdentityError> {
        let end = self.expires_at()?;
        end.checked_sub(NODE_VALIDITY * 2 / 3).map_err(|e| IdentityError::malformed(CERTIFICATE, &e))
    }

    /// Returns whether to renew the certificate on a host whose clock shows `now`. This is so if
    /// its time has come. It is also so if the issuer's clock was wrong: the certificate is not
    /// valid yet, or valid for longer than one issued now.
    pub fn is_due(&self, now: Timestamp) -> Result<bool, IdentityError> {
        let (start, end) = self.validity()?;
        let longest = now.checked_add(NODE_VALIDITY + SLACK).unwrap_or(Timestamp::MAX);
        Ok(now < start || now >= self.renew_at()? || end > longest)
    }

    /// Returns whether the certificate is valid at that time.
    pub fn is_valid(&self, now: Timestamp) -> Result<bool, IdentityError> {
        let (start, end) = self.validity()?;
        Ok(start <= now && now < end)
    }

    fn validity(&self) -> Result<(Timestamp, Timestamp), IdentityError> {
        let der = self.certificate()?;
        let (_, certificate) =
            X509Certificate::from_der(&der).map_err(|e| IdentityError::malformed(CERTIFICATE, &e))?;
        let validity = certificate.validity();
        let at =
            |seconds| Timestamp::from_second(seconds).map_err(|e| IdentityError::malformed(CERTIFICATE, &e));
        Ok((at(validity.not_before.timestamp())?, at(validity.not_after.timestamp())?))
    }

    pub(super) fn certificate(&self) -> Result<CertificateDer<'static>, IdentityError> {
        CertificateDer::from_pem_slice(self.cert_pem.as_bytes())
            .map_err(|e| IdentityError::malformed(CERTIFICATE, &e))
    }

    pub(super) fn ca(&self) -> Result<CertificateDer<'static>, IdentityError> {
        CertificateDer::from_pem_slice(self.ca_pem.as_bytes())
            .map_err(|e| IdentityError::malformed("the CA's certificate", &e))
    }

    pub(super) fn private_key(&self) -> Result<PrivateKeyDer<'static>, IdentityError> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .map_err(|e| IdentityError::malformed("the node's key", &e))
    }
}

/// Returns the PEM sections of a text (RFC 7468), each with its first and last line.
fn pem_sections(text: &str) -> Vec<String> {
    let mut sections: Vec<String> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        if line.starts_with("-----BEGIN ") || sections.is_empty() {
            sections.push(String::new());
        }
        if let Some(section) = sections.last_mut() {
            section.push_str(line);
            section.push('\n');
        }
    }
    sections
}
