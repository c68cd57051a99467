//! Reads a message of a node's session as a manager does.
#![no_main]

libfuzzer_sys::fuzz_target!(|message: &[u8]| mesh_control::fuzzing::agent_message(message));
