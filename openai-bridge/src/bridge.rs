//! The bridge of one text model: requests down, answers up.

use std::sync::Arc;

use engine::{Error, GenerateRequest, InferRequest, ModelCard, Result, Vocabulary};
use tensor::{ModelConfig, Tensor};

use crate::completion::{Completion, Prompts};
use crate::template::Template;
use crate::tokenizer::{TokenTable, Tokenizer};
use crate::{Answer, profile};

/// Everything that is needed of a text model but its weights.
#[derive(Debug)]
pub struct TextBridge {
    name: String,
    context_length: u32,
    tokenizer: Tokenizer,
    table: Arc<TokenTable>,
    template: Option<Template>,
}

impl TextBridge {
    /// Makes the bridge of a model.
    ///
    /// Errors: a tokenizer or a chat template that cannot be used.
    pub fn new(card: &ModelCard, vocabulary: &Vocabulary) -> Result<Self> {
        let spelled = |token: Option<u32>| {
            let token = token.and_then(|token| vocabulary.tokens.get(token as usize));
            token.cloned().unwrap_or_default()
        };
        let template = vocabulary
            .chat_template
            .clone()
            .map(|source| Template::new(source, spelled(vocabulary.bos), spelled(vocabulary.eos)));
        let tokenizer = Tokenizer::new(vocabulary)?;
        Ok(Self {
            name: card.name.clone(),
            context_length: card.context_length,
            table: tokenizer.table(),
            tokenizer,
            template: template.transpose()?,
        })
    }

    /// Returns the model's inputs and outputs, which are the same for every text model.
    pub fn config(&self) -> ModelConfig {
        let config = ModelConfig::new(self.name.as_str(), 0, profile::inputs(), profile::outputs());
        ModelConfig { decoupled: true, ..config }
    }

    /// Brings other accepted shapes to the declared ones, before the inputs are validated.
    pub fn normalize(&self, inputs: &mut [Tensor]) {
        profile::normalize(inputs);
    }

    /// Reads a request whose inputs were validated against [`config`](TextBridge::config).
    ///
    /// Errors: a setting of the wrong type or out of range, by name; no prompt or two.
    pub fn parse(&self, request: &InferRequest) -> Result<Completion> {
        Completion::parse(request)
    }

    /// Returns the token requests of a completion, one for each prompt.
    ///
    /// Errors: a prompt that cannot fit into the context, or is no conversation. Takes time in
    /// proportion to the prompts: long ones do not belong on an async runtime.
    pub fn encode(&self, completion: &Completion) -> Result<Vec<GenerateRequest>> {
        let tokens = match &completion.prompts {
            Prompts::Texts(texts) => {
                texts.iter().map(|text| self.tokens(text, true)).collect::<Result<Vec<_>>>()?
            }
            Prompts::Messages(conversations) => {
                let template = self.template.as_ref().ok_or_else(|| {
                    let model = &self.name;
                    Error::invalid(format!("input `messages`: '{model}' has no chat template"))
                })?;
                conversations
                    .iter()
                    .map(|messages| self.tokens(&template.render(messages)?, false))
                    .collect::<Result<Vec<_>>>()?
            }
        };
        let requests =
            tokens.into_iter().zip(&completion.rows).map(|(tokens, row)| GenerateRequest {
                tokens: tokens.into(),
                choices: completion.choices,
                sampling: row.sampling.clone(),
                stop: row.stop.clone(),
                logprobs: completion.logprobs,
                prompt_logprobs: None,
                guided: None,
            });
        Ok(requests.collect())
    }

    fn tokens(&self, text: &str, with_bos: bool) -> Result<Vec<u32>> {
        let least = self.tokenizer.least_tokens(text.len());
        if least >= self.context_length as usize {
            return Err(Error::invalid(format!(
                "the prompt has {} bytes, at least {least} tokens; the model's context has {}",
                text.len(),
                self.context_length
            )));
        }
        self.tokenizer.encode(text, with_bos)
    }

    /// Makes the answer to a completion, given the number of tokens of each prompt.
    pub fn answer(&self, completion: Completion, prompt_tokens: Vec<u32>) -> Answer {
        Answer::new(self.table.clone(), completion, prompt_tokens)
    }
}

#[cfg(test)]
mod tests;
