//! Differences between existing and declared objects, and changes that are impossible.

use std::collections::BTreeSet;
use std::fmt::Debug;

use mesh_model::{Name, PublishedPort};

use super::{LABEL, Network, Service};

/// Why a file cannot be applied to the current state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Conflict {
    /// The object would have to be recreated.
    #[error("{object}, cannot be changed in place: {settings}")]
    CannotChange {
        /// The object, by kind and name.
        object: String,
        /// The differences, separated by commas.
        settings: String,
    },
    /// The object belongs to another project or to none, and differs from the file.
    #[error("{object}, exists, is not of project {project} and differs from the file: {settings}")]
    Foreign {
        /// The object, by kind and name.
        object: String,
        /// The file's project.
        project: String,
        /// The differences, separated by commas.
        settings: String,
    },
    /// A published port belongs to a service that keeps it.
    #[error("service {service}, published port {port}, service {owner} has {taken}")]
    PortTaken {
        /// The service that declares it.
        service: String,
        /// The declared port.
        port: String,
        /// The service that has it.
        owner: String,
        /// The port there.
        taken: PublishedPort,
    },
    /// An external network does not exist.
    #[error("network {0}, is external and does not exist")]
    NoSuchNetwork(Name),
}

/// Returns the differences of a network, as text.
pub(super) fn network(declared: &Network, there: &mesh_model::Network, is_ours: bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut differs = |what: &str, is: &dyn Debug, should: &dyn Debug, same: bool| {
        if !same {
            found.push(format!("{what} is {is:?}, should be {should:?}"));
        }
    };
    let (is, should) = (there.internal, declared.internal);
    differs("internal", &is, &should, is == should);
    let (is, should) = (there.encrypted, declared.encrypted);
    differs("encrypted", &is, &should, is == should);
    let (is, should) = (there.attachable, declared.attachable);
    differs("attachable", &is, &should, is == should);
    let (is, should) = (there.mtu, declared.mtu);
    differs("mtu", &is.map(mesh_model::Mtu::get), &should.map(mesh_model::Mtu::get), is == should);
    if let Some(vni) = declared.vni {
        differs("vni", &there.vni.get(), &vni.get(), there.vni == vni);
    }
    if is_ours {
        let mut is = there.labels.clone();
        is.remove(LABEL);
        differs("labels", &is, &declared.labels, is == declared.labels);
    }
    found.extend(subnets(declared, there));
    found
}

/// A family without a declared subnet gets one that the cluster chooses: IPv4 always, IPv6 if
/// enabled.
fn subnets(declared: &Network, there: &mesh_model::Network) -> Vec<String> {
    let mut found = Vec::new();
    for (family, is_v4) in [("IPv4", true), ("IPv6", false)] {
        let wanted: Vec<_> =
            declared.subnets.iter().filter(|subnet| subnet.subnet.first().is_ipv4() == is_v4).collect();
        let have: Vec<_> =
            there.subnets.iter().filter(|subnet| subnet.subnet.first().is_ipv4() == is_v4).collect();
        let automatic = is_v4 || declared.ipv6;
        if wanted.is_empty() {
            if have.len() != usize::from(automatic) {
                found.push(format!(
                    "it has {} {family} subnets, should have {}",
                    have.len(),
                    u8::from(automatic)
                ));
            }
            continue;
        }
        let prefixes =
            |subnets: &BTreeSet<_>| subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let is: BTreeSet<_> = have.iter().map(|subnet| subnet.subnet).collect();
        let should: BTreeSet<_> = wanted.iter().map(|subnet| subnet.subnet).collect();
        if is != should {
            found.push(format!("{family} subnets are {}, should be {}", prefixes(&is), prefixes(&should)));
            continue;
        }
        for wanted in wanted {
            let Some(have) = have.iter().find(|have| have.subnet == wanted.subnet) else { continue };
            let same = wanted.gateway.is_none_or(|gateway| gateway == have.gateway)
                && wanted.ip_range == have.ip_range
                && wanted.aux == have.aux;
            if !same {
                found.push(format!("gateway, range or auxiliary addresses of {}", wanted.subnet));
            }
        }
    }
    found
}

/// Returns the differences of a service in properties that can only be set at its creation.
pub(super) fn fixed(declared: &Service, there: &mesh_model::Service) -> Vec<String> {
    let mut found = Vec::new();
    if declared.endpoint_mode != there.endpoint_mode {
        found.push(format!(
            "endpoint mode is {}, should be {}",
            there.endpoint_mode.as_str(),
            declared.endpoint_mode.as_str()
        ));
    }
    if let Some(vip) = declared.vip
        && there.vip != Some(vip)
    {
        found.push(format!("VIP is {}, should be {vip}", crate::table::or_none(there.vip)));
    }
    if let Some(vip) = declared.vip6
        && there.vip6 != Some(vip)
    {
        found.push(format!("VIP is {}, should be {vip}", crate::table::or_none(there.vip6)));
    }
    found
}
