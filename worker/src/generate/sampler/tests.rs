//! The laws of drawing.

use super::*;

fn draws(sampling: &Sampling, logits: &[f32], count: usize) -> Vec<TokenId> {
    let mut sampler = Sampler::new(sampling, &[], 0);
    let mut scratch = Scratch::new(Isa::best());
    (0..count)
        .map(|_| {
            let token = sampler.draw(logits, Rules::default(), &mut scratch).unwrap();
            sampler.note(token);
            token
        })
        .collect()
}

fn warm(change: impl FnOnce(&mut Sampling)) -> Sampling {
    let mut sampling = Sampling { temperature: 1.0, seed: Some(7), ..Sampling::default() };
    change(&mut sampling);
    sampling
}

#[test]
fn temperature_zero_and_top_k_one_are_greedy() {
    let mut logits: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.77).sin()).collect();
    logits[501] = 3.0;
    assert_eq!(draws(&Sampling::default(), &logits, 3), [501; 3]);
    assert_eq!(draws(&warm(|s| s.top_k = 1), &logits, 3), [501; 3]);
    assert_eq!(draws(&warm(|s| s.temperature = 1e-3), &logits, 50), [501; 50]);
}

#[test]
fn frequencies_follow_the_softmax() {
    let logits = [2.0f32, 1.0, 0.0, -1.0];
    for temperature in [0.5f32, 1.0, 2.0] {
        let tokens = draws(&warm(|s| s.temperature = temperature), &logits, 40_000);
        let total: f32 = logits.iter().map(|l| (l / temperature).exp()).sum();
        for (token, logit) in logits.iter().enumerate() {
            let expected = (logit / temperature).exp() / total;
            let count = tokens.iter().filter(|&&t| t as usize == token).count();
            let got = count as f32 / 40_000.0;
            assert!((got - expected).abs() < 0.01, "{temperature}: {got} is not {expected}");
        }
    }
}

#[test]
fn filters_keep_exactly_their_sets() {
    // Probabilities of about 0.643, 0.237, 0.087, 0.032.
    let logits = [3.0f32, 2.0, 1.0, 0.0];
    let kept = |change: fn(&mut Sampling)| {
        let mut tokens = draws(&warm(change), &logits, 4000);
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    };
    assert_eq!(kept(|s| s.top_k = 2), [0, 1]);
    assert_eq!(kept(|s| s.top_p = 0.6), [0]);
    assert_eq!(kept(|s| s.top_p = 0.7), [0, 1]);
    assert_eq!(kept(|s| s.top_p = 0.95), [0, 1, 2]);
    assert_eq!(kept(|s| s.min_p = 0.1), [0, 1, 2]);
    assert_eq!(kept(|s| s.min_p = 0.3), [0, 1]);
    assert_eq!(kept(|s| (s.top_k, s.top_p) = (3, 0.9)), [0, 1]);
    assert_eq!(kept(|_| ()), [0, 1, 2, 3]);
}

#[test]
fn penalties_are_those_of_the_formula() {
    let sampling = Sampling {
        repetition_penalty: 2.0,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        ..Sampling::default()
    };
    let mut sampler = Sampler::new(&sampling, &[2, 3], 0);
    let mut scratch = Scratch::new(Isa::best());
    let logits = [4.0f32, 1.0, -1.0, 3.0];
    for expected in [0, 3, 0] {
        assert_eq!(sampler.draw(&logits, Rules::default(), &mut scratch), Some(expected));
        sampler.note(expected);
    }
    sampler.draw(&logits, Rules::default(), &mut scratch);
    // Token 0 was drawn twice by now: 4 / 2 - 0.5 - 2 * 0.25.
    assert_eq!(scratch.logits[2], -2.0);
    let mut penalized = logits.to_vec();
    sampler.penalize(&mut penalized);
    assert_eq!(penalized[1], 1.0, "an unseen token keeps its logit");
}

