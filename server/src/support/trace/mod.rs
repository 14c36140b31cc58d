//! Traces of single requests: which are sampled, what is recorded, where it goes.
//!
//! Nothing is recorded unless trace settings say so, and tensor data only at the level TENSORS.

mod file;
mod otlp;
mod settings;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use engine::Result;
use file::TraceFile;
use otlp::Exporter;
use settings::{Own, Settings, Values, merged, put_all, read};
use tensor::{Datatype, Tensor};

use crate::args::{TraceArgs, TraceMode};
use crate::support::invalid::Invalid;

/// Elements of a tensor that a trace shows; more are cut.
const MAX_ELEMENTS_SHOWN: usize = 64;

/// Tensors that a trace shows, of a request and all its responses; more are left out.
const MAX_TENSORS_SHOWN: usize = 64;

/// Bytes of a BYTES element that a trace shows; more are cut.
const MAX_ELEMENT_BYTES_SHOWN: usize = 256;

/// The trace settings at the start.
#[derive(Clone, Debug)]
pub struct TraceConfig {
    /// OFF, or any of TIMESTAMPS and TENSORS.
    pub level: Vec<String>,
    /// One request of so many is traced.
    pub rate: u32,
    /// So many are traced; none: no limit.
    pub count: Option<u64>,
    /// A file is closed after so many traces; 0: never.
    pub log_frequency: u32,
    /// Where traces go.
    pub mode: TraceMode,
    /// The file of mode `triton`.
    pub file: Option<PathBuf>,
    /// The collector of mode `opentelemetry`.
    pub otlp_endpoint: String,
}

impl TraceConfig {
    /// Checks the arguments and makes the configuration.
    ///
    /// Errors: [`Invalid`], naming the flag.
    pub(crate) fn from_args(args: &TraceArgs) -> std::result::Result<Self, Invalid> {
        let count = match args.trace_count {
            -1 => None,
            count => Some(u64::try_from(count).map_err(|_| {
                Invalid(format!("--trace-count: expected -1 or at least 0, got {count}"))
            })?),
        };
        let is_on = args.trace_level.iter().any(|level| level != "OFF");
        if is_on && args.trace_mode == TraceMode::Triton && args.trace_file.is_none() {
            return Err(Invalid("--trace-level: mode `triton` needs --trace-file".into()));
        }
        Ok(Self {
            level: args.trace_level.clone(),
            rate: args.trace_rate,
            count,
            log_frequency: args.trace_log_frequency,
            mode: args.trace_mode,
            file: args.trace_file.clone(),
            otlp_endpoint: args.trace_otlp_endpoint.clone(),
        })
    }
}

/// The tracing of requests.
#[derive(Debug)]
pub(crate) struct Traces {
    /// Whether any request could be traced: the one question that every request asks.
    is_on: AtomicBool,
    next_id: AtomicU64,
    state: Mutex<State>,
    file: Option<TraceFile>,
    file_name: String,
    exporter: Exporter,
}

#[derive(Debug)]
struct State {
    start: Settings,
    server: Settings,
    models: BTreeMap<String, Own>,
    /// Requests seen and traced since the settings changed: of the server, and of each model that
    /// has its own.
    seen: HashMap<String, (u64, u64)>,
}

/// What is known of a traced request when it is over.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    pub id: u64,
    pub model: Arc<str>,
    pub version: Arc<str>,
    pub request_id: String,
    pub parent: Option<String>,
    pub started: SystemTime,
    pub has_timestamps: bool,
    pub has_tensors: bool,
    pub tensors: Vec<Shown>,
    mode: TraceMode,
    log_frequency: u32,
}

/// A tensor as a trace shows it.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub activity: &'static str,
    pub name: String,
    pub datatype: &'static str,
    pub shape: String,
    pub data: String,
}

/// How long the steps of a request took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Steps {
    pub input: Duration,
    pub queue: Duration,
    pub output: Duration,
    pub total: Duration,
    /// What was done, in the words of OpenTelemetry's GenAI conventions.
    pub operation: &'static str,
    /// Tokens of the prompts and of the texts.
    pub tokens: (u32, u32),
    pub is_ok: bool,
}

