//! An endpoint becomes a backend with its attachment, and ceases to be one with its detachment.

use mesh_model::{Endpoint, Network, ServiceId};
use mesh_proto::v1::control_client::ControlClient;
use mesh_proto::{Problem, v1};

use crate::endpoints::Endpoints;

impl Endpoints {
    /// Adds an endpoint, which was reported to a manager, to the service that it was attached for.
    /// Complete on all nodes when this returns. Fails without a manager.
    pub(crate) async fn serve(&self, network: &Network, endpoint: &Endpoint) -> Result<(), Problem> {
        let Some(service) = &endpoint.service else { return Ok(()) };
        let connected = self.managers.connected().await?;
        let request = v1::AddBackendRequest {
            service: format!("{}/{service}", network.name),
            endpoint: endpoint.id.to_string(),
        };
        ControlClient::new(connected.channel).add_backend(request).await?;
        Ok(())
    }

    /// Takes an endpoint out of its services everywhere, as long as it can still answer. Where that
    /// fails, the manager does it when it receives that the endpoint is gone.
    pub(crate) async fn stop_serving(&self, endpoint: &Endpoint) {
        let services: Vec<ServiceId> = self.agent.read(|state| {
            let of_network = state.view.services.iter();
            let serving = of_network
                .filter(|(_, records)| records.backends.values().any(|b| b.endpoint == endpoint.id));
            serving.map(|(id, _)| id.clone()).collect()
        });
        if services.is_empty() || !self.managers.reachable() {
            return;
        }
        let Ok(connected) = self.managers.connected().await else { return };
        let mut control = ControlClient::new(connected.channel);
        for service in services {
            let request =
                v1::RemoveBackendRequest { service: service.to_string(), endpoint: endpoint.id.to_string() };
            if let Err(status) = control.remove_backend(request).await {
                let name = &endpoint.name;
                tracing::warn!(endpoint = %name, %service, %status, "still a backend while it is detached");
            }
        }
    }
}
