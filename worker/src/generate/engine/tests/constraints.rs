//! Constraints and biases, kept whatever the mock model would rather say.

use engine::{Constraint, FinishReason, Guided, Sampling};

use super::*;

/// A request whose draws are close to chance.
fn warm(constraint: Constraint, seed: u64) -> GenerateRequest {
    let mut request = request(3, 400);
    request.guided = Some(Guided::new(constraint));
    request.sampling = Sampling { temperature: 20.0, seed: Some(seed), ..Sampling::default() };
    request
}

async fn one(engine: &GenerateEngine, request: GenerateRequest) -> GenerateOutput {
    collect(call(engine, request).await).await.unwrap().remove(0)
}

fn text(output: &GenerateOutput) -> String {
    let vocabulary = mock::vocabulary();
    let bytes = output.tokens.iter().flat_map(|&token| match u8::try_from(token) {
        Ok(byte) => vec![byte],
        Err(_) => vocabulary.tokens[token as usize].replace('Ġ', " ").into_bytes(),
    });
    String::from_utf8(bytes.collect()).unwrap()
}

const PERSON: &str = r#"{
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 10},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3}
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": false
}"#;

#[tokio::test]
async fn json_is_valid_and_ends_by_itself() {
    let engine = quick();
    let schema: serde_json::Value = serde_json::from_str(PERSON).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for seed in 0..30 {
        let output = one(&engine, warm(Constraint::JsonSchema(PERSON.into()), seed)).await;
        assert_eq!(output.finish, Some(FinishReason::Stop), "{}", text(&output));
        let value: serde_json::Value = serde_json::from_str(&text(&output)).unwrap();
        assert!(validator.is_valid(&value), "{value}");
    }
    let mut object = warm(Constraint::JsonObject, 1);
    // Closing braces and quotes become likely enough for an end.
    object.sampling.logit_bias = vec![(u32::from(b'}'), 60.0), (u32::from(b'"'), 60.0)];
    let output = one(&engine, object).await;
    let value: serde_json::Value = serde_json::from_str(&text(&output)).unwrap();
    assert!(value.is_object());
    settles(&engine).await;
}

#[tokio::test]
async fn patterns_grammars_and_choices_are_matched_whole() {
    let engine = quick();
    let lark = "start: \"<\" word (\", \" word)* \">\"\nword: /[a-c]{2}/";
    let choices = ["yes", "no", "it is (a|b)*.", "Ünïcode\n\"x\"/"].map(str::to_owned);
    for seed in 0..20 {
        let output =
            one(&engine, warm(Constraint::Regex(r"^[0-9]{4}-[A-F/]{2}$".into()), seed)).await;
        let text_of = text(&output);
        assert_eq!(output.finish, Some(FinishReason::Stop));
        assert!(
            text_of.len() == 7 && text_of[..4].bytes().all(|b| b.is_ascii_digit()),
            "{text_of}"
        );
        let output = one(&engine, warm(Constraint::Choice(choices.to_vec()), seed)).await;
        assert!(choices.contains(&text(&output)), "{}", text(&output));
        let output = one(&engine, warm(Constraint::Grammar(lark.into()), seed)).await;
        if output.finish == Some(FinishReason::Stop) {
            let text_of = text(&output);
            let inner = text_of.strip_prefix('<').unwrap().strip_suffix('>').unwrap();
            let is_word = |word: &str| word.len() == 2 && word.bytes().all(|b| b"abc".contains(&b));
            assert!(inner.split(", ").all(is_word), "{text_of}");
        }
    }
}

#[tokio::test]
async fn text_before_a_constraint_is_free() {
    // The text comes twice, and the model wants to say more than the text in front.
    let reply = "I think. Now: it is done: no".to_owned();
    let mock = MockConfig { reply: Some(reply), ..MockConfig::default() };
    let engine = engine(mock, SchedulerConfig::default());
    let mut request = request(3, 100);
    let constraint = Constraint::Regex("[0-9]{3}".into());
    request.guided = Some(Guided { constraint, after: Some(": ".into()) });
    let output = one(&engine, request.clone()).await;
    let said = text(&output);
    let digits = said.strip_prefix("I think. Now: ").unwrap();
    assert!(digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit()), "{said}");
    assert_eq!(output.finish, Some(FinishReason::Stop));
    // A model that ends too early has to go on.
    request.guided.as_mut().unwrap().after = Some("never said".into());
    let output = one(&engine, request).await;
    assert_eq!((output.tokens.len(), output.finish), (100, Some(FinishReason::Length)));
}

