//! A runner without a model: it names a next token at once, at a set pace, or after the time that
//! a model of some cost would take.
//!
//! Everything around it is real, scheduler and KV blocks included, so it serves load tests and
//! tests of the server. The text reads like words; it ends only by the limit of tokens.

use std::time::{Duration, Instant};

use engine::{ModelCard, TokenId, TokenKind, Vocabulary};

use super::{BlockId, BlockKind, Entry, Limits, Outputs, Runner, Wants};
use crate::Error;

/// The words of its text; each is one token with a space in front.
const WORDS: [&str; 32] = [
    "the", "of", "and", "a", "to", "in", "is", "that", "it", "was", "for", "on", "are", "with",
    "as", "be", "this", "have", "from", "or", "one", "by", "word", "but", "not", "what", "all",
    "were", "we", "when", "your", "can",
];

/// The tokens that steer; the first one ends a text.
const CONTROL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// ChatML, as most small models have it.
const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' \
    + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// The logit of the next token, where all others are 0: far enough for any usual temperature.
const CERTAIN: f32 = 20.0;

/// Byte tokens, one for each byte.
const BYTES: usize = 256;

/// What stands for the weights of all mocks.
const MOCK: u64 = 0x6D6F_636B;

/// The length of its hidden states.
const DIMENSIONS: usize = 64;

/// How the mock behaves.
#[derive(Clone, Debug)]
pub struct MockConfig {
    /// The least time between the starts of two forward passes.
    pub pace: Duration,
    /// What a forward pass costs besides.
    pub cost: Cost,
    /// Most tokens of one sequence.
    pub context_length: usize,
    /// KV blocks, of 16 tokens each.
    pub blocks: usize,
    /// Most tokens of one forward pass.
    pub batch_tokens: usize,
    /// The text of every answer, byte by byte; none: words without an end.
    pub reply: Option<String>,
}

/// What a forward pass costs: it takes the time of all its tokens together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Of each token of a prompt that is computed; one found in the prefix cache costs nothing.
    pub prefill: Duration,
    /// Of each sequence that draws a token.
    pub decode: Duration,
    /// How many times faster than that it is, above 0.
    pub speedup: f64,
}

impl Default for Cost {
    fn default() -> Self {
        Self { prefill: Duration::ZERO, decode: Duration::ZERO, speedup: 1.0 }
    }
}

impl Cost {
    /// Returns the time of a pass. A sequence that only brings its last token draws the next one;
    /// more tokens are those of a prompt.
    fn of(&self, batch: &[Entry<'_>]) -> Duration {
        let time = |entry: &Entry<'_>| match entry.tokens.len() {
            1 if entry.start + 1 > entry.prompt => self.decode,
            count => self.prefill * u32::try_from(count).unwrap_or(u32::MAX),
        };
        let all: Duration = batch.iter().map(time).sum();
        all.div_f64(self.speedup)
    }
}

impl Default for MockConfig {
    fn default() -> Self {
        Self {
            pace: Duration::ZERO,
            cost: Cost::default(),
            context_length: 8192,
            blocks: 65_536,
            batch_tokens: 512,
            reply: None,
        }
    }
}

/// The runner.
#[derive(Debug)]
pub struct MockRunner {
    config: MockConfig,
    vocabulary: usize,
    next_start: Option<Instant>,
    logits: Vec<f32>,
    /// The one entry of each row that is not 0.
    marked: Vec<usize>,
    hidden: Vec<f32>,
}

impl MockRunner {
    /// Makes the runner.
    pub fn new(config: MockConfig) -> Self {
        let vocabulary = BYTES + CONTROL.len() + WORDS.len();
        Self {
            config,
            vocabulary,
            next_start: None,
            logits: Vec::new(),
            marked: Vec::new(),
            hidden: Vec::new(),
        }
    }

    /// Waits until the next forward pass may begin.
    fn keep_pace(&mut self) {
        if self.config.pace.is_zero() {
            return;
        }
        let now = Instant::now();
        let start = self.next_start.map_or(now, |next| next.max(now));
        std::thread::sleep(start - now);
        self.next_start = Some(start + self.config.pace);
    }

    /// Returns the token that follows one. An adapter has words of its own.
    fn next(&self, token: TokenId, position: usize, entry: &Entry<'_>) -> usize {
        match &self.config.reply {
            Some(reply) => {
                let byte = reply.as_bytes().get(position.saturating_sub(entry.prompt));
                byte.map_or(BYTES, |&byte| usize::from(byte))
            }
            None => {
                let adapter = entry.adapter.map_or(0, |id| 1 + (id.0 % 31) as usize);
                BYTES + CONTROL.len() + (token as usize * 7 + position + adapter) % WORDS.len()
            }
        }
    }
}

impl Runner for MockRunner {
    fn limits(&self) -> Limits {
        Limits {
            vocabulary: self.vocabulary,
            context_length: self.config.context_length,
            block_size: 16,
            blocks: self.config.blocks,
            batch_tokens: self.config.batch_tokens,
            dimensions: DIMENSIONS,
        }
    }

