//! Enums that people write as one of a few words.

/// A text that is not one of the words it may be.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is no {what}: {words}")]
pub struct InvalidWord {
    /// What was given.
    pub text: String,
    /// What it should be.
    pub what: &'static str,
    /// The words that there are.
    pub words: &'static str,
}

/// The words of an enum, both ways.
macro_rules! words {
    ($name:ident, $what:literal, $words:literal, $($variant:ident = $word:literal),+) => {
        impl $name {
            /// As people write it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl FromStr for $name {
            type Err = InvalidWord;

            fn from_str(text: &str) -> Result<Self, InvalidWord> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(InvalidWord { text: text.to_owned(), what: $what, words: $words }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(crate) use words;
