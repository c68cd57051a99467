//! Attaches the XDP program, by which the underlay interface's driver forwards transit packets.
//!
//! A driver that runs a program disables offloads, and resets its queues. On a network card
//! that costs next to nothing; between virtual machines or containers, where super-packets cross
//! whole, it costs more than it saves. So it is for the host's owner to switch on, and only cards
//! get the program unless it is forced on others.

use std::io;
use std::sync::Arc;

use mesh_host::Host;
use mesh_kernel::programs::AttachedProgram;
use mesh_kernel::{Depth, Programs, ProgramsError};
use mesh_model::Observed;
use mesh_model::desired::{Encapsulation, Underlay};
use mesh_model::observed::UnderlayLink;
use mesh_state::XdpStatus;
use mesh_sys::ethtool::Driver;
use parking_lot::Mutex;

/// Where the XDP program is attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum XdpPolicy {
    /// Nowhere.
    #[default]
    Off,
    /// On a network card whose driver runs it at little cost to other traffic.
    Auto,
    /// On any device; a device that refuses it is a problem.
    Native,
}

/// Drivers that move packets between machines or namespaces of one computer, or forward them to
/// other devices, though some of them name a bus.
const NO_CARDS: [&str; 11] = [
    "veth",
    "virtio_net",
    "tun",
    "bridge",
    "bonding",
    "team",
    "openvswitch",
    "hv_netvsc",
    "vif",
    "vmxnet3",
    "802.1Q VLAN Support",
];

const SWITCHED_OFF: &str = "not switched on by option";

/// Attaches the XDP program where it is wanted, and nowhere else.
#[derive(Debug)]
pub struct Xdp {
    choice: XdpPolicy,
    host: Arc<dyn Host>,
    /// What came of the last time.
    last: Mutex<XdpStatus>,
}

impl Xdp {
    /// Touches nothing yet.
    pub fn new(choice: XdpPolicy, host: Arc<dyn Host>) -> Self {
        Self { choice, host, last: Mutex::default() }
    }

    /// Makes one attempt, after an observation of this depth.
    pub fn follow(
        &self,
        programs: &mut dyn Programs,
        underlay: &Underlay,
        observed: &Observed,
        depth: Depth,
    ) -> XdpStatus {
        let mut last = self.last.lock();
        // What is wanted here changes with the device, and that with an event.
        if depth != Depth::Remembered || last.reason.is_empty() {
            *last = self.attempt(programs, underlay.encapsulation, observed.underlay.as_ref());
        }
        last.clone()
    }

    fn attempt(
        &self,
        programs: &mut dyn Programs,
        encapsulation: Encapsulation,
        device: Option<&UnderlayLink>,
    ) -> XdpStatus {
        let wanted = match device {
            _ if self.choice == XdpPolicy::Off => Err(SWITCHED_OFF.to_owned()),
            _ if encapsulation == Encapsulation::Device => {
                Err("packets are encapsulated by a device".to_owned())
            }
            None => Err("no interface has the data-path address".to_owned()),
            Some(device) if self.choice == XdpPolicy::Native => Ok((device, "set by option".to_owned())),
            Some(device) => suits(device, self.host.driver(&device.name)).map(|reason| (device, reason)),
        };
        let result = programs.xdp().and_then(|attached| {
            let place = wanted.as_ref().ok().map(|(device, _)| device.index);
            for ifindex in attached.keys().filter(|ifindex| Some(**ifindex) != place) {
                programs.detach_xdp(*ifindex)?;
            }
            match place {
                Some(ifindex) if attached.get(&ifindex) != Some(&AttachedProgram::Current) => {
                    programs.attach_xdp(ifindex)
                }
                _ => Ok(()),
            }
        });
        match (wanted, result) {
            (Ok((_, reason)), Ok(())) => XdpStatus { attached: true, reason, failed: false },
            (Ok((device, _)), Err(error)) => XdpStatus {
                failed: self.choice == XdpPolicy::Native,
                ..XdpStatus::off(explain(device, &error))
            },
            (Err(reason), Ok(())) => XdpStatus::off(reason),
            (Err(_), Err(error)) => XdpStatus { failed: true, ..XdpStatus::off(error.to_string()) },
        }
    }
}

/// Decides whether a device gets the program by default, with the reason.
fn suits(device: &UnderlayLink, driver: io::Result<Driver>) -> Result<String, String> {
    let name = &device.name;
    match driver {
        Ok(Driver { name: driver, bus }) if bus.is_empty() || NO_CARDS.contains(&driver.as_str()) => {
            Err(format!("{name} is no network card but {driver}, which would lose more than it gains"))
        }
        Ok(Driver { name: driver, .. }) => Ok(format!("{name} is a network card with the driver {driver}")),
        Err(error) => Err(format!("the driver of {name} cannot be read: {error}")),
    }
}

