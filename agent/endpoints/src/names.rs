//! Names that an endpoint shares with services of its network: the services have them.

use mesh_model::Endpoint;
use mesh_state::State;

/// One line for each name of the endpoint that resolves to a service instead.
pub(super) fn shared(state: &State, endpoint: &Endpoint) -> Vec<String> {
    let services = state.view.services.values().map(|records| &records.service);
    let services: Vec<_> = services.filter(|service| service.network == endpoint.network).collect();
    let names =
        std::iter::once((&endpoint.name, "name")).chain(endpoint.aliases.iter().map(|name| (name, "alias")));
    let warning = |(name, what): (&mesh_model::Name, &str)| {
        let service = services.iter().find(|service| {
            std::iter::once(&service.name).chain(&service.aliases).any(|own| own.is_same(name))
        })?;
        Some(format!(
            "{what} {name} of endpoint {} is also a name of service {}: it resolves to the service, and the endpoint is \
             reached by its address or another alias",
            endpoint.name, service.name
        ))
    };
    names.filter_map(warning).collect()
}
