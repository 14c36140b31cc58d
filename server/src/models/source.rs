//! What a model argument means: a file, a directory, a hub id, the default model, or a built-in.

use std::path::{Path, PathBuf};

use proto::inference as wire;
use tensor::Datatype;
use worker::infer::{AddSub, Identity};

use crate::args::cache_dir;
use crate::support::invalid::Invalid;

/// The default model's name and its file in the model folder.
const DEFAULT_MODEL: (&str, &str) = ("smollm2-135m-instruct", "SmolLM2-135M-Instruct.Q4_1.gguf");

/// The file that makes a directory a model's.
pub(crate) const CONFIG_FILE: &str = "config.json";

/// A text model and where its file comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The name that clients use.
    pub name: String,
    /// Where the file is.
    pub place: Place,
}

/// Where a model's file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this machine: a GGUF file, or a directory of safetensors.
    File(PathBuf),
    /// The default model, put into the model folder by `./serve`.
    Default(PathBuf),
    /// On a hub: the repository and, if given, the file in it.
    Hub { repository: String, file: Option<String> },
}

impl Source {
    /// Reads `[NAME=]FILE`, `[NAME=]DIRECTORY` or `[NAME=]ORG/REPO[:FILE]`; what exists wins.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let (name, rest) = match text.split_once('=') {
            Some((name, rest)) => (Some(name), rest),
            None => (None, text),
        };
        let place = place(rest).ok_or_else(|| {
            Invalid(format!(
                "model `{text}`: no such file, no directory with a `config.json`, and no hub id \
                     of the form OWNER/REPOSITORY[:FILE.gguf]"
            ))
        })?;
        let name = match name {
            Some(name) => name.to_owned(),
            None => place.natural_name(),
        };
        Ok(Self { name: valid_name(&name, text)?, place })
    }

    /// Returns the model that is served when none is named.
    pub fn default_model(model_dir: &Path) -> Self {
        let (name, file) = DEFAULT_MODEL;
        Self { name: name.to_owned(), place: Place::Default(model_dir.join(file)) }
    }
}

impl Place {
    fn natural_name(&self) -> String {
        match self {
            Self::File(path) if path.is_dir() => {
                // `.` and `..` have no name of their own; a directory's has no extension.
                let whole = path.canonicalize().unwrap_or_else(|_| path.clone());
                let named = path.file_name().or(whole.file_name());
                named.unwrap_or_default().to_string_lossy().into_owned()
            }
            Self::File(path) | Self::Default(path) => {
                path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
            }
            Self::Hub { repository, .. } => {
                repository.rsplit('/').next().unwrap_or(repository).to_owned()
            }
        }
    }
}

fn place(text: &str) -> Option<Place> {
    let path = Path::new(text);
    let is_directory = path.join(CONFIG_FILE).is_file();
    let looks_like_file = text.starts_with(['/', '.', '~']) || path.is_file() || is_directory;
    if looks_like_file {
        return Some(Place::File(path.to_owned()));
    }
    let (repository, file) = match text.split_once(':') {
        Some((repository, file)) => (repository, Some(file.to_owned())),
        None => (text, None),
    };
    let is_word = |word: &str| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    // A repository has files; its name is not that of one.
    let is_file = file.is_none() && repository.ends_with(".gguf");
    match repository.split_once('/').filter(|_| !is_file) {
        Some((owner, name)) if is_word(owner) && is_word(name) => {
            Some(Place::Hub { repository: repository.to_owned(), file })
        }
        _ => None,
    }
}

fn valid_name(name: &str, text: &str) -> Result<String, Invalid> {
    let is_valid = !name.is_empty() && !name.chars().any(|c| c.is_control() || c.is_whitespace());
    match is_valid {
        true => Ok(name.to_owned()),
        false => Err(Invalid(format!("model `{text}`: `{name}` cannot be a model's name"))),
    }
}

/// A LoRA adapter: a variant of a text model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterSource {
    /// The name that clients use.
    pub name: String,
    /// The folder with its files.
    pub folder: PathBuf,
    /// The name of its base; none: the only one there is.
    pub base: Option<String>,
}

