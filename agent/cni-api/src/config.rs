//! The network configuration of a call.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_cni::CniError;
use mesh_cni::error::Code;
use serde_json::Value;

use crate::fields::Fields;

/// A configuration's content, as far as the agent needs it.
#[derive(Debug)]
pub(crate) struct Config {
    /// The configuration's name: part of each attachment's key.
    pub(crate) name: String,
    /// The network of the mesh.
    pub(crate) network: String,
    /// The options by which the network is created if there is none.
    pub(crate) create: Option<Value>,
    /// The service that every container of this configuration serves.
    pub(crate) service: Option<String>,
    value: Value,
    /// The result of the plugin before this one in a chain, or of this one's ADD.
    pub(crate) previous: Option<Value>,
    /// The attachments that a GC is to keep; `None` if there is no list.
    pub(crate) valid: Option<Vec<ValidAttachment>>,
}

/// What a runtime says about one container: `runtimeConfig` and `args.cni`.
#[derive(Debug, Default)]
pub(crate) struct Container {
    /// Addresses that it must have.
    pub(crate) addresses: Vec<IpAddr>,
    /// Its MAC.
    pub(crate) mac: Option<String>,
    /// Further names.
    pub(crate) aliases: Vec<String>,
    /// Its name.
    pub(crate) name: Option<String>,
    /// The service that it serves.
    pub(crate) service: Option<String>,
}

/// An attachment that a GC is to keep.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ValidAttachment {
    pub(crate) container: String,
    pub(crate) ifname: String,
}

impl Config {
    /// Parses a configuration. Fields that are not known are ignored.
    pub(crate) fn parse(text: &str) -> Result<Self, CniError> {
        let value: Value = serde_json::from_str(text).map_err(|error| {
            CniError::new(Code::Decoding, format!("the network configuration is not valid JSON: {error}"))
        })?;
        let fields = Fields::of(&value)?;
        let name = fields.text("name")?;
        let name =
            name.ok_or_else(|| CniError::new(Code::InvalidConfig, "the network configuration has no name"))?;
        let network = fields.text("network")?.unwrap_or(name);
        let (name, network) = (name.to_owned(), network.to_owned());
        Ok(Self {
            name,
            network,
            create: fields.get("create").cloned(),
            service: fields.text("service")?.map(str::to_owned),
            previous: fields.get("prevResult").cloned(),
            valid: valid(&fields)?,
            value,
        })
    }

    /// What the runtime says about this container. Only an ADD reads it: a DEL must succeed
    /// whatever was wrong with the ADD.
    pub(crate) fn container(&self) -> Result<Container, CniError> {
        container(&Fields::of(&self.value)?, &self.name)
    }
}

fn container(fields: &Fields<'_>, name: &str) -> Result<Container, CniError> {
    let runtime = fields.object("runtimeConfig")?;
    refuse_unsupported(&runtime)?;
    let cni = fields.object("args")?.object("cni")?;
    let annotations = annotations(&runtime)?;
    let mut addresses = addresses(&runtime, "ips")?;
    if addresses.is_empty() {
        addresses = self::addresses(&cni, "ips")?;
    }
    let service = annotations.get("mesh.service").map(|text| (*text).to_owned());
    let own_name = annotations.get("mesh.name").map(|text| (*text).to_owned());
    Ok(Container {
        addresses,
        mac: runtime.text("mac")?.or(cni.text("mac")?).map(str::to_owned),
        aliases: aliases(&runtime, name)?,
        name: cni.text("MESH_NAME")?.map(str::to_owned).or(own_name),
        service: cni.text("MESH_SERVICE")?.map(str::to_owned).or(service),
    })
}

/// Capabilities whose values would be promises that are not kept.
fn refuse_unsupported(runtime: &Fields<'_>) -> Result<(), CniError> {
    if has_content(runtime.get("ipRanges")) {
        return Err(runtime.bad("ipRanges", "Mesh leases addresses itself: give the network an --ip-range"));
    }
    if has_content(runtime.get("bandwidth")) {
        return Err(runtime.bad("bandwidth", "Mesh does not limit bandwidth"));
    }
    let wanted = runtime.objects("portMappings")?;
    let published = wanted.iter().map(|port| port.number("hostPort"));
    if published.collect::<Result<Vec<_>, _>>()?.into_iter().any(|port| port.is_some_and(|port| port > 0)) {
        return Err(runtime.bad("portMappings", "publish ports by a service: meshctl service create -p"));
    }
    Ok(())
}

fn has_content(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Object(map)) => {
            map.values().any(|value| !matches!(value, Value::Null) && value.as_u64() != Some(0))
        }
        Some(_) => true,
    }
}

/// All annotations of a pod: the value of containerd's capability.
fn annotations<'a>(runtime: &Fields<'a>) -> Result<BTreeMap<&'a str, &'a str>, CniError> {
    Ok(runtime.object("io.kubernetes.cri.pod-annotations")?.pairs()?.into_iter().collect())
}

/// Aliases: a list by the conventions, or podman's map of lists by network.
fn aliases(runtime: &Fields<'_>, name: &str) -> Result<Vec<String>, CniError> {
    let texts = match runtime.get("aliases") {
        Some(Value::Object(_)) => runtime.object("aliases")?.texts(name)?,
        _ => runtime.texts("aliases")?,
    };
    Ok(texts.into_iter().map(str::to_owned).collect())
}

