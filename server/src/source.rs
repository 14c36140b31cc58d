//! What a model argument means: a file, a hub id, the default model, or a built-in.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tensor::Datatype;

use crate::config::Invalid;

/// The default model's name and its file in the model folder.
const DEFAULT_MODEL: (&str, &str) = ("smollm2-135m-instruct", "SmolLM2-135M-Instruct.Q4_1.gguf");

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
    /// On this machine.
    File(PathBuf),
    /// The default model, put into the model folder by `./serve`.
    Default(PathBuf),
    /// On a hub: the repository and, if given, the file in it.
    Hub { repository: String, file: Option<String> },
}

impl Source {
    /// Reads `[NAME=]FILE` or `[NAME=]ORG/REPO[:FILE]`; an existing file wins.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let (name, rest) = match text.split_once('=') {
            Some((name, rest)) => (Some(name), rest),
            None => (None, text),
        };
        let place = place(rest).ok_or_else(|| {
            Invalid(format!(
                "model `{text}`: no such file, and no hub id of the form \
                     OWNER/REPOSITORY[:FILE.gguf]"
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
    let looks_like_file = text.starts_with(['/', '.', '~']) || path.is_file();
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
    match repository.split_once('/') {
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

/// A model that needs no file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Builtin {
    /// The name that clients use.
    pub name: String,
    /// What it does.
    pub kind: BuiltinKind,
}

/// The built-in models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuiltinKind {
    /// Gives its input back.
    Identity { datatype: Datatype, dims: Vec<i64>, max_batch_size: u32, delay: Duration },
    /// Adds and subtracts two tensors of 16 INT32: Triton's "simple".
    AddSub,
    /// Gives each element of its input back as a response of its own, Triton's "repeat_int32".
    RepeatInt32,
    /// A text engine without a model: the real scheduler, tokens at a set pace.
    Mock { pace: Duration, context_length: Option<u32> },
}

impl Builtin {
    /// Reads `[NAME=]KIND[,KEY=VALUE]...`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let invalid = |why: String| Invalid(format!("--builtin `{text}`: {why}"));
        let mut parts = text.split(',');
        let head = parts.next().unwrap_or_default();
        let (name, kind) = head.split_once('=').unwrap_or((head, head));
        let mut settings = Vec::new();
        for part in parts {
            let pair = part.split_once('=');
            settings.push(pair.ok_or_else(|| invalid(format!("`{part}` is not KEY=VALUE")))?);
        }
        let kind = match kind {
            "identity" => identity(&settings),
            "add_sub" => plain(BuiltinKind::AddSub, &settings),
            "repeat_int32" => plain(BuiltinKind::RepeatInt32, &settings),
            "mock" => mock(&settings),
            other => Err(format!(
                "no built-in is called `{other}`: there are identity, add_sub, repeat_int32, mock"
            )),
        };
        Ok(Self { name: valid_name(name, text)?, kind: kind.map_err(invalid)? })
    }
}

type Settings<'a> = [(&'a str, &'a str)];

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("`{key}`: `{value}` is not a number in range"))
}

fn unknown<T>(key: &str, known: &str) -> Result<T, String> {
    Err(format!("no setting is called `{key}`: there are {known}"))
}

fn plain(kind: BuiltinKind, settings: &Settings<'_>) -> Result<BuiltinKind, String> {
    match settings.first() {
        None => Ok(kind),
        Some((key, _)) => unknown(key, "none"),
    }
}

fn identity(settings: &Settings<'_>) -> Result<BuiltinKind, String> {
    let mut datatype = Datatype::Fp32;
    let mut dims = vec![-1];
    let mut max_batch_size = 0;
    let mut delay = Duration::ZERO;
    for &(key, value) in settings {
        match key {
            "datatype" => {
                datatype = Datatype::parse(value)
                    .ok_or_else(|| format!("`datatype`: `{value}` is not a KServe datatype"))?;
            }
            "dims" => {
                dims = value.split('x').map(|dim| number(key, dim)).collect::<Result<_, _>>()?;
                if dims.iter().any(|dim| *dim < -1 || *dim == 0) {
                    return Err(format!("`dims`: `{value}` has a dimension that is not -1 or > 0"));
                }
            }
            "max_batch_size" => max_batch_size = number(key, value)?,
            "delay_ms" => delay = Duration::from_millis(number(key, value)?),
            _ => return unknown(key, "datatype, dims, max_batch_size, delay_ms"),
        }
    }
    Ok(BuiltinKind::Identity { datatype, dims, max_batch_size, delay })
}

fn mock(settings: &Settings<'_>) -> Result<BuiltinKind, String> {
    let mut pace = Duration::ZERO;
    let mut context_length = None;
    for &(key, value) in settings {
        match key {
            "pace_ms" => {
                let ms: f64 = number(key, value)?;
                pace = Duration::try_from_secs_f64(ms / 1e3)
                    .map_err(|_| format!("`pace_ms`: `{value}` is not a time"))?;
            }
            "context_length" => context_length = Some(number(key, value)?),
            _ => return unknown(key, "pace_ms, context_length"),
        }
    }
    Ok(BuiltinKind::Mock { pace, context_length })
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
    fn a_builtin_says_what_is_wrong_with_it() {
        let table = [
            ("idenity", "no built-in is called `idenity`"),
            ("identity,speed=9", "no setting is called `speed`"),
            ("identity,datatype=FP99", "`FP99` is not a KServe datatype"),
            ("identity,dims=4x0", "not -1 or > 0"),
            ("mock,pace_ms=-1", "is not a time"),
            ("add_sub,x=1", "no setting is called `x`: there are none"),
            ("mock,fast", "`fast` is not KEY=VALUE"),
        ];
        for (text, expected) in table {
            let error = Builtin::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let slow = Builtin::parse("slow=identity,datatype=BYTES,dims=2x-1,delay_ms=5").unwrap();
        let kind = BuiltinKind::Identity {
            datatype: Datatype::Bytes,
            dims: vec![2, -1],
            max_batch_size: 0,
            delay: Duration::from_millis(5),
        };
        assert_eq!(slow, Builtin { name: "slow".into(), kind });
    }
}
