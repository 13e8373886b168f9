//! Which of a server's certificates are taken: `tls.verify` of the plan.
//!
//! Invariant: the handshake's signature is checked by the key in the certificate, whatever else is not.

use crate::plan::TlsVerify;
use std::sync::Arc;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key,
};
use tokio_rustls::rustls::pki_types::{
    CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, Error, PeerMisbehaved, RootCertStore, SignatureScheme,
};
use x509_cert::der::asn1::{AnyRef, BitStringRef};
use x509_cert::der::{self, Decode, Reader, SliceReader};
use x509_cert::time::Validity;

/// Who judges the certificates; `roots` is asked for only where a chain is verified, `others` are names that will do as
/// well as the one that is asked for.
pub fn verifier<E>(
    verify: TlsVerify,
    others: Vec<ServerName<'static>>,
    provider: Arc<CryptoProvider>,
    roots: impl FnOnce() -> Result<RootCertStore, E>,
    failed: impl FnOnce(String) -> E,
) -> Result<Arc<dyn ServerCertVerifier>, E> {
    if verify == TlsVerify::None {
        let algorithms = provider.signature_verification_algorithms;
        return Ok(Arc::new(AnyCertificate(algorithms)));
    }
    let roots = Arc::new(roots()?);
    let full = WebPkiServerVerifier::builder_with_provider(roots, provider)
        .build()
        .map_err(|e| failed(e.to_string()))?;
    let names = match verify {
        TlsVerify::Ca => Names::Any,
        _ => Names::OneOf(others),
    };
    Ok(Arc::new(Named { full, names }))
}

/// When a certificate ends, as Unix time in ms; `None` when it cannot be read.
pub fn ends_ms(certificate: &CertificateDer<'_>) -> Option<i64> {
    let validity: Validity = Validity::from_der(field(certificate, VALIDITY).ok()?).ok()?;
    let ends = validity.not_after;
    i64::try_from(ends.to_unix_duration().as_millis()).ok()
}

/// What a certificate may be called, beside what is asked for.
#[derive(Debug)]
enum Names {
    /// `tls.verify` "ca".
    Any,
    OneOf(Vec<ServerName<'static>>),
}

/// The chain is verified, and the name as far as the plan says.
#[derive(Debug)]
struct Named {
    full: Arc<WebPkiServerVerifier>,
    names: Names,
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let judge =
            |name| (self.full).verify_server_cert(end_entity, intermediates, name, ocsp, now);
        let judged = judge(name);
        // The name is looked at last.
        let other_name = matches!(
            judged,
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ))
        );
        match &self.names {
            _ if !other_name => judged,
            Names::Any => Ok(ServerCertVerified::assertion()),
            Names::OneOf(names) => names.iter().find_map(|n| judge(n).ok()).map_or(judged, Ok),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.full.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.full.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.full.supported_verify_schemes()
    }
}

/// `tls.verify` "none": any certificate will do, of version 1 and with any extensions too. Of what is in it, only the key
/// is looked at.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let unreadable = |_| Error::InvalidCertificate(CertificateError::BadEncoding);
        let key = field(cert, PUBLIC_KEY).map_err(unreadable)?;
        let (algorithm, bits) = key_parts(key).map_err(unreadable)?;
        let of_scheme = self.0.mapping.iter().find(|(s, _)| *s == dss.scheme);
        let (_, verifiers) = of_scheme.ok_or(Error::PeerMisbehaved(
            PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme,
        ))?;
        let is_valid = verifiers.iter().any(|v| {
            v.public_key_alg_id().as_ref() == algorithm
                && (v.verify_signature(bits, message, dss.signature())).is_ok()
        });
        match is_valid {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => Err(Error::InvalidCertificate(CertificateError::BadSignature)),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let unreadable = |_| Error::InvalidCertificate(CertificateError::BadEncoding);
        let key = SubjectPublicKeyInfoDer::from(field(cert, PUBLIC_KEY).map_err(unreadable)?);
        verify_tls13_signature_with_raw_key(message, &key, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// Fields of a certificate behind its version: serial number, algorithm, issuer, validity, subject, public key.
const VALIDITY: usize = 3;
const PUBLIC_KEY: usize = 5;

/// A field of a certificate of any version, whatever is in its extensions.
fn field(certificate: &[u8], number: usize) -> der::Result<&[u8]> {
    let whole = AnyRef::from_der(certificate)?.value();
    let signed = AnyRef::from_der(SliceReader::new(whole)?.tlv_bytes()?)?.value();
    let mut fields = SliceReader::new(signed)?;
    // The version is left out of version 1.
    if fields.peek_byte() == Some(0xA0) {
        fields.tlv_bytes()?;
    }
    for _ in 0..number {
        fields.tlv_bytes()?;
    }
    fields.tlv_bytes()
}

/// A key's algorithm, without its outer tag, and its bits.
fn key_parts(key: &[u8]) -> der::Result<(&[u8], &[u8])> {
    let mut parts = SliceReader::new(AnyRef::from_der(key)?.value())?;
    let algorithm = AnyRef::from_der(parts.tlv_bytes()?)?.value();
    let bits = BitStringRef::from_der(parts.tlv_bytes()?)?;
    let bits = bits.as_bytes().ok_or(der::ErrorKind::Failed)?;
    Ok((algorithm, bits))
}
