//! TLS by rustls: system roots or the plan's own CA, client certificates, a server name of the plan's choice.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::net::certificates;
use crate::plan::TlsOptions;
use crate::types::address::split;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::ResolvesClientCert;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{
    self, AlertDescription, CertificateError, ClientConfig, RootCertStore, SignatureScheme,
};

/// What became of the client's certificate; the server of TLS 1.3 says only after the handshake that it misses one.
#[derive(Clone, Default)]
pub struct ClientCertificate {
    asked: Arc<AtomicBool>,
    given: bool,
}

impl ClientCertificate {
    /// An error that may come from it, with the remedy.
    pub fn explain(&self, e: Error) -> Error {
        let asked = self.asked.load(Relaxed);
        let hint = "set tls.cert and tls.key in the plan to a client certificate that the server accepts, and its key";
        match (about_certificate(&e), self.given) {
            (true, true) => {
                let text = "the server refuses the client certificate of the plan";
                Error::new(ErrorKind::Tls, text).cause(e).hint(
                    "is tls.cert signed by the authority that the server trusts, and has it not ended?",
                )
            }
            (true, false) if asked => {
                let text = "the server wants a client certificate, and the plan has none";
                Error::new(ErrorKind::Tls, text).cause(e).hint(hint)
            }
            (false, false) if asked && e.kind() == ErrorKind::Connection => e.hint(format!(
                "the server has asked for a client certificate: {hint}"
            )),
            _ => e,
        }
    }
}

/// Whether the server says that it does not like the client's certificate, or has got none.
fn about_certificate(e: &(dyn std::error::Error + 'static)) -> bool {
    use AlertDescription as A;
    matches!(
        tls_error(e),
        Some(rustls::Error::AlertReceived(
            A::CertificateRequired
                | A::HandshakeFailure
                | A::BadCertificate
                | A::UnsupportedCertificate
                | A::CertificateExpired
                | A::CertificateRevoked
                | A::CertificateUnknown
                | A::UnknownCA
                | A::AccessDenied
        ))
    )
}

/// What TLS says, below whatever stands above it.
fn tls_error<'a>(e: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut at = Some(e);
    while let Some(e) = at {
        let inside = e.downcast_ref::<std::io::Error>().and_then(|e| e.get_ref());
        let told = inside.and_then(|e| e.downcast_ref::<rustls::Error>());
        if let Some(told) = told.or(e.downcast_ref()) {
            return Some(told);
        }
        at = e.source();
    }
    None
}

