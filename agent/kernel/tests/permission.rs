//! Without the right to change the host's network. A test of its own, since rights are the whole
//! process's.

use mesh_kernel::{Depth, FakePrograms, Kernel, KernelError, LinuxKernel};
use mesh_model::plan::VxlanDevice;
use mesh_model::{Action, naming};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Uid, setresuid};

#[test]
fn missing_rights_are_told_with_a_hint() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a namespace of its own");
    let nobody = Uid::from_raw(65534);
    setresuid(nobody, nobody, nobody).expect("root may become anybody");
    let mut kernel = LinuxKernel::open(FakePrograms::default()).expect("netlink is for everybody");
    let device = VxlanDevice {
        name: naming::VXLAN.parse().expect("a name"),
        index: naming::VXLAN_INDEX,
        port: 4789,
        mtu: 1450,
    };
    for action in [Action::CreateVxlan(device), Action::RemoveFirewall] {
        let error = kernel.apply(&action).expect_err("nobody may do that");
        assert!(matches!(error, KernelError::Permission { .. }), "{action:?}: {error:?}");
        assert!(error.hint().expect("a hint").contains("root"));
    }
    let error = kernel.observe(None, Depth::Full).expect_err("not even the firewall can be seen");
    assert!(matches!(error, KernelError::Permission { .. }), "{error:?}");
}
