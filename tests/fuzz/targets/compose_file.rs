//! Reads a Compose file as `meshctl apply` does.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| mesh_meshctl::fuzzing::compose_file(text));
