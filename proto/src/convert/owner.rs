//! Owners of endpoints.

use mesh_model::{Owner, Runtime};

use super::field::{InvalidMessage, parse};
use crate::v1;

impl From<&Owner> for v1::Owner {
    fn from(owner: &Owner) -> Self {
        Self {
            runtime: owner.runtime().as_str().to_owned(),
            config: owner.config().to_owned(),
            container: owner.container().to_owned(),
            ifname: owner.ifname().to_string(),
        }
    }
}

impl TryFrom<&v1::Owner> for Owner {
    type Error = InvalidMessage;

    fn try_from(owner: &v1::Owner) -> Result<Self, InvalidMessage> {
        let invalid = |reason: String| InvalidMessage { field: "owner", reason };
        if owner.runtime != Runtime::Cni.as_str() {
            let shown: String = owner.runtime.escape_debug().take(20).collect();
            return Err(invalid(format!("{shown} is no runtime that this version knows")));
        }
        let ifname = parse("owner", &owner.ifname)?;
        Self::new(Runtime::Cni, &owner.config, &owner.container, ifname)
            .map_err(|error| invalid(error.to_string()))
    }
}
