//! The cluster's certificate authority: one ECDSA P-256 key, stored in a file on managers.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use mesh_model::{NodeId, Role};
use mesh_sys::durable::{self, Survives};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::IdentityError;
use super::fingerprint::Fingerprint;
use super::node::role_name;

/// How long the CA's own certificate is valid.
const CA_VALIDITY: Duration = Duration::from_hours(20 * 365 * 24);
/// Start of every certificate's validity, so that hosts accept it with any error of their own or
/// the issuer's clock. When a certificate was issued does not affect what it proves.
const NOT_BEFORE: SystemTime = SystemTime::UNIX_EPOCH;
/// The DNS name in every manager's certificate, besides its node id: clients verify it.
pub(super) const MANAGER_NAME: &str = "mesh-manager";

const CERT_FILE: &str = "ca.crt";
const KEY_FILE: &str = "ca.key";

/// The certificate authority with its private key.
pub struct CertificateAuthority {
    cert_pem: String,
    fingerprint: Fingerprint,
    cluster: String,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority")
            .field("cluster", &self.cluster)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    /// Creates a CA for a cluster, and writes its key and certificate (mode 0600) into an existing
    /// directory.
    pub fn create(directory: &Path, cluster: &str) -> Result<Self, IdentityError> {
        let key = KeyPair::generate().map_err(IdentityError::creation("the CA's key"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Mesh CA");
        params.distinguished_name.push(DnType::OrganizationName, cluster);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let now = SystemTime::now();
        params.not_before = NOT_BEFORE.into();
        params.not_after = (now + CA_VALIDITY).into();
        let cert_pem =
            params.self_signed(&key).map_err(IdentityError::creation("the CA's certificate"))?.pem();
        // Write the key first: a certificate without its key would look like an unusable CA.
        durable::write(&directory.join(KEY_FILE), key.serialize_pem().as_bytes(), Survives::PowerLoss)?;
        durable::write(&directory.join(CERT_FILE), cert_pem.as_bytes(), Survives::PowerLoss)?;
        Self::from_pem(cert_pem, cluster, key)
    }

    /// Loads a cluster's CA from its directory.
    pub fn load(directory: &Path, cluster: &str) -> Result<Self, IdentityError> {
        let cert_pem = durable::read_text(&directory.join(CERT_FILE))?;
        let key_pem = durable::read_text(&directory.join(KEY_FILE))?;
        let key = KeyPair::from_pem(&key_pem).map_err(|e| IdentityError::malformed("the CA's key", &e))?;
        Self::from_pem(cert_pem, cluster, key)
    }

    fn from_pem(cert_pem: String, cluster: &str, key: KeyPair) -> Result<Self, IdentityError> {
        let der = CertificateDer::from_pem_slice(cert_pem.as_bytes())
            .map_err(|e| IdentityError::malformed("the CA's certificate", &e))?;
        let issuer = Issuer::from_ca_cert_der(&der, key)
            .map_err(|e| IdentityError::malformed("the CA's certificate", &e))?;
        Ok(Self { fingerprint: Fingerprint::of(&der), cert_pem, cluster: cluster.to_owned(), issuer })
    }

    /// Returns the CA's own certificate.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Returns the fingerprint in join tokens.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Returns the private key in PKCS #8 form, for secrets that are derived from it.
    pub(crate) fn key_der(&self) -> &[u8] {
        self.issuer.key().serialized_der()
    }

    /// Signs a certificate for a node, with the key of its request. Ignores everything else in the
    /// request: subject, names and uses are those of the node and its role.
    pub fn issue(
        &self,
        csr_pem: &str,
        node: &NodeId,
        role: Role,
        validity: Duration,
    ) -> Result<String, IdentityError> {
        self.issue_at(SystemTime::now(), csr_pem, node, role, validity)
    }

    /// As [`Self::issue`], on a host whose clock shows `now`.
    pub fn issue_at(
        &self,
        now: SystemTime,
        csr_pem: &str,
        node: &NodeId,
        role: Role,
        validity: Duration,
    ) -> Result<String, IdentityError> {
        let what = "the certificate signing request";
        let request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|e| IdentityError::malformed(what, &e))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, node.as_str());
        params.distinguished_name.push(DnType::OrganizationalUnitName, role_name(role));
        params.distinguished_name.push(DnType::OrganizationName, self.cluster.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let mut names = vec![node.as_str()];
        if role == Role::Manager {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
            names.push(MANAGER_NAME);
        }
        for name in names {
            let name = name.try_into().map_err(IdentityError::creation("a node's certificate"))?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.use_authority_key_identifier_extension = true;
        params.not_before = NOT_BEFORE.into();
        params.not_after = (now + validity).into();
        let request = CertificateSigningRequestParams { params, public_key: request.public_key };
        let certificate =
            request.signed_by(&self.issuer).map_err(IdentityError::creation("a node's certificate"))?;
        Ok(certificate.pem())
    }
}
