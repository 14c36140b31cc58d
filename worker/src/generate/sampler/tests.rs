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
fn filters_keep_exactly_their_sets_together() {
    type Case = (&'static [f32], u32, fn(&mut Sampling), &'static [TokenId]);
    const NONE: f32 = f32::NEG_INFINITY;
    const ALL: u32 = u32::MAX;
    // Probabilities of about 0.643, 0.237, 0.087, 0.032; of the last three 0.665, 0.245, 0.090.
    const SLOPE: &[f32] = &[3.0, 2.0, 1.0, 0.0];
    const HOLES: &[f32] = &[NONE, 2.0, NONE, 0.0, 1.0];
    const LARGE: &[f32] = &[1e30, -1e30, 1e30, 0.0];
    let cases: &[Case] = &[
        // Top-k and top-p are of what min-p leaves, and top-p of what top-k leaves.
        (SLOPE, ALL, |s| s.top_p = 0.9, &[0, 1, 2]),
        (SLOPE, ALL, |s| (s.min_p, s.top_p) = (0.1, 0.9), &[0, 1]),
        (SLOPE, ALL, |s| (s.min_p, s.top_k) = (0.1, 2), &[0, 1]),
        (SLOPE, ALL, |s| (s.min_p, s.top_k) = (0.3, 3), &[0, 1]),
        (SLOPE, ALL, |s| (s.min_p, s.top_p) = (0.1, 0.7), &[0, 1]),
        (SLOPE, ALL, |s| (s.min_p, s.top_k, s.top_p) = (0.1, 2, 0.7), &[0]),
        // All are of what the rules leave.
        (SLOPE, 0b1110, |s| s.top_p = 0.6, &[1]),
        (SLOPE, 0b1110, |s| s.top_p = 0.7, &[1, 2]),
        (SLOPE, 0b1110, |s| s.top_k = 2, &[1, 2]),
        (SLOPE, 0b1110, |s| s.top_k = 3, &[1, 2, 3]),
        (SLOPE, 0b1110, |s| s.min_p = 0.1, &[1, 2, 3]),
        (SLOPE, 0b1110, |s| s.min_p = 0.3, &[1, 2]),
        (SLOPE, 0b1110, |s| (s.min_p, s.top_k, s.top_p) = (0.1, 2, 0.7), &[1]),
        // Tokens that no one can draw are in no set.
        (HOLES, ALL, |_| (), &[1, 3, 4]),
        (HOLES, ALL, |s| s.top_k = 2, &[1, 4]),
        (HOLES, ALL, |s| s.top_k = 4, &[1, 3, 4]),
        (HOLES, ALL, |s| s.top_p = 0.7, &[1, 4]),
        (HOLES, ALL, |s| s.min_p = 0.3, &[1, 4]),
        (HOLES, 0b01101, |s| s.top_k = 2, &[3]),
        (HOLES, 0b01101, |s| s.top_p = 0.5, &[3]),
        (HOLES, 0b01101, |s| s.min_p = 0.5, &[3]),
        // The least temperature that is not greedy leaves what is as likely.
        (&[1.0, 1.0, 0.99], ALL, |s| s.temperature = COLDEST, &[0, 1]),
        (&[1.0, 1.0, 0.99], ALL, |s| (s.temperature, s.top_k) = (COLDEST, 2), &[0, 1]),
        (&[1.0, 1.0, 0.99], ALL, |s| (s.temperature, s.top_p) = (COLDEST, 0.5), &[0]),
        (&[1.0, 1.0, 0.99], ALL, |s| (s.temperature, s.min_p) = (COLDEST, 0.5), &[0, 1]),
        (LARGE, ALL, |_| (), &[0, 2]),
        (LARGE, ALL, |s| s.temperature = 2.0, &[0, 2]),
        (LARGE, ALL, |s| s.temperature = COLDEST, &[0, 2]),
        (LARGE, ALL, |s| s.temperature = 0.0, &[0]),
        (LARGE, ALL, |s| s.top_k = 3, &[0, 2]),
        (LARGE, ALL, |s| s.top_p = 0.5, &[0]),
        (LARGE, ALL, |s| s.top_p = 0.9, &[0, 2]),
        (LARGE, ALL, |s| s.min_p = 1.0, &[0, 2]),
        (LARGE, 0b1010, |_| (), &[3]),
        (&[-1e30, NONE, -1e30], ALL, |_| (), &[0, 2]),
        (&[f32::MIN, f32::MAX], ALL, |s| s.temperature = COLDEST, &[1]),
    ];
    for (index, &(logits, allowed, change, expected)) in cases.iter().enumerate() {
        let allowed = [allowed];
        let rules = Rules { allowed: Some(&allowed[..]).filter(|_| allowed != [ALL]), barred: &[] };
        let mut sampler = Sampler::new(&warm(change), &[], 0);
        let mut scratch = Scratch::new(Isa::best());
        let mut draw = || sampler.draw(logits, rules, &mut scratch).unwrap();
        let mut tokens: Vec<_> = (0..2000).map(|_| draw()).collect();
        tokens.sort_unstable();
        tokens.dedup();
        assert_eq!(tokens, expected, "case {index}: {logits:?}");
    }
}

#[test]
fn samplers_that_share_memory_draw_as_each_does_alone() {
    let options: [fn(&mut Sampling); 9] = [
        |_| (),
        |s| s.temperature = 0.0,
        |s| s.top_k = 3,
        |s| (s.top_k, s.top_p) = (20, 0.8),
        |s| (s.top_k, s.top_p) = (800, 0.9),
        |s| s.top_p = 0.5,
        |s| s.min_p = 0.1,
        |s| (s.repetition_penalty, s.frequency_penalty) = (1.3, 0.5),
        |s| s.logit_bias = vec![(2, 3.0)],
    ];
    let sampler = |change: &fn(&mut Sampling)| Sampler::new(&warm(change), &[], 0);
    let mut pairs: Vec<_> =
        options.iter().map(|change| (sampler(change), sampler(change))).collect();
    let mut random = fastrand::Rng::with_seed(11);
    let mut shared = Scratch::new(Isa::best());
    for turn in 0..1000 {
        let length = random.choice([3, 40, 1024, 2500]).unwrap();
        let logits: Vec<f32> = (0..length).map(|_| random.f32() * 9.0).collect();
        let allowed: Vec<u32> = (0..length / 32 + 1).map(|_| random.u32(..) | 1).collect();
        let allowed = Some(&allowed[..]).filter(|_| random.u8(..4) == 0);
        let rules = Rules { allowed, barred: &[] };
        let which = random.usize(..pairs.len());
        let (together, alone) = &mut pairs[which];
        let token = together.draw(&logits, rules, &mut shared);
        let expected = alone.draw(&logits, rules, &mut Scratch::new(Isa::best()));
        assert_eq!(token, expected, "turn {turn}: sampler {which}, {length} logits");
        together.note(token.unwrap());
        alone.note(token.unwrap());
    }
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
