//! A conversation: its messages and settings, its commands, one answer after the other.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::ChatError;
use super::connection::Server;
use super::frames::{Delta, Events, Usage, delta};
use super::terminal::Screen;
use crate::args::ChatArgs;

/// What `/help` says.
pub(super) const HELP: &str = "\
/clear        forget the conversation
/system TEXT  set the system prompt; without a text, drop it
/model NAME   go on with another model
/stats        time to first token and tokens per second after each answer, on or off
/exit         end (also Ctrl-D)
Ctrl-C stops an answer; pressed again it ends the chat.";

/// What a line that begins with a slash wants.
#[derive(Debug, PartialEq)]
pub(super) enum Command {
    /// Forget the messages.
    Clear,
    /// Change or drop the system prompt.
    System(Option<String>),
    /// Change the model.
    Model(String),
    /// Turn the figures on or off; the other way if not said.
    Stats(Option<bool>),
    /// Say what can be done.
    Help,
    /// End.
    Exit,
}

impl Command {
    /// Reads a line: a command, the name of one that there is not, or none for a message.
    pub(super) fn of(line: &str) -> Option<Result<Self, String>> {
        let rest = line.strip_prefix('/')?;
        let (name, argument) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let argument = argument.trim();
        let given = (!argument.is_empty()).then(|| argument.to_owned());
        Some(match (name, given) {
            ("clear", None) => Ok(Self::Clear),
            ("system", text) => Ok(Self::System(text)),
            ("model", Some(name)) => Ok(Self::Model(name)),
            ("stats", None) => Ok(Self::Stats(None)),
            ("stats", Some(word)) if word == "on" => Ok(Self::Stats(Some(true))),
            ("stats", Some(word)) if word == "off" => Ok(Self::Stats(Some(false))),
            ("help", None) => Ok(Self::Help),
            ("exit" | "quit", None) => Ok(Self::Exit),
            _ => Err(line.trim().to_owned()),
        })
    }
}

/// How an answer ended that did not fail.
#[derive(Debug, PartialEq)]
pub(super) enum End {
    /// It is whole.
    Complete,
    /// Ctrl-C stopped it; what had come stays in the conversation.
    Interrupted,
}

/// One conversation with a server.
pub(super) struct Session {
    server: Server,
    model: String,
    system: Option<String>,
    messages: Vec<Value>,
    temperature: Option<f64>,
    max_tokens: u32,
    seed: Option<i64>,
    has_stats: bool,
}

/// What has come of an answer.
struct Progress {
    text: String,
    pieces: u64,
    asked: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
    usage: Option<Usage>,
    finish: Option<String>,
}

impl Session {
    /// Begins a conversation.
    pub(super) fn new(args: &ChatArgs, server: Server, model: String) -> Self {
        Self {
            server,
            model,
            system: args.system.clone(),
            messages: Vec::new(),
            temperature: args.temperature,
            max_tokens: args.max_tokens,
            seed: args.seed,
            has_stats: args.stats,
        }
    }

    /// Returns the model that answers.
    pub(super) fn model(&self) -> &str {
        &self.model
    }

    /// Does what a command wants and returns what to say about it.
    pub(super) fn obey(&mut self, command: Command) -> String {
        match command {
            Command::Clear => {
                self.messages.clear();
                "the conversation is forgotten".to_owned()
            }
            Command::System(text) => {
                self.system = text;
                let is = if self.system.is_some() { "set" } else { "dropped" };
                format!("the system prompt is {is}")
            }
            Command::Model(name) => {
                self.model = name;
                format!("the model is {}", self.model)
            }
            Command::Stats(wanted) => {
                self.has_stats = wanted.unwrap_or(!self.has_stats);
                format!("figures are {}", if self.has_stats { "on" } else { "off" })
            }
            Command::Help | Command::Exit => String::new(),
        }
    }

    /// Sends a message and writes the answer as it comes; Ctrl-C may stop it.
    ///
    /// Errors: the message is then no part of the conversation, so it can be sent again.
    pub(super) async fn ask(
        &mut self,
        text: &str,
        screen: &mut Screen,
        stops_on_signal: bool,
    ) -> Result<End, ChatError> {
        self.messages.push(json!({ "role": "user", "content": text }));
        let body = self.request();
        let mut progress = Progress::new();
        let answered = tokio::select! {
            answered = answer(&self.server, &body, &mut progress, screen) => {
                answered.map(|()| End::Complete)
            }
            _ = tokio::signal::ctrl_c(), if stops_on_signal => Ok(End::Interrupted),
        };
        screen.end()?;
        let is_kept = match &answered {
            Ok(End::Complete) => true,
            Ok(End::Interrupted) => !progress.text.is_empty(),
            Err(_) => false,
        };
        if !is_kept {
            self.messages.pop();
            return answered;
        }
        if self.has_stats {
            screen.remark(&progress.figures())?;
        }
        self.messages.push(json!({ "role": "assistant", "content": progress.text }));
        answered
    }

