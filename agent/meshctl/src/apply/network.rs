//! Compose's `networks:`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_model::{Mtu, Name, Prefix};

use super::notes::Ignored;
use super::schema::OWN;
use super::yaml::{Invalid, Item, Reason, Section};
use super::{LABEL, Network, Subnet};
use crate::cli::value;

/// Compose's name for the network of services that name none.
pub(super) const DEFAULT_NETWORK: &str = "default";

/// The networks of a file, by their keys in it.
pub(super) type Networks<'a> = BTreeMap<&'a str, Name>;

/// Docker's driver option for a network's MTU.
const DOCKERS_MTU: &str = "com.docker.network.driver.mtu";

/// Reads one network; `name` is its name unless the file sets another.
pub(super) fn read(
    item: Item<'_>,
    name: impl FnOnce(&Item<'_>) -> Result<Name, Invalid>,
    ignored: &mut Vec<Ignored>,
) -> Result<Network, Invalid> {
    let whole = item.clone();
    let mut section = item.section()?;
    let own_name = section.take("name");
    let external = section.take("external");
    // Compose's older form is `external: {name: NAME}`.
    let (external, external_name) = match external {
        None => (false, None),
        Some(external) if external.is_map() => {
            let mut external = external.section()?;
            let name = external.take("name");
            external.finish(ignored);
            (true, name)
        }
        Some(external) => (external.boolean()?, None),
    };
    let name = match own_name.or(external_name) {
        Some(name) => name.parse()?,
        None => name(&whole)?,
    };
    let mut network = Network { external, ..Network::named(name) };
    if external {
        // These settings have no effect here, but must be valid.
        read_own(&mut section, &mut network)?;
        section.finish(ignored);
        return Ok(network);
    }
    if let Some(driver) = section.take("driver") {
        driver.read(known_driver)?;
    }
    for (key, flag) in [
        ("internal", &mut network.internal),
        ("enable_ipv6", &mut network.ipv6),
        ("attachable", &mut network.attachable),
    ] {
        if let Some(value) = section.take(key) {
            *flag = value.boolean()?;
        }
    }
    if let Some(labels) = section.take("labels") {
        network.labels = read_labels(&labels)?;
        // The file must not set the owner of a network.
        if network.labels.remove(LABEL).is_some() {
            ignored.push(labels.ignored());
        }
    }
    if let Some(options) = section.take("driver_opts") {
        read_options(options, &mut network, ignored)?;
    }
    if let Some(ipam) = section.take("ipam") {
        network.subnets = read_ipam(ipam, ignored)?;
    }
    read_own(&mut section, &mut network)?;
    section.finish(ignored);
    Ok(network)
}

/// Reads Mesh's own keys.
fn read_own(section: &mut Section<'_>, network: &mut Network) -> Result<(), Invalid> {
    let Some(own) = section.take(OWN) else { return Ok(()) };
    let mut own = own.section()?;
    own.check_values()?;
    if let Some(encrypted) = own.take("encrypted") {
        network.encrypted = encrypted.boolean()?;
    }
    if let Some(access) = own.take("host-access") {
        network.host_policy.access = access.parse()?;
    }
    if let Some(metadata) = own.take("metadata") {
        network.host_policy.metadata = metadata.parse()?;
    }
    if let Some(mtu) = own.take("mtu") {
        network.mtu = Some(mtu.read(value::mtu)?);
    }
    if let Some(vni) = own.take("vni") {
        network.vni = Some(vni.read(value::vni)?);
    }
    own.finish_own()
}

#[derive(Debug, thiserror::Error)]
#[error("the only driver is overlay")]
struct UnknownDriver;

/// Accepts `default`, which Compose files use for the engine's preferred driver.
fn known_driver(text: &str) -> Result<(), UnknownDriver> {
    if matches!(text, "overlay" | "default") { Ok(()) } else { Err(UnknownDriver) }
}

fn read_options(options: Item<'_>, network: &mut Network, ignored: &mut Vec<Ignored>) -> Result<(), Invalid> {
    let mut options = options.section()?;
    // Docker's option is set by its name alone: an empty value means yes.
    if let Some(encrypted) = options.take_present("encrypted") {
        network.encrypted =
            if encrypted.scalar().is_ok_and(|text| text.is_empty()) { true } else { encrypted.boolean()? };
    }
    for key in ["mtu", DOCKERS_MTU] {
        if let Some(mtu) = options.take(key) {
            let mtu: Mtu = mtu.read(value::mtu)?;
            network.mtu = Some(mtu);
        }
    }
    options.finish(ignored);
    Ok(())
}

fn read_ipam(ipam: Item<'_>, ignored: &mut Vec<Ignored>) -> Result<Vec<Subnet>, Invalid> {
    let mut ipam = ipam.section()?;
    if let Some(driver) = ipam.take("driver")
        && driver.text()? != "default"
    {
        ignored.push(driver.ignored());
    }
    let mut subnets: Vec<Subnet> = Vec::new();
    for config in ipam.take("config").map_or_else(|| Ok(Vec::new()), |config| config.list())? {
        let mut config = config.section()?;
        let subnet: Prefix = config.required("subnet")?.parse()?;
        let mut read = Subnet { subnet, gateway: None, ip_range: None, aux: BTreeMap::new() };
        if let Some(gateway) = config.take("gateway") {
            read.gateway = Some(gateway.parse()?);
        }
        if let Some(range) = config.take("ip_range") {
            read.ip_range = Some(range.parse()?);
        }
        if let Some(aux) = config.take("aux_addresses") {
            for (name, address) in aux.entries()? {
                let ip: IpAddr = address.parse()?;
                if !subnet.contains(ip) {
                    return Err(address.invalid(Reason::Contradiction("it is not in the subnet")));
                }
                if subnets.iter().any(|other| other.aux.contains_key(name)) {
                    return Err(
                        address.invalid(Reason::Contradiction("another subnet has this name already"))
                    );
                }
                read.aux.insert(name.to_owned(), ip);
            }
        }
        config.finish(ignored);
        subnets.push(read);
    }
    ipam.finish(ignored);
    Ok(subnets)
}

/// Reads a map, or a list of `KEY=VALUE` and `KEY`.
fn read_labels(labels: &Item<'_>) -> Result<BTreeMap<String, String>, Invalid> {
    let mut read = BTreeMap::new();
    if labels.is_list() {
        for label in labels.list()? {
            let pair = label.read(value::key_value)?;
            read.insert(pair.key, pair.value);
        }
    } else {
        for (key, value) in labels.entries()? {
            read.insert(key.to_owned(), value.scalar()?);
        }
    }
    Ok(read)
}
