//! Opening a connection: TCP, then TLS as the pipe asks for it (manual: "SSL Session Encryption").

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use millrace_model::spec::{PostgresSource, TlsMode};
use postgres_protocol::message::frontend;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::Error;

/// A server that does not answer for so long is not there. Connecting, TLS and authentication together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that vanished without a word is noticed after a minute: an idle connection asks after half of it, one that waits for its bytes to be
/// acknowledged gives up after the whole.
const IDLE_BEFORE_PROBE: Duration = Duration::from_secs(30);
const BETWEEN_PROBES: Duration = Duration::from_secs(10);
const PROBES: u32 = 3;

/// A connection, encrypted or not.
#[derive(Debug)]
pub enum Stream {
    /// Plain.
    Plain(TcpStream),
    /// Encrypted.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Gives a connection attempt, from name resolution to authentication, its ten seconds.
///
/// # Errors
/// [`Error::Connect`] where they pass, else those of the attempt.
pub async fn within_timeout<T>(
    source: &PostgresSource,
    attempt: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let timed_out = |_| Error::Connect {
        host: source.host.clone(),
        port: source.port,
        source: io::Error::new(io::ErrorKind::TimedOut, "no answer in ten seconds"),
    };
    tokio::time::timeout(CONNECT_TIMEOUT, attempt).await.map_err(timed_out)?
}

/// Connects, and encrypts as the source's `tls.mode` wants it. To be called [`within_timeout`].
///
/// # Errors
/// [`Error::Connect`] where nobody answers, [`Error::Tls`] where encryption is wanted and cannot be had.
pub async fn dial(source: &PostgresSource) -> Result<Stream, Error> {
    let failed =
        |error: io::Error| Error::Connect { host: source.host.clone(), port: source.port, source: error };
    let mut stream = TcpStream::connect((source.host.as_str(), source.port)).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    notice_vanished_peer(&stream).map_err(failed)?;
    if source.tls_mode == TlsMode::Disable {
        return Ok(Stream::Plain(stream));
    }
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await.map_err(failed)?;
    let answer = stream.read_u8().await.map_err(failed)?;
    let refused = |reason: String| Error::Tls { host: source.host.clone(), port: source.port, reason };
    match (answer, source.tls_mode) {
        (b'S', _) => {}
        (b'N', TlsMode::Prefer) => return Ok(Stream::Plain(stream)),
        (b'N', _) => return Err(refused("the server does not offer it (ssl = off)".to_owned())),
        _ => return Err(Error::Protocol("the answer to a request for TLS is neither S nor N".to_owned())),
    }
    let config = config(source).map_err(refused)?;
    let name = ServerName::try_from(source.host.clone()).map_err(|_| {
        refused(format!("'{}' is not a host name that a certificate could name", source.host))
    })?;
    match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(stream) => Ok(Stream::Tls(Box::new(stream))),
        // What rustls objects to stays; a connection that broke meanwhile is nothing of TLS.
        Err(error) if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => {
            Err(refused(error.to_string()))
        }
        Err(error) => Err(failed(error)),
    }
}

fn notice_vanished_peer(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    let keepalive =
        TcpKeepalive::new().with_time(IDLE_BEFORE_PROBE).with_interval(BETWEEN_PROBES).with_retries(PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(IDLE_BEFORE_PROBE + BETWEEN_PROBES * PROBES))?;
    Ok(())
}

fn config(source: &PostgresSource) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let verifier: Arc<dyn ServerCertVerifier> = match source.tls_mode {
        TlsMode::Disable | TlsMode::Prefer | TlsMode::Require => {
            Arc::new(Lenient { authorities: None, provider })
        }
        TlsMode::VerifyCa => Arc::new(Lenient { authorities: Some(roots(source)?), provider }),
        TlsMode::VerifyFull => {
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots(source)?), provider)
                .build()
                .map_err(|error| error.to_string())?
        }
    };
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

fn roots(source: &PostgresSource) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    match &source.tls_ca {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(pem) => {
            for certificate in rustls_pemfile::certs(&mut pem.as_bytes()) {
                let certificate =
                    certificate.map_err(|error| format!("the caFile cannot be read: {error}"))?;
                roots.add(certificate).map_err(|error| format!("the caFile holds no authority: {error}"))?;
            }
            if roots.is_empty() {
                return Err("the caFile holds no certificate".to_owned());
            }
        }
    }
    Ok(roots)
}

/// What is weaker than `verify-full`, as libpq has it: `prefer` and `require` encrypt and trust anybody; `verify-ca` wants a certificate that leads to a trusted
/// authority, whatever host it names. That the server holds the certificate's key is always checked.
#[derive(Debug)]
struct Lenient {
    /// The authorities of `verify-ca`.
    authorities: Option<RootCertStore>,
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(authorities) = &self.authorities {
            let parsed = ParsedCertificate::try_from(certificate)?;
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, authorities, intermediates, now, algorithms)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
