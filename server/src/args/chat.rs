//! The flags of `stator chat`.

use std::path::PathBuf;

use clap::Args;

/// The flags of `stator chat`.
#[derive(Debug, Args)]
#[command(
    after_help = "In the chat: /clear forgets the conversation, /system TEXT sets the system \
    prompt, /model NAME changes the model, /stats turns the figures after each answer on and off, \
    /help, /exit. Ctrl-C stops the answer and, pressed again, the chat; Ctrl-D ends the chat.\n\
    When standard input is no terminal each line is one prompt, and only answers are printed.\n\
    Ends with 0; with 1 after an error, with 2 for flags that cannot be used, with 130 after Ctrl-C."
)]
pub struct ChatArgs {
    /// The server's HTTP door, http or https; `/v1` is added
    #[arg(value_name = "URL", default_value = "http://localhost:8000", env = "STATOR_URL")]
    pub url: String,
    /// Model to chat with [default: the first that the server lists]
    #[arg(long, short, value_name = "NAME")]
    pub model: Option<String>,
    /// System prompt
    #[arg(long, short, value_name = "TEXT")]
    pub system: Option<String>,
    /// Sampling temperature, 0 is greedy [default: the server's]
    #[arg(long, short, value_name = "NUMBER", value_parser = temperature)]
    pub temperature: Option<f64>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 1024)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: u32,
    /// Seed of the sampling [default: each answer its own]
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(i64).range(0..))]
    pub seed: Option<i64>,
    /// File whose first line is the API key
    #[arg(long, value_name = "FILE", env = "STATOR_API_KEY_FILE")]
    pub api_key_file: Option<PathBuf>,
    /// PEM file of the authorities to trust for https [default: the web's]
    #[arg(long, value_name = "FILE", env = "STATOR_CA_FILE")]
    pub ca_file: Option<PathBuf>,
    /// Print time to first token and tokens per second after each answer
    #[arg(long)]
    pub stats: bool,
}

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=2.0).contains(&value) => Ok(value),
        _ => Err("expected a number from 0 to 2".to_owned()),
    }
}
