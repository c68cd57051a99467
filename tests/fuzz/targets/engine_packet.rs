//! Joins the packets that a peer sent.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mesh_wireguard::fuzzing::packets(bytes));
