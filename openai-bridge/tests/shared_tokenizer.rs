//! One tokenizer serves many requests at once.

use engine::Vocabulary;
use openai_bridge::Tokenizer;

#[test]
fn threads_share_what_is_remembered() {
    let tokens: Vec<String> = ('!'..='~').map(String::from).chain(["th".into()]).collect();
    let vocabulary = Vocabulary {
        model: "gpt2".into(),
        tokens,
        merges: vec!["t h".into()],
        ..Vocabulary::default()
    };
    let library = Tokenizer::reference(&vocabulary).unwrap();
    let ours = Tokenizer::new(&vocabulary).unwrap().with_cache_bytes(20_000);
    let texts: Vec<String> = (0..20).map(|n| format!("{n} the then ").repeat(100)).collect();
    let expected: Vec<_> = texts.iter().map(|text| library.encode(text, false).unwrap()).collect();
    assert!(ours.is_fast() && !library.is_fast());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for (text, expected) in texts.iter().zip(&expected).cycle().take(200) {
                    assert_eq!(&ours.encode(text, false).unwrap(), expected);
                }
            });
        }
    });
}
