//! Chat templates, as Hugging Face renders them.

use engine::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value, context};
use serde_json::Value as Json;

/// Instructions that one rendering may take; a long conversation needs some thousands.
const FUEL: u64 = 5_000_000;

/// The name of the one template in the environment.
const NAME: &str = "chat_template";

/// Stub: seconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Now(pub u64);

/// Stub of a conversation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conversation {
    messages: Vec<Json>,
    pub tools: Vec<Json>,
    pub kwargs: serde_json::Map<String, Json>,
    pub add_generation_prompt: bool,
    pub continue_final_message: bool,
}
impl Conversation {
    pub(crate) fn new(messages: Vec<Json>) -> Result<Self> {
        Ok(Self { messages, ..Self::default() })
    }
}

/// A model's chat template.
#[derive(Debug)]
pub(crate) struct Template {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl Template {
    /// Compiles a template.
    ///
    /// Errors: it is not Jinja.
    pub(crate) fn new(source: String, bos_token: String, eos_token: String) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| Error::internal(error.to_string()))?);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |text: String| -> std::result::Result<(), _> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, text))
        });
        environment.add_template_owned(NAME, source).map_err(|error| {
            Error::invalid(format!("the model's chat template cannot be read: {error}"))
        })?;
        Ok(Self { environment, bos_token, eos_token })
    }

    /// Renders a conversation given as JSON, up to where the assistant's turn begins.
    ///
    /// Errors: the JSON is not a conversation, or the template refuses it.
    pub(crate) fn render(&self, conversation: &Conversation, _: Now) -> Result<String> {
        self.render_text(&Json::Array(conversation.messages.clone()).to_string())
    }
    pub(crate) fn source(&self) -> &str {
        ""
    }
    pub(crate) fn knows_tools(&self) -> bool {
        false
    }
    fn render_text(&self, messages: &str) -> Result<String> {
        let wrong = |why: String| Error::invalid(format!("input `messages`: {why}"));
        let messages = parse(messages).map_err(wrong)?;
        let variables = context! {
            messages => Value::from(Serde(&messages)),
            add_generation_prompt => true,
            bos_token => &self.bos_token,
            eos_token => &self.eos_token,
        };
        let template = self.environment.get_template(NAME);
        let rendered = template.and_then(|template| template.render(variables));
        rendered.map_err(|error| {
            wrong(format!("the chat template refuses them: {}", error.detail().unwrap_or("error")))
        })
    }
}

/// Reads a conversation; parts of a content that are text become one text.
fn parse(text: &str) -> std::result::Result<Vec<Json>, String> {
    let parsed: Json = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let Json::Array(mut messages) = parsed else {
        return Err("expected a JSON array of messages".into());
    };
    if messages.is_empty() {
        return Err("expected at least 1 message, got 0".into());
    }
    for (index, message) in messages.iter_mut().enumerate() {
        let Json::Object(fields) = message else {
            return Err(format!("message {index}: expected an object"));
        };
        if !fields.get("role").is_some_and(Json::is_string) {
            return Err(format!("message {index}: expected a `role` that is a text"));
        }
        let content = match fields.remove("content") {
            Some(Json::String(text)) => text,
            Some(Json::Array(parts)) => {
                join(&parts).map_err(|why| format!("message {index}: {why}"))?
            }
            None | Some(Json::Null) => String::new(),
            Some(_) => return Err(format!("message {index}: `content`: expected a text")),
        };
        fields.insert("content".into(), Json::String(content));
    }
    Ok(messages)
}

fn join(parts: &[Json]) -> std::result::Result<String, String> {
    parts
        .iter()
        .map(|part| match (part.get("type").and_then(Json::as_str), part.get("text")) {
            (Some("text"), Some(Json::String(text))) => Ok(text.as_str()),
            (Some(kind), _) if kind != "text" => {
                Err(format!("a part of type `{kind}` is not for this model; it takes text"))
            }
            _ => Err("`content`: expected parts {\"type\": \"text\", \"text\": …}".to_owned()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{% for message in messages %}\n\
        {{'<|im_start|>' + message['role'] + '\n' + message['content'].strip() + '<|im_end|>' + '\n'}}\
        {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    fn render(template: &str, messages: &str) -> String {
        let template = Template::new(template.into(), "<s>".into(), "</s>".into()).unwrap();
        match template.render_text(messages) {
            Ok(text) => text,
            Err(error) => format!("refused: {error}"),
        }
    }

    #[test]
    fn a_conversation_is_rendered_up_to_the_assistants_turn() {
        let text = render(CHATML, r#"[{"role": "user", "content": " hi "}]"#);
        assert_eq!(text, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
        let parts = r#"[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]"#;
        assert!(render(CHATML, parts).contains("user\nab<|im_end|>"));
        assert_eq!(render("{{ bos_token }}{{ messages|length }}", r#"[{"role":"x"}]"#), "<s>1");
    }

    #[test]
    fn what_is_no_conversation_is_refused_by_name() {
        let table = [
            ("{", "input `messages`: EOF"),
            ("{}", "expected a JSON array"),
            ("[]", "expected at least 1 message"),
            ("[1]", "message 0: expected an object"),
            (r#"[{"content":"x"}]"#, "message 0: expected a `role`"),
            (r#"[{"role":"user","content":3}]"#, "`content`: expected a text"),
            (r#"[{"role":"user","content":[{"type":"image_url"}]}]"#, "a part of type `image_url`"),
        ];
        for (messages, fragment) in table {
            let text = render(CHATML, messages);
            assert!(text.contains(fragment), "expected `{fragment}` in `{text}`");
        }
    }

    #[test]
    fn a_template_may_refuse_and_cannot_run_for_ever() {
        let user = r#"[{"role":"user","content":"x"}]"#;
        let text = render("{{ raise_exception('roles must alternate') }}", user);
        assert!(text.contains("roles must alternate"), "{text}");
        let endless =
            "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
        assert!(render(endless, user).starts_with("refused"));
        assert!(Template::new("{% for".into(), String::new(), String::new()).is_err());
    }
}