#[tokio::test]
async fn a_token_does_not_reach_beyond_the_text_before_the_constraint() {
    let engine = quick();
    // The words of the mock begin with a blank: none may be drawn whole.
    let mut request = request(3, 100);
    let constraint = Constraint::Choice(vec!["x".into()]);
    request.guided = Some(Guided { constraint, after: Some(" ".into()) });
    request.sampling.logit_bias = vec![(u32::from(b' '), 10.0)];
    let output = one(&engine, request).await;
    assert_eq!(text(&output).split_once(' ').map(|(_, held)| held.to_owned()), Some("x".into()));
    assert_eq!(output.finish, Some(FinishReason::Stop));
}

#[tokio::test]
async fn continuations_keep_the_constraint_each_on_its_own() {
    let engine = quick();
    let mut request = warm(Constraint::Regex("[a-z]{12}".into()), 7);
    request.choices = NonZeroU32::new(3).unwrap();
    let outputs = collect(call(&engine, request.clone()).await).await.unwrap();
    let texts: Vec<String> = outputs.iter().map(text).collect();
    assert!(texts.iter().all(|text| text.len() == 12), "{texts:?}");
    assert_ne!(texts[0], texts[1]);
    let again = collect(call(&engine, request).await).await.unwrap();
    assert_eq!(again.iter().map(text).collect::<Vec<_>>(), texts, "a seed repeats");
}

#[tokio::test]
async fn a_complete_text_ends_against_all_wishes() {
    let engine = quick();
    let mut request = warm(Constraint::Regex("ab".into()), 1);
    request.stop.min_tokens = 50;
    request.stop.ignore_eos = true;
    request.logprobs = Some(1);
    let output = one(&engine, request).await;
    assert_eq!((text(&output).as_str(), output.finish), ("ab", Some(FinishReason::Stop)));
    assert_eq!(output.usage.unwrap().completion_tokens, 2);
    // The words are certain for the mock, so what was forced is far below them.
    assert!(output.logprobs.iter().all(|entry| entry.logprob < -15.0 && entry.rank > 1));
    // Where the text may go on, an end is held back as wished.
    let mut request = warm(Constraint::Regex("a+".into()), 1);
    request.stop.min_tokens = 50;
    let output = one(&engine, request).await;
    assert!(output.tokens.len() >= 50 && text(&output).bytes().all(|b| b == b'a'));
}

#[tokio::test]
async fn a_dropped_constraint_frees_its_blocks() {
    let engine = engine(slow(), SchedulerConfig::default());
    let mut request = warm(Constraint::Regex("[a-z]*".into()), 1);
    request.stop = StopConditions { ignore_eos: true, ..StopConditions::after(5000) };
    let mut stream = call(&engine, request).await;
    stream.next().await.unwrap().unwrap();
    assert!(engine.load().used_blocks > 0);
    drop(stream);
    settles(&engine).await;
}