/// Where there is no client certificate: notes that the server has asked for one.
#[derive(Debug)]
struct NoCertificate(Arc<AtomicBool>);

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.store(true, Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// Wraps a connected socket; `address` is where it leads, `hosts` what the plan names.
pub async fn wrap(
    tcp: TcpStream,
    options: &TlsOptions,
    address: &str,
    hosts: &[String],
) -> Result<(TlsStream<TcpStream>, ClientCertificate)> {
    let names = match &options.server_name {
        Some(name) => vec![name.clone()],
        None => names(address, hosts),
    };
    let mut servers = Vec::new();
    for name in &names {
        servers.push(ServerName::try_from(name.clone()).map_err(|e| {
            Error::new(ErrorKind::Tls, format!("{name:?} is not a server name")).cause(e)
        })?);
    }
    let Some((server, others)) = servers.split_first() else {
        return Err(Error::new(ErrorKind::Bug, "a server without a name"));
    };
    let client = ClientCertificate {
        given: options.cert.is_some(),
        ..Default::default()
    };
    let connector = TlsConnector::from(Arc::new(config(options, &client, others)?));
    match connector.connect(server.clone(), tcp).await {
        Ok(stream) => Ok((stream, client)),
        Err(e) => {
            let hint = remedy(tls_error(&e));
            let text = format!("no TLS session as {:?}", names.join(" or "));
            Err(client.explain(Error::new(ErrorKind::Tls, text).cause(e).hint(hint)))
        }
    }
}

/// The names of which one has to be a node's. A node that is known by its number only has one of the plan's names: each of
/// them may have a certificate of its own.
fn names(address: &str, hosts: &[String]) -> Vec<String> {
    let (node, _) = split(address);
    let is_number = |host: &str| host.parse::<std::net::IpAddr>().is_ok();
    let mut names: Vec<String> = Vec::new();
    if is_number(node) {
        names.extend(hosts.iter().filter(|h| !is_number(h)).cloned());
    }
    // The plan's own number is as good as a name.
    if names.is_empty() || hosts.iter().any(|h| h == node) {
        names.push(node.to_owned());
    }
    names.dedup();
    names
}

fn remedy(e: Option<&rustls::Error>) -> &'static str {
    use CertificateError as C;
    let Some(rustls::Error::InvalidCertificate(why)) = e else {
        return "is this the TLS port? if so, check tls.ca and tls.server_name in the plan";
    };
    match why {
        C::UnknownIssuer | C::BadSignature => {
            "the certificate is signed by an unknown authority: set tls.ca in the plan to the provider's CA file"
        }
        C::NotValidForName | C::NotValidForNameContext { .. } => {
            "the certificate is for another name: set tls.server_name in the plan to the name it was issued for, or tls.verify to \"ca\" where no name of it fits"
        }
        C::Expired | C::ExpiredContext { .. } => {
            "the server's certificate has expired: have it renewed"
        }
        C::NotValidYet | C::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet: is the clock of this machine right?"
        }
        // What webpki says beyond that has no name here.
        C::Other(why) if why.to_string().contains("CertVersion") => {
            "the server's certificate is of X.509 version 1, which cannot be verified: have one of version 3 issued, or set tls.verify to \"none\", which accepts any certificate"
        }
        C::Other(why) if why.to_string().contains("CaUsedAsEndEntity") => {
            "the server shows the certificate of an authority as its own (CA:TRUE): have one issued by it, or set tls.verify to \"none\", which accepts any certificate"
        }
        _ => {
            "the server's certificate cannot be verified: have another issued, or set tls.verify to \"none\", which accepts any certificate"
        }
    }
}

/// When the certificate ends that the server has shown, as Unix time in ms; `None` when it cannot be read.
pub fn certificate_ends_ms(stream: &TlsStream<TcpStream>) -> Option<i64> {
    certificates::ends_ms(stream.get_ref().1.peer_certificates()?.first()?)
}

fn config(
    options: &TlsOptions,
    client: &ClientCertificate,
    others: &[ServerName<'static>],
) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let failed = |e: String| Error::new(ErrorKind::Tls, "set up TLS").cause(e);
    let versions = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| failed(e.to_string()))?;
    let verifier = certificates::verifier(
        options.verify,
        others.to_vec(),
        provider,
        || roots(options),
        failed,
    )?;
    let verified = (versions.dangerous()).with_custom_certificate_verifier(verifier);
    match (&options.cert, &options.key) {
        (Some(cert), Some(key)) => {
            let chain = certificates(cert)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|e| {
                Error::new(
                    ErrorKind::Tls,
                    format!("read the private key {}", key.display()),
                )
                .cause(e)
            })?;
            verified.with_client_auth_cert(chain, key).map_err(|e| {
                Error::new(ErrorKind::Tls, "use the plan's tls.cert with its tls.key").cause(e)
            })
        }
        _ => {
            let nobody = Arc::new(NoCertificate(client.asked.clone()));
            Ok(verified.with_client_cert_resolver(nobody))
        }
    }
}

fn roots(options: &TlsOptions) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    match &options.ca {
        Some(ca) => {
            for cert in certificates(ca)? {
                roots.add(cert).map_err(|e| {
                    Error::new(ErrorKind::Tls, format!("use {} as tls.ca", ca.display())).cause(e)
                })?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(
                    Error::new(ErrorKind::Tls, "this system has no root certificates")
                        .hint("install the package ca-certificates, or set tls.ca in the plan"),
                );
            }
        }
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let pem = std::fs::read(path).context(ErrorKind::Tls, || {
        format!("read the certificate file {}", path.display())
    })?;
    let certs: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|e| {
            Error::new(
                ErrorKind::Tls,
                format!("read the certificates in {}", path.display()),
            )
            .cause(e)
        })?;
    if certs.is_empty() {
        return Err(Error::new(
            ErrorKind::Tls,
            format!("{} holds no certificate", path.display()),
        ));
    }
    Ok(certs)
}
