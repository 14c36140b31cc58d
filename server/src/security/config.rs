//! The checked flags of certificates, keys and origins.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use http::HeaderValue;

use crate::args::{SecurityArgs, TlsListener};
use crate::support::buffers::default_bytes;
use crate::support::invalid::Invalid;

/// Certificates, keys and origins.
#[derive(Clone, Debug)]
pub struct SecurityConfig {
    /// TLS; none serves in the clear.
    pub tls: Option<TlsConfig>,
    /// The file of API keys; none asks for no key.
    pub api_keys: Option<PathBuf>,
    /// Time between two looks at the files; none looks only at SIGHUP.
    pub reload_interval: Option<Duration>,
    /// Origins of web pages that may call; `*` alone is every origin.
    pub cors_origins: Vec<HeaderValue>,
    /// The most bytes of requests of all clients.
    pub max_buffered: usize,
    /// How many large requests are prepared at once; none leaves it to the number of cores.
    pub max_preparing: Option<NonZeroU32>,
}

/// The files of TLS.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// The server's certificate and its chain, PEM.
    pub certificate: PathBuf,
    /// The certificate's private key, PEM.
    pub key: PathBuf,
    /// The authorities of client certificates, PEM; none asks for no client certificate.
    pub client_ca: Option<PathBuf>,
    /// The listeners that have it.
    pub listeners: Vec<TlsListener>,
}

impl SecurityConfig {
    /// Checks the flags against one another; the files are read later.
    pub(crate) fn from_args(args: &SecurityArgs) -> Result<Self, Invalid> {
        let invalid = |text: &str| Err(Invalid(text.to_owned()));
        let tls = match (&args.tls_cert, &args.tls_key) {
            (Some(certificate), Some(key)) => Some(TlsConfig {
                certificate: certificate.clone(),
                key: key.clone(),
                client_ca: args.tls_client_ca.clone(),
                listeners: match args.tls_listeners.is_empty() {
                    true => TlsListener::value_variants().to_vec(),
                    false => args.tls_listeners.clone(),
                },
            }),
            (Some(_), None) => return invalid("--tls-cert: needs --tls-key"),
            (None, Some(_)) => return invalid("--tls-key: needs --tls-cert"),
            (None, None) if args.tls_client_ca.is_some() => {
                return invalid("--tls-client-ca: needs --tls-cert and --tls-key");
            }
            (None, None) if !args.tls_listeners.is_empty() => {
                return invalid("--tls-listeners: needs --tls-cert and --tls-key");
            }
            (None, None) => None,
        };
        if let Some(tls) = &tls
            && tls.client_ca.is_some()
            && tls.listeners.iter().all(|listener| *listener == TlsListener::Metrics)
        {
            return invalid("--tls-client-ca: needs `grpc` or `http` in --tls-listeners");
        }
        let mut cors_origins = Vec::new();
        for origin in &args.cors_origin {
            cors_origins.push(parse_origin(origin)?);
        }
        if cors_origins.len() > 1 && cors_origins.iter().any(|origin| origin == "*") {
            return invalid("--cors-origin: `*` is every origin, so no other may stand beside it");
        }
        let secs = args.tls_reload_secs;
        Ok(Self {
            tls,
            api_keys: args.api_keys.clone(),
            reload_interval: (secs > 0).then(|| Duration::from_secs(secs.into())),
            cors_origins,
            max_buffered: args
                .max_buffered_mib
                .map_or_else(default_bytes, |mib| (mib as usize) << 20),
            max_preparing: args.max_preparing_requests,
        })
    }
}

/// Reads an origin as browsers send it: a scheme, a host, perhaps a port, and no path.
fn parse_origin(text: &str) -> Result<HeaderValue, Invalid> {
    let wrong =
        || Invalid(format!("--cors-origin: expected `*` or SCHEME://HOST[:PORT], got `{text}`"));
    let is_origin = text.split_once("://").is_some_and(|(scheme, host)| {
        !scheme.is_empty() && !host.is_empty() && !host.contains(['/', '*', ' ', '?', '#'])
    });
    match text == "*" || is_origin {
        true => HeaderValue::from_str(text).map_err(|_| wrong()),
        false => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_a_scheme_and_no_path() {
        for good in ["*", "https://a.example", "http://localhost:3000"] {
            assert!(parse_origin(good).is_ok(), "{good}");
        }
        for bad in ["", "a.example", "https://", "https://a.example/", "https://*.example", "://a"]
        {
            assert!(parse_origin(bad).is_err(), "{bad}");
        }
    }
}
