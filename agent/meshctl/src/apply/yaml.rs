//! YAML as a tree of nodes with their lines, so that errors and notes can name the line.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::str::FromStr;

use mesh_model::PublishedPort;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Spanned, UserMessageFormatter};

use super::notes::{Ignored, Warning, Why};
use super::schema::{self, OWN, Schema};
use super::variables::{Blank, InvalidVariable, Variables, fill_in};

/// Maximum number of values in a file with all its aliases expanded, and of bytes of text in them.
const LARGEST: (usize, usize) = (500_000, 64 << 20);
/// Maximum number of events inside anchored values, including those of aliases in them: these are
/// stored to be repeated.
const ANCHORED: usize = 50_000;

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    /// Counted from 1.
    line: u64,
    value: Value,
}

/// The kinds of YAML values.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Null,
    Bool(bool),
    /// As decimal text.
    Number(String),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file; no key occurs twice.
    Map(Vec<(Key, Node)>),
}

/// A key of a map and its place.
#[derive(Debug, Clone, PartialEq)]
struct Key {
    line: u64,
    text: String,
}

/// An error in the file.
#[derive(Debug, thiserror::Error)]
#[error("{path}{reason}")]
pub(crate) struct Invalid {
    /// Its line, counted from 1; 0 if it concerns no particular line.
    pub(crate) line: u64,
    /// The path of the key, ending in `: `; empty for none.
    path: String,
    reason: Reason,
}

/// The kind of error.
#[derive(Debug, thiserror::Error)]
pub(super) enum Reason {
    /// It is not valid YAML.
    #[error("{0}")]
    Syntax(String),
    /// There are several documents.
    #[error("the file must have one YAML document, not several separated by ---")]
    SeveralDocuments,
    /// It is too large, or becomes so by its aliases.
    #[error(
        "the file is too large: with all its aliases expanded it has more than {} values, {} MiB of text, or {} values \
         inside anchors",
        LARGEST.0,
        LARGEST.1 >> 20,
        ANCHORED
    )]
    TooLarge,
    /// An invalid variable.
    #[error(transparent)]
    Variable(#[from] InvalidVariable),
    /// A published port depends on a variable without a value.
    #[error("variable {name} is {}, and would leave a published port open", if *empty { "empty" } else { "not set" })]
    BlankPort {
        /// The variable.
        name: String,
        /// Whether it is set to an empty value.
        empty: bool,
    },
    /// An unknown key in Mesh's own section.
    #[error("unknown key{}", nearest.map_or_else(String::new, |key| format!("; did you mean {key}?")))]
    NoSuchKey {
        /// The key that was probably meant.
        nearest: Option<&'static str>,
        /// All known keys.
        known: Vec<&'static str>,
    },
    /// A key of Mesh's own section has no value.
    #[error("it has no value")]
    NoValue,
    /// Mesh's own section is at a wrong place.
    #[error("{OWN} is allowed only in a network and in a service")]
    OwnMisplaced,
    /// The value has another kind.
    #[error("it must be {must}, not {is}")]
    Kind {
        /// The expected kind.
        must: &'static str,
        /// The actual kind.
        is: &'static str,
    },
    /// The value is invalid.
    #[error("{text:?}: {error}")]
    Value {
        /// The text.
        text: String,
        /// The error.
        error: Box<dyn Error + Send + Sync>,
    },
    /// A required key is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// It names a network that the file does not have.
    #[error("the file has no network {0}")]
    NoSuchNetwork(String),
    /// The port is declared twice, by one or two services.
    #[error("published port {0} is declared twice")]
    PublishedTwice(PublishedPort),
    /// Two parts of the file contradict each other.
    #[error("{0}")]
    Contradiction(&'static str),
}

impl Node {
    /// Removes all keys except one.
    pub(super) fn keep_only(&mut self, wanted: &str) {
        if let Value::Map(entries) = &mut self.value {
            entries.retain(|(key, _)| key.text == wanted);
        }
    }
}

impl Invalid {
    /// Returns a hint how to fix it.
    pub(crate) fn hint(&self) -> String {
        match &self.reason {
            Reason::BlankPort { name, .. } => {
                format!(
                    "set {name} in the environment or in .env next to the file, or write ${{{name}:-PORT}}"
                )
            }
            Reason::NoSuchKey { known, .. } => format!("the keys are {}", known.join(", ")),
            Reason::SeveralDocuments => "apply each document separately".to_owned(),
            _ => "see `meshctl apply --help`".to_owned(),
        }
    }
}

/// Reads one document.
pub(super) fn parse(text: &str) -> Result<Node, Invalid> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            // Counted with aliases expanded: the number of aliases does not matter.
            max_nodes: LARGEST.0,
            max_events: 4 * LARGEST.0,
            max_total_scalar_bytes: LARGEST.1,
            max_aliases: LARGEST.0,
            max_anchors: LARGEST.0,
            max_recorded_anchor_events: ANCHORED,
            max_merge_keys: LARGEST.0,
            enforce_alias_anchor_ratio: false,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        leading_zero_numbers_as_strings: true,
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| Invalid {
        line: error.location().map_or(0, |location| location.line()),
        path: String::new(),
        reason: unreadable(&error),
    })
}

