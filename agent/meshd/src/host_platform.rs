//! The real host and kernel, opened and probed at start.

use std::io;
use std::sync::Arc;

use mesh_host::{SharedKernel, ThisHost, kernel_problem};
use mesh_ipam::Delays;
use mesh_kernel::programs::{Datapath, MapSizes, Options, direct_encapsulation, ensure_bpffs};
use mesh_kernel::{KernelError, LinuxKernel};
use mesh_model::desired::Encapsulation;
use mesh_proto::Problem;
use mesh_reconciler::HostEngines;
use mesh_services::NameServerSettings;
use mesh_state::StatePaths;
use mesh_wireguard::EngineChoice;

use crate::config::{Config, EncapsulationChoice, WireguardEngine};
use crate::platform::Platform;

/// Opens the kernel, or says why an agent cannot work on it.
pub(crate) fn build(config: &Config, paths: StatePaths) -> Result<Platform, Problem> {
    let no_bpf = |error: KernelError| {
        kernel_problem(&error)
            .hint("meshd needs a kernel with eBPF, and root with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN")
    };
    ensure_bpffs(&config.bpffs_dir).map_err(|error| no_bpf(error.into()))?;
    let mut options = Options::new(&config.bpffs_dir);
    options.sizes.backend_tables = config.service_table_entries;
    options.sizes.connections =
        config.connection_entries.unwrap_or_else(|| MapSizes::connections_for(memory()));
    let kernel = LinuxKernel::open(Datapath::new(options)).map_err(no_bpf)?;
    let (encapsulation, encapsulation_reason) = choose(config.encapsulation, direct_encapsulation);
    Ok(Platform {
        paths,
        host: Arc::new(ThisHost),
        kernel: SharedKernel::new(Box::new(kernel)),
        encapsulation,
        encapsulation_reason,
        xdp: config.xdp.into(),
        publish_interfaces: config.publish_interfaces.clone(),
        delays: Delays::default(),
        name_server: Some(NameServerSettings {
            run_dir: config.run_dir.clone(),
            resolv_conf: config.resolv_conf.clone(),
        }),
        engines: Arc::new(engines(config)),
        connection_entries: config.connection_entries,
        rotate_keys: config.rotate_keys,
    })
}

/// The host's memory, in bytes; 0 if the kernel does not say.
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes = total.and_then(|total| total.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kibibytes.unwrap_or_default() << 10
}

/// What carries encrypted networks.
fn engines(config: &Config) -> HostEngines {
    HostEngines {
        choice: match config.wireguard_engine {
            WireguardEngine::Automatic => EngineChoice::Automatic,
            WireguardEngine::Kernel => EngineChoice::Kernel,
            WireguardEngine::Userspace => EngineChoice::Userspace,
        },
        port: config.wireguard_port,
        run_dir: config.run_dir.clone(),
    }
}

/// How packets are wrapped, and why so. `probe` checks whether the kernel can do what direct
/// encapsulation needs.
fn choose(choice: EncapsulationChoice, probe: impl FnOnce() -> io::Result<()>) -> (Encapsulation, String) {
    match choice {
        EncapsulationChoice::Direct => (Encapsulation::Direct, "set by option".to_owned()),
        EncapsulationChoice::Device => (Encapsulation::Device, "set by option".to_owned()),
        EncapsulationChoice::Auto => match probe() {
            Ok(()) => (Encapsulation::Direct, "a trial on a packet showed that the kernel can".to_owned()),
            Err(error) => (
                Encapsulation::Device,
                format!("the kernel refused to encapsulate a packet directly: {error}"),
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_refuses_gets_the_device_unless_told_otherwise_and_the_reason_says_so() {
        let refuses = || Err(io::Error::from(io::ErrorKind::InvalidInput));
        let (chosen, reason) = choose(EncapsulationChoice::Auto, refuses);
        assert_eq!(chosen, Encapsulation::Device);
        assert!(reason.contains("refused") && reason.contains("invalid input"), "{reason}");
        assert_eq!(choose(EncapsulationChoice::Auto, || Ok(())).0, Encapsulation::Direct);
        assert_eq!(choose(EncapsulationChoice::Direct, refuses).0, Encapsulation::Direct);
        assert_eq!(choose(EncapsulationChoice::Device, || Ok(())).0, Encapsulation::Device);
    }
}
