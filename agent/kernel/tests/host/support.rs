//! Hosts and containers as network namespaces.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use mesh_kernel::programs::{Datapath, Options};
use mesh_kernel::{Depth, FakePrograms, Kernel, LinuxKernel};
use mesh_model::endpoint::NetnsRef;
use mesh_model::{Action, Observed};
use nix::sched::{CloneFlags, unshare};

/// Runs a command in the calling thread's namespace, and returns what it printed.
#[track_caller]
pub(crate) fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Makes the calling thread a host of its own: an underlay `eth0` with the address 192.168.77.11.
pub(crate) fn become_host() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    run(
        "ip link set lo up && ip link add eth0 type veth peer name wire && ip link set wire up && ip link set eth0 up \
         && ip address add 192.168.77.11/24 dev eth0",
    );
}

/// The kernel of the calling thread's host, without eBPF.
pub(crate) fn kernel() -> LinuxKernel<FakePrograms> {
    LinuxKernel::open(FakePrograms::default()).unwrap()
}

/// The whole kernel of the calling thread's host, with pins of its own that are gone in the end.
pub(crate) struct WholeKernel {
    pub(crate) kernel: LinuxKernel<Datapath>,
    pub(crate) pins: PathBuf,
}

impl WholeKernel {
    pub(crate) fn open() -> Self {
        let pins = PathBuf::from(format!("/sys/fs/bpf/mt{}-host", std::process::id()));
        let kernel = LinuxKernel::open(Datapath::new(Options::new(&pins))).unwrap();
        Self { kernel, pins }
    }

    /// As after a restart of the process: what is pinned is found again.
    pub(crate) fn reopen(&mut self) {
        self.kernel = LinuxKernel::open(Datapath::new(Options::new(&self.pins))).unwrap();
    }
}

impl Drop for WholeKernel {
    fn drop(&mut self) {
        let _nothing_pinned = self.kernel.programs().unload();
    }
}

#[track_caller]
pub(crate) fn observe(kernel: &mut impl Kernel) -> Observed {
    kernel.observe(None, Depth::Full).unwrap()
}

#[track_caller]
pub(crate) fn apply(kernel: &mut impl Kernel, action: &Action) {
    kernel.apply(action).unwrap_or_else(|error| panic!("{action:?}: {error} ({error:?})"));
}

/// A namespace under `/run/netns`, removed in the end.
pub(crate) struct Container {
    pub(crate) name: String,
}

impl Container {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("mt{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        run(&format!("ip netns add {name}"));
        Self { name }
    }

    pub(crate) fn netns(&self) -> NetnsRef {
        let path = PathBuf::from("/run/netns").join(&self.name);
        mesh_kernel::netns::find(&path).unwrap().0
    }

    /// Runs `ip` inside.
    #[track_caller]
    pub(crate) fn ip(&self, arguments: &str) -> String {
        run(&format!("ip -n {} {arguments}", self.name))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Some tests remove it themselves.
        let _gone = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}