fn unreadable(error: &serde_saphyr::Error) -> Reason {
    use serde_saphyr::Error as Yaml;
    match error.without_snippet() {
        Yaml::AliasError { error, .. } => unreadable(error),
        Yaml::MultipleDocuments { .. } => Reason::SeveralDocuments,
        Yaml::Budget { .. }
        | Yaml::AliasReplayLimitExceeded { .. }
        | Yaml::AliasReplayCounterOverflow { .. }
        | Yaml::AliasReplayStackDepthExceeded { .. } => Reason::TooLarge,
        // The default format is meant for programmers.
        _ => Reason::Syntax(error.render_with_formatter(&UserMessageFormatter)),
    }
}

/// Replaces the variables of all values. One without a value becomes empty, with a warning; in
/// `ports` it is an error.
pub(super) fn fill(
    document: &mut Node,
    variables: &Variables,
    warnings: &mut Vec<Warning>,
) -> Result<(), Invalid> {
    fill_below(document, &mut Vec::new(), variables, warnings)
}

fn fill_below(
    node: &mut Node,
    path: &mut Vec<String>,
    variables: &Variables,
    warnings: &mut Vec<Warning>,
) -> Result<(), Invalid> {
    match &mut node.value {
        Value::Text(text) if text.contains('$') => {
            let invalid = |reason| Invalid { line: node.line, path: format!("{}: ", path.join(".")), reason };
            let mut blank = BTreeMap::new();
            *text = fill_in(text, variables, &mut blank).map_err(|error| invalid(error.into()))?;
            let is_port =
                matches!(path.as_slice(), [first, _, third, ..] if first == "services" && third == "ports");
            for (name, blank) in blank {
                if is_port {
                    return Err(invalid(Reason::BlankPort { name, empty: blank == Blank::Empty }));
                }
                let message = format!("variable {name} is not set and counts as empty");
                if blank == Blank::Unset && !warnings.iter().any(|warning| warning.message == message) {
                    warnings.push(Warning { line: node.line, key: String::new(), message });
                }
            }
        }
        Value::List(nodes) => {
            for node in nodes {
                fill_below(node, path, variables, warnings)?;
            }
        }
        Value::Map(entries) => {
            for (key, node) in entries {
                path.push(key.text.clone());
                fill_below(node, path, variables, warnings)?;
                path.pop();
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) => {}
    }
    Ok(())
}

/// A value with the path of its keys.
#[derive(Debug, Clone)]
pub(super) struct Item<'a> {
    path: String,
    node: &'a Node,
    /// The schema of its place.
    schema: &'static Schema,
}

/// A map from which known keys are taken; the rest is ignored.
#[derive(Debug)]
pub(super) struct Section<'a> {
    item: Item<'a>,
    left: Vec<(&'a Key, &'a Node)>,
}

impl<'a> Item<'a> {
    /// Returns the whole document.
    pub(super) fn root(node: &'a Node) -> Self {
        Self { path: String::new(), node, schema: &schema::ROOT }
    }

    /// Returns an error about this value.
    pub(super) fn invalid(&self, reason: Reason) -> Invalid {
        let path = if self.path.is_empty() { String::new() } else { format!("{}: ", self.path) };
        Invalid { line: self.node.line, path, reason }
    }

    /// Returns an error about the key of this value.
    pub(super) fn invalid_key(&self, key: &str, error: impl Into<Box<dyn Error + Send + Sync>>) -> Invalid {
        self.invalid(Reason::Value { text: key.to_owned(), error: error.into() })
    }

    /// Records that the key has no effect.
    pub(super) fn ignored(&self) -> Ignored {
        Ignored { line: self.node.line, key: self.path.clone(), why: Why::NoUse }
    }

    /// Records that the key has no effect until one of its profiles is active.
    pub(super) fn inactive(&self, profiles: &[String]) -> Ignored {
        Ignored { why: Why::Inactive(profiles.join(" or ")), ..self.ignored() }
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

    /// Returns whether it is empty.
    pub(super) fn is_null(&self) -> bool {
        self.node.value == Value::Null
    }

    /// Returns whether it is a list.
    pub(super) fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    /// Returns whether it is a map.
    pub(super) fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }

    /// Returns text or a number as text.
    pub(super) fn text(&self) -> Result<&'a str, Invalid> {
        match &self.node.value {
            Value::Text(text) | Value::Number(text) => Ok(text),
            _ => Err(self.wrong_kind("text")),
        }
    }

    /// Returns any scalar as text, for labels.
    pub(super) fn scalar(&self) -> Result<String, Invalid> {
        match &self.node.value {
            Value::Null => Ok(String::new()),
            Value::Bool(value) => Ok(value.to_string()),
            _ => self.text().map(str::to_owned),
        }
    }

    /// Returns a boolean, also from text, since variables produce text.
    pub(super) fn boolean(&self) -> Result<bool, Invalid> {
        match &self.node.value {
            Value::Bool(value) => Ok(*value),
            Value::Text(text) if text == "true" => Ok(true),
            Value::Text(text) if text == "false" => Ok(false),
            _ => Err(self.wrong_kind("true or false")),
        }
    }

    /// Parses a value from text.
    pub(super) fn parse<T: FromStr<Err: Into<Box<dyn Error + Send + Sync>>>>(&self) -> Result<T, Invalid> {
        self.read(str::parse)
    }

    /// Parses a value from text with `read`.
    pub(super) fn read<T, E: Into<Box<dyn Error + Send + Sync>>>(
        &self,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, Invalid> {
        let text = self.text()?;
        read(text).map_err(|error| self.invalid(Reason::Value { text: text.to_owned(), error: error.into() }))
    }

    /// Returns the values of a list; none if it is empty.
    pub(super) fn list(&self) -> Result<Vec<Item<'a>>, Invalid> {
        match &self.node.value {
            Value::Null => Ok(Vec::new()),
            Value::List(nodes) => {
                let item = |(index, node)| Item {
                    path: format!("{}[{index}]", self.path),
                    node,
                    schema: self.schema,
                };
                Ok(nodes.iter().enumerate().map(item).collect())
            }
            _ => Err(self.wrong_kind("a list")),
        }
    }

    /// Returns the keys and values of a map; none if it is empty.
    pub(super) fn entries(&self) -> Result<Vec<(&'a str, Item<'a>)>, Invalid> {
        match &self.node.value {
            Value::Null => Ok(Vec::new()),
            Value::Map(entries) => {
                Ok(entries.iter().map(|(key, node)| (key.text.as_str(), self.below(key, node))).collect())
            }
            _ => Err(self.wrong_kind("a map")),
        }
    }

    /// Returns a map whose keys are known; it may be empty.
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
        Item { path, node, schema: self.schema.below(&key.text) }
    }
}

impl<'a> Section<'a> {
    /// Takes the value of a key; `None` also for an empty value.
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

    /// Takes the value of a required key.
    pub(super) fn required(&mut self, key: &'static str) -> Result<Item<'a>, Invalid> {
        self.take(key).ok_or_else(|| self.invalid(Reason::Missing(key)))
    }

    /// Returns an error about the map.
    pub(super) fn invalid(&self, reason: Reason) -> Invalid {
        self.item.invalid(reason)
    }

    /// Records the keys that were not taken.
    pub(super) fn finish(self, ignored: &mut Vec<Ignored>) {
        for (key, node) in self.left {
            let item = self.item.below(key, node);
            let why = why(self.item.schema, key, node);
            ignored.push(Ignored { line: key.line, key: item.path, why });
        }
    }

    /// Refuses keys that were not taken: they must be Mesh's own.
    pub(super) fn finish_own(self) -> Result<(), Invalid> {
        let Some((key, node)) = self.left.first() else { return Ok(()) };
        let schema = self.item.schema;
        let (nearest, known) = (schema.nearest(&key.text), schema.keys());
        Err(self.item.below(key, node).invalid(Reason::NoSuchKey { nearest, known }))
    }

    /// Refuses keys without a value, which are always a mistake.
    pub(super) fn check_values(&self) -> Result<(), Invalid> {
        let empty = self
            .left
            .iter()
            .find(|(key, node)| self.item.schema.knows(&key.text) && node.value == Value::Null);
        empty.map_or(Ok(()), |(key, node)| Err(self.item.below(key, node).invalid(Reason::NoValue)))
    }
}

/// Returns why a key has no effect at its place.
fn why(schema: &'static Schema, key: &Key, node: &Node) -> Why {
    let known = schema.keys();
    let text = key.text.as_str();
    if known.is_empty() {
        return Why::NoUse;
    }
    if schema.knows(text) || (text.starts_with("x-") && schema.nearest(text) != Some(OWN)) {
        return Why::Container(text.to_owned());
    }
    let looks_like_service = match &node.value {
        Value::Map(entries) => schema::is_like_a_service(entries.iter().map(|(key, _)| key.text.as_str())),
        _ => false,
    };
    let hint = match (schema.nearest(text), schema::home(text)) {
        (Some(nearest), _) => Some(format!("did you mean {nearest}?")),
        (None, Some(home)) => Some(format!("it is a key of {home}: check its indentation")),
        (None, None) if looks_like_service => {
            Some("it looks like a service: check its indentation".to_owned())
        }
        (None, None) => None,
    };
    Why::Unknown { hint }
}

/// Refuses Mesh's own section where it is not allowed.
pub(super) fn check_own_places(document: &Node) -> Result<(), Invalid> {
    check_own_below(&Item::root(document))
}

fn check_own_below(item: &Item<'_>) -> Result<(), Invalid> {
    let Value::Map(entries) = &item.node.value else { return Ok(()) };
    for (key, node) in entries {
        let below = item.below(key, node);
        if key.text == OWN && !matches!(item.schema, Schema::Names(_)) && !item.schema.knows(OWN) {
            return Err(below.invalid(Reason::OwnMisplaced));
        }
        if !matches!(below.schema, Schema::Free) {
            check_own_below(&below)?;
        }
    }
    Ok(())
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
mod tests;
