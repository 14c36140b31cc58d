//! Conversations in the words of the Chat Completions API, built out of other APIs' pieces.
//!
//! What an assistant thought, said and called in one turn is one message, however many pieces it
//! came in.

use serde_json::{Value as Json, json};

/// Messages, as they are put together.
#[derive(Debug, Default)]
pub(super) struct Turns {
    messages: Vec<Json>,
    /// What the assistant thought before it says something.
    thought: String,
    /// The last message is an assistant's that goes on.
    is_open: bool,
}

impl Turns {
    /// Adds what somebody says.
    pub(super) fn say(&mut self, role: &str, text: String) {
        if role == "assistant" {
            append(&mut self.assistant()["content"], &[&text]);
        } else {
            self.answered();
            self.messages.push(json!({"role": role, "content": text}));
        }
    }

    /// Adds what somebody goes on to say.
    pub(super) fn go_on(&mut self, role: &str, text: &str) {
        match self.messages.last_mut().filter(|last| last["role"] == role) {
            Some(last) if role != "assistant" => append(&mut last["content"], &["\n", text]),
            _ => self.say(role, text.to_owned()),
        }
    }

    /// Adds what the assistant thinks before it goes on.
    pub(super) fn think(&mut self, text: &str) {
        self.thought.push_str(text);
    }

    /// Adds a call of the assistant's; `arguments` is JSON text.
    pub(super) fn call(&mut self, id: &str, name: &str, arguments: &str) {
        let call = json!({
            "id": id,
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        });
        match &mut self.assistant()["tool_calls"] {
            Json::Array(calls) => calls.push(call),
            other => *other = json!([call]),
        }
    }

    /// Adds what a call gave.
    pub(super) fn result(&mut self, id: &str, text: String) {
        self.answered();
        self.messages.push(json!({"role": "tool", "tool_call_id": id, "content": text}));
    }

    /// Ends the assistant's turn; what it thought and did not say is of no use.
    fn answered(&mut self) {
        self.is_open = false;
        self.thought.clear();
    }

    /// Returns the messages.
    pub(super) fn finish(self) -> Vec<Json> {
        self.messages
    }

    /// Returns the message of the assistant that goes on, a new one if none does.
    fn assistant(&mut self) -> &mut Json {
        let thought = std::mem::take(&mut self.thought);
        if !self.is_open || self.messages.is_empty() {
            self.messages.push(json!({"role": "assistant", "content": ""}));
            self.is_open = true;
        }
        let last = self.messages.len() - 1;
        let message = &mut self.messages[last];
        if !thought.is_empty() {
            append(&mut message["reasoning_content"], &[&thought]);
        }
        message
    }
}

/// Adds to a text in its place: a turn may come in a million pieces.
fn append(to: &mut Json, texts: &[&str]) {
    if let Json::String(own) = to {
        texts.iter().for_each(|text| own.push_str(text));
    } else {
        *to = texts.concat().into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_turn_of_the_assistant_is_one_message() {
        let mut turns = Turns::default();
        turns.say("user", "a".into());
        turns.think("hm");
        turns.say("assistant", "b".into());
        turns.call("c1", "f", "{}");
        turns.call("c2", "g", "{}");
        turns.result("c1", "1".into());
        turns.call("c3", "f", "{}");
        let messages = turns.finish();
        let roles: Vec<&str> = messages.iter().filter_map(|one| one["role"].as_str()).collect();
        assert_eq!(roles, ["user", "assistant", "tool", "assistant"]);
        assert_eq!(messages[1]["reasoning_content"], "hm");
        assert_eq!(messages[1]["content"], "b");
        assert_eq!(messages[1]["tool_calls"][1]["function"]["name"], "g");
        assert_eq!(messages[2], json!({"role": "tool", "tool_call_id": "c1", "content": "1"}));
        assert_eq!(messages[3]["tool_calls"][0]["id"], "c3");
    }
}
