//! The joining host's side: from a token to a membership.

use mesh_model::cluster::Cluster;
use mesh_model::{Mtu, Name, Node};
use mesh_proto::v1::enrollment_client::EnrollmentClient;
use mesh_proto::v1::{JoinRequest, JoinResponse};
use mesh_proto::{Problem, ProblemKind, convert};
use std::net::{IpAddr, SocketAddr};

use crate::identity::{NodeIdentity, NodeKey, tls};
use crate::token::JoinToken;
use crate::transport::connect;

/// The properties of a joining host.
#[derive(Debug, Clone)]
pub struct JoinParameters {
    /// Its name, which must be free.
    pub name: Name,
    /// Address at which its control plane would be reachable.
    pub advertise_addr: SocketAddr,
    /// Its address on the underlay.
    pub data_path_addr: IpAddr,
    /// MTU of the interface with that address.
    pub data_path_mtu: Mtu,
    /// Version of its agent.
    pub version: String,
    /// Its earlier identity, if it joins again with its old state. If the record still exists, the
    /// old certificate proves that it is the same node, and it keeps its id. Otherwise it becomes a
    /// new node.
    pub previous: Option<NodeIdentity>,
}

/// A membership.
#[derive(Debug, Clone)]
pub struct Joined {
    /// This node's record.
    pub node: Node,
    /// The cluster's record.
    pub cluster: Cluster,
    /// This node's key and certificate.
    pub identity: NodeIdentity,
    /// `HOST:PORT` of every manager.
    pub managers: Vec<String>,
}

/// Joins the cluster of the manager at `HOST:PORT`. Generates a key, compares the manager's CA with
/// the token before sending any secret, and obtains a certificate. Writes nothing to disk.
pub async fn join(manager: &str, token: &str, parameters: JoinParameters) -> Result<Joined, Problem> {
    let failed = |error: &dyn ToString| Problem::new(ProblemKind::Failed, error.to_string());
    let parsed: JoinToken = token.parse().map_err(|e| {
        Problem::new(ProblemKind::Usage, format!("{e}"))
            .hint("copy the whole line that meshctl cluster join-token worker prints on a manager")
    })?;
    let key = NodeKey::generate().map_err(|e| failed(&e))?;
    // An identity of another cluster is useless here.
    let is_of_cluster = |previous: &NodeIdentity| previous.ca_fingerprint().is_ok_and(|ca| ca == parsed.ca);
    let previous = parameters.previous.filter(is_of_cluster);
    let node_id = previous.as_ref().and_then(|previous| previous.peer_identity().ok()).map(|peer| peer.node);
    let config = tls::join_client_config(parsed.ca, previous.as_ref()).map_err(|e| failed(&e))?;
    let channel = connect(manager, config).await?;
    let request = JoinRequest {
        token: parsed.to_string(),
        csr_pem: key.csr_pem.clone(),
        name: parameters.name.to_string(),
        advertise_addr: parameters.advertise_addr.to_string(),
        data_path_addr: parameters.data_path_addr.to_string(),
        data_path_mtu: parameters.data_path_mtu.get(),
        version: parameters.version,
        node_id: node_id.map(String::from).unwrap_or_default(),
    };
    let response = EnrollmentClient::new(channel).join(request).await?.into_inner();
    joined(key, response)
        .map_err(|e| failed(&format!("the manager at {manager} sent an invalid response: {e}")))
}

fn joined(key: NodeKey, response: JoinResponse) -> Result<Joined, convert::InvalidMessage> {
    Ok(Joined {
        node: convert::required("node", response.node)?.try_into()?,
        cluster: convert::required("cluster", response.cluster)?.try_into()?,
        identity: key.into_identity(response.certificate_pem, response.ca_pem),
        managers: response.managers,
    })
}
