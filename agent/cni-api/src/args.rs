//! `CNI_ARGS`: `KEY=VALUE` pairs, separated by semicolons.

use std::collections::BTreeMap;

use mesh_cni::CniError;
use mesh_cni::error::Code;

/// The pairs of `CNI_ARGS`. Keys that nobody asks for are ignored, as `IgnoreUnknown` demands and
/// every runtime sets.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Args(BTreeMap<String, String>);

impl Args {
    /// Parses the variable.
    pub(crate) fn parse(text: &str) -> Result<Self, CniError> {
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=').ok_or_else(|| {
                let shown: String = pair.chars().take(40).collect();
                CniError::new(Code::InvalidEnvironment, format!("CNI_ARGS: {shown:?} is no KEY=VALUE"))
            })?;
            Ok((key.trim().to_ascii_uppercase(), value.trim().to_owned()))
        };
        text.split(';').filter(|text| !text.trim().is_empty()).map(pair).collect::<Result<_, _>>().map(Self)
    }

    /// The value of a key, which is given in upper case; `None` if it is absent or empty.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_found_in_any_order_and_case() {
        let args = Args::parse("IgnoreUnknown=1;K8S_POD_NAME=web;mac=82:92:d5:dd:fa:8e;;IP=").unwrap();
        assert_eq!(args.get("K8S_POD_NAME"), Some("web"));
        assert_eq!(args.get("MAC"), Some("82:92:d5:dd:fa:8e"));
        assert_eq!((args.get("IP"), args.get("ABSENT")), (None, None));
    }

    #[test]
    fn what_is_no_pair_is_error_4() {
        assert_eq!(Args::parse("IP=10.0.0.1;rubbish").unwrap_err().code.number(), 4);
    }
}