#[tokio::test]
async fn constraints_that_cannot_be_kept_are_refused() {
    let engine = quick();
    let table = [
        (Constraint::JsonSchema(r#"{"type": "objekt"}"#.into()), "objekt"),
        (Constraint::JsonSchema(r#"{"not": {"type": "null"}}"#.into()), "not"),
        (Constraint::JsonSchema(r##"{"$ref": "#/$defs/x"}"##.into()), "$defs"),
        (Constraint::JsonSchema(r#"{"type": "string", "format": "stanza"}"#.into()), "stanza"),
        (Constraint::JsonSchema(r#"{"enum": []}"#.into()), "Unsatisfiable"),
        (Constraint::Regex("(a".into()), "unclosed group"),
        (Constraint::Grammar("start: nothing".into()), "nothing"),
        (Constraint::Choice(vec![]), "no text"),
    ];
    for (constraint, expected) in table {
        let error = refusal(&engine, warm(constraint.clone(), 1)).await;
        assert_eq!(
            (error.kind(), error.code()),
            (ErrorKind::InvalidRequest, Some("invalid_constraint"))
        );
        assert!(error.message().contains(expected), "{constraint:?}: {error}");
        assert!(!error.message().contains("backtrace"), "{error}");
    }
    let mute = lonely(Broken { passes: 0, panics: false, logits: Vec::new() });
    let error = refusal(&mute, warm(Constraint::JsonObject, 1)).await;
    assert_eq!(error.kind(), ErrorKind::Unimplemented);
    settles(&engine).await;
}

#[tokio::test]
async fn no_constraint_brings_the_engine_down() {
    let engine = quick();
    let chain: String = (0..490).map(|i| format!("A{i}: A{}\n", i + 1)).collect();
    let rules: String = (0..490).map(|i| format!("a{i}: a{}\n", i + 1)).collect();
    let longer: String = (0..490).map(|i| format!("A{i}: (A{} \"b\")*\n", i + 1)).collect();
    let refs = |wrap: &dyn Fn(String) -> String| {
        let link =
            |i| format!("\"a{i}\": {}", wrap(format!("{{\"$ref\": \"#/$defs/a{}\"}}", i + 1)));
        let links: Vec<String> = (0..4000).map(link).collect();
        let links = links.join(",");
        let text = format!("{{\"$ref\": \"#/$defs/a0\", \"$defs\": {{{links}, \"a4000\": {{}}}}}}");
        Constraint::JsonSchema(text)
    };
    let nested = |open: &str, close: &str, depth: usize| {
        Constraint::JsonSchema(format!("{}{{}}{}", open.repeat(depth), close.repeat(depth)))
    };
    let constraints = [
        Constraint::Grammar(format!("start: {}\"a\"{}", "(".repeat(50_000), ")".repeat(50_000))),
        Constraint::Grammar(format!("start: A0\n{chain}A490: \"a\"")),
        Constraint::Grammar(format!("start: a0\n{rules}a490: \"a\"")),
        Constraint::Grammar(format!("start: A0\n{longer}A490: \"a\"")),
        refs(&|link| link),
        refs(&|link| format!("{{\"allOf\": [{link}]}}")),
        refs(&|link| format!("{{\"items\": {link}, \"allOf\": [{link}, {{}}]}}")),
        Constraint::Grammar("start: start".into()),
        Constraint::Grammar("start: x \"a\" | start start\nx: start?".into()),
        Constraint::Regex("(".repeat(30_000)),
        Constraint::Regex(format!("{}a{}", "(".repeat(200), ")*".repeat(200))),
        Constraint::Regex("((a{1,1000}){1,1000}){1,1000}".into()),
        Constraint::Regex("(a|b|ab)*c{1,999}.*(x.{500})".into()),
        Constraint::Regex(r"(?i)[\p{L}]{1,9999}\b".into()),
        nested(r#"{"allOf":["#, "]}", 60),
        nested(r#"{"anyOf":[{"type":"null"},"#, "]}", 60),
        nested(r#"{"items":"#, "}", 120),
        Constraint::JsonSchema(r##"{"allOf": [{"$ref": "#"}]}"##.into()),
        Constraint::JsonSchema(r##"{"$ref": "#"}"##.into()),
        Constraint::JsonSchema(r#"{"minItems": 4000000000}"#.into()),
        Constraint::JsonSchema(r#"{"type": "string", "minLength": 4000000000}"#.into()),
        Constraint::JsonSchema(r#"{"type": "string", "pattern": "(a?){4000}b{4000}"}"#.into()),
        Constraint::JsonSchema(r#"{"type": "number", "multipleOf": 1e-300}"#.into()),
        Constraint::JsonSchema(r#"{"x-guidance": {"lenient": true}, "not": {}}"#.into()),
    ];
    for (index, constraint) in constraints.into_iter().enumerate() {
        let mut request = warm(constraint, 1);
        request.stop.max_tokens = 20;
        let started = Instant::now();
        match engine.call(request, Context::new("test")).await {
            Ok(stream) => drop(collect(stream).await),
            Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}"),
        }
        let seconds = started.elapsed().as_secs_f32();
        // None takes 5 seconds; the machine may be ten times slower.
        assert!(seconds < 50.0, "constraint {index} took {seconds} seconds");
        println!("constraint {index}: {seconds:.3} s");
    }
    assert_eq!(one(&engine, request(1, 5)).await.tokens.len(), 5);
    assert!(engine.is_healthy());
    settles(&engine).await;
}

#[tokio::test]
async fn a_bias_forces_and_forbids_tokens() {
    let engine = quick();
    let free = one(&engine, request(3, 8)).await;
    let mut forced = request(3, 8);
    forced.sampling.logit_bias = vec![(65, 100.0)];
    assert_eq!(one(&engine, forced).await.tokens, [65; 8]);
    let mut forbidden = request(3, 8);
    forbidden.sampling.logit_bias = free.tokens.iter().map(|&token| (token, -100.0)).collect();
    forbidden.sampling.logit_bias.sort_by_key(|bias| bias.0);
    forbidden.sampling.logit_bias.dedup_by_key(|bias| bias.0);
    let other = one(&engine, forbidden).await;
    assert!(other.tokens.iter().all(|token| !free.tokens.contains(token)), "{other:?}");
    for (bias, expected) in [((9999, 1.0), "token 9999 is not one of"), ((1, f32::NAN), "NaN")] {
        let mut request = request(3, 8);
        request.sampling.logit_bias = vec![bias];
        let error = refusal(&engine, request).await;
        assert!(error.message().contains(expected), "{error}");
        assert_eq!(error.param(), Some("logit_bias"));
    }
}