impl AdapterSource {
    /// Reads `NAME=DIR` or `NAME=DIR,base=MODEL`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let (place, base) = match text.split_once(",base=") {
            Some((place, base)) => (place, Some(valid_name(base, text)?)),
            None => (text, None),
        };
        let (name, folder) = place.split_once('=').filter(|(_, folder)| !folder.is_empty()).ok_or(
            Invalid(format!("--lora-modules: expected NAME=DIR[,base=MODEL], got `{text}`")),
        )?;
        Ok(Self { name: valid_name(name, text)?, folder: folder.into(), base })
    }
}

/// A model that needs no file.
#[derive(Clone, Debug, PartialEq)]
pub struct Builtin {
    /// The name that clients use.
    pub name: String,
    /// Its configuration; the backend's defaults fill in what it leaves out.
    pub(crate) declared: wire::ModelConfig,
}

/// The kinds of built-in models, with their backends and settings.
const KINDS: [(&str, &str, &[&str]); 8] = [
    (
        "identity",
        "identity",
        &["datatype", "dims", "max_batch_size", "delay_ms", "echo_parameters"],
    ),
    ("add_sub", "add_sub", &["datatype", "dims", "max_batch_size"]),
    ("image", "image", &[]),
    ("video", "video", &[]),
    ("repeat_int32", "repeat", &[]),
    ("square", "square", &[]),
    ("sequence", "sequence", &["delay_ms", "idle_ms"]),
    (
        "mock",
        "mock",
        &[
            "pace_ms",
            "prefill_us",
            "decode_us",
            "speedup",
            "blocks",
            "loras",
            "context_length",
            "text_output",
            "reply",
        ],
    ),
];

impl Builtin {
    /// Reads `[NAME=]KIND[,KEY=VALUE]...`; a `reply` comes last and may hold commas.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let invalid = |why: String| Invalid(format!("--builtin `{text}`: {why}"));
        let reply = text.find(",reply=").unwrap_or(text.len());
        let (head, reply) = text.split_at(reply);
        let reply = reply.strip_prefix(',');
        let mut parts = head.split(',');
        let kind = parts.next().unwrap_or_default();
        let (name, kind) = kind.split_once('=').unwrap_or((kind, kind));
        let name = valid_name(name, text)?;
        let mut settings = Vec::new();
        for part in parts.chain(reply) {
            let pair = part.split_once('=');
            settings.push(pair.ok_or_else(|| invalid(format!("`{part}` is not KEY=VALUE")))?);
        }
        let Some((_, backend, known)) = KINDS.iter().find(|(name, ..)| *name == kind) else {
            let kinds = KINDS.map(|(name, ..)| name).join(", ");
            return Err(invalid(format!("no built-in is called `{kind}`: there are {kinds}")));
        };
        if let Some((key, _)) = settings.iter().find(|(key, _)| !known.contains(key)) {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(invalid(format!("no setting is called `{key}`: there are {known}")));
        }
        let declared = declare(&name, backend, &settings).map_err(invalid)?;
        Ok(Self { name, declared })
    }
}

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("`{key}`: `{value}` is not a number in range"))
}

/// Makes the configuration of a built-in model.
fn declare(
    name: &str,
    backend: &str,
    settings: &[(&str, &str)],
) -> Result<wire::ModelConfig, String> {
    let mut tensor = (None, None);
    let mut declared = wire::ModelConfig {
        name: name.to_owned(),
        backend: backend.to_owned(),
        ..Default::default()
    };
    for &(key, value) in settings {
        match key {
            "datatype" => {
                let datatype = Datatype::parse(value)
                    .ok_or_else(|| format!("`datatype`: `{value}` is not a KServe datatype"))?;
                tensor.0 = Some(datatype);
            }
            "dims" => {
                let dims = value.split('x').map(|dim| number::<i64>(key, dim));
                let dims = dims.collect::<Result<Vec<_>, _>>()?;
                if dims.iter().any(|dim| *dim < -1 || *dim == 0) {
                    return Err(format!("`dims`: `{value}` has a dimension that is not -1 or > 0"));
                }
                tensor.1 = Some(dims);
            }
            "max_batch_size" => declared.max_batch_size = i32::from(number::<u16>(key, value)?),
            "idle_ms" => {
                let microseconds = number::<u32>(key, value)?;
                declared.scheduling_choice = Some(sequences(u64::from(microseconds) * 1000));
            }
            _ => {
                let value = wire::ModelParameter { string_value: value.to_owned() };
                declared.parameters.insert(key.to_owned(), value);
            }
        }
    }
    let (datatype, dims) = tensor;
    let own = match backend {
        "identity" => {
            let (datatype, dims) = (datatype.unwrap_or(Datatype::Fp32), dims.unwrap_or(vec![-1]));
            Some(Identity::config(name, datatype, dims, 0))
        }
        "add_sub" if datatype.is_some() || dims.is_some() || declared.max_batch_size > 0 => {
            let mut own = AddSub::config(name);
            for spec in own.inputs.iter_mut().chain(&mut own.outputs) {
                spec.datatype = datatype.unwrap_or(spec.datatype);
                spec.dims = dims.clone().unwrap_or(spec.dims.clone());
            }
            Some(own)
        }
        _ => None,
    };
    if let Some(own) = own.as_ref().map(tensor::metadata::config) {
        (declared.input, declared.output) = (own.input, own.output);
    }
    Ok(declared)
}

