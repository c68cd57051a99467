//! `meshctl network ...`

use std::collections::{BTreeMap, HashMap};

use mesh_proto::{Problem, ProblemKind, v1};

use super::confirm::confirm;
use super::results::{each, ids, inspect, list_of};
use crate::cli::network::{Command, Create, Ls, Prune, Update};
use crate::cli::value::{AuxAddress, KeyValue};
use crate::client::{Client, incomplete};
use crate::filter::{Filter, NetworkKey, matches_all};
use crate::format::Format;
use crate::report::{self, Report};
use crate::table::{columns, details, list, or_none, short, yes_no};
use crate::view::{DRIVER, Named, Network, NetworkCounter};

/// Docker's spelling of `--encrypted`.
const ENCRYPTED_OPTION: &str = "encrypted";

pub(super) async fn run(client: &Client, command: Command, format: Option<Format>) -> Report {
    match command {
        Command::Create(create) => self::create(client, *create, format).await.into(),
        Command::Update(update) => self::update(client, update, format).await.into(),
        Command::Ls(ls) => self::ls(client, &ls, format).await.into(),
        Command::Inspect(names) => {
            inspect(names.networks, format, async |name| one(client, name).await, as_details).await
        }
        Command::Rm(names) => {
            let removed = each(names.networks, async |network| {
                let request = v1::RemoveNetworkRequest { network };
                let answer = client.call(client.control().await?.remove_network(request)).await?;
                let network = answer.network.ok_or_else(|| incomplete("network"))?;
                Ok(Named { id: network.id, name: network.name })
            });
            list_of(removed.await, format, |network| network.name.clone())
        }
        Command::Prune(prune) => self::prune(client, &prune, format).await,
    }
}

async fn create(client: &Client, create: Create, format: Option<Format>) -> Result<String, Problem> {
    let request = create_request(create)?;
    let network = client.call(client.control().await?.create_network(request)).await?;
    if format != Some(Format::Json) {
        return Ok(format!("{}\n", network.id));
    }
    let mtu = counters(client, network.vni).await?.1;
    report::json(&Network::new(network, Vec::new(), mtu))
}

async fn update(client: &Client, update: Update, format: Option<Format>) -> Result<String, Problem> {
    let request = v1::UpdateNetworkRequest {
        network: update.network,
        host_access: update.host_access.map_or(v1::HostAccess::Unspecified, Into::into).into(),
        metadata: update.metadata.map_or(v1::MetadataAccess::Unspecified, Into::into).into(),
    };
    let network = client.call(client.control().await?.update_network(request)).await?;
    if format != Some(Format::Json) {
        return Ok(format!("{}\n", network.name));
    }
    let mtu = counters(client, network.vni).await?.1;
    report::json(&Network::new(network, Vec::new(), mtu))
}

fn create_request(create: Create) -> Result<v1::CreateNetworkRequest, Problem> {
    let mut options = key_values(create.opt);
    let encrypted = create.encrypted | encrypted_option(&mut options)?;
    Ok(v1::CreateNetworkRequest {
        name: create.name.into(),
        driver: create.driver,
        subnets: create.subnet.iter().map(ToString::to_string).collect(),
        gateways: create.gateway.iter().map(ToString::to_string).collect(),
        ip_ranges: create.ip_range.iter().map(ToString::to_string).collect(),
        aux: aux_addresses(create.aux_address)?,
        ipv6: create.ipv6,
        internal: create.internal,
        attachable: create.attachable,
        host_access: v1::HostAccess::from(create.host_access).into(),
        metadata: v1::MetadataAccess::from(create.metadata).into(),
        encrypted,
        mtu: create.mtu.map(Into::into),
        vni: create.vni.map(Into::into),
        labels: key_values(create.label),
        options,
    })
}

/// Takes `-o encrypted` out of the options: whoever knows Docker's spelling must not get a network
/// in the clear.
fn encrypted_option(options: &mut HashMap<String, String>) -> Result<bool, Problem> {
    match options.remove(ENCRYPTED_OPTION).as_deref() {
        None | Some("false") => Ok(false),
        Some("" | "true") => Ok(true),
        Some(other) => Err(Problem::new(
            ProblemKind::Usage,
            format!("network create, option encrypted={other}, must be true or false"),
        )
        .hint("write --encrypted")),
    }
}

/// The last one of a key counts, as with Docker.
fn key_values(pairs: Vec<KeyValue>) -> HashMap<String, String> {
    pairs.into_iter().map(|pair| (pair.key, pair.value)).collect()
}

