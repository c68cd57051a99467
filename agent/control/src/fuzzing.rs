//! Entry points for the fuzz targets in `tests/fuzz`.

use mesh_model::NodeId;
use mesh_proto::v1::{AgentMessage, agent_message::Kind};

use crate::reports::{self, Checker};
use crate::view::View;

/// Checks the reports in a message of a node's session.
pub fn agent_message(message: AgentMessage) {
    let Some(kind) = message.kind else { return };
    let (view, node) = (
        View::default(),
        "0123456789abcdef01234567".parse::<NodeId>().expect("an id of 24 hexadecimal digits"),
    );
    let checker = Checker { view: &view, node: &node, is_trusted: false };
    let endpoints = match kind {
        Kind::Hello(hello) => {
            let _ = (reports::data_path_mtu(hello.data_path_mtu), reports::version(&hello.version));
            let _ = reports::routes(&hello.routes, &[], false);
            let _ = reports::addresses(&hello.addresses, |_| false);
            hello.endpoints
        }
        Kind::Endpoints(report) => report.put,
        _ => return,
    };
    for endpoint in &endpoints {
        if let Err(why) = checker.endpoint(endpoint) {
            assert!(why.chars().all(|c| !c.is_control()), "a reason has control characters: {why:?}");
        }
    }
}
