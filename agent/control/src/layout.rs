//! Division of subnets into blocks.

use mesh_ipam::{SubnetLayout, SubnetSpec};
use mesh_model::Subnet;

/// Returns the layout of a subnet; never `None` for a record, which was validated when it was
/// written.
pub(crate) fn layout(subnet: &Subnet) -> Option<SubnetLayout> {
    SubnetLayout::new(SubnetSpec {
        subnet: subnet.subnet,
        gateway: Some(subnet.gateway),
        ip_range: subnet.ip_range,
        aux: subnet.aux.clone(),
    })
    .ok()
}
