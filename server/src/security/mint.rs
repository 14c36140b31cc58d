//! New API keys.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};

/// Random bytes of a key.
const KEY_BYTES: usize = 32;

/// A new key, which is known nowhere else.
pub struct Minted {
    /// The key, for whom it is made.
    pub key: String,
    /// Its entry for a file of `--api-keys`.
    pub entry: String,
}

/// Makes a new key.
///
/// Errors: a system without random numbers.
pub fn mint(name: &str, scopes: &[String], models: &[String]) -> Result<Minted, String> {
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
    Ok(Minted { key, entry: format!("[[keys]]\n{entry}\n") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::keyfile;

    #[test]
    fn what_is_printed_is_a_file_that_knows_the_key() {
        let Minted { key, entry } = mint("a \"b\"", &["admin".into()], &["m*".into()]).unwrap();
        let entries = keyfile::parse("keys.toml".as_ref(), entry.as_bytes()).unwrap();
        assert_eq!(entries[0].name, "a \"b\"");
        assert_eq!(entries[0].digest, digest(&SHA256, key.as_bytes()).as_ref());
        assert_ne!(key, mint("a \"b\"", &[], &[]).unwrap().key);
        assert_eq!(key.len(), "sk-stator-".len() + 43);
    }
}