impl Traces {
    /// Makes the tracing.
    ///
    /// Errors: a level that is none, a file that cannot be written, an endpoint that is none.
    pub(crate) fn new(config: &TraceConfig) -> std::result::Result<Self, String> {
        let mut start = Settings {
            has_timestamps: false,
            has_tensors: false,
            rate: config.rate,
            count: config.count,
            log_frequency: config.log_frequency,
            mode: config.mode,
        };
        let level = settings::level(&config.level).map_err(|error| error.to_string())?;
        put_all(&mut start, &[("trace_level", Some(level))]);
        let traces = Self {
            is_on: AtomicBool::new(start.is_on()),
            next_id: AtomicU64::new(1),
            file: config.file.clone().map(TraceFile::new),
            file_name: config.file.as_ref().map(|f| f.display().to_string()).unwrap_or_default(),
            exporter: Exporter::new(config.otlp_endpoint.clone()),
            state: Mutex::new(State {
                server: start.clone(),
                start,
                models: BTreeMap::new(),
                seen: HashMap::new(),
            }),
        };
        Ok(traces)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes settings, of the server for an empty name, and returns those in force then. No
    /// value takes a model's setting back to the server's, and the server's to the start's.
    ///
    /// Errors: as the settings' own; none of a request with an error is changed.
    pub(crate) fn change(
        &self,
        model: &str,
        changes: HashMap<String, Values>,
    ) -> Result<BTreeMap<String, Values>> {
        let changes = read(changes)?;
        let mut state = self.state();
        if model.is_empty() {
            for (name, change) in &changes {
                if change.is_none() {
                    let start = state.start.clone();
                    state.server.reset(name, &start);
                }
            }
            put_all(&mut state.server, &changes);
            if !changes.is_empty() {
                state.seen.clear();
            }
        } else {
            let is_changed = !changes.is_empty();
            let own = state.models.entry(model.to_owned()).or_default();
            for (name, change) in changes {
                match change {
                    Some(change) => drop(own.insert(name, change)),
                    None => drop(own.remove(name)),
                }
            }
            if own.is_empty() {
                state.models.remove(model);
            }
            if is_changed {
                state.seen.remove(model);
            }
        }
        let now = state.of(model);
        if now.is_on() && now.mode == TraceMode::Triton && self.file.is_none() {
            tracing::warn!("traces are on and have no file: --trace-file, or mode opentelemetry");
        }
        let any = state.models.keys().any(|model| state.of(model).is_on());
        self.is_on.store(any || state.server.is_on(), Relaxed);
        Ok(state.of(model).spell(&self.file_name))
    }

    /// Begins to trace a request, if it is one of those to trace.
    pub(crate) fn begin(
        &self,
        model: &Arc<str>,
        version: &Arc<str>,
        request_id: &str,
        parent: Option<&str>,
    ) -> Option<Trace> {
        if !self.is_on.load(Relaxed) {
            return None;
        }
        let settings = self.state().sample(model)?;
        Some(Trace {
            id: self.next_id.fetch_add(1, Relaxed),
            model: model.clone(),
            version: version.clone(),
            request_id: request_id.to_owned(),
            parent: parent.map(str::to_owned),
            started: SystemTime::now(),
            has_timestamps: settings.has_timestamps,
            has_tensors: settings.has_tensors,
            tensors: Vec::new(),
            mode: settings.mode,
            log_frequency: settings.log_frequency,
        })
    }

    /// Writes the trace of a request that is over. The file is written by a thread of its own.
    pub(crate) fn end(&self, trace: Trace, steps: Steps) {
        match (trace.mode, &self.file) {
            (TraceMode::Opentelemetry, _) => self.exporter.export(&trace, steps),
            (TraceMode::Triton, Some(file)) => file.write(&trace, steps),
            (TraceMode::Triton, None) => {}
        }
    }

    /// Sends what is still held back.
    pub(crate) fn flush(&self) {
        self.exporter.flush();
        if let Some(file) = &self.file {
            file.flush();
        }
    }
}

impl State {
    /// Returns the settings in force for a model, or the server for an empty name.
    fn of(&self, model: &str) -> Settings {
        match self.models.get(model) {
            Some(own) => merged(&self.server, own),
            None => self.server.clone(),
        }
    }

