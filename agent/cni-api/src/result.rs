//! The result of an ADD in the form of each version of the specification.

use mesh_handle::{AttachedAddress, Attachment};
use serde_json::{Map, Value, json};

/// The result of the plugin before this one, with this attachment added to it.
pub(crate) fn of(version: &str, attachment: &Attachment, previous: Option<&Value>) -> Value {
    let mut result = previous.and_then(Value::as_object).cloned().unwrap_or_default();
    result.insert("cniVersion".to_owned(), version.into());
    let interfaces = list(&mut result, "interfaces");
    interfaces.push(json!({ "name": attachment.host_ifname.as_str() }));
    let inner = interfaces.len();
    interfaces.push(inner_interface(version, attachment));
    let addresses = attachment.addresses.iter().map(|address| ip(version, *address, inner));
    list(&mut result, "ips").extend(addresses);
    if !attachment.internal {
        let routes = attachment.addresses.iter().map(|address| default_route(*address));
        list(&mut result, "routes").extend(routes);
    }
    let dns = result.entry("dns").or_insert_with(|| json!({}));
    if dns.get("nameservers").is_none() {
        *dns = name_servers(attachment);
    }
    Value::Object(result)
}

/// The list in a field, which is created if it is absent or something else.
fn list<'a>(result: &'a mut Map<String, Value>, key: &str) -> &'a mut Vec<Value> {
    let value = result.entry(key).or_insert_with(|| json!([]));
    if !value.is_array() {
        *value = json!([]);
    }
    value.as_array_mut().expect("it was made an array")
}

fn inner_interface(version: &str, attachment: &Attachment) -> Value {
    let mut interface = json!({
        "name": attachment.endpoint.ifname,
        "mac": attachment.endpoint.mac,
        "sandbox": attachment.netns,
    });
    // Since 1.1.0.
    if let (Some(mtu), "1.1.0") = (attachment.mtu, version) {
        interface["mtu"] = mtu.into();
    }
    interface
}

fn ip(version: &str, attached: AttachedAddress, interface: usize) -> Value {
    let AttachedAddress { address, prefix_len, gateway } = attached;
    let mut ip = json!({
        "address": format!("{address}/{prefix_len}"),
        "gateway": gateway,
        "interface": interface,
    });
    // Until 1.0.0.
    if version.starts_with("0.") {
        ip["version"] = if address.is_ipv4() { "4" } else { "6" }.into();
    }
    ip
}

fn default_route(attached: AttachedAddress) -> Value {
    let destination = if attached.address.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    json!({ "dst": destination, "gw": attached.gateway })
}

fn name_servers(attachment: &Attachment) -> Value {
    let Some(dns) = &attachment.endpoint.dns else { return json!({}) };
    let mut object = json!({ "nameservers": dns.nameservers });
    if !dns.search.is_empty() {
        object["search"] = dns.search.clone().into();
    }
    if !dns.options.is_empty() {
        object["options"] = dns.options.clone().into();
    }
    object
}

#[cfg(test)]
mod tests {
    use mesh_proto::v1;

    use super::*;

    fn attachment() -> Attachment {
        let address = |address: &str, prefix_len, gateway: &str| AttachedAddress {
            address: address.parse().unwrap(),
            prefix_len,
            gateway: gateway.parse().unwrap(),
        };
        Attachment {
            endpoint: v1::Endpoint {
                ifname: "eth0".into(),
                mac: "02:42:0a:40:00:02".into(),
                dns: Some(v1::Dns {
                    nameservers: vec!["10.64.0.1".into()],
                    search: vec![],
                    options: vec!["ndots:0".into()],
                }),
                ..v1::Endpoint::default()
            },
            host_ifname: "mesh01234567".parse().unwrap(),
            netns: "/run/netns/a".into(),
            mtu: Some(1450),
            addresses: vec![address("10.64.0.2", 20, "10.64.0.1"), address("fd00::2", 64, "fd00::1")],
            internal: false,
        }
    }

    #[test]
    fn both_ends_addresses_routes_and_name_servers_are_in_the_result() {
        let expected = json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                { "name": "mesh01234567" },
                { "name": "eth0", "mac": "02:42:0a:40:00:02", "sandbox": "/run/netns/a", "mtu": 1450 },
            ],
            "ips": [
                { "address": "10.64.0.2/20", "gateway": "10.64.0.1", "interface": 1 },
                { "address": "fd00::2/64", "gateway": "fd00::1", "interface": 1 },
            ],
            "routes": [{ "dst": "0.0.0.0/0", "gw": "10.64.0.1" }, { "dst": "::/0", "gw": "fd00::1" }],
            "dns": { "nameservers": ["10.64.0.1"], "options": ["ndots:0"] },
        });
        assert_eq!(of("1.1.0", &attachment(), None), expected);
    }

    #[test]
    fn older_versions_have_their_own_fields() {
        let old = of("0.4.0", &attachment(), None);
        assert_eq!(
            (old["ips"][0]["version"].as_str(), old["ips"][1]["version"].as_str()),
            (Some("4"), Some("6"))
        );
        let new = of("1.0.0", &attachment(), None);
        assert!(new["ips"][0].get("version").is_none() && new["interfaces"][1].get("mtu").is_none());
    }

    #[test]
    fn an_internal_network_has_no_default_route() {
        let result = of("1.0.0", &Attachment { internal: true, ..attachment() }, None);
        assert!(result.get("routes").is_none());
    }

    #[test]
    fn the_result_of_an_earlier_plugin_is_kept_and_extended() {
        let previous = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "br0" }],
            "ips": [{ "address": "10.9.0.2/24", "interface": 0 }],
            "dns": { "nameservers": ["10.9.0.1"] },
        });
        let result = of("1.0.0", &attachment(), Some(&previous));
        assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
        assert_eq!(result["ips"][1]["interface"], 2);
        assert_eq!(result["dns"], previous["dns"]);
    }
}
