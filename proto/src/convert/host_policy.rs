//! What the containers of a network may reach of the hosts.

use mesh_model as model;

use super::field::{InvalidMessage, enumeration, known};
use crate::v1;

enumeration!(HostAccess { None, Dns, All }, unspecified: Ok(Self::default()));
enumeration!(MetadataAccess { Block, Allow }, unspecified: Ok(Self::default()));

/// Reads a policy; what is unspecified has its default.
pub fn read(access: i32, metadata: i32) -> Result<model::HostPolicy, InvalidMessage> {
    change(model::HostPolicy::default(), access, metadata)
}

/// Reads a change of a policy; what is unspecified stays.
pub fn change(
    policy: model::HostPolicy,
    access: i32,
    metadata: i32,
) -> Result<model::HostPolicy, InvalidMessage> {
    Ok(model::HostPolicy {
        access: match known("host_access", access)? {
            v1::HostAccess::Unspecified => policy.access,
            access => access.try_into()?,
        },
        metadata: match known("metadata", metadata)? {
            v1::MetadataAccess::Unspecified => policy.metadata,
            metadata => metadata.try_into()?,
        },
    })
}
