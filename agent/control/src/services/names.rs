//! Warnings about names that several objects of a network share.
//!
//! Services take precedence over endpoints, and endpoints over endpoints' aliases; names and
//! aliases of services are equal (`mesh-dns`).

use mesh_model::{Name, Service};

use super::status::network_name;
use crate::core::Core;
use crate::view::View;

/// Returns one line for each name of a service that another object of its network has too.
pub(crate) fn shared(core: &Core, view: &View, service: &Service) -> Vec<String> {
    let network = network_name(view, &service.network);
    let names = std::iter::once(&service.name).chain(&service.aliases);
    let mut warnings = Vec::new();
    for name in names {
        let what = if *name == service.name { "name" } else { "alias" };
        if let Some(endpoint) = core.endpoints.with_name(&service.network, name).first() {
            warnings.push(format!(
                "endpoint {} of network {network} has the same name as service {}: {name} resolves to the service, and the \
                 endpoint is reached by its address or another alias",
                endpoint.name, service.name
            ));
        }
        for other in others(view, service) {
            let both = |shared: &Name| shared.is_same(name);
            if what == "alias" && both(&other.name) || what == "name" && other.aliases.iter().any(both) {
                warnings.push(format!(
                    "{what} {name} of service {} is also a name of service {} of network {network}: it resolves to the \
                     addresses of both",
                    service.name, other.name
                ));
            }
        }
    }
    warnings
}

/// Returns the other services of its network.
fn others<'a>(view: &'a View, service: &'a Service) -> impl Iterator<Item = &'a Service> {
    let ids = view.services.in_network(&service.network).filter(|id| **id != service.id);
    ids.filter_map(|id| view.services.get(id)).map(|other| &**other)
}
