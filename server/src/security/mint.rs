//! New API keys.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};

/// Random bytes of a key.
const KEY_BYTES: usize = 32;

/// Makes a new key; returns what to print: the key, and its entry for a file of `--api-keys`.
///
/// Errors: a system without random numbers.
pub fn mint(name: &str, scopes: &[String], models: &[String]) -> Result<String, String> {
    let mut random = [0; KEY_BYTES];
    let filled = SystemRandom::new().fill(&mut random);
    filled.map_err(|_| "the system gives no random numbers".to_owned())?;
    let key = format!("sk-stator-{}", URL_SAFE_NO_PAD.encode(random));
    let digest = digest(&SHA256, key.as_bytes());
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let entry = toml::Table::from_iter([
        ("name".to_owned(), toml::Value::from(name)),
        ("sha256".to_owned(), toml::Value::from(hex)),
        ("scopes".to_owned(), toml::Value::from(scopes.to_vec())),
        ("models".to_owned(), toml::Value::from(models.to_vec())),
    ]);
    Ok(format!("# The key, which is shown this once:\n# {key}\n\n[[keys]]\n{entry}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::keyfile;

    #[test]
    fn what_is_printed_is_a_file_that_knows_the_key() {
        let text = mint("a \"b\"", &["admin".into()], &["m*".into()]).unwrap();
        let key = text.lines().nth(1).unwrap().trim_start_matches("# ").to_owned();
        let entries = keyfile::parse("keys.toml".as_ref(), text.as_bytes()).unwrap();
        assert_eq!(entries[0].name, "a \"b\"");
        assert_eq!(entries[0].digest, digest(&SHA256, key.as_bytes()).as_ref());
        assert_ne!(text, mint("a \"b\"", &[], &[]).unwrap());
        assert_eq!(key.len(), "sk-stator-".len() + 43);
    }
}
