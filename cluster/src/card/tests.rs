//! Cards: JSON, bounds and identity.

use proptest::prelude::*;

use super::*;

/// A change of a card.
type Edit = fn(&mut Card);

fn full() -> Card {
    Card {
        aliases: vec!["b".into(), "a".into()],
        tensor_config: Some(vec![0, 255, 7]),
        context_length: 2048,
        block_size: 16,
        eos_tokens: vec![2, 0],
        tool_call_parser: Some("hermes".into()),
        reasoning_parser: Some("qwen3".into()),
        adapters: vec!["french".into()],
        artifacts: vec![
            Artifact { name: "vocabulary".into(), sha256: Sha256::of(b"v"), bytes: 1 },
            Artifact { name: "chat_template".into(), sha256: Sha256::of(b""), bytes: 0 },
        ],
        ..Card::new("smollm", Kind::Chat, Input::Token)
    }
}

#[test]
fn a_card_is_the_json_that_the_documentation_shows() {
    let json = r#"{"version":1,"name":"m","kind":"tensor","input":"tensor","role":"aggregated",
        "tensor_config":"AP8H","context_length":0,"block_size":0,"of_the_future":{"x":[1]}}"#;
    let card: Card = serde_json::from_str(json).unwrap();
    let expected = Card {
        tensor_config: Some(vec![0, 255, 7]),
        ..Card::new("m", Kind::Tensor, Input::Tensor)
    };
    assert_eq!(card, expected);
    card.check().unwrap();
    let text = serde_json::to_string(&full()).unwrap();
    assert_eq!(serde_json::from_str::<Card>(&text).unwrap(), full());
    assert!(serde_json::from_str::<Card>(&json.replace("AP8H", "A*")).is_err());
}

#[test]
fn every_field_but_role_and_adapters_makes_another_identity() {
    let same = Card { role: Role::Prefill, adapters: vec![], ..full() };
    assert_eq!(same.checksum(), full().checksum());
    assert!(same.differences(&full()).is_empty());
    let cases: [(&str, Edit); 13] = [
        ("name", |card| card.name.push('x')),
        ("model_version", |card| card.model_version = 3),
        ("version_of", |card| card.version_of = "x".into()),
        ("aliases", |card| card.aliases.clear()),
        ("kind", |card| card.kind = Kind::Text),
        ("input", |card| card.input = Input::Text),
        ("tensor_config", |card| card.tensor_config = None),
        ("context_length", |card| card.context_length += 1),
        ("block_size", |card| card.block_size += 1),
        ("eos_tokens", |card| card.eos_tokens.push(9)),
        ("tool_call_parser", |card| card.tool_call_parser = None),
        ("reasoning_parser", |card| card.reasoning_parser = Some("x".into())),
        ("artifacts", |card| card.artifacts[0].sha256 = Sha256::of(b"w")),
    ];
    for (field, change) in cases {
        let mut other = full();
        change(&mut other);
        assert_ne!(other.checksum(), full().checksum(), "{field}");
        assert_eq!(other.differences(&full()), [field]);
    }
}

#[test]
fn what_does_not_fit_is_refused_by_its_name() {
    let cases: [(&str, Edit); 14] = [
        ("version 2", |card| card.version = 2),
        ("name", |card| card.name.clear()),
        ("control", |card| card.name = "a\nb".into()),
        ("aliases", |card| card.aliases = vec!["a".into(); MAX_ALIASES + 1]),
        ("version_of", |card| card.version_of = "m".into()),
        ("name `m/versions/3`", |card| {
            *card = Card { model_version: 3, version_of: "m".into(), ..full() };
        }),
        ("`aliases`: expected at most 0", |card| {
            *card = Card { name: "m/versions/1".into(), version_of: "m".into(), ..full() };
        }),
        ("adapters", |card| card.adapters = vec!["a".into(); MAX_ADAPTERS + 1]),
        ("eos_tokens", |card| card.eos_tokens = vec![0; MAX_EOS_TOKENS + 1]),
        ("tensor_config", |card| card.tensor_config = Some(vec![0; MAX_TENSOR_CONFIG_BYTES + 1])),
        ("cannot take", |card| card.input = Input::Tensor),
        ("needs a `tensor_config`", |card| {
            *card = Card::new("m", Kind::Tensor, Input::Tensor);
        }),
        ("models that generate", |card| {
            card.kind = Kind::Embedding;
            card.role = Role::Decode;
        }),
        ("parser", |card| card.tool_call_parser = Some(String::new())),
    ];
    full().check().unwrap();
    let older = Card::new("m/versions/3", Kind::Text, Input::Token);
    Card { model_version: 3, version_of: "m".into(), ..older }.check().unwrap();
    for (word, change) in cases {
        let mut card = full();
        change(&mut card);
        let error = card.check().unwrap_err();
        assert!(error.message().contains(word), "{word}: {error}");
    }
}

proptest! {
    #[test]
    fn the_order_of_lists_does_not_matter(
        aliases in prop::collection::vec("[a-z]{1,3}", 0..6),
        eos in prop::collection::vec(any::<u32>(), 0..6),
    ) {
        let card = Card { aliases: aliases.clone(), eos_tokens: eos.clone(), ..full() };
        let reversed = Card {
            aliases: aliases.into_iter().rev().collect(),
            eos_tokens: eos.into_iter().rev().collect(),
            ..full()
        };
        prop_assert_eq!(card.checksum(), reversed.checksum());
    }

    #[test]
    fn equal_checksums_mean_no_differences(left in 0_u32..3, right in 0_u32..3) {
        let of = |size| Card { block_size: size, ..full() };
        let (left, right) = (of(left), of(right));
        let is_equal = left.checksum() == right.checksum();
        prop_assert_eq!(is_equal, left.differences(&right).is_empty());
    }
}
