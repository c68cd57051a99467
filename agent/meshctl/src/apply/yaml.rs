//! YAML as a tree in which everything knows its line, so that whatever is wrong or not understood can be pointed at.

use std::collections::HashMap;
use std::error::Error;
use std::fmt::{self, Display};
use std::str::FromStr;

use mesh_model::PublishedPort;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::PropertySyntax;
use serde_saphyr::{DuplicateKeyPolicy, Spanned};

/// A value and where it is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    /// Counted from 1.
    line: u64,
    value: Value,
}

/// What YAML knows.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Null,
    Bool(bool),
    /// As decimal text.
    Number(String),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file; no key is there twice.
    Map(Vec<(Key, Node)>),
}

/// A key of a map and where it is.
#[derive(Debug, Clone, PartialEq)]
struct Key {
    line: u64,
    text: String,
}

/// Something in the file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}{reason}")]
pub(crate) struct Invalid {
    /// Where, counted from 1; 0 when it is nowhere in particular.
    pub(crate) line: u64,
    /// Which key, ending in `: `; empty for none.
    path: String,
    reason: Reason,
}

/// What is wrong with it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Reason {
    /// It is no YAML.
    #[error("{0}")]
    Syntax(Box<serde_saphyr::Error>),
    /// It is of another kind.
    #[error("it is {is}, and must be {must}")]
    Kind {
        /// What it must be.
        must: &'static str,
        /// What it is.
        is: &'static str,
    },
    /// The value is none of those that there are.
    #[error("{text:?}: {error}")]
    Value {
        /// What was given.
        text: String,
        /// What is wrong with it.
        error: Box<dyn Error + Send + Sync>,
    },
    /// It is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// It names what the file does not have.
    #[error("the file has no network {0}")]
    NoSuchNetwork(String),
    /// Two services have it, or one twice.
    #[error("published port {0} is declared twice")]
    PublishedTwice(PublishedPort),
    /// Two parts of the file contradict each other.
    #[error("{0}")]
    Contradiction(&'static str),
}

/// A key that is not understood, and so without effect.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Ignored {
    /// Where, counted from 1.
    pub(crate) line: u64,
    /// All keys that lead to it, with dots between them.
    pub(crate) key: String,
}

/// Reads one document; `variables` stand for `$NAME`, `${NAME}`, `${NAME:-default}` and so on, as with Compose.
pub(super) fn parse(text: &str, variables: HashMap<String, String>) -> Result<Node, Invalid> {
    let mut options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::Error,
        leading_zero_numbers_as_strings: true,
        property_syntax: PropertySyntax::DockerCompose,
        strict_booleans: true,
        with_snippet: false,
    };
    options = options.with_properties(variables);
    serde_saphyr::from_str_with_options(text, options).map_err(|error| Invalid {
        line: error.location().map_or(0, |location| location.line()),
        path: String::new(),
        reason: Reason::Syntax(Box::new(error)),
    })
}

/// A value and the keys that lead to it.
#[derive(Debug, Clone)]
pub(super) struct Item<'a> {
    path: String,
    node: &'a Node,
}

/// A map of which what is understood is taken out; what is left is ignored.
#[derive(Debug)]
pub(super) struct Section<'a> {
    item: Item<'a>,
    left: Vec<(&'a Key, &'a Node)>,
}

impl<'a> Item<'a> {
    /// The whole document.
    pub(super) fn root(node: &'a Node) -> Self {
        Self { path: String::new(), node }
    }

    /// That something is wrong with it.
    pub(super) fn invalid(&self, reason: Reason) -> Invalid {
        let path = if self.path.is_empty() { String::new() } else { format!("{}: ", self.path) };
        Invalid { line: self.node.line, path, reason }
    }

    /// That the key of this value is wrong.
    pub(super) fn invalid_key(&self, key: &str, error: impl Into<Box<dyn Error + Send + Sync>>) -> Invalid {
        self.invalid(Reason::Value { text: key.to_owned(), error: error.into() })
    }

