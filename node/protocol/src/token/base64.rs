//! URL-safe base64 without padding (RFC 4648, section 5), in the one form that there is for given bytes.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// `prefix`, and `bytes` behind it.
pub(crate) fn encode(prefix: &str, bytes: &[u8]) -> String {
    let mut out = String::with_capacity(prefix.len() + bytes.len().div_ceil(3) * 4);
    out.push_str(prefix);
    for chunk in bytes.chunks(3) {
        let mut group = [0; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from(group[0]) << 16 | u32::from(group[1]) << 8 | u32::from(group[2]);
        for place in 0..=chunk.len() {
            let index = bits >> (18 - 6 * place) & 63;
            out.push(char::from(ALPHABET[index as usize]));
        }
    }
    out
}

/// The bytes, or `None` for anything that [`encode`] does not write.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for chunk in text.as_bytes().chunks(4) {
        let mut bits = 0_u32;
        for (place, byte) in chunk.iter().enumerate() {
            bits |= value(*byte)? << (18 - 6 * place);
        }
        let bytes = bits.to_be_bytes();
        let len = chunk.len().checked_sub(1).filter(|len| *len > 0)?;
        // Bits that stand for nothing are zero, or two texts would mean the same.
        if bytes[1 + len..].iter().any(|byte| *byte != 0) {
            return None;
        }
        out.extend_from_slice(&bytes[1..=len]);
    }
    Some(out)
}

fn value(byte: u8) -> Option<u32> {
    let index = ALPHABET.iter().position(|letter| *letter == byte)?;
    u32::try_from(index).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_go_through_and_back(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let text = encode("x_", &bytes);
            prop_assert_eq!(decode(text.strip_prefix("x_").unwrap()), Some(bytes));
        }

        #[test]
        fn there_is_one_text_for_given_bytes(text in "[A-Za-z0-9_=+-]{0,12}") {
            if let Some(bytes) = decode(&text) {
                prop_assert_eq!(encode("", &bytes), text);
            }
        }
    }

    #[test]
    fn the_vectors_of_the_standard() {
        for (bytes, text) in [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foob", "Zm9vYg")] {
            assert_eq!(encode("", bytes.as_bytes()), text);
        }
        assert_eq!(encode("", &[0xFB, 0xFF]), "-_8");
        for bad in ["Z", "Zg==", "Zh", "Zm9v\n", "+/8"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
