//! TLS 1.3 configurations of both ends, and readable handshake errors.

use std::error::Error;
use std::io;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, ServerConfig,
    SignatureScheme,
};

use super::authority::MANAGER_NAME;
use super::{Fingerprint, IdentityError, NodeIdentity};

/// Returns the manager's configuration. It presents its certificate to all, and requests client
/// certificates of its CA. Only joining hosts may connect without one.
pub fn server_config(identity: &NodeIdentity) -> Result<Arc<ServerConfig>, IdentityError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(identity)?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|e| IdentityError::malformed("the CA's certificate", &e))?;
    // Include the CA in the chain, so that joining hosts can compare it with the token's
    // fingerprint.
    let chain = vec![identity.certificate()?, identity.ca()?];
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, identity.private_key()?)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Returns a member's configuration: it presents its certificate, and trusts only managers of its
/// CA.
pub fn client_config(identity: &NodeIdentity) -> Result<Arc<ClientConfig>, IdentityError> {
    let chain = vec![identity.certificate()?];
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots(identity)?)
        .with_client_auth_cert(chain, identity.private_key()?)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Returns the configuration of a joining host: it trusts the manager whose CA has the token's
/// fingerprint. If the host kept an identity from an earlier membership, it presents that, to prove
/// that it is the same node.
pub fn join_client_config(
    ca: Fingerprint,
    previous: Option<&NodeIdentity>,
) -> Result<Arc<ClientConfig>, IdentityError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedCa { ca, provider: provider() }));
    let mut config = match previous {
        Some(identity) => {
            builder.with_client_auth_cert(vec![identity.certificate()?], identity.private_key()?)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Returns the name that clients verify in a manager's certificate, whatever its address.
pub(crate) fn manager_name() -> ServerName<'static> {
    ServerName::try_from(MANAGER_NAME).expect("letters and a hyphen are a valid DNS name")
}

/// The manager's CA is not the token's.
#[derive(Debug, thiserror::Error)]
#[error("the manager's CA is not the one of the token")]
pub(crate) struct ForeignCa;

/// Finds the TLS library's error inside an I/O error or a transport's error.
pub(crate) fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        // `io::Error::source` skips the error that it wraps.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = wrapped.map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source());
    }
    None
}

/// Returns whether the handshake failed because the manager's CA is not the token's.
pub(crate) fn is_foreign_ca(error: &rustls::Error) -> bool {
    matches!(
        error,
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) if inner.is::<ForeignCa>()
    )
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn roots(identity: &NodeIdentity) -> Result<Arc<RootCertStore>, IdentityError> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.ca()?)?;
    Ok(Arc::new(roots))
}

/// Accepts a chain that ends in the CA with this fingerprint, and only certificates of that CA.
#[derive(Debug)]
struct PinnedCa {
    ca: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates.iter().find(|certificate| Fingerprint::of(certificate) == self.ca);
        let Some(ca) = pinned else {
            return Err(CertificateError::Other(OtherError(Arc::new(ForeignCa))).into());
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        // This includes the server's name, which only managers' certificates have.
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