fn aux_addresses(addresses: Vec<AuxAddress>) -> Result<HashMap<String, String>, Problem> {
    let mut aux = HashMap::new();
    for AuxAddress { name, ip } in addresses {
        if let Some(other) = aux.insert(name.clone(), ip.to_string()) {
            let message = format!("network create, --aux-address {name}={ip}, {name} is already {other}");
            return Err(
                Problem::new(ProblemKind::Usage, message).hint("use a different name for each address")
            );
        }
    }
    Ok(aux)
}

async fn ls(client: &Client, ls: &Ls, format: Option<Format>) -> Result<String, Problem> {
    let answer = client.call(client.control().await?.list_networks(v1::ListNetworksRequest {})).await?;
    let mut networks = answer.networks;
    networks.retain(|network| matches(&ls.filter, network));
    networks.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    if ls.quiet {
        return ids(networks.iter().map(|network| network.id.as_str()), format);
    }
    if format != Some(Format::Json) {
        let headers = ["NETWORK ID", "NAME", "DRIVER", "VNI", "SUBNETS", "FLAGS"];
        return Ok(columns(headers, networks.iter().map(row)));
    }
    let request = v1::ListEndpointsRequest { network: String::new(), node: String::new() };
    let mut endpoints: BTreeMap<String, Vec<v1::Endpoint>> = BTreeMap::new();
    for endpoint in client.call(client.control().await?.list_endpoints(request)).await?.endpoints {
        endpoints.entry(endpoint.network_id.clone()).or_default().push(endpoint);
    }
    let mut views = Vec::new();
    for network in networks {
        let mtu = counters(client, network.vni).await?.1;
        let endpoints = endpoints.remove(&network.id).unwrap_or_default();
        views.push(Network::new(network, endpoints, mtu));
    }
    report::json(&views)
}

fn row(network: &v1::Network) -> [String; 6] {
    let flags = [
        (network.encrypted, "encrypted"),
        (network.internal, "internal"),
        (!network.attachable, "not attachable"),
        (network.host_access() == v1::HostAccess::None, "host access none"),
        (network.host_access() == v1::HostAccess::All, "host access all"),
        (network.metadata() == v1::MetadataAccess::Allow, "metadata allow"),
        (network.removing, "being removed"),
    ];
    [
        short(&network.id),
        network.name.clone(),
        DRIVER.to_owned(),
        network.vni.to_string(),
        list(network.subnets.iter().map(|subnet| &subnet.subnet)),
        list(flags.into_iter().filter_map(|(set, name)| set.then_some(name))),
    ]
}

fn matches(filters: &[Filter<NetworkKey>], network: &v1::Network) -> bool {
    matches_all(filters, |key, value| match key {
        NetworkKey::Driver => value == DRIVER,
        NetworkKey::Id => network.id.starts_with(value),
        NetworkKey::Label => match value.split_once('=') {
            None => network.labels.contains_key(value),
            Some((label, value)) => network.labels.get(label).is_some_and(|have| have == value),
        },
        NetworkKey::Name => network.name.contains(value),
        NetworkKey::Vni => network.vni.to_string() == value,
    })
}

async fn one(client: &Client, network: String) -> Result<Network, Problem> {
    let request = v1::InspectNetworkRequest { network };
    let answer = client.call(client.control().await?.inspect_network(request)).await?;
    let network = answer.network.ok_or_else(|| incomplete("network"))?;
    let (counters, mtu) = counters(client, network.vni).await?;
    Ok(Network { counters: Some(counters), ..Network::new(network, answer.endpoints, mtu) })
}

/// This host's counters of a network and the MTU that endpoints get here; nothing for a network
/// that the host's data path does not know.
async fn counters(client: &Client, vni: u32) -> Result<(Vec<NetworkCounter>, Option<u32>), Problem> {
    let request = v1::NetworkCountersRequest { vni };
    match client.call(client.local().await?.network_counters(request)).await {
        Ok(answer) => {
            let mtu = (answer.mtu != 0).then_some(answer.mtu);
            Ok((answer.counters.into_iter().map(Into::into).collect(), mtu))
        }
        Err(problem) if problem.kind == ProblemKind::NotFound => Ok((Vec::new(), None)),
        Err(problem) => Err(problem),
    }
}

