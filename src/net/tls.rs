//! TLS by rustls: system roots or the plan's own CA, client certificates, a server name of the plan's choice.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::plan::TlsOptions;
use crate::types::address::split;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use x509_cert::der::Decode;

/// Wraps a connected socket; `address` is where it leads, `hosts` what the plan names.
pub async fn wrap(
    tcp: TcpStream,
    options: &TlsOptions,
    address: &str,
    hosts: &[String],
) -> Result<TlsStream<TcpStream>> {
    let name = match &options.server_name {
        Some(name) => name.clone(),
        // A cluster node known by its number only is covered by the certificate of a name in the plan.
        None => {
            let (node, _) = split(address);
            let is_number = |host: &str| host.parse::<std::net::IpAddr>().is_ok();
            let named = hosts.iter().find(|host| !is_number(host));
            match named {
                Some(name) if is_number(node) => name.clone(),
                _ => node.to_owned(),
            }
        }
    };
    let server = ServerName::try_from(name.clone()).map_err(|e| {
        Error::new(ErrorKind::Tls, format!("{name:?} is not a server name")).cause(e)
    })?;
    let connector = TlsConnector::from(Arc::new(config(options)?));
    connector.connect(server, tcp).await.map_err(|e| {
        let hint = if e.to_string().contains("UnknownIssuer") {
            "the certificate is signed by an unknown authority: set tls.ca in the plan to the provider's CA file"
        } else if e.to_string().contains("NotValidForName") {
            "the certificate is for another name: set tls.server_name in the plan to the name it was issued for"
        } else if e.to_string().contains("Expired") {
            "the server's certificate has expired: have it renewed"
        } else {
            "is this the TLS port? if so, check tls.ca and tls.server_name in the plan"
        };
        Error::new(ErrorKind::Tls, format!("no TLS session as {name:?}")).cause(e).hint(hint)
    })
}

/// When the certificate ends that the server has shown, as Unix time in ms; `None` when it cannot be read.
pub fn certificate_ends_ms(stream: &TlsStream<TcpStream>) -> Option<i64> {
    let shown = stream.get_ref().1.peer_certificates()?.first()?;
    let certificate = x509_cert::Certificate::from_der(shown).ok()?;
    let ends = certificate.tbs_certificate().validity().not_after;
    i64::try_from(ends.to_unix_duration().as_millis()).ok()
}

fn config(options: &TlsOptions) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::new(ErrorKind::Tls, "set up TLS").cause(e))?;
    let verified = if options.insecure {
        versions
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    } else {
        versions.with_root_certificates(roots(options)?)
    };
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
        _ => Ok(verified.with_no_client_auth()),
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

/// `insecure: true`: any certificate will do; signatures are still checked.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
