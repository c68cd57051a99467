//! Base64 of exactly 32 bytes, the form in which WireGuard's tools write keys (RFC 4648, section
//! 4).

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// Characters of 32 bytes, padding included.
const LEN: usize = 44;

/// 44 characters for 32 bytes.
pub(crate) fn encode(key: &[u8; 32]) -> String {
    let mut text = String::with_capacity(LEN);
    for group in key.chunks(3) {
        let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let index = bits >> (18 - 6 * i) & 63;
            let character = if i <= group.len() { ALPHABET[index as usize] } else { b'=' };
            text.push(char::from(character));
        }
    }
    text
}

/// The 32 bytes of 44 characters; `None` for anything else.
pub(crate) fn decode(text: &str) -> Option<[u8; 32]> {
    let text: &[u8; LEN] = text.as_bytes().try_into().ok()?;
    let (digits, padding) = text.split_at(LEN - 1);
    if padding != b"=" {
        return None;
    }
    let mut key = [0; 32];
    let (mut bits, mut count, mut at) = (0u32, 0, 0);
    for digit in digits {
        let value = ALPHABET.iter().position(|c| c == digit)?;
        bits = bits << 6 | u32::try_from(value).ok()?;
        count += 6;
        if count >= 8 {
            count -= 8;
            *key.get_mut(at)? = (bits >> count).to_le_bytes()[0];
            at += 1;
        }
    }
    // 43 digits are 258 bits; the last two must be zero, or two texts would mean one key.
    (bits.trailing_zeros() >= 2).then_some(key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_reads_and_writes_what_wireguard_tools_do() {
        let text = "/////wAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        let key = decode(text).unwrap();
        assert_eq!(key[..5], [0xff, 0xff, 0xff, 0xff, 0]);
        assert_eq!(encode(&key), text);
    }

    #[test]
    fn anything_but_32_bytes_is_refused() {
        for text in
            ["", "AA==", "/////wAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAB=", &"A".repeat(44), &"!".repeat(44)]
        {
            assert_eq!(decode(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(key: [u8; 32]) {
            prop_assert_eq!(decode(&encode(&key)), Some(key));
        }
    }
}
