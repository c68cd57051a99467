//! The agent's figures for monitoring systems: one text, asked for on the local socket.
//!
//! It is made of the status and of nothing else, so that both say the same and nothing is collected twice.

mod exposition;
mod families;

use mesh_proto::v1;

/// A status as OpenMetrics 1.0 text (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
pub fn text(status: v1::StatusResponse) -> String {
    exposition::text(move |to| families::write(to, &status))
}
