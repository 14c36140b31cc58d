//! The families of models that this worker runs, and in what they differ.

use super::bert::KNOWN_ENCODERS;

/// A family of decoder-only transformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 2 and 3, SmolLM2, and in GGUF files Mistral too.
    Llama,
    /// Mistral: Llama with a window of attention.
    Mistral,
    /// Qwen 2 and 2.5: biases on query, key and value.
    Qwen2,
    /// Qwen 3: a norm on each head of query and key.
    Qwen3,
}

/// The families with their names in files and, in a `config.json`, of their class.
const FAMILIES: [(Family, &str, &str); 4] = [
    (Family::Llama, "llama", "LlamaForCausalLM"),
    (Family::Mistral, "mistral", "MistralForCausalLM"),
    (Family::Qwen2, "qwen2", "Qwen2ForCausalLM"),
    (Family::Qwen3, "qwen3", "Qwen3ForCausalLM"),
];

/// The most characters of an architecture's name that a refusal repeats.
const MAX_SHOWN: usize = 64;

/// The architectures that this worker runs, by their names in files.
pub const KNOWN_ARCHITECTURES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

impl Family {
    /// Returns the family of an architecture's name.
    ///
    /// Errors: it is not one of a text model; the text lists all that run.
    pub fn named(architecture: &str) -> Result<Self, String> {
        let found = FAMILIES.iter().find(|(_, name, _)| *name == architecture);
        found.map(|(family, ..)| *family).ok_or_else(|| not_run(architecture))
    }

    /// Returns the name in files.
    pub fn name(self) -> &'static str {
        FAMILIES.iter().find(|(family, ..)| *family == self).map_or("", |(_, name, _)| name)
    }

    /// Returns the name of the class in a `config.json`.
    pub fn class(self) -> &'static str {
        FAMILIES.iter().find(|(family, ..)| *family == self).map_or("", |(.., class)| class)
    }

    /// Returns whether query, key and value have biases.
    pub fn has_biases(self) -> bool {
        self == Self::Qwen2
    }

    /// Returns whether each head of query and key is normalised.
    pub fn has_head_norms(self) -> bool {
        self == Self::Qwen3
    }

    /// Returns whether GGUF files keep the dimensions that turn together side by side.
    pub fn pairs_neighbours_in_gguf(self) -> bool {
        matches!(self, Self::Llama | Self::Mistral)
    }
}

/// Returns the sentence that refuses an architecture: what runs, from which kind of file. A GGUF
/// file of an encoder gets the same one, so it does not call the architecture unknown.
pub(super) fn not_run(architecture: &str) -> String {
    let shown = architecture.chars().take(MAX_SHOWN).collect::<String>();
    let (models, encoders) = (KNOWN_ARCHITECTURES.join(", "), KNOWN_ENCODERS.join(", "));
    format!(
        "architecture `{shown}` does not run here; those that do: {models}, and from directories \
         the encoders {encoders}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::bert;

    #[test]
    fn families_are_known_by_name_and_others_are_told_which() {
        for name in KNOWN_ARCHITECTURES {
            assert_eq!(Family::named(name).unwrap().name(), name);
        }
        let error = Family::named("gpt2").unwrap_err();
        let expected = "architecture `gpt2` does not run here; those that do: llama, mistral, \
                        qwen2, qwen3, and from directories the encoders bert, camembert, \
                        distilbert, roberta, xlm-roberta";
        assert_eq!(error, expected);
    }

    #[test]
    fn encoders_that_are_listed_run() {
        for name in KNOWN_ENCODERS {
            assert!(bert::Family::of(name).is_some(), "{name}");
        }
    }

    #[test]
    fn a_refusal_repeats_no_long_name() {
        let error = Family::named(&"x".repeat(1 << 20)).unwrap_err();
        assert!(error.contains(&format!("`{}`", "x".repeat(64))), "{error}");
    }
}