/// Addresses, each with or without a prefix length.
fn addresses(fields: &Fields<'_>, key: &str) -> Result<Vec<IpAddr>, CniError> {
    let parse = |text: &str| address(text).ok_or_else(|| fields.bad(key, &format!("{text} is no address")));
    fields.texts(key)?.into_iter().map(parse).collect()
}

/// An address, with or without a prefix length, which is the network's in any case.
pub(crate) fn address(text: &str) -> Option<IpAddr> {
    text.split_once('/').map_or(text, |(address, _)| address).parse().ok()
}

/// The list of a GC. The specification names one key; libcni 1.3 also writes the other.
fn valid(fields: &Fields<'_>) -> Result<Option<Vec<ValidAttachment>>, CniError> {
    let key = ["cni.dev/valid-attachments", "cni.dev/attachments"];
    let Some(key) = key.into_iter().find(|key| fields.get(key).is_some()) else { return Ok(None) };
    let attachment = |one: Fields<'_>| {
        let text = |field: &str| {
            one.text(field)?.map(str::to_owned).ok_or_else(|| one.bad(field, "must be a string"))
        };
        Ok(ValidAttachment { container: text("containerID")?, ifname: text("ifname")? })
    };
    fields.objects(key)?.into_iter().map(attachment).collect::<Result<_, CniError>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(runtime: &str) -> Result<Config, CniError> {
        Config::parse(&format!(
            r#"{{"cniVersion":"1.0.0","name":"app","type":"mesh-cni","runtimeConfig":{runtime}}}"#
        ))
    }

    #[test]
    fn the_network_is_the_configurations_name_unless_it_says_otherwise() {
        assert_eq!(parse("{}").unwrap().network, "app");
        let config = Config::parse(r#"{"name":"pods","network":"app"}"#).unwrap();
        assert_eq!((config.name.as_str(), config.network.as_str()), ("pods", "app"));
        assert_eq!(Config::parse("{}").unwrap_err().code.number(), 7);
    }

    #[test]
    fn aliases_are_a_list_or_podmans_map() {
        let podman = parse(r#"{"aliases":{"app":["www","f09415a0a022"],"other":["x"]}}"#).unwrap();
        assert_eq!(podman.container().unwrap().aliases, ["www", "f09415a0a022"]);
        assert_eq!(parse(r#"{"aliases":["www"]}"#).unwrap().container().unwrap().aliases, ["www"]);
    }

    #[test]
    fn keys_compare_without_case() {
        let config = parse(r#"{"IPs":["10.64.0.9/20"],"Mac":"02:42:0a:40:00:09"}"#).unwrap();
        assert_eq!(config.container().unwrap().addresses, ["10.64.0.9".parse::<IpAddr>().unwrap()]);
        assert_eq!(config.container().unwrap().mac.as_deref(), Some("02:42:0a:40:00:09"));
    }

    #[test]
    fn annotations_name_the_service() {
        let config =
            parse(r#"{"io.kubernetes.cri.pod-annotations":{"mesh.service":"web","other":"x"}}"#).unwrap();
        assert_eq!(config.container().unwrap().service.as_deref(), Some("web"));
    }

    #[test]
    fn a_bad_value_is_error_7_that_names_key_and_value() {
        for (runtime, named) in [
            (r#"{"ips":["nonsense"]}"#, "ips [\"nonsense\"]"),
            (r#"{"ips":7}"#, "runtimeConfig.ips 7"),
            (r#"{"ipRanges":[[{"subnet":"10.0.0.0/24"}]]}"#, "runtimeConfig.ipRanges"),
            (r#"{"bandwidth":{"ingressRate":1000}}"#, "runtimeConfig.bandwidth"),
            (r#"{"aliases":{"app":[1]}}"#, "runtimeConfig.aliases.app 1"),
        ] {
            let error = parse(runtime).unwrap().container().unwrap_err();
            assert_eq!(error.code.number(), 7, "{runtime}");
            assert!(error.message.contains(named), "{}", error.message);
        }
        assert_eq!(Config::parse(r#"{"name":7}"#).unwrap_err().code.number(), 7);
    }

    #[test]
    fn capabilities_without_content_and_those_of_others_are_accepted() {
        let config = parse(
            r#"{"ipRanges":[],"bandwidth":{"IngressRate":0},"portMappings":[],"dns":{"Servers":["1.1.1.1"]},"cgroupPath":"/x"}"#,
        );
        assert!(config.unwrap().container().is_ok());
    }

    #[test]
    fn a_list_of_valid_attachments_is_found_under_both_keys() {
        let attachments = r#"[{"containerID":"abc","ifname":"eth0"}]"#;
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            let config = Config::parse(&format!(r#"{{"name":"app","{key}":{attachments}}}"#)).unwrap();
            let one = ValidAttachment { container: "abc".into(), ifname: "eth0".into() };
            assert_eq!(config.valid, Some(vec![one]));
        }
        assert_eq!(Config::parse(r#"{"name":"app"}"#).unwrap().valid, None);
    }
}
