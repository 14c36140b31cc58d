//! Compiles constraints for one model: the trie of its tokens and what a constraint may cost.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

use engine::{Error, ErrorKind, Guided, Result, TokenId, Vocabulary};
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{CancellationHandle, Matcher, ParserFactory};

use super::Guide;
use super::grammar::grammar;
use super::guide::refusal;
use super::spelling::{SPECIAL, spell};

/// States that the lexer of one constraint may have; one takes about 2 KiB.
const MAX_LEXER_STATES: usize = 50_000;

/// Symbols of one grammar.
const MAX_GRAMMAR_SYMBOLS: usize = 100_000;

/// Places in the grammar that the parser may be at, at one point of the text. Only ambiguous
/// grammars have many, and their cost grows with the square.
const MAX_PARSER_ITEMS: usize = 1000;

/// Parser items and units of lexer work that one step may cost: some 10 milliseconds.
const MAX_STEP_ITEMS: usize = 20_000;
const MAX_STEP_LEXER_FUEL: u64 = 150_000;

/// The longest text that a constraint may wait for, in bytes.
const MAX_MARKER_BYTES: usize = 256;

/// Ends the compilation of a constraint early.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    is_asked: AtomicBool,
    parser: OnceLock<CancellationHandle>,
}

impl Stop {
    /// Asks the compilation to end; a guide that came of it is of no use then.
    pub(crate) fn ask(&self) {
        self.is_asked.store(true, SeqCst);
        if let Some(parser) = self.parser.get() {
            parser.cancel();
        }
    }

    /// Checks that the compilation may go on.
    ///
    /// Errors: cancelled.
    fn check(&self) -> Result<()> {
        match self.is_asked.load(SeqCst) {
            false => Ok(()),
            true => Err(Error::new(ErrorKind::Cancelled, "nobody waits for the constraint")),
        }
    }

    /// Follows a parser that begins to work.
    fn watch(&self, matcher: &Matcher) {
        if let Some(parser) = matcher.cancellation_handle() {
            let _ = self.parser.set(parser);
        }
        if self.is_asked.load(SeqCst) {
            self.ask();
        }
    }
}

/// What all constraints of a model share.
pub(crate) struct Compiler {
    factory: ParserFactory,
    words: Arc<[Vec<u8>]>,
}

impl Compiler {
    /// Makes the trie of a vocabulary; none if its texts cannot be constrained, for want of
    /// tokens or of a token that ends a text.
    pub(crate) fn new(vocabulary: &Vocabulary, eos_tokens: &[TokenId]) -> Option<Self> {
        let mut words = spell(vocabulary);
        let is_known = |token: &TokenId| (*token as usize) < words.len();
        if words.is_empty() || eos_tokens.is_empty() || !eos_tokens.iter().all(is_known) {
            return None;
        }
        for &token in eos_tokens {
            // Whatever its kind: a constraint cannot mean it as text.
            let name = vocabulary.tokens[token as usize].as_bytes();
            words[token as usize] = [&[SPECIAL], name].concat();
        }
        let info = TokRxInfo::new(words.len() as u32, eos_tokens[0]);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(eos_tokens);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment)
            .inspect_err(|error| tracing::warn!(%error, "constraints are not served"))
            .ok()?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = MAX_LEXER_STATES;
        limits.max_grammar_size = MAX_GRAMMAR_SYMBOLS;
        limits.max_items_in_row = MAX_PARSER_ITEMS;
        limits.step_max_items = MAX_STEP_ITEMS;
        limits.step_lexer_fuel = MAX_STEP_LEXER_FUEL;
        limits.verbose_errors = false;
        Some(Self { factory, words: words.into() })
    }

    /// Compiles a constraint. Takes milliseconds of computing, or until `stop` ends it; not for an
    /// async runtime.
    ///
    /// Errors: invalid, if the constraint cannot be read or kept or is too costly.
    pub(crate) fn compile(&self, guided: &Guided, stop: &Stop) -> Result<Guide> {
        let compile = || {
            let marker = guided.after.as_deref().unwrap_or_default().as_bytes();
            if marker.len() > MAX_MARKER_BYTES {
                return Err(Error::invalid(format!(
                    "the text before the constraint: expected at most {MAX_MARKER_BYTES} bytes, \
                     got {}",
                    marker.len()
                )));
            }
            // Neither of the two can be ended while it works.
            stop.check()?;
            let grammar = grammar(&guided.constraint)?;
            stop.check()?;
            let parser = self.factory.create_parser(grammar);
            let parser = parser.map_err(|error| refusal(&error.to_string()))?;
            stop.check()?;
            let mut matcher = Matcher::new(Ok(parser)).into_cancellable();
            stop.watch(&matcher);
            // The first step is the dearest: it fills what later ones find, and not on the
            // scheduler's thread.
            matcher.compute_mask_or_eos().map_err(|error| refusal(&error.to_string()))?;
            Ok(Guide::new(matcher, marker, self.words.clone()))
        };
        compile().map_err(|error: Error| match error.kind() {
            ErrorKind::InvalidRequest => error.with_code("invalid_constraint"),
            _ => error,
        })
    }
}

impl fmt::Debug for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiler").field("tokens", &self.words.len()).finish_non_exhaustive()
    }
}
