//! `meshctl metrics`

use mesh_proto::{Problem, v1};

use crate::client::Client;

/// The agent's own text in every output format: it is for programs already.
pub(super) async fn run(client: &Client) -> Result<String, Problem> {
    Ok(client.call(client.local().await?.metrics(v1::MetricsRequest {})).await?.text)
}