    /// That it is without effect.
    pub(super) fn ignored(&self) -> Ignored {
        Ignored { line: self.node.line, key: self.path.clone() }
    }

    fn wrong_kind(&self, must: &'static str) -> Invalid {
        let is = match self.node.value {
            Value::Null => "empty",
            Value::Bool(_) => "true or false",
            Value::Number(_) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        };
        self.invalid(Reason::Kind { must, is })
    }

    /// Nothing stands there.
    pub(super) fn is_null(&self) -> bool {
        self.node.value == Value::Null
    }

    /// It is a list.
    pub(super) fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    /// It is a map.
    pub(super) fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }

    /// A text or a number, as text.
    pub(super) fn text(&self) -> Result<&'a str, Invalid> {
        match &self.node.value {
            Value::Text(text) | Value::Number(text) => Ok(text),
            _ => Err(self.wrong_kind("text")),
        }
    }

    /// Text of any scalar, as labels have it.
    pub(super) fn scalar(&self) -> Result<String, Invalid> {
        match &self.node.value {
            Value::Null => Ok(String::new()),
            Value::Bool(value) => Ok(value.to_string()),
            _ => self.text().map(str::to_owned),
        }
    }

    /// True or false, also as text, since that is what a variable leaves.
    pub(super) fn boolean(&self) -> Result<bool, Invalid> {
        match &self.node.value {
            Value::Bool(value) => Ok(*value),
            Value::Text(text) if text == "true" => Ok(true),
            Value::Text(text) if text == "false" => Ok(false),
            _ => Err(self.wrong_kind("true or false")),
        }
    }

    /// A value that can be read from text.
    pub(super) fn parse<T: FromStr<Err: Into<Box<dyn Error + Send + Sync>>>>(&self) -> Result<T, Invalid> {
        self.read(str::parse)
    }

    /// A value that can be read from text by `read`.
    pub(super) fn read<T, E: Into<Box<dyn Error + Send + Sync>>>(
        &self,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, Invalid> {
        let text = self.text()?;
        read(text).map_err(|error| self.invalid(Reason::Value { text: text.to_owned(), error: error.into() }))
    }

    /// The values of a list; none where nothing stands.
    pub(super) fn list(&self) -> Result<Vec<Item<'a>>, Invalid> {
        match &self.node.value {
            Value::Null => Ok(Vec::new()),
            Value::List(nodes) => {
                let item = |(index, node)| Item { path: format!("{}[{index}]", self.path), node };
                Ok(nodes.iter().enumerate().map(item).collect())
            }
            _ => Err(self.wrong_kind("a list")),
        }
    }

    /// The keys and values of a map; none where nothing stands.
    pub(super) fn entries(&self) -> Result<Vec<(&'a str, Item<'a>)>, Invalid> {
        match &self.node.value {
            Value::Null => Ok(Vec::new()),
            Value::Map(entries) => {
                Ok(entries.iter().map(|(key, node)| (key.text.as_str(), self.below(key, node))).collect())
            }
            _ => Err(self.wrong_kind("a map")),
        }
    }

    /// A map whose keys are known; empty where nothing stands.
    pub(super) fn section(self) -> Result<Section<'a>, Invalid> {
        let left = match &self.node.value {
            Value::Null => Vec::new(),
            Value::Map(entries) => entries.iter().map(|(key, node)| (key, node)).collect(),
            _ => return Err(self.wrong_kind("a map")),
        };
        Ok(Section { item: self, left })
    }

    fn below(&self, key: &Key, node: &'a Node) -> Item<'a> {
        let path =
            if self.path.is_empty() { key.text.clone() } else { format!("{}.{}", self.path, key.text) };
        Item { path, node }
    }
}

