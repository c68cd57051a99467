//! Parses a join token; one that parses prints as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_control::JoinToken;

fuzz_target!(|text: &str| {
    if let Ok(token) = text.parse::<JoinToken>() {
        assert_eq!(token.to_string().to_lowercase(), text.trim().to_lowercase());
    }
});
