//! Keys in base64, the form in which WireGuard's tools write them (RFC 4648, section 4).

use base64::{Engine, prelude::BASE64_STANDARD};

/// Returns the 44 characters for a key.
pub(crate) fn encode(key: &[u8; 32]) -> String {
    BASE64_STANDARD.encode(key)
}

/// Returns the key of 44 characters; `None` for anything else.
pub(crate) fn decode(text: &str) -> Option<[u8; 32]> {
    BASE64_STANDARD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_reads_and_writes_the_format_of_wireguard_tools() {
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
        fn decoding_reverses_encoding(key: [u8; 32]) {
            prop_assert_eq!(decode(&encode(&key)), Some(key));
        }
    }
}
