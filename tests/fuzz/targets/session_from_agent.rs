//! Reads a message of a node's session as a manager does.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_proto::v1::AgentMessage;
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = AgentMessage::decode(bytes) {
        mesh_control::fuzzing::agent_message(message);
    }
});
