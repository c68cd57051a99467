//! The metrics as text.

use mesh_proto::v1;

use super::{exposition, families};

/// What HTTP calls the text: OpenMetrics 1.0.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A status as OpenMetrics 1.0 text (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
pub fn text(status: v1::StatusResponse) -> String {
    exposition::text(move |to| families::write(to, &status))
}
