//! The families of models that this worker runs, and in what they differ.

use crate::Error;

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

/// The architectures that this worker runs, by their names in files.
pub const KNOWN_ARCHITECTURES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

impl Family {
    /// Returns the family of an architecture's name.
    ///
    /// Errors: it is not known; the text lists those that are.
    pub fn named(architecture: &str) -> Result<Self, Error> {
        let found = FAMILIES.iter().find(|(_, name, _)| *name == architecture);
        found.map(|(family, ..)| *family).ok_or_else(|| {
            let known = KNOWN_ARCHITECTURES.join(", ");
            let text = format!("architecture `{architecture}` is not known; known are: {known}");
            Error::Model(text)
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_known_by_name_and_others_are_told_which() {
        for name in KNOWN_ARCHITECTURES {
            assert_eq!(Family::named(name).unwrap().name(), name);
        }
        let error = Family::named("gpt2").unwrap_err().to_string();
        let expected = "architecture `gpt2` is not known; known are: llama, mistral, qwen2, qwen3";
        assert!(error.contains(expected), "{error}");
    }
}
