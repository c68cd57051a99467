//! ADD: a container is attached to the configuration's network.

use mesh_cni::error::Code;
use mesh_cni::{Call, CniError, version};
use mesh_handle::{AgentHandle, Readiness};
use mesh_model::Owner;
use mesh_proto::{ProblemKind, v1};
use serde_json::Value;

use crate::args::Args;
use crate::config::{self, Config};
use crate::{network, problems, result};

/// Characters of a container's id that name an endpoint if nothing else does, as Docker and podman
/// show ids.
const SHORT_ID: usize = 12;
/// Most characters of an endpoint's name.
const NAME: usize = 63;

/// Attaches the container, and returns the result.
pub(crate) async fn add(
    agent: &dyn AgentHandle,
    call: &Call,
    config: &Config,
    owner: &Owner,
) -> Result<Value, CniError> {
    let version = version::of(&call.config)?;
    if let Readiness::NotMember(problem) = agent.readiness() {
        return Err(problems::with_code(Code::TryAgain, problem));
    }
    agent
        .check_namespace(&call.netns)
        .await
        .map_err(|problem| problems::with_code(Code::InvalidEnvironment, problem))?;
    let request = request(call, config, owner)?;
    attach(agent, config, request).await?;
    let attachment = agent.attachment(owner).map_err(problems::error)?;
    let attachment = attachment
        .ok_or_else(|| CniError::new(Code::Failed, format!("{owner} was detached while it was attached")))?;
    Ok(result::of(version, &attachment, config.previous.as_ref()))
}

/// Attaches, and creates the network first if the configuration has options for it and it does not
/// exist.
async fn attach(
    agent: &dyn AgentHandle,
    config: &Config,
    request: v1::AttachRequest,
) -> Result<(), CniError> {
    let attached = agent.attach(request.clone()).await;
    match (attached, &config.create) {
        (Err(problem), Some(options)) if problem.kind == ProblemKind::NotFound => {
            network::create(agent, &config.network, options).await?;
            agent.attach(request).await.map(drop).map_err(problems::error)
        }
        (attached, _) => attached.map(drop).map_err(problems::error),
    }
}

/// What a runtime says about the container, as an attach. `args.cni` goes before `CNI_ARGS`.
fn request(call: &Call, config: &Config, owner: &Owner) -> Result<v1::AttachRequest, CniError> {
    let args = Args::parse(&call.args)?;
    let container = config.container()?;
    let mut addresses = container.addresses.clone();
    if addresses.is_empty()
        && let Some(text) = args.get("IP")
    {
        for text in text.split(',') {
            addresses.push(config::address(text).ok_or_else(|| {
                CniError::new(Code::InvalidConfig, format!("IP {text:?} of CNI_ARGS is no address"))
            })?);
        }
    }
    let of_family = |is_v4: bool| {
        let mut own = addresses.iter().filter(|address| address.is_ipv4() == is_v4);
        match (own.next(), own.next()) {
            (_, Some(second)) => Err(CniError::new(
                Code::InvalidConfig,
                format!("{second} is a second address of its family: an endpoint has one"),
            )),
            (first, None) => Ok(first.map(ToString::to_string).unwrap_or_default()),
        }
    };
    let text = |own: &Option<String>, key: &str| own.clone().or_else(|| args.get(key).map(str::to_owned));
    let service = text(&container.service, "MESH_SERVICE").or_else(|| config.service.clone());
    let asked = text(&container.name, "MESH_NAME");
    let derived = || derived_name(args.get("K8S_POD_NAME"), owner.container());
    Ok(v1::AttachRequest {
        network: config.network.clone(),
        netns: call.netns.clone(),
        pid: 0,
        name: asked.unwrap_or_else(derived),
        ip: of_family(true)?,
        ip6: of_family(false)?,
        mac: text(&container.mac, "MAC").unwrap_or_default(),
        ifname: call.ifname.clone(),
        aliases: container.aliases.clone(),
        service: service.unwrap_or_default(),
        allow_forwarding: false,
        owner: Some(owner.into()),
        // A sandbox is often started again under its pod's name before the old one is gone.
        name_may_change: true,
    })
}

/// A pod's name, or the short id of a container without one.
fn derived_name(pod: Option<&str>, container: &str) -> String {
    let name: String = pod.unwrap_or_default().chars().take(NAME).collect();
    let name = name.trim_end_matches(['.', '-', '_']);
    if name.is_empty() { container.chars().take(SHORT_ID).collect() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use mesh_cni::Command;
    use mesh_model::Runtime;

    use super::*;

    fn of(args: &str, config: &str) -> Result<v1::AttachRequest, CniError> {
        let call = Call {
            command: Command::Add,
            container: "f09415a0a022f927281c".into(),
            ifname: "eth0".into(),
            netns: "/run/netns/a".into(),
            args: args.into(),
            config: config.into(),
        };
        let config = Config::parse(config)?;
        let owner = Owner::new(Runtime::Cni, &config.name, &call.container, "eth0".parse().unwrap()).unwrap();
        request(&call, &config, &owner)
    }

    #[test]
    fn podmans_way_of_asking_for_an_address_and_a_mac_is_understood() {
        let args = "IgnoreUnknown=1;K8S_POD_NAME=web;MAC=82:92:d5:dd:fa:8e;IP=10.79.0.80";
        let request = of(args, r#"{"name":"app"}"#).unwrap();
        assert_eq!((request.name.as_str(), request.ip.as_str()), ("web", "10.79.0.80"));
        assert_eq!(request.mac, "82:92:d5:dd:fa:8e");
    }

    #[test]
    fn a_container_without_a_name_has_its_short_id_as_name() {
        assert_eq!(of("", r#"{"name":"app"}"#).unwrap().name, "f09415a0a022");
        let long = format!("K8S_POD_NAME={}.{}", "a".repeat(62), "b".repeat(100));
        assert_eq!(of(&long, r#"{"name":"app"}"#).unwrap().name, "a".repeat(62));
    }

    #[test]
    fn arguments_of_the_configuration_go_before_those_of_the_environment() {
        let config =
            r#"{"name":"app","service":"all","args":{"cni":{"ips":["10.79.0.5/24"],"MESH_SERVICE":"web"}}}"#;
        let request = of("IP=10.79.0.80;MESH_SERVICE=other", config).unwrap();
        assert_eq!((request.ip.as_str(), request.service.as_str()), ("10.79.0.5", "web"));
        assert_eq!(of("", r#"{"name":"app","service":"all"}"#).unwrap().service, "all");
    }

    #[test]
    fn an_endpoint_has_one_address_of_each_family() {
        let both = of("IP=10.79.0.5,fd00::5", r#"{"name":"app"}"#).unwrap();
        assert_eq!((both.ip.as_str(), both.ip6.as_str()), ("10.79.0.5", "fd00::5"));
        assert_eq!(of("IP=10.79.0.5,10.79.0.6", r#"{"name":"app"}"#).unwrap_err().code.number(), 7);
        assert_eq!(of("IP=nonsense", r#"{"name":"app"}"#).unwrap_err().code.number(), 7);
    }
}
