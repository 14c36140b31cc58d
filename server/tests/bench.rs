//! `stator bench engine` as an operator runs it: a table of speeds, and which share of the memory's
//! speed decoding alone reaches.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

/// A model of some 100 kB.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../worker/tests/golden/tiny/llama3.gguf");

/// Returns what the command prints, and whether it succeeded.
fn bench(arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stator"));
    let small =
        ["--prompt-tokens", "40", "--context-tokens", "20", "--steps", "5", "--threads", "1"];
    let output = command.args(["bench", "engine"]).args(arguments).args(small).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

/// Returns the number before a unit.
fn before(text: &str, unit: &str) -> f64 {
    let (number, _) = text.split_once(unit).unwrap_or_else(|| panic!("no `{unit}` in {text}"));
    number.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Returns median and best of the line that begins so.
fn figures(text: &str, start: &str) -> [f64; 2] {
    let found = text.lines().find_map(|line| line.strip_prefix(start));
    let line = found.unwrap_or_else(|| panic!("no line `{start}` in:\n{text}"));
    let figures = line.split_whitespace().map(|word| word.trim_end_matches('%').parse().unwrap());
    figures.collect::<Vec<_>>().try_into().unwrap()
}

#[test]
fn the_bench_prints_speeds_and_the_share_of_the_bandwidth() {
    let (is_fine, text) = bench(&[MODEL, "--batch", "1,3"]);
    assert!(is_fine && text.starts_with(&format!("{MODEL} on 1 threads: ")), "{text}");
    let (megabytes, bandwidth) = (before(&text, " MB of weights"), before(&text, " GB/s"));
    assert!(megabytes > 0.0 && bandwidth > 0.0, "{text}");
    for start in ["prefill of 40", "decode, 1 together", "decode, 3 together"] {
        let [median, best] = figures(&text, start);
        assert!(0.0 < median && median <= best, "{start}:\n{text}");
    }
    // A share is bytes by passes a second by the bandwidth, as far as all of these are rounded.
    let (shares, rates) =
        (figures(&text, "of the bandwidth, 1"), figures(&text, "decode, 1 together"));
    for (share, rate) in shares.into_iter().zip(rates) {
        let of = |megabytes: f64, bandwidth: f64| megabytes * rate / bandwidth / 10.0;
        let least = of(megabytes - 0.05, bandwidth + 0.05) * 0.99 - 0.5;
        let most = of(megabytes + 0.05, (bandwidth - 0.05).max(1e-9)) * 1.01 + 0.5;
        assert!((least..=most).contains(&share), "{share} is not in {least}..={most}:\n{text}");
    }
}

#[test]
fn without_one_sequence_alone_there_is_no_share() {
    let (is_fine, text) = bench(&[MODEL, "--batch", "2"]);
    assert!(is_fine && !text.contains("of the bandwidth"), "{text}");
    assert!(figures(&text, "decode, 2 together")[0] > 0.0, "{text}");
}

#[test]
fn what_cannot_be_measured_is_told() {
    let (is_fine, text) = bench(&["/nowhere/model.gguf"]);
    assert!(!is_fine && text.contains("cannot read `/nowhere/model.gguf`"), "{text}");
    let (is_fine, text) = bench(&[MODEL, "--batch", "4000", "--kv-cache-mib", "1"]);
    assert!(!is_fine && text.contains("expected room for 4000 sequences of 25 tokens"), "{text}");
}
