//! Applies a message of a manager to an agent's view.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_state::ClusterView;
use mesh_proto::v1::{ManagerMessage, manager_message::Kind};
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    let Some((split, bytes)) = bytes.split_first() else { return };
    // Two messages: the first gives the view that a delta needs.
    let middle = bytes.len().min(usize::from(*split) * 4);
    let (first, second) = bytes.split_at(middle);
    let Ok(ManagerMessage { kind: Some(Kind::Snapshot(snapshot)) }) = ManagerMessage::decode(first) else {
        return;
    };
    let Ok(view) = ClusterView::from_snapshot(snapshot) else { return };
    // Which records were unreadable is not saved: the next session reports them again.
    let kept = saved_and_read(&view);
    assert_eq!(saved_and_read(&kept), kept);
    if let Ok(ManagerMessage { kind: Some(Kind::Delta(delta)) }) = ManagerMessage::decode(second) {
        let _ = view.with_delta(delta);
    }
});

fn saved_and_read(view: &ClusterView) -> ClusterView {
    let saved = serde_json::to_vec(view).expect("a view can be saved");
    serde_json::from_slice(&saved).expect("a saved view can be read")
}
