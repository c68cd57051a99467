//! Calls to the manager in bulk: a process for each of a hundred thousand would measure processes.

use std::{
    io,
    net::Ipv4Addr,
    ops::Range,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use hyper_util::rt::TokioIo;
use mesh_proto::v1::{self, control_client::ControlClient};
use tokio::{net::UnixStream, runtime::Runtime};
use tonic::transport::{Channel, Endpoint};

/// Calls under way at once.
const AT_ONCE: usize = 64;

/// A connection to a manager's own socket.
pub(super) struct Manager {
    runtime: Runtime,
    client: ControlClient<Channel>,
}

impl Manager {
    pub(super) fn connect(socket: &Path) -> anyhow::Result<Self> {
        let runtime = Runtime::new().context("start a runtime")?;
        let client = runtime.block_on(async {
            let stream = UnixStream::connect(socket).await.context("connect to the manager")?;
            let mut stream = Some(TokioIo::new(stream));
            let connector = tower::service_fn(move |_| {
                std::future::ready(stream.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
            });
            let channel = Endpoint::from_static("http://meshd").connect_with_connector(connector).await?;
            anyhow::Ok(ControlClient::new(channel))
        })?;
        Ok(Self { runtime, client })
    }

    /// Creates the services `s0`, `s1`, ... of these numbers, each with all the endpoints; their
    /// virtual addresses.
    pub(super) fn create(
        &self,
        network: &str,
        numbers: Range<usize>,
        endpoints: &[String],
    ) -> anyhow::Result<Vec<Ipv4Addr>> {
        let one = async |number: usize| {
            let mut client = self.client.clone();
            let name = format!("s{number}");
            let request = v1::CreateServiceRequest {
                name: name.clone(),
                network: network.to_owned(),
                ..Default::default()
            };
            let status = client.create_service(request).await?.into_inner();
            for endpoint in endpoints {
                let request = v1::AddBackendRequest { service: name.clone(), endpoint: endpoint.clone() };
                client.add_backend(request).await?;
            }
            let vip = status.service.unwrap_or_default().vip;
            vip.parse::<Ipv4Addr>().with_context(|| format!("service {name} has no VIP: `{vip}`"))
        };
        self.runtime.block_on(stream::iter(numbers).map(one).buffered(AT_ONCE).try_collect())
    }

    /// Milliseconds until a change of one backend is in the kernel of every node: the mean of
    /// taking it out and back.
    pub(super) fn drain_and_activate(&self, service: &str, endpoint: &str) -> anyhow::Result<f64> {
        let (service, endpoint) = (service.to_owned(), endpoint.to_owned());
        let mut client = self.client.clone();
        let took: Duration = self.runtime.block_on(async {
            let begin = Instant::now();
            client
                .drain_backend(v1::DrainBackendRequest {
                    service: service.clone(),
                    endpoint: endpoint.clone(),
                })
                .await?;
            client.activate_backend(v1::ActivateBackendRequest { service, endpoint }).await?;
            anyhow::Ok(begin.elapsed())
        })?;
        Ok(took.as_secs_f64() * 1e3 / 2.0)
    }
}
