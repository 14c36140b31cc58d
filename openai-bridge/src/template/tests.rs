//! Conversations as clients send them, rendered and refused.

use super::*;

const CHATML: &str = "{% for message in messages %}\n\
    {{'<|im_start|>' + message['role'] + '\n' + message['content'].strip() + '<|im_end|>' + '\n'}}\
    {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

fn render(template: &str, messages: &str) -> String {
    let template = Template::new(template.into(), "<s>".into(), "</s>".into()).unwrap();
    match template.render(messages) {
        Ok(text) => text,
        Err(error) => format!("refused: {error}"),
    }
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
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
    assert!(render(endless, user).starts_with("refused"));
    assert!(Template::new("{% for".into(), String::new(), String::new()).is_err());
}
