//! What adapters are put on: the engine of a text model.

use std::sync::Arc;

use openai_bridge::TextBridge;
use worker::generate::GenerateEngine;
use worker::lora::Adapters;

use crate::models::tables::Tables;
use crate::support::metrics::Totals;

/// The engine of a text model, and what reads and writes its texts.
#[derive(Debug)]
pub(crate) struct Base {
    pub name: String,
    pub bridge: Arc<TextBridge>,
    pub generate: Arc<GenerateEngine>,
    pub adapters: AdapterSupport,
    /// What frontends need to know of it, in a worker.
    pub tables: Option<Arc<Tables>>,
    /// What its scheduler has done.
    pub totals: Arc<Totals>,
}

/// What adapters of a base are.
#[derive(Clone, Debug)]
pub(crate) enum AdapterSupport {
    /// Files that are loaded here.
    Files(Arc<Adapters>),
    /// Names without weights, of a mock.
    Names,
}

impl AdapterSupport {
    /// Returns where adapters of files are loaded.
    pub(crate) fn files(&self) -> Option<&Arc<Adapters>> {
        match self {
            Self::Files(adapters) => Some(adapters),
            Self::Names => None,
        }
    }
}
