//! Reads a DNS message from a container and writes every answer that it can get.
#![no_main]

libfuzzer_sys::fuzz_target!(|message: &[u8]| mesh_dns::fuzzing::query(message));