    /// Counts a request and returns the settings if it is one to trace.
    fn sample(&mut self, model: &str) -> Option<Settings> {
        let settings = self.of(model);
        if !settings.is_on() {
            return None;
        }
        let key = if self.models.contains_key(model) { model } else { "" };
        let (seen, traced) = self.seen.entry(key.to_owned()).or_default();
        *seen += 1;
        let is_due = *seen % u64::from(settings.rate) == 0;
        let is_left = settings.count.is_none_or(|count| *traced < count);
        (is_due && is_left).then(|| {
            *traced += 1;
            settings
        })
    }
}

impl Settings {
    /// Takes one setting back to what it was at the start.
    fn reset(&mut self, name: &str, start: &Self) {
        match name {
            "trace_level" => {
                (self.has_timestamps, self.has_tensors) = (start.has_timestamps, start.has_tensors);
            }
            "trace_rate" => self.rate = start.rate,
            "trace_count" => self.count = start.count,
            "log_frequency" => self.log_frequency = start.log_frequency,
            _ => self.mode = start.mode,
        }
    }
}

impl Trace {
    /// Adds tensors, if the trace shows them.
    pub(crate) fn show(&mut self, activity: &'static str, tensors: &[Tensor]) {
        if self.has_tensors {
            let room = MAX_TENSORS_SHOWN.saturating_sub(self.tensors.len());
            let shown = tensors.iter().take(room).map(|tensor| Shown::new(activity, tensor));
            self.tensors.extend(shown);
        }
    }
}

impl Shown {
    fn new(activity: &'static str, tensor: &Tensor) -> Self {
        let shape: Vec<String> = tensor.shape.iter().map(i64::to_string).collect();
        Self {
            activity,
            name: tensor.name.to_string(),
            datatype: tensor.datatype.name(),
            shape: shape.join(","),
            data: spell(tensor),
        }
    }
}

/// Returns as much of a tensor of numbers as is shown; the rest is not touched.
fn beginning(tensor: &Tensor) -> Tensor {
    let mut room = tensor.datatype.size_bytes().unwrap_or(0) * MAX_ELEMENTS_SHOWN;
    let segments = tensor.data.segments().map(|segment| {
        let part = segment.slice(..segment.len().min(room));
        room -= part.len();
        part
    });
    let data: tensor::Payload = segments.collect();
    Tensor::new(tensor.name.clone(), tensor.datatype, Vec::new(), data)
}

/// Writes the first elements of a tensor.
fn spell(whole: &Tensor) -> String {
    let tensor = &beginning(whole);
    fn some<T: tensor::Element + ToString>(tensor: &Tensor) -> Vec<String> {
        let values = tensor.values::<T>().into_iter().flatten();
        values.map(|value| value.to_string()).collect()
    }
    let elements = match tensor.datatype {
        Datatype::Bool => some::<bool>(tensor),
        Datatype::Uint8 => some::<u8>(tensor),
        Datatype::Uint16 => some::<u16>(tensor),
        Datatype::Uint32 => some::<u32>(tensor),
        Datatype::Uint64 => some::<u64>(tensor),
        Datatype::Int8 => some::<i8>(tensor),
        Datatype::Int16 => some::<i16>(tensor),
        Datatype::Int32 => some::<i32>(tensor),
        Datatype::Int64 => some::<i64>(tensor),
        Datatype::Fp32 => some::<f32>(tensor),
        Datatype::Fp64 => some::<f64>(tensor),
        Datatype::Fp16 | Datatype::Bf16 => Vec::new(),
        Datatype::Bytes => {
            let elements = whole.elements().into_iter().flatten().flatten();
            let text = |element: bytes::Bytes| {
                let shown = &element[..element.len().min(MAX_ELEMENT_BYTES_SHOWN)];
                String::from_utf8_lossy(shown).into_owned()
            };
            elements.take(MAX_ELEMENTS_SHOWN).map(text).collect()
        }
    };
    elements.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traces() -> Traces {
        let config = TraceConfig {
            level: vec!["OFF".into()],
            rate: 2,
            count: None,
            log_frequency: 0,
            mode: TraceMode::Opentelemetry,
            file: None,
            otlp_endpoint: "http://127.0.0.1:9".into(),
        };
        Traces::new(&config).unwrap()
    }

    fn change(traces: &Traces, model: &str, key: &str, values: &[&str]) {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        traces.change(model, HashMap::from([(key.to_owned(), values)])).unwrap();
    }

    fn setting(traces: &Traces, model: &str, key: &str) -> Values {
        traces.change(model, HashMap::new()).unwrap().remove(key).unwrap()
    }

    fn traced(traces: &Traces, model: &str, requests: usize) -> usize {
        let (model, version) = (model.into(), "1".into());
        (0..requests).filter(|_| traces.begin(&model, &version, "", None).is_some()).count()
    }

    #[test]
    fn rate_and_count_choose_the_requests_and_models_have_their_own() {
        let traces = traces();
        assert_eq!(traced(&traces, "m", 10), 0);
        change(&traces, "", "trace_level", &["TIMESTAMPS"]);
        assert_eq!(traced(&traces, "m", 10), 5);
        change(&traces, "", "trace_count", &["3"]);
        assert_eq!(traced(&traces, "m", 10), 3);
        change(&traces, "n", "trace_rate", &["1"]);
        assert_eq!(traced(&traces, "n", 10), 3);
        change(&traces, "n", "trace_level", &["OFF"]);
        assert_eq!(traced(&traces, "n", 10), 0);
        assert_eq!(setting(&traces, "n", "trace_rate"), ["1"]);
        change(&traces, "n", "trace_rate", &[]);
        assert_eq!(setting(&traces, "n", "trace_rate"), ["2"]);
        change(&traces, "", "trace_level", &[]);
        assert_eq!(setting(&traces, "", "trace_level"), ["OFF"]);
    }
}
