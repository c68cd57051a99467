//! Cuts a frame from the TAP device as its virtio header says.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mesh_wireguard::fuzzing::frame(bytes));
