//! Why certificates or handshakes are refused, in sentences that say what to do.

use std::fmt;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, Error, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How the library calls an authority's certificate that a server or client shows as its own.
const AUTHORITY: &str = "CaUsedAsEndEntity";

/// A file and the flag that names it.
#[derive(Clone, Copy)]
pub(super) struct Named<'a> {
    pub flag: &'static str,
    pub path: &'a Path,
}

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.path.display())
    }
}

/// Says why a certificate and a key cannot be used.
pub(super) fn of_pair(error: &Error, certificate: Named<'_>, key: Named<'_>) -> String {
    match error {
        Error::InconsistentKeys(_) => format!(
            "{}: the key does not belong to the certificate of {}: expected the key that {certificate} \
             was made with, got {key}",
            key.flag, certificate.flag
        ),
        other => format!("{}, {}: {certificate}, {key}: {other}", certificate.flag, key.flag),
    }
}

/// Checks that a certificate is not an authority's own, which the other role would refuse.
///
/// Errors: a sentence that names the file.
pub(super) fn check_leaf(
    chain: &[CertificateDer<'static>],
    certificate: Named<'_>,
) -> Result<(), String> {
    let is_authority = chain.first().is_some_and(is_authority);
    match is_authority {
        false => Ok(()),
        true => Err(format!(
            "{}: {certificate} is an authority's own certificate (CA:TRUE), which nobody accepts from \
             a server or client: expected one that the authority signed",
            certificate.flag
        )),
    }
}

/// Returns whether others would refuse a certificate as that of an authority. Whatever else may be
/// wrong with it shows in handshakes.
fn is_authority(certificate: &CertificateDer<'static>) -> bool {
    let mut roots = RootCertStore::empty();
    let Ok(name) = ServerName::try_from("localhost") else { return false };
    if roots.add(certificate.clone()).is_err() {
        return false;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let Ok(verifier) = verifier else { return false };
    let verified = verifier.verify_server_cert(certificate, &[], &name, &[], UnixTime::now());
    verified.is_err_and(|error| error.to_string().contains(AUTHORITY))
}

/// The two ends of a connection, as this one calls them.
#[derive(Debug)]
pub(super) struct Ends {
    /// The role at the other end.
    pub other: &'static str,
    /// This end's flag for the authorities of the other one, and the other way round.
    pub authorities: &'static str,
    pub their_authorities: &'static str,
}

impl Ends {
    /// Says why a handshake failed, if that is what an error is of.
    pub(super) fn told(&'static self, error: io::Error) -> io::Error {
        let found = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        match found {
            Some(tls) => io::Error::new(error.kind(), self.sentence(tls)),
            None => error,
        }
    }

    /// Says what the end of a connection may mean on which nothing came behind the handshake.
    fn silent_end(&self) -> io::Error {
        let other = self.other;
        let text = format!(
            "the {other} closed the connection behind the handshake without a word: it may want a \
             certificate (--worker-tls-cert, --worker-tls-key), or one of another authority than it \
             is shown"
        );
        io::Error::new(io::ErrorKind::ConnectionAborted, text)
    }

    fn sentence(&self, error: &Error) -> String {
        let other = self.other;
        match error {
            Error::InvalidCertificate(why) => self.certificate(why),
            Error::NoCertificatesPresented => format!(
                "the {other} shows no certificate, which {} wants: give it --worker-tls-cert and \
                 --worker-tls-key",
                self.authorities
            ),
            Error::AlertReceived(alert) => self.alert(*alert),
            Error::InvalidMessage(_) => {
                format!("what came is not TLS: the {other} seems to speak in the clear")
            }
            error => error.to_string(),
        }
    }

    fn certificate(&self, why: &CertificateError) -> String {
        let (other, authorities) = (self.other, self.authorities);
        match why {
            CertificateError::UnknownIssuer => {
                format!("the {other}'s certificate is of no authority in the file of {authorities}")
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!(
                    "the {other}'s certificate has other names than the host that is called, as the \
                     {other} advertises it: {why}"
                )
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                format!("the {other}'s certificate has expired: {why}")
            }
            why if why.to_string().contains(AUTHORITY) => format!(
                "the {other}'s certificate is an authority's own (CA:TRUE): expected one that an \
                 authority in the file of {authorities} signed"
            ),
            why => format!("the {other}'s certificate is refused: {why}"),
        }
    }

    fn alert(&self, alert: AlertDescription) -> String {
        let (other, theirs) = (self.other, self.their_authorities);
        match alert {
            AlertDescription::UnknownCA => format!(
                "the {other} refuses the certificate that it is shown: the authority is not in the \
                 file of its {theirs}"
            ),
            AlertDescription::CertificateRequired => format!(
                "the {other} wants a certificate and is shown none: set --worker-tls-cert and \
                 --worker-tls-key"
            ),
            AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::UnsupportedCertificate => format!(
                "the {other} refuses the certificate that it is shown ({alert:?}): its log says why"
            ),
            alert => format!("the {other} refuses the handshake ({alert:?})"),
        }
    }
}

/// A connection whose refusal may come after the handshake, as TLS 1.3 has it: it is told in
/// sentences, and so is an end without a word, which is all that some libraries say of a refusal.
pub(super) struct Told<S> {
    stream: S,
    ends: &'static Ends,
    /// Whether anything came of the other end.
    was_heard: bool,
}

impl<S> Told<S> {
    pub(super) fn new(stream: S, ends: &'static Ends) -> Self {
        Self { stream, ends, was_heard: false }
    }

    fn told(&self, error: io::Error) -> io::Error {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        let is_end = matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe);
        match is_end && !self.was_heard {
            true => self.ends.silent_end(),
            false => self.ends.told(error),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Told<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, has_room) = (buffer.filled().len(), buffer.remaining() > 0);
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        self.was_heard |= buffer.filled().len() > before;
        let is_silent = has_room && !self.was_heard;
        Poll::Ready(match read {
            Ok(()) if is_silent => Err(self.ends.silent_end()),
            Ok(()) => Ok(()),
            Err(error) => Err(self.told(error)),
        })
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Told<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        written.map_err(|error| self.told(error))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        written.map_err(|error| self.told(error))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        flushed.map_err(|error| self.told(error))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    static ENDS: Ends = Ends {
        other: "worker",
        authorities: "--worker-tls-ca",
        their_authorities: "--worker-tls-client-ca",
    };

    #[test]
    fn refused_handshakes_say_what_to_do() {
        let invalid = Error::InvalidCertificate;
        let table = [
            (
                invalid(CertificateError::UnknownIssuer),
                "no authority in the file of --worker-tls-ca",
            ),
            (invalid(CertificateError::NotValidForName), "other names than the host"),
            (invalid(CertificateError::Expired), "certificate has expired"),
            (invalid(CertificateError::BadSignature), "certificate is refused: BadSignature"),
            (Error::NoCertificatesPresented, "shows no certificate, which --worker-tls-ca wants"),
            (
                Error::AlertReceived(AlertDescription::UnknownCA),
                "file of its --worker-tls-client-ca",
            ),
            (Error::AlertReceived(AlertDescription::CertificateRequired), "set --worker-tls-cert"),
            (Error::AlertReceived(AlertDescription::BadCertificate), "its log says why"),
            (Error::AlertReceived(AlertDescription::DecodeError), "refuses the handshake"),
        ];
        for (error, words) in table {
            let told = ENDS.told(io::Error::new(io::ErrorKind::InvalidData, error)).to_string();
            assert!(told.contains(words) && told.contains("worker"), "{told}");
        }
    }

    #[tokio::test]
    async fn an_end_behind_the_handshake_without_a_word_may_be_a_refusal() {
        let mut buffer = [0; 4];
        let (here, there) = duplex(16);
        drop(there);
        let error = Told::new(here, &ENDS).read(&mut buffer).await.unwrap_err();
        assert!(error.to_string().contains("it may want a certificate"), "{error}");
        let (here, mut there) = duplex(16);
        there.write_all(b"word").await.unwrap();
        drop(there);
        let mut told = Told::new(here, &ENDS);
        assert_eq!(told.read(&mut []).await.unwrap(), 0, "nothing was asked for");
        for length in [4, 0] {
            assert_eq!(told.read(&mut buffer).await.unwrap(), length, "what spoke may end");
        }
    }

    #[test]
    fn other_failures_keep_their_words() {
        let lost = io::Error::new(io::ErrorKind::ConnectionReset, "reset");
        let told = ENDS.told(lost);
        assert_eq!(
            (told.kind(), told.to_string()),
            (io::ErrorKind::ConnectionReset, "reset".into())
        );
    }
}