#[test]
fn barred_tokens_are_never_drawn() {
    let logits = [5.0f32, 1.0, 0.0];
    let rules = Rules { allowed: None, barred: &[&[0], &[2]] };
    for sampling in [Sampling::default(), warm(|_| ())] {
        let mut sampler = Sampler::new(&sampling, &[], 0);
        let mut scratch = Scratch::new(Isa::best());
        for _ in 0..500 {
            let token = sampler.draw(&logits, rules, &mut scratch);
            assert_eq!(token, Some(1));
        }
    }
}

#[test]
fn only_allowed_tokens_are_drawn() {
    let logits: Vec<f32> = (0..100).map(|token| token as f32 * 0.01).collect();
    // Tokens 1, 33, 64 and 98, the last one of them barred.
    let allowed = [1 << 1, 1 << 1, 1, 1 << 2];
    let rules = Rules { allowed: Some(&allowed), barred: &[&[98]] };
    let mut scratch = Scratch::new(Isa::best());
    let mut greedy = Sampler::new(&Sampling::default(), &[], 0);
    assert_eq!(greedy.draw(&logits, rules, &mut scratch), Some(64));
    let mut warm = Sampler::new(&warm(|_| ()), &[], 0);
    let mut drawn: Vec<_> = (0..500).map(|_| warm.draw(&logits, rules, &mut scratch)).collect();
    drawn.sort_unstable();
    drawn.dedup();
    assert_eq!(drawn, [Some(1), Some(33), Some(64)]);
    for nothing in [&[][..], &[0, 0, 0, 1 << 2]] {
        let rules = Rules { allowed: Some(nothing), ..rules };
        assert_eq!(greedy.draw(&logits, rules, &mut scratch), None);
        assert_eq!(warm.draw(&logits, rules, &mut scratch), None);
    }
}

#[test]
fn biases_move_logits_before_the_temperature() {
    let logits = [4.0f32, 3.0, 2.0];
    let biased = |logit_bias: &[(TokenId, f32)]| Sampling {
        logit_bias: logit_bias.to_vec(),
        ..Sampling::default()
    };
    assert_eq!(draws(&biased(&[(2, 100.0)]), &logits, 1), [2]);
    assert_eq!(draws(&biased(&[(0, -100.0), (9, 100.0)]), &logits, 1), [1]);
    // Two logits made equal are drawn equally often, whatever the temperature.
    let equal = Sampling { temperature: 0.3, seed: Some(5), ..biased(&[(1, 1.0), (2, -100.0)]) };
    let ones = draws(&equal, &logits, 10_000).into_iter().filter(|&token| token == 1).count();
    assert!((4700..5300).contains(&ones), "{ones}");
}

#[test]
fn a_seed_repeats_and_indices_differ() {
    let logits = vec![0.0f32; 500];
    let run = |seed, index| {
        let sampling = warm(|s| s.seed = Some(seed));
        let mut sampler = Sampler::new(&sampling, &[], index);
        let mut scratch = Scratch::new(Isa::best());
        let mut draw = || sampler.draw(&logits, Rules::default(), &mut scratch).unwrap();
        (0..20).map(|_| draw()).collect::<Vec<_>>()
    };
    assert_eq!(run(1, 0), run(1, 0));
    assert_ne!(run(1, 0), run(1, 1));
    assert_ne!(run(1, 0), run(2, 0));
}

#[test]
fn logits_that_are_no_numbers_give_no_token() {
    let mut scratch = Scratch::new(Isa::best());
    for sampling in [Sampling::default(), warm(|_| ()), warm(|s| s.top_k = 3)] {
        let mut sampler = Sampler::new(&sampling, &[], 0);
        for odd in [f32::NAN, f32::INFINITY] {
            for places in [0..40, 0..1, 17..18, 39..40] {
                let mut logits = [1.0; 40];
                logits[places].fill(odd);
                assert_eq!(sampler.draw(&logits, Rules::default(), &mut scratch), None, "{odd}");
            }
        }
    }
}
