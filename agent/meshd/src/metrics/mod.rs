//! The agent's figures for monitoring systems: one text, asked for on the local socket or over
//! HTTP.
//!
//! It is made of the status and of nothing else, so that both say the same and nothing is collected
//! twice.

mod exposition;
mod families;
mod server;

use mesh_proto::v1;

pub use self::server::serve;

/// What HTTP calls the text: OpenMetrics 1.0.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A status as OpenMetrics 1.0 text (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
pub fn text(status: v1::StatusResponse) -> String {
    exposition::text(move |to| families::write(to, &status))
}
