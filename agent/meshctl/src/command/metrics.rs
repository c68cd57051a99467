//! `meshctl metrics`

use mesh_proto::{Problem, v1};

use crate::client::Client;

/// The agent's own text, whatever form is asked for: it is for programs already.
pub(super) async fn run(client: &Client) -> Result<String, Problem> {
    Ok(client.call(client.local().await?.metrics(v1::MetricsRequest {})).await?.text)
}
