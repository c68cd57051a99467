//! Removing a service with its backends.

use mesh_model::Service;
use mesh_proto::v1::ServiceStatus;
use mesh_proto::{Problem, ProblemKind};
use mesh_store::{Compare, Op, Txn};
use tracing::info;

use super::ports::PortRecords;
use super::update::interested;
use super::{status, wait_applied};
use crate::core::Core;
use crate::keys;
use crate::records::{Tries, Versioned};
use crate::resolve::{check_removable, resolve_service};

/// Removes a service, and returns once every live agent concerned has applied that.
pub(crate) async fn remove(core: &Core, text: &str) -> Result<ServiceStatus, Problem> {
    let found = resolve_service(core, text).await?;
    check_removable("service", text, &found.name)?;
    let mut tries = Tries::default();
    loop {
        tries.next()?;
        core.catch_up().await?;
        let key = keys::service_name(&found.network, &found.name.folded());
        let reads = [Op::get(keys::service(&found.id)), Op::get(key.clone())].into_iter();
        let mut read = core.records.read(reads.chain(PortRecords::reads(&found.ports))).await?;
        let Some(Versioned { value: service, revision }) = read.one::<Service>()? else {
            return Err(Problem::new(ProblemKind::NotFound, format!("service {text} no longer exists")));
        };
        // A service from before names ignored case may not own its folded name.
        let folded = read.one::<mesh_model::ServiceId>()?.filter(|owner| owner.value == service.id);
        let mut records = if service.ports == found.ports {
            PortRecords::of(&found.ports, &mut read)?
        } else {
            let mut read = core.records.read(PortRecords::reads(&service.ports)).await?;
            PortRecords::of(&service.ports, &mut read)?
        };
        for port in &service.ports {
            records.remove(port, &service.id);
        }
        let (mut compares, mut ops) = records.write();
        compares.push(Compare::mod_revision(keys::service(&service.id), revision));
        ops.extend([
            Op::delete(keys::service(&service.id)),
            Op::delete(keys::service_name(&service.network, &service.name)),
            Op::delete_range(keys::backends_of(&service.id)),
        ]);
        ops.extend(folded.map(|_| Op::delete(key)));
        ops.extend(service.vips().map(|vip| Op::delete(keys::vip(&service.network, vip))));
        let interested = interested(core, &service);
        let last = status(core, &std::sync::Arc::new(service.clone()));
        let backends = core.feed.view().services.backends_of(&service.id);
        let Some(revision) = core.records.commit(Txn::when(compares).then(ops)).await? else { continue };
        info!(service = %service.id, name = %service.name, "a service was removed");
        core.health.forget(backends.iter().map(|backend| (backend.node.clone(), backend.id)));
        wait_applied(core, &service, revision.0, interested).await;
        return Ok(last);
    }
}