    fn forward(&mut self, batch: &[Entry<'_>]) -> Result<Outputs<'_>, Error> {
        self.keep_pace();
        let cost = self.config.cost.of(batch);
        if !cost.is_zero() {
            std::thread::sleep(cost);
        }
        for (row, marked) in self.marked.iter().enumerate() {
            self.logits[row * self.vocabulary + marked] = 0.0;
        }
        self.marked.clear();
        self.hidden.clear();
        for entry in batch {
            let rows = match entry.wants {
                Wants::Nothing => &[],
                Wants::Last => &entry.tokens[entry.tokens.len().saturating_sub(1)..],
                Wants::All => entry.tokens,
                Wants::Hidden => {
                    self.hidden.extend(entry.tokens.iter().copied().flat_map(hidden));
                    &[]
                }
            };
            let end = entry.start + entry.tokens.len();
            for (position, &token) in (end - rows.len() + 1..).zip(rows) {
                self.marked.push(self.next(token, position, entry));
            }
        }
        let size = self.marked.len() * self.vocabulary;
        if self.logits.len() < size {
            self.logits.resize(size, 0.0);
        }
        for (row, marked) in self.marked.iter().enumerate() {
            self.logits[row * self.vocabulary + marked] = CERTAIN;
        }
        Ok(Outputs {
            logits: &self.logits[..size],
            vocabulary: self.vocabulary,
            hidden: &self.hidden,
            dimensions: DIMENSIONS,
        })
    }

    /// It has no memory: what it says depends on the last token and its place alone.
    fn copy_block(&mut self, _: BlockId, _: BlockId) -> Result<(), Error> {
        Ok(())
    }

    fn read_block(&mut self, _: BlockId, _: &mut Vec<u8>) -> Result<(), Error> {
        Ok(())
    }

    fn write_block(&mut self, _: BlockId, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }

    /// Its blocks have no content, so that of any other mock does.
    fn block_kind(&self) -> Option<BlockKind> {
        Some(BlockKind { fingerprint: MOCK, bytes: 0 })
    }
}

/// Returns the hidden state of a token: the same wherever it stands, so that texts with the same
/// words are near each other.
fn hidden(token: TokenId) -> impl Iterator<Item = f32> {
    let mut random = fastrand::Rng::with_seed(u64::from(token));
    (0..DIMENSIONS).map(move |_| random.f32() * 2.0 - 1.0)
}

/// Returns the card of a mock model.
pub fn card(name: &str, config: &MockConfig) -> ModelCard {
    ModelCard {
        name: name.to_owned(),
        architecture: "mock".into(),
        context_length: config.context_length as u32,
        block_size: 16,
        eos_tokens: vec![BYTES as TokenId],
    }
}

/// Returns the vocabulary of a mock model: bytes, control tokens, some words, no merges.
pub fn vocabulary() -> Vocabulary {
    let bytes = (0..=u8::MAX).map(|byte| byte_spelling(byte).to_string());
    let control = CONTROL.iter().map(|token| (*token).to_owned());
    let words = WORDS.iter().map(|word| format!("{}{word}", byte_spelling(b' ')));
    let kind = |index: usize| match index.checked_sub(BYTES) {
        Some(index) if index < CONTROL.len() => TokenKind::Control,
        _ => TokenKind::Normal,
    };
    let tokens: Vec<String> = bytes.chain(control).chain(words).collect();
    Vocabulary {
        model: "gpt2".into(),
        pre_tokenizer: "gpt-2".into(),
        kinds: (0..tokens.len()).map(kind).collect(),
        tokens,
        eos: Some(BYTES as TokenId),
        chat_template: Some(TEMPLATE.into()),
        ..Vocabulary::default()
    }
}

/// Returns the letter that stands for a byte in byte-level BPE vocabularies: printable bytes
/// are themselves, the others follow from U+0100 on.
fn byte_spelling(byte: u8) -> char {
    let is_printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if is_printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&other| !is_printable(other)).count() as u32;
    char::from_u32(0x100 + rank).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_letter() {
        let letters: std::collections::BTreeSet<char> = (0..=255).map(byte_spelling).collect();
        assert_eq!(letters.len(), 256);
        assert_eq!((byte_spelling(b' '), byte_spelling(b'\n')), ('\u{120}', '\u{10A}'));
        assert_eq!((byte_spelling(b'a'), byte_spelling(0xAD)), ('a', '\u{143}'));
    }

    #[test]
    fn a_pass_costs_what_its_tokens_cost() {
        let entry = |tokens: &'static [TokenId], start, prompt| Entry {
            tokens,
            start,
            blocks: &[0],
            prompt,
            adapter: None,
            wants: Wants::Last,
        };
        let (prefill, decode) = (Duration::from_micros(10), Duration::from_micros(500));
        let cost = Cost { prefill, decode, speedup: 2.0 };
        // A chunk of three tokens, a prompt's last one, and two sequences that draw.
        let batch =
            [entry(&[1, 2, 3], 0, 5), entry(&[1], 4, 5), entry(&[1], 5, 5), entry(&[1], 9, 5)];
        assert_eq!(cost.of(&batch), Duration::from_micros((40 + 1000) / 2));
        assert!(Cost::default().of(&batch).is_zero());
    }

    #[test]
    fn one_logit_of_each_row_stands_out() {
        let mut runner = MockRunner::new(MockConfig::default());
        for step in 0..3 {
            let entry = |token: &'static [TokenId]| Entry {
                tokens: token,
                start: step,
                blocks: &[0],
                prompt: 1,
                adapter: None,
                wants: Wants::Last,
            };
            let outputs = runner.forward(&[entry(&[1]), entry(&[2])]).unwrap();
            let rows: Vec<_> = outputs.logits_rows().collect();
            assert_eq!(rows.len(), 2);
            for row in rows {
                assert_eq!(row.iter().sum::<f32>(), CERTAIN);
            }
        }
    }
}
