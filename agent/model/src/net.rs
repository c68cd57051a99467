//! Values of the wire: VNIs, MAC addresses, device names, MTUs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A VXLAN network identifier (RFC 7348, section 5) that a network may have: 1 to `0x7F_FFFF`.
///
/// The upper half of the 24 bits is the mesh's own: liveness probes and, for published ports,
/// backend ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl Vni {
    /// The first VNI that is handed out automatically.
    pub const FIRST_AUTOMATIC: Self = Self(4096);
    /// The last VNI that a network may have.
    pub const LAST: Self = Self(0x7F_FFFF);

    /// The VNI as a number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// A number that no network may have as its VNI.
#[derive(Debug, thiserror::Error)]
#[error("VNI {vni} is out of range: 1 to {} are for networks, higher ones are the mesh's own", Vni::LAST.0)]
pub struct InvalidVni {
    /// What was given.
    pub vni: u32,
}

impl TryFrom<u32> for Vni {
    type Error = InvalidVni;

    fn try_from(vni: u32) -> Result<Self, InvalidVni> {
        if (1..=Self::LAST.0).contains(&vni) { Ok(Self(vni)) } else { Err(InvalidVni { vni }) }
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A unicast Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr([u8; 6]);

/// A text or value that is no usable Ethernet address.
#[derive(Debug, thiserror::Error)]
pub enum InvalidMac {
    /// Not six hexadecimal bytes with colons between them.
    #[error("{0:?} is no MAC address: six hexadecimal bytes with colons, as in 02:42:0a:40:00:02")]
    Syntax(String),
    /// The group bit is set, or all bytes are zero: no device may have such an address.
    #[error("{0} cannot be a device's MAC address: it must be unicast and not zero")]
    NotUnicast(String),
}

impl MacAddr {
    /// Takes six bytes in wire order.
    pub fn new(bytes: [u8; 6]) -> Result<Self, InvalidMac> {
        let mac = Self(bytes);
        if bytes[0] & 1 == 1 || bytes == [0; 6] {
            Err(InvalidMac::NotUnicast(mac.to_string()))
        } else {
            Ok(mac)
        }
    }

    /// The six bytes in wire order.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddr {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let syntax = || InvalidMac::Syntax(text.to_owned());
        let mut bytes = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(syntax)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| syntax())?;
        }
        if parts.next().is_some() { Err(syntax()) } else { Self::new(bytes) }
    }
}

impl TryFrom<String> for MacAddr {
    type Error = InvalidMac;

    fn try_from(text: String) -> Result<Self, InvalidMac> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0;
        write!(
            f,
            "{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}",
            bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5]
        )
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A network device's name: 1 to 15 bytes, no slash, space or colon, not `.` or `..` (Linux
/// `dev_valid_name`), and not `all` or `default`, which sysctl(8) has for all devices
/// (`inetdev_create` refuses them).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IfName(String);

/// A text that Linux would not take as a device's name.
#[derive(Debug, thiserror::Error)]
#[error(
    "{text:?} is no valid interface name: 1 to 15 characters without slash, colon or space, and neither all nor default"
)]
pub struct InvalidIfName {
    /// What was given.
    pub text: String,
}

impl IfName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IfName {
    type Err = InvalidIfName;

    fn from_str(text: &str) -> Result<Self, InvalidIfName> {
        let valid = (1..=15).contains(&text.len())
            && !matches!(text, "." | ".." | "all" | "default")
            && !text.bytes().any(|b| matches!(b, b'/' | b':' | b'%') || !b.is_ascii_graphic());
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidIfName { text: text.to_owned() }) }
    }
}

impl TryFrom<String> for IfName {
    type Error = InvalidIfName;

    fn try_from(text: String) -> Result<Self, InvalidIfName> {
        text.parse()
    }
}

impl From<IfName> for String {
    fn from(name: IfName) -> Self {
        name.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A device's maximum transmission unit in bytes: 68 (RFC 791) to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Mtu(u32);

/// A number that no network's MTU may be.
#[derive(Debug, thiserror::Error)]
#[error("MTU {mtu} is out of range: {} to {}", Mtu::MIN, Mtu::MAX)]
pub struct InvalidMtu {
    /// What was given.
    pub mtu: u32,
}

impl Mtu {
    /// The least an IPv4 link may have (RFC 791).
    pub const MIN: u32 = 68;
    /// The maximum of an IP packet's length field.
    pub const MAX: u32 = 65535;
    /// The least an IPv6 link may have (RFC 8200, section 5).
    pub const MIN_IPV6: u32 = 1280;
    /// The smallest MTU of a data-path interface that networks are fitted to, in bytes.
    pub const MIN_DATA_PATH: u32 = 1280;

    /// The MTU in bytes.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// What is left of this MTU once `overhead` bytes of encapsulation are added to each packet.
    #[must_use]
    pub fn less(self, overhead: u32) -> Self {
        Self(self.0.saturating_sub(overhead).max(Self::MIN))
    }
}

impl TryFrom<u32> for Mtu {
    type Error = InvalidMtu;

    fn try_from(mtu: u32) -> Result<Self, InvalidMtu> {
        if (Self::MIN..=Self::MAX).contains(&mtu) { Ok(Self(mtu)) } else { Err(InvalidMtu { mtu }) }
    }
}

impl From<Mtu> for u32 {
    fn from(mtu: Mtu) -> Self {
        mtu.0
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upper_half_of_the_vni_space_is_refused() {
        assert!(Vni::try_from(0).is_err());
        assert!(Vni::try_from(0x7F_FFFF).is_ok());
        assert!(Vni::try_from(0x80_0000).is_err());
    }

    #[test]
    fn a_mac_address_survives_being_written_and_read() {
        let mac: MacAddr = "02:42:0a:40:00:ff".parse().unwrap();
        assert_eq!(mac.to_string().parse::<MacAddr>().unwrap(), mac);
        for bad in [
            "",
            "02:42:0a:40:00",
            "02:42:0a:40:00:ff:01",
            "2:42:0a:40:00:ff",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_interface_name_is_what_linux_takes() {
        assert!("eth0".parse::<IfName>().is_ok());
        for bad in ["", ".", "..", "a/b", "a b", "a:b", "sixteencharacter", "all", "default"] {
            assert!(bad.parse::<IfName>().is_err(), "{bad}");
        }
    }
}