    fn request(&self) -> Value {
        let system = self.system.iter().map(|text| json!({ "role": "system", "content": text }));
        let messages: Vec<Value> = system.chain(self.messages.iter().cloned()).collect();
        let mut body = json!({
            "model": self.model,
            "messages": messages,
            "max_tokens": self.max_tokens,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        if let Some(temperature) = self.temperature {
            body["temperature"] = json!(temperature);
        }
        if let Some(seed) = self.seed {
            body["seed"] = json!(seed);
        }
        body
    }
}

/// Reads one answer to its end.
async fn answer(
    server: &Server,
    body: &Value,
    progress: &mut Progress,
    screen: &mut Screen,
) -> Result<(), ChatError> {
    let mut answer = server.chat(body).await?;
    let mut events = Events::default();
    let mut is_whole = false;
    // The stream is read to its end: leaving before it would count as a cancelled request.
    while let Some(bytes) = answer.next().await? {
        for data in events.push(&bytes)? {
            match data.as_str() {
                "[DONE]" => is_whole = true,
                data => {
                    let delta = delta(data)?;
                    screen.reasoning(&delta.reasoning)?;
                    screen.answer(&delta.content)?;
                    progress.take(delta);
                }
            }
        }
    }
    match is_whole {
        true => Ok(()),
        false => Err(ChatError::Broken("the stream ended before the answer did".to_owned())),
    }
}

impl Progress {
    fn new() -> Self {
        Self {
            text: String::new(),
            pieces: 0,
            asked: Instant::now(),
            first: None,
            last: None,
            usage: None,
            finish: None,
        }
    }

    fn take(&mut self, delta: Delta) {
        if !delta.content.is_empty() || !delta.reasoning.is_empty() {
            let now = Instant::now();
            self.first.get_or_insert(now);
            self.last = Some(now);
            self.pieces += 1;
        }
        self.text.push_str(&delta.content);
        self.finish = delta.finish.or(self.finish.take());
        self.usage = delta.usage.or(self.usage);
    }

    /// Returns the figures of the answer; the rate is of the tokens after the first.
    fn figures(&self) -> String {
        let mut parts = Vec::new();
        let tokens = self.usage.map_or(self.pieces, |usage| usage.completion_tokens);
        if let (Some(first), Some(last)) = (self.first, self.last) {
            let wait = first.duration_since(self.asked);
            parts.push(format!("time to first token {} ms", wait.as_millis()));
            let span: Duration = last.duration_since(first);
            if tokens > 1 && !span.is_zero() {
                #[expect(clippy::cast_precision_loss, reason = "a count of tokens is small")]
                let rate = (tokens - 1) as f64 / span.as_secs_f64();
                parts.push(format!("{rate:.1} tokens/s"));
            }
        }
        match self.usage {
            Some(usage) => {
                parts.push(format!("{} prompt + {tokens} answer tokens", usage.prompt_tokens));
            }
            None => parts.push(format!("about {tokens} answer tokens")),
        }
        parts.push(self.finish.as_deref().unwrap_or("not finished").to_owned());
        format!("[{}]", parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_command_or_a_message() {
        let table = [
            ("/clear", Some(Ok(Command::Clear))),
            ("/system be brief ", Some(Ok(Command::System(Some("be brief".into()))))),
            ("/system", Some(Ok(Command::System(None)))),
            ("/model a/b", Some(Ok(Command::Model("a/b".into())))),
            ("/model", Some(Err("/model".into()))),
            ("/stats off", Some(Ok(Command::Stats(Some(false))))),
            ("/stats", Some(Ok(Command::Stats(None)))),
            ("/exit", Some(Ok(Command::Exit))),
            ("/etc/hosts is what?", Some(Err("/etc/hosts is what?".into()))),
            (" /exit", None),
            ("hello", None),
        ];
        for (line, expected) in table {
            assert_eq!(Command::of(line), expected, "{line}");
        }
    }

    #[test]
    fn the_figures_say_what_is_known() {
        let mut progress = Progress::new();
        assert_eq!(progress.figures(), "[about 0 answer tokens, not finished]");
        progress.first = Some(progress.asked + Duration::from_millis(250));
        progress.last = Some(progress.asked + Duration::from_millis(1250));
        progress.usage = Some(Usage { prompt_tokens: 7, completion_tokens: 11 });
        progress.finish = Some("stop".into());
        let figures =
            "[time to first token 250 ms, 10.0 tokens/s, 7 prompt + 11 answer tokens, stop]";
        assert_eq!(progress.figures(), figures);
    }
}
