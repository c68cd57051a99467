//! Networks that a configuration has created if there is none: `"create": {..}`.

use mesh_cni::CniError;
use mesh_handle::AgentHandle;
use mesh_proto::v1::control_client::ControlClient;
use mesh_proto::{Problem, ProblemKind, v1};
use serde_json::Value;

use crate::fields::Fields;
use crate::problems;

/// Creates the network, unless another call was faster.
pub(crate) async fn create(agent: &dyn AgentHandle, name: &str, options: &Value) -> Result<(), CniError> {
    let request = request(name, options)?;
    let connection = agent.manager().await.map_err(problems::error)?;
    match ControlClient::new(connection.channel).create_network(request).await.map_err(Problem::from) {
        Err(problem) if problem.kind == ProblemKind::Conflict && exists(agent, name).await => Ok(()),
        created => created.map(drop).map_err(problems::error),
    }
}

async fn exists(agent: &dyn AgentHandle, name: &str) -> bool {
    let Ok(connection) = agent.manager().await else { return false };
    let request = v1::InspectNetworkRequest { network: name.to_owned() };
    ControlClient::new(connection.channel).inspect_network(request).await.is_ok()
}

/// The options of `meshctl network create`, by the same names.
fn request(name: &str, options: &Value) -> Result<v1::CreateNetworkRequest, CniError> {
    let wrapped = serde_json::json!({ "create": options });
    let fields = Fields::of(&wrapped)?.object("create")?;
    let texts = |key: &str| -> Result<Vec<String>, CniError> {
        Ok(fields.texts(key)?.into_iter().map(str::to_owned).collect())
    };
    let number = |key: &str| -> Result<Option<u32>, CniError> {
        let number = fields.number(key)?;
        number.map(|number| u32::try_from(number).map_err(|_| fields.bad(key, "is too large"))).transpose()
    };
    let pairs = |key: &str| -> Result<_, CniError> {
        let pairs = fields.object(key)?.pairs()?;
        Ok(pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    };
    Ok(v1::CreateNetworkRequest {
        name: name.to_owned(),
        subnets: texts("subnet")?,
        gateways: texts("gateway")?,
        ip_ranges: texts("ip-range")?,
        ipv6: fields.flag("ipv6")?,
        internal: fields.flag("internal")?,
        // Whoever creates a network for containers attaches them.
        attachable: true,
        encrypted: fields.flag("encrypted")?,
        mtu: number("mtu")?,
        vni: number("vni")?,
        labels: pairs("labels")?,
        ..v1::CreateNetworkRequest::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_have_the_commands_names() {
        let options = serde_json::json!({ "subnet": "10.9.0.0/24", "encrypted": true, "mtu": 1400, "labels": {"a": "b"} });
        let request = request("app", &options).unwrap();
        assert_eq!(request.subnets, ["10.9.0.0/24"]);
        assert!(request.encrypted && request.attachable && !request.internal);
        assert_eq!((request.mtu, request.labels.get("a").map(String::as_str)), (Some(1400), Some("b")));
    }

    #[test]
    fn a_bad_option_is_error_7_that_names_it() {
        for options in
            [serde_json::json!({"encrypted": "yes"}), serde_json::json!({"mtu": -1}), serde_json::json!([])]
        {
            let error = request("app", &options).unwrap_err();
            assert_eq!(error.code.number(), 7);
            assert!(error.message.starts_with("create"), "{}", error.message);
        }
    }
}
