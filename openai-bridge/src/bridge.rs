//! The bridge of one text model: requests down, answers up.

use std::collections::HashSet;
use std::sync::Arc;

use engine::{
    Constraint, EmbedRequest, Error, GenerateRequest, Guided, ModelCard, Result, TokenId,
    Vocabulary,
};
use serde_json::Value as Json;
use tensor::{ModelConfig, Tensor};

use crate::alternatives::{Marks, either};
use crate::chat::Chat;
use crate::completion::Input;
use crate::completion::{Completion, MAX_CONTINUATIONS, Prompts};
use crate::continuations::{Beginning, Continuations, Reading};
use crate::controls::{Controls, unmarked};
use crate::parser::OutputParser;
use crate::profile;
use crate::rules::TextRules;
use crate::settings::Settings;
use crate::syntax::Syntax;
use crate::template::{Now, Template};
use crate::tokenizer::{TokenTable, Tokenizer};
use crate::tools::{Choice, Tools};

/// Most bytes of the tools of one request, times its prompts.
const MAX_TOOLS_BYTES: usize = 16 << 20;

/// Most scores of prompts that one request may ask for: tokens, alternatives and choices.
const MAX_PROMPT_SCORES: usize = 1_000_000;

/// Everything that is needed of a text model but its weights.
#[derive(Debug)]
pub struct TextBridge {
    pub(crate) name: String,
    pub(crate) context_length: u32,
    pub(crate) tokenizer: Tokenizer,
    table: Arc<TokenTable>,
    template: Option<Template>,
    /// The control tokens that messages may not spell out.
    controls: Option<Controls>,
    syntax: Syntax,
    /// Steering tokens that the parsers have to see.
    markers: Arc<HashSet<TokenId>>,
    /// Those of them that are control tokens.
    marks: Marks,
    rules: TextRules,
    /// The tokens that begin and end a text.
    ends: [Option<TokenId>; 2],
    /// Whether the model makes vectors and no texts.
    is_encoder: bool,
    /// Whether its engine has the template and the tokenizer.
    takes_texts: bool,
    /// Whether that engine knows conversations too, and not prompts alone.
    takes_chats: bool,
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
        let source = vocabulary.chat_template.clone();
        let template = source
            .map(|source| Template::new(source, spelled(vocabulary.bos), spelled(vocabulary.eos)))
            .transpose()?;
        let syntax = template.as_ref().map_or_else(Syntax::default, Syntax::of_template);
        let markers = Arc::new(markers(&syntax, vocabulary));
        let tokenizer = Tokenizer::new(vocabulary)?;
        Ok(Self {
            name: card.name.clone(),
            context_length: card.context_length,
            table: tokenizer.table(),
            tokenizer,
            template,
            controls: Controls::of(vocabulary),
            marks: Marks::of(&syntax.markers(), vocabulary),
            rules: TextRules::default(),
            ends: [vocabulary.bos, vocabulary.eos],
            syntax,
            markers,
            is_encoder: false,
            takes_texts: false,
            takes_chats: false,
        })
    }

    /// Makes the bridge of a model that makes vectors and no texts.
    ///
    /// Errors: no `tokenizer.json`, or one that cannot be used.
    pub fn encoder(card: &ModelCard, vocabulary: &Vocabulary) -> Result<Self> {
        let json = vocabulary.json.as_deref();
        let json = json.ok_or_else(|| Error::invalid("an encoder needs its `tokenizer.json`"))?;
        let tokenizer = Tokenizer::framing(json.as_bytes())?;
        Ok(Self {
            name: card.name.clone(),
            context_length: card.context_length,
            table: tokenizer.table(),
            tokenizer,
            template: None,
            controls: None,
            syntax: Syntax::default(),
            markers: Arc::default(),
            marks: Marks::default(),
            rules: TextRules::default(),
            ends: [None; 2],
            is_encoder: true,
            takes_texts: false,
            takes_chats: false,
        })
    }

    /// Makes the bridge of a model whose engine takes texts. A context of 0 is not known.
    pub fn of_texts(name: &str, context_length: u32, is_encoder: bool) -> Self {
        let tokenizer = Tokenizer::absent();
        Self {
            name: name.to_owned(),
            context_length,
            table: tokenizer.table(),
            tokenizer,
            template: None,
            controls: None,
            syntax: Syntax::default(),
            markers: Arc::default(),
            marks: Marks::default(),
            rules: TextRules::default(),
            ends: [None; 2],
            is_encoder,
            takes_texts: true,
            takes_chats: true,
        }
    }

    /// Makes it the bridge of an engine that takes prompts and no conversations.
    #[must_use]
    pub fn without_chats(self) -> Self {
        Self { takes_chats: false, ..self }
    }

    /// Keeps to other rules than the default ones.
    #[must_use]
    pub fn with_rules(self, rules: TextRules) -> Self {
        let controls = self.controls.filter(|_| !rules.has_special_content);
        Self { controls, rules, ..self }
    }

    /// Returns what its texts keep to.
    pub(crate) fn rules(&self) -> TextRules {
        self.rules
    }

    /// Returns whether the model's engine takes texts, and has the template and the tokenizer.
    pub fn takes_texts(&self) -> bool {
        self.takes_texts
    }

    /// Returns whether the model makes vectors and no texts.
    pub fn is_encoder(&self) -> bool {
        self.is_encoder
    }

    /// Refuses what asks an encoder for a text.
    pub fn check_generates(&self) -> Result<()> {
        match self.is_encoder {
            false => Ok(()),
            true => {
                let text = format!("`model`: `{}` makes embeddings and no text", self.name);
                Err(Error::invalid(text).with_param("model"))
            }
        }
    }

    /// Takes other formats of tool calls and of reasoning than those that the template shows.
    ///
    /// Errors: a format that is not known; the message lists those that are.
    pub fn with_formats(
        mut self,
        tools: Option<&str>,
        reasoning: Option<&str>,
        vocabulary: &Vocabulary,
    ) -> Result<Self> {
        self.syntax = self.syntax.with_names(tools, reasoning)?;
        self.markers = Arc::new(markers(&self.syntax, vocabulary));
        self.marks = Marks::of(&self.syntax.markers(), vocabulary);
        Ok(self)
    }

    /// Returns the model's inputs and outputs, which are the same for every text model, and some of
    /// them for every encoder.
    pub fn config(&self) -> ModelConfig {
        if self.is_encoder {
            let (mut inputs, mut outputs) = (profile::inputs(), profile::outputs());
            inputs.retain(|spec| profile::OF_ENCODERS.contains(&&*spec.name));
            outputs.retain(|spec| profile::OF_ENCODERS.contains(&&*spec.name));
            return ModelConfig::new(self.name.as_str(), 0, inputs, outputs);
        }
        let config = ModelConfig::new(self.name.as_str(), 0, profile::inputs(), profile::outputs());
        ModelConfig { decoupled: true, ..config }
    }

    /// Returns the most tokens of prompt and text together; 0: that is not known.
    pub fn context_length(&self) -> u32 {
        self.context_length
    }

    /// Returns the most tokens that a text can have, as far as is known.
    pub(crate) fn most_tokens(&self) -> u32 {
        if self.context_length == 0 { u32::MAX } else { self.context_length }
    }

    /// Brings other accepted shapes to the declared ones, before the inputs are validated.
    pub fn normalize(&self, inputs: &mut [Tensor]) {
        profile::normalize(inputs);
    }

    /// Makes the chats of conversations.
    pub(crate) fn chats(
        &self,
        settings: &Settings,
        conversations: Vec<Vec<Json>>,
    ) -> Result<Prompts> {
        if self.template.is_none() && !self.takes_chats {
            let text = format!(
                "'{}' has no chat template: it continues prompts and takes no messages",
                self.name
            );
            return Err(Error::invalid(text).with_param("messages"));
        }
        let count = conversations.len();
        if count > MAX_CONTINUATIONS {
            let text = format!("expected at most {MAX_CONTINUATIONS} conversations, got {count}");
            return Err(Error::invalid(text).with_param("messages"));
        }
        let tools = Tools { max_calls: self.rules.max_tool_calls, ..Tools::read(settings)? };
        if tools.size().saturating_mul(count) > MAX_TOOLS_BYTES {
            let text = format!("`tools`: expected at most {MAX_TOOLS_BYTES} bytes for all prompts");
            return Err(Error::invalid(text).with_param("tools"));
        }
        let chat = |messages| {
            let mut chat = Chat::new(settings, messages, &tools, self.template.as_ref())?;
            if let Some(controls) = &self.controls {
                chat.conversation.break_controls(controls);
            }
            Ok(chat)
        };
        let chats = conversations.into_iter().map(chat).collect::<Result<_>>()?;
        Ok(Prompts::Chats(chats))
    }

    /// Returns the token requests of a completion, one for each prompt, and what reads their
    /// answers. `now` is the time that templates may tell.
    ///
    /// Errors: a prompt that cannot fit into the context, or is no conversation; constraints that
    /// exclude one another. Takes time in proportion to the prompts: long ones do not belong on an
    /// async runtime.
    pub fn encode(
        &self,
        completion: &Completion,
        now: Now,
    ) -> Result<(Vec<GenerateRequest>, Continuations)> {
        completion.check_scores(self.context_length)?;
        let count = completion.prompts();
        let (mut requests, mut beginnings) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for index in 0..count {
            let row = &completion.rows[index];
            let prompt = self.prompt(completion, index, now)?;
            let kept = completion.truncation.unwrap_or(usize::MAX).min(prompt.tokens.len());
            let tokens: Arc<[TokenId]> = prompt.tokens[prompt.tokens.len() - kept..].into();
            let choices = completion.choices.get() as usize;
            if let Some(top) = completion.prompt_logprobs
                && tokens.len() * (top as usize + 1) * choices > MAX_PROMPT_SCORES
            {
                let text = format!(
                    "`prompt_logprobs`: {} tokens with {top} alternatives for {choices} choices \
                     are more than {MAX_PROMPT_SCORES} scores",
                    tokens.len()
                );
                return Err(Error::invalid(text).with_param("prompt_logprobs"));
            }
            let is_cut = kept < prompt.tokens.len();
            let text = if is_cut { self.detokenize(&tokens) } else { prompt.text };
            beginnings.push(Beginning {
                tokens: tokens.clone(),
                min_tokens: row.stop.min_tokens,
                echo: completion.has_echo.then_some(text),
                parser: prompt.parser,
            });
            requests.push(GenerateRequest {
                tokens,
                generated: 0,
                choice_offset: 0,
                choices: completion.choices,
                sampling: row.sampling.clone(),
                stop: row.stop.clone(),
                logprobs: completion.logprobs,
                prompt_logprobs: completion.prompt_logprobs,
                guided: prompt.guided,
                adapter: None,
                handoff: None,
            });
        }
        let is_parsed = beginnings.iter().any(|beginning| beginning.parser.is_some());
        let reading = Reading {
            table: self.table.clone(),
            shows_special_tokens: completion.shows_special_tokens,
            markers: if is_parsed { self.markers.clone() } else { Arc::default() },
            stops: completion.stops.clone(),
            has_stop_in_output: completion.has_stop_in_output,
            has_token_ids: completion.has_token_ids,
            has_prompt_scores: completion.prompt_logprobs.is_some(),
            is_single_call: completion.is_single_call(),
            is_calls_only: completion.is_calls_only(),
        };
        let choices = completion.choices.get() as usize;
        Ok((requests, Continuations::new(reading, beginnings, choices)))
    }

    fn prompt(&self, completion: &Completion, index: usize, now: Now) -> Result<Prompt> {
        let guided = || completion.constraint.clone().map(Guided::new);
        match &completion.prompts {
            Prompts::Texts(texts) => {
                let text = texts[index].clone();
                let tokens = match completion.truncation {
                    None => self.tokenize(&text, true)?,
                    Some(_) => self.tokenizer.encode(&text, true)?,
                };
                Ok(Prompt { tokens, text, parser: None, guided: guided() })
            }
            Prompts::Tokens(lists) => {
                let tokens = lists[index].clone();
                let text = match completion.has_echo {
                    true => self.detokenize(&tokens),
                    false => String::new(),
                };
                Ok(Prompt { tokens, text, parser: None, guided: guided() })
            }
            Prompts::Chats(chats) => {
                let chat = &chats[index];
                let rendered = self.render(chat, now)?;
                let tokens = match completion.truncation {
                    None => self.tokenize_rendered(&rendered, false)?,
                    Some(_) => self.tokenizer.encode_marked(&rendered, false)?,
                };
                let text = unmarked(&rendered).into_owned();
                let thinks = self.syntax.starts_in_reasoning(&text);
                let guided = self.guided(completion, chat, thinks)?;
                let parser = self.syntax.parser(&chat.tools, thinks);
                Ok(Prompt { tokens, text, parser, guided })
            }
        }
    }

    /// Returns a chat as its template renders it, with [marks](crate::controls::MARK).
    pub(crate) fn render(&self, chat: &Chat, now: Now) -> Result<String> {
        let template = self.template.as_ref();
        let template = template.ok_or_else(|| Error::internal("a chat without template"))?;
        template.render(&chat.conversation, now)
    }

    /// Returns what the answer of a chat has to look like. What the model thinks is free.
    fn guided(&self, completion: &Completion, chat: &Chat, thinks: bool) -> Result<Option<Guided>> {
        let constraint = match (chat.tools.constraint(), completion.constraint.clone()) {
            // What a call is asked for is no text, so that nothing of the format is left to keep.
            (Some(call), _) => Some(call),
            (None, Some(format)) if chat.tools.choice == Choice::Auto => {
                Some(self.call_or(format, completion.constraint_field(), &chat.tools)?)
            }
            (None, format) => format,
        };
        let after = if thinks { self.syntax.reasoning_end() } else { None };
        Ok(constraint.map(|constraint| Guided { constraint, after }))
    }

    /// Returns the constraint to calls or to a text of a format.
    fn call_or(&self, format: Constraint, field: &str, tools: &Tools) -> Result<Constraint> {
        let Some(calls) = self.syntax.tools() else { return Ok(format) };
        either(&format, tools, calls, &self.marks).ok_or_else(|| {
            let text = format!(
                "`{field}`: a grammar cannot be kept while the model may call tools; set \
                 `tool_choice` to none"
            );
            Error::invalid(text).with_param(field)
        })
    }

    /// Returns the tokens of a text; `with_bos` puts the token before them that begins a text, if
    /// the model has one.
    ///
    /// Errors: a text that is longer than the context can be.
    pub fn tokenize(&self, text: &str, with_bos: bool) -> Result<Vec<TokenId>> {
        self.check_length(text)?;
        self.tokenizer.encode(text, with_bos)
    }

    /// Returns the tokens of a chat as its template rendered it.
    ///
    /// Errors: as [`tokenize`](Self::tokenize).
    pub(crate) fn tokenize_rendered(&self, text: &str, with_bos: bool) -> Result<Vec<TokenId>> {
        self.check_length(&unmarked(text))?;
        self.tokenizer.encode_marked(text, with_bos)
    }

    /// Refuses a text that cannot fit into the context.
    fn check_length(&self, text: &str) -> Result<()> {
        let least = self.tokenizer.least_tokens(text.len());
        match least < self.most_tokens() as usize {
            true => Ok(()),
            false => Err(Error::invalid(format!(
                "the prompt has {} bytes, at least {least} tokens; the model's context has {}",
                text.len(),
                self.context_length
            ))
            .with_code("context_length_exceeded")),
        }
    }

    /// Returns the text of tokens, the steering ones among them; what is no UTF-8 becomes U+FFFD.
    pub fn detokenize(&self, tokens: &[TokenId]) -> String {
        let bytes: Vec<u8> =
            tokens.iter().flat_map(|&token| self.table.bytes(token, true)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Returns the text of tokens that are no part of another: without the space that a word
    /// begins with, where the vocabulary has it so.
    pub(crate) fn whole_text(&self, tokens: &[TokenId]) -> String {
        match self.is_encoder {
            true => self.table.text(tokens, true),
            false => self.detokenize(tokens),
        }
    }

    /// Returns whether the vocabulary has a token.
    pub fn knows(&self, token: TokenId) -> bool {
        self.table.has(token)
    }

    /// Returns the chat template's source and the tokens that begin and end a text.
    pub(crate) fn tokenizer_facts(&self) -> (Option<&str>, [Option<TokenId>; 2]) {
        (self.template.as_ref().map(Template::source), self.ends)
    }

    /// Returns what a token stands for, which may be a part of a character.
    pub fn token_text(&self, token: TokenId) -> String {
        String::from_utf8_lossy(self.table.bytes(token, true)).into_owned()
    }

    /// Returns the request for the vector of a text, which is cut to `truncation` tokens if that is
    /// given, and to the context: an encoder keeps the first ones, others the last.
    ///
    /// Errors: a text that cannot fit into the context.
    pub fn embedding(&self, input: &Input, truncation: Option<usize>) -> Result<EmbedRequest> {
        let most = truncation.map(|most| most.min(self.context_length as usize));
        let tokens = match (input, most) {
            (Input::Text(text), None) => self.tokenize(text, true)?,
            (Input::Text(text), Some(most)) => self.tokenizer.encode_cut(text, most)?,
            (Input::Tokens(tokens), most) => {
                let kept = most.unwrap_or(usize::MAX).min(tokens.len());
                let first = if self.is_encoder { 0 } else { tokens.len() - kept };
                tokens[first..first + kept].to_vec()
            }
        };
        Ok(EmbedRequest { tokens: tokens.into(), adapter: None })
    }
}

/// One prompt, rendered and tokenised.
struct Prompt {
    tokens: Vec<TokenId>,
    text: String,
    parser: Option<OutputParser>,
    guided: Option<Guided>,
}

/// Returns the steering tokens that a syntax is made of.
fn markers(syntax: &Syntax, vocabulary: &Vocabulary) -> HashSet<TokenId> {
    let markers = syntax.markers();
    let tokens = vocabulary.tokens.iter().zip(0..);
    tokens.filter(|(token, _)| markers.contains(&token.as_str())).map(|(_, id)| id).collect()
}

#[cfg(test)]
mod tests;
