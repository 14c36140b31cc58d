//! Batches of events as they come: arrays in older engines, maps in newer ones.

use super::msgpack::Value;

/// The name that the engine has for a block: a number or a digest.
pub(super) type Foreign = Box<[u8]>;

/// What an engine tells.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Told {
    Stored(Stored),
    Removed(Vec<Foreign>),
    Cleared,
}

/// Blocks that can be found from now on, each behind the one before.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Stored {
    pub blocks: Vec<Foreign>,
    pub parent: Option<Foreign>,
    pub tokens: Vec<u32>,
    pub block_tokens: usize,
    /// The adapter, by name or number.
    pub adapter: Option<String>,
    /// The first block that depends on more than tokens, such as an image.
    pub plain: usize,
}

/// Reads a batch; events of kinds that are not known, or about memory other than the device's, are
/// left out. None: it is no batch.
pub(super) fn read(bytes: &[u8]) -> Option<Vec<Told>> {
    let batch = Value::read(bytes)?;
    let events = batch.list()?.get(1)?.list()?;
    Some(events.iter().filter_map(event).collect())
}

fn event(value: &Value<'_>) -> Option<Told> {
    let fields = Fields(value);
    let kind = match value {
        Value::Map(_) => value.get("type")?.text()?,
        _ => value.list()?.first()?.text()?,
    };
    // Copies elsewhere, and those of further groups of layers, say nothing of a prefix.
    let counts = |medium, group| {
        let is_near = fields
            .get("medium", medium)
            .is_none_or(|medium| medium.text().is_none_or(|text| text.eq_ignore_ascii_case("gpu")));
        is_near && fields.get("group_idx", group).and_then(Value::int::<u64>).unwrap_or(0) == 0
    };
    match kind {
        "BlockStored" if counts(6, 9) => Some(Told::Stored(stored(&fields)?)),
        "BlockRemoved" if counts(2, 3) => {
            Some(Told::Removed(blocks(fields.get("block_hashes", 1)?)?))
        }
        "AllBlocksCleared" => Some(Told::Cleared),
        _ => None,
    }
}

fn stored(fields: &Fields<'_, '_>) -> Option<Stored> {
    let blocks = blocks(fields.get("block_hashes", 1)?)?;
    let parent = match fields.get("parent_block_hash", 2) {
        None | Some(Value::Nil) => None,
        Some(parent) => Some(foreign(parent)?),
    };
    let tokens = fields.get("token_ids", 3)?.list()?;
    let name = fields.get("lora_name", 7).and_then(Value::text).map(str::to_owned);
    let number = fields.get("lora_id", 5).and_then(Value::int::<i64>);
    let extras = fields.get("extra_keys", 8).and_then(Value::list).unwrap_or_default();
    let plain = extras.iter().position(|extra| *extra != Value::Nil).unwrap_or(blocks.len());
    Some(Stored {
        parent,
        tokens: tokens.iter().map(Value::int).collect::<Option<_>>()?,
        block_tokens: fields.get("block_size", 4)?.int()?,
        adapter: name.or(number.map(|number| number.to_string())),
        // An adapter's blocks have its name among what they depend on.
        plain: if name_is_all(extras) { blocks.len() } else { plain },
        blocks,
    })
}

/// Returns whether what blocks depend on besides tokens is the adapter alone.
fn name_is_all(extras: &[Value<'_>]) -> bool {
    let is_name = |extra: &Value<'_>| match extra {
        Value::List(parts) => parts.len() == 1 && parts[0].text().is_some(),
        Value::Nil => true,
        _ => false,
    };
    extras.iter().all(is_name)
}

fn blocks(list: &Value<'_>) -> Option<Vec<Foreign>> {
    list.list()?.iter().map(foreign).collect()
}

fn foreign(value: &Value<'_>) -> Option<Foreign> {
    match value {
        Value::Int(number) => Some(number.to_le_bytes().into()),
        Value::Bytes(bytes) => Some((*bytes).into()),
        _ => None,
    }
}

/// The fields of an event, by name or by place.
struct Fields<'v, 'a>(&'v Value<'a>);

impl<'v, 'a> Fields<'v, 'a> {
    fn get(&self, name: &str, place: usize) -> Option<&'v Value<'a>> {
        match self.0 {
            Value::List(values) => values.get(place),
            map => map.get(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a text as MessagePack.
    fn text(text: &str) -> Vec<u8> {
        [&[0xD9, text.len() as u8], text.as_bytes()].concat()
    }

    fn list(parts: &[Vec<u8>]) -> Vec<u8> {
        [&[0x90 | parts.len() as u8], parts.concat().as_slice()].concat()
    }

    fn map(pairs: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let all = pairs.iter().flat_map(|(key, value)| [text(key), value.clone()].concat());
        [0x80 | pairs.len() as u8].into_iter().chain(all).collect()
    }

    fn batch(event: Vec<u8>) -> Vec<u8> {
        list(&[vec![0xCB, 0, 0, 0, 0, 0, 0, 0, 0], list(&[event])])
    }

    fn numbers(numbers: &[u8]) -> Vec<u8> {
        list(&numbers.iter().map(|number| vec![*number]).collect::<Vec<_>>())
    }

    const NIL: u8 = 0xC0;

    #[test]
    fn events_are_read_from_arrays_of_any_age() {
        let old = list(&[text("BlockStored"), numbers(&[7]), vec![NIL], numbers(&[1, 2]), vec![2]]);
        let told = read(&batch(old)).unwrap();
        let [Told::Stored(stored)] = &told[..] else { panic!("not stored") };
        assert_eq!((&stored.tokens, stored.block_tokens), (&vec![1, 2], 2));
        assert_eq!((&stored.parent, &stored.adapter, stored.plain), (&None, &None, 1));
        let removed = list(&[text("BlockRemoved"), list(&[vec![0xC4, 2, 8, 9]]), text("GPU")]);
        assert_eq!(read(&batch(removed)).unwrap(), [Told::Removed(vec![[8, 9].into()])]);
        let far = list(&[text("BlockRemoved"), numbers(&[1]), text("CPU")]);
        assert_eq!(read(&batch(far)).unwrap(), []);
        let cleared = list(&[text("AllBlocksCleared")]);
        assert_eq!(read(&batch(cleared)).unwrap(), [Told::Cleared]);
        assert_eq!(read(&batch(list(&[text("New"), vec![1]]))).unwrap(), []);
    }

    #[test]
    fn newer_engines_name_the_fields() {
        let cleared = map(&[("type", text("AllBlocksCleared"))]);
        assert_eq!(read(&batch(cleared)).unwrap(), [Told::Cleared]);
        let stored = map(&[
            ("type", text("BlockStored")),
            ("block_hashes", numbers(&[7, 8])),
            ("parent_block_hash", vec![6]),
            ("token_ids", numbers(&[1, 2])),
            ("block_size", vec![1]),
            ("lora_name", text("a")),
            ("extra_keys", list(&[vec![NIL], numbers(&[1])])),
        ]);
        let told = read(&batch(stored)).unwrap();
        let [Told::Stored(stored)] = &told[..] else { panic!("not stored") };
        assert_eq!((stored.adapter.as_deref(), stored.plain), (Some("a"), 1));
        assert!(stored.parent.is_some());
        assert_eq!(read(&[0x01]), None);
        assert_eq!(read(b""), None);
    }
}