/// Why the program could not be attached.
fn explain(device: &UnderlayLink, error: &ProgramsError) -> String {
    let name = &device.name;
    let ProgramsError::Xdp { source, .. } = error else { return error.to_string() };
    match source.kind() {
        io::ErrorKind::ResourceBusy | io::ErrorKind::AlreadyExists => {
            format!("another XDP program is attached to {name}")
        }
        io::ErrorKind::Unsupported => format!("the driver of {name} runs no XDP programs"),
        _ => {
            format!("{name} refuses the XDP program, possibly because of its MTU ({}): {source}", device.mtu)
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_host::fake::TestHost;
    use mesh_kernel::FakePrograms;
    use nix::errno::Errno;

    use super::*;

    const CARD: &str = "ice";

    fn observed(index: u32) -> Observed {
        let name = "eth0".parse().unwrap();
        Observed { underlay: Some(UnderlayLink { name, index, mtu: 1500, mac: None }), ..Observed::default() }
    }

    fn underlay(encapsulation: Encapsulation) -> Underlay {
        Underlay { address: [192, 0, 2, 1].into(), port: 4789, encapsulation, dsr: false }
    }

    fn rig(choice: XdpPolicy, driver: &str, bus: &str) -> (Xdp, FakePrograms) {
        let host = TestHost::new("h1", "192.0.2.1");
        *host.driver.lock().unwrap() = Driver { name: driver.to_owned(), bus: bus.to_owned() };
        let mut programs = FakePrograms::default();
        programs.load().unwrap();
        (Xdp::new(choice, host), programs)
    }

    fn follow(xdp: &Xdp, programs: &mut FakePrograms, index: u32) -> XdpStatus {
        xdp.follow(programs, &underlay(Encapsulation::Direct), &observed(index), Depth::Quick)
    }

    #[test]
    fn by_itself_only_a_network_card_gets_the_program() {
        for (driver, bus, expected) in [
            (CARD, "0000:3b:00.0", true),
            ("virtio_net", "0000:00:03.0", false),
            ("veth", "", false),
            ("dummy", "", false),
            ("bridge", "N/A", false),
        ] {
            let (xdp, mut programs) = rig(XdpPolicy::Auto, driver, bus);
            let status = follow(&xdp, &mut programs, 2);
            assert_eq!((status.attached, programs.xdp.len()), (expected, expected.into()), "{status:?}");
            assert!(status.reason.contains(driver) && status.problem().is_none(), "{status:?}");
        }
    }

    #[test]
    fn told_to_any_device_gets_it_and_a_refusal_is_a_problem() {
        let (xdp, mut programs) = rig(XdpPolicy::Native, "veth", "");
        assert!(follow(&xdp, &mut programs, 2).attached);
        assert_eq!(programs.xdp.keys().copied().collect::<Vec<_>>(), [2]);
        programs.xdp.clear();
        for (error, expected) in [
            (Errno::EBUSY, "another XDP program is attached to eth0"),
            (Errno::EEXIST, "another XDP program is attached to eth0"),
            (Errno::EOPNOTSUPP, "the driver of eth0 runs no XDP programs"),
            (Errno::ERANGE, "MTU (1500)"),
        ] {
            programs.xdp_refusal = Some(error as i32);
            let status = follow(&xdp, &mut programs, 2);
            assert!(!status.attached && status.problem().unwrap().contains(expected), "{status:?}");
        }
    }

    #[test]
    fn a_card_that_refuses_is_no_problem_unless_told_to_and_is_tried_again() {
        let (xdp, mut programs) = rig(XdpPolicy::Auto, CARD, "0000:3b:00.0");
        programs.xdp_refusal = Some(Errno::EBUSY as i32);
        let status = follow(&xdp, &mut programs, 2);
        assert!(!status.attached && status.problem().is_none(), "{status:?}");
        programs.xdp_refusal = None;
        assert!(follow(&xdp, &mut programs, 2).attached);
    }

    #[test]
    fn it_follows_the_data_path_and_goes_where_it_is_not_wanted() {
        let (xdp, mut programs) = rig(XdpPolicy::Native, CARD, "0000:3b:00.0");
        follow(&xdp, &mut programs, 2);
        follow(&xdp, &mut programs, 3);
        assert_eq!(programs.xdp.keys().copied().collect::<Vec<_>>(), [3]);
        let device = underlay(Encapsulation::Device);
        let status = xdp.follow(&mut programs, &device, &observed(3), Depth::Quick);
        assert!(!status.attached && status.problem().is_none() && programs.xdp.is_empty(), "{status:?}");

        follow(&xdp, &mut programs, 3);
        let off = Xdp::new(XdpPolicy::Off, TestHost::new("h1", "192.0.2.1"));
        let status = follow(&off, &mut programs, 3);
        assert_eq!((status.reason.as_str(), programs.xdp.len()), (SWITCHED_OFF, 0));
    }

    #[test]
    fn an_earlier_agents_program_is_replaced() {
        let (xdp, mut programs) = rig(XdpPolicy::Native, CARD, "");
        follow(&xdp, &mut programs, 2);
        programs.restart();
        programs.load().unwrap();
        follow(&xdp, &mut programs, 2);
        assert_eq!(programs.xdp[&2], AttachedProgram::Current);
    }
}
