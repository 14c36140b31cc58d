//! What becomes of the hidden states, as the files of sentence-transformers say: `modules.json`,
//! the pooling's `config.json` and `sentence_bert_config.json`.

use std::path::Path;

use serde_json::Value;

use crate::Error;
use crate::weights::{Json, text};

/// The list of what a text goes through.
const MODULES: &str = "modules.json";

/// How the hidden states of a text become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    #[default]
    Mean,
    /// The first token's.
    First,
    /// The largest number of each dimension.
    Max,
}

/// What becomes of a text's hidden states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pipeline {
    /// How they become one vector.
    pub pooling: Pooling,
    /// Whether the vector is scaled to length 1.
    pub normalizes: bool,
    /// The most tokens of a text, if that is less than the model was made for.
    pub max_tokens: Option<usize>,
}

impl Pipeline {
    /// Reads the files of a model's directory. Without them it is the mean, as it comes.
    ///
    /// Errors: a module, a pooling or a setting that is not known, or a vector of another width;
    /// the text names the file and the field.
    pub fn read(directory: &Path, hidden: usize) -> Result<Self, Error> {
        let mut pipeline = Self::default();
        let settings = Json::read_optional(&directory.join("sentence_bert_config.json"))?;
        if let Some(settings) = settings {
            pipeline.max_tokens = match settings.optional_number("max_seq_length")? {
                Some(0) => return Err(settings.refusal("max_seq_length", "expected 1 or more")),
                tokens => tokens.map(|tokens| tokens as usize),
            };
            if settings.optional_bool("do_lower_case")? == Some(true) && !lowers(directory)? {
                let why = "the tokenizer keeps capitals, and lowering them before it is not known";
                return Err(settings.refusal("do_lower_case", why));
            }
        }
        let prompts = Json::read_optional(&directory.join("config_sentence_transformers.json"))?;
        if let Some(prompts) = prompts
            && let Some(name) = prompts.optional_string("default_prompt_name")?
        {
            let why = format!("a prompt before each text, here `{name}`, is not known");
            return Err(prompts.refusal("default_prompt_name", &why));
        }
        let path = directory.join(MODULES);
        if path.exists() {
            let modules: Value = serde_json::from_str(&text(&path)?)
                .map_err(|error| Error::Model(format!("`{MODULES}`: {error}")))?;
            pipeline.modules(directory, &modules, hidden)?;
        }
        Ok(pipeline)
    }

    fn modules(&mut self, directory: &Path, list: &Value, hidden: usize) -> Result<(), Error> {
        let broken = |why: String| Error::Model(format!("`{MODULES}`: {why}"));
        let list = list.as_array().ok_or_else(|| broken("expected a list".into()))?;
        let mut kinds = Vec::new();
        for module in list {
            let name = module["type"].as_str().unwrap_or_default();
            // The library's own path to the class, which changed between its versions.
            let kind = name.rsplit('.').next().unwrap_or_default();
            match kind {
                "Transformer" => {}
                "Pooling" => {
                    let folder = module["path"].as_str().unwrap_or_default();
                    if folder.is_empty() || folder.starts_with('.') || folder.contains(['/', '\\'])
                    {
                        return Err(broken(format!("`path`: `{folder}` is no folder beside it")));
                    }
                    let config = Json::read(&directory.join(folder).join("config.json"))?;
                    self.pooling = pooling(&config, hidden)?;
                }
                "Normalize" => self.normalizes = true,
                _ => {
                    return Err(broken(format!(
                        "module `{name}` is not known; known are Transformer, Pooling and \
                         Normalize"
                    )));
                }
            }
            kinds.push(kind);
        }
        match kinds[..] {
            ["Transformer", "Pooling"] | ["Transformer", "Pooling", "Normalize"] => Ok(()),
            _ => Err(broken(format!(
                "expected Transformer, Pooling and perhaps Normalize, got {}",
                kinds.join(", ")
            ))),
        }
    }
}

/// Reads how a pooling is done.
fn pooling(config: &Json, hidden: usize) -> Result<Pooling, Error> {
    const WIDTH: &str = "word_embedding_dimension";
    if let Some(width) = config.optional_number(WIDTH)?
        && width != hidden as u64
    {
        let why = format!("expected the model's width of {hidden}, got {width}");
        return Err(config.refusal(WIDTH, &why));
    }
    if let Some(mode) = config.optional_string("pooling_mode")? {
        return known(mode).ok_or_else(|| unknown(config, "pooling_mode", mode));
    }
    let modes = config.fields().filter(|(_, value)| **value == Value::Bool(true));
    let modes = modes.filter_map(|(key, _)| Some((key, key.strip_prefix("pooling_mode_")?)));
    match modes.collect::<Vec<_>>()[..] {
        [] => Ok(Pooling::default()),
        [(key, mode)] => {
            let mode = mode.strip_suffix("_tokens").unwrap_or(mode);
            let mode = mode.strip_suffix("_token").unwrap_or(mode);
            known(mode).ok_or_else(|| unknown(config, key, mode))
        }
        [(key, _), (other, _), ..] => {
            Err(config.refusal(key, &format!("`{other}` beside it is not known: expected one")))
        }
    }
}

