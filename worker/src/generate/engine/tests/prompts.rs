//! Log-probabilities of prompts, embeddings, and the mock's given answer.

use engine::{EmbedRequest, Embedding};

use super::*;

fn small_steps() -> SchedulerConfig {
    SchedulerConfig { batch_tokens: 7, ..SchedulerConfig::default() }
}

#[tokio::test]
async fn a_prompt_is_as_likely_as_it_was_when_it_was_drawn() {
    for config in [SchedulerConfig::default(), small_steps()] {
        let engine = engine(MockConfig::default(), config);
        let mut drawn = request(5, 100);
        drawn.logprobs = Some(2);
        drawn.sampling.temperature = 20.0;
        drawn.stop.ignore_eos = true;
        let drawn = collect(call(&engine, drawn).await).await.unwrap().remove(0);
        let mut tokens = vec![97; 5];
        tokens.extend(&drawn.tokens);
        let mut scored = GenerateRequest::new(tokens, StopConditions::after(0));
        scored.prompt_logprobs = Some(2);
        scored.choices = NonZeroU32::new(2).unwrap();
        let outputs = collect(call(&engine, scored.clone()).await).await.unwrap();
        assert!(outputs.iter().all(|output| output.finish == Some(FinishReason::Length)));
        assert!(outputs.iter().all(|output| output.tokens.is_empty()));
        let usage = outputs[0].usage.unwrap();
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (105, 0));
        let entries = &outputs[0].prompt_logprobs;
        assert_eq!((entries.len(), &entries[0]), (105, &None));
        let tail: Vec<_> = entries[5..].iter().flatten().cloned().collect();
        assert_eq!(tail, drawn.logprobs);
        assert!(outputs[1].prompt_logprobs.is_empty());
        // With tokens to draw they come with the first output and change nothing of the rest.
        scored.stop.max_tokens = 4;
        scored.choices = NonZeroU32::MIN;
        let mut stream = call(&engine, scored.clone()).await;
        let first = stream.next().await.unwrap().unwrap();
        assert_eq!(&first.prompt_logprobs, entries);
        assert!(!first.tokens.is_empty());
        let rest = collect(stream).await.unwrap();
        let mut all = first.tokens;
        all.extend(rest.iter().flat_map(|output| &output.tokens));
        scored.prompt_logprobs = None;
        let plain = collect(call(&engine, scored).await).await.unwrap();
        assert_eq!(plain[0].tokens, all);
        settles(&engine).await;
    }
}

#[tokio::test]
async fn a_whole_context_can_be_scored_and_no_more() {
    let mock = MockConfig { context_length: 32, ..MockConfig::default() };
    let engine = engine(mock, SchedulerConfig::default());
    let mut whole = request(32, 0);
    whole.prompt_logprobs = Some(0);
    let outputs = collect(call(&engine, whole).await).await.unwrap();
    assert_eq!(outputs[0].prompt_logprobs.len(), 32);
    let mut over = request(33, 0);
    over.prompt_logprobs = Some(0);
    for request in [over, request(32, 1)] {
        let error = refusal(&engine, request).await;
        assert_eq!(error.code(), Some("context_length_exceeded"));
    }
}

async fn embed(engine: &GenerateEngine, tokens: &[TokenId]) -> Result<Embedding> {
    let request = EmbedRequest { tokens: tokens.into(), adapter: None };
    let mut stream = engine.call(request, Context::new("test")).await?;
    let embedding = stream.next().await.unwrap()?;
    assert!(stream.next().await.is_none(), "one text, one vector");
    Ok(embedding)
}

#[tokio::test]
async fn a_text_has_one_vector_however_it_is_cut() {
    let whole = quick();
    let cut = engine(MockConfig::default(), small_steps());
    let text: Vec<TokenId> = (0..100).map(|i| i * 31 % 256).collect();
    let crowd: Vec<_> = futures_util::future::join_all((1..20).map(|_| embed(&cut, &text))).await;
    let vector = embed(&whole, &text).await.unwrap();
    assert!(crowd.into_iter().all(|other| other.unwrap() == vector));
    let length: f32 = vector.values.iter().map(|value| value * value).sum();
    assert!(vector.values.len() == 64 && (length - 1.0).abs() < 1e-5);
    assert_ne!(embed(&whole, &text[..99]).await.unwrap(), vector);
    settles(&whole).await;
    settles(&cut).await;
}

#[tokio::test]
async fn embeddings_are_bounded_and_end_with_their_reader() {
    let mock = MockConfig { context_length: 32, ..slow() };
    let config = SchedulerConfig { max_running_sequences: 1, ..small_steps() };
    let engine = engine(mock, config);
    assert_eq!(embed(&engine, &[1; 32]).await.unwrap().values.len(), 64);
    let table: [(&[TokenId], &str); 3] = [
        (&[], "has no tokens"),
        (&[1; 33], "the prompt has 33 tokens, the model's context of 32 has room for 32"),
        (&[1, 99_999], "token 99999 is not one of"),
    ];
    for (tokens, expected) in table {
        let error = embed(&engine, tokens).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.message().contains(expected), "{error}");
    }
    let request = || EmbedRequest { tokens: vec![1; 32].into(), adapter: None };
    let running = engine.call(request(), Context::new("test")).await.unwrap();
    let past = Context::new("test").with_deadline(Some(Instant::now()));
    let mut late = engine.call(request(), past).await.unwrap();
    assert_eq!(late.next().await.unwrap().unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    drop(running);
    settles(&engine).await;
}

#[tokio::test]
async fn the_mock_says_what_it_is_told() {
    let mock = MockConfig { reply: Some("{\"a\": 1}".into()), ..MockConfig::default() };
    let engine = engine(mock, small_steps());
    for prompt in [1, 6, 7, 8, 30] {
        let mut request = request(prompt, 100);
        request.choices = NonZeroU32::new(2).unwrap();
        request.prompt_logprobs = Some(0).filter(|_| prompt % 2 == 0);
        for output in collect(call(&engine, request).await).await.unwrap() {
            let bytes: Vec<u8> = output.tokens.iter().map(|&token| token as u8).collect();
            assert_eq!(bytes, b"{\"a\": 1}", "after a prompt of {prompt}");
            assert_eq!(output.finish, Some(FinishReason::Stop));
        }
    }
}

#[tokio::test]
async fn prompts_that_share_what_is_scored_in_a_pass_take_no_blocks_from_others() {
    // Slow and long enough for all three to be in the batch together.
    let mock = MockConfig { pace: Duration::from_millis(1), ..MockConfig::default() };
    // More of prompts than is scored in a pass, so that one of the two is left with nothing: before
    // anything is drawn, and beside what is drawn whenever the pace, which goes by the clock, allows.
    let config = SchedulerConfig { mixed_prompt_tokens: 256, ..SchedulerConfig::default() };
    let engine = engine(mock, config);
    let scored = |token| {
        let mut request = GenerateRequest::new(vec![token; 3000], StopConditions::after(1));
        request.prompt_logprobs = Some(0);
        request
    };
    let first = call(&engine, scored(97)).await;
    let second = call(&engine, scored(98)).await;
    let drawing = call(&engine, request(5, 200)).await;
    for stream in [drawing, first, second] {
        collect(stream).await.unwrap();
    }
    assert_eq!(engine.totals().preemptions, 0);
    settles(&engine).await;
}
