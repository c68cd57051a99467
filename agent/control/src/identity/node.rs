//! A node's own key and certificate, and what is read from another's.

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
/// How long a node's certificate is valid. Its agent renews it after a third of that time.
pub const NODE_VALIDITY: Duration = Duration::from_hours(90 * 24);
/// Clocks of a cluster may differ by this much without an effect on certificates.
const SLACK: Duration = Duration::from_hours(24);

/// Whose certificate a peer has proved to own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Which node (the subject's common name).
    pub node: NodeId,
    /// In which role the certificate was issued (the subject's organizational unit).
    pub role: Role,
    /// Of which cluster (the subject's organization).
    pub cluster: String,
}

impl PeerIdentity {
    /// Reads the identity from a certificate that was verified against the cluster's CA before.
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

/// The name of a role in certificates.
pub(super) const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Manager => "manager",
        Role::Worker => "worker",
    }
}

/// The only attribute of its kind: a subject with two would be two identities.
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

/// A new private key, and the request for a certificate for it. The key never leaves the host.
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
    /// Draws a new ECDSA P-256 key.
    pub fn generate() -> Result<Self, IdentityError> {
        let key = KeyPair::generate().map_err(IdentityError::creation("the node's key"))?;
        let mut params = CertificateParams::default();
        // A manager knows who asks and ignores what a request says about it.
        params.distinguished_name = DistinguishedName::new();
        let request = params
            .serialize_request(&key)
            .and_then(|request| request.pem())
            .map_err(IdentityError::creation("the certificate signing request"))?;
        Ok(Self { key_pem: key.serialize_pem(), csr_pem: request })
    }

    /// The identity that this key and the certificate issued for it make.
    pub fn into_identity(self, cert_pem: String, ca_pem: String) -> NodeIdentity {
        NodeIdentity { cert_pem, key_pem: self.key_pem, ca_pem }
    }
}

/// A node's key, its certificate, and the CA that it trusts.
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

    /// Writes it to one file of mode 0600, which has the old identity or the new one at any time.
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

    /// Who the certificate says that this is.
    pub fn peer_identity(&self) -> Result<PeerIdentity, IdentityError> {
        PeerIdentity::from_certificate(&self.certificate()?)
    }

    /// The CA's fingerprint.
    pub fn ca_fingerprint(&self) -> Result<Fingerprint, IdentityError> {
        Ok(Fingerprint::of(&self.ca()?))
    }

    /// When the certificate ends.
    pub fn expires_at(&self) -> Result<Timestamp, IdentityError> {
        Ok(self.validity()?.1)
    }

    /// When to renew the certificate: two thirds of the time that one is valid are left.
    pub fn renew_at(&self) -> Result<Timestamp, IdentityError> {
        let end = self.expires_at()?;
        end.checked_sub(NODE_VALIDITY * 2 / 3).map_err(|e| IdentityError::malformed(CERTIFICATE, &e))
    }

    /// Whether to renew the certificate on a host whose clock shows `now`: its time has come; or it
    /// is not valid yet, or valid for longer than one that is issued now, since the issuer's clock
    /// was wrong.
    pub fn is_due(&self, now: Timestamp) -> Result<bool, IdentityError> {
        let (start, end) = self.validity()?;
        let longest = now.checked_add(NODE_VALIDITY + SLACK).unwrap_or(Timestamp::MAX);
        Ok(now < start || now >= self.renew_at()? || end > longest)
    }

    /// Whether the certificate can be used at that time.
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

/// The PEM sections of a text (RFC 7468), each with its first and last line.
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
