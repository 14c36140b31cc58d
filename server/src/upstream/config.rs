//! Where the server is and how it is spoken to.

use std::fmt;
use std::path::{Path, PathBuf};

use cluster::vllm;
use http::{HeaderValue, Uri};

use crate::args::UpstreamArgs;
use crate::support::invalid::Invalid;

/// The largest file of a key, in bytes.
const MAX_KEY_BYTES: u64 = 64 << 10;

/// A server whose models a worker offers.
#[derive(Clone)]
pub struct UpstreamConfig {
    /// Its API, with `/v1` or what it has instead, without a slash at the end.
    pub base: String,
    /// The header that lets the worker in.
    pub authorization: Option<HeaderValue>,
    /// The authorities to trust for https; none: the web's.
    pub authorities: Option<PathBuf>,
    /// The most tokens of prompt and text together; none: as the server says.
    pub context_length: Option<u32>,
    /// Where it publishes what becomes of its KV blocks.
    pub kv_events: Option<vllm::Config>,
}

impl UpstreamConfig {
    /// Checks the arguments and makes the configuration; none: there is no such server.
    ///
    /// Errors: [`Invalid`], naming the flag.
    pub fn from_args(
        args: &UpstreamArgs,
        context_length: Option<u32>,
    ) -> Result<Option<Self>, Invalid> {
        let Some(url) = &args.upstream else { return Ok(None) };
        let key = args.upstream_key_file.as_deref();
        Ok(Some(Self {
            base: base(url)?,
            authorization: key.map(authorization).transpose()?,
            authorities: args.upstream_ca_file.clone(),
            context_length,
            kv_events: kv_events(args)?,
        }))
    }
}

impl fmt::Debug for UpstreamConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamConfig").field("base", &self.base).finish_non_exhaustive()
    }
}

fn kv_events(args: &UpstreamArgs) -> Result<Option<vllm::Config>, Invalid> {
    let Some(address) = &args.upstream_kv_events else { return Ok(None) };
    let replay = args.upstream_kv_replay.as_deref();
    Ok(Some(vllm::Config {
        address: tcp("--upstream-kv-events", address)?,
        replay: replay.map(|url| tcp("--upstream-kv-replay", url)).transpose()?,
        topic: String::new(),
    }))
}

/// Reads `tcp://HOST:PORT`.
fn tcp(flag: &str, url: &str) -> Result<String, Invalid> {
    let address = url.strip_prefix("tcp://").filter(|address| {
        address.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && host != "*" && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
    });
    let wrong = || Invalid(format!("{flag}: expected tcp://HOST:PORT, got `{url}`"));
    address.map(str::to_owned).ok_or_else(wrong)
}

fn base(url: &str) -> Result<String, Invalid> {
    let wrong = || {
        let text = format!("--upstream: expected http://HOST:PORT/v1 or https, got `{url}`");
        Invalid(text)
    };
    // It may be a password, so it is not shown.
    if url.contains('@') {
        let text = "--upstream: expected no user in the URL; a key stands in --upstream-key-file";
        return Err(Invalid(text.into()));
    }
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    if !is_http || uri.host().is_none_or(str::is_empty) || uri.query().is_some() {
        return Err(wrong());
    }
    let base = url.trim_end_matches('/');
    match uri.path() {
        "" | "/" => Ok(format!("{base}/v1")),
        _ => Ok(base.to_owned()),
    }
}

fn authorization(path: &Path) -> Result<HeaderValue, Invalid> {
    let wrong = |why: &str| Invalid(format!("--upstream-key-file: `{}`: {why}", path.display()));
    let length = std::fs::metadata(path).map_err(|error| wrong(&error.to_string()))?.len();
    if length > MAX_KEY_BYTES {
        return Err(wrong(&format!("expected at most {MAX_KEY_BYTES} bytes, got {length}")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error.to_string()))?;
    let key = text.lines().next().map(str::trim).unwrap_or_default();
    if key.is_empty() {
        return Err(wrong("expected a key in its first line, got nothing"));
    }
    let mut value = HeaderValue::try_from(format!("Bearer {key}"))
        .map_err(|_| wrong("a header cannot hold its first line"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_at_a_host_and_port() {
        assert_eq!(tcp("--f", "tcp://h:5557").ok().as_deref(), Some("h:5557"));
        for wrong in ["h:5557", "tcp://*:5557", "tcp://h", "tcp://h:0", "ipc://x"] {
            assert!(tcp("--f", wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_address_is_an_api() {
        let read = |url| base(url).map_err(|error| error.to_string());
        for url in ["http://a:1", "http://a:1/", "http://a:1/v1", "http://a:1/v1/"] {
            assert_eq!(read(url).as_deref(), Ok("http://a:1/v1"), "{url}");
        }
        assert_eq!(read("https://a/x/v2").as_deref(), Ok("https://a/x/v2"));
        for wrong in ["", "a:1", "ftp://a:1", "http://", "/v1", "http://a/v1?x=1"] {
            assert!(read(wrong).unwrap_err().contains("--upstream"), "{wrong}");
        }
    }
}
