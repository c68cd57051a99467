//! The description of an endpoint in the alias of its device (`ip -details link`): the part of its
//! record that nothing else in the kernel has. An agent whose files are lost rebuilds the record
//! from it.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;

use crate::{Endpoint, EndpointId, Name};

/// Most bytes of a device's alias: `IFALIASZ` of the kernel, less the final zero.
const MAX: usize = 255;
/// The first word.
const FIRST: &str = "mesh-endpoint";

/// An endpoint's identity and its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Its id.
    pub id: EndpointId,
    /// Its name.
    pub name: Name,
    /// When it was attached.
    pub created_at: Timestamp,
    /// The service that it is a backend of.
    pub service: Option<Name>,
    /// Further names that resolve to it; in text, only those that fit.
    pub aliases: Vec<Name>,
}

impl From<&Endpoint> for Description {
    fn from(endpoint: &Endpoint) -> Self {
        Self {
            id: endpoint.id.clone(),
            name: endpoint.name.clone(),
            created_at: endpoint.created_at,
            service: endpoint.service.clone(),
            aliases: endpoint.aliases.clone(),
        }
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{FIRST} {} {} {}", self.id, self.name, self.created_at);
        let service = self.service.iter().map(|service| format!(" service={service}"));
        for word in service.chain(self.aliases.iter().map(|alias| format!(" alias={alias}"))) {
            if text.len() + word.len() <= MAX {
                text.push_str(&word);
            }
        }
        f.write_str(&text)
    }
}

/// A text that describes no endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the text does not describe an endpoint")]
pub struct InvalidDescription;

impl FromStr for Description {
    type Err = InvalidDescription;

    fn from_str(text: &str) -> Result<Self, InvalidDescription> {
        let mut words = text.split(' ');
        if words.next() != Some(FIRST) {
            return Err(InvalidDescription);
        }
        let mut word = || words.next().ok_or(InvalidDescription);
        let id = word()?.parse().map_err(|_| InvalidDescription)?;
        let name = word()?.parse().map_err(|_| InvalidDescription)?;
        let created_at = word()?.parse().map_err(|_| InvalidDescription)?;
        let mut description = Self { id, name, created_at, service: None, aliases: Vec::new() };
        for word in words {
            // A later version may say more.
            match word.split_once('=') {
                Some(("service", name)) => description.service = name.parse().ok(),
                Some(("alias", name)) => description.aliases.extend(name.parse().ok()),
                _ => {}
            }
        }
        Ok(description)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described() -> Description {
        Description {
            id: "3f".repeat(12).parse().unwrap(),
            name: "web".parse().unwrap(),
            created_at: "2026-11-30T11:22:33.123456789Z".parse().unwrap(),
            service: Some("shop".parse().unwrap()),
            aliases: vec!["www".parse().unwrap(), "api.v2".parse().unwrap()],
        }
    }

    #[test]
    fn a_description_is_read_as_it_was_written() {
        for described in [described(), Description { service: None, aliases: Vec::new(), ..described() }] {
            assert_eq!(described.to_string().parse(), Ok(described));
        }
    }

    #[test]
    fn a_description_fits_into_a_devices_alias_whatever_the_names() {
        let long: Name = "n".repeat(63).parse().unwrap();
        let described = Description {
            name: long.clone(),
            service: Some(long.clone()),
            aliases: vec![long; 64],
            ..described()
        };
        let text = described.to_string();
        assert!(text.len() <= MAX, "{}", text.len());
        let read: Description = text.parse().unwrap();
        assert_eq!((read.name, read.service), (described.name, described.service));
    }

    #[test]
    fn what_others_write_into_an_alias_describes_no_endpoint() {
        for text in ["", "uplink to rack 7", "mesh-endpoint", "mesh-endpoint x y z", "mesh-endpoint 3f web"] {
            assert_eq!(text.parse::<Description>(), Err(InvalidDescription), "{text}");
        }
    }
}