fn known(mode: &str) -> Option<Pooling> {
    match mode {
        "mean" => Some(Pooling::Mean),
        "cls" => Some(Pooling::First),
        "max" => Some(Pooling::Max),
        _ => None,
    }
}

fn unknown(config: &Json, key: &str, mode: &str) -> Error {
    config.refusal(key, &format!("`{mode}` is not known; known are mean, cls and max"))
}

/// Returns whether the tokenizer of a directory lowers capitals itself.
fn lowers(directory: &Path) -> Result<bool, Error> {
    let tokenizer = Json::read(&directory.join("tokenizer.json"))?;
    let normalizer = tokenizer.object("normalizer")?;
    let is_on = |json: &Json| json.optional_bool("lowercase").map(Option::unwrap_or_default);
    normalizer.as_ref().map_or(Ok(false), is_on)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the pipeline of a directory of these files.
    fn read(files: &[(&str, &str)]) -> Result<Pipeline, String> {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        Pipeline::read(directory.path(), 384).map_err(|error| error.to_string())
    }

    const ALL: &str = r#"[{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]"#;
    const POOLING: &str = "1_Pooling/config.json";

    #[test]
    fn the_files_say_what_becomes_of_hidden_states() {
        assert_eq!(read(&[]), Ok(Pipeline::default()));
        let modes = [
            (
                r#"{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}"#,
                Pooling::Mean,
            ),
            (
                r#"{"word_embedding_dimension": 384, "pooling_mode_cls_token": true}"#,
                Pooling::First,
            ),
            (r#"{"pooling_mode_max_tokens": true}"#, Pooling::Max),
            (r#"{"pooling_mode": "cls"}"#, Pooling::First),
            ("{}", Pooling::Mean),
        ];
        for (config, pooling) in modes {
            let read = read(&[
                ("modules.json", ALL),
                (POOLING, config),
                ("sentence_bert_config.json", r#"{"max_seq_length": 256, "do_lower_case": false}"#),
            ]);
            let expected = Pipeline { pooling, normalizes: true, max_tokens: Some(256) };
            assert_eq!(read, Ok(expected), "{config}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let dense = ALL.replace("Normalize", "Dense");
        let apart = ALL.replace("1_Pooling", "../1_Pooling");
        let twice = r#"{"pooling_mode_cls_token": true, "pooling_mode_max_tokens": true}"#;
        let table: [(&[(&str, &str)], &str); 10] = [
            (&[("modules.json", "{}")], "`modules.json`: expected a list"),
            (&[("modules.json", "[")], "`modules.json`: EOF"),
            (&[("modules.json", "[]")], "expected Transformer, Pooling and perhaps Normalize"),
            (&[("modules.json", &dense), (POOLING, "{}")], "models.Dense` is not known"),
            (&[("modules.json", &apart)], "`../1_Pooling` is no folder beside it"),
            (&[("modules.json", ALL), (POOLING, twice)], "beside it is not known"),
            (
                &[("modules.json", ALL), (POOLING, r#"{"pooling_mode_lasttoken": true}"#)],
                "`pooling_mode_lasttoken`: `lasttoken` is not known; known are mean, cls and max",
            ),
            (
                &[("modules.json", ALL), (POOLING, r#"{"word_embedding_dimension": 8}"#)],
                "expected the model's width of 384, got 8",
            ),
            (&[("sentence_bert_config.json", r#"{"max_seq_length": 0}"#)], "expected 1 or more"),
            (
                &[("config_sentence_transformers.json", r#"{"default_prompt_name": "query"}"#)],
                "a prompt before each text, here `query`, is not known",
            ),
        ];
        for (files, expected) in table {
            let error = read(files).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
        let lowered = [
            ("sentence_bert_config.json", r#"{"do_lower_case": true}"#),
            ("tokenizer.json", r#"{"normalizer": {"type": "BertNormalizer", "lowercase": true}}"#),
        ];
        assert!(read(&lowered).is_ok());
        let kept = [lowered[0], ("tokenizer.json", r#"{"normalizer": null}"#)];
        assert!(read(&kept).unwrap_err().contains("the tokenizer keeps capitals"));
    }
}