impl<'a> Section<'a> {
    /// Takes the value of a key; `None` also where nothing stands after the key.
    pub(super) fn take(&mut self, key: &str) -> Option<Item<'a>> {
        let at = self.left.iter().position(|(have, _)| have.text == key)?;
        let (key, node) = self.left.remove(at);
        let item = self.item.below(key, node);
        (!item.is_null()).then_some(item)
    }

    /// Takes the value of a key, even an empty one.
    pub(super) fn take_present(&mut self, key: &str) -> Option<Item<'a>> {
        let at = self.left.iter().position(|(have, _)| have.text == key)?;
        let (key, node) = self.left.remove(at);
        Some(self.item.below(key, node))
    }

    /// Takes what must be there.
    pub(super) fn required(&mut self, key: &'static str) -> Result<Item<'a>, Invalid> {
        self.take(key).ok_or_else(|| self.invalid(Reason::Missing(key)))
    }

    /// That something is wrong with the map.
    pub(super) fn invalid(&self, reason: Reason) -> Invalid {
        self.item.invalid(reason)
    }

    /// Notes what was not taken.
    pub(super) fn finish(self, ignored: &mut Vec<Ignored>) {
        let item = self.item;
        ignored.extend(
            self.left.iter().map(|(key, node)| Ignored { line: key.line, key: item.below(key, node).path }),
        );
    }
}

impl Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.key)
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { line: spanned.referenced.line(), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(node) = values.next_element()? {
            list.push(node);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut values: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = values.next_key::<Spanned<String>>()? {
            let key = Key { line: key.referenced.line(), text: key.value };
            map.push((key, values.next_value()?));
        }
        Ok(Value::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Node, Invalid> {
        parse(text, HashMap::from([("PORT".to_owned(), "8080".to_owned())]))
    }

    fn field<'a>(node: &'a Node, path: &[&str]) -> Item<'a> {
        path.iter().fold(Item::root(node), |item, key| item.section().unwrap().take(key).unwrap())
    }

    #[test]
    fn malformed_yaml_is_reported_with_its_line() {
        for (text, line) in [
            ("a: [1\nb: 2", 2),
            ("a: 1\na: 2\n", 2),
            ("a:\n\t- b\n", 2),
            ("a: 1\n---\nb: 2\n", 3),
            ("x: 1\na: *nope\n", 2),
        ] {
            assert_eq!(parsed(text).unwrap_err().line, line, "{text:?}");
        }
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_named_with_its_path_and_line() {
        let node = parsed("a:\n  b:\n    - [x]\n").unwrap();
        let error = field(&node, &["a", "b"]).list().unwrap()[0].text().unwrap_err();
        assert_eq!((error.line, error.to_string().as_str()), (3, "a.b[0]: it is a list, and must be text"));
    }

    #[test]
    fn a_port_pair_is_text_and_not_a_number_to_base_sixty() {
        let node = parsed("p: 22:22\nv: 010\nyes: on\n").unwrap();
        assert_eq!(field(&node, &["p"]).text().unwrap(), "22:22");
        assert_eq!(field(&node, &["v"]).text().unwrap(), "010");
        assert_eq!(field(&node, &["yes"]).text().unwrap(), "on");
    }

    #[test]
    fn variables_and_merged_maps_are_filled_in() {
        let node = parsed("x: &x {p: \"${PORT}:80\", q: \"${NONE:-1}\"}\ny:\n  <<: *x\n  q: 2\n").unwrap();
        assert_eq!(field(&node, &["y", "p"]).text().unwrap(), "8080:80");
        assert_eq!(field(&node, &["y", "q"]).text().unwrap(), "2");
        assert_eq!(field(&node, &["x", "q"]).text().unwrap(), "1");
    }

    #[test]
    fn what_is_not_taken_is_ignored_with_all_its_keys() {
        let node = parsed("a:\n  b: 1\n  c: {d: 2}\n").unwrap();
        let mut section = field(&node, &["a"]).section().unwrap();
        section.take("b").unwrap();
        let mut ignored = Vec::new();
        section.finish(&mut ignored);
        assert_eq!(ignored, [Ignored { line: 3, key: "a.c".into() }]);
    }
}