fn as_details(network: &Network) -> String {
    let pair = |(key, value): (&String, &String)| format!("{}={}", key.escape_debug(), value.escape_debug());
    let mut text = details([
        ("ID", network.id.clone()),
        ("Name", network.name.clone()),
        ("Driver", network.driver.to_owned()),
        ("VNI", network.vni.to_string()),
        ("MTU", or_none(network.mtu)),
        ("Encrypted", yes_no(network.encrypted)),
        ("Internal", yes_no(network.internal)),
        ("Attachable", yes_no(network.attachable)),
        ("Hosts", network.host_access.to_owned()),
        ("Metadata", network.metadata.to_owned()),
        ("Labels", list(network.labels.iter().map(pair))),
        ("Options", list(network.options.iter().map(pair))),
        ("Created", network.created_at.clone()),
    ]);
    let subnets = network.subnets.iter().map(|subnet| {
        let aux = list(subnet.aux.iter().map(pair));
        [subnet.subnet.clone(), subnet.gateway.clone(), or_none(subnet.ip_range.as_ref()), aux]
    });
    text += "\n";
    text += &columns(["SUBNET", "GATEWAY", "RANGE", "AUXILIARY ADDRESSES"], subnets);
    if !network.endpoints.is_empty() {
        text += "\n";
        text += &super::endpoint::as_columns(&network.endpoints);
    }
    let counters = network.counters.as_deref().unwrap_or_default();
    if !counters.is_empty() {
        let rows = counters
            .iter()
            .map(|counter| [counter.reason.clone(), counter.packets.to_string(), counter.bytes.to_string()]);
        text += "\n";
        text += &columns(["COUNTER", "PACKETS", "BYTES"], rows);
    }
    text
}

async fn prune(client: &Client, prune: &Prune, format: Option<Format>) -> Report {
    match pruned(client, prune).await {
        Err(problem) => problem.into(),
        Ok(removed) => list_of((removed, Vec::new()), format, |network| network.name.clone()),
    }
}

async fn pruned(client: &Client, prune: &Prune) -> Result<Vec<Named>, Problem> {
    if !prune.force {
        let question = "This removes all networks without endpoints.";
        confirm("network prune", question, "use -f to remove without confirmation")?;
    }
    let answer = client.call(client.control().await?.prune_networks(v1::PruneNetworksRequest {})).await?;
    Ok(answer.removed.into_iter().map(|gone| Named { id: gone.id, name: gone.name }).collect())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command as Top};

    fn request(flags: &str) -> Result<v1::CreateNetworkRequest, Problem> {
        let line = format!("meshctl network create {flags} app");
        match Cli::try_parse_from(line.split_whitespace()).unwrap().command {
            Top::Network { command: Command::Create(create) } => create_request(*create),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn networks_are_attachable_unless_told_otherwise() {
        for (flags, attachable) in
            [("", true), ("--attachable", true), ("--attachable=true", true), ("--attachable=false", false)]
        {
            assert_eq!(request(flags).unwrap().attachable, attachable, "{flags}");
        }
    }

    #[test]
    fn dockers_spelling_of_encryption_is_never_lost() {
        for (flags, encrypted) in [
            ("", false),
            ("--encrypted", true),
            ("-o encrypted", true),
            ("--opt encrypted=true", true),
            ("-o encrypted=false", false),
            ("--encrypted -o encrypted=false", true),
        ] {
            let request = request(flags).unwrap();
            assert_eq!(request.encrypted, encrypted, "{flags}");
            assert!(request.options.is_empty(), "{flags}");
        }
        assert_eq!(request("-o encrypted=maybe").unwrap_err().kind, ProblemKind::Usage);
    }

    #[test]
    fn an_auxiliary_name_is_given_once() {
        let request_ok = request("--aux-address a=10.0.0.1 --aux-address b=10.0.0.2").unwrap();
        assert_eq!(request_ok.aux.len(), 2);
        let twice = request("--aux-address a=10.0.0.1 --aux-address a=10.0.0.2").unwrap_err();
        assert_eq!(twice.kind, ProblemKind::Usage);
    }

    #[test]
    fn a_network_is_found_by_each_of_its_filters() {
        let network = v1::Network {
            id: "abc123".into(),
            name: "front-web".into(),
            vni: 4096,
            labels: HashMap::from([("tier".into(), "web".into())]),
            ..Default::default()
        };
        let passes = |text: &str| matches(&[crate::filter::parse(text).unwrap()], &network);
        for good in
            ["driver=overlay", "id=abc", "label=tier", "label=tier=web", "name=front", "name=web", "vni=4096"]
        {
            assert!(passes(good), "{good}");
        }
        for bad in ["driver=bridge", "id=bc", "label=web", "label=tier=db", "name=back", "vni=409"] {
            assert!(!passes(bad), "{bad}");
        }
    }
}
