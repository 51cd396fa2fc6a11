//! Certificates: an authority of our own, made once, and a certificate of the endpoint, made at
//! each start. Clients are told to trust the authority (`AWS_CA_BUNDLE`, `CURL_CA_BUNDLE`). For the
//! endpoints an operator may give another, which is read again when it changes.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use time::{Duration, OffsetDateTime};

use crate::settings::{self, Settings};
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
    #[error("cannot read the certificate or key {path:?}")]
    File { path: PathBuf, source: pem::Error },
    #[error("cannot read back the certificate: {reason}")]
    Read { reason: String },
}

/// What the port serves TLS with. The authority's certificate is in `ca.pem` afterwards.
pub fn server(directory: &Directory, settings: &Settings) -> Result<Arc<ServerConfig>, TlsError> {
    let certificates = Certificates::new(directory, settings)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificates));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Which certificate a client gets: one that the operator gave, for the endpoints, or ours.
#[derive(Debug)]
struct Certificates {
    own: Arc<CertifiedKey>,
    given: Option<Given>,
    endpoint_suffix: String,
}

/// A certificate in files that may change.
#[derive(Debug)]
struct Given {
    files: settings::Certificate,
    loaded: Mutex<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    key: Arc<CertifiedKey>,
    /// What the files looked like when they were read.
    seen: [Seen; 2],
}

/// Length, time and inode of a file: one of them is another after any change.
type Seen = Option<(u64, SystemTime, u64)>;

impl Certificates {
    fn new(directory: &Directory, settings: &Settings) -> Result<Self, TlsError> {
        let endpoint_suffix =
            format!(".lambda-microvm.{}.{}", settings.region, settings.endpoint_domain);
        let own = Arc::new(own(directory, &endpoint_suffix)?);
        let given = settings.certificate.clone().map(Given::load).transpose()?;
        Ok(Self { own, given, endpoint_suffix })
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let is_endpoint = |name: &str| name.ends_with(&self.endpoint_suffix);
        match &self.given {
            Some(given) if hello.server_name().is_some_and(is_endpoint) => Some(given.current()),
            _ => Some(Arc::clone(&self.own)),
        }
    }
}

impl Given {
    fn load(files: settings::Certificate) -> Result<Self, TlsError> {
        let loaded = Loaded { seen: look(&files), key: Arc::new(read(&files)?) };
        Ok(Self { files, loaded: Mutex::new(loaded) })
    }

    /// The certificate in the files. As long as they make no sense, the one before: a certificate and its
    /// key are not replaced in one step.
    fn current(&self) -> Arc<CertifiedKey> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = look(&self.files);
        if seen != loaded.seen {
            match read(&self.files) {
                Ok(key) => {
                    tracing::info!("the endpoints' certificate was read again");
                    loaded.key = Arc::new(key);
                }
                Err(error) => {
                    tracing::warn!("the certificate before is kept: {}", crate::report(&error));
                }
            }
            loaded.seen = seen;
        }
        Arc::clone(&loaded.key)
    }
}

fn look(files: &settings::Certificate) -> [Seen; 2] {
    [&files.chain, &files.key].map(|path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.len(), metadata.modified().ok()?, metadata.ino()))
    })
}

fn read(files: &settings::Certificate) -> Result<CertifiedKey, TlsError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::File { path, source }
    };
    let chain = CertificateDer::pem_file_iter(&files.chain).map_err(failed(&files.chain))?;
    let chain: Result<Vec<_>, _> = chain.collect();
    let chain = chain.map_err(failed(&files.chain))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(failed(&files.key))?;
    certified(chain, key)
}

/// A certificate that our authority signs.
fn own(directory: &Directory, endpoint_suffix: &str) -> Result<CertifiedKey, TlsError> {
    let issuer = authority(directory)?;
    let names =
        vec!["localhost".into(), "127.0.0.1".into(), "::1".into(), format!("*{endpoint_suffix}")];
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "rotifer");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    valid_for(&mut params, ENDPOINT_VALID);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes())
        .map_err(|error| TlsError::Read { reason: format!("{error:?}") })?;
    certified(vec![CertificateDer::from(certificate.der().to_vec())], key)
}

/// A certificate whose key is its own.
fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, TlsError> {
    let key = rustls::crypto::ring::sign::any_supported_type(&key)?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match()?;
    Ok(certified)
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write(files: &settings::Certificate, name: &str) -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.into()]).unwrap();
        let certificate = certificate.self_signed(&key).unwrap();
        // As tools do it: one after the other, each replaced whole.
        for (path, text) in [(&files.chain, certificate.pem()), (&files.key, key.serialize_pem())] {
            let new = path.with_extension("new");
            fs::write(&new, text).unwrap();
            fs::rename(&new, path).unwrap();
        }
        certificate.der().to_vec()
    }

    #[test]
    fn a_given_certificate_is_read_again_when_it_changes() {
        let directory = tempfile::tempdir().unwrap();
        let (chain, key) = (directory.path().join("c.pem"), directory.path().join("k.pem"));
        let files = settings::Certificate { chain, key };
        assert!(matches!(Given::load(files.clone()), Err(TlsError::File { .. })));
        let first = write(&files, "a.example");
        let given = Given::load(files.clone()).unwrap();
        let current = || given.current().cert[0].to_vec();
        assert_eq!(current(), first);
        // Half of a change is none.
        let key = fs::read(&files.key).unwrap();
        let second = write(&files, "b.example");
        let second_key = fs::read(&files.key).unwrap();
        fs::write(&files.key, key).unwrap();
        assert_eq!(current(), first, "the key is not the certificate's");
        fs::write(&files.key, &second_key[..20]).unwrap();
        assert_eq!(current(), first, "the key is cut short");
        fs::write(&files.key, second_key).unwrap();
        assert_eq!(current(), second);
    }
}
