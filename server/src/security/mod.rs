//! Who may talk to the server and how: TLS, API keys, and what each key may do.
//!
//! Certificates and keys are read from files, and read again when the files change; a bad new
//! file leaves in force what was there.

mod bucket;
mod config;
mod grant;
mod keyfile;
mod keys;
mod link;
mod mint;
mod reason;
mod reload;
pub(crate) mod restriction;
mod scope;
mod tls;

use std::sync::Arc;

use engine::Tasks;

use crate::args::TlsListener;

pub use config::{SecurityConfig, TlsConfig};
pub use link::LinkConfig;
pub use mint::{Minted, mint};

pub(crate) use grant::{Grant, Stranger};
pub(crate) use keys::{Keys, forget};
pub(crate) use link::{LinkAcceptor, LinkConnectors};
pub(crate) use scope::{Need, OF_MODELS, of_route, of_rpc};
pub(crate) use tls::{Acceptor, Tls};

/// The certificates and keys in force.
#[derive(Clone)]
pub(crate) struct Security {
    pub tls: Option<Arc<Tls>>,
    pub keys: Option<Arc<Keys>>,
}

impl Security {
    /// Reads the files of a configuration.
    ///
    /// Errors: a sentence that names the flag.
    pub(crate) fn load(config: &SecurityConfig) -> Result<Self, String> {
        let tls = config.tls.clone().map(Tls::load).transpose()?.map(Arc::new);
        let keys = config.api_keys.clone().map(Keys::load).transpose()?.map(Arc::new);
        let has_tls =
            |listener| config.tls.as_ref().is_some_and(|tls| tls.listeners.contains(&listener));
        let doors = [TlsListener::Grpc, TlsListener::Http, TlsListener::Metrics];
        if keys.is_some() && !doors.into_iter().all(has_tls) {
            tracing::warn!(
                "--api-keys: a listener without TLS lets keys cross the network in the clear"
            );
        }
        Ok(Self { tls, keys })
    }

    /// Reads the files again when they change, until `tasks` are cancelled.
    pub(crate) fn follow(&self, config: &SecurityConfig, tasks: &Tasks) {
        if self.tls.is_some() || self.keys.is_some() {
            let watched = reload::watch(self.clone(), config.reload_interval);
            tasks.spawn("certificates and keys", watched);
        }
    }

    /// Returns what makes TLS of a listener's connections, if it is to be had.
    pub(crate) fn acceptor(&self, listener: TlsListener) -> Option<Acceptor> {
        Acceptor::new(self.tls.clone()?, listener)
    }
}
