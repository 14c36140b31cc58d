//! A continuation that goes on behind any of its tokens is the one that was never cut.

use engine::{Constraint, Guided, Sampling};

use super::*;

fn warm(prompt: usize, max_tokens: u32) -> GenerateRequest {
    let mut request = request(prompt, max_tokens);
    request.sampling = Sampling { temperature: 20.0, seed: Some(7), ..Sampling::default() };
    request.logprobs = Some(2);
    request
}

/// Asks for what follows the first `count` tokens of one continuation.
fn rest(whole: &GenerateRequest, output: &GenerateOutput, count: usize) -> GenerateRequest {
    let mut request = whole.clone();
    request.tokens = whole.tokens.iter().chain(&output.tokens[..count]).copied().collect();
    request.generated = count as u32;
    request.choice_offset = output.index;
    request.choices = NonZeroU32::MIN;
    request.stop.max_tokens -= count as u32;
    request.stop.min_tokens = whole.stop.min_tokens.saturating_sub(count as u32);
    request
}

async fn check(name: &str, engine: &GenerateEngine, whole: GenerateRequest) {
    let prompt = whole.tokens.len() as u32;
    for output in collect(call(engine, whole.clone()).await).await.unwrap() {
        let is_over_by_token =
            output.usage.unwrap().completion_tokens == output.tokens.len() as u32;
        let last = output.tokens.len() - usize::from(is_over_by_token);
        for count in 0..=last {
            let resumed = collect(call(engine, rest(&whole, &output, count)).await).await;
            let resumed = resumed.unwrap().remove(0);
            assert_eq!(resumed.tokens, output.tokens[count..], "{name}, behind {count} tokens");
            assert_eq!(resumed.logprobs, output.logprobs[count..], "{name}, behind {count}");
            assert_eq!(resumed.finish, output.finish, "{name}, behind {count}");
            let (usage, full) = (resumed.usage.unwrap(), output.usage.unwrap());
            assert_eq!(usage.prompt_tokens, prompt + count as u32, "{name}");
            assert_eq!(usage.completion_tokens + count as u32, full.completion_tokens, "{name}");
        }
    }
}

#[tokio::test]
async fn a_continuation_goes_on_behind_any_of_its_tokens() {
    let engine = quick();
    let plain = request(20, 40);
    check("greedy", &engine, GenerateRequest { logprobs: Some(1), ..plain }).await;
    check("seeded", &engine, warm(20, 40)).await;
    for (top_p, top_k) in [(0.5, 0), (1.0, 5), (0.5, 5)] {
        let mut filtered = warm(20, 40);
        (filtered.sampling.top_p, filtered.sampling.top_k) = (top_p, top_k);
        check(&format!("top-p {top_p}, top-k {top_k}"), &engine, filtered).await;
    }

    let mut penalties = warm(3, 40);
    penalties.sampling.presence_penalty = 1.5;
    penalties.sampling.frequency_penalty = 1.0;
    penalties.sampling.repetition_penalty = 1.3;
    penalties.sampling.logit_bias = vec![(97, 60.0), (98, 60.0)];
    check("penalties", &engine, penalties.clone()).await;
    penalties.sampling.temperature = 0.0;
    check("greedy with penalties", &engine, penalties).await;

    let mut early = warm(3, 60);
    early.sampling.logit_bias = vec![(256, 60.0)];
    early.stop.min_tokens = 9;
    check("min_tokens", &engine, early).await;

    let mut several = warm(3, 20);
    several.choices = NonZeroU32::new(3).unwrap();
    check("continuations", &engine, several).await;
}

#[tokio::test]
async fn a_constraint_goes_on_behind_any_token() {
    let engine = quick();
    let regex = "[0-9]{4}-[A-F]{1,12}(x|yy|z)?";
    let mut guided = warm(3, 40);
    guided.guided = Some(Guided::new(Constraint::Regex(regex.into())));
    check("a pattern", &engine, guided).await;
    // The marker's letters are likely, also those that reach beyond it.
    let mut after = warm(3, 120);
    after.sampling.logit_bias = vec![(u32::from(b'a'), 45.0)];
    let constraint = Constraint::Choice(vec!["one".into(), "two".into()]);
    after.guided = Some(Guided { constraint, after: Some("aa".into()) });
    check("behind a marker", &engine, after).await;
    let mut marked = warm(3, 200);
    marked.guided =
        Some(Guided { constraint: Constraint::Regex("[ab]{5}".into()), after: Some(" t".into()) });
    check("behind part of a word", &engine, marked).await;
}

#[tokio::test]
async fn what_fills_the_memory_goes_on_to_where_it_ends_anyway() {
    let engine = engine(MockConfig { blocks: 4, ..MockConfig::default() }, Default::default());
    for prompt in [40, 62, 63] {
        let whole = request(prompt, 90);
        let output = collect(call(&engine, whole.clone()).await).await.unwrap().remove(0);
        // The last token that is drawn needs no place.
        assert_eq!((output.tokens.len(), output.finish), (65 - prompt, Some(FinishReason::Length)));
        for count in 1..65 - prompt {
            let rest = rest(&whole, &output, count);
            let resumed = collect(call(&engine, rest).await).await.unwrap().remove(0);
            assert_eq!(resumed.tokens, output.tokens[count..], "{prompt}, behind {count}");
            assert_eq!(resumed.finish, output.finish, "{prompt}, behind {count}");
        }
        let error = refusal(&engine, rest(&whole, &output, 65 - prompt)).await;
        assert_eq!(error.code(), Some("context_length_exceeded"), "{error}");
    }
}

#[tokio::test]
async fn what_cannot_go_on_is_refused() {
    let engine = quick();
    let resumed = GenerateRequest { generated: 2, ..request(5, 4) };
    let cases = [
        (GenerateRequest { generated: 5, ..resumed.clone() }, "fewer than the 5 tokens"),
        (
            GenerateRequest { choices: NonZeroU32::new(2).unwrap(), ..resumed.clone() },
            "one continuation",
        ),
        (GenerateRequest { prompt_logprobs: Some(0), ..resumed.clone() }, "`prompt_logprobs`"),
    ];
    for (request, word) in cases {
        let error = refusal(&engine, request).await;
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.message().contains(word), "{error}");
    }
    let mut wrong = resumed;
    wrong.guided = Some(Guided::new(Constraint::Regex("[0-9]+".into())));
    let error = refusal(&engine, wrong).await;
    assert_eq!(error.code(), Some("invalid_constraint"), "{error}");
}

#[tokio::test]
async fn a_complete_text_just_ends() {
    let engine = quick();
    let mut whole = request(3, 9);
    whole.guided = Some(Guided::new(Constraint::Choice(vec!["yes".into()])));
    let mut request = whole.clone();
    request.tokens = [97, 97, 97].into_iter().chain("yes".bytes().map(u32::from)).collect();
    request.generated = 3;
    let output = collect(call(&engine, request).await).await.unwrap().remove(0);
    assert_eq!((output.tokens.len(), output.finish), (0, Some(FinishReason::Stop)));
}
