//! What all calls and sessions of one manager share.

use std::fmt;
use std::sync::Arc;

use mesh_model::NodeId;
use mesh_model::cluster::Cluster;
use tokio::task::JoinSet;

use crate::identity::{CertificateAuthority, PeerIdentity};
use crate::records::{RecordError, Records};

/// One manager's state.
pub(crate) struct Core {
    pub(crate) records: Records,
    pub(crate) authority: CertificateAuthority,
    cluster: Cluster,
    own: PeerIdentity,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("cluster", &self.cluster.id)
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

impl Core {
    pub(crate) async fn start(
        records: Records,
        authority: CertificateAuthority,
        cluster: Cluster,
        own: PeerIdentity,
        tasks: &mut JoinSet<()>,
    ) -> Result<Arc<Self>, RecordError> {
        Ok(Arc::new(Self { records, authority, cluster, own }))
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    pub(crate) fn own(&self) -> &PeerIdentity {
        &self.own
    }

    pub(crate) fn node_id(&self) -> &NodeId {
        &self.own.node
    }

    pub(crate) fn end_sessions(&self) {}
}
