//! Fields of messages: what is read of each, and the error that names it.

use std::fmt::Display;
use std::str::FromStr;

/// A message whose field does not hold what it should.
#[derive(Debug, thiserror::Error)]
#[error("field {field}: {reason}")]
pub struct InvalidMessage {
    /// Which field.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

/// Parses a text field.
pub fn parse<T: FromStr<Err: Display>>(field: &'static str, text: &str) -> Result<T, InvalidMessage> {
    text.parse().map_err(|e: T::Err| InvalidMessage { field, reason: e.to_string() })
}

/// Parses a text field that may be empty.
pub fn parse_optional<T: FromStr<Err: Display>>(
    field: &'static str,
    text: &str,
) -> Result<Option<T>, InvalidMessage> {
    if text.is_empty() { Ok(None) } else { parse(field, text).map(Some) }
}

pub(super) fn checked<T, U: TryInto<T, Error: Display>>(
    field: &'static str,
    value: U,
) -> Result<T, InvalidMessage> {
    value.try_into().map_err(|e: U::Error| InvalidMessage { field, reason: e.to_string() })
}

/// Takes a port, which is not 0.
pub(super) fn port(field: &'static str, port: u32) -> Result<u16, InvalidMessage> {
    let port = checked::<std::num::NonZeroU16, _>(field, checked::<u16, _>(field, port)?)?;
    Ok(port.get())
}

/// Takes a message field that must be there.
pub fn required<T>(field: &'static str, value: Option<T>) -> Result<T, InvalidMessage> {
    value.ok_or_else(|| InvalidMessage { field, reason: "is missing".into() })
}

/// Reads an enum's number; one that this version does not know is an error, not the default.
pub(super) fn known<V: TryFrom<i32>>(field: &'static str, number: i32) -> Result<V, InvalidMessage> {
    V::try_from(number).map_err(|_| InvalidMessage { field, reason: format!("{number} is not known") })
}

/// Both ways between an enum of the model and its message, and what the message's unspecified value
/// means.
macro_rules! enumeration {
    ($model:ident { $($variant:ident),+ }, unspecified: $unspecified:expr) => {
        impl From<model::$model> for v1::$model {
            fn from(value: model::$model) -> Self {
                match value {
                    $(model::$model::$variant => Self::$variant,)+
                }
            }
        }

        impl TryFrom<v1::$model> for model::$model {
            type Error = InvalidMessage;

            fn try_from(value: v1::$model) -> Result<Self, InvalidMessage> {
                match value {
                    $(v1::$model::$variant => Ok(Self::$variant),)+
                    v1::$model::Unspecified => $unspecified,
                }
            }
        }
    };
}
pub(super) use enumeration;
