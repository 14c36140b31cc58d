//! Chat templates, as Hugging Face renders them.
//!
//! A template is a program that came with the model: it may refuse a conversation, and it cannot
//! run for ever. `tests/clients/test_templates.py` compares with `transformers` itself.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use engine::{Error, Result, check_waiting};
use minijinja::{Environment, Value};
use serde_json::{Map, Value as Json};

mod clock;
mod conversation;
mod environment;
mod forms;
mod methods;
mod python;
mod values;

pub use clock::Now;
pub use conversation::Conversation;
use conversation::wrong;
use forms::Forms;

/// The name of the one template in the environment.
const NAME: &str = "chat_template";

/// Marks the end of a final message that the model goes on with.
const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// A model's chat template.
#[derive(Debug)]
pub struct Template {
    compiled: Compiled,
    source: String,
    forms: Forms,
    knows_tools: bool,
}

impl Template {
    /// Compiles a template.
    ///
    /// Errors: it is not Jinja.
    pub fn new(source: String, bos_token: String, eos_token: String) -> Result<Self> {
        let unreadable = |error: minijinja::Error| {
            Error::invalid(format!("the model's chat template cannot be read: {error}"))
        };
        let mut environment = environment::environment().map_err(unreadable)?;
        let jinja = environment::without_generation(&source);
        environment.add_template_owned(NAME, jinja).map_err(unreadable)?;
        let template = environment.get_template(NAME).map_err(unreadable)?;
        let knows_tools = template.undeclared_variables(false).contains("tools");
        let compiled = Compiled { environment, bos_token, eos_token };
        let forms = Forms::of(&source, |messages| {
            let conversation = Conversation::new(messages.to_vec()).ok()?;
            compiled.render(messages, &conversation, Now::default()).ok()
        });
        Ok(Self { compiled, source, forms, knows_tools })
    }

    /// Renders a conversation.
    ///
    /// Errors: the template refuses it, or a setting of the conversation is wrong.
    pub fn render(&self, conversation: &Conversation, now: Now) -> Result<String> {
        conversation.check()?;
        let mut messages = self.adapt(conversation);
        if !conversation.continue_final_message {
            return self.compiled.render(&messages, conversation, now);
        }
        let last = mark(&mut messages)?;
        cut(self.compiled.render(&messages, conversation, now)?, &last)
    }

    /// Returns the messages as the template gets them: contents in the form that it reads.
    pub fn adapt(&self, conversation: &Conversation) -> Vec<Json> {
        self.forms.adapt(conversation.messages())
    }

    /// Returns the template as the model brought it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Returns whether the template reads the tools of a conversation.
    pub fn knows_tools(&self) -> bool {
        self.knows_tools
    }
}

/// A template in its environment.
#[derive(Debug)]
struct Compiled {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl Compiled {
    fn render(&self, messages: &[Json], conversation: &Conversation, now: Now) -> Result<String> {
        // As in `transformers`, what was not given is there and none.
        let list = |items: &[Json]| match items.is_empty() {
            true => Value::from(()),
            false => values::list(items),
        };
        let mut variables = BTreeMap::from([
            ("messages", values::list(messages)),
            ("tools", list(&conversation.tools)),
            ("documents", list(&conversation.documents)),
            ("add_generation_prompt", conversation.add_generation_prompt.into()),
            ("bos_token", self.bos_token.as_str().into()),
            ("eos_token", self.eos_token.as_str().into()),
            ("strftime_now", environment::strftime_now(now)),
        ]);
        let kwargs: &Map<String, Json> = &conversation.kwargs;
        let kwargs = kwargs.iter().map(|(name, value)| (name.as_str(), values::value(value)));
        variables.extend(kwargs);
        let variables = Value::from(variables);
        // The library indexes out of bounds when an empty sequence is reversed by a slice.
        let rendered =
            catch_unwind(AssertUnwindSafe(|| -> std::result::Result<_, minijinja::Error> {
                let mut text = Awaited(Vec::new());
                let template = self.environment.get_template(NAME)?;
                template.render_captured_to(variables, &mut text)?;
                Ok(text.0)
            }));
        let rendered = rendered.map_err(|_| Error::internal("the chat template cannot be run"))?;
        check_waiting()?;
        let text = rendered.map_err(|error| {
            let why = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
            let message = format!("the chat template refuses the messages: {why}");
            Error::invalid(message).with_param("messages")
        })?;
        String::from_utf8(text)
            .map_err(|error| Error::internal("the chat template wrote no text").with_source(error))
    }
}

/// A text that grows as long as somebody waits for it.
struct Awaited(Vec<u8>);

impl io::Write for Awaited {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        check_waiting().map_err(io::Error::other)?;
        self.0.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Marks the end of the last message and returns the text that it had.
fn mark(messages: &mut [Json]) -> Result<String> {
    let place = format!("messages[{}].content", messages.len().saturating_sub(1));
    let content = messages.last_mut().and_then(|message| message.get_mut("content"));
    let text = match content {
        Some(Json::String(text)) => Some(text),
        Some(Json::Array(parts)) => {
            parts.iter_mut().rev().find_map(|part| match part.get_mut("text") {
                Some(Json::String(text)) => Some(text),
                _ => None,
            })
        }
        _ => None,
    };
    let text = text.ok_or_else(|| wrong(&place, "expected a text that can be continued"))?;
    let before = text.clone();
    text.push_str(TAG);
    Ok(before)
}

/// Cuts a rendered conversation at the mark.
fn cut(mut rendered: String, last: &str) -> Result<String> {
    let tag = rendered.rfind(TAG.trim_end()).filter(|_| rendered.contains(last.trim()));
    let tag = tag.ok_or_else(|| {
        wrong("continue_final_message", "the chat template does not keep the last message")
    })?;
    // A template that trims contents trims the end of this one too.
    let is_trimmed = !rendered[tag..].starts_with(TAG);
    rendered.truncate(tag);
    if is_trimmed {
        rendered.truncate(rendered.trim_end_matches(python::is_space).len());
    }
    Ok(rendered)
}

#[cfg(test)]
mod tests;
