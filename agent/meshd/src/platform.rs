//! The real host and kernel, opened and probed at start.

use std::sync::Arc;

use mesh_ipam::Delays;
use mesh_kernel::programs::{Datapath, Options, ensure_bpffs};
use mesh_kernel::{KernelError, LinuxKernel};
use mesh_model::desired::Encapsulation;
use mesh_proto::Problem;

use crate::config::{Config, EncapsulationChoice};
use crate::host::ThisHost;
use crate::instance::StatePaths;
use crate::member::Platform;
use crate::reconcile::{SharedKernel, explain};

/// Opens the kernel, or says why an agent cannot work on it.
pub fn build(config: &Config, paths: StatePaths) -> Result<Platform, Problem> {
    let no_bpf = |error: KernelError| {
        explain(&error)
            .hint("meshd needs a kernel with eBPF, and root with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN")
    };
    ensure_bpffs(&config.bpffs_dir).map_err(|error| no_bpf(error.into()))?;
    let kernel = LinuxKernel::open(Datapath::new(Options::new(&config.bpffs_dir))).map_err(no_bpf)?;
    let (encapsulation, encapsulation_reason) = choose(config.encapsulation);
    Ok(Platform {
        paths,
        host: Arc::new(ThisHost),
        kernel: SharedKernel::new(Box::new(kernel)),
        encapsulation,
        encapsulation_reason,
        delays: Delays::default(),
    })
}

/// The first kernel that can shrink and grow a packet by an inner Ethernet header (`BPF_F_ADJ_ROOM_ENCAP_L2_ETH`).
const DIRECT_SINCE: (u32, u32) = (5, 13);

/// How packets are wrapped, and why so.
fn choose(choice: EncapsulationChoice) -> (Encapsulation, String) {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    decide(choice, &release)
}

fn decide(choice: EncapsulationChoice, release: &str) -> (Encapsulation, String) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (major, minor) = DIRECT_SINCE;
    match choice {
        EncapsulationChoice::Direct => (Encapsulation::Direct, "set by option".to_owned()),
        EncapsulationChoice::Device => (Encapsulation::Device, "set by option".to_owned()),
        EncapsulationChoice::Auto if version >= DIRECT_SINCE => {
            (Encapsulation::Direct, format!("kernel {release} can: it takes {major}.{minor}"))
        }
        EncapsulationChoice::Auto => (
            Encapsulation::Device,
            format!("kernel {release} is older than {major}.{minor}, which direct encapsulation takes"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_gets_the_device_unless_told_otherwise_and_the_reason_names_it() {
        let (chosen, reason) = decide(EncapsulationChoice::Auto, "5.10.0-30-amd64");
        assert_eq!(chosen, Encapsulation::Device);
        assert!(reason.contains("5.10.0-30-amd64"), "{reason}");
        assert_eq!(decide(EncapsulationChoice::Auto, "6.1.0-18-amd64").0, Encapsulation::Direct);
        assert_eq!(decide(EncapsulationChoice::Auto, "5.13-rc1").0, Encapsulation::Direct);
        assert_eq!(decide(EncapsulationChoice::Direct, "5.4.0").0, Encapsulation::Direct);
        assert_eq!(decide(EncapsulationChoice::Device, "6.18.0").0, Encapsulation::Device);
    }
}
