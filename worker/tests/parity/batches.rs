//! A sequence's bits do not depend on its batch, its chunks or the threads.

use worker::cpu::Isa;
use worker::runner::cpu::CpuRunner;
use worker::runner::{Entry, Runner, Wants};

use super::{fill, isas, runner};

/// A sequence of a ragged batch: some prompt, scattered blocks.
struct Sequence {
    tokens: Vec<u32>,
    blocks: Vec<u32>,
}

fn sequences(count: u32) -> Vec<Sequence> {
    let length = |s: u32| if count == 6 { 5 + s * 23 } else { 1 + s * 29 % 67 };
    (0..count)
        .map(|s| Sequence {
            tokens: (0..length(s)).map(|p| (p * 37 + s * 101) % 40_000 + 20).collect(),
            blocks: (0..12).map(|b| (b * count + s) * 5 % (12 * count)).collect(),
        })
        .collect()
}

/// Runs one sequence alone: the whole prompt, then its first tokens again as if drawn.
fn alone(runner: &mut CpuRunner, sequence: &Sequence, steps: usize) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    for step in 0..=steps {
        let (tokens, start) = match step {
            0 => (&sequence.tokens[..], 0),
            _ => (&sequence.tokens[step - 1..step], sequence.tokens.len() + step - 1),
        };
        let blocks = &sequence.blocks;
        let entry = Entry { tokens, start, blocks, prompt: 0, adapter: None, wants: Wants::Last };
        rows.push(runner.forward(&[entry]).unwrap().logits.to_vec());
    }
    rows
}

/// Runs the sequences as one batch, after some chunks of one of them: each row of logits has to
/// be what the sequence gave alone.
fn together(
    runner: &mut CpuRunner,
    sequences: &[Sequence],
    (chunked, chunks): (usize, &[usize]),
    solo: &[Vec<Vec<f32>>],
) {
    let mut begun = 0;
    for &end in chunks {
        let Sequence { tokens, blocks } = &sequences[chunked];
        let tokens = &tokens[begun..end];
        runner
            .forward(&[Entry {
                tokens,
                start: begun,
                blocks,
                prompt: 0,
                adapter: None,
                wants: Wants::Nothing,
            }])
            .unwrap();
        begun = end;
    }
    let steps = solo[0].len();
    for step in 0..steps {
        let entries: Vec<Entry<'_>> = sequences
            .iter()
            .enumerate()
            .map(|(index, s)| {
                let (tokens, start) = match step {
                    0 if index == chunked => (&s.tokens[begun..], begun),
                    0 => (&s.tokens[..], 0),
                    _ => (&s.tokens[step - 1..step], s.tokens.len() + step - 1),
                };
                Entry {
                    tokens,
                    start,
                    blocks: &s.blocks,
                    prompt: 0,
                    adapter: None,
                    wants: Wants::Last,
                }
            })
            .collect();
        let outputs = runner.forward(&entries).unwrap();
        assert_eq!(outputs.logits_rows().len(), solo.len());
        for (index, (row, alone)) in outputs.logits_rows().zip(solo).enumerate() {
            assert!(row == alone[step], "sequence {index} differs in step {step}");
        }
    }
}

#[test]
fn a_batch_gives_bit_for_bit_what_each_sequence_gives_alone() {
    let sequences = sequences(6);
    for isa in isas() {
        let mut one = runner(1, isa);
        let solo: Vec<_> = sequences.iter().map(|s| alone(&mut one, s, 3)).collect();
        // The longest prompt comes in three chunks, the last one beside all other prompts.
        together(&mut runner(2, isa), &sequences, (5, &[17, 60]), &solo);
    }
}

#[test]
fn thirty_two_sequences_give_what_each_gives_alone_on_any_threads() {
    let sequences = sequences(32);
    let mut one = runner(1, Isa::best());
    let solo: Vec<_> = sequences.iter().map(|s| alone(&mut one, s, 1)).collect();
    for threads in [2, 3] {
        together(&mut runner(threads, Isa::best()), &sequences, (9, &[5]), &solo);
    }
}

#[test]
fn a_long_context_gives_the_same_bits_in_any_chunks_on_any_threads() {
    let sequence = Sequence {
        tokens: (0..780).map(|p| (p * 37 + 11) % 40_000 + 20).collect(),
        blocks: (0..52).map(|b| b * 7 % 52).collect(),
    };
    let mut logits: Option<Vec<f32>> = None;
    for (threads, chunk) in [(1, 779), (2, 256), (3, 100)] {
        let mut runner = runner(threads, Isa::best());
        let (last, prompt) = sequence.tokens.split_last().unwrap();
        fill(&mut runner, prompt, &sequence.blocks, chunk);
        // Decoded alone, its segments are shared among the threads.
        let (start, blocks) = (prompt.len(), &sequence.blocks[..]);
        let entry =
            Entry { tokens: &[*last], start, blocks, prompt: 0, adapter: None, wants: Wants::Last };
        let row = runner.forward(&[entry]).unwrap().logits.to_vec();
        assert!(*logits.get_or_insert_with(|| row.clone()) == row, "{threads} threads, {chunk}");
    }
}