/// Makes the scheduling of a model of sequences that may be idle for so long.
pub(crate) fn sequences(idle_microseconds: u64) -> wire::model_config::SchedulingChoice {
    wire::model_config::SchedulingChoice::SequenceBatching(wire::ModelSequenceBatching {
        max_sequence_idle_microseconds: idle_microseconds,
        ..Default::default()
    })
}

/// Returns the folder of models: the one that is asked for, or one of the user's cache.
///
/// Errors: none is asked for, and there is no cache folder.
pub(crate) fn model_dir(asked: Option<&Path>) -> Result<PathBuf, Invalid> {
    let cached = || cache_dir().map(|cache| cache.join("stator").join("models"));
    let found = asked.map(Path::to_owned).or_else(cached);
    found.ok_or_else(|| Invalid("--model-dir: no cache folder is known".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_a_file_a_hub_id_or_an_error() {
        let hub = |repository: &str, file: Option<&str>| Place::Hub {
            repository: repository.into(),
            file: file.map(str::to_owned),
        };
        let table = [
            ("/a/b.Q4_1.gguf", Some(("b.Q4_1", Place::File("/a/b.Q4_1.gguf".into())))),
            ("m=./b.gguf", Some(("m", Place::File("./b.gguf".into())))),
            ("Org/Repo-1.5", Some(("Repo-1.5", hub("Org/Repo-1.5", None)))),
            ("m=Org/R:x.gguf", Some(("m", hub("Org/R", Some("x.gguf"))))),
            ("nowhere.gguf", None),
            ("models/nowhere.gguf", None),
            ("a/b/c", None),
            ("=/a/b.gguf", None),
            ("two words=/a/b.gguf", None),
        ];
        for (text, expected) in table {
            let expected = expected.map(|(name, place)| Source { name: name.to_owned(), place });
            assert_eq!(Source::parse(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn a_directory_with_a_description_is_a_model_of_its_whole_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("Some-3.2-1B");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join(CONFIG_FILE), "{}").unwrap();
        let text = path.to_string_lossy().into_owned();
        let expected = Source { name: "Some-3.2-1B".into(), place: Place::File(path) };
        assert_eq!(Source::parse(&text).unwrap(), expected);
        assert_eq!(Source::parse(&format!("m={text}")).unwrap().name, "m");
    }

    #[test]
    fn a_builtin_says_what_is_wrong_with_it() {
        let table = [
            ("idenity", "no built-in is called `idenity`"),
            ("identity,speed=9", "no setting is called `speed`"),
            ("identity,datatype=FP99", "`FP99` is not a KServe datatype"),
            ("identity,dims=4x0", "not -1 or > 0"),
            ("identity,max_batch_size=-1", "is not a number in range"),
            ("repeat_int32,x=1", "no setting is called `x`: there are none"),
            ("mock,fast", "`fast` is not KEY=VALUE"),
        ];
        for (text, expected) in table {
            let error = Builtin::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let told = Builtin::parse("mock,pace_ms=1,reply={\"a\": 1, \"b=\": 2}").unwrap();
        assert_eq!(told.declared.parameters["pace_ms"].string_value, "1");
        assert_eq!(told.declared.parameters["reply"].string_value, r#"{"a": 1, "b=": 2}"#);
        let slow = Builtin::parse("slow=identity,datatype=BYTES,dims=2x-1,delay_ms=5").unwrap();
        assert_eq!((&*slow.name, &*slow.declared.backend), ("slow", "identity"));
        assert_eq!(slow.declared.input[0].dims, [2, -1]);
        assert_eq!(slow.declared.parameters["delay_ms"].string_value, "5");
    }
}
