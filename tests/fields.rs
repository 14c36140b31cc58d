//! Fields of a message are counted before it is decoded, however its bytes are cut.

use bytes::Bytes;
use proto::{Nest, Uncounted, count_fields};

const INNER: Nest = Nest(&[(1, Nest::LEAF)]);
const OUTER: Nest = Nest(&[(3, INNER)]);

fn count(bytes: &[u8], most: usize) -> Result<(), Uncounted> {
    let whole = count_fields(&Bytes::copy_from_slice(bytes).into(), OUTER, most);
    for cut in 1..bytes.len().min(8) {
        let pieces = bytes.chunks(cut).map(Bytes::copy_from_slice);
        assert_eq!(count_fields(&pieces.collect(), OUTER, most), whole, "pieces of {cut}");
    }
    whole
}

#[test]
fn fields_of_named_messages_count_and_others_are_passed_over() {
    // Field 3 with two empty fields 1; field 2 with bytes that look like fields; numbers.
    let bytes = [0x1a, 4, 0x0a, 0, 0x0a, 0, 0x12, 4, 0x0a, 0, 0x0a, 0, 0x20, 1, 0x20, 1];
    assert_eq!(count(&bytes, 6), Ok(()));
    assert_eq!(count(&bytes, 5), Err(Uncounted::TooMany));
    let fixed = [0x21, 0, 0, 0, 0, 0, 0, 0, 0, 0x25, 0, 0, 0, 0];
    assert_eq!((count(&fixed, 2), count(&fixed, 1)), (Ok(()), Err(Uncounted::TooMany)));
}

#[test]
fn what_is_no_message_is_not_counted_as_one() {
    // One field that is long enough for the rest to be looked at.
    let front = [&[0x12, 60][..], &[0; 60]].concat();
    assert_eq!(count(&front, 20), Ok(()));
    for wrong in [
        &[0x1a, 2, 0x0a][..],
        &[0x1a, 1, 0x0a, 0],
        &[0x1a, 1, 0x0a, 0, 0x12, 0],
        &[0x12, 9, 0],
        &[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
        &[0xff; 12],
        &[0x26, 0],
        &[0x20],
        // A tag that says "number" for a map would hide what is behind it.
        &[0x18, 2, 0x0a, 0],
        &[0x18, 2, 0x0a, 0, 0x0a, 0],
    ] {
        let bytes = [front.as_slice(), wrong].concat();
        assert_eq!(count(&bytes, 20), Err(Uncounted::Malformed), "{wrong:?}");
    }
}

#[test]
fn a_message_too_short_for_more_is_not_looked_at() {
    assert_eq!(count(&[0xff; 7], 3), Ok(()));
}
