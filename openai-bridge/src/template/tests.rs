//! Conversations as clients send them, rendered and refused.

use serde_json::json;

use super::*;

const CHATML: &str = "{% for message in messages %}\n\
    {{'<|im_start|>' + message['role'] + '\n' + message['content'].strip() + '<|im_end|>' + '\n'}}\
    {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

const USER: &str = r#"[{"role": "user", "content": "x"}]"#;

fn template(source: &str) -> Template {
    Template::new(source.into(), "<s>".into(), "</s>".into()).unwrap()
}

fn text(answer: Result<String>) -> String {
    answer.unwrap_or_else(|error| format!("refused: {error}"))
}

fn render(source: &str, messages: &str) -> String {
    let conversation = Conversation::parse(messages);
    text(conversation.and_then(|given| template(source).render(&given, Now::default())))
}

/// Renders one message of the user with more settings.
fn render_with(source: &str, change: impl FnOnce(&mut Conversation)) -> String {
    let mut conversation = Conversation::parse(USER).unwrap();
    change(&mut conversation);
    text(template(source).render(&conversation, Now::from_unix(1_000_000_000)))
}

#[test]
fn a_conversation_is_rendered_up_to_the_assistants_turn() {
    let text = render(CHATML, r#"[{"role": "user", "content": " hi "}]"#);
    assert_eq!(text, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    let parts =
        r#"[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]"#;
    assert!(render(CHATML, parts).contains("user\nab<|im_end|>"));
    assert_eq!(render("{{ bos_token }}{{ messages|length }}", r#"[{"role":"x"}]"#), "<s>1");
}

#[test]
fn what_is_no_conversation_is_refused_with_its_place() {
    let table = [
        ("{", "", "EOF"),
        ("{}", "", "expected a JSON array of messages, got an object"),
        ("[]", "messages", "expected at least 1 message"),
        ("[1]", "messages[0]", "expected an object, got 1"),
        (r#"[{"content":"x"}]"#, "messages[0]", "expected a `role`"),
        (r#"[{"role":7}]"#, "messages[0].role", "got 7"),
        (r#"[{"role":"user"}]"#, "messages[0].content", "got null"),
        (r#"[{"role":"user","content":3}]"#, "messages[0].content", "got 3"),
        (r#"[{"role":"user","content":["x"]}]"#, "messages[0].content[0]", "got `x`"),
        (r#"[{"role":"user","content":[{"text":"x"}]}]"#, "messages[0].content[0]", "`type`"),
        (
            r#"[{"role":"user","content":[{"type":"text"}]}]"#,
            "messages[0].content[0].text",
            "expected a part",
        ),
        (
            r#"[{"role":"x"},{"role":"user","content":[{"type":"image_url"}]}]"#,
            "messages[1].content[0]",
            "a part of type `image_url` is not for this model",
        ),
        (r#"[{"role":"assistant","tool_calls":{}}]"#, "messages[0].tool_calls", "list of calls"),
        (r#"[{"role":"assistant","tool_calls":[{}]}]"#, "messages[0].tool_calls[0]", "`function`"),
        (
            r#"[{"role":"assistant","tool_calls":[{"type":"custom"}]}]"#,
            "messages[0].tool_calls[0].type",
            "got `custom`",
        ),
        (
            r#"[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":3}}]}]"#,
            "messages[0].tool_calls[0].function.arguments",
            "got 3",
        ),
    ];
    for (messages, place, fragment) in table {
        let error = Conversation::parse(messages).unwrap_err();
        assert_eq!(error.param().unwrap_or_default(), place, "{messages}");
        assert!(place.is_empty() || error.message().starts_with(&format!("`{place}`")), "{error}");
        assert!(error.message().contains(fragment), "expected `{fragment}` in `{error}`");
    }
}

#[test]
fn messages_become_what_templates_read() {
    let messages = json!([
        {"role": "developer", "content": "d", "name": null},
        {"role": "assistant", "refusal": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": 2}"}},
            {"id": "2", "type": "function", "function": {"name": "g", "arguments": ""}},
            {"id": "3", "type": "function", "function": {"name": "h", "arguments": "[1"}},
        ]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "tool_calls": []},
    ]);
    let source = "{% for m in messages %}{{ m.role }}:{{ m.content or '' }}\
        {% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %};{% endfor %}";
    let conversation = Conversation::parse(&messages.to_string()).unwrap();
    let adapted = template(source).adapt(&conversation);
    assert_eq!(
        Json::from(adapted).to_string(),
        json!([
            {"role": "system", "content": "d"},
            {"role": "assistant", "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": 2}}},
                {"id": "2", "type": "function", "function": {"name": "g", "arguments": {}}},
                {"id": "3", "type": "function", "function": {"name": "h", "arguments": "[1"}},
            ], "content": null},
            {"role": "assistant", "content": "no"},
        ])
        .to_string()
    );
    assert_eq!(
        text(template(source).render(&conversation, Now::default())),
        "system:d;assistant:{\"b\": 1, \"a\": 2}{}\"[1\";assistant:no;"
    );
    assert!(
        render("developer {{ messages[0].role }}", &messages.to_string()).ends_with("developer")
    );
}

#[test]
fn contents_have_the_form_that_the_template_reads() {
    let one = "{{ messages[-1].content }}";
    let loops =
        "{% for m in messages %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endfor %}";
    let either = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}\
        {% for p in m.content %}{{ p.text }}{% endfor %}{% endif %};{% endfor %}";
    let parts =
        r#"[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]"#;
    let table = [(one, "ab", "x"), (loops, "[a][b]", "[x]"), (either, "ab;", "x;")];
    for (source, of_parts, of_text) in table {
        assert_eq!(render(source, parts), of_parts, "{source}");
        assert_eq!(render(source, USER), of_text, "{source}");
    }
    let null = r#"[{"role":"user","content":"x"},{"role":"assistant","content":null}]"#;
    assert_eq!(render(one, null), "");
}

#[test]
fn a_template_sees_the_request() {
    let tools = "{{ tools | tojson }} {{ documents is none }}";
    assert_eq!(render_with(tools, |_| ()), "null True");
    let tool = json!({"type": "function", "function": {"name": "<é>", "z": 1e22, "a": 1.0}});
    assert_eq!(
        render_with(tools, |given| given.tools = vec![tool]),
        r#"[{"type": "function", "function": {"name": "<é>", "z": 1e+22, "a": 1.0}}] True"#
    );
    let thinks = "{{ enable_thinking }} {{ strftime_now('%d %b %Y') }} {{ add_generation_prompt }}";
    assert_eq!(
        render_with(thinks, |given| drop(
            given.kwargs.insert("enable_thinking".into(), true.into())
        )),
        "True 09 Sep 2001 True"
    );
    let reserved = |given: &mut Conversation| {
        given.kwargs.insert("messages".into(), Json::Null);
    };
    assert!(render_with(thinks, reserved).contains("chat_template_kwargs.messages"));
    assert!(template(tools).knows_tools());
    assert!(!template("{% set tools = 1 %}{{ tools }}").knows_tools());
    assert_eq!(template(tools).source(), tools);
}

#[test]
fn the_final_message_can_be_continued() {
    let go_on = |given: &mut Conversation| {
        given.continue_final_message = true;
        given.add_generation_prompt = false;
    };
    let kept = "{% for m in messages %}{{ m.role }}:{{ m.content }}<end>{% endfor %}";
    assert_eq!(render_with(kept, go_on), "user:x");
    assert_eq!(render_with(&kept.replace("content", "content | trim"), go_on), "user:x");
    assert!(render_with("{{ messages[0].role }}", go_on).contains("continue_final_message"));
    let both = |given: &mut Conversation| given.continue_final_message = true;
    assert!(render_with(kept, both).contains("add_generation_prompt"));
}

#[test]
fn generation_blocks_are_only_marks() {
    let source = "a\n  {% generation %}\n b{%- set x = 1 %}\n{%- endgeneration -%}\n c{{ x }}";
    assert_eq!(render(source, USER), "a\n bc");
    assert_eq!(render("{{ '{%' }}{% generation %}x{% endgeneration %}", USER), "{%x");
}

#[test]
fn a_template_may_refuse_and_cannot_run_for_ever() {
    let text = render("{{ raise_exception('roles must alternate') }}", USER);
    assert_eq!(text, "refused: the chat template refuses the messages: roles must alternate");
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
    assert!(render(endless, USER).starts_with("refused"));
    assert!(Template::new("{% for".into(), String::new(), String::new()).is_err());
    assert_eq!(render("{{ messages[0].content[::-1] }}", USER), "x");
    // What fails inside the library is an error too.
    assert!(render("{{ messages[0].content[1:][::-1] }}", USER).starts_with("refused"));
}

#[test]
fn macros_that_follow_a_deep_value_do_not_exhaust_the_stack() {
    let source = "{% macro walk(x) %}{% for y in x %}{% if true %}{{ walk(y) }}{% endif %}\
        {% endfor %}.{% endmacro %}{{ walk(messages[0].deep) }}{{ messages[0].deep | tojson }}";
    for depth in [10, 120] {
        let deep = "[".repeat(depth) + &"]".repeat(depth);
        let messages = format!(r#"[{{"role":"user","content":"x","deep":{deep}}}]"#);
        let text = render(source, &messages);
        assert!(text.contains(&deep) || text.starts_with("refused"), "{text}");
    }
    let endless = "{% macro walk() %}{{ walk() }}{% endmacro %}{{ walk() }}";
    assert!(render(endless, USER).starts_with("refused"));
}

proptest::proptest! {
    #[test]
    fn what_tojson_writes_is_the_same_json(text: String, number: i64, float: f32) {
        // JSON is read to the last bit only where it has few digits.
        let float = f64::from(float.clamp(-1e6, 1e6) as i32) / 64.0;
        let given = json!({"z": text, "a": [number, float, {"é": null}], "m": {}});
        for source in ["{{ given | tojson }}", "{{ given | tojson(indent=2) }}", "{{ given | tojson(true) }}"] {
            let written = render_with(source, |conversation| {
                conversation.kwargs.insert("given".into(), given.clone());
            });
            let read: Json = serde_json::from_str(&written).unwrap();
            proptest::prop_assert_eq!(&read, &given);
        }
    }

    #[test]
    fn no_messages_panic(messages: String, role: String, content: String) {
        drop(render(CHATML, &messages));
        let messages = json!([{"role": role, "content": content}]).to_string();
        let text = render(CHATML, &messages);
        proptest::prop_assert!(text.contains(python_trim(&content)) || role.is_empty() || text.starts_with("refused"));
    }
}

fn python_trim(text: &str) -> &str {
    text.trim_matches(python::is_space)
}
