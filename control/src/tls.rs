//! Certificates: an authority of our own, made once, and a certificate of the endpoint, made at
//! each start. Clients are told to trust the authority (`AWS_CA_BUNDLE`, `CURL_CA_BUNDLE`).

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};

use crate::settings::Settings;
use crate::state::{Directory, StateError};

const AUTHORITY_VALID: Duration = Duration::days(3650);
/// Clients refuse certificates of a longer life.
const ENDPOINT_VALID: Duration = Duration::days(397);
/// Clients whose clocks are behind.
const BACKDATED: Duration = Duration::days(1);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum TlsError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    #[error("cannot use the certificate")]
    Use(#[from] rustls::Error),
    #[error("cannot read back the certificate: {reason}")]
    Read { reason: String },
}

/// What the endpoint serves TLS with. The authority's certificate is in `ca.pem` afterwards.
pub fn server(directory: &Directory, settings: &Settings) -> Result<Arc<ServerConfig>, TlsError> {
    let issuer = authority(directory)?;
    let domain = format!("*.lambda-microvm.{}.{}", settings.region, settings.endpoint_domain);
    let names = vec!["localhost".into(), "127.0.0.1".into(), "::1".into(), domain];
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "rotifer");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    valid_for(&mut params, ENDPOINT_VALID);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes())
        .map_err(|error| TlsError::Read { reason: format!("{error:?}") })?;
    let chain = vec![CertificateDer::from(certificate.der().to_vec())];
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn authority(directory: &Directory) -> Result<Issuer<'static, KeyPair>, TlsError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "rotifer certificate authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, AUTHORITY_VALID);
    let key = match directory.read("ca.key")? {
        Some(pem) if directory.file("ca.pem").exists() => KeyPair::from_pem(&pem)?,
        _ => {
            let key = KeyPair::generate()?;
            let certificate = params.self_signed(&key)?;
            directory.write("ca.key", key.serialize_pem().as_bytes())?;
            directory.write("ca.pem", certificate.pem().as_bytes())?;
            key
        }
    };
    // Of its own certificate an authority needs no more than the name and the key.
    Ok(Issuer::new(params, key))
}

fn valid_for(params: &mut CertificateParams, time: Duration) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATED;
    params.not_after = now + time;
}
