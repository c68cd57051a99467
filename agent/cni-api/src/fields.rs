//! Fields of a JSON object, found without regard to case: containerd writes `HostPort` where podman
//! writes `hostPort`.

use mesh_cni::CniError;
use mesh_cni::error::Code;
use serde_json::{Map, Value};

/// An object, and the path to it for error messages.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'a> {
    map: Option<&'a Map<String, Value>>,
    path: String,
}

impl<'a> Fields<'a> {
    /// The fields of a configuration.
    pub(crate) fn of(value: &'a Value) -> Result<Self, CniError> {
        let map = value.as_object();
        let map =
            map.ok_or_else(|| CniError::new(Code::Decoding, "the network configuration is no JSON object"))?;
        Ok(Self { map: Some(map), path: String::new() })
    }

    /// A field's value. `null` is as good as nothing: some runtimes write out what they do not set.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        let map = self.map?;
        let folded = || map.iter().find(|(other, _)| other.eq_ignore_ascii_case(key)).map(|(_, value)| value);
        map.get(key).or_else(folded).filter(|value| !value.is_null())
    }

    /// The object in a field; without fields if the field is absent.
    pub(crate) fn object(&self, key: &str) -> Result<Self, CniError> {
        let path = self.path_of(key);
        match self.get(key) {
            None => Ok(Self { map: None, path }),
            Some(Value::Object(map)) => Ok(Self { map: Some(map), path }),
            Some(other) => Err(bad(&path, other, "must be an object")),
        }
    }

    /// The text in a field; `None` if it is absent or empty.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, CniError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            Some(other) => Err(bad(&self.path_of(key), other, "must be a string")),
        }
    }

    /// The truth value in a field; false if it is absent.
    pub(crate) fn flag(&self, key: &str) -> Result<bool, CniError> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => Err(bad(&self.path_of(key), other, "must be true or false")),
        }
    }

    /// The number in a field.
    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>, CniError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => {
                let number = value.as_u64();
                number.map(Some).ok_or_else(|| bad(&self.path_of(key), value, "must be a number"))
            }
        }
    }

    /// The texts in a field: a list, or one text alone.
    pub(crate) fn texts(&self, key: &str) -> Result<Vec<&'a str>, CniError> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text]),
            Some(Value::Array(items)) => {
                let text = |item: &'a Value| {
                    item.as_str().ok_or_else(|| bad(&self.path_of(key), item, "must be a string"))
                };
                items.iter().map(text).collect()
            }
            Some(other) => Err(bad(&self.path_of(key), other, "must be a list of strings")),
        }
    }

    /// The objects in a field's list.
    pub(crate) fn objects(&self, key: &str) -> Result<Vec<Fields<'a>>, CniError> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items
                .iter()
                .enumerate()
                .map(|(n, item)| {
                    let path = format!("{}[{n}]", self.path_of(key));
                    let map = item.as_object().ok_or_else(|| bad(&path, item, "must be an object"))?;
                    Ok(Fields { map: Some(map), path })
                })
                .collect(),
            Some(other) => Err(bad(&self.path_of(key), other, "must be a list of objects")),
        }
    }

    /// All keys with their texts, as labels have them.
    pub(crate) fn pairs(&self) -> Result<Vec<(&'a str, &'a str)>, CniError> {
        let pair = |(key, value): (&'a String, &'a Value)| {
            let text = value.as_str().ok_or_else(|| bad(&self.path_of(key), value, "must be a string"))?;
            Ok((key.as_str(), text))
        };
        self.map.into_iter().flatten().map(pair).collect()
    }

    /// An error about a field's value.
    pub(crate) fn bad(&self, key: &str, why: &str) -> CniError {
        bad(&self.path_of(key), self.get(key).unwrap_or(&Value::Null), why)
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// An error that names a key and its value.
fn bad(path: &str, value: &Value, why: &str) -> CniError {
    const SHOWN: usize = 60;
    let mut shown: String = value.to_string().chars().take(SHOWN).collect();
    if shown.len() < value.to_string().len() {
        shown.push_str("...");
    }
    CniError::new(Code::InvalidConfig, format!("{path} {shown}: {why}"))
}
